//! Everything that a waypoint counts: Istio's standard metrics with the reporter `waypoint`, and our own figures, named
//! `ambit_…`.
//!
//! Names and labels are a contract with dashboards and alerts: a change here breaks somebody's.

mod requests;

use std::{sync::Arc, time::Duration};

use ambit_model::trace::Form;
use ambit_proxy::metrics::{AllTraffic, XdsShown};
use ambit_runtime::metrics::Registry;
use ambit_wire::xds::ClientMetrics;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};

pub use self::requests::{OwnedLabels, Request, RequestLabels, Requests};
use crate::{refusal::Refusal, upstream::health::Reason};

/// Who tells.
pub const REPORTER: &str = "waypoint";

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
