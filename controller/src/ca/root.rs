//! What signs: a plugged-in authority, or a root of our own that is made once.
//!
//! | in the directory | what signs |
//! |---|---|
//! | `ca-cert.pem` or `ca-key.pem` | the plugged-in authority, in the form of Istio's `cacerts`: both, `root-cert.pem`, and `cert-chain.pem` if anything stands between it and the root |
//! | `self-signed.pem` | our root, with its key in the same file: one rename makes both |
//! | neither | a root is made and written there, under a lock, so that controllers that start together have one |
//!
//! Keys are for their owner only. One that others can read is taken back from them, with a warning; if that cannot be
//! done the daemon does not start, except on a read-only file system, where whoever mounted it decided.

use std::{
    fs::{self, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_model::identity::TrustDomain;
use ambit_wire::cert::authority::{Authority, AuthorityError, Serial, SignError};
use boring::{
    error::ErrorStack,
    stack::Stack,
    x509::{X509, X509StoreContext, store::X509StoreBuilder},
};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    authority::starting,
    file::{FileError, read, read_secret, write},
};

/// Our own root and its key.
pub const SELF_SIGNED: &str = "self-signed.pem";
/// Istio's names for a plugged-in authority.
pub const PLUGGED: Plugged = Plugged {
    certificate: "ca-cert.pem",
    key: "ca-key.pem",
    chain: "cert-chain.pem",
    roots: "root-cert.pem",
};
/// Revocation lists that may lie beside them.
pub const REVOCATION_LISTS: &str = "ca-crl.pem";

/// Held while a root is looked for and made.
const LOCK: &str = ".lock";
/// From this part of its life on, a signer is to be replaced (Istio's grace percentile is the same).
const LAST_PART: u32 = 5;

/// The names of the files of a plugged-in authority.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    /// The certificate that signs.
    pub certificate: &'static str,
    /// Its key.
    pub key: &'static str,
    /// It, and what leads from it to a root.
    pub chain: &'static str,
    /// The roots.
    pub roots: &'static str,
}

/// What signs.
#[derive(Clone, Debug)]
pub struct Root {
    /// The authority.
    pub authority: Authority,
    /// Where it came from.
    pub origin: Origin,
    /// Until when everything that it signs through is valid.
    pub expires: SystemTime,
}

/// Where an authority came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The operator put it there.
    PluggedIn,
    /// We made it now.
    Made,
    /// We made it earlier.
    Kept,
}

/// Finds what signs, or makes it, valid for `lifetime`. Waits for other controllers that do the same.
pub fn open(
    dir: &Path,
    trust_domain: &TrustDomain,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Root, RootError> {
    let is_plugged = [PLUGGED.certificate, PLUGGED.key].iter().any(|name| dir.join(name).exists());
    let root = if is_plugged {
        plugged(dir)?
    } else {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).map_err(|error| FileError::write(dir, error))?;
        let lock = dir.join(LOCK);
        let file = File::options().create(true).append(true).open(&lock);
        let file = file.map_err(|error| FileError::write(&lock, error))?;
        // Released when the file is closed, also by death.
        file.lock().map_err(|error| FileError::write(&lock, error))?;
        let path = dir.join(SELF_SIGNED);
        if path.exists() { kept(&path)? } else { make(&path, trust_domain, lifetime, now)? }
    };
    let root = proven(root.authority, root.origin, now)
        .map_err(|problem| RootError::Chain { dir: dir.to_owned(), problem })?;
    info!(ca.dir = %dir.display(), ca.origin = ?root.origin, "Authority ready");
    Ok(root)
}

/// What signs, if its chain leads to a root and all of that is valid now. Says so if it soon ends.
pub(super) fn proven(authority: Authority, origin: Origin, now: SystemTime) -> Result<Root, ChainError> {
    let (begins, expires) = check_chain(&authority, now)?;
    let life = expires.duration_since(begins).unwrap_or_default();
    let left = expires.duration_since(now).unwrap_or_default();
    if left < life / LAST_PART {
        warn!(ca.origin = ?origin, left_seconds = left.as_secs(), "The signing certificate ends soon; replace it");
    }
    Ok(Root { authority, origin, expires })
}

fn plugged(dir: &Path) -> Result<Root, RootError> {
    let file = |name: &str| {
        let path = dir.join(name);
        if path.exists() {
            Ok(read(&path)?)
        } else {
            Err(RootError::Incomplete { dir: dir.to_owned(), missing: path })
        }
    };
    let certificate = file(PLUGGED.certificate)?;
    let roots = file(PLUGGED.roots)?;
    let key_path = dir.join(PLUGGED.key);
    let key = if key_path.exists() { read_secret(&key_path)? } else { file(PLUGGED.key)? };
    let above = if dir.join(PLUGGED.chain).exists() { file(PLUGGED.chain)? } else { String::new() };
    let unusable = |source| RootError::Unusable { path: dir.to_owned(), source };
    let chain = signer_first(&certificate, &above).map_err(unusable)?;
    let authority = Authority::from_pem(&chain, &key, &roots).map_err(unusable)?;
    Ok(Root { authority, origin: Origin::PluggedIn, expires: UNIX_EPOCH })
}

/// Istio's chain begins with the signer itself; others' begins above it. Both are taken.
pub(super) fn signer_first(certificate: &str, above: &str) -> Result<String, AuthorityError> {
    let signer = X509::stack_from_pem(certificate.as_bytes()).map_err(|_| AuthorityError::Chain)?;
    if signer.is_empty() {
        return Err(AuthorityError::Chain);
    }
    let above = X509::stack_from_pem(above.as_bytes()).map_err(|_| AuthorityError::Chain)?;
    let mut seen = Vec::new();
    let mut chain = String::new();
    for certificate in signer.into_iter().chain(above) {
        let der = certificate.to_der()?;
        if !seen.contains(&der) {
            chain.push_str(&String::from_utf8_lossy(&certificate.to_pem()?));
            seen.push(der);
        }
    }
    Ok(chain)
}

fn kept(path: &Path) -> Result<Root, RootError> {
    let both = read_secret(path)?;
    let authority = Authority::from_pem(&both, &both, &both)
        .map_err(|source| RootError::Broken { path: path.to_owned(), source })?;
    Ok(Root { authority, origin: Origin::Kept, expires: UNIX_EPOCH })
}

fn make(
    path: &Path,
    trust_domain: &TrustDomain,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Root, RootError> {
    let authority = Authority::self_signed(trust_domain, starting(now, lifetime), Serial::random()?)?;
    let both = format!("{}{}", authority.key().to_pem()?, authority.roots());
    write(path, both.as_bytes(), 0o600).map_err(|error| FileError::write(path, error))?;
    Ok(Root { authority, origin: Origin::Made, expires: UNIX_EPOCH })
}

/// Whether the signer leads to a root, all of it valid now; and from when until when that lasts.
fn check_chain(authority: &Authority, now: SystemTime) -> Result<(SystemTime, SystemTime), ChainError> {
    let chain = X509::stack_from_pem(authority.chain()?.as_bytes())?;
    let roots = X509::stack_from_pem(authority.roots().as_bytes())?;
    let signer = chain.first().ok_or(ChainError::Empty)?;
    // Expiry first: "certificate has expired" does not say which.
    let mut life = validity(signer)?;
    for certificate in chain.iter().skip(1) {
        let (begins, ends) = validity(certificate)?;
        life = (life.0.max(begins), life.1.min(ends));
    }
    if life.1 <= now {
        return Err(ChainError::Expired);
    }
    if life.0 > now {
        return Err(ChainError::NotYet);
    }
    let mut store = X509StoreBuilder::new()?;
    for root in roots {
        store.add_cert(root)?;
    }
    let mut between = Stack::new()?;
    for certificate in chain.iter().skip(1) {
        between.push(certificate.clone())?;
    }
    let mut context = X509StoreContext::new()?;
    let store = store.build();
    let (leads, why) = context.init(&store, signer, &between, |context| {
        let leads = context.verify_cert()?;
        let why = context.verify_result().err().map(|error| error.to_string());
        Ok((leads, why))
    })?;
    if leads { Ok(life) } else { Err(ChainError::LeadsNowhere(why.unwrap_or_default())) }
}

pub(super) fn validity(certificate: &X509) -> Result<(SystemTime, SystemTime), ChainError> {
    let der = certificate.to_der()?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| ChainError::Empty)?;
    let at = |time: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    Ok((at(certificate.validity().not_before), at(certificate.validity().not_after)))
}

/// Why nothing can sign. The daemon must not start.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Some of the files are there.
    #[error("{dir} holds a plugged-in authority, but {missing} is missing; it needs ca-cert.pem, ca-key.pem and root-cert.pem", dir = dir.display(), missing = missing.display())]
    Incomplete {
        /// Where.
        dir: PathBuf,
        /// What is not there.
        missing: PathBuf,
    },
    /// The files do not make an authority.
    #[error("the plugged-in authority in {path} cannot be used: {source}", path = path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: AuthorityError,
    },
    /// Our own root was damaged.
    #[error(
        "our own root in {path} cannot be used: {source}; restore it from a backup. (Removed, a new root is made: \
         then every tunnel needs the new root and every workload a new certificate)", path = path.display()
    )]
    Broken {
        /// Where.
        path: PathBuf,
        /// Why.
        source: AuthorityError,
    },
    /// The signer does not lead to a root.
    #[error("the authority in {dir} cannot be used: {problem}", dir = dir.display())]
    Chain {
        /// Where.
        dir: PathBuf,
        /// Why.
        problem: ChainError,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// No root could be made.
    #[error("no root could be made: {0}")]
    Sign(#[from] SignError),
    /// The crypto library failed.
    #[error("no root could be made: {0}")]
    Crypto(#[from] ErrorStack),
}

/// Why an authority is not one that others would accept.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// It is over.
    #[error("a certificate of its chain has expired; replace it")]
    Expired,
    /// It has not begun.
    #[error("a certificate of its chain is not yet valid; is the clock right?")]
    NotYet,
    /// No path to a root.
    #[error(
        "ca-cert.pem does not lead through cert-chain.pem to root-cert.pem ({0}); put every certificate in between into cert-chain.pem"
    )]
    LeadsNowhere(String),
    /// No certificate.
    #[error("it holds no certificate")]
    Empty,
    /// The crypto library failed.
    #[error("its certificates cannot be read: {0}")]
    Crypto(#[from] ErrorStack),
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, thread};

    use ambit_wire::cert::authority::Validity;

    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn open_in(dir: &Path) -> Result<Root, RootError> {
        open(dir, &TrustDomain::default(), 10 * YEAR, SystemTime::now())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn lasting(from: SystemTime, length: Duration) -> Validity {
        Validity { not_before: from, not_after: from + length }
    }

    /// A root, and an authority under an authority under it.
    fn plugged_authority(life: Duration) -> Authority {
        let now = SystemTime::now() - Duration::from_secs(3600);
        let root = Authority::self_signed(&"corp".into(), lasting(now, YEAR), Serial::new(1)).unwrap();
        let middle = root.intermediate("Middle", lasting(now, YEAR), Serial::new(2)).unwrap();
        middle.intermediate("Mesh", lasting(now, life), Serial::new(3)).unwrap()
    }

    fn plug(dir: &Path, authority: &Authority) {
        let chain = authority.chain().unwrap();
        let end = chain.find("-----END CERTIFICATE-----\n").unwrap() + "-----END CERTIFICATE-----\n".len();
        fs::write(dir.join(PLUGGED.certificate), &chain[..end]).unwrap();
        fs::write(dir.join(PLUGGED.chain), chain).unwrap();
        fs::write(dir.join(PLUGGED.roots), authority.roots()).unwrap();
        fs::write(dir.join(PLUGGED.key), authority.key().to_pem().unwrap()).unwrap();
        fs::set_permissions(dir.join(PLUGGED.key), Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_root_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ca");
        let first = open_in(&dir).unwrap();
        assert_eq!(first.origin, Origin::Made);
        assert_eq!((mode(&dir), mode(&dir.join(SELF_SIGNED))), (0o700, 0o600));
        let second = open_in(&dir).unwrap();
        assert_eq!(second.origin, Origin::Kept);
        assert_eq!(first.authority.roots(), second.authority.roots());
        let left = second.expires.duration_since(SystemTime::now()).unwrap();
        assert!(left > 9 * YEAR && left <= 10 * YEAR);
    }

    #[test]
    fn controllers_that_start_together_have_one_root() {
        let dir = tempfile::tempdir().unwrap();
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let dir = dir.path().join("ca");
                thread::spawn(move || open_in(&dir).unwrap())
            })
            .collect();
        let roots: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        assert!(roots.iter().all(|root| root.authority.roots() == roots[0].authority.roots()));
        assert_eq!(roots.iter().filter(|root| root.origin == Origin::Made).count(), 1);
    }

    #[test]
    fn a_root_that_is_broken_stops_the_start_and_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SELF_SIGNED);
        open_in(dir.path()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let begin = good.find("-----BEGIN CERTIFICATE").unwrap();
        let other =
            Authority::self_signed(&"x".into(), lasting(SystemTime::now(), YEAR), Serial::new(9)).unwrap();
        let mismatch = format!("{}{}", other.key().to_pem().unwrap(), &good[begin..]);
        for bad in ["", "garbage", &good[..begin], &good[begin..], &mismatch] {
            fs::write(&path, bad).unwrap();
            let error = open_in(dir.path()).unwrap_err().to_string();
            assert!(error.contains("self-signed.pem") && error.contains("backup"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
        fs::write(&path, good).unwrap();
        assert_eq!(open_in(dir.path()).unwrap().origin, Origin::Kept);
    }

    #[test]
    fn a_key_that_others_can_read_is_taken_back_from_them() {
        let dir = tempfile::tempdir().unwrap();
        open_in(dir.path()).unwrap();
        let path = dir.path().join(SELF_SIGNED);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        open_in(dir.path()).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_plugged_in_authority_goes_before_our_own() {
        let dir = tempfile::tempdir().unwrap();
        open_in(dir.path()).unwrap();
        let authority = plugged_authority(YEAR);
        plug(dir.path(), &authority);
        let root = open_in(dir.path()).unwrap();
        assert_eq!(root.origin, Origin::PluggedIn);
        assert_eq!(root.authority.roots(), authority.roots());
        assert_eq!(root.authority.chain().unwrap(), authority.chain().unwrap());
        assert_eq!(mode(&dir.path().join(PLUGGED.key)), 0o600);
    }

    #[test]
    fn a_chain_with_the_root_in_it_or_without_the_signer_is_the_same() {
        let authority = plugged_authority(YEAR);
        let whole = authority.chain().unwrap();
        let end = whole.find("-----END CERTIFICATE-----\n").unwrap() + "-----END CERTIFICATE-----\n".len();
        for chain in [format!("{whole}{}", authority.roots()), whole[end..].to_owned()] {
            let dir = tempfile::tempdir().unwrap();
            plug(dir.path(), &authority);
            fs::write(dir.path().join(PLUGGED.chain), chain).unwrap();
            let root = open_in(dir.path()).unwrap();
            assert_eq!(root.authority.chain().unwrap(), whole);
        }
    }

    #[test]
    fn a_plugged_in_authority_that_cannot_sign_for_others_stops_the_start() {
        let stranger =
            Authority::self_signed(&"x".into(), lasting(SystemTime::now(), YEAR), Serial::new(9)).unwrap();
        let tell = |spoil: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            plug(dir.path(), &plugged_authority(YEAR));
            spoil(dir.path());
            open_in(dir.path()).unwrap_err().to_string()
        };
        for name in [PLUGGED.certificate, PLUGGED.key, PLUGGED.roots] {
            let error = tell(&|dir| fs::remove_file(dir.join(name)).unwrap());
            assert!(error.contains(name) && error.contains("missing"), "{error}");
        }
        let error = tell(&|dir| fs::remove_file(dir.join(PLUGGED.chain)).unwrap());
        assert!(error.contains("cert-chain.pem"), "{error}");
        let error = tell(&|dir| fs::write(dir.join(PLUGGED.roots), stranger.roots()).unwrap());
        assert!(error.contains("does not lead"), "{error}");
        let error = tell(&|dir| fs::write(dir.join(PLUGGED.key), stranger.key().to_pem().unwrap()).unwrap());
        assert!(error.contains("does not belong"), "{error}");
        let error = tell(&|dir| fs::write(dir.join(PLUGGED.certificate), "garbage").unwrap());
        assert!(error.contains("cannot be used"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        plug(dir.path(), &plugged_authority(Duration::from_secs(1800)));
        let error = open_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains("expired"), "{error}");
    }
}
