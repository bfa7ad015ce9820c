//! Sends what waits, batch by batch, each within one limit of time.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use opentelemetry_proto::tonic::collector::{
    logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status, codec::CompressionEncoding};
use tracing::{info, warn};

use super::{LogRecord, Queue, Resource, Span, encode};
use crate::channel::{Channel, ControlPlane, explain};

/// The first pause before a batch is sent again; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What bounds an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many may wait.
    pub queue: usize,
    /// How many are sent together.
    pub batch: usize,
    /// How long fewer wait for company.
    pub delay: Duration,
    /// How long a batch may take, sent again and all.
    pub timeout: Duration,
    /// Whether batches are compressed.
    pub is_compressed: bool,
}

/// A queue, and what empties it into `collector`. `resource` is who tells.
pub fn exporter<S: Signal>(
    collector: ControlPlane,
    resource: Resource,
    limits: Limits,
) -> (Arc<Queue<S>>, Exporter<S>) {
    let queue = Arc::new(Queue::new(limits.queue, limits.batch));
    (queue.clone(), Exporter { queue, collector, resource, limits, is_failing: false })
}

/// Empties a queue into a collector.
#[derive(Debug)]
pub struct Exporter<S> {
    queue: Arc<Queue<S>>,
    collector: ControlPlane,
    resource: Resource,
    limits: Limits,
    is_failing: bool,
}

/// What can be exported.
pub trait Signal: Sized + Send + 'static {
    /// What a collector is asked.
    type Request: Clone + Send;

    /// What it is, for logs.
    const NAME: &'static str;

    /// Many of them, as they are sent.
    fn request(resource: &Resource, batch: Vec<Self>) -> Self::Request;

    /// Sends them. How many the collector did not want.
    fn send(
        channel: Channel,
        is_compressed: bool,
        request: Self::Request,
    ) -> impl Future<Output = Result<u64, Status>> + Send;
}

impl Signal for Span {
    type Request = ExportTraceServiceRequest;
    const NAME: &'static str = "spans";

    fn request(resource: &Resource, batch: Vec<Self>) -> Self::Request {
        encode::spans(resource, batch)
    }

    async fn send(channel: Channel, is_compressed: bool, request: Self::Request) -> Result<u64, Status> {
        let mut client = TraceServiceClient::new(channel);
        if is_compressed {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let partial = client.export(request).await?.into_inner().partial_success;
        Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
    }
}

impl Signal for LogRecord {
    type Request = ExportLogsServiceRequest;
    const NAME: &'static str = "logs";

    fn request(resource: &Resource, batch: Vec<Self>) -> Self::Request {
        encode::records(resource, batch)
    }

    async fn send(channel: Channel, is_compressed: bool, request: Self::Request) -> Result<u64, Status> {
        let mut client = LogsServiceClient::new(channel);
        if is_compressed {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let partial = client.export(request).await?.into_inner().partial_success;
        Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_log_records).unwrap_or(0)))
    }
}

impl<S: Signal> Exporter<S> {
    /// Sends until `stop`, and then what still waits. The caller bounds how long he waits for that.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let queue = self.queue.clone();
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = queue.filled(self.limits.delay) => self.deliver(queue.take()).await,
            }
        }
        loop {
            let batch = queue.take();
            if batch.is_empty() {
                return;
            }
            self.deliver(batch).await;
        }
    }

    async fn deliver(&mut self, batch: Vec<S>) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let counts = &self.queue.counts;
        match self.send(S::request(&self.resource, batch)).await {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                counts.rejected.fetch_add(rejected, Relaxed);
                counts.sent.fetch_add(count - rejected, Relaxed);
                if self.is_failing {
                    info!(signal = S::NAME, "The collector takes them again");
                }
                self.is_failing = false;
            }
            Err(status) => {
                counts.failed.fetch_add(count, Relaxed);
                // Once, until it answers again: how many are lost is counted.
                if !self.is_failing {
                    warn!(
                        signal = S::NAME, code = ?status.code(), error = explain(&status),
                        "The collector does not take them; they are dropped, and counted"
                    );
                }
                self.is_failing = true;
            }
        }
    }

    async fn send(&self, request: S::Request) -> Result<u64, Status> {
        let until = Instant::now() + self.limits.timeout;
        let mut pause = PAUSE;
        loop {
            let channel = self.collector.channel();
            let sending = S::send(channel, self.limits.is_compressed, request.clone());
            let outcome = timeout_at(until, sending).await;
            let late = || Status::deadline_exceeded(format!("no answer within {:?}", self.limits.timeout));
            let status = match outcome.unwrap_or_else(|_| Err(late())) {
                Ok(rejected) => return Ok(rejected),
                Err(status) => status,
            };
            let wait = pause.mul_f64(rand::random_range(0.5..=1.0));
            if !is_passing(status.code()) || Instant::now() + wait >= until {
                return Err(status);
            }
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether it may work another time (OTLP, "Failures").
fn is_passing(code: Code) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => false,
    }
}
