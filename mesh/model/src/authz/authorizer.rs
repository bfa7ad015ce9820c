//! Whom a CUSTOM policy or a route's filter ExternalAuth asks, and how: somebody who speaks Envoy's external
//! authorization, in gRPC or in HTTP.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, uri::PathAndQuery};
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::{Text, may_be_told};
use crate::{
    name::{Hostname, Namespace},
    service::Service,
};

/// How long a check may take, where nobody says. Istio's default is 600 seconds, for which no caller waits, and in which
/// an authorizer that hangs would fill every place for checks.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that can be said: Istio's default.
pub const LONGEST_CHECK: Duration = Duration::from_secs(600);
/// How much of a body can be shown at most, in bytes. It is held until the answer is there.
pub const LARGEST_SHARE: u32 = 1024 * 1024;
/// How many headers a provider may name or add, per list.
pub const MOST_HEADERS: usize = 64;

/// Somebody who is asked whether a request may be. What is in it makes sense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Authorizer(AuthorizerParts);

/// What an [`Authorizer`] is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizerParts {
    /// The namespace of its service; empty: of the service of that host name that everybody sees.
    pub namespace: Namespace,
    /// The host name of its service.
    pub hostname: Hostname,
    /// The port of the service.
    pub port: u16,
    /// How long a check may take, to the end of its answer.
    pub timeout: Duration,
    /// What becomes of a request about which nobody could be asked.
    pub on_failure: OnFailure,
    /// How much it is shown of a body; `None`: nothing.
    pub body: Option<SharedBody>,
    /// How it is asked.
    pub protocol: CheckProtocol,
}

/// What becomes of a request about which nobody could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// It is denied, with this status.
    Deny(#[serde(serialize_with = "status")] StatusCode),
    /// It goes on.
    Allow,
}

/// How much of a request's body is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedBody {
    /// So many bytes at most.
    pub limit: u32,
    /// What becomes of a request with more.
    pub longer: Longer,
    /// In which form it is shown; in HTTP it is always as it is.
    pub form: BodyForm,
}

/// What becomes of a request whose body is longer than what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Longer {
    /// It is answered with 413, and nobody is asked.
    Refused,
    /// The beginning of the body is shown.
    Cut,
}

/// In which form a body is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BodyForm {
    /// As a text; what is none in it is replaced.
    Text,
    /// As bytes.
    Bytes,
}

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckProtocol {
    /// By `envoy.service.auth.v3.Authorization/Check`.
    Grpc(GrpcCheck),
    /// By a request like the one that it is asked about.
    Http(Box<HttpCheck>),
}

/// What a check in gRPC has in it. Names are compared in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcCheck {
    /// The headers of the request that it has; `None`: all.
    pub request_headers: Option<Vec<Text>>,
}

/// What a check in HTTP has in it, and what of its answer is heeded. Names are compared in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// What the path begins with, before the request's own.
    pub path_prefix: Box<str>,
    /// The headers of the request that it has, beside host, method, path and `authorization`.
    pub request_headers: Vec<Text>,
    /// The headers that every check has.
    #[serde(serialize_with = "names")]
    pub added_headers: Vec<(HeaderName, HeaderValue)>,
    /// The headers of an answer that allows that the application gets, in place of the client's.
    pub upstream_on_allow: Vec<Text>,
    /// The headers of an answer that allows that the client gets.
    pub downstream_on_allow: Vec<Text>,
    /// The headers of an answer that denies that the client gets; `None`: all.
    pub downstream_on_deny: Option<Vec<Text>>,
}

impl Authorizer {
    /// Makes one of what makes sense.
    pub fn new(parts: AuthorizerParts) -> Result<Self, InvalidAuthorizer> {
        let hostname = parts.hostname.as_str();
        if hostname.is_empty() || hostname.contains(['/', '*']) || parts.namespace.as_str().contains('/') {
            return Err(InvalidAuthorizer::Service);
        }
        if parts.port == 0 {
            return Err(InvalidAuthorizer::Port);
        }
        if parts.timeout < Duration::from_millis(1) || parts.timeout > LONGEST_CHECK {
            return Err(InvalidAuthorizer::Timeout);
        }
        match parts.on_failure {
            OnFailure::Deny(status) if !(status.is_client_error() || status.is_server_error()) => {
                return Err(InvalidAuthorizer::Status);
            }
            OnFailure::Deny(_) | OnFailure::Allow => {}
        }
        if parts.body.is_some_and(|body| body.limit == 0 || body.limit > LARGEST_SHARE) {
            return Err(InvalidAuthorizer::BodyLimit);
        }
        match &parts.protocol {
            CheckProtocol::Grpc(grpc) => grpc.check()?,
            CheckProtocol::Http(http) => http.check()?,
        }
        Ok(Self(parts))
    }

    /// What it was made from.
    pub fn parts(&self) -> &AuthorizerParts {
        &self.0
    }

    /// Which of the services of its host name it is.
    ///
    /// One of which no namespace is said must be the one that everybody sees: whoever may write a ServiceEntry in some
    /// namespace does not become the mesh's authorizer by it.
    pub fn service<'s, S: AsRef<Service>>(&self, named: &'s [S]) -> Option<&'s S> {
        let namespace = &self.0.namespace;
        named.iter().find(|service| {
            let service = (*service).as_ref();
            if namespace.as_str().is_empty() { service.canonical } else { service.namespace == *namespace }
        })
    }
}

impl GrpcCheck {
    /// Whether a check has this header of the request.
    pub fn shows(&self, name: &HeaderName) -> bool {
        self.request_headers.as_ref().is_none_or(|list| names_header(list, name))
    }

    fn check(&self) -> Result<(), InvalidAuthorizer> {
        match &self.request_headers {
            Some(list) if list.len() > MOST_HEADERS => Err(InvalidAuthorizer::Headers),
            Some(_) | None => Ok(()),
        }
    }
}

impl HttpCheck {
    /// Whether a check has this header of the request, because somebody named it.
    pub fn shows(&self, name: &HeaderName) -> bool {
        names_header(&self.request_headers, name)
    }

    fn check(&self) -> Result<(), InvalidAuthorizer> {
        let prefix = &self.path_prefix;
        let is_path = prefix.starts_with('/') && !prefix.contains(['?', '#']);
        let can_be_written = || PathAndQuery::try_from(&**prefix).is_ok();
        if !(prefix.is_empty() || is_path && can_be_written()) {
            return Err(InvalidAuthorizer::PathPrefix);
        }
        if let Some((name, _)) = self.added_headers.iter().find(|(name, _)| !may_be_told(name)) {
            return Err(InvalidAuthorizer::AddedHeader(name.clone()));
        }
        let lists = [&self.request_headers, &self.upstream_on_allow, &self.downstream_on_allow];
        let lengths = lists.into_iter().chain(&self.downstream_on_deny).map(Vec::len);
        let longest = lengths.chain([self.added_headers.len()]).max().unwrap_or_default();
        if longest > MOST_HEADERS {
            return Err(InvalidAuthorizer::Headers);
        }
        Ok(())
    }
}

/// Whether a list of headers names `name`.
pub(super) fn names_header(list: &[Text], name: &HeaderName) -> bool {
    list.iter().any(|one| one.matches_without_case(name.as_str()))
}

fn status<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

/// Without the values: they may be secrets of the authorizer's.
fn names<S: Serializer>(list: &[(HeaderName, HeaderValue)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|(name, _)| name.as_str()))
}

/// What of an authorizer makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidAuthorizer {
    /// Its service is none.
    #[error("is no service; write hostname, or namespace/hostname")]
    Service,
    /// Its port is none.
    #[error("0 is not a port; write one from 1 to 65535")]
    Port,
    /// No check could end in that time, or it is too long.
    #[error("must be between 1ms and {}s", LONGEST_CHECK.as_secs())]
    Timeout,
    /// The status would say that all is well, or nothing.
    #[error("must be a status from 400 to 599")]
    Status,
    /// Nothing would be shown, or more than is held.
    #[error("must be between 1 and {LARGEST_SHARE} bytes")]
    BodyLimit,
    /// It is no beginning of a path.
    #[error("is no path; begin it with / and leave out ? and #")]
    PathPrefix,
    /// A header that frames messages is not anybody's to add.
    #[error("{0} frames a message, or says whom it is for; leave it out")]
    AddedHeader(HeaderName),
    /// There are too many in a list.
    #[error("at most {MOST_HEADERS} headers are named")]
    Headers,
}
