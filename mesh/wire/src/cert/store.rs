//! The certificates this process holds: one for each identity, asked for once, renewed in time.
//!
//! ```text
//!             fetched                      due
//! (pending) ───────────▶ ready ───────────────────────▶ fetching, and still ready
//!     │                    ▲                                │ failed, expired by now
//!     └─ failed ─▶ failed ─┴── fetched ─────────────────────┘
//! ```
//!
//! [`Certificates`] is what connections ask; [`Renewal::run`] is the one task that fetches.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_model::identity::Identity;
use boring::error::ErrorStack;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::{
    Certificate, CertificateError, IssueError, Issuer, SigningRequest,
    renew::{renew_at, retry_at},
    request::Request,
};
use crate::tls::Profile;

/// How many requests may be with the CA at once, from the whole process (protocols 3.3).
pub const OUTSTANDING: usize = 8;

/// How long one request may take. A CA that has not answered by then is asked again.
pub const FETCH_LIMIT: Duration = Duration::from_secs(8);

/// How long a connection waits for its certificate: one full request, and some queueing.
pub const WAIT_LIMIT: Duration = Duration::from_secs(10);

/// More identities than a node has pods, by far. Beyond it new ones are refused.
pub const MOST_IDENTITIES: usize = 16 * 1024;

/// The longest sleep: should the wall clock be set, we notice within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The time of day. An argument, so that tests own it.
pub trait Clock: Send + Sync + 'static {
    /// What time it is.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Certificates by identity. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Certificates(Arc<Shared>);

struct Shared {
    profile: Profile,
    naming: Naming,
    clock: Arc<dyn Clock>,
    entries: Mutex<Entries>,
    /// Tells [`Renewal::run`] that something may be due.
    wanted: Notify,
    metrics: CertificateMetrics,
}

impl Certificates {
    /// An empty store, and the task that fills it.
    pub fn new(
        profile: Profile,
        naming: Naming,
        issuer: Arc<dyn Issuer>,
        clock: impl Clock,
    ) -> (Self, Renewal) {
        let shared = Arc::new(Shared {
            profile,
            naming,
            clock: Arc::new(clock),
            entries: Mutex::default(),
            wanted: Notify::new(),
            metrics: CertificateMetrics::default(),
        });
        (Self(Arc::clone(&shared)), Renewal { shared, issuer })
    }

    /// The certificate of `identity`. At once if there is one; otherwise waits for it, within
    /// [`WAIT_LIMIT`]. While the CA fails and nothing valid is held, the last failure is returned.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Certificate>, CertError> {
        if let Some(certificate) = self.held(identity) {
            return Ok(certificate);
        }
        let mut status = self.want(identity, Priority::RealTime)?;
        let settled = status.wait_for(|status| match status {
            Status::Pending => false,
            Status::Ready(certificate) => certificate.not_after() > self.0.clock.now(),
            Status::Failed(_) => true,
        });
        let identity = || identity.clone();
        match tokio::time::timeout(WAIT_LIMIT, settled).await {
            Err(_) => Err(CertError::TooSlow { identity: identity(), limit: WAIT_LIMIT }),
            Ok(Err(_forgotten)) => Err(CertError::Forgotten { identity: identity() }),
            Ok(Ok(status)) => match &*status {
                Status::Ready(certificate) => Ok(Arc::clone(certificate)),
                Status::Failed(reason) => {
                    Err(CertError::Unavailable { identity: identity(), reason: Arc::clone(reason) })
                }
                Status::Pending => Err(CertError::Forgotten { identity: identity() }),
            },
        }
    }

    /// The certificate of `identity`, if a valid one is held now.
    pub fn held(&self, identity: &Identity) -> Option<Arc<Certificate>> {
        let entries = self.0.entries();
        let certificate = entries.by_identity.get(identity)?.certificate()?;
        (certificate.not_after() > self.0.clock.now()).then_some(certificate)
    }

    /// Has the certificate of `identity` fetched before anyone waits for it.
    pub fn prefetch(&self, identity: &Identity) -> Result<(), CertError> {
        self.want(identity, Priority::Warmup).map(|_status| ())
    }

    /// The state of `identity`, followed; asks for it if it is new. Ends when it is forgotten.
    pub fn subscribe(&self, identity: &Identity) -> Result<watch::Receiver<Status>, CertError> {
        self.want(identity, Priority::Warmup)
    }

    /// Lets go of `identity`: the last workload with it has left.
    pub fn forget(&self, identity: &Identity) {
        self.0.entries().by_identity.remove(identity);
    }

    /// Everything that is held or wanted, by identity: for the config dump.
    pub fn snapshot(&self) -> Vec<CertificateState> {
        let entries = self.0.entries();
        let mut states: Vec<_> = entries
            .by_identity
            .iter()
            .map(|(identity, entry)| CertificateState {
                identity: identity.clone(),
                status: entry.status.borrow().clone(),
                last_failure: entry.last_failure.clone(),
                next_attempt: entry.at,
            })
            .collect();
        drop(entries);
        states.sort_by(|a, b| a.identity.cmp(&b.identity));
        states
    }

    /// What happened so far.
    pub fn metrics(&self) -> &CertificateMetrics {
        &self.0.metrics
    }

    fn want(&self, identity: &Identity, priority: Priority) -> Result<watch::Receiver<Status>, CertError> {
        let mut entries = self.0.entries();
        if let Some(entry) = entries.by_identity.get_mut(identity) {
            entry.priority = entry.priority.min(priority);
            return Ok(entry.status.subscribe());
        }
        if entries.by_identity.len() >= MOST_IDENTITIES {
            return Err(CertError::TooMany);
        }
        let entry = Entry {
            status: watch::Sender::new(Status::Pending),
            priority,
            at: self.0.clock.now(),
            failures: 0,
            last_failure: None,
        };
        let status = entry.status.subscribe();
        entries.by_identity.insert(identity.clone(), entry);
        drop(entries);
        self.0.wanted.notify_one();
        Ok(status)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.0.entries().by_identity.len();
        f.debug_struct("Certificates").field("held", &held).finish_non_exhaustive()
    }
}

/// Whether a certificate must be for the identity that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Shared mode: we ask on behalf of others, and take no one else's.
    AsRequested,
    /// Dedicated mode: the CA knows who we are, whatever we ask.
    AsIssued,
}

/// Where one identity's certificate stands.
#[derive(Clone, Debug)]
pub enum Status {
    /// Asked for, not here yet.
    Pending,
    /// Here. Stays so while renewals fail, until it expires.
    Ready(Arc<Certificate>),
    /// The last attempt failed, and nothing valid is held.
    Failed(Arc<FetchError>),
}

/// One identity in the config dump.
#[derive(Clone, Debug)]
pub struct CertificateState {
    /// Whose.
    pub identity: Identity,
    /// Where it stands.
    pub status: Status,
    /// Why the last attempt failed, if it did.
    pub last_failure: Option<Arc<FetchError>>,
    /// When the CA is asked next.
    pub next_attempt: SystemTime,
}

/// Counters for the daemon to export.
#[derive(Debug, Default)]
pub struct CertificateMetrics {
    /// Certificates that came.
    pub fetched: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
}

/// Why there is no certificate for a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertError {
    /// The CA fails.
    #[error("no certificate for {identity}: {reason}")]
    Unavailable {
        /// Whose.
        identity: Identity,
        /// What the last attempt met.
        reason: Arc<FetchError>,
    },
    /// It did not come in time.
    #[error("no certificate for {identity} within {limit:?}; is the CA overloaded?")]
    TooSlow {
        /// Whose.
        identity: Identity,
        /// How long was waited.
        limit: Duration,
    },
    /// The last workload with this identity has left while we waited.
    #[error("no certificate for {identity}: no workload with this identity is left here")]
    Forgotten {
        /// Whose.
        identity: Identity,
    },
    /// The store is full.
    #[error("more than {MOST_IDENTITIES} identities on one node; is something inventing them?")]
    TooMany,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No request could be written.
    #[error("the request cannot be made: {0}")]
    Request(#[from] ErrorStack),
    /// The CA said no, or nothing.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The CA took too long.
    #[error("the CA did not answer within {0:?}")]
    TooSlow(Duration),
    /// What came cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Fetches what is due. One for each store.
pub struct Renewal {
    shared: Arc<Shared>,
    issuer: Arc<dyn Issuer>,
}

impl Renewal {
    /// Fetches and renews until `stop`.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut outstanding = FuturesUnordered::new();
        loop {
            let (due, sleep) = self.shared.take_due(OUTSTANDING - outstanding.len());
            outstanding.extend(due.into_iter().map(|identity| self.attempt(identity)));
            tokio::select! {
                () = &mut stop => return,
                () = self.shared.wanted.notified() => {}
                () = tokio::time::sleep(sleep) => {}
                Some((identity, outcome)) = outstanding.next(), if !outstanding.is_empty() => {
                    self.shared.settle(identity, outcome);
                }
            }
        }
    }

    async fn attempt(&self, identity: Identity) -> (Identity, Result<Certificate, FetchError>) {
        let fetch = tokio::time::timeout(FETCH_LIMIT, self.fetch(&identity));
        let outcome = fetch.await.unwrap_or(Err(FetchError::TooSlow(FETCH_LIMIT)));
        (identity, outcome)
    }

    async fn fetch(&self, identity: &Identity) -> Result<Certificate, FetchError> {
        let Request { key, csr } = Request::new(identity)?;
        let issued = self.issuer.issue(SigningRequest { identity: identity.clone(), csr }).await?;
        let expected = match self.shared.naming {
            Naming::AsRequested => Some(identity),
            Naming::AsIssued => None,
        };
        let profile = &self.shared.profile;
        Ok(Certificate::from_response(profile, expected, &issued.chain, &key)?)
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renewal")
    }
}

/// Who is asked for first; the order of the variants is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Priority {
    /// A connection waits.
    RealTime,
    /// A connection may come.
    Warmup,
    /// What we have is still good.
    Background,
}

#[derive(Default)]
struct Entries {
    by_identity: HashMap<Identity, Entry>,
    /// Asked for now. Kept beside the entries, so that an identity that is forgotten and wanted
    /// again meanwhile is not asked for twice.
    fetching: HashSet<Identity>,
}

struct Entry {
    status: watch::Sender<Status>,
    priority: Priority,
    /// When the CA is asked next.
    at: SystemTime,
    failures: u32,
    last_failure: Option<Arc<FetchError>>,
}

impl Entry {
    fn certificate(&self) -> Option<Arc<Certificate>> {
        match &*self.status.borrow() {
            Status::Ready(certificate) => Some(Arc::clone(certificate)),
            Status::Pending | Status::Failed(_) => None,
        }
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `room` identities whose time has come, most urgent first, and how long until the
    /// next one. Looks at every entry: there are as many as service accounts on a node, and this
    /// runs once for each request to the CA.
    fn take_due(&self, room: usize) -> (Vec<Identity>, Duration) {
        let now = self.clock.now();
        let mut entries = self.entries();
        let Entries { by_identity, fetching } = &mut *entries;
        let waiting = || by_identity.iter().filter(|(identity, _)| !fetching.contains(*identity));
        let mut due: Vec<_> = waiting().filter(|(_, entry)| entry.at <= now).collect();
        due.sort_by_key(|(_, entry)| (entry.priority, entry.at));
        let due: Vec<Identity> = due.into_iter().take(room).map(|(identity, _)| identity.clone()).collect();
        // What is due and found no room is taken when a request ends; that is no reason to wake.
        let sleep = waiting()
            .filter_map(|(_, entry)| entry.at.duration_since(now).ok())
            .filter(|wait| !wait.is_zero())
            .min()
            .map_or(LONGEST_SLEEP, |wait| wait.min(LONGEST_SLEEP));
        fetching.extend(due.iter().cloned());
        (due, sleep)
    }

    fn settle(&self, identity: Identity, outcome: Result<Certificate, FetchError>) {
        let now = self.clock.now();
        let mut entries = self.entries();
        entries.fetching.remove(&identity);
        // Forgotten meanwhile: nobody wants it any more.
        let Some(entry) = entries.by_identity.get_mut(&identity) else { return };
        // A certificate that is no good now is a failure of the CA, or of someone's clock.
        let outcome = outcome.and_then(|certificate| {
            if certificate.not_after() > now {
                Ok(certificate)
            } else {
                Err(CertificateError::Untrusted(crate::tls::rejected::Rejected::Expired).into())
            }
        });
        match outcome {
            Ok(certificate) => {
                self.metrics.fetched.fetch_add(1, Ordering::Relaxed);
                entry.failures = 0;
                entry.last_failure = None;
                entry.priority = Priority::Background;
                let (from, to) = (certificate.not_before(), certificate.not_after());
                entry.at = renew_at(now, from, to, rand::random());
                debug!(
                    certificate.identity = %identity, certificate.serial = certificate.serial(),
                    "Certificate fetched"
                );
                entry.status.send_replace(Status::Ready(Arc::new(certificate)));
            }
            Err(error) => {
                self.metrics.failed.fetch_add(1, Ordering::Relaxed);
                warn!(certificate.identity = %identity, %error, "Certificate not fetched");
                let error = Arc::new(error);
                let expiry = entry.certificate().map(|held| held.not_after()).filter(|&at| at > now);
                entry.failures = entry.failures.saturating_add(1);
                entry.at = retry_at(now, entry.failures, expiry, rand::random());
                entry.last_failure = Some(Arc::clone(&error));
                if expiry.is_none() {
                    entry.status.send_replace(Status::Failed(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
