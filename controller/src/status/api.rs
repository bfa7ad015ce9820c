//! Conditions in the Kubernetes API: who carries what, and writing it.

use std::collections::BTreeMap;

use ambit_api::{
    CustomKind, authorization_policy::AuthorizationPolicy, peer_authentication::PeerAuthentication,
    service_entry::ServiceEntry, workload_entry::WorkloadEntry,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition as Carried, ListMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Client, Error,
    api::{ListParams, Patch, PatchParams, Request},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::board::{Holds, Manager, Slot, Write};
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
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::EndpointSlice
            | Kind::Gateway
            | Kind::GatewayClass => Vec::new(),
        }
    }

    /// Writes conditions, or takes them away.
    pub(super) async fn apply(&self, client: &Client, write: &Write) -> Result<(), Error> {
        let name = &write.slot.key.name;
        let namespace = name.namespace.as_str();
        let mut object = json!({
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": { "name": name.name.as_str(), "namespace": namespace },
        });
        if let (false, Some(object)) = (write.holds.conditions.is_empty(), object.as_object_mut()) {
            object.insert("status".to_owned(), json!({ "conditions": write.holds.conditions }));
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
    status: Option<ItemStatus>,
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

#[derive(Deserialize)]
struct ItemStatus {
    #[serde(default)]
    conditions: Option<Vec<Value>>,
}

impl Item {
    fn add(self, kind: Kind, found: &mut BTreeMap<Slot, Holds>) {
        let name = Name::new(self.metadata.namespace.as_str(), self.metadata.name.as_str());
        let conditions: Vec<Carried> = self
            .status
            .and_then(|status| status.conditions)
            .into_iter()
            .flatten()
            .filter_map(|one| read(&one))
            .collect();
        for manager in Manager::of(kind) {
            let applied = |one: &Managed| one.manager == manager.word() && one.operation == "Apply";
            if self.metadata.managed_fields.iter().any(applied) {
                let its = |one: &&Carried| manager.conditions().contains(&one.type_.as_str());
                let conditions: Vec<_> = conditions.iter().filter(its).cloned().collect();
                let slot = Slot { key: Key { kind, name: name.clone() }, manager: *manager };
                found.insert(slot, Holds { uid: self.metadata.uid.as_str().into(), conditions });
            }
        }
    }
}

/// Reads a condition, whoever wrote it: Istio's may leave out the time, and write numbers as text.
fn read(value: &Value) -> Option<Carried> {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    Some(Carried {
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
        assert_eq!((one.observed_generation, one.reason.as_str()), (Some(3), "WaypointAccepted"));
        assert_eq!(one.last_transition_time.0.to_string(), "2026-01-02T03:04:05Z");

        let mut others = item;
        others["metadata"]["managedFields"].as_array_mut().unwrap().remove(0);
        serde_json::from_value::<Item>(others).unwrap().add(Kind::Service, &mut found);
        assert!(found.is_empty());
    }
}
