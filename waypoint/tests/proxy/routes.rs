//! What routes do to requests.

use std::time::Duration;

use ambit_fixtures::mesh::pod;
use ambit_model::route::{
    Filter, Filters, Fraction, HeaderEdit, Match, Mirror, NewPath, Path, Redirect, Rewrite, Rule, Text,
    Timeout, Timeouts, retry,
};

use crate::world::*;

/// Another service, at 10.1.0.2, with an application of its own.
async fn other(world: &World, name: &str, number: u8) -> App {
    let app = App::start(&format!("127.0.0.{number}:8080")).await;
    let key = format!("shop/{name}");
    world.publish(
        [pod(&format!("shop/{name}-1")).at(&format!("127.0.0.{number}")).plain().behind(&key, &[(80, 8080)])],
        [http_service(&key, &format!("10.1.0.{number}"))],
    );
    app
}

fn prefix(path: &str) -> Vec<Match> {
    vec![Match::path(Path::prefix(path).unwrap())]
}

fn filters(all: Vec<Filter>) -> Filters {
    Filters::new(all).unwrap()
}

#[test]
fn requests_go_by_header_and_by_weight() {
    world(async |world| {
        let web = world.web().await;
        let canary = other(&world, "canary", 3).await;
        let by_header =
            Match::path(Path::prefix("/").unwrap()).header("x-canary".parse().unwrap(), Text::exact("yes"));
        world.route(vec![
            Rule { matches: vec![by_header], backends: vec![to("shop/canary", 1)], ..Rule::default() },
            Rule { backends: vec![to("shop/web", 90), to("shop/canary", 10)], ..Rule::default() },
        ]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut sender = tunnel.http1(WEB).await;
        for _ in 0..300 {
            sender.ready().await.unwrap();
            Told::read(sender.send_request(get("/")).await.unwrap()).await;
        }
        let (to_web, to_canary) = (web.heard().len(), canary.heard().len());
        assert_eq!(to_web + to_canary, 300);
        assert!((5..=70).contains(&to_canary), "{to_canary} of 300 at 10 percent");
        let mut request = get("/");
        request.headers_mut().insert("x-canary", "yes".parse().unwrap());
        assert_eq!(tunnel.ask(WEB, request).await.body, "127.0.0.3:8080");
        waypoint.line(&["route=\"shop/route\""]).await;
    });
}

#[test]
fn what_no_rule_takes_is_not_found() {
    world(async |world| {
        let _web = world.web().await;
        world.route(vec![Rule {
            matches: prefix("/a"),
            backends: vec![to("shop/web", 1)],
            ..Rule::default()
        }]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/a/b").await.status, 200);
        assert_eq!(tunnel.get(WEB, "/b").await.status, 404);
        assert_eq!(tunnel.get(WEB, "/a/../b").await.status, 404, "a path is what it leads to");
        waypoint.until_counted("istio_requests_total", &["response_flags=\"NR\""], 2).await;
    });
}

#[test]
fn filters_change_requests_and_responses() {
    world(async |world| {
        let web = world.web().await;
        let rewrite = Rewrite { host: None, path: Some(NewPath::prefix("/new").unwrap()) };
        let asked = HeaderEdit::parse(&[("x-set", "1")], &[("x-add", "2")], &["x-gone"]).unwrap();
        let told = HeaderEdit::parse(&[("x-told", "3")], &[], &["x-app"]).unwrap();
        let all =
            vec![Filter::Rewrite(rewrite), Filter::RequestHeaders(asked), Filter::ResponseHeaders(told)];
        let redirect = Redirect { port: Some(8443), ..Redirect::default() };
        world.route(vec![
            Rule {
                matches: prefix("/old"),
                filters: filters(all),
                backends: vec![to("shop/web", 1)],
                ..Rule::default()
            },
            Rule {
                matches: prefix("/away"),
                filters: filters(vec![Filter::Redirect(redirect)]),
                ..Rule::default()
            },
        ]);
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut request = get("/old/page?x=1");
        request.headers_mut().insert("x-gone", "0".parse().unwrap());
        let told = tunnel.ask(WEB, request).await;
        let heard = web.last();
        assert_eq!(heard.uri, "/new/page?x=1");
        assert_eq!(
            (heard.header("x-set"), heard.header("x-add"), heard.header("x-gone")),
            (Some("1"), Some("2"), None)
        );
        assert_eq!((told.header("x-told"), told.header("x-app")), (Some("3"), None));
        let told = tunnel.get(WEB, "/away/x").await;
        assert_eq!((told.status, told.header("location")), (302, Some("http://web:8443/away/x")));
    });
}

#[test]
fn what_fails_is_asked_once_more_where_the_route_says_so() {
    world(async |world| {
        let web = world.web().await;
        let policy = retry::Policy::parse(&[503], Some(2), Some(Duration::from_millis(1))).unwrap();
        world.route(vec![
            Rule {
                matches: prefix("/status"),
                retry: Some(policy),
                backends: vec![to("shop/web", 1)],
                ..Rule::default()
            },
            Rule { backends: vec![to("shop/web", 1)], ..Rule::default() },
        ]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let told = tunnel.ask(WEB, post("/status/503/2", "kept")).await;
        assert_eq!(told.status, 200);
        let bodies: Vec<_> = web.heard().into_iter().map(|heard| heard.body).collect();
        assert_eq!(bodies, ["kept", "kept", "kept"]);
        assert_eq!(tunnel.get(WEB, "/status/503").await.status, 503, "two repetitions are all");
        assert_eq!(web.heard().len(), 6);
        let long = "x".repeat(100 * 1024);
        assert_eq!(
            tunnel.ask(WEB, post("/status/503/1", long)).await.status,
            503,
            "a long body is sent once"
        );
        assert_eq!(web.heard().len(), 7);
        assert_eq!(waypoint.counted("ambit_request_retries_total", &[]).await, 4);
        waypoint.line(&["attempts=3", "status=200"]).await;
    });
}

#[test]
fn a_request_that_may_have_been_processed_is_not_repeated_unasked() {
    world(async |world| {
        let web = world.web().await;
        let waypoint = world.start().await;
        let told = world.tunnel().await.ask(WEB, post("/reset", "x")).await;
        assert_eq!(told.status, 503);
        assert_eq!(web.heard().len(), 1);
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UC\""], 1).await;
    });
}

#[test]
fn a_request_takes_no_longer_than_its_route_allows() {
    world(async |world| {
        let _web = world.web().await;
        let timeouts =
            Timeouts { request: Timeout::After(Duration::from_millis(200)), backend: Timeout::Default };
        world.route(vec![Rule { timeouts, backends: vec![to("shop/web", 1)], ..Rule::default() }]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/slow/1").await.status, 200);
        let told = tunnel.get(WEB, "/slow/60000").await;
        assert_eq!((told.status, told.body.as_str()), (504, "upstream request timeout"));
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UT\""], 1).await;
    });
}

#[test]
fn copies_go_to_mirrors_and_nobody_waits_for_them() {
    world(async |world| {
        let web = world.web().await;
        let shadow = other(&world, "shadow", 3).await;
        let mirror = Mirror { to: to("shop/shadow", 1).to, share: Fraction::ALL };
        world.route(vec![Rule {
            filters: filters(vec![Filter::Mirror(mirror)]),
            backends: vec![to("shop/web", 1)],
            ..Rule::default()
        }]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        for body in ["one", "two"] {
            assert_eq!(tunnel.ask(WEB, post("/a", body)).await.body, "127.0.0.2:8080");
        }
        assert_eq!(tunnel.get(WEB, "/b").await.status, 200);
        until("three copies", async || (shadow.heard().len() == 3).then_some(())).await;
        let told = |app: &App| {
            let mut told: Vec<_> = app.heard().into_iter().map(|heard| (heard.uri, heard.body)).collect();
            told.sort();
            told
        };
        assert_eq!(told(&web), told(&shadow));
        assert_eq!(waypoint.counted("ambit_mirrored_requests_total", &[]).await, 3);
    });
}

#[test]
fn a_change_of_routes_is_heeded_by_open_connections_and_no_request_fails() {
    world(async |world| {
        let _web = world.web().await;
        let _next = other(&world, "next", 3).await;
        world.route(vec![Rule { backends: vec![to("shop/web", 1)], ..Rule::default() }]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut sender = tunnel.http1(WEB).await;
        let mut moved = false;
        for number in 0..200 {
            sender.ready().await.unwrap();
            let told = Told::read(sender.send_request(get("/")).await.unwrap()).await;
            assert_eq!(told.status, 200, "{number}");
            moved |= told.body == "127.0.0.3:8080";
            if number == 50 {
                world.route(vec![Rule { backends: vec![to("shop/next", 1)], ..Rule::default() }]);
                waypoint.until_known("shop/next").await;
            }
        }
        assert!(moved);
    });
}

#[test]
fn a_service_that_comes_is_waited_for_and_one_that_goes_is_served_on() {
    world(async |world| {
        let _web = world.web().await;
        world.plane.remove(ambit_wire::codec::SERVICE_CONFIG, &["shop/gate/shop/web"]);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let asking = tunnel.get(WEB, "/");
        let binding = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.configure("shop/web", Default::default());
        };
        let (told, ()) = tokio::join!(asking, binding);
        assert_eq!(told.status, 200);
        world.plane.remove(ambit_wire::codec::SERVICE_CONFIG, &["shop/gate/shop/web"]);
        waypoint.until_known("\"waypoint\": []").await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
    });
}
