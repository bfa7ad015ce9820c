//! The plugin's process as a runtime runs it, and an agent that the test plays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a whole crate of test code, of which clippy knows only the functions that bear #[test]"
)]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The configuration as a runtime hands it over, result of the plugins before included.
fn input(socket: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni",
        "agent_socket": socket, "exclude_namespaces": ["kube-system"], "system_namespace": "istio-system",
        "timeout_seconds": 1,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/x"}],
            "ips": [{"interface": 0, "address": "10.0.0.7/24", "gateway": "10.0.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.96.0.10"]},
        },
    })
}

fn run(command: &str, namespace: &str, input: &str) -> Output {
    run_for(command, (namespace, "web"), input)
}

fn run_for(command: &str, (namespace, name): (&str, &str), input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ambit-cni"))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_NETNS", "/var/run/netns/x")
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u1"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// An agent that answers one question with `answer`, and returns the question.
fn agent(socket: &Path, answer: &'static str) -> JoinHandle<String> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut question = String::new();
        let mut bytes = [0; 4096];
        while !question.ends_with('}') {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0, "cut short: {question}");
            question.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        stream.write_all(answer.as_bytes()).unwrap();
        question
    })
}

#[test]
fn a_pod_that_is_captured_starts_with_the_network_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let agent = agent(&socket, "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"captured\":true}");
    let input = input(&socket);
    let output = run("ADD", "shop", &input.to_string());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said(&output), input["prevResult"]);
    let question = agent.join().unwrap();
    assert!(question.starts_with("POST /cmdadd HTTP/1.1\r\n"), "{question}");
    let body: Value = serde_json::from_str(question.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        body,
        json!({
            "Netns": "/var/run/netns/x", "PodName": "web", "PodNamespace": "shop", "PodUID": "u1",
            "IPs": [{"Interface": 0, "Address": {"IP": "10.0.0.7", "Mask": "////AA=="}}],
        })
    );
}

#[test]
fn a_pod_that_cannot_be_captured_does_not_start_and_kubelet_is_told_why() {
    for (answer, why) in [
        (
            "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 34\r\n\r\n{\"error\":\"no tunnel is connected\"}",
            "no tunnel is connected",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 32\r\n\r\n{\"error\":\"no such pod is known\"}",
            "no such pod",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"captured\":true}", "cut short"),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "not the agent"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        ("", "cut short"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let agent = agent(&socket, answer);
        let output = run("ADD", "shop", &input(&socket).to_string());
        agent.join().unwrap();
        let said = said(&output);
        assert!(!output.status.success());
        assert_eq!((&said["code"], &said["cniVersion"]), (&json!(11), &json!("1.0.0")));
        assert!(said["msg"].as_str().unwrap().contains(why), "{answer:?}: {said}");
    }
}

#[test]
fn an_agent_that_is_silent_or_away_holds_up_nobody_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let begun = Instant::now();
    let output = run("ADD", "shop", &input(&socket).to_string());
    assert!(!output.status.success());
    assert!(said(&output)["msg"].as_str().unwrap().contains("no answer within 1s"), "{output:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(10));

    let away = input(&dir.path().join("none.sock"));
    assert!(!run("ADD", "shop", &away.to_string()).status.success());
    assert!(!run("ADD", "istio-system", &away.to_string()).status.success());
    for pod in [("istio-system", "ztunnel-x7k2p"), ("kube-system", "web")] {
        let output = run_for("ADD", pod, &away.to_string());
        assert!(output.status.success(), "{pod:?}: without it there might never be an agent: {output:?}");
        assert_eq!(said(&output), away["prevResult"]);
    }
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let output = run(command, "shop", &away.to_string());
        assert!(output.status.success() && output.stdout.is_empty(), "{command}: {output:?}");
    }
    assert!(said(&run("VERSION", "shop", "{\"cniVersion\":\"1.0.0\"}"))["supportedVersions"].is_array());
}
