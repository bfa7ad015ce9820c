//! Decides where an outgoing connection goes. Pure: all it knows is in the [`Snapshot`].
//!
//! The order is that of protocols 5.3, and it matters: a waypoint is never gone around, a service
//! without endpoints is never passed through, and what the mesh does not know is left alone.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{
    address::{NetworkAddress, Target},
    answer::{Answer, Asked, Missing},
    balance::{self, Caller, Dice, Purpose, Wanted},
    gateway::{GatewayAddress, WeightedWaypoint},
    identity::Identity,
    name::{Hostname, Network, Uid},
    reach::{self, Asker, NoWay},
    service::{IpFamilies, Mode, Service},
    snapshot::{Addressed, Snapshot},
    workload::{Tunnel, Workload},
};

use crate::refusal::Refusal;

/// Where every workload takes HBONE (protocols 5.3: constant).
pub const HBONE_PORT: u16 = 15008;

/// Who calls, and whom.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The pod that calls.
    pub source: &'a Workload,
    /// The network of this tunnel.
    pub network: &'a Network,
    /// Where the application believes that it connects to.
    pub to: SocketAddr,
    /// Workloads that could not be reached a moment ago.
    pub tried: &'a [Uid],
}

/// How a connection is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The way.
    pub route: Route,
    /// The service that the application means, for telemetry and the `forwarded` header.
    pub service: Option<Arc<Service>>,
    /// The next hop.
    pub workload: Option<Arc<Workload>>,
}

/// The ways to carry a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// As it is.
    Plain {
        /// The next hop.
        to: Hop,
    },
    /// Through a tunnel.
    Tunnel {
        /// The other end of the tunnel.
        to: Hop,
        /// What is asked of it.
        target: Target,
        /// Who it must be: any of these.
        expect: Arc<[Identity]>,
    },
    /// To another network: through a tunnel that ends at a gateway, in it one that ends at the pod.
    TunnelInTunnel {
        /// The gateway.
        gateway: Hop,
        /// Who the gateway must be.
        expect_gateway: Arc<[Identity]>,
        /// What is asked of both.
        target: Target,
        /// Who the inner end must be.
        expect: Arc<[Identity]>,
    },
}

/// Where a socket is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// An address.
    Address(SocketAddr),
    /// A name that is resolved when connecting, and the port.
    Name(Hostname, u16),
}

impl From<Target> for Hop {
    fn from(place: Target) -> Self {
        match place {
            Target::Ip(address) => Self::Address(address),
            Target::Host(name, port) => Self::Name(name, port),
        }
    }
}

/// Decides where `call` goes.
pub fn outbound(
    mesh: &Snapshot,
    asked: &Asked,
    call: &Call<'_>,
    dice: &mut dyn Dice,
) -> Answer<Result<Plan, Refusal>> {
    match decide(mesh, asked, call, dice) {
        Ok(plan) => Answer::Known(Ok(plan)),
        Err(Stop::Refuse(refusal)) => Answer::Known(Err(refusal)),
        Err(Stop::Ask(missing)) => Answer::Need(missing),
    }
}

/// Why a decision ends early.
enum Stop {
    Refuse(Refusal),
    Ask(Missing),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

fn decide(mesh: &Snapshot, asked: &Asked, call: &Call<'_>, dice: &mut dyn Dice) -> Result<Plan, Stop> {
    let from = &call.source.namespace;
    let here = NetworkAddress::new(call.network.clone(), call.to.ip());
    let addressed = mesh.addressed(&here, from);
    if addressed.is_none() {
        ask(asked, || Missing::Address(here))?;
    }
    if let Some(Addressed::Service(service)) = addressed
        && let Some(waypoint) = waypoint_of(service, dice)
    {
        return through_waypoint(mesh, asked, call, waypoint, Some(service), dice);
    }
    let there = NetworkAddress::new(call.source.network.clone(), call.to.ip());
    match mesh.upstream(&there, from) {
        Some(Addressed::Service(service)) => to_service(mesh, asked, call, service, dice),
        Some(Addressed::Workload(workload)) => to_workload(mesh, asked, call, workload, dice),
        None => {
            ask(asked, || Missing::Address(there))?;
            Ok(passthrough(call))
        }
    }
}

/// What the mesh does not own goes where it was going, untouched.
fn passthrough(call: &Call<'_>) -> Plan {
    Plan { route: Route::Plain { to: Hop::Address(call.to) }, service: None, workload: None }
}

fn to_service(
    mesh: &Snapshot,
    asked: &Asked,
    call: &Call<'_>,
    service: &Arc<Service>,
    dice: &mut dyn Dice,
) -> Result<Plan, Stop> {
    if service.load_balancing.mode == Mode::Passthrough {
        return Ok(passthrough(call));
    }
    let (workload, port) = endpoint_of(mesh, call, service, call.to.port(), Purpose::Standard, dice)
        .ok_or_else(|| Refusal::NoEndpoint { service: service.key().to_string(), port: call.to.port() })?;
    if workload.network != call.source.network {
        return to_network(mesh, asked, call, service, workload, dice);
    }
    let families = service.ip_families;
    direct(call, workload, port, families, Some(service))
}

fn to_workload(
    mesh: &Snapshot,
    asked: &Asked,
    call: &Call<'_>,
    workload: &Arc<Workload>,
    dice: &mut dyn Dice,
) -> Result<Plan, Stop> {
    if workload.network != call.source.network {
        return Err(
            Refusal::NoRoute("a workload of another network is reached through a service only").into()
        );
    }
    if let Some(waypoint) = &workload.waypoint
        && !is_instance_of(mesh, call, waypoint)
    {
        return through_waypoint(mesh, asked, call, waypoint, None, dice);
    }
    direct(call, workload, call.to.port(), IpFamilies::Automatic, None)
}

fn direct(
    call: &Call<'_>,
    workload: &Arc<Workload>,
    port: u16,
    families: IpFamilies,
    service: Option<&Arc<Service>>,
) -> Result<Plan, Stop> {
    let at = |port| {
        let place = reach::place(workload, port, call.to.ip(), families);
        place.ok_or(Refusal::NoRoute("the endpoint has no address"))
    };
    let target = at(port)?;
    let route = match workload.tunnel {
        Tunnel::None => Route::Plain { to: target.into() },
        Tunnel::Hbone => {
            let names = service.map(|service| &service.subject_alt_names[..]).unwrap_or_default();
            Route::Tunnel { to: at(HBONE_PORT)?.into(), target, expect: workload.accepted_identities(names) }
        }
    };
    Ok(Plan { route, service: service.cloned(), workload: Some(workload.clone()) })
}

/// To the proxy in front of what is asked for. There is no way around it: a waypoint that is not
/// known or has no endpoint is an error.
fn through_waypoint(
    mesh: &Snapshot,
    asked: &Asked,
    call: &Call<'_>,
    waypoint: &GatewayAddress,
    service: Option<&Arc<Service>>,
    dice: &mut dyn Dice,
) -> Result<Plan, Stop> {
    let found = reach::instance(mesh, waypoint, Purpose::Waypoint, &asker(call), dice);
    let proxy = found.map_err(|no_way| without_way(asked, no_way, Refusal::UnknownWaypoint))?;
    if proxy.workload.network != call.source.network {
        let service = service.ok_or(Refusal::NoRoute("only services are reached across networks"))?;
        return to_network(mesh, asked, call, service, proxy.workload, dice);
    }
    let route = Route::Tunnel {
        to: proxy.at.ok_or_else(|| Refusal::UnknownWaypoint(waypoint.to_string()))?.into(),
        target: Target::Ip(call.to),
        expect: proxy.expected,
    };
    Ok(Plan { route, service: service.cloned(), workload: Some(proxy.workload.clone()) })
}

/// To a workload of another network, through the gateway that it names (protocols 4.9).
fn to_network(
    mesh: &Snapshot,
    asked: &Asked,
    call: &Call<'_>,
    service: &Arc<Service>,
    workload: &Arc<Workload>,
    dice: &mut dyn Dice,
) -> Result<Plan, Stop> {
    let found = reach::across(mesh, workload, (service, call.to.port()), &asker(call), dice);
    let way = found.map_err(|no_way| without_way(asked, no_way, Refusal::UnknownGateway))?;
    let route = Route::TunnelInTunnel {
        gateway: way.gateway.into(),
        expect_gateway: way.expected_gateway,
        target: way.target,
        expect: way.expected,
    };
    Ok(Plan { route, service: Some(service.clone()), workload: Some(workload.clone()) })
}

/// What becomes of a call for which there is no way: it waits for what is not known yet, or is refused.
fn without_way(asked: &Asked, no_way: NoWay<'_>, unknown: impl Fn(String) -> Refusal) -> Stop {
    match no_way {
        NoWay::NoGateway => {
            Refusal::NoRoute("the endpoint is on another network and names no gateway").into()
        }
        NoWay::Unknown(gateway) => match asked.yet(|| gateway.missing()) {
            Some(missing) => Stop::Ask(missing),
            None => unknown(gateway.to_string()).into(),
        },
        NoWay::NoInstance(gateway) => unknown(gateway.to_string()).into(),
    }
}

fn asker<'a>(call: &Call<'a>) -> Asker<'a> {
    Asker {
        caller: Caller::from(call.source),
        namespace: &call.source.namespace,
        asked: call.to.ip(),
        tried: call.tried,
    }
}

fn endpoint_of<'s>(
    mesh: &'s Snapshot,
    call: &Call<'_>,
    service: &Service,
    port: u16,
    purpose: Purpose,
    dice: &mut dyn Dice,
) -> Option<(&'s Arc<Workload>, u16)> {
    let endpoints = mesh.endpoints(&service.key())?;
    let wanted = Wanted::of(service, port, purpose, Caller::from(call.source));
    let tried = |workload: &Workload| call.tried.contains(&workload.uid);
    let pick = balance::pick(&wanted, endpoints, &tried, dice)?;
    Some((&pick.endpoint.workload, pick.port))
}

/// The waypoint of a service: one of the weighted ones, else the one.
fn waypoint_of<'s>(service: &'s Service, dice: &mut dyn Dice) -> Option<&'s GatewayAddress> {
    let weight = |one: &WeightedWaypoint| u64::from(one.weight);
    let total: u64 = service.weighted_waypoints.iter().map(weight).sum();
    if total > 0 {
        let mut drawn = dice.below(total);
        for one in &service.weighted_waypoints {
            if drawn < weight(one) {
                return Some(&one.destination);
            }
            drawn -= weight(one);
        }
    }
    service.waypoint.as_ref()
}

/// Whether the caller is itself an instance of `waypoint`, which must not be sent back to itself.
fn is_instance_of(mesh: &Snapshot, call: &Call<'_>, waypoint: &GatewayAddress) -> bool {
    mesh.stands_behind(call.source, waypoint, &call.source.namespace)
}

fn ask(asked: &Asked, missing: impl FnOnce() -> Missing) -> Result<(), Stop> {
    asked.yet(missing).map_or(Ok(()), |missing| Err(Stop::Ask(missing)))
}

/// Whether a connection to `to` that arrived `at` would come back to the tunnel itself. One that was not
/// redirected was opened to the listener: over loopback, or by the pod's own address.
pub fn is_recursive(to: SocketAddr, at: SocketAddr, own_ports: &[u16]) -> bool {
    own_ports.contains(&to.port()) && (to.ip().is_loopback() || to == at)
}

#[cfg(test)]
mod tests;
