//! AuthorizationPolicy: each rule becomes its L4 part, with a list of what had to be left out of it.

use std::net::IpAddr;

use ambit_api::authorization_policy as api;
use ambit_api::labels;
use ambit_model::{
    authz::{AccountMatch, Action, Clause, Match, Rule, Text},
    name::{Label, Namespace},
};
use ipnet::IpNet;

use super::peer_authentication::{bare_meta, parse_selector, readable_selector, refuse_unknown};
use super::{Meta, Rejection, Selector, Written, parse_bool};

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

/// Whom a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The workloads of its namespace; in the root namespace, every workload.
    Namespace,
    /// The workloads with these labels.
    Selected(Selector),
    /// Gateways or services: such a policy is a waypoint's business.
    Targets(Vec<PolicyTarget>),
}

/// A gateway or service that a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTarget {
    /// `Gateway`, `GatewayClass`, `Service` or `ServiceEntry`.
    pub kind: String,
    /// Its name.
    pub name: Label,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Connections that match are allowed or denied.
    Rules {
        /// Which of the two.
        action: Action,
        /// Any may match.
        rules: Vec<ParsedRule>,
        /// Judged for the record only.
        dry_run: bool,
    },
    /// An action that a node's tunnel does not have.
    Unsupported(Unsupported),
    /// It could not be understood, and was never understood before.
    Undecodable(String),
}

/// An action that a node's tunnel does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// `AUDIT`.
    Audit,
    /// `CUSTOM`.
    Custom,
}

impl Unsupported {
    /// The action as it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// One rule: what a connection can be judged by, and what only a request could be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedRule {
    /// The L4 part. A match from which everything was left out is empty.
    pub l4: Rule,
    /// The attributes that were left out, `methods`.
    pub l7: Vec<String>,
}

impl AuthorizationPolicy {
    pub(super) fn parse(namespace: Namespace, object: api::AuthorizationPolicy) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        refuse_unknown("spec", &spec.unknown)?;
        let targets: Vec<_> = spec.target_ref.into_iter().chain(spec.target_refs).collect();
        let selector = parse_selector(spec.selector)?;
        if selector.is_some() && !targets.is_empty() {
            return Err(Rejection::new("spec", "has a selector and targetRefs", "remove one of the two"));
        }
        let dry_run = match meta.annotations.get(labels::DRY_RUN) {
            None => false,
            Some(text) => parse_bool(text).ok_or_else(|| {
                let field = format!("metadata.annotations[{}]", labels::DRY_RUN);
                Rejection::new(field, format!("{text:?} is not a truth value"), "write \"true\" or \"false\"")
            })?,
        };
        let action = match spec.action {
            api::Action::Allow => Ok(Action::Allow),
            api::Action::Deny => Ok(Action::Deny),
            api::Action::Audit => Err(Unsupported::Audit),
            api::Action::Custom => Err(Unsupported::Custom),
        };
        let mut rules = Vec::new();
        for (index, rule) in spec.rules.iter().enumerate() {
            rules.push(parse_rule(&format!("spec.rules[{index}]"), rule, &meta.name.namespace)?);
        }
        Ok(Self {
            attachment: match (selector, targets.is_empty()) {
                (Some(selector), _) => Attachment::Selected(selector),
                (None, true) => Attachment::Namespace,
                (None, false) => Attachment::Targets(
                    targets
                        .into_iter()
                        .map(|one| PolicyTarget { kind: one.kind, name: one.name.into() })
                        .collect(),
                ),
            },
            content: match action {
                Ok(action) => Content::Rules { action, rules, dry_run },
                Err(unsupported) => Content::Unsupported(unsupported),
            },
            meta,
        })
    }

    /// What one that cannot be understood is taken for: a denial, as far as it can reach. Targets are only
    /// believed if they can be read in full; in doubt it is for the whole namespace.
    pub(super) fn undecodable(written: &Written<'_>, reason: String) -> Self {
        let selector = readable_selector(written);
        Self {
            meta: bare_meta(written),
            attachment: match (selector, readable_targets(written)) {
                (Some(selector), _) => Attachment::Selected(selector),
                (None, Some(targets)) => Attachment::Targets(targets),
                (None, None) => Attachment::Namespace,
            },
            content: Content::Undecodable(reason),
        }
    }

    /// The selector, if it has one.
    pub fn selector(&self) -> Option<&Selector> {
        match &self.attachment {
            Attachment::Selected(selector) => Some(selector),
            Attachment::Namespace | Attachment::Targets(_) => None,
        }
    }
}

fn readable_targets(written: &Written<'_>) -> Option<Vec<PolicyTarget>> {
    let spec = written.value.get("spec")?;
    if spec.get("selector").is_some() {
        return None;
    }
    let one = spec.get("targetRef").cloned().into_iter();
    let many = spec.get("targetRefs").and_then(|list| list.as_array()).into_iter().flatten().cloned();
    let targets: Vec<_> = one
        .chain(many)
        .map(|target| {
            let text =
                |field| target.get(field)?.as_str().filter(|text: &&str| !text.is_empty()).map(str::to_owned);
            Some(PolicyTarget { kind: text("kind")?, name: text("name")?.into() })
        })
        .collect::<Option<_>>()?;
    (!targets.is_empty()).then_some(targets)
}

fn parse_rule(field: &str, rule: &api::Rule, namespace: &Namespace) -> Result<ParsedRule, Rejection> {
    refuse_unknown(field, &rule.unknown)?;
    let mut parsed = ParsedRule::default();
    let mut matches = Vec::new();
    for (index, to) in rule.to.iter().enumerate() {
        let field = format!("{field}.to[{index}]");
        refuse_unknown(&field, &to.unknown)?;
        matches.push(parse_operation(&format!("{field}.operation"), &to.operation, &mut parsed.l7)?);
    }
    add_clause(&mut parsed.l4, matches);
    let mut matches = Vec::new();
    for (index, from) in rule.from.iter().enumerate() {
        let field = format!("{field}.from[{index}]");
        refuse_unknown(&field, &from.unknown)?;
        matches.push(parse_source(&format!("{field}.source"), &from.source, namespace, &mut parsed.l7)?);
    }
    add_clause(&mut parsed.l4, matches);
    for (index, when) in rule.when.iter().enumerate() {
        let one = parse_condition(&format!("{field}.when[{index}]"), when, &mut parsed.l7)?;
        add_clause(&mut parsed.l4, vec![one]);
    }
    Ok(parsed)
}

fn add_clause(rule: &mut Rule, matches: Vec<Match>) {
    if !matches.is_empty() {
        rule.clauses.push(Clause { matches });
    }
}

fn parse_operation(
    field: &str,
    operation: &api::Operation,
    l7: &mut Vec<String>,
) -> Result<Match, Rejection> {
    refuse_unknown(field, &operation.unknown)?;
    let before = l7.len();
    note_l7(
        l7,
        &[
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ],
    );
    let parsed = Match {
        destination_ports: each(field, "ports", &operation.ports, parse_port)?,
        not_destination_ports: each(field, "notPorts", &operation.not_ports, parse_port)?,
        ..Match::default()
    };
    refuse_empty(field, &parsed, l7.len() == before)?;
    Ok(parsed)
}

fn parse_source(
    field: &str,
    source: &api::Source,
    namespace: &Namespace,
    l7: &mut Vec<String>,
) -> Result<Match, Rejection> {
    refuse_unknown(field, &source.unknown)?;
    let before = l7.len();
    note_l7(
        l7,
        &[
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
        ],
    );
    let account = |text: &str| parse_account(text, namespace);
    let parsed = Match {
        namespaces: each(field, "namespaces", &source.namespaces, parse_text)?,
        not_namespaces: each(field, "notNamespaces", &source.not_namespaces, parse_text)?,
        service_accounts: each(field, "serviceAccounts", &source.service_accounts, account)?,
        not_service_accounts: each(field, "notServiceAccounts", &source.not_service_accounts, account)?,
        principals: each(field, "principals", &source.principals, parse_text)?,
        not_principals: each(field, "notPrincipals", &source.not_principals, parse_text)?,
        source_ips: each(field, "ipBlocks", &source.ip_blocks, parse_range)?,
        not_source_ips: each(field, "notIpBlocks", &source.not_ip_blocks, parse_range)?,
        ..Match::default()
    };
    refuse_empty(field, &parsed, l7.len() == before)?;
    Ok(parsed)
}

fn parse_condition(field: &str, when: &api::Condition, l7: &mut Vec<String>) -> Result<Match, Rejection> {
    refuse_unknown(field, &when.unknown)?;
    if when.key.is_empty() {
        return Err(Rejection::new(
            format!("{field}.key"),
            "is missing",
            "name an attribute, such as source.ip",
        ));
    }
    if when.values.is_empty() && when.not_values.is_empty() {
        return Err(Rejection::new(field, "has neither values nor notValues", "write at least one value"));
    }
    let mut parsed = Match::default();
    let (values, others) = (&when.values, &when.not_values);
    match when.key.as_str() {
        "source.ip" => {
            parsed.source_ips = each(field, "values", values, parse_range)?;
            parsed.not_source_ips = each(field, "notValues", others, parse_range)?;
        }
        "source.namespace" => {
            parsed.namespaces = each(field, "values", values, parse_text)?;
            parsed.not_namespaces = each(field, "notValues", others, parse_text)?;
        }
        "source.principal" => {
            parsed.principals = each(field, "values", values, parse_text)?;
            parsed.not_principals = each(field, "notValues", others, parse_text)?;
        }
        "destination.ip" => {
            parsed.destination_ips = each(field, "values", values, parse_range)?;
            parsed.not_destination_ips = each(field, "notValues", others, parse_range)?;
        }
        "destination.port" => {
            parsed.destination_ports = each(field, "values", values, parse_port)?;
            parsed.not_destination_ports = each(field, "notValues", others, parse_port)?;
        }
        other => l7.push(format!("when.key={other}")),
    }
    Ok(parsed)
}

fn note_l7(l7: &mut Vec<String>, lists: &[(&str, &Vec<String>)]) {
    for (name, list) in lists {
        if !list.is_empty() {
            l7.push((*name).to_owned());
        }
    }
}

/// A match that says nothing at all would mean "everything" to its author and "nothing" to the tunnel.
fn refuse_empty(field: &str, parsed: &Match, says_nothing_else: bool) -> Result<(), Rejection> {
    if parsed.is_empty() && says_nothing_else {
        return Err(Rejection::new(field, "is empty", "write at least one attribute, or remove the entry"));
    }
    Ok(())
}

fn each<T>(
    field: &str,
    name: &str,
    values: &[String],
    parse: impl Fn(&str) -> Result<T, (&'static str, &'static str)>,
) -> Result<Vec<T>, Rejection> {
    let one = |(index, text): (usize, &String)| {
        parse(text).map_err(|(what, remedy)| {
            Rejection::new(format!("{field}.{name}[{index}]"), format!("{text:?} {what}"), remedy)
        })
    };
    values.iter().enumerate().map(one).collect()
}

fn parse_port(text: &str) -> Result<u16, (&'static str, &'static str)> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(("is not a port", "write a number from 1 to 65535")),
    }
}

fn parse_range(text: &str) -> Result<IpNet, (&'static str, &'static str)> {
    let single = text.parse::<IpAddr>().map(IpNet::from);
    let range = single.or_else(|_| text.parse::<IpNet>().map(|range| range.trunc()));
    range.map_err(|_| ("is neither an IP address nor a range", "write 10.0.0.1 or 10.0.0.0/8"))
}

/// `*` alone is presence, in front a suffix, at the end a prefix, anywhere else an exact text.
fn parse_text(text: &str) -> Result<Text, (&'static str, &'static str)> {
    if text.is_empty() {
        return Err(("is empty", "write a value, or * for any"));
    }
    Ok(match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
        ("*", _, _) => Text::Presence,
        (_, Some(suffix), _) => Text::Suffix(suffix.into()),
        (_, _, Some(prefix)) => Text::Prefix(prefix.into()),
        (exact, None, None) => Text::Exact(exact.into()),
    })
}

fn parse_account(text: &str, namespace: &Namespace) -> Result<AccountMatch, (&'static str, &'static str)> {
    let wrong =
        ("is not a service account", "write namespace/name, or the name of one in the policy's namespace");
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Namespace::from(namespace), name),
        None => (namespace.clone(), text),
    };
    if namespace.is_empty() || name.is_empty() || text.contains('*') || name.contains('/') {
        return Err(wrong);
    }
    Ok(AccountMatch { namespace, service_account: name.into() })
}
