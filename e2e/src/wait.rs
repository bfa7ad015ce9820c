//! Waiting for conditions, never for time; and stopping when someone asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How soon to look again.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether someone asked for the end.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops on SIGINT and SIGTERM, so that what was made can be removed.
    pub fn on_signals() -> anyhow::Result<Self> {
        let stop = Self::default();
        let flag = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen for signals")?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(asked());
                flag.0.store(true, Ordering::SeqCst);
            })
            .context("cannot start a thread; is the limit of processes reached?")?;
        Ok(stop)
    }

    /// Whether it was asked for.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Fails once it was asked for.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.asked() { bail!("stopped on request") } else { Ok(()) }
    }

    /// Waits until `probe` finds something; `what` completes "… did not happen".
    pub fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        probe: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        self.until_every(PAUSE, limit, what, probe)
    }

    /// As [`Stop::until`], for a probe that costs something: it is asked again after `pause`.
    pub fn until_every<T>(
        &self,
        pause: Duration,
        limit: Duration,
        what: &str,
        mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            self.check()?;
            if let Some(found) = probe()? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                bail!("within {limit:?}: {what} did not happen");
            }
            thread::park_timeout(pause);
        }
    }
}

async fn asked() {
    use tokio::signal::unix::{SignalKind, signal};
    let both = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    match both {
        Ok((mut interrupt, mut terminate)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        },
        // Then signals do what they always do.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_happen_is_named() {
        let stop = Stop::default();
        assert_eq!(stop.until(PAUSE, "it", || Ok(Some(7))).unwrap(), 7);
        let err = stop.until::<()>(PAUSE, "the sunrise", || Ok(None)).unwrap_err().to_string();
        assert_eq!(err, "within 5ms: the sunrise did not happen");
    }
}
