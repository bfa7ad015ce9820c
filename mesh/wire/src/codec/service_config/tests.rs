//! What is encoded can be decoded, and what makes no sense is refused, by its field.

use std::time::Duration;

use ambit_model::authn::{AfterUse, Keys, TokenRule, TokenRuleParts};
use ambit_model::name::Label;
use ambit_model::route::{
    Abort, Backend, Cors, CorsParts, Delay, Destination, ExternalAuth, Fault, Filter, Filters, Fraction,
    GrpcCode, HeaderEdit, Lifetime, Match, Mirror, NewHost, NewPath, Path, Redirect, RedirectStatus, Rewrite,
    Rule, Scheme, Session, SessionKey, Text, Timeout, Timeouts, With, retry,
};
use http::{HeaderName, Method, StatusCode};
use proptest::{option, prelude::*, sample::select};

use super::*;
use crate::codec::{
    authorizer::tests::authorizer, decode_service_config, encode_service_config, limit::tests::limit,
    policy::tests::policy, traffic::tests::traffic,
};

fn decoded(body: Bytes) -> Result<ServiceConfig, InvalidResource> {
    decode_service_config(body, &mut Interner::default())
}

/// All of which a configuration is made.
fn facts(config: &ServiceConfig) -> (&ServiceKey, &Parts, Option<&str>) {
    (config.key(), config.parts(), config.broken())
}

fn text() -> impl Strategy<Value = Text> {
    let pattern = select(vec!["", ".*", "v[12]", "(?i)canary", "a|b"]);
    prop_oneof![
        "[a-z0-9 é]{0,6}".prop_map(Text::exact),
        "[a-z0-9 é]{0,6}".prop_map(Text::prefix),
        Just(Text::Present),
        pattern.prop_map(|pattern| Text::pattern(pattern).expect("a pattern")),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    let word = || {
        prop_oneof!["[A-Za-z]{0,4}".prop_map(Text::exact), Just(Text::pattern("[A-Z].*").expect("a pattern")),]
    };
    let pattern = select(vec!["/v[12]/.*", ".*", ""]);
    prop_oneof![
        "(/[a-z%41]{1,3}){1,3}/?".prop_filter_map("a path", |path| Path::exact(&path).ok()),
        "(/[a-z]{1,3}){0,3}/?".prop_filter_map("a path", |path| Path::prefix(&path).ok()),
        "/([a-z]{1,3}/?)?".prop_map(|path| Path::beginning(&path).expect("a path")),
        pattern.prop_map(|pattern| Path::pattern(pattern).expect("a pattern")),
        (option::of(word()), option::of(word()))
            .prop_map(|(service, method)| Path::grpc(service, method).expect("a call")),
    ]
}

pub(in crate::codec) fn matched() -> impl Strategy<Value = Match> {
    let method = select(vec![Method::GET, Method::POST, Method::from_bytes(b"PURGE").expect("a method")]);
    let header = (select(vec!["x-a", "x-b", "cookie"]), text());
    let query = ("[a-zé]{1,3}", text());
    let header = (header, any::<bool>());
    let lists = (prop::collection::vec(header, 0..4), prop::collection::vec(query, 0..3));
    (path(), option::of(method), lists).prop_map(|(path, method, (mut headers, query))| {
        // Those that are wanted are told first.
        headers.sort_by_key(|(_, wanted)| !wanted);
        let matched = Match::path(path);
        let matched = method.into_iter().fold(matched, Match::method);
        let matched = headers.into_iter().fold(matched, |one, ((name, value), wanted)| {
            let name = HeaderName::from_static(name);
            if wanted { one.header(name, value) } else { one.without_header(name, value) }
        });
        query.into_iter().fold(matched, |one, (name, value)| one.query(name, value))
    })
}

pub(in crate::codec) fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        ("[a-z]{1,4}", "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}", 1..=u16::MAX, option::of("v[0-9]")).prop_map(
            |(namespace, hostname, port, subset)| {
                let subset = subset.map(Label::from);
                Destination::Service { service: ServiceKey::new(namespace, hostname), port, subset }
            }
        ),
        "[A-Za-z]{0,8}".prop_map(|reason| Destination::Invalid { reason: reason.into() }),
    ]
}

fn edit() -> impl Strategy<Value = HeaderEdit> {
    let value = || "[a-z é,]{0,6}".prop_map(|value| value.trim().to_owned());
    (option::of(value()), option::of(value()), any::<bool>()).prop_map(|(set, add, remove)| {
        let set: Vec<_> = set.iter().map(|value| ("x-set", &**value)).collect();
        let add: Vec<_> = add.iter().map(|value| ("X-Add", &**value)).collect();
        let remove: &[&str] = if remove { &["x-gone"] } else { &[] };
        HeaderEdit::parse(&set, &add, remove).expect("an edit")
    })
}

fn new_host() -> impl Strategy<Value = NewHost> {
    "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}".prop_map(|host| NewHost::parse(&host).expect("a host"))
}

fn new_path() -> impl Strategy<Value = NewPath> {
    ("((/[a-z]{1,3}){1,2})?", any::<bool>()).prop_map(|(path, full)| {
        if full { NewPath::full(&path) } else { NewPath::prefix(&path) }.expect("a path")
    })
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let status = select(vec![301, 302, 303, 307, 308]);
    let scheme = select(vec![Scheme::Http, Scheme::Https]);
    let port = 1..=u16::MAX;
    (option::of(scheme), option::of(new_host()), option::of(port), option::of(new_path()), status).prop_map(
        |(scheme, host, port, path, status)| Redirect {
            scheme,
            host,
            port,
            path,
            status: RedirectStatus::new(status).expect("a status"),
        },
    )
}

fn cors() -> impl Strategy<Value = Cors> {
    let origins = select(vec![
        vec![],
        vec!["*"],
        vec!["https://*.Shop.example", "http://*:8080"],
        vec!["https://shop.example:443", "http://[::1]:9000"],
    ]);
    let methods = || select(vec![vec![], vec!["*"], vec!["GET"], vec!["GET", "PURGE"]]);
    let headers = || select(vec![vec![], vec!["*"], vec!["X-A", "x-b"]]);
    let lists = (origins, methods(), headers(), headers());
    (lists, any::<bool>(), option::of(any::<u32>())).prop_map(|(lists, credentials, max_age)| {
        let (origins, methods, headers, exposed) = &lists;
        let parts = CorsParts { origins, credentials, methods, headers, exposed, max_age };
        Cors::parse(&parts).expect("a filter")
    })
}

fn fault() -> impl Strategy<Value = Fault> {
    let share = || (0..=100_u32).prop_map(|part| Fraction::percent(part).expect("a part"));
    let status = (200..=599_u16).prop_map(|code| With::Http(StatusCode::from_u16(code).expect("a status")));
    let code = (0..=16_u32).prop_map(|code| With::Grpc(GrpcCode::parse(&code.to_string()).expect("a code")));
    let delay =
        (share(), 1..=60_000_u64).prop_map(|(share, ms)| Delay { share, time: Duration::from_millis(ms) });
    let abort = (share(), prop_oneof![status, code]).prop_map(|(share, with)| Abort { share, with });
    (option::of(delay), option::of(abort))
        .prop_filter_map("a fault", |(delay, abort)| Fault::new(delay, abort).ok())
}

fn auth() -> impl Strategy<Value = ExternalAuth> {
    prop_oneof![
        authorizer().prop_map(|asked| ExternalAuth::Asks(Arc::new(asked))),
        "[A-Za-z]{1,6}".prop_map(|reason| ExternalAuth::Nobody { reason: reason.into() }),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    let mirror = (destination(), 0..9_u32).prop_map(|(to, part)| {
        Filter::Mirror(Mirror { to, share: Fraction::new(part, 8.max(part)).expect("a part") })
    });
    prop_oneof![
        edit().prop_map(Filter::RequestHeaders),
        edit().prop_map(Filter::ResponseHeaders),
        redirect().prop_map(Filter::Redirect),
        (option::of(new_host()), option::of(new_path()))
            .prop_map(|(host, path)| Filter::Rewrite(Rewrite { host, path })),
        mirror,
        cors().prop_map(Filter::Cors),
        fault().prop_map(Filter::Fault),
        auth().prop_map(Filter::ExternalAuth),
    ]
}

/// As many of some filters as go together.
fn filters() -> impl Strategy<Value = Filters> {
    prop::collection::vec(filter(), 0..5).prop_map(|some| {
        some.into_iter().fold(Filters::default(), |filters, one| {
            let more = filters.as_slice().iter().cloned().chain([one]).collect();
            Filters::new(more).unwrap_or(filters)
        })
    })
}

fn backend(filters: impl Strategy<Value = Filters>) -> impl Strategy<Value = Backend> {
    (destination(), any::<u32>(), filters).prop_map(|(to, weight, filters)| Backend { to, weight, filters })
}

fn time() -> impl Strategy<Value = Duration> {
    (1..=u64::from(u32::MAX)).prop_map(Duration::from_millis)
}

fn timeout() -> impl Strategy<Value = Timeout> {
    prop_oneof![Just(Timeout::Default), Just(Timeout::Never), time().prop_map(Timeout::After)]
}

fn retries() -> impl Strategy<Value = retry::Policy> {
    let codes = prop::collection::vec(400..=599_u16, 0..3);
    (codes, option::of(any::<u32>()), option::of(time())).prop_map(|(codes, attempts, backoff)| {
        retry::Policy::parse(&codes, attempts, backoff).expect("a policy")
    })
}

fn session() -> impl Strategy<Value = Session> {
    let key = prop_oneof![
        "[a-z]{1,4}".prop_map(|name| SessionKey::Cookie(name.into())),
        Just(SessionKey::Header(HeaderName::from_static("x-session"))),
    ];
    let lifetime = select(vec![Lifetime::Session, Lifetime::Permanent]);
    (key, option::of(time()), option::of(time()), lifetime)
        .prop_map(|(key, absolute, idle, lifetime)| Session { key, absolute, idle, lifetime })
}

fn rule() -> impl Strategy<Value = Rule> {
    let matches = prop::collection::vec(matched(), 0..3);
    let backends = prop::collection::vec(backend(filters()), 0..3);
    let timeouts = (timeout(), timeout()).prop_map(|(request, backend)| Timeouts { request, backend });
    let rest = (timeouts, option::of(retries()), option::of(session()));
    (matches, filters(), backends, rest).prop_map(|(matches, filters, backends, rest)| {
        let (timeouts, retry, session) = rest;
        Rule { name: None, matches, filters, backends, timeouts, retry, session }
    })
}

fn origin() -> impl Strategy<Value = Origin> {
    ("[a-z]{1,4}", "[a-z]{1,4}", any::<u64>())
        .prop_map(|(namespace, name, created)| Origin { created, key: RouteKey::new(namespace, name) })
}

fn attached<R: std::fmt::Debug>(route: impl Strategy<Value = R>) -> impl Strategy<Value = Attached<R>> {
    (prop::collection::vec(1..=u16::MAX, 1..3), "[a-z]{0,3}", route).prop_map(|(ports, consumers, route)| {
        Attached { ports: ports.into(), consumers: consumers.into(), route }
    })
}

/// Each rule that a route can have, under a name of its own or under none.
fn http_route() -> impl Strategy<Value = Route> {
    let rules = prop::collection::vec((rule(), any::<bool>()), 0..4);
    (origin(), rules, any::<bool>()).prop_map(|(origin, rules, in_order)| {
        let new = if in_order { Route::in_order } else { Route::new };
        let fits = |rule: &Rule| new(origin.clone(), vec![rule.clone()]).is_ok();
        let rules = rules.into_iter().enumerate().filter(|(_, (rule, _))| fits(rule));
        let name = |(place, (rule, named)): (usize, (Rule, bool))| Rule {
            name: named.then(|| format!("rule-{place}").into()),
            ..rule
        };
        new(origin.clone(), rules.map(name).collect()).expect("a route")
    })
}

fn stream_route() -> impl Strategy<Value = StreamRoute> {
    let names = select(vec![vec![], vec!["Shop.example"], vec!["*.shop.example", "a-1.test"]]);
    let backends = prop::collection::vec(backend(Just(Filters::default())), 0..3);
    (origin(), names, backends)
        .prop_map(|(origin, names, backends)| StreamRoute::new(origin, &names, backends).expect("a route"))
}

fn token_rule() -> impl Strategy<Value = TokenRule> {
    let keys = prop_oneof![
        Just(Keys::Discovered),
        Just(Keys::Inline("{\"keys\": []}".into())),
        Just(Keys::At("https://issuer/keys".into())),
    ];
    let some = |all: Vec<&'static str>| prop::sample::subsequence(all.clone(), 0..=all.len());
    let places = (some(vec!["X-Jwt", "authorization"]), some(vec!["tok"]), some(vec!["a", "b"]));
    let told = (select(vec!["", "x-payload"]), some(vec!["x-sub", "x-deep"]));
    let token = select(vec![AfterUse::Removed, AfterUse::Forwarded]);
    ("[a-z]{1,4}", some(vec!["shop", "pay"]), keys, places, told, token).prop_map(
        |(issuer, audiences, keys, (headers, params, cookies), (payload_header, claim_headers), token)| {
            let headers: Vec<_> = headers.into_iter().map(|name| (name, "Jwt ")).collect();
            let claim_headers: Vec<_> = claim_headers.into_iter().map(|name| (name, "a.b")).collect();
            let parts = TokenRuleParts {
                issuer: &issuer,
                audiences: &audiences,
                headers: &headers,
                params: &params,
                cookies: &cookies,
                token,
                payload_header,
                claim_headers: &claim_headers,
            };
            TokenRule::parse(&parts, keys).expect("a rule")
        },
    )
}

fn config() -> impl Strategy<Value = ServiceConfig> {
    let http = prop::collection::vec(attached(http_route()), 0..3);
    let stream = prop::collection::vec(attached(stream_route()), 0..3);
    let policies = prop::collection::vec(policy().prop_map(Arc::new), 0..3);
    let authentication = prop::collection::vec(token_rule(), 0..3);
    let limits = prop::collection::vec(limit(), 0..3);
    let traffic = prop::collection::vec(traffic(), 0..3);
    let parts = (http, stream, policies, authentication, limits, traffic).prop_map(
        |(http, stream, policies, authentication, limits, traffic)| Parts {
            http,
            stream,
            policies,
            authentication,
            limits,
            traffic,
        },
    );
    ("[a-z]{1,4}", "(\\*\\.)?[a-z]{1,4}(\\.[a-z]{1,4}){0,2}", parts).prop_map(
        |(namespace, hostname, parts)| ServiceConfig::new(ServiceKey::new(namespace, hostname), parts),
    )
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_to_the_same(config in config()) {
        let again = decoded(encode_service_config(&config));
        let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(facts(&again), facts(&config));
    }

    /// Foreign bytes never panic, and what they decode to survives a round trip.
    #[test]
    fn any_bytes_decode_or_are_refused(
        config in config(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut body = encode_service_config(&config).to_vec();
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        if let Ok(read) = decoded(body.into()) {
            let again = decoded(encode_service_config(&read));
            let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(facts(&again), facts(&read));
        }
    }
}

#[test]
fn a_configuration_that_is_not_understood_stays_so() {
    let key = ServiceKey::new("shop", "web.test");
    let sent = encode_service_config(&ServiceConfig::undecodable(key, "what for?"));
    assert_eq!(decoded(sent).expect("a configuration").broken(), Some("what for?"));
}

#[test]
fn a_limit_below_a_millisecond_stays_one() {
    let timeouts = Timeouts { request: Timeout::After(Duration::from_nanos(1)), ..Timeouts::default() };
    let origin = Origin { created: 0, key: RouteKey::new("shop", "web") };
    let route = Route::new(origin, vec![Rule { timeouts, ..Rule::default() }]).expect("a route");
    let http = vec![Attached { ports: [80].into(), consumers: Namespace::default(), route }];
    let config = ServiceConfig::new(ServiceKey::new("shop", "web.test"), Parts { http, ..Parts::default() });
    let again = decoded(encode_service_config(&config)).expect("a configuration");
    let request = again.parts().http[0].route.rules()[0].timeouts.request;
    assert_eq!(request, Timeout::After(Duration::from_millis(1)));
}

#[test]
fn the_name_of_a_resource_has_gateway_and_service() {
    let key = ServiceKey::new("shop", "web.shop.svc.cluster.local");
    let name = service_config_name("infra", "gate", &key);
    assert_eq!(name, "infra/gate/shop/web.shop.svc.cluster.local");
    assert_eq!(service_config_key(&name), Some(key));
    for name in ["", "a", "a/b", "a/b/c", "a/b/c/d/e"] {
        assert_eq!(service_config_key(name), None, "{name}");
    }
}

/// A message with one of each, which is accepted.
fn message() -> pb::ServiceConfig {
    let origin = || Some(pb::Origin { namespace: "shop".into(), name: "web".into(), created: 1 });
    let to = || {
        let service = pb::ServicePort {
            namespace: "shop".into(),
            hostname: "web.test".into(),
            port: 80,
            subset: String::new(),
        };
        Some(pb::Destination { kind: Some(pb::destination::Kind::Service(service)) })
    };
    let matched = pb::HttpMatch {
        path: Some(pb::http_match::Path::Prefix("/".into())),
        headers: vec![named()],
        query: vec![named()],
        ..pb::HttpMatch::default()
    };
    let rule = pb::HttpRule {
        matches: vec![matched],
        filters: vec![filtered(pb::filter::Kind::Rewrite(pb::Rewrite::default()))],
        backends: vec![pb::Backend { to: to(), weight: 1, filters: Vec::new() }],
        retry: Some(pb::Retry::default()),
        session: Some(pb::Session {
            key: Some(pb::session::Key::Cookie("shop".into())),
            ..pb::Session::default()
        }),
        ..pb::HttpRule::default()
    };
    pb::ServiceConfig {
        namespace: "shop".into(),
        hostname: "web.test".into(),
        http_routes: vec![pb::HttpRoute {
            origin: origin(),
            ports: vec![80],
            consumers: String::new(),
            rules: vec![rule],
            ..pb::HttpRoute::default()
        }],
        stream_routes: vec![pb::StreamRoute {
            origin: origin(),
            ports: vec![443],
            backends: vec![pb::Backend { to: to(), weight: 1, filters: Vec::new() }],
            ..pb::StreamRoute::default()
        }],
        ..pb::ServiceConfig::default()
    }
}

fn named() -> pb::NamedMatch {
    let value = pb::TextMatch { kind: Some(pb::text_match::Kind::Exact("a".into())) };
    pb::NamedMatch { name: "a".into(), value: Some(value) }
}

fn filtered(kind: pb::filter::Kind) -> pb::Filter {
    pb::Filter { kind: Some(kind) }
}

fn redirecting() -> pb::Redirect {
    pb::Redirect { status: 302, ..pb::Redirect::default() }
}

#[test]
fn a_message_with_one_of_each_is_accepted() {
    assert_eq!(decoded(message().encode_to_vec().into()).map(|config| config.parts().http.len()), Ok(1));
}

#[test]
fn every_part_that_makes_no_sense_is_named() {
    use pb::{filter::Kind, http_match::Path, text_match::Kind as Text};
    fn rule(change: impl FnOnce(&mut pb::HttpRule)) -> pb::ServiceConfig {
        let mut message = message();
        change(&mut message.http_routes[0].rules[0]);
        message
    }
    fn on(change: impl FnOnce(&mut pb::HttpMatch)) -> pb::ServiceConfig {
        rule(|rule| change(&mut rule.matches[0]))
    }
    fn path(path: Option<Path>) -> pb::ServiceConfig {
        on(|one| one.path = path)
    }
    fn filter(kind: Kind) -> pb::ServiceConfig {
        rule(|rule| rule.filters = vec![filtered(kind)])
    }
    fn redirect(change: impl FnOnce(&mut pb::Redirect)) -> pb::ServiceConfig {
        let mut redirect = redirecting();
        change(&mut redirect);
        filter(Kind::Redirect(redirect))
    }
    fn top(change: impl FnOnce(&mut pb::ServiceConfig)) -> pb::ServiceConfig {
        let mut message = message();
        change(&mut message);
        message
    }
    let header = |name: &str, value: &str| pb::Header { name: name.into(), value: value.into() };
    let edit = |set| pb::HeaderEdit { set: vec![set], ..pb::HeaderEdit::default() };
    let pattern = |text: &str| pb::TextMatch { kind: Some(Text::Pattern(text.into())) };
    let call = |service| pb::GrpcCall { service: Some(service), method: None };
    fn token(change: impl FnOnce(&mut pb::TokenRule)) -> pb::ServiceConfig {
        let keys = Some(pb::token_rule::Keys::Discovery(pb::Discovery {}));
        let mut rule = pb::TokenRule { issuer: "me".into(), keys, ..pb::TokenRule::default() };
        change(&mut rule);
        pb::ServiceConfig { authentication: vec![rule], ..message() }
    }
    let claim = |header: &str| pb::ClaimHeader { header: header.into(), claim: "sub".into() };
    let (first, matches) = ("http_routes[0].rules[0]", "http_routes[0].rules[0].matches[0]");
    let cases = [
        ("namespace".to_owned(), top(|one| one.namespace.clear())),
        ("hostname".to_owned(), top(|one| one.hostname = "a/b".into())),
        ("http_routes[0].origin".to_owned(), top(|one| one.http_routes[0].origin = None)),
        (
            "http_routes[0].origin.name".to_owned(),
            top(|one| {
                one.http_routes[0].origin = Some(pb::Origin { namespace: "a".into(), ..Default::default() })
            }),
        ),
        ("http_routes[0].ports".to_owned(), top(|one| one.http_routes[0].ports.clear())),
        ("http_routes[0].ports".to_owned(), top(|one| one.http_routes[0].ports = vec![80, 0])),
        ("http_routes[0].ports".to_owned(), top(|one| one.http_routes[0].ports = vec![65_536])),
        ("stream_routes[0].ports".to_owned(), top(|one| one.stream_routes[0].ports.clear())),
        (
            "stream_routes[0].server_names".to_owned(),
            top(|one| one.stream_routes[0].server_names.push("a_b".into())),
        ),
        ("stream_routes[0].backends[0].to".to_owned(), top(|one| one.stream_routes[0].backends[0].to = None)),
        (
            "stream_routes[0].backends.filters".to_owned(),
            top(|one| {
                one.stream_routes[0].backends[0].filters = vec![filtered(Kind::Rewrite(Default::default()))]
            }),
        ),
        (format!("{matches}.path"), path(None)),
        (format!("{matches}.exact"), path(Some(Path::Exact("a".into())))),
        (format!("{matches}.prefix"), path(Some(Path::Prefix("/a/../b".into())))),
        (format!("{matches}.pattern"), path(Some(Path::Pattern("(".into())))),
        (format!("{matches}.grpc.service.pattern"), path(Some(Path::Grpc(call(pattern("(")))))),
        (format!("{matches}.grpc.service.kind"), path(Some(Path::Grpc(call(pb::TextMatch::default()))))),
        (format!("{matches}.method"), on(|one| one.method = "G T".into())),
        (format!("{matches}.headers"), on(|one| one.headers[0].name = ":path".into())),
        (format!("{matches}.headers[0].value"), on(|one| one.headers[0].value = None)),
        (format!("{matches}.headers[0].value.pattern"), on(|one| one.headers[0].value = Some(pattern("(")))),
        (format!("{matches}.query[0].name"), on(|one| one.query[0].name.clear())),
        (format!("{first}.filters[0].kind"), rule(|one| one.filters = vec![pb::Filter::default()])),
        (
            format!("{first}.filters"),
            rule(|one| one.filters.push(filtered(Kind::Rewrite(pb::Rewrite::default())))),
        ),
        (
            format!("{first}.filters[0].request_headers"),
            filter(Kind::RequestHeaders(edit(header("connection", "a")))),
        ),
        (
            format!("{first}.filters[0].response_headers"),
            filter(Kind::ResponseHeaders(edit(header("a", "b\r\nc: d")))),
        ),
        (format!("{first}.filters[0].redirect.scheme"), redirect(|one| one.scheme = 3)),
        (format!("{first}.filters[0].redirect.status"), redirect(|one| one.status = 200)),
        (format!("{first}.filters[0].redirect.port"), redirect(|one| one.port = 65_536)),
        (format!("{first}.filters[0].redirect.path"), redirect(|one| one.path = Some(Default::default()))),
        (
            format!("{first}.filters[0].rewrite.host"),
            filter(Kind::Rewrite(pb::Rewrite { host: "*.a".into(), path: None })),
        ),
        (format!("{first}.filters[0].mirror.to"), filter(Kind::Mirror(pb::Mirror::default()))),
        (
            format!("{first}.filters[0].mirror.denominator"),
            filter(Kind::Mirror(pb::Mirror {
                to: Some(pb::Destination { kind: Some(pb::destination::Kind::Invalid(String::new())) }),
                ..pb::Mirror::default()
            })),
        ),
        (
            format!("{first}.filters[0].cors"),
            filter(Kind::Cors(pb::Cors { origins: vec!["null".into()], ..pb::Cors::default() })),
        ),
        (format!("{first}.filters[0].fault.delay"), filter(Kind::Fault(pb::Fault::default()))),
        (
            format!("{first}.filters[0].fault.delay"),
            filter(Kind::Fault(pb::Fault {
                delay: Some(pb::Delay { numerator: 1, denominator: 1, ms: 60_001 }),
                abort: None,
            })),
        ),
        (
            format!("{first}.filters[0].fault.abort.with"),
            filter(Kind::Fault(pb::Fault {
                delay: None,
                abort: Some(pb::Abort { numerator: 1, denominator: 1, with: None }),
            })),
        ),
        ("http_routes[0].precedence".to_owned(), top(|one| one.http_routes[0].precedence = 2)),
        (format!("{matches}.beginning"), path(Some(Path::Beginning("a".into())))),
        (
            format!("{matches}.without_headers"),
            on(|one| one.without_headers = vec![pb::NamedMatch { name: ":path".into(), ..named() }]),
        ),
        (format!("{first}.backends[0].to"), rule(|one| one.backends[0].to = Some(Default::default()))),
        (
            format!("{first}.backends[0].to.service.namespace"),
            rule(|one| {
                let service = pb::destination::Kind::Service(pb::ServicePort::default());
                one.backends[0].to = Some(pb::Destination { kind: Some(service) });
            }),
        ),
        (format!("{first}.retry.codes"), rule(|one| one.retry.as_mut().expect("one").codes = vec![200])),
        (format!("{first}.retry.codes"), rule(|one| one.retry.as_mut().expect("one").codes = vec![66_036])),
        (format!("{first}.session.key"), rule(|one| one.session.as_mut().expect("one").key = None)),
        (
            format!("{first}.session.cookie"),
            rule(|one| {
                one.session.as_mut().expect("one").key = Some(pb::session::Key::Cookie(String::new()))
            }),
        ),
        ("authentication[0].issuer".to_owned(), token(|one| one.issuer.clear())),
        ("authentication[0].keys".to_owned(), token(|one| one.keys = None)),
        (
            "authentication[0].jwks".to_owned(),
            token(|one| one.keys = Some(pb::token_rule::Keys::Jwks(String::new()))),
        ),
        ("authentication[0].places[0].kind".to_owned(), token(|one| one.places = vec![Default::default()])),
        ("authentication[0].payload_header".to_owned(), token(|one| one.payload_header = "host".into())),
        ("authentication[0].claim_headers".to_owned(), token(|one| one.claim_headers = vec![claim("te")])),
        (
            first.to_owned(),
            rule(|one| {
                (one.request_timeout_ms, one.backend_timeout_ms) = (Some(1), Some(2));
            }),
        ),
    ];
    for (field, message) in cases {
        match decoded(message.encode_to_vec().into()) {
            Err(InvalidResource::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    let torn = decoded(Bytes::from_static(&[0x0a, 9, 1]));
    assert!(matches!(torn, Err(InvalidResource::Message(_))), "{torn:?}");
}
