//! What the lab says of its pods, and what a pod may ask about itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_api::labels;
use serde_json::{Value, json};

use crate::manifest::{DesiredPod, Origin};
use crate::pod::Pod;

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its processes run, or are about to run again.
    Running,
    /// Its processes have ended well and are not started again.
    Succeeded,
    /// Its processes have ended, one of them badly, and are not started again.
    Failed,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// A pod's state, as seen by the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// How far it has come.
    pub phase: Phase,
    /// Whether it can be called.
    pub ready: bool,
    /// How often its processes were started again.
    pub restarts: u32,
}

/// The overlay that says it.
pub(crate) fn overlay(pod: &Pod, desired: &DesiredPod, uid: &str, state: State) -> Value {
    let ips = |ips: &[IpAddr]| ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
    let condition =
        |kind: &str, holds: bool| json!({ "type": kind, "status": if holds { "True" } else { "False" } });
    let containers = desired.containers.iter().map(|container| {
        json!({ "name": container.name, "ready": state.ready, "restartCount": state.restarts, "image": "", "imageID": "" })
    });
    let mut overlay = json!({
        "metadata": { "uid": uid, "annotations": { labels::NETNS: pod.netns().path() } },
        "status": {
            "phase": state.phase.word(),
            "podIP": pod.ips().first(),
            "podIPs": ips(pod.ips()),
            "hostIP": pod.node().ips().first(),
            "hostIPs": ips(pod.node().ips()),
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", state.ready),
                condition("Ready", state.ready),
            ],
            "containerStatuses": containers.collect::<Vec<_>>(),
        },
    });
    // The lab has chosen the node of a pod that named none; that of a replica is in its document.
    if desired.origin == Origin::Written
        && let Some(overlay) = overlay.as_object_mut()
    {
        overlay.insert("spec".to_owned(), json!({ "nodeName": desired.node }));
    }
    overlay
}

/// What a pod is told about itself without asking.
pub(crate) fn environment(pod: &Pod, desired: &DesiredPod) -> Vec<(&'static str, String)> {
    let field = |path: &str| field(path, pod, desired, "").unwrap_or_default();
    vec![
        ("POD_NAME", field("metadata.name")),
        ("POD_NAMESPACE", field("metadata.namespace")),
        ("POD_IP", field("status.podIP")),
        ("POD_IPS", field("status.podIPs")),
        ("HOST_IP", field("status.hostIP")),
        ("NODE_NAME", field("spec.nodeName")),
        ("SERVICE_ACCOUNT", field("spec.serviceAccountName")),
    ]
}

/// A field of a pod, by the path that the downward API gives it.
pub(crate) fn field(path: &str, pod: &Pod, desired: &DesiredPod, uid: &str) -> Option<String> {
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string);
    let all = |ips: &[IpAddr]| Some(ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    match path {
        "metadata.name" => Some(pod.name().name.clone()),
        "metadata.namespace" => Some(pod.name().namespace.clone()),
        "metadata.uid" => Some(uid.to_owned()),
        "spec.nodeName" => Some(desired.node.clone()),
        "spec.serviceAccountName" => Some(desired.service_account.clone()),
        "status.podIP" => first(pod.ips()),
        "status.podIPs" => all(pod.ips()),
        "status.hostIP" => first(pod.node().ips()),
        "status.hostIPs" => all(pod.node().ips()),
        _ => keyed(path, "metadata.labels", &desired.labels),
    }
}

/// `metadata.labels['app']`.
fn keyed(path: &str, map: &str, values: &BTreeMap<String, String>) -> Option<String> {
    let key = path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
    Some(values.get(key).cloned().unwrap_or_default())
}

/// Whether a socket listens on `port`, in the tables that the kernel shows as `/proc/net/tcp` and `tcp6`.
///
/// Looking is better than connecting: once a pod is in the mesh its tunnel accepts every connection, and a probe would
/// be seen in captures, logs and metrics.
pub(crate) fn listens(tables: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let wanted = format!(":{port:04X}");
    tables.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().is_some_and(|local| local.ends_with(&wanted));
        local && columns.nth(1) == Some(LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_told_from_a_connected_one() {
        let tables = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0050 0100007F:1F91 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   0: 00000000000000000000000000000000:2382 00000000000000000000000000000000:0000 0A 00000000:00000000 0 0 0\n";
        assert!(listens(tables, 8080));
        assert!(listens(tables, 9090));
        assert!(!listens(tables, 80));
        assert!(!listens(tables, 8081));
    }

    #[test]
    fn a_label_can_be_asked_for() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        assert_eq!(keyed("metadata.labels['app']", "metadata.labels", &labels).as_deref(), Some("web"));
        assert_eq!(keyed("metadata.labels['no']", "metadata.labels", &labels).as_deref(), Some(""));
        assert_eq!(keyed("spec.secret", "metadata.labels", &labels), None);
    }
}
