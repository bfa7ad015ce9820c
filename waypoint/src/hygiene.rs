//! The heads of messages: one reading of each for routes, policies and applications. Pure.
//!
//! | of a request | becomes |
//! |---|---|
//! | its host: authority, or `Host` | the authority, and nothing else; two that differ: 400 |
//! | its path | its one spelling ([`normal`](ambit_model::route::normal)) |
//! | `Connection`, what it names, and others of one connection alone (RFC 9110, 7.6.1) | nothing; a wish to upgrade is remembered |
//! | `X-Forwarded-For`, `Forwarded` | themselves, and the client's address |
//! | `X-Forwarded-Client-Cert` | nothing: the client is known by its certificate, not by what it says; or what we say of it |
//! | `X-Request-Id` | itself; a fresh one if there is none |

use std::net::IpAddr;

use ambit_model::{
    identity::Identity,
    route::normal::{InvalidTarget, normalize},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::ext::Protocol;
use thiserror::Error;

use crate::websocket::{self, Wish};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Who the client is, as a proxy tells it (Envoy's).
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// What a client of HTTP/1.1 says of itself that wants HTTP/2 (RFC 7540, 3.2.1).
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What joins the records of one request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids of requests are replaced: they are written to every log on the way.
const LONGEST_ID: usize = 128;

/// What was found in the head of a request, beside what is left there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What its connection is to become.
    pub wish: Option<Wish>,
    /// Whether its path has an escaped slash, which applications read in two ways.
    pub path_is_ambiguous: bool,
}

/// Who a client is, and who says so, as applications read it in `X-Forwarded-Client-Cert` (protocols 4.10).
///
/// `None`: an identity has what separates fields there.
pub fn client_certificate(client: &Identity, own: &Identity) -> Option<HeaderValue> {
    let [own, client] = [own, client].map(ToString::to_string);
    let is_plain = |identity: &str| !identity.contains([',', ';', '"', '=']);
    let value = format!("By={own};URI={client}");
    HeaderValue::try_from(value).ok().filter(|_| is_plain(&own) && is_plain(&client))
}

/// Gives the head of a request of `client` its one reading. What the application is told of the client's `certificate`
/// takes the place of what the client says. `id` is drawn for a request that has none.
pub fn receive(
    head: &mut Parts,
    client: IpAddr,
    certificate: Option<HeaderValue>,
    id: impl FnOnce() -> u128,
) -> Result<Received, InvalidHead> {
    let is_connect = head.method == Method::CONNECT || head.extensions.get::<Protocol>().is_some();
    let stream = is_connect.then(|| websocket::receive(head)).transpose()?;
    let authority = authority(head)?;
    let path_is_ambiguous = set_target(head, authority)?;
    let upgrade = strip_connection(&mut head.headers);
    // Nobody goes on in HTTP of another version behind our back: whatever was said in it, no policy would see.
    head.headers.remove(HTTP2_SETTINGS);
    let upgrade = upgrade.filter(|protocols| !names_http(protocols));
    let upgrade = upgrade.filter(|_| head.version == Version::HTTP_11);
    let wish = stream.or(upgrade.map(Wish::Upgrade));
    // It was answered, or will be, when the body is asked for.
    head.headers.remove(header::EXPECT);
    let forged = |name: &&HeaderName| {
        name.as_str().contains('_') && name.as_str().replace('_', "-") == X_FORWARDED_CLIENT_CERT.as_str()
    };
    // To applications of CGI's kind both are one name.
    while let Some(name) = head.headers.keys().find(forged).cloned() {
        head.headers.remove(name);
    }
    match certificate {
        Some(certificate) => drop(head.headers.insert(X_FORWARDED_CLIENT_CERT, certificate)),
        None => drop(head.headers.remove(X_FORWARDED_CLIENT_CERT)),
    }
    forwarded(&mut head.headers, client);
    let has_id = head.headers.get(&X_REQUEST_ID).is_some_and(|id| id.len() <= LONGEST_ID && !id.is_empty());
    if !has_id {
        head.headers.insert(X_REQUEST_ID, uuid(id()));
    }
    Ok(Received { wish, path_is_ambiguous })
}

/// Takes from the head of a response what concerns one connection alone; what is left is for the client.
pub fn respond(headers: &mut HeaderMap) {
    strip_connection(headers);
}

/// Turns a request's head into what is written to an HTTP/1.1 connection.
pub fn write_http1(head: &mut Parts) {
    let host = head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        head.headers.insert(header::HOST, host);
    }
    let target = head.uri.path_and_query().cloned();
    head.uri = target.map_or_else(Uri::default, Uri::from);
    head.version = Version::HTTP_11;
}

/// Turns a request's head into what is written to an HTTP/2 connection.
pub fn write_http2(head: &mut Parts) {
    head.version = Version::HTTP_2;
    head.headers.remove(header::HOST);
}

/// The one host that the request is for.
fn authority(head: &Parts) -> Result<Authority, InvalidHead> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let in_header = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
            Some(host.ok_or(InvalidHead::Host)?)
        }
        (None, _) => None,
        (Some(_), Some(_)) => return Err(InvalidHead::ManyHosts),
    };
    let authority = match (head.uri.authority(), in_header) {
        (Some(authority), None) => authority.clone(),
        // HTTP/1.1 in absolute form: the target counts, and the field is to be ignored (RFC 9112, 3.2.2). It is
        // refused all the same: who sends two hosts wants two readers to see two.
        (Some(authority), Some(host)) if same_host(authority, &host) => authority.clone(),
        (Some(_), Some(_)) => return Err(InvalidHead::Disagreeing),
        (None, Some(host)) => host,
        (None, None) => return Err(InvalidHead::NoHost),
    };
    let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
    if plain { Ok(authority) } else { Err(InvalidHead::Host) }
}

fn same_host(one: &Authority, other: &Authority) -> bool {
    one.as_str().eq_ignore_ascii_case(other.as_str())
}

/// Whether the path is ambiguous.
fn set_target(head: &mut Parts, authority: Authority) -> Result<bool, InvalidHead> {
    let mut parts = head.uri.clone().into_parts();
    let target = parts.path_and_query.as_ref();
    let path = target.map_or("/", PathAndQuery::path);
    let normal = normalize(path)?;
    if normal.path != path {
        let spelled = match target.and_then(PathAndQuery::query) {
            Some(query) => format!("{}?{query}", normal.path),
            None => normal.path.to_string(),
        };
        let spelled = PathAndQuery::try_from(spelled).map_err(|_| InvalidHead::Target)?;
        let is_ambiguous = normal.is_ambiguous;
        parts.path_and_query = Some(spelled);
        return put(head, parts, authority).map(|()| is_ambiguous);
    }
    let is_ambiguous = normal.is_ambiguous;
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    put(head, parts, authority).map(|()| is_ambiguous)
}

fn put(head: &mut Parts, mut parts: http::uri::Parts, authority: Authority) -> Result<(), InvalidHead> {
    parts.authority = Some(authority);
    // Within the mesh's tunnel it came in plain text, whatever it says.
    parts.scheme = Some(Scheme::HTTP);
    head.uri = Uri::from_parts(parts).map_err(|_| InvalidHead::Target)?;
    head.headers.remove(header::HOST);
    Ok(())
}

/// Removes what concerns one connection alone. The protocol that the sender wants to upgrade to, or has.
fn strip_connection(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.remove(header::UPGRADE);
    let named = headers.remove_entry_all(header::CONNECTION);
    let mut wants_upgrade = false;
    for name in named.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        let name = name.trim();
        wants_upgrade |= name.eq_ignore_ascii_case("upgrade");
        if let Ok(name) = HeaderName::try_from(name) {
            headers.remove(name);
        }
    }
    let trailers = headers
        .get(header::TE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case("trailers")));
    for name in [header::TE, header::TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade.filter(|_| wants_upgrade)
}

/// All values of a header, which is gone after it.
trait RemoveAll {
    fn remove_entry_all(&mut self, name: HeaderName) -> Vec<HeaderValue>;
}

impl RemoveAll for HeaderMap {
    fn remove_entry_all(&mut self, name: HeaderName) -> Vec<HeaderValue> {
        match self.entry(name) {
            header::Entry::Occupied(entry) => entry.remove_entry_mult().1.collect(),
            header::Entry::Vacant(_) => Vec::new(),
        }
    }
}

/// Whether HTTP itself is among the protocols of an `Upgrade`.
fn names_http(protocols: &HeaderValue) -> bool {
    let is_http = |name: &[u8]| {
        let name = name.trim_ascii();
        name.eq_ignore_ascii_case(b"h2c")
            || name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"))
    };
    protocols.as_bytes().split(|byte| *byte == b',').any(is_http)
}

fn forwarded(headers: &mut HeaderMap, client: IpAddr) {
    append(headers, X_FORWARDED_FOR, &client.to_string());
    let node = match client {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    append(headers, header::FORWARDED, &node);
    if !headers.contains_key(&X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

/// Adds to a list in one line: some readers look at the first line alone.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let before = headers.remove_entry_all(name.clone());
    let mut line = Vec::new();
    for value in &before {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(element.as_bytes());
    // Values joined by a comma and a space are a value.
    if let Ok(value) = HeaderValue::from_bytes(&line) {
        headers.insert(name, value);
    }
}

/// A random UUID (RFC 9562, version 4) of 128 random bits.
fn uuid(random: u128) -> HeaderValue {
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
    HeaderValue::from_str(&parts.join("-")).unwrap_or(HeaderValue::from_static("-"))
}

/// Why a request's head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidHead {
    /// It wants a tunnel.
    #[error("CONNECT is not for applications")]
    Connect,
    /// It names no host.
    #[error("the request names no host")]
    NoHost,
    /// It names several.
    #[error("the request has several Host fields")]
    ManyHosts,
    /// It names another in its target than in its field.
    #[error("the request's target and its Host field name different hosts")]
    Disagreeing,
    /// The host is none.
    #[error("the request's host cannot be read")]
    Host,
    /// The path is none.
    #[error("{0}")]
    Path(#[from] InvalidTarget),
    /// Policies compare paths, and this one is read in two ways.
    #[error("the path has an escaped slash, and a policy of this service compares paths")]
    Ambiguous,
    /// The target is too long, or cannot be written.
    #[error("the request's target cannot be written")]
    Target,
    /// It wants another protocol, and the endpoint speaks HTTP/2.
    #[error("the endpoint speaks HTTP/2, which has no upgrades but to WebSocket")]
    Upgrade,
    /// It wants WebSocket, in a way in which it cannot be passed on in HTTP/2.
    #[error("the request is no WebSocket handshake: that is a GET without a body, with one key of 16 bytes")]
    Handshake,
    /// It wants a stream of another protocol.
    #[error("the request's :protocol is not websocket")]
    Protocol,
}

impl InvalidHead {
    /// What the client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            // RFC 9220, 3, which says it for RFC 8441, too.
            Self::Protocol => StatusCode::NOT_IMPLEMENTED,
            Self::Target => StatusCode::URI_TOO_LONG,
            Self::NoHost
            | Self::ManyHosts
            | Self::Disagreeing
            | Self::Host
            | Self::Path(_)
            | Self::Ambiguous
            | Self::Upgrade
            | Self::Handshake => StatusCode::BAD_REQUEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request =
            headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn received(uri: &str, headers: &[(&str, &str)]) -> Result<(Parts, Received), InvalidHead> {
        let mut head = head(uri, headers);
        receive(&mut head, CLIENT, None, || 0).map(|received| (head, received))
    }

    fn header_of<'h>(head: &'h Parts, name: &str) -> Option<&'h str> {
        head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn a_request_is_for_one_host() {
        let host = |uri, headers: &[(&str, &str)]| {
            received(uri, headers).map(|(head, _)| head.uri.authority().map(ToString::to_string))
        };
        let web = Ok(Some("web".to_owned()));
        assert_eq!(host("/a", &[("host", "web")]), web);
        assert_eq!(host("http://web/a", &[]), web);
        assert_eq!(host("http://web/a", &[("host", "web")]), web);
        assert_eq!(host("http://web/a", &[("host", "other")]), Err(InvalidHead::Disagreeing));
        assert_eq!(host("/a", &[("host", "web"), ("host", "web")]), Err(InvalidHead::ManyHosts));
        assert_eq!(host("/a", &[]), Err(InvalidHead::NoHost));
        assert_eq!(host("/a", &[("host", "")]), Err(InvalidHead::Host));
        assert_eq!(host("/a", &[("host", "me@web")]), Err(InvalidHead::Host));
        assert_eq!(host("/a", &[("host", "we b")]), Err(InvalidHead::Host));
    }

    #[test]
    fn the_path_has_one_spelling_and_the_query_stays() {
        let target = |uri| {
            let (head, received) = received(uri, &[("host", "web")]).expect("a request");
            (
                head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                received.path_is_ambiguous,
            )
        };
        assert_eq!(target("/a/../b?x=/../y"), ("/b?x=/../y".to_owned(), false));
        assert_eq!(target("/a%2fb"), ("/a%2Fb".to_owned(), true));
        assert_eq!(target("/a?%00"), ("/a?%00".to_owned(), false));
        assert_eq!(received("/a%00", &[("host", "web")]).err(), Some(InvalidHead::Path(InvalidTarget::Nul)));
    }

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let (head, received) = received(
            "/",
            &[
                ("host", "web"),
                ("connection", "close, X-Mine"),
                ("connection", "keep-alive"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "keep-alive"),
                ("te", "gzip, trailers"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("x-forwarded-client-cert", "By=me"),
                ("X_Forwarded-Client_Cert", "By=me"),
                ("x-other", "2"),
            ],
        )
        .expect("a request");
        let names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        for gone in [
            "host",
            "connection",
            "x-mine",
            "keep-alive",
            "proxy-connection",
            "upgrade",
            "expect",
            "x-forwarded-client-cert",
            "x_forwarded-client_cert",
        ] {
            assert!(!names.contains(&gone), "{gone}");
        }
        assert_eq!((header_of(&head, "te"), header_of(&head, "x-other")), (Some("trailers"), Some("2")));
        assert_eq!(received.wish, None, "an upgrade that Connection does not name is none");
    }

    #[test]
    fn a_wish_to_upgrade_is_remembered() {
        let wish = [("host", "web"), ("connection", "Upgrade"), ("upgrade", "websocket")];
        let (mut head, received) = received("/", &wish).expect("a request");
        assert_eq!(received.wish, Some(Wish::Upgrade(HeaderValue::from_static("websocket"))));
        write_http1(&mut head);
        assert!(!head.headers.contains_key("upgrade"), "who sends it asks for it");
        assert_eq!((header_of(&head, "host"), head.uri.to_string()), (Some("web"), "/".to_owned()));
    }

    #[test]
    fn the_application_is_told_who_asks() {
        let told = [("host", "web"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")];
        let (head, _) = received("/", &told).expect("a request");
        assert_eq!(header_of(&head, "x-forwarded-for"), Some("1.1.1.1, 2.2.2.2, 10.0.0.9"));
        assert_eq!(header_of(&head, "forwarded"), Some("for=10.0.0.9"));
        assert_eq!(header_of(&head, "x-forwarded-proto"), Some("http"));
        assert_eq!(header_of(&head, "x-request-id"), Some("00000000-0000-4000-8000-000000000000"));
        let (head, _) = received("/", &[("host", "web"), ("x-request-id", "mine")]).expect("a request");
        assert_eq!(header_of(&head, "x-request-id"), Some("mine"));
        let long = "a".repeat(LONGEST_ID + 1);
        let (head, _) = received("/", &[("host", "web"), ("x-request-id", &long)]).expect("a request");
        assert_ne!(header_of(&head, "x-request-id"), Some(long.as_str()));
    }

    #[test]
    fn an_identity_that_would_be_read_as_two_fields_is_not_told() {
        let own = Identity::new("cluster.local", "shop", "gate");
        let told = |account: &str| client_certificate(&Identity::new("cluster.local", "shop", account), &own);
        let expected = "By=spiffe://cluster.local/ns/shop/sa/gate;URI=spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(told("web").unwrap(), expected);
        for account in ["web;Subject=\"admin\"", "web,By=you", "a=b", "\n"] {
            assert_eq!(told(account), None, "{account}");
        }
    }

    #[test]
    fn a_tunnel_is_not_asked_of_an_application() {
        let mut head = head("/", &[("host", "web")]);
        head.method = Method::CONNECT;
        assert_eq!(receive(&mut head, CLIENT, None, || 0), Err(InvalidHead::Connect));
    }

    #[test]
    fn a_stream_of_websocket_is_read_as_a_get_of_one_host_and_path() {
        let mut head = head("https://web/a/../chat", &[]);
        head.method = Method::CONNECT;
        head.version = Version::HTTP_2;
        head.extensions.insert(Protocol::from_static("websocket"));
        let received = receive(&mut head, CLIENT, None, || 0).expect("a request");
        assert_eq!(received.wish, Some(Wish::Stream));
        assert_eq!((head.method, head.uri.to_string()), (Method::GET, "http://web/chat".to_owned()));
        assert!(head.extensions.get::<Protocol>().is_none(), "a copy of it is a request like any other");
    }
}
