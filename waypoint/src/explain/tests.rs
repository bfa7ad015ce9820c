//! What a client reads in an explanation: what is known, in order, and never more than fits.

use std::net::{IpAddr, Ipv4Addr};

use ambit_model::{
    authz::By,
    name::PolicyKey,
    route::{Origin, Route as Written, RouteKey, Rule},
};
use http::Request;
use serde_json::Value;

use super::*;

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

fn head(path: &str) -> Parts {
    Request::get(path).header("x-canary", "yes").body(()).unwrap().into_parts().0
}

/// What the client reads.
fn told(explanation: Explanation, refusal: Option<&Refusal>) -> (String, Value) {
    let mut headers = HeaderMap::new();
    explanation.tell(refusal, Duration::from_micros(1500), &mut headers);
    let text = headers[&X_AMBIT_EXPLANATION].to_str().unwrap().to_owned();
    let json = serde_json::from_str(&text).unwrap();
    (text, json)
}

fn address() -> SocketAddr {
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8080).into()
}

fn workload(uid: &str) -> Workload {
    Workload { uid: uid.into(), ..Workload::default() }
}

#[test]
fn what_is_not_known_is_not_said() {
    let (text, _) = told(Explanation::of(&identity("gate")), None);
    assert_eq!(text, r#"{"waypoint":"shop/gate","tookMs":1.5}"#);
}

#[test]
fn a_refusal_says_what_to_do() {
    let refusal = Refusal::Denied(By::Policy(PolicyKey::new("shop", "no-admin")));
    let (_, told) = told(Explanation::of(&identity("gate")), Some(&refusal));
    assert_eq!(told["ended"]["refusal"], "denied");
    assert_eq!(told["ended"]["error"], "denied by policy: shop/no-admin");
    assert_eq!(told["ended"]["advice"], refusal.advice());
}

#[test]
fn the_rule_is_told_with_the_match_that_chose_it_and_how_many_stood_behind() {
    let canary = Match::path(Path::prefix("/a").unwrap())
        .method(http::Method::GET)
        .header("x-canary".parse().unwrap(), Asks::pattern("y.*").unwrap());
    let rules = vec![
        Rule { name: Some("canary".into()), matches: vec![canary], ..Rule::default() },
        Rule { matches: vec![Match::path(Path::exact("/b").unwrap())], ..Rule::default() },
        Rule::default(),
    ];
    let origin = Origin { created: 1, key: RouteKey::new("shop", "web") };
    let table = RouteTable::compile(&[Written::new(origin, rules).unwrap()]);
    let route = |path: &str| {
        let head = head(path);
        let mut explanation = Explanation::of(&identity("gate"));
        explanation.routed(Some(&table), ambit_model::route::select(&table, &head).as_ref(), &head);
        told(explanation, None).1["route"].clone()
    };
    let expected = serde_json::json!({
        "name": "shop/web", "rule": "canary", "match": "path prefix /a, method GET, header x-canary ~ y.*",
        "of": 3, "also": 1,
    });
    assert_eq!(route("/a/x"), expected);
    assert_eq!(route("/b")["match"], "path /b");
    assert_eq!(route("/c")["match"], "every path");
}

#[test]
fn attempts_are_told_with_what_came_of_them_and_why_there_was_another() {
    let mut explanation = Explanation::of(&identity("gate"));
    let at = Duration::from_millis;
    explanation.attempt(&workload("one"), address(), at(1));
    explanation.answered(Ok(StatusCode::SERVICE_UNAVAILABLE), at(3));
    explanation.next(Next::Repeat(at(25)));
    explanation.attempt(&workload("two"), address(), at(28));
    explanation.answered(Ok(StatusCode::OK), at(30));
    explanation.next(Next::Stop(Stop::Outcome));
    let (_, told) = told(explanation, None);
    let expected = serde_json::json!([
        { "endpoint": "one", "address": "10.0.0.1:8080", "atMs": 1.0, "tookMs": 2.0, "outcome": "503",
          "then": "sent again after 25ms" },
        { "endpoint": "two", "address": "10.0.0.1:8080", "atMs": 28.0, "tookMs": 2.0, "outcome": "200" },
    ]);
    assert_eq!(told["attempts"], expected);
}

#[test]
fn it_is_never_longer_than_it_may_be_and_says_what_is_left_out() {
    let long = "\u{1f600}\"\u{7f}\\\u{e9}".repeat(400);
    let mut explanation = Explanation::of(&identity(&long));
    let mut keys: Vec<_> = (0..200).map(|number| PolicyKey::new("shop", format!("{number}{long}"))).collect();
    keys.push(PolicyKey::new("shop", "it-was-me"));
    let opinion = |policy| Opinion { policy, says: "DENY", matches: false, dry_run: false };
    let mut opinions: Vec<_> = keys.iter().map(opinion).collect();
    opinions[200].matches = true;
    explanation.judged(opinions);
    explanation.counted((0..100).map(|_| long.clone()));
    for number in 0..100 {
        explanation.attempt(&workload(&format!("{number}{long}")), address(), Duration::ZERO);
        explanation.answered(Err(&Refusal::UpstreamBroke(long.clone())), Duration::ZERO);
    }
    let all = [
        &mut explanation.service,
        &mut explanation.path,
        &mut explanation.caller,
        &mut explanation.principal,
    ];
    all.into_iter().for_each(|text| *text = Told::new(&long));
    explanation.permitted = Told::new(&long);
    explanation.to = Told::new(&long);
    let (name, rule, matched) = (Told::new(&long), Told::new(&long), Told::new(&long));
    explanation.route = Some(Route { name, rule, matched, of: usize::MAX, also: usize::MAX });
    let (text, told) = told(explanation, Some(&Refusal::UpstreamBroke(long)));
    assert!(text.len() <= LONGEST && text.is_ascii() && !text.contains('\u{7f}'), "{}", text.len());
    let names = |list: &str, field: &str| {
        let all = told[list].as_array().into_iter().flatten();
        all.map(|one| one[field].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("policies", "name"), ["shop/it-was-me"], "what matters stays longest");
    assert_eq!((&told["leftOut"]["policies"], &told["leftOut"]["limits"]), (&200.into(), &100.into()));
    let attempts = names("attempts", "endpoint");
    assert_eq!(told["leftOut"]["attempts"], 100 - attempts.len());
    assert!(attempts.last().is_none_or(|last| last.starts_with("99")), "{attempts:?}");
}

#[test]
fn an_attempt_says_what_becomes_of_its_endpoint() {
    let mut explanation = Explanation::of(&identity("gate"));
    explanation.fell(Standing::Ready);
    let after = |explanation: &mut Explanation, standing| {
        explanation.attempt(&workload("web-1"), address(), Duration::ZERO);
        explanation.answered(Ok(StatusCode::OK), Duration::ZERO);
        explanation.fell(standing);
    };
    let half = Duration::from_secs(30);
    for standing in [
        Standing::Ready,
        Standing::Resting(Duration::from_millis(1500)),
        Standing::Aside(Reason::Failures, half),
        Standing::Aside(Reason::SuccessRate, half),
    ] {
        after(&mut explanation, standing);
    }
    let (_, told) = told(explanation, None);
    let health: Vec<_> =
        told["attempts"].as_array().unwrap().iter().map(|one| one["health"].clone()).collect();
    assert_eq!(
        health,
        [
            Value::Null,
            "passed over for 1.5s, as it asks".into(),
            "set aside for 30.0s: it failed too often in a row".into(),
            "set aside for 30.0s: the others' requests go well more often".into(),
        ]
    );
}
