//! What a waypoint tells the bearer of a debug token, and nobody else.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_fixtures::{
    ca::{Life, TestCa},
    mesh::pod,
};
use ambit_model::{
    authz::{
        Action, Clause, Content, Match as Asks, PathMatch, Policy, RequestMatch, Rule as Judges, Scope, Text,
    },
    identity::{Identity, TrustDomain},
    limit::{self, LocalLimit, Rate, RateLimit},
    name::PolicyKey,
    route::{
        Delay, Fault, Filter, Filters, Fraction, HeaderEdit, Match, Mirror, Path, Rule, Text as Compared,
        retry,
    },
    service_config::Parts,
};
use ambit_wire::debug_token;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::world::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A token of a CA by a certificate of `signer`, for `audience`, from `at` on.
fn signed(ca: &TestCa, signer: &Identity, audience: &str, at: SystemTime) -> String {
    let (chain, key) = ca.issue(signer, Life::Hour);
    debug_token::sign(&key, &chain, &audience.parse().unwrap(), at, MINUTE).unwrap()
}

fn signer() -> Identity {
    debug_token::identity(&TrustDomain::default())
}

/// One that this waypoint believes.
pub fn token(world: &World) -> String {
    signed(&world.ca, &signer(), "shop/gate", SystemTime::now())
}

pub fn with(token: &str, path: &str) -> Request<Full<bytes::Bytes>> {
    let mut request = get(path);
    request.headers_mut().insert("x-ambit-debug", token.parse().unwrap());
    request
}

/// The status, and the explanation.
pub async fn explained(tunnel: &Tunnel, request: Request<Full<bytes::Bytes>>) -> (u16, Value) {
    let told = tunnel.ask(WEB, request).await;
    let text = told.header("x-ambit-explanation").expect("an explanation");
    assert!(text.len() <= 4096);
    (told.status, serde_json::from_str(text).unwrap())
}

fn policy(name: &str, action: Action, prefix: &str, dry_run: bool) -> Arc<Policy> {
    let request =
        RequestMatch { paths: vec![PathMatch::Text(Text::Prefix(prefix.into()))], ..RequestMatch::default() };
    let one = Asks { request: Some(Box::new(request)), ..Asks::default() };
    let rules = vec![Judges { clauses: vec![Clause { matches: vec![one] }] }];
    let content = Content::Rules { action, rules, dry_run };
    Arc::new(Policy { key: PolicyKey::new("shop", name), scope: Scope::WorkloadSelector, content })
}

#[test]
fn who_has_no_token_of_the_mesh_learns_nothing() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let good = token(&world);
        let now = SystemTime::now();
        let mut parts: Vec<&str> = good.split('.').collect();
        parts[0] = "eyJhbGciOiJub25lIiwidHlwIjoiYW1iaXQtZGVidWcrand0In0";
        let unsigned = format!("{}.{}.", parts[0], parts[1]);
        let changed = signed(&world.ca, &signer(), "shop", now);
        let spliced = format!(
            "{}.{}.{}",
            good.split('.').next().unwrap(),
            parts[1],
            changed.rsplit('.').next().unwrap()
        );
        for (word, count, token) in [
            ("chain", 1, signed(&TestCa::new(), &signer(), "shop/gate", now)),
            ("signer", 1, signed(&world.ca, &client_identity(), "shop/gate", now)),
            ("signature", 1, spliced),
            ("form", 1, unsigned),
            ("form", 2, good[..good.len() / 2].to_owned()),
            ("form", 3, "nonsense".to_owned()),
            ("form", 4, "a".repeat(20_000)),
        ] {
            let told = tunnel.ask(WEB, with(&token, "/")).await;
            assert_eq!((told.status, told.header("x-ambit-explanation")), (200, None), "{word}");
            let label = format!("outcome=\"{word}\"");
            waypoint.until_counted("ambit_debug_tokens_total", &[&label], count).await;
        }
        assert_eq!(app.heard().len(), 7);
        assert!(app.heard().iter().all(|heard| heard.header("x-ambit-debug").is_none()));
    });
}

#[test]
fn whoever_floods_takes_no_explanation_from_who_was_believed() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let (known, new) = (token(&world), signed(&world.ca, &signer(), "shop", SystemTime::now()));
        explained(&tunnel, with(&known, "/")).await;
        let over = ["outcome=\"over_budget\""];
        until("the budget is spent", async || {
            for _ in 0..100 {
                tunnel.ask(WEB, with("nonsense", "/")).await;
            }
            (waypoint.counted("ambit_debug_tokens_total", &over).await > 0).then_some(())
        })
        .await;
        explained(&tunnel, with(&known, "/")).await;
        // Ten in a second are looked at again, so it may be its turn; then nothing is to be seen here.
        let before = waypoint.counted("ambit_debug_tokens_total", &over).await;
        let told = tunnel.ask(WEB, with(&new, "/")).await;
        let is_refused = waypoint.counted("ambit_debug_tokens_total", &over).await > before;
        assert_eq!((told.status, told.header("x-ambit-explanation").is_none()), (200, is_refused));
        assert!(app.heard().iter().all(|heard| heard.header("x-ambit-debug").is_none()));
    });
}

#[test]
fn a_delay_on_purpose_is_explained() {
    world(async |world| {
        let _app = world.web().await;
        let delay = Delay { share: Fraction::ALL, time: Duration::from_millis(20) };
        let fault = Fault::new(Some(delay), None).unwrap();
        let filters = Filters::new(vec![Filter::Fault(fault)]).unwrap();
        world.configure(
            "shop/web",
            parts(vec![Rule { filters, backends: vec![to("shop/web", 1)], ..Rule::default() }]),
        );
        let _waypoint = world.start().await;
        let (status, told) = explained(&world.tunnel().await, with(&token(&world), "/")).await;
        assert_eq!((status, &told["delayedMs"], &told["filters"]), (200, &json!(20.0), &json!(["Fault"])));
    });
}

#[test]
fn the_bearer_of_a_token_that_does_not_hold_is_told_why() {
    world(async |world| {
        let app = world.web().await;
        world.configure(
            "shop/web",
            Parts { policies: vec![policy("closed", Action::Deny, "/", false)], ..Parts::default() },
        );
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let now = SystemTime::now();
        for (word, says, token) in [
            ("expired", "it has expired", signed(&world.ca, &signer(), "shop/gate", now - 2 * MINUTE)),
            ("audience", "it is for another waypoint", signed(&world.ca, &signer(), "shop/other", now)),
            ("audience", "it is for another waypoint", signed(&world.ca, &signer(), "bank", now)),
        ] {
            let told = tunnel.ask(WEB, with(&token, "/")).await;
            let expected = format!("invalid token: {says}");
            assert_eq!(told.header("x-ambit-explanation"), Some(expected.as_str()));
            assert_eq!(told.status, 403, "it is answered as ever");
            assert!(
                waypoint.counted("ambit_debug_tokens_total", &[&format!("outcome=\"{word}\"")]).await > 0
            );
        }
        assert!(app.heard().is_empty());
    });
}

#[test]
fn an_answered_request_is_explained_and_the_token_goes_no_further() {
    world(async |world| {
        let app = world.web().await;
        let shadow = App::start("127.0.0.3:8080").await;
        world.publish(
            [pod("shop/shadow-1").at("127.0.0.3").plain().behind("shop/shadow", &[(80, 8080)])],
            [http_service("shop/shadow", "10.1.0.3")],
        );
        let edit = HeaderEdit::parse(&[("x-edited", "1")], &[], &[]).unwrap();
        let copies = Filter::Mirror(Mirror { to: to("shop/shadow", 1).to, share: Fraction::ALL });
        let by_header = Match::path(Path::prefix("/a").unwrap())
            .header("x-canary".parse().unwrap(), Compared::exact("yes"));
        let rules = vec![
            Rule {
                name: Some("canary".into()),
                matches: vec![by_header],
                filters: Filters::new(vec![Filter::RequestHeaders(edit), copies]).unwrap(),
                backends: vec![to("shop/web", 1)],
                ..Rule::default()
            },
            Rule { backends: vec![to("shop/web", 1)], ..Rule::default() },
        ];
        let policies = vec![
            policy("open", Action::Allow, "/", false),
            policy("closed", Action::Deny, "/admin", false),
            policy("try", Action::Deny, "/a", true),
        ];
        world.configure("shop/web", Parts { policies, ..parts(rules) });
        let log = ("AMBIT_ACCESS_LOG_FORMAT", "token=%REQ(X-AMBIT-DEBUG)% path=%REQ(:PATH)%");
        let waypoint = world.start_with(&[log]).await;
        let tunnel = world.tunnel().await;
        let token = token(&world);
        let mut request = with(&token, "/x/../a/b?secret=1");
        request.headers_mut().insert("x-canary", "yes".parse().unwrap());
        let (status, told) = explained(&tunnel, request).await;
        assert_eq!(status, 200);
        assert_eq!(told["waypoint"], "shop/gate");
        assert!(told["service"].as_str().unwrap().starts_with("shop/web"), "{told}");
        assert_eq!((&told["path"], &told["caller"]), (&json!("/a/b"), &json!(client_identity().to_string())));
        let policies = json!([
            { "name": "shop/open", "action": "ALLOW", "matches": true },
            { "name": "shop/closed", "action": "DENY", "matches": false },
            { "name": "shop/try", "action": "DENY", "matches": true, "dryRun": true },
        ]);
        let mut judged = told["policies"].as_array().unwrap().clone();
        judged.sort_by_key(|one| {
            policies.as_array().unwrap().iter().position(|other| other["name"] == one["name"])
        });
        assert_eq!((Value::from(judged), &told["permitted"]), (policies, &json!("shop/open")));
        let route = json!({
            "name": "shop/route", "rule": "canary", "match": "path prefix /a, header x-canary = yes",
            "of": 2, "also": 1,
        });
        assert_eq!(told["route"], route);
        assert_eq!(told["filters"], json!(["RequestHeaderModifier", "RequestMirror"]));
        assert_eq!(told["attempts"][0]["address"], "127.0.0.2:8080");
        assert_eq!(told["attempts"][0]["outcome"], "200");
        assert_eq!((&told["ended"], &told["leftOut"]), (&Value::Null, &Value::Null));
        assert!(!told.to_string().contains("secret"), "{told}");
        until("the copy", async || (!shadow.heard().is_empty()).then_some(())).await;
        for heard in app.heard().iter().chain(&shadow.heard()) {
            assert!(heard.headers.values().all(|value| value != token.as_str()), "{heard:?}");
            assert_eq!((heard.header("x-ambit-debug"), heard.header("x-edited")), (None, Some("1")));
        }
        waypoint.line(&["token=-", "path=/a/b"]).await;
        assert!(!waypoint.said().contains(token.as_str()));
        // Without a token all is as ever.
        assert_eq!(tunnel.get(WEB, "/a").await.header("x-ambit-explanation"), None);
    });
}

#[test]
fn a_refused_request_is_explained_with_what_can_be_done() {
    world(async |world| {
        let _app = world.web().await;
        let rules = vec![Rule {
            matches: vec![Match::path(Path::prefix("/a").unwrap())],
            backends: vec![to("shop/web", 1)],
            ..Rule::default()
        }];
        let policies = vec![policy("closed", Action::Deny, "/admin", false)];
        let rate = Rate::new(2, 3600 * Duration::from_secs(24), 2).unwrap();
        let local = vec![Arc::new(LocalLimit::new(rate, Vec::new(), Vec::new()).unwrap())];
        let scope = limit::Scope::Service { ports: [].into() };
        let limits = vec![RateLimit { policy: PolicyKey::new("shop", "slow"), scope, local, global: None }];
        world.configure("shop/web", Parts { policies, limits, ..parts(rules) });
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let token = token(&world);
        let ended = async |path: &str| {
            let (status, told) = explained(&tunnel, with(&token, path)).await;
            assert!(!told["ended"]["advice"].as_str().unwrap().is_empty());
            (status, told)
        };
        let (status, told) = ended("/admin").await;
        assert_eq!((status, &told["ended"]["refusal"]), (403, &json!("denied")));
        assert_eq!(told["ended"]["error"], "denied by policy: shop/closed");
        assert_eq!(told["policies"][0]["matches"], true);
        let (status, told) = ended("/nowhere").await;
        assert_eq!((status, &told["ended"]["refusal"]), (404, &json!("no_route")));
        assert_eq!(told["route"], json!({ "of": 1, "also": 0 }));
        let (status, told) = ended("/%00").await;
        assert_eq!((status, &told["ended"]["refusal"]), (400, &json!("bad_request")));
        for _ in 0..2 {
            assert_eq!(tunnel.get(WEB, "/a").await.status, 200);
        }
        let (status, told) = ended("/a").await;
        assert_eq!((status, &told["ended"]["refusal"]), (429, &json!("limited")));
        assert_eq!(told["limits"], json!(["shop/slow local[0]"]));
    });
}

#[test]
fn attempts_are_explained_one_by_one() {
    world(async |world| {
        let app = world.web().await;
        let again = retry::Policy::parse(&[503], Some(2), Some(Duration::from_millis(5))).unwrap();
        world.route(vec![Rule { backends: vec![to("shop/web", 1)], retry: Some(again), ..Rule::default() }]);
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let token = token(&world);
        let (status, told) = explained(&tunnel, with(&token, "/status/503/1")).await;
        let attempts = told["attempts"].as_array().unwrap();
        let outcomes: Vec<_> = attempts.iter().map(|one| one["outcome"].as_str().unwrap()).collect();
        assert_eq!((status, outcomes.as_slice()), (200, &["503", "200"][..]));
        assert!(attempts[0]["then"].as_str().unwrap().starts_with("sent again after"), "{told}");
        let (status, told) = explained(&tunnel, with(&token, "/status/503")).await;
        let last = told["attempts"].as_array().unwrap().last().unwrap();
        assert_eq!((status, &last["outcome"]), (503, &json!("503")));
        assert_eq!(last["then"], "not sent again: that is as often as it may be");
        assert_eq!(app.heard().len(), 5);
        // Nobody listens any more.
        drop(app);
        let (status, told) = explained(&tunnel, with(&token, "/")).await;
        assert_eq!(status, 503, "{told}");
        assert!(told["attempts"][0]["outcome"].as_str().unwrap().contains(": "), "{told}");
    });
}
