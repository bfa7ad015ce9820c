//! Parsing at the door: an object as users write it becomes what the mesh needs of it, or a [`Rejection`]
//! that names field and remedy. Nothing behind the door looks at Kubernetes' types again.

mod authorization;
mod authorization_rule;
mod destination_rule;
mod entry;
mod gateway;
mod grpc_route;
mod http_route;
mod mesh_config;
mod meta;
mod namespace;
mod peer_authentication;
mod pod;
mod policy_target;
mod protocol;
mod rate_limit;
mod reference_grant;
mod request_authentication;
mod route;
mod route_auth;
mod route_filter;
mod route_rules;
mod service;
mod slice;
mod stream_route;
mod success_rate;
mod virtual_filter;
mod virtual_rule;
mod virtual_service;

use std::fmt;
use std::sync::Arc;

use ambit_api::directory::{Document, typed};
use ambit_api::mesh_config::CONFIG_MAP;
use ambit_model::name::{Label, Namespace};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use authorization::{AuthorizationPolicy, Content};
pub use authorization_rule::ParsedRule;
pub use destination_rule::{DestinationRule, EndpointPolicies, EndpointPolicy, Subset};
pub use entry::{Endpoint, EntryAddress, EntryPort, Resolution, ServiceEntry, WorkloadEntry};
pub use gateway::{AllowedNamespaces, Binding, Gateway, GatewayClass, Listener, Reach, TrafficType};
pub use mesh_config::{MeshConfig, Provider};
pub use meta::{Expression, LabelSelector, Labels, Meta, Selector, parse_bool};
pub use namespace::{NamespaceObject, Node};
pub use peer_authentication::{Mode, PeerAuthentication};
pub use pod::{Owner, Phase, Pod};
pub use policy_target::{Attachment, PolicyTarget};
pub use rate_limit::{LimitAtService, LimitContent, LimitTarget, LimitTargetRef, RateLimitPolicy};
pub use reference_grant::{Granted, ReferenceGrant};
pub use request_authentication::{RequestAuthentication, Tokens};
pub use route::{
    Connections, Parent, ParentTarget, Reference, Referent, Requests, Route, RouteBackend, RouteContent,
    RouteFilter, RouteKind, RouteRule,
};
pub use route_auth::AskedBy;
pub use service::{Port, Service, Target, TrafficDistribution};
pub use slice::{EndpointSlice, SliceEndpoint, SlicePort};
pub use virtual_service::{Exported, HostName, VirtualContent, VirtualMatch, VirtualRule, VirtualService};

/// Namespace (empty for kinds without one) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The namespace.
    pub namespace: Namespace,
    /// The name within it.
    pub name: Label,
}

impl Name {
    /// `name` in `namespace`.
    pub fn new(namespace: impl Into<Namespace>, name: impl Into<Label>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            self.name.fmt(f)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Namespace`.
    Namespace,
    /// `Node`.
    Node,
    /// `Pod`.
    Pod,
    /// `Service`.
    Service,
    /// `EndpointSlice`.
    EndpointSlice,
    /// `ServiceEntry`.
    ServiceEntry,
    /// `WorkloadEntry`.
    WorkloadEntry,
    /// `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// `PeerAuthentication`.
    PeerAuthentication,
    /// `RequestAuthentication`.
    RequestAuthentication,
    /// `DestinationRule`.
    DestinationRule,
    /// `RateLimitPolicy`.
    RateLimitPolicy,
    /// `VirtualService`.
    VirtualService,
    /// `Gateway`.
    Gateway,
    /// `GatewayClass`.
    GatewayClass,
    // Of the kinds of routes that a service has, the first applies: they are in that order.
    /// `GRPCRoute`.
    GrpcRoute,
    /// `HTTPRoute`.
    HttpRoute,
    /// `TLSRoute`.
    TlsRoute,
    /// `TCPRoute`.
    TcpRoute,
    /// `ReferenceGrant`.
    ReferenceGrant,
    /// `ConfigMap`, of which the mesh reads the one with the mesh configuration.
    MeshConfig,
}

impl Kind {
    /// The kind that an object of this group, version and kind is read as.
    pub fn of(group: &str, version: &str, kind: &str) -> Option<Self> {
        let stable = version == "v1" || version == "v1beta1";
        match (group, kind) {
            ("", "Namespace") if version == "v1" => Some(Self::Namespace),
            ("", "Node") if version == "v1" => Some(Self::Node),
            ("", "Pod") if version == "v1" => Some(Self::Pod),
            ("", "Service") if version == "v1" => Some(Self::Service),
            ("", "ConfigMap") if version == "v1" => Some(Self::MeshConfig),
            ("discovery.k8s.io", "EndpointSlice") if version == "v1" => Some(Self::EndpointSlice),
            ("networking.istio.io", "ServiceEntry") if stable || version == "v1alpha3" => {
                Some(Self::ServiceEntry)
            }
            ("networking.istio.io", "WorkloadEntry") if stable || version == "v1alpha3" => {
                Some(Self::WorkloadEntry)
            }
            ("networking.istio.io", "VirtualService") if stable || version == "v1alpha3" => {
                Some(Self::VirtualService)
            }
            ("security.istio.io", "AuthorizationPolicy") if stable => Some(Self::AuthorizationPolicy),
            ("security.istio.io", "PeerAuthentication") if stable => Some(Self::PeerAuthentication),
            ("security.istio.io", "RequestAuthentication") if stable => Some(Self::RequestAuthentication),
            ("networking.istio.io", "DestinationRule") if stable || version == "v1alpha3" => {
                Some(Self::DestinationRule)
            }
            ("ambit.io", "RateLimitPolicy") if version == "v1alpha1" => Some(Self::RateLimitPolicy),
            ("gateway.networking.k8s.io", "Gateway") if stable => Some(Self::Gateway),
            ("gateway.networking.k8s.io", "GatewayClass") if stable => Some(Self::GatewayClass),
            ("gateway.networking.k8s.io", "HTTPRoute") if stable => Some(Self::HttpRoute),
            ("gateway.networking.k8s.io", "GRPCRoute") if matches!(version, "v1" | "v1alpha2") => {
                Some(Self::GrpcRoute)
            }
            ("gateway.networking.k8s.io", "TLSRoute")
                if matches!(version, "v1" | "v1alpha3" | "v1alpha2") =>
            {
                Some(Self::TlsRoute)
            }
            ("gateway.networking.k8s.io", "TCPRoute") if matches!(version, "v1" | "v1alpha2") => {
                Some(Self::TcpRoute)
            }
            ("gateway.networking.k8s.io", "ReferenceGrant") if stable || version == "v1alpha2" => {
                Some(Self::ReferenceGrant)
            }
            _ => None,
        }
    }

    /// The kind as it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::DestinationRule => "DestinationRule",
            Self::RateLimitPolicy => "RateLimitPolicy",
            Self::VirtualService => "VirtualService",
            Self::Gateway => "Gateway",
            Self::GatewayClass => "GatewayClass",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::MeshConfig => "ConfigMap",
        }
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.name)
    }
}

/// An object that passed the door.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace.
    Namespace(Arc<NamespaceObject>),
    /// A node.
    Node(Arc<Node>),
    /// A pod.
    Pod(Arc<Pod>),
    /// A Kubernetes service.
    Service(Arc<Service>),
    /// Endpoints of a service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A service that Kubernetes does not know.
    ServiceEntry(Arc<ServiceEntry>),
    /// A workload that is not a pod.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// Who may connect.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// Whether mutual TLS is needed.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// Whose tokens are believed.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// How endpoints are used.
    DestinationRule(Arc<DestinationRule>),
    /// How many requests are taken.
    RateLimitPolicy(Arc<RateLimitPolicy>),
    /// Where requests go, and what is done to them.
    VirtualService(Arc<VirtualService>),
    /// A gateway or waypoint.
    Gateway(Arc<Gateway>),
    /// A kind of gateway.
    GatewayClass(Arc<GatewayClass>),
    /// Where requests or connections go.
    Route(Arc<Route>),
    /// Whom routes may refer to.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// The mesh configuration.
    MeshConfig(Arc<MeshConfig>),
}

impl Object {
    /// Its kind and name.
    pub fn key(&self) -> Key {
        let (kind, meta) = match self {
            Self::Namespace(object) => (Kind::Namespace, &object.meta),
            Self::Node(object) => (Kind::Node, &object.meta),
            Self::Pod(object) => (Kind::Pod, &object.meta),
            Self::Service(object) => (Kind::Service, &object.meta),
            Self::EndpointSlice(object) => (Kind::EndpointSlice, &object.meta),
            Self::ServiceEntry(object) => (Kind::ServiceEntry, &object.meta),
            Self::WorkloadEntry(object) => (Kind::WorkloadEntry, &object.meta),
            Self::AuthorizationPolicy(object) => (Kind::AuthorizationPolicy, &object.meta),
            Self::PeerAuthentication(object) => (Kind::PeerAuthentication, &object.meta),
            Self::RequestAuthentication(object) => (Kind::RequestAuthentication, &object.meta),
            Self::DestinationRule(object) => (Kind::DestinationRule, &object.meta),
            Self::RateLimitPolicy(object) => (Kind::RateLimitPolicy, &object.meta),
            Self::VirtualService(object) => (Kind::VirtualService, &object.meta),
            Self::Gateway(object) => (Kind::Gateway, &object.meta),
            Self::GatewayClass(object) => (Kind::GatewayClass, &object.meta),
            Self::Route(object) => (object.kind.kind(), &object.meta),
            Self::ReferenceGrant(object) => (Kind::ReferenceGrant, &object.meta),
            Self::MeshConfig(object) => (Kind::MeshConfig, &object.meta),
        };
        Key { kind, name: meta.name.clone() }
    }
}

/// Why an object did not pass the door.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}; {remedy}")]
pub struct Rejection {
    /// The field, `spec.rules[0].to[0].operation.ports`.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Rejection {
    /// Says what is wrong with a field, and what to do.
    pub fn new(field: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into(), remedy: remedy.into() }
    }
}

/// What came of one document at the door.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// An object.
    Object(Object),
    /// A kind that the mesh does not read.
    Unknown,
    /// An object that cannot be used.
    Bad {
        /// Why.
        rejection: Rejection,
        /// What is in force if no earlier version of it is: for a policy, the strongest thing that it can
        /// have meant, so that a mistake in it never opens a door.
        instead: Option<Object>,
    },
}

/// Parses a document of a directory.
pub fn parse(document: &Document) -> Parsed {
    let Document { kind, namespace, name, value, .. } = document;
    parse_value(document.group(), document.version(), kind, namespace, name, value)
}

/// Parses an object, whoever has it. `value` is all of it; it may leave out what the other arguments say.
pub fn parse_value(
    group: &str,
    version: &str,
    kind: &str,
    namespace: &str,
    name: &str,
    value: &Value,
) -> Parsed {
    let Some(kind) = Kind::of(group, version, kind) else { return Parsed::Unknown };
    if kind == Kind::MeshConfig && name != CONFIG_MAP {
        return Parsed::Unknown;
    }
    let written = &Written { namespace, name, value };
    match valid_name(written).and_then(|()| parse_known(kind, written)) {
        Ok(object) => Parsed::Object(object),
        Err(rejection) => {
            let instead = match kind {
                Kind::AuthorizationPolicy => Some(Object::AuthorizationPolicy(Arc::new(
                    AuthorizationPolicy::undecodable(written, rejection.to_string()),
                ))),
                Kind::PeerAuthentication => {
                    Some(Object::PeerAuthentication(Arc::new(PeerAuthentication::undecodable(written))))
                }
                Kind::RequestAuthentication => Some(Object::RequestAuthentication(Arc::new(
                    RequestAuthentication::undecodable(written, rejection.to_string()),
                ))),
                Kind::MeshConfig => Some(Object::MeshConfig(Arc::new(MeshConfig::undecodable(
                    written,
                    rejection.to_string(),
                )))),
                Kind::RateLimitPolicy => Some(Object::RateLimitPolicy(Arc::new(
                    RateLimitPolicy::undecodable(written, rejection.to_string()),
                ))),
                Kind::VirtualService => Some(Object::VirtualService(Arc::new(VirtualService::undecodable(
                    written,
                    rejection.to_string(),
                )))),
                Kind::Namespace
                | Kind::Node
                | Kind::Pod
                | Kind::Service
                | Kind::EndpointSlice
                | Kind::ServiceEntry
                | Kind::WorkloadEntry
                | Kind::DestinationRule
                | Kind::Gateway
                | Kind::GatewayClass
                | Kind::ReferenceGrant => None,
                Kind::GrpcRoute => Some(undecodable_route(RouteKind::Grpc, written, &rejection)),
                Kind::HttpRoute => Some(undecodable_route(RouteKind::Http, written, &rejection)),
                Kind::TlsRoute => Some(undecodable_route(RouteKind::Tls, written, &rejection)),
                Kind::TcpRoute => Some(undecodable_route(RouteKind::Tcp, written, &rejection)),
            };
            Parsed::Bad { rejection, instead }
        }
    }
}

/// An object as it is written.
#[derive(Clone, Copy)]
struct Written<'a> {
    namespace: &'a str,
    name: &'a str,
    value: &'a Value,
}

/// Kubernetes admits no other names, and the mesh relies on it: names that it makes up itself have a `_` in them.
fn valid_name(written: &Written<'_>) -> Result<(), Rejection> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    for (field, name) in [("metadata.name", written.name), ("metadata.namespace", written.namespace)] {
        if !name.chars().all(plain) {
            let remedy = "use lower-case letters, digits, '-' and '.'";
            return Err(Rejection::new(field, format!("{name:?} is not a valid name"), remedy));
        }
    }
    Ok(())
}

fn parse_known(kind: Kind, written: &Written<'_>) -> Result<Object, Rejection> {
    let namespace = Namespace::from(written.namespace);
    Ok(match kind {
        Kind::Namespace => Object::Namespace(Arc::new(NamespaceObject::parse(read(written)?))),
        Kind::Node => Object::Node(Arc::new(Node::parse(read(written)?))),
        Kind::Pod => Object::Pod(Arc::new(Pod::parse(namespace, read(written)?)?)),
        Kind::Service => Object::Service(Arc::new(Service::parse(namespace, read(written)?)?)),
        Kind::EndpointSlice => {
            Object::EndpointSlice(Arc::new(EndpointSlice::parse(namespace, read(written)?)?))
        }
        Kind::ServiceEntry => Object::ServiceEntry(Arc::new(ServiceEntry::parse(namespace, read(written)?)?)),
        Kind::WorkloadEntry => {
            Object::WorkloadEntry(Arc::new(WorkloadEntry::parse(namespace, read(written)?)?))
        }
        Kind::AuthorizationPolicy => {
            Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy::parse(namespace, read(written)?)?))
        }
        Kind::PeerAuthentication => {
            Object::PeerAuthentication(Arc::new(PeerAuthentication::parse(namespace, read(written)?)?))
        }
        Kind::RequestAuthentication => {
            Object::RequestAuthentication(Arc::new(RequestAuthentication::parse(namespace, read(written)?)?))
        }
        Kind::DestinationRule => {
            Object::DestinationRule(Arc::new(DestinationRule::parse(namespace, read(written)?)?))
        }
        Kind::RateLimitPolicy => {
            Object::RateLimitPolicy(Arc::new(RateLimitPolicy::parse(namespace, read(written)?)?))
        }
        Kind::VirtualService => {
            Object::VirtualService(Arc::new(VirtualService::parse(namespace, read(written)?)?))
        }
        Kind::Gateway => Object::Gateway(Arc::new(Gateway::parse(namespace, read(written)?)?)),
        Kind::GatewayClass => Object::GatewayClass(Arc::new(GatewayClass::parse(read(written)?)?)),
        Kind::GrpcRoute => Object::Route(Arc::new(Route::parse(RouteKind::Grpc, written)?)),
        Kind::HttpRoute => Object::Route(Arc::new(Route::parse(RouteKind::Http, written)?)),
        Kind::TlsRoute => Object::Route(Arc::new(Route::parse(RouteKind::Tls, written)?)),
        Kind::TcpRoute => Object::Route(Arc::new(Route::parse(RouteKind::Tcp, written)?)),
        Kind::ReferenceGrant => {
            Object::ReferenceGrant(Arc::new(ReferenceGrant::parse(namespace, read(written)?)?))
        }
        Kind::MeshConfig => Object::MeshConfig(Arc::new(MeshConfig::parse(namespace, read(written)?)?)),
    })
}

fn undecodable_route(kind: RouteKind, written: &Written<'_>, rejection: &Rejection) -> Object {
    Object::Route(Arc::new(Route::undecodable(kind, written, rejection.to_string())))
}

fn read<T: DeserializeOwned>(written: &Written<'_>) -> Result<T, Rejection> {
    typed(written.value).map_err(|error| {
        Rejection::new(error.field, error.what, "give the field the shape that its kind has")
    })
}

/// A port, 1 to 65535.
fn port(field: impl Into<String>, number: impl TryInto<u16> + Copy + fmt::Display) -> Result<u16, Rejection> {
    match number.try_into() {
        Ok(port) if port != 0 => Ok(port),
        Ok(_) | Err(_) => {
            Err(Rejection::new(field, format!("{number} is not a port"), "write a number from 1 to 65535"))
        }
    }
}
