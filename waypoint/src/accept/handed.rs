//! Accepts what the pod's ztunnel hands over, where that ends tunnels in place of the waypoint (protocols 4.8, 4.10).
//!
//! A PROXY header says who calls and proves nothing, so it counts who can have sent it: the listener is bound to loopback
//! addresses alone, which nobody outside the pod's network namespace reaches, neither directly nor through the ztunnel's
//! way for plaintext, which goes on to the pod's own address (`docs/decisions/0028-proxy-binding.md`).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_model::address::{Target, canonical};
use ambit_runtime::drain::Watch;
use ambit_wire::proxy_protocol::{self, Introduction};
use tokio::net::TcpStream;

use super::Accept;
use crate::{access::refused_early, near, refusal::Refusal, request::Tunnel};

/// How clients come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Through tunnels that end here, at this address.
    Tunnels(SocketAddr),
    /// Through the pod's ztunnel, which hands them over at this port of the loopback addresses.
    Handed {
        /// The port.
        port: u16,
        /// Whether at that of IPv6, too.
        ipv6: bool,
    },
}

impl Listen {
    /// The addresses to listen at.
    pub fn addresses(self) -> Vec<SocketAddr> {
        match self {
            Self::Tunnels(address) => vec![address],
            Self::Handed { port, ipv6 } => {
                let v6 = ipv6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
                let all = std::iter::once(IpAddr::V4(Ipv4Addr::LOCALHOST)).chain(v6);
                all.map(|ip| SocketAddr::new(ip, port)).collect()
            }
        }
    }

    /// Whether a connection of this process to `to` would be taken for one of the ztunnel. The kernel takes the unspecified
    /// address for loopback, too.
    pub fn is_own(self, to: SocketAddr) -> bool {
        match self {
            // There everybody has to prove who it is.
            Self::Tunnels(_) => false,
            Self::Handed { port, .. } => {
                let ip = canonical(to).ip();
                to.port() == port && (ip.is_loopback() || ip.is_unspecified())
            }
        }
    }
}

impl Accept {
    /// Serves one connection until it ends.
    pub async fn serve_handed(self: Arc<Self>, mut tcp: TcpStream, drain: Watch) {
        let Ok(peer) = tcp.peer_addr().map(canonical) else {
            // The peer has reset it already (protocols 12, line 3).
            return;
        };
        let shared = self.proxy.shared().clone();
        let limits = shared.settings.limits;
        let Ok(_place) = shared.connections.clone().try_acquire_owned() else {
            let refusal = Refusal::Overload { what: "streams", limit: limits.connections };
            refused_early(&shared.records, peer, None, &refusal);
            return near::abort(tcp);
        };
        let told = match introduced(&mut tcp, peer, limits.handshake).await {
            Ok(told) => told,
            Err(refusal) => {
                refused_early(&shared.records, peer, None, &refusal);
                return near::abort(tcp);
            }
        };
        let Introduction { client, destination, identity } = told;
        let target = Target::Ip(destination);
        let tunnel: Tunnel = match self.find(&target, client, identity).await {
            Ok(tunnel) => tunnel,
            Err(refusal) => {
                refused_early(&shared.records, client, Some(&target), &refusal);
                return near::abort(tcp);
            }
        };
        shared.metrics.streams.inc();
        let carried = self.carry(near::Near::Handed(tcp), Arc::new(tunnel), drain.clone());
        tokio::select! {
            () = carried => {}
            // As when a tunnel is cut: with it go its streams.
            () = drain.forced() => {}
        }
        shared.metrics.streams.dec();
    }
}

/// Who calls whom, as the ztunnel says. From elsewhere it would not be believed.
async fn introduced(
    tcp: &mut TcpStream,
    peer: SocketAddr,
    limit: std::time::Duration,
) -> Result<Introduction, Refusal> {
    if !peer.ip().is_loopback() {
        return Err(Refusal::NotIntroduced("it comes from outside of the loopback addresses".to_owned()));
    }
    let read = proxy_protocol::read(tcp, limit).await;
    read.map_err(|error| Refusal::NotIntroduced(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_believed_without_proof_can_only_come_from_the_pod() {
        let handed = Listen::Handed { port: 15088, ipv6: true };
        assert!(handed.addresses().iter().all(|address| address.ip().is_loopback()));
        assert_eq!(handed.addresses().len(), 2);
        assert_eq!(Listen::Handed { port: 15088, ipv6: false }.addresses().len(), 1);
    }

    #[test]
    fn its_own_connections_do_not_lead_there() {
        let handed = Listen::Handed { port: 15088, ipv6: true };
        let table = [
            ("127.0.0.1:15088", true),
            ("127.1.2.3:15088", true),
            ("[::1]:15088", true),
            ("0.0.0.0:15088", true),
            ("[::]:15088", true),
            ("[::ffff:127.0.0.1]:15088", true),
            ("127.0.0.1:8080", false),
            ("10.0.0.1:15088", false),
        ];
        for (to, expected) in table {
            let to = to.parse().expect("an address");
            assert_eq!(handed.is_own(to), expected, "{to}");
            assert!(!Listen::Tunnels(to).is_own(to));
        }
    }
}
