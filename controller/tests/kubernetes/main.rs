//! What the controller does in the Kubernetes API, against a stand-in for it that can fail in all the usual ways.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod election;
mod fake;
mod registration;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod webhook;
