//! Reads the configuration, starts logging, runs the controller; or what `ambit check --probe` asks for.

use std::{process::ExitCode, time::Duration};

use ambit_controller::{
    app,
    config::Config,
    probe::{self, Line},
};
use ambit_runtime::{rlimit, telemetry};
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Not a command beside others: of the controller's settings, none is needed for it, and some are for the other.
    let mut words = std::env::args_os().skip(1).peekable();
    let done = match words.peek() {
        Some(word) if word == probe::WORD => probed(Line::parse_from(words)),
        Some(_) | None => start(Config::parse()).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn probed(line: Line) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let is_well = runtime.block_on(probe::run(line))?;
    // A name that is still looked up is not waited for.
    runtime.shutdown_background();
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn start(config: Config) -> anyhow::Result<()> {
    ambit_wire::tls::install_provider()?;
    let (logs, flush) = telemetry::init(config.log_format, config.log.clone())?;
    match rlimit::raise_open_files() {
        Ok(limit) => tracing::debug!(?limit, "Open file limit raised"),
        Err(error) => tracing::warn!(%error, "Open file limit stays as it is"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(app::run(config, &logs));
    if let Err(error) = &outcome {
        tracing::error!(%error, "The controller ends");
    }
    runtime.shutdown_timeout(FAREWELL);
    flush.now(FAREWELL);
    Ok(outcome?)
}

/// For the last files to be read, and the last log lines to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// The log may not have started, or go where nobody looks.
#[expect(clippy::print_stderr, reason = "an operator who starts it by hand must see why it did not start")]
fn complain(error: &anyhow::Error) {
    eprintln!("controller: {error:#}");
}
