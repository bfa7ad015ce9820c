//! Envoy as a waypoint, as Istio configures it: tunnels end in one listener, requests are routed in another, tunnels
//! begin in a third, and what is between them stays in the process.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::stage::{HEADER, PORTS_OF_SERVICE, below};
use crate::{
    envoy::{Files, TUNNEL, access_log, bootstrap, cluster, listener, tls},
    serve::HTTP2,
};

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

/// A waypoint before one application, with so many routes.
pub(super) fn waypoint(application: IpAddr, routes: usize, files: &Files) -> Value {
    let server = tls("DownstreamTlsContext", files, &json!({ "require_client_certificate": true }));
    let any = SocketAddr::from(([0, 0, 0, 0], TUNNEL));
    let mut listeners = vec![listener(any, &ending(), Some(server))];
    let mut clusters = vec![tunnel(application, files)];
    // One of each for a protocol: where a tunnel goes to says which.
    for (port, target) in PORTS_OF_SERVICE {
        let [requests_of, beginning_of] = [requests_of(port), beginning_of(port)];
        listeners.push(internal_listener(&requests_of, &requests(routes, &beginning_of)));
        listeners.push(internal_listener(&beginning_of, &beginning(SocketAddr::new(application, target))));
        clusters.push(internal_cluster(&requests_of, false));
        clusters.push(internal_cluster(&beginning_of, target == HTTP2));
    }
    let mut config = bootstrap(&listeners, &clusters);
    if let Some(fields) = config.as_object_mut() {
        let extension = json!([{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }]);
        fields.insert("bootstrap_extensions".to_owned(), extension);
    }
    config
}

fn requests_of(port: u16) -> String {
    format!("requests-{port}")
}

fn beginning_of(port: u16) -> String {
    format!("beginning-{port}")
}

/// Where tunnels end: what is in them goes to the `requests` of its port.
fn ending() -> Value {
    let route = |(port, _)| {
        json!({
            "match": {
                "connect_matcher": {},
                "headers": [{ "name": ":authority", "string_match": { "suffix": format!(":{port}") } }],
            },
            "route": {
                "cluster": requests_of(port),
                "timeout": "0s",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            },
        })
    };
    json!([{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": MANAGER,
            "stat_prefix": "ending",
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "route_config": { "name": "ending", "virtual_hosts": [{
                "name": "any",
                "domains": ["*"],
                "routes": PORTS_OF_SERVICE.map(route),
            }] },
            "http_filters": [router()],
        },
    }])
}

/// Where requests are judged, routed, counted and logged.
fn requests(routes: usize, beginning: &str) -> Value {
    let route = |number: usize| {
        json!({
            "match": {
                "path_separated_prefix": below(number),
                "headers": [{ "name": HEADER.0, "string_match": { "exact": HEADER.1 } }],
            },
            "route": { "cluster": beginning, "timeout": "0s" },
        })
    };
    let routes: Vec<_> = (0..routes).map(route).collect();
    let method = |name: &str| json!({ "header": { "name": ":method", "string_match": { "exact": name } } });
    let methods = ["GET", "POST"].map(method);
    let policy = json!({
        "permissions": [{ "and_rules": { "rules": [
            { "or_rules": { "rules": methods } },
            { "url_path": { "path": { "prefix": "/" } } },
        ] } }],
        "principals": [{ "any": true }],
    });
    json!([{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": MANAGER,
            "stat_prefix": "requests",
            "access_log": access_log(),
            "normalize_path": true,
            "merge_slashes": true,
            "route_config": { "name": "requests", "virtual_hosts": [{
                "name": "any", "domains": ["*"], "routes": routes,
            }] },
            "http_filters": [
                {
                    "name": "envoy.filters.http.rbac",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                        "rules": { "action": "ALLOW", "policies": { "get-and-post": policy } },
                    },
                },
                router(),
            ],
        },
    }])
}

/// Where tunnels to the application begin.
fn beginning(application: SocketAddr) -> Value {
    json!([{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "beginning",
            "cluster": "tunnel",
            "tunneling_config": { "hostname": application.to_string() },
        },
    }])
}

fn tunnel(application: IpAddr, files: &Files) -> Value {
    let mut cluster = cluster("tunnel", SocketAddr::new(application, TUNNEL));
    if let Some(fields) = cluster.as_object_mut() {
        fields.insert("transport_socket".to_owned(), tls("UpstreamTlsContext", files, &json!({})));
        fields.insert("typed_extension_protocol_options".to_owned(), speaks_http2());
    }
    cluster
}

fn speaks_http2() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    })
}

fn internal_listener(name: &str, filters: &Value) -> Value {
    json!({ "name": name, "internal_listener": {}, "filter_chains": [{ "filters": filters }] })
}

fn internal_cluster(name: &str, is_http2: bool) -> Value {
    // What it leads to is replaced.
    let mut cluster = cluster(name, SocketAddr::from(([0, 0, 0, 0], 0)));
    if let Some(fields) = cluster.as_object_mut() {
        let endpoint = json!({ "address": { "envoy_internal_address": { "server_listener_name": name } } });
        let endpoints = json!([{ "lb_endpoints": [{ "endpoint": endpoint }] }]);
        fields.insert("load_assignment".to_owned(), json!({ "cluster_name": name, "endpoints": endpoints }));
        let raw = json!({
            "name": "envoy.transport_sockets.raw_buffer",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            },
        });
        let socket = json!({
            "name": "envoy.transport_sockets.internal_upstream",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
                "transport_socket": raw,
            },
        });
        fields.insert("transport_socket".to_owned(), socket);
        if is_http2 {
            fields.insert("typed_extension_protocol_options".to_owned(), speaks_http2());
        }
    }
    cluster
}

fn router() -> Value {
    json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": ROUTER } })
}
