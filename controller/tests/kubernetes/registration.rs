//! The API server is told the root at once, and made to insist on answers only when there are some.

use std::time::Duration;

use ambit_controller::admit::{Registration, keep_registered};
use ambit_runtime::task;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::fake::{Fake, How, failure};

const NAME: &str = "ambit-validator-istio-system";
const PATH: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/ambit-validator-istio-system";
const WEBHOOK: &str = "validation.ambit.io";

struct Running {
    bundle: watch::Sender<String>,
    leader: watch::Sender<bool>,
    _task: task::Owned,
}

fn start(fake: &Fake, leads: bool) -> Running {
    let (bundle, leader) = (watch::Sender::new("root".to_owned()), watch::Sender::new(leads));
    let registration = Registration {
        name: NAME.to_owned(),
        namespace: "istio-system".to_owned(),
        bundle: bundle.subscribe(),
        leader: leader.subscribe(),
    };
    let run = keep_registered(fake.client(), registration, std::future::pending());
    Running { bundle, leader, _task: task::spawn("registration", run).owned() }
}

fn configured(fake: &Fake) {
    let webhook = json!({
        "name": WEBHOOK,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "clientConfig": { "service": { "name": "istiod", "namespace": "istio-system" } },
    });
    fake.put(PATH, json!({ "metadata": { "name": NAME }, "webhooks": [webhook] }));
}

/// The root in base64, and the failure policy.
fn now(fake: &Fake) -> (Value, Value) {
    let webhook = fake.get(PATH).unwrap()["webhooks"][0].clone();
    (webhook["clientConfig"]["caBundle"].clone(), webhook["failurePolicy"].clone())
}

async fn becomes(fake: &Fake, root: &str, policy: &str) {
    let wanted = (json!(root), json!(policy));
    let waiting = async {
        while now(fake) != wanted {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(300), waiting).await.unwrap_or_else(|_| panic!("it is {:?}", now(fake)));
}

#[tokio::test(start_paused = true)]
async fn answers_are_insisted_on_only_once_there_are_some() {
    let fake = Fake::default();
    configured(&fake);
    let _running = start(&fake, true);
    becomes(&fake, "cm9vdA==", "Ignore").await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(now(&fake).1, json!("Ignore"), "what must be refused was not");
    fake.refuse(r#"admission webhook "other.example" denied the request: no"#);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(now(&fake).1, json!("Ignore"), "another one refused it");
    fake.refuse(&format!("admission webhook {WEBHOOK:?} denied the request: spec.rules[0]"));
    becomes(&fake, "cm9vdA==", "Fail").await;
    let probes = fake.seen("POST");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(fake.seen("POST"), probes, "and no more questions");
    assert_eq!(fake.seen("POST"), fake.seen("dryRun=All"), "nothing was ever stored");
    let service = fake.get(PATH).unwrap()["webhooks"][0]["clientConfig"]["service"]["name"].clone();
    assert_eq!(service, json!("istiod"));
}

#[tokio::test(start_paused = true)]
async fn a_new_root_and_a_new_chart_are_put_in_order() {
    let fake = Fake::default();
    fake.refuse(&format!("admission webhook {WEBHOOK:?} denied the request: spec.rules[0]"));
    fake.fault("GET", 2, How::Answer(500, failure(500, "InternalError", "no leader")));
    let running = start(&fake, true);
    sleep(Duration::from_secs(30)).await;
    configured(&fake);
    becomes(&fake, "cm9vdA==", "Fail").await;
    running.bundle.send_replace("new".to_owned());
    becomes(&fake, "bmV3", "Fail").await;
    configured(&fake);
    becomes(&fake, "bmV3", "Fail").await;
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_registers() {
    let fake = Fake::default();
    configured(&fake);
    let running = start(&fake, false);
    sleep(Duration::from_secs(300)).await;
    assert_eq!(fake.seen(""), 0);
    running.leader.send_replace(true);
    becomes(&fake, "cm9vdA==", "Ignore").await;
}
