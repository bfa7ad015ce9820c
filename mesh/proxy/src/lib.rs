//! What the two proxies of the mesh, tunnel and waypoint, have in common beside how they speak.
//!
//! | room | question |
//! |---|---|
//! | [`config`] | which environment variables mean the same to both? |
//! | [`identity`] | where do certificates come from, and which are revoked? |
//! | [`metrics`] | how are series found, labelled and bounded? |
//! | [`dump`] | how is what is known shown to operators? |

pub mod config;
pub mod dump;
pub mod identity;
pub mod metrics;
