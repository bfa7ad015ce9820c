//! PeerAuthentication, said in policies: whoever must use mutual TLS refuses callers without identity (protocols 6.5).
//!
//! Any DENY wins, so a workload names *one* policy that holds its default and its exceptions together. Two policies,
//! one for the default and one for the exception, would refuse what the exception admits.

use ambit_model::{
    authz::{Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    name::{Namespace, PolicyKey},
};

use crate::cluster::object::{Labels, Mode, Name, PeerAuthentication};
use crate::cluster::{Cluster, SelectorOwner};

/// The name of the policy that refuses all callers without identity. No object can have such a name.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// In front of the name of a PeerAuthentication, the name of the policy made from it.
const CONVERTED: &str = "converted_peer_authentication_";

/// The policy that a workload names so that PeerAuthentications hold for it; `None` if plain text is welcome.
pub fn reference(cluster: &Cluster, namespace: &Namespace, labels: &Labels) -> Option<PolicyKey> {
    let parent_strict = is_strict_by_default(cluster, namespace);
    let Some(own) = of_workload(cluster, namespace, labels) else {
        return parent_strict.then(|| static_strict_key(cluster));
    };
    let any = |wanted: &[Mode]| own.ports.values().any(|mode| wanted.contains(mode));
    let merged = || Some(converted_key(&own.meta.name));
    let static_one = || Some(static_strict_key(cluster));
    match (own.mode, parent_strict) {
        (Some(Mode::Strict), _) if any(&[Mode::Permissive, Mode::Disable]) => merged(),
        (Some(Mode::Strict), _) => static_one(),
        (Some(Mode::Permissive | Mode::Disable), _) if any(&[Mode::Strict]) => merged(),
        (Some(Mode::Permissive | Mode::Disable), _) => None,
        // DISABLE alone makes no exception here: protocols 6.5 asks for PERMISSIVE.
        (None, true) if any(&[Mode::Permissive]) => merged(),
        (None, true) => static_one(),
        (None, false) if any(&[Mode::Strict]) => merged(),
        (None, false) => None,
    }
}

/// The policy that refuses all callers without identity; there as soon as any PeerAuthentication is.
pub fn static_strict(cluster: &Cluster) -> Option<Policy> {
    (!cluster.peer_authentications.is_empty()).then(|| Policy {
        key: static_strict_key(cluster),
        scope: Scope::WorkloadSelector,
        content: deny(vec![Rule { clauses: vec![clause(no_identity())] }]),
    })
}

/// The policy that a PeerAuthentication with ports of its own becomes, if it makes an exception at all.
pub fn converted(cluster: &Cluster, name: &Name) -> Option<Policy> {
    let own = cluster.peer_authentications.get(name)?;
    if own.selector.is_none() || name.namespace == cluster.settings().root_namespace {
        return None;
    }
    let strict = match own.mode {
        Some(mode) => mode == Mode::Strict,
        None => is_strict_by_default(cluster, &name.namespace),
    };
    let ports = own.ports.iter();
    let rules: Vec<Rule> = if strict {
        let excepted: Vec<u16> =
            ports.filter(|(_, mode)| **mode != Mode::Strict).map(|(port, _)| *port).collect();
        if excepted.is_empty() {
            return None;
        }
        let others = excepted
            .into_iter()
            .map(|port| clause(Match { not_destination_ports: vec![port], ..Match::default() }));
        vec![Rule { clauses: std::iter::once(clause(no_identity())).chain(others).collect() }]
    } else {
        ports
            .filter(|(_, mode)| **mode == Mode::Strict)
            .map(|(port, _)| {
                let one = Match { destination_ports: vec![*port], ..no_identity() };
                Rule { clauses: vec![clause(one)] }
            })
            .collect()
    };
    (!rules.is_empty()).then(|| Policy {
        key: converted_key(name),
        scope: Scope::WorkloadSelector,
        content: deny(rules),
    })
}

/// Whether a workload of the namespace without a policy of its own must refuse plain text.
fn is_strict_by_default(cluster: &Cluster, namespace: &Namespace) -> bool {
    let of_mesh = oldest_unselective(cluster, &cluster.settings().root_namespace).and_then(|one| one.mode);
    let of_namespace = oldest_unselective(cluster, namespace).and_then(|one| one.mode);
    of_namespace.or(of_mesh) == Some(Mode::Strict)
}

fn oldest_unselective<'a>(cluster: &'a Cluster, namespace: &'a Namespace) -> Option<&'a PeerAuthentication> {
    let here = cluster.peer_authentications.within(namespace).map(|(_, one)| one.as_ref());
    here.filter(|one| one.selector.is_none()).min_by_key(|one| one.meta.age())
}

/// The oldest policy that selects the workload. In the root namespace selectors do not count.
fn of_workload<'a>(
    cluster: &'a Cluster,
    namespace: &Namespace,
    labels: &Labels,
) -> Option<&'a PeerAuthentication> {
    if *namespace == cluster.settings().root_namespace {
        return None;
    }
    let selecting = cluster.selectors_of(namespace, labels).into_iter().filter_map(|owner| match owner {
        SelectorOwner::PeerAuthentication(name) => cluster.peer_authentications.get(&name).map(AsRef::as_ref),
        SelectorOwner::Service(_)
        | SelectorOwner::ServiceEntry(_)
        | SelectorOwner::AuthorizationPolicy(_) => None,
    });
    selecting.min_by_key(|one| one.meta.age())
}

fn static_strict_key(cluster: &Cluster) -> PolicyKey {
    PolicyKey::new(cluster.settings().root_namespace.clone(), STATIC_STRICT)
}

fn converted_key(name: &Name) -> PolicyKey {
    PolicyKey::new(name.namespace.clone(), format!("{CONVERTED}{}", name.name))
}

fn deny(rules: Vec<Rule>) -> Content {
    Content::Rules { action: Action::Deny, rules, dry_run: false }
}

fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

fn no_identity() -> Match {
    Match { not_principals: vec![Text::Presence], ..Match::default() }
}
