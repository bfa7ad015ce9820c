//! What an authorization policy allows: protocols 6.2 and 6.3, line by line.

#![cfg(test)]

use ambit_model::{
    authz::{
        AccountMatch, Action, By, Clause, Content, Facts, Match, Policy, Rule, Scope, Text, Verdict, check,
        dry_run,
    },
    identity::Identity,
    name::PolicyKey,
};
use proptest::prelude::*;

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    let content = Content::Rules { action, rules, dry_run: false };
    Policy { key: PolicyKey::new("ns", name), scope: Scope::Namespace, content }
}

fn dry(policy: Policy) -> Policy {
    let Content::Rules { action, rules, .. } = policy.content else { unreachable!("built above") };
    Policy { content: Content::Rules { action, rules, dry_run: true }, ..policy }
}

/// A rule of one clause of one match.
fn when(one: Match) -> Rule {
    Rule { clauses: vec![Clause { matches: vec![one] }] }
}

fn anything() -> Rule {
    Rule::default()
}

fn never() -> Rule {
    when(Match { destination_ports: vec![1], ..Match::default() })
}

fn judge(policies: &[Policy], peer: Option<&Identity>) -> Verdict {
    check(policies, &facts(peer))
}

fn facts(peer: Option<&Identity>) -> Facts<'_> {
    Facts {
        peer,
        source: "10.0.0.9".parse().expect("an address"),
        destination: "10.0.0.1:8080".parse().expect("an address"),
        seen: None,
    }
}

fn web() -> Identity {
    Identity::new("td", "shop", "web")
}

fn allow(rules: Vec<Rule>) -> Policy {
    policy("allow", Action::Allow, rules)
}

fn deny(rules: Vec<Rule>) -> Policy {
    policy("deny", Action::Deny, rules)
}

fn by(name: &str) -> By {
    By::Policy(PolicyKey::new("ns", name))
}

#[test]
fn the_truth_table_holds() {
    let undecodable = Policy::undecodable(PolicyKey::new("ns", "broken"), None, "why".into());
    let cases = [
        (vec![], Verdict::Allow(By::NoAllowPolicy)),
        (vec![deny(vec![never()])], Verdict::Allow(By::NoAllowPolicy)),
        (vec![deny(vec![anything()])], Verdict::Deny(by("deny"))),
        (vec![allow(vec![anything()])], Verdict::Allow(by("allow"))),
        (vec![allow(vec![never()])], Verdict::Deny(By::NoneAllowed)),
        (vec![allow(vec![])], Verdict::Deny(By::NoneAllowed)),
        (vec![allow(vec![anything()]), deny(vec![anything()])], Verdict::Deny(by("deny"))),
        (vec![allow(vec![never()]), deny(vec![never()])], Verdict::Deny(By::NoneAllowed)),
        (
            vec![allow(vec![anything()]), undecodable],
            Verdict::Deny(By::Undecodable(PolicyKey::new("ns", "broken"))),
        ),
    ];
    for (policies, verdict) in cases {
        assert_eq!(judge(&policies, None), verdict, "{policies:?}");
        let reversed: Vec<_> = policies.into_iter().rev().collect();
        assert_eq!(judge(&reversed, None), verdict, "the order of policies means nothing: {reversed:?}");
    }
}

#[test]
fn dry_run_policies_are_told_and_never_count() {
    let policies = [dry(deny(vec![anything()])), dry(allow(vec![never()]))];
    assert_eq!(judge(&policies, None), Verdict::Allow(By::NoAllowPolicy));
    let facts = facts(None);
    let told: Vec<_> = dry_run(&policies, &facts).map(|(key, action)| (key.to_string(), action)).collect();
    assert_eq!(told, [("ns/deny".to_owned(), Action::Deny)]);
}

#[test]
fn every_level_combines_as_written() {
    let yes = || Match { destination_ports: vec![8080], ..Match::default() };
    let no = || Match { destination_ports: vec![1], ..Match::default() };
    let clause = |matches: Vec<Match>| Clause { matches };
    let matches = |rules: Vec<Rule>| judge(&[deny(rules)], None) == Verdict::Deny(by("deny"));
    let rule = |clauses: Vec<Clause>| vec![Rule { clauses }];
    assert!(!matches(vec![]), "no rules never match");
    assert!(matches(vec![when(no()), when(yes())]), "rules: OR");
    assert!(matches(rule(vec![])), "a rule without clauses matches");
    assert!(!matches(rule(vec![clause(vec![yes()]), clause(vec![no()])])), "clauses: AND");
    assert!(matches(rule(vec![clause(vec![no(), yes()])])), "matches: OR");
    assert!(matches(rule(vec![clause(vec![])])), "a clause without matches matches");
    assert!(!matches(vec![when(Match::default())]), "a match without fields does not");
    let both = Match { destination_ports: vec![8080], namespaces: vec![Text::Presence], ..Match::default() };
    assert!(!matches(vec![when(both)]), "fields: AND");
    let values = Match { destination_ports: vec![1, 8080], ..Match::default() };
    assert!(matches(vec![when(values)]), "values: OR");
    let negated = Match { not_destination_ports: vec![1, 8080], ..Match::default() };
    assert!(!matches(vec![when(negated)]), "negated values: none may match");
}

#[test]
fn every_field_compares_what_it_says() {
    let text = |text: &str| vec![Text::Exact(text.into())];
    let account = |namespace: &str, account: &str| {
        vec![AccountMatch { namespace: namespace.into(), service_account: account.into() }]
    };
    let range = |text: &str| vec![text.parse().expect("a range")];
    let cases = [
        (Match { principals: text("td/ns/shop/sa/web"), ..Match::default() }, true),
        (Match { principals: text("spiffe://td/ns/shop/sa/web"), ..Match::default() }, false),
        (Match { principals: vec![Text::Prefix("td/ns/shop/".into())], ..Match::default() }, true),
        (Match { principals: vec![Text::Suffix("/sa/web".into())], ..Match::default() }, true),
        (Match { not_principals: text("td/ns/shop/sa/web"), ..Match::default() }, false),
        (Match { namespaces: text("shop"), ..Match::default() }, true),
        (Match { namespaces: text("sho"), ..Match::default() }, false),
        (Match { not_namespaces: text("shop"), ..Match::default() }, false),
        (Match { service_accounts: account("shop", "web"), ..Match::default() }, true),
        (Match { service_accounts: account("shop", "db"), ..Match::default() }, false),
        (Match { not_service_accounts: account("shop", "web"), ..Match::default() }, false),
        (Match { source_ips: range("10.0.0.0/24"), ..Match::default() }, true),
        (Match { source_ips: range("10.0.0.1/32"), ..Match::default() }, false),
        (Match { not_source_ips: range("10.0.0.0/24"), ..Match::default() }, false),
        (Match { destination_ips: range("10.0.0.1/32"), ..Match::default() }, true),
        (Match { not_destination_ips: range("10.0.0.1/32"), ..Match::default() }, false),
        (Match { destination_ports: vec![8080], ..Match::default() }, true),
        (Match { not_destination_ports: vec![8080], ..Match::default() }, false),
        (Match { not_destination_ports: vec![80], ..Match::default() }, true),
    ];
    for (one, expected) in cases {
        let verdict = judge(&[allow(vec![when(one.clone())])], Some(&web()));
        assert_eq!(verdict.is_allowed(), expected, "{one:?}");
    }
}

#[test]
fn without_identity_every_predicate_on_it_is_false() {
    let account = AccountMatch { namespace: "".into(), service_account: "".into() };
    for one in [
        Match { principals: vec![Text::Presence], ..Match::default() },
        Match { principals: vec![Text::Prefix("".into())], ..Match::default() },
        Match { namespaces: vec![Text::Presence], ..Match::default() },
        Match { service_accounts: vec![account], ..Match::default() },
    ] {
        assert!(!judge(&[allow(vec![when(one.clone())])], None).is_allowed(), "{one:?}");
    }
    // Strict mutual TLS is made of this: nobody is not somebody.
    let strict = Match { not_principals: vec![Text::Presence], ..Match::default() };
    assert!(!judge(&[deny(vec![when(strict.clone())])], None).is_allowed());
    assert!(judge(&[deny(vec![when(strict)])], Some(&web())).is_allowed());
}

fn texts() -> impl Strategy<Value = Vec<Text>> {
    let text = prop_oneof![
        Just(Text::Presence),
        "[a-c]{0,2}".prop_map(|t| Text::Exact(t.into())),
        "[a-c]{0,2}".prop_map(|t| Text::Prefix(t.into())),
        "[a-c]{0,2}".prop_map(|t| Text::Suffix(t.into())),
    ];
    proptest::collection::vec(text, 0..3)
}

prop_compose! {
    fn matches()(
        namespaces in texts(), not_namespaces in texts(), principals in texts(), not_principals in texts(),
        destination_ports in proptest::collection::vec(1_u16..4, 0..3),
        not_destination_ports in proptest::collection::vec(1_u16..4, 0..3),
    ) -> Match {
        Match {
            namespaces, not_namespaces, principals, not_principals, destination_ports, not_destination_ports,
            ..Match::default()
        }
    }
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let clause = proptest::collection::vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = proptest::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    proptest::collection::vec(rule, 0..3)
}

proptest! {
    /// Losing one of several matches of an ALLOW never lets somebody in who was not.
    #[test]
    fn removing_a_match_never_widens_an_allow(
        rules in rules(), namespace in "[a-c]{1,2}", port in 1_u16..4, at in any::<prop::sample::Index>(),
        known in any::<bool>(),
    ) {
        let peer = Identity::new("a", namespace.as_str(), "b");
        let facts = Facts {
            peer: known.then_some(&peer),
            source: "10.0.0.9".parse().expect("an address"),
            destination: (std::net::Ipv4Addr::LOCALHOST, port).into(),
            seen: None,
        };
        let before = check(&[allow(rules.clone())], &facts).is_allowed();
        // A clause with a single match would turn into one that matches everything: that one is not
        // "removing a match", it is removing a condition, and decoders must refuse instead.
        let mut fewer = rules;
        let mut clauses: Vec<_> = fewer
            .iter_mut()
            .flat_map(|rule| rule.clauses.iter_mut())
            .filter(|clause| clause.matches.len() > 1)
            .collect();
        prop_assume!(!clauses.is_empty());
        let chosen = at.index(clauses.len());
        clauses[chosen].matches.pop();
        let after = check(&[allow(fewer)], &facts).is_allowed();
        prop_assert!(before || !after);
    }

    /// One more DENY never lets anybody in.
    #[test]
    fn adding_a_deny_never_allows(first in rules(), second in rules(), port in 1_u16..4) {
        let facts = Facts {
            peer: None,
            source: "10.0.0.9".parse().expect("an address"),
            destination: (std::net::Ipv4Addr::LOCALHOST, port).into(),
            seen: None,
        };
        let before = check(&[allow(first.clone())], &facts).is_allowed();
        let after = check(&[allow(first), deny(second)], &facts).is_allowed();
        prop_assert!(before || !after);
    }
}
