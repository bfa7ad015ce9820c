//! Connections that carry no HTTP, or of which nobody has said what they carry.

use std::net::SocketAddr;

use ambit_fixtures::mesh::{pod, service};
use ambit_model::{
    service::AppProtocol,
    service_config::Parts,
    traffic::{PolicyAt, Traffic, TrafficPolicy},
};
use ambit_wire::proxy_protocol;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

use crate::world::*;

/// A server that speaks first, and then says everything back.
pub async fn greeter(address: &str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 hello\r\n").await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
}

async fn mail(world: &World, protocol: Option<AppProtocol>) {
    greeter("127.0.0.4:2525").await;
    world.publish(
        [pod("shop/mail-1").at("127.0.0.4").plain().behind("shop/mail", &[(25, 2525)])],
        [service("shop/mail").vip("10.1.0.4").ports(&[(25, 2525)]).waypoint("shop/gate").with(|service| {
            service.app_protocols = protocol.into_iter().map(|protocol| (25, protocol)).collect();
        })],
    );
    world.configure("shop/mail", Default::default());
}

async fn converse(world: &World) {
    let mut io = world.tunnel().await.connect("10.1.0.4:25").await.unwrap();
    let mut greeting = [0; 11];
    timeout(SOON, io.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    io.write_all(b"EHLO me\r\n").await.unwrap();
    // It has no more to say, and still hears.
    io.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, io.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"EHLO me\r\n");
}

#[test]
fn a_server_that_speaks_first_is_heard_though_nobody_said_that_it_would() {
    world(async |world| {
        mail(&world, None).await;
        let waypoint = world.start().await;
        converse(&world).await;
        let labels = ["reporter=\"waypoint\"", "destination_workload=\"mail-1\"", "request_protocol=\"tcp\""];
        waypoint.until_counted("istio_tcp_connections_closed_total", &labels, 1).await;
        assert_eq!(waypoint.counted("istio_tcp_sent_bytes_total", &labels).await, 20);
        assert_eq!(waypoint.counted("istio_tcp_received_bytes_total", &labels).await, 9);
    });
}

#[test]
fn bytes_are_not_looked_into_where_the_port_says_so() {
    world(async |world| {
        mail(&world, Some(AppProtocol::Tcp)).await;
        let waypoint = world.start().await;
        converse(&world).await;
        waypoint.line(&["connection complete", "dst.workload=\"mail-1\""]).await;
    });
}

#[test]
fn a_server_is_told_who_calls_where_a_rule_asks_for_it() {
    world(async |world| {
        mail(&world, Some(AppProtocol::Tcp)).await;
        let policy = TrafficPolicy { introduces: true, ..TrafficPolicy::default() };
        let at = PolicyAt { subset: None, port: None, policy: policy.into() };
        let traffic = Traffic { policies: vec![at], subsets: Vec::new() };
        let parts = Parts { traffic: vec![(key("shop/mail"), traffic.into())], ..Parts::default() };
        world.configure("shop/mail", parts);
        let _waypoint = world.start().await;
        let mut io = world.tunnel().await.connect("10.1.0.4:25").await.unwrap();
        io.write_all(b"EHLO me\r\n").await.unwrap();
        io.shutdown().await.unwrap();
        let mut heard = Vec::new();
        timeout(SOON, io.read_to_end(&mut heard)).await.unwrap().unwrap();
        // The server says all back that it was told.
        let told = heard.strip_prefix(b"220 hello\r\n").unwrap();
        let from: [u8; 2] = told[24..26].try_into().unwrap();
        let from = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes(from)));
        let header = proxy_protocol::header(from, "10.1.0.4:25".parse().unwrap(), Some(&client_identity()));
        assert_eq!(told, [&header[..], b"EHLO me\r\n"].concat());
    });
}

#[test]
fn http_is_recognised_where_nobody_said_so() {
    world(async |world| {
        let _app = world.web().await;
        world.publish(
            [],
            [http_service("shop/web", "10.1.0.1").with(|service| service.app_protocols = [].into())],
        );
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
        // A client that takes its time is recognised all the same.
        let mut io = tunnel.connect(WEB).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        io.write_all(b"GE").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        io.write_all(b"T / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut told = String::new();
        timeout(SOON, io.read_to_string(&mut told)).await.unwrap().unwrap();
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
        waypoint.until_counted("istio_requests_total", &["response_code=\"200\""], 2).await;
    });
}

#[test]
fn what_is_not_bound_to_the_waypoint_is_refused() {
    world(async |world| {
        let _app = world.web().await;
        world.publish([], [service("shop/free").vip("10.1.0.5").ports(&[(80, 8080)])]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for target in ["10.1.0.5:80", "127.0.0.2:8080", "10.1.0.1:81", "127.0.0.1:15020"] {
            let refused = tunnel.connect(target).await.err().map(|error| error.to_string());
            assert_eq!(refused.as_deref(), Some("http status: 404"), "{target}");
        }
        waypoint.line(&["connection failed", "10.1.0.5:80 is not served by this waypoint"]).await;
    });
}
