//! Connections that are not looked into: the same decisions as for a request, and then bytes both ways.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ambit_model::{
    address::Target as Asked, name::Uid, route::Drawn, service_config::Streams, snapshot::Snapshot,
    traffic::FailureKind,
};
use ambit_proxy::metrics::AppIs;
use ambit_wire::{
    copy::{self, Begun, End, Meter, Splice},
    hbone::TunnelStream,
    proxy_protocol,
};
use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use crate::{
    access::{Carried, refused_early},
    near::Near,
    permit::Permit,
    plan::{self, Target},
    refusal::Refusal,
    request::{Proxy, Tunnel},
    shared::{Settings, Shared, dice},
    tie::Tie,
    upstream::{
        choose::{Choice, Endpoint, Goal},
        destinations::{Terms, What},
        dial::Onward,
        endpoints::Underway,
        health::Outcome,
        judge::Verdict,
    },
};

/// At how many endpoints a connection is tried before it is given up.
const ATTEMPTS: usize = 3;

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Called {
    onward: Onward,
    /// What the server has said already.
    said: Bytes,
    record: Carried,
    _underway: Underway,
}

/// Who spoke first.
#[derive(Debug)]
pub enum First {
    /// The client: this.
    Client(Option<std::io::Result<Bytes>>),
    /// The server.
    Server(Box<Called>),
}

/// Connects to an endpoint and moves bytes. `first` was read of the client, `name` is that which its TLS greets.
pub async fn carry(proxy: &Proxy, stream: Near, first: Bytes, name: Option<String>, tunnel: &Tunnel) {
    match connect(proxy, name.as_deref(), tunnel).await {
        Ok(called) => called.carry(stream, first).await,
        Err(refusal) => refuse(proxy, stream, tunnel, &refusal),
    }
}

/// Connects to an endpoint, and waits for whoever speaks first.
pub async fn call(proxy: &Proxy, stream: &mut Near, tunnel: &Tunnel) -> First {
    let mut called = tokio::select! {
        biased;
        piece = stream.data() => return First::Client(piece),
        called = connect(proxy, None, tunnel) => match called {
            Ok(called) => called,
            // If it is HTTP, the client gets an answer; else it is tried again, and recorded.
            Err(_) => return First::Client(stream.data().await),
        },
    };
    tokio::select! {
        biased;
        piece = stream.data() => {
            // Nothing was said on it: the endpoint sees a connection that was opened and closed.
            called.record.close(Ok(()));
            First::Client(piece)
        }
        said = called.onward.speaks() => {
            called.said = said;
            First::Server(Box::new(called))
        }
    }
}

impl Onward {
    /// Waits until the server speaks or closes; what it said, as far as it had to be read.
    async fn speaks(&mut self) -> Bytes {
        match self {
            Self::Plain(tcp) => {
                // An error is an end, which whoever reads next will see.
                let _ = tcp.readable().await;
                Bytes::new()
            }
            Self::Tunnel(stream, _) => match stream.data().await {
                Some(Ok(piece)) => piece,
                Some(Err(_)) | None => Bytes::new(),
            },
        }
    }
}

impl Called {
    /// Moves bytes between the client, of which `first` was read, and the server.
    pub async fn carry(self, near: Near, first: Bytes) {
        let Self { onward, said, record, _underway } = self;
        let meter = record.meter();
        let ended = match (near, onward) {
            (Near::Tunnel(near), Onward::Plain(far)) => plain(far, near, first, meter).await,
            (Near::Handed(near), Onward::Plain(far)) => plain(far, near, first, meter).await,
            (Near::Tunnel(near), Onward::Tunnel(far, _inner)) => {
                Splice::new(near, far, Begun { near: first, far: said }, meter).await
            }
            (Near::Handed(near), Onward::Tunnel(far, _inner)) => {
                tunnelled(near, far, Begun { near: first, far: said }, meter).await
            }
        };
        match ended {
            End::Complete | End::Left(_) => record.close(Ok(())),
            End::Failed(_, error) => record.close(Err(&Refusal::ResponseBroke(error.to_string()))),
        }
    }
}

/// To a plain connection. The meter of a copy calls it the application; here it is the server.
async fn plain(mut far: TcpStream, near: impl copy::Far, first: Bytes, meter: Arc<Meter>) -> End {
    match far.write_all(&first).await {
        Ok(()) => copy::both_ways(far, near, meter).await,
        Err(_) => End::Left(copy::Side::App),
    }
}

/// From a connection that was handed over, which here is the application, to a tunnel.
async fn tunnelled(mut near: TcpStream, mut far: TunnelStream, begun: Begun, meter: Arc<Meter>) -> End {
    if near.write_all(&begun.far).await.is_err() {
        return End::Left(copy::Side::App);
    }
    if !begun.near.is_empty() && far.send_when_ready(begun.near).await.is_err() {
        return End::Left(copy::Side::Far);
    }
    copy::both_ways(near, far, meter).await
}

/// Decides, and connects.
async fn connect(proxy: &Proxy, name: Option<&str>, tunnel: &Tunnel) -> Result<Called, Refusal> {
    let shared = proxy.shared();
    let mesh = shared.mesh.current();
    let goal = goal(&mesh, shared, name, tunnel)?;
    let upstream = proxy.upstream();
    let (kept, limits) = (upstream.kept(&goal), goal.terms().and_then(Terms::connections));
    let affinity = Tie::of_connection(&goal, tunnel.client.address.ip());
    let asked = asked_address(&tunnel.arrival.asked);
    let choice = Choice { goal: &goal, asked, affinity: &affinity, kept: kept.as_ref() };
    let mut place = match (&kept, limits) {
        (Some(kept), Some(limits)) => {
            kept.enter(limits, What::Connection, shared.settings.limits.connect).await?
        }
        (Some(_) | None, _) => None,
    };
    let mut tried: Vec<Uid> = Vec::new();
    loop {
        let chosen = upstream.choose(&mesh, &choice, &tried)?;
        // What the client says would be believed there, since it comes from this pod.
        if shared.settings.listen.is_own(chosen.hop.address()) {
            return Err(Refusal::Recursive(chosen.hop.address()));
        }
        let mut underway = chosen.doing.begin();
        let began = std::time::Instant::now();
        let limit = limits.and_then(|limits| limits.connect);
        let connected = upstream.dial().connect(&chosen.hop, limit).await;
        let connected = match connected {
            Ok(onward) => introduced(onward, &goal, tunnel, chosen.hop.address(), &shared.settings).await,
            refused => refused,
        };
        let failed = Outcome::Failed(FailureKind::Unreachable);
        let outcome = if connected.is_ok() { Outcome::Answered } else { failed };
        upstream.judge(&mesh, &choice, &chosen, &Verdict { outcome, rest: None, took: began.elapsed() });
        let Endpoint { workload, hop, .. } = chosen;
        match connected {
            Ok(onward) => {
                underway.hold(place.take());
                let (asked, end) = (&tunnel.arrival.asked, (workload, hop.address()));
                let app = match &onward {
                    Onward::Plain(_) => AppIs::Server,
                    Onward::Tunnel(..) => AppIs::Client,
                };
                let service = goal.service().cloned();
                let record = Carried::open(&shared.records, &tunnel.client, asked, service, end, app);
                let record = record.greeting(name);
                return Ok(Called { onward, said: Bytes::new(), record, _underway: underway });
            }
            Err(refusal) => {
                tried.push(workload.uid.clone());
                if tried.len() >= ATTEMPTS {
                    return Err(refusal);
                }
            }
        }
    }
}

/// The connection to `at`, with who calls said on it if that is asked for.
async fn introduced(
    mut onward: Onward,
    goal: &Goal,
    tunnel: &Tunnel,
    at: SocketAddr,
    settings: &Settings,
) -> Result<Onward, Refusal> {
    if !goal.terms().is_some_and(Terms::introduces) {
        return Ok(onward);
    }
    let asked = match &tunnel.arrival.asked {
        Asked::Ip(asked) => *asked,
        Asked::Host(..) => at,
    };
    let client = &tunnel.client;
    let header = proxy_protocol::header(client.address, asked, client.identity.as_ref());
    let said = async {
        match &mut onward {
            Onward::Plain(tcp) => tcp.write_all(&header).await,
            Onward::Tunnel(stream, _) => stream.send_when_ready(header).await,
        }
    };
    match timeout(settings.limits.connect, said).await {
        Ok(Ok(())) => Ok(onward),
        Ok(Err(error)) => Err(Refusal::Connect { to: at, reason: error.to_string() }),
        Err(_) => Err(Refusal::Connect { to: at, reason: "it takes no PROXY header".to_owned() }),
    }
}

/// Judges, and finds the route. Pure but for the dice.
fn goal(mesh: &Snapshot, shared: &Shared, name: Option<&str>, tunnel: &Tunnel) -> Result<Goal, Refusal> {
    let Tunnel { arrival, client } = tunnel;
    let target = Target::find(mesh, &shared.served, shared.namespace(), arrival)?;
    let config = target.config();
    Permit::connection(config, client, asked_address(&arrival.asked), name)?;
    let route = match config.stream(arrival.port, &client.namespace(), name) {
        Streams::None => return Ok(target.goal()),
        Streams::Asked => {
            let (provider, policy) = ("an authorizer".to_owned(), format!("a route of {}", config.key()));
            return Err(Refusal::AsksOfRequests { provider, policy });
        }
        Streams::Unmatched => return Err(Refusal::NoRoute(config.key().to_string())),
        Streams::Route(route) => route,
    };
    match route.draw(&mut dice()) {
        Drawn::To { service, port, subset, .. } => {
            plan::goal(mesh, service, port, Terms::find(config, service, port, subset)?)
        }
        Drawn::Invalid(_) | Drawn::Nobody => {
            Err(Refusal::InvalidBackend(route.origin().key.as_str().to_owned()))
        }
    }
}

/// The address that was asked for; of a name, one of the family that is in use everywhere.
pub fn asked_address(asked: &Asked) -> SocketAddr {
    match asked {
        Asked::Ip(address) => *address,
        Asked::Host(_, port) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port),
    }
}

fn refuse(proxy: &Proxy, stream: Near, tunnel: &Tunnel, refusal: &Refusal) {
    refused_early(&proxy.shared().records, tunnel.client.address, Some(&tunnel.arrival.asked), refusal);
    stream.refuse();
}
