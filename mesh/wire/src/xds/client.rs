//! The tunnel's end: holds one stream to the control plane, and comes back when it breaks.
//!
//! The story of a life: connect, open each type, then for every response apply, wake, answer. What to
//! say is decided in `subscription`, when to return in [`backoff`]. A server that says
//! nothing is left alone; one whose host is gone is noticed by the channel's HTTP/2 keepalive.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use ambit_proto::discovery::{DeltaDiscoveryRequest, Node};
use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    codegen::{Body, Service, StdError},
    service::interceptor::ResponseBody,
};
use tonic_prost::ProstCodec;
use tracing::{debug, info, warn};

use crate::channel::{Channel, ControlPlane};

use super::{
    ClientMetrics, Handler, Mode, NodeInfo,
    backoff::{self, Backoff, Outcome, next_attempt},
    message::{self, Response},
    subscription::{Asked, Subscriptions},
};

/// A whole mesh may come in one response.
const LARGEST_RESPONSE: usize = 200 * 1024 * 1024;
/// Keys that may be waited for at a time: each is a connection of some pod that cannot go on.
const PENDING: usize = 8192;
/// Requests handed to the transport ahead of its reading them; more wait in the backlog.
const OUTBOUND: usize = 64;

/// How to reach the control plane; called for each attempt, so that addresses, trust and tokens may
/// have changed in between.
pub trait Connect: Send {
    /// What responses are made of.
    type Body: Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static;
    /// A gRPC channel, with whatever credentials it adds.
    type Channel: Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<Self::Body>,
            Error: Into<StdError>,
            Future: Send,
        > + Send;

    /// Makes a channel. It may connect at once or when first used.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Channel, ConnectError>> + Send;
}

impl Connect for ControlPlane {
    type Body = ResponseBody<tonic::body::Body>;
    type Channel = Channel;

    async fn connect(&mut self) -> Result<Channel, ConnectError> {
        Ok(self.channel())
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The other side cannot be reached; patience grows.
    #[error("cannot reach the control plane: {0}")]
    Unreachable(#[source] StdError),
    /// Trust material, token or address are not usable; tried again soon.
    #[error("cannot prepare the connection to the control plane: {0}")]
    Local(#[source] StdError),
}

/// One process's subscription to the control plane.
pub struct Client<C, H> {
    connect: C,
    handler: H,
    node: Node,
    asks: Asks,
    shared: Arc<Shared>,
}

/// The rest of the process's view of its [`Client`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    demands: mpsc::Sender<Demand>,
    shared: Arc<Shared>,
}

/// What an operator wants to know of the connection.
#[derive(Clone, Debug, Default)]
pub struct ClientState {
    /// Since when the stream is open; none while it is not.
    pub connected_since: Option<SystemTime>,
    /// Since when it is not open; none while it is, and before the first attempt.
    pub disconnected_since: Option<SystemTime>,
    /// When the last response was applied.
    pub last_update: Option<SystemTime>,
    /// The last response that could not be applied whole.
    pub last_nack: Option<Nack>,
    /// How the last stream, or attempt at one, ended.
    pub last_end: Option<String>,
    /// Each type and how many resources of it are held.
    pub held: Vec<(String, usize)>,
}

/// A response that could not be applied whole.
#[derive(Clone, Debug)]
pub struct Nack {
    /// When.
    pub at: SystemTime,
    /// Of which type.
    pub type_url: String,
    /// `name: reason; …`.
    pub message: String,
}

/// Why a demand was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// No answer in time. It stays asked; the next demand may find it.
    #[error("the control plane did not answer in time; is it reachable?")]
    Timeout,
    /// Too many keys are waited for.
    #[error("more than {PENDING} resources are waited for; is the control plane reachable?")]
    Busy,
    /// This type comes by itself: what is not there does not exist.
    #[error("resources of this type are not fetched on demand")]
    NotOnDemand,
    /// The client stopped.
    #[error("the connection to the control plane was closed for good")]
    Stopped,
}

impl<C: Connect, H: Handler> Client<C, H> {
    /// A client that subscribes to these types, in this order, when it [runs](Self::run).
    pub fn new(
        node: &NodeInfo,
        types: impl IntoIterator<Item = (&'static str, Mode)>,
        connect: C,
        handler: H,
        metrics: Arc<ClientMetrics>,
    ) -> (Self, Handle) {
        let subscriptions = Subscriptions::new(types.into_iter().map(|(url, mode)| (url.to_owned(), mode)));
        let (demands, inbox) = mpsc::channel(PENDING);
        let synced = watch::Sender::new(subscriptions.synced());
        let shared = Arc::new(Shared { state: Mutex::default(), synced, metrics });
        let handle = Handle { demands, shared: shared.clone() };
        let asks = Asks { subscriptions, waiters: HashMap::new(), inbox, backlog: VecDeque::new() };
        (Self { connect, handler, node: node.message(), asks, shared }, handle)
    }

    /// Keeps a stream open until `stop`.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        let mut stop = std::pin::pin!(stop);
        let mut patience = Backoff::default();
        loop {
            let outcome = tokio::select! {
                outcome = self.session() => outcome,
                () = &mut stop => return,
            };
            let pause = next_attempt(&outcome, &mut patience);
            self.shared.ended(&outcome, pause);
            tokio::select! {
                () = self.asks.during(tokio::time::sleep(pause)) => {}
                () = &mut stop => return,
            }
        }
    }

    /// One attempt to hold a stream, from connecting to its end.
    async fn session(&mut self) -> Outcome {
        let channel = match self.asks.during(self.connect.connect()).await {
            Ok(channel) => channel,
            Err(ConnectError::Unreachable(why)) => return Outcome::NotOpened(explain(&*why)),
            Err(ConnectError::Local(why)) => return Outcome::Local(explain(&*why)),
        };
        let (outbound, requests) = mpsc::channel(OUTBOUND);
        self.asks.open(&self.node);
        let mut stream = tokio::select! {
            opened = open(channel, requests) => match opened {
                Ok(stream) => stream,
                Err(status) => return Outcome::NotOpened(explain(&status)),
            },
            never = self.asks.keep_sending(&outbound) => match never {},
        };
        self.shared.opened();
        let mut served = false;
        loop {
            let response = tokio::select! {
                response = stream.message() => response,
                never = self.asks.keep_sending(&outbound) => match never {},
            };
            match response {
                Ok(Some(response)) => {
                    self.take(response);
                    served = true;
                }
                Ok(None) => return Outcome::Complete { served },
                Err(status) => {
                    return Outcome::Status { code: status.code(), message: explain(&status) };
                }
            }
        }
    }

    /// Applies a response, wakes who waited for it, and answers; in this order.
    fn take(&mut self, response: Response) {
        self.shared.metrics.received.add(&response.type_url, response.encoded_len());
        let (update, receipt) = self.asks.subscriptions.receive(response);
        let type_url = update.type_url.clone();
        let rejected = if self.asks.subscriptions.knows(&type_url) {
            self.handler.apply(update)
        } else {
            warn!(xds.url = %type_url, "Response of a type that was not asked for");
            Vec::new()
        };
        let settled = self.asks.subscriptions.settle(receipt, &rejected);
        self.asks.wake(&type_url, &settled.woken);
        self.asks.backlog.push_back(settled.reply);
        self.shared.updated(&type_url, settled.nack, &self.asks.subscriptions);
    }
}

impl Handle {
    /// Completes when every type that comes by itself was taken whole once (or, if the client is
    /// gone, never).
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        if synced.wait_for(|synced| *synced).await.is_err() {
            pending().await
        }
    }

    /// Whether [`synced`](Self::synced) has completed.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Asks for a resource by name or alias. When this returns `Ok`, the control plane has answered
    /// and the handler has applied the answer, which may be that there is no such thing.
    pub async fn demand(&self, type_url: &str, key: &str, limit: Duration) -> Result<(), DemandError> {
        let (done, answer) = oneshot::channel();
        let demand = Demand { type_url: type_url.to_owned(), key: key.to_owned(), done };
        self.demands.try_send(demand).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => DemandError::Busy,
            mpsc::error::TrySendError::Closed(_) => DemandError::Stopped,
        })?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(DemandError::Stopped),
            Err(_) => Err(DemandError::Timeout),
        }
    }

    /// How the connection is.
    pub fn state(&self) -> ClientState {
        self.shared.state().clone()
    }
}

async fn open<S, B>(
    channel: S,
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<tonic::Streaming<Response>, tonic::Status>
where
    B: Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    S: Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<B>,
            Error: Into<StdError>,
            Future: Send,
        >,
{
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(LARGEST_RESPONSE);
    grpc.ready().await.map_err(|e| tonic::Status::unavailable(explain(&*e.into())))?;
    let codec = ProstCodec::<DeltaDiscoveryRequest, Response>::default();
    let request = tonic::Request::new(ReceiverStream::new(requests));
    let response = grpc.streaming(request, PathAndQuery::from_static(message::DELTA), codec).await?;
    Ok(response.into_inner())
}

/// Everything that may be said to the control plane, and who waits for an answer.
struct Asks {
    subscriptions: Subscriptions,
    /// By type and key.
    waiters: HashMap<(String, String), Vec<Waiter>>,
    inbox: mpsc::Receiver<Demand>,
    /// To be sent as soon as the transport takes it. Holds at most one request for each demanded key
    /// and one answer for each response that the server sent without reading.
    backlog: VecDeque<DeltaDiscoveryRequest>,
}

#[derive(Debug)]
struct Demand {
    type_url: String,
    key: String,
    done: Waiter,
}

/// Somebody who cannot go on without an answer.
type Waiter = oneshot::Sender<Result<(), DemandError>>;

/// The type of a future that does not end.
enum Never {}

impl Asks {
    /// A new stream: what was not sent on the old one is part of its first requests.
    fn open(&mut self, node: &Node) {
        self.backlog = self.subscriptions.open(node).into();
    }

    /// Takes demands while something else happens.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.take_demands() => match never {},
        }
    }

    async fn take_demands(&mut self) -> Never {
        while let Some(demand) = self.inbox.recv().await {
            self.demanded(demand);
        }
        pending().await
    }

    /// Takes demands and empties the backlog. Losing this future loses nothing.
    async fn keep_sending(&mut self, outbound: &mpsc::Sender<DeltaDiscoveryRequest>) -> Never {
        loop {
            tokio::select! {
                Some(demand) = self.inbox.recv() => self.demanded(demand),
                Ok(slot) = outbound.reserve(), if !self.backlog.is_empty() => {
                    if let Some(request) = self.backlog.pop_front() {
                        slot.send(request);
                    }
                }
                else => pending().await,
            }
        }
    }

    fn demanded(&mut self, Demand { type_url, key, done }: Demand) {
        if self.waiters.len() >= PENDING {
            self.forget_the_abandoned();
        }
        if self.waiters.len() >= PENDING {
            let _gone = done.send(Err(DemandError::Busy));
            return;
        }
        match self.subscriptions.demand(&type_url, &key) {
            Asked::NotOnDemand => {
                let _gone = done.send(Err(DemandError::NotOnDemand));
                return;
            }
            Asked::Request(request) => self.backlog.push_back(*request),
            Asked::Already => {}
        }
        self.waiters.entry((type_url, key)).or_default().push(done);
    }

    fn wake(&mut self, type_url: &str, keys: &[String]) {
        for key in keys {
            let waiters = self.waiters.remove(&(type_url.to_owned(), key.clone()));
            for waiter in waiters.into_iter().flatten() {
                let _gone = waiter.send(Ok(()));
            }
        }
    }

    fn forget_the_abandoned(&mut self) {
        let subscriptions = &mut self.subscriptions;
        self.waiters.retain(|(type_url, key), waiting| {
            let wanted = waiting.iter().any(|waiter| !waiter.is_closed());
            if !wanted {
                subscriptions.forget(type_url, key);
            }
            wanted
        });
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<ClientState>,
    synced: watch::Sender<bool>,
    metrics: Arc<ClientMetrics>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) {
        info!("Connected to the control plane");
        let mut state = self.state();
        state.connected_since = Some(SystemTime::now());
        state.disconnected_since = None;
        drop(state);
    }

    fn updated(&self, type_url: &str, nack: Option<String>, subscriptions: &Subscriptions) {
        let at = SystemTime::now();
        let mut state = self.state();
        state.last_update = Some(at);
        state.held = subscriptions.held().map(|(url, _, count)| (url.to_owned(), count)).collect();
        if let Some(message) = nack {
            warn!(xds.url = %type_url, nack = %message, "Response not applied whole");
            state.last_nack = Some(Nack { at, type_url: type_url.to_owned(), message });
        }
        drop(state);
        self.synced.send_if_modified(|synced| {
            !std::mem::replace(synced, *synced || subscriptions.synced()) && *synced
        });
    }

    fn ended(&self, outcome: &Outcome, pause: Duration) {
        let why = match outcome {
            Outcome::Complete { .. } => "ended by the control plane".to_owned(),
            Outcome::Status { code, message } => format!("{code:?}: {message}"),
            Outcome::NotOpened(why) | Outcome::Local(why) => why.clone(),
        };
        let reason = backoff::reason(outcome);
        self.metrics.terminated(reason);
        match reason {
            backoff::Reason::Complete | backoff::Reason::Reconnect => {
                debug!(reason = reason.label(), error = %why, "Stream to the control plane ended");
            }
            backoff::Reason::ConnectionError | backoff::Reason::Error => {
                warn!(
                    reason = reason.label(), error = %why, retry.after = ?pause,
                    "No stream to the control plane; what is known stays in force"
                );
            }
        }
        let mut state = self.state();
        state.connected_since = None;
        // Attempts that fail later do not change since when.
        state.disconnected_since.get_or_insert_with(SystemTime::now);
        state.last_end = Some(why);
    }
}

/// An error with all its causes: transports hide the useful one at the bottom.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
