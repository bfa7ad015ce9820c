//! ConfigMap `istio`, as far as the mesh reads it: the external authorizers among the `extensionProviders`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ambit_api::mesh_config as api;
use ambit_model::{
    authz::{
        Authorizer, AuthorizerParts, BodyForm, CHECK_TIMEOUT, CheckProtocol, GrpcCheck, HttpCheck,
        InvalidAuthorizer, Longer, OnFailure, SharedBody, Text,
    },
    name::{Label, Namespace},
};
use http::{HeaderName, HeaderValue, StatusCode};
use k8s_openapi::{api::core::v1 as k8s, apimachinery::pkg::util::intstr::IntOrString};

use super::{
    Meta, Rejection, Written, http_route::duration, peer_authentication::bare_meta,
    peer_authentication::refuse_unknown,
};

/// What the mesh needs of the mesh configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Those who extend the mesh, by name; or why they could not be understood, and never were.
    pub providers: Result<BTreeMap<Label, Provider>, String>,
}

/// Somebody who extends the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// He can be asked whether a request may be.
    Authorizer(Arc<Authorizer>),
    /// He does something else, of which nothing is read.
    Other,
}

impl MeshConfig {
    pub(super) fn parse(namespace: Namespace, object: k8s::ConfigMap) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let text = object.data.unwrap_or_default().remove(api::KEY).unwrap_or_default();
        let config = api::MeshConfig::read(&text).map_err(|error| {
            let field = if error.field.is_empty() { at("") } else { at(&format!(".{}", error.field)) };
            Rejection::new(field, error.what, "write it as Istio's mesh configuration")
        })?;
        let mut providers = BTreeMap::new();
        for (index, provider) in config.extension_providers.into_iter().enumerate() {
            let field = at(&format!(".extensionProviders[{index}]"));
            let name = Label::from(provider.name.as_str());
            if name.is_empty() {
                return Err(Rejection::new(format!("{field}.name"), "is missing", "name the provider"));
            }
            let provider = parse_provider(&field, provider)?;
            if providers.insert(name, provider).is_some() {
                let what = "is taken by another provider";
                return Err(Rejection::new(format!("{field}.name"), what, "choose another name"));
            }
        }
        Ok(Self { meta, providers: Ok(providers) })
    }

    /// What one that cannot be understood is taken for: nobody is known by it.
    pub(super) fn undecodable(written: &Written<'_>, reason: String) -> Self {
        Self { meta: bare_meta(written), providers: Err(reason) }
    }
}

fn at(rest: &str) -> String {
    format!("data.{}{rest}", api::KEY)
}

fn parse_provider(field: &str, provider: api::ExtensionProvider) -> Result<Provider, Rejection> {
    match (provider.envoy_ext_authz_grpc, provider.envoy_ext_authz_http) {
        (Some(_), Some(_)) => {
            Err(Rejection::new(field, "is an authorizer in gRPC and in HTTP", "remove one of the two"))
        }
        (Some(grpc), None) => {
            let field = format!("{field}.envoyExtAuthzGrpc");
            refuse_unknown(&field, &grpc.unknown)?;
            authorizer(&field, grpc.asked, CheckProtocol::Grpc(GrpcCheck::default()))
        }
        (None, Some(http)) => {
            let field = format!("{field}.envoyExtAuthzHttp");
            refuse_unknown(&field, &http.unknown)?;
            let packs =
                http.asked.include_request_body_in_check.as_ref().is_some_and(|body| body.pack_as_bytes);
            if packs {
                let field = format!("{field}.includeRequestBodyInCheck.packAsBytes");
                return Err(Rejection::new(
                    field,
                    "is for gRPC alone",
                    "remove it: in HTTP a body is as it is",
                ));
            }
            let check = parse_http(&field, &http)?;
            authorizer(&field, http.asked, CheckProtocol::Http(Box::new(check)))
        }
        (None, None) => Ok(Provider::Other),
    }
}

fn authorizer(field: &str, asked: api::Asked, protocol: CheckProtocol) -> Result<Provider, Rejection> {
    let (namespace, hostname) = asked.service.split_once('/').unwrap_or(("", &asked.service));
    if asked.service.contains('/') && namespace.is_empty() {
        return Err(refused(field, &InvalidAuthorizer::Service));
    }
    let parts = AuthorizerParts {
        namespace: namespace.into(),
        hostname: hostname.into(),
        port: super::port(format!("{field}.port"), asked.port)?,
        timeout: match &asked.timeout {
            Some(text) => parse_istio_duration(format!("{field}.timeout"), text)?,
            None => CHECK_TIMEOUT,
        },
        on_failure: match (asked.fail_open, &asked.status_on_error) {
            // It is read all the same: a mistake in it is a mistake.
            (true, status) => parse_status(field, status.as_ref()).map(|_| OnFailure::Allow)?,
            (false, status) => OnFailure::Deny(parse_status(field, status.as_ref())?),
        },
        body: asked.include_request_body_in_check.map(|body| parse_body(field, &body)).transpose()?,
        protocol,
    };
    let authorizer = Authorizer::new(parts).map_err(|error| refused(field, &error))?;
    Ok(Provider::Authorizer(Arc::new(authorizer)))
}

fn refused(field: &str, error: &InvalidAuthorizer) -> Rejection {
    let (place, remedy) = match error {
        InvalidAuthorizer::Service => ("service", "write hostname, or namespace/hostname"),
        InvalidAuthorizer::Port => ("port", "write a number from 1 to 65535"),
        InvalidAuthorizer::Timeout => ("timeout", "write a duration such as 500ms or 10s"),
        InvalidAuthorizer::Status => ("statusOnError", "write a status such as \"503\""),
        InvalidAuthorizer::BodyLimit => {
            ("includeRequestBodyInCheck.maxRequestBytes", "write a number of bytes such as 8192")
        }
        InvalidAuthorizer::PathPrefix => ("pathPrefix", "write the beginning of a path such as /check"),
        InvalidAuthorizer::AddedHeader(_) => ("includeAdditionalHeadersInCheck", "leave it out"),
        InvalidAuthorizer::Headers => ("", "name fewer; a name may end with * to stand for several"),
    };
    let field = if place.is_empty() { field.to_owned() } else { format!("{field}.{place}") };
    Rejection::new(field, error.to_string(), remedy)
}

/// A duration as Istio writes it, seconds with a fraction; or as Gateway API does.
pub(super) fn parse_istio_duration(field: String, text: &str) -> Result<Duration, Rejection> {
    let fraction =
        text.strip_suffix('s').filter(|number| number.chars().all(|c| c.is_ascii_digit() || c == '.'));
    let seconds = fraction.and_then(|number| number.parse().ok());
    let parsed =
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).or_else(|| duration(text));
    parsed.ok_or_else(|| {
        let what = format!("{text:?} is no duration");
        Rejection::new(field, what, "write a duration such as 500ms or 10s")
    })
}

fn parse_status(field: &str, status: Option<&IntOrString>) -> Result<StatusCode, Rejection> {
    let code = match status {
        None => return Ok(StatusCode::FORBIDDEN),
        Some(IntOrString::Int(code)) => u16::try_from(*code).ok(),
        Some(IntOrString::String(text)) => text.parse().ok(),
    };
    let code = code.and_then(|code| StatusCode::from_u16(code).ok());
    code.ok_or_else(|| refused(field, &InvalidAuthorizer::Status))
}

fn parse_body(field: &str, body: &api::BodyInCheck) -> Result<SharedBody, Rejection> {
    refuse_unknown(&format!("{field}.includeRequestBodyInCheck"), &body.unknown)?;
    Ok(SharedBody {
        limit: body.max_request_bytes,
        longer: if body.allow_partial_message { Longer::Cut } else { Longer::Refused },
        form: if body.pack_as_bytes { BodyForm::Bytes } else { BodyForm::Text },
    })
}

fn parse_http(field: &str, http: &api::HttpAuthorizer) -> Result<HttpCheck, Rejection> {
    let names = |place: &str, list: &[String]| {
        let names = list.iter().enumerate();
        let names = names.map(|(index, name)| parse_name(format!("{field}.{place}[{index}]"), name));
        names.collect::<Result<Vec<_>, _>>()
    };
    let mut request_headers = names("includeRequestHeadersInCheck", &http.include_request_headers_in_check)?;
    request_headers.extend(names("includeHeadersInCheck", &http.include_headers_in_check)?);
    let on_deny = names("headersToDownstreamOnDeny", &http.headers_to_downstream_on_deny)?;
    let added = http.include_additional_headers_in_check.iter();
    Ok(HttpCheck {
        path_prefix: http.path_prefix.as_str().into(),
        request_headers,
        added_headers: added
            .map(|(name, value)| parse_added(field, name, value))
            .collect::<Result<_, _>>()?,
        upstream_on_allow: names("headersToUpstreamOnAllow", &http.headers_to_upstream_on_allow)?,
        downstream_on_allow: names("headersToDownstreamOnAllow", &http.headers_to_downstream_on_allow)?,
        downstream_on_deny: (!on_deny.is_empty()).then_some(on_deny),
    })
}

/// The name of a header; it may begin or end with `*`.
fn parse_name(field: String, name: &str) -> Result<Text, Rejection> {
    let (text, bare) = match (name.strip_suffix('*'), name.strip_prefix('*')) {
        (Some(""), _) => return Ok(Text::Presence),
        (Some(prefix), _) => (Text::Prefix(prefix.into()), prefix),
        (None, Some(suffix)) => (Text::Suffix(suffix.into()), suffix),
        (None, None) => (Text::Exact(name.into()), name),
    };
    // `*` may be part of a name, says HTTP; nobody means it here.
    if bare.contains('*') || HeaderName::try_from(bare).is_err() {
        let what = format!("{name:?} is no name of a header");
        return Err(Rejection::new(field, what, "write a name; * stands for any beginning or any end"));
    }
    Ok(text)
}

fn parse_added(field: &str, name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Rejection> {
    let field = || format!("{field}.includeAdditionalHeadersInCheck[{name}]");
    let invalid = |what: &str| Rejection::new(field(), what, "write a header that HTTP can carry");
    let name = HeaderName::try_from(name).map_err(|_| invalid("is no name of a header"))?;
    // It may be a secret: it is not told.
    let mut value =
        HeaderValue::try_from(value).map_err(|_| invalid("has a value that is none of a header"))?;
    value.set_sensitive(true);
    Ok((name, value))
}
