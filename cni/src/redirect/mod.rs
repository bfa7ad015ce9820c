//! Redirection: what makes a pod's traffic pass through the tunnel.
//!
//! [`rules`] says what, as text, and knows nothing else; [`apply`] puts it into a pod's namespace,
//! looks whether it is still there, and takes it out again.

pub mod apply;
pub mod rules;

pub use apply::{Applied, RedirectError};
pub use rules::{Capture, Families, Interface, ProbeAddresses, Redirect};
