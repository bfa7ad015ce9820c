//! What an application says before its response, and what it says before a body has come.

use std::time::Duration;

use ambit_fixtures::mesh::pod;
use ambit_model::{
    authz::{Action, Clause, Content, Match, Policy, RequestMatch, Rule as PolicyRule, Scope, Text},
    name::PolicyKey,
    route::{Filter, Filters, HeaderEdit, Rule, retry},
    service_config::Parts,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::world::*;

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A service `shop/web` whose application the test plays.
async fn played(world: &World) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.2:8080").await.unwrap();
    world.publish(
        [pod("shop/web-1").at("127.0.0.2").plain().behind("shop/web", &[(80, 8080)])],
        [http_service("shop/web", "10.1.0.1")],
    );
    world.configure("shop/web", Parts::default());
    listener
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(SOON, listener.accept()).await.expect("a connection").unwrap().0
}

/// Reads until what was read ends so.
async fn heard(io: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut all = Vec::new();
    let reading = async {
        while !all.ends_with(end.as_bytes()) {
            all.push(io.read_u8().await.expect("more"));
        }
    };
    if timeout(SOON, reading).await.is_err() {
        panic!("not heard: {end:?}, but {:?}", String::from_utf8_lossy(&all));
    }
    String::from_utf8(all).unwrap()
}

async fn say(io: &mut (impl tokio::io::AsyncWrite + Unpin), text: &str) {
    io.write_all(text.as_bytes()).await.unwrap();
}

#[test]
fn a_hint_reaches_the_client_while_the_application_works() {
    world(async |world| {
        let listener = played(&world).await;
        let no_secret = HeaderEdit::parse(&[], &[], &["x-secret"]).unwrap();
        let filters = Filters::new(vec![Filter::ResponseHeaders(no_secret)]).unwrap();
        world.route(vec![Rule { backends: vec![to("shop/web", 1)], filters, ..Rule::default() }]);
        let waypoint = world.start().await;
        let mut client = world.tunnel().await.connect(WEB).await.unwrap();
        say(&mut client, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let mut app = accept(&listener).await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("{HINT}connection: x-mine\r\nx-mine: 1\r\nx-secret: 1\r\n\r\n")).await;
        // The application waits until the client has heard it.
        assert_eq!(heard(&mut client, "\r\n\r\n").await, format!("{HINT}\r\n"));
        say(&mut app, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Whatever\r\n\r\n").await;
        let told = heard(&mut client, "199 \r\n\r\n").await;
        assert_eq!(told, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 \r\n\r\n");
        // At the same moment as the response.
        say(&mut app, &format!("{HINT}\r\n{ANSWER}")).await;
        let told = heard(&mut client, "ok").await;
        assert!(told.starts_with(&format!("{HINT}\r\nHTTP/1.1 200 OK\r\n")), "{told}");
        // And of the next request on both connections, nothing is left over.
        say(&mut client, "GET /2 HTTP/1.1\r\nhost: web\r\n\r\n").await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, ANSWER).await;
        assert!(heard(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
        waypoint.until_counted("ambit_interim_responses_total", &["outcome=\"forwarded\""], 4).await;
    });
}

#[test]
fn a_hint_of_the_second_request_comes_after_the_response_to_the_first() {
    world(async |world| {
        let listener = played(&world).await;
        let _waypoint = world.start().await;
        let mut client = world.tunnel().await.connect(WEB).await.unwrap();
        // Both at once: the second is read while the first is answered.
        say(&mut client, "GET /1 HTTP/1.1\r\nhost: web\r\n\r\nGET /2 HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let mut app = accept(&listener).await;
        let body = "x".repeat(300_000);
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n{body}")).await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("{HINT}\r\n{ANSWER}")).await;
        let told = heard(&mut client, "ok").await;
        let (first, second) = told.split_once(&body).expect("a whole body");
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
        assert!(second.starts_with(&format!("{HINT}\r\nHTTP/1.1 200 OK\r\n")), "{second}");
    });
}

#[test]
fn who_would_take_a_hint_for_the_response_is_told_the_response_alone() {
    world(async |world| {
        let listener = played(&world).await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut client = tunnel.connect(WEB).await.unwrap();
        say(&mut client, "GET / HTTP/1.0\r\nhost: web\r\n\r\n").await;
        let mut app = accept(&listener).await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("{HINT}\r\n{ANSWER}")).await;
        assert!(heard(&mut client, "ok").await.starts_with("HTTP/1.0 200 OK\r\n"));
        // HTTP/2 could be told, and nobody here writes it.
        let mut client = tunnel.http2(WEB).await;
        let asked = client.send_request(get("http://web/"));
        let (told, ()) = tokio::join!(asked, async {
            heard(&mut app, "\r\n\r\n").await;
            say(&mut app, &format!("{HINT}\r\n{ANSWER}")).await;
        });
        let told = Told::read(told.unwrap()).await;
        assert_eq!((told.status, told.body.as_str(), told.header("link")), (200, "ok", None));
    });
}

#[test]
fn a_request_has_no_more_than_so_many() {
    world(async |world| {
        let listener = played(&world).await;
        let waypoint = world.start().await;
        let mut client = world.tunnel().await.connect(WEB).await.unwrap();
        say(&mut client, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let mut app = accept(&listener).await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("{HINT}\r\n").repeat(100)).await;
        say(&mut app, ANSWER).await;
        let told = heard(&mut client, "ok").await;
        assert_eq!(told.matches("HTTP/1.1 103 Early Hints\r\n").count(), 64);
        assert_eq!(told.matches("HTTP/1.1 200 OK\r\n").count(), 1);
        waypoint.until_counted("ambit_interim_responses_total", &["outcome=\"too_many\""], 36).await;
    });
}

#[test]
fn what_was_said_before_an_attempt_failed_was_said() {
    world(async |world| {
        let listener = played(&world).await;
        let again = retry::Policy::parse(&[503], Some(2), Some(Duration::from_millis(1))).unwrap();
        world.route(vec![Rule { backends: vec![to("shop/web", 1)], retry: Some(again), ..Rule::default() }]);
        let _waypoint = world.start().await;
        let mut client = world.tunnel().await.connect(WEB).await.unwrap();
        say(&mut client, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let mut app = accept(&listener).await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("{HINT}\r\n")).await;
        assert_eq!(heard(&mut client, "\r\n\r\n").await, format!("{HINT}\r\n"));
        say(&mut app, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let mut app = accept(&listener).await;
        heard(&mut app, "\r\n\r\n").await;
        say(&mut app, &format!("{HINT}\r\n{ANSWER}")).await;
        let told = heard(&mut client, "ok").await;
        assert!(told.starts_with(&format!("{HINT}\r\nHTTP/1.1 200 OK\r\n")), "{told}");
    });
}

const EXPECTS: &str = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";

#[test]
fn a_body_is_asked_for_when_the_application_wants_it_and_once() {
    world(async |world| {
        let listener = played(&world).await;
        let _waypoint = world.start().await;
        let mut client = world.tunnel().await.connect(WEB).await.unwrap();
        say(&mut client, EXPECTS).await;
        let mut app = accept(&listener).await;
        let head = heard(&mut app, "\r\n\r\n").await;
        assert!(!head.contains("expect"), "{head}");
        assert_eq!(heard(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        // One of the application's own is no news; a hint is.
        say(&mut app, &format!("HTTP/1.1 100 Continue\r\n\r\n{HINT}\r\n")).await;
        assert_eq!(heard(&mut client, "\r\n\r\n").await, format!("{HINT}\r\n"));
        say(&mut client, "hello").await;
        heard(&mut app, "hello").await;
        say(&mut app, ANSWER).await;
        assert!(heard(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
    });
}

#[test]
fn who_is_refused_is_not_asked_for_a_body() {
    world(async |world| {
        let _listener = played(&world).await;
        let methods = vec![Text::Exact("POST".into())];
        let one = Match {
            request: Some(Box::new(RequestMatch { methods, ..RequestMatch::default() })),
            ..Match::default()
        };
        let rules = vec![PolicyRule { clauses: vec![Clause { matches: vec![one] }] }];
        let content = Content::Rules { action: Action::Deny, rules, dry_run: false };
        let policy = Policy { key: PolicyKey::new("shop", "no"), scope: Scope::WorkloadSelector, content };
        world.configure("shop/web", Parts { policies: vec![policy.into()], ..Parts::default() });
        let _waypoint = world.start().await;
        let told = world.tunnel().await.say(WEB, EXPECTS.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{told}");
        assert!(
            told.ends_with("RBAC: access denied"),
            "the connection ends: the body may come or not: {told}"
        );
    });
}

#[test]
fn an_application_answers_before_it_has_the_body() {
    world(async |world| {
        let listener = played(&world).await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for (status, ends) in [("417 Expectation Failed", false), ("413 Payload Too Large", true)] {
            let mut client = tunnel.connect(WEB).await.unwrap();
            say(&mut client, EXPECTS).await;
            let mut app = accept(&listener).await;
            heard(&mut app, "\r\n\r\n").await;
            let close = if ends { "connection: close\r\n" } else { "" };
            say(&mut app, &format!("HTTP/1.1 {status}\r\n{close}content-length: 2\r\n\r\nno")).await;
            if ends {
                app.shutdown().await.unwrap();
            }
            let told = heard(&mut client, "no").await;
            assert!(told.contains(&format!("HTTP/1.1 {status}\r\n")), "{told}");
            // What is left of the request is no request: the body comes, or the connection ends.
            let _ = client.write_all(b"helloGET /next HTTP/1.1\r\nhost: web\r\n\r\n").await;
            let application = async {
                // On the same connection, if it is kept and its end has got around by then.
                let app = tokio::select! {
                    head = heard(&mut app, "\r\n\r\n"), if !ends => (app, head),
                    other = accept(&listener) => {
                        let mut other = other;
                        let head = heard(&mut other, "\r\n\r\n").await;
                        (other, head)
                    }
                };
                let (mut app, head) = app;
                assert!(head.trim_start_matches("hello").starts_with("GET /next HTTP/1.1\r\n"), "{head}");
                say(&mut app, ANSWER).await;
                std::future::pending::<()>().await;
            };
            let mut rest = Vec::new();
            let client = async {
                while !rest.ends_with(b"ok") {
                    match client.read_u8().await {
                        Ok(byte) => rest.push(byte),
                        Err(_) => return,
                    }
                }
            };
            let reading = async {
                tokio::select! {
                    () = client => {}
                    () = application => {}
                }
            };
            timeout(SOON, reading).await.expect("an end, or the next response");
            let rest = String::from_utf8(rest).unwrap();
            assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 200 OK\r\n"), "{status}: {rest}");
        }
        waypoint.line(&["request complete", "status=413"]).await;
    });
}
