//! `status` and `exec`: what is in a playground, and commands inside its pods.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use ambit_api::labels;
use anyhow::{Context as _, bail};
use serde_json::Value;
use time::OffsetDateTime;

use super::ExecArgs;
use super::documents::Documents;
use super::state::{Place, State};
use crate::output::{Format, Out, Table, Tone, age, moment};

/// Shows nodes, pods and processes.
pub(super) fn status(place: &Place, format: Format, out: &mut Out) -> anyhow::Result<()> {
    let state = place.state()?;
    if format != Format::Table {
        return out.value(&serde_json::to_value(&state)?, format);
    }
    let now = OffsetDateTime::now_utc();
    let since = |text: &str| moment(text).map_or_else(|| "?".to_owned(), |then| age(then, now));
    out.line(format!("up {}, YAML in {}", since(&state.since), state.directory.display()))?;

    let mut nodes = Table::new(2, &["NODE", "ADDRESSES", "NETWORK NAMESPACE"]);
    for node in &state.nodes {
        nodes.row([node.name.clone(), joined(&node.ips), node.netns.clone()]);
    }
    out.line("")?;
    out.table(&nodes)?;

    let enrolled = enrolled(&state)?;
    let mut pods = Table::new(2, &["NAMESPACE", "POD", "NODE", "ADDRESSES", "STATE", "RESTARTS", "MESH"]);
    for pod in &state.pods {
        let mesh =
            enrolled.iter().find(|(namespace, name, _)| *namespace == pod.namespace && *name == pod.name);
        let (ready, tone) = if pod.ready { ("Ready", Tone::Good) } else { (pod.phase.as_str(), Tone::Wait) };
        pods.toned_row(vec![
            plain(&pod.namespace),
            plain(&pod.name),
            plain(&pod.node),
            plain(joined(&pod.ips)),
            (ready.to_owned(), tone),
            plain(pod.restarts.to_string()),
            mesh.map_or_else(|| ("-".to_owned(), Tone::Faint), |(_, _, state)| plain(state)),
        ]);
    }
    out.line("")?;
    out.table(&pods)?;

    let mut components = Table::new(2, &["COMPONENT", "NODE", "PID", "UP", "RESTARTS", "ADMIN", "LOG"]);
    for component in &state.components {
        let pid = component.pid.map_or_else(|| ("ended".to_owned(), Tone::Bad), |pid| plain(pid.to_string()));
        components.toned_row(vec![
            plain(component.kind.word()),
            plain(&component.node),
            pid,
            plain(since(&component.since)),
            plain(component.restarts.to_string()),
            plain(&component.admin),
            plain(component.log.display().to_string()),
        ]);
    }
    out.line("")?;
    out.table(&components)?;

    if !state.problems.is_empty() {
        out.line("")?;
    }
    for problem in &state.problems {
        let mark = out.toned(Tone::Bad, "problem:");
        out.line(format!("{mark} {problem}"))?;
    }
    Ok(())
}

fn plain(text: impl Into<String>) -> (String, Tone) {
    (text.into(), Tone::Plain)
}

fn joined(ips: &[std::net::IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Namespace, name and state of the pods that node agents have written about.
fn enrolled(state: &State) -> anyhow::Result<Vec<(String, String, String)>> {
    let loaded = Documents::open(&state.directory)?.load()?;
    let redirection = |value: &Value| {
        let annotations = value.get("metadata")?.get("annotations")?;
        Some(annotations.get(labels::REDIRECTION)?.as_str()?.to_owned())
    };
    let pods = loaded.objects.iter().filter(|document| document.kind == "Pod");
    Ok(pods
        .filter_map(|pod| Some((pod.namespace.clone(), pod.name.clone(), redirection(&pod.value)?)))
        .collect())
}

/// Becomes the command, in the pod's namespace and with its `resolv.conf`.
pub(super) fn exec(place: &Place, args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let state = place.state()?;
    let Some((namespace, name)) = args.pod.split_once('/') else {
        bail!("{:?} names no pod; write NAMESPACE/POD", args.pod);
    };
    let Some(pod) = state.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name) else {
        let pods: Vec<_> = state.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
        bail!("there is no pod {}; there are: {}", args.pod, pods.join(", "));
    };
    let error = Command::new("ip")
        .args(["netns", "exec", &pod.netns, "env"])
        .arg(format!("PATH={}:{}", state.binaries.display(), args.path))
        .arg(format!("POD_NAME={name}"))
        .arg(format!("POD_NAMESPACE={namespace}"))
        .arg(format!("POD_IP={}", pod.ips.first().map(ToString::to_string).unwrap_or_default()))
        .args(&args.command)
        .exec();
    Err(error).context("cannot start `ip`; install the package iproute2")
}
