//! Connects to the application, for whoever shows a [`Permit`].

use std::net::IpAddr;

use tokio::net::TcpStream;

use super::plan::Delivery;
use crate::{
    permit::Permit,
    pods::{Pod, Unreached},
    refusal::Refusal,
    socket::Reach,
};

/// Connects to the application as `delivery` says, as if from `client`.
pub async fn deliver(
    _permit: &Permit,
    pod: &Pod,
    delivery: &Delivery,
    client: IpAddr,
) -> Result<TcpStream, Refusal> {
    // A pod that calls itself already has the address; binding it would take the port's other end.
    let keeps = delivery.keep_source && pod.transparent && client != delivery.dial.ip();
    // An application of one family cannot answer a client of the other.
    let keeps = keeps && client.is_ipv4() == delivery.dial.is_ipv4();
    let connected = if keeps {
        pod.connect_as(client, delivery.dial).await
    } else {
        pod.connect(delivery.dial, Reach::Pod).await
    };
    connected.map_err(Unreached::of_application)
}
