//! From documents to pods: Deployments are expanded, pods are given to nodes. Pure; what is there already is among
//! the documents, so that the answer to the same question is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ambit_api::directory::{Document, Problem};
use ambit_api::labels;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::address::hash;
use crate::pod::PodName;

/// Annotation of pods that come from a Deployment: its name and template, so that they are known again.
pub const EXPANDED_FROM: &str = "ambit.io/expanded-from";
/// Every node has its own name as this label.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Images of these names are the lab's own application.
const APP_IMAGES: [&str; 2] = ["ambit/app", "ambit-lab-app"];
/// Those of these names are the waypoint.
const WAYPOINT_IMAGES: [&str; 1] = ["ambit/waypoint"];
/// The ConfigMap with the control plane's roots, and the file that pods expect in it.
const ROOTS: (&str, &str) = ("istio-ca-root-cert", "root-cert.pem");
/// More pods than this of one Deployment are a slip of the finger: the lab runs real processes on one machine.
const MAX_REPLICAS: i32 = 250;

/// What ought to run.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The pods, by name.
    pub pods: BTreeMap<PodName, DesiredPod>,
    /// What cannot run, and why.
    pub problems: Vec<Problem>,
}

/// A pod that ought to run.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPod {
    /// Its node.
    pub node: String,
    /// What runs in it.
    pub containers: Vec<Process>,
    /// When it is ready.
    pub readiness: Readiness,
    /// The file with the token of its account, if it shows one.
    pub token: Option<PathBuf>,
    /// Whether and when a process that ended is started again.
    pub restart: Restart,
    /// Its service account.
    pub service_account: String,
    /// Its labels, for environment variables that name them.
    pub labels: BTreeMap<String, String>,
    /// Its document: to be written for a new pod of a Deployment, as read for all others.
    pub document: Value,
    /// Where the document comes from.
    pub origin: Origin,
    /// Changes with whatever cannot be changed in a running pod.
    pub fingerprint: u64,
    /// Seconds between SIGTERM and SIGKILL, if the pod says so.
    pub grace_seconds: Option<u64>,
}

/// When a pod whose processes run is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// At once.
    Runs,
    /// When something listens on this TCP port.
    Listens(u16),
    /// When it answers so, as its probe asks. A pod of the mesh is not asked: its tunnel would see the question.
    Answers {
        /// The port.
        port: u16,
        /// The page.
        path: String,
    },
}

/// What the machine has for pods: programs for images, files for mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The lab's application, for the image `ambit/app`.
    pub app: PathBuf,
    /// The waypoint, for the image `ambit/waypoint`.
    pub waypoint: Option<PathBuf>,
    /// By what pods are known, and know the control plane.
    pub trust: Option<Trust>,
}

/// What pods that call the control plane are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The folder of tokens, `NAMESPACE.ACCOUNT`.
    pub accounts: PathBuf,
    /// The control plane's roots.
    pub root_cert: PathBuf,
}

impl Host {
    /// One that has the application alone.
    pub fn new(app: impl Into<PathBuf>) -> Self {
        Self { app: app.into(), waypoint: None, trust: None }
    }

    fn program(&self, image: &str) -> Option<&Path> {
        if is_of(image, &APP_IMAGES) {
            Some(&self.app)
        } else if is_of(image, &WAYPOINT_IMAGES) {
            self.waypoint.as_deref()
        } else {
            None
        }
    }
}

/// Who wrote a pod's document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A user.
    Written,
    /// A Deployment, of which it is a replica.
    Expanded,
}

/// When an ended process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always, as is the default.
    Always,
    /// When it failed.
    OnFailure,
    /// Not at all.
    Never,
}

/// A container as the lab runs it: a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The container's name.
    pub name: String,
    /// What is executed.
    pub argv: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, EnvValue)>,
    /// Where it runs, if the container says so.
    pub dir: Option<String>,
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// As written.
    Text(String),
    /// A field of the pod, `status.podIP`.
    Field(String),
}

/// A node to which pods can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLabels {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The pods that `objects` ask for, on `nodes`, of what `host` has.
pub fn desired(objects: &[Document], nodes: &[&str], host: &Host) -> Desired {
    let nodes = node_labels(objects, nodes);
    let mut planner = Planner { nodes: &nodes, host, desired: Desired::default() };
    let mut open = Vec::new();
    let replicas = planner.replicas(objects);
    // Who has a node keeps it; the others are spread over what is left.
    for document in objects.iter().filter(|document| document.kind == "Pod" && document.group().is_empty()) {
        let name = PodName::new(&document.namespace, &document.name);
        match (is_expanded(&document.value), replicas.get(&name)) {
            // A replica of which no Deployment knows any more.
            (true, None) => {}
            (true, Some(replica)) if !replica.is(&document.value) => {}
            (from_us, _) => open.push(Open {
                name,
                value: document.value.clone(),
                place: document,
                origin: if from_us { Origin::Expanded } else { Origin::Written },
            }),
        }
    }
    let there: BTreeSet<_> = open.iter().map(|pod| pod.name.clone()).collect();
    open.extend(replicas.into_iter().filter(|(name, _)| !there.contains(name)).map(|(name, replica)| Open {
        name,
        value: replica.value,
        place: replica.deployment,
        origin: Origin::Expanded,
    }));
    let (placed, unplaced): (Vec<_>, Vec<_>) = open.into_iter().partition(|pod| pod.wish().is_some());
    for pod in placed.into_iter().chain(unplaced) {
        planner.admit(pod);
    }
    planner.desired
}

/// The nodes' labels: as their documents say, or else one region with a zone for each.
pub fn node_labels(objects: &[Document], nodes: &[&str]) -> Vec<NodeLabels> {
    nodes
        .iter()
        .enumerate()
        .map(|(place, name)| {
            let written = objects.iter().find(|document| document.kind == "Node" && document.name == *name);
            let labels = written
                .and_then(|document| document.parse::<Node>().ok()?.metadata.labels)
                .unwrap_or_else(|| default_labels(place));
            let hostname = (HOSTNAME.to_owned(), (*name).to_owned());
            NodeLabels { name: (*name).to_owned(), labels: labels.into_iter().chain([hostname]).collect() }
        })
        .collect()
}

fn default_labels(place: usize) -> BTreeMap<String, String> {
    let zone = format!("lab-{}", place + 1);
    BTreeMap::from([
        (labels::TOPOLOGY_REGION.to_owned(), "lab".to_owned()),
        (labels::TOPOLOGY_ZONE.to_owned(), zone),
    ])
}

fn is_expanded(pod: &Value) -> bool {
    annotation(pod, EXPANDED_FROM).is_some()
}

fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

/// A replica that a Deployment asks for.
struct Replica<'a> {
    value: Value,
    deployment: &'a Document,
}

impl Replica<'_> {
    /// Whether `pod` is it: of the same Deployment and template, whatever labels it was given since.
    fn is(&self, pod: &Value) -> bool {
        annotation(pod, EXPANDED_FROM) == annotation(&self.value, EXPANDED_FROM)
    }
}

/// A pod not yet given to a node.
struct Open<'a> {
    name: PodName,
    value: Value,
    place: &'a Document,
    origin: Origin,
}

impl Open<'_> {
    /// The node it names itself.
    fn wish(&self) -> Option<(&'static str, &str)> {
        let by_annotation = annotation(&self.value, labels::NODE).map(|node| ("metadata.annotations", node));
        let by_spec = || Some(("spec.nodeName", self.value.get("spec")?.get("nodeName")?.as_str()?));
        by_annotation.or_else(by_spec)
    }

    fn problem(&self, field: &str, what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        let prefix = if self.place.kind == "Deployment" { "spec.template." } else { "" };
        self.place.problem(format!("{prefix}{field}"), what, remedy)
    }
}

struct Planner<'a> {
    nodes: &'a [NodeLabels],
    host: &'a Host,
    desired: Desired,
}

impl Planner<'_> {
    fn replicas<'d>(&mut self, objects: &'d [Document]) -> BTreeMap<PodName, Replica<'d>> {
        let mut replicas = BTreeMap::new();
        for document in
            objects.iter().filter(|object| object.kind == "Deployment" && object.group() == "apps")
        {
            let deployment: Deployment = match document.parse() {
                Ok(deployment) => deployment,
                Err(err) => {
                    let remedy = "write it as Kubernetes has it, apps/v1";
                    self.desired.problems.push(document.problem(err.field, err.what, remedy));
                    continue;
                }
            };
            let spec = deployment.spec;
            let count = spec.replicas.unwrap_or(1);
            if !(0..=MAX_REPLICAS).contains(&count) {
                let what = format!("is {count}; the lab runs at most {MAX_REPLICAS}");
                self.desired.problems.push(document.problem("spec.replicas", what, "ask for fewer"));
                continue;
            }
            for number in 1..=count {
                let name = PodName::new(&document.namespace, format!("{}-{number}", document.name));
                let value = replica(document, &name, &spec.template);
                replicas.insert(name, Replica { value, deployment: document });
            }
        }
        replicas
    }

    fn admit(&mut self, pod: Open<'_>) {
        match self.plan(&pod) {
            Ok(planned) => {
                self.desired.pods.insert(pod.name, planned);
            }
            Err(problem) => self.desired.problems.push(*problem),
        }
    }

    fn plan(&self, pod: &Open<'_>) -> Result<DesiredPod, Box<Problem>> {
        let bad = |field: &str, what: String, remedy: &str| Box::new(pod.problem(field, what, remedy));
        let parsed: Pod = serde_json::from_value(pod.value.clone())
            .map_err(|err| bad("", err.to_string(), "write it as Kubernetes has it, v1"))?;
        let mut spec =
            parsed.spec.ok_or_else(|| bad("spec", "is missing".to_owned(), "give it a container"))?;
        if spec.host_network == Some(true) {
            let remedy = "run it without, or start it in the node's namespace yourself";
            return Err(bad("spec.hostNetwork", "is not run by the lab".to_owned(), remedy));
        }
        let node = self.place(pod, &spec)?;
        spec.node_name = Some(node.clone());
        let account = spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
        let mounts = Mounts::of(&spec, &pod.name.namespace, &account, self.host);
        let labels = parsed.metadata.labels.unwrap_or_default();
        let containers = spec
            .containers
            .iter()
            .enumerate()
            .map(|(place, container)| {
                process(container, self.host, &mounts).map_err(|(field, what, remedy)| {
                    bad(&format!("spec.containers[{place}].{field}"), what, remedy)
                })
            })
            .collect::<Result<_, _>>()?;
        let mut document = pod.value.clone();
        if pod.origin == Origin::Expanded
            && let Some(spec) = document.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.insert("nodeName".to_owned(), json!(node));
        }
        let restart = match spec.restart_policy.as_deref() {
            None | Some("Always") => Restart::Always,
            Some("OnFailure") => Restart::OnFailure,
            Some("Never") => Restart::Never,
            Some(other) => {
                let what = format!("is {other:?}");
                return Err(bad("spec.restartPolicy", what, "write Always, OnFailure or Never"));
            }
        };
        Ok(DesiredPod {
            node,
            containers,
            readiness: readiness(&spec, &labels),
            token: mounts.token,
            restart,
            service_account: account,
            labels,
            document,
            origin: pod.origin,
            fingerprint: fingerprint(&spec),
            grace_seconds: spec.termination_grace_period_seconds.and_then(|grace| u64::try_from(grace).ok()),
        })
    }

    /// The node that the pod names, or the least busy of those that it may be on.
    fn place(&self, pod: &Open<'_>, spec: &PodSpec) -> Result<String, Box<Problem>> {
        let names = || self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some((field, wish)) = pod.wish() {
            let known = self.nodes.iter().any(|node| node.name == wish);
            return known.then(|| wish.to_owned()).ok_or_else(|| {
                let what = format!("names node {wish:?}, which the lab does not have");
                Box::new(pod.problem(field, what, format!("name one of {}", names())))
            });
        }
        let selector = spec.node_selector.clone().unwrap_or_default();
        let kin = |other: &DesiredPod| {
            pod.origin == Origin::Expanded
                && annotation(&other.document, EXPANDED_FROM) == annotation(&pod.value, EXPANDED_FROM)
        };
        let load = |node: &NodeLabels| {
            let here = || self.desired.pods.values().filter(|pod| pod.node == node.name);
            (here().filter(|pod| kin(pod)).count(), here().count())
        };
        let fit = self
            .nodes
            .iter()
            .filter(|node| selector.iter().all(|(label, value)| node.labels.get(label) == Some(value)));
        fit.min_by_key(|node| load(node)).map(|node| node.name.clone()).ok_or_else(|| {
            let what = "fits no node of the lab";
            Box::new(pod.problem("spec.nodeSelector", what, format!("select labels of {}", names())))
        })
    }
}

/// One replica, as Kubernetes would have made it by way of a ReplicaSet.
fn replica(deployment: &Document, name: &PodName, template: &PodTemplateSpec) -> Value {
    let text = serde_json::to_string(template).unwrap_or_default();
    let version = format!("{:010x}", hash(&[&text]) >> 24);
    let set = format!("{}-{version}", deployment.name);
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.name = Some(name.name.clone());
    metadata.namespace = Some(name.namespace.clone());
    metadata.labels.get_or_insert_default().insert(labels::POD_TEMPLATE_HASH.to_owned(), version);
    let from = format!("Deployment/{set}");
    metadata.annotations.get_or_insert_default().insert(EXPANDED_FROM.to_owned(), from);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "ReplicaSet".to_owned(),
        name: set.clone(),
        uid: set,
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.spec })
}

/// The files that a pod's volumes stand for. The lab has no mounts: where a variable names a file in a mounted volume, it
/// is given the file on this machine.
struct Mounts {
    /// The volume, the file in it, and where that is.
    files: Vec<(String, String, PathBuf)>,
    token: Option<PathBuf>,
}

impl Mounts {
    fn of(spec: &PodSpec, namespace: &str, account: &str, host: &Host) -> Self {
        let mut mounts = Self { files: Vec::new(), token: None };
        let Some(trust) = &host.trust else { return mounts };
        for volume in spec.volumes.iter().flatten() {
            let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            for source in sources {
                if let Some(token) = &source.service_account_token {
                    let file = trust.accounts.join(format!("{namespace}.{account}"));
                    mounts.token = Some(file.clone());
                    mounts.files.push((volume.name.clone(), token.path.clone(), file));
                }
                if source.config_map.as_ref().is_some_and(|map| map.name == ROOTS.0) {
                    mounts.files.push((volume.name.clone(), ROOTS.1.to_owned(), trust.root_cert.clone()));
                }
            }
        }
        mounts
    }

    /// The file that `path` is in this container, if it is one of a volume.
    fn file(&self, container: &Container, path: &str) -> Option<String> {
        let mut mounted = container.volume_mounts.iter().flatten().flat_map(|mount| {
            let of_volume = self.files.iter().filter(|(volume, _, _)| *volume == mount.name);
            of_volume.map(|(_, file, here)| (Path::new(&mount.mount_path).join(file), here))
        });
        let (_, here) = mounted.find(|(there, _)| there == Path::new(path))?;
        Some(here.to_string_lossy().into_owned())
    }
}

fn process(
    container: &Container,
    host: &Host,
    mounts: &Mounts,
) -> Result<Process, (&'static str, String, &'static str)> {
    let command = container.command.clone().unwrap_or_default();
    let args = container.args.clone().unwrap_or_default();
    let image = container.image.as_deref().unwrap_or_default();
    let argv: Vec<_> = if !command.is_empty() {
        command.into_iter().chain(args).collect()
    } else if let Some(program) = host.program(image) {
        let serve = (args.is_empty() && program == host.app).then(|| "serve".to_owned());
        [program.to_string_lossy().into_owned()].into_iter().chain(serve).chain(args).collect()
    } else {
        let what = format!("{image:?} cannot be run: the lab has no images");
        return Err(("image", what, "use the image ambit/app, or say by `command` what to execute"));
    };
    let mut env = Vec::new();
    for var in container.env.clone().unwrap_or_default() {
        let field = || Some(var.value_from.as_ref()?.field_ref.as_ref()?.field_path.clone());
        let value = match (var.value, field()) {
            (Some(text), _) => EnvValue::Text(mounts.file(container, &text).unwrap_or(text)),
            (None, Some(field)) => EnvValue::Field(field),
            (None, None) if var.value_from.is_none() => EnvValue::Text(String::new()),
            (None, None) => {
                let what = format!("of {} is neither text nor a field of the pod", var.name);
                return Err(("env", what, "use value or valueFrom.fieldRef"));
            }
        };
        env.push((var.name, value));
    }
    Ok(Process { name: container.name.clone(), argv, env, dir: container.working_dir.clone() })
}

fn is_of(image: &str, names: &[&str]) -> bool {
    let untagged = image.rsplit_once(':').map_or(image, |(name, _tag)| name);
    names.iter().any(|name| untagged == *name || untagged.ends_with(&format!("/{name}")))
}

fn readiness(spec: &PodSpec, of_pod: &BTreeMap<String, String>) -> Readiness {
    let mode = of_pod.get(labels::DATAPLANE_MODE).map(String::as_str);
    let stays_out = mode == Some(labels::DATAPLANE_MODE_NONE);
    let probe = spec.containers.first().and_then(|one| one.readiness_probe.as_ref()?.http_get.as_ref());
    if let (true, Some(probe)) = (stays_out, probe)
        && let IntOrString::Int(port) = probe.port
        && let Ok(port) = u16::try_from(port)
    {
        return Readiness::Answers { port, path: probe.path.clone().unwrap_or_else(|| "/".to_owned()) };
    }
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let mut tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let first = tcp.next().and_then(|port| u16::try_from(port.container_port).ok());
    first.map_or(Readiness::Runs, Readiness::Listens)
}

fn fingerprint(spec: &PodSpec) -> u64 {
    // Written in the order of the type's fields, however the document had them.
    hash(&[&serde_json::to_string(spec).unwrap_or_default()])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The documents in `yaml`, as a directory would hold them.
    pub(crate) fn read(yaml: &str) -> Vec<Document> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), yaml).unwrap();
        let loaded = ambit_api::directory::Directory::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(loaded.problems, []);
        loaded.objects
    }

    const NODES: [&str; 2] = ["node-a", "node-b"];

    fn plan(yaml: &str) -> Desired {
        desired(&read(yaml), &NODES, &Host::new("/bin/ambit-lab-app"))
    }

    fn placed(desired: &Desired) -> Vec<(String, &str)> {
        desired.pods.iter().map(|(name, pod)| (name.to_string(), pod.node.as_str())).collect()
    }

    const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
      - name: web
        image: registry.example/ambit/app:1
        ports: [{containerPort: 8080}]
        env:
        - {name: COLOUR, value: red}
        - {name: ME, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
";

    #[test]
    fn a_deployment_becomes_pods_spread_over_nodes() {
        let desired = plan(WEB);
        assert_eq!(desired.problems, []);
        assert_eq!(
            placed(&desired),
            [
                ("shop/web-1".to_owned(), "node-a"),
                ("shop/web-2".to_owned(), "node-b"),
                ("shop/web-3".to_owned(), "node-a")
            ]
        );
        insta::assert_json_snapshot!(desired.pods[&PodName::new("shop", "web-1")].document);
        let pod = &desired.pods[&PodName::new("shop", "web-1")];
        assert_eq!(pod.containers[0].argv, ["/bin/ambit-lab-app", "serve"]);
        assert_eq!(
            pod.containers[0].env,
            [
                ("COLOUR".to_owned(), EnvValue::Text("red".to_owned())),
                ("ME".to_owned(), EnvValue::Field("status.podIP".to_owned()))
            ]
        );
        assert_eq!((&pod.readiness, pod.service_account.as_str()), (&Readiness::Listens(8080), "web"));
    }

    /// What the directory holds after the first answer was written down.
    fn written(desired: &Desired) -> String {
        let pods = desired.pods.values().map(|pod| serde_json::to_string(&pod.document).unwrap());
        pods.collect::<Vec<_>>().join("\n---\n")
    }

    #[test]
    fn replicas_that_are_there_stay_as_they_are_labels_of_theirs_included() {
        let first = plan(WEB);
        let labelled = written(&first).replacen("\"app\":\"web\"", "\"app\":\"web\",\"extra\":\"yes\"", 1);
        let again = plan(&format!("{WEB}\n---\n{labelled}"));
        assert_eq!(placed(&again), placed(&first));
        let (one, other) = (first.pods.values().next().unwrap(), again.pods.values().next().unwrap());
        assert_eq!(one.fingerprint, other.fingerprint);
        assert_eq!(other.document["metadata"]["labels"]["extra"], "yes");
    }

    #[test]
    fn a_changed_template_makes_new_pods_and_fewer_replicas_fewer() {
        let first = plan(WEB);
        let red = first.pods.values().next().unwrap().fingerprint;
        let changed = WEB.replace("red", "blue").replace("replicas: 3", "replicas: 1");
        let again = plan(&format!("{changed}\n---\n{}", written(&first)));
        assert_eq!(placed(&again), [("shop/web-1".to_owned(), "node-a")]);
        assert_ne!(again.pods.values().next().unwrap().fingerprint, red);
        let gone = plan(&written(&first));
        assert!(gone.pods.is_empty(), "{:?}", placed(&gone));
    }

    #[test]
    fn a_pod_goes_where_it_says() {
        let pod = |name: &str, head: &str, spec: &str| {
            format!(
                "---\nkind: Pod\napiVersion: v1\nmetadata: {{name: {name}, namespace: n{head}}}\nspec: {{{spec} containers: [{{name: c, command: [sleep, '9']}}]}}\n"
            )
        };
        let yaml = [
            pod("free", "", ""),
            pod("named", "", "nodeName: node-b,"),
            pod("noted", ", annotations: {ambit.io/node: node-b}", ""),
            pod("zoned", "", "nodeSelector: {topology.kubernetes.io/zone: lab-2},"),
            pod("lost", "", "nodeName: node-z,"),
            pod("picky", "", "nodeSelector: {disk: ssd},"),
        ]
        .concat();
        let desired = plan(&yaml);
        let expected =
            [("n/free", "node-a"), ("n/named", "node-b"), ("n/noted", "node-b"), ("n/zoned", "node-b")];
        assert_eq!(placed(&desired), expected.map(|(pod, node)| (pod.to_owned(), node)));
        let said: Vec<_> = desired
            .problems
            .iter()
            .map(|problem| (problem.field.as_str(), problem.remedy.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                ("spec.nodeName", "name one of node-a, node-b"),
                ("spec.nodeSelector", "select labels of node-a, node-b")
            ]
        );
    }

    const GATE: &str = "
kind: Pod
apiVersion: v1
metadata: {name: gate, namespace: shop, labels: {istio.io/dataplane-mode: none}}
spec:
  serviceAccountName: gate
  containers:
  - name: istio-proxy
    image: ambit/waypoint
    env:
    - {name: AUTH_TOKEN, value: /var/run/tokens/istio-token}
    - {name: CA_ROOT_CA, value: /var/run/istio/root-cert.pem}
    - {name: OTHER, value: /var/run/istio/other.pem}
    readinessProbe: {httpGet: {path: /ready, port: 15021}}
    volumeMounts: [{name: token, mountPath: /var/run/tokens}, {name: root, mountPath: /var/run/istio}]
  volumes:
  - {name: token, projected: {sources: [{serviceAccountToken: {path: istio-token}}]}}
  - {name: root, projected: {sources: [{configMap: {name: istio-ca-root-cert}}]}}
";

    #[test]
    fn a_waypoint_is_given_its_program_its_token_and_the_roots() {
        let host = Host {
            waypoint: Some("/bin/waypoint".into()),
            trust: Some(Trust { accounts: "/state/accounts".into(), root_cert: "/state/root.pem".into() }),
            ..Host::new("/bin/app")
        };
        let desired = desired(&read(GATE), &NODES, &host);
        assert_eq!(desired.problems, []);
        let pod = &desired.pods[&PodName::new("shop", "gate")];
        assert_eq!(pod.containers[0].argv, ["/bin/waypoint"]);
        let env: Vec<_> = pod.containers[0].env.iter().map(|(_, value)| value.clone()).collect();
        let text = |text: &str| EnvValue::Text(text.to_owned());
        assert_eq!(
            env,
            [text("/state/accounts/shop.gate"), text("/state/root.pem"), text("/var/run/istio/other.pem")]
        );
        assert_eq!(pod.token.as_deref(), Some(Path::new("/state/accounts/shop.gate")));
        assert_eq!(pod.readiness, Readiness::Answers { port: 15021, path: "/ready".to_owned() });
        // Pods of the mesh are looked at, not asked.
        let of_mesh = super::desired(&read(&GATE.replace("none}", "ambient}")), &NODES, &host);
        assert_eq!(of_mesh.pods[&PodName::new("shop", "gate")].readiness, Readiness::Runs);
    }

    #[test]
    fn what_cannot_run_is_a_problem_with_a_remedy_and_spoils_nothing_else() {
        let desired = plan(&format!(
            "{WEB}---{}",
            WEB.replace("name: web, n", "name: nginx, n").replace("ambit/app:1", "nginx")
        ));
        assert_eq!(desired.pods.len(), 3);
        assert_eq!(desired.problems.len(), 3);
        let problem = desired.problems[0].to_string();
        assert!(problem.contains("spec.template.spec.containers[0].image"), "{problem}");
        assert!(problem.contains("use the image ambit/app"), "{problem}");
        let many = plan(&WEB.replace("replicas: 3", "replicas: 3000"));
        assert_eq!(many.problems[0].field, "spec.replicas");
    }
}
