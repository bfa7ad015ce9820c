//! Filters of routes.

use ambit_api::route::{
    CorsFilter, Filter as Written, FilterType, Header, HeaderFilter, MirrorFilter, PathModifier,
    PathModifierType, RedirectFilter, RewriteFilter,
};
use ambit_model::{
    name::Namespace,
    route::{
        Cors, CorsParts, Filter, Fraction, HeaderEdit, NewHost, NewPath, Redirect, RedirectStatus, Rewrite,
        Scheme,
    },
};

use super::{
    Rejection,
    peer_authentication::refuse_unknown,
    route::{RouteFilter, parse_reference, refused},
    route_auth,
};

/// Which filters a kind of routes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    /// Those of HTTPRoute.
    All,
    /// Those of GRPCRoute: calls are not redirected, and their paths say what they are.
    OfCalls,
}

/// Reads the filters of a rule or a backend, `spec.rules[0]`.
pub(super) fn parse_all(
    field: &str,
    filters: &[Written],
    namespace: &Namespace,
    has: Has,
) -> Result<Vec<RouteFilter>, Rejection> {
    let filters = filters.iter().enumerate();
    filters.map(|(index, one)| parse(&format!("{field}.filters[{index}]"), one, namespace, has)).collect()
}

fn parse(field: &str, filter: &Written, namespace: &Namespace, has: Has) -> Result<RouteFilter, Rejection> {
    let wrong = |what: &str| {
        let remedy = "use filters that are supported, or attach the route to what supports it";
        Err(Rejection::new(format!("{field}.type"), format!("{} {what}", filter.kind.word()), remedy))
    };
    let of_calls = match filter.kind {
        FilterType::RequestHeaderModifier
        | FilterType::ResponseHeaderModifier
        | FilterType::RequestMirror => true,
        FilterType::RequestRedirect
        | FilterType::UrlRewrite
        | FilterType::Cors
        | FilterType::ExternalAuth => false,
        FilterType::ExtensionRef => return wrong("is not supported"),
    };
    if has == Has::OfCalls && !of_calls {
        return wrong("is no filter of gRPC calls");
    }
    refuse_unknown(field, &filter.unknown)?;
    only_its_own(field, filter)?;
    let plain = match filter.kind {
        FilterType::RequestHeaderModifier => {
            let field = format!("{field}.requestHeaderModifier");
            Filter::RequestHeaders(parse_edit(&field, present(&field, &filter.request_header_modifier)?)?)
        }
        FilterType::ResponseHeaderModifier => {
            let field = format!("{field}.responseHeaderModifier");
            Filter::ResponseHeaders(parse_edit(&field, present(&field, &filter.response_header_modifier)?)?)
        }
        FilterType::RequestMirror => {
            let field = format!("{field}.requestMirror");
            return parse_mirror(&field, present(&field, &filter.request_mirror)?, namespace);
        }
        FilterType::RequestRedirect => {
            let field = format!("{field}.requestRedirect");
            Filter::Redirect(parse_redirect(&field, present(&field, &filter.request_redirect)?)?)
        }
        FilterType::UrlRewrite => {
            let field = format!("{field}.urlRewrite");
            Filter::Rewrite(parse_rewrite(&field, present(&field, &filter.url_rewrite)?)?)
        }
        FilterType::Cors => {
            let field = format!("{field}.cors");
            Filter::Cors(parse_cors(&field, present(&field, &filter.cors)?)?)
        }
        FilterType::ExternalAuth => {
            let field = format!("{field}.externalAuth");
            return route_auth::parse(&field, present(&field, &filter.external_auth)?, namespace);
        }
        FilterType::ExtensionRef => return wrong("is not supported"),
    };
    Ok(RouteFilter::Plain(plain))
}

/// What its type does not name would be passed over.
fn only_its_own(field: &str, filter: &Written) -> Result<(), Rejection> {
    let there = [
        (
            "requestHeaderModifier",
            filter.request_header_modifier.is_some(),
            FilterType::RequestHeaderModifier,
        ),
        (
            "responseHeaderModifier",
            filter.response_header_modifier.is_some(),
            FilterType::ResponseHeaderModifier,
        ),
        ("requestMirror", filter.request_mirror.is_some(), FilterType::RequestMirror),
        ("requestRedirect", filter.request_redirect.is_some(), FilterType::RequestRedirect),
        ("urlRewrite", filter.url_rewrite.is_some(), FilterType::UrlRewrite),
        ("cors", filter.cors.is_some(), FilterType::Cors),
        ("externalAuth", filter.external_auth.is_some(), FilterType::ExternalAuth),
    ];
    match there.into_iter().find(|(_, there, of)| *there && *of != filter.kind) {
        None => Ok(()),
        Some((name, _, of)) => {
            let what = format!("is not what {} reads", filter.kind.word());
            let remedy = format!("remove it, or write type: {}", of.word());
            Err(Rejection::new(format!("{field}.{name}"), what, remedy))
        }
    }
}

fn present<'f, T>(field: &str, content: &'f Option<T>) -> Result<&'f T, Rejection> {
    content.as_ref().ok_or_else(|| Rejection::new(field, "is missing", "write what the filter does"))
}

fn parse_edit(field: &str, edit: &HeaderFilter) -> Result<HeaderEdit, Rejection> {
    refuse_unknown(field, &edit.unknown)?;
    fn pairs(headers: &[Header]) -> Vec<(&str, &str)> {
        headers.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect()
    }
    let remove: Vec<_> = edit.remove.iter().map(String::as_str).collect();
    HeaderEdit::parse(&pairs(&edit.set), &pairs(&edit.add), &remove).map_err(|error| refused(field, error))
}

fn parse_mirror(field: &str, mirror: &MirrorFilter, namespace: &Namespace) -> Result<RouteFilter, Rejection> {
    refuse_unknown(field, &mirror.unknown)?;
    let share = match (mirror.percent, mirror.fraction) {
        (None, None) => Ok(Fraction::ALL),
        (Some(percent), None) => Fraction::percent(percent),
        (None, Some(part)) => Fraction::new(part.numerator, part.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => {
            return Err(Rejection::new(field, "has percent and fraction", "remove one of the two"));
        }
    };
    let share = share.map_err(|error| {
        let remedy = "write a percentage up to 100, or a fraction up to the whole";
        Rejection::new(field, error.to_string(), remedy)
    })?;
    let backend = &mirror.backend_ref;
    let field = format!("{field}.backendRef");
    if backend.weight.is_some() || !backend.filters.is_empty() {
        return Err(Rejection::new(field, "has a weight or filters", "remove them: a mirror has neither"));
    }
    Ok(RouteFilter::Mirror { to: parse_reference(&field, backend, namespace)?, share })
}

fn parse_redirect(field: &str, redirect: &RedirectFilter) -> Result<Redirect, Rejection> {
    refuse_unknown(field, &redirect.unknown)?;
    let scheme = match redirect.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => {
            let what = format!("{other:?} is no scheme");
            return Err(Rejection::new(format!("{field}.scheme"), what, "write http or https"));
        }
    };
    let status = match redirect.status_code {
        None => RedirectStatus::default(),
        Some(code) => RedirectStatus::new(code).ok_or_else(|| {
            let what = format!("{code} does not send a client elsewhere");
            Rejection::new(format!("{field}.statusCode"), what, "write 301, 302, 303, 307 or 308")
        })?,
    };
    let port = redirect.port.map(|port| super::port(format!("{field}.port"), port)).transpose()?;
    Ok(Redirect {
        scheme,
        host: parse_host(field, redirect.hostname.as_deref())?,
        port,
        path: parse_path(field, redirect.path.as_ref())?,
        status,
    })
}

fn parse_rewrite(field: &str, rewrite: &RewriteFilter) -> Result<Rewrite, Rejection> {
    refuse_unknown(field, &rewrite.unknown)?;
    Ok(Rewrite {
        host: parse_host(field, rewrite.hostname.as_deref())?,
        path: parse_path(field, rewrite.path.as_ref())?,
    })
}

fn parse_host(field: &str, host: Option<&str>) -> Result<Option<NewHost>, Rejection> {
    host.map(NewHost::parse).transpose().map_err(|error| refused(format!("{field}.hostname"), error))
}

fn parse_path(field: &str, path: Option<&PathModifier>) -> Result<Option<NewPath>, Rejection> {
    let Some(path) = path else { return Ok(None) };
    let parsed = match (path.kind, &path.replace_full_path, &path.replace_prefix_match) {
        (PathModifierType::ReplaceFullPath, Some(path), None) => NewPath::full(path),
        (PathModifierType::ReplacePrefixMatch, None, Some(prefix)) => NewPath::prefix(prefix),
        (PathModifierType::ReplaceFullPath | PathModifierType::ReplacePrefixMatch, _, _) => {
            let what = "does not say what its type names, or more";
            let remedy = "write replaceFullPath or replacePrefixMatch, as the type says";
            return Err(Rejection::new(format!("{field}.path"), what, remedy));
        }
    };
    parsed.map(Some).map_err(|error| refused(format!("{field}.path"), error))
}

fn parse_cors(field: &str, cors: &CorsFilter) -> Result<Cors, Rejection> {
    refuse_unknown(field, &cors.unknown)?;
    fn list(texts: &[String]) -> Vec<&str> {
        texts.iter().map(String::as_str).collect()
    }
    let parts = CorsParts {
        origins: &list(&cors.allow_origins),
        credentials: cors.allow_credentials.unwrap_or(false),
        methods: &list(&cors.allow_methods),
        headers: &list(&cors.allow_headers),
        exposed: &list(&cors.expose_headers),
        max_age: cors.max_age,
    };
    Cors::parse(&parts).map_err(|error| refused(field, error))
}
