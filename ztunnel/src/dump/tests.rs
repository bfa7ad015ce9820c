//! The configuration dump in the shape that its readers parse.

use std::sync::Arc;

use ambit_model::{
    address::{NetworkAddress, NetworkRange},
    authz::{AccountMatch, Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    gateway::{GatewayAddress, GatewayDestination, WeightedWaypoint},
    identity::Identity,
    name::{PolicyKey, ServiceKey},
    service::{
        HealthPolicy, IpFamilies, LoadBalancing, Mode, PortMap, Scope as Routing, Service, TargetPort,
    },
    snapshot::Update,
    workload::{
        ApplicationProtocol, ApplicationTunnel, Capacity, Health, Locality, Tunnel, Workload, WorkloadType,
    },
};
use ambit_runtime::env::Env;

use ambit_proxy::dump::CertificateShown;

use super::*;
use crate::config::{Config, Files};

fn by_address(ip: &str) -> GatewayAddress {
    let destination = GatewayDestination::Address(NetworkAddress::new("net", ip.parse().unwrap()));
    GatewayAddress { destination, hbone_mtls_port: 15008 }
}

fn by_name(key: ServiceKey) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(key), hbone_mtls_port: 15008 }
}

fn ports(ports: &[(u16, u16)]) -> PortMap {
    ports.iter().map(|(port, target)| (*port, TargetPort::from_number(*target))).collect()
}

/// One of everything that can be shown.
fn mesh() -> Snapshot {
    let web = ServiceKey::new("shop", "web.shop.svc.cluster.local");
    let late = ServiceKey::new("shop", "late.shop.svc.cluster.local");
    let pod = Workload {
        uid: "Kubernetes//Pod/shop/web-1".into(),
        name: "web-1".into(),
        namespace: "shop".into(),
        addresses: ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
        network: "net".into(),
        tunnel: Tunnel::Hbone,
        service_account: "web".into(),
        waypoint: Some(Box::new(by_address("10.96.0.9"))),
        network_gateway: Some(Box::new(by_name(ServiceKey::new("istio-system", "gateway.example")))),
        node: "node-1".into(),
        canonical_name: "web".into(),
        canonical_revision: "v1".into(),
        workload_type: WorkloadType::Deployment,
        workload_name: "web".into(),
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(15088),
        }),
        services: [(web, ports(&[(80, 8080)])), (late, ports(&[(1, 2)]))].into(),
        authorization_policies: [PolicyKey::new("shop", "only-api")].into(),
        cluster: "Kubernetes".into(),
        locality: Locality { region: "r".into(), zone: "z".into(), subzone: "".into() },
        capacity: Capacity(2),
        ..Workload::default()
    };
    let plain = Workload {
        uid: "Kubernetes/networking.istio.io/ServiceEntry/shop/vm".into(),
        name: "vm".into(),
        namespace: "shop".into(),
        hostname: "vm.example".into(),
        health: Health::Unhealthy,
        ..Workload::default()
    };
    let service = Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        vips: [NetworkAddress::new("net", "10.96.0.1".parse().unwrap())].into(),
        ranges: [NetworkRange { network: "net".into(), range: "10.97.0.0/16".parse().unwrap() }].into(),
        ports: ports(&[(80, 8080), (443, 0)]),
        subject_alt_names: ["spiffe://cluster.local/ns/shop/sa/web".into()].into(),
        waypoint: Some(by_name(ServiceKey::new("shop", "gate.shop.svc.cluster.local"))),
        weighted_waypoints: [WeightedWaypoint { destination: by_address("10.96.0.9"), weight: 10 }].into(),
        load_balancing: LoadBalancing {
            routing_preferences: [Routing::Network, Routing::Zone].into(),
            mode: Mode::Failover,
            health_policy: HealthPolicy::AllowAll,
        },
        ip_families: IpFamilies::Dual,
        canonical: true,
        ..Service::default()
    };
    let one = Match {
        namespaces: vec![Text::Exact("shop".into()), Text::Presence],
        not_principals: vec![Text::Prefix("cluster.local/ns/x".into()), Text::Suffix("/sa/y".into())],
        service_accounts: vec![AccountMatch { namespace: "shop".into(), service_account: "api".into() }],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        not_destination_ports: vec![9090],
        ..Match::default()
    };
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
    let only = Policy {
        key: PolicyKey::new("shop", "only-api"),
        scope: Scope::WorkloadSelector,
        content: Content::Rules { action: Action::Allow, rules: rules.clone(), dry_run: false },
    };
    let trial = Policy {
        key: PolicyKey::new("istio-system", "trial"),
        scope: Scope::Global,
        content: Content::Rules { action: Action::Deny, rules: Vec::new(), dry_run: true },
    };
    let broken =
        Policy::undecodable(PolicyKey::new("shop", "broken"), None, "action 7 is not known".to_owned());
    let workloads = [pod, plain].into_iter().map(|one| Update::Workload(Arc::new(one)));
    let policies = [only, trial, broken].into_iter().map(|one| Update::Policy(Arc::new(one)));
    let updates = workloads.chain([Update::Service(Arc::new(service))]).chain(policies);
    Snapshot::empty(None).apply(&[], updates)
}

fn around() -> Around {
    let certificate = CertificateShown {
        pem: "LS0tLS1CRUdJTg==".to_owned(),
        serial_number: "255".to_owned(),
        valid_from: "2026-01-01T00:00:00Z".to_owned(),
        expiration_time: "2026-01-02T00:00:00Z".to_owned(),
    };
    let available = CertificateState {
        identity: Identity::new("cluster.local", "shop", "web"),
        state: "Available".to_owned(),
        cert_chain: vec![certificate.clone()],
        root_certs: vec![certificate],
    };
    let inbound = ConnectionShown {
        src: "10.0.0.2:4000".to_owned(),
        original_dst: None,
        actual_dst: "10.0.0.1:8080".to_owned(),
        protocol: Travels::Tunnel,
    };
    let outbound = ConnectionShown {
        src: "10.0.0.1:5000".to_owned(),
        original_dst: Some("10.96.0.1:80".to_owned()),
        actual_dst: "10.0.0.2:8080".to_owned(),
        protocol: Travels::Plain,
    };
    let pod = PodState {
        state: Listening::Up,
        connections: OpenConnections { inbound: vec![inbound], outbound: vec![outbound] },
        info: PodInfo { name: "web-1".into(), namespace: "shop".into(), service_account: "web".into() },
    };
    Around {
        config: serde_json::json!({ "shown": "elsewhere" }),
        static_config: no_static_config(),
        version: Version {
            version: "0.1.0".to_owned(),
            git_revision: None,
            istio_version: Some("1.30".to_owned()),
        },
        certificates: vec![available],
        pods: BTreeMap::from([(Uid::from("Kubernetes//Pod/shop/web-1"), pod)]),
    }
}

#[test]
fn the_page_is_as_istioctl_reads_it() {
    let page = String::from_utf8(dump(&mesh(), &around()).unwrap()).unwrap();
    insta::assert_snapshot!("config_dump", page);
}

#[test]
fn the_page_of_an_empty_mesh_has_every_key() {
    let around = Around { certificates: Vec::new(), pods: BTreeMap::new(), ..around() };
    let page: Value = serde_json::from_slice(&dump(&Snapshot::empty(None), &around).unwrap()).unwrap();
    let mut keys: Vec<_> = page.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "certificates",
            "config",
            "policies",
            "services",
            "stagedServices",
            "staticConfig",
            "version",
            "workloadState",
            "workloads"
        ]
    );
    assert_eq!(page["workloads"], serde_json::json!([]));
    assert_eq!(page["workloadState"], serde_json::json!({}));
}

#[test]
fn settings_show_what_is_in_force_and_no_secret() {
    struct NoFiles;
    impl Files for NoFiles {
        fn read(&self, _: &std::path::Path) -> std::io::Result<String> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }
    let variables = [
        ("AUTH_TOKEN", "hunter2-token"),
        ("XDS_HEADER_x-key", "hunter2-header"),
        ("XDS_ROOT_CA", "-----BEGIN CERTIFICATE----- hunter2"),
        ("ZTUNNEL_WORKER_THREADS", "2"),
        ("NODE_NAME", "node-1"),
    ];
    let mut env = Env::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let config = Config::read(&mut env, &NoFiles);
    assert_eq!(env.finish(), Ok(()));
    let shown = serde_json::to_string_pretty(&settings(&config)).unwrap();
    assert!(!shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!("settings", shown);
}
