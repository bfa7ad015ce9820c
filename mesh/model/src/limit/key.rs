//! By what requests are told apart.

use std::{fmt, net::IpAddr};

use http::{HeaderName, request::Parts};

use crate::identity::Identity;

/// How much of a value tells requests apart. What is longer counts with all that begin alike, which is stricter; a
/// client does not decide how much is kept of it.
const LONGEST: usize = 256;

/// Something that a request has a value of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// A header; the first of several.
    Header(HeaderName),
    /// The client's identity.
    Principal,
    /// The namespace of that.
    Namespace,
    /// The client's address.
    Address,
    /// The path, without the query.
    Path,
    /// The method.
    Method,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The identity that it proved.
    pub identity: Option<&'a Identity>,
    /// Its address.
    pub address: IpAddr,
}

impl Attribute {
    /// What a request has of it; `None`: nothing.
    fn value<'a>(&self, caller: &Caller<'a>, head: &'a Parts) -> Option<Value<'a>> {
        match self {
            Self::Header(name) => head.headers.get(name).map(|value| Value::Bytes(value.as_bytes())),
            Self::Principal => caller.identity.map(Value::Principal),
            Self::Namespace => {
                caller.identity.map(|identity| Value::Bytes(identity.namespace.as_str().as_bytes()))
            }
            Self::Address => Some(Value::Address(caller.address)),
            Self::Path => Some(Value::Bytes(head.uri.path().as_bytes())),
            Self::Method => Some(Value::Bytes(head.method.as_str().as_bytes())),
        }
    }

    /// What a request has of it, as a text that is not empty.
    pub fn text(&self, caller: &Caller<'_>, head: &Parts) -> Option<String> {
        let bytes = self.value(caller, head)?.bytes();
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

enum Value<'a> {
    Bytes(&'a [u8]),
    Principal(&'a Identity),
    Address(IpAddr),
}

impl Value<'_> {
    fn bytes(&self) -> Box<[u8]> {
        let all = match self {
            Self::Bytes(bytes) => return bytes.get(..LONGEST).unwrap_or(bytes).into(),
            Self::Principal(identity) => identity.to_string(),
            Self::Address(address) => address.to_string(),
        };
        all.as_bytes().get(..LONGEST).unwrap_or(all.as_bytes()).into()
    }
}

/// The values of one request. A value that it does not have is one of its own, shared by all without.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<[Option<Box<[u8]>>]>);

impl Key {
    pub(super) fn of(by: &[Attribute], caller: &Caller<'_>, head: &Parts) -> Self {
        let value = |attribute: &Attribute| Some(attribute.value(caller, head)?.bytes());
        Self(by.iter().map(value).collect())
    }
}

/// What a client says of itself may be a secret: how much it is, and not what.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key of {}", self.0.len())
    }
}
