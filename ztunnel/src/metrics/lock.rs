//! A lock for moments without an await, which a panic elsewhere does not close for good.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Figures behind a lock. They are whole after every statement, so a panic while one held the lock
/// is no reason to lose them.
#[derive(Debug, Default)]
pub(super) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(super) fn hold(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
