//! VirtualServices as users write them: what a waypoint is told of a service, and what their authors are told.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[macro_use]
mod support;

use std::time::Duration;

use ambit_controller::cluster::Cluster;
use ambit_controller::cluster::object::{Kind, Object, Parsed, VirtualContent};
use ambit_controller::source::standing::{Standing, Verdict, judge};
use ambit_model::name::{Namespace, ServiceKey};
use ambit_model::route::{
    Abort, Backend, Cors, CorsParts, Delay, Destination, Fault, Filter, Filters, Fraction, GrpcCode,
    HeaderEdit, Match, Mirror, NewHost, NewPath, Path, Precedence, Redirect, RedirectStatus, Rewrite, Rule,
    Scheme, Text, Timeout, Timeouts, With, retry, select,
};
use http::{HeaderName, Method, Request, StatusCode, header};
use support::{GATE, at_the_door, cluster, conditions, config, objects};

const WEB: &str = "shop/web.shop.svc.cluster.local";

/// Services of two namespaces, those of `shop` bound to a waypoint.
const SHOP: &str = concat!(
    shop_at_gate!(),
    "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.1.0.1
  ports: [{name: http, port: 80}, {name: http-admin, port: 81}, {name: tcp-raw, port: 82}]
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: safe}
spec: {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec:
  hosts: [a.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
---
"
);

fn object(namespace: &str, name: &str, created: u32, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}-01-01T00:00:00Z'}}\nspec: {spec}\n---\n"
    )
}

/// One for `web`, of the shop.
fn to_web(rules: &str) -> String {
    object("shop", "r", 2020, &format!("{{hosts: [web], http: [{rules}]}}"))
}

fn shop(more: &str) -> Cluster {
    cluster(&format!("{SHOP}{more}"))
}

/// The rules that a waypoint is told of port 80 of `web`, for clients of a namespace without a VirtualService.
fn rules(yaml: &str) -> Vec<Rule> {
    let config = config(&shop(&to_web(yaml)), GATE, WEB).unwrap();
    let of_port = |ports: &[u16]| ports.contains(&80);
    let mut found = config.parts().http.iter().filter(|one| of_port(&one.ports) && one.consumers.is_empty());
    let route = &found.next().unwrap_or_else(|| panic!("a route: {yaml}")).route;
    assert_eq!(route.precedence(), Precedence::Order);
    route.rules().iter().map(|rule| Rule::clone(rule)).collect()
}

fn rule(yaml: &str) -> Rule {
    let mut rules = rules(yaml);
    assert_eq!(rules.len(), 1, "{yaml}");
    rules.remove(0)
}

fn service(name: &str, port: u16) -> Destination {
    let host = format!("{name}.shop.svc.cluster.local");
    Destination::Service { service: ServiceKey::new("shop", host), port, subset: None }
}

fn backend(to: Destination, weight: u32) -> Backend {
    Backend { to, weight, filters: Filters::default() }
}

/// What every rule below does that says nothing else.
fn plain() -> Rule {
    Rule {
        matches: vec![Match::default()],
        backends: vec![backend(service("v2", 8080), 1)],
        ..Rule::default()
    }
}

const ROUTE: &str = "route: [{destination: {host: v2}}]";

fn name(text: &str) -> HeaderName {
    text.parse().unwrap()
}

fn filters(all: Vec<Filter>) -> Filters {
    Filters::new(all).unwrap()
}

#[test]
fn every_match_is_what_is_written() {
    let any = Match::default;
    let path = |path: Result<Path, _>| Match::path(path.unwrap());
    let pattern = |text| Text::pattern(text).unwrap();
    let table = [
        ("{uri: {exact: /a}}", vec![path(Path::exact("/a"))]),
        ("{uri: {prefix: /a}}", vec![path(Path::beginning("/a"))]),
        ("{uri: {regex: '/a+'}}", vec![path(Path::pattern("/a+"))]),
        ("{uri: {exact: /a}, ignoreUriCase: true}", vec![path(Path::exact_without_case("/a"))]),
        ("{uri: {prefix: /a}, ignoreUriCase: true}", vec![path(Path::beginning_without_case("/a"))]),
        ("{method: {exact: PURGE}}", vec![any().method(Method::from_bytes(b"PURGE").unwrap())]),
        ("{method: {regex: 'GET|HEAD'}}", vec![any().method(Method::GET), any().method(Method::HEAD)]),
        (
            "{method: {prefix: P}}",
            [Method::POST, Method::PUT, Method::PATCH].map(|m| any().method(m)).to_vec(),
        ),
        (
            "{headers: {X-A: {exact: b}, c: {regex: d.*}, e: {prefix: f}, g: {}, h: {regex: .*}}}",
            vec![
                any()
                    .header(name("x-a"), Text::exact("b"))
                    .header(name("c"), pattern("d.*"))
                    .header(name("e"), Text::prefix("f"))
                    .header(name("g"), Text::Present)
                    .header(name("h"), Text::Present),
            ],
        ),
        (
            "{withoutHeaders: {a: {}, b: {exact: c}}}",
            vec![any().without_header(name("a"), Text::Present).without_header(name("b"), Text::exact("c"))],
        ),
        (
            "{queryParams: {A: {exact: b}, c: {prefix: d}}}",
            vec![any().query("A", Text::exact("b")).query("c", Text::prefix("d"))],
        ),
        ("{authority: {prefix: web}}", vec![any().header(header::HOST, Text::prefix("web"))]),
        ("{gateways: [mesh, front]}", vec![any()]),
        ("{port: 80}", vec![any()]),
        ("{}", vec![any()]),
    ];
    for (yaml, matches) in table {
        assert_eq!(rule(&format!("{{match: [{yaml}], {ROUTE}}}")), Rule { matches, ..plain() }, "{yaml}");
    }
    let none = Rule { name: Some("first".into()), ..plain() };
    assert_eq!(rule(&format!("{{name: first, {ROUTE}}}")), none);
}

#[test]
fn every_action_is_what_is_written() {
    let seconds = |seconds| Timeout::After(Duration::from_secs(seconds));
    let plainly = |filter| Rule { filters: filters(vec![filter]), ..plain() };
    let edit = HeaderEdit::parse(&[("a", "1")], &[("b", "2")], &["c"]).unwrap();
    let written = "{set: {a: '1'}, add: {b: '2'}, remove: [c]}";
    let policy = |codes: &[u16], attempts, backoff| {
        let backoff = Option::<u64>::map(backoff, Duration::from_millis);
        Some(retry::Policy::parse(codes, Some(attempts), backoff).unwrap())
    };
    let share = |parts| Fraction::new(parts, 1_000_000).unwrap();
    let rewrite = |path: Option<NewPath>, host: Option<&str>| {
        Filter::Rewrite(Rewrite { host: host.map(|host| NewHost::parse(host).unwrap()), path })
    };
    let beginning = |path| vec![Match::path(Path::beginning(path).unwrap())];
    let mirrored = |to, share| plainly(Filter::Mirror(Mirror { to, share }));
    let fault = |delay: Option<(u32, u64)>, abort: Option<(u32, With)>| {
        let delay = delay.map(|(parts, ms)| Delay { share: share(parts), time: Duration::from_millis(ms) });
        let abort = abort.map(|(parts, with)| Abort { share: share(parts), with });
        plainly(Filter::Fault(Fault::new(delay, abort).unwrap()))
    };
    let table = [
        (
            "timeout: 0.5s",
            Rule {
                timeouts: Timeouts {
                    request: Timeout::After(Duration::from_millis(500)),
                    ..Timeouts::default()
                },
                ..plain()
            },
        ),
        (
            "timeout: 0s",
            Rule { timeouts: Timeouts { request: Timeout::Never, ..Timeouts::default() }, ..plain() },
        ),
        ("retries: {attempts: 3}", Rule { retry: policy(&[], 3, None), ..plain() }),
        ("retries: {}", Rule { retry: policy(&[], 0, None), ..plain() }),
        (
            "retries: {attempts: 1, perTryTimeout: 2s, retryOn: 'gateway-error, connect-failure,409', backoff: 10ms}",
            Rule {
                retry: policy(&[409, 502, 503, 504], 1, Some(10)),
                timeouts: Timeouts { backend: seconds(2), ..Timeouts::default() },
                ..plain()
            },
        ),
        (
            "timeout: 1s, retries: {attempts: 1, perTryTimeout: 2s}",
            Rule {
                retry: policy(&[], 1, None),
                timeouts: Timeouts { request: seconds(1), backend: seconds(1) },
                ..plain()
            },
        ),
        ("rewrite: {authority: other.example}", plainly(rewrite(None, Some("other.example")))),
        (
            "rewrite: {uri: /b}",
            Rule { matches: beginning("/"), ..plainly(rewrite(NewPath::prefix("/b").ok(), None)) },
        ),
        (
            "match: [{uri: {prefix: /a}}], rewrite: {uri: /b}",
            Rule { matches: beginning("/a"), ..plainly(rewrite(NewPath::prefix("/b").ok(), None)) },
        ),
        (
            "match: [{uri: {exact: /a}}], rewrite: {uri: /b}",
            Rule {
                matches: vec![Match::path(Path::exact("/a").unwrap())],
                ..plainly(rewrite(NewPath::full("/b").ok(), None))
            },
        ),
        ("mirror: {host: web, port: {number: 81}}", mirrored(service("web", 81), Fraction::ALL)),
        ("mirror: {host: web}, mirrorPercentage: {value: 0.5}", mirrored(service("web", 80), share(5_000))),
        (
            "mirrors: [{destination: {host: v2}, percentage: {value: 10}}]",
            mirrored(service("v2", 8080), share(100_000)),
        ),
        ("fault: {delay: {percentage: {value: 10}, fixedDelay: 5s}}", fault(Some((100_000, 5_000)), None)),
        (
            "fault: {delay: {percentage: {value: 1}, fixedDelay: 1s}, abort: {percentage: {value: 100}, httpStatus: 503}}",
            fault(Some((10_000, 1_000)), Some((1_000_000, With::Http(StatusCode::SERVICE_UNAVAILABLE)))),
        ),
        (
            "fault: {abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}}",
            fault(None, Some((1_000_000, With::Grpc(GrpcCode::parse("14").unwrap())))),
        ),
        (
            "corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET], maxAge: 1h, allowCredentials: true}",
            plainly(Filter::Cors(
                Cors::parse(&CorsParts {
                    origins: &["https://a.example"],
                    methods: &["GET"],
                    max_age: Some(3600),
                    credentials: true,
                    ..CorsParts::default()
                })
                .unwrap(),
            )),
        ),
        (
            &format!("headers: {{request: {written}, response: {written}}}"),
            Rule {
                filters: filters(vec![
                    Filter::RequestHeaders(edit.clone()),
                    Filter::ResponseHeaders(edit.clone()),
                ]),
                ..plain()
            },
        ),
    ];
    for (yaml, expected) in table {
        assert_eq!(rule(&format!("{{{yaml}, {ROUTE}}}")), expected, "{yaml}");
    }
    let redirect = Redirect {
        scheme: Some(Scheme::Https),
        host: NewHost::parse("a.example").ok(),
        port: Some(443),
        path: NewPath::full("/b").ok(),
        status: RedirectStatus::new(301).unwrap(),
    };
    let yaml =
        "{redirect: {uri: /b, authority: a.example, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}}";
    let filters = filters(vec![Filter::Redirect(redirect)]);
    assert_eq!(rule(yaml), Rule { filters, matches: vec![Match::default()], ..Rule::default() });
}

#[test]
fn a_subset_that_nobody_defines_is_told_of() {
    let object = to_web("{route: [{destination: {host: v2, subset: a}}]}");
    let told = |rule: &str| conditions(&shop(&format!("{object}{rule}")), Kind::VirtualService, "shop", "r");
    let rule = |subset: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: v2, namespace: shop}}\n\
             spec: {{host: v2, subsets: [{{name: {subset}}}]}}\n"
        )
    };
    for (written, expected) in [
        (String::new(), "ResolvedRefs=false BackendNotFound"),
        (rule("b"), "ResolvedRefs=false BackendNotFound"),
        (rule("a"), "ResolvedRefs=true ResolvedRefs"),
    ] {
        assert!(told(&written).contains(&expected.to_owned()), "{written}: {:?}", told(&written));
    }
}

#[test]
fn destinations_are_found_by_host_port_subset_and_weight() {
    let out =
        Destination::Service { service: ServiceKey::new("shop", "a.example.com"), port: 80, subset: None };
    let subset = |subset: &str| match service("v2", 8080) {
        Destination::Service { service, port, .. } => {
            Destination::Service { service, port, subset: Some(subset.into()) }
        }
        other @ Destination::Invalid { .. } => other,
    };
    let invalid = |reason: &str| Destination::Invalid { reason: reason.into() };
    let table = [
        ("{destination: {host: v2}, weight: 0}", vec![backend(service("v2", 8080), 1)]),
        ("{destination: {host: v2.shop.svc.cluster.local}}", vec![backend(service("v2", 8080), 1)]),
        ("{destination: {host: v2, subset: a}}", vec![backend(subset("a"), 1)]),
        ("{destination: {host: a.example.com}}", vec![backend(out, 1)]),
        ("{destination: {host: web}}", vec![backend(service("web", 80), 1)]),
        ("{destination: {host: web, port: {number: 81}}}", vec![backend(service("web", 81), 1)]),
        ("{destination: {host: v2, port: {number: 9}}}", vec![backend(invalid("BackendNotFound"), 1)]),
        ("{destination: {host: nobody}}", vec![backend(invalid("BackendNotFound"), 1)]),
        ("{destination: {host: v2.shop}}", vec![backend(invalid("BackendNotFound"), 1)]),
        ("{destination: {host: vault.safe.svc.cluster.local}}", vec![backend(invalid("RefNotPermitted"), 1)]),
        (
            "{destination: {host: web}, weight: 90}, {destination: {host: v2, subset: a}, weight: 10}, {destination: {host: v2}}",
            vec![backend(service("web", 80), 90), backend(subset("a"), 10), backend(service("v2", 8080), 0)],
        ),
    ];
    for (yaml, backends) in table {
        assert_eq!(rule(&format!("{{route: [{yaml}]}}")).backends, backends, "{yaml}");
    }
    let edit = HeaderEdit::parse(&[("a", "1")], &[], &[]).unwrap();
    let of_backend =
        rule("{route: [{destination: {host: v2}, headers: {request: {set: {a: '1'}}}}]}").backends;
    assert_eq!(of_backend[0].filters, filters(vec![Filter::RequestHeaders(edit)]));
}

/// Which rule of a table takes a request, by name.
fn taken(cluster: &Cluster, port: u16, client: &str, path: &str) -> Option<String> {
    let config = config(cluster, GATE, WEB).unwrap();
    let (head, ()) = Request::builder().uri(path).body(()).unwrap().into_parts();
    let table = config.routes(port, &Namespace::from(client))?;
    let chosen = select(table, &head).map(|chosen| chosen.rule.name.clone().unwrap_or_default().to_string());
    Some(chosen.unwrap_or_else(|| "none".to_owned()))
}

#[test]
fn the_first_rule_that_matches_takes_a_request() {
    let cluster = shop(&to_web(
        "{name: beginning, match: [{uri: {prefix: /foo}}], route: [{destination: {host: v2}}]},
         {name: exact, match: [{uri: {exact: /foo/bar}}, {uri: {exact: /bar}}], route: [{destination: {host: v2}}]},
         {name: admin, match: [{port: 81}], route: [{destination: {host: v2}}]},
         {name: theirs, match: [{sourceNamespace: guest}], route: [{destination: {host: v2}}]},
         {name: rest, route: [{destination: {host: web}}]}",
    ));
    let table = [
        (80, "shop", "/foobar", Some("beginning")),
        (80, "shop", "/foo/bar", Some("beginning")),
        (80, "shop", "/bar", Some("exact")),
        (81, "shop", "/bar", Some("exact")),
        (81, "shop", "/x", Some("admin")),
        (81, "guest", "/x", Some("admin")),
        (80, "guest", "/x", Some("theirs")),
        (80, "shop", "/x", Some("rest")),
        (82, "shop", "/x", None),
    ];
    for (port, client, path, expected) in table {
        assert_eq!(taken(&cluster, port, client, path).as_deref(), expected, "{port} {client} {path}");
    }
    let only = shop(&to_web(&format!("{{name: admin, match: [{{port: 81}}], {ROUTE}}}")));
    assert_eq!(taken(&only, 80, "shop", "/"), None, "no rule is for that port");
    assert_eq!(taken(&only, 81, "shop", "/").as_deref(), Some("admin"));
}

#[test]
fn a_rule_that_rewrites_is_one_for_each_of_its_matches() {
    let all = rules(&format!(
        "{{name: a, match: [{{uri: {{prefix: /a}}}}, {{uri: {{exact: /b}}}}], rewrite: {{uri: /c}}, {ROUTE}}}"
    ));
    let rewrites: Vec<_> = all
        .iter()
        .map(|rule| match rule.filters.as_slice() {
            [Filter::Rewrite(Rewrite { path: Some(path), .. })] => path.replaces_prefix(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(rewrites, [true, false]);
}

#[test]
fn what_is_not_supported_is_refused_by_its_field() {
    let in_rule = |more: &str| format!("{{hosts: [web], http: [{{{more}, {ROUTE}}}]}}");
    let matching = |more: &str| in_rule(&format!("match: [{more}]"));
    let table = [
        (format!("{{hosts: [web], tcp: [], http: [{{{ROUTE}}}]}}"), "spec.tcp"),
        (format!("{{hosts: [web], tls: [], http: [{{{ROUTE}}}]}}"), "spec.tls"),
        (format!("{{hosts: ['*'], http: [{{{ROUTE}}}]}}"), "spec.hosts[0]"),
        (format!("{{hosts: ['*.example.com'], http: [{{{ROUTE}}}]}}"), "spec.hosts[0]"),
        (format!("{{http: [{{{ROUTE}}}]}}"), "spec.hosts"),
        ("{hosts: [web]}".to_owned(), "spec.http"),
        ("{hosts: [web], http: [{}]}".to_owned(), "spec.http[0]"),
        ("{hosts: [web], http: [{delegate: {name: a}}]}".to_owned(), "spec.http[0].delegate"),
        ("{hosts: [web], http: [{directResponse: {status: 200}}]}".to_owned(), "spec.http[0].directResponse"),
        (matching("{sourceLabels: {a: b}}"), "spec.http[0].match[0].sourceLabels"),
        (matching("{scheme: {exact: http}}"), "spec.http[0].match[0].scheme"),
        (matching("{uri: {}}"), "spec.http[0].match[0].uri"),
        (matching("{uri: {exact: a}}"), "spec.http[0].match[0].uri"),
        (matching("{uri: {exact: /a, prefix: /a}}"), "spec.http[0].match[0].uri"),
        (matching("{uri: {regex: '/('}}"), "spec.http[0].match[0].uri"),
        (matching("{uri: {regex: '/a'}, ignoreUriCase: true}"), "spec.http[0].match[0].uri"),
        (matching("{headers: {':path': {exact: a}}}"), "spec.http[0].match[0].headers.:path"),
        (matching("{headers: {A: {}, a: {}}}"), "spec.http[0].match[0].headers.a"),
        (matching("{headers: {a: {exact: b, regex: c}}}"), "spec.http[0].match[0].headers.a"),
        (
            matching("{authority: {exact: a}, headers: {host: {exact: a}}}"),
            "spec.http[0].match[0].headers.host",
        ),
        (matching("{method: {regex: get}}"), "spec.http[0].match[0].method"),
        (matching("{misspelt: 1}"), "spec.http[0].match[0].misspelt"),
        (in_rule("rewrite: {uriRegexRewrite: {match: a}}"), "spec.http[0].rewrite.uriRegexRewrite"),
        (in_rule("rewrite: {}"), "spec.http[0].rewrite"),
        (in_rule("rewrite: {uri: b}"), "spec.http[0].rewrite.uri"),
        (in_rule("rewrite: {authority: 'A:80'}"), "spec.http[0].rewrite.authority"),
        (in_rule("redirect: {uri: /a}"), "spec.http[0]"),
        (in_rule("timeout: soon"), "spec.http[0].timeout"),
        (in_rule("retries: {attempts: 1, retryOn: cancelled}"), "spec.http[0].retries.retryOn"),
        (in_rule("retries: {attempts: 1, retryOn: '200'}"), "spec.http[0].retries.retryOn"),
        (in_rule("retries: {retryRemoteLocalities: true}"), "spec.http[0].retries.retryRemoteLocalities"),
        (in_rule("fault: {}"), "spec.http[0].fault"),
        (in_rule("fault: {delay: {fixedDelay: 1s}}"), "spec.http[0].fault.delay.percentage"),
        (in_rule("fault: {delay: {percent: 1, fixedDelay: 1s}}"), "spec.http[0].fault.delay.percent"),
        (in_rule("fault: {delay: {percentage: {value: 1}}}"), "spec.http[0].fault.delay"),
        (in_rule("fault: {delay: {percentage: {value: 1}, fixedDelay: 61s}}"), "spec.http[0].fault"),
        (
            in_rule("fault: {delay: {percentage: {value: 101}, fixedDelay: 1s}}"),
            "spec.http[0].fault.delay.percentage.value",
        ),
        (in_rule("fault: {abort: {percentage: {value: 1}}}"), "spec.http[0].fault.abort"),
        (in_rule("fault: {abort: {percentage: {value: 1}, httpStatus: 100}}"), "spec.http[0].fault"),
        (in_rule("fault: {abort: {percentage: {value: 1}, grpcStatus: BAD}}"), "spec.http[0].fault.abort"),
        (
            in_rule("fault: {abort: {percentage: {value: 1}, http2Error: a}}"),
            "spec.http[0].fault.abort.http2Error",
        ),
        (in_rule("mirrorPercentage: {value: 1}"), "spec.http[0].mirrorPercentage"),
        (
            in_rule("corsPolicy: {allowOrigins: [{regex: 'https://.*'}]}"),
            "spec.http[0].corsPolicy.allowOrigins[0]",
        ),
        (
            in_rule("corsPolicy: {unmatchedPreflights: FORWARD}"),
            "spec.http[0].corsPolicy.unmatchedPreflights",
        ),
        (in_rule("headers: {request: {set: {host: a}}}"), "spec.http[0].headers.request"),
        (in_rule("headers: {request: {set: {a: '%REQ(b)%'}}}"), "spec.http[0].headers.request: a"),
        (
            "{hosts: [web], http: [{route: [{destination: {host: '*.a.b'}}]}]}".to_owned(),
            "spec.http[0].route[0].destination.host",
        ),
        (
            "{hosts: [web], http: [{route: [{destination: {host: a, port: {number: 0}}}]}]}".to_owned(),
            "spec.http[0].route[0].destination.port.number",
        ),
        (
            "{hosts: [web], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}"
                .to_owned(),
            "spec.http[0].route",
        ),
    ];
    for (spec, field) in table {
        match at_the_door(&object("shop", "r", 2020, &spec)) {
            Parsed::Bad { rejection, instead: Some(Object::VirtualService(instead)) } => {
                assert_eq!(rejection.field, field, "{spec}: {rejection}");
                assert!(matches!(instead.content, VirtualContent::Undecodable(_)));
            }
            other @ (Parsed::Object(_) | Parsed::Unknown | Parsed::Bad { .. }) => panic!("{spec}: {other:?}"),
        }
    }
}

#[test]
fn one_that_is_not_understood_leaves_the_last_version_or_nothing() {
    let Parsed::Object(good) = at_the_door(&to_web(&format!("{{{ROUTE}}}"))) else { panic!() };
    let bad = || at_the_door(&to_web("{delegate: {name: a}}"));
    let before = Standing { object: Some(good), understood: true };
    assert!(matches!(judge(bad(), Some(&before)), Verdict::Kept(_)));
    let Verdict::Replaced(standing, rejection) = judge(bad(), None) else { panic!() };
    assert!(rejection.remedy.ends_with("until then it is not used"), "{rejection}");
    let mut all = objects(SHOP);
    all.extend(standing.object);
    let cluster = support::of_objects(ambit_controller::cluster::Settings::default(), all);
    assert!(config(&cluster, GATE, WEB).unwrap().parts().http.is_empty());
    assert_eq!(conditions(&cluster, Kind::VirtualService, "shop", "r"), ["Accepted=false UnsupportedValue"]);
}

#[test]
fn its_author_is_told_what_applies_and_what_does_not() {
    let rules = format!("http: [{{{ROUTE}}}]");
    let fine = [
        "Accepted=true Accepted",
        "ResolvedRefs=true ResolvedRefs",
        "ResolvedWaypoints=true ResolvedWaypoints",
    ];
    let of = |more: &str, spec: &str| {
        let cluster = shop(&format!("{more}{}", object("shop", "r", 2020, spec)));
        conditions(&cluster, Kind::VirtualService, "shop", "r")
    };
    assert_eq!(of("", &format!("{{hosts: [web], {rules}}}")), fine);
    assert_eq!(of("", &format!("{{hosts: [a.example.com], gateways: [mesh, front], {rules}}}")), fine);
    assert_eq!(
        of("", &format!("{{hosts: [web], gateways: [front], {rules}}}")),
        ["Accepted=false NotForMesh"]
    );
    assert_eq!(of("", "{hosts: [web], gateways: [front], tcp: []}"), ["Accepted=false NotForMesh"]);
    assert_eq!(of("", &format!("{{hosts: [nobody], {rules}}}")), ["Accepted=false NoMatchingParent"]);
    assert_eq!(of("", &format!("{{hosts: [pods], {rules}}}")), ["Accepted=false UnsupportedValue"]);
    assert_eq!(
        of("", &format!("{{hosts: [web], exportTo: ['~'], {rules}}}")),
        ["Accepted=false NotExported"]
    );
    assert_eq!(of("", &format!("{{hosts: [web, nobody], {rules}}}"))[0], "Accepted=true PartiallyInvalid");
    let foreign = "{hosts: [web], http: [{route: [{destination: {host: vault.safe.svc.cluster.local}}]}]}";
    assert_eq!(of("", foreign)[1], "ResolvedRefs=false RefNotPermitted");
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: safe}\nspec:\n  from: [{group: networking.istio.io, kind: VirtualService, namespace: shop}]\n  to: [{group: '', kind: Service}]\n---\n";
    assert_eq!(of(grant, foreign), fine);
    let vault = format!("{{hosts: [vault.safe.svc.cluster.local], {rules}}}");
    assert_eq!(of("", &vault)[2], "ResolvedWaypoints=false MissingUseWaypointLabel");
}

#[test]
fn of_several_for_one_host_the_oldest_applies() {
    let one = |name: &str, created| {
        let rules = format!("{{hosts: [web], http: [{{name: {name}, {ROUTE}}}]}}");
        object("shop", name, created, &rules)
    };
    let cluster = shop(&[one("a", 2022), one("b", 2020), one("c", 2021)].concat());
    assert_eq!(taken(&cluster, 80, "shop", "/").as_deref(), Some("b"));
    assert_eq!(conditions(&cluster, Kind::VirtualService, "shop", "a"), ["Accepted=false Conflicted"]);
    assert_eq!(conditions(&cluster, Kind::VirtualService, "shop", "b")[0], "Accepted=true Accepted");
}

#[test]
fn routes_of_gateway_api_take_precedence_at_their_ports() {
    let route = |port: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: h, namespace: shop}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: web{port}}}], rules: [{{name: route, backendRefs: [{{name: v2, port: 8080}}]}}]}}\n---\n"
        )
    };
    let virtual_service =
        to_web(&format!("{{name: virtual, {ROUTE}}}, {{match: [{{sourceNamespace: guest}}], {ROUTE}}}"));
    let at_one = shop(&[route(", port: 80"), virtual_service.clone()].concat());
    assert_eq!(taken(&at_one, 80, "shop", "/").as_deref(), Some("route"));
    assert_eq!(taken(&at_one, 80, "guest", "/").as_deref(), Some("route"));
    assert_eq!(taken(&at_one, 81, "shop", "/").as_deref(), Some("virtual"));
    assert_eq!(conditions(&at_one, Kind::VirtualService, "shop", "r")[0], "Accepted=true Accepted");
    let at_all = shop(&[route(""), virtual_service].concat());
    assert_eq!(taken(&at_all, 81, "shop", "/").as_deref(), Some("route"));
    assert_eq!(conditions(&at_all, Kind::VirtualService, "shop", "r"), ["Accepted=false Conflicted"]);
}

#[test]
fn whose_clients_it_is_for_is_said_by_its_namespace_and_by_export_to() {
    let own = |export: &str| {
        let spec = format!(
            "{{hosts: [web], {export}http: [{{name: own, {ROUTE}}}, {{match: [{{sourceNamespace: guest}}], {ROUTE}}}]}}"
        );
        object("shop", "own", 2020, &spec)
    };
    let theirs = |export: &str| {
        let spec = format!(
            "{{hosts: [web.shop.svc.cluster.local], {export}http: [{{name: theirs, route: [{{destination: {{host: web.shop.svc.cluster.local}}}}]}}]}}"
        );
        object("guest", "theirs", 2019, &spec)
    };
    let of = |yaml: &str, client: &str| taken(&shop(yaml), 80, client, "/");
    let both = [own(""), theirs("")].concat();
    assert_eq!(of(&both, "guest").as_deref(), Some("theirs"));
    assert_eq!(of(&both, "shop").as_deref(), Some("own"));
    assert_eq!(of(&both, "other").as_deref(), Some("own"));
    assert_eq!(
        conditions(&shop(&both), Kind::VirtualService, "guest", "theirs")[0],
        "Accepted=true Accepted"
    );
    assert_eq!(of(&theirs(""), "shop"), None);
    let not_theirs = [own(""), theirs("exportTo: [other], ")].concat();
    assert_eq!(of(&not_theirs, "guest").as_deref(), Some("own"));
    assert_eq!(
        conditions(&shop(&not_theirs), Kind::VirtualService, "guest", "theirs"),
        ["Accepted=false NotExported"]
    );
    let private = own("exportTo: ['.'], ");
    assert_eq!(of(&private, "shop").as_deref(), Some("own"));
    assert_eq!(of(&private, "guest"), None);
    let listed = own("exportTo: [guest, other], ");
    assert_eq!((of(&listed, "guest").as_deref(), of(&listed, "shop")), (Some("own"), None));
}
