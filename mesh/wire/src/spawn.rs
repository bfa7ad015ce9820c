//! How this crate starts tasks: through whoever runs the process.
//!
//! `ambit-wire` knows no runtime of its own; a daemon hands it a [`Spawner`] that names, supervises
//! and places the task (a connection's driver must live on the worker that owns the connection).

use std::{fmt, future::Future, pin::Pin, sync::Arc};

/// A task without a result.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// Starts tasks on the current runtime. Cheap to clone.
#[derive(Clone)]
pub struct Spawner(Arc<dyn Fn(&'static str, Task) + Send + Sync>);

impl Spawner {
    /// A spawner that hands each named task to `start`.
    pub fn new(start: impl Fn(&'static str, Task) + Send + Sync + 'static) -> Self {
        Self(Arc::new(start))
    }

    /// Starts `task`, which ends by itself or when whatever it serves is dropped.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        (self.0)(name, Box::pin(task));
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawner")
    }
}
