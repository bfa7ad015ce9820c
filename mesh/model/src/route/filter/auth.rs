//! Somebody else decides about the requests of a rule (HTTPExternalAuthFilter, GEP-1494).

use std::sync::Arc;

use crate::{authz::Authorizer, name::Label};

/// Whom a rule asks whether a request may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalAuth {
    /// An authorizer, as a CUSTOM policy asks one.
    Asks(Arc<Authorizer>),
    /// The reference is invalid. Requests are answered with 500: nobody knows whether they may be.
    Nobody {
        /// The reason, as the route's `ResolvedRefs` has it.
        reason: Label,
    },
}
