//! The engine: what is published, when, and in which order.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::sync::{Arc, Mutex};

use ambit_controller::cluster::Settings;
use ambit_controller::engine::Engine;
use ambit_controller::publish::Sink;
use ambit_controller::source::Event;
use ambit_wire::xds::{ADDRESS, Resource};
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
        let mut tape = self.0.lock().unwrap();
        for name in removals {
            tape.push(format!("-{name}"));
        }
        for resource in upserts {
            assert_eq!(resource.version.is_empty(), type_url != ADDRESS, "only policies go without version");
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
    struct Versions(Arc<Mutex<Vec<(String, Vec<u8>, Vec<String>, String)>>>);
    impl Sink for Versions {
        fn update(&self, _: &str, upserts: Vec<Resource>, _: &[String]) {
            self.0.lock().unwrap().extend(
                upserts.into_iter().map(|one| (one.version, one.body.to_vec(), one.aliases, one.node)),
            );
        }
        fn open(&self) {}
    }
    let versions = Versions::default();
    Engine::new(Settings::default(), versions.clone()).absorb(upserts(&web()).chain([Event::Synced]));
    let got = versions.0.lock().unwrap().clone();
    let [(version, body, aliases, node)] = got.as_slice() else { unreachable!("{got:?}") };
    assert_eq!(*version, format!("{:x}", xxhash_rust::xxh64::xxh64(body, 0)));
    assert_eq!((aliases.as_slice(), node.as_str()), (["/10.0.0.1".to_owned()].as_slice(), "n1"));
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
