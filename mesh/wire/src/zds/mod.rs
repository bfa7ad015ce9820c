//! Node agent and tunnel: pods and their network namespaces over a SEQPACKET socket.
//!
//! The agent listens, the tunnel connects and speaks first, once ([`frame::Hello`]). From then on the
//! agent asks and the tunnel answers, strictly in turn: first a snapshot of the node's pods, then
//! every change. [`frame`] knows the bytes, [`socket`] carries them and the namespace's descriptor,
//! [`client`] is the tunnel's end and [`server`] the agent's.

pub mod client;
pub mod frame;
pub mod server;
pub mod socket;

pub use client::Session;
pub use frame::{PodInfo, Request};
pub use server::{AddError, Handle, Server};
