//! Policies that waypoints enforce: what a waypoint is told of a service, and what their authors are told.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[macro_use]
mod support;

use ambit_controller::cluster::object::{Key, Kind, Name, Parsed};
use ambit_controller::cluster::{Cluster, Settings};
use ambit_controller::translate::status;
use ambit_model::authn::{AfterUse, ClaimHeader, Keys, Place, TokenRule};
use ambit_model::authz::{
    AccountMatch, Action, Condition, Content, Match, PathMatch, PathTemplate, RequestMatch, Rule, Text,
};
use http::{HeaderName, header};
use support::{GATE, at_the_door, authorization, cluster, conditions, config, objects};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const DB: &str = "shop/db.shop.svc.cluster.local";
const OUT: &str = "shop/out.example.com";

/// Services of `shop`, all but one of them bound to a waypoint.
const SHOP: &str = concat!(
    "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio}
spec: {controllerName: istio.io/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
",
    shop_at_gate!(),
    "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: waiting, namespace: shop, labels: {istio.io/use-waypoint: later}}
spec: {clusterIP: 10.1.0.4, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec: {hosts: [out.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
---
"
);

const TO_WEB: &str = "targetRefs: [{group: '', kind: Service, name: web}]";

fn object(kind: &str, namespace: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}, annotations: \
         {{{annotations}}}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn policy(spec: &str) -> String {
    object("AuthorizationPolicy", "shop", "", spec)
}

fn tokens(spec: &str) -> String {
    object("RequestAuthentication", "shop", "", spec)
}

fn shop(policies: &str) -> Cluster {
    cluster(&format!("{SHOP}{policies}"))
}

/// What the only policy says that the waypoint is told of `web`.
fn told(yaml: &str) -> Content {
    let config = config(&shop(yaml), GATE, WEB).unwrap();
    let [policy] = config.parts().policies.as_slice() else { panic!("one policy: {yaml}") };
    assert_eq!(policy.key.to_string(), "shop/p");
    policy.content.clone()
}

fn rules(content: Content) -> Vec<Rule> {
    match content {
        Content::Rules { rules, .. } | Content::Custom { rules, .. } | Content::Audit { rules } => rules,
        Content::Undecodable { reason } => panic!("{reason}"),
    }
}

/// The only match of a rule.
fn only_match(rule: &str) -> Match {
    let rules = rules(told(&policy(&format!("{TO_WEB}, rules: [{{{rule}}}]"))));
    let [rule] = rules.as_slice() else { panic!("one rule") };
    let [clause] = rule.clauses.as_slice() else { panic!("one clause: {rule:?}") };
    let [one] = clause.matches.as_slice() else { panic!("one match: {clause:?}") };
    one.clone()
}

/// The tokens that the waypoint believes at `web`.
fn believed(rule: &str) -> TokenRule {
    let config = config(&shop(&tokens(&format!("{TO_WEB}, jwtRules: [{{{rule}}}]"))), GATE, WEB).unwrap();
    let [rule] = config.authentication() else { panic!("one rule: {rule}") };
    rule.clone()
}

#[test]
fn every_attribute_of_a_request_reaches_its_field() {
    let operation = |list: &str| format!("to: [{{operation: {{{list}}}}}]");
    let source = |list: &str| format!("from: [{{source: {{{list}}}}}]");
    let when = |key: &str, list: &str| format!("when: [{{key: '{key}', {list}: [a, 'b*']}}]");
    let field = |set: &dyn Fn(&mut RequestMatch)| {
        let mut request = RequestMatch::default();
        set(&mut request);
        Match { request: Some(Box::new(request)), ..Match::default() }
    };
    let texts = || vec![Text::Exact("a".into()), Text::Prefix("b".into())];
    let paths = || {
        let template = PathTemplate::parse("/a/{*}/b/{**}").unwrap();
        let prefix = Text::Prefix("/a/".into());
        vec![PathMatch::Text(prefix), PathMatch::Text(Text::Presence), PathMatch::Template(template)]
    };
    let ips = || vec!["10.0.0.0/8".parse().unwrap(), "10.0.0.1/32".parse().unwrap()];
    let condition = |key: &str| {
        let condition = Condition { key: key.parse().unwrap(), values: texts(), not_values: Vec::new() };
        field(&|m| m.conditions = vec![condition.clone()])
    };
    for (rule, want) in [
        (operation("hosts: [a, 'b*']"), field(&|m| m.hosts = texts())),
        (operation("notHosts: [a, 'b*']"), field(&|m| m.not_hosts = texts())),
        (operation("methods: [a, 'b*']"), field(&|m| m.methods = texts())),
        (operation("notMethods: [a, 'b*']"), field(&|m| m.not_methods = texts())),
        (operation("paths: ['/a/*', '*', '/a/{*}/b/{**}']"), field(&|m| m.paths = paths())),
        (operation("notPaths: ['/a/*', '*', '/a/{*}/b/{**}']"), field(&|m| m.not_paths = paths())),
        (source("remoteIpBlocks: [10.0.0.0/8, 10.0.0.1]"), field(&|m| m.remote_ips = ips())),
        (source("notRemoteIpBlocks: [10.0.0.0/8, 10.0.0.1]"), field(&|m| m.not_remote_ips = ips())),
        (source("requestPrincipals: [a, 'b*']"), field(&|m| m.request_principals = texts())),
        (source("notRequestPrincipals: [a, 'b*']"), field(&|m| m.not_request_principals = texts())),
        (when("request.auth.principal", "values"), field(&|m| m.request_principals = texts())),
        (when("request.auth.principal", "notValues"), field(&|m| m.not_request_principals = texts())),
        (
            "when: [{key: remote.ip, values: [10.0.0.0/8, 10.0.0.1]}]".to_owned(),
            field(&|m| m.remote_ips = ips()),
        ),
        (
            "when: [{key: remote.ip, notValues: [10.0.0.0/8, 10.0.0.1]}]".to_owned(),
            field(&|m| m.not_remote_ips = ips()),
        ),
        (when("request.headers[X-Team]", "values"), condition("request.headers[x-team]")),
        (when("request.auth.audiences", "values"), condition("request.auth.audiences")),
        (when("request.auth.presenter", "values"), condition("request.auth.presenter")),
        (when("request.auth.claims[groups]", "values"), condition("request.auth.claims[groups]")),
        (when("request.auth.claims[a][b]", "values"), condition("request.auth.claims[a][b]")),
        (when("connection.sni", "values"), condition("connection.sni")),
        (
            when("request.headers[x]", "notValues"),
            field(&|m| {
                let key = "request.headers[x]".parse().unwrap();
                m.conditions = vec![Condition { key, values: Vec::new(), not_values: texts() }];
            }),
        ),
    ] {
        assert_eq!(only_match(&rule), want, "{rule}");
    }
}

#[test]
fn what_a_tunnel_sees_is_judged_beside_what_only_a_waypoint_sees() {
    let got = only_match("from: [{source: {namespaces: [a], requestPrincipals: ['*']}}]");
    assert_eq!(got.namespaces, [Text::Exact("a".into())]);
    assert_eq!(got.request.unwrap().request_principals, [Text::Presence]);
    let got = only_match("when: [{key: source.serviceAccount, values: [sa], notValues: [x/sa]}]");
    let account =
        |namespace: &str| AccountMatch { namespace: namespace.into(), service_account: "sa".into() };
    assert_eq!(got.service_accounts, [account("shop")]);
    assert_eq!(got.not_service_accounts, [account("x")]);
    assert_eq!(only_match("to: [{operation: {ports: ['80']}}]").destination_ports, [80]);
}

#[test]
fn every_action_reaches_the_waypoint() {
    let rule = "rules: [{to: [{operation: {methods: [GET]}}]}]";
    let of = |action: &str| told(&policy(&format!("{TO_WEB}, {action}, {rule}")));
    let is_of_action = |content, wanted: Action, tried_out: bool| matches!(content, Content::Rules { action, dry_run, .. } if action == wanted && dry_run == tried_out);
    assert!(is_of_action(of("action: ALLOW"), Action::Allow, false));
    assert!(is_of_action(of("action: DENY"), Action::Deny, false));
    assert!(matches!(of("action: AUDIT"), Content::Audit { rules } if rules.len() == 1));
    let Content::Custom { provider, authorizer: None, rules } = of("action: CUSTOM, provider: {name: opa}")
    else {
        panic!("asks")
    };
    assert_eq!((provider.as_str(), rules.len()), ("opa", 1));
    let tried = |action: &str| {
        let spec = format!("{TO_WEB}, action: {action}, {rule}");
        told(&object("AuthorizationPolicy", "shop", "istio.io/dry-run: 'true'", &spec))
    };
    assert!(is_of_action(tried("ALLOW"), Action::Allow, true), "whatever is told to tunnels");
    assert!(is_of_action(tried("DENY"), Action::Deny, true));
    assert_eq!(self::rules(told(&policy(TO_WEB))), [], "an ALLOW that allows nothing");
}

/// Targets, and of `web`, `db` and `out` those that they reach.
#[test]
fn a_policy_applies_to_the_services_that_its_targets_mean() {
    let gateway_api = "group: gateway.networking.k8s.io";
    let class = format!("targetRefs: [{{{gateway_api}, kind: GatewayClass, name: istio-waypoint}}]");
    for (namespace, spec, want) in [
        ("shop", TO_WEB.to_owned(), [true, false, false]),
        ("shop", "targetRef: {group: '', kind: Service, name: db}".to_owned(), [false, true, false]),
        (
            "shop",
            "targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: out}]".to_owned(),
            [false, false, true],
        ),
        ("shop", format!("targetRefs: [{{{gateway_api}, kind: Gateway, name: gate}}]"), [true; 3]),
        ("shop", format!("targetRefs: [{{{gateway_api}, kind: Gateway, name: other}}]"), [false; 3]),
        ("other", format!("targetRefs: [{{{gateway_api}, kind: Gateway, name: gate}}]"), [false; 3]),
        ("other", TO_WEB.to_owned(), [false; 3]),
        ("istio-system", class.clone(), [true; 3]),
        ("shop", class, [false; 3]),
        (
            "istio-system",
            format!("targetRefs: [{{{gateway_api}, kind: GatewayClass, name: istio}}]"),
            [false; 3],
        ),
        ("shop", format!("{TO_WEB}, targetRef: {{kind: Service, name: db}}"), [true, true, false]),
        ("shop", String::new(), [false; 3]),
        ("istio-system", String::new(), [false; 3]),
        ("shop", "selector: {matchLabels: {app: web}}".to_owned(), [false; 3]),
        (
            "shop",
            "selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: gate}}".to_owned(),
            [false; 3],
        ),
    ] {
        let token =
            format!("{spec}{}jwtRules: [{{issuer: 'https://a'}}]", if spec.is_empty() { "" } else { ", " });
        let yaml = object("AuthorizationPolicy", namespace, "", &spec)
            + &object("RequestAuthentication", namespace, "", &token);
        let cluster = shop(&yaml);
        for (service, wanted) in [WEB, DB, OUT].into_iter().zip(want) {
            let config = config(&cluster, GATE, service).unwrap();
            assert_eq!(config.parts().policies.len(), usize::from(wanted), "{namespace} {spec}: {service}");
            assert_eq!(config.authentication().len(), usize::from(wanted), "{namespace} {spec}: {service}");
        }
    }
}

#[test]
fn what_is_addressed_to_workloads_is_judged_by_the_policies_of_its_gateway() {
    let of = |target: &str| policy(&format!("targetRefs: [{target}], action: DENY, rules: [{{}}]"));
    let gateway = of("{group: gateway.networking.k8s.io, kind: Gateway, name: gate}");
    let service = of("{group: '', kind: Service, name: web}");
    let workloads = "shop/_workloads";
    let for_all = |policies: &str| {
        let labelled = SHOP.replace("metadata: {name: gate, namespace: shop}", ALL);
        cluster(&(labelled + policies))
    };
    let policies =
        |cluster: &Cluster| config(cluster, GATE, workloads).map(|config| config.parts().policies.len());
    assert_eq!(policies(&shop(&gateway)), None, "it proxies what is addressed to services alone");
    assert_eq!(policies(&for_all("")), Some(0));
    assert_eq!(policies(&for_all(&gateway)), Some(1));
    assert_eq!(policies(&for_all(&service)), Some(0));
}

/// The waypoint of all traffic.
const ALL: &str = "metadata: {name: gate, namespace: shop, labels: {istio.io/waypoint-for: all}}";

#[test]
fn a_policy_that_several_of_its_targets_bring_is_told_once() {
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: gate}";
    let web = "{group: '', kind: Service, name: web}";
    let cluster = shop(&policy(&format!("targetRefs: [{gateway}, {web}, {web}]")));
    assert_eq!(config(&cluster, GATE, WEB).unwrap().parts().policies.len(), 1);
}

#[test]
fn a_class_that_nobody_wrote_is_of_waypoints_if_it_is_ours() {
    let (_, without_classes) = SHOP.split_once("kind: Namespace").unwrap();
    let spec = "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]";
    let policy = object("AuthorizationPolicy", "istio-system", "", spec);
    let cluster = cluster(&format!("apiVersion: v1\nkind: Namespace{without_classes}{policy}"));
    assert_eq!(config(&cluster, GATE, WEB).unwrap().parts().policies.len(), 1);
    assert_eq!(
        conditions(&cluster, Kind::AuthorizationPolicy, "istio-system", "p"),
        ["WaypointAccepted=true Accepted"]
    );
}

/// What is wrong, and the field that is named.
#[test]
fn a_mistake_is_named_and_until_corrected_denies_at_the_waypoint() {
    let rule = |text: &str| format!("{TO_WEB}, rules: [{{{text}}}]");
    let dry = "istio.io/dry-run: 'true'";
    let annotation = "metadata.annotations[istio.io/dry-run]";
    for (annotations, spec, field) in [
        ("", rule("to: [{operation: {paths: ['/a/{*}b']}}]"), "spec.rules[0].to[0].operation.paths[0]"),
        ("", rule("to: [{operation: {notPaths: ['/a', '']}}]"), "spec.rules[0].to[0].operation.notPaths[1]"),
        ("", rule("to: [{operation: {hosts: ['']}}]"), "spec.rules[0].to[0].operation.hosts[0]"),
        ("", rule("to: [{operation: {method: [GET]}}]"), "spec.rules[0].to[0].operation.method"),
        (
            "",
            rule("from: [{source: {remoteIpBlocks: [a]}}]"),
            "spec.rules[0].from[0].source.remoteIpBlocks[0]",
        ),
        ("", rule("when: [{key: 'request.headers[]', values: [a]}]"), "spec.rules[0].when[0].key"),
        ("", rule("when: [{key: request.auth.claims, values: [a]}]"), "spec.rules[0].when[0].key"),
        ("", rule("when: [{key: experimental.envoy.filters.a.b, values: [a]}]"), "spec.rules[0].when[0].key"),
        ("", rule("when: [{key: remote.ip, values: [a]}]"), "spec.rules[0].when[0].values[0]"),
        ("", rule("when: [{key: 'request.headers[a]'}]"), "spec.rules[0].when[0]"),
        ("", format!("{TO_WEB}, action: CUSTOM"), "spec.provider.name"),
        ("", format!("{TO_WEB}, action: DENY, provider: {{name: opa}}"), "spec.provider.name"),
        (dry, format!("{TO_WEB}, action: AUDIT"), annotation),
        (dry, format!("{TO_WEB}, action: CUSTOM, provider: {{name: opa}}"), annotation),
        ("istio.io/dry-run: maybe", TO_WEB.to_owned(), annotation),
        (
            "",
            "targetRefs: [{group: '', kind: Service, name: web, namespace: other}]".to_owned(),
            "spec.targetRefs[0].namespace",
        ),
    ] {
        let yaml = object("AuthorizationPolicy", "shop", annotations, &spec);
        refused(&yaml, Kind::AuthorizationPolicy, field);
    }
}

#[test]
fn a_mistake_about_tokens_is_named_and_until_corrected_denies_at_the_waypoint() {
    let rule = |text: &str| format!("{TO_WEB}, jwtRules: [{{issuer: 'https://a', {text}}}]");
    for (spec, field) in [
        (format!("{TO_WEB}, jwtRules: [{{jwks: '{{\"keys\": []}}'}}]"), "spec.jwtRules[0].issuer"),
        (format!("{TO_WEB}, jwtRules: [{{issuer: me}}]"), "spec.jwtRules[0].jwksUri"),
        (rule("jwksUri: 'ftp://a/b'"), "spec.jwtRules[0].jwksUri"),
        (rule("jwksUri: keys"), "spec.jwtRules[0].jwksUri"),
        (rule("jwks: '[]'"), "spec.jwtRules[0].jwks"),
        (rule("jwks: '{\"keys\": []}', jwksUri: 'https://a/keys'"), "spec.jwtRules[0].jwks"),
        (rule("audiences: [a, '']"), "spec.jwtRules[0].audiences[1]"),
        (rule("fromHeaders: [{name: 'a b'}]"), "spec.jwtRules[0].fromHeaders"),
        (rule("fromHeaders: [{name: a, prefx: b}]"), "spec.jwtRules[0].fromHeaders[0].prefx"),
        (rule("fromParams: ['']"), "spec.jwtRules[0].fromParams"),
        (rule("fromCookies: ['']"), "spec.jwtRules[0].fromCookies"),
        (rule("outputPayloadToHeader: 'a b'"), "spec.jwtRules[0].outputPayloadToHeader"),
        (rule("outputPayloadToHeader: host"), "spec.jwtRules[0].outputPayloadToHeader"),
        (rule("outputClaimToHeaders: [{header: a}]"), "spec.jwtRules[0].outputClaimToHeaders"),
        (rule("outputClaimToHeaders: [{header: '', claim: sub}]"), "spec.jwtRules[0].outputClaimToHeaders"),
        (
            rule("outputClaimToHeaders: [{header: a, clam: b}]"),
            "spec.jwtRules[0].outputClaimToHeaders[0].clam",
        ),
        (rule("issuers: a"), "spec.jwtRules[0].issuers"),
        (format!("{TO_WEB}, jwtRule: []"), "spec.jwtRule"),
        (format!("{TO_WEB}, selector: {{matchLabels: {{a: b}}}}"), "spec"),
    ] {
        refused(&tokens(&spec), Kind::RequestAuthentication, field);
    }
}

fn refused(yaml: &str, kind: Kind, field: &str) {
    let Parsed::Bad { rejection, instead: Some(instead) } = at_the_door(yaml) else {
        panic!("{yaml} was understood")
    };
    assert_eq!(rejection.field, field, "{rejection}");
    assert!(!rejection.remedy.is_empty());
    let mut all = objects(SHOP);
    all.push(instead);
    let cluster = support::of_objects(Settings::default(), all);
    // With a selector beside targets nobody knows whom it is for: it is told, and nothing else.
    if !yaml.contains("selector") {
        let config = config(&cluster, GATE, WEB).unwrap();
        let [policy] = config.parts().policies.as_slice() else { panic!("one denial: {yaml}") };
        assert_eq!(policy.broken(), Some(rejection.to_string().as_str()));
        assert!(config.authentication().is_empty());
    }
    assert_eq!(conditions(&cluster, kind, "shop", "p"), ["WaypointAccepted=false Invalid"], "{yaml}");
    assert!(authorization(&cluster, "shop", "p").is_none(), "tunnels have nothing to do with it");
}

#[test]
fn every_field_of_a_token_rule_reaches_the_waypoint() {
    let plain = believed("issuer: 'https://a'");
    let want = TokenRule {
        issuer: "https://a".into(),
        audiences: Vec::new(),
        keys: Keys::Discovered,
        places: vec![
            Place::Header { name: header::AUTHORIZATION, prefix: "Bearer ".into() },
            Place::Query("access_token".into()),
        ],
        token: AfterUse::Removed,
        payload_header: None,
        claim_headers: Vec::new(),
    };
    assert_eq!(plain, want);
    let name = HeaderName::from_static;
    let at = |places| TokenRule { places, ..want.clone() };
    let with = |keys| TokenRule { keys, ..want.clone() };
    let prefixed = Place::Header { name: name("x-token"), prefix: "JWT ".into() };
    for (rule, want) in [
        ("audiences: [a, b]", TokenRule { audiences: vec!["a".into(), "b".into()], ..want.clone() }),
        ("jwksUri: 'https://b/keys'", with(Keys::At("https://b/keys".into()))),
        ("jwks_uri: 'http://b/keys'", with(Keys::At("http://b/keys".into()))),
        ("jwks: '{\"keys\": []}'", with(Keys::Inline("{\"keys\": []}".into()))),
        ("fromHeaders: [{name: X-Token, prefix: 'JWT '}]", at(vec![prefixed])),
        ("fromParams: [t]", at(vec![Place::Query("t".into())])),
        ("fromCookies: [t]", at(vec![Place::Cookie("t".into())])),
        ("forwardOriginalToken: true", TokenRule { token: AfterUse::Forwarded, ..want.clone() }),
        (
            "outputPayloadToHeader: X-Payload",
            TokenRule { payload_header: Some(name("x-payload")), ..want.clone() },
        ),
        (
            "outputClaimToHeaders: [{header: X-User, claim: sub}]",
            TokenRule {
                claim_headers: vec![ClaimHeader { header: name("x-user"), claim: "sub".into() }],
                ..want.clone()
            },
        ),
        ("timeout: 3s", want.clone()),
    ] {
        assert_eq!(believed(&format!("issuer: 'https://a', {rule}")), want, "{rule}");
    }
}

#[test]
fn authors_are_told_whether_a_waypoint_enforces_it() {
    let service = |name: &str| format!("{{group: '', kind: Service, name: {name}}}");
    let gateway = |name: &str| format!("{{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}");
    let class =
        |name: &str| format!("{{group: gateway.networking.k8s.io, kind: GatewayClass, name: {name}}}");
    let entry = "{group: networking.istio.io, kind: ServiceEntry, name: out}".to_owned();
    let both = |one: String, other: String| format!("{one}, {other}");
    for (namespace, targets, want) in [
        ("shop", service("web"), "true Accepted"),
        ("shop", entry, "true Accepted"),
        ("shop", gateway("gate"), "true Accepted"),
        ("istio-system", class("istio-waypoint"), "true Accepted"),
        ("istio-system", class("istio"), "false TargetNotFound"),
        ("shop", class("istio-waypoint"), "false TargetNotFound"),
        ("shop", service("none"), "false TargetNotFound"),
        ("shop", gateway("none"), "false TargetNotFound"),
        ("other", service("web"), "false TargetNotFound"),
        ("shop", "{kind: Pod, name: web}".to_owned(), "false TargetNotFound"),
        ("shop", service("bare"), "false AncestorNotBound"),
        ("shop", service("waiting"), "false AncestorNotBound"),
        ("shop", gateway("front"), "false AncestorNotBound"),
        ("shop", both(service("bare"), service("none")), "false AncestorNotBound"),
        ("shop", both(service("web"), service("none")), "true PartiallyInvalid"),
        ("shop", both(service("web"), service("bare")), "true PartiallyInvalid"),
    ] {
        let spec = format!("targetRefs: [{targets}]");
        let yaml = object("AuthorizationPolicy", namespace, "", &spec)
            + &object("RequestAuthentication", namespace, "", &spec);
        let cluster = shop(&yaml);
        for kind in [Kind::AuthorizationPolicy, Kind::RequestAuthentication] {
            assert_eq!(
                conditions(&cluster, kind, namespace, "p"),
                [format!("WaypointAccepted={want}")],
                "{namespace} {targets}"
            );
        }
    }
}

#[test]
fn authors_are_told_what_is_not_as_they_may_think() {
    let message = |kind, yaml: &str| {
        let key = Key { kind, name: Name::new("shop", "p") };
        let conditions = status::of(&shop(yaml), &key);
        let [condition] = conditions.as_slice() else { panic!("one condition") };
        (condition.status, condition.reason, condition.message.clone())
    };
    for spec in ["", "selector: {matchLabels: {app: web}}"] {
        let (status, reason, text) = message(Kind::RequestAuthentication, &tokens(spec));
        assert_eq!((status, reason), (false, "AncestorNotBound"), "{spec}");
        assert!(text.contains("applies to nothing"), "{text}");
    }
    let timeout = tokens(&format!("{TO_WEB}, jwtRules: [{{issuer: 'https://a', timeout: 1s}}]"));
    assert!(message(Kind::RequestAuthentication, &timeout).2.contains("timeout is not used"));
    let custom = policy(&format!("{TO_WEB}, action: CUSTOM, provider: {{name: opa}}"));
    let (status, reason, text) = message(Kind::AuthorizationPolicy, &custom);
    assert_eq!((status, reason), (false, "UnknownProvider"));
    assert!(text.contains("provider opa does not exist: what matches is denied; create ConfigMap"), "{text}");
    let dry = object("AuthorizationPolicy", "shop", "istio.io/dry-run: 'true'", TO_WEB);
    assert!(message(Kind::AuthorizationPolicy, &dry).2.contains("decides nothing"));
}
