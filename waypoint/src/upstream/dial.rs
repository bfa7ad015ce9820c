//! Connections below HTTP: a stream of a tunnel to the endpoint, or a plain connection where it has no tunnel.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_model::{
    address::Target,
    balance::{self, Caller, Dice, Purpose, Wanted},
    gateway::GatewayDestination,
    identity::Identity,
    name::{Hostname, Namespace},
    service::{IpFamilies, Service},
    snapshot::{GatewayEnd, Snapshot},
    workload::{Tunnel, Workload},
};
use ambit_runtime::task;
use ambit_wire::{
    cert::Certificate,
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
        /// The service and its port, by which the other network knows it.
        service: (Hostname, u16),
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

    /// The way to `workload`, which is on another network than `caller`: an endpoint of `service` for `port` of it. `None`:
    /// it names no gateway, or one that is not known here. Pure but for the dice.
    pub fn across(
        mesh: &Snapshot,
        (caller, namespace): (Caller<'_>, &Namespace),
        workload: &Workload,
        (service, port): (&Service, u16),
        asked: SocketAddr,
        dice: &mut dyn Dice,
    ) -> Option<Self> {
        let gateway = workload.network_gateway.as_ref()?;
        let at = gateway.hbone_mtls_port;
        let (instance, at, names) = match mesh.gateway(gateway, namespace)? {
            GatewayEnd::Workload(workload) => (workload, at, &[][..]),
            GatewayEnd::Service(service) => {
                let endpoints = mesh.endpoints(&service.key())?;
                let wanted = Wanted::of(service, at, Purpose::Standard, caller);
                let pick = balance::pick(&wanted, endpoints, &|_| false, dice)?;
                (&pick.endpoint.workload, pick.port, &service.subject_alt_names[..])
            }
        };
        // Named by an address, it is that one, whatever the family of the request (protocols 5.4).
        let address = match &gateway.destination {
            GatewayDestination::Address(address) if instance.addresses.contains(&address.ip) => {
                Some(address.ip)
            }
            GatewayDestination::Address(_) | GatewayDestination::Hostname(_) => {
                balance::address(instance, asked.ip(), IpFamilies::Automatic)
            }
        };
        // A gateway on a network that is not ours, either, is not reached.
        let address = address.filter(|_| instance.network == *caller.network)?;
        let far = service.subject_alt_names.iter().filter_map(|name| name.as_str().parse().ok());
        Some(Self::Across {
            gateway: SocketAddr::new(address, at),
            expected_gateway: instance.accepted_identities(names),
            service: (service.hostname.clone(), port),
            expected: far.collect(),
        })
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
            Hop::Across { gateway, expected_gateway, service: (host, port), expected } => {
                let connect =
                    Connect { authority: Target::Host(host.clone(), *port), headers: self.headers() };
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
        let key =
            Key { source: self.shared.settings.identity.clone(), expected: expected.clone(), to, from: None };
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
        let tls = handshake::connect(config, stream, settings.limits.handshake).await;
        let (tls, _) = tls.map_err(|error| tls_refusal(to, &error))?;
        let chain = tls.session().peer.clone();
        let connected = hbone::connect(tls, chain, &settings.hbone, &self.spawner).await;
        connected.map_err(|error| Refusal::Connect { to, reason: error.to_string() })
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

fn tls_refusal(with: SocketAddr, error: &HandshakeError) -> Refusal {
    match error {
        HandshakeError::Rejected(Rejected::Revoked) => Refusal::Revoked(with),
        HandshakeError::Rejected(_)
        | HandshakeError::TooSlow(_)
        | HandshakeError::NotHttp2
        | HandshakeError::Io(_) => Refusal::Tls { with, reason: error.to_string() },
    }
}
