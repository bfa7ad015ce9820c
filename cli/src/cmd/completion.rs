//! `ambit completion`: a script that completes the command line in a shell.

use std::process::ExitCode;

use clap_complete::Shell;

use crate::output::Out;

const ABOUT: &str = "Examples:
  source <(ambit completion bash)
  ambit completion zsh > \"${fpath[1]}/_ambit\"
  ambit completion fish > ~/.config/fish/completions/ambit.fish

As a plugin: link this program as kubectl-ambit into the PATH; then `kubectl ambit` is this command.";

/// For which shell.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
}

/// Prints the script for `command`.
pub(crate) fn run(args: &Args, command: &mut clap::Command, out: &mut Out) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "ambit", &mut script);
    out.text(String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
