//! The argument for correctness: whatever happens in whatever order, what is published in the end is the translation
//! from scratch of what is there in the end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ambit_controller::cluster::object::{Key, Object};
use ambit_controller::cluster::{EntryVisibility, L7Deny, Settings};
use ambit_controller::engine::Engine;
use ambit_controller::publish::Sink;
use ambit_controller::source::Event;
use ambit_wire::xds::Resource;
use proptest::prelude::*;
use serde_json::{Value, json};

/// What a subscriber that got everything would hold.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<BTreeMap<(String, String), Resource>>>);

impl Sink for Held {
    fn update(&self, type_url: &str, upserts: Vec<Resource>, removals: &[String]) {
        let mut held = self.0.lock().unwrap();
        for name in removals {
            let gone = held.remove(&(type_url.to_owned(), name.clone()));
            assert!(gone.is_some(), "{name} was removed and is not there");
        }
        for resource in upserts {
            let key = (type_url.to_owned(), resource.name.clone());
            assert!(held.get(&key) != Some(&resource), "{} was sent and had not changed", resource.name);
            held.insert(key, resource);
        }
    }

    fn open(&self) {}
}

impl Held {
    fn contents(&self) -> BTreeMap<(String, String), Resource> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(Value),
    Erase(prop::sample::Index),
}

fn object(value: &Value) -> Object {
    support::objects(&value.to_string()).remove(0)
}

fn pick(options: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(options)
}

/// Some of these labels or annotations, each with one of its values.
fn some(of: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = Value> {
    let each = of.iter().map(|(key, values)| {
        prop::option::weighted(0.3, pick(values)).prop_map(move |value| value.map(|value| (*key, value)))
    });
    each.collect::<Vec<_>>().prop_map(|pairs| {
        Value::Object(pairs.into_iter().flatten().map(|(k, v)| (k.to_owned(), v.into())).collect())
    })
}

const NAMESPACES: &[&str] = &["shop", "other", "istio-system"];
const NAMES: &[&str] = &["a", "b", "c"];
const CREATED: &[&str] = &["2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z", "2022-01-01T00:00:00Z"];
const WAYPOINTS: &[&str] = &["gate", "gate2", "none"];
const BINDING: &[(&str, &[&str])] = &[
    ("app", &["x", "y"]),
    ("istio.io/use-waypoint", WAYPOINTS),
    ("istio.io/use-waypoint-namespace", &["shop", "other"]),
    ("istio.io/use-waypoint-canary", &["gate", "gate2"]),
    ("istio.io/ingress-use-waypoint", &["true"]),
    ("gateway.networking.k8s.io/gateway-name", &["gate"]),
    ("topology.istio.io/network", &["n1", "n2"]),
    ("gateway.istio.io/managed", &["istio.io-mesh-controller"]),
    ("networking.istio.io/tunnel", &["http"]),
];
const ANNOTATIONS: &[(&str, &[&str])] = &[
    ("ambient.istio.io/redirection", &["enabled"]),
    ("networking.istio.io/traffic-distribution", &["PreferClose", "PreferSameNode"]),
    ("istio.io/use-waypoint-canary-weight", &["10", "x"]),
    ("istio.io/dry-run", &["true"]),
];

fn meta() -> impl Strategy<Value = Value> {
    (pick(NAMESPACES), pick(NAMES), some(BINDING), some(ANNOTATIONS), pick(CREATED)).prop_map(
        |(namespace, name, labels, annotations, created)| {
            json!({"namespace": namespace, "name": name, "labels": labels, "annotations": annotations,
                   "creationTimestamp": created})
        },
    )
}

fn selector() -> impl Strategy<Value = Option<Value>> {
    prop::option::of(pick(&["x", "y"]).prop_map(|app| json!({"app": app})))
}

fn shape(api: &'static str, kind: &'static str, meta: Value, spec: Value, status: Value) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": meta, "spec": spec, "status": status})
}

fn any_object() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => (pick(NAMESPACES), some(BINDING), some(ANNOTATIONS)).prop_map(|(name, labels, annotations)| {
            shape("v1", "Namespace", json!({"name": name, "labels": labels, "annotations": annotations}), json!({}), json!({}))
        }),
        1 => (pick(&["n1", "n2"]), pick(&["r", "s"])).prop_map(|(name, region)| {
            let labels = json!({"topology.kubernetes.io/region": region});
            shape("v1", "Node", json!({"name": name, "labels": labels}), json!({}), json!({}))
        }),
        5 => (meta(), pick(&["n1", "n2", "n3"]), pick(&["Running", "Running", "Succeeded"]), pick(&["x", "z"]), any::<bool>())
            .prop_map(|(meta, node, phase, account, ready)| {
                let spec = json!({"nodeName": node, "serviceAccountName": account, "containers":
                    [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]});
                let ready = if ready { "True" } else { "False" };
                let status = json!({"phase": phase, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]});
                shape("v1", "Pod", meta, spec, status)
            }),
        4 => (meta(), selector(), pick(&["ClusterIP", "ClusterIP", "ExternalName"]), pick(&["http", "8081"]))
            .prop_map(|(meta, selector, kind, target)| {
                let spec = json!({"type": kind, "selector": selector, "clusterIP": "10.1.0.1",
                    "ports": [{"name": "p", "port": 80, "targetPort": target}]});
                shape("v1", "Service", meta, spec, json!({}))
            }),
        2 => (meta(), pick(NAMES), pick(NAMES), any::<bool>()).prop_map(|(mut meta, service, pod, is_pod)| {
            *meta.pointer_mut("/labels").unwrap() = json!({"kubernetes.io/service-name": service});
            let target = json!({"kind": "Pod", "name": pod});
            let endpoint = if is_pod {
                json!({"addresses": ["10.0.0.1"], "targetRef": target})
            } else {
                json!({"addresses": ["192.0.2.1", "192.0.2.2"]})
            };
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
                   "endpoints": [endpoint], "ports": [{"name": "p", "port": 9}]})
        }),
        4 => (
            meta(),
            prop::collection::vec(pick(&["h1", "h2", "*.h3", "a.shop.svc.cluster.local"]), 1..3),
            pick(&["STATIC", "DNS", "NONE", "DYNAMIC_DNS"]),
            prop::collection::vec(pick(&["192.0.2.1", "192.0.2.2", "e1"]), 0..3),
            selector(),
            any::<bool>(),
        )
            .prop_map(|(meta, hosts, resolution, endpoints, selector, addressed)| {
                let endpoints: Vec<_> =
                    endpoints.iter().map(|one| json!({"address": one, "labels": {"app": "x"}})).collect();
                let addresses = if addressed { json!(["10.2.0.1", "10.3.0.0/16"]) } else { json!([]) };
                let spec = json!({"hosts": hosts, "resolution": resolution, "endpoints": endpoints, "addresses": addresses,
                    "workloadSelector": selector.map(|labels| json!({"labels": labels})),
                    "ports": [{"number": 80, "name": "http"}]});
                shape("networking.istio.io/v1", "ServiceEntry", meta, spec, json!({}))
            }),
        2 => (meta(), pick(&["192.0.2.9", "vm"])).prop_map(|(meta, address)| {
            shape("networking.istio.io/v1", "WorkloadEntry", meta, json!({"address": address, "labels": {"app": "y"}}), json!({}))
        }),
        3 => (meta(), selector(), pick(&["ALLOW", "DENY", "AUDIT"]), pick(&["ports", "methods"]))
            .prop_map(|(meta, selector, action, attribute)| {
                let spec = json!({"selector": selector.map(|labels| json!({"matchLabels": labels})), "action": action,
                    "rules": [{"to": [{"operation": {attribute: ["80"]}}]}]});
                shape("security.istio.io/v1", "AuthorizationPolicy", meta, spec, json!({}))
            }),
        3 => (meta(), selector(), pick(&["UNSET", "STRICT", "PERMISSIVE"]), prop::option::of(pick(&["STRICT", "PERMISSIVE", "DISABLE"])))
            .prop_map(|(meta, selector, mode, port)| {
                let ports = port.map(|mode| json!({"80": {"mode": mode}}));
                let spec = json!({"selector": selector.map(|labels| json!({"matchLabels": labels})),
                    "mtls": {"mode": mode}, "portLevelMtls": ports.unwrap_or(json!({}))});
                shape("security.istio.io/v1", "PeerAuthentication", meta, spec, json!({}))
            }),
        3 => (
            pick(NAMESPACES),
            pick(&["gate", "gate2"]),
            pick(&["istio-waypoint", "istio", "special"]),
            pick(&["service", "workload", "all"]),
            pick(&["", "10.5.0.1", "gate.shop.svc"]),
            pick(&["Same", "All", "Selector"]),
        )
            .prop_map(|(namespace, name, class, traffic, address, from)| {
                let meta = json!({"namespace": namespace, "name": name, "labels": {"istio.io/waypoint-for": traffic}});
                let spec = json!({"gatewayClassName": class, "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE",
                    "allowedRoutes": {"namespaces": {"from": from, "selector": {"matchLabels": {"app": "x"}}}}}]});
                let kind = if address.starts_with('g') { "Hostname" } else { "IPAddress" };
                let status = if address.is_empty() { json!({}) } else { json!({"addresses": [{"type": kind, "value": address}]}) };
                shape("gateway.networking.k8s.io/v1", "Gateway", meta, spec, status)
            }),
        1 => (pick(&["istio-waypoint", "special"]), pick(&["istio.io/mesh-controller", "other"]), pick(&["PROXY/15088", "NONE"]))
            .prop_map(|(name, controller, binding)| {
                let meta = json!({"name": name, "annotations": {"ambient.istio.io/waypoint-inbound-binding": binding}});
                shape("gateway.networking.k8s.io/v1", "GatewayClass", meta, json!({"controllerName": controller}), json!({}))
            }),
    ]
}

fn set(object: &mut Value, field: &str, value: Value) {
    object.as_object_mut().unwrap().insert(field.to_owned(), value);
}

/// Of services that may be there or not, of either kind, under names of either kind.
fn parent() -> impl Strategy<Value = Value> {
    let port = prop::option::of(prop::sample::select(&[80, 81][..]));
    let kind = pick(&["Service", "Service", "ServiceEntry", "Gateway"]);
    (kind, prop::option::of(pick(NAMESPACES)), pick(NAMES), port).prop_map(|(kind, namespace, name, port)| {
        let group = match kind {
            "Service" => "",
            "ServiceEntry" => "networking.istio.io",
            _ => "gateway.networking.k8s.io",
        };
        let mut parent = json!({"group": group, "kind": kind, "name": name});
        let fields = [("namespace", namespace.map(|one| json!(one))), ("port", port.map(|one| json!(one)))];
        for (field, value) in fields.into_iter().filter_map(|(field, value)| Some((field, value?))) {
            set(&mut parent, field, value);
        }
        parent
    })
}

fn backend() -> impl Strategy<Value = Value> {
    (pick(&["Service", "ServiceEntry", "Secret"]), prop::option::of(pick(NAMESPACES)), pick(NAMES)).prop_map(
        |(kind, namespace, name)| {
            let group = if kind == "ServiceEntry" { "networking.istio.io" } else { "" };
            let mut backend = json!({"group": group, "kind": kind, "name": name, "port": 80});
            if let Some(namespace) = namespace {
                set(&mut backend, "namespace", json!(namespace));
            }
            backend
        },
    )
}

fn any_route() -> impl Strategy<Value = Value> {
    let kind = pick(&["HTTPRoute", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"]);
    let parents = prop::collection::vec(parent(), 1..3);
    let filters = pick(&["none", "mirror", "auth"]);
    (meta(), kind, parents, prop::collection::vec(backend(), 0..3), filters).prop_map(
        |(meta, kind, parents, backends, filters)| {
            let filters = match (kind, backends.first(), filters) {
                ("HTTPRoute" | "GRPCRoute", Some(first), "mirror") => {
                    json!([{"type": "RequestMirror", "requestMirror": {"backendRef": first}}])
                }
                ("HTTPRoute", Some(first), "auth") => {
                    json!([{"type": "ExternalAuth", "externalAuth": {"protocol": "GRPC", "backendRef": first}}])
                }
                _ => json!([]),
            };
            let mut rule = json!({"backendRefs": backends});
            if matches!(kind, "HTTPRoute" | "GRPCRoute") {
                set(&mut rule, "filters", filters);
            }
            let spec = json!({"parentRefs": parents, "rules": [rule]});
            shape("gateway.networking.k8s.io/v1", kind, meta, spec, json!({}))
        },
    )
}

fn any_grant() -> impl Strategy<Value = Value> {
    let from = (pick(&["HTTPRoute", "TCPRoute", "RateLimitPolicy", "VirtualService"]), pick(NAMESPACES));
    let name = prop::option::of(pick(NAMES));
    (meta(), from, pick(&["Service", "ServiceEntry"]), name).prop_map(
        |(meta, (kind, namespace), to, name)| {
            let group = if to == "Service" { "" } else { "networking.istio.io" };
            let mut to = json!({"group": group, "kind": to});
            if let Some(name) = name {
                set(&mut to, "name", json!(name));
            }
            let of = match kind {
                "RateLimitPolicy" => "ambit.io",
                "VirtualService" => "networking.istio.io",
                _ => "gateway.networking.k8s.io",
            };
            let from = json!({"group": of, "kind": kind, "namespace": namespace});
            let spec = json!({"from": [from], "to": [to]});
            shape("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", meta, spec, json!({}))
        },
    )
}

/// What policies of waypoints are attached to: it may be there or not, and in use or not.
fn target() -> impl Strategy<Value = Value> {
    let kind = pick(&["Service", "Service", "ServiceEntry", "Gateway", "Gateway", "GatewayClass"]);
    (kind, pick(NAMES), pick(&["gate", "gate2"]), pick(&["istio-waypoint", "special"])).prop_map(
        |(kind, name, gateway, class)| match kind {
            "Service" => json!({"group": "", "kind": kind, "name": name}),
            "ServiceEntry" => json!({"group": "networking.istio.io", "kind": kind, "name": name}),
            "Gateway" => json!({"group": "gateway.networking.k8s.io", "kind": kind, "name": gateway}),
            _ => json!({"group": "gateway.networking.k8s.io", "kind": kind, "name": class}),
        },
    )
}

fn any_attached_policy() -> impl Strategy<Value = Value> {
    let targets = prop::collection::vec(target(), 1..3);
    let action = pick(&["ALLOW", "DENY", "AUDIT", "CUSTOM"]);
    (meta(), targets, action, pick(NAMES), any::<bool>()).prop_map(
        |(mut meta, targets, action, word, of_tokens)| {
            if of_tokens {
                let rules = json!([{"issuer": format!("https://{word}.example")}]);
                let spec = json!({"targetRefs": targets, "jwtRules": rules});
                return shape("security.istio.io/v1", "RequestAuthentication", meta, spec, json!({}));
            }
            let rules = json!([{"to": [{"operation": {"paths": [format!("/{word}/*")]}}]}]);
            let mut spec = json!({"targetRefs": targets, "action": action, "rules": rules});
            if action == "CUSTOM" {
                set(&mut spec, "provider", json!({"name": word}));
            }
            if matches!(action, "CUSTOM" | "AUDIT") {
                set(&mut meta, "annotations", json!({}));
            }
            shape("security.istio.io/v1", "AuthorizationPolicy", meta, spec, json!({}))
        },
    )
}

/// Providers of which policies name some, in a namespace that counts and in one that does not.
fn any_providers() -> impl Strategy<Value = Value> {
    let names = prop::collection::btree_set(pick(NAMES), 0..3);
    (pick(NAMESPACES), names, 1..3_u32).prop_map(|(namespace, names, port)| {
        let provider = |name| {
            json!({"name": name, "envoyExtAuthzGrpc": {"service": "a.shop.svc.cluster.local", "port": port}})
        };
        let mesh = json!({"extensionProviders": names.into_iter().map(provider).collect::<Vec<_>>()});
        let metadata = json!({"name": "istio", "namespace": namespace});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh": mesh.to_string()}})
    })
}

/// Limits of services, waypoints and routes, counted here or by a service that may be there or not.
fn any_limit() -> impl Strategy<Value = Value> {
    let kind = pick(&["Service", "ServiceEntry", "Gateway", "HTTPRoute", "GRPCRoute"]);
    let one = (kind, pick(NAMES), pick(&["gate", "gate2"])).prop_map(|(kind, name, gateway)| match kind {
        "Service" => json!({"group": "", "kind": kind, "name": name}),
        "ServiceEntry" => json!({"group": "networking.istio.io", "kind": kind, "name": name}),
        "Gateway" => json!({"group": "gateway.networking.k8s.io", "kind": kind, "name": gateway}),
        _ => json!({"group": "gateway.networking.k8s.io", "kind": kind, "name": name}),
    });
    let counted = prop::option::of((pick(NAMES), pick(NAMESPACES)));
    (meta(), one, counted).prop_map(|(meta, target, counted)| {
        let mut spec = json!({"targetRefs": [target], "local": [{"requests": 1, "per": "1s"}]});
        if let Some((name, namespace)) = counted {
            let service = json!({"name": name, "namespace": namespace, "port": 80});
            let descriptors = json!([{"entries": [{"key": "a", "value": "b"}]}]);
            set(&mut spec, "global", json!({"service": service, "domain": "d", "descriptors": descriptors}));
        }
        shape("ambit.io/v1alpha1", "RateLimitPolicy", meta, spec, json!({}))
    })
}

/// VirtualServices for hosts, which send to hosts that may be there or not.
fn any_virtual_service() -> impl Strategy<Value = Value> {
    let host =
        || pick(&["a", "b", "a.shop.svc.cluster.local", "b.other.svc.cluster.local", "h1", "a.example"]);
    let rule = (host(), prop::option::of(host()), prop::option::of(pick(NAMESPACES)), any::<bool>());
    let hosts = prop::collection::vec(host(), 1..3);
    let export = prop::option::of(pick(&[".", "*", "other"]));
    (meta(), hosts, prop::collection::vec(rule, 1..3), export).prop_map(|(meta, hosts, rules, export)| {
        let rules = rules.into_iter().map(|(to, mirror, source, on_port)| {
            let mut matched = json!({"uri": {"prefix": "/a"}});
            if let Some(source) = source {
                set(&mut matched, "sourceNamespace", json!(source));
            }
            if on_port {
                set(&mut matched, "port", json!(80));
            }
            let mut rule = json!({"match": [matched], "route": [{"destination": {"host": to}}]});
            if let Some(mirror) = mirror {
                set(&mut rule, "mirror", json!({"host": mirror}));
            }
            rule
        });
        let mut spec = json!({"hosts": hosts, "http": rules.collect::<Vec<_>>()});
        if let Some(export) = export {
            set(&mut spec, "exportTo", json!([export]));
        }
        shape("networking.istio.io/v1", "VirtualService", meta, spec, json!({}))
    })
}

/// Rules for hosts that may be there or not, some of them for many.
fn any_destination_rule() -> impl Strategy<Value = Value> {
    let hosts = &[
        "a",
        "b",
        "a.shop.svc.cluster.local",
        "*.svc.cluster.local",
        "*.example",
        "a.example",
        "h1",
        "*.h3",
    ];
    let subset = prop::option::of((prop::option::of(pick(&["x", "y"])), any::<bool>()));
    let seen = prop::option::of(pick(&[".", "*", "shop"]));
    (meta(), pick(hosts), subset, seen).prop_map(|(meta, host, subset, seen)| {
        let mut spec = json!({"host": host, "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}});
        if let Some((app, governed)) = subset {
            let labels = app.map_or(json!({}), |app| json!({"app": app}));
            let mut subset = json!({"name": "v1", "labels": labels});
            if governed {
                set(&mut subset, "trafficPolicy", json!({"connectionPool": {"tcp": {"maxConnections": 3}}}));
            }
            set(&mut spec, "subsets", json!([subset]));
        }
        if let Some(seen) = seen {
            set(&mut spec, "exportTo", json!([seen]));
        }
        shape("networking.istio.io/v1", "DestinationRule", meta, spec, json!({}))
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_object().prop_map(Step::Write),
        2 => any_route().prop_map(Step::Write),
        1 => any_grant().prop_map(Step::Write),
        2 => any_attached_policy().prop_map(Step::Write),
        1 => any_limit().prop_map(Step::Write),
        2 => any_virtual_service().prop_map(Step::Write),
        2 => any_destination_rule().prop_map(Step::Write),
        1 => any::<prop::sample::Index>().prop_map(Step::Erase),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let visibility = prop::option::of(prop::sample::select(
        &[EntryVisibility::Public, EntryVisibility::Namespace, EntryVisibility::None][..],
    ));
    (any::<bool>(), any::<bool>(), any::<bool>(), visibility).prop_map(
        |(auto_allow, dry_run, upstream, visibility)| Settings {
            auto_allow_waypoints: auto_allow,
            dry_run_policies: dry_run,
            l7_deny: if upstream { L7Deny::Upstream } else { L7Deny::Deny },
            entry_visibility: visibility,
            ..Settings::default()
        },
    )
}

/// Services with waypoints, and what waypoints are told of them: among all other objects they meet too rarely.
fn waypoint_step() -> impl Strategy<Value = Step> {
    let place = || pick(&["shop", "istio-system"]);
    let gateway = || pick(&["gate", "gate2"]);
    let class = || pick(&["istio-waypoint", "special"]);
    let written = prop_oneof![
        2 => (place(), gateway(), class()).prop_map(|(namespace, name, class)| {
            let meta = json!({"namespace": namespace, "name": name});
            let listeners = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
            let spec = json!({"gatewayClassName": class, "listeners": listeners});
            shape("gateway.networking.k8s.io/v1", "Gateway", meta, spec, json!({}))
        }),
        1 => (class(), pick(&["istio.io/mesh-controller", "other"])).prop_map(|(name, controller)| {
            let spec = json!({"controllerName": controller});
            shape("gateway.networking.k8s.io/v1", "GatewayClass", json!({"name": name}), spec, json!({}))
        }),
        1 => (place(), gateway()).prop_map(|(name, gateway)| {
            let meta = json!({"name": name, "labels": {"istio.io/use-waypoint": gateway}});
            shape("v1", "Namespace", meta, json!({}), json!({}))
        }),
        3 => (place(), pick(NAMES), prop::option::of(gateway()), any::<bool>(), selector()).prop_map(
            |(namespace, name, gateway, is_entry, selector)| {
                let mut meta = json!({"namespace": namespace, "name": name});
                if let Some(gateway) = gateway {
                    set(&mut meta, "labels", json!({"istio.io/use-waypoint": gateway}));
                }
                if is_entry {
                    let ports = json!([{"number": 80, "name": "http"}]);
                    let spec = json!({"hosts": [format!("{name}.example")], "resolution": "DNS", "ports": ports});
                    return shape("networking.istio.io/v1", "ServiceEntry", meta, spec, json!({}));
                }
                let ports = json!([{"name": "p", "port": 80}]);
                let spec = json!({"clusterIP": "10.1.0.1", "selector": selector, "ports": ports});
                shape("v1", "Service", meta, spec, json!({}))
            },
        ),
        4 => any_attached_policy(),
        2 => any_virtual_service(),
        1 => any_grant(),
        1 => any_providers(),
        2 => any_destination_rule(),
        2 => any_route(),
        2 => (place(), pick(NAMES), prop::option::of(pick(&["x", "y"]))).prop_map(|(namespace, name, app)| {
            let labels = app.map_or(json!({}), |app| json!({"app": app}));
            let meta = json!({"namespace": namespace, "name": name, "labels": labels});
            let status = json!({"phase": "Running", "podIP": "10.0.0.1"});
            shape("v1", "Pod", meta, json!({"containers": [{"name": "c"}]}), status)
        }),
    ];
    prop_oneof![
        8 => written.prop_map(Step::Write),
        1 => any::<prop::sample::Index>().prop_map(Step::Erase),
    ]
}

/// Takes the steps, some at a time, and compares with what is there in the end.
fn compare(
    settings: Settings,
    steps: &[Step],
    batch: usize,
    synced_after: usize,
) -> Result<(), TestCaseError> {
    let step_by_step = Held::default();
    let mut engine = Engine::new(settings.clone(), step_by_step.clone());
    let mut there: BTreeMap<Key, Object> = BTreeMap::new();
    let mut events = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if index == synced_after {
            events.push(Event::Synced);
        }
        match step {
            Step::Write(value) => {
                let object = object(value);
                there.insert(object.key(), object.clone());
                events.push(Event::Upsert(object));
            }
            Step::Erase(which) => {
                if let Some(key) = (!there.is_empty())
                    .then(|| which.get(&there.keys().collect::<Vec<_>>()).to_owned().clone())
                {
                    there.remove(&key);
                    events.push(Event::Delete(key));
                }
            }
        }
        if events.len() >= batch {
            engine.absorb(events.drain(..));
        }
    }
    events.push(Event::Synced);
    engine.absorb(events);

    let from_scratch = Held::default();
    let all = there.into_values().map(Event::Upsert).chain([Event::Synced]);
    Engine::new(settings, from_scratch.clone()).absorb(all);
    let (got, want) = (step_by_step.contents(), from_scratch.contents());
    let names: Vec<_> = got.keys().collect();
    prop_assert_eq!(names, want.keys().collect::<Vec<_>>());
    for (name, resource) in want {
        prop_assert_eq!(got.get(&name), Some(&resource), "{:?}", name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_published_in_the_end_is_the_translation_from_scratch(
        settings in settings(),
        steps in prop::collection::vec(step(), 1..60),
        batch in 1usize..8,
        synced_after in 0usize..20,
    ) {
        compare(settings, &steps, batch, synced_after)?;
    }

    #[test]
    fn what_waypoints_are_told_in_the_end_is_the_translation_from_scratch(
        settings in settings(),
        steps in prop::collection::vec(waypoint_step(), 1..60),
        batch in 1usize..8,
        synced_after in 0usize..20,
    ) {
        compare(settings, &steps, batch, synced_after)?;
    }
}
