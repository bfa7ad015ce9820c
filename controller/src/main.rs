//! Reads the configuration, starts logging, runs the controller.

use std::{process::ExitCode, time::Duration};

use ambit_controller::{app, config::Config};
use ambit_runtime::{rlimit, telemetry};
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config = Config::parse();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
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
