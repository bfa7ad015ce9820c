//! The mesh on a lab: its handles do what they say, on real processes and packets.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ambit_api::directory::{Directory, ObjectKey};
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

const GATE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec:
  gatewayClassName: ambit-waypoint
  infrastructure: {labels: {team: doors}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// What the lab's application and a shell can be of a waypoint: it says what it was given, and when it is ready.
fn stand_in(dir: &Path, app: &Path) -> PathBuf {
    let file = dir.join("waypoint");
    let script = format!(
        "#!/bin/sh\nset -e\necho token=$(cat \"$AUTH_TOKEN\") account=$SERVICE_ACCOUNT xds=$XDS_ADDRESS
         grep -q CERTIFICATE \"$CA_ROOT_CA\"\nexec {} serve --http 15021\n",
        app.display()
    );
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// The object as the directory has it, overlays and all.
fn object(mesh: &MeshLab, kind: &str, name: &str) -> Option<Value> {
    let loaded = Directory::open(&mesh.settings().directory).unwrap().load().unwrap();
    assert_eq!(loaded.problems, []);
    let key = ObjectKey::new(kind, "shop", name);
    loaded.objects.into_iter().find(|object| object.key() == key).map(|object| object.value)
}

/// Waits until the mesh is so.
fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let (_never, silent) = mpsc::channel::<()>();
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "within {LIMIT:?}: {what} was not seen");
        let _ = silent.recv_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_gateway_is_a_waypoint_as_long_as_it_is_there() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings("meshgate", dir.path());
    settings.binaries.waypoint = stand_in(dir.path(), &settings.binaries.app);
    let gate = settings.directory.join("gate.yaml");
    let made = settings.directory.join("made");
    let mesh = MeshLab::up(settings, |_| ControlFlow::Continue(())).unwrap();
    fs::write(&gate, GATE).unwrap();

    let address =
        || object(&mesh, "Gateway", "gate")?["status"]["addresses"][0]["value"].as_str().map(str::to_owned);
    assert_eq!(until("the address of the Gateway", address), "gate.shop.svc.cluster.local");
    let pod = object(&mesh, "Pod", "gate-1").unwrap();
    assert_eq!(pod["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"], "gate");
    assert_eq!(pod["metadata"]["labels"]["team"], "doors");
    assert!(object(&mesh, "Service", "gate").unwrap()["spec"]["clusterIP"].is_string());
    let waypoint = mesh.lab().pod("shop", "gate-1").unwrap();
    let said = fs::read_to_string(waypoint.log("istio-proxy")).unwrap();
    let token = fs::read_to_string(mesh.settings().state.join("tokens/accounts/shop.gate")).unwrap();
    assert!(said.contains(&format!("token={token} account=gate xds=https://")), "{said}");

    // The address outlives the only instance, and the controller.
    let status = || object(&mesh, "Gateway", "gate").unwrap()["status"].clone();
    let programmed = |status: &Value| status["conditions"][1]["status"].clone();
    assert_eq!(programmed(&status()), "True");
    let program = Program::line(["pkill", "-STOP", "-f", "serve --http 15021"]);
    waypoint.run(&program, LIMIT).unwrap();
    until("that no instance is ready", || (programmed(&status()) == "False").then_some(()));
    assert_eq!(address().as_deref(), Some("gate.shop.svc.cluster.local"));
    waypoint.run(&Program::line(["pkill", "-CONT", "-f", "serve --http 15021"]), LIMIT).unwrap();
    until("that an instance is ready", || (programmed(&status()) == "True").then_some(()));

    fs::remove_file(&gate).unwrap();
    until("the end of the waypoint", || object(&mesh, "Pod", "gate-1").is_none().then_some(()));
    until("the end of its token", || {
        (!mesh.settings().state.join("tokens/accounts/shop.gate").exists()).then_some(())
    });
    assert!(object(&mesh, "Service", "gate").is_none());

    // What is there at the end is taken back.
    fs::write(&gate, GATE).unwrap();
    until("the address of the Gateway", address);
    drop(mesh);
    assert!(!made.exists());
    let files = fs::read_dir(dir.path().join("yaml")).unwrap().map(|file| file.unwrap().file_name());
    let files: BTreeSet<_> = files.collect();
    assert_eq!(files, ["gate.yaml".into(), "shop.yaml".into()].into());
}

#[test]
fn the_waypoint_itself_is_certified_and_calls_go_through_it() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = settings("meshreal", dir.path());
    let yaml = settings.directory.clone();
    let mesh = MeshLab::up(settings, |_| ControlFlow::Continue(())).unwrap();
    fs::write(yaml.join("gate.yaml"), GATE).unwrap();
    until("the address of the Gateway", || {
        object(&mesh, "Gateway", "gate")?["status"]["addresses"][0].as_object().cloned()
    });
    let many = ["http://web/", "--count", "50", "--new-connection"];
    assert_eq!(call(&mesh, &many)["failures"], 0);

    // While calls go on, the service moves to the waypoint and back.
    let client = mesh.lab().pod("shop", "client").unwrap();
    let load = ["call", "http://web/", "--duration", "6", "--new-connection", "-q"];
    let load = client.spawn("load", &Program::new(&mesh.settings().binaries.app).args(load)).unwrap();
    let web = "kind: Service\nmetadata:\n  name: web\n";
    let bound = SHOP.replace(web, &format!("{web}  labels: {{istio.io/use-waypoint: gate}}\n"));
    assert_ne!(bound, SHOP);
    fs::write(yaml.join("shop.yaml"), &bound).unwrap();
    let waypoint = mesh.lab().pod("shop", "gate-1").unwrap();
    let log = waypoint.log("istio-proxy");
    until("a request in the waypoint's log", || {
        fs::read_to_string(&log).unwrap().contains("web.shop").then_some(())
    });
    fs::write(yaml.join("shop.yaml"), SHOP).unwrap();
    load.wait(LIMIT).unwrap();
    let said = load.said();
    let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(summary["summary"]["failures"], 0, "{said}\n{}", fs::read_to_string(&log).unwrap());
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
