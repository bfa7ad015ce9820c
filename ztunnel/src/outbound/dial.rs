//! Carries out a [`Plan`]: connects to the next hop.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_model::{address::Target, identity::Identity, workload::Workload};
use ambit_runtime::task;
use ambit_wire::{
    hbone::{
        self, Connect, Connection, Key, OpenError, Pool, SecureError, TunnelStream,
        headers::{self, Baggage, Forwarded, Traceparent},
        pool::PoolError,
    },
    spawn::Spawner,
    tls::{handshake::HandshakeError, rejected::Rejected, verify::peer_identity},
};
use http::HeaderMap;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::plan::{Hop, Plan, Route};
use crate::{
    inbound::arrive::{Arrived, Arriving, arrive, baggage_of, workload_from_baggage},
    metrics::Direction,
    permit::Caller,
    pods::{Pod, Unreached},
    refusal::Refusal,
    socket::Reach,
    tunnel::SameNode,
};

/// What is behind an application's connection.
#[derive(Debug)]
pub enum Onward {
    /// A plain connection.
    Plain(TcpStream),
    /// A stream of a tunnel.
    Tunnel(TunnelStream),
    /// A stream of a tunnel in a tunnel; the inner one is this connection's own.
    Inner {
        /// The stream.
        stream: TunnelStream,
        /// The tunnel that it is the only stream of.
        connection: Connection,
        /// Who is at its end.
        end: Box<FarEnd>,
    },
    /// A pod of this very node.
    Neighbour(Box<Arrived>),
}

/// The end of a tunnel in a tunnel, as it presented itself: here only its service was known.
#[derive(Debug)]
pub struct FarEnd {
    /// What its 200 said about it (protocols 4.4), if that is listened to.
    pub workload: Option<Arc<Workload>>,
    /// The identity that its certificate proved.
    pub identity: Option<Identity>,
}

/// Connects for one pod, on one worker.
#[derive(Debug)]
pub struct Dial {
    pod: Arc<Pod>,
    pool: Arc<Pool<Refusal>>,
    spawner: Spawner,
}

impl Dial {
    /// A dialler without any connection yet.
    pub fn new(pod: Arc<Pod>) -> Self {
        let spawner = Spawner::new(|name, task| {
            task::spawn(name, task);
        });
        let pool = Arc::new(Pool::new(pod.tunnel.settings.spread));
        Self { pod, pool, spawner }
    }

    /// The tunnels that are open.
    pub fn pool(&self) -> &Pool<Refusal> {
        &self.pool
    }

    /// Connects as `plan` says, for the application at `from`.
    pub async fn connect(
        &self,
        plan: &Plan,
        source: &Arc<Workload>,
        from: SocketAddr,
    ) -> Result<Onward, Refusal> {
        match &plan.route {
            Route::Plain { to } => {
                let to = self.resolve(to, plan, source).await?;
                self.pod
                    .connect(to, Reach::Network)
                    .await
                    .map(Onward::Plain)
                    .map_err(Unreached::of_application)
            }
            Route::Tunnel { to, target, expect } => {
                if let Some(arrived) = self.neighbour(plan, source, from, target).await {
                    return arrived.map(|arrived| Onward::Neighbour(Box::new(arrived)));
                }
                let to = self.resolve(to, plan, source).await?;
                let connect =
                    Connect { authority: target.clone(), headers: self.headers(plan, source, from) };
                self.open(source, to, expect, connect).await.map(Onward::Tunnel)
            }
            Route::TunnelInTunnel { gateway, expect_gateway, target, expect } => {
                let to = self.resolve(gateway, plan, source).await?;
                let headers = self.headers(plan, source, from);
                let outer = Connect { authority: target.clone(), headers: headers.clone() };
                let outer = self.open(source, to, expect_gateway, outer).await?;
                let inner = Connect { authority: target.clone(), headers };
                self.open_inner(source, to, outer, expect, inner, plan).await
            }
        }
    }

    /// Hands the connection to a pod that is served by this very process, when there is one and
    /// neighbours are reached directly. `None`: it goes by the wire.
    ///
    /// Both ends hold certificates of the mesh at this moment: a pod that the CA does not vouch for is
    /// no more reachable, and reaches no more, than over the wire.
    async fn neighbour(
        &self,
        plan: &Plan,
        source: &Arc<Workload>,
        from: SocketAddr,
        target: &Target,
    ) -> Option<Result<Arrived, Refusal>> {
        let tunnel = &self.pod.tunnel;
        match tunnel.settings.same_node {
            SameNode::Direct => {}
            SameNode::Hbone => return None,
        }
        let (Some(destination), Target::Ip(asked)) = (&plan.workload, target) else { return None };
        let pod = tunnel.locals.serving(destination)?;
        // A waypoint is asked for somebody else's address; it speaks for itself, over the wire.
        if !destination.addresses.contains(&asked.ip()) || destination.native_tunnel {
            return None;
        }
        let own = match self.pod.certificate(source).await {
            Ok(own) => own,
            Err(refusal) => return Some(Err(refusal)),
        };
        let certificate = pod.certificate(destination).await.ok()?;
        if [&own, &certificate].iter().any(|one| tunnel.revocation.is_revoked(one.chain())) {
            tunnel.metrics.revoked(Direction::Outbound);
            return Some(Err(Refusal::Revoked(destination.identity().to_string())));
        }
        tunnel.metrics.same_node.inc();
        let arriving = Arriving {
            caller: Caller { address: from, identity: Some(source.identity()) },
            source: Some(source.clone()),
            target: target.clone(),
            at: SocketAddr::new(asked.ip(), super::plan::HBONE_PORT),
            forwarded_host: plan.service.as_ref().map(|service| service.hostname.clone()),
        };
        // What the other end would have answered over the wire.
        Some(arrive(&pod, destination, arriving).await.map_err(|refusal| Refusal::Status(refusal.status())))
    }

    async fn open(
        &self,
        source: &Arc<Workload>,
        to: SocketAddr,
        expect: &Arc<[Identity]>,
        connect: Connect,
    ) -> Result<TunnelStream, Refusal> {
        let key = Key { source: source.identity(), expected: expect.clone(), to, from: None };
        let metrics = &self.pod.tunnel.metrics;
        let dial = |key: Key| async move {
            metrics.pool.dials.inc();
            let dialled = Box::pin(self.tunnel(source, &key)).await;
            if dialled.is_err() {
                metrics.pool.dial_failures.inc();
            }
            dialled
        };
        match self.pool.open(&key, connect, dial).await {
            Ok((stream, _headers)) => Ok(stream),
            Err(PoolError::Dial(refusal)) => Err(Refusal::clone(&refusal)),
            Err(PoolError::Open(error)) => Err(open_refusal(to, &error)),
        }
    }

    /// Dials a tunnel: TCP, TLS as the pod itself, HTTP/2.
    async fn tunnel(&self, source: &Arc<Workload>, key: &Key) -> Result<Connection, Refusal> {
        let certificate = self.pod.certificate(source).await?;
        let tcp = self.pod.connect(key.to, Reach::Network).await.map_err(Unreached::of_tunnel)?;
        let config = certificate.client_config(key.expected.clone());
        self.secure(tcp, config, key.to).await
    }

    async fn secure<S>(
        &self,
        stream: S,
        config: Arc<rustls::ClientConfig>,
        to: SocketAddr,
    ) -> Result<Connection, Refusal>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let settings = &self.pod.tunnel.settings;
        let secured =
            hbone::secure(stream, config, settings.limits.handshake, &settings.hbone, &self.spawner).await;
        secured.map_err(|error| match error {
            SecureError::Tls(HandshakeError::Rejected(Rejected::Revoked)) => {
                self.pod.tunnel.metrics.revoked(Direction::Outbound);
                Refusal::Revoked(to.to_string())
            }
            SecureError::Tls(
                HandshakeError::Rejected(_)
                | HandshakeError::TooSlow(_)
                | HandshakeError::NotHttp2
                | HandshakeError::Io(_),
            ) => Refusal::Tls { with: to, reason: error.to_string() },
            SecureError::Http2(_) => Refusal::Http2 { with: to, reason: error.to_string() },
        })
    }

    /// The inner of two tunnels: TLS to the pod itself through the gateway's stream (protocols 4.9).
    async fn open_inner(
        &self,
        source: &Arc<Workload>,
        gateway: SocketAddr,
        outer: TunnelStream,
        expect: &Arc<[Identity]>,
        mut connect: Connect,
        plan: &Plan,
    ) -> Result<Onward, Refusal> {
        let certificate = self.pod.certificate(source).await?;
        let config = certificate.client_config(expect.clone());
        let connection = self.secure(hbone::stream::TunnelIo::from(outer), config, gateway).await?;
        let key = Key { source: source.identity(), expected: expect.clone(), to: gateway, from: None };
        self.pool.adopt(key, &connection);
        let settings = &self.pod.tunnel.settings;
        if let Ok(network) = settings.network.as_str().parse() {
            connect.headers.insert(headers::X_FORWARDED_NETWORK, network);
        }
        let opened = connection.open(connect).await;
        let (stream, told) = opened.map_err(|error| open_refusal(gateway, &error))?;
        let identity = peer_identity(connection.peer());
        let baggage = Baggage::read(&told);
        let workload = (settings.response_baggage && baggage != Baggage::default()).then(|| {
            let network = plan.workload.as_ref().map(|planned| planned.network.clone());
            Arc::new(workload_from_baggage(baggage, network.unwrap_or_default(), identity.as_ref()))
        });
        Ok(Onward::Inner { stream, connection, end: Box::new(FarEnd { workload, identity }) })
    }

    /// What a CONNECT tells about the caller (protocols 4.3).
    fn headers(&self, plan: &Plan, source: &Workload, from: SocketAddr) -> HeaderMap {
        let host = plan.service.as_ref().map(|service| service.hostname.clone());
        let trace = Traceparent::new(rand::random(), rand::random());
        let mut headers = HeaderMap::with_capacity(4);
        headers.extend(baggage_of(source).header().map(|value| (headers::BAGGAGE, value)));
        headers
            .extend(Forwarded { client: from, host }.header().map(|value| (http::header::FORWARDED, value)));
        headers.extend(trace.header().map(|value| (headers::TRACEPARENT, value)));
        headers
    }

    /// Where a hop is; names are looked up now, and of several addresses one is drawn.
    async fn resolve(&self, hop: &Hop, plan: &Plan, source: &Arc<Workload>) -> Result<SocketAddr, Refusal> {
        let (name, port) = match hop {
            Hop::Address(address) => return Ok(*address),
            Hop::Name(name, port) => (name, *port),
        };
        let unresolved = || Refusal::Unresolved(name.to_string());
        if let Some(workload) = &plan.workload {
            self.pod.tunnel.metrics.resolved_on_demand(Some(source), workload);
        }
        let found = tokio::net::lookup_host((name.as_str(), port)).await.map_err(|_| unresolved())?;
        let ipv6 = self.pod.tunnel.settings.ipv6;
        let mut all: Vec<SocketAddr> = found.filter(|address| address.is_ipv4() || ipv6).collect();
        let family = source.addresses.first().is_none_or(IpAddr::is_ipv4);
        if all.iter().any(|address| address.is_ipv4() == family) {
            all.retain(|address| address.is_ipv4() == family);
        }
        let drawn = rand::random_range(0..all.len().max(1));
        all.get(drawn).copied().ok_or_else(unresolved)
    }
}

fn open_refusal(with: SocketAddr, error: &OpenError) -> Refusal {
    match error {
        OpenError::Status(status) => Refusal::Status(status.as_u16()),
        OpenError::Unprocessed(_) | OpenError::Broken(_) | OpenError::Unwritable(_) => {
            Refusal::Http2 { with, reason: error.to_string() }
        }
    }
}
