//! Which names are answered, with what, and which are forwarded.

use ambit_fixtures::mesh::{PodBuilder, ServiceBuilder, pod, service, snapshot};

use super::*;

const DOMAIN: &str = "cluster.local";

fn settings() -> Settings {
    Settings { cluster_domain: DOMAIN.to_owned(), preferred_namespace: None, ipv6: true }
}

/// A service of Kubernetes.
fn kube(name: &str, namespace: &str) -> ServiceBuilder {
    service(&format!("{namespace}/{name}.{namespace}.svc.{DOMAIN}"))
}

fn mesh() -> Snapshot {
    let headless = format!("shop/db.shop.svc.{DOMAIN}");
    let single = format!("shop/v4.shop.svc.{DOMAIN}");
    let both = |name: &str, last: u8| {
        pod(name)
            .at(&format!("10.0.0.{last}"))
            .at(&format!("fd00::{last}"))
            .behind(&headless, &[])
            .behind(&single, &[])
    };
    snapshot(
        [both("shop/db-1", 1), both("shop/db-2", 2), pod("shop/db-3").at("fd00::3").behind(&headless, &[])],
        [
            kube("web", "shop").vip("10.96.0.1").vip("fd00:96::1").vip("other/10.96.9.9"),
            kube("db", "shop"),
            kube("v4", "shop").families(IpFamilies::Ipv4Only),
            kube("v6", "shop").vip("fd00:96::6").vip("10.96.0.6").families(IpFamilies::Ipv6Only),
            kube("far", "shop").vip("other/10.96.0.8"),
            kube("range", "shop").vip("10.98.0.0/16"),
            service("shop/www.example.com").vip("240.240.0.1"),
            service("shop/*.wild.example").vip("240.240.0.2"),
            service("shop/*.deep.wild.example").vip("240.240.0.3"),
            service("shop/novip.example"),
            service("data/private.example").vip("240.240.0.4").private(),
        ],
    )
}

fn ask_as(client: PodBuilder, name: &str, family: Family) -> Answer {
    let client = client.build();
    answer(&mesh(), &settings(), Some(&client), name, family, &mut rand::rng())
}

fn ask(name: &str, family: Family) -> Answer {
    ask_as(pod("shop/client"), name, family)
}

fn owned(canonical: Option<&str>, addresses: &[&str]) -> Answer {
    let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    Answer::Owned(Owned { canonical: canonical.map(str::to_owned), addresses })
}

/// The same answer with its addresses in order.
fn sorted(answer: Answer) -> Answer {
    match answer {
        Answer::Owned(Owned { canonical, mut addresses }) => {
            addresses.sort();
            Answer::Owned(Owned { canonical, addresses })
        }
        other @ (Answer::Forward | Answer::Refuse) => other,
    }
}

#[test]
fn names_are_found_in_all_their_forms() {
    let web = owned(None, &["10.96.0.1"]);
    for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        assert_eq!(ask(name, Family::V4), web, "{name}");
    }
    assert_eq!(ask("web.shop.svc.cluster.local", Family::V6), owned(None, &["fd00:96::1"]));
    // From another namespace the bare name means something else.
    assert_eq!(ask_as(pod("data/client"), "web", Family::V4), Answer::Forward);
    assert_eq!(ask_as(pod("data/client"), "web.shop", Family::V4), web);
}

#[test]
fn what_is_not_of_the_mesh_is_forwarded() {
    for name in [
        "nothing",
        "nothing.shop.svc.cluster.local",
        "example.org",
        "cluster.local",
        "x.web.shop.svc.cluster.local",
    ] {
        assert_eq!(ask(name, Family::V4), Answer::Forward, "{name}");
    }
    // Without an address, and not headless in Kubernetes: its addresses are elsewhere.
    assert_eq!(ask("novip.example", Family::V4), Answer::Forward);
}

#[test]
fn an_unknown_client_is_refused() {
    let answer = answer(&mesh(), &settings(), None, "web.shop", Family::V4, &mut rand::rng());
    assert_eq!(answer, Answer::Refuse);
}

#[test]
fn a_search_domain_that_was_appended_is_taken_off_and_said_so() {
    for search in ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        let name = format!("www.example.com.{search}");
        assert_eq!(ask(&name, Family::V4), owned(Some("www.example.com"), &["240.240.0.1"]), "{name}");
    }
    assert_eq!(ask("www.example.com", Family::V4), owned(None, &["240.240.0.1"]));
    // Found by the expansion of what was left, the name is still what was left.
    assert_eq!(ask("web.shop.shop.svc.cluster.local", Family::V4), owned(Some("web.shop"), &["10.96.0.1"]));
    // A wildcard has no other name.
    assert_eq!(ask("a.wild.example.shop.svc.cluster.local", Family::V4), owned(None, &["240.240.0.2"]));
}

#[test]
fn the_nearest_wildcard_covers_a_name() {
    assert_eq!(ask("a.wild.example", Family::V4), owned(None, &["240.240.0.2"]));
    assert_eq!(ask("b.a.wild.example", Family::V4), owned(None, &["240.240.0.2"]));
    assert_eq!(ask("a.deep.wild.example", Family::V4), owned(None, &["240.240.0.3"]));
    assert_eq!(ask("wild.example", Family::V4), Answer::Forward);
}

#[test]
fn a_headless_service_has_one_address_of_each_endpoint() {
    assert_eq!(sorted(ask("db", Family::V4)), owned(None, &["10.0.0.1", "10.0.0.2"]));
    assert_eq!(sorted(ask("db", Family::V6)), owned(None, &["fd00::1", "fd00::2", "fd00::3"]));
}

#[test]
fn a_family_that_a_service_has_not_is_empty_and_not_unknown() {
    // Edge case 46: single-stack headless service with dual-stack pods.
    assert_eq!(sorted(ask("v4", Family::V4)), owned(None, &["10.0.0.1", "10.0.0.2"]));
    assert_eq!(ask("v4", Family::V6), owned(None, &[]));
    assert_eq!(ask("v6", Family::V4), owned(None, &[]));
    assert_eq!(ask("v6", Family::V6), owned(None, &["fd00:96::6"]));
    assert_eq!(ask("www.example.com", Family::V6), owned(None, &[]));
    let no_ipv6 = Settings { ipv6: false, ..settings() };
    let client = pod("shop/client").build();
    let answer = answer(&mesh(), &no_ipv6, Some(&client), "web", Family::V6, &mut rand::rng());
    assert_eq!(answer, owned(None, &[]));
}

#[test]
fn only_addresses_on_the_clients_network_are_answered() {
    let far = pod("shop/client").network("other");
    assert_eq!(ask_as(far.clone(), "web", Family::V4), owned(None, &["10.96.9.9"]));
    assert_eq!(ask_as(far, "far", Family::V4), owned(None, &["10.96.0.8"]));
    assert_eq!(ask("far", Family::V4), owned(None, &[]));
}

#[test]
fn ranges_are_not_answered() {
    assert_eq!(ask("range", Family::V4), owned(None, &[]));
}

#[test]
fn a_private_service_is_unknown_elsewhere() {
    assert_eq!(ask("private.example", Family::V4), Answer::Forward);
    assert_eq!(ask_as(pod("data/client"), "private.example", Family::V4), owned(None, &["240.240.0.4"]));
}

#[test]
fn among_equals_the_own_namespace_then_the_canonical_then_the_preferred_wins() {
    let host = |namespace: &str| service(&format!("{namespace}/api.example"));
    let first = host("a").vip("240.0.0.1");
    let second = host("b").vip("240.0.0.2");
    let third = host("c").vip("240.0.0.3");
    let preferring = |namespace: &str| Settings { preferred_namespace: Some(namespace.into()), ..settings() };
    let chosen = |services: Vec<ServiceBuilder>, settings: &Settings, namespace: &str| {
        let client = pod(&format!("{namespace}/client")).build();
        let mesh = snapshot([], services);
        match answer(&mesh, settings, Some(&client), "api.example", Family::V4, &mut rand::rng()) {
            Answer::Owned(owned) => owned.addresses,
            other @ (Answer::Forward | Answer::Refuse) => panic!("{other:?}"),
        }
    };
    let ip = |text: &str| -> Vec<IpAddr> { vec![text.parse().unwrap()] };
    let all = || vec![first.clone(), second.clone(), third.clone()];
    assert_eq!(chosen(all(), &preferring("c"), "b"), ip("240.0.0.2"), "the client's own");
    let canonical = || vec![first.clone(), second.clone().canonical(), third.clone()];
    assert_eq!(chosen(canonical(), &preferring("c"), "x"), ip("240.0.0.2"), "the canonical one");
    assert_eq!(chosen(all(), &preferring("c"), "x"), ip("240.0.0.3"), "the preferred one");
    // Those without an address do not take part.
    let without = vec![host("a").canonical(), third.clone()];
    assert_eq!(chosen(without, &settings(), "a"), ip("240.0.0.3"));
}

#[test]
fn the_order_of_addresses_is_drawn_by_lot() {
    let headless = format!("shop/many.shop.svc.{DOMAIN}");
    let pods = (0..20).map(|n| pod(&format!("shop/p{n}")).at(&format!("10.0.1.{n}")).behind(&headless, &[]));
    let mesh = snapshot(pods, [kube("many", "shop")]);
    let client = pod("shop/client").build();
    let once = || answer(&mesh, &settings(), Some(&client), "many", Family::V4, &mut rand::rng());
    let first = once();
    assert_eq!(sorted(first.clone()), sorted(once()));
    // 20! orders: that 20 draws are all the same does not happen.
    assert!((0..20).any(|_| once() != first));
}

#[test]
fn an_answer_is_bounded() {
    let headless = format!("shop/many.shop.svc.{DOMAIN}");
    let pods = (0..MOST_ADDRESSES + 100).map(|n| {
        pod(&format!("shop/p{n}")).at(&format!("10.1.{}.{}", n / 250, n % 250)).behind(&headless, &[])
    });
    let mesh = snapshot(pods, [kube("many", "shop")]);
    let client = pod("shop/client").build();
    match answer(&mesh, &settings(), Some(&client), "many", Family::V4, &mut rand::rng()) {
        Answer::Owned(owned) => assert_eq!(owned.addresses.len(), MOST_ADDRESSES),
        other @ (Answer::Forward | Answer::Refuse) => panic!("{other:?}"),
    }
}
