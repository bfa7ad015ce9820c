//! One spelling for each path, so that routes, policies and applications speak of the same place.
//!
//! RFC 3986, 6.2.2: escapes of unreserved characters are undone (`%41` is `A`), other escapes are written in upper
//! case, segments `.` and `..` are resolved. Beyond it, as applications read paths: `\` is `/`, and slashes in a row are
//! one. `%2F` and `%5C` stay: to some applications they are part of a segment, to others they divide segments. Whoever
//! compares paths for the sake of security must refuse those ([`Normal::is_ambiguous`]).

use std::borrow::Cow;

use thiserror::Error;

/// A path in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normal<'p> {
    /// The path.
    pub path: Cow<'p, str>,
    /// Whether it has an escaped slash or backslash, which applications read in two ways.
    pub is_ambiguous: bool,
}

/// Gives `path`, as a request has it without its query, its one spelling. `*` is itself (OPTIONS).
pub fn normalize(path: &str) -> Result<Normal<'_>, InvalidTarget> {
    if path == "*" || is_plain(path) {
        return Ok(Normal { path: Cow::Borrowed(path), is_ambiguous: false });
    }
    if !path.starts_with('/') {
        return Err(InvalidTarget::Relative);
    }
    let Unescaped { text, is_ambiguous } = unescape(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in text.split('/') {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let mut path = String::with_capacity(text.len());
    for segment in &segments {
        path.push('/');
        path.push_str(segment);
    }
    if ends_in_slash || path.is_empty() {
        path.push('/');
    }
    Ok(Normal { path: Cow::Owned(path), is_ambiguous })
}

/// Most paths are as they should be, and cost one look.
fn is_plain(path: &str) -> bool {
    let mut before = None;
    path.starts_with('/')
        && path.bytes().all(|byte| {
            let fine = match (before, byte) {
                (_, b'%' | b'\\' | 0..=b' ' | 0x7f..) | (Some(b'/'), b'/' | b'.') => false,
                (Some(_) | None, _) => true,
            };
            before = Some(byte);
            fine
        })
}

struct Unescaped {
    text: String,
    is_ambiguous: bool,
}

fn unescape(path: &str) -> Result<Unescaped, InvalidTarget> {
    let (mut text, mut is_ambiguous) = (String::with_capacity(path.len()), false);
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        let (plain, special) = rest.split_at(at);
        text.push_str(plain);
        if let Some(after) = special.strip_prefix('\\') {
            text.push('/');
            rest = after;
            continue;
        }
        let digits = special.get(1..3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.ok_or(InvalidTarget::Escape)? {
            0 => return Err(InvalidTarget::Nul),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => text.push(char::from(byte)),
            byte => {
                is_ambiguous |= matches!(byte, b'/' | b'\\');
                text.push_str(&format!("%{byte:02X}"));
            }
        }
        rest = special.get(3..).unwrap_or_default();
    }
    text.push_str(rest);
    let control = |byte: u8| byte <= b' ' || byte == 0x7f;
    if text.bytes().any(control) { Err(InvalidTarget::Control) } else { Ok(Unescaped { text, is_ambiguous }) }
}

/// Why a request's path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidTarget {
    /// It does not begin at the root.
    #[error("the path does not begin with `/`")]
    Relative,
    /// A `%` without two digits.
    #[error("the path has a `%` that two hexadecimal digits do not follow")]
    Escape,
    /// An escaped NUL, at which some applications end the path.
    #[error("the path has an escaped NUL")]
    Nul,
    /// A space or control character.
    #[error("the path has a space or control character")]
    Control,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Result<String, InvalidTarget> {
        normalize(text).map(|normal| normal.path.into_owned())
    }

    #[test]
    fn each_place_has_one_spelling() {
        let table = [
            ("/", "/"),
            ("*", "*"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/../../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/%61dmin", "/admin"),
            ("/a%7e", "/a~"),
            ("/a\\b", "/a/b"),
            ("/a\\..\\b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/...", "/..."),
            ("/a..", "/a.."),
            ("/.hidden", "/.hidden"),
            ("/%25", "/%25"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("/é", "/é"),
        ];
        for (from, to) in table {
            assert_eq!(path(from).as_deref(), Ok(to), "{from}");
        }
    }

    #[test]
    fn what_has_no_spelling_is_refused() {
        let table = [
            ("a", InvalidTarget::Relative),
            ("", InvalidTarget::Relative),
            ("/%", InvalidTarget::Escape),
            ("/%4", InvalidTarget::Escape),
            ("/%zz", InvalidTarget::Escape),
            ("/%é", InvalidTarget::Escape),
            ("/a%00", InvalidTarget::Nul),
            ("/a b", InvalidTarget::Control),
            ("/a\tb", InvalidTarget::Control),
        ];
        for (from, why) in table {
            assert_eq!(path(from), Err(why), "{from:?}");
        }
    }

    #[test]
    fn an_escaped_slash_is_told() {
        let ambiguous = |text| normalize(text).map(|normal| normal.is_ambiguous);
        assert_eq!(ambiguous("/a%2Fb"), Ok(true));
        assert_eq!(ambiguous("/a%5cb"), Ok(true));
        assert_eq!(ambiguous("/a%20b"), Ok(false));
        assert_eq!(ambiguous("/a/b"), Ok(false));
    }

    proptest! {
        #[test]
        fn the_spelling_of_a_spelling_is_itself(text in "[/.%\\\\a-c2eEfF5CA0 ]{0,24}") {
            if let Ok(once) = path(&text) {
                prop_assert_eq!(path(&once), Ok(once.clone()));
                prop_assert!(once == "*" || once.starts_with('/'));
                prop_assert!(!once.contains("//") && !once.contains('\\'));
                prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
