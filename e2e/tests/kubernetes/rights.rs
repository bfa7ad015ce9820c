//! What the mesh's accounts may do, held against what they did: the API server writes down every request of theirs.

use std::collections::BTreeSet;
use std::fs;

use ambit_e2e::kubernetes::Kubectl;
use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::scene::{SYSTEM, Scene};

/// Rights that a story without waypoints, rotations and mistakes in objects need not use, and what they are for. One that
/// is not granted any more must go from here.
const FOR_OTHER_DAYS: [(&str, &str); 70] = [
    ("ambit-controller patch services/status", "a service is bound to a waypoint"),
    (
        "ambit-controller patch serviceentries.networking.istio.io/status",
        "an entry is bound, or not understood",
    ),
    (
        "ambit-controller patch workloadentries.networking.istio.io/status",
        "an entry is bound, or not understood",
    ),
    ("ambit-controller patch virtualservices.networking.istio.io/status", "one is to be told of"),
    ("ambit-controller patch destinationrules.networking.istio.io/status", "one is to be told of"),
    ("ambit-controller patch peerauthentications.security.istio.io/status", "one is not understood"),
    (
        "ambit-controller patch requestauthentications.security.istio.io/status",
        "a waypoint is to believe tokens",
    ),
    ("ambit-controller get ratelimitpolicies.ambit.io", "one is to be told of"),
    ("ambit-controller patch ratelimitpolicies.ambit.io/status", "one is to be told of"),
    ("ambit-controller list configmaps istio-ca-crl", "a plugged-in authority has revocation lists"),
    ("ambit-controller watch configmaps istio-ca-crl", "a plugged-in authority has revocation lists"),
    ("ambit-controller patch configmaps istio-ca-crl", "a plugged-in authority has revocation lists"),
    ("ambit-controller patch configmaps istio-ca-root-cert", "somebody changed one, or the root"),
    ("ambit-controller get configmaps istio-ca-root-cert", "an authority is plugged in"),
    ("ambit-controller update secrets istio-ca-secret", "a root follows another"),
    ("ambit-controller patch secrets istio-ca-secret", "a certificate lives longer than any before"),
    ("ambit-controller get leases.coordination.k8s.io ambit-ca-root", "two replicas make a root at once"),
    (
        "ambit-controller update leases.coordination.k8s.io ambit-ca-root",
        "a replica died while it made the root",
    ),
    ("ambit-controller delete leases.coordination.k8s.io ambit-ca-root", "the lease is given back"),
    ("ambit-controller get serviceaccounts", WAYPOINTS),
    ("ambit-controller create serviceaccounts", WAYPOINTS),
    ("ambit-controller patch serviceaccounts", WAYPOINTS),
    ("ambit-controller delete serviceaccounts", WAYPOINTS),
    ("ambit-controller get services", WAYPOINTS),
    ("ambit-controller create services", WAYPOINTS),
    ("ambit-controller patch services", WAYPOINTS),
    ("ambit-controller delete services", WAYPOINTS),
    ("ambit-controller get deployments.apps", WAYPOINTS),
    ("ambit-controller create deployments.apps", WAYPOINTS),
    ("ambit-controller patch deployments.apps", WAYPOINTS),
    ("ambit-controller delete deployments.apps", WAYPOINTS),
    ("ambit-controller get poddisruptionbudgets.policy", WAYPOINTS),
    ("ambit-controller create poddisruptionbudgets.policy", WAYPOINTS),
    ("ambit-controller patch poddisruptionbudgets.policy", WAYPOINTS),
    ("ambit-controller delete poddisruptionbudgets.policy", WAYPOINTS),
    ("ambit-controller get horizontalpodautoscalers.autoscaling", WAYPOINTS),
    ("ambit-controller create horizontalpodautoscalers.autoscaling", WAYPOINTS),
    ("ambit-controller patch horizontalpodautoscalers.autoscaling", WAYPOINTS),
    ("ambit-controller delete horizontalpodautoscalers.autoscaling", WAYPOINTS),
    ("ambit-controller get gateways.gateway.networking.k8s.io", WAYPOINTS),
    ("ambit-controller patch gateways.gateway.networking.k8s.io/status", WAYPOINTS),
    ("ambit-controller get configmaps", "a Gateway names parameters"),
    ("ambit-cni create events.events.k8s.io", "a pod cannot be taken in"),
    ("ambit-cni patch events.events.k8s.io", "a pod cannot be taken in, again"),
    ("ambit-controller list configmaps istio", "lists are not streamed"),
    ("ambit-controller list nodes", "lists are not streamed"),
    ("ambit-controller list pods", "lists are not streamed"),
    ("ambit-controller list endpointslices.discovery.k8s.io", "lists are not streamed"),
    ("ambit-controller list gateways.gateway.networking.k8s.io", "lists are not streamed"),
    ("ambit-controller list gatewayclasses.gateway.networking.k8s.io", "lists are not streamed"),
    ("ambit-controller get httproutes.gateway.networking.k8s.io", "a route is told what became of it"),
    (
        "ambit-controller patch httproutes.gateway.networking.k8s.io/status",
        "a route is told what became of it",
    ),
    ("ambit-controller get grpcroutes.gateway.networking.k8s.io", "a route is told what became of it"),
    (
        "ambit-controller patch grpcroutes.gateway.networking.k8s.io/status",
        "a route is told what became of it",
    ),
    ("ambit-controller get tlsroutes.gateway.networking.k8s.io", "a route is told what became of it"),
    (
        "ambit-controller patch tlsroutes.gateway.networking.k8s.io/status",
        "a route is told what became of it",
    ),
    ("ambit-controller get tcproutes.gateway.networking.k8s.io", "a route is told what became of it"),
    (
        "ambit-controller patch tcproutes.gateway.networking.k8s.io/status",
        "a route is told what became of it",
    ),
    ("ambit-controller list httproutes.gateway.networking.k8s.io", "lists are not streamed"),
    ("ambit-controller list grpcroutes.gateway.networking.k8s.io", "lists are not streamed"),
    ("ambit-controller list tlsroutes.gateway.networking.k8s.io", "lists are not streamed"),
    ("ambit-controller list tcproutes.gateway.networking.k8s.io", "lists are not streamed"),
    ("ambit-controller watch tcproutes.gateway.networking.k8s.io", "the experimental channel is installed"),
    ("ambit-controller list referencegrants.gateway.networking.k8s.io", "lists are not streamed"),
    (
        "ambit-controller create authorizationpolicies.security.istio.io",
        "the webhook is asked for before it must be",
    ),
    ("ambit-cni list pods", "lists are not streamed"),
    ("ambit-cni list daemonsets.apps ambit-cni-node", "the watch fell too far behind"),
    ("ambit-cni list namespaces", "lists are not streamed"),
    ("ambit-cni get pods", "a pod starts before the watch has told of it"),
    ("ambit-cni get namespaces", "a pod starts before the watch has told of its namespace"),
];

/// What waypoints are made of.
const WAYPOINTS: &str = "a Gateway asks for a waypoint";

/// Fails if a right is granted that was neither used nor is for another day.
pub(crate) fn none_is_idle(scene: &Scene<'_>) -> anyhow::Result<String> {
    let granted = granted(scene.kubectl())?;
    let used = used(scene)?;
    let other: BTreeSet<&str> = FOR_OTHER_DAYS.iter().map(|(right, _)| *right).collect();
    let is_used = |right: &str| {
        let bare = right.rsplit_once(' ').map_or(right, |(bare, _)| bare);
        // A right without a name is used by a request with any; one with a name by a request for it alone.
        used.contains(right)
            || (right.split(' ').count() == 3 && used.iter().any(|one| one.starts_with(right)))
            || (right.split(' ').count() == 4 && used.contains(bare) && !right.contains(" create "))
    };
    let idle: Vec<_> =
        granted.iter().filter(|right| !is_used(right) && !other.contains(right.as_str())).collect();
    ensure!(idle.is_empty(), "granted and never used: {idle:#?}; used: {used:#?}");
    let stale: Vec<_> = other.iter().filter(|right| !granted.contains(**right)).collect();
    ensure!(stale.is_empty(), "for other days, and not granted: {stale:#?}");
    Ok(format!(
        "{} rights, {} of them used, {} for other days",
        granted.len(),
        granted.len() - other.len(),
        other.len()
    ))
}

/// `account verb resource[.group][/subresource][ name]`, for every rule of every role.
fn granted(kubectl: &Kubectl) -> anyhow::Result<BTreeSet<String>> {
    let mut rights = BTreeSet::new();
    for (bindings, roles) in [("clusterrolebindings", "clusterrole"), ("rolebindings", "role")] {
        let list =
            kubectl.get(SYSTEM, &[bindings, "-l", "app.kubernetes.io/part-of=ambit"])?.context("no list")?;
        for binding in items(&list) {
            let account = text(&binding["subjects"][0]["name"]);
            let role = text(&binding["roleRef"]["name"]);
            let role = kubectl.get(SYSTEM, &[roles, &role])?.with_context(|| format!("no {roles} {role}"))?;
            for rule in role["rules"].as_array().into_iter().flatten() {
                of_rule(&account, rule, &mut rights);
            }
        }
    }
    ensure!(!rights.is_empty(), "no role of the mesh is found");
    Ok(rights)
}

fn of_rule(account: &str, rule: &Value, rights: &mut BTreeSet<String>) {
    let words = |field: &str| rule[field].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let names = words("resourceNames");
    for group in words("apiGroups") {
        for resource in words("resources") {
            for verb in words("verbs") {
                let right = right(account, &verb, &group, &resource);
                if names.is_empty() {
                    rights.insert(right);
                } else {
                    rights.extend(names.iter().map(|name| format!("{right} {name}")));
                }
            }
        }
    }
}

fn right(account: &str, verb: &str, group: &str, resource: &str) -> String {
    let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(a, b)| (a, Some(b)));
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let subresource = subresource.map(|one| format!("/{one}")).unwrap_or_default();
    format!("{account} {verb} {resource}{group}{subresource}")
}

/// The same, for every request that was let through.
fn used(scene: &Scene<'_>) -> anyhow::Result<BTreeSet<String>> {
    let path = scene.cluster.home().audit();
    let log = fs::read_to_string(&path).with_context(|| format!("no audit in {}", path.display()))?;
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let requests = events.filter_map(|event| {
        let account =
            event["user"]["username"].as_str()?.strip_prefix("system:serviceaccount:istio-system:")?;
        let object = &event["objectRef"];
        if event["responseStatus"]["code"] == 403 || object.is_null() {
            return None;
        }
        let resource = match object["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        let right = right(account, event["verb"].as_str()?, &text(&object["apiGroup"]), &resource);
        Some(match object["name"].as_str() {
            Some(name) => format!("{right} {name}"),
            None => right,
        })
    });
    Ok(requests.collect())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
