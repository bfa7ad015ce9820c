//! What a waypoint is to know of one service. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ambit_model::{
    authz::{Policy, Scope},
    name::{Namespace, PolicyKey, ServiceKey},
    route::{self as model, Destination, ExternalAuth, Filter, Filters, Rule},
    service_config::{Attached, Parts, ServiceConfig},
};

use super::{
    authz, destination, limit,
    route::{place, reach},
    service, virtual_service, waypoint,
};
use crate::cluster::object::{
    Name, PolicyTarget, Reference, RequestAuthentication, Route, RouteContent, Tokens,
};
use crate::cluster::{AttachedPolicy, Cluster, HostOwner};

/// What `gateway` is to know of a service; `None` if it does not serve it. One that is served and has no routes is
/// known, too: requests go to it as they come.
pub fn translate(cluster: &Cluster, gateway: &Name, service: &ServiceKey) -> Option<ServiceConfig> {
    if ServiceConfig::is_of_workloads(service) {
        return of_workloads(cluster, gateway);
    }
    let owner = cluster.winner(service)?;
    if !service::defines(cluster, &owner, &service.hostname) || !serving(cluster, &owner).contains(gateway) {
        return None;
    }
    let mut parts = Parts::default();
    for route in cluster.routes_at(&owner) {
        // Several references may name several ports.
        let mut ports: BTreeMap<Namespace, BTreeSet<u16>> = BTreeMap::new();
        for (parent, _) in route.services().filter(|(_, other)| **other == owner) {
            if let Ok(place) = place(cluster, route, parent, &owner)
                && place.services.contains(service)
            {
                ports.entry(place.consumers).or_default().extend(place.ports);
            }
        }
        for (consumers, ports) in ports {
            attach(cluster, route, &owner, (consumers, ports.into_iter().collect()), &mut parts);
        }
    }
    parts.http.extend(virtual_service::attached(cluster, &owner, service));
    parts.limits = limit::of_service(cluster, gateway, &owner, service);
    let own = PolicyTarget::Service(owner);
    judge(cluster, policies(cluster, gateway, Some(&own)), &mut parts);
    parts.traffic = destination::of_config(cluster, service, &parts);
    Some(ServiceConfig::new(service.clone(), parts))
}

/// What `gateway` is to know of what is addressed to workloads; `None` if it proxies no such traffic.
fn of_workloads(cluster: &Cluster, gateway: &Name) -> Option<ServiceConfig> {
    let found = cluster.gateways.get(gateway)?;
    let serves = waypoint::is_class_of_waypoints(cluster, &found.class)
        && waypoint::traffic_of(cluster, found).serves_workloads();
    if !serves {
        return None;
    }
    let mut parts = Parts { limits: limit::of_waypoint(cluster, gateway), ..Parts::default() };
    judge(cluster, policies(cluster, gateway, None), &mut parts);
    Some(ServiceConfig::new(ServiceConfig::key_of_workloads(&gateway.namespace), parts))
}

/// Adds what policies say.
fn judge(cluster: &Cluster, policies: BTreeSet<&AttachedPolicy>, parts: &mut Parts) {
    for policy in policies {
        match policy {
            AttachedPolicy::AuthorizationPolicy(name) => {
                let policy = cluster.authorization_policies.get(name);
                parts.policies.extend(policy.map(|policy| Arc::new(authz::at_waypoints(cluster, policy))));
            }
            AttachedPolicy::RequestAuthentication(name) => {
                if let Some(policy) = cluster.request_authentications.get(name) {
                    believe(policy, parts);
                }
            }
        }
    }
}

/// The policies that apply at a gateway, and to `own` there, by kind and name, each once.
fn policies<'c>(
    cluster: &'c Cluster,
    gateway: &Name,
    own: Option<&PolicyTarget>,
) -> BTreeSet<&'c AttachedPolicy> {
    let class = cluster.gateways.get(gateway).map(|gateway| &gateway.class);
    let class = class.filter(|class| waypoint::is_class_of_waypoints(cluster, class));
    let root = &cluster.settings().root_namespace;
    // Only the root namespace speaks for a whole class.
    let of_class = class
        .map(|class| PolicyTarget::Class(class.clone()))
        .into_iter()
        .flat_map(|class| cluster.policies_on(&class).filter(|policy| policy.name().namespace == *root));
    let of_gateway = cluster.policies_on(&PolicyTarget::Gateway(gateway.clone()));
    let of_own = own.into_iter().flat_map(|own| cluster.policies_on(own));
    of_own.chain(of_gateway).chain(of_class).collect()
}

/// Adds whose tokens are believed. Where that cannot be understood, nobody is let in.
fn believe(policy: &RequestAuthentication, parts: &mut Parts) {
    match &policy.tokens {
        Tokens::Rules(rules) => parts.authentication.extend(rules.iter().cloned()),
        Tokens::Undecodable(reason) => {
            // The `_` keeps it apart from every AuthorizationPolicy.
            let name = format!("requestauthentication_{}", policy.meta.name.name);
            let key = PolicyKey::new(policy.meta.name.namespace.clone(), name);
            let denial = Policy::undecodable(key, Some(Scope::WorkloadSelector), reason.clone());
            parts.policies.push(Arc::new(denial));
        }
    }
}

/// The gateways that have to know what applies to the services of an object.
pub fn serving(cluster: &Cluster, owner: &HostOwner) -> Vec<Name> {
    let meta = match owner {
        HostOwner::Service(name) => cluster.services.get(name).map(|object| &object.meta),
        HostOwner::ServiceEntry(name) => cluster.service_entries.get(name).map(|object| &object.meta),
    };
    let private = service::is_private(cluster, owner);
    meta.map(|meta| waypoint::serving(cluster, meta, private)).unwrap_or_default()
}

/// In place of a route that asks somebody about requests and makes no sense otherwise: all of them are answered with 500.
fn closed(unknown: &Route) -> Option<model::Route> {
    let nobody = Filter::ExternalAuth(ExternalAuth::Nobody { reason: "UnsupportedValue".into() });
    let filters = Filters::new(vec![nobody]).ok()?;
    model::Route::new(unknown.origin(), vec![Rule { filters, ..Rule::default() }]).ok()
}

fn attach(
    cluster: &Cluster,
    route: &Route,
    owner: &HostOwner,
    (consumers, ports): (Namespace, Box<[u16]>),
    parts: &mut Parts,
) {
    let resolve = |reference: &Reference| match reach(cluster, route, owner, reference) {
        Ok((service, port)) => Destination::Service { service, port, subset: None },
        Err(refusal) => Destination::Invalid { reason: refusal.reason.into() },
    };
    match &route.content {
        RouteContent::Requests(requests) => {
            // What passed the door compiles; if it did not, `route_status` would say so.
            if let Ok(route) = requests.compiled(route.origin(), resolve) {
                parts.http.push(Attached { ports, consumers, route });
            }
        }
        RouteContent::Connections(connections) => {
            if let Ok(route) = connections.compiled(route.origin(), resolve) {
                parts.stream.push(Attached { ports, consumers, route });
            }
        }
        RouteContent::Undecodable { asks: true, .. } => {
            if let Some(route) = closed(route) {
                parts.http.push(Attached { ports, consumers, route });
            }
        }
        RouteContent::Elsewhere | RouteContent::Undecodable { .. } => {}
    }
}
