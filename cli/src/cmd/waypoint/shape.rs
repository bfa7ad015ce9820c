//! What a waypoint is as an object, and how it stands by what is known of the mesh. Pure.

use ambit_api::directory::Document;
use ambit_api::gateway::{Gateway as Written, HBONE, HBONE_PORT};
use ambit_api::labels;
use ambit_controller::cluster::object::{Gateway, Key, Kind, Meta, Name, Parsed, TrafficType, parse};
use ambit_controller::cluster::{Cluster, Settings};
use ambit_controller::source::Event;
use ambit_controller::translate::service::{waypoint_of, waypoint_of_entry};
use ambit_controller::translate::waypoint::{self, Binding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

/// For what a waypoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum For {
    /// What is addressed to services.
    Service,
    /// What is addressed to workloads.
    Workload,
    /// Both.
    All,
    /// Neither: nothing goes through it.
    None,
}

impl For {
    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// What a new waypoint is to be.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) class: String,
    pub(super) traffic: Option<For>,
    pub(super) revision: Option<String>,
}

/// The Gateway that asks for it.
pub(super) fn gateway(wish: &Wish) -> Value {
    let labels = [
        (labels::WAYPOINT_FOR, wish.traffic.map(For::word)),
        (labels::REVISION, wish.revision.as_deref().filter(|revision| *revision != "default")),
    ];
    let labels = labels.into_iter().filter_map(|(label, value)| Some((label.to_owned(), json!(value?))));
    let labels: serde_json::Map<_, _> = labels.collect();
    let mut metadata = json!({ "name": wish.name, "namespace": wish.namespace });
    if let (false, Some(metadata)) = (labels.is_empty(), metadata.as_object_mut()) {
        metadata.insert("labels".to_owned(), labels.into());
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata,
        "spec": {
            "gatewayClassName": wish.class,
            "listeners": [{ "name": "mesh", "port": HBONE_PORT, "protocol": HBONE }],
        },
    })
}

/// A waypoint, as it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Standing {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) class: String,
    pub(super) traffic: &'static str,
    pub(super) revision: String,
    pub(super) address: Option<String>,
    pub(super) conditions: Vec<Condition>,
    /// What goes through it.
    pub(super) bound: Vec<String>,
    /// What names it and does not go through it, and why.
    pub(super) refused: Vec<(String, &'static str)>,
    /// Where its label is found: what has to change so that nothing names it any more.
    pub(super) labelled: Vec<Key>,
}

impl Standing {
    /// Whether it is as it should be: `None` if nobody has said yet.
    pub(super) fn programmed(&self) -> Option<bool> {
        self.condition("Programmed").map(|one| one.status == "True")
    }

    pub(super) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|one| one.type_ == kind)
    }

    /// Why it is not as it should be, and what to do.
    pub(super) fn trouble(&self) -> Option<String> {
        let bad = |kind: &str| self.condition(kind).filter(|one| one.status != "True");
        match bad("Accepted").or_else(|| bad("Programmed")) {
            // What the API server writes into a new Gateway, until a controller does.
            Some(one) if one.status == "Unknown" => Some(self.unseen()),
            Some(one) => Some(format!("{}: {}", one.reason, one.message)),
            None if self.programmed().is_none() => Some(self.unseen()),
            None => None,
        }
    }

    fn unseen(&self) -> String {
        format!(
            "no controller has taken it yet; does GatewayClass {} name one that runs (kubectl get gatewayclass), and does the controller make waypoints (waypoint.enabled)?",
            self.class
        )
    }

    pub(super) fn value(&self) -> Value {
        let refused: Vec<_> = self
            .refused
            .iter()
            .map(|(object, reason)| json!({ "object": object, "reason": reason }))
            .collect();
        json!({
            "namespace": self.namespace, "name": self.name, "class": self.class, "for": self.traffic,
            "revision": self.revision, "address": self.address, "programmed": self.programmed(),
            "conditions": self.conditions, "bound": self.bound, "refused": refused,
        })
    }
}

/// Every waypoint among the objects of a mesh, by namespace and name.
pub(super) fn standings(documents: &[Document]) -> Vec<Standing> {
    let mut cluster = Cluster::new(Settings::default());
    for document in documents {
        if let Parsed::Object(object) = parse(document) {
            cluster.apply(Event::Upsert(object));
        }
    }
    cluster.settle();
    let bindings = bindings(&cluster);
    let gateways = cluster.gateways.iter().filter(|(_, gateway)| waypoint::is_waypoint(&cluster, gateway));
    gateways.map(|(name, gateway)| standing(&cluster, documents, &bindings, name, gateway)).collect()
}

fn standing(
    cluster: &Cluster,
    documents: &[Document],
    bindings: &[(Key, Binding)],
    name: &Name,
    gateway: &Gateway,
) -> Standing {
    let is_its = |document: &&Document| {
        document.kind == "Gateway"
            && document.namespace == name.namespace.as_str()
            && document.name == name.name.as_str()
    };
    let written = documents.iter().find(is_its).and_then(|document| document.parse::<Written>().ok());
    let status = written.and_then(|written| written.status).unwrap_or_default();
    let conditions = status.get("conditions").cloned().unwrap_or_default();
    let address = status.pointer("/addresses/0/value").and_then(Value::as_str).map(str::to_owned);
    let mut bound = Vec::new();
    let mut refused = Vec::new();
    for (key, binding) in bindings {
        match binding {
            Binding::Bound(one) if one.gateways().any(|gateway| gateway == name) => {
                bound.push(key.to_string())
            }
            Binding::Refused { gateway, reason } if gateway == name => {
                refused.push((key.to_string(), reason.word()));
            }
            Binding::None | Binding::Bound(_) | Binding::Refused { .. } => {}
        }
    }
    Standing {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        class: gateway.class.to_string(),
        traffic: match waypoint::traffic_of(cluster, gateway) {
            TrafficType::Service => "service",
            TrafficType::Workload => "workload",
            TrafficType::All => "all",
            TrafficType::None => "none",
        },
        revision: gateway.meta.labels.get(labels::REVISION).unwrap_or("default").to_owned(),
        address,
        conditions: serde_json::from_value(conditions).unwrap_or_default(),
        bound,
        refused,
        labelled: labelled(cluster, name),
    }
}

/// What became of the wish of everything that has one.
fn bindings(cluster: &Cluster) -> Vec<(Key, Binding)> {
    let key = |kind, name: &Name| Key { kind, name: name.clone() };
    let services = cluster.services.iter();
    let services = services.map(|(name, one)| (key(Kind::Service, name), waypoint_of(cluster, one)));
    let entries = cluster.service_entries.iter();
    let entries = entries.map(|(name, one)| (key(Kind::ServiceEntry, name), waypoint_of_entry(cluster, one)));
    let of_workload =
        |kind, name: &Name, meta: &Meta| (key(kind, name), waypoint::of_workload(cluster, meta));
    let pods = cluster.pods.iter().map(|(name, one)| of_workload(Kind::Pod, name, &one.meta));
    let others = cluster.workload_entries.iter();
    let others = others.map(|(name, one)| of_workload(Kind::WorkloadEntry, name, &one.meta));
    services.chain(entries).chain(pods).chain(others).filter(|(_, one)| *one != Binding::None).collect()
}

/// The objects that name a gateway in their own label.
fn labelled(cluster: &Cluster, gateway: &Name) -> Vec<Key> {
    let names = |namespace: &str, meta: &Meta| {
        let elsewhere = meta.labels.get(labels::USE_WAYPOINT_NAMESPACE).unwrap_or(namespace);
        meta.labels.get(labels::USE_WAYPOINT) == Some(gateway.name.as_str())
            && elsewhere == gateway.namespace.as_str()
    };
    let own = |kind, name: &Name, meta: &Meta| {
        let home = if kind == Kind::Namespace { name.name.as_str() } else { name.namespace.as_str() };
        names(home, meta).then(|| Key { kind, name: name.clone() })
    };
    let namespaces =
        cluster.namespaces.iter().filter_map(|(name, one)| own(Kind::Namespace, name, &one.meta));
    let services = cluster.services.iter().filter_map(|(name, one)| own(Kind::Service, name, &one.meta));
    let entries = cluster.service_entries.iter();
    let entries = entries.filter_map(|(name, one)| own(Kind::ServiceEntry, name, &one.meta));
    let pods = cluster.pods.iter().filter_map(|(name, one)| own(Kind::Pod, name, &one.meta));
    let others = cluster.workload_entries.iter();
    let others = others.filter_map(|(name, one)| own(Kind::WorkloadEntry, name, &one.meta));
    namespaces.chain(services).chain(entries).chain(pods).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ambit_api::directory::read_text;

    use super::*;

    const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: shop, labels: {istio.io/use-waypoint: new}}
spec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.0.0.3, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: bank, labels: {istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: shop}}
spec: {clusterIP: 10.0.0.4, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop, labels: {istio.io/rev: v2}}
spec: {gatewayClassName: ambit-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status:
  addresses: [{type: Hostname, value: gate.shop.svc.cluster.local}]
  conditions:
  - {type: Accepted, status: 'True', reason: Accepted, message: '', lastTransitionTime: '2026-01-02T03:04:05Z'}
  - {type: Programmed, status: 'True', reason: Programmed, message: '', lastTransitionTime: '2026-01-02T03:04:05Z'}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: new, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: ambit-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ingress, namespace: shop}
spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

    #[test]
    fn a_waypoint_stands_as_the_controller_sees_it() {
        let loaded = read_text(Path::new("shop.yaml"), SHOP);
        assert_eq!(loaded.problems, []);
        let standings = standings(&loaded.objects);
        let [gate, new] = standings.as_slice() else { panic!("two waypoints, not {standings:?}") };
        assert_eq!((gate.name.as_str(), gate.traffic, gate.revision.as_str()), ("gate", "service", "v2"));
        assert_eq!((gate.programmed(), gate.trouble()), (Some(true), None));
        assert_eq!(gate.bound, ["Service shop/web"]);
        assert_eq!(gate.refused, [("Service bank/far".to_owned(), "AttachmentDenied")]);
        let labelled: Vec<_> = gate.labelled.iter().map(ToString::to_string).collect();
        assert_eq!(labelled, ["Namespace shop", "Service bank/far"]);
        assert_eq!((new.traffic, new.programmed()), ("all", None));
        assert_eq!(new.refused, [("Service shop/own".to_owned(), "WaypointIsNotReady")]);
        assert!(new.trouble().unwrap().contains("GatewayClass ambit-waypoint"));
    }

    #[test]
    fn what_is_generated_is_a_waypoint() {
        let mut wish = Wish {
            namespace: "shop".to_owned(),
            name: "waypoint".to_owned(),
            class: "ambit-waypoint".to_owned(),
            traffic: Some(For::All),
            revision: Some("v2".to_owned()),
        };
        let text = serde_yaml_ng::to_string(&gateway(&wish)).unwrap();
        let standings = standings(&read_text(Path::new("g.yaml"), &text).objects);
        assert_eq!((standings[0].traffic, standings[0].revision.as_str()), ("all", "v2"));
        (wish.traffic, wish.revision) = (None, None);
        assert_eq!(gateway(&wish).pointer("/metadata/labels"), None);
    }
}
