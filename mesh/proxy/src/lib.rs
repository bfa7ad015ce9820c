//! What the two proxies of the mesh, tunnel and waypoint, have in common beside how they speak.
//!
//! | room | question |
//! |---|---|
//! | [`accept`] | how are connections accepted, and until when? |
//! | [`config`] | which environment variables mean the same to both? |
//! | [`identity`] | where do certificates come from, and which are revoked? |
//! | [`start`] | how does the process begin and end? |
//! | [`metrics`] | how are series found, labelled and bounded? |
//! | [`telemetry`] | how do spans and access logs get to a collector? |
//! | [`dump`] | how is what is known shown to operators? |

pub mod accept;
pub mod config;
pub mod dump;
pub mod identity;
pub mod metrics;
pub mod start;
pub mod telemetry;
