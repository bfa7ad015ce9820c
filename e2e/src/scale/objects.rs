//! Nodes, services and pods that nobody runs, written through the API server.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The namespace of the mesh.
pub const SYSTEM: &str = "istio-system";
const TUNNEL: &str = "ztunnel";
/// Requests under way; more only wait in the API server.
const AT_ONCE: usize = 32;
/// Services of a namespace.
const SERVICES_EACH: usize = 100;
const TOKEN_SECONDS: i64 = 7200;

/// How large the cluster is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Pods, on all of them.
    pub pods: usize,
    /// Services; each selects pods / services of them.
    pub services: usize,
}

/// Which pod: the place that it has, and how often that was filled. Its name says both, so whoever hears of it knows
/// whom it concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its service.
    pub service: usize,
    /// Its node.
    pub node: usize,
    /// Its number among all pods.
    pub number: usize,
}

impl Shape {
    /// The place of a pod: services are spread over all nodes.
    fn place(&self, number: usize) -> Place {
        let service = number % self.services;
        Place { service, node: (number / self.services + service) % self.nodes, number }
    }
}

/// The namespace of a service.
fn namespace(service: usize) -> String {
    format!("shop-{}", service / SERVICES_EACH)
}

/// The key by which tunnels ask for a service.
pub fn service_key(service: usize) -> String {
    let namespace = namespace(service);
    format!("{namespace}/svc-{service}.{namespace}.svc.cluster.local")
}

fn pod_name(place: Place, generation: usize) -> String {
    format!("pod-{}-{}-{}-{generation}", place.service, place.node, place.number)
}

/// Where the pod is that a workload's uid names.
pub fn place_of(uid: &str) -> Option<Place> {
    let name = uid.rsplit('/').next()?.strip_prefix("pod-")?;
    let mut parts = name.split('-').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some(Place { service: next()?, node: next()?, number: next()? })
}

/// The name of a node.
pub fn node_name(node: usize) -> String {
    format!("node-{node}")
}

/// A pod that came in another's place.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its uid as a workload.
    pub uid: String,
    /// Its place.
    pub place: Place,
    /// When the API server had taken it in, with its address.
    pub at: Instant,
}

/// Writes the cluster, and changes it.
pub struct Writer {
    client: Client,
    shape: Shape,
    /// The pods that are there: oldest first.
    pods: Mutex<VecDeque<(Place, usize)>>,
    addresses: AtomicU32,
}

impl Writer {
    /// Nothing is written yet.
    pub fn new(client: Client, shape: Shape) -> Self {
        Self { client, shape, pods: Mutex::default(), addresses: AtomicU32::new(0) }
    }

    /// Writes all of it.
    pub async fn everything(&self) -> anyhow::Result<()> {
        let namespaces = 0..self.shape.services.div_ceil(SERVICES_EACH);
        let namespaces = namespaces.map(|number| format!("shop-{number}")).chain([SYSTEM.to_owned()]);
        let ambient = json!({"istio.io/dataplane-mode": "ambient"});
        let namespaces = namespaces.map(|name| json!({"metadata": {"name": name, "labels": ambient}}));
        all(Api::<Namespace>::all(self.client.clone()), namespaces).await?;
        let account = json!({"metadata": {"name": TUNNEL}});
        all(Api::<ServiceAccount>::namespaced(self.client.clone(), SYSTEM), [account]).await?;
        let nodes = (0..self.shape.nodes).map(|node| json!({"metadata": {"name": node_name(node)}}));
        all(Api::<Node>::all(self.client.clone()), nodes).await?;
        let tunnels =
            (0..self.shape.nodes).map(|node| pod(&tunnel_name(node), node, TUNNEL, json!({"app": TUNNEL})));
        all(Api::<Pod>::namespaced(self.client.clone(), SYSTEM), tunnels).await?;
        let services = stream::iter(0..self.shape.services).map(|service| {
            let api = Api::<Service>::namespaced(self.client.clone(), &namespace(service));
            create(api, json!({
                "metadata": {"name": format!("svc-{service}")},
                "spec": {"selector": {"svc": service.to_string()}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
            }))
        });
        services.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let first = self.addresses.fetch_add(u32::try_from(self.shape.pods)?, Relaxed);
        let places: Vec<_> = (0..self.shape.pods).map(|number| self.shape.place(number)).collect();
        let pods =
            stream::iter(places.iter().zip(first..)).map(|(place, address)| self.put(*place, 0, address));
        pods.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        self.oldest_first().extend(places.into_iter().map(|place| (place, 0)));
        Ok(())
    }

    /// Deletes the oldest pod, and writes another in its place, with another name and address.
    pub async fn replace_one(&self) -> anyhow::Result<Change> {
        let (place, generation) = self.oldest_first().pop_front().context("there is no pod")?;
        let api = self.pods_of(place.service);
        api.delete(&pod_name(place, generation), &DeleteParams::default().grace_period(0)).await?;
        let address = self.addresses.fetch_add(1, Relaxed);
        self.put(place, generation + 1, address).await?;
        let at = Instant::now();
        self.oldest_first().push_back((place, generation + 1));
        let name = pod_name(place, generation + 1);
        Ok(Change { uid: format!("Kubernetes//Pod/{}/{name}", namespace(place.service)), place, at })
    }

    /// The pods that are there.
    fn oldest_first(&self) -> MutexGuard<'_, VecDeque<(Place, usize)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod is there when it has an address and is ready: what kubelet and the node agent would write.
    async fn put(&self, place: Place, generation: usize, address: u32) -> anyhow::Result<()> {
        let name = pod_name(place, generation);
        let labels = json!({"svc": place.service.to_string(), "app": format!("svc-{}", place.service)});
        let api = self.pods_of(place.service);
        create(api.clone(), pod(&name, place.node, "default", labels)).await?;
        let ip = std::net::Ipv4Addr::from_bits((10 << 24) + (1 << 16) + address).to_string();
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]
        }});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }

    fn pods_of(&self, service: usize) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &namespace(service))
    }
}

fn tunnel_name(node: usize) -> String {
    format!("ztunnel-{node}")
}

fn pod(name: &str, node: usize, account: &str, labels: Value) -> Value {
    json!({
        "metadata": {
            "name": name, "labels": labels, "annotations": {"ambient.istio.io/redirection": "enabled"}
        },
        "spec": {
            "nodeName": node_name(node), "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}]
        }
    })
}

async fn all<K>(api: Api<K>, objects: impl IntoIterator<Item = Value>) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let created = stream::iter(objects).map(|object| create(api.clone(), object));
    created.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await.map(drop)
}

async fn create<K>(api: Api<K>, object: Value) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).context("an object of ours is none")?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The token that the kubelet of a node would give to its tunnel.
pub async fn token(client: &Client, node: usize) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
    let pod = pods.get(&tunnel_name(node)).await?;
    let request: TokenRequest = serde_json::from_value(json!({"spec": {
        "audiences": ["istio-ca"],
        "expirationSeconds": TOKEN_SECONDS,
        "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid
        }
    }}))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SYSTEM);
    let answer = accounts.create_token_request(TUNNEL, &PostParams::default(), &request).await?;
    answer.status.and_then(|status| status.token).context("the API server gave no token")
}

/// The root that the controller made and keeps.
pub async fn root(client: &Client) -> anyhow::Result<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let secret = secrets.get("istio-ca-secret").await.context("the controller keeps no root")?;
    let bytes = secret.data.unwrap_or_default().remove("ca-cert.pem").context("no ca-cert.pem")?;
    Ok(String::from_utf8(bytes.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_says_whom_it_concerns() {
        let shape = Shape { nodes: 7, pods: 100, services: 10 };
        for number in 0..shape.pods {
            let place = shape.place(number);
            assert!(place.service < 10 && place.node < 7);
            let uid = format!("Kubernetes//Pod/{}/{}", namespace(place.service), pod_name(place, 3));
            assert_eq!(place_of(&uid), Some(place));
        }
        assert_eq!(place_of("Kubernetes//Pod/istio-system/ztunnel-1"), None);
    }

    #[test]
    fn the_pods_of_a_service_are_on_several_nodes() {
        let shape = Shape { nodes: 100, pods: 10_000, services: 1000 };
        let nodes: std::collections::BTreeSet<_> = (0..shape.pods)
            .map(|n| shape.place(n))
            .filter(|place| place.service == 5)
            .map(|p| p.node)
            .collect();
        assert_eq!(nodes.len(), 10);
    }
}
