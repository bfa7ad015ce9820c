//! Routes as users write them: what a waypoint is told of a service, and what their authors are told.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[macro_use]
mod support;

use std::{sync::Arc, time::Duration};

use ambit_controller::cluster::object::{Kind, Parsed};
use ambit_controller::cluster::{Cluster, Settings};
use ambit_controller::source::standing::{Standing, Verdict, judge};
use ambit_model::authz::{
    Authorizer, AuthorizerParts, BodyForm, CHECK_TIMEOUT, CheckProtocol, GrpcCheck, HttpCheck, Longer,
    OnFailure, SharedBody, Text as Asks,
};
use ambit_model::name::ServiceKey;
use ambit_model::route::{
    Backend, Cors, CorsParts, Destination, ExternalAuth, Filter, Filters, Fraction, HeaderEdit, Lifetime,
    Match, Mirror, NewHost, NewPath, Path, Redirect, RedirectStatus, Rewrite, Rule, Scheme, Session,
    SessionKey, Text, Timeouts, retry,
};
use http::{HeaderName, Method, StatusCode};
use support::{GATE, at_the_door, cluster, conditions, config, objects};

const WEB: &str = "shop/web.shop.svc.cluster.local";

/// Services of two namespaces, those of `shop` bound to a waypoint.
const SHOP: &str = concat!(
    shop_at_gate!(),
    "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: http-admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}, {name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: safe}
spec: {clusterIP: 10.1.0.3, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec:
  hosts: [a.example.com, b.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
---
"
);

fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn to_web(kind: &str, rule: &str) -> String {
    let spec = format!("{{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{rule}]}}");
    route(kind, "shop", "r", &spec)
}

fn shop(routes: &str) -> Cluster {
    cluster(&format!("{SHOP}{routes}"))
}

/// The only rule that a waypoint is told of `web`.
fn rule(kind: &str, yaml: &str) -> Rule {
    let config = config(&shop(&to_web(kind, yaml)), GATE, WEB).unwrap();
    let [attached] = config.parts().http.as_slice() else { panic!("one route: {yaml}") };
    let [rule] = attached.route.rules() else { panic!("one rule: {yaml}") };
    Rule::clone(rule)
}

fn service(name: &str) -> Destination {
    let host = format!("{name}.shop.svc.cluster.local");
    Destination::Service { service: ServiceKey::new("shop", host), port: 80, subset: None }
}

fn header(name: &str) -> HeaderName {
    name.parse().unwrap()
}

fn matching(matches: Match) -> Rule {
    Rule { matches: vec![matches], ..Rule::default() }
}

fn filtered(filter: Filter) -> Rule {
    let filters = Filters::new(vec![filter]).unwrap();
    Rule { matches: vec![Match::default()], filters, ..Rule::default() }
}

#[test]
fn every_match_is_what_is_written() {
    let path = |path| Match::path(path);
    let table = [
        ("{matches: [{path: {type: Exact, value: /a}}]}", path(Path::exact("/a").unwrap())),
        ("{matches: [{path: {type: PathPrefix, value: /a}}]}", path(Path::prefix("/a").unwrap())),
        ("{matches: [{path: {value: /a}}]}", path(Path::prefix("/a").unwrap())),
        ("{matches: [{path: {type: RegularExpression, value: '/a+'}}]}", path(Path::pattern("/a+").unwrap())),
        ("{matches: [{method: PATCH}]}", Match::default().method(Method::PATCH)),
        ("{matches: [{}]}", Match::default()),
        ("{}", Match::default()),
        (
            "{matches: [{headers: [{name: X-A, value: b}, {type: RegularExpression, name: c, value: d.*}]}]}",
            Match::default()
                .header(header("x-a"), Text::exact("b"))
                .header(header("c"), Text::pattern("d.*").unwrap()),
        ),
        (
            "{matches: [{queryParams: [{name: A, value: b}, {type: RegularExpression, name: c, value: d.*}]}]}",
            Match::default().query("A", Text::exact("b")).query("c", Text::pattern("d.*").unwrap()),
        ),
    ];
    for (yaml, expected) in table {
        assert_eq!(rule("HTTPRoute", yaml), matching(expected), "{yaml}");
    }
    let grpc = |service, method| matching(Match::path(Path::grpc(service, method).unwrap()));
    let exact = |text: &str| Some(Text::exact(text));
    let table = [
        ("{matches: [{method: {service: shop.Cart, method: Add}}]}", grpc(exact("shop.Cart"), exact("Add"))),
        ("{matches: [{method: {service: shop.Cart}}]}", grpc(exact("shop.Cart"), None)),
        (
            "{matches: [{method: {type: RegularExpression, method: 'Get.*'}}]}",
            grpc(None, Some(Text::pattern("Get.*").unwrap())),
        ),
        (
            "{matches: [{headers: [{name: a, value: b}]}]}",
            matching(Match::default().header(header("a"), Text::exact("b"))),
        ),
        ("{}", matching(Match::default())),
    ];
    for (yaml, expected) in table {
        assert_eq!(rule("GRPCRoute", yaml), expected, "{yaml}");
    }
}

#[test]
fn every_filter_is_what_is_written() {
    let edit = HeaderEdit::parse(&[("a", "1")], &[("b", "2")], &["c"]).unwrap();
    let written = "{set: [{name: a, value: '1'}], add: [{name: b, value: '2'}], remove: [c]}";
    let mirror = |share| Filter::Mirror(Mirror { to: service("v2"), share });
    let cors = CorsParts {
        origins: &["https://*.example.com"],
        credentials: true,
        methods: &["GET"],
        headers: &["x-a"],
        exposed: &["x-b"],
        max_age: Some(60),
    };
    let table = [
        (
            format!("type: RequestHeaderModifier, requestHeaderModifier: {written}"),
            Filter::RequestHeaders(edit.clone()),
        ),
        (
            format!("type: ResponseHeaderModifier, responseHeaderModifier: {written}"),
            Filter::ResponseHeaders(edit),
        ),
        (
            "type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}".to_owned(),
            mirror(Fraction::ALL),
        ),
        (
            "type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 42}".to_owned(),
            mirror(Fraction::percent(42).unwrap()),
        ),
        (
            "type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, fraction: {numerator: 1, denominator: 3}}".to_owned(),
            mirror(Fraction::new(1, 3).unwrap()),
        ),
        (
            "type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, fraction: {numerator: 5}}".to_owned(),
            mirror(Fraction::new(5, 100).unwrap()),
        ),
        (
            "type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example.com, port: 8443, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /b}}".to_owned(),
            Filter::Redirect(Redirect {
                scheme: Some(Scheme::Https),
                host: Some(NewHost::parse("new.example.com").unwrap()),
                port: Some(8443),
                path: Some(NewPath::full("/b").unwrap()),
                status: RedirectStatus::new(308).unwrap(),
            }),
        ),
        (
            "type: URLRewrite, urlRewrite: {hostname: new.example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}".to_owned(),
            Filter::Rewrite(Rewrite {
                host: Some(NewHost::parse("new.example.com").unwrap()),
                path: Some(NewPath::prefix("/b").unwrap()),
            }),
        ),
        (
            "type: CORS, cors: {allowOrigins: ['https://*.example.com'], allowCredentials: true, allowMethods: [GET], allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 60}".to_owned(),
            Filter::Cors(Cors::parse(&cors).unwrap()),
        ),
    ];
    for (yaml, expected) in table {
        let told = rule("HTTPRoute", &format!("{{filters: [{{{yaml}}}]}}"));
        assert_eq!(told, filtered(expected.clone()), "{yaml}");
        // A backend has them, too; a redirect has no backends.
        if !matches!(expected, Filter::Redirect(_)) {
            let backend = format!("{{backendRefs: [{{name: v2, port: 80, filters: [{{{yaml}}}]}}]}}");
            let filters = Filters::new(vec![expected]).unwrap();
            let backends = vec![Backend { to: service("v2"), weight: 1, filters }];
            assert_eq!(rule("HTTPRoute", &backend).backends, backends, "{backend}");
        }
    }
}

#[test]
fn backends_times_repetitions_and_sessions_are_what_is_written() {
    let backend = |name, weight| Backend { to: service(name), weight, filters: Filters::default() };
    let weighted = rule(
        "HTTPRoute",
        "{backendRefs: [{name: web, port: 80, weight: 90}, {name: v2, port: 80}, {kind: Service, group: '', name: v2, port: 80, weight: 0}]}",
    );
    assert_eq!(weighted.backends, [backend("web", 90), backend("v2", 1), backend("v2", 0)]);
    let entry = rule(
        "HTTPRoute",
        "{backendRefs: [{group: networking.istio.io, kind: ServiceEntry, name: out, port: 80}]}",
    );
    let first =
        Destination::Service { service: ServiceKey::new("shop", "a.example.com"), port: 80, subset: None };
    assert_eq!(entry.backends, [Backend { to: first, weight: 1, filters: Filters::default() }]);

    let timed = rule(
        "HTTPRoute",
        "{name: slow, timeouts: {request: 10s, backendRequest: 0s}, retry: {codes: [500, 503], attempts: 3, backoff: 250ms}}",
    );
    assert_eq!(timed.name.as_ref().map(|name| name.as_str()), Some("slow"));
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(timed.timeouts, Timeouts { request: seconds(10).into(), backend: seconds(0).into() });
    let policy = retry::Policy::parse(&[500, 503], Some(3), Some(Duration::from_millis(250))).unwrap();
    assert_eq!(timed.retry, Some(policy));
    assert_eq!(rule("HTTPRoute", "{}").retry, None);

    let session = |key| Session { key, absolute: None, idle: None, lifetime: Lifetime::Session };
    let table = [
        ("{}", session(SessionKey::Cookie("ambit-session".into()))),
        ("{sessionName: s, type: Header}", session(SessionKey::Header(header("s")))),
        (
            "{sessionName: s, absoluteTimeout: 24h, idleTimeout: 10m, cookieConfig: {lifetimeType: Permanent}}",
            Session {
                absolute: seconds(24 * 3600),
                idle: seconds(600),
                lifetime: Lifetime::Permanent,
                ..session(SessionKey::Cookie("s".into()))
            },
        ),
    ];
    for (yaml, expected) in table {
        for kind in ["HTTPRoute", "GRPCRoute"] {
            assert_eq!(
                rule(kind, &format!("{{sessionPersistence: {yaml}}}")).session,
                Some(expected.clone())
            );
        }
    }
}

fn asking(auth: &str) -> String {
    format!("{{filters: [{{type: ExternalAuth, externalAuth: {{{auth}}}}}]}}")
}

#[test]
fn whom_a_route_asks_is_told_as_it_is_written() {
    let names = |list: &[&str]| list.iter().map(|name| Asks::Exact((*name).into())).collect::<Vec<_>>();
    let parts = |protocol, body| AuthorizerParts {
        namespace: "shop".into(),
        hostname: "v2.shop.svc.cluster.local".into(),
        port: 80,
        timeout: CHECK_TIMEOUT,
        on_failure: OnFailure::Deny(StatusCode::INTERNAL_SERVER_ERROR),
        body,
        protocol,
    };
    let grpc = |request_headers| CheckProtocol::Grpc(GrpcCheck { request_headers });
    let http = |check| CheckProtocol::Http(Box::new(check));
    let everything = HttpCheck { upstream_on_allow: vec![Asks::Presence], ..HttpCheck::default() };
    let body = |limit| Some(SharedBody { limit, longer: Longer::Refused, form: BodyForm::Text });
    let table = [
        ("protocol: GRPC, grpc: {}", parts(grpc(None), None)),
        ("protocol: GRPC", parts(grpc(None), None)),
        (
            "protocol: GRPC, grpc: {allowedHeaders: [X-A, cookie]}",
            parts(grpc(Some(names(&["x-a", "cookie"]))), None),
        ),
        ("protocol: HTTP, http: {}", parts(http(everything.clone()), None)),
        ("protocol: HTTP, http: {path: /}, forwardBody: {}", parts(http(everything.clone()), None)),
        ("protocol: HTTP, forwardBody: {maxSize: 0}", parts(http(everything.clone()), None)),
        ("protocol: HTTP, forwardBody: {maxSize: 1024}", parts(http(everything), body(1024))),
        (
            "protocol: HTTP, http: {path: /check/, allowedHeaders: [Cookie], allowedResponseHeaders: [x-user]}",
            parts(
                http(HttpCheck {
                    path_prefix: "/check".into(),
                    request_headers: names(&["cookie"]),
                    upstream_on_allow: names(&["x-user"]),
                    ..HttpCheck::default()
                }),
                None,
            ),
        ),
    ];
    for (yaml, parts) in table {
        let auth = ExternalAuth::Asks(Arc::new(Authorizer::new(parts).unwrap()));
        let yaml = asking(&format!("{yaml}, backendRef: {{name: v2, port: 80}}"));
        assert_eq!(rule("HTTPRoute", &yaml), filtered(Filter::ExternalAuth(auth)), "{yaml}");
    }
}

#[test]
fn whom_a_route_cannot_ask_lets_nobody_pass() {
    let grant = "
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: g, namespace: safe}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service}]
---
";
    for (backend, grants, reason) in [
        ("{name: gone, port: 80}", "", "BackendNotFound"),
        ("{name: v2, port: 9}", "", "BackendNotFound"),
        ("{name: v2, port: 443}", "", "UnsupportedProtocol"),
        ("{kind: Secret, name: v2, port: 80}", "", "InvalidKind"),
        ("{name: vault, namespace: safe, port: 80}", "", "RefNotPermitted"),
        ("{name: vault, namespace: safe, port: 80}", grant, "ResolvedRefs"),
        ("{group: networking.istio.io, kind: ServiceEntry, name: out, port: 80}", "", "ResolvedRefs"),
    ] {
        let yaml = asking(&format!("protocol: GRPC, backendRef: {backend}"));
        let cluster = shop(&(to_web("HTTPRoute", &yaml) + grants));
        let told = conditions(&cluster, Kind::HttpRoute, "shop", "r");
        let is_resolved = reason == "ResolvedRefs";
        assert_eq!(
            told[..2],
            ["Accepted=true Accepted".to_owned(), format!("ResolvedRefs={is_resolved} {reason}")]
        );
        let config = config(&cluster, GATE, WEB).unwrap();
        let rule = config.parts().http[0].route.rules()[0].clone();
        match rule.filters.as_slice() {
            [Filter::ExternalAuth(ExternalAuth::Asks(_))] => assert!(is_resolved, "{backend}"),
            [Filter::ExternalAuth(ExternalAuth::Nobody { reason: told })] => {
                assert_eq!(told.as_str(), reason, "{backend}");
            }
            other => panic!("{backend}: {other:?}"),
        }
    }
}

#[test]
fn a_route_that_asks_and_makes_no_sense_lets_nobody_pass() {
    let rules = |yaml: &str| {
        let Parsed::Bad { instead: Some(instead), .. } = at_the_door(&to_web("HTTPRoute", yaml)) else {
            panic!("{yaml} makes sense")
        };
        let known = [objects(SHOP), vec![instead]].concat();
        let cluster = support::of_objects(Settings::default(), known);
        let config = config(&cluster, GATE, WEB).unwrap();
        config.parts().http.iter().map(|one| one.route.rules()[0].filters.clone()).collect::<Vec<_>>()
    };
    let senseless = asking("protocol: SMOKE, backendRef: {name: v2, port: 80}");
    let [filters] = &rules(&senseless)[..] else { panic!("it is told of") };
    assert!(matches!(filters.as_slice(), [Filter::ExternalAuth(ExternalAuth::Nobody { .. })]));
    // One that asks nobody leaves the service to itself.
    assert!(rules("{filters: [{type: CORS}]}").is_empty());
}

#[test]
fn what_makes_no_sense_or_is_not_supported_is_refused_with_its_field() {
    const REDIRECT: &str = "{type: RequestRedirect, requestRedirect: {}}";
    let table = [
        ("HTTPRoute", "{matches: [{path: {value: a}}]}", "spec.rules[0].matches[0].path"),
        (
            "HTTPRoute",
            "{matches: [{}, {path: {type: Glob, value: /a}}]}",
            "spec.rules[0].matches[1].path.type",
        ),
        (
            "HTTPRoute",
            "{matches: [{path: {type: RegularExpression, value: '('}}]}",
            "spec.rules[0].matches[0].path",
        ),
        ("HTTPRoute", "{matches: [{method: get}]}", "spec.rules[0].matches[0].method"),
        (
            "HTTPRoute",
            "{matches: [{headers: [{name: ':path', value: a}]}]}",
            "spec.rules[0].matches[0].headers[0].name",
        ),
        (
            "HTTPRoute",
            "{matches: [{queryParams: [{name: a, type: RegularExpression, value: '('}]}]}",
            "spec.rules[0].matches[0].queryParams[0].value",
        ),
        ("HTTPRoute", "{matches: [{hosts: [a]}]}", "spec.rules[0].matches[0].hosts"),
        (
            "HTTPRoute",
            "{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]}",
            "spec.rules[0].filters[0].type",
        ),
        ("HTTPRoute", "{filters: [{type: ExternalAuth}]}", "spec.rules[0].filters[0].externalAuth"),
        (
            "HTTPRoute",
            "{filters: [{type: CORS, cors: {}, externalAuth: {protocol: HTTP, backendRef: {name: v2, port: 80}}}]}",
            "spec.rules[0].filters[0].externalAuth",
        ),
        (
            "HTTPRoute",
            "{backendRefs: [{name: v2, port: 80, filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v2, port: 80}}}]}]}",
            "spec.rules[0]",
        ),
        (
            "GRPCRoute",
            "{filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: v2, port: 80}}}]}",
            "spec.rules[0].filters[0].type",
        ),
        ("HTTPRoute", "{filters: [{type: Compress}]}", "spec.rules[0].filters[0].type"),
        ("HTTPRoute", "{filters: [{type: CORS}]}", "spec.rules[0].filters[0].cors"),
        (
            "HTTPRoute",
            "{filters: [{type: CORS, cors: {}, urlRewrite: {}}]}",
            "spec.rules[0].filters[0].urlRewrite",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: CORS, cors: {allowOrigins: [a.b]}}]}",
            "spec.rules[0].filters[0].cors",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [host]}}]}",
            "spec.rules[0].filters[0].requestHeaderModifier",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2}}}]}",
            "spec.rules[0].filters[0].requestMirror.backendRef.port",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 101}}]}",
            "spec.rules[0].filters[0].requestMirror",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 1, fraction: {numerator: 1}}}]}",
            "spec.rules[0].filters[0].requestMirror",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]}",
            "spec.rules[0].filters[0].requestRedirect.statusCode",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp}}]}",
            "spec.rules[0].filters[0].requestRedirect.scheme",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath}}}]}",
            "spec.rules[0].filters[0].urlRewrite.path",
        ),
        (
            "HTTPRoute",
            "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            "spec.rules[0]",
        ),
        (
            "HTTPRoute",
            "{filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]}",
            "spec.rules[0].filters",
        ),
        ("HTTPRoute", "{}, {name: a}, {name: a}", "spec.rules[2]"),
        ("HTTPRoute", "{backendRefs: [{name: v2}]}", "spec.rules[0].backendRefs[0].port"),
        ("HTTPRoute", "{backendRefs: [{name: v2, port: 0}]}", "spec.rules[0].backendRefs[0].port"),
        (
            "HTTPRoute",
            "{backendRefs: [{name: v2, port: 80, weight: 1000001}]}",
            "spec.rules[0].backendRefs[0].weight",
        ),
        (
            "HTTPRoute",
            "{backendRefs: [{name: v2, port: 80, subset: a}]}",
            "spec.rules[0].backendRefs[0].subset",
        ),
        ("HTTPRoute", "{timeouts: {request: 10}}", "spec.rules[0].timeouts.request"),
        ("HTTPRoute", "{timeouts: {request: 1d}}", "spec.rules[0].timeouts.request"),
        ("HTTPRoute", "{timeouts: {request: 1s, backendRequest: 2s}}", "spec.rules[0]"),
        ("HTTPRoute", "{retry: {codes: [200]}}", "spec.rules[0].retry.codes"),
        ("HTTPRoute", "{retry: {perTryTimeout: 1s}}", "spec.rules[0].retry.perTryTimeout"),
        (
            "HTTPRoute",
            "{sessionPersistence: {type: Header, cookieConfig: {lifetimeType: Session}}}",
            "spec.rules[0].sessionPersistence.cookieConfig",
        ),
        (
            "HTTPRoute",
            "{sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}}",
            "spec.rules[0].sessionPersistence.absoluteTimeout",
        ),
        (
            "HTTPRoute",
            "{sessionPersistence: {sessionName: 'a b'}}",
            "spec.rules[0].sessionPersistence.sessionName",
        ),
        ("GRPCRoute", "{matches: [{method: {service: a/b}}]}", "spec.rules[0].matches[0].method"),
        (
            "GRPCRoute",
            "{matches: [{method: {type: RegularExpression, method: '('}}]}",
            "spec.rules[0].matches[0].method.method",
        ),
        ("GRPCRoute", "{matches: [{method: {verb: Get}}]}", "spec.rules[0].matches[0].method.verb"),
        ("HTTPRoute", "{matches: [{path: {prefix: /a}}]}", "spec.rules[0].matches[0].path.prefix"),
        ("GRPCRoute", "{timeouts: {request: 1s}}", "spec.rules[0].timeouts"),
        ("TCPRoute", "{backendRefs: [{name: v2, port: 80}]}, {}", "spec.rules"),
        ("TCPRoute", "{backendRefs: [{name: v2, port: 80, filters: [{type: CORS, cors: {}}]}]}", "spec"),
    ];
    let refused = |yaml: &str| match at_the_door(yaml) {
        Parsed::Bad { rejection, instead } => {
            assert!(instead.is_some() && !rejection.remedy.is_empty(), "{rejection}");
            rejection.field
        }
        other @ (Parsed::Object(_) | Parsed::Unknown) => panic!("{yaml}: {other:?}"),
    };
    for (kind, yaml, field) in table {
        assert_eq!(refused(&to_web(kind, yaml)), field, "{yaml}");
    }
    for (auth, field) in [
        ("protocol: SMTP, backendRef: {name: v2, port: 80}", ".protocol"),
        ("protocol: HTTP, backendRef: {name: v2}", ".backendRef.port"),
        ("protocol: HTTP, backendRef: {name: v2, port: 80, weight: 1}", ".backendRef"),
        ("protocol: HTTP, backendRef: {name: v2, port: 80}, grpc: {}", ".grpc"),
        ("protocol: GRPC, backendRef: {name: v2, port: 80}, http: {}", ".http"),
        ("protocol: GRPC, backendRef: {name: v2, port: 80}, failOpen: true", ".failOpen"),
        ("protocol: GRPC, backendRef: {name: v2, port: 80}, grpc: {headers: []}", ".grpc.headers"),
        ("protocol: HTTP, backendRef: {name: v2, port: 80}, http: {path: check}", ".http.path"),
        ("protocol: HTTP, backendRef: {name: v2, port: 80}, http: {path: /a/../b}", ".http.path"),
        ("protocol: HTTP, backendRef: {name: v2, port: 80}, http: {path: '/a?b'}", ".http.path"),
        (
            "protocol: HTTP, backendRef: {name: v2, port: 80}, http: {allowedHeaders: [a, 'b c']}",
            ".http.allowedHeaders[1]",
        ),
        (
            "protocol: HTTP, backendRef: {name: v2, port: 80}, forwardBody: {maxSize: 2000000}",
            ".forwardBody.maxSize",
        ),
    ] {
        let rule = format!("{{filters: [{{type: ExternalAuth, externalAuth: {{{auth}}}}}]}}");
        let field = format!("spec.rules[0].filters[0].externalAuth{field}");
        assert_eq!(refused(&to_web("HTTPRoute", &rule)), field, "{auth}");
    }
    let redirected = format!("{{filters: [{REDIRECT}], backendRefs: [{{name: v2, port: 80}}]}}");
    assert_eq!(refused(&to_web("HTTPRoute", &redirected)), "spec.rules[0]");
    assert_eq!(
        refused(&to_web("GRPCRoute", &format!("{{filters: [{REDIRECT}]}}"))),
        "spec.rules[0].filters[0].type"
    );
    let parent = "{parentRefs: [{group: '', kind: Service, name: web, port: 70000}]}";
    assert_eq!(refused(&route("HTTPRoute", "shop", "r", parent)), "spec.parentRefs[0].port");
    let name = "{parentRefs: [{group: '', kind: Service, name: web}], hostnames: ['*.*.a'], rules: [{}]}";
    assert_eq!(refused(&route("TLSRoute", "shop", "r", name)), "spec");
}

#[test]
fn routes_that_are_no_affair_of_the_mesh_are_not_looked_into() {
    let spec = "{parentRefs: [{name: front}], rules: [{filters: [{type: Whatever}]}]}";
    let yaml = route("HTTPRoute", "shop", "r", spec);
    assert_eq!(objects(&yaml).len(), 1);
    assert!(conditions(&shop(&yaml), Kind::HttpRoute, "shop", "r").is_empty());
}

#[test]
fn what_a_route_last_said_stays_in_force() {
    let good = at_the_door(&to_web("HTTPRoute", "{}"));
    let bad = || at_the_door(&to_web("HTTPRoute", "{filters: [{type: CORS}]}"));
    let Verdict::Understood(standing) = judge(good, None) else { panic!("it is good") };
    let Verdict::Kept(rejection) = judge(bad(), Some(&standing)) else { panic!("it was good") };
    assert!(rejection.to_string().ends_with("what it last said stays in force"), "{rejection}");
    let Verdict::Replaced(Standing { object: Some(_), .. }, rejection) = judge(bad(), None) else {
        panic!("it never was");
    };
    assert!(rejection.to_string().ends_with("until then it is not used"), "{rejection}");
}

/// `route ports of clients` for everything that a waypoint is told of a service, in order.
fn told(cluster: &Cluster, service: &str) -> Vec<String> {
    let config = config(cluster, GATE, service).unwrap();
    let parts = config.parts();
    let one = |key: &str, ports: &[u16], consumers: &str| {
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        format!("{key} {} {consumers}", ports.join(",")).trim().to_owned()
    };
    let http =
        parts.http.iter().map(|of| one(of.route.origin().key.as_str(), &of.ports, of.consumers.as_str()));
    let stream =
        parts.stream.iter().map(|of| one(of.route.origin().key.as_str(), &of.ports, of.consumers.as_str()));
    http.chain(stream).collect()
}

/// One that is attached to `parent`.
fn attached(kind: &str, namespace: &str, name: &str, parent: &str) -> String {
    let rule = "{backendRefs: [{name: web, namespace: shop, port: 80}]}";
    route(kind, namespace, name, &format!("{{parentRefs: [{parent}], rules: [{rule}]}}"))
}

const TO_WEB: &str = "{group: '', kind: Service, name: web, namespace: shop}";

#[test]
fn a_route_is_put_where_its_parents_say() {
    let entry = "{group: networking.istio.io, kind: ServiceEntry, name: out}";
    let table: &[(&str, &str, &[&str])] = &[
        ("shop", "{group: '', kind: Service, name: web}", &["shop/r 80,81"]),
        ("shop", "{group: core, kind: Service, name: web}", &["shop/r 80,81"]),
        ("shop", "{group: '', kind: Service, name: web, port: 81}", &["shop/r 81"]),
        ("shop", "{group: '', kind: Service, name: web, sectionName: http}", &["shop/r 80"]),
        ("shop", "{group: '', kind: Service, name: web, sectionName: http, port: 81}", &[]),
        ("shop", "{group: '', kind: Service, name: web, port: 82}", &[]),
        (
            "shop",
            "{group: '', kind: Service, name: web, port: 80}, {group: '', kind: Service, name: web, port: 81}",
            &["shop/r 80,81"],
        ),
        ("guest", TO_WEB, &["guest/r 80,81 guest"]),
        ("guest", "{group: '', kind: Service, name: web}", &[]),
        ("shop", "{kind: Service, name: web}", &[]),
        ("shop", "{group: '', kind: Service, name: v2}", &[]),
    ];
    for (namespace, parent, expected) in table {
        let cluster = shop(&attached("HTTPRoute", namespace, "r", parent));
        assert_eq!(told(&cluster, WEB), *expected, "{namespace}: {parent}");
    }
    let cluster = shop(&attached("HTTPRoute", "shop", "r", entry));
    for host in ["a.example.com", "b.example.com"] {
        assert_eq!(told(&cluster, &format!("shop/{host}")), ["shop/r 80"]);
    }
}

#[test]
fn of_the_kinds_of_routes_of_a_port_and_its_clients_one_applies() {
    let on = |port: u16| format!("{{group: '', kind: Service, name: web, port: {port}}}");
    let both = "{group: '', kind: Service, name: web}";
    let all = attached("TCPRoute", "shop", "tcp", both)
        + &attached("TLSRoute", "shop", "tls", &on(81))
        + &attached("HTTPRoute", "shop", "http", &on(80))
        + &attached("TCPRoute", "guest", "theirs", TO_WEB);
    let cluster = shop(&all);
    assert_eq!(told(&cluster, WEB), ["shop/http 80", "shop/tls 81", "guest/theirs 80,81 guest"]);
    let reason = |kind, name: &str| conditions(&cluster, kind, "shop", name).first().cloned();
    assert_eq!(reason(Kind::TcpRoute, "tcp").as_deref(), Some("Accepted=false Conflicted"));
    assert_eq!(reason(Kind::TlsRoute, "tls").as_deref(), Some("Accepted=true Accepted"));

    let cluster = shop(&(all + &attached("GRPCRoute", "shop", "grpc", &on(80))));
    assert_eq!(told(&cluster, WEB), ["shop/grpc 80", "shop/tls 81", "guest/theirs 80,81 guest"]);
    // What never was understood stands in nobody's way.
    let broken = route("GRPCRoute", "shop", "grpc", &format!("{{parentRefs: [{both}], rules: [{{x: 1}}]}}"));
    let Parsed::Bad { instead: Some(broken), .. } = at_the_door(&broken) else { panic!("it is broken") };
    let mut all = objects(&(SHOP.to_owned() + &attached("HTTPRoute", "shop", "http", both)));
    all.push(broken);
    let cluster = support::of_objects(Settings::default(), all);
    assert_eq!(told(&cluster, WEB), ["shop/http 80,81"]);
}

#[test]
fn whom_a_route_does_not_reach_keeps_its_share_and_is_told() {
    let grant = |kind: &str, from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: safe}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}], to: [{to}]}}\n---\n"
        )
    };
    let vault = "{name: vault, namespace: safe, port: 80}";
    let table = [
        ("{name: web, port: 80}", String::new(), "true ResolvedRefs"),
        ("{name: gone, port: 80}", String::new(), "false BackendNotFound"),
        ("{name: web, port: 82}", String::new(), "false BackendNotFound"),
        ("{name: v2, port: 443}", String::new(), "false UnsupportedProtocol"),
        ("{kind: Secret, name: web, port: 80}", String::new(), "false InvalidKind"),
        (
            "{group: multicluster.x-k8s.io, kind: ServiceImport, name: web, port: 80}",
            String::new(),
            "false InvalidKind",
        ),
        (vault, String::new(), "false RefNotPermitted"),
        (vault, grant("HTTPRoute", "shop", "{group: '', kind: Service}"), "true ResolvedRefs"),
        (vault, grant("HTTPRoute", "shop", "{group: '', kind: Service, name: vault}"), "true ResolvedRefs"),
        (
            vault,
            grant("HTTPRoute", "shop", "{group: '', kind: Service, name: other}"),
            "false RefNotPermitted",
        ),
        (vault, grant("HTTPRoute", "shop", "{group: '', kind: Secret}"), "false RefNotPermitted"),
        (vault, grant("HTTPRoute", "other", "{group: '', kind: Service}"), "false RefNotPermitted"),
        (vault, grant("GRPCRoute", "shop", "{group: '', kind: Service}"), "false RefNotPermitted"),
    ];
    for (backend, grants, expected) in table {
        let rule = format!("{{backendRefs: [{backend}, {{name: v2, port: 80}}]}}");
        let cluster = shop(&(to_web("HTTPRoute", &rule) + &grants));
        let expected = format!("ResolvedRefs={expected}");
        let told = conditions(&cluster, Kind::HttpRoute, "shop", "r");
        assert_eq!(
            told,
            ["Accepted=true Accepted", &expected, "ResolvedWaypoints=true ResolvedWaypoints"],
            "{backend}"
        );
        let config = config(&cluster, GATE, WEB).unwrap();
        let first = config.parts().http[0].route.rules()[0].backends[0].to.clone();
        match expected.split_once("=false ") {
            Some((_, reason)) => {
                assert_eq!(first, Destination::Invalid { reason: reason.into() }, "{backend}")
            }
            None => assert!(matches!(first, Destination::Service { .. }), "{backend}"),
        }
    }
    // A mirror that reaches nobody is told as well.
    let mirrored = format!("{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {vault}}}}}]}}");
    let told = conditions(&shop(&to_web("HTTPRoute", &mirrored)), Kind::HttpRoute, "shop", "r");
    assert_eq!(told[1], "ResolvedRefs=false RefNotPermitted");
    // The service that its clients call anyway needs no grant, and nothing else of its namespace is let in by that.
    let consumer = |backend: &str| {
        let spec = format!("{{parentRefs: [{TO_WEB}], rules: [{{backendRefs: [{backend}]}}]}}");
        conditions(&shop(&route("HTTPRoute", "guest", "r", &spec)), Kind::HttpRoute, "guest", "r")[1].clone()
    };
    assert_eq!(consumer("{name: web, namespace: shop, port: 80}"), "ResolvedRefs=true ResolvedRefs");
    assert_eq!(consumer("{name: v2, namespace: shop, port: 80}"), "ResolvedRefs=false RefNotPermitted");
}

#[test]
fn every_parent_is_told_for_itself() {
    let more = "
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: free, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.1.0.9, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: waiting, namespace: shop, labels: {istio.io/use-waypoint: missing}}
spec: {clusterIP: 10.1.0.10, ports: [{port: 80}]}
---
";
    let table = [
        ("{group: '', kind: Service, name: web}", "Accepted=true Accepted", "true ResolvedWaypoints"),
        ("{group: '', kind: Service, name: free}", "Accepted=true Accepted", "false MissingUseWaypointLabel"),
        ("{group: '', kind: Service, name: waiting}", "Accepted=true Accepted", "false WaypointIsNotReady"),
        (
            "{group: '', kind: Service, name: gone}",
            "Accepted=false NoMatchingParent",
            "false NoMatchingParent",
        ),
        (
            "{group: '', kind: Service, name: web, port: 9}",
            "Accepted=false NoMatchingParent",
            "true ResolvedWaypoints",
        ),
        (
            "{group: '', kind: Service, name: headless}",
            "Accepted=false UnsupportedValue",
            "true ResolvedWaypoints",
        ),
        (
            "{group: '', kind: Service, name: elsewhere}",
            "Accepted=false NoMatchingParent",
            "true ResolvedWaypoints",
        ),
        ("{kind: Service, name: web}", "Accepted=false NoMatchingParent", ""),
        ("{kind: ServiceEntry, name: out}", "Accepted=false NoMatchingParent", ""),
        ("{name: gate}", "Accepted=false NotAllowedByListeners", ""),
        ("{name: front}", "", ""),
        ("{name: gone}", "", ""),
        ("{group: example.com, kind: Service, name: web}", "", ""),
    ];
    for (parent, accepted, waypoint) in table {
        let spec = format!("{{parentRefs: [{parent}], rules: [{{}}]}}");
        let cluster = shop(&(more.to_owned() + &route("HTTPRoute", "shop", "r", &spec)));
        let told = conditions(&cluster, Kind::HttpRoute, "shop", "r");
        assert_eq!(told.first().map_or("", String::as_str), accepted, "{parent}");
        let last = told.last().filter(|one| one.starts_with("ResolvedWaypoints"));
        let expected = (!waypoint.is_empty()).then(|| format!("ResolvedWaypoints={waypoint}"));
        assert_eq!(last, expected.as_ref(), "{parent}");
    }
    let parents: Vec<_> = table.iter().map(|(parent, ..)| *parent).collect();
    let spec = format!("{{parentRefs: [{}], rules: [{{}}]}}", parents.join(", "));
    let cluster = shop(&(more.to_owned() + &route("HTTPRoute", "shop", "r", &spec)));
    let accepted = conditions(&cluster, Kind::HttpRoute, "shop", "r");
    let accepted: Vec<_> = accepted.iter().filter(|one| one.starts_with("Accepted=")).collect();
    assert_eq!(accepted.len(), 10, "one for each that is the mesh's affair: {accepted:?}");
}

#[test]
fn a_waypoint_knows_a_service_before_it_is_ready_and_nobody_elses() {
    let of = |labels: &str, gateways: &str| {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{clusterIP: 10.1.0.1, ports: [{{port: 80}}]}}\n---\n"
        );
        cluster(&(service + gateways))
    };
    let gateway = |name: &str, namespace: &str, more: &str, status: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\n\
             spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n{status}---\n"
        )
    };
    let ready = "status: {addresses: [{value: 10.5.0.1}]}\n";
    let bound = "istio.io/use-waypoint: gate, istio.io/use-waypoint-canary: next";
    let gates = gateway("gate", "shop", "", ready) + &gateway("next", "shop", "", ready);
    let knows = |cluster: &Cluster, gateway: &str| config(cluster, gateway, WEB).is_some();
    let both = of(bound, &gates);
    assert!(knows(&both, "shop/gate") && knows(&both, "shop/next") && !knows(&both, "other/gate"));
    assert!(config(&both, GATE, WEB).unwrap().parts().http.is_empty(), "it has no routes, and is known");
    assert!(knows(&of(bound, &gateway("gate", "shop", "", "")), GATE), "it is not ready yet");
    assert!(!knows(&of(bound, ""), GATE), "it is not there");
    assert!(!knows(&of("", &gates), GATE), "nobody asks for it");
    assert!(!knows(&of("istio.io/use-waypoint: none", &gates), GATE));
    let foreign = of(
        "istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: other",
        &gateway("gate", "other", "", ready),
    );
    assert!(!knows(&foreign, "other/gate"), "it does not admit the namespace");
    let workloads = gateway("gate", "shop", ", labels: {istio.io/waypoint-for: workload}", ready);
    assert!(!knows(&of(bound, &workloads), GATE), "it is for something else");
    let managed = "istio.io/use-waypoint: gate, gateway.istio.io/managed: istio.io-mesh-controller";
    assert!(!knows(&of(managed, &gates), GATE), "a gateway's own service has none");
}
