//! Where waypoints are looked for and written: in a cluster, or in the YAML of a playground.

use ambit_api::directory::{Document, ObjectKey};
use ambit_api::labels;
use anyhow::{Context as _, bail};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::{ClusterArgs, told};
use crate::cmd::install::object::Key;
use crate::cmd::live;
use crate::cmd::playground::documents::{Applied, Documents, LabelChange, Wanted};
use crate::cmd::playground::state;

/// As whom objects are written.
const MANAGER: &str = "ambit";
const GATEWAYS: &str = "gateway.networking.k8s.io/v1";

/// Where.
pub(super) enum Place {
    /// In a cluster, whose commands are about this namespace if none is named.
    Cluster { client: Client, namespace: String },
    /// In the YAML of a playground.
    Directory(Documents),
}

impl Place {
    /// The playground if it is up and no cluster was named, else the cluster.
    pub(super) async fn find(playground: &state::Place, cluster: &ClusterArgs) -> anyhow::Result<Self> {
        let names_cluster = cluster.kubeconfig.is_some() || cluster.context.is_some();
        let down = match playground.state() {
            Ok(state) if !names_cluster => return Ok(Self::Directory(Documents::open(&state.directory)?)),
            Ok(_) => None,
            Err(down) => (!names_cluster).then_some(down),
        };
        let found = match cluster.config().await {
            Ok(config) => Ok((cluster.client().await?, config.default_namespace)),
            Err(error) => Err(error),
        };
        match (found, down) {
            (Ok((client, namespace)), _) => Ok(Self::Cluster { client, namespace }),
            (Err(error), None) => Err(error),
            (Err(error), Some(down)) => bail!("{down:#}; nor is there a cluster: {error:#}"),
        }
    }

    /// The namespace that is meant when none is named.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Cluster { namespace, .. } => namespace,
            Self::Directory(_) => "default",
        }
    }

    /// Every object that the mesh reads.
    pub(super) async fn documents(&self) -> anyhow::Result<Vec<Document>> {
        match self {
            Self::Cluster { client, .. } => live::documents(client).await,
            Self::Directory(documents) => Ok(documents.load()?.objects),
        }
    }

    /// Writes a Gateway; says what that did.
    pub(super) async fn apply(&self, gateway: &Value) -> anyhow::Result<&'static str> {
        let (namespace, name) = name_of(gateway);
        match self {
            Self::Cluster { client, .. } => {
                let api = api(client, "Gateway", namespace, name);
                let before = api.get_opt(name).await.map_err(told)?.and_then(|one| one.metadata.generation);
                let params = PatchParams::apply(MANAGER).force();
                let after = api.patch(name, &params, &Patch::Apply(gateway)).await.map_err(|error| {
                    let missing = matches!(&error, kube::Error::Api(status) if status.is_not_found());
                    let error = told(error);
                    if missing { error.context("is the namespace there, and does the cluster have Gateway API? `ambit install` brings it") } else { error }
                })?;
                Ok(match before {
                    None => "created",
                    Some(before) if Some(before) == after.metadata.generation => "unchanged",
                    Some(_) => "changed",
                })
            }
            Self::Directory(documents) => {
                let key = ObjectKey::new("Gateway", namespace, name);
                let applied: Applied = documents.apply(&key, &serde_yaml_ng::to_string(gateway)?)?;
                Ok(applied.word())
            }
        }
    }

    /// Removes a Gateway.
    pub(super) async fn delete(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Cluster { client, .. } => {
                let api = api(client, "Gateway", namespace, name);
                api.delete(name, &DeleteParams::default()).await.map_err(told)?;
                Ok(())
            }
            Self::Directory(documents) => {
                documents.delete(&documents.find(&Wanted::new("Gateway", Some(namespace), name))?)
            }
        }
    }

    /// Has an object name a waypoint, or none.
    pub(super) async fn bind(&self, object: &ObjectKey, waypoint: Option<&str>) -> anyhow::Result<()> {
        match self {
            Self::Cluster { client, .. } => {
                // Without a name, where it is means nothing either.
                let labels = match waypoint {
                    Some(name) => json!({ labels::USE_WAYPOINT: name }),
                    None => json!({ labels::USE_WAYPOINT: null, labels::USE_WAYPOINT_NAMESPACE: null }),
                };
                let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
                let api = api(client, &object.kind, &object.namespace, &object.name);
                api.patch_metadata(&object.name, &PatchParams::default(), &patch).await.map_err(told)?;
                Ok(())
            }
            Self::Directory(documents) => {
                let namespace = Some(object.namespace.as_str()).filter(|namespace| !namespace.is_empty());
                let found = documents.find(&Wanted::new(&object.kind, namespace, &object.name))?;
                let changes = match waypoint {
                    Some(name) => vec![LabelChange::Set(labels::USE_WAYPOINT.to_owned(), name.to_owned())],
                    None => [labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE]
                        .map(|label| LabelChange::Remove(label.to_owned()))
                        .into(),
                };
                found.relabelled(&changes)?.map_or(Ok(()), |text| documents.replace(&found, &text))
            }
        }
    }
}

fn name_of(gateway: &Value) -> (&str, &str) {
    let text = |field: &str| gateway.pointer(field).and_then(Value::as_str).unwrap_or_default();
    (text("/metadata/namespace"), text("/metadata/name"))
}

/// Kinds that can name a waypoint, and Gateways themselves.
fn api(client: &Client, kind: &str, namespace: &str, name: &str) -> Api<DynamicObject> {
    let api_version = match kind {
        "Gateway" => GATEWAYS,
        "ServiceEntry" | "WorkloadEntry" => "networking.istio.io/v1",
        _ => "v1",
    };
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    let resource = Key::new(api_version, kind, namespace, name).resource();
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Says what could not be done to which waypoint.
pub(super) fn of_waypoint<T>(
    done: anyhow::Result<T>,
    what: &str,
    namespace: &str,
    name: &str,
) -> anyhow::Result<T> {
    done.with_context(|| format!("waypoint {namespace}/{name} cannot be {what}"))
}
