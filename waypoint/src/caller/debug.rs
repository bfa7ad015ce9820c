//! Debug tokens: who may see what this waypoint knows of a request ([`crate::explain`]).
//!
//! | a request has | it goes on, and its response |
//! |---|---|
//! | no `x-ambit-debug` | is as ever |
//! | a token that is believed | has an explanation |
//! | one that the mesh signed, and that does not hold here or now | says what is wrong with it |
//! | anything else there | is as ever: who has nothing of ours learns nothing, not even that somebody looked |
//!
//! Anybody may show something, and verifying it costs signatures. So a waypoint looks at [`OFTEN`] tokens in each second, and
//! at what comes beyond as at no token. One that was believed is known for [`KNOWN`] without looking again: whoever floods
//! does not take the explanations from who debugs.
//!
//! The header is taken out before anybody else sees the request: applications, mirrors, authorizers, logs.

use std::time::{Duration, SystemTime};

use ambit_model::limit::{Bucket, Rate};
use ambit_proxy::metrics::Lock;
use ambit_wire::debug_token::{InvalidToken, LONGEST, verify};
use boring::sha::sha256;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{explain::Explanation, shared::Shared};

/// Where a request has its debug token.
const X_AMBIT_DEBUG: HeaderName = HeaderName::from_static("x-ambit-debug");

/// How many tokens are looked at in each second, by all workers of a waypoint: enough for people, and with a fifth of a
/// millisecond for each (`benches/benches/debug_token.rs`) nothing that anybody notices.
const OFTEN: u32 = 10;
/// How many at once.
const AT_ONCE: u32 = 50;
/// How long a token that was believed is known. It may have ended meanwhile, or its certificate may be revoked: so long, no
/// longer, as clocks may be apart anyway.
const KNOWN: Duration = Duration::from_secs(60);
/// How many are known at a time: more people than debug one waypoint in a minute. When there are more, the oldest is looked
/// at again.
const MOST_KNOWN: usize = 16;

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

/// What is kept of the tokens that this waypoint has looked at.
#[derive(Debug, Default)]
pub struct Looks(Lock<Looked>);

#[derive(Debug, Default)]
struct Looked {
    /// Digests of tokens that were believed, and until when they are: the oldest first.
    believed: Vec<([u8; 32], Duration)>,
    budget: Option<(Rate, Bucket)>,
}

/// Whether a token is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It is known, and believed.
    Known,
    /// Yes.
    Now,
    /// No: there were too many.
    TooMany,
}

impl Looked {
    /// `now` is the time since any one moment.
    fn at(&mut self, digest: &[u8; 32], now: Duration) -> Look {
        self.believed.retain(|(_, until)| *until > now);
        if self.believed.iter().any(|(known, _)| known == digest) {
            return Look::Known;
        }
        let Ok(rate) = Rate::new(OFTEN, Duration::from_secs(1), AT_ONCE) else { return Look::TooMany };
        let (rate, bucket) = self.budget.get_or_insert_with(|| (rate, Bucket::full(&rate, now)));
        bucket.refill(rate, now);
        if bucket.take(rate) { Look::Now } else { Look::TooMany }
    }

    fn believes(&mut self, digest: [u8; 32], now: Duration) {
        if self.believed.len() >= MOST_KNOWN {
            self.believed.remove(0);
        }
        self.believed.push((digest, now.saturating_add(KNOWN)));
    }
}

/// Judges a debug token, as the waypoint's mutual TLS judges a peer.
pub fn examine(shared: &Shared, token: &HeaderValue) -> Shown {
    let waypoint = &shared.settings.identity;
    let count = |outcome| shared.metrics.debug_token(outcome);
    let explains = || Shown::Explains(Box::new(Explanation::of(waypoint)));
    let Some(own) = shared.certificates.held(waypoint) else {
        count("no_certificate");
        return Shown::Nothing;
    };
    if token.len() > LONGEST {
        let invalid = InvalidToken::Form;
        count(invalid.word());
        return told(&invalid);
    }
    let digest = sha256(token.as_bytes());
    let now = shared.settings.started.elapsed();
    let look = shared.looks.0.hold().at(&digest, now);
    match look {
        Look::Known => {
            count("valid");
            return explains();
        }
        Look::TooMany => {
            count("over_budget");
            return Shown::Nothing;
        }
        Look::Now => {}
    }
    match verify(token.as_bytes(), &own, waypoint, SystemTime::now()) {
        Ok(()) => {
            shared.looks.0.hold().believes(digest, now);
            count("valid");
            explains()
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_comes_beyond_the_budget_is_not_looked_at() {
        let mut looked = Looked::default();
        let mut looks = |at: Duration| (0..1000).filter(|_| looked.at(&[1; 32], at) == Look::Now).count();
        assert_eq!((looks(SECOND), looks(SECOND)), (50, 0));
        assert_eq!((looks(2 * SECOND), looks(60 * SECOND)), (10, 50));
    }

    #[test]
    fn who_was_believed_is_known_for_a_while_whoever_floods() {
        let mut looked = Looked::default();
        assert_eq!(looked.at(&[7; 32], SECOND), Look::Now);
        looked.believes([7; 32], SECOND);
        while looked.at(&[1; 32], SECOND) == Look::Now {}
        assert_eq!(looked.at(&[7; 32], KNOWN), Look::Known);
        assert_eq!(looked.at(&[7; 32], SECOND + KNOWN), Look::Now, "it is looked at again");
    }

    #[test]
    fn no_more_are_known_than_there_is_room_for() {
        let mut looked = Looked::default();
        for one in 0..=MOST_KNOWN {
            looked.believes([u8::try_from(one).expect("a byte"); 32], SECOND);
        }
        assert_eq!(looked.at(&[0; 32], SECOND), Look::Now, "the oldest is not");
        assert_eq!(looked.at(&[1; 32], SECOND), Look::Known);
    }
}
