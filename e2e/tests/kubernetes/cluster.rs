//! The cluster itself is real: what a story relies on works before the mesh is there.

#![expect(
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use ambit_e2e::kubernetes::home::NODES;
use ambit_e2e::kubernetes::images::APP;
use ambit_e2e::kubernetes::{Cluster, story};
use ambit_lab::Process;
use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::Value;

use crate::scene::web;

const SOON: Duration = Duration::from_secs(60);
/// Another kubelet takes a while to see that a node came back, and starts its pods one after another.
const REBOOTED: Duration = Duration::from_secs(150);

/// A server on each node, a client that can be called from, and something on every node that is rolled out.
fn town(namespace: &str) -> String {
    let web = web(namespace);
    format!(
        r#"{web}---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: everywhere, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: everywhere}}}}
  template:
    metadata: {{labels: {{app: everywhere}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: everywhere
        image: {APP}
        imagePullPolicy: Never
        command: [sh, -c, "echo round $ROUND; exec sleep 100000"]
        env: [{{name: ROUND, value: first}}]
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

fn settle(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.fresh_namespace(namespace)?;
    kubectl.apply(&town(namespace))?;
    kubectl.rolled_out(namespace, "deployment/web", SOON)?;
    kubectl.rolled_out(namespace, "daemonset/everywhere", SOON)?;
    let client = ["--namespace", namespace, "wait", "pod/client", "--for=condition=Ready", "--timeout=60s"];
    kubectl.ok(&client).map(drop)
}

/// Who answered some calls of the client's to the Service.
fn answers(cluster: &Cluster, namespace: &str, calls: u32) -> anyhow::Result<BTreeSet<String>> {
    let script = format!(
        "for i in $(seq {calls}); do curl --silent --fail --max-time 5 http://web.{namespace}.svc.cluster.local/ || exit; echo; done"
    );
    let told = cluster.kubectl().exec(namespace, "client", &["sh", "-c", &script])?;
    told.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let answer: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            Ok(answer["pod"].as_str().with_context(|| format!("nobody answered: {line}"))?.to_owned())
        })
        .collect()
}

/// The values at a JSON pointer of the pods with that label.
fn of_pods(cluster: &Cluster, namespace: &str, app: &str, pointer: &str) -> anyhow::Result<Vec<String>> {
    let selector = format!("--selector=app={app}");
    let pods = cluster.kubectl().get(namespace, &["pods", &selector])?.context("no list of pods")?;
    let items = pods["items"].as_array().context("no pods")?;
    Ok(items.iter().filter_map(|pod| Some(pod.pointer(pointer)?.as_str()?.to_owned())).collect())
}

#[test]
fn a_real_cluster_works() -> anyhow::Result<()> {
    story(|cluster| {
        let kubectl = cluster.kubectl();
        let client = cluster.client()?;
        nodes_are_ready(cluster, client)?;
        settle(cluster, "works")?;

        let nodes: BTreeSet<_> = of_pods(cluster, "works", "web", "/spec/nodeName")?.into_iter().collect();
        ensure!(nodes.len() == NODES.len(), "the pods of one deployment are all on {nodes:?}");
        let who = answers(cluster, "works", 40)?;
        ensure!(who.len() == 2, "of two servers, {who:?} answered forty calls by name");

        let said = kubectl.ok(&["--namespace=works", "logs", "daemonset/everywhere"])?;
        ensure!(said.contains("round first"), "no words of its own in the log: {said:?}");
        kubectl.ok(&["--namespace=works", "set", "env", "daemonset/everywhere", "ROUND=second"])?;
        kubectl.rolled_out("works", "daemonset/everywhere", SOON)?;
        for pod in of_pods(cluster, "works", "everywhere", "/metadata/name")? {
            let round = kubectl.exec("works", &pod, &["sh", "-c", "echo $ROUND"])?;
            ensure!(round.trim() == "second", "{pod} is of round {round:?} after the rollout");
        }

        unready_pods_get_no_calls(cluster)?;
        tokens_are_for_their_audience(cluster)?;
        a_port_is_forwarded(cluster)?;
        kubectl.delete_namespace("works")
    })
}

fn nodes_are_ready(cluster: &Cluster, client: Client) -> anyhow::Result<()> {
    let nodes = cluster.block_on(Api::<Node>::all(client).list(&ListParams::default()))?;
    let ready = nodes.items.iter().filter(|node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    });
    let ready: Vec<_> = ready.filter_map(|node| node.metadata.name.as_deref()).collect();
    ensure!(ready == NODES, "ready are {ready:?}");
    Ok(())
}

fn unready_pods_get_no_calls(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = cluster.kubectl();
    let name = of_pods(cluster, "works", "web", "/metadata/name")?.pop().context("no server")?;
    // A server that is stopped answers no probe; its kubelet sees it, and kube-proxy leaves it out.
    let on = of_pods(cluster, "works", "web", "/spec/nodeName")?.pop().context("no node")?;
    let signal = |signal: &str| {
        let script = format!(
            "for p in /proc/[0-9]*; do grep -qsz \"^POD_NAME={name}\" $p/environ && kill -{signal} ${{p#/proc/}}; done; true"
        );
        cluster.in_node(&on, &["sh", "-c", &script], SOON)?.ok().map_err(anyhow::Error::from)
    };
    signal("STOP")?;
    let left = || {
        let pods = of_pods(cluster, "works", "web", "/metadata/name")?;
        let slices = kubectl.get("works", &["endpointslices"])?.context("no slices")?;
        let text = slices.to_string();
        Ok(pods.contains(&name).then(|| text.contains(r#""ready":false"#)).filter(|unready| *unready))
    };
    kubectl.until("works", SOON, "the unready endpoint", left)?;
    signal("CONT")?;
    kubectl.rolled_out("works", "deployment/web", SOON)
}

fn tokens_are_for_their_audience(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = cluster.kubectl();
    let token = kubectl.ok(&["--namespace=works", "create", "token", "default", "--audience=istio-ca"])?;
    let review = |audience: &str| -> anyhow::Result<Value> {
        let document = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {"name": "x"},
            "spec": {"token": token.trim(), "audiences": [audience]},
        });
        let file = cluster.home().dir().join("review.json");
        std::fs::write(&file, document.to_string())?;
        let answer = kubectl.ok(&["create", "--output=json", "--filename", &file.to_string_lossy()])?;
        std::fs::remove_file(&file)?;
        Ok(serde_json::from_str(&answer)?)
    };
    let good = review("istio-ca")?;
    ensure!(good["status"]["authenticated"] == true, "a good token is refused: {}", good["status"]);
    ensure!(good["status"]["user"]["username"] == "system:serviceaccount:works:default", "it is {good}");
    let other = review("somebody-else")?;
    ensure!(other["status"]["authenticated"] != true, "a token for another audience is taken: {other}");
    Ok(())
}

fn a_port_is_forwarded(cluster: &Cluster) -> anyhow::Result<()> {
    let program = cluster.kubectl().program(&["--namespace=works", "port-forward", "service/web", ":80"]);
    let log = cluster.home().logs().join("port-forward.log");
    let process = Process::start(None, &program, &log)?;
    process.wait_until_said("Forwarding from 127.0.0.1:", SOON)?;
    let said = process.said();
    let at =
        said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("which port?")?;
    let url = format!("http://127.0.0.1:{at}/");
    let call = ambit_lab::Program::new("curl").args(["--silent", "--fail", "--max-time", "10", &url]);
    let answer = ambit_lab::process::run(None, &call, SOON)?.ok()?;
    ensure!(answer.contains("web-"), "the forwarded port answers {answer:?}");
    Ok(())
}

#[test]
fn pods_keep_talking_while_the_api_server_is_down() -> anyhow::Result<()> {
    story(|cluster| {
        settle(cluster, "quiet")?;
        let address = of_pods(cluster, "quiet", "web", "/status/podIP")?.pop().context("no server")?;
        cluster.stop_api_server()?;
        let asked = cluster.kubectl().run(&["get", "nodes", "--request-timeout=3s"])?;
        let called =
            cluster.in_control(&["curl", "-sf", "--max-time", "5", &format!("http://{address}:8080/")], SOON);
        cluster.start_api_server()?;
        ensure!(!asked.status.success(), "the API server answers although it was stopped");
        called?.ok().context("a pod is silent because the API server is")?;
        cluster.kubectl().rolled_out("quiet", "deployment/web", SOON)?;
        answers(cluster, "quiet", 3)?;
        cluster.kubectl().delete_namespace("quiet")
    })
}

#[test]
fn a_node_comes_back_after_a_reboot() -> anyhow::Result<()> {
    story(|cluster| {
        settle(cluster, "reboot")?;
        cluster.in_node("n1", &["sh", "-c", "echo kept >/var/lib/kept; echo lost >/run/lost"], SOON)?.ok()?;
        let boots = || -> anyhow::Result<Vec<String>> {
            of_pods(cluster, "reboot", "web", "/status/containerStatuses/0/containerID")
        };
        let before = boots()?;
        cluster.reboot("n1")?;
        let kept = cluster.in_node("n1", &["cat", "/var/lib/kept"], SOON)?.ok()?;
        ensure!(kept.trim() == "kept", "the disk lost a file");
        let lost = cluster.in_node("n1", &["cat", "/run/lost"], SOON)?;
        ensure!(!lost.status.success(), "the memory of a node survived its reboot");
        let kubectl = cluster.kubectl();
        kubectl.until("reboot", REBOOTED, "the new start of the pods of n1", || {
            let now = boots()?;
            Ok((now.iter().filter(|id| before.contains(id)).count() == 1 && now.len() == 2).then_some(()))
        })?;
        kubectl.rolled_out("reboot", "deployment/web", REBOOTED)?;
        kubectl.rolled_out("reboot", "daemonset/everywhere", REBOOTED)?;
        let client = ["--namespace=reboot", "wait", "pod/client", "--for=condition=Ready", "--timeout=150s"];
        kubectl.ok(&client)?;
        kubectl.until("reboot", SOON, "an answer of both servers", || {
            Ok(answers(cluster, "reboot", 20).ok().filter(|who| who.len() == 2))
        })?;
        kubectl.delete_namespace("reboot")
    })
}
