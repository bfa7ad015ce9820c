//! A mesh of one pod, its agent, and a tunnel that the test plays.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ambit_api::directory::Directory;
use ambit_runtime::task::{self, Task};
use ambit_wire::zds::{PodInfo, Request, Session};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::time::timeout;

use crate::place::{Place, SOON};

/// A mesh of one pod on one node, and the agent of that node.
pub(crate) struct Mesh {
    pub(crate) place: Place,
    pub(crate) dir: tempfile::TempDir,
    agent: Option<Child>,
}

impl Mesh {
    pub(crate) fn make() -> Self {
        let mesh = Self { place: Place::make(), dir: tempfile::tempdir().unwrap(), agent: None };
        fs::create_dir(mesh.source()).unwrap();
        mesh.label(None);
        mesh.write_pod("u1", &mesh.place.path());
        mesh
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.dir.path().join("mesh")
    }

    pub(crate) fn label(&self, mode: Option<&str>) {
        let labels =
            mode.map_or(String::new(), |mode| format!(", labels: {{istio.io/dataplane-mode: {mode}}}"));
        self.put(
            "shop.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{labels}}}\n"),
        );
    }

    pub(crate) fn write_pod(&self, uid: &str, netns: &Path) {
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
    pub(crate) fn write_unborn(&self, uid: &str) {
        self.put(
            "web.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, uid: {uid}}}\n\
                 spec: {{nodeName: n1, serviceAccountName: seller, containers: []}}\nstatus: {{phase: Pending}}\n"
            ),
        );
    }

    /// Runs the plugin as a runtime does that has just made the pod's network.
    pub(crate) fn announce(&self, uid: &str) -> Child {
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

    pub(crate) fn plugin_socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn start_with_plugin(&mut self, flags: &[&str]) {
        let socket = self.plugin_socket().display().to_string();
        self.start(&[&["--plugin-socket", &socket], flags].concat());
    }

    pub(crate) fn put(&self, name: &str, text: &str) {
        let hidden = self.source().join(format!(".{name}"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.source().join(name)).unwrap();
    }

    /// Starts the agent in the node's namespace.
    pub(crate) fn start(&mut self, flags: &[&str]) {
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

    pub(crate) fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(agent.wait().unwrap().success());
    }

    pub(crate) async fn tunnel(&self) -> Session {
        timeout(SOON, Session::connect(&self.dir.path().join("z.sock"))).await.unwrap().unwrap()
    }

    /// Waits for something that is bound to happen.
    pub(crate) fn until(&self, what: &str, happened: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !happened(self) {
            assert!(Instant::now() < end, "never: {what}; pods: {:?}", self.page("/debug/pods"));
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    pub(crate) fn page(&self, path: &str) -> Option<String> {
        let mut socket = UnixStream::connect(self.dir.path().join("admin.sock")).ok()?;
        socket.set_read_timeout(Some(SOON)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        let page = self.page(path).unwrap();
        serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// How many of the pod's connections are not in the mesh.
    pub(crate) fn outside(&self) -> Option<u64> {
        self.json("/debug/pods")[0]["connections_outside"].as_u64()
    }

    pub(crate) fn state(&self) -> (String, String) {
        let pods = self.json("/debug/pods");
        let text = |field: &str| pods[0][field].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    pub(crate) fn annotation(&self) -> Option<String> {
        let loaded = Directory::open(self.source()).unwrap().load().unwrap();
        let pod = loaded.objects.iter().find(|object| object.kind == "Pod")?;
        let value = &pod.value["metadata"]["annotations"]["ambient.istio.io/redirection"];
        value.as_str().map(str::to_owned)
    }

    pub(crate) fn wait_for_annotation(&self, value: Option<&str>) {
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

pub(crate) async fn hear(session: &mut Session) -> Request<OwnedFd> {
    timeout(Duration::from_secs(10), session.next()).await.unwrap().unwrap()
}

pub(crate) fn is_add(request: &Request<OwnedFd>, uid: &str, netns: &Path) -> bool {
    let Request::Add { uid: of, info, netns: descriptor } = request else { return false };
    let who = PodInfo { name: "web".into(), namespace: "shop".into(), service_account: "seller".into() };
    let inode = fs::metadata(netns).unwrap().ino();
    let got = fs::File::from(descriptor.try_clone().unwrap()).metadata().unwrap().ino();
    of == uid && *info == who && got == inode
}

/// A tunnel that says "done" to everything, and what it was asked: `add u1`, `del u1`, …
#[derive(Clone, Default)]
pub(crate) struct Played(Arc<Mutex<Vec<String>>>);

impl Played {
    /// Plays until the agent ends the session.
    pub(crate) fn start(mut session: Session) -> (Self, Task) {
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

    pub(crate) fn was_asked(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|asked| asked == what)
    }
}

/// Answers everything of the snapshot with "done"; how many pods were in it.
pub(crate) async fn snapshot(session: &mut Session) -> usize {
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
