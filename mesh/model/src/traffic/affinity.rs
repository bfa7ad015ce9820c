//! By what requests are told apart that are to meet the same endpoint.

use std::{net::IpAddr, time::Duration};

use http::{HeaderName, header, request::Parts};

use super::maglev::hash;
use crate::route::percent_decoded;

/// By what requests are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The values of this header.
    Header(HeaderName),
    /// The cookie of this name.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// The path for which a client gets one that has none.
        path: Option<Box<str>>,
        /// How long it keeps it; zero: as long as it runs. `None`: it gets none.
        ttl: Option<Duration>,
    },
    /// The address of the client.
    Source,
    /// The first value of this query parameter.
    Query(Box<str>),
}

/// What a request has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Something.
    Hash(u64),
    /// Nothing: any endpoint will do.
    None,
    /// Nothing, but it is to get a cookie: any endpoint will do, and the next request is to meet the same.
    Wanted,
}

impl HashOn {
    /// The key of a request of `client`.
    pub fn key(&self, head: &Parts, client: IpAddr) -> Key {
        let known = |bytes: Option<&[u8]>| bytes.map_or(Key::None, |bytes| Key::Hash(hash(bytes)));
        match self {
            Self::Header(name) => {
                let mut values = head.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (Some(one), None) => known(Some(one.as_bytes())),
                    (None, _) => Key::None,
                    (Some(_), Some(_)) => {
                        let all: Vec<_> =
                            head.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
                        known(Some(&all.join(&b',')))
                    }
                }
            }
            Self::Cookie { name, ttl, .. } => match cookie(head, name) {
                Some(value) => known(Some(value.as_bytes())),
                None if ttl.is_some() => Key::Wanted,
                None => Key::None,
            },
            Self::Source => match client.to_canonical() {
                IpAddr::V4(ip) => known(Some(&ip.octets())),
                IpAddr::V6(ip) => known(Some(&ip.octets())),
            },
            Self::Query(name) => {
                let mut pairs = head.uri.query().unwrap_or_default().split('&').filter_map(|pair| {
                    let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
                    percent_decoded(found)
                        .eq(name.bytes())
                        .then(|| percent_decoded(value).collect::<Vec<_>>())
                });
                known(pairs.next().as_deref())
            }
        }
    }

    /// The key of a connection of `client` that nobody looks into.
    pub fn key_of_connection(&self, client: IpAddr) -> Key {
        match self {
            Self::Source => {
                let (head, ()) = http::Request::new(()).into_parts();
                self.key(&head, client)
            }
            Self::Header(_) | Self::Cookie { .. } | Self::Query(_) => Key::None,
        }
    }
}

/// The first cookie of this name that a request has.
pub(crate) fn cookie<'h>(head: &'h Parts, name: &str) -> Option<&'h str> {
    let values = head.headers.get_all(header::COOKIE).into_iter();
    let cookies = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let mut pairs = cookies.filter_map(|cookie| cookie.trim().split_once('='));
    pairs.find(|(found, value)| *found == name && !value.is_empty()).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn what_a_request_has_decides() {
        let cookie = |ttl| HashOn::Cookie { name: "id".into(), path: None, ttl };
        let header = HashOn::Header(HeaderName::from_static("x-user"));
        let query = HashOn::Query("user id".into());
        type Case<'a> = (&'a HashOn, &'a str, &'a [(&'a str, &'a str)], Key);
        let table: [Case<'_>; 12] = [
            (&header, "/", &[("x-user", "ann")], Key::Hash(hash(b"ann"))),
            (&header, "/", &[("x-user", "ann"), ("x-user", "bob")], Key::Hash(hash(b"ann,bob"))),
            (&header, "/", &[("x-other", "ann")], Key::None),
            (&cookie(None), "/", &[("cookie", "a=1; id=ann")], Key::Hash(hash(b"ann"))),
            (&cookie(None), "/", &[("cookie", "id=")], Key::None),
            (&cookie(Some(Duration::ZERO)), "/", &[], Key::Wanted),
            (&cookie(Some(Duration::ZERO)), "/", &[("cookie", "id=ann")], Key::Hash(hash(b"ann"))),
            (&query, "/?user%20id=ann", &[], Key::Hash(hash(b"ann"))),
            (&query, "/?a=b&user%20id=a%6en&user%20id=bob", &[], Key::Hash(hash(b"ann"))),
            (&query, "/?user+id=ann", &[], Key::None),
            (&HashOn::Source, "/", &[("x-forwarded-for", "6.6.6.6")], Key::Hash(hash(&[10, 0, 0, 7]))),
            (&HashOn::Source, "/", &[], Key::Hash(hash(&[10, 0, 0, 7]))),
        ];
        for (on, uri, headers, expected) in table {
            let request = Request::builder().uri(uri);
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let (head, ()) = request.body(()).expect("a request").into_parts();
            assert_eq!(
                on.key(&head, "::ffff:10.0.0.7".parse().unwrap()),
                expected,
                "{on:?} {uri} {headers:?}"
            );
        }
        assert_eq!(
            HashOn::Source.key_of_connection("10.0.0.7".parse().unwrap()),
            Key::Hash(hash(&[10, 0, 0, 7]))
        );
        assert_eq!(header.key_of_connection("10.0.0.7".parse().unwrap()), Key::None);
    }
}
