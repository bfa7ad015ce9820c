//! How many requests are taken.

use std::{sync::Arc, time::Duration};

use ambit_fixtures::mesh::{pod, service};
use ambit_model::{
    authz::{Action, Clause, Content, Match as Asks, PathMatch, Policy, RequestMatch, Rule as Judges, Text},
    limit::{
        Attribute, Entry, EntryValue, GlobalLimit, LocalLimit, OnError, Rate, RateLimit, Scope, Standing,
        header,
    },
    name::PolicyKey,
    route::{Destination, Match, Path, RouteKey, Rule},
    service::AppProtocol,
    service_config::Parts,
};
use ambit_wire::limiter::{Answer, Over};
use http::Request;
use http_body_util::Full;

use crate::world::*;

/// A limit that no test outlives.
const DAY: Duration = Duration::from_secs(24 * 3600);

fn local(requests: u32, by: Vec<Attribute>, matches: Vec<Match>) -> Arc<LocalLimit> {
    let rate = Rate::new(requests, DAY, requests).unwrap();
    Arc::new(LocalLimit::new(rate, by, matches).unwrap())
}

fn limit(name: &str, scope: Scope, local: Vec<Arc<LocalLimit>>) -> RateLimit {
    RateLimit { policy: PolicyKey::new("shop", name), scope, local, global: None }
}

fn of_service() -> Scope {
    Scope::Service { ports: [].into() }
}

fn with(limits: Vec<RateLimit>) -> Parts {
    Parts { limits, ..Parts::default() }
}

/// The statuses of some requests to `/`, one after the other.
async fn statuses(tunnel: &Tunnel, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(tunnel.get(WEB, "/").await.status);
    }
    statuses
}

fn of_user(user: Option<&str>) -> Request<Full<bytes::Bytes>> {
    let mut request = get("/");
    if let Some(user) = user {
        request.headers_mut().insert("x-user", user.parse().unwrap());
    }
    request
}

#[test]
fn what_is_beyond_a_limit_is_told_when_to_come_again() {
    world(async |world| {
        let app = world.web().await;
        world.configure(
            "shop/web",
            with(vec![limit("p", of_service(), vec![local(2, Vec::new(), Vec::new())])]),
        );
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(statuses(&tunnel, 2).await, [200, 200]);
        let told = tunnel.get(WEB, "/").await;
        assert_eq!((told.status, told.body.as_str()), (429, "too many requests"));
        assert_eq!(told.header("x-ratelimit-limit"), Some("2"));
        assert_eq!(told.header("x-ratelimit-remaining"), Some("0"));
        // Two in a day: one in half a day, less what the test has taken.
        let seconds = |name| told.header(name).unwrap().parse::<u64>().unwrap();
        assert!((43_000..=43_200).contains(&seconds("retry-after")));
        assert!((86_000..=86_400).contains(&seconds("x-ratelimit-reset")));
        assert_eq!(app.heard().len(), 2);
        // A gRPC call is told in its own way.
        let mut request = post("/shop.Web/Get", "");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let told = tunnel.ask(WEB, request).await;
        assert_eq!((told.status, told.header("grpc-status")), (200, Some("8")));
        assert!(told.header("retry-after").is_some());
        waypoint.line(&["flag=\"RL\"", "more requests than shop/p local[0] allows"]).await;
        let outcomes = "ambit_rate_limit_decisions_total";
        waypoint.until_counted(outcomes, &["limit=\"local\"", "outcome=\"allowed\""], 2).await;
        waypoint.until_counted(outcomes, &["limit=\"local\"", "outcome=\"limited\""], 2).await;
        waypoint.until_counted("ambit_rate_limit_buckets", &[], 1).await;
        waypoint.until_counted("istio_requests_total", &["response_flags=\"RL\""], 2).await;
    });
}

/// The three headers of a response.
fn standing(told: &Told) -> [Option<&str>; 3] {
    ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"].map(|name| told.header(name))
}

#[test]
fn every_client_is_told_of_the_limit_that_is_nearest_to_its_end() {
    world(async |world| {
        let app = world.web().await;
        let admin = Match::path(Path::prefix("/admin").unwrap());
        let counted = Match::path(Path::prefix("/counted").unwrap());
        let locals =
            vec![local(100, Vec::new(), vec![counted, admin.clone()]), local(3, Vec::new(), vec![admin])];
        world.configure("shop/web", with(vec![limit("p", of_service(), locals)]));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(standing(&tunnel.get(WEB, "/free").await), [None, None, None]);
        let told = tunnel.get(WEB, "/counted").await;
        assert_eq!((told.status, told.header("retry-after")), (200, None));
        assert_eq!(&standing(&told)[..2], [Some("100"), Some("99")]);
        // A hundred in a day: one comes back in less than fifteen minutes.
        let reset: u64 = standing(&told)[2].unwrap().parse().unwrap();
        assert!((1..=864).contains(&reset));
        for (left, status) in [("2", 200), ("1", 200), ("0", 200), ("0", 429)] {
            let told = tunnel.get(WEB, "/admin").await;
            assert_eq!((told.status, &standing(&told)[..2]), (status, &[Some("3"), Some(left)][..]));
        }
        assert_eq!(standing(&tunnel.get(WEB, "/counted").await)[1], Some("95"));
        // What fails after it was counted is told, too.
        drop(app);
        let told = tunnel.get(WEB, "/counted").await;
        assert_eq!((told.status, standing(&told)[1]), (503, Some("94")));
    });
}

#[test]
fn what_a_limit_service_says_is_left_is_told_if_it_is_less() {
    world(async |world| {
        let _app = world.web().await;
        let left = |remaining| {
            let reset = Some(Duration::from_secs(7));
            Answer { nearest: Some(Standing { limit: 50, remaining, reset }), ..Answer::default() }
        };
        let limiter = Limiter::start(LIMITER, Temper::Says(left(49))).await;
        world.publish(
            [pod("shop/limiter-1").at("127.0.0.6").plain().behind("shop/limiter", &[(8081, 8081)])],
            [service("shop/limiter").vip("10.1.0.6").ports(&[(8081, 8081)])],
        );
        let to = Destination::Service { service: key("shop/limiter"), port: 8081, subset: None };
        let global = GlobalLimit::new(to, "shop", PATIENT, OnError::Refuse, descriptors()).unwrap();
        let local = vec![local(10, Vec::new(), Vec::new())];
        let both = RateLimit { global: Some(Arc::new(global)), ..limit("b", of_service(), local) };
        world.configure("shop/web", with(vec![both]));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(&standing(&tunnel.get(WEB, "/").await)[..2], [Some("10"), Some("9")]);
        limiter.set(Temper::Says(left(2)));
        assert_eq!(standing(&tunnel.get(WEB, "/").await), [Some("50"), Some("2"), Some("7")]);
        limiter.set(Temper::Says(Answer::default()));
        assert_eq!(standing(&tunnel.get(WEB, "/").await)[1], Some("7"), "it says nothing of how it stands");
    });
}

#[test]
fn who_is_told_apart_is_counted_apart() {
    world(async |world| {
        let _app = world.web().await;
        let by = vec![Attribute::Header(header("x-user").unwrap())];
        world.configure("shop/web", with(vec![limit("p", of_service(), vec![local(1, by, Vec::new())])]));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for (user, status) in [
            (Some("ann"), 200),
            (Some("ann"), 429),
            (Some("bob"), 200),
            (None, 200),
            (None, 429),
            (Some("bob"), 429),
        ] {
            assert_eq!(tunnel.ask(WEB, of_user(user)).await.status, status, "{user:?}");
        }
        waypoint.until_counted("ambit_rate_limit_buckets", &[], 3).await;
    });
}

#[test]
fn the_denied_and_the_lost_spend_nothing() {
    world(async |world| {
        let _app = world.web().await;
        let asks = RequestMatch {
            paths: vec![PathMatch::Text(Text::Prefix("/admin".into()))],
            ..RequestMatch::default()
        };
        let one = Asks { request: Some(Box::new(asks)), ..Asks::default() };
        let rules = vec![Judges { clauses: vec![Clause { matches: vec![one] }] }];
        let denies = Policy {
            key: PolicyKey::new("shop", "no-admin"),
            scope: ambit_model::authz::Scope::WorkloadSelector,
            content: Content::Rules { action: Action::Deny, rules, dry_run: false },
        };
        let shop = Rule {
            matches: vec![Match::path(Path::prefix("/shop").unwrap())],
            backends: vec![to("shop/web", 1)],
            ..Rule::default()
        };
        let config = Parts {
            policies: vec![Arc::new(denies)],
            limits: vec![limit("p", of_service(), vec![local(1, Vec::new(), Vec::new())])],
            ..parts(vec![shop])
        };
        world.configure("shop/web", config);
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for (path, status) in
            [("/admin", 403), ("/nowhere", 404), ("/admin", 403), ("/shop", 200), ("/shop", 429)]
        {
            assert_eq!(tunnel.get(WEB, path).await.status, status, "{path}");
        }
    });
}

#[test]
fn a_limit_is_for_its_route_its_rule_and_what_it_matches() {
    world(async |world| {
        let _app = world.web().await;
        let rule = |name: &str, prefix: &str| Rule {
            name: Some(name.into()),
            matches: vec![Match::path(Path::prefix(prefix).unwrap())],
            backends: vec![to("shop/web", 1)],
            ..Rule::default()
        };
        let scope = |rule: Option<&str>| Scope::Route {
            route: RouteKey::new("shop", "route"),
            rule: rule.map(Into::into),
            ports: [80].into(),
        };
        let posts = vec![Match::default().method(http::Method::POST)];
        let config = Parts {
            limits: vec![
                limit("pay", scope(Some("pay")), vec![local(1, Vec::new(), Vec::new())]),
                limit("posts", scope(None), vec![local(1, Vec::new(), posts)]),
            ],
            ..parts(vec![rule("pay", "/pay"), rule("rest", "/")])
        };
        world.configure("shop/web", config);
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for (path, status) in [("/pay", 200), ("/pay", 429), ("/", 200), ("/", 200)] {
            assert_eq!(tunnel.get(WEB, path).await.status, status, "{path}");
        }
        assert_eq!(tunnel.ask(WEB, post("/", "")).await.status, 200);
        assert_eq!(tunnel.ask(WEB, post("/", "")).await.status, 429);
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
    });
}

#[test]
fn a_limit_goes_on_counting_when_the_rest_is_written_anew() {
    world(async |world| {
        let _app = world.web().await;
        let one = |requests| limit("p", of_service(), vec![local(requests, Vec::new(), Vec::new())]);
        world.configure("shop/web", with(vec![one(2)]));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(statuses(&tunnel, 1).await, [200]);
        // A limit that counts nothing of this, beside it.
        let admin = vec![Match::path(Path::prefix("/admin").unwrap())];
        let other = limit("later", of_service(), vec![local(1, Vec::new(), admin)]);
        world.configure("shop/web", with(vec![other, one(2)]));
        waypoint.until_known("shop/later").await;
        assert_eq!(statuses(&tunnel, 2).await, [200, 429]);
        // Another limit begins anew.
        world.configure("shop/web", with(vec![one(3)]));
        waypoint.until_known("\"burst\": 3").await;
        assert_eq!(statuses(&tunnel, 4).await, [200, 200, 200, 429]);
    });
}

const LIMITER: &str = "127.0.0.6:8081";

fn descriptors() -> Vec<Vec<Entry>> {
    let entry = |key: &str, value| Entry { key: key.into(), value };
    vec![
        vec![entry("tier", EntryValue::Fixed("gold".into())), entry("path", EntryValue::Of(Attribute::Path))],
        vec![entry("user", EntryValue::Of(Attribute::Header(header("x-user").unwrap())))],
    ]
}

/// `shop/web` is limited by a service at [`LIMITER`].
fn counted_elsewhere(world: &World, timeout: Duration, on_error: OnError) {
    world.publish(
        [pod("shop/limiter-1").at("127.0.0.6").plain().behind("shop/limiter", &[(8081, 8081)])],
        [service("shop/limiter").vip("10.1.0.6").ports(&[(8081, 8081)]).with(|service| {
            service.app_protocols = [(8081, AppProtocol::Grpc)].into();
        })],
    );
    let to = Destination::Service { service: key("shop/limiter"), port: 8081, subset: None };
    let global = GlobalLimit::new(to, "shop", timeout, on_error, descriptors()).unwrap();
    let limit = RateLimit { global: Some(Arc::new(global)), ..limit("g", of_service(), Vec::new()) };
    world.configure("shop/web", with(vec![limit]));
}

/// Longer than any answer here takes, on any machine.
const PATIENT: Duration = Duration::from_secs(10);

fn named(name: &'static str, value: &'static str) -> (http::HeaderName, http::HeaderValue) {
    (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
}

#[test]
fn a_service_counts_and_tells_client_and_application() {
    world(async |world| {
        let app = world.web().await;
        let fine = Answer {
            for_client: vec![named("x-quota", "9")],
            for_application: vec![named("x-plan", "gold")],
            ..Answer::default()
        };
        let limiter = Limiter::start(LIMITER, Temper::Says(fine)).await;
        counted_elsewhere(&world, PATIENT, OnError::Refuse);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut request = of_user(Some("ann"));
        request.headers_mut().insert("x-plan", "forged".parse().unwrap());
        let told = tunnel.ask(WEB, request).await;
        assert_eq!((told.status, told.header("x-quota")), (200, Some("9")));
        let plans: Vec<_> = app.last().headers.get_all("x-plan").iter().cloned().collect();
        assert_eq!(plans, ["gold"], "told by the service, not by the client");
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let gold = vec![pair("tier", "gold"), pair("path", "/")];
        assert_eq!(limiter.asked(), [("shop".to_owned(), vec![gold.clone(), vec![pair("user", "ann")]])]);
        // Who has no user is not asked about as one.
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
        assert_eq!(limiter.asked()[1].1, [gold]);

        let over = Over { limit: Some(7), remaining: 0, reset: Some(Duration::from_millis(2500)) };
        limiter.set(Temper::Says(Answer {
            over: Some(over),
            for_client: vec![named("x-quota", "0"), named("content-length", "9")],
            ..Answer::default()
        }));
        let told = tunnel.get(WEB, "/").await;
        assert_eq!((told.status, told.body.as_str()), (429, "too many requests"));
        let header = |name| told.header(name).unwrap_or_default();
        assert_eq!((header("retry-after"), header("x-ratelimit-reset")), ("3", "3"));
        assert_eq!((header("x-ratelimit-limit"), header("x-quota")), ("7", "0"));
        assert_eq!(app.heard().len(), 2);
        waypoint.line(&["flag=\"RL\"", "more requests than shop/g global allows"]).await;
        let outcomes = "ambit_rate_limit_decisions_total";
        waypoint.until_counted(outcomes, &["limit=\"global\"", "outcome=\"allowed\""], 2).await;
        waypoint.until_counted(outcomes, &["limit=\"global\"", "outcome=\"limited\""], 1).await;
    });
}

/// Every way in which a limit service says nothing, and what the log has of it.
fn silences() -> [(Temper, &'static str); 6] {
    [
        (Temper::Resets, "broke off"),
        (Temper::Noise(b"nonsense".to_vec()), "the call ended with"),
        (Temper::Noise(Vec::new()), "the call ended with"),
        // An empty message: no verdict.
        (Temper::Noise(vec![0, 0, 0, 0, 0]), "has no verdict"),
        (Temper::Noise(vec![0; 100_000]), "broke off"),
        (Temper::Fails("14"), "the call ended with The service is currently unavailable"),
    ]
}

#[test]
fn where_a_limit_must_be_judged_silence_refuses() {
    world(async |world| {
        let app = world.web().await;
        let limiter = Limiter::start(LIMITER, Temper::Resets).await;
        counted_elsewhere(&world, PATIENT, OnError::Refuse);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for (temper, said) in silences() {
            limiter.set(temper);
            let told = tunnel.get(WEB, "/").await;
            assert_eq!((told.status, told.body.as_str()), (500, "rate limit service error"), "{said}");
            waypoint.line(&["flag=\"RLSE\"", said]).await;
        }
        assert!(app.heard().is_empty());
        // It is better at once.
        limiter.set(Temper::Says(Answer::default()));
        until("it answers again", async || (tunnel.get(WEB, "/").await.status == 200).then_some(())).await;
        drop(limiter);
        assert_eq!(tunnel.get(WEB, "/").await.status, 500, "nobody is there any more");
    });
}

#[test]
fn where_it_need_not_be_silence_lets_pass() {
    world(async |world| {
        let _app = world.web().await;
        let limiter = Limiter::start(LIMITER, Temper::Resets).await;
        counted_elsewhere(&world, PATIENT, OnError::Take);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for (temper, said) in silences() {
            limiter.set(temper);
            assert_eq!(tunnel.get(WEB, "/").await.status, 200, "{said}");
        }
        let errors = ["limit=\"global\"", "outcome=\"error\""];
        waypoint.until_counted("ambit_rate_limit_decisions_total", &errors, 6).await;
    });
}

#[test]
fn a_service_that_hangs_is_not_waited_for_longer_than_is_said() {
    world(async |world| {
        let app = world.web().await;
        let limiter = Limiter::start(LIMITER, Temper::Hangs).await;
        counted_elsewhere(&world, Duration::from_millis(100), OnError::Take);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
        counted_elsewhere(&world, Duration::from_millis(101), OnError::Refuse);
        waypoint.until_known("\"failOpen\": false").await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 500);
        waypoint.line(&["flag=\"RLSE\"", "no complete answer within"]).await;
        assert_eq!((app.heard().len(), limiter.asked().len()), (1, 2));
    });
}

#[test]
fn a_service_that_is_not_known_cannot_be_asked() {
    world(async |world| {
        let _app = world.web().await;
        let invalid = Destination::Invalid { reason: "RefNotPermitted".into() };
        let global = GlobalLimit::new(invalid, "shop", PATIENT, OnError::Refuse, descriptors()).unwrap();
        let limit = RateLimit { global: Some(Arc::new(global)), ..limit("g", of_service(), Vec::new()) };
        world.configure("shop/web", with(vec![limit]));
        let waypoint = world.start().await;
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 500);
        waypoint.line(&["flag=\"RLSE\"", "RefNotPermitted"]).await;
    });
}
