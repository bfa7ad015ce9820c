//! What a Gateway's status says (Gateway API; protocols 11.3). Pure.

use ambit_api::gateway::{HBONE, HBONE_PORT};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::manifest::{hostname, is_served};
use crate::{
    cluster::{
        Cluster,
        object::{Gateway, Listener, Reach},
    },
    translate::waypoint::entry_of,
};

/// What became of making the objects of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is wrong with its parameters, in words for whoever wrote them.
    pub parameters: Option<String>,
    /// Objects of these kinds have its name and are not ours, so they were left alone.
    pub foreign: Vec<&'static str>,
    /// Why the last attempt to make them failed.
    pub failure: Option<String>,
}

/// The status, given the conditions that it has so far.
pub fn of(cluster: &Cluster, gateway: &Gateway, outcome: &Outcome, before: &Value, now: Timestamp) -> Value {
    let ready = ready_instances(cluster, gateway);
    let accepted = gateway.listeners.iter().any(|listener| refusal(gateway, listener).is_none());
    let programmed = programmed(outcome, accepted, ready);
    let conditions = vec![accepted_of(cluster, gateway, outcome, accepted), programmed.clone()];
    let listeners = gateway.listeners.iter().map(|listener| {
        json!({
            "name": listener.name,
            // Routes attach to services, and so do not count here.
            "attachedRoutes": 0,
            "supportedKinds": [],
            "conditions": stamped(of_listener(gateway, listener, &programmed), gateway, conditions_of(before, listener), now),
        })
    });
    let listeners: Vec<_> = listeners.collect();
    // Once told, the address stays: what is bound must not go past the waypoint while its pods are replaced.
    let reachable = ready > 0 || gateway.reach != Reach::NotReady;
    let address = json!({ "type": "Hostname", "value": hostname(gateway, &cluster.settings().domain) });
    let addresses: Vec<_> = reachable.then_some(address).into_iter().collect();
    let conditions = stamped(conditions, gateway, before.get("conditions"), now);
    json!({ "addresses": addresses, "conditions": conditions, "listeners": listeners })
}

/// The conditions of a GatewayClass that is ours.
pub fn of_class(generation: Option<i64>, now: Timestamp) -> Value {
    let message = "gateways of this class are waypoints of Ambit";
    let mut accepted = condition("Accepted", true, "Accepted", message);
    accepted.observed_generation = generation;
    accepted.last_transition_time = Time(to_the_second(now));
    json!({ "conditions": [accepted] })
}

/// How many pods of the gateway are ready.
pub fn ready_instances(cluster: &Cluster, gateway: &Gateway) -> usize {
    let pods = cluster.instances_of(&gateway.meta.name);
    pods.filter(|pod| pod.ready && !pod.deleting && !pod.phase.is_terminal()).count()
}

fn accepted_of(cluster: &Cluster, gateway: &Gateway, outcome: &Outcome, accepted: bool) -> Condition {
    if let Some(mistake) = &outcome.parameters {
        let message = format!("infrastructure.parametersRef: {mistake}; what it last said stays in force");
        return condition("Accepted", false, "InvalidParameters", message);
    }
    if let Err(mistake) = entry_of(cluster, gateway) {
        return condition(
            "Accepted",
            false,
            "Invalid",
            format!("{mistake}; its pods end tunnels themselves"),
        );
    }
    if accepted {
        return condition("Accepted", true, "Accepted", "served by Ambit");
    }
    let message = match gateway.listeners.is_empty() {
        true => format!("no listeners; add one with protocol {HBONE} and port {HBONE_PORT}"),
        false => format!("no listener can be served; add one with protocol {HBONE} and port {HBONE_PORT}"),
    };
    condition("Accepted", false, "ListenersNotValid", message)
}

fn programmed(outcome: &Outcome, accepted: bool, ready: usize) -> Condition {
    let no = |reason, message: String| condition("Programmed", false, reason, message);
    if !accepted {
        return no("Invalid", "no listener can be served".to_owned());
    }
    if !outcome.foreign.is_empty() {
        let kinds = outcome.foreign.join(", ");
        let message = format!(
            "{kinds} of this name is somebody else's and left alone; rename the Gateway, or remove it"
        );
        return no("Invalid", message);
    }
    if let Some(failure) = &outcome.failure {
        return no("Pending", format!("not all objects could be made: {failure}"));
    }
    if ready == 0 {
        let message =
            "no instance is ready yet; look at its pods, by label gateway.networking.k8s.io/gateway-name";
        return no("Pending", message.to_owned());
    }
    condition("Programmed", true, "Programmed", format!("instances ready: {ready}"))
}

/// Why a listener is not served.
fn refusal(gateway: &Gateway, listener: &Listener) -> Option<(&'static str, String)> {
    if is_served(listener) {
        return conflict(gateway, listener).map(|(reason, message)| (reason, message.to_owned()));
    }
    let remedy = format!("write protocol {HBONE} and port {HBONE_PORT}");
    if listener.protocol == HBONE {
        let message = format!("a waypoint takes {HBONE} on port {HBONE_PORT} alone; {remedy}");
        return Some(("PortUnavailable", message));
    }
    let message = format!("a waypoint does not take {}; {remedy}", listener.protocol);
    Some(("UnsupportedProtocol", message))
}

/// Whether an earlier listener has its port.
fn conflict(gateway: &Gateway, listener: &Listener) -> Option<(&'static str, &'static str)> {
    let earlier = gateway.listeners.iter().take_while(|other| other.name != listener.name);
    let other = earlier.filter(|other| is_served(other)).find(|other| other.port == listener.port)?;
    Some(if other.protocol == listener.protocol {
        ("HostnameConflict", "an earlier listener is the same; remove one of the two")
    } else {
        ("ProtocolConflict", "an earlier listener has the port for another protocol; choose another port")
    })
}

fn of_listener(gateway: &Gateway, listener: &Listener, programmed: &Condition) -> Vec<Condition> {
    let refusal = refusal(gateway, listener);
    let conflict = conflict(gateway, listener);
    let accepted = match &refusal {
        None => condition("Accepted", true, "Accepted", "served by Ambit"),
        Some((reason, message)) => condition("Accepted", false, reason, message.clone()),
    };
    let resolved = if listener.names_kinds {
        let message = "allowedRoutes.kinds: routes of a waypoint attach to services; remove it";
        condition("ResolvedRefs", false, "InvalidRouteKinds", message)
    } else {
        condition("ResolvedRefs", true, "ResolvedRefs", "it refers to nothing that is missing")
    };
    let conflicted = match conflict {
        None => condition("Conflicted", false, "NoConflicts", "no other listener has its port"),
        Some((reason, message)) => condition("Conflicted", true, reason, message),
    };
    let programmed = match refusal {
        None => programmed.clone(),
        Some(_) => condition("Programmed", false, "Invalid", "it is not accepted"),
    };
    vec![accepted, resolved, conflicted, programmed]
}

fn conditions_of<'a>(before: &'a Value, listener: &Listener) -> Option<&'a Value> {
    let named = |one: &&Value| one.get("name").and_then(Value::as_str) == Some(&listener.name);
    before.get("listeners")?.as_array()?.iter().find(named)?.get("conditions")
}

fn condition(kind: &str, holds: bool, reason: &str, message: impl Into<String>) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// The time of a condition is that of the last change of its `status`, whatever else changes.
fn stamped(
    conditions: Vec<Condition>,
    gateway: &Gateway,
    before: Option<&Value>,
    now: Timestamp,
) -> Vec<Condition> {
    let since = |one: &Condition| {
        let had = before?
            .as_array()?
            .iter()
            .find(|had| had.get("type").and_then(Value::as_str) == Some(&one.type_))?;
        let same = had.get("status")?.as_str()? == one.status;
        same.then(|| had.get("lastTransitionTime")?.as_str()?.parse().ok()).flatten()
    };
    let stamp = |mut one: Condition| {
        one.last_transition_time = Time(since(&one).unwrap_or_else(|| to_the_second(now)));
        one.observed_generation = gateway.meta.generation;
        one
    };
    conditions.into_iter().map(stamp).collect()
}

/// Objects carry whole seconds.
fn to_the_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
