//! TLS between mesh processes: one crypto provider, one profile, and what a peer must show.
//!
//! [`verify`] decides whether a peer is who it must be, [`rejected`] names why it is not,
//! [`revoked`] knows the certificates that were taken back, [`handshake`] carries a handshake out
//! within a time limit, [`secured`] is what comes of it and [`stream`] moves its bytes,
//! [`file`](mod@file) re-reads material that was replaced on disk.
//! Configurations are made by [`crate::cert::Certificate`], once for each certificate.

pub mod file;
pub mod handshake;
pub mod rejected;
pub mod revoked;
pub mod secured;
pub mod stream;
pub mod verify;

use std::{fmt, str::FromStr, sync::Arc};

use boring_rustls_provider::{tls12, tls13};
use rustls::{
    NamedGroup, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup},
    pki_types::ServerName,
};

use self::revoked::Revocation;

/// The one application protocol of the mesh, both sides (protocols 4.2).
pub const ALPN: &[u8] = b"h2";

/// How this process does TLS: algorithms, versions, and which certificates were revoked.
/// Made once by `main`; cheap to clone.
#[derive(Clone)]
pub struct Profile {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    revocation: Revocation,
}

impl Profile {
    /// A profile that follows `compliance` and speaks `versions`.
    pub fn new(
        compliance: Compliance,
        versions: Versions,
        revocation: Revocation,
    ) -> Result<Self, ComplianceError> {
        let provider = provider(compliance, versions)?;
        let versions: &[_] = match (versions, compliance) {
            // The only group allowed there does not exist in TLS 1.2.
            (Versions::Tls13, _) | (Versions::Tls12And13, Compliance::PostQuantum) => {
                const { &[&rustls::version::TLS13] }
            }
            (Versions::Tls12And13, Compliance::None | Compliance::Fips140_2) => {
                const { &[&rustls::version::TLS13, &rustls::version::TLS12] }
            }
        };
        Ok(Self { provider, versions, revocation })
    }

    /// The algorithms.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// The protocol versions, newest first.
    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.versions
    }

    /// Whether connections can be ours after the handshake (see [`stream`]), whose secrets rustls must
    /// then give away.
    pub(crate) fn keeps_records(&self) -> bool {
        matches!(self.versions, [version] if version.version == rustls::ProtocolVersion::TLSv1_3)
    }

    /// The certificates that were taken back.
    pub fn revocation(&self) -> &Revocation {
        &self.revocation
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("versions", &self.versions)
            .field("revocation", &self.revocation)
            .finish_non_exhaustive()
    }
}

/// The one crypto provider: BoringSSL, AES-GCM only.
///
/// The order is the client's preference, and a server takes the client's order: AES-128-GCM seals
/// more bytes per core than AES-256-GCM, and the hybrid group comes first so that its key share
/// is the one sent.
pub fn provider(compliance: Compliance, versions: Versions) -> Result<Arc<CryptoProvider>, ComplianceError> {
    let mut suites = vec![
        SupportedCipherSuite::Tls13(&tls13::AES_128_GCM_SHA256),
        SupportedCipherSuite::Tls13(&tls13::AES_256_GCM_SHA384),
    ];
    match versions {
        Versions::Tls13 => {}
        Versions::Tls12And13 => suites.extend([
            SupportedCipherSuite::Tls12(&tls12::ECDHE_ECDSA_AES128_GCM_SHA256),
            SupportedCipherSuite::Tls12(&tls12::ECDHE_RSA_AES128_GCM_SHA256),
            SupportedCipherSuite::Tls12(&tls12::ECDHE_ECDSA_AES256_GCM_SHA384),
            SupportedCipherSuite::Tls12(&tls12::ECDHE_RSA_AES256_GCM_SHA384),
        ]),
    }
    let mut provider = boring_rustls_provider::provider_with_ciphers(suites);
    let groups: &[NamedGroup] = match compliance {
        Compliance::None => &[NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1],
        Compliance::PostQuantum => &[NamedGroup::X25519MLKEM768],
        Compliance::Fips140_2 => &[NamedGroup::secp256r1],
    };
    let known: Vec<&'static dyn SupportedKxGroup> = provider.kx_groups;
    provider.kx_groups = groups
        .iter()
        .map(|&name| {
            let group = known.iter().copied().find(|group| group.name() == name);
            group.ok_or(ComplianceError::NoGroup(name))
        })
        .collect::<Result<_, _>>()?;
    match compliance {
        Compliance::None | Compliance::PostQuantum => {}
        Compliance::Fips140_2 if boring::fips::enabled() => {
            provider.signature_verification_algorithms = boring_rustls_provider::verify::ALL_FIPS_ALGORITHMS;
        }
        Compliance::Fips140_2 => return Err(ComplianceError::NotFips),
    }
    Ok(Arc::new(provider))
}

/// Makes BoringSSL the provider of whatever in this process does TLS without being told how: the client of the
/// Kubernetes API. To be called at the start of `main`; a second call changes nothing.
pub fn install_provider() -> Result<(), ComplianceError> {
    let provider = provider(Compliance::None, Versions::Tls12And13)?;
    // Refused if there is one already: then it is this one.
    let _ = CryptoProvider::install_default(Arc::unwrap_or_clone(provider));
    Ok(())
}

/// What the operator demands of the algorithms: `COMPLIANCE_POLICY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compliance {
    /// Nothing: the hybrid group is preferred, X25519 and P-256 are accepted.
    #[default]
    None,
    /// `pqc`: nothing but X25519MLKEM768.
    PostQuantum,
    /// `fips-140-2`: P-256, in a build whose BoringSSL is the validated one.
    Fips140_2,
}

impl FromStr for Compliance {
    type Err = ComplianceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self::None),
            "pqc" => Ok(Self::PostQuantum),
            "fips-140-2" => Ok(Self::Fips140_2),
            unknown => Err(ComplianceError::Unknown(unknown.to_owned())),
        }
    }
}

/// Which versions of TLS are spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// TLS 1.3 and nothing else.
    #[default]
    Tls13,
    /// TLS 1.2 as well: `TLS12_ENABLED=true`.
    Tls12And13,
}

/// Why the demanded algorithms cannot be had. The daemon must not start.
#[derive(Debug, thiserror::Error)]
pub enum ComplianceError {
    /// Not a word that we know.
    #[error("COMPLIANCE_POLICY={0:?} is not known; use `pqc`, `fips-140-2`, or leave it unset")]
    Unknown(String),
    /// The library is not the validated one.
    #[error(
        "COMPLIANCE_POLICY=fips-140-2, but this binary was not built with FIPS BoringSSL; \
         build with the `fips` feature of `boring`, or unset COMPLIANCE_POLICY"
    )]
    NotFips,
    /// The library was built without a group that the policy needs.
    #[error("this build of BoringSSL does not offer {0:?}, which COMPLIANCE_POLICY demands")]
    NoGroup(NamedGroup),
}

/// The server's name for peers that are told apart by identity. It is never sent: configurations
/// made here have SNI switched off.
pub fn unnamed() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(compliance: &str) -> Vec<NamedGroup> {
        let provider = provider(compliance.parse().unwrap(), Versions::Tls13).unwrap();
        provider.kx_groups.iter().map(|group| group.name()).collect()
    }

    #[test]
    fn the_hybrid_group_is_offered_first() {
        let all = [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1];
        assert_eq!(groups(""), all);
        assert_eq!(groups("pqc"), [NamedGroup::X25519MLKEM768]);
    }

    #[test]
    fn only_aes_gcm_is_spoken() {
        for (versions, count) in [(Versions::Tls13, 2), (Versions::Tls12And13, 6)] {
            let provider = provider(Compliance::None, versions).unwrap();
            assert_eq!(provider.cipher_suites.len(), count);
            for suite in &provider.cipher_suites {
                assert!(format!("{:?}", suite.suite()).contains("GCM"), "{suite:?}");
            }
        }
    }

    #[test]
    fn a_policy_that_cannot_be_kept_stops_the_start() {
        assert!(matches!("fips".parse::<Compliance>(), Err(ComplianceError::Unknown(_))));
        let fips = "fips-140-2".parse().unwrap();
        let outcome = Profile::new(fips, Versions::Tls13, Revocation::NotConfigured);
        assert_eq!(outcome.is_ok(), boring::fips::enabled());
    }

    #[test]
    fn post_quantum_leaves_no_room_for_tls_1_2() {
        let profile = Profile::new(Compliance::PostQuantum, Versions::Tls12And13, Revocation::NotConfigured);
        assert_eq!(profile.unwrap().versions(), [&rustls::version::TLS13]);
    }
}
