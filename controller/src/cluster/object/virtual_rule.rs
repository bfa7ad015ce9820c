//! One rule of a VirtualService: for which requests, where they go, how long they may take and when they are repeated.

use std::{collections::BTreeMap, time::Duration};

use ambit_api::virtual_service as api;
use ambit_model::{
    name::{Label, Namespace},
    route::{Match, Path, Text, Timeout, Timeouts, retry},
};
use http::{HeaderName, Method, header};

use super::{
    Rejection,
    route::{Reference, Referent, RouteBackend, refused},
    virtual_filter,
    virtual_service::{HostName, MESH, VirtualMatch, VirtualRule, refuse},
};

/// What `retryOn` may say that is done whenever something is repeated: no connection, or an endpoint that refused to look
/// at it; and, where it does no harm, a connection that broke.
const ALWAYS: [&str; 6] = [
    "connect-failure",
    "refused-stream",
    "unavailable",
    "reset",
    "reset-before-request",
    "http3-post-connect-failure",
];
/// The methods that a prefix or a regex of methods may mean.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

pub(super) fn parse(
    field: String,
    rule: &api::VirtualRule,
    namespace: &Namespace,
) -> Result<VirtualRule, Rejection> {
    refuse(&field, &rule.unknown)?;
    if rule.route.is_empty() && rule.redirect.is_none() {
        return Err(Rejection::new(field, "sends requests nowhere", "write route or redirect"));
    }
    let rewrite = virtual_filter::parse_rewrite(&field, rule.rewrite.as_ref())?;
    let rewrites = rewrite.as_ref().is_some_and(|rewrite| rewrite.uri.is_some());
    let mut matches = Vec::new();
    for (at, one) in rule.matches.iter().enumerate() {
        matches.extend(parse_match(&format!("{field}.match[{at}]"), one, rewrites)?);
    }
    if rule.matches.is_empty() {
        let matched = Match::path(any_path(&field, rewrites)?);
        matches.push(VirtualMatch { matched, port: None, source: None });
    }
    let (timeouts, retry) = parse_times(&field, rule)?;
    Ok(VirtualRule {
        name: rule.name.as_deref().filter(|name| !name.is_empty()).map(Label::from),
        matches,
        filters: virtual_filter::parse(&field, rule, namespace)?,
        rewrite,
        backends: parse_backends(&field, &rule.route, namespace)?,
        timeouts,
        retry,
        field,
    })
}

/// Every path; where a prefix is replaced, that is the first slash.
fn any_path(field: &str, rewrites: bool) -> Result<Path, Rejection> {
    if !rewrites {
        return Ok(Path::default());
    }
    Path::beginning("/").map_err(|error| refused(format!("{field}.rewrite"), error))
}

/// Several for a match that means several methods; none for one that is for gateways alone.
fn parse_match(
    field: &str,
    written: &api::RequestMatch,
    rewrites: bool,
) -> Result<Vec<VirtualMatch>, Rejection> {
    refuse(field, &written.unknown)?;
    if !written.gateways.is_empty() && !written.gateways.iter().any(|name| name == MESH) {
        return Ok(Vec::new());
    }
    let mut matched = Match::path(match &written.uri {
        Some(uri) => parse_path(&format!("{field}.uri"), uri, written.ignore_uri_case, rewrites)?,
        None => any_path(field, rewrites)?,
    });
    if let Some(authority) = &written.authority {
        matched = matched.header(header::HOST, parse_text(&format!("{field}.authority"), authority)?);
    }
    for (name, value) in parse_headers(&format!("{field}.headers"), &written.headers)? {
        if name == header::HOST && written.authority.is_some() {
            let remedy = "remove one of the two";
            return Err(Rejection::new(format!("{field}.headers.host"), "stands beside authority", remedy));
        }
        matched = matched.header(name, value);
    }
    for (name, value) in parse_headers(&format!("{field}.withoutHeaders"), &written.without_headers)? {
        matched = matched.without_header(name, value);
    }
    for (name, value) in &written.query_params {
        matched = matched.query(name.as_str(), parse_text(&format!("{field}.queryParams.{name}"), value)?);
    }
    let port = written.port.filter(|port| *port != 0);
    let port = port.map(|port| super::port(format!("{field}.port"), port)).transpose()?;
    let source = written.source_namespace.as_deref().filter(|name| !name.is_empty()).map(Namespace::from);
    let of = |matched| VirtualMatch { matched, port, source: source.clone() };
    Ok(match &written.method {
        None => vec![of(matched)],
        Some(method) => {
            let methods = parse_methods(&format!("{field}.method"), method)?;
            methods.into_iter().map(|method| of(matched.clone().method(method))).collect()
        }
    })
}

fn parse_path(
    field: &str,
    uri: &api::StringMatch,
    ignore_case: bool,
    rewrites: bool,
) -> Result<Path, Rejection> {
    refuse(field, &uri.unknown)?;
    let path = match (&uri.exact, &uri.prefix, &uri.regex, ignore_case) {
        (Some(exact), None, None, false) => Path::exact(exact),
        (Some(exact), None, None, true) => Path::exact_without_case(exact),
        (None, Some(prefix), None, false) => Path::beginning(prefix),
        (None, Some(_), None, true) if rewrites => {
            let what = "cannot be replaced where case is ignored";
            return Err(Rejection::new(
                field,
                what,
                "write the prefix with its case, or do without rewrite.uri",
            ));
        }
        (None, Some(prefix), None, true) => Path::beginning_without_case(prefix),
        (None, None, Some(regex), false) => Path::pattern(regex),
        (None, None, Some(_), true) => {
            let what = "is compared with its case";
            return Err(Rejection::new(field, what, "write (?i) into the regex, and remove ignoreUriCase"));
        }
        (_, _, _, _) => return Err(one_of_three(field)),
    };
    path.map_err(|error| refused(field, error))
}

fn one_of_three(field: &str) -> Rejection {
    Rejection::new(field, "does not say one thing", "write exact, prefix or regex")
}

/// Reads how a value is compared; nothing at all asks for presence.
pub(super) fn parse_text(field: &str, written: &api::StringMatch) -> Result<Text, Rejection> {
    refuse(field, &written.unknown)?;
    match (&written.exact, &written.prefix, &written.regex) {
        (None, None, None) => Ok(Text::Present),
        (Some(exact), None, None) => Ok(Text::exact(exact.as_str())),
        (None, Some(prefix), None) => Ok(Text::prefix(prefix.as_str())),
        // Istio, too, takes it for presence: what must not be there may be missing then.
        (None, None, Some(regex)) if regex == ".*" => Ok(Text::Present),
        (None, None, Some(regex)) => Text::pattern(regex).map_err(|error| refused(field, error)),
        (_, _, _) => Err(one_of_three(field)),
    }
}

fn parse_headers(
    field: &str,
    headers: &BTreeMap<String, api::StringMatch>,
) -> Result<Vec<(HeaderName, Text)>, Rejection> {
    let mut parsed: Vec<(HeaderName, Text)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let field = format!("{field}.{name}");
        let header = HeaderName::try_from(name).map_err(|_| {
            let remedy = "write letters, digits and '-'; of the host speaks authority, of the path uri";
            Rejection::new(&*field, "is not the name of a header", remedy)
        })?;
        if parsed.iter().any(|(other, _)| *other == header) {
            return Err(Rejection::new(field, "stands there twice", "remove one of the two"));
        }
        parsed.push((header, parse_text(&field, value)?));
    }
    Ok(parsed)
}

fn parse_methods(field: &str, written: &api::StringMatch) -> Result<Vec<Method>, Rejection> {
    let none = || Rejection::new(field, "matches no method", "write one such as GET");
    let text = parse_text(field, written)?;
    if let Text::Exact(exact) = &text {
        let method = Method::from_bytes(exact.as_bytes()).map_err(|_| none())?;
        return Ok(vec![method]);
    }
    let methods: Vec<_> =
        METHODS.into_iter().filter(|method| text.matches(method.as_str().as_bytes())).collect();
    if methods.is_empty() { Err(none()) } else { Ok(methods) }
}

fn parse_backends(
    field: &str,
    route: &[api::WeightedDestination],
    namespace: &Namespace,
) -> Result<Vec<RouteBackend>, Rejection> {
    let parsed = route.iter().enumerate().map(|(at, one)| {
        let field = format!("{field}.route[{at}]");
        refuse(&field, &one.unknown)?;
        // The weight of a single one says nothing.
        let weight = if route.len() == 1 { 1 } else { one.weight.unwrap_or_default() };
        Ok(RouteBackend {
            to: parse_destination(&format!("{field}.destination"), &one.destination, namespace)?,
            weight,
            filters: virtual_filter::parse_edits(&field, one.headers.as_ref())?,
        })
    });
    let backends: Vec<_> = parsed.collect::<Result<_, Rejection>>()?;
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        return Err(Rejection::new(format!("{field}.route"), "has no weight", "give a destination some"));
    }
    Ok(backends)
}

/// Reads whom a rule names.
pub(super) fn parse_destination(
    field: &str,
    written: &api::VirtualDestination,
    namespace: &Namespace,
) -> Result<Reference, Rejection> {
    refuse(field, &written.unknown)?;
    let host = HostName::parse(&format!("{field}.host"), &written.host, namespace)?;
    let port = match &written.port {
        None => None,
        Some(port) => {
            let field = format!("{field}.port");
            refuse(&field, &port.unknown)?;
            Some(super::port(format!("{field}.number"), port.number)?)
        }
    };
    let subset = written.subset.as_deref().filter(|name| !name.is_empty()).map(Label::from);
    Ok(Reference { field: field.to_owned(), to: Referent::Host { host, port, subset } })
}

/// How long a request and an attempt may take, and when it is repeated. Of retries that are not spoken of, Istio's default
/// is what is done without a policy: twice more, if nobody has looked at the request.
fn parse_times(field: &str, rule: &api::VirtualRule) -> Result<(Timeouts, Option<retry::Policy>), Rejection> {
    let time = |name: &str, text: &Option<String>| {
        text.as_deref().map(|text| parse_time(&format!("{field}.{name}"), text)).transpose()
    };
    let request = Timeout::from(time("timeout", &rule.timeout)?);
    let Some(retries) = &rule.retries else {
        return Ok((Timeouts { request, backend: Timeout::Default }, None));
    };
    refuse(&format!("{field}.retries"), &retries.unknown)?;
    let attempt = time("retries.perTryTimeout", &retries.per_try_timeout)?;
    // An attempt ends with its request, whatever is written.
    let attempt = match (attempt, request) {
        (Some(attempt), Timeout::After(limit)) => Some(attempt.min(limit)),
        (attempt, Timeout::After(_) | Timeout::Default | Timeout::Never) => attempt,
    };
    let backoff = time("retries.backoff", &retries.backoff)?;
    let codes = parse_retry_on(&format!("{field}.retries.retryOn"), retries.retry_on.as_deref())?;
    let policy = retry::Policy::parse(&codes, Some(retries.attempts), backoff)
        .map_err(|error| refused(format!("{field}.retries.retryOn"), error))?;
    Ok((Timeouts { request, backend: Timeout::from(attempt) }, Some(policy)))
}

/// The statuses after which a request is repeated.
fn parse_retry_on(field: &str, retry_on: Option<&str>) -> Result<Vec<u16>, Rejection> {
    let mut codes = Vec::new();
    for word in retry_on.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => codes.extend(500..=599),
            "gateway-error" => codes.extend([502, 503, 504]),
            "retriable-4xx" => codes.push(409),
            // Says that the statuses beside it count.
            "retriable-status-codes" => {}
            always if ALWAYS.contains(&always) => {}
            other => match other.parse() {
                Ok(code) => codes.push(code),
                Err(_) => {
                    let what = format!("{other:?} is not supported");
                    let remedy = "write 5xx, gateway-error, retriable-4xx, statuses, connect-failure, \
                                  refused-stream, unavailable or reset";
                    return Err(Rejection::new(field, what, remedy));
                }
            },
        }
    }
    codes.sort_unstable();
    codes.dedup();
    Ok(codes)
}

/// Reads a duration as Istio has it: numbers, perhaps with decimals, each with a unit.
pub(super) fn parse_time(field: &str, text: &str) -> Result<Duration, Rejection> {
    time(text).ok_or_else(|| {
        let what = format!("{text:?} is no duration");
        Rejection::new(field, what, "write numbers with h, m, s or ms: 1h30m, 0.5s, 500ms")
    })
}

fn time(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
    ];
    let (mut rest, mut sum) = (text, 0_u64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(end).filter(|(number, _)| !number.is_empty())?;
        let (unit, nanos) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
        let part: u64 = part.parse().ok()?;
        let part = u128::from(part) * u128::from(nanos) / u128::from(scale);
        let all = whole.checked_mul(nanos)?.checked_add(u64::try_from(part).ok()?)?;
        sum = sum.checked_add(all)?;
        rest = after.strip_prefix(unit)?;
    }
    Some(Duration::from_nanos(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_istio() {
        let table = [
            ("0s", Some(0)),
            ("0.5s", Some(500)),
            (".5s", Some(500)),
            ("1.5h", Some(5_400_000)),
            ("1h30m", Some(5_400_000)),
            ("500ms", Some(500)),
            ("2000us", Some(2)),
            ("1", None),
            ("s", None),
            ("1.s", None),
            ("1..5s", None),
            ("-1s", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("", None),
        ];
        for (text, millis) in table {
            assert_eq!(time(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
