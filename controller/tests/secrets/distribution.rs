//! Every namespace is told whom to trust, by the leader alone, and nothing is written that is there.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use ambit_controller::ca::{
    distribute::{self, Told},
    in_force::InForce,
    root::{Origin, Root},
};
use ambit_wire::cert::authority::{Authority, Serial, Validity};
use http::Method;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::api::Api;

const ROOTS: &str = "istio-ca-root-cert";
const LISTS: &str = "istio-ca-crl";

fn in_force(lists: Option<&str>) -> Arc<InForce> {
    let now = std::time::SystemTime::now();
    let expires = now + Duration::from_secs(86_400);
    let life = Validity { not_before: now, not_after: expires };
    let authority = Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap();
    let root = Root { authority, origin: Origin::Kept, expires };
    Arc::new(InForce { lists: lists.map(str::to_owned), ..InForce::steady(root) })
}

fn namespace(api: &Api, name: &str) {
    api.put("namespaces", "", json!({"metadata": {"name": name}}));
}

fn told(api: &Api, namespace: &str, name: &str) -> Option<Value> {
    api.get("configmaps", namespace, name)
}

fn text(api: &Api, namespace: &str) -> Option<String> {
    told(api, namespace, ROOTS)?["data"]["root-cert.pem"].as_str().map(str::to_owned)
}

struct Teller {
    in_force: watch::Sender<Arc<InForce>>,
    leader: watch::Sender<bool>,
    told: Arc<Told>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Teller {
    fn start(api: &Api, first: Arc<InForce>, leads: bool) -> Self {
        let (in_force, reads) = watch::channel(first);
        let (leader, hears) = watch::channel(leads);
        let (stop, mut stopped) = watch::channel(false);
        let told: Arc<Told> = Arc::default();
        let stopped = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        #[expect(clippy::disallowed_methods, reason = "the test ends it")]
        let task = tokio::spawn(distribute::run(api.client(), reads, hears, Arc::clone(&told), stopped));
        Self { in_force, leader, told, stop, task }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

/// All that is going to happen has happened.
async fn quiet() {
    tokio::time::sleep(Duration::from_secs(30)).await;
}

#[tokio::test(start_paused = true)]
async fn every_namespace_is_told_and_what_is_changed_is_mended() {
    let api = Api::new();
    ["default", "shop"].iter().for_each(|name| namespace(&api, name));
    let ending = json!({"metadata": {"name": "ending", "deletionTimestamp": "2030-01-01T00:00:00Z"}});
    api.put("namespaces", "", ending);
    let first = in_force(None);
    let teller = Teller::start(&api, Arc::clone(&first), true);
    let all = |api: &Api, bundle: &str| {
        ["default", "shop"].iter().all(|name| text(api, name).as_deref() == Some(bundle))
    };
    api.until("told", |api| all(api, first.bundle())).await;
    let map = told(&api, "shop", ROOTS).unwrap();
    assert_eq!(map["metadata"]["labels"]["istio.io/config"], "true");
    assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/managed-by"], "ambit");
    // Deleted, edited, and a namespace that is new.
    quiet().await;
    api.remove("configmaps", "default", ROOTS);
    let mut edited = map;
    edited["data"]["root-cert.pem"] = json!("mine");
    api.put("configmaps", "shop", edited);
    namespace(&api, "new");
    api.until("mended", |api| all(api, first.bundle()) && text(api, "new").is_some()).await;
    // Another bundle.
    let second = in_force(None);
    teller.in_force.send_replace(Arc::clone(&second));
    api.until("told anew", |api| all(api, second.bundle())).await;
    assert_eq!(text(&api, "ending"), None);
    assert_eq!(told(&api, "shop", LISTS), None);
    teller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_writes_nothing_and_a_follower_neither() {
    let api = Api::new();
    (0..300).for_each(|number| namespace(&api, &format!("n{number}")));
    let bundle = in_force(None);
    let teller = Teller::start(&api, Arc::clone(&bundle), false);
    quiet().await;
    assert_eq!(api.writes("configmaps"), 0, "it does not lead");
    teller.leader.send_replace(true);
    api.until("told", |api| api.all("configmaps").len() == 300).await;
    quiet().await;
    assert_eq!(api.writes("configmaps"), 300);
    assert!(api.most_writes_under_way() <= 8, "{}", api.most_writes_under_way());
    assert_eq!(teller.told.roots.writes.load(Relaxed), 300);
    assert_eq!(teller.told.roots.waiting.load(Relaxed), 0);
    // It leads no more.
    teller.leader.send_replace(false);
    quiet().await;
    namespace(&api, "late");
    quiet().await;
    assert_eq!(text(&api, "late"), None);
    teller.stop().await;
    let teller = Teller::start(&api, bundle, true);
    api.until("the late one", |api| text(api, "late").is_some()).await;
    quiet().await;
    api.cut();
    quiet().await;
    assert_eq!(api.writes("configmaps"), 301, "the others have it already");
    teller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refusals_and_cut_watches_delay_one_namespace_and_lose_none() {
    let api = Api::new();
    (0..20).for_each(|number| namespace(&api, &format!("n{number}")));
    api.fail(Method::POST, "namespaces/n7/configmaps", 403, 3);
    api.fail(Method::POST, "namespaces/n8/configmaps", 500, 1);
    api.fail(Method::GET, "configmaps", 429, 2);
    api.lose_answer(Method::POST, "namespaces/n9/configmaps", 504);
    let bundle = in_force(None);
    let teller = Teller::start(&api, Arc::clone(&bundle), true);
    api.until("told", |api| api.all("configmaps").len() == 20).await;
    assert!(teller.told.roots.failures.load(Relaxed) >= 5);
    // Forgotten versions, told in both ways.
    for name in ["n3", "n4", "n5"] {
        quiet().await;
        api.remove("configmaps", name, ROOTS);
        api.cut();
        api.until("told again", |api| text(api, name).is_some()).await;
    }
    teller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_control_plane_with_the_same_root_is_left_alone() {
    let api = Api::new();
    namespace(&api, "shop");
    let bundle = in_force(None);
    let theirs = json!({
        "metadata": {"name": ROOTS, "labels": {"istio.io/config": "true"}},
        "data": {"root-cert.pem": format!("{}\n", bundle.bundle())},
    });
    api.put("configmaps", "shop", theirs);
    let teller = Teller::start(&api, bundle, true);
    quiet().await;
    assert_eq!(api.writes("configmaps"), 0);
    teller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn revocation_lists_are_told_when_there_are_some_and_stay() {
    let api = Api::new();
    namespace(&api, "shop");
    let teller = Teller::start(&api, in_force(None), true);
    quiet().await;
    assert_eq!(told(&api, "shop", LISTS), None);
    teller.in_force.send_replace(in_force(Some("lists")));
    api.until("lists", |api| told(api, "shop", LISTS).is_some()).await;
    assert_eq!(told(&api, "shop", LISTS).unwrap()["data"]["ca-crl.pem"], "lists");
    teller.in_force.send_replace(in_force(None));
    quiet().await;
    assert!(told(&api, "shop", LISTS).is_some(), "what was revoked stays revoked");
    teller.stop().await;
}
