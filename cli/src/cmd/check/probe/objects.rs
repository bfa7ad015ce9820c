//! What a probe consists of: where its pods may run, and the objects that it makes. Pure.

use ambit_api::labels;
use ambit_controller::probe::{PAGE, WORD};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Secret, Taint};
use serde_json::{Value, json};

use crate::cmd::check::health::{TAINT, is_usable};
use crate::cmd::check::verdict::name;

/// The labels by which a probe's namespace is known, also to the one who finds it when the probe was killed.
const OURS: [(&str, &str); 2] =
    [("app.kubernetes.io/managed-by", "ambit"), ("app.kubernetes.io/component", "probe")];
const PORT: u16 = 8080;
/// How long the client tries, in seconds: what has just been made is known everywhere long before.
const PATIENCE: u32 = 30;
/// Longer than a probe takes, in seconds. Pods that nobody takes away end by themselves.
const LIFE: u32 = 600;

/// One of the two pods, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Server,
    Client,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A node that takes one of the pods, and what it has to tolerate there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) node: String,
    taints: Vec<Taint>,
}

/// Where the pods run: on one node, if there is no other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Places {
    pub(super) server: Place,
    pub(super) client: Place,
}

impl Places {
    pub(super) fn of(&self, part: Part) -> &Place {
        match part {
            Part::Server => &self.server,
            Part::Client => &self.client,
        }
    }
}

/// Two nodes on which pods of the mesh can run, those first to which everybody may go. None if there is not even one.
pub(super) fn places(nodes: &[Node]) -> Option<Places> {
    let mut able: Vec<_> = nodes.iter().filter_map(place).collect();
    able.sort_by(|a, b| (a.taints.len(), &a.node).cmp(&(b.taints.len(), &b.node)));
    let mut able = able.into_iter();
    let client = able.next()?;
    Some(Places { server: able.next().unwrap_or_else(|| client.clone()), client })
}

fn place(node: &Node) -> Option<Place> {
    let conditions = node.status.as_ref()?.conditions.iter().flatten();
    let is_ready = conditions.clone().any(|one| one.type_ == "Ready" && one.status == "True");
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let keeps_off = |taint: &&Taint| taint.effect != "PreferNoSchedule";
    let taints: Vec<_> = taints.filter(keeps_off).cloned().collect();
    // A node that is short of something, or waits for its tunnel, is judged by other checks.
    let is_unwell = |taint: &Taint| taint.key.starts_with("node.kubernetes.io/") || taint.key == TAINT;
    let is_able = is_ready && is_usable(node) && !taints.iter().any(is_unwell);
    is_able.then(|| Place { node: name(node), taints })
}

/// What the pods run: what the controller runs, for that can be had wherever the mesh is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Program {
    image: String,
    pull_policy: Option<String>,
    /// The Secrets by which it is pulled, in the system namespace.
    pub(super) pull_secrets: Vec<String>,
}

/// None if there is no controller of ours.
pub(super) fn program(deployments: &[Deployment]) -> Option<Program> {
    deployments.iter().find_map(|deployment| {
        let pod = deployment.spec.template.spec.as_ref()?;
        let container = pod.containers.iter().find(|one| one.name == "controller")?;
        let secrets = pod.image_pull_secrets.iter().flatten();
        Some(Program {
            image: container.image.clone()?,
            pull_policy: container.image_pull_policy.clone(),
            pull_secrets: secrets.map(|secret| secret.name.clone()).collect(),
        })
    })
}

/// `app.kubernetes.io/managed-by=ambit,…`.
pub(super) fn selector() -> String {
    OURS.map(|(key, value)| format!("{key}={value}")).join(",")
}

/// The namespace; the API server finds the rest of its name.
pub(super) fn namespace() -> Value {
    let mut labels: serde_json::Map<_, _> =
        OURS.map(|(key, value)| (key.to_owned(), Value::from(value))).into_iter().collect();
    labels.insert(labels::DATAPLANE_MODE.to_owned(), labels::DATAPLANE_MODE_AMBIENT.into());
    // Nothing here needs more than anybody's pods do.
    labels.insert("pod-security.kubernetes.io/enforce".to_owned(), "restricted".into());
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "generateName": "ambit-probe-", "labels": labels },
    })
}

/// What has to be there before the pods: who they are, by what they are found, and that plain text is refused.
pub(super) fn ground() -> Vec<Value> {
    let account = |part: Part| {
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": part.name() },
            "automountServiceAccountToken": false,
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": Part::Server.name() },
        "spec": {
            "selector": { "app": Part::Server.name() },
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": { "name": "strict" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    vec![account(Part::Server), account(Part::Client), service, strict]
}

/// A Secret by which the image is pulled, for the probe's namespace.
pub(super) fn copied(secret: &Secret) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": secret.metadata.name },
        "type": secret.type_, "data": secret.data,
    })
}

/// One of the pods.
pub(super) fn pod(part: Part, namespace: &str, place: &Place, program: &Program) -> Value {
    let mut container = json!({
        "name": part.name(),
        "image": program.image,
        "imagePullPolicy": program.pull_policy,
        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        },
    });
    let more = match part {
        Part::Server => json!({
            "args": [WORD, "serve", format!("--port={PORT}")],
            "ports": [{ "name": "http", "containerPort": PORT }],
            // Kubelet's plain text has to come through all the same.
            "readinessProbe": { "httpGet": { "path": PAGE, "port": PORT }, "periodSeconds": 1, "timeoutSeconds": 5 },
        }),
        Part::Client => {
            let url = format!("http://{}.{namespace}.svc{PAGE}", Part::Server.name());
            json!({ "args": [WORD, "call", format!("--url={url}"), format!("--seconds={PATIENCE}")] })
        }
    };
    if let (Value::Object(container), Value::Object(more)) = (&mut container, more) {
        container.extend(more);
    }
    let tolerations: Vec<_> = place
        .taints
        .iter()
        .map(|taint| json!({ "key": taint.key, "operator": "Exists", "effect": taint.effect }))
        .collect();
    let secrets: Vec<_> = program.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": part.name(), "labels": { "app": part.name() } },
        "spec": {
            // The scheduler has its say, and its reasons, unlike with nodeName.
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{
                    "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [place.node] }],
                }],
            } } },
            "tolerations": tolerations,
            "serviceAccountName": part.name(),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "imagePullSecrets": secrets,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFE,
            "terminationGracePeriodSeconds": 1,
            // The image's own user, whom some clusters replace by another.
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [container],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, more: Value) -> Node {
        let mut node = json!({
            "metadata": { "name": name }, "spec": {},
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        for (field, value) in more.as_object().unwrap() {
            node[field] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    fn tainted(name: &str, key: &str, effect: &str) -> Node {
        node(name, json!({ "spec": { "taints": [{ "key": key, "effect": effect }] } }))
    }

    fn well(name: &str) -> Node {
        node(name, json!({}))
    }

    #[test]
    fn two_nodes_are_taken_that_can_run_pods_of_the_mesh() {
        let off = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
        let unfit = [
            node("b", json!({ "spec": { "unschedulable": true } })),
            node("c", json!({ "status": off })),
            tainted("d", "node.kubernetes.io/disk-pressure", "NoSchedule"),
            tainted("e", TAINT, "NoSchedule"),
        ];
        let control_plane = tainted("f", "node-role.kubernetes.io/control-plane", "NoSchedule");
        let hesitant = tainted("g", "spot", "PreferNoSchedule");
        for (able, expected) in [
            (vec![], None),
            (vec![well("x")], Some(("x", "x"))),
            (vec![well("z"), well("y"), well("x")], Some(("x", "y"))),
            (vec![control_plane.clone(), well("x")], Some(("x", "f"))),
            (vec![control_plane, hesitant, well("x")], Some(("g", "x"))),
        ] {
            let places = places(&[&unfit[..], &able].concat());
            let nodes = places.as_ref().map(|all| (all.client.node.as_str(), all.server.node.as_str()));
            assert_eq!(nodes, expected);
        }
    }

    #[test]
    fn the_pods_run_what_the_controller_runs() {
        let deployment = |pod: Value| -> Deployment {
            let template = json!({ "spec": pod });
            serde_json::from_value(
                json!({ "metadata": {}, "spec": { "selector": {}, "template": template } }),
            )
            .unwrap()
        };
        let ours = deployment(json!({
            "containers": [
                { "name": "sidecar", "image": "x" },
                { "name": "controller", "image": "hub/controller:1", "imagePullPolicy": "Always" },
            ],
            "imagePullSecrets": [{ "name": "registry" }],
        }));
        let other = deployment(json!({ "containers": [{ "name": "discovery", "image": "pilot" }] }));
        let found = program(&[other.clone(), ours]).unwrap();
        assert_eq!(
            (found.image.as_str(), found.pull_policy.as_deref()),
            ("hub/controller:1", Some("Always"))
        );
        assert_eq!(found.pull_secrets, ["registry"]);
        assert_eq!(program(&[other]), None);
    }

    #[test]
    fn a_namespace_of_the_probe_is_found_by_its_labels() {
        let labels = namespace()["metadata"]["labels"].clone();
        for pair in selector().split(',') {
            let (key, value) = pair.split_once('=').unwrap();
            assert_eq!(labels[key], value);
        }
    }

    #[test]
    fn every_object_is_as_small_and_as_harmless_as_it_can_be() {
        let places = places(&[tainted("n1", "gpu", "NoSchedule"), well("n2")]).unwrap();
        let program = Program {
            image: "hub/controller:1".to_owned(),
            pull_policy: None,
            pull_secrets: vec!["registry".to_owned()],
        };
        let mut all = vec![namespace()];
        all.extend(ground());
        all.extend(
            [Part::Server, Part::Client].map(|part| pod(part, "ambit-probe-x", places.of(part), &program)),
        );
        let text: Vec<_> = all.iter().map(|one| serde_yaml_ng::to_string(one).unwrap()).collect();
        insta::assert_snapshot!(text.join("---\n"));
    }
}
