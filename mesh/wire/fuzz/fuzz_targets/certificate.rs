//! A CA's answer: either a sound chain with some bytes changed, or whatever the input is.
#![no_main]

use std::sync::LazyLock;

use ambit_fixtures::ca::{Life, TestCa};
use ambit_model::identity::Identity;
use ambit_wire::cert::{Certificate, request::PrivateKey};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, pem::PemObject};

struct Sound {
    ca: TestCa,
    identity: Identity,
    ders: Vec<Vec<u8>>,
    key: PrivateKey,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let ca = TestCa::new().with_intermediate();
    let identity = Identity::new("cluster.local", "shop", "web");
    let (chain, key) = ca.issue(&identity, Life::Hour);
    let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM").to_vec();
    let ders = chain.iter().map(der).collect();
    Sound { ca, identity, ders, key }
});

fuzz_target!(|input: &[u8]| {
    let Sound { ca, identity, ders, key } = &*SOUND;
    let Some((mode, rest)) = input.split_first() else { return };
    let response: Vec<String> = if mode % 4 == 0 {
        String::from_utf8_lossy(rest).split('\0').map(str::to_owned).collect()
    } else {
        // Four bytes each: which certificate, where (16 bits), what.
        let mut ders = ders.clone();
        for change in rest.chunks_exact(4) {
            let which = usize::from(change[0]) % ders.len();
            let at = usize::from(u16::from_be_bytes([change[1], change[2]])) % ders[which].len();
            ders[which][at] = change[3];
        }
        ders.iter().map(|der| pem(der)).collect()
    };
    if let Ok(certificate) = Certificate::from_response(ca.profile(), Some(identity), &response, key) {
        assert_eq!(certificate.identity(), Some(identity));
        assert_eq!(certificate.describe_chain().len(), certificate.chain().len());
        let _ = certificate.describe_roots();
    }
});

fn pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (number, three) in der.chunks(3).enumerate() {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 63).expect("six bits");
            text.push(if place <= three.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
        if number % 16 == 15 {
            text.push('\n');
        }
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}
