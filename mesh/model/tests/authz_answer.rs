//! What an external authorizer's answer means, and which service he is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{sync::Arc, time::Duration};

use ambit_model::{
    authz::{
        Answer, Authorizer, AuthorizerParts, CheckProtocol, GrpcCheck, HeaderChange, HttpCheck,
        InvalidAnswer, LARGEST_DENIAL, MOST_CHANGES, OnFailure, Text, change,
    },
    service::Service,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (header(name), value.parse().unwrap())).collect()
}

fn header(name: &str) -> HeaderName {
    name.parse().unwrap()
}

fn value(text: &'static str) -> HeaderValue {
    HeaderValue::from_static(text)
}

fn names(list: &[&str]) -> Vec<Text> {
    list.iter().map(|name| Text::Exact((*name).into())).collect()
}

fn check() -> HttpCheck {
    HttpCheck {
        upstream_on_allow: names(&["X-User", "content-length", "host"]),
        downstream_on_allow: names(&["set-cookie"]),
        downstream_on_deny: Some(names(&["x-why", "connection"])),
        ..HttpCheck::default()
    }
}

fn answer(status: u16, lines: &[(&str, &str)]) -> Result<Answer, InvalidAnswer> {
    let status = StatusCode::from_u16(status).unwrap();
    Answer::of_http(&check(), status, &headers(lines), b"body".to_vec())
}

#[test]
fn only_200_allows_and_what_says_that_it_failed_is_no_answer() {
    for status in [201, 204, 206, 301, 302, 304, 400, 401, 403, 404, 429, 499] {
        let Ok(Answer::Denied(denial)) = answer(status, &[]) else { panic!("{status}") };
        assert_eq!((denial.status.as_u16(), &denial.body[..]), (status, &b"body"[..]));
    }
    for status in [100, 101, 103, 500, 503, 599, 600, 999] {
        assert!(matches!(answer(status, &[]), Err(InvalidAnswer::Status(_))), "{status}");
    }
    assert!(matches!(answer(200, &[]), Ok(Answer::Allowed(changes)) if changes == Default::default()));
}

#[test]
fn of_an_answer_in_http_counts_what_is_named() {
    let said = [
        ("x-user", "ann"),
        ("x-user", "bob"),
        ("x-other", "1"),
        ("content-length", "4"),
        ("host", "other"),
        ("set-cookie", "a=b"),
        ("x-envoy-auth-headers-to-remove", "x-secret, cookie,"),
    ];
    let Ok(Answer::Allowed(changes)) = answer(200, &said) else { panic!("it allows") };
    let request = [
        HeaderChange::Remove(header("x-secret")),
        HeaderChange::Remove(header("cookie")),
        HeaderChange::Set(header("x-user"), value("ann")),
        HeaderChange::Append(header("x-user"), value("bob")),
    ];
    assert_eq!(changes.request, request);
    assert_eq!(changes.response, [HeaderChange::Append(header("set-cookie"), value("a=b"))]);
    let strange = [("x-envoy-auth-headers-to-remove", "x a")];
    assert!(matches!(answer(200, &strange), Err(InvalidAnswer::Header(_))));

    let said = [
        ("x-why", "no"),
        ("x-other", "1"),
        ("location", "/login"),
        ("www-authenticate", "Basic"),
        ("connection", "close"),
    ];
    let Ok(Answer::Denied(denial)) = answer(401, &said) else { panic!("it denies") };
    let told: Vec<_> = denial.headers.iter().map(|change| change.name().as_str()).collect();
    assert_eq!(told, ["x-why", "location", "www-authenticate"]);
    let all = HttpCheck { downstream_on_deny: None, ..check() };
    let Ok(Answer::Denied(denial)) =
        Answer::of_http(&all, StatusCode::FORBIDDEN, &headers(&said), Vec::new())
    else {
        panic!("it denies")
    };
    assert_eq!(denial.headers.len(), 4, "all but what concerns its connection");
}

#[test]
fn what_is_too_much_is_no_answer() {
    let many: Vec<_> = (0..=MOST_CHANGES).map(|_| ("x-user", "ann")).collect();
    assert!(matches!(answer(200, &many), Err(InvalidAnswer::TooManyHeaders(_))));
    let many: Vec<_> = (0..=MOST_CHANGES).map(|_| ("x-why", "no")).collect();
    assert!(matches!(answer(403, &many), Err(InvalidAnswer::TooManyHeaders(_))));
    let body = |length| Answer::denied(StatusCode::FORBIDDEN, Vec::new(), vec![0; length]);
    assert!(body(LARGEST_DENIAL).is_ok());
    assert_eq!(body(LARGEST_DENIAL + 1), Err(InvalidAnswer::TooLong));
}

#[test]
fn changes_are_made_in_their_order_and_frames_stay_what_they_are() {
    let (a, b) = (header("x-a"), header("x-b"));
    for (changes, want) in [
        (vec![HeaderChange::Set(a.clone(), value("2"))], &[("x-a", "2")][..]),
        (vec![HeaderChange::Append(a.clone(), value("2"))], &[("x-a", "1"), ("x-a", "2")]),
        (vec![HeaderChange::SetIfAbsent(a.clone(), value("2"))], &[("x-a", "1")]),
        (vec![HeaderChange::SetIfAbsent(b.clone(), value("2"))], &[("x-a", "1"), ("x-b", "2")]),
        (vec![HeaderChange::SetIfPresent(a.clone(), value("2"))], &[("x-a", "2")]),
        (vec![HeaderChange::SetIfPresent(b.clone(), value("2"))], &[("x-a", "1")]),
        (vec![HeaderChange::Remove(a.clone())], &[]),
        (vec![HeaderChange::Append(a.clone(), value("2")), HeaderChange::Remove(a.clone())], &[]),
        (vec![HeaderChange::Remove(a.clone()), HeaderChange::Append(a.clone(), value("2"))], &[("x-a", "2")]),
    ] {
        let mut got = headers(&[("x-a", "1")]);
        change(&mut got, &changes);
        assert_eq!(got, headers(want), "{changes:?}");
    }
    for name in ["content-length", "transfer-encoding", "host", "connection", "x-forwarded-client-cert"] {
        let mut got = headers(&[(name, "1")]);
        change(&mut got, &[HeaderChange::Remove(header(name)), HeaderChange::Set(header(name), value("2"))]);
        assert_eq!(got, headers(&[(name, "1")]), "{name}");
    }
}

#[test]
fn who_writes_a_service_of_that_name_elsewhere_is_not_the_authorizer() {
    let service = |namespace: &str, canonical| {
        let (namespace, hostname) = (namespace.into(), "opa.example".into());
        Arc::new(Service { namespace, hostname, canonical, ..Service::default() })
    };
    let (ours, theirs) = (service("shop", true), service("eve", false));
    let authorizer = |namespace: &str| {
        let parts = AuthorizerParts {
            namespace: namespace.into(),
            hostname: "opa.example".into(),
            port: 80,
            timeout: Duration::from_secs(1),
            on_failure: OnFailure::Allow,
            body: None,
            protocol: CheckProtocol::Grpc(GrpcCheck::default()),
        };
        Authorizer::new(parts).unwrap()
    };
    let both = [theirs.clone(), ours.clone()];
    assert_eq!(authorizer("").service(&both), Some(&ours));
    assert_eq!(authorizer("eve").service(&both), Some(&theirs), "if the mesh says so");
    assert_eq!(authorizer("").service(&[theirs]), None);
    assert_eq!(authorizer("other").service(&both), None);
}
