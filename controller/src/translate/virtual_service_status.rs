//! What users are told of their VirtualServices: conditions, in the form of Istio's objects. Pure.

use ambit_model::name::{Hostname, Namespace, ServiceKey};

use super::{
    route::{Refusal, refusal, told_of_lost},
    route_status::{ACCEPTED, RESOLVED_REFS, not_accepted, resolved_waypoints, told},
    service,
    status::Condition,
    virtual_service::{Place, place, reach, undefined},
};
use crate::cluster::object::{VirtualContent, VirtualService};
use crate::cluster::{Cluster, HostOwner};

/// A service to which one applies.
struct At {
    owner: HostOwner,
    place: Place,
}

/// The conditions of a VirtualService.
pub fn of(cluster: &Cluster, object: &VirtualService) -> Vec<Condition> {
    match &object.content {
        VirtualContent::Undecodable(reason) => {
            return vec![not_accepted("UnsupportedValue", reason.clone())];
        }
        VirtualContent::Elsewhere => {
            let message =
                "it is for gateways, and no waypoint applies it; add mesh to gateways, if the mesh is meant";
            return vec![not_accepted("NotForMesh", message)];
        }
        VirtualContent::Rules(_) => {}
    }
    let (mut found, mut refused): (Vec<At>, Vec<(Hostname, Refusal)>) = (Vec::new(), Vec::new());
    for host in object.hosts.iter().map(|host| cluster.whole_host(host)) {
        match at(cluster, object, &host) {
            Ok(some) => found.extend(some),
            Err(refusal) => refused.push((host, refusal)),
        }
    }
    let told_of = |refused: &[(Hostname, Refusal)]| {
        refused.iter().map(|(_, one)| one.message.as_str()).collect::<Vec<_>>().join(" | ")
    };
    if found.is_empty() {
        let reason = refused.first().map_or("NoMatchingParent", |(_, refusal)| refusal.reason);
        return vec![not_accepted(reason, told_of(&refused))];
    }
    let mut message = applies_to(&found);
    let lost: Vec<_> = found.iter().flat_map(|at| at.place.lost.iter().copied()).collect();
    if !lost.is_empty() {
        message.push_str("; not everywhere: ");
        message.push_str(&told_of_lost(&lost));
    }
    let accepted = if refused.is_empty() {
        told(ACCEPTED, true, "Accepted", message)
    } else {
        let hosts: Vec<_> = refused.iter().map(|(host, _)| host.as_str()).collect();
        let message = format!("{message}; not to {}: {}", hosts.join(", "), told_of(&refused));
        told(ACCEPTED, true, "PartiallyInvalid", message)
    };
    vec![accepted, resolved_refs(cluster, object, &found), at_waypoints(cluster, &found)]
}

/// The services of a host to which it applies; else why to none.
fn at(cluster: &Cluster, object: &VirtualService, host: &Hostname) -> Result<Vec<At>, Refusal> {
    let (mut found, mut refused) = (Vec::new(), None);
    for owner in cluster.owners_of_host(host).filter(|owner| service::defines(cluster, owner, host)) {
        let key = ServiceKey::new(owner.name().namespace.clone(), host.clone());
        match place(cluster, object, owner, &key) {
            Ok(place) => found.push(At { owner: owner.clone(), place }),
            Err(refusal) => refused = refused.or(Some(refusal)),
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    Err(refused.unwrap_or_else(|| {
        let what =
            "is no service of the mesh; create it, or write its name alone, or the whole of its host name";
        refusal("NoMatchingParent", format!("{host} {what}"))
    }))
}

fn applies_to(found: &[At]) -> String {
    let mut clients: Vec<&Namespace> = found.iter().flat_map(|at| at.place.clients.keys()).collect();
    clients.sort_unstable();
    clients.dedup();
    // The first is the empty one, which stands for all.
    match clients.as_slice() {
        [first, ..] if first.is_empty() => "applies to every client".to_owned(),
        some => {
            let names: Vec<_> = some.iter().map(|one| one.as_str()).collect();
            format!("applies to clients of namespace {}", names.join(", "))
        }
    }
}

fn resolved_refs(cluster: &Cluster, object: &VirtualService, found: &[At]) -> Condition {
    let mut refused: Vec<Refusal> = Vec::new();
    for At { owner, place } in found {
        for port in place.clients.values().flatten() {
            let failed = object.references().into_iter();
            let failed = failed.filter_map(|one| match reach(cluster, object, owner, one, *port) {
                Ok(to) => undefined(cluster, one, &to),
                Err(refusal) => Some(refusal),
            });
            for one in failed {
                if !refused.contains(&one) {
                    refused.push(one);
                }
            }
        }
    }
    match refused.first().map(|first| first.reason) {
        None => told(RESOLVED_REFS, true, "ResolvedRefs", "every destination is known"),
        Some(reason) => {
            let messages: Vec<_> = refused.into_iter().map(|one| one.message).collect();
            told(RESOLVED_REFS, false, reason, messages.join(" | "))
        }
    }
}

/// Of several services, one without a waypoint is told of.
fn at_waypoints(cluster: &Cluster, found: &[At]) -> Condition {
    let all = found.iter().map(|at| resolved_waypoints(cluster, &at.owner));
    let first = all.min_by_key(|condition| condition.status);
    first.unwrap_or_else(|| not_accepted("NoMatchingParent", "no service is there; create it"))
}
