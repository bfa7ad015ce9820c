//! Figures that are read when they are asked for: of the process, and of its tokio runtimes.

use std::fmt::Error;

use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::task;

/// File descriptors, and panics of tasks.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        if let Some(open) = open_files() {
            gauge(&mut to, "process_open_fds", "Open file descriptors", open)?;
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            gauge(&mut to, "process_max_fds", "Most file descriptors that may be open", soft)?;
        }
        let panics = ConstCounter::new(task::panics());
        let help = "Tasks that ended by a panic; each is in the log";
        panics.encode(to.encode_descriptor("ambit_task_panics", help, None, MetricType::Counter)?)
    }
}

/// The runtimes of the workers.
#[derive(Debug)]
pub(super) struct Runtimes {
    runtimes: Vec<([(&'static str, String); 1], RuntimeMetrics)>,
}

impl Runtimes {
    pub(super) fn of(handles: &[Handle]) -> Self {
        let labelled =
            |(index, handle): (usize, &Handle)| ([("worker", index.to_string())], handle.metrics());
        Self { runtimes: handles.iter().enumerate().map(labelled).collect() }
    }

    fn each<M: EncodeMetric>(
        &self,
        to: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        figure: impl Fn(&RuntimeMetrics) -> M,
    ) -> Result<(), Error> {
        let Some((_, first)) = self.runtimes.first() else { return Ok(()) };
        let mut family = to.encode_descriptor(name, help, None, figure(first).metric_type())?;
        for (labels, metrics) in &self.runtimes {
            figure(metrics).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Runtimes {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        gauge(&mut to, "tokio_workers", "Worker threads", number(self.runtimes.len()))?;
        let alive = |of: &RuntimeMetrics| ConstGauge::new(number(of.num_alive_tasks()));
        self.each(&mut to, "tokio_alive_tasks", "Tasks that have not ended", alive)?;
        let queued = |of: &RuntimeMetrics| ConstGauge::new(number(of.global_queue_depth()));
        self.each(
            &mut to,
            "tokio_global_queue_depth",
            "Tasks woken by other threads and not yet run",
            queued,
        )?;
        let busy = |of: &RuntimeMetrics| ConstCounter::new(of.worker_total_busy_duration(0).as_secs_f64());
        self.each(&mut to, "tokio_busy_seconds", "Time spent in tasks", busy)?;
        let parks = |of: &RuntimeMetrics| ConstCounter::new(of.worker_park_count(0));
        self.each(&mut to, "tokio_parks", "Times that a worker went to sleep", parks)
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), Error> {
    ConstGauge::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn open_files() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the listing's own.
    Some(number(listed).saturating_sub(1))
}
