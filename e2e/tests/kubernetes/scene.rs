//! What the stories of the mesh do again and again: install, call, look.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_e2e::kubernetes::images::{self, APP};
use ambit_e2e::kubernetes::{Cluster, Kubectl, Options};
use ambit_lab::process::{self, Process, Program};
use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The namespace of the mesh.
pub(crate) const SYSTEM: &str = "istio-system";
/// The annotation of a pod that is captured.
const CAPTURED: &str = "/metadata/annotations/ambient.istio.io~1redirection";
/// The images that [`images::mesh`] makes.
const IMAGES: [&str; 6] = [
    "--set",
    "global.hub=localhost/ambit",
    "--set",
    "global.tag=dev",
    "--set",
    "global.imagePullPolicy=Never",
];
const COMMAND: Duration = Duration::from_secs(280);
const NODE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(20);
/// The kinds in which something of ours could be left.
const KINDS: &str = "daemonsets,deployments,services,serviceaccounts,configmaps,secrets,roles,rolebindings,\
    clusterroles,clusterrolebindings,poddisruptionbudgets,networkpolicies,leases,\
    validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,\
    customresourcedefinitions,priorityclasses,resourcequotas";

/// A cluster with the programs and images of the mesh.
pub(crate) struct Scene<'a> {
    pub(crate) cluster: &'a Cluster,
    binaries: PathBuf,
    programs: PathBuf,
}

/// A pod, as far as stories care.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) restarts: i64,
    node: String,
    captured: bool,
    /// Its first container that runs, as containerd calls it; empty if none does.
    container: String,
}

impl<'a> Scene<'a> {
    /// Gives the cluster the images.
    pub(crate) fn set(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let Options { binaries, programs, .. } = Options::found("any")?;
        for image in images::mesh(&binaries)? {
            cluster.load_image(&image)?;
        }
        Ok(Self { cluster, binaries, programs })
    }

    /// Where the programs of this project are.
    pub(crate) fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// Where the other programs of the cluster are.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// Takes away what a story made, whatever came of it.
    pub(crate) fn clear(&self, namespaces: &[&str]) -> anyhow::Result<()> {
        // A story that went well has done so; of one that did not, the first failure is the one to tell.
        let _ = self.run(&["uninstall", "--yes", "--purge", "--purge-crds"]);
        if let Some(helm) = self.helm() {
            let _ = self.helm_run(&helm, &["uninstall", "mesh"]);
        }
        // Helm never takes definitions away, and `ambit` none of Helm's: the next story would find them.
        let ours = [
            "delete",
            "crds",
            "-l",
            "app.kubernetes.io/part-of=ambit",
            "--ignore-not-found",
            "--timeout=120s",
        ];
        self.kubectl().ok(&ours)?;
        namespaces.iter().try_for_each(|name| self.kubectl().delete_namespace(name))?;
        self.kubectl().delete_namespace(SYSTEM)
    }

    /// `ambit install` with our images.
    pub(crate) fn install(&self, more: &[&str]) -> anyhow::Result<()> {
        self.ambit(&[&["install", "--yes"], &IMAGES[..], more].concat()).map(drop)
    }

    /// `ambit upgrade`.
    pub(crate) fn upgrade(&self, more: &[&str]) -> anyhow::Result<()> {
        self.ambit(&[&["upgrade", "--yes"], more].concat()).map(drop)
    }

    /// Runs the command, which must succeed; returns what it printed.
    pub(crate) fn ambit(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.run(args)?;
        ensure!(output.status.success(), "ambit {args:?}: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }

    /// Starts the command, and does not wait for it.
    pub(crate) fn begin(&self, args: &[&str]) -> anyhow::Result<Process> {
        let log = self.cluster.home().logs().join(format!("ambit-{}.log", std::process::id()));
        // Of an earlier command of this process.
        let _ = std::fs::remove_file(&log);
        Ok(Process::start(None, &self.command(args), &log)?)
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<process::Output> {
        Ok(process::run(None, &self.command(args), COMMAND)?)
    }

    fn command(&self, args: &[&str]) -> Program {
        let program = Program::new(self.binaries.join("ambit")).args(args);
        program.env("KUBECONFIG", self.cluster.kubeconfig())
    }

    /// The namespaces of probes.
    pub(crate) fn probes(&self) -> anyhow::Result<Vec<String>> {
        let get = ["get", "namespaces", "-l", "app.kubernetes.io/component=probe", "-o", "name"];
        let names = self.kubectl().ok(&get)?;
        Ok(names.lines().map(|name| name.trim_start_matches("namespace/").to_owned()).collect())
    }

    /// Helm, if it is built.
    pub(crate) fn helm(&self) -> Option<PathBuf> {
        Some(self.programs.join("helm")).filter(|helm| helm.exists())
    }

    pub(crate) fn helm_install(&self, helm: &Path) -> anyhow::Result<()> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/charts/ambit");
        let chart = chart.to_str().context("the chart's path is no text")?;
        let args = [&["install", "mesh", chart, "--create-namespace"], &IMAGES[..]].concat();
        self.helm_run(helm, &args)
    }

    pub(crate) fn helm_run(&self, helm: &Path, args: &[&str]) -> anyhow::Result<()> {
        let program = Program::new(helm).args(args).args(["--namespace", SYSTEM, "--kubeconfig"]);
        let output = process::run(None, &program.arg(self.cluster.kubeconfig()), COMMAND)?;
        ensure!(output.status.success(), "helm {args:?}: {}{}", output.stdout, output.stderr);
        Ok(())
    }

    /// Waits until `probe` finds something; shows what is known of the namespace if it does not.
    pub(crate) fn until<T>(
        &self,
        namespace: &str,
        limit: Duration,
        what: &str,
        probe: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        self.kubectl().until(namespace, limit, what, probe)
    }

    /// Whether every node's kube-proxy leads to the API server; `None` as long as one does not.
    pub(crate) fn reaches_the_api_server(&self) -> anyhow::Result<Option<()>> {
        let service = self.field("default", &["service/kubernetes"], "/spec/clusterIP")?;
        let url = format!("https://{service}/readyz");
        // Whatever is answered: without a certificate it may be a refusal.
        let call = ["curl", "--silent", "--insecure", "--max-time", "5", "--output", "/dev/null", &url];
        for node in ["n1", "n2"] {
            if !self.cluster.in_node(node, &call, NODE)?.status.success() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    pub(crate) fn client_runs(&self, namespace: &str) -> anyhow::Result<()> {
        let wait = ["-n", namespace, "wait", "pod/client", "--for=condition=Ready", "--timeout=120s"];
        self.kubectl().ok(&wait).map(drop).with_context(|| self.kubectl().evidence(namespace))
    }

    /// One call from the client of a namespace; what it was answered.
    pub(crate) fn call(&self, namespace: &str, url: &str) -> anyhow::Result<String> {
        let call = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url];
        self.kubectl().exec(namespace, "client", &call)
    }

    /// Calls of which each must be answered.
    pub(crate) fn calls(&self, namespace: &str, url: &str, count: u32) -> anyhow::Result<()> {
        let count = count.to_string();
        let call = ["ambit-lab-app", "call", url, "--count", &count, "--new-connection"];
        self.kubectl().exec(namespace, "client", &call).map(drop)
    }

    /// The running pods of a namespace.
    pub(crate) fn pods(&self, namespace: &str) -> anyhow::Result<Vec<Seen>> {
        let pods = self.kubectl().get(namespace, &["pods"])?.context("no list of pods")?;
        let running = pods["items"].as_array().into_iter().flatten().filter(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = running.map(|pod| Seen {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            restarts: pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0),
            node: text(&pod["spec"]["nodeName"]),
            captured: pod.pointer(CAPTURED).is_some_and(|word| word == "enabled"),
            container: match &pod["status"]["containerStatuses"][0] {
                status if status["state"]["running"].is_object() => {
                    text(&status["containerID"]).trim_start_matches("containerd://").to_owned()
                }
                _ => String::new(),
            },
        });
        Ok(pods.collect())
    }

    pub(crate) fn all_captured(&self, namespace: &str) -> anyhow::Result<bool> {
        let pods = self.pods(namespace)?;
        Ok(!pods.is_empty() && pods.iter().all(|pod| pod.captured))
    }

    pub(crate) fn none_captured(&self, namespace: &str) -> anyhow::Result<bool> {
        Ok(!self.pods(namespace)?.iter().any(|pod| pod.captured))
    }

    /// No pod of the namespace has rules of ours.
    pub(crate) fn no_rules(&self, namespace: &str) -> anyhow::Result<()> {
        for pod in self.pods(namespace)? {
            ensure!(!self.has_rules(&pod)?, "{} has rules", pod.name);
        }
        Ok(())
    }

    /// Whether a pod has rules of ours.
    pub(crate) fn has_rules(&self, pod: &Seen) -> anyhow::Result<bool> {
        Ok(self.inside(pod, &["nft", "list", "tables"])?.contains("ambit"))
    }

    /// The containers that run for pods of a node: others than before when they were started anew.
    pub(crate) fn starts(&self, namespace: &str, node: &str) -> anyhow::Result<Vec<String>> {
        let pods = self.pods(namespace)?.into_iter().filter(|pod| pod.node == node);
        Ok(pods.map(|pod| pod.container).filter(|id| !id.is_empty()).collect())
    }

    /// The pods of a node whose containers are none of those before.
    pub(crate) fn restarted(
        &self,
        namespace: &str,
        node: &str,
        before: &[String],
    ) -> anyhow::Result<Vec<Seen>> {
        let pods = self.pods(namespace)?.into_iter().filter(|pod| pod.node == node);
        Ok(pods.filter(|pod| !pod.container.is_empty() && !before.contains(&pod.container)).collect())
    }

    /// Runs a command of this machine in a pod's network namespace.
    fn inside(&self, pod: &Seen, argv: &[&str]) -> anyhow::Result<String> {
        let pid = self.pid(pod)?;
        let enter = ["nsenter", "--net", "--target", &pid, "--"];
        let output = self.cluster.in_node(&pod.node, &[&enter, argv].concat(), NODE)?;
        Ok(output.ok()?.to_owned())
    }

    /// The process of a pod's first container, as its node numbers it.
    fn pid(&self, pod: &Seen) -> anyhow::Result<String> {
        let list = ["ctr", "--namespace", "k8s.io", "task", "list"];
        let output = self.cluster.in_node(&pod.node, &list, NODE)?;
        let tasks = output.ok()?;
        let is_its = |line: &&str| !pod.container.is_empty() && line.starts_with(&pod.container);
        let pid = tasks.lines().find(is_its).and_then(|line| line.split_whitespace().nth(1));
        Ok(pid.with_context(|| format!("no container of {} runs: {tasks}", pod.name))?.to_owned())
    }

    /// The addresses of the pods with a label `app`.
    pub(crate) fn addresses(&self, namespace: &str, app: &str) -> anyhow::Result<Vec<String>> {
        let selector = format!("--selector=app={app}");
        let pods = self.kubectl().get(namespace, &["pods", &selector])?.context("no list of pods")?;
        let items = pods["items"].as_array().into_iter().flatten();
        Ok(items.filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect())
    }

    /// A field of an object, as text.
    pub(crate) fn field(&self, namespace: &str, what: &[&str], pointer: &str) -> anyhow::Result<String> {
        let object = self.kubectl().get(namespace, what)?.with_context(|| format!("no {what:?}"))?;
        match object.pointer(pointer) {
            None | Some(Value::Null) => bail!("{what:?} has no {pointer}"),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value) => Ok(value.to_string()),
        }
    }

    /// The last lines of every pod of a workload of the mesh.
    pub(crate) fn logs(&self, workload: &str) -> anyhow::Result<String> {
        let name = workload.rsplit('/').next().unwrap_or(workload);
        let args = ["-n", SYSTEM, "logs", "--tail=5000", "--timestamps", "-l", &format!("app={name}")];
        self.kubectl().ok(&args)
    }

    /// New connections, 10 a second, from the client of a namespace while there is no API server to exec through: its
    /// node's containerd is asked. `during` runs between finding the client and calling.
    pub(crate) fn load_past_the_api_server(
        &self,
        namespace: &str,
        url: &str,
        duration: Duration,
        during: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        let pods = self.pods(namespace)?;
        let client = pods.iter().find(|pod| pod.name == "client").context("there is no client")?;
        during()?;
        let seconds = duration.as_secs().to_string();
        let enter = ["ctr", "--namespace", "k8s.io", "task", "exec", "--exec-id", "load", &client.container];
        let call =
            ["ambit-lab-app", "call", url, "--rate", "10", "--duration", &seconds, "--new-connection", "-q"];
        let limit = duration + Duration::from_secs(30);
        no_failure(&self.cluster.in_node(&client.node, &[&enter[..], &call].concat(), limit)?.stdout)
    }

    /// After the end of the mesh: no object, no label, no file, no rule of it.
    pub(crate) fn nothing_is_left(&self, namespaces: &[&str]) -> anyhow::Result<()> {
        for selector in ["app.kubernetes.io/part-of=ambit", "app.kubernetes.io/managed-by=ambit"] {
            let left =
                self.kubectl().ok(&["get", KINDS, "--all-namespaces", "-l", selector, "-o", "name"])?;
            ensure!(left.trim().is_empty(), "left, of {selector}: {left}");
        }
        for namespace in namespaces {
            let object = self.kubectl().get(namespace, &["namespace", namespace])?.context("it is gone")?;
            let labels = object["metadata"]["labels"].to_string();
            ensure!(!labels.contains("dataplane-mode"), "{namespace} is labelled: {labels}");
            ensure!(self.none_captured(namespace)?, "pods of {namespace} are annotated");
        }
        for node in ["n1", "n2"] {
            // Sockets and folders below /run go with the next boot.
            let look = "ls /opt/cni/bin /etc/cni/net.d; cat /etc/cni/net.d/*; nft list tables";
            let found = self.cluster.in_node(node, &["sh", "-c", look], NODE)?;
            ensure!(!found.stdout.contains("ambit"), "left on {node}: {}", found.stdout);
        }
        Ok(())
    }
}

/// Calls that go on until somebody has seen enough.
pub(crate) struct Load<'a> {
    process: Process,
    scene: &'a Scene<'a>,
}

impl<'a> Load<'a> {
    /// New connections, so many a second, from the client of a namespace.
    pub(crate) fn start(scene: &'a Scene<'a>, namespace: &str, url: &str, rate: u32) -> anyhow::Result<Self> {
        let rate = rate.to_string();
        let call = ["ambit-lab-app", "call", url, "--rate", &rate, "--duration", "600", "--new-connection"];
        let args = [&["-n", namespace, "exec", "client", "--"], &call[..]].concat();
        let log = scene.cluster.home().logs().join(format!("load-{}.log", std::process::id()));
        // Of an earlier load of this process.
        let _ = std::fs::remove_file(&log);
        let process = Process::start(None, &scene.kubectl().program(&args), &log)?;
        let this = Self { process, scene };
        scene.until(namespace, NODE, "load", || {
            Ok((this.process.said().lines().count() > 10).then_some(()))
        })?;
        Ok(this)
    }

    /// Ends it; each call must have been answered.
    pub(crate) fn finish_without_failure(self) -> anyhow::Result<String> {
        self.process.signal(Signal::SIGINT);
        let _ = self.process.terminate(GRACE)?;
        let said = self.process.said();
        let failures: Vec<_> = said.lines().filter(|line| line.contains("\"error\"")).collect();
        let calls = said.lines().filter(|line| line.contains("\"status\"")).count();
        ensure!(calls > 0, "no call was made: {said}");
        if let Some(first) = failures.first() {
            let log = self.scene.logs("daemonset/ztunnel")?;
            let refused: Vec<_> = log.lines().filter(|line| !line.contains("\tinfo\taccess")).collect();
            let count = failures.len();
            bail!(
                "{count} of {calls} calls failed; the first: {first}\ntunnels say:\n{}",
                refused.join("\n")
            );
        }
        Ok(format!("{calls} new connections, none failed"))
    }
}

/// Of the summary of a load: that no call failed, in words.
fn no_failure(said: &str) -> anyhow::Result<String> {
    let line = said.lines().find(|line| line.contains("\"summary\"")).with_context(|| said.to_owned())?;
    let summary: Value = serde_json::from_str(line)?;
    let of = |name: &str| summary["summary"][name].as_u64();
    let (calls, failures) = (of("requests").context("no requests")?, of("failures").context("no failures")?);
    ensure!(failures == 0 && calls > 0, "{failures} of {calls} calls failed: {said}");
    Ok(format!("{calls} new connections, none failed"))
}

/// Whether a line of the access log has this client.
pub(crate) fn client_is(line: &str, identity: &str) -> bool {
    line.contains(&format!("src.identity=\"{identity}\""))
}

/// A server on each node, and its Service.
pub(crate) fn web(namespace: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {namespace}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: web}}}}
      containers:
      - name: web
        image: {APP}
        imagePullPolicy: Never
        args: [serve]
        env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        livenessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 5}}
        startupProbe: {{exec: {{command: ["true"]}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"#
    )
}

/// A server on each node, one with a name of its own, and a client.
pub(crate) fn town(namespace: &str) -> String {
    let web = web(namespace);
    format!(
        r#"{web}---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: {namespace}}}
spec:
  serviceName: db
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: {APP}
        imagePullPolicy: Never
        args: [serve]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: {namespace}}}
spec:
  clusterIP: None
  selector: {{app: db}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: {APP}
    imagePullPolicy: Never
    command: [sleep, "100000"]
"#
    )
}

/// A Job that makes one call, at once.
pub(crate) fn job(namespace: &str, name: &str, url: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
      - name: call
        image: {APP}
        imagePullPolicy: Never
        args: [call, "{url}"]
"#
    )
}
