//! A service: a name and addresses behind which workloads stand.

use std::{net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer};

use crate::{
    address::{NetworkAddress, NetworkRange},
    gateway::{GatewayAddress, WeightedWaypoint},
    name::{Hostname, Label, Namespace, ServiceKey},
};

/// A Kubernetes Service or one host of a ServiceEntry (protocols 2.1, 11.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The short name.
    pub name: Label,
    /// The namespace that defines it.
    pub namespace: Namespace,
    /// The fully qualified name; may begin with `*.`.
    pub hostname: Hostname,
    /// Its virtual addresses. Empty for headless.
    pub vips: Box<[NetworkAddress]>,
    /// Its virtual address ranges.
    pub ranges: Box<[NetworkRange]>,
    /// Its ports.
    pub ports: PortMap,
    /// What its ports carry, of those of which that is said. For waypoints: a tunnel moves bytes.
    pub app_protocols: Arc<[(u16, AppProtocol)]>,
    /// Further identities that endpoints may present, as SPIFFE URIs or not.
    pub subject_alt_names: Box<[Label]>,
    /// The proxy for traffic to it.
    pub waypoint: Option<GatewayAddress>,
    /// When not empty, one of these is taken instead, by weight.
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Which addresses are answered and used.
    pub ip_families: IpFamilies,
    /// Preferred among services of equal name or address.
    pub canonical: bool,
    /// For ingress gateways: whether they go through the waypoint.
    pub ingress_use_waypoint: bool,
    /// Who sees it.
    pub visibility: Visibility,
}

impl Service {
    /// `namespace/hostname`.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), hostname: self.hostname.clone() }
    }

    /// Whether clients of `namespace` see it.
    pub fn visible_to(&self, namespace: &Namespace) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => self.namespace == *namespace,
        }
    }
}

/// What a port carries (protocols 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes of a protocol that is not looked into.
    Tcp,
    /// TLS, which the application ends.
    Tls,
}

/// Service port → target port, sorted; few, so searched in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortMap(Arc<[(u16, TargetPort)]>);

impl PortMap {
    /// The target of `service_port`, if the service has that port.
    pub fn get(&self, service_port: u16) -> Option<TargetPort> {
        self.0.iter().find(|(port, _)| *port == service_port).map(|(_, target)| *target)
    }

    /// All ports with their targets, by service port.
    pub fn iter(&self) -> impl Iterator<Item = (u16, TargetPort)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is no port.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u16, TargetPort)> for PortMap {
    fn from_iter<I: IntoIterator<Item = (u16, TargetPort)>>(ports: I) -> Self {
        let mut ports: Vec<_> = ports.into_iter().collect();
        ports.sort_by_key(|(port, _)| *port);
        ports.dedup_by_key(|(port, _)| *port);
        Self(ports.into())
    }
}

impl Serialize for PortMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(port, target)| (port.to_string(), target.number())))
    }
}

/// Where a service port leads on an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// To this port.
    Number(u16),
    /// To a port that each endpoint has by name, and says in its own map.
    Named,
}

impl TargetPort {
    /// The number, 0 standing for "named" as on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Number(port) => port,
            Self::Named => 0,
        }
    }

    /// The target that the wire spells `number`.
    pub fn from_number(number: u16) -> Self {
        if number == 0 { Self::Named } else { Self::Number(number) }
    }
}

/// How an endpoint is chosen (protocols 5.5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// What an endpoint should have in common with the client, in order.
    pub routing_preferences: Box<[Scope]>,
    /// What becomes of those that have not.
    pub mode: Mode,
    /// What becomes of those that are unhealthy.
    pub health_policy: HealthPolicy,
}

/// Something that client and endpoint may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What becomes of endpoints that share less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// All are equal.
    #[default]
    Standard,
    /// Only those that share everything.
    Strict,
    /// Those that share most.
    Failover,
    /// Not balanced: connections go where they were going.
    Passthrough,
}

/// What becomes of unhealthy endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum HealthPolicy {
    /// They are left out.
    #[default]
    OnlyHealthy,
    /// They are used like the others.
    AllowAll,
}

/// Which IP families a service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum IpFamilies {
    /// Whatever its addresses are.
    #[default]
    Automatic,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether `ip` is of a family that the service has.
    pub fn admit(self, ip: &IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4Only => ip.is_ipv4(),
            Self::Ipv6Only => ip.is_ipv6(),
        }
    }
}

/// Who sees a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Clients of its own namespace.
    Namespace,
}
