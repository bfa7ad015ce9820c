//! What can be typed: the commands and what all of them share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

use crate::cmd::{
    analyze, bug_report, ca, check, completion, install, namespace, playground, status, tunnel_config,
    version, waypoint,
};

const EXIT: &str = "Exit status:
  0  it was done, and all is well
  1  it failed; the message says what to do
  2  the command line was wrong
  3  `ambit status`: something is stale, not ready or unreachable; `ambit check`: a check failed
  `ambit playground exec` ends as the command in the pod does.";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::White.on_default().bold())
    .usage(AnsiColor::White.on_default().bold())
    .literal(AnsiColor::Cyan.on_default());

/// Shows and explains an Ambit mesh, and makes one on this machine to play with.
#[derive(Debug, Parser)]
#[command(name = "ambit", version, after_help = EXIT, styles = STYLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// Set to anything: no colours.
    #[arg(long, env = "NO_COLOR", value_name = "ANYTHING", hide = true, global = true)]
    pub(crate) no_color: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A mesh on this machine: nodes and pods are network namespaces, all else is real.
    #[command(alias = "pg")]
    Playground(playground::Args),
    /// Every component: its version, and whether what it knows is up to date and since when.
    Status(status::Args),
    /// Installs the mesh in a cluster: shows what is new, asks, applies, and waits until all of it runs.
    Install(install::InstallArgs),
    /// Installs this version over the one that is there, or other values over those that were said.
    Upgrade(install::UpgradeArgs),
    /// Removes the mesh from a cluster, with everything that it made there.
    Uninstall(install::UninstallArgs),
    /// What a tunnel knows and does, in the columns of `istioctl ztunnel-config`.
    #[command(alias = "tc")]
    TunnelConfig(tunnel_config::Args),
    /// Takes namespaces into the mesh and out of it, and says what that means.
    #[command(alias = "ns")]
    Namespace(namespace::Args),
    /// Gives namespaces and services a waypoint, shows waypoints and who goes through them, takes them away.
    #[command(alias = "wp")]
    Waypoint(waypoint::Args),
    /// What the mesh needs and how it is: named checks, each with a verdict, a reason and a remedy.
    Check(check::Args),
    /// What is wrong with objects, in files before they are applied or in a cluster.
    Analyze(analyze::Args),
    /// How the mesh's root stands, and from one root to the next.
    Ca(ca::Args),
    /// Everything that helps to understand what is wrong with a mesh, and no secret, in one file.
    BugReport(bug_report::Args),
    /// The versions of this program and of every component.
    Version(version::Args),
    /// A script that completes this command line in a shell.
    Completion(completion::Args),
}

/// The command as it was called: kubectl runs a plugin as `kubectl-ambit`, and people type `kubectl ambit`.
pub(crate) fn called(command: clap::Command, program: Option<OsString>) -> clap::Command {
    let program = program.map(PathBuf::from);
    let plugin = program.as_deref().and_then(Path::file_stem).is_some_and(|stem| stem == "kubectl-ambit");
    if plugin { command.bin_name("kubectl ambit").display_name("kubectl-ambit") } else { command }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_tells_the_exit_statuses() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("3  `ambit status`"), "{help}");
    }

    #[test]
    fn what_a_pod_is_to_run_is_left_alone() {
        let line = ["ambit", "playground", "exec", "shop/client", "--", "curl", "-s", "--help"];
        let cli = Cli::try_parse_from(line).unwrap();
        let Command::Playground(args) = cli.command else { panic!("{cli:?}") };
        let playground::Command::Exec(exec) = args.command else { panic!("{args:?}") };
        assert_eq!(exec.command, ["curl", "-s", "--help"]);
    }
}
