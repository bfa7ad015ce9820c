//! Where a proxy's certificates come from, and which certificates are revoked.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_model::identity::TrustDomain;
use ambit_runtime::task;
use ambit_wire::{
    ca::{Asking, CaClient},
    cert::{
        Issuer,
        authority::{Authority as Signer, Serial, Validity},
        local::LocalIssuer,
        store::{Certificates, Naming, SystemClock},
    },
    channel::ControlPlane,
    tls::{Profile, revoked::Revocation},
};
use anyhow::Context as _;

use crate::config::{Authority, Ca};

/// The revocation lists at `path`, kept up to date. A file that cannot be read is an error, and never "none".
pub fn revocation(path: Option<&Path>) -> anyhow::Result<Revocation> {
    let Some(path) = path else { return Ok(Revocation::NotConfigured) };
    let revocation = Revocation::load(path)?;
    if let Revocation::Loaded(lists) = &revocation {
        let lists = lists.clone();
        task::spawn("revocation lists", async move { lists.follow(std::future::pending()).await });
    }
    Ok(revocation)
}

/// Whose certificates are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The own: whatever identity the CA sees in the credentials.
    Own,
    /// Those of others, for whom the CA lets this proxy ask.
    Others,
}

/// A store of certificates, renewed as long as the process lives.
pub fn certificates(
    ca: &Ca,
    whose: Whose,
    trust_domain: TrustDomain,
    profile: &Profile,
) -> anyhow::Result<Certificates> {
    let (naming, asking) = match whose {
        Whose::Others => (Naming::AsRequested, Asking::ForOthers),
        Whose::Own => (Naming::AsIssued, Asking::ForMyself),
    };
    let issuer: Arc<dyn Issuer> = match &ca.authority {
        Authority::Remote(settings) => {
            let control_plane = ControlPlane::new((**settings).clone(), profile).context("CA")?;
            Arc::new(CaClient::new(control_plane, asking, ca.ttl))
        }
        Authority::Fake => {
            tracing::warn!("FAKE_CA is set: certificates are worthless outside this process");
            let now = SystemTime::now();
            let validity = Validity { not_before: now - FAKE_CA_SKEW, not_after: now + FAKE_CA_LIFE };
            let signer =
                Signer::self_signed(&trust_domain, validity, Serial::random()?).context("fake CA")?;
            Arc::new(LocalIssuer::new(signer, ca.ttl, SystemClock))
        }
    };
    let (certificates, renewal) = Certificates::new(profile.clone(), naming, issuer, SystemClock);
    task::spawn("certificate renewal", renewal.run(std::future::pending()));
    Ok(certificates)
}

/// How long the fake CA's root lives, and how far its clock may be ahead of others'.
const FAKE_CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const FAKE_CA_SKEW: Duration = Duration::from_secs(60);
