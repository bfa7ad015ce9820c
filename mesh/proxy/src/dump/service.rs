//! Services and their endpoints, as istioctl reads them.

use std::collections::BTreeMap;

use ambit_model::{
    address::{NetworkAddress, NetworkRange},
    name::{Label, ServiceKey},
    service::{IpFamilies, LoadBalancing, PortMap, Service, Visibility},
    snapshot::{Endpoints, Snapshot},
    workload::Health,
};
use serde::Serialize;

use super::workload::Gateway;

/// One service as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: &'a [NetworkAddress],
    cidr_vips: &'a [NetworkRange],
    ports: &'a PortMap,
    endpoints: BTreeMap<&'a str, EndpointShown<'a>>,
    subject_alt_names: &'a [Label],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<Weighted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<&'a LoadBalancing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: Visibility,
}

#[derive(Debug, Serialize)]
struct Weighted {
    destination: Gateway,
    weight: u32,
}

/// One endpoint as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointShown<'a> {
    workload_uid: &'a str,
    service: String,
    port: &'a PortMap,
    status: Health,
}

/// All that are known, by namespace and name.
pub fn all(mesh: &Snapshot) -> Vec<Shown<'_>> {
    let mut all: Vec<_> = mesh.services().map(|service| shown(mesh, service)).collect();
    all.sort_by_key(|service| (service.namespace, service.hostname));
    all
}

/// Endpoints that wait for their service.
pub fn staged(mesh: &Snapshot) -> BTreeMap<String, BTreeMap<&str, EndpointShown<'_>>> {
    mesh.staged().map(|(key, endpoints)| (key.to_string(), endpoints_shown(key, endpoints))).collect()
}

fn shown<'a>(mesh: &'a Snapshot, service: &'a Service) -> Shown<'a> {
    let key = service.key();
    let weighted = service.weighted_waypoints.iter();
    Shown {
        name: service.name.as_str(),
        namespace: service.namespace.as_str(),
        hostname: service.hostname.as_str(),
        vips: &service.vips,
        cidr_vips: &service.ranges,
        ports: &service.ports,
        endpoints: mesh.endpoints(&key).map(|all| endpoints_shown(&key, all)).unwrap_or_default(),
        subject_alt_names: &service.subject_alt_names,
        waypoint: service.waypoint.as_ref().map(Gateway::from),
        weighted_waypoints: weighted
            .map(|one| Weighted { destination: Gateway::from(&one.destination), weight: one.weight })
            .collect(),
        load_balancer: Some(&service.load_balancing).filter(|policy| **policy != LoadBalancing::default()),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => None,
            IpFamilies::Ipv4Only => Some("IPv4"),
            IpFamilies::Ipv6Only => Some("IPv6"),
            IpFamilies::Dual => Some("Dual"),
        },
        canonical: service.canonical,
        visibility: service.visibility,
    }
}

fn endpoints_shown<'a>(key: &ServiceKey, endpoints: &'a Endpoints) -> BTreeMap<&'a str, EndpointShown<'a>> {
    let shown = endpoints.as_slice().iter().map(|endpoint| {
        let uid = endpoint.workload.uid.as_str();
        let status = endpoint.workload.health;
        (uid, EndpointShown { workload_uid: uid, service: key.to_string(), port: &endpoint.ports, status })
    });
    shown.collect()
}
