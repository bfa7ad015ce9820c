//! `ambit-cluster`: a real Kubernetes cluster of two nodes on this machine, brought up and taken down without a trace.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use ambit_e2e::kubernetes::home::Home;
use ambit_e2e::kubernetes::keeper::{self, Keep};
use ambit_e2e::kubernetes::{Cluster, Options};
use ambit_e2e::wait::Stop;
use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};

/// A Kubernetes cluster of two real nodes, in namespaces of this machine.
#[derive(Debug, Parser)]
#[command(name = "ambit-cluster", version)]
struct Args {
    #[command(subcommand)]
    task: Task,
    /// The cluster's name: a-z and 0-9. Clusters of different names live side by side.
    #[arg(long, global = true, default_value = "ambit")]
    name: String,
    /// The folder of all clusters' files. Without it: `clusters`, in the target directory.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the programs of Kubernetes are. Without it: where `.ci/cluster-programs` puts them.
    #[arg(long, global = true, value_name = "DIR")]
    programs: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Bring it up; it stays until `down`.
    Up,
    /// Take it down: no process, mount, namespace, control group or file of it stays.
    Down,
    /// Say where its administrator's configuration is.
    Kubeconfig,
    /// Run kubectl against it.
    Kubectl {
        /// What kubectl is to do.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a command on a node, as its root.
    Node {
        /// n1 or n2.
        node: String,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
    /// Give both nodes the images of the mesh, made of the programs beside this one.
    Images,
    /// Hold a cluster until it is to go.
    #[command(hide = true)]
    Keep {
        /// Goes when nobody has used it for so many seconds.
        #[arg(long)]
        idle: Option<u64>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    ensure!(ambit_e2e::town::is_root(), "a cluster needs namespaces and mounts: run as root");
    let mut options = Options::found(&args.name)?;
    options.root = args.dir.unwrap_or(options.root);
    options.programs = args
        .programs
        .unwrap_or(options.programs)
        .canonicalize()
        .context("the cluster's programs are missing: run .ci/cluster-programs")?;
    match args.task {
        Task::Up => up(&options)?,
        Task::Down => Cluster::take_down(&options)?,
        Task::Kubeconfig => say(&Cluster::attach(&options)?.kubeconfig().display().to_string())?,
        Task::Kubectl { args } => {
            let cluster = Cluster::attach(&options)?;
            let status = Command::new(options.programs.join("kubernetes"))
                .arg("kubectl")
                .args(args)
                .env("KUBECONFIG", cluster.kubeconfig())
                .status()
                .context("cannot run kubectl")?;
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Node { node, args } => {
            let words: Vec<_> = args.iter().map(String::as_str).collect();
            let output = Cluster::attach(&options)?.in_node(&node, &words, Duration::from_secs(600))?;
            say(output.stdout.trim_end())?;
            if !output.status.success() {
                bail!("it ended with {}: {}", output.status, output.stderr.trim_end());
            }
        }
        Task::Images => {
            Cluster::attach(&options)?.load_mesh()?;
        }
        Task::Keep { idle } => {
            let keep = Keep {
                home: Home::new(&options.name, &options.root)?,
                programs: options.programs,
                binaries: options.binaries,
                idle: idle.map(Duration::from_secs),
            };
            keeper::keep(&keep, &Stop::on_signals()?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(options: &Options) -> anyhow::Result<()> {
    let cluster = Cluster::leave_up(options)?;
    say(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()))?;
    say(&format!("alias kubectl='{} kubectl'", options.programs.join("kubernetes").display()))
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to standard output")
}
