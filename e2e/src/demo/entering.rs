//! Steps 1 to 3: from plain text into the mesh, by one label, with nothing started again and nothing broken.

use std::collections::BTreeSet;

use ambit_lab::pcap::{Captured, TlsVersion};
use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{CLIENT, ENROLLED, NODE_A, NODE_B, Stage, identity};
use crate::observe::{LogLine, sum, text};
use crate::telling::Evidence;
use crate::town;

/// A word that nobody else says.
const SECRET: &str = "grandmother-takes-two-spoons-of-cinnamon";
const HBONE: u16 = 15008;
const CONTROL_PLANE: u16 = 15012;
const ECHO: u16 = 9090;

pub(super) fn in_the_clear(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let (body, captured) = ask_for_the_recipe(stage, "before.pcap")?;
    seen.did(format!("{CLIENT} on {NODE_A} asked {} on {NODE_B} for a recipe.", text(&body, "pod")));
    ensure!(captured.contains(SECRET), "the request was not seen on the wire");
    seen.saw(format!("The wire carried it as written: {SECRET:?}."));
    ensure!(!captured.saw_port(HBONE), "there was traffic on port {HBONE} before anybody was enrolled");
    seen.saw(format!("Nothing went to port {HBONE}."));
    let to = stage.web_at(ECHO)?;
    let early = stage.town.hold(CLIENT, &to)?;
    seen.did(format!("{CLIENT} opened a connection to {to}, to be held to the end."));
    stage.early = Some(early);
    Ok(())
}

pub(super) fn one_label(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let before = pids(stage);
    stage.town.edit("town.yaml", "labels: {team: shop}", &format!("labels: {{{}}}", town::ENROLLED))?;
    stage.town.until_enrolled(&ENROLLED, true)?;
    stage.town.until_reached_by(&[NODE_A, NODE_B], &ENROLLED, "HBONE")?;
    seen.did(format!("Labelled namespace shop: {}.", town::ENROLLED));
    ensure!(pids(stage) == before, "pods were started again");
    seen.saw("Every pod of it is enrolled and both tunnels know it; none was started again.");

    let (here, there) = (stage.town.mark(NODE_A)?, stage.town.mark(NODE_B)?);
    let (body, captured) = ask_for_the_recipe(stage, "after.pcap")?;
    seen.did("Sent the same request again.");
    ensure!(!captured.contains(SECRET), "the request can still be read on the wire");
    ensure!(captured.lost == 0, "the capture lost {} packets, and proves nothing", captured.lost);
    seen.saw("It is nowhere on the wire to be read.");
    let versions = captured.tls_versions(HBONE);
    ensure!(versions == BTreeSet::from([TlsVersion::V1_3]), "TLS versions on port {HBONE}: {versions:?}");
    let handshakes = captured.handshakes();
    let handshake = handshakes.iter().find(|one| one.server.port() == HBONE).context("no handshake")?;
    let group = handshake.group.map_or_else(|| "unknown".to_owned(), |group| format!("{group:#06x}"));
    let suite = handshake.cipher;
    seen.saw(format!(
        "{} → {}: {}, cipher suite {suite:#06x}, key exchange {group}.",
        handshake.client, handshake.server, handshake.version
    ));
    nothing_else(&captured)?;
    seen.saw("Nothing else crossed but the control plane's TLS and the connection of step 1.");

    let client_ip = stage.town.pod(CLIENT)?.ips().first().map(ToString::to_string).unwrap_or_default();
    let from = text(&body, "client");
    ensure!(from.starts_with(&format!("{client_ip}:")), "the server saw {from}, not {client_ip}");
    seen.saw(format!("The server saw the client's own address, {client_ip}."));

    identities(stage, seen, &here, &there)
}

/// Who spoke with whom, as both tunnels tell it.
fn identities(
    stage: &mut Stage,
    seen: &mut Evidence<'_>,
    here: &town::Mark,
    there: &town::Mark,
) -> anyhow::Result<()> {
    let (client, web) = (identity("client"), identity("web"));
    let both = [("src.identity", client.as_str()), ("dst.identity", web.as_str())];
    for (mark, node, direction, reporter) in
        [(here, NODE_A, "outbound", "source"), (there, NODE_B, "inbound", "destination")]
    {
        let wanted =
            |line: &LogLine| line.is_access() && line.has(&both) && line.field("direction") == direction;
        let line = stage.town.heard(mark, &format!("{direction} access with both identities"), wanted)?;
        seen.saw(format!("Access log of {node}:"));
        let fields =
            ["direction", "src.workload", "src.identity", "dst.workload", "dst.identity", "bytes_sent"];
        seen.quote(&line.shown(&fields));
        let labels = [
            ("reporter", reporter),
            ("source_principal", client.as_str()),
            ("destination_principal", web.as_str()),
            ("connection_security_policy", "mutual_tls"),
        ];
        let opened = sum(&stage.town.metrics(node)?, "istio_tcp_connections_opened_total", &labels);
        ensure!(opened >= 1.0, "metrics of {node} do not count the connection");
        seen.saw(format!(
            "Metrics of {node}: {opened} opened, reporter={reporter}, mutual_tls, the same principals."
        ));
    }
    Ok(())
}

pub(super) fn unbroken(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let early = stage.early.as_ref().context("it was not opened in step 1")?;
    let exchanges = early.goes_on(stage.town.stop())?;
    seen.saw(format!("It has exchanged {exchanges} lines and goes on; it is looked at again at the end."));
    Ok(())
}

fn ask_for_the_recipe(stage: &Stage, file: &str) -> anyhow::Result<(Value, Captured)> {
    let url = format!("http://{}/recipe", stage.web_at(8080)?);
    let link = stage.town.link(NODE_A)?;
    let capture = link.capture(&stage.capture_file(file))?;
    let called = stage.town.call(CLIENT, &[&url, "--header", &format!("x-recipe: {SECRET}")])?;
    let captured = capture.stop()?;
    Ok((called.all_well()?.body()?, captured))
}

/// Fails if something crossed the wire that is neither the mesh nor the connection that is older than it.
fn nothing_else(captured: &Captured) -> anyhow::Result<()> {
    let known = [HBONE, CONTROL_PLANE, ECHO];
    for flow in captured.flows() {
        let of_the_mesh = known.iter().any(|port| flow.from.port() == *port || flow.to.port() == *port);
        ensure!(of_the_mesh, "{} → {} crossed beside the mesh", flow.from, flow.to);
    }
    Ok(())
}

/// What runs in the shop's pods.
fn pids(stage: &Stage) -> Vec<(String, Vec<i32>)> {
    let pods = stage.town.pods_of("shop/").into_iter();
    pods.map(|pod| (pod.name().to_string(), pod.netns().processes().iter().map(|pid| pid.as_raw()).collect()))
        .collect()
}
