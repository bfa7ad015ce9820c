//! How Istio's kinds point at other objects: label selectors and target references.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Chooses workloads by labels (`selector.matchLabels` in policies).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// A workload must carry all of these. None at all chooses every workload.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// Chooses workloads by labels (`workloadSelector.labels` in ServiceEntry).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelsSelector {
    /// A workload must carry all of these.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The object that a policy is attached to, in place of a selector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// API group; empty is Kubernetes' own.
    #[serde(default)]
    pub group: String,
    /// `Gateway`, `GatewayClass`, `Service` or `ServiceEntry`.
    #[serde(default)]
    pub kind: String,
    /// Name of the object, in the policy's own namespace.
    #[serde(default)]
    pub name: String,
    /// Only the policy's own namespace is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}
