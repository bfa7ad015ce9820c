//! One pod that runs: its processes, started again when they end, and stopped together.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::manifest::{self, DesiredPod, EnvValue, Readiness, Restart};
use crate::mesh::page;
use crate::pod::Pod;
use crate::process::{Process, ProcessError, Program};
use crate::status::{self, Phase, State};

/// The pause before a first restart; doubled each time, as a kubelet does from ten seconds on.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived so long is not in a crash loop.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// The loop waits for nobody longer than this.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// Called when a process of the pod ends.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// A pod and what runs in it.
pub(crate) struct Runner {
    pub(crate) pod: Pod,
    pub(crate) desired: DesiredPod,
    pub(crate) uid: String,
    containers: Vec<Running>,
    wake: Wake,
}

struct Running {
    program: Program,
    name: String,
    state: Life,
    starts: u32,
}

/// ```text
/// Due ──start──▶ Alive ──ends──▶ Due (after a pause) | Over
/// ```
enum Life {
    Due { at: Instant, pause: Duration },
    Alive { process: Process, since: Instant, pause: Duration },
    Over { well: bool },
}

impl Runner {
    pub(crate) fn new(pod: Pod, desired: DesiredPod, wake: Wake) -> Self {
        // The kernel's own generator of identifiers; without it a name would do.
        let uid =
            fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_else(|_| pod.name().to_string());
        let uid = uid.trim().to_owned();
        let containers = desired
            .containers
            .iter()
            .map(|container| Running {
                program: program(container, &pod, &desired, &uid),
                name: container.name.clone(),
                state: Life::Due { at: Instant::now(), pause: FIRST_PAUSE },
                starts: 0,
            })
            .collect();
        Self { pod, desired, uid, containers, wake }
    }

    /// Starts what is due, and notes what has ended.
    pub(crate) fn tend(&mut self, now: Instant) -> Result<(), ProcessError> {
        for container in &mut self.containers {
            if let Life::Alive { process, since, pause } = &container.state
                && let Some(status) = process.ended()
            {
                let pause = if *since + HEALTHY_AFTER < now { FIRST_PAUSE } else { *pause };
                container.state = after(status, self.desired.restart, now, pause);
            }
            let Life::Due { at, pause } = container.state else { continue };
            if at > now {
                continue;
            }
            let longer = (pause * 2).min(LONGEST_PAUSE);
            // If it cannot be started, it is due again later.
            container.state = Life::Due { at: now + pause, pause: longer };
            let wake = Arc::clone(&self.wake);
            let log = self.pod.log(&container.name);
            let netns = Some(self.pod.netns());
            let process = Process::start_watched(netns, &container.program, &log, move |_| wake())?;
            container.starts += 1;
            container.state = Life::Alive {
                process,
                since: now,
                pause: if container.starts == 1 { pause } else { longer },
            };
        }
        Ok(())
    }

    /// How it is.
    pub(crate) fn state(&self) -> State {
        let alive = self.containers.iter().all(|one| matches!(one.state, Life::Alive { .. }));
        let ready = alive && self.is_ready();
        let over = self.containers.iter().all(|one| matches!(one.state, Life::Over { .. }));
        let well = self.containers.iter().all(|one| matches!(one.state, Life::Over { well: true }));
        let phase = match (over && !self.containers.is_empty(), well) {
            (false, _) => Phase::Running,
            (true, true) => Phase::Succeeded,
            (true, false) => Phase::Failed,
        };
        State { phase, ready, restarts: self.containers.iter().map(|one| one.starts.saturating_sub(1)).sum() }
    }

    fn is_ready(&self) -> bool {
        match &self.desired.readiness {
            Readiness::Runs => true,
            Readiness::Listens(port) => self.listens(*port),
            Readiness::Answers { port, path } => {
                let own = self.pod.ips().first().map(|ip| SocketAddr::new(*ip, *port));
                own.is_some_and(|own| page::is_well(self.pod.netns(), own, path, PROBE_LIMIT))
            }
        }
    }

    fn listens(&self, port: u16) -> bool {
        let read = || {
            let table =
                |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
            table("tcp") + &table("tcp6")
        };
        self.pod.netns().inside(read).is_ok_and(|tables| status::listens(&tables, port))
    }

    /// When a process is to be started again, if one is.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = self.containers.iter().filter_map(|one| match &one.state {
            Life::Due { at, .. } => Some(*at),
            Life::Alive { .. } | Life::Over { .. } => None,
        });
        due.min()
    }

    /// Asks all of it to stop.
    pub(crate) fn ask_to_stop(&self) {
        for container in &self.containers {
            if let Life::Alive { process, .. } = &container.state {
                process.signal(Signal::SIGTERM);
            }
        }
    }

    /// Whether nothing of it runs any more.
    pub(crate) fn is_over(&self) -> bool {
        self.containers.iter().all(|one| match &one.state {
            Life::Alive { process, .. } => process.ended().is_some(),
            Life::Due { .. } | Life::Over { .. } => true,
        })
    }
}

fn after(status: ExitStatus, restart: Restart, now: Instant, pause: Duration) -> Life {
    let again = match restart {
        Restart::Always => true,
        Restart::OnFailure => !status.success(),
        Restart::Never => false,
    };
    if again { Life::Due { at: now + pause, pause } } else { Life::Over { well: status.success() } }
}

fn program(container: &manifest::Process, pod: &Pod, desired: &DesiredPod, uid: &str) -> Program {
    let written = container.env.iter().map(|(name, value)| {
        let value = match value {
            EnvValue::Text(text) => text.clone(),
            EnvValue::Field(path) => status::field(path, pod, desired, uid).unwrap_or_default(),
        };
        (name.as_str(), value)
    });
    let program = Program::line(&container.argv).envs(status::environment(pod, desired)).envs(written);
    match &container.dir {
        Some(dir) => program.dir(dir),
        None => program,
    }
}
