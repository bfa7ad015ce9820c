//! Envoy's external authorization in gRPC, as a client: `envoy.service.auth.v3.Authorization/Check`.
//!
//! Connections are whoever calls [`ask`]'s business. What an authorizer says is believed in full or not at all: an answer
//! with one header that cannot be written is none.

use std::{net::SocketAddr, time::SystemTime};

use ambit_model::{
    authz::{
        Answer, BodyForm, Changes, GrpcCheck, HeaderChange, InvalidAnswer, LARGEST_DENIAL, MOST_CHANGES,
    },
    identity::Identity,
};
use ambit_proto::{
    envoy_core::{
        Address, HeaderValueOption, SocketAddress, address, header_value_option::HeaderAppendAction,
        socket_address,
    },
    ext_authz::{
        AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, attribute_context,
        authorization_client::AuthorizationClient, check_response::HttpResponse,
    },
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header, request};

use crate::unary::{CallError, SendRequest, Sender};

/// In a check with a body: whether the body is only the beginning of it (Envoy's).
pub const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
/// What joins the records of one request.
const REQUEST_ID: &str = "x-request-id";
/// How long a whole answer may be, in bytes: a denial, and as many headers as may be, of a length that HTTP takes.
pub const LARGEST_ANSWER: usize = LARGEST_DENIAL + MOST_CHANGES * 4 * 1024;

/// What an authorizer is told of a request.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    /// Where the request comes from.
    pub source: SocketAddr,
    /// Who sends it, as the certificate says.
    pub principal: Option<&'a Identity>,
    /// The address that it asks for.
    pub destination: SocketAddr,
    /// Who is asked: the identity of the proxy.
    pub own: &'a Identity,
    /// The host name of the service that it is meant for; empty: none.
    pub service: &'a str,
    /// Its head.
    pub head: &'a request::Parts,
    /// What of its head is told.
    pub told: &'a GrpcCheck,
    /// In which version it came.
    pub version: Version,
    /// When it came.
    pub time: SystemTime,
    /// The beginning of its body; `None`: it is not shown.
    pub body: Option<Shown<'a>>,
}

/// A body as an authorizer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// So much of it.
    pub bytes: &'a Bytes,
    /// In which form.
    pub form: BodyForm,
    /// Whether this is all of it.
    pub is_whole: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What came is no answer.
    #[error(transparent)]
    Answer(#[from] InvalidAnswer),
}

/// Asks an authorizer whose authority is `origin`, with `send`.
///
/// The future is boxed: of its own type the compiler does not see that any thread may run it.
pub fn ask<'s>(
    check: &Check<'_>,
    origin: Uri,
    send: &'s SendRequest<'s>,
) -> BoxFuture<'s, Result<Answer, CheckError>> {
    let question = request_of(check);
    let client = AuthorizationClient::with_origin(Sender(send), origin);
    let mut client = client.max_decoding_message_size(LARGEST_ANSWER);
    Box::pin(async move {
        let response = client.check(question).await.map_err(CallError::from)?;
        Ok(answer_of(response.into_inner())?)
    })
}

fn request_of(check: &Check<'_>) -> CheckRequest {
    let Check { head, body, .. } = *check;
    let text = |name| head.headers.get(name).map(lossy).unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let host = head.uri.authority().map_or("", |authority| authority.as_str());
    let scheme = head.uri.scheme_str().unwrap_or("http");
    let (mut text_body, mut raw_body) = (String::new(), Vec::new());
    match body.map(|shown| (shown.form, shown.bytes)) {
        Some((BodyForm::Text, bytes)) => text_body = String::from_utf8_lossy(bytes).into_owned(),
        Some((BodyForm::Bytes, bytes)) => raw_body = bytes.to_vec(),
        None => {}
    }
    let mut headers = joined(&head.headers, check.told);
    let pseudo =
        [(":authority", host), (":method", head.method.as_str()), (":path", path), (":scheme", scheme)];
    headers.extend(pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())));
    headers.remove(PARTIAL_BODY.as_str());
    if let Some(shown) = body {
        headers.insert(PARTIAL_BODY.to_string(), (!shown.is_whole).to_string());
    }
    let http = attribute_context::HttpRequest {
        id: text(REQUEST_ID),
        method: head.method.to_string(),
        headers,
        path: path.to_owned(),
        host: host.to_owned(),
        scheme: scheme.to_owned(),
        size: text(header::CONTENT_LENGTH.as_str()).parse().unwrap_or(-1),
        protocol: if check.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        body: text_body,
        raw_body,
    };
    let principal = |identity: &Identity| identity.to_string();
    let source = attribute_context::Peer {
        address: Some(address_of(check.source)),
        service: String::new(),
        principal: check.principal.map(principal).unwrap_or_default(),
    };
    let destination = attribute_context::Peer {
        address: Some(address_of(check.destination)),
        service: check.service.to_owned(),
        principal: principal(check.own),
    };
    let request = attribute_context::Request { time: Some(check.time.into()), http: Some(http) };
    let attributes =
        AttributeContext { source: Some(source), destination: Some(destination), request: Some(request) };
    CheckRequest { attributes: Some(attributes) }
}

/// Lines of one name are one value, as lists in HTTP are (RFC 9110, 5.2).
fn joined(headers: &HeaderMap, told: &GrpcCheck) -> std::collections::HashMap<String, String> {
    let values = |name| headers.get_all(name).iter().map(lossy).collect::<Vec<_>>().join(",");
    let shown = headers.keys().filter(|name| told.shows(name));
    shown.map(|name| (name.to_string(), values(name))).collect()
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn address_of(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        protocol: socket_address::Protocol::Tcp.into(),
        address: address.ip().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(address.port().into())),
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn answer_of(response: CheckResponse) -> Result<Answer, InvalidAnswer> {
    // Without a status it has not decided anything, and unknown is not yes.
    let status = response.status.ok_or(InvalidAnswer::Contradiction("it has no status"))?;
    match (status.code, response.http_response) {
        (0, None) => Ok(Answer::Allowed(Changes::default())),
        (0, Some(HttpResponse::OkResponse(allowed))) => changes_of(allowed).map(Answer::Allowed),
        (0, Some(HttpResponse::DeniedResponse(_))) => {
            Err(InvalidAnswer::Contradiction("it allows, and says what a client is denied with"))
        }
        (_, None) => Answer::denied(StatusCode::FORBIDDEN, Vec::new(), Vec::new()),
        (_, Some(HttpResponse::DeniedResponse(denied))) => denial_of(denied),
        (_, Some(HttpResponse::OkResponse(_))) => {
            Err(InvalidAnswer::Contradiction("it denies, and says what is to be changed"))
        }
    }
}

fn changes_of(allowed: OkHttpResponse) -> Result<Changes, InvalidAnswer> {
    if !allowed.query_parameters_to_set.is_empty() || !allowed.query_parameters_to_remove.is_empty() {
        // Left out, the application would get a request that the authorizer did not allow.
        return Err(InvalidAnswer::Contradiction("it changes the query, which nobody here can"));
    }
    let removed = allowed.headers_to_remove.into_iter().map(|name| name_of(&name).map(HeaderChange::Remove));
    let request = removed.chain(allowed.headers.into_iter().map(|one| change_of(one, Unsaid::Set)));
    let request = request.collect::<Result<_, _>>()?;
    let response = allowed.response_headers_to_add.into_iter().map(|one| change_of(one, Unsaid::Append));
    let changes = Changes { request, response: response.collect::<Result<_, _>>()? };
    changes.count()?;
    Ok(changes)
}

fn denial_of(denied: DeniedHttpResponse) -> Result<Answer, InvalidAnswer> {
    let code = denied.status.map_or(0, |status| status.code);
    let status = match code {
        0 => StatusCode::FORBIDDEN,
        code => u16::try_from(code)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or(InvalidAnswer::Contradiction("its status is none of HTTP"))?,
    };
    let headers = denied.headers.into_iter().map(|one| change_of(one, Unsaid::Set));
    Answer::denied(status, headers.collect::<Result<_, _>>()?, denied.body.into_bytes())
}

/// What an option without any word of how means.
#[derive(Clone, Copy)]
enum Unsaid {
    Set,
    Append,
}

/// Envoy reads the older field first, and takes the newer's first value, which is its default, for "nothing is said".
fn change_of(option: HeaderValueOption, unsaid: Unsaid) -> Result<HeaderChange, InvalidAnswer> {
    let unreadable = |what: &str| InvalidAnswer::Unreadable(what.into());
    let action = HeaderAppendAction::try_from(option.append_action);
    let action = action.map_err(|_| unreadable("an append_action that is not known"))?;
    let header = option.header.ok_or_else(|| unreadable("a change of no header"))?;
    let name = name_of(&header.key)?;
    let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
    let value = HeaderValue::from_bytes(&value).map_err(|_| InvalidAnswer::Header(header.key.into()))?;
    Ok(match (option.append, action, unsaid) {
        (Some(true), _, _) => HeaderChange::Append(name, value),
        (Some(false), _, _) => HeaderChange::Set(name, value),
        (None, HeaderAppendAction::AppendIfExistsOrAdd, Unsaid::Set) => HeaderChange::Set(name, value),
        (None, HeaderAppendAction::AppendIfExistsOrAdd, Unsaid::Append) => HeaderChange::Append(name, value),
        (None, HeaderAppendAction::AddIfAbsent, _) => HeaderChange::SetIfAbsent(name, value),
        (None, HeaderAppendAction::OverwriteIfExistsOrAdd, _) => HeaderChange::Set(name, value),
        (None, HeaderAppendAction::OverwriteIfExists, _) => HeaderChange::SetIfPresent(name, value),
    })
}

fn name_of(text: &str) -> Result<HeaderName, InvalidAnswer> {
    HeaderName::try_from(text).map_err(|_| InvalidAnswer::Header(text.into()))
}

#[cfg(test)]
mod tests;
