//! `istio.workload.Service` (protocols 2.1).

use std::sync::Arc;

use ambit_model::{
    address::{NetworkAddress, NetworkRange},
    gateway::WeightedWaypoint,
    service::{AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, Visibility},
};
use ambit_proto::workload as pb;
use ipnet::IpNet;

use super::{
    Interner, InvalidResource, decode_enum, decode_gateway, decode_ip, decode_ports, encode_gateway,
    encode_ip, encode_ports,
};

pub(super) fn decode(message: pb::Service, names: &mut Interner) -> Result<Service, InvalidResource> {
    if message.hostname.is_empty() || message.hostname.contains('/') {
        return Err(InvalidResource::field("hostname", format!("{:?} is not a host name", message.hostname)));
    }
    let mut vips = Vec::new();
    let mut ranges = Vec::new();
    for address in &message.addresses {
        let ip = decode_ip("addresses", &address.address)?;
        let network = names.name(&address.network);
        match range("addresses", ip, address.length)? {
            None => vips.push(NetworkAddress { network, ip }),
            Some(range) => ranges.push(NetworkRange { network, range }),
        }
    }
    Ok(Service {
        name: names.name(&message.name),
        namespace: names.name(&message.namespace),
        hostname: names.name(&message.hostname),
        vips: vips.into(),
        ranges: ranges.into(),
        ports: decode_ports("ports", &message.ports)?,
        app_protocols: decode_protocols(&message.ports),
        subject_alt_names: message.subject_alt_names.iter().map(|name| names.name(name)).collect(),
        waypoint: message.waypoint.map(|gateway| decode_gateway("waypoint", gateway, names)).transpose()?,
        weighted_waypoints: message
            .weighted_waypoints
            .into_iter()
            .map(|one| {
                let destination = one
                    .destination
                    .ok_or_else(|| InvalidResource::field("weighted_waypoints", "has no destination"))?;
                let destination = decode_gateway("weighted_waypoints", destination, names)?;
                Ok(WeightedWaypoint { destination, weight: one.weight })
            })
            .collect::<Result<_, InvalidResource>>()?,
        load_balancing: message.load_balancing.map(decode_balancing).transpose()?.unwrap_or_default(),
        ip_families: match decode_enum("ip_families", message.ip_families)? {
            pb::IpFamilies::Automatic => IpFamilies::Automatic,
            pb::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
            pb::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
            pb::IpFamilies::Dual => IpFamilies::Dual,
        },
        canonical: message.canonical,
        ingress_use_waypoint: message.ingress_use_waypoint,
        // The one enum that grows by meaning "public" (protocols 2.1).
        visibility: match pb::service::Visibility::try_from(message.visibility) {
            Ok(pb::service::Visibility::Namespace) => Visibility::Namespace,
            Ok(pb::service::Visibility::Public) | Err(_) => Visibility::Public,
        },
    })
}

/// A protocol that is not known here is one of which nothing is said: it decides nothing that a tunnel does.
fn decode_protocols(ports: &[pb::Port]) -> Arc<[(u16, AppProtocol)]> {
    let known = ports.iter().filter_map(|port| {
        let protocol = match pb::AppProtocol::try_from(port.app_protocol) {
            Ok(pb::AppProtocol::Http11) => AppProtocol::Http11,
            Ok(pb::AppProtocol::Http2) => AppProtocol::Http2,
            Ok(pb::AppProtocol::Grpc) => AppProtocol::Grpc,
            Ok(pb::AppProtocol::Tcp) => AppProtocol::Tcp,
            Ok(pb::AppProtocol::Tls) => AppProtocol::Tls,
            Ok(pb::AppProtocol::Unknown) | Err(_) => return None,
        };
        Some((u16::try_from(port.service_port).ok()?, protocol))
    });
    known.collect()
}

fn encode_protocols(mut ports: Vec<pb::Port>, protocols: &[(u16, AppProtocol)]) -> Vec<pb::Port> {
    for port in &mut ports {
        let said = protocols.iter().find(|(number, _)| u32::from(*number) == port.service_port);
        let protocol = match said.map(|(_, protocol)| protocol) {
            None => pb::AppProtocol::Unknown,
            Some(AppProtocol::Http11) => pb::AppProtocol::Http11,
            Some(AppProtocol::Http2) => pb::AppProtocol::Http2,
            Some(AppProtocol::Grpc) => pb::AppProtocol::Grpc,
            Some(AppProtocol::Tcp) => pb::AppProtocol::Tcp,
            Some(AppProtocol::Tls) => pb::AppProtocol::Tls,
        };
        port.app_protocol = protocol.into();
    }
    ports
}

/// The range that `ip/length` is, or none when it is a single address.
fn range(
    field: &'static str,
    ip: std::net::IpAddr,
    length: Option<u32>,
) -> Result<Option<IpNet>, InvalidResource> {
    let full = if ip.is_ipv4() { 32 } else { 128 };
    match length {
        None => Ok(None),
        Some(length) if length == full => Ok(None),
        Some(length) => {
            let invalid = || InvalidResource::field(field, format!("{ip}/{length} is not a range"));
            let length = u8::try_from(length).map_err(|_| invalid())?;
            Ok(Some(IpNet::new(ip, length).map_err(|_| invalid())?.trunc()))
        }
    }
}

fn decode_balancing(message: pb::LoadBalancing) -> Result<LoadBalancing, InvalidResource> {
    use pb::load_balancing as wire;
    let scope = |number: &i32| {
        Ok(match decode_enum("load_balancing.routing_preference", *number)? {
            wire::Scope::Region => Scope::Region,
            wire::Scope::Zone => Scope::Zone,
            wire::Scope::Subzone => Scope::Subzone,
            wire::Scope::Node => Scope::Node,
            wire::Scope::Cluster => Scope::Cluster,
            wire::Scope::Network => Scope::Network,
            wire::Scope::UnspecifiedScope => {
                return Err(InvalidResource::field("load_balancing.routing_preference", "is unspecified"));
            }
        })
    };
    Ok(LoadBalancing {
        routing_preferences: message.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        mode: match decode_enum("load_balancing.mode", message.mode)? {
            wire::Mode::UnspecifiedMode => Mode::Standard,
            wire::Mode::Strict => Mode::Strict,
            wire::Mode::Failover => Mode::Failover,
            wire::Mode::Passthrough => Mode::Passthrough,
        },
        health_policy: match decode_enum("load_balancing.health_policy", message.health_policy)? {
            wire::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            wire::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

pub(super) fn encode(service: &Service) -> pb::Service {
    let single = service.vips.iter().map(|vip| pb::NetworkAddress {
        network: vip.network.to_string(),
        address: encode_ip(&vip.ip),
        length: None,
    });
    let ranges = service.ranges.iter().map(|range| pb::NetworkAddress {
        network: range.network.to_string(),
        address: encode_ip(&range.range.addr()),
        length: Some(range.range.prefix_len().into()),
    });
    pb::Service {
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
        hostname: service.hostname.to_string(),
        addresses: single.chain(ranges).collect(),
        ports: encode_protocols(encode_ports(&service.ports), &service.app_protocols),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(encode_gateway),
        load_balancing: encode_balancing(&service.load_balancing),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => pb::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => pb::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => pb::IpFamilies::Ipv6Only,
            IpFamilies::Dual => pb::IpFamilies::Dual,
        }
        .into(),
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: service.ingress_use_waypoint,
        weighted_waypoints: service
            .weighted_waypoints
            .iter()
            .map(|one| pb::WeightedWaypoint {
                destination: Some(encode_gateway(&one.destination)),
                weight: one.weight,
            })
            .collect(),
        visibility: match service.visibility {
            Visibility::Public => pb::service::Visibility::Public,
            Visibility::Namespace => pb::service::Visibility::Namespace,
        }
        .into(),
    }
}

fn encode_balancing(balancing: &LoadBalancing) -> Option<pb::LoadBalancing> {
    use pb::load_balancing as wire;
    let scope = |scope: &Scope| match scope {
        Scope::Region => wire::Scope::Region,
        Scope::Zone => wire::Scope::Zone,
        Scope::Subzone => wire::Scope::Subzone,
        Scope::Node => wire::Scope::Node,
        Scope::Cluster => wire::Scope::Cluster,
        Scope::Network => wire::Scope::Network,
    };
    (*balancing != LoadBalancing::default()).then(|| pb::LoadBalancing {
        routing_preference: balancing.routing_preferences.iter().map(|one| scope(one).into()).collect(),
        mode: match balancing.mode {
            Mode::Standard => wire::Mode::UnspecifiedMode,
            Mode::Strict => wire::Mode::Strict,
            Mode::Failover => wire::Mode::Failover,
            Mode::Passthrough => wire::Mode::Passthrough,
        }
        .into(),
        health_policy: match balancing.health_policy {
            HealthPolicy::OnlyHealthy => wire::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => wire::HealthPolicy::AllowAll,
        }
        .into(),
    })
}
