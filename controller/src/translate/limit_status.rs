//! What users are told of their RateLimitPolicies: conditions for each target, in Gateway API's form for policies
//! (`status.ancestors`). Pure.

use super::{
    limit::{counted_by, has_rule, ports},
    policy_status::{NOT_BOUND, TARGET_NOT_FOUND},
    route_status::{ACCEPTED, RESOLVED_REFS, told},
    service::binding_of,
    status::Condition,
    waypoint::{self, Binding},
};
use crate::cluster::object::{LimitContent, LimitTarget, LimitTargetRef, RateLimitPolicy};
use crate::cluster::{Cluster, HostOwner};

/// The conditions of a policy, for one target after the other.
pub fn of(cluster: &Cluster, policy: &RateLimitPolicy) -> Vec<Condition> {
    let about = |target: &LimitTargetRef| {
        let conditions = [Some(accepted(cluster, policy, target)), resolved(cluster, policy)];
        let parent = Some(target.written.clone());
        conditions.into_iter().flatten().map(move |one| Condition { parent: parent.clone(), ..one })
    };
    policy.targets.iter().flat_map(about).collect()
}

fn accepted(cluster: &Cluster, policy: &RateLimitPolicy, target: &LimitTargetRef) -> Condition {
    if let LimitContent::Undecodable(reason) = &policy.content {
        let message = format!("{reason}; until it is corrected, it limits nothing");
        return told(ACCEPTED, false, "Invalid", message);
    }
    match miss(cluster, target) {
        None => told(ACCEPTED, true, "Accepted", "in force at the waypoint"),
        Some((reason, message)) => told(ACCEPTED, false, reason, message),
    }
}

/// Why nobody limits a target.
fn miss(cluster: &Cluster, target: &LimitTargetRef) -> Option<(&'static str, String)> {
    let missing = |what: &str| Some((TARGET_NOT_FOUND, format!("{} {what}", target.to)));
    let gone = || missing("is not there; correct targetRefs, or create it");
    match &target.to {
        LimitTarget::Service(owner) => {
            let Some(binding) = binding_of(cluster, owner) else { return gone() };
            if ports(cluster, owner, target).is_none() {
                return missing("has no port of that name; correct sectionName");
            }
            unbound(&binding).map(|why| (NOT_BOUND, format!("{} {why}", target.to)))
        }
        LimitTarget::Gateway(name) => {
            let Some(gateway) = cluster.gateways.get(name) else { return gone() };
            let why = if waypoint::is_waypoint(cluster, gateway) {
                return None;
            } else {
                "is no waypoint, and only waypoints limit"
            };
            Some((NOT_BOUND, format!("{} {why}; name one, or its services", target.to)))
        }
        LimitTarget::Route(key) => {
            let Some(route) = cluster.route(key) else { return gone() };
            if !has_rule(route, target) {
                return missing("has no rule of that name; correct sectionName");
            }
            let owners: Vec<&HostOwner> = route.services().map(|(_, owner)| owner).collect();
            if owners.is_empty() {
                let what = "is attached to no service; only routes of services are limited";
                return Some((NOT_BOUND, format!("{} {what}", target.to)));
            }
            let bindings = owners.into_iter().filter_map(|owner| binding_of(cluster, owner));
            let bindings: Vec<_> = bindings.collect();
            if bindings.iter().any(|binding| unbound(binding).is_none()) {
                return None;
            }
            let why = bindings.first().and_then(unbound);
            let why = why.unwrap_or_else(|| "is not there; create it".to_owned());
            Some((NOT_BOUND, format!("{}: its service {why}", target.to)))
        }
    }
}

/// Why no waypoint serves something; `None`: one does.
fn unbound(binding: &Binding) -> Option<String> {
    match binding {
        Binding::Bound(_) => None,
        Binding::Refused { gateway, reason } => {
            Some(format!("does not use waypoint {gateway}; {}", reason.remedy()))
        }
        Binding::None => Some("has no label istio.io/use-waypoint; set it".to_owned()),
    }
}

/// Whether the service that counts can be asked; nothing is said where there is none.
fn resolved(cluster: &Cluster, policy: &RateLimitPolicy) -> Option<Condition> {
    let reference = policy.limit_service()?;
    Some(match counted_by(cluster, policy, reference) {
        Ok(_) => told(RESOLVED_REFS, true, "ResolvedRefs", "the limit service is known"),
        Err(refusal) => told(RESOLVED_REFS, false, refusal.reason, refusal.message),
    })
}
