//! What is encoded can be decoded, and what cannot is told or denied.

use ambit_model::authz::{Content, Scope};
use ambit_proto::security as sec;
use proptest::prelude::*;

use super::*;

proptest! {
    /// Foreign bytes never panic, and what they decode to survives a round trip.
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let mut names = Interner::default();
        if let Ok(update) = decode_address(Bytes::from(bytes.clone()), &mut names) {
            match update {
                Update::Workload(workload) => {
                    let body = encode_workload(&workload);
                    let bare = bare_workload(&body).expect("a workload");
                    prop_assert_eq!(bare, Bytes::from(workload::encode(&workload).encode_to_vec()));
                    let again = decode_address(body, &mut names);
                    let same = matches!(again, Ok(Update::Workload(same)) if same == workload);
                    prop_assert!(same);
                }
                Update::Service(service) => {
                    let body = encode_service(&service);
                    prop_assert_eq!(bare_workload(&body), None);
                    let again = decode_address(body, &mut names);
                    let same = matches!(again, Ok(Update::Service(same)) if same == service);
                    prop_assert!(same);
                }
                Update::Policy(_) | Update::Config(_) => {
                    prop_assert!(false, "an address is neither policy nor configuration");
                }
            }
        }
        if let Err((_, denial)) = decode_authorization("ns/name", Bytes::from(bytes), &mut names) {
            let denies = matches!(denial.map(|policy| policy.content), Some(Content::Undecodable { .. }));
            prop_assert!(denies);
        }
    }
}

#[test]
fn what_ports_carry_survives_and_a_protocol_of_the_future_is_no_mistake() {
    use ambit_model::service::AppProtocol::{Grpc, Http2, Http11, Tcp, Tls};
    let mut names = Interner::default();
    let all = [(80, Http11), (81, Http2), (82, Grpc), (83, Tcp), (84, Tls)];
    let service = Service {
        hostname: "web.test".into(),
        ports: (80..86).map(|port| (port, TargetPort::Number(port))).collect(),
        app_protocols: all.into(),
        ..Service::default()
    };
    let decoded = decode_address(encode_service(&service), &mut names);
    assert!(matches!(&decoded, Ok(Update::Service(same)) if **same == service), "{decoded:?}");
    let port = |app_protocol| pb::Port { service_port: 80, target_port: 80, app_protocol };
    let future = pb::Service { hostname: "web.test".into(), ports: vec![port(99)], ..Default::default() };
    let message = pb::Address { r#type: Some(pb::address::Type::Service(future)) };
    let Ok(Update::Service(read)) = decode_address(message.encode_to_vec().into(), &mut names) else {
        panic!("refused")
    };
    assert!(read.app_protocols.is_empty());
}

fn policy(matches: sec::Match) -> sec::Authorization {
    sec::Authorization {
        name: "name".into(),
        namespace: "ns".into(),
        scope: sec::Scope::WorkloadSelector.into(),
        action: sec::Action::Allow.into(),
        rules: vec![sec::Rule { clauses: vec![sec::Clause { matches: vec![matches] }] }],
        ..Default::default()
    }
}

fn decoded(message: &sec::Authorization) -> Result<Policy, (InvalidResource, Option<Box<Policy>>)> {
    decode_authorization("ns/name", message.encode_to_vec().into(), &mut Interner::default())
}

#[test]
fn a_policy_with_one_strange_value_denies_in_its_scope() {
    let text = || vec![sec::StringMatch { match_type: None }];
    let range = |length| vec![sec::Address { address: vec![10, 0, 0, 1].into(), length }];
    let strange = [
        sec::Match { principals: text(), ..Default::default() },
        sec::Match { not_namespaces: text(), ..Default::default() },
        sec::Match { source_ips: range(33), ..Default::default() },
        sec::Match { not_destination_ips: range(4000), ..Default::default() },
        sec::Match {
            destination_ips: vec![sec::Address { address: vec![1, 2, 3].into(), length: 8 }],
            ..Default::default()
        },
        sec::Match { destination_ports: vec![65_536 + 80], ..Default::default() },
        sec::Match { extensions: vec![pb::Extension::default()], ..Default::default() },
    ];
    for matches in strange {
        let (error, denial) = decoded(&policy(matches.clone())).expect_err("a strange value");
        assert!(matches!(error, InvalidResource::Field { .. }), "{matches:?}: {error}");
        let denial = denial.expect("a denial in its place");
        assert_eq!(denial.scope, Scope::WorkloadSelector);
        assert!(matches!(denial.content, Content::Undecodable { .. }));
    }
}

#[test]
fn a_policy_of_unknown_scope_denies_its_namespace() {
    let message = sec::Authorization { scope: 9, ..policy(sec::Match::default()) };
    let (_, denial) = decoded(&message).expect_err("an unknown scope");
    assert_eq!(denial.map(|policy| policy.scope), Some(Scope::Namespace));
}

#[test]
fn a_policy_is_known_by_the_name_of_its_resource() {
    let message = sec::Authorization { namespace: "other".into(), ..policy(sec::Match::default()) };
    let (error, denial) = decoded(&message).expect_err("another name");
    assert!(error.to_string().contains("other/name"), "{error}");
    assert_eq!(denial.map(|policy| policy.key.to_string()).as_deref(), Some("ns/name"));
}

#[test]
fn every_malformed_field_of_a_workload_is_named() {
    let good = || pb::Workload { uid: "uid".into(), ..Default::default() };
    let gateway = |destination| pb::GatewayAddress { destination, hbone_mtls_port: 15008 };
    let cases: Vec<(&str, pb::Workload)> = vec![
        ("uid", pb::Workload::default()),
        ("addresses", pb::Workload { addresses: vec![vec![1, 2, 3].into()], ..good() }),
        ("tunnel_protocol", pb::Workload { tunnel_protocol: 2, ..good() }),
        ("tunnel_protocol", pb::Workload { tunnel_protocol: 7, ..good() }),
        ("waypoint", pb::Workload { waypoint: Some(gateway(None)), ..good() }),
        ("network_gateway", pb::Workload { network_gateway: Some(gateway(None)), ..good() }),
        ("workload_type", pb::Workload { workload_type: 9, ..good() }),
        ("status", pb::Workload { status: -1, ..good() }),
        ("network_mode", pb::Workload { network_mode: 3, ..good() }),
        ("services", pb::Workload { services: [("web".into(), pb::PortList::default())].into(), ..good() }),
        ("authorization_policies", pb::Workload { authorization_policies: vec!["x".into()], ..good() }),
        (
            "application_tunnel.port",
            pb::Workload {
                application_tunnel: Some(pb::ApplicationTunnel { protocol: 0, port: 70_000 }),
                ..good()
            },
        ),
        (
            "application_tunnel.protocol",
            pb::Workload {
                application_tunnel: Some(pb::ApplicationTunnel { protocol: 5, port: 1 }),
                ..good()
            },
        ),
    ];
    for (field, message) in cases {
        let body = pb::Address { r#type: Some(pb::address::Type::Workload(message)) }.encode_to_vec();
        let error = decode_address(body.into(), &mut Interner::default()).expect_err(field);
        assert!(error.to_string().starts_with(field), "{field}: {error}");
    }
}

#[test]
fn every_malformed_field_of_a_service_is_named() {
    let good = || pb::Service { hostname: "web.shop.svc.cluster.local".into(), ..Default::default() };
    let balancing = |change: fn(&mut pb::LoadBalancing)| {
        let mut balancing = pb::LoadBalancing::default();
        change(&mut balancing);
        pb::Service { load_balancing: Some(balancing), ..good() }
    };
    let address = |bytes: &[u8], length| pb::Service {
        addresses: vec![pb::NetworkAddress {
            network: String::new(),
            address: Bytes::copy_from_slice(bytes),
            length,
        }],
        ..good()
    };
    let cases = [
        ("hostname", pb::Service::default()),
        ("hostname", pb::Service { hostname: "a/b".into(), ..good() }),
        ("addresses", address(&[1, 2], None)),
        ("addresses", address(&[10, 0, 0, 0], Some(64))),
        (
            "ports",
            pb::Service { ports: vec![pb::Port { service_port: 1 << 16, ..Default::default() }], ..good() },
        ),
        ("waypoint", pb::Service { waypoint: Some(pb::GatewayAddress::default()), ..good() }),
        (
            "weighted_waypoints",
            pb::Service { weighted_waypoints: vec![pb::WeightedWaypoint::default()], ..good() },
        ),
        ("load_balancing.routing_preference", balancing(|one| one.routing_preference = vec![0])),
        ("load_balancing.mode", balancing(|one| one.mode = 4)),
        ("load_balancing.health_policy", balancing(|one| one.health_policy = 2)),
        ("ip_families", pb::Service { ip_families: 4, ..good() }),
    ];
    for (field, message) in cases {
        let body = pb::Address { r#type: Some(pb::address::Type::Service(message)) }.encode_to_vec();
        let error = decode_address(body.into(), &mut Interner::default()).expect_err(field);
        assert!(error.to_string().starts_with(field), "{field}: {error}");
    }
}

#[test]
fn an_unknown_visibility_is_public() {
    let message = pb::Service { hostname: "web".into(), visibility: 9, ..Default::default() };
    let body = pb::Address { r#type: Some(pb::address::Type::Service(message)) }.encode_to_vec();
    let update = decode_address(body.into(), &mut Interner::default()).expect("a service");
    let Update::Service(service) = update else { panic!("not a service") };
    assert_eq!(service.visibility, ambit_model::service::Visibility::Public);
}
