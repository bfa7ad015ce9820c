//! The engine: what is published, when, and in which order.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::sync::{Arc, Mutex};

use ambit_controller::cluster::Settings;
use ambit_controller::engine::Engine;
use ambit_controller::publish::Sink;
use ambit_controller::source::Event;
use ambit_wire::codec::{AUTHORIZATION, SERVICE_CONFIG, WORKLOAD};
use ambit_wire::xds::Resource;
use support::{objects, pod_yaml};
use tokio::sync::mpsc;

/// What is told to subscribers, in words.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Vec<String>>>);

impl Tape {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Sink for Tape {
    fn update(&self, type_url: &str, upserts: Vec<Resource>, removals: &[String]) {
        // The same again.
        if type_url == WORKLOAD {
            return;
        }
        let mut tape = self.0.lock().unwrap();
        for name in removals {
            tape.push(format!("-{name}"));
        }
        for resource in upserts {
            assert_eq!(
                resource.version.is_empty(),
                type_url == AUTHORIZATION,
                "only policies go without version"
            );
            assert_eq!(
                resource.owner.is_empty(),
                type_url != SERVICE_CONFIG,
                "only waypoints own what they know"
            );
            tape.push(format!("+{}", resource.name));
        }
    }

    fn open(&self) {
        self.0.lock().unwrap().push("open".to_owned());
    }
}

fn upserts(yaml: &str) -> impl Iterator<Item = Event> {
    objects(yaml).into_iter().map(Event::Upsert)
}

fn synced(yaml: &str) -> (Engine<Tape>, Tape) {
    let tape = Tape::default();
    let mut engine = Engine::new(Settings::default(), tape.clone());
    engine.absorb(upserts(yaml).chain([Event::Synced]));
    tape.take();
    (engine, tape)
}

const WEB: &str = "Kubernetes//Pod/shop/web";
const POLICY: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                      spec: {selector: {matchLabels: {app: web}}}\n";

fn web() -> String {
    pod_yaml("shop", "web", "10.0.0.1", "app: web")
}

#[test]
fn nothing_is_published_before_all_is_known() {
    let tape = Tape::default();
    let mut engine = Engine::new(Settings::default(), tape.clone());
    engine.absorb(upserts(&web()));
    assert!(tape.take().is_empty());
    engine.absorb([Event::Synced]);
    assert_eq!(tape.take(), [format!("+{WEB}"), "open".to_owned()]);
    assert!(*engine.synced().borrow());
}

/// The property test compares with a translation of everything; this is what everything is.
#[test]
fn every_kind_of_thing_is_published() {
    let yaml = web()
        + POLICY
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {ports: [{port: 80}]}\n\
           ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: \
           {kubernetes.io/service-name: db}}\naddressType: IPv4\nendpoints: [{addresses: [192.0.2.1]}]\nports: [{port: 80}]\n\
           ---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 192.0.2.2}\n\
           ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec: {hosts: [x.com], \
           resolution: STATIC, endpoints: [{address: 192.0.2.3}]}\n\
           ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: dns, namespace: shop}\nspec: {hosts: [y.com], \
           resolution: DNS}\n\
           ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: own, namespace: shop}\nspec: {selector: \
           {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}\n";
    let tape = Tape::default();
    Engine::new(Settings::default(), tape.clone()).absorb(upserts(&yaml).chain([Event::Synced]));
    let mut got = tape.take();
    got.sort();
    let want = [
        "+Kubernetes//Pod/shop/web",
        "+Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.1",
        "+Kubernetes/networking.istio.io/ServiceEntry/shop/dns/y.com",
        "+Kubernetes/networking.istio.io/ServiceEntry/shop/ext/192.0.2.3",
        "+Kubernetes/networking.istio.io/WorkloadEntry/shop/vm",
        "+istio-system/istio_converted_static_strict",
        "+shop/converted_peer_authentication_own",
        "+shop/db.shop.svc.cluster.local",
        "+shop/p",
        "+shop/x.com",
        "+shop/y.com",
        "open",
    ];
    assert_eq!(got, want);
}

#[test]
fn what_did_not_change_is_not_published_again() {
    let (mut engine, tape) = synced(&web());
    engine.absorb(upserts(&web()));
    engine.absorb([Event::Synced]);
    // A label that nothing reads.
    engine.absorb(upserts(&web().replace("app: web", "app: web, colour: red")));
    assert!(tape.take().is_empty());
    engine.absorb(upserts(&web().replace("10.0.0.1", "10.0.0.2")));
    assert_eq!(tape.take(), [format!("+{WEB}")]);
}

/// A name that a tunnel does not know restricts nothing, so the policy is first there and last gone.
#[test]
fn a_policy_is_there_before_it_is_named_and_goes_after() {
    let (mut engine, tape) = synced(&web());
    engine.absorb(upserts(POLICY));
    assert_eq!(tape.take(), ["+shop/p".to_owned(), format!("+{WEB}")]);
    engine.absorb(objects(POLICY).into_iter().map(|object| Event::Delete(object.key())));
    assert_eq!(tape.take(), [format!("+{WEB}"), "-shop/p".to_owned()]);
}

#[test]
fn a_thing_that_comes_and_goes_in_one_batch_is_never_told() {
    let (mut engine, tape) = synced("");
    let gone = objects(&web()).into_iter().map(|object| Event::Delete(object.key()));
    engine.absorb(upserts(&web()).chain(gone));
    assert!(tape.take().is_empty());
    assert!(engine.outputs().is_empty());
}

#[test]
fn versions_are_hashes_of_the_bytes() {
    #[derive(Clone, Default)]
    struct Resources(Arc<Mutex<Vec<Resource>>>);
    impl Sink for Resources {
        fn update(&self, _: &str, upserts: Vec<Resource>, _: &[String]) {
            self.0.lock().unwrap().extend(upserts);
        }
        fn open(&self) {}
    }
    let resources = Resources::default();
    Engine::new(Settings::default(), resources.clone()).absorb(upserts(&web()).chain([Event::Synced]));
    let got = resources.0.lock().unwrap().clone();
    let [address, bare] = got.as_slice() else { unreachable!("{got:?}") };
    for web in [address, bare] {
        assert_eq!(web.version, format!("{:x}", xxhash_rust::xxh64::xxh64(&web.body, 0)));
        assert_eq!((web.aliases.as_slice(), web.node.as_str()), (["/10.0.0.1".to_owned()].as_slice(), "n1"));
    }
    assert_ne!(address.version, bare.version);
}

#[tokio::test]
async fn the_loop_ends_with_its_source_and_others_can_look_meanwhile() {
    let engine = Engine::new(Settings::default(), Tape::default());
    let (view, mut synced) = (engine.view(), engine.synced());
    let (sender, events) = mpsc::channel(8);
    let story = async {
        for event in upserts(&web()).chain([Event::Synced]) {
            sender.send(event).await.unwrap();
        }
        synced.wait_for(|synced| *synced).await.unwrap();
        assert_eq!(view.read().pods.len(), 1);
        let web = ("n1".into(), "shop".into());
        assert!(view.read().runs_on(&web.0, &web.1, "web"));
        assert!(!view.read().runs_on(&web.0, &web.1, "other"));
        drop(sender);
    };
    tokio::join!(engine.run(events, std::future::pending()), story);
}

#[test]
fn what_is_labelled_as_an_instance_changes_with_its_gateway() {
    let gateway = |name: &str, address: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: {name}, namespace: shop, labels: {{istio.io/waypoint-for: all}}}}\n\
             spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n\
             status: {{addresses: [{{type: IPAddress, value: {address}}}]}}\n"
        )
    };
    let gate = gateway("gate", "10.5.0.1");
    let labels = "gateway.networking.k8s.io/gateway-name: gate, istio.io/use-waypoint: gate2";
    let outside = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: vm, namespace: shop, labels: {{{labels}}}}}\nspec: {{address: 192.0.2.1}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: ext, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{hosts: [ext.example], ports: [{{number: 80, name: http}}], resolution: STATIC, endpoints: [{{address: 192.0.2.2}}]}}\n"
    );
    let (mut engine, tape) = synced(&(gate.clone() + &gateway("gate2", "10.5.0.2") + &outside));
    let key = objects(&gate).remove(0).key();
    engine.absorb([Event::Delete(key)]);
    let mut told = tape.take();
    told.sort();
    // An instance of a waypoint has none; without the gateway they are instances of nothing.
    let prefix = "+Kubernetes/networking.istio.io";
    assert_eq!(
        told,
        [
            format!("{prefix}/ServiceEntry/shop/ext/192.0.2.2"),
            format!("{prefix}/WorkloadEntry/shop/vm"),
            // And there is nobody to know what applies to workloads.
            "-shop/gate/shop/_workloads".to_owned(),
        ]
    );
}

#[test]
fn a_waypoint_knows_a_service_before_tunnels_bring_it_requests_and_until_they_no_longer_do() {
    let gate = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gate, namespace: infra}\n\
                spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, \
                allowedRoutes: {namespaces: {from: All}}}]}\nstatus: {addresses: [{value: 10.5.0.1}]}\n---\n";
    let service = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{clusterIP: 10.1.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let (mut engine, tape) = synced(&(gate.to_owned() + &service("")));
    let web = "shop/web.shop.svc.cluster.local";
    let config = format!("infra/gate/{web}");
    engine.absorb(upserts(&service("istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: infra")));
    assert_eq!(tape.take(), [format!("+{config}"), format!("+{web}")]);
    engine.absorb(upserts(&service("")));
    assert_eq!(tape.take(), [format!("+{web}"), format!("-{config}")]);
}
