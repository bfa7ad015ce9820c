//! Which streams a pod accepts, and why the others are refused.

use ambit_fixtures::mesh::{pod, service, snapshot};
use ambit_model::workload::ApplicationTunnel;

use super::*;

const WEB: &str = "shop/web.shop.svc.cluster.local";
const GATE: &str = "shop/gate.shop.svc.cluster.local";
const OWN: [u16; 3] = [15001, 15006, 15008];

fn ask(mesh: &Snapshot, local: &Workload, target: &str) -> Result<Delivery, Refusal> {
    let target = match target.parse() {
        Ok(address) => Target::Ip(address),
        Err(_) => {
            let (host, port) = target.rsplit_once(':').expect("host:port");
            Target::Host(host.into(), port.parse().expect("a port"))
        }
    };
    let network = Network::default();
    let request = Request {
        local,
        local_ip: "10.0.1.1".parse().expect("an address"),
        network: &network,
        target: &target,
        own_ports: &OWN,
        tunnel_to_localhost: true,
    };
    inbound(mesh, &request)
}

fn web_pod() -> ambit_fixtures::mesh::PodBuilder {
    pod("shop/web-1").account("web").at("10.0.1.1").behind(WEB, &[])
}

#[test]
fn the_pods_own_address_is_delivered_as_asked() {
    let delivery = ask(&snapshot([], []), &web_pod().build(), "10.0.1.1:8080").expect("a delivery");
    let destination = "10.0.1.1:8080".parse().expect("an address");
    let expected = Delivery { destination, dial: destination, keep_source: true, proxy_header: None };
    assert_eq!(delivery, expected);
}

#[test]
fn another_address_is_refused_with_400() {
    let refusal =
        ask(&snapshot([web_pod()], []), &web_pod().build(), "10.0.1.2:8080").expect_err("a refusal");
    assert_eq!(refusal.status(), 400);
    assert!(refusal.to_string().contains("ip mismatch"), "{refusal}");
}

#[test]
fn a_waypoint_accepts_what_it_stands_in_front_of_and_nothing_else() {
    let gate = pod("shop/gate-1").at("10.0.1.1").behind(GATE, &[]);
    let gate_service = service(GATE).vip("10.96.0.9").ports(&[(15008, 15008)]);
    let web = service(WEB).vip("10.96.0.1").ports(&[(80, 8080)]).waypoint(GATE);
    let other = service("shop/other.shop.svc.cluster.local").vip("10.96.0.2").ports(&[(80, 8080)]);
    let canary = service("shop/c.shop.svc.cluster.local").vip("10.96.0.3").waypoints(&[(GATE, 1)]);
    let behind = pod("shop/db-1").at("10.0.1.7").waypoint(GATE);
    let mesh = snapshot([gate.clone(), behind], [gate_service, web, other, canary]);
    let gate = gate.build();
    for (target, served) in [
        ("10.96.0.1:80", true),
        ("10.96.0.3:80", true),
        ("10.0.1.7:5432", true),
        ("10.96.0.2:80", false),
        ("192.0.2.1:80", false),
    ] {
        assert_eq!(ask(&mesh, &gate, target).is_ok(), served, "{target}");
    }
}

#[test]
fn a_host_name_is_resolved_to_the_pods_port() {
    let named = service(WEB).vip("10.96.0.1").ports(&[(80, 8080), (81, 0)]);
    let own = pod("shop/web-1").at("10.0.1.1").behind(WEB, &[(81, 7070)]);
    let mesh = snapshot([own.clone()], [named]);
    let own = own.build();
    let port = |target: &str| ask(&mesh, &own, target).map(|delivery| delivery.destination.port());
    assert_eq!(port("web.shop.svc.cluster.local:80"), Ok(8080));
    assert_eq!(port("web.shop.svc.cluster.local:81"), Ok(7070));
    for unknown in ["web.shop.svc.cluster.local:82", "nobody.example:80"] {
        assert_eq!(ask(&mesh, &own, unknown).map_err(|refusal| refusal.status()), Err(503), "{unknown}");
    }
}

#[test]
fn the_tunnels_own_ports_are_never_delivered_to() {
    let to_hbone = service(WEB).vip("10.96.0.1").ports(&[(80, 15008)]);
    let mesh = snapshot([web_pod()], [to_hbone]);
    for target in ["10.0.1.1:15008", "10.0.1.1:15001", "10.0.1.1:15006", "web.shop.svc.cluster.local:80"] {
        let refusal = ask(&mesh, &web_pod().build(), target).expect_err("a refusal");
        assert_eq!(refusal.status(), 503, "{target}");
        assert!(matches!(refusal, Refusal::Recursive(_)), "{target}: {refusal}");
    }
}

#[test]
fn a_proxy_tunnel_ends_at_loopback_and_names_what_was_asked_for() {
    let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) };
    let gate = pod("shop/gate-1").at("10.0.1.1").application_tunnel(tunnel).build();
    let vips = service(WEB).vip("fd00:96::1").vip("far/10.1.1.1").vip("10.96.0.1").ports(&[(80, 8080)]);
    let mesh = snapshot([], [vips]);
    let delivery = ask(&mesh, &gate, "192.0.2.7:80").expect("the application decides");
    assert_eq!(delivery.dial, "127.0.0.1:15088".parse().expect("an address"));
    assert_eq!(delivery.destination, "10.0.1.1:15088".parse().expect("an address"));
    assert_eq!(delivery.proxy_header, Some("192.0.2.7:80".parse().expect("an address")));
    assert!(!delivery.keep_source);
    let by_name = ask(&mesh, &gate, "web.shop.svc.cluster.local:80").expect("a delivery");
    assert_eq!(by_name.proxy_header, Some("10.96.0.1:80".parse().expect("an address")));
}

#[test]
fn a_plain_tunnel_changes_the_port_only() {
    let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::None, port: Some(9000) };
    let local = pod("shop/gate-1").at("10.0.1.1").application_tunnel(tunnel).build();
    let delivery = ask(&snapshot([], []), &local, "10.0.1.1:80").expect("a delivery");
    assert_eq!(delivery.dial, "10.0.1.1:9000".parse().expect("an address"));
    assert!(delivery.keep_source);
}

#[test]
fn telemetry_believes_a_forwarded_host_only_if_the_pod_serves_it() {
    let web = service(WEB).ports(&[(80, 8080)]);
    let other = service("shop/other.shop.svc.cluster.local").ports(&[(80, 8080)]);
    let mesh = snapshot([web_pod()], [web, other]);
    let local = web_pod().build();
    let found = |host: Option<&str>, port| {
        service_for_telemetry(&mesh, &local, host, port).map(|service| service.key().to_string())
    };
    assert_eq!(found(Some("web.shop.svc.cluster.local"), 1).as_deref(), Some(WEB));
    assert_eq!(found(Some("other.shop.svc.cluster.local"), 8080).as_deref(), Some(WEB));
    assert_eq!(found(None, 8080).as_deref(), Some(WEB));
    assert_eq!(found(None, 9999), None);
}
