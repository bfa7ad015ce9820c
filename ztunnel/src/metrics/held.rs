//! What is counted when somebody asks, because it is kept elsewhere: policies that are named and not known.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::tunnel::Tunnel;

/// Shows what a tunnel holds.
#[derive(Debug)]
pub struct Held(pub Arc<Tunnel>);

impl Collector for Held {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
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
