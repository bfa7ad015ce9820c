//! The filter ExternalAuth of HTTPRoutes: whom a rule asks whether its requests may be (GEP-1494).

use std::sync::Arc;

use ambit_api::route::{AuthProtocol, ExternalAuthFilter, ForwardBody, GrpcAuth, HttpAuth};
use ambit_model::{
    authz::{
        Authorizer, AuthorizerParts, BodyForm, CHECK_TIMEOUT, CheckProtocol, GrpcCheck, HttpCheck,
        InvalidAuthorizer, Longer, OnFailure, SharedBody, Text,
    },
    name::{Namespace, ServiceKey},
    route::{Destination, ExternalAuth, Prefix},
};
use http::{HeaderName, StatusCode};

use super::{
    Rejection,
    peer_authentication::refuse_unknown,
    route::{RouteFilter, parse_reference},
};

/// How somebody is asked, whoever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedBy {
    protocol: CheckProtocol,
    body: Option<SharedBody>,
}

impl AskedBy {
    /// Asking `to`. Whether that makes sense does not depend on it, so what passed the door does.
    pub(super) fn asking(&self, to: Destination) -> Result<ExternalAuth, InvalidAuthorizer> {
        match to {
            Destination::Service { service, port, .. } => {
                self.authorizer(service, port).map(|one| ExternalAuth::Asks(Arc::new(one)))
            }
            Destination::Invalid { reason } => Ok(ExternalAuth::Nobody { reason }),
        }
    }

    fn authorizer(&self, service: ServiceKey, port: u16) -> Result<Authorizer, InvalidAuthorizer> {
        Authorizer::new(AuthorizerParts {
            namespace: service.namespace,
            hostname: service.hostname,
            port,
            timeout: CHECK_TIMEOUT,
            // A failure of ours, which tells it from a denial; the specification leaves open how it fails closed.
            on_failure: OnFailure::Deny(StatusCode::INTERNAL_SERVER_ERROR),
            body: self.body,
            protocol: self.protocol.clone(),
        })
    }
}

/// Reads a filter, `spec.rules[0].filters[0].externalAuth`.
pub(super) fn parse(
    field: &str,
    filter: &ExternalAuthFilter,
    namespace: &Namespace,
) -> Result<RouteFilter, Rejection> {
    refuse_unknown(field, &filter.unknown)?;
    let other = |name: &str, protocol: &str| {
        let remedy = format!("remove it, or write protocol: {protocol}");
        Err(Rejection::new(format!("{field}.{name}"), "is not what its protocol reads", remedy))
    };
    let protocol = match (filter.protocol, &filter.grpc, &filter.http) {
        (AuthProtocol::Grpc, _, Some(_)) => return other("http", "HTTP"),
        (AuthProtocol::Http, Some(_), _) => return other("grpc", "GRPC"),
        (AuthProtocol::Grpc, grpc, None) => {
            CheckProtocol::Grpc(parse_grpc(&format!("{field}.grpc"), &grpc.clone().unwrap_or_default())?)
        }
        (AuthProtocol::Http, None, http) => {
            let http = parse_http(&format!("{field}.http"), &http.clone().unwrap_or_default())?;
            CheckProtocol::Http(Box::new(http))
        }
    };
    let body = match &filter.forward_body {
        Some(body) => parse_body(&format!("{field}.forwardBody"), body)?,
        None => None,
    };
    let how = AskedBy { protocol, body };
    // Of whomever it is asked, the rest is judged here.
    how.authorizer(ServiceKey::new("any", "any"), 1).map_err(|error| refused(field, &error))?;
    let backend = &filter.backend_ref;
    let field = format!("{field}.backendRef");
    if backend.weight.is_some() || !backend.filters.is_empty() {
        let remedy = "remove them: who is asked has neither";
        return Err(Rejection::new(field, "has a weight or filters", remedy));
    }
    Ok(RouteFilter::ExternalAuth { to: parse_reference(&field, backend, namespace)?, how })
}

fn refused(field: &str, error: &InvalidAuthorizer) -> Rejection {
    let (place, remedy) = match error {
        InvalidAuthorizer::BodyLimit => (".forwardBody.maxSize", "write a number of bytes such as 8192"),
        InvalidAuthorizer::PathPrefix => (".http.path", "write the beginning of a path such as /check"),
        InvalidAuthorizer::Headers => ("", "name fewer headers"),
        InvalidAuthorizer::Service
        | InvalidAuthorizer::Port
        | InvalidAuthorizer::Timeout
        | InvalidAuthorizer::Status
        | InvalidAuthorizer::AddedHeader(_) => ("", "write it so"),
    };
    Rejection::new(format!("{field}{place}"), error.to_string(), remedy)
}

fn parse_grpc(field: &str, grpc: &GrpcAuth) -> Result<GrpcCheck, Rejection> {
    refuse_unknown(field, &grpc.unknown)?;
    let names = parse_names(&format!("{field}.allowedHeaders"), &grpc.allowed_headers)?;
    Ok(GrpcCheck { request_headers: (!names.is_empty()).then_some(names) })
}

fn parse_http(field: &str, http: &HttpAuth) -> Result<HttpCheck, Rejection> {
    refuse_unknown(field, &http.unknown)?;
    let told = parse_names(&format!("{field}.allowedResponseHeaders"), &http.allowed_response_headers)?;
    Ok(HttpCheck {
        path_prefix: parse_path(&format!("{field}.path"), http.path.as_deref().unwrap_or_default())?,
        request_headers: parse_names(&format!("{field}.allowedHeaders"), &http.allowed_headers)?,
        upstream_on_allow: if told.is_empty() { vec![Text::Presence] } else { told },
        ..HttpCheck::default()
    })
}

/// What paths begin with; none is empty, for the path of a request brings its own slash.
fn parse_path(field: &str, path: &str) -> Result<Box<str>, Rejection> {
    if path.is_empty() {
        return Ok("".into());
    }
    match Prefix::parse(path) {
        Ok(prefix) => Ok(prefix.as_str().into()),
        Err(error) => {
            let remedy = "write the beginning of a path such as /check";
            Err(Rejection::new(field, error.to_string(), remedy))
        }
    }
}

fn parse_names(field: &str, list: &[String]) -> Result<Vec<Text>, Rejection> {
    let parse = |(index, name): (usize, &String)| match HeaderName::try_from(name) {
        Ok(name) => Ok(Text::Exact(name.as_str().into())),
        Err(_) => {
            let what = format!("{name:?} is no name of a header");
            Err(Rejection::new(format!("{field}[{index}]"), what, "write letters, digits and '-'"))
        }
    };
    list.iter().enumerate().map(parse).collect()
}

fn parse_body(field: &str, body: &ForwardBody) -> Result<Option<SharedBody>, Rejection> {
    refuse_unknown(field, &body.unknown)?;
    let limit = body.max_size.filter(|limit| *limit > 0);
    // What is longer is refused (ForwardBody of the Go types): who decides by a beginning has not seen the rest.
    Ok(limit.map(|limit| SharedBody { limit, longer: Longer::Refused, form: BodyForm::Text }))
}
