//! The node agent's process: read the configuration, start logging, run until told to end.

use std::time::Duration;

use ambit_cni::{app::App, config::Config};
use ambit_runtime::{rlimit, signal, telemetry};
use ambit_wire::tls;
use anyhow::Context as _;
use clap::Parser as _;
use tracing::{info, warn};

/// What the last lines of the log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    // What the client reports as an error is tried again, and told by whoever asked.
    let quiet = telemetry::Filter::default().with("kube_client::client::builder=off")?;
    let filter = quiet.with(&config.log).context("--log")?;
    let format = config.log_format.parse().context("--log-format")?;
    let (logs, flush) = telemetry::init(format, filter)?;
    // For the API server.
    tls::install_provider().context("TLS")?;
    // A descriptor a pod, and a socket a tunnel.
    if let Err(error) = rlimit::raise_open_files() {
        warn!(%error, "The limit of open files stays as it was");
    }
    let (_exit, shutdown) = signal::listen().context("listening for signals")?;
    let app = App::start(config, |pages| logs.pages(pages)).await?;
    app.run(async {
        let cause = shutdown.requested().await;
        info!(?cause, "Told to end");
    })
    .await;
    flush.now(LAST_LINES);
    Ok(())
}
