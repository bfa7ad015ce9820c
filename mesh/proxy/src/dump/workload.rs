//! Workloads, as istioctl reads them.

use std::net::IpAddr;

use ambit_model::{
    gateway::{GatewayAddress, GatewayDestination},
    snapshot::Snapshot,
    workload::{ApplicationTunnel, Health, Locality, NetworkMode, Tunnel, Workload, WorkloadType},
};
use serde::Serialize;

/// One workload as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown<'a> {
    uid: &'a str,
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<Gateway>,
    protocol: Tunnel,
    network_mode: NetworkMode,
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
    workload_name: &'a str,
    workload_type: WorkloadType,
    canonical_name: &'a str,
    canonical_revision: &'a str,
    hostname: &'a str,
    network: &'a str,
    node: &'a str,
    native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<ApplicationTunnel>,
    authorization_policies: Vec<String>,
    status: Health,
    cluster_id: &'a str,
    locality: &'a Locality,
    services: Vec<String>,
    capacity: u32,
}

/// A reference to a waypoint or gateway: one text, whichever way it names it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    destination: String,
    hbone_mtls_port: u16,
}

impl From<&GatewayAddress> for Gateway {
    fn from(gateway: &GatewayAddress) -> Self {
        let destination = match &gateway.destination {
            GatewayDestination::Hostname(key) => key.to_string(),
            GatewayDestination::Address(address) => address.to_string(),
        };
        Self { destination, hbone_mtls_port: gateway.hbone_mtls_port }
    }
}

/// All that are known, by their keys.
pub fn all(mesh: &Snapshot) -> Vec<Shown<'_>> {
    let mut all: Vec<_> = mesh.workloads().map(|workload| shown(workload)).collect();
    all.sort_by_key(|workload| workload.uid);
    all
}

fn shown(workload: &Workload) -> Shown<'_> {
    Shown {
        uid: workload.uid.as_str(),
        workload_ips: &workload.addresses,
        waypoint: workload.waypoint.as_deref().map(Gateway::from),
        network_gateway: workload.network_gateway.as_deref().map(Gateway::from),
        protocol: workload.tunnel,
        network_mode: workload.network_mode,
        name: workload.name.as_str(),
        namespace: workload.namespace.as_str(),
        trust_domain: workload.trust_domain.as_str(),
        service_account: workload.service_account.as_str(),
        workload_name: workload.workload_name.as_str(),
        workload_type: workload.workload_type,
        canonical_name: workload.canonical_name.as_str(),
        canonical_revision: workload.canonical_revision.as_str(),
        hostname: workload.hostname.as_str(),
        network: workload.network.as_str(),
        node: workload.node.as_str(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel,
        authorization_policies: workload.authorization_policies.iter().map(ToString::to_string).collect(),
        status: workload.health,
        cluster_id: workload.cluster.as_str(),
        locality: &workload.locality,
        services: workload.services.iter().map(|(key, _)| key.to_string()).collect(),
        capacity: workload.capacity.0,
    }
}
