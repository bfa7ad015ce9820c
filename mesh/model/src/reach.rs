//! How what is not reached directly is reached: a proxy that something names (protocols 5.4), and a workload of another
//! network (protocols 4.9). Pure but for the dice.
//!
//! Tunnels and waypoints ask the same questions here, so that a service is reached alike with a waypoint and without.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    address::Target,
    balance::{self, Caller, Dice, Purpose, Wanted},
    gateway::{GatewayAddress, GatewayDestination},
    identity::Identity,
    name::{Namespace, Uid},
    service::{IpFamilies, Service},
    snapshot::{GatewayEnd, Snapshot},
    workload::Workload,
};

/// Who asks the way.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Where it is.
    pub caller: Caller<'a>,
    /// Its namespace, which decides between services of one address.
    pub namespace: &'a Namespace,
    /// The address that it asks for, whose family is preferred.
    pub asked: IpAddr,
    /// Workloads that could not be reached a moment ago.
    pub tried: &'a [Uid],
}

/// One instance of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance<'s> {
    /// The instance.
    pub workload: &'s Arc<Workload>,
    /// Where its tunnels are, to be connected to or to be resolved; `None`: it has neither address nor name, as one on
    /// another network may.
    pub at: Option<Target>,
    /// Who it may be: itself, or whom the service names that it stands behind.
    pub expected: Arc<[Identity]>,
}

/// The way to a workload of another network: a tunnel to that network's gateway, in it one to the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Across {
    /// The gateway's tunnel.
    pub gateway: Target,
    /// Who the gateway may be.
    pub expected_gateway: Arc<[Identity]>,
    /// What is asked of both ends: the service, by the name and the port by which the other network knows it.
    pub target: Target,
    /// Who may be at the inner end. There only the service's own names count: which of its workloads it is, the gateway
    /// decides.
    pub expected: Arc<[Identity]>,
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay<'a> {
    /// The workload is on another network, and names no gateway.
    NoGateway,
    /// Nobody is known by this reference. The control plane may know more.
    Unknown(&'a GatewayAddress),
    /// It is known, and no instance of it can be connected to.
    NoInstance(&'a GatewayAddress),
}

/// The instance of a proxy that `gateway` names.
pub fn instance<'s>(
    mesh: &'s Snapshot,
    gateway: &'s GatewayAddress,
    purpose: Purpose,
    asker: &Asker<'_>,
    dice: &mut dyn Dice,
) -> Result<Instance<'s>, NoWay<'s>> {
    let port = gateway.hbone_mtls_port;
    let end = mesh.gateway(gateway, asker.namespace).ok_or(NoWay::Unknown(gateway))?;
    let (workload, port, families, names) = match end {
        GatewayEnd::Workload(workload) => (workload, port, IpFamilies::Automatic, &[][..]),
        GatewayEnd::Service(service) => {
            let wanted = Wanted::of(service, port, purpose, asker.caller);
            let tried = |workload: &Workload| asker.tried.contains(&workload.uid);
            let endpoints = mesh.endpoints(&service.key());
            let pick = endpoints.and_then(|endpoints| balance::pick(&wanted, endpoints, &tried, dice));
            let pick = pick.ok_or(NoWay::NoInstance(gateway))?;
            (&pick.endpoint.workload, pick.port, service.ip_families, &service.subject_alt_names[..])
        }
    };
    let at = match &gateway.destination {
        // Named by an address: that very one, whatever the family of the request (protocols 5.4),
        // unless the address is a service's, behind which any instance will do.
        GatewayDestination::Address(address) if workload.addresses.contains(&address.ip) => {
            Some(Target::Ip(SocketAddr::new(address.ip, port)))
        }
        GatewayDestination::Address(_) | GatewayDestination::Hostname(_) => {
            place(workload, port, asker.asked, families)
        }
    };
    Ok(Instance { workload, at, expected: workload.accepted_identities(names) })
}

/// The way to `workload`, an endpoint of `service` for `port` of it, which is on another network than the asker.
///
/// On which network the gateway itself is said to be makes no difference: it is there to be reached from others.
pub fn across<'s>(
    mesh: &'s Snapshot,
    workload: &'s Workload,
    (service, port): (&Service, u16),
    asker: &Asker<'_>,
    dice: &mut dyn Dice,
) -> Result<Across, NoWay<'s>> {
    let gateway = workload.network_gateway.as_deref().ok_or(NoWay::NoGateway)?;
    let instance = instance(mesh, gateway, Purpose::Standard, asker, dice)?;
    let names = service.subject_alt_names.iter();
    Ok(Across {
        gateway: instance.at.ok_or(NoWay::NoInstance(gateway))?,
        expected_gateway: instance.expected,
        target: Target::Host(service.hostname.clone(), port),
        expected: names.filter_map(|name| name.as_str().parse().ok()).collect(),
    })
}

/// Where `port` of a workload is for who asks for `asked`: an address, else a name that is to be resolved.
pub fn place(workload: &Workload, port: u16, asked: IpAddr, families: IpFamilies) -> Option<Target> {
    let address = balance::address(workload, asked, families);
    let named = || (!workload.hostname.is_empty()).then(|| Target::Host(workload.hostname.clone(), port));
    address.map(|ip| Target::Ip(SocketAddr::new(ip, port))).or_else(named)
}
