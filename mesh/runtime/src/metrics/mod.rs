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
    use crate::admin::{Address, Server};
    use crate::task;
    use crate::workers::Workers;
    use prometheus_client::metrics::counter::Counter;
    use std::io::Read;
    use std::num::NonZeroUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

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

    #[tokio::test]
    async fn a_scraper_gets_the_format_and_coding_that_it_asks_for() {
        let server = Server::bind(&["127.0.0.1:0".parse::<Address>().unwrap()]).await.unwrap();
        let address = server.local_addresses()[0];
        let pages = Registry::new().share().pages(Pages::new("metrics"));
        let _serving = task::spawn("metrics", server.serve(pages, std::future::pending())).owned();
        let scrape = |path: &str, headers: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
            async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.unwrap();
                let end = received.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
                (String::from_utf8(received[..end].to_vec()).unwrap(), received[end + 4..].to_vec())
            }
        };
        let (head, body) = scrape("/stats/prometheus", "").await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/plain; version=0.0.4"),
            "{head}"
        );
        assert!(String::from_utf8(body).unwrap().contains("\nprocess_open_fds "));

        let wishes = "accept: application/openmetrics-text\r\naccept-encoding: gzip\r\n";
        let (head, body) = scrape("/metrics", wishes).await;
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
        assert!(head.contains("content-encoding: gzip"), "{head}");
        let mut text = String::new();
        flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
