//! The certificate authority: who calls ([`crate::callers`]), what may it ask for ([`caller`]), for how long
//! ([`authority`]), signed by what ([`root`]).

pub mod authority;
pub mod caller;
pub mod file;
pub mod revocation;
pub mod root;
pub mod serving;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use ambit_wire::{
    ca::{Application, Approver},
    cert::authority::{Authority, Serial, SignError},
};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::timeout,
};
use tonic::Status;
use tracing::{debug, info};

use self::{
    authority::{LifetimeError, Terms},
    caller::{Caller, Refusal, entitled},
};
use crate::{
    callers::{Callers, Stranger},
    config::Account,
    engine::View,
};

/// A caller that comes while the controller starts waits so long for it to know which pods there are. Tunnels give an
/// attempt eight seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Signing is work for a processor; more callers than this wait for their turn.
const AT_ONCE: usize = 16;

/// Signs what callers may have. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    authority: Authority,
    terms: Terms,
    callers: Callers,
    trusted: Vec<Account>,
    cluster: View,
    synced: watch::Receiver<bool>,
    turns: Semaphore,
    counts: Counts,
}

impl Desk {
    /// A desk that signs with `authority`, on `terms`, for those that `callers` knows. Which pods there are it reads
    /// from `cluster`, once that is `synced`.
    pub fn new(
        authority: Authority,
        terms: Terms,
        callers: Callers,
        trusted: Vec<Account>,
        cluster: View,
        synced: watch::Receiver<bool>,
    ) -> Self {
        let turns = Semaphore::new(AT_ONCE);
        let counts = Counts::default();
        Self(Arc::new(Inner { authority, terms, callers, trusted, cluster, synced, turns, counts }))
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    async fn answer(self, application: Application) -> Result<Vec<String>, NotSigned> {
        let _turn = self.0.turns.acquire().await.map_err(|_| NotSigned::Interrupted)?;
        let caller = self.0.callers.identify(application.token.clone()).await?;
        if application.impersonated.is_some() {
            let mut synced = self.0.synced.clone();
            let known = timeout(PATIENCE, synced.wait_for(|synced| *synced)).await;
            known.map_err(|_| NotSigned::Starting)?.map_err(|_| NotSigned::Starting)?;
        }
        let desk = self.clone();
        spawn_blocking(move || desk.0.sign(&caller, &application))
            .await
            .map_err(|_| NotSigned::Interrupted)?
    }
}

impl Inner {
    fn sign(&self, caller: &Caller, application: &Application) -> Result<Vec<String>, NotSigned> {
        let asked = application.impersonated.as_deref();
        let identity = entitled(&self.cluster.read(), &self.trusted, caller, asked)?;
        let validity = self.terms.validity(application.lifetime_seconds, SystemTime::now())?;
        let serial = Serial::random().map_err(SignError::from)?;
        let chain = self.authority.sign(&application.csr, &identity, validity, serial)?;
        let node = caller.node.as_ref().map(tracing::field::display);
        debug!(certificate.identity = %identity, client.node = node, client.addr = ?application.client, "Certificate signed");
        Ok(chain)
    }
}

impl Approver for Desk {
    fn decide(
        &self,
        application: Application,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, Status>> + Send + '_>> {
        let desk = self.clone();
        Box::pin(async move {
            let asked = application.impersonated.clone();
            let client = application.client;
            self.0.counts.asked.fetch_add(1, Relaxed);
            let answer = desk.answer(application).await;
            match &answer {
                Ok(_) => self.0.counts.signed.fetch_add(1, Relaxed),
                Err(why) => {
                    info!(client.addr = ?client, certificate.identity = asked, reason = why.word(), error = %why, "Certificate refused");
                    self.0.counts.refused(why).fetch_add(1, Relaxed)
                }
            };
            answer.map_err(|why| why.status())
        })
    }
}

/// Why no certificate was signed.
#[derive(Debug, thiserror::Error)]
pub enum NotSigned {
    /// It is not known who calls.
    #[error(transparent)]
    Stranger(#[from] Stranger),
    /// The caller may not have it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not for that long.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// It could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It is not known yet which pods there are.
    #[error("the controller is still reading its configuration; try again")]
    Starting,
    /// The process ends.
    #[error("the controller is ending; try again")]
    Interrupted,
}

impl NotSigned {
    /// In the log and in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Stranger(why) if why.is_temporary() => "unreviewed",
            Self::Stranger(_) => "unauthenticated",
            Self::Refused(_) => "impersonation",
            Self::Lifetime(_) => "lifetime",
            Self::Sign(SignError::Request(_)) => "request",
            Self::Sign(SignError::SignerExpired | SignError::Time | SignError::Crypto(_)) => "sign",
            Self::Starting => "starting",
            Self::Interrupted => "ending",
        }
    }

    /// What the caller is told.
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::Stranger(why) => why.clone().into(),
            Self::Refused(_) => Status::unauthenticated(text),
            Self::Lifetime(_) | Self::Sign(SignError::Request(_)) => Status::invalid_argument(text),
            Self::Sign(SignError::SignerExpired | SignError::Time | SignError::Crypto(_)) => {
                Status::internal(text)
            }
            Self::Starting | Self::Interrupted => Status::unavailable(text),
        }
    }
}

/// What happened at the desk.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests.
    pub asked: AtomicU64,
    /// Certificates signed.
    pub signed: AtomicU64,
    /// Callers that are not known.
    pub strangers: AtomicU64,
    /// Callers that asked for what they may not have.
    pub impersonations: AtomicU64,
    /// Requests that are not in order, or ask for too long.
    pub requests: AtomicU64,
    /// Failures of our own.
    pub failures: AtomicU64,
}

impl Counts {
    fn refused(&self, why: &NotSigned) -> &AtomicU64 {
        match why {
            NotSigned::Stranger(why) if why.is_temporary() => &self.failures,
            NotSigned::Stranger(_) => &self.strangers,
            NotSigned::Refused(_) => &self.impersonations,
            NotSigned::Lifetime(_) | NotSigned::Sign(SignError::Request(_)) => &self.requests,
            NotSigned::Sign(SignError::SignerExpired | SignError::Time | SignError::Crypto(_))
            | NotSigned::Starting
            | NotSigned::Interrupted => &self.failures,
        }
    }
}
