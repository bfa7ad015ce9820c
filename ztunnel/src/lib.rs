//! The node's L4 tunnel: carries the traffic of enrolled pods over HBONE.
//!
//! # The life of a connection
//! Outgoing: [`outbound`] accepts it in the pod's network namespace, [`outbound::plan`] decides where
//! it goes, [`outbound::dial`] connects, [`access`] writes what became of it. Incoming: [`inbound`]
//! accepts a tunnel, [`inbound::plan`] decides what a stream of it asks for, [`permit`] decides
//! whether it may, and watches that it still may, [`inbound::deliver`] connects to the application.

pub mod access;
pub mod admin;
pub mod app;
pub mod config;
pub mod connections;
pub mod dns;
pub mod dump;
pub mod inbound;
pub mod local;
pub mod metrics;
pub mod outbound;
pub mod permit;
pub mod pods;
pub mod refusal;
pub mod socket;
mod story;
pub mod tunnel;
