//! The ways that connections go: the addresses that they bear, services, names, application tunnels.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use ambit_fixtures::mesh::service;
use ambit_model::{
    service::{LoadBalancing, Mode},
    workload::{ApplicationProtocol, ApplicationTunnel},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::harness::*;

#[test]
fn the_application_sees_its_clients_address_in_both_families() {
    for same_node in ["direct", "hbone"] {
        world(async move |world: World| {
            let tunnel = world.tunnel_with(world.env().with("SAME_NODE", same_node)).await;
            let (web, client) = (world.pod("web").await, world.pod("client").await);
            let _app = App::echo(&web, 8080);
            let stranger = world.stranger();
            for (to, captured, plain) in [
                (web.at(8080), client.v4.to_string(), stranger.v4.to_string()),
                (web.at6(8080), format!("[{}]", client.v6), format!("[{}]", stranger.v6)),
            ] {
                let (_stream, seen) = call(&client, to).await.unwrap();
                assert!(seen.starts_with(&format!("{captured}:")), "{same_node}: {seen} is not {captured}");
                let (_stream, seen) = call(&stranger, to).await.unwrap();
                assert!(seen.starts_with(&format!("{plain}:")), "{same_node}: {seen} is not {plain}");
            }
            let lines = tunnel.lines(&["connection complete", "direction=\"outbound\""], 2).await;
            assert!(
                lines.iter().all(|line| line.contains("dst.identity=")),
                "they went in mutual TLS: {lines:#?}"
            );
        });
    }
}

/// Connection tracking knows a client's own connection and the one that the tunnel makes in its name by the same
/// four numbers: had both the same port, one of them would be torn.
#[test]
fn a_borrowed_address_comes_with_a_port_that_its_owner_would_not_choose() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let mut held = Vec::new();
        for n in 0..500 {
            let (stream, seen) =
                call(&client, web.at(8080)).await.unwrap_or_else(|error| panic!("{n}: {error}"));
            let seen: SocketAddr = seen.parse().unwrap();
            let own = stream.local_addr().unwrap();
            assert_eq!(seen.ip(), own.ip());
            assert!((10_000..32_768).contains(&seen.port()) && own.port() >= 32_768, "{own} came as {seen}");
            held.push(stream);
        }
    });
}

#[test]
fn without_original_source_the_application_sees_its_own_pod() {
    world(async |world: World| {
        let _tunnel = world.tunnel_with(world.env().with("ENABLE_ORIG_SRC", "false")).await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let (_stream, seen) = call(&world.stranger(), web.at(8080)).await.unwrap();
        assert!(seen.starts_with(&format!("{}:", web.v4)), "{seen}");
    });
}

#[test]
fn a_pod_without_ipv6_is_served_over_ipv4() {
    // On `lo` alone is enough (protocols 12, line 13).
    for without in [&["all", "default", "lo", "eth0"][..], &["lo"]] {
        world(async move |world: World| served_over_ipv4(world, without).await);
    }
}

async fn served_over_ipv4(world: World, without: &[&str]) {
    let tunnel = world.tunnel().await;
    let net = world.node.pod();
    net.inside(|| {
        for scope in without {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
    });
    net.redirect().await;
    let web = Pod::of("web", net);
    world.publish([web.builder()], []);
    world.agent.enrol(&web).await.unwrap();
    let _app = App::serve(web.listen_at(([0; 4], 8080).into()), |mut stream, peer| async move {
        let _ = stream.write_all(format!("{peer}\n").as_bytes()).await;
    });
    let client = world.pod("client").await;
    for from in [&client.net, &Arc::new(world.stranger())] {
        let mut stream = from.connect(web.at(8080)).await.unwrap();
        assert!(greeting(&mut stream).await.unwrap().starts_with(&format!("{}:", from.v4)));
    }
    world.hbone(&world.stranger(), "curl", &web).await.connect(web.at(8080)).await.unwrap();
    assert!(tunnel.is_ready().await);
}

#[test]
fn a_pod_reaches_itself_and_whatever_the_mesh_does_not_know() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let web = world.pod_with("web", |pod| pod.behind("default/web.test", &[(80, 8080)])).await;
        world.publish([], [service("default/web.test").vip("10.96.0.1").ports(&[(80, 8080)])]);
        let _app = App::echo(&web, 8080);
        call(&web, web.at(8080)).await.unwrap();
        until_true("through its service", async || call(&web, "10.96.0.1:80".parse().unwrap()).await.is_ok())
            .await;
        let stranger = world.stranger();
        let _other = App::echo(&stranger, 9090);
        let (_stream, seen) = call(&web, stranger.at(9090)).await.unwrap();
        assert!(seen.starts_with(&format!("{}:", web.v4)), "{seen}");
        call(&web, stranger.at6(9090)).await.unwrap();
    });
}

#[test]
fn a_service_spreads_over_its_endpoints_and_a_dead_one_costs_no_call() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("AMBIT_CONNECT_TIMEOUT", "1s")).await;
        let key = "default/web.test";
        let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
        world.publish([], [service(key).vip("10.96.0.1").ports(&[(80, 8080)])]);
        let client = world.pod("client").await;
        let (mut endpoints, mut apps) = (Vec::new(), Vec::new());
        for name in ["web-1", "web-2", "web-3"] {
            let web = world.pod_with(name, |pod| pod.behind(key, &[(80, 8080)])).await;
            let own = name.to_owned();
            apps.push(App::serve(web.listen(8080), move |mut stream, _| {
                let own = own.clone();
                async move {
                    let _ = stream.write_all(format!("{own}\n").as_bytes()).await;
                }
            }));
            endpoints.push(web);
        }
        let ask = async || {
            let mut stream = client.connect(vip).await.map_err(|error| error.to_string())?;
            greeting(&mut stream).await.map_err(|error| error.to_string())
        };
        let mut seen = BTreeSet::new();
        until_true("all three answer", async || {
            seen.extend(ask().await.ok());
            seen.len() == 3
        })
        .await;
        // One dies: its process, its wire, and the control plane says nothing of it.
        apps.remove(0).stop().await;
        for _ in 0..30 {
            let answer = ask().await.unwrap();
            assert_ne!(answer, "web-1");
        }
        endpoints[1].unplug();
        apps.remove(0).stop().await;
        for _ in 0..10 {
            assert_eq!(ask().await.unwrap(), "web-3");
        }
        let line =
            tunnel.line(&["connection complete", "direction=\"outbound\"", "dst.service=\"web.test\""]).await;
        assert!(line.contains("src.workload=\"client\""), "{line}");
    });
}

#[test]
fn a_service_without_endpoints_fails_and_one_in_passthrough_mode_is_left_alone() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let client = world.pod("client").await;
        let stranger = world.stranger();
        let _app = App::echo(&stranger, 80);
        let balancing = LoadBalancing { mode: Mode::Passthrough, ..LoadBalancing::default() };
        let address = stranger.v4.to_string();
        let empty = service("default/empty.test").vip(&address).ports(&[(80, 80)]);
        world.publish([], [empty.clone()]);
        // Somebody listens there; but it is a service, and it has nobody.
        until_true("it fails", async || call(&client, stranger.at(80)).await.is_err()).await;
        tunnel.line(&["connection failed", "no healthy upstream", "default/empty.test"]).await;
        world.publish([], [empty.balanced(balancing)]);
        until_true("it is left alone", async || call(&client, stranger.at(80)).await.is_ok()).await;
    });
}

#[test]
fn names_of_the_mesh_are_answered_in_the_pod() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let client = world.pod("client").await;
        world.publish([], [service("default/web.default.svc.cluster.local").vip("10.96.0.7")]);
        // ID 7, recursion desired, one question: web.default.svc.cluster.local A IN.
        let mut packet = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        for label in ["web", "default", "svc", "cluster", "local"] {
            packet.push(label.len().try_into().unwrap());
            packet.extend(label.as_bytes());
        }
        packet.extend(b"\x00\x00\x01\x00\x01");
        let nameserver: SocketAddr = "10.77.0.1:53".parse().unwrap();
        let udp = client.udp();
        until_true("the name is answered", async || {
            udp.send_to(&packet, nameserver).await.unwrap();
            let mut answer = [0; 512];
            let Ok(Ok((length, from))) = timeout(Duration::from_secs(1), udp.recv_from(&mut answer)).await
            else {
                return false;
            };
            assert_eq!(from, nameserver, "it comes back from whom was asked");
            answer[..length].ends_with(&[10, 96, 0, 7])
        })
        .await;
        let mut tcp = client.connect(nameserver).await.unwrap();
        tcp.write_u16(packet.len().try_into().unwrap()).await.unwrap();
        tcp.write_all(&packet).await.unwrap();
        let mut answer = vec![0; usize::from(timeout(SOON, tcp.read_u16()).await.unwrap().unwrap())];
        tcp.read_exact(&mut answer).await.unwrap();
        assert!(answer.ends_with(&[10, 96, 0, 7]), "{answer:?}");
        let labels = ["request_query_type=\"A\"", "source_canonical_service=\"client\""];
        tunnel.until_counted("istio_dns_requests_total", &labels, 2).await;
    });
}

#[test]
fn an_application_behind_proxy_protocol_is_told_who_calls_whom() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let told = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(9000) };
        let web = world.pod_with("web", |pod| pod.application_tunnel(told)).await;
        // On loopback only: nobody else reaches it.
        let listener = web.listen_at("127.0.0.1:9000".parse().unwrap());
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        let target = "10.96.0.3:8443";
        let mut stream = peer.connect(target).await.unwrap();
        stream.write_all(b"payload").await.unwrap();
        let (mut app, from) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        assert!(from.ip().is_loopback(), "{from}");
        let mut head = [0; 16];
        app.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..14], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        app.read_exact(&mut body).await.unwrap();
        assert_eq!(body[..4], client.v4.octets());
        assert_eq!(body[4..8], [10, 96, 0, 3]);
        assert_eq!(body[10..12], 8443u16.to_be_bytes());
        assert_eq!(
            (body[12], &body[13..15]),
            (0xd0, &u16::try_from(body.len() - 15).unwrap().to_be_bytes()[..])
        );
        assert_eq!(body[15..], *b"spiffe://cluster.local/ns/default/sa/curl");
        let mut payload = [0; 7];
        app.read_exact(&mut payload).await.unwrap();
        assert_eq!(&payload, b"payload");
        app.write_all(b"answer!").await.unwrap();
        let mut answer = [0; 7];
        timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"answer!");
    });
}

#[test]
fn a_connection_that_is_half_closed_goes_on_in_the_other_half() {
    for same_node in ["direct", "hbone"] {
        world(async move |world: World| {
            let _tunnel = world.tunnel_with(world.env().with("SAME_NODE", same_node)).await;
            let (web, client) = (world.pod("web").await, world.pod("client").await);
            // One application answers when all has been said; the other says all at once, and then listens.
            let _last = App::serve(web.listen(8080), |mut stream, _| async move {
                let mut said = Vec::new();
                let _ = stream.read_to_end(&mut said).await;
                let _ = stream.write_all(&said.repeat(3)).await;
            });
            let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
            let _first = App::serve(web.listen(9090), move |mut stream, _| {
                let heard = heard.clone();
                async move {
                    let _ = stream.write_all(b"all I have to say").await;
                    let _ = stream.shutdown().await;
                    let mut rest = String::new();
                    let _ = stream.read_to_string(&mut rest).await;
                    let _ = heard.send(rest);
                }
            });
            for from in [&client.net, &Arc::new(world.stranger())] {
                let mut stream = from.connect(web.at(8080)).await.unwrap();
                stream.write_all(b"abc").await.unwrap();
                stream.shutdown().await.unwrap();
                let mut answer = String::new();
                timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
                assert_eq!(answer, "abcabcabc", "{same_node}");

                let mut stream = from.connect(web.at(9090)).await.unwrap();
                let mut answer = String::new();
                timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
                assert_eq!(answer, "all I have to say", "{same_node}");
                stream.write_all(b"and yet").await.unwrap();
                stream.shutdown().await.unwrap();
                assert_eq!(timeout(SOON, hears.recv()).await.unwrap().unwrap(), "and yet", "{same_node}");
            }
        });
    }
}
