//! The process that keeps a playground up: brings it up, starts again what ends, writes down how things are, and takes
//! everything down when it is told to.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ambit_lab::mesh::{self, Binaries, Daemon, MeshError, MeshLab, Stage};
use ambit_lab::{Lab, Program, Topology, process};
use anyhow::Context as _;
use nix::sys::signal::Signal;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::documents;
use super::progress::Event;
use super::state::{Component, Hold, Kind, Node, Place, Pod, State};
use crate::output::rfc3339;
use crate::stop::Stop;

/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The pause before a first restart; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived so long is not in a crash loop.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// Printing a version takes a moment.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// What is to be kept up.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) place: Place,
    pub(super) directory: PathBuf,
    pub(super) topology: Topology,
    pub(super) binaries: Binaries,
}

/// Brings it up and keeps it up until a signal comes. `tell` hears of every step.
pub(super) async fn run(plan: Plan, mut tell: impl FnMut(Event)) -> anyhow::Result<()> {
    let hold = plan.place.hold()?;
    let mut stop = Stop::listen()?;
    let outcome = match bring_up(&plan, &mut stop, &mut tell).await {
        Ok(Some(mesh)) => {
            let versions = versions(&plan.binaries);
            let mut keeper = Keeper::new(&plan, &versions, mesh);
            let written = keeper.write_down();
            tell(Event::Up { summary: keeper.summary() });
            match written {
                Ok(()) => keeper.keep(&mut stop).await,
                Err(error) => Err(error),
            }
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = &outcome {
        tell(Event::Failed(format!("{error:#}")));
    }
    remove(&plan.place, hold);
    outcome
}

/// Removes what a supervisor that was killed has left. The caller has seen that there is none.
pub(super) fn sweep(place: &Place) -> anyhow::Result<()> {
    Lab::sweep(&place.name).context("cannot remove what an earlier playground left")?;
    if place.root().exists() {
        let hold = place.hold()?;
        if let Some(state) = place.last_state() {
            documents::take_back(&state.directory, &state.nodes);
        }
        remove(place, hold);
    }
    Ok(())
}

/// The directory of the playground, with the lock that is held.
fn remove(place: &Place, hold: Hold) {
    if let Err(error) = fs::remove_dir_all(place.root()) {
        note(&format!("{} is left: {error}", place.root().display()));
    }
    // Other playgrounds may be beside it.
    let _ = fs::remove_dir(place.root().parent().unwrap_or(Path::new("/")));
    drop(hold);
}

/// The mesh, or none if a signal came first.
async fn bring_up(
    plan: &Plan,
    stop: &mut Stop,
    tell: &mut impl FnMut(Event),
) -> anyhow::Result<Option<MeshLab>> {
    let mut settings =
        mesh::Settings::new(&plan.place.name, &plan.directory, plan.place.root(), plan.binaries.clone());
    settings.topology = plan.topology.clone();
    settings.topology.logs = Some(plan.place.root().join("logs"));
    let given_up = Arc::new(AtomicBool::new(false));
    let (stages, mut steps) = mpsc::unbounded_channel();
    let watched = Arc::clone(&given_up);
    let mut up = tokio::task::spawn_blocking(move || {
        MeshLab::up(settings, |stage: Stage| {
            // Nobody listens only when it is given up.
            let _ = stages.send(stage);
            if watched.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    loop {
        tokio::select! {
            biased;
            Some(stage) = steps.recv() => tell(Event::Step(stage.words().to_owned())),
            () = stop.requested(), if !given_up.load(Ordering::Relaxed) => {
                given_up.store(true, Ordering::Relaxed);
            }
            mesh = &mut up => return match mesh.context("bringing up the mesh failed; please report it")? {
                Ok(mesh) if !given_up.load(Ordering::Relaxed) => Ok(Some(mesh)),
                Ok(_) | Err(MeshError::Interrupted) => Ok(None),
                Err(_) if given_up.load(Ordering::Relaxed) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// The mesh and what is known of its processes.
struct Keeper<'a> {
    plan: &'a Plan,
    versions: &'a BTreeMap<Kind, String>,
    mesh: MeshLab,
    lives: BTreeMap<(Kind, String), Life>,
    since: OffsetDateTime,
    written: Option<State>,
}

/// How often a process ended, and when it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    /// Since when it runs.
    begun: Instant,
    started: OffsetDateTime,
    restarts: u32,
    pause: Duration,
    due: Option<Instant>,
}

impl Life {
    fn new(now: Instant, clock: OffsetDateTime) -> Self {
        Self { begun: now, started: clock, restarts: 0, pause: FIRST_PAUSE, due: None }
    }

    /// It has ended: after how long it is to be started again.
    fn ended(&mut self, now: Instant) -> Duration {
        if now.duration_since(self.begun) > HEALTHY_AFTER {
            self.pause = FIRST_PAUSE;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        self.due = Some(now + pause);
        pause
    }

    /// It was started again.
    fn restarted(&mut self, now: Instant, clock: OffsetDateTime) {
        *self = Self { begun: now, started: clock, restarts: self.restarts + 1, due: None, ..*self };
    }
}

fn kind(daemon: &Daemon) -> Kind {
    match daemon.kind() {
        mesh::Kind::Controller => Kind::Controller,
        mesh::Kind::Agent => Kind::Agent,
        mesh::Kind::Tunnel => Kind::Ztunnel,
    }
}

impl<'a> Keeper<'a> {
    fn new(plan: &'a Plan, versions: &'a BTreeMap<Kind, String>, mesh: MeshLab) -> Self {
        let (now, clock) = (Instant::now(), OffsetDateTime::now_utc());
        let keys = mesh.daemons().map(|daemon| (kind(daemon), daemon.node().name().to_owned()));
        let lives = keys.map(|key| (key, Life::new(now, clock))).collect();
        Self { plan, versions, mesh, lives, since: clock, written: None }
    }

    fn summary(&self) -> String {
        let pods = self.mesh.lab().pods().len();
        format!(
            "{} nodes, {pods} pods, {} processes of the mesh",
            self.mesh.lab().nodes().len(),
            self.lives.len()
        )
    }

    async fn keep(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = stop.requested() => {
                    note("told to end");
                    return Ok(());
                }
                _ = look.tick() => {
                    self.tend(Instant::now());
                    self.write_down()?;
                }
            }
        }
    }

    /// Starts again what has ended, when its time has come.
    fn tend(&mut self, now: Instant) {
        for daemon in self.mesh.daemons_mut() {
            let Some(status) = daemon.ended() else { continue };
            let key = (kind(daemon), daemon.node().name().to_owned());
            let Some(life) = self.lives.get_mut(&key) else { continue };
            match life.due {
                None => {
                    let pause = life.ended(now);
                    note(&format!("{daemon} ended with {status}; it is started again in {pause:?}"));
                }
                Some(due) if due <= now => match daemon.launch() {
                    Ok(()) => life.restarted(now, OffsetDateTime::now_utc()),
                    Err(error) => {
                        let pause = life.ended(now);
                        note(&format!("{daemon} cannot be started: {error}; again in {pause:?}"));
                    }
                },
                Some(_) => {}
            }
        }
    }

    /// Writes the state, if it has changed.
    fn write_down(&mut self) -> anyhow::Result<()> {
        let state = self.state();
        if self.written.as_ref() != Some(&state) {
            let problems =
                self.written.as_ref().map(|written| written.problems.as_slice()).unwrap_or_default();
            for problem in state.problems.iter().filter(|problem| !problems.contains(problem)) {
                note(&format!("the YAML cannot be followed wholly: {problem}"));
            }
            self.plan.place.write(&state)?;
            self.written = Some(state);
        }
        Ok(())
    }

    fn state(&self) -> State {
        let lab = self.mesh.lab();
        let report = self.mesh.pods();
        let nodes = lab.nodes().iter().map(|node| Node {
            name: node.name().to_owned(),
            ips: node.ips().to_vec(),
            netns: node.netns().name().to_owned(),
        });
        let mut pods: Vec<_> = lab
            .pods()
            .iter()
            .map(|pod| {
                let state = report.pods.get(pod.name());
                Pod {
                    namespace: pod.name().namespace.clone(),
                    name: pod.name().name.clone(),
                    node: pod.node().name().to_owned(),
                    ips: pod.ips().to_vec(),
                    netns: pod.netns().name().to_owned(),
                    phase: state.map_or_else(|| "Pending".to_owned(), |state| format!("{:?}", state.phase)),
                    ready: state.is_some_and(|state| state.ready),
                    restarts: state.map_or(0, |state| state.restarts),
                }
            })
            .collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        State {
            lab: lab.name().to_owned(),
            pid: std::process::id(),
            since: rfc3339(self.since),
            directory: self.mesh.settings().directory.clone(),
            logs: lab.logs().to_owned(),
            binaries: self.plan.binaries.app.parent().map(Path::to_owned).unwrap_or_default(),
            nodes: nodes.collect(),
            pods,
            components: self.mesh.daemons().map(|daemon| self.component(daemon)).collect(),
            problems: report.problems,
        }
    }

    fn component(&self, daemon: &Daemon) -> Component {
        let kind = kind(daemon);
        let node = daemon.node().name().to_owned();
        let life = self.lives.get(&(kind, node.clone()));
        let page = |admin: &mesh::Admin| format!("netns:{}/{}", admin.netns().name(), admin.address());
        Component {
            kind,
            node,
            pid: if daemon.ended().is_some() { None } else { daemon.pid() },
            since: rfc3339(life.map_or(self.since, |life| life.started)),
            restarts: life.map_or(0, |life| life.restarts),
            version: self.versions.get(&kind).cloned(),
            admin: page(daemon.admin()),
            readiness: page(daemon.readiness()),
            metrics: page(daemon.metrics()),
            log: daemon.log(),
        }
    }
}

/// What the programs say of themselves; the tunnel says it on its pages.
fn versions(binaries: &Binaries) -> BTreeMap<Kind, String> {
    let of = |kind, program: &Path| {
        let said =
            process::run(None, &Program::new(program).arg("--version"), VERSION_LIMIT).ok()?.ok().ok()?;
        // `name 0.1.0`.
        Some((kind, said.trim().split_once(' ')?.1.to_owned()))
    };
    [of(Kind::Controller, &binaries.controller), of(Kind::Agent, &binaries.agent)]
        .into_iter()
        .flatten()
        .collect()
}

/// Asks the supervisor to end.
pub(super) fn ask_to_end(pid: i32, signal: Signal) {
    // Gone meanwhile is what is wanted.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// A line of the supervisor's log, which is its standard error.
fn note(text: &str) {
    // A log that cannot be written has no reader.
    let _ = writeln!(std::io::stderr(), "{} {text}", rfc3339(OffsetDateTime::now_utc()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_keeps_ending_is_started_less_and_less_often() {
        let (now, clock) = (Instant::now(), OffsetDateTime::now_utc());
        let mut life = Life::new(now, clock);
        let pauses: Vec<_> = (0..8)
            .map(|_| {
                let pause = life.ended(now);
                assert_eq!(life.due, Some(now + pause));
                life.restarted(now, clock);
                pause.as_millis()
            })
            .collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(life.restarts, 8);
        // One that has lived for a while is not in a loop.
        assert_eq!(life.ended(now + HEALTHY_AFTER * 2), FIRST_PAUSE);
    }
}
