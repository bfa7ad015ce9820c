//! A file of revocation lists, and what it says of certificates.
#![no_main]

use std::{path::PathBuf, sync::LazyLock};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::tls::revoked::{Revocation, RevocationLists};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};

struct Sound {
    file: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    list: Vec<u8>,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let ca = TestCa::new();
    let certificate = ca.certificate(&Identity::new("cluster.local", "shop", "web"));
    let lists = ca.revocation_lists(&[&certificate], &[]);
    let list = CertificateRevocationListDer::from_pem_slice(lists.as_bytes()).expect("PEM");
    // In memory where there is such a place: a file a run.
    let place =
        Some(PathBuf::from("/dev/shm")).filter(|place| place.is_dir()).unwrap_or_else(std::env::temp_dir);
    let file = place.join(format!("ambit-fuzz-crl-{}", std::process::id()));
    Sound { file, chain: certificate.chain().to_vec(), list: list.to_vec() }
});

fuzz_target!(|input: &[u8]| {
    let Sound { chain, list, .. } = &*SOUND;
    check(input, chain);
    let mut changed = list.clone();
    for change in input.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % changed.len();
        changed[at] = change[2];
    }
    check(&changed, chain);
    check(list, &[CertificateDer::from(input)]);
});

fn check(content: &[u8], chain: &[CertificateDer<'_>]) {
    let file = &SOUND.file;
    std::fs::write(file, content).expect("a file");
    let loaded = Revocation::load(file.clone());
    let _removed = std::fs::remove_file(file);
    if let Ok(Revocation::Loaded(lists)) = loaded {
        let lists: &RevocationLists = &lists;
        let _ = lists.is_revoked(chain);
    }
}
