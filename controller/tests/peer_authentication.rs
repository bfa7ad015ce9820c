//! PeerAuthentication, line by line of protocols 6.5, and judged by the very function that tunnels judge by.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use ambit_controller::cluster::object::Name;
use ambit_controller::translate::PolicySource;
use ambit_model::authz::{Action, Clause, Content, Match, Policy, Rule, Scope, Text};
use proptest::prelude::*;
use support::{cluster, pod, pod_yaml, policies, policy, verdict};

fn peer_authentication(namespace: &str, name: &str, created: u32, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: 20{created}-01-01T00:00:00Z}}\nspec: {{{spec}}}\n---\n"
    )
}

fn web() -> String {
    pod_yaml("shop", "web", "10.0.0.1", "app: web")
}

fn own(mode: &str, ports: &str) -> String {
    peer_authentication(
        "shop",
        "own",
        20,
        &format!(
            "selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}"
        ),
    )
}

const STATIC: &str = "istio-system/istio_converted_static_strict";
const CONVERTED: &str = "shop/converted_peer_authentication_own";

fn references(yaml: &str) -> Vec<String> {
    let web = pod(&cluster(yaml), "shop", "web").unwrap();
    web.authorization_policies.iter().map(ToString::to_string).collect()
}

/// The reference table of protocols 6.5, with the wider policy said by the namespace and by the mesh.
#[test]
fn a_workload_names_the_policy_of_the_reference_table() {
    let strict = "80: {mode: STRICT}";
    let permissive = "80: {mode: PERMISSIVE}";
    let disable = "80: {mode: DISABLE}";
    let (none, static_one, merged): (&[&str], &[&str], &[&str]) = (&[], &[STATIC], &[CONVERTED]);
    let table = [
        (None, true, static_one),
        (None, false, none),
        (Some(("STRICT", "")), false, static_one),
        (Some(("STRICT", strict)), false, static_one),
        (Some(("STRICT", permissive)), false, merged),
        (Some(("STRICT", disable)), true, merged),
        (Some(("STRICT", "80: {mode: UNSET}")), true, static_one),
        (Some(("PERMISSIVE", strict)), true, merged),
        (Some(("DISABLE", strict)), false, merged),
        (Some(("PERMISSIVE", "")), true, none),
        (Some(("DISABLE", permissive)), true, none),
        (Some(("UNSET", permissive)), true, merged),
        (Some(("UNSET", disable)), true, static_one),
        (Some(("UNSET", strict)), true, static_one),
        (Some(("UNSET", "")), true, static_one),
        (Some(("UNSET", strict)), false, merged),
        (Some(("UNSET", permissive)), false, none),
        (Some(("UNSET", "")), false, none),
    ];
    for (of_workload, parent_strict, want) in table {
        for parent in ["shop", "istio-system"] {
            let mode = if parent_strict { "STRICT" } else { "PERMISSIVE" };
            let mut yaml =
                web() + &peer_authentication(parent, "default", 20, &format!("mtls: {{mode: {mode}}}"));
            if let Some((mode, ports)) = of_workload {
                yaml += &own(mode, ports);
            }
            assert_eq!(references(&yaml), want, "{of_workload:?} under {mode} of {parent}");
        }
    }
}

#[test]
fn the_narrower_policy_counts_and_of_equals_the_oldest() {
    let of = |namespace, name, created, mode| {
        peer_authentication(namespace, name, created, &format!("mtls: {{mode: {mode}}}"))
    };
    for (policies, strict) in [
        (vec![of("istio-system", "a", 20, "STRICT")], true),
        (vec![of("istio-system", "a", 20, "STRICT"), of("shop", "a", 20, "PERMISSIVE")], false),
        (vec![of("istio-system", "a", 20, "STRICT"), of("shop", "a", 20, "UNSET")], true),
        (vec![of("istio-system", "a", 21, "STRICT"), of("istio-system", "b", 20, "PERMISSIVE")], false),
        (vec![of("shop", "a", 21, "PERMISSIVE"), of("shop", "b", 20, "STRICT")], true),
        (vec![of("other", "a", 20, "STRICT")], false),
    ] {
        let got = references(&(web() + &policies.concat()));
        assert_eq!(!got.is_empty(), strict, "{policies:?}");
    }
}

#[test]
fn of_two_policies_of_a_workload_the_oldest_counts() {
    let selecting = |name, created, mode| {
        peer_authentication(
            "shop",
            name,
            created,
            &format!("selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: {mode}}}"),
        )
    };
    assert_eq!(
        references(&(web() + &selecting("a", 21, "PERMISSIVE") + &selecting("b", 20, "STRICT"))),
        [STATIC]
    );
    assert!(
        references(&(web() + &selecting("a", 20, "PERMISSIVE") + &selecting("b", 21, "STRICT"))).is_empty()
    );
}

#[test]
fn a_selector_in_the_root_namespace_selects_nothing() {
    let spec =
        "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}}";
    let yaml = pod_yaml("istio-system", "web", "10.0.0.1", "app: web")
        + &peer_authentication("istio-system", "own", 20, spec);
    let cluster = cluster(&yaml);
    assert!(pod(&cluster, "istio-system", "web").unwrap().authorization_policies.is_empty());
    assert_eq!(policy(&cluster, PolicySource::Converted(Name::new("istio-system", "own"))), None);
}

#[test]
fn the_static_policy_is_sent_as_soon_as_there_is_any_peer_authentication() {
    assert!(policies(&cluster(&web())).is_empty());
    let cluster = cluster(&(web() + &peer_authentication("other", "x", 20, "")));
    let got = policies(&cluster);
    let no_identity = Match { not_principals: vec![Text::Presence], ..Match::default() };
    let [
        Policy {
            key,
            scope: Scope::WorkloadSelector,
            content: Content::Rules { action: Action::Deny, rules, dry_run: false },
        },
    ] = got.as_slice()
    else {
        unreachable!("{got:?}")
    };
    assert_eq!(key.to_string(), STATIC);
    assert_eq!(*rules, [Rule { clauses: vec![Clause { matches: vec![no_identity] }] }]);
}

fn converted(mode: &str, ports: &str) -> Option<Vec<Rule>> {
    let cluster = cluster(&(web() + &own(mode, ports)));
    let content = policy(&cluster, PolicySource::Converted(Name::new("shop", "own")))?.content;
    let Content::Rules { action: Action::Deny, rules, dry_run: false } = content else {
        unreachable!("{content:?}")
    };
    Some(rules)
}

/// Edge case 26: strict ports are rules of their own, any of which denies.
#[test]
fn each_strict_port_under_a_permissive_default_is_a_rule() {
    let port = |port| {
        let one =
            Match { not_principals: vec![Text::Presence], destination_ports: vec![port], ..Match::default() };
        Rule { clauses: vec![Clause { matches: vec![one] }] }
    };
    let ports = "80: {mode: STRICT}, 81: {mode: PERMISSIVE}, 82: {mode: STRICT}";
    assert_eq!(converted("PERMISSIVE", ports), Some(vec![port(80), port(82)]));
    assert_eq!(converted("UNSET", ports), Some(vec![port(80), port(82)]));
    assert_eq!(converted("PERMISSIVE", "81: {mode: PERMISSIVE}"), None);
}

/// Edge case 26: all exceptions are one rule, all of whose clauses must hold.
#[test]
fn exceptions_under_a_strict_default_are_one_rule() {
    let clause = |one| Clause { matches: vec![one] };
    let not = |port| clause(Match { not_destination_ports: vec![port], ..Match::default() });
    let no_identity = clause(Match { not_principals: vec![Text::Presence], ..Match::default() });
    let ports = "80: {mode: PERMISSIVE}, 81: {mode: STRICT}, 82: {mode: DISABLE}";
    assert_eq!(converted("STRICT", ports), Some(vec![Rule { clauses: vec![no_identity, not(80), not(82)] }]));
    assert_eq!(converted("STRICT", "81: {mode: STRICT}"), None);
}

#[test]
fn a_mistake_is_named_and_until_corrected_taken_for_strict() {
    use ambit_controller::cluster::Settings;
    use ambit_controller::cluster::object::Parsed;
    for (spec, field) in [
        ("mtls: {mode: strict}", "spec.mtls.mode"),
        ("mtls: {mode: STRICT}, portLevelMtls: {http: {mode: STRICT}}", "spec.portLevelMtls.http"),
        ("mtls: {mode: STRICT}, portLevelMtls: {70000: {mode: STRICT}}", "spec.portLevelMtls.70000"),
        ("mtl: {mode: STRICT}", "spec.mtl"),
        ("mtls: {mod: STRICT}", "spec.mtls.mod"),
        ("selector: {labels: {a: b}}", "spec.selector.labels"),
    ] {
        let Parsed::Bad { rejection, instead: Some(instead) } =
            support::at_the_door(&peer_authentication("shop", "x", 20, spec))
        else {
            unreachable!("{spec} was understood")
        };
        assert_eq!(rejection.field, field);
        assert!(!rejection.remedy.is_empty());
        let mut objects = support::objects(&web());
        objects.push(instead);
        let cluster = support::of_objects(Settings::default(), objects);
        let web = pod(&cluster, "shop", "web").unwrap();
        assert!(!verdict(&cluster, &web, 80, None).is_allowed(), "{spec}");
        assert!(
            verdict(&cluster, &web, 80, Some("spiffe://cluster.local/ns/shop/sa/a")).is_allowed(),
            "{spec}"
        );
    }
}

fn mode() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"][..])
}

proptest! {
    /// The meaning, said in one line, against the table and the rules that make tunnels do it.
    #[test]
    fn plain_text_is_refused_exactly_where_the_narrowest_set_mode_is_strict(
        mesh in mode(), namespace in mode(), workload in prop::option::of(mode()),
        ports in prop::collection::btree_map(80u16..84, mode(), 0..4), port in 80u16..85,
    ) {
        let mut yaml = web()
            + &peer_authentication("istio-system", "mesh", 20, &format!("mtls: {{mode: {mesh}}}"))
            + &peer_authentication("shop", "ns", 20, &format!("mtls: {{mode: {namespace}}}"));
        if let Some(mode) = workload {
            let ports: Vec<_> = ports.iter().map(|(port, mode)| format!("{port}: {{mode: {mode}}}")).collect();
            yaml += &own(mode, &ports.join(", "));
        }
        let set = |mode: &&str| *mode != "UNSET";
        let default = workload.filter(set).or(Some(namespace).filter(set)).unwrap_or(mesh);
        let of_port = workload.and_then(|_| ports.get(&port)).copied().filter(set);
        // DISABLE makes an exception from an inherited default only beside PERMISSIVE (the table above).
        let inherited = workload.is_none_or(|mode| mode == "UNSET") && default == "STRICT";
        let counts = !inherited || ports.values().any(|mode| *mode == "PERMISSIVE");
        let effective = of_port.filter(|_| counts).unwrap_or(default);

        let cluster = cluster(&yaml);
        let web = pod(&cluster, "shop", "web").unwrap();
        prop_assert_eq!(verdict(&cluster, &web, port, None).is_allowed(), effective != "STRICT");
        prop_assert!(verdict(&cluster, &web, port, Some("spiffe://cluster.local/ns/x/sa/y")).is_allowed());
    }
}
