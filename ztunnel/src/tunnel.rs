//! What all pods served by one tunnel process share.

use std::{net::IpAddr, sync::Arc};

use ambit_model::name::{Label, Namespace, Network, ServiceAccount};
use ambit_wire::{
    cert::store::Certificates,
    discovery::Mesh,
    hbone::{self, pool::Spread},
    tls::revoked::Revocation,
};

pub use crate::config::{Limits, SameNode};
use crate::{metrics::Metrics, pods::Locals, socket::Options};

/// Everything that carrying a connection needs and that is not the pod's own.
#[derive(Debug)]
pub struct Tunnel {
    /// What the mesh is.
    pub mesh: Mesh,
    /// The certificates of the pods on this node.
    pub certificates: Certificates,
    /// Which certificates are revoked.
    pub revocation: Revocation,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The pods served here.
    pub locals: Locals,
    /// How things are done.
    pub settings: Settings,
}

/// How things are done. Read once, at the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What sockets have in common.
    pub sockets: Options,
    /// How HTTP/2 is spoken.
    pub hbone: hbone::Settings,
    /// How many connections a peer gets.
    pub spread: Spread,
    /// The network of this tunnel.
    pub network: Network,
    /// The ports of the tunnel itself, where no connection is carried to.
    pub own_ports: Arc<[u16]>,
    /// Whether a 200 tells about the destination (`ENABLE_RESPONSE_BAGGAGE`).
    pub response_baggage: bool,
    /// Whether application tunnels end at loopback (`LOCALHOST_APP_TUNNEL`).
    pub tunnel_to_localhost: bool,
    /// Whether applications see their clients' addresses (`ENABLE_ORIG_SRC`).
    pub original_source: OriginalSource,
    /// How pods of this node reach each other.
    pub same_node: SameNode,
    /// Whether IPv6 is used at all (`IPV6_ENABLED`).
    pub ipv6: bool,
    /// What one pod may ask for.
    pub limits: Limits,
}

/// Whether applications see their clients' addresses (protocols 5.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalSource {
    /// A pod where that is impossible is not served.
    Required,
    /// They see the tunnel's.
    Never,
    /// Where it is possible.
    Auto,
}

impl From<Option<bool>> for OriginalSource {
    fn from(setting: Option<bool>) -> Self {
        match setting {
            Some(true) => Self::Required,
            Some(false) => Self::Never,
            None => Self::Auto,
        }
    }
}

/// Who a pod is, as the control plane names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Label,
    /// The account it runs as.
    pub service_account: ServiceAccount,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} (service account {})", self.namespace, self.name, self.service_account)
    }
}

/// The wildcard address that a pod's listeners bind.
pub fn wildcard(ipv6: bool) -> IpAddr {
    if ipv6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() }
}
