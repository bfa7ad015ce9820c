//! Services, as the mesh knows them (protocols 11.6).

use std::sync::Arc;

use ambit_api::labels;
use ambit_model::{
    address::{NetworkAddress, NetworkRange},
    name::{Hostname, ServiceKey},
    service::{
        AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, TargetPort, Visibility,
    },
};

use crate::cluster::object::{
    Meta, Resolution, Service as KubeService, ServiceEntry, Target, TrafficDistribution,
};
use crate::cluster::{Cluster, EntryVisibility, HostOwner};
use crate::translate::waypoint::{self, Binding, Bound};

/// The service of this name; `None` if nobody defines it, or it is not for the mesh.
pub fn translate(cluster: &Cluster, key: &ServiceKey) -> Option<Service> {
    let winner = cluster.winner(key)?;
    if !is_sent(cluster, &winner) {
        return None;
    }
    match &winner {
        HostOwner::Service(name) => Some(of_kubernetes(cluster, cluster.services.get(name)?, &key.hostname)),
        HostOwner::ServiceEntry(name) => {
            Some(of_entry(cluster, cluster.service_entries.get(name)?, &key.hostname, &winner))
        }
    }
}

/// Whether this object is the one that defines the service of that name in its namespace, and the mesh knows it.
/// Only such an object's endpoints are the service's endpoints.
pub fn defines(cluster: &Cluster, owner: &HostOwner, host: &Hostname) -> bool {
    let key = ServiceKey { namespace: owner.name().namespace.clone(), hostname: host.clone() };
    cluster.winner(&key).as_ref() == Some(owner) && is_sent(cluster, owner)
}

/// The waypoint of a Kubernetes Service.
pub fn waypoint_of(cluster: &Cluster, service: &KubeService) -> Binding {
    waypoint::of_service(cluster, &service.meta, false)
}

/// The waypoint of a ServiceEntry.
pub fn waypoint_of_entry(cluster: &Cluster, entry: &ServiceEntry) -> Binding {
    let private = cluster.settings().entry_visibility == Some(EntryVisibility::Namespace);
    waypoint::of_service(cluster, &entry.meta, private)
}

/// The waypoint of whatever defines a service; `None` if it is not there.
pub fn binding_of(cluster: &Cluster, owner: &HostOwner) -> Option<Binding> {
    match owner {
        HostOwner::Service(name) => Some(waypoint_of(cluster, cluster.services.get(name)?)),
        HostOwner::ServiceEntry(name) => Some(waypoint_of_entry(cluster, cluster.service_entries.get(name)?)),
    }
}

/// Whether only clients of its own namespace see it.
pub fn is_private(cluster: &Cluster, owner: &HostOwner) -> bool {
    match owner {
        HostOwner::Service(_) => false,
        HostOwner::ServiceEntry(_) => cluster.settings().entry_visibility == Some(EntryVisibility::Namespace),
    }
}

/// Which endpoints are preferred: as the Service says, else the object's annotation, else the namespace's.
pub fn distribution(
    cluster: &Cluster,
    meta: &Meta,
    declared: Option<TrafficDistribution>,
) -> Option<TrafficDistribution> {
    let annotated =
        || meta.annotations.get(labels::TRAFFIC_DISTRIBUTION).and_then(TrafficDistribution::parse);
    let inherited = || {
        let word = cluster.namespace_annotation(&meta.name.namespace, labels::TRAFFIC_DISTRIBUTION)?;
        TrafficDistribution::parse(word)
    };
    declared.or_else(annotated).or_else(inherited)
}

fn is_sent(cluster: &Cluster, owner: &HostOwner) -> bool {
    match owner {
        HostOwner::Service(name) => {
            cluster.services.get(name).is_some_and(|service| !service.is_external_name)
        }
        HostOwner::ServiceEntry(name) => cluster.service_entries.get(name).is_some_and(|entry| {
            let hidden = cluster.settings().entry_visibility == Some(EntryVisibility::None);
            // Only a waypoint can resolve whatever name is asked for.
            let inert = entry.resolution == Resolution::DynamicDns
                && waypoint_of_entry(cluster, entry).bound().is_none();
            !hidden && !inert
        }),
    }
}

fn of_kubernetes(cluster: &Cluster, object: &KubeService, hostname: &Hostname) -> Service {
    let network = cluster.network();
    let health_policy =
        if object.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let preference = distribution(cluster, &object.meta, object.traffic_distribution);
    let load_balancing = if object.local_only {
        LoadBalancing { routing_preferences: [Scope::Node].into(), mode: Mode::Strict, health_policy }
    } else {
        LoadBalancing { health_policy, ..preferring(preference) }
    };
    let target = |target: &Target| match target {
        Target::Number(number) => TargetPort::Number(*number),
        Target::Named(_) => TargetPort::Named,
    };
    let service = Service {
        name: object.meta.name.name.clone(),
        namespace: object.meta.name.namespace.clone(),
        hostname: hostname.clone(),
        vips: object.cluster_ips.iter().map(|ip| NetworkAddress::new(network.clone(), *ip)).collect(),
        ports: object.ports.iter().map(|port| (port.number, target(&port.target))).collect(),
        app_protocols: protocols(object.ports.iter().map(|port| (port.number, port.protocol))),
        load_balancing,
        ip_families: object.ip_families,
        canonical: true,
        ..Service::default()
    };
    through(waypoint_of(cluster, object).bound(), service)
}

fn of_entry(cluster: &Cluster, object: &ServiceEntry, hostname: &Hostname, owner: &HostOwner) -> Service {
    let network = cluster.network();
    let key = ServiceKey { namespace: object.meta.name.namespace.clone(), hostname: hostname.clone() };
    let automatic = cluster.vips().get(&key).into_iter().flat_map(|vip| vip.ips());
    let (single, ranges): (Vec<_>, Vec<_>) =
        object.addresses.iter().partition(|range| range.prefix_len() == range.max_prefix_len());
    let vips = single.into_iter().map(ipnet::IpNet::addr).chain(automatic);
    let load_balancing = match object.resolution {
        Resolution::None => LoadBalancing {
            mode: Mode::Passthrough,
            health_policy: HealthPolicy::AllowAll,
            ..LoadBalancing::default()
        },
        Resolution::Static | Resolution::Dns | Resolution::DynamicDns => {
            preferring(distribution(cluster, &object.meta, None))
        }
    };
    let service = Service {
        name: object.meta.name.name.clone(),
        namespace: key.namespace,
        hostname: key.hostname,
        vips: vips.map(|ip| NetworkAddress::new(network.clone(), ip)).collect(),
        ranges: ranges
            .into_iter()
            .map(|range| NetworkRange { network: network.clone(), range: *range })
            .collect(),
        ports: object
            .ports
            .iter()
            .map(|port| (port.number, TargetPort::Number(port.default_target())))
            .collect(),
        app_protocols: protocols(object.ports.iter().map(|port| (port.number, port.protocol))),
        subject_alt_names: object.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        load_balancing,
        ip_families: IpFamilies::Automatic,
        canonical: cluster.is_canonical(owner, hostname),
        visibility: match cluster.settings().entry_visibility {
            Some(EntryVisibility::Namespace) => Visibility::Namespace,
            Some(EntryVisibility::Public | EntryVisibility::None) | None => Visibility::Public,
        },
        ..Service::default()
    };
    through(waypoint_of_entry(cluster, object).bound(), service)
}

/// One for each number, the first, as with the ports themselves.
fn protocols(ports: impl Iterator<Item = (u16, Option<AppProtocol>)>) -> Arc<[(u16, AppProtocol)]> {
    let mut all: Vec<_> = ports.collect();
    all.sort_by_key(|(number, _)| *number);
    all.dedup_by_key(|(number, _)| *number);
    all.into_iter().filter_map(|(number, protocol)| Some((number, protocol?))).collect()
}

fn through(bound: Option<&Bound>, service: Service) -> Service {
    let Some(bound) = bound else { return service };
    Service {
        waypoint: Some(bound.address.clone()),
        weighted_waypoints: bound.weighted().into(),
        ingress_use_waypoint: bound.ingress,
        ..service
    }
}

fn preferring(preference: Option<TrafficDistribution>) -> LoadBalancing {
    let scopes: &[Scope] = match preference {
        None => return LoadBalancing::default(),
        Some(TrafficDistribution::SameZone) => &[Scope::Network, Scope::Region, Scope::Zone],
        Some(TrafficDistribution::SameNode) => {
            &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]
        }
    };
    LoadBalancing { routing_preferences: scopes.into(), mode: Mode::Failover, ..LoadBalancing::default() }
}
