//! Where each call goes: services, waypoints, gateways, addresses.

use ambit_fixtures::mesh::{PodBuilder, ServiceBuilder, pod, service, snapshot};
use ambit_model::service::{HealthPolicy, LoadBalancing, Scope};
use ambit_model::workload::{ApplicationProtocol, ApplicationTunnel};

use super::*;

const WEB: &str = "shop/web.shop.svc.cluster.local";
const GATE: &str = "shop/gate.shop.svc.cluster.local";

fn client() -> PodBuilder {
    pod("shop/client").at("10.0.0.1").on("node-a").locality("r1/z1/s1")
}

fn web() -> ServiceBuilder {
    service(WEB).vip("10.96.0.1").ports(&[(80, 8080)])
}

fn web_pod(n: u8) -> PodBuilder {
    pod(&format!("shop/web-{n}")).account("web").at(&format!("10.0.1.{n}")).behind(WEB, &[])
}

/// A waypoint service and its one instance.
fn gate() -> (ServiceBuilder, PodBuilder) {
    let service = service(GATE).vip("10.96.0.9").ports(&[(15008, 15008)]);
    (service, pod("shop/gate-1").account("gate").at("10.0.9.1").behind(GATE, &[]))
}

fn plan_on(mesh: &Snapshot, from: &PodBuilder, to: &str, tried: &[Uid], roll: u64) -> Result<Plan, Refusal> {
    let source = from.clone().build();
    let network = source.network.clone();
    let call = Call { source: &source, network: &network, to: to.parse().expect("an address"), tried };
    let mut dice = |bound: u64| roll % bound.max(1);
    match outbound(mesh, &Asked::Everything, &call, &mut dice) {
        Answer::Known(answer) => answer,
        Answer::Need(missing) => panic!("a complete mesh was asked for {missing:?}"),
    }
}

fn plan(
    pods: impl IntoIterator<Item = PodBuilder>,
    services: impl IntoIterator<Item = ServiceBuilder>,
    to: &str,
) -> Result<Plan, Refusal> {
    let mesh = snapshot([client()].into_iter().chain(pods), services);
    plan_on(&mesh, &client(), to, &[], 0)
}

fn ids(names: &[&str]) -> Arc<[Identity]> {
    let id = |name: &&str| Identity::new("cluster.local", "shop", *name);
    names.iter().map(id).collect()
}

fn address(text: &str) -> Hop {
    Hop::Address(text.parse().expect("an address"))
}

fn target(text: &str) -> Target {
    match text.parse() {
        Ok(address) => Target::Ip(address),
        Err(_) => {
            let (host, port) = text.rsplit_once(':').expect("host:port");
            Target::Host(host.into(), port.parse().expect("a port"))
        }
    }
}

fn tunnel(to: &str, asked: &str, expect: &[&str]) -> Route {
    Route::Tunnel { to: address(to), target: target(asked), expect: ids(expect) }
}

fn plain(to: &str) -> Route {
    Route::Plain { to: address(to) }
}

fn route(plan: Result<Plan, Refusal>) -> Route {
    plan.expect("a plan").route
}

#[test]
fn what_the_mesh_does_not_own_is_passed_through() {
    let plan = plan([], [web()], "192.0.2.1:443").expect("a plan");
    assert_eq!(plan, Plan { route: plain("192.0.2.1:443"), service: None, workload: None });
}

#[test]
fn a_service_is_reached_at_an_endpoint_through_a_tunnel() {
    let plan = plan([web_pod(1)], [web()], "10.96.0.1:80").expect("a plan");
    assert_eq!(plan.route, tunnel("10.0.1.1:15008", "10.0.1.1:8080", &["web"]));
    assert_eq!(plan.service.map(|service| service.key().to_string()).as_deref(), Some(WEB));
    assert_eq!(plan.workload.map(|workload| workload.name.to_string()).as_deref(), Some("web-1"));
}

#[test]
fn an_endpoint_outside_the_mesh_is_reached_in_plain_text() {
    assert_eq!(route(plan([web_pod(1).plain()], [web()], "10.96.0.1:80")), plain("10.0.1.1:8080"));
}

#[test]
fn a_service_without_endpoint_is_never_passed_through() {
    for pods in [vec![], vec![web_pod(1).unhealthy()], vec![web_pod(1).capacity(0)]] {
        let refusal = plan(pods, [web()], "10.96.0.1:80").expect_err("a refusal");
        assert_eq!(refusal, Refusal::NoEndpoint { service: WEB.into(), port: 80 });
    }
    let wrong_port = plan([web_pod(1)], [web()], "10.96.0.1:81").expect_err("a refusal");
    assert_eq!(wrong_port, Refusal::NoEndpoint { service: WEB.into(), port: 81 });
}

#[test]
fn a_passthrough_service_goes_where_it_was_going() {
    let passthrough = LoadBalancing { mode: Mode::Passthrough, ..LoadBalancing::default() };
    let plan = plan([web_pod(1)], [web().balanced(passthrough)], "10.96.0.1:80").expect("a plan");
    assert_eq!(plan, Plan { route: plain("10.96.0.1:80"), service: None, workload: None });
}

#[test]
fn a_workload_addressed_by_its_ip_ignores_services_and_their_waypoints() {
    let (gate_service, gate_pod) = gate();
    let mesh = [web().waypoint(GATE), gate_service];
    let plan = plan([web_pod(1), gate_pod], mesh, "10.0.1.1:9999").expect("a plan");
    assert_eq!(plan.route, tunnel("10.0.1.1:15008", "10.0.1.1:9999", &["web"]));
    assert_eq!(plan.service, None);
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it() {
    let (gate_service, gate_pod) = gate();
    let services =
        [web().waypoint(GATE), gate_service.alt_names(&["spiffe://cluster.local/ns/shop/sa/x", "dns"])];
    let plan = plan([web_pod(1), gate_pod], services, "10.96.0.1:80").expect("a plan");
    // The authority stays the address that the application asked for.
    assert_eq!(plan.route, tunnel("10.0.9.1:15008", "10.96.0.1:80", &["gate", "x"]));
    assert_eq!(plan.workload.map(|workload| workload.name.to_string()).as_deref(), Some("gate-1"));
    assert_eq!(plan.service.map(|service| service.key().to_string()).as_deref(), Some(WEB));
}

#[test]
fn there_is_no_way_around_a_waypoint() {
    let (gate_service, gate_pod) = gate();
    let unknown = Refusal::UnknownWaypoint(GATE.into());
    assert_eq!(plan([web_pod(1)], [web().waypoint(GATE)], "10.96.0.1:80"), Err(unknown.clone()));
    let no_instance = [web().waypoint(GATE), gate_service.clone()];
    assert_eq!(plan([web_pod(1)], no_instance, "10.96.0.1:80"), Err(unknown.clone()));
    let sick = [web().waypoint(GATE), gate_service];
    assert_eq!(plan([web_pod(1), gate_pod.unhealthy()], sick, "10.96.0.1:80"), Err(unknown));
}

#[test]
fn a_waypoint_named_by_address_is_used_at_that_address_whatever_the_family() {
    let gate = pod("shop/gate-1").account("gate").at("10.0.9.1").at("fd00::9");
    let service = web().vip("fd00:96::1").waypoint("fd00::9");
    assert_eq!(
        route(plan([web_pod(1), gate.clone()], [service.clone()], "10.96.0.1:80")),
        tunnel("[fd00::9]:15008", "10.96.0.1:80", &["gate"])
    );
    let by_name = web().vip("fd00:96::1").waypoint(GATE);
    let named = service_of_gate();
    let gate = gate.behind(GATE, &[]);
    assert_eq!(
        route(plan([gate], [by_name, named], "[fd00:96::1]:80")),
        tunnel("[fd00::9]:15008", "[fd00:96::1]:80", &["gate"]),
        "by name, the family follows the request"
    );
}

fn service_of_gate() -> ServiceBuilder {
    gate().0
}

#[test]
fn weighted_waypoints_are_drawn_and_all_zero_means_the_primary() {
    let other = "shop/canary.shop.svc.cluster.local";
    let canary = service(other).ports(&[(15008, 15008)]);
    let canary_pod = pod("shop/canary-1").account("canary").at("10.0.9.2").behind(other, &[]);
    let (gate_service, gate_pod) = gate();
    let mesh = |weights: [(&str, u32); 2]| {
        let web = web().waypoint(GATE).waypoints(&weights);
        snapshot(
            [client(), gate_pod.clone(), canary_pod.clone()],
            [web, gate_service.clone(), canary.clone()],
        )
    };
    let drawn = |mesh: &Snapshot, roll| route(plan_on(mesh, &client(), "10.96.0.1:80", &[], roll));
    let weighted = mesh([(GATE, 90), (other, 10)]);
    assert_eq!(drawn(&weighted, 89), tunnel("10.0.9.1:15008", "10.96.0.1:80", &["gate"]));
    assert_eq!(drawn(&weighted, 90), tunnel("10.0.9.2:15008", "10.96.0.1:80", &["canary"]));
    let zero = mesh([(GATE, 0), (other, 0)]);
    assert_eq!(drawn(&zero, 90), tunnel("10.0.9.1:15008", "10.96.0.1:80", &["gate"]));
}

#[test]
fn a_workload_with_a_waypoint_is_reached_through_it_unless_the_waypoint_itself_calls() {
    let (gate_service, gate_pod) = gate();
    let web = web_pod(1).waypoint(GATE);
    let mesh = snapshot([client(), web, gate_pod.clone()], [gate_service]);
    assert_eq!(
        route(plan_on(&mesh, &client(), "10.0.1.1:8080", &[], 0)),
        tunnel("10.0.9.1:15008", "10.0.1.1:8080", &["gate"])
    );
    assert_eq!(
        route(plan_on(&mesh, &gate_pod, "10.0.1.1:8080", &[], 0)),
        tunnel("10.0.1.1:15008", "10.0.1.1:8080", &["web"])
    );
}

#[test]
fn another_network_is_reached_through_two_tunnels() {
    let remote =
        web_pod(1).network("far").with(|pod| pod.addresses = Box::default()).network_gateway("203.0.113.1");
    let gateway = pod("istio-system/east-west").account("gw").at("203.0.113.1");
    let services = || [web().alt_names(&["spiffe://cluster.local/ns/shop/sa/web"])];
    let plan_for = |pods: Vec<PodBuilder>, to: &str| plan(pods, services(), to);
    assert_eq!(
        route(plan_for(vec![remote.clone(), gateway.clone()], "10.96.0.1:80")),
        Route::TunnelInTunnel {
            gateway: address("203.0.113.1:15008"),
            expect_gateway: [Identity::new("cluster.local", "istio-system", "gw")].into(),
            target: target("web.shop.svc.cluster.local:80"),
            expect: ids(&["web"]),
        }
    );
    assert_eq!(plan_for(vec![remote], "10.96.0.1:80"), Err(Refusal::UnknownGateway("/203.0.113.1".into())));
    let nowhere = web_pod(1).network("far");
    assert!(matches!(plan_for(vec![nowhere], "10.96.0.1:80"), Err(Refusal::NoRoute(_))));
}

#[test]
fn an_endpoint_of_the_own_network_beats_every_remote_one() {
    let failover = LoadBalancing {
        routing_preferences: [Scope::Network, Scope::Region, Scope::Zone].into(),
        mode: Mode::Failover,
        health_policy: HealthPolicy::OnlyHealthy,
    };
    let remote = web_pod(1).network("far").network_gateway("203.0.113.1").locality("r1/z1/s1");
    let near = web_pod(2).locality("r9/z9/s9");
    let chosen = plan([remote, near], [web().balanced(failover)], "10.96.0.1:80").expect("a plan");
    assert_eq!(chosen.workload.map(|workload| workload.name.to_string()).as_deref(), Some("web-2"));
}

#[test]
fn what_could_not_be_reached_is_not_tried_again() {
    let mesh = snapshot([client(), web_pod(1), web_pod(2)], [web()]);
    let first = pod("shop/web-1").build().uid;
    for roll in 0..4 {
        let plan = plan_on(&mesh, &client(), "10.96.0.1:80", std::slice::from_ref(&first), roll);
        assert_eq!(route(plan), tunnel("10.0.1.2:15008", "10.0.1.2:8080", &["web"]));
    }
    let both = [first, pod("shop/web-2").build().uid];
    let refusal = plan_on(&mesh, &client(), "10.96.0.1:80", &both, 0).expect_err("a refusal");
    assert!(matches!(refusal, Refusal::NoEndpoint { .. }));
}

#[test]
fn a_named_port_is_the_endpoints_own() {
    let web = service(WEB).vip("10.96.0.1").ports(&[(80, 0)]);
    let named = pod("shop/web-1").account("web").at("10.0.1.1").behind(WEB, &[(80, 7070)]);
    assert_eq!(
        route(plan([named], [web.clone()], "10.96.0.1:80")),
        tunnel("10.0.1.1:15008", "10.0.1.1:7070", &["web"])
    );
    assert!(plan([web_pod(1)], [web], "10.96.0.1:80").is_err(), "an endpoint without it is not eligible");
}

#[test]
fn a_waypoint_without_the_port_needs_an_application_tunnel() {
    let service = service(GATE).vip("10.96.0.9").ports(&[(80, 80)]);
    let tunnel_to = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) };
    let (_, gate_pod) = gate();
    let sandwich = gate_pod.clone().application_tunnel(tunnel_to);
    assert_eq!(
        route(plan([sandwich], [web().waypoint(GATE), service.clone()], "10.96.0.1:80")),
        tunnel("10.0.9.1:15008", "10.96.0.1:80", &["gate"])
    );
    let plain = plan([gate_pod], [web().waypoint(GATE), service], "10.96.0.1:80");
    assert_eq!(plain, Err(Refusal::UnknownWaypoint(GATE.into())));
}

#[test]
fn a_workload_without_address_is_resolved_when_connecting() {
    let external = pod("shop/ext").plain().behind(WEB, &[]).with(|pod| pod.hostname = "example.com".into());
    let Route::Plain { to } = route(plan([external], [web()], "10.96.0.1:80")) else { panic!("not plain") };
    assert_eq!(to, Hop::Name("example.com".into(), 8080));
}

#[test]
fn on_demand_asks_before_it_passes_through() {
    let source = client().build();
    let mesh = snapshot([client()], []);
    let network = Network::default();
    let call = Call {
        source: &source,
        network: &network,
        to: "192.0.2.1:80".parse().expect("an address"),
        tried: &[],
    };
    let mut dice = |_| 0;
    let missing = Missing::Address(NetworkAddress::new("", call.to.ip()));
    assert_eq!(outbound(&mesh, &Asked::These(vec![]), &call, &mut dice), Answer::Need(missing.clone()));
    assert_eq!(
        outbound(&mesh, &Asked::These(vec![missing]), &call, &mut dice),
        Answer::Known(Ok(passthrough(&call)))
    );
}

#[test]
fn the_tunnels_own_ports_on_loopback_are_recursive() {
    let own = [15001, 15006, 15008];
    let address = |text: &str| text.parse().expect("an address");
    // Redirected connections arrive at loopback, whatever they were opened to.
    let redirected = address("127.0.0.1:15001");
    for (to, at, recursive) in [
        ("127.0.0.1:15001", redirected, true),
        ("[::1]:15008", address("[::1]:15001"), true),
        ("127.0.0.1:80", redirected, false),
        ("10.0.0.1:15008", redirected, false),
        ("10.0.0.1:15001", address("10.0.0.1:15001"), true),
        ("10.0.0.1:80", address("10.0.0.1:15001"), false),
    ] {
        assert_eq!(is_recursive(address(to), at, &own), recursive, "{to} at {at}");
    }
}
