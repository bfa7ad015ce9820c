//! What a cluster says of a namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ambit_api::labels;
use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::judge::Facts;
use crate::cmd::components::{self, Instance, selector};
use crate::cmd::playground::state::Kind;
use crate::objects::{self, escaped};

/// What agents leave alone if nothing else is said: their default.
const EXCLUDED: &str = "kube-system";
const EXCLUDED_ENV: &str = "EXCLUDE_NAMESPACES";
const EXCLUDED_FLAG: &str = "--excluded-namespaces";

/// A page by the API server and a kubelet is there within a second or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the agents, for every namespace alike.
#[derive(Debug, Clone)]
pub(super) struct Agents {
    ready: Option<Vec<Instance>>,
    excluded: Vec<String>,
}

impl Agents {
    /// What is known of a namespace of which only the pods are looked at.
    pub(super) fn facts_of_pods(
        &self,
        namespace: String,
        labels: BTreeMap<String, String>,
        pods: Vec<Pod>,
    ) -> Facts {
        let (agents, excluded) = (self.nodes(), self.excluded.clone());
        Facts { namespace, labels, pods, agents, excluded, ..Facts::default() }
    }

    fn nodes(&self) -> Option<BTreeSet<String>> {
        Some(self.ready.as_ref()?.iter().filter_map(|one| one.node.clone()).collect())
    }

    /// What the pages of the agents say of a namespace's pods. Those that do not answer are passed over.
    pub(super) async fn said(&self, client: &Client, facts: &Facts) -> Said {
        let nodes: BTreeSet<_> =
            facts.pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_ref()).collect();
        let is_theirs = |one: &&Instance| one.node.as_ref().is_some_and(|node| nodes.contains(node));
        let mut said = Said::default();
        for one in self.ready.iter().flatten().filter(is_theirs) {
            let page = timeout(PATIENCE, one.admin(client).get("/debug/pods")).await;
            let Ok(Ok(page)) = page else { continue };
            let pods: Vec<Value> = serde_json::from_str(&page).unwrap_or_default();
            said.pending.extend(pods.iter().filter_map(|pod| late(pod, &facts.namespace)));
            said.outside.extend(pods.iter().filter_map(|pod| outside(pod, &facts.namespace)));
        }
        said
    }
}

/// What agents say of pods.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// What keeps them from joining.
    pub(super) pending: BTreeMap<String, String>,
    /// How many of their connections are outside of the mesh, as far as that is known.
    pub(super) outside: BTreeMap<String, u64>,
}

/// Where agents are ready, and what they leave alone. Who may not look into the system namespace gets no nodes.
pub(super) async fn agents(client: &Client, system: &str) -> Agents {
    let instances = components::instances(client, system).await;
    let ready = instances
        .ok()
        .map(|all| all.into_iter().filter(|one| one.kind == Kind::Agent && one.ready).collect());
    let path = format!("/apis/apps/v1/namespaces/{system}/daemonsets");
    let query = format!("labelSelector={}", escaped(selector(Kind::Agent)));
    let sets: Option<Vec<DaemonSet>> = objects::list(client, &path, &query).await.unwrap_or_default();
    let excluded = sets.iter().flatten().find_map(excluded);
    Agents { ready, excluded: excluded.unwrap_or_else(|| vec![EXCLUDED.to_owned()]) }
}

/// A pod of the namespace that its agent wants in the mesh, and what failed last.
fn late(pod: &Value, namespace: &str) -> Option<(String, String)> {
    let text = |field: &str| pod.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let waits = text("state") == Some("pending") && text("namespace") == Some(namespace);
    if waits { Some((text("name")?.to_owned(), text("reason")?.to_owned())) } else { None }
}

/// A pod of the namespace, and how many of its connections are not in the mesh.
fn outside(pod: &Value, namespace: &str) -> Option<(String, u64)> {
    let text = |field: &str| pod.get(field).and_then(Value::as_str);
    let count = pod.get("connections_outside")?.as_u64()?;
    if text("namespace") == Some(namespace) { Some((text("name")?.to_owned(), count)) } else { None }
}

/// What the agents' template says that they leave alone.
fn excluded(set: &DaemonSet) -> Option<Vec<String>> {
    let spec = set.spec.template.spec.as_ref()?;
    let split = |text: &str| text.split(',').map(|name| name.trim().to_owned()).collect();
    spec.containers.iter().find_map(|container| {
        let mut words = container.args.iter().flatten().chain(container.command.iter().flatten());
        let by_flag = words.find_map(|word| word.strip_prefix(EXCLUDED_FLAG)?.strip_prefix('=').map(split));
        let by_env = || {
            let env = container.env.iter().flatten().find(|env| env.name == EXCLUDED_ENV);
            env.and_then(|env| env.value.as_deref()).map(split)
        };
        by_flag.or_else(by_env)
    })
}

/// Everything about one namespace.
pub(super) async fn facts(client: &Client, name: &str, agents: &Agents) -> anyhow::Result<Facts> {
    let namespace = objects::plain(Api::<Namespace>::all(client.clone()).get_opt(name).await);
    let Some(namespace) = namespace.with_context(|| format!("cannot read namespace {name}"))? else {
        bail!("there is no namespace {name}; `kubectl create namespace {name}` makes it");
    };
    let within = |kinds: &str| format!("/api/v1/namespaces/{name}/{kinds}");
    let policies = format!("/apis/networking.k8s.io/v1/namespaces/{name}/networkpolicies");
    Ok(Facts {
        namespace: name.to_owned(),
        labels: namespace.metadata.labels.unwrap_or_default(),
        pods: objects::list(client, &within("pods"), "").await?.unwrap_or_default(),
        services: objects::list(client, &within("services"), "").await?.unwrap_or_default(),
        policies: objects::list(client, &policies, "").await?.unwrap_or_default(),
        agents: agents.nodes(),
        excluded: agents.excluded.clone(),
        pending: BTreeMap::new(),
        outside: None,
    })
}

/// Every namespace.
pub(super) async fn namespaces(client: &Client) -> anyhow::Result<Vec<Namespace>> {
    Ok(objects::list(client, "/api/v1/namespaces", "").await?.unwrap_or_default())
}

/// Sets or takes away the label, and nothing else.
pub(super) async fn label(client: &Client, name: &str, mode: Option<&str>) -> anyhow::Result<()> {
    let patch = json!({ "metadata": { "labels": { labels::DATAPLANE_MODE: mode } } });
    let patched = Api::<Namespace>::all(client.clone())
        .patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    objects::plain(patched).with_context(|| format!("cannot label namespace {name}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_in_this_namespace_is_late() {
        let pod = |namespace: &str, state: &str, reason: &str| json!({ "namespace": namespace, "name": "web", "state": state, "reason": reason });
        let found = late(&pod("shop", "pending", "no tunnel"), "shop").unwrap();
        assert_eq!(found, ("web".to_owned(), "no tunnel".to_owned()));
        for other in
            [pod("x", "pending", "no tunnel"), pod("shop", "outside", "opts out"), pod("shop", "pending", "")]
        {
            assert_eq!(late(&other, "shop"), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_known_of_connections_is_no_number() {
        let pod = |namespace: &str, outside: Value| json!({ "namespace": namespace, "name": "web", "connections_outside": outside });
        assert_eq!(outside(&pod("shop", json!(2)), "shop"), Some(("web".to_owned(), 2)));
        // Another's, one that is not known, and an agent that does not count.
        for other in
            [pod("x", json!(2)), pod("shop", Value::Null), json!({ "namespace": "shop", "name": "web" })]
        {
            assert_eq!(outside(&other, "shop"), None, "{other}");
        }
    }

    #[test]
    fn what_agents_leave_alone_is_read_from_their_template() {
        let set = |container: Value| -> DaemonSet {
            serde_json::from_value(
                json!({ "spec": { "selector": {}, "template": { "spec": { "containers": [container] } } } }),
            )
            .unwrap()
        };
        let env = json!({ "name": "agent", "env": [{ "name": "EXCLUDE_NAMESPACES", "value": "kube-system, infra" }] });
        assert_eq!(excluded(&set(env)).unwrap(), ["kube-system", "infra"]);
        let flag = json!({ "name": "agent", "args": ["--excluded-namespaces=a,b"] });
        assert_eq!(excluded(&set(flag)).unwrap(), ["a", "b"]);
        assert_eq!(excluded(&set(json!({ "name": "agent" }))), None);
    }
}
