//! `ambit playground`: a mesh on this machine. One process supervises it; the other commands read what it wrote down,
//! and change the YAML that it follows.

mod change;
pub(crate) mod documents;
mod logs;
mod look;
mod progress;
pub(crate) mod state;
mod supervise;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use self::documents::{LabelChange, Wanted};
use self::state::Place;
use crate::output::{Format, Out};

const EXAMPLES: &str = "Examples:
  ambit playground up
  ambit playground exec shop/client -- curl -s http://web/
  ambit playground exec shop/client -- ambit-lab-app call http://web/ --count 10 --new-connection
  ambit playground label namespace shop istio.io/dataplane-mode-
  ambit playground edit shop/service/web
  ambit playground logs ztunnel/node-a --follow
  ambit playground down";

/// What to do with the playground.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Brings it up: nodes, a small shop of pods and services, controller, agents and tunnels.
    Up(UpArgs),
    /// Ends it. Nothing of it is left, but for a directory of YAML that was given to it.
    Down,
    /// Shows nodes, pods and processes.
    Status(StatusArgs),
    /// Runs a command in a pod; the exit status is the command's.
    Exec(ExecArgs),
    /// Adds the objects of a file, or puts them in the place of those of the same names.
    Apply(ApplyArgs),
    /// Opens an object in an editor; it is applied when the editor ends.
    Edit(EditArgs),
    /// Removes an object.
    Delete(DeleteArgs),
    /// Sets or removes labels of an object.
    Label(LabelArgs),
    /// Shows the log of a component or pod.
    Logs(LogsArgs),
    /// Keeps a playground up: what `up` leaves running.
    #[command(hide = true)]
    Supervise(UpArgs),
}

/// How it is to be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UpArgs {
    /// The YAML to follow. Without it, a small shop in a directory of its own, which goes with the playground. An empty
    /// or missing directory is filled with the shop.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many nodes: node-a, node-b and so on.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
    /// Where the programs are. Without it, beside this one.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// IPv4, IPv6 or both.
    #[arg(long, value_enum, default_value_t)]
    family: Family,
    /// Stay in the foreground, until Ctrl-C.
    #[arg(long, conflicts_with = "detach")]
    foreground: bool,
    /// Return when it is up, as is usual.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Family {
    V4,
    V6,
    #[default]
    Dual,
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Dual => "dual",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// The pod: NAMESPACE/POD.
    pod: String,
    /// What to run. The lab's own client is there too: `ambit-lab-app call URL`.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
    /// Where programs are looked for, after those of the playground.
    #[arg(
        long,
        env = "PATH",
        hide = true,
        hide_env_values = true,
        default_value = "/usr/sbin:/usr/bin:/sbin:/bin"
    )]
    path: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    /// The file; `-` is standard input.
    #[arg(long, short, value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EditArgs {
    /// Which: NAMESPACE/KIND/NAME, or KIND/NAME.
    #[arg(value_parser = Wanted::path)]
    object: Wanted,
    /// The editor, with its arguments.
    #[arg(long, env = "EDITOR", default_value = "vi")]
    editor: String,
    /// Preferred to EDITOR, as is usual.
    #[arg(long, env = "VISUAL", hide = true)]
    visual: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Which: NAMESPACE/KIND/NAME, or KIND/NAME.
    #[arg(value_parser = Wanted::path)]
    object: Wanted,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LabelArgs {
    /// Its kind: namespace, pod, service.
    kind: String,
    /// Its name, or NAMESPACE/NAME.
    name: String,
    /// KEY=VALUE sets a label, KEY- removes one.
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<LabelChange>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// `controller`, `agent/NODE`, `ztunnel/NODE`, `supervisor`, or a pod: NAMESPACE/POD. Without it, all that there
    /// are.
    of: Option<String>,
    /// Go on as lines come, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Begin with so many of the last lines.
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 100)]
    tail: usize,
}

/// Does it.
pub(crate) async fn run(args: Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    let place = args.place;
    match args.command {
        Command::Up(args) => up::up(&place, &args, out).await?,
        Command::Supervise(args) => up::supervise(&place, &args).await?,
        Command::Down => up::down(&place, out).await?,
        Command::Status(args) => look::status(&place, args.output, out)?,
        Command::Exec(args) => return look::exec(&place, &args),
        Command::Apply(args) => change::apply(&place, &args.file, out)?,
        Command::Edit(args) => {
            let editor = args.visual.as_deref().filter(|visual| !visual.is_empty()).unwrap_or(&args.editor);
            change::edit(&place, &args.object, editor, out)?;
        }
        Command::Delete(args) => change::delete(&place, &args.object, out)?,
        Command::Label(args) => change::label(&place, &args.kind, &args.name, &args.labels, out)?,
        Command::Logs(args) => logs::logs(&place, args.of.as_deref(), args.tail, args.follow, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}
