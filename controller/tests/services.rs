//! Services, line by line of protocols 11.6, automatic addresses of 9, and edge case 25.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use ambit_controller::cluster::object::Kind;
use ambit_controller::cluster::{EntryVisibility, Settings};
use ambit_controller::source::Event;
use ambit_model::service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, Visibility,
};
use support::{cluster, cluster_with, conditions, inline, objects, of_objects, service};

fn kube(spec: &str) -> String {
    kube_with("", spec)
}

fn kube_with(annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec: {{{spec}}}\n---\n"
    )
}

const WEB: &str = "shop/web.shop.svc.cluster.local";

fn web(spec: &str) -> Service {
    service(&cluster(&kube(spec)), WEB).unwrap()
}

fn ports(service: &Service) -> Vec<(u16, u16)> {
    service.ports.iter().map(|(port, target)| (port, target.number())).collect()
}

#[test]
fn a_kubernetes_service_is_a_service() {
    let got = web(
        "clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1, 'fd00::1'], ports: [{name: a, port: 80, targetPort: 8080}, \
                   {name: b, port: 81, targetPort: http}, {name: c, port: 82}, {name: d, port: 83, targetPort: '90'}]",
    );
    assert_eq!((got.name.as_str(), got.key().to_string().as_str()), ("web", WEB));
    assert_eq!(got.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/10.1.0.1", "/fd00::1"]);
    assert_eq!(ports(&got), [(80, 8080), (81, 0), (82, 82), (83, 90)]);
    assert!(got.canonical);
    assert_eq!(got.load_balancing, LoadBalancing::default());
    assert_eq!(got.visibility, Visibility::Public);
}

#[test]
fn what_ports_carry_is_told() {
    let got = web("ports: [{name: http-a, port: 80}, {name: b, port: 81, appProtocol: kubernetes.io/h2c}, \
                   {name: c, port: 82}, {name: tls-d, port: 53, protocol: UDP}]");
    assert_eq!(got.app_protocols.as_ref(), [(80, AppProtocol::Http11), (81, AppProtocol::Http2)]);
    let spec = "hosts: [a.example.com], resolution: DNS, ports: [{number: 80, name: x, protocol: HTTPS}, \
                {number: 81, name: http-y}, {number: 82, name: z, protocol: UDP}]";
    let entry = service(&cluster(&entry("ext", "shop", 20, spec)), "shop/a.example.com").unwrap();
    assert_eq!(entry.app_protocols.as_ref(), [(80, AppProtocol::Tls), (81, AppProtocol::Http11)]);
}

#[test]
fn the_domain_of_the_cluster_is_part_of_the_name() {
    let settings = Settings { domain: "example.org".into(), ..Settings::default() };
    assert!(service(&cluster_with(settings, &kube("")), "shop/web.shop.svc.example.org").is_some());
}

#[test]
fn a_headless_service_has_no_address_and_an_external_name_is_none() {
    assert!(web("clusterIP: None, clusterIPs: [None]").vips.is_empty());
    assert_eq!(service(&cluster(&kube("type: ExternalName, externalName: x.org")), WEB), None);
}

#[test]
fn where_tcp_and_udp_share_a_number_tcp_counts() {
    let got = web(
        "ports: [{name: u, port: 53, protocol: UDP, targetPort: 1}, {name: t, port: 53, protocol: TCP, targetPort: 2}, \
                   {name: v, port: 54, protocol: UDP}]",
    );
    assert_eq!(ports(&got), [(53, 2), (54, 54)]);
}

#[test]
fn families_are_those_of_the_spec() {
    for (spec, want) in [
        ("", IpFamilies::Automatic),
        ("ipFamilies: [IPv4]", IpFamilies::Ipv4Only),
        ("ipFamilies: [IPv6]", IpFamilies::Ipv6Only),
        ("ipFamilies: [IPv6, IPv4]", IpFamilies::Dual),
    ] {
        assert_eq!(web(spec).ip_families, want, "{spec}");
    }
}

fn zone() -> Vec<Scope> {
    vec![Scope::Network, Scope::Region, Scope::Zone]
}

fn node() -> Vec<Scope> {
    vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]
}

/// The field of the spec beats the object's annotation beats the namespace's.
#[test]
fn traffic_distribution_is_taken_from_the_nearest_that_states_one() {
    let annotation = |word: &str| format!("networking.istio.io/traffic-distribution: {word}");
    for (spec, object, namespace, want) in [
        ("", "", "", None),
        ("PreferClose", "", "", Some(zone())),
        ("PreferSameZone", "", "", Some(zone())),
        ("PreferSameNode", "", "", Some(node())),
        ("", "PREFERSAMENODE", "", Some(node())),
        ("", "", "preferclose", Some(zone())),
        ("PreferClose", "PreferSameNode", "PreferSameNode", Some(zone())),
        ("", "PreferSameNode", "PreferClose", Some(node())),
        ("", "Nearby", "PreferClose", Some(zone())),
    ] {
        let spec = if spec.is_empty() { String::new() } else { format!("trafficDistribution: {spec}") };
        let object = if object.is_empty() { String::new() } else { annotation(object) };
        let mut yaml = kube_with(&object, &spec);
        if !namespace.is_empty() {
            yaml += &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{}}}}}\n",
                annotation(namespace)
            );
        }
        let got = service(&cluster(&yaml), WEB).unwrap().load_balancing;
        let want = want.map_or_else(LoadBalancing::default, |scopes| LoadBalancing {
            routing_preferences: scopes.into(),
            mode: Mode::Failover,
            health_policy: HealthPolicy::OnlyHealthy,
        });
        assert_eq!(got, want, "{yaml}");
    }
}

#[test]
fn local_traffic_stays_on_the_node_whatever_else_is_preferred() {
    let got = web("internalTrafficPolicy: Local, trafficDistribution: PreferClose").load_balancing;
    assert_eq!((got.mode, &*got.routing_preferences), (Mode::Strict, &[Scope::Node][..]));
}

/// Edge case 25: one service that takes all does not make the others.
#[test]
fn endpoints_are_used_before_they_are_ready_where_the_service_says_so_only() {
    let not_ready = "publishNotReadyAddresses: true";
    assert_eq!(
        web(not_ready).load_balancing,
        LoadBalancing { health_policy: HealthPolicy::AllowAll, ..LoadBalancing::default() }
    );
    let other = kube("trafficDistribution: PreferClose").replace("name: web", "name: other");
    let cluster = cluster(&(kube(&format!("{not_ready}, trafficDistribution: PreferClose")) + &other));
    let policy = |key| service(&cluster, key).unwrap().load_balancing.health_policy;
    assert_eq!(policy(WEB), HealthPolicy::AllowAll);
    assert_eq!(policy("shop/other.shop.svc.cluster.local"), HealthPolicy::OnlyHealthy);
    assert_eq!(
        web(&format!("{not_ready}, internalTrafficPolicy: Local")).load_balancing.health_policy,
        HealthPolicy::AllowAll
    );
}

fn entry(name: &str, namespace: &str, created: u32, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: 20{created}-01-01T00:00:00Z}}\nspec: {{{spec}}}\n---\n"
    )
}

const EXT: &str =
    "hosts: [example.com], ports: [{number: 80, name: http, targetPort: 81}, {number: 443, name: tls}]";

#[test]
fn every_host_of_a_service_entry_is_a_service() {
    let spec = "hosts: [a.example.com, b.example.com], addresses: [192.0.2.1, 198.51.100.0/24], resolution: STATIC, \
                subjectAltNames: ['spiffe://x/ns/a/sa/b'], ports: [{number: 80, name: http, targetPort: 81}]";
    let cluster = cluster(&entry("ext", "shop", 20, spec));
    for host in ["shop/a.example.com", "shop/b.example.com"] {
        let got = service(&cluster, host).unwrap();
        assert_eq!((got.name.as_str(), ports(&got)), ("ext", vec![(80, 81)]));
        assert_eq!((got.vips[0].to_string().as_str(), got.vips.len()), ("/192.0.2.1", 1));
        assert_eq!(got.ranges[0].to_string(), "/198.51.100.0/24");
        assert_eq!(got.subject_alt_names[0].as_str(), "spiffe://x/ns/a/sa/b");
        assert_eq!((got.ip_families, got.canonical), (IpFamilies::Automatic, true));
    }
}

#[test]
fn without_resolution_connections_pass_through() {
    let got = service(&cluster(&entry("ext", "shop", 20, EXT)), "shop/example.com").unwrap().load_balancing;
    assert_eq!((got.mode, got.health_policy), (Mode::Passthrough, HealthPolicy::AllowAll));
    let by_dns = format!("{EXT}, resolution: DNS");
    let got =
        service(&cluster(&entry("ext", "shop", 20, &by_dns)), "shop/example.com").unwrap().load_balancing;
    assert_eq!(got, LoadBalancing::default());
}

#[test]
fn whoever_may_see_an_entry_is_the_operators_choice() {
    let yaml = entry("ext", "shop", 20, EXT);
    for (setting, want, conditions_want) in [
        (None, Some((Visibility::Public, true)), vec![]),
        (
            Some(EntryVisibility::Public),
            Some((Visibility::Public, true)),
            vec!["istio.io/VisibilityApplied=true Public"],
        ),
        (
            Some(EntryVisibility::Namespace),
            Some((Visibility::Namespace, false)),
            vec!["istio.io/VisibilityApplied=true Namespace"],
        ),
        (Some(EntryVisibility::None), None, vec![]),
    ] {
        let cluster = cluster_with(Settings { entry_visibility: setting, ..Settings::default() }, &yaml);
        let got =
            service(&cluster, "shop/example.com").map(|service| (service.visibility, service.canonical));
        assert_eq!(got, want, "{setting:?}");
        assert_eq!(conditions(&cluster, Kind::ServiceEntry, "shop", "ext"), conditions_want);
    }
}

#[test]
fn a_name_that_any_may_be_needs_a_waypoint_to_be_resolved() {
    let wild = "hosts: ['*.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls}]";
    let cluster = cluster(&entry("ext", "shop", 20, wild));
    assert_eq!(service(&cluster, "shop/*.example.com"), None);
    assert_eq!(
        conditions(&cluster, Kind::ServiceEntry, "shop", "ext"),
        ["istio.io/WaypointMissing=true NoWaypointForWildcardService"]
    );
}

#[test]
fn of_one_name_in_one_namespace_the_service_counts_else_the_oldest_entry() {
    let host = "hosts: [web.shop.svc.cluster.local], resolution: STATIC, ports: [{number: 1, name: a}]";
    let old = entry("b", "shop", 20, host);
    let young = entry("a", "shop", 21, &host.replace("number: 1", "number: 2"));
    let port = |yaml: &str| ports(&service(&cluster(yaml), WEB).unwrap())[0].0;
    assert_eq!(port(&(young.clone() + &old)), 1);
    assert_eq!(port(&(young.clone() + &old + &kube("ports: [{port: 3}]"))), 3);
    // One that only names a host outside takes nothing from anybody.
    assert_eq!(port(&(young + &old + &kube("type: ExternalName, ports: [{port: 3}]"))), 1);
}

#[test]
fn of_equally_old_entries_the_first_by_name_counts() {
    let host = "hosts: [x.com], resolution: STATIC, ports: [{number: 1, name: a}]";
    let yaml =
        entry("b", "shop", 20, host) + &entry("a", "shop", 20, &host.replace("number: 1", "number: 2"));
    assert_eq!(ports(&service(&cluster(&yaml), "shop/x.com").unwrap()), [(2, 2)]);
}

#[test]
fn one_of_the_services_of_a_name_is_preferred_by_all() {
    let host = "hosts: [web.shop.svc.cluster.local], resolution: STATIC";
    let yaml = entry("a", "other", 21, host) + &entry("a", "third", 20, host);
    let canonical = |yaml: &str, key: &str| service(&cluster(yaml), key).unwrap().canonical;
    assert!(canonical(&yaml, "third/web.shop.svc.cluster.local"));
    assert!(!canonical(&yaml, "other/web.shop.svc.cluster.local"));
    let yaml = yaml + &kube("");
    assert!(canonical(&yaml, WEB));
    assert!(!canonical(&yaml, "third/web.shop.svc.cluster.local"));
}

fn vips(yaml: &str, key: &str) -> Vec<String> {
    service(&cluster(yaml), key).unwrap().vips.iter().map(ToString::to_string).collect()
}

#[test]
fn an_entry_without_addresses_gets_one_of_each_family() {
    let yaml = entry("ext", "shop", 20, &format!("{EXT}, resolution: DNS"));
    let got = vips(&yaml, "shop/example.com");
    assert!(got[0].starts_with("/240.240.") && got[1].starts_with("/2001:2::"), "{got:?}");
    assert_eq!(got, vips(&yaml, "shop/example.com"));
    assert!(vips(&entry("ext", "shop", 20, EXT), "shop/example.com").is_empty());
    let wild = EXT.replace("example.com", "'*.example.com'") + ", resolution: STATIC";
    assert!(vips(&entry("ext", "shop", 20, &wild), "shop/*.example.com").is_empty());
    let own = format!("{EXT}, resolution: DNS, addresses: [192.0.2.1]");
    assert_eq!(vips(&entry("ext", "shop", 20, &own), "shop/example.com"), ["/192.0.2.1"]);
}

/// 600 names on 65,534 addresses: some want the same one. Nobody shares, and the older ones keep theirs.
#[test]
fn automatic_addresses_are_never_shared_and_older_ones_stay() {
    let many = |range: std::ops::Range<u32>, year| -> String {
        range
            .map(|n| entry(&format!("e{n}"), "shop", year, &format!("hosts: [h{n}.com], resolution: DNS")))
            .collect()
    };
    let all = |yaml: &str, count: u32| -> Vec<String> {
        let cluster = cluster(yaml);
        (0..count)
            .map(|n| service(&cluster, &format!("shop/h{n}.com")).unwrap().vips[0].to_string())
            .collect()
    };
    let before = all(&many(0..300, 20), 300);
    let after = all(&(many(300..600, 21) + &many(0..300, 20)), 600);
    assert_eq!(before, after[..300]);
    let distinct: std::collections::BTreeSet<_> = after.iter().collect();
    assert_eq!(distinct.len(), 600);
}

/// Edge cases 17 and 18 are the tunnel's; what it needs of us is that what is gone is told to be gone.
#[test]
fn what_is_deleted_is_gone() {
    let mut cluster = of_objects(
        Settings::default(),
        objects(
            &(kube("")
                + &entry(
                    "ext",
                    "shop",
                    20,
                    "hosts: [x.com], resolution: STATIC, endpoints: [{address: 192.0.2.1}]",
                )),
        ),
    );
    assert!(inline(&cluster, "shop", "ext", "192.0.2.1").is_some());
    for object in objects(&(kube("") + &entry("ext", "shop", 20, "hosts: [x.com]"))) {
        cluster.apply(Event::Delete(object.key()));
    }
    assert_eq!(service(&cluster, WEB), None);
    assert_eq!(service(&cluster, "shop/x.com"), None);
    assert_eq!(inline(&cluster, "shop", "ext", "192.0.2.1"), None);
}

#[test]
fn a_mistake_is_named_by_its_field() {
    use ambit_controller::cluster::object::Parsed;
    for (yaml, field) in [
        (kube("ports: [{port: 0}]"), "spec.ports[].port"),
        (kube("ports: [{port: 80, targetPort: 70000}]"), "spec.ports[].targetPort"),
        (kube("clusterIP: ten"), "spec.clusterIPs"),
        (kube("ports: 80"), "spec.ports"),
        (entry("e", "shop", 20, "hosts: []"), "spec.hosts"),
        (entry("e", "shop", 20, "hosts: [a/b]"), "spec.hosts"),
        (entry("e", "shop", 20, "hosts: [a], addresses: [x]"), "spec.addresses"),
        (entry("e", "shop", 20, "hosts: [a], resolution: dns"), "spec.resolution"),
        (
            entry("e", "shop", 20, "hosts: [a], endpoints: [{address: 'unix:///x'}]"),
            "spec.endpoints[].address",
        ),
        (
            entry("e", "shop", 20, "hosts: [a], endpoints: [{address: 10.0.0.1, serviceAccount: a/b}]"),
            "spec.endpoints[].serviceAccount",
        ),
        (
            entry("e", "shop", 20, "hosts: [a], endpoints: [{address: 10.0.0.1, network: a/b}]"),
            "spec.endpoints[].network",
        ),
        (entry("e", "shop", 20, "hosts: [a], ports: [{number: 99999}]"), "spec.ports[].number"),
    ] {
        let Parsed::Bad { rejection, instead: None } = support::at_the_door(&yaml) else {
            unreachable!("{yaml}")
        };
        assert_eq!(rejection.field, field, "{rejection}");
    }
}
