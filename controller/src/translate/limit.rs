//! Which limits a waypoint is told of a service. Pure.
//!
//! Limits add up: whatever names the waypoint, the service or one of its routes applies. An object that is not understood
//! limits nothing, and its status says so: taking no requests because of it would be the outage that it is to prevent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ambit_model::{
    limit::{RateLimit, Scope},
    name::{PolicyKey, ServiceKey},
    route::Destination,
};

use super::route::{Referrer, Refusal, all_ports, place, reach_from};
use crate::cluster::object::{
    Key, Kind, LimitContent, LimitTarget, LimitTargetRef, Name, RateLimitPolicy, Reference, Route,
    RouteContent,
};
use crate::cluster::{Cluster, HostOwner};

/// Those for requests to `service`, which `owner` defines, at `gateway`.
pub fn of_service(
    cluster: &Cluster,
    gateway: &Name,
    owner: &HostOwner,
    service: &ServiceKey,
) -> Vec<RateLimit> {
    let of_routes = cluster.routes_at(owner).map(|route| LimitTarget::Route(key_of(route)));
    let targets = [LimitTarget::Gateway(gateway.clone()), LimitTarget::Service(owner.clone())];
    let policies = targets.into_iter().chain(of_routes).flat_map(|target| cluster.limits_on(&target));
    // By name, each once.
    let policies: BTreeMap<_, _> = policies.map(|policy| (&policy.meta.name, policy)).collect();
    let scope = |target: &LimitTargetRef| match &target.to {
        LimitTarget::Gateway(name) => (name == gateway).then_some(Scope::Waypoint),
        LimitTarget::Service(named) if named == owner => {
            Some(Scope::Service { ports: ports(cluster, owner, target)? })
        }
        LimitTarget::Service(_) => None,
        LimitTarget::Route(key) => of_route(cluster, cluster.route(key)?, owner, service, target),
    };
    limits(cluster, policies.into_values(), scope)
}

/// Those for what is addressed to workloads at `gateway`.
pub fn of_waypoint(cluster: &Cluster, gateway: &Name) -> Vec<RateLimit> {
    let own = LimitTarget::Gateway(gateway.clone());
    limits(cluster, cluster.limits_on(&own), |target| (target.to == own).then_some(Scope::Waypoint))
}

fn limits<'c>(
    cluster: &Cluster,
    policies: impl Iterator<Item = &'c Arc<RateLimitPolicy>>,
    scope: impl Fn(&LimitTargetRef) -> Option<Scope>,
) -> Vec<RateLimit> {
    let of_policy = |policy: &'c Arc<RateLimitPolicy>| {
        let LimitContent::Limits { local, global } = &policy.content else { return Vec::new() };
        let global = global.as_ref().map(|global| {
            let to = match counted_by(cluster, policy, &global.to) {
                Ok((service, port)) => Destination::Service { service, port, subset: None },
                Err(refusal) => Destination::Invalid { reason: refusal.reason.into() },
            };
            Arc::new(global.resolved(to))
        });
        let name = &policy.meta.name;
        let limit = |scope| RateLimit {
            policy: PolicyKey { namespace: name.namespace.clone(), name: name.name.clone() },
            scope,
            local: local.clone(),
            global: global.clone(),
        };
        policy.targets.iter().filter_map(&scope).map(limit).collect()
    };
    policies.flat_map(of_policy).collect()
}

/// The service that counts for a policy.
pub fn counted_by(
    cluster: &Cluster,
    policy: &RateLimitPolicy,
    reference: &Reference,
) -> Result<(ServiceKey, u16), Refusal> {
    let namespace = &policy.meta.name.namespace;
    reach_from(cluster, Referrer { kind: Kind::RateLimitPolicy, namespace, parent: None }, reference)
}

/// The ports of a service that a target means: none at all is all of them. `None`: there is no such port.
pub fn ports(cluster: &Cluster, owner: &HostOwner, target: &LimitTargetRef) -> Option<Box<[u16]>> {
    let Some(section) = &target.section else { return Some([].into()) };
    let ports = all_ports(cluster, owner);
    let named: BTreeSet<_> =
        ports.into_iter().filter(|port| port.name == section).map(|port| port.number).collect();
    (!named.is_empty()).then(|| named.into_iter().collect())
}

/// Whether a route has the rule that a target means.
pub fn has_rule(route: &Route, target: &LimitTargetRef) -> bool {
    let Some(section) = &target.section else { return true };
    match &route.content {
        RouteContent::Requests(requests) => {
            requests.rules.iter().any(|rule| rule.name.as_ref() == Some(section))
        }
        RouteContent::Connections(_) | RouteContent::Elsewhere | RouteContent::Undecodable { .. } => false,
    }
}

/// A route counts where it applies.
fn of_route(
    cluster: &Cluster,
    route: &Route,
    owner: &HostOwner,
    service: &ServiceKey,
    target: &LimitTargetRef,
) -> Option<Scope> {
    let parents = route.services().filter(|(_, other)| *other == owner);
    let places = parents.filter_map(|(parent, _)| place(cluster, route, parent, owner).ok());
    let here = places.filter(|place| place.services.contains(service));
    let ports: BTreeSet<u16> = here.flat_map(|place| place.ports).collect();
    let applies = !ports.is_empty() && has_rule(route, target);
    applies.then(|| Scope::Route {
        route: route.origin().key,
        rule: target.section.clone(),
        ports: ports.into_iter().collect(),
    })
}

fn key_of(route: &Route) -> Key {
    Key { kind: route.kind.kind(), name: route.meta.name.clone() }
}
