//! AuthorizationPolicy, as tunnels (protocols 6.6) and waypoints judge it.

use ambit_model::{
    authz::{Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    identity::Identity,
    name::{Namespace, PolicyKey},
};

use crate::cluster::object::{
    Attachment, AuthorizationPolicy, Content as Wish, Labels, Name, ParsedRule, Provider,
};
use crate::cluster::{Cluster, L7Deny, SelectorOwner};
use crate::translate::waypoint;

/// The policy as tunnels get it; `None` if it is a waypoint's business, or nothing that a tunnel has.
pub fn translate(cluster: &Cluster, name: &Name) -> Option<Policy> {
    let policy = cluster.authorization_policies.get(name)?;
    let scope = scope(cluster, policy)?;
    let key = key(name);
    match &policy.content {
        Wish::Undecodable(reason) => Some(Policy::undecodable(key, Some(scope), reason.clone())),
        Wish::Custom { .. } | Wish::Audit { .. } => None,
        Wish::Rules { dry_run: true, .. } if !cluster.settings().dry_run_policies => None,
        Wish::Rules { action, rules, dry_run } => {
            let rules = rules.iter().filter_map(|rule| judged(rule, *action, cluster.settings().l7_deny));
            Some(Policy {
                key,
                scope,
                content: Content::Rules { action: *action, rules: rules.collect(), dry_run: *dry_run },
            })
        }
    }
}

/// The policy as the waypoints get it that it is attached to: all of it, tried out or not.
pub fn at_waypoints(cluster: &Cluster, policy: &AuthorizationPolicy) -> Policy {
    let key = key(&policy.meta.name);
    let all = |rules: &[ParsedRule]| rules.iter().map(|one| one.rule.clone()).collect();
    let content = match &policy.content {
        Wish::Rules { action, rules, dry_run } => {
            Content::Rules { action: *action, rules: all(rules), dry_run: *dry_run }
        }
        Wish::Custom { provider, rules } => {
            let authorizer = match cluster.provider(provider) {
                Ok(Provider::Authorizer(authorizer)) => Some(authorizer.clone()),
                // A waypoint denies what matches.
                Ok(Provider::Other) | Err(_) => None,
            };
            Content::Custom { provider: provider.clone(), authorizer, rules: all(rules) }
        }
        Wish::Audit { rules } => Content::Audit { rules: all(rules) },
        Wish::Undecodable(reason) => Content::Undecodable { reason: reason.clone() },
    };
    Policy { key, scope: Scope::WorkloadSelector, content }
}

/// The selector policies that a workload names: of its own namespace, and of the root namespace.
pub fn references(cluster: &Cluster, namespace: &Namespace, labels: &Labels) -> Vec<PolicyKey> {
    let root = &cluster.settings().root_namespace;
    let mut owners = cluster.selectors_of(namespace, labels);
    if namespace != root {
        owners.extend(cluster.selectors_of(root, labels));
    }
    let sent = owners.into_iter().filter_map(|owner| match owner {
        SelectorOwner::AuthorizationPolicy(name) => translate(cluster, &name).map(|policy| policy.key),
        SelectorOwner::Service(_) | SelectorOwner::ServiceEntry(_) | SelectorOwner::PeerAuthentication(_) => {
            None
        }
    });
    sent.collect()
}

/// The policy that lets a waypoint in; only if the mesh wants that, and the waypoint has pods.
pub fn allow_waypoint(cluster: &Cluster, gateway: &Name) -> Option<Policy> {
    let object = cluster.gateways.get(gateway).filter(|_| cluster.settings().auto_allow_waypoints)?;
    if !waypoint::is_waypoint(cluster, object) {
        return None;
    }
    let accounts: std::collections::BTreeSet<_> = cluster
        .instances_of(gateway)
        .filter(|pod| !pod.phase.is_terminal())
        .map(|pod| pod.service_account.clone())
        .collect();
    let principal = |account| {
        let identity =
            Identity::new(cluster.settings().trust_domain.clone(), gateway.namespace.clone(), account);
        Text::Exact(identity.principal().to_string().into())
    };
    let principals: Vec<_> = accounts.into_iter().map(principal).collect();
    (!principals.is_empty()).then(|| Policy {
        key: allow_waypoint_key(gateway),
        scope: Scope::WorkloadSelector,
        content: Content::Rules {
            action: Action::Allow,
            rules: vec![Rule {
                clauses: vec![Clause { matches: vec![Match { principals, ..Match::default() }] }],
            }],
            dry_run: false,
        },
    })
}

fn allow_waypoint_key(gateway: &Name) -> PolicyKey {
    let name = format!("istio_allow_waypoint_{}_{}", gateway.namespace, gateway.name);
    PolicyKey::new(gateway.namespace.clone(), name)
}

fn key(name: &Name) -> PolicyKey {
    PolicyKey { namespace: name.namespace.clone(), name: name.name.clone() }
}

fn scope(cluster: &Cluster, policy: &AuthorizationPolicy) -> Option<Scope> {
    match &policy.attachment {
        Attachment::Targets(_) => None,
        Attachment::Selected(_) => Some(Scope::WorkloadSelector),
        Attachment::Namespace if policy.meta.name.namespace == cluster.settings().root_namespace => {
            Some(Scope::Global)
        }
        Attachment::Namespace => Some(Scope::Namespace),
    }
}

/// A rule as a tunnel can judge it. An ALLOW with conditions that it cannot see is left out whole: it must not let in
/// more than was meant. A DENY keeps the conditions that it can see: it may refuse more than was meant.
fn judged(rule: &ParsedRule, action: Action, l7_deny: L7Deny) -> Option<Rule> {
    match (action, l7_deny) {
        _ if rule.left_out.is_empty() => Some(rule.rule.clone()),
        (Action::Allow, _) => None,
        (Action::Deny, L7Deny::Upstream) => Some(rule.rule.clone()),
        (Action::Deny, L7Deny::Deny | L7Deny::Refuse) => {
            // A match of which nothing is left stands for everything, and so does a clause that offers it.
            let says_something = |clause: &&Clause| !clause.matches.iter().any(Match::is_empty);
            Some(Rule { clauses: rule.rule.clauses.iter().filter(says_something).cloned().collect() })
        }
    }
}
