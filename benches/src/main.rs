//! The benchmark of tunnels and waypoints, and the two ends of its traffic, which are this program too.

use std::{path::PathBuf, process::ExitCode};

use ambit_benches::{load, run, serve};
use clap::{Parser, Subcommand};

/// Measures Ambit's tunnels and waypoint beside none and beside Envoy, in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "ambit-bench", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The directory with `ztunnel` and `waypoint`.
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    binaries: PathBuf,
    /// The Envoy to compare with; without it there is no such column.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Fewer and shorter rounds: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Only the workloads whose name contains this: bulk, rate, speed, churn, idle, after, start, waypoint.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Where the results go.
    #[arg(long, value_name = "FILE", default_value = "benches/results/latest.json")]
    json: PathBuf,
    /// Further environment of the tunnels, NAME=VALUE; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Builds the stage and waits for an interrupt, to look at it by hand: `ip netns exec amb-bench-…`.
    #[arg(long)]
    stage_only: bool,
    /// Keeps the logs of everything that ran in this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The application's end: answers HTTP, takes bytes.
    #[command(hide = true)]
    Serve,
    /// The client's end: makes one kind of traffic and prints what came of it as JSON.
    #[command(hide = true, subcommand)]
    Load(load::Load),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.part {
        Some(Part::Serve) => serve::run(),
        Some(Part::Load(load)) => load::run(&load),
        None if args.run.stage_only => run::stage_only(&args.run.settings()),
        None => run::run(&args.run.settings()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

impl RunArgs {
    fn settings(self) -> run::Settings {
        let Self { binaries, envoy, quick, only, json, env, stage_only: _, logs } = self;
        let pair =
            |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = env.into_iter().filter_map(pair).collect();
        let [ztunnel, waypoint] = ["ztunnel", "waypoint"].map(|name| binaries.join(name));
        run::Settings { ztunnel, waypoint, envoy, quick, only, json, env, logs }
    }
}

#[expect(clippy::print_stderr, reason = "this is the operator's terminal")]
fn complain(error: &anyhow::Error) {
    eprintln!("ambit-bench: {error:#}");
}
