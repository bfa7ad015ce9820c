//! Packets that a pod sends to its DNS proxy: whatever can be said at once is a packet of its own.
#![no_main]

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use ambit_fixtures::mesh::{pod, service};
use ambit_model::snapshot::Update;
use ambit_runtime::metrics::Registry;
use ambit_wire::discovery::{Discovery, Mesh};
use ambit_ztunnel::{
    dns::{Forwarder, ResolvConf, Resolver, Settings, Sockets},
    metrics::{Build, Metrics},
};
use libfuzzer_sys::fuzz_target;
use tokio::net::{TcpSocket, UdpSocket};

/// Nobody is asked.
struct Nowhere;

impl Sockets for Nowhere {
    fn udp(&self, _: SocketAddr) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn tcp(&self, _: SocketAddr) -> io::Result<TcpSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct Proxy {
    resolver: Arc<Resolver<Nowhere>>,
    _registry: Registry,
    _mesh: Discovery,
}

static PROXY: LazyLock<Proxy> = LazyLock::new(|| {
    let (mesh, discovery) = Mesh::new(None);
    let client = Arc::new(pod("shop/client").build());
    let web = service("shop/web.shop.svc.cluster.local").vip("10.96.0.1").vip("fd96::1").build();
    let any = service("shop/*.example.com").vip("10.96.0.2").build();
    let services = [web, any].map(|one| Update::Service(Arc::new(one)));
    discovery.writer().apply(&[], [Update::Workload(client.clone())].into_iter().chain(services));
    let mut registry = Registry::new();
    let metrics = Metrics::register(&mut registry, &Build { tag: "fuzz".to_owned() }, Arc::default());
    let settings =
        Settings { cluster_domain: "cluster.local".to_owned(), preferred_namespace: None, ipv6: true };
    let forwarder = Forwarder::new(Nowhere, Arc::new(ResolvConf::parse("")));
    let find = move |mesh: &ambit_model::snapshot::Snapshot| mesh.workload(&client.uid).cloned();
    let resolver = Resolver::new(mesh, settings, find, forwarder, metrics, 1);
    Proxy { resolver, _registry: registry, _mesh: discovery }
});

fuzz_target!(|packet: &[u8]| {
    let Some(reply) = PROXY.resolver.at_once(packet) else { return };
    // A reply, never another question: two proxies must not talk to each other for ever.
    assert!(reply.len() >= 12 && reply.len() <= usize::from(u16::MAX), "{} bytes", reply.len());
    assert!(reply[2] & 0x80 != 0, "{reply:?}");
    assert_eq!(reply[..2], packet[..2]);
});
