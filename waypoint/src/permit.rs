//! The right to be sent on. Made here and nowhere else, by judging; nothing goes upstream without one.

use std::net::SocketAddr;

use ambit_model::{
    authz::{self, Ask, By, Facts, Opinion, Policy, Request, Ruling, Seen, Verdict, audited, dry_run},
    claims::Claims,
    service_config::ServiceConfig,
};
use http::request::Parts;

use crate::{
    accept::arrival::Client,
    authorizer::Heard,
    hygiene::{InvalidHead, Received},
    refusal::Refusal,
};

/// The right of one connection or request to be sent on.
#[derive(Clone, Debug)]
pub struct Permit {
    granted_by: By,
}

/// What comes of judging a request.
#[derive(Clone, Debug)]
pub enum Judged {
    /// It may be sent on.
    Permitted(Permit),
    /// Somebody has to be asked first, and then it is judged again.
    Asks(Ask),
}

impl Permit {
    /// Judges a connection of `client` to `destination`, of which no request is seen, by what applies to its service.
    /// `server_name` is what its TLS greets.
    pub fn connection(
        config: &ServiceConfig,
        client: &Client,
        destination: SocketAddr,
        server_name: Option<&str>,
    ) -> Result<Self, Refusal> {
        let seen = Seen { remote: client.address.ip(), server_name, request: None };
        match Self::judge(config, client, destination, &seen, &Heard::default())? {
            Judged::Permitted(permit) => Ok(permit),
            // What is asked about is a request, and nobody has looked for one; unknown means deny.
            Judged::Asks(Ask { provider, policy, .. }) => {
                Err(Refusal::AsksOfRequests { provider: provider.to_string(), policy: policy.to_string() })
            }
        }
    }

    /// Judges a request of `client` to `destination`, by what applies to its service; `claims` are those of its
    /// verified token. Who is not among those who were `heard` is asked before ALLOW and DENY count: what he says may
    /// change what they see.
    pub fn request(
        config: &ServiceConfig,
        client: &Client,
        destination: SocketAddr,
        (head, received): (&Parts, &Received),
        claims: Option<&Claims>,
        heard: &Heard,
    ) -> Result<Judged, Refusal> {
        // To a policy that compares paths, this one would be another than to the application.
        if received.path_is_ambiguous && config.policies().any(Policy::compares_paths) {
            return Err(Refusal::BadRequest(InvalidHead::Ambiguous));
        }
        let request = asks(head, claims);
        let seen = Seen { remote: client.address.ip(), server_name: None, request: Some(&request) };
        Self::judge(config, client, destination, &seen, heard)
    }

    /// What each policy says of such a request, for whoever may know.
    pub fn opinions<'c>(
        config: &'c ServiceConfig,
        client: &Client,
        destination: SocketAddr,
        head: &Parts,
        claims: Option<&Claims>,
    ) -> Vec<Opinion<'c>> {
        let request = asks(head, claims);
        let seen = Seen { remote: client.address.ip(), server_name: None, request: Some(&request) };
        let peer = client.identity.as_ref();
        let facts = Facts { peer, source: client.address.ip(), destination, seen: Some(&seen) };
        authz::explain(config.policies(), &facts).collect()
    }

    fn judge(
        config: &ServiceConfig,
        client: &Client,
        destination: SocketAddr,
        seen: &Seen<'_>,
        heard: &Heard,
    ) -> Result<Judged, Refusal> {
        if let Some(reason) = config.broken() {
            let (service, reason) = (config.key().to_string(), reason.to_owned());
            return Err(Refusal::BrokenConfig { service, reason });
        }
        let facts = Facts {
            peer: client.identity.as_ref(),
            source: client.address.ip(),
            destination,
            seen: Some(seen),
        };
        let Ruling { ask, then } = authz::judge(config.policies(), &facts);
        if let Some(ask) = ask.into_iter().find(|ask| !heard.lets(&ask.provider)) {
            return Ok(Judged::Asks(ask));
        }
        for (policy, action) in dry_run(config.policies(), &facts) {
            tracing::info!(target: "access", policy = %policy, action = ?action, src.addr = %client.address, "dry-run policy matched; not enforced");
        }
        for policy in audited(config.policies(), &facts) {
            tracing::info!(target: "access", policy = %policy, src.addr = %client.address, "audit policy matched");
        }
        match then {
            Verdict::Deny(by) => Err(Refusal::Denied(by)),
            Verdict::Allow(granted_by) => Ok(Judged::Permitted(Self { granted_by })),
        }
    }

    /// Why it was granted.
    pub fn granted_by(&self) -> &By {
        &self.granted_by
    }
}

/// A request, as policies see it.
fn asks<'h>(head: &'h Parts, claims: Option<&'h Claims>) -> Request<'h> {
    let host = head.uri.authority().map_or("", |authority| authority.as_str());
    let (host, path) = (without_last_dot(host), head.uri.path());
    Request { host, method: &head.method, path, headers: &head.headers, claims }
}

/// `web.` is `web`.
fn without_last_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}
