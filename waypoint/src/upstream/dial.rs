//! Connections below HTTP: a stream of a tunnel to the endpoint, or a plain connection where it has no tunnel.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_model::{
    address::Target,
    balance::{self, Dice},
    identity::Identity,
    reach::{self, Across, Asker},
    service::{IpFamilies, Service},
    snapshot::Snapshot,
    workload::{Tunnel, Workload},
};
use ambit_runtime::task;
use ambit_wire::{
    cert::Certificate,
    hbone::{
        self, Connect, Connection, Key, OpenError, Pool, SecureError, TunnelStream,
        headers::{self, Baggage},
        pool::PoolError,
    },
    spawn::Spawner,
    tls::{handshake::HandshakeError, rejected::Rejected},
};
use http::{HeaderMap, HeaderValue};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

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
    /// A tunnel to an endpoint of another network, in a stream of a tunnel to that network's gateway (protocols 4.9).
    Across {
        /// The gateway's tunnel.
        gateway: SocketAddr,
        /// Who may be there.
        expected_gateway: Arc<[Identity]>,
        /// What is asked of both ends: the service, as the other network knows it.
        target: Target,
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

    /// The way to `workload`, an endpoint of `service` for `port` of it, which is on another network than the asker.
    /// `None`: it names no gateway, or one that is not known here. Pure but for the dice.
    pub fn across(
        mesh: &Snapshot,
        workload: &Workload,
        service: (&Service, u16),
        asker: &Asker<'_>,
        dice: &mut dyn Dice,
    ) -> Option<Self> {
        let way = reach::across(mesh, workload, service, asker, dice).ok()?;
        // Gateways of networks are published with their addresses; names are not resolved here.
        let Target::Ip(gateway) = way.gateway else { return None };
        let Across { expected_gateway, target, expected, .. } = way;
        Some(Self::Across { gateway, expected_gateway, target, expected })
    }

    /// The application's address; on another network, that of the gateway.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Plain(to) | Self::Tunnel { to, .. } | Self::Across { gateway: to, .. } => *to,
        }
    }
}

/// What is at the other end.
#[derive(Debug)]
pub enum Onward {
    /// A plain connection.
    Plain(TcpStream),
    /// A stream of a tunnel, and that tunnel if it is the stream's own.
    Tunnel(TunnelStream, Option<Inner>),
}

/// A tunnel that carries one stream alone; it is closed when this is dropped.
#[derive(Debug)]
pub struct Inner(Connection);

impl Drop for Inner {
    fn drop(&mut self) {
        self.0.close();
    }
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

    /// Connects to `hop`, for no longer than `limit`; `None`: than is usual.
    pub async fn connect(&self, hop: &Hop, limit: Option<Duration>) -> Result<Onward, Refusal> {
        let limit = limit.unwrap_or(self.shared.settings.limits.connect);
        match hop {
            Hop::Plain(to) => self.tcp(*to, limit).await.map(Onward::Plain),
            Hop::Tunnel { to, expected } => {
                let connect = Connect { authority: Target::Ip(*to), headers: self.headers() };
                let at = SocketAddr::new(to.ip(), HBONE_PORT);
                let stream = self.tunnel(at, expected, connect, limit).await?;
                Ok(Onward::Tunnel(stream, None))
            }
            Hop::Across { gateway, expected_gateway, target, expected } => {
                let connect = Connect { authority: target.clone(), headers: self.headers() };
                let mut outer = connect.clone();
                outer.headers.insert(headers::X_ISTIO_SOURCE, HeaderValue::from_static("waypoint"));
                let outer = self.tunnel(*gateway, expected_gateway, outer, limit).await?;
                // Boxed: few connections go there, and every one would have room for it.
                let inner = Box::pin(self.inner(outer, *gateway, expected, connect));
                let late =
                    |_| Refusal::Connect { to: *gateway, reason: format!("no answer within {limit:?}") };
                timeout(limit, inner).await.map_err(late)?
            }
        }
    }

    /// The inner of two tunnels, to the endpoint itself through a stream to its gateway.
    async fn inner(
        &self,
        outer: TunnelStream,
        gateway: SocketAddr,
        expected: &Arc<[Identity]>,
        mut connect: Connect,
    ) -> Result<Onward, Refusal> {
        let certificate = self.certificate().await?;
        let config = certificate.client_config(expected.clone());
        let connection = self.secured(hbone::stream::TunnelIo::from(outer), config, gateway).await?;
        self.tunnels.adopt(self.key(gateway, expected), &connection);
        if let Ok(network) = self.shared.settings.network.as_str().parse() {
            connect.headers.insert(headers::X_FORWARDED_NETWORK, network);
        }
        match connection.open(connect).await {
            Ok((stream, _)) => Ok(Onward::Tunnel(stream, Some(Inner(connection)))),
            Err(error) => Err(unopened(gateway, &error)),
        }
    }

    async fn tunnel(
        &self,
        to: SocketAddr,
        expected: &Arc<[Identity]>,
        connect: Connect,
        limit: Duration,
    ) -> Result<TunnelStream, Refusal> {
        let key = self.key(to, expected);
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
            Err(PoolError::Open(error)) => Err(unopened(to, &error)),
        }
    }

    fn key(&self, to: SocketAddr, expected: &Arc<[Identity]>) -> Key {
        Key { source: self.shared.settings.identity.clone(), expected: expected.clone(), to, from: None }
    }

    async fn certificate(&self) -> Result<Arc<Certificate>, Refusal> {
        let certificate = self.shared.certificates.get(&self.shared.settings.identity).await;
        certificate.map_err(|error| Refusal::NoCertificate(error.to_string()))
    }

    /// Dials a tunnel: TCP, TLS as the waypoint, HTTP/2.
    async fn secure(&self, key: &Key, limit: Duration) -> Result<Connection, Refusal> {
        let certificate = self.certificate().await?;
        let tcp = self.tcp(key.to, limit).await?;
        self.secured(tcp, certificate.client_config(key.expected.clone()), key.to).await
    }

    async fn secured<S>(
        &self,
        stream: S,
        config: Arc<rustls::ClientConfig>,
        to: SocketAddr,
    ) -> Result<Connection, Refusal>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let settings = &self.shared.settings;
        let secured =
            hbone::secure(stream, config, settings.limits.handshake, &settings.hbone, &self.spawner).await;
        secured.map_err(|error| unsecured(to, &error))
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

fn unopened(to: SocketAddr, error: &OpenError) -> Refusal {
    match error {
        OpenError::Status(status) => Refusal::TunnelStatus { to, status: status.as_u16() },
        OpenError::Unprocessed(_) | OpenError::Broken(_) | OpenError::Unwritable(_) => {
            Refusal::Connect { to, reason: error.to_string() }
        }
    }
}

fn unsecured(with: SocketAddr, error: &SecureError) -> Refusal {
    match error {
        SecureError::Tls(HandshakeError::Rejected(Rejected::Revoked)) => Refusal::Revoked(with),
        SecureError::Tls(
            HandshakeError::Rejected(_)
            | HandshakeError::TooSlow(_)
            | HandshakeError::NotHttp2
            | HandshakeError::Io(_),
        ) => Refusal::Tls { with, reason: error.to_string() },
        SecureError::Http2(_) => Refusal::Connect { to: with, reason: error.to_string() },
    }
}
