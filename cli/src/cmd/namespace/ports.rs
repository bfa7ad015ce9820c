//! What pods and services say of their ports: which collide with the mesh's, and on which the server speaks first. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Probe, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Ports that the tunnel opens in every pod of the mesh: nobody else can.
const IN_PODS: [(i32, &str); 4] = [
    (15001, "outgoing connections are captured there"),
    (15006, "incoming plain text is captured there"),
    (15008, "tunnels listen there"),
    (15053, "DNS is captured there"),
];
/// Ports of the tunnel's own pod. Others may use them; tools that look for a tunnel there are misled.
const OF_TUNNELS: [(i32, &str); 3] =
    [(15000, "a tunnel's admin page"), (15020, "a tunnel's metrics"), (15021, "a tunnel's readiness")];

/// Well-known protocols whose servers speak before their clients do.
const SERVER_FIRST: [(&str, &[i32]); 9] = [
    ("ftp", &[21]),
    ("imap", &[143]),
    ("mysql", &[3306]),
    ("nntp", &[119]),
    ("pop3", &[110]),
    ("smtp", &[25, 587, 2525]),
    ("ssh", &[22]),
    ("telnet", &[23]),
    ("vnc", &[5900]),
];

/// A port that is taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Collision {
    /// Whose, `pod web-1, container app`.
    pub(super) whose: String,
    /// The port.
    pub(super) port: i32,
    /// What the mesh has there.
    pub(super) taken_by: &'static str,
    /// Whether it cannot work.
    pub(super) breaks: bool,
}

/// Ports of these pods and services that are the mesh's too. Replicas are told of once, by the first.
pub(super) fn collisions(pods: &[&Pod], services: &[Service]) -> Vec<Collision> {
    let mut found: BTreeMap<(String, i32), Collision> = BTreeMap::new();
    let mut see = |group: String, whose: String, port: i32| {
        let of =
            |list: &[(i32, &'static str)]| list.iter().find(|(one, _)| *one == port).map(|(_, what)| *what);
        let (taken_by, breaks) = match (of(&IN_PODS), of(&OF_TUNNELS)) {
            (Some(what), _) => (what, true),
            (None, Some(what)) => (what, false),
            (None, None) => return,
        };
        found.entry((group, port)).or_insert(Collision { whose, port, taken_by, breaks });
    };
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let owner = owner(pod).unwrap_or_else(|| name.to_owned());
        for container in containers(pod) {
            for port in container.ports.iter().flatten() {
                let whose = format!("pod {name}, container {}", container.name);
                see(format!("{owner}/{}", container.name), whose, port.container_port);
            }
        }
    }
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
            let target = match &port.target_port {
                Some(IntOrString::Int(target)) => *target,
                Some(IntOrString::String(_)) => continue,
                None => port.port,
            };
            see(format!("service {name}"), format!("service {name}, port {}", port.port), target);
        }
    }
    found.into_values().collect()
}

/// `mysql at service db, port 3306`: each port on which the server speaks first.
pub(super) fn server_first(services: &[Service]) -> Vec<String> {
    let mut found = Vec::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
            if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
                continue;
            }
            if let Some(protocol) =
                speaks_first(port.app_protocol.as_deref(), port.name.as_deref(), port.port)
            {
                found.push(format!("{protocol} at service {name}, port {}", port.port));
            }
        }
    }
    found.sort();
    found
}

/// What is said of a port counts before its number.
fn speaks_first(app_protocol: Option<&str>, name: Option<&str>, port: i32) -> Option<&'static str> {
    let known = || SERVER_FIRST.iter().map(|(word, _)| *word);
    // `mysql57` is mysql; `smtps` is not smtp.
    let is =
        |said: &str, word: &str| said == word || said.trim_end_matches(|c: char| c.is_ascii_digit()) == word;
    let by_word = |text: &str| {
        let text = text.to_ascii_lowercase();
        text.split(['-', '.', '/', '_']).find_map(|said| known().find(|word| is(said, word)))
    };
    if let Some(said) = app_protocol {
        return by_word(said);
    }
    if let Some(found) = name.and_then(by_word) {
        return Some(found);
    }
    // A name that says another protocol is believed.
    let other = name.is_some_and(|name| {
        ["http", "https", "grpc", "tls", "http2"].contains(&name.split('-').next().unwrap_or_default())
    });
    let by_number = SERVER_FIRST.iter().find(|(_, ports)| ports.contains(&port)).map(|(word, _)| *word);
    by_number.filter(|_| !other)
}

/// How many probes of each kind the pods have: `2 http, 1 exec`.
pub(super) fn probes(pods: &[&Pod]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for container in pods.iter().flat_map(|pod| containers(pod)) {
        for probe in [&container.liveness_probe, &container.readiness_probe, &container.startup_probe] {
            if let Some(kind) = probe.as_ref().and_then(kind) {
                *counts.entry(kind).or_default() += 1;
            }
        }
    }
    counts
}

fn kind(probe: &Probe) -> Option<&'static str> {
    let kinds = [
        (probe.http_get.is_some(), "http"),
        (probe.tcp_socket.is_some(), "tcp"),
        (probe.grpc.is_some(), "grpc"),
        (probe.exec.is_some(), "exec"),
    ];
    kinds.into_iter().find(|(is, _)| *is).map(|(_, word)| word)
}

/// All containers, init containers' included: those that go on running listen too.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

/// What made the pod.
fn owner(pod: &Pod) -> Option<String> {
    pod.metadata.owner_references.as_ref()?.first().map(|owner| format!("{} {}", owner.kind, owner.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_speaks_first_is_known_by_what_is_said_and_else_by_the_number() {
        for (app_protocol, name, port, expected) in [
            (None, None, 3306, Some("mysql")),
            (None, Some("db"), 3306, Some("mysql")),
            (None, Some("mysql"), 13306, Some("mysql")),
            (None, Some("tcp-mysql"), 1, Some("mysql")),
            (None, Some("mysql57"), 1, Some("mysql")),
            (None, Some("smtps"), 465, None),
            (Some("mysql"), Some("db"), 1, Some("mysql")),
            (Some("example.com/ssh"), None, 1, Some("ssh")),
            (Some("http"), Some("mysql"), 3306, None),
            (None, Some("http-odd"), 25, None),
            (None, Some("web"), 80, None),
            (None, None, 5432, None),
        ] {
            assert_eq!(speaks_first(app_protocol, name, port), expected, "{app_protocol:?} {name:?} {port}");
        }
    }

    fn pod(name: &str, port: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name, "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u" }] },
            "spec": { "containers": [{ "name": "app", "ports": [{ "containerPort": port }],
                "livenessProbe": { "httpGet": { "port": 80 } }, "readinessProbe": { "tcpSocket": { "port": 80 } } }] },
        }))
        .unwrap()
    }

    #[test]
    fn replicas_collide_once() {
        let (a, b, c) = (pod("a", 15006), pod("b", 15006), pod("c", 8080));
        let found = collisions(&[&a, &b, &c], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].whose.as_str(), found[0].breaks), ("pod a, container app", true));
    }

    #[test]
    fn a_service_collides_by_where_it_leads() {
        let service = |port: serde_json::Value| -> Service {
            serde_json::from_value(json!({ "metadata": { "name": "s" }, "spec": { "ports": [port] } }))
                .unwrap()
        };
        for (port, expected) in [
            (json!({ "port": 80, "targetPort": 15001 }), Some(true)),
            (json!({ "port": 15021 }), Some(false)),
            (json!({ "port": 15001, "targetPort": 80 }), None),
            (json!({ "port": 15001, "targetPort": "http" }), None),
        ] {
            let found = collisions(&[], &[service(port.clone())]);
            assert_eq!(found.first().map(|one| one.breaks), expected, "{port}");
        }
    }

    #[test]
    fn probes_are_counted_by_kind() {
        let (a, b) = (pod("a", 1), pod("b", 2));
        assert_eq!(probes(&[&a, &b]), BTreeMap::from([("http", 2), ("tcp", 2)]));
    }
}
