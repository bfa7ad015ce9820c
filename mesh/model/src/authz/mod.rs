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
//! Before it, the providers of all CUSTOM policies that match are asked ([`judge()`]); one that denies is
//! the end. Where nobody can be asked, such a policy denies ([`check()`]). AUDIT decides nothing. Whom they
//! ask is an [`Authorizer`]; what it says, an [`Answer`].
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
//!
//! # What is asked of a request ([`RequestMatch`])
//!
//! | what is asked | the request has it | it has not | nobody looked at a request |
//! |---|---|---|---|
//! | values | any of them compares | the field fails | an Allow fails, a Deny holds |
//! | `not_` values | none of them compares | the field holds | an Allow fails, a Deny holds |
//!
//! A header that is not there, a claim without token, a principal without issuer or subject: the request
//! has it not. Hosts, server names and names of headers are compared without case, all else with it. A path
//! is compared without its query, and as it is sent on: whoever asks has normalised it before.

mod answer;
mod authorizer;
mod check;
mod condition;
mod matcher;
mod request;
mod rule;
mod template;

use std::sync::Arc;

pub use answer::{
    Answer, Changes, Denial, HeaderChange, InvalidAnswer, LARGEST_DENIAL, MOST_CHANGES, change, may_be_told,
};
pub use authorizer::{
    Authorizer, AuthorizerParts, BodyForm, CHECK_TIMEOUT, CheckProtocol, GrpcCheck, HttpCheck,
    InvalidAuthorizer, LARGEST_SHARE, LONGEST_CHECK, Longer, MOST_HEADERS, OnFailure, SharedBody,
};
pub use check::{Ask, By, Facts, Opinion, Ruling, Verdict, audited, check, dry_run, explain, judge};
pub use condition::{Attribute, Condition, InvalidAttribute};
pub use matcher::{AccountMatch, Text};
pub use request::{PathMatch, Request, RequestMatch, Seen};
use rule::InDoubt;
pub use rule::{Clause, Match, Rule};
use serde::Serialize;
pub use template::{InvalidTemplate, PathTemplate};

use crate::name::{Label, PolicyKey};

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
            Content::Custom { .. } | Content::Audit { .. } | Content::Undecodable { .. } => false,
        }
    }

    /// Whether it asks for the paths of requests, so that it matters how an application reads them.
    pub fn compares_paths(&self) -> bool {
        let rules = match &self.content {
            Content::Rules { rules, .. } | Content::Custom { rules, .. } | Content::Audit { rules } => rules,
            Content::Undecodable { .. } => return false,
        };
        let matches = rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
        matches
            .filter_map(|one| one.request.as_ref())
            .any(|request| !request.paths.is_empty() || !request.not_paths.is_empty())
    }

    /// Why it denies: it could not be understood.
    pub fn broken(&self) -> Option<&str> {
        match &self.content {
            Content::Undecodable { reason } => Some(reason),
            Content::Rules { .. } | Content::Custom { .. } | Content::Audit { .. } => None,
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
    /// About requests that match, somebody else is asked. Only waypoints can.
    Custom {
        /// Whom, by the name in the configuration of the mesh.
        provider: Label,
        /// Who that is; `None`: nobody knows him, and what matches is denied.
        authorizer: Option<Arc<Authorizer>>,
        /// Any may match.
        rules: Vec<Rule>,
    },
    /// Requests that match are written down. Only waypoints do.
    Audit {
        /// Any may match.
        rules: Vec<Rule>,
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
