//! An object as the API server sends it. It is judged at our own door, where a mistake in one object is that object's
//! problem: a typed client would fail with the whole list.

use std::borrow::Cow;

use ambit_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, json};

/// What is not read and can be most of an object: who wrote which field.
const MANAGED_FIELDS: &str = "managedFields";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object of any kind.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Its name and version, which the client needs.
    pub(super) metadata: ObjectMeta,
    /// All of it that is read.
    pub(super) value: Value,
}

impl Raw {
    /// An object of which only the metadata was asked for.
    pub(super) fn bare(mut metadata: ObjectMeta) -> Self {
        metadata.managed_fields = None;
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove(LAST_APPLIED);
        }
        // Maps of strings cannot fail to become JSON.
        let value = serde_json::to_value(&metadata).unwrap_or_default();
        Self { metadata, value: json!({ "metadata": value }) }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove(MANAGED_FIELDS);
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(LAST_APPLIED);
            }
        }
        let metadata = value.get("metadata").cloned().unwrap_or_default();
        let metadata = serde_json::from_value(metadata).map_err(D::Error::custom)?;
        Ok(Self { metadata, value })
    }
}

impl kube::Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_left_at_the_door() {
        let raw: Raw = serde_json::from_value(json!({
            "metadata": {
                "name": "web", "resourceVersion": "7", "managedFields": [{"manager": "kubectl"}],
                "annotations": {LAST_APPLIED: "{}", "istio.io/dry-run": "true"}
            },
            "spec": {"anything": [1, "two"]}
        }))
        .unwrap();
        assert_eq!(raw.metadata.name.as_deref(), Some("web"));
        assert_eq!(raw.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(
            raw.value,
            json!({
                "metadata": {"name": "web", "resourceVersion": "7", "annotations": {"istio.io/dry-run": "true"}},
                "spec": {"anything": [1, "two"]}
            })
        );
    }
}
