//! AuthorizationPolicy: for the tunnels the L4 part of each rule, with a list of what had to be left out of it; for a
//! waypoint all of it.

use ambit_api::authorization_policy as api;
use ambit_api::labels;
use ambit_model::{
    authz::Action,
    name::{Label, Namespace},
};

use super::authorization_rule::{Judge, ParsedRule, parse_rule};
use super::peer_authentication::{bare_meta, refuse_unknown};
use super::{Attachment, Meta, Rejection, Selector, Written, parse_bool};

/// What the mesh needs of an AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Whom it is for.
    pub attachment: Attachment,
    /// What it says.
    pub content: Content,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Connections or requests that match are allowed or denied.
    Rules {
        /// Which of the two.
        action: Action,
        /// Any may match.
        rules: Vec<ParsedRule>,
        /// Judged for the record only.
        dry_run: bool,
    },
    /// About requests that match somebody else is asked, which no tunnel can.
    Custom {
        /// Whom. It may be empty in a policy that is for tunnels, where it does nothing.
        provider: Label,
        /// Any may match.
        rules: Vec<ParsedRule>,
    },
    /// Requests that match are written down, which no tunnel does.
    Audit {
        /// Any may match.
        rules: Vec<ParsedRule>,
    },
    /// It could not be understood, and was never understood before.
    Undecodable(String),
}

impl AuthorizationPolicy {
    pub(super) fn parse(namespace: Namespace, object: api::AuthorizationPolicy) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        refuse_unknown("spec", &spec.unknown)?;
        let attachment =
            Attachment::parse(&meta.name.namespace, spec.selector, spec.target_ref, spec.target_refs)?;
        let judge = match attachment {
            Attachment::Targets(_) => Judge::Waypoint,
            Attachment::Namespace | Attachment::Selected(_) => Judge::Tunnel,
        };
        let dry_run = parse_dry_run(&meta)?;
        let mut rules = Vec::new();
        for (index, rule) in spec.rules.iter().enumerate() {
            rules.push(parse_rule(&format!("spec.rules[{index}]"), rule, &meta.name.namespace, judge)?);
        }
        let provider = spec.provider.unwrap_or_default().name;
        if judge == Judge::Waypoint {
            refuse_misuse(spec.action, &provider, dry_run)?;
        }
        let content = match spec.action {
            api::Action::Allow => Content::Rules { action: Action::Allow, rules, dry_run },
            api::Action::Deny => Content::Rules { action: Action::Deny, rules, dry_run },
            api::Action::Audit => Content::Audit { rules },
            api::Action::Custom => Content::Custom { provider: provider.into(), rules },
        };
        Ok(Self { attachment, content, meta })
    }

    /// What one that cannot be understood is taken for: a denial, as far as it can reach.
    pub(super) fn undecodable(written: &Written<'_>, reason: String) -> Self {
        Self {
            meta: bare_meta(written),
            attachment: Attachment::readable(written),
            content: Content::Undecodable(reason),
        }
    }

    /// The selector, if it has one.
    pub fn selector(&self) -> Option<&Selector> {
        self.attachment.selector()
    }
}

fn dry_run_field() -> String {
    format!("metadata.annotations[{}]", labels::DRY_RUN)
}

fn parse_dry_run(meta: &Meta) -> Result<bool, Rejection> {
    let Some(text) = meta.annotations.get(labels::DRY_RUN) else { return Ok(false) };
    parse_bool(text).ok_or_else(|| {
        let what = format!("{text:?} is not a truth value");
        Rejection::new(dry_run_field(), what, "write \"true\" or \"false\"")
    })
}

/// What would be passed over without a word at a waypoint.
fn refuse_misuse(action: api::Action, provider: &str, dry_run: bool) -> Result<(), Rejection> {
    let field = "spec.provider.name";
    match action {
        api::Action::Custom if provider.is_empty() => {
            Err(Rejection::new(field, "is missing", "name whom CUSTOM asks"))
        }
        api::Action::Custom | api::Action::Audit if dry_run => {
            let what = "only ALLOW and DENY can be tried out";
            Err(Rejection::new(dry_run_field(), what, "remove it, or choose ALLOW or DENY"))
        }
        api::Action::Allow | api::Action::Deny | api::Action::Audit if !provider.is_empty() => {
            let remedy = "remove it, or choose action CUSTOM";
            Err(Rejection::new(field, "is asked by CUSTOM alone", remedy))
        }
        api::Action::Allow | api::Action::Deny | api::Action::Audit | api::Action::Custom => Ok(()),
    }
}
