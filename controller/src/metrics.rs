//! What the controller counts, under Istio's names where Istio counts the same.

use std::{
    fmt::Error,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, UNIX_EPOCH},
};

use ambit_api::directory::Problem;
use ambit_wire::{
    channel::TurnedAway,
    codec::{ADDRESS, AUTHORIZATION, WORKLOAD},
    xds::{Publisher, Resource, metrics::Delays, metrics::PerType},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::watch;

use crate::{ca::Desk, cluster::Cluster, engine::View, nodes::Nodes, publish::Sink};

/// Everything that is read when metrics are.
#[derive(Debug)]
pub struct Figures {
    /// Who is connected, and what was sent.
    pub publisher: Publisher,
    /// The objects.
    pub cluster: View,
    /// What could not be read of them.
    pub problems: watch::Receiver<Vec<Problem>>,
    /// The authority.
    pub desk: Desk,
    /// Who may connect.
    pub nodes: Option<Arc<Nodes>>,
    /// How long changes took.
    pub changes: Changes,
}

/// Who was turned away at the ports that strangers may connect to.
#[derive(Debug)]
pub struct Doors {
    /// Of tunnels.
    pub tunnels: TurnedAway,
    /// Of the API server, if the webhook is served.
    pub webhook: Option<TurnedAway>,
}

/// A publisher that notes how long each batch of events took.
#[derive(Clone, Debug)]
pub struct Measured {
    publisher: Publisher,
    changes: Changes,
}

/// How long batches of events took. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Delays>);

impl Measured {
    /// Publishes with `publisher`.
    pub fn new(publisher: Publisher) -> Self {
        Self { publisher, changes: Changes::default() }
    }

    /// What was noted.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }
}

impl Sink for Measured {
    fn update(&self, type_url: &str, upserts: Vec<Resource>, removals: &[String]) {
        Sink::update(&self.publisher, type_url, upserts, removals);
    }

    fn open(&self) {
        Sink::open(&self.publisher);
    }

    fn took(&self, time: Duration) {
        self.changes.0.add(time);
    }
}

impl Collector for Figures {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.subscribers(&mut to)?;
        self.objects(&mut to)?;
        self.certificates(&mut to)
    }
}

impl Collector for Doors {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        let ports = [("grpc", Some(&self.tunnels)), ("webhook", self.webhook.as_ref())];
        let counts = ports
            .into_iter()
            .filter_map(|(port, away)| Some(([("port", port)], ConstCounter::new(away?.count()))));
        let help = "Connections closed because their address holds its share of the places for strangers";
        each(&mut to, "ambit_connections_turned_away", help, counts)
    }
}

impl Figures {
    fn subscribers(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let metrics = self.publisher.metrics();
        let version = [("version", ambit_runtime::version::VERSION)];
        each(
            to,
            "pilot_xds",
            "Subscribers connected now",
            [(version, ConstGauge::new(metrics.connected()))],
        )?;
        counter(to, "ambit_subscribers_refused", "Subscribers that were refused", metrics.refused())?;
        let messages = |of: &PerType| {
            let all = of.all().into_iter();
            all.map(|(url, traffic)| ([("type", short(&url))], IstiosCounter(traffic.messages)))
                .collect::<Vec<_>>()
        };
        each(to, "pilot_xds_pushes", "Responses sent to subscribers", messages(&metrics.sent))?;
        each(
            to,
            "pilot_total_xds_rejects",
            "Responses that subscribers rejected",
            messages(&metrics.nacked),
        )?;
        let bytes = metrics.sent.all().into_iter();
        let bytes = bytes.map(|(url, traffic)| ([("type", short(&url))], ConstCounter::new(traffic.bytes)));
        each(to, "ambit_xds_sent_bytes", "Bytes of responses sent to subscribers", bytes)?;
        let resources = self.publisher.contents().into_iter().map(|(url, count, _)| {
            ([("type", short(&url))], ConstGauge::new(u64::try_from(count).unwrap_or(u64::MAX)))
        });
        each(to, "ambit_published_resources", "Resources that are published", resources)?;
        let help = "Seconds from the arrival of changes until what they change is published";
        histogram(to, "ambit_publish_seconds", help, &self.changes.0)?;
        let help = "Seconds from a publication until it was handed to a subscriber's connection";
        histogram(to, "pilot_proxy_convergence_time", help, &metrics.delay)
    }

    fn objects(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let counts = objects_of(&self.cluster.read());
        let counts = counts.map(|(kind, count)| {
            ([("kind", kind.to_owned())], ConstGauge::new(u64::try_from(count).unwrap_or(u64::MAX)))
        });
        each(to, "ambit_objects", "Objects that are in force", counts)?;
        gauge(
            to,
            "ambit_source_problems",
            "Documents that are not used as written",
            self.problems.borrow().len(),
        )?;
        match &self.nodes {
            Some(nodes) => gauge(to, "ambit_nodes_with_token", "Nodes that may connect", nodes.len()),
            None => Ok(()),
        }
    }

    fn certificates(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let counts = self.desk.counts();
        let of = |count: &AtomicU64| count.load(Relaxed);
        istios(to, "citadel_server_csr_count", "Certificate requests", of(&counts.asked))?;
        istios(to, "citadel_server_success_cert_issuance_count", "Certificates signed", of(&counts.signed))?;
        let help = "Certificate requests of callers that are not known";
        istios(to, "citadel_server_authentication_failure_count", help, of(&counts.strangers))?;
        let help = "Certificate requests for identities that the caller may not have";
        istios(to, "citadel_server_id_extraction_err_count", help, of(&counts.impersonations))?;
        let help = "Certificate requests that are not in order or ask for too long a life";
        istios(to, "citadel_server_csr_parsing_err_count", help, of(&counts.requests))?;
        let help = "Certificate requests that failed here";
        istios(to, "citadel_server_csr_sign_err_count", help, of(&counts.failures))?;
        let expires = self.desk.in_force().expires().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let help = "When the first certificate of the signing chain ends, in seconds since 1970";
        each(
            to,
            "citadel_server_cert_chain_expiry_timestamp",
            help,
            [([("root", "own")], ConstGauge::new(expires))],
        )
    }
}

/// How many objects there are, by kind.
pub fn objects_of(cluster: &Cluster) -> [(&'static str, usize); 15] {
    [
        ("Namespace", cluster.namespaces.len()),
        ("Node", cluster.nodes.len()),
        ("Pod", cluster.pods.len()),
        ("Service", cluster.services.len()),
        ("EndpointSlice", cluster.slices.len()),
        ("ServiceEntry", cluster.service_entries.len()),
        ("WorkloadEntry", cluster.workload_entries.len()),
        ("VirtualService", cluster.virtual_services.len()),
        ("AuthorizationPolicy", cluster.authorization_policies.len()),
        ("PeerAuthentication", cluster.peer_authentications.len()),
        ("RequestAuthentication", cluster.request_authentications.len()),
        ("DestinationRule", cluster.destination_rules.len()),
        ("RateLimitPolicy", cluster.rate_limit_policies.len()),
        ("Gateway", cluster.gateways.len()),
        ("GatewayClass", cluster.gateway_classes.len()),
    ]
}

/// Short names of types: Istio's, and one for workloads alone, which Istio calls `wds` as well.
pub fn short(type_url: &str) -> String {
    match type_url {
        ADDRESS => "wds".to_owned(),
        WORKLOAD => "workload".to_owned(),
        AUTHORIZATION => "wads".to_owned(),
        other => other.to_owned(),
    }
}

pub(crate) fn each<L: EncodeLabelSet, M: EncodeMetric + TypedMetric>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    figures: impl IntoIterator<Item = (L, M)>,
) -> Result<(), Error> {
    let mut family = to.encode_descriptor(name, help, None, M::TYPE)?;
    for (labels, figure) in figures {
        figure.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

pub(crate) fn counter(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    count: u64,
) -> Result<(), Error> {
    ConstCounter::new(count).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

/// A count under a name of istiod, which does not end its counters with `_total`, as the format wants of ours. So
/// its type is not told; dashboards and alerts ask by name.
#[derive(Clone, Copy, Debug)]
struct IstiosCounter(u64);

impl EncodeMetric for IstiosCounter {
    fn encode(&self, mut to: MetricEncoder<'_>) -> Result<(), Error> {
        to.encode_gauge(&self.0)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for IstiosCounter {
    const TYPE: MetricType = MetricType::Unknown;
}

fn istios(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, count: u64) -> Result<(), Error> {
    IstiosCounter(count).encode(to.encode_descriptor(name, help, None, IstiosCounter::TYPE)?)
}

pub(crate) fn gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    count: usize,
) -> Result<(), Error> {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    ConstGauge::new(count).encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn histogram(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, delays: &Delays) -> Result<(), Error> {
    let mut encoder: MetricEncoder<'_> = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    encoder.encode_histogram::<NoLabelSet>(delays.sum(), delays.count(), &delays.buckets(), None)
}
