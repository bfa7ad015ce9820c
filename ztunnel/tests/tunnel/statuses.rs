//! Every row of the table of answers to a CONNECT (protocols 4.4).

use ambit_fixtures::mesh::{gateway, pod, service};
use ambit_model::authz::Action;
use ambit_wire::{codec::ADDRESS, hbone::headers::BAGGAGE};
use http::{Method, Request};

use crate::harness::*;

/// The label of a metric that speaks of what came in.
const CAME_IN: &str = "reporter=\"destination\"";

#[test]
fn a_connect_to_a_listening_application_is_answered_with_200_and_baggage() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        let mut stream = peer.connect(web.at(8080)).await.unwrap();
        let baggage = stream.headers.get(BAGGAGE).expect("baggage").to_str().unwrap();
        assert_eq!(
            baggage,
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=web,service.name=web"
        );
        let seen = greeting(&mut stream).await.unwrap();
        exchange(&mut stream, b"hello").await.unwrap();
        drop(stream);
        let line = tunnel.line(&["connection complete", "direction=\"inbound\""]).await;
        let hbone = format!("dst.hbone_addr={}", web.at(8080));
        let sent = format!("bytes_sent={}", seen.len() + 1 + 5);
        let curl = "src.identity=\"spiffe://cluster.local/ns/default/sa/curl\"";
        for part in ["\tinfo\t", curl, &hbone, &sent, "bytes_recv=5"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        tunnel
            .until_counted("istio_tcp_connections_closed_total", &[CAME_IN, "response_flags=\"-\""], 1)
            .await;
    });
}

#[test]
fn the_200_comes_only_after_the_application_accepted() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        // Nobody listens: 503. The same a moment later, when somebody does: 200.
        let refused = peer.connect(web.at(8080)).await.err().expect("nobody listens");
        assert_eq!(refused.status(), Some(503));
        let NoStream::Refused(refused) = refused else { panic!("{refused:?}") };
        assert!(refused.headers.get(BAGGAGE).is_none(), "errors carry no baggage");
        let failed = ["istio_tcp_connections_failed_total", "response_flags=\"CONNECT\""];
        tunnel.until_counted(failed[0], &[CAME_IN, failed[1]], 1).await;
        let line = tunnel.line(&["connection complete", "direction=\"inbound\"", "error="]).await;
        assert!(line.contains("\terror\t"), "{line}");
        let listener = web.listen(8080);
        let _stream = peer.connect(web.at(8080)).await.unwrap();
        let (_accepted, _) = listener.accept().await.unwrap();
    });
}

#[test]
fn what_is_no_connect_and_what_names_no_destination_is_answered_with_400() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        for method in [Method::GET, Method::POST] {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = format!("https://{}/", web.at(8080)).parse().unwrap();
            assert_eq!(status(peer.ask(request).await), 400);
        }
        for authority in ["10.77.0.10", "web", "10.77.0.300:80", "web:0", "web:99999", "[fd77::1:80"] {
            let Ok(uri) = http::Uri::builder().authority(authority).build() else { continue };
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = uri;
            assert_eq!(status(peer.ask(request).await), 400, "{authority}");
        }
        // None of it counts as traffic; all of it is in the log.
        let lines = tunnel.lines(&["\twarn\t", "connection failed"], 6).await;
        assert!(lines.iter().all(|line| line.contains("direction=\"inbound\"")), "{lines:#?}");
        assert_eq!(tunnel.counted("istio_tcp_connections_opened_total", &[]).await, 0);
        // The tunnel is as good as before.
        peer.connect(web.at(8080)).await.unwrap();
    });
}

#[test]
fn a_connect_without_an_authority_does_no_harm() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        let config = world.ca.certificate(&identity("curl")).client_config(web.identity());
        let tls = secure(client.connect(web.at(HBONE)).await.unwrap(), config).await.unwrap();
        let mut raw = RawHttp2::over(tls);
        // `:method: CONNECT`, a literal, and nothing else.
        raw.send(&[frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, b"\x02\x07CONNECT")]).await;
        let answer = raw.answer_to(1).await;
        // 400 from the static table of HPACK; or the stream is reset as malformed, which RFC 9113 demands.
        assert!(answer.starts_with(&[HEADERS, 0x8c]) || answer.starts_with(&[RST_STREAM]), "{answer:?}");
        raw.send(&[connect_frame(3, &web.at(8080).to_string())]).await;
        assert!(raw.answer_to(3).await.starts_with(&[HEADERS, 0x88]), "the next is answered with 200");
    });
}

#[test]
fn a_destination_that_is_not_the_pods_is_answered_with_400() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, other) = (world.pod("web").await, world.pod("other").await);
        let _apps = (App::echo(&web, 8080), App::echo(&other, 8080));
        world.publish([], [service("default/other.default.svc").vip("10.96.0.1").ports(&[(80, 8080)])]);
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        for authority in [other.at(8080), "10.96.0.1:80".parse().unwrap(), "127.0.0.1:8080".parse().unwrap()]
        {
            assert_eq!(status(peer.connect(authority).await), 400, "{authority}");
        }
        tunnel.lines(&["\twarn\t", "connection failed", "ip mismatch"], 3).await;
    });
}

#[test]
fn a_pod_behind_a_services_waypoint_reference_takes_what_is_for_the_service() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let gate = world.pod("gate").await;
        let _app = App::echo(&gate, 80);
        let address = format!("/{}", gate.v4);
        let behind = service("default/web.default.svc").vip("10.96.0.1").ports(&[(80, 8080)]);
        let behind = behind.with(|service| service.waypoint = Some(gateway(&address)));
        world.publish([], [behind]);
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &gate).await;
        let mut stream =
            until("the service is known", async || peer.connect("10.96.0.1:80").await.ok()).await;
        exchange_after_greeting(&mut stream).await;
    });
}

#[test]
fn a_pod_that_the_control_plane_has_not_told_about_is_answered_for_with_nothing() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let net = world.node.pod();
        net.redirect().await;
        let unknown = Pod::of("unknown", net);
        world.agent.enrol(&unknown).await.unwrap();
        let client = world.stranger();
        // There is no identity to speak TLS with: the handshake cannot be answered, and nothing is delivered.
        let certificate = world.ca.certificate(&identity("curl"));
        let stream = client.connect(unknown.at(HBONE)).await.unwrap();
        assert!(Peer::over(stream, certificate.client_config(unknown.identity())).await.is_err());
        tunnel.line(&["\twarn\t", "connection failed", "default/unknown"]).await;
        assert_eq!(tunnel.counted("istio_tcp_connections_opened_total", &[]).await, 0);
        // Told about, it is served.
        world.publish([unknown.builder()], []);
        tunnel.until_known("Kubernetes//Pod/default/unknown").await;
        let _app = App::echo(&unknown, 8080);
        let stream = client.connect(unknown.at(HBONE)).await.unwrap();
        let peer = Peer::over(stream, certificate.client_config(unknown.identity())).await.unwrap();
        let mut open = peer.connect(unknown.at(8080)).await.unwrap();
        greeting(&mut open).await.unwrap();
        // Taken back while a tunnel is open: 503. What is open goes on.
        world.plane.remove(ADDRESS, &["Kubernetes//Pod/default/unknown"]);
        until_true("it is not served any more", async || status(peer.connect(unknown.at(8080)).await) == 503)
            .await;
        exchange(&mut open, b"still here").await.unwrap();
    });
}

#[test]
fn a_service_or_port_that_is_not_served_here_is_answered_with_503() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let key = "default/web.default.svc.cluster.local";
        let web = world.pod_with("web", |pod| pod.behind(key, &[(80, 8080), (81, 0), (82, 15008)])).await;
        let _app = App::echo(&web, 8080);
        let ports = [(80, 8080), (81, 0), (82, 15008)];
        world.publish([], [service(key).vip("10.96.0.1").ports(&ports)]);
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        let host = "web.default.svc.cluster.local";
        let mut stream =
            until("the service is known", async || peer.connect(format!("{host}:80")).await.ok()).await;
        exchange_after_greeting(&mut stream).await;
        for authority in [
            format!("{host}:81"),
            format!("{host}:82"),
            format!("{host}:83"),
            "missing.default.svc.cluster.local:80".to_owned(),
            web.at(15001).to_string(),
            web.at(15006).to_string(),
            web.at(15008).to_string(),
        ] {
            assert_eq!(status(peer.connect(&authority).await), 503, "{authority}");
        }
        tunnel.lines(&["\twarn\t", "connection failed", "recursive call"], 4).await;
    });
}

#[test]
fn a_denied_connect_is_answered_with_401_logged_and_counted() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        world.publish_policies([policy("no-mallory", Action::Deny, from_accounts(&["mallory"]))]);
        let client = world.stranger();
        let mallory = world.hbone(&client, "mallory", &web).await;
        until_true("the policy is in force", async || status(mallory.connect(web.at(8080)).await) == 401)
            .await;
        let line = tunnel.line(&["connection complete", "explicitly denied by: default/no-mallory"]).await;
        assert!(line.contains("\terror\t") && line.contains("sa/mallory"), "{line}");
        let labels = [
            CAME_IN,
            "response_flags=\"DENY\"",
            "source_principal=\"spiffe://cluster.local/ns/default/sa/mallory\"",
        ];
        tunnel.until_counted("istio_tcp_connections_failed_total", &labels, 1).await;
        // Others come in, and an ALLOW that does not name them keeps them out.
        let curl = world.hbone(&client, "curl", &web).await;
        curl.connect(web.at(8080)).await.unwrap();
        world.publish_policies([policy("only-bob", Action::Allow, from_accounts(&["bob"]))]);
        until_true("the second policy is in force", async || {
            curl.connect(web.at(8080)).await.err().is_some_and(|refused| refused.status() == Some(401))
        })
        .await;
        tunnel.line(&["allow policies exist, but none allowed"]).await;
        world.hbone(&client, "bob", &web).await.connect(web.at(8080)).await.unwrap();
    });
}

#[test]
fn without_tunnel_the_same_policies_hold_and_an_identity_is_never_assumed() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        // The client is even published, as a workload without a tunnel.
        let known = pod("default/plain").at(&client.v4.to_string()).account("plain").plain();
        world.publish([known], []);
        let (_open, seen) = call(&client, web.at(8080)).await.unwrap();
        assert!(seen.starts_with(&format!("{}:", client.v4)), "{seen}");
        world.publish_policies([policy("strict", Action::Deny, without_identity())]);
        until_true("plain text is refused", async || call(&client, web.at(8080)).await.is_err()).await;
        tunnel
            .until_counted("istio_tcp_connections_failed_total", &[CAME_IN, "response_flags=\"DENY\""], 1)
            .await;
        // The proof by certificate opens the same door.
        world.hbone(&client, "plain", &web).await.connect(web.at(8080)).await.unwrap();
    });
}

async fn exchange_after_greeting(stream: &mut Stream) {
    greeting(stream).await.unwrap();
    exchange(stream, b"hello").await.unwrap();
}

/// The status that is not 200.
fn status(answer: Result<Stream, NoStream>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(refused) => refused.status().unwrap_or_else(|| panic!("no status: {refused:?}")),
    }
}
