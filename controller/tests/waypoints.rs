//! Waypoint binding, line by line of protocols 11.2, with its conditions of 11.7.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use ambit_controller::cluster::object::Kind;
use ambit_controller::cluster::{Cluster, EntryVisibility, Settings};
use ambit_model::gateway::{GatewayAddress, GatewayDestination};
use ambit_model::workload::{ApplicationProtocol, ApplicationTunnel};
use support::{cluster, cluster_with, conditions, entry, inline, pod, pod_yaml, service};

const WEB: &str = "shop/web.shop.svc.cluster.local";

fn gateway(name: &str, namespace: &str, labels: &str, spec: &str, address: &str) -> String {
    let status = match address {
        "" => String::new(),
        ip if ip.starts_with("10.") => {
            // Addresses of kinds that nobody knows here stand in the way of none.
            format!(
                "status: {{addresses: [{{type: example.com/x, value: y}}, {{type: IPAddress, value: {ip}}}]}}\n"
            )
        }
        host => format!("status: {{addresses: [{{value: 10.5.0.9}}, {{type: Hostname, value: {host}}}]}}\n"),
    };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec:\n  gatewayClassName: istio-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE{spec}}}]\n{status}---\n"
    )
}

fn gate() -> String {
    gateway("gate", "shop", "", "", "10.5.0.1")
}

fn namespace(labels: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}\n---\n"
    )
}

fn web(labels: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}\n\
         spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn shown(waypoint: &GatewayAddress) -> String {
    assert_eq!(waypoint.hbone_mtls_port, 15008);
    match &waypoint.destination {
        GatewayDestination::Address(address) => address.to_string(),
        GatewayDestination::Hostname(key) => key.to_string(),
    }
}

fn of_web(cluster: &Cluster) -> Option<String> {
    service(cluster, WEB).unwrap().waypoint.as_ref().map(shown)
}

fn reasons(cluster: &Cluster) -> Vec<String> {
    conditions(cluster, Kind::Service, "shop", "web")
}

#[test]
fn the_objects_own_label_decides_alone_else_its_namespaces() {
    let two = gate() + &gateway("gate2", "shop", "", "", "10.5.0.2");
    for (of_service, of_namespace, want) in [
        ("", "", None),
        ("istio.io/use-waypoint: gate", "", Some("/10.5.0.1")),
        ("", "istio.io/use-waypoint: gate", Some("/10.5.0.1")),
        ("istio.io/use-waypoint: gate2", "istio.io/use-waypoint: gate", Some("/10.5.0.2")),
        ("istio.io/use-waypoint: none", "istio.io/use-waypoint: gate", None),
        ("istio.io/use-waypoint: missing", "istio.io/use-waypoint: gate", None),
        ("istio.io/use-waypoint: \"\"", "istio.io/use-waypoint: gate", Some("/10.5.0.1")),
    ] {
        let cluster = cluster(&(two.clone() + &namespace(of_namespace, "") + &web(of_service, "")));
        assert_eq!(of_web(&cluster).as_deref(), want, "{of_service} {of_namespace}");
    }
}

#[test]
fn a_waypoint_without_address_is_not_sent() {
    let cluster = cluster(&(gateway("gate", "shop", "", "", "") + &web("istio.io/use-waypoint: gate", "")));
    assert_eq!(of_web(&cluster), None);
    assert_eq!(reasons(&cluster), ["istio.io/WaypointBound=false WaypointIsNotReady"]);
}

#[test]
fn a_host_name_is_preferred_and_addresses_are_of_the_clusters_network() {
    let labelled = web("istio.io/use-waypoint: gate", "");
    let by_name = cluster(&(gateway("gate", "shop", "", "", "gate.shop.svc.cluster.local") + &labelled));
    assert_eq!(of_web(&by_name).as_deref(), Some("shop/gate.shop.svc.cluster.local"));
    assert_eq!(reasons(&by_name), ["istio.io/WaypointBound=true WaypointAccepted"]);
    let network = "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: near}}\n";
    assert_eq!(of_web(&cluster(&(gate() + &labelled + network))).as_deref(), Some("near/10.5.0.1"));
}

#[test]
fn the_listener_says_whose_objects_it_serves() {
    let elsewhere = web("istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: infra", "");
    let from = |from: &str| format!(", allowedRoutes: {{namespaces: {{from: {from}}}}}");
    let labels = "app: shop";
    for (routes, admitted) in [
        (String::new(), false),
        (from("Same"), false),
        (from("All"), true),
        (from("None"), false),
        (from("Selector, selector: {matchLabels: {app: shop}}"), true),
        (from("Selector, selector: {matchLabels: {app: other}}"), false),
        (from("Selector, selector: {matchLabels: {kubernetes.io/metadata.name: shop}}"), true),
        (
            from("Selector, selector: {matchExpressions: [{key: app, operator: NotIn, values: [shop]}]}"),
            false,
        ),
    ] {
        let yaml = gateway("gate", "infra", "", &routes, "10.5.0.1") + &namespace(labels, "") + &elsewhere;
        let cluster = cluster(&yaml);
        assert_eq!(of_web(&cluster).is_some(), admitted, "{routes}");
        let want = if admitted {
            "istio.io/WaypointBound=true WaypointAccepted"
        } else {
            "istio.io/WaypointBound=false AttachmentDenied"
        };
        assert_eq!(reasons(&cluster), [want], "{routes}");
    }
    // A waypoint without an HBONE listener serves its own namespace.
    let other = |namespace| {
        gateway("gate", namespace, "", &from("All"), "10.5.0.1").replace("protocol: HBONE", "protocol: TCP")
    };
    assert_eq!(of_web(&cluster(&(other("infra") + &elsewhere))), None);
    assert!(of_web(&cluster(&(other("shop") + &web("istio.io/use-waypoint: gate", "")))).is_some());
}

#[test]
fn a_waypoint_serves_the_traffic_that_it_is_for() {
    for (label, for_service, for_workload) in [
        ("", true, false),
        ("istio.io/waypoint-for: service", true, false),
        ("istio.io/waypoint-for: workload", false, true),
        ("istio.io/waypoint-for: all", true, true),
        ("istio.io/waypoint-for: none", false, false),
    ] {
        let pod_yaml = pod_yaml("shop", "web", "10.0.0.1", "istio.io/use-waypoint: gate");
        let cluster = cluster(
            &(gateway("gate", "shop", label, "", "10.5.0.1")
                + &web("istio.io/use-waypoint: gate", "")
                + &pod_yaml),
        );
        assert_eq!(of_web(&cluster).is_some(), for_service, "{label}");
        assert_eq!(pod(&cluster, "shop", "web").unwrap().waypoint.is_some(), for_workload, "{label}");
        if !for_service {
            assert_eq!(reasons(&cluster), ["istio.io/WaypointBound=false UnsupportedTrafficType"]);
        }
    }
}

#[test]
fn the_class_says_what_a_gateway_does_not() {
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio-waypoint, \
                 labels: {istio.io/waypoint-for: workload}}\nspec: {controllerName: istio.io/mesh-controller}\n";
    let labelled = web("istio.io/use-waypoint: gate", "");
    assert_eq!(of_web(&cluster(&(gate() + class + &labelled))), None);
    let own = gateway("gate", "shop", "istio.io/waypoint-for: service", "", "10.5.0.1");
    assert!(of_web(&cluster(&(own + class + &labelled))).is_some());
}

const VM: &str = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop, labels: {LABELS}}\n\
                  spec: {address: 192.0.2.1}\n---\n";

#[test]
fn a_workload_that_only_inherits_an_unsuitable_waypoint_has_none_and_no_complaint() {
    let inherited = gate() + &namespace("istio.io/use-waypoint: gate", "");
    let quiet = cluster(&(inherited.clone() + &VM.replace("LABELS", "")));
    assert_eq!(conditions(&quiet, Kind::WorkloadEntry, "shop", "vm"), Vec::<String>::new());
    let own = cluster(&(inherited + &VM.replace("LABELS", "istio.io/use-waypoint: gate")));
    assert_eq!(
        conditions(&own, Kind::WorkloadEntry, "shop", "vm"),
        ["istio.io/WaypointBound=false UnsupportedTrafficType"]
    );
    let all = gateway("gate", "shop", "istio.io/waypoint-for: all", "", "10.5.0.1")
        + &namespace("istio.io/use-waypoint: gate", "");
    assert!(entry(&cluster(&(all + &VM.replace("LABELS", ""))), "shop", "vm").unwrap().waypoint.is_some());
}

#[test]
fn a_gateways_own_service_has_no_waypoint() {
    let namespace = namespace("istio.io/use-waypoint: gate", "");
    for (managed, bound) in [
        ("istio.io-mesh-controller", false),
        ("istio.io-eastwest-controller", false),
        ("istio.io-gateway-controller", true),
    ] {
        let cluster =
            cluster(&(gate() + &namespace + &web(&format!("gateway.istio.io/managed: {managed}"), "")));
        assert_eq!(of_web(&cluster).is_some(), bound, "{managed}");
    }
}

#[test]
fn a_waypoints_own_pods_have_its_binding_and_no_waypoint() {
    let all = gateway("gate", "shop", "istio.io/waypoint-for: all", "", "10.5.0.1");
    let gate_pod = pod_yaml("shop", "gate-1", "10.0.0.1", "gateway.networking.k8s.io/gateway-name: gate");
    let annotated = |binding: &str| {
        all.replace(
            "labels:",
            &format!("annotations: {{ambient.istio.io/waypoint-inbound-binding: {binding}}}, labels:"),
        )
    };
    let (none, proxy) = (ApplicationProtocol::None, ApplicationProtocol::Proxy);
    for (yaml, want) in [
        (all.clone(), None),
        (annotated("PROXY/15088"), Some((proxy, Some(15088)))),
        (annotated("PROXY"), Some((proxy, None))),
        (annotated("NONE"), Some((none, None))),
    ] {
        let cluster = cluster(&(yaml.clone() + &namespace("istio.io/use-waypoint: gate", "") + &gate_pod));
        let got = pod(&cluster, "shop", "gate-1").unwrap();
        assert_eq!(
            got.application_tunnel,
            want.map(|(protocol, port)| ApplicationTunnel { protocol, port }),
            "{yaml}"
        );
        assert_eq!(got.waypoint, None);
    }
    let other = pod_yaml("shop", "web", "10.0.0.2", "");
    assert!(
        pod(&cluster(&(all + &namespace("istio.io/use-waypoint: gate", "") + &other)), "shop", "web")
            .unwrap()
            .waypoint
            .is_some()
    );
}

fn ext(labels: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: ext, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{hosts: [x.com], resolution: STATIC{spec}}}\n---\n"
    )
}

#[test]
fn a_private_entry_stays_within_its_namespace() {
    let yaml = gateway("gate", "infra", "", ", allowedRoutes: {namespaces: {from: All}}", "10.5.0.1")
        + &ext("istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: infra", "");
    for (visibility, bound) in [(None, true), (Some(EntryVisibility::Namespace), false)] {
        let cluster = cluster_with(Settings { entry_visibility: visibility, ..Settings::default() }, &yaml);
        assert_eq!(service(&cluster, "shop/x.com").unwrap().waypoint.is_some(), bound);
        let first = conditions(&cluster, Kind::ServiceEntry, "shop", "ext").remove(0);
        let want = if bound { "true WaypointAccepted" } else { "false CrossNamespaceWaypointForbidden" };
        assert_eq!(first, format!("istio.io/WaypointBound={want}"));
    }
}

#[test]
fn endpoints_that_are_written_have_a_waypoint_and_resolved_hosts_have_none() {
    let all = gateway("gate", "shop", "istio.io/waypoint-for: all", "", "10.5.0.1")
        + &namespace("istio.io/use-waypoint: gate", "");
    let written = cluster(&(all.clone() + &ext("", ", endpoints: [{address: 192.0.2.1}]")));
    assert!(inline(&written, "shop", "ext", "192.0.2.1").unwrap().waypoint.is_some());
    let resolved = cluster(&(all + &ext("", "").replace("STATIC", "DNS")));
    assert_eq!(inline(&resolved, "shop", "ext", "x.com").unwrap().waypoint, None);
}

#[test]
fn with_a_waypoint_any_name_can_be_resolved() {
    let wild =
        ext("istio.io/use-waypoint: gate", "").replace("x.com", "'*.x.com'").replace("STATIC", "DYNAMIC_DNS");
    let got = service(&cluster(&(gate() + &wild)), "shop/*.x.com").unwrap();
    assert!(got.waypoint.is_some());
    assert_eq!(got.vips.len(), 2);
}

#[test]
fn ingress_goes_through_the_waypoint_if_object_or_namespace_say_so() {
    for (of_service, of_namespace, want) in [
        ("", "", false),
        ("istio.io/ingress-use-waypoint: \"true\"", "", true),
        ("", "istio.io/ingress-use-waypoint: \"1\"", true),
        ("istio.io/ingress-use-waypoint: \"false\"", "istio.io/ingress-use-waypoint: \"true\"", false),
    ] {
        let yaml = gate()
            + &namespace(of_namespace, "")
            + &web(&format!("istio.io/use-waypoint: gate, {of_service}"), "");
        let got = service(&cluster(&yaml.replace(", }", "}")), WEB).unwrap();
        assert_eq!(got.ingress_use_waypoint, want, "{of_service} {of_namespace}");
    }
}

fn shares(cluster: &Cluster) -> Vec<(String, u32)> {
    let service = service(cluster, WEB).unwrap();
    service.weighted_waypoints.iter().map(|one| (shown(&one.destination), one.weight)).collect()
}

#[test]
fn a_canary_gets_its_share_and_the_primary_the_rest() {
    let two = gate() + &gateway("gate2", "shop", "", "", "10.5.0.2");
    let canary = "istio.io/use-waypoint: gate, istio.io/use-waypoint-canary: gate2";
    let weight = |weight: &str| format!("istio.io/use-waypoint-canary-weight: \"{weight}\"");
    let both = |primary, canary| vec![("/10.5.0.1".to_owned(), primary), ("/10.5.0.2".to_owned(), canary)];
    for (annotations, want) in [
        (weight("10"), both(90, 10)),
        (weight("0"), both(100, 0)),
        (weight("100"), both(0, 100)),
        (String::new(), both(100, 0)),
        (weight("101"), vec![]),
        (weight("-1"), vec![]),
        (weight("many"), vec![]),
    ] {
        let of_service = cluster(&(two.clone() + &web(canary, &annotations)));
        assert_eq!(shares(&of_service), want, "{annotations}");
        let of_namespace = cluster(&(two.clone() + &namespace(canary, &annotations) + &web("", "")));
        assert_eq!(shares(&of_namespace), want, "{annotations}");
        assert_eq!(of_web(&of_service).as_deref(), Some("/10.5.0.1"), "whatever becomes of the canary");
        assert_eq!(reasons(&of_service), ["istio.io/WaypointBound=true WaypointAccepted"]);
    }
}

#[test]
fn a_canary_is_read_where_the_primary_was_found() {
    let two = gate() + &gateway("gate2", "shop", "", "", "10.5.0.2");
    let primary_only =
        namespace("istio.io/use-waypoint-canary: gate2", "istio.io/use-waypoint-canary-weight: \"10\"")
            + &web("istio.io/use-waypoint: gate", "");
    assert_eq!(shares(&cluster(&(two + &primary_only))), []);
}

#[test]
fn a_canary_that_is_not_to_be_had_is_told_and_changes_nothing() {
    for (gate2, canary, word) in [
        (String::new(), "gate", "CanarySameAsPrimary"),
        (String::new(), "gate2", "WaypointIsNotReady"),
        (
            gateway("gate2", "shop", "istio.io/waypoint-for: workload", "", "10.5.0.2"),
            "gate2",
            "UnsupportedTrafficType",
        ),
        (
            gateway("gate2", "shop", "", ", allowedRoutes: {namespaces: {from: None}}", "10.5.0.2"),
            "gate2",
            "AttachmentDenied",
        ),
    ] {
        use ambit_controller::cluster::object::{Key, Name};
        use ambit_controller::translate::status;
        let labels = format!("istio.io/use-waypoint: gate, istio.io/use-waypoint-canary: {canary}");
        let cluster =
            cluster(&(gate() + &gate2 + &web(&labels, "istio.io/use-waypoint-canary-weight: \"10\"")));
        assert_eq!((of_web(&cluster).as_deref(), shares(&cluster)), (Some("/10.5.0.1"), vec![]));
        let key = Key { kind: Kind::Service, name: Name::new("shop", "web") };
        let got = status::of(&cluster, &key);
        assert!(got[0].status && got[0].message.contains(word), "{got:?}");
    }
}
