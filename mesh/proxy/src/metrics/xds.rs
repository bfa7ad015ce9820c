//! What the client of the control plane counts, under the names that Istio gives it.

use std::{fmt, sync::Arc};

use ambit_wire::xds::ClientMetrics;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// Shows the client's counts.
#[derive(Debug)]
pub struct Shown(pub Arc<ClientMetrics>);

impl Collector for Shown {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = |name: &str, help: &str, label: &str, values: &[(String, u64)]| {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (of, value) in values {
                ConstCounter::new(*value).encode(family.encode_family(&[(label, of.as_str())])?)?;
            }
            Ok::<(), fmt::Error>(())
        };
        let ends: Vec<_> =
            self.0.terminations().map(|(reason, count)| (reason.label().to_owned(), count)).collect();
        family("istio_xds_connection_terminations", "Ends of the stream", "reason", &ends)?;
        let received = self.0.received.all();
        let messages: Vec<_> = received.iter().map(|(url, of)| (url.clone(), of.messages)).collect();
        family("istio_xds_message", "Responses received", "url", &messages)?;
        let bytes: Vec<_> = received.iter().map(|(url, of)| (url.clone(), of.bytes)).collect();
        family("istio_xds_message_bytes", "Size of responses received", "url", &bytes)
    }
}
