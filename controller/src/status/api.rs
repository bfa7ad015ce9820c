//! Conditions in the Kubernetes API: who carries what, and writing it.

use std::collections::BTreeMap;

use ambit_api::{
    CustomKind,
    authorization_policy::AuthorizationPolicy,
    destination_rule::DestinationRule,
    grpc_route::GRPCRoute,
    http_route::HTTPRoute,
    peer_authentication::PeerAuthentication,
    rate_limit_policy::RateLimitPolicy,
    request_authentication::RequestAuthentication,
    service_entry::ServiceEntry,
    stream_route::{TCPRoute, TLSRoute},
    virtual_service::VirtualService,
    workload_entry::WorkloadEntry,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition as Told, ListMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Client, Error,
    api::{GetParams, ListParams, Patch, PatchParams, Request},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    board::{Carried, Holds, Manager, Slot, Write},
    parents::{ANCESTORS, List, PARENTS},
};
use crate::cluster::object::{Key, Kind, Name};

/// Objects in one answer: some megabytes at most, however many there are.
const PAGE: u32 = 500;
/// How often a list is begun anew because it took longer than the API server remembers.
const RESTARTS: usize = 3;

/// A kind, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    kind: &'static str,
    api_version: String,
    path: String,
    plural: &'static str,
}

impl Served {
    /// The versions of a kind, newest first; none of a kind that is told nothing.
    pub(super) fn versions(kind: Kind) -> Vec<Self> {
        fn custom<K: CustomKind>() -> Vec<Served> {
            let one = |version| Served {
                kind: K::KIND,
                api_version: format!("{}/{version}", K::GROUP),
                path: format!("/apis/{}/{version}", K::GROUP),
                plural: K::PLURAL,
            };
            K::VERSIONS.iter().map(one).collect()
        }
        match kind {
            Kind::Service => vec![Self {
                kind: "Service",
                api_version: "v1".to_owned(),
                path: "/api/v1".to_owned(),
                plural: "services",
            }],
            Kind::ServiceEntry => custom::<ServiceEntry>(),
            Kind::WorkloadEntry => custom::<WorkloadEntry>(),
            Kind::AuthorizationPolicy => custom::<AuthorizationPolicy>(),
            Kind::PeerAuthentication => custom::<PeerAuthentication>(),
            Kind::RequestAuthentication => custom::<RequestAuthentication>(),
            Kind::DestinationRule => custom::<DestinationRule>(),
            Kind::RateLimitPolicy => custom::<RateLimitPolicy>(),
            Kind::VirtualService => custom::<VirtualService>(),
            Kind::GrpcRoute => custom::<GRPCRoute>(),
            Kind::HttpRoute => custom::<HTTPRoute>(),
            Kind::TlsRoute => custom::<TLSRoute>(),
            Kind::TcpRoute => custom::<TCPRoute>(),
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::EndpointSlice
            | Kind::Gateway
            | Kind::GatewayClass
            | Kind::ReferenceGrant
            | Kind::MeshConfig => Vec::new(),
        }
    }

    /// Writes conditions, or takes them away.
    pub(super) async fn write(&self, client: &Client, write: &Write) -> Result<(), Error> {
        match write.slot.manager {
            Manager::Route => self.merge(client, write, &PARENTS).await,
            Manager::Limit => self.merge(client, write, &ANCESTORS).await,
            Manager::Service
            | Manager::WorkloadEntry
            | Manager::TunnelPolicy
            | Manager::WaypointPolicy
            | Manager::PeerAuthentication
            | Manager::VirtualService => self.apply(client, write).await,
        }
    }

    /// Writes the status of a route or limit, if nobody writes to it meanwhile: then it is tried again.
    async fn merge(&self, client: &Client, write: &Write, list: &List) -> Result<(), Error> {
        let name = &write.slot.key.name;
        let request = Request::new(format!("{}/namespaces/{}/{}", self.path, name.namespace, self.plural));
        let get = request.get(name.name.as_str(), &GetParams::default()).map_err(Error::BuildRequest)?;
        let there: There = client.request(get).await?;
        let change = json!({
            "metadata": { "resourceVersion": there.metadata.resource_version },
            "status": { list.field: list.merged(&there.status, &write.holds.conditions) },
        });
        let manager = Some(write.slot.manager.word().to_owned());
        let params = PatchParams { field_manager: manager, ..PatchParams::default() };
        let patch = request
            .patch_subresource("status", name.name.as_str(), &params, &Patch::Merge(change))
            .map_err(Error::BuildRequest)?;
        client.request::<IgnoredAny>(patch).await.map(drop)
    }

    async fn apply(&self, client: &Client, write: &Write) -> Result<(), Error> {
        let name = &write.slot.key.name;
        let namespace = name.namespace.as_str();
        let mut object = json!({
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": { "name": name.name.as_str(), "namespace": namespace },
        });
        if let (false, Some(object)) = (write.holds.conditions.is_empty(), object.as_object_mut()) {
            let conditions: Vec<_> = write.holds.conditions.iter().map(|one| &one.told).collect();
            object.insert("status".to_owned(), json!({ "conditions": conditions }));
        }
        let params = PatchParams::apply(write.slot.manager.word()).force();
        let request = Request::new(format!("{}/namespaces/{namespace}/{}", self.path, self.plural));
        let request = request
            .patch_subresource("status", name.name.as_str(), &params, &Patch::Apply(object))
            .map_err(Error::BuildRequest)?;
        client.request::<IgnoredAny>(request).await.map(drop)
    }

    /// Adds what objects of this kind carry of ours. The API server may not have this version: that is `false`.
    async fn list(
        &self,
        client: &Client,
        kind: Kind,
        found: &mut BTreeMap<Slot, Holds>,
    ) -> Result<bool, Error> {
        let mut restarts = 0;
        let mut from: Option<String> = None;
        loop {
            let mut params = ListParams::default().limit(PAGE);
            if let Some(from) = &from {
                params = params.continue_token(from);
            }
            let request = Request::new(format!("{}/{}", self.path, self.plural));
            let request = request.list(&params).map_err(Error::BuildRequest)?;
            let page: Page = match client.request(request).await {
                Ok(page) => page,
                Err(Error::Api(status)) if status.code == 404 => return Ok(false),
                Err(Error::Api(status)) if status.code == 410 && restarts < RESTARTS => {
                    restarts += 1;
                    from = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for item in page.items {
                item.add(kind, found);
            }
            from = page.metadata.continue_.filter(|token| !token.is_empty());
            if from.is_none() {
                return Ok(true);
            }
        }
    }
}

/// Looks who carries conditions of ours, and in which version each kind is served. Kinds that are not served are
/// missing.
pub(super) async fn look(client: &Client) -> Result<(BTreeMap<Kind, Served>, BTreeMap<Slot, Holds>), Error> {
    let kinds = [
        Kind::Service,
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
        Kind::AuthorizationPolicy,
        Kind::PeerAuthentication,
        Kind::RequestAuthentication,
        Kind::DestinationRule,
        Kind::RateLimitPolicy,
        Kind::VirtualService,
        Kind::GrpcRoute,
        Kind::HttpRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
    ];
    let (mut served, mut found) = (BTreeMap::new(), BTreeMap::new());
    for kind in kinds {
        for version in Served::versions(kind) {
            if version.list(client, kind, &mut found).await? {
                served.insert(kind, version);
                break;
            }
        }
    }
    Ok((served, found))
}

/// A route or limit, as far as its status is concerned.
#[derive(Deserialize)]
struct There {
    metadata: ThereMeta,
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThereMeta {
    resource_version: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMeta,
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemMeta {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    managed_fields: Vec<Managed>,
}

#[derive(Deserialize)]
struct Managed {
    #[serde(default)]
    manager: String,
    #[serde(default)]
    operation: String,
}

impl Item {
    fn add(self, kind: Kind, found: &mut BTreeMap<Slot, Holds>) {
        let name = Name::new(self.metadata.namespace.as_str(), self.metadata.name.as_str());
        for manager in Manager::of(kind) {
            let conditions = match manager {
                Manager::Route => Some(PARENTS.ours(&self.status)).filter(|ours| !ours.is_empty()),
                Manager::Limit => Some(ANCESTORS.ours(&self.status)).filter(|ours| !ours.is_empty()),
                Manager::Service
                | Manager::WorkloadEntry
                | Manager::TunnelPolicy
                | Manager::WaypointPolicy
                | Manager::VirtualService
                | Manager::PeerAuthentication => self.applied(*manager),
            };
            if let Some(conditions) = conditions {
                let slot = Slot { key: Key { kind, name: name.clone() }, manager: *manager };
                found.insert(slot, Holds { uid: self.metadata.uid.as_str().into(), conditions });
            }
        }
    }

    /// What a manager applied; `None` if it never did.
    fn applied(&self, manager: Manager) -> Option<Vec<Carried>> {
        let applied = |one: &Managed| one.manager == manager.word() && one.operation == "Apply";
        if !self.metadata.managed_fields.iter().any(applied) {
            return None;
        }
        let all = self.status.get("conditions").and_then(Value::as_array).into_iter().flatten();
        let its = |one: &Told| manager.conditions().contains(&one.type_.as_str());
        Some(all.filter_map(read).filter(its).map(|told| Carried { parent: None, told }).collect())
    }
}

/// Reads a condition, whoever wrote it: Istio's may leave out the time, and write numbers as text.
pub(super) fn read(value: &Value) -> Option<Told> {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    Some(Told {
        type_: value.get("type")?.as_str()?.to_owned(),
        status: text("status"),
        reason: text("reason"),
        message: text("message"),
        observed_generation: value.get("observedGeneration").and_then(number),
        last_transition_time: Time(text("lastTransitionTime").parse().unwrap_or(Timestamp::UNIX_EPOCH)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_our_managers_applied_is_ours() {
        let item = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1",
                "managedFields": [
                    { "manager": "istio-ambient-service", "operation": "Apply", "subresource": "status" },
                    { "manager": "kubectl", "operation": "Update" },
                ],
            },
            "status": { "loadBalancer": {}, "conditions": [
                { "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted",
                  "message": "m", "observedGeneration": "3", "lastTransitionTime": "2026-01-02T03:04:05Z" },
                { "type": "Other", "status": "True" },
                7,
            ] },
        });
        let mut found = BTreeMap::new();
        serde_json::from_value::<Item>(item.clone()).unwrap().add(Kind::Service, &mut found);
        let (slot, holds) = found.pop_first().unwrap();
        assert_eq!((slot.key.to_string().as_str(), slot.manager), ("Service shop/web", Manager::Service));
        let [one] = holds.conditions.as_slice() else { panic!("one condition, not {holds:?}") };
        assert_eq!((one.told.observed_generation, one.told.reason.as_str()), (Some(3), "WaypointAccepted"));
        assert_eq!(one.told.last_transition_time.0.to_string(), "2026-01-02T03:04:05Z");

        let mut others = item;
        others["metadata"]["managedFields"].as_array_mut().unwrap().remove(0);
        serde_json::from_value::<Item>(others).unwrap().add(Kind::Service, &mut found);
        assert!(found.is_empty());
    }
}
