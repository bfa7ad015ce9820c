//! `ambit-demo`: two nodes, real packets, the story of the mesh step by step. Leaves nothing behind.

use std::path::PathBuf;
use std::process::ExitCode;

use ambit_e2e::demo::{self, Settings};
use ambit_e2e::wait::Stop;
use anyhow::{Context as _, ensure};
use clap::Parser;

/// Tells the story of the mesh on real packets, and says whether each step's evidence held.
#[derive(Debug, Parser)]
#[command(name = "ambit-demo", version)]
struct Args {
    /// Where the programs are. Without it: where this one is.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Leave logs, captures and configuration, and say where.
    #[arg(long)]
    keep: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    ensure!(ambit_e2e::town::is_root(), "the demo makes network namespaces: run it as root");
    let binaries = match args.binaries {
        Some(dir) => dir,
        None => {
            let own = std::env::current_exe().context("where is this program?")?;
            own.parent().context("this program is in no directory")?.to_owned()
        }
    };
    let stop = Stop::on_signals()?;
    let held = demo::run(&Settings { name: "demo".to_owned(), binaries, keep: args.keep }, &stop)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
