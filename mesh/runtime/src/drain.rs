//! Ending without breaking: a [`Drain`] asks everyone who holds a [`Watch`] to finish, and waits for them.
//!
//! ```text
//!            start(Graceful)            deadline, or force()
//!  running ──────────────────► draining ────────────────────► forced ──► all watches dropped
//!     └───────────────── start(Immediate) ─────────────────────►┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long those that were told to stop at once may take to close their sockets and write their records.
const FORCED: Duration = Duration::from_millis(500);

/// A drain, and the first watch of it.
pub fn channel() -> (Drain, Watch) {
    let (stage, seen) = watch::channel(Stage::Running);
    let held = Arc::new(Held);
    (Drain { stage, held: held.clone() }, Watch { stage: seen, held })
}

/// How to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Take nothing new, finish what is open; after the deadline, stop all the same.
    Graceful {
        /// The time that what is open may take.
        deadline: Duration,
    },
    /// Stop now.
    Immediate,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everyone finished.
    Finished,
    /// Some watches are still held: their holders ran into the deadline and were told to stop.
    Forced {
        /// How many were still held when the drain stopped waiting.
        left: usize,
    },
}

/// The side that asks. Dropping it unused is the same as [`Mode::Immediate`], without the wait.
#[derive(Debug)]
pub struct Drain {
    stage: watch::Sender<Stage>,
    held: Arc<Held>,
}

impl Drain {
    /// Another watch.
    pub fn watch(&self) -> Watch {
        Watch { stage: self.stage.subscribe(), held: self.held.clone() }
    }

    /// How many watches are held by others.
    pub fn watches(&self) -> usize {
        Arc::strong_count(&self.held).saturating_sub(1)
    }

    /// Tells every watch, and waits until all are dropped. In graceful mode, holders that are left at the deadline are
    /// told to stop ([`Watch::forced`]) and get a last moment for it.
    pub async fn start(self, mode: Mode) -> Outcome {
        match mode {
            Mode::Graceful { deadline } => {
                self.stage.send_replace(Stage::Draining(deadline));
                if timeout(deadline, self.stage.closed()).await.is_ok() {
                    return Outcome::Finished;
                }
                let left = self.watches();
                self.force().await;
                Outcome::Forced { left }
            }
            Mode::Immediate => self.force().await,
        }
    }

    async fn force(&self) -> Outcome {
        self.stage.send_replace(Stage::Forced);
        match timeout(FORCED, self.stage.closed()).await {
            Ok(()) => Outcome::Finished,
            Err(_) => Outcome::Forced { left: self.watches() },
        }
    }
}

/// The side that is asked. Hold it, or a clone, for as long as there is something to finish.
#[derive(Debug, Clone)]
pub struct Watch {
    stage: watch::Receiver<Stage>,
    #[expect(dead_code, reason = "it is held to be counted")]
    held: Arc<Held>,
}

impl Watch {
    /// Completes when it is time to end, and says how.
    pub async fn signaled(&self) -> Mode {
        let mut stage = self.stage.clone();
        // An error means that the drain is gone, and with it whoever would wait for us.
        match stage.wait_for(|stage| *stage != Stage::Running).await.as_deref() {
            Ok(Stage::Draining(deadline)) => Mode::Graceful { deadline: *deadline },
            Ok(Stage::Running | Stage::Forced) | Err(_) => Mode::Immediate,
        }
    }

    /// Completes when even what is open must stop: at the deadline, or at once in immediate mode.
    pub async fn forced(&self) {
        let mut stage = self.stage.clone();
        // As above: no drain, no deadline to wait for.
        let _ = stage.wait_for(|stage| *stage == Stage::Forced).await;
    }

    /// How to end, if it is time to.
    pub fn mode(&self) -> Option<Mode> {
        match *self.stage.borrow() {
            Stage::Running if self.stage.has_changed().is_err() => Some(Mode::Immediate),
            Stage::Running => None,
            Stage::Draining(deadline) => Some(Mode::Graceful { deadline }),
            Stage::Forced => Some(Mode::Immediate),
        }
    }
}

/// One share for the drain and one for each watch: receivers cannot be counted, as a waiting watch has two.
#[derive(Debug)]
struct Held;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Draining(Duration),
    Forced,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{self, Ended};
    use tokio::time::{Instant, sleep};

    const GRACE: Mode = Mode::Graceful { deadline: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_as_soon_as_the_last_watch_is_dropped() {
        let (drain, watch) = channel();
        assert_eq!(watch.mode(), None);
        let second = drain.watch();
        let holder = |watch: Watch, takes| async move {
            assert_eq!(watch.signaled().await, GRACE);
            assert_eq!(watch.mode(), Some(GRACE));
            sleep(Duration::from_secs(takes)).await;
        };
        let tasks = [task::spawn("first", holder(watch, 1)), task::spawn("second", holder(second, 2))];
        let started = Instant::now();
        assert_eq!(drain.start(GRACE).await, Outcome::Finished);
        assert_eq!(started.elapsed(), Duration::from_secs(2));
        for task in tasks {
            assert_eq!(task.await, Ended::Finished);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_left_at_the_deadline_is_told_to_stop() {
        let (drain, watch) = channel();
        let holder = task::spawn("long", async move {
            watch.signaled().await;
            watch.forced().await;
        });
        let started = Instant::now();
        assert_eq!(drain.start(GRACE).await, Outcome::Forced { left: 1 });
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        assert_eq!(holder.await, Ended::Finished);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_listen_cannot_hold_the_drain_for_ever() {
        let (drain, _deaf) = channel();
        let started = Instant::now();
        assert_eq!(drain.start(GRACE).await, Outcome::Forced { left: 1 });
        assert_eq!(started.elapsed(), Duration::from_secs(5) + FORCED);
    }

    #[tokio::test(start_paused = true)]
    async fn immediate_means_now() {
        let (drain, watch) = channel();
        let holder = task::spawn("now", async move {
            assert_eq!(watch.signaled().await, Mode::Immediate);
            watch.forced().await;
        });
        let started = Instant::now();
        assert_eq!(drain.start(Mode::Immediate).await, Outcome::Finished);
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(holder.await, Ended::Finished);
    }

    #[tokio::test]
    async fn a_dropped_drain_is_an_immediate_one() {
        let (drain, watch) = channel();
        drop(drain);
        assert_eq!(watch.mode(), Some(Mode::Immediate));
        assert_eq!(watch.signaled().await, Mode::Immediate);
        watch.forced().await;
    }

    #[tokio::test]
    async fn a_drain_without_watches_is_over_at_once() {
        let (drain, watch) = channel();
        drop(watch);
        assert_eq!(drain.start(GRACE).await, Outcome::Finished);
    }
}
