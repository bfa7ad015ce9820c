//! The reading side. What is not exactly a header that says who calls whom is refused; nothing is guessed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ambit_model::{
    address::canonical,
    identity::{Identity, InvalidIdentity},
};
use bytes::Buf;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};

use super::{PROXY, SIGNATURE, TCP4, TCP6, TLV_IDENTITY};

/// The fixed part: signature, version and command, family, length.
const HEAD: usize = 16;
/// The most that may follow it. Addresses take 36 bytes, and an identity of the longest Kubernetes names some 600; the
/// rest is for what others may add.
const MOST: u16 = 4096;
/// What version 1 begins with.
const VERSION_1: &[u8] = b"PROXY ";

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Who calls.
    pub client: SocketAddr,
    /// Whom it called.
    pub destination: SocketAddr,
    /// The identity that it proved to whoever wrote the header; none if it proved none.
    pub identity: Option<Identity>,
}

/// Why bytes are no header that is believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// They begin otherwise.
    #[error("it does not begin with the signature of PROXY protocol version 2")]
    Signature,
    /// They are a header of version 1, which has no place for an identity.
    #[error("it is a header of PROXY protocol version 1")]
    Version1,
    /// Neither a version nor a command that says who calls; LOCAL is such a one.
    #[error("version and command {0:#04x} are not version 2, PROXY")]
    Command(u8),
    /// Not TCP over IPv4 or IPv6; UNSPEC is such a one.
    #[error("family {0:#04x} is not TCP over IPv4 or IPv6")]
    Family(u8),
    /// Longer than any that is written.
    #[error("{0} bytes follow its head, and {MOST} are the most")]
    TooLong(u16),
    /// It ends before its addresses do, or a field is longer than what is left.
    #[error("a field goes beyond its end")]
    Short,
    /// It names two identities.
    #[error("it names more than one identity")]
    Ambiguous,
    /// What it names is no identity.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
}

/// Why a header was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is none.
    #[error("bad PROXY header: {0}")]
    Invalid(#[from] InvalidHeader),
    /// The connection ended in it, or failed.
    #[error("no PROXY header: {0}")]
    Io(#[from] io::Error),
    /// It did not come in time.
    #[error("no PROXY header within {0:?}")]
    TooSlow(Duration),
}

/// Reads a header within `limit`, and not a byte of what follows it.
pub async fn read(from: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Introduction, ReadError> {
    let reading = async {
        let mut bytes = [0; HEAD];
        from.read_exact(&mut bytes).await?;
        let head = head(&bytes)?;
        let mut rest = vec![0; head.length.into()];
        from.read_exact(&mut rest).await?;
        Ok(introduction(head.family, &rest)?)
    };
    timeout(limit, reading).await.unwrap_or(Err(ReadError::TooSlow(limit)))
}

#[derive(Clone, Copy, Debug)]
struct Head {
    family: Family,
    /// How many bytes follow; at most [`MOST`].
    length: u16,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    V6,
}

fn head(bytes: &[u8; HEAD]) -> Result<Head, InvalidHeader> {
    if bytes.starts_with(VERSION_1) {
        return Err(InvalidHeader::Version1);
    }
    let (signature, mut rest) = bytes.split_at(SIGNATURE.len());
    if signature != SIGNATURE {
        return Err(InvalidHeader::Signature);
    }
    let command = byte(&mut rest)?;
    if command != PROXY {
        return Err(InvalidHeader::Command(command));
    }
    let family = match byte(&mut rest)? {
        TCP4 => Family::V4,
        TCP6 => Family::V6,
        other => return Err(InvalidHeader::Family(other)),
    };
    let length = number(&mut rest)?;
    if length > MOST {
        return Err(InvalidHeader::TooLong(length));
    }
    Ok(Head { family, length })
}

fn introduction(family: Family, mut rest: &[u8]) -> Result<Introduction, InvalidHeader> {
    let rest = &mut rest;
    let [client, destination] = match family {
        Family::V4 => [Ipv4Addr::from_bits(v4(rest)?).into(), Ipv4Addr::from_bits(v4(rest)?).into()],
        Family::V6 => [Ipv6Addr::from_bits(v6(rest)?).into(), Ipv6Addr::from_bits(v6(rest)?).into()],
    };
    let [client, destination] =
        [SocketAddr::new(client, number(rest)?), SocketAddr::new(destination, number(rest)?)];
    let mut identity = None;
    while !rest.is_empty() {
        let kind = byte(rest)?;
        let length = number(rest)?.into();
        let (value, after) = rest.split_at_checked(length).ok_or(InvalidHeader::Short)?;
        *rest = after;
        if kind == TLV_IDENTITY {
            if identity.is_some() {
                return Err(InvalidHeader::Ambiguous);
            }
            let text = str::from_utf8(value)
                .map_err(|_| InvalidIdentity(String::from_utf8_lossy(value).into_owned()))?;
            identity = Some(text.parse()?);
        }
    }
    // Two families in one header were both written as IPv6.
    Ok(Introduction { client: canonical(client), destination: canonical(destination), identity })
}

fn byte(from: &mut &[u8]) -> Result<u8, InvalidHeader> {
    from.try_get_u8().map_err(|_| InvalidHeader::Short)
}

fn number(from: &mut &[u8]) -> Result<u16, InvalidHeader> {
    from.try_get_u16().map_err(|_| InvalidHeader::Short)
}

fn v4(from: &mut &[u8]) -> Result<u32, InvalidHeader> {
    from.try_get_u32().map_err(|_| InvalidHeader::Short)
}

fn v6(from: &mut &[u8]) -> Result<u128, InvalidHeader> {
    from.try_get_u128().map_err(|_| InvalidHeader::Short)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::{super::header, *};

    /// Reads what is there, all at once, and says what is left.
    fn parse(mut bytes: &[u8]) -> Result<(Introduction, usize), InvalidHeader> {
        let first: &[u8; HEAD] = bytes.first_chunk().ok_or(InvalidHeader::Short)?;
        let head = head(first)?;
        bytes.advance(HEAD);
        let rest = bytes.split_at_checked(head.length.into()).ok_or(InvalidHeader::Short)?;
        Ok((introduction(head.family, rest.0)?, rest.1.len()))
    }

    fn identity() -> Identity {
        Identity::new("cluster.local", "shop", "client")
    }

    /// A header of IPv4 with these fields after its addresses.
    fn with(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = header("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), None).to_vec();
        for (kind, value) in fields {
            bytes.push(*kind);
            bytes.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            bytes.extend(*value);
        }
        with_length(bytes)
    }

    fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
        let length = u16::try_from(bytes.len() - HEAD).unwrap().to_be_bytes();
        bytes[14..16].copy_from_slice(&length);
        bytes
    }

    fn changed(at: usize, byte: u8) -> Vec<u8> {
        let mut bytes = with(&[]);
        bytes[at] = byte;
        bytes
    }

    #[test]
    fn what_is_no_header_is_refused_and_said_why() {
        let uri = identity().to_string();
        let uri = uri.as_bytes();
        let mut lying = with(&[(0xD0, uri)]);
        lying[HEAD + 12 + 2] += 1;
        let mut cut = with(&[(0xD0, uri)]);
        cut.truncate(HEAD + 12 + 2);
        let mut long = with(&[]);
        long[14..16].copy_from_slice(&(MOST + 1).to_be_bytes());
        let mut v6_in_v4 = with(&[]);
        v6_in_v4[13] = TCP6;
        let refused = |bytes: &[u8]| parse(bytes).unwrap_err();
        let table: [(&[u8], InvalidHeader); 14] = [
            (b"", InvalidHeader::Short),
            (b"GET / HTTP/1.1\r\nhost: web\r\n\r\n", InvalidHeader::Signature),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", InvalidHeader::Version1),
            (&changed(11, b'\r'), InvalidHeader::Signature),
            (&changed(12, 0x20), InvalidHeader::Command(0x20)),
            (&changed(12, 0x11), InvalidHeader::Command(0x11)),
            (&changed(13, 0x00), InvalidHeader::Family(0x00)),
            (&changed(13, 0x12), InvalidHeader::Family(0x12)),
            (&changed(15, 11), InvalidHeader::Short),
            (&v6_in_v4, InvalidHeader::Short),
            (&long, InvalidHeader::TooLong(MOST + 1)),
            (&lying, InvalidHeader::Short),
            (&with_length(cut), InvalidHeader::Short),
            (&with(&[(0xD0, uri), (0xD1, b"web"), (0xD0, uri)]), InvalidHeader::Ambiguous),
        ];
        for (bytes, expected) in table {
            assert_eq!(refused(bytes), expected, "{bytes:02x?}");
        }
        for no_identity in [&b""[..], b"\xff", b"client", b"spiffe://td/ns/a/sa/b/c", b"spiffe:///ns/a/sa/b"]
        {
            let error = refused(&with(&[(0xD0, no_identity)]));
            assert!(matches!(error, InvalidHeader::Identity(_)), "{error}");
        }
    }

    #[test]
    fn fields_of_others_are_passed_over() {
        let uri = identity().to_string();
        let bytes = with(&[(0x04, &[0; 40]), (0xD1, b"web.shop"), (0xD0, uri.as_bytes()), (0xEE, b"")]);
        assert_eq!(parse(&bytes).unwrap().0.identity, Some(identity()));
        assert_eq!(parse(&with(&[(0xD1, uri.as_bytes())])).unwrap().0.identity, None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_in_pieces_or_not_in_time_and_what_follows_is_left() {
        let limit = Duration::from_secs(5);
        let uri = identity().to_string();
        let bytes = [with(&[(0xD0, uri.as_bytes())]), b"payload".to_vec()].concat();
        // One byte a piece.
        let (mut far, mut near) = tokio::io::duplex(1);
        let write = async {
            far.write_all(&bytes).await.unwrap();
            drop(far);
        };
        let read_all = async {
            let said = read(&mut near, limit).await.unwrap();
            let mut left = Vec::new();
            near.read_to_end(&mut left).await.unwrap();
            (said.identity, left)
        };
        let ((), (identity_said, left)) = tokio::join!(write, read_all);
        assert_eq!((identity_said, &left[..]), (Some(identity()), &b"payload"[..]));
        let ended = read(&mut &bytes[..20], limit).await.unwrap_err();
        assert!(matches!(ended, ReadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
        let (mut near, _far) = tokio::io::duplex(64);
        assert!(matches!(read(&mut near, limit).await, Err(ReadError::TooSlow(_))));
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        any::<(std::net::IpAddr, u16)>().prop_map(|(ip, port)| canonical(SocketAddr::new(ip, port)))
    }

    fn written() -> impl Strategy<Value = (Introduction, Vec<u8>)> {
        let name = "[a-z0-9-]{1,63}";
        let identity = ("[a-z.]{1,60}", name, name).prop_map(|(td, ns, sa)| Identity::new(td, ns, sa));
        (address(), address(), prop::option::of(identity)).prop_map(|(client, destination, identity)| {
            let bytes = header(client, destination, identity.as_ref()).to_vec();
            (Introduction { client, destination, identity }, bytes)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_no_part_of_it((said, bytes) in written(), after in any::<Vec<u8>>()) {
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Err(InvalidHeader::Short));
            }
            let length = after.len();
            prop_assert_eq!(parse(&[bytes, after].concat()), Ok((said, length)));
        }

        #[test]
        fn any_change_is_read_without_harm(
            (_, mut bytes) in written(), changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8),
        ) {
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let _ = parse(&bytes);
        }

        #[test]
        fn any_fields_are_read_without_harm(fields in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = with(&[]);
            bytes.extend(fields);
            let _ = parse(&with_length(bytes));
        }

        #[test]
        fn any_bytes_are_no_header(bytes in any::<Vec<u8>>()) {
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
