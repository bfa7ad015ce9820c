//! Writes waypoints to an API server, by server-side apply under one name.

use std::{collections::BTreeMap, future::Future};

use ambit_api::{
    CustomKind,
    gateway::{self, WAYPOINT_CONTROLLER},
    labels::{GATEWAY_NAME, MANAGED_BY, MANAGED_BY_AMBIT},
};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{
    Client, Error,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, Request},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Failure, REQUEST};
use crate::{
    cluster::object::{Gateway, GatewayClass, Name},
    gateways::{
        manifest::{Made, Manifest},
        status,
    },
};

/// As whom everything is written.
const MANAGER: &str = "ambit-gateways";
/// As whom a number of replicas is held until an autoscaler takes it over.
const HANDOVER: &str = "ambit-gateways-handover";

/// Writes to an API server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Hand(Client);

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hand").finish_non_exhaustive()
    }
}

/// What is looked at of an object that may be ours.
#[derive(Deserialize)]
struct There {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

impl There {
    fn is_ours(&self, gateway: &Name) -> bool {
        let label = |name: &str| self.metadata.labels.as_ref()?.get(name).map(String::as_str);
        label(MANAGED_BY) == Some(MANAGED_BY_AMBIT) && label(GATEWAY_NAME) == Some(gateway.name.as_str())
    }

    /// The number of replicas, if it is we who hold it.
    fn held_replicas(&self) -> Option<i64> {
        let ours = |manager: &Option<String>| manager.as_deref() == Some(MANAGER);
        let mut managed = self.metadata.managed_fields.iter().flatten().filter(|one| ours(&one.manager));
        let held = managed.any(|one| {
            one.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
        });
        self.spec.get("replicas").and_then(Value::as_i64).filter(|_| held)
    }
}

impl Hand {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    pub(super) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, Failure> {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let found: Option<ConfigMap> = self.get(&path, name).await?;
        Ok(found.map(|map| map.data.unwrap_or_default()))
    }

    pub(super) async fn status(&self, gateway: &Gateway) -> Result<Value, Failure> {
        let name = &gateway.meta.name;
        let found: Option<Value> = self.get(&gateways(name), name.name.as_str()).await?;
        Ok(found.and_then(|found| found.get("status").cloned()).unwrap_or_default())
    }

    pub(super) async fn make(
        &self,
        gateway: &Gateway,
        wanted: &[Manifest],
    ) -> Result<Vec<&'static str>, Failure> {
        let name = &gateway.meta.name;
        let mut foreign = Vec::new();
        for made in Made::ALL {
            let there: Option<There> = self.get(&path(made, name), name.name.as_str()).await?;
            let is_ours = there.as_ref().is_none_or(|there| there.is_ours(name));
            match wanted.iter().find(|one| one.made == made) {
                Some(_) if !is_ours => foreign.push(made),
                Some(one) => {
                    let scaled_by_others = one.value.pointer("/spec/replicas").is_none();
                    let held = there.as_ref().and_then(There::held_replicas);
                    if let (Made::Deployment, true, Some(held)) = (made, scaled_by_others, held) {
                        self.hand_over(name, held).await?;
                    }
                    self.apply(&path(made, name), name.name.as_str(), MANAGER, &one.value).await?;
                }
                None => self.delete(made, name, there.as_ref()).await?,
            }
        }
        let foreign = foreign.into_iter().filter(|made| *made != Made::ServiceAccount);
        Ok(foreign.map(Made::kind).collect())
    }

    /// Somebody else has to hold a number before we let go of it: what nobody holds becomes 1.
    async fn hand_over(&self, gateway: &Name, replicas: i64) -> Result<(), Failure> {
        let held = json!({
            "apiVersion": Made::Deployment.api_version(), "kind": Made::Deployment.kind(),
            "metadata": { "name": gateway.name.as_str() }, "spec": { "replicas": replicas },
        });
        self.apply(&path(Made::Deployment, gateway), gateway.name.as_str(), HANDOVER, &held).await
    }

    pub(super) async fn unmake(&self, gateway: &Name) -> Result<(), Failure> {
        for made in Made::ALL.into_iter().rev() {
            let there: Option<There> = self.get(&path(made, gateway), gateway.name.as_str()).await?;
            self.delete(made, gateway, there.as_ref()).await?;
        }
        Ok(())
    }

    pub(super) async fn tell(&self, gateway: &Gateway, status: &Value) -> Result<(), Failure> {
        let name = &gateway.meta.name;
        let object = json!({
            "apiVersion": version::<gateway::Gateway>(), "kind": gateway::Gateway::KIND,
            // Another one that has its name since then is told nothing.
            "metadata": { "name": name.name.as_str(), "namespace": name.namespace.as_str(), "uid": gateway.meta.uid.as_str() },
            "status": status,
        });
        self.apply_status(&gateways(name), name.name.as_str(), &object).await
    }

    pub(super) async fn make_class(&self, name: &str) -> Result<(), Failure> {
        let class = json!({
            "apiVersion": version::<gateway::GatewayClass>(), "kind": gateway::GatewayClass::KIND,
            "metadata": { "name": name, "labels": { MANAGED_BY: MANAGED_BY_AMBIT } },
            "spec": {
                "controllerName": WAYPOINT_CONTROLLER,
                "description": "Waypoints of the Ambit mesh",
            },
        });
        let request = Request::new(classes());
        let body = serde_json::to_vec(&class).map_err(Error::SerdeError)?;
        let request = request.create(&PostParams::default(), body).map_err(Error::BuildRequest)?;
        match self.send::<IgnoredAny>(request).await {
            // Somebody was faster, and then it is his.
            Err(Failure::Kubernetes(error)) if matches!(&*error, Error::Api(status) if status.code == 409) => {
                Ok(())
            }
            made => made.map(drop),
        }
    }

    pub(super) async fn accept_class(&self, class: &GatewayClass) -> Result<(), Failure> {
        let name = class.meta.name.name.as_str();
        let object = json!({
            "apiVersion": version::<gateway::GatewayClass>(), "kind": gateway::GatewayClass::KIND,
            "metadata": { "name": name },
            "status": status::of_class(class.meta.generation, Timestamp::now()),
        });
        self.apply_status(&classes(), name, &object).await
    }

    async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        let request = Request::new(path).get(name, &Default::default()).map_err(Error::BuildRequest)?;
        match self.send(request).await {
            Ok(found) => Ok(Some(found)),
            Err(Failure::Kubernetes(error)) if is_gone(&error) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn apply(&self, path: &str, name: &str, manager: &str, object: &Value) -> Result<(), Failure> {
        let params = PatchParams::apply(manager).force();
        let request = Request::new(path).patch(name, &params, &Patch::Apply(object));
        self.send::<IgnoredAny>(request.map_err(Error::BuildRequest)?).await.map(drop)
    }

    async fn apply_status(&self, path: &str, name: &str, object: &Value) -> Result<(), Failure> {
        let params = PatchParams::apply(MANAGER).force();
        let request = Request::new(path).patch_subresource("status", name, &params, &Patch::Apply(object));
        self.send::<IgnoredAny>(request.map_err(Error::BuildRequest)?).await.map(drop)
    }

    /// Deletes an object if it is there and ours.
    async fn delete(&self, made: Made, gateway: &Name, there: Option<&There>) -> Result<(), Failure> {
        let Some(there) = there.filter(|there| there.is_ours(gateway)) else { return Ok(()) };
        let this = Preconditions { uid: there.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(this), ..DeleteParams::background() };
        let request = Request::new(path(made, gateway)).delete(gateway.name.as_str(), &params);
        match self.send::<IgnoredAny>(request.map_err(Error::BuildRequest)?).await {
            Err(Failure::Kubernetes(error)) if is_gone(&error) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    fn send<T: serde::de::DeserializeOwned>(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> impl Future<Output = Result<T, Failure>> + Send + use<'_, T> {
        let asked = timeout(REQUEST, self.0.request::<T>(request));
        async move { asked.await.map_err(|_| Failure::Late)?.map_err(Failure::from) }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Where objects of this kind are in the gateway's namespace.
fn path(made: Made, gateway: &Name) -> String {
    let root = if made.api_version().contains('/') { "/apis" } else { "/api" };
    format!("{root}/{}/namespaces/{}/{}", made.api_version(), gateway.namespace, made.plural())
}

fn gateways(gateway: &Name) -> String {
    let version = version::<gateway::Gateway>();
    format!("/apis/{version}/namespaces/{}/{}", gateway.namespace, gateway::Gateway::PLURAL)
}

fn classes() -> String {
    format!("/apis/{}/{}", version::<gateway::GatewayClass>(), gateway::GatewayClass::PLURAL)
}

/// Group and version: the first version that has been served ever since the kinds are stable.
fn version<K: CustomKind>() -> String {
    format!("{}/{}", K::GROUP, K::VERSIONS.first().copied().unwrap_or("v1"))
}
