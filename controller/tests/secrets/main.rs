//! The authority in Kubernetes, against an API server in memory: one root for all replicas, rotated by annotation, told
//! to every namespace; and cert-manager instead.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: whatever fails in them fails the test"
)]

mod api;
mod desk;
mod distribution;
mod issuer;
mod keeping;
mod serving;
