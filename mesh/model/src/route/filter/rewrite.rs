//! Another host and another path for a request (HTTPURLRewriteFilter, HTTPPathModifier).

use http::{
    HeaderValue, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use thiserror::Error;

use super::headers::insert;
use crate::route::{InvalidPath, MadeOf, Prefix, path};

/// What becomes of a request's host and path; its query stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The host that the backend sees; `None`: the client's.
    pub host: Option<NewHost>,
    /// The path that it sees; `None`: the client's.
    pub path: Option<NewPath>,
}

/// The request's target would be longer than any.
#[derive(Debug)]
pub(super) struct TooLong;

impl Rewrite {
    pub(super) fn apply(&self, head: &mut Parts, prefix: Option<&Prefix>) -> Result<(), TooLong> {
        let mut parts = head.uri.clone().into_parts();
        if let Some(path) = self.path.as_ref().and_then(|path| path.instead_of(head.uri.path(), prefix)) {
            let target = with_query(path, head.uri.query());
            parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| TooLong)?);
        }
        if let Some(host) = &self.host {
            let in_header = parts.authority.is_none() || head.headers.contains_key(header::HOST);
            if parts.authority.is_some() {
                parts.authority = Some(host.authority.clone());
            }
            if in_header {
                insert(&mut head.headers, &header::HOST, host.value.clone());
            }
        }
        head.uri = Uri::from_parts(parts).map_err(|_| TooLong)?;
        Ok(())
    }
}

/// `new` in place of characters after which comes `rest`: one after the other, as Istio has it, but for a second slash
/// between them, which at the beginning would name a host to whoever resolves the path.
fn joined(new: &str, rest: &str) -> String {
    let ends = new.is_empty() || new.ends_with('/');
    let rest = if ends { rest.trim_start_matches('/') } else { rest };
    if new.is_empty() { format!("/{rest}") } else { format!("{new}{rest}") }
}

pub(super) fn with_query(path: String, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

/// A host name without wildcard and without port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewHost {
    authority: Authority,
    value: HeaderValue,
}

impl NewHost {
    /// Reads a PreciseHostname.
    pub fn parse(host: &str) -> Result<Self, InvalidRewrite> {
        let label = |label: &str| {
            let plain = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(InvalidRewrite::Host);
        }
        let authority = host.parse().map_err(|_| InvalidRewrite::Host)?;
        let value = HeaderValue::from_str(host).map_err(|_| InvalidRewrite::Host)?;
        Ok(Self { authority, value })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.authority.as_str()
    }
}

/// What replaces a path, or the prefix that was matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPath {
    text: Box<str>,
    replaces: Replaces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replaces {
    Path,
    Prefix,
}

impl NewPath {
    /// This path instead of the request's; none is `/`.
    pub fn full(path: &str) -> Result<Self, InvalidRewrite> {
        Self::parse(path, Replaces::Path)
    }

    /// This prefix instead of that which was matched; none takes it away.
    pub fn prefix(prefix: &str) -> Result<Self, InvalidRewrite> {
        Self::parse(prefix, Replaces::Prefix)
    }

    fn parse(text: &str, replaces: Replaces) -> Result<Self, InvalidRewrite> {
        if !text.is_empty() {
            path::check(text)?;
        }
        Ok(Self { text: text.into(), replaces })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it replaces a prefix.
    pub fn replaces_prefix(&self) -> bool {
        self.replaces == Replaces::Prefix
    }

    /// What stands instead of `path`, which matched `prefix`. `None`: `path` is none that could be
    /// replaced: `*`, or that of a CONNECT.
    pub(super) fn instead_of(&self, path: &str, prefix: Option<&Prefix>) -> Option<String> {
        if !path.starts_with('/') {
            return None;
        }
        let new = match self.replaces {
            Replaces::Path => self.text.to_string(),
            Replaces::Prefix => {
                let prefix = prefix?;
                let rest = prefix.rest(path)?;
                if prefix.made_of() == MadeOf::Characters {
                    return Some(joined(&self.text, rest));
                }
                let base = self.text.strip_suffix('/').unwrap_or(&self.text);
                // Two slashes at the beginning would name a host to whoever resolves the path.
                let rest = if base.is_empty() { rest.trim_start_matches('/') } else { rest };
                if base.is_empty() { format!("/{rest}") } else { format!("{base}{rest}") }
            }
        };
        Some(if new.is_empty() { "/".to_owned() } else { new })
    }
}

/// Why a rewrite is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidRewrite {
    /// The host is no name.
    #[error("a host is a lower-case name without wildcard and port")]
    Host,
    /// The path is none.
    #[error(transparent)]
    Path(#[from] InvalidPath),
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn replaced(path: &str, prefix: &str, new: &str) -> Option<String> {
        let prefix = Prefix::parse(prefix).expect("a prefix");
        NewPath::prefix(new).expect("a path").instead_of(path, Some(&prefix))
    }

    #[test]
    fn characters_are_replaced_one_by_one() {
        let table = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foobar", "/foo", "/xyz", "/xyzbar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyzbar"),
            ("/foo/bar", "/foo/", "/", "/bar"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/", "/"),
            ("/foo//evil.example", "/foo", "/", "/evil.example"),
            ("/foo//evil.example", "/foo", "", "/evil.example"),
        ];
        for (path, prefix, new, expected) in table {
            let characters = Prefix::of_characters(prefix).expect("a prefix");
            let got = NewPath::prefix(new).expect("a path").instead_of(path, Some(&characters));
            assert_eq!(got.as_deref(), Some(expected), "{path} {prefix} {new}");
        }
    }

    #[test]
    fn a_prefix_is_replaced_as_in_the_table_of_the_specification() {
        let table = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // Not in the table.
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/foo//evil.example", "/foo", "/", "/evil.example"),
        ];
        for (path, prefix, new, expected) in table {
            assert_eq!(replaced(path, prefix, new).as_deref(), Some(expected), "{path} {prefix} {new}");
        }
        assert_eq!(replaced("*", "/", "/xyz"), None);
    }

    fn rewritten(request: http::request::Builder, rewrite: &Rewrite) -> Parts {
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        rewrite.apply(&mut head, Some(&Prefix::default())).expect("not too long");
        head
    }

    #[test]
    fn the_query_stays() {
        let full = |path| Rewrite { host: None, path: NewPath::full(path).ok() };
        let head = rewritten(Request::builder().uri("/full/one/two?a=1"), &full("/one"));
        assert_eq!(head.uri, "/one?a=1");
        let head = rewritten(Request::builder().uri("http://web/full?"), &full(""));
        assert_eq!(head.uri, "http://web/?");
        let head = rewritten(Request::builder().method("OPTIONS").uri("*"), &full("/one"));
        assert_eq!(head.uri, "*");
    }

    #[test]
    fn the_host_is_changed_where_it_stands() {
        let rewrite = Rewrite { host: NewHost::parse("other.example").ok(), path: None };
        let old = rewritten(Request::builder().uri("/a").header("host", "web:8080"), &rewrite);
        assert_eq!(
            (old.uri.to_string().as_str(), &old.headers["host"]),
            ("/a", &"other.example".parse().unwrap())
        );
        let new = rewritten(Request::builder().uri("http://web/a?b"), &rewrite);
        assert_eq!(new.uri, "http://other.example/a?b");
        assert!(!new.headers.contains_key("host"));
        let both = rewritten(Request::builder().uri("http://web/a").header("host", "web"), &rewrite);
        assert_eq!(
            (both.uri.host(), both.headers["host"].to_str().ok()),
            (Some("other.example"), Some("other.example"))
        );
    }

    #[test]
    fn what_is_no_host_or_path_is_refused() {
        for host in ["", "*.example", "web:80", "a..b", "-a", "a-", "A", "a/b", "a@b", "[::1]"] {
            assert_eq!(NewHost::parse(host), Err(InvalidRewrite::Host), "{host}");
        }
        for path in ["xyz", "/a/../b", "//a", "/a?b", "/a\r\nb"] {
            assert!(NewPath::full(path).is_err(), "{path}");
            assert!(NewPath::prefix(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_follows_the_prefix_is_kept(
            prefix in "(/[ab]{1,2}){0,3}/?",
            rest in "(/[a-c/]{0,6})?",
            new in "((/[xy]{1,2}){1,2})?/?",
        ) {
            let prefix = if prefix.is_empty() { "/" } else { &prefix };
            let base = prefix.trim_end_matches('/');
            let path = if base.is_empty() && rest.is_empty() { "/".to_owned() } else { format!("{base}{rest}") };
            let new_path = replaced(&path, prefix, &new).expect("a path that has the prefix");
            prop_assert!(new_path.starts_with('/'));
            prop_assert!(!new_path.starts_with("//"));
            let kept = rest.trim_start_matches('/');
            prop_assert!(new_path.ends_with(kept));
            let new_base = new.trim_end_matches('/');
            prop_assert!(new_path.starts_with(new_base));
            // What matched the old prefix matches the new one.
            let new_prefix = Prefix::parse(if new_base.is_empty() { "/" } else { new_base }).expect("a prefix");
            prop_assert!(new_prefix.rest(&new_path).is_some());
        }
    }
}
