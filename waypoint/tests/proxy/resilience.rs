//! What becomes of requests when endpoints are new, far, busy, failing, or want to be left alone.

use std::time::Duration;

use ambit_fixtures::mesh::{PodBuilder, pod};
use ambit_model::{
    route::{Match, Path, Rule, retry},
    service::{LoadBalancing, Mode, Scope},
    service_config::Parts,
    traffic::{Algorithm, Balancing, Connections, HashOn, Outliers, SuccessRate, TrafficPolicy, Warmup},
};

use crate::{
    endpoints::{answers, balanced, governed, three},
    explanations::{explained, token, with},
    world::*,
};

fn web(number: u8) -> PodBuilder {
    pod(&format!("shop/web-{number}"))
        .at(&format!("127.0.0.{number}"))
        .plain()
        .behind("shop/web", &[(80, 8080)])
}

fn address(number: u8) -> String {
    format!("127.0.0.{number}:8080")
}

async fn apps(numbers: impl Iterator<Item = u8>) -> Vec<App> {
    let mut apps = Vec::new();
    for number in numbers {
        apps.push(App::start(&address(number)).await);
    }
    apps
}

/// Asks until one with this status answers.
async fn until_answered(tunnel: &Tunnel, path: &str, status: u16) {
    until(&format!("{status} for {path}"), async || {
        (tunnel.get(WEB, path).await.status == status).then_some(())
    })
    .await;
}

/// Asks until this one answers.
async fn until_asked(tunnel: &Tunnel, number: u8) {
    until(&format!("an answer of {number}"), async || {
        (tunnel.get(WEB, "/").await.body == address(number)).then_some(())
    })
    .await;
}

#[test]
fn who_is_new_gets_little_at_first() {
    world(async |world| {
        let _apps = apps(2..5).await;
        let warm = |duration| {
            let warmup = Some(Warmup { duration, least_percent: 10, aggression: 1000 });
            let balancing = Balancing { algorithm: Algorithm::RoundRobin, warmup, ..Balancing::default() };
            governed(TrafficPolicy { balancing, ..TrafficPolicy::default() }, vec![], Parts::default())
        };
        world.publish([web(2), web(3)], [http_service("shop/web", "10.1.0.1")]);
        world.configure("shop/web", warm(Duration::from_secs(3600)));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let before = answers(&tunnel, &[], 20).await;
        assert_eq!(before.values().copied().collect::<Vec<_>>(), [10, 10], "who is there first is not new");
        world.publish([web(4)], []);
        waypoint.until_known("web-4").await;
        let mut asked = answers(&tunnel, &[], 120).await;
        let new = asked.remove(&address(4)).unwrap_or_default();
        assert!(new < 20, "{new} of 120 requests, and 40 would be its share");
        assert!(asked.values().all(|count| *count > 45), "{asked:?}");
        // The same endpoint, by a rule that has it be new for shorter than it is there.
        world.configure("shop/web", warm(Duration::from_millis(1)));
        until("its share", async || {
            (answers(&tunnel, &[], 30).await.get(&address(4)) == Some(&10)).then_some(())
        })
        .await;
    });
}

#[test]
fn near_endpoints_come_first_and_far_ones_stand_in() {
    world(async |world| {
        let _apps = apps(2..4).await;
        let preferences = LoadBalancing {
            routing_preferences: [Scope::Region, Scope::Zone].into(),
            mode: Mode::Failover,
            ..LoadBalancing::default()
        };
        let balancing = Balancing { preferences: Some(preferences), ..Balancing::default() };
        let aside = Duration::from_secs(2);
        let outliers = Outliers { server: Some(2), base: aside, longest: aside, ..Outliers::default() };
        let policy = TrafficPolicy { balancing, outliers, ..TrafficPolicy::default() };
        let own = pod("shop/gate-1").at("127.0.0.9").account("gate").behind("shop/gate", &[(15008, 15008)]);
        let near = || web(2).locality("r1/z1");
        world.publish(
            [own.locality("r1/z1"), near(), web(3).locality("r2/z1")],
            [http_service("shop/web", "10.1.0.1")],
        );
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let only = async |number: u8| {
            let asked = answers(&tunnel, &[], 10).await;
            assert_eq!(asked.into_keys().collect::<Vec<_>>(), [address(number)]);
        };
        only(2).await;
        world.publish([near().unhealthy()], []);
        until_asked(&tunnel, 3).await;
        only(3).await;
        world.publish([near()], []);
        until_asked(&tunnel, 2).await;
        only(2).await;
        for _ in 0..2 {
            assert_eq!(tunnel.get(WEB, "/at/127.0.0.2/500").await.status, 500);
        }
        assert_eq!(tunnel.get(WEB, "/").await.body, address(3), "the near one is set aside");
        until_asked(&tunnel, 2).await;
        let failures = ["reason=\"failures\""];
        assert_eq!(waypoint.counted("ambit_endpoint_ejections_total", &failures).await, 1);
    });
}

#[test]
fn one_request_waits_for_a_connection_and_one_more_is_refused() {
    world(async |world| {
        let web = world.web().await;
        let connections = Connections { most: Some(1), waiting: Some(1), ..Connections::default() };
        let policy = TrafficPolicy { connections, ..TrafficPolicy::default() };
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut asking = Vec::new();
        for _ in 0..3 {
            let mut sender = tunnel.http1(WEB).await;
            asking.push(tokio::spawn(async move { sender.send_request(get("/slow/1500")).await }));
        }
        let mut statuses = Vec::new();
        for one in asking {
            statuses.push(Told::read(one.await.unwrap().unwrap()).await.status);
        }
        statuses.sort_unstable();
        assert_eq!((statuses, web.heard().len()), (vec![200, 200, 503], 2));
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UO\""], 1).await;
        waypoint.line(&["flag=\"UO\"", "requests waiting for a connection"]).await;
        until_answered(&tunnel, "/", 200).await;
    });
}

#[test]
fn whose_requests_go_well_less_often_than_the_others_is_set_aside() {
    world(async |world| {
        let _apps = apps(2..7).await;
        let interval = Duration::from_secs(2);
        let rate = SuccessRate { factor: 1900, least_endpoints: 5, least_requests: 10, interval };
        let long = Duration::from_secs(300);
        let outliers = Outliers {
            unreachable: None,
            success_rate: Some(rate),
            base: long,
            longest: long,
            most_percent: 10,
            ..Outliers::default()
        };
        let policy = TrafficPolicy { outliers, ..balanced(Algorithm::RoundRobin) };
        world.publish((2..7).map(web), [http_service("shop/web", "10.1.0.1")]);
        world.configure("shop/web", governed(policy, vec![], Parts::default()));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let (all, rate) = ("ambit_endpoint_ejections_total", ["reason=\"success_rate\""]);
        until("the interval is over", async || {
            for _ in 0..20 {
                tunnel.get(WEB, "/at/127.0.0.6/500").await;
            }
            (waypoint.counted(all, &rate).await == 1).then_some(())
        })
        .await;
        let asked = answers(&tunnel, &[], 20).await;
        let others: Vec<_> = (2..6).map(|number| (address(number), 5)).collect();
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), others);
        assert_eq!(waypoint.counted(all, &[]).await, 1, "for no other reason");
        assert!(waypoint.dump().await.contains("success_rate"), "the page tells why");
    });
}

#[test]
fn who_answers_429_is_passed_over_while_another_does_not() {
    world(async |world| {
        let _apps = three(&world).await;
        world.configure("shop/web", Parts::default());
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let token = token(&world);
        let said = until("429", async || {
            let (status, told) = explained(&tunnel, with(&token, "/at/127.0.0.2/429/20")).await;
            (status == 429).then_some(told)
        })
        .await;
        assert_eq!(said["attempts"][0]["health"], "passed over for 20.0s, as it asks");
        let asked = answers(&tunnel, &[], 40).await;
        assert_eq!(asked.keys().collect::<Vec<_>>(), [&address(3), &address(4)]);
        assert!(waypoint.dump().await.contains("resting"), "the page tells it");
        // No more than half of them are, so that nobody is left with what all others would get.
        for number in 3..5 {
            until_answered(&tunnel, &format!("/at/127.0.0.{number}/429/20"), 429).await;
        }
        let asked = answers(&tunnel, &[], 40).await;
        assert_eq!(asked.keys().collect::<Vec<_>>(), [&address(3), &address(4)]);
        assert_eq!(waypoint.counted("ambit_endpoint_rests_total", &[]).await, 1);
        assert_eq!(waypoint.counted("ambit_endpoint_ejections_total", &[]).await, 0, "nobody is set aside");
    });
}

#[test]
fn who_does_not_say_for_how_long_is_asked_again_soon() {
    world(async |world| {
        let _apps = three(&world).await;
        world.configure("shop/web", governed(balanced(Algorithm::RoundRobin), vec![], Parts::default()));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        until_answered(&tunnel, "/at/127.0.0.2/429", 429).await;
        until_asked(&tunnel, 2).await;
        assert_eq!(waypoint.counted("ambit_endpoint_rests_total", &[]).await, 1);
    });
}

#[test]
fn who_is_told_429_is_sent_to_another_where_its_route_says_so() {
    world(async |world| {
        let apps = apps(2..4).await;
        world.publish([web(2), web(3)], [http_service("shop/web", "10.1.0.1")]);
        let again = retry::Policy::parse(&[429], Some(1), Some(Duration::from_millis(1))).unwrap();
        world.route(vec![Rule {
            matches: vec![Match::path(Path::prefix("/").unwrap())],
            backends: vec![to("shop/web", 1)],
            retry: Some(again),
            ..Rule::default()
        }]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        // It does not rest, so that each request may meet it first.
        until("a request that met it", async || {
            let told = tunnel.get(WEB, "/at/127.0.0.2/429/0").await;
            assert_eq!((told.status, told.body), (200, address(3)));
            (!apps[0].heard().is_empty()).then_some(())
        })
        .await;
        assert_eq!(waypoint.counted("ambit_request_retries_total", &[]).await, 1);
    });
}

#[test]
fn who_is_tied_to_an_endpoint_stays_while_it_rests() {
    world(async |world| {
        let _apps = three(&world).await;
        let by_header = Algorithm::Hash(HashOn::Header("x-user".parse().unwrap()));
        world.configure("shop/web", governed(balanced(by_header), vec![], Parts::default()));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let ann = [("x-user", "ann")];
        let met = answers(&tunnel, &ann, 1).await.into_keys().next().unwrap();
        let mut request = get(&format!("/at/{}/429/20", met.trim_end_matches(":8080")));
        request.headers_mut().insert("x-user", "ann".parse().unwrap());
        assert_eq!(tunnel.ask(WEB, request).await.status, 429);
        assert_eq!(
            answers(&tunnel, &ann, 5).await.into_keys().collect::<Vec<_>>(),
            std::slice::from_ref(&met)
        );
        assert!(!answers(&tunnel, &[], 20).await.contains_key(&met), "others pass over it");
    });
}
