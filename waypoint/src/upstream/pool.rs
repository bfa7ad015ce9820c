//! HTTP connections to endpoints, kept for the next request.
//!
//! HTTP/1.1 connections carry one request at a time: idle ones are kept, the last used first. HTTP/2 connections are
//! shared; the first request dials, the others wait for that dial. The map is locked for look-ups only.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_model::traffic::Connections;
use ambit_runtime::task;
use bytes::Bytes;
use hashbrown::HashMap;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    sync::{OnceCell, watch},
    time::timeout,
};

use super::dial::{Dial, Hop, Onward};
use crate::{
    body::Outgoing,
    io::{Io, TunnelIo},
    refusal::Refusal,
};

/// How many idle HTTP/1.1 connections are kept for an endpoint: about what comes at the same moment; a burst beyond
/// dials, which is cheap within a tunnel.
const IDLE: usize = 64;
/// How long an idle connection is kept. Many servers close theirs after a minute, some after seconds; who closes last
/// loses no request.
const IDLE_FOR: Duration = Duration::from_secs(50);
/// How many requests share an HTTP/2 connection before another is made.
const SHARED: usize = 100;
/// What an endpoint's response may have in its head.
const HEAD: usize = 64 * 1024;
/// How long after that it is looked again, and how often: by then even a slow endpoint has said something.
const LATER: Duration = Duration::from_secs(1);
const MOST_LOOKS: usize = 60;
/// When it is looked, after the connection was made, whether an endpoint takes a CONNECT that names a protocol: its settings
/// come with the first that it says. After half a second they will not.
const LOOKS: [Duration; 9] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(16),
    Duration::from_millis(32),
    Duration::from_millis(64),
    Duration::from_millis(128),
    Duration::from_millis(256),
];
/// HTTP/2 windows towards endpoints: a stream's, and four times that for the connection (protocols 12, line 9).
const WINDOW: u32 = 1024 * 1024;

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge.
    Http2,
}

/// The connections of one worker.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<HashMap<(Hop, Version), Slot>>>);

#[derive(Debug, Default)]
struct Slot {
    idle: Vec<Idle>,
    shared: Vec<Arc<Shared>>,
}

/// An HTTP/1.1 connection that nobody uses.
#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Outgoing>,
    since: Instant,
    /// How many requests it has carried.
    carried: u32,
}

impl Idle {
    fn is_good(&self, now: Instant, longest: Duration) -> bool {
        !self.sender.is_closed() && now.duration_since(self.since) < longest
    }
}

/// An HTTP/2 connection.
#[derive(Clone, Debug)]
struct Http2 {
    sender: http2::SendRequest<Outgoing>,
    /// Whether the endpoint takes a CONNECT that names a protocol; `None`: it has not said anything yet.
    takes_streams: watch::Receiver<Option<bool>>,
}

/// One HTTP/2 connection, made or about to be.
#[derive(Debug, Default)]
struct Shared {
    connection: OnceCell<Http2>,
    active: AtomicUsize,
    /// How many requests it has carried.
    carried: AtomicU32,
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.connection.get().is_some_and(|connection| connection.sender.is_closed())
    }
}

/// A connection that one request may use. Dropped without being given back, an HTTP/1.1 connection is closed.
#[derive(Debug)]
pub struct Lease {
    kind: Kind,
    /// Whether it had been used before: then the endpoint may have closed it at this very moment.
    pub is_reused: bool,
}

#[derive(Debug)]
enum Kind {
    Http1 { pool: Pool, key: Hop, sender: http1::SendRequest<Outgoing>, carried: u32, is_last: bool },
    Http2 { connection: Http2, _counted: Counted },
}

/// One request's place on a shared connection.
#[derive(Debug)]
struct Counted(Arc<Shared>);

impl Counted {
    fn on(shared: Arc<Shared>) -> Self {
        shared.carried.fetch_add(1, Ordering::Relaxed);
        shared.active.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that was not answered.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub error: hyper::Error,
    /// The request, if not a byte of it was sent.
    pub unsent: Option<Request<Outgoing>>,
}

impl Lease {
    /// Sends a request.
    pub async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, Box<Unanswered>> {
        let sent = match &mut self.kind {
            Kind::Http1 { sender, .. } => sender.try_send_request(request).await,
            Kind::Http2 { connection, .. } => connection.sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message();
            Box::new(Unanswered { error: error.into_error(), unsent })
        })
    }

    /// Whether the endpoint takes a CONNECT that names a protocol (RFC 8441, 3). A connection that was made just now may not
    /// have heard of it yet.
    pub async fn takes_streams(&mut self) -> bool {
        match &mut self.kind {
            Kind::Http1 { .. } => false,
            Kind::Http2 { connection, .. } => {
                let known = connection.takes_streams.wait_for(Option::is_some).await;
                known.is_ok_and(|takes| *takes == Some(true))
            }
        }
    }

    /// The response is complete: another request may use the connection.
    pub fn give_back(self) {
        match self.kind {
            Kind::Http1 { is_last: true, .. } => {}
            Kind::Http1 { pool, key, sender, carried, .. } => pool.keep(key, sender, carried),
            Kind::Http2 { .. } => {}
        }
    }
}

impl Pool {
    /// A connection to `hop` for one request: one that is idle or has room, else a new one.
    /// `limits` say how long dialling may take, and for how long and how many requests a connection is used.
    pub async fn lease(
        &self,
        dial: &Dial,
        hop: &Hop,
        version: Version,
        limits: Option<&Connections>,
    ) -> Result<Lease, Refusal> {
        let connect = limits.and_then(|limits| limits.connect);
        let each = limits.and_then(|limits| limits.requests_each).unwrap_or(u32::MAX);
        match version {
            Version::Http1 => {
                let longest = limits.and_then(|limits| limits.idle).unwrap_or(IDLE_FOR);
                let idle = self.idle(hop, longest.min(IDLE_FOR));
                let is_reused = idle.is_some();
                let (sender, carried) = match idle {
                    Some(idle) => (idle.sender, idle.carried.saturating_add(1)),
                    None => (connect_http1(dial, hop, connect).await?, 1),
                };
                let (pool, key, is_last) = (self.clone(), hop.clone(), carried >= each);
                Ok(Lease { kind: Kind::Http1 { pool, key, sender, carried, is_last }, is_reused })
            }
            Version::Http2 => {
                let shared = self.shared(hop, each);
                let is_reused = shared.connection.initialized();
                let counted = Counted::on(shared.clone());
                let dialled = shared.connection.get_or_try_init(|| connect_http2(dial, hop, connect));
                let connection = dialled.await?.clone();
                Ok(Lease { kind: Kind::Http2 { connection, _counted: counted }, is_reused })
            }
        }
    }

    /// Lets go of what nobody has used for long.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.hold().retain(|_, slot| {
            slot.idle.retain(|idle| idle.is_good(now, IDLE_FOR));
            // A shared connection without requests is closed by the tunnel's or the endpoint's own patience.
            slot.shared.retain(|shared| !shared.is_closed());
            !slot.idle.is_empty() || !slot.shared.is_empty()
        });
    }

    fn idle(&self, hop: &Hop, longest: Duration) -> Option<Idle> {
        let now = Instant::now();
        let mut all = self.hold();
        let slot = all.get_mut(&(hop.clone(), Version::Http1))?;
        slot.idle.retain(|idle| idle.is_good(now, longest));
        // The end of the last response may not have reached the connection's own task yet.
        let ready = slot.idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(slot.idle.remove(ready))
    }

    fn keep(&self, hop: Hop, sender: http1::SendRequest<Outgoing>, carried: u32) {
        if sender.is_closed() {
            return;
        }
        let mut all = self.hold();
        let slot = all.entry((hop, Version::Http1)).or_default();
        if slot.idle.len() < IDLE {
            slot.idle.push(Idle { sender, since: Instant::now(), carried });
        }
    }

    /// The least loaded shared connection that may carry more, each `each` requests, or room for another.
    fn shared(&self, hop: &Hop, each: u32) -> Arc<Shared> {
        let mut all = self.hold();
        let slot = all.entry((hop.clone(), Version::Http2)).or_default();
        slot.shared.retain(|shared| !shared.is_closed());
        // One that has carried enough is closed by the last who uses it.
        slot.shared.retain(|shared| shared.carried.load(Ordering::Relaxed) < each);
        let quietest = slot.shared.iter().min_by_key(|shared| shared.active.load(Ordering::Relaxed));
        match quietest {
            Some(shared) if shared.active.load(Ordering::Relaxed) < SHARED => shared.clone(),
            Some(_) | None => {
                let shared = Arc::new(Shared::default());
                slot.shared.push(shared.clone());
                shared
            }
        }
    }

    fn hold(&self) -> MutexGuard<'_, HashMap<(Hop, Version), Slot>> {
        // Nothing that runs under the lock leaves it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect_http1(
    dial: &Dial,
    hop: &Hop,
    limit: Option<Duration>,
) -> Result<http1::SendRequest<Outgoing>, Refusal> {
    let io = io(dial.connect(hop, limit).await?);
    let (sender, connection) =
        http1::Builder::new().max_buf_size(HEAD).handshake(io).await.map_err(|error| failed(hop, &error))?;
    task::spawn("upstream HTTP/1.1", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "Upstream connection ended");
        }
    });
    Ok(sender)
}

async fn connect_http2(dial: &Dial, hop: &Hop, limit: Option<Duration>) -> Result<Http2, Refusal> {
    let io = io(dial.connect(hop, limit).await?);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4)
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
        .handshake(io)
        .await
        .map_err(|error| failed(hop, &error))?;
    let (tells, takes_streams) = watch::channel(None);
    task::spawn("upstream HTTP/2", async move {
        let mut connection = pin!(connection);
        // Nobody is told when the endpoint's settings come, which are the first that it says (RFC 9113, 3.4).
        let later = std::iter::repeat_n(LATER, MOST_LOOKS);
        for (number, wait) in LOOKS.into_iter().chain(later).enumerate() {
            if connection.is_extended_connect_protocol_enabled() {
                tells.send_replace(Some(true));
                break;
            }
            // Who waits learns that there is nothing to wait for; a slow endpoint may say it to those who come later.
            if number == LOOKS.len() {
                tells.send_replace(Some(false));
            }
            if let Ok(ended) = timeout(wait, connection.as_mut()).await {
                return report(ended);
            }
        }
        report(connection.await);
    });
    Ok(Http2 { sender, takes_streams })
}

fn report(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "Upstream connection ended");
    }
}

fn io(onward: Onward) -> Io {
    match onward {
        Onward::Plain(tcp) => Io::Plain(TokioIo::new(tcp)),
        Onward::Tunnel(stream, inner) => Io::Tunnel(TunnelIo::new(stream, Bytes::new()).within(inner)),
    }
}

fn failed(hop: &Hop, error: &hyper::Error) -> Refusal {
    Refusal::Connect { to: hop.address(), reason: error.to_string() }
}
