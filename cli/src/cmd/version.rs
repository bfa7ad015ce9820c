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
            .map(|(title, version)| json!({ "component": title, "version": version.shown() }))
            .collect();
        out.value(&json!({ "client": CLIENT, "components": components }), args.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(2, &["COMPONENT", "VERSION"]);
    for (title, version) in &versions {
        table.row([title.as_str(), version.shown().unwrap_or("-")]);
    }
    out.table(&table)?;
    if differ(versions.iter().map(|(_, version)| version)) {
        out.line("the versions differ; that is well during an upgrade, and should not last")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Which version something is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// By its own word.
    pub(crate) said: Option<String>,
    /// By who started it: the tag of its image, say.
    pub(crate) tag: Option<String>,
}

impl Version {
    /// The better known of the two.
    pub(crate) fn shown(&self) -> Option<&str> {
        self.said.as_deref().or(self.tag.as_deref())
    }
}

/// Whether there are several versions. Words and tags are only compared with their like: a tag may be called anything.
pub(crate) fn differ<'a>(versions: impl Iterator<Item = &'a Version>) -> bool {
    let (mut said, mut tags) = (BTreeSet::new(), BTreeSet::new());
    for version in versions {
        said.extend(version.said.as_deref());
        tags.extend(version.tag.as_deref());
    }
    said.len() > 1 || tags.len() > 1
}

/// Asks a component.
pub(crate) async fn version(target: &Target) -> Version {
    let tag = target.version.clone();
    let page = match target.kind {
        Kind::Controller => "/version",
        Kind::Ztunnel => "/debug/sync",
        Kind::Agent => return Version { said: None, tag },
    };
    let answer = timeout(PATIENCE, target.admin.get(page)).await.ok().and_then(Result::ok);
    let said = answer.and_then(|answer| match target.kind {
        Kind::Ztunnel => {
            let sync: Value = serde_json::from_str(&answer).ok()?;
            sync.get("version")?.as_str().map(str::to_owned)
        }
        Kind::Controller | Kind::Agent => Some(answer.trim().to_owned()),
    });
    Version { said, tag }
}
