//! How a pure function says that it lacks a fact.

use crate::{
    address::NetworkAddress,
    name::{ServiceKey, Uid},
};

/// A decision, or the fact without which it cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Decided.
    Known(T),
    /// Undecided until this is known, or known not to exist.
    Need(Missing),
}

impl<T> Answer<T> {
    /// The same answer about something else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Known(value) => Answer::Known(f(value)),
            Self::Need(missing) => Answer::Need(missing),
        }
    }
}

/// A fact that the control plane may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// Whatever is at this address.
    Address(NetworkAddress),
    /// The service of this name.
    Service(ServiceKey),
    /// The workload of this key.
    Workload(Uid),
}

impl Missing {
    /// The resource name by which it is asked for (protocols 1.4).
    pub fn resource_name(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Service(key) => key.to_string(),
            Self::Workload(uid) => uid.to_string(),
        }
    }
}

/// What has been asked for already in the course of one decision.
///
/// A fact that is absent although it was asked for does not exist, and the decision is made without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The snapshot is complete: whatever is not in it does not exist.
    Everything,
    /// Only these.
    These(Vec<Missing>),
}

impl Asked {
    /// `Some(missing)` when it has not been asked for yet.
    pub fn yet(&self, missing: impl FnOnce() -> Missing) -> Option<Missing> {
        match self {
            Self::Everything => None,
            Self::These(asked) => Some(missing()).filter(|missing| !asked.contains(missing)),
        }
    }
}
