//! `ambit namespace`: takes namespaces into the mesh and out of it, and says before and after what that means.

mod blocking;
mod gather;
mod judge;
mod ports;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use ambit_api::labels;
use anyhow::bail;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::gather::Said;
use self::judge::{Change, Facts, Note, Outcome, Outside, Report, Weight};
use super::components::System;
use crate::cluster::ClusterArgs;
use crate::objects;
use crate::output::{Format, Out, Table, Tone, few};

/// Pods join within a second; this is how often it is looked whether they have.
const PAUSE: Duration = Duration::from_millis(500);

const ABOUT: &str = "Examples:
  ambit namespace add shop --preview
  ambit namespace add shop --wait
  ambit namespace list";

/// What is to be done.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Takes namespaces into the mesh, with the pods that run in them.
    Add(ChangeArgs),
    /// Takes namespaces out of it.
    Remove(ChangeArgs),
    /// The namespaces of the mesh; named ones with their pods.
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
struct ChangeArgs {
    /// The namespaces.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Says what would happen, and changes nothing.
    #[arg(long)]
    preview: bool,
    /// Waits until every pod that can has joined or left.
    #[arg(long, conflicts_with = "preview")]
    wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "wait")]
    timeout: u64,
    /// Even if traffic would break.
    #[arg(long)]
    force: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only these, each with its pods.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Add(args) => change(args, Change::Add, out).await,
        What::Remove(args) => change(args, Change::Remove, out).await,
        What::List(args) => list(args, out).await,
    }
}

async fn change(args: &ChangeArgs, change: Change, out: &mut Out) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client().await?;
    let agents = gather::agents(&client, &args.system.system_namespace).await;
    let mut before = Vec::new();
    for name in &args.names {
        before.push(judge::judge(&gather::facts(&client, name, &agents).await?, change));
    }
    let tables = args.output == Format::Table;
    if tables {
        for report in &before {
            print(report, out)?;
        }
    }
    if args.preview {
        if !tables {
            out.value(&json!({ "changed": false, "before": values(&before) }), args.output)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if change == Change::Add && !args.force && before.iter().any(Report::has_problems) {
        bail!("traffic would break, see the problems above; solve them, or say --force");
    }
    let mode = (change == Change::Add).then_some(labels::DATAPLANE_MODE_AMBIENT);
    for name in &args.names {
        gather::label(&client, name, mode).await?;
    }
    let limit = if args.wait { Duration::from_secs(args.timeout) } else { Duration::ZERO };
    let (after, late) = settled(&client, args, change, &agents, limit).await?;
    if tables {
        for (report, before) in after.iter().zip(&before) {
            out.line(summary(report, change))?;
            for note in report.notes.iter().filter(|note| !before.notes.contains(note)) {
                show(note, out)?;
            }
        }
        for (name, row) in after.iter().flat_map(|one| one.pods.iter().map(|row| (&one.namespace, row))) {
            match &row.outcome {
                Outcome::Joins | Outcome::Leaves if args.wait => {
                    out.line(format!("  {name}/{} {} still", row.pod, row.outcome.word()))?;
                }
                Outcome::Waits(why) => out.line(format!("  {name}/{} waits: {why}", row.pod))?,
                Outcome::Joins | Outcome::Leaves | Outcome::In | Outcome::Out(_) => {}
            }
        }
    } else {
        let value = json!({ "changed": true, "before": values(&before), "after": values(&after) });
        out.value(&value, args.output)?;
    }
    if args.wait && late {
        bail!("not all pods are through after {limit:?}; `kubectl describe pod` has the reason as an event");
    }
    Ok(ExitCode::SUCCESS)
}

/// How the namespaces are once nothing is on its way, or the limit is over; and whether something still is.
async fn settled(
    client: &Client,
    args: &ChangeArgs,
    change: Change,
    agents: &gather::Agents,
    limit: Duration,
) -> anyhow::Result<(Vec<Report>, bool)> {
    let until = Instant::now() + limit;
    let late = loop {
        let mut reports = Vec::new();
        for name in &args.names {
            reports.push(judge::judge(&gather::facts(client, name, agents).await?, Change::None));
        }
        let on_their_way = reports.iter().any(|one| one.count("joins") + one.count("leaves") > 0);
        if !on_their_way || Instant::now() >= until {
            break on_their_way;
        }
        sleep(PAUSE).await;
    };
    let mut reports = Vec::new();
    for name in &args.names {
        reports.push(now(client, name, agents, change).await?);
    }
    Ok((reports, late))
}

/// How a namespace is after a change, with what the agents say: what keeps its pods from joining, and if they were to
/// join, which connections did not.
async fn now(client: &Client, name: &str, agents: &gather::Agents, change: Change) -> anyhow::Result<Report> {
    let facts = gather::facts(client, name, agents).await?;
    let report = judge::judge(&facts, Change::None);
    if report.count("joins") == 0 && change != Change::Add {
        return Ok(report);
    }
    let Said { pending, outside } = agents.said(client, &facts).await;
    let outside = (change == Change::Add).then_some(outside);
    Ok(judge::judge(&Facts { pending, outside, ..facts }, Change::None))
}

async fn list(args: &ListArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client().await?;
    let agents = gather::agents(&client, &args.system.system_namespace).await;
    if !args.names.is_empty() {
        let mut reports = Vec::new();
        for name in &args.names {
            reports.push(now(&client, name, &agents, Change::None).await?);
        }
        if args.output != Format::Table {
            out.value(&Value::Array(values(&reports)), args.output)?;
            return Ok(ExitCode::SUCCESS);
        }
        for report in &reports {
            print(report, out)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let pods: Vec<Pod> = objects::list(&client, "/api/v1/pods", "").await?.unwrap_or_default();
    let mut pods_of: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in pods {
        pods_of.entry(pod.metadata.namespace.clone().unwrap_or_default()).or_default().push(pod);
    }
    let mut reports = Vec::new();
    for namespace in gather::namespaces(&client).await? {
        let name = namespace.metadata.name.unwrap_or_default();
        let pods = pods_of.remove(&name).unwrap_or_default();
        let labels = namespace.metadata.labels.unwrap_or_default();
        let report = judge::judge(&agents.facts_of_pods(name, labels, pods), Change::None);
        if report.mode.is_some() || report.pods.iter().any(|row| !matches!(row.outcome, Outcome::Out(_))) {
            reports.push(report);
        }
    }
    if args.output != Format::Table {
        out.value(&Value::Array(values(&reports)), args.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    out.table(&overview(&reports))?;
    Ok(ExitCode::SUCCESS)
}

fn values(reports: &[Report]) -> Vec<Value> {
    reports.iter().map(Report::value).collect()
}

fn overview(reports: &[Report]) -> Table {
    let mut table = Table::new(2, &["NAMESPACE", "MODE", "IN", "ON THE WAY", "OUT"]);
    for report in reports {
        let on_the_way = report.count("joins") + report.count("leaves") + report.count("waits");
        table.row([
            report.namespace.clone(),
            report.mode.clone().unwrap_or_else(|| "-".to_owned()),
            report.count("in").to_string(),
            on_the_way.to_string(),
            report.count("out").to_string(),
        ]);
    }
    table
}

/// `shop: 3 pods are in the mesh, 1 is out`.
fn summary(report: &Report, change: Change) -> String {
    let said = match change {
        Change::Add => "labelled",
        Change::Remove => "label removed",
        Change::None => "unchanged",
    };
    let counts = ["in", "joins", "waits", "leaves", "out"]
        .map(|word| (word, report.count(word)))
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(word, count)| format!("{count} {word}"));
    let counts: Vec<_> = counts.collect();
    let pods = if counts.is_empty() { "no pods".to_owned() } else { format!("pods: {}", counts.join(", ")) };
    let outside =
        report.outside.as_ref().filter(|_| !counts.is_empty()).map(still_outside).unwrap_or_default();
    format!("{}: {said}; {pods}{outside}", report.namespace)
}

/// `; connections still outside: 3, and not known of web-1`.
fn still_outside(Outside { total, unknown }: &Outside) -> String {
    match (total, unknown.is_empty()) {
        (total, true) => format!("; connections still outside: {total}"),
        (0, false) => format!("; connections still outside: not known of {}", few(unknown)),
        (total, false) => format!("; connections still outside: {total}, and not known of {}", few(unknown)),
    }
}

fn print(report: &Report, out: &mut Out) -> anyhow::Result<()> {
    out.line(format!("{} (mode {})", report.namespace, report.mode.as_deref().unwrap_or("not set")))?;
    if report.pods.is_empty() {
        out.line("  no pods")?;
    } else {
        out.table(&pods(report))?;
    }
    for note in &report.notes {
        show(note, out)?;
    }
    out.line("")
}

fn show(note: &Note, out: &mut Out) -> anyhow::Result<()> {
    let tone = match note.weight {
        Weight::Problem => Tone::Bad,
        Weight::Caution => Tone::Wait,
        Weight::Hint => Tone::Faint,
    };
    let weight = out.toned(tone, note.weight.word());
    out.text(told(note, &weight)?)
}

fn pods(report: &Report) -> Table {
    let mut table = Table::new(2, &["POD", "NODE", "MESH", "WHY"]);
    for row in &report.pods {
        let tone = match row.outcome {
            Outcome::In | Outcome::Joins => Tone::Good,
            Outcome::Waits(_) | Outcome::Leaves => Tone::Wait,
            Outcome::Out(_) => Tone::Faint,
        };
        table.toned_row(vec![
            (row.pod.clone(), Tone::Plain),
            (row.node.clone().unwrap_or_else(|| "-".to_owned()), Tone::Plain),
            (row.outcome.word().to_owned(), tone),
            (row.outcome.why().to_owned(), Tone::Plain),
        ]);
    }
    table
}

fn told(note: &Note, weight: &str) -> anyhow::Result<String> {
    let mut text = format!("{weight}: {}\n  {}\n", note.what, note.remedy);
    if let Some(add) = &note.add {
        for line in serde_yaml_ng::to_string(add)?.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_shows_what_to_add_as_yaml() {
        let note = Note {
            weight: Weight::Problem,
            what: "it blocks".to_owned(),
            remedy: "add this".to_owned(),
            add: Some(json!({ "ingress": [{ "ports": [{ "port": 15008, "protocol": "TCP" }] }] })),
        };
        let expected = "problem: it blocks\n  add this\n    ingress:\n    - ports:\n      - port: 15008\n        protocol: TCP\n";
        assert_eq!(told(&note, "problem").unwrap(), expected);
    }

    #[test]
    fn the_summary_counts_outcomes() {
        let row = |outcome| judge::Row { pod: "a".to_owned(), node: None, outcome, outside: None };
        let report = Report {
            namespace: "shop".to_owned(),
            mode: None,
            pods: vec![row(Outcome::In), row(Outcome::In), row(Outcome::Out("it has finished"))],
            outside: None,
            notes: Vec::new(),
        };
        assert_eq!(summary(&report, Change::Add), "shop: labelled; pods: 2 in, 1 out");
        assert_eq!(pods(&report).render(false).lines().last().unwrap(), "a    -     out   it has finished");
        for (total, unknown, expected) in [
            (0, vec![], "outside: 0"),
            (3, vec![], "outside: 3"),
            (0, vec!["b".to_owned()], "outside: not known of b"),
            (3, vec!["b".to_owned()], "outside: 3, and not known of b"),
        ] {
            let outside = Some(Outside { total, unknown });
            let said = summary(&Report { outside, ..report.clone() }, Change::Add);
            assert_eq!(said, format!("shop: labelled; pods: 2 in, 1 out; connections still {expected}"));
        }
        let outside = Some(Outside::default());
        let empty = Report { pods: Vec::new(), outside, ..report };
        assert_eq!(summary(&empty, Change::Remove), "shop: label removed; no pods");
    }
}
