//! Policies, as istioctl reads them.

use ambit_model::{
    authz::{AccountMatch, Action, Content, Match, Policy, Rule, Scope, Text},
    snapshot::Snapshot,
};
use ipnet::IpNet;
use serde::{Serialize, Serializer, ser::SerializeMap};

/// One policy as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: Scope,
    action: Action,
    rules: Vec<Vec<Vec<MatchShown<'a>>>>,
    #[serde(skip_serializing_if = "is_false")]
    dry_run: bool,
    /// Why it could not be understood; it then denies in its scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    undecodable: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchShown<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<TextShown<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<TextShown<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    service_accounts: &'a [AccountMatch],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_service_accounts: &'a [AccountMatch],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<TextShown<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<TextShown<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
}

/// istioctl spells these keys with a capital.
#[derive(Debug)]
struct TextShown<'a>(&'a Text);

impl Serialize for TextShown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self.0 {
            Text::Exact(text) => map.serialize_entry("Exact", text)?,
            Text::Prefix(text) => map.serialize_entry("Prefix", text)?,
            Text::Suffix(text) => map.serialize_entry("Suffix", text)?,
            Text::Presence => map.serialize_entry("Presence", &())?,
        }
        map.end()
    }
}

/// All that are known, by namespace and name.
pub fn all(mesh: &Snapshot) -> Vec<Shown<'_>> {
    let mut all: Vec<_> = mesh.policies().map(|policy| shown(policy)).collect();
    all.sort_by_key(|policy| (policy.namespace, policy.name));
    all
}

fn shown(policy: &Policy) -> Shown<'_> {
    let (action, rules, undecodable) = match &policy.content {
        Content::Rules { action, rules, .. } => (*action, rules.as_slice(), None),
        // Where nobody can be asked, it denies what it matches.
        Content::Custom { rules, .. } => (Action::Deny, rules.as_slice(), None),
        Content::Audit { .. } => (Action::Allow, &[][..], None),
        Content::Undecodable { reason } => (Action::Deny, &[][..], Some(reason.as_str())),
    };
    Shown {
        name: policy.key.name.as_str(),
        namespace: policy.key.namespace.as_str(),
        scope: policy.scope,
        action,
        rules: rules.iter().map(rule_shown).collect(),
        dry_run: policy.is_dry_run(),
        undecodable,
    }
}

fn rule_shown(rule: &Rule) -> Vec<Vec<MatchShown<'_>>> {
    rule.clauses.iter().map(|clause| clause.matches.iter().map(match_shown).collect()).collect()
}

fn match_shown(one: &Match) -> MatchShown<'_> {
    MatchShown {
        namespaces: texts(&one.namespaces),
        not_namespaces: texts(&one.not_namespaces),
        service_accounts: &one.service_accounts,
        not_service_accounts: &one.not_service_accounts,
        principals: texts(&one.principals),
        not_principals: texts(&one.not_principals),
        source_ips: &one.source_ips,
        not_source_ips: &one.not_source_ips,
        destination_ips: &one.destination_ips,
        not_destination_ips: &one.not_destination_ips,
        destination_ports: &one.destination_ports,
        not_destination_ports: &one.not_destination_ports,
    }
}

fn texts(texts: &[Text]) -> Vec<TextShown<'_>> {
    texts.iter().map(TextShown).collect()
}

fn is_false(flag: &bool) -> bool {
    !flag
}
