//! Under which root the certificates are that a tunnel holds for its pods. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::Pem;

/// Fingerprints of roots, by their key identifiers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roots(BTreeMap<Vec<u8>, String>);

impl Roots {
    /// From a PEM text. Roots without a key identifier are not told apart, and left out.
    pub(super) fn read(pem: &str) -> Self {
        let mut roots = BTreeMap::new();
        for block in Pem::iter_from_buffer(pem.as_bytes()).flatten() {
            if let Ok(certificate) = block.parse_x509()
                && let Some(key) = own_key(&certificate)
            {
                roots.insert(key, fingerprint(&block.contents));
            }
        }
        Self(roots)
    }

    /// The root above each identity that a tunnel's dump has a certificate of.
    pub(super) fn holders(&self, dump: &Value) -> Vec<(String, String)> {
        let certificates = dump.get("certificates").and_then(Value::as_array).into_iter().flatten();
        certificates
            .filter_map(|one| {
                let identity = one.get("identity")?.as_str()?.to_owned();
                // The last of the chain is signed by a root.
                let last = one.get("certChain")?.as_array()?.last()?.get("pem")?.as_str()?;
                let pem = STANDARD.decode(last).ok()?;
                let block = Pem::iter_from_buffer(&pem).flatten().last()?;
                let root = self.0.get(&issuer_key(&block.parse_x509().ok()?)?)?;
                Some((root.clone(), identity))
            })
            .collect()
    }
}

fn own_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(key) = extension.parsed_extension() else { return None };
        Some(key.0.to_vec())
    })
}

fn issuer_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(issuer) = extension.parsed_extension() else {
            return None;
        };
        issuer.key_identifier.as_ref().map(|key| key.0.to_vec())
    })
}

/// SHA-256 in hexadecimal digits, as controllers write it.
fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = include_str!("../tunnel_config/testdata/dump.json");

    #[test]
    fn identities_of_a_recorded_dump_are_under_its_root() {
        let dump: Value = serde_json::from_str(DUMP).unwrap();
        let root = dump["certificates"][0]["rootCerts"][0]["pem"].as_str().unwrap();
        let root = String::from_utf8(STANDARD.decode(root).unwrap()).unwrap();
        let roots = Roots::read(&root);
        let held = roots.holders(&dump);
        assert_eq!(held.len(), dump["certificates"].as_array().unwrap().len());
        assert!(held[0].1.starts_with("spiffe://"), "{held:?}");
        assert_eq!(held[0].0.len(), 64);
        let other = Roots::read(include_str!("../check/testdata/one.pem"));
        assert_eq!((other.0.len(), other.holders(&dump).len()), (1, 0));
    }

    #[test]
    fn what_is_no_certificate_has_no_holder() {
        assert_eq!(Roots::read("nothing"), Roots::default());
        let odd =
            serde_json::json!({ "certificates": [{ "identity": "x", "certChain": [{ "pem": "%" }] }, {}] });
        assert!(Roots::default().holders(&odd).is_empty());
    }
}
