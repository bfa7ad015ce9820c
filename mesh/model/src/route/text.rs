//! How one value of a request is compared: equal, by its beginning, or by a pattern of bounded size.

use std::{fmt, str};

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

/// The longest pattern, in bytes: what the definition of HTTPRoute admits for a header's value.
const LONGEST: usize = 4096;

/// What a compiled pattern may take. A class with a counted repetition multiplies; a mesh has many
/// routes, and each waypoint holds all of those that it serves.
const COMPILED: usize = 128 * 1024;

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// Equal, with case.
    Exact(Box<str>),
    /// Begins so, with case.
    Prefix(Box<str>),
    /// As the pattern says.
    Pattern(Pattern),
    /// Whatever it is, so long as it is there.
    Present,
}

impl Text {
    /// Equal to `text`.
    pub fn exact(text: impl Into<Box<str>>) -> Self {
        Self::Exact(text.into())
    }

    /// Beginning with `text`.
    pub fn prefix(text: impl Into<Box<str>>) -> Self {
        Self::Prefix(text.into())
    }

    /// As the regular expression `pattern` says.
    pub fn pattern(pattern: &str) -> Result<Self, InvalidPattern> {
        Pattern::parse(pattern).map(Self::Pattern)
    }

    /// Whether `text` is as asked.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Pattern(pattern) => pattern.matches(text),
            Self::Present => true,
        }
    }

    /// Whether the text of these `pieces` one after the other is as asked. A text is built for a
    /// pattern alone.
    pub(super) fn matches_pieces<'t>(&self, mut pieces: impl Iterator<Item = &'t [u8]>) -> bool {
        match self {
            Self::Exact(exact) => {
                let rest = pieces.try_fold(exact.as_bytes(), |rest, piece| rest.strip_prefix(piece));
                rest.is_some_and(<[u8]>::is_empty)
            }
            Self::Prefix(prefix) => {
                let begin = pieces.flatten().take(prefix.len());
                begin.eq(prefix.as_bytes())
            }
            Self::Pattern(pattern) => pattern.matches(&pieces.collect::<Vec<_>>().concat()),
            Self::Present => true,
        }
    }

    /// How many characters were written.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Exact(text) | Self::Prefix(text) => text.len(),
            Self::Pattern(pattern) => pattern.as_str().len(),
            Self::Present => 0,
        }
    }
}

/// A regular expression for a whole value.
///
/// The dialect, which Gateway API leaves open, is that of RE2 as Rust's `regex` has it: no look-around
/// and no back references, so the time is linear in the value. `.`, `\w` and `(?i)` speak of bytes and
/// ASCII, as a path and a header are made of them.
#[derive(Clone)]
pub struct Pattern {
    written: Box<str>,
    compiled: Regex,
}

impl Pattern {
    /// Compiles `pattern`, which must match a value from its first byte to its last.
    pub fn parse(pattern: &str) -> Result<Self, InvalidPattern> {
        if pattern.len() > LONGEST {
            return Err(InvalidPattern::TooLong);
        }
        // Alone first: `a)|(b` would close the group below and no longer be anchored.
        compile(pattern)?;
        let compiled = compile(&format!(r"\A(?:{pattern})\z"))?;
        Ok(Self { written: pattern.into(), compiled })
    }

    /// The pattern of `text` itself, in letters of either case.
    pub fn without_case(text: &str) -> Result<Self, InvalidPattern> {
        Self::parse(&format!("(?i){}", regex::escape(text)))
    }

    /// The pattern of whatever begins with `text`, in letters of either case.
    pub fn prefix_without_case(text: &str) -> Result<Self, InvalidPattern> {
        Self::parse(&format!("(?is){}.*", regex::escape(text)))
    }

    /// Whether all of `text` is as asked.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.compiled.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

fn compile(pattern: &str) -> Result<Regex, InvalidPattern> {
    let built = RegexBuilder::new(pattern).unicode(false).size_limit(COMPILED).build();
    built.map_err(|error| {
        let too_big = matches!(error, regex::Error::CompiledTooBig(_));
        if too_big { InvalidPattern::TooBig } else { InvalidPattern::Syntax(error.to_string()) }
    })
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.written)
    }
}

/// Why a regular expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidPattern {
    /// It is longer than any.
    #[error("the regular expression is longer than {LONGEST} bytes")]
    TooLong,
    /// It takes too much memory.
    #[error("the regular expression takes more than {COMPILED} bytes; repeat less, or split the match")]
    TooBig,
    /// It is none.
    #[error("the regular expression cannot be read: {0}")]
    Syntax(String),
}

/// The bytes that `text` stands for: `%41` is `A`. What is no escape stands for itself, `+` too
/// (RFC 3986; a space is `%20`).
pub(crate) fn percent_decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, after) = match rest {
            [b'%', high, low, after @ ..] => match escaped(*high, *low) {
                Some(byte) => (byte, after),
                None => (b'%', rest.get(1..)?),
            },
            [byte, after @ ..] => (*byte, after),
            [] => return None,
        };
        rest = after;
        Some(byte)
    })
}

fn escaped(high: u8, low: u8) -> Option<u8> {
    let digits = [high, low];
    let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(&digits)?;
    u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_value() {
        let table = [
            ("v[12]", "v1", true),
            ("v[12]", "v3", false),
            ("v[12]", "v12", false),
            ("v[12]", "xv1", false),
            ("a|b", "ab", false),
            ("a|b", "b", true),
            ("(?i)canary", "CaNaRy", true),
            (".*", "", true),
            ("(?m)^a$", "a\nb", false),
            ("é", "é", true),
        ];
        for (pattern, value, expected) in table {
            let matches = Pattern::parse(pattern).expect(pattern).matches(value.as_bytes());
            assert_eq!(matches, expected, "{pattern} on {value}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_or_too_big_is_refused() {
        assert!(matches!(Pattern::parse("a)|(b"), Err(InvalidPattern::Syntax(_))));
        assert!(matches!(Pattern::parse("(?=a)"), Err(InvalidPattern::Syntax(_))));
        assert_eq!(Pattern::parse("((a{1,100}){1,100}){1,100}"), Err(InvalidPattern::TooBig));
        assert_eq!(Pattern::parse(&"a".repeat(LONGEST + 1)), Err(InvalidPattern::TooLong));
    }

    #[test]
    fn escapes_are_read_and_nothing_else() {
        let table =
            [("a%20b", "a b"), ("a+b", "a+b"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%+1", "%+1")];
        for (written, meant) in table {
            assert_eq!(percent_decoded(written).collect::<Vec<_>>(), meant.as_bytes(), "{written}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_compared_like_their_whole(whole in "[a-c,]{0,6}", cut in 0_usize..7, other in "[a-c,]{0,6}") {
            let (left, right) = whole.split_at(cut.min(whole.len()));
            let pieces = || [left.as_bytes(), right.as_bytes()].into_iter();
            prop_assert_eq!(Text::exact(other.as_str()).matches_pieces(pieces()), whole == other);
            prop_assert!(Text::exact(whole.as_str()).matches_pieces(pieces()));
            prop_assert!(Text::pattern("[a-c,]*").unwrap().matches_pieces(pieces()));
        }
    }
}
