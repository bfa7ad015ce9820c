//! Which route a request takes, and what is done to it: the decisions of a waypoint.
//!
//! A [`Route`] is what one HTTPRoute or GRPCRoute says of a service and port; a [`RouteTable`] is all of
//! them, compiled when configuration arrives and not when a request does. Whatever a user can write
//! wrongly is refused when its part is made ([`Path::prefix`], [`Filters::new`], [`Route::new`]), so a
//! request meets only what makes sense. For one request:
//!
//! | question | answered by |
//! |---|---|
//! | how is its path spelled? | [`normal::normalize`] |
//! | which rule? | [`select()`]; `None`: 404, unless the service [has no routes](RouteTable::is_empty) |
//! | is somebody else asked whether it may be? | [`Filters::asks`] of the rule |
//! | is it held back, or answered with a failure on purpose? | [`Filters::fault`] of the rule, then [`Fault::draw`] |
//! | which backend? | [`Rule::draw`] |
//! | what becomes of its head? | [`Filters::request`] of the rule, then of the backend |
//! | who else gets it? | [`Filters::mirrors`] |
//! | once more? | [`retry::next`], within the service's [`Budget`] |
//! | what becomes of the response's head? | [`Filters::response`] of the backend, then of the rule |
//!
//! A connection that is not looked into goes by a [`StreamRoute`].
//!
//! Sources: the Go types of Gateway API v1 (`httproute_types.go`, `grpcroute_types.go`), which are its
//! specification; GEP-1494 for external authorization, GEP-1731 and GEP-3388 for retries, GEP-1742 for timeouts, GEP-1767 for CORS, GEP-1619
//! for sessions, GEP-1426 for services as parents: host names of routes are not compared, and of the kinds
//! of routes that a service and port have, one applies. Which, is decided where a table is put together.

mod budget;
mod filter;
mod matching;
pub mod normal;
mod path;
pub mod retry;
mod select;
mod session;
mod stream;
mod table;
mod text;

use std::{sync::Arc, time::Duration};

pub use budget::{Budget, BudgetPolicy};
pub use filter::{
    Abort, Allowed, Cors, CorsParts, Delay, ExternalAuth, Fault, Filter, Filters, Fraction, Front, Granted,
    GrpcCode, HeaderEdit, Injected, InvalidCors, InvalidEdit, InvalidFault, InvalidFilters, InvalidFraction,
    InvalidRewrite, Mirror, NewHost, NewPath, Redirect, RedirectStatus, Rewrite, Scheme, Step, With,
};
pub use matching::{HeaderMatch, Match, QueryMatch, Specificity, Wanted};
pub use path::{Exact, GrpcCall, InvalidPath, MadeOf, Path, Prefix};
pub use select::{Chosen, Drawn, select};
pub use session::{Lifetime, Session, SessionKey, Ticket};
pub use stream::{InvalidStreamRoute, StreamRoute, StreamTable};
pub use table::{Entry, RouteTable};
pub(crate) use text::percent_decoded;
pub use text::{InvalidPattern, Pattern, Text};
use thiserror::Error;

use crate::name::{Label, Namespace, ServiceKey};

/// What one HTTPRoute, GRPCRoute or VirtualService says of a service. Made only by [`Route::new`] and
/// [`Route::in_order`], which judge it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    origin: Arc<Origin>,
    precedence: Precedence,
    rules: Vec<Arc<Rule>>,
}

/// Which of a route's rules takes a request that several match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// The one that says most of it, as Gateway API has it: [`Specificity`].
    Specificity,
    /// The first, as Istio has it.
    Order,
}

impl Route {
    /// Judges what no rule's part can see alone. A rule without matches is for every request.
    pub fn new(origin: Origin, rules: Vec<Rule>) -> Result<Self, InvalidRoute> {
        Self::judged(origin, Precedence::Specificity, rules)
    }

    /// The same of rules of which the first that matches takes a request. Several may have one name: a rule that
    /// rewrites by prefix is one for each of its prefixes.
    pub fn in_order(origin: Origin, rules: Vec<Rule>) -> Result<Self, InvalidRoute> {
        Self::judged(origin, Precedence::Order, rules)
    }

    fn judged(origin: Origin, precedence: Precedence, rules: Vec<Rule>) -> Result<Self, InvalidRoute> {
        let is_unique = precedence == Precedence::Specificity;
        let mut accepted: Vec<Arc<Rule>> = Vec::with_capacity(rules.len());
        for (number, mut rule) in rules.into_iter().enumerate() {
            if rule.matches.is_empty() {
                rule.matches.push(Match::default());
            }
            let invalid = |why| InvalidRoute { rule: number, why };
            rule.check().map_err(invalid)?;
            if is_unique && rule.name.is_some() && accepted.iter().any(|other| other.name == rule.name) {
                return Err(invalid(InvalidRule::Name));
            }
            accepted.push(Arc::new(rule));
        }
        Ok(Self { origin: Arc::new(origin), precedence, rules: accepted })
    }

    /// Which of its rules takes a request.
    pub fn precedence(&self) -> Precedence {
        self.precedence
    }

    /// Which object it comes from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Its rules, in order.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }
}

/// The object that a route comes from, as far as its precedence depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When it was created, in seconds of Unix time. The oldest takes precedence.
    pub created: u64,
    /// Its name.
    pub key: RouteKey,
}

/// `namespace/name` of a route, which is ordered as that text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey(Label);

impl RouteKey {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: impl Into<Namespace>, name: impl Into<Label>) -> Self {
        Self(format!("{}/{}", namespace.into(), name.into()).into())
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.as_str().split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name in the namespace.
    pub fn name(&self) -> &str {
        self.as_str().split_once('/').map_or("", |(_, name)| name)
    }
}

/// One rule: for which requests, what is done to them, and where they go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique in its route.
    pub name: Option<Label>,
    /// For requests that any of these matches.
    pub matches: Vec<Match>,
    /// What is done to requests and responses.
    pub filters: Filters,
    /// Where requests go, by weight.
    pub backends: Vec<Backend>,
    /// How long they may take.
    pub timeouts: Timeouts,
    /// When they are repeated; `None`: never.
    pub retry: Option<retry::Policy>,
    /// What keeps a client at one endpoint.
    pub session: Option<Session>,
}

impl Rule {
    fn check(&self) -> Result<(), InvalidRule> {
        if self.filters.redirects() && !self.backends.is_empty() {
            return Err(InvalidRule::RedirectAndBackends);
        }
        if self.backends.iter().any(|backend| backend.filters.fault().is_some()) {
            return Err(InvalidRule::FaultOfBackend);
        }
        if self.backends.iter().any(|backend| backend.filters.auth().is_some()) {
            return Err(InvalidRule::AuthOfBackend);
        }
        let of_backends = self.backends.iter().map(|backend| &backend.filters);
        let replaces = of_backends.chain([&self.filters]).any(Filters::replaces_prefix);
        let one_prefix = match self.matches.as_slice() {
            [one] => matches!(one.paths(), Path::Prefix(_)),
            _ => false,
        };
        if replaces && !one_prefix {
            return Err(InvalidRule::NoPrefix);
        }
        match (self.timeouts.request, self.timeouts.backend) {
            (Timeout::After(request), Timeout::After(backend)) if backend > request => {
                Err(InvalidRule::Timeouts)
            }
            (Timeout::Default | Timeout::Never | Timeout::After(_), _) => Ok(()),
        }
    }
}

/// Where some of the requests of a rule go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// To whom.
    pub to: Destination,
    /// Its share among the backends of its rule; 0 gets nothing.
    pub weight: u32,
    /// What is done to its requests and responses alone.
    pub filters: Filters,
}

/// A service to which requests are sent, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// This port of this service.
    Service {
        /// The service.
        service: ServiceKey,
        /// Its port.
        port: u16,
        /// Of its endpoints those of this subset, which a DestinationRule defines; `None`: all.
        subset: Option<Label>,
    },
    /// The reference is invalid. It keeps its share of the requests, which are answered with 500.
    Invalid {
        /// The reason, as the route's `ResolvedRefs` has it.
        reason: Label,
    },
}

/// How long a request may take (GEP-1742).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the client's request to the end of the response, repetitions and all.
    pub request: Timeout,
    /// One attempt at a backend.
    pub backend: Timeout,
}

/// One limit in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timeout {
    /// Nothing is said: that of the mesh.
    #[default]
    Default,
    /// None, which is written `0s`.
    Never,
    /// This long.
    After(Duration),
}

impl From<Option<Duration>> for Timeout {
    fn from(written: Option<Duration>) -> Self {
        match written {
            None => Self::Default,
            Some(Duration::ZERO) => Self::Never,
            Some(limit) => Self::After(limit),
        }
    }
}

/// A route is refused because of one of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("rule {rule}: {why}")]
pub struct InvalidRoute {
    /// Which rule, from 0.
    pub rule: usize,
    /// Why.
    #[source]
    pub why: InvalidRule,
}

/// Why a rule is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidRule {
    /// Another rule of the route has its name.
    #[error("another rule of this route has its name")]
    Name,
    /// It answers every request, and says where requests go.
    #[error("a rule that redirects has no backends")]
    RedirectAndBackends,
    /// A prefix is replaced that no match has.
    #[error("replacePrefixMatch needs exactly one match, with a path of type PathPrefix")]
    NoPrefix,
    /// A fault stands where it would be asked for too late.
    #[error("a fault is one of the whole rule, not of a backend")]
    FaultOfBackend,
    /// Somebody is asked where it would be too late.
    #[error("ExternalAuth is a filter of the whole rule, not of a backend")]
    AuthOfBackend,
    /// An attempt may take longer than all of them.
    #[error("backendRequest is at most request")]
    Timeouts,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(rule: Rule) -> Result<(), InvalidRule> {
        let origin = Origin { created: 0, key: RouteKey::new("shop", "web") };
        Route::new(origin, vec![rule]).map(drop).map_err(|error| error.why)
    }

    fn backend() -> Backend {
        let to = Destination::Service { service: ServiceKey::new("shop", "web"), port: 80, subset: None };
        Backend { to, weight: 1, filters: Filters::default() }
    }

    fn replacing() -> Filters {
        let path = NewPath::prefix("/new").expect("a path");
        Filters::new(vec![Filter::Rewrite(Rewrite { host: None, path: Some(path) })]).expect("filters")
    }

    fn on(path: Result<Path, InvalidPath>) -> Match {
        Match::path(path.expect("a path"))
    }

    #[test]
    fn a_prefix_is_replaced_only_where_exactly_one_match_has_it() {
        let rule = |matches, filters: Filters| Rule { matches, filters, ..Rule::default() };
        assert_eq!(judged(rule(vec![on(Path::prefix("/a"))], replacing())), Ok(()));
        assert_eq!(judged(rule(vec![], replacing())), Ok(()), "a rule without matches has the prefix `/`");
        let two = vec![on(Path::prefix("/a")), on(Path::prefix("/b"))];
        assert_eq!(judged(rule(two, replacing())), Err(InvalidRule::NoPrefix));
        assert_eq!(judged(rule(vec![on(Path::exact("/a"))], replacing())), Err(InvalidRule::NoPrefix));
        let in_backend = Rule {
            matches: vec![on(Path::exact("/a"))],
            backends: vec![Backend { filters: replacing(), ..backend() }],
            ..Rule::default()
        };
        assert_eq!(judged(in_backend), Err(InvalidRule::NoPrefix));
    }

    #[test]
    fn a_redirect_has_no_backends() {
        let filters = Filters::new(vec![Filter::Redirect(Redirect::default())]).expect("filters");
        let rule = Rule { filters, backends: vec![backend()], ..Rule::default() };
        assert_eq!(judged(rule), Err(InvalidRule::RedirectAndBackends));
    }

    #[test]
    fn an_attempt_takes_no_longer_than_the_request() {
        let rule = |request, backend| {
            let seconds = |seconds: Option<u64>| Timeout::from(seconds.map(Duration::from_secs));
            let timeouts = Timeouts { request: seconds(request), backend: seconds(backend) };
            Rule { timeouts, ..Rule::default() }
        };
        assert_eq!(judged(rule(Some(1), Some(2))), Err(InvalidRule::Timeouts));
        assert_eq!(judged(rule(Some(2), Some(2))), Ok(()));
        assert_eq!(judged(rule(Some(0), Some(2))), Ok(()), "0s is no limit");
        assert_eq!(judged(rule(None, Some(2))), Ok(()));
    }

    #[test]
    fn names_are_unique_in_a_route() {
        let named = Rule { name: Some("one".into()), ..Rule::default() };
        let origin = Origin { created: 0, key: RouteKey::new("shop", "web") };
        let error = Route::new(origin, vec![Rule::default(), named.clone(), Rule::default(), named]);
        assert_eq!(error, Err(InvalidRoute { rule: 3, why: InvalidRule::Name }));
        let named = || Rule { name: Some("one".into()), ..Rule::default() };
        let origin = Origin { created: 0, key: RouteKey::new("shop", "web") };
        assert!(Route::in_order(origin, vec![named(), named()]).is_ok(), "order tells them apart");
    }
}
