//! The binary: how it starts, refuses to start, and ends.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
};

use crate::setup::*;

/// A process that does not outlive its test.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mesh: &Mesh, more: &[&str]) -> Process {
    let flags = mesh.flags(0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_controller"));
    command.args(&flags[1..]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    Process(command.spawn().unwrap())
}

#[test]
fn it_logs_that_it_is_ready_and_ends_well_when_told() {
    let mesh = Mesh::new();
    let mut process = start(&mesh, &["--log-format=json"]);
    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("Controller is ready")));
    output("kill", &["-TERM", &process.0.id().to_string()]);
    assert!(lines.any(|line| line.unwrap().contains("Controller ended")));
    assert!(process.0.wait().unwrap().success());
}

#[test]
fn what_it_cannot_start_with_it_names_with_the_remedy() {
    let refuses = |mesh: &Mesh, more: &[&str]| {
        let mut process = start(mesh, more);
        let mut text = String::new();
        process.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(!process.0.wait().unwrap().success(), "{text}");
        text
    };
    let mesh = Mesh::new();
    let text = refuses(&mesh, &["--max-workload-ttl=1h"]);
    assert!(text.contains("--default-workload-ttl"), "{text}");
    let text = refuses(&mesh, &["--drain-deadline=soon"]);
    assert!(text.contains("500ms"), "{text}");
    fs::create_dir_all(mesh.path("ca")).unwrap();
    fs::write(mesh.path("ca/self-signed.pem"), "garbage").unwrap();
    let text = refuses(&mesh, &[]);
    assert!(text.contains("self-signed.pem") && text.contains("backup"), "{text}");
    fs::remove_file(mesh.path("ca/self-signed.pem")).unwrap();
    fs::remove_dir_all(mesh.path("tokens")).unwrap();
    let text = refuses(&mesh, &[]);
    assert!(text.contains("tokens") && text.contains("make the directory"), "{text}");
    fs::create_dir_all(mesh.path("tokens")).unwrap();
    fs::remove_dir_all(mesh.path("mesh")).unwrap();
    let text = refuses(&mesh, &[]);
    assert!(text.contains("create it"), "{text}");
}
