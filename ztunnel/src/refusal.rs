//! Every reason for which a connection is refused or fails, and what the outside sees of it.
//!
//! A closed list: log word, response flag (a metric label), HTTP status and advice are exhaustive
//! matches, so a new reason cannot be forgotten in one of them.

use std::{net::SocketAddr, time::Duration};

use ambit_model::{address::Target, authz::By, identity::Identity};

/// Why a connection is not carried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The connection would lead back into the tunnel itself.
    #[error("recursive call to port {0} of the tunnel")]
    Recursive(u16),
    /// The control plane has not told about the pod that this tunnel serves.
    #[error("the pod {0} is not known to the control plane")]
    UnknownPod(String),
    /// The control plane did not say what is at the destination.
    #[error("{0}")]
    Undecided(String),
    /// The service has no endpoint that takes traffic.
    #[error("no healthy upstream: {service} has no endpoint for port {port}")]
    NoEndpoint {
        /// `namespace/hostname`.
        service: String,
        /// The service port.
        port: u16,
    },
    /// The waypoint that must be in the path is not known, or has no endpoint.
    #[error("unknown waypoint {0}")]
    UnknownWaypoint(String),
    /// The gateway to the destination's network is not known, or has no endpoint.
    #[error("unknown network gateway {0}")]
    UnknownGateway(String),
    /// The destination is on another network and cannot be reached from here.
    #[error("no valid destination: {0}")]
    NoRoute(&'static str),
    /// The name of the destination has no address.
    #[error("{0} has no address")]
    Unresolved(String),
    /// A policy of the destination forbids it.
    #[error("connection closed due to policy rejection: {0}")]
    Denied(Denial),
    /// A policy change has taken the right away from an open connection.
    #[error("connection closed due to policy change: {0}")]
    NoLongerAllowed(Denial),
    /// A certificate of the other side was revoked.
    #[error("the certificate of {0} is revoked")]
    Revoked(String),
    /// A tunnel was asked for with something else than CONNECT.
    #[error("method {0} is not CONNECT")]
    NotConnect(String),
    /// The authority of a CONNECT is not `ip:port` or `hostname:port`.
    #[error("{0}")]
    BadAuthority(String),
    /// A CONNECT asks for an address that is not this pod's.
    #[error("ip mismatch: {asked} is not {local}, nor served by it")]
    IpMismatch {
        /// The address asked for.
        asked: SocketAddr,
        /// The address of the pod.
        local: SocketAddr,
    },
    /// A CONNECT asks for a service or port that this pod does not serve.
    #[error("{0} is not served here")]
    NotServed(Target),
    /// The own certificate is not to be had.
    #[error("no certificate for {identity}: {reason}")]
    NoCertificate {
        /// Whose certificate.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// The application or the next hop refused or did not answer.
    #[error("connection to {to} failed: {reason}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// The operating system's word.
        reason: String,
    },
    /// The HBONE port did not answer in time.
    #[error("no answer from {to} within {limit:?}; is a NetworkPolicy blocking port 15008?")]
    Timeout {
        /// Where to.
        to: SocketAddr,
        /// How long was waited.
        limit: Duration,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with {with} failed: {reason}")]
    Tls {
        /// The other side.
        with: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// HTTP/2 could not be spoken.
    #[error("HTTP/2 with {with} failed: {reason}")]
    Http2 {
        /// The other side.
        with: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// The other tunnel answered a CONNECT with this status.
    #[error("http status: {0}")]
    Status(u16),
    /// More is going on than this tunnel takes.
    #[error("too many {what}: the limit is {limit}")]
    Overload {
        /// What there is too much of.
        what: &'static str,
        /// The limit in force.
        limit: usize,
    },
    /// The connection broke while bytes were moving.
    #[error("{0}")]
    Broken(String),
    /// The tunnel or the pod is going away.
    #[error("the tunnel is shutting down")]
    ShuttingDown,
}

/// The verdict that refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial(pub By);

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        ambit_model::authz::Verdict::Deny(self.0.clone()).fmt(f)
    }
}

impl Refusal {
    /// One word for logs and dumps.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Recursive(_) => "recursive",
            Self::UnknownPod(_) => "unknown_pod",
            Self::Undecided(_) => "undecided",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::UnknownWaypoint(_) => "unknown_waypoint",
            Self::UnknownGateway(_) => "unknown_gateway",
            Self::NoRoute(_) => "no_route",
            Self::Unresolved(_) => "unresolved",
            Self::Denied(_) => "denied",
            Self::NoLongerAllowed(_) => "no_longer_allowed",
            Self::Revoked(_) => "revoked",
            Self::NotConnect(_) => "not_connect",
            Self::BadAuthority(_) => "bad_authority",
            Self::IpMismatch { .. } => "ip_mismatch",
            Self::NotServed(_) => "not_served",
            Self::NoCertificate { .. } => "no_certificate",
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::Tls { .. } => "tls",
            Self::Http2 { .. } => "http2",
            Self::Status(_) => "status",
            Self::Overload { .. } => "overload",
            Self::Broken(_) => "broken",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// The value of the metric label `response_flags` (protocols 10.1).
    pub fn flag(&self) -> Flag {
        match self {
            Self::Denied(_) | Self::NoLongerAllowed(_) => Flag::Deny,
            Self::Revoked(_) => Flag::CertRevoked,
            Self::NoCertificate { .. } => Flag::Identity,
            Self::Timeout { .. } => Flag::NetworkPolicy,
            Self::Tls { .. } => Flag::Tls,
            Self::Http2 { .. } => Flag::Http2,
            Self::Recursive(_)
            | Self::UnknownPod(_)
            | Self::Undecided(_)
            | Self::NoEndpoint { .. }
            | Self::UnknownWaypoint(_)
            | Self::UnknownGateway(_)
            | Self::NoRoute(_)
            | Self::Unresolved(_)
            | Self::NotConnect(_)
            | Self::BadAuthority(_)
            | Self::IpMismatch { .. }
            | Self::NotServed(_)
            | Self::Connect { .. }
            | Self::Status(_)
            | Self::Overload { .. }
            | Self::Broken(_)
            | Self::ShuttingDown => Flag::Connect,
        }
    }

    /// What a CONNECT is answered with (protocols 4.4).
    pub fn status(&self) -> u16 {
        match self {
            Self::NotConnect(_) | Self::BadAuthority(_) | Self::IpMismatch { .. } => 400,
            Self::Denied(_) | Self::NoLongerAllowed(_) | Self::Revoked(_) => 401,
            Self::Recursive(_)
            | Self::UnknownPod(_)
            | Self::Undecided(_)
            | Self::NoEndpoint { .. }
            | Self::UnknownWaypoint(_)
            | Self::UnknownGateway(_)
            | Self::NoRoute(_)
            | Self::Unresolved(_)
            | Self::NotServed(_)
            | Self::NoCertificate { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::Http2 { .. }
            | Self::Status(_)
            | Self::Overload { .. }
            | Self::Broken(_)
            | Self::ShuttingDown => 503,
        }
    }

    /// What an operator does about it, where there is something to do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Recursive(_) => Some("ports 15001, 15006 and 15008 belong to the tunnel; use another"),
            Self::UnknownPod(_) => Some("is the controller in sync? see `ambit status`"),
            Self::Undecided(_) => Some("see the controller's log and `ambit status`"),
            Self::NoEndpoint { .. } => Some("are the service's pods ready, and does its port have a target?"),
            Self::UnknownWaypoint(_) => {
                Some("see `ambit waypoint status`; traffic never goes around a waypoint")
            }
            Self::UnknownGateway(_) | Self::NoRoute(_) => {
                Some("the other network needs a gateway, and calls to it go through a service")
            }
            Self::Unresolved(_) => Some("does the name resolve from the node?"),
            Self::Denied(_) | Self::NoLongerAllowed(_) => {
                Some("see the policies of the destination: `ambit tunnel-config policy`")
            }
            Self::Revoked(_) => Some("the certificate is on the CA's revocation list; restart the workload"),
            Self::NoCertificate { .. } => Some("see `ambit tunnel-config certificate` and the CA's log"),
            Self::Timeout { .. } => Some("let NetworkPolicies admit port 15008"),
            Self::Tls { .. } => Some("do both sides trust the same root and trust domain?"),
            Self::Overload { .. } => Some("spread the load over more pods or raise the limit"),
            Self::NotConnect(_)
            | Self::BadAuthority(_)
            | Self::IpMismatch { .. }
            | Self::NotServed(_)
            | Self::Connect { .. }
            | Self::Http2 { .. }
            | Self::Status(_)
            | Self::Broken(_)
            | Self::ShuttingDown => None,
        }
    }

    /// Whether another endpoint may be tried instead: nothing has been sent, and the fault is with
    /// the one that was tried.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Tls { .. } | Self::Http2 { .. } => true,
            Self::Status(status) => *status == 503,
            Self::Recursive(_)
            | Self::UnknownPod(_)
            | Self::Undecided(_)
            | Self::NoEndpoint { .. }
            | Self::UnknownWaypoint(_)
            | Self::UnknownGateway(_)
            | Self::NoRoute(_)
            | Self::Unresolved(_)
            | Self::Denied(_)
            | Self::NoLongerAllowed(_)
            | Self::Revoked(_)
            | Self::NotConnect(_)
            | Self::BadAuthority(_)
            | Self::IpMismatch { .. }
            | Self::NotServed(_)
            | Self::NoCertificate { .. }
            | Self::Overload { .. }
            | Self::Broken(_)
            | Self::ShuttingDown => false,
        }
    }
}

/// The closed list of `response_flags` (protocols 10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// All went well.
    None,
    /// Refused by policy.
    Deny,
    /// The next hop could not be reached.
    Connect,
    /// TLS failed.
    Tls,
    /// HTTP/2 failed.
    Http2,
    /// The HBONE port is silent, as a NetworkPolicy makes it.
    NetworkPolicy,
    /// The own identity is not to be had.
    Identity,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl Flag {
    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::Http2 => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Identity => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}
