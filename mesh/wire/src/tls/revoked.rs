//! Certificates that were taken back: revocation lists, followed as their file changes.
//!
//! The whole chain is checked; a certificate of which no list speaks is accepted; a list past its
//! next update still counts (protocols 3.5). Lists are consulted in every handshake, and whoever
//! keeps connections re-checks them when [`RevocationLists::changes`] says so.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use tokio::sync::watch;
use tracing::{info, warn};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::file::WatchedFile;

/// How often the file is looked at. With the rest a file must have had, a new list is in force
/// within three seconds, at the price of one `stat` a second.
const LOOK: Duration = Duration::from_secs(1);

/// Whether there are revocation lists. A list that was configured never becomes "not configured".
#[derive(Clone, Debug)]
pub enum Revocation {
    /// `CRL_PATH` is not set: nothing is ever revoked.
    NotConfigured,
    /// These lists, as they are now.
    Loaded(Arc<RevocationLists>),
}

impl Revocation {
    /// Loads the lists; a file that cannot be used is an error, and the daemon must not start.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, RevocationError> {
        RevocationLists::load(path).map(|lists| Self::Loaded(Arc::new(lists)))
    }

    /// Whether a certificate of this chain is revoked now.
    pub fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        match self {
            Self::NotConfigured => false,
            Self::Loaded(lists) => lists.is_revoked(chain),
        }
    }

    /// The lists in force now.
    pub(crate) fn lists(&self) -> Option<Arc<Vec<CertRevocationList<'static>>>> {
        match self {
            Self::NotConfigured => None,
            Self::Loaded(lists) => Some(lists.current.load_full()),
        }
    }
}

/// Revocation lists from a file, and the file's next versions.
pub struct RevocationLists {
    path: PathBuf,
    current: ArcSwap<Vec<CertRevocationList<'static>>>,
    file: Mutex<WatchedFile>,
    generation: watch::Sender<u64>,
}

impl RevocationLists {
    /// Reads PEM (several lists, one after another) or DER.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, RevocationError> {
        let path = path.into();
        let unusable = |problem| RevocationError { path: path.clone(), problem };
        let (file, content) = WatchedFile::open(&path).map_err(|error| unusable(Problem::Read(error)))?;
        let lists = parse(&content).map_err(unusable)?;
        Ok(Self {
            path,
            current: ArcSwap::from_pointee(lists),
            file: Mutex::new(file),
            generation: watch::Sender::new(0),
        })
    }

    /// Whether a certificate of this chain is on a list of its issuer.
    pub fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        let lists = self.current.load();
        chain.iter().any(|der| {
            // Every chain was verified when it came, so it parses; if not, nobody vouches for it.
            let Ok(certificate) = EndEntityCert::try_from(der) else { return true };
            lists
                .iter()
                .filter(|list| list.issuer() == certificate.issuer())
                .any(|list| list.find_serial(certificate.serial()).map_or(true, |entry| entry.is_some()))
        })
    }

    /// A counter that moves with every new version of the lists.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Follows the file until `stop`. A version that cannot be used is reported, and the last
    /// good one stays in force.
    pub async fn follow(&self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            match self.reload(SystemTime::now()) {
                Ok(Reload::Unchanged) => {}
                Ok(Reload::Replaced) => {
                    info!(crl.path = %self.path.display(), "Revocation lists replaced");
                }
                Err(error) => {
                    warn!(
                        crl.path = %self.path.display(), %error,
                        "New revocation lists not usable, keeping the last good ones"
                    );
                }
            }
        }
    }

    /// Looks at the file once.
    pub fn reload(&self, now: SystemTime) -> Result<Reload, RevocationError> {
        let unusable = |problem| RevocationError { path: self.path.clone(), problem };
        let changed = self.file.lock().unwrap_or_else(PoisonError::into_inner).changed(now).transpose();
        let Some(content) = changed.map_err(|error| unusable(Problem::Read(error)))? else {
            return Ok(Reload::Unchanged);
        };
        self.current.store(Arc::new(parse(&content).map_err(unusable)?));
        self.generation.send_modify(|generation| *generation = generation.wrapping_add(1));
        Ok(Reload::Replaced)
    }

    /// Where the lists come from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationLists")
            .field("path", &self.path)
            .field("lists", &self.current.load().len())
            .finish_non_exhaustive()
    }
}

/// What a look at the file led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Nothing new.
    Unchanged,
    /// New lists are in force.
    Replaced,
}

/// A revocation list file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("revocation lists {}: {problem}; put PEM or DER lists there, or unset CRL_PATH", path.display())]
pub struct RevocationError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    #[error("is not PEM: {0:?}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("list {place} cannot be used: {error}")]
    List { place: usize, error: webpki::Error },
    #[error("holds no list")]
    Empty,
}

/// Whether this is PEM (several lists, one after another) or DER that could be put in force.
pub fn check(content: &[u8]) -> Result<(), NotLists> {
    parse(content).map(drop).map_err(NotLists)
}

/// Why something is no revocation list.
#[derive(Debug, thiserror::Error)]
#[error("it {0}")]
pub struct NotLists(Problem);

/// How lists are applied; `None` without any.
pub(crate) fn options<'a>(lists: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let options = RevocationOptionsBuilder::new(lists).ok()?;
    Some(
        options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build(),
    )
}

fn parse(content: &[u8]) -> Result<Vec<CertRevocationList<'static>>, Problem> {
    // A DER list begins with the tag of a sequence, which no PEM text does.
    let ders = if content.first() == Some(&0x30) {
        vec![CertificateRevocationListDer::from(content)]
    } else {
        CertificateRevocationListDer::pem_slice_iter(content)
            .collect::<Result<_, _>>()
            .map_err(Problem::Pem)?
    };
    let lists = ders
        .iter()
        .enumerate()
        .map(|(place, der)| {
            OwnedCertRevocationList::from_der(der)
                .map(CertRevocationList::from)
                .map_err(|error| Problem::List { place, error })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if lists.is_empty() { Err(Problem::Empty) } else { Ok(lists) }
}
