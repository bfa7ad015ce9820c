//! Takes away what was installed, and what it left behind while it ran.

use std::process::ExitCode;

use ambit_api::labels::{DATAPLANE_MODE, DATAPLANE_MODE_AMBIENT, MANAGED_BY, MANAGED_BY_AMBIT};
use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use super::inventory::{self, Inventory, PART_OF};
use super::object::Key;
use super::{UninstallArgs, apply, confirmed, rollout};
use crate::cluster::told;
use crate::output::{Out, Tone};

/// A plugged-in authority: the operator's own, and perhaps the only copy.
const PLUGGED_IN: &str = "cacerts";
/// The root that controllers made.
const ROOT: &str = "istio-ca-secret";
/// What controllers put into every namespace.
const DISTRIBUTED: [&str; 2] = ["istio-ca-root-cert", "istio-ca-crl"];
/// How the leases of controllers begin.
const LEASES: [&str; 2] = [LEADER, "ambit-ca-root"];
const LEADER: &str = "ambit-leader";

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
struct Removal {
    /// Objects, in the order in which they go.
    removed: Vec<Key>,
    /// Definitions that stay, with all objects of their kinds.
    kept: Vec<Key>,
    /// Objects of others, that only lose what was added to them.
    released: Vec<Key>,
    /// Namespaces whose label is taken away.
    unlabelled: Vec<String>,
    /// Remarks for the operator.
    remarks: Vec<String>,
}

impl Removal {
    /// Objects that go while the definitions of their kinds are still there.
    fn precede_definitions(&mut self, keys: Vec<Key>) {
        let at = self.removed.iter().position(Key::is_definition).unwrap_or(self.removed.len());
        self.removed.splice(at..at, keys);
    }
}

/// Does it.
pub(crate) async fn remove(client: &Client, args: &UninstallArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let installed = inventory::read(client, &args.namespace, &args.revision).await?;
    let installed = installed.with_context(|| {
        format!("nothing is installed in {} by `ambit install`; is it Helm's, or another --namespace or --revision?", args.namespace)
    })?;
    let others = inventory::all(client, &args.namespace).await?;
    let is_last = others.iter().all(|other| other.revision == installed.revision);
    let removal = plan(client, args, &installed, is_last).await?;
    show(&removal, out)?;
    if !confirmed("Remove all that?", &args.way, out)? {
        out.line("Nothing was changed.")?;
        return Ok(ExitCode::FAILURE);
    }
    let deadline = Instant::now() + args.way.timeout;
    for namespace in &removal.unlabelled {
        unlabel(client, namespace).await?;
    }
    // The list itself goes last but for the namespace that it lies in.
    let (namespaces, objects): (Vec<_>, Vec<_>) =
        removal.removed.iter().partition(|key| key.kind == "Namespace");
    // The agent cleans up in pods as long as it has its rights; so each is awaited before the next.
    for key in objects {
        if installed.has(key) {
            apply::take_away(client, key, deadline, out).await?;
        } else {
            apply::delete(client, key).await?;
            rollout::gone(client, key, deadline).await?;
            out.line(format!("{key} removed"))?;
        }
    }
    for key in &removal.released {
        apply::release(client, key).await?;
    }
    inventory::forget(client, &installed).await?;
    for key in namespaces {
        apply::delete(client, key).await?;
        rollout::gone(client, key, deadline).await?;
        out.line(format!("{key} removed"))?;
    }
    out.line(format!("\nAmbit {} is removed from {}.", installed.version, installed.namespace))?;
    Ok(ExitCode::SUCCESS)
}

async fn plan(
    client: &Client,
    args: &UninstallArgs,
    installed: &Inventory,
    is_last: bool,
) -> anyhow::Result<Removal> {
    let mut removal = sorted(installed, args.purge_crds);
    let others = if is_last { others(client, installed).await? } else { None };
    if is_last && others.is_none() {
        removal.precede_definitions(left_behind(client, installed).await?);
    } else {
        removal.removed.extend(lease_of(client, installed).await?);
    }
    if let Some(why) = &others {
        removal.remarks.push(format!("The root, and what namespaces were told of it, stay: {why}."));
    }
    let mode = format!("{DATAPLANE_MODE}={DATAPLANE_MODE_AMBIENT}");
    let labelled = Api::<Namespace>::all(client.clone());
    let labelled = labelled
        .list(&ListParams::default().labels(&mode))
        .await
        .map_err(told)
        .context("cannot list namespaces")?;
    let labelled: Vec<_> =
        labelled.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect();
    if args.purge && is_last {
        removal.unlabelled = labelled;
    } else if !labelled.is_empty() && is_last {
        let list = labelled.join(", ");
        removal.remarks.push(format!("The label {mode} stays on {list}; --purge takes it away."));
    }
    let home = Key::new("v1", "Namespace", None, &installed.namespace);
    if installed.has(&home) && is_last {
        let why = match others {
            Some(why) => Some(why),
            None => plugged_in(client, installed).await?,
        };
        match why {
            Some(why) => removal.remarks.push(format!("{home} stays: {why}.")),
            None => removal.removed.push(home),
        }
    }
    Ok(removal)
}

/// What goes and what stays, by the list alone. The namespace is judged by what is in it.
fn sorted(installed: &Inventory, with_definitions: bool) -> Removal {
    let mut removal = Removal { released: installed.found.clone(), ..Removal::default() };
    let mut keys: Vec<_> = installed.objects.iter().filter(|key| key.kind != "Namespace").cloned().collect();
    keys.sort_by_key(Key::order);
    keys.reverse();
    (removal.kept, removal.removed) =
        keys.into_iter().partition(|key| key.is_definition() && !with_definitions);
    removal
}

/// The Lease of a revision that others outlive: without it nobody seems to lead.
async fn lease_of(client: &Client, installed: &Inventory) -> anyhow::Result<Option<Key>> {
    let name = match installed.revision.as_str() {
        "" | "default" => LEADER.to_owned(),
        revision => format!("{LEADER}-{revision}"),
    };
    let leases = Api::<Lease>::namespaced(client.clone(), &installed.namespace);
    let lease = leases.get_opt(&name).await.context("cannot look for the Lease")?;
    Ok(lease.map(|_| Key::new("coordination.k8s.io/v1", "Lease", Some(&installed.namespace), &name)))
}

/// What the components made while they ran, and nobody else uses.
async fn left_behind(client: &Client, installed: &Inventory) -> anyhow::Result<Vec<Key>> {
    let ours = ListParams::default().labels(&format!("{MANAGED_BY}={MANAGED_BY_AMBIT}"));
    let mut found = Vec::new();
    let maps = Api::<ConfigMap>::all(client.clone())
        .list(&ours)
        .await
        .map_err(told)
        .context("cannot list ConfigMaps")?;
    for map in maps.items {
        if let (Some(name), Some(namespace)) = (map.metadata.name, map.metadata.namespace)
            && DISTRIBUTED.contains(&name.as_str())
        {
            found.push(Key::new("v1", "ConfigMap", Some(&namespace), &name));
        }
    }
    let leases = Api::<Lease>::namespaced(client.clone(), &installed.namespace);
    for lease in leases.list(&ListParams::default()).await.map_err(told).context("cannot list Leases")?.items
    {
        let name = lease.metadata.name.unwrap_or_default();
        if LEASES.iter().any(|begin| name.starts_with(begin)) {
            found.push(Key::new("coordination.k8s.io/v1", "Lease", Some(&installed.namespace), &name));
        }
    }
    // Without the label it may be an Istio's, which knows it by the same name.
    let secrets = Api::<Secret>::namespaced(client.clone(), &installed.namespace);
    for secret in secrets.list(&ours).await.map_err(told).context("cannot list Secrets")?.items {
        if secret.metadata.name.as_deref() == Some(ROOT) {
            found.push(Key::new("v1", "Secret", Some(&installed.namespace), ROOT));
        }
    }
    let class = Key::new("gateway.networking.k8s.io/v1", "GatewayClass", None, "");
    let classes = Api::<DynamicObject>::all_with(client.clone(), &class.resource());
    match classes.list(&ours).await {
        Ok(list) => found.extend(
            list.items.into_iter().filter_map(|one| Some(Key { name: one.metadata.name?, ..class.clone() })),
        ),
        // The cluster has no such kind, or no longer.
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(told(error)).context("cannot list GatewayClasses"),
    }
    Ok(found)
}

/// What would be lost with the namespace and is the operator's own.
async fn plugged_in(client: &Client, installed: &Inventory) -> anyhow::Result<Option<String>> {
    let secrets = Api::<Secret>::namespaced(client.clone(), &installed.namespace);
    let found = secrets.get_opt(PLUGGED_IN).await.map_err(told).context("cannot read Secrets")?;
    Ok(found.map(|_| format!("the authority in the Secret {PLUGGED_IN} is yours")))
}

/// Who else lives in the namespace, and may sign with the root there or trust it: Istio's control plane knows it by the
/// same name, and a part of Ambit may be Helm's.
async fn others(client: &Client, installed: &Inventory) -> anyhow::Result<Option<String>> {
    let namespace = &installed.namespace;
    let foreign = ListParams::default().labels(&format!("{}!={}", PART_OF.0, PART_OF.1));
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let pods = pods.list(&foreign).await.map_err(told).context("cannot list pods")?;
    if let Some(pod) = pods.items.into_iter().next().and_then(|pod| pod.metadata.name) {
        return Ok(Some(format!("the pod {pod} in {namespace} is not Ambit's")));
    }
    let ours = ListParams::default().labels(&format!("{}={}", PART_OF.0, PART_OF.1));
    for kind in ["Deployment", "DaemonSet"] {
        let any = Key::new("apps/v1", kind, Some(namespace), "");
        let list = apply::api(client, &any).list(&ours).await.map_err(told);
        let list = list.with_context(|| format!("cannot list objects of kind {kind}"))?;
        let names = list.items.into_iter().filter_map(|object| object.metadata.name);
        let found = names.map(|name| Key { name, ..any.clone() }).find(|key| !installed.has(key));
        if let Some(key) = found {
            return Ok(Some(format!("{key} was not installed by this command")));
        }
    }
    Ok(None)
}

async fn unlabel(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let patch = json!({ "metadata": { "labels": { DATAPLANE_MODE: null } } });
    let namespaces = Api::<Namespace>::all(client.clone());
    let done = namespaces.patch(namespace, &PatchParams::default(), &Patch::Merge(patch)).await;
    done.map(drop).map_err(told).with_context(|| format!("cannot take the label from namespace {namespace}"))
}

fn show(removal: &Removal, out: &mut Out) -> anyhow::Result<()> {
    for namespace in &removal.unlabelled {
        out.line(out.toned(Tone::Bad, &format!("- label {DATAPLANE_MODE} of namespace {namespace}")))?;
    }
    for key in &removal.removed {
        out.line(out.toned(Tone::Bad, &format!("- {key}")))?;
    }
    if !removal.kept.is_empty() {
        let count = removal.kept.len();
        out.line(format!(
            "{count} definitions stay, with the objects of their kinds; --purge-crds removes both."
        ))?;
    }
    for key in &removal.released {
        out.line(format!("{key} stays, without what was added to it."))?;
    }
    for remark in &removal.remarks {
        out.line(remark)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn installed() -> Inventory {
        let key = |api: &str, kind: &str, name: &str| Key::new(api, kind, None, name);
        Inventory {
            namespace: "istio-system".to_owned(),
            revision: String::new(),
            version: "0.1.0".to_owned(),
            values: Value::Null,
            objects: vec![
                key("apiextensions.k8s.io/v1", "CustomResourceDefinition", "x"),
                key("rbac.authorization.k8s.io/v1", "ClusterRole", "ambit-cni"),
                key("apps/v1", "Deployment", "ambit-controller"),
                key("apps/v1", "DaemonSet", "ztunnel"),
                key("apps/v1", "DaemonSet", "ambit-cni-node"),
                key("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "ambit-validator"),
            ],
            found: vec![key("v1", "Namespace", "istio-system")],
            is_complete: true,
        }
    }

    #[test]
    fn the_webhook_goes_first_and_rights_go_after_those_who_have_them() {
        let removal = sorted(&installed(), false);
        let names: Vec<_> = removal.removed.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["ambit-validator", "ambit-cni-node", "ztunnel", "ambit-controller", "ambit-cni"]);
        assert_eq!(removal.kept.len(), 1);
        assert_eq!(removal.released, installed().found);
    }

    #[test]
    fn definitions_go_last_and_only_when_it_is_said() {
        let removal = sorted(&installed(), true);
        assert_eq!(removal.removed.last().unwrap().name, "x");
        assert_eq!(removal.kept, []);
    }

    #[test]
    fn what_was_made_goes_after_its_makers_and_before_its_kind() {
        let class = Key::new("gateway.networking.k8s.io/v1", "GatewayClass", None, "ambit-waypoint");
        for with_definitions in [false, true] {
            let mut removal = sorted(&installed(), with_definitions);
            removal.precede_definitions(vec![class.clone()]);
            let at = |name: &str| removal.removed.iter().position(|key| key.name == name);
            assert!(at("ambit-controller") < at("ambit-waypoint"));
            assert!(at("x").is_none_or(|definition| at("ambit-waypoint").unwrap() < definition));
        }
    }
}
