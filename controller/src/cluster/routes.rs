//! Questions about routes: who is attached to a service, who refers to one, and who may.

use std::sync::Arc;

use super::{
    Cluster, HostOwner,
    object::{Key, Kind, Name, Route},
};
use ambit_model::name::Namespace;

impl Cluster {
    /// A route.
    pub fn route(&self, key: &Key) -> Option<&Arc<Route>> {
        self.routes.get(key)
    }

    /// Every route: by kind, those that take precedence first, then by name.
    pub fn routes(&self) -> impl Iterator<Item = (&Key, &Arc<Route>)> {
        self.routes.iter()
    }

    /// The routes of one kind in a namespace.
    pub fn routes_within<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a Namespace,
    ) -> impl Iterator<Item = &'a Arc<Route>> {
        let first = Key { kind, name: Name::new(namespace.clone(), "") };
        let here = move |key: &Key| key.kind == kind && key.name.namespace == *namespace;
        self.routes.range(first..).take_while(move |(key, _)| here(key)).map(|(_, route)| route)
    }

    /// The routes that are attached to a service, those that take precedence first.
    pub fn routes_at(&self, parent: &HostOwner) -> impl Iterator<Item = &Arc<Route>> {
        self.index.routes_at(parent).filter_map(|key| self.routes.get(key))
    }

    /// The routes that send something to a service.
    pub fn routes_to(&self, service: &HostOwner) -> impl Iterator<Item = &Arc<Route>> {
        self.index.routes_to(service).filter_map(|key| self.routes.get(key))
    }

    /// Whether routes of a kind and namespace may refer to a service of another namespace.
    pub fn is_granted(&self, kind: Kind, namespace: &Namespace, to: &HostOwner) -> bool {
        let grants = self.reference_grants.within(&to.name().namespace);
        grants.into_iter().any(|(_, grant)| grant.allows(kind, namespace, to))
    }
}
