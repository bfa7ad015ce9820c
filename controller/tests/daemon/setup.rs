//! A controller on loopback with everything that it needs in a directory of its own, and tunnels that talk to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_controller::{app::Controller, config::Config};
use ambit_model::identity::Identity;
use ambit_runtime::{
    drain::Mode,
    task::{self, Owned},
};
use ambit_wire::{
    ca::{Asking, CaClient},
    cert::{IssueError, Issuer as _, SigningRequest, request::Request},
    channel::{ChannelSettings, ControlPlane, RootSource, TokenSource},
    codec::{ADDRESS, AUTHORIZATION},
    tls::{Compliance, Profile, Versions, revoked::Revocation},
    xds::{Client, ClientMetrics, Handle, Handler, NodeInfo, Rejected, Update, client::ClientState},
};
use clap::Parser as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

/// Bounds every wait of a test; far more than anything takes.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For stopping a controller that has nothing to wait for.
const DEADLINE: Duration = Duration::from_secs(10);

/// The token of a node.
pub(crate) fn token(node: &str) -> String {
    format!("{node}-0123456789abcdef")
}

/// Directories of one mesh, gone with it.
pub(crate) struct Mesh {
    dir: tempfile::TempDir,
}

impl Mesh {
    /// A namespace, two nodes with a token each, a service with a pod on each, and a policy.
    pub(crate) fn new() -> Self {
        let mesh = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(mesh.path("mesh")).unwrap();
        fs::create_dir_all(mesh.path("tokens")).unwrap();
        ["n1", "n2"].into_iter().for_each(|node| mesh.admit(node));
        mesh.write("shop.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}");
        mesh.pod("cart", "10.0.0.1", "n1", "one");
        mesh.pod("pay", "10.0.0.2", "n2", "one");
        mesh.write(
            "web.yaml",
            "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.9.0.1, \
             selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}",
        );
        mesh.policy("{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}");
        mesh
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives a node a token.
    pub(crate) fn admit(&self, node: &str) {
        let path = self.path("tokens").join(node);
        fs::write(&path, token(node)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes a file of objects, in one step.
    pub(crate) fn write(&self, name: &str, yaml: &str) {
        let draft = self.path("draft");
        fs::write(&draft, yaml).unwrap();
        fs::rename(draft, self.path("mesh").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path("mesh").join(name)).unwrap();
    }

    /// A running pod of the service, whose account is called like it.
    pub(crate) fn pod(&self, name: &str, ip: &str, node: &str, version: &str) {
        self.write(
            &format!("{name}.yaml"),
            &format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: {name}-uid, \
                 labels: {{app: web, app.kubernetes.io/version: {version}}}}}, \
                 spec: {{nodeName: {node}, serviceAccountName: {name}}}, \
                 status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}}}"
            ),
        );
    }

    /// The policy, with this rule.
    pub(crate) fn policy(&self, rule: &str) {
        self.write(
            "policy.yaml",
            &format!(
                "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, \
                 metadata: {{name: only-cart, namespace: shop}}, spec: {{action: ALLOW, rules: [{rule}]}}}}"
            ),
        );
    }

    /// The flags of a controller of this mesh that listens on `port`.
    pub(crate) fn flags(&self, port: u16) -> Vec<String> {
        let at = |name: &str| self.path(name).display().to_string();
        vec![
            "controller".to_owned(),
            format!("--source=directory:{}", at("mesh")),
            format!("--tokens={}", at("tokens")),
            format!("--ca-dir={}", at("ca")),
            format!("--root-cert={}", at("root.pem")),
            format!("--listen=127.0.0.1:{port}"),
            "--admin=127.0.0.1:0".to_owned(),
        ]
    }

    pub(crate) fn config(&self, more: &[&str]) -> Config {
        self.config_on(0, more)
    }

    fn config_on(&self, port: u16, more: &[&str]) -> Config {
        let more = more.iter().map(|flag| (*flag).to_owned());
        Config::try_parse_from(self.flags(port).into_iter().chain(more)).unwrap()
    }

    /// A controller that is ready.
    pub(crate) async fn start(&self, more: &[&str]) -> Controller {
        let controller = Controller::start(&self.config(more), None).await.unwrap();
        within("ready", controller.ready()).await;
        controller
    }

    /// One that takes the place of another.
    pub(crate) async fn start_at(&self, address: SocketAddr) -> Controller {
        let controller = Controller::start(&self.config_on(address.port(), &[]), None).await.unwrap();
        within("ready", controller.ready()).await;
        controller
    }

    /// How a node's tunnel reaches a controller.
    pub(crate) fn channel(&self, controller: SocketAddr, token: &str) -> ControlPlane {
        let settings = ChannelSettings {
            address: format!("https://localhost:{}", controller.port()),
            roots: RootSource::File(self.path("root.pem")),
            alt_hostname: None,
            token: TokenSource::Literal(token.to_owned()),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
        };
        let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
        ControlPlane::new(settings, &profile).unwrap()
    }

    /// A tunnel of `node` that subscribes to everything.
    pub(crate) fn tunnel(&self, controller: SocketAddr, node: &str) -> Tunnel {
        Tunnel::start(self.channel(controller, &token(node)), &node_info(node))
    }

    /// One that asks for these types, as tunnels do not.
    pub(crate) fn subscriber(&self, controller: SocketAddr, node: &str, types: &[&'static str]) -> Tunnel {
        Tunnel::with(self.channel(controller, &token(node)), &node_info(node), types, None)
    }

    /// Asks the authority, with a node's token, for a certificate.
    pub(crate) async fn ask(
        &self,
        controller: SocketAddr,
        node: &str,
        account: &str,
        life: Duration,
    ) -> Result<Vec<String>, IssueError> {
        let channel = self.channel(controller, &token(node));
        sign(channel, Asking::ForOthers, &of_shop(account), life).await
    }
}

/// Asks an authority for a certificate.
pub(crate) async fn sign(
    channel: ControlPlane,
    asking: Asking,
    identity: &Identity,
    life: Duration,
) -> Result<Vec<String>, IssueError> {
    let csr = Request::new(identity).unwrap().csr;
    let request = SigningRequest { identity: identity.clone(), csr };
    let client = CaClient::new(channel, asking, life);
    within("an answer of the CA", client.issue(request)).await.map(|issued| issued.chain)
}

pub(crate) fn of_shop(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

pub(crate) fn node_info(node: &str) -> NodeInfo {
    NodeInfo {
        instance_ip: "127.0.0.1".into(),
        pod_name: format!("ztunnel-{node}"),
        pod_namespace: "istio-system".into(),
        node_name: node.into(),
        ..NodeInfo::default()
    }
}

/// One tunnel: what it holds, and every response that it got.
pub(crate) struct Tunnel {
    handle: Handle,
    pub(crate) metrics: Arc<ClientMetrics>,
    held: watch::Receiver<Held>,
    _task: Owned,
}

/// What a tunnel got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// Every resource that it holds, by type and name, with its version.
    pub(crate) resources: BTreeMap<(String, String), String>,
    /// Every response: its type, what came, what went.
    pub(crate) responses: Vec<(String, BTreeSet<String>, BTreeSet<String>)>,
}

impl Held {
    pub(crate) fn names(&self, type_url: &str) -> BTreeSet<String> {
        let keys = self.resources.keys().filter(|(url, _)| url == type_url);
        keys.map(|(_, name)| name.clone()).collect()
    }

    /// What came and went of a type since the response of this number.
    pub(crate) fn since(&self, response: usize, type_url: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut all = (BTreeSet::new(), BTreeSet::new());
        for (_, came, went) in self.responses.iter().skip(response).filter(|(url, ..)| url == type_url) {
            all.0.extend(came.iter().cloned());
            all.1.extend(went.iter().cloned());
        }
        all
    }
}

struct Recorder {
    held: watch::Sender<Held>,
    /// A resource that it does not take.
    rejects: Option<String>,
}

impl Handler for Recorder {
    fn apply(&mut self, response: Update) -> Vec<Rejected> {
        let names = response.upserts.iter().map(|one| one.name.clone());
        let rejected = names
            .filter(|name| self.rejects.as_ref() == Some(name))
            .map(|name| Rejected { name, reason: "not to my taste".into() })
            .collect();
        self.held.send_modify(|held| {
            let url = response.type_url;
            for name in &response.removed {
                held.resources.remove(&(url.clone(), name.clone()));
            }
            let came = response.upserts.iter().map(|one| one.name.clone()).collect();
            for one in response.upserts {
                held.resources.insert((url.clone(), one.name), one.version);
            }
            held.responses.push((url, came, response.removed.into_iter().collect()));
        });
        rejected
    }
}

impl Tunnel {
    pub(crate) fn start(channel: ControlPlane, node: &NodeInfo) -> Self {
        Self::with(channel, node, &[ADDRESS, AUTHORIZATION], None)
    }

    /// One that rejects a resource.
    pub(crate) fn rejecting(channel: ControlPlane, node: &NodeInfo, name: &str) -> Self {
        Self::with(channel, node, &[ADDRESS, AUTHORIZATION], Some(name.to_owned()))
    }

    fn with(channel: ControlPlane, node: &NodeInfo, types: &[&'static str], rejects: Option<String>) -> Self {
        let (sender, held) = watch::channel(Held::default());
        let metrics = Arc::new(ClientMetrics::default());
        let recorder = Recorder { held: sender, rejects };
        let types: Vec<_> = types.iter().map(|url| (*url, ambit_wire::xds::Mode::Wildcard)).collect();
        let (client, handle) = Client::new(node, types, channel, recorder, Arc::clone(&metrics));
        let _task = task::spawn("tunnel", client.run(std::future::pending())).owned();
        Self { handle, metrics, held, _task }
    }

    pub(crate) async fn synced(&self) {
        within("synced", self.handle.synced()).await;
    }

    pub(crate) fn state(&self) -> ClientState {
        self.handle.state()
    }

    pub(crate) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// Waits until what it got is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl FnMut(&Held) -> bool) -> Held {
        let mut held = self.held.clone();
        within(what, held.wait_for(wanted)).await.unwrap().clone()
    }

    /// Waits until the connection is as wanted.
    pub(crate) async fn until_state(&self, what: &str, wanted: impl Fn(&ClientState) -> bool) -> ClientState {
        eventually(what, || Some(self.state()).filter(|state| wanted(state))).await
    }
}

/// Waits for something to come true, within bounds.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, wait).await {
        Ok(done) => done,
        Err(_) => panic!("not within {SOON:?}: {what}"),
    }
}

pub(crate) async fn stop(controller: Controller) {
    controller.stop(Mode::Graceful { deadline: DEADLINE }).await;
}

/// A page: status and body.
pub(crate) async fn page(controller: &Controller, path: &str) -> (u16, String) {
    exchange(controller, "GET", path, "").await
}

/// Has a page do what it does; `headers` are lines.
pub(crate) async fn post(controller: &Controller, path: &str, headers: &str) -> (u16, String) {
    exchange(controller, "POST", path, headers).await
}

async fn exchange(controller: &Controller, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(controller.admin()[0]).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("a page", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(crate) async fn json(controller: &Controller, path: &str) -> serde_json::Value {
    let (status, body) = page(controller, path).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// The output of a program that must succeed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let done = std::process::Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&done.stderr));
    text
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
