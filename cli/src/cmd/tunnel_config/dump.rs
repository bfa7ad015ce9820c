//! A tunnel's `/config_dump`, as far as it is shown; the rest is kept for JSON and YAML.
//!
//! Lists may be maps: older tunnels wrote them so.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::tables::Filter;

/// What a dump holds.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    pub(super) workloads: Vec<Item<Workload>>,
    pub(super) services: Vec<Item<Service>>,
    pub(super) policies: Vec<Item<Policy>>,
    pub(super) certificates: Vec<Item<Certificates>>,
    pub(super) pods: Vec<Item<Pod>>,
    whole: Map<String, Value>,
}

/// One object: as it is shown, and as it came.
#[derive(Debug, Clone)]
pub(super) struct Item<T> {
    pub(super) shown: T,
    raw: Value,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Workload {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) workload_ips: Vec<String>,
    pub(super) hostname: String,
    pub(super) node: String,
    pub(super) protocol: String,
    pub(super) status: String,
    pub(super) waypoint: Option<Waypoint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Waypoint {
    pub(super) destination: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: String,
    pub(super) vips: Vec<String>,
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    pub(super) waypoint: Option<Waypoint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Endpoint {
    pub(super) workload_uid: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) action: String,
    pub(super) scope: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Certificates {
    pub(super) identity: String,
    pub(super) state: String,
    pub(super) cert_chain: Vec<Certificate>,
    pub(super) root_certs: Vec<Certificate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Certificate {
    pub(super) serial_number: String,
    pub(super) valid_from: String,
    pub(super) expiration_time: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Pod {
    pub(super) connections: Connections,
    pub(super) info: PodInfo,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Connections {
    pub(super) inbound: Vec<Connection>,
    pub(super) outbound: Vec<Connection>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Connection {
    pub(super) src: String,
    pub(super) original_dst: Option<String>,
    pub(super) actual_dst: String,
    pub(super) protocol: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodInfo {
    pub(super) name: String,
    pub(super) namespace: String,
}

impl Dump {
    /// Reads a dump.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let whole: Map<String, Value> = serde_json::from_str(text)?;
        Ok(Self {
            workloads: items(&whole, "workloads")?,
            services: items(&whole, "services")?,
            policies: items(&whole, "policies")?,
            certificates: items(&whole, "certificates")?,
            pods: items(&whole, "workloadState")?,
            whole,
        })
    }

    /// Adds what another tunnel has of its own: certificates and pods.
    pub(super) fn add(&mut self, other: Self) {
        self.certificates.extend(other.certificates);
        self.pods.extend(other.pods);
        for (key, value) in other.whole {
            match (self.whole.get_mut(&key), value) {
                (Some(Value::Object(ours)), Value::Object(theirs)) if key == "workloadState" => {
                    ours.extend(theirs);
                }
                (Some(Value::Array(ours)), Value::Array(theirs)) if key == "certificates" => {
                    ours.extend(theirs);
                }
                (_, _) => {}
            }
        }
    }

    pub(super) fn raw_all(&self) -> Value {
        Value::Object(self.whole.clone())
    }

    pub(super) fn raw_workloads(&self, filter: &Filter<'_>) -> Value {
        raw(&self.workloads, |workload| filter.has_workload(workload))
    }

    pub(super) fn raw_services(&self, filter: &Filter<'_>) -> Value {
        raw(&self.services, |service| filter.has_namespace(&service.namespace))
    }

    pub(super) fn raw_policies(&self, filter: &Filter<'_>) -> Value {
        raw(&self.policies, |policy| filter.has_namespace(&policy.namespace))
    }

    pub(super) fn raw_certificates(&self, filter: &Filter<'_>) -> Value {
        raw(&self.certificates, |held| filter.has_identity(&held.identity))
    }

    pub(super) fn raw_connections(&self, filter: &Filter<'_>) -> Value {
        raw(&self.pods, |pod| filter.has_namespace(&pod.info.namespace))
    }
}

fn raw<T>(items: &[Item<T>], wanted: impl Fn(&T) -> bool) -> Value {
    items.iter().filter(|item| wanted(&item.shown)).map(|item| item.raw.clone()).collect()
}

fn items<T: DeserializeOwned>(whole: &Map<String, Value>, key: &str) -> anyhow::Result<Vec<Item<T>>> {
    let item = |raw: &Value| match T::deserialize(raw) {
        Ok(shown) => Ok(Item { shown, raw: raw.clone() }),
        Err(error) => anyhow::bail!("{key}: {error}"),
    };
    match whole.get(key) {
        Some(Value::Array(list)) => list.iter().map(item).collect(),
        Some(Value::Object(map)) => map.values().map(item).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            anyhow::bail!("{key} is neither a list nor a map")
        }
        None => Ok(Vec::new()),
    }
}
