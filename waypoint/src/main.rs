//! Reads the configuration, starts logging, runs the waypoint.

use std::process::ExitCode;

use ambit_proxy::config::{Disk, LogFormat};
use ambit_runtime::{
    env::Env,
    rlimit,
    telemetry::{self, Filter, Format},
};
use ambit_waypoint::{app, config::Config};

fn main() -> ExitCode {
    // Before anything large is allocated. The kernel would back a heap that is mostly empty by whole huge
    // pages; refused by nobody we know of.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "The waypoint ends");
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let mut env = Env::of_process();
    let config = Config::read(&mut env, &Disk);
    env.finish()?;
    let format = match config.logging.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    let (logs, flush) = telemetry::init(format, Filter::default().with(&config.logging.level)?)?;
    match rlimit::raise_open_files() {
        Ok(limit) => tracing::debug!(limit = ?limit, "Open file limit raised"),
        Err(error) => tracing::warn!(error = %error, "Open file limit stays as it is"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(app::run(config, logs));
    flush.now(FAREWELL);
    outcome
}

/// For the last log lines to leave.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

/// Where a log that could not be started would have been read.
#[expect(clippy::print_stderr, reason = "there may be no log yet")]
fn complain(error: &anyhow::Error) {
    eprintln!("waypoint: {error:#}");
}
