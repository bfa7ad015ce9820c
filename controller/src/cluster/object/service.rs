//! Kubernetes Services.

use std::net::IpAddr;

use ambit_api::k8s_openapi::{api::core::v1 as k8s, apimachinery::pkg::util::intstr::IntOrString};
use ambit_model::{
    name::{Label, Namespace},
    service::{AppProtocol, IpFamilies},
};

use super::{Meta, Rejection, Selector, protocol};

/// What the mesh needs of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Its virtual addresses; none for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports, TCP first.
    pub ports: Vec<Port>,
    /// The pods behind it; none when its endpoints are written by hand.
    pub selector: Option<Selector>,
    /// Whether it has no virtual address, and wants none: its clients call its pods.
    pub is_headless: bool,
    /// Whether it is but another name for a host outside.
    pub is_external_name: bool,
    /// The IP families it has.
    pub ip_families: IpFamilies,
    /// Whether only endpoints of the client's own node may be used.
    pub local_only: bool,
    /// Which endpoints are preferred.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Whether endpoints are used before they are ready.
    pub publish_not_ready: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty if it is the only one.
    pub name: Label,
    /// The number that clients use.
    pub number: u16,
    /// Where it leads.
    pub target: Target,
    /// What it carries, if that is said.
    pub protocol: Option<AppProtocol>,
}

/// Where a service port leads on an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this port.
    Number(u16),
    /// To the container port of this name.
    Named(Label),
}

/// Which endpoints are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Those of the client's zone.
    SameZone,
    /// Those of the client's node, then zone.
    SameNode,
}

impl TrafficDistribution {
    /// Reads Kubernetes' and Istio's word for it, in any case. An unknown word states no preference.
    pub fn parse(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Some(Self::SameZone),
            "prefersamenode" => Some(Self::SameNode),
            _ => None,
        }
    }
}

impl Service {
    pub(super) fn parse(namespace: Namespace, object: k8s::Service) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec.unwrap_or_default();
        let mut declared = spec.ports.unwrap_or_default();
        // A number may be used by TCP and by UDP; the mesh carries TCP.
        declared.sort_by_key(|port| !is_tcp(port));
        let ports = declared.into_iter().map(parse_port).collect::<Result<_, _>>()?;
        let (v4, v6) = spec
            .ip_families
            .iter()
            .flatten()
            .fold((false, false), |(v4, v6), family| (v4 || family == "IPv4", v6 || family == "IPv6"));
        let is_headless = spec.cluster_ip.as_deref() == Some("None");
        let mut cluster_ips = Vec::new();
        for text in spec.cluster_ips.into_iter().flatten().chain(spec.cluster_ip) {
            if text.is_empty() || text == "None" {
                continue;
            }
            let ip: IpAddr = text.parse().map_err(|_| {
                Rejection::new(
                    "spec.clusterIPs",
                    format!("{text:?} is not an IP address"),
                    "write an address or None",
                )
            })?;
            if !cluster_ips.contains(&ip.to_canonical()) {
                cluster_ips.push(ip.to_canonical());
            }
        }
        Ok(Self {
            meta,
            cluster_ips,
            ports,
            selector: spec.selector.and_then(Selector::new),
            is_headless,
            is_external_name: spec.type_.as_deref() == Some("ExternalName"),
            ip_families: match (v4, v6) {
                (false, false) => IpFamilies::Automatic,
                (true, false) => IpFamilies::Ipv4Only,
                (false, true) => IpFamilies::Ipv6Only,
                (true, true) => IpFamilies::Dual,
            },
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            traffic_distribution: spec.traffic_distribution.as_deref().and_then(TrafficDistribution::parse),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        })
    }
}

fn is_tcp(port: &k8s::ServicePort) -> bool {
    port.protocol.as_deref().is_none_or(|word| word == "TCP")
}

fn parse_port(port: k8s::ServicePort) -> Result<Port, Rejection> {
    let number = super::port("spec.ports[].port", port.port)?;
    let named = port.name.as_deref().unwrap_or_default();
    let protocol = protocol::of_port(port.app_protocol.as_deref(), named).filter(|_| is_tcp(&port));
    let target = match port.target_port {
        None | Some(IntOrString::Int(0)) => Target::Number(number),
        Some(IntOrString::Int(target)) => Target::Number(super::port("spec.ports[].targetPort", target)?),
        Some(IntOrString::String(name)) => match name.parse::<u16>() {
            Ok(target) if target != 0 => Target::Number(target),
            Ok(_) | Err(_) if name.is_empty() => Target::Number(number),
            Ok(_) | Err(_) => Target::Named(name.into()),
        },
    };
    Ok(Port { name: port.name.unwrap_or_default().into(), number, target, protocol })
}
