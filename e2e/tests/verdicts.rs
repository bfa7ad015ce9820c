//! What users are told of their objects, by a real API server: conditions on them, and refusals of the webhook; by
//! whichever of two controllers leads.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]

use std::path::Path;
use std::time::Duration;

use ambit_e2e::api_server::{ApiServer, above, free_port, programs};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{Output, Process, Program};
use anyhow::{Context as _, ensure};

/// A lease that nobody empties is taken over after fifteen seconds.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// How often to ask `kubectl`, which takes a processor for a while.
const PAUSE: Duration = Duration::from_millis(250);

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, labels: {istio.io/use-waypoint: gate}}
spec: {ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: seven, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: wrong, namespace: default}
spec: {rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]}
";

const OTHER: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: other, namespace: default}
spec: {rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]}
";

/// It says where the webhook is, instead of naming a Service: nobody makes endpoints here.
fn webhook(port: u16) -> String {
    format!(
        "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: ambit-validator-istio-system}}
webhooks:
- name: validation.ambit.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  clientConfig: {{url: 'https://127.0.0.1:{port}/validate'}}
  rules:
  - operations: [CREATE, UPDATE]
    apiGroups: [security.istio.io, networking.istio.io]
    apiVersions: ['*']
    resources: ['*']
"
    )
}

#[test]
fn users_are_told_what_became_of_their_objects_whoever_leads() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    let stop = Stop::default();
    let server = ApiServer::start(&programs, &stop)?;
    let scene = Scene { stop, server };
    scene.tell()
}

struct Scene {
    stop: Stop,
    server: ApiServer,
}

impl Scene {
    fn tell(&self) -> anyhow::Result<()> {
        let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/crds");
        self.server.define(&definitions, &self.stop)?;
        self.kubectl(&["create", "namespace", "istio-system"])?;
        // All of this before anybody judges it.
        self.apply(OBJECTS)?;
        let (first, port) = self.controller("first")?;
        self.apply(&webhook(port))?;

        self.conditions("service/web", "istio.io/WaypointBound=False WaypointIsNotReady")?;
        self.conditions("authorizationpolicy/seven", "ZtunnelAccepted=True UnsupportedValue")?;
        self.conditions("authorizationpolicy/wrong", "ZtunnelAccepted=False Invalid")?;

        // The API server knows the root, and insists on an answer.
        let field = "{.webhooks[0].failurePolicy}";
        let name = "validatingwebhookconfiguration/ambit-validator-istio-system";
        self.becomes(name, field, "Fail")?;
        let refused = self.try_apply(OTHER)?;
        ensure!(!refused.status.success(), "it was let in");
        for part in ["validation.ambit.io", "spec.rules[0].from[0].source.ipBlocks[0]", "10.0.0.0/8"] {
            ensure!(refused.stderr.contains(part), "no {part:?} in {}", refused.stderr);
        }
        // What is there already can still be labelled, and corrected.
        let labelled = self.server.kubectl(&["label", "authorizationpolicy/wrong", "a=b"])?;
        ensure!(labelled.status.success() && labelled.stderr.contains("nowhere"), "{}", labelled.stderr);
        let better = r#"{"spec":{"rules":[{"from":[{"source":{"ipBlocks":["10.0.0.1"]}}]}]}}"#;
        self.kubectl(&["patch", "authorizationpolicy/wrong", "--type=merge", "-p", better])?;
        self.conditions("authorizationpolicy/wrong", "ZtunnelAccepted=True Accepted")?;

        // The tunnels' condition leaves when the waypoint's comes, which says that there is no waypoint yet.
        let attached = r#"{"spec":{"targetRefs":[{"group":"","kind":"Service","name":"web"}]}}"#;
        self.kubectl(&["patch", "authorizationpolicy/seven", "--type=merge", "-p", attached])?;
        self.conditions("authorizationpolicy/seven", "WaypointAccepted=False AncestorNotBound")?;

        // Killed, it empties no lease; the other finds what was written, and takes away what no longer holds.
        let (_second, _) = self.controller("second")?;
        let version = "{.metadata.resourceVersion}";
        let before = self.field("authorizationpolicy/wrong", version)?;
        drop(first);
        self.kubectl(&["label", "service/web", "istio.io/use-waypoint-"])?;
        self.conditions("service/web", "")?;
        let after = self.field("authorizationpolicy/wrong", version)?;
        ensure!(before == after, "what was right was written again");
        Ok(())
    }

    /// A controller, and the port of its webhook. It is killed when it is dropped.
    fn controller(&self, name: &str) -> anyhow::Result<(Process, u16)> {
        let program = above("controller").context("run `cargo build --workspace --bins`")?;
        let webhook = free_port()?;
        let program = Program::new(program)
            .env("KUBECONFIG", self.server.kubeconfig())
            .env("POD_NAME", name)
            .args(["--source", "kubernetes", "--admin", &format!("127.0.0.1:{}", free_port()?)])
            .args(["--listen", &format!("127.0.0.1:{}", free_port()?)])
            .args(["--webhook", &format!("127.0.0.1:{webhook}")]);
        let log = self.server.log().with_file_name(format!("{name}.log"));
        Ok((Process::start(None, &program, &log)?, webhook))
    }

    fn conditions(&self, object: &str, wanted: &str) -> anyhow::Result<()> {
        let all = "{range .status.conditions[*]}{.type}={.status} {.reason}{end}";
        self.becomes(object, all, wanted)
    }

    fn becomes(&self, object: &str, path: &str, wanted: &str) -> anyhow::Result<()> {
        let mut last = String::new();
        let until = self.stop.until_every(PAUSE, TAKE_OVER, "the wanted state", || {
            last = self.field(object, path)?;
            Ok((last == wanted).then_some(()))
        });
        until.with_context(|| format!("{object} is {last:?}, not {wanted:?}"))
    }

    fn field(&self, object: &str, path: &str) -> anyhow::Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.server.kubectl_ok(args)
    }

    fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let output = self.try_apply(yaml)?;
        ensure!(output.status.success(), "{}", output.stderr);
        Ok(())
    }

    fn try_apply(&self, yaml: &str) -> anyhow::Result<Output> {
        let file = self.server.log().with_file_name("objects.yaml");
        std::fs::write(&file, yaml)?;
        self.server.kubectl(&["apply", "-f", &file.display().to_string()])
    }
}
