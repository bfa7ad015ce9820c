//! What a route is attached to, and whom it reaches (GEP-1426, now GEP-1294). Pure.
//!
//! | the route is in | it applies to |
//! |---|---|
//! | the service's own namespace | every client |
//! | another one | clients of that namespace, for whom it stands in place of the service's own |
//!
//! Of the routes of one service, port and group of clients, those of one kind apply: GRPCRoutes before HTTPRoutes
//! before TLSRoutes before TCPRoutes. The others are told so.
//!
//! A route reaches services of its own namespace and the one that it is attached to. For any other it needs a
//! ReferenceGrant there. The specification lets a mesh do without where a route reaches no more than its clients could;
//! but here a waypoint calls with its own identity, so whoever wrote a route could reach whatever the waypoint may.

use std::collections::BTreeSet;

use ambit_model::{
    name::{Label, Namespace, ServiceKey},
    service::AppProtocol,
};

use super::service;
use crate::cluster::object::{Kind, Parent, Reference, Referent, Route, RouteKind};
use crate::cluster::{Cluster, HostOwner};

/// Where one parent reference puts a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The services: several for an entry of several hosts.
    pub services: Vec<ServiceKey>,
    /// The ports at which it applies.
    pub ports: BTreeSet<u16>,
    /// The ports at which routes of another kind take precedence.
    pub lost: Vec<(u16, RouteKind)>,
    /// For clients of this namespace alone; empty: for all.
    pub consumers: Namespace,
}

/// Why a route is not attached to a parent, or does not reach a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, as Gateway API has it.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A port of a service, of either kind.
pub(super) struct Port<'a> {
    pub(super) name: &'a Label,
    pub(super) number: u16,
    pub(super) protocol: Option<AppProtocol>,
}

/// Where a route is put by `parent`, which names `owner`.
pub fn place(cluster: &Cluster, route: &Route, parent: &Parent, owner: &HostOwner) -> Result<Place, Refusal> {
    let services = services_of(cluster, route, owner)?;
    let all = ports(cluster, parent, owner);
    if all.is_empty() {
        let message = "the service has no such port; correct port or sectionName, or add the port";
        return Err(refusal("NoMatchingParent", message));
    }
    let consumers = consumers(route, owner);
    let before = cluster.routes_at(owner).take_while(|other| other.kind < route.kind);
    let rivals = before.filter(|other| other.is_understood() && self::consumers(other, owner) == consumers);
    let mut lost: Vec<(u16, RouteKind)> = Vec::new();
    for rival in rivals {
        for (parent, _) in rival.services().filter(|(_, other)| *other == owner) {
            for port in ports(cluster, parent, owner).intersection(&all) {
                if !lost.iter().any(|(known, _)| known == port) {
                    lost.push((*port, rival.kind));
                }
            }
        }
    }
    lost.sort_unstable();
    let ports: BTreeSet<_> =
        all.into_iter().filter(|port| !lost.iter().any(|(known, _)| known == port)).collect();
    if ports.is_empty() {
        let message = format!("{}; only one kind of routes applies to a port", told_of_lost(&lost));
        return Err(refusal("Conflicted", message));
    }
    Ok(Place { services, ports, lost, consumers })
}

/// At which ports others take precedence, in words.
pub fn told_of_lost(lost: &[(u16, RouteKind)]) -> String {
    let one = |(port, kind): &(u16, RouteKind)| {
        format!("port {port} has {}s, which take precedence", kind.kind().word())
    };
    lost.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Who a route is for; empty: every client.
fn consumers(route: &Route, owner: &HostOwner) -> Namespace {
    let own = &route.meta.name.namespace;
    if *own == owner.name().namespace { Namespace::default() } else { own.clone() }
}

fn services_of(cluster: &Cluster, route: &Route, owner: &HostOwner) -> Result<Vec<ServiceKey>, Refusal> {
    let no_parent = |what: String| Err(refusal("NoMatchingParent", what));
    let hosts = match owner {
        HostOwner::Service(name) => match cluster.services.get(name) {
            None => return no_parent(format!("Service {name} is not there; correct the name, or create it")),
            Some(object) if object.is_external_name => {
                let what = "is another name for a host outside; name a ServiceEntry";
                return no_parent(format!("Service {name} {what}"));
            }
            Some(object) if object.is_headless => {
                let what = "has no address of its own: its clients call pods, whom routes do not see";
                return Err(refusal("UnsupportedValue", format!("Service {name} {what}; name another")));
            }
            Some(_) => vec![cluster.hostname_of(name)],
        },
        HostOwner::ServiceEntry(name) => match cluster.service_entries.get(name) {
            None => {
                return no_parent(format!(
                    "ServiceEntry {name} is not there; correct the name, or create it"
                ));
            }
            Some(entry) => entry.hosts.clone(),
        },
    };
    if service::is_private(cluster, owner) && route.meta.name.namespace != owner.name().namespace {
        return no_parent("only its own namespace sees the ServiceEntry; put the route there".to_owned());
    }
    let defined = hosts.into_iter().filter(|host| service::defines(cluster, owner, host));
    let services: Vec<_> =
        defined.map(|host| ServiceKey::new(owner.name().namespace.clone(), host)).collect();
    if services.is_empty() {
        let what = "defines no service that the mesh knows; another object may have its hosts";
        return no_parent(format!("{} {what}", owner.name()));
    }
    Ok(services)
}

/// The ports of a service that a parent reference means.
fn ports(cluster: &Cluster, parent: &Parent, owner: &HostOwner) -> BTreeSet<u16> {
    let is_meant = |port: &Port<'_>| {
        parent.port.is_none_or(|number| number == port.number)
            && parent.section.as_ref().is_none_or(|name| name == port.name)
    };
    all_ports(cluster, owner).into_iter().filter(is_meant).map(|port| port.number).collect()
}

/// The ports of a service.
pub(super) fn all_ports<'a>(cluster: &'a Cluster, owner: &HostOwner) -> Vec<Port<'a>> {
    match owner {
        HostOwner::Service(name) => {
            let ports = cluster.services.get(name).into_iter().flat_map(|service| &service.ports);
            ports
                .map(|port| Port { name: &port.name, number: port.number, protocol: port.protocol })
                .collect()
        }
        HostOwner::ServiceEntry(name) => {
            let ports = cluster.service_entries.get(name).into_iter().flat_map(|entry| &entry.ports);
            ports
                .map(|port| Port { name: &port.name, number: port.number, protocol: port.protocol })
                .collect()
        }
    }
}

/// Who refers to a service.
#[derive(Clone, Copy, Debug)]
pub struct Referrer<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: &'a Namespace,
    /// What it is attached to, which it may refer to wherever that is.
    pub parent: Option<&'a HostOwner>,
}

/// The service and port that `reference` reaches from `route`, as far as it is attached to `parent`.
pub fn reach(
    cluster: &Cluster,
    route: &Route,
    parent: &HostOwner,
    reference: &Reference,
) -> Result<(ServiceKey, u16), Refusal> {
    let namespace = &route.meta.name.namespace;
    reach_from(cluster, Referrer { kind: route.kind.kind(), namespace, parent: Some(parent) }, reference)
}

/// The service and port that `reference` reaches from `referrer`.
pub fn reach_from(
    cluster: &Cluster,
    referrer: Referrer<'_>,
    reference: &Reference,
) -> Result<(ServiceKey, u16), Refusal> {
    let refuse = |reason, what: String| Err(refusal(reason, format!("{}: {what}", reference.field)));
    let (owner, port) = match &reference.to {
        Referent::Service { owner, port } => (owner, *port),
        Referent::Other(kind) => {
            return refuse("InvalidKind", format!("{kind} is no service; name a Service or ServiceEntry"));
        }
        Referent::Host { .. } => {
            return refuse("InvalidKind", "a host is no object; name a Service or ServiceEntry".to_owned());
        }
    };
    permit(cluster, referrer, &reference.field, owner)?;
    let name = owner.name();
    let host = match owner {
        HostOwner::Service(name) => cluster.services.get(name).map(|_| cluster.hostname_of(name)),
        // Its first host speaks for it: they have the same endpoints.
        HostOwner::ServiceEntry(name) => {
            cluster.service_entries.get(name).and_then(|entry| entry.hosts.first().cloned())
        }
    };
    let Some(host) = host.filter(|host| service::defines(cluster, owner, host)) else {
        return refuse(
            "BackendNotFound",
            format!("{name} is no service of the mesh; create it, or correct the name"),
        );
    };
    if host.as_str().starts_with('*') {
        return refuse("BackendNotFound", format!("{host} stands for many names; name an entry with one"));
    }
    port_of(cluster, referrer, &reference.field, owner, port)?;
    Ok((ServiceKey::new(name.namespace.clone(), host), port))
}

/// Judges whether `referrer` may refer to a service, which it does in `field`.
pub(super) fn permit(
    cluster: &Cluster,
    referrer: Referrer<'_>,
    field: &str,
    owner: &HostOwner,
) -> Result<(), Refusal> {
    let refuse = |what: String| Err(refusal("RefNotPermitted", format!("{field}: {what}")));
    let Referrer { kind, namespace: own, parent } = referrer;
    let name = owner.name();
    let is_foreign = name.namespace != *own && Some(owner) != parent;
    if is_foreign && !cluster.is_granted(kind, own, owner) {
        let kind = kind.word();
        return refuse(format!(
            "{name} is of another namespace; a ReferenceGrant there must name {kind}s of {own}"
        ));
    }
    if service::is_private(cluster, owner) && name.namespace != *own {
        return refuse(format!("only its own namespace sees {name}"));
    }
    Ok(())
}

/// Judges whether a service has a port to which `referrer` can send something.
pub(super) fn port_of(
    cluster: &Cluster,
    referrer: Referrer<'_>,
    field: &str,
    owner: &HostOwner,
    port: u16,
) -> Result<(), Refusal> {
    let refuse = |reason, what: String| Err(refusal(reason, format!("{field}: {what}")));
    let name = owner.name();
    let Some(found) = all_ports(cluster, owner).into_iter().find(|one| one.number == port) else {
        return refuse("BackendNotFound", format!("{name} has no port {port}; correct it, or add the port"));
    };
    let of_requests = matches!(
        referrer.kind,
        Kind::GrpcRoute | Kind::HttpRoute | Kind::RateLimitPolicy | Kind::VirtualService
    );
    if of_requests && found.protocol == Some(AppProtocol::Tls) {
        let what = format!(
            "port {port} of {name} speaks TLS, which hides requests; name a port without, or write a TLSRoute"
        );
        return refuse("UnsupportedProtocol", what);
    }
    Ok(())
}

pub(super) fn refusal(reason: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}
