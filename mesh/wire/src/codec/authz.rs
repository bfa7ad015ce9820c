//! `istio.security.Authorization` (protocols 2.2).
//!
//! All or nothing: a value that cannot be understood makes the whole policy undecodable. Leaving it
//! out would turn a list with one strange value into an empty list, and empty means unconstrained.

use ambit_model::{
    authz::{AccountMatch, Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    name::PolicyKey,
};
use ambit_proto::{security as pb, workload::Extension};
use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;

use super::{Interner, InvalidResource, decode_enum, decode_ip, decode_port, encode_ip, policy_key};

pub(super) fn decode(
    name: &str,
    body: Bytes,
    names: &mut Interner,
) -> Result<Policy, (InvalidResource, Option<Box<Policy>>)> {
    let named = policy_key(name);
    let denial = |key: Option<PolicyKey>, scope, error: InvalidResource| {
        let policy = key.map(|key| Policy::undecodable(key, scope, error.to_string()));
        (error, policy.map(Box::new))
    };
    let message = match pb::Authorization::decode(body) {
        Ok(message) => message,
        Err(error) => return Err(denial(named, None, InvalidResource::Message(error.to_string()))),
    };
    let key = PolicyKey { namespace: names.name(&message.namespace), name: names.name(&message.name) };
    // What is stored under one name must be removable under that name.
    let key = match named {
        Some(named) if key != named => {
            let error =
                InvalidResource::field("name", format!("{key} differs from the resource's name {name}"));
            return Err(denial(Some(named), None, error));
        }
        Some(_) => key,
        None => {
            let error = InvalidResource::field("name", format!("{name:?} is not namespace/name"));
            return Err(denial(Some(key), None, error));
        }
    };
    let scope = match decode_enum("scope", message.scope) {
        Ok(pb::Scope::Global) => Scope::Global,
        Ok(pb::Scope::Namespace) => Scope::Namespace,
        Ok(pb::Scope::WorkloadSelector) => Scope::WorkloadSelector,
        Err(error) => return Err(denial(Some(key), None, error)),
    };
    match decode_content(message, names) {
        Ok(content) => Ok(Policy { key, scope, content }),
        Err(error) => Err(denial(Some(key), Some(scope), error)),
    }
}

fn decode_content(message: pb::Authorization, names: &mut Interner) -> Result<Content, InvalidResource> {
    let action = match decode_enum("action", message.action)? {
        pb::Action::Allow => Action::Allow,
        pb::Action::Deny => Action::Deny,
    };
    let clause = |clause: pb::Clause, names: &mut Interner| {
        let matches =
            clause.matches.into_iter().map(|one| decode_match(one, names)).collect::<Result<_, _>>()?;
        Ok(Clause { matches })
    };
    let rule = |rule: pb::Rule, names: &mut Interner| {
        let clauses =
            rule.clauses.into_iter().map(|one| clause(one, names)).collect::<Result<_, InvalidResource>>()?;
        Ok(Rule { clauses })
    };
    let rules =
        message.rules.into_iter().map(|one| rule(one, names)).collect::<Result<_, InvalidResource>>()?;
    Ok(Content::Rules { action, rules, dry_run: message.dry_run })
}

pub(super) fn decode_match(message: pb::Match, names: &mut Interner) -> Result<Match, InvalidResource> {
    if !message.extensions.is_empty() {
        return Err(InvalidResource::field("extensions", "a condition of an unknown kind"));
    }
    let mut texts = |field, list: Vec<pb::StringMatch>| {
        list.into_iter().map(|one| decode_text(field, one, names)).collect::<Result<Vec<_>, _>>()
    };
    let (namespaces, not_namespaces) =
        (texts("namespaces", message.namespaces)?, texts("not_namespaces", message.not_namespaces)?);
    let (principals, not_principals) =
        (texts("principals", message.principals)?, texts("not_principals", message.not_principals)?);
    let mut accounts = |list: Vec<pb::ServiceAccountMatch>| {
        let account = |one: pb::ServiceAccountMatch| AccountMatch {
            namespace: names.name(&one.namespace),
            service_account: names.name(&one.service_account),
        };
        list.into_iter().map(account).collect()
    };
    Ok(Match {
        namespaces,
        not_namespaces,
        service_accounts: accounts(message.service_accounts),
        not_service_accounts: accounts(message.not_service_accounts),
        principals,
        not_principals,
        source_ips: decode_ranges("source_ips", &message.source_ips)?,
        not_source_ips: decode_ranges("not_source_ips", &message.not_source_ips)?,
        destination_ips: decode_ranges("destination_ips", &message.destination_ips)?,
        not_destination_ips: decode_ranges("not_destination_ips", &message.not_destination_ips)?,
        destination_ports: decode_port_list("destination_ports", &message.destination_ports)?,
        not_destination_ports: decode_port_list("not_destination_ports", &message.not_destination_ports)?,
        request: None,
    })
}

pub(super) fn decode_text(
    field: &'static str,
    message: pb::StringMatch,
    names: &mut Interner,
) -> Result<Text, InvalidResource> {
    use pb::string_match::MatchType;
    match message.match_type {
        Some(MatchType::Exact(text)) => Ok(Text::Exact(names.name(&text))),
        Some(MatchType::Prefix(text)) => Ok(Text::Prefix(names.name(&text))),
        Some(MatchType::Suffix(text)) => Ok(Text::Suffix(names.name(&text))),
        Some(MatchType::Presence(())) => Ok(Text::Presence),
        None => Err(InvalidResource::field(field, "a comparison of an unknown kind")),
    }
}

pub(super) fn decode_ranges(
    field: &'static str,
    list: &[pb::Address],
) -> Result<Vec<IpNet>, InvalidResource> {
    let range = |address: &pb::Address| {
        let ip = decode_ip(field, &address.address)?;
        let invalid = || InvalidResource::field(field, format!("{ip}/{} is not a range", address.length));
        let length = u8::try_from(address.length).map_err(|_| invalid())?;
        IpNet::new(ip, length).map_err(|_| invalid())
    };
    list.iter().map(range).collect()
}

fn decode_port_list(field: &'static str, list: &[u32]) -> Result<Vec<u16>, InvalidResource> {
    list.iter().map(|port| decode_port(field, *port)).collect()
}

pub(super) fn encode(policy: &Policy) -> pb::Authorization {
    // A rule without clauses matches everything.
    let everything = || (Action::Deny, vec![pb::Rule { clauses: Vec::new() }], false);
    let encode = |rules: &[Rule]| rules.iter().map(encode_rule).collect();
    let (action, rules, dry_run) = match &policy.content {
        Content::Rules { action, rules, dry_run } => (*action, encode(rules), *dry_run),
        // Nobody can be asked at a tunnel, and what is only written down decides nothing.
        Content::Custom { rules, .. } => (Action::Deny, encode(rules), false),
        Content::Audit { rules } => (Action::Allow, encode(rules), true),
        Content::Undecodable { .. } => everything(),
    };
    pb::Authorization {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: match policy.scope {
            Scope::Global => pb::Scope::Global,
            Scope::Namespace => pb::Scope::Namespace,
            Scope::WorkloadSelector => pb::Scope::WorkloadSelector,
        }
        .into(),
        action: match action {
            Action::Allow => pb::Action::Allow,
            Action::Deny => pb::Action::Deny,
        }
        .into(),
        rules,
        dry_run,
        extensions: Vec::new(),
    }
}

fn encode_rule(rule: &Rule) -> pb::Rule {
    let clause = |clause: &Clause| pb::Clause { matches: clause.matches.iter().map(encode_whole).collect() };
    pb::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

/// A tunnel is told that something is asked that it cannot compare, so that it refuses the policy rather
/// than enforce another one.
fn encode_whole(one: &Match) -> pb::Match {
    let extensions = one.request.iter().map(|_| Extension::default()).collect();
    pb::Match { extensions, ..encode_match(one) }
}

/// What is asked of the connection.
pub(super) fn encode_match(one: &Match) -> pb::Match {
    let texts = |list: &[Text]| list.iter().map(encode_text).collect();
    let accounts = |list: &[AccountMatch]| {
        let account = |one: &AccountMatch| pb::ServiceAccountMatch {
            namespace: one.namespace.to_string(),
            service_account: one.service_account.to_string(),
        };
        list.iter().map(account).collect()
    };
    let ports = |list: &[u16]| list.iter().map(|port| u32::from(*port)).collect();
    pb::Match {
        namespaces: texts(&one.namespaces),
        not_namespaces: texts(&one.not_namespaces),
        principals: texts(&one.principals),
        not_principals: texts(&one.not_principals),
        source_ips: encode_ranges(&one.source_ips),
        not_source_ips: encode_ranges(&one.not_source_ips),
        destination_ips: encode_ranges(&one.destination_ips),
        not_destination_ips: encode_ranges(&one.not_destination_ips),
        destination_ports: ports(&one.destination_ports),
        not_destination_ports: ports(&one.not_destination_ports),
        service_accounts: accounts(&one.service_accounts),
        not_service_accounts: accounts(&one.not_service_accounts),
        extensions: Vec::new(),
    }
}

pub(super) fn encode_ranges(list: &[IpNet]) -> Vec<pb::Address> {
    let range =
        |range: &IpNet| pb::Address { address: encode_ip(&range.addr()), length: range.prefix_len().into() };
    list.iter().map(range).collect()
}

pub(super) fn encode_text(text: &Text) -> pb::StringMatch {
    use pb::string_match::MatchType;
    let match_type = match text {
        Text::Exact(text) => MatchType::Exact(text.to_string()),
        Text::Prefix(text) => MatchType::Prefix(text.to_string()),
        Text::Suffix(text) => MatchType::Suffix(text.to_string()),
        Text::Presence => MatchType::Presence(()),
    };
    pb::StringMatch { match_type: Some(match_type) }
}
