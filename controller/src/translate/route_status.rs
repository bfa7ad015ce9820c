//! What users are told of their routes: conditions, for each parent that is the mesh's affair (protocols 11.7). Pure.

use ambit_api::gateway::ISTIO_WAYPOINT_CONTROLLER;
use ambit_model::route::Destination;

use super::{
    route::{Place, Refusal, place, reach, told_of_lost},
    service::binding_of,
    status::Condition,
    waypoint::{self, Binding},
};
use crate::cluster::object::{Parent, ParentTarget, Rejection, Requests, Route, RouteContent};
use crate::cluster::{Cluster, HostOwner};

/// Whose conditions these are: beside them others may have written theirs.
pub(crate) const CONTROLLER: &str = ISTIO_WAYPOINT_CONTROLLER;
pub(crate) const ACCEPTED: &str = "Accepted";
pub(crate) const RESOLVED_REFS: &str = "ResolvedRefs";
pub(crate) const PARTIALLY_INVALID: &str = "PartiallyInvalid";
/// Istio's: whether there is a waypoint, without which routes do nothing.
pub(crate) const RESOLVED_WAYPOINTS: &str = "ResolvedWaypoints";

/// The conditions of a route, for one parent after the other.
pub fn of(cluster: &Cluster, route: &Route) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = Vec::new();
    for parent in &route.parents {
        let mut told = of_parent(cluster, route, parent);
        // Two references that are written alike have one status.
        if conditions.iter().any(|one| one.parent.as_ref() == Some(&parent.written)) {
            continue;
        }
        for condition in &mut told {
            condition.parent = Some(parent.written.clone());
        }
        conditions.append(&mut told);
    }
    conditions
}

fn of_parent(cluster: &Cluster, route: &Route, parent: &Parent) -> Vec<Condition> {
    match &parent.to {
        ParentTarget::Service(owner) => of_service(cluster, route, parent, owner),
        ParentTarget::Gateway(name) => {
            let gateway = cluster.gateways.get(name);
            if !gateway.is_some_and(|gateway| waypoint::is_waypoint(cluster, gateway)) {
                return Vec::new();
            }
            let message = "a waypoint applies the routes of its services; name the Service as parent";
            vec![not_accepted("NotAllowedByListeners", message)]
        }
        ParentTarget::WrongGroup { kind, group } => {
            let message = format!("no {kind} is of that group; write group: {group:?}");
            vec![not_accepted("NoMatchingParent", message)]
        }
        ParentTarget::Other => Vec::new(),
    }
}

fn of_service(cluster: &Cluster, route: &Route, parent: &Parent, owner: &HostOwner) -> Vec<Condition> {
    if let RouteContent::Undecodable { reason, .. } = &route.content {
        return vec![not_accepted("UnsupportedValue", reason.clone())];
    }
    let accepted = match (compiles(route), place(cluster, route, parent, owner)) {
        (Err(rejection), _) => not_accepted("UnsupportedValue", rejection.to_string()),
        (Ok(()), Err(Refusal { reason, message })) => not_accepted(reason, message),
        (Ok(()), Ok(place)) => told(ACCEPTED, true, "Accepted", accepted_as(route, &place)),
    };
    vec![accepted, resolved_refs(cluster, route, owner), resolved_waypoints(cluster, owner)]
}

/// Whether its rules can be applied. They can, when it passed the door.
fn compiles(route: &Route) -> Result<(), Rejection> {
    let nowhere = |_: &_| Destination::Invalid { reason: "".into() };
    match &route.content {
        RouteContent::Requests(requests) => requests.compiled(route.origin(), nowhere).map(drop),
        RouteContent::Connections(connections) => connections.compiled(route.origin(), nowhere).map(drop),
        RouteContent::Elsewhere | RouteContent::Undecodable { .. } => Ok(()),
    }
}

fn accepted_as(route: &Route, place: &Place) -> String {
    let mut message = match place.consumers.as_str() {
        "" => "applies to every client".to_owned(),
        namespace => format!("applies to clients of namespace {namespace}"),
    };
    if !place.lost.is_empty() {
        message.push_str("; not everywhere: ");
        message.push_str(&told_of_lost(&place.lost));
    }
    if matches!(route.content, RouteContent::Requests(Requests { names_hosts: true, .. })) {
        message.push_str("; hostnames are not compared: a service is called by its name");
    }
    message
}

fn resolved_refs(cluster: &Cluster, route: &Route, owner: &HostOwner) -> Condition {
    let refused = route.references().into_iter().filter_map(|one| reach(cluster, route, owner, one).err());
    let mut refused: Vec<_> = refused.collect();
    // One condition has one reason: that of the first, with all that is said.
    let Some(reason) = refused.first().map(|first| first.reason) else {
        return told(RESOLVED_REFS, true, "ResolvedRefs", "every backend is known");
    };
    let messages: Vec<_> = refused.drain(..).map(|one| one.message).collect();
    told(RESOLVED_REFS, false, reason, messages.join(" | "))
}

pub(super) fn resolved_waypoints(cluster: &Cluster, owner: &HostOwner) -> Condition {
    match binding_of(cluster, owner) {
        Some(Binding::Bound(bound)) => {
            let message = format!("waypoint {} applies it", bound.gateway);
            told(RESOLVED_WAYPOINTS, true, "ResolvedWaypoints", message)
        }
        Some(Binding::Refused { gateway, reason }) => {
            let message = format!("waypoint {gateway} is not used; {}", reason.remedy());
            told(RESOLVED_WAYPOINTS, false, reason.word(), message)
        }
        Some(Binding::None) => {
            let message = "nobody applies it: neither the parent nor its namespace has the label istio.io/use-waypoint; set it";
            told(RESOLVED_WAYPOINTS, false, "MissingUseWaypointLabel", message)
        }
        None => told(RESOLVED_WAYPOINTS, false, "NoMatchingParent", "the parent is not there; create it"),
    }
}

pub(super) fn not_accepted(reason: &'static str, message: impl Into<String>) -> Condition {
    told(ACCEPTED, false, reason, message)
}

pub(crate) fn told(
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: impl Into<String>,
) -> Condition {
    let message = message.into();
    Condition { kind, status, reason, message, observed_generation: None, parent: None }
}
