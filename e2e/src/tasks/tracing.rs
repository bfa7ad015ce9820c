//! `tracing.md`: the waypoint's spans join the client's trace, at a collector that the page's environment names.

use std::collections::BTreeSet;

use ambit_api::directory::Directory;
use ambit_lab::Program;
use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{CLIENT, README, WEB, yaml};
use crate::observe::text;
use crate::pages::Page;
use crate::telling::Evidence;
use crate::town::{SOON, Town};

const TRACING: Page = Page(include_str!("../../../docs/tasks/tracing.md"));

/// The client's own span, in whichever trace.
const SPAN: u64 = 0xc11e;

/// A trace of the client, by number.
fn trace(number: u128) -> String {
    format!("{:032x}", 0x7ace_0000 + number)
}

/// The `traceparent` that the application hears when the client sends one of that trace.
fn heard(town: &Town, trace: &str, flags: &str) -> anyhow::Result<String> {
    let sent = format!("traceparent: 00-{trace}-{SPAN:016x}-{flags}");
    let called = town.call(CLIENT, &["-H", &sent, &format!("{WEB}headers")])?;
    Ok(text(&called.all_well()?.body()?, "traceparent").to_owned())
}

/// The spans of that trace at the collector.
fn spans(town: &Town, trace: &str) -> anyhow::Result<Vec<Value>> {
    let collector = town.pods_of("observability/collector").pop().context("no pod of the collector")?;
    let curl = Program::new("curl").args(["-fsS", "http://127.0.0.1:8080/"]);
    let told: Vec<Value> = serde_json::from_str(&collector.run(&curl, SOON)?.ok()?)?;
    Ok(told.into_iter().filter(|span| text(span, "trace") == trace).collect())
}

/// The waypoint's instances by their UID: one that replaces another has its name.
fn waypoints(town: &mut Town) -> anyhow::Result<BTreeSet<String>> {
    let loaded = Directory::open(&town.mesh().settings().directory)?.load()?;
    let pods = loaded.objects.iter().filter(|document| {
        let key = document.key();
        key.kind == "Pod" && key.namespace == "shop" && key.name.starts_with("waypoint-")
    });
    let uids = pods.filter_map(|pod| pod.value.pointer("/metadata/uid")?.as_str().map(str::to_owned));
    Ok(uids.collect())
}

/// Writes the Gateway anew, and waits until the instances that were there are gone and all new ones are there.
fn replace(town: &mut Town, gateway: &str) -> anyhow::Result<()> {
    let before = waypoints(town)?;
    ensure!(!before.is_empty(), "no instance of the waypoint");
    town.write("gateway.yaml", gateway)?;
    let stop = town.stop().clone();
    stop.until(SOON * 2, "new instances of the waypoint", || {
        let now = waypoints(town)?;
        Ok((now.len() == before.len() && now.is_disjoint(&before)).then_some(()))
    })
}

/// The page, with a collector to look into.
pub fn tracing(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [traced, collector, _] = yaml(TRACING)?;
    let [untraced] = yaml(README)?;
    town.write("collector.yaml", &collector)?;
    let own = format!("00-{}-{SPAN:016x}-01", trace(0));
    ensure!(heard(town, &trace(0), "01")? == own, "a waypoint without a collector has touched the context");
    replace(town, &traced)?;
    seen.did("Gave the waypoint a collector, by its Gateway's parameters: new instances came.");
    // Between a first request and its spans the collector is looked for by name, and connected.
    town.stop().until(SOON, "a request that is traced", || {
        let called = heard(town, &trace(1), "01");
        Ok(called.ok().filter(|parent| !parent.contains(&format!("{SPAN:016x}"))))
    })?;
    let unsampled = heard(town, &trace(2), "00")?;
    ensure!(unsampled.contains(&trace(2)) && unsampled.ends_with("-00"), "not to be sampled: {unsampled}");
    let parent = heard(town, &trace(3), "01")?;
    let found = town.stop().until(SOON, "both spans of a request", || {
        Ok(Some(spans(town, &trace(3))?).filter(|spans| spans.len() >= 2))
    })?;
    seen.saw(one_tree(&found, &parent)?);
    // What waits in an instance is brought out when it ends: then there is no more to come.
    heard(town, &trace(4), "01")?;
    replace(town, &untraced)?;
    ensure!(spans(town, &trace(4))?.len() == 2, "the last request's spans ended with the waypoint");
    ensure!(spans(town, &trace(2))?.is_empty(), "spans of a request that was not to be sampled");
    seen.saw("A request with sampled=0: the trace goes on, no span. The last request's came when the waypoint ended.");
    town.stop().until(SOON, "a request that is not traced", || {
        Ok((heard(town, &trace(0), "01").ok().as_ref() == Some(&own)).then_some(()))
    })?;
    town.remove("collector.yaml")
}

/// Client's span, the waypoint's of the request, the waypoint's of sending it, application.
fn one_tree(spans: &[Value], heard: &str) -> anyhow::Result<String> {
    let of_kind = |kind: &str| {
        let mut found = spans.iter().filter(|span| text(span, "kind") == kind);
        match (found.next(), found.next()) {
            (Some(span), None) => Ok(span),
            _ => Err(anyhow::anyhow!("not one span of kind {kind}: {spans:?}")),
        }
    };
    let (server, client) = (of_kind("server")?, of_kind("client")?);
    ensure!(text(server, "parent") == format!("{SPAN:016x}"), "not below the client's: {server}");
    ensure!(text(client, "parent") == text(server, "span"), "not below the server's: {client}");
    let parent = format!("00-{}-{}-01", text(client, "trace"), text(client, "span"));
    ensure!(heard == parent, "the application heard {heard}, not {parent}");
    for (attribute, wanted) in [
        ("/attributes/url.path", Value::from("/headers")),
        ("/attributes/http.response.status_code", 200.into()),
        ("/resource/service.name", "waypoint.shop".into()),
    ] {
        let said = server.pointer(attribute);
        ensure!(said == Some(&wanted), "{attribute} is {said:?}: {server}");
    }
    Ok(format!(
        "One tree: client {SPAN:x}, waypoint {} (server), {} (client), and the application's parent is {heard}.",
        text(server, "span"),
        text(client, "span")
    ))
}
