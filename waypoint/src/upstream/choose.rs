//! Which endpoint, and how it is reached.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{
    balance::{Preferences, Purpose, Wanted},
    name::Uid,
    reach::Asker,
    service::Service,
    snapshot::Snapshot,
    workload::Workload,
};

use super::{
    Upstream,
    destinations::{Destination, Terms},
    dial::Hop,
    endpoints::{Affinity, Doing, Question},
};
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
        /// How its endpoints are to be used.
        terms: Terms,
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

    /// How the endpoints of the service are to be used.
    pub fn terms(&self) -> Option<&Terms> {
        match self {
            Self::Service { terms, .. } => Some(terms),
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

/// Who is asked for an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Where it goes.
    pub goal: &'a Goal,
    /// The address that was asked for; its family is preferred.
    pub asked: SocketAddr,
    /// What ties it to an endpoint.
    pub affinity: &'a Affinity,
    /// What is kept of the goal.
    pub kept: Option<&'a Arc<Destination>>,
}

impl Upstream {
    /// What is kept of `goal`, if a rule governs it.
    pub fn kept(&self, goal: &Goal) -> Option<Arc<Destination>> {
        match goal {
            Goal::Service { service, port, terms } => self.shared().destinations.of(service, *port, terms),
            Goal::Workload { .. } => None,
        }
    }

    /// Chooses an endpoint. Those that were `tried` come last.
    pub fn choose(&self, mesh: &Snapshot, choice: &Choice<'_>, tried: &[Uid]) -> Result<Endpoint, Refusal> {
        let shared = self.shared();
        match choice.goal {
            Goal::Service { service, port, terms } => {
                let none = || Refusal::NoEndpoint { service: service.key().to_string(), port: *port };
                let known = mesh.endpoints(&service.key()).ok_or_else(none)?;
                let choose = |tried: &[Uid]| {
                    self.ask(mesh, choice, tried, |question| {
                        shared.endpoints.choose(question, known, &mut dice())
                    })?
                };
                let (pick, doing) = choose(tried).or_else(|| choose(&[])).ok_or_else(none)?;
                let workload = pick.endpoint.workload.clone();
                let hop = if workload.network == shared.settings.network {
                    Hop::to(&workload, Some(service), pick.port, choice.asked)
                } else {
                    self.across(mesh, &workload, (service, *port), choice.asked)
                };
                let hop = hop.ok_or_else(none)?;
                let needs_tunnel = terms.policy.as_ref().is_some_and(|policy| policy.needs_tunnel);
                if needs_tunnel && matches!(hop, Hop::Plain(_)) {
                    return Err(Refusal::NoTunnel(workload.uid.to_string()));
                }
                Ok(Endpoint { workload, hop, doing })
            }
            Goal::Workload { workload, port } => {
                let none = || Refusal::NoEndpoint { service: workload.uid.to_string(), port: *port };
                // Only services are known by name, and so across networks.
                let here = workload.network == shared.settings.network;
                let hop = Hop::to(workload, None, *port, choice.asked).filter(|_| here).ok_or_else(none)?;
                Ok(Endpoint { workload: workload.clone(), hop, doing: shared.endpoints.of(workload, *port) })
            }
        }
    }

    /// The way to an endpoint of another network.
    fn across(
        &self,
        mesh: &Snapshot,
        workload: &Workload,
        service: (&Service, u16),
        asked: SocketAddr,
    ) -> Option<Hop> {
        let shared = self.shared();
        let nowhere = self.nowhere();
        let own = shared.own_workload(mesh).map_or(&nowhere, |own| own);
        let asker =
            Asker { caller: own.into(), namespace: shared.namespace(), asked: asked.ip(), tried: &[] };
        Hop::across(mesh, workload, service, &asker, &mut dice())
    }

    /// In place of the own workload, where it is not known.
    fn nowhere(&self) -> Workload {
        Workload { network: self.shared().settings.network.clone(), ..Workload::default() }
    }

    /// Puts the question which endpoint of a service; `None`: it is for no service.
    pub(super) fn ask<T>(
        &self,
        mesh: &Snapshot,
        choice: &Choice<'_>,
        tried: &[Uid],
        put: impl FnOnce(&Question<'_>) -> T,
    ) -> Option<T> {
        let Goal::Service { service, port, terms } = choice.goal else { return None };
        let shared = self.shared();
        let nowhere = self.nowhere();
        let own = shared.own_workload(mesh).map_or(&nowhere, |own| own);
        let balancing = terms.policy.as_ref().map(|policy| &policy.balancing);
        let said = balancing.and_then(|balancing| {
            let preferences = balancing.preferences.as_ref()?;
            Some(Preferences { balancing: preferences, regions: &balancing.regions })
        });
        let of_service = Wanted::of(service, *port, Purpose::Standard, own.into());
        let wanted = Wanted { preferences: said.unwrap_or(of_service.preferences), ..of_service };
        let now = shared.settings.started.elapsed();
        let Choice { affinity, kept, .. } = *choice;
        Some(put(&Question { wanted, terms, kept, affinity, tried, now }))
    }
}
