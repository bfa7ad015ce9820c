//! GRPCRoute: its rules, as far as they do not depend on whom they refer to.

use ambit_api::grpc_route as api;
use ambit_model::{
    name::Namespace,
    route::{Match, Path, Timeouts},
};

use super::{
    Rejection,
    http_route::{parse_backends, parse_headers, parse_session, parse_text},
    peer_authentication::refuse_unknown,
    route::{Requests, RouteRule, refused},
    route_filter::{self, Has},
};

pub(super) fn parse(spec: api::GrpcRouteSpec, namespace: &Namespace) -> Result<Requests, Rejection> {
    refuse_unknown("spec", &spec.unknown)?;
    let rules = spec.rules.iter().enumerate();
    let rules = rules.map(|(index, rule)| parse_rule(&format!("spec.rules[{index}]"), rule, namespace));
    Ok(Requests { rules: rules.collect::<Result<_, _>>()?, names_hosts: !spec.hostnames.is_empty() })
}

fn parse_rule(field: &str, rule: &api::GrpcRule, namespace: &Namespace) -> Result<RouteRule, Rejection> {
    refuse_unknown(field, &rule.unknown)?;
    let matches = rule.matches.iter().enumerate();
    let matches = matches.map(|(index, one)| parse_match(&format!("{field}.matches[{index}]"), one));
    Ok(RouteRule {
        name: rule.name.as_deref().map(Into::into),
        matches: matches.collect::<Result<_, _>>()?,
        filters: route_filter::parse_all(field, &rule.filters, namespace, Has::OfCalls)?,
        backends: parse_backends(field, &rule.backend_refs, namespace, Has::OfCalls)?,
        // Calls say themselves how long they may take, and no field repeats them.
        timeouts: Timeouts::default(),
        retry: None,
        session: parse_session(field, rule.session_persistence.as_ref())?,
    })
}

fn parse_match(field: &str, written: &api::GrpcMatch) -> Result<Match, Rejection> {
    refuse_unknown(field, &written.unknown)?;
    let method = written.method.clone().unwrap_or_default();
    let text = |name: &str, text: Option<String>| {
        text.map(|text| parse_text(format!("{field}.method.{name}"), method.kind, &text)).transpose()
    };
    let path = Path::grpc(text("service", method.service)?, text("method", method.method)?);
    let path = path.map_err(|error| refused(format!("{field}.method"), error))?;
    parse_headers(field, &written.headers, Match::path(path))
}
