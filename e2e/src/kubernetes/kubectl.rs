//! `kubectl` against one cluster: what stories do to it, what they wait for, and what they show when it does not come.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_lab::process::{self, Output, Program};
use anyhow::Context as _;
use serde_json::Value;

use super::home::Home;
use crate::wait::Stop;

/// A command that waits says so itself (`--timeout`); all others are done at once.
const LIMIT: Duration = Duration::from_secs(300);
/// One question costs a fifth of a second of a core.
const PAUSE: Duration = Duration::from_millis(300);

/// `kubectl`, as the administrator of a cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    dir: PathBuf,
}

impl Kubectl {
    pub(super) fn new(home: &Home, programs: &Path) -> Self {
        Self { program: programs.join("kubernetes"), kubeconfig: home.kubeconfig(), dir: home.dir() }
    }

    /// The command, to be run however the caller likes.
    pub fn program(&self, args: &[&str]) -> Program {
        Program::new(&self.program)
            .arg("kubectl")
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            // Its cache goes with the cluster.
            .arg(format!("--cache-dir={}", self.dir.join("kubectl").display()))
            .args(args)
            .env("HOME", &self.dir)
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(process::run(None, &self.program(args), LIMIT)?)
    }

    /// Runs it, which must succeed; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(self.run(args)?.ok()?)
    }

    /// Applies documents, on the server's side.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let file =
            tempfile::Builder::new().suffix(".yaml").tempfile_in(&self.dir).context("no place for a file")?;
        fs::write(file.path(), yaml)?;
        let path = file.path().to_string_lossy().into_owned();
        self.ok(&["apply", "--server-side", "--force-conflicts", "--filename", &path])?;
        Ok(())
    }

    /// Runs a command in a pod (`name`, or `deployment/name`), which must succeed; returns what it printed.
    pub fn exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> anyhow::Result<String> {
        let args = ["--namespace", namespace, "exec", pod, "--"];
        self.ok(&[&args[..], argv].concat())
    }

    /// An object, or a list of them, as JSON; `None` if it is not there.
    pub fn get(&self, namespace: &str, what: &[&str]) -> anyhow::Result<Option<Value>> {
        let args = ["--namespace", namespace, "get", "--output=json", "--ignore-not-found"];
        let printed = self.ok(&[&args[..], what].concat())?;
        if printed.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&printed)?)) }
    }

    /// Waits until a workload (`deployment/name`) is rolled out; if it is not, the error shows what is known.
    pub fn rolled_out(&self, namespace: &str, what: &str, limit: Duration) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.ok(&["--namespace", namespace, "rollout", "status", what, &timeout])
            .map(drop)
            .with_context(|| self.evidence(namespace))
    }

    /// Waits until `probe` finds something; if it does not, the error shows what is known of the namespace.
    pub fn until<T>(
        &self,
        namespace: &str,
        limit: Duration,
        what: &str,
        probe: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        Stop::default().until_every(PAUSE, limit, what, probe).with_context(|| self.evidence(namespace))
    }

    /// Makes a namespace anew, empty.
    pub fn fresh_namespace(&self, name: &str) -> anyhow::Result<()> {
        self.delete_namespace(name)?;
        self.ok(&["create", "namespace", name]).map(drop)
    }

    /// Deletes a namespace; returns when it is gone.
    pub fn delete_namespace(&self, name: &str) -> anyhow::Result<()> {
        let args = ["delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=120s"];
        self.ok(&args).map(drop).with_context(|| self.evidence(name))
    }

    /// Pods, events and last words of a namespace.
    pub fn evidence(&self, namespace: &str) -> String {
        let shown = |args: &[&str]| match self.run(&[&["--namespace", namespace], args].concat()) {
            Ok(output) => format!("{}{}", output.stdout, output.stderr),
            Err(err) => format!("{err}\n"),
        };
        let pods = shown(&["get", "pods", "--output=wide"]);
        let events = shown(&["get", "events", "--sort-by=.lastTimestamp"]);
        let mut told = format!("pods of {namespace}:\n{pods}events:\n{}", last_lines(&events, 30));
        for pod in pods.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            let logs = shown(&["logs", pod, "--all-containers", "--tail=15"]);
            told.push_str(&format!("log of {pod}:\n{logs}"));
        }
        told
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.iter().skip(from).map(|line| format!("{line}\n")).collect()
}
