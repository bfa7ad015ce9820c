//! Gateways and their classes, as far as waypoints need them.

use ambit_api::{gateway as api, k8s_openapi::apimachinery::pkg::apis::meta::v1 as k8s, labels};
use ambit_model::{
    name::{Label, Namespace},
    workload::{ApplicationProtocol, ApplicationTunnel},
};

use super::{LabelSelector, Labels, Meta, Rejection};

/// What the mesh needs of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Its class.
    pub class: Label,
    /// Where it accepts connections.
    pub listeners: Vec<Listener>,
    /// Where it is reached; nowhere until it is ready.
    pub reach: Reach,
    /// What it proxies, if it says so itself.
    pub traffic: Option<TrafficType>,
    /// How its process is handed connections, if it says so itself.
    pub binding: Option<Binding>,
    /// Whether applications are told who their clients are, if it says so.
    pub names_clients: Option<bool>,
    /// Whether it names addresses of its own: somebody else runs its instances.
    pub has_own_addresses: bool,
    /// What whoever makes its instances is to heed.
    pub infrastructure: api::Infrastructure,
}

/// What the mesh needs of a GatewayClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayClass {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// The controller that serves it.
    pub controller: Label,
    /// What its gateways proxy, if they do not say.
    pub traffic: Option<TrafficType>,
    /// How processes of its gateways are handed connections, if they do not say.
    pub binding: Option<Binding>,
    /// Whether applications are told who their clients are, if it says so.
    pub names_clients: Option<bool>,
}

/// One listener of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u32,
    /// `HBONE`, `istio.io/PROXY`, …
    pub protocol: String,
    /// Namespaces whose objects may attach.
    pub allowed: AllowedNamespaces,
    /// Whether it names kinds of routes that may attach to it alone.
    pub names_kinds: bool,
}

/// Namespaces whose objects may attach to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// The gateway's own.
    Same,
    /// Every one.
    All,
    /// Those with such labels.
    Matching(LabelSelector),
    /// None.
    None,
}

/// Where a gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nowhere yet.
    NotReady,
    /// By this host name.
    Hostname(Label),
    /// At this address.
    Ip(std::net::IpAddr),
}

/// What a waypoint proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficType {
    /// What is addressed to services.
    Service,
    /// What is addressed to workloads.
    Workload,
    /// Both.
    All,
    /// Neither.
    None,
}

impl TrafficType {
    /// Whether it proxies what is addressed to services.
    pub fn serves_services(self) -> bool {
        match self {
            Self::Service | Self::All => true,
            Self::Workload | Self::None => false,
        }
    }

    /// Whether it proxies what is addressed to workloads.
    pub fn serves_workloads(self) -> bool {
        match self {
            Self::Workload | Self::All => true,
            Self::Service | Self::None => false,
        }
    }
}

/// How a waypoint's process is handed connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding(pub ApplicationTunnel);

impl Gateway {
    pub(super) fn parse(namespace: Namespace, object: api::Gateway) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let status: api::GatewayStatus = match object.status {
            None => api::GatewayStatus::default(),
            Some(status) => serde_json::from_value(status).map_err(|error| {
                Rejection::new("status", error.to_string(), "have its controller write it again")
            })?,
        };
        Ok(Self {
            class: object.spec.gateway_class_name.into(),
            listeners: object.spec.listeners.into_iter().map(parse_listener).collect::<Result<_, _>>()?,
            reach: parse_reach(&status.addresses)?,
            traffic: parse_traffic(&meta.labels)?,
            binding: parse_binding(&meta.annotations)?,
            names_clients: parse_names_clients(&meta.annotations)?,
            has_own_addresses: !object.spec.addresses.is_empty(),
            infrastructure: object.spec.infrastructure.unwrap_or_default(),
            meta,
        })
    }
}

impl GatewayClass {
    pub(super) fn parse(object: api::GatewayClass) -> Result<Self, Rejection> {
        let meta = Meta::parse(Namespace::default(), object.metadata);
        Ok(Self {
            controller: object.spec.controller_name.into(),
            traffic: parse_traffic(&meta.labels)?,
            binding: parse_binding(&meta.annotations)?,
            names_clients: parse_names_clients(&meta.annotations)?,
            meta,
        })
    }
}

fn parse_listener(listener: api::Listener) -> Result<Listener, Rejection> {
    let field = "spec.listeners[].allowedRoutes.namespaces.selector";
    let routes = listener.allowed_routes.unwrap_or_default();
    let namespaces = routes.namespaces.unwrap_or_default();
    let allowed = match namespaces.from {
        api::FromNamespaces::Same => AllowedNamespaces::Same,
        api::FromNamespaces::All => AllowedNamespaces::All,
        api::FromNamespaces::None => AllowedNamespaces::None,
        api::FromNamespaces::Selector => match namespaces.selector {
            None => AllowedNamespaces::None,
            Some(selector) => {
                let selector: k8s::LabelSelector = serde_json::from_value(selector).map_err(|error| {
                    Rejection::new(field, error.to_string(), "write matchLabels or matchExpressions")
                })?;
                AllowedNamespaces::Matching(LabelSelector::parse(field, selector)?)
            }
        },
    };
    Ok(Listener {
        name: listener.name,
        port: listener.port,
        protocol: listener.protocol,
        allowed,
        names_kinds: !routes.kinds.is_empty(),
    })
}

/// A host name is preferred: it follows the family of the request. Addresses of other kinds than the two are others'
/// affair.
fn parse_reach(addresses: &[api::GatewayAddress]) -> Result<Reach, Rejection> {
    let by_name = |address: &&api::GatewayAddress| address.kind.as_deref() == Some("Hostname");
    if let Some(address) = addresses.iter().find(by_name) {
        return Ok(Reach::Hostname(address.value.as_str().into()));
    }
    let by_ip = |address: &&api::GatewayAddress| matches!(address.kind.as_deref(), None | Some("IPAddress"));
    match addresses.iter().find(by_ip) {
        None => Ok(Reach::NotReady),
        Some(address) => address.value.parse().map(Reach::Ip).map_err(|_| {
            let what = format!("{:?} is not an IP address", address.value);
            Rejection::new("status.addresses", what, "write an address, or type: Hostname")
        }),
    }
}

fn parse_traffic(labels: &Labels) -> Result<Option<TrafficType>, Rejection> {
    match labels.get(labels::WAYPOINT_FOR) {
        None => Ok(None),
        Some("service") => Ok(Some(TrafficType::Service)),
        Some("workload") => Ok(Some(TrafficType::Workload)),
        Some("all") => Ok(Some(TrafficType::All)),
        Some("none") => Ok(Some(TrafficType::None)),
        Some(other) => Err(Rejection::new(
            format!("metadata.labels[{}]", labels::WAYPOINT_FOR),
            format!("{other:?} is no kind of traffic"),
            "write service, workload, all or none",
        )),
    }
}

fn parse_names_clients(annotations: &Labels) -> Result<Option<bool>, Rejection> {
    match annotations.get(labels::XFCC_INCLUDE_CLIENT_IDENTITY) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(Rejection::new(
            format!("metadata.annotations[{}]", labels::XFCC_INCLUDE_CLIENT_IDENTITY),
            format!("{other:?} is neither"),
            "write true or false",
        )),
    }
}

fn parse_binding(annotations: &Labels) -> Result<Option<Binding>, Rejection> {
    let Some(text) = annotations.get(labels::WAYPOINT_INBOUND_BINDING) else { return Ok(None) };
    let (protocol, port) =
        text.split_once('/').map_or((text, None), |(protocol, port)| (protocol, Some(port)));
    let protocol = match protocol {
        "NONE" => Some(ApplicationProtocol::None),
        "PROXY" => Some(ApplicationProtocol::Proxy),
        _ => None,
    };
    let port = port.map(str::parse::<u16>).transpose();
    match (protocol, port) {
        (Some(protocol), Ok(port)) => {
            Ok(Some(Binding(ApplicationTunnel { protocol, port: port.filter(|p| *p != 0) })))
        }
        (None, _) | (_, Err(_)) => Err(Rejection::new(
            format!("metadata.annotations[{}]", labels::WAYPOINT_INBOUND_BINDING),
            format!("{text:?} is no binding"),
            "write NONE or PROXY, optionally with /port",
        )),
    }
}
