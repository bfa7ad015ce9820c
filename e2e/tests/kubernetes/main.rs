//! The stories on a real Kubernetes cluster: `ambit_e2e::kubernetes` says how they share one.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod claims;
mod cluster;
mod conformance;
mod mesh;
mod readme;
mod reboot;
mod requests;
mod rights;
mod rules;
mod scene;
mod trace;
