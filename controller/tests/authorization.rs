//! AuthorizationPolicy, line by line of protocols 6.6, edge cases 20 and 27, and mistakes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use ambit_controller::cluster::object::{Kind, Name, Parsed};
use ambit_controller::cluster::{L7Deny, Settings};
use ambit_controller::source::Event;
use ambit_controller::translate::PolicySource;
use ambit_model::authz::{Action, Clause, Content, Match, Rule, Scope, Text};
use support::{
    at_the_door, authorization, cluster, cluster_with, conditions, objects, pod, pod_yaml, policy, verdict,
    verdict_from,
};

fn yaml(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n---\n"
    )
}

fn rules(spec: &str) -> Vec<Rule> {
    match authorization(&cluster(&yaml("shop", spec)), "shop", "p").unwrap().content {
        Content::Rules { rules, .. } => rules,
        other @ (Content::Custom { .. } | Content::Audit { .. } | Content::Undecodable { .. }) => {
            unreachable!("{other:?}")
        }
    }
}

fn clause(matches: Vec<Match>) -> Clause {
    Clause { matches }
}

#[test]
fn scope_follows_from_selector_and_namespace() {
    let selector = "selector: {matchLabels: {app: web}}";
    for (namespace, spec, want) in [
        ("shop", "", Some(Scope::Namespace)),
        ("shop", "selector: {}", Some(Scope::Namespace)),
        ("istio-system", "", Some(Scope::Global)),
        ("shop", selector, Some(Scope::WorkloadSelector)),
        ("istio-system", selector, Some(Scope::WorkloadSelector)),
        ("shop", "targetRefs: [{kind: Gateway, name: g, group: gateway.networking.k8s.io}]", None),
        ("shop", "targetRef: {kind: Service, name: s}", None),
    ] {
        let got = authorization(&cluster(&yaml(namespace, spec)), namespace, "p").map(|policy| policy.scope);
        assert_eq!(got, want, "{namespace} {spec}");
    }
}

#[test]
fn selected_workloads_name_the_policy_in_its_namespace_or_everywhere() {
    let pods = pod_yaml("shop", "web", "10.0.0.1", "app: web")
        + &pod_yaml("shop", "db", "10.0.0.2", "app: db")
        + &pod_yaml("other", "web", "10.0.0.3", "app: web");
    for (namespace, want) in [("shop", [true, false, false]), ("istio-system", [true, false, true])] {
        let cluster = cluster(&(pods.clone() + &yaml(namespace, "selector: {matchLabels: {app: web}}")));
        let names =
            |namespace, name| !pod(&cluster, namespace, name).unwrap().authorization_policies.is_empty();
        assert_eq!([names("shop", "web"), names("shop", "db"), names("other", "web")], want, "{namespace}");
    }
}

#[test]
fn every_rule_is_a_clause_for_to_one_for_from_and_one_for_each_when() {
    let got = rules(
        "action: DENY, rules: [{from: [{source: {namespaces: [a], notIpBlocks: [10.0.0.1]}}, {source: {principals: ['*']}}], \
         to: [{operation: {ports: ['80'], notPorts: ['81']}}, {operation: {ports: ['82']}}], \
         when: [{key: source.ip, values: [10.0.0.0/8]}, {key: destination.port, notValues: ['83']}]}]",
    );
    let to = vec![
        Match { destination_ports: vec![80], not_destination_ports: vec![81], ..Match::default() },
        Match { destination_ports: vec![82], ..Match::default() },
    ];
    let from = vec![
        Match {
            namespaces: vec![Text::Exact("a".into())],
            not_source_ips: vec!["10.0.0.1/32".parse().unwrap()],
            ..Match::default()
        },
        Match { principals: vec![Text::Presence], ..Match::default() },
    ];
    let when = [
        Match { source_ips: vec!["10.0.0.0/8".parse().unwrap()], ..Match::default() },
        Match { not_destination_ports: vec![83], ..Match::default() },
    ];
    let clauses = [to, from].into_iter().chain(when.map(|one| vec![one])).map(clause).collect();
    assert_eq!(got, [Rule { clauses }]);
}

#[test]
fn an_empty_rule_matches_all_and_no_rule_matches_nothing() {
    assert_eq!(rules("rules: [{}]"), [Rule::default()]);
    assert_eq!(rules(""), []);
    let web = pod_yaml("shop", "web", "10.0.0.1", "app: web");
    for (spec, allowed) in
        [("", false), ("rules: [{}]", true), ("action: DENY, rules: [{}]", false), ("action: DENY", true)]
    {
        let cluster = cluster(&(web.clone() + &yaml("shop", spec)));
        let web = pod(&cluster, "shop", "web").unwrap();
        assert_eq!(verdict(&cluster, &web, 80, None).is_allowed(), allowed, "{spec}");
    }
}

#[test]
fn texts_are_exact_prefix_suffix_or_presence() {
    for (text, want) in [
        ("*", Text::Presence),
        ("*a", Text::Suffix("a".into())),
        ("a*", Text::Prefix("a".into())),
        ("*a*", Text::Suffix("a*".into())),
        ("a*b", Text::Exact("a*b".into())),
    ] {
        let got = rules(&format!("rules: [{{from: [{{source: {{namespaces: ['{text}']}}}}]}}]"));
        assert_eq!(got[0].clauses[0].matches[0].namespaces, [want], "{text}");
    }
}

/// Every attribute of a source, an operation and a condition that a tunnel sees, with its negation.
#[test]
fn every_attribute_of_a_connection_reaches_its_field() {
    let source = |list: &str| format!("rules: [{{from: [{{source: {{{list}}}}}]}}]");
    let when = |condition: &str| format!("rules: [{{when: [{{{condition}}}]}}]");
    let field = |set: &dyn Fn(&mut Match)| {
        let mut one = Match::default();
        set(&mut one);
        one
    };
    let a = || vec![Text::Exact("a".into())];
    let ip = || vec!["10.0.0.0/8".parse().unwrap()];
    let account = |namespace: &str| {
        vec![ambit_model::authz::AccountMatch { namespace: namespace.into(), service_account: "sa".into() }]
    };
    for (spec, want) in [
        (source("principals: [a]"), field(&|m| m.principals = a())),
        (source("notPrincipals: [a]"), field(&|m| m.not_principals = a())),
        (source("namespaces: [a]"), field(&|m| m.namespaces = a())),
        (source("notNamespaces: [a]"), field(&|m| m.not_namespaces = a())),
        (source("serviceAccounts: [sa]"), field(&|m| m.service_accounts = account("shop"))),
        (source("serviceAccounts: [x/sa]"), field(&|m| m.service_accounts = account("x"))),
        (source("notServiceAccounts: [x/sa]"), field(&|m| m.not_service_accounts = account("x"))),
        (source("ipBlocks: [10.1.2.3/8]"), field(&|m| m.source_ips = ip())),
        (source("notIpBlocks: [10.0.0.0/8]"), field(&|m| m.not_source_ips = ip())),
        (when("key: source.ip, values: [10.0.0.0/8]"), field(&|m| m.source_ips = ip())),
        (when("key: source.ip, notValues: [10.0.0.0/8]"), field(&|m| m.not_source_ips = ip())),
        (when("key: source.namespace, values: [a]"), field(&|m| m.namespaces = a())),
        (when("key: source.namespace, notValues: [a]"), field(&|m| m.not_namespaces = a())),
        (when("key: source.principal, values: [a]"), field(&|m| m.principals = a())),
        (when("key: source.principal, notValues: [a]"), field(&|m| m.not_principals = a())),
        (when("key: destination.ip, values: [10.0.0.0/8]"), field(&|m| m.destination_ips = ip())),
        (when("key: destination.ip, notValues: [10.0.0.0/8]"), field(&|m| m.not_destination_ips = ip())),
        (when("key: destination.port, values: ['80']"), field(&|m| m.destination_ports = vec![80])),
        (when("key: destination.port, notValues: ['80']"), field(&|m| m.not_destination_ports = vec![80])),
    ] {
        assert_eq!(rules(&spec), [Rule { clauses: vec![clause(vec![want])] }], "{spec}");
    }
}

const L7: [&str; 13] = [
    "to: [{operation: {hosts: [a]}}]",
    "to: [{operation: {notHosts: [a]}}]",
    "to: [{operation: {methods: [GET]}}]",
    "to: [{operation: {notMethods: [GET]}}]",
    "to: [{operation: {paths: [/a]}}]",
    "to: [{operation: {notPaths: [/a]}}]",
    "from: [{source: {remoteIpBlocks: [10.0.0.1]}}]",
    "from: [{source: {notRemoteIpBlocks: [10.0.0.1]}}]",
    "from: [{source: {requestPrincipals: ['*']}}]",
    "from: [{source: {notRequestPrincipals: ['*']}}]",
    "when: [{key: 'request.headers[x]', values: [a]}]",
    "when: [{key: request.auth.claims, values: [a]}]",
    "when: [{key: connection.sni, values: [a]}]",
];

/// Edge case 27.
#[test]
fn an_allow_that_needs_a_waypoint_allows_less() {
    for rule in L7 {
        assert_eq!(
            rules(&format!("rules: [{{{rule}}}, {{to: [{{operation: {{ports: ['80']}}}}]}}]")).len(),
            1,
            "{rule}"
        );
        let cluster = cluster(&yaml("shop", &format!("rules: [{{{rule}}}]")));
        assert_eq!(
            conditions(&cluster, Kind::AuthorizationPolicy, "shop", "p"),
            ["ZtunnelAccepted=true UnsupportedValue"]
        );
    }
}

/// Edge case 27: not a silent no-op, unless the operator wants Istio's.
#[test]
fn a_deny_that_needs_a_waypoint_denies_what_it_names_or_nothing_as_the_operator_says() {
    let web = pod_yaml("shop", "web", "10.0.0.1", "app: web");
    for rule in L7 {
        for (l7_deny, denied) in [(L7Deny::Deny, true), (L7Deny::Upstream, false)] {
            let settings = Settings { l7_deny, ..Settings::default() };
            let text = web.clone() + &yaml("shop", &format!("action: DENY, rules: [{{{rule}}}]"));
            let cluster = cluster_with(settings, &text);
            let web = pod(&cluster, "shop", "web").unwrap();
            assert_eq!(!verdict(&cluster, &web, 80, None).is_allowed(), denied, "{rule} {l7_deny:?}");
            assert_eq!(
                conditions(&cluster, Kind::AuthorizationPolicy, "shop", "p"),
                ["ZtunnelAccepted=true UnsupportedValue"]
            );
        }
    }
}

#[test]
fn a_deny_keeps_what_a_tunnel_can_see_of_it() {
    let text = pod_yaml("shop", "web", "10.0.0.1", "app: web")
        + &yaml(
            "shop",
            "action: DENY, rules: [{from: [{source: {namespaces: [bad], requestPrincipals: ['*']}}], \
             to: [{operation: {ports: ['80'], methods: [GET]}}], when: [{key: 'request.headers[x]', values: [a]}]}]",
        );
    for (l7_deny, denied) in [(L7Deny::Deny, true), (L7Deny::Upstream, false)] {
        let cluster = cluster_with(Settings { l7_deny, ..Settings::default() }, &text);
        let web = pod(&cluster, "shop", "web").unwrap();
        let bad = Some("spiffe://cluster.local/ns/bad/sa/a");
        let good = Some("spiffe://cluster.local/ns/good/sa/a");
        assert_eq!(!verdict(&cluster, &web, 80, bad).is_allowed(), denied, "{l7_deny:?}");
        assert!(verdict(&cluster, &web, 81, bad).is_allowed());
        assert!(verdict(&cluster, &web, 80, good).is_allowed());
    }
    // A match beside one of which nothing is left: either of them.
    let two = yaml(
        "shop",
        "action: DENY, rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}]",
    );
    let text = pod_yaml("shop", "web", "10.0.0.1", "app: web") + &two;
    for (l7_deny, denied) in [(L7Deny::Deny, [true, true]), (L7Deny::Upstream, [true, false])] {
        let cluster = cluster_with(Settings { l7_deny, ..Settings::default() }, &text);
        let web = pod(&cluster, "shop", "web").unwrap();
        assert_eq!(
            [80, 81].map(|port| !verdict(&cluster, &web, port, None).is_allowed()),
            denied,
            "{l7_deny:?}"
        );
    }
}

#[test]
fn audit_custom_and_dry_run_are_not_sent_and_said_so() {
    let dry = yaml("shop", "rules: [{}]")
        .replace("{name: p,", "{name: p, annotations: {istio.io/dry-run: \"true\"},");
    for text in
        [yaml("shop", "action: AUDIT"), yaml("shop", "action: CUSTOM, provider: {name: x}"), dry.clone()]
    {
        let cluster = cluster(&text);
        assert_eq!(authorization(&cluster, "shop", "p"), None, "{text}");
        assert_eq!(
            conditions(&cluster, Kind::AuthorizationPolicy, "shop", "p"),
            ["ZtunnelAccepted=false UnsupportedValue"]
        );
    }
    let cluster = cluster_with(Settings { dry_run_policies: true, ..Settings::default() }, &dry);
    assert!(authorization(&cluster, "shop", "p").unwrap().is_dry_run());
    assert_eq!(
        conditions(&cluster, Kind::AuthorizationPolicy, "shop", "p"),
        ["ZtunnelAccepted=true Accepted"]
    );
}

#[test]
fn a_policy_that_is_not_sent_is_named_by_nobody() {
    let text = pod_yaml("shop", "web", "10.0.0.1", "app: web")
        + &yaml("shop", "selector: {matchLabels: {app: web}}, action: AUDIT");
    assert!(pod(&cluster(&text), "shop", "web").unwrap().authorization_policies.is_empty());
}

/// What is wrong, and the field that is named.
#[test]
fn a_mistake_is_named_and_until_corrected_denies_in_its_scope() {
    let pods =
        pod_yaml("shop", "web", "10.0.0.1", "app: web") + &pod_yaml("shop", "db", "10.0.0.2", "app: db");
    let one = |spec: &str| format!("rules: [{{{spec}}}]");
    for (spec, field) in [
        (one("to: [{operation: {ports: [http]}}]"), "spec.rules[0].to[0].operation.ports[0]"),
        (one("to: [{operation: {ports: ['0']}}]"), "spec.rules[0].to[0].operation.ports[0]"),
        (one("to: [{operation: {ports: [80]}}]"), "spec.rules[0].to[0].operation.ports[0]"),
        (one("to: [{operation: {}}]"), "spec.rules[0].to[0].operation"),
        (one("to: [{operation: {port: ['80']}}]"), "spec.rules[0].to[0].operation.port"),
        (one("from: [{source: {ipBlocks: [10.0.0]}}]"), "spec.rules[0].from[0].source.ipBlocks[0]"),
        (one("from: [{source: {namespaces: ['']}}]"), "spec.rules[0].from[0].source.namespaces[0]"),
        (
            one("from: [{source: {serviceAccounts: [a/b/c]}}]"),
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        (
            one("from: [{source: {serviceAccounts: ['*']}}]"),
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        (one("from: [{sources: {namespaces: [a]}}]"), "spec.rules[0].from[0].sources"),
        (one("fromm: []"), "spec.rules[0].fromm"),
        (one("when: [{values: [a]}]"), "spec.rules[0].when[0].key"),
        (one("when: [{key: source.ip}]"), "spec.rules[0].when[0]"),
        (one("when: [{key: source.ip, values: [a]}]"), "spec.rules[0].when[0].values[0]"),
        ("action: Deny".to_owned(), "spec.action"),
        ("ruls: []".to_owned(), "spec.ruls"),
        ("selector: {matchlabels: {app: web}}".to_owned(), "spec.selector.matchlabels"),
        ("rules: {}".to_owned(), "spec.rules"),
    ] {
        for selector in ["", "selector: {matchLabels: {app: web}}, "] {
            if !selector.is_empty() && spec.contains("selector") {
                continue;
            }
            let Parsed::Bad { rejection, instead: Some(instead) } =
                at_the_door(&yaml("shop", &format!("{selector}{spec}")))
            else {
                unreachable!("{spec} was understood")
            };
            assert_eq!(rejection.field, field, "{rejection}");
            assert!(!rejection.remedy.is_empty());
            let mut all = objects(&pods);
            all.push(instead);
            let cluster = support::of_objects(Settings::default(), all);
            let denied = |name| {
                let to = pod(&cluster, "shop", name).unwrap();
                !verdict(&cluster, &to, 80, Some("spiffe://cluster.local/ns/shop/sa/a")).is_allowed()
            };
            assert!(denied("web"), "{spec}");
            assert_eq!(denied("db"), selector.is_empty(), "{spec}");
            assert_eq!(
                conditions(&cluster, Kind::AuthorizationPolicy, "shop", "p"),
                ["ZtunnelAccepted=false Invalid"]
            );
        }
    }
}

#[test]
fn a_waypoints_policy_that_is_not_understood_is_not_the_tunnels_business() {
    let spec = "targetRefs: [{kind: Service, name: s}], action: Deny";
    let Parsed::Bad { instead: Some(instead), .. } = at_the_door(&yaml("shop", spec)) else { unreachable!() };
    let cluster = support::of_objects(Settings::default(), vec![instead]);
    assert_eq!(authorization(&cluster, "shop", "p"), None);
    assert_eq!(
        conditions(&cluster, Kind::AuthorizationPolicy, "shop", "p"),
        ["WaypointAccepted=false Invalid"]
    );
}

/// A name with a `_` could be taken for one of those that the mesh makes up.
#[test]
fn no_policy_can_pass_itself_off_as_one_of_the_mesh() {
    let text =
        yaml("istio-system", "rules: [{}]").replace("name: p,", "name: istio_converted_static_strict,");
    let Parsed::Bad { rejection, instead: Some(instead) } = at_the_door(&text) else { unreachable!() };
    assert_eq!(rejection.field, "metadata.name");
    assert_ne!(instead.key().name.name.as_str(), "istio_converted_static_strict");
}

/// Edge case 20.
#[test]
fn a_policy_that_changes_its_scope_is_one_policy_with_another_scope() {
    let mut cluster = cluster(&(pod_yaml("shop", "web", "10.0.0.1", "app: web") + &yaml("shop", "")));
    assert_eq!(authorization(&cluster, "shop", "p").unwrap().scope, Scope::Namespace);
    for object in objects(&yaml("shop", "selector: {matchLabels: {app: web}}")) {
        cluster.apply(Event::Upsert(object));
    }
    assert_eq!(authorization(&cluster, "shop", "p").unwrap().scope, Scope::WorkloadSelector);
    assert_eq!(pod(&cluster, "shop", "web").unwrap().authorization_policies.len(), 1);
}

const GATE: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gate, namespace: shop}\n\
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: {addresses: [{value: 10.5.0.1}]}\n---\n";

#[test]
fn a_waypoint_is_let_in_if_the_mesh_wants_that() {
    let text = pod_yaml("shop", "web", "10.0.0.1", "app: web")
        + &pod_yaml("shop", "gate-1", "10.0.0.2", "gateway.networking.k8s.io/gateway-name: gate")
        + GATE
        + "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gate}}\n\
           spec: {selector: {app: web}, ports: [{port: 80}]}\n";
    let cluster = cluster_with(Settings { auto_allow_waypoints: true, ..Settings::default() }, &text);
    let got = policy(&cluster, PolicySource::AllowWaypoint(Name::new("shop", "gate"))).unwrap();
    assert_eq!(
        (got.key.to_string().as_str(), got.scope),
        ("shop/istio_allow_waypoint_shop_gate", Scope::WorkloadSelector)
    );
    assert!(matches!(got.content, Content::Rules { action: Action::Allow, .. }));
    let web = pod(&cluster, "shop", "web").unwrap();
    assert_eq!(*web.authorization_policies, [got.key]);
    assert!(
        verdict_from(&cluster, &web, 80, Some("spiffe://cluster.local/ns/shop/sa/gate-1"), "10.0.0.2")
            .is_allowed()
    );
    assert!(!verdict(&cluster, &web, 80, Some("spiffe://cluster.local/ns/shop/sa/other")).is_allowed());
    assert_eq!(
        policy(&support::cluster(&text), PolicySource::AllowWaypoint(Name::new("shop", "gate"))),
        None
    );
}
