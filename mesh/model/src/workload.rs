//! A workload: something with an identity that can be reached.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;

use crate::{
    gateway::GatewayAddress,
    identity::{Identity, TrustDomain},
    name::{Cluster, Hostname, Label, Namespace, Network, Node, PolicyKey, ServiceAccount, ServiceKey, Uid},
    service::PortMap,
};

/// A pod, a virtual machine or an address of a service entry (protocols 2.1, 11.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The unique key.
    pub uid: Uid,
    /// The name of the pod or entry.
    pub name: Label,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its addresses; may be empty (reached by `hostname` or through `network_gateway`).
    pub addresses: Box<[IpAddr]>,
    /// Resolved by DNS at connect time when there are no addresses. Empty for none.
    pub hostname: Hostname,
    /// The network of the addresses.
    pub network: Network,
    /// How connections to it travel.
    pub tunnel: Tunnel,
    /// Who vouches for it.
    pub trust_domain: TrustDomain,
    /// The account it runs as.
    pub service_account: ServiceAccount,
    /// The proxy for traffic addressed to the workload itself. Boxed, like the next: most have none.
    pub waypoint: Option<Box<GatewayAddress>>,
    /// How it is reached from another network.
    pub network_gateway: Option<Box<GatewayAddress>>,
    /// The node it runs on.
    pub node: Node,
    /// For telemetry.
    pub canonical_name: Label,
    /// For telemetry.
    pub canonical_revision: Label,
    /// For telemetry and baggage.
    pub workload_type: WorkloadType,
    /// The owning workload, such as the Deployment.
    pub workload_name: Label,
    /// Whether it terminates HBONE itself.
    pub native_tunnel: bool,
    /// How connections are handed to the application.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The services it is an endpoint of, and its own ports for each.
    pub services: Arc<[(ServiceKey, PortMap)]>,
    /// The selector policies that apply to it.
    pub authorization_policies: Arc<[PolicyKey]>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Its cluster.
    pub cluster: Cluster,
    /// Where in the world it is.
    pub locality: Locality,
    /// Whether it has the node's addresses.
    pub network_mode: NetworkMode,
    /// Its weight among endpoints; 1 unless said otherwise.
    pub capacity: Capacity,
}

impl Workload {
    /// Its SPIFFE identity.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Who may answer at its address: itself, and the SPIFFE identities among a service's alternative names; others
    /// name nobody here.
    pub fn accepted_identities(&self, alternative_names: &[Label]) -> Arc<[Identity]> {
        let others = alternative_names.iter().filter_map(|name| name.as_str().parse().ok());
        std::iter::once(self.identity()).chain(others).collect()
    }

    /// Whether its key says that it is a pod, which nobody but the API server can make.
    pub fn is_pod(&self) -> bool {
        self.uid.as_str().contains("//Pod/")
    }
}

/// How connections to a workload travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Tunnel {
    /// Plain TCP.
    #[default]
    #[serde(rename = "TCP")]
    None,
    /// HTTP/2 CONNECT in mutual TLS.
    Hbone,
}

/// How a connection is handed to the application (protocols 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationTunnel {
    /// What is written before the payload.
    pub protocol: ApplicationProtocol,
    /// The port that the application takes tunnelled connections on; `None` keeps the port.
    pub port: Option<u16>,
}

/// What the application is told about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ApplicationProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Health {
    /// It does.
    #[default]
    Healthy,
    /// It does not, unless its service takes all.
    Unhealthy,
}

/// Where in the world a workload runs. Empty equals empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// The region.
    pub region: Label,
    /// The zone within the region.
    pub zone: Label,
    /// The part of the zone.
    pub subzone: Label,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// The node's: not found by address.
    HostNetwork,
}

/// What kind of thing owns the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    Cronjob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// The lower-case word that telemetry uses.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::Cronjob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// A weight among endpoints. Zero takes no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Capacity(pub u32);

impl Default for Capacity {
    fn default() -> Self {
        Self(1)
    }
}
