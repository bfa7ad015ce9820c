//! The node agent: captures the traffic of its node's pods and feeds the tunnel.
//!
//! The life of an enrolment: [`watch`] sees the directory or the Kubernetes API → [`pod`] reads what matters →
//! [`enroll`] judges → [`roster`] finds the difference → [`feed`] carries it out, pod by pod: [`netns`] →
//! [`redirect`] → the tunnel (`ambit_wire::zds`) → [`host`] (probes) → [`annotate`]. [`ledger`] remembers for
//! operators, [`events`] tells pods' owners; `post` takes one thing after the other; [`app`] puts it all together.
//!
//! A pod that is being started comes another way: the runtime runs the [`plugin`], which asks [`arrivals`] and waits.
//! A pod that runs already is looked for by [`scan`]. [`install`] keeps the plugin where the runtime finds it, [`taint`]
//! opens the node, [`farewell`] tells an upgrade from an uninstallation.

pub mod annotate;
pub mod app;
pub mod arrivals;
pub mod command;
pub mod config;
pub mod enroll;
pub mod events;
pub mod farewell;
pub mod feed;
pub mod host;
pub mod install;
pub mod ledger;
pub mod message;
pub mod metrics;
pub mod netns;
pub mod outside;
pub mod plugin;
pub mod pod;
mod post;
pub mod redirect;
pub mod roster;
pub mod scan;
mod site;
pub mod taint;
pub mod watch;
