//! One daemon of the mesh: started, watched, stopped, killed and started again by its handle.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::page::Admin;
use super::programs::Slot;
use super::{MeshError, PAUSE, READY_LIMIT};
use crate::node::Node;
use crate::process::{Process, Program};

/// What a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The control plane and certificate authority.
    Controller,
    /// A node agent.
    Agent,
    /// A node's tunnel.
    Tunnel,
}

impl Kind {
    /// As it is called in logs and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Tunnel => "ztunnel",
        }
    }
}

/// A daemon of the mesh. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    kind: Kind,
    node: Node,
    program: Program,
    admin: Admin,
    readiness: Admin,
    metrics: Admin,
    slot: Option<Slot>,
    process: Option<Process>,
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.kind.word(), self.node.name())
    }
}

impl Daemon {
    pub(super) fn new(kind: Kind, node: &Node, program: Program, admin: Admin, slot: Option<Slot>) -> Self {
        Self {
            kind,
            node: node.clone(),
            program,
            readiness: admin.clone(),
            metrics: admin.clone(),
            admin,
            slot,
            process: None,
        }
    }

    /// Readiness and metrics are not with the other pages.
    pub(super) fn serves_elsewhere(&mut self, readiness: Admin, metrics: Admin) {
        self.readiness = readiness;
        self.metrics = metrics;
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its pages for operators.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Where it says whether it is ready: `/healthz/ready`.
    pub fn readiness(&self) -> &Admin {
        &self.readiness
    }

    /// Where its metrics are: `/metrics`.
    pub fn metrics(&self) -> &Admin {
        &self.metrics
    }

    /// Its process id, while it runs or has not been started again.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// How it ended by itself; `None` while it runs, and when it was stopped from here.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.as_ref()?.ended()
    }

    /// The file of its log, to which each start appends.
    pub fn log(&self) -> PathBuf {
        self.node.log(self.kind.word())
    }

    /// What it has said since it was first started.
    pub fn said(&self) -> String {
        std::fs::read(self.log()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Starts it and waits until it is ready. One that runs is left alone.
    pub fn start(&mut self) -> Result<(), MeshError> {
        self.launch()?;
        self.wait_until_ready(READY_LIMIT)
    }

    /// Starts it, without waiting.
    pub fn launch(&mut self) -> Result<(), MeshError> {
        if self.process.as_ref().is_none_or(|process| process.ended().is_some()) {
            self.process = Some(self.node.spawn(self.kind.word(), &self.program)?);
        }
        Ok(())
    }

    /// Asks it to end, and waits until it has; past `grace` it is killed.
    pub fn stop(&mut self, grace: Duration) -> Result<(), MeshError> {
        if let Some(process) = self.process.take() {
            process.terminate(grace)?;
        }
        Ok(())
    }

    /// Kills it: SIGKILL.
    pub fn kill(&mut self) -> Result<(), MeshError> {
        if let Some(process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Kills it, starts it again and waits until it is ready.
    pub fn restart(&mut self) -> Result<(), MeshError> {
        self.kill()?;
        self.start()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Waits until it is ready.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<(), MeshError> {
        let deadline = Instant::now() + limit;
        loop {
            let why = match self.readiness.get("/healthz/ready") {
                Ok(page) if page.status == 200 => return Ok(()),
                Ok(page) => page.body.trim().to_owned(),
                Err(err) => err.to_string(),
            };
            let ended = match &self.process {
                Some(process) => process.ended().map(|status| format!("it ended with {status}")),
                None => Some("it was not started".to_owned()),
            };
            if ended.is_some() || Instant::now() >= deadline {
                return Err(MeshError::NotReady {
                    daemon: self.to_string(),
                    limit,
                    why: ended.unwrap_or(why),
                    log: self.log(),
                    tail: tail(&self.said()),
                });
            }
            self.idle(PAUSE);
        }
    }

    /// Lets so much time pass, or less if it ends meanwhile.
    pub(super) fn idle(&self, pause: Duration) {
        if let Some(process) = &self.process {
            // That it has not ended is what is hoped for.
            let _ = process.wait(pause);
        }
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot.unwrap_or(Slot::First)
    }

    /// Whether an agent has done with its node's pods; otherwise those it has not done with.
    pub(super) fn pods_are_settled(&self) -> Result<(), String> {
        let waiting: Vec<_> = self
            .pods()?
            .iter()
            .filter(|entry| matches!(text(entry, "state"), "pending" | "leaving"))
            .map(|entry| format!("{}: {}", name(entry), text(entry, "reason")))
            .collect();
        if waiting.is_empty() { Ok(()) } else { Err(waiting.join(", ")) }
    }

    /// The pods, `namespace/name`, that an agent has brought into the mesh.
    pub(super) fn enrolled(&self) -> Result<Vec<String>, String> {
        let pods = self.pods()?;
        Ok(pods.iter().filter(|entry| text(entry, "state") == "enabled").map(name).collect())
    }

    /// The workloads, `namespace/name`, that a tunnel reaches through the mesh.
    pub(super) fn reached_through_the_mesh(&self) -> BTreeSet<String> {
        let dump = self.json("/config_dump").unwrap_or_default();
        let workloads = dump.get("workloads").and_then(Value::as_array).into_iter().flatten();
        workloads.filter(|entry| text(entry, "protocol") == "HBONE").map(name).collect()
    }

    fn pods(&self) -> Result<Vec<Value>, String> {
        serde_json::from_value(self.json("/debug/pods")?).map_err(|err| err.to_string())
    }

    fn json(&self, path: &str) -> Result<Value, String> {
        let page = self.admin.get(path).map_err(|err| err.to_string())?;
        serde_json::from_str(&page.body).map_err(|err| err.to_string())
    }
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn name(entry: &Value) -> String {
    format!("{}/{}", text(entry, "namespace"), text(entry, "name"))
}

/// The last lines, which is where a program says why it gave up.
fn tail(text: &str) -> String {
    const LINES: usize = 15;
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}
