//! Steps 6 to 9: certificates, endpoints, the controller and tunnels come and go; connections stay.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};

use super::{CLIENT, NODE_A, NODE_B, RUN_LIMIT, Stage, identity};
use crate::observe::{LogLine, text};
use crate::telling::Evidence;
use crate::town::{Client, SOON};

const SHOP: &str = "http://web.shop/";

pub(super) fn renewal(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let steady = stage.steady.take().context("step 5 opened no connection")?;
    for (node, account) in [(NODE_A, "client"), (NODE_B, "web")] {
        let whose = identity(account);
        let before = stage
            .town
            .certificate(node, &whose)?
            .with_context(|| format!("{node} has no certificate of {whose}"))?;
        let stop = stage.town.stop().clone();
        // Half of its life, and the renewal itself.
        let after = stop.until(Duration::from_secs(20), &format!("the renewal of {whose}"), || {
            Ok(stage.town.certificate(node, &whose)?.filter(|held| held.serial != before.serial))
        })?;
        seen.saw(format!("{node}, {whose}:"));
        seen.quote(&format!("serial {} (until {})", before.serial, before.until));
        seen.quote(&format!("serial {} (until {})", after.serial, after.until));
    }
    let exchanges = steady.goes_on(stage.town.stop())?;
    seen.saw(format!(
        "The client's connection was open all the while: {exchanges} lines exchanged, and it goes on."
    ));
    let url = format!("http://{}/", stage.web_at(8080)?);
    stage.town.call(CLIENT, &[&url, "--count", "5", "--new-connection"])?.all_well()?;
    seen.saw("New connections are made with the new certificates.");
    stage.steady = Some(steady);
    Ok(())
}

pub(super) fn endpoints(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let called = stage.town.call(CLIENT, &[SHOP, "--count", "120", "--new-connection", "-q"])?;
    let spread = called.all_well()?.pods();
    let nodes: BTreeSet<_> =
        stage.town.pods_of("shop/web-").iter().map(|pod| pod.node().name().to_owned()).collect();
    ensure!(
        spread.len() == 3 && spread.values().all(|count| *count >= 15),
        "the load is not spread: {spread:?}"
    );
    ensure!(nodes.len() == 2, "the endpoints are all on {nodes:?}");
    seen.did(format!("{CLIENT} made 120 connections to the service web."));
    seen.saw(format!("Answered by {}.", counts(&spread)));

    let held = stage.web.name().clone();
    let victim = stage
        .town
        .pods_of("shop/web-")
        .into_iter()
        .find(|pod| *pod.name() != held && pod.node().name() == NODE_B);
    let victim = victim.context("there is no other web pod on node-b")?;
    let mark = stage.town.mark(victim.node().name())?;
    let load =
        stage.town.client(CLIENT, &["call", SHOP, "--rate", "50", "--duration", "4", "--new-connection"])?;
    between_requests(stage, &load, 40)?;
    let pids = victim.netns().processes();
    ensure!(!pids.is_empty(), "{} runs nothing that could die", victim.name());
    for pid in pids {
        kill(pid, Signal::SIGKILL).with_context(|| format!("cannot kill process {pid}"))?;
    }
    seen.did(format!("Under 50 new connections a second, killed the server in {} (SIGKILL).", victim.name()));
    let called = load.finish(RUN_LIMIT)?;
    called.all_well()?;
    let dead = victim.name().name.as_str();
    let refused =
        |line: &LogLine| line.field("dst.workload") == dead && line.field("error").contains("failed");
    let met = stage.town.access(&mark)?.iter().filter(|line| refused(line)).count();
    seen.saw(format!(
        "{} requests, none failed; {met} met the dead endpoint first and went on to another.",
        called.requests()
    ));
    seen.saw(format!("Answered by {}.", counts(&called.pods())));
    for held in [&stage.early, &stage.steady].into_iter().flatten() {
        held.goes_on(stage.town.stop())?;
    }
    seen.saw("The connections held to another endpoint go on.");
    Ok(())
}

/// Waits until that many requests were answered, and returns right after an answer: a killed server takes a request
/// that it is answering with it, as it would without a mesh.
fn between_requests(stage: &Stage, load: &Client, enough: usize) -> anyhow::Result<()> {
    stage.town.stop().until(SOON, "the load", || Ok((load.exchanges() >= enough).then_some(())))?;
    let before = load.exchanges();
    stage.town.stop().until(SOON, "another request", || Ok((load.exchanges() > before).then_some(())))
}

pub(super) fn controller(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    stage.town.mesh().controller().stop(Duration::from_secs(10))?;
    seen.did("Stopped the controller.");
    let called = stage.town.call(CLIENT, &[SHOP, "--count", "100", "--new-connection", "-q"])?;
    called.all_well()?;
    seen.saw(format!(
        "Meanwhile: {} new connections, none failed, to {}.",
        called.requests(),
        counts(&called.pods())
    ));
    let steady = stage.steady.as_ref().context("no connection is held")?;
    steady.goes_on(stage.town.stop())?;
    seen.saw("The client's held connection goes on.");
    stage.town.remove("customers.yaml")?;
    seen.did("While it was away, removed the policy of step 5; then started it again.");
    let begun = Instant::now();
    stage.town.mesh().controller().start()?;
    for node in [NODE_A, NODE_B] {
        stage.town.until_policy(node, "shop/customers", false)?;
        in_sync(stage, node)?;
    }
    seen.saw(format!(
        "{} ms later both tunnels are in sync, and the policy is gone from both.",
        begun.elapsed().as_millis()
    ));
    stage.town.call("shop/intruder", &[SHOP])?.all_well()?;
    seen.saw("Even the intruder is answered now.");
    // It would end with the tunnel that carries it, which is replaced next.
    if let Some(steady) = stage.steady.take() {
        steady.end()?;
    }
    Ok(())
}

/// Waits until the tunnel says that it is connected to the controller, and has what it has.
fn in_sync(stage: &mut Stage, node: &str) -> anyhow::Result<()> {
    let admin = stage.town.mesh().tunnel(node)?.admin().clone();
    stage.town.stop().until(SOON, &format!("the sync of {node}"), || {
        let page: serde_json::Value = serde_json::from_str(&admin.get("/debug/sync")?.body)?;
        let synced = page.get("synced").and_then(serde_json::Value::as_bool) == Some(true);
        Ok((synced && !text(&page, "connectedSince").is_empty()).then_some(()))
    })
}

pub(super) fn replacement(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for node in [NODE_B, NODE_A] {
        let args =
            ["call", SHOP, "--rate", "100", "--duration", "60", "--new-connection", "--concurrency", "4"];
        let load = stage.town.client(CLIENT, &args)?;
        // Shorter than the time that a tunnel gives its connections when it ends.
        let open = stage
            .town
            .client(CLIENT, &["hold", &stage.web_at(9090)?, "--duration", "3", "--interval", "20"])?;
        stage.town.stop().until(SOON, "an open connection", || Ok((open.exchanges() >= 2).then_some(())))?;
        stage.town.stop().until(SOON, "the load", || Ok((load.exchanges() >= 50).then_some(())))?;
        let old = stage.town.mesh().tunnel(node)?.pid();
        let begun = Instant::now();
        stage.town.mesh().replace_tunnel(node)?;
        let took = begun.elapsed();
        let new = stage.town.mesh().tunnel(node)?.pid();
        ensure!(old != new, "the tunnel of {node} is still process {old:?}");
        let so_far = load.exchanges();
        stage.town.stop().until(SOON, "load after the replacement", || {
            Ok((load.exchanges() >= so_far + 50).then_some(()))
        })?;
        load.process().signal(Signal::SIGTERM);
        let called = load.finish(RUN_LIMIT)?;
        called.all_well()?;
        let status = open.process().wait(SOON)?;
        ensure!(status.success(), "a connection of the old tunnel was cut: {:?}", open.broken());
        let (Some(old), Some(new)) = (old, new) else { bail!("a tunnel has no process") };
        seen.did(format!("Replaced the tunnel of {node} under 100 new connections a second: process {old} by {new}, in {:.1} s.", took.as_secs_f64()));
        seen.saw(format!(
            "{} connections, none failed; one that was open was carried to its end by the old tunnel ({} lines).",
            called.requests(),
            open.exchanges()
        ));
    }
    Ok(())
}

fn counts(pods: &std::collections::BTreeMap<String, u64>) -> String {
    pods.iter().map(|(pod, count)| format!("{pod} {count} times")).collect::<Vec<_>>().join(", ")
}
