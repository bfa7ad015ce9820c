//! How the endpoints of a service are used at a waypoint: what a DestinationRule says of it.
//!
//! | question | answered by |
//! |---|---|
//! | which of its endpoints may be asked at all? | [`Traffic::subset`] |
//! | by which rules is one of them chosen? | [`Traffic::policy`], then [`TrafficPolicy::balancing`] |
//! | and where the same client is to meet the same endpoint? | [`HashOn::key`], then [`Maglev`] |
//! | how much is sent at once? | [`TrafficPolicy::connections`] |
//! | when is one of them left alone for a while? | [`TrafficPolicy::outliers`] |
//! | and when because the others do better? | [`Window::count`], by a [`SuccessRate`] |
//!
//! Source: `networking/v1/destination_rule.proto` of Istio's API, with its defaults where a rule is there, and our own
//! where there is none.

mod affinity;
mod maglev;
mod outliers;
mod rates;
mod warmup;

use std::{sync::Arc, time::Duration};

pub(crate) use affinity::cookie;
pub use affinity::{HashOn, Key};
pub use maglev::{Maglev, hash};
pub use outliers::{FailureKind, Outliers, Run};
pub use rates::{Compared, SuccessRate, Tally, Window};
pub use warmup::Warmup;

use crate::{
    name::{Label, Uid},
    service::LoadBalancing,
};

/// What is said of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How its endpoints are used; the first that fits counts ([`Traffic::policy`]).
    pub policies: Vec<PolicyAt>,
    /// The subsets that destinations may name.
    pub subsets: Vec<Subset>,
}

/// A policy, and where it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyAt {
    /// In this subset; `None`: in the service.
    pub subset: Option<Label>,
    /// At this port of the service; `None`: at every one.
    pub port: Option<u16>,
    /// What holds there.
    pub policy: Arc<TrafficPolicy>,
}

/// Some of the endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Its name.
    pub name: Label,
    /// Which workloads may be among them.
    pub members: Members,
}

/// Which workloads may be among the endpoints of a subset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// All that the service has.
    All,
    /// These, in order.
    These(Arc<[Uid]>),
}

impl Subset {
    /// A subset of these workloads, in any order.
    pub fn new(name: Label, mut workloads: Vec<Uid>) -> Self {
        workloads.sort_unstable();
        workloads.dedup();
        Self { name, members: Members::These(workloads.into()) }
    }

    /// A subset of all endpoints that the service has, whichever they are.
    pub fn of_all(name: Label) -> Self {
        Self { name, members: Members::All }
    }
}

impl Members {
    /// Whether `uid` may be among them.
    pub fn admit(&self, uid: &Uid) -> bool {
        match self {
            Self::All => true,
            Self::These(workloads) => workloads.binary_search(uid).is_ok(),
        }
    }

    /// Whether it is the same list, or both are all: a look at the pointers, cheap for each request.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, Self::All) => true,
            (Self::These(one), Self::These(other)) => Arc::ptr_eq(one, other),
            (Self::All, Self::These(_)) | (Self::These(_), Self::All) => false,
        }
    }
}

impl Traffic {
    /// What holds in `subset` at `port`: what is said of the two together, of the subset, of the port, of the service.
    /// `None`: nothing is said.
    pub fn policy(&self, subset: Option<&Label>, port: u16) -> Option<&Arc<TrafficPolicy>> {
        let at = |subset: Option<&Label>, port: Option<u16>| {
            let mut policies = self.policies.iter();
            policies.find(|one| one.subset.as_ref() == subset && one.port == port).map(|one| &one.policy)
        };
        let of_subset = subset.and_then(|_| at(subset, Some(port)).or_else(|| at(subset, None)));
        of_subset.or_else(|| at(None, Some(port))).or_else(|| at(None, None))
    }

    /// The subset of this name; `None`: nobody defines it.
    pub fn subset(&self, name: &Label) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == *name)
    }
}

/// How the endpoints of a service are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// Which one is asked.
    pub balancing: Balancing,
    /// How much is sent at once.
    pub connections: Connections,
    /// When one of them gets nothing for a while.
    pub outliers: Outliers,
    /// Whether they are asked through a tunnel or not at all.
    pub needs_tunnel: bool,
    /// Whether a connection that is not looked into begins with a PROXY header, which says who calls whom.
    pub introduces: bool,
}

/// Which endpoint is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    /// By which rule.
    pub algorithm: Algorithm,
    /// What an endpoint should have in common with the waypoint; `None`: as the service says.
    pub preferences: Option<LoadBalancing>,
    /// Which region stands in for which, as (region of the waypoint, region of the endpoint).
    pub regions: Vec<(Label, Label)>,
    /// How one that is new gets its share.
    pub warmup: Option<Warmup>,
}

/// By which rule an endpoint is chosen among those that may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Of two that are drawn, that at which a request waits for less.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// Requests of one key go to the same endpoint, as long as it is there.
    Hash(HashOn),
}

/// How much is sent at once to a service, by one replica of a waypoint. `None`: no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Connections that carry something: HTTP/1.1 exchanges, and streams that are not looked into.
    pub most: Option<u32>,
    /// How many requests wait for one of them.
    pub waiting: Option<u32>,
    /// Requests under way, over whichever connections.
    pub requests: Option<u32>,
    /// Repetitions under way.
    pub retries: Option<u32>,
    /// After how many requests an HTTP connection is not used again.
    pub requests_each: Option<u32>,
    /// How long connecting may take.
    pub connect: Option<Duration>,
    /// How long an HTTP connection is kept that nobody uses.
    pub idle: Option<Duration>,
}

impl Connections {
    /// Whether anything is counted.
    pub fn are_counted(&self) -> bool {
        let counted = [self.most, self.waiting, self.requests, self.retries];
        counted.iter().any(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_policy_holds() {
        let at = |subset: Option<&str>, port, most| PolicyAt {
            subset: subset.map(Label::from),
            port,
            policy: Arc::new(TrafficPolicy {
                connections: Connections { most: Some(most), ..Connections::default() },
                ..TrafficPolicy::default()
            }),
        };
        let all = [
            at(None, None, 1),
            at(None, Some(80), 2),
            at(Some("v1"), None, 3),
            at(Some("v1"), Some(80), 4),
            at(Some("v2"), Some(81), 5),
        ];
        let most = |policies: &[PolicyAt], subset: Option<&str>, port| {
            let traffic = Traffic { policies: policies.to_vec(), subsets: Vec::new() };
            traffic.policy(subset.map(Label::from).as_ref(), port)?.connections.most
        };
        let table = [
            (None, 81, 1),
            (None, 80, 2),
            (Some("v1"), 81, 3),
            (Some("v1"), 80, 4),
            (Some("v2"), 81, 5),
            (Some("v2"), 80, 2),
            (Some("v2"), 82, 1),
            (Some("v3"), 82, 1),
        ];
        for (subset, port, expected) in table {
            assert_eq!(most(&all, subset, port), Some(expected), "{subset:?} {port}");
        }
        assert_eq!(most(&all[3..], None, 80), None, "what is said of a subset is not said of the service");
        assert_eq!(most(&[], Some("v1"), 80), None);
    }
}
