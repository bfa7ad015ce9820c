//! The questions that decisions ask of a snapshot.

use std::{cmp::Reverse, sync::Arc};

use super::{Endpoint, Endpoints, Snapshot};
use crate::{
    address::NetworkAddress,
    authz::Policy,
    gateway::{GatewayAddress, GatewayDestination},
    name::{Hostname, Label, Namespace, PolicyKey, ServiceAccount, ServiceKey, Uid},
    service::Service,
    service_config::ServiceConfig,
    workload::Workload,
};

/// What an address belongs to.
#[derive(Clone, Debug)]
pub enum Addressed<'s> {
    /// One workload.
    Workload(&'s Arc<Workload>),
    /// A service, by a virtual address.
    Service(&'s Arc<Service>),
}

/// What a gateway reference leads to.
#[derive(Clone, Debug)]
pub enum GatewayEnd<'s> {
    /// A service whose endpoints are the gateway's instances.
    Service(&'s Arc<Service>),
    /// One instance.
    Workload(&'s Arc<Workload>),
}

impl Snapshot {
    /// The workload of this key.
    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The best workload at this address: a live pod beats whatever else claims it (protocols 5.1).
    pub fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.by_address.get(address)?.first()
    }

    /// The workload of this node that has this name and account (protocols 5.1).
    pub fn local_workload(
        &self,
        namespace: &Namespace,
        name: &Label,
        account: &ServiceAccount,
    ) -> Option<&Arc<Workload>> {
        let all = self.local.get(&(namespace.clone(), name.clone()))?;
        all.iter().rev().find(|one| one.service_account == *account)
    }

    /// The workload that is reached by this host name.
    pub fn workload_named(&self, key: &ServiceKey) -> Option<&Arc<Workload>> {
        self.by_workload_hostname.get(key)
    }

    /// The service of this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All services of this host name, whatever their namespace.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname).map_or(&[], |all| all)
    }

    /// The service of this host name that a client of `from` means (protocols 5.1).
    pub fn service_named(&self, hostname: &Hostname, from: &Namespace) -> Option<&Arc<Service>> {
        self.service_named_preferring(hostname, from, None)
    }

    /// The same, with a namespace that wins where neither the client's own nor a canonical service
    /// does (`PREFERED_SERVICE_NAMESPACE`, DNS only).
    pub fn service_named_preferring(
        &self,
        hostname: &Hostname,
        from: &Namespace,
        preferred: Option<&Namespace>,
    ) -> Option<&Arc<Service>> {
        best(self.services_named(hostname.as_str()), from, preferred)
    }

    /// The service with this virtual address that a client of `from` means: exact addresses before
    /// ranges; among ranges those of the client's namespace, then the longest, then the canonical.
    pub fn service_at(&self, address: &NetworkAddress, from: &Namespace) -> Option<&Arc<Service>> {
        let exact = self.by_vip.get(address).and_then(|all| best(all, from, None));
        exact.or_else(|| {
            self.ranges
                .iter()
                .filter(|(range, service)| {
                    range.network == address.network
                        && range.range.contains(&address.ip)
                        && service.visible_to(from)
                })
                .max_by_key(|(range, service)| {
                    (service.namespace == *from, range.range.prefix_len(), service.canonical)
                })
                .map(|(_, service)| service)
        })
    }

    /// Workload first, then service: what an address means when a connection asks for it
    /// (protocols 5.3, step 4).
    pub fn addressed(&self, address: &NetworkAddress, from: &Namespace) -> Option<Addressed<'_>> {
        let workload = self.workload_at(address).map(Addressed::Workload);
        workload.or_else(|| self.service_at(address, from).map(Addressed::Service))
    }

    /// Service first, then workload: where a connection is to be sent (protocols 5.3, step 6).
    pub fn upstream(&self, address: &NetworkAddress, from: &Namespace) -> Option<Addressed<'_>> {
        let service = self.service_at(address, from).map(Addressed::Service);
        service.or_else(|| self.workload_at(address).map(Addressed::Workload))
    }

    /// The endpoints of a service, healthy or not; `None` when it has none.
    pub fn endpoints(&self, key: &ServiceKey) -> Option<&Endpoints> {
        self.endpoints.get(key)
    }

    /// The endpoint of a service that is the workload `uid`.
    pub fn endpoint(&self, key: &ServiceKey, uid: &Uid) -> Option<&Endpoint> {
        self.endpoints.get(key)?.get(uid)
    }

    /// What a waypoint or network gateway reference leads to (protocols 5.4).
    pub fn gateway(&self, gateway: &GatewayAddress, from: &Namespace) -> Option<GatewayEnd<'_>> {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => {
                let service = self.service(key).map(GatewayEnd::Service);
                service.or_else(|| self.workload_named(key).map(GatewayEnd::Workload))
            }
            GatewayDestination::Address(address) => self.upstream(address, from).map(|end| match end {
                Addressed::Service(service) => GatewayEnd::Service(service),
                Addressed::Workload(workload) => GatewayEnd::Workload(workload),
            }),
        }
    }

    /// What applies to a service of this waypoint; `None`: it serves no such service.
    pub fn config(&self, key: &ServiceKey) -> Option<&Arc<ServiceConfig>> {
        self.configs.get(key)
    }

    /// What applies to each service of this waypoint, in no order.
    pub fn configs(&self) -> impl Iterator<Item = &Arc<ServiceConfig>> {
        self.configs.values()
    }

    /// The policy of this key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that judge connections to `workload` (protocols 6.1). Names that it lists and
    /// that are not known are left out here; [`unknown_policies`](Self::unknown_policies) tells them.
    pub fn policies_on<'s>(&'s self, workload: &'s Workload) -> impl Iterator<Item = &'s Policy> + 's {
        self.shared_policies_on(workload).map(|policy| &**policy)
    }

    /// The same, to be kept: two snapshots that give the same ones give the same verdicts.
    pub fn shared_policies_on<'s>(
        &'s self,
        workload: &'s Workload,
    ) -> impl Iterator<Item = &'s Arc<Policy>> + 's {
        let scoped = |scope: &Option<Namespace>| self.by_scope.get(scope).map_or(&[][..], |all| all);
        let namespace = Some(workload.namespace.clone());
        let by_name = workload.authorization_policies.iter().filter_map(|key| self.policy(key));
        scoped(&namespace).iter().chain(scoped(&None)).chain(by_name)
    }

    /// The policies that `workload` lists and that are not known here.
    pub fn unknown_policies<'s>(
        &'s self,
        workload: &'s Workload,
    ) -> impl Iterator<Item = &'s PolicyKey> + 's {
        workload.authorization_policies.iter().filter(|key| self.policy(key).is_none())
    }

    /// Whether `workload` stands behind the gateway reference `gateway`.
    pub fn stands_behind(&self, workload: &Workload, gateway: &GatewayAddress, from: &Namespace) -> bool {
        match self.gateway(gateway, from) {
            Some(GatewayEnd::Service(service)) => self.endpoint(&service.key(), &workload.uid).is_some(),
            Some(GatewayEnd::Workload(one)) => {
                one.uid == workload.uid || one.addresses.iter().any(|ip| workload.addresses.contains(ip))
            }
            None => false,
        }
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The workloads that may be found by name: those of the own node, or all (protocols 5.1).
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.values().flat_map(|all| all.iter())
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Endpoints of services that are not known (yet).
    pub fn staged(&self) -> impl Iterator<Item = (&ServiceKey, &Endpoints)> {
        self.endpoints.iter().filter(|(key, _)| self.service(key).is_none())
    }

    /// How many workloads, services and policies are known.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.workloads.len(), self.services.len(), self.policies.len())
    }
}

/// Of several services with one name or address, the one that a client of `from` means: its own
/// namespace's, else the canonical one, else that of `preferred`, else the first (protocols 5.1).
fn best<'s>(
    services: &'s [Arc<Service>],
    from: &Namespace,
    preferred: Option<&Namespace>,
) -> Option<&'s Arc<Service>> {
    services
        .iter()
        .enumerate()
        .filter(|(_, service)| service.visible_to(from))
        .max_by_key(|(at, service)| {
            (
                service.namespace == *from,
                service.canonical,
                preferred.is_some_and(|preferred| service.namespace == *preferred),
                Reverse(*at),
            )
        })
        .map(|(_, service)| service)
}
