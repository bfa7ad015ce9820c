//! A waypoint on a real cluster: a policy denies one path of a service, to clients on every node, and is taken back; and
//! what pages say of [`rules`] holds there.

use std::time::Duration;

use ambit_e2e::kubernetes::images::APP;
use ambit_e2e::kubernetes::story;
use ambit_e2e::telling::{Evidence, Telling};
use ambit_e2e::wait::Stop;
use anyhow::{Context as _, ensure};

use crate::rules;
use crate::scene::{self, Scene};

/// The namespace of the story.
pub(crate) const DESK: &str = "desk";
/// The nodes, and the clients on them, which are called like them.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
/// How long news may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);
const OPEN: &str = "/open";
const DENIED: &str = "/drawer/1";
const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: drawer, namespace: desk}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/drawer/*"]}}]}]
"#;

type Tell = fn(&Scene<'_>, &mut Evidence<'_>) -> anyhow::Result<()>;

const STEPS: [(&str, Tell); 8] = [
    ("A waypoint serves a namespace with pods on two nodes", serve),
    ("A policy denies one path, on both nodes, and no other", deny),
    ("Without it, the path answers again", allow),
    (
        "A VirtualService leads to a subset of a DestinationRule, and both are told what became of them",
        rules::subset,
    ),
    ("Another one shares requests out", rules::shares),
    ("A fault meets whom it names", rules::faults),
    ("What no waypoint does is refused with the field's name", rules::refused),
    ("A request is explained to the bearer of a token", rules::explain),
];

#[test]
fn a_waypoint_denies_a_path_to_clients_on_every_node() -> anyhow::Result<()> {
    story(|cluster| {
        let scene = Scene::set(cluster)?;
        let told = tell(&scene);
        let cleared = scene.clear(&[DESK]);
        told.and(cleared)
    })
}

fn tell(scene: &Scene<'_>) -> anyhow::Result<()> {
    let mut telling = Telling::aloud(Stop::default());
    for (title, tell) in STEPS {
        telling.step(title, |seen| tell(scene, seen).with_context(|| scene.kubectl().evidence(DESK)));
        // Later steps build on earlier ones.
        if telling.outcomes().iter().any(|outcome| outcome.failure.is_some()) {
            break;
        }
    }
    ensure!(telling.verdict(STEPS.len()), "a step did not hold; see above");
    Ok(())
}

fn serve(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.install(&[])?;
    scene.kubectl().fresh_namespace(DESK)?;
    scene.kubectl().apply(&format!("{}{}", scene::web(DESK), NODES.map(client).concat()))?;
    scene.kubectl().rolled_out(DESK, "deployment/web", SOON)?;
    for node in NODES {
        let client = format!("pod/{node}");
        scene.kubectl().ok(&["-n", DESK, "wait", &client, "--for=condition=Ready", "--timeout=60s"])?;
    }
    scene.ambit(&["namespace", "add", DESK])?;
    scene.until(DESK, SOON, "every pod's joining", || Ok(scene.all_captured(DESK)?.then_some(())))?;
    scene.ambit(&["waypoint", "apply", "--namespace", DESK, "--enroll-namespace", "--wait"])?;
    for node in NODES {
        for path in [OPEN, DENIED] {
            answers(scene, node, path, "200")?;
        }
        seen.saw(format!("answered on {node}"));
    }
    Ok(())
}

/// The tunnels know no paths: whoever tells them apart is the waypoint.
fn deny(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.kubectl().apply(DENY)?;
    for node in NODES {
        answers(scene, node, DENIED, "403")?;
        let open = status(scene, node, OPEN)?;
        ensure!(open == "200", "{OPEN} was answered {open} on {node}");
        seen.saw(format!("on {node}: {DENIED} 403, {OPEN} 200"));
    }
    let condition = scene.until(DESK, SOON, "the condition of the policy", || {
        Ok(scene.field(DESK, &["authorizationpolicy/drawer"], "/status/conditions/0/type").ok())
    })?;
    ensure!(condition == "WaypointAccepted", "the policy carries {condition}");
    Ok(())
}

fn allow(scene: &Scene<'_>, _: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.kubectl().ok(&["-n", DESK, "delete", "authorizationpolicy/drawer"])?;
    NODES.iter().try_for_each(|node| answers(scene, node, DENIED, "200"))
}

/// Waits until a path is answered so.
pub(crate) fn answers(scene: &Scene<'_>, node: &str, path: &str, expected: &str) -> anyhow::Result<()> {
    scene.until(DESK, SOON, &format!("{expected} for {path} on {node}"), || {
        Ok(status(scene, node, path).ok().filter(|status| status == expected).map(drop))
    })
}

/// The status of one call from the client on a node.
fn status(scene: &Scene<'_>, node: &str, path: &str) -> anyhow::Result<String> {
    let url = format!("http://web{path}");
    let call =
        ["curl", "--silent", "--max-time", "5", "--output", "/dev/null", "--write-out", "%{http_code}", &url];
    scene.kubectl().exec(DESK, node, &call)
}

/// A client on a node, called like it.
fn client(node: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {node}, namespace: {DESK}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: {APP}
    imagePullPolicy: Never
    command: [sleep, "100000"]
"#
    )
}
