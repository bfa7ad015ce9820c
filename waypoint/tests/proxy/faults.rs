//! Failures on purpose, and rules that are tried in order, as VirtualServices ask for them.

use std::time::{Duration, Instant};

use ambit_model::route::{
    Abort, Delay, Fault, Filter, Filters, Fraction, GrpcCode, Match, Origin, Path, Route, RouteKey, Rule,
    Timeout, Timeouts, With,
};
use ambit_model::service_config::{Attached, Parts};
use http::StatusCode;

use crate::world::*;

const HELD: Duration = Duration::from_millis(300);

/// These rules, of which the first that matches takes a request.
fn in_order(rules: Vec<Rule>) -> Parts {
    let origin = Origin { created: 1, key: RouteKey::new("shop", "virtual") };
    let route = Route::in_order(origin, rules).unwrap();
    Parts { http: vec![Attached { ports: [80].into(), consumers: "".into(), route }], ..Parts::default() }
}

fn beginning(path: &str) -> Vec<Match> {
    vec![Match::path(Path::beginning(path).unwrap())]
}

/// A rule for paths that begin so, which does this to so many of a hundred.
fn failing(path: &str, percent: u32, delay: Option<Duration>, with: Option<With>) -> Rule {
    let share = Fraction::percent(percent).unwrap();
    let delay = delay.map(|time| Delay { share, time });
    let fault = Fault::new(delay, with.map(|with| Abort { share, with })).unwrap();
    Rule {
        name: Some("failing".into()),
        matches: beginning(path),
        filters: Filters::new(vec![Filter::Fault(fault)]).unwrap(),
        backends: vec![to("shop/web", 1)],
        ..Rule::default()
    }
}

fn plain() -> Rule {
    Rule { backends: vec![to("shop/web", 1)], ..Rule::default() }
}

const UNAVAILABLE: With = With::Http(StatusCode::SERVICE_UNAVAILABLE);

#[test]
fn the_first_rule_takes_a_request_where_order_counts() {
    world(async |world| {
        let _web = world.web().await;
        let gone =
            |path, status| failing(path, 100, None, Some(With::Http(StatusCode::from_u16(status).unwrap())));
        let exact = Rule { matches: vec![Match::path(Path::exact("/foo/bar").unwrap())], ..gone("/", 508) };
        world.configure("shop/web", in_order(vec![gone("/foo", 507), exact, plain()]));
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/foo/bar").await.status, 507, "the exact path comes later");
        assert_eq!(tunnel.get(WEB, "/foobar").await.status, 507, "characters, not segments");
        assert_eq!(tunnel.get(WEB, "/fo").await.status, 200);
    });
}

#[test]
fn what_is_held_back_is_answered_later() {
    world(async |world| {
        let web = world.web().await;
        world.configure("shop/web", in_order(vec![failing("/slow", 100, Some(HELD), None), plain()]));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let began = Instant::now();
        assert_eq!(tunnel.get(WEB, "/slow").await.status, 200);
        assert!(began.elapsed() >= HELD, "{:?}", began.elapsed());
        assert_eq!(tunnel.get(WEB, "/").await.status, 200);
        assert_eq!(web.heard().len(), 2);
        waypoint.line(&["flag=\"DI\"", "status=200", "route=\"shop/virtual/failing\""]).await;
        waypoint.until_counted("istio_requests_total", &["response_flags=\"DI\""], 1).await;
        waypoint.until_counted("ambit_faults_total", &["outcome=\"delayed\""], 1).await;
    });
}

#[test]
fn what_is_aborted_reaches_nobody() {
    world(async |world| {
        let web = world.web().await;
        let unavailable = With::Grpc(GrpcCode::parse("UNAVAILABLE").unwrap());
        world.configure(
            "shop/web",
            in_order(vec![
                failing("/gone", 100, None, Some(UNAVAILABLE)),
                failing("/call", 100, None, Some(unavailable)),
                failing("/never", 0, Some(HELD), Some(UNAVAILABLE)),
                plain(),
            ]),
        );
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let told = tunnel.get(WEB, "/gone").await;
        assert_eq!((told.status, told.body.as_str()), (503, "fault filter abort"));
        let told = tunnel.get(WEB, "/call").await;
        assert_eq!(told.status, 503, "who makes no call is told in HTTP");
        let mut call = get("/call");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let told = tunnel.ask(WEB, call).await;
        assert_eq!((told.status, told.header("grpc-status")), (200, Some("14")));
        assert!(web.heard().is_empty());
        assert_eq!(tunnel.get(WEB, "/never").await.status, 200);
        waypoint.line(&["flag=\"FI\"", "status=503", "shop/virtual/failing"]).await;
        waypoint.until_counted("istio_requests_total", &["response_flags=\"FI\""], 3).await;
        waypoint.until_counted("ambit_faults_total", &["outcome=\"aborted\""], 3).await;
    });
}

#[test]
fn the_time_of_a_request_runs_while_it_is_held_back() {
    world(async |world| {
        let web = world.web().await;
        let timeouts = Timeouts { request: Timeout::After(HELD), ..Timeouts::default() };
        let slow = Rule { timeouts, ..failing("/", 100, Some(Duration::from_secs(60)), None) };
        world.configure("shop/web", in_order(vec![slow]));
        let waypoint = world.start().await;
        let told = world.tunnel().await.get(WEB, "/").await;
        assert_eq!(told.status, 504);
        assert!(web.heard().is_empty());
        waypoint.line(&["flag=\"UT\""]).await;
    });
}
