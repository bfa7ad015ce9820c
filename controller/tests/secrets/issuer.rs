//! cert-manager signs, in the shape of a signer of the test's own.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use ambit_controller::ca::cert_manager::{CertManager, Issuer, NotIssued, Settings};
use ambit_model::identity::Identity;
use ambit_wire::{
    cert::{
        Certificate,
        authority::{Authority, Serial, Validity},
        request::Request,
    },
    tls::{Compliance, Profile, Versions, revoked::Revocation},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{api::Api, keeping::SYSTEM};

const KIND: &str = "certificaterequests";
const HOUR: Duration = Duration::from_secs(3600);

fn authority(name: &str) -> Authority {
    let now = SystemTime::now();
    let life = Validity { not_before: now - HOUR, not_after: now + 100 * HOUR };
    Authority::self_signed(&name.into(), life, Serial::new(1)).unwrap()
}

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn asking(api: &Api, roots: Option<String>) -> Arc<CertManager> {
    let issuer = Issuer {
        name: "mesh".to_owned(),
        kind: "ClusterIssuer".to_owned(),
        group: "cert-manager.io".to_owned(),
    };
    let settings = Settings { namespace: SYSTEM.to_owned(), issuer, roots };
    Arc::new(CertManager::new(api.client(), settings))
}

/// Answers every request with the status that `answer` makes of it.
fn signer(api: &Api, answer: impl Fn(&Value) -> Value + Send + 'static) -> JoinHandle<()> {
    let api = api.clone();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move {
        loop {
            api.until("a request", |api| api.all(KIND).iter().any(|one| one["status"].is_null())).await;
            for mut request in api.all(KIND) {
                if request["status"].is_null() {
                    request["status"] = json!({"conditions": [condition("Approved", "True", "Approved")]});
                    api.put(KIND, SYSTEM, request.clone());
                    request["status"] = answer(&request);
                    api.put(KIND, SYSTEM, request);
                }
            }
        }
    })
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "says the test"})
}

fn signed(by: &Authority, identity: &Identity, csr: &str, ca: bool) -> Value {
    let now = SystemTime::now();
    let life = Validity { not_before: now, not_after: now + HOUR };
    let chain = by.sign(csr, identity, life, Serial::new(2)).unwrap();
    json!({
        "conditions": [condition("Approved", "True", "Approved"), condition("Ready", "True", "Issued")],
        "certificate": STANDARD.encode(chain[..chain.len() - 1].concat()),
        "ca": ca.then(|| STANDARD.encode(by.roots())),
    })
}

fn csr_of(request: &Value) -> String {
    String::from_utf8(STANDARD.decode(request["spec"]["request"].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_asked_for_signed_and_cleared_away() {
    let api = Api::new();
    let (theirs, ours) = (authority("theirs"), authority("ours"));
    let middle = {
        let now = SystemTime::now();
        let life = Validity { not_before: now - HOUR, not_after: now + 50 * HOUR };
        theirs.intermediate("Middle", life, Serial::new(3)).unwrap()
    };
    let _signer = signer(&api, move |request| {
        assert_eq!(request["apiVersion"], "cert-manager.io/v1");
        assert_eq!(request["kind"], "CertificateRequest");
        let spec = &request["spec"];
        let issuer = json!({"name": "mesh", "kind": "ClusterIssuer", "group": "cert-manager.io"});
        assert_eq!(spec["issuerRef"], issuer);
        assert_eq!((&spec["duration"], &spec["isCA"]), (&json!("3600s"), &json!(false)));
        assert_eq!(request["metadata"]["annotations"]["ambit.io/identity"], cart().to_string());
        signed(&middle, &cart(), &csr_of(request), true)
    });
    let asking = asking(&api, None);
    let request = Request::new(&cart()).unwrap();
    let answer = asking.issue(&request.csr, &cart(), HOUR, ours.roots()).await.unwrap();
    assert_eq!(answer.len(), 3, "leaf, intermediate, roots");
    assert_eq!(*answer.last().unwrap(), format!("{}{}", theirs.roots(), ours.roots()));
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
    Certificate::from_response(&profile, Some(&cart()), &answer, &request.key).unwrap();
    assert!(api.all(KIND).is_empty());
    assert_eq!(asking.counts().signed.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_as_asked_is_not_passed_on() {
    let theirs = authority("theirs");
    let till = Identity::new("cluster.local", "shop", "till");
    let other = Request::new(&cart()).unwrap().csr;
    type Answers = Box<dyn Fn(&Value) -> Value + Send>;
    let by = |theirs: &Authority| theirs.clone();
    let (a, b, c) = (by(&theirs), by(&theirs), by(&theirs));
    let answers: [(&str, Answers); 6] = [
        ("issuer_unusable", Box::new(move |request| signed(&a, &till, &csr_of(request), true))),
        ("issuer_unusable", Box::new(move |_| signed(&b, &cart(), &other, true))),
        ("issuer_roots", Box::new(move |request| signed(&c, &cart(), &csr_of(request), false))),
        ("issuer_refused", Box::new(|_| json!({"conditions": [condition("Denied", "True", "Policy")]}))),
        ("issuer_refused", Box::new(|_| json!({"conditions": [condition("InvalidRequest", "True", "x")]}))),
        ("issuer_late", Box::new(|_| json!({"conditions": []}))),
    ];
    for (word, answer) in answers {
        let api = Api::new();
        let signer = signer(&api, answer);
        let asking = asking(&api, None);
        let csr = Request::new(&cart()).unwrap().csr;
        let refused = asking.issue(&csr, &cart(), HOUR, theirs.roots()).await.unwrap_err();
        assert_eq!(refused.word(), word, "{refused}");
        assert!(api.all(KIND).is_empty(), "{word}");
        signer.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_for_more_than_the_identity_never_leaves() {
    let api = Api::new();
    let csr = Request::new(&Identity::new("cluster.local", "shop", "till")).unwrap().csr;
    let asked = asking(&api, None).issue(&csr, &cart(), HOUR, "").await;
    assert!(matches!(asked, Err(NotIssued::Request(_))));
    assert_eq!(api.writes(KIND), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_cleared_away_when_its_caller_has_left() {
    let api = Api::new();
    let asking = asking(&api, None);
    let csr = Request::new(&cart()).unwrap().csr;
    let cart = cart();
    let left = tokio::time::timeout(Duration::from_secs(2), asking.issue(&csr, &cart, HOUR, ""));
    assert!(left.await.is_err());
    assert_eq!(api.all(KIND).len(), 1);
    api.until("it is gone", |api| api.all(KIND).is_empty()).await;
    assert_eq!(asking.counts().unanswered.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn no_rights_and_leftovers() {
    let api = Api::new();
    let asking = asking(&api, None);
    api.fail(Method::POST, KIND, 403, 1);
    let csr = Request::new(&cart()).unwrap().csr;
    let refused = asking.issue(&csr, &cart(), HOUR, "").await.unwrap_err();
    assert!(refused.to_string().contains("roles"), "{refused}");
    let request = |name: &str, labels: Value, made: String| json!({"metadata": {"name": name, "labels": labels, "creationTimestamp": made}});
    let ours = json!({"app.kubernetes.io/managed-by": "ambit"});
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    api.put(KIND, SYSTEM, request("old", ours.clone(), "2020-01-01T00:00:00Z".to_owned()));
    api.put(KIND, SYSTEM, request("young", ours, now));
    api.put(KIND, SYSTEM, request("theirs", json!({}), "2020-01-01T00:00:00Z".to_owned()));
    asking.sweep().await;
    let left: Vec<_> =
        api.all(KIND).iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(left, ["theirs", "young"]);
}
