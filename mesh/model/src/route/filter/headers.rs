//! How headers are changed (HTTPHeaderFilter).

use http::{HeaderMap, HeaderName, HeaderValue, header};
use thiserror::Error;

/// The longest value that a filter may write (HTTPHeader, `maxLength`).
const LONGEST: usize = 4096;

/// Headers that a filter may neither write nor remove: they speak of one connection or of the length of
/// a body, and whoever changes them alone lets two readers see two messages (RFC 9110, 7.6.1). `Host` is
/// changed by URLRewrite, which changes `:authority` with it.
const NOT_THESE: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What is done to headers: at most one thing for each name, so their order says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderEdit {
    /// Reads what a filter says.
    pub fn parse(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Result<Self, InvalidEdit> {
        let pair = |(name, value): &(&str, &str)| Ok((parse_name(name)?, parse_value(name, value)?));
        let edit = Self {
            set: set.iter().map(pair).collect::<Result<_, _>>()?,
            add: add.iter().map(pair).collect::<Result<_, _>>()?,
            remove: remove.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?,
        };
        let written = edit.set.iter().chain(&edit.add).map(|(name, _)| name);
        let mut names: Vec<_> = written.chain(&edit.remove).map(HeaderName::as_str).collect();
        names.sort_unstable();
        match names.array_windows().find(|[one, next]| one == next) {
            Some([name, _]) => Err(InvalidEdit::Repeated((*name).to_owned())),
            None => Ok(edit),
        }
    }

    /// What replaces all values of a name.
    pub fn set(&self) -> &[(HeaderName, HeaderValue)] {
        &self.set
    }

    /// What comes after the values of a name, as a line of its own, which says the same as one after a
    /// comma.
    pub fn add(&self) -> &[(HeaderName, HeaderValue)] {
        &self.add
    }

    /// What is removed.
    pub fn remove(&self) -> &[HeaderName] {
        &self.remove
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            insert(headers, name, value.clone());
        }
        for (name, value) in &self.add {
            append(headers, name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Replaces a header. A map that is full stays as it is: it has 32,768 headers, and the limits of the
/// proxy's own parsers are far below.
pub(super) fn insert(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    let _ = headers.try_insert(name, value);
}

/// Adds to a header; what is said of [`insert`] holds here.
pub(super) fn append(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    let _ = headers.try_append(name, value);
}

fn parse_name(name: &str) -> Result<HeaderName, InvalidEdit> {
    let parsed = HeaderName::try_from(name).map_err(|_| InvalidEdit::Name(name.to_owned()))?;
    if parsed == header::HOST {
        return Err(InvalidEdit::Host);
    }
    if NOT_THESE.contains(&parsed) {
        return Err(InvalidEdit::Connection(parsed.to_string()));
    }
    Ok(parsed)
}

fn parse_value(name: &str, value: &str) -> Result<HeaderValue, InvalidEdit> {
    let invalid = || InvalidEdit::Value(name.to_owned());
    // A value that begins or ends with a space is another one after the next parser.
    if value.len() > LONGEST || value.trim() != value {
        return Err(invalid());
    }
    HeaderValue::try_from(value).map_err(|_| invalid())
}

/// Why a change of headers is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidEdit {
    /// No header has this name; `:path` and its like are none.
    #[error("{0:?} is not the name of a header")]
    Name(String),
    /// The value cannot be sent.
    #[error("the value of {0} has line breaks or spaces around it, or more than {LONGEST} bytes")]
    Value(String),
    /// Two things are done for one name.
    #[error("{0} is named twice; set, add or remove a header once")]
    Repeated(String),
    /// The header is not the application's.
    #[error("{0} belongs to one connection or to the length of a body, and is not for filters")]
    Connection(String),
    /// The host is changed elsewhere.
    #[error("Host is changed by URLRewrite, with its field hostname")]
    Host,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(headers: &[(&str, &str)], edit: Result<HeaderEdit, InvalidEdit>) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
        }
        edit.expect("an edit").apply(&mut map);
        let mut lines: Vec<_> =
            map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        lines.sort();
        lines
    }

    #[test]
    fn headers_are_changed_as_the_specification_says() {
        let set = HeaderEdit::parse(&[("My-Header", "bar")], &[], &[]);
        assert_eq!(edited(&[("my-header", "foo"), ("my-header", "foo2")], set), ["my-header: bar"]);
        let add = HeaderEdit::parse(&[], &[("my-header", "bar,baz")], &[]);
        assert_eq!(edited(&[("my-header", "foo")], add), ["my-header: bar,baz", "my-header: foo"]);
        let remove = HeaderEdit::parse(&[], &[], &["my-header1", "My-Header3"]);
        let before = [("my-header1", "foo"), ("my-header2", "bar"), ("my-header3", "baz")];
        assert_eq!(edited(&before, remove), ["my-header2: bar"]);
    }

    #[test]
    fn what_is_no_application_s_header_is_refused() {
        for name in ["Connection", "transfer-encoding", "Content-Length", "TE", "Upgrade", "keep-alive"] {
            let refused = |edit| matches!(edit, Err(InvalidEdit::Connection(_)));
            assert!(refused(HeaderEdit::parse(&[(name, "x")], &[], &[])), "set {name}");
            assert!(refused(HeaderEdit::parse(&[], &[(name, "x")], &[])), "add {name}");
            assert!(refused(HeaderEdit::parse(&[], &[], &[name])), "remove {name}");
        }
        assert_eq!(HeaderEdit::parse(&[("Host", "x")], &[], &[]), Err(InvalidEdit::Host));
        for name in [":method", ":authority", "/invalid", "a b", ""] {
            assert_eq!(HeaderEdit::parse(&[], &[], &[name]), Err(InvalidEdit::Name(name.to_owned())));
        }
    }

    #[test]
    fn a_value_that_would_be_another_header_is_refused() {
        for value in ["a\r\nb: c", "a\nb", "a\0", " a", "a "] {
            let edit = HeaderEdit::parse(&[("x", value)], &[], &[]);
            assert_eq!(edit, Err(InvalidEdit::Value("x".to_owned())), "{value:?}");
        }
    }

    #[test]
    fn a_name_has_one_thing_done_to_it() {
        let twice = Err(InvalidEdit::Repeated("x".to_owned()));
        assert_eq!(HeaderEdit::parse(&[("x", "1"), ("X", "2")], &[], &[]), twice);
        assert_eq!(HeaderEdit::parse(&[("x", "1")], &[("X", "2")], &[]), twice);
        assert_eq!(HeaderEdit::parse(&[], &[("x", "1")], &["X"]), twice);
    }
}
