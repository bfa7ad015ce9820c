//! Certificates as operators see them.

use ambit_model::identity::Identity;
use ambit_wire::cert::{
    Description,
    store::{CertificateState as Held, Status},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::rfc3339;

/// One identity and its certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateState {
    /// Whose.
    pub identity: Identity,
    /// `Available`, `Initializing`, or `Unavailable: …` with the reason.
    pub state: String,
    /// The certificate and its intermediates, the leaf first. Empty while there is none.
    pub cert_chain: Vec<CertificateShown>,
    /// Whom it trusts.
    pub root_certs: Vec<CertificateShown>,
}

/// One certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateShown {
    /// The PEM text, itself in base64, as istioctl takes it.
    pub pem: String,
    /// In decimal.
    pub serial_number: String,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expiration_time: String,
}

impl From<Held> for CertificateState {
    fn from(held: Held) -> Self {
        let (state, cert_chain, root_certs) = match &held.status {
            Status::Pending => ("Initializing".to_owned(), Vec::new(), Vec::new()),
            Status::Failed(reason) => (format!("Unavailable: {reason}"), Vec::new(), Vec::new()),
            Status::Ready(certificate) => {
                let shown = |all: Vec<Description>| all.into_iter().map(certificate_shown).collect();
                (
                    "Available".to_owned(),
                    shown(certificate.describe_chain()),
                    shown(certificate.describe_roots()),
                )
            }
        };
        Self { identity: held.identity, state, cert_chain, root_certs }
    }
}

fn certificate_shown(description: Description) -> CertificateShown {
    CertificateShown {
        pem: STANDARD.encode(&description.pem),
        serial_number: decimal(&description.serial),
        valid_from: rfc3339(description.not_before),
        expiration_time: rfc3339(description.not_after),
    }
}

/// A serial number in decimal; it may have 20 bytes (RFC 5280, 4.1.2.2), more than any integer here.
fn decimal(hexadecimal: &str) -> String {
    let Some(digits) = hexadecimal.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>() else {
        return hexadecimal.to_owned();
    };
    // Least significant first; each hexadecimal digit shifts what there is by four bits.
    let mut number: Vec<u32> = vec![0];
    for digit in digits {
        let mut carry = digit;
        for place in &mut number {
            let value = *place * 16 + carry;
            (*place, carry) = (value % 10, value / 10);
        }
        while carry > 0 {
            number.push(carry % 10);
            carry /= 10;
        }
    }
    number.iter().rev().filter_map(|digit| char::from_digit(*digit, 10)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_of_any_length_is_written_in_decimal() {
        for (hexadecimal, expected) in [
            ("0", "0"),
            ("ff", "255"),
            ("ffffffffffffffffffffffffffffffff", "340282366920938463463374607431768211455"),
            ("100000000000000000000000000000000", "340282366920938463463374607431768211456"),
            ("ffffffffffffffffffffffffffffffffffffffff", "1461501637330902918203684832716283019655932542975"),
            ("not a number", "not a number"),
        ] {
            assert_eq!(decimal(hexadecimal), expected);
        }
    }
}
