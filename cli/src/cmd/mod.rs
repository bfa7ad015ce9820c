//! The commands, one room each.

pub(crate) mod analyze;
pub(crate) mod bug_report;
pub(crate) mod ca;
pub(crate) mod check;
pub(crate) mod completion;
mod components;
pub(crate) mod install;
pub(crate) mod namespace;
pub(crate) mod playground;
mod sources;
pub(crate) mod status;
pub(crate) mod tunnel_config;
pub(crate) mod version;
