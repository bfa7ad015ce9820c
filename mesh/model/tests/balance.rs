//! Which endpoint takes a connection: protocols 5.5.

#![cfg(test)]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambit_fixtures::mesh::{PodBuilder, ServiceBuilder, pod, service, snapshot};
use ambit_model::{
    balance::{self, Caller, Purpose, Wanted, address},
    name::ServiceKey,
    service::{HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope},
    workload::Workload,
};
use proptest::prelude::*;

const WEB: &str = "shop/web.shop.svc.cluster.local";

fn web() -> ServiceBuilder {
    service(WEB).ports(&[(80, 8080)])
}

fn web_pod(n: usize) -> PodBuilder {
    pod(&format!("shop/web-{n:04}")).at(&format!("10.0.{}.{}", n / 256, n % 256)).behind(WEB, &[])
}

fn client() -> Workload {
    pod("shop/client").on("node-a").locality("r1/z1/s1").build()
}

/// Who is chosen how often, drawing every number once.
fn spread(service: ServiceBuilder, pods: Vec<PodBuilder>, draws: u64) -> BTreeMap<String, u32> {
    let mesh = snapshot(pods, [service.clone()]);
    let service = service.build();
    let client = client();
    let key = ServiceKey::parse(WEB).expect("a key");
    let mut chosen = BTreeMap::new();
    for roll in 0..draws {
        let mut dice = |bound: u64| roll % bound.max(1);
        let Some(endpoints) = mesh.endpoints(&key) else { continue };
        let caller = Caller::from(&client);
        let wanted = Wanted::of(&service, 80, Purpose::Standard, caller);
        if let Some(pick) = balance::pick(&wanted, endpoints, &|_| false, &mut dice) {
            *chosen.entry(pick.endpoint.workload.name.to_string()).or_default() += 1;
        }
    }
    chosen
}

fn names(chosen: &BTreeMap<String, u32>) -> Vec<&str> {
    chosen.keys().map(String::as_str).collect()
}

fn balancing(mode: Mode, scopes: &[Scope]) -> LoadBalancing {
    LoadBalancing { routing_preferences: scopes.into(), mode, health_policy: HealthPolicy::OnlyHealthy }
}

#[test]
fn all_are_equal_unless_said_otherwise() {
    let chosen = spread(web(), (0..3).map(web_pod).collect(), 300);
    assert_eq!(chosen.values().copied().collect::<Vec<_>>(), [100, 100, 100]);
}

#[test]
fn weights_are_kept_and_zero_takes_nothing() {
    let pods = vec![web_pod(0).capacity(3), web_pod(1), web_pod(2).capacity(0)];
    let chosen = spread(web(), pods, 400);
    assert_eq!(chosen.into_iter().collect::<Vec<_>>(), [("web-0000".into(), 300), ("web-0001".into(), 100)]);
    assert!(spread(web(), vec![web_pod(0).capacity(0)], 10).is_empty());
}

#[test]
fn unhealthy_endpoints_are_left_out_unless_all_are_taken() {
    let pods = || vec![web_pod(0).unhealthy(), web_pod(1)];
    assert_eq!(names(&spread(web(), pods(), 10)), ["web-0001"]);
    let all = LoadBalancing { health_policy: HealthPolicy::AllowAll, ..LoadBalancing::default() };
    assert_eq!(names(&spread(web().balanced(all), pods(), 10)), ["web-0000", "web-0001"]);
}

#[test]
fn one_healthy_endpoint_among_thousands_is_found() {
    let pods = (0..2000).map(|n| if n == 1234 { web_pod(n) } else { web_pod(n).unhealthy() }).collect();
    assert_eq!(names(&spread(web(), pods, 3)), ["web-1234"]);
}

#[test]
fn an_endpoint_needs_an_address_and_the_port() {
    let nowhere = web_pod(0).with(|pod| pod.addresses = Box::default());
    assert!(spread(web(), vec![nowhere.clone()], 3).is_empty());
    let by_name = nowhere.clone().with(|pod| pod.hostname = "example.com".into());
    assert_eq!(spread(web(), vec![by_name], 3).len(), 1);
    let remote = nowhere.clone().network("far").network_gateway("203.0.113.1");
    assert_eq!(spread(web(), vec![remote], 3).len(), 1);
    let local = nowhere.network_gateway("203.0.113.1");
    assert!(spread(web(), vec![local], 3).is_empty(), "a gateway leads to other networks only");
    let named = service(WEB).ports(&[(80, 0)]);
    assert!(spread(named, vec![web_pod(0)], 3).is_empty());
    let elsewhere = service(WEB).ports(&[(81, 8080)]);
    assert!(spread(elsewhere, vec![web_pod(0)], 3).is_empty());
}

#[test]
fn strict_takes_only_what_shares_everything() {
    let pods = || {
        vec![
            web_pod(0).on("node-a").locality("r1/z1/s1"),
            web_pod(1).on("node-a").locality("r1/z2/s1"),
            web_pod(2).on("node-b").locality("r1/z1/s1"),
        ]
    };
    let strict = |scopes: &[Scope]| spread(web().balanced(balancing(Mode::Strict, scopes)), pods(), 30);
    assert_eq!(names(&strict(&[Scope::Node])), ["web-0000", "web-0001"]);
    assert_eq!(names(&strict(&[Scope::Zone, Scope::Node])), ["web-0000"]);
    assert_eq!(names(&strict(&[Scope::Region])).len(), 3);
    let none =
        spread(web().balanced(balancing(Mode::Strict, &[Scope::Node])), vec![web_pod(9).on("node-z")], 3);
    assert!(none.is_empty());
}

#[test]
fn failover_takes_those_that_share_most() {
    let scopes = [Scope::Region, Scope::Zone, Scope::Subzone];
    let failover = |places: &[&str]| {
        let pods = places.iter().enumerate().map(|(n, place)| web_pod(n).locality(place)).collect();
        spread(web().balanced(balancing(Mode::Failover, &scopes)), pods, 30).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(failover(&["r1/z1/s1", "r1/z1/s2", "r1/z2/s1"]), ["web-0000"]);
    assert_eq!(failover(&["r2/z1/s1", "r1/z1/s2", "r1/z1/s3"]), ["web-0001", "web-0002"]);
    assert_eq!(failover(&["r2/z1/s1", "r3/z1/s1"]), ["web-0000", "web-0001"], "nothing shared: all");
    assert_eq!(failover(&["r2/z1/s1", "r1/z2/s9"]), ["web-0001"], "a mismatch stops the comparison");
}

#[test]
fn the_own_network_beats_all_others_and_they_are_ranked_too() {
    let scopes = [Scope::Network, Scope::Region, Scope::Zone];
    let failover = |pods: Vec<PodBuilder>| {
        spread(web().balanced(balancing(Mode::Failover, &scopes)), pods, 30).into_keys().collect::<Vec<_>>()
    };
    let far =
        |n: usize, place: &str| web_pod(n).network("far").network_gateway("203.0.113.1").locality(place);
    assert_eq!(failover(vec![far(0, "r1/z1"), web_pod(1).locality("r9/z9")]), ["web-0001"]);
    assert_eq!(failover(vec![far(0, "r9/z9"), far(1, "r1/z9")]), ["web-0001"]);
}

#[test]
fn excluded_endpoints_are_not_drawn() {
    let mesh = snapshot((0..3).map(web_pod), [web()]);
    let service = web().build();
    let client = client();
    let endpoints = mesh.endpoints(&ServiceKey::parse(WEB).expect("a key")).expect("endpoints");
    for roll in 0..9 {
        let excluded = |workload: &Workload| workload.name != "web-0002";
        let mut dice = |bound: u64| roll % bound.max(1);
        let wanted = Wanted::of(&service, 80, Purpose::Standard, Caller::from(&client));
        let pick = balance::pick(&wanted, endpoints, &excluded, &mut dice);
        assert_eq!(pick.map(|pick| pick.endpoint.workload.name.to_string()).as_deref(), Some("web-0002"));
    }
}

#[test]
fn turns_give_each_of_few_among_many_its_share() {
    let pods = || (0..100).map(web_pod);
    let mesh = snapshot(pods(), [web()]);
    let service = web().build();
    let client = client();
    let endpoints = mesh.endpoints(&ServiceKey::parse(WEB).expect("a key")).expect("endpoints");
    let wanted = Wanted::of(&service, 80, Purpose::Standard, Caller::from(&client));
    let few =
        |workload: &Workload| !workload.name.as_str().ends_with("000") && workload.name.as_str() > "web-0004";
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    let mut before = None;
    let mut turns = 0..;
    for _ in 0..500 {
        let mut turn = || turns.next().expect("a turn");
        let pick = balance::pick_in_turn(&wanted, endpoints, &few, &mut turn).expect("an endpoint");
        let name = pick.endpoint.workload.name.to_string();
        assert_ne!(before.as_ref(), Some(&name), "the same twice in a row");
        *shares.entry(name.clone()).or_default() += 1;
        before = Some(name);
    }
    assert_eq!(shares.values().copied().collect::<Vec<_>>(), [100; 5]);
}

#[test]
fn turns_heed_weights() {
    let mesh = snapshot([web_pod(0).capacity(4), web_pod(1).capacity(1)], [web()]);
    let service = web().build();
    let client = client();
    let endpoints = mesh.endpoints(&ServiceKey::parse(WEB).expect("a key")).expect("endpoints");
    let wanted = Wanted::of(&service, 80, Purpose::Standard, Caller::from(&client));
    let heavy = (0..50).filter(|turn| {
        let pick = balance::pick_in_turn(&wanted, endpoints, &|_| false, &mut || *turn).expect("an endpoint");
        pick.endpoint.workload.name.as_str() == "web-0000"
    });
    assert_eq!(heavy.count(), 40);
}

#[test]
fn a_turn_looks_at_those_alone_that_it_passes_over() {
    const PODS: usize = 1000;
    let mesh = snapshot((0..PODS).map(web_pod), [web()]);
    let service = web().build();
    let client = client();
    let endpoints = mesh.endpoints(&ServiceKey::parse(WEB).expect("a key")).expect("endpoints");
    let wanted = Wanted::of(&service, 80, Purpose::Standard, Caller::from(&client));
    let looks = |excluded: &dyn Fn(&Workload) -> bool| {
        let looked = std::cell::Cell::new(0);
        let counting = |workload: &Workload| {
            looked.set(looked.get() + 1);
            excluded(workload)
        };
        let mut turns = 0..;
        for _ in 0..PODS {
            let mut turn = || turns.next().expect("a turn");
            balance::pick_in_turn(&wanted, endpoints, &counting, &mut turn).expect("an endpoint");
        }
        looked.get()
    };
    assert_eq!(looks(&|_| false), PODS);
    assert!(
        looks(&|workload| workload.name.as_str() < "web-0500") <= 2 * PODS,
        "half of them are passed over"
    );
}

#[test]
fn whose_turns_others_take_is_found_all_the_same() {
    let mesh = snapshot((0..10).map(web_pod), [web()]);
    let service = web().build();
    let client = client();
    let endpoints = mesh.endpoints(&ServiceKey::parse(WEB).expect("a key")).expect("endpoints");
    let wanted = Wanted::of(&service, 80, Purpose::Standard, Caller::from(&client));
    let one = |workload: &Workload| workload.name.as_str() != "web-0007";
    // Somebody else takes every turn but the same one.
    let pick = balance::pick_in_turn(&wanted, endpoints, &one, &mut || 0).expect("an endpoint");
    assert_eq!(pick.endpoint.workload.name.as_str(), "web-0007");
    assert!(balance::pick_in_turn(&wanted, endpoints, &|_| true, &mut || 0).is_none());
}

#[test]
fn the_requested_address_is_used_if_it_is_the_workloads() {
    let dual = pod("shop/web").at("10.0.0.1").at("10.0.0.2").at("fd00::1").build();
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let chosen = |requested: &str, families| address(&dual, ip(requested), families).map(|ip| ip.to_string());
    assert_eq!(chosen("10.0.0.2", IpFamilies::Automatic).as_deref(), Some("10.0.0.2"));
    assert_eq!(chosen("10.96.0.1", IpFamilies::Dual).as_deref(), Some("10.0.0.1"));
    assert_eq!(chosen("fd00:96::1", IpFamilies::Automatic).as_deref(), Some("fd00::1"));
    assert_eq!(chosen("fd00:96::1", IpFamilies::Ipv4Only).as_deref(), Some("10.0.0.1"));
    assert_eq!(chosen("10.96.0.1", IpFamilies::Ipv6Only).as_deref(), Some("fd00::1"));
    let single = pod("shop/web").at("10.0.0.1").build();
    assert_eq!(address(&single, ip("fd00::9"), IpFamilies::Ipv6Only), None);
}

proptest! {
    /// Whatever the endpoints and the dice: what is chosen is eligible, and if something is eligible
    /// something is chosen.
    #[test]
    fn the_choice_is_eligible_and_made_if_it_can_be(
        pods in proptest::collection::vec((any::<bool>(), 0..3_u32, 0..3_u8), 0..40),
        mode in prop_oneof![Just(Mode::Standard), Just(Mode::Strict), Just(Mode::Failover)],
        rolls in proptest::collection::vec(any::<u64>(), 8),
    ) {
        let built: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(n, (healthy, weight, zone))| {
                let pod = web_pod(n).capacity(*weight).locality(&format!("r1/z{zone}/s1"));
                if *healthy { pod } else { pod.unhealthy() }
            })
            .collect();
        let service = web().balanced(balancing(mode, &[Scope::Region, Scope::Zone]));
        let mesh = snapshot(built, [service.clone()]);
        let service = service.build();
        let client = client();
        let key = ServiceKey::parse(WEB).expect("a key");
        let mut rolls = rolls.into_iter().cycle();
        let mut dice = |bound: u64| rolls.next().unwrap_or_default() % bound.max(1);
        let pick = mesh.endpoints(&key).and_then(|endpoints| {
            let wanted = Wanted::of(&service, 80, Purpose::Standard, Caller::from(&client));
            balance::pick(&wanted, endpoints, &|_| false, &mut dice)
                .map(|pick| pick.endpoint.workload.clone())
        });
        let takes = |(healthy, weight, zone): &&(bool, u32, u8)| {
            *healthy && *weight > 0 && (mode != Mode::Strict || *zone == 1)
        };
        // In failover the best rank may have weight zero only: then nothing is chosen, by the protocol.
        if mode != Mode::Failover {
            prop_assert_eq!(pick.is_some(), pods.iter().any(|pod| takes(&pod)));
        }
        if let Some(pick) = pick {
            let pick: Arc<Workload> = pick;
            let index: usize = pick.name.as_str()[4..].parse().expect("a number");
            prop_assert!(takes(&&pods[index]));
        }
    }
}
