//! `ServiceEntry`: a service that Kubernetes does not know.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kind::custom_kind;
use crate::selector::LabelsSelector;
use crate::workload_entry::WorkloadEntrySpec;

custom_kind! {
    /// A service that Kubernetes does not know.
    ServiceEntry(ServiceEntrySpec), "networking.istio.io", ["v1", "v1beta1", "v1alpha3"], "serviceentries"
}

/// The wish of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Its names; each becomes a service of its own. `*.example.com` stands for many.
    pub hosts: Vec<String>,
    /// Virtual addresses or networks; none gives it an automatic one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Its ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Whether it belongs to the mesh.
    pub location: Location,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Endpoints written here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Endpoints found by label among pods and workload entries of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelsSelector>,
    /// Namespaces that may see it (sidecars only).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Identities that its endpoints may have, beside their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// The number that clients use.
    pub number: u32,
    /// `HTTP`, `HTTP2`, `GRPC`, `TCP`, `TLS`, …
    pub protocol: String,
    /// Its name, which endpoints refer to.
    pub name: String,
    /// The number at the endpoint; 0 is the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u32>,
}

/// Whether a service belongs to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// It is outside.
    #[default]
    MeshExternal,
    /// It is part of the mesh.
    MeshInternal,
}

/// How the endpoints of a service are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// They are not: a connection goes where it was going.
    #[default]
    None,
    /// They are written down or selected.
    Static,
    /// By DNS, one connection to each address.
    Dns,
    /// By DNS, any address.
    DnsRoundRobin,
    /// By DNS of the requested name itself (wildcard hosts, at a waypoint).
    DynamicDns,
}
