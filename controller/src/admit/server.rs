//! Answers the API server: HTTPS, one path, everything bounded.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::Future,
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_runtime::{
    backoff::Backoff,
    drain::{self, Mode, Watch},
    task,
};
use ambit_wire::channel::{Entrance, Place};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::counter::ConstCounter};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::judge::{Asked, Verdict, judge};
use crate::{
    cluster::{
        Settings,
        object::{Kind, Rejection},
    },
    metrics::each,
};

/// Where the webhook is.
pub const PATH: &str = "/validate";

/// What the API server speaks to webhooks, and only that: it wants its requests spread over replicas.
const ALPN: &[u8] = b"http/1.1";
/// An object is 1.5 MiB at most, as etcd has it, and a review holds two: as it was and as it shall be.
const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// The head of a request, and the buffer of a connection.
const HEAD_LIMIT: usize = 16 * 1024;
/// Connections at once. The API server opens one for each review under way, and keeps some.
pub const MOST_CONNECTIONS: usize = 256;
/// Reviews read and judged at once. More wait: they cost memory and the engine's processors.
const MOST_REVIEWS: usize = 16;
/// All of a review. The API server waits ten seconds unless it is told otherwise, and then asks nobody else.
const REVIEW: Duration = Duration::from_secs(8);
/// A handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(120);
/// No connection outlives this, so that the API server looks for other replicas, and for certificates that are new.
const LIFETIME: Duration = Duration::from_secs(600);
/// What reviews under way may take when the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves until `stop` completes. `tls` is asked for each connection, so that certificates may be replaced.
pub async fn serve(
    entrance: Entrance,
    tls: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static,
    settings: Settings,
    counts: Counts,
    stop: impl Future<Output = ()> + Send,
) {
    let (drain, watch) = drain::channel();
    let door = Door {
        tls: Arc::new(tls),
        desk: Arc::new(Desk { settings, counts, reviews: Semaphore::new(MOST_REVIEWS) }),
        watch,
    };
    task::spawn("webhook listener", door.accept(entrance));
    stop.await;
    drain.start(Mode::Graceful { deadline: LAST_ANSWERS }).await;
}

/// What an accept loop needs, and hands on to connections.
struct Door<T> {
    tls: Arc<T>,
    desk: Arc<Desk>,
    watch: Watch,
}

impl<T> Clone for Door<T> {
    fn clone(&self) -> Self {
        Self { tls: Arc::clone(&self.tls), desk: Arc::clone(&self.desk), watch: self.watch.clone() }
    }
}

impl<T: Fn() -> Arc<ServerConfig> + Send + Sync + 'static> Door<T> {
    async fn accept(self, entrance: Entrance) {
        // Out of descriptors: soon there may be one again.
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let accepted = tokio::select! {
                accepted = self.accept_one(&entrance) => accepted,
                _ = self.watch.signaled() => return,
            };
            match accepted {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    warn!(%error, "Webhook connection could not be accepted");
                    tokio::select! {
                        () = sleep(backoff.next(0.0)) => {}
                        _ = self.watch.signaled() => return,
                    }
                }
            }
        }
    }

    async fn accept_one(&self, entrance: &Entrance) -> io::Result<()> {
        let (stream, _, place) = entrance.accept().await?;
        task::spawn("webhook connection", self.clone().serve(stream, place));
        Ok(())
    }

    async fn serve(self, stream: TcpStream, _place: Place) {
        let mut config = (*(self.tls)()).clone();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let accepting = TlsAcceptor::from(Arc::new(config)).accept(stream);
        let stream = match timeout(HANDSHAKE, accepting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(%error, "Webhook handshake failed");
                return;
            }
            Err(_) => return,
        };
        let service = service_fn(|request| self.desk.answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = last_call(&self.watch) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = self.watch.forced() => return,
                    () = sleep(REVIEW) => return,
                }
            }
        };
        if let Err(error) = ended {
            debug!(%error, "Webhook connection ended early");
        }
    }
}

/// Completes when a connection should take no more requests.
async fn last_call(watch: &Watch) {
    tokio::select! {
        _ = watch.signaled() => {}
        () = sleep(LIFETIME) => {}
    }
}

/// Judges what comes.
struct Desk {
    settings: Settings,
    counts: Counts,
    reviews: Semaphore,
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.uri().path() != PATH {
            return Ok(say(StatusCode::NOT_FOUND, "reviews are answered at /validate\n"));
        }
        if request.method() != Method::POST {
            return Ok(say(StatusCode::METHOD_NOT_ALLOWED, "post an AdmissionReview\n"));
        }
        let answer = async {
            let Ok(_place) = self.reviews.acquire().await else {
                return say(StatusCode::SERVICE_UNAVAILABLE, "the webhook ends\n");
            };
            match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
                Ok(body) => self.review(&body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    say(StatusCode::PAYLOAD_TOO_LARGE, "the review is longer than 3 MiB\n")
                }
                Err(_) => say(StatusCode::BAD_REQUEST, "the review broke off\n"),
            }
        };
        Ok(timeout(REVIEW, answer)
            .await
            .unwrap_or_else(|_| say(StatusCode::SERVICE_UNAVAILABLE, "too busy; try again\n")))
    }

    fn review(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let review: AdmissionReview<DynamicObject> = match serde_json::from_slice(body) {
            Ok(review) => review,
            Err(error) => {
                self.counts.add(None, "unreadable");
                debug!(%error, "A review could not be read");
                return say(StatusCode::BAD_REQUEST, "this is no AdmissionReview of admission.k8s.io/v1\n");
            }
        };
        let request: AdmissionRequest<DynamicObject> = match review.try_into() {
            Ok(request) => request,
            Err(_) => {
                self.counts.add(None, "unreadable");
                return say(StatusCode::BAD_REQUEST, "the AdmissionReview has no request\n");
            }
        };
        let response = self.decide(&request);
        match serde_json::to_vec(&response.into_review()) {
            Ok(answer) => {
                let mut response = Response::new(Full::new(Bytes::from(answer)));
                let json = http::HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                response
            }
            Err(_) => say(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written\n"),
        }
    }

    fn decide(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let mut response = AdmissionResponse::from(request);
        let gvk = &request.kind;
        let kind = Kind::of(&gvk.group, &gvk.version, &gvk.kind);
        let written = match request.operation {
            Operation::Create | Operation::Update => request.object.as_ref(),
            Operation::Delete | Operation::Connect => None,
        };
        let Some(object) = written.and_then(|object| serde_json::to_value(object).ok()) else {
            self.counts.add(kind, "admitted");
            return response;
        };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let asked = Asked {
            group: &gvk.group,
            version: &gvk.version,
            kind: &gvk.kind,
            namespace,
            name: &request.name,
            object: &object,
        };
        let (outcome, warnings) = match judge(&self.settings, &asked) {
            Verdict::NotOurs => ("admitted", Vec::new()),
            Verdict::Admitted(warnings) if warnings.is_empty() => ("admitted", warnings),
            Verdict::Admitted(warnings) => ("warned", warnings),
            Verdict::Refused(rejection) if is_no_worse(request, &object) => {
                ("warned", vec![rejection.to_string()])
            }
            Verdict::Refused(rejection) => {
                info!(
                    object.kind = gvk.kind,
                    object.namespace = namespace,
                    object.name = request.name,
                    field = rejection.field,
                    reason = rejection.what,
                    "An object was refused"
                );
                response = refused(response, &rejection);
                ("refused", Vec::new())
            }
        };
        self.counts.add(kind, outcome);
        if !warnings.is_empty() {
            response.warnings = Some(warnings);
        }
        response
    }
}

/// What is there already and wrong must still be labelled, and its finalizers taken away: only what changes `spec` is
/// held against it.
fn is_no_worse(request: &AdmissionRequest<DynamicObject>, object: &Value) -> bool {
    let leaves = object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let before = request.old_object.as_ref().map(|old| &old.data);
    let same = before.is_some_and(|before| before.get("spec") == object.get("spec"));
    request.operation == Operation::Update && (leaves || same)
}

fn refused(response: AdmissionResponse, rejection: &Rejection) -> AdmissionResponse {
    let mut response = response.deny(rejection);
    let message = response.result.message.clone();
    response.result = Status::failure(&message, "Invalid").with_code(422);
    response
}

fn say(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

/// What was decided. Cheap to clone; a [`Collector`] of its figures.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<BTreeMap<(&'static str, &'static str), u64>>>);

impl Counts {
    fn add(&self, kind: Option<Kind>, outcome: &'static str) {
        let kind = kind.map_or("other", Kind::word);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((kind, outcome)).or_default() += 1;
    }

    /// How often this was decided of this kind.
    pub fn of(&self, kind: &'static str, outcome: &'static str) -> u64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&(kind, outcome)).copied().unwrap_or_default()
    }
}

impl Collector for Counts {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let decisions = counts.iter().map(|((kind, outcome), count)| {
            ([("kind", *kind), ("outcome", *outcome)], ConstCounter::new(*count))
        });
        each(&mut to, "ambit_admission_decisions", "Objects that the webhook judged", decisions)
    }
}
