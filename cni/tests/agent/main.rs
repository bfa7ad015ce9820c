//! The agent's process from end to end: a directory, a pod, and a tunnel that the test plays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a whole crate of test code, of which clippy knows only the functions that bear #[test]"
)]

#[path = "../place/mod.rs"]
mod place;

mod joining;
mod leaving;
mod mesh;
mod pages;
mod probes;
