//! The life of a mesh in a real cluster, from `ambit install` to `ambit uninstall`, step by step. What README says of the
//! five minutes is what the first steps do.

use std::time::{Duration, Instant};

use ambit_e2e::kubernetes::{Cluster, story};
use ambit_e2e::telling::{Evidence, Telling};
use ambit_e2e::wait::Stop;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::readme;
use crate::rights;
use crate::scene::{self, Load, SYSTEM, Scene, client_is};

const SHOP: &str = "shop";
const OUTSIDE: &str = "outside";
const SOON: Duration = Duration::from_secs(60);
const ROLLED: Duration = Duration::from_secs(180);
/// What a pod may take to join. The issue of it is a second; on two cores with a debug build and two kubelets, more.
const JOINED: Duration = Duration::from_secs(10);

type Tell = fn(&Scene<'_>, &mut Evidence<'_>) -> anyhow::Result<()>;

const STEPS: [(&str, Tell); 17] = [
    ("One command installs the mesh", install),
    ("A label takes running pods in, and none is restarted", join),
    ("Traffic between them is mutual TLS", mutual_tls),
    ("Probes work although plain text is refused", probes),
    ("New pods are in the mesh from their first packet; a Job ends", new_pods),
    ("A policy is in force within seconds, and taken back", policy),
    ("What cannot be enforced is refused by the webhook", webhook),
    ("The node agent is restarted: nobody notices", agent),
    ("Tunnels are rolled out under load: no new connection fails", tunnels),
    ("The API server is down for two minutes: nobody notices", api_server),
    ("A second revision of the controller takes over, and gives back", revisions),
    ("The command says that all is well", checks),
    ("It sends a call from node to node, and leaves nothing behind", probe),
    ("Without the label, pods leave and go on", leave),
    ("No account has a right that it has no use for", rights),
    ("Uninstalling leaves nothing", uninstall),
    ("Pods that were in the mesh are not broken", afterwards),
];

#[test]
fn a_mesh_lives_in_a_real_cluster() -> anyhow::Result<()> {
    story(|cluster| {
        let scene = Scene::set(cluster)?;
        let told = tell(&scene);
        let cleared = scene.clear(&[SHOP, OUTSIDE]);
        told.and(cleared)
    })
}

fn tell(scene: &Scene<'_>) -> anyhow::Result<()> {
    let mut telling = Telling::aloud(Stop::default());
    for (title, tell) in STEPS {
        telling.step(title, |seen| {
            tell(scene, seen).map_err(|error| {
                let system = scene.kubectl().evidence(SYSTEM);
                error.context(format!("{}\n{system}", scene.kubectl().evidence(SHOP)))
            })
        });
        // Later steps build on earlier ones.
        if telling.outcomes().iter().any(|outcome| outcome.failure.is_some()) {
            break;
        }
    }
    ensure!(telling.verdict(STEPS.len()), "a step did not hold; see above");
    Ok(())
}

fn install(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    // Pods that are there before the mesh is.
    for namespace in [SHOP, OUTSIDE] {
        scene.kubectl().fresh_namespace(namespace)?;
        scene.kubectl().apply(&scene::town(namespace))?;
    }
    for workload in ["deployment/web", "statefulset/db"] {
        scene.kubectl().rolled_out(SHOP, workload, ROLLED)?;
    }
    for namespace in [SHOP, OUTSIDE] {
        scene.client_runs(namespace)?;
    }
    // Another story may have stopped what answers for names a moment ago.
    scene.until(SHOP, SOON, "answers without a mesh", || Ok(scene.calls(SHOP, "http://web/", 5).ok()))?;
    scene.ambit(&["check", "--pre"])?;
    let begun = Instant::now();
    scene.install(&[])?;
    seen.saw(format!("installed in {:.0?}", begun.elapsed()));
    let ready = scene.field(SYSTEM, &["daemonset/ztunnel"], "/status/numberReady")?;
    ensure!(ready == "2", "{ready} of 2 tunnels are ready");
    scene.calls(SHOP, "http://web/", 5)
}

fn join(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let before = scene.pods(SHOP)?;
    let preview = scene.ambit(&["namespace", "add", SHOP, "--preview"])?;
    ensure!(preview.contains("web-"), "the preview does not name pods: {preview}");
    let begun = Instant::now();
    scene.ambit(&["namespace", "add", SHOP])?;
    scene.until(SHOP, JOINED, "every pod's joining", || Ok(scene.all_captured(SHOP)?.then_some(())))?;
    seen.saw(format!("{} pods joined within {:.1?}", before.len(), begun.elapsed()));
    let after = scene.pods(SHOP)?;
    ensure!(
        before.iter().all(|pod| after.iter().any(|now| now.uid == pod.uid && now.restarts == pod.restarts)),
        "a pod was restarted: {before:?} {after:?}"
    );
    scene.calls(SHOP, "http://web/", 10)?;
    scene.calls(SHOP, "http://db-0.db:8080/", 2)
}

fn mutual_tls(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.kubectl().apply(&readme::manifest())?;
    let url = format!("http://web.{SHOP}/");
    scene.until(SHOP, SOON, "the refusal of plain text", || {
        Ok(scene.call(OUTSIDE, &url).is_err().then_some(()))
    })?;
    scene.ambit(&["status"])?;
    scene.calls(SHOP, "http://web/", 10)?;
    let identity = format!("spiffe://cluster.local/ns/{SHOP}/sa/default");
    let line = scene.until(SYSTEM, SOON, "a line of the access log with both identities", || {
        let log = scene.logs("daemonset/ztunnel")?;
        let is_mutual = |line: &&str| {
            client_is(line, &identity) && line.contains(&format!("dst.identity=\"{identity}\""))
        };
        Ok(log.lines().find(is_mutual).map(str::to_owned))
    })?;
    seen.saw(line);
    Ok(())
}

fn probes(scene: &Scene<'_>, _: &mut Evidence<'_>) -> anyhow::Result<()> {
    // New pods are ready only if kubelet's probes reach them.
    scene.kubectl().ok(&["-n", SHOP, "scale", "deployment/web", "--replicas=4"])?;
    scene.kubectl().rolled_out(SHOP, "deployment/web", ROLLED)?;
    let restarts: Vec<_> = scene.pods(SHOP)?.into_iter().filter(|pod| pod.restarts > 0).collect();
    ensure!(restarts.is_empty(), "probes failed, and kubelet restarted {restarts:?}");
    Ok(())
}

fn new_pods(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.kubectl().apply(&scene::job(SHOP, "once", &format!("http://web.{SHOP}/")))?;
    let ended = scene.until(SHOP, SOON, "the end of the Job", || {
        // It is said to have succeeded before it is said to be complete.
        let is_over = |said: &String| ["\"Complete\"", "\"Failed\""].iter().any(|end| said.contains(end));
        Ok(scene.field(SHOP, &["job/once"], "/status/conditions").ok().filter(is_over))
    })?;
    ensure!(ended.contains("\"Complete\""), "the Job did not complete: {ended}");
    // Only the mesh could let it through: plain text is refused.
    seen.saw("its only call needed mutual TLS, and was made at once");
    scene.kubectl().ok(&["-n", SHOP, "delete", "job/once"])?;
    scene.kubectl().ok(&["-n", SHOP, "scale", "deployment/web", "--replicas=2"])?;
    scene.kubectl().rolled_out(SHOP, "deployment/web", ROLLED)
}

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/default]}}]}]
";

fn policy(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let begun = Instant::now();
    scene.kubectl().apply(DENY)?;
    scene.until(SHOP, SOON, "the denial", || Ok(scene.call(SHOP, "http://web/").is_err().then_some(())))?;
    seen.saw(format!("denied within {:.1?}", begun.elapsed()));
    let accepted = scene.until(SHOP, SOON, "the condition of the policy", || {
        let conditions = scene.field(SHOP, &["authorizationpolicy/nobody"], "/status/conditions/0/type");
        Ok(conditions.ok())
    })?;
    ensure!(accepted == "ZtunnelAccepted", "the policy carries {accepted}");
    scene.kubectl().ok(&["-n", SHOP, "delete", "authorizationpolicy/nobody"])?;
    scene.until(SHOP, SOON, "the end of the denial", || Ok(scene.call(SHOP, "http://web/").ok()))?;
    Ok(())
}

fn webhook(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let bad = DENY.replace("action: DENY", "action: CUSTOM");
    let refusal = scene.until(SYSTEM, SOON, "a refusal", || Ok(scene.kubectl().apply(&bad).err()))?;
    let refusal = format!("{refusal:#}");
    // An object that was let in before the webhook was registered is none of a later step's business.
    scene.kubectl().ok(&["-n", SHOP, "delete", "authorizationpolicy/nobody", "--ignore-not-found"])?;
    ensure!(refusal.contains("denied the request"), "not the webhook's word: {refusal}");
    seen.saw(refusal.lines().find(|line| line.contains("denied")).unwrap_or_default());
    Ok(())
}

fn agent(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let load = Load::start(scene, SHOP, "http://web/", 20)?;
    scene.kubectl().ok(&["-n", SYSTEM, "rollout", "restart", "daemonset/ambit-cni-node"])?;
    // A pod that is made meanwhile is captured, or not started.
    scene.kubectl().ok(&["-n", SHOP, "delete", "pod", "db-0", "--wait=false"])?;
    scene.kubectl().rolled_out(SYSTEM, "daemonset/ambit-cni-node", ROLLED)?;
    scene.kubectl().rolled_out(SHOP, "statefulset/db", ROLLED)?;
    scene.until(SHOP, SOON, "every pod's joining", || Ok(scene.all_captured(SHOP)?.then_some(())))?;
    scene.calls(SHOP, "http://db-0.db:8080/", 2)?;
    seen.saw(load.finish_without_failure()?);
    Ok(())
}

fn tunnels(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let load = Load::start(scene, SHOP, "http://web/", 20)?;
    scene.kubectl().ok(&["-n", SYSTEM, "rollout", "restart", "daemonset/ztunnel"])?;
    scene.kubectl().rolled_out(SYSTEM, "daemonset/ztunnel", ROLLED)?;
    // New ones serve; the old ones go on with what they began, and then end.
    scene.until(SYSTEM, ROLLED, "the end of the old tunnels", || {
        let pods = scene.kubectl().get(SYSTEM, &["pods", "-l", "app=ztunnel"])?.context("no list")?;
        Ok(pods["items"].as_array().is_some_and(|pods| pods.len() == 2).then_some(()))
    })?;
    seen.saw(load.finish_without_failure()?);
    Ok(())
}

fn api_server(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const DOWN: Duration = Duration::from_secs(120);
    let pods = scene.addresses(SHOP, "web")?;
    let address = pods.first().context("no server")?;
    let url = format!("http://{address}:8080/");
    let outcome = scene.load_past_the_api_server(SHOP, &url, DOWN, || scene.cluster.stop_api_server());
    scene.cluster.start_api_server()?;
    seen.saw(outcome?);
    // The cluster itself takes a while to lead there again, and it is not its time that is limited below.
    scene.until(SHOP, ROLLED, "the way to the API server", || scene.reaches_the_api_server())?;
    for workload in ["daemonset/ztunnel", "daemonset/ambit-cni-node", "deployment/ambit-controller"] {
        scene.kubectl().rolled_out(SYSTEM, workload, ROLLED)?;
    }
    // News gets through again.
    scene.kubectl().apply(DENY)?;
    scene.until(SHOP, SOON, "the denial", || Ok(scene.call(SHOP, "http://web/").is_err().then_some(())))?;
    scene.kubectl().ok(&["-n", SHOP, "delete", "authorizationpolicy/nobody"])?;
    scene.until(SHOP, SOON, "the end of the denial", || Ok(scene.call(SHOP, "http://web/").ok()))?;
    Ok(())
}

fn revisions(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let load = Load::start(scene, SHOP, "http://web/", 20)?;
    scene.install(&["--profile", "canary", "--revision", "next"])?;
    let next = format!("https://istiod-next.{SYSTEM}.svc:15012");
    scene.upgrade(&[
        "--set",
        &format!("ztunnel.xdsAddress={next}"),
        "--set",
        &format!("ztunnel.caAddress={next}"),
    ])?;
    let synced = scene.ambit(&["status"]);
    seen.saw(load.finish_without_failure()?);
    synced.context("the tunnels are not in step with the second revision")?;
    scene.upgrade(&["--set", "ztunnel.xdsAddress=", "--set", "ztunnel.caAddress="])?;
    scene.ambit(&["uninstall", "--yes", "--revision", "next"])?;
    scene.calls(SHOP, "http://web/", 5)
}

fn checks(scene: &Scene<'_>, _: &mut Evidence<'_>) -> anyhow::Result<()> {
    let said = scene.until(SYSTEM, SOON, "a check without a failure", || Ok(scene.ambit(&["check"]).ok()))?;
    let chained =
        said.lines().any(|line| line.starts_with("cni-order") && line.contains("chained on 2 nodes"));
    ensure!(chained, "the agents do not say that their plugin is where it belongs: {said}");
    scene.ambit(&["status"])?;
    let version = scene.ambit(&["version"])?;
    ensure!(version.contains("ztunnel"), "the tunnels' version is not told: {version}");
    Ok(())
}

fn probe(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let said: Value = serde_json::from_str(&scene.ambit(&["check", "--probe", "-o", "json"])?)?;
    let checks = said["checks"].as_array().context("no list of checks")?;
    let probe = checks.iter().find(|check| check["name"] == "probe").context("no probe")?;
    let reason = probe["reason"].as_str().unwrap_or_default();
    let is_between = reason.contains("n1") && reason.contains("n2") && reason.contains("/sa/client");
    ensure!(probe["verdict"] == "pass" && is_between, "{probe:#}");
    seen.saw(reason);
    ensure!(scene.probes()?.is_empty(), "the probe left {:?}", scene.probes()?);

    // Interrupted in the midst of it, it tidies up all the same.
    let interrupted = scene.begin(&["check", "--probe"])?;
    let namespace = scene.until(SYSTEM, SOON, "a second probe", || Ok(scene.probes()?.pop()))?;
    let pod = ["pod/server"];
    scene.until(&namespace, SOON, "its server", || scene.kubectl().get(&namespace, &pod))?;
    interrupted.signal(Signal::SIGINT);
    let ended = interrupted.wait(ROLLED)?;
    let said = interrupted.said();
    ensure!(ended.code() == Some(3) && said.contains("interrupted"), "it ended with {ended}: {said}");
    ensure!(scene.probes()?.is_empty(), "the interrupted probe left {:?}: {said}", scene.probes()?);
    Ok(())
}

fn leave(scene: &Scene<'_>, _: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.kubectl().ok(&["-n", SHOP, "delete", "peerauthentication/default"])?;
    scene.ambit(&["namespace", "remove", SHOP, "--wait"])?;
    scene.until(SHOP, JOINED, "the leaving of all", || Ok(scene.none_captured(SHOP)?.then_some(())))?;
    scene.no_rules(SHOP)?;
    scene.calls(SHOP, "http://web/", 5)?;
    // Once more in, so that the end of the mesh finds pods in it.
    let said = scene.ambit(&["namespace", "add", SHOP, "--wait"])?;
    let counted = said.contains("connections still outside: ") && !said.contains("outside: not known");
    ensure!(counted, "the agents do not say which connections are outside: {said}");
    scene.calls(SHOP, "http://web/", 5)
}

fn rights(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    seen.saw(rights::none_is_idle(scene)?);
    Ok(())
}

fn uninstall(scene: &Scene<'_>, _: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.ambit(&["uninstall", "--yes", "--purge", "--purge-crds"])?;
    scene.nothing_is_left(&[SHOP, OUTSIDE])
}

fn afterwards(scene: &Scene<'_>, _: &mut Evidence<'_>) -> anyhow::Result<()> {
    scene.no_rules(SHOP)?;
    scene.calls(SHOP, "http://web/", 10)?;
    let restarts: Vec<_> = scene.pods(SHOP)?.into_iter().filter(|pod| pod.restarts > 0).collect();
    ensure!(restarts.is_empty(), "pods were restarted: {restarts:?}");
    // And new ones start.
    scene.kubectl().ok(&["-n", SHOP, "rollout", "restart", "deployment/web"])?;
    scene.kubectl().rolled_out(SHOP, "deployment/web", ROLLED)?;
    // Calls may still be sent to pods that have just ended.
    scene.until(SHOP, SOON, "calls to the new pods", || Ok(scene.calls(SHOP, "http://web/", 5).ok()))
}

/// The same mesh by Helm: what differs is who applies it.
#[test]
fn helm_installs_the_same_mesh() -> anyhow::Result<()> {
    story(|cluster: &Cluster| {
        let scene = Scene::set(cluster)?;
        let Some(helm) = scene.helm() else {
            eprintln!("SKIPPED: Helm is not built; see e2e/kubernetes/programs/helm");
            return Ok(());
        };
        let told = (|| {
            scene.kubectl().fresh_namespace(SHOP)?;
            scene.kubectl().apply(&scene::town(SHOP))?;
            scene.client_runs(SHOP)?;
            scene.kubectl().rolled_out(SHOP, "deployment/web", ROLLED)?;
            scene.helm_install(&helm)?;
            for workload in ["daemonset/ztunnel", "daemonset/ambit-cni-node", "deployment/ambit-controller"] {
                scene.kubectl().rolled_out(SYSTEM, workload, ROLLED)?;
            }
            scene.kubectl().ok(&["label", "namespace", SHOP, "istio.io/dataplane-mode=ambient"])?;
            scene
                .until(SHOP, JOINED, "every pod's joining", || Ok(scene.all_captured(SHOP)?.then_some(())))?;
            scene.calls(SHOP, "http://web/", 5)?;
            scene.helm_run(&helm, &["uninstall", "mesh", "--wait"])?;
            // Helm takes the agents' rights away with the agents, so their annotations stay; nothing else does.
            scene.until(SHOP, SOON, "the leaving of all", || Ok(scene.no_rules(SHOP).ok()))?;
            scene.calls(SHOP, "http://web/", 5)
        })();
        let told = told.map_err(|error: anyhow::Error| error.context(scene.kubectl().evidence(SYSTEM)));
        let cleared = scene.clear(&[SHOP]);
        told.and(cleared)
    })
}
