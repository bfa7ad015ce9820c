//! PROXY protocol version 2: one header, written once, before the payload (protocols 4.8).
//!
//! A header is a claim and proves nothing: who reads one must know that nobody can have sent it but whom it believes.

mod read;

use std::net::SocketAddr;

use ambit_model::identity::Identity;
use bytes::{BufMut as _, Bytes, BytesMut};

pub use read::{Introduction, InvalidHeader, ReadError, read};

/// Twelve bytes that no other protocol begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// STREAM over IPv4, and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// The caller's SPIFFE identity as a URI.
const TLV_IDENTITY: u8 = 0xD0;

/// The header that says: `client`, who is `identity`, called `destination`.
///
/// Two addresses of different families are both written as IPv6.
pub fn header(client: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Bytes {
    let mut body = BytesMut::with_capacity(36 + 3 + 128);
    let family = match (client, destination) {
        (SocketAddr::V4(client), SocketAddr::V4(destination)) => {
            body.put_slice(&client.ip().octets());
            body.put_slice(&destination.ip().octets());
            TCP4
        }
        (client, destination) => {
            body.put_slice(&v6(client));
            body.put_slice(&v6(destination));
            TCP6
        }
    };
    body.put_u16(client.port());
    body.put_u16(destination.port());
    if let Some(uri) = identity.map(Identity::to_string)
        // Longer than any Kubernetes name allows; the header's length must fit, too.
        && let Ok(length) = u16::try_from(uri.len())
        && length < u16::MAX / 2
    {
        body.put_u8(TLV_IDENTITY);
        body.put_u16(length);
        body.put_slice(uri.as_bytes());
    }
    let mut header = BytesMut::with_capacity(16 + body.len());
    header.put_slice(SIGNATURE);
    header.put_u8(PROXY);
    header.put_u8(family);
    // At most 36 bytes of addresses, 3 of a TLV's head and half of the range.
    header.put_u16(u16::try_from(body.len()).unwrap_or(u16::MAX));
    header.put(body);
    header.freeze()
}

fn v6(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(address) => address.ip().octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_without_identity() {
        let header = header("10.1.2.3:4660".parse().unwrap(), "10.0.0.9:80".parse().unwrap(), None);
        let expected = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, // signature
            0x21, 0x11, 0x00, 0x0c, // v2 PROXY, TCP4, 12 bytes
            10, 1, 2, 3, 10, 0, 0, 9, 0x12, 0x34, 0x00, 0x50,
        ];
        assert_eq!(&header[..], &expected[..]);
    }

    #[test]
    fn ipv6_with_identity() {
        let identity = Identity::new("td", "a", "b");
        let header = header("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap(), Some(&identity));
        let uri = b"spiffe://td/ns/a/sa/b";
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00".to_vec();
        expected.push(36 + 3 + 21);
        expected.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        expected.extend([0, 1, 0, 2, 0xd0, 0, 21]);
        expected.extend(uri);
        assert_eq!(&header[..], &expected[..]);
    }

    #[test]
    fn mixed_families_are_written_as_ipv6() {
        let header = header("10.0.0.1:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap(), None);
        assert_eq!(header[13..16], [0x21, 0, 36]);
        assert_eq!(header[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    }

    #[test]
    fn an_absurd_identity_does_not_corrupt_the_length() {
        let identity = Identity::new("t".repeat(70_000).as_str(), "a", "b");
        let header = header("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), Some(&identity));
        assert_eq!(header.len(), 28);
    }
}
