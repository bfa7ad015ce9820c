//! What the operator decides, read once from the environment (protocols 10.5, 1.1, 1.2).
//!
//! Names are Istio's where Istio has one, and mean the same.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroUsize},
    time::Duration,
};

use ambit_model::identity::Identity;
use ambit_proxy::config::{
    Ca, Files, Keepalive, Logging, Own, Pages, Telemetry, Tls, Xds, drain, hbone, proxy_config,
    worker_threads,
};
use ambit_runtime::env::Env;
use ambit_wire::{hbone::Settings as Hbone, xds::node::NodeKind};

use crate::{
    accept::handed::Listen,
    access::template::{InvalidTemplate, Template},
};

/// Everything that the operator decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this waypoint is.
    pub own: Own,
    /// The identity that it asks the CA for: of its service account, which is named like its Gateway.
    pub identity: Identity,
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
    /// How clients come: through tunnels that end at `AMBIT_HBONE_ADDR`, or if there is an `AMBIT_PROXY_PORT`, through a
    /// ztunnel that captures this pod and ends them.
    pub listen: Listen,
    /// Whether applications are told who their clients are, in `X-Forwarded-Client-Cert`:
    /// `AMBIT_XFCC_INCLUDE_CLIENT_IDENTITY`.
    pub names_clients: bool,
    /// The waypoint's own pages.
    pub pages: Pages,
    /// What is bounded.
    pub limits: Limits,
    /// How long requests may go on after the order to end (protocols 7.4).
    pub drain: Duration,
    /// How many workers.
    pub threads: NonZeroUsize,
    /// What is logged.
    pub logging: Logging,
    /// What a line of the access log is; `None`: every field, as `LOG_FORMAT` says: `AMBIT_ACCESS_LOG_FORMAT`.
    pub access: Option<Template>,
    /// Where traces and logs go: `OTEL_*`.
    pub telemetry: Telemetry,
    /// `ISTIO_META_ISTIO_VERSION`, for the metric `istio_build`.
    pub istio_version: Option<String>,
}

/// What is bounded, so that one client cannot take what others need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TLS handshakes under way: `AMBIT_MAX_HANDSHAKES`.
    pub handshakes: usize,
    /// Streams of tunnels that are open at a time: `AMBIT_MAX_CONNECTIONS`.
    pub connections: usize,
    /// How long a handshake may take: `AMBIT_HANDSHAKE_TIMEOUT`.
    pub handshake: Duration,
    /// How long connecting to an endpoint may take: `AMBIT_CONNECT_TIMEOUT`.
    pub connect: Duration,
    /// How long the head of a request may take, from its first byte: `AMBIT_REQUEST_HEADERS_TIMEOUT`.
    pub head: Duration,
    /// How long a request or response may stand still: `AMBIT_STREAM_IDLE_TIMEOUT`.
    pub idle: Duration,
    /// After how long a tunnel or an HTTP connection is told to come again, so that clients spread over the replicas
    /// there are: `AMBIT_MAX_CONNECTION_AGE`.
    pub age: Duration,
}

impl Config {
    /// Reads all of it. Mistakes are kept in `env`, whose `finish` names every one.
    pub fn read(env: &mut Env, files: &dyn Files) -> Self {
        let proxy = proxy_config(env, files);
        let own = Own::read(env, &proxy, NodeKind::Waypoint);
        let identity = own.identity.clone().unwrap_or_else(|| {
            env.reject(
                "SERVICE_ACCOUNT",
                "is not set, or POD_NAMESPACE is not: both say who the waypoint is",
            );
            Identity::new("", "", "")
        });
        let ipv6 = env.flag("IPV6_ENABLED").or(true);
        let wildcard: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self {
            identity,
            xds: Xds::read(env, files, &proxy, &own),
            ca: Ca::read(env, files, &own),
            tls: Tls::read(env),
            hbone: hbone(env),
            keepalive: Keepalive::read(env),
            listen: listen(env, ipv6, wildcard),
            names_clients: env.flag("AMBIT_XFCC_INCLUDE_CLIENT_IDENTITY").or(false),
            pages: Pages::read(env, proxy.proxy_admin_port, proxy.status_port, wildcard),
            limits: Limits::read(env),
            drain: drain(env),
            threads: worker_threads(env, &proxy, "WAYPOINT"),
            logging: Logging::read(env),
            access: env.parsed("AMBIT_ACCESS_LOG_FORMAT", template).optional().flatten(),
            telemetry: Telemetry::read(env, &own),
            istio_version: env.string("ISTIO_META_ISTIO_VERSION").optional(),
            own,
        }
    }
}

fn listen(env: &mut Env, ipv6: bool, wildcard: IpAddr) -> Listen {
    let tunnels = env.number("AMBIT_HBONE_ADDR").or(SocketAddr::new(wildcard, HBONE_PORT));
    let handed = env.number::<NonZeroU16>("AMBIT_PROXY_PORT").optional();
    handed.map_or(Listen::Tunnels(tunnels), |port| Listen::Handed { port: port.get(), ipv6 })
}

/// Empty is none.
fn template(text: &str) -> Result<Option<Template>, InvalidTemplate> {
    if text.trim().is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// Where waypoints accept tunnels (protocols 4.10).
const HBONE_PORT: u16 = 15008;

impl Limits {
    fn read(env: &mut Env) -> Self {
        let mut at_least_one = |name: &str, default: usize| {
            let limit = env.number(name).or(default);
            if limit == 0 {
                env.reject(name, "must be at least 1");
            }
            limit
        };
        Self {
            // Each is a signature: together they keep a core busy for a good tenth of a second.
            handshakes: at_least_one("AMBIT_MAX_HANDSHAKES", 512),
            // Each may hold some 100 KiB of buffers at worst.
            connections: at_least_one("AMBIT_MAX_CONNECTIONS", 65_536),
            handshake: env.duration("AMBIT_HANDSHAKE_TIMEOUT").or(Duration::from_secs(10)),
            connect: env.duration("AMBIT_CONNECT_TIMEOUT").or(Duration::from_secs(10)),
            head: env.duration("AMBIT_REQUEST_HEADERS_TIMEOUT").or(Duration::from_secs(10)),
            idle: env.duration("AMBIT_STREAM_IDLE_TIMEOUT").or(Duration::from_secs(300)),
            age: env.duration("AMBIT_MAX_CONNECTION_AGE").or(Duration::from_secs(1800)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use super::*;

    struct NoFiles;

    impl Files for NoFiles {
        fn read(&self, _: &Path) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn read(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut env =
            Env::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let config = Config::read(&mut env, &NoFiles);
        let mistakes = env.finish().err();
        (config, mistakes.map(|all| all.names().map(str::to_owned).collect()).unwrap_or_default())
    }

    #[test]
    fn a_waypoint_must_be_told_who_it_is() {
        assert_eq!(read(&[]).1, ["SERVICE_ACCOUNT"]);
        let (config, mistakes) = read(&[("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "gate")]);
        assert_eq!((mistakes.len(), config.listen), (0, Listen::Tunnels("[::]:15008".parse().unwrap())));
        assert_eq!(config.identity, Identity::new("", "shop", "gate"));
    }

    #[test]
    fn what_would_accept_nothing_is_refused() {
        let own = [("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "gate")];
        for name in ["AMBIT_MAX_HANDSHAKES", "AMBIT_MAX_CONNECTIONS"] {
            assert_eq!(read(&[own[0], own[1], (name, "0")]).1, [name]);
        }
    }

    #[test]
    fn who_is_behind_a_ztunnel_ends_no_tunnels() {
        let own =
            [("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "gate"), ("AMBIT_HBONE_ADDR", "10.0.0.1:1")];
        let read_with = |port| read(&[own[0], own[1], own[2], ("AMBIT_PROXY_PORT", port)]);
        assert_eq!(read_with("15088").0.listen, Listen::Handed { port: 15088, ipv6: true });
        for wrong in ["0", "65536", "10.0.0.1:15088"] {
            assert_eq!(read_with(wrong).1, ["AMBIT_PROXY_PORT"], "{wrong}");
        }
    }

    #[test]
    fn a_template_is_read_once_and_what_is_wrong_with_it_is_told() {
        let own = [("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "gate")];
        let read_with = |text| read(&[own[0], own[1], ("AMBIT_ACCESS_LOG_FORMAT", text)]);
        assert!(read_with("%REQ(:PATH)%").0.access.is_some());
        assert_eq!(read_with(" ").0.access, None);
        assert_eq!(read_with("%NOTHING%").1, ["AMBIT_ACCESS_LOG_FORMAT"]);
        let mistakes = read(&[own[0], own[1], ("OTEL_TRACES_SAMPLER_ARG", "many")]).1;
        assert_eq!(mistakes, ["OTEL_TRACES_SAMPLER_ARG"]);
    }

    #[test]
    fn the_environment_in_the_page_on_traces_is_understood() {
        let page = include_str!("../../docs/tasks/tracing.md");
        let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let documents = blocks.flat_map(|block| block.split("---\n"));
        let documents = documents.map(|text| serde_yaml_ng::from_str::<serde_json::Value>(text).unwrap());
        let environments = documents.filter_map(|document| {
            let piece = document["data"]["deployment"].as_str()?.to_owned();
            let piece: serde_json::Value = serde_yaml_ng::from_str(&piece).unwrap();
            piece["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned()
        });
        let mut read_so_far = 0;
        for environment in environments {
            let pair = |one: &serde_json::Value| {
                Some((one["name"].as_str()?.to_owned(), one["value"].as_str()?.to_owned()))
            };
            let pairs: Vec<_> = environment.iter().map(|one| pair(one).unwrap()).collect();
            let mut all = vec![("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "gate")];
            all.extend(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            let (config, mistakes) = read(&all);
            assert_eq!(mistakes, Vec::<String>::new());
            assert!(config.telemetry.traces.is_some());
            assert_eq!(config.access.is_some(), config.telemetry.logs.is_some());
            read_so_far += 1;
        }
        assert_eq!(read_so_far, 2);
    }
}
