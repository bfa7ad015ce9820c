//! Figures of name resolution (protocols 10.1).

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_model::{
    name::{Hostname, Label},
    workload::Workload,
};
use ambit_proxy::metrics::{Collection, Series};
use hashbrown::Equivalent;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, histogram::Histogram},
};

/// How many sets of labels are kept: a node has a few hundred pods, and asks for a handful of types.
const MOST: usize = 4096;

/// Upper bounds in seconds, as the dashboards expect them.
const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// The figures of the DNS proxy.
#[derive(Debug)]
pub struct Dns {
    series: Collection<DnsSeries>,
    overflow: Arc<DnsSeries>,
}

impl Default for Dns {
    fn default() -> Self {
        let unknown = DnsLabels {
            query_type: "unknown",
            protocol: Protocol::Udp,
            service: Label::default(),
            revision: Label::default(),
        };
        Self { series: Collection::new(MOST), overflow: Arc::new(DnsSeries::new(unknown)) }
    }
}

impl Dns {
    /// Counts a request. What is returned counts what becomes of it. `query_type` must be of a
    /// closed list: a client chooses it.
    pub fn request(
        &self,
        query_type: &'static str,
        protocol: Protocol,
        client: Option<&Workload>,
    ) -> Arc<DnsSeries> {
        let names = client.map(|client| (client.canonical_name.clone(), client.canonical_revision.clone()));
        let (service, revision) = names.unwrap_or_default();
        let labels = DnsLabels { query_type, protocol, service, revision };
        let found = self.series.find(&Question(&labels), || DnsSeries::new(labels.clone()));
        let series = found.unwrap_or_else(|| self.overflow.clone());
        series.requests.fetch_add(1, Ordering::Relaxed);
        series
    }
}

/// How a question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// In a datagram.
    Udp,
    /// In a stream.
    Tcp,
}

impl Protocol {
    /// The label `request_protocol`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The figures of one set of labels.
#[derive(Debug)]
pub struct DnsSeries {
    labels: DnsLabels,
    requests: AtomicU64,
    upstream_requests: AtomicU64,
    upstream_failures: AtomicU64,
    upstream_seconds: Histogram,
}

impl DnsSeries {
    fn new(labels: DnsLabels) -> Self {
        Self {
            labels,
            requests: AtomicU64::default(),
            upstream_requests: AtomicU64::default(),
            upstream_failures: AtomicU64::default(),
            upstream_seconds: Histogram::new(BUCKETS),
        }
    }

    /// A request was forwarded, and took this long to be answered or given up.
    pub fn forwarded(&self, took: Duration, answered: bool) {
        self.upstream_requests.fetch_add(1, Ordering::Relaxed);
        self.upstream_failures.fetch_add(u64::from(!answered), Ordering::Relaxed);
        self.upstream_seconds.observe(took.as_secs_f64());
    }
}

/// What questions are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsLabels {
    query_type: &'static str,
    protocol: Protocol,
    service: Label,
    revision: Label,
}

impl DnsLabels {
    fn shown(&self) -> [(&'static str, &str); 4] {
        [
            ("request_query_type", self.query_type),
            ("request_protocol", self.protocol.word()),
            ("source_canonical_service", known(self.service.as_str())),
            ("source_canonical_revision", known(self.revision.as_str())),
        ]
    }
}

fn known(value: &str) -> &str {
    if value.is_empty() { "unknown" } else { value }
}

struct Question<'a, L>(&'a L);

impl<L: Hash> Hash for Question<'_, L> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<L: PartialEq> Equivalent<L> for Question<'_, L> {
    fn equivalent(&self, kept: &L) -> bool {
        self.0 == kept
    }
}

impl Series for DnsSeries {
    type Labels = DnsLabels;

    fn labels(&self) -> &DnsLabels {
        &self.labels
    }
}

impl Collector for Dns {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = self.series.all();
        all.extend((self.overflow.requests.load(Ordering::Relaxed) > 0).then(|| self.overflow.clone()));
        let mut counter = |name: &str, help: &str, value: fn(&DnsSeries) -> &AtomicU64| {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            for one in &all {
                let value = ConstCounter::new(value(one).load(Ordering::Relaxed));
                value.encode(family.encode_family(&one.labels.shown())?)?;
            }
            Ok::<(), fmt::Error>(())
        };
        counter("istio_dns_requests", "Requests to the DNS proxy", |one| &one.requests)?;
        counter("istio_dns_upstream_requests", "Requests that were forwarded", |one| &one.upstream_requests)?;
        counter("istio_dns_upstream_failures", "Forwarded requests that failed", |one| {
            &one.upstream_failures
        })?;
        let name = "istio_dns_upstream_request_duration_seconds";
        let help = "How long forwarded requests took";
        let mut family = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for one in &all {
            one.upstream_seconds.encode(family.encode_family(&one.labels.shown())?)?;
        }
        Ok(())
    }
}

/// Host names of workloads that had to be resolved for a connection.
#[derive(Debug)]
pub(super) struct OnDemand {
    series: Collection<Resolved>,
}

impl Default for OnDemand {
    fn default() -> Self {
        Self { series: Collection::new(MOST) }
    }
}

impl OnDemand {
    pub(super) fn resolved(&self, source: Option<&Arc<Workload>>, hostname: &Hostname) {
        let names = |client: &Arc<Workload>| ClientNames {
            workload: client.workload_name.clone(),
            service: client.canonical_name.clone(),
            revision: client.canonical_revision.clone(),
            namespace: Label::from(client.namespace.as_str()),
            principal: Label::from(client.identity().to_string()),
            cluster: Label::from(client.cluster.as_str()),
        };
        let labels =
            OnDemandLabels { client: source.map(names).unwrap_or_default(), hostname: hostname.clone() };
        let found = self
            .series
            .find(&Question(&labels), || Resolved { labels: labels.clone(), count: AtomicU64::default() });
        if let Some(series) = found {
            series.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Resolved {
    labels: OnDemandLabels,
    count: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OnDemandLabels {
    client: ClientNames,
    hostname: Hostname,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct ClientNames {
    workload: Label,
    service: Label,
    revision: Label,
    namespace: Label,
    principal: Label,
    cluster: Label,
}

impl Series for Resolved {
    type Labels = OnDemandLabels;

    fn labels(&self) -> &OnDemandLabels {
        &self.labels
    }
}

impl Collector for OnDemand {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Host names of workloads that were resolved for a connection";
        let mut family = to.encode_descriptor("istio_on_demand_dns", help, None, MetricType::Counter)?;
        for one in self.series.all() {
            let client = &one.labels.client;
            let labels = [
                ("source_workload", known(client.workload.as_str())),
                ("source_canonical_service", known(client.service.as_str())),
                ("source_canonical_revision", known(client.revision.as_str())),
                ("source_workload_namespace", known(client.namespace.as_str())),
                ("source_principal", known(client.principal.as_str())),
                ("source_app", known(client.service.as_str())),
                ("source_version", known(client.revision.as_str())),
                ("source_cluster", known(client.cluster.as_str())),
                ("hostname", known(one.labels.hostname.as_str())),
            ];
            let count = ConstCounter::new(one.count.load(Ordering::Relaxed));
            count.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
