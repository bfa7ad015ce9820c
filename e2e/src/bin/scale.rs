//! `ambit-scale`: a large cluster that is not there, and how the controller bears it.

use std::path::PathBuf;
use std::time::Duration;

use ambit_e2e::api_server::ApiServer;
use ambit_e2e::scale::{self, Plan, objects::Shape};
use ambit_e2e::wait::Stop;
use clap::Parser;

/// Measures the controller with simulated nodes against a real API server.
#[derive(Debug, Parser)]
#[command(name = "ambit-scale")]
struct Args {
    /// The directory of the built `controller`.
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// The directory of the built program `kubernetes`.
    #[arg(long, default_value = "target/tools/kubernetes")]
    programs: PathBuf,
    /// Nodes, each with a tunnel that subscribes.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Pods.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Services.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Pods a second that go and come.
    #[arg(long, default_value_t = 50)]
    churn: u32,
    /// For how many seconds, in each of the two ways of subscribing.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "a tool whose output is its result")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ambit_wire::tls::install_provider()?;
    let stop = Stop::on_signals()?;
    let api = ApiServer::start(&args.programs, &stop)?;
    let plan = Plan {
        shape: Shape { nodes: args.nodes, pods: args.pods, services: args.services },
        churn: args.churn,
        duration: Duration::from_secs(args.seconds),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(scale::run(&plan, &args.binaries.join("controller"), &api, &stop))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        println!("{report}");
    }
    Ok(())
}
