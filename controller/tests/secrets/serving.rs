//! The controller's own certificate follows what signs.

use std::{sync::Arc, time::Duration};

use ambit_controller::ca::{
    in_force::InForce,
    root::{Origin, Root},
    serving::{Serving, service_names},
};
use ambit_wire::{
    cert::authority::{Authority, Serial, Validity},
    channel::ServerTls,
    tls::{Compliance, Profile, Versions, revoked::Revocation},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn in_force() -> Arc<InForce> {
    let now = std::time::SystemTime::now();
    let expires = now + Duration::from_secs(86_400);
    let life = Validity { not_before: now - Duration::from_secs(60), not_after: expires };
    let authority = Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap();
    Arc::new(InForce::steady(Root { authority, origin: Origin::Kept, expires }))
}

fn profile() -> Profile {
    Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap()
}

/// Which protocol a client gets that trusts `bundle` and calls the server by `name`, as the API server does.
async fn call(tls: &ServerTls, bundle: &str, name: &str, alpn: &str) -> Option<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::clone(profile().provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let (here, there) = tokio::io::duplex(16 * 1024);
    let acceptor = TlsAcceptor::from(tls.for_web());
    let name = name.to_owned().try_into().unwrap();
    let (accepted, called) =
        tokio::join!(acceptor.accept(there), TlsConnector::from(Arc::new(config)).connect(name, here));
    called.ok()?;
    accepted.unwrap().get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
}

#[tokio::test]
async fn the_own_certificate_follows_the_root_at_once() {
    let (first, second) = (in_force(), in_force());
    let (put, reads) = watch::channel(Arc::clone(&first));
    let names = service_names(Some("canary"), "istio-system", "cluster.local");
    let serving = Serving::new(&profile(), reads, names.clone(), Duration::from_secs(3600)).unwrap();
    let tls = serving.tls();
    let (stop, mut stopped) = watch::channel(false);
    #[expect(clippy::disallowed_methods, reason = "the test ends it")]
    let task = tokio::spawn(serving.rotate(async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }));
    for name in &names {
        assert_eq!(call(&tls, first.bundle(), name, "http/1.1").await.as_deref(), Some(&b"http/1.1"[..]));
        assert_eq!(call(&tls, first.bundle(), name, "h2").await.as_deref(), Some(&b"h2"[..]));
    }
    assert_eq!(call(&tls, first.bundle(), "istiod.istio-system.svc", "h2").await, None, "another revision");
    put.send_replace(Arc::clone(&second));
    let follow = async {
        while call(&tls, second.bundle(), &names[0], "h2").await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), follow).await.unwrap();
    assert_eq!(call(&tls, first.bundle(), &names[0], "h2").await, None);
    stop.send_replace(true);
    task.await.unwrap();
}
