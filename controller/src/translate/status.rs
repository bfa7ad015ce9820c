//! What users are told of their objects: conditions (protocols 11.7). Pure.

use serde::Serialize;
use serde_json::Value;

use super::service::{waypoint_of, waypoint_of_entry};
use super::waypoint::{self, Binding, Canary};
use super::{destination, limit_status, policy_status, route_status, virtual_service_status};
use crate::cluster::object::{Key, Kind, Name, Resolution, ServiceEntry};
use crate::cluster::{Cluster, EntryVisibility};

/// One condition of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, `istio.io/WaypointBound`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, and what to do.
    pub message: String,
    /// The version of the object that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Of a route or a limit: the parent or target that this is about, as it names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Value>,
}

pub(crate) const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
pub(crate) const WAYPOINT_MISSING: &str = "istio.io/WaypointMissing";
pub(crate) const VISIBILITY_APPLIED: &str = "istio.io/VisibilityApplied";
pub(crate) const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
pub(crate) const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";
/// Ours: an object is not in force as it is written now. Istio relies on its webhook to keep such objects out.
pub(crate) const UNDERSTOOD: &str = "ambit.io/Understood";

/// Every object that can have conditions.
pub fn keys(cluster: &Cluster) -> impl Iterator<Item = Key> {
    fn keys<'a>(kind: Kind, names: impl Iterator<Item = &'a Name>) -> impl Iterator<Item = Key> {
        names.map(move |name| Key { kind, name: name.clone() })
    }
    keys(Kind::Service, cluster.services.iter().map(|(name, _)| name))
        .chain(keys(Kind::ServiceEntry, cluster.service_entries.iter().map(|(name, _)| name)))
        .chain(keys(Kind::WorkloadEntry, cluster.workload_entries.iter().map(|(name, _)| name)))
        .chain(keys(Kind::AuthorizationPolicy, cluster.authorization_policies.iter().map(|(name, _)| name)))
        .chain(keys(
            Kind::RequestAuthentication,
            cluster.request_authentications.iter().map(|(name, _)| name),
        ))
        .chain(keys(Kind::DestinationRule, cluster.destination_rules.iter().map(|(name, _)| name)))
        .chain(keys(Kind::RateLimitPolicy, cluster.rate_limit_policies.iter().map(|(name, _)| name)))
        .chain(keys(Kind::VirtualService, cluster.virtual_services.iter().map(|(name, _)| name)))
        .chain(cluster.routes().map(|(key, _)| key.clone()))
}

/// The conditions of every object that has any, by kind and name.
pub fn all(cluster: &Cluster) -> Vec<(Key, Vec<Condition>)> {
    let all = keys(cluster).map(|key| {
        let conditions = of(cluster, &key);
        (key, conditions)
    });
    all.filter(|(_, conditions)| !conditions.is_empty()).collect()
}

/// The conditions of one object.
pub fn of(cluster: &Cluster, key: &Key) -> Vec<Condition> {
    let name = &key.name;
    let (generation, mut conditions) = match key.kind {
        Kind::Service => match cluster.services.get(name) {
            Some(object) => (object.meta.generation, bound(&waypoint_of(cluster, object))),
            None => return Vec::new(),
        },
        Kind::ServiceEntry => match cluster.service_entries.get(name) {
            Some(object) => (object.meta.generation, of_entry(cluster, object)),
            None => return Vec::new(),
        },
        Kind::WorkloadEntry => match cluster.workload_entries.get(name) {
            Some(object) => (object.meta.generation, bound(&waypoint::of_workload(cluster, &object.meta))),
            None => return Vec::new(),
        },
        Kind::AuthorizationPolicy => match cluster.authorization_policies.get(name) {
            Some(object) => (object.meta.generation, vec![policy_status::of_authorization(cluster, object)]),
            None => return Vec::new(),
        },
        Kind::RequestAuthentication => match cluster.request_authentications.get(name) {
            Some(object) => {
                (object.meta.generation, vec![policy_status::of_request_authentication(cluster, object)])
            }
            None => return Vec::new(),
        },
        Kind::DestinationRule => match cluster.destination_rules.get(name) {
            Some(object) => (object.meta.generation, vec![destination::status(cluster, object)]),
            None => return Vec::new(),
        },
        Kind::RateLimitPolicy => match cluster.rate_limit_policies.get(name) {
            Some(object) => (object.meta.generation, limit_status::of(cluster, object)),
            None => return Vec::new(),
        },
        Kind::VirtualService => match cluster.virtual_services.get(name) {
            Some(object) => (object.meta.generation, virtual_service_status::of(cluster, object)),
            None => return Vec::new(),
        },
        Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute => match cluster.route(key) {
            Some(object) => (object.meta.generation, route_status::of(cluster, object)),
            None => return Vec::new(),
        },
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::EndpointSlice
        | Kind::PeerAuthentication
        | Kind::Gateway
        | Kind::GatewayClass
        | Kind::ReferenceGrant
        | Kind::MeshConfig => return Vec::new(),
    };
    for condition in &mut conditions {
        condition.observed_generation = generation;
    }
    conditions
}

fn bound(binding: &Binding) -> Vec<Condition> {
    match binding {
        Binding::None => Vec::new(),
        Binding::Refused { gateway, reason } => {
            let message = format!("waypoint {gateway} is not used; {}", reason.remedy());
            vec![condition(WAYPOINT_BOUND, false, reason.word(), message)]
        }
        Binding::Bound(bound) => {
            let mut message = format!("bound to waypoint {}", bound.gateway);
            if bound.ingress {
                message.push_str("; ingress gateways go through it too");
            }
            match &bound.canary {
                Canary::None => {}
                Canary::Bound { gateway, weight, .. } => {
                    message.push_str(&format!("; canary {gateway} gets {weight} of 100 connections"));
                }
                Canary::Refused { gateway, reason } => {
                    message.push_str(&format!(
                        "; canary {gateway} is not used ({}): {}",
                        reason.word(),
                        reason.remedy()
                    ));
                }
            }
            vec![condition(WAYPOINT_BOUND, true, "WaypointAccepted", message)]
        }
    }
}

fn of_entry(cluster: &Cluster, entry: &ServiceEntry) -> Vec<Condition> {
    let binding = waypoint_of_entry(cluster, entry);
    let mut conditions = bound(&binding);
    if entry.resolution == Resolution::DynamicDns && binding.bound().is_none() {
        let message = "names that stand for many are resolved by a waypoint; set istio.io/use-waypoint";
        conditions.push(condition(WAYPOINT_MISSING, true, "NoWaypointForWildcardService", message));
    }
    match cluster.settings().entry_visibility {
        None | Some(EntryVisibility::None) => {}
        Some(EntryVisibility::Public) => {
            conditions.push(condition(VISIBILITY_APPLIED, true, "Public", "every namespace sees it"));
        }
        Some(EntryVisibility::Namespace) => {
            conditions.push(condition(
                VISIBILITY_APPLIED,
                true,
                "Namespace",
                "only its own namespace sees it",
            ));
        }
    }
    conditions
}

fn condition(
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: impl Into<String>,
) -> Condition {
    Condition { kind, status, reason, message: message.into(), observed_generation: None, parent: None }
}
