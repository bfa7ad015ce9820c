//! Runs the system's own network commands, and says what to do when one fails.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

/// A command that could not be run, or that failed.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` failed: {stderr}; {remedy}")]
pub struct CommandError {
    /// What was run.
    pub command: String,
    /// What it said.
    pub stderr: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// Runs `argv` with `input` and returns what it printed.
pub(crate) fn run(argv: &[&str], input: &str) -> Result<String, CommandError> {
    let command = argv.join(" ");
    let failed = |stderr: String| {
        let remedy = remedy(argv.first().copied().unwrap_or_default(), &stderr);
        // A batch is told by its input: the message of `ip` names a line of it.
        let shown = if input.is_empty() { command.clone() } else { format!("{command} <<< {input:?}") };
        CommandError { command: shown, stderr, remedy }
    };
    let [program, args @ ..] = argv else {
        return Err(failed("no command".to_owned()));
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|err| failed(spoken(&err)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends early closes its input; its exit status then tells why.
        match stdin.write_all(input.as_bytes()) {
            Err(err) if err.kind() != ErrorKind::BrokenPipe => return Err(failed(spoken(&err))),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(|err| failed(spoken(&err)))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
    }
}

fn spoken(err: &std::io::Error) -> String {
    if err.kind() == ErrorKind::NotFound {
        "the program is not installed".to_owned()
    } else {
        err.to_string()
    }
}

fn remedy(program: &str, stderr: &str) -> &'static str {
    if stderr.contains("not installed") {
        return match program {
            "ip" | "tc" => "install the package iproute2",
            "nft" => "install the package nftables",
            "dnsmasq" => "install the package dnsmasq-base",
            "tcpdump" => "install the package tcpdump",
            "setpriv" => "install the package util-linux",
            _ => "install it and put it on PATH",
        };
    }
    if stderr.contains("not permitted") || stderr.contains("ermission denied") {
        return "run as root: the lab makes network namespaces";
    }
    if stderr.contains("qdisc kind is unknown") {
        return "this kernel has no netem: load the module sch_netem, or ask for a link without delay and loss";
    }
    if stderr.contains("File exists") {
        return "something of that name is there already: sweep the lab, or choose other names";
    }
    "the message above is the kernel's or the tool's own; is the kernel built with namespaces, veth and nftables?"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_command_message_and_remedy() {
        let err = run(&["ip", "-n", "amb-no-such-lab", "link"], "").unwrap_err();
        assert_eq!(err.command, "ip -n amb-no-such-lab link");
        assert!(err.stderr.contains("amb-no-such-lab"), "{err}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        assert_eq!(remedy("nft", "the program is not installed"), "install the package nftables");
        let err = run(&["ambit-no-such-program"], "").unwrap_err();
        assert_eq!(err.remedy, "install it and put it on PATH");
    }
}
