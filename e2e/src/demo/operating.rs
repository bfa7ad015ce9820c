//! Step 10: what an operator sees.

use ambit_lab::Program;
use ambit_lab::mesh::Kind;
use anyhow::{Context as _, ensure};

use super::{CLIENT, NODE_A, NODE_B, RUN_LIMIT, Stage};
use crate::telling::Evidence;

pub(super) fn shown(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let to = stage.web_at(9090)?;
    let open = stage.town.hold(CLIENT, &to)?;
    let status = ambit(stage, &["status"])?;
    seen.did("ambit status");
    seen.quote(&status);
    for part in ["controller", NODE_A, NODE_B] {
        ensure!(status.contains(part), "`ambit status` does not show {part}");
    }
    for (what, expected) in [
        ("workload", vec!["web-1", "client", "HBONE"]),
        ("service", vec!["web"]),
        ("policy", vec!["istio_converted_static_strict"]),
        ("certificate", vec!["spiffe://cluster.local/ns/shop/sa/client", "Leaf", "Root"]),
        ("connections", vec!["client"]),
    ] {
        let text = ambit(stage, &["tunnel-config", what, NODE_A])?;
        seen.did(format!("ambit tunnel-config {what} {NODE_A}"));
        seen.quote(&text);
        for word in expected {
            ensure!(text.contains(word), "`ambit tunnel-config {what}` does not show {word}");
        }
    }
    open.end()?;
    seen.saw("All components are in sync, and what they know can be seen.");
    let early = stage.early.take().context("no connection is held")?;
    let exchanges = early.goes_on(stage.town.stop())?;
    early.end()?;
    seen.saw(format!("The connection of step 1 has lived through everything: {exchanges} lines."));
    Ok(())
}

/// What `ambit` prints.
fn ambit(stage: &mut Stage, args: &[&str]) -> anyhow::Result<String> {
    let mut program = Program::new(&stage.ambit).args(args);
    for daemon in stage.town.mesh().daemons() {
        let admin = daemon.admin();
        let address = format!("netns:{}/{}", admin.netns().name(), admin.address());
        let node = daemon.node().name();
        program = match daemon.kind() {
            Kind::Controller => program.arg("--controller").arg(address),
            Kind::Agent => program.arg("--agent").arg(format!("{node}={address}")),
            Kind::Tunnel => program.arg("--tunnel").arg(format!("{node}={address}")),
        };
    }
    Ok(ambit_lab::process::run(None, &program, RUN_LIMIT)?.ok()?)
}
