//! Which DestinationRule governs a service, and what a waypoint is told of it. Pure.
//!
//! | rules that name the host | the one that counts |
//! |---|---|
//! | in the namespace of the service, or else in the root namespace | that there |
//! | by its full name, or by a shorter and shorter end of it | the longest |
//! | several of these | the oldest |
//!
//! Clients' namespaces have no say: a waypoint is the service's, and the same for all clients.

use std::{collections::BTreeSet, sync::Arc};

use ambit_model::{
    name::{Hostname, Label, Namespace, ServiceKey, Uid},
    route::Destination,
    service_config::Parts,
    traffic::{PolicyAt, Subset, Traffic},
};

use super::{
    route_status::told,
    service::binding_of,
    status::{Condition, WAYPOINT_ACCEPTED},
    waypoint::Binding,
    workload::{inline_uid, member_uid},
};
use crate::cluster::object::{DestinationRule, EndpointPolicy, Selector};
use crate::cluster::{Cluster, HostOwner, Member};

const NOT_BOUND: &str = "AncestorNotBound";

/// How the endpoints are used of `service` and of all to which `parts` send something.
pub fn of_config(cluster: &Cluster, service: &ServiceKey, parts: &Parts) -> Vec<(ServiceKey, Arc<Traffic>)> {
    let of_rules = parts.http.iter().flat_map(|one| one.route.rules()).flat_map(|rule| {
        let of_backends = rule.backends.iter();
        let filters = of_backends.clone().map(|backend| &backend.filters).chain([&rule.filters]);
        let mirrors = filters.flat_map(|filters| filters.destinations());
        of_backends.map(|backend| &backend.to).chain(mirrors)
    });
    let of_streams = parts.stream.iter().flat_map(|one| one.route.backends()).map(|backend| &backend.to);
    let named = of_rules.chain(of_streams).filter_map(|to| match to {
        Destination::Service { service, .. } => Some(service),
        Destination::Invalid { .. } => None,
    });
    let services: BTreeSet<&ServiceKey> = named.chain([service]).collect();
    let governed = services.into_iter().filter_map(|service| {
        let owner = cluster.winner(service)?;
        let rule = governing(cluster, service)?;
        Some((service.clone(), Arc::new(traffic(cluster, rule, &owner))))
    });
    governed.collect()
}

/// The rule that governs a service.
pub fn governing<'c>(cluster: &'c Cluster, service: &'c ServiceKey) -> Option<&'c Arc<DestinationRule>> {
    let root = &cluster.settings().root_namespace;
    [&service.namespace, root].into_iter().find_map(|namespace| {
        let rules = cluster.destination_rules.within(namespace).map(|(_, rule)| rule);
        let fitting = rules.filter_map(|rule| Some((fit(cluster, rule, service)?, rule)));
        let best = fitting.max_by(|(fit, rule), (other_fit, other)| {
            fit.cmp(other_fit).then_with(|| other.meta.age().cmp(&rule.meta.age()))
        });
        best.map(|(_, rule)| rule)
    })
}

/// How well a rule names a service: the length of what it names; `None`: not at all.
fn fit(cluster: &Cluster, rule: &DestinationRule, service: &ServiceKey) -> Option<usize> {
    if !rule.is_seen_in(&service.namespace) {
        return None;
    }
    let host = host_of(cluster, rule);
    let named = match host.as_str().strip_prefix('*') {
        // A host that itself stands for many names is named as it is written.
        Some(end) if host != service.hostname => service.hostname.as_str().ends_with(end),
        Some(_) | None => host == service.hostname,
    };
    named.then_some(if host == service.hostname { usize::MAX } else { host.as_str().len() })
}

/// The host that a rule names, in full.
pub fn host_of(cluster: &Cluster, rule: &DestinationRule) -> Hostname {
    if rule.host.as_str().contains(['.', '*']) {
        return rule.host.clone();
    }
    let domain = &cluster.settings().domain;
    format!("{}.{}.svc.{domain}", rule.host, rule.meta.name.namespace).into()
}

/// The services that a rule names, whether it governs them or not.
pub fn named(cluster: &Cluster, rule: &DestinationRule) -> Vec<HostOwner> {
    let everywhere = rule.meta.name.namespace == cluster.settings().root_namespace;
    let host = host_of(cluster, rule);
    let names = |namespace: &Namespace, one: &Hostname| {
        (everywhere || *namespace == rule.meta.name.namespace)
            && fit(cluster, rule, &ServiceKey { namespace: namespace.clone(), hostname: one.clone() })
                .is_some()
    };
    if !host.as_str().starts_with('*') {
        let owners = cluster.owners_of_host(&host);
        return owners.filter(|owner| names(&owner.name().namespace, &host)).cloned().collect();
    }
    let services =
        cluster.services.iter().filter(|(name, _)| names(&name.namespace, &cluster.hostname_of(name)));
    let services = services.map(|(name, _)| HostOwner::Service(name.clone()));
    let entries = cluster.service_entries.iter();
    let entries = entries.filter(|(name, entry)| entry.hosts.iter().any(|host| names(&name.namespace, host)));
    services.chain(entries.map(|(name, _)| HostOwner::ServiceEntry(name.clone()))).collect()
}

fn traffic(cluster: &Cluster, rule: &DestinationRule, owner: &HostOwner) -> Traffic {
    let at = |subset: Option<&Label>, port: Option<u16>, policy: &EndpointPolicy| PolicyAt {
        subset: subset.cloned(),
        port,
        policy: Arc::new(policy.compiled()),
    };
    let all = &rule.policy;
    let mut policies = Vec::new();
    for subset in &rule.subsets {
        // A subset's port counts alone; else what it says of all its ports goes before what the rule says of this one.
        let Some(own) = &subset.policy else { continue };
        let name = Some(&subset.name);
        policies.push(at(name, None, &own.general.or(&all.general)));
        let ports: BTreeSet<u16> = own.ports.keys().chain(all.ports.keys()).copied().collect();
        policies.extend(ports.into_iter().map(|port| match own.ports.get(&port) {
            Some(policy) => at(name, Some(port), policy),
            None => at(name, Some(port), &own.general.or(all.ports.get(&port).unwrap_or(&all.general))),
        }));
    }
    policies.extend(all.ports.iter().map(|(port, policy)| at(None, Some(*port), policy)));
    policies.push(at(None, None, &all.general));
    let subsets = rule.subsets.iter().map(|subset| match &subset.labels {
        Some(labels) => Subset::new(subset.name.clone(), workloads(cluster, owner, labels)),
        None => Subset::of_all(subset.name.clone()),
    });
    Traffic { policies, subsets: subsets.collect() }
}

/// The workloads behind a service that have these labels. An endpoint of an EndpointSlice that is no pod has none.
fn workloads(cluster: &Cluster, owner: &HostOwner, labels: &Selector) -> Vec<Uid> {
    let namespace = &owner.name().namespace;
    let (selector, inline) = match owner {
        HostOwner::Service(name) => {
            (cluster.services.get(name).and_then(|service| service.selector.as_ref()), Vec::new())
        }
        HostOwner::ServiceEntry(name) => match cluster.service_entries.get(name) {
            None => (None, Vec::new()),
            Some(entry) => {
                let written = entry.endpoints.iter().filter(|endpoint| labels.matches(&endpoint.labels));
                let uids = written.map(|endpoint| inline_uid(cluster, name, &endpoint.address));
                (entry.selector.as_ref(), uids.collect())
            }
        },
    };
    // Without a selector somebody writes down which they are; whoever is none of them is not asked in any case.
    let members = match (selector, owner) {
        (Some(selector), _) => cluster.members(namespace, selector),
        (None, HostOwner::ServiceEntry(_)) => Vec::new(),
        (None, HostOwner::Service(_)) => cluster.members(namespace, labels),
    };
    let matches = |member: &Member| cluster.labels_of(member).is_some_and(|of| labels.matches(of));
    let members = members.into_iter().filter(matches);
    members.map(|member| member_uid(cluster, &member)).chain(inline).collect()
}

/// What is said of a rule.
pub fn status(cluster: &Cluster, rule: &DestinationRule) -> Condition {
    let owners = named(cluster, rule);
    if owners.is_empty() {
        let message =
            format!("{} is no service of the mesh; correct host, or create it", host_of(cluster, rule));
        return told(WAYPOINT_ACCEPTED, false, "TargetNotFound", message);
    }
    let governs = |owner: &&HostOwner| {
        let hosts = match owner {
            HostOwner::Service(name) => vec![cluster.hostname_of(name)],
            HostOwner::ServiceEntry(name) => {
                cluster.service_entries.get(name).map(|entry| entry.hosts.clone()).unwrap_or_default()
            }
        };
        hosts.into_iter().any(|hostname| {
            let service = ServiceKey { namespace: owner.name().namespace.clone(), hostname };
            governing(cluster, &service).is_some_and(|found| found.meta.name == rule.meta.name)
        })
    };
    let governed: Vec<&HostOwner> = owners.iter().filter(governs).collect();
    if governed.is_empty() {
        let message = "another DestinationRule that is older, or names the host more exactly, governs it; \
                       merge the two";
        return told(WAYPOINT_ACCEPTED, false, "Conflicted", message);
    }
    let bindings: Vec<_> = governed.iter().filter_map(|owner| binding_of(cluster, owner)).collect();
    if !bindings.iter().any(|binding| matches!(binding, Binding::Bound(_))) {
        let message = match bindings.first() {
            Some(Binding::Refused { gateway, reason }) => {
                format!("the service does not use waypoint {gateway}; {}", reason.remedy())
            }
            Some(Binding::Bound(_) | Binding::None) | None => {
                "only waypoints heed it, and the service has none; set its label istio.io/use-waypoint"
                    .to_owned()
            }
        };
        return told(WAYPOINT_ACCEPTED, false, NOT_BOUND, message);
    }
    if rule.asks_for_tls() {
        let message = "in force, but a waypoint speaks no TLS of its own: endpoints outside the mesh get nothing; \
                       let the application speak TLS, with mode DISABLE here";
        return told(WAYPOINT_ACCEPTED, true, "PartiallyInvalid", message);
    }
    if rule.asks_for_introductions() {
        let message = "in force at the waypoint; connections begin with a PROXY header where they are not looked into, \
                       and requests of HTTP have X-Forwarded-For instead";
        return told(WAYPOINT_ACCEPTED, true, "Accepted", message);
    }
    told(WAYPOINT_ACCEPTED, true, "Accepted", "in force at the waypoint")
}
