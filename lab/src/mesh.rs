//! A mesh on a lab: the controller on the first node, a node agent and a tunnel on every node.
//!
//! Pods and policies are the YAML of a directory; the daemons are those of a directory of programs, run as an
//! operator runs them: by flags and environment alone. Each has a [`Daemon`] that stops, kills and starts it again.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::ops::ControlFlow;
//! use ambit_lab::mesh::{Binaries, MeshLab, Settings};
//! let settings = Settings::new("try", "/etc/shop", "/run/try", Binaries::found()?);
//! let mut mesh = MeshLab::up(settings, |stage| { eprintln!("{}", stage.words()); ControlFlow::Continue(()) })?;
//! mesh.controller().kill()?;
//! mesh.replace_tunnel("node-b")?;
//! # Ok(()) }
//! ```

mod daemon;
pub(crate) mod page;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ambit_api::directory::{MADE_FOLDER, STATUS_FOLDER};

pub use self::daemon::{Daemon, Kind};
pub use self::page::{Admin, Page, PageError};
pub use self::programs::{Binaries, Slot};
use crate::kubelet::{self, Kubelet, KubeletError};
use crate::manifest::Trust;
use crate::network::{Lab, LabError, Topology};
use crate::node::Node;
use crate::process::ProcessError;
use crate::token;

/// A small shop: `client`, `web` three times on two nodes, `cart`, in the mesh; and a guest who is not.
pub const SHOP: &str = include_str!("mesh/shop.yaml");
/// Where the controller serves tunnels.
const CONTROLLER_PORT: u16 = 15012;
/// Starting takes a second; a machine that builds at the same time, ten.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// A tunnel gives its connections five seconds unless told otherwise.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How soon to look again.
const PAUSE: Duration = Duration::from_millis(20);

/// A running mesh. Dropping it leaves nothing behind but the directory as users wrote it.
#[derive(Debug)]
pub struct MeshLab {
    /// By node, like the agents: in the order of the lab's nodes.
    tunnels: BTreeMap<String, Daemon>,
    agents: BTreeMap<String, Daemon>,
    controller: Daemon,
    kubelet: Option<Kubelet>,
    lab: Lab,
    settings: Settings,
}

/// What a mesh is to be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lab's name.
    pub name: String,
    /// Nodes and wire. Logs go to `state/logs` unless it says otherwise.
    pub topology: Topology,
    /// The YAML that users write.
    pub directory: PathBuf,
    /// Where tokens, certificates, sockets and logs are; made when missing, and never removed from here.
    pub state: PathBuf,
    /// The programs.
    pub binaries: Binaries,
    /// Further arguments of the controller.
    pub controller: Vec<String>,
    /// Further arguments of the agents.
    pub agents: Vec<String>,
    /// Further environment of the tunnels; it overrides what is usual.
    pub tunnels: Vec<(String, String)>,
    /// Further arguments of the name servers: records of other kinds, say.
    pub dns: Vec<String>,
}

/// How far [`MeshLab::up`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nodes and the wire between them are made.
    Network,
    /// Pods are made and started, as the directory says.
    Pods,
    /// The controller is started.
    Controller,
    /// Agents and tunnels are started, and pods enrolled.
    Mesh,
}

impl Stage {
    /// For whoever waits.
    pub fn words(self) -> &'static str {
        match self {
            Self::Network => "nodes and the wire between them",
            Self::Pods => "pods, services and names",
            Self::Controller => "controller",
            Self::Mesh => "node agents and tunnels",
        }
    }
}

/// Why there is no mesh, or it does not do as told.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The network.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The pods.
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Programs are missing.
    #[error("{missing} not found in {dir}; build them: cargo build --bins", dir = dir.display())]
    Binaries {
        /// Which.
        missing: String,
        /// Where they were looked for.
        dir: PathBuf,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}; run as root, and look for free space", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path of a socket would be too long for the kernel.
    #[error("{path} is too long for a socket; choose a state directory with a shorter path", path = path.display())]
    LongPath {
        /// The path.
        path: PathBuf,
    },
    /// A daemon is not ready in time.
    #[error("{daemon} was not ready within {limit:?}: {why}; its log is {log}, and ends with:\n{tail}", log = log.display())]
    NotReady {
        /// Which.
        daemon: String,
        /// The time it was given.
        limit: Duration,
        /// What it said last.
        why: String,
        /// Its log.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// Pods are not in the mesh in time.
    #[error("not enrolled within {limit:?}: {pods}; `/debug/pods` of the node agent says why")]
    NotEnrolled {
        /// The time they were given.
        limit: Duration,
        /// Which.
        pods: String,
    },
    /// A tunnel has not heard in time that pods are in the mesh.
    #[error(
        "{tunnel} did not hear within {limit:?} that these are in the mesh: {pods}; the controller's log says why"
    )]
    NotTold {
        /// Which tunnel.
        tunnel: String,
        /// The time it was given.
        limit: Duration,
        /// Which pods.
        pods: String,
    },
    /// Whoever watched wants it no more.
    #[error("stopped while the mesh was being brought up")]
    Interrupted,
}

impl Settings {
    /// The usual settings.
    pub fn new(
        name: impl Into<String>,
        directory: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        binaries: Binaries,
    ) -> Self {
        Self {
            name: name.into(),
            topology: Topology::default(),
            directory: directory.into(),
            state: state.into(),
            binaries,
            controller: Vec::new(),
            agents: Vec::new(),
            tunnels: Vec::new(),
            dns: Vec::new(),
        }
    }

    fn token(&self, node: &str) -> PathBuf {
        self.state.join("tokens").join(node)
    }

    fn accounts(&self) -> PathBuf {
        self.state.join("tokens").join("accounts")
    }

    fn kubelet(&self) -> kubelet::Settings {
        let mut kubelet = kubelet::Settings::new(&self.binaries.app);
        kubelet.host.waypoint = Some(self.binaries.waypoint.clone());
        kubelet.host.trust = Some(Trust { accounts: self.accounts(), root_cert: self.root_cert() });
        kubelet.dns.clone_from(&self.dns);
        kubelet
    }

    fn root_cert(&self) -> PathBuf {
        self.state.join("root-cert.pem")
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.state.join(format!("{node}.sock"))
    }
}

impl MeshLab {
    /// Brings everything up, and returns when it is ready. `watch` is told of each stage as it begins, and can end it.
    pub fn up(
        mut settings: Settings,
        mut watch: impl FnMut(Stage) -> ControlFlow<()>,
    ) -> Result<Self, MeshError> {
        let mut begin = |stage| match watch(stage) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(MeshError::Interrupted),
        };
        begin(Stage::Network)?;
        settings.prepare()?;
        settings.topology.logs.get_or_insert_with(|| settings.state.join("logs"));
        let lab = Lab::build(&settings.name, &settings.topology)?;
        settings.give_tokens(lab.nodes())?;
        let first = lab.nodes().first().ok_or_else(|| LabError::Nodes(Vec::new()))?.clone();
        let mut mesh = Self {
            tunnels: BTreeMap::new(),
            agents: BTreeMap::new(),
            controller: programs::controller(&settings, &first),
            kubelet: None,
            lab,
            settings,
        };

        begin(Stage::Pods)?;
        let kubelet = mesh.settings.kubelet();
        let kubelet = Kubelet::start(&mesh.lab, &mesh.settings.directory, kubelet)?;
        kubelet.settle(READY_LIMIT)?;
        mesh.kubelet = Some(kubelet);

        begin(Stage::Controller)?;
        mesh.controller.start()?;

        begin(Stage::Mesh)?;
        for node in mesh.lab.nodes() {
            let agent = programs::agent(&mesh.settings, node);
            let tunnel = programs::tunnel(&mesh.settings, node, &first, Slot::First);
            mesh.agents.insert(node.name().to_owned(), agent);
            mesh.tunnels.insert(node.name().to_owned(), tunnel);
        }
        // All at once: an agent is ready when the tunnel has taken its pods, a tunnel when the agent has told of them.
        for daemon in mesh.agents.values_mut().chain(mesh.tunnels.values_mut()) {
            daemon.launch()?;
        }
        for daemon in mesh.agents.values().chain(mesh.tunnels.values()) {
            daemon.wait_until_ready(READY_LIMIT)?;
        }
        mesh.settle(READY_LIMIT)?;
        mesh.wait_until_told(READY_LIMIT)?;
        Ok(mesh)
    }

    /// The lab below.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How the pods are.
    pub fn pods(&self) -> kubelet::Report {
        self.kubelet.as_ref().map(Kubelet::report).unwrap_or_default()
    }

    /// The controller.
    pub fn controller(&mut self) -> &mut Daemon {
        &mut self.controller
    }

    /// The agent of a node.
    pub fn agent(&mut self, node: &str) -> Result<&mut Daemon, MeshError> {
        self.agents.get_mut(node).ok_or_else(|| no_node(&self.lab, node))
    }

    /// The tunnel of a node.
    pub fn tunnel(&mut self, node: &str) -> Result<&mut Daemon, MeshError> {
        self.tunnels.get_mut(node).ok_or_else(|| no_node(&self.lab, node))
    }

    /// All daemons: the controller, agents, tunnels.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        std::iter::once(&self.controller).chain(self.agents.values()).chain(self.tunnels.values())
    }

    /// All daemons, to be started and stopped.
    pub fn daemons_mut(&mut self) -> impl Iterator<Item = &mut Daemon> {
        std::iter::once(&mut self.controller).chain(self.agents.values_mut()).chain(self.tunnels.values_mut())
    }

    /// Starts a second tunnel on the node, waits until it serves, then has the first drain and end.
    pub fn replace_tunnel(&mut self, node: &str) -> Result<(), MeshError> {
        let first = self.lab.nodes().first().cloned().ok_or_else(|| LabError::Nodes(Vec::new()))?;
        let slot = self.tunnel(node)?.slot().other();
        let mut next = programs::tunnel(&self.settings, self.lab.node(node)?, &first, slot);
        next.start()?;
        let mut last = std::mem::replace(self.tunnel(node)?, next);
        last.stop(DRAIN_LIMIT)
    }

    /// Waits until the pods are as the directory says, and every agent has done with those of its node.
    pub fn settle(&self, limit: Duration) -> Result<(), MeshError> {
        let deadline = Instant::now() + limit;
        if let Some(kubelet) = &self.kubelet {
            kubelet.settle(limit)?;
        }
        for agent in self.agents.values() {
            while let Err(pods) = agent.pods_are_settled() {
                if Instant::now() >= deadline {
                    return Err(MeshError::NotEnrolled { limit, pods });
                }
                agent.idle(PAUSE);
            }
        }
        Ok(())
    }

    /// Waits until every tunnel reaches the pods that agents have enrolled through the mesh: until then it sends them
    /// plain text.
    fn wait_until_told(&self, limit: Duration) -> Result<(), MeshError> {
        let deadline = Instant::now() + limit;
        let mut enrolled = BTreeSet::new();
        for agent in self.agents.values() {
            // An agent that cannot be asked is not one without pods.
            enrolled.extend(agent.enrolled().map_err(|pods| MeshError::NotEnrolled { limit, pods })?);
        }
        for tunnel in self.tunnels.values() {
            loop {
                let reached = tunnel.reached_through_the_mesh();
                let missing: Vec<_> = enrolled.difference(&reached).map(String::as_str).collect();
                if missing.is_empty() {
                    break;
                }
                if Instant::now() >= deadline {
                    let (tunnel, pods) = (tunnel.to_string(), missing.join(", "));
                    return Err(MeshError::NotTold { tunnel, limit, pods });
                }
                tunnel.idle(PAUSE);
            }
        }
        Ok(())
    }
}

impl Drop for MeshLab {
    fn drop(&mut self) {
        // Before the kubelet takes back what it wrote: nobody is to write about pods that go.
        self.tunnels.clear();
        self.agents.clear();
        // It may have ended by itself.
        let _ = self.controller.kill();
        self.settings.forget_written();
        self.kubelet = None;
    }
}

impl Settings {
    /// Absolute paths, the folders, and nothing left of an earlier run.
    fn prepare(&mut self) -> Result<(), MeshError> {
        for path in [&mut self.directory, &mut self.state] {
            let made = fs::create_dir_all(&path).and_then(|()| path.canonicalize());
            *path = made.map_err(|source| MeshError::File { path: path.clone(), source })?;
        }
        self.forget_written();
        Ok(())
    }

    /// What agents said of pods that are no more, what the controller made of Gateways and said of them, and the tokens of
    /// accounts.
    fn forget_written(&self) {
        let status = self.directory.join(STATUS_FOLDER);
        let made = self.directory.join(MADE_FOLDER);
        let agents = self.topology.nodes.iter().map(|node| status.join(format!("agent-{node}")));
        for folder in agents.chain([status.join("controller"), made.join("controller"), self.accounts()]) {
            // There is none if no pod was ever enrolled, or no Gateway seen.
            let _ = fs::remove_dir_all(folder);
        }
        // Only if nothing of others is in it.
        let _ = fs::remove_dir(made);
    }

    fn give_tokens(&self, nodes: &[Node]) -> Result<(), MeshError> {
        for node in nodes {
            let path = self.token(node.name());
            token::write(&path).map_err(|source| MeshError::File { path, source })?;
            let socket = self.socket(node.name());
            // `sun_path` has 108 bytes, the last of which is zero.
            if socket.as_os_str().len() > 107 {
                return Err(MeshError::LongPath { path: socket });
            }
        }
        Ok(())
    }
}

/// The node's first address with that port.
fn at(node: &Node, port: u16) -> Option<SocketAddr> {
    node.ips().first().map(|ip| SocketAddr::new(*ip, port))
}

fn no_node(lab: &Lab, node: &str) -> MeshError {
    let nodes: Vec<_> = lab.nodes().iter().map(Node::name).collect();
    MeshError::Lab(LabError::NoNode {
        lab: lab.name().to_owned(),
        node: node.to_owned(),
        nodes: nodes.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_shop_can_be_read() {
        let shop = ambit_api::directory::read_text(Path::new("shop.yaml"), SHOP);
        assert_eq!(shop.problems, []);
        let nodes = ["node-a", "node-b"];
        let desired = crate::manifest::desired(&shop.objects, &nodes, &crate::manifest::Host::new("/app"));
        assert_eq!(desired.problems, []);
        let web: Vec<_> = desired
            .pods
            .iter()
            .filter(|(name, _)| name.name.starts_with("web-"))
            .map(|(_, pod)| (pod.node.as_str(), pod.service_account.as_str()))
            .collect();
        assert_eq!(web.len(), 3);
        assert!(web.iter().all(|(_, account)| *account == "web"));
        assert!(nodes.iter().all(|node| web.iter().any(|(place, _)| place == node)));
    }

    #[test]
    fn missing_programs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let err = Binaries::in_dir(dir.path()).unwrap_err().to_string();
        assert!(err.contains("controller, ambit-cni-agent, ztunnel, ambit-lab-app"), "{err}");
        assert!(err.contains("cargo build --bins"), "{err}");
    }
}
