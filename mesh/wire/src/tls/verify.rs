//! What a peer must show: a chain to our roots, and a SPIFFE identity that may be here.
//!
//! Names in the DNS sense play no part between workloads (protocols 4.2). [`ControlPlaneServer`]
//! is the one verifier that looks at names: the control plane is found by name.

use std::{fmt, sync::Arc};

use ambit_model::identity::{Identity, TrustDomain};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use super::{Profile, rejected::Rejected, revoked::Revocation};

/// The first URI SAN of the leaf that is a SPIFFE identity: who the peer is, from here on.
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Option<Identity> {
    identities(&EndEntityCert::try_from(certificates.first()?).ok()?).next()
}

/// Who may answer a call. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExpectedIdentities(Arc<[Identity]>);

impl ExpectedIdentities {
    /// Whether `identity` may answer.
    pub fn contains(&self, identity: &Identity) -> bool {
        self.0.contains(identity)
    }

    /// Everyone who may answer.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter()
    }
}

impl From<Identity> for ExpectedIdentities {
    fn from(identity: Identity) -> Self {
        Self(Arc::new([identity]))
    }
}

impl From<Arc<[Identity]>> for ExpectedIdentities {
    fn from(identities: Arc<[Identity]>) -> Self {
        Self(identities)
    }
}

impl FromIterator<Identity> for ExpectedIdentities {
    fn from_iter<I: IntoIterator<Item = Identity>>(identities: I) -> Self {
        Self(identities.into_iter().collect())
    }
}

impl fmt::Display for ExpectedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody");
        }
        for (place, identity) in self.0.iter().enumerate() {
            write!(f, "{}{identity}", if place == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// Path building: does a chain lead to our roots, now, for this use, with nothing revoked?
#[derive(Debug)]
pub(crate) struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    revocation: Revocation,
}

impl Trust {
    /// Trust in `roots`, none of which may be unreadable.
    pub(crate) fn new(profile: &Profile, roots: &[CertificateDer<'_>]) -> Result<Self, webpki::Error> {
        let anchors = roots
            .iter()
            .map(|root| Ok(webpki::anchor_from_trusted_cert(root)?.to_owned()))
            .collect::<Result<_, webpki::Error>>()?;
        Ok(Self {
            anchors,
            algorithms: profile.provider().signature_verification_algorithms,
            revocation: profile.revocation().clone(),
        })
    }

    /// The parsed leaf, if its chain holds.
    pub(crate) fn verify<'a>(
        &self,
        leaf: &'a CertificateDer<'a>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: PeerSide,
    ) -> Result<EndEntityCert<'a>, Rejected> {
        let leaf = EndEntityCert::try_from(leaf)?;
        let usage = match side {
            PeerSide::Client => KeyUsage::client_auth(),
            PeerSide::Server => KeyUsage::server_auth(),
        };
        let lists = self.revocation.lists();
        let lists: Vec<_> = lists.iter().flat_map(|lists| lists.iter()).collect();
        leaf.verify_for_usage(
            self.algorithms.all,
            &self.anchors,
            intermediates,
            now,
            usage,
            super::revoked::options(&lists),
            None,
        )?;
        Ok(leaf)
    }
}

/// Which side the peer is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerSide {
    Client,
    Server,
}

/// Verifies clients: any identity of our own trust domain. Who may do what is authorization's part.
#[derive(Debug)]
pub(crate) struct MeshClient {
    pub(crate) trust: Arc<Trust>,
    /// Absent only when our own certificate names nobody.
    pub(crate) trust_domain: Option<TrustDomain>,
}

impl ClientCertVerifier for MeshClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let leaf = self.trust.verify(leaf, intermediates, now, PeerSide::Client)?;
        if let Some(ours) = &self.trust_domain {
            of_trust_domain(&leaf, ours)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Verifies servers: one of the identities that were called.
#[derive(Debug)]
pub(crate) struct MeshServer {
    pub(crate) trust: Arc<Trust>,
    pub(crate) expected: ExpectedIdentities,
}

impl ServerCertVerifier for MeshServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = self.trust.verify(leaf, intermediates, now, PeerSide::Server)?;
        one_of(&leaf, &self.expected)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Verifies the control plane: the name that was called, or the other name it is known by.
#[derive(Debug)]
pub(crate) struct ControlPlaneServer {
    pub(crate) trust: Trust,
    pub(crate) alternative: Option<ServerName<'static>>,
}

impl ServerCertVerifier for ControlPlaneServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = self.trust.verify(leaf, intermediates, now, PeerSide::Server)?;
        let named = |name: &ServerName<'_>| leaf.verify_is_valid_for_subject_name(name);
        named(name)
            .or_else(|error| match &self.alternative {
                Some(alternative) => named(alternative),
                None => Err(error),
            })
            .map_err(Rejected::from)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

fn identities<'a>(leaf: &'a EndEntityCert<'a>) -> impl Iterator<Item = Identity> + 'a {
    leaf.valid_uri_names().filter_map(|uri| uri.parse().ok())
}

fn of_trust_domain(leaf: &EndEntityCert<'_>, ours: &TrustDomain) -> Result<(), Rejected> {
    let mut foreign = None;
    for identity in identities(leaf) {
        if identity.trust_domain == *ours {
            return Ok(());
        }
        foreign.get_or_insert(identity);
    }
    let found = foreign.ok_or(Rejected::NoIdentity)?;
    Err(Rejected::WrongTrustDomain { expected: ours.clone(), found })
}

fn one_of(leaf: &EndEntityCert<'_>, expected: &ExpectedIdentities) -> Result<(), Rejected> {
    let mut stranger = None;
    for identity in identities(leaf) {
        if expected.contains(&identity) {
            return Ok(());
        }
        stranger.get_or_insert(identity);
    }
    let found = stranger.ok_or(Rejected::NoIdentity)?;
    Err(Rejected::UnexpectedIdentity { expected: expected.clone(), found })
}
