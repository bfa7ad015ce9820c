//! The application that pods run in the lab: a server that says who it is, and clients that report what they saw as
//! JSON, one object a line.

mod authorize;
mod bulk;
mod call;
mod collect;
mod grpc;
mod hold;
mod http;
mod report;
mod serve;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "ambit-lab-app", about, version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves HTTP, a line echo, and bulk bytes in both directions, on IPv4 and IPv6.
    Serve(serve::Args),
    /// Makes HTTP requests and prints what came of each, and a summary.
    Call(call::Args),
    /// Holds one connection to a line echo; fails when it breaks.
    Hold(hold::Args),
    /// Sends bytes to a sink, closes its direction, and compares the SHA-256 that comes back.
    Push(bulk::Args),
    /// Fetches bytes from a source and compares their SHA-256 with what they must be.
    Pull(bulk::Args),
    /// Answers a proxy that asks about requests: an external authorizer, in gRPC and in HTTP.
    Authorize(authorize::Args),
    /// Takes spans as a collector of OpenTelemetry does, and tells them as JSON.
    Collect(collect::Args),
    /// Serves what the conformance tests of Gateway API call.
    SuiteServer(suite::server::Args),
    /// Calls it, and prints what those tests read.
    SuiteClient(suite::client::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Serve(args) => serve::run(args).await,
        Command::Call(args) => call::run(args).await,
        Command::Hold(args) => hold::run(args).await,
        Command::Push(args) => bulk::push(args).await,
        Command::Pull(args) => bulk::pull(args).await,
        Command::Authorize(args) => authorize::run(args).await,
        Command::Collect(args) => collect::run(args).await,
        Command::SuiteServer(args) => suite::server::run(args).await,
        Command::SuiteClient(args) => suite::client::run(args).await,
    };
    match outcome {
        Ok(report::Verdict::Good) => ExitCode::SUCCESS,
        Ok(report::Verdict::Bad) => ExitCode::FAILURE,
        Err(err) => {
            report::line(&serde_json::json!({ "fatal": err.to_string() }));
            ExitCode::FAILURE
        }
    }
}
