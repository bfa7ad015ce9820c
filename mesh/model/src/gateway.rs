//! References to proxies in the path: waypoints and network gateways.

use std::fmt;

use serde::Serialize;

use crate::{address::NetworkAddress, answer::Missing, name::ServiceKey};

/// Where a waypoint or network gateway is found, and its HBONE port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayAddress {
    /// By name or by address.
    pub destination: GatewayDestination,
    /// The port that terminates HBONE, 15008 in practice.
    pub hbone_mtls_port: u16,
}

impl GatewayAddress {
    /// What to ask for, if nothing is known of it.
    pub fn missing(&self) -> Missing {
        match &self.destination {
            GatewayDestination::Hostname(key) => Missing::Service(key.clone()),
            GatewayDestination::Address(address) => Missing::Address(address.clone()),
        }
    }
}

/// Whom it names, without the port.
impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Hostname(key) => key.fmt(f),
            GatewayDestination::Address(address) => address.fmt(f),
        }
    }
}

/// The two ways to name a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum GatewayDestination {
    /// A service or workload by host name; its IP family follows the request.
    Hostname(ServiceKey),
    /// Exactly this address.
    Address(NetworkAddress),
}

/// A waypoint with its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its weight, relative to the other's.
    pub weight: u32,
}
