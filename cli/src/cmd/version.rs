//! `ambit version`: of this program, and of every component.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::playground::state::Kind;
use super::sources::{Sources, Target};
use crate::output::{Format, Out, Table};

/// A component knows its version at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this program's; asks nobody.
    #[arg(long)]
    client: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    sources: Sources,
}

/// Of this program.
pub(crate) const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    let tables = args.output == Format::Table;
    if tables {
        out.line(format!("client: {CLIENT}"))?;
    }
    if args.client {
        if !tables {
            out.value(&json!({ "client": CLIENT }), args.output)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut versions = Vec::new();
    for target in args.sources.all().await? {
        versions.push((target.title(), version(&target).await));
    }
    if !tables {
        let components: Vec<_> = versions
            .iter()
            .map(|(title, version)| json!({ "component": title, "version": version }))
            .collect();
        out.value(&json!({ "client": CLIENT, "components": components }), args.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(2, &["COMPONENT", "VERSION"]);
    for (title, version) in &versions {
        table.row([title.clone(), version.clone().unwrap_or_else(|| "-".to_owned())]);
    }
    out.table(&table)?;
    let different: BTreeSet<_> = versions.iter().filter_map(|(_, version)| version.as_ref()).collect();
    if different.len() > 1 {
        out.line("the versions differ; that is well during an upgrade, and should not last")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a component says itself, else what its image is called.
pub(crate) async fn version(target: &Target) -> Option<String> {
    let page = match target.kind {
        Kind::Controller => "/version",
        Kind::Ztunnel => "/debug/sync",
        Kind::Agent => return target.version.clone(),
    };
    let said = timeout(PATIENCE, target.admin.get(page)).await.ok().and_then(Result::ok);
    let said = said.and_then(|said| match target.kind {
        Kind::Ztunnel => {
            let sync: Value = serde_json::from_str(&said).ok()?;
            sync.get("version")?.as_str().map(str::to_owned)
        }
        Kind::Controller | Kind::Agent => Some(said.trim().to_owned()),
    });
    said.or_else(|| target.version.clone())
}
