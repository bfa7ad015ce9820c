//! The agent over the Kubernetes API: a server that the test plays, and processes of pods in real namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a whole crate of test code, of which clippy knows only the functions that bear #[test]"
)]

mod api;
mod place;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::{fs::symlink, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ambit_runtime::task::{self, Task};
use ambit_wire::zds::{Request, Session};
use api::{Api, DAEMONSETS, NAMESPACES, NODES, PODS};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use place::{Place, SOON, allowed};
use serde_json::{Value, json};
use tokio::time::timeout;

const UID: &str = "87a5b680-98b5-4850-8a1c-e5062fbfdcc8";
const REDIRECTION: &str = "ambient.istio.io/redirection";
const NET: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

/// A node with one pod, an API server, and the node's agent.
struct Node {
    place: Place,
    dir: tempfile::TempDir,
    api: Api,
    server: SocketAddr,
    agent: Option<Child>,
    pod: Child,
}

impl Node {
    fn make(api: Api) -> Self {
        let place = Place::make();
        let dir = tempfile::tempdir().unwrap();
        let server = place.in_node(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        fs::write(dir.path().join("kubeconfig"), api::kubeconfig(server)).unwrap();
        for name in ["bin", "conf"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("conf/10-net.conflist"), NET).unwrap();
        let pod = process_of_pod(&place);
        let proc = dir.path().join("proc");
        let shown = proc.join(pod.id().to_string());
        fs::create_dir_all(&shown).unwrap();
        fs::write(shown.join("cgroup"), format!("0::/kubepods/burstable/pod{UID}/4f\n")).unwrap();
        for name in ["ns", "stat"] {
            symlink(format!("/proc/{}/{name}", pod.id()), shown.join(name)).unwrap();
        }
        fs::create_dir_all(proc.join("1/ns")).unwrap();
        symlink("/proc/sys", proc.join("sys")).unwrap();
        symlink(format!("/run/netns/{}", place.node), proc.join("1/ns/net")).unwrap();

        api.put(DAEMONSETS, json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "ambit-cni-node", "namespace": "istio-system"}}));
        api.put(PODS, running_pod());
        let node = Self { place, dir, api, server, agent: None, pod };
        node.label(None);
        node
    }

    fn label(&self, mode: Option<&str>) {
        let labels = mode.map_or(json!({}), |mode| json!({"istio.io/dataplane-mode": mode}));
        self.api.put(
            NAMESPACES,
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "shop", "uid": "ns", "labels": labels}}),
        );
    }

    /// The API server is there from now on.
    fn serve(&self) {
        let listener = self.place.in_node(|| {
            let end = Instant::now() + SOON;
            loop {
                match TcpListener::bind(self.server) {
                    Ok(listener) => return listener,
                    Err(error) => assert!(Instant::now() < end, "{error}"),
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        self.api.serve(listener);
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self, flags: &[&str]) {
        let path = |name: &str| self.at(name).display().to_string();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.place.node, env!("CARGO_BIN_EXE_ambit-cni-agent")])
            .args(["--source", "kubernetes", "--node", "n1"])
            .args(["--admin", &format!("unix:{}", path("admin.sock")), "--zds-socket", &path("z.sock")])
            .args([
                "--health",
                &format!("unix:{}", path("health.sock")),
                "--plugin-socket",
                &path("agent.sock"),
            ])
            .args([
                "--host-proc",
                &path("proc"),
                "--cni-bin-dir",
                &path("bin"),
                "--cni-conf-dir",
                &path("conf"),
            ])
            .args(flags)
            .env("KUBECONFIG", path("kubeconfig"))
            .stdout(fs::File::options().append(true).create(true).open(self.at("agent.log")).unwrap())
            .spawn()
            .unwrap();
        self.agent = Some(child);
        self.until("the agent answers", |node| node.page("/healthz").is_some());
    }

    fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(agent.wait().unwrap().success());
    }

    fn page(&self, path: &str) -> Option<String> {
        let mut socket = UnixStream::connect(self.at("health.sock")).ok()?;
        socket.set_read_timeout(Some(SOON)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn until_ready(&self) {
        self.until("ready", |node| node.page("/readyz").is_some_and(|page| page.contains("200 OK")));
    }

    fn until(&self, what: &str, happened: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !happened(self) {
            assert!(Instant::now() < end, "never: {what}; asked: {:#?}", self.api.asked());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn annotation(&self) -> Value {
        self.api.get(PODS, "web")["metadata"]["annotations"][REDIRECTION].clone()
    }

    async fn tunnel(&self) -> (Asked, Task) {
        let mut session = timeout(SOON, Session::connect(&self.at("z.sock"))).await.unwrap().unwrap();
        let asked = Asked::default();
        let record = asked.clone();
        let task = task::spawn("tunnel", async move {
            while let Ok(request) = session.next().await {
                record.0.lock().unwrap().push(match &request {
                    Request::Add { info, .. } => format!("add {}", info.name),
                    Request::Keep { uid } => format!("keep {uid}"),
                    Request::Del { uid } => format!("del {uid}"),
                    Request::SnapshotSent => "sent".to_owned(),
                });
                if session.ack(Ok(())).await.is_err() {
                    return;
                }
            }
        });
        (asked, task)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.api.end();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.at("agent.log")).unwrap_or_default());
        }
        for child in self.agent.iter_mut().chain([&mut self.pod]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn process_of_pod(place: &Place) -> Child {
    let mut child = Command::new("ip")
        .args(["netns", "exec", &place.pod, "sh", "-c", "echo here; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    child
}

fn pod(name: &str, uid: &str, spec: Value, status: Value) -> Value {
    let mut spec = spec;
    spec["nodeName"] = "n1".into();
    spec["containers"] = json!([]);
    json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": status,
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "annotations": {"other": "stays"}}})
}

fn running_pod() -> Value {
    let status =
        json!({"phase": "Running", "podIP": "10.99.0.2", "podIPs": [{"ip": "10.99.0.2"}, {"ip": "fd99::2"}]});
    pod("web", UID, json!({"serviceAccountName": "seller"}), status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_pod_joins_and_leaves_by_label_whether_or_not_the_api_server_was_there_at_the_start() {
    if !allowed() {
        return;
    }
    for api in [Api::new(), Api::new().without_streamed_lists()] {
        let mut node = Node::make(api);
        node.start(&["--probes", "0"]);
        node.until("it says what it waits for", |node| {
            let page = node.page("/readyz").unwrap();
            page.contains("503")
                && page.contains("the API server's list of pods")
                && page.contains("list of namespaces")
        });
        node.serve();
        node.until_ready();
        let (asked, _session) = node.tunnel().await;
        assert!(node.place.is_clean());

        node.label(Some("ambient"));
        node.until("enabled", |node| node.annotation() == "enabled");
        assert_eq!(node.api.get(PODS, "web")["metadata"]["annotations"]["other"], "stays");
        assert_eq!(asked.all(), ["sent", "add web"]);
        assert!(!node.place.is_clean());
        let migrates = || fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap();
        assert_eq!(node.place.in_pod(migrates).trim(), "1");

        // The API server is away, and comes back having forgotten what was watched.
        node.api.end();
        node.label(None);
        assert!(!node.place.is_clean());
        node.serve();
        node.until("left", |node| node.annotation().is_null() && node.place.is_clean());
        assert_eq!(asked.all(), ["sent", "add web", &format!("del {UID}")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_the_watch_has_not_told_of_is_captured_before_it_starts() {
    if !allowed() {
        return;
    }
    let mut node = Node::make(Api::new());
    node.label(Some("ambient"));
    node.api.put(PODS, pod("web", UID, json!({}), json!({"phase": "Pending"})));
    node.api.hide(Some("web"));
    node.serve();
    node.start(&["--probes", "off"]);
    node.until_ready();
    let (asked, _session) = node.tunnel().await;

    let input = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni", "agent_socket": node.at("agent.sock"),
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.99.0.2/24"}, {"address": "fd99::2/64"}]},
    });
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_ambit-cni"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_NETNS", node.place.path())
        .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID={UID}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    write!(plugin.stdin.take().unwrap(), "{input}").unwrap();
    let output = plugin.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!node.place.is_clean());
    node.until("enabled", |node| node.annotation() == "enabled");
    node.api.hide(None);
    node.api.put(PODS, {
        let mut pod = running_pod();
        pod["metadata"]["annotations"][REDIRECTION] = "enabled".into();
        pod
    });
    // Told of at last, it is the same pod. The Event is about another one that came after it.
    node.api.put(PODS, pod("proxy", "u2", json!({"hostNetwork": true}), json!({"phase": "Running"})));
    node.until("both were seen", |node| {
        node.api.asked().iter().any(|asked| asked.contains("AmbitNotEnrolled"))
    });
    node.api.delete(PODS, "web");
    node.until("gone", |_| asked.all().len() == 3);
    assert_eq!(asked.all(), ["sent", "add web", &format!("del {UID}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_opened_when_pods_can_be_captured_and_put_back_when_the_mesh_is_uninstalled() {
    if !allowed() {
        return;
    }
    let mut node = Node::make(Api::new());
    let taints = json!([{"key": "ambit.io/not-ready", "effect": "NoSchedule"}, {"key": "other", "effect": "NoSchedule"}]);
    node.api.put(
        NODES,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"taints": taints}}),
    );
    node.api.put(PODS, pod("proxy", "u2", json!({"hostNetwork": true}), json!({"phase": "Running"})));
    node.label(Some("ambient"));
    node.serve();
    node.start(&["--probes", "0", "--install-plugin", "true", "--remove-taint", "true"]);
    node.until_ready();
    let conf = |node: &Node| fs::read_to_string(node.at("conf/10-net.conflist")).unwrap();
    assert!(conf(&node).contains("ambit-cni"));
    assert!(node.at("bin/ambit-cni").exists());
    assert_eq!(node.api.get(NODES, "n1")["spec"]["taints"], taints, "no tunnel is there yet");

    let (asked, _session) = node.tunnel().await;
    node.until("the taint is gone", |node| node.api.get(NODES, "n1")["spec"]["taints"] == json!([taints[1]]));
    node.until("enabled", |node| node.annotation() == "enabled");
    node.until("an Event", |node| {
        let is_event = |asked: &String| {
            asked.starts_with("POST /apis/events.k8s.io/v1/namespaces/shop/events")
                && asked.contains("AmbitNotEnrolled")
                && asked.contains("hostNetwork")
                && asked.contains("\"u2\"")
        };
        node.api.asked().iter().filter(|asked| is_event(asked)).count() == 1
    });

    // Its next version comes: everything stays.
    node.stop();
    assert!(conf(&node).contains("ambit-cni") && !node.place.is_clean());
    assert_eq!(node.annotation(), "enabled");
    assert!(!asked.all().contains(&format!("del {UID}")));

    // It was uninstalled: nothing stays.
    node.start(&["--probes", "0", "--install-plugin", "true"]);
    node.until_ready();
    let (asked, _session) = node.tunnel().await;
    node.until("told", |_| asked.all().contains(&"sent".to_owned()));
    node.until("its DaemonSet was seen", |node| {
        node.api.asked().iter().filter(|asked| asked.contains("/daemonsets/ambit-cni-node")).count() >= 3
    });
    node.api.delete(DAEMONSETS, "ambit-cni-node");
    node.stop();
    assert!(!conf(&node).contains("ambit-cni"));
    assert!(!node.at("bin/ambit-cni").exists());
    assert!(node.place.is_clean());
    assert!(node.annotation().is_null());
    assert!(node.place.in_node(|| place::run("nft", &["list", "tables"])).trim().is_empty());
}
