//! The certificate authority: who calls ([`crate::callers`]), what may it ask for ([`caller`]), for how long
//! ([`authority`]), signed by what ([`in_force`]).
//!
//! What signs comes from a directory ([`root`]) or from Secrets ([`keeping`], [`secret`]), where one root can follow
//! another ([`rotation`], [`succession`]); or cert-manager signs ([`cert_manager`]). Whom to trust is told to every namespace
//! ([`distribute`]); this controller's own certificate follows ([`serving`]).

pub mod authority;
pub mod caller;
pub mod cert_manager;
pub mod debug_token;
pub mod distribute;
pub mod exact;
pub mod figures;
pub mod file;
pub mod in_force;
pub mod issued;
pub mod keeping;
pub mod lease;
pub mod page;
pub mod revocation;
pub mod root;
pub mod rotation;
pub mod secret;
pub mod serving;
pub mod succession;
mod watching;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use ambit_model::identity::Identity;
use ambit_wire::{
    ca::{Application, Approver},
    cert::authority::{Serial, SignError, Validity},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    task::spawn_blocking,
    time::timeout,
};
use tonic::Status;
use tracing::{debug, info};

use self::{
    authority::{LifetimeError, Terms},
    caller::{Refusal, entitled},
    cert_manager::{CertManager, NotIssued},
    in_force::{Fingerprint, InForce},
    issued::Issued,
    keeping::{Lives, LivesError},
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

/// Who signs for workloads.
#[derive(Clone, Debug)]
pub enum Signer {
    /// What is in force here.
    Authority,
    /// The same, and the longest life is written down before it is signed for.
    Counted(Lives),
    /// cert-manager.
    CertManager(Arc<CertManager>),
}

#[derive(Debug)]
struct Inner {
    in_force: watch::Receiver<Arc<InForce>>,
    signer: Signer,
    issued: Issued,
    terms: Terms,
    callers: Callers,
    trusted: Vec<Account>,
    cluster: View,
    synced: watch::Receiver<bool>,
    turns: Semaphore,
    counts: Counts,
}

impl Desk {
    /// A desk that signs with what is in force, or has it signed, on `terms`, for those that `callers` knows. Which
    /// pods there are it reads from `cluster`, once that is `synced`.
    pub fn new(
        in_force: watch::Receiver<Arc<InForce>>,
        signer: Signer,
        terms: Terms,
        callers: Callers,
        trusted: Vec<Account>,
        cluster: View,
        synced: watch::Receiver<bool>,
    ) -> Self {
        let turns = Semaphore::new(AT_ONCE);
        let counts = Counts::default();
        let issued = Issued::default();
        Self(Arc::new(Inner {
            in_force,
            signer,
            issued,
            terms,
            callers,
            trusted,
            cluster,
            synced,
            turns,
            counts,
        }))
    }

    /// What is in force now.
    pub fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.0.in_force.borrow())
    }

    /// What was signed here and is not over.
    pub fn issued(&self) -> &Issued {
        &self.0.issued
    }

    /// Who signs.
    pub fn signer(&self) -> &Signer {
        &self.0.signer
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    async fn answer(self, application: Application) -> Result<Vec<String>, NotSigned> {
        // Who is nobody takes nobody's turn.
        let caller = self.0.callers.identify(application.token.clone()).await?;
        let turn = self.0.turns.acquire().await.map_err(|_| NotSigned::Interrupted)?;
        if application.impersonated.is_some() {
            let mut synced = self.0.synced.clone();
            let known = timeout(PATIENCE, synced.wait_for(|synced| *synced)).await;
            known.map_err(|_| NotSigned::Starting)?.map_err(|_| NotSigned::Starting)?;
        }
        let asked = application.impersonated.as_deref();
        let identity = entitled(&self.0.cluster.read(), &self.0.trusted, &caller, asked)?;
        let now = SystemTime::now();
        let validity = self.0.terms.validity(application.lifetime_seconds, now)?;
        let node = caller.node.as_ref().map(tracing::field::display);
        debug!(certificate.identity = %identity, client.node = node, client.addr = ?application.client, "Certificate granted");
        self.certify(turn, application.csr, identity, (validity, now)).await
    }

    /// Has `csr` signed for `identity`, by whoever signs here, for as long as was decided at `now`.
    async fn certify(
        &self,
        turn: SemaphorePermit<'_>,
        csr: String,
        identity: Identity,
        (validity, now): (Validity, SystemTime),
    ) -> Result<Vec<String>, NotSigned> {
        match &self.0.signer {
            Signer::Authority => self.sign(self.in_force(), csr, identity, validity).await,
            Signer::Counted(lives) => {
                let in_force = self.counted(lives, validity).await?;
                self.sign(in_force, csr, identity, validity).await
            }
            Signer::CertManager(cert_manager) => {
                // It has turns of its own, and may take its time.
                drop(turn);
                // Measured from the same moment, or what was asked for would come out shorter.
                let life = validity.not_after.duration_since(now).unwrap_or_default();
                let in_force = self.in_force();
                Ok(cert_manager.issue(&csr, &identity, life, in_force.bundle()).await?)
            }
        }
    }

    async fn sign(
        &self,
        in_force: Arc<InForce>,
        csr: String,
        identity: Identity,
        validity: Validity,
    ) -> Result<Vec<String>, NotSigned> {
        let desk = self.clone();
        spawn_blocking(move || {
            let serial = Serial::random().map_err(SignError::from)?;
            let chain = in_force.authority().sign(&csr, &identity, validity, serial)?;
            if let Some(root) = Fingerprint::of_signer(in_force.authority()) {
                let end = validity.not_after.min(in_force.expires());
                desk.0.issued.note(root, end, SystemTime::now());
            }
            Ok(chain)
        })
        .await
        .map_err(|_| NotSigned::Interrupted)?
    }

    /// What is in force, once it says that lives as long as this one are signed for.
    async fn counted(&self, lives: &Lives, validity: Validity) -> Result<Arc<InForce>, NotSigned> {
        let life = validity.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let enough = |in_force: &Arc<InForce>| in_force.longest.is_none_or(|longest| life <= longest);
        let current = self.in_force();
        if enough(&current) {
            return Ok(current);
        }
        let written = timeout(PATIENCE, async {
            lives.raise(in_steps(life)).await?;
            let mut in_force = self.0.in_force.clone();
            let heard = in_force.wait_for(enough).await.map(|heard| Arc::clone(&heard));
            heard.map_err(|_| NotSigned::Interrupted)
        });
        written.await.map_err(|_| NotSigned::Starting)?
    }
}

/// Lives are written down in hours, each time twice as many, so that they are seldom written.
fn in_steps(life: Duration) -> Duration {
    const HOUR: u64 = 3600;
    let hours = life.as_secs().div_ceil(HOUR).checked_next_power_of_two().unwrap_or(u64::MAX);
    Duration::from_secs(hours.saturating_mul(HOUR))
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
    /// It is not known for how long the root would be needed.
    #[error(transparent)]
    Uncounted(#[from] LivesError),
    /// cert-manager did not sign.
    #[error(transparent)]
    NotIssued(#[from] NotIssued),
    /// The certificate is there, the debug token is not.
    #[error(transparent)]
    Token(#[from] ambit_wire::debug_token::SignError),
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
            Self::Uncounted(_) => "uncounted",
            Self::Token(_) => "sign",
            Self::NotIssued(NotIssued::Request(_)) => "request",
            Self::NotIssued(why) => why.word(),
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
            Self::NotIssued(why) => why.status(),
            Self::Token(_) => Status::internal(text),
            Self::Uncounted(_) | Self::Starting | Self::Interrupted => Status::unavailable(text),
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
            NotSigned::Lifetime(_)
            | NotSigned::Sign(SignError::Request(_))
            | NotSigned::NotIssued(NotIssued::Request(_)) => &self.requests,
            NotSigned::Uncounted(_) | NotSigned::NotIssued(_) | NotSigned::Token(_) => &self.failures,
            NotSigned::Sign(SignError::SignerExpired | SignError::Time | SignError::Crypto(_))
            | NotSigned::Starting
            | NotSigned::Interrupted => &self.failures,
        }
    }
}
