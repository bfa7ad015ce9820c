//! What a check comes to, and the judgments that need no mesh: version, permissions, nodes, clocks. Pure.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::output::{Tone, few};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// All is well.
    Pass,
    /// It could not be looked at, or does not apply.
    Skipped,
    /// It works, and should not stay so.
    Warning,
    /// It does not work, or soon will not.
    Failure,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }

    pub(crate) fn tone(self) -> Tone {
        match self {
            Self::Pass => Tone::Good,
            Self::Skipped => Tone::Faint,
            Self::Warning => Tone::Wait,
            Self::Failure => Tone::Bad,
        }
    }
}

/// One named check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) reason: String,
    /// Empty if there is nothing to do.
    pub(crate) remedy: String,
}

impl Check {
    pub(crate) fn pass(name: &'static str, reason: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Pass, reason: reason.into(), remedy: String::new() }
    }

    pub(crate) fn skipped(name: &'static str, reason: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Skipped, reason: reason.into(), remedy: String::new() }
    }

    pub(crate) fn warning(name: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, reason: reason.into(), remedy: remedy.into() }
    }

    pub(crate) fn failure(name: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failure, reason: reason.into(), remedy: remedy.into() }
    }

    pub(crate) fn value(&self) -> Value {
        json!({
            "name": self.name,
            "verdict": self.verdict.word(),
            "reason": self.reason,
            "remedy": Some(&self.remedy).filter(|remedy| !remedy.is_empty()),
        })
    }
}

/// The worst of them.
pub(crate) fn worst(checks: &[Check]) -> Verdict {
    checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Pass)
}

/// Server-side apply with what the charts use, and policies on objects of that version.
const OLDEST_API: u32 = 26;
/// What is tested comes from the last years.
const TESTED_API: u32 = 30;

/// The API server's version.
pub(super) fn api_version(major: &str, minor: &str) -> Check {
    const NAME: &str = "kubernetes-version";
    // Providers write `29+`.
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
    let said = format!("the API server is {major}.{minor}");
    match (number(major), number(minor)) {
        (Some(1), Some(minor)) if minor >= TESTED_API => Check::pass(NAME, said),
        (Some(1), Some(minor)) if minor >= OLDEST_API => Check::warning(
            NAME,
            format!("{said}, older than what is tested"),
            format!("upgrade to 1.{TESTED_API} or newer"),
        ),
        (Some(1), Some(_)) => {
            Check::failure(NAME, format!("{said}, too old"), format!("upgrade to 1.{TESTED_API} or newer"))
        }
        (_, _) => Check::warning(NAME, format!("{said}, which is not known here"), "look for a newer ambit"),
    }
}

/// One thing that installing, or a probe, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permission {
    pub(super) verb: &'static str,
    pub(super) group: &'static str,
    /// `pods`, or a part of each, `pods/log`.
    pub(super) resource: &'static str,
    /// Whether it is asked for in the system namespace.
    pub(super) namespaced: bool,
}

impl Permission {
    pub(super) fn words(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        format!("{} {}{group}", self.verb, self.resource)
    }
}

/// Everything that installing creates; server-side apply patches it.
pub(super) fn needed() -> Vec<Permission> {
    let resources: [(&str, &str, bool); 18] = [
        ("", "namespaces", false),
        ("apiextensions.k8s.io", "customresourcedefinitions", false),
        ("rbac.authorization.k8s.io", "clusterroles", false),
        ("rbac.authorization.k8s.io", "clusterrolebindings", false),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies", false),
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", false),
        ("", "serviceaccounts", true),
        ("", "configmaps", true),
        ("", "services", true),
        ("apps", "deployments", true),
        ("apps", "daemonsets", true),
        ("rbac.authorization.k8s.io", "roles", true),
        ("rbac.authorization.k8s.io", "rolebindings", true),
        ("autoscaling", "horizontalpodautoscalers", true),
        ("policy", "poddisruptionbudgets", true),
        ("", "resourcequotas", true),
        ("networking.k8s.io", "networkpolicies", true),
    ];
    resources
        .into_iter()
        .flat_map(|(group, resource, namespaced)| {
            ["create", "patch"].map(|verb| Permission { verb, group, resource, namespaced })
        })
        .collect()
}

/// Whether who asks may install.
pub(super) fn permissions(asked: &[(Permission, bool)]) -> Check {
    const NAME: &str = "permissions";
    let missing: Vec<_> =
        asked.iter().filter(|(_, allowed)| !allowed).map(|(permission, _)| permission.words()).collect();
    if missing.is_empty() {
        return Check::pass(NAME, format!("{} permissions that installing needs are there", asked.len()));
    }
    Check::failure(
        NAME,
        format!("you may not {}", few(&missing)),
        "install as somebody with cluster-admin, or have these granted",
    )
}

/// Below it, redirection misses what it needs.
const OLDEST_KERNEL: (u32, u32) = (5, 4);
/// From here on, connections survive that are being made while a tunnel changes workers (tcp_migrate_req).
const GOOD_KERNEL: (u32, u32) = (5, 14);

/// The kernels of the nodes, by what their kubelets say.
pub(super) fn kernels(nodes: &[Node]) -> Check {
    const NAME: &str = "kernel-version";
    let mut old = Vec::new();
    let mut fair = Vec::new();
    let mut unread = Vec::new();
    for node in nodes {
        let (name, kernel) = (name(node), info(node, |info| info.kernel_version.clone()));
        match numbers(&kernel) {
            None => unread.push(format!("{name} ({kernel})")),
            Some(numbers) if numbers < OLDEST_KERNEL => old.push(format!("{name} ({kernel})")),
            Some(numbers) if numbers < GOOD_KERNEL => fair.push(format!("{name} ({kernel})")),
            Some(_) => {}
        }
    }
    let (major, minor) = GOOD_KERNEL;
    let remedy = format!("upgrade them to Linux {major}.{minor} or newer");
    if !old.is_empty() {
        return Check::failure(NAME, format!("too old: {}", few(&old)), remedy);
    }
    if !fair.is_empty() {
        let reason = format!(
            "on {}, connections that are just being made may be lost when a tunnel is replaced",
            few(&fair)
        );
        return Check::warning(NAME, reason, remedy);
    }
    if !unread.is_empty() {
        return Check::warning(NAME, format!("not understood: {}", few(&unread)), remedy);
    }
    Check::pass(NAME, format!("Linux {major}.{minor} or newer on {} nodes", nodes.len()))
}

/// Which nodes can be part of the mesh at all.
pub(super) fn systems(nodes: &[Node]) -> Check {
    const NAME: &str = "node-systems";
    let other: Vec<_> = nodes
        .iter()
        .filter(|node| info(node, |info| info.operating_system.clone()) != "linux")
        .map(name)
        .collect();
    if nodes.is_empty() {
        return Check::failure(NAME, "the cluster has no nodes", "add nodes");
    }
    if other.is_empty() {
        return Check::pass(NAME, format!("{} nodes run Linux", nodes.len()));
    }
    let reason = format!("not Linux: {}; pods there stay outside", few(&other));
    Check::warning(NAME, reason, "run pods of the mesh on Linux")
}

/// The kubelets, which Kubernetes allows to be three minor versions older than the API server, and the runtimes.
pub(super) fn kubelets(nodes: &[Node], api_minor: Option<u32>) -> Check {
    const NAME: &str = "node-versions";
    let minor = |node: &Node| {
        let version = info(node, |info| info.kubelet_version.clone());
        numbers(version.trim_start_matches('v')).map(|(_, minor)| minor)
    };
    let apart: Vec<_> = nodes
        .iter()
        .filter(|node| match (minor(node), api_minor) {
            (Some(kubelet), Some(api)) => kubelet > api || kubelet + 3 < api,
            (_, _) => false,
        })
        .map(|node| format!("{} ({})", name(node), info(node, |info| info.kubelet_version.clone())))
        .collect();
    let mut runtimes: Vec<_> =
        nodes.iter().map(|node| info(node, |info| info.container_runtime_version.clone())).collect();
    runtimes.sort();
    runtimes.dedup();
    if !apart.is_empty() {
        let reason = format!("kubelets too far from the API server: {}", few(&apart));
        return Check::warning(NAME, reason, "upgrade these nodes");
    }
    Check::pass(NAME, format!("kubelets fit the API server; runtimes: {}", few(&runtimes)))
}

/// Whether pods with the rights of tunnel and agent are admitted. `enforced` is the label of the system namespace;
/// none if the namespace is not there yet, or bears no such label.
pub(super) fn pod_security(namespace: &str, enforced: Option<&str>) -> Check {
    const NAME: &str = "pod-security";
    match enforced {
        None | Some("privileged") => {
            Check::pass(NAME, format!("namespace {namespace} admits privileged pods"))
        }
        Some(level) => Check::failure(
            NAME,
            format!(
                "namespace {namespace} enforces {level:?}: the node agent and the tunnel are not admitted"
            ),
            format!(
                "kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite"
            ),
        ),
    }
}

/// Certificates are dated back by some minutes, tokens are not.
const SKEW: u64 = 10;
const GREAT_SKEW: u64 = 120;

/// How far this machine's clock and the API server's are apart. Its answers say the time in whole seconds.
pub(super) fn clocks(apart: Option<u64>) -> Check {
    const NAME: &str = "clock-skew";
    let remedy = "let NTP set the clocks of this machine and of the control plane";
    match apart {
        None => Check::skipped(NAME, "the API server does not say the time"),
        Some(seconds) if seconds <= SKEW => {
            Check::pass(NAME, format!("this machine and the API server are within {SKEW} s"))
        }
        Some(seconds) if seconds <= GREAT_SKEW => {
            Check::warning(NAME, format!("this machine and the API server are {seconds} s apart"), remedy)
        }
        Some(seconds) => {
            Check::failure(NAME, format!("this machine and the API server are {seconds} s apart"), remedy)
        }
    }
}

/// A definition of a kind, as far as it says where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) name: String,
    /// Gateway API's own annotations: version and channel of the bundle.
    pub(super) bundle: Option<String>,
    pub(super) channel: Option<String>,
    /// Whether a Helm release or an operator of Istio has it.
    pub(super) of_istio: bool,
}

/// Gateway API's kinds.
pub(super) fn gateway_api(definitions: &[Definition]) -> Check {
    const NAME: &str = "gateway-api";
    let own: Vec<_> =
        definitions.iter().filter(|one| one.name.ends_with(".gateway.networking.k8s.io")).collect();
    let mut bundles: Vec<_> = own.iter().filter_map(|one| one.bundle.clone()).collect();
    bundles.sort();
    bundles.dedup();
    let channel = own.iter().find_map(|one| one.channel.clone()).unwrap_or_else(|| "unknown".to_owned());
    match (own.is_empty(), bundles.as_slice()) {
        (true, _) => Check::pass(NAME, "not installed; installing the mesh brings it"),
        (false, [one]) => match numbers(one.trim_start_matches('v')) {
            Some(numbers) if numbers < (1, 0) => Check::warning(
                NAME,
                format!("version {one} has no kinds of version v1"),
                "upgrade it to 1.0 or newer",
            ),
            Some(_) | None => {
                Check::pass(NAME, format!("version {one}, channel {channel}; it is left as it is"))
            }
        },
        (false, []) => Check::warning(
            NAME,
            "kinds are installed that do not say their version",
            "look whether their versions include v1",
        ),
        (false, several) => Check::warning(
            NAME,
            format!("kinds of several versions are installed: {}", several.join(", ")),
            "install one version of all of them",
        ),
    }
}

/// Istio's kinds.
pub(super) fn istio_kinds(definitions: &[Definition]) -> Check {
    const NAME: &str = "istio-kinds";
    let own: Vec<_> = definitions.iter().filter(|one| one.name.ends_with(".istio.io")).collect();
    match (own.is_empty(), own.iter().any(|one| one.of_istio)) {
        (true, _) => Check::pass(NAME, "not installed; installing the mesh brings those that it reads"),
        (false, true) => Check::pass(NAME, format!("{} of an Istio; they are left as they are", own.len())),
        (false, false) => Check::pass(NAME, format!("{} installed", own.len())),
    }
}

/// Workloads of an Istio that runs already, `Deployment istio-system/istiod`.
pub(super) fn existing_istio(found: &[String]) -> Check {
    const NAME: &str = "existing-istio";
    if found.is_empty() {
        return Check::pass(NAME, "no other mesh is seen");
    }
    Check::warning(
        NAME,
        format!("an Istio is there: {}", few(found)),
        "two meshes must not capture the same pods: follow the migration, or install where it is not",
    )
}

/// The first two numbers of a version.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

pub(super) fn name(node: &Node) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

fn info(node: &Node, of: impl Fn(&k8s_openapi::api::core::v1::NodeSystemInfo) -> String) -> String {
    node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Failure, Pass, Skipped, Warning};

    fn node(name: &str, kernel: &str, kubelet: &str, system: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "status": { "nodeInfo": {
                "kernelVersion": kernel, "kubeletVersion": kubelet, "operatingSystem": system,
                "containerRuntimeVersion": "containerd://1.7.2", "architecture": "amd64", "bootID": "",
                "kubeProxyVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
            } },
        }))
        .unwrap()
    }

    fn linux(kernel: &str) -> Node {
        node("n1", kernel, "v1.34.4", "linux")
    }

    #[test]
    fn versions_of_the_api_server() {
        for (major, minor, verdict) in [
            ("1", "34", Pass),
            ("1", "29+", Warning),
            ("1", "20", Failure),
            ("2", "0", Warning),
            ("", "", Warning),
        ] {
            assert_eq!(api_version(major, minor).verdict, verdict, "{major}.{minor}");
        }
    }

    #[test]
    fn kernels_are_old_fair_or_good() {
        for (kernels_of, verdict) in [
            (&["6.1.0-18-amd64", "5.14.0"][..], Pass),
            (&["6.1.0", "5.10.0-8"], Warning),
            (&["6.1.0", "4.19.0"], Failure),
            (&["odd"], Warning),
        ] {
            let nodes: Vec<_> = kernels_of.iter().map(|kernel| linux(kernel)).collect();
            assert_eq!(kernels(&nodes).verdict, verdict, "{kernels_of:?}");
        }
    }

    #[test]
    fn nodes_that_are_not_linux_or_too_far_apart_are_named() {
        let windows = node("w", "10.0", "v1.34.0", "windows");
        let check = systems(&[linux("6.1"), windows]);
        assert_eq!((check.verdict, check.reason.contains('w')), (Warning, true));
        assert_eq!(systems(&[]).verdict, Failure);
        for (kubelet, verdict) in
            [("v1.34.1", Pass), ("v1.31.0", Pass), ("v1.30.0", Warning), ("v1.35.0", Warning)]
        {
            let nodes = [node("n1", "6.1", kubelet, "linux")];
            assert_eq!(kubelets(&nodes, Some(34)).verdict, verdict, "{kubelet}");
        }
    }

    #[test]
    fn what_may_not_be_done_is_named() {
        let asked: Vec<_> = needed().into_iter().map(|one| (one, one.resource != "daemonsets")).collect();
        let check = permissions(&asked);
        assert_eq!(check.verdict, Failure);
        assert!(check.reason.contains("create daemonsets.apps"), "{check:?}");
        let all: Vec<_> = needed().into_iter().map(|one| (one, true)).collect();
        assert_eq!(permissions(&all).verdict, Pass);
    }

    #[test]
    fn clocks_and_pod_security() {
        for (apart, verdict) in [(Some(0), Pass), (Some(60), Warning), (Some(3600), Failure), (None, Skipped)]
        {
            assert_eq!(clocks(apart).verdict, verdict, "{apart:?}");
        }
        for (enforced, verdict) in [
            (None, Pass),
            (Some("privileged"), Pass),
            (Some("baseline"), Failure),
            (Some("restricted"), Failure),
        ] {
            assert_eq!(pod_security("istio-system", enforced).verdict, verdict, "{enforced:?}");
        }
    }

    #[test]
    fn kinds_that_are_there_are_left_as_they_are() {
        let one = |name: &str, bundle: Option<&str>| Definition {
            name: name.to_owned(),
            bundle: bundle.map(str::to_owned),
            channel: Some("standard".to_owned()),
            of_istio: name.ends_with(".istio.io"),
        };
        const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";
        const ROUTES: &str = "httproutes.gateway.networking.k8s.io";
        for (definitions, verdict) in [
            (vec![], Pass),
            (vec![one(GATEWAYS, Some("v1.3.0")), one(ROUTES, Some("v1.3.0"))], Pass),
            (vec![one(GATEWAYS, Some("v1.3.0")), one(ROUTES, Some("v1.1.0"))], Warning),
            (vec![one(GATEWAYS, Some("v0.8.1"))], Warning),
            (vec![one(GATEWAYS, None)], Warning),
        ] {
            assert_eq!(gateway_api(&definitions).verdict, verdict, "{definitions:?}");
        }
        assert!(istio_kinds(&[one("sidecars.networking.istio.io", None)]).reason.contains("of an Istio"));
        assert_eq!(existing_istio(&["Deployment istio-system/istiod".to_owned()]).verdict, Warning);
        assert_eq!(existing_istio(&[]).verdict, Pass);
    }

    #[test]
    fn the_worst_counts() {
        let of = |verdict| Check { name: "x", verdict, reason: String::new(), remedy: String::new() };
        assert_eq!(worst(&[of(Pass), of(Warning), of(Skipped)]), Warning);
        assert_eq!(worst(&[of(Failure), of(Pass)]), Failure);
        assert_eq!(worst(&[]), Pass);
    }
}
