//! Somebody else is asked whether a request may be.

use std::{sync::Arc, time::Duration};

use ambit_fixtures::mesh::{pod, service};
use ambit_model::{
    authz::{
        self, Action, AuthorizerParts, BodyForm, CheckProtocol, Clause, Condition, Content, GrpcCheck,
        HttpCheck, Longer, Match, OnFailure, PathMatch, Policy, RequestMatch, Rule, Scope, SharedBody, Text,
    },
    name::PolicyKey,
    route,
    service_config::Parts,
};
use http::{Request, StatusCode};
use http_body_util::Full;

use crate::world::*;

pub const OPA: &str = "127.0.0.5:9000";
/// Soon enough for a test, late enough for a busy machine.
pub const SHORT: Duration = Duration::from_millis(500);

pub fn parts_of(protocol: CheckProtocol) -> AuthorizerParts {
    AuthorizerParts {
        namespace: "shop".into(),
        hostname: "opa".into(),
        port: 9000,
        timeout: SOON,
        on_failure: OnFailure::Deny(StatusCode::FORBIDDEN),
        body: None,
        protocol,
    }
}

pub fn grpc() -> AuthorizerParts {
    parts_of(CheckProtocol::Grpc(GrpcCheck::default()))
}

pub fn http() -> AuthorizerParts {
    let names = |list: &[&str]| list.iter().map(|name| Text::Exact((*name).into())).collect::<Vec<_>>();
    parts_of(CheckProtocol::Http(Box::new(HttpCheck {
        path_prefix: "/check".into(),
        request_headers: names(&["x-team"]),
        upstream_on_allow: names(&["x-user", "x-role"]),
        downstream_on_allow: names(&["x-checked"]),
        downstream_on_deny: Some(names(&["x-why"])),
        ..HttpCheck::default()
    })))
}

fn policy(name: &str, content: Content) -> Arc<Policy> {
    Arc::new(Policy { key: PolicyKey::new("shop", name), scope: Scope::WorkloadSelector, content })
}

fn rule(request: RequestMatch) -> Rule {
    let one = Match { request: Some(Box::new(request)), ..Match::default() };
    Rule { clauses: vec![Clause { matches: vec![one] }] }
}

/// Everything but `/open` is asked about.
fn ask(parts: AuthorizerParts) -> Arc<Policy> {
    let not_paths = vec![PathMatch::Text(Text::Exact("/open".into()))];
    let authorizer = Some(Arc::new(authz::Authorizer::new(parts).unwrap()));
    let rules = vec![rule(RequestMatch { not_paths, ..RequestMatch::default() })];
    policy("ask", Content::Custom { provider: "opa".into(), authorizer, rules })
}

pub fn on_header(name: &str, action: Action, header: &str, value: &str) -> Arc<Policy> {
    let key = format!("request.headers[{header}]").parse().unwrap();
    let condition = Condition { key, values: vec![Text::Exact(value.into())], not_values: Vec::new() };
    let request = RequestMatch { conditions: vec![condition], ..RequestMatch::default() };
    policy(name, Content::Rules { action, rules: vec![rule(request)], dry_run: false })
}

fn with(policies: Vec<Arc<Policy>>) -> Parts {
    Parts { policies, ..Parts::default() }
}

/// `shop/web`, and `shop/opa` beside it.
pub async fn web(world: &World, parts: AuthorizerParts) -> App {
    let app = world.web().await;
    world.publish(
        [pod("shop/opa-1").at("127.0.0.5").plain().behind("shop/opa", &[(9000, 9000)])],
        [service("shop/opa").vip("10.1.0.5").ports(&[(9000, 9000)])],
    );
    world.configure("shop/web", with(vec![ask(parts)]));
    app
}

pub fn get_with(path: &str, headers: &[(&str, &str)]) -> Request<Full<bytes::Bytes>> {
    let mut request = get(path);
    for (name, value) in headers {
        request.headers_mut().insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    request
}

#[test]
fn who_allows_in_grpc_is_told_all_and_may_change_heads() {
    world(async |world| {
        let app = web(&world, grpc()).await;
        let opa = Authorizer::grpc(OPA).await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let told = tunnel
            .ask(WEB, get_with("/change", &[("x-user", "eve"), ("x-secret", "s"), ("x-team", "blue")]))
            .await;
        assert_eq!((told.status, told.header("x-checked")), (200, Some("yes")));
        assert_eq!(told.body, "127.0.0.2:8080", "its frame is the application's");
        let asked = opa.last();
        assert_eq!(asked.principal, "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(
            (asked.method.as_str(), asked.path.as_str(), asked.host.as_str()),
            ("GET", "/change", "web")
        );
        assert_eq!(asked.headers["x-user"], "eve");
        assert_eq!(asked.headers[":path"], "/change");
        let heard = app.last();
        assert_eq!((heard.header("x-user"), heard.header("x-secret")), (Some("ann"), None));
        assert_eq!((heard.header("x-team"), heard.header("content-length")), (Some("blue"), None));
        assert_eq!(tunnel.get(WEB, "/open").await.status, 200);
        assert_eq!(opa.asked().len(), 1, "about what no policy names nobody is asked");
        waypoint.until_counted("ambit_authorizer_checks_total", &["outcome=\"allowed\""], 1).await;
        waypoint.until_counted("ambit_authorizer_check_duration_milliseconds_count", &[], 1).await;
    });
}

#[test]
fn who_allows_in_http_is_told_what_is_named_and_heeded_in_what_is_named() {
    world(async |world| {
        let app = web(&world, http()).await;
        let opa = Authorizer::http(OPA).await;
        let _waypoint = world.start().await;
        let headers =
            [("x-user", "eve"), ("x-secret", "s"), ("x-team", "blue"), ("authorization", "Bearer t")];
        let told = world.tunnel().await.ask(WEB, get_with("/change", &headers)).await;
        assert_eq!((told.status, told.header("x-checked"), told.header("x-inner")), (200, Some("yes"), None));
        let asked = opa.last();
        assert_eq!(
            (asked.method.as_str(), asked.path.as_str(), asked.host.as_str()),
            ("GET", "/check/change", "web")
        );
        let names: Vec<_> = asked.headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["authorization", "content-length", "host", "x-team"]);
        let heard = app.last();
        assert_eq!((heard.header("x-user"), heard.header("x-secret")), (Some("ann"), None));
        assert_eq!(heard.header("x-inner"), None);
    });
}

#[test]
fn who_denies_says_what_the_client_is_told() {
    for (is_grpc, parts) in [(true, grpc()), (false, http())] {
        world(async move |world| {
            let app = web(&world, parts).await;
            let _opa = if is_grpc { Authorizer::grpc(OPA).await } else { Authorizer::http(OPA).await };
            let waypoint = world.start().await;
            let tunnel = world.tunnel().await;
            let told = tunnel.get(WEB, "/deny").await;
            assert_eq!((told.status, told.body.as_str()), (401, "go away"));
            assert_eq!((told.header("x-why"), told.header("x-inner")), (Some("no"), None));
            assert_eq!(told.header("content-length"), Some("7"));
            waypoint.line(&["opa, whom shop/ask asks, denies it with 401", "flag=\"UAEX\""]).await;
            let labels = ["response_code=\"401\"", "response_flags=\"UAEX\""];
            waypoint.until_counted("istio_requests_total", &labels, 1).await;
            waypoint.until_counted("ambit_authorizer_checks_total", &["outcome=\"denied\""], 1).await;
            let call = get_with("/deny", &[("content-type", "application/grpc")]);
            let told = tunnel.ask(WEB, call).await;
            assert_eq!((told.status, told.header("grpc-status"), told.body.as_str()), (200, Some("16"), ""));
            assert!(app.heard().is_empty());
        });
    }
}

const GRPC_LIES: [&str; 8] = ["header", "path", "status", "both", "bytes", "nothing", "call", "long"];
const HTTP_LIES: [&str; 6] = ["switch", "error", "bytes", "header", "short", "long"];

fn failures(lies: &[&str]) -> Vec<String> {
    lies.iter().map(|lie| format!("/lie/{lie}")).chain(["/hang".to_owned(), "/reset".to_owned()]).collect()
}

#[test]
fn who_does_not_answer_denies_unless_the_provider_fails_open() {
    for (is_grpc, parts, lies) in [(true, grpc(), &GRPC_LIES[..]), (false, http(), &HTTP_LIES[..])] {
        world(async move |world| {
            let parts = AuthorizerParts { timeout: SHORT, ..parts };
            let app = web(&world, parts.clone()).await;
            let opa = if is_grpc { Authorizer::grpc(OPA).await } else { Authorizer::http(OPA).await };
            let waypoint = world.start().await;
            let tunnel = world.tunnel().await;
            let failures = failures(lies);
            for path in &failures {
                let told = tunnel.get(WEB, path).await;
                assert_eq!((told.status, told.body.as_str()), (403, ""), "{path}");
                assert!(told.header("x-user").is_none() && told.header("x-role").is_none(), "{path}");
            }
            let count = u64::try_from(failures.len()).unwrap();
            waypoint.until_counted("ambit_authorizer_checks_total", &["outcome=\"failed\""], count).await;
            waypoint
                .line(&["opa, whom shop/ask asks, does not answer: ", "no complete answer within 500ms"])
                .await;
            assert!(app.heard().is_empty());
            assert_eq!(tunnel.get(WEB, "/fine").await.status, 200, "it is asked again");

            let unavailable = OnFailure::Deny(StatusCode::SERVICE_UNAVAILABLE);
            let deny = AuthorizerParts { on_failure: unavailable, ..parts.clone() };
            world.configure("shop/web", with(vec![ask(deny)]));
            until("its word for failures is another", async || {
                (tunnel.get(WEB, "/reset").await.status == 503).then_some(())
            })
            .await;

            world.configure(
                "shop/web",
                with(vec![ask(AuthorizerParts { on_failure: OnFailure::Allow, ..parts })]),
            );
            until("it fails open", async || {
                (tunnel.get(WEB, "/lie/bytes").await.status == 200).then_some(())
            })
            .await;
            assert_eq!(tunnel.get(WEB, "/hang").await.status, 200);
            assert_eq!(tunnel.get(WEB, "/deny").await.status, 401, "a no is a no");
            waypoint.line(&["it goes on, as failOpen says", "shop/ask"]).await;
            drop(opa);
            assert_eq!(tunnel.get(WEB, "/fine").await.status, 200, "nobody is there");
        });
    }
}

/// An interim answer is none, and what it says is nobody's word.
#[test]
fn an_interim_answer_is_waited_out() {
    world(async |world| {
        let app = web(&world, http()).await;
        let _opa = Authorizer::http(OPA).await;
        let _waypoint = world.start().await;
        assert_eq!(world.tunnel().await.get(WEB, "/lie/interim").await.status, 200);
        assert_eq!(app.last().header("x-user"), Some("ann"));
    });
}

#[test]
fn whom_the_mesh_does_not_have_cannot_be_asked() {
    world(async |world| {
        let app = world.web().await;
        world.configure("shop/web", with(vec![ask(grpc())]));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 403);
        waypoint.line(&["does not answer: the mesh has no service opa"]).await;
        assert!(app.heard().is_empty());
    });
}

#[test]
fn a_body_is_shown_as_far_as_it_was_asked_for_and_goes_on_whole() {
    for (is_grpc, parts) in [(true, grpc()), (false, http())] {
        world(async move |world| {
            let shared = SharedBody { limit: 1000, longer: Longer::Cut, form: BodyForm::Bytes };
            let cut = AuthorizerParts { body: Some(shared), ..parts.clone() };
            let app = web(&world, cut).await;
            let opa = if is_grpc { Authorizer::grpc(OPA).await } else { Authorizer::http(OPA).await };
            let _waypoint = world.start().await;
            let tunnel = world.tunnel().await;
            let long = "x".repeat(300_000);
            for (body, shown, partial) in
                [("", "", "false"), ("short", "short", "false"), (&long, &long[..1000], "true")]
            {
                assert_eq!(tunnel.ask(WEB, post("/", body.to_owned())).await.status, 200);
                let asked = opa.last();
                assert_eq!(asked.body, shown.as_bytes());
                assert_eq!(asked.headers["x-envoy-auth-partial-body"], partial);
                let heard = app.last();
                assert_eq!(heard.body, body);
                assert_eq!(heard.header("x-envoy-auth-partial-body"), None);
            }

            let refused = SharedBody { longer: Longer::Refused, form: BodyForm::Text, ..shared };
            let parts = AuthorizerParts { body: Some(refused), ..parts };
            world.configure("shop/web", with(vec![ask(parts)]));
            until("a long body is refused", async || {
                (tunnel.ask(WEB, post("/", long.clone())).await.status == 413).then_some(())
            })
            .await;
            let (asked, heard) = (opa.asked().len(), app.heard().len());
            let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 1001, &long[..1001]);
            let head =
                "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            let told = tunnel.say(WEB, format!("{head}{chunk}").as_bytes()).await;
            assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
            assert_eq!((opa.asked().len(), app.heard().len()), (asked, heard), "nobody was asked");
            assert_eq!(tunnel.ask(WEB, post("/", "y".repeat(1000))).await.status, 200);
            assert_eq!(opa.last().body.len(), 1000);
        });
    }
}

#[test]
fn policies_and_routes_see_what_an_authorizer_changed() {
    world(async |world| {
        let app = web(&world, grpc()).await;
        let _opa = Authorizer::grpc(OPA).await;
        let canary = App::start("127.0.0.3:8080").await;
        world.publish(
            [pod("shop/new-1").at("127.0.0.3").plain().behind("shop/new", &[(80, 8080)])],
            [http_service("shop/new", "10.1.0.3")],
        );
        let tester = route::Match::path(route::Path::prefix("/").unwrap())
            .header(http::HeaderName::from_static("x-role"), route::Text::exact("tester"));
        let rules = vec![
            route::Rule {
                matches: vec![tester],
                backends: vec![to("shop/new", 1)],
                ..route::Rule::default()
            },
            route::Rule { backends: vec![to("shop/web", 1)], ..route::Rule::default() },
        ];
        let policies = vec![
            ask(grpc()),
            on_header("no-guests", Action::Deny, "x-role", "guest"),
            on_header("testers", Action::Allow, "x-role", "tester"),
            on_header("users", Action::Allow, "x-role", "user"),
        ];
        world.configure("shop/web", Parts { policies, ..parts(rules) });
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/role/user").await.body, "127.0.0.2:8080");
        assert_eq!(tunnel.get(WEB, "/role/tester").await.body, "127.0.0.3:8080");
        for path in ["/role/guest", "/role/other", "/fine"] {
            assert_eq!(tunnel.get(WEB, path).await.status, 403, "{path}: who may ask is not yet let in");
        }
        waypoint.line(&["denied by policy: shop/no-guests"]).await;
        let forged = get_with("/role/guest", &[("x-role", "user")]);
        assert_eq!(tunnel.ask(WEB, forged).await.status, 403, "what the client says is replaced");
        assert_eq!((app.heard().len(), canary.heard().len()), (1, 1));
    });
}

#[test]
fn about_bytes_nobody_is_asked() {
    world(async |world| {
        let _app = web(&world, grpc()).await;
        let opa = Authorizer::grpc(OPA).await;
        world.publish(
            [],
            [http_service("shop/web", "10.1.0.1").with(|service| {
                service.app_protocols = [(80, ambit_model::service::AppProtocol::Tcp)].into();
            })],
        );
        let waypoint = world.start().await;
        // It is reset when it is opened, or when something is said on it.
        let opened = world.tunnel().await.connect(WEB).await;
        waypoint.line(&["shop/ask asks opa of requests, and this connection is not looked into"]).await;
        drop(opened);
        assert!(opa.asked().is_empty());
    });
}
