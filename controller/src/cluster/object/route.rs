//! Routes of every kind: what they are attached to, whom they refer to, and their content as far as it does not depend
//! on whom they refer to.

use ambit_api::{
    grpc_route as grpc, http_route as http,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    route::{BackendRef, ParentReference},
    stream_route as stream,
};
use ambit_model::{
    name::{Label, Namespace},
    route::{self as model, Destination, Fraction, Match, Origin, RouteKey, Session, Timeouts, retry},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Kind, Meta, Name, Rejection, Written, grpc_route, http_route, peer_authentication::bare_meta, read,
    route_auth::AskedBy, stream_route, virtual_service::HostName,
};
use crate::cluster::HostOwner;

/// The largest weight of a backend (BackendRef, `maximum`).
const HEAVIEST: u32 = 1_000_000;
pub(super) const GATEWAY_API: &str = "gateway.networking.k8s.io";
pub(super) const ISTIO_NETWORKING: &str = "networking.istio.io";

/// What the mesh needs of an HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Which of them it is.
    pub kind: RouteKind,
    /// What it is attached to.
    pub parents: Vec<Parent>,
    /// What it says.
    pub content: RouteContent,
}

/// The kinds of routes. Of those that a service and port have, the first applies (GEP-1426).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// `GRPCRoute`.
    Grpc,
    /// `HTTPRoute`.
    Http,
    /// `TLSRoute`.
    Tls,
    /// `TCPRoute`.
    Tcp,
}

impl RouteKind {
    /// The kind of object.
    pub fn kind(self) -> Kind {
        match self {
            Self::Grpc => Kind::GrpcRoute,
            Self::Http => Kind::HttpRoute,
            Self::Tls => Kind::TlsRoute,
            Self::Tcp => Kind::TcpRoute,
        }
    }
}

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The reference as it is written, by which its status is known.
    pub written: Value,
    /// What it names.
    pub to: ParentTarget,
    /// Only this port.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<Label>,
}

/// What a parent reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentTarget {
    /// A service.
    Service(HostOwner),
    /// A gateway.
    Gateway(Name),
    /// A service of a group that has none: nobody else will say so.
    WrongGroup {
        /// The kind, `Service`.
        kind: String,
        /// The group that has it.
        group: &'static str,
    },
    /// Anything else, which is others' affair.
    Other,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteContent {
    /// It is for no service, so it was not looked into: it may be meant for another program that knows more.
    Elsewhere,
    /// What is done to requests.
    Requests(Requests),
    /// Where connections go.
    Connections(Connections),
    /// It could not be understood, and was never understood before.
    Undecodable {
        /// Why.
        reason: String,
        /// Whether it asks somebody about requests. Then there are none: nobody knows which may be.
        asks: bool,
    },
}

/// What an HTTPRoute or GRPCRoute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requests {
    /// Its rules, in order.
    pub rules: Vec<RouteRule>,
    /// Whether it names hosts, which are not compared.
    pub names_hosts: bool,
}

/// What a TLSRoute or TCPRoute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Names that are greeted; none at all is any.
    pub server_names: Vec<String>,
    /// Where they go.
    pub backends: Vec<RouteBackend>,
}

/// One rule of a [`Requests`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// Its name.
    pub name: Option<Label>,
    /// For which requests.
    pub matches: Vec<Match>,
    /// What is done to them.
    pub filters: Vec<RouteFilter>,
    /// Where they go.
    pub backends: Vec<RouteBackend>,
    /// How long they may take.
    pub timeouts: Timeouts,
    /// When they are repeated.
    pub retry: Option<retry::Policy>,
    /// What keeps a client at one endpoint.
    pub session: Option<Session>,
}

/// One thing that is done to requests or responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFilter {
    /// It depends on nothing else.
    Plain(model::Filter),
    /// A copy goes to another service.
    Mirror {
        /// Which.
        to: Reference,
        /// Of how many requests.
        share: Fraction,
    },
    /// Another service is asked whether a request may be.
    ExternalAuth {
        /// Which.
        to: Reference,
        /// How.
        how: AskedBy,
    },
}

impl RouteFilter {
    /// The object that it names.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Mirror { to, .. } | Self::ExternalAuth { to, .. } => Some(to),
            Self::Plain(_) => None,
        }
    }
}

/// Where some of the traffic goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteBackend {
    /// To whom.
    pub to: Reference,
    /// Its share.
    pub weight: u32,
    /// What is done to its requests alone.
    pub filters: Vec<RouteFilter>,
}

/// Another object that a route names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where it does so, `spec.rules[0].backendRefs[1]`.
    pub field: String,
    /// What it names.
    pub to: Referent,
}

/// What a [`Reference`] names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Referent {
    /// A port of a service.
    Service {
        /// The service.
        owner: HostOwner,
        /// Its port.
        port: u16,
    },
    /// An object that is no service; kind and group.
    Other(String),
    /// A service by its host, as VirtualServices name it.
    Host {
        /// The host.
        host: HostName,
        /// Its port; `None`: its only one, or that to which the request came.
        port: Option<u16>,
        /// Of its endpoints those of this subset; `None`: all.
        subset: Option<Label>,
    },
}

/// As much of a route as says whether it is the mesh's affair.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: HeadSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadSpec {
    parent_refs: Vec<ParentReference>,
}

impl Route {
    pub(super) fn parse(kind: RouteKind, written: &Written<'_>) -> Result<Self, Rejection> {
        let head = read::<Head>(written)?;
        let meta = Meta::parse(Namespace::from(written.namespace), head.metadata);
        let namespace = &meta.name.namespace;
        let parents = parse_parents(&head.spec.parent_refs, namespace)?;
        let content = if parents.iter().any(|parent| matches!(parent.to, ParentTarget::Service(_))) {
            match kind {
                RouteKind::Grpc => {
                    grpc_route::parse(read::<grpc::GRPCRoute>(written)?.spec, namespace).map(Requests::into)
                }
                RouteKind::Http => {
                    http_route::parse(read::<http::HTTPRoute>(written)?.spec, namespace).map(Requests::into)
                }
                RouteKind::Tls => stream_route::parse_tls(read::<stream::TLSRoute>(written)?.spec, namespace)
                    .map(Connections::into),
                RouteKind::Tcp => stream_route::parse_tcp(read::<stream::TCPRoute>(written)?.spec, namespace)
                    .map(Connections::into),
            }?
        } else {
            RouteContent::Elsewhere
        };
        let route = Self { meta, kind, parents, content };
        let origin = route.origin();
        match &route.content {
            RouteContent::Requests(requests) => requests.compiled(origin, unresolved).map(drop)?,
            RouteContent::Connections(connections) => connections.compiled(origin, unresolved).map(drop)?,
            RouteContent::Elsewhere | RouteContent::Undecodable { .. } => {}
        }
        Ok(route)
    }

    /// What one that cannot be understood is taken for: nothing, but those whom it names are told.
    pub(super) fn undecodable(kind: RouteKind, written: &Written<'_>, reason: String) -> Self {
        let meta = bare_meta(written);
        let parents = read::<Head>(written)
            .and_then(|head| parse_parents(&head.spec.parent_refs, &Namespace::from(written.namespace)));
        let content =
            RouteContent::Undecodable { reason, asks: kind == RouteKind::Http && asks(written.value) };
        Self { meta, kind, parents: parents.unwrap_or_default(), content }
    }

    /// Its age and name, on which its precedence depends.
    pub fn origin(&self) -> Origin {
        origin_of(&self.meta)
    }

    /// Every object that it names, beside its parents.
    pub fn references(&self) -> Vec<&Reference> {
        fn named(filters: &[RouteFilter]) -> impl Iterator<Item = &Reference> {
            filters.iter().filter_map(RouteFilter::reference)
        }
        fn backends(backends: &[RouteBackend]) -> impl Iterator<Item = &Reference> {
            backends.iter().flat_map(|one| std::iter::once(&one.to).chain(named(&one.filters)))
        }
        match &self.content {
            RouteContent::Requests(Requests { rules, .. }) => {
                rules.iter().flat_map(|rule| named(&rule.filters).chain(backends(&rule.backends))).collect()
            }
            RouteContent::Connections(connections) => backends(&connections.backends).collect(),
            RouteContent::Elsewhere | RouteContent::Undecodable { .. } => Vec::new(),
        }
    }

    /// The services that it is attached to, one for each parent that is one.
    pub fn services(&self) -> impl Iterator<Item = (&Parent, &HostOwner)> {
        self.parents.iter().filter_map(|parent| match &parent.to {
            ParentTarget::Service(owner) => Some((parent, owner)),
            ParentTarget::Gateway(_) | ParentTarget::WrongGroup { .. } | ParentTarget::Other => None,
        })
    }

    /// Whether it has rules that could apply.
    pub fn is_understood(&self) -> bool {
        match self.content {
            RouteContent::Requests(_) | RouteContent::Connections(_) => true,
            RouteContent::Elsewhere | RouteContent::Undecodable { .. } => false,
        }
    }
}

/// Whether somewhere in it is a filter that asks somebody, wherever that may be.
fn asks(written: &Value) -> bool {
    match written {
        Value::Object(fields) => {
            let is_filter = fields.get("type").and_then(Value::as_str) == Some("ExternalAuth");
            is_filter || fields.contains_key("externalAuth") || fields.values().any(asks)
        }
        Value::Array(items) => items.iter().any(asks),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

impl From<Requests> for RouteContent {
    fn from(requests: Requests) -> Self {
        Self::Requests(requests)
    }
}

impl From<Connections> for RouteContent {
    fn from(connections: Connections) -> Self {
        Self::Connections(connections)
    }
}

/// The age and name of an object, on which its precedence depends.
pub(super) fn origin_of(meta: &Meta) -> Origin {
    let created = meta.created.and_then(|micros| u64::try_from(micros).ok()).unwrap_or_default();
    let Name { namespace, name } = &meta.name;
    Origin { created: created / 1_000_000, key: RouteKey::new(namespace.clone(), name.clone()) }
}

/// Whoever is named: whether rules make sense does not depend on it.
pub(super) fn unresolved(_: &Reference) -> Destination {
    Destination::Invalid { reason: Label::default() }
}

fn parse_parents(parents: &[ParentReference], namespace: &Namespace) -> Result<Vec<Parent>, Rejection> {
    let parse = |(index, parent): (usize, &ParentReference)| {
        let field = format!("spec.parentRefs[{index}]");
        let written = serde_json::to_value(parent)
            .map_err(|error| Rejection::new(&*field, error.to_string(), "write it anew"))?;
        let group = parent.group.as_deref().unwrap_or(GATEWAY_API);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let name = || {
            let namespace = parent.namespace.as_deref().map_or_else(|| namespace.clone(), Namespace::from);
            Name::new(namespace, parent.name.as_str())
        };
        let to = match (group, kind) {
            ("" | "core", "Service") => ParentTarget::Service(HostOwner::Service(name())),
            (ISTIO_NETWORKING, "ServiceEntry") => ParentTarget::Service(HostOwner::ServiceEntry(name())),
            (GATEWAY_API, "Gateway") => ParentTarget::Gateway(name()),
            (GATEWAY_API, "Service") => ParentTarget::WrongGroup { kind: kind.to_owned(), group: "" },
            ("" | "core" | GATEWAY_API, "ServiceEntry") => {
                ParentTarget::WrongGroup { kind: kind.to_owned(), group: ISTIO_NETWORKING }
            }
            _ => ParentTarget::Other,
        };
        let port = match (&to, parent.port) {
            (ParentTarget::Service(_), Some(port)) => Some(super::port(format!("{field}.port"), port)?),
            _ => None,
        };
        let section = parent.section_name.as_deref().filter(|name| !name.is_empty()).map(Label::from);
        Ok(Parent { written, to, port, section })
    };
    parents.iter().enumerate().map(parse).collect()
}

/// Reads whom a backend or a mirror names.
pub(super) fn parse_reference(
    field: &str,
    reference: &BackendRef,
    namespace: &Namespace,
) -> Result<Reference, Rejection> {
    super::peer_authentication::refuse_unknown(field, &reference.unknown)?;
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let namespace = reference.namespace.as_deref().map_or_else(|| namespace.clone(), Namespace::from);
    let name = Name::new(namespace, reference.name.as_str());
    let owner = match (group, kind) {
        ("" | "core", "Service") => Some(HostOwner::Service(name)),
        (ISTIO_NETWORKING, "ServiceEntry") => Some(HostOwner::ServiceEntry(name)),
        _ => None,
    };
    let to = match (owner, reference.port) {
        (None, _) if group.is_empty() => Referent::Other(kind.to_owned()),
        (None, _) => Referent::Other(format!("{kind} of {group}")),
        (Some(owner), Some(port)) => {
            Referent::Service { owner, port: super::port(format!("{field}.port"), port)? }
        }
        (Some(_), None) => {
            return Err(Rejection::new(
                format!("{field}.port"),
                "is missing",
                "write the port of the service",
            ));
        }
    };
    Ok(Reference { field: field.to_owned(), to })
}

/// Reads a backend without its filters.
pub(super) fn parse_backend(
    field: &str,
    backend: &BackendRef,
    namespace: &Namespace,
    filters: Vec<RouteFilter>,
) -> Result<RouteBackend, Rejection> {
    let weight = backend.weight.unwrap_or(1);
    if weight > HEAVIEST {
        let what = format!("{weight} is too heavy");
        let remedy = format!("write a number from 0 to {HEAVIEST}");
        return Err(Rejection::new(format!("{field}.weight"), what, remedy));
    }
    Ok(RouteBackend { to: parse_reference(field, backend, namespace)?, weight, filters })
}

/// What the model refuses, with the field. The model says what is right, so that is all there is to do.
pub(super) fn refused(field: impl Into<String>, error: impl std::fmt::Display) -> Rejection {
    Rejection::new(field, error.to_string(), "write it so")
}
