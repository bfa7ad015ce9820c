//! `WorkloadGroup`: what the workload entries that a machine registers have in common.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;
use crate::workload_entry::WorkloadEntrySpec;

custom_kind! {
    /// What the workload entries of a group have in common. Read to be checked: machines do not register here.
    WorkloadGroup(WorkloadGroupSpec), "networking.istio.io", ["v1", "v1beta1", "v1alpha3"], "workloadgroups"
}

/// The wish of a [`WorkloadGroup`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadGroupSpec {
    /// Labels and annotations of the entries.
    pub metadata: GroupMetadata,
    /// What the entries say. Its address is the machine's to say.
    pub template: WorkloadEntrySpec,
    /// How the machine finds out whether its application is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Value>,
}

/// Labels and annotations of the entries of a [`WorkloadGroup`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GroupMetadata {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read() {
        let text = "
metadata: { name: vms, namespace: shop }
spec:
  metadata: { labels: { app: vm } }
  template: { serviceAccount: vm, ports: { http: 8080 } }
  probe: { httpGet: { port: 8080 } }
";
        let group: WorkloadGroup = serde_yaml_ng::from_str(text).unwrap();
        assert_eq!(group.spec.metadata.labels["app"], "vm");
        assert_eq!(group.spec.template.service_account, "vm");
        assert_eq!(group.spec.template.ports["http"], 8080);
        assert!(group.spec.probe.is_some());
    }
}
