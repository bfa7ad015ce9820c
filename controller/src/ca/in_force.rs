//! What signs now and whom the mesh trusts now: one immutable value, replaced as a whole.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_wire::cert::authority::Authority;
use boring::{hash::MessageDigest, x509::X509};
use tokio::sync::watch;

use super::{
    root::{Origin, Root, validity},
    rotation::State,
};

/// What signs, who is trusted, and how the rotation from one root to the next stands.
#[derive(Clone, Debug)]
pub struct InForce {
    /// What signs. Its roots are all that are trusted, the signer's own first.
    pub root: Root,
    /// How a rotation of our own root stands; always steady for others.
    pub rotation: State,
    /// The longest life that may be signed without writing it down first; `None`: nobody counts.
    pub longest: Option<Duration>,
    /// The revocation lists that came with a plugged-in authority, PEM.
    pub lists: Option<String>,
    /// Why what the Secrets say now is not in force.
    pub problem: Option<String>,
}

impl InForce {
    /// A root that is not rotated.
    pub fn steady(root: Root) -> Self {
        Self { root, rotation: State::Steady, longest: None, lists: None, problem: None }
    }

    /// A root that never changes, in the form that everybody takes.
    pub fn fixed(root: Root) -> watch::Receiver<Arc<Self>> {
        watch::Sender::new(Arc::new(Self::steady(root))).subscribe()
    }

    /// What signs.
    pub fn authority(&self) -> &Authority {
        &self.root.authority
    }

    /// All trusted roots, PEM: for tunnels, and for the `caBundle` of webhooks.
    pub fn bundle(&self) -> &str {
        self.root.authority.roots()
    }

    /// Until when everything that is signed through is valid.
    pub fn expires(&self) -> SystemTime {
        self.root.expires
    }

    /// Whether the operator plugged it in.
    pub fn is_plugged_in(&self) -> bool {
        self.root.origin == Origin::PluggedIn
    }

    /// Whether both sign with the same certificate and trust the same roots.
    pub fn signs_as(&self, other: &Self) -> bool {
        self.bundle() == other.bundle()
            && matches!((self.authority().chain(), other.authority().chain()), (Ok(a), Ok(b)) if a == b)
    }
}

/// A certificate's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of one certificate.
    pub fn of(certificate: &X509) -> Option<Self> {
        let digest = certificate.digest(MessageDigest::sha256()).ok()?;
        Some(Self(digest.as_ref().try_into().ok()?))
    }

    /// Of the certificates in `pem`. What cannot be read makes none of them count.
    pub fn all(pem: &str) -> Option<Vec<Self>> {
        let certificates = X509::stack_from_pem(pem.as_bytes()).ok()?;
        certificates.iter().map(Self::of).collect()
    }

    /// Of what signs.
    pub fn of_signer(authority: &Authority) -> Option<Self> {
        Self::all(&authority.chain().ok()?)?.into_iter().next()
    }
}

/// When the first of the certificates in `pem` ends.
pub fn first_end(pem: &str) -> Option<SystemTime> {
    let certificates = X509::stack_from_pem(pem.as_bytes()).ok()?;
    certificates.iter().filter_map(|certificate| validity(certificate).ok()).map(|(_, ends)| ends).min()
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use ambit_wire::cert::authority::Serial;

    use super::{super::authority::starting, *};

    #[test]
    fn a_fingerprint_is_that_of_the_certificate_and_not_of_its_text() {
        let life = starting(SystemTime::now(), Duration::from_secs(3600));
        let root = Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap();
        let other = Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap();
        let of = |pem: &str| Fingerprint::all(pem).unwrap();
        assert_eq!(of(root.roots()), of(&format!("# a comment\n\n{}\n", root.roots())));
        assert_ne!(of(root.roots()), of(other.roots()));
        assert_eq!(of(&format!("{}{}", root.roots(), other.roots())).len(), 2);
        assert_eq!(of(root.roots())[0].to_string().len(), 64);
        assert_eq!(Fingerprint::of_signer(&root), of(root.roots()).first().copied());
    }
}
