//! The spans of one request: one of a server, and one of a client for each time it is sent.
//!
//! Names and attributes are those of OpenTelemetry's semantic conventions for HTTP and RPC, and `ambit.…` for what those
//! do not know. Neither queries nor headers are among them, but for the user agent: they have secrets in them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ambit_model::{
    trace::{Context, Form, Received, Sampler, SpanId, TraceId},
    workload::Workload,
};
use ambit_wire::otlp::{Attributes, Kind, Queue, Span, Value};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::{GrpcStatus, Open};
use crate::{metrics::Metrics, refusal::Refusal};

/// Which requests get spans, and where those go.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    spans: Arc<Queue<Span>>,
}

/// The part of a trace that is made here.
#[derive(Debug)]
pub(super) struct Trace {
    spans: Arc<Queue<Span>>,
    /// The span of the request itself.
    context: Context,
    parent: Option<SpanId>,
    began: SystemTime,
    attempt: Option<Attempt>,
}

/// A request is being sent.
#[derive(Debug)]
struct Attempt {
    context: Context,
    began: Instant,
    workload: Arc<Workload>,
    address: SocketAddr,
    repeated: u32,
}

/// Reads the trace of a request. What is malformed is counted.
pub(super) fn received(headers: &HeaderMap, metrics: &Metrics) -> Received {
    let received = Received::read(headers);
    if !received.malformed.is_empty() {
        let malformed = Form::ALL.into_iter().filter(|form| received.malformed.has(*form));
        malformed.for_each(|form| metrics.malformed_trace(form));
    }
    received
}

impl Tracer {
    /// By `sampler`, to `spans`.
    pub fn new(sampler: Sampler, spans: Arc<Queue<Span>>) -> Self {
        Self { sampler, spans }
    }

    /// A request has come with these headers.
    pub(super) fn begin(&self, headers: &HeaderMap, metrics: &Metrics) -> Trace {
        let received = received(headers, metrics);
        let context = Context::of(&received, &self.sampler, rand::random, rand::random());
        let parent = received.parent.map(|parent| parent.span);
        Trace { spans: self.spans.clone(), context, parent, began: SystemTime::now(), attempt: None }
    }
}

impl Trace {
    /// Whether spans are made.
    pub(super) fn is_recorded(&self) -> bool {
        self.context.is_recorded
    }

    /// The trace's name.
    pub(super) fn id(&self) -> TraceId {
        self.context.trace
    }

    /// The own span.
    pub(super) fn span(&self) -> SpanId {
        self.context.span
    }

    /// The own span, as others are told of it.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// The request is sent to `workload` at `address`, after `repeated` others.
    pub(super) fn attempt(&mut self, workload: &Arc<Workload>, address: SocketAddr, repeated: u32) {
        if self.is_recorded() {
            let context = self.context.child(rand::random());
            let workload = workload.clone();
            self.attempt = Some(Attempt { context, began: Instant::now(), workload, address, repeated });
        }
    }

    /// Tells the endpoint within which span it is asked.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        self.attempt.as_ref().map_or(&self.context, |attempt| &attempt.context).write(headers);
    }

    /// What was sent is answered, or will not be.
    pub(super) fn answered(&mut self, open: &Request<'_>, outcome: Result<&Response<Incoming>, &Refusal>) {
        let Some(attempt) = self.attempt.take() else { return };
        let took = attempt.began.elapsed();
        let mut attributes = open.attributes();
        let Attempt { context, workload, address, repeated, .. } = attempt;
        attributes.extend([
            ("network.peer.address", Value::text(&address.ip().to_string())),
            ("network.peer.port", address.port().into()),
            ("ambit.upstream.workload", Value::text(workload.name.as_str())),
            ("ambit.upstream.namespace", Value::text(workload.namespace.as_str())),
        ]);
        if repeated > 0 {
            attributes.push(("http.request.resend_count", repeated.into()));
        }
        let failed = match outcome {
            Ok(response) => {
                attributes.push(("network.protocol.version", version(response.version()).into()));
                let grpc = GrpcStatus::read(response.headers()).filter(|_| open.is_grpc);
                answer(&mut attributes, Kind::Client, response.status(), grpc)
            }
            Err(refusal) => refused(&mut attributes, refusal),
        };
        let (began, ended) = (before(took), SystemTime::now());
        let parent = Some(self.context.span);
        self.push(&context, parent, Kind::Client, open.name(), (began, ended), attributes, failed);
    }

    /// All is over: the span of the request itself.
    pub(super) fn end(self, attributes: Attributes, name: String, took: Duration, failed: Option<String>) {
        if self.is_recorded() {
            let ended = self.began.checked_add(took).unwrap_or(self.began);
            let times = (self.began, ended);
            self.push(&self.context, self.parent, Kind::Server, name, times, attributes, failed);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a span, in one place")]
    fn push(
        &self,
        context: &Context,
        parent: Option<SpanId>,
        kind: Kind,
        name: String,
        (began, ended): (SystemTime, SystemTime),
        attributes: Attributes,
        failed: Option<String>,
    ) {
        self.spans.push(Span {
            trace: context.trace,
            id: context.span,
            parent,
            parent_is_remote: kind == Kind::Server,
            state: context.state().unwrap_or_default().to_owned(),
            name,
            kind,
            began,
            ended,
            attributes,
            failed,
        });
    }
}

/// What all spans of a request say.
pub(super) struct Request<'o> {
    method: &'o Method,
    uri: &'o http::Uri,
    service: Option<&'o str>,
    is_grpc: bool,
}

impl Open {
    pub(super) fn request(&self) -> Request<'_> {
        let service = self.service.as_ref().map(|service| service.hostname.as_str());
        Request { method: &self.method, uri: &self.uri, service, is_grpc: self.is_grpc }
    }

    /// What the span of the server says, and why it failed, if it did.
    pub(super) fn server_span(
        &self,
        refusal: Option<&Refusal>,
        flag: &'static str,
        sent: u64,
    ) -> (Attributes, Option<String>) {
        let mut attributes = self.request().attributes();
        let client = self.client.address;
        attributes.extend([
            ("network.protocol.version", version(self.version).into()),
            ("network.peer.address", Value::text(&client.ip().to_string())),
            ("network.peer.port", client.port().into()),
            ("client.address", Value::text(&client.ip().to_string())),
            ("http.request.body.size", self.received.bytes().into()),
            ("http.response.body.size", sent.into()),
            ("ambit.response_flags", flag.into()),
            ("ambit.attempts", self.attempts.into()),
        ]);
        let mut add = |name, value: Option<&str>| {
            attributes.extend(value.map(|value| (name, Value::text(value))));
        };
        let text = |value: &Option<http::HeaderValue>| {
            value.as_ref().and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        add("user_agent.original", text(&self.agent).as_deref());
        add("ambit.request_id", text(&self.id).as_deref());
        let workload = self.client.workload.as_ref();
        add("ambit.source.workload", workload.map(|one| one.name.as_str()));
        add("ambit.source.namespace", workload.map(|one| one.namespace.as_str()));
        add("ambit.source.principal", self.client.identity.as_ref().map(ToString::to_string).as_deref());
        let (route, rule) = self.route.as_deref().map(route_and_rule).unzip();
        add("ambit.route", route);
        add("ambit.rule", rule.flatten());
        let denied = match refusal {
            Some(Refusal::Denied(by)) => Some(by.to_string()),
            Some(Refusal::NoAuthorizer { policy, .. }) => Some(policy.clone()),
            Some(_) | None => None,
        };
        add("ambit.policy", denied.as_deref().or(self.policy.as_deref()));
        let answered = self.status.map(|status| {
            let grpc = self.grpc.filter(|_| self.is_grpc);
            answer(&mut attributes, Kind::Server, status, grpc)
        });
        let failed = match refusal {
            // The client is told of it by the status; what the client did wrong is no failure of the server.
            Some(refusal) if refusal.status().is_server_error() => {
                attributes.retain(|(name, _)| *name != "error.type");
                refused(&mut attributes, refusal)
            }
            Some(_) | None => answered.flatten(),
        };
        (attributes, failed)
    }
}

impl Request<'_> {
    /// Of few values: method and service, or the method of a gRPC call.
    pub(super) fn name(&self) -> String {
        if let Some((service, method)) = self.call() {
            return format!("{service}/{method}");
        }
        let method = known(self.method).unwrap_or("HTTP");
        match self.service {
            Some(service) => format!("{method} {service}"),
            None => method.to_owned(),
        }
    }

    /// Service and method of a gRPC call.
    fn call(&self) -> Option<(&str, &str)> {
        let path = self.uri.path().strip_prefix('/').filter(|_| self.is_grpc)?;
        path.rsplit_once('/')
    }

    fn attributes(&self) -> Attributes {
        // Enough for the span of a server, which has most.
        let mut attributes = Attributes::with_capacity(32);
        let authority = self.uri.authority();
        match known(self.method) {
            Some(method) => attributes.push(("http.request.method", method.into())),
            None => attributes.extend([
                ("http.request.method", "_OTHER".into()),
                ("http.request.method_original", Value::text(self.method.as_str())),
            ]),
        }
        attributes.extend([("url.scheme", "http".into()), ("url.path", Value::text(self.uri.path()))]);
        if let Some(authority) = authority {
            attributes.push(("server.address", Value::text(authority.host())));
            attributes.extend(authority.port_u16().map(|port| ("server.port", port.into())));
        }
        attributes.extend(self.service.map(|service| ("ambit.destination.service", Value::text(service))));
        if let Some((service, method)) = self.call() {
            attributes.extend([
                ("rpc.system", "grpc".into()),
                ("rpc.service", Value::text(service)),
                ("rpc.method", Value::text(method)),
            ]);
        }
        attributes
    }
}

/// `namespace/name` of a route, and its rule.
fn route_and_rule(text: &str) -> (&str, Option<&str>) {
    let mut slashes = text.match_indices('/');
    match slashes.nth(1) {
        Some((at, _)) => (text.get(..at).unwrap_or(text), text.get(at + 1..)),
        None => (text, None),
    }
}

/// What an answer says; and if it tells of a failure, an empty text: the status says all there is.
fn answer(
    attributes: &mut Attributes,
    kind: Kind,
    status: StatusCode,
    grpc: Option<GrpcStatus>,
) -> Option<String> {
    attributes.push(("http.response.status_code", status.as_u16().into()));
    attributes.extend(grpc.map(|GrpcStatus(code)| ("rpc.grpc.status_code", code.into())));
    let has_failed = match kind {
        Kind::Server => status.is_server_error(),
        Kind::Client => status.is_server_error() || status.is_client_error(),
    };
    if has_failed {
        attributes.push(("error.type", Value::text(status.as_str())));
        return Some(String::new());
    }
    let GrpcStatus(code) = grpc?;
    let has_failed = match kind {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS (conventions for gRPC).
        Kind::Server => [2, 4, 12, 13, 14, 15].contains(&code),
        Kind::Client => code != 0,
    };
    has_failed.then(|| {
        attributes.push(("error.type", Value::text(&code.to_string())));
        String::new()
    })
}

fn refused(attributes: &mut Attributes, refusal: &Refusal) -> Option<String> {
    attributes.push(("error.type", refusal.word().into()));
    Some(refusal.to_string())
}

/// The methods that the conventions know; any other could be any text.
fn known(method: &Method) -> Option<&'static str> {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]
        .into_iter()
        .find(|known| *known == method.as_str())
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

fn before(took: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(took).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(method: &str, path: &str, is_grpc: bool) -> String {
        let method = method.parse().expect("a method");
        let uri = format!("http://web{path}").parse().expect("a URI");
        Request { method: &method, uri: &uri, service: Some("web.shop"), is_grpc }.name()
    }

    #[test]
    fn names_have_few_values_and_no_query() {
        assert_eq!(named("GET", "/item/1?key=secret", false), "GET web.shop");
        assert_eq!(named("BREW", "/", false), "HTTP web.shop");
        assert_eq!(named("POST", "/shop.Cart/Add", true), "shop.Cart/Add");
        assert_eq!(named("POST", "/nothing", true), "POST web.shop");
    }

    #[test]
    fn a_rule_is_what_follows_the_name_of_its_route() {
        assert_eq!(route_and_rule("shop/web"), ("shop/web", None));
        assert_eq!(route_and_rule("shop/web/slow"), ("shop/web", Some("slow")));
        assert_eq!(route_and_rule("web"), ("web", None));
    }

    #[test]
    fn what_failed_is_told_of_servers_and_of_clients_in_their_own_way() {
        let failed = |kind, status: u16, grpc: Option<u16>| {
            let mut attributes = Attributes::new();
            let status = StatusCode::from_u16(status).expect("a status");
            let failed = answer(&mut attributes, kind, status, grpc.map(GrpcStatus)).is_some();
            assert_eq!(failed, attributes.iter().any(|(name, _)| *name == "error.type"));
            failed
        };
        assert!(!failed(Kind::Server, 404, None) && failed(Kind::Client, 404, None));
        assert!(failed(Kind::Server, 503, None) && failed(Kind::Client, 503, None));
        assert!(!failed(Kind::Server, 200, Some(5)) && failed(Kind::Client, 200, Some(5)));
        assert!(failed(Kind::Server, 200, Some(14)) && !failed(Kind::Client, 200, Some(0)));
    }
}
