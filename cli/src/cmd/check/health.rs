//! The judgments of a mesh that runs: its workloads, its leader, its tunnels, certificates and roots. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;
use time::OffsetDateTime;
use x509_parser::pem::Pem;

use super::verdict::{Check, name};
use crate::cmd::components::Instance;
use crate::cmd::playground::state::Kind;
use crate::cmd::version::{self, Version};
use crate::output::{age, few, moment};

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

/// One certificate that has to live on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dated {
    /// `root CN=x`, `intermediate CN=y`.
    pub(crate) whose: String,
    pub(crate) ends: OffsetDateTime,
}

/// A time to look at it, to plan it, and to do it.
const DAYS: [i64; 3] = [60, 30, 7];

/// How long roots and intermediates live on.
pub(super) fn expiry(certificates: &[Dated], now: OffsetDateTime) -> Check {
    const NAME: &str = "certificates";
    const REMEDY: &str =
        "rotate: `ambit ca rotate --stage prepare` (with Secret cacerts: replace the Secret)";
    let Some(first) = certificates.iter().min_by_key(|one| one.ends) else {
        return Check::failure(
            NAME,
            "no root is told to the mesh: ConfigMap istio-ca-root-cert is empty",
            "look into the controllers' logs",
        );
    };
    let days = (first.ends - now).whole_days();
    let [look, plan, act] = DAYS;
    let reason = format!("{} ends in {days} days", first.whose);
    if first.ends <= now {
        return Check::failure(NAME, format!("{} is over", first.whose), REMEDY);
    }
    if days < act {
        return Check::failure(NAME, reason, REMEDY);
    }
    if days < plan {
        return Check::warning(NAME, format!("{reason}: rotate now"), REMEDY);
    }
    if days < look {
        return Check::warning(NAME, format!("{reason}: plan a rotation"), REMEDY);
    }
    Check::pass(NAME, reason)
}

/// Certificates in a PEM text; what is none is an error.
pub(crate) fn dated(kind: &str, pem: &str) -> Result<Vec<Dated>, String> {
    Pem::iter_from_buffer(pem.as_bytes())
        .map(|block| {
            let block = block.map_err(|error| error.to_string())?;
            let certificate = block.parse_x509().map_err(|error| error.to_string())?;
            let ends = certificate.validity().not_after.timestamp();
            Ok(Dated {
                whose: format!("{kind} {}", certificate.subject()),
                ends: OffsetDateTime::from_unix_timestamp(ends).map_err(|error| error.to_string())?,
            })
        })
        .collect()
}

/// Whether every namespace trusts what the system namespace trusts. `told` is what each namespace's ConfigMap says.
pub(super) fn roots(system: &str, namespaces: &[String], told: &BTreeMap<String, String>) -> Check {
    const NAME: &str = "roots";
    const REMEDY: &str =
        "the leading controller writes them: look into its log, and whether someone else writes them too";
    let Some(right) = told.get(system) else {
        return Check::failure(
            NAME,
            format!("namespace {system} has no ConfigMap istio-ca-root-cert"),
            REMEDY,
        );
    };
    let missing: Vec<_> = namespaces.iter().filter(|one| !told.contains_key(*one)).cloned().collect();
    let other: Vec<_> = namespaces
        .iter()
        .filter(|one| told.get(*one).is_some_and(|root| root.trim() != right.trim()))
        .cloned()
        .collect();
    match (missing.is_empty(), other.is_empty()) {
        (_, false) => Check::failure(NAME, format!("other roots than in {system}: {}", few(&other)), REMEDY),
        (false, true) => Check::failure(NAME, format!("no roots in {}", few(&missing)), REMEDY),
        (true, true) => Check::pass(NAME, format!("the same in {} namespaces", namespaces.len())),
    }
}

/// A webhook of ours, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Webhook {
    pub(super) name: String,
    /// What the API server trusts when it calls.
    pub(super) bundle: String,
    /// Whether objects are refused when it does not answer.
    pub(super) fails_closed: bool,
}

/// Whether the API server can call the validating webhooks.
pub(super) fn webhooks(webhooks: &[Webhook], roots: Option<&str>, now: OffsetDateTime) -> Check {
    const NAME: &str = "webhooks";
    const REMEDY: &str = "the leading controller writes caBundle: look into its log";
    if webhooks.is_empty() {
        return Check::warning(
            NAME,
            "no validating webhook: mistakes are found only after objects are written",
            "ambit install",
        );
    }
    for webhook in webhooks {
        let certificates = match dated("root", &webhook.bundle) {
            Ok(certificates) if !certificates.is_empty() => certificates,
            Ok(_) => return Check::failure(NAME, format!("{} has no caBundle", webhook.name), REMEDY),
            Err(error) => {
                return Check::failure(
                    NAME,
                    format!("{}: caBundle is no PEM: {error}", webhook.name),
                    REMEDY,
                );
            }
        };
        if certificates.iter().all(|one| one.ends <= now) {
            return Check::failure(NAME, format!("{}: caBundle is over", webhook.name), REMEDY);
        }
        if let Some(roots) = roots
            && !blocks(&webhook.bundle).iter().any(|block| blocks(roots).contains(block))
        {
            let reason = format!("{}: caBundle is none of the mesh's roots", webhook.name);
            return Check::failure(NAME, reason, REMEDY);
        }
    }
    let closed = webhooks.iter().filter(|one| one.fails_closed).count();
    Check::pass(NAME, format!("{} can be called; {closed} of them refuse when they cannot", webhooks.len()))
}

/// The certificates of a PEM text, without what stands around them.
fn blocks(pem: &str) -> BTreeSet<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_bytes()).flatten().map(|block| block.contents).collect()
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

/// What each node's agent says of the list of CNI plugins there: its plugin captures a network that another has made,
/// so it comes after that one. Those that only add to it may come after ours too.
pub(super) fn plugins(asked: &[(String, Option<Vec<String>>)]) -> Check {
    const NAME: &str = "cni-order";
    let known: Vec<_> = asked.iter().filter_map(|(node, list)| Some((node, list.as_ref()?))).collect();
    if known.is_empty() {
        return Check::skipped(NAME, "no agent says which plugins its node has");
    }
    let places: Vec<_> = known.iter().map(|(node, list)| ((*node).clone(), place(list))).collect();
    let at = |wanted: Place| {
        let nodes = places.iter().filter(|(_, place)| *place == wanted).map(|(node, _)| node.clone());
        few(&nodes.collect::<Vec<_>>())
    };
    let remedy = "the agent repairs the list when it runs: look into its log, and who else writes there";
    let is = |wanted: Place| places.iter().any(|(_, place)| *place == wanted);
    if is(Place::Absent) {
        return Check::failure(NAME, format!("{OURS} is not in the list of {}", at(Place::Absent)), remedy);
    }
    if is(Place::Early) {
        let reason = format!("{OURS} comes before the plugin that makes the network on {}", at(Place::Early));
        return Check::failure(NAME, reason, remedy);
    }
    let followed: Vec<_> = places
        .iter()
        .filter_map(|(node, place)| match place {
            Place::Followed(by) => Some(format!("{by} on {node}")),
            Place::Chained | Place::Early | Place::Absent => None,
        })
        .collect();
    if !followed.is_empty() {
        let reason =
            format!("after {OURS} comes a plugin that may change what it captured: {}", few(&followed));
        return Check::warning(NAME, reason, remedy);
    }
    let unknown: Vec<_> =
        asked.iter().filter(|(_, list)| list.is_none()).map(|(node, _)| node.clone()).collect();
    let silent = if unknown.is_empty() { String::new() } else { format!("; not known of {}", few(&unknown)) };
    Check::pass(NAME, format!("{OURS} is chained on {} nodes{silent}", known.len()))
}

/// The agent's plugin, as it stands in a list.
const OURS: &str = "ambit-cni";

/// Plugins that add to a network that another has made: those of the reference plugins that are called meta.
const ADDING: [&str; 6] = ["bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf"];

/// Where our plugin stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Where it belongs.
    Chained,
    /// Before there is a network.
    Early,
    /// Before one of which we do not know what it does.
    Followed(String),
    /// Nowhere.
    Absent,
}

fn place(list: &[String]) -> Place {
    let adds = |one: &String| ADDING.contains(&one.as_str());
    let Some(at) = list.iter().position(|one| one == OURS) else { return Place::Absent };
    let (before, from_ours) = list.split_at(at);
    if before.iter().all(adds) {
        return Place::Early;
    }
    match from_ours.iter().skip(1).find(|one| !adds(one)) {
        Some(other) => Place::Followed(other.clone()),
        None => Place::Chained,
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

/// A certificate's last day, from a tunnel's dump: intermediates of the chains that its pods show.
pub(super) fn intermediates(dump: &Value) -> Vec<Dated> {
    let certificates = dump.get("certificates").and_then(Value::as_array).into_iter().flatten();
    let mut found: Vec<_> = certificates
        .filter_map(|one| one.get("certChain")?.as_array())
        // The first is the workload's own, which lives for a day and renews itself.
        .flat_map(|chain| chain.iter().skip(1))
        .filter_map(|one| {
            let serial = one.get("serialNumber").and_then(Value::as_str).unwrap_or("?");
            let ends = moment(one.get("expirationTime")?.as_str()?)?;
            Some(Dated { whose: format!("intermediate with serial number {serial}"), ends })
        })
        .collect();
    found.sort_by(|a, b| (a.ends, &a.whose).cmp(&(b.ends, &b.whose)));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Verdict::{self, Failure, Pass, Skipped, Warning};
    use super::*;
    use serde_json::json;

    const ONE: &str = include_str!("testdata/one.pem");
    const OTHER: &str = include_str!("testdata/other.pem");

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
    fn certificates_are_told_of_in_time() {
        let root = dated("root", ONE).unwrap();
        assert_eq!(root[0].whose, "root O=cluster.local, CN=One");
        for (now, verdict) in [
            ("2026-06-01T00:00:00Z", Pass),
            ("2026-11-01T00:00:00Z", Pass),
            ("2026-11-03T12:00:00Z", Warning),
            ("2026-12-15T00:00:00Z", Warning),
            ("2026-12-28T00:00:00Z", Failure),
            ("2027-02-01T00:00:00Z", Failure),
        ] {
            assert_eq!(expiry(&root, at(now)).verdict, verdict, "{now}");
        }
        assert_eq!(expiry(&[], now()).verdict, Failure);
        assert!(dated("root", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }

    #[test]
    fn every_namespace_has_the_same_roots() {
        let namespaces = ["istio-system", "shop"].map(str::to_owned);
        let told = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(namespace, root)| ((*namespace).to_owned(), (*root).to_owned())).collect()
        };
        for (list, verdict) in [
            (&[("istio-system", ONE), ("shop", ONE)][..], Pass),
            (&[("istio-system", ONE), ("shop", OTHER)], Failure),
            (&[("istio-system", ONE)], Failure),
            (&[("shop", ONE)], Failure),
        ] {
            assert_eq!(roots("istio-system", &namespaces, &told(list)).verdict, verdict, "{list:?}");
        }
    }

    #[test]
    fn webhooks_are_called_with_a_root_of_the_mesh() {
        let hook = |bundle: &str| Webhook {
            name: "ambit-validator".to_owned(),
            bundle: bundle.to_owned(),
            fails_closed: true,
        };
        let both = format!("{ONE}{OTHER}");
        for (list, root, verdict) in [
            (vec![], Some(ONE), Warning),
            (vec![hook(ONE)], Some(ONE), Pass),
            (vec![hook(ONE)], Some(both.as_str()), Pass),
            (vec![hook(ONE)], None, Pass),
            (vec![hook(OTHER)], Some(ONE), Failure),
            (vec![hook("")], Some(ONE), Failure),
        ] {
            assert_eq!(webhooks(&list, root, now()).verdict, verdict, "{list:?}");
        }
        assert_eq!(webhooks(&[hook(ONE)], Some(ONE), at("2028-01-01T00:00:00Z")).verdict, Failure);
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
    fn the_plugin_is_chained_behind_another() {
        let of = |list: Option<&[&str]>| {
            vec![("n1".to_owned(), list.map(|list| list.iter().map(|one| (*one).to_owned()).collect()))]
        };
        for (asked, verdict) in [
            (of(None), Skipped),
            (of(Some(&["bridge", "portmap", "ambit-cni"])), Pass),
            (of(Some(&["bridge", "ambit-cni", "portmap", "bandwidth"])), Pass),
            (of(Some(&["bridge", "ambit-cni", "istio-cni"])), Warning),
            (of(Some(&["ambit-cni", "bridge"])), Failure),
            (of(Some(&["portmap", "ambit-cni", "bridge"])), Failure),
            (of(Some(&["ambit-cni"])), Failure),
            (of(Some(&["bridge"])), Failure),
            // The runtime can use no configuration.
            (of(Some(&[])), Failure),
        ] {
            assert_eq!(plugins(&asked).verdict, verdict, "{asked:?}");
        }
        let silent = plugins(&[of(Some(&["bridge", "ambit-cni"])), vec![("n2".to_owned(), None)]].concat());
        assert_eq!(silent.verdict, Pass);
        assert!(silent.reason.contains("not known of n2"), "{silent:?}");
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

    #[test]
    fn a_dump_tells_of_intermediates_once() {
        let chain = json!([
            { "serialNumber": "1", "expirationTime": "2026-06-02T00:00:00Z" },
            { "serialNumber": "2", "expirationTime": "2026-07-01T00:00:00Z" },
        ]);
        let dump = json!({ "certificates": [{ "certChain": chain }, { "certChain": chain }] });
        let found = intermediates(&dump);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].whose, "intermediate with serial number 2");
    }
}
