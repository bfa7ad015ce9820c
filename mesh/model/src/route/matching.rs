//! Which requests a rule is for, and which of two rules takes precedence.

use std::cmp::Reverse;

use http::{HeaderMap, HeaderName, Method, header, request::Parts};

use super::{
    Origin, RouteKey,
    path::{Path, Rank},
    text::{Text, percent_decoded},
};

/// What is asked of a request: all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    path: Path,
    method: Option<Method>,
    headers: Vec<HeaderMatch>,
    query: Vec<QueryMatch>,
}

impl Match {
    /// This path.
    pub fn path(path: Path) -> Self {
        Self { path, ..Self::default() }
    }

    /// And this method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// And this value of a header. Of several for one name the first counts, the others are as if
    /// they were not there (HTTPHeaderMatch, `name`).
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: Text) -> Self {
        if !self.headers.iter().any(|one| one.name == name && one.wanted == Wanted::Yes) {
            self.headers.push(HeaderMatch { name, value, wanted: Wanted::Yes });
        }
        self
    }

    /// And no such value of a header (Istio's `withoutHeaders`). Of several for one name the first counts.
    #[must_use]
    pub fn without_header(mut self, name: HeaderName, value: Text) -> Self {
        if !self.headers.iter().any(|one| one.name == name && one.wanted == Wanted::No) {
            self.headers.push(HeaderMatch { name, value, wanted: Wanted::No });
        }
        self
    }

    /// And this value of a query parameter. Of several for one name the first counts.
    #[must_use]
    pub fn query(mut self, name: impl Into<Box<str>>, value: Text) -> Self {
        let name = name.into();
        if !self.query.iter().any(|one| one.name == name) {
            self.query.push(QueryMatch { name, value });
        }
        self
    }

    /// Which paths.
    pub fn paths(&self) -> &Path {
        &self.path
    }

    /// Which method; `None`: any.
    pub fn methods(&self) -> Option<&Method> {
        self.method.as_ref()
    }

    /// What is asked of headers.
    pub fn headers(&self) -> &[HeaderMatch] {
        &self.headers
    }

    /// What is asked of the query.
    pub fn queries(&self) -> &[QueryMatch] {
        &self.query
    }

    /// Whether a request is as asked.
    pub fn matches(&self, head: &Parts) -> bool {
        self.path.matches(head.uri.path()) && self.matches_beside_path(head)
    }

    /// Whether a request whose path matches is as asked.
    pub(super) fn matches_beside_path(&self, head: &Parts) -> bool {
        self.method.as_ref().is_none_or(|method| *method == head.method)
            && self.headers.iter().all(|header| header.matches(head))
            && self.query.iter().all(|query| query.matches(head.uri.query().unwrap_or_default()))
    }

    /// The precedence of this match, the `index`th of the `rule`th rule of its route.
    pub(super) fn specificity(&self, origin: &Origin, rule: usize, index: usize) -> Specificity {
        Specificity {
            path: self.path.rank(),
            method: self.method.is_some(),
            headers: self.headers.len(),
            query: self.query.len(),
            created: Reverse(origin.created),
            route: Reverse(origin.key.clone()),
            rule: Reverse(rule),
            index: Reverse(index),
        }
    }
}

/// How much a match says of a request: of those that match one, the greatest takes it.
///
/// The order of the fields is that of Gateway API (HTTPRouteRule, `matches`), which goes on at a tie:
/// an exact path, then the longest prefix (where patterns stand: [`Path`]); a method; the most headers;
/// the most query parameters; then the oldest route, the first by `namespace/name`, the first rule. Of a
/// route whose rules are tried in [order](super::Precedence::Order) only what comes after the query is compared.
/// No two matches of a table are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    path: Rank,
    method: bool,
    headers: usize,
    query: usize,
    created: Reverse<u64>,
    route: Reverse<RouteKey>,
    rule: Reverse<usize>,
    index: Reverse<usize>,
}

/// What is asked of one header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Its name, without case.
    pub name: HeaderName,
    /// Its value.
    pub value: Text,
    /// Whether the request is to have it.
    pub wanted: Wanted,
}

/// Whether something is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is.
    Yes,
    /// It must not be.
    No,
}

impl HeaderMatch {
    /// Whether the request has the header, and its value is as asked; or, where it must not be, that it is not so. A
    /// header that is not there is then one without a value, as Istio has it, unless its presence alone was asked.
    fn matches(&self, head: &Parts) -> bool {
        match (self.wanted, self.compared(head)) {
            (Wanted::Yes, found) => found == Some(true),
            (Wanted::No, Some(is_so)) => !is_so,
            (Wanted::No, None) => self.value == Text::Present || !self.value.matches(b""),
        }
    }

    /// Whether the value is as asked; `None`: there is none. A header that is repeated has one value, with
    /// commas between (RFC 9110, 5.3); cookies have `; ` (RFC 9113, 8.2.3).
    fn compared(&self, head: &Parts) -> Option<bool> {
        if head.headers.contains_key(&self.name) {
            return Some(self.value.matches_pieces(pieces(&head.headers, &self.name)));
        }
        // HTTP/2 says it in `:authority`.
        let authority = head.uri.authority().filter(|_| self.name == header::HOST)?;
        Some(self.value.matches(authority.as_str().as_bytes()))
    }
}

fn pieces<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let between: &[u8] = if *name == header::COOKIE { b"; " } else { b"," };
    let values = headers.get_all(name).into_iter().enumerate();
    values.flat_map(move |(at, value)| {
        let between = if at == 0 { &[][..] } else { between };
        [between, value.as_bytes()]
    })
}

/// What is asked of one query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Its name, with case, unescaped.
    pub name: Box<str>,
    /// Its value, unescaped.
    pub value: Text,
}

impl QueryMatch {
    /// Whether `query` has the parameter, and its first value is as asked.
    fn matches(&self, query: &str) -> bool {
        let mut parameters = query.split('&').map(|one| one.split_once('=').unwrap_or((one, "")));
        let first = parameters.find(|(name, _)| percent_decoded(name).eq(self.name.bytes()));
        first.is_some_and(|(_, value)| match &self.value {
            Text::Exact(exact) => percent_decoded(value).eq(exact.bytes()),
            Text::Prefix(prefix) => percent_decoded(value).take(prefix.len()).eq(prefix.bytes()),
            Text::Present => true,
            Text::Pattern(pattern) => pattern.matches(&percent_decoded(value).collect::<Vec<_>>()),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn name(text: &str) -> HeaderName {
        text.parse().expect("a name")
    }

    fn prefix(text: &str) -> Match {
        Match::path(Path::prefix(text).expect("a path"))
    }

    #[test]
    fn headers_are_compared_by_beginning_presence_and_absence() {
        let any = Match::default;
        let table = [
            (any().header(name("a"), Text::prefix("v1")), vec![("a", "v1.2")], true),
            (any().header(name("a"), Text::prefix("v1,v")), vec![("a", "v1"), ("a", "v2")], true),
            (any().header(name("a"), Text::prefix("v1")), vec![("a", "v")], false),
            (any().header(name("a"), Text::prefix("")), vec![], false),
            (any().header(name("a"), Text::Present), vec![("a", "")], true),
            (any().header(name("a"), Text::Present), vec![], false),
            (any().without_header(name("a"), Text::Present), vec![], true),
            (any().without_header(name("a"), Text::Present), vec![("a", "")], false),
            (any().without_header(name("a"), Text::exact("x")), vec![("a", "x")], false),
            (any().without_header(name("a"), Text::exact("x")), vec![("a", "y")], true),
            (any().without_header(name("a"), Text::exact("x")), vec![], true),
            (any().without_header(name("a"), Text::exact("")), vec![], false),
            (any().header(header::HOST, Text::prefix("web")), vec![("host", "web:80")], true),
            (any().query("a", Text::prefix("b c")), vec![], true),
            (any().query("a", Text::Present), vec![], true),
            (any().query("b", Text::Present), vec![], false),
        ];
        for (matched, headers, expected) in table {
            assert_eq!(matched.matches(&head("GET", "/?a=b%20cd", &headers)), expected, "{matched:?}");
        }
        let both = any().header(name("a"), Text::prefix("x")).without_header(name("a"), Text::exact("xy"));
        assert!(both.matches(&head("GET", "/", &[("a", "xz")])));
        assert!(!both.matches(&head("GET", "/", &[("a", "xy")])));
    }

    #[test]
    fn all_that_is_asked_must_be_there() {
        let v1 = prefix("/foo").header(name("version"), Text::exact("v1"));
        assert!(v1.matches(&head("GET", "/foo/x", &[("Version", "v1")])));
        assert!(!v1.matches(&head("GET", "/foo/x", &[("version", "v2")])));
        assert!(!v1.matches(&head("GET", "/foo/x", &[])));
        assert!(!v1.matches(&head("GET", "/bar", &[("version", "v1")])));
        let posted = prefix("/").method(Method::POST);
        assert!(posted.matches(&head("POST", "/", &[])));
        assert!(!posted.matches(&head("GET", "/", &[])));
    }

    #[test]
    fn a_repeated_header_has_one_value() {
        let table = [
            ("x", "a,b", vec![("x", "a"), ("x", "b")], true),
            ("x", "a", vec![("x", "a"), ("x", "b")], false),
            ("x", "a,b", vec![("x", "a,b")], true),
            ("cookie", "a=1; b=2", vec![("cookie", "a=1"), ("cookie", "b=2")], true),
        ];
        for (header, value, headers, expected) in table {
            let asked = prefix("/").header(name(header), Text::exact(value));
            assert_eq!(asked.matches(&head("GET", "/", &headers)), expected, "{header}: {value}");
        }
        let pattern = prefix("/").header(name("x"), Text::pattern("a,.*").expect("a pattern"));
        assert!(pattern.matches(&head("GET", "/", &[("x", "a"), ("x", "b")])));
    }

    #[test]
    fn the_host_is_a_header_in_both_versions() {
        let shop = prefix("/").header(header::HOST, Text::exact("shop"));
        assert!(shop.matches(&head("GET", "/", &[("host", "shop")])));
        assert!(shop.matches(&head("GET", "http://shop/", &[])));
        assert!(!shop.matches(&head("GET", "/", &[])));
    }

    #[test]
    fn of_several_for_one_name_the_first_counts() {
        let asked = prefix("/").header(name("Foo"), Text::exact("1")).header(name("foo"), Text::exact("2"));
        assert_eq!(asked.headers().len(), 1);
        assert!(asked.matches(&head("GET", "/", &[("foo", "1")])));
        let asked = prefix("/").query("a", Text::exact("1")).query("a", Text::exact("2"));
        assert!(asked.matches(&head("GET", "/?a=1", &[])));
    }

    #[test]
    fn the_first_value_of_a_query_parameter_is_compared_unescaped() {
        let table = [
            ("animal", "whale", "/?animal=whale", true),
            ("animal", "whale", "/?animal=whale&animal=dolphin", true),
            ("animal", "dolphin", "/?animal=whale&animal=dolphin", false),
            ("animal", "whale", "/?Animal=whale", false),
            ("animal", "blue whale", "/?%61nimal=blue%20whale", true),
            ("animal", "blue whale", "/?animal=blue+whale", false),
            ("animal", "a=b", "/?x&animal=a=b", true),
            ("animal", "whale", "/", false),
        ];
        for (name, value, uri, expected) in table {
            let asked = prefix("/").query(name, Text::exact(value));
            assert_eq!(asked.matches(&head("GET", uri, &[])), expected, "{name}={value} on {uri}");
        }
        let present = prefix("/").query("debug", Text::pattern(".*").expect("a pattern"));
        assert!(present.matches(&head("GET", "/?debug", &[])));
    }

    #[test]
    fn precedence_is_in_the_order_of_the_specification() {
        let origin = |created, key: &str| {
            let (namespace, name) = key.split_once('/').expect("a key");
            Origin { created, key: RouteKey::new(namespace, name) }
        };
        let old = origin(1, "b/b");
        let (header, query) = (
            |one: Match| one.header(name("x"), Text::exact("1")),
            |one: Match| one.query("q", Text::exact("1")),
        );
        let exact = |path| Match::path(Path::exact(path).expect("a path"));
        let pattern = |path| Match::path(Path::pattern(path).expect("a path"));
        let in_order = [
            exact("/a").method(Method::GET).specificity(&old, 0, 0),
            header(exact("/a")).specificity(&old, 0, 0),
            exact("/a").specificity(&old, 0, 0),
            pattern("/a.*").specificity(&old, 0, 0),
            pattern("/.*").specificity(&old, 0, 0),
            prefix("/a/b").specificity(&old, 0, 0),
            query(header(prefix("/a/"))).method(Method::GET).specificity(&old, 0, 0),
            prefix("/a").method(Method::GET).specificity(&old, 0, 0),
            header(prefix("/a")).header(name("y"), Text::exact("1")).specificity(&old, 0, 0),
            query(header(prefix("/a"))).specificity(&old, 0, 0),
            header(prefix("/a")).specificity(&old, 0, 0),
            query(prefix("/a")).specificity(&old, 0, 0),
            prefix("/a").specificity(&old, 0, 0),
            prefix("/a").specificity(&old, 0, 1),
            prefix("/a").specificity(&old, 1, 0),
            // `-` comes before `/`: it is the joined name that is compared.
            prefix("/a").specificity(&origin(2, "a-a/z"), 0, 0),
            prefix("/a").specificity(&origin(2, "a/a"), 0, 0),
            prefix("/a").specificity(&origin(2, "a/b"), 0, 0),
            prefix("/").specificity(&old, 0, 0),
        ];
        assert!(in_order.is_sorted_by(|more, less| more > less), "{in_order:#?}");
    }

    #[test]
    fn calls_are_ordered_by_service_then_method() {
        let exact = |text: &str| Some(Text::exact(text));
        let call = |service, method| {
            let path = Path::grpc(service, method).expect("a call");
            Match::path(path).specificity(&Origin { created: 0, key: RouteKey::new("a", "a") }, 0, 0)
        };
        let in_order = [
            call(exact("shop.Cart"), exact("Add")),
            call(exact("shop.Cart"), None),
            call(exact("shop"), exact("LongMethod")),
            call(None, exact("LongMethod")),
            call(None, None),
        ];
        assert!(in_order.is_sorted_by(|more, less| more > less), "{in_order:#?}");
    }
}
