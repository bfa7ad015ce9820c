//! RateLimitPolicy: what a waypoint is told of a service, and what authors are told. The page that users read is one of
//! the texts here.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[macro_use]
mod support;

use std::time::Duration;

use ambit_controller::cluster::object::{Kind, Parsed};
use ambit_controller::cluster::{Cluster, Settings};
use ambit_controller::translate::status;
use ambit_model::limit::{Attribute, EntryValue, GlobalLimit, LocalLimit, OnError, RateLimit, Scope, header};
use ambit_model::name::ServiceKey;
use ambit_model::route::{Destination, RouteKey};
use support::{GATE, at_the_door, cluster, conditions, config, fenced};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const API: &str = "shop/api.shop.svc.cluster.local";

/// Two services at a waypoint, one at none; a route, and services that count.
const SHOP: &str = concat!(
    shop_at_gate!(", labels: {istio.io/waypoint-for: all}"),
    "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: admin, port: 81}, {name: grpc, port: 82}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: limiter, namespace: shop}
spec: {clusterIP: 10.1.0.4, ports: [{name: grpc, port: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: limiter, namespace: infra}
spec: {clusterIP: 10.1.0.5, ports: [{name: grpc, port: 8081}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{name: pay, backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 82}]
  rules: [{backendRefs: [{name: web, port: 82}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: idle, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: bare}]
  rules: [{backendRefs: [{name: bare, port: 80}]}]
---
"
);

const TO_WEB: &str = "targetRefs: [{kind: Service, name: web}]";
const TEN: &str = "local: [{requests: 10, per: 1s}]";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: ambit.io/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n---\n"
    )
}

fn shop(more: &str) -> Cluster {
    cluster(&format!("{SHOP}{more}"))
}

fn limits(cluster: &Cluster, service: &str) -> Vec<RateLimit> {
    config(cluster, GATE, service).unwrap().parts().limits.clone()
}

/// The only limit that the waypoint is told of `web`.
fn only(spec: &str) -> RateLimit {
    let limits = limits(&shop(&policy(spec)), WEB);
    let [limit] = limits.as_slice() else { panic!("one limit: {limits:?}") };
    assert_eq!(limit.policy.to_string(), "shop/p");
    limit.clone()
}

fn local(limit: &str) -> LocalLimit {
    let limit = only(&format!("{TO_WEB}, local: [{{{limit}}}]"));
    let [local] = limit.local.as_slice() else { panic!("one local limit: {limit:?}") };
    (**local).clone()
}

fn global(more: &str) -> GlobalLimit {
    let service = "service: {name: limiter, port: 8081}";
    let entries = "descriptors: [{entries: [{key: a, value: b}]}]";
    let limit = only(&format!("{TO_WEB}, global: {{{service}, domain: shop, {entries}, {more}}}"));
    (*limit.global.unwrap()).clone()
}

/// The field that a spec is refused for.
fn refused(spec: &str) -> String {
    match at_the_door(&policy(spec)) {
        Parsed::Bad { rejection, .. } => {
            assert!(!rejection.remedy.is_empty() && !rejection.what.is_empty());
            rejection.field
        }
        other @ (Parsed::Object(_) | Parsed::Unknown) => panic!("{spec}: {other:?}"),
    }
}

#[test]
fn every_field_of_a_local_limit_reaches_the_waypoint() {
    let bare = local("requests: 10, per: 1m");
    let rate = bare.rate();
    assert_eq!((rate.requests(), rate.per(), rate.burst()), (10, Duration::from_secs(60), 10));
    assert!(bare.by().is_empty() && bare.matches().is_empty());
    assert_eq!(local("requests: 10, per: 1s, burst: 3").rate().burst(), 3);
    for (by, want) in [
        ("header: X-User", Attribute::Header(header("x-user").unwrap())),
        ("from: Principal", Attribute::Principal),
        ("from: Namespace", Attribute::Namespace),
        ("from: Address", Attribute::Address),
        ("from: Path", Attribute::Path),
        ("from: Method", Attribute::Method),
    ] {
        assert_eq!(local(&format!("requests: 1, per: 1s, by: [{{{by}}}]")).by(), [want], "{by}");
    }
    let matched = local(
        "requests: 1, per: 1s, matches: [{method: POST, path: {value: /pay}, headers: [{name: a, value: b}]}]",
    );
    let [one] = matched.matches() else { panic!("one match") };
    assert_eq!((one.methods().map(http::Method::as_str), one.headers().len()), (Some("POST"), 1));
}

#[test]
fn every_field_of_a_global_limit_reaches_the_waypoint() {
    let limit = global("timeout: 30ms, failOpen: false");
    let to = ServiceKey::new("shop", "limiter.shop.svc.cluster.local");
    assert_eq!(*limit.to(), Destination::Service { service: to, port: 8081, subset: None });
    assert_eq!((limit.domain(), limit.timeout()), ("shop", Duration::from_millis(30)));
    assert_eq!(limit.on_error(), OnError::Refuse);
    let usual = global("");
    assert_eq!((usual.timeout(), usual.on_error()), (Duration::from_millis(100), OnError::Take));
    let entry = |value: &str| {
        let spec = format!(
            "{TO_WEB}, global: {{service: {{name: limiter, port: 8081}}, domain: d, descriptors: [{{entries: [{{key: k, {value}}}]}}]}}"
        );
        only(&spec).global.unwrap().descriptors()[0][0].value.clone()
    };
    assert_eq!(entry("value: v"), EntryValue::Fixed("v".into()));
    assert_eq!(entry("header: x-user"), EntryValue::Of(Attribute::Header(header("x-user").unwrap())));
    assert_eq!(entry("from: Path"), EntryValue::Of(Attribute::Path));
}

#[test]
fn a_limit_counts_where_its_target_is() {
    let scopes = |target: &str, service: &str| -> Vec<Scope> {
        let cluster = shop(&policy(&format!("targetRefs: [{target}], {TEN}")));
        limits(&cluster, service).into_iter().map(|limit| limit.scope).collect()
    };
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: gate}";
    assert_eq!(scopes(gateway, WEB), [Scope::Waypoint]);
    assert_eq!(scopes(gateway, API), [Scope::Waypoint]);
    assert_eq!(scopes(gateway, "shop/_workloads"), [Scope::Waypoint]);
    let service = "{group: '', kind: Service, name: web}";
    assert_eq!(scopes(service, WEB), [Scope::Service { ports: [].into() }]);
    assert_eq!(scopes(service, API), []);
    let port = "{kind: Service, name: web, sectionName: admin}";
    assert_eq!(scopes(port, WEB), [Scope::Service { ports: [81].into() }]);
    assert_eq!(scopes("{kind: Service, name: web, sectionName: none}", WEB), []);
    let route = |kind: &str, rule: &str| {
        format!("{{group: gateway.networking.k8s.io, kind: {kind}, name: web{rule}}}")
    };
    let scope = |rule: Option<&str>, port| Scope::Route {
        route: RouteKey::new("shop", "web"),
        rule: rule.map(Into::into),
        ports: [port].into(),
    };
    assert_eq!(scopes(&route("HTTPRoute", ""), WEB), [scope(None, 80)]);
    assert_eq!(scopes(&route("HTTPRoute", ", sectionName: pay"), WEB), [scope(Some("pay"), 80)]);
    assert_eq!(scopes(&route("HTTPRoute", ", sectionName: none"), WEB), []);
    // Of the same name, at another port.
    assert_eq!(scopes(&route("GRPCRoute", ""), WEB), [scope(None, 82)]);
    assert_eq!(scopes(&route("HTTPRoute", ""), API), []);
    // Each target counts for itself, and all of them apply.
    let both = format!("{service}, {gateway}");
    assert_eq!(scopes(&both, WEB), [Scope::Service { ports: [].into() }, Scope::Waypoint]);
}

#[test]
fn authors_are_told_for_each_target_what_became_of_it() {
    let told = |spec: &str| conditions(&shop(&policy(spec)), Kind::RateLimitPolicy, "shop", "p");
    for (target, want) in [
        ("{kind: Service, name: web}", "true Accepted"),
        ("{kind: Service, name: web, sectionName: http}", "true Accepted"),
        ("{kind: Service, name: web, sectionName: none}", "false TargetNotFound"),
        ("{kind: Service, name: none}", "false TargetNotFound"),
        ("{kind: Service, name: bare}", "false AncestorNotBound"),
        ("{group: networking.istio.io, kind: ServiceEntry, name: none}", "false TargetNotFound"),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: gate}", "true Accepted"),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: front}", "false AncestorNotBound"),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: none}", "false TargetNotFound"),
        ("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web}", "true Accepted"),
        (
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web, sectionName: no}",
            "false TargetNotFound",
        ),
        ("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: none}", "false TargetNotFound"),
        ("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: idle}", "false AncestorNotBound"),
        ("{group: gateway.networking.k8s.io, kind: GRPCRoute, name: web}", "true Accepted"),
    ] {
        assert_eq!(told(&format!("targetRefs: [{target}], {TEN}")), [format!("Accepted={want}")], "{target}");
    }
    let two =
        policy(&format!("targetRefs: [{{kind: Service, name: web}}, {{kind: Service, name: none}}], {TEN}"));
    let cluster = shop(&two);
    let key = ambit_controller::cluster::object::Key {
        kind: Kind::RateLimitPolicy,
        name: ambit_controller::cluster::object::Name::new("shop", "p"),
    };
    let told = status::of(&cluster, &key);
    let about: Vec<_> =
        told.iter().map(|one| (one.parent.as_ref().unwrap()["name"].as_str().unwrap(), one.status)).collect();
    assert_eq!(about, [("web", true), ("none", false)]);
}

#[test]
fn a_service_that_counts_elsewhere_must_be_granted() {
    let entries = "domain: d, descriptors: [{entries: [{key: a, value: b}]}]";
    let spec = |service: &str| policy(&format!("{TO_WEB}, global: {{service: {{{service}}}, {entries}}}"));
    let grant = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: limits, namespace: infra}
spec:
  from: [{group: ambit.io, kind: RateLimitPolicy, namespace: shop}]
  to: [{group: '', kind: Service}]
---
";
    let foreign = spec("name: limiter, namespace: infra, port: 8081");
    for (yaml, want) in [
        (spec("name: limiter, port: 8081"), "true ResolvedRefs"),
        (spec("name: limiter, port: 1"), "false BackendNotFound"),
        (spec("name: none, port: 8081"), "false BackendNotFound"),
        (spec("kind: Pod, name: none, port: 8081"), "false InvalidKind"),
        (foreign.clone(), "false RefNotPermitted"),
        (format!("{grant}{foreign}"), "true ResolvedRefs"),
    ] {
        let cluster = shop(&yaml);
        let told = conditions(&cluster, Kind::RateLimitPolicy, "shop", "p");
        assert_eq!(told, ["Accepted=true Accepted".to_owned(), format!("ResolvedRefs={want}")]);
        let global = limits(&cluster, WEB)[0].global.clone().unwrap();
        let is_known = matches!(global.to(), Destination::Service { .. });
        assert_eq!(is_known, want.starts_with("true"), "{want}");
    }
}

#[test]
fn every_mistake_is_refused_by_its_field() {
    let local = |limit: &str| format!("{TO_WEB}, local: [{{{limit}}}]");
    let global = |fields: &str| format!("{TO_WEB}, global: {{{fields}}}");
    let service = "service: {name: limiter, port: 8081}, domain: d";
    let entries = |list: &str| global(&format!("{service}, descriptors: [{{entries: [{list}]}}]"));
    let one = "descriptors: [{entries: [{key: a, value: b}]}]";
    let many = vec!["{requests: 1, per: 1s}"; 17].join(", ");
    let targets: Vec<_> = (0..17).map(|at| format!("{{kind: Service, name: s{at}}}")).collect();
    for (spec, field) in [
        (TO_WEB.to_owned(), "spec"),
        (TEN.to_owned(), "spec.targetRefs"),
        (format!("targetRefs: [{}], {TEN}", targets.join(", ")), "spec.targetRefs"),
        (format!("{TO_WEB}, {TEN}, more: 1"), "spec.more"),
        (format!("targetRefs: [{{kind: Pod, name: a}}], {TEN}"), "spec.targetRefs[0].kind"),
        (format!("targetRefs: [{{group: apps, kind: Service, name: a}}], {TEN}"), "spec.targetRefs[0].group"),
        (format!("targetRefs: [{{kind: HTTPRoute, name: a}}], {TEN}"), "spec.targetRefs[0].group"),
        (format!("targetRefs: [{{kind: Service}}], {TEN}"), "spec.targetRefs[0].name"),
        (
            format!("targetRefs: [{{kind: Service, name: a, namespace: b}}], {TEN}"),
            "spec.targetRefs[0].namespace",
        ),
        (
            format!("targetRefs: [{{kind: Service, name: a}}, {{kind: Service, name: a}}], {TEN}"),
            "spec.targetRefs[1]",
        ),
        (
            format!(
                "targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: a, sectionName: b}}], {TEN}"
            ),
            "spec.targetRefs[0].sectionName",
        ),
        (format!("{TO_WEB}, local: [{many}]"), "spec.local"),
        (local("per: 1s"), "spec.local[0].requests"),
        (local("requests: 1"), "spec.local[0].per"),
        (local("requests: 1, per: 1 second"), "spec.local[0].per"),
        (local("requests: 1, per: 25h"), "spec.local[0].per"),
        (local("requests: 1000001, per: 1s"), "spec.local[0].requests"),
        (local("requests: 1, per: 1s, burst: 0"), "spec.local[0].burst"),
        (local("requests: 1, per: 1s, bursts: 2"), "spec.local[0].bursts"),
        (local("requests: 1, per: 1s, by: [{}]"), "spec.local[0].by[0]"),
        (local("requests: 1, per: 1s, by: [{header: a, from: Path}]"), "spec.local[0].by[0]"),
        (local("requests: 1, per: 1s, by: [{header: ':path'}]"), "spec.local[0].by[0].header"),
        (local("requests: 1, per: 1s, by: [{from: Nobody}]"), "spec.local[0].by[0].from"),
        (
            local(&format!("requests: 1, per: 1s, by: [{}]", ["{from: Path}"; 5].join(", "))),
            "spec.local[0].by",
        ),
        (local("requests: 1, per: 1s, matches: [{path: {value: a}}]"), "spec.local[0].matches[0].path"),
        (local("requests: 1, per: 1s, matches: [{method: G}]"), "spec.local[0].matches[0].method"),
        (global(&format!("domain: d, {one}")), "spec.global.service.name"),
        (global(&format!("service: {{name: a}}, domain: d, {one}")), "spec.global.service.port"),
        (global(&format!("service: {{name: a, port: 0}}, domain: d, {one}")), "spec.global.service.port"),
        (
            global(&format!("service: {{name: a, port: 1, tls: {{}}}}, domain: d, {one}")),
            "spec.global.service.tls",
        ),
        (global(&format!("service: {{name: a, port: 1}}, {one}")), "spec.global.domain"),
        (global(&format!("{service}, {one}, timeout: 11s")), "spec.global.timeout"),
        (global(&format!("{service}, {one}, timeout: 0s")), "spec.global.timeout"),
        (global(&format!("{service}, {one}, failOpen: sometimes")), "spec.global.failOpen"),
        (global(&format!("{service}, {one}, more: 1")), "spec.global.more"),
        (global(service), "spec.global.descriptors"),
        (entries(""), "spec.global.descriptors[0].entries"),
        (entries("{key: a}"), "spec.global.descriptors[0].entries[0]"),
        (entries("{key: a, value: b, header: c}"), "spec.global.descriptors[0].entries[0]"),
        (entries("{value: b}"), "spec.global.descriptors[0].entries[0]"),
        (entries("{key: a, value: ''}"), "spec.global.descriptors[0].entries[0]"),
    ] {
        assert_eq!(refused(&spec), field, "{spec}");
    }
}

#[test]
fn a_limit_that_was_never_understood_limits_nothing_and_says_so() {
    let bad = policy(&format!("{TO_WEB}, local: [{{requests: none}}]"));
    let Parsed::Bad { instead: Some(stands_in), .. } = at_the_door(&bad) else {
        panic!("something stands in")
    };
    let mut objects = support::objects(SHOP);
    objects.push(stands_in);
    let cluster = support::of_objects(Settings::default(), objects);
    assert_eq!(limits(&cluster, WEB), []);
    let told = conditions(&cluster, Kind::RateLimitPolicy, "shop", "p");
    assert_eq!(told, ["Accepted=false Invalid"]);
}

/// What the page says is what is read: every policy of it is understood and in force.
#[test]
fn the_page_that_users_read_is_understood() {
    let page = include_str!("../../docs/limits.md");
    let yaml = fenced(page);
    assert_eq!(yaml.len(), 3, "the page has three texts");
    let cluster = shop(&yaml.join("\n---\n"));
    let policies: Vec<_> =
        cluster.rate_limit_policies.iter().map(|(name, _)| name.name.to_string()).collect();
    assert_eq!(policies, ["everybody", "tiers", "web"]);
    for name in &policies {
        let told = conditions(&cluster, Kind::RateLimitPolicy, "shop", name);
        assert!(!told.is_empty() && told.iter().all(|one| one.contains("=true ")), "{name}: {told:?}");
    }
    assert_eq!(limits(&cluster, WEB).len(), 4);
}
