//! Debug tokens: who may see what this waypoint knows of a request ([`crate::explain`]).
//!
//! | a request has | it goes on, and its response |
//! |---|---|
//! | no `x-ambit-debug` | is as ever |
//! | a token that is believed | has an explanation |
//! | one that the mesh signed, and that does not hold here or now | says what is wrong with it |
//! | anything else there | is as ever: who has nothing of ours learns nothing, not even that somebody looked |
//!
//! The header is taken out before anybody else sees the request: applications, mirrors, authorizers, logs.

use std::time::SystemTime;

use ambit_wire::debug_token::{InvalidToken, verify};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{explain::Explanation, shared::Shared};

/// Where a request has its debug token.
const X_AMBIT_DEBUG: HeaderName = HeaderName::from_static("x-ambit-debug");

/// What came of a debug token.
#[derive(Debug)]
pub enum Shown {
    /// It is believed.
    Explains(Box<Explanation>),
    /// It is not, and its bearer may know why.
    Says(String),
    /// It is not, and nobody may know why.
    Nothing,
}

/// Takes the debug token out of a request. Of several the first counts.
pub fn take(headers: &mut HeaderMap) -> Option<HeaderValue> {
    headers.remove(&X_AMBIT_DEBUG)
}

/// Judges a debug token, as the waypoint's mutual TLS judges a peer.
pub fn examine(shared: &Shared, token: &HeaderValue) -> Shown {
    let waypoint = &shared.settings.identity;
    let count = |outcome| shared.metrics.debug_token(outcome);
    let Some(own) = shared.certificates.held(waypoint) else {
        count("no_certificate");
        return Shown::Nothing;
    };
    match verify(token.as_bytes(), &own, waypoint, SystemTime::now()) {
        Ok(()) => {
            count("valid");
            Shown::Explains(Box::new(Explanation::of(waypoint)))
        }
        Err(invalid) => {
            count(invalid.word());
            told(&invalid)
        }
    }
}

fn told(invalid: &InvalidToken) -> Shown {
    if invalid.is_of_mesh() { Shown::Says(format!("invalid token: {invalid}")) } else { Shown::Nothing }
}
