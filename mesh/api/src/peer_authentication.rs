//! `PeerAuthentication`: whether a workload accepts callers without mutual TLS.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;
use crate::selector::WorkloadSelector;

custom_kind! {
    /// Whether the workloads it selects accept callers without mutual TLS.
    PeerAuthentication(PeerAuthenticationSpec), "security.istio.io", ["v1", "v1beta1"], "peerauthentications"
}

/// The wish of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// The workloads; absent is all of the namespace (all of the mesh, in the root namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// For every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// For single ports of the workload (not of a service), keyed by the number in decimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A mode of mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MutualTls {
    /// The mode.
    #[serde(default)]
    pub mode: Mode,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// Whether callers must use mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the wider policy says.
    #[default]
    Unset,
    /// Never offered. To a node's tunnel this is the same as `Permissive`.
    Disable,
    /// Both are accepted.
    Permissive,
    /// Callers without mutual TLS are refused.
    Strict,
}
