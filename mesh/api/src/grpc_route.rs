//! Gateway API's `GRPCRoute`: where gRPC calls go, and what is done to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;
use crate::route::{BackendRef, Filter, MatchType, NamedMatch, ParentReference, SessionPersistence};

custom_kind! {
    /// Where gRPC calls go, and what is done to them.
    GRPCRoute(GrpcRouteSpec), "gateway.networking.k8s.io", ["v1", "v1alpha2"], "grpcroutes"
}

/// The wish of a [`GRPCRoute`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentReference>,
    /// Gateways that it is attached to without naming them: others' affair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<Value>,
    /// Hosts that it is for, at a gateway. Services have one name, and it is not compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Its rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<GrpcRule>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For calls that any of these matches; none at all is every call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcMatch>,
    /// What is done to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where they go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// What keeps a client at one endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What is asked of a call: all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatch {
    /// Its service and method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<MethodMatch>,
    /// Its headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedMatch>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What is asked of the service and the method of a call; one of them may be any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodMatch {
    /// How they are compared.
    #[serde(rename = "type")]
    pub kind: MatchType,
    /// The service, `shop.Cart`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The method, `Add`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}
