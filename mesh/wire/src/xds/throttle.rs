//! How many subscribers are sent everything at the same time.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// After a controller's restart thousands of tunnels return at once, each to be sent everything. That is
/// encoded while it is sent, but the list of what is to be sent is made before: 32 bytes for each resource.
/// This many lists are in memory at a time.
const AT_ONCE: usize = 16;
/// A subscriber that does not answer keeps its turn no longer than this.
const TURN: Duration = Duration::from_secs(5);

/// The turns.
#[derive(Clone, Debug)]
pub(super) struct Throttle(Arc<Semaphore>);

/// The right to be sent everything.
#[derive(Debug)]
pub(super) struct Turn {
    permit: Option<OwnedSemaphorePermit>,
    until: Instant,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) -> Turn {
        // The semaphore is never closed; were it, there would be no limit, and no harm.
        let permit = self.0.clone().acquire_owned().await.ok();
        Turn { permit, until: Instant::now() + TURN }
    }
}

impl Turn {
    /// Passes the turn on when it took too long; the holder may finish. Never completes.
    pub(super) async fn expire(turn: &mut Option<Self>) {
        if let Some(turn) = turn.as_mut().filter(|turn| turn.permit.is_some()) {
            sleep_until(turn.until).await;
            turn.permit = None;
        }
        std::future::pending().await
    }
}
