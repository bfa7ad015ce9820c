//! The nesting of a policy, each level with its name.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{AccountMatch, Facts, RequestMatch, Text};

/// What is said of a request where nobody has looked at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InDoubt {
    /// It is as asked: so a Deny asks.
    Matches,
    /// It is not: so an Allow asks.
    DoesNotMatch,
}

impl InDoubt {
    pub(super) fn answer(self) -> bool {
        self == Self::Matches
    }
}

/// All clauses must match; none to match means yes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// All of these.
    pub clauses: Vec<Clause>,
}

impl Rule {
    pub(super) fn matches(&self, facts: &Facts<'_>, in_doubt: InDoubt) -> bool {
        self.clauses.iter().all(|clause| clause.matches(facts, in_doubt))
    }
}

/// Any match must match; none to match means yes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// Any of these.
    pub matches: Vec<Match>,
}

impl Clause {
    fn matches(&self, facts: &Facts<'_>, in_doubt: InDoubt) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.matches(facts, in_doubt))
    }
}

/// All fields must match; a match with no field at all does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// The peer's namespace.
    pub namespaces: Vec<Text>,
    /// Not the peer's namespace.
    pub not_namespaces: Vec<Text>,
    /// The peer's service account.
    pub service_accounts: Vec<AccountMatch>,
    /// Not the peer's service account.
    pub not_service_accounts: Vec<AccountMatch>,
    /// The peer's SPIFFE URI without its scheme.
    pub principals: Vec<Text>,
    /// Not the peer's SPIFFE URI.
    pub not_principals: Vec<Text>,
    /// The peer's address.
    pub source_ips: Vec<IpNet>,
    /// Not the peer's address.
    pub not_source_ips: Vec<IpNet>,
    /// The application's address.
    pub destination_ips: Vec<IpNet>,
    /// Not the application's address.
    pub not_destination_ips: Vec<IpNet>,
    /// The application's port.
    pub destination_ports: Vec<u16>,
    /// Not the application's port.
    pub not_destination_ports: Vec<u16>,
    /// What only a waypoint can compare. In a box: at a tunnel there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<RequestMatch>>,
}

impl Match {
    /// Whether no field says anything.
    pub fn is_empty(&self) -> bool {
        let Self { namespaces, not_namespaces, principals, not_principals, .. } = self;
        let Self { service_accounts, not_service_accounts, source_ips, not_source_ips, .. } = self;
        let Self { destination_ips, not_destination_ips, destination_ports, not_destination_ports, .. } =
            self;
        let texts = [namespaces, not_namespaces, principals, not_principals];
        let ranges = [source_ips, not_source_ips, destination_ips, not_destination_ips];
        texts.iter().all(|list| list.is_empty())
            && ranges.iter().all(|list| list.is_empty())
            && [service_accounts, not_service_accounts].iter().all(|list| list.is_empty())
            && [destination_ports, not_destination_ports].iter().all(|list| list.is_empty())
            && self.request.as_ref().is_none_or(|request| request.is_empty())
    }

    fn matches(&self, facts: &Facts<'_>, in_doubt: InDoubt) -> bool {
        let peer = facts.peer;
        let namespace = peer.map_or("", |peer| peer.namespace.as_str());
        !self.is_empty()
            && field(&self.namespaces, &self.not_namespaces, |text| text.matches(namespace))
            && field(&self.service_accounts, &self.not_service_accounts, |account| account.matches(peer))
            && field(&self.principals, &self.not_principals, |text| text.matches_principal(peer))
            && field(&self.source_ips, &self.not_source_ips, contains(facts.source))
            && field(&self.destination_ips, &self.not_destination_ips, contains(facts.destination.ip()))
            && field(&self.destination_ports, &self.not_destination_ports, |port| {
                *port == facts.destination.port()
            })
            && self.request.as_ref().is_none_or(|request| request.matches(facts.seen, in_doubt))
    }
}

/// One field and its negation: empty lists do not constrain.
pub(super) fn field<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

fn contains(ip: IpAddr) -> impl Fn(&IpNet) -> bool {
    move |range| range.contains(&ip)
}
