//! One connection to one pod, from what it asks for to the application's socket.
//!
//! Whoever comes takes this way: a stream of a tunnel, and a neighbour on the same node.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_model::{
    address::{NetworkAddress, Target},
    identity::Identity,
    name::{Hostname, Network},
    snapshot::Snapshot,
    workload::Workload,
};
use ambit_wire::hbone::headers::Baggage;
use tokio::net::TcpStream;

use super::{
    deliver::deliver,
    plan::{self, Delivery, Request},
};
use crate::{
    access::{Opened, Party, Record, refused_early},
    metrics::Direction,
    permit::{Caller, Permit},
    pods::Pod,
    refusal::Refusal,
};

/// What comes.
#[derive(Clone, Debug)]
pub struct Arriving {
    /// Who calls, with the identity that was proven.
    pub caller: Caller,
    /// The workload that calls, when that is known already.
    pub source: Option<Arc<Workload>>,
    /// What is asked for.
    pub target: Target,
    /// The address at which it came.
    pub at: SocketAddr,
    /// The service that the client says it means.
    pub forwarded_host: Option<Hostname>,
}

/// What arrived: let in and connected. Whoever copies opens the record, and closes it.
#[derive(Debug)]
pub struct Arrived {
    /// The right to go on.
    pub permit: Permit,
    /// What is to be recorded.
    pub opened: Opened,
    /// The application.
    pub app: TcpStream,
    /// How it was delivered.
    pub delivery: Delivery,
}

/// Decides, authorizes and connects. What is refused is recorded here.
pub async fn arrive(pod: &Pod, workload: &Arc<Workload>, arriving: Arriving) -> Result<Arrived, Refusal> {
    let metrics = &pod.tunnel.metrics;
    let delivery = match decide(pod, workload, &arriving) {
        Ok(delivery) => delivery,
        Err(refusal) => {
            let source = arriving.caller.address;
            refused_early(metrics, Direction::Inbound, source, arriving.at, &refusal);
            return Err(refusal);
        }
    };
    let opened = opened(pod, workload, &arriving, &delivery);
    match admit(pod, workload, arriving.caller, &delivery).await {
        Ok((permit, app)) => Ok(Arrived { permit, opened, app, delivery }),
        Err(refusal) => {
            Record::open(metrics, opened).close(Err(&refusal));
            Err(refusal)
        }
    }
}

/// Judges and connects.
pub async fn admit(
    pod: &Pod,
    workload: &Workload,
    caller: Caller,
    delivery: &Delivery,
) -> Result<(Permit, TcpStream), Refusal> {
    let client = caller.address.ip();
    let permit = Permit::check(pod, workload, caller, delivery.destination)?;
    let app = permit.while_held(deliver(&permit, pod, delivery, client)).await.and_then(|app| app)?;
    Ok((permit, app))
}

fn decide(pod: &Pod, workload: &Workload, arriving: &Arriving) -> Result<Delivery, Refusal> {
    let settings = &pod.tunnel.settings;
    let request = Request {
        local: workload,
        local_ip: arriving.at.ip(),
        network: &settings.network,
        target: &arriving.target,
        own_ports: &settings.own_ports,
        tunnel_to_localhost: settings.tunnel_to_localhost,
    };
    plan::inbound(&pod.tunnel.mesh.current(), &request)
}

fn opened(pod: &Pod, workload: &Arc<Workload>, arriving: &Arriving, delivery: &Delivery) -> Opened {
    let mesh = pod.tunnel.mesh.current();
    let Caller { address, identity } = &arriving.caller;
    let host = arriving.forwarded_host.as_ref().map(Hostname::as_str);
    let port = delivery.destination.port();
    let source = arriving.source.clone();
    Opened {
        direction: Direction::Inbound,
        source: Party {
            addr: *address,
            workload: source.or_else(|| {
                caller_at(&mesh, &pod.tunnel.settings.network, address.ip(), identity.as_ref()).cloned()
            }),
            identity: identity.clone(),
        },
        destination: Party {
            addr: arriving.at,
            workload: Some(workload.clone()),
            identity: identity.as_ref().map(|_| workload.identity()),
        },
        hbone_addr: Some(arriving.target.clone()),
        service: plan::service_for_telemetry(&mesh, workload, host, port).cloned(),
        mutual_tls: identity.is_some(),
    }
}

/// The workload at a caller's address, unless it proved to be somebody else.
pub fn caller_at<'s>(
    mesh: &'s Snapshot,
    network: &Network,
    ip: IpAddr,
    identity: Option<&Identity>,
) -> Option<&'s Arc<Workload>> {
    let there = mesh.workload_at(&NetworkAddress::new(network.clone(), ip))?;
    identity.is_none_or(|identity| *identity == there.identity()).then_some(there)
}

/// What a tunnel of another network tells about the pod at its end, whose address is not seen here.
pub fn workload_from_baggage(baggage: Baggage, network: Network, identity: Option<&Identity>) -> Workload {
    let Baggage {
        cluster,
        namespace,
        workload_type,
        workload_name,
        canonical_name,
        canonical_revision,
        region,
        zone,
    } = baggage;
    Workload {
        name: workload_name.clone(),
        namespace,
        cluster,
        workload_type,
        workload_name,
        canonical_name,
        canonical_revision,
        network,
        service_account: identity.map(|identity| identity.service_account.clone()).unwrap_or_default(),
        locality: ambit_model::workload::Locality { region, zone, subzone: Default::default() },
        ..Workload::default()
    }
}

/// How a workload is described to the other side of a tunnel.
pub fn baggage_of(workload: &Workload) -> Baggage {
    Baggage {
        cluster: workload.cluster.clone(),
        namespace: workload.namespace.clone(),
        workload_type: workload.workload_type,
        workload_name: workload.workload_name.clone(),
        canonical_name: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        region: workload.locality.region.clone(),
        zone: workload.locality.zone.clone(),
    }
}
