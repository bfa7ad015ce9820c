//! The real tunnel as a process, on a node and with pods that are network namespaces, between doubles that
//! follow the protocols: a control plane, a certificate authority, a node agent, peers and applications.
//!
//! A test runs on a thread that lives in the node's namespace, so everything that the doubles listen on is the
//! node's own loopback. Nothing of our controller or agent is running.

pub mod agent;
pub mod app;
pub mod frames;
pub mod gateway;
pub mod netns;
pub mod peer;
pub mod process;
pub mod resources;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use ambit_fixtures::{
    ca::{ServedCa, TestCa},
    control_plane::{Settings, TestControlPlane},
    mesh::{PodBuilder, ServiceBuilder, pod},
};
use ambit_model::identity::Identity;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

pub use self::{agent::Agent, app::*, frames::*, gateway::*, netns::*, peer::*, process::*, resources::*};

/// Nothing takes longer on a busy machine, unless it never happens.
pub const SOON: Duration = Duration::from_secs(20);

/// A whole test, world and all.
const A_TEST: Duration = Duration::from_secs(150);

/// The token that the tunnel shows to control plane and CA.
pub const TOKEN: &str = "the-nodes-token";

/// The node on which everything runs.
pub const NODE: &str = "node-a";

/// Runs a test in a world of its own. Says so loudly when it cannot.
pub fn world<T: Future<Output = ()>>(test: impl FnOnce(World) -> T + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this test makes network namespaces, for which it must run as root");
        return;
    }
    let thread = std::thread::Builder::new().name("world".to_owned()).spawn(|| {
        let node = NodeNet::make();
        node.stay();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::build(Arc::new(node), TestCa::new()).await;
            timeout(A_TEST, test(world)).await.expect("the test ends in time");
        });
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// A node with its doubles. The tunnel is started by the test, when everything is as it wants it.
pub struct World {
    pub ca: TestCa,
    pub served_ca: ServedCa,
    pub plane: TestControlPlane,
    pub agent: Agent,
    pub node: Arc<NodeNet>,
    dir: TempDir,
}

impl World {
    /// Another set of doubles on the same node, under the same authority: another cluster's.
    pub async fn beside(&self) -> Self {
        Self::build(self.node.clone(), self.ca.clone()).await
    }

    async fn build(node: Arc<NodeNet>, ca: TestCa) -> Self {
        let dir = tempfile::Builder::new().prefix("amb-tunnel").tempdir().unwrap();
        let plane = plane(&ca).start().await;
        let served_ca = ca.serve().await;
        let agent = Agent::start(dir.path().join("zds.sock"));
        std::fs::write(dir.path().join("root.pem"), ca.root_pem()).unwrap();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        std::fs::write(dir.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        Self { ca, served_ca, plane, agent, node, dir }
    }

    /// A path of this world's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a DaemonSet sets (protocols 10.5).
    pub fn env(&self) -> Env {
        let path = |name: &str| self.path(name).into_os_string().into_string().unwrap();
        let mut env = Env::default();
        for (name, value) in [
            ("XDS_ADDRESS", format!("https://localhost:{}", self.plane.address().port())),
            ("CA_ADDRESS", format!("https://localhost:{}", self.served_ca.address().port())),
            ("XDS_ROOT_CA", path("root.pem")),
            ("CA_ROOT_CA", path("root.pem")),
            ("AUTH_TOKEN", path("token")),
            ("NODE_NAME", NODE.to_owned()),
            ("POD_NAME", "ztunnel-x".to_owned()),
            ("POD_NAMESPACE", "istio-system".to_owned()),
            ("SERVICE_ACCOUNT", "ztunnel".to_owned()),
            ("INSTANCE_IP", NODE_V4.to_string()),
            ("CLUSTER_ID", "Kubernetes".to_owned()),
            ("ISTIO_META_DNS_CAPTURE", "true".to_owned()),
            ("INPOD_UDS", path("zds.sock")),
            ("AMBIT_RESOLV_CONF", path("resolv.conf")),
            ("ZTUNNEL_WORKER_THREADS", "2".to_owned()),
            ("RUST_LOG", "info".to_owned()),
        ] {
            env.set(name, value);
        }
        env
    }

    /// The tunnel as a DaemonSet starts it, ready.
    pub async fn tunnel(&self) -> Ztunnel {
        self.tunnel_with(self.env()).await
    }

    /// The tunnel with other settings, ready.
    pub async fn tunnel_with(&self, env: Env) -> Ztunnel {
        let tunnel = self.launch(env);
        tunnel.until_ready().await;
        tunnel
    }

    /// The tunnel, started and not waited for.
    pub fn launch(&self, env: Env) -> Ztunnel {
        Ztunnel::start(self.dir.path(), env)
    }

    /// The tunnel inside of a pod, started and not waited for.
    pub fn launch_in(&self, env: Env, pod: &Pod) -> Ztunnel {
        Ztunnel::start_in(self.dir.path(), env, &pod.net)
    }

    /// Another program of the mesh, ready.
    pub async fn other_with(&self, program: &std::path::Path, env: Env) -> Ztunnel {
        let other = Ztunnel::start_other(program, self.dir.path(), env);
        other.until_ready().await;
        other
    }

    /// A pod outside of the mesh: a namespace with an address, known to nobody.
    pub fn stranger(&self) -> PodNet {
        self.node.pod()
    }

    /// A pod that is enrolled: published as `namespace/name`, its traffic redirected, and told to the tunnel
    /// once there is one. Its service account is its name.
    pub async fn pod(&self, name: &str) -> Pod {
        self.pod_with(name, |builder| builder).await
    }

    /// As [`World::pod`], published as `change` says.
    pub async fn pod_with(&self, name: &str, change: impl FnOnce(PodBuilder) -> PodBuilder) -> Pod {
        let net = self.node.pod();
        net.redirect().await;
        let pod = Pod::of(name, net);
        self.publish([change(pod.builder())], []);
        // With no tunnel yet it is told in the snapshot.
        self.agent.enrol(&pod).await.ok();
        pod
    }

    /// Publishes workloads and services.
    pub fn publish(
        &self,
        pods: impl IntoIterator<Item = PodBuilder>,
        services: impl IntoIterator<Item = ServiceBuilder>,
    ) {
        self.plane.publish(ambit_wire::codec::ADDRESS, addresses(pods, services));
    }

    /// Publishes policies.
    pub fn publish_policies(&self, policies: impl IntoIterator<Item = ambit_model::authz::Policy>) {
        self.plane.publish(ambit_wire::codec::AUTHORIZATION, policies.into_iter().map(encoded));
    }

    /// Opens a tunnel to `to` from a namespace outside of the mesh, as `account` of namespace `default`.
    pub async fn hbone(&self, from: &PodNet, account: &str, to: &Pod) -> Peer {
        let certificate = self.ca.certificate(&identity(account));
        let stream = from.connect(to.at(HBONE)).await.expect("port 15008 is open");
        Peer::over(stream, certificate.client_config(to.identity())).await.expect("a tunnel")
    }
}

/// How the control plane of a world is served.
pub fn plane(ca: &TestCa) -> Settings {
    Settings { tls: Some(ca.clone()), token: Some(TOKEN.to_owned()), ..Settings::default() }
}

/// The identity of `account` in namespace `default`.
pub fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account)
}

/// A pod in the mesh.
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub net: Arc<PodNet>,
}

impl Pod {
    pub fn of(name: &str, net: PodNet) -> Self {
        Self { name: name.to_owned(), uid: format!("uid-{}", name.replace('/', "-")), net: Arc::new(net) }
    }

    /// Its workload as the control plane describes it.
    pub fn builder(&self) -> PodBuilder {
        let (v4, v6) = (self.net.v4.to_string(), self.net.v6.to_string());
        pod(&format!("default/{}", self.name)).at(&v4).at(&v6).on(NODE).account(&self.name)
    }

    pub fn identity(&self) -> Identity {
        identity(&self.name)
    }
}

impl std::ops::Deref for Pod {
    type Target = PodNet;

    fn deref(&self) -> &PodNet {
        &self.net
    }
}

/// Waits until `found` finds something; `what` says what is waited for.
pub async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until `holds` does.
pub async fn until_true(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    until(what, async || holds().await.then_some(())).await;
}
