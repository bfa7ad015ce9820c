//! Sending requests to endpoints: which one, over which connection, and once more if that may be.

pub mod attempt;
pub mod budgets;
pub mod choose;
pub mod destinations;
pub mod dial;
pub mod endpoints;
pub mod exchange;
pub mod health;
pub mod judge;
pub mod pool;
pub mod rest;

use std::sync::Arc;

use crate::shared::Shared;

/// Sends what one worker has to send.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    dial: dial::Dial,
    pool: pool::Pool,
}

impl Upstream {
    /// Without any connection yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { dial: dial::Dial::new(shared.clone()), pool: pool::Pool::default(), shared }
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The connections below HTTP.
    pub fn dial(&self) -> &dial::Dial {
        &self.dial
    }

    /// Lets go of connections that nobody has used for long.
    pub fn sweep(&self) {
        self.pool.sweep();
        self.shared.endpoints.sweep();
        self.shared.limits.sweep(self.shared.settings.started.elapsed(), &self.shared.metrics);
    }
}
