//! What is encoded is decoded to the same, and what makes no sense denies.

use ambit_model::authz::AccountMatch;
use ipnet::IpNet;
use proptest::{option, prelude::*, sample::select};

use super::*;
use crate::codec::authorizer::tests::authorizer;

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        Just(Text::Presence),
        "[a-c/.]{0,3}".prop_map(|text| Text::Exact(text.into())),
        "[a-c/.]{0,3}".prop_map(|text| Text::Prefix(text.into())),
        "[a-c/.]{0,3}".prop_map(|text| Text::Suffix(text.into())),
    ]
}

fn texts() -> impl Strategy<Value = Vec<Text>> {
    prop::collection::vec(text(), 0..3)
}

fn ranges() -> impl Strategy<Value = Vec<IpNet>> {
    let range = select(vec!["10.0.0.0/8", "10.0.0.1/32", "fd00::/64"]);
    prop::collection::vec(range.prop_map(|range| range.parse().expect("a range")), 0..3)
}

fn paths() -> impl Strategy<Value = Vec<PathMatch>> {
    let template = select(vec!["/a/{*}", "/{**}", "/{*}/b/{**}/c"]);
    let path = prop_oneof![
        text().prop_map(PathMatch::Text),
        template.prop_map(|text| PathMatch::Template(PathTemplate::parse(text).expect("a template"))),
    ];
    prop::collection::vec(path, 0..3)
}

fn condition() -> impl Strategy<Value = Condition> {
    let key = select(vec![
        "request.headers[x-a]",
        "request.headers[host]",
        "request.auth.claims[iss]",
        "request.auth.claims[a][b c]",
        "connection.sni",
    ]);
    (key, texts(), texts())
        .prop_map(|(key, values, not_values)| Condition {
            key: key.parse().expect("a key"),
            values,
            not_values,
        })
        .prop_filter("it asks something", |condition| !condition.is_empty())
}

fn request() -> impl Strategy<Value = RequestMatch> {
    let lists = (texts(), texts(), texts(), texts(), texts(), texts());
    let rest = (paths(), paths(), ranges(), ranges(), prop::collection::vec(condition(), 0..3));
    (lists, rest).prop_map(|(lists, rest)| {
        let (hosts, not_hosts, methods, not_methods, request_principals, not_request_principals) = lists;
        let (paths, not_paths, remote_ips, not_remote_ips, conditions) = rest;
        RequestMatch {
            hosts,
            not_hosts,
            methods,
            not_methods,
            paths,
            not_paths,
            remote_ips,
            not_remote_ips,
            request_principals,
            not_request_principals,
            conditions,
        }
    })
}

fn one() -> impl Strategy<Value = Match> {
    let account = AccountMatch { namespace: "shop".into(), service_account: "web".into() };
    let accounts = prop::collection::vec(Just(account), 0..2);
    let ports = prop::collection::vec(any::<u16>(), 0..3);
    (texts(), texts(), ranges(), accounts, ports, option::of(request())).prop_map(
        |(principals, not_namespaces, not_source_ips, service_accounts, destination_ports, request)| Match {
            principals,
            not_namespaces,
            not_source_ips,
            service_accounts,
            destination_ports,
            request: request.filter(|request| !request.is_empty()).map(Box::new),
            ..Match::default()
        },
    )
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let clause = prop::collection::vec(one(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    prop::collection::vec(rule, 0..2)
}

/// Any policy that a waypoint may be told.
pub(in crate::codec) fn policy() -> impl Strategy<Value = Policy> {
    let decides = (select(vec![Action::Allow, Action::Deny]), any::<bool>(), rules())
        .prop_map(|(action, dry_run, rules)| Content::Rules { action, rules, dry_run });
    let content = prop_oneof![
        4 => decides,
        1 => rules().prop_map(|rules| Content::Audit { rules }),
        1 => ("[a-z]{1,4}", option::of(authorizer()), rules()).prop_map(|(provider, authorizer, rules)| {
            Content::Custom { provider: provider.into(), authorizer: authorizer.map(Arc::new), rules }
        }),
        1 => "[a-z]{1,4}".prop_map(|reason| Content::Undecodable { reason }),
    ];
    ("[a-z]{1,4}", "[a-z]{1,4}", content).prop_map(|(namespace, name, content)| Policy {
        key: PolicyKey::new(namespace, name),
        scope: Scope::WorkloadSelector,
        content,
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_to_the_same(policy in policy()) {
        prop_assert_eq!(decode(encode(&policy), &mut Interner::default()), policy);
    }

    /// A tunnel enforces what it is asked whole, or denies.
    #[test]
    fn a_tunnel_never_enforces_half_of_a_policy(policy in policy()) {
        let name = policy.key.to_string();
        let sent = crate::codec::encode_policy(&policy);
        let needs_request = match &policy.content {
            Content::Rules { rules, .. } | Content::Audit { rules } | Content::Custom { rules, .. } => {
                let mut matches = rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
                matches.any(|one| one.request.is_some())
            }
            Content::Undecodable { .. } => false,
        };
        let read = crate::codec::decode_authorization(&name, sent, &mut Interner::default());
        prop_assert_eq!(read.is_err(), needs_request);
    }
}

#[test]
fn one_strange_value_denies_and_is_named() {
    fn with(change: impl FnOnce(&mut pb::Policy)) -> pb::Policy {
        let matches = vec![pb::PolicyMatch::default()];
        let mut policy = pb::Policy {
            namespace: "shop".into(),
            name: "p".into(),
            action: pb::PolicyAction::Allow.into(),
            rules: vec![pb::PolicyRule { clauses: vec![pb::PolicyClause { matches }] }],
            ..pb::Policy::default()
        };
        change(&mut policy);
        policy
    }
    fn on(change: impl FnOnce(&mut pb::PolicyMatch)) -> pb::Policy {
        with(|policy| change(&mut policy.rules[0].clauses[0].matches[0]))
    }
    let condition = |key: &str, values| pb::Condition { key: key.into(), values, ..pb::Condition::default() };
    let present =
        || security::StringMatch { match_type: Some(security::string_match::MatchType::Presence(())) };
    let strange = || vec![security::StringMatch::default()];
    let range = || vec![security::Address { address: vec![1].into(), length: 8 }];
    let template = |text: &str| pb::PathMatch { kind: Some(pb::path_match::Kind::Template(text.into())) };
    let at = "rules[0].clauses[0].matches[0]";
    let table = [
        ("action".to_owned(), with(|policy| policy.action = 0)),
        ("action".to_owned(), with(|policy| policy.action = 9)),
        ("provider".to_owned(), with(|policy| policy.action = pb::PolicyAction::Custom.into())),
        (
            "authorizer.protocol".to_owned(),
            with(|policy| {
                (policy.action, policy.provider) = (pb::PolicyAction::Custom.into(), "opa".to_owned());
                policy.authorizer = Some(pb::Authorizer::default());
            }),
        ),
        (
            "dry_run".to_owned(),
            with(|policy| (policy.action, policy.dry_run) = (pb::PolicyAction::Audit.into(), true)),
        ),
        (format!("{at}.hosts"), on(|one| one.hosts = strange())),
        (format!("{at}.not_methods"), on(|one| one.not_methods = strange())),
        (format!("{at}.not_request_principals"), on(|one| one.not_request_principals = strange())),
        (format!("{at}.paths[0].kind"), on(|one| one.paths = vec![pb::PathMatch::default()])),
        (format!("{at}.not_paths[0].template"), on(|one| one.not_paths = vec![template("/{**}/{*}")])),
        (format!("{at}.remote_ips"), on(|one| one.remote_ips = range())),
        (
            format!("{at}.conditions[0].key"),
            on(|one| one.conditions = vec![condition("request.body", vec![present()])]),
        ),
        (
            format!("{at}.conditions[0].values"),
            on(|one| one.conditions = vec![condition("connection.sni", Vec::new())]),
        ),
        (
            format!("{at}.connection.destination_ports"),
            on(|one| {
                one.connection =
                    Some(security::Match { destination_ports: vec![1 << 16], ..security::Match::default() });
            }),
        ),
        ("a reason".to_owned(), with(|policy| policy.broken = "a reason".into())),
    ];
    for (field, message) in table {
        let policy = decode(message, &mut Interner::default());
        assert_eq!(policy.key.to_string(), "shop/p");
        let reason = policy.broken().expect(&field);
        assert!(reason.starts_with(&field), "{field}: {reason}");
    }
}
