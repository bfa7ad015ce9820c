//! The one call of the tests: `proto.EchoTestService/Echo` takes a message and answers with one.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

/// The path of the call.
pub(crate) const PATH: &str = "/proto.EchoTestService/Echo";
/// The type of its bodies.
pub(crate) const TYPE: &str = "application/grpc";
/// A flag (compressed or not) and a length.
const HEAD: usize = 5;

/// `EchoRequest` and `EchoResponse` are alike.
#[derive(Clone, PartialEq, prost::Message)]
struct Echo {
    #[prost(string, tag = "1")]
    message: String,
}

/// A message as a body.
pub(crate) fn encode(message: &str) -> Bytes {
    let message = Echo { message: message.to_owned() }.encode_to_vec();
    let mut body = BytesMut::with_capacity(HEAD + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.extend_from_slice(&message);
    body.freeze()
}

/// The message of a body.
pub(crate) fn decode(body: &[u8]) -> io::Result<String> {
    let message = match body.split_at_checked(HEAD) {
        Some(([0, _, _, _, _], message)) => message,
        _ => return Err(io::Error::other("a body of gRPC that is cut off or compressed")),
    };
    let decoded = Echo::decode(message).map_err(io::Error::other)?;
    Ok(decoded.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_through() {
        assert_eq!(encode("hi").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'h', b'i']);
        assert_eq!(decode(&encode("hi")).unwrap(), "hi");
        assert!(decode(&[1, 0, 0, 0, 0]).is_err());
        assert!(decode(&[0, 0]).is_err());
    }
}
