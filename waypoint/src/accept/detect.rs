//! What a stream carries, where nobody has said it: known by its first bytes.

use bytes::{Bytes, BytesMut};

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// HTTP/1.
    Http1,
    /// HTTP/2, begun with its preface.
    Http2,
    /// TLS, which the application ends.
    Tls,
    /// Something else.
    Bytes,
}

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first bytes of a TLS record with a handshake (RFC 8446, 5.1): the type, and the major version.
const HANDSHAKE: &[u8] = &[22, 3];
/// The longest method that is taken for one; the longest that is registered has 16.
const LONGEST_METHOD: usize = 24;

/// What a stream carries that begins with `bytes`. `None`: more must be seen; that is never so after
/// [`ENOUGH`] bytes.
pub fn carried(bytes: &[u8]) -> Option<Carried> {
    if bytes.is_empty() {
        return None;
    }
    if begins(bytes, PREFACE) {
        return (bytes.len() >= PREFACE.len()).then_some(Carried::Http2);
    }
    if begins(bytes, HANDSHAKE) {
        return (bytes.len() >= HANDSHAKE.len()).then_some(Carried::Tls);
    }
    match bytes.iter().position(|byte| !byte.is_ascii_uppercase() && *byte != b'-') {
        // A method, and the beginning of a target.
        Some(at) if (1..=LONGEST_METHOD).contains(&at) && bytes.get(at) == Some(&b' ') => {
            match bytes.get(at + 1) {
                Some(b'/' | b'*' | b'h' | b'H') => Some(Carried::Http1),
                // CONNECT names a host.
                Some(_) if bytes.starts_with(b"CONNECT ") => Some(Carried::Http1),
                Some(_) => Some(Carried::Bytes),
                None => None,
            }
        }
        Some(_) => Some(Carried::Bytes),
        None if bytes.len() > LONGEST_METHOD => Some(Carried::Bytes),
        None => None,
    }
}

/// How many bytes suffice to know.
pub const ENOUGH: usize = 32;

/// Whether one of the two begins with the other.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    let shared = bytes.len().min(with.len());
    bytes.get(..shared) == with.get(..shared)
}

/// The first bytes of a stream, put together as they come.
#[derive(Debug, Default)]
pub struct Beginning(BytesMut);

impl Beginning {
    /// What is known with `piece`.
    pub fn add(&mut self, piece: &[u8]) -> Option<Carried> {
        self.0.extend_from_slice(piece);
        carried(&self.0)
    }

    /// What is known when nothing more comes for now.
    pub fn as_it_is(&self) -> Carried {
        carried(&self.0).unwrap_or(Carried::Bytes)
    }

    /// All bytes that came.
    pub fn take(self) -> Bytes {
        self.0.freeze()
    }
}

/// The name that the greeting of TLS asks for (RFC 6066, 3), if all of it is in `bytes`, in lower case.
///
/// `None`: more must be seen, or never will be: a greeting beyond `bytes` may have 2^24 of them. `Some(None)`: it asks
/// for no name, or is no greeting.
pub fn server_name(bytes: &[u8]) -> Option<Option<String>> {
    let mut hello = Vec::new();
    let mut rest = bytes;
    // The greeting may be cut into several records.
    let body = loop {
        let [22, 3, _, high, low, after @ ..] = rest else {
            let more = rest.len() < 5 && (begins(rest, HANDSHAKE) || rest.is_empty());
            return if more { None } else { Some(None) };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (fragment, next) = after.split_at_checked(length)?;
        hello.extend_from_slice(fragment);
        if let Some(length) = hello.get(1..4) {
            let whole = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if let Some(body) = hello.get(4..4 + whole) {
                break body;
            }
        }
        rest = next;
    };
    if hello.first() != Some(&1) {
        return Some(None);
    }
    Some(name_of(body))
}

/// The name in the body of a ClientHello.
fn name_of(body: &[u8]) -> Option<String> {
    let after_random = body.get(34..)?;
    let (_, rest) = prefixed(after_random, 1)?; // session
    let (_, rest) = prefixed(rest, 2)?; // cipher suites
    let (_, rest) = prefixed(rest, 1)?; // compression
    let (mut extensions, _) = prefixed(rest, 2)?;
    while let [high, low, after @ ..] = extensions {
        let (content, next) = prefixed(after, 2)?;
        if u16::from_be_bytes([*high, *low]) == 0 {
            let (list, _) = prefixed(content, 2)?;
            let name = list.strip_prefix(&[0])?;
            let (name, _) = prefixed(name, 2)?;
            return std::str::from_utf8(name)
                .ok()
                .filter(|name| !name.is_empty())
                .map(str::to_ascii_lowercase);
        }
        extensions = next;
    }
    None
}

/// What is counted by the first `width` bytes, and what follows.
fn prefixed(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (count, rest) = bytes.split_at_checked(width)?;
    let count = count.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn protocols_are_known_by_their_first_bytes() {
        let table: [(&[u8], Option<Carried>); 17] = [
            (b"", None),
            (b"G", None),
            (b"GET", None),
            (b"GET ", None),
            (b"GET /", Some(Carried::Http1)),
            (b"OPTIONS * HTTP/1.1", Some(Carried::Http1)),
            (b"GET http://web/", Some(Carried::Http1)),
            (b"M-SEARCH *", Some(Carried::Http1)),
            (b"CONNECT web:80", Some(Carried::Http1)),
            (b"PRI * HT", None),
            (PREFACE, Some(Carried::Http2)),
            (b"PRI /", Some(Carried::Http1)),
            (b"\x16", None),
            (b"\x16\x03\x01", Some(Carried::Tls)),
            (b"SELECT 1", Some(Carried::Bytes)),
            (b"EHLO example", Some(Carried::Bytes)),
            (b"\x00\x00\x00\x10", Some(Carried::Bytes)),
        ];
        for (bytes, expected) in table {
            assert_eq!(carried(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    /// A greeting as a client writes it.
    fn hello(name: Option<&str>) -> Vec<u8> {
        let counted = |width: usize, content: Vec<u8>| {
            let length = content.len().to_be_bytes();
            [&length[8 - width..], &content].concat()
        };
        let extension =
            |kind: u16, content: Vec<u8>| [kind.to_be_bytes().to_vec(), counted(2, content)].concat();
        let named = |name: &str| {
            let entry = [vec![0], counted(2, name.as_bytes().to_vec())].concat();
            extension(0, counted(2, entry))
        };
        let extensions = [extension(0x2a2a, vec![1, 2, 3]), name.map(named).unwrap_or_default()].concat();
        let body = [
            vec![3, 3],
            vec![7; 32],
            counted(1, vec![9; 32]),
            counted(2, vec![0x13, 1]),
            counted(1, vec![0]),
            counted(2, extensions),
        ]
        .concat();
        [vec![1], counted(3, body)].concat()
    }

    fn records(hello: &[u8], size: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            let length = u16::try_from(piece.len()).expect("a short piece").to_be_bytes();
            [&[22, 3, 1], &length[..], piece].concat()
        };
        hello.chunks(size).map(record).collect::<Vec<_>>().concat()
    }

    #[test]
    fn the_name_in_a_greeting_is_found_however_it_is_cut() {
        let greeting = hello(Some("Web.Example"));
        for size in [greeting.len(), 1, 7, 40] {
            let bytes = records(&greeting, size);
            assert_eq!(server_name(&bytes), Some(Some("web.example".to_owned())), "records of {size}");
            for cut in 0..bytes.len() {
                assert_eq!(
                    server_name(&bytes[..cut]),
                    None,
                    "{cut} of {} bytes in records of {size}",
                    bytes.len()
                );
            }
        }
        assert_eq!(server_name(&records(&hello(None), 1000)), Some(None));
        assert_eq!(server_name(b"GET / HTTP/1.1"), Some(None));
    }

    proptest! {
        #[test]
        fn enough_bytes_are_enough(bytes in prop::collection::vec(any::<u8>(), ENOUGH..64)) {
            prop_assert!(carried(&bytes).is_some());
            let _ = server_name(&bytes);
        }

        #[test]
        fn any_greeting_is_read_without_harm(cut in 0_usize..200, at in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = records(&hello(Some("web")), 50);
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut.min(bytes.len()));
            let _ = server_name(&bytes);
        }
    }
}
