//! Spans and access logs of a proxy on their way to a collector.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use ambit_model::trace::{Sampler, SpanId, TraceId};
use ambit_runtime::{
    metrics::Registry,
    task::{self, Task},
    telemetry::LogControl,
};
use ambit_wire::{
    channel::ControlPlane,
    otlp::{self, Attributes, Counts, LogRecord, Queue, Severity, Signal, Span, Value},
    tls::Profile,
};
use anyhow::Context as _;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use tokio::{sync::watch, time::timeout};
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::config::{Export, Telemetry};

/// What the end of the process may take to bring out what waits.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is exported, until [`end`](Self::end).
#[derive(Debug)]
pub struct Exports {
    /// Which traces are recorded, and where their spans go; `None`: there are none.
    pub spans: Option<(Sampler, Arc<Queue<Span>>)>,
    stop: watch::Sender<bool>,
    tasks: Vec<Task>,
}

impl Exports {
    /// Starts to export as `telemetry` says: spans when they come, and what `logs` has of access.
    pub fn start(
        telemetry: &Telemetry,
        profile: &Profile,
        logs: &LogControl,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let mut exports = Self { spans: None, stop: watch::Sender::new(false), tasks: Vec::new() };
        let mut shown = Vec::new();
        if let Some((sampler, export)) = &telemetry.traces {
            let queue = exports.export::<Span>(telemetry, export, profile).context("traces")?;
            shown.push(Shown { signal: Span::NAME, counts: Box::new(queue.clone()) });
            exports.spans = Some((*sampler, queue));
        }
        if let Some(export) = &telemetry.logs {
            let queue = exports.export::<LogRecord>(telemetry, export, profile).context("logs")?;
            shown.push(Shown { signal: LogRecord::NAME, counts: Box::new(queue.clone()) });
            logs.on_access(move |event| queue.push(record(event)));
        }
        if !shown.is_empty() {
            registry.collect(Exported(shown));
        }
        Ok(exports)
    }

    fn export<S: Signal>(
        &mut self,
        telemetry: &Telemetry,
        export: &Export,
        profile: &Profile,
    ) -> anyhow::Result<Arc<Queue<S>>> {
        let collector = ControlPlane::new(export.collector.clone(), profile).context("the collector")?;
        let (queue, exporter) = otlp::exporter::<S>(collector, telemetry.resource.clone(), export.limits);
        let mut stop = self.stop.subscribe();
        // Whoever could stop it is gone: that is a stop, too.
        let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
        tracing::info!(signal = S::NAME, collector = export.collector.address, "Exporting");
        self.tasks.push(task::spawn("exporter", exporter.run(stopped)));
        Ok(queue)
    }

    /// Brings out what waits, but does not take long. What the collector does not take by then is lost.
    pub async fn end(self) {
        self.stop.send_replace(true);
        let ended = async {
            for task in self.tasks {
                task.await;
            }
        };
        if timeout(FAREWELL, ended).await.is_err() {
            tracing::warn!(limit = ?FAREWELL, "The collector did not take the last spans and logs in time");
        }
    }
}

/// What became of spans and records.
struct Exported(Vec<Shown>);

struct Shown {
    signal: &'static str,
    counts: Box<dyn Counted>,
}

trait Counted: Send + Sync {
    fn counts(&self) -> &Counts;
}

impl<T: Send> Counted for Arc<Queue<T>> {
    fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|shown| shown.signal)).finish()
    }
}

impl Collector for Exported {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Spans and log records by what became of them; all but sent were dropped";
        let mut family = to.encode_descriptor("ambit_otlp_items", help, None, MetricType::Counter)?;
        for Shown { signal, counts } in &self.0 {
            let counts = counts.counts();
            let outcomes = [
                ("sent", &counts.sent),
                ("queue_full", &counts.queue_full),
                ("failed", &counts.failed),
                ("rejected", &counts.rejected),
            ];
            for (outcome, count) in outcomes {
                let labels = [("signal", *signal), ("outcome", outcome)];
                ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// An access record as it is exported.
fn record(event: &Event<'_>) -> LogRecord {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let severity = match *event.metadata().level() {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warn,
        Level::INFO => Severity::Info,
        Level::DEBUG | Level::TRACE => Severity::Debug,
    };
    let Fields { message, line, attributes, trace, span } = fields;
    LogRecord {
        at: SystemTime::now(),
        severity,
        body: line.unwrap_or(message),
        attributes,
        trace: trace.and_then(|text| TraceId::new(u128::from_str_radix(&text, 16).ok()?)),
        span: span.and_then(|text| SpanId::new(u64::from_str_radix(&text, 16).ok()?)),
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    line: Option<String>,
    attributes: Attributes,
    trace: Option<String>,
    span: Option<String>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.attributes.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "line" => self.line = Some(value.to_owned()),
            "trace.id" => self.trace = Some(value.to_owned()),
            "span.id" => self.span = Some(value.to_owned()),
            _ => self.add(field, Value::text(value)),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Flag(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Number(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Real(value));
    }
}
