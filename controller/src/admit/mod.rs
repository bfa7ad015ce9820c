//! The validating webhook: keeps out what cannot be understood, or not be enforced where it is attached.
//!
//! [`judge`](judge()) decides, with the parsers that all objects pass; [`serve`] answers the API server; and
//! [`keep_registered`] gives the API server the root to know this webhook by, and has it insist on an answer once
//! there is one.
//!
//! What Istio's users rely on is admitted with a warning that says what becomes of it; its status says so, too
//! ([`crate::status`]).

mod judge;
mod registration;
mod server;

pub use judge::{Asked, Verdict, judge};
pub use registration::{Registration, keep_registered};
pub use server::{Counts, MOST_CONNECTIONS, PATH, serve};
