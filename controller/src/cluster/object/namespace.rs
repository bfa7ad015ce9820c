//! Namespaces and nodes: the two objects that lend their labels to others.

use ambit_api::k8s_openapi::api::core::v1 as k8s;
use ambit_api::labels;
use ambit_model::{name::Namespace, workload::Locality};

use super::Meta;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceObject {
    /// Name, labels and annotations.
    pub meta: Meta,
}

impl NamespaceObject {
    pub(super) fn parse(object: k8s::Namespace) -> Self {
        let mut meta = Meta::parse(Namespace::default(), object.metadata);
        meta.labels.name_namespace(&Namespace::from(meta.name.name.as_str()));
        Self { meta }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Where it is.
    pub locality: Locality,
}

impl Node {
    pub(super) fn parse(object: k8s::Node) -> Self {
        let meta = Meta::parse(Namespace::default(), object.metadata);
        let label = |key| meta.labels.get(key).unwrap_or_default().into();
        let locality = Locality {
            region: label(labels::TOPOLOGY_REGION),
            zone: label(labels::TOPOLOGY_ZONE),
            subzone: label(labels::TOPOLOGY_SUBZONE),
        };
        Self { meta, locality }
    }
}
