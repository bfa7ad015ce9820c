//! The identity in a peer's certificate: any bytes, and a sound certificate with some bytes changed.
#![no_main]

use std::sync::LazyLock;

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::tls::verify::peer_identity;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let certificate = TestCa::new().certificate(&Identity::new("cluster.local", "shop", "web"));
    certificate.chain()[0].to_vec()
});

fuzz_target!(|input: &[u8]| {
    check(input);
    let mut changed = SOUND.clone();
    for change in input.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % changed.len();
        changed[at] = change[2];
    }
    check(&changed);
});

fn check(der: &[u8]) {
    let chain = [CertificateDer::from(der)];
    if let Some(identity) = peer_identity(&chain) {
        // Policies are judged on the printed form: it must mean the same identity.
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
}
