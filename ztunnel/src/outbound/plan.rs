//! Decides where an outgoing connection goes. Pure: all it knows is in the [`Snapshot`].
//!
//! The order is that of protocols 5.3, and it matters: a waypoint is never gone around, a service
//! without endpoints is never passed through, and what the mesh does not know is left alone.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{
    address::{NetworkAddress, Target},
    answer::{Answer, Asked, Missing},
    balance::{self, Caller, Dice, Purpose, Wanted},
    gateway::{GatewayAddress, GatewayDestination, WeightedWaypoint},
    identity::Identity,
    name::{Hostname, Label, Network, Uid},
    service::{IpFamilies, Mode, Service},
    snapshot::{Addressed, GatewayEnd, Snapshot},
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
    let hop = hop(workload, call, families)?;
    let route = match workload.tunnel {
        Tunnel::None => Route::Plain { to: hop(port) },
        Tunnel::Hbone => Route::Tunnel {
            target: match hop(port) {
                Hop::Address(address) => Target::Ip(address),
                Hop::Name(name, port) => Target::Host(name, port),
            },
            to: hop(HBONE_PORT),
            expect: expected(workload, service.map(|service| &service.subject_alt_names[..])),
        },
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
    let unknown = || Refusal::UnknownWaypoint(name_of(waypoint));
    let (proxy, hop, alt_names) = resolve(mesh, asked, call, waypoint, Purpose::Waypoint, unknown, dice)?;
    if proxy.network != call.source.network {
        let service = service.ok_or(Refusal::NoRoute("only services are reached across networks"))?;
        return to_network(mesh, asked, call, service, proxy, dice);
    }
    let route = Route::Tunnel {
        to: hop.ok_or_else(unknown)?,
        target: Target::Ip(call.to),
        expect: expected(proxy, alt_names),
    };
    Ok(Plan { route, service: service.cloned(), workload: Some(proxy.clone()) })
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
    let gateway = workload
        .network_gateway
        .as_ref()
        .ok_or(Refusal::NoRoute("the endpoint is on another network and names no gateway"))?;
    let unknown = || Refusal::UnknownGateway(name_of(gateway));
    let (instance, hop, alt_names) = resolve(mesh, asked, call, gateway, Purpose::Standard, unknown, dice)?;
    let route = Route::TunnelInTunnel {
        gateway: hop.ok_or_else(unknown)?,
        expect_gateway: expected(instance, alt_names),
        target: Target::Host(service.hostname.clone(), call.to.port()),
        expect: spiffe_names(&service.subject_alt_names).collect(),
    };
    Ok(Plan { route, service: Some(service.clone()), workload: Some(workload.clone()) })
}

/// A gateway reference, resolved: the instance, where to connect (nowhere when it is on another
/// network itself), and further names that it may bear.
type Instance<'s> = (&'s Arc<Workload>, Option<Hop>, Option<&'s [Label]>);

fn resolve<'s>(
    mesh: &'s Snapshot,
    asked: &Asked,
    call: &Call<'_>,
    gateway: &GatewayAddress,
    purpose: Purpose,
    unknown: impl Fn() -> Refusal,
    dice: &mut dyn Dice,
) -> Result<Instance<'s>, Stop> {
    let port = gateway.hbone_mtls_port;
    let Some(end) = mesh.gateway(gateway, &call.source.namespace) else {
        ask(asked, || match &gateway.destination {
            GatewayDestination::Hostname(key) => Missing::Service(key.clone()),
            GatewayDestination::Address(address) => Missing::Address(address.clone()),
        })?;
        return Err(unknown().into());
    };
    let (instance, port, families, alt_names) = match end {
        GatewayEnd::Workload(workload) => (workload, port, IpFamilies::Automatic, None),
        GatewayEnd::Service(service) => {
            let (workload, port) =
                endpoint_of(mesh, call, service, port, purpose, dice).ok_or_else(&unknown)?;
            (workload, port, service.ip_families, Some(&service.subject_alt_names[..]))
        }
    };
    let hop = match &gateway.destination {
        // Named by an address: that very one, whatever the family of the request (protocols 5.4),
        // unless the address is a service's, behind which any instance will do.
        GatewayDestination::Address(address) if instance.addresses.contains(&address.ip) => {
            Some(Hop::Address(SocketAddr::new(address.ip, port)))
        }
        GatewayDestination::Address(_) | GatewayDestination::Hostname(_) => {
            hop(instance, call, families).ok().map(|hop| hop(port))
        }
    };
    Ok((instance, hop, alt_names))
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

/// Where `workload` is connected to, but for the port.
fn hop(workload: &Workload, call: &Call<'_>, families: IpFamilies) -> Result<impl Fn(u16) -> Hop, Refusal> {
    let address = balance::address(workload, call.to.ip(), families);
    if address.is_none() && workload.hostname.is_empty() {
        return Err(Refusal::NoRoute("the endpoint has no address"));
    }
    let name = workload.hostname.clone();
    Ok(move |port| match address {
        Some(ip) => Hop::Address(SocketAddr::new(ip, port)),
        None => Hop::Name(name.clone(), port),
    })
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

fn expected(workload: &Workload, alt_names: Option<&[Label]>) -> Arc<[Identity]> {
    workload.accepted_identities(alt_names.unwrap_or_default())
}

/// Those of a service's alternative names that are SPIFFE identities; others name nobody here.
fn spiffe_names(names: &[Label]) -> impl Iterator<Item = Identity> {
    names.iter().filter_map(|name| name.as_str().parse().ok())
}

fn name_of(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    }
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
