//! What came of it, in words and as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::Plan;
use super::objects::Change;
use super::tunnels::Tunnels;

/// The goals that issue and documentation name.
const MEMORY_GOAL: u64 = 250_000_000;
const P99_GOAL: Duration = Duration::from_secs(1);

/// Everything measured.
#[derive(Debug)]
pub struct Report {
    /// What was asked.
    pub plan: Plan,
    /// How long it took to write the cluster.
    pub written: Duration,
    /// From the controller's start until it served all of it.
    pub start_to_ready: Duration,
    /// Its memory then, in bytes, at its highest.
    pub listed: u64,
    /// Each way of subscribing.
    pub rounds: Vec<Round>,
}

/// One way of subscribing.
#[derive(Debug)]
pub struct Round {
    /// Which.
    pub name: String,
    /// How long all tunnels took to connect and to be told the mesh.
    pub connected: Duration,
    /// The controller's memory meanwhile, in bytes, at its highest.
    pub connecting: u64,
    /// How long pods went and came.
    pub lasted: Duration,
    /// How many.
    pub changes: usize,
    /// The controller's memory meanwhile, in bytes, at its highest.
    pub changing: u64,
    /// What was heard of it.
    pub heard: Heard,
    /// The processor time that the controller took.
    pub cpu: Duration,
}

/// What tunnels heard.
#[derive(Debug)]
pub struct Heard {
    /// How long news took, in order.
    pub delays: Vec<Duration>,
    /// News that did not arrive.
    pub lost: usize,
    /// Resources sent.
    pub resources: usize,
    /// Their bytes.
    pub bytes: usize,
    /// News that did not concern who was told.
    pub strange: usize,
}

impl Heard {
    /// What these tunnels heard of these changes.
    pub fn of(tunnels: &Tunnels, changes: &[Change]) -> Self {
        let delays = tunnels.delays(changes);
        let lost = delays.iter().filter(|delay| delay.is_none()).count();
        let mut delays: Vec<Duration> = delays.into_iter().flatten().collect();
        delays.sort_unstable();
        let (resources, bytes, strange) = tunnels.totals();
        Self { delays, lost, resources, bytes, strange }
    }

    fn percentile(&self, percent: usize) -> Duration {
        let last = self.delays.len().saturating_sub(1);
        self.delays.get(last * percent / 100).copied().unwrap_or_default()
    }
}

impl Report {
    /// The controller's memory, in bytes, at its highest.
    fn highest(&self) -> u64 {
        let rounds = self.rounds.iter().map(|round| round.connecting.max(round.changing));
        rounds.max().unwrap_or_default().max(self.listed)
    }

    /// Goals that are missed.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.highest() > MEMORY_GOAL {
            missed.push(format!("memory {} MB, goal 250 MB", megabytes(self.highest())));
        }
        for round in &self.rounds {
            let p99 = round.heard.percentile(99);
            if p99 > P99_GOAL {
                missed.push(format!("{}: p99 {p99:?}, goal {P99_GOAL:?}", round.name));
            }
            if round.heard.lost > 0 {
                missed.push(format!("{}: {} changes were never heard", round.name, round.heard.lost));
            }
            if round.heard.strange > 0 {
                missed.push(format!(
                    "{}: {} pushes did not concern who got them",
                    round.name, round.heard.strange
                ));
            }
        }
        missed
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let rounds = self.rounds.iter().map(|round| {
            json!({
                "subscribed": round.name,
                "changes": round.changes,
                "changesPerSecond": per_second(round.changes, round.lasted),
                "connectedSeconds": round.connected.as_secs_f64(),
                "memoryConnectingBytes": round.connecting,
                "memoryChangingBytes": round.changing,
                "p50Millis": round.heard.percentile(50).as_millis(),
                "p99Millis": round.heard.percentile(99).as_millis(),
                "maxMillis": round.heard.percentile(100).as_millis(),
                "lost": round.heard.lost,
                "resourcesPerChange": per(round.heard.resources, round.changes),
                "bytesPerChange": per(round.heard.bytes, round.changes),
                "notConcerned": round.heard.strange,
                "controllerCpuSeconds": round.cpu.as_secs_f64(),
            })
        });
        json!({
            "nodes": self.plan.shape.nodes, "pods": self.plan.shape.pods, "services": self.plan.shape.services,
            "churnPerSecond": self.plan.churn,
            "startToReadyMillis": self.start_to_ready.as_millis(),
            "memoryListedBytes": self.listed, "memoryHighestBytes": self.highest(),
            "rounds": rounds.collect::<Vec<_>>(),
            "missed": self.missed(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = &self.plan.shape;
        writeln!(
            f,
            "{} nodes, {} pods, {} services; written in {:.0?}",
            shape.nodes, shape.pods, shape.services, self.written
        )?;
        writeln!(
            f,
            "controller: ready after {:.0?}; memory {} MB then, {} MB at its highest",
            self.start_to_ready,
            megabytes(self.listed),
            megabytes(self.highest())
        )?;
        writeln!(
            f,
            "\n| subscribed | changes/s | p50 | p99 | longest | lost | resources a change | bytes a change | not concerned | controller's CPU a change | memory while tunnels connect | while pods change |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|---|---|")?;
        for round in &self.rounds {
            let heard = &round.heard;
            let cpu = round.cpu.as_secs_f64() * 1000.0
                / f64::from(u32::try_from(round.changes.max(1)).unwrap_or(u32::MAX));
            writeln!(
                f,
                "| {} | {:.1} | {:.0?} | {:.0?} | {:.0?} | {} | {:.1} | {:.0} | {} | {cpu:.2} ms | {} MB | {} MB |",
                round.name,
                per_second(round.changes, round.lasted),
                heard.percentile(50),
                heard.percentile(99),
                heard.percentile(100),
                heard.lost,
                per(heard.resources, round.changes),
                per(heard.bytes, round.changes),
                heard.strange,
                megabytes(round.connecting),
                megabytes(round.changing),
            )?;
        }
        match self.missed().as_slice() {
            [] => write!(f, "\nevery goal is met"),
            missed => write!(f, "\nmissed: {}", missed.join("; ")),
        }
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

fn per(total: usize, changes: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    number(total) / number(changes.max(1))
}

fn per_second(count: usize, time: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / time.as_secs_f64().max(0.001)
}
