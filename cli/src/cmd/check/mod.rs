//! `ambit check`: named checks of what the mesh needs and how it is, each with a verdict, a reason and a remedy.

mod chain;
mod gather;
mod health;
mod probe;
mod trust;
mod verdict;

use std::process::ExitCode;

use kube::Client;
use serde_json::{Value, json};
use time::OffsetDateTime;

use self::gather::Asker;
use self::verdict::{Check, Verdict, worst};
use super::components::System;
use crate::cluster::ClusterArgs;
use crate::output::{Format, Out, Table, Tone};

/// A check failed.
const FAILED: u8 = 3;

const ABOUT: &str = "Verdicts:
  pass     all is well
  skipped  it does not apply, or could not be looked at
  warning  it works, and should not stay so
  failure  it does not work, or soon will not
The exit status is 3 if any check fails.

With --probe, a namespace ambit-probe-… is made, with a server and a client on two nodes that run the controller's
image, and taken away again, also when the probe fails or is interrupted. It takes some seconds, and minutes if images
have to be pulled or something is wrong.";

/// What is checked.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// Whether the mesh can be installed: what it needs, not how it is.
    #[arg(long)]
    pre: bool,
    /// Also whether a pod on one node reaches a pod on another through the mesh. Makes objects for that, and takes them
    /// away again.
    #[arg(long, conflicts_with = "pre")]
    probe: bool,
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
    let client = args.cluster.client().await?;
    let asker =
        Asker { client, system: args.system.system_namespace.clone(), now: OffsetDateTime::now_utc() };
    let checks = if args.pre {
        asker.before().await?
    } else {
        let mut checks = asker.after().await?;
        checks.push(if args.probe { probe::check(&asker).await } else { probe::unasked() });
        checks
    };
    let worst = worst(&checks);
    match args.output {
        Format::Table => print(&checks, out)?,
        Format::Json | Format::Yaml => out.value(&value(&checks), args.output)?,
    }
    Ok(if worst == Verdict::Failure { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// All checks, for an archive.
pub(crate) async fn everything(client: Client, system: &str) -> anyhow::Result<Value> {
    let asker = Asker { client, system: system.to_owned(), now: OffsetDateTime::now_utc() };
    let mut checks = asker.before().await?;
    checks.extend(asker.after().await?);
    Ok(value(&checks))
}

fn value(checks: &[Check]) -> Value {
    let list: Vec<_> = checks.iter().map(Check::value).collect();
    json!({ "verdict": worst(checks).word(), "checks": list })
}

fn print(checks: &[Check], out: &mut Out) -> anyhow::Result<()> {
    out.table(&table(checks))?;
    for check in checks.iter().filter(|check| !check.remedy.is_empty()) {
        out.line(format!("{}: {}", out.toned(check.verdict.tone(), check.name), check.remedy))?;
    }
    Ok(())
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new(2, &["CHECK", "VERDICT", "REASON"]);
    for check in checks {
        table.toned_row(vec![
            (check.name.to_owned(), Tone::Plain),
            (check.verdict.word().to_owned(), check.verdict.tone()),
            (check.reason.clone(), Tone::Plain),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_printed_in_columns_and_as_json() {
        let checks = [
            Check::pass("kernel-version", "Linux 5.14 or newer on 2 nodes"),
            Check::failure("roots", "no roots in shop", "look into the log"),
        ];
        insta::assert_snapshot!(table(&checks).render(false), @r"
        CHECK           VERDICT  REASON
        kernel-version  pass     Linux 5.14 or newer on 2 nodes
        roots           failure  no roots in shop
        ");
        let value = value(&checks);
        assert_eq!((&value["verdict"], &value["checks"][0]["remedy"]), (&json!("failure"), &Value::Null));
        assert_eq!(value["checks"][1]["remedy"], "look into the log");
    }
}
