//! What is made for a Gateway, and what it is told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::BTreeMap;

use ambit_controller::{
    cluster::{
        Cluster,
        object::{Gateway, Name},
    },
    gateways::{
        manifest::{Form, Made, Manifest, desired},
        overlay::Overlays,
        status::{self, Outcome},
    },
    translate::waypoint::{is_ours, wishes_of},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use support::cluster;

const GATE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop, uid: u-gate, generation: 3}
spec:
  gatewayClassName: ambit-waypoint
  infrastructure: {labels: {team: doors, gateway.networking.k8s.io/gateway-name: lie}, annotations: {note: mine}}
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE}
  - {name: web, port: 80, protocol: HTTP}
  - {name: other, port: 15009, protocol: HBONE}
  - {name: again, port: 15008, protocol: HBONE, allowedRoutes: {kinds: [{kind: HTTPRoute}]}}
  - {name: proxy, port: 15088, protocol: istio.io/PROXY}
";

fn form() -> Form {
    Form {
        image: "hub/waypoint:1".to_owned(),
        control_plane: "https://istiod.istio-system.svc:15012".to_owned(),
        cluster: "Kubernetes".to_owned(),
        domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        revision: "default".to_owned(),
        log: "info".to_owned(),
        log_format: "json".to_owned(),
        deployment: json!({ "spec": { "replicas": 3 } }),
    }
}

fn gate(cluster: &Cluster) -> &Gateway {
    cluster.gateways.get(&Name::new("shop", "gate")).unwrap()
}

fn overlays(pieces: &[(&str, &str)]) -> Overlays {
    let data: BTreeMap<_, _> =
        pieces.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    Overlays::read(&data).unwrap()
}

fn made(pieces: &[(&str, &str)]) -> Vec<Manifest> {
    made_of(GATE, pieces)
}

fn made_of(yaml: &str, pieces: &[(&str, &str)]) -> Vec<Manifest> {
    let cluster = cluster(yaml);
    desired(gate(&cluster), wishes_of(&cluster, gate(&cluster)), &overlays(pieces), "n1", &form())
}

/// The gateway with this binding of its own.
fn bound(binding: &str) -> String {
    let annotations = format!("annotations: {{ambient.istio.io/waypoint-inbound-binding: {binding}}}");
    GATE.replace("generation: 3", &format!("generation: 3, {annotations}"))
}

fn one(all: &[Manifest], made: Made) -> Value {
    all.iter().find(|one| one.made == made).unwrap().value.clone()
}

#[test]
fn a_gateway_is_an_account_a_service_pods_and_a_budget() {
    let all: Vec<_> = made(&[]).into_iter().map(|one| one.value).collect();
    insta::assert_json_snapshot!(all);
}

#[test]
fn pieces_are_laid_over_and_what_holds_it_together_stays() {
    let all = made(&[
        (
            "deployment",
            "metadata: {name: lie, labels: {tier: doors}, ownerReferences: []}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {istio.io/dataplane-mode: ambient}}, spec: {serviceAccountName: lie, containers: [{name: istio-proxy, env: [{name: RUST_LOG, value: debug}]}]}}}",
        ),
        ("service", "spec: {type: LoadBalancer, selector: {a: b}}"),
        ("serviceAccount", "metadata: {annotations: {role: arn}}"),
        ("podDisruptionBudget", "spec: {maxUnavailable: null, minAvailable: 1}"),
    ]);
    let selector = json!({ "gateway.networking.k8s.io/gateway-name": "gate" });
    let deployment = one(&all, Made::Deployment);
    assert_eq!(deployment["metadata"]["name"], "gate");
    assert_eq!(deployment["metadata"]["labels"]["tier"], "doors");
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["uid"], "u-gate");
    assert_eq!(deployment["spec"]["selector"], json!({ "matchLabels": selector }));
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(pod["spec"]["serviceAccountName"], "gate");
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    let log = env.iter().find(|one| one["name"] == "RUST_LOG").unwrap();
    assert_eq!((log["value"].as_str(), env.len() > 10), (Some("debug"), true));
    let service = one(&all, Made::Service);
    assert_eq!((&service["spec"]["type"], &service["spec"]["selector"]), (&json!("LoadBalancer"), &selector));
    assert_eq!(one(&all, Made::ServiceAccount)["metadata"]["annotations"]["role"], "arn");
    let budget = one(&all, Made::PodDisruptionBudget);
    assert_eq!((&budget["spec"]["minAvailable"], budget["spec"].get("maxUnavailable")), (&json!(1), None));
}

/// The mode of its pods, the port that a ztunnel hands over at, and the first port of the container.
fn entered(yaml: &str, pieces: &[(&str, &str)]) -> (String, Option<String>, u64) {
    let deployment = one(&made_of(yaml, pieces), Made::Deployment);
    let of = |path: &str| deployment.pointer(&format!("/spec/template/{path}")).unwrap();
    let env = of("spec/containers/0/env").as_array().unwrap();
    let named = |one: &&Value| one.get("name").and_then(Value::as_str) == Some("AMBIT_PROXY_PORT");
    let port = env.iter().find(named).map(|one| one.get("value").unwrap().as_str().unwrap().to_owned());
    (
        of("metadata/labels/istio.io~1dataplane-mode").as_str().unwrap().to_owned(),
        port,
        of("spec/containers/0/ports/0/containerPort").as_u64().unwrap(),
    )
}

#[test]
fn a_gateway_that_is_handed_connections_has_captured_pods_which_leave_tunnels_to_the_ztunnel() {
    let tunnels = ("none".to_owned(), None, 15008);
    let handed = ("ambient".to_owned(), Some("15088".to_owned()), 15088);
    assert_eq!(entered(GATE, &[]), tunnels);
    assert_eq!(entered(&bound("NONE"), &[]), tunnels);
    assert_eq!(entered(&bound("PROXY/15088"), &[]), handed);
    let lie = "spec: {template: {metadata: {labels: {istio.io/dataplane-mode: none}}}}";
    assert_eq!(entered(&bound("PROXY/15088"), &[("deployment", lie)]), handed);
    // By its class, unless it says something itself.
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
        metadata: {name: ambit-waypoint, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}\n\
        spec: {controllerName: ambit.io/waypoint-controller}\n";
    assert_eq!(entered(&[GATE, class].concat(), &[]), handed);
    assert_eq!(entered(&[&bound("NONE"), class].concat(), &[]), tunnels);
}

/// Whether its pods are to tell applications who calls.
fn names_clients(yaml: &str) -> bool {
    let deployment = one(&made_of(yaml, &[]), Made::Deployment);
    let env = deployment.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap();
    let named = json!({ "name": "AMBIT_XFCC_INCLUDE_CLIENT_IDENTITY", "value": "true" });
    env.contains(&named)
}

#[test]
fn clients_are_named_where_the_gateway_or_its_class_says_so() {
    let of_gateway = |value: &str| {
        let annotations =
            format!("annotations: {{ambient.istio.io/xfcc-include-client-identity: \"{value}\"}}");
        GATE.replace("generation: 3", &format!("generation: 3, {annotations}"))
    };
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
        metadata: {name: ambit-waypoint, annotations: {ambient.istio.io/xfcc-include-client-identity: \"true\"}}\n\
        spec: {controllerName: ambit.io/waypoint-controller}\n";
    assert!(!names_clients(GATE));
    assert!(names_clients(&of_gateway("true")));
    assert!(!names_clients(&of_gateway("false")));
    assert!(names_clients(&[GATE, class].concat()));
    assert!(!names_clients(&[&of_gateway("false"), class].concat()));
}

#[test]
fn a_binding_that_cannot_be_had_is_told_and_changes_nothing() {
    for binding in ["PROXY", "PROXY/0", "PROXY/15008", "PROXY/15021", "NONE/15088"] {
        let yaml = bound(binding);
        assert_eq!(entered(&yaml, &[]), ("none".to_owned(), None, 15008), "{binding}");
        let status = told(&yaml, &Outcome::default(), &Value::Null, 7);
        assert_eq!(words(&status["conditions"])[0], "Accepted=False Invalid", "{binding}");
        let message = status["conditions"][0]["message"].as_str().unwrap();
        assert!(message.contains("write PROXY/15088"), "{message}");
    }
    let status = told(&bound("PROXY/15088"), &Outcome::default(), &Value::Null, 7);
    assert_eq!(words(&status["conditions"])[0], "Accepted=True Accepted");
}

#[test]
fn an_autoscaler_is_made_if_it_is_asked_for_and_then_has_the_number() {
    assert_eq!(one(&made(&[]), Made::Deployment)["spec"]["replicas"], 3);
    let all =
        made(&[("horizontalPodAutoscaler", "spec: {maxReplicas: 9}"), ("deployment", "spec: {replicas: 4}")]);
    let autoscaler = one(&all, Made::HorizontalPodAutoscaler);
    assert_eq!(
        (&autoscaler["spec"]["minReplicas"], &autoscaler["spec"]["maxReplicas"]),
        (&json!(2), &json!(9))
    );
    assert_eq!(one(&all, Made::Deployment)["spec"].get("replicas"), None);
}

fn pod(ready: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: gate-1, namespace: shop, labels: {{gateway.networking.k8s.io/gateway-name: gate}}}}\n\
         spec: {{serviceAccountName: gate}}\nstatus: {{phase: Running, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )
}

fn told(yaml: &str, outcome: &Outcome, before: &Value, second: i64) -> Value {
    let cluster = cluster(yaml);
    let now = Timestamp::from_second(second).unwrap();
    status::of(&cluster, gate(&cluster), outcome, before, now)
}

/// `type=status reason`.
fn words(conditions: &Value) -> Vec<String> {
    let word = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let all = conditions.as_array().unwrap().iter();
    all.map(|one| format!("{}={} {}", word(one, "type"), word(one, "status"), word(one, "reason"))).collect()
}

#[test]
fn the_address_comes_with_the_first_ready_instance_and_stays() {
    let nothing = Outcome::default();
    let new = told(GATE, &nothing, &Value::Null, 7);
    assert_eq!(new["addresses"], json!([]));
    assert_eq!(words(&new["conditions"]), ["Accepted=True Accepted", "Programmed=False Pending"]);
    let starting = told(&[GATE, &pod("False")].concat(), &nothing, &new, 8);
    assert_eq!(starting, new, "and its conditions are as old as they were");
    let ready = told(&[GATE, &pod("True")].concat(), &nothing, &new, 9);
    assert_eq!(ready["addresses"], json!([{ "type": "Hostname", "value": "gate.shop.svc.cluster.local" }]));
    assert_eq!(words(&ready["conditions"]), ["Accepted=True Accepted", "Programmed=True Programmed"]);
    let times = |status: &Value, at: usize| status["conditions"][at]["lastTransitionTime"].clone();
    assert_eq!(times(&ready, 0), times(&new, 0));
    assert_ne!(times(&ready, 1), times(&new, 1));
    assert_eq!(ready["conditions"][0]["observedGeneration"], 3);
    // The controller reads back what it wrote.
    let written =
        format!("{GATE}status: {{addresses: [{{type: Hostname, value: gate.shop.svc.cluster.local}}]}}\n");
    let away = told(&written, &nothing, &ready, 11);
    assert_eq!(away["addresses"], ready["addresses"]);
    assert_eq!(words(&away["conditions"])[1], "Programmed=False Pending");
}

#[test]
fn each_listener_is_told_what_becomes_of_it() {
    let status = told(&[GATE, &pod("True")].concat(), &Outcome::default(), &Value::Null, 7);
    let listeners: Vec<_> =
        status["listeners"].as_array().unwrap().iter().map(|one| words(&one["conditions"])).collect();
    let good = [
        "Accepted=True Accepted",
        "ResolvedRefs=True ResolvedRefs",
        "Conflicted=False NoConflicts",
        "Programmed=True Programmed",
    ];
    assert_eq!(listeners[0], good);
    assert_eq!(listeners[4], good);
    assert_eq!(listeners[1][0], "Accepted=False UnsupportedProtocol");
    assert_eq!(listeners[1][3], "Programmed=False Invalid");
    assert_eq!(listeners[2][0], "Accepted=False PortUnavailable");
    assert_eq!(
        listeners[3][..3],
        [
            "Accepted=False HostnameConflict",
            "ResolvedRefs=False InvalidRouteKinds",
            "Conflicted=True HostnameConflict"
        ]
    );
}

#[test]
fn what_stands_in_the_way_is_told() {
    let yaml = [GATE, &pod("True")].concat();
    let words_of = |outcome: Outcome| words(&told(&yaml, &outcome, &Value::Null, 7)["conditions"]);
    let mistake = Outcome { parameters: Some("deployment: not YAML".to_owned()), ..Outcome::default() };
    assert_eq!(words_of(mistake)[0], "Accepted=False InvalidParameters");
    let foreign = Outcome { foreign: vec!["Service"], ..Outcome::default() };
    assert_eq!(words_of(foreign)[1], "Programmed=False Invalid");
    let failure = Outcome { failure: Some("forbidden".to_owned()), ..Outcome::default() };
    assert_eq!(words_of(failure)[1], "Programmed=False Pending");
    let without = GATE.split("  listeners:").next().unwrap();
    let none = told(without, &Outcome::default(), &Value::Null, 7);
    assert_eq!(words(&none["conditions"]), ["Accepted=False ListenersNotValid", "Programmed=False Invalid"]);
}

#[test]
fn a_gateway_is_whose_its_class_says() {
    let class = |name: &str, controller: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}\n"
        )
    };
    for (of, classes, ours) in [
        ("ambit-waypoint", String::new(), true),
        ("istio-waypoint", String::new(), true),
        ("istio-waypoint", class("istio-waypoint", "istio.io/mesh-controller"), false),
        ("istio-waypoint", class("istio-waypoint", "ambit.io/waypoint-controller"), true),
        ("mine", class("mine", "ambit.io/waypoint-controller"), true),
        ("mine", String::new(), false),
        ("ambit-waypoint", class("ambit-waypoint", "example.com/other"), false),
    ] {
        let cluster = cluster(&[GATE.replace("ambit-waypoint", of), classes.clone()].concat());
        assert_eq!(is_ours(&cluster, gate(&cluster)), ours, "{of} with {classes:?}");
    }
}
