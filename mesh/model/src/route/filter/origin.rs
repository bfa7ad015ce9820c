//! Whose pages a browser shows: the origins of CORS.

use http::uri::Authority;

use super::Scheme;

/// Whose pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Everybody's.
    Any,
    /// Those of one scheme and port.
    At { scheme: Scheme, host: Host, port: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Any,
    /// With its first dot: `*.example` is every name under it, however deep, and not `example`.
    Under(Box<str>),
    Exact(Box<str>),
}

impl Origin {
    /// Reads `*`, or an origin whose host may begin with `*.` or be `*`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        // A wildcard is no part of a host that could be read.
        let (wildcard, readable) = match text.split_once("://*") {
            Some((scheme, rest)) if rest.is_empty() || rest.starts_with(':') => {
                (Some(""), format!("{scheme}://any{rest}"))
            }
            Some((scheme, rest)) if rest.starts_with('.') => (Some("."), format!("{scheme}://any{rest}")),
            Some(_) => return None,
            None => (None, text.to_owned()),
        };
        let place = Place::parse(&readable)?;
        if place.host.contains('*') {
            return None;
        }
        let host = match wildcard {
            None => Host::Exact(place.host.to_ascii_lowercase().into()),
            Some("") => Host::Any,
            Some(_) => {
                let under = place.host.strip_prefix("any")?;
                Host::Under(under.to_ascii_lowercase().into())
            }
        };
        Some(Self::At { scheme: place.scheme, host, port: place.port })
    }

    /// As it is written: the port only where it is not that of the scheme.
    pub(super) fn written(&self) -> String {
        let Self::At { scheme, host, port } = self else { return "*".to_owned() };
        let host = match host {
            Host::Any => "*".to_owned(),
            Host::Under(under) => format!("*{under}"),
            Host::Exact(exact) => exact.to_string(),
        };
        let port = if *port == scheme.well_known_port() { String::new() } else { format!(":{port}") };
        format!("{}://{host}{port}", scheme.word())
    }

    /// Whether the page of `asked`, which a browser wrote, is one of these.
    pub(super) fn any_matches(allowed: &[Self], asked: &str) -> bool {
        let asked = Place::parse(asked);
        allowed.iter().any(|origin| origin.matches(asked.as_ref()))
    }

    /// `asked` is none where it could not be read, as those of applications that are no pages.
    fn matches(&self, asked: Option<&Place>) -> bool {
        match (self, asked) {
            (Self::Any, _) => true,
            (Self::At { .. }, None) => false,
            (Self::At { scheme, host, port }, Some(asked)) => {
                *scheme == asked.scheme && *port == asked.port && host.matches(&asked.host)
            }
        }
    }
}

impl Host {
    fn matches(&self, asked: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact.eq_ignore_ascii_case(asked),
            Self::Under(under) => {
                let host = asked.to_ascii_lowercase();
                host.strip_suffix(&**under).is_some_and(|left| !left.is_empty())
            }
        }
    }
}

/// `scheme://host:port`, the port derived where it is not said.
#[derive(Debug)]
struct Place {
    scheme: Scheme,
    host: String,
    port: u16,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority: Authority = authority.parse().ok()?;
        let host = authority.host();
        let rest = authority.as_str().strip_prefix(host)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0)?,
            None if rest.is_empty() => scheme.well_known_port(),
            None => return None,
        };
        (!host.is_empty()).then(|| Self { scheme, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_by_scheme_host_and_port() {
        let table = [
            ("http://*", "http://a.b", true),
            ("http://*", "http://a.b:8080", false),
            ("http://*:8080", "http://a.b:8080", true),
            ("http://a.b", "http://a.b:80", true),
            ("https://a.b:443", "https://A.B", true),
            ("https://*.a.b", "https://c.a.b", true),
            ("https://*.a.b", "https://d.c.a.b", true),
            ("https://*.a.b", "https://a.b", false),
            ("https://*.a.b", "https://evil-a.b", false),
            ("https://*.a.b", "https://a.b.evil", false),
            ("https://a.b", "https://user@a.b", false),
            ("https://a.b", "https://a.b/", false),
            ("http://[::1]:8080", "http://[::1]:8080", true),
            ("*", "https://a.b", true),
            ("*", "app://a.b", true),
            ("https://a.b", "app://a.b", false),
        ];
        for (allowed, asked, expected) in table {
            let allowed = [Origin::parse(allowed).expect(allowed)];
            let [read] = &allowed;
            assert_eq!(Origin::parse(&read.written()).as_ref(), Some(read));
            assert_eq!(Origin::any_matches(&allowed, asked), expected, "{allowed:?}: {asked}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        let table = [
            "",
            "a.b",
            "null",
            "ftp://a.b",
            "http://",
            "http://a.*.b",
            "http://*a",
            "http://a.b:0",
            "http://a/b",
        ];
        for origin in table {
            assert_eq!(Origin::parse(origin), None, "{origin}");
        }
    }
}
