//! A signing authority: turns requests into chains, in the very form that clients expect.
//!
//! Clock and serial numbers are arguments. Whether the caller may have what it asks for is not
//! asked here: that is the controller's `ca/caller.rs`.

use std::{
    fmt,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use ambit_model::identity::{Identity, TrustDomain};
use boring::{
    asn1::Asn1Time,
    bn::BigNum,
    error::ErrorStack,
    hash::MessageDigest,
    pkey::{HasPublic, Id, PKeyRef},
    x509::{
        X509, X509Builder, X509Name, X509NameBuilder, X509Req,
        extension::{
            AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
            SubjectKeyIdentifier,
        },
    },
};

use super::request::PrivateKey;

/// A request of ours has some 400 bytes; one with a large RSA key and many names, a few thousand.
const LARGEST_REQUEST: usize = 64 * 1024;

/// A certificate that may sign others, its key, and what leads from it to the roots.
#[derive(Clone)]
pub struct Authority {
    signer: X509,
    /// The signer (unless it is a root) and whatever stands between it and the roots.
    intermediates: Vec<String>,
    key: PrivateKey,
    /// All roots, concatenated.
    roots: String,
}

impl Authority {
    /// A fresh root for `trust_domain`, of ECDSA on P-256.
    pub fn self_signed(
        trust_domain: &TrustDomain,
        validity: Validity,
        serial: Serial,
    ) -> Result<Self, SignError> {
        let key = PrivateKey::generate()?;
        let name = organization(trust_domain.as_str())?;
        let mut root = draft(&name, key.pkey(), validity, serial)?;
        certifies(&mut root, None)?;
        root.set_issuer_name(&name)?;
        root.sign(key.pkey(), MessageDigest::sha256())?;
        let signer = root.build();
        let roots = to_pem(&signer)?;
        Ok(Self { signer, intermediates: Vec::new(), key, roots })
    }

    /// An authority below this one, called `name`.
    pub fn intermediate(&self, name: &str, validity: Validity, serial: Serial) -> Result<Self, SignError> {
        let key = PrivateKey::generate()?;
        let validity = self.clamp(validity)?;
        let mut certificate = draft(&*organization(name)?, key.pkey(), validity, serial)?;
        certifies(&mut certificate, Some(&self.signer))?;
        let signer = self.finish(certificate)?;
        let mut intermediates = vec![to_pem(&signer)?];
        intermediates.extend(self.intermediates.iter().cloned());
        Ok(Self { signer, intermediates, key, roots: self.roots.clone() })
    }

    /// An authority from files: the signer first in `chain`, then what leads to the roots.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Result<Self, AuthorityError> {
        let chain = X509::stack_from_pem(chain.as_bytes()).map_err(|_| AuthorityError::Chain)?;
        let signer = chain.first().cloned().ok_or(AuthorityError::Chain)?;
        let key = PrivateKey::from_pem(key).map_err(|_| AuthorityError::Key)?;
        let trusted = X509::stack_from_pem(roots.as_bytes()).map_err(|_| AuthorityError::Roots)?;
        if trusted.is_empty() {
            return Err(AuthorityError::Roots);
        }
        if !signer.public_key()?.public_eq(key.pkey()) {
            return Err(AuthorityError::KeyOfAnother);
        }
        if signer.issued(&signer).is_err() && !is_authority(&signer) {
            return Err(AuthorityError::NotAnAuthority);
        }
        let known = trusted.iter().map(|root| root.to_der()).collect::<Result<Vec<_>, _>>()?;
        let mut intermediates = Vec::new();
        for certificate in &chain {
            // Peers have the roots; showing one to them would only cost bytes.
            if !known.contains(&certificate.to_der()?) {
                intermediates.push(to_pem(certificate)?);
            }
        }
        let roots = trusted.iter().map(to_pem).collect::<Result<String, _>>()?;
        Ok(Self { signer, intermediates, key, roots })
    }

    /// Signs `csr` for `identity`; of the request only the key counts (protocols 3.4). The answer
    /// is what a client gets: leaf, intermediates one by one, the roots as one element.
    pub fn sign(
        &self,
        csr: &str,
        identity: &Identity,
        validity: Validity,
        serial: Serial,
    ) -> Result<Vec<String>, SignError> {
        let public = applicant(csr)?.public_key()?;
        let mut san = SubjectAlternativeName::new();
        san.critical().uri(&identity.to_string());
        let leaf = self.leaf(&public, &X509NameBuilder::new()?.build(), &san, validity, serial)?;
        let mut chain = vec![to_pem(&leaf)?];
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.roots.clone());
        Ok(chain)
    }

    /// A certificate and key for a server that is found by name, such as the control plane itself.
    pub fn sign_server(
        &self,
        names: &[&str],
        validity: Validity,
        serial: Serial,
    ) -> Result<ServerCredentials, SignError> {
        let key = PrivateKey::generate()?;
        let mut san = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(_) => san.ip(name),
                Err(_) => san.dns(name),
            };
        }
        let subject = organization(names.first().copied().unwrap_or_default())?;
        let leaf = self.leaf(key.pkey(), &subject, &san, validity, serial)?;
        let mut chain = to_pem(&leaf)?;
        chain.extend(self.intermediates.iter().map(String::as_str));
        Ok(ServerCredentials { chain, key })
    }

    /// The roots, in PEM, for those who must trust us.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// The signer and its intermediates in PEM: what [`from_pem`](Self::from_pem) takes.
    pub fn chain(&self) -> Result<String, ErrorStack> {
        if self.intermediates.is_empty() { to_pem(&self.signer) } else { Ok(self.intermediates.concat()) }
    }

    /// The signing key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(super) fn signer(&self) -> &X509 {
        &self.signer
    }

    fn leaf<T: HasPublic>(
        &self,
        public: &PKeyRef<T>,
        subject: &boring::x509::X509NameRef,
        san: &SubjectAlternativeName,
        validity: Validity,
        serial: Serial,
    ) -> Result<X509, SignError> {
        let mut leaf = draft(subject, public, self.clamp(validity)?, serial)?;
        let usage = KeyUsage::new().critical().digital_signature().key_encipherment().build()?;
        leaf.append_extension(&usage)?;
        let purposes = ExtendedKeyUsage::new().server_auth().client_auth().build()?;
        leaf.append_extension(&purposes)?;
        let no_authority = BasicConstraints::new().critical().build()?;
        leaf.append_extension(&no_authority)?;
        let issued_by = {
            let context = leaf.x509v3_context(Some(&self.signer), None);
            AuthorityKeyIdentifier::new().keyid(false).build(&context)?
        };
        leaf.append_extension(&issued_by)?;
        let san = san.build(&leaf.x509v3_context(None, None))?;
        leaf.append_extension(&san)?;
        self.finish(leaf)
    }

    fn finish(&self, mut certificate: X509Builder) -> Result<X509, SignError> {
        certificate.set_issuer_name(self.signer.subject_name())?;
        certificate.sign(self.key.pkey(), MessageDigest::sha256())?;
        Ok(certificate.build())
    }

    /// Nothing outlives its signer.
    fn clamp(&self, validity: Validity) -> Result<Validity, SignError> {
        let not_before = asn1(validity.not_before)?;
        let asked = asn1(validity.not_after)?;
        let ours = self.signer.not_after();
        if not_before >= *ours {
            return Err(SignError::SignerExpired);
        }
        if asked <= *ours {
            return Ok(validity);
        }
        let beyond = ours.diff(&asked)?;
        let seconds = i64::from(beyond.days) * 86_400 + i64::from(beyond.secs);
        let beyond = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Validity { not_after: validity.not_after - beyond, ..validity })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("signer", &self.signer).finish_non_exhaustive()
    }
}

/// From when until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first instant.
    pub not_before: SystemTime,
    /// The last one.
    pub not_after: SystemTime,
}

/// A certificate's number: never twice from one authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serial(u128);

impl Serial {
    /// Number `number`; numbers are positive, so the top bit is not used.
    pub fn new(number: u128) -> Self {
        Self(number & (u128::MAX >> 1))
    }

    /// A number that nobody can guess: 127 random bits.
    pub fn random() -> Result<Self, ErrorStack> {
        let mut bytes = [0; 16];
        boring::rand::rand_bytes(&mut bytes)?;
        Ok(Self::new(u128::from_be_bytes(bytes)))
    }

    /// The number, as short as it can be in a signed encoding.
    pub(super) fn to_der_bytes(self) -> Vec<u8> {
        let bytes = self.0.to_be_bytes();
        let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len() - 1);
        let mut short = Vec::with_capacity(17);
        if bytes.get(first).is_some_and(|byte| byte & 0x80 != 0) {
            short.push(0);
        }
        short.extend(bytes.iter().skip(first));
        short
    }
}

/// What a server needs to show who it is.
#[derive(Clone, Debug)]
pub struct ServerCredentials {
    /// The leaf and its intermediates, PEM.
    pub chain: String,
    /// Its key.
    pub key: PrivateKey,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is not acceptable.
    #[error("the certificate request is not acceptable: {0}")]
    Request(&'static str),
    /// The signer itself has no life left to give.
    #[error("the signing certificate has expired; replace it")]
    SignerExpired,
    /// A time that certificates cannot express.
    #[error("a time before 1970 or beyond the year 9999 was asked for")]
    Time,
    /// The crypto library failed.
    #[error("signing failed: {0}")]
    Crypto(#[from] ErrorStack),
}

/// Why files do not make an authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No certificate.
    #[error("the signing chain holds no PEM certificate; put the signer first in it")]
    Chain,
    /// No key.
    #[error("the signing key is not an unencrypted private key in PEM")]
    Key,
    /// No root.
    #[error("the root bundle holds no PEM certificate")]
    Roots,
    /// The key is not the first certificate's.
    #[error("the signing key does not belong to the first certificate of the signing chain")]
    KeyOfAnother,
    /// The first certificate may not sign.
    #[error("the first certificate of the signing chain may not sign others (no CA constraint)")]
    NotAnAuthority,
    /// The crypto library failed.
    #[error("the authority cannot be used: {0}")]
    Crypto(#[from] ErrorStack),
}

/// A request that whoever sent it could sign with the very key that is to be certified, and with a key that is strong.
/// What else it says is not looked at.
pub fn applicant(csr: &str) -> Result<X509Req, SignError> {
    if csr.len() > LARGEST_REQUEST {
        return Err(SignError::Request("it is too large"));
    }
    let request = X509Req::from_pem(csr.as_bytes())
        .map_err(|_| SignError::Request("it is not a PKCS#10 request in PEM"))?;
    let public = request.public_key().map_err(|_| SignError::Request("it has no key"))?;
    if !request.verify(&public).unwrap_or(false) {
        return Err(SignError::Request("it is not signed with its own key"));
    }
    if !is_strong(&public) {
        return Err(SignError::Request("its key is weak; use ECDSA on P-256"));
    }
    Ok(request)
}

/// A certificate without extensions and issuer, ready for both.
fn draft<T: HasPublic>(
    subject: &boring::x509::X509NameRef,
    public: &PKeyRef<T>,
    validity: Validity,
    serial: Serial,
) -> Result<X509Builder, SignError> {
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_serial_number(&*BigNum::from_slice(&serial.0.to_be_bytes())?.to_asn1_integer()?)?;
    certificate.set_subject_name(subject)?;
    certificate.set_pubkey(public)?;
    certificate.set_not_before(&*asn1(validity.not_before)?)?;
    certificate.set_not_after(&*asn1(validity.not_after)?)?;
    Ok(certificate)
}

/// Makes a draft an authority; `None`: its own issuer.
fn certifies(certificate: &mut X509Builder, issuer: Option<&X509>) -> Result<(), ErrorStack> {
    let authority = BasicConstraints::new().critical().ca().build()?;
    certificate.append_extension(&authority)?;
    let usage = KeyUsage::new().critical().key_cert_sign().crl_sign().build()?;
    certificate.append_extension(&usage)?;
    let own = SubjectKeyIdentifier::new().build(&certificate.x509v3_context(None, None))?;
    certificate.append_extension(&own)?;
    if let Some(issuer) = issuer {
        let issued_by = {
            let context = certificate.x509v3_context(Some(issuer), None);
            AuthorityKeyIdentifier::new().keyid(false).build(&context)?
        };
        certificate.append_extension(&issued_by)?;
    }
    Ok(())
}

fn organization(name: &str) -> Result<X509Name, ErrorStack> {
    /// The longest an organization's name may be (X.520).
    const LONGEST: usize = 64;
    let mut builder = X509NameBuilder::new()?;
    let name: String = name.chars().take(LONGEST).collect();
    if !name.is_empty() {
        builder.append_entry_by_text("O", &name)?;
    }
    Ok(builder.build())
}

fn is_strong<T: HasPublic>(key: &PKeyRef<T>) -> bool {
    match key.id() {
        Id::EC => key.bits() >= 256,
        Id::RSA => (2048..=8192).contains(&key.bits()),
        _ => false,
    }
}

fn is_authority(certificate: &X509) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    certificate
        .to_der()
        .is_ok_and(|der| X509Certificate::from_der(&der).is_ok_and(|(_, certificate)| certificate.is_ca()))
}

fn asn1(at: SystemTime) -> Result<Asn1Time, SignError> {
    let seconds = at.duration_since(UNIX_EPOCH).map_err(|_| SignError::Time)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| SignError::Time)?;
    Asn1Time::from_unix(seconds).map_err(|_| SignError::Time)
}

fn to_pem(certificate: &X509) -> Result<String, ErrorStack> {
    Ok(String::from_utf8_lossy(&certificate.to_pem()?).into_owned())
}
