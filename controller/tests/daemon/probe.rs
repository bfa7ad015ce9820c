//! The two parts of the probe, as the processes that they are in a pod.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
};

use ambit_controller::probe::Report;

use crate::{process::Process, setup::*};

fn start(args: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_controller"));
    Process(command.arg("probe").args(args).stdout(Stdio::piped()).spawn().unwrap())
}

/// What the client says, and whether it ends well.
fn call(url: &str) -> (Report, bool) {
    let mut client = start(&["call", "--url", url, "--seconds", "0"]);
    let mut said = String::new();
    client.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    (serde_json::from_str(&said).unwrap(), client.0.wait().unwrap().success())
}

#[test]
fn the_client_tells_whether_the_server_answered() {
    let mut server = start(&["serve", "--port", "0"]);
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let said: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let (_, port) = said["listening"].as_str().unwrap().rsplit_once(':').unwrap();

    for host in ["127.0.0.1", "localhost"] {
        let (report, is_well) = call(&format!("http://{host}:{port}/probe"));
        let Report::Answered { first_micros, round_trip_micros, .. } = report else { panic!("{report:?}") };
        assert!(is_well && first_micros > 0 && round_trip_micros > 0);
    }
    // A page that is not the server's could be anybody's.
    let (report, is_well) = call(&format!("http://127.0.0.1:{port}/"));
    assert!(matches!(&report, Report::Unanswered { why, .. } if why.contains("somebody else")), "{report:?}");
    assert!(!is_well);
    let (report, is_well) = call(&format!("http://nobody.invalid:{port}/probe"));
    assert!(matches!(&report, Report::Unresolved { .. }) && !is_well, "{report:?}");

    output("kill", &["-TERM", &server.0.id().to_string()]);
    assert!(server.0.wait().unwrap().success());
    let (report, is_well) = call(&format!("http://127.0.0.1:{port}/probe"));
    assert!(matches!(&report, Report::Unanswered { why, .. } if why.contains("refused")), "{report:?}");
    assert!(!is_well);
}
