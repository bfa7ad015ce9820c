//! What each environment variable sets, and which values are refused.

use std::{collections::HashMap, io, net::SocketAddr, path::Path};

use ambit_proxy::config::MESH_FILE;
use ambit_runtime::env::EnvErrors;
use ambit_wire::{
    channel::{RootSource, TokenSource},
    tls::{Compliance, Versions},
};

use super::*;

/// Files that exist in a test.
#[derive(Default)]
struct Given(HashMap<&'static str, &'static str>);

impl Files for Given {
    fn read(&self, path: &Path) -> io::Result<String> {
        let text = path.to_str().and_then(|path| self.0.get(path));
        text.map(|text| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn read_with(files: &Given, variables: &[(&str, &str)]) -> (Config, Result<(), EnvErrors>) {
    let own = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let mut env = Env::new(own);
    let config = Config::read(&mut env, files);
    (config, env.finish())
}

fn read(variables: &[(&str, &str)]) -> Config {
    let (config, mistakes) = read_with(&Given::default(), variables);
    assert_eq!(mistakes, Ok(()), "{variables:?}");
    config
}

/// The names of the variables that are wrong.
fn mistakes(variables: &[(&str, &str)]) -> Vec<String> {
    let (_, mistakes) = read_with(&Given::default(), variables);
    mistakes.map_or_else(|errors| errors.names().map(str::to_owned).collect(), |()| Vec::new())
}

#[test]
fn nothing_set_gives_istios_defaults() {
    let config = read(&[]);
    let Some(xds) = &config.xds.channel else { panic!("no control plane") };
    assert_eq!(xds.address, "https://localhost:15012");
    assert_eq!(xds.roots, RootSource::File("./var/run/secrets/istio/root-cert.pem".into()));
    assert_eq!(xds.token, TokenSource::None);
    assert_eq!((xds.cluster_id.as_str(), &xds.alt_hostname, xds.headers.len()), ("Kubernetes", &None, 0));
    let Authority::Remote(ca) = &config.ca.authority else { panic!("{:?}", config.ca) };
    assert_eq!(ca.address, "https://localhost:15012");
    assert_eq!(config.ca.ttl, Duration::from_secs(86_400));
    let shared = InPod { agent: "/var/run/ztunnel/ztunnel.sock".into(), port_reuse: true, mark: 1337 };
    assert_eq!(config.mode, Mode::Shared(shared));
    assert_eq!(config.own.cluster_domain, "cluster.local");
    assert!(config.own.node.is_none() && config.own.identity.is_none() && config.own.network.is_empty());
    assert_eq!(config.hbone.stream_window, 4 << 20);
    assert_eq!(config.hbone.connection_window, 16 << 20);
    assert_eq!(config.hbone.frame_size, 1 << 20);
    assert_eq!(config.hbone.max_streams, 100);
    assert_eq!(config.hbone.idle_release, Duration::from_secs(300));
    let minutes = Duration::from_secs(180);
    let keepalive = Keepalive { time: minutes, interval: minutes, retries: 9, user_timeout: false };
    assert_eq!(config.keepalive, Some(keepalive));
    let dns = config.dns.as_ref().expect("on by default");
    assert_eq!(dns.listen, DnsListen::Localhost(15053));
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.same_node, SameNode::Direct);
    assert_eq!(config.original_source, None);
    assert!(config.proxy && config.ipv6 && config.response_baggage && config.localhost_app_tunnel);
    assert!(!config.xds.on_demand && config.xds.local.is_none() && config.tls.crl.is_none());
    let logging = Logging { level: "info".to_owned(), format: LogFormat::Text, authorization: false };
    assert_eq!(config.logging, logging);
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let pages =
        Pages { admin: at("127.0.0.1:15000"), metrics: at("[::]:15020"), readiness: at("[::]:15021") };
    assert_eq!(config.pages, pages);
    assert_eq!(config.ports.own(), [15001, 15006, 15008]);
}

#[test]
fn the_address_of_the_control_plane_is_found_in_order() {
    let mesh = Given(HashMap::from([(MESH_FILE, "defaultConfig: {discoveryAddress: 'mesh:15012'}")]));
    let none = Given::default();
    let in_cluster = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    let own = ("PROXY_CONFIG", "discoveryAddress: own:15012");
    let cases = [
        (&none, &[in_cluster][..], Some("https://istiod.istio-system.svc:15012")),
        (&mesh, &[in_cluster], Some("https://mesh:15012")),
        (&mesh, &[in_cluster, own], Some("https://own:15012")),
        (&mesh, &[own, ("XDS_ADDRESS", "env:1")], Some("https://env:1")),
        (&none, &[("XDS_ADDRESS", "http://plain:1")], Some("http://plain:1")),
        (&none, &[("XDS_ADDRESS", "https://[fd00::1]:15012")], Some("https://[fd00::1]:15012")),
        (&mesh, &[("XDS_ADDRESS", "")], None),
    ];
    for (files, variables, expected) in cases {
        let (config, mistakes) = read_with(files, variables);
        assert_eq!(mistakes, Ok(()));
        assert_eq!(config.xds.channel.map(|xds| xds.address).as_deref(), expected, "{variables:?}");
    }
    // The CA's address does not follow the mesh's.
    let (config, _) = read_with(&mesh, &[in_cluster]);
    let Authority::Remote(ca) = config.ca.authority else { panic!() };
    assert_eq!(ca.address, "https://istiod.istio-system.svc:15012");
}

#[test]
fn the_node_tells_the_control_plane_who_it_is() {
    let mesh = Given(HashMap::from([(
        MESH_FILE,
        "defaultConfig: {proxyMetadata: {ISTIO_VERSION: mesh, ONLY_MESH: m, DNS_CAPTURE: 'true'}}",
    )]));
    let (config, mistakes) = read_with(
        &mesh,
        &[
            ("POD_NAME", "ztunnel-x"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.1.2.3"),
            ("NODE_NAME", "node-1"),
            ("SERVICE_ACCOUNT", "ztunnel"),
            ("NETWORK", "net-1"),
            ("CLUSTER_ID", "c1"),
            ("ISTIO_META_CLUSTER_ID", "c2"),
            ("ISTIO_META_ISTIO_VERSION", "1.30.0"),
            ("ISTIO_METAJSON_LABELS", r#"{"a":["b"]}"#),
        ],
    );
    assert_eq!(mistakes, Ok(()));
    let own = &config.own;
    assert_eq!(own.info.id(), "ztunnel~10.1.2.3~ztunnel-x.istio-system~istio-system.svc.cluster.local");
    let metadata = serde_json::to_value(&own.info.metadata).unwrap();
    let expected = serde_json::json!({
        "ISTIO_VERSION": "1.30.0", "ONLY_MESH": "m", "CLUSTER_ID": "c2", "LABELS": {"a": ["b"]}, "DNS_CAPTURE": "true",
    });
    assert_eq!(metadata, expected);
    assert_eq!(own.node.as_ref().map(|node| node.as_str()), Some("node-1"));
    assert_eq!(own.ip, "10.1.2.3".parse().ok());
    assert_eq!(own.identity, Some(Identity::new("cluster.local", "istio-system", "ztunnel")));
    assert_eq!((own.cluster.as_str(), own.network.as_str()), ("c2", "net-1"));
    assert_eq!(config.istio_version.as_deref(), Some("1.30.0"));
    assert_eq!(config.xds.channel.unwrap().cluster_id, "c2");
    assert!(config.dns.is_some());
}

#[test]
fn tokens_roots_and_headers_are_read_by_their_rules() {
    let token = Given(HashMap::from([("./var/run/secrets/tokens/istio-token", "t")]));
    let xds = |files: &Given, variables: &[(&str, &str)]| {
        let (config, mistakes) = read_with(files, variables);
        assert_eq!(mistakes, Ok(()));
        config.xds.channel.expect("a control plane")
    };
    let default = TokenSource::File("./var/run/secrets/tokens/istio-token".into());
    assert_eq!(xds(&token, &[]).token, default);
    let literal = xds(&token, &[("AUTH_TOKEN", "eyJ.a.b")]).token;
    assert_eq!(literal, TokenSource::Literal("eyJ.a.b".to_owned()));
    assert_eq!(xds(&token, &[("XDS_ROOT_CA", "SYSTEM")]).roots, RootSource::System);
    let found = xds(
        &token,
        &[("XDS_HEADER_X-Team", "mesh"), ("CA_HEADER_x-ca", "1"), ("ALT_XDS_HOSTNAME", "istiod.test")],
    );
    assert_eq!(found.headers, [("x-team".to_owned(), "mesh".to_owned())]);
    assert_eq!(found.alt_hostname.as_deref(), Some("istiod.test"));
}

#[test]
fn the_dns_proxy_is_switched_by_metadata() {
    let listen = |variables: &[(&str, &str)]| read(variables).dns.map(|dns| dns.listen);
    assert_eq!(listen(&[("ISTIO_META_DNS_CAPTURE", "TRUE")]), Some(DnsListen::Localhost(15053)));
    assert_eq!(listen(&[("ISTIO_META_DNS_CAPTURE", "false")]), None);
    assert_eq!(listen(&[("ISTIO_META_DNS_CAPTURE", "")]), None);
    assert_eq!(listen(&[("ISTIO_META_DNS_PROXY_ADDR", "localhost:53")]), Some(DnsListen::Localhost(53)));
    let at = DnsListen::At("127.0.0.9:5353".parse().unwrap());
    assert_eq!(listen(&[("ISTIO_META_DNS_PROXY_ADDR", "127.0.0.9:5353")]), Some(at));
    let preferred = read(&[("PREFERED_SERVICE_NAMESPACE", "shared")]).dns.unwrap().preferred_namespace;
    assert_eq!(preferred, Some(Namespace::from("shared")));
}

#[test]
fn a_dedicated_tunnel_serves_one_pod() {
    let config = read(&[
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "shop/web-1/web"),
        ("TRUST_DOMAIN", "td"),
    ]);
    let pod = Pod { namespace: "shop".into(), name: "web-1".into(), service_account: "web".into() };
    assert_eq!(config.mode, Mode::Dedicated(pod));
    let config = read(&[
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "shop/web-1/web"),
        ("TRUST_DOMAIN", "td"),
        ("POD_NAMESPACE", "shop"),
        ("SERVICE_ACCOUNT", "web"),
    ]);
    assert_eq!(config.dedicated_identity(), Some(Identity::new("td", "shop", "web")));
    assert_eq!(mistakes(&[("PROXY_MODE", "dedicated")]), ["PROXY_WORKLOAD_INFO"]);
    for wrong in ["shop/web-1", "shop//web", "a/b/c/d"] {
        assert_eq!(
            mistakes(&[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", wrong)]),
            ["PROXY_WORKLOAD_INFO"]
        );
    }
}

#[test]
fn the_drain_deadline_leaves_time_for_a_clean_end() {
    let drain = |variables: &[(&str, &str)]| read(variables).drain.as_secs();
    let grace = |seconds: &'static str| drain(&[("TERMINATION_GRACE_PERIOD_SECONDS", seconds)]);
    for (seconds, expected) in [("0", 1), ("1", 1), ("2", 1), ("10", 9), ("11", 6), ("30", 25)] {
        assert_eq!(grace(seconds), expected, "{seconds}");
    }
    let explicit = ("CONNECTION_TERMINATION_DEADLINE", "42s");
    assert_eq!(drain(&[("TERMINATION_GRACE_PERIOD_SECONDS", "30"), explicit]), 42);
}

#[test]
fn threads_follow_the_setting_then_the_mesh_then_the_limit() {
    let threads = |variables: &[(&str, &str)]| read(variables).threads.get();
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "3"), ("PROXY_CONFIG", "concurrency: 7")]), 3);
    assert_eq!(threads(&[("PROXY_CONFIG", "concurrency: 7"), ("ZTUNNEL_CPU_LIMIT", "4")]), 7);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "4")]), 4);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "1500m")]), 2);
    assert_eq!(
        threads(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "9")]).max(9),
        threads(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "9")])
    );
}

#[test]
fn what_istio_can_switch_is_switched() {
    let config = read(&[
        ("FAKE_CA", "true"),
        ("XDS_ADDRESS", ""),
        ("LOCAL_XDS_PATH", "/x.yaml"),
        ("KEEPALIVE_ENABLED", "false"),
        ("ENABLE_ORIG_SRC", "false"),
        ("IPV6_ENABLED", "false"),
        ("ENABLE_RESPONSE_BAGGAGE", "false"),
        ("LOCALHOST_APP_TUNNEL", "false"),
        ("INPOD_UDS", "/tmp/z.sock"),
        ("INPOD_PORT_REUSE", "false"),
        ("PACKET_MARK", "7"),
        ("CRL_PATH", "/crl.pem"),
        ("COMPLIANCE_POLICY", "pqc"),
        ("TLS12_ENABLED", "true"),
        ("LOG_FORMAT", "json"),
        ("RUST_LOG", "debug"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true"),
        ("SAME_NODE", "hbone"),
        ("SECRET_TTL", "1h"),
        ("HTTP2_FRAME_SIZE", "65536"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "7"),
        ("AMBIT_MAX_CONNECTIONS_PER_POD", "10"),
        ("AMBIT_HANDSHAKE_TIMEOUT", "2s"),
        ("PROXY_CONFIG", "{proxyAdminPort: 16000, statusPort: 16020}"),
    ]);
    assert!(matches!(config.ca.authority, Authority::Fake));
    assert_eq!(config.ca.ttl, Duration::from_secs(3600));
    assert!(config.xds.channel.is_none() && config.keepalive.is_none());
    assert_eq!(config.xds.local, Some(LocalXds::File("/x.yaml".into())));
    assert_eq!(config.original_source, Some(false));
    assert!(!config.ipv6 && !config.response_baggage && !config.localhost_app_tunnel);
    assert_eq!(config.mode, Mode::Shared(InPod { agent: "/tmp/z.sock".into(), port_reuse: false, mark: 7 }));
    assert_eq!(config.tls.crl, Some("/crl.pem".into()));
    assert_eq!((config.tls.compliance, config.tls.versions), (Compliance::PostQuantum, Versions::Tls12And13));
    assert_eq!(
        config.logging,
        Logging { level: "debug".to_owned(), format: LogFormat::Json, authorization: true }
    );
    assert_eq!(config.same_node, SameNode::Hbone);
    assert_eq!((config.hbone.frame_size, config.hbone.max_streams), (65_536, 7));
    assert_eq!(config.limits.connections_per_pod, 10);
    assert_eq!(config.limits.handshake, Duration::from_secs(2));
    let pages = (config.pages.admin.to_string(), config.pages.metrics.to_string());
    assert_eq!(pages, ("127.0.0.1:16000".to_owned(), "0.0.0.0:16020".to_owned()));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let cases: [(&[(&str, &str)], &str); 18] = [
        (&[("XDS_ON_DEMAND", "true")], "XDS_ON_DEMAND"),
        (&[("LOCAL_XDS", "x"), ("LOCAL_XDS_PATH", "y")], "LOCAL_XDS"),
        (&[("CA_ADDRESS", "")], "CA_ADDRESS"),
        (&[("XDS_ADDRESS", "ftp://x:1")], "XDS_ADDRESS"),
        (&[("CA_ADDRESS", "https://")], "CA_ADDRESS"),
        (&[("ENABLE_PROXY", "false"), ("ISTIO_META_DNS_CAPTURE", "false")], "ENABLE_PROXY"),
        (&[("PROXY_MODE", "both")], "PROXY_MODE"),
        (&[("PROXY_CONFIG", "statusPort: x")], "PROXY_CONFIG"),
        (&[("ISTIO_METAJSON_X", "{")], "ISTIO_METAJSON_X"),
        (&[("ISTIO_META_DNS_PROXY_ADDR", "here")], "ISTIO_META_DNS_PROXY_ADDR"),
        (&[("XDS_HEADER_a b", "v")], "XDS_HEADER_a b"),
        (&[("INSTANCE_IP", "ten")], "INSTANCE_IP"),
        (&[("HTTP2_FRAME_SIZE", "100")], "HTTP2_FRAME_SIZE"),
        (&[("HTTP2_STREAM_WINDOW_SIZE", "4294967295")], "HTTP2_STREAM_WINDOW_SIZE"),
        (&[("COMPLIANCE_POLICY", "rot13")], "COMPLIANCE_POLICY"),
        (&[("SAME_NODE", "maybe")], "SAME_NODE"),
        (&[("AMBIT_MAX_HANDSHAKES_PER_POD", "0")], "AMBIT_MAX_HANDSHAKES_PER_POD"),
        (&[("ZTUNNEL_WORKER_THREADS", "many")], "ZTUNNEL_WORKER_THREADS"),
    ];
    for (variables, expected) in cases {
        assert_eq!(mistakes(variables), [expected], "{variables:?}");
    }
    let on_demand = [("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")];
    assert!(read(&on_demand).xds.on_demand);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let wrong =
        [("PACKET_MARK", "x"), ("SECRET_TTL", "soon"), ("LOG_FORMAT", "xml"), ("IPV6_ENABLED", "perhaps")];
    let mut names = mistakes(&wrong);
    names.sort();
    assert_eq!(names, ["IPV6_ENABLED", "LOG_FORMAT", "PACKET_MARK", "SECRET_TTL"]);
}
