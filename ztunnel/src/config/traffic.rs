//! How connections are carried, and how many (protocols 4.1, 9).

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use ambit_model::name::Namespace;
use ambit_proxy::config::Own;
use ambit_runtime::env::Env;

/// The ports in a pod's namespace (protocols 4.1), and what goes with them.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Captured outgoing connections.
    pub outbound: u16,
    /// Captured incoming connections without a tunnel.
    pub inbound_plaintext: u16,
    /// Tunnels.
    pub inbound: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, inbound_plaintext: 15006, inbound: 15008 }
    }
}

impl Ports {
    /// Those to which a connection would lead back into the tunnel.
    pub fn own(&self) -> [u16; 3] {
        [self.outbound, self.inbound_plaintext, self.inbound]
    }
}

/// What is bounded, so that one pod cannot take what its neighbours need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of one pod, in and out: `AMBIT_MAX_CONNECTIONS_PER_POD`.
    pub connections_per_pod: usize,
    /// Handshakes under way in one pod: `AMBIT_MAX_HANDSHAKES_PER_POD`.
    pub handshakes_per_pod: usize,
    /// Questions under way in one pod's DNS proxy: `AMBIT_MAX_DNS_QUERIES_PER_POD`.
    pub dns_queries_per_pod: usize,
    /// How long a handshake may take: `AMBIT_HANDSHAKE_TIMEOUT`.
    pub handshake: Duration,
    /// How long connecting may take: `AMBIT_CONNECT_TIMEOUT`.
    pub connect: Duration,
}

/// What becomes of connections between two pods of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameNode {
    /// They are handed over within the process.
    Direct,
    /// They travel in a tunnel like all others.
    Hbone,
}

impl FromStr for SameNode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "direct" => Ok(Self::Direct),
            "hbone" => Ok(Self::Hbone),
            _ => Err("accepted: direct, hbone"),
        }
    }
}

/// The DNS proxy.
#[derive(Clone, Debug)]
pub struct Dns {
    /// Where it listens in each pod: `ISTIO_META_DNS_PROXY_ADDR`.
    pub listen: DnsListen,
    /// Whose services win where neither the client's own nor a canonical one does:
    /// `PREFERED_SERVICE_NAMESPACE` (so spelt).
    pub preferred_namespace: Option<Namespace>,
    /// Where the nameservers are written: `AMBIT_RESOLV_CONF`.
    pub resolv_conf: PathBuf,
}

/// Where the DNS proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsListen {
    /// On the loopback addresses of all families that the pod has, at this port.
    Localhost(u16),
    /// Exactly here.
    At(SocketAddr),
}

impl FromStr for DnsListen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "accepted: localhost:port or ip:port";
        match text.strip_prefix("localhost:") {
            Some(port) => port.parse().map(Self::Localhost).map_err(|_| wrong),
            None => text.parse().map(Self::At).map_err(|_| wrong),
        }
    }
}

impl Limits {
    pub(super) fn read(env: &mut Env) -> Self {
        let mut at_least_one = |name: &str, default: usize| {
            let limit = env.number(name).or(default);
            if limit == 0 {
                env.reject(name, "must be at least 1");
            }
            limit
        };
        Self {
            // More than the ports that one address has for one destination: never met by an honest pod.
            connections_per_pod: at_least_one("AMBIT_MAX_CONNECTIONS_PER_POD", 65_536),
            // Each is a signature: together they keep a core busy for a good tenth of a second.
            handshakes_per_pod: at_least_one("AMBIT_MAX_HANDSHAKES_PER_POD", 512),
            // At 5 seconds each at worst, what a resolver library asks for when its upstream is gone.
            dns_queries_per_pod: at_least_one("AMBIT_MAX_DNS_QUERIES_PER_POD", 1024),
            handshake: env.duration("AMBIT_HANDSHAKE_TIMEOUT").or(Duration::from_secs(10)),
            connect: env.duration("AMBIT_CONNECT_TIMEOUT").or(Duration::from_secs(10)),
        }
    }
}

impl Dns {
    /// `None` when metadata `DNS_CAPTURE` is there and not `true`.
    pub(super) fn read(env: &mut Env, own: &Own) -> Option<Self> {
        let metadata = |key: &str| own.info.metadata.get(key).and_then(serde_json::Value::as_str);
        let is_on = metadata("DNS_CAPTURE").is_none_or(|value| value.eq_ignore_ascii_case("true"));
        let listen = metadata("DNS_PROXY_ADDR").map(str::parse).transpose();
        let listen = listen.unwrap_or_else(|wrong: &str| {
            env.reject("ISTIO_META_DNS_PROXY_ADDR", wrong);
            None
        });
        let preferred = env.string("PREFERED_SERVICE_NAMESPACE").optional();
        let dns = Self {
            listen: listen.unwrap_or(DnsListen::Localhost(15053)),
            preferred_namespace: preferred.filter(|name| !name.is_empty()).map(Namespace::from),
            resolv_conf: env.path("AMBIT_RESOLV_CONF").or(PathBuf::from("/etc/resolv.conf")),
        };
        is_on.then_some(dns)
    }
}
