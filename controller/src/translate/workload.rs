//! Workloads, as the mesh knows them (protocols 11.5): pods, WorkloadEntries, endpoints that are written in
//! ServiceEntries, and endpoints of EndpointSlices that are no pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ambit_api::labels;
use ambit_model::{
    name::{Hostname, Label, Namespace, Network, PolicyKey, ServiceKey, Uid},
    service::{PortMap, TargetPort},
    workload::{Capacity, Health, NetworkMode, Tunnel, Workload, WorkloadType},
};

use super::{WorkloadSource, authz, peer_auth, service, waypoint};
use crate::cluster::object::{
    Endpoint, EndpointSlice, EntryAddress, EntryPort, Labels, Meta, Name, Pod, Resolution, Service,
    ServiceEntry, Target,
};
use crate::cluster::{Cluster, HostOwner, Member, SelectorOwner};

/// The workload that is made from `source`; `None` if it takes no part in the mesh.
pub fn translate(cluster: &Cluster, source: &WorkloadSource) -> Option<Workload> {
    match source {
        WorkloadSource::Pod(name) => of_pod(cluster, cluster.pods.get(name)?),
        WorkloadSource::Entry(name) => of_entry(cluster, name),
        WorkloadSource::Inline { entry, address } => of_inline(cluster, entry, address),
        WorkloadSource::Slice { slice, ip } => of_slice(cluster, slice, *ip),
    }
}

/// The endpoints that a ServiceEntry brings along: those written in it, or its hosts if DNS is to resolve them.
pub fn inline_sources(entry: &ServiceEntry) -> Vec<WorkloadSource> {
    let inline = |address| WorkloadSource::Inline { entry: entry.meta.name.clone(), address };
    if entry.endpoints.is_empty() {
        resolved_hosts(entry).map(|host| inline(EntryAddress::Host(host.clone()))).collect()
    } else {
        entry.endpoints.iter().map(|endpoint| inline(endpoint.address.clone())).collect()
    }
}

/// The endpoints of a slice that are no pods.
pub fn slice_sources(slice: &EndpointSlice) -> Vec<WorkloadSource> {
    let ips =
        slice.endpoints.iter().filter(|endpoint| endpoint.pod.is_none()).flat_map(|endpoint| &endpoint.ips);
    ips.map(|ip| WorkloadSource::Slice { slice: slice.meta.name.clone(), ip: *ip }).collect()
}

/// By what the mesh knows a pod or workload entry.
pub fn member_uid(cluster: &Cluster, member: &Member) -> Uid {
    let cluster_id = &cluster.settings().cluster;
    match member {
        Member::Pod(name) => format!("{cluster_id}//Pod/{}/{}", name.namespace, name.name).into(),
        Member::Entry(name) => {
            format!("{cluster_id}/networking.istio.io/WorkloadEntry/{}/{}", name.namespace, name.name).into()
        }
    }
}

/// By what the mesh knows an endpoint that is written in a ServiceEntry.
pub fn inline_uid(cluster: &Cluster, entry: &Name, address: &EntryAddress) -> Uid {
    let cluster_id = &cluster.settings().cluster;
    format!("{cluster_id}/networking.istio.io/ServiceEntry/{}/{}/{address}", entry.namespace, entry.name)
        .into()
}

/// By what the mesh knows an endpoint of a slice that is no pod.
fn slice_uid(cluster: &Cluster, slice: &Name, ip: IpAddr) -> Uid {
    let cluster_id = &cluster.settings().cluster;
    format!("{cluster_id}/discovery.k8s.io/EndpointSlice/{}/{}/{ip}", slice.namespace, slice.name).into()
}

/// A pod that has ended or has no address is no workload; one that is not ready is an unhealthy one.
fn of_pod(cluster: &Cluster, pod: &Pod) -> Option<Workload> {
    if pod.phase.is_terminal() || pod.ips.is_empty() {
        return None;
    }
    let name = &pod.meta.name;
    let services = services_of_pod(cluster, pod);
    let instance = waypoint::instance_of(cluster, &pod.meta);
    let (tunnel, native_tunnel) = tunnel_of(&pod.meta);
    let node = cluster.nodes.get(&Name::new("", pod.node.as_str()));
    let common = common(cluster, &pod.meta, &pod.meta.labels, &services, pod.owner.name.clone());
    Some(Workload {
        uid: member_uid(cluster, &Member::Pod(name.clone())),
        addresses: pod.ips.clone().into(),
        tunnel,
        native_tunnel,
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        application_tunnel: instance.flatten(),
        health: if pod.ready && !pod.deleting { Health::Healthy } else { Health::Unhealthy },
        locality: node.map(|node| node.locality.clone()).unwrap_or_default(),
        network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        workload_name: pod.owner.name.clone(),
        services: services.into_iter().collect(),
        ..common
    })
}

fn of_entry(cluster: &Cluster, name: &Name) -> Option<Workload> {
    let entry = cluster.workload_entries.get(name)?;
    let services = services_selecting(cluster, &name.namespace, &entry.labels, &|port: &PortOf<'_>| {
        port_of_endpoint(&entry.endpoint, port)
    });
    let (tunnel, native_tunnel) = tunnel_of(&entry.meta);
    let common = common(cluster, &entry.meta, &entry.labels, &services, name.name.clone());
    Some(Workload {
        uid: member_uid(cluster, &Member::Entry(name.clone())),
        tunnel,
        native_tunnel,
        services: services.into_iter().collect(),
        ..at(&entry.endpoint, common)
    })
}

fn of_inline(cluster: &Cluster, name: &Name, address: &EntryAddress) -> Option<Workload> {
    let entry = cluster.service_entries.get(name)?;
    let owner = HostOwner::ServiceEntry(name.clone());
    let written = entry.endpoints.iter().find(|endpoint| endpoint.address == *address);
    let resolved = match address {
        EntryAddress::Host(host) if entry.endpoints.is_empty() => {
            resolved_hosts(entry).find(|one| *one == host)
        }
        EntryAddress::Host(_) | EntryAddress::Ip(_) => None,
    };
    let hosts: &[Hostname] = match (written, resolved) {
        (Some(_), _) => &entry.hosts,
        (None, Some(host)) => std::slice::from_ref(host),
        (None, None) => return None,
    };
    let target = |port: &EntryPort| {
        written
            .and_then(|endpoint| port_of_endpoint(endpoint, &PortOf::Entry(port)))
            .unwrap_or(port.default_target())
    };
    let ports: PortMap =
        entry.ports.iter().map(|port| (port.number, TargetPort::Number(target(port)))).collect();
    let services: BTreeMap<ServiceKey, PortMap> = hosts
        .iter()
        .filter(|host| service::defines(cluster, &owner, host))
        .map(|host| (ServiceKey { namespace: name.namespace.clone(), hostname: host.clone() }, ports.clone()))
        .collect();
    // An endpoint of nothing: another object defines every host that this one names.
    if services.is_empty() {
        return None;
    }
    let nothing = Labels::default();
    let endpoint_labels = written.map_or(&nothing, |endpoint| &endpoint.labels);
    let (tunnel, native_tunnel) = tunnel_of(&entry.meta);
    let mut common = common(cluster, &entry.meta, endpoint_labels, &services, name.name.clone());
    if written.is_none() {
        common.waypoint = None;
        common.hostname = match address {
            EntryAddress::Host(host) => host.clone(),
            EntryAddress::Ip(_) => Hostname::default(),
        };
        common.service_account = "default".into();
    }
    let common = match written {
        Some(endpoint) => at(endpoint, common),
        None => common,
    };
    Some(Workload {
        uid: inline_uid(cluster, name, address),
        tunnel,
        native_tunnel,
        services: services.into_iter().collect(),
        ..common
    })
}

/// Written by hand, or by a controller that knows more than we do. Its address may be shared with others.
fn of_slice(cluster: &Cluster, name: &Name, ip: IpAddr) -> Option<Workload> {
    let slice = cluster.slices.get(name)?;
    let endpoint = slice.endpoints.iter().find(|one| one.pod.is_none() && one.ips.contains(&ip))?;
    let of = slice.service.as_ref()?;
    let object = cluster.services.get(of)?;
    let hostname = cluster.hostname_of(of);
    if !service::defines(cluster, &HostOwner::Service(of.clone()), &hostname) {
        return None;
    }
    let key = ServiceKey { namespace: of.namespace.clone(), hostname };
    let settings = cluster.settings();
    Some(Workload {
        uid: slice_uid(cluster, name, ip),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        addresses: [ip].into(),
        network: cluster.network(),
        tunnel: Tunnel::None,
        trust_domain: settings.trust_domain.clone(),
        services: [(key, ports_in_slice(object, slice))].into(),
        health: endpoint.health,
        cluster: settings.cluster.clone(),
        network_mode: NetworkMode::HostNetwork,
        ..Workload::default()
    })
}

/// What all but slices have in common: names, policies and waypoint.
fn common(
    cluster: &Cluster,
    meta: &Meta,
    selected_by: &Labels,
    services: &BTreeMap<ServiceKey, PortMap>,
    owner: Label,
) -> Workload {
    let namespace = meta.name.namespace.clone();
    let settings = cluster.settings();
    let binding = waypoint::of_workload(cluster, meta);
    let mut policies: BTreeSet<PolicyKey> =
        authz::references(cluster, &namespace, selected_by).into_iter().collect();
    policies.extend(peer_auth::reference(cluster, &namespace, selected_by));
    if settings.auto_allow_waypoints {
        policies.extend(waypoints_in_front(cluster, &binding, services));
    }
    let label = |keys: &[&str]| keys.iter().find_map(|key| selected_by.get(key)).map(Label::from);
    let name = [labels::CANONICAL_NAME, labels::APP_KUBERNETES_NAME, labels::APP];
    let revision = [labels::CANONICAL_REVISION, labels::APP_KUBERNETES_VERSION, labels::VERSION];
    Workload {
        name: meta.name.name.clone(),
        namespace,
        network: cluster.network(),
        trust_domain: settings.trust_domain.clone(),
        waypoint: binding.bound().map(|bound| Box::new(bound.address.clone())),
        canonical_name: label(&name).unwrap_or_else(|| owner.clone()),
        canonical_revision: label(&revision).unwrap_or_else(|| "latest".into()),
        workload_type: WorkloadType::Pod,
        workload_name: owner,
        authorization_policies: policies.into_iter().collect(),
        cluster: settings.cluster.clone(),
        ..Workload::default()
    }
}

/// What an endpoint says of itself.
fn at(endpoint: &Endpoint, workload: Workload) -> Workload {
    let (addresses, hostname): (Box<[IpAddr]>, _) = match &endpoint.address {
        EntryAddress::Ip(ip) => ([*ip].into(), Hostname::default()),
        EntryAddress::Host(host) => (Box::default(), host.clone()),
    };
    let network: Network = endpoint.network.clone().unwrap_or_else(|| workload.network.clone());
    Workload {
        addresses,
        hostname,
        network,
        service_account: endpoint.service_account.clone(),
        locality: endpoint.locality.clone(),
        capacity: endpoint.weight.map(Capacity).unwrap_or_default(),
        ..workload
    }
}

/// Whether HBONE reaches the object, and whether it terminates it itself. Enrolment alone does not count: only what
/// the node agent has really redirected.
fn tunnel_of(meta: &Meta) -> (Tunnel, bool) {
    let native = meta.labels.lists(labels::TUNNEL, labels::TUNNEL_HTTP);
    let captured = meta.annotations.get(labels::REDIRECTION) == Some(labels::REDIRECTION_ENABLED);
    (if native || captured { Tunnel::Hbone } else { Tunnel::None }, native)
}

/// A port of a service, whose number at an endpoint is asked for.
enum PortOf<'a> {
    Service(&'a Label, &'a Target),
    Entry(&'a EntryPort),
}

/// Services that a pod is an endpoint of: those that select it, and those without a selector whose slices name it.
fn services_of_pod(cluster: &Cluster, pod: &Pod) -> BTreeMap<ServiceKey, PortMap> {
    let named = |name: &Label| pod.ports.iter().find(|(one, _)| one == name).map(|(_, number)| *number);
    let mut services =
        services_selecting(cluster, &pod.meta.name.namespace, &pod.meta.labels, &|port| match port {
            PortOf::Service(_, Target::Number(number)) => Some(*number),
            PortOf::Service(_, Target::Named(name)) => named(name),
            PortOf::Entry(port) => Some(named(&port.name).unwrap_or_else(|| port.default_target())),
        });
    for slice in cluster.slices_of_pod(&pod.meta.name) {
        let Some(of) = &slice.service else { continue };
        let Some(object) = cluster.services.get(of).filter(|object| object.selector.is_none()) else {
            continue;
        };
        let hostname = cluster.hostname_of(of);
        let here = of.namespace == pod.meta.name.namespace;
        if here && service::defines(cluster, &HostOwner::Service(of.clone()), &hostname) {
            let key = ServiceKey { namespace: of.namespace.clone(), hostname };
            services.insert(key, ports_in_slice(object, slice));
        }
    }
    services
}

/// Services whose selector matches, each with its ports at this endpoint. A port that the endpoint has not is left out.
fn services_selecting(
    cluster: &Cluster,
    namespace: &Namespace,
    labels: &Labels,
    number: &dyn Fn(&PortOf<'_>) -> Option<u16>,
) -> BTreeMap<ServiceKey, PortMap> {
    let mut services = BTreeMap::new();
    for owner in cluster.selectors_of(namespace, labels) {
        match owner {
            SelectorOwner::Service(name) => {
                let hostname = cluster.hostname_of(&name);
                let object = cluster.services.get(&name);
                let Some(object) = object
                    .filter(|_| service::defines(cluster, &HostOwner::Service(name.clone()), &hostname))
                else {
                    continue;
                };
                let ports = object.ports.iter().filter_map(|port| {
                    let target = number(&PortOf::Service(&port.name, &port.target))?;
                    Some((port.number, TargetPort::Number(target)))
                });
                services.insert(ServiceKey { namespace: name.namespace, hostname }, ports.collect());
            }
            SelectorOwner::ServiceEntry(name) => {
                let Some(object) = cluster.service_entries.get(&name) else { continue };
                let ports: PortMap = object
                    .ports
                    .iter()
                    .filter_map(|port| Some((port.number, TargetPort::Number(number(&PortOf::Entry(port))?))))
                    .collect();
                let owner = HostOwner::ServiceEntry(name.clone());
                for host in object.hosts.iter().filter(|host| service::defines(cluster, &owner, host)) {
                    let key = ServiceKey { namespace: name.namespace.clone(), hostname: host.clone() };
                    services.insert(key, ports.clone());
                }
            }
            SelectorOwner::AuthorizationPolicy(_) | SelectorOwner::PeerAuthentication(_) => {}
        }
    }
    services
}

/// The number that a workload outside Kubernetes has for a port: its own by name, else the service's.
fn port_of_endpoint(endpoint: &Endpoint, port: &PortOf<'_>) -> Option<u16> {
    let own = |name: &Label| endpoint.ports.get(name.as_str()).copied();
    match port {
        PortOf::Entry(port) => Some(own(&port.name).unwrap_or_else(|| port.default_target())),
        PortOf::Service(name, Target::Number(number)) => Some(own(name).unwrap_or(*number)),
        PortOf::Service(name, Target::Named(target)) => own(target).or_else(|| own(name)),
    }
}

/// The ports of a service at the endpoints of a slice, matched by name.
fn ports_in_slice(service: &Service, slice: &EndpointSlice) -> PortMap {
    let number = |name: &Label| slice.ports.iter().find(|port| port.name == *name).map(|port| port.number);
    service
        .ports
        .iter()
        .filter_map(|port| Some((port.number, TargetPort::Number(number(&port.name)?))))
        .collect()
}

/// Hosts that stand for themselves as endpoints, by DNS.
fn resolved_hosts(entry: &ServiceEntry) -> impl Iterator<Item = &Hostname> {
    let by_dns = match entry.resolution {
        Resolution::Dns => entry.selector.is_none(),
        Resolution::None | Resolution::Static | Resolution::DynamicDns => false,
    };
    entry.hosts.iter().filter(move |host| by_dns && !ServiceEntry::is_wildcard(host))
}

/// The policies that let in the waypoints that traffic to a workload may come from: its own, and its services'.
fn waypoints_in_front(
    cluster: &Cluster,
    own: &waypoint::Binding,
    services: &BTreeMap<ServiceKey, PortMap>,
) -> Vec<PolicyKey> {
    let of_services = services.keys().filter_map(|key| match cluster.winner(key)? {
        HostOwner::Service(name) => Some(service::waypoint_of(cluster, cluster.services.get(&name)?)),
        HostOwner::ServiceEntry(name) => {
            Some(service::waypoint_of_entry(cluster, cluster.service_entries.get(&name)?))
        }
    });
    let bindings: Vec<_> = of_services.chain([own.clone()]).collect();
    let gateways = bindings.iter().filter_map(waypoint::Binding::bound).flat_map(waypoint::Bound::gateways);
    gateways.filter_map(|gateway| authz::allow_waypoint(cluster, gateway)).map(|policy| policy.key).collect()
}
