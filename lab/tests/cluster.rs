//! A small cluster from a directory: pods, services and names work, what changes is followed, and nothing remains.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ambit_api::directory::Directory;
use ambit_lab::kubelet::Settings;
use ambit_lab::{Kubelet, Lab, Pod, PodName, Program};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const APP: &str = env!("CARGO_BIN_EXE_ambit-lab-app");
const LIMIT: Duration = Duration::from_secs(20);

/// Namespaces need root; a skipped test says so.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test makes network namespaces and must run as root");
    }
    root
}

const SHOP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: ambit/app, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  nodeName: node-a
  containers: [{name: client, command: [sleep, '1000000']}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
";

/// What the client's `call` prints, line by line.
fn call(pod: &Pod, args: &[&str]) -> Vec<Value> {
    let output = pod.run(&Program::new(APP).arg("call").args(args), LIMIT).unwrap();
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answering(lines: &[Value]) -> BTreeSet<String> {
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!(summary["failures"], 0, "{summary}");
    summary["pods"].as_object().unwrap().keys().cloned().collect()
}

fn web() -> BTreeSet<String> {
    ["web-1", "web-2"].map(str::to_owned).into()
}

/// A pod as the directory shows it.
fn shown(dir: &Path, name: &str) -> Option<Value> {
    let loaded = Directory::open(dir).unwrap().load().unwrap();
    assert_eq!(loaded.problems, []);
    let pod = loaded.objects.into_iter().find(|document| document.kind == "Pod" && document.name == name);
    pod.map(|document| document.value)
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

#[test]
fn a_directory_becomes_a_cluster_and_leaves_no_trace() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("shop.yaml"), SHOP).unwrap();
    let lab = Lab::create("cluster").unwrap();
    let begun = Instant::now();
    let kubelet = Kubelet::start(&lab, dir, Settings::new(APP)).unwrap();
    let report = kubelet.settle(LIMIT).unwrap();
    assert_eq!(report.pods.len(), 3);
    eprintln!("settled in {:?}", begun.elapsed());

    // The directory tells what a controller and a node agent need.
    let pod = shown(dir, "web-1").unwrap();
    let running = lab.pod("shop", "web-1").unwrap();
    assert_eq!(pod["spec"]["nodeName"], "node-b");
    assert_eq!(pod["status"]["podIP"], running.ips()[0].to_string());
    assert_eq!(pod["status"]["hostIP"], lab.node("node-b").unwrap().ips()[0].to_string());
    assert_eq!(pod["metadata"]["annotations"]["ambit.io/netns"], running.netns().path().to_str().unwrap());
    let uid = pod["metadata"]["uid"].clone();
    assert_eq!(uid.as_str().unwrap().len(), 36);

    // Pod to pod, both families, across the wire; and it can be read there.
    let client = lab.pod("shop", "client").unwrap();
    for v6 in [false, true] {
        let capture = lab.node("node-a").unwrap().link().capture(&lab.logs().join("wire.pcap")).unwrap();
        let to = running.address(v6, 8080).unwrap();
        let answer = call(&client, &[&format!("http://{to}/secret")]);
        let body: Value = serde_json::from_str(answer[0]["body"].as_str().unwrap()).unwrap();
        assert_eq!((&body["pod"], &body["path"]), (&"web-1".into(), &"/secret".into()));
        let from: SocketAddr = body["client"].as_str().unwrap().parse().unwrap();
        assert_eq!(Some(from.ip()), client.address(v6, 0).map(|address| address.ip()));
        let captured = capture.stop().unwrap();
        assert!(captured.contains("GET /secret"));
        assert_eq!(captured.summary().handshakes, []);
    }

    // By names, in the pod's own domain and in full; a headless name is its pods.
    for name in ["web", "web.shop", "web.shop.svc.cluster.local"] {
        let lines = call(&client, &[&format!("http://{name}/"), "--count", "40", "--new-connection", "-q"]);
        assert_eq!(answering(&lines), web(), "{name}");
    }
    let each = client.exec(["getent", "ahosts", "each"]).unwrap().ok().unwrap();
    let expected: BTreeSet<_> =
        ["web-1", "web-2"].iter().flat_map(|name| lab.pod("shop", name).unwrap().ips().to_vec()).collect();
    let found: BTreeSet<_> =
        each.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(found, expected);
    assert!(!client.exec(["getent", "ahosts", "nothing"]).unwrap().status.success());

    // By each address of the service, from a pod that is its endpoint, and from a node.
    let web_ips = client.exec(["getent", "ahosts", "web"]).unwrap().ok().unwrap();
    let web_ips: BTreeSet<_> = web_ips.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(web_ips.len(), 2);
    for ip in &web_ips {
        let url = if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") };
        let many = [url.as_str(), "--count", "40", "--new-connection", "-q"];
        assert_eq!(answering(&call(&running, &many)), web(), "{ip}");
        let program = Program::new(APP).arg("call").args(many);
        let output = lab.node("node-a").unwrap().run(&program, LIMIT).unwrap().ok().unwrap();
        assert_eq!(answering(&[serde_json::from_str(&output).unwrap()]), web(), "{ip}");
    }

    // A service without endpoints is refused at once, what is nowhere soon.
    for (url, said, within) in
        [("http://idle/", "refused", 500.0), ("http://192.0.2.1/", "o route to host", 4000.0)]
    {
        let answer = call(&client, &[url]);
        let error = answer[0]["error"].as_str().unwrap();
        assert!(error.contains(said), "{url}: {error}");
        assert!(answer[0]["ms"].as_f64().unwrap() < within, "{url}: {}", answer[0]);
    }

    // Bulk bytes arrive as they were sent; a half-closed connection still answers.
    let push =
        Program::new(APP).args(["push", &running.address(true, 9091).unwrap().to_string(), "30000000"]);
    client.run(&push, LIMIT).unwrap().ok().unwrap();
    let pull =
        Program::new(APP).args(["pull", &running.address(false, 9092).unwrap().to_string(), "30000000"]);
    client.run(&pull, LIMIT).unwrap().ok().unwrap();

    // A process that dies is started again in the same pod; a held connection notices.
    let hold = client
        .spawn("hold", &Program::new(APP).args(["hold", &running.address(false, 9090).unwrap().to_string()]))
        .unwrap();
    hold.wait_until_said("\"line\":2", LIMIT).unwrap();
    for pid in running.netns().processes() {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    assert!(!hold.wait(LIMIT).unwrap().success());
    assert!(hold.said().contains("broken"), "{}", hold.said());
    let report = kubelet.settle(LIMIT).unwrap();
    assert_eq!(report.pods[&PodName::new("shop", "web-1")].restarts, 1);
    assert_eq!(shown(dir, "web-1").unwrap()["metadata"]["uid"], uid);

    // A label put on a replica stays, and restarts nothing.
    let file = dir.join("pods/shop.web-1.yaml");
    let labelled = fs::read_to_string(&file)
        .unwrap()
        .replace("app: web", "app: web\n    istio.io/dataplane-mode: ambient");
    fs::write(&file, labelled).unwrap();
    kubelet.settle(LIMIT).unwrap();
    let pod = shown(dir, "web-1").unwrap();
    assert_eq!(
        (&pod["metadata"]["uid"], &pod["metadata"]["labels"]["istio.io/dataplane-mode"]),
        (&uid, &"ambient".into())
    );

    // Fewer replicas: the pod goes, and the service with it.
    fs::write(dir.join("shop.yaml"), SHOP.replace("replicas: 2", "replicas: 1")).unwrap();
    let report = kubelet.settle(LIMIT).unwrap();
    assert_eq!(report.pods.len(), 2);
    assert!(lab.pod("shop", "web-2").is_err());
    assert_eq!(shown(dir, "web-2"), None);
    let lines = call(&client, &["http://web/", "--count", "10", "--new-connection", "-q"]);
    assert_eq!(answering(&lines), ["web-1".to_owned()].into());

    // Another template: another pod of the same name.
    let before = shown(dir, "web-1").unwrap()["metadata"]["uid"].clone();
    fs::write(
        dir.join("shop.yaml"),
        SHOP.replace("image: ambit/app,", "image: ambit/app, env: [{name: X, value: y}],"),
    )
    .unwrap();
    let report = kubelet.settle(LIMIT).unwrap();
    assert_eq!(report.pods.len(), 3);
    assert_ne!(shown(dir, "web-1").unwrap()["metadata"]["uid"], before);

    // A mistake is told, and spoils nothing.
    fs::write(
        dir.join("bad.yaml"),
        "kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {containers: [{name: x, image: nginx}]}\n",
    )
    .unwrap();
    let err = kubelet.settle(Duration::from_millis(500)).unwrap_err().to_string();
    assert!(err.contains("bad.yaml") && err.contains("use the image ambit/app"), "{err}");
    fs::remove_file(dir.join("bad.yaml")).unwrap();
    assert!(kubelet.settle(LIMIT).unwrap().problems.is_empty());

    drop(kubelet);
    assert_eq!(files(dir), ["shop.yaml"]);
    drop(lab);
    for place in ["/run/netns", "/etc/netns"] {
        let left: Vec<_> =
            files(Path::new(place)).into_iter().filter(|name| name.starts_with("amb-cluster-")).collect();
        assert_eq!(left, Vec::<String>::new());
    }
    assert!(!Path::new("/run/ambit-lab/cluster").exists());
}
