//! The waypoint as its clients, applications and control plane see it.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test: whatever fails here fails it"
)]

mod asking_routes;
mod authorizers;
mod bytes;
mod conformance;
mod early;
mod endpoints;
mod explanations;
mod faults;
mod handed;
mod hostile;
mod interim;
mod limits;
mod peers;
mod policies;
mod requests;
mod resilience;
mod resting;
mod routes;
mod traces;
mod websockets;
mod world;
