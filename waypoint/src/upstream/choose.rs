//! Which endpoint, and how it is reached.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{name::Uid, service::Service, snapshot::Snapshot, workload::Workload};

use super::{Upstream, dial::Hop, endpoints::Doing};
use crate::{refusal::Refusal, shared::dice};

/// Where something goes.
#[derive(Clone, Debug)]
pub enum Goal {
    /// To an endpoint of this service.
    Service {
        /// The service.
        service: Arc<Service>,
        /// Its port.
        port: u16,
    },
    /// To this workload.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// Its port.
        port: u16,
    },
}

impl Goal {
    /// The service, if it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }
}

/// An endpoint that was chosen.
#[derive(Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The way to it.
    pub hop: Hop,
    /// How it does.
    pub doing: Arc<Doing>,
}

impl Upstream {
    /// Chooses an endpoint for `goal`. Those that were `tried` come last.
    pub fn choose(
        &self,
        mesh: &Snapshot,
        goal: &Goal,
        asked: SocketAddr,
        tried: &[Uid],
    ) -> Result<Endpoint, Refusal> {
        let shared = self.shared();
        match goal {
            Goal::Service { service, port } => {
                let none = || Refusal::NoEndpoint { service: service.key().to_string(), port: *port };
                let nowhere = Workload { network: shared.settings.network.clone(), ..Workload::default() };
                let own = shared.own_workload(mesh).map_or(&nowhere, |own| own);
                let now = shared.settings.started.elapsed();
                let known = mesh.endpoints(&service.key()).ok_or_else(none)?;
                let choose = |tried: &[Uid]| {
                    shared.endpoints.choose((service, *port), known, own.into(), tried, now, &mut dice())
                };
                let (pick, doing) = choose(tried).or_else(|| choose(&[])).ok_or_else(none)?;
                let workload = pick.endpoint.workload.clone();
                let hop = Hop::to(&workload, Some(service), pick.port, asked).ok_or_else(none)?;
                Ok(Endpoint { workload, hop, doing })
            }
            Goal::Workload { workload, port } => {
                let none = || Refusal::NoEndpoint { service: workload.uid.to_string(), port: *port };
                let hop = Hop::to(workload, None, *port, asked).ok_or_else(none)?;
                Ok(Endpoint { workload: workload.clone(), hop, doing: shared.endpoints.of(workload, *port) })
            }
        }
    }
}
