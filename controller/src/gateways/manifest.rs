//! What is made for a Gateway that is a waypoint: the objects, as they ought to be. Pure.
//!
//! In Kubernetes they are applied, over a directory they are documents beside the user's; they are the same.

use std::collections::BTreeSet;

use ambit_api::{
    gateway::{HBONE, HBONE_PORT},
    labels::{
        APP_KUBERNETES_NAME, CANONICAL_NAME, CANONICAL_REVISION, DATAPLANE_MODE, DATAPLANE_MODE_AMBIENT,
        DATAPLANE_MODE_NONE, GATEWAY_CLASS_NAME, GATEWAY_MANAGED, GATEWAY_NAME, MANAGED_BY, MANAGED_BY_AMBIT,
        MANAGED_MESH, REVISION, SIDECAR_INJECT, TRAFFIC_DISTRIBUTION,
    },
};
use serde_json::{Map, Value, json};

use super::overlay::{Overlays, merge};
use crate::{
    cluster::object::{Gateway, Listener},
    translate::waypoint::{Entry, PROTOCOL_PROXY, Wishes},
};

/// The waypoint's container is called as Istio's, so that what users lay over theirs fits ours.
const CONTAINER: &str = "istio-proxy";
/// Where the pod's token is, and for whom.
const TOKENS: &str = "/var/run/secrets/tokens";
/// Where the roots are that the control plane is trusted by.
const ROOTS: &str = "/var/run/secrets/istio";
/// Where it says whether it is ready.
const STATUS_PORT: u16 = 15021;
/// Where its metrics are.
const METRICS_PORT: u16 = 15020;
/// Requests that are under way when a pod is to end have so long, in seconds, and
const DRAIN: u32 = 30;
/// the process a while more to say goodbye.
const GRACE: u32 = DRAIN + 15;

/// A kind of object that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Made {
    /// The account that its certificates name.
    ServiceAccount,
    /// Its address.
    Service,
    /// Its pods.
    Deployment,
    /// How many pods a drain of nodes may take away.
    PodDisruptionBudget,
    /// How many pods there are, by what they use.
    HorizontalPodAutoscaler,
}

impl Made {
    /// All of them, in the order in which they are made: a pod needs its account.
    pub const ALL: [Self; 5] = [
        Self::ServiceAccount,
        Self::Service,
        Self::Deployment,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
    ];

    /// The kind as it is written.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::HorizontalPodAutoscaler => "HorizontalPodAutoscaler",
        }
    }

    /// Its group and version.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::ServiceAccount | Self::Service => "v1",
            Self::Deployment => "apps/v1",
            Self::PodDisruptionBudget => "policy/v1",
            Self::HorizontalPodAutoscaler => "autoscaling/v2",
        }
    }

    /// The kind in request paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceaccounts",
            Self::Service => "services",
            Self::Deployment => "deployments",
            Self::PodDisruptionBudget => "poddisruptionbudgets",
            Self::HorizontalPodAutoscaler => "horizontalpodautoscalers",
        }
    }

    /// The key of a ConfigMap of parameters under which a piece of such an object is. Istio's words.
    pub fn parameter(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceAccount",
            Self::Service => "service",
            Self::Deployment => "deployment",
            Self::PodDisruptionBudget => "podDisruptionBudget",
            Self::HorizontalPodAutoscaler => "horizontalPodAutoscaler",
        }
    }
}

/// What all waypoints of a mesh have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// The image.
    pub image: String,
    /// Where they find the control plane, `https://istiod.istio-system.svc:15012`.
    pub control_plane: String,
    /// The id of the cluster.
    pub cluster: String,
    /// The domain of cluster services.
    pub domain: String,
    /// Who vouches for identities.
    pub trust_domain: String,
    /// The revision of the control plane.
    pub revision: String,
    /// What to log.
    pub log: String,
    /// How to log.
    pub log_format: String,
    /// What the operator lays over every Deployment: resources, say.
    pub deployment: Value,
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What it is.
    pub made: Made,
    /// All of it.
    pub value: Value,
}

/// The objects of a gateway with these wishes, on the network of that name.
pub fn desired(
    gateway: &Gateway,
    wishes: Wishes,
    overlays: &Overlays,
    network: &str,
    form: &Form,
) -> Vec<Manifest> {
    let one = |made| {
        let mut value = json!({ "metadata": metadata(gateway, made, form) });
        let spec = match made {
            Made::ServiceAccount => None,
            Made::Service => Some(service(gateway)),
            Made::Deployment => Some(deployment(gateway, wishes, network, form)),
            Made::PodDisruptionBudget => Some(disruption()),
            Made::HorizontalPodAutoscaler => Some(autoscaler(gateway)),
        };
        if let (Some(spec), Some(object)) = (spec, value.as_object_mut()) {
            object.insert("spec".to_owned(), spec);
        }
        if made == Made::Deployment {
            merge(&mut value, &form.deployment);
        }
        if let Some(overlay) = overlays.over(made) {
            merge(&mut value, overlay);
        }
        insist(gateway, wishes.entry, made, &mut value);
        if made == Made::Deployment && is_wanted(Made::HorizontalPodAutoscaler, overlays) {
            // The autoscaler's affair: two writers would undo each other's number.
            remove(&mut value, "/spec", "replicas");
        }
        Manifest { made, value }
    };
    Made::ALL.into_iter().filter(|made| is_wanted(*made, overlays)).map(one).collect()
}

/// Whether there is to be such an object.
pub fn is_wanted(made: Made, overlays: &Overlays) -> bool {
    made != Made::HorizontalPodAutoscaler || overlays.over(made).is_some()
}

/// The address that the gateway's status tells.
pub fn hostname(gateway: &Gateway, domain: &str) -> String {
    format!("{}.{}.svc.{domain}", gateway.meta.name.name, gateway.meta.name.namespace)
}

/// Labels by which its instances are found, and that no overlay changes.
fn selector(gateway: &Gateway) -> Value {
    json!({ GATEWAY_NAME: gateway.meta.name.name.as_str() })
}

/// What everything that is made has for labels.
fn own_labels(gateway: &Gateway) -> Map<String, Value> {
    let own = [
        (GATEWAY_NAME, gateway.meta.name.name.as_str()),
        (GATEWAY_CLASS_NAME, gateway.class.as_str()),
        (GATEWAY_MANAGED, MANAGED_MESH),
        (MANAGED_BY, MANAGED_BY_AMBIT),
    ];
    own.into_iter().map(|(label, value)| (label.to_owned(), value.into())).collect()
}

fn labels(gateway: &Gateway) -> Map<String, Value> {
    let written = &gateway.infrastructure.labels;
    let written = written.iter().map(|(label, value)| (label.clone(), Value::from(value.as_str())));
    written.chain(own_labels(gateway)).collect()
}

fn annotations(gateway: &Gateway) -> Map<String, Value> {
    let written = &gateway.infrastructure.annotations;
    written.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}

fn metadata(gateway: &Gateway, made: Made, form: &Form) -> Value {
    let mut labels = labels(gateway);
    labels.insert(REVISION.to_owned(), form.revision.as_str().into());
    let mut annotations = annotations(gateway);
    if made == Made::Service {
        // The next instance is on the way of a request twice.
        annotations.entry(TRAFFIC_DISTRIBUTION).or_insert_with(|| "PreferClose".into());
    }
    json!({ "labels": labels, "annotations": annotations })
}

/// What holds whatever was laid over: names, whose it is, and by what pods, account and gateway belong together.
fn insist(gateway: &Gateway, entry: Entry, made: Made, value: &mut Value) {
    let name = gateway.meta.name.name.as_str();
    let mut metadata = json!({
        "name": name,
        "namespace": gateway.meta.name.namespace.as_str(),
        "labels": own_labels(gateway),
    });
    // Without an API server nobody gives out such ids, and nobody collects what has no owner any more.
    if let (false, Some(metadata)) = (gateway.meta.uid.is_empty(), metadata.as_object_mut()) {
        let owner = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": name,
            "uid": gateway.meta.uid.as_str(), "controller": true,
        });
        metadata.insert("ownerReferences".to_owned(), json!([owner]));
    }
    let mut fixed = json!({ "apiVersion": made.api_version(), "kind": made.kind(), "metadata": metadata });
    let selector = match made {
        Made::ServiceAccount | Made::HorizontalPodAutoscaler => None,
        Made::Service => Some(selector(gateway)),
        Made::PodDisruptionBudget | Made::Deployment => Some(json!({ "matchLabels": selector(gateway) })),
    };
    if made == Made::Deployment
        && let Some(fixed) = fixed.as_object_mut()
    {
        let mut labels = own_labels(gateway);
        labels.insert(DATAPLANE_MODE.to_owned(), dataplane(entry).into());
        // Its certificate names the account, and by that name others know the waypoint.
        let pod = json!({ "metadata": { "labels": labels }, "spec": { "serviceAccountName": name } });
        fixed.insert("spec".to_owned(), json!({ "template": pod }));
    }
    remove(value, "/metadata", "ownerReferences");
    merge(value, &fixed);
    if let (Some(selector), Some(Value::Object(spec))) = (selector, value.pointer_mut("/spec")) {
        spec.insert("selector".to_owned(), selector);
    }
}

fn remove(value: &mut Value, parent: &str, field: &str) {
    if let Some(Value::Object(parent)) = value.pointer_mut(parent) {
        parent.remove(field);
    }
}

fn service(gateway: &Gateway) -> Value {
    let status = json!({
        "name": "status-port", "port": STATUS_PORT, "targetPort": STATUS_PORT, "protocol": "TCP", "appProtocol": "tcp",
    });
    let mut ports = vec![status];
    let mut taken = BTreeSet::from([u32::from(STATUS_PORT)]);
    for listener in gateway.listeners.iter().filter(|listener| is_served(listener)) {
        // Of two with one port the second is told that they conflict.
        if taken.insert(listener.port) {
            ports.push(json!({
                "name": listener.name, "port": listener.port, "targetPort": listener.port, "protocol": "TCP",
                "appProtocol": if listener.protocol == HBONE { "hbone" } else { "tcp" },
            }));
        }
    }
    json!({
        "type": "ClusterIP",
        "ipFamilyPolicy": "PreferDualStack",
        "ports": ports,
    })
}

/// Whether a waypoint can be what a listener asks for.
pub fn is_served(listener: &Listener) -> bool {
    let hbone = listener.protocol == HBONE && listener.port == u32::from(HBONE_PORT);
    hbone || listener.protocol == PROTOCOL_PROXY
}

fn disruption() -> Value {
    // One that does not get ready must not hold up the drain of its node.
    json!({ "maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow" })
}

fn autoscaler(gateway: &Gateway) -> Value {
    json!({
        "scaleTargetRef": {
            "apiVersion": "apps/v1", "kind": "Deployment", "name": gateway.meta.name.name.as_str(),
        },
        "minReplicas": 2,
        "maxReplicas": 5,
        "metrics": [{
            "type": "Resource",
            "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } },
        }],
    })
}

fn deployment(gateway: &Gateway, wishes: Wishes, network: &str, form: &Form) -> Value {
    let name = gateway.meta.name.name.as_str();
    let mut labels = labels(gateway);
    for (label, value) in [
        (DATAPLANE_MODE, dataplane(wishes.entry)),
        (SIDECAR_INJECT, "false"),
        (CANONICAL_NAME, name),
        (CANONICAL_REVISION, "latest"),
        (APP_KUBERNETES_NAME, name),
        (REVISION, &form.revision),
    ] {
        labels.insert(label.to_owned(), value.into());
    }
    let mut annotations = annotations(gateway);
    for (annotation, value) in [
        ("prometheus.io/scrape", "true"),
        ("prometheus.io/port", &METRICS_PORT.to_string()),
        ("prometheus.io/path", "/metrics"),
    ] {
        annotations.insert(annotation.to_owned(), value.into());
    }
    let spread = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(|key| {
        json!({
            "topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": selector(gateway) },
            // Otherwise the old replicas of a change would count.
            "matchLabelKeys": ["pod-template-hash"],
        })
    });
    json!({
        "replicas": 2,
        "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "template": {
            "metadata": { "labels": labels, "annotations": annotations },
            "spec": {
                "serviceAccountName": name,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": GRACE,
                "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [container(wishes, network, form)],
                "volumes": volumes(),
                "topologySpreadConstraints": spread,
            },
        },
    })
}

/// Whether a ztunnel captures its pods.
fn dataplane(entry: Entry) -> &'static str {
    match entry {
        // Who ends tunnels himself must not be captured.
        Entry::Tunnels => DATAPLANE_MODE_NONE,
        Entry::Handed(_) => DATAPLANE_MODE_AMBIENT,
    }
}

fn container(wishes: Wishes, network: &str, form: &Form) -> Value {
    let front = match wishes.entry {
        Entry::Tunnels => ("hbone", HBONE_PORT),
        Entry::Handed(port) => ("proxy", port),
    };
    let ports = [front, ("http-monitoring", METRICS_PORT), ("status-port", STATUS_PORT)];
    let ports = ports.map(|(name, port)| json!({ "name": name, "containerPort": port, "protocol": "TCP" }));
    let probe = |every: u32, failures: u32| {
        json!({
            "httpGet": { "path": "/healthz/ready", "port": STATUS_PORT },
            "periodSeconds": every, "timeoutSeconds": 3, "failureThreshold": failures,
        })
    };
    json!({
        "name": CONTAINER,
        "image": form.image,
        "env": environment(wishes, network, form),
        "ports": ports,
        "readinessProbe": probe(3, 4),
        // Its certificate and its services come first; nobody calls it meanwhile.
        "startupProbe": probe(1, 60),
        "securityContext": {
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 1337,
            "runAsGroup": 1337,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [
            { "name": "root-cert", "mountPath": ROOTS, "readOnly": true },
            { "name": "token", "mountPath": TOKENS, "readOnly": true },
        ],
    })
}

fn environment(wishes: Wishes, network: &str, form: &Form) -> Vec<Value> {
    let roots = format!("{ROOTS}/root-cert.pem");
    let token = format!("{TOKENS}/istio-token");
    let (drain, grace) = (DRAIN.to_string(), GRACE.to_string());
    let texts = [
        ("XDS_ADDRESS", form.control_plane.as_str()),
        ("CA_ADDRESS", &form.control_plane),
        ("XDS_ROOT_CA", &roots),
        ("CA_ROOT_CA", &roots),
        ("AUTH_TOKEN", &token),
        ("CLUSTER_ID", &form.cluster),
        ("CLUSTER_DOMAIN", &form.domain),
        ("NETWORK", network),
        ("TRUST_DOMAIN", &form.trust_domain),
        ("TERMINATION_DRAIN_DURATION_SECONDS", &drain),
        ("TERMINATION_GRACE_PERIOD_SECONDS", &grace),
        ("RUST_LOG", &form.log),
        ("LOG_FORMAT", &form.log_format),
    ];
    let fields = [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("INSTANCE_IP", "status.podIP"),
        ("NODE_NAME", "spec.nodeName"),
    ];
    let handed = match wishes.entry {
        Entry::Tunnels => None,
        Entry::Handed(port) => Some(json!({ "name": "AMBIT_PROXY_PORT", "value": port.to_string() })),
    };
    let names = json!({ "name": "AMBIT_XFCC_INCLUDE_CLIENT_IDENTITY", "value": "true" });
    let names = wishes.names_clients.then_some(names);
    let texts = texts.map(|(name, value)| json!({ "name": name, "value": value }));
    let fields = fields
        .map(|(name, path)| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } }));
    texts.into_iter().chain(handed).chain(names).chain(fields).collect()
}

/// The pod waits until the controller has told its namespace the roots.
fn volumes() -> Value {
    json!([
        { "name": "root-cert", "projected": { "sources": [{ "configMap": {
            "name": "istio-ca-root-cert",
            "items": [{ "key": "root-cert.pem", "path": "root-cert.pem" }],
        } }] } },
        { "name": "token", "projected": { "sources": [{ "serviceAccountToken": {
            "path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43_200,
        } }] } },
    ])
}
