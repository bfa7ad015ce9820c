//! Certificates of workloads: asked for, issued, held, renewed.
//!
//! A [`Certificate`] is what a CA answered, checked ([`Certificate::from_response`]), with its TLS
//! configurations already made. [`store`] keeps one for each identity and renews it when
//! [`renew`] says so, through an [`Issuer`]: the CA over gRPC ([`crate::ca`]) or one in this
//! process ([`local`]). [`request`] writes what is asked, [`authority`] and [`crl`] answer.

pub mod authority;
pub mod crl;
pub mod local;
pub mod renew;
pub mod request;
pub mod store;

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_model::identity::Identity;
use base64::Engine as _;
use boring::x509::X509;
use futures_util::future::BoxFuture;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use self::request::PrivateKey;
use crate::tls::{
    ALPN, Profile,
    rejected::Rejected,
    verify::{ExpectedIdentities, MeshClient, MeshServer, PeerSide, Trust, peer_identity},
};

/// Signs requests. Implemented by the gRPC client, by an authority in this process, and by tests.
pub trait Issuer: Send + Sync + 'static {
    /// Has a certificate issued. Bounded by the caller.
    fn issue(&self, request: SigningRequest) -> BoxFuture<'_, Result<Issued, IssueError>>;
}

/// What is asked of an [`Issuer`].
#[derive(Clone, Debug)]
pub struct SigningRequest {
    /// For whom.
    pub identity: Identity,
    /// PEM, PKCS#10.
    pub csr: String,
}

/// What an [`Issuer`] answers: the leaf, intermediates, the bundle of roots last (protocols 3.2).
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM, as it came.
    pub chain: Vec<String>,
}

/// Why nothing was issued.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IssueError {
    /// The CA answered, and said no.
    #[error("the CA refused ({code}): {message}")]
    Refused {
        /// The gRPC code in words.
        code: String,
        /// The CA's reason.
        message: String,
    },
    /// The CA did not answer.
    #[error("the CA cannot be reached: {0}; is it running, and is its address right?")]
    Unreachable(String),
    /// The CA could not sign, for reasons of its own.
    #[error("the CA cannot sign: {0}")]
    Broken(String),
}

/// A workload's certificate, its roots, and the TLS configurations made of them.
pub struct Certificate {
    identity: Option<Identity>,
    /// The leaf and its intermediates, as shown to peers.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    leaf: Leaf,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    /// Complete but for whom it expects.
    client: ClientConfig,
}

impl Certificate {
    /// Checks a CA's answer to the request that `key` belongs to.
    ///
    /// `expected` is who was asked for; in dedicated mode the CA decides by itself who we are, and
    /// nobody is expected.
    pub fn from_response(
        profile: &Profile,
        expected: Option<&Identity>,
        response: &[String],
        key: &PrivateKey,
    ) -> Result<Self, CertificateError> {
        let (chain, roots) = split(response)?;
        let leaf = Leaf::read(chain.first().ok_or(CertificateError::Empty)?)?;
        if !key.belongs_to(leaf.der()) {
            return Err(CertificateError::WrongKey);
        }
        let identity = peer_identity(&chain);
        if let Some(expected) = expected
            && identity.as_ref() != Some(expected)
        {
            let (expected, found) = (expected.clone(), identity);
            return Err(CertificateError::WrongIdentity { expected, found });
        }
        let trust = Arc::new(Trust::new(profile, &roots).map_err(CertificateError::Roots)?);
        leaf.leads_to(&trust, &chain)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8()?));
        let key = profile.provider().key_provider.load_private_key(key)?;
        let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain.clone(), key)));
        let server = server_config(profile, &trust, identity.as_ref(), Arc::clone(&shown))?;
        let client = client_config(profile, &trust, shown)?;
        let server = Arc::new(server);
        Ok(Self { identity, chain, roots, leaf, trust, server, client })
    }

    /// Who this certificate says we are. Absent only when nobody in particular was asked for.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// For the accepting side: one configuration, made when the certificate came.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For the calling side: shares everything with other calls but whom it expects.
    pub fn client_config(&self, expected: impl Into<ExpectedIdentities>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(Arc::new(MeshServer {
            trust: Arc::clone(&self.trust),
            expected: expected.into(),
        }));
        Arc::new(config)
    }

    /// When the leaf becomes valid.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// When the leaf expires.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// Whether the leaf is valid at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.leaf.not_before..=self.leaf.not_after).contains(&now)
    }

    /// The leaf's serial number, in hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// The leaf and its intermediates, as peers see them.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What peers must chain to.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Whether a peer that shows this chain, leaf first, would be let in at `now`, whoever it is.
    pub(crate) fn vouches_for(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Rejected> {
        let (leaf, intermediates) = chain.split_first().ok_or(Rejected::NoCertificate)?;
        self.trust.verify(leaf, intermediates, now, PeerSide::Client).map(drop)
    }

    /// The chain in words, for the config dump.
    pub fn describe_chain(&self) -> Vec<Description> {
        self.chain.iter().filter_map(Description::of).collect()
    }

    /// The roots in words, for the config dump.
    pub fn describe_roots(&self) -> Vec<Description> {
        self.roots.iter().filter_map(Description::of).collect()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("serial", &self.leaf.serial)
            .field("not_after", &self.leaf.not_after)
            .finish_non_exhaustive()
    }
}

/// What an operator wants to know of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The certificate itself.
    pub pem: String,
    /// In hexadecimal digits.
    pub serial: String,
    /// The first instant of its life.
    pub not_before: SystemTime,
    /// The last one.
    pub not_after: SystemTime,
}

impl Description {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let Leaf { not_before, not_after, serial, .. } = Leaf::read(certificate).ok()?;
        Some(Self { pem: pem("CERTIFICATE", certificate), serial, not_before, not_after })
    }
}

/// Why a CA's answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Nothing at all.
    #[error("the CA answered without a certificate")]
    Empty,
    /// A leaf and nothing to trust.
    #[error("the CA answered with one certificate and no root")]
    NoRoot,
    /// Not the text that was agreed on.
    #[error("element {element} of the CA's answer is not a PEM certificate: {problem}")]
    Pem {
        /// Which one, from 0.
        element: usize,
        /// What the parser said.
        problem: String,
    },
    /// The leaf cannot be parsed.
    #[error("the certificate from the CA cannot be read: {0}")]
    Unreadable(String),
    /// A certificate for someone else.
    #[error(
        "asked the CA for {expected}, got a certificate for {}",
        found.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string)
    )]
    WrongIdentity {
        /// Who was asked for.
        expected: Identity,
        /// Who came.
        found: Option<Identity>,
    },
    /// A certificate for a key that is not ours.
    #[error("the certificate from the CA is not for the key that we asked it for")]
    WrongKey,
    /// A root that cannot be one.
    #[error("a root from the CA cannot be used: {0}")]
    Roots(webpki::Error),
    /// Peers with the same roots would turn us away.
    #[error("the certificate from the CA does not lead to the roots that came with it: {0}")]
    Untrusted(Rejected),
    /// The TLS library or the crypto library does not take it.
    #[error("the certificate from the CA cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The key cannot be written down.
    #[error("the private key cannot be used: {0}")]
    Key(#[from] boring::error::ErrorStack),
}

/// What we read of a certificate ourselves.
struct Leaf {
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    der: CertificateDer<'static>,
}

impl Leaf {
    fn read(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
        let time = |at: x509_parser::time::ASN1Time| {
            // Before 1970 means "always".
            let since = u64::try_from(at.timestamp()).unwrap_or(0);
            UNIX_EPOCH + Duration::from_secs(since)
        };
        let mut serial = String::new();
        for byte in parsed.raw_serial() {
            let _infallible = write!(serial, "{byte:02x}");
        }
        Ok(Self {
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
            serial,
            der: der.clone().into_owned(),
        })
    }

    fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Whether peers that trust the same roots will accept the chain, in the middle of its life:
    /// whether it is valid right now is the clock's affair, and asked with the clock at hand.
    fn leads_to(&self, trust: &Trust, chain: &[CertificateDer<'_>]) -> Result<(), CertificateError> {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let middle = self.not_before + life / 2;
        let middle = UnixTime::since_unix_epoch(middle.duration_since(UNIX_EPOCH).unwrap_or_default());
        let intermediates = chain.get(1..).unwrap_or_default();
        for side in [PeerSide::Server, PeerSide::Client] {
            match trust.verify(&self.der, intermediates, middle, side) {
                // Being on a revocation list is a state, not a mistake of the CA's answer.
                Ok(_) | Err(Rejected::Revoked) => {}
                Err(rejected) => return Err(CertificateError::Untrusted(rejected)),
            }
        }
        Ok(())
    }
}

/// Leaf and intermediates, and the roots of the last element.
fn split(
    response: &[String],
) -> Result<(Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>), CertificateError> {
    let parse = |element: usize, pem: &str| {
        let unusable = |problem| CertificateError::Pem { element, problem };
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(format!("{error:?}")))?;
        if certificates.is_empty() { Err(unusable("it is empty".into())) } else { Ok(certificates) }
    };
    let (roots, shown) = match response {
        [] => return Err(CertificateError::Empty),
        [_] => return Err(CertificateError::NoRoot),
        [shown @ .., roots] => (parse(shown.len(), roots)?, shown),
    };
    let mut chain = Vec::with_capacity(shown.len());
    for (element, pem) in shown.iter().enumerate() {
        chain.extend(parse(element, pem)?);
    }
    Ok((chain, roots))
}

fn server_config(
    profile: &Profile,
    trust: &Arc<Trust>,
    identity: Option<&Identity>,
    shown: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = MeshClient {
        trust: Arc::clone(trust),
        trust_domain: identity.map(|identity| identity.trust_domain.clone()),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(profile.provider()))
        .with_protocol_versions(profile.versions())?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session skips the certificates, and with them revocation: docs/decisions/0004.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.enable_secret_extraction = profile.keeps_records();
    Ok(config)
}

fn client_config(
    profile: &Profile,
    trust: &Arc<Trust>,
    shown: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    // Expects nobody, so that nothing is accepted should it ever be used as it is.
    let nobody = MeshServer { trust: Arc::clone(trust), expected: [].into_iter().collect() };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(profile.provider()))
        .with_protocol_versions(profile.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(shown);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = profile.keeps_records();
    Ok(config)
}

/// PEM of `der`, in lines of 64 characters.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

impl PrivateKey {
    fn belongs_to(&self, leaf: &CertificateDer<'_>) -> bool {
        X509::from_der(leaf)
            .and_then(|leaf| leaf.public_key())
            .is_ok_and(|public| self.pkey().public_eq(&public))
    }
}
