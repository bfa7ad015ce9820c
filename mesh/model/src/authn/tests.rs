//! Where tokens are, whom they are for, and what is told of them.

use http::Request;
use proptest::prelude::*;

use super::*;

fn rule(parts: &TokenRuleParts<'_>) -> TokenRule {
    TokenRule::parse(&TokenRuleParts { issuer: "me", ..*parts }, Keys::Discovered).expect("a rule")
}

fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let request = headers
        .iter()
        .fold(Request::builder().uri(uri), |request, (name, value)| request.header(*name, *value));
    request.body(()).expect("a request").into_parts().0
}

fn claims(json: Value) -> Claims {
    Claims::new(json.as_object().expect("an object").clone())
}

fn found(rule: &TokenRule, head: &Parts) -> Result<Vec<String>, InvalidTokens> {
    let tokens = find_tokens(std::slice::from_ref(rule), head)?;
    Ok(tokens.into_iter().map(|one| one.token.into_owned()).collect())
}

#[test]
fn tokens_are_found_where_the_rule_says() {
    let default = rule(&TokenRuleParts::default());
    let header =
        rule(&TokenRuleParts { headers: &[("X-Jwt", ""), ("x-other", "Jwt ")], ..Default::default() });
    let param = rule(&TokenRuleParts { params: &["tok"], ..Default::default() });
    let cookie = rule(&TokenRuleParts { cookies: &["session"], ..Default::default() });
    type Case<'a> = (&'a TokenRule, &'a str, &'a [(&'a str, &'a str)], Result<&'a [&'a str], InvalidTokens>);
    let table: [Case<'_>; 14] = [
        (&default, "/", &[], Ok(&[])),
        (&default, "/", &[("authorization", "Bearer a.b.c")], Ok(&["a.b.c"])),
        (&default, "/", &[("authorization", "bearer  a.b.c")], Ok(&["a.b.c"])),
        (&default, "/", &[("authorization", "Basic abc")], Ok(&[])),
        (&default, "/?x=1&access_token=a.b.c", &[], Ok(&["a.b.c"])),
        (&default, "/?access%5Ftoken=a%2Eb.c", &[], Ok(&["a.b.c"])),
        (&default, "/?access_token=a&access_token=b", &[], Err(InvalidTokens::Repeated)),
        (
            &default,
            "/",
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            Err(InvalidTokens::Repeated),
        ),
        (&default, "/?access_token=b", &[("authorization", "Bearer a")], Ok(&["a", "b"])),
        (&header, "/?access_token=b", &[("authorization", "Bearer a"), ("x-jwt", "c")], Ok(&["c"])),
        (&header, "/", &[("x-other", "c"), ("x-jwt", "Jwt d")], Ok(&["Jwt d"])),
        (&param, "/?tok=a&access_token=b", &[], Ok(&["a"])),
        (&cookie, "/", &[("cookie", "a=1; session=x.y.z=="), ("cookie", "b=2")], Ok(&["x.y.z=="])),
        (&cookie, "/", &[("cookie", "session=1"), ("cookie", "session=2")], Err(InvalidTokens::Repeated)),
    ];
    for (rule, uri, headers, expected) in table {
        let expected = expected.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(found(rule, &head(uri, headers)), expected, "{uri} {headers:?}");
    }
}

#[test]
fn long_and_numerous_tokens_are_not_looked_at() {
    let long = format!("Bearer {}", "a".repeat(LONGEST + 1));
    let one = rule(&TokenRuleParts::default());
    assert_eq!(found(&one, &head("/", &[("authorization", &long)])), Err(InvalidTokens::TooLong));
    let params = ["a", "b", "c", "d", "e"];
    let many = rule(&TokenRuleParts { params: &params, ..Default::default() });
    assert_eq!(found(&many, &head("/?a=1&b=2&c=3&d=4&e=5", &[])), Err(InvalidTokens::TooMany));
    assert_eq!(
        found(&many, &head("/?a=1&b=1&c=1&d=1&e=1", &[])).map(|all| all.len()),
        Ok(5),
        "one and the same"
    );
}

#[test]
fn a_token_holds_for_its_issuer_its_audience_and_its_time() {
    use InvalidClaims::{Audience, Date, Expired, Issuer, NotYet};
    let rule = rule(&TokenRuleParts { audiences: &["shop", "pay"], ..Default::default() });
    let now = Duration::from_secs(1000);
    let table = [
        (serde_json::json!({"iss": "me", "aud": "shop"}), Ok(())),
        (serde_json::json!({"iss": "me", "aud": ["x", "pay"], "exp": 1001, "nbf": 999}), Ok(())),
        (serde_json::json!({"iss": "you", "aud": "shop"}), Err(Issuer)),
        (serde_json::json!({"iss": ["me", "you"], "aud": "shop"}), Err(Issuer)),
        (serde_json::json!({"aud": "shop"}), Err(Issuer)),
        (serde_json::json!({"iss": "me"}), Err(Audience)),
        (serde_json::json!({"iss": "me", "aud": ["x"]}), Err(Audience)),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": 941}), Ok(())),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": 940}), Err(Expired)),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": 939.5}), Err(Expired)),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": 0}), Err(Expired)),
        (serde_json::json!({"iss": "me", "aud": "shop", "nbf": 1060}), Ok(())),
        (serde_json::json!({"iss": "me", "aud": "shop", "nbf": 1061}), Err(NotYet)),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": "2000"}), Err(Date("exp"))),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": -1}), Err(Date("exp"))),
        (serde_json::json!({"iss": "me", "aud": "shop", "nbf": null}), Err(Date("nbf"))),
        (serde_json::json!({"iss": "me", "aud": "shop", "exp": 1e300}), Err(Date("exp"))),
    ];
    for (said, expected) in table {
        assert_eq!(rule.judge(&claims(said.clone()), now), expected, "{said}");
    }
    let anybody = self::rule(&TokenRuleParts::default());
    assert_eq!(anybody.judge(&claims(serde_json::json!({"iss": "me"})), now), Ok(()));
}

#[test]
fn only_we_tell_the_application_what_a_token_says() {
    let rule = rule(&TokenRuleParts {
        payload_header: "x-payload",
        claim_headers: &[
            ("x-sub", "sub"),
            ("x-deep", "a.b"),
            ("x-dots", "c.d"),
            ("x-list", "list"),
            ("x-no", "no"),
        ],
        ..Default::default()
    });
    let names = ["x-payload", "x-sub", "x-deep", "x-dots", "x-list", "x-no"];
    let forged: Vec<_> = names.iter().map(|name| (*name, "forged")).chain([("x-kept", "1")]).collect();
    let mut head = head("/", &forged);
    remove_told(std::slice::from_ref(&rule), &mut head.headers);
    assert_eq!(head.headers.len(), 1);
    let said = serde_json::json!({"sub": "alice", "a": {"b": 7}, "c.d": true, "list": [1], "e": "x"});
    rule.tell(&mut head.headers, "h.PAYLOAD.s", &claims(said));
    let told =
        names.map(|name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default());
    assert_eq!(told, ["PAYLOAD", "alice", "7", "true", "", ""]);
    let mut headers = HeaderMap::new();
    rule.tell(&mut headers, "h.p.s", &claims(serde_json::json!({"sub": "a\r\nx-admin: 1"})));
    assert_eq!(headers.get("x-sub"), None, "no header has such a value");
}

#[test]
fn a_token_is_taken_out_of_its_place_alone() {
    let table = [
        ("/a?x=1&tok=t&y", "/a?x=1&y"),
        ("/a?tok=t", "/a"),
        ("/a?t%6Fk=t&x", "/a?x"),
        ("/a?x", "/a?x"),
        ("http://h:80/a?tok=t&x", "http://h:80/a?x"),
    ];
    for (uri, left) in table {
        let mut head = head(uri, &[]);
        Place::Query("tok".into()).remove(&mut head);
        assert_eq!(head.uri, *left, "{uri}");
    }
    let mut head = head("/", &[("cookie", "a=1; tok=t; b=2"), ("cookie", "c=3"), ("x-tok", "t")]);
    Place::Cookie("tok".into()).remove(&mut head);
    assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    Place::Header { name: HeaderName::from_static("x-tok"), prefix: "".into() }.remove(&mut head);
    assert_eq!(head.headers.len(), 1);
}

#[test]
fn a_rule_that_makes_no_sense_is_refused() {
    let parsed = |parts: TokenRuleParts<'_>| TokenRule::parse(&parts, Keys::Discovered).map(drop);
    let good = TokenRuleParts { issuer: "me", ..Default::default() };
    assert_eq!(parsed(TokenRuleParts { issuer: "", ..good }), Err(InvalidTokenRule::Issuer));
    assert_eq!(parsed(TokenRuleParts { params: &[""], ..good }), Err(InvalidTokenRule::Place));
    for name in ["a b", ":path", ""] {
        let headers = [(name, "")];
        let expected = Err(InvalidTokenRule::Header(name.into()));
        assert_eq!(parsed(TokenRuleParts { headers: &headers, ..good }), expected);
    }
    for name in ["host", "content-length", "a b"] {
        let judged = parsed(TokenRuleParts { payload_header: name, ..good });
        assert!(matches!(judged, Err(InvalidTokenRule::PayloadHeader(_))), "{judged:?}");
    }
    let claimless = parsed(TokenRuleParts { claim_headers: &[("x-a", "")], ..good });
    assert_eq!(claimless, Err(InvalidTokenRule::Claim("x-a".into())));
}

proptest! {
    /// Whatever is sent, what is taken out cannot be found again.
    #[test]
    fn what_is_taken_out_is_gone(
        query in "[a-c=&%56oktT]{0,12}", cookie in "[a-ctok=; ]{0,12}", header in "[a-c ]{0,4}",
    ) {
        let uri = format!("/?{query}&tok=1");
        let rule = rule(&TokenRuleParts {
            headers: &[("x-tok", "")], params: &["tok"], cookies: &["tok"], ..Default::default()
        });
        let mut head = head(&uri, &[("cookie", &cookie), ("x-tok", &header)]);
        for place in &rule.places {
            place.remove(&mut head);
        }
        prop_assert_eq!(found(&rule, &head), Ok(Vec::new()));
    }
}
