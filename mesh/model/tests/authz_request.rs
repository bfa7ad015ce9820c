//! What a policy allows of requests: every field, and what holds where nobody has looked.

#![cfg(test)]

use ambit_model::{
    authz::{
        Action, Ask, By, Clause, Condition, Content, Facts, Match, PathMatch, PathTemplate, Policy, Request,
        RequestMatch, Rule, Scope, Seen, Text, Verdict, audited, check, dry_run, judge,
    },
    claims::Claims,
    name::PolicyKey,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::{prelude::*, sample::select};

/// A request, with all that is known of it.
#[derive(Clone, Debug)]
struct Call {
    host: String,
    method: Method,
    path: String,
    headers: HeaderMap,
    claims: Option<Claims>,
    server_name: Option<String>,
}

impl Call {
    fn new() -> Self {
        let headers = [("x-a", "1"), ("x-empty", ""), ("x-many", "1"), ("x-many", "2"), ("cookie", "a=1")];
        Self {
            host: "Shop.Example:8080".into(),
            method: Method::GET,
            path: "/cart/17".into(),
            headers: headers
                .into_iter()
                .chain([("cookie", "b=2")])
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect(),
            claims: None,
            server_name: None,
        }
    }

    fn with_token(self) -> Self {
        let payload = serde_json::json!({
            "iss": "https://issuer", "sub": "alice", "aud": ["shop", "pay"], "azp": "app",
            "scope": "read write", "realm": {"roles": ["admin", "user"]}, "age": 17,
        });
        Self { claims: payload.as_object().cloned().map(Claims::new), ..self }
    }

    /// Asks `judge` with these facts.
    fn told<T>(&self, judge: impl FnOnce(&Facts<'_>) -> T) -> T {
        let request = Request {
            host: &self.host,
            method: &self.method,
            path: &self.path,
            headers: &self.headers,
            claims: self.claims.as_ref(),
        };
        let remote = [203, 0, 113, 9].into();
        let seen = Seen { remote, server_name: self.server_name.as_deref(), request: Some(&request) };
        judge(&facts(Some(&seen)))
    }
}

fn facts<'a>(seen: Option<&'a Seen<'a>>) -> Facts<'a> {
    let destination = "10.0.0.1:8080".parse().expect("an address");
    Facts { peer: None, source: [10, 0, 0, 9].into(), destination, seen }
}

fn policy(name: &str, content: Content) -> Policy {
    Policy { key: PolicyKey::new("shop", name), scope: Scope::WorkloadSelector, content }
}

fn rules(one: Match) -> Vec<Rule> {
    vec![Rule { clauses: vec![Clause { matches: vec![one] }] }]
}

fn allow(rules: Vec<Rule>) -> Policy {
    policy("allow", Content::Rules { action: Action::Allow, rules, dry_run: false })
}

fn deny(rules: Vec<Rule>) -> Policy {
    policy("deny", Content::Rules { action: Action::Deny, rules, dry_run: false })
}

fn custom(name: &str, provider: &str, rules: Vec<Rule>) -> Policy {
    policy(name, Content::Custom { provider: provider.into(), authorizer: None, rules })
}

fn on(request: RequestMatch) -> Match {
    Match { request: Some(Box::new(request)), ..Match::default() }
}

/// A text as it is written in a policy.
fn text(written: &str) -> Text {
    match (written.strip_prefix('*'), written.strip_suffix('*')) {
        (Some(""), _) => Text::Presence,
        (Some(suffix), _) => Text::Suffix(suffix.into()),
        (None, Some(prefix)) => Text::Prefix(prefix.into()),
        (None, None) => Text::Exact(written.into()),
    }
}

fn texts(written: &[&str]) -> Vec<Text> {
    written.iter().map(|one| text(one)).collect()
}

fn condition(key: &str, values: &[&str], not_values: &[&str]) -> Condition {
    let key = key.parse().expect("a key");
    Condition { key, values: texts(values), not_values: texts(not_values) }
}

/// Whether an Allow, and a Deny, of these requests matches.
fn matched(call: &Call, request: &RequestMatch) -> (bool, bool) {
    let rules = rules(on(request.clone()));
    let allows = call.told(|facts| check(&[allow(rules.clone())], facts).is_allowed());
    let denies = call.told(|facts| !check(&[deny(rules)], facts).is_allowed());
    (allows, denies)
}

#[test]
fn every_field_compares_what_it_says() {
    let paths = |written: &[&str]| -> Vec<PathMatch> {
        let path = |one: &&str| match PathTemplate::is_one(one) {
            true => PathMatch::Template(PathTemplate::parse(one).expect("a template")),
            false => PathMatch::Text(text(one)),
        };
        written.iter().map(path).collect()
    };
    let ranges = |text: &str| vec![text.parse().expect("a range")];
    let none = RequestMatch::default;
    let table = [
        (RequestMatch { hosts: texts(&["shop.example"]), ..none() }, true),
        (RequestMatch { hosts: texts(&["SHOP.EXAMPLE:8080"]), ..none() }, true),
        (RequestMatch { hosts: texts(&["shop.example:80"]), ..none() }, false),
        (RequestMatch { hosts: texts(&["*.example"]), ..none() }, true),
        (RequestMatch { hosts: texts(&["shop.*"]), ..none() }, true),
        (RequestMatch { hosts: texts(&["other.example", "*"]), ..none() }, true),
        (RequestMatch { hosts: texts(&["example"]), ..none() }, false),
        (RequestMatch { not_hosts: texts(&["shop.example"]), ..none() }, false),
        (RequestMatch { not_hosts: texts(&["other.example"]), ..none() }, true),
        (RequestMatch { methods: texts(&["GET"]), ..none() }, true),
        (RequestMatch { methods: texts(&["get", "POST"]), ..none() }, false),
        (RequestMatch { not_methods: texts(&["GET"]), ..none() }, false),
        (RequestMatch { paths: paths(&["/cart/17"]), ..none() }, true),
        (RequestMatch { paths: paths(&["/Cart/17"]), ..none() }, false),
        (RequestMatch { paths: paths(&["/cart*"]), ..none() }, true),
        (RequestMatch { paths: paths(&["*/17"]), ..none() }, true),
        (RequestMatch { paths: paths(&["/cart/{*}"]), ..none() }, true),
        (RequestMatch { paths: paths(&["/cart/{*}/{**}"]), ..none() }, false),
        (RequestMatch { not_paths: paths(&["/cart/{**}"]), ..none() }, false),
        (RequestMatch { not_paths: paths(&["/pay/{**}"]), ..none() }, true),
        (RequestMatch { remote_ips: ranges("203.0.113.0/24"), ..none() }, true),
        (RequestMatch { remote_ips: ranges("10.0.0.9/32"), ..none() }, false),
        (RequestMatch { not_remote_ips: ranges("203.0.113.9/32"), ..none() }, false),
        (RequestMatch { request_principals: texts(&["https://issuer/alice"]), ..none() }, true),
        (RequestMatch { request_principals: texts(&["https://issuer/*"]), ..none() }, true),
        (RequestMatch { request_principals: texts(&["*/alice"]), ..none() }, true),
        (RequestMatch { request_principals: texts(&["*"]), ..none() }, true),
        (RequestMatch { request_principals: texts(&["https://issuer/bob"]), ..none() }, false),
        (RequestMatch { not_request_principals: texts(&["*"]), ..none() }, false),
        (RequestMatch { hosts: texts(&["*"]), methods: texts(&["POST"]), ..none() }, false),
    ];
    for (asked, expected) in table {
        assert_eq!(matched(&Call::new().with_token(), &asked), (expected, expected), "{asked:?}");
    }
}

#[test]
fn every_condition_compares_what_it_says() {
    let call = Call { server_name: Some("Shop.example".into()), ..Call::new().with_token() };
    let (yes, no) = ((true, true), (false, false));
    let table = [
        (condition("request.headers[X-A]", &["1"], &[]), yes),
        (condition("request.headers[x-a]", &["2"], &[]), no),
        (condition("request.headers[x-a]", &["2", "*"], &[]), yes),
        (condition("request.headers[x-a]", &["*"], &["1"]), no),
        (condition("request.headers[x-a]", &[], &["2"]), yes),
        (condition("request.headers[x-empty]", &["*"], &[]), yes),
        (condition("request.headers[x-none]", &["*"], &[]), no),
        (condition("request.headers[x-none]", &[], &["*"]), yes),
        (condition("request.headers[host]", &["Shop.Example:8080"], &[]), yes),
        (condition("request.headers[cookie]", &["a=1; b=2"], &[]), yes),
        // Of a repeated header, an Allow wants all lines and a Deny one.
        (condition("request.headers[x-many]", &["1"], &[]), (false, true)),
        (condition("request.headers[x-many]", &["1", "2"], &[]), yes),
        (condition("request.headers[x-many]", &[], &["1"]), (false, true)),
        (condition("request.auth.audiences", &["pay"], &[]), yes),
        (condition("request.auth.audiences", &["*"], &["pay"]), no),
        (condition("request.auth.presenter", &["app"], &[]), yes),
        (condition("request.auth.claims[scope]", &["write"], &[]), yes),
        (condition("request.auth.claims[scope]", &["read write"], &[]), no),
        (condition("request.auth.claims[realm][roles]", &["admin"], &[]), yes),
        (condition("request.auth.claims[realm][roles]", &[], &["adm*"]), no),
        (condition("request.auth.claims[age]", &["17"], &[]), no),
        (condition("request.auth.claims[none]", &["*"], &[]), no),
        (condition("request.auth.claims[none]", &[], &["*"]), yes),
        (condition("connection.sni", &["shop.example"], &[]), yes),
        (condition("connection.sni", &[], &["*.example"]), no),
    ];
    for (condition, expected) in table {
        let asked = RequestMatch { conditions: vec![condition.clone()], ..RequestMatch::default() };
        assert_eq!(matched(&call, &asked), expected, "{condition:?}");
    }
}

#[test]
fn a_request_without_token_has_no_principal_and_no_claims() {
    let asked = RequestMatch { request_principals: texts(&["*"]), ..RequestMatch::default() };
    assert_eq!(matched(&Call::new(), &asked), (false, false));
    let asked = RequestMatch { not_request_principals: texts(&["*"]), ..RequestMatch::default() };
    assert_eq!(matched(&Call::new(), &asked), (true, true));
    let conditions = vec![condition("request.auth.claims[iss]", &[], &["*"])];
    let asked = RequestMatch { conditions, ..RequestMatch::default() };
    assert_eq!(matched(&Call::new(), &asked), (true, true));
}

#[test]
fn a_match_that_asks_nothing_does_not_match() {
    for conditions in [Vec::new(), vec![condition("request.headers[x-a]", &[], &[])]] {
        let asked = RequestMatch { conditions, ..RequestMatch::default() };
        assert_eq!(matched(&Call::new(), &asked), (false, false));
    }
}

#[test]
fn where_nobody_has_looked_an_allow_does_not_match_and_a_deny_does() {
    let get = RequestMatch { methods: texts(&["GET"]), ..RequestMatch::default() };
    let remote = ["203.0.113.0/24".parse().expect("a range")].to_vec();
    let remote = RequestMatch { remote_ips: remote, ..RequestMatch::default() };
    let stream = Seen { remote: [203, 0, 113, 9].into(), server_name: None, request: None };
    let judged = |policy, seen| check(&[policy], &facts(seen)).is_allowed();
    for asked in [&get, &RequestMatch { methods: Vec::new(), not_methods: texts(&["GET"]), ..get.clone() }] {
        for seen in [None, Some(&stream)] {
            assert!(!judged(allow(rules(on(asked.clone()))), seen));
            assert!(!judged(deny(rules(on(asked.clone()))), seen));
        }
    }
    assert!(judged(allow(rules(on(remote.clone()))), Some(&stream)), "an address has every connection");
    assert!(!judged(allow(rules(on(remote))), None));
    let elsewhere = Match { destination_ports: vec![1], ..on(get) };
    assert!(judged(deny(rules(elsewhere)), None), "what is known to be otherwise is in no doubt");
}

#[test]
fn who_is_asked_is_asked_first_and_the_rest_is_judged() {
    let all = || vec![Rule::default()];
    let never = || rules(Match { destination_ports: vec![1], ..Match::default() });
    let ask = |policy: &str, provider: &str| Ask {
        provider: provider.into(),
        authorizer: None,
        policy: PolicyKey::new("shop", policy),
    };
    let by = |name: &str| By::Policy(PolicyKey::new("shop", name));
    let undecodable = Policy::undecodable(PolicyKey::new("shop", "broken"), None, "why".into());
    let broken = By::Undecodable(PolicyKey::new("shop", "broken"));
    let table = [
        (vec![custom("c", "opa", never())], vec![], Verdict::Allow(By::NoAllowPolicy), true),
        (vec![custom("c", "opa", all())], vec![ask("c", "opa")], Verdict::Allow(By::NoAllowPolicy), false),
        (
            vec![custom("c", "opa", all()), deny(all())],
            vec![ask("c", "opa")],
            Verdict::Deny(by("deny")),
            false,
        ),
        (
            vec![
                allow(all()),
                custom("c", "opa", all()),
                custom("d", "opa", all()),
                custom("e", "own", all()),
            ],
            vec![ask("c", "opa"), ask("e", "own")],
            Verdict::Allow(by("allow")),
            false,
        ),
        (vec![custom("c", "opa", all()), undecodable], vec![], Verdict::Deny(broken), false),
        (
            vec![policy("audit", Content::Audit { rules: all() })],
            vec![],
            Verdict::Allow(By::NoAllowPolicy),
            true,
        ),
    ];
    for (policies, asked, then, allowed) in table {
        let ruling = judge(&policies, &facts(None));
        assert_eq!((ruling.ask, ruling.then), (asked, then), "{policies:?}");
        assert_eq!(check(&policies, &facts(None)).is_allowed(), allowed, "where nobody can be asked");
    }
}

#[test]
fn what_is_for_the_record_is_told() {
    let all = || vec![Rule::default()];
    let tried = policy("tried", Content::Rules { action: Action::Deny, rules: all(), dry_run: true });
    let audit = policy("audit", Content::Audit { rules: all() });
    let policies = [tried, audit, custom("c", "opa", all()), deny(all())];
    let facts = facts(None);
    assert_eq!(audited(&policies, &facts).map(|key| key.name.as_str()).collect::<Vec<_>>(), ["audit"]);
    assert_eq!(dry_run(&policies, &facts).map(|(key, _)| key.name.as_str()).collect::<Vec<_>>(), ["tried"]);
}

fn some_texts() -> impl Strategy<Value = Vec<Text>> {
    let one = select(vec!["*", "a", "b", "a*", "*b", "ab", "GET", "/a", "/a*"]);
    prop::collection::vec(one.prop_map(text), 0..3)
}

fn some_match() -> impl Strategy<Value = Match> {
    let key = select(vec!["request.headers[x-a]", "request.headers[cookie]", "request.auth.claims[iss]"]);
    let condition = (key, some_texts(), some_texts()).prop_map(|(key, values, not_values)| {
        let key = key.parse().expect("a key");
        Condition { key, values, not_values }
    });
    let lists = (some_texts(), some_texts(), some_texts(), some_texts(), some_texts());
    let ports = prop::collection::vec(select(vec![1_u16, 8080]), 0..2);
    (lists, prop::collection::vec(condition, 0..2), ports).prop_map(|(lists, conditions, ports)| {
        let (hosts, methods, not_methods, paths, not_request_principals) = lists;
        let paths = paths.into_iter().map(PathMatch::Text).collect();
        let request = RequestMatch {
            hosts,
            methods,
            not_methods,
            paths,
            not_request_principals,
            conditions,
            ..RequestMatch::default()
        };
        Match { destination_ports: ports, ..on(request) }
    })
}

fn some_rules() -> impl Strategy<Value = Vec<Rule>> {
    let clause = prop::collection::vec(some_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    prop::collection::vec(rule, 0..3)
}

fn some_call() -> impl Strategy<Value = Call> {
    let word = || select(vec!["a", "b", "ab", "ba", ""]);
    let lines = prop::collection::vec((select(vec!["x-a", "cookie"]), word()), 0..4);
    let claims = prop::option::of(word());
    (word(), word(), lines, claims, any::<bool>()).prop_map(|(host, path, lines, issuer, is_get)| {
        let line = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let claims = issuer.map(|issuer| serde_json::json!({"iss": issuer, "sub": "a"}));
        Call {
            host: host.into(),
            method: if is_get { Method::GET } else { Method::POST },
            path: format!("/{path}"),
            headers: lines.into_iter().map(line).collect(),
            claims: claims.and_then(|claims| claims.as_object().cloned()).map(Claims::new),
            server_name: None,
        }
    })
}

proptest! {
    /// Losing one of several matches of an ALLOW never lets somebody in who was not.
    #[test]
    fn removing_a_match_never_widens_an_allow(
        rules in some_rules(), call in some_call(), at in any::<prop::sample::Index>(),
    ) {
        let before = call.told(|facts| check(&[allow(rules.clone())], facts).is_allowed());
        let mut fewer = rules;
        let mut clauses: Vec<_> = fewer
            .iter_mut()
            .flat_map(|rule| rule.clauses.iter_mut())
            .filter(|clause| clause.matches.len() > 1)
            .collect();
        prop_assume!(!clauses.is_empty());
        let chosen = at.index(clauses.len());
        clauses[chosen].matches.pop();
        let after = call.told(|facts| check(&[allow(fewer)], facts).is_allowed());
        prop_assert!(before || !after);
    }

    /// Who is let in unseen would be let in seen: doubt only ever denies.
    #[test]
    fn looking_at_a_request_never_denies_what_was_allowed_without(
        allowed in some_rules(), denied in some_rules(), call in some_call(),
    ) {
        let policies = [allow(allowed), deny(denied)];
        let unseen = check(&policies, &facts(None)).is_allowed();
        let seen = call.told(|facts| check(&policies, facts).is_allowed());
        prop_assert!(seen || !unseen);
    }

    /// Saying a header once more never opens anything.
    #[test]
    fn a_repeated_header_never_widens(
        allowed in some_rules(), denied in some_rules(), call in some_call(), more in select(vec!["a", "b", "c"]),
    ) {
        prop_assume!(call.headers.contains_key("x-a"));
        let policies = [allow(allowed), deny(denied)];
        let once = call.told(|facts| check(&policies, facts).is_allowed());
        let mut twice = call;
        twice.headers.append("x-a", HeaderValue::from_static(more));
        prop_assert!(once || !twice.told(|facts| check(&policies, facts).is_allowed()));
    }
}
