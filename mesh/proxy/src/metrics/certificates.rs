//! What the store of certificates counts, and panics.

use std::{fmt, sync::atomic::Ordering};

use ambit_runtime::task;
use ambit_wire::cert::store::Certificates;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// Shows how often certificates were fetched, and how often tasks panicked.
#[derive(Debug)]
pub struct Fetches(pub Certificates);

impl Collector for Fetches {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let certificates = self.0.metrics();
        let mut counter = |name: &str, help: &str, value: u64| {
            ConstCounter::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
        };
        let fetched = certificates.fetched.load(Ordering::Relaxed);
        counter("ambit_certificates_fetched", "Certificates fetched from the CA", fetched)?;
        let failed = certificates.failed.load(Ordering::Relaxed);
        counter("ambit_certificate_failures", "Fetches of certificates that failed", failed)?;
        counter("ambit_task_panics", "Tasks that panicked", task::panics())
    }
}
