//! Which rule takes a request, and which of its backends.

use std::sync::Arc;

use http::{StatusCode, request::Parts};

use super::{Backend, Destination, Entry, Match, Origin, Path, Prefix, RouteTable, Rule};
use crate::{
    balance::Dice,
    name::{Label, ServiceKey},
};

/// The rule that takes a request.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'t> {
    /// The object that it comes from.
    pub origin: &'t Arc<Origin>,
    /// The rule.
    pub rule: &'t Arc<Rule>,
    /// That of its matches by which it was chosen.
    pub matched: &'t Match,
}

impl<'t> Chosen<'t> {
    /// The prefix that was matched, which a filter may replace.
    pub fn prefix(&self) -> Option<&'t Prefix> {
        match self.matched.paths() {
            Path::Prefix(prefix) => Some(prefix),
            Path::Exact(_) | Path::Pattern(_) | Path::Grpc(_) => None,
        }
    }
}

/// The rule with the greatest [`Specificity`](super::Specificity) of those that match. `None`: no rule
/// does, which is answered with 404.
pub fn select<'t>(table: &'t RouteTable, head: &Parts) -> Option<Chosen<'t>> {
    let Entry { origin, rule, matched, .. } = first(table, head, &mut 0)?;
    Some(Chosen { origin, rule, matched })
}

/// The first entry that matches, counting in `tried` how many lists and entries were looked at.
fn first<'t>(table: &'t RouteTable, head: &Parts, tried: &mut u32) -> Option<&'t Entry> {
    let mut best: Option<(usize, &Entry)> = None;
    let path = head.uri.path();
    for candidates in table.candidates(path) {
        *tried = tried.saturating_add(1);
        // What stands behind the best so far cannot take precedence over it.
        let ahead = candidates.places.iter().take_while(|place| best.is_none_or(|(best, _)| **place < best));
        let found =
            ahead.filter_map(|place| Some((*place, table.entries().get(*place)?))).find(|(_, entry)| {
                *tried = tried.saturating_add(1);
                (candidates.path_is_known || entry.matched.paths().matches(path))
                    && entry.matched.matches_beside_path(head)
            });
        best = found.or(best);
    }
    best.map(|(_, entry)| entry)
}

/// The backend that was drawn for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn<'t> {
    /// The request goes there.
    To {
        /// The backend, whose filters still come.
        backend: &'t Backend,
        /// Its service.
        service: &'t ServiceKey,
        /// Its port.
        port: u16,
        /// Of its endpoints those of this subset; `None`: all.
        subset: Option<&'t Label>,
    },
    /// It would have gone to a backend that is invalid.
    Invalid(&'t Backend),
    /// No backend takes any request.
    Nobody,
}

impl Drawn<'_> {
    /// The answer in place of a backend's.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::To { .. } => None,
            Self::Invalid(_) | Self::Nobody => Some(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

impl Rule {
    /// Draws a backend by weight. An invalid one keeps its share: of two with equal weights, one of
    /// them invalid, half of the requests are answered with 500 (HTTPRouteRule, `backendRefs`).
    pub fn draw(&self, dice: &mut dyn Dice) -> Drawn<'_> {
        draw(&self.backends, dice)
    }
}

pub(super) fn draw<'b>(backends: &'b [Backend], dice: &mut dyn Dice) -> Drawn<'b> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total == 0 {
        return Drawn::Nobody;
    }
    let mut drawn = dice.below(total);
    let backend = backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let here = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        here
    });
    match backend.map(|backend| (backend, &backend.to)) {
        Some((backend, Destination::Service { service, port, subset })) => {
            Drawn::To { backend, service, port: *port, subset: subset.as_ref() }
        }
        Some((backend, Destination::Invalid { .. })) => Drawn::Invalid(backend),
        None => Drawn::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::{Method, Request};
    use proptest::{collection::vec, option, prelude::*, sample::select as one_of};

    use super::*;
    use crate::route::{Filters, InvalidPath, Route, RouteKey, Text, table::precedence};

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn on(path: Result<Path, InvalidPath>) -> Match {
        Match::path(path.expect("a path"))
    }

    fn rule(name: &str, matches: Vec<Match>) -> Rule {
        Rule { name: Some(name.into()), matches, ..Rule::default() }
    }

    fn route(created: u64, name: &str, rules: Vec<Rule>) -> Route {
        Route::new(Origin { created, key: RouteKey::new("shop", name) }, rules).expect("a route")
    }

    fn taken<'t>(table: &'t RouteTable, head: &Parts) -> Option<&'t str> {
        select(table, head).and_then(|chosen| chosen.rule.name.as_ref()).map(|name| name.as_str())
    }

    #[test]
    fn the_most_specific_rule_takes_the_request() {
        let v2 = |one: Match| one.header("version".parse().expect("a name"), Text::exact("v2"));
        let rules = vec![
            rule("root", vec![on(Path::prefix("/"))]),
            rule("cart", vec![on(Path::prefix("/cart/"))]),
            rule("cart v2", vec![v2(on(Path::prefix("/cart")))]),
            rule("item", vec![on(Path::exact("/cart/item"))]),
            rule("post", vec![on(Path::prefix("/cart")).method(Method::POST)]),
            rule("number", vec![on(Path::pattern("/cart/[0-9]+"))]),
        ];
        let table = RouteTable::compile(&[route(0, "web", rules)]);
        let table_of = [
            ("GET", "/", None, "root"),
            ("GET", "/cartoon", None, "root"),
            ("GET", "/cart", None, "cart"),
            ("GET", "/cart/", None, "cart"),
            ("GET", "/cart/x", Some("v2"), "cart v2"),
            ("POST", "/cart/x", Some("v2"), "post"),
            ("POST", "/cart/item", Some("v2"), "item"),
            ("POST", "/cart/17", None, "number"),
            ("OPTIONS", "*", None, "root"),
        ];
        for (method, path, version, expected) in table_of {
            let headers: Vec<_> = version.map(|version| ("version", version)).into_iter().collect();
            assert_eq!(taken(&table, &head(method, path, &headers)), Some(expected), "{method} {path}");
        }
    }

    #[test]
    fn ties_go_to_the_oldest_route_then_by_name_then_to_the_first_rule() {
        let same = || vec![on(Path::prefix("/a"))];
        let young = route(9, "a", vec![rule("young", same())]);
        let old_b = route(1, "b", vec![rule("first", same()), rule("second", same())]);
        let old_c = route(1, "c", vec![rule("later", same())]);
        let table = RouteTable::compile(&[young.clone(), old_c.clone(), old_b]);
        assert_eq!(taken(&table, &head("GET", "/a", &[])), Some("first"));
        assert_eq!(taken(&RouteTable::compile(&[young, old_c]), &head("GET", "/a", &[])), Some("later"));
    }

    #[test]
    fn where_order_counts_the_first_that_matches_takes_the_request() {
        let rules = || {
            vec![
                rule("characters", vec![on(Path::beginning("/foo"))]),
                rule("exact", vec![on(Path::exact("/foo/bar")), on(Path::exact("/bar"))]),
                rule("root", vec![on(Path::prefix("/"))]),
                rule("never", vec![on(Path::exact("/baz")).method(Method::GET)]),
            ]
        };
        let origin = || Origin { created: 0, key: RouteKey::new("shop", "web") };
        let table = RouteTable::compile(&[Route::in_order(origin(), rules()).expect("a route")]);
        let by_specificity = RouteTable::compile(&[Route::new(origin(), rules()).expect("a route")]);
        let table_of = [
            ("/foobar", "characters", "characters"),
            ("/foo/bar", "characters", "exact"),
            ("/bar", "exact", "exact"),
            ("/baz", "root", "never"),
        ];
        for (path, ordered, specific) in table_of {
            let head = head("GET", path, &[]);
            assert_eq!(taken(&table, &head), Some(ordered), "{path}");
            assert_eq!(taken(&by_specificity, &head), Some(specific), "{path}");
        }
    }

    #[test]
    fn what_no_rule_is_for_is_not_taken() {
        let table = RouteTable::compile(&[route(0, "web", vec![rule("a", vec![on(Path::prefix("/a"))])])]);
        assert_eq!(taken(&table, &head("GET", "/b", &[])), None);
        assert!(!table.is_empty());
        assert!(RouteTable::compile(&[]).is_empty());
        assert_eq!(taken(&RouteTable::compile(&[]), &head("GET", "/", &[])), None);
    }

    #[test]
    fn calls_are_taken_by_service_and_method() {
        let exact = |text: &str| Some(Text::exact(text));
        let rules = vec![
            rule("any", vec![on(Path::grpc(None, None))]),
            rule("adding", vec![on(Path::grpc(None, exact("Add")))]),
            rule("cart", vec![on(Path::grpc(exact("shop.Cart"), None))]),
            rule("cart add", vec![on(Path::grpc(exact("shop.Cart"), exact("Add")))]),
        ];
        let table = RouteTable::compile(&[route(0, "web", rules)]);
        let table_of = [
            ("/shop.Cart/Add", "cart add"),
            ("/shop.Cart/Drop", "cart"),
            ("/shop.List/Add", "adding"),
            ("/shop.List/Drop", "any"),
        ];
        for (path, expected) in table_of {
            assert_eq!(taken(&table, &head("POST", path, &[])), Some(expected), "{path}");
        }
    }

    /// What one look-up costs in a table of `count` exact paths and as many prefixes.
    fn cost(count: usize, path: &str) -> (Option<String>, u32) {
        let rules = (0..count).flat_map(|n| {
            let exact = rule(&format!("exact {n}"), vec![on(Path::exact(&format!("/exact/{n}")))]);
            [exact, rule(&format!("prefix {n}"), vec![on(Path::prefix(&format!("/prefix/{n}")))])]
        });
        let table = RouteTable::compile(&[route(0, "web", rules.collect())]);
        let mut tried = 0;
        let found = first(&table, &head("GET", path, &[]), &mut tried);
        (found.and_then(|entry| entry.rule.name.as_ref()).map(ToString::to_string), tried)
    }

    #[test]
    fn a_look_up_costs_the_same_among_five_thousand() {
        let table = [
            ("/exact/0", Some("exact 0")),
            ("/prefix/0", Some("prefix 0")),
            ("/prefix/0/a/b/c", Some("prefix 0")),
            ("/prefix", None),
            ("/nowhere", None),
        ];
        for (path, expected) in table {
            let (among_few, few) = cost(1, path);
            let (among_many, many) = cost(5000, path);
            assert_eq!((among_few.as_deref(), among_many.as_deref()), (expected, expected), "{path}");
            assert_eq!(few, many, "{path}");
            assert!(many <= 6, "{path}: {many}");
        }
    }

    #[test]
    fn a_deep_path_costs_no_more_than_the_deepest_prefix() {
        let deep = "/a".repeat(20_000);
        assert!(cost(5000, &deep).1 <= 6);
    }

    fn backend(name: &str, weight: u32) -> Backend {
        let to = match name {
            "invalid" => Destination::Invalid { reason: "BackendNotFound".into() },
            name => Destination::Service { service: ServiceKey::new("shop", name), port: 80, subset: None },
        };
        Backend { to, weight, filters: Filters::default() }
    }

    /// Who is drawn how often, drawing every number once.
    fn spread(backends: &[(&str, u32)]) -> Vec<(String, u64)> {
        let total = backends.iter().map(|(_, weight)| u64::from(*weight)).sum::<u64>().max(1);
        let backends = backends.iter().map(|(name, weight)| backend(name, *weight)).collect();
        let rule = Rule { backends, ..Rule::default() };
        let mut drawn = BTreeMap::new();
        for roll in 0..total {
            let one = rule.draw(&mut |_: u64| roll);
            let name = match one {
                Drawn::To { service, .. } => service.hostname.to_string(),
                Drawn::Invalid(_) | Drawn::Nobody => one.status().expect("a status").to_string(),
            };
            *drawn.entry(name).or_insert(0) += 1;
        }
        drawn.into_iter().collect()
    }

    #[test]
    fn backends_are_drawn_by_weight() {
        let error = "500 Internal Server Error";
        let draws = |backends: &[(&str, u32)], expected: &[(&str, u64)]| {
            let expected: Vec<_> =
                expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            assert_eq!(spread(backends), expected, "{backends:?}");
        };
        draws(&[("v1", 9), ("v2", 1)], &[("v1", 9), ("v2", 1)]);
        draws(&[("v1", 1), ("v2", 0)], &[("v1", 1)]);
        draws(&[("v1", 1), ("invalid", 1)], &[(error, 1), ("v1", 1)]);
        draws(&[("v1", 1), ("invalid", 0)], &[("v1", 1)]);
        draws(&[("v1", 0), ("v2", 0)], &[(error, 1)]);
        draws(&[("invalid", 3)], &[(error, 3)]);
        draws(&[], &[(error, 1)]);
    }

    #[test]
    fn dice_out_of_bounds_draw_nobody() {
        let rule =
            Rule { backends: vec![backend("v1", u32::MAX), backend("v2", u32::MAX)], ..Rule::default() };
        assert_eq!(rule.draw(&mut |_: u64| u64::MAX), Drawn::Nobody);
    }

    /// Sorts everything, and takes the first that matches.
    fn naive<'r>(routes: &'r [Route], head: &Parts) -> Option<(&'r str, &'r Match)> {
        let mut all: Vec<_> = routes
            .iter()
            .flat_map(|route| {
                route.rules().iter().enumerate().flat_map(move |(number, rule)| {
                    let matches = rule.matches.iter().enumerate();
                    matches.map(move |(index, one)| {
                        let says = precedence(route, one).specificity(route.origin(), number, index);
                        (says, route.origin().key.as_str(), one)
                    })
                })
            })
            .collect();
        all.sort_by(|a, b| b.0.cmp(&a.0));
        all.into_iter().find(|(_, _, one)| one.matches(head)).map(|(_, name, one)| (name, one))
    }

    fn any_path() -> impl Strategy<Value = Path> {
        let path = one_of(vec!["/", "/a", "/a/", "/a/b", "/a/b/", "/ab", "/a/a", "/b", "/b/a/b", "/S/M"]);
        let pattern = one_of(vec!["/a.*", "/[ab]/b", ".*", "/a/b?", "/S/.*"]);
        let word = |words: Vec<&'static str>| {
            let patterns =
                one_of(vec!["[SM]", ".*"]).prop_map(|text| Text::pattern(text).expect("a pattern"));
            option::of(prop_oneof![3 => one_of(words).prop_map(Text::exact), 1 => patterns])
        };
        prop_oneof![
            path.clone().prop_map(|path| Path::exact(path).expect("a path")),
            path.clone().prop_map(|path| Path::prefix(path).expect("a path")),
            path.prop_map(|path| Path::beginning(path).expect("a path")),
            pattern.prop_map(|path| Path::pattern(path).expect("a path")),
            (word(vec!["S", "T", "a"]), word(vec!["M", "N", "b"]))
                .prop_map(|(service, method)| Path::grpc(service, method).expect("a call")),
        ]
    }

    fn any_match() -> impl Strategy<Value = Match> {
        let pairs = || vec((one_of(vec!["x", "y"]), one_of(vec!["1", "2"])), 0..2);
        let method = option::of(one_of(vec![Method::GET, Method::POST]));
        (any_path(), method, pairs(), pairs()).prop_map(|(path, method, headers, query)| {
            let one = Match::path(path);
            let one = method.into_iter().fold(one, Match::method);
            let one = headers.into_iter().fold(one, |one, (name, value)| {
                one.header(name.parse().expect("a name"), Text::exact(value))
            });
            query.into_iter().fold(one, |one, (name, value)| one.query(name, Text::exact(value)))
        })
    }

    fn any_routes() -> impl Strategy<Value = Vec<Route>> {
        let rules = vec(vec(any_match(), 0..3), 0..4);
        vec((0_u64..3, any::<bool>(), rules), 0..8).prop_map(|routes| {
            let routes = routes.into_iter().enumerate();
            let routes = routes.map(|(number, (created, in_order, rules))| {
                let rules = rules.into_iter().map(|matches| Rule { matches, ..Rule::default() });
                let origin = Origin { created, key: RouteKey::new("shop", format!("route-{number}")) };
                let new = if in_order { Route::in_order } else { Route::new };
                new(origin, rules.collect()).expect("a route")
            });
            routes.collect()
        })
    }

    fn any_head() -> impl Strategy<Value = Parts> {
        let path = one_of(vec![
            "/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/a//b", "/a/a", "/b/a/b/c", "/S/M", "/S/N",
            "/T/M", "/S/M/N", "/c", "*",
        ]);
        let query = one_of(vec!["", "?x=1", "?y=2&x=2", "?x=2&x=1"]);
        let headers = vec((one_of(vec!["x", "y"]), one_of(vec!["1", "2"])), 0..3);
        (one_of(vec!["GET", "POST", "PUT"]), path, query, headers).prop_map(
            |(method, path, query, headers)| {
                let query = if path == "*" { "" } else { query };
                head(method, &format!("{path}{query}"), &headers)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_index_chooses_what_sorting_everything_would(
            routes in any_routes(),
            heads in vec(any_head(), 1..12),
        ) {
            let table = RouteTable::compile(&routes);
            for head in &heads {
                let chosen = select(&table, head).map(|chosen| (chosen.origin.key.as_str(), chosen.matched));
                prop_assert_eq!(chosen, naive(&routes, head), "{} {}", head.method, head.uri);
            }
        }
    }
}
