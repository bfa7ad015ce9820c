//! Reads the configuration, starts logging, runs the tunnel.

use std::process::ExitCode;

use ambit_runtime::{
    env::Env,
    rlimit,
    telemetry::{self, Filter, Format},
};
use ambit_ztunnel::{
    app,
    config::{Config, Disk, LogFormat},
};

fn main() -> ExitCode {
    // Before anything large is allocated. The kernel would back a heap that is mostly empty by whole huge
    // pages. Refused by nobody we know of; without it the tunnel is merely larger.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "The tunnel ends");
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

/// A mistake in the configuration comes before there is a log.
#[expect(clippy::print_stderr, reason = "the only way to be heard when logging itself could not start")]
fn complain(error: &anyhow::Error) {
    eprintln!("ztunnel: {error:#}");
}
