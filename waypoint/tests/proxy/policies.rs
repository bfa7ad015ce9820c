//! Who may ask for what.

use std::sync::Arc;

use ambit_model::{
    authn::{Keys, TokenRule, TokenRuleParts},
    authz::{Action, Clause, Content, Match, PathMatch, Policy, RequestMatch, Rule, Scope, Text},
    name::PolicyKey,
    service_config::Parts,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use boring::{hash::MessageDigest, pkey::PKey, rsa::Rsa, sign::Signer};

use crate::world::*;

fn policy(name: &str, content: Content) -> Arc<Policy> {
    Arc::new(Policy { key: PolicyKey::new("shop", name), scope: Scope::WorkloadSelector, content })
}

/// A policy of requests that match.
fn of_requests(name: &str, action: Action, request: RequestMatch) -> Arc<Policy> {
    policy(name, Content::Rules { action, rules: vec![rule(request)], dry_run: false })
}

fn rule(request: RequestMatch) -> Rule {
    let one = Match { request: Some(Box::new(request)), ..Match::default() };
    Rule { clauses: vec![Clause { matches: vec![one] }] }
}

fn path(prefix: &str) -> RequestMatch {
    RequestMatch { paths: vec![PathMatch::Text(Text::Prefix(prefix.into()))], ..RequestMatch::default() }
}

fn with(policies: Vec<Arc<Policy>>) -> Parts {
    Parts { policies, ..Parts::default() }
}

#[test]
fn a_policy_is_not_walked_around_by_spelling_a_path_otherwise() {
    world(async |world| {
        let app = world.web().await;
        world.configure("shop/web", with(vec![of_requests("no-admin", Action::Deny, path("/admin"))]));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/shop").await.status, 200);
        for (asked, status) in [
            ("/admin", 403),
            ("/admin/x", 403),
            ("//admin", 403),
            ("/./admin", 403),
            ("/shop/../admin", 403),
            ("/shop/%2e%2e/admin", 403),
            ("/%61dmin", 403),
            ("/shop\\..\\admin", 403),
            ("/shop/..%2fadmin", 400),
            ("/admin?x", 403),
        ] {
            let told = tunnel.get(WEB, asked).await;
            assert_eq!(told.status, status, "{asked}");
        }
        assert_eq!(tunnel.get(WEB, "/admin").await.body, "RBAC: access denied");
        assert_eq!(app.heard().len(), 1);
        waypoint.until_counted("istio_requests_total", &["response_code=\"403\""], 10).await;
        waypoint.line(&["denied by policy: shop/no-admin"]).await;
    });
}

#[test]
fn what_was_not_understood_denies_and_so_does_whoever_cannot_be_asked() {
    world(async |world| {
        let app = world.web().await;
        let undecodable = Policy::undecodable(PolicyKey::new("shop", "future"), None, "a new field".into());
        world.configure("shop/web", with(vec![Arc::new(undecodable)]));
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.get(WEB, "/").await.status, 403);
        let custom =
            Content::Custom { provider: "opa".into(), authorizer: None, rules: vec![rule(path("/ask"))] };
        world.configure("shop/web", with(vec![policy("ask", custom)]));
        until("the policy is known", async || (tunnel.get(WEB, "/other").await.status == 200).then_some(()))
            .await;
        assert_eq!(tunnel.get(WEB, "/ask").await.status, 403);
        waypoint.line(&["shop/ask asks opa, which is not configured in the mesh"]).await;
        assert!(app.heard().iter().all(|heard| heard.uri == "/other"));
    });
}

#[test]
fn a_policy_is_tried_out_without_being_enforced() {
    world(async |world| {
        let _app = world.web().await;
        let rules = vec![rule(path("/"))];
        let tried = policy("try", Content::Rules { action: Action::Deny, rules, dry_run: true });
        world.configure("shop/web", with(vec![tried]));
        let waypoint = world.start().await;
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 200);
        waypoint.line(&["dry-run policy matched; not enforced", "shop/try"]).await;
    });
}

/// An identity provider.
struct Issuer {
    key: PKey<boring::pkey::Private>,
    keys: String,
}

impl Issuer {
    fn new() -> Self {
        let key = Rsa::generate(2048).unwrap();
        let encode = |number: &boring::bn::BigNumRef| URL_SAFE_NO_PAD.encode(number.to_vec());
        let (n, e) = (encode(key.n()), encode(key.e()));
        let keys = format!(r#"{{"keys":[{{"kty":"RSA","kid":"1","n":"{n}","e":"{e}"}}]}}"#);
        Self { key: PKey::from_rsa(key).unwrap(), keys }
    }

    fn token(&self, claims: &serde_json::Value) -> String {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"1"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).unwrap();
        let signature = signer.sign_oneshot_to_vec(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn believing(keys: Keys) -> TokenRule {
    let parts = TokenRuleParts {
        issuer: "https://issuer.example",
        audiences: &["shop"],
        headers: &[],
        params: &[],
        cookies: &[],
        token: Default::default(),
        payload_header: "",
        claim_headers: &[("x-user", "sub")],
    };
    TokenRule::parse(&parts, keys).unwrap()
}

/// Requests with a principal alone.
fn bearers_only() -> Arc<Policy> {
    let request = RequestMatch {
        request_principals: vec![Text::Prefix("https://issuer.example/".into())],
        ..RequestMatch::default()
    };
    of_requests("bearers", Action::Allow, request)
}

async fn with_token(tunnel: &Tunnel, token: Option<&str>) -> Told {
    let mut request = get("/");
    request.headers_mut().insert("x-user", "forged".parse().unwrap());
    if let Some(token) = token {
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    tunnel.ask(WEB, request).await
}

#[test]
fn a_bearer_is_who_his_issuer_says() {
    world(async |world| {
        let app = world.web().await;
        let issuer = Issuer::new();
        let (policies, authentication) =
            (vec![bearers_only()], vec![believing(Keys::Inline(issuer.keys.as_str().into()))]);
        world.configure("shop/web", Parts { policies, authentication, ..Parts::default() });
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let claims = |more: serde_json::Value| {
            let mut claims =
                serde_json::json!({ "iss": "https://issuer.example", "aud": "shop", "sub": "ann" });
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            claims
        };
        let good = issuer.token(&claims(serde_json::json!({ "exp": 4_000_000_000_u64 })));
        assert_eq!(with_token(&tunnel, Some(&good)).await.status, 200);
        assert_eq!(app.last().header("x-user"), Some("ann"), "told by the token, not by the client");
        assert_eq!(app.last().header("authorization"), None);
        assert_eq!(with_token(&tunnel, None).await.status, 403, "who shows nothing is nobody");
        let other = Issuer::new();
        for (what, token) in [
            ("expired", issuer.token(&claims(serde_json::json!({ "exp": 1_000_000_000_u64 })))),
            ("for others", issuer.token(&claims(serde_json::json!({ "aud": "bank" })))),
            (
                "of another issuer",
                issuer.token(&claims(serde_json::json!({ "iss": "https://evil.example" }))),
            ),
            ("signed by another", other.token(&claims(serde_json::json!({})))),
            ("no token", "nonsense".to_owned()),
            ("too long", format!("{good}{}", "a".repeat(20_000))),
        ] {
            let told = with_token(&tunnel, Some(&token)).await;
            assert_eq!((told.status, told.body.as_str()), (401, "Jwt verification fails"), "{what}");
        }
        assert_eq!(app.heard().len(), 1);
    });
}

#[test]
fn keys_are_fetched_and_an_issuer_that_is_down_is_not_believed_before_it_was_up() {
    world(async |world| {
        let _app = world.web().await;
        let issuer = Issuer::new();
        let (policies, authentication) =
            (vec![bearers_only()], vec![believing(Keys::At("http://127.0.0.7:8081/keys".into()))]);
        world.configure("shop/web", Parts { policies, authentication, ..Parts::default() });
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let claims = serde_json::json!({ "iss": "https://issuer.example", "aud": ["shop"], "sub": "ann" });
        let token = issuer.token(&claims);
        assert_eq!(with_token(&tunnel, Some(&token)).await.status, 401);
        let provider = serve_text("127.0.0.7:8081", issuer.keys.clone()).await;
        until("the keys are fetched", async || {
            (with_token(&tunnel, Some(&token)).await.status == 200).then_some(())
        })
        .await;
        drop(provider);
        assert_eq!(with_token(&tunnel, Some(&token)).await.status, 200, "what is known is kept");
    });
}

#[test]
fn a_policy_of_the_waypoint_judges_what_is_addressed_to_workloads() {
    world(async |world| {
        let app = App::start("127.0.0.2:8080").await;
        let direct = ambit_fixtures::mesh::pod("shop/direct").at("127.0.0.2").plain().waypoint("shop/gate");
        world.publish([direct], []);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let refused = tunnel.connect("127.0.0.2:8080").await.err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("http status: 404"), "nobody said that it serves workloads");
        world.configure("shop/_workloads", with(vec![of_requests("no-admin", Action::Deny, path("/admin"))]));
        waypoint.until_known("shop/_workloads").await;
        assert_eq!(tunnel.get("127.0.0.2:8080", "/").await.status, 200);
        assert_eq!(tunnel.get("127.0.0.2:8080", "/admin").await.status, 403);
        assert_eq!(app.heard().len(), 1);
    });
}
