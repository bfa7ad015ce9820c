//! Incoming connections: accepts tunnels, and tells the story of one stream.

pub mod arrive;
pub mod deliver;
pub mod plaintext;
pub mod plan;

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{address::canonical, identity::Identity};
use ambit_runtime::{drain::Watch, task};
use ambit_wire::{
    copy,
    hbone::{self, Incoming, headers, server::Served},
    proxy_protocol,
    tls::{
        handshake::{self, HandshakeError},
        rejected::Rejected,
        revoked::Revocation,
        secured::Secured,
    },
};
use arrive::{Arrived, Arriving, arrive};
use http::StatusCode;
use rustls_pki_types::CertificateDer;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    access::{Record, refused_early},
    metrics::Direction,
    permit::Caller,
    pods::Pod,
    refusal::Refusal,
    story::{self, Carrying, Story},
};

/// The accepting side of TLS.
type ServerTls = Secured<TcpStream>;

/// Everything that comes to one pod through tunnels, on one worker.
#[derive(Debug)]
pub struct Inbound {
    pod: Arc<Pod>,
}

/// The other end of an accepted tunnel.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    at: SocketAddr,
    identity: Option<Identity>,
}

impl Inbound {
    /// The tunnels of `pod`.
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self { pod })
    }

    /// Serves one tunnel until it ends; when `drain` is signaled, its streams finish first.
    pub async fn serve(self: Arc<Self>, tcp: TcpStream, drain: Watch) {
        let (Ok(address), Ok(at)) = (tcp.peer_addr().map(canonical), tcp.local_addr().map(canonical)) else {
            // The peer has reset it already (protocols 12, line 3).
            return;
        };
        let _socket = self.pod.tunnel.metrics.socket(Direction::Inbound);
        let (tls, chain, peer) = match Box::pin(self.welcome(tcp, address, at)).await {
            Ok(welcomed) => welcomed,
            Err(refusal) => {
                let metrics = &self.pod.tunnel.metrics;
                if matches!(refusal, Refusal::Revoked(_)) {
                    metrics.revoked(Direction::Inbound);
                }
                return refused_early(metrics, Direction::Inbound, address, at, &refusal);
            }
        };
        let peer = Arc::new(peer);
        let on_connect = |incoming| {
            task::spawn("inbound stream", Story::new(self.clone().stream(incoming, peer.clone())));
        };
        let draining = async {
            drain.signaled().await;
        };
        let revocation = &self.pod.tunnel.revocation;
        let cut = async {
            tokio::select! {
                () = drain.forced() => {}
                () = until_revoked(revocation, &chain) => {
                    self.pod.tunnel.metrics.revoked(Direction::Inbound);
                    tracing::warn!(src.addr = %peer.address, "Tunnel ended: its certificate was revoked");
                }
            }
        };
        match hbone::serve(tls, &self.pod.tunnel.settings.hbone, on_connect, draining, cut).await {
            Ok(Served::Closed | Served::Cut) => {}
            Ok(Served::Silent) => tracing::debug!(src.addr = %address, "Tunnel peer went silent"),
            Err(error) => tracing::debug!(src.addr = %address, error = %error, "Tunnel ended"),
        }
    }

    /// The TLS handshake: who are we, and who is it.
    async fn welcome(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        at: SocketAddr,
    ) -> Result<(ServerTls, Vec<CertificateDer<'static>>, Peer), Refusal> {
        let limits = self.pod.tunnel.settings.limits;
        let _turn = self.pod.handshakes.try_acquire().map_err(|_| Refusal::Overload {
            what: "TLS handshakes of this pod",
            limit: limits.handshakes_per_pod,
        })?;
        let local = self.pod.workload().await?;
        let certificate = self.pod.certificate(&local).await?;
        let (tls, identity) = handshake::accept(certificate.server_config(), tcp, limits.handshake)
            .await
            .map_err(|error| tls_refusal(address, &error))?;
        let chain = tls.session().peer.clone();
        Ok((tls, chain, Peer { address, at, identity }))
    }

    /// One stream: what does it ask for, may it, deliver, copy.
    async fn stream(self: Arc<Self>, incoming: Incoming, peer: Arc<Peer>) -> Option<Carrying> {
        let (arrived, tunnel) = self.answer(incoming, &peer).await?;
        let Arrived { permit, opened, app, .. } = arrived;
        let record = Record::open(&self.pod.tunnel.metrics, opened);
        let copying = copy::both_ways(app, tunnel, record.meter());
        Some(story::carry(copying, permit.into(), record, ()))
    }

    async fn answer(&self, incoming: Incoming, peer: &Peer) -> Option<(Arrived, hbone::TunnelStream)> {
        // Whatever changed since the tunnel was accepted: the workload of now, if there still is one.
        let asked = match self.arriving(&incoming, peer) {
            Ok(arriving) => self.pod.workload().await.map(|local| (arriving, local)),
            Err(refusal) => Err(refusal),
        };
        let arrived = match asked {
            Ok((arriving, local)) => {
                arrive(&self.pod, &local, arriving).await.map(|arrived| (arrived, local))
            }
            Err(refusal) => {
                let metrics = &self.pod.tunnel.metrics;
                refused_early(metrics, Direction::Inbound, peer.address, peer.at, &refusal);
                Err(refusal)
            }
        };
        let (mut arrived, local) = match arrived {
            Ok(arrived) => arrived,
            Err(refusal) => {
                let status =
                    StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                if let Err(error) = incoming.refuse(status) {
                    tracing::debug!(src.addr = %peer.address, error = %error, "Refusal could not be sent");
                }
                return None;
            }
        };
        let baggage = self.pod.tunnel.settings.response_baggage.then(|| arrive::baggage_of(&local).header());
        let accepted = incoming.accept(baggage.flatten()).map_err(|error| error.to_string());
        let handed = match (accepted, arrived.delivery.proxy_header) {
            (Ok(stream), Some(named)) => {
                let header = proxy_protocol::header(peer.address, named, peer.identity.as_ref());
                arrived.app.write_all(&header).await.map(|()| stream).map_err(|error| error.to_string())
            }
            (accepted, None) | (accepted @ Err(_), Some(_)) => accepted,
        };
        match handed {
            Ok(stream) => Some((arrived, stream)),
            Err(error) => {
                let record = Record::open(&self.pod.tunnel.metrics, arrived.opened);
                record.close(Err(&Refusal::Broken(error)));
                None
            }
        }
    }

    fn arriving(&self, incoming: &Incoming, peer: &Peer) -> Result<Arriving, Refusal> {
        if incoming.method != http::Method::CONNECT {
            return Err(Refusal::NotConnect(incoming.method.to_string()));
        }
        let target = incoming.authority.clone().map_err(|error| Refusal::BadAuthority(error.to_string()))?;
        let network = &self.pod.tunnel.settings.network;
        let foreign = headers::forwarded_network(&incoming.headers).filter(|other| other != network);
        let source = foreign.map(|other| {
            let baggage = headers::Baggage::read(&incoming.headers);
            Arc::new(arrive::workload_from_baggage(baggage, other, peer.identity.as_ref()))
        });
        Ok(Arriving {
            caller: Caller { address: peer.address, identity: peer.identity.clone() },
            source,
            target,
            at: peer.at,
            forwarded_host: headers::forwarded_host(&incoming.headers),
        })
    }
}

fn tls_refusal(with: SocketAddr, error: &HandshakeError) -> Refusal {
    match error {
        HandshakeError::Rejected(Rejected::Revoked) => Refusal::Revoked(with.to_string()),
        HandshakeError::Rejected(_)
        | HandshakeError::TooSlow(_)
        | HandshakeError::NotHttp2
        | HandshakeError::Io(_) => Refusal::Tls { with, reason: error.to_string() },
    }
}

/// Resolves when a certificate of `chain` is on a revocation list that came into force.
async fn until_revoked(revocation: &Revocation, chain: &[CertificateDer<'static>]) {
    let Revocation::Loaded(lists) = revocation else { return std::future::pending().await };
    let mut changes = lists.changes();
    loop {
        // Marked as seen before looking, so that a list loaded in between is looked at again.
        changes.borrow_and_update();
        if lists.is_revoked(chain) {
            return;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
