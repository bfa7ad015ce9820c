//! What this process knows of the mesh at one instant.
//!
//! A [`Snapshot`] is immutable: a decision is made on one of them, from begin to end. A change makes
//! another ([`apply`](Snapshot::apply)) that shares all that did not change. The questions are in
//! `find.rs`; every secondary index is kept in `apply.rs` and nowhere else.

mod apply;
mod endpoints;
mod find;
mod shards;

use std::sync::Arc;

pub use apply::{Removal, Update};
pub use endpoints::{Endpoint, Endpoints};
pub use find::{Addressed, GatewayEnd};
use shards::Shards;

use crate::{
    address::{NetworkAddress, NetworkRange},
    authz::Policy,
    name::{Hostname, Label, Namespace, Node, PolicyKey, ServiceKey, Uid},
    service::Service,
    service_config::ServiceConfig,
    workload::Workload,
};

/// An immutable view of the mesh; cheap to clone, cheap to keep.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Whose local workloads are indexed by name; `None` indexes those of every node.
    node: Option<Node>,
    workloads: Shards<Uid, Arc<Workload>>,
    /// Best first; HOST_NETWORK workloads are not here.
    by_address: Shards<NetworkAddress, Arc<[Arc<Workload>]>>,
    /// Workloads of this node by namespace and name.
    local: Shards<(Namespace, Label), Arc<[Arc<Workload>]>>,
    /// Workloads that are reached by host name.
    by_workload_hostname: Shards<ServiceKey, Arc<Workload>>,
    services: Shards<ServiceKey, Arc<Service>>,
    by_hostname: Shards<Hostname, Arc<[Arc<Service>]>>,
    by_vip: Shards<NetworkAddress, Arc<[Arc<Service>]>>,
    ranges: Arc<[(NetworkRange, Arc<Service>)]>,
    /// Endpoints by service, also of services that are not known yet.
    endpoints: Shards<ServiceKey, Endpoints>,
    policies: Shards<PolicyKey, Arc<Policy>>,
    /// Namespace-scoped policies, by name; the global ones under no namespace.
    by_scope: Shards<Option<Namespace>, Arc<[Arc<Policy>]>>,
    /// What applies to the services of this waypoint; nothing at a tunnel.
    configs: Shards<ServiceKey, Arc<ServiceConfig>>,
}

impl Snapshot {
    /// Nothing is known. `node` says whose workloads may be found by name (protocols 5.1); `None`: all.
    pub fn empty(node: Option<Node>) -> Self {
        Self { node, ..Self::default() }
    }

    /// This snapshot and one batch of changes: removals first, then updates, in order.
    #[must_use]
    pub fn apply(&self, removals: &[Removal], updates: impl IntoIterator<Item = Update>) -> Self {
        let mut next = self.clone();
        apply::apply(&mut next, removals, updates);
        next
    }
}
