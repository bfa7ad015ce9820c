//! Every reason for which a connection or request is refused or fails, and what the outside sees of it.
//!
//! A closed list: word, response flag (Envoy's, a metric label), HTTP status and advice are exhaustive matches, so a
//! new reason cannot be forgotten in one of them.

use std::{net::SocketAddr, time::Duration};

use ambit_model::{
    address::Target,
    authz::{By, Denial},
    route::With,
};
use http::StatusCode;

use crate::{hygiene::InvalidHead, limits::Limited};

/// Why something is not carried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A tunnel was asked for with something else than CONNECT.
    #[error("method {0} is not CONNECT")]
    NotConnect(String),
    /// The authority of a CONNECT is not `ip:port` or `hostname:port`.
    #[error("{0}")]
    BadAuthority(String),
    /// What is handed over does not begin with a PROXY header that is believed.
    #[error("nobody says who calls: {0}")]
    NotIntroduced(String),
    /// An endpoint is this waypoint's own port, at which whatever comes from its pod is believed.
    #[error("{0} is the port of this waypoint itself")]
    Recursive(SocketAddr),
    /// What a CONNECT asks for is not bound to this waypoint.
    #[error("{0} is not served by this waypoint")]
    NotServed(Target),
    /// What applies to the service could not be understood.
    #[error("the configuration of {service} could not be understood: {reason}")]
    BrokenConfig {
        /// The service.
        service: String,
        /// Why.
        reason: String,
    },
    /// The head of a request is not one.
    #[error("bad request: {0}")]
    BadRequest(InvalidHead),
    /// No route takes the request.
    #[error("no route of {0} takes the request")]
    NoRoute(String),
    /// The route's backend is invalid, or it has none.
    #[error("the route leads nowhere: {0}")]
    InvalidBackend(String),
    /// A rule answers it on purpose, in place of an endpoint.
    #[error("answered on purpose by {route}, as its fault says")]
    Aborted {
        /// The route, and its rule.
        route: String,
        /// With what.
        with: With,
    },
    /// A route leads to a subset that no DestinationRule defines.
    #[error("no DestinationRule of {service} defines subset {subset}")]
    NoSubset {
        /// `namespace/hostname`.
        service: String,
        /// The subset.
        subset: String,
    },
    /// A policy forbids it.
    #[error("denied by policy: {0}")]
    Denied(By),
    /// A policy wants somebody to be asked who is not known here.
    #[error("{policy} asks {provider}, which is not configured in the mesh")]
    NoAuthorizer {
        /// Who is to be asked.
        provider: String,
        /// By which policy.
        policy: String,
    },
    /// A policy wants somebody to be asked about a request, and this is a connection that nobody looks into.
    #[error("{policy} asks {provider} of requests, and this connection is not looked into")]
    AsksOfRequests {
        /// Who is to be asked.
        provider: String,
        /// By which policy.
        policy: String,
    },
    /// Whom a policy or a route asks denies it.
    #[error("{provider}, whom {policy} asks, denies it with {}", denial.status)]
    DeniedByAuthorizer {
        /// Who was asked.
        provider: String,
        /// By which policy.
        policy: String,
        /// What the client is told.
        denial: Box<Denial>,
    },
    /// Whom a policy or a route asks gives no answer that is one.
    #[error("{provider}, whom {policy} asks, does not answer: {reason}")]
    AuthorizerFailed {
        /// Who was asked.
        provider: String,
        /// By which policy.
        policy: String,
        /// What happened.
        reason: String,
        /// What the client is told.
        status: StatusCode,
    },
    /// The rule asks somebody who cannot be asked.
    #[error("{route} asks somebody who is not known: {reason}")]
    UnknownAuthorizer {
        /// The route, and its rule.
        route: String,
        /// The reason, as its `ResolvedRefs` has it.
        reason: String,
    },
    /// Its body is longer than what whom a policy asks may be shown, in bytes.
    #[error("the body is longer than the {0} bytes that an authorizer is shown")]
    BodyTooLong(u32),
    /// There is no room for it in a limit.
    #[error("more requests than {} allows", .0.by())]
    Limited(Box<Limited>),
    /// Nobody says whether there is room for it.
    #[error("{by}: the limit service says nothing: {reason}")]
    NoLimiter {
        /// The limit.
        by: String,
        /// Why.
        reason: String,
    },
    /// It shows tokens, and none of them is believed.
    #[error("no token of the request is believed: {0}")]
    Unauthenticated(String),
    /// The service has no endpoint that takes traffic.
    #[error("no healthy upstream: {service} has no endpoint for port {port}")]
    NoEndpoint {
        /// `namespace/hostname`.
        service: String,
        /// The service port.
        port: u16,
    },
    /// The endpoint has no tunnel, and a DestinationRule asks for TLS to it.
    #[error("a DestinationRule asks for TLS, and {0} has no tunnel")]
    NoTunnel(String),
    /// The endpoint could not be connected to.
    #[error("connection to {to} failed: {reason}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The tunnel at the endpoint refused.
    #[error("the tunnel of {to} answered {status}")]
    TunnelStatus {
        /// Which endpoint.
        to: SocketAddr,
        /// The status of the CONNECT.
        status: u16,
    },
    /// The endpoint reset the connection, or answered with what is no response.
    #[error("upstream broke off before its response: {0}")]
    UpstreamBroke(String),
    /// The endpoint does not switch to the protocol that the client wants, and does not say no to it.
    #[error("the application does not switch: {0}")]
    NotSwitched(String),
    /// The request was not answered in time.
    #[error("no response within {0:?}")]
    TimedOut(Duration),
    /// The own certificate is not to be had.
    #[error("no certificate for this waypoint: {0}")]
    NoCertificate(String),
    /// The TLS handshake failed.
    #[error("TLS handshake with {with} failed: {reason}")]
    Tls {
        /// The other side.
        with: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// A certificate of the other side was revoked.
    #[error("the certificate of {0} is revoked")]
    Revoked(SocketAddr),
    /// More is going on than this waypoint takes.
    #[error("too many {what}: the limit is {limit}")]
    Overload {
        /// What there is too much of.
        what: &'static str,
        /// The limit in force.
        limit: usize,
    },
    /// The request's body was not sent in time, or broke off.
    #[error("the client's body broke off: {0}")]
    ClientBody(String),
    /// The client went away before the response was complete.
    #[error("the client went away")]
    ClientGone,
    /// The response broke off after its head.
    #[error("the response broke off: {0}")]
    ResponseBroke(String),
}

impl Refusal {
    /// One word for metrics and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotConnect(_) => "not_connect",
            Self::BadAuthority(_) => "bad_authority",
            Self::NotIntroduced(_) => "not_introduced",
            Self::Recursive(_) => "recursive",
            Self::NotServed(_) => "not_served",
            Self::BrokenConfig { .. } => "broken_config",
            Self::BadRequest(_) => "bad_request",
            Self::NoRoute(_) => "no_route",
            Self::InvalidBackend(_) => "invalid_backend",
            Self::Aborted { .. } => "fault_abort",
            Self::NoSubset { .. } => "no_subset",
            Self::Denied(_) => "denied",
            Self::NoAuthorizer { .. } => "no_authorizer",
            Self::AsksOfRequests { .. } => "asks_of_requests",
            Self::DeniedByAuthorizer { .. } => "denied_by_authorizer",
            Self::AuthorizerFailed { .. } => "authorizer_failed",
            Self::UnknownAuthorizer { .. } => "unknown_authorizer",
            Self::BodyTooLong(_) => "body_too_long",
            Self::Limited(_) => "limited",
            Self::NoLimiter { .. } => "no_limiter",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::NoTunnel(_) => "no_tunnel",
            Self::Connect { .. } => "connect",
            Self::TunnelStatus { .. } => "tunnel_status",
            Self::UpstreamBroke(_) => "upstream_broke",
            Self::NotSwitched(_) => "not_switched",
            Self::TimedOut(_) => "timed_out",
            Self::NoCertificate(_) => "no_certificate",
            Self::Tls { .. } => "tls",
            Self::Revoked(_) => "revoked",
            Self::Overload { .. } => "overload",
            Self::ClientBody(_) => "client_body",
            Self::ClientGone => "client_gone",
            Self::ResponseBroke(_) => "response_broke",
        }
    }

    /// The response flag, as Envoy writes it in access logs and metrics.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NotConnect(_) | Self::BadAuthority(_) | Self::NotIntroduced(_) | Self::BadRequest(_) => {
                "DPE"
            }
            Self::NotServed(_) | Self::NoRoute(_) => "NR",
            Self::BrokenConfig { .. }
            | Self::InvalidBackend(_)
            | Self::NoSubset { .. }
            | Self::Recursive(_) => "NC",
            Self::Denied(_)
            | Self::NoAuthorizer { .. }
            | Self::AsksOfRequests { .. }
            | Self::DeniedByAuthorizer { .. }
            | Self::AuthorizerFailed { .. }
            | Self::UnknownAuthorizer { .. }
            | Self::BodyTooLong(_)
            | Self::Unauthenticated(_) => "UAEX",
            Self::Aborted { .. } => "FI",
            Self::Limited(_) => "RL",
            Self::NoLimiter { .. } => "RLSE",
            Self::NoEndpoint { .. } => "UH",
            Self::NoTunnel(_)
            | Self::Connect { .. }
            | Self::TunnelStatus { .. }
            | Self::NoCertificate(_)
            | Self::Tls { .. }
            | Self::Revoked(_) => "UF",
            Self::UpstreamBroke(_) | Self::ResponseBroke(_) => "UC",
            Self::NotSwitched(_) => "UPE",
            Self::TimedOut(_) => "UT",
            Self::Overload { .. } => "UO",
            Self::ClientBody(_) | Self::ClientGone => "DC",
        }
    }

    /// What the client is told. A client that is gone is told nothing; what would have been is for the log.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotConnect(_) | Self::BadAuthority(_) | Self::NotIntroduced(_) | Self::ClientBody(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::BadRequest(invalid) => invalid.status(),
            Self::NotServed(_) | Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::BrokenConfig { .. }
            | Self::InvalidBackend(_)
            | Self::NoSubset { .. }
            | Self::Recursive(_)
            | Self::UnknownAuthorizer { .. }
            | Self::NoLimiter { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Aborted { with: With::Http(status), .. } => *status,
            Self::Aborted { with: With::Grpc(code), .. } => code.http(),
            Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Denied(_) | Self::NoAuthorizer { .. } | Self::AsksOfRequests { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::DeniedByAuthorizer { denial, .. } => denial.status,
            Self::AuthorizerFailed { status, .. } => *status,
            Self::BodyTooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::NoEndpoint { .. }
            | Self::NoTunnel(_)
            | Self::Connect { .. }
            | Self::TunnelStatus { .. }
            | Self::NoCertificate(_)
            | Self::Tls { .. }
            | Self::Revoked(_)
            | Self::UpstreamBroke(_)
            | Self::ResponseBroke(_)
            | Self::Overload { .. }
            | Self::ClientGone => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotSwitched(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The text of the response. What is denied is not told by which policy; what an authorizer says is its own.
    pub fn body(&self) -> &'static str {
        match self {
            Self::Denied(_) | Self::NoAuthorizer { .. } => "RBAC: access denied",
            Self::Aborted { .. } => "fault filter abort",
            Self::Limited(_) => "too many requests",
            Self::NoLimiter { .. } => "rate limit service error",
            Self::Unauthenticated(_) => "Jwt verification fails",
            Self::NoEndpoint { .. } => "no healthy upstream",
            Self::TimedOut(_) => "upstream request timeout",
            Self::NoTunnel(_)
            | Self::Connect { .. }
            | Self::TunnelStatus { .. }
            | Self::Tls { .. }
            | Self::Revoked(_)
            | Self::NoCertificate(_)
            | Self::UpstreamBroke(_)
            | Self::ResponseBroke(_) => "upstream connect error or disconnect/reset before headers",
            Self::NotConnect(_)
            | Self::BadAuthority(_)
            | Self::NotIntroduced(_)
            | Self::Recursive(_)
            | Self::NotServed(_)
            | Self::BrokenConfig { .. }
            | Self::BadRequest(_)
            | Self::NoRoute(_)
            | Self::InvalidBackend(_)
            | Self::NoSubset { .. }
            | Self::AsksOfRequests { .. }
            | Self::DeniedByAuthorizer { .. }
            | Self::AuthorizerFailed { .. }
            | Self::UnknownAuthorizer { .. }
            | Self::BodyTooLong(_)
            | Self::NotSwitched(_)
            | Self::Overload { .. }
            | Self::ClientBody(_)
            | Self::ClientGone => "",
        }
    }

    /// What the operator can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotConnect(_) | Self::BadAuthority(_) => {
                "only tunnels of the mesh may connect to port 15008"
            }
            Self::NotIntroduced(_) => {
                "only the pod's own ztunnel hands connections over, at a loopback address; see docs/waypoints.md"
            }
            Self::Recursive(_) => "no endpoint of a service may be a loopback address; correct it",
            Self::NotServed(_) => {
                "label the service with istio.io/use-waypoint, or wait for the binding to be told"
            }
            Self::BrokenConfig { .. } => {
                "controller and waypoint are of versions that do not fit; upgrade the waypoint"
            }
            Self::BadRequest(_) => "the client breaks the protocol; the error names how",
            Self::NoRoute(_) => "add a rule that matches, or one without matches for everything else",
            Self::InvalidBackend(_) | Self::UnknownAuthorizer { .. } => {
                "look at the condition ResolvedRefs of the route"
            }
            Self::Aborted { .. } => {
                "the VirtualService that the error names does so on purpose; take the fault out of it"
            }
            Self::NoSubset { .. } => "define it in a DestinationRule of the service, or correct its name",
            Self::NoAuthorizer { .. } => {
                "name the provider in the mesh's extensionProviders, or remove the policy"
            }
            Self::AsksOfRequests { .. } => {
                "say that the port carries HTTP, or leave the port out of the policy with notPorts, or of the route"
            }
            Self::DeniedByAuthorizer { .. } => "look at the log of the provider's service",
            Self::AuthorizerFailed { .. } => {
                "the error names what is wrong; look at the service of the provider, or that the route's filter names"
            }
            Self::BodyTooLong(_) => {
                "raise maxRequestBytes of the provider, or forwardBody.maxSize of the route's filter"
            }
            Self::Limited(_) => {
                "the client sends more than the RateLimitPolicy allows; slow it down, or raise the limit"
            }
            Self::NoLimiter { .. } => {
                "does the limit service answer in time? failOpen: true takes requests while it does not"
            }
            Self::Unauthenticated(_) => {
                "the error names what is wrong with the token, or who does not answer for its keys"
            }
            Self::Denied(_) => "ambit analyze tells which AuthorizationPolicy decides",
            Self::NoEndpoint { .. } => "are pods of the service ready, and do they have the target port?",
            Self::NoTunnel(_) => {
                "a waypoint speaks TLS in tunnels alone: let the application speak it, or set tls mode DISABLE"
            }
            Self::Connect { .. } => {
                "does the application listen, and does a NetworkPolicy admit the waypoint?"
            }
            Self::TunnelStatus { .. } => {
                "401: an L4 policy at the pod does not admit this waypoint's service account"
            }
            Self::UpstreamBroke(_) | Self::ResponseBroke(_) => "look at the application's log",
            Self::NotSwitched(_) => {
                "does the application serve WebSockets, in the version of HTTP that its port says?"
            }
            Self::TimedOut(_) => "raise the route's timeout, or look why the application is slow",
            Self::NoCertificate(_) => {
                "look at the controller's log: does it know this waypoint's service account?"
            }
            Self::Tls { .. } => "do both sides have certificates of one root?",
            Self::Revoked(_) => "the peer's certificate was revoked; restart it to get another",
            Self::Overload { .. } => "add replicas, or raise the limit",
            Self::ClientBody(_) | Self::ClientGone => "look at the client",
        }
    }
}
