//! Runs a program of the system with input, and reads what it says.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// A program that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {program}: {source}; is it installed?")]
    Start {
        /// The program.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The end of what it wrote to its standard error.
        said: String,
    },
}

/// How much of a complaint is kept: `nft` repeats the whole line that it dislikes.
const COMPLAINT: usize = 800;

/// How it went: what a program wrote, and whether it was content.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Exit status 0.
    pub content: bool,
}

/// Runs a program in this thread's namespaces, feeds it `input` and waits for its end.
pub fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<Output, CommandError> {
    let start = |source| CommandError::Start { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        // Messages are parsed.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading says why on its own; its inputs here fit a pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    Ok(Output {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        content: output.status.success(),
    })
}

/// As [`run`], where anything but success is an error.
pub fn demand(program: &'static str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let Output { out, err, content } = run(program, arguments, input)?;
    if content { Ok(out) } else { Err(failed(program, &err)) }
}

/// The error of a program that said `err`.
pub fn failed(program: &'static str, err: &str) -> CommandError {
    CommandError::Failed { program, said: err.trim().chars().take(COMPLAINT).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_goes_in_and_output_comes_out() {
        assert_eq!(demand("cat", &[], "hello").unwrap(), "hello");
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = demand("sh", &["-c", "echo no such thing >&2; exit 3"], "").unwrap_err();
        assert_eq!(error.to_string(), "sh failed: no such thing");
        assert!(demand("ambit-no-such-program", &[], "").unwrap_err().to_string().contains("installed"));
    }
}
