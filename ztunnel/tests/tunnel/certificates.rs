//! Who is let in on port 15008, and who is not.

use std::{fs, sync::Arc, time::Duration};

use ambit_fixtures::ca::{Life, TestCa};
use ambit_model::identity::Identity;
use ambit_wire::tls::{Compliance, Versions, provider};
use rustls::{
    ClientConfig, NamedGroup,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::*;

/// Whether a client with this configuration reaches the application behind the tunnel.
async fn is_let_in(from: &PodNet, to: &Pod, config: impl Into<Arc<ClientConfig>>) -> bool {
    let stream = from.connect(to.at(HBONE)).await.expect("port 15008 is open");
    // In TLS 1.3 a client is done before the server has looked at its certificate.
    let Ok(peer) = Peer::over(stream, config.into()).await else { return false };
    peer.connect(to.at(8080)).await.is_ok()
}

#[test]
fn only_a_good_certificate_of_the_own_trust_domain_is_let_in() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let (ca, curl) = (&world.ca, identity("curl"));
        let lasting = |life| (*ca.certificate_for(&curl, life).client_config(web.identity())).clone();
        let showing = |shown| lax(&[&TLS13], Some(shown));
        let abroad = Identity::new("elsewhere.example", "default", "curl");
        let (namesake, elsewhere) = (TestCa::new(), TestCa::of(&"elsewhere.example".into()));
        let cases = [
            ("showed no certificate", lax(&[&TLS13], None)),
            ("no SPIFFE identity", showing(without_identity_in_it(ca))),
            ("has expired", lasting(Life::Over)),
            ("not valid yet", lasting(Life::NotYet)),
            ("not of the trust domain", showing(credentials(ca, &abroad))),
            ("not issued by a root", showing(credentials(&elsewhere, &curl))),
            ("a signature of the peer does not hold", showing(credentials(&namesake, &curl))),
        ];
        for (reason, config) in cases {
            assert!(!is_let_in(&client, &web, config).await, "{reason}");
            let line = tunnel.line(&["\twarn\t", "connection failed", reason]).await;
            assert!(
                line.contains("direction=\"inbound\"") && line.contains(&client.v4.to_string()),
                "{line}"
            );
        }
        assert_eq!(tunnel.counted("istio_tcp_connections_opened_total", &[]).await, 0);
        assert!(is_let_in(&client, &web, lasting(Life::Hour)).await);
        let below = ca.with_intermediate().certificate(&curl);
        assert!(is_let_in(&client, &web, below.client_config(web.identity())).await, "an intermediate's");
    });
}

#[test]
fn tls_1_2_is_refused_unless_it_was_enabled() {
    world(async |world: World| {
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let old = || lax(&[&TLS12], Some(credentials(&world.ca, &identity("curl"))));
        let strict = world.tunnel().await;
        assert!(!is_let_in(&client, &web, old()).await);
        strict.line(&["\twarn\t", "connection failed", "TLS handshake"]).await;
        drop(strict);
        let lenient = world.tunnel_with(world.env().with("TLS12_ENABLED", "true")).await;
        assert!(is_let_in(&client, &web, old()).await, "{}", lenient.said());
    });
}

#[test]
fn what_does_not_agree_on_http_2_or_speaks_no_tls_is_not_served() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let certificate = world.ca.certificate(&identity("curl"));
        for protocols in [Vec::new(), vec![b"http/1.1".to_vec()]] {
            let mut config = (*certificate.client_config(web.identity())).clone();
            config.alpn_protocols = protocols;
            assert!(!is_let_in(&client, &web, config).await);
        }
        let mut plain = client.connect(web.at(HBONE)).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut answer)).await.expect("it is closed");
        assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
        tunnel.lines(&["\twarn\t", "connection failed"], 3).await;
        assert!(is_let_in(&client, &web, certificate.client_config(web.identity())).await);
    });
}

#[test]
fn a_handshake_that_never_ends_is_cut_and_keeps_nobody_out() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("AMBIT_HANDSHAKE_TIMEOUT", "1s")).await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let mut silent = client.connect(web.at(HBONE)).await.unwrap();
        let mut dawdling = client.connect(web.at(HBONE)).await.unwrap();
        // The first bytes of a ClientHello that says it is 512 bytes long.
        dawdling.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
        let config = world.ca.certificate(&identity("curl")).client_config(web.identity());
        assert!(is_let_in(&client, &web, config).await);
        until_closed(&mut silent).await;
        until_closed(&mut dawdling).await;
        tunnel.lines(&["\twarn\t", "connection failed", "was not over within 1s"], 2).await;
    });
}

#[test]
fn more_handshakes_than_the_limit_are_turned_away_in_one_pod_and_not_in_its_neighbour() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("AMBIT_MAX_HANDSHAKES_PER_POD", "8")).await;
        let (web, other) = (world.pod("web").await, world.pod("other").await);
        let _apps = (App::echo(&web, 8080), App::echo(&other, 8080));
        let client = world.stranger();
        let certificate = world.ca.certificate(&identity("curl"));
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(client.connect(web.at(HBONE)).await.unwrap());
        }
        until_true("the pod is full", async || {
            let mut one_more = client.connect(web.at(HBONE)).await.unwrap();
            let mut byte = [0; 1];
            // Turned away at once, where those that are under way are waited for.
            let heard = tokio::time::timeout(Duration::from_millis(500), one_more.read(&mut byte)).await;
            let turned_away = matches!(heard, Ok(Ok(0) | Err(_)));
            silent.extend((!turned_away).then_some(one_more));
            turned_away
        })
        .await;
        let line = tunnel.line(&["\twarn\t", "connection failed", "too many TLS handshakes"]).await;
        assert!(line.contains("the limit is 8"), "{line}");
        assert!(is_let_in(&client, &other, certificate.client_config(other.identity())).await);
        drop(silent);
        until_true("there is room again", async || {
            is_let_in(&client, &web, certificate.client_config(web.identity())).await
        })
        .await;
    });
}

#[test]
fn a_revoked_client_is_refused_and_its_open_tunnel_is_cut_within_seconds() {
    world(async |world: World| {
        let (bad, good, worse) = (identity("bad"), identity("good"), identity("worse"));
        let [bad, good, worse] = [bad, good, worse].map(|one| world.ca.certificate(&one));
        let file = world.path("crl.pem");
        fs::write(&file, world.ca.revocation_lists(&[&worse], &[])).unwrap();
        let env = world.env().with("CRL_PATH", file.to_str().unwrap());
        let tunnel = world.tunnel_with(env).await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        assert!(!is_let_in(&client, &web, worse.client_config(web.identity())).await);
        tunnel.line(&["\twarn\t", "connection failed", "is revoked"]).await;
        let rejections = "istio_crl_policy_rejections_total";
        tunnel.until_counted(rejections, &["reporter=\"destination\""], 1).await;

        let mut streams = Vec::new();
        for one in [&bad, &good] {
            let stream = client.connect(web.at(HBONE)).await.unwrap();
            let peer = Peer::over(stream, one.client_config(web.identity())).await.unwrap();
            let mut stream = peer.connect(web.at(8080)).await.unwrap();
            greeting(&mut stream).await.unwrap();
            exchange(&mut stream, b"hello").await.unwrap();
            streams.push((peer, stream));
        }
        fs::write(&file, world.ca.revocation_lists(&[&worse, &bad], &[])).unwrap();
        let (mut kept_peer, mut kept) = streams.pop().unwrap();
        let (mut cut_peer, mut cut) = streams.pop().unwrap();
        until_closed(&mut cut).await;
        let _ = cut_peer.ended().await;
        tunnel.until_counted(rejections, &["reporter=\"destination\""], 2).await;
        exchange(&mut kept, b"and on").await.unwrap();
        assert!(!kept_peer.has_ended());
        assert!(!is_let_in(&client, &web, bad.client_config(web.identity())).await);
        assert!(is_let_in(&client, &web, good.client_config(web.identity())).await);
    });
}

#[test]
fn a_revoked_server_is_left_and_not_called_again() {
    world(async |world: World| {
        let file = world.path("crl.pem");
        fs::write(&file, world.ca.revocation_lists(&[], &[])).unwrap();
        let tunnel = world.tunnel_with(world.env().with("CRL_PATH", file.to_str().unwrap())).await;
        let client = world.pod("client").await;
        let server = Arc::new(world.stranger());
        let _app = App::echo(&server, 8080);
        let gateway = Gateway::start(&world.ca, &identity("server"), server.clone(), server.at(8080));
        let known = ambit_fixtures::mesh::pod("default/server").at(&server.v4.to_string()).account("server");
        world.publish([known], []);
        tunnel.until_known("Kubernetes//Pod/default/server").await;
        let (mut stream, _) = call(&client, server.at(8080)).await.unwrap();
        let asked = gateway.asked().await;
        assert_eq!((asked.authority, asked.caller), (server.at(8080).to_string(), Some(client.identity())));
        fs::write(&file, world.ca.revocation_lists(&[&gateway.certificate], &[])).unwrap();
        until_closed(&mut stream).await;
        until_true("new calls fail", async || call(&client, server.at(8080)).await.is_err()).await;
        tunnel.until_counted("istio_crl_policy_rejections_total", &["reporter=\"source\""], 1).await;
        let flag = "response_flags=\"CERT_REVOKED\"";
        tunnel.until_counted("istio_tcp_connections_failed_total", &["reporter=\"source\"", flag], 1).await;
    });
}

#[test]
fn revocation_lists_that_cannot_be_read_stop_the_start() {
    world(async |world: World| {
        fs::write(world.path("nonsense.pem"), "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
            .unwrap();
        for name in ["missing.pem", "nonsense.pem", "token"] {
            let path = world.path(name);
            let tunnel = world.launch(world.env().with("CRL_PATH", path.to_str().unwrap()));
            assert_eq!(tunnel.until_exited().await.code(), Some(1), "{name}: {}", tunnel.said());
            assert!(tunnel.said().contains("CRL_PATH"), "{name}: {}", tunnel.said());
        }
    });
}

#[test]
fn classic_key_exchange_is_taken_unless_only_post_quantum_is_allowed() {
    world(async |world: World| {
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let speaking = |group| {
            let mut provider = (*provider(Compliance::None, Versions::Tls13).unwrap()).clone();
            provider.kx_groups.retain(|one| one.name() == group);
            assert_eq!(provider.kx_groups.len(), 1);
            let shown = credentials(&world.ca, &identity("curl"));
            Arc::new(lax_by(Arc::new(provider), &[&TLS13], Some(shown)))
        };
        let hybrid = speaking(NamedGroup::X25519MLKEM768);
        let classics = [speaking(NamedGroup::X25519), speaking(NamedGroup::secp256r1)];
        let tunnel = world.tunnel().await;
        assert!(is_let_in(&client, &web, hybrid.clone()).await);
        for classic in &classics {
            assert!(is_let_in(&client, &web, classic.clone()).await);
        }
        drop(tunnel);
        let _strict = world.tunnel_with(world.env().with("COMPLIANCE_POLICY", "pqc")).await;
        assert!(is_let_in(&client, &web, hybrid).await);
        for classic in classics {
            assert!(!is_let_in(&client, &web, classic).await);
        }
    });
}
