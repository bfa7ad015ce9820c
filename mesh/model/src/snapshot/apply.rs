//! `(&Snapshot, changes) → Snapshot`, and every secondary index with it.

use std::{cmp::Reverse, sync::Arc};

use super::{Endpoint, Snapshot};
use crate::{
    address::{NetworkAddress, NetworkRange},
    authz::{Policy, Scope},
    name::{Namespace, PolicyKey, ServiceKey, Uid},
    service::Service,
    service_config::ServiceConfig,
    workload::{NetworkMode, Tunnel, Workload},
};

/// Something to be known from now on, in place of what had its key.
#[derive(Clone, Debug)]
pub enum Update {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
    /// A policy.
    Policy(Arc<Policy>),
    /// What applies to a service of this waypoint.
    Config(Arc<ServiceConfig>),
}

/// Something to be forgotten. What is not known is not missed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Removal {
    /// A workload or service, by the name of its resource (protocols 1.4): a workload's key, else
    /// `namespace/hostname`.
    Address(String),
    /// A policy.
    Policy(PolicyKey),
    /// What applies to a service: this waypoint serves it no more.
    Config(ServiceKey),
}

pub(super) fn apply(next: &mut Snapshot, removals: &[Removal], updates: impl IntoIterator<Item = Update>) {
    for removal in removals {
        match removal {
            Removal::Address(name) => remove_address(next, name),
            Removal::Policy(key) => remove_policy(next, key),
            Removal::Config(key) => drop(next.configs.remove(key)),
        }
    }
    for update in updates {
        match update {
            Update::Workload(workload) => insert_workload(next, workload),
            Update::Service(service) => insert_service(next, service),
            Update::Policy(policy) => insert_policy(next, policy),
            Update::Config(config) => drop(next.configs.insert(config.key().clone(), config)),
        }
    }
}

fn remove_address(next: &mut Snapshot, name: &str) {
    if next.workloads.get(name).is_some() {
        remove_workload(next, &Uid::from(name));
    } else if let Some(key) = ServiceKey::parse(name) {
        remove_service(next, &key);
    }
}

fn insert_workload(next: &mut Snapshot, workload: Arc<Workload>) {
    remove_workload(next, &workload.uid);
    if workload.network_mode == NetworkMode::Standard {
        for ip in &workload.addresses {
            let address = NetworkAddress::new(workload.network.clone(), *ip);
            next.by_address.update(
                &address,
                |there| {
                    // The latest first among equals; a live pod is never shadowed (protocols 5.1).
                    let mut all = vec![workload.clone()];
                    all.extend(there.iter().cloned());
                    all.sort_by_key(|one| Reverse(rank(one)));
                    *there = all.into();
                },
                |there| there.is_empty(),
            );
        }
    }
    if next.node.as_ref().is_none_or(|node| *node == workload.node) {
        let key = (workload.namespace.clone(), workload.name.clone());
        next.local.update(&key, |there| *there = with(there, workload.clone()), |there| there.is_empty());
    }
    if !workload.hostname.is_empty() {
        let key = ServiceKey { namespace: workload.namespace.clone(), hostname: workload.hostname.clone() };
        next.by_workload_hostname.insert(key, workload.clone());
    }
    for (service, ports) in workload.services.iter() {
        let endpoint = Endpoint { workload: workload.clone(), ports: ports.clone() };
        next.endpoints.update(service, |all| all.insert(endpoint), |all| all.as_slice().is_empty());
    }
    next.workloads.insert(workload.uid.clone(), workload);
}

fn remove_workload(next: &mut Snapshot, uid: &Uid) {
    let Some(old) = next.workloads.remove(uid) else { return };
    let others = |there: &mut Arc<[Arc<Workload>]>| {
        *there = there.iter().filter(|one| one.uid != old.uid).cloned().collect();
    };
    if old.network_mode == NetworkMode::Standard {
        for ip in &old.addresses {
            let address = NetworkAddress::new(old.network.clone(), *ip);
            next.by_address.update(&address, others, |there| there.is_empty());
        }
    }
    let key = (old.namespace.clone(), old.name.clone());
    if next.local.get(&key).is_some() {
        next.local.update(&key, others, |there| there.is_empty());
    }
    if !old.hostname.is_empty() {
        let key = ServiceKey { namespace: old.namespace.clone(), hostname: old.hostname.clone() };
        if next.by_workload_hostname.get(&key).is_some_and(|there| there.uid == old.uid) {
            next.by_workload_hostname.remove(&key);
        }
    }
    for (service, _) in old.services.iter() {
        next.endpoints.update(service, |all| all.remove(uid), |all| all.as_slice().is_empty());
    }
}

/// What beats what among workloads of one address: a pod in the mesh, a pod, one in the mesh, any.
fn rank(workload: &Workload) -> (bool, bool) {
    (workload.is_pod(), workload.tunnel == Tunnel::Hbone)
}

fn insert_service(next: &mut Snapshot, service: Arc<Service>) {
    let key = service.key();
    remove_service(next, &key);
    next.by_hostname.update(
        &service.hostname,
        |there| *there = with(there, service.clone()),
        |there| there.is_empty(),
    );
    for vip in &service.vips {
        next.by_vip.update(
            vip,
            |there| {
                // One slot per namespace: a later service of the same namespace takes it.
                *there = there
                    .iter()
                    .filter(|one| one.namespace != service.namespace)
                    .cloned()
                    .chain([service.clone()])
                    .collect();
            },
            |there| there.is_empty(),
        );
    }
    if !service.ranges.is_empty() {
        let added = service.ranges.iter().map(|range| (range.clone(), service.clone()));
        next.ranges = next.ranges.iter().cloned().chain(added).collect();
    }
    next.services.insert(key, service);
}

fn remove_service(next: &mut Snapshot, key: &ServiceKey) {
    let Some(old) = next.services.remove(key) else { return };
    let others = |there: &mut Arc<[Arc<Service>]>| {
        *there = there.iter().filter(|one| !Arc::ptr_eq(one, &old)).cloned().collect();
    };
    next.by_hostname.update(&old.hostname, others, |there| there.is_empty());
    for vip in &old.vips {
        next.by_vip.update(vip, others, |there| there.is_empty());
    }
    if !old.ranges.is_empty() {
        let kept = |entry: &&(NetworkRange, Arc<Service>)| !Arc::ptr_eq(&entry.1, &old);
        next.ranges = next.ranges.iter().filter(kept).cloned().collect();
    }
}

fn insert_policy(next: &mut Snapshot, policy: Arc<Policy>) {
    // The old scope's index entry must go even when the scope changes (protocols 12, line 20).
    remove_policy(next, &policy.key);
    if let Some(scope) = scope_index(&policy) {
        next.by_scope.update(&scope, |there| *there = with(there, policy.clone()), |there| there.is_empty());
    }
    next.policies.insert(policy.key.clone(), policy);
}

fn remove_policy(next: &mut Snapshot, key: &PolicyKey) {
    let Some(old) = next.policies.remove(key) else { return };
    if let Some(scope) = scope_index(&old) {
        next.by_scope.update(
            &scope,
            |there| *there = there.iter().filter(|one| one.key != old.key).cloned().collect(),
            |there| there.is_empty(),
        );
    }
}

fn scope_index(policy: &Policy) -> Option<Option<Namespace>> {
    match policy.scope {
        Scope::Global => Some(None),
        Scope::Namespace => Some(Some(policy.key.namespace.clone())),
        Scope::WorkloadSelector => None,
    }
}

fn with<T: Clone>(there: &Arc<[T]>, one: T) -> Arc<[T]> {
    there.iter().cloned().chain([one]).collect()
}
