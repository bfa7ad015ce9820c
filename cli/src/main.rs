//! `ambit`, the operator's command: reads what was typed, does it, and says by the exit status how it went.

mod args;
mod cluster;
mod cmd;
mod connect;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::output::Out;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::new(cli.no_color.as_deref());
    let done = match cli.command {
        Command::Playground(args) => cmd::playground::run(args, &mut out).await,
        Command::Install(args) => cmd::install::install(&args, &mut out).await,
        Command::Upgrade(args) => cmd::install::upgrade(&args, &mut out).await,
        Command::Uninstall(args) => cmd::install::uninstall(&args, &mut out).await,
        Command::Status(args) => cmd::status::run(&args, &mut out).await,
        Command::TunnelConfig(args) => cmd::tunnel_config::run(&args, &mut out).await,
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
