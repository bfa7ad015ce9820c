//! How the process of a proxy begins and ends: configuration, log, limits, and the one thread that is no worker.

use std::{future::Future, process::ExitCode, time::Duration};

use ambit_runtime::{
    env::Env,
    rlimit,
    telemetry::{self, Filter, Format, LogControl},
};

use crate::config::{LogFormat, Logging};

/// For the last log lines to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs the proxy that is called `name` until it ends: `read` its configuration, `logging` is that of its log, `run` does
/// the rest.
pub fn run<C, F>(
    name: &str,
    read: impl FnOnce(&mut Env) -> C,
    logging: impl FnOnce(&C) -> &Logging,
    run: impl FnOnce(C, LogControl) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    // Before anything large is allocated. The kernel would back a heap that is mostly empty by whole huge
    // pages. Refused by nobody we know of; without it the proxy is merely larger.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match start(read, logging, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "The {name} ends");
            complain(name, &error);
            ExitCode::FAILURE
        }
    }
}

fn start<C, F>(
    read: impl FnOnce(&mut Env) -> C,
    logging: impl FnOnce(&C) -> &Logging,
    run: impl FnOnce(C, LogControl) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut env = Env::of_process();
    let config = read(&mut env);
    env.finish()?;
    let Logging { level, format, .. } = logging(&config);
    let format = match format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    let (logs, flush) = telemetry::init(format, Filter::default().with(level)?)?;
    match rlimit::raise_open_files() {
        Ok(limit) => tracing::debug!(limit = ?limit, "Open file limit raised"),
        Err(error) => tracing::warn!(error = %error, "Open file limit stays as it is"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(config, logs));
    flush.now(FAREWELL);
    outcome
}

/// Where a log that could not be started would have been read.
#[expect(clippy::print_stderr, reason = "there may be no log yet")]
fn complain(name: &str, error: &anyhow::Error) {
    eprintln!("{name}: {error:#}");
}
