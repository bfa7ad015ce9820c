//! The same story for traffic that came without a tunnel: nobody is identified (protocols 5.7).

use std::{net::SocketAddr, sync::Arc};

use ambit_model::address::canonical;
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
    story,
};

/// Serves one connection that was redirected here.
pub async fn serve(pod: Arc<Pod>, client: TcpStream) {
    let (Ok(address), Ok(destination)) = (client.peer_addr().map(canonical), original_destination(&client))
    else {
        return;
    };
    let metrics = &pod.tunnel.metrics;
    let _socket = metrics.socket(Direction::Inbound);
    if pod.tunnel.settings.own_ports.contains(&destination.port()) {
        let refusal = Refusal::Recursive(destination.port());
        return refused_early(metrics, Direction::Inbound, address, destination, &refusal);
    }
    let Some((permit, record, app)) = Box::pin(receive(&pod, address, destination)).await else { return };
    // Seen from the application: what it sends goes to the client.
    let copied = permit.while_held(copy::both_ways(app, client, record.meter())).await;
    record.close(story::outcome(&copied).as_ref().map_or(Ok(()), Err));
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
