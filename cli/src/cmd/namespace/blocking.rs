//! Which NetworkPolicies keep tunnels from reaching pods. Pure.
//!
//! In the mesh, what went to a pod's port 8080 goes to its port 15008. A policy that admits 8080 from somebody and
//! not 15008 from the same one cuts them off, unless another policy of the pod admits it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

/// Where tunnels listen.
pub(super) const HBONE: u16 = 15008;

/// One policy that is in the way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blocking {
    /// Its name.
    pub(super) policy: String,
    /// Which way.
    pub(super) way: Way,
    /// The pods whose traffic it stops.
    pub(super) pods: Vec<String>,
    /// The rules to add under `spec`.
    pub(super) add: Vec<Value>,
}

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Way {
    /// As the field is called.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

/// Whom a rule admits, on which ports.
#[derive(Debug, Clone, Copy)]
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

impl Rule<'_> {
    /// A rule without ports admits all of them.
    fn admits_tunnels(&self) -> bool {
        self.ports.is_empty() || self.ports.iter().any(covers)
    }

    /// DNS alone, say, does not go through tunnels.
    fn admits_tcp(&self) -> bool {
        self.ports.is_empty() || self.ports.iter().any(is_tcp)
    }

    /// Whether everybody whom `other` admits is admitted here, as far as it can be seen without knowing all pods.
    fn admits_all_of(&self, other: &Rule<'_>) -> bool {
        self.peers.is_empty()
            || (!other.peers.is_empty() && other.peers.iter().all(|peer| self.peers.contains(peer)))
    }
}

/// The policies that stop tunnels of these pods, by name.
pub(super) fn find(policies: &[NetworkPolicy], pods: &[&Pod]) -> Vec<Blocking> {
    let mut found: BTreeMap<(String, Way), Blocking> = BTreeMap::new();
    for pod in pods {
        let selecting: Vec<_> = policies.iter().filter(|policy| selects(policy, pod)).collect();
        for way in [Way::Ingress, Way::Egress] {
            let isolating: Vec<_> = selecting.iter().filter(|policy| isolates(policy, way)).collect();
            let all: Vec<_> = isolating.iter().flat_map(|policy| rules(policy, way)).collect();
            let tunnels: Vec<_> = all.iter().filter(|rule| rule.admits_tunnels()).collect();
            for policy in isolating {
                let cut_off = rules(policy, way).into_iter().filter(|rule| {
                    rule.admits_tcp()
                        && !rule.admits_tunnels()
                        && !tunnels.iter().any(|tunnel| tunnel.admits_all_of(rule))
                });
                for rule in cut_off {
                    let policy = policy.metadata.name.clone().unwrap_or_default();
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    let one = found.entry((policy.clone(), way)).or_insert_with(|| Blocking {
                        policy,
                        way,
                        pods: Vec::new(),
                        add: Vec::new(),
                    });
                    if !one.pods.contains(&name) {
                        one.pods.push(name);
                    }
                    let add = companion(way, &rule);
                    if !one.add.contains(&add) {
                        one.add.push(add);
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

/// The same peers, the tunnels' port.
fn companion(way: Way, rule: &Rule<'_>) -> Value {
    let ports = json!([{ "port": HBONE, "protocol": "TCP" }]);
    if rule.peers.is_empty() {
        return json!({ "ports": ports });
    }
    json!({ way.peers(): rule.peers, "ports": ports })
}

fn rules(policy: &NetworkPolicy, way: Way) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    match way {
        Way::Ingress => spec.ingress.iter().flatten().map(of_ingress).collect(),
        Way::Egress => spec.egress.iter().flatten().map(of_egress).collect(),
    }
}

fn of_ingress(rule: &NetworkPolicyIngressRule) -> Rule<'_> {
    Rule { peers: rule.from.as_deref().unwrap_or_default(), ports: rule.ports.as_deref().unwrap_or_default() }
}

fn of_egress(rule: &NetworkPolicyEgressRule) -> Rule<'_> {
    Rule { peers: rule.to.as_deref().unwrap_or_default(), ports: rule.ports.as_deref().unwrap_or_default() }
}

/// Whether a pod that the policy selects is closed in this direction, but for its rules.
fn isolates(policy: &NetworkPolicy, way: Way) -> bool {
    let Some(spec) = &policy.spec else { return false };
    match &spec.policy_types {
        Some(types) => types.iter().any(|one| one.eq_ignore_ascii_case(way.word())),
        // What is not said: ingress always, egress if there are rules for it.
        None => way == Way::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    spec.pod_selector.as_ref().is_none_or(|selector| matches(selector, &labels))
}

/// As Kubernetes matches labels. An operator that is not known matches, so that the policy is looked at.
pub(super) fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressed = selector.match_expressions.iter().flatten().all(|one| {
        let listed = |value: &String| one.values.iter().flatten().any(|other| other == value);
        match (one.operator.as_str(), labels.get(&one.key)) {
            ("In", value) => value.is_some_and(listed),
            ("NotIn", value) => !value.is_some_and(listed),
            ("Exists", value) => value.is_some(),
            ("DoesNotExist", value) => value.is_none(),
            (_, _) => true,
        }
    });
    equal && expressed
}

fn is_tcp(port: &NetworkPolicyPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

/// Whether a port of a rule is, or holds, that of tunnels. A name is a port of the application.
fn covers(port: &NetworkPolicyPort) -> bool {
    let hbone = i32::from(HBONE);
    is_tcp(port)
        && match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(from)), Some(to)) => (*from..=to).contains(&hbone),
            (Some(IntOrString::Int(one)), None) => *one == hbone,
            (Some(IntOrString::String(_)), _) => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, app: &str) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "app": app } } })).unwrap()
    }

    fn policy(name: &str, spec: &str) -> NetworkPolicy {
        let spec: Value = serde_yaml_ng::from_str(spec).unwrap();
        serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
    }

    fn stopped(policies: &[NetworkPolicy]) -> Vec<(String, Way, Vec<Value>)> {
        let pod = pod("web", "web");
        find(policies, &[&pod]).into_iter().map(|one| (one.policy, one.way, one.add)).collect()
    }

    #[test]
    fn rules_that_cut_tunnels_off_are_told_with_what_to_add() {
        const CLIENTS: &str = "{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}";
        let hbone = json!([{ "port": 15008, "protocol": "TCP" }]);
        let clients =
            json!({ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }], "ports": hbone });
        let anybody = json!({ "ports": hbone });
        for (spec, expected) in [
            // Nothing is admitted, so nothing is cut off by the mesh.
            ("{podSelector: {}}".to_owned(), None),
            ("{podSelector: {}, ingress: [{}]}".to_owned(), None),
            (format!("{{podSelector: {{}}, ingress: [{CLIENTS}]}}"), Some((Way::Ingress, clients.clone()))),
            (format!("{{podSelector: {{matchLabels: {{app: other}}}}, ingress: [{CLIENTS}]}}"), None),
            (
                format!(
                    "{{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [web]}}]}}, ingress: [{CLIENTS}]}}"
                ),
                Some((Way::Ingress, clients)),
            ),
            (
                "{podSelector: {}, ingress: [{ports: [{port: http}]}]}".to_owned(),
                Some((Way::Ingress, anybody.clone())),
            ),
            ("{podSelector: {}, ingress: [{ports: [{port: 8080, endPort: 16000}]}]}".to_owned(), None),
            ("{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}".to_owned(), None),
            ("{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: 53}]}]}".to_owned(), None),
            ("{podSelector: {}, policyTypes: [Egress]}".to_owned(), None),
            (
                "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}".to_owned(),
                Some((Way::Egress, anybody)),
            ),
        ] {
            let got = stopped(&[policy("p", &spec)]);
            let expected: Vec<_> =
                expected.into_iter().map(|(way, add)| ("p".to_owned(), way, vec![add])).collect();
            assert_eq!(got, expected, "{spec}");
        }
    }

    #[test]
    fn what_another_policy_admits_is_not_cut_off() {
        let narrow = policy("narrow", "{podSelector: {}, ingress: [{ports: [{port: 8080}]}]}");
        let tunnels = policy("tunnels", "{podSelector: {}, ingress: [{ports: [{port: 15008}]}]}");
        assert_eq!(stopped(&[narrow.clone(), tunnels]), []);
        let some = policy(
            "some",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 15008}]}]}",
        );
        // Only some of those whom the other admits.
        assert_eq!(stopped(&[narrow, some]).len(), 1);
    }

    #[test]
    fn the_pods_that_are_hit_are_listed_once() {
        let narrow =
            policy("narrow", "{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 81}]}]}");
        let (a, b) = (pod("a", "web"), pod("b", "web"));
        let found = find(&[narrow], &[&a, &b]);
        assert_eq!(found[0].pods, ["a", "b"]);
        assert_eq!(found[0].add.len(), 1);
    }
}
