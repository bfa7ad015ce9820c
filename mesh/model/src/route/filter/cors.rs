//! Whether pages of other origins may ask, and read the answer (HTTPCORSFilter, GEP-1767).
//!
//! | the request | what becomes of it |
//! |---|---|
//! | has no `Origin` | it goes on |
//! | a preflight of an allowed origin | 200, with what is allowed |
//! | a preflight of another origin | 403, and nothing is allowed |
//! | any other of an allowed origin | it goes on; the response says that the page may read it |
//! | any other of another origin | it goes on; the response does not say so, and the browser keeps it |
//!
//! What is allowed is said here alone: of the backend's own `Access-Control-` headers nothing remains.
//! The origin is repeated and never `*`, so caches are told that responses differ by it.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use thiserror::Error;

use super::{
    answer,
    headers::{append, insert},
    origin::Origin,
};

/// How long a preflight holds of which nothing is said, in seconds.
const MAX_AGE: u32 = 5;

/// What the responses say by which a backend could speak for itself.
const SAID: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// Who may ask from where, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<Origin>,
    credentials: bool,
    methods: Allowed,
    headers: Allowed,
    exposed: Allowed,
    max_age: u32,
}

/// What a filter says, as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CorsParts<'a> {
    /// `*`, or origins whose host may begin with `*.` or be `*`.
    pub origins: &'a [&'a str],
    /// Whether cookies and their like may come along.
    pub credentials: bool,
    /// `*`, or methods.
    pub methods: &'a [&'a str],
    /// `*`, or request headers.
    pub headers: &'a [&'a str],
    /// `*`, or response headers.
    pub exposed: &'a [&'a str],
    /// How long a preflight holds, in seconds.
    pub max_age: Option<u32>,
}

/// A list of methods or headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// None but those that need no permission.
    Nothing,
    /// These, with commas between.
    These(HeaderValue),
    /// All: `*`.
    Any,
}

/// What a response says of the page that asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted(HeaderMap);

/// What a request turned out to be.
#[derive(Debug)]
pub(super) enum Asked {
    /// A preflight, and its answer.
    Before(Response<()>),
    /// Any other, which goes on.
    Now(Granted),
}

impl Cors {
    /// Reads what a filter says.
    pub fn parse(parts: &CorsParts<'_>) -> Result<Self, InvalidCors> {
        let is_method = |name: &str| Method::from_bytes(name.as_bytes()).is_ok();
        let is_header = |name: &str| HeaderName::try_from(name).is_ok();
        let origin = |text: &&str| Origin::parse(text).ok_or_else(|| InvalidCors::Origin((*text).to_owned()));
        if parts.origins.len() > 1 && parts.origins.contains(&"*") {
            return Err(InvalidCors::AnyAndMore);
        }
        Ok(Self {
            origins: parts.origins.iter().map(origin).collect::<Result<_, _>>()?,
            credentials: parts.credentials,
            methods: Allowed::parse(parts.methods, is_method)?,
            headers: Allowed::parse(parts.headers, is_header)?,
            exposed: Allowed::parse(parts.exposed, is_header)?,
            max_age: parts.max_age.unwrap_or(MAX_AGE),
        })
    }

    /// Whose pages may ask, as it is written.
    pub fn origins(&self) -> impl Iterator<Item = String> {
        self.origins.iter().map(Origin::written)
    }

    /// Whether cookies and their like may come along.
    pub fn credentials(&self) -> bool {
        self.credentials
    }

    /// With which methods.
    pub fn methods(&self) -> &Allowed {
        &self.methods
    }

    /// With which request headers.
    pub fn headers(&self) -> &Allowed {
        &self.headers
    }

    /// Which response headers a page may read.
    pub fn exposed(&self) -> &Allowed {
        &self.exposed
    }

    /// How long a preflight holds, in seconds.
    pub fn max_age(&self) -> u32 {
        self.max_age
    }

    pub(super) fn judge(&self, head: &Parts) -> Asked {
        let origin = head.headers.get(header::ORIGIN);
        let allowed = origin.filter(|origin| self.allows(origin));
        let method = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        match (origin, method) {
            (Some(_), Some(method)) if head.method == Method::OPTIONS => {
                Asked::Before(self.preflight(allowed, method, head))
            }
            (Some(_) | None, _) => Asked::Now(Granted(self.grants(allowed))),
        }
    }

    fn preflight(&self, allowed: Option<&HeaderValue>, method: &HeaderValue, head: &Parts) -> Response<()> {
        if allowed.is_none() {
            return answer(StatusCode::FORBIDDEN);
        }
        let mut headers = self.grants(allowed);
        let methods = self.methods.or_asked(Some(method));
        let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let said = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.or_asked(asked)),
            (header::ACCESS_CONTROL_MAX_AGE, Some(self.max_age.into())),
        ];
        for (name, value) in said {
            if let Some(value) = value {
                insert(&mut headers, &name, value);
            }
        }
        let mut response = answer(StatusCode::OK);
        *response.headers_mut() = headers;
        response
    }

    /// What every response says to a page of the origin `allowed`, or to others.
    fn grants(&self, allowed: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        insert(&mut headers, &header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = allowed else { return headers };
        insert(&mut headers, &header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            insert(&mut headers, &header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        let exposed = match &self.exposed {
            Allowed::These(these) => Some(these.clone()),
            // With credentials a browser reads `*` as a name.
            Allowed::Any => (!self.credentials).then(|| HeaderValue::from_static("*")),
            Allowed::Nothing => None,
        };
        if let Some(exposed) = exposed {
            insert(&mut headers, &header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        headers
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        // `null` is the origin of whatever hides its own; with credentials it would be anybody's.
        if origin == "null" {
            return !self.credentials && self.origins.contains(&Origin::Any);
        }
        origin.to_str().is_ok_and(|asked| Origin::any_matches(&self.origins, asked))
    }
}

impl Allowed {
    fn parse(names: &[&str], is_name: impl Fn(&str) -> bool) -> Result<Self, InvalidCors> {
        match names {
            [] => return Ok(Self::Nothing),
            ["*"] => return Ok(Self::Any),
            names if names.contains(&"*") => return Err(InvalidCors::AnyAndMore),
            _ => {}
        }
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(InvalidCors::Name((*name).to_owned()));
        }
        let list = names.join(", ");
        HeaderValue::try_from(&list).map(Self::These).map_err(|_| InvalidCors::Name(list))
    }

    /// The names, as they are written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let list = match self {
            Self::Nothing => None,
            Self::These(these) => these.to_str().ok(),
            Self::Any => Some("*"),
        };
        list.into_iter().flat_map(|list| list.split(", "))
    }

    /// What a preflight is told: for all, what it asked for.
    fn or_asked(&self, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Nothing => None,
            Self::These(these) => Some(these.clone()),
            Self::Any => asked.cloned(),
        }
    }
}

impl Granted {
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for name in SAID {
            headers.remove(name);
        }
        for (name, value) in &self.0 {
            append(headers, name, value.clone());
        }
    }
}

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidCors {
    /// An origin is none.
    #[error("{0:?} is no origin: `*`, or http or https, `://`, a host that may begin with `*.`, a port")]
    Origin(String),
    /// A method or header has no such name.
    #[error("{0:?} is not the name of a method or header")]
    Name(String),
    /// All, and then some.
    #[error("`*` stands alone")]
    AnyAndMore,
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn cors_1() -> Cors {
        let parts = CorsParts {
            origins: &["https://www.foo.com", "https://*.bar.com"],
            credentials: true,
            methods: &["GET", "OPTIONS"],
            headers: &["x-header-1", "x-header-2"],
            exposed: &["x-header-3", "x-header-4"],
            max_age: Some(3600),
        };
        Cors::parse(&parts).expect("a filter")
    }

    fn all(credentials: bool) -> Cors {
        let any = &["*"][..];
        let parts =
            CorsParts { origins: any, credentials, methods: any, headers: any, exposed: any, max_age: None };
        Cors::parse(&parts).expect("a filter")
    }

    fn ask(method: &str, origin: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method).uri("/").header("origin", origin);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn preflight(cors: &Cors, origin: &str, method: &str) -> Response<()> {
        let headers = [
            ("access-control-request-method", method),
            ("access-control-request-headers", "x-header-1, x-header-2"),
        ];
        match cors.judge(&ask("OPTIONS", origin, &headers)) {
            Asked::Before(answer) => answer,
            Asked::Now(_) => panic!("a preflight"),
        }
    }

    fn said(headers: &HeaderMap, name: &str) -> Option<String> {
        let name = format!("access-control-{name}");
        headers.get(name).map(|value| value.to_str().expect("text").to_owned())
    }

    #[test]
    fn a_preflight_is_answered_as_the_conformance_suite_has_it() {
        for origin in ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"] {
            let answer = preflight(&cors_1(), origin, "GET");
            assert_eq!(answer.status(), StatusCode::OK);
            let table = [
                ("allow-origin", origin),
                ("allow-methods", "GET, OPTIONS"),
                ("allow-headers", "x-header-1, x-header-2"),
                ("expose-headers", "x-header-3, x-header-4"),
                ("max-age", "3600"),
                ("allow-credentials", "true"),
            ];
            for (name, value) in table {
                assert_eq!(said(answer.headers(), name).as_deref(), Some(value), "{origin}: {name}");
            }
        }
        for origin in
            ["https://foobar.com", "https://bar.com", "http://www.foo.com", "https://www.foo.com:8443"]
        {
            let answer = preflight(&cors_1(), origin, "GET");
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{origin}");
            assert!(answer.headers().is_empty(), "{origin}");
        }
    }

    #[test]
    fn what_is_allowed_for_all_is_what_was_asked_for() {
        for credentials in [false, true] {
            let answer = preflight(&all(credentials), "https://other.foo.com:12345", "PUT");
            let table = [
                ("allow-origin", Some("https://other.foo.com:12345")),
                ("allow-methods", Some("PUT")),
                ("allow-headers", Some("x-header-1, x-header-2")),
                ("expose-headers", (!credentials).then_some("*")),
                ("max-age", Some("5")),
                ("allow-credentials", credentials.then_some("true")),
            ];
            for (name, value) in table {
                assert_eq!(said(answer.headers(), name).as_deref(), value, "{credentials}: {name}");
            }
        }
    }

    #[test]
    fn a_request_goes_on_and_its_response_says_who_may_read_it() {
        let granted = |origin| match cors_1().judge(&ask("GET", origin, &[])) {
            Asked::Now(granted) => {
                let mut headers = HeaderMap::new();
                headers.insert("access-control-allow-origin", HeaderValue::from_static("*"));
                headers.insert("vary", HeaderValue::from_static("Accept"));
                granted.apply(&mut headers);
                headers
            }
            Asked::Before(_) => panic!("no preflight"),
        };
        let allowed = granted("https://www.foo.com");
        assert_eq!(said(&allowed, "allow-origin").as_deref(), Some("https://www.foo.com"));
        assert_eq!(said(&allowed, "allow-credentials").as_deref(), Some("true"));
        assert_eq!(allowed.get_all("vary").iter().collect::<Vec<_>>(), ["Accept", "Origin"]);
        let other = granted("https://foobar.com");
        assert_eq!(said(&other, "allow-origin"), None, "not even what the backend said");
        assert!(other.get_all("vary").iter().any(|value| value == "Origin"));
    }

    #[test]
    fn options_without_a_method_asked_for_is_no_preflight() {
        assert!(matches!(cors_1().judge(&ask("OPTIONS", "https://www.foo.com", &[])), Asked::Now(_)));
    }

    #[test]
    fn a_hidden_origin_is_anybody_s() {
        assert_eq!(preflight(&all(false), "null", "GET").status(), StatusCode::OK);
        assert_eq!(preflight(&all(true), "null", "GET").status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let origin = CorsParts { origins: &["a.b"], ..CorsParts::default() };
        assert_eq!(Cors::parse(&origin), Err(InvalidCors::Origin("a.b".to_owned())));
        let both = CorsParts { methods: &["*", "GET"], ..CorsParts::default() };
        assert_eq!(Cors::parse(&both), Err(InvalidCors::AnyAndMore));
        let header = CorsParts { headers: &["a\r\nb"], ..CorsParts::default() };
        assert_eq!(Cors::parse(&header), Err(InvalidCors::Name("a\r\nb".to_owned())));
    }
}
