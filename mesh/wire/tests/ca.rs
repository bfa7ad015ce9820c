//! The CA client and control plane channels, against a server on loopback.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests, and what they share")]

use std::{sync::Arc, time::Duration};

use ambit_fixtures::ca::{Mood, ServedCa, TestCa};
use ambit_model::identity::Identity;
use ambit_wire::{
    ca::{Asking, CaClient},
    cert::{
        Certificate, CertificateError, IssueError, Issuer as _, SigningRequest,
        request::Request,
        store::{CertError, Certificates, FetchError, Naming, SystemClock},
    },
    channel::{
        ChannelError, ChannelSettings, ControlPlane, Entrance, HANDSHAKES, RootSource, ServerTls,
        TokenSource, incoming,
    },
};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tonic::{Status, transport::Server};

const LIMIT: Duration = Duration::from_secs(10);

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn client(ca: &TestCa, settings: ChannelSettings) -> CaClient {
    let control_plane = ControlPlane::new(settings, ca.profile()).unwrap();
    CaClient::new(control_plane, Asking::ForOthers, Duration::from_secs(3600))
}

/// One request, and what becomes of it.
async fn ask(client: &CaClient) -> Result<Vec<String>, IssueError> {
    let csr = Request::new(&cart()).unwrap().csr;
    let issue = client.issue(SigningRequest { identity: cart(), csr });
    timeout(LIMIT, issue).await.expect("an answer").map(|issued| issued.chain)
}

/// Fetches through a store, as a tunnel does.
async fn fetch(ca: &TestCa, served: &ServedCa) -> Result<Arc<Certificate>, CertError> {
    let issuer = Arc::new(client(ca, served.settings()));
    let (store, renewal) = Certificates::new(ca.profile().clone(), Naming::AsRequested, issuer, SystemClock);
    let mut task = JoinSet::new();
    task.spawn(renewal.run(std::future::pending()));
    timeout(LIMIT, store.get(&cart())).await.expect("an answer")
}

#[tokio::test]
async fn a_certificate_is_issued_to_whom_a_node_asks_for() {
    let ca = TestCa::new();
    let served = ca.serve().await;
    let certificate = fetch(&ca, &served).await.unwrap();
    assert_eq!(certificate.identity(), Some(&cart()));
    let [application] = &served.seen()[..] else { panic!() };
    assert_eq!(application.impersonated.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/cart"));
    assert_eq!(application.lifetime_seconds, 3600);
    assert_eq!(application.cluster, "Kubernetes");
    assert_eq!(application.token, None);
    assert!(application.client.0.unwrap().ip().is_loopback());
}

#[tokio::test]
async fn in_dedicated_mode_nobody_is_impersonated() {
    let ca = TestCa::new();
    let served = ca.serve().await;
    let control_plane = ControlPlane::new(served.settings(), ca.profile()).unwrap();
    let client = CaClient::new(control_plane, Asking::ForMyself, Duration::from_secs(60));
    ask(&client).await.unwrap();
    assert_eq!(served.seen()[0].impersonated, None);
}

#[tokio::test]
async fn the_token_file_is_read_for_each_request() {
    let ca = TestCa::new();
    let served = ca.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("istio-token");
    std::fs::write(&path, "first\n").unwrap();
    let token = TokenSource::from_setting(path.to_str().unwrap());
    let client = client(&ca, ChannelSettings { token, ..served.settings() });
    ask(&client).await.unwrap();
    std::fs::write(&path, "second\n").unwrap();
    ask(&client).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let refused = ask(&client).await.unwrap_err().to_string();
    assert!(refused.contains("istio-token"), "{refused}");
    let tokens: Vec<_> = served.seen().into_iter().map(|seen| seen.token.unwrap()).collect();
    assert_eq!(tokens, ["first", "second"]);
}

#[tokio::test]
async fn each_bad_answer_is_told_from_the_others() {
    let ca = TestCa::new();
    let served = ca.serve().await;
    let mut failures = Vec::new();
    for mood in [
        Mood::Refuse(Status::permission_denied("not on this node")),
        Mood::Empty,
        Mood::NoRoot,
        Mood::Garbage,
        Mood::WrongKey,
        Mood::WrongIdentity(Identity::new("cluster.local", "shop", "stock")),
        Mood::WrongRoot,
    ] {
        served.set_mood(mood);
        match fetch(&ca, &served).await {
            Err(CertError::Unavailable { reason, .. }) => failures.push(reason),
            other => panic!("{other:?}"),
        }
    }
    let kinds: Vec<_> = failures.iter().map(|failure| &**failure).collect();
    assert!(
        matches!(
            kinds[..],
            [
                FetchError::Issue(IssueError::Refused { .. }),
                FetchError::Certificate(CertificateError::Empty),
                FetchError::Certificate(CertificateError::NoRoot),
                FetchError::Certificate(CertificateError::Pem { element: 1, .. }),
                FetchError::Certificate(CertificateError::WrongKey),
                FetchError::Certificate(CertificateError::WrongIdentity { .. }),
                FetchError::Certificate(CertificateError::Untrusted(_)),
            ]
        ),
        "{kinds:?}"
    );
    assert!(kinds[0].to_string().contains("not on this node"));
}

#[tokio::test]
async fn a_ca_that_is_not_there_is_unreachable() {
    let ca = TestCa::new();
    let served = ca.serve().await;
    let mut settings = served.settings();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    settings.address = format!("https://localhost:{}", free.port());
    let error = ask(&client(&ca, settings)).await.unwrap_err();
    assert!(matches!(error, IssueError::Unreachable(_)), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn the_control_plane_must_be_who_was_called() {
    let ca = TestCa::new();
    let served = ca.serve().await;
    let port = served.address().port();
    let by_address = |address: String| ChannelSettings { address, ..served.settings() };

    ask(&client(&ca, by_address(format!("https://127.0.0.1:{port}")))).await.unwrap();

    let roots = RootSource::Pem(TestCa::of(&"other".into()).root_pem());
    let stranger = client(&ca, ChannelSettings { roots, ..served.settings() });
    let error = ask(&stranger).await.unwrap_err().to_string();
    assert!(error.contains("not issued by a root that we trust"), "{error}");

    let elsewhere = serve_as(&ca, &["istiod.istio-system.svc"]).await;
    let address = format!("https://localhost:{}", elsewhere.1);
    let named = by_address(address);
    let error = ask(&client(&ca, named.clone())).await.unwrap_err().to_string();
    assert!(error.contains("not valid for the name"), "{error}");
    let alt_hostname = Some("istiod.istio-system.svc".to_owned());
    let reached = client(&ca, ChannelSettings { alt_hostname, ..named });
    let error = ask(&reached).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "TLS was fine: {error:?}");
}

#[tokio::test]
async fn new_roots_are_used_when_their_file_changes() {
    let (old, new) = (TestCa::new(), TestCa::of(&"new".into()));
    let served = new.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root-cert.pem");
    // Written long ago, as far as the file says: nobody is still writing it.
    let write = |pem: &str, age: u64| {
        std::fs::write(&path, pem).unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    };
    write(&old.root_pem(), 60);
    let roots = RootSource::from_setting(path.to_str().unwrap());
    let client = client(&new, ChannelSettings { roots, ..served.settings() });
    ask(&client).await.unwrap_err();

    write("no roots at all", 50);
    ask(&client).await.unwrap_err();
    write(&new.root_pem(), 40);
    ask(&client).await.unwrap();
    write("no roots at all", 30);
    ask(&client).await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_the_start() {
    let ca = TestCa::new();
    let good = ca.serve().await.settings();
    let error = |settings| ControlPlane::new(settings, ca.profile()).unwrap_err();
    for address in ["", "istiod:15012", "ftp://istiod", "https://"] {
        let outcome = error(ChannelSettings { address: address.into(), ..good.clone() });
        assert!(matches!(outcome, ChannelError::Address(_)), "{address}: {outcome:?}");
    }
    for roots in [RootSource::File("/does/not/exist".into()), RootSource::Pem("none".into())] {
        let outcome = error(ChannelSettings { roots, ..good.clone() });
        assert!(matches!(outcome, ChannelError::Roots(_)), "{outcome:?}");
    }
    let headers = vec![("not a header".to_owned(), "x".to_owned())];
    assert!(matches!(error(ChannelSettings { headers, ..good }), ChannelError::Header(_)));
}

#[tokio::test]
async fn a_server_survives_clients_that_do_not_speak_tls() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ca = TestCa::new();
    let served = ca.serve().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut tcp = tokio::net::TcpStream::connect(served.address()).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ended = timeout(LIMIT, tcp.read_to_end(&mut answer)).await.expect("it is cut");
        silent.push(tokio::net::TcpStream::connect(served.address()).await.unwrap());
    }
    fetch(&ca, &served).await.unwrap();
}

#[tokio::test]
async fn a_servers_certificate_can_be_replaced_while_it_serves() {
    let (old, new) = (TestCa::of(&"old".into()), TestCa::of(&"new".into()));
    let tls = Arc::new(ServerTls::new(old.profile(), &old.server(&["localhost"])).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let mut task = JoinSet::new();
    let connections = incoming(Entrance::new(listener, HANDSHAKES), Some(Arc::clone(&tls)));
    task.spawn(
        Server::builder().add_routes(tonic::service::Routes::default()).serve_with_incoming(connections),
    );
    let settings = |roots: &TestCa| ChannelSettings {
        address: address.clone(),
        roots: RootSource::Pem(roots.root_pem()),
        alt_hostname: None,
        token: TokenSource::None,
        cluster_id: String::new(),
        headers: Vec::new(),
    };
    let reached = |outcome: Result<_, IssueError>| matches!(outcome, Err(IssueError::Refused { .. }));
    assert!(reached(ask(&client(&old, settings(&old))).await));
    assert!(!reached(ask(&client(&old, settings(&new))).await));
    tls.replace(&new.server(&["localhost"])).unwrap();
    assert!(!reached(ask(&client(&old, settings(&old))).await));
    assert!(reached(ask(&client(&old, settings(&new))).await));
}

#[tokio::test]
async fn plain_text_is_spoken_where_the_address_says_so() {
    let ca = TestCa::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    let connections = incoming(Entrance::new(listener, HANDSHAKES), None);
    task.spawn(
        Server::builder().add_routes(tonic::service::Routes::default()).serve_with_incoming(connections),
    );
    let settings = ChannelSettings { address, ..ca.serve().await.settings() };
    let error = ask(&client(&ca, settings)).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "{error:?}");
}

/// A server with no services at all, under other names, and its port.
async fn serve_as(ca: &TestCa, names: &[&str]) -> (JoinSet<Result<(), tonic::transport::Error>>, u16) {
    let tls = Arc::new(ServerTls::new(ca.profile(), &ca.server(names)).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut task = JoinSet::new();
    let connections = incoming(Entrance::new(listener, HANDSHAKES), Some(tls));
    task.spawn(
        Server::builder().add_routes(tonic::service::Routes::default()).serve_with_incoming(connections),
    );
    (task, port)
}
