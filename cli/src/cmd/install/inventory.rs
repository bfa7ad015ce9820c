//! What was installed, kept in the cluster: the ConfigMap `ambit-inventory`, one for each revision.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::object::Key;
use crate::cluster::told;

/// Who changes what is installed, to the API server.
pub(crate) const MANAGER: &str = "ambit-install";
/// What every object of ours carries.
pub(crate) const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "ambit");
const NAME: &str = "ambit-inventory";
const LABEL: &str = "ambit.io/inventory";

/// What was installed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inventory {
    /// Where.
    pub(crate) namespace: String,
    /// The revision; empty is the default one.
    pub(crate) revision: String,
    /// The version.
    pub(crate) version: String,
    /// What was said.
    pub(crate) values: Value,
    /// Every object that was applied.
    pub(crate) objects: Vec<Key>,
    /// Objects that were there before: they are left, without what was added.
    pub(crate) found: Vec<Key>,
    /// Whether the installation got to its end.
    pub(crate) is_complete: bool,
}

impl Inventory {
    /// Whether that object was applied.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.objects.iter().any(|one| one.is(key))
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        if self.revision.is_empty() { "without a revision" } else { &self.revision }
    }

    /// The name of its ConfigMap.
    pub(crate) fn object_name(&self) -> String {
        object_name(&self.revision)
    }

    fn of(map: &ConfigMap) -> anyhow::Result<Self> {
        let name = map.metadata.name.as_deref().unwrap_or_default();
        let damaged = || {
            format!(
                "the ConfigMap {name} is damaged; restore it, or remove objects by their label {}={}",
                PART_OF.0, PART_OF.1
            )
        };
        let text = |word: &str| map.data.as_ref().and_then(|data| data.get(word)).with_context(damaged);
        Ok(Self {
            namespace: map.metadata.namespace.clone().unwrap_or_default(),
            revision: text("revision")?.clone(),
            version: text("version")?.clone(),
            values: serde_yaml_ng::from_str(text("values.yaml")?).with_context(damaged)?,
            objects: serde_yaml_ng::from_str(text("objects.yaml")?).with_context(damaged)?,
            found: serde_yaml_ng::from_str(text("found.yaml")?).with_context(damaged)?,
            is_complete: text("complete")? == "true",
        })
    }

    fn object(&self) -> anyhow::Result<Value> {
        Ok(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.object_name(),
                "namespace": self.namespace,
                "labels": { LABEL: "true", PART_OF.0: PART_OF.1 },
            },
            "data": {
                "revision": self.revision,
                "version": self.version,
                "values.yaml": serde_yaml_ng::to_string(&self.values)?,
                "objects.yaml": serde_yaml_ng::to_string(&self.objects)?,
                "found.yaml": serde_yaml_ng::to_string(&self.found)?,
                "complete": self.is_complete.to_string(),
            },
        }))
    }
}

fn object_name(revision: &str) -> String {
    if revision.is_empty() { NAME.to_owned() } else { format!("{NAME}-{revision}") }
}

/// The one of that revision.
pub(crate) async fn read(
    client: &Client,
    namespace: &str,
    revision: &str,
) -> anyhow::Result<Option<Inventory>> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let map =
        maps.get_opt(&object_name(revision)).await.map_err(told).context("cannot read what is installed")?;
    map.as_ref().map(Inventory::of).transpose()
}

/// All of a namespace.
pub(crate) async fn all(client: &Client, namespace: &str) -> anyhow::Result<Vec<Inventory>> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let list = maps
        .list(&ListParams::default().labels(LABEL))
        .await
        .map_err(told)
        .context("cannot read what is installed")?;
    list.items.iter().map(Inventory::of).collect()
}

/// Writes it.
pub(crate) async fn write(client: &Client, inventory: &Inventory) -> anyhow::Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), &inventory.namespace);
    let params = PatchParams::apply(MANAGER).force();
    let written = maps.patch(&inventory.object_name(), &params, &Patch::Apply(inventory.object()?)).await;
    written.map(drop).map_err(told).context("cannot write down what is installed")
}

/// Forgets it.
pub(crate) async fn forget(client: &Client, inventory: &Inventory) -> anyhow::Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), &inventory.namespace);
    match maps.delete(&inventory.object_name(), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(told(error)).context("cannot remove the list of what was installed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> Inventory {
        Inventory {
            namespace: "istio-system".to_owned(),
            revision: "v2".to_owned(),
            version: "0.1.0".to_owned(),
            values: json!({ "global": { "hub": "x" } }),
            objects: vec![Key::new("v1", "Service", Some("istio-system"), "istiod-v2")],
            found: vec![Key::new("v1", "Namespace", None, "istio-system")],
            is_complete: true,
        }
    }

    #[test]
    fn what_is_kept_is_what_was_there() {
        let map: ConfigMap = serde_json::from_value(inventory().object().unwrap()).unwrap();
        assert_eq!(map.metadata.name.as_deref(), Some("ambit-inventory-v2"));
        assert_eq!(Inventory::of(&map).unwrap(), inventory());
    }

    #[test]
    fn a_damaged_one_is_not_taken_for_an_empty_one() {
        let mut map: ConfigMap = serde_json::from_value(inventory().object().unwrap()).unwrap();
        map.data.as_mut().unwrap().insert("objects.yaml".to_owned(), "{".to_owned());
        assert!(format!("{:#}", Inventory::of(&map).unwrap_err()).contains("damaged"));
        map.data = None;
        assert!(Inventory::of(&map).is_err());
    }
}
