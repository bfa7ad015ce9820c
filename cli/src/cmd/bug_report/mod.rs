//! `ambit bug-report`: everything that helps to understand what is wrong with a mesh, and no secret, in one file.

mod archive;
mod redact;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, LogParams};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;

use self::archive::Archive;
use self::redact::{redact, redact_object};
use super::check;
use super::components::{self, Instance, System};
use super::playground::state::Kind;
use super::version;
use crate::cluster::ClusterArgs;
use crate::objects;
use crate::output::{Out, rfc3339};

/// A log of this many lines fits into a file, and goes back far enough.
const LINES: i64 = 50_000;
/// The kubelet stops there, whatever the lines are.
const LOG_BYTES: i64 = 32 * 1024 * 1024;
/// A dump of a large mesh takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

const ABOUT: &str = "In the archive: versions; `ambit check`; nodes; our workloads, webhooks, leases and Istio's and Gateway API's
objects; events; logs of our pods; their admin pages. Secrets are not read, and what looks like a token, a password or a
private key is taken out. Look through it before you give it away.";

/// What is put into the archive.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// How far back logs and events go: 90s, 30m, 2h, 1d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    since: Duration,
    /// Where to write it. Not given: ambit-bug-report-TIME.tar.gz here.
    #[arg(long, short, value_name = "FILE.tar.gz")]
    output: Option<PathBuf>,
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Lists in the system namespace, as they are called and where they are.
const OURS: [(&str, &str); 8] = [
    ("deployments", "/apis/apps/v1"),
    ("daemonsets", "/apis/apps/v1"),
    ("pods", "/api/v1"),
    ("services", "/api/v1"),
    ("serviceaccounts", "/api/v1"),
    ("networkpolicies", "/apis/networking.k8s.io/v1"),
    ("poddisruptionbudgets", "/apis/policy/v1"),
    ("leases", "/apis/coordination.k8s.io/v1"),
];

/// Lists of the whole cluster.
const EVERYWHERE: [(&str, &str); 20] = [
    ("namespaces", "/api/v1/namespaces"),
    ("nodes", "/api/v1/nodes"),
    (
        "validatingwebhookconfigurations",
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    ),
    ("validatingadmissionpolicies", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"),
    ("networkpolicies-everywhere", "/apis/networking.k8s.io/v1/networkpolicies"),
    ("authorizationpolicies", "/apis/security.istio.io/v1/authorizationpolicies"),
    ("peerauthentications", "/apis/security.istio.io/v1/peerauthentications"),
    ("requestauthentications", "/apis/security.istio.io/v1/requestauthentications"),
    ("ratelimitpolicies", "/apis/ambit.io/v1alpha1/ratelimitpolicies"),
    ("serviceentries", "/apis/networking.istio.io/v1/serviceentries"),
    ("destinationrules", "/apis/networking.istio.io/v1/destinationrules"),
    ("virtualservices", "/apis/networking.istio.io/v1/virtualservices"),
    ("workloadentries", "/apis/networking.istio.io/v1/workloadentries"),
    ("gateways", "/apis/gateway.networking.k8s.io/v1/gateways"),
    ("gatewayclasses", "/apis/gateway.networking.k8s.io/v1/gatewayclasses"),
    ("httproutes", "/apis/gateway.networking.k8s.io/v1/httproutes"),
    ("grpcroutes", "/apis/gateway.networking.k8s.io/v1/grpcroutes"),
    ("tlsroutes", "/apis/gateway.networking.k8s.io/v1/tlsroutes"),
    ("tcproutes", "/apis/gateway.networking.k8s.io/v1alpha2/tcproutes"),
    ("referencegrants", "/apis/gateway.networking.k8s.io/v1beta1/referencegrants"),
];

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    let now = OffsetDateTime::now_utc();
    let client = args.cluster.client().await?;
    let system = &args.system.system_namespace;
    // Who cannot even list pods gets no archive of nothing.
    let instances = components::instances(&client, system).await.context("no mesh can be looked at")?;
    let mut archive = Archive::default();
    versions(&client, &instances, &mut archive).await;
    match check::everything(client.clone(), system).await {
        Ok(checks) => archive.put("check.json", &redact(&pretty(&checks))),
        Err(error) => archive.missing.push(format!("check.json: {error:#}")),
    }
    kinds(&client, system, &mut archive).await;
    events(&client, now - args.since, &mut archive).await;
    for one in &instances {
        logs(&client, one, args.since, &mut archive).await;
        pages(&client, one, &mut archive).await;
    }
    let readme = readme(&archive, now, args.since);
    archive.put("README.txt", &readme);
    let name = || PathBuf::from(format!("ambit-bug-report-{}.tar.gz", rfc3339(now).replace([':', '-'], "")));
    let file = args.output.clone().unwrap_or_else(name);
    archive.write(&file, u64::try_from(now.unix_timestamp()).unwrap_or_default())?;
    out.text(&readme)?;
    out.line(format!("\n{} files are in {}", archive.len(), file.display()))?;
    Ok(ExitCode::SUCCESS)
}

async fn versions(client: &Client, instances: &[Instance], archive: &mut Archive) {
    let mut components = Vec::new();
    for one in instances {
        let version = version::version(&one.target(client)).await;
        components.push(json!({
            "component": one.title(), "pod": one.pod, "node": one.node, "image": one.image, "version": version.shown(),
            "ready": one.ready, "since": one.since, "restarts": one.restarts, "waitsFor": one.waits_for,
        }));
    }
    let server = client.apiserver_version().await.ok().map(|info| info.git_version);
    let all = json!({ "client": version::CLIENT, "kubernetes": server, "components": components });
    archive.put("versions.json", &pretty(&all));
}

async fn kinds(client: &Client, system: &str, archive: &mut Archive) {
    let ours = OURS.map(|(name, group)| (name, format!("{group}/namespaces/{system}/{name}")));
    let everywhere = EVERYWHERE.map(|(name, path)| (name, path.to_owned()));
    for (name, path) in ours.into_iter().chain(everywhere) {
        match objects::list::<Value>(client, &path, "").await {
            // The kind is not installed.
            Ok(None) => {}
            Ok(Some(mut list)) => {
                list.iter_mut().for_each(redact_object);
                archive.put(format!("objects/{name}.yaml"), &yaml(&list));
            }
            Err(error) => archive.missing.push(format!("objects/{name}.yaml: {error:#}")),
        }
    }
}

async fn events(client: &Client, from: OffsetDateTime, archive: &mut Archive) {
    match objects::list::<Value>(client, "/api/v1/events", "").await {
        Err(error) => archive.missing.push(format!("events.yaml: {error:#}")),
        Ok(list) => {
            let mut list: Vec<_> = list.into_iter().flatten().filter(|event| is_since(event, from)).collect();
            list.iter_mut().for_each(redact_object);
            archive.put("events.yaml", &yaml(&list));
        }
    }
}

/// Whether an event was last seen since then. One that says no time is kept.
fn is_since(event: &Value, from: OffsetDateTime) -> bool {
    let times = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let seen = times.iter().find_map(|path| crate::output::moment(event.pointer(path)?.as_str()?));
    seen.is_none_or(|seen| seen >= from)
}

async fn logs(client: &Client, one: &Instance, since: Duration, archive: &mut Archive) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &one.namespace);
    for container in &one.containers {
        for (previous, suffix) in [(false, ""), (true, ".previous")] {
            // There was none before.
            if previous && one.restarts == 0 {
                continue;
            }
            let params = LogParams {
                container: Some(container.clone()),
                previous,
                since_seconds: (!previous).then(|| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
                tail_lines: Some(LINES),
                limit_bytes: Some(LOG_BYTES),
                timestamps: true,
                ..LogParams::default()
            };
            let path = format!("logs/{}/{container}{suffix}.log", one.pod);
            match timeout(PATIENCE, pods.logs(&one.pod, &params)).await {
                Ok(Ok(text)) => archive.put(path, &redact(&text)),
                Ok(Err(error)) => archive.missing.push(format!("{path}: {}", objects::said(&error))),
                Err(_) => archive.missing.push(format!("{path}: no answer within {PATIENCE:?}")),
            }
        }
    }
}

async fn pages(client: &Client, one: &Instance, archive: &mut Archive) {
    let target = one.target(client);
    let list: &[&str] = match one.kind {
        Kind::Controller => &["/debug/syncz", "/debug/configz", "/debug/objects", "/debug/ca", "/metrics"],
        Kind::Agent => &["/debug/pods", "/debug/cni"],
        Kind::Ztunnel => &["/debug/sync", "/config_dump"],
    };
    let mut asked: Vec<_> = list.iter().map(|page| (&target.admin, *page)).collect();
    if one.kind == Kind::Ztunnel {
        asked.push((&target.metrics, "/metrics"));
    }
    for (endpoint, page) in asked {
        let name = page.trim_start_matches('/').replace('/', "-");
        let path = format!("pages/{}/{name}", one.pod);
        match timeout(PATIENCE, endpoint.get(page)).await {
            Ok(Ok(text)) => archive.put(path, &redact(&text)),
            Ok(Err(error)) => archive.missing.push(format!("{path}: {error}")),
            Err(_) => archive.missing.push(format!("{path}: no answer within {PATIENCE:?}")),
        }
    }
}

fn readme(archive: &Archive, now: OffsetDateTime, since: Duration) -> String {
    let mut text = format!(
        "A report on an Ambit mesh, made by ambit {} at {}; logs and events of the last {since:?}.\n\
         Secrets were not read; what looked like a token, a password or a private key was taken out.\n\nIt holds:\n",
        version::CLIENT,
        rfc3339(now)
    );
    for path in archive.paths() {
        text.push_str(&format!("  {path}\n"));
    }
    if !archive.missing.is_empty() {
        text.push_str("\nIt could not have:\n");
        for missing in &archive.missing {
            text.push_str(&format!("  {}\n", redact(missing)));
        }
    }
    text
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn yaml(list: &[Value]) -> String {
    serde_yaml_ng::to_string(&json!({ "apiVersion": "v1", "kind": "List", "items": list }))
        .unwrap_or_default()
}

/// `90s`, `30m`, `2h`, `1d`.
fn span(text: &str) -> Result<Duration, String> {
    const LONGEST: u64 = 365 * 86_400;
    let wrong = || format!("{text:?} is no time; write a number and s, m, h or d, at most 365d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    let whole = number.checked_mul(seconds).filter(|whole| (1..=LONGEST).contains(whole));
    whole.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::moment;

    #[test]
    fn spans_of_time_are_read() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "h", "1", "-1h", "0s", "1w", "999d", "1hh", "99999999999999999999d"] {
            assert!(span(text).unwrap_err().contains("s, m, h or d"), "{text}");
        }
    }

    #[test]
    fn old_events_are_left_out() {
        let from = moment("2026-06-01T12:00:00Z").unwrap();
        for (event, expected) in [
            (json!({ "lastTimestamp": "2026-06-01T12:30:00Z" }), true),
            (json!({ "lastTimestamp": "2026-06-01T11:30:00Z" }), false),
            (json!({ "lastTimestamp": null, "eventTime": "2026-06-01T12:30:00.000000Z" }), true),
            (json!({}), true),
        ] {
            assert_eq!(is_since(&event, from), expected, "{event}");
        }
    }

    #[test]
    fn the_readme_lists_what_is_there_and_what_is_not() {
        let mut archive = Archive::default();
        archive.put("versions.json", "{}");
        archive.missing.push("pages/x: Bearer abcdefghijk".to_owned());
        let text = readme(&archive, moment("2026-06-01T12:00:00Z").unwrap(), Duration::from_secs(3600));
        insta::assert_snapshot!(text.replace(version::CLIENT, "VERSION"));
    }
}
