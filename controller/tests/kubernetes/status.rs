//! Conditions reach objects, once, and leave them when they no longer hold; whatever the API server does meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use ambit_api::directory::{ObjectKey, Problem};
use ambit_controller::cluster::Settings;
use ambit_controller::cluster::object::{Key, Kind, Name, Parsed};
use ambit_controller::engine::Engine;
use ambit_controller::publish::Sink;
use ambit_controller::source::Event;
use ambit_controller::status::{Counts, Inputs, run};
use ambit_runtime::task;
use ambit_wire::xds::Resource;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::fake::{Fake, How, failure};
use super::support::{at_the_door, objects};

/// Longer than any of this takes.
const DEADLINE: Duration = Duration::from_secs(900);

struct Nobody;

impl Sink for Nobody {
    fn update(&self, _: &str, _: Vec<Resource>, _: &[String]) {}
    fn open(&self) {}
}

/// A controller of which only conditions are looked at.
struct Controller {
    engine: Engine<Nobody>,
    changed: watch::Sender<u64>,
    problems: watch::Sender<Vec<Problem>>,
    leader: watch::Sender<bool>,
    _task: task::Owned,
}

fn start(fake: &Fake, yaml: &str, leads: bool) -> Controller {
    let mut engine = Engine::new(Settings::default(), Nobody);
    engine.absorb(objects(yaml).into_iter().map(Event::Upsert).chain([Event::Synced]));
    let (changed, problems, leader) =
        (watch::Sender::new(0), watch::Sender::new(Vec::new()), watch::Sender::new(leads));
    let inputs = Inputs {
        view: engine.view(),
        synced: engine.synced(),
        changed: changed.subscribe(),
        problems: problems.subscribe(),
        leader: leader.subscribe(),
    };
    let task = task::spawn("status", run(fake.client(), inputs, Counts::default(), std::future::pending()));
    Controller { engine, changed, problems, leader, _task: task.owned() }
}

impl Controller {
    fn absorb(&mut self, events: impl IntoIterator<Item = Event>) {
        self.engine.absorb(events);
        self.changed.send_modify(|count| *count += 1);
    }

    fn apply(&mut self, yaml: &str) {
        self.absorb(objects(yaml).into_iter().map(Event::Upsert));
    }
}

/// Waits until something is so, in virtual time.
async fn until(what: &str, mut so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    let waiting = async {
        while !so() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    began.elapsed()
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/shop/services/{name}")
}

fn service(name: &str, uid: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, uid: {uid}, generation: 3, \
         labels: {{{labels}}}}}\nspec: {{clusterIP: 10.1.0.1, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn bound(name: &str) -> String {
    service(name, &format!("uid-{name}"), "istio.io/use-waypoint: gate")
}

/// The object as the API server has it.
fn stored(fake: &Fake, name: &str, uid: &str) {
    fake.put(&path(name), json!({ "metadata": { "name": name, "namespace": "shop", "uid": uid } }));
}

const PATCHES: &str = "PATCH";
const NOT_READY: &str = "istio.io/WaypointBound=False WaypointIsNotReady";

#[tokio::test(start_paused = true)]
async fn a_condition_is_written_once_with_its_generation_and_taken_away_when_it_no_longer_applies() {
    let fake = Fake::default();
    stored(&fake, "web", "uid-web");
    let mut controller = start(&fake, &bound("web"), true);
    until("written", || fake.conditions(&path("web")) == [NOT_READY]).await;
    let written = fake.get(&path("web")).unwrap()["status"]["conditions"][0].clone();
    assert_eq!(written["observedGeneration"], 3);
    assert_eq!(fake.seen("fieldManager=istio-ambient-service"), 1);
    assert_eq!(fake.seen("force=true"), 1);

    controller.apply(&bound("web"));
    sleep(Duration::from_secs(30)).await;
    assert_eq!(fake.seen(PATCHES), 1, "nothing changed");

    controller.apply(&service("web", "uid-web", ""));
    until("pruned", || fake.conditions(&path("web")).is_empty()).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(fake.seen(PATCHES), 2);
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_writes_and_the_next_one_goes_on_from_what_is_there() {
    let fake = Fake::default();
    for name in ["web", "stale"] {
        stored(&fake, name, &format!("uid-{name}"));
    }
    let both = bound("web") + &bound("stale");
    let first = start(&fake, &both, true);
    until("both", || fake.seen(PATCHES) == 2).await;
    let before = fake.get(&path("web")).unwrap();
    first.leader.send_replace(false);

    // One of the two changes while nobody leads.
    let now = bound("web") + &service("stale", "uid-stale", "");
    let second = start(&fake, &now, false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.seen(PATCHES), 2, "it does not lead");
    second.leader.send_replace(true);
    until("pruned", || fake.conditions(&path("stale")).is_empty()).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.seen(PATCHES), 3, "what was right is not written again");
    assert_eq!(fake.get(&path("web")).unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn conditions_of_others_are_left_alone() {
    let fake = Fake::default();
    stored(&fake, "web", "uid-web");
    let mut object = fake.get(&path("web")).unwrap();
    object["status"] = json!({ "conditions": [{ "type": "Theirs", "status": "True", "reason": "Fine" }] });
    fake.put(&path("web"), object);
    let mut controller = start(&fake, &bound("web"), true);
    until("written", || fake.conditions(&path("web")) == ["Theirs=True Fine", NOT_READY]).await;
    controller.apply(&service("web", "uid-web", ""));
    until("pruned", || fake.conditions(&path("web")) == ["Theirs=True Fine"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_made_anew_is_told_anew() {
    let fake = Fake::default();
    stored(&fake, "web", "uid-web");
    let mut controller = start(&fake, &bound("web"), true);
    until("written", || fake.seen(PATCHES) == 1).await;
    // Gone and back between two rounds.
    fake.remove(&path("web"));
    stored(&fake, "web", "uid-2");
    let key = Key { kind: Kind::Service, name: Name::new("shop", "web") };
    let again = objects(&service("web", "uid-2", "istio.io/use-waypoint: gate"));
    controller.absorb([Event::Delete(key)].into_iter().chain(again.into_iter().map(Event::Upsert)));
    until("written again", || fake.conditions(&path("web")) == [NOT_READY]).await;
}

#[tokio::test(start_paused = true)]
async fn writes_are_spread_over_time() {
    let fake = Fake::default();
    let names: Vec<String> = (0..100).map(|number| format!("web-{number}")).collect();
    for name in &names {
        stored(&fake, name, &format!("uid-{name}"));
    }
    let yaml: String = names.iter().map(|name| bound(name)).collect();
    let _controller = start(&fake, &yaml, true);
    let took = until("all", || fake.seen(PATCHES) == 100).await;
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_busy_is_left_in_peace_for_as_long_as_it_asks() {
    let fake = Fake::default();
    stored(&fake, "web", "uid-web");
    let mut busy = failure(429, "TooManyRequests", "please try again later");
    busy["details"] = json!({ "retryAfterSeconds": 20 });
    fake.fault(PATCHES, 1, How::Answer(429, busy));
    let _controller = start(&fake, &bound("web"), true);
    until("refused", || fake.seen(PATCHES) == 1).await;
    let took = until("written", || fake.conditions(&path("web")) == [NOT_READY]).await;
    assert!(took >= Duration::from_secs(20), "{took:?}");
    assert_eq!(fake.seen(PATCHES), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_when_the_api_server_fails_hangs_or_forgets() {
    let fake = Fake::default();
    stored(&fake, "web", "uid-web");
    fake.fault("GET /api/v1/services", 1, How::Answer(500, failure(500, "InternalError", "no leader")));
    fake.fault("GET /api/v1/services", 1, How::Hang);
    fake.fault("GET /api/v1/services", 1, How::Answer(410, failure(410, "Expired", "too old")));
    fake.fault(PATCHES, 1, How::Answer(409, failure(409, "Conflict", "changed")));
    fake.fault(PATCHES, 1, How::Hang);
    fake.fault(PATCHES, 1, How::Answer(500, json!("upstream connect error")));
    let _controller = start(&fake, &bound("web"), true);
    until("written", || fake.conditions(&path("web")) == [NOT_READY]).await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_served_is_no_trouble_and_found_when_it_comes() {
    let fake = Fake::default();
    fake.unserve("istio.io");
    stored(&fake, "web", "uid-web");
    let policy = "/apis/security.istio.io/v1beta1/namespaces/shop/authorizationpolicies/p";
    fake.put(policy, json!({ "metadata": { "name": "p", "namespace": "shop" } }));
    let yaml = bound("web")
        + "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {rules: [{}]}\n";
    let _controller = start(&fake, &yaml, true);
    until("written", || fake.conditions(&path("web")) == [NOT_READY]).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(fake.seen(PATCHES), 1);
    assert!(fake.seen("GET") < 12 * 23, "looks once a minute: {}", fake.seen("GET"));
    // Only the older version comes.
    fake.serve();
    fake.unserve("/security.istio.io/v1/");
    until("written", || fake.conditions(policy) == ["ZtunnelAccepted=True Accepted"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_again_and_again_does_not_hold_up_others_or_go_on_for_ever() {
    let fake = Fake::default();
    for name in ["a", "b"] {
        stored(&fake, name, &format!("uid-{name}"));
    }
    let refused = failure(422, "Invalid", "status.conditions: no");
    fake.fault("PATCH /api/v1/namespaces/shop/services/a/", 1000, How::Answer(422, refused));
    // Not there at all any more.
    let _controller = start(&fake, &(bound("a") + &bound("b") + &bound("gone")), true);
    until("written", || fake.conditions(&path("b")) == [NOT_READY]).await;
    sleep(Duration::from_secs(500)).await;
    let tries = fake.seen("services/a/status");
    assert!((5..15).contains(&tries), "{tries}");
    let tries = fake.seen("services/gone/status");
    assert!((5..15).contains(&tries), "{tries}");
}

#[tokio::test(start_paused = true)]
async fn one_object_that_the_api_server_chokes_on_does_not_hold_up_others() {
    let fake = Fake::default();
    for name in ["a", "b"] {
        stored(&fake, name, &format!("uid-{name}"));
    }
    let choked = failure(500, "InternalError", "conversion webhook failed");
    fake.fault("PATCH /api/v1/namespaces/shop/services/a/", 1000, How::Answer(500, choked));
    let _controller = start(&fake, &(bound("a") + &bound("b")), true);
    until("written", || fake.conditions(&path("b")) == [NOT_READY]).await;
}

#[tokio::test(start_paused = true)]
async fn mistakes_are_told_on_the_object_until_they_are_corrected() {
    let fake = Fake::default();
    let path = |kind: &str| format!("/apis/{kind}");
    let entry = path("networking.istio.io/v1/namespaces/shop/serviceentries/e");
    let peers = path("security.istio.io/v1/namespaces/shop/peerauthentications/pa");
    let policy = path("security.istio.io/v1/namespaces/shop/authorizationpolicies/p");
    for (path, name) in [(&entry, "e"), (&peers, "pa"), (&policy, "p")] {
        fake.put(path, json!({ "metadata": { "name": name, "namespace": "shop" } }));
    }
    // The last version that was understood is in force.
    let yaml = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {rules: [{}]}\n";
    let controller = start(&fake, yaml, true);
    let problem = |kind: &str, name: &str| Problem {
        file: PathBuf::new(),
        line: 0,
        key: Some(ObjectKey::new(kind, "shop", name)),
        field: "spec.x".to_owned(),
        what: "is wrong".to_owned(),
        remedy: "correct it".to_owned(),
    };
    controller.problems.send_replace(vec![
        problem("ServiceEntry", "e"),
        problem("PeerAuthentication", "pa"),
        problem("AuthorizationPolicy", "p"),
        problem("Pod", "whatever"),
    ]);
    let understood = "ambit.io/Understood=False Invalid";
    until("entry", || fake.conditions(&entry) == [understood]).await;
    until("peers", || fake.conditions(&peers) == [understood]).await;
    until("policy", || fake.conditions(&policy) == ["ZtunnelAccepted=False Invalid"]).await;
    let message = fake.get(&entry).unwrap()["status"]["conditions"][0]["message"].clone();
    assert_eq!(message, Value::from("spec.x: is wrong; correct it"));

    controller.problems.send_replace(Vec::new());
    until("policy", || fake.conditions(&policy) == ["ZtunnelAccepted=True Accepted"]).await;
}

const ROUTE: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop, uid: u, \
         generation: 3}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: {rules}}}\n---\n"
    )
}

fn told(name: &str, conditions: &[&str]) -> Vec<String> {
    conditions.iter().map(|one| format!("istio.io/mesh-controller {name}: {one}")).collect()
}

fn someone_else(status: &str) -> Value {
    json!({
        "parentRef": { "name": "front" },
        "controllerName": "example.com/gateway",
        "conditions": [{ "type": "Accepted", "status": status, "reason": "Theirs" }],
    })
}

#[tokio::test(start_paused = true)]
async fn a_route_is_told_beside_what_others_tell_it_and_whoever_was_faster_is_not_overwritten() {
    let fake = Fake::default();
    let metadata = json!({ "name": "web", "namespace": "shop", "uid": "u" });
    fake.put(ROUTE, json!({ "metadata": metadata, "status": { "parents": [someone_else("False")] } }));
    fake.fault("PATCH", 1, How::Answer(409, failure(409, "Conflict", "it was changed")));
    let yaml = service("web", "uid-web", "") + &route("[{backendRefs: [{name: web, port: 80}]}]");
    let mut controller = start(&fake, &yaml, true);
    until("refused once", || fake.seen("httproutes/web/status") == 1).await;
    // They go on meanwhile.
    let mut object = fake.get(ROUTE).unwrap();
    object["status"]["parents"] = json!([someone_else("True")]);
    fake.put(ROUTE, object);
    let theirs = "example.com/gateway front: Accepted=True Theirs".to_owned();
    let conditions = [
        "Accepted=True Accepted",
        "ResolvedRefs=True ResolvedRefs",
        "ResolvedWaypoints=False MissingUseWaypointLabel",
    ];
    let mut expected = vec![theirs.clone()];
    expected.extend(told("web", &conditions));
    until("written", || fake.parents(ROUTE) == expected).await;
    let ours = fake.get(ROUTE).unwrap()["status"]["parents"][1].clone();
    assert_eq!(ours["parentRef"], json!({ "group": "", "kind": "Service", "name": "web" }));
    assert_eq!(ours["conditions"][0]["observedGeneration"], 3);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(
        fake.seen("httproutes/web/status"),
        2,
        "what is there is not written again, not after a look either"
    );

    let key = Key { kind: Kind::Service, name: Name::new("shop", "web") };
    controller.absorb([Event::Delete(key)]);
    let missing = [
        "Accepted=False NoMatchingParent",
        "ResolvedRefs=False BackendNotFound",
        "ResolvedWaypoints=False NoMatchingParent",
    ];
    let mut expected = vec![theirs];
    expected.extend(told("web", &missing));
    until("written", || fake.parents(ROUTE) == expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_that_falls_back_says_so_and_one_that_was_never_understood_is_not_accepted() {
    let fake = Fake::default();
    fake.put(ROUTE, json!({ "metadata": { "name": "web", "namespace": "shop", "uid": "u" } }));
    let yaml = service("web", "uid-web", "") + &route("[{backendRefs: [{name: web, port: 80}]}]");
    let mut controller = start(&fake, &yaml, true);
    let problem = Problem {
        file: PathBuf::new(),
        line: 0,
        key: Some(ObjectKey::new("HTTPRoute", "shop", "web")),
        field: "spec.rules[0]".to_owned(),
        what: "is wrong".to_owned(),
        remedy: "correct it".to_owned(),
    };
    controller.problems.send_replace(vec![problem]);
    let fallen = [
        "Accepted=True Accepted",
        "PartiallyInvalid=True UnsupportedValue",
        "ResolvedRefs=True ResolvedRefs",
        "ResolvedWaypoints=False MissingUseWaypointLabel",
    ];
    until("written", || fake.parents(ROUTE) == told("web", &fallen)).await;
    let message = &fake.get(ROUTE).unwrap()["status"]["parents"][0]["conditions"][1]["message"];
    assert_eq!(message, "Fall Back: spec.rules[0]: is wrong; correct it");

    let Parsed::Bad { instead: Some(undecodable), .. } = at_the_door(&route("[{filters: [{type: CORS}]}]"))
    else {
        panic!("a filter without content");
    };
    controller.absorb([Event::Upsert(undecodable)]);
    until("written", || fake.parents(ROUTE) == told("web", &["Accepted=False UnsupportedValue"])).await;
    let message = &fake.get(ROUTE).unwrap()["status"]["parents"][0]["conditions"][0]["message"];
    assert_eq!(message, "spec.rules[0].filters[0].cors: is missing; write what the filter does");
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_told_of_each_target_as_gateway_api_tells_policies() {
    const LIMIT: &str = "/apis/ambit.io/v1alpha1/namespaces/shop/ratelimitpolicies/p";
    let fake = Fake::default();
    let theirs = json!({
        "ancestorRef": { "kind": "Service", "name": "web" },
        "controllerName": "example.com/gateway",
        "conditions": [],
    });
    let metadata = json!({ "name": "p", "namespace": "shop", "uid": "u" });
    fake.put(LIMIT, json!({ "metadata": metadata, "status": { "ancestors": [theirs] } }));
    let yaml = service("web", "uid-web", "")
        + "apiVersion: ambit.io/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: p, namespace: shop, generation: 2}\n\
           spec: {targetRefs: [{kind: Service, name: web}], local: [{requests: 1, per: 1s}]}\n";
    let _controller = start(&fake, &yaml, true);
    let ancestors = || fake.get(LIMIT).unwrap()["status"]["ancestors"].clone();
    until("written", || ancestors().as_array().is_some_and(|all| all.len() == 2)).await;
    let told = ancestors();
    assert_eq!(told[0], theirs, "what others wrote stays");
    assert_eq!(told[1]["ancestorRef"], json!({ "group": "", "kind": "Service", "name": "web" }));
    let condition = &told[1]["conditions"][0];
    assert_eq!(condition["type"], "Accepted");
    assert_eq!(
        (&condition["reason"], &condition["observedGeneration"]),
        (&json!("AncestorNotBound"), &json!(2))
    );
    sleep(Duration::from_secs(700)).await;
    assert_eq!(fake.seen("ratelimitpolicies/p/status"), 1, "what is there is not written again");
}
