//! What the agent knows of a pod and of a namespace: read once, at the door.

use std::{net::IpAddr, path::PathBuf};

use ambit_api::labels;
use k8s_openapi::api::core::v1::Pod as KubernetesPod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// On the image of a pod that kubelet read from a file: the UID that kubelet knows it by.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod, as far as its node's agent cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its UID: the one name that is never used twice.
    pub uid: String,
    /// Its UID as kubelet names it: another one where kubelet read the pod from a file and the API has but its image.
    pub kubelet_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// The node that runs it, once there is one.
    pub node: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Where its network is.
    pub network: Network,
    /// How far it is.
    pub life: Life,
    /// What its own label says of the mesh.
    pub mode: Mode,
    /// Who else captures its traffic.
    pub sidecar: Sidecar,
    /// What its annotations say about capturing.
    pub wishes: Wishes,
    /// What an agent has written on it.
    pub redirection: Redirection,
    /// The file that stands for its network namespace, where an annotation names it.
    pub netns: Option<PathBuf>,
}

/// Whose network a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// One of its own.
    Own,
    /// The node's.
    Host,
}

/// Whether a pod can still do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs or will.
    Running,
    /// It has succeeded or failed, and will never run again. Its address may be another's already.
    Over,
}

/// What the label `istio.io/dataplane-mode` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// In the mesh.
    Ambient,
    /// Out of it.
    Out,
    /// Nothing.
    #[default]
    Unsaid,
}

/// Whether a sidecar was injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sidecar {
    /// It has one.
    Injected,
    /// It has none.
    Absent,
}

/// What annotations ask for, as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `ambient.istio.io/dns-capture`.
    pub dns_capture: Option<String>,
    /// `ambient.istio.io/bypass-inbound-capture`.
    pub bypass_inbound_capture: Option<String>,
    /// `istio.io/reroute-virtual-interfaces`.
    pub virtual_interfaces: Option<String>,
}

/// What the annotation `ambient.istio.io/redirection` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirection {
    /// Captured: peers speak HBONE to it.
    Enabled,
    /// About to be.
    Pending,
    /// Nothing.
    Unsaid,
}

/// Why a pod object says too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It has no UID yet.
    #[error("metadata.uid is missing; whatever runs pods here has to write it")]
    NoUid,
    /// It has no name.
    #[error("metadata.name is missing")]
    NoName,
    /// An address is none.
    #[error("status.podIPs holds something that is not an IP address")]
    BadAddress,
}

impl Pod {
    /// From Kubernetes' object.
    pub fn read(object: &KubernetesPod) -> Result<Self, Unusable> {
        let meta = &object.metadata;
        let annotation = |key: &str| text(&meta.annotations, key).map(str::to_owned);
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let uid = filled(meta.uid.as_deref()).ok_or(Unusable::NoUid)?;
        Ok(Self {
            kubelet_uid: annotation(MIRROR).unwrap_or_else(|| uid.clone()),
            uid,
            namespace: filled(meta.namespace.as_deref()).unwrap_or_else(|| "default".to_owned()),
            name: filled(meta.name.as_deref()).ok_or(Unusable::NoName)?,
            service_account: filled(spec.and_then(|spec| spec.service_account_name.as_deref()))
                .unwrap_or_else(|| "default".to_owned()),
            node: filled(spec.and_then(|spec| spec.node_name.as_deref()))
                .or_else(|| annotation(labels::NODE)),
            ips: addresses(object)?,
            network: match spec.and_then(|spec| spec.host_network) {
                Some(true) => Network::Host,
                Some(false) | None => Network::Own,
            },
            life: match status.and_then(|status| status.phase.as_deref()) {
                Some("Succeeded" | "Failed") => Life::Over,
                Some(_) | None => Life::Running,
            },
            mode: Mode::of(meta),
            sidecar: match annotation(labels::SIDECAR_STATUS) {
                Some(_) => Sidecar::Injected,
                None => Sidecar::Absent,
            },
            wishes: Wishes {
                dns_capture: annotation(labels::DNS_CAPTURE),
                bypass_inbound_capture: annotation(labels::BYPASS_INBOUND_CAPTURE),
                virtual_interfaces: annotation(labels::REROUTE_VIRTUAL_INTERFACES),
            },
            redirection: match annotation(labels::REDIRECTION).as_deref() {
                Some(labels::REDIRECTION_ENABLED) => Redirection::Enabled,
                Some(labels::REDIRECTION_PENDING) => Redirection::Pending,
                Some(_) | None => Redirection::Unsaid,
            },
            netns: annotation(labels::NETNS).map(PathBuf::from),
        })
    }
}

impl Mode {
    /// From the labels of a pod or namespace.
    pub fn of(meta: &ObjectMeta) -> Self {
        match text(&meta.labels, labels::DATAPLANE_MODE) {
            Some(labels::DATAPLANE_MODE_AMBIENT) => Self::Ambient,
            Some(labels::DATAPLANE_MODE_NONE) => Self::Out,
            Some(_) | None => Self::Unsaid,
        }
    }
}

impl Redirection {
    /// The annotation's value; `None` where there is no annotation.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Enabled => Some(labels::REDIRECTION_ENABLED),
            Self::Pending => Some(labels::REDIRECTION_PENDING),
            Self::Unsaid => None,
        }
    }
}

fn addresses(object: &KubernetesPod) -> Result<Vec<IpAddr>, Unusable> {
    let Some(status) = &object.status else { return Ok(Vec::new()) };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips = Vec::new();
    for text in listed.chain(status.pod_ip.as_deref()).filter(|text| !text.is_empty()) {
        let ip = text.parse::<IpAddr>().map_err(|_| Unusable::BadAddress)?.to_canonical();
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

type Words = Option<std::collections::BTreeMap<String, String>>;

fn text<'a>(words: &'a Words, key: &str) -> Option<&'a str> {
    words.as_ref()?.get(key).map(String::as_str)
}

fn filled(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value) -> Result<Pod, Unusable> {
        Pod::read(&serde_json::from_value(object).unwrap())
    }

    /// A running pod that nobody has said anything about.
    pub(crate) fn pod(uid: &str) -> Pod {
        read(json!({
            "metadata": {"uid": uid, "name": uid, "namespace": "shop"},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": []},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_not_said_has_kubernetes_meaning() {
        let bare = read(json!({"metadata": {"uid": "u", "name": "p"}})).unwrap();
        assert_eq!((bare.namespace.as_str(), bare.service_account.as_str()), ("default", "default"));
        assert_eq!((bare.network, bare.life, bare.mode), (Network::Own, Life::Running, Mode::Unsaid));
        assert_eq!((bare.node, bare.netns, bare.ips), (None, None, Vec::new()));
    }

    #[test]
    fn addresses_come_once_and_in_their_own_family() {
        assert_eq!(pod("a").ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        let mapped = json!({"metadata": {"uid": "u", "name": "p"}, "status": {"podIP": "::ffff:10.0.0.1"}});
        assert_eq!(read(mapped).unwrap().ips, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_pod_that_cannot_be_told_from_others_is_unusable() {
        assert_eq!(read(json!({"metadata": {"name": "p"}})), Err(Unusable::NoUid));
        assert_eq!(read(json!({"metadata": {"uid": "u"}})), Err(Unusable::NoName));
        let address = json!({"metadata": {"uid": "u", "name": "p"}, "status": {"podIP": "here"}});
        assert_eq!(read(address), Err(Unusable::BadAddress));
    }

    #[test]
    fn a_finished_pod_is_over() {
        for (phase, life) in [("Succeeded", Life::Over), ("Failed", Life::Over), ("Pending", Life::Running)] {
            let object = json!({"metadata": {"uid": "u", "name": "p"}, "status": {"phase": phase}});
            assert_eq!(read(object).unwrap().life, life, "{phase}");
        }
    }
}
