//! Connections that the pod's ztunnel hands over, where it ends tunnels in place of the waypoint.

use std::{net::SocketAddr, process::Command, sync::Arc};

use ambit_fixtures::mesh::{pod, service};
use ambit_model::{
    authz::{Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    identity::Identity,
    name::PolicyKey,
    service::AppProtocol,
    service_config::Parts,
};
use ambit_wire::proxy_protocol;
use bytes::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{bytes::greeter, world::*};

/// Where the ztunnel hands over.
const HANDED: &str = "127.0.0.1:15088";
const BEHIND_ZTUNNEL: [(&str, &str); 1] = [("AMBIT_PROXY_PORT", "15088")];
/// An address of the pod that others reach.
const OUTER: &str = "10.9.0.1";

/// What a ztunnel says of a client that called `to`.
fn introduced(to: &str, identity: Option<&Identity>) -> Bytes {
    proxy_protocol::header("127.0.0.1:4000".parse().unwrap(), to.parse().unwrap(), identity)
}

/// What a ztunnel does: connects at loopback, and says this first.
async fn hand_over(first: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(HANDED).await.unwrap();
    tcp.write_all(first).await.unwrap();
    tcp
}

/// The status of a request over a connection that is handed over so.
async fn status(first: &[u8], path: &str) -> u16 {
    let io = TokioIo::new(hand_over(first).await);
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let response = timeout(SOON, sender.send_request(get(path))).await.expect("a response").unwrap();
    Told::read(response).await.status
}

/// All that the other side says until it closes or resets.
async fn heard(tcp: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let _ = timeout(SOON, tcp.read_to_end(&mut heard)).await.expect("it is closed");
    heard
}

/// Only the client may.
fn clients_only() -> Parts {
    let principals = vec![Text::Exact(client_identity().principal().to_string().as_str().into())];
    let one = Match { principals, ..Match::default() };
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
    let content = Content::Rules { action: Action::Allow, rules, dry_run: false };
    let policy = Policy { key: PolicyKey::new("shop", "client"), scope: Scope::WorkloadSelector, content };
    Parts { policies: vec![Arc::new(policy)], ..Parts::default() }
}

#[test]
fn requests_are_judged_by_the_identity_that_the_ztunnel_tells() {
    world(async |world| {
        let app = world.web().await;
        world.configure("shop/web", clients_only());
        let waypoint = world.start_with(&BEHIND_ZTUNNEL).await;
        let (client, other) = (client_identity(), Identity::new("cluster.local", "shop", "other"));
        assert_eq!(status(&introduced(WEB, Some(&client)), "/mine").await, 200);
        assert_eq!(status(&introduced(WEB, Some(&other)), "/others").await, 403);
        assert_eq!(status(&introduced(WEB, None), "/nobodys").await, 403);
        assert_eq!(app.heard().iter().map(|one| one.uri.clone()).collect::<Vec<_>>(), ["/mine"]);
        let known =
            ["source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"", "response_code=\"200\""];
        waypoint.until_counted("istio_requests_total", &known, 1).await;
        waypoint.line(&["request complete", "src.addr=127.0.0.1:4000", "path=\"/mine\""]).await;
    });
}

#[test]
fn bytes_are_carried_both_ways_whoever_speaks_first() {
    world(async |world| {
        greeter("127.0.0.4:2525").await;
        let waypoint = world.start_with(&BEHIND_ZTUNNEL).await;
        for (count, protocol) in [(1, None), (2, Some(AppProtocol::Tcp))] {
            let mail = service("shop/mail").vip("10.1.0.4").ports(&[(25, 2525)]).waypoint("shop/gate");
            let mail = mail.with(|mail| {
                mail.app_protocols = protocol.into_iter().map(|protocol| (25, protocol)).collect();
            });
            // A workload with a tunnel: the ztunnel opens that, for which the waypoint connects plainly.
            world.publish([pod("shop/mail-1").at("127.0.0.4").behind("shop/mail", &[(25, 2525)])], [mail]);
            world.configure("shop/mail", clients_only());
            let mut tcp = hand_over(&introduced("10.1.0.4:25", Some(&client_identity()))).await;
            let mut greeting = [0; 11];
            timeout(SOON, tcp.read_exact(&mut greeting)).await.unwrap().unwrap();
            assert_eq!(&greeting, b"220 hello\r\n");
            tcp.write_all(b"EHLO me\r\n").await.unwrap();
            tcp.shutdown().await.unwrap();
            assert_eq!(heard(&mut tcp).await, b"EHLO me\r\n");
            let labels = ["destination_workload=\"mail-1\"", "request_protocol=\"tcp\""];
            waypoint.until_counted("istio_tcp_connections_closed_total", &labels, count).await;
        }
        let mut nobody = hand_over(&introduced("10.1.0.4:25", None)).await;
        assert_eq!(heard(&mut nobody).await, b"");
        waypoint.until_counted("ambit_refusals_total", &["reason=\"denied\""], 1).await;
    });
}

#[test]
fn who_is_not_introduced_is_closed_and_counted() {
    world(async |world| {
        let _app = world.web().await;
        let waypoint = world.start_with(&BEHIND_ZTUNNEL).await;
        let good = introduced(WEB, Some(&client_identity()));
        let mut local = good.to_vec();
        local[12] = 0x20;
        let twice = {
            let field = &good[28..];
            let mut twice = [&good[..], field].concat();
            let length = u16::try_from(twice.len() - 16).unwrap().to_be_bytes();
            twice[14..16].copy_from_slice(&length);
            twice
        };
        let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        let wrong: [&[u8]; 5] = [
            request,
            b"PROXY TCP4 127.0.0.1 10.1.0.1 4000 80\r\n",
            &local,
            &twice,
            &[0x16, 3, 1, 0, 200, 1, 0],
        ];
        let mut count = 0;
        for first in wrong {
            let mut tcp = hand_over(first).await;
            tcp.shutdown().await.unwrap();
            assert_eq!(heard(&mut tcp).await, b"", "{first:02x?}");
            count += 1;
            waypoint.until_counted("ambit_refusals_total", &["reason=\"not_introduced\""], count).await;
        }
        waypoint.line(&["connection failed", "it names more than one identity"]).await;
        // Who is, asks for what is served here, or is refused as in a tunnel.
        let mut elsewhere = hand_over(&introduced("10.1.0.77:80", Some(&client_identity()))).await;
        assert_eq!(heard(&mut elsewhere).await, b"");
        waypoint.until_counted("ambit_refusals_total", &["reason=\"not_served\""], 1).await;
        assert_eq!(status(&good, "/").await, 200);
    });
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    world(async |world| {
        let environment = [BEHIND_ZTUNNEL[0], ("AMBIT_HANDSHAKE_TIMEOUT", "100ms")];
        let waypoint = world.start_with(&environment).await;
        let mut tcp = hand_over(b"\r\n\r\n").await;
        assert_eq!(heard(&mut tcp).await, b"");
        waypoint.until_counted("ambit_refusals_total", &["reason=\"not_introduced\""], 1).await;
    });
}

/// Whoever reaches the port could claim to be anybody.
#[test]
fn nobody_outside_of_the_pod_can_introduce_himself() {
    world(async |world| {
        let _app = world.web().await;
        let added = Command::new("ip").args(["addr", "add", &format!("{OUTER}/32"), "dev", "lo"]).status();
        assert!(added.unwrap().success());
        let waypoint = world.start_with(&BEHIND_ZTUNNEL).await;
        // The pod's address, to which the ztunnel's way for plaintext leads, too; and the port of tunnels, which is its.
        for address in [format!("{OUTER}:15088"), "127.0.0.9:15088".to_owned(), WAYPOINT.to_owned()] {
            let refused = TcpStream::connect(&address).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
        }
        // Even if something led there from elsewhere.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(OUTER.parse().unwrap(), 0)).unwrap();
        match socket.connect(HANDED.parse().unwrap()).await {
            Ok(mut tcp) => {
                let _ = tcp.write_all(&introduced(WEB, Some(&client_identity()))).await;
                let _ = tcp.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
                assert_eq!(heard(&mut tcp).await, b"");
            }
            // It was reset before we knew of it.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        waypoint.until_counted("ambit_refusals_total", &["reason=\"not_introduced\""], 1).await;
    });
}

/// A service whose endpoint is the port itself would have the waypoint connect to itself, from within the pod.
#[test]
fn nobody_is_led_around_to_introduce_himself() {
    world(async |world| {
        let app = world.web().await;
        world.configure("shop/web", clients_only());
        world.publish(
            [pod("shop/mirror-1").at("127.0.0.1").plain().behind("shop/mirror", &[(25, 15088)])],
            [service("shop/mirror").vip("10.1.0.6").ports(&[(25, 15088)]).waypoint("shop/gate").with(
                |mirror| {
                    mirror.app_protocols = [(25, AppProtocol::Tcp)].into();
                },
            )],
        );
        world.configure("shop/mirror", Parts::default());
        let waypoint = world.start_with(&BEHIND_ZTUNNEL).await;
        let mut tcp = hand_over(&introduced("10.1.0.6:25", None)).await;
        let _ = tcp.write_all(&introduced(WEB, Some(&client_identity()))).await;
        let _ = tcp.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        assert_eq!(heard(&mut tcp).await, b"");
        waypoint.until_counted("ambit_refusals_total", &["reason=\"recursive\""], 1).await;
        assert!(app.heard().is_empty());
    });
}

#[test]
fn what_was_handed_over_is_finished_before_the_end() {
    world(async |world| {
        let app = world.web().await;
        let mut waypoint = world.start_with(&BEHIND_ZTUNNEL).await;
        let first = introduced(WEB, Some(&client_identity()));
        let mut tcp = hand_over(&[&first[..], b"GET /slow/500 HTTP/1.1\r\nhost: web\r\n\r\n"].concat()).await;
        until("the request is under way", async || (!app.heard().is_empty()).then_some(())).await;
        assert_eq!(waypoint.counted("ambit_streams_open", &[]).await, 1);
        waypoint.terminate();
        let said = String::from_utf8(heard(&mut tcp).await).unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(waypoint.until_exited().await.success());
    });
}
