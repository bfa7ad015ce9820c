//! What a rule of a VirtualService does to requests and responses.

use std::collections::BTreeMap;

use ambit_api::virtual_service as api;
use ambit_model::{
    name::Namespace,
    route::{
        Abort, Cors, CorsParts, Delay, Fault, Filter, Fraction, GrpcCode, HeaderEdit, NewHost, NewPath,
        Redirect, RedirectStatus, Scheme, With,
    },
};
use http::StatusCode;

use super::{
    Rejection,
    route::{RouteFilter, refused},
    virtual_rule::{parse_destination, parse_time},
    virtual_service::{NewTarget, refuse},
};

/// A millionth of all requests: as fine as Istio draws.
const WHOLE: u32 = 1_000_000;

/// Reads all filters of a rule but for its rewrite.
pub(super) fn parse(
    field: &str,
    rule: &api::VirtualRule,
    namespace: &Namespace,
) -> Result<Vec<RouteFilter>, Rejection> {
    let mut filters = parse_edits(field, rule.headers.as_ref())?;
    let mut plain = |filter: Option<Filter>| filters.extend(filter.map(RouteFilter::Plain));
    let fault = rule.fault.as_ref().map(|fault| parse_fault(&format!("{field}.fault"), fault));
    plain(fault.transpose()?.map(Filter::Fault));
    let cors = rule.cors_policy.as_ref().map(|cors| parse_cors(&format!("{field}.corsPolicy"), cors));
    plain(cors.transpose()?.map(Filter::Cors));
    let redirect = rule.redirect.as_ref().map(|one| parse_redirect(&format!("{field}.redirect"), one));
    plain(redirect.transpose()?.map(Filter::Redirect));
    filters.extend(parse_mirrors(field, rule, namespace)?);
    Ok(filters)
}

/// Reads how headers are changed.
pub(super) fn parse_edits(
    field: &str,
    headers: Option<&api::Headers>,
) -> Result<Vec<RouteFilter>, Rejection> {
    let Some(headers) = headers else { return Ok(Vec::new()) };
    let field = format!("{field}.headers");
    refuse(&field, &headers.unknown)?;
    let edit = |name: &str, operations: &Option<api::HeaderOperations>| {
        operations.as_ref().map(|one| parse_edit(&format!("{field}.{name}"), one)).transpose()
    };
    let request = edit("request", &headers.request)?.map(Filter::RequestHeaders);
    let response = edit("response", &headers.response)?.map(Filter::ResponseHeaders);
    Ok([request, response].into_iter().flatten().map(RouteFilter::Plain).collect())
}

fn parse_edit(field: &str, operations: &api::HeaderOperations) -> Result<HeaderEdit, Rejection> {
    refuse(field, &operations.unknown)?;
    for (name, value) in operations.set.iter().chain(&operations.add) {
        if value.contains('%') {
            let what = "has a '%', which begins a variable of Envoy's: waypoints have none";
            return Err(Rejection::new(format!("{field}: {name}"), what, "write the value without '%'"));
        }
    }
    fn pairs(headers: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
    let remove: Vec<_> = operations.remove.iter().map(String::as_str).collect();
    HeaderEdit::parse(&pairs(&operations.set), &pairs(&operations.add), &remove)
        .map_err(|error| refused(field, error))
}

/// Reads the other path and host that requests get.
pub(super) fn parse_rewrite(
    field: &str,
    rewrite: Option<&api::VirtualRewrite>,
) -> Result<Option<NewTarget>, Rejection> {
    let Some(rewrite) = rewrite else { return Ok(None) };
    let field = format!("{field}.rewrite");
    refuse(&field, &rewrite.unknown)?;
    let host = parse_host(&field, rewrite.authority.as_deref())?;
    let uri = rewrite.uri.clone().filter(|uri| !uri.is_empty());
    if uri.is_none() && host.is_none() {
        return Err(Rejection::new(field, "rewrites nothing", "write uri, authority or both"));
    }
    Ok(Some(NewTarget { uri, host }))
}

fn parse_host(field: &str, host: Option<&str>) -> Result<Option<NewHost>, Rejection> {
    let host = host.filter(|host| !host.is_empty());
    host.map(NewHost::parse).transpose().map_err(|error| refused(format!("{field}.authority"), error))
}

fn parse_redirect(field: &str, redirect: &api::VirtualRedirect) -> Result<Redirect, Rejection> {
    refuse(field, &redirect.unknown)?;
    let scheme = match redirect.scheme.as_deref() {
        None | Some("") => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => {
            let what = format!("{other:?} is no scheme");
            return Err(Rejection::new(format!("{field}.scheme"), what, "write http or https"));
        }
    };
    let written = redirect.port.filter(|port| *port != 0);
    let written = written.map(|port| super::port(format!("{field}.port"), port)).transpose()?;
    let port = match (written, redirect.derive_port, scheme) {
        (Some(_), Some(_), _) => {
            return Err(Rejection::new(field, "has port and derivePort", "remove one of the two"));
        }
        (port, None, _) => port,
        (None, Some(api::DerivePort::FromProtocolDefault), Some(Scheme::Https)) => Some(443),
        (None, Some(api::DerivePort::FromProtocolDefault), Some(Scheme::Http) | None) => Some(80),
        (None, Some(api::DerivePort::FromRequestPort), None) => None,
        (None, Some(api::DerivePort::FromRequestPort), Some(_)) => {
            let what = "is not supported beside a scheme";
            return Err(Rejection::new(format!("{field}.derivePort"), what, "write the port"));
        }
    };
    let code = redirect.redirect_code.filter(|code| *code != 0).unwrap_or(301);
    let status = u16::try_from(code).ok().and_then(RedirectStatus::new).ok_or_else(|| {
        let what = format!("{code} does not send a client elsewhere");
        Rejection::new(format!("{field}.redirectCode"), what, "write 301, 302, 303, 307 or 308")
    })?;
    let path = redirect.uri.as_deref().filter(|uri| !uri.is_empty()).map(NewPath::full).transpose();
    let path = path.map_err(|error| refused(format!("{field}.uri"), error))?;
    Ok(Redirect { scheme, host: parse_host(field, redirect.authority.as_deref())?, port, path, status })
}

fn parse_fault(field: &str, fault: &api::FaultInjection) -> Result<Fault, Rejection> {
    refuse(field, &fault.unknown)?;
    let delay = fault.delay.as_ref().map(|delay| {
        let field = format!("{field}.delay");
        refuse(&field, &delay.unknown)?;
        let time = delay.fixed_delay.as_deref();
        let time = time
            .ok_or_else(|| Rejection::new(&*field, "has no fixedDelay", "write how long: fixedDelay: 5s"))?;
        let time = parse_time(&format!("{field}.fixedDelay"), time)?;
        Ok::<_, Rejection>(Delay { share: parse_share_of_fault(&field, delay.percentage.as_ref())?, time })
    });
    let abort = fault.abort.as_ref().map(|abort| parse_abort(&format!("{field}.abort"), abort));
    Fault::new(delay.transpose()?, abort.transpose()?).map_err(|error| refused(field, error))
}

fn parse_abort(field: &str, abort: &api::FaultAbort) -> Result<Abort, Rejection> {
    refuse(field, &abort.unknown)?;
    let with = match (abort.http_status, abort.grpc_status.as_deref()) {
        (Some(status), None) => {
            let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            status.map(With::Http)
        }
        (None, Some(status)) => GrpcCode::parse(status).map(With::Grpc),
        (_, _) => {
            let what = "does not say one status";
            return Err(Rejection::new(field, what, "write httpStatus or grpcStatus"));
        }
    };
    let with = with.ok_or_else(|| {
        let remedy = "write a status of HTTP such as 503, or one of gRPC such as UNAVAILABLE";
        Rejection::new(field, "has a status that is none", remedy)
    })?;
    Ok(Abort { share: parse_share_of_fault(field, abort.percentage.as_ref())?, with })
}

/// Istio takes a fault without percentage for one that meets nobody.
fn parse_share_of_fault(field: &str, percentage: Option<&api::Percent>) -> Result<Fraction, Rejection> {
    let Some(percentage) = percentage else {
        let remedy = "write of how many requests: percentage: {value: 100}";
        return Err(Rejection::new(format!("{field}.percentage"), "is missing: it meets no request", remedy));
    };
    parse_share(&format!("{field}.percentage"), percentage)
}

fn parse_share(field: &str, percentage: &api::Percent) -> Result<Fraction, Rejection> {
    refuse(field, &percentage.unknown)?;
    let written = percentage.value.as_ref().map(ToString::to_string).unwrap_or_else(|| "0".to_owned());
    let share = millionths(&written).and_then(|parts| Fraction::new(parts, WHOLE).ok());
    share.ok_or_else(|| {
        let what = format!("{written} is no percentage");
        Rejection::new(format!("{field}.value"), what, "write 0 to 100, with up to four decimals")
    })
}

/// A percentage in millionths.
fn millionths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let missing = 4_usize.checked_sub(part.len())?;
    let scale = 10_u32.checked_pow(u32::try_from(missing).ok()?)?;
    let part = part.parse::<u32>().ok()?.checked_mul(scale)?;
    whole.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(part)
}

fn parse_mirrors(
    field: &str,
    rule: &api::VirtualRule,
    namespace: &Namespace,
) -> Result<Vec<RouteFilter>, Rejection> {
    let share = |field: &str, percentage: Option<&api::Percent>| {
        percentage.map_or(Ok(Fraction::ALL), |percentage| parse_share(field, percentage))
    };
    let mut mirrors = Vec::new();
    if let Some(mirror) = &rule.mirror {
        let to = parse_destination(&format!("{field}.mirror"), mirror, namespace)?;
        let share = share(&format!("{field}.mirrorPercentage"), rule.mirror_percentage.as_ref())?;
        mirrors.push(RouteFilter::Mirror { to, share });
    } else if rule.mirror_percentage.is_some() {
        let remedy = "write the mirror, or give each of mirrors a percentage";
        return Err(Rejection::new(
            format!("{field}.mirrorPercentage"),
            "stands there without mirror",
            remedy,
        ));
    }
    for (at, mirror) in rule.mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{at}]");
        refuse(&field, &mirror.unknown)?;
        let to = parse_destination(&format!("{field}.destination"), &mirror.destination, namespace)?;
        let share = share(&format!("{field}.percentage"), mirror.percentage.as_ref())?;
        mirrors.push(RouteFilter::Mirror { to, share });
    }
    Ok(mirrors)
}

fn parse_cors(field: &str, cors: &api::CorsPolicy) -> Result<Cors, Rejection> {
    refuse(field, &cors.unknown)?;
    let mut origins = Vec::with_capacity(cors.allow_origins.len());
    for (at, origin) in cors.allow_origins.iter().enumerate() {
        let field = format!("{field}.allowOrigins[{at}]");
        refuse(&field, &origin.unknown)?;
        origins.push(match (&origin.exact, &origin.prefix, &origin.regex) {
            (Some(exact), None, None) => exact.as_str(),
            (None, None, Some(regex)) if regex == ".*" => "*",
            (_, _, _) => {
                let remedy = "write exact: an origin, whose host may begin with `*.`, or `*`";
                return Err(Rejection::new(field, "is compared in a way that is not supported", remedy));
            }
        });
    }
    fn list(texts: &[String]) -> Vec<&str> {
        texts.iter().map(String::as_str).collect()
    }
    let max_age = cors.max_age.as_deref();
    let max_age = max_age.map(|text| parse_time(&format!("{field}.maxAge"), text)).transpose()?;
    let parts = CorsParts {
        origins: &origins,
        credentials: cors.allow_credentials.unwrap_or(false),
        methods: &list(&cors.allow_methods),
        headers: &list(&cors.allow_headers),
        exposed: &list(&cors.expose_headers),
        max_age: max_age.map(|age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX)),
    };
    Cors::parse(&parts).map_err(|error| refused(field, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_up_to_four_decimals() {
        let table = [
            ("0", Some(0)),
            ("100", Some(1_000_000)),
            ("50.0", Some(500_000)),
            ("0.1", Some(1_000)),
            ("0.0001", Some(1)),
            ("12.3456", Some(123_456)),
            ("0.00001", None),
            ("1e-7", None),
            ("-1", None),
            ("99999999999", None),
        ];
        for (text, parts) in table {
            assert_eq!(millionths(text), parts, "{text}");
        }
    }
}
