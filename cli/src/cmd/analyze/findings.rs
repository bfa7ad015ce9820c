//! What is wrong with objects, by the parsers and conditions of the controller itself. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ambit_api::directory::{Document, ObjectKey, Problem};
use ambit_api::labels;
use ambit_controller::cluster::object::{Attachment, Content, Key, Kind, Name, Parsed, parse};
use ambit_controller::cluster::{Cluster, Settings};
use ambit_controller::source::Event;
use ambit_controller::translate::status::{self, Condition};
use serde_json::{Value, json};

/// Groups whose objects users expect to have an effect on the mesh.
const OURS: [&str; 7] = [
    "ambit.io",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "install.istio.io",
];

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// It is not in force as it is written.
    Error,
    /// It may be meant so.
    Warning,
}

impl Severity {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    pub(super) file: Option<String>,
    pub(super) line: usize,
    pub(super) severity: Severity,
    pub(super) object: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) field: String,
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Finding {
    /// `shop.yaml:3`, or nothing for an object of a cluster.
    pub(super) fn place(&self) -> Option<String> {
        let file = self.file.as_ref()?;
        Some(if self.line > 0 { format!("{file}:{}", self.line) } else { file.clone() })
    }

    pub(super) fn value(&self) -> Value {
        json!({
            "severity": self.severity.word(),
            "file": self.file,
            "line": (self.line > 0).then_some(self.line),
            "object": self.object,
            "field": (!self.field.is_empty()).then_some(&self.field),
            "what": self.what,
            "remedy": self.remedy,
        })
    }
}

/// What is analyzed.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// What is reported on.
    pub(super) documents: Vec<Document>,
    /// What else is there: objects of the cluster to which the others would be added.
    pub(super) around: Vec<Document>,
    /// What could not even be read.
    pub(super) problems: Vec<Problem>,
    /// Whether everything that there is is known: then what is not found does not exist.
    pub(super) complete: bool,
}

/// Everything that is wrong, in the order of files and lines, each once.
pub(super) fn find(given: &Given, settings: Settings) -> Vec<Finding> {
    let mut findings: Vec<_> = given.problems.iter().map(of_problem).collect();
    let mut cluster = Cluster::new(settings);
    let mut origin: BTreeMap<Key, &Document> = BTreeMap::new();
    let mut rejected = BTreeSet::new();
    let own: BTreeSet<_> = given.documents.iter().map(identity).collect();
    let around = given.around.iter().filter(|document| !own.contains(&identity(document)));
    for document in around {
        if let Parsed::Object(object) | Parsed::Bad { instead: Some(object), .. } = parse(document) {
            cluster.apply(Event::Upsert(object));
        }
    }
    for document in &given.documents {
        match parse(document) {
            Parsed::Object(object) => {
                origin.insert(object.key(), document);
                findings.extend(of_labels(document));
                cluster.apply(Event::Upsert(object));
            }
            Parsed::Unknown => findings.extend(of_unknown(document)),
            Parsed::Bad { rejection, instead } => {
                findings.push(finding(
                    document,
                    Severity::Error,
                    rejection.field,
                    rejection.what,
                    rejection.remedy,
                ));
                if let Some(object) = instead {
                    rejected.insert(object.key());
                    cluster.apply(Event::Upsert(object));
                }
            }
        }
    }
    cluster.settle();
    for (key, conditions) in status::all(&cluster) {
        let Some(document) = origin.get(&key).filter(|_| !rejected.contains(&key)) else { continue };
        findings.extend(conditions.iter().filter_map(|condition| {
            let severity = severity(&cluster, &key, condition, given.complete)?;
            let (what, remedy) = parted(&condition.message);
            Some(finding(document, severity, field_of(key.kind, condition), what, remedy))
        }));
    }
    for (key, document) in &origin {
        findings.extend(of_reach(&cluster, key, document, given.complete));
    }
    findings.sort();
    findings.dedup();
    findings
}

fn identity(document: &Document) -> (String, ObjectKey) {
    (document.group().to_owned(), document.key())
}

fn finding(
    document: &Document,
    severity: Severity,
    field: impl Into<String>,
    what: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    let named = document.file.as_ref() != Path::new("");
    Finding {
        severity,
        file: named.then(|| document.file.display().to_string()),
        line: document.line,
        object: Some(document.key().to_string()),
        namespace: namespace_of(&document.key()),
        field: field.into(),
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn of_problem(problem: &Problem) -> Finding {
    Finding {
        severity: Severity::Error,
        file: Some(problem.file.display().to_string()),
        line: problem.line,
        object: problem.key.as_ref().map(ToString::to_string),
        namespace: problem.key.as_ref().and_then(namespace_of),
        field: problem.field.clone(),
        what: problem.what.clone(),
        remedy: problem.remedy.clone(),
    }
}

/// The namespace that an object is in, or is.
fn namespace_of(key: &ObjectKey) -> Option<String> {
    match key.kind.as_str() {
        "Namespace" => Some(key.name.clone()),
        _ => Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
    }
}

/// A kind that looks as if it were for the mesh, and is not read.
fn of_unknown(document: &Document) -> Option<Finding> {
    let group = document.group();
    if !OURS.contains(&group) {
        return None;
    }
    let other = ["v1", "v1beta1", "v1alpha3", "v1alpha2"]
        .into_iter()
        .find(|version| Kind::of(group, version, &document.kind).is_some());
    let (field, what, remedy) = match other {
        Some(version) => (
            "apiVersion",
            format!("version {} of this kind is not read", document.version()),
            format!("write {group}/{version}"),
        ),
        None => (
            "kind",
            format!("{} is not read by this mesh: it has no effect", document.kind),
            "remove it, or keep it for another control plane".to_owned(),
        ),
    };
    Some(finding(document, Severity::Warning, field, what, remedy))
}

/// Labels that say nothing, or contradict each other.
fn of_labels(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    let label = |name: &str| document.value.get("metadata")?.get("labels")?.get(name)?.as_str();
    if !matches!(document.kind.as_str(), "Namespace" | "Pod") {
        return findings;
    }
    let field = |name: &str| format!("metadata.labels[{name}]");
    let mode = label(labels::DATAPLANE_MODE);
    if let Some(mode) = mode
        && ![labels::DATAPLANE_MODE_AMBIENT, labels::DATAPLANE_MODE_NONE].contains(&mode)
    {
        let what = format!("{mode:?} is no mode: it counts as if it were not there");
        let remedy = "write \"ambient\" or \"none\"";
        findings.push(finding(document, Severity::Warning, field(labels::DATAPLANE_MODE), what, remedy));
    }
    let injected =
        label("istio-injection") == Some("enabled") || label("sidecar.istio.io/inject") == Some("true");
    if injected && mode == Some(labels::DATAPLANE_MODE_AMBIENT) {
        let what = "asks for a sidecar and for ambient; pods with a sidecar do not join";
        let remedy = "remove the label that asks for a sidecar, and restart the pods";
        findings.push(finding(document, Severity::Warning, field("istio-injection"), what, remedy));
    }
    findings
}

/// Policies that reach nobody, and waypoints that namespaces and pods name in vain.
fn of_reach(cluster: &Cluster, key: &Key, document: &Document, complete: bool) -> Option<Finding> {
    match key.kind {
        Kind::AuthorizationPolicy | Kind::PeerAuthentication if complete => {
            let selector = if key.kind == Kind::PeerAuthentication {
                cluster.peer_authentications.get(&key.name)?.selector.clone()?
            } else {
                match &cluster.authorization_policies.get(&key.name)?.attachment {
                    Attachment::Selected(selector) => selector.clone(),
                    Attachment::Namespace | Attachment::Targets(_) => return None,
                }
            };
            let everywhere = key.name.namespace == cluster.settings().root_namespace;
            let reached = if everywhere {
                cluster
                    .all_members()
                    .any(|one| cluster.labels_of(&one).is_some_and(|of| selector.matches(of)))
            } else {
                !cluster.members(&key.name.namespace, &selector).is_empty()
            };
            let what = "no workload has these labels: it has no effect";
            (!reached).then(|| {
                let remedy = "correct the labels, or wait for the workloads";
                finding(document, Severity::Warning, "spec.selector.matchLabels", what, remedy)
            })
        }
        Kind::Namespace | Kind::Pod => {
            let label = |name: &str| document.value.get("metadata")?.get("labels")?.get(name)?.as_str();
            let waypoint = label(labels::USE_WAYPOINT).filter(|name| *name != labels::USE_WAYPOINT_NONE)?;
            let own = namespace_of(&document.key())?;
            let namespace = label(labels::USE_WAYPOINT_NAMESPACE).unwrap_or(&own);
            let name = Name::new(namespace, waypoint);
            cluster.gateways.get(&name).is_none().then(|| {
                let whole = if complete { "does not exist" } else { "is not among the files" };
                let what = format!("waypoint {name} {whole}: it is not used");
                let remedy = "create the Gateway, or correct the label";
                let field = format!("metadata.labels[{}]", labels::USE_WAYPOINT);
                finding(document, Severity::Warning, field, what, remedy)
            })
        }
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::DestinationRule
        | Kind::RateLimitPolicy
        | Kind::VirtualService
        | Kind::Node
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::Gateway
        | Kind::GatewayClass
        | Kind::GrpcRoute
        | Kind::HttpRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::ReferenceGrant
        | Kind::MeshConfig => None,
    }
}

/// Whether a condition is a finding.
fn severity(cluster: &Cluster, key: &Key, condition: &Condition, complete: bool) -> Option<Severity> {
    // What is not found may be somewhere else than in the files.
    let absent = if complete { Severity::Error } else { Severity::Warning };
    match (condition.kind, condition.status, condition.reason) {
        // It waits for a waypoint, as what is bound to one does.
        ("ResolvedWaypoints", false, _) | ("WaypointAccepted" | "Accepted", false, "AncestorNotBound") => {
            Some(Severity::Warning)
        }
        // It may well be for gateways of another program.
        ("Accepted", false, "NotForMesh") => Some(Severity::Warning),
        (_, false, "UnknownProvider") => Some(absent),
        (_, false, "TargetNotFound" | "NoMatchingParent" | "BackendNotFound" | "RefNotPermitted") => {
            Some(absent)
        }
        (_, _, "PartiallyInvalid") => Some(Severity::Warning),
        ("istio.io/WaypointBound", false, _) | ("istio.io/WaypointMissing", true, _) => {
            Some(Severity::Warning)
        }
        (_, false, "UnsupportedValue") => {
            let dry_run = cluster
                .authorization_policies
                .get(&key.name)
                .is_some_and(|policy| matches!(policy.content, Content::Rules { dry_run: true, .. }));
            Some(if dry_run { Severity::Warning } else { Severity::Error })
        }
        (_, true, "UnsupportedValue") => Some(Severity::Warning),
        (_, false, _) => Some(Severity::Error),
        (_, true, _) => None,
    }
}

fn field_of(kind: Kind, condition: &Condition) -> String {
    match condition.kind {
        "WaypointAccepted" if condition.reason == "UnknownProvider" => "spec.provider.name".to_owned(),
        "Accepted" if kind == Kind::RateLimitPolicy => "spec.targetRefs".to_owned(),
        "ResolvedRefs" if kind == Kind::RateLimitPolicy => "spec.global.service".to_owned(),
        "Accepted" if kind == Kind::VirtualService && condition.reason == "NotForMesh" => {
            "spec.gateways".to_owned()
        }
        "Accepted" if kind == Kind::VirtualService => "spec.hosts".to_owned(),
        "ResolvedRefs" if kind == Kind::VirtualService => "spec.http".to_owned(),
        "WaypointAccepted" if kind == Kind::DestinationRule => "spec.host".to_owned(),
        "WaypointAccepted" => "spec.targetRefs".to_owned(),
        "ZtunnelAccepted" => "spec".to_owned(),
        "istio.io/WaypointBound" => format!("metadata.labels[{}]", labels::USE_WAYPOINT),
        "istio.io/WaypointMissing" => "spec.hosts".to_owned(),
        "Accepted" => "spec.parentRefs".to_owned(),
        "ResolvedRefs" => "spec.rules".to_owned(),
        other => format!("condition {other}"),
    }
}

/// A message is what is wrong, and after the last semicolon or sentence what to do.
fn parted(message: &str) -> (String, String) {
    let parts = message.rsplit_once("; ").into_iter().chain(message.rsplit_once(". "));
    match parts.max_by_key(|(what, _)| what.len()) {
        Some((what, remedy)) => (what.to_owned(), remedy.to_owned()),
        None => (message.to_owned(), String::new()),
    }
}

/// Counts of errors and warnings.
pub(super) fn count(findings: &[Finding]) -> (usize, usize) {
    let errors = findings.iter().filter(|one| one.severity == Severity::Error).count();
    (errors, findings.len() - errors)
}

/// Objects of the mesh among the documents.
pub(super) fn read(documents: &[Document]) -> usize {
    documents.iter().filter(|one| Kind::of(one.group(), one.version(), &one.kind).is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambit_api::directory::read_text;

    fn given(text: &str, complete: bool) -> Given {
        let loaded = read_text(Path::new("shop.yaml"), text);
        Given { documents: loaded.objects, problems: loaded.problems, complete, ..Given::default() }
    }

    fn found(text: &str) -> Vec<String> {
        shown(&find(&given(text, false), Settings::default()))
    }

    fn shown(findings: &[Finding]) -> Vec<String> {
        findings
            .iter()
            .map(|one| {
                format!(
                    "{} {} {} {}: {} => {}",
                    one.severity.word(),
                    one.place().unwrap_or_default(),
                    one.object.clone().unwrap_or_default(),
                    one.field,
                    one.what,
                    one.remedy
                )
            })
            .collect()
    }

    const EXAMPLES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ports, namespace: shop}
spec: {rules: [{to: [{operation: {ports: ['http']}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: custom, namespace: shop}
spec: {action: CUSTOM, provider: {name: x}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: target, namespace: shop}
spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: none}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: shop}
---
apiVersion: security.istio.io/v1alpha1
kind: PeerAuthentication
metadata: {name: old, namespace: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: sidecar, istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Namespace
metadata: {name: mixed, labels: {istio.io/dataplane-mode: ambient, istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
kind: Service
---
a: [
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
";

    #[test]
    fn what_is_wrong_is_found_with_its_place_and_remedy() {
        insta::assert_snapshot!(found(EXAMPLES).join("\n"));
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let fine = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}
---
apiVersion: example.com/v1
kind: Whatever
metadata: {name: x}
";
        assert_eq!(found(fine), Vec::<String>::new());
    }

    #[test]
    fn where_everything_is_known_what_is_missing_is_an_error() {
        let text = EXAMPLES.split("---").nth(3).unwrap();
        let partly = find(&given(text, false), Settings::default());
        assert_eq!(partly[0].severity, Severity::Warning, "{partly:?}");
        let wholly = find(&given(text, true), Settings::default());
        assert_eq!(wholly[0].severity, Severity::Error, "{wholly:?}");
    }

    #[test]
    fn a_selector_that_selects_nobody_is_told_only_if_all_are_known() {
        let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\n\
                    spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}\n";
        assert!(find(&given(text, false), Settings::default()).is_empty());
        let nobody = find(&given(text, true), Settings::default());
        assert_eq!(nobody[0].field, "spec.selector.matchLabels");
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u, labels: {app: web}}\n\
                   spec: {nodeName: a, containers: []}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n";
        assert_eq!(shown(&find(&given(&format!("{text}{pod}"), true), Settings::default())), [""; 0]);
    }

    #[test]
    fn files_are_judged_as_if_they_were_in_the_cluster() {
        let policy = EXAMPLES.split("---").nth(3).unwrap();
        let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: none, namespace: shop}\n\
                       spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
        let with = Given { around: given(gateway, true).documents, ..given(policy, true) };
        assert_eq!(shown(&find(&with, Settings::default())), [""; 0]);
    }
    #[test]
    fn routes_are_told_what_does_not_apply_and_whom_they_do_not_reach() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
        let route = |parent: &str, backend: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
                 spec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]}}\n"
            )
        };
        let fields = |parent: &str, backend: &str, complete: bool| {
            let text = format!("{service}---\n{}", route(parent, backend));
            let found = find(&given(&text, complete), Settings::default());
            found.iter().map(|one| format!("{} {}", one.severity.word(), one.field)).collect::<Vec<_>>()
        };
        let no_waypoint = "warning condition ResolvedWaypoints";
        assert_eq!(fields("web", "web", true), [no_waypoint]);
        assert_eq!(fields("web", "gone", true), ["error spec.rules", no_waypoint]);
        assert_eq!(fields("web", "gone", false), [no_waypoint, "warning spec.rules"]);
        assert_eq!(fields("gone", "web", true), ["error spec.parentRefs", no_waypoint]);
    }
}
