//! `external-authorization.md`: somebody else decides, in gRPC and in HTTP; and nobody is let in when he is gone.

use ambit_lab::Program;
use anyhow::{Context as _, ensure};

use super::{CLIENT, ROUTE, WEB, waypoint_metrics, yaml};
use crate::observe;
use crate::pages::Page;
use crate::telling::Evidence;
use crate::town::{SOON, Town};

const EXTERNAL_AUTHORIZATION: Page = Page(include_str!("../../../docs/tasks/external-authorization.md"));

/// The provider that the page's policy names, and the other one.
const IN_GRPC: &str = "ext-authz-grpc";
const IN_HTTP: &str = "ext-authz-http";
/// What the authorizer wants to see, and what it says to the application.
const SHOWN: &str = "x-ext-authz: allow";
const RESULT: &str = "x-ext-authz-check-result";

/// The status that the client gets, and everything that comes with it.
fn asked(town: &Town, path: &str, headers: &[&str]) -> anyhow::Result<(u16, String)> {
    let url = format!("{WEB}{path}");
    let headers = headers.iter().flat_map(|header| ["-H", header]);
    let curl = Program::new("curl").args(["-sSi", "-m", "5"]).args(headers).arg(&url);
    let output = town.pod(CLIENT)?.run(&curl, SOON)?;
    let status = output.stdout.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no answer: {output:?}"))?, output.stdout))
}

/// What the controller says of the policy: in a cluster, its condition.
fn told(town: &mut Town) -> anyhow::Result<String> {
    let objects = town.mesh().controller().admin().get("/debug/objects")?.body;
    let mut texts = objects.split('"');
    Ok(texts.find(|text| text.contains("about what matches, ")).unwrap_or_default().to_owned())
}

/// How many checks came to that end, at all instances.
fn checks(town: &Town, outcome: &str) -> anyhow::Result<f64> {
    let samples = waypoint_metrics(town)?;
    Ok(observe::sum(&samples, "ambit_authorizer_checks_total", &[("outcome", outcome)]))
}

/// The page, from its authorizer to its policy, and back.
pub fn authorizer(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [authorizer, providers, policy, route] = yaml(EXTERNAL_AUTHORIZATION)?;
    town.write("authorizer.yaml", &authorizer)?;
    town.write("mesh.yaml", &providers)?;
    let pod = town.stop().until(SOON, "a pod of ext-authz", || {
        Ok(town.pods_of("shop/ext-authz").first().map(|pod| pod.name().to_string()))
    })?;
    town.until_enrolled(&[&pod], true)?;
    seen.did(
        "Applied an authorizer, ConfigMap istio with two providers, and a policy CUSTOM that names one.",
    );
    for (provider, protocol) in [(IN_HTTP, "HTTP"), (IN_GRPC, "gRPC")] {
        town.write("policy.yaml", &policy.replace(IN_GRPC, provider))?;
        decides(town, &pod, protocol)?;
        seen.saw(format!(
            "In {protocol}: without its header 403 in the authorizer's words; with it 200, and the application hears {RESULT}: allowed."
        ));
    }
    let stop = town.stop().clone();
    let message = stop.until(SOON, "the condition of the policy", || {
        Ok(Some(told(town)?).filter(|message| message.contains(IN_GRPC)))
    })?;
    ensure!(EXTERNAL_AUTHORIZATION.0.contains(&message), "the page does not say {message:?}");
    town.remove("policy.yaml")?;
    town.write(ROUTE, &route)?;
    decides(town, &pod, "HTTP")?;
    seen.did("Removed the policy, and applied an HTTPRoute whose filter ExternalAuth names the authorizer.");
    seen.saw("Again 403 without the header, and 200 with it; /healthz, which another rule takes: 200.");
    town.write("policy.yaml", &policy)?;
    town.remove(ROUTE)?;
    decides(town, &pod, "gRPC")?;
    is_gone(town, seen)?;
    town.remove("policy.yaml")?;
    stop.until(SOON, "an answer without an authorizer", || {
        Ok((asked(town, "items", &[])?.0 == 200).then_some(()))
    })?;
    seen.saw("Without the policy all are answered.");
    town.remove("mesh.yaml")?;
    town.remove("authorizer.yaml")
}

/// Denials and permissions as the authorizer has them, who is asked in that protocol.
fn decides(town: &Town, pod: &str, protocol: &str) -> anyhow::Result<()> {
    let (_, name) = pod.split_once('/').unwrap_or_default();
    let words = format!("denied by {name}, asked in {protocol}");
    town.stop().until(SOON, &format!("a denial in {protocol}"), || {
        let (status, denied) = asked(town, "items", &[])?;
        Ok((status == 403 && denied.contains(&words)).then_some(()))
    })?;
    let (status, denied) = asked(town, "items", &["x-ext-authz: perhaps"])?;
    ensure!(status == 403 && denied.contains(&words), "another value: {denied}");
    let forged = format!("{RESULT}: forged");
    let allowed = town.call(CLIENT, &["-H", SHOWN, "-H", &forged, &format!("{WEB}headers")])?;
    let heard = allowed.all_well()?.body()?.get(RESULT).cloned();
    ensure!(heard == Some("allowed".into()), "the application hears {heard:?}");
    let (status, answer) = asked(town, "healthz", &[])?;
    ensure!(status == 200, "what the policy leaves out: {answer}");
    Ok(())
}

/// Its pod ends: what the policy matches is denied, the rest is not.
fn is_gone(town: &Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    ensure!(checks(town, "allowed")? > 0.0 && checks(town, "denied")? > 0.0, "checks were not counted");
    town.edit("authorizer.yaml", "replicas: 1", "replicas: 0")?;
    town.stop().until(SOON, "the end of the authorizer", || {
        Ok(town.pods_of("shop/ext-authz").is_empty().then_some(()))
    })?;
    for _ in 0..5 {
        let (status, answer) = asked(town, "items", &[SHOWN])?;
        ensure!(status == 403 && !answer.contains("denied by ext-authz"), "let in by nobody: {answer}");
    }
    let (status, answer) = asked(town, "healthz", &[])?;
    ensure!(status == 200, "what the policy leaves out: {answer}");
    ensure!(checks(town, "failed")? > 0.0, "failures were not counted");
    let logs = town.pods_of("shop/waypoint").into_iter().map(|pod| pod.log("istio-proxy"));
    let logs: String = logs.filter_map(|log| std::fs::read_to_string(log).ok()).collect();
    let line = logs.lines().rev().find(|line| line.contains("flag=\"UAEX\""));
    let line = line.context("the waypoint's log has no UAEX")?;
    ensure!(line.contains(IN_GRPC), "the log does not say who was asked: {line}");
    let error = line.split_once("error=").map_or(line, |(_, error)| error);
    seen.did("Ended the authorizer's pod.");
    seen.saw(format!("Header or not: 403. /healthz, which the policy leaves out: 200. The log: {error}."));
    Ok(())
}
