//! `WorkloadEntry`: a workload that is not a pod, such as a virtual machine.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kind::custom_kind;

custom_kind! {
    /// A workload that is not a pod.
    WorkloadEntry(WorkloadEntrySpec), "networking.istio.io", ["v1", "v1beta1", "v1alpha3"], "workloadentries"
}

/// What is known of a [`WorkloadEntry`], or of one inline endpoint of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// An IP address, or a name for DNS.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Port numbers by the port names of services.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// Labels that selectors see, beside those of the object.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The network it is on; empty is the default one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Its share of the load; 0 is unset.
    #[serde(skip_serializing_if = "is_zero")]
    pub weight: u32,
    /// The service account of its identity.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
