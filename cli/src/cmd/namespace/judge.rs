//! From what is in a namespace to who joins the mesh, who does not, and what would go wrong. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ambit_api::labels;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::{blocking, ports};
use crate::output::few;

/// What is known of a namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) namespace: String,
    /// Its labels as they are.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) pods: Vec<Pod>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<NetworkPolicy>,
    /// The nodes on which a node agent is ready; none if that could not be found out.
    pub(super) agents: Option<BTreeSet<String>>,
    /// Namespaces that the agents leave alone.
    pub(super) excluded: Vec<String>,
    /// What keeps pods from joining, by what the agents say.
    pub(super) pending: BTreeMap<String, String>,
    /// How many connections of pods are outside, by what the agents say. None if they were not asked.
    pub(super) outside: Option<BTreeMap<String, u64>>,
}

/// What is to be done to the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
    /// It stays as it is.
    None,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) namespace: String,
    /// The label as it is.
    pub(super) mode: Option<String>,
    pub(super) pods: Vec<Row>,
    /// None if the agents were not asked.
    pub(super) outside: Option<Outside>,
    pub(super) notes: Vec<Note>,
}

/// Connections of pods of the mesh that are older than their joining, and go on outside of it. One between two of the
/// pods is counted by both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) total: u64,
    /// Pods of which it is not known: their agent found them captured, does not answer, or has yet to capture them.
    pub(super) unknown: Vec<String>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) pod: String,
    pub(super) node: Option<String>,
    pub(super) outcome: Outcome,
    /// How many of its connections are outside of the mesh; none if that is not known.
    pub(super) outside: Option<u64>,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the mesh, and stays there.
    In,
    /// It is not yet, and will be.
    Joins,
    /// It should be in, but something keeps it.
    Waits(String),
    /// It is in, and will not be.
    Leaves,
    /// It is out, and why.
    Out(&'static str),
}

impl Outcome {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Joins => "joins",
            Self::Waits(_) => "waits",
            Self::Leaves => "leaves",
            Self::Out(_) => "out",
        }
    }

    pub(super) fn why(&self) -> &str {
        match self {
            Self::In | Self::Joins | Self::Leaves => "",
            Self::Waits(why) => why,
            Self::Out(why) => why,
        }
    }
}

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// Traffic breaks.
    Problem,
    /// It does not do what was meant.
    Caution,
    /// Good to know.
    Hint,
}

impl Weight {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Caution => "caution",
            Self::Hint => "hint",
        }
    }
}

/// Something that is to be told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Note {
    pub(super) weight: Weight,
    pub(super) what: String,
    pub(super) remedy: String,
    /// What to add to which object.
    pub(super) add: Option<Value>,
}

impl Note {
    fn new(weight: Weight, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { weight, what: what.into(), remedy: remedy.into(), add: None }
    }
}

impl Report {
    /// Whether traffic would break.
    pub(super) fn has_problems(&self) -> bool {
        self.notes.iter().any(|note| note.weight == Weight::Problem)
    }

    /// How many pods have this outcome.
    pub(super) fn count(&self, word: &str) -> usize {
        self.pods.iter().filter(|row| row.outcome.word() == word).count()
    }

    pub(super) fn value(&self) -> Value {
        let pods = self.pods.iter().map(|row| {
            json!({ "pod": row.pod, "node": row.node, "outcome": row.outcome.word(),
                "reason": Some(row.outcome.why()).filter(|why| !why.is_empty()),
                "connectionsOutside": row.outside })
        });
        let notes = self.notes.iter().map(|note| {
            json!({ "weight": note.weight.word(), "what": note.what, "remedy": note.remedy, "add": note.add })
        });
        let outside = |one: &Outside| json!({ "total": one.total, "unknown": one.unknown });
        json!({
            "namespace": self.namespace,
            "mode": self.mode,
            "connectionsOutside": self.outside.as_ref().map(outside),
            "pods": pods.collect::<Vec<_>>(),
            "notes": notes.collect::<Vec<_>>(),
        })
    }
}

/// Judges a change, or with [`Change::None`] how it is.
pub(super) fn judge(facts: &Facts, change: Change) -> Report {
    let mode = facts.labels.get(labels::DATAPLANE_MODE).map(String::as_str);
    let then = match change {
        Change::Add => Some(labels::DATAPLANE_MODE_AMBIENT),
        Change::Remove => None,
        Change::None => mode,
    };
    let mut pods: Vec<_> = facts.pods.iter().map(|pod| (row(facts, pod, then), pod)).collect();
    pods.sort_by(|(a, _), (b, _)| a.pod.cmp(&b.pod));
    let belonging: Vec<_> = pods
        .iter()
        .filter(|(row, _)| matches!(row.outcome, Outcome::In | Outcome::Joins | Outcome::Waits(_)))
        .map(|(_, pod)| *pod)
        .collect();
    let rows: Vec<_> = pods.iter().map(|(row, _)| row.clone()).collect();
    let mut notes = of_namespace(facts, then);
    if !belonging.is_empty() || then == Some(labels::DATAPLANE_MODE_AMBIENT) {
        notes.extend(of_policies(facts, &belonging));
        notes.extend(of_ports(facts, &belonging));
    }
    notes.extend(of_connections(&rows));
    notes.extend(of_outside(&facts.namespace, &pods));
    notes.sort_by_key(|note| note.weight);
    let outside = facts.outside.as_ref().map(|_| outside(&rows));
    Report { namespace: facts.namespace.clone(), mode: mode.map(str::to_owned), pods: rows, outside, notes }
}

fn outside(rows: &[Row]) -> Outside {
    let mut sum = Outside::default();
    for row in rows {
        match (&row.outcome, row.outside) {
            (Outcome::In, Some(count)) => sum.total = sum.total.saturating_add(count),
            (Outcome::In | Outcome::Joins | Outcome::Waits(_), _) => sum.unknown.push(row.pod.clone()),
            (Outcome::Leaves | Outcome::Out(_), _) => {}
        }
    }
    sum
}

fn row(facts: &Facts, pod: &Pod, mode: Option<&str>) -> Row {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let captured = annotation(pod, labels::REDIRECTION) == Some(labels::REDIRECTION_ENABLED);
    let name = pod.metadata.name.clone().unwrap_or_default();
    let outcome = match (obstacle(facts, pod, mode), captured) {
        (Some(_), true) if !is_over(pod) => Outcome::Leaves,
        (Some(why), _) => Outcome::Out(why),
        (None, true) => Outcome::In,
        (None, false) => match (&node, &facts.agents) {
            (None, _) => Outcome::Waits("no node runs it yet".to_owned()),
            (Some(node), Some(agents)) if !agents.contains(node) => {
                Outcome::Waits(format!("no node agent is ready on node {node}"))
            }
            (Some(_), _) => facts.pending.get(&name).cloned().map_or(Outcome::Joins, Outcome::Waits),
        },
    };
    let outside = match outcome {
        Outcome::In => facts.outside.as_ref().and_then(|counts| counts.get(&name).copied()),
        Outcome::Joins | Outcome::Waits(_) | Outcome::Leaves | Outcome::Out(_) => None,
    };
    Row { pod: name, node, outcome, outside }
}

/// Why a pod stays out: the node agent's own rules, in its order.
fn obstacle(facts: &Facts, pod: &Pod, mode: Option<&str>) -> Option<&'static str> {
    let own =
        pod.metadata.labels.as_ref().and_then(|all| all.get(labels::DATAPLANE_MODE)).map(String::as_str);
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Some("it uses the node's network");
    }
    if is_over(pod) {
        return Some(if is_of_job(pod) { "its Job is over" } else { "it has finished" });
    }
    if facts.excluded.contains(&facts.namespace) {
        return Some("the node agents leave its namespace alone");
    }
    if annotation(pod, labels::SIDECAR_STATUS).is_some() {
        return Some("it has a sidecar");
    }
    match (own, mode) {
        (Some(labels::DATAPLANE_MODE_NONE), _) => Some("its own label istio.io/dataplane-mode opts out"),
        (Some(labels::DATAPLANE_MODE_AMBIENT), _) | (_, Some(labels::DATAPLANE_MODE_AMBIENT)) => None,
        (_, _) => Some("neither it nor its namespace is labelled istio.io/dataplane-mode=ambient"),
    }
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_of_job(pod: &Pod) -> bool {
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Job")
}

fn of_namespace(facts: &Facts, mode: Option<&str>) -> Vec<Note> {
    let mut notes = Vec::new();
    let namespace = &facts.namespace;
    if mode != Some(labels::DATAPLANE_MODE_AMBIENT) {
        return notes;
    }
    if facts.excluded.contains(namespace) {
        notes.push(Note::new(
            Weight::Caution,
            format!("the node agents leave namespace {namespace} alone, whatever its label says"),
            "remove it from the agents' EXCLUDE_NAMESPACES, or leave it out of the mesh",
        ));
    }
    let label = |name: &str| facts.labels.get(name).map(String::as_str);
    if label("istio-injection") == Some("enabled") || label("istio.io/rev").is_some() {
        notes.push(Note::new(
            Weight::Caution,
            "the namespace asks for sidecars too; pods that get one do not join",
            "remove its label istio-injection or istio.io/rev, and restart the pods",
        ));
    }
    match &facts.agents {
        Some(agents) if agents.is_empty() => notes.push(Note::new(
            Weight::Caution,
            "no node agent is ready in the cluster: nothing joins before",
            "install the mesh, and look at it with `ambit check`",
        )),
        None => notes.push(Note::new(
            Weight::Caution,
            "it could not be found out on which nodes an agent is ready",
            "get the right to list pods of the system namespace",
        )),
        Some(_) => {}
    }
    notes
}

fn of_policies(facts: &Facts, pods: &[&Pod]) -> Vec<Note> {
    let of_one = |one: blocking::Blocking| {
        let way = match one.way {
            blocking::Way::Ingress => "to",
            blocking::Way::Egress => "from",
        };
        let what = format!(
            "NetworkPolicy {} lets no tunnel through {way} {}: it admits ports of the application, and not TCP {}",
            one.policy,
            few(&one.pods),
            blocking::HBONE
        );
        let remedy = format!("add this under spec.{} of the policy", one.way.word());
        let add = json!({ one.way.word(): one.add });
        Note { add: Some(add), ..Note::new(Weight::Problem, what, remedy) }
    };
    blocking::find(&facts.policies, pods).into_iter().map(of_one).collect()
}

fn of_ports(facts: &Facts, pods: &[&Pod]) -> Vec<Note> {
    let mut notes = Vec::new();
    for one in ports::collisions(pods, &facts.services) {
        let what = format!("{} uses port {}: {}", one.whose, one.port, one.taken_by);
        notes.push(if one.breaks {
            Note::new(
                Weight::Problem,
                what,
                "take another port, or opt the pod out with istio.io/dataplane-mode=none",
            )
        } else {
            Note::new(Weight::Hint, format!("{what}, in the tunnel's own pod"), "nothing is to be done")
        });
    }
    for one in ports::server_first(&facts.services) {
        notes.push(Note::new(
            Weight::Hint,
            format!("{one}: the server speaks first; tunnels carry it as it is"),
            "before a waypoint is used, set appProtocol: tcp on that port",
        ));
    }
    let probes = ports::probes(pods);
    if !probes.is_empty() {
        let counts: Vec<_> = probes.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        notes.push(Note::new(
            Weight::Hint,
            format!("probes: {}; the kubelet's own connections go past the mesh", counts.join(", ")),
            "nothing is to be done",
        ));
    }
    notes
}

fn of_connections(rows: &[Row]) -> Vec<Note> {
    let mut notes = Vec::new();
    let count = |word: &str| rows.iter().filter(|row| row.outcome.word() == word).count();
    let (joins, leaves) = (count("joins"), count("leaves"));
    if joins > 0 {
        notes.push(Note::new(
            Weight::Hint,
            format!(
                "connections that are open in {joins} joining pods stay outside the mesh until they close"
            ),
            "restart pods with connections that live long, once they have joined; `ambit namespace add --wait` counts what is left",
        ));
    }
    if leaves > 0 {
        notes.push(Note::new(
            Weight::Hint,
            format!("connections through the tunnels of {leaves} leaving pods are drained, and then closed"),
            "choose a quiet moment for pods with connections that live long",
        ));
    }
    notes
}

/// Those that are outside now, and how they end.
fn of_outside(namespace: &str, pods: &[(Row, &Pod)]) -> Option<Note> {
    let hit: Vec<_> = pods.iter().filter(|(row, _)| row.outside.is_some_and(|count| count > 0)).collect();
    if hit.is_empty() {
        return None;
    }
    let counts: Vec<_> =
        hit.iter().map(|(row, _)| format!("{} of {}", row.outside.unwrap_or_default(), row.pod)).collect();
    let owners: BTreeSet<_> = hit.iter().filter_map(|(_, pod)| restartable(pod)).collect();
    let restart = match owners.into_iter().collect::<Vec<_>>().as_slice() {
        [] => "restart the pods".to_owned(),
        owners => format!("kubectl -n {namespace} rollout restart {}", owners.join(" ")),
    };
    let what = format!("connections from before are outside of the mesh, in plain text: {}", few(&counts));
    let remedy = format!("wait until they end, restart their clients, or end them now: {restart}");
    Some(Note::new(Weight::Caution, what, remedy))
}

/// `deployment/web`: what `kubectl rollout restart` is told to have the pod replaced.
fn restartable(pod: &Pod) -> Option<String> {
    let owner =
        pod.metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))?;
    match owner.kind.as_str() {
        "StatefulSet" | "DaemonSet" => Some(format!("{}/{}", owner.kind.to_ascii_lowercase(), owner.name)),
        // It bears its deployment's name, and what tells it from the deployment's others.
        "ReplicaSet" => {
            let hash = pod.metadata.labels.as_ref()?.get("pod-template-hash")?;
            let deployment = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
            Some(format!("deployment/{deployment}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, extra: Value) -> Pod {
        let mut pod = json!({
            "metadata": { "name": name },
            "spec": { "nodeName": "n1", "containers": [{ "name": "app" }] },
            "status": { "phase": "Running" },
        });
        merge(&mut pod, extra);
        serde_json::from_value(pod).unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn facts(pods: Vec<Pod>) -> Facts {
        Facts {
            namespace: "shop".to_owned(),
            pods,
            agents: Some(["n1".to_owned()].into()),
            excluded: vec!["kube-system".to_owned()],
            ..Facts::default()
        }
    }

    fn captured() -> Value {
        json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } } })
    }

    #[test]
    fn every_pod_has_its_outcome() {
        let label = |value: &str| json!({ "metadata": { "labels": { "istio.io/dataplane-mode": value } } });
        let job = json!({ "metadata": { "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u" }] },
            "status": { "phase": "Succeeded" } });
        for (extra, change, word, why) in [
            (json!({}), Change::Add, "joins", ""),
            (json!({}), Change::None, "out", "neither it"),
            (json!({}), Change::Remove, "out", "neither it"),
            (captured(), Change::Add, "in", ""),
            (captured(), Change::Remove, "leaves", ""),
            (label("none"), Change::Add, "out", "opts out"),
            (label("ambient"), Change::Remove, "joins", ""),
            (json!({ "spec": { "hostNetwork": true } }), Change::Add, "out", "node's network"),
            (
                json!({ "metadata": { "annotations": { "sidecar.istio.io/status": "{}" } } }),
                Change::Add,
                "out",
                "sidecar",
            ),
            (json!({ "status": { "phase": "Failed" } }), Change::Add, "out", "finished"),
            (job, Change::Add, "out", "Job is over"),
            (json!({ "spec": { "nodeName": "n2" } }), Change::Add, "waits", "agent is ready on node n2"),
            (json!({ "spec": { "nodeName": null } }), Change::Add, "waits", "no node"),
        ] {
            let report = judge(&facts(vec![pod("web", extra.clone())]), change);
            let outcome = &report.pods[0].outcome;
            assert_eq!(outcome.word(), word, "{extra} {change:?}");
            assert!(outcome.why().contains(why), "{extra} {change:?}: {outcome:?}");
        }
    }

    #[test]
    fn an_excluded_namespace_stays_out_and_is_told_so() {
        let facts = Facts { namespace: "kube-system".to_owned(), ..facts(vec![pod("dns", json!({}))]) };
        let report = judge(&facts, Change::Add);
        assert_eq!(report.pods[0].outcome.word(), "out");
        assert!(report.notes.iter().any(|note| note.remedy.contains("EXCLUDE_NAMESPACES")), "{report:?}");
        assert!(!report.has_problems());
    }

    #[test]
    fn a_whole_namespace_before_and_after() {
        let from_yaml = |text: &str| -> Value { serde_yaml_ng::from_str(text).unwrap() };
        let policy = from_yaml(
            "metadata: {name: clients}\nspec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 8080}]}]}",
        );
        let service = from_yaml("metadata: {name: db}\nspec: {ports: [{name: sql, port: 3306}]}");
        let odd = json!({ "spec": { "containers": [{ "name": "odd", "ports": [{ "containerPort": 15006 }],
            "livenessProbe": { "httpGet": { "port": 80 } } }] } });
        let facts = Facts {
            labels: BTreeMap::from([("istio-injection".to_owned(), "enabled".to_owned())]),
            policies: vec![serde_json::from_value(policy).unwrap()],
            services: vec![serde_json::from_value(service).unwrap()],
            ..facts(vec![pod("web-1", json!({})), pod("odd", odd), pod("old", captured())])
        };
        let report = judge(&facts, Change::Add);
        assert!(report.has_problems());
        insta::assert_snapshot!(serde_json::to_string_pretty(&report.value()).unwrap());
        let leaving = judge(&facts, Change::Remove);
        assert!(!leaving.has_problems(), "{leaving:?}");
        assert_eq!(leaving.count("leaves"), 1);
    }

    #[test]
    fn what_an_agent_says_of_a_pod_is_shown() {
        let pending = BTreeMap::from([("web".to_owned(), "no tunnel is connected".to_owned())]);
        let facts = Facts { pending, ..facts(vec![pod("web", json!({})), pod("db", json!({}))]) };
        let report = judge(&facts, Change::Add);
        assert_eq!(report.pods[0].outcome, Outcome::Joins);
        assert_eq!(report.pods[1].outcome, Outcome::Waits("no tunnel is connected".to_owned()));
    }

    fn owned(kind: &str, name: &str) -> Value {
        let owner =
            json!({ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true });
        json!({ "metadata": { "ownerReferences": [owner], "labels": { "pod-template-hash": "7d9" } } })
    }

    #[test]
    fn connections_that_are_outside_are_told_with_their_remedy() {
        let ambient = || BTreeMap::from([(labels::DATAPLANE_MODE.to_owned(), "ambient".to_owned())]);
        let captured = |name: &str, mut extra: Value| {
            merge(&mut extra, captured());
            pod(name, extra)
        };
        let pods = vec![
            captured("db-0", owned("StatefulSet", "db")),
            captured("quiet", json!({})),
            captured("unknown", json!({})),
            captured("web-1", owned("ReplicaSet", "web-7d9")),
            pod("late", json!({})),
            pod("out", json!({ "spec": { "hostNetwork": true } })),
        ];
        let asked = Facts {
            labels: ambient(),
            outside: Some(
                [("db-0", 2), ("quiet", 0), ("web-1", 1), ("out", 9)]
                    .map(|(pod, count)| (pod.to_owned(), count))
                    .into(),
            ),
            ..facts(pods.clone())
        };
        let report = judge(&asked, Change::None);
        let expected = Outside { total: 3, unknown: vec!["late".to_owned(), "unknown".to_owned()] };
        assert_eq!(report.outside, Some(expected));
        let note = report.notes.iter().find(|note| note.weight == Weight::Caution).unwrap();
        assert!(note.what.ends_with(": 2 of db-0, 1 of web-1"), "{note:?}");
        assert!(
            note.remedy.ends_with("kubectl -n shop rollout restart deployment/web statefulset/db"),
            "{note:?}"
        );
        let value = report.value();
        assert_eq!(value["connectionsOutside"], json!({ "total": 3, "unknown": ["late", "unknown"] }));
        let of_pods: Vec<_> =
            value["pods"].as_array().unwrap().iter().map(|pod| &pod["connectionsOutside"]).collect();
        assert_eq!(of_pods, [&json!(2), &Value::Null, &Value::Null, &json!(0), &Value::Null, &json!(1)]);

        let not_asked = judge(&Facts { outside: None, labels: ambient(), ..facts(pods) }, Change::None);
        assert_eq!(not_asked.outside, None);
        assert_eq!(not_asked.value()["connectionsOutside"], Value::Null);
        assert!(not_asked.notes.iter().all(|note| note.weight != Weight::Caution), "{not_asked:?}");
    }

    #[test]
    fn what_replaces_a_pod_is_named_as_kubectl_takes_it() {
        for (kind, name, expected) in [
            ("ReplicaSet", "web-7d9", Some("deployment/web")),
            ("ReplicaSet", "lone", None),
            ("StatefulSet", "db", Some("statefulset/db")),
            ("DaemonSet", "log", Some("daemonset/log")),
            ("Job", "once", None),
        ] {
            assert_eq!(restartable(&pod("a", owned(kind, name))).as_deref(), expected, "{kind} {name}");
        }
        assert_eq!(restartable(&pod("a", json!({}))), None);
    }

    #[test]
    fn without_agents_nothing_joins() {
        let none = Facts { agents: Some(BTreeSet::new()), ..facts(vec![pod("web", json!({}))]) };
        let report = judge(&none, Change::Add);
        assert_eq!(report.count("waits"), 1);
        assert!(report.notes[0].what.contains("no node agent"), "{report:?}");
        let unknown = Facts { agents: None, ..none };
        assert_eq!(judge(&unknown, Change::Add).count("joins"), 1);
    }
}
