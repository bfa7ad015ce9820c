//! What signs: made once, read by all, followed, rotated.

use std::{sync::Arc, time::Duration};

use ambit_api::labels::{CA_DROP_ROOT, CA_LONGEST_LIFE, CA_REFUSAL, CA_ROTATION, CA_STAGE};
use ambit_controller::ca::{
    in_force::InForce,
    keeping::{KeepError, Keeper, Settings},
    rotation::Stage,
    secret::{self, CACERTS, Making, OWN},
};
use ambit_wire::cert::authority::{Authority, Serial, Validity};
use http::Method;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::api::Api;

pub(crate) const SYSTEM: &str = "istio-system";
const DAY: Duration = Duration::from_secs(86_400);

fn settings(replica: &str) -> Settings {
    let making =
        Making { trust_domain: "cluster.local".into(), lifetime: 3650 * DAY, usual: DAY, longest: 90 * DAY };
    Settings { system_namespace: SYSTEM.to_owned(), making, replica: replica.to_owned() }
}

pub(crate) async fn open(api: &Api) -> Result<Keeper, KeepError> {
    Keeper::open(api.client(), settings("one")).await
}

fn own(api: &Api) -> Value {
    api.get("secrets", SYSTEM, OWN).unwrap()
}

fn own_root(api: &Api) -> String {
    decoded(&own(api)["data"]["ca-cert.pem"])
}

pub(crate) fn annotation(api: &Api, name: &str) -> Option<String> {
    own(api)["metadata"]["annotations"][name].as_str().map(str::to_owned)
}

pub(crate) fn wish(api: &Api, step: &str) {
    let mut secret = own(api);
    secret["metadata"]["annotations"][CA_ROTATION] = json!(step);
    api.put("secrets", SYSTEM, secret);
}

fn life() -> Validity {
    let now = std::time::SystemTime::now();
    Validity { not_before: now - DAY, not_after: now + 100 * DAY }
}

/// `cacerts` with a fresh authority, trusted beside `others`.
fn cacerts(others: &str) -> (Value, String) {
    let root = Authority::self_signed(&"corp".into(), life(), Serial::new(1)).unwrap();
    let mesh = root.intermediate("Mesh", life(), Serial::new(2)).unwrap();
    let roots = format!("{}{others}", root.roots());
    let data = [
        ("ca-cert.pem", mesh.chain().unwrap()),
        ("ca-key.pem", mesh.key().to_pem().unwrap()),
        ("cert-chain.pem", mesh.chain().unwrap()),
        ("root-cert.pem", roots.clone()),
    ];
    let data: serde_json::Map<_, _> =
        data.into_iter().map(|(name, text)| (name.to_owned(), encoded(&text))).collect();
    (json!({"metadata": {"name": CACERTS}, "data": data}), roots)
}

fn encoded(text: &str) -> Value {
    use base64::Engine as _;
    json!(base64::engine::general_purpose::STANDARD.encode(text))
}

fn decoded(value: &Value) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Tells the mesh to trust `roots`, as the leader does.
fn tell(api: &Api, roots: &str) {
    let data = json!({"root-cert.pem": roots});
    api.put("configmaps", SYSTEM, json!({"metadata": {"name": "istio-ca-root-cert"}, "data": data}));
}

/// A replica that follows the Secrets.
pub(crate) struct Replica {
    pub(crate) in_force: watch::Receiver<Arc<InForce>>,
    leader: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Replica {
    pub(crate) fn start(keeper: Keeper, leads: bool) -> Self {
        let in_force = keeper.in_force();
        let (leader, hears) = watch::channel(leads);
        let (stop, mut stopped) = watch::channel(false);
        #[expect(clippy::disallowed_methods, reason = "the test ends it")]
        let task = tokio::spawn(keeper.follow(hears, async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }));
        Self { in_force, leader, stop, task }
    }

    pub(crate) async fn until(
        &mut self,
        what: &str,
        holds: impl FnMut(&Arc<InForce>) -> bool,
    ) -> Arc<InForce> {
        let found = tokio::time::timeout(Duration::from_secs(600), self.in_force.wait_for(holds)).await;
        Arc::clone(&found.unwrap_or_else(|_| panic!("never: {what}")).unwrap())
    }

    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_that_start_together_have_one_root() {
    for leases in [None, Some(403)] {
        let api = Api::new();
        if let Some(code) = leases {
            api.fail(Method::GET, "leases", code, usize::MAX);
        }
        let starts = ["a", "b", "c", "d"].map(|name| Keeper::open(api.client(), settings(name)));
        let keepers = futures_util::future::join_all(starts).await;
        let bundles: Vec<_> = keepers
            .into_iter()
            .map(|keeper| keeper.unwrap().in_force().borrow().bundle().to_owned())
            .collect();
        assert!(bundles.iter().all(|bundle| *bundle == bundles[0]), "{leases:?}");
        assert_eq!(api.all("secrets").len(), 1);
        assert!(api.all("leases").is_empty(), "the Lease is given back");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_holder_of_the_lease_makes_keys() {
    let api = Api::new();
    let starts = ["a", "b", "c", "d"].map(|name| Keeper::open(api.client(), settings(name)));
    futures_util::future::join_all(starts).await;
    assert_eq!(api.writes("secrets"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_somebody_who_died_holds_nobody_up_for_long() {
    let api = Api::new();
    let spec = json!({
        "holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": "2020-01-01T00:00:00.000000Z",
    });
    api.put("leases", SYSTEM, json!({"metadata": {"name": "ambit-ca-root"}, "spec": spec}));
    open(&api).await.unwrap();
    // One that renews for ever is waited for, but not for ever.
    let api = Api::new();
    let spec = json!({
        "holderIdentity": "mad", "leaseDurationSeconds": 15, "renewTime": "2100-01-01T00:00:00.000000Z",
    });
    api.put("leases", SYSTEM, json!({"metadata": {"name": "ambit-ca-root"}, "spec": spec}));
    open(&api).await.unwrap();
    assert_eq!(api.all("secrets").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_root_whose_creation_was_not_acknowledged_is_the_root() {
    let api = Api::new();
    api.lose_answer(Method::POST, "secrets", 504);
    let keeper = open(&api).await.unwrap();
    let kept = own(&api);
    assert_eq!(encoded(keeper.in_force().borrow().bundle()), kept["data"]["ca-cert.pem"]);
    assert_eq!(api.writes("secrets"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_waited_out_and_what_does_not_is_told_with_its_remedy() {
    for code in [429, 500, 503] {
        let api = Api::new();
        api.fail(Method::GET, "secrets", code, 3);
        api.fail(Method::POST, "secrets", code, 2);
        open(&api).await.unwrap();
    }
    let api = Api::new();
    api.fail(Method::GET, "secrets", 503, usize::MAX);
    assert!(matches!(open(&api).await, Err(KeepError::Read { .. })));
    for method in [Method::GET, Method::POST] {
        let api = Api::new();
        api.fail(method, "secrets", 403, 1);
        let error = open(&api).await.unwrap_err().to_string();
        assert!(error.contains("Secret") && error.contains("roles"), "{error}");
        assert!(api.all("secrets").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_cannot_be_used_stops_the_start_and_stays_as_it_is() {
    for name in [OWN, CACERTS] {
        let api = Api::new();
        let bad = json!({"metadata": {"name": name}, "data": {
            "ca-cert.pem": encoded("garbage"), "ca-key.pem": encoded("very secret"), "root-cert.pem": encoded("x"),
        }});
        api.put("secrets", SYSTEM, bad);
        let error = open(&api).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("ca-cert.pem"), "{error}");
        assert!(!error.contains("very secret"));
        assert_eq!(api.writes(""), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_plugged_in_authority_goes_first_and_a_new_one_takes_effect() {
    let api = Api::new();
    let (first, roots) = cacerts("");
    api.put("secrets", SYSTEM, first);
    let mut replica = Replica::start(open(&api).await.unwrap(), true);
    assert_eq!(replica.in_force.borrow().bundle(), roots);
    assert_eq!(api.writes(""), 0, "no root of our own is made");
    let (second, both) = cacerts(&roots);
    api.put("secrets", SYSTEM, second.clone());
    replica.until("the new authority", |now| now.bundle() == both).await;
    // One that cannot be used is not taken, nor is its absence.
    let mut bad = second.clone();
    bad["data"]["ca-key.pem"] = encoded("garbage");
    api.put("secrets", SYSTEM, bad);
    let now = replica.until("a complaint", |now| now.problem.is_some()).await;
    assert!(now.problem.as_ref().unwrap().contains("ca-key.pem") && now.bundle() == both);
    api.remove("secrets", SYSTEM, CACERTS);
    let deleted = |now: &Arc<InForce>| now.problem.as_ref().is_some_and(|why| why.contains("deleted"));
    assert_eq!(replica.until("another complaint", deleted).await.bundle(), both);
    api.put("secrets", SYSTEM, second);
    replica.until("peace", |now| now.problem.is_none()).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_leaves_out_the_root_in_use_is_not_taken_until_the_operator_insists() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), false);
    let old = own_root(&api);
    tell(&api, &old);
    let (mut abrupt, roots) = cacerts("");
    api.put("secrets", SYSTEM, abrupt.clone());
    let told = |now: &Arc<InForce>| now.problem.as_ref().is_some_and(|why| why.contains(CA_DROP_ROOT));
    let now = replica.until("a complaint", told).await;
    assert_eq!(now.bundle(), old);
    // Its own root is followed meanwhile: lives are written down beside it.
    open(&api).await.unwrap().lives().raise(3 * DAY).await.unwrap();
    replica.until("a longer life", |now| now.longest == Some(3 * DAY) && told(now)).await;
    // One that starts does as the others.
    let started = open(&api).await.unwrap().in_force();
    assert!(started.borrow().bundle() == old && told(&started.borrow()));
    let problem = started.borrow().problem.clone().unwrap();
    let fingerprint = problem.rsplit_once('=').unwrap().1.to_owned();
    abrupt["metadata"]["annotations"] = json!({ CA_DROP_ROOT: fingerprint });
    api.put("secrets", SYSTEM, abrupt);
    let now = replica.until("the new authority", |now| now.bundle() == roots).await;
    assert_eq!(now.problem, None);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_beside_an_authority_that_is_not_taken_is_kept_up() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), true);
    let before = own(&api);
    tell(&api, &own_root(&api));
    let (abrupt, _) = cacerts("");
    api.put("secrets", SYSTEM, abrupt);
    replica.until("a complaint", |now| now.problem.is_some()).await;
    api.remove("secrets", SYSTEM, OWN);
    api.until("the root is put back", |api| api.get("secrets", SYSTEM, OWN).is_some()).await;
    assert_eq!(own(&api)["data"], before["data"]);
    wish(&api, "prepare");
    replica.until("a step", |now| now.rotation.stage() == Stage::Prepared && now.problem.is_some()).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_missed_a_step_follows_what_the_mesh_is_told() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), false);
    tell(&api, &own_root(&api));
    let (abrupt, roots) = cacerts("");
    api.put("secrets", SYSTEM, abrupt);
    replica.until("a complaint", |now| now.problem.is_some()).await;
    tell(&api, &roots);
    replica.until("the authority of the others", |now| now.bundle() == roots).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_with_an_authority_that_nobody_knows_is_refused() {
    let api = Api::new();
    let (first, roots) = cacerts("");
    api.put("secrets", SYSTEM, first);
    open(&api).await.unwrap();
    tell(&api, &roots);
    open(&api).await.unwrap();
    let (stranger, _) = cacerts("");
    api.put("secrets", SYSTEM, stranger);
    let error = open(&api).await.unwrap_err().to_string();
    assert!(error.contains("root-cert.pem") && error.contains(CA_DROP_ROOT), "{error}");
    let (follower, both) = cacerts(&roots);
    api.put("secrets", SYSTEM, follower);
    assert_eq!(open(&api).await.unwrap().in_force().borrow().bundle(), both);
}

#[tokio::test(start_paused = true)]
async fn watches_that_are_cut_lose_nothing() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), false);
    let (secret, roots) = cacerts(&own_root(&api));
    api.cut();
    api.fail(Method::GET, "secrets", 500, 4);
    api.put("secrets", SYSTEM, secret);
    api.cut();
    replica.until("the plugged-in authority", |now| now.bundle() == roots).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_is_rotated_by_annotation_and_every_replica_follows() {
    let api = Api::new();
    let mut leader = Replica::start(open(&api).await.unwrap(), true);
    let mut other = Replica::start(open(&api).await.unwrap(), false);
    let old = leader.in_force.borrow().bundle().to_owned();
    wish(&api, "prepare");
    for replica in [&mut leader, &mut other] {
        let now = replica.until("prepared", |now| now.rotation.stage() == Stage::Prepared).await;
        assert!(now.bundle().starts_with(&old) && now.bundle().len() > old.len());
        assert_eq!(now.authority().chain().unwrap(), old);
    }
    assert_eq!(annotation(&api, CA_STAGE).as_deref(), Some("prepared"));
    assert_eq!(annotation(&api, CA_ROTATION), None);
    // Too early.
    wish(&api, "activate");
    api.until("a refusal", |api| annotation(api, CA_REFUSAL).is_some()).await;
    assert_eq!(annotation(&api, CA_ROTATION), None);
    assert!(annotation(&api, CA_REFUSAL).unwrap().contains("activate-now"));
    wish(&api, "activate-now");
    for replica in [&mut leader, &mut other] {
        let now = replica.until("active", |now| now.rotation.stage() == Stage::Active).await;
        assert!(now.bundle().ends_with(&old));
        assert_ne!(now.authority().chain().unwrap(), old);
    }
    assert_eq!(annotation(&api, CA_REFUSAL), None);
    wish(&api, "retire");
    api.until("a refusal", |api| annotation(api, CA_REFUSAL).is_some()).await;
    wish(&api, "retire-now");
    for replica in [&mut leader, &mut other] {
        let now = replica.until("steady", |now| now.rotation.stage() == Stage::Steady).await;
        assert!(!now.bundle().contains(&old));
    }
    leader.stop().await;
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wish_waits_for_a_leader_and_survives_conflicts_and_failures() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), false);
    wish(&api, "prepare");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(annotation(&api, CA_ROTATION).as_deref(), Some("prepare"));
    api.fail(Method::PUT, "secrets", 500, 3);
    replica.leader.send_replace(true);
    replica.until("prepared", |now| now.rotation.stage() == Stage::Prepared).await;
    // Somebody touches the Secret at the same moment: one of the two writes is a conflict, and none is lost.
    wish(&api, "rollback");
    let mut touched = own(&api);
    touched["metadata"]["labels"]["touched"] = json!("yes");
    api.put("secrets", SYSTEM, touched);
    replica.until("steady", |now| now.rotation.stage() == Stage::Steady).await;
    assert_eq!(own(&api)["metadata"]["labels"]["touched"], "yes");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wish_beside_a_plugged_in_authority_is_refused() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), true);
    let (secret, roots) = cacerts(&own_root(&api));
    api.put("secrets", SYSTEM, secret);
    replica.until("the plugged-in authority", |now| now.bundle() == roots).await;
    wish(&api, "prepare");
    api.until("a refusal", |api| annotation(api, CA_REFUSAL).is_some()).await;
    assert!(annotation(&api, CA_REFUSAL).unwrap().contains("cacerts"));
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_deleted_is_put_back_by_the_leader() {
    let api = Api::new();
    let mut replica = Replica::start(open(&api).await.unwrap(), false);
    let before = own(&api);
    api.remove("secrets", SYSTEM, OWN);
    replica.until("a complaint", |now| now.problem.is_some()).await;
    assert!(api.get("secrets", SYSTEM, OWN).is_none());
    replica.leader.send_replace(true);
    replica.until("peace", |now| now.problem.is_none()).await;
    assert_eq!(own(&api)["data"], before["data"]);
    assert_eq!(own(&api)["type"], before["type"]);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn longer_lives_are_written_down_and_never_shorter_ones() {
    let api = Api::new();
    let keeper = open(&api).await.unwrap();
    let lives = keeper.lives();
    assert_eq!(annotation(&api, CA_LONGEST_LIFE).as_deref(), Some("86400"));
    let (one, two) = tokio::join!(lives.raise(2 * DAY), lives.raise(3 * DAY));
    one.unwrap();
    two.unwrap();
    assert_eq!(annotation(&api, CA_LONGEST_LIFE).as_deref(), Some("259200"));
    lives.raise(DAY).await.unwrap();
    assert_eq!(annotation(&api, CA_LONGEST_LIFE).as_deref(), Some("259200"));
    api.fail(Method::PATCH, "secrets", 403, 1);
    assert!(lives.raise(9 * DAY).await.unwrap_err().to_string().contains("roles"));
}

#[tokio::test]
async fn no_key_is_ever_printed() {
    let api = Api::new();
    let keeper = open(&api).await.unwrap();
    let key = own(&api)["data"]["ca-key.pem"].as_str().unwrap()[60..100].to_owned();
    let printed = format!("{keeper:?} {:?}", keeper.in_force().borrow());
    assert!(!printed.contains("PRIVATE") && !printed.contains(&key));
    let fresh = secret::fresh(&settings("x").making, std::time::SystemTime::now());
    assert!(fresh.is_ok());
}
