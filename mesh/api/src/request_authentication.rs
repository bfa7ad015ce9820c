//! `RequestAuthentication`: whose tokens (JWT) a service believes, and what it does with them.
//!
//! Unknown fields are kept beside the known ones: a rule without a misspelt one would believe more than its author
//! meant.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;
use crate::selector::{TargetRef, WorkloadSelector};

custom_kind! {
    /// Whose tokens requests to what it is attached to may bring.
    RequestAuthentication(RequestAuthenticationSpec), "security.istio.io", ["v1", "v1beta1"], "requestauthentications"
}

/// The wish of a [`RequestAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// Workloads with a proxy of their own; nothing in this mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The gateway or service, older singular form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// The gateways or services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Whose tokens are believed. A request without a token is let through, without a principal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt_rules: Vec<JwtRule>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The tokens of one issuer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// Who signs: the claim `iss`.
    pub issuer: String,
    /// For whom: one of these is in the claim `aud`. None is for anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Where the keys are. Without it and `jwks`, the issuer's OpenID configuration says so.
    #[serde(alias = "jwks_uri", skip_serializing_if = "String::is_empty")]
    pub jwks_uri: String,
    /// The keys themselves, a JSON Web Key Set.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    /// Headers that have the token. Without any place it is `Authorization: Bearer` or the parameter `access_token`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_params: Vec<String>,
    /// Cookies that have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_cookies: Vec<String>,
    /// The header in which the application gets the payload, as it is encoded in the token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output_payload_to_header: String,
    /// Whether the application gets the token.
    pub forward_original_token: bool,
    /// Headers in which the application gets claims.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// How long the keys may take to come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A header that has the token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token, `Bearer `.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A header that says what a claim says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClaimToHeader {
    /// The header.
    pub header: String,
    /// The claim; one in other claims has dots between the names.
    pub claim: String,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}
