//! A cluster from YAML, and what the mesh knows of it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]
#![allow(dead_code, unused_macros, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "each test binary includes this file as a module of its own")]

use std::path::Path;

use ambit_api::directory::read_text;
use ambit_controller::cluster::object::{EntryAddress, Key, Kind, Name, Object, Parsed, parse};
use ambit_controller::cluster::{Cluster, Settings};
use ambit_controller::impact::everything;
use ambit_controller::source::Event;
use ambit_controller::translate::{Output, PolicySource, Translated, WorkloadSource, status, translate};
use ambit_model::authz::{Facts, Policy, Scope, Verdict, check};
use ambit_model::identity::Identity;
use ambit_model::name::ServiceKey;
use ambit_model::service::Service;
use ambit_model::service_config::ServiceConfig;
use ambit_model::workload::Workload;

/// A waypoint, as services know it.
pub const GATE: &str = "shop/gate";

/// Namespace `shop`, whose services use the waypoint `gate`, which is there; more documents may follow. With what else the
/// Gateway's metadata says.
macro_rules! shop_at_gate {
    () => {
        shop_at_gate!("")
    };
    ($more:literal) => {
        concat!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: gate}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop",
            $more,
            "}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.5.0.1}]}
---
"
        )
    };
}

/// What a page of the documentation holds in its fences of YAML, in its order.
pub fn fenced(page: &str) -> Vec<&str> {
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The objects of a YAML text, all of which must be understood.
pub fn objects(yaml: &str) -> Vec<Object> {
    let loaded = read_text(Path::new("test.yaml"), yaml);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let understood = |document| match parse(document) {
        Parsed::Object(object) => object,
        other @ (Parsed::Unknown | Parsed::Bad { .. }) => panic!("{other:?}"),
    };
    loaded.objects.iter().map(understood).collect()
}

/// What the door says of the first document of a YAML text.
pub fn at_the_door(yaml: &str) -> Parsed {
    parse(read_text(Path::new("test.yaml"), yaml).objects.first().unwrap())
}

pub fn cluster(yaml: &str) -> Cluster {
    cluster_with(Settings::default(), yaml)
}

pub fn cluster_with(settings: Settings, yaml: &str) -> Cluster {
    of_objects(settings, objects(yaml))
}

pub fn of_objects(settings: Settings, objects: Vec<Object>) -> Cluster {
    let mut cluster = Cluster::new(settings);
    for object in objects {
        cluster.apply(Event::Upsert(object));
    }
    cluster.settle();
    cluster
}

pub fn pod(cluster: &Cluster, namespace: &str, name: &str) -> Option<Workload> {
    workload(cluster, WorkloadSource::Pod(Name::new(namespace, name)))
}

pub fn entry(cluster: &Cluster, namespace: &str, name: &str) -> Option<Workload> {
    workload(cluster, WorkloadSource::Entry(Name::new(namespace, name)))
}

pub fn inline(cluster: &Cluster, namespace: &str, name: &str, address: &str) -> Option<Workload> {
    let address = match address.parse() {
        Ok(ip) => EntryAddress::Ip(ip),
        Err(_) => EntryAddress::Host(address.into()),
    };
    workload(cluster, WorkloadSource::Inline { entry: Name::new(namespace, name), address })
}

pub fn workload(cluster: &Cluster, source: WorkloadSource) -> Option<Workload> {
    match translate(cluster, &Output::Workload(source))? {
        Translated::Workload(workload) => Some(workload),
        other @ (Translated::Service(_) | Translated::Policy(_) | Translated::ServiceConfig { .. }) => {
            panic!("{other:?}")
        }
    }
}

/// `namespace/hostname`.
pub fn service(cluster: &Cluster, key: &str) -> Option<Service> {
    match translate(cluster, &Output::Service(ServiceKey::parse(key).unwrap()))? {
        Translated::Service(service) => Some(service),
        other @ (Translated::Workload(_) | Translated::Policy(_) | Translated::ServiceConfig { .. }) => {
            panic!("{other:?}")
        }
    }
}

/// What a waypoint, `namespace/name`, knows of a service, `namespace/hostname`.
pub fn config(cluster: &Cluster, gateway: &str, service: &str) -> Option<ServiceConfig> {
    let (namespace, name) = gateway.split_once('/').unwrap();
    let gateway = Name::new(namespace, name);
    match translate(
        cluster,
        &Output::ServiceConfig { gateway, service: ServiceKey::parse(service).unwrap() },
    )? {
        Translated::ServiceConfig { config, .. } => Some(config),
        other @ (Translated::Workload(_) | Translated::Service(_) | Translated::Policy(_)) => {
            panic!("{other:?}")
        }
    }
}

pub fn policy(cluster: &Cluster, source: PolicySource) -> Option<Policy> {
    match translate(cluster, &Output::Policy(source))? {
        Translated::Policy(policy) => Some(policy),
        other @ (Translated::Workload(_) | Translated::Service(_) | Translated::ServiceConfig { .. }) => {
            panic!("{other:?}")
        }
    }
}

pub fn authorization(cluster: &Cluster, namespace: &str, name: &str) -> Option<Policy> {
    policy(cluster, PolicySource::Authorization(Name::new(namespace, name)))
}

/// Every policy that is sent.
pub fn policies(cluster: &Cluster) -> Vec<Policy> {
    let all = everything(cluster).into_iter().filter_map(|output| match output {
        Output::Policy(source) => policy(cluster, source),
        Output::Workload(_) | Output::Service(_) | Output::ServiceConfig { .. } => None,
    });
    all.collect()
}

/// What a tunnel decides of a connection to `to:port`, as it finds its policies (protocols 6.1).
pub fn verdict(cluster: &Cluster, to: &Workload, port: u16, from: Option<&str>) -> Verdict {
    verdict_from(cluster, to, port, from, "10.9.9.9")
}

pub fn verdict_from(cluster: &Cluster, to: &Workload, port: u16, from: Option<&str>, ip: &str) -> Verdict {
    let peer = from.map(|text| text.parse::<Identity>().unwrap());
    let facts = Facts {
        peer: peer.as_ref(),
        source: ip.parse().unwrap(),
        destination: (*to.addresses.first().unwrap(), port).into(),
        seen: None,
    };
    let all = policies(cluster);
    let applies = |policy: &&Policy| match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.key.namespace == to.namespace,
        Scope::WorkloadSelector => to.authorization_policies.contains(&policy.key),
    };
    check(all.iter().filter(applies), &facts)
}

/// `type=status reason` of each condition of an object.
pub fn conditions(cluster: &Cluster, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
    let key = Key { kind, name: Name::new(namespace, name) };
    let one = |condition: &status::Condition| {
        format!("{}={} {}", condition.kind, condition.status, condition.reason)
    };
    status::of(cluster, &key).iter().map(one).collect()
}

/// A running pod that is captured.
pub fn pod_yaml(namespace: &str, name: &str, ip: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: u-{name}\n  \
         labels: {{{labels}}}\n  annotations: {{ambient.istio.io/redirection: enabled}}\n\
         spec:\n  nodeName: n1\n  serviceAccountName: {name}\n  containers:\n  - name: a\n    ports: \
         [{{name: http, containerPort: 8080}}]\nstatus:\n  phase: Running\n  podIP: {ip}\n  \
         conditions: [{{type: Ready, status: \"True\"}}]\n---\n"
    )
}
