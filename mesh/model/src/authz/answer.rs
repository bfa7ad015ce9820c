//! What an external authorizer says of a request, and what becomes of it.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use thiserror::Error;

use super::{HttpCheck, authorizer::names_header};

/// How many headers an answer may change, in all.
pub const MOST_CHANGES: usize = 64;
/// How long the body of a denial may be, in bytes.
pub const LARGEST_DENIAL: usize = 64 * 1024;

/// In an answer in HTTP that allows: which headers the application does not get (Envoy's).
const HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request may be.
    Allowed(Changes),
    /// It may not, and the client is told so.
    Denied(Denial),
}

/// What an authorizer that allows changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the head of the request.
    pub request: Vec<HeaderChange>,
    /// In the head of its response.
    pub response: Vec<HeaderChange>,
}

/// What the client is told by an authorizer that denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The status; never one below 200, which would be no end.
    pub status: StatusCode,
    /// Its headers.
    pub headers: Vec<HeaderChange>,
    /// Its body.
    pub body: Vec<u8>,
}

/// A change of one header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderChange {
    /// It has this value and no other.
    Set(HeaderName, HeaderValue),
    /// It has this value, too.
    Append(HeaderName, HeaderValue),
    /// It has this value if it had none.
    SetIfAbsent(HeaderName, HeaderValue),
    /// It has this value if it had another.
    SetIfPresent(HeaderName, HeaderValue),
    /// It is gone.
    Remove(HeaderName),
}

impl HeaderChange {
    /// Which header.
    pub fn name(&self) -> &HeaderName {
        match self {
            Self::Set(name, _)
            | Self::Append(name, _)
            | Self::SetIfAbsent(name, _)
            | Self::SetIfPresent(name, _)
            | Self::Remove(name) => name,
        }
    }

    fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Set(name, value) => {
                headers.insert(name, value.clone());
            }
            Self::Append(name, value) => {
                headers.append(name, value.clone());
            }
            Self::SetIfAbsent(name, value) => {
                headers.entry(name).or_insert_with(|| value.clone());
            }
            Self::SetIfPresent(name, value) => {
                if headers.contains_key(name) {
                    headers.insert(name, value.clone());
                }
            }
            Self::Remove(name) => while headers.remove(name).is_some() {},
        }
    }
}

/// Makes changes, in their order. Those of headers that are nobody's to say ([`may_be_told`]) are left out.
pub fn change(headers: &mut HeaderMap, changes: &[HeaderChange]) {
    changes.iter().filter(|change| may_be_told(change.name())).for_each(|change| change.apply(headers));
}

/// Whether a header is an authorizer's to say. Those are not that frame a message or concern one connection alone, name
/// the host, or say by whose certificate a client is known.
pub fn may_be_told(name: &HeaderName) -> bool {
    !NEVER_TOLD.contains(&name.as_str())
}

const NEVER_TOLD: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "grpc-timeout",
];

/// Headers of a denial in HTTP that the client gets whatever the list says (Envoy's).
const ALWAYS_OF_A_DENIAL: [HeaderName; 2] = [header::LOCATION, header::WWW_AUTHENTICATE];

impl Answer {
    /// Reads what an authorizer answers in HTTP: 200 allows, 5xx is a failure, all else denies.
    pub fn of_http(
        check: &HttpCheck,
        status: StatusCode,
        headers: &HeaderMap,
        body: Vec<u8>,
    ) -> Result<Self, InvalidAnswer> {
        if status.is_server_error() || status.is_informational() {
            return Err(InvalidAnswer::Status(status));
        }
        if status == StatusCode::OK {
            let removed = headers.get_all(HEADERS_TO_REMOVE).iter().filter_map(|line| line.to_str().ok());
            let removed = removed.flat_map(|line| line.split(',')).map(str::trim);
            let removed = removed.filter(|name| !name.is_empty()).map(|name| {
                let name = HeaderName::try_from(name).map_err(|_| InvalidAnswer::Header(name.into()))?;
                Ok(HeaderChange::Remove(name))
            });
            let mut request = removed.collect::<Result<Vec<_>, _>>()?;
            request.extend(set(headers, |name| names_header(&check.upstream_on_allow, name)));
            let response = added(headers, |name| names_header(&check.downstream_on_allow, name));
            let changes = Changes { request, response };
            changes.count()?;
            return Ok(Self::Allowed(changes));
        }
        let told = |name: &HeaderName| match &check.downstream_on_deny {
            Some(list) => names_header(list, name) || ALWAYS_OF_A_DENIAL.contains(name),
            None => true,
        };
        Self::denied(status, added(headers, told), body)
    }

    /// A denial, if it is one that can be told.
    pub fn denied(
        status: StatusCode,
        headers: Vec<HeaderChange>,
        body: Vec<u8>,
    ) -> Result<Self, InvalidAnswer> {
        // There are no statuses beyond 599 (RFC 9110, 15), whatever the type holds.
        if status.is_informational() || status.as_u16() > 599 {
            return Err(InvalidAnswer::Status(status));
        }
        if headers.len() > MOST_CHANGES {
            return Err(InvalidAnswer::TooManyHeaders(headers.len()));
        }
        if body.len() > LARGEST_DENIAL {
            return Err(InvalidAnswer::TooLong);
        }
        Ok(Self::Denied(Denial { status, headers, body }))
    }
}

impl Changes {
    /// Whether they are not too many.
    pub fn count(&self) -> Result<(), InvalidAnswer> {
        match self.request.len() + self.response.len() {
            count if count > MOST_CHANGES => Err(InvalidAnswer::TooManyHeaders(count)),
            _ => Ok(()),
        }
    }
}

/// The chosen headers, in place of those that are there: the first line of each is set, all others are added.
fn set(headers: &HeaderMap, chosen: impl Fn(&HeaderName) -> bool) -> Vec<HeaderChange> {
    let chosen = headers.keys().filter(|name| chosen(name) && may_be_told(name));
    let lines = chosen.flat_map(|name| {
        let mut lines = headers.get_all(name).iter();
        let first = lines.next().map(|value| HeaderChange::Set(name.clone(), value.clone()));
        first.into_iter().chain(lines.map(|value| HeaderChange::Append(name.clone(), value.clone())))
    });
    lines.collect()
}

/// The chosen headers, beside those that are there.
fn added(headers: &HeaderMap, chosen: impl Fn(&HeaderName) -> bool) -> Vec<HeaderChange> {
    let chosen = headers.iter().filter(|(name, _)| chosen(name) && may_be_told(name));
    chosen.map(|(name, value)| HeaderChange::Append(name.clone(), value.clone())).collect()
}

/// Why an answer is none. Whoever gives such a one has failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidAnswer {
    /// The status is no verdict.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// A header has a name or a value that nobody can write.
    #[error("it says a header that cannot be written: {0:?}")]
    Header(Box<str>),
    /// There are too many headers.
    #[error("it says {0} headers; the limit is {MOST_CHANGES}")]
    TooManyHeaders(usize),
    /// The body is too long.
    #[error("its answer is longer than {LARGEST_DENIAL} bytes")]
    TooLong,
    /// It says one thing and another.
    #[error("it answered what makes no sense: {0}")]
    Contradiction(&'static str),
    /// It is no message.
    #[error("its answer cannot be read: {0}")]
    Unreadable(Box<str>),
}
