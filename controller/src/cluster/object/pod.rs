//! Pods.

use std::net::IpAddr;

use ambit_api::k8s_openapi::api::core::v1 as k8s;
use ambit_api::labels;
use ambit_model::name::{Label, Namespace, Node, ServiceAccount};

use super::{Meta, Rejection};

/// What the mesh needs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// The account it runs as.
    pub service_account: ServiceAccount,
    /// Its node; empty until it is scheduled.
    pub node: Node,
    /// Whether it has the node's network.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How far it is in its life.
    pub phase: Phase,
    /// Whether it says that it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its named ports, init containers' included.
    pub ports: Vec<(Label, u16)>,
    /// What it is part of.
    pub owner: Owner,
}

/// How far a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers run yet.
    Pending,
    /// It runs.
    Running,
    /// It ended well.
    Succeeded,
    /// It ended badly.
    Failed,
    /// Its node does not say.
    Unknown,
}

impl Phase {
    /// Whether it has ended for good.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::Pending | Self::Running | Self::Unknown => false,
        }
    }
}

/// The thing that a pod is part of, such as a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: Label,
}

impl Pod {
    pub(super) fn parse(namespace: Namespace, object: k8s::Pod) -> Result<Self, Rejection> {
        let owner = Owner { name: owner_of(&object).into() };
        let deleting = object.metadata.deletion_timestamp.is_some();
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec.unwrap_or_default();
        let status = object.status.unwrap_or_default();

        let node = spec.node_name.or_else(|| meta.annotations.get(labels::NODE).map(str::to_owned));
        let mut ports = Vec::new();
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            for port in container.ports.iter().flatten() {
                if let Some(name) = &port.name {
                    let field = format!("spec.containers[{}].ports", container.name);
                    ports.push((Label::from(name.as_str()), super::port(field, port.container_port)?));
                }
            }
        }
        let ready =
            status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
        let mut ips = Vec::new();
        let several = status.pod_ips.into_iter().flatten().map(|one| one.ip);
        for text in several.chain(status.pod_ip) {
            if text.is_empty() {
                continue;
            }
            let ip: IpAddr = text.parse().map_err(|_| {
                Rejection::new(
                    "status.podIPs",
                    format!("{text:?} is not an IP address"),
                    "have the node agent write it again",
                )
            })?;
            if !ips.contains(&ip.to_canonical()) {
                ips.push(ip.to_canonical());
            }
        }
        Ok(Self {
            service_account: spec
                .service_account_name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned())
                .into(),
            node: node.unwrap_or_default().into(),
            host_network: spec.host_network.unwrap_or(false),
            ips,
            phase: match status.phase.as_deref() {
                None | Some("" | "Pending") => Phase::Pending,
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some(_) => Phase::Unknown,
            },
            ready,
            deleting,
            ports,
            owner,
            meta,
        })
    }
}

/// The name of the Deployment, CronJob or whatever owns the pod: a Deployment's ReplicaSet is recognised by the
/// hash at its end, a CronJob's Job by the minutes at its end.
fn owner_of(pod: &k8s::Pod) -> String {
    let meta = &pod.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let Some(owner) = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
    else {
        return name;
    };
    let hash = meta.labels.as_ref().and_then(|labels| labels.get(labels::POD_TEMPLATE_HASH));
    match owner.kind.as_str() {
        "ReplicaSet" => hash
            .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'))
            .unwrap_or(&owner.name)
            .to_owned(),
        "Job" => match owner.name.rsplit_once('-') {
            // Minutes since 1970 have had eight digits since 1989.
            Some((job, minutes)) if minutes.len() >= 8 && minutes.bytes().all(|b| b.is_ascii_digit()) => {
                job.to_owned()
            }
            Some(_) | None => owner.name.clone(),
        },
        _ => owner.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Result<Pod, Rejection> {
        Pod::parse("shop".into(), serde_json::from_value(value).unwrap())
    }

    #[test]
    fn the_owner_is_the_thing_that_a_person_made() {
        for (owner, hash, want) in [
            (json!([]), "", "web-1"),
            (json!([{"kind": "ReplicaSet", "name": "web-5d9", "controller": true}]), "5d9", "web"),
            (json!([{"kind": "ReplicaSet", "name": "web", "controller": true}]), "5d9", "web"),
            (json!([{"kind": "Job", "name": "clean-28412345", "controller": true}]), "", "clean"),
            (json!([{"kind": "Job", "name": "clean-2", "controller": true}]), "", "clean-2"),
            (json!([{"kind": "StatefulSet", "name": "db", "controller": true}]), "", "db"),
            (json!([{"kind": "StatefulSet", "name": "db", "controller": false}]), "", "web-1"),
        ] {
            let mut owner = owner;
            for one in owner.as_array_mut().unwrap() {
                one["apiVersion"] = "v1".into();
                one["uid"] = "u".into();
            }
            let got = pod(json!({"metadata": {
                "name": "web-1", "labels": {"pod-template-hash": hash}, "ownerReferences": owner
            }}));
            assert_eq!(got.unwrap().owner.name, want, "{owner}");
        }
    }

    #[test]
    fn addresses_are_those_of_both_fields_once() {
        let got = pod(json!({
            "metadata": {"name": "a"},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
        }));
        assert_eq!(got.unwrap().ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        let bad = pod(json!({"metadata": {"name": "a"}, "status": {"podIP": "10.0.0"}})).unwrap_err();
        assert_eq!(bad.field, "status.podIPs");
    }
}
