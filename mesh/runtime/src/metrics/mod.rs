//! The metrics of a process: one registry, shown as Prometheus text or OpenMetrics.

mod exposition;
mod process;

use std::fmt::Debug;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::registry::{self, Metric};
use tokio::runtime::Handle;

use self::process::{Process, Runtimes};
use crate::admin::{Method, Pages, Request, Response};

/// The content types, in order of what the reader prefers, and gzip or not.
pub use self::exposition::{Encoding, Format};

/// Where metrics are registered, at start. Then [`Registry::share`] makes the part that is read.
#[derive(Debug)]
pub struct Registry {
    inner: registry::Registry,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry with what every process has: `process_open_fds`, `process_max_fds`, `ambit_task_panics_total`.
    pub fn new() -> Self {
        let mut registry = Self { inner: registry::Registry::default() };
        registry.collect(Process);
        registry
    }

    /// Adds a metric. The name is without `_total`, which counters get when they are shown.
    pub fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        // The library ends each help text with a full stop.
        self.inner.register(name, help.trim_end_matches('.'), metric);
    }

    /// Adds metrics that are computed when they are read.
    pub fn collect(&mut self, collector: impl Collector) {
        self.inner.register_collector(Box::new(collector));
    }

    /// A view in which every name starts with `prefix` and an underscore.
    pub fn prefixed(&mut self, prefix: &str) -> &mut registry::Registry {
        self.inner.sub_registry_with_prefix(prefix)
    }

    /// The library's registry, for code that knows only that.
    pub fn inner(&mut self) -> &mut registry::Registry {
        &mut self.inner
    }

    /// Adds `tokio_*` figures of each worker, labelled `worker="0"`, …
    pub fn workers(&mut self, handles: &[Handle]) {
        self.collect(Runtimes::of(handles));
    }

    /// Ends registration: what remains is read.
    pub fn share(self) -> Metrics {
        Metrics { inner: Arc::new(self.inner) }
    }
}

/// The metrics, to be read by anyone.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<registry::Registry>,
}

impl Metrics {
    /// All metrics in the given format.
    pub fn render(&self, format: Format) -> String {
        let mut open_metrics = String::new();
        // Writing to a string fails only if a metric's own encoder does; what it wrote before is still good.
        if text::encode(&mut open_metrics, &self.inner).is_err() {
            tracing::error!("A metric could not be encoded");
        }
        match format {
            Format::OpenMetrics => open_metrics,
            Format::Prometheus => exposition::prometheus(&open_metrics),
        }
    }

    /// Adds `/metrics` and `/stats/prometheus` to a server's pages.
    pub fn pages(&self, pages: Pages) -> Pages {
        ["/metrics", "/stats/prometheus"].into_iter().fold(pages, |pages, path| {
            let metrics = self.clone();
            pages.page(Method::GET, path, "metrics for Prometheus", move |request| metrics.answer(&request))
        })
    }

    fn answer(&self, request: &Request) -> Response {
        let format = Format::accepted(request.header(http::header::ACCEPT.as_str()));
        let encoding = Encoding::accepted(request.header(http::header::ACCEPT_ENCODING.as_str()));
        let text = self.render(format);
        let (body, encoding) = encoding.apply(text.into_bytes());
        let response =
            Response::bytes(format.content_type(), body).with_header("vary", "accept, accept-encoding");
        match encoding {
            Encoding::Gzip => response.with_header("content-encoding", "gzip"),
            Encoding::Identity => response,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::Workers;
    use prometheus_client::metrics::counter::Counter;
    use std::num::NonZeroUsize;

    #[test]
    fn counters_end_in_total_and_process_figures_are_there() {
        let mut registry = Registry::new();
        let counter: Counter = Counter::default();
        registry.register("istio_things", "Things that were done.", counter.clone());
        counter.inc_by(3);
        let text = registry.share().render(Format::Prometheus);
        assert!(text.contains("# HELP istio_things_total Things that were done.\n"), "{text}");
        assert!(text.contains("# TYPE istio_things_total counter\nistio_things_total 3\n"), "{text}");
        assert!(text.contains("# TYPE ambit_task_panics_total counter"), "{text}");
        let figure = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        assert!(figure("process_open_fds") >= 3.0);
        assert!(figure("process_max_fds") >= figure("process_open_fds"));
    }

    #[test]
    fn open_metrics_keeps_its_form() {
        let mut registry = Registry::new();
        registry.prefixed("istio").register("things", "Things", Counter::<u64>::default());
        let text = registry.share().render(Format::OpenMetrics);
        assert!(text.contains("# TYPE istio_things counter\nistio_things_total 0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn workers_are_told_apart() {
        let workers = Workers::start(NonZeroUsize::new(2).unwrap(), "amb-metrics").unwrap();
        let mut registry = Registry::new();
        registry.workers(workers.handles());
        let text = registry.share().render(Format::Prometheus);
        for line in
            ["tokio_alive_tasks{worker=\"0\"} 0", "tokio_alive_tasks{worker=\"1\"} 0", "tokio_workers 2"]
        {
            assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
        }
        for name in ["tokio_global_queue_depth{", "tokio_busy_seconds_total{", "tokio_parks_total{"] {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
    }
}
