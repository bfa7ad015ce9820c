//! Why a peer's certificate was not accepted, in words that survive the TLS library.

use std::{io, sync::Arc};

use ambit_model::identity::{Identity, TrustDomain};
use rustls::{CertificateError, OtherError};

use super::verify::ExpectedIdentities;

/// Why a peer was turned away during the handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate; is it part of the mesh?")]
    NoCertificate,
    /// No URI SAN is a SPIFFE identity of ours.
    #[error("the peer's certificate carries no SPIFFE identity")]
    NoIdentity,
    /// The identity is vouched for by someone else.
    #[error("the peer {found} is not of the trust domain {expected}")]
    WrongTrustDomain {
        /// Our own.
        expected: TrustDomain,
        /// Who the peer is.
        found: Identity,
    },
    /// A good identity, but not the one that was called.
    #[error("expected the peer to be {expected}, but it is {found}")]
    UnexpectedIdentity {
        /// Who may answer.
        expected: ExpectedIdentities,
        /// Who answered.
        found: Identity,
    },
    /// On a revocation list, itself or one of its issuers.
    #[error("the peer's certificate was revoked")]
    Revoked,
    /// Not valid any more.
    #[error("the peer's certificate has expired; are the clocks right?")]
    Expired,
    /// Not valid yet.
    #[error("the peer's certificate is not valid yet; are the clocks right?")]
    NotYetValid,
    /// It does not lead to one of our roots.
    #[error("the peer's certificate is not issued by a root that we trust")]
    UntrustedIssuer,
    /// Its extended key usage forbids this use.
    #[error("the peer's certificate is not meant for this side of a connection")]
    WrongPurpose,
    /// None of its names is the one that was called (control plane only).
    #[error("the peer's certificate is not valid for the name that was called")]
    WrongName,
    /// A signature does not hold.
    #[error("a signature of the peer does not hold")]
    BadSignature,
    /// Anything else that is wrong with it.
    #[error("the peer's certificate is not acceptable: {0}")]
    Malformed(String),
}

impl Rejected {
    /// The reason inside an error of the TLS library, if a certificate was the reason.
    pub fn from_tls(error: &rustls::Error) -> Option<Self> {
        if let rustls::Error::NoCertificatesPresented = error {
            return Some(Self::NoCertificate);
        }
        let rustls::Error::InvalidCertificate(kind) = error else { return None };
        Some(Self::from_kind(kind))
    }

    /// The reason inside an I/O error of a TLS stream, if a certificate was the reason.
    pub fn from_io(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().and_then(Self::from_tls)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum that may grow")]
    fn from_kind(kind: &CertificateError) -> Self {
        use CertificateError as Kind;
        match kind {
            Kind::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(rejected) => rejected.clone(),
                None => Self::Malformed(inner.to_string()),
            },
            Kind::Expired | Kind::ExpiredContext { .. } => Self::Expired,
            Kind::NotValidYet | Kind::NotValidYetContext { .. } => Self::NotYetValid,
            Kind::Revoked => Self::Revoked,
            Kind::UnknownIssuer => Self::UntrustedIssuer,
            Kind::InvalidPurpose | Kind::InvalidPurposeContext { .. } => Self::WrongPurpose,
            Kind::NotValidForName | Kind::NotValidForNameContext { .. } => Self::WrongName,
            Kind::BadSignature => Self::BadSignature,
            other => Self::Malformed(other.to_string()),
        }
    }
}

impl From<webpki::Error> for Rejected {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum that may grow")]
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as Kind;
        match error {
            Kind::CertExpired { .. } => Self::Expired,
            Kind::CertNotValidYet { .. } => Self::NotYetValid,
            Kind::CertRevoked => Self::Revoked,
            Kind::UnknownIssuer => Self::UntrustedIssuer,
            Kind::RequiredEkuNotFoundContext(_) => Self::WrongPurpose,
            Kind::CertNotValidForName(_) => Self::WrongName,
            Kind::InvalidSignatureForPublicKey => Self::BadSignature,
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// The TLS library picks the alert from the kind, so the kinds it knows are kept.
impl From<Rejected> for rustls::Error {
    fn from(rejected: Rejected) -> Self {
        let kind = match &rejected {
            Rejected::NoCertificate => return Self::NoCertificatesPresented,
            Rejected::Revoked => CertificateError::Revoked,
            Rejected::Expired => CertificateError::Expired,
            Rejected::NotYetValid => CertificateError::NotValidYet,
            Rejected::UntrustedIssuer => CertificateError::UnknownIssuer,
            Rejected::WrongPurpose => CertificateError::InvalidPurpose,
            Rejected::WrongName => CertificateError::NotValidForName,
            Rejected::BadSignature => CertificateError::BadSignature,
            Rejected::NoIdentity
            | Rejected::WrongTrustDomain { .. }
            | Rejected::UnexpectedIdentity { .. }
            | Rejected::Malformed(_) => CertificateError::Other(OtherError(Arc::new(rejected))),
        };
        Self::InvalidCertificate(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_tls_library_and_the_stream() {
        let found = Identity::new("td", "ns", "sa");
        for rejected in [
            Rejected::NoCertificate,
            Rejected::NoIdentity,
            Rejected::WrongTrustDomain { expected: "other".into(), found: found.clone() },
            Rejected::UnexpectedIdentity { expected: found.clone().into(), found },
            Rejected::Revoked,
            Rejected::Expired,
            Rejected::NotYetValid,
            Rejected::UntrustedIssuer,
            Rejected::WrongPurpose,
            Rejected::WrongName,
            Rejected::BadSignature,
            Rejected::Malformed("odd".into()),
        ] {
            let tls = rustls::Error::from(rejected.clone());
            assert_eq!(Rejected::from_tls(&tls), Some(rejected.clone()));
            let io = io::Error::new(io::ErrorKind::InvalidData, tls);
            assert_eq!(Rejected::from_io(&io), Some(rejected));
        }
    }

    #[test]
    fn other_errors_are_no_rejection() {
        assert_eq!(Rejected::from_tls(&rustls::Error::DecryptError), None);
        assert_eq!(Rejected::from_io(&io::ErrorKind::UnexpectedEof.into()), None);
    }
}
