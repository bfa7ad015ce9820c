//! An object to install: what tells it from others, and when its turn is.

use std::fmt;

use anyhow::Context as _;
use kube::api::ApiResource;
use kube::core::GroupVersionKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Kinds in the order in which they are installed; they are removed in the reverse. What is not listed comes before what
/// runs.
const ORDER: [&str; 18] = [
    "Namespace",
    "CustomResourceDefinition",
    "ResourceQuota",
    // What an account may not, before it may anything.
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "NetworkPolicy",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
    "HorizontalPodAutoscaler",
    "DaemonSet",
    // It asks the controller, which must be there.
    "ValidatingWebhookConfiguration",
];
/// The place of kinds that are not listed: before `Deployment`.
const BEFORE_WORKLOADS: usize = 13;

/// What tells objects from each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Key {
    /// Group and version.
    pub(crate) api_version: String,
    /// The kind.
    pub(crate) kind: String,
    /// The namespace, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// The name.
    pub(crate) name: String,
}

impl Key {
    /// A key.
    pub(crate) fn new(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    /// How the API names its kind.
    pub(crate) fn resource(&self) -> ApiResource {
        let (group, version) = self.api_version.rsplit_once('/').unwrap_or(("", &self.api_version));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.kind))
    }

    /// Whether it is a definition.
    pub(crate) fn is_definition(&self) -> bool {
        self.kind == "CustomResourceDefinition"
    }

    /// When it is installed.
    pub(crate) fn order(&self) -> (usize, bool, String, String) {
        let rank = ORDER.iter().position(|kind| *kind == self.kind).unwrap_or(BEFORE_WORKLOADS);
        // The agent makes pods wait for the tunnel: it comes after it, and leaves before it.
        let after_tunnel = self.kind == "DaemonSet" && self.name != "ztunnel";
        (rank, after_tunnel, self.kind.clone(), self.name.clone())
    }

    /// Whether it is the same object, perhaps under another version of its API.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let group = |key: &Self| key.api_version.rsplit_once('/').map(|(group, _)| group.to_owned());
        self.kind == other.kind
            && self.name == other.name
            && self.namespace == other.namespace
            && group(self) == group(other)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// An object to install.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    /// What tells it from others.
    pub(crate) key: Key,
    /// All of it.
    pub(crate) value: Value,
}

impl Object {
    /// Reads its key.
    pub(crate) fn new(value: Value) -> anyhow::Result<Self> {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let key = Key {
            api_version: text("/apiVersion").context("an object has an apiVersion")?,
            kind: text("/kind").context("an object has a kind")?,
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name").context("an object has a name")?,
        };
        Ok(Self { key, value })
    }

    /// When it is installed.
    pub(crate) fn order(&self) -> (usize, bool, String, String) {
        self.key.order()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_the_api_names_them() {
        for (api_version, kind, plural) in [
            ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions"),
            ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            ("v1", "ResourceQuota", "resourcequotas"),
            ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
            ("gateway.networking.k8s.io/v1", "GatewayClass", "gatewayclasses"),
        ] {
            let resource = Key::new(api_version, kind, None, "x").resource();
            assert_eq!((resource.plural.as_str(), resource.api_version.as_str()), (plural, api_version));
        }
    }

    #[test]
    fn a_new_version_of_an_api_is_no_new_object() {
        let one = Key::new("autoscaling/v2", "HorizontalPodAutoscaler", Some("a"), "x");
        assert!(one.is(&Key::new("autoscaling/v1", "HorizontalPodAutoscaler", Some("a"), "x")));
        assert!(!one.is(&Key::new("autoscaling/v2", "HorizontalPodAutoscaler", Some("b"), "x")));
    }
}
