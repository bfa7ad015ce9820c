//! Istio's mesh configuration: the text under the key `mesh` of ConfigMap `istio`. Of it the mesh reads
//! `extensionProviders`, and of those the external authorizers; all else is somebody else's.
//!
//! Unknown fields of an authorizer are kept beside the known ones: a misspelt `failOpen` must be seen.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::directory::{FieldError, typed};

/// The name of the ConfigMap, in the namespace of the control plane.
pub const CONFIG_MAP: &str = "istio";
/// Its key.
pub const KEY: &str = "mesh";

/// What is read of the mesh configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfig {
    /// Who extends the mesh.
    #[serde(default)]
    pub extension_providers: Vec<ExtensionProvider>,
}

impl MeshConfig {
    /// Reads the YAML of it; nothing written is one without anything.
    ///
    /// # Errors
    /// Names the field that is not as it should be; none, if it is no YAML.
    pub fn read(text: &str) -> Result<Self, FieldError> {
        let value: Value = serde_yaml_ng::from_str(text)
            .map_err(|error| FieldError { field: String::new(), what: error.to_string() })?;
        if value.is_null() { Ok(Self::default()) } else { typed(&value) }
    }
}

/// One who extends the mesh; one of the kinds is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtensionProvider {
    /// By which objects name it.
    #[serde(default)]
    pub name: String,
    /// An authorizer in gRPC.
    #[serde(default)]
    pub envoy_ext_authz_grpc: Option<GrpcAuthorizer>,
    /// An authorizer in HTTP.
    #[serde(default)]
    pub envoy_ext_authz_http: Option<HttpAuthorizer>,
}

/// What both kinds of authorizers have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// `hostname` or `namespace/hostname` of its service.
    #[serde(default)]
    pub service: String,
    /// The port of the service.
    #[serde(default)]
    pub port: u32,
    /// How long a check may take.
    #[serde(default)]
    pub timeout: Option<String>,
    /// Whether a check that fails lets the request go on.
    #[serde(default)]
    pub fail_open: bool,
    /// Whether a route is chosen anew after the check.
    #[serde(default)]
    pub clear_route_cache: bool,
    /// The status that a client gets when a check fails.
    #[serde(default)]
    pub status_on_error: Option<IntOrString>,
    /// How much of a body it is shown; absent: nothing.
    #[serde(default)]
    pub include_request_body_in_check: Option<BodyInCheck>,
}

/// An authorizer in gRPC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrpcAuthorizer {
    /// What both kinds have.
    #[serde(flatten)]
    pub asked: Asked,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// An authorizer in HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpAuthorizer {
    /// What both kinds have.
    #[serde(flatten)]
    pub asked: Asked,
    /// In front of the request's path.
    #[serde(default)]
    pub path_prefix: String,
    /// Headers of the request that a check has.
    #[serde(default)]
    pub include_request_headers_in_check: Vec<String>,
    /// The same, by its older name.
    #[serde(default)]
    pub include_headers_in_check: Vec<String>,
    /// Headers that every check has.
    #[serde(default)]
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// Headers of an answer that allows, for the application.
    #[serde(default)]
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of an answer that allows, for the client.
    #[serde(default)]
    pub headers_to_downstream_on_allow: Vec<String>,
    /// Headers of an answer that denies, for the client; none: all.
    #[serde(default)]
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// How much of a body an authorizer is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BodyInCheck {
    /// So many bytes.
    #[serde(default)]
    pub max_request_bytes: u32,
    /// Whether of a longer one the beginning is shown.
    #[serde(default)]
    pub allow_partial_message: bool,
    /// Whether it is shown as bytes, in gRPC.
    #[serde(default)]
    pub pack_as_bytes: bool,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}
