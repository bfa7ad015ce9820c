//! The command itself, where it needs neither a mesh nor a cluster: what it prints, and how it ends.

#![expect(clippy::unwrap_used, reason = "clippy exempts only functions marked #[test], not their helpers")]

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/shop");

/// A command that knows no cluster and no playground.
fn ambit(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.env("AMBIT_PLAYGROUND", "nosuchplayground");
    command
}

fn run(args: &[&str]) -> Output {
    ambit(Path::new(env!("CARGO_BIN_EXE_ambit")), args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_version_of_the_client_needs_nobody() {
    let version = run(&["version", "--client"]);
    assert!(version.status.success(), "{version:?}");
    assert_eq!(text(&version.stdout), format!("client: {}\n", env!("CARGO_PKG_VERSION")));
    let json: Value = serde_json::from_slice(&run(&["version", "--client", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["client"], env!("CARGO_PKG_VERSION"));
    // Without anybody to ask it still says its own, and why it says no more.
    let all = run(&["version"]);
    assert_eq!(all.status.code(), Some(1), "{all:?}");
    assert!(text(&all.stdout).starts_with("client: "), "{all:?}");
    let said = text(&all.stderr);
    assert!(said.contains("is not up") && said.contains("--kubeconfig"), "{said}");
}

#[test]
fn a_debug_token_needs_a_controller_that_signs_it() {
    let asked = run(&["waypoint", "token", "-n", "shop", "--controller", "127.0.0.1:1"]);
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(asked.stdout.is_empty(), "{asked:?}");
    let said = text(&asked.stderr);
    assert!(said.contains("no debug token was signed") && said.contains("does the daemon run?"), "{said}");
    assert!(text(&run(&["waypoint", "token", "--help"]).stdout).contains("x-ambit-debug"));
}

#[test]
fn every_shell_gets_a_completion_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completion", shell]);
        assert!(script.status.success(), "{script:?}");
        let script = text(&script.stdout);
        for command in ["namespace", "analyze", "bug-report", "tunnel-config"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(run(&["completion", "tcsh"]).status.code(), Some(2));
}

#[test]
fn as_a_plugin_of_kubectl_it_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-ambit");
    symlink(env!("CARGO_BIN_EXE_ambit"), &plugin).unwrap();
    let help = text(&ambit(&plugin, &["namespace", "add", "--help"]).output().unwrap().stdout);
    assert!(help.contains("Usage: kubectl ambit namespace add"), "{help}");
    let wrong = ambit(&plugin, &["nothing"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("Usage: kubectl ambit"), "{wrong:?}");
    let plain = text(&run(&["namespace", "--help"]).stdout);
    assert!(plain.contains("Usage: ambit namespace"), "{plain}");
}

#[test]
fn mistakes_in_files_are_told_with_file_line_field_and_remedy() {
    let file = format!("{EXAMPLES}/mistakes.yaml");
    let analyzed = run(&["analyze", "-f", &file]);
    assert_eq!(analyzed.status.code(), Some(1), "{analyzed:?}");
    let said = text(&analyzed.stdout);
    for part in [
        "mistakes.yaml:1: AuthorizationPolicy shop/ports: spec.rules[0].to[0].operation.ports[0]: \"http\" is not a port",
        "mistakes.yaml:10: PeerAuthentication other/typo: spec.mtsl",
        "is not valid YAML",
        "write a number from 1 to 65535",
        "objects of the mesh: 2, errors: 3, warnings: 0",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    // Only one namespace; what could not be read may be of any.
    let json = run(&["analyze", "-f", &file, "--namespace", "other", "-o", "json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["errors"], json["findings"].as_array().unwrap().len()), (&2.into(), 2), "{json}");
}

#[test]
fn a_directory_is_read_whole_and_warnings_fail_only_if_asked() {
    let whole = run(&["analyze", "-f", EXAMPLES, "-o", "json"]);
    let json: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(
        (&json["objects"], &json["errors"], &json["warnings"]),
        (&4.into(), &3.into(), &1.into()),
        "{json}"
    );
    let file = format!("{EXAMPLES}/policies.yaml");
    let fine = run(&["analyze", "-f", &file]);
    assert!(fine.status.success(), "{fine:?}");
    assert!(text(&fine.stdout).contains("tunnels do not see paths"), "{fine:?}");
    assert_eq!(run(&["analyze", "-f", &file, "--fail-on", "warning"]).status.code(), Some(1));
    // With Istio's meaning of such a rule, the warning says that it denies nothing.
    let upstream = text(&run(&["analyze", "-f", &file, "--l7-deny", "upstream"]).stdout);
    assert!(upstream.contains("denies nothing"), "{upstream}");
}

#[test]
fn standard_input_is_a_file_too_and_a_file_that_is_not_there_is_told() {
    let mut child = ambit(Path::new(env!("CARGO_BIN_EXE_ambit")), &["analyze", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: web}\n";
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("-:1: Sidecar default/web"), "{output:?}");
    let missing = run(&["analyze", "-f", "/nonexistent/x.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nonexistent/x.yaml"), "{missing:?}");
}

#[test]
fn without_a_cluster_every_command_says_how_to_name_one() {
    for args in [
        &["namespace", "list"][..],
        &["namespace", "add", "shop"],
        &["check"],
        &["check", "--pre"],
        &["analyze"],
        &["bug-report"],
        &["ca", "status"],
        &["ca", "rotate", "--yes"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains("--kubeconfig"), "{args:?}: {output:?}");
    }
}
