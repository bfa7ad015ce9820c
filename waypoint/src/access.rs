//! One record per request, and one per connection that is not looked into: counted, and written to the access log, once,
//! at its end.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ambit_model::{address::Target, service::Service, workload::Workload};
use ambit_proxy::metrics::{AppIs, Ends, Labels, Peer, Traffic, WELL};
use ambit_wire::copy::Meter;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header, request::Parts};
use hyper::body::Incoming;

use crate::{
    accept::arrival::Client,
    body::Passed,
    hygiene::X_REQUEST_ID,
    metrics::{Metrics, REPORTER, RequestLabels},
    refusal::Refusal,
    upstream::attempt::Witness,
};

/// The record of a request. It must be [closed](Self::close): dropped without, the request is counted nowhere.
#[derive(Debug)]
#[must_use = "a record is written when it is closed"]
pub struct Record(Box<Open>);

#[derive(Debug)]
struct Open {
    metrics: Arc<Metrics>,
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
    upstream: Option<(Arc<Workload>, SocketAddr)>,
    attempts: u32,
    received: Passed,
    status: Option<StatusCode>,
    grpc: Option<GrpcStatus>,
    refusal: Option<Refusal>,
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
        metrics: &Arc<Metrics>,
        client: &Arc<Client>,
        asked: &Target,
        head: &Request<Incoming>,
    ) -> Self {
        let content = head.headers().get(header::CONTENT_TYPE);
        let is_grpc = content.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        Self(Box::new(Open {
            metrics: metrics.clone(),
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
            upstream: None,
            attempts: 0,
            received: Passed::default(),
            status: None,
            grpc: None,
            refusal: None,
        }))
    }

    /// Its head has its one reading.
    pub fn read(&mut self, head: &Parts) {
        self.0.uri = head.uri.clone();
        self.0.id = head.headers.get(&X_REQUEST_ID).cloned();
    }

    /// It is meant for `service`.
    pub fn meant_for(&mut self, service: Option<&Arc<Service>>) {
        self.0.service = service.cloned();
    }

    /// It takes this route.
    pub fn route(&mut self, name: Option<String>) {
        self.0.route = name;
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
        let open = *self.0;
        let refusal = outcome.err().or(open.refusal.as_ref());
        let flag = refusal.map_or(WELL, Refusal::flag);
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
        open.metrics.requests.ended(&labels, took, open.received.bytes(), sent);
        if let Some(refusal) = refusal {
            open.metrics.refused(refusal);
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
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// The record of a connection that is not looked into. It must be [closed](Self::close).
#[derive(Debug)]
#[must_use = "a record is written when it is closed"]
pub struct Carried {
    metrics: Arc<Metrics>,
    at: Instant,
    client: Arc<Client>,
    asked: Target,
    service: Option<Arc<Service>>,
    upstream: Arc<Workload>,
    address: SocketAddr,
    /// Which end a copy calls the application.
    app: AppIs,
    meter: Arc<Meter>,
    traffic: Arc<Traffic>,
}

impl Carried {
    /// A connection is about to be carried to `upstream`.
    pub fn open(
        metrics: &Arc<Metrics>,
        client: &Arc<Client>,
        asked: &Target,
        service: Option<Arc<Service>>,
        (upstream, address): (Arc<Workload>, SocketAddr),
        app: AppIs,
    ) -> Self {
        let labels = Labels {
            reporter: REPORTER,
            ends: Ends {
                source: Peer { workload: client.workload.as_ref(), identity: client.identity.as_ref() },
                destination: Peer { workload: Some(&upstream), identity: None },
                service: service.as_ref(),
            },
            mutual_tls: client.identity.is_some(),
            flag: WELL,
        };
        let meter = Arc::new(Meter::default());
        let traffic = metrics.traffic.opened(&labels, meter.clone(), app);
        let (metrics, client, asked) = (metrics.clone(), client.clone(), asked.clone());
        Self { metrics, at: Instant::now(), client, asked, service, upstream, address, app, meter, traffic }
    }

    /// Counts the bytes.
    pub fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// Counts the connection as closed, and writes it to the log.
    pub fn close(self, outcome: Result<(), &Refusal>) {
        let flag = outcome.map_or_else(Refusal::flag, |()| WELL);
        let (received, sent) = match self.app {
            AppIs::Client => (self.meter.from_app(), self.meter.to_app()),
            AppIs::Server => (self.meter.to_app(), self.meter.from_app()),
        };
        self.metrics.traffic.closed(&self.traffic, &self.meter, flag);
        if let Err(refusal) = outcome {
            self.metrics.refused(refusal);
        }
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::INFO,
            src.addr = %self.client.address,
            src.workload = self.client.workload.as_ref().map(|one| one.name.as_str()),
            src.namespace = self.client.workload.as_ref().map(|one| one.namespace.as_str()),
            src.identity = self.client.identity.as_ref().map(ToString::to_string).as_deref(),
            dst.asked = %self.asked,
            dst.service = self.service.as_ref().map(|service| service.hostname.as_str()),
            dst.addr = %self.address,
            dst.workload = self.upstream.name.as_str(),
            flag = flag,
            bytes_recv = received,
            bytes_sent = sent,
            duration = format!("{}ms", self.at.elapsed().as_millis()).as_str(),
            error = outcome.err().map(ToString::to_string).as_deref(),
            "connection complete"
        );
    }
}

/// A tunnel or stream is refused before anything is known of it: one line, and no traffic is counted.
pub fn refused_early(metrics: &Metrics, client: SocketAddr, asked: Option<&Target>, refusal: &Refusal) {
    metrics.refused(refusal);
    tracing::event!(
        target: "access",
        parent: None,
        tracing::Level::WARN,
        src.addr = %client,
        dst.asked = asked.map(tracing::field::display),
        flag = refusal.flag(),
        error = refusal.to_string().as_str(),
        advice = refusal.advice(),
        "connection failed"
    );
}
