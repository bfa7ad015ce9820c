//! What the node agent's account may write, against a real API server: on pods of its token's node, one annotation.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]

use std::fs;
use std::time::Duration;

use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Program};
use anyhow::{Context as _, ensure};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

const TOWN: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: istio-system}
spec: {nodeName: n1, serviceAccountName: ambit-cni, containers: [{name: agent, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop, labels: {app: near}, annotations: {a: b}}
spec: {nodeName: n1, containers: [{name: app, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: n2, containers: [{name: app, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: shop}
spec: {containers: [{name: app, image: none}]}
";

const ENABLED: &str = r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}"#;
const UNSAID: &str = r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":null}}}"#;

#[test]
fn an_agent_writes_one_annotation_and_on_pods_of_its_node_alone() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    let stop = Stop::default();
    let server = ApiServer::start(&programs, &stop)?;
    let ambit = above("ambit").context("ambit is not built; run `cargo build --workspace --bins`")?;
    let rendered = Program::new(ambit).args(["install", "--dry-run", "--set"]);
    let set = "cni.taintRemoval=true,base.enabled=false,controller.enabled=false,ztunnel.enabled=false";
    let rendered = process::run(None, &rendered.arg(set), LIMIT)?;
    ensure!(rendered.status.success(), "{}", rendered.stderr);
    server.kubectl_ok(&["create", "namespace", "istio-system"])?;
    for (name, text) in [("mesh.yaml", rendered.stdout.as_str()), ("town.yaml", TOWN)] {
        let file = server.log().with_file_name(name);
        fs::write(&file, text)?;
        server.kubectl_ok(&["apply", "-f", &file.display().to_string()])?;
    }
    let token = |more: &[&str]| -> anyhow::Result<String> {
        let create = ["create", "token", "ambit-cni", "-n", "istio-system"];
        Ok(server.kubectl_ok(&[&create[..], more].concat())?.trim().to_owned())
    };
    let bound = token(&["--bound-object-kind", "Pod", "--bound-object-name", "agent"])?;
    let unbound = token(&[])?;
    let patch = |token: &str, path: &str, patch: &str| patched(&server, token, path, patch);
    let on_pod = |token: &str, pod: &str, change: &str| {
        patch(token, &format!("/api/v1/namespaces/shop/pods/{pod}/status"), change)
    };
    // The API server hears of policies with a moment's delay.
    stop.until(LIMIT, "the policy to be in force", || {
        Ok(refusal(&on_pod(&bound, "far", ENABLED)?).contains("on its own node only").then_some(()))
    })?;

    for (change, written) in [(ENABLED, Some("enabled")), (ENABLED, Some("enabled")), (UNSAID, None)] {
        let said = on_pod(&bound, "near", change)?;
        let annotations = &said["metadata"]["annotations"];
        let is_written = annotations["ambient.istio.io/redirection"].as_str() == written;
        ensure!(said["kind"] == "Pod" && annotations["a"] == "b" && is_written, "{change}: {said}");
    }
    let one = "an agent writes the annotation ambient.istio.io/redirection";
    for (token, pod, change, why) in [
        (&bound, "far", ENABLED, "its token is for node n1, not for n2"),
        (&bound, "nowhere", ENABLED, "its token is for node n1"),
        (&unbound, "near", ENABLED, "its token is for no node"),
        (&unbound, "nowhere", ENABLED, "its token is for no node"),
        (&bound, "near", r#"{"metadata":{"annotations":{"ambient.istio.io/dns-capture":"false"}}}"#, one),
        (&bound, "near", r#"{"metadata":{"annotations":{"a":null}}}"#, one),
        (&bound, "near", r#"{"metadata":{"labels":{"app":"till"}}}"#, one),
        (&bound, "near", r#"{"status":{"podIP":"10.0.0.9","podIPs":[{"ip":"10.0.0.9"}]}}"#, one),
    ] {
        let said = on_pod(token, pod, change)?;
        ensure!(refusal(&said).contains(why), "{pod} {change}: {said}");
    }

    let on_node = |node: &str| patch(&bound, &format!("/api/v1/nodes/{node}"), r#"{"spec":{"taints":null}}"#);
    let (own, other) = (on_node("n1")?, on_node("n2")?);
    ensure!(own["kind"] == "Node", "its own node: {own}");
    ensure!(refusal(&other).contains("not for n2"), "another: {other}");
    // Nobody else is held to it.
    server.kubectl_ok(&["label", "pod", "far", "-n", "shop", "a=b"])?;
    Ok(())
}

/// Why it did not do it.
fn refusal(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

/// What the API server answers to a patch as the agent sends it: `kubectl` would ask for the object first.
fn patched(server: &ApiServer, token: &str, path: &str, patch: &str) -> anyhow::Result<Value> {
    let curl = Program::new("curl")
        .args(["-ks", "--max-time", "20", "-X", "PATCH", "-H", "content-type: application/merge-patch+json"])
        .args(["-H", &format!("authorization: Bearer {token}"), "-d", patch])
        .arg(format!("{}{path}", server.url()));
    let answer = process::run(None, &curl, LIMIT)?.stdout;
    serde_json::from_str(&answer).with_context(|| format!("no answer: {answer}"))
}
