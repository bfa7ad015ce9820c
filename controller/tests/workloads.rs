//! Workloads, line by line of protocols 11.5, 11.1 and the edge cases of 12.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use ambit_controller::cluster::Settings;
use ambit_controller::cluster::object::Name;
use ambit_controller::translate::WorkloadSource;
use ambit_model::name::ServiceKey;
use ambit_model::service::TargetPort;
use ambit_model::workload::{Capacity, Health, NetworkMode, Tunnel, Workload, WorkloadType};
use support::{cluster, cluster_with, entry, inline, pod, pod_yaml, workload};

fn ports(workload: &Workload, service: &str) -> Option<Vec<(u16, u16)>> {
    let key = ServiceKey::parse(service).unwrap();
    let (_, ports) = workload.services.iter().find(|(one, _)| *one == key)?;
    Some(ports.iter().map(|(port, target)| (port, target.number())).collect())
}

#[test]
fn a_pod_is_a_workload() {
    let yaml = pod_yaml("shop", "web", "10.0.0.1", "app: web, version: v2")
        + "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels: {topology.kubernetes.io/region: r, \
           topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}\n";
    let web = pod(&cluster(&yaml), "shop", "web").unwrap();
    assert_eq!(web.uid, "Kubernetes//Pod/shop/web");
    assert_eq!(web.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((web.tunnel, web.native_tunnel), (Tunnel::Hbone, false));
    assert_eq!((web.health, web.network_mode), (Health::Healthy, NetworkMode::Standard));
    assert_eq!(web.locality.region.as_str(), "r");
    assert_eq!(web.locality.subzone.as_str(), "s");
    assert_eq!((web.node.as_str(), web.cluster.as_str()), ("n1", "Kubernetes"));
    assert_eq!((web.canonical_name.as_str(), web.canonical_revision.as_str()), ("web", "v2"));
    assert_eq!((web.workload_name.as_str(), web.workload_type), ("web", WorkloadType::Pod));
    assert_eq!(web.capacity, Capacity(1));
}

#[test]
fn identity_and_cluster_are_as_the_mesh_says() {
    let settings =
        Settings { trust_domain: "example.org".into(), cluster: "west".into(), ..Settings::default() };
    let web = pod(&cluster_with(settings, &pod_yaml("shop", "web", "10.0.0.1", "")), "shop", "web").unwrap();
    assert_eq!(web.identity().to_string(), "spiffe://example.org/ns/shop/sa/web");
    assert_eq!(web.uid, "west//Pod/shop/web");
}

/// Whether there is a workload, and whether it is healthy, by phase, address, readiness and deletion.
#[test]
fn a_pod_takes_part_while_it_lives_and_has_an_address() {
    for (phase, ip, ready, deleted, want) in [
        ("Running", "10.0.0.1", "True", "", Some(Health::Healthy)),
        ("Running", "10.0.0.1", "False", "", Some(Health::Unhealthy)),
        ("Running", "10.0.0.1", "True", "deletionTimestamp: 2026-01-01T00:00:00Z", Some(Health::Unhealthy)),
        ("Pending", "10.0.0.1", "False", "", Some(Health::Unhealthy)),
        ("Pending", "", "False", "", None),
        ("Succeeded", "10.0.0.1", "False", "", None),
        ("Succeeded", "", "False", "", None),
        ("Failed", "10.0.0.1", "False", "", None),
    ] {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  {deleted}\nstatus:\n  \
             phase: {phase}\n  podIP: \"{ip}\"\n  conditions: [{{type: Ready, status: \"{ready}\"}}]\n"
        );
        let got = pod(&cluster(&yaml), "shop", "web").map(|workload| workload.health);
        assert_eq!(got, want, "{phase} {ip:?} {ready} {deleted}");
    }
}

/// Edge case 36: the finished pod goes, whoever has its address now stays.
#[test]
fn a_finished_pod_does_not_take_the_next_owner_of_its_address_with_it() {
    let finished = pod_yaml("shop", "job", "10.0.0.1", "").replace("phase: Running", "phase: Succeeded");
    let cluster = cluster(&(finished + &pod_yaml("shop", "web", "10.0.0.1", "")));
    assert_eq!(pod(&cluster, "shop", "job"), None);
    assert!(pod(&cluster, "shop", "web").is_some());
}

/// Protocols 11.1: only what is really redirected is HBONE; enrolment labels alone are not.
#[test]
fn hbone_is_what_the_agent_redirected_or_what_terminates_it_itself() {
    for (labels, annotations, want) in [
        ("", "", (Tunnel::None, false)),
        ("istio.io/dataplane-mode: ambient", "", (Tunnel::None, false)),
        ("", "ambient.istio.io/redirection: enabled", (Tunnel::Hbone, false)),
        ("", "ambient.istio.io/redirection: pending", (Tunnel::None, false)),
        ("networking.istio.io/tunnel: http", "", (Tunnel::Hbone, true)),
        ("networking.istio.io/tunnel: \"mtls, http\"", "", (Tunnel::Hbone, true)),
        ("networking.istio.io/tunnel: mtls", "", (Tunnel::None, false)),
        ("security.istio.io/tlsMode: istio", "", (Tunnel::None, false)),
    ] {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  labels: {{{labels}}}\n  \
             annotations: {{{annotations}}}\nstatus: {{podIP: 10.0.0.1}}\n"
        );
        let web = pod(&cluster(&yaml), "shop", "web").unwrap();
        assert_eq!((web.tunnel, web.native_tunnel), want, "{labels} {annotations}");
    }
}

/// Edge case 23: the tunnel does not index it by address, if we say what it is.
#[test]
fn a_pod_on_the_host_network_says_so() {
    let yaml =
        pod_yaml("shop", "web", "10.0.0.1", "").replace("nodeName: n1", "nodeName: n1\n  hostNetwork: true");
    assert_eq!(pod(&cluster(&yaml), "shop", "web").unwrap().network_mode, NetworkMode::HostNetwork);
}

#[test]
fn every_address_of_a_dual_stack_pod_is_told() {
    let yaml = pod_yaml("shop", "web", "10.0.0.1", "")
        .replace("podIP: 10.0.0.1", "podIP: 10.0.0.1\n  podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}]");
    let ips: Vec<_> =
        pod(&cluster(&yaml), "shop", "web").unwrap().addresses.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.1", "fd00::1"]);
}

fn web_service(spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n---\n"
    )
}

#[test]
fn a_pod_has_the_ports_of_the_services_that_select_it() {
    let web = pod_yaml("shop", "web", "10.0.0.1", "app: web");
    let key = "shop/web.shop.svc.cluster.local";
    for (spec, want) in [
        ("selector: {app: web}, ports: [{port: 80, targetPort: 8080}]", Some(vec![(80, 8080)])),
        ("selector: {app: web}, ports: [{port: 80}]", Some(vec![(80, 80)])),
        ("selector: {app: web}, ports: [{port: 80, targetPort: http}]", Some(vec![(80, 8080)])),
        (
            "selector: {app: web}, ports: [{port: 80, targetPort: http}, {port: 81, targetPort: nope}]",
            Some(vec![(80, 8080)]),
        ),
        ("selector: {app: web, tier: front}, ports: [{port: 80}]", None),
        ("selector: {}, ports: [{port: 80}]", None),
        ("ports: [{port: 80}]", None),
        ("type: ExternalName, externalName: x.org, selector: {app: web}, ports: [{port: 80}]", None),
    ] {
        let cluster = cluster(&(web.clone() + &web_service(spec)));
        assert_eq!(ports(&pod(&cluster, "shop", "web").unwrap(), key), want, "{spec}");
    }
    let elsewhere = pod_yaml("other", "web", "10.0.0.1", "app: web");
    let cluster = cluster(&(elsewhere + &web_service("selector: {app: web}, ports: [{port: 80}]")));
    assert!(pod(&cluster, "other", "web").unwrap().services.is_empty());
}

#[test]
fn a_named_port_is_found_in_sidecar_containers_too() {
    let web = pod_yaml("shop", "web", "10.0.0.1", "app: web")
        .replace("\nstatus:", "\n  initContainers:\n  - name: b\n    restartPolicy: Always\n    ports: [{name: side, containerPort: 9}]\nstatus:");
    let cluster =
        cluster(&(web + &web_service("selector: {app: web}, ports: [{port: 80, targetPort: side}]")));
    let web = pod(&cluster, "shop", "web").unwrap();
    assert_eq!(ports(&web, "shop/web.shop.svc.cluster.local"), Some(vec![(80, 9)]));
}

fn slice(name: &str, endpoint: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports:\n- {{name: a, port: 9001, protocol: TCP}}\n\
         - {{name: u, port: 9002, protocol: UDP}}\nendpoints:\n- {{{endpoint}}}\n"
    )
}

#[test]
fn a_slice_makes_pods_endpoints_of_services_without_selector_only() {
    let web = pod_yaml("shop", "web", "10.0.0.1", "app: web");
    let slice = slice("web-1", "addresses: [10.0.0.1], targetRef: {kind: Pod, name: web, namespace: shop}");
    let key = "shop/web.shop.svc.cluster.local";
    let by_hand = web_service("ports: [{name: a, port: 80}, {name: u, port: 81}]");
    let by_label = web_service("selector: {app: other}, ports: [{name: a, port: 80}]");
    let got =
        |service: &str| ports(&pod(&cluster(&(web.clone() + service + &slice)), "shop", "web").unwrap(), key);
    assert_eq!(got(&by_hand), Some(vec![(80, 9001)]));
    assert_eq!(got(&by_label), None);
}

#[test]
fn an_address_in_a_slice_that_is_no_pod_is_a_workload_of_its_own() {
    let service = web_service("ports: [{name: a, port: 80}, {name: u, port: 81}]");
    let yaml = service + &slice("web-1", "addresses: [192.0.2.7], conditions: {ready: false}");
    let source =
        WorkloadSource::Slice { slice: Name::new("shop", "web-1"), ip: "192.0.2.7".parse().unwrap() };
    let got = workload(&cluster(&yaml), source.clone()).unwrap();
    assert_eq!(got.uid, "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.0.2.7");
    assert_eq!(
        (got.tunnel, got.network_mode, got.health),
        (Tunnel::None, NetworkMode::HostNetwork, Health::Unhealthy)
    );
    assert_eq!((got.service_account.as_str(), got.authorization_policies.len()), ("", 0));
    assert_eq!(ports(&got, "shop/web.shop.svc.cluster.local"), Some(vec![(80, 9001)]));

    assert_eq!(
        workload(&cluster(&yaml.replace("addressType: IPv4", "addressType: FQDN")), source.clone()),
        None
    );
    assert_eq!(workload(&cluster(&yaml.replace("service-name: web", "service-name: none")), source), None);
}

const ENTRY: &str = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\n\
spec:\n  address: 192.0.2.1\n  labels: {app: web}\n  serviceAccount: vm\n  locality: r/z/s\n  weight: 3\n  ports: {http: 1080}\n";

#[test]
fn a_workload_entry_is_a_workload() {
    let service = web_service(
        "selector: {app: web}, ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 82}, {port: 83, targetPort: no}]",
    );
    let vm = entry(&cluster(&(ENTRY.to_owned() + &service)), "shop", "vm").unwrap();
    assert_eq!(vm.uid, "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm");
    assert_eq!(vm.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/vm");
    assert_eq!((vm.tunnel, vm.health, vm.capacity), (Tunnel::None, Health::Healthy, Capacity(3)));
    assert_eq!((vm.locality.region.as_str(), vm.locality.subzone.as_str()), ("r", "s"));
    assert_eq!(ports(&vm, "shop/web.shop.svc.cluster.local"), Some(vec![(80, 1080), (81, 82)]));
    let captured = ENTRY.replace(
        "namespace: shop}",
        "namespace: shop, annotations: {ambient.istio.io/redirection: enabled}}",
    );
    assert_eq!(entry(&cluster(&captured), "shop", "vm").unwrap().tunnel, Tunnel::Hbone);
}

#[test]
fn a_workload_entry_may_have_a_name_for_an_address() {
    let vm = entry(&cluster(&ENTRY.replace("192.0.2.1", "vm.example.com")), "shop", "vm").unwrap();
    assert_eq!((vm.addresses.len(), vm.hostname.as_str()), (0, "vm.example.com"));
}

/// Edge case 28: it is told as it is, and nothing crashes.
#[test]
fn a_workload_entry_on_another_network_is_told_with_its_network() {
    let yaml = ENTRY.replace("weight: 3", "network: far")
        + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: near}}\n---\n"
        + &pod_yaml("shop", "web", "10.0.0.1", "");
    let cluster = cluster(&yaml);
    let vm = entry(&cluster, "shop", "vm").unwrap();
    assert_eq!((vm.network.as_str(), vm.network_gateway), ("far", None));
    assert_eq!(pod(&cluster, "shop", "web").unwrap().network.as_str(), "near");
}

fn service_entry(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: ext, namespace: shop}}\n\
         spec:\n  hosts: [a.example.com, b.example.com]\n  ports: [{{number: 80, name: http, targetPort: 81}}, \
         {{number: 443, name: tls}}]\n  {spec}\n"
    )
}

#[test]
fn endpoints_written_in_a_service_entry_are_workloads_of_all_its_hosts() {
    let yaml = service_entry(
        "resolution: STATIC\n  endpoints: [{address: 192.0.2.1, ports: {http: 8}, weight: 2}, {address: 192.0.2.2}]",
    );
    let cluster = cluster(&yaml);
    let one = inline(&cluster, "shop", "ext", "192.0.2.1").unwrap();
    assert_eq!(one.uid, "Kubernetes/networking.istio.io/ServiceEntry/shop/ext/192.0.2.1");
    assert_eq!((one.name.as_str(), one.workload_name.as_str(), one.capacity), ("ext", "ext", Capacity(2)));
    for host in ["shop/a.example.com", "shop/b.example.com"] {
        assert_eq!(ports(&one, host), Some(vec![(80, 8), (443, 443)]));
    }
    let two = inline(&cluster, "shop", "ext", "192.0.2.2").unwrap();
    assert_eq!(ports(&two, "shop/a.example.com"), Some(vec![(80, 81), (443, 443)]));
    assert_eq!(inline(&cluster, "shop", "ext", "192.0.2.3"), None);
}

/// Uncertainties of protocols 13: the network of one endpoint is not that of the next.
#[test]
fn the_network_of_an_endpoint_is_its_own() {
    let cluster = cluster(&service_entry(
        "resolution: STATIC\n  endpoints: [{address: 192.0.2.1, network: far}, {address: 192.0.2.2}]",
    ));
    let network = |ip| inline(&cluster, "shop", "ext", ip).unwrap().network.to_string();
    assert_eq!((network("192.0.2.1"), network("192.0.2.2")), ("far".to_owned(), String::new()));
}

#[test]
fn hosts_that_dns_resolves_are_workloads_if_nothing_else_is() {
    let resolved = cluster(&service_entry("resolution: DNS"));
    let one = inline(&resolved, "shop", "ext", "a.example.com").unwrap();
    assert_eq!((one.addresses.len(), one.hostname.as_str()), (0, "a.example.com"));
    assert_eq!(one.services.len(), 1);
    for spec in [
        "resolution: STATIC",
        "resolution: NONE",
        "resolution: DNS\n  endpoints: [{address: c.example.com}]",
        "resolution: DNS\n  workloadSelector: {labels: {a: b}}",
    ] {
        assert_eq!(inline(&cluster(&service_entry(spec)), "shop", "ext", "a.example.com"), None, "{spec}");
    }
    let wild = service_entry("resolution: DNS").replace("a.example.com", "\"*.example.com\"");
    assert_eq!(inline(&cluster(&wild), "shop", "ext", "*.example.com"), None);
}

#[test]
fn a_service_entry_selects_pods_and_workload_entries() {
    let yaml = service_entry("resolution: STATIC\n  workloadSelector: {labels: {app: web}}")
        + "---\n"
        + &pod_yaml("shop", "web", "10.0.0.1", "app: web")
        + ENTRY;
    let cluster = cluster(&yaml);
    // The container port of the same name, else targetPort, else the port.
    assert_eq!(
        ports(&pod(&cluster, "shop", "web").unwrap(), "shop/a.example.com"),
        Some(vec![(80, 8080), (443, 443)])
    );
    assert_eq!(
        ports(&entry(&cluster, "shop", "vm").unwrap(), "shop/b.example.com"),
        Some(vec![(80, 1080), (443, 443)])
    );
}

#[test]
fn endpoints_of_an_entry_that_lost_its_host_are_not_told() {
    let old = service_entry("resolution: STATIC\n  endpoints: [{address: 192.0.2.1}]")
        .replace("name: ext,", "name: old, creationTimestamp: 2020-01-01T00:00:00Z,");
    let young = service_entry("resolution: STATIC\n  endpoints: [{address: 192.0.2.2}]")
        .replace("name: ext,", "name: a-young, creationTimestamp: 2021-01-01T00:00:00Z,");
    let cluster = cluster(&(old + &young));
    assert!(inline(&cluster, "shop", "old", "192.0.2.1").is_some());
    assert_eq!(inline(&cluster, "shop", "a-young", "192.0.2.2"), None);
}

#[test]
fn a_pod_without_owner_is_its_own_and_its_names_have_an_order() {
    for (labels, name, revision) in [
        ("", "web", "latest"),
        ("app: a", "a", "latest"),
        ("app: a, app.kubernetes.io/name: b, version: v1, app.kubernetes.io/version: v2", "b", "v2"),
        (
            "app: a, app.kubernetes.io/name: b, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: v3",
            "c",
            "v3",
        ),
    ] {
        let web = pod(&cluster(&pod_yaml("shop", "web", "10.0.0.1", labels)), "shop", "web").unwrap();
        assert_eq!(
            (web.canonical_name.as_str(), web.canonical_revision.as_str()),
            (name, revision),
            "{labels}"
        );
    }
}

#[test]
fn target_ports_of_workloads_are_never_left_to_a_name() {
    let yaml = pod_yaml("shop", "web", "10.0.0.1", "app: web")
        + &web_service("selector: {app: web}, ports: [{port: 80, targetPort: http}]");
    let web = pod(&cluster(&yaml), "shop", "web").unwrap();
    assert!(
        web.services.iter().all(|(_, ports)| ports.iter().all(|(_, target)| target != TargetPort::Named))
    );
}
