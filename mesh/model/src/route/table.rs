//! All routes of one service and port, compiled: ordered by precedence, and indexed by path.
//!
//! Exact paths, the services of gRPC calls and prefixes of segments are found by look-up; what has a pattern
//! or a prefix of characters, and the methods of any gRPC service, is tried in order. A look-up's cost depends on the depth of the
//! request's path, not on the number of routes.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{
    Match, Origin, Path, Precedence, Route, Rule, Specificity,
    path::{called, segments},
    text::Text,
};

/// All routes of one service and port.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// Every match of every rule, the greatest [`Specificity`] first. All below are places in it, in
    /// ascending order.
    entries: Box<[Entry]>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// gRPC services whose method is any.
    services: HashMap<Box<str>, Vec<usize>>,
    prefixes: Prefixes,
    /// What is not found by look-up.
    tried: Vec<usize>,
    /// Whether somebody is asked about requests by one of the rules.
    asks: bool,
}

impl RouteTable {
    /// Compiles `routes`, in whatever order they come.
    pub fn compile(routes: &[Route]) -> Self {
        let mut entries: Vec<_> = routes.iter().flat_map(entries).collect();
        entries.sort_by(|a, b| b.specificity.cmp(&a.specificity));
        let mut table = Self::default();
        for (place, entry) in entries.iter().enumerate() {
            match entry.matched.paths() {
                Path::Exact(path) => table.exact.entry(path.as_str().into()).or_default().push(place),
                Path::Prefix(prefix) => match prefix.segments() {
                    Some(segments) => table.prefixes.insert(segments, place),
                    None => table.tried.push(place),
                },
                Path::Grpc(call) => match (call.service(), call.method()) {
                    (Some(Text::Exact(service)), Some(Text::Exact(method))) => {
                        let path = format!("/{service}/{method}").into();
                        table.exact.entry(path).or_default().push(place);
                    }
                    (Some(Text::Exact(service)), None) => {
                        table.services.entry(service.clone()).or_default().push(place);
                    }
                    (Some(_) | None, _) => table.tried.push(place),
                },
                Path::Pattern(_) => table.tried.push(place),
            }
        }
        let asks = entries.iter().any(|entry| entry.rule.filters.auth().is_some());
        Self { entries: entries.into(), asks, ..table }
    }

    /// Whether somebody is asked about requests by one of the rules: then they decide who may do what.
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// Whether the service has no routes at all: then its requests go to itself, and not to 404.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every match, in order of precedence.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The places that may match `path`, in lists of which each is in order of precedence. Entries of
    /// other places do not match it. What is likelier to take precedence comes first.
    pub(super) fn candidates<'t>(&'t self, path: &'t str) -> impl Iterator<Item = Candidates<'t>> {
        let by_path = |places| Candidates { places, path_is_known: true };
        let exact = self.exact.get(path).map(|places| by_path(places));
        let service = if self.services.is_empty() { None } else { called(path) };
        let service =
            service.and_then(|(service, _)| self.services.get(service)).map(|places| by_path(places));
        let tried = Candidates { places: &self.tried, path_is_known: false };
        // The longest prefixes first.
        let prefixes = self.prefixes.of(path).map(by_path);
        exact.into_iter().chain(service).chain([tried]).chain(prefixes)
    }
}

/// Places that may match a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates<'t> {
    pub(super) places: &'t [usize],
    /// Whether their paths were compared by the look-up.
    pub(super) path_is_known: bool,
}

/// One match of one rule.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The object that the rule comes from.
    pub origin: Arc<Origin>,
    /// The rule.
    pub rule: Arc<Rule>,
    /// The match, one of the rule's.
    pub matched: Match,
    /// Its precedence.
    pub specificity: Specificity,
}

fn entries(route: &Route) -> impl Iterator<Item = Entry> + '_ {
    route.rules().iter().enumerate().flat_map(move |(number, rule)| {
        rule.matches.iter().enumerate().map(move |(index, matched)| Entry {
            origin: Arc::clone(route.origin()),
            rule: Arc::clone(rule),
            matched: matched.clone(),
            specificity: precedence(route, matched).specificity(route.origin(), number, index),
        })
    })
}

/// What of a match counts for its precedence: where order alone does, none says more of a request than another.
pub(super) fn precedence(route: &Route, matched: &Match) -> Match {
    match route.precedence() {
        Precedence::Specificity => matched.clone(),
        Precedence::Order => Match::default(),
    }
}

/// A tree of segments.
#[derive(Clone, Debug)]
struct Prefixes {
    /// The first is the root, the prefix of every path.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    parent: Option<usize>,
    children: HashMap<Box<str>, usize>,
    places: Vec<usize>,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Prefixes {
    fn insert<'s>(&mut self, segments: impl Iterator<Item = &'s str>, place: usize) {
        let mut at = 0;
        for segment in segments {
            let next = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at) else { return };
            let child = *node.children.entry(segment.into()).or_insert(next);
            if child == next {
                self.nodes.push(Node { parent: Some(at), ..Node::default() });
            }
            at = child;
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.places.push(place);
        }
    }

    /// The places of each prefix of `path`, the longest prefix first.
    fn of<'t>(&'t self, path: &str) -> impl Iterator<Item = &'t [usize]> {
        let mut deepest = 0;
        for segment in segments(path) {
            let child = self.nodes.get(deepest).and_then(|node| node.children.get(segment));
            let Some(child) = child else { break };
            deepest = *child;
        }
        let upwards = std::iter::successors(self.nodes.get(deepest), |node| self.nodes.get(node.parent?));
        upwards.map(|node| node.places.as_slice())
    }
}
