//! What objects should carry, what they do carry, and the difference. Pure.

use std::collections::BTreeMap;

use ambit_api::directory::{ObjectKey, Problem};
use ambit_model::name::Label;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition as Told, Time},
    jiff::Timestamp,
};
use serde_json::Value;

use crate::{
    cluster::{
        Cluster,
        object::{Attachment, Content, Key, Kind, Name, Tokens},
    },
    translate::{
        route_status::{ACCEPTED, PARTIALLY_INVALID, RESOLVED_REFS, RESOLVED_WAYPOINTS},
        status::{
            self, Condition, UNDERSTOOD, VISIBILITY_APPLIED, WAYPOINT_ACCEPTED, WAYPOINT_BOUND,
            WAYPOINT_MISSING, ZTUNNEL_ACCEPTED,
        },
    },
};

/// A longer message is cut: nobody reads on, and the API server refuses 32 KiB.
const MESSAGE: usize = 2048;

/// Who conditions are written as: Istio's names, so that each control plane finds, and prunes, what the other wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Manager {
    /// Of services of both kinds.
    Service,
    /// Of workload entries.
    WorkloadEntry,
    /// Of policies that tunnels enforce.
    TunnelPolicy,
    /// Of policies that waypoints enforce.
    WaypointPolicy,
    /// Of PeerAuthentications; Istio has none of these.
    PeerAuthentication,
    /// Of VirtualServices; Istio has none of these.
    VirtualService,
    /// Of routes, for each parent. They are known by the name of the controller, not by this one.
    Route,
    /// Of RateLimitPolicies, for each target. They, too, are known by the name of the controller.
    Limit,
}

impl Manager {
    /// The name of the field manager.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Service => "istio-ambient-service",
            Self::WorkloadEntry => "istio-ambient-workloadentry",
            Self::TunnelPolicy => "istio-ambient-ztunnel-policy",
            Self::WaypointPolicy => "istio-ambient-waypoint-policy",
            Self::PeerAuthentication => "istio-ambient-peerauthentication",
            Self::VirtualService => "istio-ambient-virtualservice",
            Self::Route => "istio-ambient-route",
            Self::Limit => "ambit-ratelimitpolicy",
        }
    }

    /// Those that write to a kind.
    pub(super) fn of(kind: Kind) -> &'static [Self] {
        match kind {
            Kind::Service | Kind::ServiceEntry => &[Self::Service],
            Kind::WorkloadEntry => &[Self::WorkloadEntry],
            Kind::AuthorizationPolicy => &[Self::TunnelPolicy, Self::WaypointPolicy],
            Kind::PeerAuthentication => &[Self::PeerAuthentication],
            Kind::RequestAuthentication | Kind::DestinationRule => &[Self::WaypointPolicy],
            Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute => &[Self::Route],
            Kind::RateLimitPolicy => &[Self::Limit],
            Kind::VirtualService => &[Self::VirtualService],
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::EndpointSlice
            | Kind::Gateway
            | Kind::GatewayClass
            | Kind::ReferenceGrant
            | Kind::MeshConfig => &[],
        }
    }

    /// The conditions that it writes.
    pub(super) fn conditions(self) -> &'static [&'static str] {
        match self {
            Self::Service => &[WAYPOINT_BOUND, WAYPOINT_MISSING, VISIBILITY_APPLIED, UNDERSTOOD],
            Self::WorkloadEntry => &[WAYPOINT_BOUND, UNDERSTOOD],
            Self::TunnelPolicy => &[ZTUNNEL_ACCEPTED],
            Self::WaypointPolicy => &[WAYPOINT_ACCEPTED],
            Self::PeerAuthentication => &[UNDERSTOOD],
            Self::Limit => &[ACCEPTED, RESOLVED_REFS, PARTIALLY_INVALID],
            Self::Route | Self::VirtualService => {
                &[ACCEPTED, RESOLVED_REFS, PARTIALLY_INVALID, RESOLVED_WAYPOINTS]
            }
        }
    }
}

/// What one manager writes to one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    /// The object.
    pub key: Key,
    /// Who writes.
    pub manager: Manager,
}

/// What a slot should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Which object of that name; empty if that is not known.
    pub uid: Label,
    /// Never none.
    pub conditions: Vec<Condition>,
}

/// A condition as an object carries it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Carried {
    /// Of a route or a limit: the parent or target that it is about.
    pub parent: Option<Value>,
    /// What it says.
    pub told: Told,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Holds {
    /// Which object of that name; empty if that is not known.
    pub uid: Label,
    /// Perhaps none.
    pub conditions: Vec<Carried>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Write {
    /// Where.
    pub slot: Slot,
    /// What it holds then; no conditions take away what was there.
    pub holds: Holds,
}

/// What is wrong with objects, in words for whoever wrote them.
pub(super) fn complaints(problems: &[Problem]) -> BTreeMap<Key, String> {
    let told = problems.iter().filter_map(|problem| {
        let place = if problem.field.is_empty() { "the object" } else { &problem.field };
        let message = format!("{place}: {}; {}", problem.what, problem.remedy);
        Some((tellable(problem.key.as_ref()?)?, message))
    });
    // The first of several is enough: they are corrected one by one.
    let mut complaints = BTreeMap::new();
    for (key, message) in told {
        complaints.entry(key).or_insert(message);
    }
    complaints
}

/// The kinds that can be told of a mistake in them: Istio's, routes, and our own. The API server judges Kubernetes' own, and the status of
/// gateways belongs to whoever runs them; mistakes there are in the log and on the admin page.
fn tellable(key: &ObjectKey) -> Option<Key> {
    let kinds = [
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
        Kind::AuthorizationPolicy,
        Kind::PeerAuthentication,
        Kind::RequestAuthentication,
        Kind::DestinationRule,
        Kind::RateLimitPolicy,
        Kind::VirtualService,
        Kind::GrpcRoute,
        Kind::HttpRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
    ];
    let kind = kinds.into_iter().find(|kind| kind.word() == key.kind)?;
    Some(Key { kind, name: Name::new(key.namespace.as_str(), key.name.as_str()) })
}

/// What some objects should carry.
pub(super) fn wanted(
    cluster: &Cluster,
    keys: &[Key],
    complaints: &BTreeMap<Key, String>,
) -> BTreeMap<Slot, Wanted> {
    let mut wanted: BTreeMap<Slot, Wanted> = BTreeMap::new();
    for key in keys {
        let mut conditions = status::of(cluster, key);
        if let Some(complaint) = complaints.get(key) {
            complain(cluster, key, complaint, &mut conditions);
        }
        if conditions.is_empty() {
            continue;
        }
        let uid = uid_of(cluster, key).unwrap_or_default();
        for manager in Manager::of(key.kind) {
            let its = |condition: &&Condition| manager.conditions().contains(&condition.kind);
            let its: Vec<_> = conditions.iter().filter(its).cloned().collect();
            if !its.is_empty() {
                let slot = Slot { key: key.clone(), manager: *manager };
                wanted.insert(slot, Wanted { uid: uid.clone(), conditions: its });
            }
        }
    }
    wanted
}

/// Says that an object is not in force as it is written now. Its generation is not known, so none is claimed.
fn complain(cluster: &Cluster, key: &Key, complaint: &str, conditions: &mut Vec<Condition>) {
    let kind = match key.kind {
        Kind::AuthorizationPolicy => match cluster.authorization_policies.get(&key.name) {
            // It says so itself, and what is in force instead.
            Some(policy) if matches!(policy.content, Content::Undecodable(_)) => return,
            Some(policy) if matches!(policy.attachment, Attachment::Targets(_)) => WAYPOINT_ACCEPTED,
            Some(_) | None => ZTUNNEL_ACCEPTED,
        },
        Kind::RequestAuthentication => match cluster.request_authentications.get(&key.name) {
            Some(policy) if matches!(policy.tokens, Tokens::Undecodable(_)) => return,
            Some(_) | None => WAYPOINT_ACCEPTED,
        },
        Kind::DestinationRule => WAYPOINT_ACCEPTED,
        Kind::RateLimitPolicy
        | Kind::VirtualService
        | Kind::GrpcRoute
        | Kind::HttpRoute
        | Kind::TlsRoute
        | Kind::TcpRoute => {
            return fall_back(complaint, conditions);
        }
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::PeerAuthentication
        | Kind::Gateway
        | Kind::GatewayClass
        | Kind::ReferenceGrant
        | Kind::MeshConfig => UNDERSTOOD,
    };
    conditions.retain(|condition| condition.kind != kind);
    let message = complaint.to_owned();
    let condition = Condition {
        kind,
        status: false,
        reason: "Invalid",
        message,
        observed_generation: None,
        parent: None,
    };
    conditions.push(condition);
}

/// Says, where the former version of a route, VirtualService or limit is accepted, that it is not what is written now: as Gateway API has it,
/// which prescribes the first words. One that was never understood says so itself.
fn fall_back(complaint: &str, conditions: &mut Vec<Condition>) {
    let accepted = conditions.iter().enumerate().filter(|(_, one)| one.kind == ACCEPTED && one.status);
    let fallen: Vec<_> = accepted
        .map(|(place, accepted)| {
            let message = format!("Fall Back: {complaint}");
            let kind = PARTIALLY_INVALID;
            (place, Condition { kind, reason: "UnsupportedValue", message, ..accepted.clone() })
        })
        .collect();
    // From the last to the first, so that places stay what they are. Those of one parent stand together.
    for (place, condition) in fallen.into_iter().rev() {
        conditions.insert(place + 1, condition);
    }
}

/// Which object of this name there is; `None` if there is none.
pub(super) fn uid_of(cluster: &Cluster, key: &Key) -> Option<Label> {
    let name = &key.name;
    match key.kind {
        Kind::Service => cluster.services.get(name).map(|object| object.meta.uid.clone()),
        Kind::ServiceEntry => cluster.service_entries.get(name).map(|object| object.meta.uid.clone()),
        Kind::WorkloadEntry => cluster.workload_entries.get(name).map(|object| object.meta.uid.clone()),
        Kind::AuthorizationPolicy => {
            cluster.authorization_policies.get(name).map(|object| object.meta.uid.clone())
        }
        Kind::PeerAuthentication => {
            cluster.peer_authentications.get(name).map(|object| object.meta.uid.clone())
        }
        Kind::RequestAuthentication => {
            cluster.request_authentications.get(name).map(|object| object.meta.uid.clone())
        }
        Kind::DestinationRule => cluster.destination_rules.get(name).map(|object| object.meta.uid.clone()),
        Kind::RateLimitPolicy => cluster.rate_limit_policies.get(name).map(|object| object.meta.uid.clone()),
        Kind::VirtualService => cluster.virtual_services.get(name).map(|object| object.meta.uid.clone()),
        Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute => {
            cluster.route(key).map(|object| object.meta.uid.clone())
        }
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::EndpointSlice
        | Kind::Gateway
        | Kind::GatewayClass
        | Kind::ReferenceGrant
        | Kind::MeshConfig => None,
    }
}

/// What has to be written so that `holds` becomes `wanted`. What takes away comes first: where a list of conditions has
/// one owner only, the other order would take away what was just written.
pub(super) fn differences(
    wanted: &BTreeMap<Slot, Wanted>,
    holds: &BTreeMap<Slot, Holds>,
    now: Timestamp,
) -> Vec<Write> {
    let stale =
        holds.iter().filter(|(slot, holds)| !holds.conditions.is_empty() && !wanted.contains_key(*slot));
    let stale = stale.map(|(slot, holds)| Write {
        slot: slot.clone(),
        holds: Holds { uid: holds.uid.clone(), conditions: Vec::new() },
    });
    let missing = wanted.iter().filter_map(|(slot, wanted)| {
        let before = holds.get(slot).filter(|holds| is_same_object(&holds.uid, &wanted.uid));
        let before = before.map_or(&[][..], |holds| &holds.conditions);
        let conditions = carried(&wanted.conditions, before, now);
        let differ = !is_as_carried(&conditions, before);
        let uid = wanted.uid.clone();
        differ.then(|| Write { slot: slot.clone(), holds: Holds { uid, conditions } })
    });
    stale.chain(missing).collect()
}

fn is_same_object(one: &Label, other: &Label) -> bool {
    one.is_empty() || other.is_empty() || one == other
}

/// Conditions as objects carry them. The time is that of the last change of `status`, whatever else changes.
fn carried(conditions: &[Condition], before: &[Carried], now: Timestamp) -> Vec<Carried> {
    let one = |condition: &Condition| {
        let status = if condition.status { "True" } else { "False" };
        let is_same = |one: &&Carried| {
            one.parent == condition.parent && one.told.type_ == condition.kind && one.told.status == status
        };
        let since = before.iter().find(is_same).map(|one| one.told.last_transition_time.clone());
        let told = Told {
            type_: condition.kind.to_owned(),
            status: status.to_owned(),
            reason: condition.reason.to_owned(),
            message: cut(&condition.message),
            observed_generation: condition.observed_generation,
            last_transition_time: since.unwrap_or_else(|| Time(to_the_second(now))),
        };
        Carried { parent: condition.parent.clone(), told }
    };
    conditions.iter().map(one).collect()
}

/// Objects carry whole seconds.
fn to_the_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn cut(message: &str) -> String {
    let end = (0..=message.len().min(MESSAGE)).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    message.get(..end).unwrap_or_default().to_owned()
}

fn is_as_carried(wanted: &[Carried], holds: &[Carried]) -> bool {
    wanted.len() == holds.len() && wanted.iter().all(|one| holds.contains(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str) -> Slot {
        Slot { key: Key { kind: Kind::Service, name: Name::new("shop", name) }, manager: Manager::Service }
    }

    fn condition(status: bool, message: &str) -> Condition {
        Condition {
            kind: WAYPOINT_BOUND,
            status,
            reason: "WaypointAccepted",
            message: message.to_owned(),
            observed_generation: Some(1),
            parent: None,
        }
    }

    fn want(uid: &str, conditions: Vec<Condition>) -> BTreeMap<Slot, Wanted> {
        [(slot("web"), Wanted { uid: uid.into(), conditions })].into()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What the slot holds once the writes are made.
    fn made(writes: &[Write]) -> BTreeMap<Slot, Holds> {
        writes.iter().map(|write| (write.slot.clone(), write.holds.clone())).collect()
    }

    #[test]
    fn what_is_carried_is_not_written_again() {
        let wanted = want("u1", vec![condition(true, "bound")]);
        let writes = differences(&wanted, &BTreeMap::new(), at(7));
        assert_eq!(writes.len(), 1);
        assert_eq!(differences(&wanted, &made(&writes), at(9)), []);
    }

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let first = made(&differences(&want("u1", vec![condition(true, "a")]), &BTreeMap::new(), at(7)));
        let time = |writes: &[Write]| writes[0].holds.conditions[0].told.last_transition_time.0.as_second();
        let reworded = differences(&want("u1", vec![condition(true, "b")]), &first, at(9));
        assert_eq!(time(&reworded), 7);
        let refused = differences(&want("u1", vec![condition(false, "b")]), &made(&reworded), at(9));
        assert_eq!(time(&refused), 9);
    }

    #[test]
    fn another_object_of_the_same_name_carries_nothing_yet() {
        let first = made(&differences(&want("u1", vec![condition(true, "a")]), &BTreeMap::new(), at(7)));
        let again = differences(&want("u2", vec![condition(true, "a")]), &first, at(9));
        assert_eq!(again[0].holds.conditions[0].told.last_transition_time.0, at(9));
        assert_eq!(
            differences(&want("", vec![condition(true, "a")]), &first, at(9)),
            [],
            "unknown is no other"
        );
    }

    #[test]
    fn what_is_no_longer_wanted_is_taken_away_first() {
        let holds = made(&differences(&want("u1", vec![condition(true, "a")]), &BTreeMap::new(), at(7)));
        let wanted =
            [(slot("a"), Wanted { uid: "u2".into(), conditions: vec![condition(true, "a")] })].into();
        let writes = differences(&wanted, &holds, at(9));
        let told: Vec<_> =
            writes.iter().map(|write| (write.slot.clone(), write.holds.conditions.len())).collect();
        assert_eq!(told, [(slot("web"), 0), (slot("a"), 1)]);
        let mut after = holds;
        after.extend(made(&writes));
        assert_eq!(differences(&wanted, &after, at(9)), [], "and not twice");
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        let text = "ä".repeat(MESSAGE);
        assert_eq!(cut(&text).len(), MESSAGE);
        assert_eq!(cut(&format!("a{text}")).len(), MESSAGE - 1);
    }
}
