//! What the mesh knows, and what it decides.
//!
//! The nouns ([`Workload`](workload::Workload), [`Service`](service::Service),
//! [`Policy`](authz::Policy)) are shared by everybody from controller to proxy; the decisions
//! ([`authz::check`], [`balance::pick`], the questions of [`Snapshot`](snapshot::Snapshot)) are
//! total functions of values.
//!
//! Two promises: no function here fails or panics on any input, and none touches the outside
//! world: no clock, no dice but those handed in, no file, no socket.
//!
//! | room | question |
//! |---|---|
//! | [`name`], [`identity`], [`address`] | what are things called? |
//! | [`workload`], [`service`], [`gateway`] | what is there? |
//! | [`snapshot`] | what does this process know, at one instant? |
//! | [`answer`] | how does a decision say that it lacks a fact? |
//! | [`balance`] | which endpoint? |
//! | [`reach`] | which instance of a proxy, and which way to another network? |
//! | [`authn`] | which tokens does a request bring, and do they hold? |
//! | [`authz`] | may this connection, or this request, be? |
//! | [`claims`] | what does a verified token say of its bearer? |
//! | [`limit`] | how many requests are taken? |
//! | [`route`] | which route does a request take, and what is done to it? |
//! | [`traffic`] | by which rules is an endpoint chosen, and how much does it get? |
//! | [`trace`] | which trace does a request belong to, and is it recorded? |
//! | [`service_config`] | what applies to one service at its waypoint? |

pub mod address;
pub mod answer;
pub mod authn;
pub mod authz;
pub mod balance;
pub mod claims;
pub mod gateway;
pub mod identity;
pub mod limit;
pub mod name;
pub mod reach;
pub mod route;
pub mod service;
pub mod service_config;
pub mod snapshot;
pub mod trace;
pub mod traffic;
pub mod workload;
