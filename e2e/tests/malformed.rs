//! Objects that the API server takes and the mesh cannot use, of every kind that is read, and objects that refer to
//! nothing: each is refused by name, what stands beside it is in force, and a policy that makes no sense denies.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![expect(
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::controller::{Controller, Listener};
use ambit_e2e::scale::objects::{Shape, Writer};
use ambit_e2e::wait::Stop;
use ambit_lab::process::Program;
use ambit_model::authz::{Facts, check};
use ambit_model::identity::Identity;
use ambit_model::service::Mode;
use ambit_model::snapshot::Snapshot;
use ambit_model::workload::Tunnel;
use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// An object that is not used as it is written, and the field that is complained of.
struct Bad {
    field: &'static str,
    object: &'static str,
}

const fn bad(field: &'static str, object: &'static str) -> Bad {
    Bad { field, object }
}

/// Kubernetes' own kinds leave little to refuse: the API server reads most fields itself.
const BAD: [Bad; 20] = [
    // It reads `010` as ten, as it always did; to others it is eight.
    bad(
        "status.podIPs",
        "{apiVersion: v1, kind: Pod, metadata: {name: leading-zeros, namespace: shop}, spec: {nodeName: node-0, containers: [{name: a, image: none}]}, status: {phase: Running, podIP: 010.1.0.1, podIPs: [{ip: 010.1.0.1}]}}",
    ),
    bad(
        "spec.clusterIPs",
        "{apiVersion: v1, kind: Service, metadata: {name: leading-zeros, namespace: shop}, spec: {clusterIP: 10.096.7.7, ports: [{port: 80}]}}",
    ),
    bad(
        "ports[].port",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: high-port, namespace: shop, labels: {kubernetes.io/service-name: by-hand}}, addressType: IPv4, endpoints: [{addresses: [10.1.0.4]}], ports: [{name: http, port: 70000}]}",
    ),
    bad(
        "ports[].port",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: low-port, namespace: shop, labels: {kubernetes.io/service-name: by-hand}}, addressType: IPv4, endpoints: [{addresses: [10.1.0.5]}], ports: [{name: http, port: -1}]}",
    ),
    bad(
        "endpoints[].addresses",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: leading-zeros, namespace: shop, labels: {kubernetes.io/service-name: by-hand}}, addressType: IPv4, endpoints: [{addresses: [010.1.0.6]}], ports: [{name: http, port: 80}]}",
    ),
    bad(
        "spec.hosts",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: nothing-at-all, namespace: shop}}",
    ),
    bad(
        "spec.hosts",
        "{apiVersion: networking.istio.io/v1beta1, kind: ServiceEntry, metadata: {name: host-with-slash, namespace: shop}, spec: {hosts: [shop/web.example.com], ports: [{number: 80, name: http}]}}",
    ),
    bad(
        "spec.addresses",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: range-too-long, namespace: shop}, spec: {hosts: [a.example.com], addresses: [10.0.0.0/33], ports: [{number: 80, name: http}]}}",
    ),
    bad(
        "spec.ports[].number",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: port-too-high, namespace: shop}, spec: {hosts: [b.example.com], ports: [{number: 4294967295, name: http}]}}",
    ),
    bad(
        "spec.endpoints[].address",
        "{apiVersion: networking.istio.io/v1alpha3, kind: ServiceEntry, metadata: {name: endpoint-nowhere, namespace: shop}, spec: {hosts: [c.example.com], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{labels: {a: b}}]}}",
    ),
    bad(
        "spec.address",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: nowhere, namespace: shop}, spec: {labels: {app: web}}}",
    ),
    bad(
        "spec.address",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: socket, namespace: shop}, spec: {address: 'unix:///run/web.sock'}}",
    ),
    bad(
        "spec.ports.http",
        "{apiVersion: networking.istio.io/v1beta1, kind: WorkloadEntry, metadata: {name: port-zero, namespace: shop}, spec: {address: 10.1.0.7, ports: {http: 0}}}",
    ),
    // It would be part of an identity.
    bad(
        "spec.serviceAccount",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: account-with-slash, namespace: shop}, spec: {address: 10.1.0.8, serviceAccount: default/../admin}}",
    ),
    bad(
        "metadata.labels[istio.io/waypoint-for]",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: for-whom, namespace: shop, labels: {istio.io/waypoint-for: everybody}}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
    ),
    bad(
        "spec.listeners[].allowedRoutes.namespaces.selector.matchExpressions",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: operator, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Perhaps, values: [b]}]}}}}]}}",
    ),
    bad(
        "metadata.annotations[ambient.istio.io/waypoint-inbound-binding]",
        "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: Gateway, metadata: {name: binding, namespace: shop, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/port}}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
    ),
    bad(
        "metadata.labels[istio.io/waypoint-for]",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: for-whom, labels: {istio.io/waypoint-for: everybody}}, spec: {controllerName: istio.io/mesh-controller}}",
    ),
    bad(
        "spec.rules[0].filters[0].type",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: extended, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: Magic, name: wand}}]}]}}",
    ),
    bad(
        "spec.rules[0].matches[0].method.service",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: pattern, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{matches: [{method: {type: RegularExpression, service: '(', method: Get}}]}]}}",
    ),
];

/// What is refused of a policy (nothing, perhaps), and how far the denial reaches that stands in for it.
struct Policy {
    field: &'static str,
    reach: Reach,
    kind: &'static str,
    spec: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Reach {
    /// The pods that it selects, which can be read.
    Selected,
    /// Every pod of its namespace.
    Namespace,
}

const fn access(field: &'static str, reach: Reach, spec: &'static str) -> Policy {
    Policy { field, reach, kind: "AuthorizationPolicy", spec }
}

const fn peers(field: &'static str, reach: Reach, spec: &'static str) -> Policy {
    Policy { field, reach, kind: "PeerAuthentication", spec }
}

const POLICIES: [Policy; 20] = [
    access(
        "spec.rules[0].to[0].operation.ports[0]",
        Reach::Namespace,
        "{rules: [{to: [{operation: {ports: [http]}}]}]}",
    ),
    access(
        "spec.rules[0].to[0].operation.ports[1]",
        Reach::Namespace,
        "{rules: [{to: [{operation: {ports: ['80', '70000']}}]}]}",
    ),
    access(
        "spec.rules[0].from[0].source.ipBlocks[0]",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]}",
    ),
    access(
        "spec.rules[0].from[0].source.principals[0]",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ['']}}]}]}",
    ),
    access(
        "spec.rules[0].from[0].source.serviceAccounts[0]",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}",
    ),
    access(
        "spec.rules[0].from[0].source.shoeSizes",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {shoeSizes: ['43']}}]}]}",
    ),
    access(
        "spec.rules[0].when[0].values[0]",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{when: [{key: source.ip, values: [everywhere]}]}]}",
    ),
    access(
        "spec.rules[0].when[0].key",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{when: [{values: [a]}]}]}",
    ),
    access(
        "spec.rules[0].when[0]",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{when: [{key: source.namespace}]}]}",
    ),
    access(
        "spec.rules[0].from[0].source",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{from: [{}]}]}",
    ),
    access(
        "spec.selector.matchLabels",
        Reach::Namespace,
        "{selector: {matchLabels: {'app*': web}}, rules: [{}]}",
    ),
    access(
        "spec.selector.matchExpressions",
        Reach::Namespace,
        "{selector: {matchExpressions: [{key: app, operator: Exists}]}, rules: [{}]}",
    ),
    access(
        "spec",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, targetRefs: [{group: '', kind: Service, name: web}], rules: [{}]}",
    ),
    access("spec.rule", Reach::Namespace, "{rule: [{}]}"),
    // A waypoint's affair, for all that a tunnel knows: without one, what is left of them lets nobody in.
    access(
        "",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, rules: [{when: [{key: request.colour, values: [red]}]}]}",
    ),
    access(
        "",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{when: [{key: request.colour, values: [red]}]}]}",
    ),
    peers(
        "spec.portLevelMtls.http",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {http: {mode: DISABLE}}}",
    ),
    peers(
        "spec.portLevelMtls.70000",
        Reach::Selected,
        "{selector: {matchLabels: {app: web}}, portLevelMtls: {'70000': {mode: PERMISSIVE}}}",
    ),
    peers("spec.mtls.mod", Reach::Namespace, "{mtls: {mod: PERMISSIVE}}"),
    peers(
        "spec.selector.matchlabels",
        Reach::Namespace,
        "{selector: {matchlabels: {app: web}}, mtls: {mode: DISABLE}}",
    ),
];

/// In order, or as good as: what they refer to is not there, or what they wish for is no word.
const GOOD: [&str; 27] = [
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: slip, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [friends]}}]}]}}",
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
    "{apiVersion: v1, kind: Namespace, metadata: {name: near, annotations: {networking.istio.io/traffic-distribution: PreferClose}}}",
    "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: near}, spec: {clusterIP: None}}",
    "{apiVersion: v1, kind: Namespace, metadata: {name: odd, labels: {istio.io/dataplane-mode: perhaps, istio.io/use-waypoint: nobody, istio.io/use-waypoint-namespace: nowhere, topology.istio.io/network: n_2}, annotations: {networking.istio.io/traffic-distribution: PreferFar}}}",
    "{apiVersion: v1, kind: Service, metadata: {name: no-ports, namespace: odd}, spec: {clusterIP: None}}",
    "{apiVersion: v1, kind: Node, metadata: {name: node-0, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}}",
    "{apiVersion: v1, kind: Node, metadata: {name: node-odd, labels: {topology.kubernetes.io/zone: '', topology.istio.io/subzone: S_1}}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}, spec: {nodeName: node-0, containers: [{name: a, image: none}]}, status: {phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}], conditions: [{type: Ready, status: 'True'}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: odd, namespace: shop, labels: {istio.io/dataplane-mode: maybe, istio.io/use-waypoint: nobody, networking.istio.io/tunnel: carrier-pigeon}, annotations: {ambient.istio.io/redirection: later}}, spec: {nodeName: nowhere, containers: [{name: a, image: none}]}, status: {phase: Running, podIP: 10.1.1.2, podIPs: [{ip: 10.1.1.2}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.7.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: nobody}, {name: dns, port: 80, protocol: UDP}, {name: other, port: 81}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: waits, namespace: shop, labels: {istio.io/use-waypoint: nobody}, annotations: {networking.istio.io/traffic-distribution: '{}'}}, spec: {clusterIP: 10.96.7.2, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: elsewhere, namespace: shop}, spec: {type: ExternalName, externalName: other.example.com}}",
    "{apiVersion: v1, kind: Service, metadata: {name: by-hand, namespace: shop}, spec: {clusterIP: 10.96.7.3, ports: [{name: http, port: 80}]}}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: by-hand, namespace: shop, labels: {kubernetes.io/service-name: by-hand}}, addressType: IPv4, endpoints: [{addresses: [10.1.2.1]}], ports: [{name: http, port: 8080}, {name: every-port}, {name: http-3, port: 80, protocol: UDP}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: names, namespace: shop, labels: {kubernetes.io/service-name: by-hand}}, addressType: FQDN, endpoints: [{addresses: [a.example.com]}], ports: [{name: http, port: 80}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: of-nobody, namespace: shop, labels: {kubernetes.io/service-name: nobody}}, addressType: IPv4, endpoints: [{addresses: [10.1.2.2], targetRef: {kind: Pod, name: gone, namespace: nowhere}}, {addresses: [10.1.2.3], targetRef: {kind: Pod}}], ports: []}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: good, namespace: shop}, spec: {hosts: [good.example.com], addresses: [240.1.1.1], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.1.3.1}], workloadSelector: {labels: {app: nobody}}, exportTo: [nowhere]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: stars, namespace: shop}, spec: {hosts: ['*'], ports: [{number: 80, name: http}], resolution: DYNAMIC_DNS}}",
    "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: good, namespace: shop}, spec: {address: 10.1.3.2, locality: a/b/c/d/e, serviceAccount: vm}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: of-no-class, namespace: shop}, spec: {gatewayClassName: nobody-serves-it, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gate, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{type: example.com/pigeon, value: loft}, {type: IPAddress, value: 10.96.7.9}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: through, namespace: shop, labels: {istio.io/use-waypoint: gate}}, spec: {clusterIP: 10.96.7.4, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: abroad, namespace: odd, labels: {istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: shop}}, spec: {clusterIP: 10.96.7.5, ports: [{port: 80}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: istio-waypoint}, spec: {controllerName: istio.io/mesh-controller, parametersRef: {group: example.com, kind: Nothing, name: nobody}}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: of-nobody, namespace: shop}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: nobody}], rules: [{}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: of-nobody, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: nobody}], rules: [{backendRefs: [{name: nobody, port: 80}]}]}}",
];

/// In the namespace of each policy: whom it selects, whom it does not, and a policy about the latter.
fn neighbours(number: usize) -> [String; 4] {
    let namespace = namespace(number);
    let pod = |app: &str, ip: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {app}, namespace: {namespace}, labels: {{app: {app}}}}}, spec: {{nodeName: node-0, containers: [{{name: a, image: none}}]}}, status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}]}}}}"
        )
    };
    [
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"),
        pod("web", &format!("10.2.{number}.1")),
        pod("other", &format!("10.2.{number}.2")),
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: good, namespace: {namespace}}}, spec: {{selector: {{matchLabels: {{app: other}}}}, rules: [{{from: [{{source: {{namespaces: [friends]}}}}]}}]}}}}"
        ),
    ]
}

fn namespace(number: usize) -> String {
    format!("policy-{number}")
}

fn written(number: usize, policy: &Policy) -> String {
    let Policy { kind, spec, .. } = policy;
    format!(
        "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: bad, namespace: {}}}, spec: {spec}}}",
        namespace(number)
    )
}

/// All of them, namespaces first, and for each that is refused its name with the field.
fn objects() -> anyhow::Result<(Vec<Value>, BTreeMap<String, String>)> {
    let read = |text: &str| serde_yaml_ng::from_str::<Value>(text).with_context(|| text.to_owned());
    let good = GOOD.iter().map(|text| read(text));
    let neighbours = (0..POLICIES.len()).flat_map(neighbours);
    let mut all = good.chain(neighbours.map(|text| read(&text))).collect::<anyhow::Result<Vec<_>>>()?;
    all.sort_by_key(|object| object["kind"] != "Namespace");
    let mut refused = BTreeMap::new();
    let policies = POLICIES.iter().enumerate();
    let policies = policies.map(|(number, policy)| (written(number, policy), policy.field));
    for (text, field) in BAD.iter().map(|bad| (bad.object.to_owned(), bad.field)).chain(policies) {
        let object = read(&text)?;
        if !field.is_empty() {
            refused.insert(named(&object), field.to_owned());
        }
        all.push(object);
    }
    Ok((all, refused))
}

/// As the controller calls it.
fn named(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
    let place = metadata["namespace"].as_str().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{kind} {place}{}", text(&metadata["name"]))
}

#[test]
fn what_makes_no_sense_is_refused_by_name_and_takes_nothing_with_it() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    ambit_wire::tls::install_provider()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(tell(&ApiServer::start(&programs, &Stop::default())?))
}

async fn tell(api: &ApiServer) -> anyhow::Result<()> {
    let stop = Stop::default();
    api.define(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/crds"), &stop)?;
    let client = api.client().await?;
    Writer::new(client.clone(), Shape { nodes: 1, pods: 0, services: 1 }).everything().await?;
    let program = above("controller").context("run `cargo build --workspace --bins`")?;
    let controller = Controller::start(&program, api, &[], &stop)?;
    controller.ready().await?;
    let listener = Listener::connect(&client, &controller).await?;

    let (objects, mut refused) = objects()?;
    write(&client, &objects).await?;
    complaints(&controller, &refused).await?;
    conditions(&controller).await?;
    listener
        .until(LIMIT, "the last of them", |mesh| verdicts(mesh).is_ok() && neighbourhood(mesh).is_ok())
        .await
        .or_else(|late| {
            verdicts(&listener.mesh()).and_then(|()| neighbourhood(&listener.mesh())).and(Err(late))
        })?;

    // The same from a directory means the same.
    let dir = Directory::write(&objects)?;
    let other = dir.controller(&program, &stop)?;
    other.ready().await?;
    complaints(&other, &refused).await?;
    conditions(&other).await?;
    let (here, there) = (names(&controller).await?, names(&other).await?);
    let only: Vec<_> = here.symmetric_difference(&there).filter(|name| !is_of_the_api_server(name)).collect();
    ensure!(only.is_empty(), "only one of the two sources says {only:?}");

    // Of a policy that was understood, what it said stays in force.
    let slip = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: slip, namespace: shop}, \
                spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]}}";
    write(&client, &[serde_yaml_ng::from_str(slip)?]).await?;
    refused.insert(
        "AuthorizationPolicy shop/slip".to_owned(),
        "spec.rules[0].from[0].source.ipBlocks[0]".to_owned(),
    );
    complaints(&controller, &refused).await?;
    let friends = |listener: &Listener| lets_in(&listener.mesh(), "shop", "web", Some("friends"));
    ensure!(friends(&listener)?, "a slip of the pen shut out everybody");
    ensure!(
        !lets_in(&listener.mesh(), "shop", "web", Some("strangers"))?,
        "a slip of the pen let everybody in"
    );

    // One that starts has no past, and takes each as it is.
    drop(controller);
    let again = Controller::start(&program, api, &[], &stop)?;
    again.ready().await?;
    complaints(&again, &refused).await?;
    let listener = Listener::connect(&client, &again).await?;
    ensure!(!friends(&listener)?, "nobody knows what it said before");
    verdicts(&listener.mesh())?;
    neighbourhood(&listener.mesh())
}

async fn write(client: &Client, objects: &[Value]) -> anyhow::Result<()> {
    let (first, rest): (Vec<_>, Vec<_>) = objects.iter().partition(|one| one["kind"] == "Namespace");
    for part in [first, rest] {
        let written = stream::iter(part).map(|object| write_one(client, object));
        written.buffer_unordered(16).try_collect::<Vec<_>>().await?;
    }
    Ok(())
}

async fn write_one(client: &Client, object: &Value) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &text(&object["kind"])));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let wrong = || named(object);
    match api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let name = text(&object["metadata"]["name"]);
            api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await.with_context(wrong)?;
        }
        other => drop(other.with_context(wrong)?),
    }
    if let Some(status) = object.get("status") {
        let status = serde_json::json!({ "status": status });
        let name = text(&object["metadata"]["name"]);
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.with_context(wrong)?;
    }
    Ok(())
}

/// Every one is complained of once, with its field, and no other.
async fn complaints(controller: &Controller, refused: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut last = BTreeMap::new();
    let heard = controller.until(LIMIT, "the last complaint", async || {
        let page: Value = serde_json::from_str(&controller.page("/debug/objects").await?)?;
        let problems = page["problems"].as_array().context("no problems")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        last = problems.iter().map(|one| (text(&one["object"]), text(&one["field"]))).collect();
        Ok((last == *refused).then_some(()))
    });
    if let Err(error) = heard.await {
        let missing: Vec<_> = refused.iter().filter(|(name, field)| last.get(*name) != Some(field)).collect();
        let strange: Vec<_> = last.iter().filter(|(name, field)| refused.get(*name) != Some(field)).collect();
        return Err(error.context(format!("not complained of: {missing:?}; instead: {strange:?}")));
    }
    let counted = controller.figure("ambit_source_problems").await?;
    ensure!(counted == u64::try_from(refused.len())?, "{counted} are counted");
    // The log is written a moment after the page.
    let mut said = String::new();
    let logged = |said: &str, name: &str, field: &str| {
        let lines = said.lines().filter(|line| line.contains("not used as it is written"));
        lines.filter(|line| line.contains(name) && line.contains(field)).count()
    };
    controller
        .until(LIMIT, "the last line of the log", async || {
            said = controller.process().said();
            Ok(refused.iter().all(|(name, field)| logged(&said, name, field) > 0).then_some(()))
        })
        .await?;
    let twice: Vec<_> = refused.iter().filter(|(name, field)| logged(&said, name, field) > 1).collect();
    ensure!(twice.is_empty(), "logged more than once: {twice:?}");
    ensure!(!said.contains("panicked"), "{said}");
    controller.page("/readyz").await.map(drop).context("it is not ready any more")
}

/// Whoever wrote an object that refers to nothing is told so on it.
async fn conditions(controller: &Controller) -> anyhow::Result<()> {
    let page: Value = serde_json::from_str(&controller.page("/debug/objects").await?)?;
    for (kind, name, reason) in [
        ("Service", "waits", "WaypointIsNotReady"),
        ("Service", "abroad", "AttachmentDenied"),
        ("ServiceEntry", "stars", "NoWaypointForWildcardService"),
        ("AuthorizationPolicy", "of-nobody", "TargetNotFound"),
        ("HTTPRoute", "of-nobody", "NoMatchingParent"),
    ] {
        let all = page["conditions"].as_array().into_iter().flatten();
        let mut of = all.filter(|one| one["kind"] == kind && one["name"] == name);
        let told = of
            .any(|one| one["conditions"].as_array().into_iter().flatten().any(|one| one["reason"] == reason));
        ensure!(told, "{kind} {name} is not told {reason}: {page:#}");
    }
    Ok(())
}

/// What stands in for each policy, as a tunnel judges it.
fn verdicts(mesh: &Snapshot) -> anyhow::Result<()> {
    for (number, policy) in POLICIES.iter().enumerate() {
        let allowed = |app: &str, peer: Option<&str>| lets_in(mesh, &namespace(number), app, peer);
        let wide = policy.reach == Reach::Namespace;
        let got = (
            (allowed("web", Some("friends"))?, allowed("web", Some("strangers"))?, allowed("web", None)?),
            (allowed("other", Some("friends"))?, allowed("other", Some("strangers"))?),
        );
        // Whoever must show who it is, and does, is let in; an unknown access lets nobody in.
        let shown = policy.kind == "PeerAuthentication";
        let wanted = ((shown, shown, false), (shown || !wide, false));
        ensure!(got == wanted, "{} ({}): {got:?}, not {wanted:?}", namespace(number), policy.spec);
    }
    Ok(())
}

/// Whether a pod lets in who comes from that namespace, or in plain text.
fn lets_in(mesh: &Snapshot, namespace: &str, app: &str, peer: Option<&str>) -> anyhow::Result<bool> {
    let workload = mesh.workload(&format!("Kubernetes//Pod/{namespace}/{app}").as_str().into());
    let workload = workload.with_context(|| format!("{namespace} has no {app}"))?;
    let peer = peer.map(|namespace| Identity::new("cluster.local", namespace, "default"));
    let destination = SocketAddr::new(workload.addresses[0], 80);
    let facts = Facts { peer: peer.as_ref(), source: IpAddr::from([10, 9, 9, 9]), destination, seen: None };
    Ok(check(mesh.policies_on(workload), &facts).is_allowed())
}

/// What stands beside the objects that are refused.
fn neighbourhood(mesh: &Snapshot) -> anyhow::Result<()> {
    let workload = |uid: &str| mesh.workload(&format!("Kubernetes/{uid}").as_str().into());
    let web = workload("/Pod/shop/web").context("shop/web")?;
    ensure!(web.tunnel == Tunnel::Hbone && web.locality.zone.as_str() == "z", "{web:?}");
    let odd = workload("/Pod/shop/odd").context("shop/odd")?;
    ensure!(odd.tunnel == Tunnel::None && odd.waypoint.is_none() && odd.locality.zone.is_empty(), "{odd:?}");
    let by_hand = workload("discovery.k8s.io/EndpointSlice/shop/by-hand/10.1.2.1").context("shop/by-hand")?;
    ensure!(by_hand.services.len() == 1, "{by_hand:?}");
    let vm = workload("networking.istio.io/WorkloadEntry/shop/good").context("the entry")?;
    ensure!(vm.service_account.as_str() == "vm", "{vm:?}");
    workload("networking.istio.io/ServiceEntry/shop/good/10.1.3.1").context("the endpoint of an entry")?;
    let service = |namespace: &str, host: &str| {
        let found =
            mesh.services().find(|one| one.namespace.as_str() == namespace && one.hostname.as_str() == host);
        found.cloned().with_context(|| format!("{namespace}/{host}"))
    };
    let near = service("near", "web.near.svc.cluster.local")?;
    ensure!(near.load_balancing.mode == Mode::Failover, "{near:?}");
    let far = service("odd", "no-ports.odd.svc.cluster.local")?;
    ensure!(far.load_balancing.mode != Mode::Failover && far.waypoint.is_none(), "{far:?}");
    let web = service("shop", "web.shop.svc.cluster.local")?;
    ensure!(web.ports.iter().count() == 2, "{web:?}");
    ensure!(service("shop", "waits.shop.svc.cluster.local")?.waypoint.is_none(), "bound to nobody");
    service("shop", "good.example.com")?;
    ensure!(
        service("shop", "through.shop.svc.cluster.local")?.waypoint.is_some(),
        "the waypoint is not used"
    );
    ensure!(service("odd", "abroad.odd.svc.cluster.local")?.waypoint.is_none(), "it was not invited");
    for gone in ["leading-zeros", "nowhere", "port-zero", "account-with-slash", "socket"] {
        let found = mesh.workloads().find(|one| one.name.as_str() == gone);
        ensure!(found.is_none(), "{found:?}");
    }
    Ok(())
}

/// The same objects as files.
struct Directory(tempfile::TempDir);

impl Directory {
    fn write(objects: &[Value]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        for (number, object) in objects.iter().enumerate() {
            let folder = dir.path().join("objects");
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(format!("{number}.yaml")), serde_yaml_ng::to_string(object)?)?;
        }
        std::fs::create_dir(dir.path().join("tokens"))?;
        Ok(Self(dir))
    }

    fn controller(&self, program: &Path, stop: &Stop) -> anyhow::Result<Controller> {
        let at = |name: &str| self.0.path().join(name).display().to_string();
        let source = format!("directory:{}", at("objects"));
        let program = Program::new(program).args(["--source", &source, "--tokens", &at("tokens")]);
        Controller::start_on(program.args(["--ca-dir", &at("ca")]), stop)
    }
}

/// Everything that it publishes.
async fn names(controller: &Controller) -> anyhow::Result<BTreeSet<String>> {
    let listing: Vec<Value> = serde_json::from_str(&controller.page("/debug/configz").await?)?;
    Ok(listing.iter().map(|one| format!("{} {}", one["type"], one["name"])).collect())
}

/// It has a Service for itself, and this test's cluster one that its tunnel needs.
fn is_of_the_api_server(name: &str) -> bool {
    name.contains("default/kubernetes") || name.contains("shop-0/") || name.contains("istio-system/ztunnel")
}
