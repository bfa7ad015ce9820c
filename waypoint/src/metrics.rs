//! Everything that a waypoint counts: Istio's standard metrics with the reporter `waypoint`, and our own figures, named
//! `ambit_…`.
//!
//! Names and labels are a contract with dashboards and alerts: a change here breaks somebody's.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use ambit_model::trace::Form;
use ambit_proxy::metrics::{AllTraffic, Collection, Ends, OwnedEnds, Series, UNKNOWN, WELL, XdsShown};
use ambit_runtime::metrics::Registry;
use ambit_wire::xds::ClientMetrics;
use hashbrown::Equivalent;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

use crate::{access::GrpcStatus, refusal::Refusal, upstream::health::Reason};

/// Who tells.
pub const REPORTER: &str = "waypoint";

/// How many different sets of labels are kept. One is about 3 KiB here and 60 lines on the metrics page, which is what
/// sets the limit.
const MOST: usize = 4 * 1024;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// Requests.
    pub requests: Arc<Requests>,
    /// Connections that are not looked into.
    pub traffic: Arc<AllTraffic>,
    /// The pool of tunnels to endpoints.
    pub pool: Pool,
    /// Requests that were sent once more.
    pub retries: Counter,
    /// Copies of requests that were sent.
    pub mirrored: Counter,
    /// Copies that were not sent: the body was too long to be kept, or too many were under way.
    pub mirrors_skipped: Counter,
    /// What external authorizers were asked.
    pub checks: Checks,
    /// Streams of tunnels that are open.
    pub streams: Gauge,
    /// Interim responses of endpoints.
    pub interim: InterimFigures,
    /// Connections of HTTP/1 that rest: they are open, and hold no buffers.
    pub resting: Gauge,
    limits: LimitFigures,
    ejections: Family<[(&'static str, &'static str); 1], Counter>,
    rests: Counter,
    faults: Family<[(&'static str, &'static str); 1], Counter>,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    overload: Family<[(&'static str, &'static str); 1], Counter>,
    malformed_traces: Family<[(&'static str, &'static str); 1], Counter>,
    debug_tokens: Family<[(&'static str, &'static str); 1], Counter>,
}

/// What was asked of external authorizers. They are not told apart: who they are is configuration, which has no bound.
#[derive(Clone, Debug)]
pub struct Checks {
    outcomes: Family<[(&'static str, &'static str); 1], Counter>,
    took: Histogram,
}

impl Default for Checks {
    fn default() -> Self {
        Self { outcomes: Family::default(), took: Histogram::new(MILLISECONDS) }
    }
}

impl Checks {
    /// A check ended so, after `took`.
    pub fn ended(&self, outcome: CheckOutcome, took: Duration) {
        self.outcomes.get_or_create(&[("outcome", outcome.word())]).inc();
        self.took.observe(took.as_secs_f64() * 1000.0);
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The request may be.
    Allowed,
    /// It may not.
    Denied,
    /// There was no answer, and it may not.
    Failed,
    /// There was no answer, and it goes on.
    FailedOpen,
}

impl CheckOutcome {
    fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::FailedOpen => "failed_open",
        }
    }
}

/// Interim responses that endpoints have sent to requests of HTTP/1.1.
#[derive(Clone, Debug, Default)]
pub struct InterimFigures(Family<[(&'static str, &'static str); 1], Counter>);

impl InterimFigures {
    /// This became of so many.
    pub fn ended(&self, outcome: InterimOutcome, count: u64) {
        if count > 0 {
            self.0.get_or_create(&[("outcome", outcome.word())]).inc_by(count);
        }
    }
}

/// What became of an interim response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterimOutcome {
    /// The client is told.
    Forwarded,
    /// The request had too many already, or too many bytes of them.
    TooMany,
    /// The response was there first, or something else was half-way.
    Late,
}

impl InterimOutcome {
    fn word(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::TooMany => "too_many",
            Self::Late => "late",
        }
    }
}

/// Who counts a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// This waypoint.
    Local,
    /// A limit service.
    Global,
}

/// What a limit says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOutcome {
    /// There is room.
    Allowed,
    /// There is none.
    Limited,
    /// Nothing: the limit service did not answer.
    Error,
}

/// What was done to a request on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// It was held back.
    Delayed,
    /// It was answered.
    Aborted,
    /// It was not held back, since too many were.
    Skipped,
}

/// How many requests are taken.
#[derive(Clone, Debug, Default)]
struct LimitFigures {
    decisions: Family<[(&'static str, &'static str); 2], Counter>,
    buckets: Gauge,
    evictions: Family<[(&'static str, &'static str); 1], Counter>,
    together: Counter,
}

/// The pool of tunnels.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Tunnels dialled so far.
    pub dials: Counter,
    /// Those of them that failed.
    pub dial_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Arc::default(),
            traffic: Arc::new(AllTraffic::told_by(&[REPORTER])),
            pool: Pool::default(),
            retries: Counter::default(),
            ejections: Family::default(),
            rests: Counter::default(),
            mirrored: Counter::default(),
            mirrors_skipped: Counter::default(),
            checks: Checks::default(),
            streams: Gauge::default(),
            interim: InterimFigures::default(),
            resting: Gauge::default(),
            limits: LimitFigures::default(),
            faults: Family::default(),
            refused: Family::default(),
            overload: Family::default(),
            malformed_traces: Family::default(),
            debug_tokens: Family::default(),
        }
    }
}

impl Metrics {
    /// All figures at zero, shown by `registry`; `tag` is this build's.
    pub fn register(registry: &mut Registry, tag: String, xds: Arc<ClientMetrics>) -> Arc<Self> {
        let metrics = Self::default();
        registry.collect(metrics.requests.clone());
        registry.collect(metrics.traffic.clone());
        let mut show = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        show("ambit_pool_dials", "Tunnels dialled", &metrics.pool.dials);
        show("ambit_pool_dial_failures", "Tunnels that could not be made", &metrics.pool.dial_failures);
        show("ambit_request_retries", "Requests sent once more", &metrics.retries);
        show("ambit_endpoint_rests", "Endpoints that asked to be passed over", &metrics.rests);
        show("ambit_mirrored_requests", "Copies of requests sent", &metrics.mirrored);
        show("ambit_mirrors_skipped", "Copies of requests that were not sent", &metrics.mirrors_skipped);
        let help = "Endpoints that were set aside, by reason";
        registry.register("ambit_endpoint_ejections", help, metrics.ejections.clone());
        let help = "External authorizers asked, by what came of it";
        registry.register("ambit_authorizer_checks", help, metrics.checks.outcomes.clone());
        let help = "Time to the whole answer of an external authorizer";
        registry.register("ambit_authorizer_check_duration_milliseconds", help, metrics.checks.took.clone());
        registry.register("ambit_streams_open", "Streams of tunnels that are open", metrics.streams.clone());
        let help = "Interim responses of endpoints to requests of HTTP/1.1, by what became of them";
        registry.register("ambit_interim_responses", help, metrics.interim.0.clone());
        let help = "Connections of HTTP/1 that are idle and hold no buffers";
        registry.register("ambit_connections_resting", help, metrics.resting.clone());
        let limits = &metrics.limits;
        let help = "Requests that limits have judged, by who counts and what came of it";
        registry.register("ambit_rate_limit_decisions", help, limits.decisions.clone());
        let help = "Buckets of local limits: one for each key that was seen lately";
        registry.register("ambit_rate_limit_buckets", help, limits.buckets.clone());
        let help = "Buckets of local limits that were let go of, by reason";
        registry.register("ambit_rate_limit_evictions", help, limits.evictions.clone());
        let help = "Requests counted with others than their key's, because there were too many keys";
        registry.register("ambit_rate_limit_shared", help, limits.together.clone());
        let help = "Requests that rules held back or answered on purpose, by what was done";
        registry.register("ambit_faults", help, metrics.faults.clone());
        let help = "Requests and connections that were refused or failed, by reason";
        registry.register("ambit_refusals", help, metrics.refused.clone());
        let help = "Requests and connections turned away because a limit was reached";
        registry.register("ambit_overload_rejections", help, metrics.overload.clone());
        let help = "Headers of traces that were malformed, and so ignored, by form";
        registry.register("ambit_malformed_trace_headers", help, metrics.malformed_traces.clone());
        let help = "Debug tokens that requests have shown, by what came of it";
        registry.register("ambit_debug_tokens", help, metrics.debug_tokens.clone());
        let info = Family::<[(&'static str, String); 2], Gauge>::default();
        info.get_or_create(&[("component", "waypoint".to_owned()), ("tag", tag)]).set(1);
        registry.register("istio_build", "The build of this component", info);
        registry.collect(XdsShown(xds));
        Arc::new(metrics)
    }

    /// A limit has judged a request.
    pub fn limited(&self, kind: LimitKind, outcome: LimitOutcome) {
        let kind = match kind {
            LimitKind::Local => "local",
            LimitKind::Global => "global",
        };
        let outcome = match outcome {
            LimitOutcome::Allowed => "allowed",
            LimitOutcome::Limited => "limited",
            LimitOutcome::Error => "error",
        };
        self.limits.decisions.get_or_create(&[("limit", kind), ("outcome", outcome)]).inc();
    }

    /// An endpoint was set aside.
    pub fn ejected(&self, why: Reason) {
        self.ejections.get_or_create(&[("reason", why.word())]).inc();
    }

    /// An endpoint asked to be passed over.
    pub fn rested(&self) {
        self.rests.inc();
    }

    /// A rule did something to a request on purpose.
    pub fn fault(&self, outcome: FaultOutcome) {
        let outcome = match outcome {
            FaultOutcome::Delayed => "delayed",
            FaultOutcome::Aborted => "aborted",
            FaultOutcome::Skipped => "skipped",
        };
        self.faults.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// So many buckets there are, and so many more were let go of because they were full again.
    pub fn limit_buckets(&self, count: usize, evicted: usize) {
        self.limits.buckets.set(i64::try_from(count).unwrap_or(i64::MAX));
        if evicted > 0 {
            let evicted = u64::try_from(evicted).unwrap_or(u64::MAX);
            self.limits.evictions.get_or_create(&[("reason", "refilled")]).inc_by(evicted);
        }
    }

    /// Of so many limits, a request was counted with others than its key's.
    pub fn counted_together(&self, limits: usize) {
        self.limits.together.inc_by(u64::try_from(limits).unwrap_or(u64::MAX));
    }

    /// What a request says of its trace in this form is malformed.
    pub fn malformed_trace(&self, form: Form) {
        self.malformed_traces.get_or_create(&[("form", form.word())]).inc();
    }

    /// A request has shown a debug token, and this came of it.
    pub fn debug_token(&self, outcome: &'static str) {
        self.debug_tokens.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Something was refused or failed.
    pub fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&[("reason", refusal.word())]).inc();
        if let Refusal::Overload { what, .. } = refusal {
            self.overload.get_or_create(&[("limit", what)]).inc();
        }
    }
}

/// What one request is labelled with, borrowed from whoever knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels<'a> {
    /// Who asked whom.
    pub ends: Ends<'a>,
    /// Whether it is a gRPC call.
    pub is_grpc: bool,
    /// The status of its response; 0: it had none.
    pub status: u16,
    /// The status of a gRPC call.
    pub grpc: Option<GrpcStatus>,
    /// The response flag.
    pub flag: &'static str,
    /// Whether it came in mutual TLS.
    pub mutual_tls: bool,
}

/// The labels as they are kept.
#[derive(Clone, Debug)]
pub struct OwnedLabels {
    ends: OwnedEnds,
    is_grpc: bool,
    status: u16,
    grpc: Option<GrpcStatus>,
    flag: &'static str,
    mutual_tls: bool,
}

impl OwnedLabels {
    fn view(&self) -> RequestLabels<'_> {
        RequestLabels {
            ends: self.ends.view(),
            is_grpc: self.is_grpc,
            status: self.status,
            grpc: self.grpc,
            flag: self.flag,
            mutual_tls: self.mutual_tls,
        }
    }
}

impl From<&RequestLabels<'_>> for OwnedLabels {
    fn from(labels: &RequestLabels<'_>) -> Self {
        Self {
            ends: OwnedEnds::from(&labels.ends),
            is_grpc: labels.is_grpc,
            status: labels.status,
            grpc: labels.grpc,
            flag: labels.flag,
            mutual_tls: labels.mutual_tls,
        }
    }
}

impl Hash for OwnedLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.view().hash(state);
    }
}

impl Equivalent<OwnedLabels> for RequestLabels<'_> {
    fn equivalent(&self, kept: &OwnedLabels) -> bool {
        *self == kept.view()
    }
}

impl EncodeLabelSet for OwnedLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let status = self.status.to_string();
        let grpc = self.grpc.map(|status| status.0.to_string()).unwrap_or_default();
        let mut between = vec![("response_code", status.as_str())];
        if self.is_grpc {
            between.push(("grpc_response_status", grpc.as_str()));
        }
        between.push(("response_flags", self.flag));
        between.push(("connection_security_policy", if self.mutual_tls { "mutual_tls" } else { UNKNOWN }));
        self.ends.encode(encoder, REPORTER, if self.is_grpc { "grpc" } else { "http" }, &between)
    }
}

/// The figures of one set of labels.
#[derive(Debug)]
pub struct Request {
    labels: OwnedLabels,
    count: Counter,
    duration: Histogram,
    received: Histogram,
    sent: Histogram,
}

/// Milliseconds, as Istio has them.
const MILLISECONDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Bytes.
const BYTES: [f64; 9] =
    [64.0, 512.0, 4096.0, 32_768.0, 262_144.0, 2_097_152.0, 16_777_216.0, 134_217_728.0, 1_073_741_824.0];

impl Request {
    fn new(labels: OwnedLabels) -> Self {
        Self {
            labels,
            count: Counter::default(),
            duration: Histogram::new(MILLISECONDS),
            received: Histogram::new(BYTES),
            sent: Histogram::new(BYTES),
        }
    }
}

impl Series for Request {
    type Labels = OwnedLabels;

    fn labels(&self) -> &OwnedLabels {
        &self.labels
    }
}

/// The figures of all sets of labels.
#[derive(Debug)]
pub struct Requests {
    series: Collection<Request>,
    /// Where requests are counted for whose labels there is no room.
    overflow: Arc<Request>,
}

impl Default for Requests {
    fn default() -> Self {
        let unknown = OwnedLabels {
            ends: OwnedEnds::default(),
            is_grpc: false,
            status: 0,
            grpc: None,
            flag: WELL,
            mutual_tls: false,
        };
        Self { series: Collection::new(MOST), overflow: Arc::new(Request::new(unknown)) }
    }
}

impl Requests {
    /// Counts one request.
    pub fn ended(&self, labels: &RequestLabels<'_>, took: Duration, received: u64, sent: u64) {
        let found = self.series.find(labels, || Request::new(OwnedLabels::from(labels)));
        let figures = found.as_ref().unwrap_or(&self.overflow);
        figures.count.inc();
        figures.duration.observe(took.as_secs_f64() * 1000.0);
        figures.received.observe(bytes(received));
        figures.sent.observe(bytes(sent));
    }
}

/// Exact up to 2^52, which nobody sends.
fn bytes(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

impl Collector for Requests {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = self.series.all();
        if self.overflow.count.get() > 0 {
            all.push(self.overflow.clone());
        }
        let mut family = to.encode_descriptor("istio_requests", "Requests", None, MetricType::Counter)?;
        for one in &all {
            one.count.encode(family.encode_family(&one.labels)?)?;
        }
        type Of = fn(&Request) -> &Histogram;
        let histograms: [(&str, &str, Of); 3] = [
            ("istio_request_duration_milliseconds", "Time to the end of the response", |one| &one.duration),
            ("istio_request_bytes", "Bytes of requests' bodies", |one| &one.received),
            ("istio_response_bytes", "Bytes of responses' bodies", |one| &one.sent),
        ];
        for (name, help, of) in histograms {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for one in &all {
                of(one).encode(family.encode_family(&one.labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ambit_model::{service::Service, workload::Workload};
    use ambit_proxy::metrics::Peer;
    use ambit_runtime::metrics::Format;

    use super::*;

    #[test]
    fn a_request_has_exactly_the_labels_of_istios() {
        let workload = |name: &str| {
            Arc::new(Workload {
                workload_name: name.into(),
                canonical_name: name.into(),
                canonical_revision: "v1".into(),
                namespace: "shop".into(),
                cluster: "Kubernetes".into(),
                ..Workload::default()
            })
        };
        let (client, server) = (workload("client"), workload("web"));
        let service = Arc::new(Service {
            name: "web".into(),
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            ..Service::default()
        });
        let mut registry = Registry::new();
        let metrics = Metrics::register(&mut registry, "1.0".to_owned(), Arc::default());
        let labels = RequestLabels {
            ends: Ends {
                source: Peer { workload: Some(&client), identity: None },
                destination: Peer { workload: Some(&server), identity: None },
                service: Some(&service),
            },
            is_grpc: false,
            status: 200,
            grpc: None,
            flag: WELL,
            mutual_tls: true,
        };
        metrics.requests.ended(&labels, Duration::from_millis(3), 10, 1000);
        metrics.requests.ended(&labels, Duration::from_millis(30), 10, 1000);
        let text = registry.share().render(Format::Prometheus);
        let expected = "istio_requests_total{reporter=\"waypoint\",source_workload=\"client\",\
            source_canonical_service=\"client\",source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
            source_principal=\"unknown\",source_app=\"client\",source_version=\"v1\",source_cluster=\"Kubernetes\",\
            destination_service=\"web.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
            destination_service_name=\"web\",destination_workload=\"web\",destination_canonical_service=\"web\",\
            destination_canonical_revision=\"v1\",destination_workload_namespace=\"shop\",\
            destination_principal=\"unknown\",destination_app=\"web\",destination_version=\"v1\",\
            destination_cluster=\"Kubernetes\",request_protocol=\"http\",response_code=\"200\",response_flags=\"-\",\
            connection_security_policy=\"mutual_tls\",source_region=\"unknown\",source_zone=\"unknown\",\
            destination_region=\"unknown\",destination_zone=\"unknown\"} 2";
        assert!(text.lines().any(|line| line == expected), "{text}");
        let bucket = |le: &str| {
            let start = format!("istio_request_duration_milliseconds_bucket{{le=\"{le}\"");
            text.lines().find(|line| line.starts_with(&start)).and_then(|line| line.rsplit(' ').next())
        };
        assert_eq!((bucket("1.0"), bucket("5.0"), bucket("50.0")), (Some("0"), Some("1"), Some("2")));
    }
}
