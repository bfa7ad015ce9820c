//! Unary calls of gRPC: one message comes, one goes.

use std::convert::Infallible;
use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::Response;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use prost::Message;

/// The type of bodies.
pub(crate) const TYPE: &str = "application/grpc";
/// A flag (compressed or not) and a length.
const HEAD: usize = 5;
/// A batch of spans is the longest message that any server here takes.
const LONGEST: usize = 1 << 20;

/// The body of an answer, of gRPC or not.
pub(crate) type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// Whether these are the headers of a call.
pub(crate) fn is_call(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(TYPE.as_bytes()))
}

/// A message as a body.
pub(crate) fn encode(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    let mut body = BytesMut::with_capacity(HEAD + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.extend_from_slice(&message);
    body.freeze()
}

/// The message of a body.
pub(crate) fn decode<M: Message + Default>(body: &[u8]) -> io::Result<M> {
    match body.split_at_checked(HEAD) {
        Some(([0, _, _, _, _], message)) => M::decode(message).map_err(io::Error::other),
        _ => Err(io::Error::other("a body of gRPC that is cut off or compressed")),
    }
}

/// The message that comes with a call; `None` if it cannot be read.
pub(crate) async fn message<M: Message + Default>(body: Incoming) -> Option<M> {
    let body = Limited::new(body, LONGEST).collect().await.ok()?;
    decode(&body.to_bytes()).ok()
}

/// The answer to a call; UNIMPLEMENTED if there is none.
pub(crate) fn answer(message: Option<&impl Message>) -> Response<Body> {
    const OK: HeaderValue = HeaderValue::from_static("0");
    const UNIMPLEMENTED: HeaderValue = HeaderValue::from_static("12");
    let status = if message.is_some() { OK } else { UNIMPLEMENTED };
    let end = HeaderMap::from_iter([(hyper::header::HeaderName::from_static("grpc-status"), status)]);
    let message = message.map(|message| Frame::data(encode(message)));
    response(TYPE, message.into_iter().chain([Frame::trailers(end)]).collect())
}

/// An answer of that type, which may be no call's.
pub(crate) fn response(kind: &'static str, frames: Vec<Frame<Bytes>>) -> Response<Body> {
    let frames: Vec<_> = frames.into_iter().map(Ok).collect();
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_through() {
        assert_eq!(encode(&"hi".to_owned()).as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'h', b'i']);
        assert_eq!(decode::<String>(&encode(&"hi".to_owned())).unwrap(), "hi");
        assert!(decode::<String>(&[1, 0, 0, 0, 0]).is_err());
        assert!(decode::<String>(&[0, 0]).is_err());
    }
}
