//! What a policy's `when` asks of a request.

use std::{fmt, str::FromStr};

use http::{HeaderName, HeaderValue, header};
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::{InDoubt, Request, Seen, Text};
use crate::name::Label;

/// The value of one attribute: one of some, and none of others. An attribute with several values is as
/// asked when one of them is; for headers, see [`Attribute::Header`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which attribute.
    pub key: Attribute,
    /// Any of these.
    pub values: Vec<Text>,
    /// None of these.
    pub not_values: Vec<Text>,
}

/// Something of a request that has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A header, by its name without case; its value with case, and `*` is any value, even an empty one.
    ///
    /// Of a header that is repeated nobody knows which line an application reads: so all of its lines are
    /// as an Allow asks, and one as a Deny does. Lines of `Cookie` are one cookie (RFC 9113, 8.2.3).
    Header(HeaderName),
    /// A claim of the token, maybe in other claims: its text, or the texts of its list.
    Claim(Box<[Label]>),
    /// The server name that the client's TLS greets, without case.
    ServerName,
}

impl Condition {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.not_values.is_empty()
    }

    pub(super) fn matches(&self, seen: Option<&Seen<'_>>, in_doubt: InDoubt) -> bool {
        let request = seen.and_then(|seen| seen.request);
        if self.is_empty() {
            return true;
        }
        match (&self.key, seen, request) {
            (Attribute::ServerName, Some(seen), _) => {
                let same = |asked: &Text, name: &str| asked.matches_without_case(name);
                self.holds(seen.server_name.into_iter(), same)
            }
            (Attribute::Claim(path), _, Some(request)) => {
                let texts = request.claims.into_iter().flat_map(|claims| claims.texts(path));
                self.holds(texts, Text::matches)
            }
            (Attribute::Header(name), _, Some(request)) => self.header_holds(name, request, in_doubt),
            (Attribute::ServerName, None, _) | (Attribute::Claim(_) | Attribute::Header(_), _, None) => {
                in_doubt.answer()
            }
        }
    }

    fn header_holds(&self, name: &HeaderName, request: &Request<'_>, in_doubt: InDoubt) -> bool {
        let is_as_asked = |line: &[u8]| self.holds(std::iter::once(line), header_matches);
        if *name == header::HOST {
            return is_as_asked(request.host.as_bytes());
        }
        let lines = request.headers.get_all(name);
        let mut lines = lines.iter().map(HeaderValue::as_bytes).peekable();
        if lines.peek().is_none() {
            return self.holds(std::iter::empty::<&[u8]>(), header_matches);
        }
        if *name == header::COOKIE {
            return is_as_asked(&lines.collect::<Vec<_>>().join(&b"; "[..]));
        }
        match in_doubt {
            InDoubt::DoesNotMatch => lines.all(is_as_asked),
            InDoubt::Matches => lines.any(is_as_asked),
        }
    }

    fn holds<V: Copy>(
        &self,
        found: impl Iterator<Item = V> + Clone,
        matches: impl Fn(&Text, V) -> bool,
    ) -> bool {
        let is_one_of =
            |list: &[Text]| found.clone().any(|value| list.iter().any(|text| matches(text, value)));
        (self.values.is_empty() || is_one_of(&self.values)) && !is_one_of(&self.not_values)
    }
}

/// A header that is there is present, whatever it says.
fn header_matches(asked: &Text, line: &[u8]) -> bool {
    match asked {
        Text::Presence => true,
        Text::Exact(_) | Text::Prefix(_) | Text::Suffix(_) => asked.matches_bytes(line),
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "{HEADERS}[{name}]"),
            Self::Claim(path) => {
                f.write_str(CLAIMS)?;
                path.iter().try_for_each(|name| write!(f, "[{name}]"))
            }
            Self::ServerName => f.write_str(SERVER_NAME),
        }
    }
}

impl Serialize for Attribute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const HEADERS: &str = "request.headers";
const CLAIMS: &str = "request.auth.claims";
const SERVER_NAME: &str = "connection.sni";

impl FromStr for Attribute {
    type Err = InvalidAttribute;

    /// Reads a key of AuthorizationPolicy, as far as it is no field of [`Match`](super::Match) or
    /// [`RequestMatch`](super::RequestMatch).
    fn from_str(key: &str) -> Result<Self, InvalidAttribute> {
        let invalid = || InvalidAttribute(key.to_owned());
        let claim = |name: &str| Self::Claim([Label::from(name)].into());
        match key {
            SERVER_NAME => return Ok(Self::ServerName),
            "request.auth.audiences" => return Ok(claim("aud")),
            "request.auth.presenter" => return Ok(claim("azp")),
            _ => {}
        }
        if let Some(name) = key.strip_prefix(HEADERS) {
            let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).ok_or_else(invalid)?;
            if name == ":authority" {
                return Ok(Self::Header(header::HOST));
            }
            return HeaderName::try_from(name).map(Self::Header).map_err(|_| invalid());
        }
        let path = key.strip_prefix(CLAIMS).and_then(|path| path.strip_prefix('[')?.strip_suffix(']'));
        let names: Box<[&str]> = path.ok_or_else(invalid)?.split("][").collect();
        let is_name = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
        if !names.iter().all(is_name) {
            return Err(invalid());
        }
        Ok(Self::Claim(names.iter().map(|name| Label::from(*name)).collect()))
    }
}

/// A key that no request has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no key of a condition; {HEADERS}[NAME], {CLAIMS}[NAME], {SERVER_NAME} and others of the \
     documentation are"
)]
pub struct InvalidAttribute(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_the_documentation_writes_them() {
        let claim = |path: &[&str]| Attribute::Claim(path.iter().map(|name| Label::from(*name)).collect());
        let header = |name| Attribute::Header(HeaderName::from_static(name));
        let table = [
            ("request.headers[User-Agent]", header("user-agent")),
            ("request.headers[:authority]", header("host")),
            ("request.auth.audiences", claim(&["aud"])),
            ("request.auth.presenter", claim(&["azp"])),
            ("request.auth.claims[iss]", claim(&["iss"])),
            ("request.auth.claims[https://a/b][c d]", claim(&["https://a/b", "c d"])),
            ("connection.sni", Attribute::ServerName),
        ];
        for (key, attribute) in table {
            assert_eq!(key.parse(), Ok(attribute.clone()), "{key}");
            assert_eq!(attribute.to_string().parse(), Ok(attribute));
        }
        for key in [
            "",
            "request.headers",
            "request.headers[]",
            "request.headers[a b]",
            "request.headers[:path]",
            "request.auth.claims",
            "request.auth.claims[]",
            "request.auth.claims[a][]",
            "request.auth.claims[a]b",
            "request.auth.claims[a[b]]",
            "connection.snis",
        ] {
            assert_eq!(key.parse::<Attribute>(), Err(InvalidAttribute(key.into())), "{key}");
        }
    }
}
