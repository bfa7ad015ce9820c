//! What keeps a client at one endpoint (GEP-1619): where its key is, and how long it holds.

use std::time::Duration;

use http::{HeaderName, header, request::Parts};

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

impl Session {
    /// The key that `head` has, the first of several; `None`: the session begins with this request.
    pub fn key<'h>(&self, head: &'h Parts) -> Option<&'h str> {
        let key = match &self.key {
            SessionKey::Cookie(name) => {
                let values = head.headers.get_all(header::COOKIE).into_iter();
                let cookies =
                    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
                let mut pairs = cookies.filter_map(|cookie| cookie.trim().split_once('='));
                pairs.find(|(found, _)| *found == &**name).map(|(_, value)| value)
            }
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
}
