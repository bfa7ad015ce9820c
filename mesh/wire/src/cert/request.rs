//! What we ask a CA: a fresh key, and a request that names one identity and nothing else.

use std::fmt;

use ambit_model::identity::Identity;
use boring::{
    ec::{EcGroup, EcKey},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, PKeyRef, Private},
    stack::Stack,
    x509::{X509NameBuilder, X509Req, extension::SubjectAlternativeName},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

/// A request and the key that it is for.
#[derive(Debug)]
pub struct Request {
    /// Never leaves the process.
    pub key: PrivateKey,
    /// PEM, PKCS#10: empty subject, one critical URI SAN (protocols 3.1).
    pub csr: String,
}

impl Request {
    /// A request for `identity`, with a key of its own.
    pub fn new(identity: &Identity) -> Result<Self, ErrorStack> {
        let key = PrivateKey::generate()?;
        let mut csr = X509Req::builder()?;
        csr.set_version(0)?;
        csr.set_subject_name(&X509NameBuilder::new()?.build())?;
        csr.set_pubkey(key.pkey())?;
        let san = SubjectAlternativeName::new()
            .critical()
            .uri(&identity.to_string())
            .build(&csr.x509v3_context(None))?;
        let mut extensions = Stack::new()?;
        extensions.push(san)?;
        csr.add_extensions(&extensions)?;
        csr.sign(key.pkey(), MessageDigest::sha256())?;
        let csr = String::from_utf8_lossy(&csr.build().to_pem()?).into_owned();
        Ok(Self { key, csr })
    }
}

/// A private key. BoringSSL wipes its memory when it is freed; it is never printed.
#[derive(Clone)]
pub struct PrivateKey(PKey<Private>);

impl PrivateKey {
    /// A fresh ECDSA key on P-256.
    pub fn generate() -> Result<Self, ErrorStack> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        PKey::from_ec_key(EcKey::generate(&group)?).map(Self)
    }

    /// A key from PEM: PKCS#8, SEC 1 or PKCS#1.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| InvalidKey)?;
        PKey::private_key_from_der(der.secret_der()).map(Self).map_err(|_| InvalidKey)
    }

    /// The key as PEM, PKCS#8: for an authority that keeps its key in a file.
    pub fn to_pem(&self) -> Result<String, ErrorStack> {
        let pem = self.0.private_key_to_pem_pkcs8()?;
        Ok(String::from_utf8_lossy(&pem).into_owned())
    }

    pub(crate) fn to_pkcs8(&self) -> Result<Vec<u8>, ErrorStack> {
        self.0.private_key_to_der_pkcs8()
    }

    pub(crate) fn pkey(&self) -> &PKeyRef<Private> {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

/// Not a private key in PEM. The text is a secret and is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an unencrypted private key in PEM (PKCS#8, SEC 1 or PKCS#1)")]
pub struct InvalidKey;

#[cfg(test)]
mod tests {
    use x509_parser::{
        certification_request::X509CertificationRequest,
        extensions::{GeneralName, ParsedExtension},
        prelude::FromDer,
    };

    use super::*;

    #[test]
    fn a_request_names_the_identity_and_nothing_else() {
        let identity = Identity::new("cluster.local", "shop", "cart,URI:spiffe://evil");
        let request = Request::new(&identity).unwrap();
        let der = X509Req::from_pem(request.csr.as_bytes()).unwrap().to_der().unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&der).unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2");
        let extensions: Vec<_> = csr.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(san)] = extensions[..] else { panic!("{extensions:?}") };
        assert_eq!(san.general_names, [GeneralName::URI(&identity.to_string())]);
        // The critical bit, which the parsed form does not keep: OID 2.5.29.17, BOOLEAN TRUE.
        assert!(der.windows(8).any(|w| w == [6, 3, 0x55, 0x1d, 0x11, 1, 1, 0xff]));
    }

    #[test]
    fn every_request_has_a_key_of_its_own() {
        let identity = Identity::new("td", "a", "b");
        let [one, two] = [(); 2].map(|()| Request::new(&identity).unwrap());
        assert!(!one.key.pkey().public_eq(two.key.pkey()));
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = PrivateKey::generate().unwrap();
        let pem = key.to_pem().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(secret)");
        assert!(PrivateKey::from_pem(&pem).unwrap().pkey().public_eq(key.pkey()));
        assert!(PrivateKey::from_pem("nonsense").is_err());
    }
}
