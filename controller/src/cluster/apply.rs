//! Puts one event into effect, objects and indexes together.

use std::sync::Arc;

use ambit_model::name::ServiceKey;

use super::object::{Key, Kind, Object};
use super::{Cluster, Store};
use crate::source::Event;

/// What an event changed: the object as it was and as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Touched {
    /// Before; none for a new object.
    pub before: Option<Object>,
    /// After; none for one that is gone.
    pub after: Option<Object>,
}

impl Cluster {
    /// Puts an event into effect. `None` if it changes nothing.
    pub fn apply(&mut self, event: Event) -> Option<Touched> {
        let (key, after) = match event {
            Event::Upsert(object) => (object.key(), Some(object)),
            Event::Delete(key) => (key, None),
            Event::Synced => return None,
        };
        let before = self.replace(&key, after.clone());
        if before == after {
            return None;
        }
        let domain = self.settings.domain.clone();
        let hostname_of =
            |name: &super::Name| format!("{}.{}.svc.{domain}", name.name, name.namespace).into();
        if let Some(before) = &before {
            self.index.leave(before, hostname_of);
        }
        if let Some(after) = &after {
            self.index.enter(after, hostname_of);
        }
        if key.kind == Kind::ServiceEntry || key.kind == Kind::Service {
            self.vips.disturb();
        }
        Some(Touched { before, after })
    }

    /// Brings what depends on all objects together (the automatic addresses) up to date, once for many events.
    /// Says which services got another address.
    pub fn settle(&mut self) -> Vec<ServiceKey> {
        if !self.vips.is_disturbed() {
            return Vec::new();
        }
        let fresh = super::vips::allocate(self);
        self.vips.replace(fresh)
    }

    fn replace(&mut self, key: &Key, object: Option<Object>) -> Option<Object> {
        match (key.kind, object) {
            (Kind::Namespace, Some(Object::Namespace(new))) => {
                put(&mut self.namespaces, key, Some(new)).map(Object::Namespace)
            }
            (Kind::Namespace, _) => put(&mut self.namespaces, key, None).map(Object::Namespace),
            (Kind::Node, Some(Object::Node(new))) => put(&mut self.nodes, key, Some(new)).map(Object::Node),
            (Kind::Node, _) => put(&mut self.nodes, key, None).map(Object::Node),
            (Kind::Pod, Some(Object::Pod(new))) => put(&mut self.pods, key, Some(new)).map(Object::Pod),
            (Kind::Pod, _) => put(&mut self.pods, key, None).map(Object::Pod),
            (Kind::Service, Some(Object::Service(new))) => {
                put(&mut self.services, key, Some(new)).map(Object::Service)
            }
            (Kind::Service, _) => put(&mut self.services, key, None).map(Object::Service),
            (Kind::EndpointSlice, Some(Object::EndpointSlice(new))) => {
                put(&mut self.slices, key, Some(new)).map(Object::EndpointSlice)
            }
            (Kind::EndpointSlice, _) => put(&mut self.slices, key, None).map(Object::EndpointSlice),
            (Kind::ServiceEntry, Some(Object::ServiceEntry(new))) => {
                put(&mut self.service_entries, key, Some(new)).map(Object::ServiceEntry)
            }
            (Kind::ServiceEntry, _) => put(&mut self.service_entries, key, None).map(Object::ServiceEntry),
            (Kind::WorkloadEntry, Some(Object::WorkloadEntry(new))) => {
                put(&mut self.workload_entries, key, Some(new)).map(Object::WorkloadEntry)
            }
            (Kind::WorkloadEntry, _) => put(&mut self.workload_entries, key, None).map(Object::WorkloadEntry),
            (Kind::AuthorizationPolicy, Some(Object::AuthorizationPolicy(new))) => {
                put(&mut self.authorization_policies, key, Some(new)).map(Object::AuthorizationPolicy)
            }
            (Kind::AuthorizationPolicy, _) => {
                put(&mut self.authorization_policies, key, None).map(Object::AuthorizationPolicy)
            }
            (Kind::PeerAuthentication, Some(Object::PeerAuthentication(new))) => {
                put(&mut self.peer_authentications, key, Some(new)).map(Object::PeerAuthentication)
            }
            (Kind::PeerAuthentication, _) => {
                put(&mut self.peer_authentications, key, None).map(Object::PeerAuthentication)
            }
            (Kind::RequestAuthentication, Some(Object::RequestAuthentication(new))) => {
                put(&mut self.request_authentications, key, Some(new)).map(Object::RequestAuthentication)
            }
            (Kind::RequestAuthentication, _) => {
                put(&mut self.request_authentications, key, None).map(Object::RequestAuthentication)
            }
            (Kind::DestinationRule, Some(Object::DestinationRule(new))) => {
                put(&mut self.destination_rules, key, Some(new)).map(Object::DestinationRule)
            }
            (Kind::DestinationRule, _) => {
                put(&mut self.destination_rules, key, None).map(Object::DestinationRule)
            }
            (Kind::RateLimitPolicy, Some(Object::RateLimitPolicy(new))) => {
                put(&mut self.rate_limit_policies, key, Some(new)).map(Object::RateLimitPolicy)
            }
            (Kind::RateLimitPolicy, _) => {
                put(&mut self.rate_limit_policies, key, None).map(Object::RateLimitPolicy)
            }
            (Kind::VirtualService, Some(Object::VirtualService(new))) => {
                put(&mut self.virtual_services, key, Some(new)).map(Object::VirtualService)
            }
            (Kind::VirtualService, _) => {
                put(&mut self.virtual_services, key, None).map(Object::VirtualService)
            }
            (Kind::Gateway, Some(Object::Gateway(new))) => {
                put(&mut self.gateways, key, Some(new)).map(Object::Gateway)
            }
            (Kind::Gateway, _) => put(&mut self.gateways, key, None).map(Object::Gateway),
            (Kind::GatewayClass, Some(Object::GatewayClass(new))) => {
                put(&mut self.gateway_classes, key, Some(new)).map(Object::GatewayClass)
            }
            (Kind::GatewayClass, _) => put(&mut self.gateway_classes, key, None).map(Object::GatewayClass),
            (Kind::ReferenceGrant, Some(Object::ReferenceGrant(new))) => {
                put(&mut self.reference_grants, key, Some(new)).map(Object::ReferenceGrant)
            }
            (Kind::ReferenceGrant, _) => {
                put(&mut self.reference_grants, key, None).map(Object::ReferenceGrant)
            }
            (Kind::MeshConfig, Some(Object::MeshConfig(new))) => {
                put(&mut self.mesh_configs, key, Some(new)).map(Object::MeshConfig)
            }
            (Kind::MeshConfig, _) => put(&mut self.mesh_configs, key, None).map(Object::MeshConfig),
            (
                Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute,
                Some(Object::Route(new)),
            ) => self.routes.insert(key.clone(), new).map(Object::Route),
            (Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute, _) => {
                self.routes.remove(key).map(Object::Route)
            }
        }
    }
}

fn put<T>(store: &mut Store<T>, key: &Key, object: Option<Arc<T>>) -> Option<Arc<T>> {
    match object {
        Some(object) => store.0.insert(key.name.clone(), object),
        None => store.0.remove(&key.name),
    }
}
