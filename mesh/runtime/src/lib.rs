//! How each daemon lives: environment, logs, metrics, admin page, readiness, drain.
//!
//! A daemon's `main` reads like this: [`mod@env`] (every mistake at once) → [`rlimit`] → [`telemetry`] →
//! [`metrics`] and [`ready`] pages served by [`admin`] → [`workers`] → work, in tasks from [`task`] →
//! [`signal`] → [`drain`] → exit. Nothing here knows what a mesh is.

pub mod admin;
pub mod backoff;
pub mod drain;
pub mod env;
pub mod metrics;
pub mod ready;
pub mod rlimit;
pub mod signal;
pub mod task;
pub mod telemetry;
pub mod version;
pub mod workers;
