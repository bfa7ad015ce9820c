//! `ambit tunnel-config`: what a tunnel knows and does.

mod dump;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use time::OffsetDateTime;

use self::dump::Dump;
use self::tables::{Direction, Filter, Names};
use super::sources::{Sources, Target};
use crate::output::{Format, Out};

const EXAMPLES: &str = "Examples:
  ambit tunnel-config workload --namespace shop
  ambit tunnel-config connections node-a
  ambit tunnel-config service --file dump.json -o yaml
  ambit tunnel-config log node-a --level access:debug";

/// What is asked of which tunnel.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Workloads: address, node, waypoint and protocol.
    #[command(visible_aliases = ["workloads", "w"])]
    Workload(#[command(flatten)] WorkloadArgs),
    /// Services: addresses, waypoint, and how many endpoints are healthy.
    #[command(visible_aliases = ["services", "svc", "s"])]
    Service(#[command(flatten)] Common),
    /// Authorization policies: action and scope.
    #[command(visible_aliases = ["policies", "pol", "p"])]
    Policy(#[command(flatten)] Common),
    /// Certificates of the pods of a node, with those they trust.
    #[command(visible_aliases = ["certificates", "certs", "cert"])]
    Certificate(#[command(flatten)] Common),
    /// Connections that are open now.
    #[command(visible_aliases = ["connection", "cons"])]
    Connections(#[command(flatten)] ConnectionArgs),
    /// All of it.
    All(#[command(flatten)] Common),
    /// Shows or changes what a tunnel logs.
    #[command(visible_alias = "o")]
    Log(#[command(flatten)] LogArgs),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The tunnel's node. Without it: any tunnel for what all know alike, every tunnel for what each has of its own.
    node_of_tunnel: Option<Node>,
    /// A dump that was saved before, instead of a tunnel: `curl localhost:15000/config_dump`.
    #[arg(long, value_name = "DUMP.JSON", conflicts_with = "node_of_tunnel")]
    file: Option<PathBuf>,
    /// Only what is in this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    sources: Sources,
}

#[derive(Debug, clap::Args)]
struct WorkloadArgs {
    #[command(flatten)]
    common: Common,
    /// Only those on this node.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only the one with this address.
    #[arg(long, value_name = "IP")]
    address: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ConnectionArgs {
    #[command(flatten)]
    common: Common,
    /// Only those that the tunnels' pods were called by, or have called.
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// Addresses as they are, not the names of services and workloads.
    #[arg(long)]
    raw: bool,
    /// Only tunnels of this node; as naming it without the flag.
    #[arg(long, value_name = "NODE", conflicts_with = "node_of_tunnel")]
    node: Option<Node>,
}

#[derive(Debug, clap::Args)]
struct LogArgs {
    /// The tunnel's node; without it, every tunnel.
    node: Option<Node>,
    /// `debug`, or `scope:level` pairs separated by commas: `access:debug,info`.
    #[arg(long, value_name = "LEVEL", conflicts_with = "reset")]
    level: Option<String>,
    /// Back to what the tunnel was started with.
    #[arg(long, short)]
    reset: bool,
    #[command(flatten)]
    sources: Sources,
}

/// The name of a node.
type Node = String;

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Workload(WorkloadArgs { common, node, address }) => {
            let dump = common.dump(Alike::All).await?;
            let filter = Filter { node: node.as_deref(), address: address.as_deref(), ..common.filter() };
            match common.output {
                Format::Table => out.table(&tables::workloads(&dump, &filter))?,
                Format::Json | Format::Yaml => out.value(&dump.raw_workloads(&filter), common.output)?,
            }
        }
        What::Service(common) => {
            let dump = common.dump(Alike::All).await?;
            match common.output {
                Format::Table => out.table(&tables::services(&dump, &common.filter()))?,
                Format::Json | Format::Yaml => {
                    out.value(&dump.raw_services(&common.filter()), common.output)?;
                }
            }
        }
        What::Policy(common) => {
            let dump = common.dump(Alike::All).await?;
            match common.output {
                Format::Table => out.table(&tables::policies(&dump, &common.filter()))?,
                Format::Json | Format::Yaml => {
                    out.value(&dump.raw_policies(&common.filter()), common.output)?;
                }
            }
        }
        What::Certificate(common) => {
            let dump = common.dump(Alike::Each).await?;
            let now = OffsetDateTime::now_utc();
            match common.output {
                Format::Table => out.table(&tables::certificates(&dump, &common.filter(), now))?,
                Format::Json | Format::Yaml => {
                    out.value(&dump.raw_certificates(&common.filter()), common.output)?;
                }
            }
        }
        What::Connections(args) => {
            let common = &args.common;
            let dump = common.dump_of(args.node.as_ref(), Alike::Each).await?;
            let names = if args.raw { Names::Addresses } else { Names::Known };
            match common.output {
                Format::Table => {
                    out.table(&tables::connections(&dump, &common.filter(), args.direction, names))?;
                }
                Format::Json | Format::Yaml => {
                    out.value(&dump.raw_connections(&common.filter()), common.output)?;
                }
            }
        }
        What::All(common) => all(common, out).await?,
        What::Log(args) => return log(args, out).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Which tunnels have to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alike {
    /// All tunnels know the same: one will do.
    All,
    /// Each has its own.
    Each,
}

impl Common {
    fn filter(&self) -> Filter<'_> {
        Filter { namespace: self.namespace.as_deref(), ..Filter::default() }
    }

    async fn dump(&self, alike: Alike) -> anyhow::Result<Dump> {
        self.dump_of(None, alike).await
    }

    async fn dump_of(&self, node: Option<&Node>, alike: Alike) -> anyhow::Result<Dump> {
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}; name a saved dump", file.display()))?;
            return Dump::parse(&text).with_context(|| format!("{} is no dump of a tunnel", file.display()));
        }
        let tunnels = self.sources.tunnels(node.or(self.node_of_tunnel.as_ref()).map(String::as_str)).await?;
        let mut whole: Option<Dump> = None;
        let mut failed = Vec::new();
        for tunnel in &tunnels {
            match fetch(tunnel).await {
                Err(error) => failed.push(format!("{error:#}")),
                Ok(dump) => match (&mut whole, alike) {
                    (None, Alike::All) => return Ok(dump),
                    (None, Alike::Each) => whole = Some(dump),
                    (Some(whole), _) => whole.add(dump),
                },
            }
        }
        match (whole, failed.is_empty()) {
            // What is missing must not look as if it were not there.
            (Some(dump), true) => Ok(dump),
            (_, _) => bail!("{}", failed.join("\n")),
        }
    }
}

async fn fetch(tunnel: &Target) -> anyhow::Result<Dump> {
    let text = tunnel.admin.get("/config_dump").await.with_context(|| tunnel.title())?;
    Dump::parse(&text).with_context(|| format!("{} gave a dump that cannot be read", tunnel.title()))
}

async fn all(common: &Common, out: &mut Out) -> anyhow::Result<()> {
    let dump = common.dump(Alike::Each).await?;
    if common.output != Format::Table {
        return out.value(&dump.raw_all(), common.output);
    }
    let filter = common.filter();
    out.table(&tables::workloads(&dump, &filter))?;
    out.line("")?;
    out.table(&tables::services(&dump, &filter))?;
    out.line("")?;
    out.table(&tables::policies(&dump, &filter))?;
    out.line("")?;
    out.table(&tables::certificates(&dump, &filter, OffsetDateTime::now_utc()))?;
    out.line("")?;
    out.table(&tables::connections(&dump, &filter, None, Names::Known))
}

async fn log(args: &LogArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let page = match (&args.level, args.reset) {
        (_, true) => "/logging?reset".to_owned(),
        (Some(level), false) => format!("/logging?level={}", spelled(level)),
        (None, false) => "/logging".to_owned(),
    };
    let mut code = ExitCode::SUCCESS;
    for tunnel in args.sources.tunnels(args.node.as_deref()).await? {
        match tunnel.admin.post(&page).await {
            Ok(said) => out.line(format!("{}:\n{}", tunnel.title(), said.trim_end()))?,
            Err(error) => {
                out.error(&anyhow::Error::new(error).context(tunnel.title()));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// istioctl knows levels that tunnels call otherwise. What remains may stand in a query as it is, but for these.
fn spelled(levels: &str) -> String {
    let one = |level: &str| match level {
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        other => other.to_owned(),
    };
    let pairs = levels.split(',').map(|pair| match pair.trim().rsplit_once([':', '=']) {
        Some((scope, level)) => format!("{}:{}", scope.trim_end_matches(':'), one(level)),
        None => one(pair.trim()),
    });
    let text = pairs.collect::<Vec<_>>().join(",");
    let escaped = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b',' | b':' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_spelled_as_tunnels_have_them() {
        assert_eq!(spelled("debug"), "debug");
        assert_eq!(spelled("warning"), "warn");
        assert_eq!(spelled("access=critical, info"), "access:error,info");
        assert_eq!(spelled("ambit_wire::xds:trace"), "ambit_wire::xds:trace");
        assert_eq!(spelled("a b&c"), "a%20b%26c");
    }
}
