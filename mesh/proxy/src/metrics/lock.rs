//! A lock for moments without an await, which a panic elsewhere does not close for good.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Figures behind a lock. They are whole after every statement, so a panic while one held the lock
/// is no reason to lose them.
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// `value` behind a lock.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn hold(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
