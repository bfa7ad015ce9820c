//! The controller as a whole, over real sockets: tunnels subscribe to it, ask it for certificates, and leave.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: whatever fails in them fails the test"
)]

mod authority;
mod configuration;
mod debug_tokens;
mod probe;
mod process;
mod setup;
