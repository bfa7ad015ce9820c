//! Connections that are to become those of another protocol, where client and application speak different versions of
//! HTTP. Between two that speak HTTP/1.1 any protocol passes as it is (RFC 9110, 7.8). Of others WebSocket alone does: in
//! HTTP/1.1 its handshake is a GET with a key that is answered (RFC 6455, 4), in HTTP/2 a CONNECT that names it in
//! `:protocol`, and a stream instead of a connection (RFC 8441). Pure; keys are drawn by whoever asks.
//!
//! | client | application | it is asked | its yes | the client is told |
//! |---|---|---|---|---|
//! | HTTP/1.1 | HTTP/1.1 | as the client asks | 101 | the same |
//! | HTTP/1.1 | HTTP/2 | CONNECT | 200 | 101, and the answer to its key |
//! | HTTP/2 | HTTP/1.1 | GET, with a key of ours | 101, and the answer to that | 200 |
//! | HTTP/2 | HTTP/2 | CONNECT | 200 | the same |
//!
//! Policies, routes and limits see the GET in all four.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use boring::sha::sha1;
use http::{HeaderValue, Method, StatusCode, header, request, response};
use hyper::ext::Protocol;

use crate::{hygiene::InvalidHead, refusal::Refusal, upstream::pool::Version};

/// Its name in `Upgrade` and in `:protocol`.
const WEBSOCKET: &str = "websocket";
/// What a key is answered with begins with the key and ends so (RFC 6455, 1.3).
const ANSWERED_WITH: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The bytes that a key says in base64.
const KEY: usize = 16;

/// What a client wants of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// In HTTP/1.1, that it becomes one of this protocol.
    Upgrade(HeaderValue),
    /// In HTTP/2, that this stream carries WebSocket.
    Stream,
}

/// How an application is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// As the client asks.
    Upgrade(HeaderValue),
    /// With a key of ours, which this is.
    Handshake(HeaderValue),
    /// For a stream. The client has shown a key, which is answered with this.
    Answered(HeaderValue),
    /// For a stream, as the client asks.
    Stream,
}

/// What the client is told when the application agrees.
#[derive(Debug, PartialEq, Eq)]
pub enum Agreed {
    /// Its connection becomes one of this protocol; and the answer to its key, if we give it.
    Connection(HeaderValue, Option<HeaderValue>),
    /// Its stream carries WebSocket.
    Stream,
}

/// Reads what the head of a CONNECT wants, which is a GET afterwards.
pub fn receive(head: &mut request::Parts) -> Result<Wish, InvalidHead> {
    let protocol = head.extensions.remove::<Protocol>().ok_or(InvalidHead::Connect)?;
    if !protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) {
        return Err(InvalidHead::Protocol);
    }
    head.method = Method::GET;
    // It has none (RFC 8441, 5); whoever sends one shall not choose ours.
    head.headers.remove(header::SEC_WEBSOCKET_KEY);
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Wish::Stream)
}

impl Switch {
    /// How an application that speaks `version` is asked for what a client wants in `head`, which a body follows or not.
    pub fn new(
        wish: Wish,
        version: Version,
        head: &request::Parts,
        has_body: bool,
        random: impl FnOnce() -> [u8; KEY],
    ) -> Result<Self, InvalidHead> {
        match (wish, version) {
            (Wish::Upgrade(protocol), Version::Http1) => Ok(Self::Upgrade(protocol)),
            (Wish::Upgrade(protocol), Version::Http2) => {
                if !protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()) {
                    return Err(InvalidHead::Upgrade);
                }
                // A CONNECT stands for a GET without a body, and would hide every other method from the application.
                if head.method != Method::GET || has_body {
                    return Err(InvalidHead::Handshake);
                }
                let key = shown(head).ok_or(InvalidHead::Handshake)?;
                Ok(Self::Answered(answer(key)))
            }
            (Wish::Stream, Version::Http1) => {
                let key = BASE64_STANDARD.encode(random());
                Ok(Self::Handshake(value(&key)))
            }
            (Wish::Stream, Version::Http2) => Ok(Self::Stream),
        }
    }

    /// Puts into a head what asks for it, once it is that of a request without.
    pub fn ask(&self, head: &mut request::Parts) {
        match self {
            Self::Upgrade(protocol) => upgrade(&mut head.headers, protocol.clone()),
            Self::Handshake(key) => {
                upgrade(&mut head.headers, HeaderValue::from_static(WEBSOCKET));
                head.headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
            }
            Self::Answered(_) | Self::Stream => {
                head.method = Method::CONNECT;
                head.extensions.insert(Protocol::from_static(WEBSOCKET));
                head.headers.remove(header::SEC_WEBSOCKET_KEY);
                head.headers.remove(header::CONTENT_LENGTH);
            }
        }
    }
}

/// Whether an application agrees that was asked so, or was asked for nothing of the kind; `None`: it answers as if it had
/// been asked for nothing.
///
/// # Errors
///
/// It says yes to what it was not asked, or in another way than it was.
pub fn agreed(asked: Option<&Switch>, head: &response::Parts) -> Result<Option<Agreed>, Refusal> {
    let wrong = |how: String| Err(Refusal::NotSwitched(how));
    let status = head.status;
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    match asked {
        None if switches => wrong("it switches protocols unasked".to_owned()),
        None => Ok(None),
        Some(Switch::Upgrade(protocol)) => {
            let to = head.headers.get(header::UPGRADE).unwrap_or(protocol);
            Ok(switches.then(|| Agreed::Connection(to.clone(), None)))
        }
        Some(Switch::Handshake(key)) if switches => {
            if head.headers.get(header::SEC_WEBSOCKET_ACCEPT) != Some(&answer(key)) {
                return wrong("its Sec-WebSocket-Accept does not answer the key".to_owned());
            }
            Ok(Some(Agreed::Stream))
        }
        Some(Switch::Answered(_) | Switch::Stream) if switches => wrong("101 is not for HTTP/2".to_owned()),
        Some(Switch::Answered(answer)) if status == StatusCode::OK => {
            Ok(Some(Agreed::Connection(HeaderValue::from_static(WEBSOCKET), Some(answer.clone()))))
        }
        Some(Switch::Stream) if status == StatusCode::OK => Ok(Some(Agreed::Stream)),
        // Passed on, it would say that the stream is open, or that a page is what was asked for.
        Some(Switch::Handshake(_) | Switch::Answered(_) | Switch::Stream) if status.is_success() => {
            wrong(format!("it answers {status}, and opens no WebSocket"))
        }
        Some(Switch::Handshake(_) | Switch::Answered(_) | Switch::Stream) => Ok(None),
    }
}

impl Agreed {
    /// Puts into a response's head what tells the client.
    pub fn tell(self, head: &mut response::Parts) {
        head.headers.remove(header::CONTENT_LENGTH);
        match self {
            Self::Connection(protocol, accept) => {
                head.status = StatusCode::SWITCHING_PROTOCOLS;
                upgrade(&mut head.headers, protocol);
                if let Some(accept) = accept {
                    head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
            }
            Self::Stream => {
                head.status = StatusCode::OK;
                head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            }
        }
    }
}

/// The one key that a handshake shows.
fn shown(head: &request::Parts) -> Option<&HeaderValue> {
    let mut keys = head.headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else { return None };
    let bytes = BASE64_STANDARD.decode(key.as_bytes()).ok()?;
    (bytes.len() == KEY).then_some(key)
}

/// What a key is answered with.
fn answer(key: &HeaderValue) -> HeaderValue {
    value(&BASE64_STANDARD.encode(sha1(&[key.as_bytes(), ANSWERED_WITH].concat())))
}

/// Base64 is a value.
fn value(base64: &str) -> HeaderValue {
    HeaderValue::from_str(base64).unwrap_or(HeaderValue::from_static(""))
}

fn upgrade(headers: &mut http::HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request, Response};

    use super::*;

    /// That of RFC 6455, 1.3, and its answer there.
    const A_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ITS_ANSWER: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn head(method: Method, headers: &[(&str, &str)]) -> request::Parts {
        let request = Request::builder().method(method).uri("http://web/chat");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn told(status: u16, headers: &[(&str, &str)]) -> response::Parts {
        let response = Response::builder().status(status);
        let response =
            headers.iter().fold(response, |response, (name, value)| response.header(*name, *value));
        response.body(()).expect("a response").into_parts().0
    }

    fn wish(protocol: &'static str) -> Wish {
        Wish::Upgrade(HeaderValue::from_static(protocol))
    }

    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        assert_eq!(answer(&HeaderValue::from_static(A_KEY)), ITS_ANSWER);
    }

    #[test]
    fn a_stream_is_wanted_for_websocket_alone_and_is_a_get() {
        let connect = |protocol: Option<&'static str>| {
            let mut head = head(Method::CONNECT, &[("sec-websocket-key", A_KEY)]);
            head.extensions.extend(extensions(protocol));
            let wish = receive(&mut head);
            (wish, head.method, head.headers.len())
        };
        assert_eq!(connect(Some("websocket")), (Ok(Wish::Stream), Method::GET, 0));
        assert_eq!(connect(Some("connect-udp")).0, Err(InvalidHead::Protocol));
        assert_eq!(connect(None).0, Err(InvalidHead::Connect));
    }

    fn extensions(protocol: Option<&'static str>) -> http::Extensions {
        let mut extensions = http::Extensions::new();
        protocol.map(Protocol::from_static).into_iter().for_each(|protocol| {
            extensions.insert(protocol);
        });
        extensions
    }

    #[test]
    fn only_a_whole_handshake_becomes_a_stream() {
        let key = ("sec-websocket-key", A_KEY);
        let get = |headers: &[(&str, &str)]| head(Method::GET, headers);
        let table = [
            ("a handshake", get(&[key]), false, "websocket", None),
            ("whatever its case", get(&[key]), false, "WebSocket", None),
            ("another protocol", get(&[key]), false, "h2c", Some(InvalidHead::Upgrade)),
            ("another method", head(Method::POST, &[key]), false, "websocket", Some(InvalidHead::Handshake)),
            ("a body", get(&[key]), true, "websocket", Some(InvalidHead::Handshake)),
            ("no key", get(&[]), false, "websocket", Some(InvalidHead::Handshake)),
            ("two keys", get(&[key, key]), false, "websocket", Some(InvalidHead::Handshake)),
            (
                "half a key",
                get(&[("sec-websocket-key", "dGhl")]),
                false,
                "websocket",
                Some(InvalidHead::Handshake),
            ),
        ];
        for (what, head, has_body, protocol, refused) in table {
            let switch = Switch::new(wish(protocol), Version::Http2, &head, has_body, || [0; KEY]);
            let expected = refused.map_or(Ok(Switch::Answered(HeaderValue::from_static(ITS_ANSWER))), Err);
            assert_eq!(switch, expected, "{what}");
        }
        // What passes as it is, is not looked at.
        let post = head(Method::POST, &[]);
        let passed = Switch::new(wish("h2c"), Version::Http1, &post, true, || [0; KEY]);
        assert_eq!(passed, Ok(Switch::Upgrade(HeaderValue::from_static("h2c"))));
    }

    #[test]
    fn an_application_is_asked_in_its_own_version() {
        let asked = |wish, version| {
            let mut head = head(Method::GET, &[("sec-websocket-key", A_KEY)]);
            let switch = Switch::new(wish, version, &head, false, || [0; KEY]).expect("a handshake");
            switch.ask(&mut head);
            let key = head.headers.get("sec-websocket-key").cloned();
            let protocol = head.extensions.get::<Protocol>().map(|protocol| protocol.as_str().to_owned());
            (head.method, key, protocol, head.headers.contains_key("upgrade"))
        };
        let ours = HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA==");
        let theirs = HeaderValue::from_static(A_KEY);
        let connect = (Method::CONNECT, None, Some(WEBSOCKET.to_owned()), false);
        assert_eq!(asked(wish("websocket"), Version::Http1), (Method::GET, Some(theirs), None, true));
        assert_eq!(asked(wish("websocket"), Version::Http2), connect);
        assert_eq!(asked(Wish::Stream, Version::Http1), (Method::GET, Some(ours), None, true));
        assert_eq!(asked(Wish::Stream, Version::Http2), connect);
    }

    #[test]
    fn an_application_agrees_in_the_way_in_which_it_was_asked() {
        let upgrade = Switch::Upgrade(HeaderValue::from_static("echo"));
        let handshake = Switch::Handshake(HeaderValue::from_static(A_KEY));
        let answered = Switch::Answered(HeaderValue::from_static("theirs"));
        let accept = [("upgrade", "websocket"), ("sec-websocket-accept", ITS_ANSWER)];
        let connection = |to, accept: Option<&'static str>| {
            Some(Some(Agreed::Connection(HeaderValue::from_static(to), accept.map(HeaderValue::from_static))))
        };
        let (stream, no) = (Some(Some(Agreed::Stream)), Some(None));
        let table = [
            ("unasked", None, told(101, &[]), None),
            ("a response", None, told(200, &[]), no),
            ("as it is", Some(&upgrade), told(101, &[("upgrade", "Echo")]), connection("Echo", None)),
            ("or not", Some(&upgrade), told(200, &[]), Some(None)),
            ("our key is answered", Some(&handshake), told(101, &accept), stream),
            ("it is not", Some(&handshake), told(101, &[("sec-websocket-accept", "no")]), None),
            ("not at all", Some(&handshake), told(101, &[]), None),
            ("a page", Some(&handshake), told(200, &[]), None),
            ("a refusal", Some(&handshake), told(403, &[]), Some(None)),
            ("the client's key", Some(&answered), told(200, &[]), connection(WEBSOCKET, Some("theirs"))),
            ("no stream", Some(&answered), told(204, &[]), None),
            ("a redirect", Some(&answered), told(302, &[]), Some(None)),
            ("a stream", Some(&Switch::Stream), told(200, &[]), Some(Some(Agreed::Stream))),
            ("no 101 there", Some(&Switch::Stream), told(101, &[]), None),
        ];
        for (what, asked, head, expected) in table {
            assert_eq!(agreed(asked, &head).ok(), expected, "{what}");
        }
    }

    #[test]
    fn a_client_is_told_in_its_own_version() {
        let mut head = told(200, &[("content-length", "0"), ("sec-websocket-protocol", "chat")]);
        let accept = Some(HeaderValue::from_static(ITS_ANSWER));
        Agreed::Connection(HeaderValue::from_static(WEBSOCKET), accept).tell(&mut head);
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "sec-websocket-accept", "sec-websocket-protocol", "upgrade"]);
        assert_eq!(head.status, StatusCode::SWITCHING_PROTOCOLS);
        let mut head = told(101, &[("sec-websocket-accept", ITS_ANSWER), ("sec-websocket-protocol", "chat")]);
        Agreed::Stream.tell(&mut head);
        assert_eq!((head.status, head.headers.len()), (StatusCode::OK, 1));
    }
}
