//! The commands, one room each.

pub(crate) mod analyze;
pub(crate) mod bug_report;
pub(crate) mod ca;
pub(crate) mod check;
pub(crate) mod completion;
mod components;
pub(crate) mod install;
mod live;
pub(crate) mod namespace;
pub(crate) mod playground;
mod sources;
pub(crate) mod status;
pub(crate) mod tunnel_config;
pub(crate) mod version;
pub(crate) mod waypoint;
