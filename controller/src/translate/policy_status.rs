//! What users are told of their policies: whether tunnels or waypoints enforce them (protocols 11.7). Pure.

use ambit_api::mesh_config::{CONFIG_MAP, KEY};
use ambit_model::{
    authz::{Action, OnFailure},
    name::{Label, Namespace},
};

use super::{
    route_status::told,
    service::binding_of,
    status::{Condition, WAYPOINT_ACCEPTED, ZTUNNEL_ACCEPTED},
    waypoint::{self, Binding},
};
use crate::cluster::object::{
    Attachment, AuthorizationPolicy, Content, ParsedRule, PolicyTarget, Provider, RequestAuthentication,
    Tokens,
};
use crate::cluster::{Cluster, L7Deny, UnknownProvider};

pub(super) const TARGET_NOT_FOUND: &str = "TargetNotFound";
pub(super) const NOT_BOUND: &str = "AncestorNotBound";
const UNKNOWN_PROVIDER: &str = "UnknownProvider";
const DENIED: &str = "what matches is denied";

/// Of a RequestAuthentication without targets.
pub const APPLIES_TO_NOTHING: &str = "it applies to nothing: tunnels see no tokens, and a waypoint takes only what \
                                      names it or its services; name them in targetRefs";
/// Of a RequestAuthentication that says how long keys may take.
pub const TIMEOUT_NOT_USED: &str = "timeout is not used: a waypoint waits 5 seconds for keys";

/// What is said of an AuthorizationPolicy.
pub fn of_authorization(cluster: &Cluster, policy: &AuthorizationPolicy) -> Condition {
    let targets = match &policy.attachment {
        Attachment::Targets(targets) => targets,
        Attachment::Namespace | Attachment::Selected(_) => return accepted_by_tunnels(cluster, policy),
    };
    if let Content::Undecodable(reason) = &policy.content {
        let message = format!("{reason}; until it is corrected, its targets' waypoints deny everything");
        return told(WAYPOINT_ACCEPTED, false, "Invalid", message);
    }
    let remark = match &policy.content {
        Content::Custom { provider, .. } => format!("; about what matches, {provider} is asked"),
        Content::Rules { dry_run: true, .. } => "; only tried out: it decides nothing".to_owned(),
        Content::Rules { dry_run: false, .. } | Content::Audit { .. } | Content::Undecodable(_) => {
            String::new()
        }
    };
    let condition = accepted_by_waypoints(cluster, &policy.meta.name.namespace, targets, &remark);
    match &policy.content {
        // What reaches nobody denies nothing: that comes first.
        Content::Custom { provider, .. } if condition.status => {
            unknown_provider(cluster, provider).unwrap_or(condition)
        }
        Content::Custom { .. } | Content::Rules { .. } | Content::Audit { .. } | Content::Undecodable(_) => {
            condition
        }
    }
}

/// Why a policy asks nobody; `None` if it asks somebody.
fn unknown_provider(cluster: &Cluster, provider: &Label) -> Option<Condition> {
    let place = format!("ConfigMap {}/{CONFIG_MAP}", cluster.settings().root_namespace);
    let (what, remedy) = match cluster.provider(provider) {
        Ok(Provider::Authorizer(authorizer)) => {
            let parts = authorizer.parts();
            let known = cluster
                .owners_of_host(&parts.hostname)
                .any(|owner| parts.namespace.is_empty() || owner.name().namespace == parts.namespace);
            if known {
                return None;
            }
            let becomes = match parts.on_failure {
                OnFailure::Deny(_) => "is denied",
                OnFailure::Allow => "goes on, as failOpen says",
            };
            (
                format!(
                    "the service of provider {provider}, {}, does not exist: what matches {becomes}",
                    parts.hostname
                ),
                format!("create it, or correct extensionProviders in key {KEY} of {place}"),
            )
        }
        Ok(Provider::Other) => (
            format!("provider {provider} is no external authorizer: {DENIED}"),
            format!(
                "give it envoyExtAuthzGrpc or envoyExtAuthzHttp in key {KEY} of {place}, or name another"
            ),
        ),
        Err(UnknownProvider::Missing) => (
            format!("provider {provider} does not exist: {DENIED}"),
            format!("add it to extensionProviders in key {KEY} of {place}, or name another"),
        ),
        Err(UnknownProvider::NoConfig) => (
            format!("provider {provider} does not exist: {DENIED}"),
            format!("create {place}, with the provider under extensionProviders in its key {KEY}"),
        ),
        Err(UnknownProvider::Undecodable(reason)) => (
            format!("{place} is not understood, so that {provider} is not known: {DENIED}"),
            reason.to_owned(),
        ),
    };
    Some(told(WAYPOINT_ACCEPTED, false, UNKNOWN_PROVIDER, format!("{what}; {remedy}")))
}

/// What is said of a RequestAuthentication.
pub fn of_request_authentication(cluster: &Cluster, policy: &RequestAuthentication) -> Condition {
    if let Tokens::Undecodable(reason) = &policy.tokens {
        let message = format!("{reason}; until it is corrected, waypoints that it names deny everything");
        return told(WAYPOINT_ACCEPTED, false, "Invalid", message);
    }
    let remark = if policy.names_timeout { format!("; {TIMEOUT_NOT_USED}") } else { String::new() };
    match &policy.attachment {
        Attachment::Targets(targets) => {
            accepted_by_waypoints(cluster, &policy.meta.name.namespace, targets, &remark)
        }
        Attachment::Namespace | Attachment::Selected(_) => {
            told(WAYPOINT_ACCEPTED, false, NOT_BOUND, APPLIES_TO_NOTHING)
        }
    }
}

/// One that is for some of its targets is in force, and says what it misses.
fn accepted_by_waypoints(
    cluster: &Cluster,
    namespace: &Namespace,
    targets: &[PolicyTarget],
    remark: &str,
) -> Condition {
    let missed = targets.iter().filter_map(|target| miss(cluster, namespace, target));
    let (missing, unbound): (Vec<_>, Vec<_>) = missed.partition(|(reason, _)| *reason == TARGET_NOT_FOUND);
    let list = |misses: &[(&str, String)]| {
        misses.iter().map(|(_, what)| what.as_str()).collect::<Vec<_>>().join(", ")
    };
    let mut complaints = Vec::new();
    if !missing.is_empty() {
        complaints
            .push(format!("not found: {}; correct targetRefs, or create what they name", list(&missing)));
    }
    if !unbound.is_empty() {
        complaints.push(format!("no waypoint enforces it: {}", list(&unbound)));
    }
    let complaint = complaints.join("; ");
    let found = targets.len() - missing.len() - unbound.len();
    match (found, missing.is_empty(), unbound.is_empty()) {
        (_, true, true) => {
            let message = format!("in force at the waypoint{remark}");
            told(WAYPOINT_ACCEPTED, true, "Accepted", message)
        }
        (0, _, true) => told(WAYPOINT_ACCEPTED, false, TARGET_NOT_FOUND, complaint),
        (0, _, false) => told(WAYPOINT_ACCEPTED, false, NOT_BOUND, complaint),
        (_, _, _) => {
            let message = format!("in force, but {complaint}{remark}");
            told(WAYPOINT_ACCEPTED, true, "PartiallyInvalid", message)
        }
    }
}

/// Why nobody enforces a policy for one of its targets: a reason, and which it is; `None` if somebody does.
fn miss(cluster: &Cluster, namespace: &Namespace, target: &PolicyTarget) -> Option<(&'static str, String)> {
    let missing = || Some((TARGET_NOT_FOUND, target.to_string()));
    let unbound = |why: String| Some((NOT_BOUND, format!("{target} {why}")));
    match target {
        PolicyTarget::Unknown { .. } => missing(),
        PolicyTarget::Service(owner) => match binding_of(cluster, owner) {
            None => missing(),
            Some(Binding::Bound(_)) => None,
            Some(Binding::Refused { gateway, reason }) => {
                unbound(format!("does not use waypoint {gateway}; {}", reason.remedy()))
            }
            Some(Binding::None) => unbound("has no label istio.io/use-waypoint; set it".to_owned()),
        },
        PolicyTarget::Gateway(name) => match cluster.gateways.get(name) {
            None => missing(),
            Some(gateway) if !waypoint::is_waypoint(cluster, gateway) => {
                unbound("is no waypoint; whoever runs it may enforce the policy".to_owned())
            }
            Some(gateway) if !waypoint::traffic_of(cluster, gateway).serves_services() => {
                unbound("is not for services; set istio.io/waypoint-for to service or all".to_owned())
            }
            Some(_) => None,
        },
        // Only the root namespace speaks for a whole class.
        PolicyTarget::Class(class) => {
            let counts = *namespace == cluster.settings().root_namespace
                && waypoint::is_class_of_waypoints(cluster, class);
            if counts { None } else { missing() }
        }
    }
}

fn accepted_by_tunnels(cluster: &Cluster, policy: &AuthorizationPolicy) -> Condition {
    match &policy.content {
        Content::Undecodable(reason) => {
            let message = format!("{reason}; until it is corrected, everything in its scope is denied");
            told(ZTUNNEL_ACCEPTED, false, "Invalid", message)
        }
        Content::Custom { .. } => needs_waypoint("CUSTOM"),
        Content::Audit { .. } => needs_waypoint("AUDIT"),
        Content::Rules { dry_run: true, .. } if !cluster.settings().dry_run_policies => {
            let message =
                "dry-run policies are not sent to tunnels; start the controller with --dry-run-policies=true";
            told(ZTUNNEL_ACCEPTED, false, "UnsupportedValue", message)
        }
        Content::Rules { action, rules, .. } => {
            match l7_message(*action, rules, cluster.settings().l7_deny) {
                Some(message) => told(ZTUNNEL_ACCEPTED, true, "UnsupportedValue", message),
                None => told(ZTUNNEL_ACCEPTED, true, "Accepted", "in force at every tunnel"),
            }
        }
    }
}

fn needs_waypoint(action: &str) -> Condition {
    let message = format!("action {action} needs a waypoint; attach the policy to one with targetRefs");
    told(ZTUNNEL_ACCEPTED, false, "UnsupportedValue", message)
}

/// What becomes of conditions that a tunnel cannot see; `None` if there are none.
pub fn l7_message(action: Action, rules: &[ParsedRule], l7_deny: L7Deny) -> Option<String> {
    let mut attributes: Vec<&str> =
        rules.iter().flat_map(|rule| &rule.left_out).map(String::as_str).collect();
    attributes.sort_unstable();
    attributes.dedup();
    if attributes.is_empty() {
        return None;
    }
    let consequence = match (action, l7_deny) {
        (Action::Allow, _) => "ALLOW rules that use them are left out, so less is allowed",
        (Action::Deny, L7Deny::Deny | L7Deny::Refuse) => {
            "DENY rules are applied without them, so more is denied"
        }
        (Action::Deny, L7Deny::Upstream) => {
            "DENY rules are applied without them; what has no other condition denies nothing"
        }
    };
    Some(format!(
        "tunnels do not see {}: {consequence}. Attach the policy to a waypoint with targetRefs",
        attributes.join(", ")
    ))
}
