//! What a control plane publishes, in few words.

use ambit_fixtures::mesh::{PodBuilder, ServiceBuilder};
use ambit_model::{
    authz::{Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    name::PolicyKey,
};
use ambit_wire::codec;
use bytes::Bytes;

/// Workloads and services by name and encoding.
pub fn addresses(
    pods: impl IntoIterator<Item = PodBuilder>,
    services: impl IntoIterator<Item = ServiceBuilder>,
) -> Vec<(String, Bytes)> {
    let pods = pods.into_iter().map(|pod| {
        let pod = pod.build();
        (pod.uid.to_string(), codec::encode_workload(&pod))
    });
    let services = services.into_iter().map(|service| {
        let service = service.build();
        (service.key().to_string(), codec::encode_service(&service))
    });
    services.chain(pods).collect()
}

pub fn encoded(policy: Policy) -> (String, Bytes) {
    (policy.key.to_string(), codec::encode_policy(&policy))
}

/// A policy of namespace `default` with one rule.
pub fn policy(name: &str, action: Action, one: Match) -> Policy {
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
    Policy {
        key: PolicyKey::new("default", name),
        scope: Scope::Namespace,
        content: Content::Rules { action, rules, dry_run: false },
    }
}

/// The same, which only workloads that name it are judged by.
pub fn selected(policy: Policy) -> Policy {
    Policy { scope: Scope::WorkloadSelector, ..policy }
}

/// The same, only tried out.
pub fn tried_out(policy: Policy) -> Policy {
    let content = match policy.content {
        Content::Rules { action, rules, .. } => Content::Rules { action, rules, dry_run: true },
        other @ (Content::Custom { .. } | Content::Audit { .. } | Content::Undecodable { .. }) => other,
    };
    Policy { content, ..policy }
}

/// These accounts of namespace `default`.
pub fn from_accounts(accounts: &[&str]) -> Match {
    let principal = |account: &&str| Text::Exact(format!("cluster.local/ns/default/sa/{account}").into());
    Match { principals: accounts.iter().map(principal).collect(), ..Match::default() }
}

/// Whoever proves no identity.
pub fn without_identity() -> Match {
    Match { not_principals: vec![Text::Presence], ..Match::default() }
}
