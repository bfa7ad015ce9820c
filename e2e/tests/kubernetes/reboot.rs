//! A node that loses its power has no pod of the mesh that starts uncaptured when it is back, whatever starts first.

use std::time::Duration;

use ambit_e2e::kubernetes::story;
use anyhow::ensure;

use crate::scene::{self, SYSTEM, Scene};

const SHOP: &str = "rebooted";
const ROLLED: Duration = Duration::from_secs(180);
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: rebooted}
spec: {mtls: {mode: STRICT}}
";

#[test]
fn a_node_that_reboots_starts_no_pod_outside_the_mesh() -> anyhow::Result<()> {
    story(|cluster| {
        let scene = Scene::set(cluster)?;
        let told = tell(&scene).map_err(|error| {
            error.context(format!("{}\n{}", scene.kubectl().evidence(SHOP), scene.kubectl().evidence(SYSTEM)))
        });
        let cleared = scene.clear(&[SHOP]);
        told.and(cleared)
    })
}

fn tell(scene: &Scene<'_>) -> anyhow::Result<()> {
    scene.install(&["--set", "cni.ownedConfig=true"])?;
    scene.kubectl().fresh_namespace(SHOP)?;
    scene.kubectl().ok(&["label", "namespace", SHOP, "istio.io/dataplane-mode=ambient"])?;
    scene.kubectl().apply(&scene::town(SHOP))?;
    scene.kubectl().apply(STRICT)?;
    scene.kubectl().rolled_out(SHOP, "deployment/web", ROLLED)?;
    scene.client_runs(SHOP)?;
    scene.calls(SHOP, "http://web/", 5)?;
    let before = scene.starts(SHOP, "n1")?;
    ensure!(!before.is_empty(), "no pod of the mesh is on n1");

    scene.cluster.reboot("n1")?;
    // Kubelet starts pods again as soon as it can: each that runs has its rules, from the first look on.
    scene.until(SHOP, ROLLED, "the return of the pods of n1", || {
        let now = scene.starts(SHOP, "n1")?;
        let returned = now.iter().filter(|start| !before.contains(start)).count();
        for pod in scene.restarted(SHOP, "n1", &before)? {
            ensure!(scene.has_rules(&pod)?, "{} runs without rules", pod.name);
        }
        Ok((returned >= before.len()).then_some(()))
    })?;
    for workload in ["daemonset/ztunnel", "daemonset/ambit-cni-node"] {
        scene.kubectl().rolled_out(SYSTEM, workload, ROLLED)?;
    }
    scene.kubectl().rolled_out(SHOP, "deployment/web", ROLLED)?;
    scene.client_runs(SHOP)?;
    // Plain text is refused: whoever answers and whoever asks are in the mesh.
    scene.until(SHOP, ROLLED, "calls after the reboot", || Ok(scene.calls(SHOP, "http://web/", 5).ok()))
}
