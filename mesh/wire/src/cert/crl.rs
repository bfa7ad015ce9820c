//! Writes an authority's revocation list. BoringSSL's bindings cannot, so the DER is written here.

use std::time::SystemTime;

use boring::{error::ErrorStack, hash::MessageDigest, pkey::Id, sign::Signer};
use time::{OffsetDateTime, macros::format_description};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    authority::{Authority, Serial},
    pem,
};

/// What a list says, beside who is on it.
#[derive(Clone, Copy, Debug)]
pub struct Edition {
    /// Greater with each list.
    pub number: u32,
    /// When it was written.
    pub this_update: SystemTime,
    /// When the next one is due.
    pub next_update: SystemTime,
}

impl Authority {
    /// A list, in PEM, that takes back `serials`.
    pub fn revocation_list(
        &self,
        serials: &[Serial],
        edition: Edition,
    ) -> Result<String, RevocationListError> {
        let algorithm = self.signature_algorithm()?;
        let certificate = self.signer().to_der()?;
        let (_, certificate) =
            X509Certificate::from_der(&certificate).map_err(|_| RevocationListError::Signer)?;
        let this_update = generalized(edition.this_update)?;
        let revoked: Vec<u8> = serials
            .iter()
            .flat_map(|serial| sequence(&[&integer(&serial.to_der_bytes()), &this_update]))
            .collect();
        // CRLNumber (2.5.29.20), the one extension that a list must have.
        let number = integer(&Serial::new(edition.number.into()).to_der_bytes());
        let number = sequence(&[&[6, 3, 0x55, 0x1d, 0x14], &tlv(OCTET_STRING, &[&number])]);
        let extensions = tlv(EXPLICIT_0, &[&sequence(&[&number])]);
        let body = sequence(&[
            &integer(&[1]), // version 2
            &algorithm,
            certificate.subject().as_raw(),
            &this_update,
            &generalized(edition.next_update)?,
            // An empty list of entries is left out (RFC 5280, 5.1.2.6).
            &if revoked.is_empty() { Vec::new() } else { sequence(&[&revoked]) },
            &extensions,
        ]);
        let mut signer = Signer::new(MessageDigest::sha256(), self.key().pkey())?;
        let signature = signer.sign_oneshot_to_vec(&body)?;
        let list = sequence(&[&body, &algorithm, &tlv(BIT_STRING, &[&[0], &signature])]);
        Ok(pem("X509 CRL", &list))
    }

    fn signature_algorithm(&self) -> Result<Vec<u8>, RevocationListError> {
        const ECDSA_WITH_SHA256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        const RSA_WITH_SHA256: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b];
        const NULL: &[u8] = &[5, 0];
        match self.key().pkey().id() {
            Id::EC => Ok(sequence(&[ECDSA_WITH_SHA256])),
            Id::RSA => Ok(sequence(&[RSA_WITH_SHA256, NULL])),
            _ => Err(RevocationListError::Signer),
        }
    }
}

/// Why no list was written.
#[derive(Debug, thiserror::Error)]
pub enum RevocationListError {
    /// Neither ECDSA nor RSA, or a signer that cannot be read back.
    #[error("the signing certificate or its kind of key cannot sign revocation lists")]
    Signer,
    /// A time that lists cannot express.
    #[error("a time beyond the year 9999 was asked for")]
    Time,
    /// The crypto library failed.
    #[error("signing the revocation list failed: {0}")]
    Crypto(#[from] ErrorStack),
}

const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, parts)
}

fn integer(bytes: &[u8]) -> Vec<u8> {
    tlv(INTEGER, &[bytes])
}

fn generalized(at: SystemTime) -> Result<Vec<u8>, RevocationListError> {
    let at = OffsetDateTime::from(at);
    // Years up to 2049 must be written with two digits (RFC 5280, 5.1.2.4).
    let (tag, text) = if at.year() < 2050 {
        let form = format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
        (UTC_TIME, at.format(form))
    } else {
        let form = format_description!("[year][month][day][hour][minute][second]Z");
        (GENERALIZED_TIME, at.format(form))
    };
    Ok(tlv(tag, &[text.map_err(|_| RevocationListError::Time)?.as_bytes()]))
}

/// Tag, length, value.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut der = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let significant: Vec<u8> = bytes.iter().copied().skip_while(|&byte| byte == 0).collect();
            der.push(0x80 | u8::try_from(significant.len()).unwrap_or(0));
            der.extend(significant);
        }
    }
    for part in parts {
        der.extend_from_slice(part);
    }
    der
}
