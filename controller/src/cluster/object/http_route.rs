//! HTTPRoute: its rules, as far as they do not depend on whom they refer to.

use std::time::Duration;

use ambit_api::{
    http_route as api,
    route::{BackendRef, LifetimeType, MatchType, NamedMatch, SessionPersistence, SessionType},
};
use ambit_model::{
    name::Namespace,
    route::{Lifetime, Match, Path, Session, SessionKey, Text, Timeout, Timeouts, retry},
};
use http::{HeaderName, Method};

use super::{
    Rejection,
    peer_authentication::refuse_unknown,
    route::{Requests, RouteBackend, RouteRule, parse_backend, refused},
    route_filter::{self, Has},
};

/// The cookie or header of a session that names none.
const SESSION: &str = "ambit-session";
/// The methods that a match may name (HTTPMethod).
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

pub(super) fn parse(spec: api::HttpRouteSpec, namespace: &Namespace) -> Result<Requests, Rejection> {
    refuse_unknown("spec", &spec.unknown)?;
    // The definition has this default, which a file does not have.
    let rules = if spec.rules.is_empty() { vec![api::HttpRule::default()] } else { spec.rules };
    let rules = rules.iter().enumerate();
    let rules = rules.map(|(index, rule)| parse_rule(&format!("spec.rules[{index}]"), rule, namespace));
    Ok(Requests { rules: rules.collect::<Result<_, _>>()?, names_hosts: !spec.hostnames.is_empty() })
}

fn parse_rule(field: &str, rule: &api::HttpRule, namespace: &Namespace) -> Result<RouteRule, Rejection> {
    refuse_unknown(field, &rule.unknown)?;
    let matches = rule.matches.iter().enumerate();
    let matches = matches.map(|(index, one)| parse_match(&format!("{field}.matches[{index}]"), one));
    Ok(RouteRule {
        name: rule.name.as_deref().map(Into::into),
        matches: matches.collect::<Result<_, _>>()?,
        filters: route_filter::parse_all(field, &rule.filters, namespace, Has::All)?,
        backends: parse_backends(field, &rule.backend_refs, namespace, Has::All)?,
        timeouts: parse_timeouts(&format!("{field}.timeouts"), rule.timeouts.as_ref())?,
        retry: rule.retry.as_ref().map(|retry| parse_retry(&format!("{field}.retry"), retry)).transpose()?,
        session: parse_session(field, rule.session_persistence.as_ref())?,
    })
}

/// Reads the backends of a rule, `spec.rules[0]`.
pub(super) fn parse_backends(
    field: &str,
    backends: &[BackendRef],
    namespace: &Namespace,
    has: Has,
) -> Result<Vec<RouteBackend>, Rejection> {
    let backends = backends.iter().enumerate();
    let parsed = backends.map(|(index, backend)| {
        let field = format!("{field}.backendRefs[{index}]");
        let filters = route_filter::parse_all(&field, &backend.filters, namespace, has)?;
        parse_backend(&field, backend, namespace, filters)
    });
    parsed.collect()
}

/// Reads what is asked of a request.
pub(super) fn parse_match(field: &str, written: &api::HttpMatch) -> Result<Match, Rejection> {
    refuse_unknown(field, &written.unknown)?;
    let path = written.path.clone().unwrap_or_default();
    let path = match path.kind {
        api::PathType::Exact => Path::exact(&path.value),
        api::PathType::PathPrefix => Path::prefix(&path.value),
        api::PathType::RegularExpression => Path::pattern(&path.value),
    };
    let mut parsed = Match::path(path.map_err(|error| refused(format!("{field}.path"), error))?);
    if let Some(method) = &written.method {
        let known = METHODS.contains(&method.as_str()).then(|| Method::from_bytes(method.as_bytes()).ok());
        parsed = parsed.method(known.flatten().ok_or_else(|| {
            let remedy = format!("write one of {}", METHODS.join(", "));
            Rejection::new(format!("{field}.method"), format!("{method:?} is no method"), remedy)
        })?);
    }
    parsed = parse_headers(field, &written.headers, parsed)?;
    for (index, one) in written.query_params.iter().enumerate() {
        let field = format!("{field}.queryParams[{index}]");
        refuse_unknown(&field, &one.unknown)?;
        if one.name.is_empty() {
            return Err(Rejection::new(format!("{field}.name"), "is empty", "name a parameter"));
        }
        parsed = parsed.query(one.name.as_str(), parse_text(format!("{field}.value"), one.kind, &one.value)?);
    }
    Ok(parsed)
}

/// Adds what is asked of headers.
pub(super) fn parse_headers(field: &str, headers: &[NamedMatch], mut to: Match) -> Result<Match, Rejection> {
    for (index, one) in headers.iter().enumerate() {
        let field = format!("{field}.headers[{index}]");
        refuse_unknown(&field, &one.unknown)?;
        let name = HeaderName::try_from(&one.name).map_err(|_| {
            let what = format!("{:?} is not the name of a header", one.name);
            Rejection::new(format!("{field}.name"), what, "write letters, digits and '-'")
        })?;
        to = to.header(name, parse_text(format!("{field}.value"), one.kind, &one.value)?);
    }
    Ok(to)
}

/// Reads how a value is compared.
pub(super) fn parse_text(field: String, kind: MatchType, value: &str) -> Result<Text, Rejection> {
    match kind {
        MatchType::Exact => Ok(Text::exact(value)),
        MatchType::RegularExpression => Text::pattern(value).map_err(|error| refused(field, error)),
    }
}

fn parse_timeouts(field: &str, timeouts: Option<&api::Timeouts>) -> Result<Timeouts, Rejection> {
    let Some(timeouts) = timeouts else { return Ok(Timeouts::default()) };
    refuse_unknown(field, &timeouts.unknown)?;
    let timeout = |name: &str, text: &Option<String>| {
        text.as_deref().map(|text| parse_duration(&format!("{field}.{name}"), text)).transpose()
    };
    Ok(Timeouts {
        request: Timeout::from(timeout("request", &timeouts.request)?),
        backend: Timeout::from(timeout("backendRequest", &timeouts.backend_request)?),
    })
}

fn parse_retry(field: &str, retry: &api::Retry) -> Result<retry::Policy, Rejection> {
    refuse_unknown(field, &retry.unknown)?;
    let backoff = retry.backoff.as_deref().map(|text| parse_duration(&format!("{field}.backoff"), text));
    retry::Policy::parse(&retry.codes, retry.attempts, backoff.transpose()?).map_err(|error| {
        Rejection::new(format!("{field}.codes"), error.to_string(), "write statuses from 400 to 599")
    })
}

/// Reads what keeps a client at one endpoint.
pub(super) fn parse_session(
    rule: &str,
    session: Option<&SessionPersistence>,
) -> Result<Option<Session>, Rejection> {
    let field = format!("{rule}.sessionPersistence");
    let Some(session) = session else { return Ok(None) };
    refuse_unknown(&field, &session.unknown)?;
    let name = session.session_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(SESSION);
    let header = HeaderName::try_from(name).map_err(|_| {
        let what = format!("{name:?} is neither the name of a cookie nor of a header");
        Rejection::new(format!("{field}.sessionName"), what, "write letters, digits and '-'")
    })?;
    let limit = |name: &str, text: &Option<String>| {
        text.as_deref().map(|text| parse_duration(&format!("{field}.{name}"), text)).transpose()
    };
    let absolute = limit("absoluteTimeout", &session.absolute_timeout)?;
    let lifetime = match (session.kind, session.cookie_config.map(|cookie| cookie.lifetime_type)) {
        (SessionType::Header, Some(_)) => {
            let remedy = "remove it, or write type: Cookie";
            return Err(Rejection::new(format!("{field}.cookieConfig"), "is for a header", remedy));
        }
        (_, None | Some(LifetimeType::Session)) => Lifetime::Session,
        (SessionType::Cookie, Some(LifetimeType::Permanent)) if absolute.is_none() => {
            let what = "is missing, and a permanent cookie ends then";
            let remedy = "write a duration such as 24h";
            return Err(Rejection::new(format!("{field}.absoluteTimeout"), what, remedy));
        }
        (SessionType::Cookie, Some(LifetimeType::Permanent)) => Lifetime::Permanent,
    };
    Ok(Some(Session {
        key: match session.kind {
            SessionType::Cookie => SessionKey::Cookie(name.into()),
            SessionType::Header => SessionKey::Header(header),
        },
        absolute,
        idle: limit("idleTimeout", &session.idle_timeout)?,
        lifetime,
    }))
}

/// Reads a duration of Gateway API (GEP-2257): up to four numbers of up to five digits, each with `h`, `m`, `s` or
/// `ms`.
pub(super) fn parse_duration(field: &str, text: &str) -> Result<Duration, Rejection> {
    duration(text).ok_or_else(|| {
        let what = format!("{text:?} is no duration");
        Rejection::new(field, what, "write numbers with h, m, s or ms: 1h30m, 10s, 500ms")
    })
}

pub(super) fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut parts, mut sum) = (text, 0, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at_checked(digits)?;
        let number: u64 = Some(number).filter(|number| number.len() <= 5)?.parse().ok()?;
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let (unit, millis) = units.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        sum += Duration::from_millis(number * millis);
        rest = after.strip_prefix(unit)?;
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_specification() {
        let table = [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("99999h", Some(99_999 * 3_600_000)),
            ("100000h", None),
            ("1h2m3s4ms5ms", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("1s ", None),
            ("", None),
        ];
        for (text, millis) in table {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
