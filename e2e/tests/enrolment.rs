//! Into the mesh and out of it, by label, while everything runs.

use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::Town;
use ambit_lab::mesh::SHOP;
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 4] = [
    ("A pod leaves by its own label", leaves),
    ("It comes back, and is not started again", returns),
    ("A namespace leaves, and nothing is left in its pods", namespace_leaves),
    ("A pod of a namespace outside joins by its own label", pod_joins),
];

const LABEL: &str = "istio.io/dataplane-mode";
const WORD: &str = "a-word-to-look-for-on-the-wire";

#[test]
fn pods_come_and_go_by_label() -> anyhow::Result<()> {
    story::tell("enrolment", SHOP, |_| {}, &STEPS)
}

/// Whether what the client sends to web-1, on the other node, can be read on the wire.
fn readable(town: &Town) -> anyhow::Result<bool> {
    let to = town.pod("shop/web-1")?.address(false, 8080).context("no address")?;
    let capture = town.link("node-a")?.capture(&town.logs().join("wire.pcap"))?;
    let header = format!("x-word: {WORD}");
    town.call("shop/client", &[&format!("http://{to}/"), "--count", "3", "--new-connection", "-H", &header])?
        .all_well()?;
    let captured = capture.stop()?;
    let (readable, hbone) = (captured.contains(WORD), captured.saw_port(15008));
    ensure!(readable != hbone, "readable: {readable}, port 15008: {hbone}");
    Ok(readable)
}

fn pids(town: &Town, pod: &str) -> anyhow::Result<Vec<i32>> {
    Ok(town.pod(pod)?.netns().processes().iter().map(|pid| pid.as_raw()).collect())
}

/// The tables and rules of redirection in a pod; none when it is outside.
fn redirection(town: &Town, pod: &str) -> anyhow::Result<String> {
    let pod = town.pod(pod)?;
    let tables = pod.exec(["nft", "list", "tables"])?.ok()?;
    let rules = pod.exec(["ip", "rule", "show", "fwmark", "0x111/0xfff"])?.ok()?;
    Ok(format!("{}{}", tables.trim(), rules.trim()))
}

fn leaves(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.until_reached_by(&["node-a", "node-b"], &["shop/client", "shop/web-1"], "HBONE")?;
    ensure!(!readable(town)?, "the request can be read");
    ensure!(!redirection(town, "shop/web-1")?.is_empty(), "there is no redirection to be removed");
    let before = pids(town, "shop/web-1")?;
    town.label_pod("shop", "web-1", LABEL, Some("none"))?;
    town.until_enrolled(&["shop/web-1"], false)?;
    town.until_reached_by(&["node-a", "node-b"], &["shop/web-1"], "TCP")?;
    ensure!(readable(town)?, "the request cannot be read");
    ensure!(pids(town, "shop/web-1")? == before, "the pod was started again");
    ensure!(redirection(town, "shop/web-1")?.is_empty(), "left behind: {}", redirection(town, "shop/web-1")?);
    seen.saw("It is called in plain text, and nothing of redirection is left in it.");
    Ok(())
}

fn returns(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let before = pids(town, "shop/web-1")?;
    let to = town.pod("shop/web-1")?.address(false, 9090).context("no address")?.to_string();
    let held = town.hold("shop/cart-1", &to)?;
    town.label_pod("shop", "web-1", LABEL, None)?;
    town.until_enrolled(&["shop/web-1"], true)?;
    town.until_reached_by(&["node-a", "node-b"], &["shop/web-1"], "HBONE")?;
    ensure!(!readable(town)?, "the request can be read");
    ensure!(pids(town, "shop/web-1")? == before, "the pod was started again");
    held.goes_on(town.stop())?;
    held.end()?;
    seen.saw("It is called in mutual TLS again; a connection made in between was not broken.");
    Ok(())
}

fn namespace_leaves(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let pods = ["shop/client", "shop/web-1", "shop/web-2", "shop/web-3", "shop/cart-1"];
    town.edit("town.yaml", "istio.io/dataplane-mode: ambient", "team: shop")?;
    town.until_enrolled(&pods, false)?;
    town.until_reached_by(&["node-a", "node-b"], &pods, "TCP")?;
    ensure!(readable(town)?, "the request cannot be read");
    for pod in pods {
        ensure!(redirection(town, pod)?.is_empty(), "left behind in {pod}: {}", redirection(town, pod)?);
    }
    let called = town.call("shop/client", &["http://web/", "--count", "20", "--new-connection", "-q"])?;
    ensure!(called.all_well()?.pods().len() == 3, "{:?}", called.pods());
    seen.saw("All five are outside, with names and services as before.");
    Ok(())
}

fn pod_joins(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.label_pod("shop", "web-1", LABEL, Some("ambient"))?;
    town.edit(
        "town.yaml",
        "  labels:\n    app: client",
        "  labels:\n    istio.io/dataplane-mode: ambient\n    app: client",
    )?;
    let pods = ["shop/web-1", "shop/client"];
    town.until_enrolled(&pods, true)?;
    town.until_reached_by(&["node-a", "node-b"], &pods, "HBONE")?;
    ensure!(!readable(town)?, "the request can be read");
    let called = town.call("shop/client", &["http://web/", "--count", "20", "--new-connection", "-q"])?;
    ensure!(called.all_well()?.pods().len() == 3, "{:?}", called.pods());
    seen.saw("Two pods are in the mesh, the others answer them as before.");
    Ok(())
}
