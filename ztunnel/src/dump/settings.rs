//! The operator's decisions as they are in force, without what is secret.

use ambit_wire::{
    channel::{ChannelSettings, RootSource, TokenSource},
    tls::{Compliance, Versions},
};
use serde_json::{Value, json};

use crate::config::{Authority, Config, DnsListen, LocalXds, LogFormat, Mode, SameNode};

/// The configuration in force, for the page.
pub fn settings(config: &Config) -> Value {
    let own = &config.own;
    let hbone = &config.hbone;
    json!({
        "node": own.info.id(),
        "localNode": own.node,
        "localIp": own.ip,
        "identity": own.identity,
        "clusterId": own.cluster,
        "clusterDomain": own.cluster_domain,
        "network": own.network,
        "proxyMetadata": own.info.metadata,
        "proxy": config.proxy,
        "proxyMode": mode(&config.mode),
        "xds": {
            "channel": config.xds.channel.as_ref().map(channel),
            "onDemand": config.xds.on_demand,
            "local": config.xds.local.as_ref().map(|local| match local {
                LocalXds::File(path) => json!({ "file": path }),
                LocalXds::Inline(_) => json!("inline"),
            }),
        },
        "ca": match &config.ca.authority {
            Authority::Remote(settings) => channel(settings),
            Authority::Fake => json!("fake"),
        },
        "secretTtl": seconds(config.ca.ttl),
        "compliancePolicy": match config.tls.compliance {
            Compliance::None => None,
            Compliance::PostQuantum => Some("pqc"),
            Compliance::Fips140_2 => Some("fips-140-2"),
        },
        "tls12": match config.tls.versions {
            Versions::Tls13 => false,
            Versions::Tls12And13 => true,
        },
        "crlPath": config.tls.crl,
        "windowSize": hbone.stream_window,
        "connectionWindowSize": hbone.connection_window,
        "frameSize": hbone.frame_size,
        "poolMaxStreamsPerConn": hbone.max_streams,
        "poolUnusedReleaseTimeout": seconds(hbone.idle_release),
        "keepalive": config.keepalive.map(|keepalive| json!({
            "time": seconds(keepalive.time),
            "interval": seconds(keepalive.interval),
            "retries": keepalive.retries,
            "userTimeout": keepalive.user_timeout,
        })),
        "limits": {
            "connectionsPerPod": config.limits.connections_per_pod,
            "handshakesPerPod": config.limits.handshakes_per_pod,
            "dnsQueriesPerPod": config.limits.dns_queries_per_pod,
            "handshakeTimeout": seconds(config.limits.handshake),
            "connectTimeout": seconds(config.limits.connect),
        },
        "dns": config.dns.as_ref().map(|dns| json!({
            "listen": match dns.listen {
                DnsListen::Localhost(port) => format!("localhost:{port}"),
                DnsListen::At(address) => address.to_string(),
            },
            "preferredServiceNamespace": dns.preferred_namespace,
            "resolvConf": dns.resolv_conf,
        })),
        "adminAddr": config.pages.admin,
        "statsAddr": config.pages.metrics,
        "readinessAddr": config.pages.readiness,
        "sameNode": match config.same_node {
            SameNode::Direct => "direct",
            SameNode::Hbone => "hbone",
        },
        "enableOriginalSource": config.original_source,
        "ipv6Enabled": config.ipv6,
        "enableResponseBaggage": config.response_baggage,
        "localhostAppTunnel": config.localhost_app_tunnel,
        "terminationDeadline": seconds(config.drain),
        "numWorkerThreads": config.threads,
        "logging": {
            "level": config.logging.level,
            "format": match config.logging.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            "authorization": config.logging.authorization,
        },
    })
}

fn mode(mode: &Mode) -> Value {
    match mode {
        Mode::Shared(in_pod) => json!({
            "shared": { "agent": in_pod.agent, "portReuse": in_pod.port_reuse, "packetMark": in_pod.mark },
        }),
        Mode::Dedicated(pod) => json!({
            "dedicated": {
                "namespace": pod.namespace, "name": pod.name, "serviceAccount": pod.service_account,
            },
        }),
    }
}

/// Of tokens and headers only that they are there.
fn channel(settings: &ChannelSettings) -> Value {
    json!({
        "address": settings.address,
        "altHostname": settings.alt_hostname,
        "rootCert": match &settings.roots {
            RootSource::File(path) => json!({ "file": path }),
            RootSource::System => json!("system"),
            RootSource::Pem(_) => json!("inline"),
        },
        "token": match &settings.token {
            TokenSource::File(path) => json!({ "file": path }),
            TokenSource::Literal(_) => json!("inline"),
            TokenSource::None => Value::Null,
        },
        "headers": settings.headers.iter().map(|(name, _)| name).collect::<Vec<_>>(),
    })
}

fn seconds(time: std::time::Duration) -> String {
    format!("{time:?}")
}
