//! Writes waypoints into a directory: documents beside the user's, and overlays of theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use ambit_api::directory::{Directory, DirectoryError, Document, ObjectKey, made_for};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::Failure;
use crate::{
    cluster::object::Name,
    gateways::manifest::{Made, Manifest},
};

/// What we write is in the directory under this writer's name.
const WRITER: &str = "controller";

/// Writes into a directory. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Hand(Arc<Directory>);

impl Hand {
    pub(super) fn open(path: PathBuf) -> Result<Self, DirectoryError> {
        Ok(Self(Arc::new(Directory::open(path)?)))
    }

    pub(super) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, Failure> {
        let key = ObjectKey::new("ConfigMap", namespace, name);
        let found = self.find(key).await?;
        Ok(found
            .and_then(|document| document.parse::<ConfigMap>().ok())
            .map(|map| map.data.unwrap_or_default()))
    }

    pub(super) async fn status(&self, gateway: &Name) -> Result<Value, Failure> {
        let found = self.find(key(gateway)).await?;
        Ok(found.and_then(|document| document.value.get("status").cloned()).unwrap_or_default())
    }

    pub(super) async fn make(
        &self,
        gateway: &Name,
        wanted: &[Manifest],
    ) -> Result<Vec<&'static str>, Failure> {
        let (key, wanted) = (key(gateway), wanted.to_vec());
        self.with(move |directory| {
            let ours = made_for(WRITER, &key)?;
            let loaded = directory.load()?;
            let is_foreign = |one: &Manifest| {
                let same = ObjectKey::new(one.made.kind(), &key.namespace, &key.name);
                let mut there = loaded.objects.iter().filter(|document| document.key() == same);
                there.any(|document| !document.file.ends_with(&ours))
            };
            let (foreign, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_foreign);
            let objects: Vec<_> = wanted.into_iter().map(|one| one.value).collect();
            directory.make(WRITER, &key, &objects)?;
            let foreign = foreign.iter().map(|one| one.made).filter(|made| *made != Made::ServiceAccount);
            Ok(foreign.map(Made::kind).collect())
        })
        .await
    }

    pub(super) async fn unmake(&self, gateway: &Name) -> Result<(), Failure> {
        let key = key(gateway);
        self.with(move |directory| {
            directory.unmake(WRITER, &key)?;
            directory.unpatch(WRITER, &key)
        })
        .await
    }

    /// An earlier process may have made what nobody wants any more.
    pub(super) async fn sweep(&self, kept: &BTreeSet<&Name>) -> Result<(), Failure> {
        let kept: BTreeSet<_> = kept.iter().map(|name| key(name)).collect();
        self.with(move |directory| {
            for key in directory.written(WRITER).difference(&kept) {
                directory.unmake(WRITER, key)?;
                directory.unpatch(WRITER, key)?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn tell(&self, gateway: &Name, status: &Value) -> Result<(), Failure> {
        let (key, overlay) = (key(gateway), json!({ "status": status }));
        self.with(move |directory| directory.patch(WRITER, &key, &overlay)).await
    }

    async fn find(&self, key: ObjectKey) -> Result<Option<Document>, Failure> {
        self.with(move |directory| {
            Ok(directory.load()?.objects.into_iter().find(|document| document.key() == key))
        })
        .await
    }

    /// Files are not for the threads of tasks.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, DirectoryError> + Send + 'static,
    ) -> Result<T, Failure> {
        let directory = Arc::clone(&self.0);
        let done = spawn_blocking(move || work(&directory)).await;
        Ok(done.map_err(|_| Failure::Ending)??)
    }
}

fn key(gateway: &Name) -> ObjectKey {
    ObjectKey::new("Gateway", gateway.namespace.as_str(), gateway.name.as_str())
}
