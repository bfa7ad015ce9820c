//! `istio.workload.Workload` (protocols 2.1).

use std::sync::Arc;

use ambit_model::{
    identity::DEFAULT_TRUST_DOMAIN,
    name::{PolicyKey, ServiceKey, Uid},
    workload::{
        ApplicationProtocol, ApplicationTunnel, Capacity, Health, Locality, NetworkMode, Tunnel, Workload,
        WorkloadType,
    },
};
use ambit_proto::workload as pb;

use super::{
    Interner, InvalidResource, decode_enum, decode_gateway, decode_ip, decode_port, decode_ports,
    encode_gateway, encode_ip, encode_ports,
};

/// What an empty account means.
const DEFAULT_ACCOUNT: &str = "default";
/// What an empty cluster means.
const DEFAULT_CLUSTER: &str = "Kubernetes";

pub(super) fn decode(message: pb::Workload, names: &mut Interner) -> Result<Workload, InvalidResource> {
    if message.uid.is_empty() {
        return Err(InvalidResource::field("uid", "is empty"));
    }
    let addresses =
        message.addresses.iter().map(|bytes| decode_ip("addresses", bytes)).collect::<Result<_, _>>()?;
    let tunnel = match decode_enum("tunnel_protocol", message.tunnel_protocol)? {
        pb::TunnelProtocol::None => Tunnel::None,
        pb::TunnelProtocol::Hbone => Tunnel::Hbone,
        pb::TunnelProtocol::LegacyIstioMtls => {
            return Err(InvalidResource::field("tunnel_protocol", "LEGACY_ISTIO_MTLS is not spoken here"));
        }
    };
    let mut services = message
        .services
        .iter()
        .map(|(key, ports)| {
            let (namespace, hostname) = key.split_once('/').ok_or_else(|| {
                InvalidResource::field("services", format!("{key:?} is not namespace/hostname"))
            })?;
            let key = ServiceKey { namespace: names.name(namespace), hostname: names.name(hostname) };
            Ok((key, names.ports(decode_ports("services", &ports.ports)?)))
        })
        .collect::<Result<Vec<_>, InvalidResource>>()?;
    services.sort_by(|(a, _), (b, _)| a.cmp(b));
    let policies = message
        .authorization_policies
        .iter()
        .map(|name| {
            let (namespace, name) = name.split_once('/').ok_or_else(|| {
                InvalidResource::field("authorization_policies", format!("{name:?} is not namespace/name"))
            })?;
            Ok(PolicyKey { namespace: names.name(namespace), name: names.name(name) })
        })
        .collect::<Result<Vec<_>, InvalidResource>>()?;
    let locality = message.locality.unwrap_or_default();
    Ok(Workload {
        uid: Uid::from(message.uid),
        name: names.name(&message.name),
        namespace: names.name(&message.namespace),
        addresses,
        hostname: names.name(&message.hostname),
        network: names.name(&message.network),
        tunnel,
        trust_domain: names.name(or(&message.trust_domain, DEFAULT_TRUST_DOMAIN)),
        service_account: names.name(or(&message.service_account, DEFAULT_ACCOUNT)),
        waypoint: message
            .waypoint
            .map(|gateway| decode_gateway("waypoint", gateway, names).map(Box::new))
            .transpose()?,
        network_gateway: message
            .network_gateway
            .map(|gateway| decode_gateway("network_gateway", gateway, names).map(Box::new))
            .transpose()?,
        node: names.name(&message.node),
        canonical_name: names.name(&message.canonical_name),
        canonical_revision: names.name(&message.canonical_revision),
        workload_type: match decode_enum("workload_type", message.workload_type)? {
            pb::WorkloadType::Deployment => WorkloadType::Deployment,
            pb::WorkloadType::Cronjob => WorkloadType::Cronjob,
            pb::WorkloadType::Pod => WorkloadType::Pod,
            pb::WorkloadType::Job => WorkloadType::Job,
        },
        workload_name: names.name(&message.workload_name),
        native_tunnel: message.native_tunnel,
        application_tunnel: message.application_tunnel.map(decode_tunnel).transpose()?,
        services: shared(services),
        authorization_policies: shared(policies),
        health: match decode_enum("status", message.status)? {
            pb::WorkloadStatus::Healthy => Health::Healthy,
            pb::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        cluster: names.name(or(&message.cluster_id, DEFAULT_CLUSTER)),
        locality: Locality {
            region: names.name(&locality.region),
            zone: names.name(&locality.zone),
            subzone: names.name(&locality.subzone),
        },
        network_mode: match decode_enum("network_mode", message.network_mode)? {
            pb::NetworkMode::Standard => NetworkMode::Standard,
            pb::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        capacity: message.capacity.map_or_else(Capacity::default, Capacity),
    })
}

/// All empty lists are the same one.
fn shared<T>(items: Vec<T>) -> Arc<[T]> {
    if items.is_empty() { Arc::default() } else { items.into() }
}

fn or<'t>(text: &'t str, default: &'t str) -> &'t str {
    if text.is_empty() { default } else { text }
}

fn decode_tunnel(message: pb::ApplicationTunnel) -> Result<ApplicationTunnel, InvalidResource> {
    let port = decode_port("application_tunnel.port", message.port)?;
    Ok(ApplicationTunnel {
        protocol: match decode_enum("application_tunnel.protocol", message.protocol)? {
            pb::application_tunnel::Protocol::None => ApplicationProtocol::None,
            pb::application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
        },
        port: (port != 0).then_some(port),
    })
}

pub(super) fn encode(workload: &Workload) -> pb::Workload {
    let Locality { region, zone, subzone } = &workload.locality;
    let locality =
        pb::Locality { region: region.to_string(), zone: zone.to_string(), subzone: subzone.to_string() };
    pb::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().map(encode_ip).collect(),
        hostname: workload.hostname.to_string(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.tunnel {
            Tunnel::None => pb::TunnelProtocol::None,
            Tunnel::Hbone => pb::TunnelProtocol::Hbone,
        }
        .into(),
        // The default domain is spelled as nothing (protocols 11.5).
        trust_domain: if workload.trust_domain.is_default() {
            String::new()
        } else {
            workload.trust_domain.to_string()
        },
        service_account: workload.service_account.to_string(),
        waypoint: workload.waypoint.as_deref().map(encode_gateway),
        network_gateway: workload.network_gateway.as_deref().map(encode_gateway),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => pb::WorkloadType::Deployment,
            WorkloadType::Cronjob => pb::WorkloadType::Cronjob,
            WorkloadType::Pod => pb::WorkloadType::Pod,
            WorkloadType::Job => pb::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel.map(|tunnel| pb::ApplicationTunnel {
            protocol: match tunnel.protocol {
                ApplicationProtocol::None => pb::application_tunnel::Protocol::None,
                ApplicationProtocol::Proxy => pb::application_tunnel::Protocol::Proxy,
            }
            .into(),
            port: tunnel.port.unwrap_or_default().into(),
        }),
        services: workload
            .services
            .iter()
            .map(|(key, ports)| (key.to_string(), pb::PortList { ports: encode_ports(ports) }))
            .collect(),
        authorization_policies: workload.authorization_policies.iter().map(ToString::to_string).collect(),
        status: match workload.health {
            Health::Healthy => pb::WorkloadStatus::Healthy,
            Health::Unhealthy => pb::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster.to_string(),
        locality: (workload.locality != Locality::default()).then_some(locality),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => pb::NetworkMode::Standard,
            NetworkMode::HostNetwork => pb::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: Vec::new(),
        capacity: (workload.capacity != Capacity::default()).then_some(workload.capacity.0),
    }
}
