//! Brings a cluster to what is planned: looks, shows, asks, applies in order, waits, takes away what is gone.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::Instant;

use super::inventory::{self, Inventory, MANAGER, PART_OF};
use super::object::{Key, Object};
use super::prepare::Plan;
use super::{Way, confirmed, diff, rollout};
use crate::cluster::told;
use crate::output::{Out, Tone};

/// Who installed a thing with Helm, as Helm writes it.
const HELM_RELEASE: &str = "meta.helm.sh/release-name";

/// What becomes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It is new.
    Made,
    /// It changes: these lines.
    Changed(String),
    /// It is as it should be.
    Same,
    /// It was there, and stays when the mesh goes.
    Found(Option<String>),
    /// It is somebody else's, and left alone.
    Left,
}

/// Does it.
pub(crate) async fn apply(
    client: &Client,
    plan: &Plan,
    installed: Option<&Inventory>,
    way: &Way,
    dry_run: bool,
    out: &mut Out,
) -> anyhow::Result<ExitCode> {
    let mut fates = Vec::new();
    for object in &plan.rendered.objects {
        fates.push((object, fate(client, object, installed).await?));
    }
    let gone = gone(&plan.rendered.objects, installed);
    show(&fates, &gone, out)?;
    let is_settled = |fate: &Fate| matches!(fate, Fate::Same | Fate::Left | Fate::Found(None));
    let nothing = gone.is_empty() && fates.iter().all(|(_, fate)| is_settled(fate));
    if nothing {
        out.line("Nothing has to change.")?;
    }
    if dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !nothing && !confirmed("Go on?", way, out)? {
        out.line("Nothing was changed.")?;
        return Ok(ExitCode::FAILURE);
    }
    let deadline = Instant::now() + way.timeout;
    let mut kept = written(plan, installed, &fates);
    // Whoever is interrupted finds everything in it that may be there.
    kept.objects.extend(gone.iter().cloned());
    carry_out(client, &fates, &kept, deadline, out).await?;
    for key in &gone {
        take_away(client, key, deadline, out).await?;
    }
    kept.objects.retain(|key| !gone.contains(key));
    kept.is_complete = true;
    inventory::write(client, &kept).await?;
    out.line(format!("\nAmbit {} is installed in {}{}.", plan.version, plan.namespace, plan.of_revision()))?;
    if installed.is_none() {
        out.text(format!("\n{}", plan.rendered.notes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies each in its turn, and waits where those that follow need it.
async fn carry_out(
    client: &Client,
    fates: &[(&Object, Fate)],
    kept: &Inventory,
    deadline: Instant,
    out: &mut Out,
) -> anyhow::Result<()> {
    let mut is_written = false;
    let mut waiting: Vec<Key> = Vec::new();
    for (object, fate) in fates {
        let key = &object.key;
        // What comes next may be of a kind that was just defined, or ask a controller that was just started.
        let is_next_stage = waiting.first().is_some_and(|first| first.kind != key.kind);
        if is_next_stage {
            rollout::wait(client, &waiting, deadline, out).await?;
            waiting.clear();
        }
        if key.kind != "Namespace" && !is_written {
            inventory::write(client, kept).await?;
            is_written = true;
        }
        match fate {
            Fate::Left => {}
            Fate::Same | Fate::Made | Fate::Changed(_) | Fate::Found(_) => {
                patch(client, object, false).await?;
                if rollout::is_awaited(key) {
                    waiting.push(key.clone());
                }
            }
        }
    }
    rollout::wait(client, &waiting, deadline, out).await
}

/// What is written down of it, before it is done.
fn written(plan: &Plan, installed: Option<&Inventory>, fates: &[(&Object, Fate)]) -> Inventory {
    let keys = |which: fn(&Fate) -> bool| {
        fates.iter().filter(move |(_, fate)| which(fate)).map(|(object, _)| object.key.clone())
    };
    let mut objects: Vec<_> =
        keys(|fate| matches!(fate, Fate::Made | Fate::Changed(_) | Fate::Same)).collect();
    // Definitions that are no longer wanted stay: with them would go every object of their kind.
    let definitions = installed.into_iter().flat_map(|old| &old.objects).filter(|key| key.is_definition());
    for key in definitions {
        if !objects.iter().any(|one| one.is(key)) {
            objects.push(key.clone());
        }
    }
    Inventory {
        namespace: plan.namespace.clone(),
        revision: plan.revision.clone(),
        version: plan.version.clone(),
        values: plan.said.clone(),
        objects,
        found: keys(|fate| matches!(fate, Fate::Found(_))).collect(),
        is_complete: false,
    }
}

/// What was installed, and is not wanted any more, in the order in which it goes.
fn gone(wanted: &[Object], installed: Option<&Inventory>) -> Vec<Key> {
    let old = installed.into_iter().flat_map(|old| &old.objects);
    let unwanted = old.filter(|key| !key.is_definition() && key.kind != "Namespace");
    let mut gone: Vec<_> =
        unwanted.filter(|key| !wanted.iter().any(|object| object.key.is(key))).cloned().collect();
    gone.sort_by_key(Key::order);
    gone.reverse();
    gone
}

async fn fate(client: &Client, object: &Object, installed: Option<&Inventory>) -> anyhow::Result<Fate> {
    let key = &object.key;
    let Some(there) = get(client, key).await? else { return Ok(Fate::Made) };
    let owner = owner(&there, installed.is_some_and(|installed| installed.has(key)));
    match owner {
        Owner::Ours => {}
        Owner::Helm(_) | Owner::Other if key.is_definition() => return Ok(Fate::Left),
        Owner::Helm(release) => bail!(
            "{key} belongs to the Helm release {release}; go on with `helm upgrade`, or `helm uninstall {release}` first"
        ),
        Owner::Other if key.kind == "Namespace" => {
            let after = patch(client, object, true).await?;
            return Ok(Fate::Found(diff::lines(&key.to_string(), &there, &after)));
        }
        Owner::Other => bail!(
            "{key} is there, and is not Ambit's: is Istio installed in this namespace? \
            Choose another --revision or --namespace, or remove it"
        ),
    }
    let after = patch(client, object, true).await?;
    Ok(diff::lines(&key.to_string(), &there, &after).map_or(Fate::Same, Fate::Changed))
}

/// Whose an object is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Ours,
    Helm(String),
    Other,
}

fn owner(there: &Value, is_listed: bool) -> Owner {
    let metadata = there.get("metadata");
    let word = |map: &str, key: &str| metadata?.get(map)?.get(key)?.as_str();
    match word("annotations", HELM_RELEASE) {
        Some(release) => Owner::Helm(release.to_owned()),
        None if is_listed || word("labels", PART_OF.0) == Some(PART_OF.1) => Owner::Ours,
        None => Owner::Other,
    }
}

fn show(fates: &[(&Object, Fate)], gone: &[Key], out: &mut Out) -> anyhow::Result<()> {
    for (object, fate) in fates {
        let key = &object.key;
        match fate {
            Fate::Made => out.line(out.toned(Tone::Good, &format!("+ {key}")))?,
            Fate::Changed(lines) | Fate::Found(Some(lines)) => {
                out.line(out.toned(Tone::Wait, &format!("~ {key}")))?;
                out.text(lines)?;
            }
            Fate::Left => out.line(format!("  {key} is there already, and not Ambit's: left as it is"))?,
            Fate::Same | Fate::Found(None) => {}
        }
    }
    for key in gone {
        out.line(out.toned(Tone::Bad, &format!("- {key}")))?;
    }
    Ok(())
}

/// The API of an object's kind, in its namespace.
pub(super) fn api(client: &Client, key: &Key) -> Api<DynamicObject> {
    let resource = key.resource();
    match &key.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// The object as it is in the cluster.
pub(super) async fn get(client: &Client, key: &Key) -> anyhow::Result<Option<Value>> {
    let there = api(client, key)
        .get_opt(&key.name)
        .await
        .map_err(told)
        .with_context(|| format!("cannot read {key}"))?;
    there.map(|object| serde_json::to_value(object).context("an object is JSON")).transpose()
}

/// Applies the object, or asks what it would become.
async fn patch(client: &Client, object: &Object, dry_run: bool) -> anyhow::Result<Value> {
    // Fields that others changed by hand go back to what was asked for: the difference was shown.
    let params = PatchParams { dry_run, ..PatchParams::apply(MANAGER).force() };
    let key = &object.key;
    let after = api(client, key).patch(&key.name, &params, &Patch::Apply(&object.value)).await;
    let after = after.map_err(told).with_context(|| format!("cannot apply {key}"))?;
    serde_json::to_value(after).context("an object is JSON")
}

/// Removes what the list says was installed, and waits until it is gone. The list alone does not decide: whoever can
/// edit it could have anything removed by whoever runs this.
pub(super) async fn take_away(
    client: &Client,
    key: &Key,
    deadline: Instant,
    out: &mut Out,
) -> anyhow::Result<()> {
    if let Some(there) = get(client, key).await?
        && owner(&there, false) != Owner::Ours
    {
        let (label, value) = PART_OF;
        out.line(format!(
            "{key} stays: it does not bear the label {label}={value}; remove it yourself if it is Ambit's"
        ))?;
        return Ok(());
    }
    delete(client, key).await?;
    rollout::gone(client, key, deadline).await?;
    out.line(format!("{key} removed"))
}

/// Removes the object; what runs pods, only after them. What is not there, or whose kind is
/// not, is removed.
pub(super) async fn delete(client: &Client, key: &Key) -> anyhow::Result<()> {
    let has_pods = matches!(key.kind.as_str(), "Deployment" | "DaemonSet");
    let how = if has_pods { DeleteParams::foreground() } else { DeleteParams::background() };
    match api(client, key).delete(&key.name, &how).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(told(error)).with_context(|| format!("cannot remove {key}")),
    }
}

/// Gives up the fields that were added to an object of somebody else.
pub(super) async fn release(client: &Client, key: &Key) -> anyhow::Result<()> {
    let nothing = serde_json::json!({
        "apiVersion": key.api_version,
        "kind": key.kind,
        "metadata": { "name": key.name },
    });
    patch(client, &Object { key: key.clone(), value: nothing }, false).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_ours_by_label_or_by_list() {
        let labelled =
            |label: &str| json!({ "metadata": { "labels": { "app.kubernetes.io/part-of": label } } });
        assert_eq!(owner(&labelled("ambit"), false), Owner::Ours);
        assert_eq!(owner(&labelled("istio"), false), Owner::Other);
        assert_eq!(owner(&json!({ "metadata": {} }), false), Owner::Other);
        // Somebody took the label away.
        assert_eq!(owner(&json!({ "metadata": {} }), true), Owner::Ours);
        let helm = json!({ "metadata": { "annotations": { "meta.helm.sh/release-name": "mesh" } } });
        assert_eq!(owner(&helm, true), Owner::Helm("mesh".to_owned()));
    }

    #[test]
    fn what_is_not_wanted_goes_in_reverse_but_for_definitions_and_namespaces() {
        let key = |api: &str, kind: &str, name: &str| Key::new(api, kind, None, name);
        let installed = Inventory {
            namespace: "istio-system".to_owned(),
            revision: String::new(),
            version: "0.1.0".to_owned(),
            values: Value::Null,
            objects: vec![
                key("v1", "Namespace", "istio-system"),
                key("apiextensions.k8s.io/v1", "CustomResourceDefinition", "x"),
                key("rbac.authorization.k8s.io/v1", "ClusterRole", "a"),
                key("apps/v1", "DaemonSet", "ambit-cni-node"),
                key("apps/v1", "DaemonSet", "ztunnel"),
                key("v1", "Service", "kept"),
            ],
            found: Vec::new(),
            is_complete: true,
        };
        let kept =
            Object::new(json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "kept" } }));
        let gone: Vec<_> = gone(&[kept.unwrap()], Some(&installed)).into_iter().map(|key| key.name).collect();
        assert_eq!(gone, ["ambit-cni-node", "ztunnel", "a"]);
    }
}
