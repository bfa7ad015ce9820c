//! The rules of an AuthorizationPolicy.

use std::net::IpAddr;

use ambit_api::authorization_policy as api;
use ambit_model::{
    authz::{
        AccountMatch, Attribute, Clause, Condition, Match, PathMatch, PathTemplate, RequestMatch, Rule, Text,
    },
    name::Namespace,
};
use ipnet::IpNet;

use super::Rejection;
use super::peer_authentication::refuse_unknown;

/// One rule, as far as whoever judges it can see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedRule {
    /// What is judged. Where a tunnel judges, a match from which everything was left out is empty.
    pub rule: Rule,
    /// The attributes that were left out, `methods`; none where a waypoint judges.
    pub left_out: Vec<String>,
}

/// Who judges a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judge {
    /// A tunnel sees connections. What is asked of requests is left out, and not looked into: other meshes may know
    /// more of it.
    Tunnel,
    /// A waypoint sees requests. What it does not understand is refused.
    Waypoint,
}

pub(super) fn parse_rule(
    field: &str,
    rule: &api::Rule,
    namespace: &Namespace,
    judge: Judge,
) -> Result<ParsedRule, Rejection> {
    refuse_unknown(field, &rule.unknown)?;
    let mut parsed = ParsedRule::default();
    let mut matches = Vec::new();
    for (index, to) in rule.to.iter().enumerate() {
        let field = format!("{field}.to[{index}]");
        refuse_unknown(&field, &to.unknown)?;
        let field = format!("{field}.operation");
        matches.push(parse_operation(&field, &to.operation, judge, &mut parsed.left_out)?);
    }
    add_clause(&mut parsed.rule, matches);
    let mut matches = Vec::new();
    for (index, from) in rule.from.iter().enumerate() {
        let field = format!("{field}.from[{index}]");
        refuse_unknown(&field, &from.unknown)?;
        let field = format!("{field}.source");
        matches.push(parse_source(&field, &from.source, namespace, judge, &mut parsed.left_out)?);
    }
    add_clause(&mut parsed.rule, matches);
    for (index, when) in rule.when.iter().enumerate() {
        let field = format!("{field}.when[{index}]");
        let one = parse_condition(&field, when, namespace, judge, &mut parsed.left_out)?;
        add_clause(&mut parsed.rule, vec![one]);
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
    judge: Judge,
    left_out: &mut Vec<String>,
) -> Result<Match, Rejection> {
    refuse_unknown(field, &operation.unknown)?;
    let connection = Match {
        destination_ports: each(field, "ports", &operation.ports, parse_port)?,
        not_destination_ports: each(field, "notPorts", &operation.not_ports, parse_port)?,
        ..Match::default()
    };
    let of_requests = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    let request = || {
        Ok(RequestMatch {
            hosts: each(field, "hosts", &operation.hosts, parse_text)?,
            not_hosts: each(field, "notHosts", &operation.not_hosts, parse_text)?,
            methods: each(field, "methods", &operation.methods, parse_text)?,
            not_methods: each(field, "notMethods", &operation.not_methods, parse_text)?,
            paths: each_path(field, "paths", &operation.paths)?,
            not_paths: each_path(field, "notPaths", &operation.not_paths)?,
            ..RequestMatch::default()
        })
    };
    complete(field, connection, &of_requests, request, judge, left_out)
}

fn parse_source(
    field: &str,
    source: &api::Source,
    namespace: &Namespace,
    judge: Judge,
    left_out: &mut Vec<String>,
) -> Result<Match, Rejection> {
    refuse_unknown(field, &source.unknown)?;
    let account = |text: &str| parse_account(text, namespace);
    let connection = Match {
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
    let (principals, not_principals) = (&source.request_principals, &source.not_request_principals);
    let of_requests = [
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("requestPrincipals", principals),
        ("notRequestPrincipals", not_principals),
    ];
    let request = || {
        Ok(RequestMatch {
            remote_ips: each(field, "remoteIpBlocks", &source.remote_ip_blocks, parse_range)?,
            not_remote_ips: each(field, "notRemoteIpBlocks", &source.not_remote_ip_blocks, parse_range)?,
            request_principals: each(field, "requestPrincipals", principals, parse_text)?,
            not_request_principals: each(field, "notRequestPrincipals", not_principals, parse_text)?,
            ..RequestMatch::default()
        })
    };
    complete(field, connection, &of_requests, request, judge, left_out)
}

/// Adds to a match what it asks of requests, or says that it was left out.
fn complete(
    field: &str,
    connection: Match,
    of_requests: &[(&str, &Vec<String>)],
    request: impl FnOnce() -> Result<RequestMatch, Rejection>,
    judge: Judge,
    left_out: &mut Vec<String>,
) -> Result<Match, Rejection> {
    let mut asked = of_requests.iter().filter(|(_, list)| !list.is_empty()).map(|(name, _)| *name).peekable();
    if asked.peek().is_none() {
        // It would mean "everything" to its author and "nothing" to whoever judges.
        if connection.is_empty() {
            let remedy = "write at least one attribute, or remove the entry";
            return Err(Rejection::new(field, "is empty", remedy));
        }
        return Ok(connection);
    }
    match judge {
        Judge::Tunnel => {
            left_out.extend(asked.map(str::to_owned));
            Ok(connection)
        }
        Judge::Waypoint => Ok(Match { request: Some(Box::new(request()?)), ..connection }),
    }
}

fn parse_condition(
    field: &str,
    when: &api::Condition,
    namespace: &Namespace,
    judge: Judge,
    left_out: &mut Vec<String>,
) -> Result<Match, Rejection> {
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
    let (values, others) = (&when.values, &when.not_values);
    let texts =
        || Ok((each(field, "values", values, parse_text)?, each(field, "notValues", others, parse_text)?));
    let ranges =
        || Ok((each(field, "values", values, parse_range)?, each(field, "notValues", others, parse_range)?));
    let mut parsed = Match::default();
    match when.key.as_str() {
        "source.ip" => (parsed.source_ips, parsed.not_source_ips) = ranges()?,
        "source.namespace" => (parsed.namespaces, parsed.not_namespaces) = texts()?,
        "source.principal" => (parsed.principals, parsed.not_principals) = texts()?,
        "destination.ip" => (parsed.destination_ips, parsed.not_destination_ips) = ranges()?,
        "destination.port" => {
            parsed.destination_ports = each(field, "values", values, parse_port)?;
            parsed.not_destination_ports = each(field, "notValues", others, parse_port)?;
        }
        // Istio's tunnels do not compare it, so ours leave it out, too.
        other if judge == Judge::Tunnel => left_out.push(format!("when.key={other}")),
        "source.serviceAccount" => {
            let account = |text: &str| parse_account(text, namespace);
            parsed.service_accounts = each(field, "values", values, account)?;
            parsed.not_service_accounts = each(field, "notValues", others, account)?;
        }
        other => {
            let mut request = RequestMatch::default();
            match other {
                "remote.ip" => (request.remote_ips, request.not_remote_ips) = ranges()?,
                "request.auth.principal" => {
                    (request.request_principals, request.not_request_principals) = texts()?;
                }
                other => {
                    let key = other.parse::<Attribute>().map_err(|error| {
                        Rejection::new(format!("{field}.key"), error.to_string(), "correct it")
                    })?;
                    let (values, not_values) = texts()?;
                    request.conditions.push(Condition { key, values, not_values });
                }
            }
            parsed.request = Some(Box::new(request));
        }
    }
    Ok(parsed)
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

fn each_path(field: &str, name: &str, values: &[String]) -> Result<Vec<PathMatch>, Rejection> {
    let one = |(index, text): (usize, &String)| {
        let field = || format!("{field}.{name}[{index}]");
        if PathTemplate::is_one(text) {
            return PathTemplate::parse(text).map(PathMatch::Template).map_err(|error| {
                let remedy = "write {*} for one segment, and {**} for any number of them";
                Rejection::new(field(), format!("{text:?}: {error}"), remedy)
            });
        }
        let parsed = parse_text(text).map(PathMatch::Text);
        parsed.map_err(|(what, remedy)| Rejection::new(field(), format!("{text:?} {what}"), remedy))
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
