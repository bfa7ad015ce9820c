//! `ambit`, the operator's command: reads what was typed, does it, and says by the exit status how it went.

mod args;
mod cluster;
mod cmd;
mod connect;
mod objects;
mod output;
mod stop;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::args::{Cli, Command};
use crate::output::Out;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut command = args::called(Cli::command(), std::env::args_os().next());
    let cli = Cli::from_arg_matches(&command.get_matches_mut()).unwrap_or_else(|error| error.exit());
    let mut out = Out::new(cli.no_color.as_deref());
    let done = match cli.command {
        Command::Playground(args) => cmd::playground::run(args, &mut out).await,
        Command::Install(args) => cmd::install::install(&args, &mut out).await,
        Command::Upgrade(args) => cmd::install::upgrade(&args, &mut out).await,
        Command::Uninstall(args) => cmd::install::uninstall(&args, &mut out).await,
        Command::Status(args) => cmd::status::run(&args, &mut out).await,
        Command::TunnelConfig(args) => cmd::tunnel_config::run(&args, &mut out).await,
        Command::Namespace(args) => cmd::namespace::run(&args, &mut out).await,
        Command::Waypoint(args) => cmd::waypoint::run(args, &mut out).await,
        Command::Check(args) => cmd::check::run(&args, &mut out).await,
        Command::Analyze(args) => cmd::analyze::run(&args, &mut out).await,
        Command::Ca(args) => cmd::ca::run(&args, &mut out).await,
        Command::BugReport(args) => cmd::bug_report::run(&args, &mut out).await,
        Command::Version(args) => cmd::version::run(&args, &mut out).await,
        Command::Completion(args) => cmd::completion::run(&args, &mut Cli::command(), &mut out),
    };
    match done {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::FAILURE
        }
    }
}
