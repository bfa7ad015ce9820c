//! One daemon of the cluster, as an init system keeps it: started, stopped, and started again when it ends by itself.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ambit_lab::netns::Netns;
use ambit_lab::process::{Process, ProcessError, Program};

/// One that fails at once must not fill the disk with its complaints.
const AGAIN: Duration = Duration::from_secs(1);
/// etcd and the API server end in a second or two.
const GRACE: Duration = Duration::from_secs(10);

/// A daemon that runs, or not, as it is told.
pub(super) struct Daemon {
    name: String,
    netns: Option<Netns>,
    program: Program,
    log: PathBuf,
    running: Option<Running>,
}

struct Running {
    process: Process,
    since: Instant,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.running.as_ref().map(|running| running.process.pid());
        f.debug_struct("Daemon").field("name", &self.name).field("pid", &pid).finish_non_exhaustive()
    }
}

impl Daemon {
    /// A daemon that was not started yet.
    pub(super) fn new(name: &str, netns: Option<Netns>, program: Program, log: PathBuf) -> Self {
        Self { name: name.to_owned(), netns, program, log, running: None }
    }

    /// Starts it, unless it runs.
    pub(super) fn start(&mut self) -> Result<(), ProcessError> {
        if self.running.is_none() {
            let process = Process::start(self.netns.as_ref(), &self.program, &self.log)?;
            self.running = Some(Running { process, since: Instant::now() });
        }
        Ok(())
    }

    /// Ends it, politely at first.
    pub(super) fn stop(&mut self) -> Result<(), ProcessError> {
        match self.running.take() {
            Some(running) => running.process.terminate(GRACE).map(drop),
            None => Ok(()),
        }
    }

    /// Ends it at once, with all it started in its group.
    pub(super) fn kill(&mut self) {
        self.running = None;
    }

    /// Its process, while it is wanted.
    pub(super) fn process(&self) -> Option<&Process> {
        self.running.as_ref().map(|running| &running.process)
    }

    /// Starts it again if it should run and does not.
    pub(super) fn tend(&mut self) -> Result<(), ProcessError> {
        let ended = self
            .running
            .as_ref()
            .filter(|running| running.since.elapsed() > AGAIN)
            .and_then(|running| running.process.ended());
        if let Some(status) = ended {
            super::tell(&format!("{} ended with {status}; it is started again", self.name));
            self.running = None;
            self.start()?;
        }
        Ok(())
    }
}
