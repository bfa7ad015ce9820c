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

/// Whether a client that trusts `bundle` takes the server for `name`.
async fn call(tls: &ServerTls, bundle: &str, name: &str) -> bool {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::clone(profile().provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (here, there) = tokio::io::duplex(16 * 1024);
    let acceptor = TlsAcceptor::from(tls.current());
    let name = name.to_owned().try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let (_, called) = tokio::join!(acceptor.accept(there), connector.connect(name, here));
    called.is_ok()
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
        assert!(call(&tls, first.bundle(), name).await);
    }
    assert!(!call(&tls, first.bundle(), "istiod.istio-system.svc").await, "another revision");
    put.send_replace(Arc::clone(&second));
    let follow = async {
        while !call(&tls, second.bundle(), &names[0]).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), follow).await.unwrap();
    assert!(!call(&tls, first.bundle(), &names[0]).await);
    stop.send_replace(true);
    task.await.unwrap();
}
