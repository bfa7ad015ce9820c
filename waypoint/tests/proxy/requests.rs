//! Requests to a service of which nothing special is said.

use ambit_fixtures::mesh::pod;
use ambit_model::service::AppProtocol;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::world::*;

#[test]
fn an_application_is_told_who_calls_where_the_waypoint_is_to() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start_with(&[("AMBIT_XFCC_INCLUDE_CLIENT_IDENTITY", "true")]).await;
        let lie =
            Request::get("/").header("host", "web").header("x-forwarded-client-cert", "URI=spiffe://me");
        let told = world.tunnel().await.ask(WEB, lie.body(Full::default()).unwrap()).await;
        assert_eq!(told.status, 200);
        let expected = format!("By={};URI={}", gate(), client_identity());
        assert_eq!(app.last().header("x-forwarded-client-cert"), Some(&*expected));
    });
}

#[test]
fn a_request_reaches_the_service_and_says_who_asks() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let told = world.tunnel().await.get(WEB, "/a/../b?q=1").await;
        assert_eq!((told.status, told.body.as_str()), (200, "127.0.0.2:8080"));
        let heard = app.last();
        assert_eq!((heard.method.as_str(), heard.uri.as_str()), ("GET", "/b?q=1"));
        assert_eq!(heard.header("host"), Some("web"));
        assert_eq!(heard.header("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(heard.header("forwarded"), Some("for=127.0.0.1"));
        assert!(heard.header("x-request-id").is_some());
        let labels = [
            "reporter=\"waypoint\"",
            "source_workload=\"client\"",
            "destination_workload=\"web-1\"",
            "destination_service=\"web\"",
            "response_code=\"200\"",
            "connection_security_policy=\"mutual_tls\"",
        ];
        waypoint.until_counted("istio_requests_total", &labels, 1).await;
        let line = waypoint.line(&["request complete", "status=200"]).await;
        assert!(line.contains("src.identity=\"spiffe://cluster.local/ns/shop/sa/client\""), "{line}");
    });
}

#[test]
fn connections_are_kept_for_the_next_request() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut sender = tunnel.http1(WEB).await;
        for number in 0..20 {
            sender.ready().await.unwrap();
            let told = Told::read(sender.send_request(get("/")).await.unwrap()).await;
            assert_eq!(told.status, 200, "{number}");
        }
        assert_eq!(app.heard().len(), 20);
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn bodies_and_trailers_travel_both_ways() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let large = "x".repeat(3 << 20);
        let told = tunnel.ask(WEB, post("/", large.clone())).await;
        assert_eq!((told.status, app.last().body.len()), (200, large.len()));
        let request = Request::get("/trailers").header("host", "web").header("te", "trailers");
        let told = tunnel.ask(WEB, request.body(Full::default()).unwrap()).await;
        assert_eq!(told.body, "body");
        assert_eq!(told.trailers.get("x-checksum").map(|value| value.as_bytes()), Some(&b"17"[..]));
    });
}

/// One request over HTTP/2.
async fn ask_http2(world: &World) -> Told {
    let mut sender = world.tunnel().await.http2(WEB).await;
    let request = Request::get("http://web/").body(Full::default()).unwrap();
    Told::read(sender.send_request(request).await.unwrap()).await
}

#[test]
fn a_server_is_asked_as_its_port_says_whatever_the_client_speaks() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start().await;
        assert_eq!(ask_http2(&world).await.status, 200);
        assert_eq!(app.last().version, http::Version::HTTP_11);
    });
}

#[test]
fn a_server_of_which_nothing_is_said_is_asked_as_the_client_speaks() {
    world(async |world| {
        let app = world.web().await;
        world.publish(
            [],
            [http_service("shop/web", "10.1.0.1").with(|service| service.app_protocols = [].into())],
        );
        let _waypoint = world.start().await;
        assert_eq!(ask_http2(&world).await.status, 200);
        assert_eq!(app.last().version, http::Version::HTTP_2);
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 200);
        assert_eq!(app.last().version, http::Version::HTTP_11);
    });
}

#[test]
fn a_server_of_http2_is_asked_so_by_any_client() {
    world(async |world| {
        let app = world.web().await;
        let http2 = |service: &mut ambit_model::service::Service| {
            service.app_protocols = [(80, AppProtocol::Http2)].into();
        };
        world.publish([], [http_service("shop/web", "10.1.0.1").with(http2)]);
        let _waypoint = world.start().await;
        let told = world.tunnel().await.get(WEB, "/").await;
        assert_eq!(told.status, 200);
        assert_eq!(app.last().version, http::Version::HTTP_2);
        assert_eq!(app.last().header("host"), None, "its authority says it");
    });
}

#[test]
fn an_upgrade_becomes_a_connection_of_another_protocol() {
    world(async |world| {
        let _app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut sender = tunnel.http1(WEB).await;
        let request = Request::get("/upgrade").header("host", "web");
        let request = request.header("connection", "upgrade").header("upgrade", "echo");
        let response = sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        io.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        timeout(SOON, io.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, b"hello");
        io.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(SOON, io.read_to_end(&mut rest)).await.unwrap().unwrap();
        waypoint.line(&["request complete", "status=101"]).await;
    });
}

#[test]
fn an_endpoint_that_is_gone_is_not_asked_as_long_as_there_is_another() {
    world(async |world| {
        let app = world.web().await;
        world.publish([pod("shop/web-2").at("127.0.0.3").plain().behind("shop/web", &[(80, 8080)])], []);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for number in 0..30 {
            let told = tunnel.ask(WEB, post("/", "once")).await;
            assert_eq!(told.status, 200, "{number}");
        }
        assert_eq!(app.heard().len(), 30);
        assert!(waypoint.dump().await.contains("set aside"), "{}", waypoint.dump().await);
    });
}

#[test]
fn a_service_without_endpoints_says_so() {
    world(async |world| {
        world.publish([], [http_service("shop/web", "10.1.0.1")]);
        world.configure("shop/web", Default::default());
        let waypoint = world.start().await;
        let told = world.tunnel().await.get(WEB, "/").await;
        assert_eq!((told.status, told.body.as_str()), (503, "no healthy upstream"));
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UH\""], 1).await;
    });
}

#[test]
fn a_waypoint_that_ends_finishes_what_it_has_begun() {
    world(async |world| {
        let _app = world.web().await;
        let mut waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let slow = tunnel.get(WEB, "/slow/500");
        let ending = async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            waypoint.terminate();
        };
        let (told, ()) = tokio::join!(slow, ending);
        assert_eq!(told.status, 200);
        let status = timeout(SOON, waypoint.until_exited()).await.unwrap();
        assert!(status.success(), "{status}");
    });
}
