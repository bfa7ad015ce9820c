//! `AuthorizationPolicy`: who may connect to, or call, a workload.
//!
//! Unknown fields are kept beside the known ones: a misspelt condition in a rule must be seen,
//! because a rule without it would match more than its author meant.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;
use crate::selector::{TargetRef, WorkloadSelector};

custom_kind! {
    /// Who may connect to, or call, the workloads it selects.
    AuthorizationPolicy(AuthorizationPolicySpec), "security.istio.io", ["v1", "v1beta1"], "authorizationpolicies"
}

/// The wish of an [`AuthorizationPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads; absent is all of the namespace (all of the mesh, in the root namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The gateway or service, older singular form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// The gateways or services; such a policy belongs to a waypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Any rule may match. None at all never matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What a match means.
    #[serde(default)]
    pub action: Action,
    /// The external authorizer of a `CUSTOM` policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What a match of a policy means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The connection is allowed.
    #[default]
    Allow,
    /// The connection is refused, whatever else allows it.
    Deny,
    /// The request is logged.
    Audit,
    /// An external authorizer decides.
    Custom,
}

/// An external authorizer, by its name in the mesh configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Provider {
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// One rule: all of `from`, `to` and `when` must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Any of these callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// Any of these operations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// All of these conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The wrapper around a [`Source`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct From {
    /// The caller.
    #[serde(default)]
    pub source: Source,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The wrapper around an [`Operation`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct To {
    /// The operation.
    #[serde(default)]
    pub operation: Operation,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A caller: every list that is present must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Identities, `td/ns/NS/sa/SA`.
    pub principals: Vec<String>,
    /// None of these identities.
    pub not_principals: Vec<String>,
    /// JWT subjects, `issuer/subject` (HTTP only).
    pub request_principals: Vec<String>,
    /// None of these JWT subjects (HTTP only).
    pub not_request_principals: Vec<String>,
    /// Namespaces of the identity.
    pub namespaces: Vec<String>,
    /// None of these namespaces.
    pub not_namespaces: Vec<String>,
    /// Service accounts, `namespace/name` or `name` in the policy's namespace.
    pub service_accounts: Vec<String>,
    /// None of these service accounts.
    pub not_service_accounts: Vec<String>,
    /// Addresses or networks of the peer.
    pub ip_blocks: Vec<String>,
    /// None of these addresses.
    pub not_ip_blocks: Vec<String>,
    /// Addresses of the original client (HTTP only).
    pub remote_ip_blocks: Vec<String>,
    /// None of these addresses of the original client (HTTP only).
    pub not_remote_ip_blocks: Vec<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// An operation: every list that is present must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Hosts (HTTP only).
    pub hosts: Vec<String>,
    /// None of these hosts (HTTP only).
    pub not_hosts: Vec<String>,
    /// Ports of the workload.
    pub ports: Vec<String>,
    /// None of these ports.
    pub not_ports: Vec<String>,
    /// Methods (HTTP only).
    pub methods: Vec<String>,
    /// None of these methods (HTTP only).
    pub not_methods: Vec<String>,
    /// Paths (HTTP only).
    pub paths: Vec<String>,
    /// None of these paths (HTTP only).
    pub not_paths: Vec<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// One attribute of a connection or request and its wanted values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Name of the attribute, `source.ip`.
    pub key: String,
    /// Any of these.
    pub values: Vec<String>,
    /// None of these.
    pub not_values: Vec<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}
