//! Delta xDS: both ends of one stream.
//!
//! The two ends are mirror images. Each has a pure half that decides and a shell that talks:
//!
//! | | decides | talks |
//! |---|---|---|
//! | tunnel | [`subscription`](self) and [`backoff`]: what is held, what to ask, when to come back | [`client`] |
//! | controller | [`ledger`]: what exists, who was sent what, what to send next | [`server`] |
//!
//! This layer knows type URLs, names, aliases and versions; what a resource *says* is the business
//! of the [`Handler`] given to the client, and of whoever publishes to the server.

pub mod backoff;
pub mod client;
pub mod ledger;
mod message;
pub mod metrics;
pub mod node;
mod replay;
pub mod server;
mod subscription;
mod throttle;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use crate::codec::{ADDRESS, AUTHORIZATION, WORKLOAD};
pub use client::{Client, Handle};
pub use ledger::Resource;
pub use metrics::{ClientMetrics, ServerMetrics};
pub use node::{NodeInfo, NodeKind};
pub use replay::replay;
pub use server::{Publisher, Server};

/// How a client wants the resources of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of them, as they come and go.
    Wildcard,
    /// Only those that were [demanded](Handle::demand).
    OnDemand,
}

/// Takes in what the control plane sent.
///
/// `apply` returns when the new state is visible to everybody: those who wait for a demanded
/// resource are woken right after it, and only then the response is acknowledged.
pub trait Handler: Send {
    /// Applies removals and every resource that is sound; names the others.
    fn apply(&mut self, response: Update) -> Vec<Rejected>;
}

/// One response of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The type of everything in it.
    pub type_url: String,
    /// New and changed resources. Apply them after the removals.
    pub upserts: Vec<Received>,
    /// Names that no longer exist (or, on demand, never did).
    pub removed: Vec<String>,
}

/// One resource as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its name, unique in its type.
    pub name: String,
    /// Other names that a demand for it may have used.
    pub aliases: Vec<String>,
    /// What to tell the control plane after a reconnect.
    pub version: String,
    /// The serialized message, a view into the response's own buffer; to be rejected when absent.
    pub body: Option<Bytes>,
}

/// A resource that could not be applied, and why. Becomes part of the NACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The resource's name.
    pub name: String,
    /// What is wrong with it, for the person who reads the control plane's log.
    pub reason: String,
}
