//! What all workers of one waypoint share.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ambit_model::{
    address::NetworkAddress,
    balance,
    identity::Identity,
    name::{Namespace, Network},
    snapshot::Snapshot,
    workload::Workload,
};
use ambit_proxy::config::Keepalive;
use ambit_wire::{
    cert::store::Certificates,
    discovery::Mesh,
    hbone::{self, pool::Spread},
    tls::revoked::Revocation,
};
use tokio::sync::Semaphore;

use crate::{
    accept::handed::Listen,
    access::Records,
    caller::{debug::Looks, keys::KeyStore},
    config,
    limits::Limits,
    metrics::Metrics,
    served::Served,
    upstream::{budgets::Budgets, destinations::Destinations, endpoints::Endpoints},
};

/// Everything that serving needs and that is not one worker's own.
#[derive(Debug)]
pub struct Shared {
    /// What the mesh is, and what applies to the services here.
    pub mesh: Mesh,
    /// What was served until lately, too.
    pub served: Served,
    /// The own certificate.
    pub certificates: Certificates,
    /// Which certificates are revoked.
    pub revocation: Revocation,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where requests and connections are recorded.
    pub records: Arc<Records>,
    /// The keys of those who issue tokens.
    pub keys: KeyStore,
    /// Which debug tokens were looked at.
    pub looks: Looks,
    /// How endpoints do.
    pub endpoints: Endpoints,
    /// What is kept of services whose use a rule governs.
    pub destinations: Destinations,
    /// How much may be repeated.
    pub budgets: Budgets,
    /// How many requests are taken.
    pub limits: Limits,
    /// Turns at handshakes.
    pub handshakes: Semaphore,
    /// Places for streams of tunnels.
    pub connections: Arc<Semaphore>,
    /// How things are done.
    pub settings: Settings,
}

/// How things are done. Read once, at the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who this waypoint is.
    pub identity: Identity,
    /// Its address, by which its own workload is found.
    pub ip: Option<IpAddr>,
    /// Its network.
    pub network: Network,
    /// How HTTP/2 is spoken in tunnels.
    pub hbone: hbone::Settings,
    /// How clients come.
    pub listen: Listen,
    /// Whether applications are told who their clients are.
    pub names_clients: bool,
    /// How many tunnels a peer gets.
    pub spread: Spread,
    /// Liveness of TCP connections.
    pub keepalive: Option<Keepalive>,
    /// What is bounded.
    pub limits: config::Limits,
    /// When the process started: the clock of budgets begins here.
    pub started: Instant,
}

impl Shared {
    /// The namespace of this waypoint.
    pub fn namespace(&self) -> &Namespace {
        &self.settings.identity.namespace
    }

    /// The workload that this waypoint is an instance of, if the mesh knows it.
    pub fn own_workload<'s>(&self, mesh: &'s Snapshot) -> Option<&'s Arc<Workload>> {
        mesh.workload_at(&NetworkAddress::new(self.settings.network.clone(), self.settings.ip?))
    }
}

/// Chance, for decisions.
pub fn dice() -> impl balance::Dice {
    |bound: u64| if bound == 0 { 0 } else { rand::random_range(0..bound) }
}
