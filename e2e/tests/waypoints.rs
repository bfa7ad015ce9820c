//! The life of waypoints by a real API server: what Gateways ask for is made, changed, told and let go, by the controller
//! and by `ambit waypoint`. No pod runs: the story writes what kubelets would.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_e2e::api_server::{ApiServer, above, free_port, programs};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Output, Process, Program};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

/// Parameters are read every ten seconds, and a refusal is tried again after some.
const LIMIT: Duration = Duration::from_secs(60);
/// How often to ask `kubectl`, which takes a processor for a while.
const PAUSE: Duration = Duration::from_millis(250);

/// Istio has claimed its class; the user has a Service that is called like a Gateway to come.
const BEFORE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: taken, namespace: shop, labels: {mine: 'yes'}}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
";

const PARAMETERS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: gate, namespace: shop}
data:
  deployment: |
    metadata: {labels: {tier: doors}}
    spec: {template: {spec: {containers: [{name: istio-proxy, resources: {requests: {cpu: 250m}}}]}}}
  service: |
    spec: {ports: [{name: extra, port: 9999}]}
  horizontalPodAutoscaler: |
    spec: {maxReplicas: 7}
";

#[test]
fn a_waypoint_comes_changes_and_goes_as_its_gateway_does() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    let stop = Stop::default();
    let server = ApiServer::start(&programs, &stop)?;
    let ambit = above("ambit").context("run `cargo build --workspace --bins`")?;
    let scene = Scene { stop, server, ambit };
    scene.server.define(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/crds"), &scene.stop)?;
    scene.server.kubectl_ok(&["create", "namespace", "istio-system"])?;
    scene.apply(BEFORE)?;
    scene.live().with_context(|| scene.said())
}

struct Scene {
    stop: Stop,
    server: ApiServer,
    ambit: PathBuf,
}

impl Scene {
    fn live(&self) -> anyhow::Result<()> {
        let controller = self.controller("first")?;
        self.comes()?;
        self.is_ready_when_an_instance_is()?;
        self.follows_its_parameters()?;
        self.is_made_again()?;
        drop(controller);
        let _second = self.controller("second")?;
        self.leaves_what_is_not_ours()?;
        self.goes()
    }

    /// The warnings of the controllers.
    fn said(&self) -> String {
        let logs = ["first", "second"].map(|name| self.server.log().with_file_name(format!("{name}.log")));
        let logs = logs.iter().filter_map(|log| std::fs::read_to_string(log).ok());
        let mut lines: Vec<String> =
            logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        lines.retain(|line| !line.contains("INFO") || line.contains("aypoint") || line.contains("ateway"));
        lines.join("\n")
    }

    fn comes(&self) -> anyhow::Result<()> {
        let class = "gatewayclass/ambit-waypoint";
        self.becomes(class, "/status/conditions/0/status", "True")?;
        ensure!(self.get(class)?["spec"]["controllerName"] == "ambit.io/waypoint-controller", "whose is it?");
        let late =
            self.ambit(&["apply", "--name", "gate", "--enroll-namespace", "--wait", "--timeout", "1"])?;
        ensure!(!late.status.success() && late.stderr.contains("not ready within"), "{late:?}");
        // It was written before the wait; the namespace is enrolled only after it.
        let uid = self.get("gateway/gate")?["metadata"]["uid"].clone();
        for object in ["serviceaccount/gate", "service/gate", "deployment/gate", "poddisruptionbudget/gate"] {
            self.becomes(object, "/metadata/ownerReferences/0/uid", uid.as_str().unwrap_or_default())?;
        }
        let deployment = self.get("deployment/gate")?;
        let pod = &deployment["spec"]["template"]["spec"];
        ensure!(deployment["spec"]["replicas"] == 2 && pod["serviceAccountName"] == "gate", "{deployment:#}");
        ensure!(pod["containers"][0]["image"] == "example.org/waypoint:1", "{pod:#}");
        self.becomes("gateway/gate", "/status/conditions/0/type", "Accepted")?;
        self.becomes("gateway/gate", "/status/conditions/1/reason", "Pending")?;
        let enrolled = self.ambit(&["apply", "--name", "gate", "--enroll-namespace"])?;
        ensure!(enrolled.stdout.contains("waypoint shop/gate unchanged"), "{enrolled:?}");
        self.becomes("service/web", "/status/conditions/0/reason", "WaypointIsNotReady")?;
        ensure!(
            self.get("gateway/gate")?["status"]["addresses"].as_array().is_none_or(Vec::is_empty),
            "so soon?"
        );
        let other = self.ambit(&["apply", "--name", "other", "--enroll-namespace"])?;
        ensure!(!other.status.success() && other.stderr.contains("--overwrite"), "{other:?}");
        Ok(())
    }

    fn is_ready_when_an_instance_is(&self) -> anyhow::Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "gate-1", "namespace": "shop", "labels": {
                "gateway.networking.k8s.io/gateway-name": "gate", "istio.io/dataplane-mode": "none",
            } },
            "spec": { "serviceAccountName": "gate", "nodeName": "n1", "containers": [{ "name": "a", "image": "a" }] },
        });
        self.apply(&pod.to_string())?;
        self.ready("True")?;
        self.becomes("gateway/gate", "/status/addresses/0/value", "gate.shop.svc.cluster.local")?;
        self.becomes("gateway/gate", "/status/conditions/1/status", "True")?;
        self.becomes("gateway/gate", "/status/listeners/0/conditions/3/status", "True")?;
        self.becomes("service/web", "/status/conditions/0/reason", "WaypointAccepted")?;
        let told = self.ambit(&["status", "gate"])?;
        ensure!(told.status.success() && told.stdout.contains("Service shop/web"), "{told:?}");
        let list: Value = serde_json::from_str(&self.ambit(&["list", "-o", "json"])?.stdout)?;
        let gate = list.as_array().into_iter().flatten().find(|one| one["name"] == "gate");
        ensure!(gate.is_some_and(|gate| gate["programmed"] == true), "{list:#}");

        // Bindings do not flap while its only instance is away.
        self.ready("False")?;
        self.becomes("gateway/gate", "/status/conditions/1/reason", "Pending")?;
        let gate = self.get("gateway/gate")?;
        ensure!(gate["status"]["addresses"][0]["type"] == "Hostname", "{gate:#}");
        self.becomes("service/web", "/status/conditions/0/reason", "WaypointAccepted")?;
        let told = self.ambit(&["status", "gate"])?;
        ensure!(!told.status.success() && told.stdout.contains("no instance is ready"), "{told:?}");
        self.ready("True")
    }

    fn follows_its_parameters(&self) -> anyhow::Result<()> {
        self.apply(PARAMETERS)?;
        let infrastructure = json!({ "spec": { "infrastructure": {
            "labels": { "team": "doors" },
            "annotations": { "note": "mine" },
            "parametersRef": { "group": "", "kind": "ConfigMap", "name": "gate" },
        } } });
        self.patch("gateway/gate", &infrastructure)?;
        self.becomes("horizontalpodautoscaler/gate", "/spec/maxReplicas", "7")?;
        self.becomes("service/gate", "/metadata/annotations/note", "mine")?;
        let service = self.get("service/gate")?;
        ensure!(service["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == 3), "{service:#}");
        let deployment = self.get("deployment/gate")?;
        let labels = &deployment["metadata"]["labels"];
        ensure!(labels["tier"] == "doors" && labels["team"] == "doors", "{labels}");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        ensure!(container["resources"]["requests"]["cpu"] == "250m", "{container:#}");
        ensure!(container["image"] == "example.org/waypoint:1", "{container:#}");
        // The number was handed over, not dropped to one.
        ensure!(deployment["spec"]["replicas"] == 2, "{deployment:#}");

        // A mistake changes nothing but what is told.
        self.patch("configmap/gate", &json!({ "data": { "deployment": "spec: [" } }))?;
        self.becomes("gateway/gate", "/status/conditions/0/reason", "InvalidParameters")?;
        ensure!(self.get("deployment/gate")?["metadata"]["labels"]["tier"] == "doors", "it went");

        self.patch("gateway/gate", &json!({ "spec": { "infrastructure": null } }))?;
        self.becomes("gateway/gate", "/status/conditions/0/reason", "Accepted")?;
        self.vanishes("horizontalpodautoscaler/gate")?;
        let deployment = self.get("deployment/gate")?;
        ensure!(deployment["metadata"]["labels"]["team"].is_null(), "{deployment:#}");

        // A protocol that a waypoint does not speak.
        let listeners = json!({ "spec": { "listeners": [
            { "name": "mesh", "port": 15008, "protocol": "HBONE" }, { "name": "web", "port": 80, "protocol": "HTTP" },
        ] } });
        self.patch("gateway/gate", &listeners)?;
        self.becomes("gateway/gate", "/status/listeners/1/conditions/0/reason", "UnsupportedProtocol")
    }

    fn is_made_again(&self) -> anyhow::Result<()> {
        let before = self.get("service/gate")?["metadata"]["uid"].clone();
        self.server.kubectl_ok(&["delete", "-n", "shop", "service/gate"])?;
        self.until("another Service", || {
            Ok(self.find("service/gate")?.is_some_and(|service| service["metadata"]["uid"] != before))
        })
    }

    fn leaves_what_is_not_ours(&self) -> anyhow::Result<()> {
        ensure!(self.ambit(&["apply", "--name", "taken"])?.status.success(), "not written");
        self.becomes("gateway/taken", "/status/conditions/1/reason", "Invalid")?;
        let taken = self.get("service/taken")?;
        ensure!(taken["metadata"]["labels"] == json!({ "mine": "yes" }), "{taken:#}");
        ensure!(self.find("deployment/theirs")?.is_none(), "Istio's was made");
        let class = self.get("gatewayclass/istio-waypoint")?;
        ensure!(class["spec"]["controllerName"] == "istio.io/mesh-controller", "{class:#}");
        ensure!(class["status"]["conditions"][0]["status"] != "True", "{class:#}");
        Ok(())
    }

    fn goes(&self) -> anyhow::Result<()> {
        let gone = self.ambit(&["delete", "gate", "--cleanup"])?;
        ensure!(gone.status.success() && gone.stdout.contains("Service shop/web"), "{gone:?}");
        self.vanishes("gateway/gate")?;
        ensure!(
            self.get("namespace/shop")?["metadata"]["labels"]["istio.io/use-waypoint"].is_null(),
            "labelled"
        );
        self.until("the end of the condition", || {
            let web = self.get("service/web")?;
            Ok(web["status"]["conditions"].as_array().is_none_or(Vec::is_empty))
        })?;
        let all = self.ambit(&["delete", "--all"])?;
        ensure!(all.stdout.contains("waypoint shop/taken deleted"), "{all:?}");
        Ok(())
    }

    /// A controller that makes waypoints. It is killed when it is dropped.
    fn controller(&self, name: &str) -> anyhow::Result<Process> {
        let program = above("controller").context("run `cargo build --workspace --bins`")?;
        let program = Program::new(program)
            .env("KUBECONFIG", self.server.kubeconfig())
            .env("POD_NAME", name)
            .args(["--source", "kubernetes", "--waypoint-image", "example.org/waypoint:1"])
            .args(["--admin", &format!("127.0.0.1:{}", free_port()?)])
            .args(["--listen", &format!("127.0.0.1:{}", free_port()?)]);
        Ok(Process::start(None, &program, &self.server.log().with_file_name(format!("{name}.log")))?)
    }

    fn ambit(&self, args: &[&str]) -> anyhow::Result<Output> {
        let program = Program::new(&self.ambit).args(["waypoint"]).args(args).args(["--namespace", "shop"]);
        let program = program.arg("--kubeconfig").arg(self.server.kubeconfig());
        Ok(process::run(None, &program, LIMIT)?)
    }

    /// What a kubelet would say of the only instance.
    fn ready(&self, ready: &str) -> anyhow::Result<()> {
        let status = json!({ "status": {
            "phase": "Running", "podIP": "10.0.0.9", "podIPs": [{ "ip": "10.0.0.9" }],
            "conditions": [{ "type": "Ready", "status": ready }],
        } });
        let patch = ["patch", "-n", "shop", "pod/gate-1", "--subresource=status", "--type=merge", "-p"];
        self.server.kubectl_ok(&[&patch[..], &[&status.to_string()]].concat())?;
        Ok(())
    }

    fn patch(&self, object: &str, patch: &Value) -> anyhow::Result<()> {
        self.server.kubectl_ok(&["patch", "-n", "shop", object, "--type=merge", "-p", &patch.to_string()])?;
        Ok(())
    }

    fn find(&self, object: &str) -> anyhow::Result<Option<Value>> {
        let text =
            self.server.kubectl_ok(&["get", "-n", "shop", object, "-o", "json", "--ignore-not-found"])?;
        Ok(if text.trim().is_empty() { None } else { Some(serde_json::from_str(&text)?) })
    }

    fn get(&self, object: &str) -> anyhow::Result<Value> {
        self.find(object)?.with_context(|| format!("there is no {object}"))
    }

    fn vanishes(&self, object: &str) -> anyhow::Result<()> {
        self.until(&format!("the end of {object}"), || Ok(self.find(object)?.is_none()))
    }

    fn becomes(&self, object: &str, field: &str, wanted: &str) -> anyhow::Result<()> {
        let mut last = Value::Null;
        let seen = self.until(&format!("{field} of {object}"), || {
            last = self.find(object)?.unwrap_or_default();
            let found = last.pointer(field).cloned().unwrap_or_default();
            Ok(found.as_str() == Some(wanted) || found.to_string() == wanted)
        });
        seen.with_context(|| format!("{object} is {last:#}, and {field} not {wanted:?}"))
    }

    fn until(&self, what: &str, mut probe: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        self.stop.until_every(PAUSE, LIMIT, what, || Ok(probe()?.then_some(())))
    }

    fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let file = self.server.log().with_file_name("objects.yaml");
        std::fs::write(&file, yaml)?;
        self.server.kubectl_ok(&["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }
}
