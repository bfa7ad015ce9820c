//! The mesh on a lab: its handles do what they say, on real processes and packets.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ambit_lab::Program;
use ambit_lab::mesh::{Binaries, MeshError, MeshLab, SHOP, Settings, Stage};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test makes network namespaces and must run as root");
    }
    root
}

fn settings(name: &str, dir: &Path) -> Settings {
    let yaml = dir.join("yaml");
    fs::create_dir(&yaml).unwrap();
    fs::write(yaml.join("shop.yaml"), SHOP).unwrap();
    // The programs of other crates are not built for this test: `cargo build --bins` comes first.
    Settings::new(name, yaml, dir.join("state"), Binaries::found().unwrap())
}

/// The summary of many calls from the client.
fn call(mesh: &MeshLab, args: &[&str]) -> Value {
    let client = mesh.lab().pod("shop", "client").unwrap();
    let program = Program::new(&mesh.settings().binaries.app).arg("call").args(args).arg("-q");
    let output = client.run(&program, LIMIT).unwrap();
    serde_json::from_str::<Value>(&output.stdout).unwrap()["summary"].clone()
}

#[test]
fn daemons_are_killed_replaced_and_started_again_while_pods_call() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut stages = Vec::new();
    let mut mesh = MeshLab::up(settings("meshtest", dir.path()), |stage| {
        stages.push(stage);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(stages, [Stage::Network, Stage::Pods, Stage::Controller, Stage::Mesh]);
    let many = ["http://web/", "--count", "50", "--new-connection"];
    assert_eq!(call(&mesh, &many)["failures"], 0);
    let agent = mesh.agent("node-b").unwrap().admin().get("/debug/pods").unwrap();
    assert_eq!(agent.body.matches("\"enabled\"").count(), 3, "{}", agent.body);

    // Connections go on without a controller.
    mesh.controller().kill().unwrap();
    assert_eq!(call(&mesh, &many)["failures"], 0);
    mesh.controller().start().unwrap();

    // A tunnel gives way to its successor under load.
    let client = mesh.lab().pod("shop", "client").unwrap();
    let load = ["call", "http://web/", "--duration", "4", "--new-connection", "-q"];
    let load = Program::new(&mesh.settings().binaries.app).args(load);
    let load = client.spawn("load", &load).unwrap();
    let before = mesh.tunnel("node-a").unwrap().pid();
    mesh.replace_tunnel("node-a").unwrap();
    assert_ne!(mesh.tunnel("node-a").unwrap().pid(), before);
    load.wait(LIMIT).unwrap();
    let said = load.said();
    let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(summary["summary"]["failures"], 0, "{said}");
    assert!(summary["summary"]["requests"].as_u64().unwrap() > 100, "{said}");

    // One that is killed and started again serves again.
    mesh.tunnel("node-b").unwrap().restart().unwrap();
    mesh.agent("node-a").unwrap().restart().unwrap();
    mesh.settle(LIMIT).unwrap();
    assert_eq!(call(&mesh, &many)["failures"], 0);
    assert!(mesh.tunnel("node-c").is_err());

    drop(mesh);
    let left = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("amb-meshtest-"));
    assert_eq!(left.count(), 0);
    let files: Vec<_> =
        fs::read_dir(dir.path().join("yaml")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["shop.yaml"]);
}

#[test]
fn whoever_watches_can_end_it() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let up = MeshLab::up(settings("meshstop", dir.path()), |stage| match stage {
        Stage::Network | Stage::Pods => ControlFlow::Continue(()),
        Stage::Controller | Stage::Mesh => ControlFlow::Break(()),
    });
    assert!(matches!(up, Err(MeshError::Interrupted)), "{up:?}");
}
