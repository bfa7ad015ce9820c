//! The node agent: captures the traffic of its node's pods and feeds the tunnel.
//!
//! The life of an enrolment: [`watch`] sees the directory → [`pod`] reads what matters → [`enroll`]
//! judges → [`roster`] finds the difference → [`feed`] carries it out, pod by pod: [`netns`] →
//! [`redirect`] → the tunnel (`ambit_wire::zds`) → [`host`] (probes) → [`annotate`]. [`ledger`] remembers
//! for operators; [`app`] puts it all together.

pub mod annotate;
pub mod app;
pub mod command;
pub mod config;
pub mod enroll;
pub mod feed;
pub mod host;
pub mod ledger;
pub mod metrics;
pub mod netns;
pub mod pod;
pub mod redirect;
pub mod roster;
pub mod watch;
