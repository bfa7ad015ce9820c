//! What an authorization policy is, and exactly what it allows.
//!
//! # Which policies judge a connection
//! Those of the destination workload's namespace, the global ones, and those that the workload
//! names. Dry-run policies are judged beside, for the record, and never count.
//!
//! # Truth table (protocols 6.2)
//!
//! | an undecodable policy applies | a DENY matches | ALLOW policies exist | an ALLOW matches | verdict |
//! |---|---|---|---|---|
//! | yes | – | – | – | deny |
//! | no | yes | – | – | deny |
//! | no | no | no | – | allow |
//! | no | no | yes | yes | allow |
//! | no | no | yes | no | deny |
//!
//! # When a rule matches (protocols 6.3)
//!
//! | level | its parts | when it has none |
//! |---|---|---|
//! | policy | any rule | never matches |
//! | rule | all clauses | matches |
//! | clause | any match | matches |
//! | match | all fields | does not match |
//! | field | any value; in a `not_` field: no value | unconstrained |

mod check;
mod matcher;
mod rule;

pub use check::{By, Facts, Verdict, check, dry_run};
pub use matcher::{AccountMatch, Text};
pub use rule::{Clause, Match, Rule};
use serde::Serialize;

use crate::name::PolicyKey;

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// `namespace/name`.
    pub key: PolicyKey,
    /// Whom it protects.
    pub scope: Scope,
    /// What it says of them.
    pub content: Content,
}

impl Policy {
    /// The stand-in for a policy that could not be understood: it denies in its scope.
    ///
    /// `scope` is `None` when not even that could be read: then it denies everything that a policy
    /// of that name could have been meant for, its whole namespace.
    pub fn undecodable(key: PolicyKey, scope: Option<Scope>, reason: String) -> Self {
        Self { key, scope: scope.unwrap_or(Scope::Namespace), content: Content::Undecodable { reason } }
    }

    /// Whether it is judged for the record only.
    pub fn is_dry_run(&self) -> bool {
        match &self.content {
            Content::Rules { dry_run, .. } => *dry_run,
            Content::Undecodable { .. } => false,
        }
    }
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// Connections that match are allowed or denied.
    Rules {
        /// Which of the two.
        action: Action,
        /// Any may match.
        rules: Vec<Rule>,
        /// Judged for the record only.
        dry_run: bool,
    },
    /// It was received, and could not be understood: unknown means deny.
    Undecodable {
        /// What was wrong with it.
        reason: String,
    },
}

/// Whom a policy protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Scope {
    /// Every workload.
    Global,
    /// The workloads of its namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a policy does with connections that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Action {
    /// Lets them in, and by its existence keeps others out.
    Allow,
    /// Keeps them out.
    Deny,
}
