//! How a request's path is compared: exactly, by its first segments or characters, by a pattern, or as a gRPC call.
//!
//! Paths are compared as they came, with case and with their escapes: whoever asks has normalised
//! them before, once, for policies and routes alike.

use thiserror::Error;

use super::text::{InvalidPattern, Pattern, Text};

/// The longest path that a route may name (HTTPPathMatch, `maxLength`).
const LONGEST: usize = 1024;

/// Which paths match.
///
/// An exact path takes precedence over all others, a long prefix over a short one. Gateway API leaves
/// the place of patterns open; here they stand between the two, the longest first: under prefixes, the
/// prefix `/` that most services have would hide every one of them. A gRPC call is ordered by the
/// characters of its service, then of its method (GRPCRouteRule). Of a service and port only one kind of
/// routes applies (GEP-1426), so where calls stand among the rest decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// This one.
    Exact(Exact),
    /// Those that begin with these segments, or characters.
    Prefix(Prefix),
    /// Those that are as the pattern says.
    Pattern(Pattern),
    /// Those of a gRPC call.
    Grpc(GrpcCall),
}

impl Default for Path {
    /// Every path: what a match that names none means.
    fn default() -> Self {
        Self::Prefix(Prefix::default())
    }
}

impl Path {
    /// The path `value` and no other: `/abc` is not `/abc/`.
    pub fn exact(value: &str) -> Result<Self, InvalidPath> {
        check(value)?;
        Ok(Self::Exact(Exact(value.into())))
    }

    /// The paths that begin with the segments of `value`.
    pub fn prefix(value: &str) -> Result<Self, InvalidPath> {
        Prefix::parse(value).map(Self::Prefix)
    }

    /// The paths that begin with the characters of `value`: `/abc` is the beginning of `/abcd`.
    pub fn beginning(value: &str) -> Result<Self, InvalidPath> {
        Prefix::of_characters(value).map(Self::Prefix)
    }

    /// The path `value`, in letters of either case.
    pub fn exact_without_case(value: &str) -> Result<Self, InvalidPath> {
        check(value)?;
        Ok(Self::Pattern(Pattern::without_case(value)?))
    }

    /// The paths that begin with the characters of `value`, in letters of either case.
    pub fn beginning_without_case(value: &str) -> Result<Self, InvalidPath> {
        check(value)?;
        Ok(Self::Pattern(Pattern::prefix_without_case(value)?))
    }

    /// The paths that the regular expression `value` matches as a whole.
    pub fn pattern(value: &str) -> Result<Self, InvalidPath> {
        if value.len() > LONGEST {
            return Err(InvalidPath::TooLong);
        }
        Ok(Self::Pattern(Pattern::parse(value)?))
    }

    /// The calls of `service` and `method`; `None`: of any. The path of a call is `/service/method`.
    pub fn grpc(service: Option<Text>, method: Option<Text>) -> Result<Self, InvalidPath> {
        let word = |text: &Text, more: &[u8]| match text {
            Text::Exact(text) | Text::Prefix(text) => {
                text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
            }
            Text::Pattern(_) | Text::Present => true,
        };
        if !service.as_ref().is_none_or(|service| word(service, b"_.")) {
            return Err(InvalidPath::GrpcName);
        }
        if !method.as_ref().is_none_or(|method| word(method, b"_")) {
            return Err(InvalidPath::GrpcName);
        }
        let any = |text: &Text| matches!(text, Text::Exact(text) if text.is_empty());
        let (service, method) = (service.filter(|text| !any(text)), method.filter(|text| !any(text)));
        Ok(match (service, method) {
            (None, None) => Self::default(),
            (service, method) => Self::Grpc(GrpcCall { service, method }),
        })
    }

    /// Whether `path` is as asked.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == path,
            Self::Prefix(prefix) => prefix.rest(path).is_some(),
            Self::Pattern(pattern) => pattern.matches(path.as_bytes()),
            Self::Grpc(call) => call.matches(path),
        }
    }

    pub(super) fn rank(&self) -> Rank {
        match self {
            Self::Exact(_) => Rank::Exact,
            Self::Prefix(prefix) => Rank::Prefix(prefix.as_str().len()),
            Self::Pattern(pattern) => Rank::Pattern(pattern.as_str().len()),
            Self::Grpc(call) => {
                let length = |text: &Option<Text>| text.as_ref().map_or(0, Text::length);
                Rank::Grpc(length(&call.service), length(&call.method))
            }
        }
    }
}

/// How much a path says of a request; the greatest takes precedence, as [`Path`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Prefix(usize),
    Pattern(usize),
    Grpc(usize, usize),
    Exact,
}

/// A whole path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exact(Box<str>);

impl Exact {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The beginning of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    text: Box<str>,
    made_of: MadeOf,
}

/// What a prefix is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MadeOf {
    /// Whole segments, as Gateway API has it. A slash at its end says nothing: `/abc/` is `/abc`, and `/` is every path.
    #[default]
    Segments,
    /// Characters, as Istio has it: `/abc` is the beginning of `/abcd`.
    Characters,
}

impl Prefix {
    /// Reads a prefix of whole segments.
    pub fn parse(value: &str) -> Result<Self, InvalidPath> {
        check(value)?;
        let text = value.strip_suffix('/').unwrap_or(value).into();
        Ok(Self { text, made_of: MadeOf::Segments })
    }

    /// Reads a prefix of characters.
    pub fn of_characters(value: &str) -> Result<Self, InvalidPath> {
        check(value)?;
        Ok(Self { text: value.into(), made_of: MadeOf::Characters })
    }

    /// One of segments has no slash at its end; that of every path is empty.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it is made of.
    pub fn made_of(&self) -> MadeOf {
        self.made_of
    }

    /// What follows the prefix in `path`: after segments nothing, or what begins with a slash. `None`: `path` has
    /// another prefix.
    pub fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(&*self.text)?;
        let is_whole = || self.text.is_empty() || rest.is_empty() || rest.starts_with('/');
        (self.made_of == MadeOf::Characters || is_whole()).then_some(rest)
    }

    /// The segments of one that is made of them; `None`: it is not.
    pub(super) fn segments(&self) -> Option<impl Iterator<Item = &str>> {
        (self.made_of == MadeOf::Segments).then(|| segments(&self.text))
    }
}

/// What stands between the slashes of `path`; nothing, where it does not begin with one.
pub(super) fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').into_iter().flat_map(|path| path.split('/'))
}

/// The service and method of a gRPC call; one of them may be any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcCall {
    service: Option<Text>,
    method: Option<Text>,
}

impl GrpcCall {
    /// The service, or any.
    pub fn service(&self) -> Option<&Text> {
        self.service.as_ref()
    }

    /// The method, or any.
    pub fn method(&self) -> Option<&Text> {
        self.method.as_ref()
    }

    fn matches(&self, path: &str) -> bool {
        let Some((service, method)) = called(path) else { return false };
        let is = |asked: &Option<Text>, called: &str| {
            asked.as_ref().is_none_or(|asked| asked.matches(called.as_bytes()))
        };
        is(&self.service, service) && is(&self.method, method)
    }
}

/// The service and the method of a gRPC call at `path`; `None`: no call has such a path.
pub(super) fn called(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

/// Judges a path that a route names, as the validation of HTTPPathMatch does.
pub(super) fn check(path: &str) -> Result<(), InvalidPath> {
    if path.len() > LONGEST {
        return Err(InvalidPath::TooLong);
    }
    if !path.starts_with('/') {
        return Err(InvalidPath::Relative);
    }
    if path.contains("//") {
        return Err(InvalidPath::EmptySegment);
    }
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(InvalidPath::Dots);
    }
    if path.contains("%2f") || path.contains("%2F") {
        return Err(InvalidPath::EncodedSlash);
    }
    if !is_plain(path) {
        return Err(InvalidPath::Character);
    }
    Ok(())
}

fn is_plain(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let plain = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            byte => byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte),
        };
        if !plain {
            return false;
        }
    }
    true
}

/// Why a path that a route names is refused: no normalised request has it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidPath {
    /// It is longer than any.
    #[error("a path has at most {LONGEST} bytes")]
    TooLong,
    /// It does not begin at the root.
    #[error("a path begins with `/`")]
    Relative,
    /// It has two slashes in a row.
    #[error("a path has no `//`")]
    EmptySegment,
    /// It has a segment `.` or `..`.
    #[error("a path has no segment `.` or `..`")]
    Dots,
    /// It has a slash in disguise.
    #[error("a path has no `%2F`")]
    EncodedSlash,
    /// It has a character that a path has only escaped, or an escape that is none.
    #[error("a path has letters, digits, `-._~!$&'()*+,;=:@/` and escapes of two digits")]
    Character,
    /// A service or method has a character that no such name has.
    #[error("a gRPC service has letters, digits, `_` and `.`, a method the same without `.`")]
    GrpcName,
    /// The pattern is refused.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_as_the_specification_says() {
        let (exact, prefix, pattern) = (Path::exact, Path::prefix, Path::pattern);
        let table = [
            (exact("/abc"), "/abc", true),
            (exact("/abc"), "/abc/", false),
            (exact("/abc"), "/Abc", false),
            (exact("/abc"), "/abcd", false),
            (exact("/abc/"), "/abc", false),
            (prefix("/abc"), "/abc", true),
            (prefix("/abc"), "/abc/", true),
            (prefix("/abc"), "/abc/def", true),
            (prefix("/abc"), "/abcd", false),
            (prefix("/abc"), "/Abc", false),
            (prefix("/abc/"), "/abc", true),
            (prefix("/abc/"), "/abc/def", true),
            (prefix("/abc/"), "/abcd", false),
            (prefix("/"), "/anything", true),
            (prefix("/"), "*", true),
            (pattern("/v[0-9]+/.*"), "/v2/x", true),
            (pattern("/v[0-9]+"), "/v2/x", false),
            (Path::beginning("/abc"), "/abcd", true),
            (Path::beginning("/abc/"), "/abc", false),
            (Path::beginning("/abc"), "/Abc", false),
            (Path::beginning("/"), "/anything", true),
            (Path::beginning_without_case("/a.c"), "/A.CD/e", true),
            (Path::beginning_without_case("/a.c"), "/abc", false),
            (Path::exact_without_case("/abc"), "/aBC", true),
            (Path::exact_without_case("/abc"), "/aBCd", false),
        ];
        for (path, request, expected) in table {
            let path = path.expect("a path");
            assert_eq!(path.matches(request), expected, "{path:?} on {request}");
        }
    }

    #[test]
    fn calls_match_by_service_and_method() {
        let exact = |text: &str| Some(Text::exact(text));
        let table = [
            (exact("shop.Cart"), exact("Add"), "/shop.Cart/Add", true),
            (exact("shop.Cart"), exact("Add"), "/shop.Cart/add", false),
            (exact("shop.Cart"), None, "/shop.Cart/Remove", true),
            (exact("shop.Cart"), None, "/shop.Carts/Remove", false),
            (exact("shop.Cart"), None, "/shop.Cart/a/b", false),
            (None, exact("Add"), "/any.Service/Add", true),
            (None, exact("Add"), "/Add", false),
            (Text::pattern("shop\\..*").ok(), None, "/shop.Cart/Add", true),
            (None, None, "/anything", true),
        ];
        for (service, method, request, expected) in table {
            let path = Path::grpc(service, method).expect("a call");
            assert_eq!(path.matches(request), expected, "{path:?} on {request}");
        }
        assert_eq!(Path::grpc(exact("a/b"), None), Err(InvalidPath::GrpcName));
        assert_eq!(Path::grpc(None, exact("a.b")), Err(InvalidPath::GrpcName));
    }

    #[test]
    fn what_no_normalised_request_has_is_refused() {
        let table = [
            ("abc", InvalidPath::Relative),
            ("", InvalidPath::Relative),
            ("/a//b", InvalidPath::EmptySegment),
            ("/a/../b", InvalidPath::Dots),
            ("/a/.", InvalidPath::Dots),
            ("/a%2Fb", InvalidPath::EncodedSlash),
            ("/a%2fb", InvalidPath::EncodedSlash),
            ("/a#b", InvalidPath::Character),
            ("/a?b", InvalidPath::Character),
            ("/a%4", InvalidPath::Character),
            ("/a b", InvalidPath::Character),
        ];
        for (path, why) in table {
            assert_eq!(Path::exact(path), Err(why.clone()), "{path}");
            assert_eq!(Path::prefix(path), Err(why), "{path}");
        }
        assert_eq!(Path::exact("/...").map(|path| path.matches("/...")), Ok(true));
        assert_eq!(Path::prefix(&format!("/{}", "a".repeat(LONGEST))), Err(InvalidPath::TooLong));
    }
}
