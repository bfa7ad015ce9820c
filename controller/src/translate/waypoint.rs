//! Which waypoint traffic to a service or workload goes through (protocols 11.2).
//!
//! The object's own label decides alone; without one, its namespace's does. A waypoint that is not ready, does not
//! admit the namespace or does not proxy such traffic is not sent: then the refusal is what the user is told.

use ambit_api::gateway::{
    HBONE, HBONE_PORT, ISTIO_WAYPOINT_CONTROLLER, WAYPOINT_CLASSES, WAYPOINT_CONTROLLER,
};
use ambit_api::labels;
use ambit_model::{
    address::NetworkAddress,
    gateway::{GatewayAddress, GatewayDestination, WeightedWaypoint},
    name::{Label, Namespace, ServiceKey},
    workload::{ApplicationProtocol, ApplicationTunnel},
};

use crate::cluster::Cluster;
use crate::cluster::object::{
    AllowedNamespaces, Gateway, GatewayClass, Labels, Meta, Name, Reach, TrafficType, parse_bool,
};

/// The classes and controller of gateways that have HBONE listeners and are no waypoints.
const EAST_WEST: [&str; 2] = ["istio.io/eastwest-controller", "istio-east-west"];
/// The protocol of a listener that another process of the pod hands connections to.
pub(crate) const PROTOCOL_PROXY: &str = "istio.io/PROXY";

/// Where a waypoint is handed connections, if nothing else is said.
const PORT_PROXY: u16 = 15088;
/// Ports of the waypoint itself and of the ztunnel in its pod (protocols 10.5).
const TAKEN_PORTS: [u16; 8] = [15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080];

/// What became of an object's wish for a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// It wants none.
    None,
    /// It has one.
    Bound(Bound),
    /// It wants one and does not get it.
    Refused {
        /// The one it wants.
        gateway: Name,
        /// Why not.
        reason: Reason,
    },
}

impl Binding {
    /// The waypoint, if there is one.
    pub fn bound(&self) -> Option<&Bound> {
        match self {
            Self::Bound(bound) => Some(bound),
            Self::None | Self::Refused { .. } => None,
        }
    }
}

/// A waypoint that an object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The Gateway.
    pub gateway: Name,
    /// Where it is.
    pub address: GatewayAddress,
    /// What became of the wish for a canary.
    pub canary: Canary,
    /// Whether ingress gateways go through it too.
    pub ingress: bool,
}

impl Bound {
    /// Primary and canary with their shares; empty without a canary.
    pub fn weighted(&self) -> Vec<WeightedWaypoint> {
        match &self.canary {
            Canary::None | Canary::Refused { .. } => Vec::new(),
            Canary::Bound { address, weight, .. } => vec![
                WeightedWaypoint { destination: self.address.clone(), weight: 100 - u32::from(*weight) },
                WeightedWaypoint { destination: address.clone(), weight: (*weight).into() },
            ],
        }
    }

    /// Every gateway that traffic may come from.
    pub fn gateways(&self) -> impl Iterator<Item = &Name> {
        let canary = match &self.canary {
            Canary::Bound { gateway, .. } => Some(gateway),
            Canary::None | Canary::Refused { .. } => None,
        };
        std::iter::once(&self.gateway).chain(canary)
    }
}

/// A second waypoint that gets a share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canary {
    /// None is wanted.
    None,
    /// It gets its share.
    Bound {
        /// The Gateway.
        gateway: Name,
        /// Where it is.
        address: GatewayAddress,
        /// Its share, at most 100.
        weight: u8,
    },
    /// It is wanted and does not get its share; the primary gets all.
    Refused {
        /// The Gateway.
        gateway: Name,
        /// Why not.
        reason: Reason,
    },
}

/// Why a waypoint is not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It does not exist or has no address yet.
    NotReady,
    /// Its listener does not admit the namespace.
    AttachmentDenied,
    /// It does not proxy such traffic.
    UnsupportedTrafficType,
    /// A service that only its namespace sees wants one of another namespace.
    CrossNamespaceForbidden,
    /// The share is not a number from 0 to 100.
    CanaryInvalidWeight,
    /// Canary and primary are one.
    CanarySameAsPrimary,
}

impl Reason {
    /// The word in conditions.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotReady => "WaypointIsNotReady",
            Self::AttachmentDenied => "AttachmentDenied",
            Self::UnsupportedTrafficType => "UnsupportedTrafficType",
            Self::CrossNamespaceForbidden => "CrossNamespaceWaypointForbidden",
            Self::CanaryInvalidWeight => "CanaryInvalidWeight",
            Self::CanarySameAsPrimary => "CanarySameAsPrimary",
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NotReady => "wait until the Gateway has status.addresses, or correct the name in the label",
            Self::AttachmentDenied => {
                "let allowedRoutes.namespaces of its HBONE listener admit this namespace"
            }
            Self::UnsupportedTrafficType => {
                "set istio.io/waypoint-for on the Gateway to this kind of traffic, or to all"
            }
            Self::CrossNamespaceForbidden => "use a waypoint of the same namespace",
            Self::CanaryInvalidWeight => "set istio.io/use-waypoint-canary-weight to a number from 0 to 100",
            Self::CanarySameAsPrimary => "name another Gateway as canary",
        }
    }
}

/// What is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addressed {
    Service,
    Workload,
}

/// Where the wish was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Object,
    Namespace,
}

/// The waypoint of a service. `private` is one that only its namespace sees.
pub fn of_service(cluster: &Cluster, meta: &Meta, private: bool) -> Binding {
    if is_managed(meta) {
        return Binding::None;
    }
    bind(cluster, meta, Addressed::Service, private)
}

/// The gateways that have to know a service: its waypoint and canary, and those that become it as soon as they are
/// ready. They must know it before anybody comes.
pub fn serving(cluster: &Cluster, meta: &Meta, private: bool) -> Vec<Name> {
    if is_managed(meta) {
        return Vec::new();
    }
    let namespace = &meta.name.namespace;
    let of_namespace = cluster.namespace_labels(namespace);
    let serves = |wanted: &Name| {
        let gateway = cluster.gateways.get(wanted).filter(|_| !private || wanted.namespace == *namespace);
        gateway.is_some_and(|gateway| {
            admit(cluster, namespace, &of_namespace, gateway, Addressed::Service).is_ok()
        })
    };
    named(meta, &of_namespace).into_iter().filter(serves).collect()
}

/// The gateways that a service names as waypoint and canary, by its own labels or else by its namespace's.
pub fn named(meta: &Meta, of_namespace: &Labels) -> Vec<Name> {
    let (_, labels) = labels_in_force(meta, of_namespace);
    let references = [
        (labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE),
        (labels::USE_WAYPOINT_CANARY, labels::USE_WAYPOINT_CANARY_NAMESPACE),
    ];
    let wanted = references
        .into_iter()
        .filter_map(|(name, elsewhere)| reference(labels, &meta.name.namespace, name, elsewhere));
    wanted.filter(|wanted| wanted.name != labels::USE_WAYPOINT_NONE).collect()
}

/// Gateways' own services have no waypoint.
fn is_managed(meta: &Meta) -> bool {
    let managed = meta.labels.get(labels::GATEWAY_MANAGED);
    managed == Some(labels::MANAGED_MESH) || managed == Some(labels::MANAGED_EAST_WEST)
}

/// The waypoint of a workload. One that is itself an instance of a waypoint has none.
pub fn of_workload(cluster: &Cluster, meta: &Meta) -> Binding {
    if instance_of(cluster, meta).is_some() {
        return Binding::None;
    }
    bind(cluster, meta, Addressed::Workload, false)
}

/// How an instance of a waypoint is handed connections; `None` if the object is no instance.
pub fn instance_of(cluster: &Cluster, meta: &Meta) -> Option<Option<ApplicationTunnel>> {
    let gateway = meta.labels.get(labels::GATEWAY_NAME)?;
    let gateway = cluster.gateways.get(&Name::new(meta.name.namespace.clone(), gateway))?;
    is_waypoint(cluster, gateway).then(|| binding_of(cluster, gateway))
}

/// Whether a gateway proxies traffic within the mesh.
pub fn is_waypoint(cluster: &Cluster, gateway: &Gateway) -> bool {
    let class = class_of(cluster, gateway).map(|class| class.controller.as_str());
    match class {
        Some(WAYPOINT_CONTROLLER | ISTIO_WAYPOINT_CONTROLLER) => true,
        None if WAYPOINT_CLASSES.contains(&gateway.class.as_str()) => true,
        Some(other) if EAST_WEST.contains(&other) => false,
        None if EAST_WEST.contains(&gateway.class.as_str()) => false,
        Some(_) | None => {
            gateway.listeners.iter().any(|one| one.protocol == HBONE || one.protocol == PROTOCOL_PROXY)
        }
    }
}

/// Whether its instances are ours to make: its class names us, or is one of ours and names nobody
/// (`docs/decisions/0021-whose-a-gateway-is.md`).
pub fn is_ours(cluster: &Cluster, gateway: &Gateway) -> bool {
    match class_of(cluster, gateway) {
        Some(class) => class.controller == WAYPOINT_CONTROLLER,
        None => WAYPOINT_CLASSES.contains(&gateway.class.as_str()),
    }
}

/// Whether every gateway of this class is a waypoint.
pub fn serves_waypoints(class: &GatewayClass) -> bool {
    matches!(class.controller.as_str(), WAYPOINT_CONTROLLER | ISTIO_WAYPOINT_CONTROLLER)
}

/// Whether every gateway of the class of this name is a waypoint; where nobody wrote the class, one of ours is.
pub fn is_class_of_waypoints(cluster: &Cluster, class: &Label) -> bool {
    match cluster.gateway_classes.get(&Name::new("", class.clone())) {
        Some(class) => serves_waypoints(class),
        None => WAYPOINT_CLASSES.contains(&class.as_str()),
    }
}

/// What a waypoint proxies: as it says, else its class, else what is addressed to services.
pub fn traffic_of(cluster: &Cluster, gateway: &Gateway) -> TrafficType {
    let class = || class_of(cluster, gateway)?.traffic;
    gateway.traffic.or_else(class).unwrap_or(TrafficType::Service)
}

/// How connections come to the instances of a waypoint that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Through tunnels that they end themselves.
    Tunnels,
    /// Through the ztunnel that captures them, which ends tunnels and hands over at this port, with a PROXY header.
    Handed(u16),
}

/// How connections come to the instances of a waypoint that is ours. `Err`: its binding asks for what it cannot be; what
/// is wrong, and what to write. Its instances then end tunnels themselves.
pub fn entry_of(cluster: &Cluster, gateway: &Gateway) -> Result<Entry, String> {
    let wrong = |what: String| {
        let name = labels::WAYPOINT_INBOUND_BINDING;
        Err(format!("{name}: {what}; write PROXY/{PORT_PROXY}, or nothing"))
    };
    match binding_of(cluster, gateway) {
        None | Some(ApplicationTunnel { protocol: ApplicationProtocol::None, port: None }) => {
            Ok(Entry::Tunnels)
        }
        Some(ApplicationTunnel { protocol: ApplicationProtocol::None, port: Some(port) }) => {
            wrong(format!("nobody would say at port {port} who calls"))
        }
        Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: None }) => {
            wrong("PROXY without a port would be any port".to_owned())
        }
        Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(port) }) => {
            if TAKEN_PORTS.contains(&port) {
                return wrong(format!("port {port} is taken in such a pod"));
            }
            Ok(Entry::Handed(port))
        }
    }
}

/// What the annotations of a Gateway, or else of its class, ask of the instances of a waypoint that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// How connections come. What is wrong with a binding, the Gateway's status says.
    pub entry: Entry,
    /// Whether applications are told who their clients are (protocols 4.10, XFCC).
    pub names_clients: bool,
}

/// Those of `gateway`.
pub fn wishes_of(cluster: &Cluster, gateway: &Gateway) -> Wishes {
    let of_class = || class_of(cluster, gateway)?.names_clients;
    Wishes {
        entry: entry_of(cluster, gateway).unwrap_or(Entry::Tunnels),
        names_clients: gateway.names_clients.or_else(of_class).unwrap_or(false),
    }
}

fn class_of<'a>(cluster: &'a Cluster, gateway: &Gateway) -> Option<&'a GatewayClass> {
    cluster.gateway_classes.get(&Name::new("", gateway.class.clone())).map(AsRef::as_ref)
}

fn binding_of(cluster: &Cluster, gateway: &Gateway) -> Option<ApplicationTunnel> {
    let class = || class_of(cluster, gateway)?.binding;
    gateway.binding.or_else(class).map(|binding| binding.0)
}

/// An object's own label decides alone; without one, its namespace's does.
fn labels_in_force<'l>(meta: &'l Meta, of_namespace: &'l Labels) -> (Level, &'l Labels) {
    match meta.labels.get(labels::USE_WAYPOINT) {
        Some(_) => (Level::Object, &meta.labels),
        None => (Level::Namespace, of_namespace),
    }
}

fn bind(cluster: &Cluster, meta: &Meta, addressed: Addressed, private: bool) -> Binding {
    let namespace = &meta.name.namespace;
    let of_namespace = cluster.namespace_labels(namespace);
    let (level, labels) = labels_in_force(meta, &of_namespace);
    let weight = match level {
        Level::Object => meta.annotations.get(labels::USE_WAYPOINT_CANARY_WEIGHT),
        Level::Namespace => cluster.namespace_annotation(namespace, labels::USE_WAYPOINT_CANARY_WEIGHT),
    };
    let wanted = reference(labels, namespace, labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE);
    let Some(wanted) = wanted.filter(|wanted| wanted.name != labels::USE_WAYPOINT_NONE) else {
        return Binding::None;
    };
    let forbidden = private && wanted.namespace != *namespace;
    let address = match find(cluster, namespace, &of_namespace, &wanted, addressed) {
        Ok(_) if forbidden => {
            return Binding::Refused { gateway: wanted, reason: Reason::CrossNamespaceForbidden };
        }
        Ok(address) => address,
        // Nobody asked for it by name, and the namespace's services may well have it.
        Err(Reason::UnsupportedTrafficType)
            if level == Level::Namespace && addressed == Addressed::Workload =>
        {
            return Binding::None;
        }
        Err(reason) => return Binding::Refused { gateway: wanted, reason },
    };
    let canary = match addressed {
        Addressed::Workload => Canary::None,
        Addressed::Service => {
            find_canary(cluster, namespace, &of_namespace, labels, weight, &wanted, private)
        }
    };
    let ingress =
        [&meta.labels, &of_namespace].into_iter().find_map(|labels| labels.get(labels::INGRESS_USE_WAYPOINT));
    Binding::Bound(Bound {
        gateway: wanted,
        address,
        canary,
        ingress: addressed == Addressed::Service && ingress.and_then(parse_bool).unwrap_or(false),
    })
}

fn find_canary(
    cluster: &Cluster,
    namespace: &Namespace,
    of_namespace: &Labels,
    labels: &Labels,
    weight: Option<&str>,
    primary: &Name,
    private: bool,
) -> Canary {
    let wanted =
        reference(labels, namespace, labels::USE_WAYPOINT_CANARY, labels::USE_WAYPOINT_CANARY_NAMESPACE);
    let Some(gateway) = wanted else { return Canary::None };
    let weight = weight.map_or(Ok(0), str::parse::<u8>);
    let outcome = match weight {
        Ok(weight) if weight <= 100 => {
            if gateway == *primary {
                Err(Reason::CanarySameAsPrimary)
            } else if private && gateway.namespace != *namespace {
                Err(Reason::CrossNamespaceForbidden)
            } else {
                find(cluster, namespace, of_namespace, &gateway, Addressed::Service)
                    .map(|address| (address, weight))
            }
        }
        Ok(_) | Err(_) => Err(Reason::CanaryInvalidWeight),
    };
    match outcome {
        Ok((address, weight)) => Canary::Bound { gateway, address, weight },
        Err(reason) => Canary::Refused { gateway, reason },
    }
}

fn reference(labels: &Labels, namespace: &Namespace, name: &str, elsewhere: &str) -> Option<Name> {
    let namespace = labels.get(elsewhere).map_or_else(|| namespace.clone(), Namespace::from);
    Some(Name { namespace, name: labels.get(name)?.into() })
}

/// Where a waypoint is, if objects of this namespace may have it for this traffic.
fn find(
    cluster: &Cluster,
    namespace: &Namespace,
    of_namespace: &Labels,
    wanted: &Name,
    addressed: Addressed,
) -> Result<GatewayAddress, Reason> {
    let gateway = cluster.gateways.get(wanted).ok_or(Reason::NotReady)?;
    let destination = match &gateway.reach {
        Reach::NotReady => return Err(Reason::NotReady),
        Reach::Hostname(host) => {
            GatewayDestination::Hostname(ServiceKey::new(wanted.namespace.clone(), host.as_str()))
        }
        Reach::Ip(ip) => GatewayDestination::Address(NetworkAddress::new(cluster.network(), *ip)),
    };
    admit(cluster, namespace, of_namespace, gateway, addressed)?;
    Ok(GatewayAddress { destination, hbone_mtls_port: HBONE_PORT })
}

/// Whether objects of a namespace may have a waypoint for this traffic.
fn admit(
    cluster: &Cluster,
    namespace: &Namespace,
    of_namespace: &Labels,
    gateway: &Gateway,
    addressed: Addressed,
) -> Result<(), Reason> {
    let admitted = match bound_listener(cluster, gateway) {
        None | Some(AllowedNamespaces::Same) => *namespace == gateway.meta.name.namespace,
        Some(AllowedNamespaces::All) => true,
        Some(AllowedNamespaces::Matching(selector)) => selector.matches(of_namespace),
        Some(AllowedNamespaces::None) => false,
    };
    if !admitted {
        return Err(Reason::AttachmentDenied);
    }
    let traffic = traffic_of(cluster, gateway);
    let served = match addressed {
        Addressed::Service => traffic.serves_services(),
        Addressed::Workload => traffic.serves_workloads(),
    };
    if served { Ok(()) } else { Err(Reason::UnsupportedTrafficType) }
}

/// The listener whose `allowedRoutes` count: the one that connections are handed to, else the HBONE one.
fn bound_listener<'a>(cluster: &Cluster, gateway: &'a Gateway) -> Option<&'a AllowedNamespaces> {
    let listeners = || gateway.listeners.iter();
    let handed = binding_of(cluster, gateway).filter(|tunnel| tunnel.protocol == ApplicationProtocol::Proxy);
    let by_binding = handed.and_then(|tunnel| {
        listeners().find(|one| {
            one.protocol == PROTOCOL_PROXY && tunnel.port.is_none_or(|port| u32::from(port) == one.port)
        })
    });
    let hbone = || listeners().find(|one| one.protocol == HBONE && one.port == u32::from(HBONE_PORT));
    by_binding.or_else(hbone).map(|listener| &listener.allowed)
}
