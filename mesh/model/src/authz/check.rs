//! Judges one connection, or one request of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Action, Authorizer, Content, Policy, Rule, Seen, rule::InDoubt};
use crate::{
    identity::Identity,
    name::{Label, PolicyKey},
};

/// What is known of a connection when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who calls: the identity of its certificate, or none for plain text.
    pub peer: Option<&'a Identity>,
    /// Where from: the address of the TCP peer.
    pub source: IpAddr,
    /// The application's address and port, after translation.
    pub destination: SocketAddr,
    /// What was seen beyond that; nothing at a tunnel.
    pub seen: Option<&'a Seen<'a>>,
}

/// May this connection be? Total: any policies, any facts. See the truth table above this module.
///
/// Where nobody can be asked, a CUSTOM policy that matches denies.
pub fn check<'p>(policies: impl IntoIterator<Item = &'p Policy>, facts: &Facts<'_>) -> Verdict {
    let Ruling { ask, then } = judge(policies, facts);
    match ask.into_iter().next() {
        Some(Ask { policy, .. }) if then.is_allowed() => Verdict::Deny(By::Policy(policy)),
        Some(_) | None => then,
    }
}

/// May this request be, and who is asked about it first?
pub fn judge<'p>(policies: impl IntoIterator<Item = &'p Policy>, facts: &Facts<'_>) -> Ruling {
    let mut ask: Vec<Ask> = Vec::new();
    let mut allowed_by = None;
    let mut allow_exists = false;
    let mut denied_by = None;
    for policy in policies {
        match &policy.content {
            Content::Undecodable { .. } => {
                let then = Verdict::Deny(By::Undecodable(policy.key.clone()));
                return Ruling { ask: Vec::new(), then };
            }
            Content::Rules { dry_run: true, .. } | Content::Audit { .. } => {}
            Content::Rules { action: Action::Deny, rules, dry_run: false } => {
                if denied_by.is_none() && any(rules, facts, InDoubt::Matches) {
                    denied_by = Some(&policy.key);
                }
            }
            Content::Rules { action: Action::Allow, rules, dry_run: false } => {
                allow_exists = true;
                if allowed_by.is_none() && any(rules, facts, InDoubt::DoesNotMatch) {
                    allowed_by = Some(&policy.key);
                }
            }
            Content::Custom { provider, authorizer, rules } => {
                let is_new = !ask.iter().any(|one| one.provider == *provider);
                if is_new && any(rules, facts, InDoubt::Matches) {
                    ask.push(Ask {
                        provider: provider.clone(),
                        authorizer: authorizer.clone(),
                        policy: policy.key.clone(),
                    });
                }
            }
        }
    }
    let then = match (denied_by, allow_exists, allowed_by) {
        (Some(key), _, _) => Verdict::Deny(By::Policy(key.clone())),
        (None, false, _) => Verdict::Allow(By::NoAllowPolicy),
        (None, true, Some(key)) => Verdict::Allow(By::Policy(key.clone())),
        (None, true, None) => Verdict::Deny(By::NoneAllowed),
    };
    Ruling { ask, then }
}

fn any(rules: &[Rule], facts: &Facts<'_>, in_doubt: InDoubt) -> bool {
    rules.iter().any(|rule| rule.matches(facts, in_doubt))
}

/// The dry-run policies that match, with what they would have done.
pub fn dry_run<'p, 'f>(
    policies: impl IntoIterator<Item = &'p Policy> + 'f,
    facts: &'f Facts<'_>,
) -> impl Iterator<Item = (&'p PolicyKey, Action)> + 'f
where
    'p: 'f,
{
    policies.into_iter().filter_map(move |policy| match &policy.content {
        Content::Rules { action, rules, dry_run: true } => {
            let in_doubt = match action {
                Action::Allow => InDoubt::DoesNotMatch,
                Action::Deny => InDoubt::Matches,
            };
            any(rules, facts, in_doubt).then_some((&policy.key, *action))
        }
        Content::Rules { dry_run: false, .. }
        | Content::Custom { .. }
        | Content::Audit { .. }
        | Content::Undecodable { .. } => None,
    })
}

/// The AUDIT policies that match: they want it written down.
pub fn audited<'p, 'f>(
    policies: impl IntoIterator<Item = &'p Policy> + 'f,
    facts: &'f Facts<'_>,
) -> impl Iterator<Item = &'p PolicyKey> + 'f
where
    'p: 'f,
{
    policies.into_iter().filter_map(move |policy| match &policy.content {
        Content::Audit { rules } => any(rules, facts, InDoubt::Matches).then_some(&policy.key),
        Content::Rules { .. } | Content::Custom { .. } | Content::Undecodable { .. } => None,
    })
}

/// What each policy says of a request, for whoever wants to know more than the verdict. Lazy, and never part of one.
pub fn explain<'p, 'f>(
    policies: impl IntoIterator<Item = &'p Policy> + 'f,
    facts: &'f Facts<'_>,
) -> impl Iterator<Item = Opinion<'p>> + 'f
where
    'p: 'f,
{
    policies.into_iter().map(move |policy| {
        let (says, in_doubt, rules) = match &policy.content {
            Content::Rules { action: Action::Allow, rules, .. } => ("ALLOW", InDoubt::DoesNotMatch, rules),
            Content::Rules { action: Action::Deny, rules, .. } => ("DENY", InDoubt::Matches, rules),
            Content::Custom { rules, .. } => ("CUSTOM", InDoubt::Matches, rules),
            Content::Audit { rules } => ("AUDIT", InDoubt::Matches, rules),
            Content::Undecodable { .. } => {
                return Opinion { policy: &policy.key, says: "undecodable", matches: true, dry_run: false };
            }
        };
        let matches = any(rules, facts, in_doubt);
        Opinion { policy: &policy.key, says, matches, dry_run: policy.is_dry_run() }
    })
}

/// What one policy says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion<'p> {
    /// Which.
    pub policy: &'p PolicyKey,
    /// Its action, as it is written; `undecodable`: it denies because it could not be understood.
    pub says: &'static str,
    /// Whether one of its rules matches.
    pub matches: bool,
    /// Whether it is judged for the record only.
    pub dry_run: bool,
}

/// What is to be done with a request: ask, and if nobody denies, follow the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Who is asked first; one that denies is the end.
    pub ask: Vec<Ask>,
    /// What all other policies say.
    pub then: Verdict,
}

/// An external authorizer that has a say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its name in the configuration of the mesh.
    pub provider: Label,
    /// Who it is; `None`: nobody knows.
    pub authorizer: Option<Arc<Authorizer>>,
    /// The CUSTOM policy that matched, the first of several.
    pub policy: PolicyKey,
}

/// The outcome, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection may be.
    Allow(By),
    /// It may not.
    Deny(By),
}

impl Verdict {
    /// Whether the connection may be.
    pub fn is_allowed(&self) -> bool {
        match self {
            Self::Allow(_) => true,
            Self::Deny(_) => false,
        }
    }
}

/// Why a verdict is as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// This policy matched.
    Policy(PolicyKey),
    /// No policy restricts who may connect.
    NoAllowPolicy,
    /// Policies restrict who may connect, and none lets this one in.
    NoneAllowed,
    /// This policy could not be understood, and so denies.
    Undecodable(PolicyKey),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(key) => write!(f, "{key}"),
            Self::NoAllowPolicy => f.write_str("no policy applies"),
            Self::NoneAllowed => f.write_str("allow policies exist, but none allowed"),
            Self::Undecodable(key) => write!(f, "{key} (it could not be decoded)"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(By::Policy(key)) => write!(f, "allowed by: {key}"),
            Self::Allow(by) => write!(f, "allowed: {by}"),
            Self::Deny(By::Policy(key)) => write!(f, "explicitly denied by: {key}"),
            Self::Deny(By::NoneAllowed) => By::NoneAllowed.fmt(f),
            Self::Deny(by) => write!(f, "denied by: {by}"),
        }
    }
}
