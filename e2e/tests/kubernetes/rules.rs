//! What the pages of `docs/tasks` say of VirtualServices, DestinationRules, faults and debug tokens, on a real cluster: their
//! own YAML, applied to a real API server in a namespace with a waypoint.

use std::collections::BTreeMap;

use ambit_e2e::kubernetes::images::APP;
use ambit_e2e::pages::Page;
use ambit_e2e::telling::Evidence;
use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::requests::{DESK, NODES, SOON, answers};
use crate::scene::Scene;

const VIRTUAL_SERVICE: Page = Page(include_str!("../../../docs/tasks/virtual-service.md"));
const ENDPOINTS: Page = Page(include_str!("../../../docs/tasks/endpoints.md"));
const FAULTS: Page = Page(include_str!("../../../docs/tasks/faults.md"));
const EXPLAIN: Page = Page(include_str!("../../../docs/tasks/explain.md"));

/// Another rule for a service that has one.
const LATER: &str = "
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: web-later, namespace: desk}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
";
/// For gateways alone: whatever it says is others' affair.
const ELSEWHERE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door, namespace: desk}
spec: {hosts: [web], gateways: [istio-ingress/door], tls: [{route: [{destination: {host: web}}]}]}
";
/// What no waypoint does, in every version of the API, and the field that is told.
const REFUSED: [(&str, &str, &str, &str); 4] = [
    ("VirtualService", "v1", "{hosts: [web], tcp: [{route: [{destination: {host: web}}]}]}", "spec.tcp"),
    (
        "VirtualService",
        "v1alpha3",
        "{hosts: [web], gateways: [mesh], http: [{delegate: {name: a}}]}",
        "spec.http[0].delegate",
    ),
    (
        "DestinationRule",
        "v1",
        "{host: web, workloadSelector: {matchLabels: {app: a}}}",
        "spec.workloadSelector",
    ),
    (
        "DestinationRule",
        "v1beta1",
        "{host: web, subsets: [{name: a, trafficPolicy: {tunnel: {targetHost: a, targetPort: 1}}}]}",
        "spec.subsets[0].trafficPolicy.tunnel",
    ),
];

/// The Service to which the page about VirtualServices sends a share, and its pod.
fn v2() -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: web-v2, namespace: {DESK}}}
spec:
  selector: {{app: web-v2}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: web-v2, namespace: {DESK}, labels: {{app: web-v2}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: web, {}}}]
"#,
        container("web-v2")
    )
}

/// What a container is made of that answers as `name`.
fn container(name: &str) -> String {
    format!("image: {APP}, imagePullPolicy: Never, args: [serve], env: [{{name: POD_NAME, value: {name}}}]")
}

/// The YAML of a page for this namespace.
fn yaml<const N: usize>(page: Page) -> anyhow::Result<[String; N]> {
    let found: Vec<_> = page.fenced("yaml");
    let found: Vec<_> =
        found.iter().map(|text| text.replace("namespace: shop", &format!("namespace: {DESK}"))).collect();
    found.try_into().map_err(|found: Vec<_>| anyhow::anyhow!("{} pieces of YAML, not {N}", found.len()))
}

/// How often each status, or each pod, came: of so many calls from the client on a node.
fn calls(scene: &Scene<'_>, count: u32, header: &str, what: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let count = count.to_string();
    let call = ["ambit-lab-app", "call", "http://web/", "--count", &count, "-q", "-H", header];
    // It fails where one of the calls does.
    let told = scene.kubectl().run(&[&["-n", DESK, "exec", NODES[0], "--"], &call[..]].concat())?;
    let line = told.stdout.lines().find(|line| line.contains("\"summary\""));
    let summary: Value = serde_json::from_str(line.with_context(|| format!("no summary: {told:?}"))?)?;
    let counts = summary["summary"][what].as_object().into_iter().flatten();
    Ok(counts.map(|(name, count)| (name.clone(), count.as_u64().unwrap_or_default())).collect())
}

/// Waits until an object's condition has this status and reason.
fn told(scene: &Scene<'_>, object: &str, (kind, status, reason): (&str, &str, &str)) -> anyhow::Result<()> {
    let what = format!("{kind}={status} {reason} of {object}");
    scene.until(DESK, SOON, &what, || {
        let found = scene.kubectl().get(DESK, &[object])?.with_context(|| format!("no {object}"))?;
        let mut conditions = found["status"]["conditions"].as_array().into_iter().flatten();
        let one = conditions.find(|condition| condition["type"] == kind);
        Ok(one.filter(|one| one["status"] == status && one["reason"] == reason).map(drop))
    })
}

/// `endpoints.md`: a version behind the same Service, by the name that a DestinationRule gives it.
pub(crate) fn subset(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [_, versions, ..]: [String; 4] = yaml(ENDPOINTS)?;
    let image = container("web-next");
    let versions = versions.replace("image: ambit/app", &image);
    ensure!(versions.contains(APP), "the page's pod has another image: {versions}");
    // The namespace has one account.
    let versions = versions.replace("serviceAccountName: web", "terminationGracePeriodSeconds: 1");
    scene.kubectl().apply(&format!("{versions}---{}", v2()))?;
    let wait = ["wait", "pod/web-next", "pod/web-v2", "--for=condition=Ready", "--timeout=60s"];
    scene.kubectl().ok(&[&["-n", DESK], &wait[..]].concat())?;
    let met = scene.until(DESK, SOON, "requests at the subset alone", || {
        let met = calls(scene, 20, "x-version: next", "pods")?;
        Ok(met.keys().eq(["web-next"]).then_some(met))
    })?;
    let others = calls(scene, 120, "x-version: any", "pods")?;
    ensure!(others.len() == 3, "without the header: {others:?}");
    seen.saw(format!("x-version: next: {met:?}; without: {others:?}"));
    told(scene, "destinationrule/web", ("WaypointAccepted", "True", "Accepted"))?;
    for (kind, reason) in [
        ("Accepted", "Accepted"),
        ("ResolvedRefs", "ResolvedRefs"),
        ("ResolvedWaypoints", "ResolvedWaypoints"),
    ] {
        told(scene, "virtualservice/web", (kind, "True", reason))?;
    }
    scene.kubectl().apply(LATER)?;
    told(scene, "destinationrule/web-later", ("WaypointAccepted", "False", "Conflicted"))?;
    scene.kubectl().ok(&["-n", DESK, "delete", "destinationrule/web", "destinationrule/web-later"])?;
    told(scene, "virtualservice/web", ("ResolvedRefs", "False", "BackendNotFound"))?;
    let statuses = scene.until(DESK, SOON, "an answer without the subset", || {
        let statuses = calls(scene, 5, "x-version: next", "statuses")?;
        Ok(statuses.keys().eq(["500"]).then_some(statuses))
    })?;
    seen.saw(format!("Without the DestinationRule the VirtualService is told BackendNotFound: {statuses:?}"));
    Ok(())
}

/// `virtual-service.md`: rules in their order, and shares.
pub(crate) fn shares(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const CALLS: u32 = 300;
    let [object] = yaml(VIRTUAL_SERVICE)?;
    // The same object as before, written anew.
    scene.kubectl().apply(&object)?;
    scene.until(DESK, SOON, "testers at the other version", || {
        let met = calls(scene, 20, "x-canary: always", "pods")?;
        Ok(met.keys().eq(["web-v2"]).then_some(()))
    })?;
    told(scene, "virtualservice/web", ("ResolvedRefs", "True", "ResolvedRefs"))?;
    let met = calls(scene, CALLS, "x-canary: no", "pods")?;
    let share = met.get("web-v2").copied().unwrap_or_default();
    // Three standard deviations around thirty, and some.
    ensure!((10..=55).contains(&share), "{share} of {CALLS} at a tenth: {met:?}");
    let url = "http://web/old/headers";
    let heard = scene.kubectl().exec(DESK, NODES[1], &["curl", "-sS", "--fail", "-m", "5", url])?;
    ensure!(heard.contains("x-request-id"), "the old link: {heard}");
    seen.saw(format!("{met:?}; an old link leads to the new place"));
    Ok(())
}

/// `faults.md`: some fail, some are held back.
pub(crate) fn faults(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [faults] = yaml(FAULTS)?;
    scene.kubectl().apply(&faults)?;
    let statuses = scene.until(DESK, SOON, "both answers", || {
        let statuses = calls(scene, 60, "x-test: broken", "statuses")?;
        Ok(statuses.keys().eq(["200", "503"]).then_some(statuses))
    })?;
    let slow = ["curl", "-sS", "-m", "9", "-o", "/dev/null", "-w", "%{time_total}", "-H", "x-test: slow"];
    let took: f64 = scene.kubectl().exec(DESK, NODES[1], &[&slow[..], &["http://web/"]].concat())?.parse()?;
    ensure!(took >= 2.0, "held back for {took} s");
    let others = calls(scene, 20, "x-test: nothing", "statuses")?;
    ensure!(others.keys().eq(["200"]), "others met {others:?}");
    seen.saw(format!("broken: {statuses:?}; slow: {took} s; others: {others:?}"));
    scene.kubectl().ok(&["-n", DESK, "delete", "virtualservice/web"])?;
    scene.until(DESK, SOON, "the end of the faults", || {
        Ok(calls(scene, 20, "x-test: broken", "statuses")?.keys().eq(["200"]).then_some(()))
    })
}

/// What no waypoint does is refused when it is written, with the field's name; what is not for the mesh is not looked at.
pub(crate) fn refused(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for (kind, version, spec, field) in REFUSED {
        let object = format!(
            "apiVersion: networking.istio.io/{version}\nkind: {kind}\nmetadata: {{name: bad, namespace: {DESK}}}\nspec: {spec}\n"
        );
        let refusal = scene.kubectl().apply(&object).err().with_context(|| format!("let in: {object}"))?;
        let refusal = format!("{refusal:#}");
        let is_ours = refusal.contains("validation.ambit.io\" denied the request") && refusal.contains(field);
        ensure!(is_ours, "{field} is not named: {refusal}");
        let (_, words) = refusal.split_once("denied the request: ").unwrap_or_default();
        seen.saw(format!("{kind} {version}: {}", words.lines().next().unwrap_or_default()));
    }
    scene.kubectl().apply(ELSEWHERE)?;
    told(scene, "virtualservice/door", ("Accepted", "False", "NotForMesh"))?;
    scene.kubectl().ok(&["-n", DESK, "delete", "virtualservice/door"]).map(drop)
}

/// `explain.md`: the controller signs a token, and the waypoint explains a request to its bearer.
pub(crate) fn explain(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [policy] = yaml(EXPLAIN)?;
    scene.kubectl().apply(&policy)?;
    let token = scene.ambit(&["waypoint", "token", "--namespace", DESK, "waypoint", "--for", "10m"])?;
    answers(scene, NODES[1], "/admin", "403")?;
    let header = format!("x-ambit-debug: {}", token.trim_end());
    for (path, status, pointer, wanted) in [
        ("/admin", "403", "/ended/error", "denied by policy: desk/no-admin"),
        ("/headers", "200", "/caller", "spiffe://cluster.local/ns/desk/sa/default"),
    ] {
        let url = format!("http://web{path}");
        let call = ["curl", "-sSi", "-m", "5", "-H", &header, &url];
        let head = scene.kubectl().exec(DESK, NODES[1], &call)?;
        ensure!(head.split_whitespace().nth(1) == Some(status), "{path}: {head}");
        let explained = head.lines().find_map(|line| line.strip_prefix("x-ambit-explanation: "));
        let explained: Value = serde_json::from_str(explained.with_context(|| format!("nothing: {head}"))?)?;
        ensure!(explained.pointer(pointer).is_some_and(|value| value == wanted), "{explained:#}");
        ensure!(!head.contains(token.trim_end()), "the application has seen the token");
        seen.saw(format!("{path}: {status}, {explained}"));
    }
    scene.kubectl().ok(&["-n", DESK, "delete", "authorizationpolicy/no-admin"])?;
    answers(scene, NODES[1], "/admin", "200")
}
