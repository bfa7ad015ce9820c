//! What a snapshot knows, in whatever order it was told: protocols 5.1 and the edge cases of 12.

#![cfg(test)]

use std::{collections::BTreeSet, sync::Arc};

use ambit_fixtures::mesh::{PodBuilder, ServiceBuilder, pod, service};
use ambit_model::{
    address::NetworkAddress,
    authz::{Action, Content, Policy, Scope},
    name::{Hostname, Namespace, PolicyKey, ServiceKey, Uid},
    snapshot::{Addressed, Removal, Snapshot, Update},
    workload::Health,
};
use proptest::prelude::*;

const WEB: &str = "shop/web.shop.svc.cluster.local";

fn workload(pod: PodBuilder) -> Update {
    Update::Workload(Arc::new(pod.build()))
}

fn of(service: ServiceBuilder) -> Update {
    Update::Service(Arc::new(service.build()))
}

fn policy(key: &str, scope: Scope) -> Update {
    let content = Content::Rules { action: Action::Allow, rules: Vec::new(), dry_run: false };
    Update::Policy(Arc::new(Policy { key: PolicyKey::parse(key).expect("a key"), scope, content }))
}

fn told(updates: impl IntoIterator<Item = Update>) -> Snapshot {
    Snapshot::empty(None).apply(&[], updates)
}

fn at(ip: &str) -> NetworkAddress {
    NetworkAddress::new("", ip.parse().expect("an address"))
}

fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).expect("a key")
}

fn endpoints(mesh: &Snapshot, service: &str) -> Vec<String> {
    let all = mesh.endpoints(&key(service));
    all.map(|all| all.as_slice().iter().map(|one| one.workload.name.to_string()).collect())
        .unwrap_or_default()
}

#[test]
fn a_workload_may_come_before_its_service() {
    let early = told([workload(pod("shop/web-1").behind(WEB, &[]))]);
    assert_eq!(early.staged().count(), 1);
    let later = early.apply(&[], [of(service(WEB))]);
    assert_eq!(endpoints(&later, WEB), ["web-1"]);
    assert_eq!(later.staged().count(), 0);
    let resent = later.apply(&[], [of(service(WEB).vip("10.96.0.1"))]);
    assert_eq!(endpoints(&resent, WEB), ["web-1"], "a service that is sent again keeps its endpoints");
}

#[test]
fn a_workload_that_leaves_a_service_is_no_endpoint_any_more() {
    let mesh = told([of(service(WEB)), workload(pod("shop/web-1").behind(WEB, &[]))]);
    let left = mesh.apply(&[], [workload(pod("shop/web-1"))]);
    assert_eq!(endpoints(&left, WEB), Vec::<String>::new());
    let gone = mesh.apply(&[Removal::Address("Kubernetes//Pod/shop/web-1".into())], []);
    assert_eq!(endpoints(&gone, WEB), Vec::<String>::new());
    assert_eq!(endpoints(&mesh, WEB), ["web-1"], "the old snapshot stays as it was");
}

#[test]
fn a_workload_that_is_replaced_by_an_ill_one_takes_nothing_any_more() {
    let mesh = told([of(service(WEB)), workload(pod("shop/web-1").behind(WEB, &[]))]);
    let removal = [Removal::Address("Kubernetes//Pod/shop/web-1".into())];
    for removals in [&removal[..], &[]] {
        let replaced = mesh.apply(removals, [workload(pod("shop/web-1").behind(WEB, &[]).unhealthy())]);
        let all: Vec<_> = replaced.endpoints(&key(WEB)).iter().flat_map(|all| all.as_slice()).collect();
        assert_eq!(all.len(), 1, "the old endpoint is gone");
        assert_eq!(all[0].workload.health, Health::Unhealthy);
    }
}

#[test]
fn removals_come_before_updates() {
    let mesh = told([of(service(WEB)), workload(pod("shop/web-1").at("10.0.0.1").behind(WEB, &[]))]);
    let removal = [Removal::Address("Kubernetes//Pod/shop/web-1".into())];
    let replaced = mesh.apply(&removal, [workload(pod("shop/web-1").at("10.0.0.2").behind(WEB, &[]))]);
    assert!(replaced.workload_at(&at("10.0.0.1")).is_none());
    assert!(replaced.workload_at(&at("10.0.0.2")).is_some());
    assert_eq!(endpoints(&replaced, WEB), ["web-1"]);
}

#[test]
fn a_live_pod_is_never_shadowed() {
    let entry = pod("shop/entry")
        .at("10.0.0.1")
        .with(|entry| entry.uid = "c/networking.istio.io/WorkloadEntry/shop/entry".into());
    let plain = pod("shop/plain").at("10.0.0.1").plain();
    let meshed = pod("shop/meshed").at("10.0.0.1");
    let all = [entry.clone(), plain.clone(), meshed.clone()];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mesh = told(order.map(|n| workload(all[n].clone())));
        let names: Vec<_> = ["meshed", "plain", "entry"]
            .iter()
            .scan(mesh, |mesh, _| {
                let first = mesh.workload_at(&at("10.0.0.1"))?.clone();
                *mesh = mesh.apply(&[Removal::Address(first.uid.to_string())], []);
                Some(first.name.to_string())
            })
            .collect();
        assert_eq!(names, ["meshed", "plain", "entry"], "told in the order {order:?}");
    }
}

#[test]
fn among_equals_the_latest_is_found() {
    let first = workload(pod("shop/a").at("10.0.0.1"));
    let second = workload(pod("shop/b").at("10.0.0.1"));
    let mesh = told([first, second]);
    assert_eq!(mesh.workload_at(&at("10.0.0.1")).map(|one| one.name.to_string()).as_deref(), Some("b"));
}

#[test]
fn a_host_network_pod_is_not_found_by_its_nodes_address() {
    let mesh = told([workload(pod("shop/agent").at("10.0.0.1").host_network().behind(WEB, &[]))]);
    assert!(mesh.workload_at(&at("10.0.0.1")).is_none());
    assert_eq!(endpoints(&mesh, WEB), ["agent"]);
}

#[test]
fn a_service_is_chosen_from_the_clients_point_of_view() {
    let host = "web.example.com";
    let named = |namespace: &str| service(&format!("{namespace}/{host}")).vip("10.96.0.1");
    let mesh = told([
        of(named("first")),
        of(named("canon").canonical()),
        of(named("own")),
        of(named("secret").private()),
    ]);
    let found = |from: &str| {
        mesh.service_named(&Hostname::from(host), &Namespace::from(from)).map(|one| one.namespace.to_string())
    };
    assert_eq!(found("own").as_deref(), Some("own"));
    assert_eq!(found("other").as_deref(), Some("canon"));
    assert_eq!(found("secret").as_deref(), Some("secret"));
    let by_vip = mesh.service_at(&at("10.96.0.1"), &Namespace::from("other"));
    assert_eq!(by_vip.map(|one| one.namespace.to_string()).as_deref(), Some("canon"));
    let preferred = told([of(named("first")), of(named("liked"))]);
    let liked = Namespace::from("liked");
    let chosen =
        preferred.service_named_preferring(&Hostname::from(host), &Namespace::from("x"), Some(&liked));
    assert_eq!(chosen.map(|one| one.namespace.to_string()).as_deref(), Some("liked"));
}

#[test]
fn ranges_come_after_addresses_and_the_own_namespace_beats_a_longer_prefix() {
    let mesh = told([
        of(service("own/wide.example").vip("10.0.0.0/8")),
        of(service("far/narrow.example").vip("10.1.0.0/16")),
        of(service("far/exact.example").vip("10.1.1.1")),
    ]);
    let found = |ip: &str, from: &str| {
        mesh.service_at(&at(ip), &Namespace::from(from))
            .map(|one| one.hostname.to_string())
            .unwrap_or_default()
    };
    assert_eq!(found("10.1.1.1", "own"), "exact.example");
    assert_eq!(found("10.1.1.2", "own"), "wide.example");
    assert_eq!(found("10.1.1.2", "far"), "narrow.example");
    assert_eq!(found("10.9.9.9", "far"), "wide.example");
    assert_eq!(found("192.0.2.1", "far"), "");
}

#[test]
fn a_later_service_of_a_namespace_takes_the_address_over() {
    let mesh = told([
        of(service("shop/a.example").vip("10.96.0.1")),
        of(service("shop/b.example").vip("10.96.0.1")),
    ]);
    let found = mesh.service_at(&at("10.96.0.1"), &Namespace::from("shop"));
    assert_eq!(found.map(|one| one.hostname.to_string()).as_deref(), Some("b.example"));
}

#[test]
fn the_orders_of_lookup_differ_where_an_address_is_both() {
    let mesh = told([workload(pod("shop/web").at("10.0.0.1")), of(service(WEB).vip("10.0.0.1"))]);
    let from = Namespace::from("shop");
    assert!(matches!(mesh.addressed(&at("10.0.0.1"), &from), Some(Addressed::Workload(_))));
    assert!(matches!(mesh.upstream(&at("10.0.0.1"), &from), Some(Addressed::Service(_))));
}

#[test]
fn a_policy_that_changes_its_scope_leaves_its_old_place() {
    let web = pod("shop/web").build();
    let named = pod("shop/web").policies(&["shop/p"]).build();
    let mesh = told([policy("shop/p", Scope::Namespace)]);
    assert_eq!(mesh.policies_on(&web).count(), 1);
    let narrowed = mesh.apply(&[], [policy("shop/p", Scope::WorkloadSelector)]);
    assert_eq!(narrowed.policies_on(&web).count(), 0);
    assert_eq!(narrowed.policies_on(&named).count(), 1);
    let widened = narrowed.apply(&[], [policy("shop/p", Scope::Global)]);
    assert_eq!(widened.policies_on(&pod("other/x").build()).count(), 1);
    let gone = widened.apply(&[Removal::Policy(PolicyKey::new("shop", "p"))], []);
    assert_eq!(gone.policies_on(&named).count(), 0);
    assert_eq!(gone.unknown_policies(&named).count(), 1);
}

#[test]
fn only_pods_of_the_own_node_are_found_by_name() {
    let here = Snapshot::empty(Some("here".into()));
    let mesh = here.apply(&[], [workload(pod("shop/a").on("here")), workload(pod("shop/b").on("there"))]);
    let found = |name: &str| mesh.local_workload(&"shop".into(), &name.into(), &"default".into()).is_some();
    assert!(found("a"));
    assert!(!found("b"));
    assert!(mesh.local_workload(&"shop".into(), &"a".into(), &"other".into()).is_none());
}

/// One of a small world of workloads, services and policies, so that they collide.
#[derive(Clone, Debug)]
enum Step {
    Workload(u8, u8, u8, bool),
    Service(u8, u8),
    Policy(u8, u8),
    RemoveWorkload(u8),
    RemoveService(u8),
    RemovePolicy(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8, 0..3_u8, 0..3_u8, any::<bool>()).prop_map(|(n, ip, s, m)| Step::Workload(n, ip, s, m)),
        (0..3_u8, 0..3_u8).prop_map(|(n, vip)| Step::Service(n, vip)),
        (0..3_u8, 0..3_u8).prop_map(|(n, scope)| Step::Policy(n, scope)),
        (0..4_u8).prop_map(Step::RemoveWorkload),
        (0..3_u8).prop_map(Step::RemoveService),
        (0..3_u8).prop_map(Step::RemovePolicy),
    ]
}

fn host(n: u8) -> String {
    format!("shop/s{n}.example")
}

fn taken(mesh: &Snapshot, step: &Step) -> Snapshot {
    match *step {
        Step::Workload(n, ip, s, meshed) => {
            let pod = pod(&format!("shop/w{n}")).at(&format!("10.0.0.{ip}")).behind(&host(s), &[]);
            mesh.apply(&[], [workload(if meshed { pod } else { pod.plain() })])
        }
        Step::Service(n, vip) => mesh.apply(&[], [of(service(&host(n)).vip(&format!("10.96.0.{vip}")))]),
        Step::Policy(n, scope) => {
            let scope = [Scope::Global, Scope::Namespace, Scope::WorkloadSelector][usize::from(scope)];
            mesh.apply(&[], [policy(&format!("shop/p{n}"), scope)])
        }
        Step::RemoveWorkload(n) => mesh.apply(&[Removal::Address(format!("Kubernetes//Pod/shop/w{n}"))], []),
        Step::RemoveService(n) => mesh.apply(&[Removal::Address(host(n))], []),
        Step::RemovePolicy(n) => mesh.apply(&[Removal::Policy(PolicyKey::new("shop", format!("p{n}")))], []),
    }
}

/// Everything that can be asked of the small world, where the answer does not depend on who was told
/// last.
fn answers(mesh: &Snapshot) -> Vec<String> {
    let from = Namespace::from("shop");
    let web = pod("shop/web").build();
    let mut said = Vec::new();
    for n in 0..4 {
        let ip = at(&format!("10.0.0.{n}"));
        let there = mesh.workload_at(&ip);
        said.push(format!("{ip} meshed: {:?}", there.map(|one| one.tunnel)));
        let uid = Uid::from(format!("Kubernetes//Pod/shop/w{n}"));
        said.push(format!("{uid}: {:?}", mesh.workload(&uid).map(|one| one.addresses.clone())));
        let found = mesh.local_workload(&from, &format!("w{n}").into(), &"default".into());
        said.push(format!("w{n} by name: {}", found.is_some()));
        said.push(format!("{} endpoints: {:?}", host(n), endpoints(mesh, &host(n))));
        said.push(format!("{} known: {}", host(n), mesh.service(&key(&host(n))).is_some()));
        let vip = at(&format!("10.96.0.{n}"));
        said.push(format!("{vip}: {}", mesh.service_at(&vip, &from).is_some()));
    }
    let policies: BTreeSet<_> = mesh.policies_on(&web).map(|one| one.key.to_string()).collect();
    said.push(format!("policies: {policies:?}"));
    said.push(format!("staged: {}, counts: {:?}", mesh.staged().count(), mesh.counts()));
    said
}

proptest! {
    /// However it came about, a snapshot answers as one that was told the final state at once.
    #[test]
    fn incremental_is_the_same_as_from_scratch(steps in proptest::collection::vec(step(), 0..40)) {
        let mesh = steps.iter().fold(Snapshot::empty(None), |mesh, step| taken(&mesh, step));
        let workloads = mesh.workloads().cloned().map(Update::Workload);
        let services = mesh.services().cloned().map(Update::Service);
        let policies = mesh.policies().cloned().map(Update::Policy);
        let scratch = told(workloads.chain(services).chain(policies));
        // A virtual address that two services of one namespace claim belongs to the later one: when
        // that is removed the earlier does not come back, so such worlds are left out.
        let vips: Vec<_> = mesh.services().flat_map(|one| one.vips.iter().cloned()).collect();
        let distinct: BTreeSet<_> = vips.iter().cloned().collect();
        prop_assume!(vips.len() == distinct.len());
        let claimed_once = steps.iter().all(|step| match step {
            Step::Service(n, vip) => steps.iter().all(|other| match other {
                Step::Service(m, other_vip) => m == n || other_vip != vip,
                Step::Workload(..) | Step::Policy(..) => true,
                Step::RemoveWorkload(_) | Step::RemoveService(_) | Step::RemovePolicy(_) => true,
            }),
            Step::Workload(..) | Step::Policy(..) => true,
            Step::RemoveWorkload(_) | Step::RemoveService(_) | Step::RemovePolicy(_) => true,
        });
        prop_assume!(claimed_once);
        prop_assert_eq!(answers(&mesh), answers(&scratch));
    }
}
