//! Decides what a stream of an incoming tunnel asks for. Pure.
//!
//! The pod is the one in whose namespace the tunnel was accepted, never looked up by address
//! (protocols 5.6); whatever asks for something else than this pod is refused.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_model::{
    address::{NetworkAddress, Target},
    name::Network,
    service::{Service, TargetPort},
    snapshot::{Addressed, Snapshot},
    workload::{ApplicationProtocol, Workload},
};

use crate::refusal::Refusal;

/// What a stream asks for, and of whom.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The pod that the tunnel ends at.
    pub local: &'a Workload,
    /// The address at which the tunnel was accepted.
    pub local_ip: IpAddr,
    /// The network of this tunnel.
    pub network: &'a Network,
    /// The authority of the CONNECT.
    pub target: &'a Target,
    /// The ports of the tunnel itself, where nothing may be delivered.
    pub own_ports: &'a [u16],
    /// Whether application tunnels end at the loopback address (`LOCALHOST_APP_TUNNEL`).
    pub tunnel_to_localhost: bool,
}

/// How a stream is handed to the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The application's address and port: what policies judge.
    pub destination: SocketAddr,
    /// Where the socket is connected to.
    pub dial: SocketAddr,
    /// Whether that socket bears the client's address.
    pub keep_source: bool,
    /// The destination that a PROXY header names, when there is to be one.
    pub proxy_header: Option<SocketAddr>,
}

/// Decides how `request` is delivered, or why not.
pub fn inbound(mesh: &Snapshot, request: &Request<'_>) -> Result<Delivery, Refusal> {
    let port = match request.target {
        Target::Ip(address) => {
            validate(mesh, request, *address)?;
            address.port()
        }
        Target::Host(..) => service_port(mesh, request)?,
    };
    if request.own_ports.contains(&port) {
        return Err(Refusal::Recursive(port));
    }
    let tunnel = request.local.application_tunnel;
    let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    let destination = SocketAddr::new(request.local_ip, port);
    let plain = Delivery { destination, dial: destination, keep_source: true, proxy_header: None };
    match tunnel.map(|tunnel| tunnel.protocol) {
        Some(ApplicationProtocol::Proxy) => {
            let named = proxied_destination(mesh, request)?;
            let localhost = request.tunnel_to_localhost;
            let dial =
                if localhost { SocketAddr::new(loopback(request.local_ip), port) } else { destination };
            Ok(Delivery { dial, keep_source: !localhost, proxy_header: Some(named), ..plain })
        }
        Some(ApplicationProtocol::None) | None => Ok(plain),
    }
}

/// Whether a CONNECT for `asked` is for this pod (protocols 5.6, step 4).
fn validate(mesh: &Snapshot, request: &Request<'_>, asked: SocketAddr) -> Result<(), Refusal> {
    if asked.ip() == request.local_ip || request.local.application_tunnel.is_some() {
        return Ok(());
    }
    let address = NetworkAddress::new(request.network.clone(), asked.ip());
    let from = &request.local.namespace;
    let serves = |waypoint| mesh.stands_behind(request.local, waypoint, from);
    let served = match mesh.addressed(&address, from) {
        Some(Addressed::Workload(workload)) => workload.waypoint.as_deref().is_some_and(serves),
        Some(Addressed::Service(service)) => {
            let weighted = service.weighted_waypoints.iter().map(|one| &one.destination);
            service.waypoint.iter().chain(weighted).any(serves)
        }
        None => false,
    };
    let local = SocketAddr::new(request.local_ip, asked.port());
    if served { Ok(()) } else { Err(Refusal::IpMismatch { asked, local }) }
}

/// The application's port behind a service named by host name.
fn service_port(mesh: &Snapshot, request: &Request<'_>) -> Result<u16, Refusal> {
    let not_served = || Refusal::NotServed(request.target.clone());
    let port = request.target.port();
    let service = named_service(mesh, request).ok_or_else(not_served)?;
    let own = mesh.endpoint(&service.key(), &request.local.uid).and_then(|endpoint| endpoint.ports.get(port));
    let target = own.filter(|target| *target != TargetPort::Named).or_else(|| service.ports.get(port));
    match target {
        Some(TargetPort::Number(port)) => Ok(port),
        Some(TargetPort::Named) | None => Err(not_served()),
    }
}

/// What a PROXY header says was asked for; a host name is spelled as a virtual address of the
/// service, of the own network and of IPv4 where there is a choice (protocols 4.8).
fn proxied_destination(mesh: &Snapshot, request: &Request<'_>) -> Result<SocketAddr, Refusal> {
    let port = match request.target {
        Target::Ip(address) => return Ok(*address),
        Target::Host(_, port) => *port,
    };
    let vips = named_service(mesh, request).map(|service| &service.vips[..]).unwrap_or_default();
    vips.iter()
        .max_by_key(|vip| (vip.network == *request.network, vip.ip.is_ipv4()))
        .map(|vip| SocketAddr::new(vip.ip, port))
        .ok_or_else(|| Refusal::NotServed(request.target.clone()))
}

fn named_service<'s>(mesh: &'s Snapshot, request: &Request<'_>) -> Option<&'s Arc<Service>> {
    match request.target {
        Target::Ip(_) => None,
        Target::Host(hostname, _) => mesh.service_named(hostname, &request.local.namespace),
    }
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The service that a connection to `local` is counted for: the one the client names if the pod is
/// in it, else the first that leads to this port (protocols 5.6).
pub fn service_for_telemetry<'s>(
    mesh: &'s Snapshot,
    local: &Workload,
    forwarded_host: Option<&str>,
    port: u16,
) -> Option<&'s Arc<Service>> {
    let of_pod = || local.services.iter();
    let named = forwarded_host.and_then(|host| of_pod().find(|(key, _)| key.hostname == *host));
    let leads_here = |service: &Service, own: &ambit_model::service::PortMap| {
        service.ports.iter().any(|(service_port, target)| {
            let target = own.get(service_port).filter(|own| *own != TargetPort::Named).unwrap_or(target);
            target == TargetPort::Number(port)
        })
    };
    named.and_then(|(key, _)| mesh.service(key)).or_else(|| {
        of_pod()
            .filter_map(|(key, own)| mesh.service(key).map(|service| (service, own)))
            .find(|(service, own)| leads_here(service, own))
            .map(|(service, _)| service)
    })
}

#[cfg(test)]
mod tests;
