//! The controller's end: one stream for each subscriber, all fed from one [`Ledger`].
//!
//! A subscriber costs a task and a number for each type. It is woken when something was published,
//! asks the ledger what it lacks only when there is room to send it, and so gets many changes as one
//! response when it is slow. How far each one is, is shown by [`Publisher::subscribers`].

mod answers;
mod stream;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use ambit_proto::discovery::DeltaDiscoveryRequest;
use http::{
    HeaderMap,
    header::{CONTENT_TYPE, HeaderValue},
};
use http_body::Body;
use tokio::sync::watch;
use tonic::{
    Status, Streaming,
    codec::Codec as _,
    codegen::{Service, StdError},
    metadata::{MetadataMap, MetadataValue},
    server::NamedService,
};
use tonic_prost::ProstCodec;

use super::{
    Resource, ServerMetrics,
    ledger::{Ledger, Limits, Listed, Progress, UnknownType},
    message::{self, Response},
    throttle::Throttle,
};
use crate::{channel::ClientAddress, spawn::Spawner};
use answers::Answers;
use stream::{Record, Stream};

/// A reconnecting tunnel lists what it holds: 1 MiB for 10,000 resources. (The usual gRPC limit of
/// 4 MiB refuses the tunnels of very large meshes for ever.)
const LARGEST_REQUEST: usize = 64 * 1024 * 1024;
/// Every node of the largest clusters, and every gateway.
const SUBSCRIBERS: usize = 20_000;
/// How long an authenticator may take; it may have to ask an API server.
const AUTHENTICATION: Duration = Duration::from_secs(10);
/// A subscriber whose host is gone is noticed after both.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Who opened a stream, as proven by its credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// For the log.
    pub name: String,
    /// The namespace that the node must say it is in.
    pub namespace: String,
    /// The service account that the node must have, if it names one.
    pub service_account: String,
    /// The machine that the node must be on, where the credentials say so.
    pub node: Option<String>,
}

/// Decides who a caller is.
pub trait Authenticator: Send + Sync + 'static {
    /// Reads the credentials in the request's metadata. The status of a refusal goes to the caller:
    /// `unauthenticated`, worded with the remedy.
    fn authenticate(&self, metadata: &MetadataMap) -> impl Future<Output = Result<Caller, Status>> + Send;
}

/// The gRPC service; give it to [`builder`]. Cheap to clone.
#[derive(Debug)]
pub struct Server<A> {
    authenticator: Arc<A>,
    shared: Arc<Shared>,
}

/// The hand that feeds the ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Shared>);

/// One stream, for the admin page and `ambit status`.
#[derive(Clone, Debug)]
pub struct SubscriberState {
    /// The node id it gave; empty until its first request.
    pub node_id: String,
    /// The machine it is on, if it said so.
    pub node_name: String,
    /// Who it is by its credentials.
    pub caller: String,
    /// Where it came from.
    pub peer: Option<std::net::SocketAddr>,
    /// When its stream was opened.
    pub since: SystemTime,
    /// How far it is.
    pub types: Vec<TypeState>,
}

/// How far a subscriber is, for one type.
#[derive(Clone, Debug)]
pub struct TypeState {
    /// The numbers.
    pub progress: Progress,
    /// Since when a response waits for its answer.
    pub waiting_since: Option<SystemTime>,
    /// When it last answered.
    pub last_answer: Option<SystemTime>,
    /// The last rejection, if there was one since the stream was opened.
    pub last_nack: Option<(SystemTime, String)>,
}

/// A gRPC server with the settings that long-lived streams need: keepalive, no idle limit.
pub fn builder() -> tonic::transport::Server {
    let (interval, timeout) = KEEPALIVE;
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(timeout))
        .tcp_nodelay(true)
}

impl<A: Authenticator> Server<A> {
    /// A server of these types, pushed in this order. Nothing is answered until the publisher
    /// [opens](Publisher::open) it.
    pub fn new(
        types: impl IntoIterator<Item = impl Into<String>>,
        limits: Limits,
        authenticator: A,
        spawner: Spawner,
    ) -> (Self, Publisher) {
        let shared = Arc::new(Shared {
            ledger: RwLock::new(Ledger::new(types, limits)),
            signal: watch::Sender::new(Signal::Published),
            streams: Mutex::default(),
            ids: AtomicU64::new(0),
            metrics: ServerMetrics::default(),
            throttle: Throttle::new(),
            spawner,
        });
        (Self { authenticator: Arc::new(authenticator), shared: shared.clone() }, Publisher(shared))
    }

    async fn accept<B>(self, request: http::Request<B>) -> Result<Answers, Status>
    where
        B: Body<Error: Into<StdError>> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        uncompressed(&parts.headers)?;
        let metadata = MetadataMap::from_headers(parts.headers);
        let authentication = self.authenticator.authenticate(&metadata);
        let answered = tokio::time::timeout(AUTHENTICATION, authentication).await;
        let late = |_| Status::unavailable("credentials could not be checked in time; try again");
        let refuse = |status| {
            self.shared.metrics.refuse();
            status
        };
        let caller = answered.map_err(late).flatten().map_err(refuse)?;
        if *self.shared.signal.borrow() == Signal::Closing {
            return Err(Status::unavailable("this controller stops; try another"));
        }
        let peer = parts.extensions.get::<ClientAddress>().and_then(|address| address.0);
        let decoder = ProstCodec::<Response, DeltaDiscoveryRequest>::default().decoder();
        let requests = Streaming::new_request(decoder, body, None, Some(LARGEST_REQUEST));
        let (stream, answers) = Stream::open(self.shared.clone(), caller, peer, requests).map_err(refuse)?;
        self.shared.spawner.spawn("xds subscriber", stream.run());
        Ok(answers)
    }
}

/// gRPC's header for a compressed request, which no tunnel sends.
fn uncompressed(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get("grpc-encoding") {
        Some(encoding) if encoding != "identity" => {
            let text = format!("requests in encoding {encoding:?} are not read; send them as identity");
            let mut status = Status::unimplemented(text);
            let accepted = MetadataValue::from_static("identity");
            status.metadata_mut().insert("grpc-accept-encoding", accepted);
            Err(status)
        }
        Some(_) | None => Ok(()),
    }
}

impl Publisher {
    /// Publishes one batch of one type: removals, then upserts, seen by every subscriber together.
    /// What did not change costs nothing. True if anything did.
    pub fn update(
        &self,
        type_url: &str,
        upserts: Vec<Resource>,
        removals: &[String],
    ) -> Result<bool, UnknownType> {
        let changed = self.0.write().update(type_url, upserts, removals)?;
        if changed {
            self.0.signal.send_replace(Signal::Published);
        }
        Ok(changed)
    }

    /// The first full load is published: answer from now on. Before it, an answer would tell those
    /// who return after a restart that everything is gone.
    pub fn open(&self) {
        self.0.write().open();
        self.0.signal.send_replace(Signal::Published);
    }

    /// Ends every stream and takes no new one, so that subscribers look for another controller.
    pub fn close(&self) {
        self.0.signal.send_replace(Signal::Closing);
    }

    /// Each type, how many resources it has, and the number of its latest change.
    pub fn contents(&self) -> Vec<(String, usize, u64)> {
        self.0.ledger().contents().map(|(url, count, latest)| (url.to_owned(), count, latest)).collect()
    }

    /// Every published resource, by type and name.
    pub fn listing(&self) -> Vec<Listed> {
        self.0.ledger().listing()
    }

    /// Every stream that is open, oldest first.
    pub fn subscribers(&self) -> Vec<SubscriberState> {
        let records: Vec<_> = self.0.streams().values().cloned().collect();
        let ledger = self.0.ledger();
        records
            .iter()
            .map(|record| record.lock().unwrap_or_else(PoisonError::into_inner).state(&ledger))
            .collect()
    }

    /// The server's counters.
    pub fn metrics(&self) -> &ServerMetrics {
        &self.0.metrics
    }
}

/// What the streams of all subscribers share.
#[derive(Debug)]
struct Shared {
    ledger: RwLock<Ledger>,
    signal: watch::Sender<Signal>,
    streams: Mutex<BTreeMap<u64, Arc<Mutex<Record>>>>,
    ids: AtomicU64,
    metrics: ServerMetrics,
    throttle: Throttle,
    spawner: Spawner,
}

/// Why the streams are woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Published,
    Closing,
}

impl Shared {
    fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ledger> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Mutex<Record>>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a stream on the list.
    fn enter(&self, record: Arc<Mutex<Record>>) -> Result<u64, Status> {
        let mut streams = self.streams();
        if streams.len() >= SUBSCRIBERS {
            let text = format!("{SUBSCRIBERS} subscribers are connected; add a controller");
            return Err(Status::resource_exhausted(text));
        }
        let id = self.ids.fetch_add(1, Relaxed);
        streams.insert(id, record);
        self.metrics.opened();
        Ok(id)
    }

    /// Takes it off.
    fn leave(&self, id: u64) {
        if self.streams().remove(&id).is_some() {
            self.metrics.closed();
        }
    }
}

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<A> Clone for Server<A> {
    fn clone(&self) -> Self {
        Self { authenticator: self.authenticator.clone(), shared: self.shared.clone() }
    }
}

impl<A> NamedService for Server<A> {
    const NAME: &'static str = message::SERVICE;
}

/// A stream is answered with success at once; how it ended is told when it ends.
fn respond(accepted: Result<Answers, Status>) -> http::Response<tonic::body::Body> {
    match accepted {
        Ok(answers) => {
            let mut response = http::Response::new(tonic::body::Body::new(answers));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http(),
    }
}

impl<A, B> Service<http::Request<B>> for Server<A>
where
    A: Authenticator,
    B: Body<Error: Into<StdError> + Send> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pending<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let refusal = match request.uri().path() {
            message::DELTA => {
                let accepted = self.clone().accept(request);
                return Box::pin(async { Ok(respond(accepted.await)) });
            }
            message::WHOLE_WORLD => {
                "state-of-the-world discovery is not served; use DeltaAggregatedResources"
            }
            _ => "no such method; this service has DeltaAggregatedResources",
        };
        Box::pin(std::future::ready(Ok(Status::unimplemented(refusal).into_http())))
    }
}
