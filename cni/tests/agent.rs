//! The agent's process from end to end: a directory, a pod, and a tunnel that the test plays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a whole crate of test code, of which clippy knows only the functions that bear #[test]"
)]

mod place;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ambit_api::directory::Directory;
use ambit_cni::redirect::rules::{PROBE_V4, PROBE_V6};
use ambit_runtime::task::{self, Ended, Task};
use ambit_wire::zds::{PodInfo, Request, Session};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use place::{Place, SOON, allowed, any, dial, exchange, families, listen, original};
use serde_json::Value;
use tokio::time::timeout;

/// A mesh of one pod on one node, and the agent of that node.
struct Mesh {
    place: Place,
    dir: tempfile::TempDir,
    agent: Option<Child>,
}

impl Mesh {
    fn make() -> Self {
        let mesh = Self { place: Place::make(), dir: tempfile::tempdir().unwrap(), agent: None };
        fs::create_dir(mesh.source()).unwrap();
        mesh.label(None);
        mesh.write_pod("u1", &mesh.place.path());
        mesh
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("mesh")
    }

    fn label(&self, mode: Option<&str>) {
        let labels =
            mode.map_or(String::new(), |mode| format!(", labels: {{istio.io/dataplane-mode: {mode}}}"));
        self.put(
            "shop.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{labels}}}\n"),
        );
    }

    fn write_pod(&self, uid: &str, netns: &Path) {
        let netns = netns.display();
        self.put(
            "web.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: web, namespace: shop, uid: {uid}, annotations: {{ambit.io/netns: {netns}}}}}\n\
                 spec: {{nodeName: n1, serviceAccountName: seller, containers: []}}\n\
                 status: {{phase: Running, podIP: 10.99.0.2, podIPs: [{{ip: 10.99.0.2}}, {{ip: 'fd99::2'}}]}}\n"
            ),
        );
    }

    /// The pod before its network is made.
    fn write_unborn(&self, uid: &str) {
        self.put(
            "web.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, uid: {uid}}}\n\
                 spec: {{nodeName: n1, serviceAccountName: seller, containers: []}}\nstatus: {{phase: Pending}}\n"
            ),
        );
    }

    /// Runs the plugin as a runtime does that has just made the pod's network.
    fn announce(&self, uid: &str) -> Child {
        let input = serde_json::json!({
            "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni", "agent_socket": self.plugin_socket(),
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.99.0.2/24"}, {"address": "fd99::2/64"}]},
        });
        let mut plugin = Command::new(env!("CARGO_BIN_EXE_ambit-cni"))
            .env("CNI_COMMAND", "ADD")
            .env("CNI_NETNS", self.place.path())
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID={uid}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        write!(plugin.stdin.take().unwrap(), "{input}").unwrap();
        plugin
    }

    fn plugin_socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn start_with_plugin(&mut self, flags: &[&str]) {
        let socket = self.plugin_socket().display().to_string();
        self.start(&[&["--plugin-socket", &socket], flags].concat());
    }

    fn put(&self, name: &str, text: &str) {
        let hidden = self.source().join(format!(".{name}"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.source().join(name)).unwrap();
    }

    /// Starts the agent in the node's namespace.
    fn start(&mut self, flags: &[&str]) {
        let source = format!("directory:{}", self.source().display());
        let admin = format!("unix:{}", self.dir.path().join("admin.sock").display());
        let child = Command::new("ip")
            .args(["netns", "exec", &self.place.node, env!("CARGO_BIN_EXE_ambit-cni-agent")])
            .args(["--source", &source, "--node", "n1", "--admin", &admin])
            .args(["--zds-socket", &self.dir.path().join("z.sock").display().to_string()])
            .args(flags)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.agent = Some(child);
        self.until("the agent is ready", |mesh| {
            mesh.page("/readyz").is_some_and(|page| page.contains("200 OK"))
        });
    }

    fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(agent.wait().unwrap().success());
    }

    async fn tunnel(&self) -> Session {
        timeout(SOON, Session::connect(&self.dir.path().join("z.sock"))).await.unwrap().unwrap()
    }

    /// Waits for something that is bound to happen.
    fn until(&self, what: &str, happened: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !happened(self) {
            assert!(Instant::now() < end, "never: {what}; pods: {:?}", self.page("/debug/pods"));
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn page(&self, path: &str) -> Option<String> {
        let mut socket = UnixStream::connect(self.dir.path().join("admin.sock")).ok()?;
        socket.set_read_timeout(Some(SOON)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn json(&self, path: &str) -> Value {
        let page = self.page(path).unwrap();
        serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// How many of the pod's connections are not in the mesh.
    fn outside(&self) -> Option<u64> {
        self.json("/debug/pods")[0]["connections_outside"].as_u64()
    }

    fn state(&self) -> (String, String) {
        let pods = self.json("/debug/pods");
        let text = |field: &str| pods[0][field].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    fn annotation(&self) -> Option<String> {
        let loaded = Directory::open(self.source()).unwrap().load().unwrap();
        let pod = loaded.objects.iter().find(|object| object.kind == "Pod")?;
        let value = &pod.value["metadata"]["annotations"]["ambient.istio.io/redirection"];
        value.as_str().map(str::to_owned)
    }

    fn wait_for_annotation(&self, value: Option<&str>) {
        self.until(&format!("annotation {value:?}"), |mesh| mesh.annotation().as_deref() == value);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

async fn hear(session: &mut Session) -> Request<OwnedFd> {
    timeout(Duration::from_secs(10), session.next()).await.unwrap().unwrap()
}

fn is_add(request: &Request<OwnedFd>, uid: &str, netns: &Path) -> bool {
    let Request::Add { uid: of, info, netns: descriptor } = request else { return false };
    let who = PodInfo { name: "web".into(), namespace: "shop".into(), service_account: "seller".into() };
    let inode = fs::metadata(netns).unwrap().ino();
    let got = fs::File::from(descriptor.try_clone().unwrap()).metadata().unwrap().ino();
    of == uid && *info == who && got == inode
}

/// A tunnel that says "done" to everything, and what it was asked: `add u1`, `del u1`, …
#[derive(Clone, Default)]
struct Played(Arc<Mutex<Vec<String>>>);

impl Played {
    /// Plays until the agent ends the session.
    fn start(mut session: Session) -> (Self, Task) {
        let played = Self::default();
        let asked = played.clone();
        let task = task::spawn("tunnel", async move {
            while let Ok(request) = session.next().await {
                asked.0.lock().unwrap().push(match &request {
                    Request::Add { uid, .. } => format!("add {uid}"),
                    Request::Keep { uid } => format!("keep {uid}"),
                    Request::Del { uid } => format!("del {uid}"),
                    Request::SnapshotSent => "sent".to_owned(),
                });
                if session.ack(Ok(())).await.is_err() {
                    return;
                }
            }
        });
        (played, task)
    }

    fn was_asked(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|asked| asked == what)
    }
}

/// Answers everything of the snapshot with "done"; how many pods were in it.
async fn snapshot(session: &mut Session) -> usize {
    let mut pods = 0;
    loop {
        let request = hear(session).await;
        session.ack(Ok(())).await.unwrap();
        match request {
            Request::SnapshotSent => return pods,
            Request::Add { .. } | Request::Keep { .. } => pods += 1,
            Request::Del { .. } => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_enrols_a_running_pod_and_its_removal_lets_it_go() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.start(&["--probes", "off"]);
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 0);
    let (state, reason) = mesh.state();
    assert_eq!(state, "outside");
    assert!(reason.contains("istio.io/dataplane-mode=ambient"), "{reason}");
    assert!(mesh.place.is_clean());

    mesh.label(Some("ambient"));
    let request = hear(&mut tunnel).await;
    assert!(is_add(&request, "u1", &mesh.place.path()), "{request:?}");
    assert_eq!(mesh.annotation(), None, "peers are told when the tunnel is there, not before");
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    let [families, _] = families();
    mesh.place.in_pod(|| {
        let outbound = listen(any(families.pod, 15001));
        let mut client = dial(SocketAddr::new(families.node, 80));
        let mut server = outbound.accept();
        assert_eq!(original(&server), SocketAddr::new(families.node, 80));
        exchange(&mut client, &mut server);
    });
    let metrics = mesh.page("/metrics").unwrap();
    for line in [
        "ambit_agent_pods{state=\"enabled\"} 1",
        "ambit_agent_tunnels_connected 1",
        "ambit_agent_pods_enrolled_total 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    mesh.label(None);
    assert!(matches!(hear(&mut tunnel).await, Request::Del { uid } if uid == "u1"));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(None);
    mesh.until("the pod is clean", |mesh| mesh.place.is_clean());

    // And back again; out and in at once, while the rules of the farewell are still there (protocols 12, line 40).
    mesh.label(Some("ambient"));
    assert!(is_add(&hear(&mut tunnel).await, "u1", &mesh.place.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    mesh.label(None);
    assert!(matches!(hear(&mut tunnel).await, Request::Del { uid } if uid == "u1"));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.label(Some("ambient"));
    assert!(is_add(&hear(&mut tunnel).await, "u1", &mesh.place.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    let since = Instant::now();
    mesh.until("the farewell is over", |_| since.elapsed() > Duration::from_millis(800));
    mesh.place.in_pod(|| {
        let outbound = listen(any(families.pod, 15001));
        let mut client = dial(SocketAddr::new(families.node, 80));
        exchange(&mut client, &mut outbound.accept());
    });
}

/// What the plugin says, and whether the pod may start.
fn outcome(plugin: Child) -> (bool, String) {
    let output = plugin.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_starts_when_it_is_captured_and_not_before() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.write_unborn("u1");
    mesh.start_with_plugin(&["--probes", "0"]);
    let mode = fs::metadata(mesh.plugin_socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "only root may have pods enrolled");
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 0, "a pod without a network is nothing to tell a tunnel of");
    assert_eq!(mesh.annotation(), None);

    let mut plugin = mesh.announce("u1");
    let request = hear(&mut tunnel).await;
    assert!(is_add(&request, "u1", &mesh.place.path()), "{request:?}");
    assert!(plugin.try_wait().unwrap().is_none(), "the pod waits for the tunnel");
    assert!(!mesh.place.is_clean(), "its rules are in force by then");
    tunnel.ack(Ok(())).await.unwrap();
    let (started, said) = outcome(plugin);
    assert!(started && said.contains("10.99.0.2/24"), "{said}");
    mesh.wait_for_annotation(Some("enabled"));
    let probes = mesh.place.in_node(|| place::run("nft", &["list", "table", "inet", "ambit-probes"]));
    assert!(probes.contains("10.99.0.2 comment \"u1\""), "{probes}");

    // What is seen of it later changes nothing, and neither does a runtime that says it twice.
    mesh.put(
        "web.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u1}\n\
         spec: {nodeName: n1, serviceAccountName: seller, containers: []}\n\
         status: {phase: Running, podIP: 10.99.0.2, podIPs: [{ip: 10.99.0.2}, {ip: 'fd99::2'}]}\n",
    );
    let (again, said) = outcome(mesh.announce("u1"));
    assert!(again, "{said}");
    assert!(timeout(Duration::from_millis(500), tunnel.next()).await.is_err(), "the tunnel knows it already");
    mesh.until("counted", |mesh| {
        mesh.page("/metrics")
            .is_some_and(|page| page.contains("ambit_agent_arrivals_total{outcome=\"captured\"} 2"))
    });

    mesh.label(None);
    assert!(matches!(hear(&mut tunnel).await, Request::Del { uid } if uid == "u1"));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.until("the pod is clean", |mesh| mesh.place.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tunnel_no_pod_of_the_mesh_starts_and_nothing_is_left_of_the_try() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.write_unborn("u1");
    mesh.start_with_plugin(&["--probes", "off"]);
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(!started && said.contains("is ztunnel running"), "{said}");
    assert!(mesh.place.is_clean());
    assert_eq!(mesh.annotation(), None);
    mesh.until("waited for again", |mesh| mesh.state().1.contains("no network yet"));

    // One that refuses is as good as none.
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 0);
    let plugin = mesh.announce("u1");
    let waiting = std::thread::spawn(move || outcome(plugin));
    while !waiting.is_finished() {
        if let Ok(Ok(request)) = timeout(Duration::from_millis(50), tunnel.next()).await {
            let answer = if matches!(request, Request::Add { .. }) { Err("no room".into()) } else { Ok(()) };
            tunnel.ack(answer).await.unwrap();
        }
    }
    let (started, said) = waiting.join().unwrap();
    assert!(!started && said.contains("no room"), "{said}");
    assert!(mesh.place.is_clean());

    let (asked, _session) = Played::start(tunnel);
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(started, "{said}");
    assert!(asked.was_asked("add u1"));
    mesh.wait_for_annotation(Some("enabled"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_belong_starts_and_whoever_is_not_known_does_not() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.write_unborn("u1");
    mesh.start_with_plugin(&["--probes", "off"]);
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(started, "{said}");
    assert!(mesh.place.is_clean());
    let (started, said) = outcome(mesh.announce("u2"));
    assert!(!started && said.contains("no such pod"), "{said}");
    mesh.stop();
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(!started && said.contains("ambit-cni-node"), "no agent can tell: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_its_tunnel_and_tries_again_when_refused() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "off"]);
    mesh.wait_for_annotation(Some("pending"));
    mesh.until("a reason", |mesh| mesh.state().1.contains("is ztunnel running"));
    assert!(!mesh.place.is_clean(), "until then its traffic fails closed");

    let mut tunnel = mesh.tunnel().await;
    let request = hear(&mut tunnel).await;
    assert!(is_add(&request, "u1", &mesh.place.path()), "{request:?}");
    tunnel.ack(Ok(())).await.unwrap();
    assert!(matches!(hear(&mut tunnel).await, Request::SnapshotSent));
    tunnel.ack(Ok(())).await.unwrap();
    assert!(matches!(hear(&mut tunnel).await, Request::Add { .. }));
    tunnel.ack(Err("no room".into())).await.unwrap();
    mesh.until("the refusal is shown", |mesh| {
        mesh.state() == ("pending".into(), "the tunnel refused the pod: no room".into())
    });
    assert_eq!(mesh.annotation().as_deref(), Some("pending"));
    assert!(matches!(hear(&mut tunnel).await, Request::Add { .. }));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_replaced_leaves_no_gap() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "off"]);
    let (asked, session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    let [families, _] = families();
    let (outbound, mut open) = mesh.place.in_pod(|| {
        let outbound = listen(any(families.pod, 15001));
        let client = dial(SocketAddr::new(families.node, 80));
        let server = outbound.accept();
        (outbound, (client, server))
    });

    mesh.stop();
    assert_eq!(session.await, Ended::Finished);
    assert!(!asked.was_asked("del u1"), "an agent that ends takes nobody out");
    assert!(!mesh.place.is_clean());
    assert_eq!(mesh.annotation().as_deref(), Some("enabled"));
    exchange(&mut open.0, &mut open.1);

    mesh.start(&["--probes", "off"]);
    assert_eq!(mesh.annotation().as_deref(), Some("enabled"), "peers go on meanwhile");
    exchange(&mut open.0, &mut open.1);
    let mut new = (mesh.place.in_pod(|| dial(SocketAddr::new(families.node, 80))), outbound.accept());
    exchange(&mut new.0, &mut new.1);
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 1, "the list is whole before a tunnel hears it");
    let (_, session) = Played::start(tunnel);
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    mesh.stop();
    assert_eq!(session.await, Ended::Finished);

    // While the agent was away, someone decided against the mesh.
    mesh.label(None);
    mesh.start(&["--probes", "off"]);
    mesh.wait_for_annotation(None);
    mesh.until("what was left is cleaned up", |mesh| mesh.place.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_older_than_the_capture_are_counted_until_they_end() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.start(&["--probes", "off"]);
    let (_, session) = Played::start(mesh.tunnel().await);
    let [v4, v6] = families();
    let (node, pod) = (SocketAddr::new(v4.node, 80), SocketAddr::new(v6.pod, 80));
    let loopback: SocketAddr = ([127, 0, 0, 1], 80).into();
    let connect = |server: place::Listening, client: TcpStream| (client, server.accept());
    let mut outgoing =
        connect(mesh.place.in_node(|| listen(any(v4.node, 80))), mesh.place.in_pod(|| dial(node)));
    let incoming = connect(mesh.place.in_pod(|| listen(any(v6.pod, 80))), mesh.place.in_node(|| dial(pod)));
    let inner = mesh.place.in_pod(|| connect(listen(any(v4.pod, 80)), dial(loopback)));
    assert_eq!(mesh.outside(), None, "nobody counts in a pod that is not captured");

    mesh.label(Some("ambient"));
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    assert_eq!(mesh.outside(), Some(2));
    let mut captured = mesh.place.in_pod(|| connect(listen(any(v4.pod, 15001)), dial(node)));
    exchange(&mut captured.0, &mut captured.1);
    exchange(&mut outgoing.0, &mut outgoing.1);
    assert_eq!(mesh.outside(), Some(2), "who came later is not counted");
    drop(incoming);
    mesh.until("one has ended", |mesh| mesh.outside() == Some(1));

    mesh.stop();
    assert_eq!(session.await, Ended::Finished);
    mesh.start(&["--probes", "off"]);
    let (_, _session) = Played::start(mesh.tunnel().await);
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    assert_eq!(mesh.outside(), None, "what a former agent captured cannot be told from what it did not");
    exchange(&mut outgoing.0, &mut outgoing.1);

    // Out and in again: what is connected now is outside, for whatever reason.
    mesh.label(None);
    mesh.until("the pod is clean", |mesh| mesh.place.is_clean());
    drop(captured);
    mesh.label(Some("ambient"));
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    mesh.until("it is counted anew", |mesh| mesh.outside() == Some(1));
    drop((outgoing, inner));
    mesh.until("all have ended", |mesh| mesh.outside() == Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_says_with_which_plugins_pods_start() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    let at = |name: &str| mesh.dir.path().join(name);
    let (bin, conf) = (at("bin"), at("conf"));
    for directory in [&bin, &conf] {
        fs::create_dir(directory).unwrap();
    }
    let net =
        r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
    fs::write(conf.join("10-net.conflist"), net).unwrap();
    let [bin, conf] = [bin, conf].map(|path| path.display().to_string());
    mesh.start_with_plugin(&[
        "--probes",
        "off",
        "--install-plugin",
        "true",
        "--cni-bin-dir",
        &bin,
        "--cni-conf-dir",
        &conf,
    ]);
    let expected = serde_json::json!({
        "directory": conf, "file": "10-net.conflist", "plugins": ["bridge", "portmap", "ambit-cni"], "owned": false,
    });
    assert_eq!(mesh.json("/debug/cni"), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_told_to_clean_up_does() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0", "--cleanup-on-exit"]);
    let (asked, session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    mesh.stop();
    assert_eq!(session.await, Ended::Finished);
    assert!(asked.was_asked("del u1"));
    assert!(mesh.place.is_clean());
    assert_eq!(mesh.annotation(), None);
    assert!(mesh.place.in_node(|| place::run("nft", &["list", "tables"])).trim().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_pod_in_a_new_sandbox_is_enrolled_anew() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "off"]);
    let mut tunnel = mesh.tunnel().await;
    snapshot(&mut tunnel).await;
    assert!(is_add(&hear(&mut tunnel).await, "u1", &mesh.place.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));

    let other = Place::make();
    mesh.write_pod("u1", &other.path());
    assert!(is_add(&hear(&mut tunnel).await, "u1", &other.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    assert!(!other.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_gone_or_finished_is_removed_from_the_tunnel_only() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0"]);
    let (asked, _session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    let probes = || mesh.place.in_node(|| place::run("nft", &["list", "table", "inet", "ambit-probes"]));
    assert!(probes().contains("10.99.0.2 comment \"u1\""));
    // Another pod of the same name, with the same address.
    mesh.write_pod("u2", &mesh.place.path());
    mesh.until("the new one is told and the old one is not any more", |_| {
        asked.was_asked("add u2") && asked.was_asked("del u1")
    });
    mesh.until("its address is its own", |_| probes().contains("10.99.0.2 comment \"u2\""));
    mesh.until("u2 is enrolled", |mesh| mesh.state().0 == "enabled");
    mesh.wait_for_annotation(Some("enabled"));
    fs::remove_file(mesh.source().join("web.yaml")).unwrap();
    mesh.until("the tunnel is told", |_| asked.was_asked("del u2"));
    assert!(!mesh.place.is_clean(), "rules end with their pod's namespace");
    mesh.until("its address is nobody's", |_| !probes().contains("10.99.0.2"));
    mesh.until("nothing is written on it", |mesh| {
        !mesh.source().join("status/agent-n1/Pod.shop.web.yaml").exists()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_probes_reach_the_application_and_other_users_do_not() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0"]);
    let (_, _session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    // Another CNI gives everything the node's address (protocols 12, line 41).
    mesh.place.in_node(|| {
        place::run("nft", &["add table inet other"]);
        let chain = "{ type nat hook postrouting priority srcnat; }";
        place::run("nft", &[&format!("add chain inet other postrouting {chain}")]);
        place::run("nft", &["add rule inet other postrouting masquerade"]);
    });
    for families in families() {
        let (application, captor) =
            mesh.place.in_pod(|| (listen(any(families.pod, 8080)), listen(any(families.pod, 15006))));
        let to = SocketAddr::new(families.pod, 8080);
        let mut probe = mesh.place.in_node(|| dial(to));
        let mut server = application.accept();
        let probes = [IpAddr::from(PROBE_V4), IpAddr::from(PROBE_V6)];
        assert!(probes.contains(&server.peer_addr().unwrap().ip()), "{server:?}");
        exchange(&mut probe, &mut server);
        let script = format!("exec 3<>/dev/tcp/{}/8080", families.pod);
        mesh.place.in_node(|| {
            place::run("setpriv", &["--reuid", "65534", "--clear-groups", "bash", "-c", &script])
        });
        assert_eq!(captor.accept().peer_addr().unwrap().ip(), families.node);
        assert!(application.nobody_came());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_rules_for_probes_are_put_back_when_somebody_changes_them() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0"]);
    let (_, _session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    let table = || mesh.place.in_node(|| place::run("nft", &["list", "table", "inet", "ambit-probes"]));
    for change in ["delete table inet ambit-probes", "flush chain inet ambit-probes postrouting"] {
        mesh.place.in_node(|| place::run("nft", &[change]));
        mesh.until("rules and addresses are there", |mesh| {
            let tables = mesh.place.in_node(|| place::run("nft", &["list", "tables"]));
            tables.contains("ambit-probes")
                && table().contains("10.99.0.2 comment \"u1\"")
                && table().contains("snat ip to 169.254.7.127")
        });
    }
    let counted = |mesh: &Mesh| {
        mesh.page("/metrics").is_some_and(|page| page.contains("ambit_agent_host_rules_repaired_total 2"))
    };
    mesh.until("both are counted", counted);
}
