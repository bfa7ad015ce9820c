//! What is counted when somebody asks, because it is kept elsewhere: certificates, policies that are
//! named and not known, panics.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use ambit_runtime::task;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::tunnel::Tunnel;

/// Shows what a tunnel holds.
#[derive(Debug)]
pub struct Held(pub Arc<Tunnel>);

impl Collector for Held {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let certificates = self.0.certificates.metrics();
        let mut counter = |name: &str, help: &str, value: u64| {
            ConstCounter::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
        };
        let fetched = certificates.fetched.load(Ordering::Relaxed);
        counter("ambit_certificates_fetched", "Certificates fetched from the CA", fetched)?;
        let failed = certificates.failed.load(Ordering::Relaxed);
        counter("ambit_certificate_failures", "Fetches of certificates that failed", failed)?;
        counter("ambit_task_panics", "Tasks that panicked", task::panics())?;
        let help = "Policies that pods served here name and that are not known";
        let unknown = i64::try_from(self.unknown_policies()).unwrap_or(i64::MAX);
        ConstGauge::new(unknown).encode(to.encode_descriptor(
            "ambit_unknown_policies",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}

impl Held {
    fn unknown_policies(&self) -> usize {
        let mesh = self.0.mesh.current();
        let pods = self.0.locals.all();
        pods.iter()
            .filter_map(|pod| pod.workload_in(&mesh))
            .map(|workload| mesh.unknown_policies(workload).count())
            .sum()
    }
}
