//! `ambit install`, `upgrade` and `uninstall` against a real API server. No pod runs: a stand-in says that all are ready.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Output, Process, Program};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(150);
/// Kinds in which something of ours may be left.
const KINDS: &str = "all,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,configmaps,secrets,leases,\
    networkpolicies,poddisruptionbudgets,resourcequotas,horizontalpodautoscalers,validatingwebhookconfigurations,\
    validatingadmissionpolicies,validatingadmissionpolicybindings,crds";
/// Of an Istio that is there: it knows nothing of ours.
const FOREIGN: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: peerauthentications.security.istio.io, labels: {app.kubernetes.io/part-of: istio}}
spec:
  group: security.istio.io
  names: {kind: PeerAuthentication, listKind: PeerAuthenticationList, plural: peerauthentications, singular: peerauthentication}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";
/// With a condition that this version does not know: it must be kept, for the controller to refuse it.
const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: default}
spec: {action: DENY, rules: [{from: [{source: {principals: [a], shoeSizes: ['43']}}]}], selector: {matchLabels: {app: web}}}
";
/// What controllers leave while they run.
const LEFT: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio-ca-root-cert, namespace: default, labels: {app.kubernetes.io/managed-by: ambit}}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: ambit-leader, namespace: istio-system}
---
apiVersion: v1
kind: Secret
metadata: {name: istio-ca-secret, namespace: istio-system, labels: {app.kubernetes.io/managed-by: ambit}}
type: istio.io/ca-root
";

struct Scene {
    ambit: PathBuf,
    stop: Stop,
    server: ApiServer,
    _controllers: Process,
}

/// What the controller writes into each of its webhooks: its root, and this.
fn roots(more: &Value) -> String {
    let names = ["validation.ambit.io", "routes.validation.ambit.io", "virtualservices.validation.ambit.io"];
    let webhooks = names.map(|name| {
        let mut webhook = json!({ "name": name, "clientConfig": { "caBundle": "Cg==" } });
        if let (Some(webhook), Some(more)) = (webhook.as_object_mut(), more.as_object()) {
            webhook.extend(more.clone());
        }
        webhook
    });
    json!({ "webhooks": webhooks }).to_string()
}

#[test]
fn what_is_installed_is_upgraded_and_taken_away_without_a_trace() -> anyhow::Result<()> {
    let Some(scene) = Scene::set()? else { return Ok(()) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stand_in = scope.spawn(|| scene.say_that_all_is_ready(&done));
        let told = scene.tell();
        done.store(true, Ordering::Relaxed);
        let stood_in = stand_in.join().map_err(|_| anyhow::anyhow!("the stand-in panicked"))?;
        told.and(stood_in)
    })
}

#[test]
fn helm_installs_upgrades_goes_back_and_leaves_what_is_not_its_own() -> anyhow::Result<()> {
    let Some(helm) = above("tools/kubernetes/helm") else {
        eprintln!("SKIPPED: Helm is not built; see e2e/kubernetes/programs/helm");
        return Ok(());
    };
    let Some(scene) = Scene::set()? else { return Ok(()) };
    scene.apply(FOREIGN)?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/charts/ambit").display().to_string();
    let run = |args: &[&str]| -> anyhow::Result<String> {
        let helm = Program::new(&helm).args(args).args(["--namespace", "istio-system", "--kubeconfig"]);
        let output = process::run(None, &helm.arg(scene.server.kubeconfig()), LIMIT)?;
        ensure!(output.status.success(), "helm {args:?}: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    };
    let notes = run(&["install", "mesh", &chart, "--create-namespace"])?;
    ensure!(notes.contains("istio.io/dataplane-mode=ambient"), "{notes}");
    let foreign = "crd/peerauthentications.security.istio.io";
    ensure!(
        scene.field(foreign, "{.metadata.labels.app\\.kubernetes\\.io/part-of}")? == "istio",
        "it was overwritten"
    );
    let ours = scene.field(
        "crd/serviceentries.networking.istio.io",
        "{.metadata.labels.app\\.kubernetes\\.io/part-of}",
    )?;
    ensure!(ours == "ambit", "{ours}");
    // As the controller does, when it runs.
    let webhook = "validatingwebhookconfiguration/ambit-validator-istio-system";
    let roots = roots(&json!({ "failurePolicy": "Ignore" }));
    scene.kubectl(&["patch", webhook, "--type=strategic", "--field-manager=ambit-webhook", "-p", &roots])?;
    let level = "{.spec.template.spec.containers[0].env[?(@.name=='RUST_LOG')].value}";
    run(&["upgrade", "mesh", &chart, "--set", "global.logLevel=debug,cni.enabled=false"])?;
    ensure!(scene.field("daemonset/ztunnel", level)? == "debug", "nothing was upgraded");
    run(&["rollback", "mesh", "1"])?;
    ensure!(scene.field("daemonset/ztunnel", level)? == "info", "it did not go back");
    scene.field("daemonset/ambit-cni-node", "{.metadata.name}")?;
    let kept = scene.field(webhook, "{.webhooks[0].clientConfig.caBundle}{.webhooks[0].failurePolicy}")?;
    ensure!(kept == "Cg==Ignore", "what the controller wrote was taken back: {kept}");
    let both = scene.fails(&["install", "--yes"])?;
    ensure!(both.contains("belongs to the Helm release mesh"), "{both}");
    run(&["uninstall", "mesh"])?;
    let left = scene.kubectl(&[
        "get",
        KINDS,
        "--all-namespaces",
        "-l",
        "app.kubernetes.io/part-of=ambit",
        "-o",
        "name",
    ])?;
    let other = left.lines().find(|line| !line.starts_with("customresourcedefinition."));
    ensure!(other.is_none() && left.lines().count() >= 12, "left behind, or definitions taken away: {left}");
    // The definitions that it left are no obstacle to the next.
    run(&["install", "mesh", &chart])?;
    Ok(())
}

impl Scene {
    /// An API server with what collects garbage and ends namespaces; no pod is made.
    fn set() -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs() else { return Ok(None) };
        let stop = Stop::default();
        let server = ApiServer::start(&programs, &stop)?;
        let ambit = above("ambit").context("ambit is not built; run `cargo build --workspace --bins`")?;
        let controllers = Program::new(programs.join("kubernetes"))
            .args(["kube-controller-manager", "--leader-elect=false", "--secure-port=0", "--kubeconfig"])
            .arg(server.kubeconfig())
            .arg("--controllers=garbage-collector-controller,namespace-controller");
        let controllers =
            Process::start(None, &controllers, &server.log().with_file_name("controllers.log"))?;
        Ok(Some(Self { ambit, stop, server, _controllers: controllers }))
    }

    fn tell(&self) -> anyhow::Result<()> {
        self.apply(FOREIGN)?;
        let said = self.ambit(&[
            "install",
            "--yes",
            "--set",
            "global.logLevel=debug,controller.validation.enabled=false",
        ])?;
        for line in [
            "+ Deployment istio-system/ambit-controller",
            "CustomResourceDefinition peerauthentications.security.istio.io is there already, and not Ambit's",
            "DaemonSet istio-system/ztunnel: ready",
            "is installed in istio-system",
            "istio.io/dataplane-mode=ambient",
        ] {
            ensure!(said.contains(line), "no {line:?} in\n{said}");
        }
        self.definitions_hold()?;

        let again = self.fails(&["install", "--yes"])?;
        ensure!(again.contains("ambit upgrade"), "{again}");
        let same = self.ambit(&["upgrade", "--dry-run"])?;
        ensure!(same.contains("Nothing has to change"), "{same}");

        // By hand.
        self.kubectl(&["-n", "istio-system", "scale", "deployment/ambit-controller", "--replicas=7"])?;
        let differs = self.ambit(&["upgrade", "--dry-run"])?;
        ensure!(differs.contains("-  replicas: 7\n+  replicas: 2\n"), "{differs}");
        ensure!(
            self.field("deployment/ambit-controller", "{.spec.replicas}")? == "7",
            "a dry run changed something"
        );

        let upgraded = self.ambit(&[
            "upgrade",
            "--yes",
            "--set",
            "cni.enabled=false,controller.validation.enabled=true",
        ])?;
        for line in [
            "- DaemonSet istio-system/ambit-cni-node",
            "+ ValidatingWebhookConfiguration ambit-validator-istio-system",
        ] {
            ensure!(upgraded.contains(line), "no {line:?} in\n{upgraded}");
        }
        ensure!(
            self.field("deployment/ambit-controller", "{.spec.replicas}")? == "2",
            "what was changed by hand stays"
        );
        let level = self.field(
            "daemonset/ztunnel",
            "{.spec.template.spec.containers[0].env[?(@.name=='RUST_LOG')].value}",
        )?;
        ensure!(level == "debug", "what was said at first is forgotten: {level}");
        let gone = self.kubectl(&["-n", "istio-system", "get", "daemonsets", "-o", "name"])?;
        ensure!(gone.trim() == "daemonset.apps/ztunnel", "{gone}");

        let second = self.fails(&["install", "--yes", "--revision", "v2"])?;
        ensure!(second.contains("--profile canary"), "{second}");
        self.ambit(&["install", "--yes", "--revision", "v2", "--profile", "canary"])?;
        self.kubectl(&["-n", "istio-system", "get", "service/istiod-v2", "deployment/ambit-controller-v2"])?;
        self.ambit(&["uninstall", "--yes", "--revision", "v2"])?;
        let left = self.kubectl(&["-n", "istio-system", "get", "deployments", "-o", "name"])?;
        ensure!(left.trim() == "deployment.apps/ambit-controller", "{left}");

        self.apply(LEFT)?;
        self.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode=ambient"])?;
        let nobody = self.fails(&["uninstall"])?;
        ensure!(nobody.contains("--yes"), "{nobody}");
        self.ambit(&["uninstall", "--yes", "--purge", "--purge-crds"])?;
        let left = self.kubectl(&[
            "get",
            KINDS,
            "--all-namespaces",
            "-l",
            "app.kubernetes.io/part-of=ambit",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
        let left = self.kubectl(&[
            "get",
            KINDS,
            "--all-namespaces",
            "-l",
            "app.kubernetes.io/managed-by=ambit",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
        let namespaces = self.kubectl(&["get", "namespaces", "-o", "name"])?;
        ensure!(!namespaces.contains("istio-system"), "{namespaces}");
        let labelled = self.kubectl(&["get", "namespaces", "-l", "istio.io/dataplane-mode", "-o", "name"])?;
        ensure!(labelled.trim().is_empty(), "{labelled}");
        let definitions = self.kubectl(&["get", "crds", "-o", "name"])?;
        let kept = "customresourcedefinition.apiextensions.k8s.io/peerauthentications.security.istio.io";
        ensure!(definitions.trim() == kept, "{definitions}");
        Ok(())
    }

    /// The API server takes the definitions, keeps what they do not know, and refuses what nobody could read.
    fn definitions_hold(&self) -> anyhow::Result<()> {
        let listed = self.kubectl(&["get", "crds", "-o", "json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        for one in listed["items"].as_array().context("a list")? {
            let conditions = one["status"]["conditions"].as_array().context("conditions")?;
            let bad = conditions
                .iter()
                .find(|one| one["type"] == "NonStructuralSchema" || one["status"] == "False");
            ensure!(bad.is_none(), "{}: {bad:?}", one["metadata"]["name"]);
        }
        self.apply(POLICY)?;
        let kept = self.kubectl(&[
            "-n",
            "default",
            "get",
            "authorizationpolicies.v1beta1.security.istio.io",
            "p",
            "-o",
            "json",
        ])?;
        let kept: Value = serde_json::from_str(&kept)?;
        ensure!(kept["spec"]["rules"][0]["from"][0]["source"]["shoeSizes"] == json!(["43"]), "{kept:#}");
        let wrong = self.try_apply(&POLICY.replace("DENY", "MAYBE"))?;
        ensure!(wrong.stderr.contains("spec.action"), "{}", wrong.stderr);
        self.kubectl(&["-n", "default", "delete", "ap", "p"])?;
        Ok(())
    }

    /// Instead of controllers and kubelets, until it is done.
    fn say_that_all_is_ready(&self, done: &AtomicBool) -> anyhow::Result<()> {
        self.stop.until(Duration::from_secs(600), "the end of the story", || {
            let listed = self.kubectl(&["get", "deployments,daemonsets", "--all-namespaces", "-o", "json"])?;
            let listed: Value = serde_json::from_str(&listed)?;
            for one in listed["items"].as_array().into_iter().flatten() {
                let generation = &one["metadata"]["generation"];
                let text = |path: &str| one.pointer(path).and_then(Value::as_str).unwrap_or_default();
                let count = &one["spec"]["replicas"];
                if &one["status"]["observedGeneration"] == generation || one["metadata"].get("deletionTimestamp").is_some() {
                    continue;
                }
                let status = if text("/kind") == "Deployment" {
                    json!({ "observedGeneration": generation, "replicas": count, "updatedReplicas": count, "readyReplicas": count, "availableReplicas": count })
                } else {
                    json!({ "observedGeneration": generation, "currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2, "updatedNumberScheduled": 2, "numberAvailable": 2 })
                };
                let patch = json!({ "status": status }).to_string();
                let name = format!("{}/{}", text("/kind").to_lowercase(), text("/metadata/name"));
                // It may have gone meanwhile.
                let _ = self.server.kubectl(&["-n", text("/metadata/namespace"), "patch", &name, "--subresource=status", "--type=merge", "-p", &patch])?;
            }
            // As the controller does.
            let webhooks = ["get", "validatingwebhookconfigurations", "-o", "jsonpath={.items[*].metadata.name}"];
            for name in self.kubectl(&webhooks)?.split_whitespace().filter(|name| name.starts_with("ambit-")) {
                let roots = roots(&json!({}));
                let patch = ["--type=strategic", "--field-manager=ambit-webhook", "-p", &roots];
                // It may have gone meanwhile.
                let _ = self.server.kubectl(&[&["patch", "validatingwebhookconfiguration", name][..], &patch].concat())?;
            }
            // Each look starts a program, and the story needs the processors more.
            std::thread::park_timeout(Duration::from_millis(500));
            Ok(done.load(Ordering::Relaxed).then_some(()))
        })
    }

    fn ambit(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.run_ambit(args)?;
        ensure!(output.status.success(), "ambit {args:?}: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }

    fn fails(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.run_ambit(args)?;
        ensure!(!output.status.success(), "ambit {args:?} did it: {}", output.stdout);
        Ok(output.stderr)
    }

    fn run_ambit(&self, args: &[&str]) -> anyhow::Result<Output> {
        let program = Program::new(&self.ambit).args(args).arg("--kubeconfig").arg(self.server.kubeconfig());
        Ok(process::run(None, &program, LIMIT)?)
    }

    fn field(&self, object: &str, path: &str) -> anyhow::Result<String> {
        self.kubectl(&["-n", "istio-system", "get", object, "-o", &format!("jsonpath={path}")])
    }

    fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.server.kubectl_ok(args)
    }

    fn apply(&self, text: &str) -> anyhow::Result<()> {
        let output = self.try_apply(text)?;
        ensure!(output.status.success(), "kubectl apply: {}", output.stderr);
        Ok(())
    }

    fn try_apply(&self, text: &str) -> anyhow::Result<Output> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        self.server.kubectl(&["apply", "-f", &file.path().display().to_string()])
    }
}
