//! Handshakes between workloads, in memory: who is let in, who is not, and what is agreed on.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests, and what they share"
)]

use std::{sync::Arc, time::Duration};

use ambit_fixtures::ca::{Life, TestCa};
use ambit_model::identity::Identity;
use ambit_wire::{
    cert::{
        Certificate,
        authority::{Authority, Serial, Validity},
        crl::Edition,
        request::{PrivateKey, Request},
    },
    tls::{
        Compliance, Profile, Versions,
        handshake::{HandshakeError, accept, connect},
        rejected::Rejected,
        revoked::{Revocation, RevocationLists},
        secured::Secured,
        unnamed,
    },
};
use boring::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::PKey,
    x509::{
        X509, X509NameBuilder,
        extension::{ExtendedKeyUsage, SubjectAlternativeName},
    },
};
use rustls::{
    CipherSuite, ClientConfig, NamedGroup, ProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const LIMIT: Duration = Duration::from_secs(10);

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn stock() -> Identity {
    Identity::new("cluster.local", "shop", "stock")
}

type Side<S> = Result<(S, Option<Identity>), HandshakeError>;

/// Both ends of one handshake.
async fn shake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<ClientConfig>,
) -> (Side<Secured<DuplexStream>>, Side<Secured<DuplexStream>>) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(accept(server, near, LIMIT), connect(client, far, LIMIT))
}

/// Why the server turns away a client that shows a certificate, and would not mind the server's.
async fn refusal(server: &Certificate, client: &Certificate) -> Rejected {
    let mut config = ClientConfig::clone(&client.client_config(stock()));
    config.dangerous().set_certificate_verifier(danger::Anyone::new());
    let (served, _) = shake(server.server_config(), Arc::new(config)).await;
    rejection(served)
}

fn rejection<S>(outcome: Side<S>) -> Rejected {
    match outcome {
        Err(HandshakeError::Rejected(rejected)) => rejected,
        Err(other) => panic!("not a rejection: {other:?}"),
        Ok((_, identity)) => panic!("let in as {identity:?}"),
    }
}

#[tokio::test]
async fn two_workloads_meet_and_know_each_other() {
    let ca = TestCa::new();
    let (server, client) = (ca.certificate(&stock()), ca.certificate(&cart()));
    let (served, called) = shake(server.server_config(), client.client_config(stock())).await;
    let (mut served, caller) = served.unwrap();
    let (mut called, callee) = called.unwrap();
    assert_eq!((caller, callee), (Some(cart()), Some(stock())));

    served.write_all(b"hello").await.unwrap();
    served.flush().await.unwrap();
    let mut hello = [0; 5];
    called.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");

    let session = called.session();
    assert_eq!(session.version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.group, Some(NamedGroup::X25519MLKEM768));
    let suite = session.suite.unwrap();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256, "the client's preference counts");
    assert_eq!(session.protocol.as_deref(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn no_name_is_sent_and_no_ticket_given() {
    let ca = TestCa::new();
    let server = TlsAcceptor::from(ca.certificate(&stock()).server_config());
    let client = TlsConnector::from(ca.certificate(&cart()).client_config(stock()));
    let (near, far) = duplex(64 * 1024);
    let (served, called) = tokio::join!(server.accept(near), client.connect(unnamed(), far));
    let (mut served, mut called) = (served.unwrap(), called.unwrap());
    served.write_all(b"hello").await.unwrap();
    served.flush().await.unwrap();
    called.read_exact(&mut [0; 5]).await.unwrap();
    assert_eq!(served.get_ref().1.server_name(), None);
    assert_eq!(called.get_ref().1.tls13_tickets_received(), 0, "nothing to resume with");
}

#[tokio::test]
async fn a_second_connection_is_a_full_handshake_too() {
    let ca = TestCa::new();
    let (server, client) = (ca.certificate(&stock()), ca.certificate(&cart()));
    let config = client.client_config(stock());
    for _ in 0..2 {
        let (served, called) = shake(server.server_config(), Arc::clone(&config)).await;
        served.unwrap();
        let kind = called.unwrap().0.session().kind;
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn an_intermediate_authority_is_followed_to_the_root() {
    let ca = TestCa::new();
    let below = ca.with_intermediate();
    let (server, client) = (ca.certificate(&stock()), below.certificate(&cart()));
    assert_eq!(client.chain().len(), 2);
    let (served, called) = shake(server.server_config(), client.client_config(stock())).await;
    assert_eq!(served.unwrap().1, Some(cart()));
    called.unwrap();
}

#[tokio::test]
async fn a_server_that_is_someone_else_is_not_talked_to() {
    let ca = TestCa::new();
    let (server, client) = (ca.certificate(&stock()), ca.certificate(&cart()));
    let (_, called) = shake(server.server_config(), client.client_config(cart())).await;
    let expected = cart().into();
    assert_eq!(rejection(called), Rejected::UnexpectedIdentity { expected, found: stock() });
}

#[tokio::test]
async fn any_of_the_expected_identities_will_do() {
    let ca = TestCa::new();
    let (server, client) = (ca.certificate(&stock()), ca.certificate(&cart()));
    let expected: Arc<[Identity]> = [cart(), stock()].into();
    let (_, called) = shake(server.server_config(), client.client_config(expected)).await;
    assert_eq!(called.unwrap().1, Some(stock()));
    let nobody: Arc<[Identity]> = [].into();
    let (_, called) = shake(server.server_config(), client.client_config(nobody)).await;
    assert!(matches!(rejection(called), Rejected::UnexpectedIdentity { .. }));
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused_on_both_sides() {
    let ca = TestCa::new();
    let good = ca.certificate(&stock());
    let old = ca.certificate_for(&cart(), Life::Over);
    let early = ca.certificate_for(&cart(), Life::NotYet);
    assert_eq!(refusal(&good, &old).await, Rejected::Expired);
    assert_eq!(refusal(&good, &early).await, Rejected::NotYetValid);
    for (server, reason) in [(old, Rejected::Expired), (early, Rejected::NotYetValid)] {
        let (_, called) = shake(server.server_config(), good.client_config(cart())).await;
        assert_eq!(rejection(called), reason);
    }
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let ca = TestCa::new();
    let stranger = Identity::new("elsewhere.example", "shop", "cart");
    let refused = refusal(&ca.certificate(&stock()), &ca.certificate(&stranger)).await;
    let expected = "cluster.local".into();
    assert_eq!(refused, Rejected::WrongTrustDomain { expected, found: stranger });
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_on_both_sides() {
    let (ours, theirs) = (TestCa::new(), TestCa::of(&"other".into()));
    let good = ours.certificate(&stock());
    let foreign = theirs.certificate(&cart());
    assert_eq!(refusal(&good, &foreign).await, Rejected::UntrustedIssuer);
    let (_, called) = shake(foreign.server_config(), good.client_config(cart())).await;
    assert_eq!(rejection(called), Rejected::UntrustedIssuer);
}

#[tokio::test]
async fn a_root_with_the_same_name_and_another_key_is_not_our_root() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let refused = refusal(&ours.certificate(&stock()), &theirs.certificate(&cart())).await;
    assert!(matches!(refused, Rejected::BadSignature | Rejected::UntrustedIssuer), "{refused:?}");
}

#[tokio::test]
async fn a_certificate_without_an_identity_is_refused_on_both_sides() {
    let ca = TestCa::new();
    let good = ca.certificate(&stock());
    let credentials = ca.server(&["stock.shop.svc"]);
    let response = [credentials.chain, ca.root_pem()];
    let nobody = Certificate::from_response(ca.profile(), None, &response, &credentials.key).unwrap();
    assert_eq!(nobody.identity(), None);
    assert_eq!(refusal(&good, &nobody).await, Rejected::NoIdentity);
    let (_, called) = shake(nobody.server_config(), good.client_config(stock())).await;
    assert_eq!(rejection(called), Rejected::NoIdentity);
}

#[tokio::test]
async fn without_an_identity_of_our_own_any_trust_domain_is_let_in() {
    let ca = TestCa::new();
    let credentials = ca.server(&["stock.shop.svc"]);
    let response = [credentials.chain, ca.root_pem()];
    let nobody = Certificate::from_response(ca.profile(), None, &response, &credentials.key).unwrap();
    let stranger = Identity::new("elsewhere.example", "shop", "cart");
    let mut client = ClientConfig::clone(&ca.certificate(&stranger).client_config(stock()));
    client.dangerous().set_certificate_verifier(danger::Anyone::new());
    let (served, _) = shake(nobody.server_config(), Arc::new(client)).await;
    assert_eq!(served.unwrap().1, Some(stranger));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = TestCa::new();
    let bare = bare_client(ca.profile().provider().clone(), &[&rustls::version::TLS13]);
    let server = ca.certificate(&stock());
    let (served, _) = shake(server.server_config(), Arc::new(bare)).await;
    assert_eq!(rejection(served), Rejected::NoCertificate);
}

#[tokio::test]
async fn a_certificate_for_another_purpose_is_refused() {
    let ca = TestCa::new();
    let mut config = ClientConfig::clone(&ca.certificate(&cart()).client_config(stock()));
    let (chain, key) = leaf_with(&ca, &cart(), ExtendedKeyUsage::new().server_auth());
    let key = ca.profile().provider().key_provider.load_private_key(key).unwrap();
    let key = rustls::sign::CertifiedKey::new(chain, key);
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(key));
    let server = ca.certificate(&stock());
    let (served, _) = shake(server.server_config(), Arc::new(config)).await;
    assert_eq!(rejection(served), Rejected::WrongPurpose);
}

#[tokio::test]
async fn revoked_certificates_are_refused_wherever_they_are_in_the_chain() {
    let ca = TestCa::new().with_intermediate();
    let (good, bad) = (ca.certificate(&cart()), ca.certificate(&cart()));
    let dir = tempfile::tempdir().unwrap();
    let listed = |name: &str, lists: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, lists).unwrap();
        let revocation = Revocation::load(&path).unwrap();
        let profile = Profile::new(Compliance::None, Versions::Tls13, revocation.clone()).unwrap();
        (ca.with_profile(profile).certificate(&stock()), revocation)
    };

    let (server, lists) = listed("leaf", ca.revocation_lists(&[&bad], &[]));
    assert_eq!(refusal(&server, &bad).await, Rejected::Revoked);
    let (served, _) = shake(server.server_config(), good.client_config(stock())).await;
    served.unwrap();
    assert!(lists.is_revoked(bad.chain()));
    assert!(!lists.is_revoked(good.chain()));
    let (_, called) = shake(bad.server_config(), server.client_config(cart())).await;
    assert_eq!(rejection(called), Rejected::Revoked, "servers are checked as well");

    let (server, lists) = listed("intermediate", ca.revocation_lists(&[], &[Serial::new(2)]));
    assert_eq!(refusal(&server, &good).await, Rejected::Revoked);
    assert!(lists.is_revoked(good.chain()));
}

#[tokio::test]
async fn new_revocation_lists_count_from_the_next_handshake_on() {
    let ca = TestCa::new();
    let client = ca.certificate(&cart());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca-crl.pem");
    std::fs::write(&path, ca.revocation_lists(&[], &[])).unwrap();
    let revocation = Revocation::load(&path).unwrap();
    let Revocation::Loaded(lists) = &revocation else { panic!() };
    let mut changes = lists.changes();
    let profile = Profile::new(Compliance::None, Versions::Tls13, revocation.clone()).unwrap();
    let server = ca.with_profile(profile).certificate(&stock());
    let (served, _) = shake(server.server_config(), client.client_config(stock())).await;
    served.unwrap();

    let later = || std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::write(&path, "neither PEM nor DER").unwrap();
    assert!(lists.reload(later()).is_err(), "reported once");
    assert!(lists.reload(later()).is_ok());
    assert!(!changes.has_changed().unwrap(), "the last good lists stay");

    std::fs::write(&path, ca.revocation_lists(&[&client], &[])).unwrap();
    lists.reload(later()).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(revocation.is_revoked(client.chain()));
    assert_eq!(refusal(&server, &client).await, Rejected::Revoked);
}

#[tokio::test(start_paused = true)]
async fn the_file_of_lists_is_followed() {
    let ca = TestCa::new();
    let client = ca.certificate(&cart());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca-crl.pem");
    let write = |lists: &str, age: u64| {
        std::fs::write(&path, lists).unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    };
    write(&ca.revocation_lists(&[], &[]), 60);
    let lists = Arc::new(RevocationLists::load(&path).unwrap());
    let mut changes = lists.changes();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut task = tokio::task::JoinSet::new();
    let followed = Arc::clone(&lists);
    task.spawn(async move { followed.follow(async { drop(stopped.await) }).await });

    write(&ca.revocation_lists(&[&client], &[]), 30);
    timeout(LIMIT, changes.changed()).await.expect("seen").unwrap();
    assert!(lists.is_revoked(client.chain()));
    drop(stop);
    timeout(LIMIT, task.join_next()).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn an_rsa_authority_from_elsewhere_can_be_plugged_in() {
    let dir = tempfile::tempdir().unwrap();
    let (key, root) = (dir.path().join("key.pem"), dir.path().join("root.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/O=Elsewhere"])
        .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&root)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [key, root] = [key, root].map(|path| std::fs::read_to_string(path).unwrap());
    let authority = Authority::from_pem(&root, &key, &root).unwrap();
    let now = std::time::SystemTime::now();
    let validity = Validity { not_before: now, not_after: now + Duration::from_secs(3600) };
    let certificate = |profile: &Profile, identity: &Identity, serial| {
        let Request { key, csr } = Request::new(identity).unwrap();
        let chain = authority.sign(&csr, identity, validity, Serial::new(serial)).unwrap();
        Certificate::from_response(profile, Some(identity), &chain, &key).unwrap()
    };
    let edition = Edition { number: 7, this_update: now, next_update: now };
    let lists = authority.revocation_list(&[Serial::new(66)], edition).unwrap();
    std::fs::write(dir.path().join("crl.pem"), lists).unwrap();
    let revocation = Revocation::load(dir.path().join("crl.pem")).unwrap();
    let profile = Profile::new(Compliance::None, Versions::Tls13, revocation).unwrap();
    let server = certificate(&profile, &stock(), 64);
    let (good, bad) = (certificate(&profile, &cart(), 65), certificate(&profile, &cart(), 66));
    let (served, called) = shake(server.server_config(), good.client_config(stock())).await;
    assert_eq!(served.unwrap().1, Some(cart()));
    called.unwrap();
    assert_eq!(refusal(&server, &bad).await, Rejected::Revoked);
}

#[tokio::test]
async fn lists_that_cannot_be_used_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Revocation::load(dir.path().join("absent")).is_err());
    for (name, content) in [("empty", ""), ("text", "hello"), ("der", "\x30\x03abc")] {
        std::fs::write(dir.path().join(name), content).unwrap();
        let error = Revocation::load(dir.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("CRL_PATH"), "{error}");
    }
}

#[tokio::test]
async fn lists_in_der_are_read_and_agree_with_openssl() {
    let ca = TestCa::new();
    let bad = ca.certificate(&cart());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    std::fs::write(file("crl.pem"), ca.revocation_lists(&[&bad], &[])).unwrap();
    std::fs::write(file("root.pem"), ca.root_pem()).unwrap();
    let (pem, der, root) = (file("crl.pem"), file("crl.der"), file("root.pem"));
    let openssl = std::process::Command::new("openssl")
        .args(["crl", "-in", &pem, "-outform", "DER", "-out", &der, "-CAfile", &root])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&openssl.stderr);
    assert!(said.contains("verify OK"), "{said}");
    let revocation = Revocation::load(&der).unwrap();
    assert!(revocation.is_revoked(bad.chain()));
}

#[tokio::test]
async fn a_peer_that_only_speaks_tls_1_2_is_refused_unless_that_was_enabled() {
    let ca = TestCa::new();
    let certificate = |versions| {
        let profile = Profile::new(Compliance::None, versions, Revocation::NotConfigured).unwrap();
        ca.with_profile(profile).certificate(&stock())
    };
    let provider = ambit_wire::tls::provider(Compliance::None, Versions::Tls12And13).unwrap();
    let mut old = bare_client(provider, &[&rustls::version::TLS12]);
    let shown = ca.certificate(&cart()).client_config(stock());
    old.client_auth_cert_resolver = Arc::clone(&shown.client_auth_cert_resolver);
    let old = Arc::new(old);

    let strict = certificate(Versions::Tls13);
    let (served, called) = shake(strict.server_config(), Arc::clone(&old)).await;
    assert!(matches!(served, Err(HandshakeError::Io(_))), "{served:?}");
    assert!(called.is_err());

    let lenient = certificate(Versions::Tls12And13);
    let (served, called) = shake(lenient.server_config(), old).await;
    assert_eq!(served.unwrap().1, Some(cart()));
    let version = called.unwrap().0.session().version;
    assert_eq!(version, Some(ProtocolVersion::TLSv1_2));
}

#[tokio::test]
async fn a_peer_that_does_not_agree_on_http_2_is_not_served() {
    let ca = TestCa::new();
    let server = ca.certificate(&stock());
    let mut silent = ClientConfig::clone(&ca.certificate(&cart()).client_config(stock()));
    silent.alpn_protocols.clear();
    let (served, called) = shake(server.server_config(), Arc::new(silent.clone())).await;
    assert!(matches!(served, Err(HandshakeError::NotHttp2)), "{served:?}");
    assert!(matches!(called, Err(HandshakeError::NotHttp2)), "{called:?}");
    silent.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (served, _) = shake(server.server_config(), Arc::new(silent)).await;
    assert!(matches!(served, Err(HandshakeError::Io(_))), "{served:?}");
}

#[tokio::test]
async fn post_quantum_only_means_post_quantum_only() {
    let ca = TestCa::new();
    let profile = Profile::new("pqc".parse().unwrap(), Versions::Tls13, Revocation::NotConfigured).unwrap();
    let strict = ca.with_profile(profile);
    let server = strict.certificate(&stock());
    let client = strict.certificate(&cart());
    let (served, _) = shake(server.server_config(), client.client_config(stock())).await;
    served.unwrap();

    let mut classical = rustls::crypto::CryptoProvider::clone(ca.profile().provider());
    classical.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let bare = bare_client(Arc::new(classical), &[&rustls::version::TLS13]);
    let (served, _) = shake(server.server_config(), Arc::new(bare)).await;
    assert!(matches!(served, Err(HandshakeError::Io(_))), "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_dawdles_is_cut_off() {
    let ca = TestCa::new();
    let certificate = ca.certificate(&stock());
    let (near, _far) = duplex(1024);
    let served = accept(certificate.server_config(), near, LIMIT).await;
    assert!(matches!(served, Err(HandshakeError::TooSlow(LIMIT))));
    let (near, _far) = duplex(1024);
    let called = connect(certificate.client_config(cart()), near, LIMIT).await;
    assert!(matches!(called, Err(HandshakeError::TooSlow(LIMIT))));
}

#[tokio::test]
async fn noise_is_not_a_handshake() {
    let ca = TestCa::new();
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 300], &[0x16, 3, 1, 0xff, 0xff, 1, 2]] {
        let (near, mut far) = duplex(1024);
        far.write_all(noise).await.unwrap();
        far.shutdown().await.unwrap();
        let served = accept(ca.certificate(&stock()).server_config(), near, LIMIT).await;
        assert!(matches!(served, Err(HandshakeError::Io(_))), "{served:?}");
    }
}

#[tokio::test]
async fn a_certificates_answer_is_checked_before_it_is_used() {
    use ambit_wire::cert::CertificateError as Error;
    let ca = TestCa::new();
    let (chain, key) = ca.issue(&cart(), Life::Hour);
    let [leaf, root] = &chain[..] else { panic!("{chain:?}") };
    let read = |expected: &Identity, response: &[&String], key: &PrivateKey| {
        let response: Vec<String> = response.iter().map(ToString::to_string).collect();
        Certificate::from_response(ca.profile(), Some(expected), &response, key)
    };
    assert_eq!(read(&cart(), &[leaf, root], &key).unwrap().identity(), Some(&cart()));
    assert!(matches!(read(&cart(), &[], &key), Err(Error::Empty)));
    assert!(matches!(read(&cart(), &[leaf], &key), Err(Error::NoRoot)));
    assert!(matches!(read(&stock(), &[leaf, root], &key), Err(Error::WrongIdentity { .. })));
    let other = PrivateKey::generate().unwrap();
    assert!(matches!(read(&cart(), &[leaf, root], &other), Err(Error::WrongKey)));
    let junk = "junk".to_owned();
    assert!(matches!(read(&cart(), &[leaf, &junk], &key), Err(Error::Pem { element: 1, .. })));
    assert!(matches!(read(&cart(), &[&junk, root], &key), Err(Error::Pem { element: 0, .. })));
    let foreign = TestCa::of(&"other".into()).root_pem();
    assert!(matches!(read(&cart(), &[leaf, &foreign], &key), Err(Error::Untrusted(_))));
    let both = foreign + root;
    assert_eq!(read(&cart(), &[leaf, &both], &key).unwrap().roots().len(), 2);
}

#[tokio::test]
async fn a_certificate_never_shows_its_key() {
    let ca = TestCa::new();
    let printed = format!("{:?}", ca.certificate(&cart()));
    assert!(printed.contains("shop"), "{printed}");
    assert!(!printed.contains("PRIVATE") && !printed.contains("key"), "{printed}");
}

#[tokio::test]
async fn an_authority_signs_in_the_form_that_clients_expect() {
    let ca = TestCa::new().with_intermediate();
    let authority = ca.authority();
    let request = Request::new(&cart()).unwrap();
    let asked = Life::Long.validity();
    let asked = Validity { not_after: asked.not_after + Duration::from_secs(9_000_000), ..asked };
    let chain = authority.sign(&request.csr, &cart(), asked, Serial::new(0xff01)).unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, roots");
    assert_eq!(chain[2], ca.root_pem());
    assert!(chain.iter().all(|pem| pem.ends_with("-----END CERTIFICATE-----\n")));
    let leaf = X509::from_pem(chain[0].as_bytes()).unwrap();
    assert_eq!(leaf.subject_name().entries().count(), 0);
    let signer = X509::from_pem(chain[1].as_bytes()).unwrap();
    assert!(leaf.not_after() == signer.not_after(), "clamped to the signer's");
    let text = openssl_text(&chain[0]);
    for expected in [
        "X509v3 Subject Alternative Name: critical",
        "URI:spiffe://cluster.local/ns/shop/sa/cart",
        "Digital Signature, Key Encipherment",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "65281 (0xff01)",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[tokio::test]
async fn an_authority_from_files_signs_like_the_one_it_was_written_from() {
    let ca = TestCa::new().with_intermediate();
    let written = ca.authority();
    let chain = written.chain().unwrap() + &ca.root_pem();
    let key = written.key().to_pem().unwrap();
    let read = Authority::from_pem(&chain, &key, written.roots()).unwrap();
    let request = Request::new(&cart()).unwrap();
    let sign = |authority: &Authority| {
        authority.sign(&request.csr, &cart(), Life::Hour.validity(), Serial::new(7)).unwrap()
    };
    assert_eq!(sign(&read)[1..], sign(written)[1..], "the root is not sent as an intermediate");

    let stranger = PrivateKey::generate().unwrap().to_pem().unwrap();
    assert!(Authority::from_pem(&chain, &stranger, written.roots()).is_err());
    assert!(Authority::from_pem("", &key, written.roots()).is_err());
    assert!(Authority::from_pem(&chain, &key, "").is_err());
    let (leaf, key) = ca.issue(&cart(), Life::Hour);
    let outcome = Authority::from_pem(&leaf[0], &key.to_pem().unwrap(), written.roots());
    assert!(outcome.unwrap_err().to_string().contains("may not sign"), "a leaf is no authority");
}

#[tokio::test]
async fn requests_that_prove_nothing_are_not_signed() {
    let ca = TestCa::new();
    let good = Request::new(&cart()).unwrap().csr;
    let sign =
        |csr: &str| ca.authority().sign(csr, &cart(), Life::Hour.validity(), Serial::new(7)).map(|_| ());
    sign(&good).unwrap();
    for bad in ["", "junk", &good[..200], &"x".repeat(100_000)] {
        assert!(sign(bad).is_err());
    }
    // A request whose signature was tampered with: the last bytes of it are the signature's.
    let mut der = boring::x509::X509Req::from_pem(good.as_bytes()).unwrap().to_der().unwrap();
    *der.last_mut().unwrap() ^= 1;
    let forged = boring::x509::X509Req::from_der(&der).unwrap().to_pem().unwrap();
    assert!(sign(std::str::from_utf8(&forged).unwrap()).is_err());
}

#[tokio::test]
async fn openssl_as_a_client_is_served() {
    let ca = TestCa::new();
    let files = Files::of(&ca, &cart());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = tokio::process::Command::new("openssl")
        .args(["s_client", "-connect", &address, "-alpn", "h2", "-tls1_3", "-verify_return_error"])
        .args(["-cert", &files.chain, "-key", &files.key, "-CAfile", &files.root])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let config = ca.certificate(&stock()).server_config();
        let (mut stream, identity) = accept(config, tcp, LIMIT).await.unwrap();
        stream.shutdown().await.unwrap();
        let group = stream.session().group.unwrap();
        (identity, group)
    };
    let (output, (identity, group)) =
        timeout(LIMIT, async { tokio::join!(client, serve) }).await.expect("openssl hangs");
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(identity, Some(cart()));
    assert!(matches!(group, NamedGroup::X25519 | NamedGroup::X25519MLKEM768), "{group:?}");
    assert!(said.contains("ALPN protocol: h2"), "{said}");
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    assert!(said.contains("AES_256_GCM_SHA384"), "the client's order counts: {said}");
}

#[tokio::test]
async fn openssl_as_a_server_is_called() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let ca = TestCa::new();
    let files = Files::of(&ca, &stock());
    for group in ["X25519", "P-256"] {
        let mut server = tokio::process::Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-alpn", "h2", "-groups", group])
            .args(["-cert", &files.leaf, "-cert_chain", &files.chain, "-key", &files.key])
            .args(["-CAfile", &files.root, "-Verify", "2", "-verify_return_error"])
            .stdout(std::process::Stdio::piped())
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let address = timeout(LIMIT, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("openssl ended");
                if let Some(address) = line.strip_prefix("ACCEPT ") {
                    break address.to_owned();
                }
            }
        })
        .await
        .expect("openssl does not listen");
        let tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
        let config = ca.certificate(&cart()).client_config(stock());
        let (stream, identity) = connect(config, tcp, LIMIT).await.unwrap();
        assert_eq!(identity, Some(stock()));
        let agreed = stream.session().group.unwrap();
        let expected = if group == "X25519" { NamedGroup::X25519 } else { NamedGroup::secp256r1 };
        assert_eq!(agreed, expected);
    }
}

/// A client that accepts any server and has no certificate.
fn bare_client(
    provider: Arc<rustls::crypto::CryptoProvider>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(danger::Anyone::new())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A leaf of the CA whose purposes are chosen.
fn leaf_with(
    ca: &TestCa,
    identity: &Identity,
    purposes: &ExtendedKeyUsage,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let signer = X509::from_pem(ca.authority().chain().unwrap().as_bytes()).unwrap();
    let signing = ca.authority().key().to_pem().unwrap();
    let signing = PKey::private_key_from_pem(signing.as_bytes()).unwrap();
    let key = PrivateKey::generate().unwrap().to_pem().unwrap();
    let public = PKey::private_key_from_pem(key.as_bytes()).unwrap();
    let mut leaf = X509::builder().unwrap();
    leaf.set_version(2).unwrap();
    leaf.set_serial_number(&BigNum::from_u32(9).unwrap().to_asn1_integer().unwrap()).unwrap();
    leaf.set_subject_name(&X509NameBuilder::new().unwrap().build()).unwrap();
    leaf.set_issuer_name(signer.subject_name()).unwrap();
    leaf.set_pubkey(&public).unwrap();
    leaf.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
    leaf.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    leaf.append_extension(&purposes.build().unwrap()).unwrap();
    let san = SubjectAlternativeName::new()
        .uri(&identity.to_string())
        .build(&leaf.x509v3_context(None, None))
        .unwrap();
    leaf.append_extension(&san).unwrap();
    leaf.sign(&signing, MessageDigest::sha256()).unwrap();
    let der = CertificateDer::from(leaf.build().to_der().unwrap());
    (vec![der], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
}

fn openssl_text(pem: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("certificate.pem");
    std::fs::write(&path, pem).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A workload's credentials where another program can read them.
struct Files {
    leaf: String,
    chain: String,
    key: String,
    root: String,
    _dir: tempfile::TempDir,
}

impl Files {
    fn of(ca: &TestCa, identity: &Identity) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = ca.issue(identity, Life::Hour);
        let write = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        Self {
            leaf: write("leaf.pem", &chain[0]),
            chain: write("chain.pem", &chain[..chain.len() - 1].concat()),
            key: write("key.pem", &key.to_pem().unwrap()),
            root: write("root.pem", &ca.root_pem()),
            _dir: dir,
        }
    }
}

/// A client that accepts any server: only for asking what a server accepts.
mod danger {
    use std::sync::Arc;

    use ambit_wire::tls::{Compliance, Versions, provider};
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::CryptoProvider,
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub(super) struct Anyone(Arc<CryptoProvider>);

    impl Anyone {
        pub(super) fn new() -> Arc<Self> {
            Arc::new(Self(provider(Compliance::None, Versions::Tls13).unwrap()))
        }
    }

    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
