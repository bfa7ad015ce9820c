//! Whose tokens are believed: `ambit.waypoint.v1.TokenRule`.

use ambit_model::authn::{AfterUse, InvalidTokenRule, Keys, Place, TokenRule, TokenRuleParts};
use ambit_proto::waypoint as pb;

use super::{InvalidResource, decode_each, route::unset};

pub(super) fn decode(message: pb::TokenRule) -> Result<TokenRule, InvalidResource> {
    use pb::token_rule::Keys as Wire;
    let keys = match message.keys.ok_or_else(|| unset("keys"))? {
        Wire::Jwks(keys) if keys.is_empty() => return Err(InvalidResource::field("jwks", "is empty")),
        Wire::JwksUri(uri) if uri.is_empty() => return Err(InvalidResource::field("jwks_uri", "is empty")),
        Wire::Jwks(keys) => Keys::Inline(keys.into()),
        Wire::JwksUri(uri) => Keys::At(uri.into()),
        Wire::Discovery(pb::Discovery {}) => Keys::Discovered,
    };
    let places = decode_each("places", message.places, |place| place.kind.ok_or_else(|| unset("kind")))?;
    let (mut headers, mut params, mut cookies) = (Vec::new(), Vec::new(), Vec::new());
    for place in &places {
        use pb::token_place::Kind;
        match place {
            Kind::Header(header) => headers.push((header.name.as_str(), header.prefix.as_str())),
            Kind::Param(name) => params.push(name.as_str()),
            Kind::Cookie(name) => cookies.push(name.as_str()),
        }
    }
    let audiences: Vec<_> = message.audiences.iter().map(String::as_str).collect();
    let claim_headers: Vec<_> =
        message.claim_headers.iter().map(|one| (one.header.as_str(), one.claim.as_str())).collect();
    let parts = TokenRuleParts {
        issuer: &message.issuer,
        audiences: &audiences,
        headers: &headers,
        params: &params,
        cookies: &cookies,
        token: if message.forward { AfterUse::Forwarded } else { AfterUse::Removed },
        payload_header: &message.payload_header,
        claim_headers: &claim_headers,
    };
    TokenRule::parse(&parts, keys).map_err(|error| {
        let field = match &error {
            InvalidTokenRule::Issuer => "issuer",
            InvalidTokenRule::Place | InvalidTokenRule::Header(_) => "places",
            InvalidTokenRule::Claim(_) | InvalidTokenRule::ClaimHeader(_) => "claim_headers",
            InvalidTokenRule::PayloadHeader(_) => "payload_header",
        };
        InvalidResource::field(field, error)
    })
}

pub(super) fn encode(rule: &TokenRule) -> pb::TokenRule {
    use pb::{token_place::Kind, token_rule::Keys as Wire};
    let keys = match &rule.keys {
        Keys::Inline(keys) => Wire::Jwks(keys.to_string()),
        Keys::At(uri) => Wire::JwksUri(uri.to_string()),
        Keys::Discovered => Wire::Discovery(pb::Discovery {}),
    };
    let place = |place: &Place| {
        let kind = match place {
            Place::Header { name, prefix } => {
                Kind::Header(pb::TokenHeader { name: name.to_string(), prefix: prefix.to_string() })
            }
            Place::Query(name) => Kind::Param(name.to_string()),
            Place::Cookie(name) => Kind::Cookie(name.to_string()),
        };
        pb::TokenPlace { kind: Some(kind) }
    };
    let claims = rule.claim_headers.iter();
    pb::TokenRule {
        issuer: rule.issuer.to_string(),
        audiences: rule.audiences.iter().map(ToString::to_string).collect(),
        keys: Some(keys),
        places: rule.places.iter().map(place).collect(),
        forward: rule.token == AfterUse::Forwarded,
        payload_header: rule.payload_header.as_ref().map(ToString::to_string).unwrap_or_default(),
        claim_headers: claims
            .map(|one| pb::ClaimHeader { header: one.header.to_string(), claim: one.claim.to_string() })
            .collect(),
    }
}
