//! The right to be sent on. Made here and nowhere else, by judging; nothing goes upstream without one.

use std::net::SocketAddr;

use ambit_model::{
    authz::{By, Facts, Verdict, check},
    service_config::ServiceConfig,
};

use http::request::Parts;

use crate::{accept::arrival::Client, hygiene::Received, refusal::Refusal};

/// The right of one connection or request to be sent on.
#[derive(Clone, Debug)]
pub struct Permit {
    granted_by: By,
}

impl Permit {
    /// Judges a connection of `client` to `destination`, of which no request is seen, by what applies to its service.
    pub fn connection(
        config: Option<&ServiceConfig>,
        client: &Client,
        destination: SocketAddr,
    ) -> Result<Self, Refusal> {
        if let Some((service, reason)) = config.and_then(|config| Some((config.key(), config.broken()?))) {
            let (service, reason) = (service.to_string(), reason.to_owned());
            return Err(Refusal::BrokenConfig { service, reason });
        }
        let facts =
            Facts { peer: client.identity.as_ref(), source: client.address.ip(), destination, seen: None };
        match check([], &facts) {
            Verdict::Allow(granted_by) => Ok(Self { granted_by }),
            Verdict::Deny(by) => Err(Refusal::Denied(by)),
        }
    }

    /// Judges a request of `client` to `destination`, by what applies to its service.
    pub fn request(
        config: Option<&ServiceConfig>,
        client: &Client,
        destination: SocketAddr,
        _head: &Parts,
        _received: &Received,
    ) -> Result<Self, Refusal> {
        Self::connection(config, client, destination)
    }

    /// Why it was granted.
    pub fn granted_by(&self) -> &By {
        &self.granted_by
    }
}
