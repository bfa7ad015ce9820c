//! What an operator does with a cluster, against a real API server: takes namespaces in and out, checks, analyzes, and
//! reports a bug. No pod runs: the story writes what kubelets and agents would.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![expect(
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Output, Program};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

const TOWN: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: istio-system, labels: {k8s-app: ambit-cni-node}}
spec:
  nodeName: n1
  containers: [{name: agent, image: 'ambit/cni:0.1.0', env: [{name: API_TOKEN, value: a-very-secret-word}]}]
---
apiVersion: v1
kind: Secret
metadata: {name: istio-ca-secret, namespace: istio-system}
stringData: {ca-key.pem: another-very-secret-word}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  containers: [{name: web, image: web, readinessProbe: {httpGet: {port: 8080}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: n2, containers: [{name: far, image: far}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: host, image: host}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]
";

/// The API server takes it, and the mesh cannot use it.
const MISTAKE: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ports, namespace: shop}
spec: {rules: [{to: [{operation: {ports: ['http']}}]}]}
";

struct Scene {
    ambit: PathBuf,
    server: ApiServer,
}

#[test]
fn what_an_operator_does_with_a_cluster() -> anyhow::Result<()> {
    let Some(scene) = Scene::set()? else { return Ok(()) };
    scene.checks_before()?;
    scene.apply(TOWN)?;
    let ready =
        json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    scene.patch("istio-system", "agent", &ready, true)?;
    scene.namespaces()?;
    scene.mistakes()?;
    scene.report()?;
    let after = scene.run_ambit(&["check", "-o", "json"])?;
    ensure!(after.status.code() == Some(3), "without a mesh, checks have to fail: {}", after.stdout);
    scene.no_probe()?;
    Ok(())
}

impl Scene {
    fn set() -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs() else { return Ok(None) };
        let server = ApiServer::start(&programs, &Stop::default())?;
        let ambit = above("ambit").context("ambit is not built; run `cargo build --workspace --bins`")?;
        Ok(Some(Self { ambit, server }))
    }

    /// A cluster without nodes is none to install on; all else is in order.
    fn checks_before(&self) -> anyhow::Result<()> {
        let output = self.run_ambit(&["check", "--pre", "-o", "json"])?;
        ensure!(output.status.code() == Some(3), "{}{}", output.stdout, output.stderr);
        let checks: Value = serde_json::from_str(&output.stdout)?;
        let failed: Vec<_> = checks["checks"]
            .as_array()
            .context("a list of checks")?
            .iter()
            .filter(|check| check["verdict"] == "failure")
            .map(|check| check["name"].clone())
            .collect();
        ensure!(failed == ["node-systems"], "{checks:#}");
        Ok(())
    }

    /// A probe has to be asked for, and needs nodes.
    fn no_probe(&self) -> anyhow::Result<()> {
        for (args, word) in [
            (&["check", "-o", "json"][..], "asked for"),
            (&["check", "--probe", "-o", "json"], "no node is ready"),
        ] {
            let said: Value = serde_json::from_str(&self.run_ambit(args)?.stdout)?;
            let checks = said["checks"].as_array().context("a list of checks")?;
            let probe = checks.iter().find(|check| check["name"] == "probe").context("no probe")?;
            let reason = probe["reason"].as_str().unwrap_or_default();
            ensure!(probe["verdict"] == "skipped" && reason.contains(word), "{args:?}: {probe:#}");
        }
        Ok(())
    }

    fn namespaces(&self) -> anyhow::Result<()> {
        let preview = self.json(&["namespace", "add", "shop", "--preview", "-o", "json"])?;
        let report = &preview["before"][0];
        let outcomes: Vec<_> = report["pods"]
            .as_array()
            .context("a list of pods")?
            .iter()
            .map(|pod| (pod["pod"].as_str().unwrap_or_default(), pod["outcome"].as_str().unwrap_or_default()))
            .collect();
        ensure!(outcomes == [("far", "waits"), ("host", "out"), ("web", "joins")], "{report:#}");
        ensure!(self.label()?.is_empty(), "a preview changed something");

        // It would break traffic, so it is refused; with the very rule that is named, it is not.
        let refused = self.run_ambit(&["namespace", "add", "shop"])?;
        ensure!(refused.status.code() == Some(1) && self.label()?.is_empty(), "{}", refused.stdout);
        let rule = report["notes"][0]["add"]["ingress"][0].clone();
        ensure!(rule["ports"][0]["port"] == 15008, "{report:#}");
        let add = json!([{ "op": "add", "path": "/spec/ingress/-", "value": rule }]).to_string();
        self.kubectl(&["-n", "shop", "patch", "networkpolicy", "clients", "--type=json", "-p", &add])?;
        let added = self.json(&["namespace", "add", "shop", "-o", "json"])?;
        ensure!(added["changed"] == true && self.label()? == "ambient", "{added:#}");

        // As the agent does; then everybody is through who can be.
        let captured =
            json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } } });
        self.patch("shop", "web", &captured, false)?;
        let waited = self.json(&["namespace", "add", "shop", "--wait", "--timeout", "30", "-o", "json"])?;
        ensure!(waited["after"][0]["pods"][2]["outcome"] == "in", "{waited:#}");
        let listed = self.json(&["namespace", "list", "-o", "json"])?;
        ensure!(
            listed.as_array().is_some_and(|all| all.len() == 1) && listed[0]["namespace"] == "shop",
            "{listed:#}"
        );

        // Nobody takes the pod out here: the wait has an end, and says who is late.
        let late = self.run_ambit(&["namespace", "remove", "shop", "--wait", "--timeout", "1"])?;
        ensure!(
            late.status.code() == Some(1) && late.stdout.contains("shop/web leaves still"),
            "{}",
            late.stdout
        );
        ensure!(self.label()?.is_empty(), "the label is still there");
        let none = self.run_ambit(&["namespace", "add", "nowhere"])?;
        ensure!(none.stderr.contains("no namespace nowhere"), "{}", none.stderr);
        Ok(())
    }

    fn mistakes(&self) -> anyhow::Result<()> {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/crds");
        let kind = crds.join("security.istio.io_authorizationpolicies.yaml").display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &kind])?;
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/authorizationpolicies.security.istio.io",
        ])?;
        ensure!(self.run_ambit(&["analyze"])?.status.success(), "there is no mistake yet");
        self.apply(MISTAKE)?;
        let found = self.run_ambit(&["analyze"])?;
        ensure!(
            found.status.code() == Some(1)
                && found.stdout.contains("AuthorizationPolicy shop/ports: spec.rules[0]"),
            "{}{}",
            found.stdout,
            found.stderr
        );
        ensure!(
            self.run_ambit(&["analyze", "--namespace", "default"])?.status.success(),
            "that is of another namespace"
        );
        Ok(())
    }

    /// Everything is in it, and no secret.
    fn report(&self) -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("report.tar.gz");
        let name = file.display().to_string();
        let said = self.run_ambit(&["bug-report", "--output", &name])?;
        ensure!(said.status.success(), "{}{}", said.stdout, said.stderr);
        let mode = file.metadata()?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "others can read it: {mode:o}");
        let tar = Program::new("tar").args(["-xzf", &name, "-C"]).arg(dir.path());
        ensure!(process::run(None, &tar, LIMIT)?.status.success(), "it is no archive");
        let root = dir.path().join("ambit-bug-report");
        for part in [
            "README.txt",
            "check.json",
            "versions.json",
            "objects/pods.yaml",
            "objects/authorizationpolicies.yaml",
        ] {
            ensure!(root.join(part).is_file(), "{part} is not in it:\n{}", said.stdout);
        }
        let search = Program::new("grep").args(["-rl", "very-secret-word"]).arg(&root);
        let leaked = process::run(None, &search, LIMIT)?.stdout;
        ensure!(leaked.is_empty(), "secrets are in {leaked}");
        ensure!(
            std::fs::read_to_string(root.join("objects/pods.yaml"))?.contains("API_TOKEN"),
            "the name is gone too"
        );
        let again = self.run_ambit(&["bug-report", "--output", &name])?;
        ensure!(again.status.code() == Some(1), "it was written over");
        Ok(())
    }

    fn label(&self) -> anyhow::Result<String> {
        self.kubectl(&[
            "get",
            "namespace",
            "shop",
            "-o",
            r"jsonpath={.metadata.labels.istio\.io/dataplane-mode}",
        ])
    }

    fn patch(&self, namespace: &str, pod: &str, patch: &Value, status: bool) -> anyhow::Result<()> {
        let patch = patch.to_string();
        let mut args = vec!["-n", namespace, "patch", "pod", pod, "--type=merge", "-p", &patch];
        if status {
            args.push("--subresource=status");
        }
        self.kubectl(&args).map(drop)
    }

    fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.run_ambit(args)?;
        ensure!(output.status.success(), "ambit {args:?}: {}{}", output.stdout, output.stderr);
        serde_json::from_str(&output.stdout).with_context(|| format!("ambit {args:?} gave no JSON"))
    }

    fn run_ambit(&self, args: &[&str]) -> anyhow::Result<Output> {
        let program = Program::new(&self.ambit).args(args).arg("--kubeconfig").arg(self.server.kubeconfig());
        Ok(process::run(None, &program, LIMIT)?)
    }

    fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.server.kubectl_ok(args)
    }

    fn apply(&self, text: &str) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        self.kubectl(&["apply", "-f", &file.path().display().to_string()]).map(drop)
    }
}
