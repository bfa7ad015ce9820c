//! How many requests a waypoint takes: what a RateLimitPolicy says, and what it decides.
//!
//! | question | answered by |
//! |---|---|
//! | which limits count a request? | [`RateLimit::counts`], then [`LocalLimit::counts`] |
//! | with which others is it counted? | [`LocalLimit::key`] |
//! | is there room for it? | [`Table::take`], of all its local limits at once |
//! | what is a limit service asked? | [`GlobalLimit::descriptors_of`] |
//!
//! Limits add up: a request needs room in every one that counts it. A limit is no policy of security: who is denied
//! never comes here, and who comes here may be let in.

mod bucket;
mod key;
mod table;

use std::{sync::Arc, time::Duration};

use http::{HeaderName, request::Parts};
use thiserror::Error;

pub use self::{
    bucket::{Bucket, InvalidRate, Rate},
    key::{Attribute, Caller, Key},
    table::{Bounds, Counter, Excess, Lookup, Standing, Table, Taken},
};
use crate::{
    name::{Label, PolicyKey, ServiceKey},
    route::{Destination, Match, Origin, RouteKey, Rule},
};

/// What one RateLimitPolicy says of one of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The policy.
    pub policy: PolicyKey,
    /// Which requests it is for.
    pub scope: Scope,
    /// What the waypoint counts itself.
    pub local: Vec<Arc<LocalLimit>>,
    /// What somebody else counts.
    pub global: Option<Arc<GlobalLimit>>,
}

/// Which requests a limit is for. Each scope counts for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All that come to the waypoint.
    Waypoint,
    /// Those to the service.
    Service {
        /// To these of its ports; empty: to any.
        ports: Box<[u16]>,
    },
    /// Those that take a route.
    Route {
        /// Which.
        route: RouteKey,
        /// Of its rules this one; `None`: all.
        rule: Option<Label>,
        /// The ports at which it applies: there may be a route of the other kind with its name.
        ports: Box<[u16]>,
    },
}

/// Where a request goes, as far as limits ask.
#[derive(Clone, Copy, Debug)]
pub struct Going<'a> {
    /// The port that it is for.
    pub port: u16,
    /// The rule that it takes; `None`: there are no routes.
    pub by: Option<(&'a Origin, &'a Rule)>,
}

impl RateLimit {
    /// Whether a request counts here.
    pub fn counts(&self, going: &Going<'_>) -> bool {
        match &self.scope {
            Scope::Waypoint => true,
            Scope::Service { ports } => ports.is_empty() || ports.contains(&going.port),
            Scope::Route { route, rule, ports } => going.by.is_some_and(|(origin, taken)| {
                origin.key == *route
                    && ports.contains(&going.port)
                    && rule.as_ref().is_none_or(|rule| taken.name.as_ref() == Some(rule))
            }),
        }
    }

    /// What its local limits are counted under, in their order, for requests to `service`.
    pub fn counters(&self, service: &ServiceKey) -> Vec<Arc<Counter>> {
        let service = match &self.scope {
            Scope::Service { .. } => Some(service.clone()),
            // Of several services together: what they have in common is limited.
            Scope::Waypoint | Scope::Route { .. } => None,
        };
        let counter = |(place, limit): (usize, &Arc<LocalLimit>)| {
            Arc::new(Counter::new(self, place, limit, service.clone()))
        };
        self.local.iter().enumerate().map(counter).collect()
    }
}

/// A limit that each waypoint counts for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLimit {
    rate: Rate,
    by: Box<[Attribute]>,
    matches: Vec<Match>,
}

/// The most attributes by which a limit counts: more make no two requests count together.
pub const ATTRIBUTES: usize = 4;
/// The most matches of a limit: as many as a rule of a route has.
pub const MATCHES: usize = 64;

impl LocalLimit {
    /// `rate` for each value of `by`, of requests that any of `matches` matches, or of all.
    pub fn new(rate: Rate, by: Vec<Attribute>, matches: Vec<Match>) -> Result<Self, InvalidLimit> {
        if by.len() > ATTRIBUTES {
            return Err(InvalidLimit::Attributes);
        }
        if matches.len() > MATCHES {
            return Err(InvalidLimit::Matches);
        }
        Ok(Self { rate, by: by.into(), matches })
    }

    /// How many, and how fast.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// By what requests are told apart.
    pub fn by(&self) -> &[Attribute] {
        &self.by
    }

    /// For which requests; none at all is every one.
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// Whether a request counts here.
    pub fn counts(&self, head: &Parts) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.matches(head))
    }

    /// What a request is counted with: those of the same key.
    pub fn key(&self, caller: &Caller<'_>, head: &Parts) -> Key {
        Key::of(&self.by, caller, head)
    }
}

/// A limit that a service counts for all who ask it (`envoy.service.ratelimit.v3`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalLimit {
    to: Destination,
    domain: Box<str>,
    timeout: Duration,
    on_error: OnError,
    descriptors: Vec<Vec<Entry>>,
}

/// What becomes of a request when nobody says whether there is room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is taken.
    Take,
    /// It is refused.
    Refuse,
}

/// One part of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is called.
    pub key: Box<str>,
    /// What it says.
    pub value: EntryValue,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryValue {
    /// Always this.
    Fixed(Box<str>),
    /// What the request has.
    Of(Attribute),
}

/// The most descriptors of a limit, and entries of a descriptor.
pub const DESCRIPTORS: usize = 16;
/// The longest text of a limit: a domain, a key, a fixed value.
pub const TEXT: usize = 256;
/// How long may be waited for a limit service: every request waits.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(10);

impl GlobalLimit {
    /// Asks `to` about each of `descriptors`.
    pub fn new(
        to: Destination,
        domain: &str,
        timeout: Duration,
        on_error: OnError,
        descriptors: Vec<Vec<Entry>>,
    ) -> Result<Self, InvalidLimit> {
        let is_text = |text: &str| !text.is_empty() && text.len() <= TEXT;
        if !is_text(domain) {
            return Err(InvalidLimit::Domain);
        }
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            return Err(InvalidLimit::Timeout);
        }
        if descriptors.is_empty() || descriptors.len() > DESCRIPTORS {
            return Err(InvalidLimit::Descriptors);
        }
        for (at, entries) in descriptors.iter().enumerate() {
            if entries.is_empty() || entries.len() > DESCRIPTORS {
                return Err(InvalidLimit::Entries(at));
            }
            let wrong = entries.iter().position(|entry| {
                let fixed = match &entry.value {
                    EntryValue::Fixed(text) => is_text(text),
                    EntryValue::Of(_) => true,
                };
                !fixed || !is_text(&entry.key)
            });
            if let Some(entry) = wrong {
                return Err(InvalidLimit::Entry(at, entry));
            }
        }
        Ok(Self { to, domain: domain.into(), timeout, on_error, descriptors })
    }

    /// The same, asked of `to`.
    #[must_use]
    pub fn asked_of(self, to: Destination) -> Self {
        Self { to, ..self }
    }

    /// Who is asked.
    pub fn to(&self) -> &Destination {
        &self.to
    }

    /// In which of its domains.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// How long its answer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What becomes of a request if there is none.
    pub fn on_error(&self) -> OnError {
        self.on_error
    }

    /// What it is asked about, as written.
    pub fn descriptors(&self) -> &[Vec<Entry>] {
        &self.descriptors
    }

    /// What it is asked about one request, as pairs of key and value. A descriptor that has an entry for which the
    /// request has no value is left out, as Envoy does; if all are, nobody is asked.
    pub fn descriptors_of(&self, caller: &Caller<'_>, head: &Parts) -> Vec<Vec<(&str, String)>> {
        let value = |entry: &Entry| match &entry.value {
            EntryValue::Fixed(text) => Some(text.to_string()),
            EntryValue::Of(attribute) => attribute.text(caller, head),
        };
        let descriptors = self.descriptors.iter();
        let asked = descriptors
            .filter_map(|entries| entries.iter().map(|one| Some((&*one.key, value(one)?))).collect());
        asked.collect()
    }
}

/// Why a limit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidLimit {
    /// It counts by too much.
    #[error("has more than {ATTRIBUTES} attributes")]
    Attributes,
    /// It has too many matches.
    #[error("has more than {MATCHES} matches")]
    Matches,
    /// It has no domain, or too long a one.
    #[error("has no text of 1 to {TEXT} bytes")]
    Domain,
    /// It waits not at all, or too long.
    #[error("is not between 1ms and {LONGEST_TIMEOUT:?}")]
    Timeout,
    /// It asks about nothing, or too much.
    #[error("has not 1 to {DESCRIPTORS} descriptors")]
    Descriptors,
    /// A descriptor, from 0, has no entries, or too many.
    #[error("has not 1 to {DESCRIPTORS} entries")]
    Entries(usize),
    /// An entry of a descriptor, each from 0, has no key or value, or too long a one.
    #[error("has no key, or no value, of 1 to {TEXT} bytes")]
    Entry(usize, usize),
}

/// A header by which requests are counted. Those of one connection are not the request's.
pub fn header(name: &str) -> Option<HeaderName> {
    HeaderName::try_from(name).ok()
}

#[cfg(test)]
mod tests;
