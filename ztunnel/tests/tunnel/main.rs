//! The tunnel as a whole: its real process, driven by doubles that follow the protocols, in network namespaces.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests fail by panicking, in their helpers too, and say what they skip"
)]
#![allow(unreachable_pub, reason = "the harness is a module of a test, and reads better so")]

#[path = "../harness/mod.rs"]
mod harness;

mod authority;
mod certificates;
mod control_plane;
mod gateways;
mod hostile;
mod modes;
mod networks;
mod node_agent;
mod pages;
mod paths;
mod policies;
mod replacement;
mod statuses;
