//! `RateLimitPolicy`, our own: how many requests a waypoint takes.
//!
//! Unknown fields are kept beside the known ones: a limit without a misspelt one would be another than its author meant.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http_route::HttpMatch;
use crate::kind::custom_kind;

custom_kind! {
    /// How many requests a waypoint takes for what it is attached to.
    RateLimitPolicy(RateLimitPolicySpec), "ambit.io", ["v1alpha1"], "ratelimitpolicies"
}

/// The wish of a [`RateLimitPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimitPolicySpec {
    /// What it limits, 1 to 16: Services, ServiceEntries, waypoints (Gateway), HTTPRoutes or GRPCRoutes. Each counts
    /// for itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<LimitTargetRef>,
    /// Limits that each replica of a waypoint counts for itself, up to 16. A request needs room in each that counts it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<LocalLimit>,
    /// A limit that a service counts for all replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalLimit>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What is limited, in the policy's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitTargetRef {
    /// Its group; empty is Kubernetes' own.
    pub group: String,
    /// `Service`, `ServiceEntry`, `Gateway`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The name of a port of a service, or of a rule of a route; absent is all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A limit that each replica counts for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalLimit {
    /// How many requests, 1 to 1000000.
    pub requests: u32,
    /// In what time, 1ms to 24h: `1s`, `1m`.
    pub per: String,
    /// How many may come at once, 1 to 1000000; absent is as many as `requests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// A count for each of their values, up to 4; none is one count for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<LimitKey>,
    /// For requests that any of these matches, as in an HTTPRoute; none is every request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpMatch>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// By what requests are told apart: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitKey {
    /// A header; requests without it count together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<LimitFact>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What a request has a value of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LimitFact {
    /// The client's identity, `spiffe://…`.
    Principal,
    /// The client's namespace.
    Namespace,
    /// The client's address.
    Address,
    /// The path, without the query.
    Path,
    /// The method.
    Method,
}

/// A limit that a service counts: one that speaks Envoy's rate limit protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalLimit {
    /// The service.
    pub service: LimitService,
    /// In which of its domains.
    pub domain: String,
    /// How long its answer may take, 1ms to 10s; absent is 100ms. Every request waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Whether requests are taken while it does not answer; absent is true. With false they are answered with 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
    /// What it is asked about, 1 to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<LimitDescriptor>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A service that counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitService {
    /// Its group; absent is Kubernetes' own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Service`, which is what absent is, or `ServiceEntry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace; absent is the policy's. Another one needs a ReferenceGrant there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What a request is counted with. A request that has no value for one of its entries is not asked about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitDescriptor {
    /// Its entries, 1 to 16, in the order in which the service has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<LimitEntry>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// One entry: a key, and one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitEntry {
    /// Its key.
    pub key: String,
    /// Always this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What a header says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Something else that the request has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<LimitFact>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}
