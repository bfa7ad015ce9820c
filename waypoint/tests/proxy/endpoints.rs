//! Which endpoints requests go to, by the rules that a DestinationRule sets, and by sessions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ambit_fixtures::mesh::pod;
use ambit_model::{
    identity::Identity,
    name::{Label, Uid},
    route::{Destination, Lifetime, Match, Path, Rule, Session, SessionKey},
    service_config::Parts,
    traffic::{
        Algorithm, Balancing, Connections, HashOn, Outliers, PolicyAt, Subset, Traffic, TrafficPolicy,
    },
};

use crate::world::*;

/// `shop/web` with three endpoints, each with an application of its own.
pub async fn three(world: &World) -> Vec<App> {
    let mut apps = Vec::new();
    for number in 2..5 {
        apps.push(App::start(&format!("127.0.0.{number}:8080")).await);
    }
    let pods = (2..5).map(|number| {
        let pod = pod(&format!("shop/web-{number}")).at(&format!("127.0.0.{number}")).plain();
        pod.behind("shop/web", &[(80, 8080)])
    });
    world.publish(pods, [http_service("shop/web", "10.1.0.1")]);
    apps
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

fn uid(number: u8) -> Uid {
    pod(&format!("shop/web-{number}")).build().uid
}

/// Rules of `shop/web`, and routes beside them.
pub fn governed(policy: TrafficPolicy, subsets: Vec<Subset>, parts: Parts) -> Parts {
    let policies = vec![PolicyAt { subset: None, port: None, policy: Arc::new(policy) }];
    Parts { traffic: vec![(key("shop/web"), Arc::new(Traffic { policies, subsets }))], ..parts }
}

pub fn balanced(algorithm: Algorithm) -> TrafficPolicy {
    let balancing = Balancing { algorithm, ..Balancing::default() };
    TrafficPolicy { balancing, ..TrafficPolicy::default() }
}

/// Who answers `count` requests with `headers`, and how often.
pub async fn answers(tunnel: &Tunnel, headers: &[(&str, &str)], count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let mut request = get("/");
        for (name, value) in headers {
            request.headers_mut().append(
                http::HeaderName::try_from(*name).unwrap(),
                http::HeaderValue::try_from(*value).unwrap(),
            );
        }
        *answers.entry(tunnel.ask(WEB, request).await.body).or_default() += 1;
    }
    answers
}

#[test]
fn endpoints_take_turns() {
    world(async |world| {
        let _apps = three(&world).await;
        world.configure("shop/web", governed(balanced(Algorithm::RoundRobin), vec![], Parts::default()));
        let _waypoint = world.start().await;
        let answers = answers(&world.tunnel().await, &[], 30).await;
        assert_eq!(answers.values().copied().collect::<Vec<_>>(), [10, 10, 10], "{answers:?}");
    });
}

#[test]
fn a_subset_is_all_that_its_requests_see() {
    world(async |world| {
        let _apps = three(&world).await;
        let to = |subset: &str| {
            let mut backend = to("shop/web", 1);
            let subset = Some(Label::from(subset));
            backend.to = Destination::Service { service: key("shop/web"), port: 80, subset };
            backend
        };
        let at = |path: &str, subset| Rule {
            matches: vec![Match::path(Path::prefix(path).unwrap())],
            backends: vec![to(subset)],
            ..Rule::default()
        };
        let rules = parts(vec![at("/status", "v9"), at("/upgrade", "none"), at("/", "v2")]);
        let subsets = vec![
            Subset::new("v2".into(), vec![uid(4), uid(3)]),
            Subset::new("none".into(), vec!["elsewhere".into()]),
        ];
        world.configure("shop/web", governed(TrafficPolicy::default(), subsets, rules));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let answers = answers(&tunnel, &[], 40).await;
        assert_eq!(answers.keys().collect::<Vec<_>>(), ["127.0.0.3:8080", "127.0.0.4:8080"]);
        assert_eq!(tunnel.get(WEB, "/status/200").await.status, 500, "nobody defines v9");
        waypoint.line(&["flag=\"NC\"", "defines subset v9"]).await;
        assert_eq!(tunnel.get(WEB, "/upgrade").await.status, 503, "a subset without endpoints");
    });
}

#[test]
fn requests_of_one_key_meet_one_endpoint() {
    world(async |world| {
        let _apps = three(&world).await;
        let by_header = Algorithm::Hash(HashOn::Header("x-user".parse().unwrap()));
        world.configure("shop/web", governed(balanced(by_header), vec![], Parts::default()));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut met = BTreeMap::new();
        for user in 0..12 {
            let user = format!("user-{user}");
            let answers = answers(&tunnel, &[("x-user", &user)], 5).await;
            assert_eq!(answers.len(), 1, "{user}: {answers:?}");
            met.extend(answers);
        }
        assert!(met.len() > 1, "twelve users and one endpoint: {met:?}");
        assert!(answers(&tunnel, &[], 60).await.len() > 1, "without the header any will do");
    });
}

#[test]
fn a_client_without_the_cookie_gets_one_and_stays() {
    world(async |world| {
        let _apps = three(&world).await;
        let ttl = Some(Duration::from_secs(60));
        let cookie = HashOn::Cookie { name: "id".into(), path: Some("/shop".into()), ttl };
        world.configure("shop/web", governed(balanced(Algorithm::Hash(cookie)), vec![], Parts::default()));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for _ in 0..6 {
            let first = tunnel.get(WEB, "/").await;
            let set = first.header("set-cookie").unwrap().to_owned();
            let (pair, attributes) = set.split_once("; ").unwrap();
            assert_eq!(attributes, "Max-Age=60; Path=/shop; HttpOnly");
            let again = answers(&tunnel, &[("cookie", pair)], 5).await;
            assert_eq!(again.keys().collect::<Vec<_>>(), [&first.body], "{pair}");
        }
    });
}

#[test]
fn a_session_stays_where_it_is_for_as_long_as_it_can() {
    world(async |world| {
        let mut apps = three(&world).await;
        let session = Session {
            key: SessionKey::Cookie("shop".into()),
            absolute: Some(Duration::from_secs(3600)),
            idle: None,
            lifetime: Lifetime::Permanent,
        };
        let rule = Rule {
            matches: vec![Match::path(Path::prefix("/").unwrap())],
            backends: vec![to("shop/web", 1)],
            session: Some(session),
            ..Rule::default()
        };
        world.route(vec![rule]);
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let first = tunnel.get(WEB, "/").await;
        let set = first.header("set-cookie").unwrap().to_owned();
        assert!(set.ends_with("; Max-Age=3600; Path=/; HttpOnly"), "{set}");
        let (cookie, _) = set.split_once(';').unwrap();
        assert!(!cookie.contains("web-"), "no name of an endpoint is told: {cookie}");
        let again = answers(&tunnel, &[("cookie", cookie)], 20).await;
        assert_eq!(again.keys().collect::<Vec<_>>(), [&first.body]);
        let mut request = get("/");
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        assert_eq!(
            tunnel.ask(WEB, request.clone()).await.header("set-cookie"),
            None,
            "it has one that is good"
        );
        // The application goes: the session begins anew elsewhere.
        let gone: usize = first.body["127.0.0.".len()..].split(':').next().unwrap().parse().unwrap();
        drop(apps.remove(gone - 2));
        let moved = tunnel.ask(WEB, request).await;
        assert_eq!(moved.status, 200);
        assert_ne!(moved.body, first.body);
        assert_ne!(moved.header("set-cookie").unwrap().split_once(';').unwrap().0, cookie);
    });
}

#[test]
fn more_than_a_rule_allows_is_refused() {
    world(async |world| {
        let web = world.web().await;
        let connections = Connections { requests: Some(1), ..Connections::default() };
        let policy = TrafficPolicy { connections, ..TrafficPolicy::default() };
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut first = tunnel.http1(WEB).await;
        let slow = tokio::spawn(first.send_request(get("/slow/3000")));
        until("the first request", async || (web.heard().len() == 1).then_some(())).await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 503);
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UO\""], 1).await;
        assert_eq!(Told::read(slow.await.unwrap().unwrap()).await.status, 200);
        until("a place", async || (tunnel.get(WEB, "/").await.status == 200).then_some(())).await;
    });
}

#[test]
fn a_connection_carries_as_many_requests_as_a_rule_allows() {
    world(async |world| {
        let web = world.web().await;
        let connections = Connections { requests_each: Some(2), ..Connections::default() };
        let policy = TrafficPolicy { connections, ..TrafficPolicy::default() };
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut sender = tunnel.http1(WEB).await;
        for _ in 0..6 {
            sender.ready().await.unwrap();
            Told::read(sender.send_request(get("/")).await.unwrap()).await;
        }
        assert!((3..=5).contains(&web.connections()), "{} connections for six requests", web.connections());
    });
}

#[test]
fn who_fails_is_left_alone_but_not_more_of_them_than_a_rule_allows() {
    world(async |world| {
        let apps = three(&world).await;
        let outliers = Outliers {
            server: Some(2),
            base: Duration::from_secs(300),
            longest: Duration::from_secs(300),
            most_percent: 34,
            ..Outliers::default()
        };
        let policy = TrafficPolicy { outliers, ..balanced(Algorithm::RoundRobin) };
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        // Each of the three fails as often; one of them is set aside, and the others are kept.
        for _ in 0..12 {
            assert_eq!(tunnel.get(WEB, "/status/500").await.status, 500);
        }
        let before: Vec<_> = apps.iter().map(|app| app.heard().len()).collect();
        answers(&tunnel, &[], 30).await;
        let after: Vec<_> = apps.iter().map(|app| app.heard().len()).collect();
        let asked: Vec<_> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
        assert_eq!(asked.iter().filter(|count| **count == 0).count(), 1, "{asked:?}");
        assert_eq!(waypoint.counted("ambit_endpoint_ejections_total", &[]).await, 1);
    });
}

#[test]
fn who_asks_to_be_left_alone_is() {
    world(async |world| {
        let apps = three(&world).await;
        let outliers = Outliers { server: Some(100), most_percent: 50, ..Outliers::default() };
        let policy = TrafficPolicy { outliers, ..balanced(Algorithm::RoundRobin) };
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/retry-after/60").await.status, 503);
        answers(&tunnel, &[], 20).await;
        let mut asked: Vec<_> = apps.iter().map(|app| app.heard().len()).collect();
        asked.sort_unstable();
        assert_eq!(asked, [1, 10, 10]);
    });
}

#[test]
fn where_a_rule_asks_for_tls_nothing_is_sent_in_the_clear() {
    world(async |world| {
        let web = world.web().await;
        let policy = TrafficPolicy { needs_tunnel: true, ..TrafficPolicy::default() };
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let waypoint = world.start().await;
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 503);
        waypoint.line(&["flag=\"UF\"", "asks for TLS"]).await;
        assert!(web.heard().is_empty());
    });
}

#[test]
fn another_network_is_reached_through_its_gateway_with_a_tunnel_in_a_tunnel() {
    const HOST: &str = "web.shop.svc.cluster.local";
    world(async |world| {
        let app = App::start("127.0.0.2:8080").await;
        let (there, between) = (identity("web"), identity("edge"));
        let far = TunnelEnd::start(&world.ca, &there, "127.0.0.8:15008", "127.0.0.2:8080").await;
        let gateway = TunnelEnd::start(&world.ca, &between, "127.0.0.7:15008", "127.0.0.8:15008").await;
        let name = format!("shop/{HOST}");
        let known = |names: &[&str]| http_service(&name, "near/10.1.0.1").alt_names(names);
        let pods = [
            pod("shop/edge-1").network("near").at("127.0.0.7").account("edge"),
            // Its address means nothing here.
            pod("shop/web-1").network("far").at("127.0.0.66").account("web").behind(&name, &[(80, 8080)]),
        ];
        let [edge, web] = pods;
        world.publish([edge, web.network_gateway("near/127.0.0.7")], [known(&[&there.to_string()])]);
        world.configure(&name, Parts::default());
        let waypoint = world.start_with(&[("NETWORK", "near")]).await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
        let (outer, inner) = (gateway.connected().await, far.connected().await);
        assert_eq!((outer.authority, inner.authority), (format!("{HOST}:80"), format!("{HOST}:80")));
        assert_eq!((outer.caller, inner.caller), (Some(gate()), Some(gate())));
        let says = |headers: &http::HeaderMap, name: &str| {
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(says(&outer.headers, "x-istio-source").as_deref(), Some("waypoint"));
        assert_eq!(says(&outer.headers, "x-forwarded-network"), None);
        assert_eq!(says(&inner.headers, "x-istio-source"), None);
        assert_eq!(says(&inner.headers, "x-forwarded-network").as_deref(), Some("near"));
        assert_eq!(tunnel.get(WEB, "/again").await.status, 200);
        assert_eq!(app.connections(), 1, "it is kept for the next request");
        // Who is no endpoint of the service is not talked to.
        world.publish([], [known(&["spiffe://cluster.local/ns/shop/sa/other"])]);
        until("a refusal", async || (tunnel.get(WEB, "/").await.status == 503).then_some(())).await;
        waypoint.line(&["flag=\"UF\"", "TLS"]).await;
        // Nor is anybody without a gateway.
        let bare = pod("shop/web-1").network("far").at("127.0.0.66").account("web");
        world.publish([bare.behind(&name, &[(80, 8080)])], [known(&[&there.to_string()])]);
        until("no endpoint", async || {
            (tunnel.get(WEB, "/").await.body == "no healthy upstream").then_some(())
        })
        .await;
    });
}

#[test]
fn an_inner_tunnel_ends_when_the_far_end_is_revoked() {
    const HOST: &str = "web.shop.svc.cluster.local";
    world(async |world| {
        let app = App::start("127.0.0.2:8080").await;
        let far = TunnelEnd::start(&world.ca, &identity("web"), "127.0.0.8:15008", "127.0.0.2:8080").await;
        let _gateway =
            TunnelEnd::start(&world.ca, &identity("edge"), "127.0.0.7:15008", "127.0.0.8:15008").await;
        let name = format!("shop/{HOST}");
        let web = pod("shop/web-1").network("far").account("web").behind(&name, &[(80, 8080)]);
        world.publish(
            [
                pod("shop/edge-1").network("near").at("127.0.0.7").account("edge"),
                web.network_gateway("near/127.0.0.7"),
            ],
            [http_service(&name, "near/10.1.0.1").alt_names(&[&identity("web").to_string()])],
        );
        world.configure(&name, Parts::default());
        let lists = world.path("crl.pem");
        std::fs::write(&lists, world.ca.revocation_lists(&[], &[])).unwrap();
        let env = [("NETWORK", "near"), ("CRL_PATH", lists.to_str().unwrap())];
        let waypoint = world.start_with(&env).await;
        let tunnel = world.tunnel().await;
        for _ in 0..2 {
            assert_eq!(tunnel.get(WEB, "/").await.status, 200);
        }
        assert_eq!(app.connections(), 1, "it is kept for the next request");
        std::fs::write(&lists, world.ca.revocation_lists(&[&far.certificate], &[])).unwrap();
        until("a refusal", async || (tunnel.get(WEB, "/").await.status == 503).then_some(())).await;
        waypoint.line(&["flag=\"UF\"", "revoked"]).await;
    });
}
