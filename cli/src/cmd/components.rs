//! The parts of the mesh in a cluster: which pods they are, on which nodes, and where their pages are.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Client;

use super::playground::state::Kind;
use super::sources::Target;
use crate::connect::{Endpoint, Through};
use crate::objects::{self, escaped};

/// Where the control plane is, unless it is said otherwise.
pub(crate) const SYSTEM: &str = "istio-system";

/// The port of the pages of controllers and tunnels, on the loopback of their pods, if nothing else is said.
const ADMIN: u16 = 15000;
const AGENT_ADMIN: u16 = 8000;
/// How it is said.
const ADMIN_FLAG: &str = "--admin=";
const ADMIN_ENV: &str = "ADMIN_ADDR";
const TUNNEL_METRICS: u16 = 15020;
const TUNNEL_READINESS: u16 = 15021;

/// The namespace of the control plane.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct System {
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM, help_heading = "The cluster")]
    pub(crate) system_namespace: String,
}

/// The label by which the pods of a kind are found.
pub(crate) fn selector(kind: Kind) -> &'static str {
    match kind {
        Kind::Controller => "app=ambit-controller",
        Kind::Agent => "k8s-app=ambit-cni-node",
        Kind::Ztunnel => "app=ztunnel",
    }
}

/// One pod of the mesh's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) node: Option<String>,
    /// Its own word, by the kubelet.
    pub(crate) ready: bool,
    /// Since when it runs, RFC 3339.
    pub(crate) since: Option<String>,
    pub(crate) restarts: i32,
    /// The image of its first container.
    pub(crate) image: String,
    /// Its containers.
    pub(crate) containers: Vec<String>,
    /// The port of its pages, on its loopback.
    pub(crate) admin: u16,
    /// Why it is not up, in Kubernetes' words.
    pub(crate) waits_for: Option<String>,
}

impl Instance {
    /// From Kubernetes' object. None if it is over.
    pub(crate) fn read(kind: Kind, pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.clone().unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let condition = |name: &str| {
            status.conditions.iter().flatten().find(|one| one.type_ == name).map(|one| one.status == "True")
        };
        let statuses = status.container_statuses.as_deref().unwrap_or_default();
        let waiting = statuses.iter().find_map(|one| one.state.as_ref()?.waiting.as_ref()?.reason.clone());
        let unscheduled = spec.node_name.is_none().then(|| "not scheduled to a node".to_owned());
        let since = statuses.first().and_then(|one| one.state.as_ref()?.running.as_ref()?.started_at.clone());
        Some(Self {
            kind,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone()?,
            node: spec.node_name.clone(),
            ready: condition("Ready") == Some(true),
            since: since.map(|since| since.0.to_string()),
            restarts: statuses.iter().map(|one| one.restart_count).sum(),
            image: spec.containers.first().and_then(|one| one.image.clone()).unwrap_or_default(),
            containers: spec.containers.iter().map(|one| one.name.clone()).collect(),
            admin: spec.containers.iter().find_map(admin).unwrap_or(match kind {
                Kind::Controller | Kind::Ztunnel => ADMIN,
                Kind::Agent => AGENT_ADMIN,
            }),
            waits_for: unscheduled.or(waiting),
        })
    }

    /// `dev` of `localhost/ambit/controller:dev`: the version by its image, if it has a tag.
    pub(crate) fn tag(&self) -> Option<&str> {
        let image = self.image.split('@').next()?;
        let last = image.rsplit('/').next()?;
        last.split_once(':').map(|(_, tag)| tag)
    }

    /// `ztunnel/n1`, `controller/ambit-controller-7d9-x`: for messages and tables.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.kind.word(), self.place())
    }

    /// A controller is known by its pod, what there is once a node by the node.
    pub(crate) fn place(&self) -> &str {
        match (self.kind, &self.node) {
            (Kind::Agent | Kind::Ztunnel, Some(node)) => node,
            (Kind::Controller, _) | (_, None) => &self.pod,
        }
    }

    /// Whom to ask.
    pub(crate) fn target(&self, client: &Client) -> Target {
        Target {
            kind: self.kind,
            node: Some(self.place().to_owned()),
            admin: self.admin(client),
            readiness: self.readiness(client),
            metrics: self.metrics(client),
            version: self.tag().map(str::to_owned),
            since: self.since.clone(),
        }
    }

    /// Its pages for operators.
    pub(crate) fn admin(&self, client: &Client) -> Endpoint {
        self.endpoint(self.admin, client)
    }

    /// Where it says whether it is ready.
    fn readiness(&self, client: &Client) -> Endpoint {
        match self.kind {
            Kind::Ztunnel => self.endpoint(TUNNEL_READINESS, client),
            Kind::Controller | Kind::Agent => self.admin(client),
        }
    }

    /// Where its metrics are.
    fn metrics(&self, client: &Client) -> Endpoint {
        match self.kind {
            Kind::Ztunnel => self.endpoint(TUNNEL_METRICS, client),
            Kind::Controller | Kind::Agent => self.admin(client),
        }
    }

    fn endpoint(&self, port: u16, client: &Client) -> Endpoint {
        Endpoint::Pod {
            namespace: self.namespace.clone(),
            name: self.pod.clone(),
            port,
            through: Through::cluster(client.clone()),
        }
    }
}

/// The port that a container is told to have its pages on.
fn admin(container: &Container) -> Option<u16> {
    let flag = container.args.iter().flatten().find_map(|arg| arg.strip_prefix(ADMIN_FLAG));
    let env = || container.env.iter().flatten().find(|env| env.name == ADMIN_ENV)?.value.as_deref();
    flag.or_else(env)?.rsplit_once(':')?.1.parse().ok()
}

/// Every pod of the mesh's own in the namespace, by kind and place.
pub(crate) async fn instances(client: &Client, namespace: &str) -> anyhow::Result<Vec<Instance>> {
    let mut found = Vec::new();
    for kind in [Kind::Controller, Kind::Agent, Kind::Ztunnel] {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let query = format!("labelSelector={}", escaped(selector(kind)));
        let pods: Vec<Pod> = objects::list(client, &path, &query).await?.unwrap_or_default();
        found.extend(pods.iter().filter_map(|pod| Instance::read(kind, pod)));
    }
    found.sort_by(|a, b| (a.kind, a.place(), &a.pod).cmp(&(b.kind, b.place(), &b.pod)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_instance_says_where_it_is_and_which_version() {
        let pod = pod(json!({
            "metadata": { "name": "ztunnel-x", "namespace": SYSTEM },
            "spec": { "nodeName": "n1", "containers": [{ "name": "tunnel", "image": "localhost:5000/ambit/ztunnel:0.1.0@sha256:00" }] },
            "status": {
                "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
                "containerStatuses": [{ "name": "tunnel", "image": "", "imageID": "", "ready": true, "restartCount": 2,
                    "state": { "running": { "startedAt": "2026-01-10T12:00:00Z" } } }],
            },
        }));
        let one = Instance::read(Kind::Ztunnel, &pod).unwrap();
        assert_eq!((one.title().as_str(), one.tag()), ("ztunnel/n1", Some("0.1.0")));
        assert_eq!((one.ready, one.restarts, one.since.as_deref()), (true, 2, Some("2026-01-10T12:00:00Z")));
        assert_eq!(one.admin, 15000);
        let untagged = Instance { image: "localhost:5000/ambit/ztunnel".to_owned(), ..one };
        assert_eq!(untagged.tag(), None);
    }

    #[test]
    fn pages_are_where_the_container_is_told_to_have_them() {
        for (container, expected) in [
            (json!({ "name": "a", "args": ["--admin=127.0.0.1:15000"] }), 15000),
            (json!({ "name": "a", "env": [{ "name": "ADMIN_ADDR", "value": "[::1]:9000" }] }), 9000),
            (json!({ "name": "a", "env": [{ "name": "ADMIN_ADDR", "value": "unix:/run/x" }] }), 8000),
            (json!({ "name": "a" }), 8000),
        ] {
            let pod = pod(json!({ "metadata": { "name": "a" }, "spec": { "containers": [container] } }));
            assert_eq!(Instance::read(Kind::Agent, &pod).unwrap().admin, expected, "{container}");
        }
    }

    #[test]
    fn what_is_over_is_no_instance_and_what_waits_says_for_what() {
        let over = pod(
            json!({ "metadata": { "name": "a" }, "spec": { "containers": [] }, "status": { "phase": "Failed" } }),
        );
        assert_eq!(Instance::read(Kind::Agent, &over), None);
        let new = pod(json!({ "metadata": { "name": "a" }, "spec": { "containers": [] } }));
        let new = Instance::read(Kind::Controller, &new).unwrap();
        assert_eq!(new.waits_for.as_deref(), Some("not scheduled to a node"));
        assert_eq!((new.title().as_str(), new.ready), ("controller/a", false));
    }
}
