//! Paths with holes: `/shop/{*}/cart/{**}`.

use std::fmt;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// Which paths match: `{*}` stands for one segment that is not empty, `{**}` for any text between the
/// slashes around it, empty or of several segments; so `/a/{**}` is `/a/` and `/a/b/c`, and not `/a`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    written: Box<str>,
    /// The segments before the first `{**}`.
    before: Box<[Segment]>,
    /// What follows the `{**}`; `None`: there is none, and the path ends with the segments.
    after: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(Box<str>),
    Any,
}

impl PathTemplate {
    /// Whether `text` is meant as a template.
    pub fn is_one(text: &str) -> bool {
        text.contains("{*}") || text.contains("{**}")
    }

    /// Reads a template. An operator is a whole segment, and none comes after `{**}`.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let path = text.strip_prefix('/').ok_or(InvalidTemplate::Relative)?;
        let (before, after) = match path.split_once("{**}") {
            None => (path, None),
            Some((before, after)) => {
                let whole = before.is_empty() || before.ends_with('/');
                if !whole || !(after.is_empty() || after.starts_with('/')) {
                    return Err(InvalidTemplate::PartOfSegment);
                }
                if Self::is_one(after) {
                    return Err(InvalidTemplate::AfterRest);
                }
                check(after)?;
                (before, Some(after.into()))
            }
        };
        // The slash before `{**}` ends the segment before it, and begins none.
        let before = if after.is_some() { before.strip_suffix('/') } else { Some(before) };
        let segments = before.into_iter().flat_map(|before| before.split('/'));
        let segment = |text: &str| match text {
            "{*}" => Ok(Segment::Any),
            text => check(text).map(|()| Segment::Exact(text.into())),
        };
        let before = segments.map(segment).collect::<Result<_, _>>()?;
        Ok(Self { written: text.into(), before, after })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Whether `path` is as asked.
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path.strip_prefix('/');
        for asked in &self.before {
            let Some(left) = rest else { return false };
            let (segment, left) = left.split_once('/').map_or((left, None), |(one, more)| (one, Some(more)));
            let fits = match asked {
                Segment::Exact(exact) => **exact == *segment,
                Segment::Any => !segment.is_empty(),
            };
            if !fits {
                return false;
            }
            rest = left;
        }
        match &self.after {
            None => rest.is_none(),
            Some(after) => rest.is_some_and(|rest| rest.ends_with(&**after)),
        }
    }
}

/// What stands between operators is compared as it is; a brace or an asterisk there is a mistake.
fn check(text: &str) -> Result<(), InvalidTemplate> {
    let operator = ["{*}", "{**}"].iter().any(|operator| text.contains(operator));
    if operator {
        return Err(InvalidTemplate::PartOfSegment);
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || "{}*?#".contains(*c)) {
        Some(c) => Err(InvalidTemplate::Character(c)),
        None => Ok(()),
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Serialize for PathTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

/// Why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidTemplate {
    /// It does not begin at the root.
    #[error("a path begins with `/`")]
    Relative,
    /// An operator has something beside it.
    #[error("`{{*}}` and `{{**}}` stand alone between two slashes")]
    PartOfSegment,
    /// There is an operator after `{**}`.
    #[error("`{{**}}` is the last operator of a path")]
    AfterRest,
    /// No path has this character, or it is a wildcard of another kind.
    #[error("{0:?} is in no path; beside `{{*}}` and `{{**}}` a template has no wildcards")]
    Character(char),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_stand_for_one_segment_or_for_any_text() {
        let table = [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/bar/", false),
            ("/foo/{*}/", "/foo/bar/", true),
            ("/{*}/x/{*}", "/a/x/b", true),
            ("/{*}/x/{*}", "/a/y/b", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo/bar/baz", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}", "/food/bar", false),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/", false),
            ("/foo/{**}/bar", "/foo/a/b/bar", true),
            ("/foo/{**}/bar", "/foo/bar", false),
            ("/foo/{**}/bar", "/foo/a/rebar", false),
            ("/{*}/bar/{**}/", "/foo/bar/buzz/baz/", true),
            ("/{**}", "/", true),
            ("/{**}", "/a/b", true),
            ("/{**}", "*", false),
        ];
        for (template, path, expected) in table {
            let template = PathTemplate::parse(template).expect(template);
            assert_eq!(template.matches(path), expected, "{template} on {path}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        use InvalidTemplate::{AfterRest, Character, PartOfSegment, Relative};
        let table = [
            ("foo/{*}", Relative),
            ("{**}", Relative),
            ("/foo/{*}.txt", PartOfSegment),
            ("/foo{**}", PartOfSegment),
            ("/foo/{**}.txt", PartOfSegment),
            ("/{**}/foo/{*}", AfterRest),
            ("/{**}/{**}", AfterRest),
            ("/*/baz/{*}", Character('*')),
            ("/{a}/{*}", Character('{')),
            ("/a?b/{*}", Character('?')),
        ];
        for (template, error) in table {
            assert_eq!(PathTemplate::parse(template), Err(error), "{template}");
        }
    }
}
