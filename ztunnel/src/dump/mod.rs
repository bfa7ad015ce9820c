//! The page `/config_dump`: everything that this tunnel knows, in the JSON that `istioctl
//! ztunnel-config` reads (protocols 10.3). Pure: what it is given, it shows, in order of name.

mod settings;

use std::collections::BTreeMap;

use ambit_model::{
    name::{Label, Namespace, ServiceAccount, Uid},
    snapshot::Snapshot,
};
use serde::Serialize;
use serde_json::Value;

pub use ambit_proxy::dump::{CertificateState, Version};
use ambit_proxy::dump::{policy, service, workload};

pub use settings::settings;

/// What is shown beside the mesh.
#[derive(Debug)]
pub struct Around {
    /// What the operator decided: see [`settings()`].
    pub config: Value,
    /// The workloads, services and policies that were given by file, as they were written; empty
    /// lists when there is no file.
    pub static_config: Value,
    /// Which build this is.
    pub version: Version,
    /// The certificates of this node's pods.
    pub certificates: Vec<CertificateState>,
    /// The pods that are served, by the key of their workload, or by the pod's uid while that is
    /// not known.
    pub pods: BTreeMap<Uid, PodState>,
}

/// One pod that is served.
#[derive(Clone, Debug, Serialize)]
pub struct PodState {
    /// Whether its listeners are open.
    pub state: Listening,
    /// What is open now.
    pub connections: OpenConnections,
    /// Who it is.
    pub info: PodInfo,
}

/// Whether a pod's listeners are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Listening {
    /// They could not be opened yet.
    Pending,
    /// They are.
    Up,
}

/// Connections that are open now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OpenConnections {
    /// To the pod.
    pub inbound: Vec<ConnectionShown>,
    /// From the pod.
    pub outbound: Vec<ConnectionShown>,
}

/// One connection that is open.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionShown {
    /// Who opened it.
    pub src: String,
    /// What it was opened to: an address, or a host name for an incoming one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_dst: Option<String>,
    /// Where it was taken.
    pub actual_dst: String,
    /// How it travels.
    pub protocol: Travels,
}

/// How a connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Travels {
    /// As it is.
    #[serde(rename = "TCP")]
    Plain,
    /// In a tunnel.
    #[serde(rename = "HBONE")]
    Tunnel,
    /// In a tunnel in a tunnel.
    #[serde(rename = "DOUBLEHBONE")]
    TunnelInTunnel,
}

/// Who a pod is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodInfo {
    /// Its name.
    pub name: Label,
    /// Its namespace.
    pub namespace: Namespace,
    /// The account that it runs as.
    pub service_account: ServiceAccount,
}

/// The page.
pub fn dump(mesh: &Snapshot, around: &Around) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Dump {
        workloads: workload::all(mesh),
        services: service::all(mesh),
        policies: policy::all(mesh),
        staged_services: service::staged(mesh),
        static_config: &around.static_config,
        version: &around.version,
        config: &around.config,
        certificates: &around.certificates,
        workload_state: around.pods.iter().map(|(uid, pod)| (uid.as_str(), pod)).collect(),
    })
}

/// The static configuration of a tunnel that has none.
pub fn no_static_config() -> Value {
    serde_json::json!({ "workloads": [], "services": [], "policies": [] })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    workloads: Vec<workload::Shown<'a>>,
    services: Vec<service::Shown<'a>>,
    policies: Vec<policy::Shown<'a>>,
    staged_services: BTreeMap<String, BTreeMap<&'a str, service::EndpointShown<'a>>>,
    static_config: &'a Value,
    version: &'a Version,
    config: &'a Value,
    certificates: &'a [CertificateState],
    workload_state: BTreeMap<&'a str, &'a PodState>,
}

#[cfg(test)]
mod tests;
