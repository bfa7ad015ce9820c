//! The command operators, and what each writes.

use std::fmt::Display;

use http::{HeaderName, HeaderValue, header};
use time::OffsetDateTime;

use super::{Facts, InvalidTemplate, Value};

/// Headers that are secrets.
const SECRETS: [HeaderName; 4] =
    [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE, header::SET_COOKIE];

/// A header of a request that a template names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// `:METHOD`.
    Method,
    /// `:PATH`, with the query.
    Path,
    /// `:AUTHORITY`.
    Authority,
    /// `:SCHEME`.
    Scheme,
    /// The one at this place of those that were taken.
    Taken(usize),
}

/// What stands in the place of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `START_TIME`: in UTC, to the millisecond.
    StartTime,
    /// `DURATION`: milliseconds.
    Duration,
    /// `REQ(X)`, `REQ(X?Y)`: a header of the request, or the other one.
    Request(Header, Option<Header>),
    /// `RESP(X)`, `RESP(X?Y)`.
    Response(usize, Option<usize>),
    /// `PATH(NQ)`, `PATH(WQ)`: the path, without or with its query.
    Path {
        /// Whether the query is there.
        with_query: bool,
    },
    /// `PROTOCOL`.
    Protocol,
    /// `RESPONSE_CODE`.
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`: `via_upstream`, or why it was refused in a word.
    ResponseCodeDetails,
    /// `RESPONSE_FLAGS`.
    ResponseFlags,
    /// `GRPC_STATUS_NUMBER`.
    GrpcStatus,
    /// `BYTES_RECEIVED`: of the request's body.
    BytesReceived,
    /// `BYTES_SENT`: of the response's body.
    BytesSent,
    /// `UPSTREAM_HOST`: the endpoint.
    UpstreamHost,
    /// `UPSTREAM_CLUSTER`: as Istio's waypoints call the service.
    UpstreamCluster,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`.
    Attempts,
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`.
    Failure,
    /// `CONNECTION_TERMINATION_DETAILS`.
    Termination,
    /// `DOWNSTREAM_REMOTE_ADDRESS`: the client.
    Client {
        /// Whether its port is there.
        with_port: bool,
    },
    /// `DOWNSTREAM_LOCAL_ADDRESS`: what it asked for.
    Asked,
    /// `DOWNSTREAM_PEER_URI_SAN`: who it proved to be.
    Peer,
    /// `ROUTE_NAME`.
    Route,
    /// `REQUESTED_SERVER_NAME`.
    ServerName,
    /// `TRACE_ID`.
    TraceId,
    /// `SPAN_ID`: the waypoint's own.
    SpanId,
    /// What Envoy knows and nobody here does: `-`.
    Never,
}

impl Operator {
    /// Reads `NAME` or `NAME(ARGUMENT)`. Headers that it names are added to those to be taken.
    pub(super) fn read(
        written: &str,
        request: &mut Vec<HeaderName>,
        response: &mut Vec<HeaderName>,
    ) -> Result<Self, InvalidTemplate> {
        let wrong = |why| InvalidTemplate::Argument(written.to_owned(), why);
        let (name, argument) = match written.split_once('(') {
            Some((name, rest)) => {
                let argument = rest.strip_suffix(')').ok_or_else(|| wrong("the bracket is not closed"))?;
                (name, Some(argument))
            }
            None => (written, None),
        };
        let plain = match name {
            "REQ" | "RESP" | "PATH" => {
                let argument = argument.ok_or_else(|| wrong("needs an argument in brackets"))?;
                return Self::with(written, name, argument, request, response);
            }
            "START_TIME" => Self::StartTime,
            "DURATION" => Self::Duration,
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_CODE_DETAILS" => Self::ResponseCodeDetails,
            "RESPONSE_FLAGS" => Self::ResponseFlags,
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Self::UpstreamHost,
            "UPSTREAM_CLUSTER" => Self::UpstreamCluster,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::Attempts,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::Failure,
            "CONNECTION_TERMINATION_DETAILS" => Self::Termination,
            "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => {
                Self::Client { with_port: true }
            }
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
                Self::Client { with_port: false }
            }
            "DOWNSTREAM_LOCAL_ADDRESS" => Self::Asked,
            "DOWNSTREAM_PEER_URI_SAN" => Self::Peer,
            "ROUTE_NAME" => Self::Route,
            "REQUESTED_SERVER_NAME" => Self::ServerName,
            "TRACE_ID" => Self::TraceId,
            "SPAN_ID" => Self::SpanId,
            // The waypoint's own side of a connection, and names that its certificates have not.
            "UPSTREAM_LOCAL_ADDRESS" | "DOWNSTREAM_PEER_SUBJECT" => Self::Never,
            other => return Err(InvalidTemplate::Unknown(other.to_owned())),
        };
        match argument {
            None => Ok(plain),
            Some(_) => Err(wrong("takes no argument here")),
        }
    }

    fn with(
        written: &str,
        name: &str,
        argument: &str,
        request: &mut Vec<HeaderName>,
        response: &mut Vec<HeaderName>,
    ) -> Result<Self, InvalidTemplate> {
        let (first, second) = match argument.split_once('?') {
            Some((first, second)) => (first, Some(second)),
            None => (argument, None),
        };
        match name {
            "PATH" => match argument {
                "NQ" => Ok(Self::Path { with_query: false }),
                "WQ" => Ok(Self::Path { with_query: true }),
                _ => Err(InvalidTemplate::Argument(written.to_owned(), "accepted: NQ, WQ")),
            },
            "REQ" => {
                let mut header = |name: &str| match name.to_ascii_uppercase().as_str() {
                    ":METHOD" => Ok(Header::Method),
                    ":PATH" => Ok(Header::Path),
                    ":AUTHORITY" | "HOST" => Ok(Header::Authority),
                    ":SCHEME" => Ok(Header::Scheme),
                    _ => taken(written, name, request).map(Header::Taken),
                };
                Ok(Self::Request(header(first)?, second.map(header).transpose()?))
            }
            _ => {
                let mut header = |name: &str| taken(written, name, response);
                Ok(Self::Response(header(first)?, second.map(header).transpose()?))
            }
        }
    }

    /// Writes what there is to say.
    pub(super) fn write(self, facts: &Facts<'_>, to: &mut Value<'_>) {
        match self {
            Self::StartTime => to.plain(&timestamp(facts.began)),
            Self::Duration => to.number(u64::try_from(facts.took.as_millis()).unwrap_or(u64::MAX)),
            Self::Request(first, second) => {
                let found = value(first, facts).or_else(|| value(second?, facts));
                said(to, found);
            }
            Self::Response(first, second) => {
                let of = |place: usize| facts.response.get(place).and_then(Option::as_ref);
                said(to, of(first).or_else(|| of(second?)).map(HeaderValue::as_bytes));
            }
            Self::Path { with_query: true } => said(to, value(Header::Path, facts)),
            Self::Path { with_query: false } => said(to, facts.uri.map(|uri| uri.path().as_bytes())),
            Self::Protocol => known(to, facts.protocol),
            Self::ResponseCode => to.number(facts.status.into()),
            Self::ResponseCodeDetails => known(to, facts.details),
            Self::ResponseFlags => to.plain(facts.flag),
            Self::GrpcStatus => known(to, facts.grpc),
            Self::BytesReceived => to.number(facts.received),
            Self::BytesSent => to.number(facts.sent),
            Self::UpstreamHost => known(to, facts.upstream),
            Self::UpstreamCluster => match (facts.service, facts.asked) {
                (Some(service), Some(asked)) => {
                    let kind = if facts.method.is_some() { "http" } else { "tcp" };
                    to.foreign(format!("inbound-vip|{}|{kind}|{service}", port(asked)).as_bytes());
                }
                (Some(_) | None, None) | (None, Some(_)) => to.nothing(),
            },
            Self::Attempts => to.number(facts.attempts.into()),
            Self::Failure => said(to, facts.failure.as_deref().map(str::as_bytes)),
            Self::Termination => said(to, facts.termination.as_deref().map(str::as_bytes)),
            Self::Client { with_port: true } => known(to, facts.client),
            Self::Client { with_port: false } => known(to, facts.client.map(|client| client.ip())),
            Self::Asked => said(to, facts.asked.map(ToString::to_string).as_deref().map(str::as_bytes)),
            Self::Peer => said(to, facts.peer.map(ToString::to_string).as_deref().map(str::as_bytes)),
            Self::Route => said(to, facts.route.map(str::as_bytes)),
            Self::ServerName => said(to, facts.server_name.map(str::as_bytes)),
            Self::TraceId => known(to, facts.trace),
            Self::SpanId => known(to, facts.span),
            Self::Never => to.nothing(),
        }
    }
}

/// The place of a header among those that are taken.
fn taken(written: &str, name: &str, all: &mut Vec<HeaderName>) -> Result<usize, InvalidTemplate> {
    let wrong = || InvalidTemplate::Argument(written.to_owned(), "what is in brackets is no header");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
    if SECRETS.contains(&name) {
        return Err(InvalidTemplate::Secret(written.to_owned(), name));
    }
    if let Some(place) = all.iter().position(|known| *known == name) {
        return Ok(place);
    }
    all.push(name);
    Ok(all.len() - 1)
}

fn value<'f>(header: Header, facts: &'f Facts<'_>) -> Option<&'f [u8]> {
    match header {
        Header::Method => facts.method.map(|method| method.as_str().as_bytes()),
        Header::Path => {
            facts.uri.map(|uri| uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes())
        }
        Header::Authority => facts.uri?.authority().map(|authority| authority.as_str().as_bytes()),
        // In a tunnel of the mesh it came in plain text.
        Header::Scheme => facts.method.map(|_| b"http".as_slice()),
        Header::Taken(place) => facts.request.get(place)?.as_ref().map(HeaderValue::as_bytes),
    }
}

fn said(to: &mut Value<'_>, text: Option<&[u8]>) {
    match text {
        Some(text) if !text.is_empty() => to.foreign(text),
        Some(_) | None => to.nothing(),
    }
}

fn known(to: &mut Value<'_>, value: Option<impl Display>) {
    match value {
        Some(value) => to.plain(&value.to_string()),
        None => to.nothing(),
    }
}

fn port(asked: &ambit_model::address::Target) -> u16 {
    match asked {
        ambit_model::address::Target::Ip(address) => address.port(),
        ambit_model::address::Target::Host(_, port) => *port,
    }
}

fn timestamp(at: std::time::SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second, millis) = (at.hour(), at.minute(), at.second(), at.millisecond());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}
