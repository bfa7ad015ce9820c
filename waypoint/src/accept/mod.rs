//! Accepts tunnels, and tells the story of one stream: what is it for, what does it carry, who serves it.

pub mod arrival;
pub mod detect;
pub mod handed;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_model::{
    address::{Target, canonical},
    identity::Identity,
    service::AppProtocol,
    snapshot::Snapshot,
};
use ambit_runtime::{drain::Watch, task};
use ambit_wire::{
    hbone::{self, Incoming, server::Served},
    tls::{
        handshake::{self, HandshakeError},
        rejected::Rejected,
        secured::Secured,
    },
};
use bytes::Bytes;
use http::Method;
use tokio::{net::TcpStream, time::timeout};

use self::{
    arrival::{Arrival, Client},
    detect::{Beginning, Carried},
};
use crate::{
    access::{Records, refused_early},
    interim::Interim,
    io::{Heads, Told, TunnelIo},
    near::Near,
    opaque,
    refusal::Refusal,
    request::{Proxy, Tunnel},
    serve,
    served::COMING,
};

/// How long the client has the word where it is not known what it will say. If it says nothing, the server may be the
/// one to begin: it is called, and whoever speaks first decides.
const HEAD_START: Duration = Duration::from_millis(5);
/// How long the first bytes of a client may take that has begun to speak.
const BEGINNING: Duration = Duration::from_secs(5);
/// How much of a greeting is read for the name in it: more than any that is sent, even with keys of the future.
const GREETING: usize = 32 * 1024;

/// Everything that comes to one worker through tunnels.
#[derive(Debug)]
pub struct Accept {
    proxy: Arc<Proxy>,
}

impl Accept {
    /// Accepts for `proxy`.
    pub fn new(proxy: Arc<Proxy>) -> Arc<Self> {
        Arc::new(Self { proxy })
    }

    /// Serves one tunnel until it ends. When it is old, or `drain` is signaled, the peer is told to use another, and
    /// streams finish.
    pub async fn serve(self: Arc<Self>, tcp: TcpStream, drain: Watch) {
        let Ok(address) = tcp.peer_addr().map(canonical) else {
            // The peer has reset it already (protocols 12, line 3).
            return;
        };
        let shared = self.proxy.shared().clone();
        let (tls, identity) = match Box::pin(self.welcome(tcp, address)).await {
            Ok(welcomed) => welcomed,
            Err(refusal) => return refused_early(&shared.records, address, None, &refusal),
        };
        let held = drain.clone();
        let on_connect = |incoming| {
            let stream = self.clone().stream(incoming, address, identity.clone(), held.clone());
            task::spawn("stream", Box::pin(stream));
        };
        let draining = serve::leaving(&drain, shared.settings.limits.age);
        match hbone::serve(tls, &shared.settings.hbone, on_connect, draining, drain.forced()).await {
            Ok(Served::Closed | Served::Cut) => {}
            Ok(Served::Silent) => tracing::debug!(src.addr = %address, "Tunnel peer went silent"),
            Err(error) => tracing::debug!(src.addr = %address, error = %error, "Tunnel ended"),
        }
    }

    /// The TLS handshake: who is it.
    async fn welcome(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Result<(Secured<TcpStream>, Option<Identity>), Refusal> {
        let shared = self.proxy.shared();
        let limits = shared.settings.limits;
        let _turn = shared
            .handshakes
            .try_acquire()
            .map_err(|_| Refusal::Overload { what: "TLS handshakes", limit: limits.handshakes })?;
        let certificate = shared.certificates.get(&shared.settings.identity).await;
        let certificate = certificate.map_err(|error| Refusal::NoCertificate(error.to_string()))?;
        let accepted = handshake::accept(certificate.server_config(), tcp, limits.handshake).await;
        accepted.map_err(|error| tls_refusal(address, &error))
    }

    /// One stream.
    async fn stream(
        self: Arc<Self>,
        incoming: Incoming,
        address: SocketAddr,
        identity: Option<Identity>,
        drain: Watch,
    ) {
        let shared = self.proxy.shared().clone();
        let asked = incoming.authority.clone().ok();
        let Ok(_place) = shared.connections.clone().try_acquire_owned() else {
            let limit = shared.settings.limits.connections;
            return refuse(&shared.records, incoming, address, &Refusal::Overload { what: "streams", limit });
        };
        let tunnel = match self.tunnel(&incoming, address, identity).await {
            Ok(tunnel) => Arc::new(tunnel),
            Err(refusal) => return refuse(&shared.records, incoming, address, &refusal),
        };
        let stream = match incoming.accept(None) {
            Ok(stream) => stream,
            Err(error) => {
                let broken = Refusal::ClientBody(error.to_string());
                return refused_early(&shared.records, address, asked.as_ref(), &broken);
            }
        };
        shared.metrics.streams.inc();
        self.carry(stream.into(), tunnel, drain).await;
        shared.metrics.streams.dec();
    }

    /// What a CONNECT is for, and who asks.
    async fn tunnel(
        &self,
        incoming: &Incoming,
        address: SocketAddr,
        identity: Option<Identity>,
    ) -> Result<Tunnel, Refusal> {
        if incoming.method != Method::CONNECT {
            return Err(Refusal::NotConnect(incoming.method.to_string()));
        }
        let target = incoming.authority.clone().map_err(|error| Refusal::BadAuthority(error.to_string()))?;
        self.find(&target, address, identity).await
    }

    /// What `target` is, and who asks. A service that is known here may be about to be bound to this waypoint.
    async fn find(
        &self,
        target: &Target,
        address: SocketAddr,
        identity: Option<Identity>,
    ) -> Result<Tunnel, Refusal> {
        let shared = self.proxy.shared();
        let find = |mesh: &Snapshot| {
            let network = &shared.settings.network;
            let client = Client::find(mesh, network, address, identity.clone());
            let own = shared.own_workload(mesh).map(|own| &**own);
            let arrival = arrival::arrival(mesh, &shared.served, network, own, &client, target)?;
            Ok(Tunnel { arrival, client: Arc::new(client) })
        };
        match find(&shared.mesh.current()) {
            Err(Refusal::NotServed(asked)) => {
                let came = shared.mesh.wait_for(COMING, |mesh| find(mesh).ok()).await;
                came.ok_or(Refusal::NotServed(asked))
            }
            found => found,
        }
    }

    /// Serves what the stream carries. What is common and lasts, an idle HTTP/1 connection, is kept small: a stream has
    /// room for that, and the rest in boxes.
    async fn carry(&self, mut stream: Near, tunnel: Arc<Tunnel>, drain: Watch) {
        let Arrival { protocol, .. } = &tunnel.arrival;
        match protocol {
            // Whatever the server speaks, a client may begin with either version.
            Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => {
                let idle = self.proxy.shared().settings.limits.idle;
                match begin(&mut stream, Beginning::default(), idle).await {
                    (Carried::Http2, first) => self.http2(stream, first, tunnel, drain).await,
                    (Carried::Http1 | Carried::Tls | Carried::Bytes, first) => {
                        self.http1(stream, first, tunnel, drain).await;
                    }
                }
            }
            Some(AppProtocol::Tcp) => self.bytes(stream, Bytes::new(), &tunnel).await,
            Some(AppProtocol::Tls) => Box::pin(self.tls(stream, Bytes::new(), &tunnel)).await,
            None => self.unknown(stream, tunnel, drain).await,
        }
    }

    /// Whoever speaks first decides what it is.
    async fn unknown(&self, mut stream: Near, tunnel: Arc<Tunnel>, drain: Watch) {
        let piece = match timeout(HEAD_START, stream.data()).await {
            Ok(piece) => piece,
            Err(_) => match Box::pin(opaque::call(&self.proxy, &mut stream, &tunnel)).await {
                opaque::First::Client(piece) => piece,
                opaque::First::Server(called) => return Box::pin(called.carry(stream, Bytes::new())).await,
            },
        };
        let mut beginning = Beginning::default();
        let (carried, first) = match piece {
            Some(Ok(piece)) => match beginning.add(&piece) {
                Some(carried) => (carried, beginning.take()),
                None => begin(&mut stream, beginning, BEGINNING).await,
            },
            // It has said all it has to say, which is nothing; the server may still answer.
            None => (Carried::Bytes, Bytes::new()),
            Some(Err(_)) => return,
        };
        match carried {
            Carried::Http1 => self.http1(stream, first, tunnel, drain).await,
            Carried::Http2 => self.http2(stream, first, tunnel, drain).await,
            Carried::Tls => Box::pin(self.tls(stream, first, &tunnel)).await,
            Carried::Bytes => self.bytes(stream, first, &tunnel).await,
        }
    }

    async fn http1(&self, stream: Near, first: Bytes, tunnel: Arc<Tunnel>, drain: Watch) {
        let shared = self.proxy.shared();
        let (limits, interim) = (shared.settings.limits, Interim::new(shared.metrics.interim.clone()));
        let told = Told { heads: Heads::default(), interim };
        let io = TunnelIo::new(stream, first)
            .with_patience(limits.head, told.heads.clone())
            .with_interim(told.interim.clone());
        serve::http1(io, told, self.proxy.clone(), tunnel, drain, limits.age).await;
    }

    async fn http2(&self, stream: Near, first: Bytes, tunnel: Arc<Tunnel>, drain: Watch) {
        let age = self.proxy.shared().settings.limits.age;
        let served = serve::http2(TunnelIo::new(stream, first), self.proxy.clone(), tunnel, drain, age);
        Box::pin(served).await;
    }

    async fn bytes(&self, stream: Near, first: Bytes, tunnel: &Tunnel) {
        Box::pin(opaque::carry(&self.proxy, stream, first, None, tunnel)).await;
    }

    /// TLS that the application ends: only the name in its greeting is read.
    async fn tls(&self, mut stream: Near, first: Bytes, tunnel: &Tunnel) {
        let mut greeting = bytes::BytesMut::from(&first[..]);
        let name = loop {
            match detect::server_name(&greeting) {
                Some(name) => break name,
                None if greeting.len() >= GREETING => break None,
                None => {}
            }
            match timeout(BEGINNING, stream.data()).await {
                Ok(Some(Ok(piece))) => greeting.extend_from_slice(&piece),
                Ok(None | Some(Err(_))) | Err(_) => break None,
            }
        };
        opaque::carry(&self.proxy, stream, greeting.freeze(), name, tunnel).await;
    }
}

/// Reads until it is known what a stream carries whose client has the word; at most `limit` between two pieces.
async fn begin(stream: &mut Near, mut beginning: Beginning, limit: Duration) -> (Carried, Bytes) {
    loop {
        match timeout(limit, stream.data()).await {
            Ok(Some(Ok(piece))) => {
                if let Some(carried) = beginning.add(&piece) {
                    return (carried, beginning.take());
                }
            }
            Ok(None | Some(Err(_))) | Err(_) => return (beginning.as_it_is(), beginning.take()),
        }
    }
}

fn refuse(records: &Records, incoming: Incoming, client: SocketAddr, refusal: &Refusal) {
    let asked = incoming.authority.clone().ok();
    refused_early(records, client, asked.as_ref(), refusal);
    if let Err(error) = incoming.refuse(refusal.status()) {
        tracing::debug!(src.addr = %client, error = %error, "Refusal could not be sent");
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
