//! Another place for a client to ask (HTTPRequestRedirectFilter).

use http::{HeaderValue, Response, StatusCode, header, request::Parts, uri::Authority};

use super::{
    answer,
    headers::insert,
    rewrite::{NewHost, NewPath, with_query},
};
use crate::route::Prefix;

/// Where a request is sent instead; what is not said is the request's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// The scheme.
    pub scheme: Option<Scheme>,
    /// The host.
    pub host: Option<NewHost>,
    /// The port; `None`: that of the scheme if one is said, else that to which the request came.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<NewPath>,
    /// The status.
    pub status: RedirectStatus,
}

/// How a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// In plain text or in TLS of its own; the mesh's tunnel does not count.
    pub scheme: Scheme,
    /// To which port of the service.
    pub port: u16,
}

/// The scheme of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

impl Scheme {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) fn well_known_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The status of a redirect: one of the five that the specification has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectStatus(StatusCode);

impl Default for RedirectStatus {
    fn default() -> Self {
        Self(StatusCode::FOUND)
    }
}

impl RedirectStatus {
    /// 301, 302, 303, 307 or 308; `None`: any other.
    pub fn new(code: u16) -> Option<Self> {
        match code {
            301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(code).ok().map(Self),
            _ => None,
        }
    }

    /// The status.
    pub fn code(self) -> StatusCode {
        self.0
    }
}

impl Redirect {
    /// The response that sends a client elsewhere. A request that names no host, or more than one could
    /// read, cannot be sent anywhere and is answered with 400.
    pub(super) fn answer(&self, head: &Parts, prefix: Option<&Prefix>, front: Front) -> Response<()> {
        let Some(location) = self.location(head, prefix, front) else {
            return answer(StatusCode::BAD_REQUEST);
        };
        let mut response = answer(self.status.0);
        insert(response.headers_mut(), &header::LOCATION, location);
        response
    }

    fn location(&self, head: &Parts, prefix: Option<&Prefix>, front: Front) -> Option<HeaderValue> {
        let scheme = self.scheme.unwrap_or(front.scheme);
        let host = match &self.host {
            Some(host) => host.as_str().to_owned(),
            None => host_of(head)?,
        };
        let port = self.port.or(self.scheme.map(Scheme::well_known_port)).unwrap_or(front.port);
        let port = if port == scheme.well_known_port() { String::new() } else { format!(":{port}") };
        let asked = head.uri.path();
        let path = self.path.as_ref().and_then(|path| path.instead_of(asked, prefix));
        // `*` is a place on no server.
        let path = path.unwrap_or_else(|| if asked.starts_with('/') { asked } else { "/" }.to_owned());
        let place = with_query(path, head.uri.query());
        HeaderValue::try_from(format!("{}://{host}{port}{place}", scheme.word())).ok()
    }
}

/// The host that a client asked, without port.
fn host_of(head: &Parts) -> Option<String> {
    let in_header = || head.headers.get(header::HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let authority = head.uri.authority().cloned().or_else(in_header)?;
    let host = authority.host();
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn location(redirect: &Redirect, uri: &str, host: Option<&str>, front: (Scheme, u16)) -> Option<String> {
        let request = Request::builder().uri(uri);
        let request = host.into_iter().fold(request, |request, host| request.header("host", host));
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let (scheme, port) = front;
        let prefix = Prefix::parse("/foo").expect("a prefix");
        let answer = redirect.answer(&head, Some(&prefix), Front { scheme, port });
        answer.headers().get("location").map(|location| location.to_str().expect("text").to_owned())
    }

    #[test]
    fn ports_are_derived_as_the_conformance_suite_has_them() {
        use Scheme::{Http, Https};
        let table = [
            // Listener on port 80.
            ((Http, 80), None, None, "http://example.org/a"),
            ((Http, 80), None, Some(80), "http://example.org/a"),
            ((Http, 80), None, Some(8080), "http://example.org:8080/a"),
            ((Http, 80), Some(Https), None, "https://example.org/a"),
            ((Http, 80), Some(Https), Some(443), "https://example.org/a"),
            ((Http, 80), Some(Https), Some(8443), "https://example.org:8443/a"),
            // Listener on port 8080.
            ((Http, 8080), None, None, "http://example.org:8080/a"),
            ((Http, 8080), None, Some(80), "http://example.org/a"),
            ((Http, 8080), Some(Https), None, "https://example.org/a"),
            // Listener on port 443.
            ((Https, 443), None, None, "https://example.org/a"),
            ((Https, 443), None, Some(443), "https://example.org/a"),
            ((Https, 443), None, Some(8443), "https://example.org:8443/a"),
            ((Https, 443), Some(Http), None, "http://example.org/a"),
            ((Https, 443), Some(Http), Some(80), "http://example.org/a"),
            ((Https, 443), Some(Http), Some(8080), "http://example.org:8080/a"),
        ];
        for (front, scheme, port, expected) in table {
            let redirect =
                Redirect { scheme, port, host: NewHost::parse("example.org").ok(), ..Redirect::default() };
            let location = location(&redirect, "/a", Some("web:8000"), front);
            assert_eq!(location.as_deref(), Some(expected), "{front:?} {scheme:?} {port:?}");
        }
    }

    #[test]
    fn what_is_not_said_is_the_request_s() {
        let front = (Scheme::Http, 80);
        let plain = Redirect::default();
        let table = [
            ("/a?b=c", Some("web:8080"), Some("http://web/a?b=c")),
            ("http://web:8080/a", None, Some("http://web/a")),
            ("/a", Some("[::1]:8080"), Some("http://[::1]/a")),
            ("/a", Some("user@web"), Some("http://web/a")),
            ("//evil.example/", Some("web"), Some("http://web//evil.example/")),
            ("*", Some("web"), Some("http://web/")),
            ("/a", None, None),
            ("/a", Some("a b"), None),
        ];
        for (uri, host, expected) in table {
            assert_eq!(location(&plain, uri, host, front).as_deref(), expected, "{uri} {host:?}");
        }
        let full = Redirect { path: NewPath::full("/new").ok(), ..Redirect::default() };
        assert_eq!(location(&full, "/foo/a?b", Some("web"), front).as_deref(), Some("http://web/new?b"));
        let prefix = Redirect { path: NewPath::prefix("/new").ok(), ..Redirect::default() };
        assert_eq!(location(&prefix, "/foo/a", Some("web"), front).as_deref(), Some("http://web/new/a"));
    }

    #[test]
    fn five_codes_are_redirects() {
        let codes: Vec<_> = (0..1000).filter(|code| RedirectStatus::new(*code).is_some()).collect();
        assert_eq!(codes, [301, 302, 303, 307, 308]);
        assert_eq!(RedirectStatus::default().code(), StatusCode::FOUND);
    }
}
