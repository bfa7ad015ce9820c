//! How proxies and other networks are reached: protocols 4.9 and 5.4.

#![cfg(test)]

use std::net::IpAddr;

use ambit_fixtures::mesh::{PodBuilder, ServiceBuilder, gateway, pod, service, snapshot};
use ambit_model::{
    address::Target,
    balance::{Caller, Purpose},
    identity::Identity,
    reach::{self, Across, Asker, NoWay},
    service::IpFamilies,
    snapshot::Snapshot,
    workload::Workload,
};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const EDGE: &str = "istio-system/edge.istio-system.svc.cluster.local";

fn web() -> ServiceBuilder {
    service(WEB).ports(&[(80, 8080)]).alt_names(&["spiffe://cluster.local/ns/shop/sa/web", "web.example"])
}

/// An endpoint on another network, which is reached through this gateway.
fn far(gateway: &str) -> PodBuilder {
    pod("shop/web-1").network("far").behind(WEB, &[]).network_gateway(gateway)
}

fn edge() -> PodBuilder {
    pod("istio-system/edge-1").account("edge").at("203.0.113.1").at("2001:db8::1")
}

fn ids(names: &[(&str, &str)]) -> Vec<Identity> {
    names.iter().map(|(namespace, name)| Identity::new("cluster.local", *namespace, *name)).collect()
}

fn ask<T>(asked: &str, put: impl FnOnce(&Asker<'_>) -> T) -> T {
    let client = pod("shop/client").network("near").build();
    let asked: IpAddr = asked.parse().expect("an address");
    put(&Asker { caller: Caller::from(&client), namespace: &client.namespace, asked, tried: &[] })
}

fn across(mesh: &Snapshot, workload: &Workload, asked: &str) -> Result<Across, String> {
    let service = web().build();
    ask(asked, |asker| {
        let way = reach::across(mesh, workload, (&service, 80), asker, &mut |_| 0);
        way.map_err(|no_way| format!("{no_way:?}").chars().take_while(|one| one.is_alphabetic()).collect())
    })
}

#[test]
fn another_network_is_reached_by_the_services_name_through_its_gateway() {
    // On whichever network the gateway is said to be.
    for (network, name) in [("near", "near/203.0.113.1"), ("far", "far/203.0.113.1")] {
        let far = far(name).build();
        let mesh = snapshot([edge().network(network)], [web()]);
        for asked in ["10.96.0.1", "fd00::1"] {
            let way = across(&mesh, &far, asked).expect("a way");
            assert_eq!(way.gateway, Target::Ip("203.0.113.1:15008".parse().expect("an address")), "{asked}");
            assert_eq!(way.target, Target::Host("web.shop.svc.cluster.local".into(), 80));
            assert_eq!(way.expected_gateway[..], ids(&[("istio-system", "edge")]));
            assert_eq!(way.expected[..], ids(&[("shop", "web")]), "a name that is no identity names nobody");
        }
    }
}

#[test]
fn a_gateway_that_is_a_service_is_one_of_its_instances() {
    let service = |ports: &[(u16, u16)]| {
        service(EDGE).ports(ports).vip("near/198.51.100.1").alt_names(&["spiffe://cluster.local/ns/a/sa/b"])
    };
    let instance = edge().network("near").behind(EDGE, &[]);
    let mesh = snapshot([instance.clone()], [web(), service(&[(15008, 15009)])]);
    let named = far("near/198.51.100.1").with(|pod| {
        let mut named = gateway("near/198.51.100.1");
        named.destination = ambit_model::gateway::GatewayDestination::Hostname(
            ambit_model::name::ServiceKey::parse(EDGE).expect("a key"),
        );
        pod.network_gateway = Some(Box::new(named));
    });
    for (far, asked, at) in [
        (far("near/198.51.100.1"), "10.96.0.1", "203.0.113.1:15009"),
        (named.clone(), "10.96.0.1", "203.0.113.1:15009"),
        (named, "fd00::1", "[2001:db8::1]:15009"),
    ] {
        let way = across(&mesh, &far.build(), asked).expect("a way");
        assert_eq!(way.gateway, Target::Ip(at.parse().expect("an address")));
        assert_eq!(way.expected_gateway[..], ids(&[("istio-system", "edge"), ("a", "b")]));
    }
    let far = far("near/198.51.100.1").build();
    for (pods, ports) in [
        (vec![], &[(15008, 15009)][..]),
        (vec![instance.clone().unhealthy()], &[(15008, 15009)]),
        (vec![instance], &[(80, 80)]),
    ] {
        let mesh = snapshot(pods, [web(), service(ports)]);
        assert_eq!(across(&mesh, &far, "10.96.0.1"), Err("NoInstance".to_owned()));
    }
}

#[test]
fn without_a_gateway_there_is_no_way() {
    let mesh = snapshot([edge().network("near")], [web()]);
    let bare = far("near/1.1.1.1").with(|pod| pod.network_gateway = None).build();
    assert_eq!(across(&mesh, &bare, "10.96.0.1"), Err("NoGateway".to_owned()));
    let unknown = far("near/203.0.113.9").build();
    assert_eq!(across(&mesh, &unknown, "10.96.0.1"), Err("Unknown".to_owned()));
    let nowhere = edge().network("near").with(|pod| {
        pod.addresses = Box::default();
        pod.hostname = "edge.example".into();
    });
    // A name is to be resolved by whoever connects.
    let at =
        reach::place(&nowhere.build(), 15008, "10.0.0.1".parse().expect("an address"), IpFamilies::Automatic);
    assert_eq!(at, Some(Target::Host("edge.example".into(), 15008)));
}

#[test]
fn a_waypoint_is_found_by_its_address() {
    let named = gateway("near/203.0.113.1");
    let mesh = snapshot([edge().network("near")], [web()]);
    let found = ask("10.96.0.1", |asker| {
        let found = reach::instance(&mesh, &named, Purpose::Waypoint, asker, &mut |_| 0);
        found.map(|instance| instance.workload.name.to_string())
    });
    assert_eq!(found, Ok("edge-1".to_owned()));
    let nobody = gateway("near/203.0.113.2");
    let found = ask("10.96.0.1", |asker| {
        reach::instance(&mesh, &nobody, Purpose::Waypoint, asker, &mut |_| 0).map(|_| ())
    });
    assert_eq!(found, Err(NoWay::Unknown(&nobody)));
}
