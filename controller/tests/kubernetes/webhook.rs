//! The webhook over real HTTPS, as the API server calls it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_controller::admit::{Counts, MOST_CONNECTIONS, serve};
use ambit_controller::cluster::{L7Deny, Settings};
use ambit_fixtures::ca::TestCa;
use ambit_runtime::task;
use ambit_wire::channel::{Entrance, ServerTls, TurnedAway};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const DEADLINE: Duration = Duration::from_secs(20);

struct Webhook {
    ca: TestCa,
    tls: Arc<ServerTls>,
    address: SocketAddr,
    counts: Counts,
    turned_away: TurnedAway,
    stop: oneshot::Sender<()>,
    task: task::Task,
}

async fn start(settings: Settings) -> Webhook {
    let ca = TestCa::new();
    let tls = Arc::new(ServerTls::new(ca.profile(), &ca.server(&["istiod.istio-system.svc"])).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let entrance = Entrance::new(listener, MOST_CONNECTIONS);
    let (stop, stopped) = oneshot::channel();
    let turned_away = entrance.turned_away();
    let (counts, serving) = (Counts::default(), Arc::clone(&tls));
    let run = serve(entrance, move || serving.current(), settings, counts.clone(), async {
        let _ = stopped.await;
    });
    Webhook { ca, tls, address, counts, turned_away, stop, task: task::spawn("webhook", run) }
}

impl Webhook {
    /// As the API server connects: HTTP/1.1 only, by the service's name.
    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.ca.root_pem().as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let mut config = ClientConfig::builder_with_provider(Arc::clone(self.ca.profile().provider()))
            .with_protocol_versions(self.ca.profile().versions())
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("istiod.istio-system.svc").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    async fn exchange(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await;
        let head = format!(
            "{head} HTTP/1.1\r\nhost: istiod.istio-system.svc\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // It may be cut short when the answer is known already.
        let _ = stream.write_all(body).await;
        let mut received = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut received)).await.unwrap();
        let text = String::from_utf8(received).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The response to a review.
    async fn review(&self, request: &Value) -> Value {
        let review =
            json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request });
        let (code, body) =
            self.exchange("POST /validate?timeout=10s", &serde_json::to_vec(&review).unwrap()).await;
        assert_eq!(code, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        let response = answer["response"].clone();
        assert_eq!(response["uid"], request["uid"]);
        response
    }
}

fn request(operation: &str, object: Value, old: Value) -> Value {
    json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": { "group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy" },
        "resource": { "group": "security.istio.io", "version": "v1", "resource": "authorizationpolicies" },
        "name": "p",
        "namespace": "shop",
        "operation": operation,
        "userInfo": { "username": "admin" },
        "object": object,
        "oldObject": old,
        "dryRun": false,
    })
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": spec,
    })
}

fn wrong() -> Value {
    policy(json!({ "rules": [{ "from": [{ "source": { "ipBlocks": ["nowhere"] } }] }] }))
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_field_reason_and_remedy() {
    let webhook = start(Settings::default()).await;
    let good = webhook.review(&request("CREATE", policy(json!({ "rules": [{}] })), Value::Null)).await;
    assert_eq!(good["allowed"], true);
    assert_eq!(good["warnings"], Value::Null);
    let bad = webhook.review(&request("CREATE", wrong(), Value::Null)).await;
    assert_eq!(bad["allowed"], false);
    assert_eq!(bad["status"]["code"], 422);
    let message = bad["status"]["message"].as_str().unwrap();
    for part in ["spec.rules[0].from[0].source.ipBlocks[0]", "nowhere", "10.0.0.0/8"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(webhook.counts.of("AuthorizationPolicy", "admitted"), 1);
    assert_eq!(webhook.counts.of("AuthorizationPolicy", "refused"), 1);
}

#[tokio::test]
async fn what_compatibility_demands_is_admitted_with_a_warning_or_refused_if_so_set() {
    let deny =
        policy(json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] }));
    for (l7_deny, allowed) in [(L7Deny::Deny, true), (L7Deny::Upstream, true), (L7Deny::Refuse, false)] {
        let webhook = start(Settings { l7_deny, ..Settings::default() }).await;
        let response = webhook.review(&request("CREATE", deny.clone(), Value::Null)).await;
        assert_eq!(response["allowed"], allowed, "{l7_deny:?}");
        let told = if allowed { &response["warnings"][0] } else { &response["status"]["message"] };
        assert!(told.as_str().unwrap().contains("methods"), "{told}");
    }
}

#[tokio::test]
async fn what_is_there_and_wrong_can_be_labelled_and_deleted_but_not_changed_to_other_nonsense() {
    let webhook = start(Settings::default()).await;
    let mut labelled = wrong();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    let mut leaving = policy(json!({ "rules": [{ "from": "x" }] }));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut other = wrong();
    other["spec"]["action"] = json!("DENY");
    for (what, request, allowed) in [
        ("labelled", request("UPDATE", labelled, wrong()), true),
        ("leaving", request("UPDATE", leaving, wrong()), true),
        ("changed", request("UPDATE", other, wrong()), false),
        ("deleted", request("DELETE", Value::Null, wrong()), true),
    ] {
        assert_eq!(webhook.review(&request).await["allowed"], allowed, "{what}");
    }
}

#[tokio::test]
async fn kinds_that_are_not_ours_pass() {
    let webhook = start(Settings::default()).await;
    let mut other = request("CREATE", policy(json!({ "x": 1 })), Value::Null);
    other["kind"] = json!({ "group": "networking.istio.io", "version": "v1", "kind": "Sidecar" });
    assert_eq!(webhook.review(&other).await["allowed"], true);
    assert_eq!(webhook.counts.of("other", "admitted"), 1);
}

#[tokio::test]
async fn nonsense_is_answered_and_ends_nothing() {
    let webhook = start(Settings::default()).await;
    for (head, body, code) in [
        ("GET /", &b""[..], 404),
        ("GET /validate", b"", 405),
        ("POST /validate", b"{", 400),
        ("POST /validate", b"{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"}", 400),
    ] {
        assert_eq!(webhook.exchange(head, body).await.0, code, "{head}");
    }
    let long = vec![b' '; 3 * 1024 * 1024 + 1];
    assert_eq!(webhook.exchange("POST /validate", &long).await.0, 413);
    // Neither does plain text, nor silence.
    let mut plain = TcpStream::connect(webhook.address).await.unwrap();
    plain.write_all(b"POST /validate HTTP/1.1\r\n\r\n").await.unwrap();
    let _silent = TcpStream::connect(webhook.address).await.unwrap();
    assert_eq!(webhook.review(&request("CREATE", policy(json!({})), Value::Null)).await["allowed"], true);
}

#[tokio::test]
async fn a_pod_that_opens_connections_and_says_nothing_does_not_keep_the_api_server_out() {
    let webhook = start(Settings::default()).await;
    let mut silent = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(webhook.address).await.unwrap());
    }
    assert_eq!(webhook.review(&request("CREATE", policy(json!({})), Value::Null)).await["allowed"], true);
    // Those that came before it were dealt with by then, and most had no place.
    assert!(webhook.turned_away.count() > 128, "{}", webhook.turned_away.count());
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_restart_and_the_end_is_clean() {
    let webhook = start(Settings::default()).await;
    let serial = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let before = serial(&webhook.connect().await);
    webhook.tls.replace(&webhook.ca.server(&["istiod.istio-system.svc"])).unwrap();
    assert_ne!(serial(&webhook.connect().await), before);
    let idle = webhook.connect().await;
    webhook.stop.send(()).unwrap();
    timeout(DEADLINE, webhook.task).await.unwrap();
    drop(idle);
    assert!(TcpStream::connect(webhook.address).await.is_err());
}
