//! How each daemon is run: its program, flags and environment. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::daemon::{Daemon, Kind};
use super::page::Admin;
use super::{CONTROLLER_PORT, MeshError, Settings, at};
use crate::node::Node;
use crate::process::Program;

const CONTROLLER: &str = "controller";
const AGENT: &str = "ambit-cni-agent";
const TUNNEL: &str = "ztunnel";
const WAYPOINT: &str = "waypoint";
const APP: &str = "ambit-lab-app";

/// The programs of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The controller.
    pub controller: PathBuf,
    /// The node agent.
    pub agent: PathBuf,
    /// The tunnel.
    pub tunnel: PathBuf,
    /// The waypoint. Only a mesh with a Gateway runs it, so it is not looked for before.
    pub waypoint: PathBuf,
    /// The lab's application.
    pub app: PathBuf,
}

/// Which ports a tunnel has for its pages: while one replaces another, both are on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// 15000, 15020 and 15021, as usual; also of whatever has no second.
    First,
    /// A hundred more.
    Second,
}

impl Slot {
    /// The one that is free.
    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn port(self, usual: u16) -> u16 {
        match self {
            Self::First => usual,
            Self::Second => usual + 100,
        }
    }
}

impl Binaries {
    /// Those in that directory, if all are there.
    pub fn in_dir(dir: &Path) -> Result<Self, MeshError> {
        let missing: Vec<_> =
            [CONTROLLER, AGENT, TUNNEL, APP].into_iter().filter(|name| !dir.join(name).is_file()).collect();
        if !missing.is_empty() {
            return Err(MeshError::Binaries { missing: missing.join(", "), dir: dir.to_owned() });
        }
        let dir = dir.canonicalize().map_err(|source| MeshError::File { path: dir.to_owned(), source })?;
        Ok(Self {
            controller: dir.join(CONTROLLER),
            agent: dir.join(AGENT),
            tunnel: dir.join(TUNNEL),
            waypoint: dir.join(WAYPOINT),
            app: dir.join(APP),
        })
    }

    /// Those that were built beside the running program; a test runs in a folder below.
    pub fn found() -> Result<Self, MeshError> {
        let own = std::env::current_exe()
            .map_err(|source| MeshError::File { path: PathBuf::from("/proc/self/exe"), source })?;
        let beside = own.parent().unwrap_or(&own);
        let above = beside.parent().unwrap_or(beside);
        Self::in_dir(beside).or_else(|err| Self::in_dir(above).map_err(|_| err))
    }
}

/// On loopback: a node's pages are for who is on the node.
fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

pub(super) fn controller(settings: &Settings, node: &Node) -> Daemon {
    let admin = local(15014);
    // A lab without IPv6 has no such sockets.
    let wildcard = if node.ips().iter().any(IpAddr::is_ipv6) { "[::]" } else { "0.0.0.0" };
    let program = Program::new(&settings.binaries.controller)
        .arg(format!("--source=directory:{}", settings.directory.display()))
        .arg(format!("--tokens={}", settings.state.join("tokens").display()))
        .arg(format!("--ca-dir={}", settings.state.join("ca").display()))
        .arg(format!("--root-cert={}", settings.root_cert().display()))
        .arg(format!("--listen={wildcard}:{CONTROLLER_PORT}"))
        .arg(format!("--admin={admin}"));
    let names = node.ips().iter().map(|ip| format!("--name={ip}"));
    let address = address_of(node);
    let program = program
        .args(names)
        // One process is one instance: the lab has no nodes that fail.
        .args(["--waypoint-image=ambit/waypoint", "--waypoint-deployment={spec: {replicas: 1}}"])
        .arg(format!("--waypoint-control-plane={address}"))
        .args(&settings.controller);
    Daemon::new(Kind::Controller, node, program, Admin::new(node.netns(), admin), None)
}

/// Where the controller on that node is found.
fn address_of(node: &Node) -> String {
    at(node, CONTROLLER_PORT).map(|at| format!("https://{at}")).unwrap_or_default()
}

pub(super) fn agent(settings: &Settings, node: &Node) -> Daemon {
    let admin = local(8000);
    let program = Program::new(&settings.binaries.agent)
        .arg(format!("--source=directory:{}", settings.directory.display()))
        .arg(format!("--node={}", node.name()))
        .arg(format!("--zds-socket={}", settings.socket(node.name()).display()))
        .arg(format!("--admin={admin}"))
        // The lab probes without connecting, and a kubelet of this machine is not the lab's.
        .arg("--probes=off")
        .args(&settings.agents);
    Daemon::new(Kind::Agent, node, program, Admin::new(node.netns(), admin), None)
}

pub(super) fn tunnel(settings: &Settings, node: &Node, controller: &Node, slot: Slot) -> Daemon {
    let admin = local(slot.port(15000));
    let metrics = local(slot.port(15020));
    let ready = local(slot.port(15021));
    let address = address_of(controller);
    let root = settings.root_cert();
    let own = node.ips().first().map(ToString::to_string).unwrap_or_default();
    let program = Program::new(&settings.binaries.tunnel)
        .env("XDS_ADDRESS", &address)
        .env("CA_ADDRESS", &address)
        .env("XDS_ROOT_CA", &root)
        .env("CA_ROOT_CA", &root)
        .env("AUTH_TOKEN", settings.token(node.name()))
        .env("CLUSTER_ID", "Kubernetes")
        .env("NODE_NAME", node.name())
        .env("POD_NAME", format!("ztunnel-{}", node.name()))
        .env("POD_NAMESPACE", "istio-system")
        .env("SERVICE_ACCOUNT", "ztunnel")
        .env("INSTANCE_IP", own)
        .env("INPOD_UDS", settings.socket(node.name()))
        .env("AMBIT_ADMIN_ADDR", admin.to_string())
        .env("AMBIT_METRICS_ADDR", metrics.to_string())
        .env("AMBIT_READINESS_ADDR", ready.to_string())
        .env("RUST_LOG", "info")
        .envs(settings.tunnels.iter().map(|(name, value)| (name, value)));
    let netns = node.netns();
    let mut daemon = Daemon::new(Kind::Tunnel, node, program, Admin::new(netns, admin), Some(slot));
    daemon.serves_elsewhere(Admin::new(netns, ready), Admin::new(netns, metrics));
    daemon
}
