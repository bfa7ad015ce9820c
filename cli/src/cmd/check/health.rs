//! The judgments of a mesh that runs: its workloads, its leader, its tunnels and their pods. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;
use time::OffsetDateTime;

use super::verdict::{Check, name};
use crate::cmd::components::Instance;
use crate::cmd::playground::state::Kind;
use crate::cmd::version::{self, Version};
use crate::output::{age, few};

/// The taint that keeps pods away from a node until its tunnel is ready.
pub(super) const TAINT: &str = "ambit.io/not-ready";

/// The controllers: every replica is ready, and of the revision that is wanted.
pub(super) fn controllers(deployments: &[Deployment]) -> Check {
    const NAME: &str = "controller";
    const REMEDY: &str = "kubectl -n istio-system describe pod -l app=ambit-controller";
    let mut behind = Vec::new();
    let mut ready = 0;
    for deployment in deployments {
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let (are, updated) = (status.ready_replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0));
        ready += are;
        if are < wanted || updated < wanted {
            behind.push(format!("{name}: {are} of {wanted} ready, {updated} updated"));
        }
    }
    match (deployments.is_empty(), ready, behind.is_empty()) {
        (true, _, _) => Check::failure(NAME, "there is none", "ambit install"),
        (false, 0, _) => Check::failure(NAME, format!("none is ready: {}", few(&behind)), REMEDY),
        (false, _, false) => Check::warning(NAME, few(&behind), REMEDY),
        (false, _, true) => Check::pass(NAME, format!("{ready} replicas are ready")),
    }
}

/// A lease as far as it says who has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) lease: String,
    pub(super) holder: Option<String>,
    pub(super) renewed: Option<OffsetDateTime>,
    /// How long it holds, in seconds.
    pub(super) duration: Option<i32>,
}

/// The leader: somebody has the lease, and has renewed it in time.
pub(super) fn leader(leases: &[Held], now: OffsetDateTime) -> Check {
    const NAME: &str = "leader";
    const REMEDY: &str =
        "look into the controllers' logs; traffic goes on, but no status is written meanwhile";
    if leases.is_empty() {
        return Check::failure(NAME, "there is no controller that could lead", "ambit install");
    }
    let mut holders = Vec::new();
    for lease in leases {
        let Some(holder) = lease.holder.as_ref().filter(|holder| !holder.is_empty()) else {
            return Check::failure(NAME, format!("nobody has the lease {}", lease.lease), REMEDY);
        };
        // Twice, for the clock of the leader is another.
        let limit = i64::from(lease.duration.unwrap_or(15)) * 2;
        match lease.renewed {
            Some(renewed) if (now - renewed).whole_seconds() > limit => {
                let since = age(renewed, now);
                let reason = format!("{holder} has not renewed the lease {} for {since}", lease.lease);
                return Check::failure(NAME, reason, REMEDY);
            }
            Some(_) | None => holders.push(holder.clone()),
        }
    }
    Check::pass(NAME, few(&holders))
}

/// A DaemonSet is rolled out, and on every node where pods may run.
pub(super) fn everywhere(
    check: &'static str,
    set: Option<&DaemonSet>,
    nodes: &[Node],
    instances: &[Instance],
    kind: Kind,
) -> Check {
    let Some(set) = set else {
        return Check::failure(check, "its DaemonSet is not there", "ambit install");
    };
    let set_name = set.metadata.name.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let here: BTreeSet<_> = instances
        .iter()
        .filter(|one| one.kind == kind && one.ready)
        .filter_map(|one| one.node.clone())
        .collect();
    let without: Vec<_> =
        nodes.iter().filter(|node| is_usable(node)).map(name).filter(|node| !here.contains(node)).collect();
    let remedy = format!("kubectl -n istio-system describe daemonset {set_name}, and its pods there");
    if !without.is_empty() {
        let reasons: Vec<_> = without
            .iter()
            .map(|node| {
                let one = instances.iter().find(|one| one.kind == kind && one.node.as_ref() == Some(node));
                match one.map(|one| one.waits_for.as_deref().unwrap_or("not ready")) {
                    Some(why) => format!("{node} ({why})"),
                    None => format!("{node} (no pod)"),
                }
            })
            .collect();
        return Check::failure(check, format!("not ready on {}", few(&reasons)), remedy);
    }
    let (wanted, updated) = (status.desired_number_scheduled, status.updated_number_scheduled.unwrap_or(0));
    if updated < wanted {
        let reason = format!("{updated} of {wanted} pods are of the newest version");
        return Check::warning(
            check,
            reason,
            format!("kubectl -n istio-system rollout status daemonset {set_name}"),
        );
    }
    Check::pass(check, format!("ready on {} nodes", here.len()))
}

/// Linux, and pods may be scheduled there.
pub(super) fn is_usable(node: &Node) -> bool {
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    !cordoned && info.is_none_or(|info| info.operating_system == "linux")
}

/// Nodes that wait for their tunnel.
pub(super) fn taints(nodes: &[Node]) -> Check {
    const NAME: &str = "node-taints";
    let tainted = |node: &&Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        taints.into_iter().flatten().any(|taint| taint.key == TAINT)
    };
    let waiting: Vec<_> = nodes.iter().filter(tainted).map(name).collect();
    if waiting.is_empty() {
        return Check::pass(NAME, format!("no node bears {TAINT}"));
    }
    let reason = format!("{TAINT} keeps pods away from {}", few(&waiting));
    Check::warning(NAME, reason, "it is taken away once the node's tunnel is ready: look at the checks above")
}

/// What each tunnel's `/debug/sync` says; or why it says nothing.
pub(super) fn tunnels(asked: &[(String, Result<Value, String>)]) -> Check {
    const NAME: &str = "tunnels";
    let mut bad = Vec::new();
    for (title, sync) in asked {
        let why = match sync {
            Err(why) => Some(why.clone()),
            Ok(sync) => out_of_sync(sync),
        };
        if let Some(why) = why {
            bad.push(format!("{title}: {why}"));
        }
    }
    match (asked.is_empty(), bad.is_empty()) {
        (true, _) => Check::skipped(NAME, "there is no tunnel to ask"),
        (false, true) => Check::pass(NAME, format!("{} tunnels are connected and in sync", asked.len())),
        (false, false) => Check::failure(NAME, few(&bad), "`ambit status` has more of each tunnel"),
    }
}

fn out_of_sync(sync: &Value) -> Option<String> {
    let is = |field: &str| sync.get(field) == Some(&Value::Bool(true));
    let text = |field: &str| sync.get(field).and_then(Value::as_str);
    if text("connectedSince").is_none() {
        let end = text("lastEnd").unwrap_or("it never was");
        return Some(format!("not connected to the controller: {end}"));
    }
    if !is("synced") {
        return Some("has not been told everything yet".to_owned());
    }
    None
}

/// Whether all components, and this program, are of one version.
pub(super) fn versions(client: &str, components: &[(String, Version)]) -> Check {
    const NAME: &str = "versions";
    let mut by_version: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (title, version) in components {
        if let Some(version) = version.shown() {
            by_version.entry(version).or_default().push(title.clone());
        }
    }
    let words: Vec<_> =
        by_version.iter().map(|(version, titles)| format!("{version} ({})", few(titles))).collect();
    if words.is_empty() {
        return Check::skipped(NAME, "no component says its version");
    }
    if version::differ(components.iter().map(|(_, version)| version)) {
        return Check::warning(NAME, words.join("; "), "finish the upgrade, or roll it back");
    }
    let said = components.iter().find_map(|(_, version)| version.said.as_deref());
    match said.filter(|said| said.split(' ').next() != Some(client)) {
        Some(said) => Check::warning(
            NAME,
            format!("this program is {client}, the mesh is {said}"),
            "use an ambit of the mesh's version",
        ),
        None => Check::pass(NAME, format!("all are of one version: {}", words.join("; "))),
    }
}

/// Whether the cluster's DNS has endpoints: tunnels ask it for what they do not know.
pub(super) fn dns(ready: Option<usize>) -> Check {
    const NAME: &str = "dns";
    match ready {
        None => Check::skipped(NAME, "there is no Service kube-dns in kube-system"),
        Some(0) => Check::warning(
            NAME,
            "Service kube-dns has no ready endpoint",
            "kubectl -n kube-system get pods -l k8s-app=kube-dns",
        ),
        Some(count) => Check::pass(NAME, format!("{count} endpoints are ready")),
    }
}

/// Pods that should be in the mesh and are not, by what the agents say: `shop/web: reason`.
pub(super) fn enrolment(pods: &[String], agents: usize) -> Check {
    const NAME: &str = "enrolment";
    match (agents, pods.is_empty()) {
        (0, _) => Check::skipped(NAME, "no agent answers"),
        (_, true) => Check::pass(NAME, "every pod that belongs to the mesh is in it"),
        (_, false) => Check::failure(
            NAME,
            format!("not captured: {}", few(pods)),
            "kubectl describe the pod: an event says why",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Verdict::{self, Failure, Pass, Skipped, Warning};
    use super::*;
    use crate::output::moment;
    use serde_json::json;

    fn at(text: &str) -> OffsetDateTime {
        moment(text).unwrap()
    }

    fn now() -> OffsetDateTime {
        at("2026-06-01T12:00:00Z")
    }

    fn deployment(wanted: i32, ready: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": "ambit-controller" },
            "spec": { "replicas": wanted, "selector": {}, "template": {} },
            "status": { "readyReplicas": ready, "updatedReplicas": wanted },
        }))
        .unwrap()
    }

    #[test]
    fn controllers_are_all_some_or_none_ready() {
        for (deployments, verdict) in [
            (vec![], Failure),
            (vec![deployment(2, 2)], Pass),
            (vec![deployment(2, 1)], Warning),
            (vec![deployment(2, 0)], Failure),
        ] {
            assert_eq!(controllers(&deployments).verdict, verdict);
        }
    }

    #[test]
    fn a_leader_has_renewed_its_lease() {
        let held = |holder: Option<&str>, renewed: &str| Held {
            lease: "ambit-leader".to_owned(),
            holder: holder.map(str::to_owned),
            renewed: moment(renewed),
            duration: Some(15),
        };
        for (leases, verdict) in [
            (vec![], Failure),
            (vec![held(None, "2026-06-01T12:00:00Z")], Failure),
            (vec![held(Some(""), "2026-06-01T12:00:00Z")], Failure),
            (vec![held(Some("a"), "2026-06-01T11:59:40Z")], Pass),
            (vec![held(Some("a"), "2026-06-01T11:00:00Z")], Failure),
            (vec![held(Some("a"), "")], Pass),
        ] {
            assert_eq!(leader(&leases, now()).verdict, verdict, "{leases:?}");
        }
    }

    fn node(name: &str, spec: Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
    }

    fn instance(node: &str, ready: bool) -> Instance {
        Instance {
            kind: Kind::Ztunnel,
            namespace: "istio-system".to_owned(),
            pod: format!("ztunnel-{node}"),
            node: Some(node.to_owned()),
            ready,
            since: None,
            restarts: 0,
            image: "ambit/ztunnel:0.1.0".to_owned(),
            containers: Vec::new(),
            admin: 15000,
            waits_for: (!ready).then(|| "ImagePullBackOff".to_owned()),
        }
    }

    #[test]
    fn a_daemon_set_is_on_every_node_where_pods_may_run() {
        let set = |updated: i32| -> DaemonSet {
            serde_json::from_value(json!({
                "metadata": { "name": "ztunnel" }, "spec": { "selector": {}, "template": {} },
                "status": { "desiredNumberScheduled": 2, "updatedNumberScheduled": updated,
                    "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2 },
            }))
            .unwrap()
        };
        let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({ "unschedulable": true }))];
        let both = [instance("a", true), instance("b", true)];
        let judged = |set: Option<&DaemonSet>, instances: &[Instance]| {
            everywhere("ztunnel", set, &nodes, instances, Kind::Ztunnel)
        };
        assert_eq!(judged(Some(&set(2)), &both).verdict, Pass);
        assert_eq!(judged(Some(&set(1)), &both).verdict, Warning);
        assert_eq!(judged(None, &both).verdict, Failure);
        let half = judged(Some(&set(2)), &[instance("a", true), instance("b", false)]);
        assert_eq!((half.verdict, half.reason.as_str()), (Failure, "not ready on b (ImagePullBackOff)"));
        assert!(judged(Some(&set(2)), &both[..1]).reason.contains("b (no pod)"));
    }

    #[test]
    fn a_tainted_node_waits_for_its_tunnel() {
        let tainted = node("a", json!({ "taints": [{ "key": TAINT, "effect": "NoSchedule" }] }));
        assert_eq!(taints(&[tainted]).verdict, Warning);
        assert_eq!(taints(&[node("a", json!({}))]).verdict, Pass);
    }

    #[test]
    fn tunnels_are_connected_and_in_sync_or_say_why_not() {
        let one = |sync: Result<Value, &str>| vec![("ztunnel/a".to_owned(), sync.map_err(str::to_owned))];
        let good = json!({ "connectedSince": "2026-06-01T11:00:00Z", "synced": true });
        for (asked, verdict, said) in [
            (vec![], Skipped, "no tunnel"),
            (one(Ok(good)), Pass, "1 tunnels"),
            (one(Ok(json!({ "connectedSince": null, "lastEnd": "refused" }))), Failure, "refused"),
            (one(Ok(json!({ "connectedSince": "x", "synced": false }))), Failure, "everything"),
            (one(Err("no answer")), Failure, "ztunnel/a: no answer"),
        ] {
            let check = tunnels(&asked);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.reason.contains(said), "{check:?}");
        }
    }

    #[test]
    fn versions_agree_or_are_listed() {
        let of = |list: &[(Option<&str>, &str)]| -> Vec<(String, Version)> {
            list.iter()
                .map(|(said, tag)| {
                    let said = said.map(str::to_owned);
                    (tag.to_string(), Version { said, tag: Some((*tag).to_owned()) })
                })
                .collect()
        };
        for (list, verdict) in [
            (&[(Some("0.1.0"), "0.1.0"), (Some("0.1.0"), "0.1.0")][..], Pass),
            // What does not say its version is of the same release by its image.
            (&[(Some("0.1.0"), "dev"), (None, "dev")], Pass),
            (&[(Some("0.1.0"), "dev"), (None, "old")], Warning),
            (&[(Some("0.1.0"), "dev"), (Some("0.2.0"), "dev")], Warning),
            (&[(Some("0.2.0"), "dev")], Warning),
            (&[(Some("0.1.0 (abc)"), "dev")], Pass),
            (&[], Skipped),
        ] {
            assert_eq!(versions("0.1.0", &of(list)).verdict, verdict, "{list:?}");
        }
    }

    #[test]
    fn the_rest_in_short() {
        let verdict = |check: Check| -> Verdict { check.verdict };
        assert_eq!(verdict(dns(None)), Skipped);
        assert_eq!(verdict(dns(Some(0))), Warning);
        assert_eq!(verdict(dns(Some(2))), Pass);
        assert_eq!(verdict(enrolment(&[], 2)), Pass);
        assert_eq!(verdict(enrolment(&["shop/web: x".to_owned()], 2)), Failure);
        assert_eq!(verdict(enrolment(&[], 0)), Skipped);
    }
}
