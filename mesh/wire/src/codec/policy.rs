//! Policies that a waypoint enforces: `ambit.waypoint.v1.Policy`.
//!
//! All or nothing, as for those of tunnels: one value that cannot be understood makes the policy deny.

use std::sync::Arc;

use ambit_model::{
    authz::{
        Action, Attribute, Clause, Condition, Content, Match, PathMatch, PathTemplate, Policy, RequestMatch,
        Rule, Scope, Text,
    },
    name::PolicyKey,
};
use ambit_proto::{security, waypoint as pb};

use super::{
    Interner, InvalidResource, authorizer,
    authz::{decode_match, decode_ranges, decode_text, encode_match, encode_ranges, encode_text},
    decode_each, decode_enum,
    route::unset,
};

/// Never refused: what cannot be understood denies.
pub(super) fn decode(message: pb::Policy, names: &mut Interner) -> Policy {
    let key = PolicyKey { namespace: names.name(&message.namespace), name: names.name(&message.name) };
    let content = match message.broken.as_str() {
        "" => decode_content(message, names).map_err(|error| error.to_string()),
        reason => Err(reason.to_owned()),
    };
    let content = content.unwrap_or_else(|reason| Content::Undecodable { reason });
    Policy { key, scope: Scope::WorkloadSelector, content }
}

fn decode_content(message: pb::Policy, names: &mut Interner) -> Result<Content, InvalidResource> {
    let action = decode_enum("action", message.action)?;
    let rules = decode_each("rules", message.rules, |one| decode_rule(one, names))?;
    let dry_run = message.dry_run;
    let content = match action {
        pb::PolicyAction::Allow => return Ok(Content::Rules { action: Action::Allow, rules, dry_run }),
        pb::PolicyAction::Deny => return Ok(Content::Rules { action: Action::Deny, rules, dry_run }),
        pb::PolicyAction::Audit => Content::Audit { rules },
        pb::PolicyAction::Custom if message.provider.is_empty() => {
            return Err(InvalidResource::field("provider", "is empty"));
        }
        pb::PolicyAction::Custom => {
            let authorizer = message.authorizer.map(|one| authorizer::decode(one, names)).transpose();
            let authorizer = authorizer.map_err(|error| error.within("authorizer"))?.map(Arc::new);
            Content::Custom { provider: names.name(&message.provider), authorizer, rules }
        }
        pb::PolicyAction::Unspecified => return Err(unset("action")),
    };
    if dry_run {
        return Err(InvalidResource::field("dry_run", "only ALLOW and DENY can be tried out"));
    }
    Ok(content)
}

fn decode_rule(message: pb::PolicyRule, names: &mut Interner) -> Result<Rule, InvalidResource> {
    let clauses = decode_each("clauses", message.clauses, |clause| {
        let matches = decode_each("matches", clause.matches, |one| decode_one(one, names))?;
        Ok(Clause { matches })
    })?;
    Ok(Rule { clauses })
}

fn decode_one(message: pb::PolicyMatch, names: &mut Interner) -> Result<Match, InvalidResource> {
    let connection = message.connection.unwrap_or_default();
    let connection = decode_match(connection, names).map_err(|error| error.within("connection"))?;
    let mut texts = |field, list| decode_texts(field, list, names);
    let request = RequestMatch {
        hosts: texts("hosts", message.hosts)?,
        not_hosts: texts("not_hosts", message.not_hosts)?,
        methods: texts("methods", message.methods)?,
        not_methods: texts("not_methods", message.not_methods)?,
        request_principals: texts("request_principals", message.request_principals)?,
        not_request_principals: texts("not_request_principals", message.not_request_principals)?,
        paths: decode_each("paths", message.paths, |one| decode_path(one, names))?,
        not_paths: decode_each("not_paths", message.not_paths, |one| decode_path(one, names))?,
        remote_ips: decode_ranges("remote_ips", &message.remote_ips)?,
        not_remote_ips: decode_ranges("not_remote_ips", &message.not_remote_ips)?,
        conditions: decode_each("conditions", message.conditions, |one| decode_condition(one, names))?,
    };
    let request = (!request.is_empty()).then(|| Box::new(request));
    Ok(Match { request, ..connection })
}

fn decode_texts(
    field: &'static str,
    list: Vec<security::StringMatch>,
    names: &mut Interner,
) -> Result<Vec<Text>, InvalidResource> {
    list.into_iter().map(|one| decode_text(field, one, names)).collect()
}

fn decode_path(message: pb::PathMatch, names: &mut Interner) -> Result<PathMatch, InvalidResource> {
    use pb::path_match::Kind;
    match message.kind.ok_or_else(|| unset("kind"))? {
        Kind::Text(text) => decode_text("text", text, names).map(PathMatch::Text),
        Kind::Template(template) => PathTemplate::parse(&template)
            .map(PathMatch::Template)
            .map_err(|error| InvalidResource::field("template", error)),
    }
}

fn decode_condition(message: pb::Condition, names: &mut Interner) -> Result<Condition, InvalidResource> {
    let key = message.key.parse::<Attribute>().map_err(|error| InvalidResource::field("key", error))?;
    let condition = Condition {
        key,
        values: decode_texts("values", message.values, names)?,
        not_values: decode_texts("not_values", message.not_values, names)?,
    };
    if condition.is_empty() {
        // It would ask nothing, which no author of a condition means.
        return Err(InvalidResource::field("values", "are none, nor are not_values"));
    }
    Ok(condition)
}

pub(super) fn encode(policy: &Policy) -> pb::Policy {
    let message = pb::Policy {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        ..pb::Policy::default()
    };
    let (action, rules) = match &policy.content {
        Content::Rules { action: Action::Allow, rules, .. } => (pb::PolicyAction::Allow, rules),
        Content::Rules { action: Action::Deny, rules, .. } => (pb::PolicyAction::Deny, rules),
        Content::Audit { rules } => (pb::PolicyAction::Audit, rules),
        Content::Custom { rules, .. } => (pb::PolicyAction::Custom, rules),
        // Even without a reason there is one.
        Content::Undecodable { reason } if reason.is_empty() => {
            return pb::Policy { broken: "it could not be understood".to_owned(), ..message };
        }
        Content::Undecodable { reason } => return pb::Policy { broken: reason.clone(), ..message },
    };
    let (provider, authorizer) = match &policy.content {
        Content::Custom { provider, authorizer, .. } => {
            (provider.to_string(), authorizer.as_deref().map(authorizer::encode))
        }
        Content::Rules { .. } | Content::Audit { .. } | Content::Undecodable { .. } => (String::new(), None),
    };
    let rules = rules.iter().map(encode_rule).collect();
    pb::Policy { action: action.into(), provider, dry_run: policy.is_dry_run(), rules, authorizer, ..message }
}

fn encode_rule(rule: &Rule) -> pb::PolicyRule {
    let clause =
        |clause: &Clause| pb::PolicyClause { matches: clause.matches.iter().map(encode_one).collect() };
    pb::PolicyRule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn encode_one(one: &Match) -> pb::PolicyMatch {
    let connection = Some(encode_match(one));
    let Some(request) = &one.request else {
        return pb::PolicyMatch { connection, ..pb::PolicyMatch::default() };
    };
    let texts = |list: &[Text]| list.iter().map(encode_text).collect();
    let paths = |list: &[PathMatch]| list.iter().map(encode_path).collect();
    let condition = |one: &Condition| pb::Condition {
        key: one.key.to_string(),
        values: texts(&one.values),
        not_values: texts(&one.not_values),
    };
    pb::PolicyMatch {
        connection,
        hosts: texts(&request.hosts),
        not_hosts: texts(&request.not_hosts),
        methods: texts(&request.methods),
        not_methods: texts(&request.not_methods),
        paths: paths(&request.paths),
        not_paths: paths(&request.not_paths),
        remote_ips: encode_ranges(&request.remote_ips),
        not_remote_ips: encode_ranges(&request.not_remote_ips),
        request_principals: texts(&request.request_principals),
        not_request_principals: texts(&request.not_request_principals),
        conditions: request.conditions.iter().map(condition).collect(),
    }
}

fn encode_path(path: &PathMatch) -> pb::PathMatch {
    use pb::path_match::Kind;
    let kind = match path {
        PathMatch::Text(text) => Kind::Text(encode_text(text)),
        PathMatch::Template(template) => Kind::Template(template.as_str().to_owned()),
    };
    pb::PathMatch { kind: Some(kind) }
}

#[cfg(test)]
pub(super) mod tests;
