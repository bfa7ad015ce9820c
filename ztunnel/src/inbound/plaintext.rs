//! The same story for traffic that came without a tunnel: nobody is identified (protocols 5.7).

use std::{net::SocketAddr, sync::Arc};

use ambit_model::address::canonical;
use ambit_runtime::drain::Watch;
use ambit_wire::copy;
use tokio::net::TcpStream;

use super::{
    arrive::{admit, caller_at},
    plan::{Delivery, service_for_telemetry},
};
use crate::{
    access::{Opened, Party, Record, refused_early},
    metrics::Direction,
    permit::{Caller, Permit},
    pods::Pod,
    refusal::Refusal,
    socket::original_destination,
    story::{self, Carrying, Story},
};

/// Serves one connection that was redirected here; `held` has the drain wait for it.
pub fn serve(pod: Arc<Pod>, client: TcpStream, held: Watch) -> impl Future<Output = ()> {
    Story::new(begin(pod, client, held))
}

async fn begin(pod: Arc<Pod>, client: TcpStream, held: Watch) -> Option<Carrying> {
    let (Ok(address), Ok(destination)) = (client.peer_addr().map(canonical), original_destination(&client))
    else {
        // The client has reset it already (protocols 12, line 3).
        return None;
    };
    let metrics = &pod.tunnel.metrics;
    let guard = (metrics.socket(Direction::Inbound), held);
    if pod.tunnel.settings.own_ports.contains(&destination.port()) {
        let refusal = Refusal::Recursive(destination.port());
        refused_early(metrics, Direction::Inbound, address, destination, &refusal);
        return None;
    }
    let (permit, record, app) = receive(&pod, address, destination).await?;
    // Seen from the application: what it sends goes to the client.
    let copying = copy::both_ways(app, client, record.meter());
    Some(story::carry(copying, permit.into(), record, guard))
}

async fn receive(
    pod: &Pod,
    client: SocketAddr,
    destination: SocketAddr,
) -> Option<(Permit, Record, TcpStream)> {
    let metrics = &pod.tunnel.metrics;
    let workload = match pod.workload().await {
        Ok(workload) => workload,
        Err(refusal) => {
            refused_early(metrics, Direction::Inbound, client, destination, &refusal);
            return None;
        }
    };
    let mesh = pod.tunnel.mesh.current();
    let record = Record::open(
        metrics,
        Opened {
            direction: Direction::Inbound,
            source: Party {
                addr: client,
                workload: caller_at(&mesh, &pod.tunnel.settings.network, client.ip(), None).cloned(),
                identity: None,
            },
            destination: Party { addr: destination, workload: Some(workload.clone()), identity: None },
            hbone_addr: None,
            service: service_for_telemetry(&mesh, &workload, None, destination.port()).cloned(),
            mutual_tls: false,
        },
    );
    let caller = Caller { address: client, identity: None };
    let delivery = Delivery { destination, dial: destination, keep_source: true, proxy_header: None };
    match admit(pod, &workload, caller, &delivery).await {
        Ok((permit, app)) => Some((permit, record, app)),
        Err(refusal) => {
            record.close(Err(&refusal));
            None
        }
    }
}
