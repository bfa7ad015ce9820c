//! One record per request, and one per connection that is not looked into: counted, and written to the access log, once,
//! at its end; and the spans of a request that is traced.

mod carried;
mod spans;
pub mod template;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_model::{
    address::Target,
    route::retry::Next,
    service::Service,
    trace::{Context, TraceId},
    workload::Workload,
};
use ambit_proxy::metrics::{Ends, Peer, WELL};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
};
use hyper::body::Incoming;

pub use self::{
    carried::{Carried, refused_early},
    spans::Tracer,
};
use self::{
    spans::Trace,
    template::{Facts, Template},
};
use crate::{
    accept::arrival::Client,
    body::Passed,
    caller::debug::Shown,
    explain::{Explanation, X_AMBIT_EXPLANATION},
    hygiene::X_REQUEST_ID,
    metrics::{Metrics, RequestLabels},
    permit::Permit,
    refusal::Refusal,
    upstream::{attempt::Witness, endpoints::Standing},
};

/// The flag of a request that was held back on purpose, as Envoy has it.
const DELAYED: &str = "DI";

/// Where records go.
#[derive(Debug)]
pub struct Records {
    /// Everything that is counted.
    pub metrics: Arc<Metrics>,
    /// Which requests get spans; `None`: none, and what the caller says of a trace is passed on as it is.
    pub tracer: Option<Tracer>,
    /// What a line of the log is, unless it is text or JSON with every field.
    pub template: Option<Template>,
}

impl Records {
    /// Writes a line as the template says.
    fn write(&self, template: &Template, facts: &Facts<'_>) {
        let line = template.line(facts);
        let (trace, span) = (facts.trace.map(|id| id.to_string()), facts.span.map(|id| id.to_string()));
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::INFO,
            line = line.as_str(),
            trace.id = trace.as_deref(),
            span.id = span.as_deref(),
        );
    }
}

/// The record of a request. It must be [closed](Self::close): dropped without, the request is counted nowhere.
#[derive(Debug)]
#[must_use = "a record is written when it is closed"]
pub struct Record(Box<Open>);

#[derive(Debug)]
struct Open {
    records: Arc<Records>,
    at: Instant,
    client: Arc<Client>,
    asked: Target,
    service: Option<Arc<Service>>,
    method: Method,
    uri: Uri,
    version: Version,
    id: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    is_grpc: bool,
    route: Option<String>,
    /// It was held back on purpose.
    delayed: bool,
    upstream: Option<(Arc<Workload>, SocketAddr)>,
    attempts: u32,
    received: Passed,
    status: Option<StatusCode>,
    grpc: Option<GrpcStatus>,
    refusal: Option<Refusal>,
    /// On its own: a request that is not traced has no room for it.
    trace: Option<Box<Trace>>,
    /// The trace that the caller told of, where nobody records it and the log wants it.
    told: Option<TraceId>,
    /// By which policy it may go on; only of a request that is traced.
    policy: Option<String>,
    /// What the template has of the request's head, and of the response's.
    taken: Taken,
    /// What came of its debug token, if it has one.
    shown: Option<Shown>,
}

#[derive(Debug, Default)]
struct Taken {
    request: Box<[Option<HeaderValue>]>,
    response: Box<[Option<HeaderValue>]>,
}

/// What a gRPC call ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrpcStatus(pub u16);

impl GrpcStatus {
    /// From the headers or trailers of a response.
    fn read(headers: &HeaderMap) -> Option<Self> {
        headers.get("grpc-status")?.to_str().ok()?.parse().ok().map(Self)
    }
}

impl Record {
    /// A request has come.
    pub fn open(
        records: &Arc<Records>,
        client: &Arc<Client>,
        asked: &Target,
        head: &Request<Incoming>,
    ) -> Self {
        let begin = |tracer: &Tracer| Box::new(tracer.begin(head.headers(), &records.metrics));
        let trace = records.tracer.as_ref().map(begin);
        let wants_trace = trace.is_none() && records.template.as_ref().is_some_and(Template::has_trace);
        let told = wants_trace.then(|| spans::received(head.headers(), &records.metrics).parent).flatten();
        let content = head.headers().get(header::CONTENT_TYPE);
        let is_grpc = content.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        // A call's refusal is a 200, which a stream would take for a yes.
        let is_grpc = is_grpc && head.method() != Method::CONNECT;
        Self(Box::new(Open {
            records: records.clone(),
            at: Instant::now(),
            client: client.clone(),
            asked: asked.clone(),
            service: None,
            method: head.method().clone(),
            uri: head.uri().clone(),
            version: head.version(),
            id: None,
            agent: head.headers().get(header::USER_AGENT).cloned(),
            is_grpc,
            route: None,
            delayed: false,
            upstream: None,
            attempts: 0,
            received: Passed::default(),
            status: None,
            grpc: None,
            refusal: None,
            trace,
            told: told.map(|parent| parent.trace),
            policy: None,
            taken: Taken::default(),
            shown: None,
        }))
    }

    /// It has a debug token, and this came of it.
    pub fn shows(&mut self, shown: Shown) {
        self.0.shown = Some(shown);
    }

    /// Adds to what is explained of it, if anything is. It has come so long ago.
    pub fn explain(&mut self, add: impl FnOnce(&mut Explanation, Duration)) {
        if let Some(Shown::Explains(explanation)) = &mut self.0.shown {
            add(explanation, self.0.at.elapsed());
        }
    }

    /// Tells the bearer of a debug token what came of his request; `refusal` is what ended it, if something did. Who shows
    /// one is told by us alone.
    pub fn tell_explanation(&mut self, refusal: Option<&Refusal>, headers: &mut HeaderMap) {
        let Some(shown) = self.0.shown.take() else { return };
        headers.remove(&X_AMBIT_EXPLANATION);
        match shown {
            Shown::Explains(explanation) => explanation.tell(refusal, self.0.at.elapsed(), headers),
            Shown::Says(why) => {
                if let Ok(why) = HeaderValue::try_from(why) {
                    headers.insert(X_AMBIT_EXPLANATION, why);
                }
            }
            Shown::Nothing => {}
        }
    }

    /// Its head has its one reading.
    pub fn read(&mut self, head: &Parts) {
        (self.0.method, self.0.uri) = (head.method.clone(), head.uri.clone());
        self.0.id = head.headers.get(&X_REQUEST_ID).cloned();
        if let Some(template) = &self.0.records.template {
            self.0.taken.request = template.of_request(&head.headers);
        }
    }

    /// It may go on.
    pub fn permitted(&mut self, permit: &Permit) {
        self.explain(|told, _| told.permitted(permit));
        if self.0.trace.as_ref().is_some_and(|trace| trace.is_recorded()) {
            self.0.policy = Some(permit.granted_by().to_string());
        }
    }

    /// The span in which it is answered, if it is traced.
    pub fn context(&self) -> Option<Context> {
        self.0.trace.as_ref().map(|trace| trace.context().clone())
    }

    /// It is meant for `service`.
    pub fn meant_for(&mut self, service: Option<&Arc<Service>>) {
        self.0.service = service.cloned();
    }

    /// It takes this route.
    pub fn route(&mut self, name: Option<String>) {
        self.0.route = name;
    }

    /// It is held back on purpose.
    pub fn delayed(&mut self) {
        self.0.delayed = true;
    }

    /// Counts the bytes of its body.
    pub fn received(&self) -> Passed {
        self.0.received.clone()
    }

    /// It is a gRPC call, which is answered in its own way.
    pub fn is_grpc(&self) -> bool {
        self.0.is_grpc
    }

    /// The head of its response.
    pub fn responded(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.0.status = Some(status);
        self.0.grpc = GrpcStatus::read(headers);
        if let Some(template) = &self.0.records.template {
            self.0.taken.response = template.of_response(headers);
        }
    }

    /// The trailers of its response.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.0.grpc = GrpcStatus::read(trailers).or(self.0.grpc);
    }

    /// It is answered here, for this reason.
    pub fn refused(&mut self, refusal: Refusal) {
        self.0.refusal = Some(refusal);
    }

    /// Counts it, and writes it to the log. `sent` bytes of its response's body have passed.
    pub fn close(self, outcome: Result<(), &Refusal>, sent: u64) {
        let mut open = *self.0;
        let trace = open.trace.take();
        let refusal = outcome.err().or(open.refusal.as_ref());
        let flag = open.flag(refusal);
        let took = open.at.elapsed();
        let status = open.status.map_or(0, |status| status.as_u16());
        let upstream = open.upstream.as_ref();
        let labels = RequestLabels {
            ends: Ends {
                source: Peer {
                    workload: open.client.workload.as_ref(),
                    identity: open.client.identity.as_ref(),
                },
                destination: Peer { workload: upstream.map(|(workload, _)| workload), identity: None },
                service: open.service.as_ref(),
            },
            is_grpc: open.is_grpc,
            status,
            grpc: open.grpc.filter(|_| open.is_grpc),
            flag,
            mutual_tls: open.client.identity.is_some(),
        };
        let metrics = &open.records.metrics;
        metrics.requests.ended(&labels, took, open.received.bytes(), sent);
        if let Some(refusal) = refusal {
            metrics.refused(refusal);
        }
        open.write(trace.as_deref(), refusal, took, sent);
        if let Some(trace) = trace.filter(|trace| trace.is_recorded()) {
            let (attributes, failed) = open.server_span(refusal, flag, sent);
            trace.end(attributes, open.request().name(), took, failed);
        }
    }
}

impl Open {
    /// The response flag. One that went well all the same may have been held back.
    fn flag(&self, refusal: Option<&Refusal>) -> &'static str {
        refusal.map_or(if self.delayed { DELAYED } else { WELL }, Refusal::flag)
    }

    /// Writes it to the log.
    fn write(&self, trace: Option<&Trace>, refusal: Option<&Refusal>, took: Duration, sent: u64) {
        let open = self;
        let flag = open.flag(refusal);
        let status = open.status.map_or(0, |status| status.as_u16());
        let upstream = open.upstream.as_ref();
        if let Some(template) = &open.records.template {
            if !tracing::enabled!(target: "access", tracing::Level::INFO) {
                return;
            }
            let reached = open.status.is_some() && refusal.is_none() && upstream.is_some();
            let details = if reached { Some("via_upstream") } else { refusal.map(Refusal::word) };
            let facts = Facts {
                method: Some(&open.method),
                uri: Some(&open.uri),
                protocol: Some(protocol(open.version)),
                status,
                grpc: open.grpc.map(|status| status.0),
                details,
                failure: refusal.filter(|_| flag == "UF").map(ToString::to_string),
                received: open.received.bytes(),
                sent,
                upstream: upstream.map(|(_, address)| *address),
                attempts: open.attempts,
                service: open.service.as_ref().map(|service| service.hostname.as_str()),
                client: Some(open.client.address),
                asked: Some(&open.asked),
                route: open.route.as_deref(),
                peer: open.client.identity.as_ref(),
                trace: trace.map(Trace::id).or(open.told),
                span: trace.map(Trace::span),
                request: &open.taken.request,
                response: &open.taken.response,
                ..Facts::new(took, flag)
            };
            return open.records.write(template, &facts);
        }
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::INFO,
            src.addr = %open.client.address,
            src.workload = open.client.workload.as_ref().map(|one| one.name.as_str()),
            src.namespace = open.client.workload.as_ref().map(|one| one.namespace.as_str()),
            src.identity = open.client.identity.as_ref().map(ToString::to_string).as_deref(),
            dst.asked = %open.asked,
            dst.service = open.service.as_ref().map(|service| service.hostname.as_str()),
            dst.addr = upstream.map(|(_, address)| tracing::field::display(address)),
            dst.workload = upstream.map(|(workload, _)| workload.name.as_str()),
            method = open.method.as_str(),
            authority = open.uri.authority().map(|authority| authority.as_str()),
            path = open.uri.path_and_query().map_or("/", |path| path.as_str()),
            protocol = protocol(open.version),
            status = status,
            grpc.status = open.grpc.map(|status| status.0),
            flag = flag,
            route = open.route.as_deref(),
            attempts = open.attempts,
            bytes_recv = open.received.bytes(),
            bytes_sent = sent,
            duration = format!("{}ms", took.as_millis()).as_str(),
            request.id = text(&open.id).as_deref(),
            trace.id = trace.map(|trace| tracing::field::display(trace.id())),
            span.id = trace.map(|trace| tracing::field::display(trace.span())),
            user_agent = text(&open.agent).as_deref(),
            error = refusal.map(ToString::to_string).as_deref(),
            "request complete"
        );
    }
}

impl Witness for Record {
    fn attempt(&mut self, workload: &Arc<Workload>, address: SocketAddr, repeated: u32) {
        self.0.upstream = Some((workload.clone(), address));
        self.0.attempts = repeated + 1;
        self.explain(|told, at| told.attempt(workload, address, at));
        if let Some(trace) = &mut self.0.trace {
            trace.attempt(workload, address, repeated);
        }
    }

    fn tell(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.0.trace {
            trace.tell(headers);
        }
    }

    fn answered(&mut self, outcome: Result<&Response<Incoming>, &Refusal>) {
        self.explain(|told, at| told.answered(outcome.map(Response::status), at));
        if let Some(mut trace) = self.0.trace.take() {
            trace.answered(&self.0.request(), outcome);
            self.0.trace = Some(trace);
        }
    }

    fn fell(&mut self, standing: Standing) {
        self.explain(|told, _| told.fell(standing));
    }

    fn next(&mut self, next: Next) {
        self.explain(|told, _| told.next(next));
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
