//! Gateway API's `TLSRoute` and `TCPRoute`: where connections go whose requests are not looked into.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;
use crate::route::{BackendRef, ParentReference};

custom_kind! {
    /// Where connections of TLS go, by the name that they greet.
    TLSRoute(TlsRouteSpec), "gateway.networking.k8s.io", ["v1", "v1alpha3", "v1alpha2"], "tlsroutes"
}

custom_kind! {
    /// Where connections go.
    TCPRoute(TcpRouteSpec), "gateway.networking.k8s.io", ["v1", "v1alpha2"], "tcproutes"
}

/// The wish of a [`TLSRoute`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRouteSpec {
    /// What it is attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentReference>,
    /// Gateways that it is attached to without naming them: others' affair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<Value>,
    /// Names that are greeted, perhaps with `*.` in front; none at all is any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Its rules: one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<StreamRule>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The wish of a [`TCPRoute`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRouteSpec {
    /// What it is attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentReference>,
    /// Gateways that it is attached to without naming them: others' affair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<Value>,
    /// Its rules: one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<StreamRule>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// Where connections go, by weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRule {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where they go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}
