//! Waiting until what was applied is in force, and telling how far it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::apply::get;
use super::object::Key;
use crate::output::Out;

/// A person watches; the API server is asked about a handful of objects.
const EACH: Duration = Duration::from_secs(1);
/// More names of pods in a message are not read.
const MOST_PODS: usize = 3;

/// The API server's list of whom to ask about objects.
const WEBHOOKS: &str = "ValidatingWebhookConfiguration";

/// How far an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    Done,
    Going(String),
}

/// Whether it takes its time to be in force.
pub(crate) fn is_awaited(key: &Key) -> bool {
    matches!(key.kind.as_str(), "Deployment" | "DaemonSet" | "CustomResourceDefinition" | WEBHOOKS)
}

/// Waits for all of them.
pub(crate) async fn wait(
    client: &Client,
    keys: &[Key],
    deadline: Instant,
    out: &mut Out,
) -> anyhow::Result<()> {
    let mut told: BTreeMap<&Key, Progress> = BTreeMap::new();
    loop {
        let mut pending = Vec::new();
        for key in keys {
            if told.get(key) == Some(&Progress::Done) {
                continue;
            }
            let progress = get(client, key).await?.map_or_else(
                || Progress::Going("it is gone again".to_owned()),
                |object| progress(&key.kind, &object),
            );
            if told.get(key) != Some(&progress) {
                match &progress {
                    // Definitions are many, and in force at once.
                    Progress::Done if key.is_definition() => {}
                    Progress::Done => out.line(format!("{key}: ready"))?,
                    Progress::Going(_) if key.is_definition() => {}
                    Progress::Going(how) => out.line(format!("{key}: {how}"))?,
                }
            }
            if let Progress::Going(how) = &progress {
                pending.push((key, how.clone()));
            }
            told.insert(key, progress);
        }
        let Some((key, how)) = pending.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let why = troubles(client, key).await;
            bail!(
                "{key} is not ready in time: {how}{why}\n\
                What was installed stays; go on with the same command, or take it away with `ambit uninstall`"
            );
        }
        sleep(EACH).await;
    }
}

/// Waits until it is no longer there.
pub(crate) async fn gone(client: &Client, key: &Key, deadline: Instant) -> anyhow::Result<()> {
    while get(client, key).await?.is_some() {
        if Instant::now() >= deadline {
            bail!("{key} does not go away; see its finalizers and its pods");
        }
        sleep(EACH).await;
    }
    Ok(())
}

fn progress(kind: &str, object: &Value) -> Progress {
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    if number("/status/observedGeneration") < number("/metadata/generation")
        && !matches!(kind, "CustomResourceDefinition" | WEBHOOKS)
    {
        return Progress::Going("not seen yet".to_owned());
    }
    match kind {
        "Deployment" => {
            // The API server puts 1 where nothing is said.
            let wanted = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
            let (new, ready) = (number("/status/updatedReplicas"), number("/status/availableReplicas"));
            let all = number("/status/replicas");
            if new >= wanted && ready >= wanted && all <= new {
                Progress::Done
            } else {
                Progress::Going(format!("{} of {wanted} ready", ready.min(new)))
            }
        }
        "DaemonSet" => {
            let wanted = number("/status/desiredNumberScheduled");
            let (new, ready) = (number("/status/updatedNumberScheduled"), number("/status/numberAvailable"));
            if new >= wanted && ready >= wanted {
                Progress::Done
            } else {
                Progress::Going(format!("{} of {wanted} nodes ready", ready.min(new)))
            }
        }
        // Until the controller has written its root there, every policy that somebody applies is refused.
        WEBHOOKS => {
            let webhooks = object.get("webhooks").and_then(Value::as_array).into_iter().flatten();
            let rootless = webhooks.filter(|webhook| {
                webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str).is_none_or(str::is_empty)
            });
            match rootless.count() {
                0 => Progress::Done,
                _ => Progress::Going("the controller has not written its root yet".to_owned()),
            }
        }
        _ => {
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let is = |condition: &Value, word: &str| {
                condition.get("type").is_some_and(|kind| kind == word)
                    && condition.get("status").is_some_and(|status| status == "True")
            };
            if conditions.into_iter().flatten().any(|condition| is(condition, "Established")) {
                Progress::Done
            } else {
                Progress::Going("not established".to_owned())
            }
        }
    }
}

/// What its pods complain about, as far as that can be found out.
async fn troubles(client: &Client, key: &Key) -> String {
    let Some(namespace) = &key.namespace else { return String::new() };
    let Ok(Some(object)) = get(client, key).await else { return String::new() };
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<_> = labels
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.as_str()?)))
        .collect();
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let Ok(list) = pods.list(&ListParams::default().labels(&selector.join(","))).await else {
        return String::new();
    };
    if list.items.is_empty() {
        return "\n  it has no pods: is a quota or an admission policy in the way?".to_owned();
    }
    let troubles = list.items.iter().filter_map(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        trouble(pod).map(|why| format!("\n  {name}: {why}"))
    });
    troubles.take(MOST_PODS).collect()
}

/// Why a pod is not ready.
pub(crate) fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.clone().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        Some(match &waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        })
    });
    let not_ready =
        || containers.clone().find(|container| !container.ready).map(|_| "runs, and is not ready".to_owned());
    let unscheduled = || {
        let scheduled =
            status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")?;
        (scheduled.status != "True")
            .then(|| scheduled.message.clone().unwrap_or_else(|| "no node takes it".to_owned()))
    };
    waiting.or_else(unscheduled).or_else(not_ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn progress_is_judged_by_what_was_seen_last() {
        let going = |how: &str| Progress::Going(how.to_owned());
        for (kind, object, expected) in [
            (
                "Deployment",
                json!({ "metadata": { "generation": 2 }, "status": { "observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1, "replicas": 1 } }),
                going("not seen yet"),
            ),
            (
                "Deployment",
                json!({ "spec": { "replicas": 2 }, "status": { "updatedReplicas": 1, "availableReplicas": 2, "replicas": 3 } }),
                going("1 of 2 ready"),
            ),
            (
                "Deployment",
                json!({ "spec": { "replicas": 2 }, "status": { "updatedReplicas": 2, "availableReplicas": 2, "replicas": 3 } }),
                going("2 of 2 ready"),
            ),
            (
                "Deployment",
                json!({ "spec": { "replicas": 2 }, "status": { "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2 } }),
                Progress::Done,
            ),
            (
                "DaemonSet",
                json!({ "status": { "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1 } }),
                going("1 of 2 nodes ready"),
            ),
            (
                "DaemonSet",
                json!({ "status": { "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2 } }),
                Progress::Done,
            ),
            (
                "CustomResourceDefinition",
                json!({ "metadata": { "generation": 1 }, "status": { "conditions": [{ "type": "Established", "status": "False" }] } }),
                going("not established"),
            ),
            (
                "CustomResourceDefinition",
                json!({ "metadata": { "generation": 1 }, "status": { "conditions": [{ "type": "Established", "status": "True" }] } }),
                Progress::Done,
            ),
        ] {
            assert_eq!(progress(kind, &object), expected, "{object}");
        }
    }

    #[test]
    fn a_pod_says_what_it_waits_for() {
        let pod = |status: Value| {
            serde_json::from_value::<Pod>(json!({ "metadata": {}, "status": status })).unwrap()
        };
        let container = |rest: Value| {
            let mut container =
                json!({ "name": "a", "image": "", "imageID": "", "restartCount": 0, "ready": false });
            super::super::values::overlay(&mut container, &rest);
            pod(json!({ "containerStatuses": [container] }))
        };
        let waiting =
            json!({ "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } } });
        assert_eq!(trouble(&container(waiting)).as_deref(), Some("ImagePullBackOff: no such image"));
        assert_eq!(trouble(&container(json!({}))).as_deref(), Some("runs, and is not ready"));
        let unscheduled =
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "message": "0/2 nodes" }] });
        assert_eq!(trouble(&pod(unscheduled)).as_deref(), Some("0/2 nodes"));
    }
}
