//! What the operator decides, read once from the environment (protocols 10.5, 1.1, 1.2).
//!
//! Names without `AMBIT_` are Istio's and mean the same; each part of the tunnel is given the small
//! group that it needs.

mod traffic;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ambit_model::{
    identity::Identity,
    name::{Label, Namespace, ServiceAccount},
};
pub use ambit_proxy::config::{
    Authority, Ca, Disk, Files, Keepalive, LocalXds, LogFormat, Logging, Own, Pages, Tls, Xds,
};
use ambit_proxy::config::{drain, hbone, proxy_config, worker_threads};
use ambit_runtime::env::Env;
use ambit_wire::{hbone::Settings as Hbone, xds::node::NodeKind};

pub use self::traffic::{Dns, DnsListen, Limits, Ports, SameNode};

/// Everything that the operator decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this tunnel is.
    pub own: Own,
    /// Whose traffic it carries: `PROXY_MODE`.
    pub mode: Mode,
    /// Whether it carries traffic at all: `ENABLE_PROXY`.
    pub proxy: bool,
    /// The control plane.
    pub xds: Xds,
    /// The certificate authority.
    pub ca: Ca,
    /// What is demanded of TLS.
    pub tls: Tls,
    /// HTTP/2 and the pool of tunnels.
    pub hbone: Hbone,
    /// Liveness of TCP connections.
    pub keepalive: Option<Keepalive>,
    /// What is bounded.
    pub limits: Limits,
    /// The DNS proxy, unless it is switched off.
    pub dns: Option<Dns>,
    /// The ports in the pods.
    pub ports: Ports,
    /// The tunnel's own pages.
    pub pages: Pages,
    /// What becomes of connections within the node: `SAME_NODE`.
    pub same_node: SameNode,
    /// Whether applications see the client's address; `None` when they see it as far as possible:
    /// `ENABLE_ORIG_SRC`.
    pub original_source: Option<bool>,
    /// Whether IPv6 is used: `IPV6_ENABLED`.
    pub ipv6: bool,
    /// Whether tunnels are told about the workload that answers: `ENABLE_RESPONSE_BAGGAGE`.
    pub response_baggage: bool,
    /// Whether an application that is told about connections is reached on loopback:
    /// `LOCALHOST_APP_TUNNEL`.
    pub localhost_app_tunnel: bool,
    /// How long connections may go on after the order to end (protocols 7.4).
    pub drain: Duration,
    /// How many workers.
    pub threads: NonZeroUsize,
    /// What is logged.
    pub logging: Logging,
    /// `ISTIO_META_ISTIO_VERSION`, for the metric `istio_build`.
    pub istio_version: Option<String>,
}

/// Whose traffic the tunnel carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Of the pods that the node agent tells about.
    Shared(InPod),
    /// Of the pod that it runs in: `PROXY_WORKLOAD_INFO`.
    Dedicated(Pod),
}

/// How pods are learnt about and entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPod {
    /// Where the node agent listens: `INPOD_UDS`.
    pub agent: PathBuf,
    /// Whether two tunnels may share a port: `INPOD_PORT_REUSE`.
    pub port_reuse: bool,
    /// What tells our own packets from the application's: `PACKET_MARK`.
    pub mark: u32,
}

/// One pod by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Label,
    /// The account that it runs as.
    pub service_account: ServiceAccount,
}

impl FromStr for Pod {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split('/').collect();
        match parts.as_slice() {
            [namespace, name, account] if parts.iter().all(|part| !part.is_empty()) => Ok(Self {
                namespace: (*namespace).into(),
                name: (*name).into(),
                service_account: (*account).into(),
            }),
            _ => Err("accepted: namespace/name/service-account"),
        }
    }
}

impl Config {
    /// Reads all of it. Mistakes are kept in `env`, whose `finish` names every one.
    pub fn read(env: &mut Env, files: &dyn Files) -> Self {
        let proxy = proxy_config(env, files);
        let own = Own::read(env, &proxy, NodeKind::Ztunnel);
        let ipv6 = env.flag("IPV6_ENABLED").or(true);
        let wildcard: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let config = Self {
            mode: Mode::read(env),
            proxy: env.flag("ENABLE_PROXY").or(true),
            xds: Xds::read(env, files, &proxy, &own),
            ca: Ca::read(env, files, &own),
            tls: Tls::read(env),
            hbone: hbone(env),
            keepalive: Keepalive::read(env),
            limits: Limits::read(env),
            dns: Dns::read(env, &own),
            ports: Ports::default(),
            pages: Pages::read(env, proxy.proxy_admin_port, proxy.status_port, wildcard),
            same_node: env.parsed("SAME_NODE", str::parse).or(SameNode::Direct),
            original_source: env.flag("ENABLE_ORIG_SRC").optional(),
            ipv6,
            response_baggage: env.flag("ENABLE_RESPONSE_BAGGAGE").or(true),
            localhost_app_tunnel: env.flag("LOCALHOST_APP_TUNNEL").or(true),
            drain: drain(env),
            threads: worker_threads(env, &proxy, "ZTUNNEL"),
            logging: Logging::read(env),
            istio_version: env.string("ISTIO_META_ISTIO_VERSION").optional(),
            own,
        };
        if config.dns.is_some() && config.xds.on_demand {
            let why = "cannot be combined with the DNS proxy, which must know all names; \
                set ISTIO_META_DNS_CAPTURE=false";
            env.reject("XDS_ON_DEMAND", why);
        }
        if !config.proxy && config.dns.is_none() {
            env.reject("ENABLE_PROXY", "is false, and so is the DNS proxy: nothing is left to do");
        }
        config
    }

    /// The identity of the pod that a dedicated tunnel serves.
    pub fn dedicated_identity(&self) -> Option<Identity> {
        let trust_domain = self.own.identity.as_ref().map(|own| own.trust_domain.clone()).unwrap_or_default();
        match &self.mode {
            Mode::Shared(_) => None,
            Mode::Dedicated(Pod { namespace, service_account, .. }) => Some(Identity {
                trust_domain,
                namespace: namespace.clone(),
                service_account: service_account.clone(),
            }),
        }
    }
}

impl Mode {
    fn read(env: &mut Env) -> Self {
        let shared = Self::Shared(InPod {
            agent: env.path("INPOD_UDS").or(PathBuf::from("/var/run/ztunnel/ztunnel.sock")),
            port_reuse: env.flag("INPOD_PORT_REUSE").or(true),
            mark: env.number("PACKET_MARK").or(1337),
        });
        let is_dedicated = env.parsed("PROXY_MODE", |text| match text {
            "" | "shared" => Ok(false),
            "dedicated" => Ok(true),
            _ => Err("accepted: shared, dedicated"),
        });
        if !is_dedicated.or(false) {
            return shared;
        }
        match env.string("PROXY_WORKLOAD_INFO").optional().map(|info| info.parse()) {
            Some(Ok(pod)) => return Self::Dedicated(pod),
            Some(Err(wrong)) => env.reject("PROXY_WORKLOAD_INFO", wrong),
            None => env.reject("PROXY_WORKLOAD_INFO", "is not set, and PROXY_MODE=dedicated needs it"),
        }
        shared
    }
}

#[cfg(test)]
mod tests;
