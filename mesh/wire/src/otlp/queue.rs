//! What waits to be exported: bounded, and nobody who adds to it waits.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// What became of spans or records.
#[derive(Debug, Default)]
pub struct Counts {
    /// The collector took them.
    pub sent: AtomicU64,
    /// They were dropped: too many waited.
    pub queue_full: AtomicU64,
    /// They were dropped: the collector did not answer, or not with OK, in time.
    pub failed: AtomicU64,
    /// The collector took their batch, but not them.
    pub rejected: AtomicU64,
}

/// What waits to be exported.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: Mutex<VecDeque<T>>,
    limit: usize,
    batch: usize,
    filled: Notify,
    /// What became of all.
    pub counts: Counts,
}

impl<T> Queue<T> {
    /// For at most `limit`, of which `batch` are sent together.
    pub(super) fn new(limit: usize, batch: usize) -> Self {
        let (limit, batch) = (limit.max(1), batch.clamp(1, limit.max(1)));
        Self { waiting: Mutex::default(), limit, batch, filled: Notify::new(), counts: Counts::default() }
    }

    /// Adds one, or drops it if too many wait.
    pub fn push(&self, one: T) {
        let mut waiting = self.locked();
        if waiting.len() >= self.limit {
            drop(waiting);
            self.counts.queue_full.fetch_add(1, Relaxed);
            return;
        }
        waiting.push_back(one);
        let count = waiting.len();
        drop(waiting);
        // Only the first and the one that makes a batch wake the exporter: it sleeps while others come.
        if count == 1 || count == self.batch {
            self.filled.notify_one();
        }
    }

    /// Waits for the first, and then until there is a batch, but not longer than `delay`.
    pub(super) async fn filled(&self, delay: Duration) {
        while self.len() == 0 {
            self.filled.notified().await;
        }
        let enough = async {
            while self.len() < self.batch {
                self.filled.notified().await;
            }
        };
        // Fewer are a batch, too, when they have waited long enough.
        let _ = timeout(delay, enough).await;
    }

    /// Takes a batch; empty if none waits.
    pub(super) fn take(&self) -> Vec<T> {
        let mut waiting = self.locked();
        let count = self.batch.min(waiting.len());
        waiting.drain(..count).collect()
    }

    fn len(&self) -> usize {
        self.locked().len()
    }

    fn locked(&self) -> MutexGuard<'_, VecDeque<T>> {
        // Every change under the lock is whole, so it is good even if a holder panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
