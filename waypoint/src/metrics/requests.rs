//! Istio's standard metrics of requests.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use ambit_proxy::metrics::{Collection, Ends, OwnedEnds, Series, UNKNOWN, WELL};
use hashbrown::Equivalent;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, counter::Counter, histogram::Histogram},
};

use super::{MILLISECONDS, REPORTER};
use crate::access::GrpcStatus;

/// How many different sets of labels are kept. One is about 3 KiB here and 60 lines on the metrics page, which is what
/// sets the limit.
const MOST: usize = 4 * 1024;

/// What one request is labelled with, borrowed from whoever knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels<'a> {
    /// Who asked whom.
    pub ends: Ends<'a>,
    /// Whether it is a gRPC call.
    pub is_grpc: bool,
    /// The status of its response; 0: it had none.
    pub status: u16,
    /// The status of a gRPC call.
    pub grpc: Option<GrpcStatus>,
    /// The response flag.
    pub flag: &'static str,
    /// Whether it came in mutual TLS.
    pub mutual_tls: bool,
}

/// The labels as they are kept.
#[derive(Clone, Debug)]
pub struct OwnedLabels {
    ends: OwnedEnds,
    is_grpc: bool,
    status: u16,
    grpc: Option<GrpcStatus>,
    flag: &'static str,
    mutual_tls: bool,
}

impl OwnedLabels {
    fn view(&self) -> RequestLabels<'_> {
        RequestLabels {
            ends: self.ends.view(),
            is_grpc: self.is_grpc,
            status: self.status,
            grpc: self.grpc,
            flag: self.flag,
            mutual_tls: self.mutual_tls,
        }
    }
}

impl From<&RequestLabels<'_>> for OwnedLabels {
    fn from(labels: &RequestLabels<'_>) -> Self {
        Self {
            ends: OwnedEnds::from(&labels.ends),
            is_grpc: labels.is_grpc,
            status: labels.status,
            grpc: labels.grpc,
            flag: labels.flag,
            mutual_tls: labels.mutual_tls,
        }
    }
}

impl Hash for OwnedLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.view().hash(state);
    }
}

impl Equivalent<OwnedLabels> for RequestLabels<'_> {
    fn equivalent(&self, kept: &OwnedLabels) -> bool {
        *self == kept.view()
    }
}

impl EncodeLabelSet for OwnedLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let status = self.status.to_string();
        let grpc = self.grpc.map(|status| status.0.to_string()).unwrap_or_default();
        let mut between = vec![("response_code", status.as_str())];
        if self.is_grpc {
            between.push(("grpc_response_status", grpc.as_str()));
        }
        between.push(("response_flags", self.flag));
        between.push(("connection_security_policy", if self.mutual_tls { "mutual_tls" } else { UNKNOWN }));
        self.ends.encode(encoder, REPORTER, if self.is_grpc { "grpc" } else { "http" }, &between)
    }
}

/// The figures of one set of labels.
#[derive(Debug)]
pub struct Request {
    labels: OwnedLabels,
    count: Counter,
    duration: Histogram,
    received: Histogram,
    sent: Histogram,
}

/// Bytes.
const BYTES: [f64; 9] =
    [64.0, 512.0, 4096.0, 32_768.0, 262_144.0, 2_097_152.0, 16_777_216.0, 134_217_728.0, 1_073_741_824.0];

impl Request {
    fn new(labels: OwnedLabels) -> Self {
        Self {
            labels,
            count: Counter::default(),
            duration: Histogram::new(MILLISECONDS),
            received: Histogram::new(BYTES),
            sent: Histogram::new(BYTES),
        }
    }
}

impl Series for Request {
    type Labels = OwnedLabels;

    fn labels(&self) -> &OwnedLabels {
        &self.labels
    }
}

/// The figures of all sets of labels.
#[derive(Debug)]
pub struct Requests {
    series: Collection<Request>,
    /// Where requests are counted for whose labels there is no room.
    overflow: Arc<Request>,
}

impl Default for Requests {
    fn default() -> Self {
        let unknown = OwnedLabels {
            ends: OwnedEnds::default(),
            is_grpc: false,
            status: 0,
            grpc: None,
            flag: WELL,
            mutual_tls: false,
        };
        Self { series: Collection::new(MOST), overflow: Arc::new(Request::new(unknown)) }
    }
}

impl Requests {
    /// Counts one request.
    pub fn ended(&self, labels: &RequestLabels<'_>, took: Duration, received: u64, sent: u64) {
        let found = self.series.find(labels, || Request::new(OwnedLabels::from(labels)));
        let figures = found.as_ref().unwrap_or(&self.overflow);
        figures.count.inc();
        figures.duration.observe(took.as_secs_f64() * 1000.0);
        figures.received.observe(bytes(received));
        figures.sent.observe(bytes(sent));
    }
}

/// Exact up to 2^52, which nobody sends.
fn bytes(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

impl Collector for Requests {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = self.series.all();
        if self.overflow.count.get() > 0 {
            all.push(self.overflow.clone());
        }
        let mut family = to.encode_descriptor("istio_requests", "Requests", None, MetricType::Counter)?;
        for one in &all {
            one.count.encode(family.encode_family(&one.labels)?)?;
        }
        type Of = fn(&Request) -> &Histogram;
        let histograms: [(&str, &str, Of); 3] = [
            ("istio_request_duration_milliseconds", "Time to the end of the response", |one| &one.duration),
            ("istio_request_bytes", "Bytes of requests' bodies", |one| &one.received),
            ("istio_response_bytes", "Bytes of responses' bodies", |one| &one.sent),
        ];
        for (name, help, of) in histograms {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for one in &all {
                of(one).encode(family.encode_family(&one.labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ambit_model::{service::Service, workload::Workload};
    use ambit_proxy::metrics::Peer;
    use ambit_runtime::metrics::{Format, Registry};

    use super::{super::Metrics, *};

    #[test]
    fn a_request_has_exactly_the_labels_of_istios() {
        let workload = |name: &str| {
            Arc::new(Workload {
                workload_name: name.into(),
                canonical_name: name.into(),
                canonical_revision: "v1".into(),
                namespace: "shop".into(),
                cluster: "Kubernetes".into(),
                ..Workload::default()
            })
        };
        let (client, server) = (workload("client"), workload("web"));
        let service = Arc::new(Service {
            name: "web".into(),
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            ..Service::default()
        });
        let mut registry = Registry::new();
        let metrics = Metrics::register(&mut registry, "1.0".to_owned(), Arc::default());
        let labels = RequestLabels {
            ends: Ends {
                source: Peer { workload: Some(&client), identity: None },
                destination: Peer { workload: Some(&server), identity: None },
                service: Some(&service),
            },
            is_grpc: false,
            status: 200,
            grpc: None,
            flag: WELL,
            mutual_tls: true,
        };
        metrics.requests.ended(&labels, Duration::from_millis(3), 10, 1000);
        metrics.requests.ended(&labels, Duration::from_millis(30), 10, 1000);
        let text = registry.share().render(Format::Prometheus);
        let expected = "istio_requests_total{reporter=\"waypoint\",source_workload=\"client\",\
            source_canonical_service=\"client\",source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
            source_principal=\"unknown\",source_app=\"client\",source_version=\"v1\",source_cluster=\"Kubernetes\",\
            destination_service=\"web.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
            destination_service_name=\"web\",destination_workload=\"web\",destination_canonical_service=\"web\",\
            destination_canonical_revision=\"v1\",destination_workload_namespace=\"shop\",\
            destination_principal=\"unknown\",destination_app=\"web\",destination_version=\"v1\",\
            destination_cluster=\"Kubernetes\",request_protocol=\"http\",response_code=\"200\",response_flags=\"-\",\
            connection_security_policy=\"mutual_tls\",source_region=\"unknown\",source_zone=\"unknown\",\
            destination_region=\"unknown\",destination_zone=\"unknown\"} 2";
        assert!(text.lines().any(|line| line == expected), "{text}");
        let bucket = |le: &str| {
            let start = format!("istio_request_duration_milliseconds_bucket{{le=\"{le}\"");
            text.lines().find(|line| line.starts_with(&start)).and_then(|line| line.rsplit(' ').next())
        };
        assert_eq!((bucket("1.0"), bucket("5.0"), bucket("50.0")), (Some("0"), Some("1"), Some("2")));
    }
}
