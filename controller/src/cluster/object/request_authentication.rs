//! RequestAuthentication.

use ambit_api::request_authentication as api;
use ambit_model::{
    authn::{AfterUse, InvalidTokenRule, Keys, TokenRule, TokenRuleParts},
    name::Namespace,
};
use http::Uri;
use serde_json::Value;

use super::peer_authentication::{bare_meta, refuse_unknown};
use super::{Attachment, Meta, Rejection, Written};

/// What the mesh needs of a RequestAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Whom it is for. Only a waypoint sees tokens, and takes only what names it or its services.
    pub attachment: Attachment,
    /// Whose tokens are believed.
    pub tokens: Tokens,
    /// Whether it says how long keys may take to come, which waypoints decide themselves.
    pub names_timeout: bool,
}

/// Whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Those that one of these rules is for.
    Rules(Vec<TokenRule>),
    /// It could not be understood, and was never understood before.
    Undecodable(String),
}

impl RequestAuthentication {
    pub(super) fn parse(namespace: Namespace, object: api::RequestAuthentication) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        refuse_unknown("spec", &spec.unknown)?;
        let rules = spec.jwt_rules.iter().enumerate();
        let rules = rules.map(|(at, rule)| parse_rule(&format!("spec.jwtRules[{at}]"), rule));
        let tokens = Tokens::Rules(rules.collect::<Result<_, _>>()?);
        let names_timeout = spec.jwt_rules.iter().any(|rule| rule.timeout.is_some());
        let attachment =
            Attachment::parse(&meta.name.namespace, spec.selector, spec.target_ref, spec.target_refs)?;
        Ok(Self { attachment, tokens, names_timeout, meta })
    }

    /// What one that cannot be understood is taken for: nobody is believed, and nobody let in, where it is attached.
    pub(super) fn undecodable(written: &Written<'_>, reason: String) -> Self {
        Self {
            meta: bare_meta(written),
            attachment: Attachment::readable(written),
            tokens: Tokens::Undecodable(reason),
            names_timeout: false,
        }
    }
}

fn parse_rule(field: &str, rule: &api::JwtRule) -> Result<TokenRule, Rejection> {
    refuse_unknown(field, &rule.unknown)?;
    for (at, header) in rule.from_headers.iter().enumerate() {
        refuse_unknown(&format!("{field}.fromHeaders[{at}]"), &header.unknown)?;
    }
    for (at, claim) in rule.output_claim_to_headers.iter().enumerate() {
        refuse_unknown(&format!("{field}.outputClaimToHeaders[{at}]"), &claim.unknown)?;
    }
    if let Some(at) = rule.audiences.iter().position(String::is_empty) {
        let field = format!("{field}.audiences[{at}]");
        return Err(Rejection::new(field, "is empty", "write an audience, or remove the entry"));
    }
    fn texts(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }
    let headers: Vec<_> =
        rule.from_headers.iter().map(|one| (one.name.as_str(), one.prefix.as_str())).collect();
    let claims = rule.output_claim_to_headers.iter();
    let claims: Vec<_> = claims.map(|one| (one.header.as_str(), one.claim.as_str())).collect();
    let parts = TokenRuleParts {
        issuer: &rule.issuer,
        audiences: &texts(&rule.audiences),
        headers: &headers,
        params: &texts(&rule.from_params),
        cookies: &texts(&rule.from_cookies),
        token: if rule.forward_original_token { AfterUse::Forwarded } else { AfterUse::Removed },
        payload_header: &rule.output_payload_to_header,
        claim_headers: &claims,
    };
    let keys = parse_keys(field, rule)?;
    TokenRule::parse(&parts, keys).map_err(|error| {
        let (place, remedy) = match &error {
            InvalidTokenRule::Issuer => ("issuer", "write the claim iss of its tokens"),
            InvalidTokenRule::Place if rule.from_params.iter().any(String::is_empty) => {
                ("fromParams", "write the name, or remove the entry")
            }
            InvalidTokenRule::Place => ("fromCookies", "write the name, or remove the entry"),
            InvalidTokenRule::Header(_) => ("fromHeaders", "write the name of a header"),
            InvalidTokenRule::Claim(_) => ("outputClaimToHeaders", "write the name of a claim"),
            InvalidTokenRule::ClaimHeader(_) => ("outputClaimToHeaders", "choose another header"),
            InvalidTokenRule::PayloadHeader(_) => ("outputPayloadToHeader", "choose another header"),
        };
        Rejection::new(format!("{field}.{place}"), error.to_string(), remedy)
    })
}

fn parse_keys(field: &str, rule: &api::JwtRule) -> Result<Keys, Rejection> {
    match (rule.jwks.as_str(), rule.jwks_uri.as_str()) {
        ("", "") if is_address(&rule.issuer) => Ok(Keys::Discovered),
        ("", "") => {
            let what = "is missing, and the issuer is no address that could tell";
            Err(Rejection::new(format!("{field}.jwksUri"), what, "write where the keys are, or jwks"))
        }
        (keys, "") => {
            let set: Option<Value> = serde_json::from_str(keys).ok();
            if set.and_then(|set| set.get("keys")?.as_array().map(Vec::len)).is_none() {
                let remedy = "write {\"keys\": [...]} (RFC 7517, 5)";
                return Err(Rejection::new(format!("{field}.jwks"), "is no JSON Web Key Set", remedy));
            }
            Ok(Keys::Inline(keys.into()))
        }
        ("", address) if is_address(address) => Ok(Keys::At(address.into())),
        ("", address) => {
            let what = format!("{address:?} is no address");
            Err(Rejection::new(format!("{field}.jwksUri"), what, "write one with http:// or https://"))
        }
        _ => Err(Rejection::new(format!("{field}.jwks"), "stands beside jwksUri", "remove one of the two")),
    }
}

fn is_address(text: &str) -> bool {
    let address: Option<Uri> = text.parse().ok();
    address.is_some_and(|address| {
        matches!(address.scheme_str(), Some("http" | "https"))
            && address.host().is_some_and(|host| !host.is_empty())
    })
}
