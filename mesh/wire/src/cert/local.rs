//! An [`Issuer`] inside this process: `FAKE_CA=true`, and tests.

use std::time::Duration;

use boring::error::ErrorStack;
use futures_util::{FutureExt as _, future::BoxFuture};

use super::{
    IssueError, Issued, Issuer, SigningRequest,
    authority::{Authority, Serial, SignError, Validity},
    store::Clock,
};

/// Clocks differ a little; a certificate must be valid where it is shown first.
const CLOCK_SKEW: Duration = Duration::from_secs(10);

/// Signs whatever it is asked for, with an authority that it holds.
#[derive(Debug)]
pub struct LocalIssuer<C> {
    authority: Authority,
    lifetime: Duration,
    clock: C,
}

impl<C: Clock> LocalIssuer<C> {
    /// An issuer of certificates that live for `lifetime`.
    pub fn new(authority: Authority, lifetime: Duration, clock: C) -> Self {
        Self { authority, lifetime, clock }
    }

    fn sign(&self, request: &SigningRequest) -> Result<Issued, SignError> {
        let now = self.clock.now();
        let validity = Validity { not_before: now - CLOCK_SKEW, not_after: now + self.lifetime };
        let serial = Serial::random()?;
        let chain = self.authority.sign(&request.csr, &request.identity, validity, serial)?;
        Ok(Issued { chain })
    }
}

impl<C: Clock> Issuer for LocalIssuer<C> {
    fn issue(&self, request: SigningRequest) -> BoxFuture<'_, Result<Issued, IssueError>> {
        let outcome = self.sign(&request).map_err(IssueError::from);
        std::future::ready(outcome).boxed()
    }
}

impl From<SignError> for IssueError {
    fn from(error: SignError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<ErrorStack> for IssueError {
    fn from(error: ErrorStack) -> Self {
        Self::Broken(error.to_string())
    }
}
