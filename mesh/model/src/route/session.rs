//! What keeps a client at one endpoint (GEP-1619): where its key is, and how long it holds.

use std::{fmt, time::Duration};

use http::{HeaderName, request::Parts};

use crate::{
    name::Uid,
    traffic::{cookie, hash},
};

/// How far clocks of replicas may differ, in seconds.
const AHEAD: u64 = 60;

/// How the requests of one client are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Where a request has its key.
    pub key: SessionKey,
    /// How long a session lasts at most; `None`: for ever.
    pub absolute: Option<Duration>,
    /// How long it lasts unused; `None`: for ever.
    pub idle: Option<Duration>,
    /// What the client is told of its end.
    pub lifetime: Lifetime,
}

/// Where a request has the key of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKey {
    /// In the cookie of this name.
    Cookie(Box<str>),
    /// In this header.
    Header(HeaderName),
}

/// Whether a session's cookie outlives the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// No: it has no date.
    #[default]
    Session,
    /// Yes: it has the date of the absolute limit.
    Permanent,
}

/// What a client shows to come to the endpoint where it was: which, since when, and when it was there last, in seconds
/// of Unix time. It is no secret: whoever makes one up chooses among the endpoints to which a request may go in any case, for
/// as long as a session lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The hash of the endpoint, so that it tells nobody what it is called.
    pub endpoint: u64,
    /// Since when.
    pub since: u64,
    /// Used last.
    pub used: u64,
}

impl Ticket {
    /// Whether it is for `endpoint`.
    pub fn is_for(&self, endpoint: &Uid) -> bool {
        self.endpoint == hash(endpoint.as_str().as_bytes())
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}-{:x}", self.endpoint, self.since, self.used)
    }
}

impl Session {
    /// The ticket that `head` has; `None`: it has none, or not one that is still good at `now`.
    pub fn ticket(&self, head: &Parts, now: u64) -> Option<Ticket> {
        let mut parts = self.key(head)?.split('-').map(|part| u64::from_str_radix(part, 16));
        let (Some(Ok(endpoint)), Some(Ok(since)), Some(Ok(used)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let is_over = |limit: Option<Duration>, since: u64| {
            limit.is_some_and(|limit| now.saturating_sub(since) >= limit.as_secs().max(1))
        };
        // Clocks of replicas differ by less; whoever dates one ahead wants it to last.
        if since > now.saturating_add(AHEAD) || used > now.saturating_add(AHEAD) {
            return None;
        }
        let ticket = Ticket { endpoint, since, used };
        (!is_over(self.absolute, since) && !is_over(self.idle, used)).then_some(ticket)
    }

    /// The ticket of a client that was at `endpoint` at `now` and showed `shown`; `None`: that is as good.
    pub fn next(&self, shown: Option<Ticket>, endpoint: &Uid, now: u64) -> Option<Ticket> {
        match shown.filter(|ticket| ticket.is_for(endpoint)) {
            Some(_) if self.idle.is_none() => None,
            Some(same) => Some(Ticket { used: now, ..same }),
            None => Some(Ticket { endpoint: hash(endpoint.as_str().as_bytes()), since: now, used: now }),
        }
    }

    /// The key that `head` has, the first of several; `None`: the session begins with this request.
    pub fn key<'h>(&self, head: &'h Parts) -> Option<&'h str> {
        let key = match &self.key {
            SessionKey::Cookie(name) => cookie(head, name),
            SessionKey::Header(name) => head.headers.get(name).and_then(|value| value.to_str().ok()),
        };
        key.filter(|key| !key.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_key_is_in_a_cookie_or_a_header() {
        let cookie = SessionKey::Cookie("shop".into());
        let header = SessionKey::Header(HeaderName::from_static("x-shop"));
        let table = [
            (&cookie, vec![("cookie", "a=1; shop=17")], Some("17")),
            (&cookie, vec![("cookie", "a=1"), ("cookie", "shop=a=b")], Some("a=b")),
            (&cookie, vec![("cookie", "myshop=17; shop")], None),
            (&cookie, vec![("cookie", "shop=")], None),
            (&header, vec![("X-Shop", "17")], Some("17")),
            (&header, vec![("cookie", "x-shop=17")], None),
        ];
        for (key, headers, expected) in table {
            let lifetime = Lifetime::Session;
            let session = Session { key: key.clone(), absolute: None, idle: None, lifetime };
            let request = headers
                .iter()
                .fold(Request::builder(), |request, (name, value)| request.header(*name, *value));
            let (head, ()) = request.body(()).expect("a request").into_parts();
            assert_eq!(session.key(&head), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_ticket_is_good_for_as_long_as_the_session_is() {
        let session = |absolute: Option<u64>, idle: Option<u64>| Session {
            key: SessionKey::Header(HeaderName::from_static("x-session")),
            absolute: absolute.map(Duration::from_secs),
            idle: idle.map(Duration::from_secs),
            lifetime: Lifetime::Session,
        };
        let shown = |session: &Session, value: &str, now| {
            let head =
                Request::builder().header("x-session", value).body(()).expect("a request").into_parts().0;
            session.ticket(&head, now)
        };
        let (here, there) = (Uid::from("c//Pod/shop/a"), Uid::from("c//Pod/shop/b"));
        let ticket = session(None, None).next(None, &here, 100).expect("a first one");
        assert!(ticket.is_for(&here) && !ticket.is_for(&there));
        let text = ticket.to_string();
        assert_eq!(
            shown(&session(None, None), &text, 1_000_000),
            Some(ticket),
            "it is read as it was written"
        );
        assert_eq!(shown(&session(Some(50), None), &text, 149), Some(ticket));
        assert_eq!(shown(&session(Some(50), None), &text, 150), None);
        assert_eq!(shown(&session(None, Some(50)), &text, 150), None);
        assert_eq!(shown(&session(None, None), &text, 39), None, "it is dated ahead");
        for broken in ["", "x", "1-2", "1-2-3-4", "1-2-g", "99999999999999999-1-1"] {
            assert_eq!(shown(&session(None, None), broken, 100), None, "{broken}");
        }
        // Used again it is as good, but where it ends unused.
        assert_eq!(session(Some(50), None).next(Some(ticket), &here, 120), None);
        let used = session(None, Some(50)).next(Some(ticket), &here, 120).expect("another");
        assert_eq!((used.since, used.used), (100, 120));
        let moved = session(Some(50), None).next(Some(ticket), &there, 120).expect("another");
        assert!(moved.is_for(&there) && moved.since == 120);
    }
}
