//! Envoy as the same pair of tunnels: TCP in, CONNECT over HTTP/2 in mutual TLS 1.3, TCP out.
//!
//! One Envoy in the client's pod, one in each server's pod. Traffic is not captured: the client calls
//! a listener on its own loopback (which spares Envoy the redirection that Ambit pays for). As in the
//! tunnels there are two workers, and an access log with a line for each connection.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// Where the outer ends take tunnels.
pub const TUNNEL: u16 = 15008;
/// Statistics and readiness, on loopback.
pub const ADMIN: u16 = 15000;

/// One application that is reached through tunnels.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Where the client's Envoy listens for it.
    pub listen: SocketAddr,
    /// Where it is.
    pub application: SocketAddr,
}

/// The files of one end's identity.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The root that peers are checked against.
    pub root: String,
}

/// The client's Envoy.
pub fn client(targets: &[Target], files: &Files) -> Value {
    let listeners: Vec<_> = targets
        .iter()
        .map(|target| {
            listener(
                target.listen,
                &json!([{
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "out",
                        "cluster": tunnel_name(target),
                        "tunneling_config": { "hostname": target.application.to_string() },
                        "access_log": access_log(),
                    },
                }]),
                None,
            )
        })
        .collect();
    let clusters: Vec<_> = targets
        .iter()
        .map(|target| {
            let mut cluster = cluster(&tunnel_name(target), SocketAddr::new(target.application.ip(), TUNNEL));
            if let Some(fields) = cluster.as_object_mut() {
                let tls = tls("UpstreamTlsContext", files, &json!({}));
                fields.insert("transport_socket".to_owned(), tls);
                fields.insert("typed_extension_protocol_options".to_owned(), json!({
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                }));
            }
            cluster
        })
        .collect();
    bootstrap(&listeners, &clusters)
}

/// A server's Envoy, in the pod whose address is that of `applications`.
pub fn server(applications: &[SocketAddr], files: &Files) -> Value {
    let hosts: Vec<_> = applications
        .iter()
        .map(|application| {
            json!({
                "name": local_name(application),
                "domains": [application.to_string()],
                "routes": [{
                    "match": { "connect_matcher": {} },
                    "route": {
                        "cluster": local_name(application),
                        "timeout": "0s",
                        "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
                    },
                }],
            })
        })
        .collect();
    let filters = json!([{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "access_log": access_log(),
            "route_config": { "name": "in", "virtual_hosts": hosts },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    }]);
    let clusters: Vec<_> =
        applications.iter().map(|application| cluster(&local_name(application), *application)).collect();
    let Some(first) = applications.first() else { return Value::Null };
    let tls = tls("DownstreamTlsContext", files, &json!({ "require_client_certificate": true }));
    bootstrap(&[listener(SocketAddr::new(first.ip(), TUNNEL), &filters, Some(tls))], &clusters)
}

fn tunnel_name(target: &Target) -> String {
    format!("tunnel-{}", target.listen.port())
}

fn local_name(application: &SocketAddr) -> String {
    format!("local-{}", application.port())
}

pub(crate) fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "admin": { "address": address(SocketAddr::from(([127, 0, 0, 1], ADMIN))) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

pub(crate) fn listener(at: SocketAddr, filters: &Value, tls: Option<Value>) -> Value {
    let mut chain = json!({ "filters": filters });
    if let (Some(tls), Some(fields)) = (tls, chain.as_object_mut()) {
        fields.insert("transport_socket".to_owned(), tls);
    }
    json!({ "name": at.to_string(), "address": address(at), "filter_chains": [chain] })
}

pub(crate) fn cluster(name: &str, to: SocketAddr) -> Value {
    // The default of 1,024 would refuse the idle connections.
    let most = 1_000_000;
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most,
        }] },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": address(to) },
        }] }] },
    })
}

pub(crate) fn tls(context: &str, files: &Files, more: &Value) -> Value {
    let mut config = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}"),
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": { "filename": files.certificate },
                "private_key": { "filename": files.key },
            }],
            "validation_context": { "trusted_ca": { "filename": files.root } },
        },
    });
    if let (Some(fields), Some(more)) = (config.as_object_mut(), more.as_object()) {
        fields.extend(more.clone());
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

pub(crate) fn access_log() -> Value {
    json!([{
        "name": "envoy.access_loggers.stdout",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" },
    }])
}

pub(crate) fn address(of: SocketAddr) -> Value {
    json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } })
}
