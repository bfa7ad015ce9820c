//! To which ports and clients of a service a VirtualService applies, and whom it reaches. Pure.
//!
//! | the VirtualService is in | it applies to |
//! |---|---|
//! | the service's own namespace | every client, or those of the namespaces in `exportTo` |
//! | another one | clients of that namespace, for whom it stands in place of the service's own |
//!
//! Of several in one namespace for one host the oldest applies. Where routes of Gateway API apply to a port and a client,
//! they take precedence. Istio lets a VirtualService send requests anywhere; here a waypoint calls with its own identity,
//! so a service of another namespace than its own needs a ReferenceGrant, as for [routes](super::route).

use std::collections::{BTreeMap, BTreeSet};

use ambit_model::{
    name::{Hostname, Namespace, ServiceKey},
    route::{Destination, Route},
    service::AppProtocol,
    service_config::Attached,
};

use super::{
    destination::governing,
    route::{Referrer, Refusal, all_ports, permit, port_of, refusal, told_of_lost},
    service,
};
use crate::cluster::object::{Exported, Kind, Reference, Referent, RouteKind, VirtualService};
use crate::cluster::{Cluster, HostOwner};

/// Where a VirtualService applies to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// For clients of this namespace (empty: of all others), at these ports.
    pub clients: BTreeMap<Namespace, BTreeSet<u16>>,
    /// The ports at which routes take precedence, at least for some clients.
    pub lost: Vec<(u16, RouteKind)>,
}

/// What VirtualServices say of a service, as routes.
pub fn attached(cluster: &Cluster, owner: &HostOwner, service: &ServiceKey) -> Vec<Attached<Route>> {
    let mut all = Vec::new();
    for object in cluster.virtual_services_of(&service.hostname).filter(|object| object.is_understood()) {
        let Ok(place) = place(cluster, object, owner, service) else { continue };
        for (client, ports) in place.clients {
            for (route, ports) in routes(cluster, object, owner, &client, &ports) {
                all.push(Attached { ports: ports.into(), consumers: client.clone(), route });
            }
        }
    }
    all
}

/// Its route for clients of one namespace, for as many ports at a time as have the same one.
fn routes(
    cluster: &Cluster,
    object: &VirtualService,
    owner: &HostOwner,
    client: &Namespace,
    ports: &BTreeSet<u16>,
) -> Vec<(Route, Vec<u16>)> {
    let mut routes: Vec<(Route, Vec<u16>)> = Vec::new();
    for port in ports {
        let resolve = |reference: &Reference| {
            reach(cluster, object, owner, reference, *port)
                .unwrap_or_else(|refusal| Destination::Invalid { reason: refusal.reason.into() })
        };
        // What passed the door compiles.
        let Ok(route) = object.route(*port, Some(client).filter(|client| !client.is_empty()), resolve) else {
            continue;
        };
        if route.rules().is_empty() {
            // None of its rules is for them: it is as if it were not there.
            continue;
        }
        match routes.iter_mut().find(|(known, _)| *known == route) {
            Some((_, ports)) => ports.push(*port),
            None => routes.push((route, vec![*port])),
        }
    }
    routes
}

/// Where `object` applies to the service that `owner` defines.
pub fn place(
    cluster: &Cluster,
    object: &VirtualService,
    owner: &HostOwner,
    service: &ServiceKey,
) -> Result<Place, Refusal> {
    let (own, namespace) = (&owner.name().namespace, &object.meta.name.namespace);
    if service::is_private(cluster, owner) && namespace != own {
        let message = "only its own namespace sees the ServiceEntry; put the VirtualService there";
        return Err(refusal("NoMatchingParent", message));
    }
    if is_headless(cluster, owner) {
        let message = format!(
            "Service {} has no address of its own: its clients call pods, whom no waypoint sees; name another",
            owner.name()
        );
        return Err(refusal("UnsupportedValue", message));
    }
    if let Some(older) = older(cluster, object, &service.hostname) {
        let message = format!(
            "VirtualService {} is older, and for {}, too; only the oldest applies, so write all rules there",
            older.meta.name, service.hostname
        );
        return Err(refusal("Conflicted", message));
    }
    let ports = http_ports(cluster, owner);
    if ports.is_empty() {
        let message = format!("no port of {} carries HTTP; say so in the port's appProtocol", owner.name());
        return Err(refusal("NoMatchingParent", message));
    }
    let taken = taken(cluster, owner, service);
    let everybody = Namespace::default();
    let mut place = Place { clients: BTreeMap::new(), lost: Vec::new() };
    for client in clients(object, own)? {
        if namespace == own && has_consumer(cluster, own, &client, &service.hostname) {
            continue;
        }
        let mut free = ports.clone();
        for port in &ports {
            // What is for some clients alone does not stand in place of a route that is for all.
            let before = [&client, &everybody].into_iter().take(if namespace == own { 2 } else { 1 });
            let before = before.filter_map(|one| taken.get(&(*port, one.clone()))).min();
            if let Some(kind) = before {
                free.remove(port);
                place.lost.push((*port, *kind));
            }
        }
        if !free.is_empty() {
            place.clients.insert(client, free);
        }
    }
    place.lost.sort_unstable();
    place.lost.dedup_by_key(|(port, _)| *port);
    if place.clients.is_empty() {
        let lost = told_of_lost(&place.lost);
        return Err(refusal("Conflicted", format!("{lost}; only one kind of routes applies to a port")));
    }
    Ok(place)
}

/// For clients of which namespaces; the empty one stands for all.
fn clients(object: &VirtualService, own: &Namespace) -> Result<BTreeSet<Namespace>, Refusal> {
    let namespace = &object.meta.name.namespace;
    let nobody = |message| Err(refusal("NotExported", message));
    if namespace != own {
        if !object.exported.includes(namespace) {
            return nobody(
                "it is for clients of its own namespace, since the service is of another; add `.` to exportTo",
            );
        }
        return Ok([namespace.clone()].into());
    }
    match &object.exported {
        Exported::Everywhere => {
            // Of whom a rule speaks alone, they have a table of their own.
            let sources = object.sources().into_iter().cloned();
            Ok(sources.chain([Namespace::default()]).collect())
        }
        Exported::To(namespaces) if namespaces.is_empty() => {
            nobody("exportTo is for nobody; name namespaces, or remove it")
        }
        Exported::To(namespaces) => Ok(namespaces.clone()),
    }
}

/// Whether clients of another namespace than the service's have a VirtualService of their own.
fn has_consumer(cluster: &Cluster, own: &Namespace, client: &Namespace, host: &Hostname) -> bool {
    client != own
        && cluster.virtual_services_of(host).any(|other| {
            other.is_understood() && other.meta.name.namespace == *client && other.exported.includes(client)
        })
}

/// An older one of the same namespace for the same host.
fn older<'c>(cluster: &'c Cluster, object: &VirtualService, host: &Hostname) -> Option<&'c VirtualService> {
    let same = |other: &&VirtualService| {
        other.is_understood() && other.meta.name.namespace == object.meta.name.namespace
    };
    let others = cluster.virtual_services_of(host).map(AsRef::as_ref).filter(same);
    others.filter(|other| other.meta.age() < object.meta.age()).min_by_key(|other| other.meta.age())
}

/// The ports and clients (empty: all) of a service to which routes of Gateway API apply.
fn taken(
    cluster: &Cluster,
    owner: &HostOwner,
    service: &ServiceKey,
) -> BTreeMap<(u16, Namespace), RouteKind> {
    let mut taken = BTreeMap::new();
    for route in cluster.routes_at(owner).filter(|route| route.is_understood()) {
        for (parent, _) in route.services().filter(|(_, other)| *other == owner) {
            let Ok(place) = super::route::place(cluster, route, parent, owner) else { continue };
            if place.services.contains(service) {
                for port in place.ports {
                    taken.entry((port, place.consumers.clone())).or_insert(route.kind);
                }
            }
        }
    }
    taken
}

fn is_headless(cluster: &Cluster, owner: &HostOwner) -> bool {
    match owner {
        HostOwner::Service(name) => cluster.services.get(name).is_some_and(|service| service.is_headless),
        HostOwner::ServiceEntry(_) => false,
    }
}

/// The ports that carry HTTP, or do not say what they carry.
fn http_ports(cluster: &Cluster, owner: &HostOwner) -> BTreeSet<u16> {
    let is_http = |protocol| match protocol {
        None | Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::Tcp | AppProtocol::Tls) => false,
    };
    let ports = all_ports(cluster, owner).into_iter();
    ports.filter(|port| is_http(port.protocol)).map(|port| port.number).collect()
}

/// The service that `reference` reaches from `object`, for requests to `port` of the service of `owner`.
pub fn reach(
    cluster: &Cluster,
    object: &VirtualService,
    owner: &HostOwner,
    reference: &Reference,
    port: u16,
) -> Result<Destination, Refusal> {
    let field = &reference.field;
    let not_found = |what: String| Err(refusal("BackendNotFound", format!("{field}: {what}")));
    let Referent::Host { host, port: named, subset } = &reference.to else {
        return not_found("names no host; name one".to_owned());
    };
    let (host, namespace) = (cluster.whole_host(host), &object.meta.name.namespace);
    let Some(target) = definer(cluster, namespace, &host) else {
        return not_found(format!("{host} is no service of the mesh; create it, or correct the name"));
    };
    let referrer = Referrer { kind: Kind::VirtualService, namespace, parent: Some(owner) };
    permit(cluster, referrer, field, target)?;
    let single = match all_ports(cluster, target).as_slice() {
        [one] => Some(one.number),
        _ => None,
    };
    let port = named.or(single).unwrap_or(port);
    port_of(cluster, referrer, field, target, port)?;
    let service = ServiceKey::new(target.name().namespace.clone(), host);
    Ok(Destination::Service { service, port, subset: subset.clone() })
}

/// Why a service that is reached answers none of the requests: the subset that is named is defined nowhere.
pub fn undefined(cluster: &Cluster, reference: &Reference, to: &Destination) -> Option<Refusal> {
    let Destination::Service { service, subset: Some(subset), .. } = to else { return None };
    let rule = governing(cluster, service);
    if rule.is_some_and(|rule| rule.subsets.iter().any(|one| one.name == *subset)) {
        return None;
    }
    let (field, host) = (&reference.field, &service.hostname);
    let what = format!("{field}: {host} has no subset {subset}; define it in the DestinationRule of {host}");
    Some(refusal("BackendNotFound", what))
}

/// Who defines the service of a host for a namespace: itself, else who is preferred among all.
fn definer<'c>(cluster: &'c Cluster, namespace: &Namespace, host: &Hostname) -> Option<&'c HostOwner> {
    let defined = || cluster.owners_of_host(host).filter(|owner| service::defines(cluster, owner, host));
    let own = defined().find(|owner| owner.name().namespace == *namespace);
    own.or_else(|| defined().find(|owner| cluster.is_canonical(owner, host)))
}
