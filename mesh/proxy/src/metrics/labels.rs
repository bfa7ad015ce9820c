//! The labels of traffic (protocols 10.1): who talks to whom, as both proxies write it.
//!
//! Series keep the first workloads and service that had their labels; what is compared and hashed is the text, for
//! two pods of one deployment have the same.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use ambit_model::{identity::Identity, service::Service, workload::Workload};
use prometheus_client::encoding::{EncodeLabel, LabelSetEncoder};

/// The stand-in for a label that has no value.
pub const UNKNOWN: &str = "unknown";

/// The two ends of some traffic, and what it is meant for; borrowed from whoever knows them.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Who opened the connection, or sent the request.
    pub source: Peer<'a>,
    /// Who it is opened or sent to: the next hop.
    pub destination: Peer<'a>,
    /// The service that it is meant for.
    pub service: Option<&'a Arc<Service>>,
}

/// [`Ends`] as they are kept.
#[derive(Clone, Debug, Default)]
pub struct OwnedEnds {
    source: OwnedPeer,
    destination: OwnedPeer,
    service: Option<Arc<Service>>,
}

/// One end of a connection, as far as labels tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer<'a> {
    /// The workload.
    pub workload: Option<&'a Arc<Workload>>,
    /// The identity that it proved.
    pub identity: Option<&'a Identity>,
}

#[derive(Clone, Debug, Default)]
struct OwnedPeer {
    workload: Option<Arc<Workload>>,
    identity: Option<Identity>,
}

impl OwnedPeer {
    fn view(&self) -> Peer<'_> {
        Peer { workload: self.workload.as_ref(), identity: self.identity.as_ref() }
    }
}

impl OwnedEnds {
    /// To compare.
    pub fn view(&self) -> Ends<'_> {
        Ends {
            source: self.source.view(),
            destination: self.destination.view(),
            service: self.service.as_ref(),
        }
    }
}

impl From<&Ends<'_>> for OwnedEnds {
    fn from(ends: &Ends<'_>) -> Self {
        let own =
            |peer: Peer<'_>| OwnedPeer { workload: peer.workload.cloned(), identity: peer.identity.cloned() };
        Self { source: own(ends.source), destination: own(ends.destination), service: ends.service.cloned() }
    }
}

/// The parts of a workload that are labels. Two pods of one deployment have the same.
fn workload_labels(workload: &Workload) -> [&str; 7] {
    [
        workload.workload_name.as_str(),
        workload.canonical_name.as_str(),
        workload.canonical_revision.as_str(),
        workload.namespace.as_str(),
        workload.cluster.as_str(),
        workload.locality.region.as_str(),
        workload.locality.zone.as_str(),
    ]
}

fn service_labels(service: &Service) -> [&str; 3] {
    [service.hostname.as_str(), service.namespace.as_str(), service.name.as_str()]
}

impl Hash for Ends<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for peer in [self.source, self.destination] {
            peer.workload.map(|workload| workload_labels(workload)).hash(state);
            peer.identity.hash(state);
        }
        self.service.map(|service| service_labels(service)).hash(state);
    }
}

impl PartialEq for Ends<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.source.is_labelled_like(&other.source)
            && self.destination.is_labelled_like(&other.destination)
            && self.service.map(|one| service_labels(one)) == other.service.map(|one| service_labels(one))
    }
}

impl Eq for Ends<'_> {}

impl Peer<'_> {
    fn is_labelled_like(&self, other: &Peer<'_>) -> bool {
        self.identity == other.identity
            && match (self.workload, other.workload) {
                (Some(one), Some(other)) => {
                    Arc::ptr_eq(one, other) || workload_labels(one) == workload_labels(other)
                }
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            }
    }
}

impl OwnedEnds {
    /// Writes the labels of who talks to whom, of `request_protocol`, whatever `between` adds, and of the places.
    pub fn encode(
        &self,
        encoder: &mut LabelSetEncoder<'_>,
        reporter: &str,
        protocol: &str,
        between: &[(&str, &str)],
    ) -> fmt::Result {
        let mut label = |key: &str, value: &str| {
            let value = if value.is_empty() { UNKNOWN } else { value };
            (key, value).encode(encoder.encode_label())
        };
        let all = |peer: &'_ OwnedPeer| -> [String; 7] {
            let names = peer.workload.as_ref().map(|one| workload_labels(one).map(str::to_owned));
            names.unwrap_or_default()
        };
        let principal =
            |peer: &OwnedPeer| peer.identity.as_ref().map(ToString::to_string).unwrap_or_default();
        let [s_workload, s_name, s_revision, s_namespace, s_cluster, s_region, s_zone] = all(&self.source);
        let [d_workload, d_name, d_revision, d_namespace, d_cluster, d_region, d_zone] =
            all(&self.destination);
        let [host, service_namespace, service_name] =
            self.service.as_ref().map(|service| service_labels(service)).unwrap_or_default();
        label("reporter", reporter)?;
        label("source_workload", &s_workload)?;
        label("source_canonical_service", &s_name)?;
        label("source_canonical_revision", &s_revision)?;
        label("source_workload_namespace", &s_namespace)?;
        label("source_principal", &principal(&self.source))?;
        label("source_app", &s_name)?;
        label("source_version", &s_revision)?;
        label("source_cluster", &s_cluster)?;
        label("destination_service", host)?;
        label("destination_service_namespace", service_namespace)?;
        label("destination_service_name", service_name)?;
        label("destination_workload", &d_workload)?;
        label("destination_canonical_service", &d_name)?;
        label("destination_canonical_revision", &d_revision)?;
        label("destination_workload_namespace", &d_namespace)?;
        label("destination_principal", &principal(&self.destination))?;
        label("destination_app", &d_name)?;
        label("destination_version", &d_revision)?;
        label("destination_cluster", &d_cluster)?;
        label("request_protocol", protocol)?;
        between.iter().try_for_each(|(key, value)| label(key, value))?;
        label("source_region", &s_region)?;
        label("source_zone", &s_zone)?;
        label("destination_region", &d_region)?;
        label("destination_zone", &d_zone)
    }
}
