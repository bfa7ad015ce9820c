//! A rule of a route asks somebody else whether a request may be (ExternalAuth).

use std::{sync::Arc, time::Duration};

use ambit_fixtures::mesh::service;
use ambit_model::{
    authz::{
        self, Action, AuthorizerParts, BodyForm, CheckProtocol, GrpcCheck, Longer, OnFailure, SharedBody,
        Text,
    },
    limit::{self, LocalLimit, Rate, RateLimit},
    name::PolicyKey,
    route::{self, Cors, CorsParts, ExternalAuth, Filter, Filters, HeaderEdit},
    service_config::Parts,
};
use http::StatusCode;

use crate::{
    authorizers::{OPA, SHORT, get_with, grpc, http, on_header, parts_of, web},
    world::*,
};

/// Rules that ask, and send what may be to `shop/web`.
fn routed(filters: Vec<Filter>) -> Parts {
    let filters = Filters::new(filters).unwrap();
    parts(vec![route::Rule { filters, backends: vec![to("shop/web", 1)], ..route::Rule::default() }])
}

fn asks(parts: AuthorizerParts) -> Filter {
    Filter::ExternalAuth(ExternalAuth::Asks(Arc::new(authz::Authorizer::new(parts).unwrap())))
}

fn of_route(parts: AuthorizerParts) -> AuthorizerParts {
    AuthorizerParts { on_failure: OnFailure::Deny(StatusCode::INTERNAL_SERVER_ERROR), ..parts }
}

#[test]
fn whom_a_route_asks_allows_denies_or_fails_closed() {
    for (is_grpc, parts) in [(true, of_route(grpc())), (false, of_route(http()))] {
        world(async move |world| {
            let parts = AuthorizerParts { timeout: SHORT, ..parts };
            let app = web(&world, parts.clone()).await;
            world.configure("shop/web", routed(vec![asks(parts)]));
            let opa = if is_grpc { Authorizer::grpc(OPA).await } else { Authorizer::http(OPA).await };
            let waypoint = world.start().await;
            let tunnel = world.tunnel().await;
            let told = tunnel
                .ask(WEB, get_with("/change", &[("x-user", "eve"), ("x-secret", "s"), ("x-team", "blue")]));
            let told = told.await;
            assert_eq!((told.status, told.header("x-checked")), (200, Some("yes")));
            let heard = app.last();
            assert_eq!((heard.header("x-user"), heard.header("x-secret")), (Some("ann"), None));
            assert_eq!(opa.last().headers["x-team"], "blue");

            let told = tunnel.get(WEB, "/deny").await;
            assert_eq!((told.status, told.body.as_str(), told.header("x-why")), (401, "go away", Some("no")));
            waypoint.line(&["opa:9000, whom shop/route asks, denies it with 401", "flag=\"UAEX\""]).await;
            for path in ["/hang", "/reset", "/lie/bytes"] {
                assert_eq!(tunnel.get(WEB, path).await.status, 500, "{path}");
            }
            waypoint
                .line(&["opa:9000, whom shop/route asks, does not answer", "no complete answer within"])
                .await;
            let call = get_with("/reset", &[("content-type", "application/grpc")]);
            let told = tunnel.ask(WEB, call).await;
            assert_eq!((told.status, told.header("grpc-status")), (200, Some("2")));
            assert_eq!(app.heard().len(), 1);
            waypoint.until_counted("ambit_authorizer_checks_total", &["outcome=\"failed\""], 4).await;
            drop(opa);
            assert_eq!(tunnel.get(WEB, "/fine").await.status, 500, "nobody is there");
        });
    }
}

#[test]
fn nobody_goes_around_whom_a_route_asks() {
    world(async |world| {
        let parts = of_route(grpc());
        let app = web(&world, parts.clone()).await;
        // Of the service, nobody says what it speaks.
        let unknown = service("shop/web").vip("10.1.0.1").ports(&[(80, 8080)]).waypoint("shop/gate");
        world.publish([], [unknown]);
        let asking = route::Rule {
            matches: vec![route::Match::path(route::Path::prefix("/deny").unwrap())],
            filters: Filters::new(vec![asks(parts)]).unwrap(),
            backends: vec![to("shop/web", 1)],
            ..route::Rule::default()
        };
        let open = route::Rule { backends: vec![to("shop/web", 1)], ..route::Rule::default() };
        world.configure("shop/web", crate::world::parts(vec![asking, open]));
        let opa = Authorizer::grpc(OPA).await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/deny").await.status, 401);
        assert_eq!(tunnel.get(WEB, "/else").await.status, 200);
        // To an application that decodes it, it is another path than to routes.
        assert_eq!(tunnel.get(WEB, "/else%2fdeny").await.status, 400);
        // To an application that is lenient it is a request; here it is none.
        let lenient = b"\r\nGET /deny HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
        assert_eq!(tunnel.say(WEB, lenient).await, "");
        waypoint.line(&["asks an authorizer of requests, and this connection is not looked into"]).await;
        assert_eq!((opa.asked().len(), app.heard().len()), (1, 1));
    });
}

#[test]
fn whom_a_route_asks_is_told_the_headers_that_it_names() {
    world(async |world| {
        let check = GrpcCheck { request_headers: Some(vec![Text::Exact("x-team".into())]) };
        let named = of_route(parts_of(CheckProtocol::Grpc(check)));
        let _app = web(&world, named.clone()).await;
        world.configure("shop/web", routed(vec![asks(named)]));
        let opa = Authorizer::grpc(OPA).await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let request = get_with("/a", &[("x-team", "blue"), ("cookie", "secret=1")]);
        assert_eq!(tunnel.ask(WEB, request).await.status, 200);
        let names: Vec<_> = opa.last().headers.into_keys().collect();
        assert_eq!(names, [":authority", ":method", ":path", ":scheme", "x-team"]);
    });
}

#[test]
fn whom_a_route_asks_is_shown_bodies_up_to_a_length() {
    for (is_grpc, parts) in [(true, of_route(grpc())), (false, of_route(http()))] {
        world(async move |world| {
            let body = SharedBody { limit: 10, longer: Longer::Refused, form: BodyForm::Text };
            let parts = AuthorizerParts { body: Some(body), ..parts };
            let app = web(&world, parts.clone()).await;
            world.configure("shop/web", routed(vec![asks(parts)]));
            let opa = if is_grpc { Authorizer::grpc(OPA).await } else { Authorizer::http(OPA).await };
            let _waypoint = world.start().await;
            let tunnel = world.tunnel().await;
            assert_eq!(tunnel.ask(WEB, post("/", "0123456789")).await.status, 200);
            assert_eq!(
                (opa.last().body.as_slice(), app.last().body.as_str()),
                (&b"0123456789"[..], "0123456789")
            );
            assert_eq!(tunnel.ask(WEB, post("/", "0123456789a")).await.status, 413);
            assert_eq!((opa.asked().len(), app.heard().len()), (1, 1));
        });
    }
}

#[test]
fn a_route_that_asks_somebody_unknown_lets_nobody_pass() {
    world(async |world| {
        let app = world.web().await;
        let nobody = ExternalAuth::Nobody { reason: "RefNotPermitted".into() };
        world.configure("shop/web", routed(vec![Filter::ExternalAuth(nobody)]));
        let waypoint = world.start().await;
        let told = world.tunnel().await.get(WEB, "/").await;
        assert_eq!((told.status, told.body.as_str()), (500, ""));
        waypoint.line(&["asks somebody who is not known: RefNotPermitted", "flag=\"UAEX\""]).await;
        assert!(app.heard().is_empty());
    });
}

/// Who is denied by a policy is asked about nobody; who is denied by a route's authorizer takes no room; and its other filters
/// come after it.
#[test]
fn a_route_asks_after_policies_and_before_limits_and_other_filters() {
    world(async |world| {
        let app = web(&world, of_route(grpc())).await;
        let edit = HeaderEdit::parse(&[("x-user", "edited")], &[], &[]).unwrap();
        let origins = &["https://shop.example"][..];
        let cors = Cors::parse(&CorsParts { origins, ..CorsParts::default() }).unwrap();
        let filters = vec![Filter::RequestHeaders(edit), Filter::Cors(cors), asks(of_route(grpc()))];
        let rate = Rate::new(1, Duration::from_secs(3600), 1).unwrap();
        let limit = RateLimit {
            policy: PolicyKey::new("shop", "one"),
            scope: limit::Scope::Service { ports: [].into() },
            local: vec![Arc::new(LocalLimit::new(rate, Vec::new(), Vec::new()).unwrap())],
            global: None,
        };
        let policies = vec![on_header("no-guests", Action::Deny, "x-role", "guest")];
        world.configure("shop/web", Parts { policies, limits: vec![limit], ..routed(filters) });
        let opa = Authorizer::grpc(OPA).await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.ask(WEB, get_with("/change", &[("x-role", "guest")])).await.status, 403);
        assert!(opa.asked().is_empty(), "about what a policy denies nobody is asked");
        for _ in 0..3 {
            assert_eq!(tunnel.get(WEB, "/deny").await.status, 401);
        }
        assert_eq!(tunnel.get(WEB, "/change").await.status, 200);
        assert!(!opa.last().headers.contains_key("x-user"), "it sees what the client sent");
        assert_eq!(app.last().header("x-user"), Some("edited"), "filters have the last word");
        assert_eq!(tunnel.get(WEB, "/change").await.status, 429);
        // A preflight has no credentials, and goes no further.
        let asked = opa.asked().len();
        let mut preflight = get_with(
            "/deny",
            &[("origin", "https://shop.example"), ("access-control-request-method", "GET")],
        );
        *preflight.method_mut() = http::Method::OPTIONS;
        let status = tunnel.ask(WEB, preflight).await.status;
        assert_ne!(status, 401, "it is not asked about");
        assert_eq!(opa.asked().len(), asked);
    });
}
