//! Connections below HTTP: a stream of a tunnel to the endpoint, or a plain connection where it has no tunnel.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_model::{
    address::Target,
    balance,
    identity::Identity,
    service::{IpFamilies, Service},
    workload::{Tunnel, Workload},
};
use ambit_runtime::task;
use ambit_wire::{
    hbone::{
        self, Connect, Connection, Key, OpenError, Pool, TunnelStream,
        headers::{self, Baggage},
        pool::PoolError,
    },
    spawn::Spawner,
    tls::{
        handshake::{self, HandshakeError},
        rejected::Rejected,
    },
};
use http::HeaderMap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpStream, time::timeout};

use crate::{refusal::Refusal, shared::Shared};

/// Where tunnels of pods listen (protocols 4.1).
const HBONE_PORT: u16 = 15008;

/// Where a connection goes, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hop {
    /// A plain connection.
    Plain(SocketAddr),
    /// A stream of a tunnel to the endpoint's own address.
    Tunnel {
        /// The application.
        to: SocketAddr,
        /// Who may be at the other end.
        expected: Arc<[Identity]>,
    },
}

impl Hop {
    /// The way to `port` of `workload`, an endpoint of `service`. Pure.
    pub fn to(workload: &Workload, service: Option<&Service>, port: u16, asked: SocketAddr) -> Option<Self> {
        let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
        let to = SocketAddr::new(balance::address(workload, asked.ip(), families)?, port);
        Some(match workload.tunnel {
            Tunnel::Hbone => {
                let names = service.map(|service| &service.subject_alt_names[..]).unwrap_or_default();
                Self::Tunnel { to, expected: workload.accepted_identities(names) }
            }
            Tunnel::None => Self::Plain(to),
        })
    }

    /// The application's address.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Plain(to) | Self::Tunnel { to, .. } => *to,
        }
    }
}

/// What is at the other end.
#[derive(Debug)]
pub enum Onward {
    /// A plain connection.
    Plain(TcpStream),
    /// A stream of a tunnel.
    Tunnel(TunnelStream),
}

/// Connects for one worker.
#[derive(Debug)]
pub struct Dial {
    shared: Arc<Shared>,
    tunnels: Pool<Refusal>,
    spawner: Spawner,
}

impl Dial {
    /// A dialler without any connection yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        let spawner = Spawner::new(|name, task| {
            task::spawn(name, task);
        });
        Self { tunnels: Pool::new(shared.settings.spread), shared, spawner }
    }

    /// The tunnels that are open.
    pub fn tunnels(&self) -> &Pool<Refusal> {
        &self.tunnels
    }

    /// Connects to `hop`.
    /// No longer than `limit`; `None`: than is usual.
    pub async fn connect(&self, hop: &Hop, limit: Option<Duration>) -> Result<Onward, Refusal> {
        let limit = limit.unwrap_or(self.shared.settings.limits.connect);
        match hop {
            Hop::Plain(to) => self.tcp(*to, limit).await.map(Onward::Plain),
            Hop::Tunnel { to, expected } => self.tunnel(*to, expected, limit).await.map(Onward::Tunnel),
        }
    }

    async fn tunnel(
        &self,
        to: SocketAddr,
        expected: &Arc<[Identity]>,
        limit: Duration,
    ) -> Result<TunnelStream, Refusal> {
        let key = Key {
            source: self.shared.settings.identity.clone(),
            expected: expected.clone(),
            to: SocketAddr::new(to.ip(), HBONE_PORT),
            from: None,
        };
        let connect = Connect { authority: Target::Ip(to), headers: self.headers() };
        let dial = |key: Key| async move {
            self.shared.metrics.pool.dials.inc();
            let dialled = Box::pin(self.secure(&key, limit)).await;
            if dialled.is_err() {
                self.shared.metrics.pool.dial_failures.inc();
            }
            dialled
        };
        match self.tunnels.open(&key, connect, dial).await {
            Ok((stream, _)) => Ok(stream),
            Err(PoolError::Dial(refusal)) => Err(Refusal::clone(&refusal)),
            Err(PoolError::Open(OpenError::Status(status))) => {
                Err(Refusal::TunnelStatus { to, status: status.as_u16() })
            }
            Err(PoolError::Open(error)) => Err(Refusal::Connect { to, reason: error.to_string() }),
        }
    }

    /// Dials a tunnel: TCP, TLS as the waypoint, HTTP/2.
    async fn secure(&self, key: &Key, limit: Duration) -> Result<Connection, Refusal> {
        let settings = &self.shared.settings;
        let certificate = self.shared.certificates.get(&settings.identity).await;
        let certificate = certificate.map_err(|error| Refusal::NoCertificate(error.to_string()))?;
        let tcp = self.tcp(key.to, limit).await?;
        let config = certificate.client_config(key.expected.clone());
        let tls = handshake::connect(config, tcp, settings.limits.handshake).await;
        let (tls, _) = tls.map_err(|error| tls_refusal(key.to, &error))?;
        let chain = tls.session().peer.clone();
        let connected = hbone::connect(tls, chain, &settings.hbone, &self.spawner).await;
        connected.map_err(|error| Refusal::Connect { to: key.to, reason: error.to_string() })
    }

    async fn tcp(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream, Refusal> {
        let failed = |reason: String| Refusal::Connect { to, reason };
        let connecting = async { self.socket(to)?.connect(to).await };
        match timeout(limit, connecting).await {
            Ok(connected) => connected.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {limit:?}"))),
        }
    }

    fn socket(&self, to: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = &self.shared.settings.keepalive {
            keepalive.apply(&socket)?;
        }
        Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
    }

    /// What a CONNECT tells about this waypoint (protocols 4.3).
    fn headers(&self) -> HeaderMap {
        let mesh = self.shared.mesh.current();
        let own = self.shared.own_workload(&mesh);
        let baggage = own.and_then(|own| Baggage::from(&**own).header());
        baggage.map(|value| (headers::BAGGAGE, value)).into_iter().collect()
    }
}

fn tls_refusal(with: SocketAddr, error: &HandshakeError) -> Refusal {
    match error {
        HandshakeError::Rejected(Rejected::Revoked) => Refusal::Revoked(with),
        HandshakeError::Rejected(_)
        | HandshakeError::TooSlow(_)
        | HandshakeError::NotHttp2
        | HandshakeError::Io(_) => Refusal::Tls { with, reason: error.to_string() },
    }
}
