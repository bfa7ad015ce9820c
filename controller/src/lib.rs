//! The control plane: from the objects that users write to the resources that tunnels hold.
//!
//! One configuration change goes through here from top to bottom, and only [`engine`] has a loop:
//!
//! | step | module | |
//! |---|---|---|
//! | objects arrive | [`source`] | one stream of events, whoever writes the objects |
//! | parse at the door | [`cluster::object`] | ours, or a rejection that names field and remedy |
//! | put into effect | [`cluster`] | objects and indexes; what was touched |
//! | what may change? | [`impact`] | pure: touched object → outputs |
//! | what is it now? | [`translate`] | pure: cluster and output → workload, service or policy |
//! | send what differs | [`publish`] | encoded, versioned, compared |
//! | tell users | [`status`] | conditions on their objects; by the one that leads ([`leader`]) |
//! | make waypoints | [`gateways`] | what Gateways ask for; by the one that leads |
//!
//! What cannot be understood or enforced is kept out before all that, by a webhook with the same parsers ([`admit`]).
//! What is no part of a controller, and only lives in its program, is [`probe`].
//!
//! The argument for correctness is one property test: for any sequence of events, the incremental result equals
//! the translation from scratch of the final cluster.

pub mod admin;
pub mod admit;
pub mod app;
pub mod ca;
pub mod callers;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod gateways;
pub mod impact;
pub mod leader;
pub mod metrics;
pub mod nodes;
pub mod probe;
pub mod publish;
pub mod reviewer;
pub mod source;
pub mod status;
pub mod translate;
