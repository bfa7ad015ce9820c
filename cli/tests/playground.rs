//! The command itself, on a playground of its own: up, used, changed, broken, down; and nothing remains.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A playground that is taken down whatever happens.
struct Playground {
    name: &'static str,
}

impl Playground {
    /// `None`, with a word, for who is not root.
    fn new(name: &'static str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: this test makes network namespaces and must run as root");
            return None;
        }
        let playground = Self { name };
        playground.ambit(&["playground", "down"]);
        Some(playground)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambit"));
        command.args(args).env("AMBIT_PLAYGROUND", self.name).stdin(Stdio::null());
        command
    }

    fn ambit(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.ambit(args);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?}: {}\n{stdout}{stderr}", output.status);
        stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    fn pid(&self, kind: &str, node: &str) -> Option<i32> {
        let state = self.json(&["playground", "status", "-o", "json"]);
        let components = state["components"].as_array().unwrap().iter();
        let mut found = components.filter(|one| one["kind"] == kind && one["node"] == node);
        found.next()?["pid"].as_i64()?.try_into().ok()
    }

    /// The identity that the answering side's tunnel saw, by its access log.
    fn seen_by(&self, node: &str) -> String {
        self.ok(&["playground", "logs", &format!("ztunnel/{node}"), "--tail", "100000"])
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        self.ambit(&["playground", "down"]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `seen` gives something.
fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    let (_never, silent) = mpsc::channel::<()>();
    loop {
        if let Some(found) = seen() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        let _ = silent.recv_timeout(PAUSE);
    }
}

fn namespaces_of(name: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|netns| netns.starts_with(&format!("amb-{name}-"))).collect()
}

#[test]
fn a_playground_is_brought_up_used_changed_broken_and_taken_down() {
    let Some(playground) = Playground::new("clitest") else { return };
    let up = playground.ok(&["playground", "up"]);
    assert!(up.contains("2 nodes, 6 pods"), "{up}");
    assert!(!up.contains('\x1b'), "no colours and no clock in a pipe: {up}");
    let again = playground.ambit(&["playground", "up"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("ambit playground down"));

    // A call in the mesh; the exit status is the command's.
    let call = ["playground", "exec", "shop/client", "--", "curl", "-s", "-m", "10", "http://web/"];
    let answer: Value = playground.json(&call);
    assert!(answer["pod"].as_str().unwrap().starts_with("web-"), "{answer}");
    let false_ = playground.ambit(&["playground", "exec", "shop/client", "--", "sh", "-c", "exit 7"]);
    assert_eq!(false_.status.code(), Some(7));
    until("the call is in an access log, with its identity", || {
        let logs = playground.seen_by("node-a") + &playground.seen_by("node-b");
        let seen = logs.lines().any(|line| {
            line.contains("direction=\"inbound\"")
                && line.contains("spiffe://cluster.local/ns/shop/sa/client")
        });
        seen.then_some(())
    });

    // Everything is in sync, and says so by its exit status.
    let status = playground.json(&["status", "-o", "json"]);
    assert_eq!(status["healthy"], true, "{status}");
    assert_eq!(status["components"].as_array().unwrap().len(), 5);
    let table = playground.ok(&["status"]);
    assert_eq!(table.matches("synced").count(), 2, "{table}");

    // What the tunnels know.
    let workloads = playground.ok(&["tunnel-config", "workload", "node-a", "--namespace", "shop"]);
    assert_eq!(workloads.lines().count(), 6, "{workloads}");
    let certificates = playground.json(&["tunnel-config", "certificate", "-o", "json"]);
    assert_eq!(certificates.as_array().unwrap().len(), 4, "{certificates}");
    let log = playground.ok(&["tunnel-config", "log", "node-a", "--level", "access:debug"]);
    assert!(log.contains("access=debug"), "{log}");
    let nowhere = playground.ambit(&["tunnel-config", "all", "node-z"]);
    assert!(text(&nowhere.stderr).contains("node-a, node-b"), "{nowhere:?}");

    // A policy applied, seen, changed in an editor, deleted.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n# Nobody.\nmetadata: {name: none, namespace: shop}\nspec: {}\n";
    fs::write(&file, policy).unwrap();
    let apply = ["playground", "apply", "-f", file.to_str().unwrap()];
    assert_eq!(playground.ok(&apply), "AuthorizationPolicy shop/none: created\n");
    assert_eq!(playground.ok(&apply), "AuthorizationPolicy shop/none: unchanged\n");
    until("the policy is in force", || (!playground.ambit(&call).status.success()).then_some(()));
    assert!(playground.ok(&["tunnel-config", "policy"]).contains("none"));
    let edited = playground
        .command(&["playground", "edit", "shop/ap/none"])
        .env("EDITOR", "sed -i 's/spec: {}/spec: {rules: [{}]}/'")
        .env_remove("VISUAL")
        .output()
        .unwrap();
    assert_eq!(text(&edited.stdout), "AuthorizationPolicy shop/none: changed\n", "{edited:?}");
    until("everybody is let in again", || playground.ambit(&call).status.success().then_some(()));
    playground.ok(&["playground", "delete", "shop/ap/none"]);

    // A waypoint for the namespace, ready before anything goes through it; and away again.
    let applied = playground.ok(&["waypoint", "apply", "-n", "shop", "--enroll-namespace", "--wait"]);
    assert!(applied.contains("waypoint shop/waypoint is ready"), "{applied}");
    until("the service goes through it", || {
        let status = playground.ok(&["waypoint", "status", "-n", "shop"]);
        status.contains("Service shop/web").then_some(())
    });
    playground.ok(&call);
    // Its requests are explained to whoever has a token of the controller.
    let token = playground.ok(&["waypoint", "token", "-n", "shop", "waypoint", "--for", "1m"]);
    let header = format!("x-ambit-debug: {}", token.trim_end());
    let curl = ["playground", "exec", "shop/client", "--", "curl", "-si", "-H", &header, "http://web/"];
    until("a request that the waypoint explains", || {
        playground.ok(&curl).contains(r#"x-ambit-explanation: {"waypoint":"shop/waypoint""#).then_some(())
    });
    let wrong = playground.ambit(&["waypoint", "token", "-n", "shop", "other"]);
    assert!(text(&wrong.stderr).contains("no waypoint of shop/other"), "{wrong:?}");
    let gone = playground.ok(&["waypoint", "delete", "waypoint", "-n", "shop", "--cleanup"]);
    assert!(gone.contains("Namespace shop names no waypoint any more"), "{gone}");
    until("its pod is gone", || {
        (!playground.ok(&["playground", "status"]).contains("waypoint-1")).then_some(())
    });
    playground.ok(&call);

    // Out of the mesh by a label, and in again, with the same pods.
    let meshed = || playground.ok(&["playground", "status"]).matches("enabled").count();
    assert_eq!(meshed(), 5);
    playground.ok(&["playground", "label", "namespace", "shop", "istio.io/dataplane-mode-"]);
    until("nobody is in the mesh", || (meshed() == 0).then_some(()));
    playground.ok(&call);
    playground.ok(&["playground", "label", "namespace", "shop", "istio.io/dataplane-mode=ambient"]);
    until("everybody is in the mesh", || (meshed() == 5).then_some(()));

    // A tunnel is killed: seen, started again, in sync.
    let tunnel = playground.pid("ztunnel", "node-a").unwrap();
    kill(Pid::from_raw(tunnel), Signal::SIGKILL).unwrap();
    until("another tunnel is in sync", || {
        let other = playground.pid("ztunnel", "node-a").is_some_and(|pid| pid != tunnel);
        (other && playground.ambit(&["status"]).status.success()).then_some(())
    });
    assert!(playground.ok(&["playground", "logs", "supervisor"]).contains("started again in 250ms"));
    playground.ok(&call);

    // A controller that hangs is unreachable, and the exit status says so.
    let controller = Pid::from_raw(playground.pid("controller", "node-a").unwrap());
    kill(controller, Signal::SIGSTOP).unwrap();
    let hung = playground.ambit(&["status"]);
    kill(controller, Signal::SIGCONT).unwrap();
    assert_eq!(hung.status.code(), Some(3), "{hung:?}");
    assert!(text(&hung.stdout).contains("unreachable"));

    playground.ok(&["playground", "down"]);
    assert_eq!(namespaces_of("clitest"), Vec::<String>::new());
    assert!(!Path::new("/run/ambit/clitest").exists());
    let gone = playground.ambit(&["status"]);
    assert!(text(&gone.stderr).contains("ambit playground up"), "{gone:?}");
}

#[test]
fn what_a_killed_supervisor_leaves_is_swept_and_the_users_yaml_stays() {
    let Some(playground) = Playground::new("clicrash") else { return };
    let dir = tempfile::tempdir().unwrap();
    let yaml = dir.path().to_str().unwrap();
    playground.ok(&["playground", "up", "--dir", yaml]);
    let written = fs::read_to_string(dir.path().join("shop.yaml")).unwrap();
    playground.ok(&["waypoint", "apply", "-n", "shop", "--wait"]);
    assert!(dir.path().join("made").exists());
    let state = playground.json(&["playground", "status", "-o", "json"]);
    let supervisor = Pid::from_raw(state["pid"].as_i64().unwrap().try_into().unwrap());
    let tunnel = playground.pid("ztunnel", "node-b").unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    until("its processes die with it", || (!Path::new(&format!("/proc/{tunnel}")).exists()).then_some(()));
    assert!(!namespaces_of("clicrash").is_empty());
    assert!(text(&playground.ambit(&["playground", "status"]).stderr).contains("is not up"));

    let down = playground.ok(&["playground", "down"]);
    assert!(down.contains("removed"), "{down}");
    assert_eq!(namespaces_of("clicrash"), Vec::<String>::new());
    let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["applied.Gateway.shop.waypoint.yaml", "shop.yaml"]);
    assert_eq!(fs::read_to_string(dir.path().join("shop.yaml")).unwrap(), written);
}

#[test]
fn a_playground_in_the_foreground_ends_with_a_signal() {
    let Some(playground) = Playground::new("clifore") else { return };
    let mut child = playground
        .command(&["playground", "up", "--foreground", "--nodes", "1"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    until("it is up", || playground.ambit(&["status"]).status.success().then_some(()));
    kill(pid, Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(namespaces_of("clifore"), Vec::<String>::new());

    // A signal while it is being brought up.
    let mut child =
        playground.command(&["playground", "up", "--foreground"]).stdout(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    until("it has begun", || (!namespaces_of("clifore").is_empty()).then_some(()));
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(namespaces_of("clifore"), Vec::<String>::new());
}
