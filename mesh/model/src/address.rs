//! Where things are: an IP on a network, and what a connection asks for.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::name::{Hostname, Network};

/// An IP address on a network; printed `network/ip`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkAddress {
    /// The network on which the address has meaning.
    pub network: Network,
    /// The address, never an IPv4-mapped IPv6 one.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// `ip` on `network`, in canonical form.
    pub fn new(network: impl Into<Network>, ip: IpAddr) -> Self {
        Self { network: network.into(), ip: ip.to_canonical() }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl Serialize for NetworkAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A range of IP addresses on a network; printed `network/ip/length`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkRange {
    /// The network on which the range has meaning.
    pub network: Network,
    /// The range, truncated to its prefix.
    pub range: IpNet,
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.range)
    }
}

impl Serialize for NetworkRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a tunnel is asked to reach: the authority of a CONNECT (protocols 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `ip:port`; IPv6 in brackets.
    Ip(SocketAddr),
    /// `hostname:port`.
    Host(Hostname, u16),
}

impl Target {
    /// The port asked for.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host(hostname, port) => write!(f, "{hostname}:{port}"),
        }
    }
}

/// An address with IPv4-mapped IPv6 undone, as everything in the mesh compares it (protocols 5.2).
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
