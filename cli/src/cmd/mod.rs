//! The commands, one room each.

pub(crate) mod install;
pub(crate) mod playground;
mod sources;
pub(crate) mod status;
pub(crate) mod tunnel_config;
