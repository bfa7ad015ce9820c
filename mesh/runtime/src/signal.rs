//! When to end: SIGTERM, SIGINT, or someone inside who asks for it.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// Listens for the signals from now on. The [`Exit`] is for `/quitquitquit` and the like.
pub fn listen() -> io::Result<(Exit, Shutdown)> {
    let asked = Arc::new(Notify::new());
    let shutdown = Shutdown {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        asked: asked.clone(),
    };
    Ok((Exit { asked }, shutdown))
}

/// Why the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGTERM.
    Terminated,
    /// SIGINT.
    Interrupted,
    /// [`Exit::ask`].
    Asked,
}

/// Waits for the end.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    asked: Arc<Notify>,
}

impl Shutdown {
    /// Completes when the process should end. What came before it was awaited counts too.
    pub async fn requested(mut self) -> Cause {
        tokio::select! {
            _ = self.terminate.recv() => Cause::Terminated,
            _ = self.interrupt.recv() => Cause::Interrupted,
            () = self.asked.notified() => Cause::Asked,
        }
    }
}

/// Ends the process from the inside, in the same orderly way as a signal.
#[derive(Debug, Clone)]
pub struct Exit {
    asked: Arc<Notify>,
}

impl Exit {
    /// Asks for the end. Once is enough.
    pub fn ask(&self) {
        self.asked.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    // One test, as a signal reaches every listener in the process.
    #[tokio::test]
    async fn each_way_to_end_is_told_apart() {
        for (sent, cause) in [(Signal::SIGTERM, Cause::Terminated), (Signal::SIGINT, Cause::Interrupted)] {
            let (_exit, shutdown) = listen().unwrap();
            kill(Pid::this(), sent).unwrap();
            assert_eq!(shutdown.requested().await, cause);
        }
        let (exit, shutdown) = listen().unwrap();
        exit.ask();
        assert_eq!(shutdown.requested().await, Cause::Asked);
    }
}
