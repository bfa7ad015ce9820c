//! The L7 proxy of a namespace.
//!
//! # The life of a request
//! 1. A tunnel is accepted in [`accept`]: mutual TLS as the waypoint itself, HTTP/2 CONNECT. Each stream is meant for a
//!    service (or workload) that this waypoint serves, or is refused ([`accept::arrival`], pure). Where the pod's ztunnel
//!    ends tunnels, what it hands over stands for a stream ([`accept::handed`]).
//! 2. What the stream carries is known from the service's port, or found out ([`accept::detect`]).
//! 3. HTTP: [`serve`] reads requests, [`request`] tells the story of one: its head gets one spelling ([`hygiene`]), its
//!    [`caller`] is identified, a [`permit`] asked for, for which an [`authorizer`] may have to be asked, a route chosen,
//!    a [`fault`] injected that it asks for,
//!    filters applied, and [`upstream`] sends it, once or several times.
//!    Anything else: [`opaque`] chooses an endpoint and moves bytes.
//! 4. What happened is counted and written ([`access`]); what is refused, and why, is in [`refusal`]. Who shows a debug
//!    token ([`caller::debug`]) is told all of it in the response ([`explain`]).

pub mod accept;
pub mod access;
pub mod admin;
pub mod app;
pub mod authorizer;
pub mod body;
pub mod caller;
pub mod config;
pub mod explain;
pub mod fault;
pub mod hygiene;
pub mod interim;
pub mod io;
pub mod lent;
pub mod limits;
pub mod metrics;
pub mod mirror;
pub mod near;
pub mod opaque;
pub mod permit;
pub mod plan;
pub mod refusal;
pub mod request;
pub mod serve;
pub mod served;
pub mod shared;
pub mod tie;
pub mod upgrade;
pub mod upstream;
pub mod websocket;
