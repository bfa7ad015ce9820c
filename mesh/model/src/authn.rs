//! Who the bearer of a token says he is: where a request has tokens, and whether what a verified one says
//! holds here and now (RequestAuthentication; RFC 7519). Signatures are checked elsewhere: keys are I/O.
//!
//! For one request:
//!
//! | question | answered by |
//! |---|---|
//! | which tokens does it bring, and by which rule? | [`find_tokens`]; none: it goes on, without principal |
//! | is a verified one meant for us, and in force? | [`TokenRule::judge`]; none is: 401 |
//! | what may nobody but us have said? | [`remove_told`], before anything is told |
//! | what is the application told? | [`TokenRule::tell`] |

use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts, uri::PathAndQuery};
use serde_json::Value;
use thiserror::Error;

use crate::{
    claims::Claims,
    name::Label,
    route::{HeaderEdit, InvalidEdit, percent_decoded},
};

/// The longest token that is looked at: some identity providers put a user's every group into one, and what
/// is longer is to keep us busy.
const LONGEST: usize = 16 * 1024;

/// How many tokens a request may bring: each costs a signature.
const MOST: usize = 4;

/// How far clocks may be apart, as Envoy has it.
const LEEWAY: Duration = Duration::from_secs(60);

/// Whose tokens are believed, where they are, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// Who signs: the claim `iss`.
    pub issuer: Label,
    /// For whom: one of these is in the claim `aud`. None: for anybody.
    pub audiences: Vec<Label>,
    /// With which keys.
    pub keys: Keys,
    /// Where a request has the token.
    pub places: Vec<Place>,
    /// Whether the application gets the token.
    pub token: AfterUse,
    /// The header in which it gets the payload, as it is encoded in the token.
    pub payload_header: Option<HeaderName>,
    /// Headers in which it gets claims.
    pub claim_headers: Vec<ClaimHeader>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Here: a JSON Web Key Set.
    Inline(Box<str>),
    /// At this address.
    At(Box<str>),
    /// Where the issuer's OpenID configuration says.
    Discovered,
}

/// A place for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A header, after a prefix.
    Header {
        /// Its name.
        name: HeaderName,
        /// What comes before the token, maybe nothing.
        prefix: Box<str>,
    },
    /// A query parameter.
    Query(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

/// What becomes of a token that was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterUse {
    /// It is taken out of the request.
    #[default]
    Removed,
    /// It stays.
    Forwarded,
}

/// A header that says what a claim says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The header.
    pub header: HeaderName,
    /// The claim; one in other claims has dots between the names.
    pub claim: Label,
}

/// What a rule says, as it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenRuleParts<'a> {
    /// The issuer.
    pub issuer: &'a str,
    /// The audiences.
    pub audiences: &'a [&'a str],
    /// Headers and their prefixes.
    pub headers: &'a [(&'a str, &'a str)],
    /// Query parameters.
    pub params: &'a [&'a str],
    /// Cookies.
    pub cookies: &'a [&'a str],
    /// What becomes of the token.
    pub token: AfterUse,
    /// The header for the payload; empty: none.
    pub payload_header: &'a str,
    /// Headers, and the claims that they say.
    pub claim_headers: &'a [(&'a str, &'a str)],
}

impl TokenRule {
    /// Reads what a rule says. One that names no place means `Authorization: Bearer` and the query parameter
    /// `access_token`.
    pub fn parse(parts: &TokenRuleParts<'_>, keys: Keys) -> Result<Self, InvalidTokenRule> {
        if parts.issuer.is_empty() {
            return Err(InvalidTokenRule::Issuer);
        }
        let named =
            |name: &&str| if name.is_empty() { Err(InvalidTokenRule::Place) } else { Ok((*name).into()) };
        let header = |(name, prefix): &(&str, &str)| {
            let name =
                HeaderName::try_from(*name).map_err(|_| InvalidTokenRule::Header((*name).to_owned()))?;
            Ok(Place::Header { name, prefix: (*prefix).into() })
        };
        let headers = parts.headers.iter().map(header);
        let params = parts.params.iter().map(|name| named(name).map(Place::Query));
        let cookies = parts.cookies.iter().map(|name| named(name).map(Place::Cookie));
        let mut places = headers.chain(params).chain(cookies).collect::<Result<Vec<_>, _>>()?;
        if places.is_empty() {
            places.push(Place::Header { name: header::AUTHORIZATION, prefix: "Bearer ".into() });
            places.push(Place::Query("access_token".into()));
        }
        let claim_header = |(header, claim): &(&str, &str)| {
            if claim.is_empty() {
                return Err(InvalidTokenRule::Claim((*header).to_owned()));
            }
            let header = output(header).map_err(InvalidTokenRule::ClaimHeader)?;
            Ok(ClaimHeader { header, claim: (*claim).into() })
        };
        let payload = Some(parts.payload_header).filter(|name| !name.is_empty());
        Ok(Self {
            issuer: parts.issuer.into(),
            audiences: parts.audiences.iter().map(|audience| Label::from(*audience)).collect(),
            keys,
            places,
            token: parts.token,
            payload_header: payload.map(output).transpose().map_err(InvalidTokenRule::PayloadHeader)?,
            claim_headers: parts.claim_headers.iter().map(claim_header).collect::<Result<_, _>>()?,
        })
    }

    /// Whether what a token says, whose signature was checked, holds. `now` is the time since 1970.
    pub fn judge(&self, claims: &Claims, now: Duration) -> Result<(), InvalidClaims> {
        if !claims.texts(&["iss"]).eq([self.issuer.as_str()]) {
            return Err(InvalidClaims::Issuer);
        }
        let is_ours = |audience: &str| self.audiences.iter().any(|ours| *ours == *audience);
        if !self.audiences.is_empty() && !claims.texts(&["aud"]).any(is_ours) {
            return Err(InvalidClaims::Audience);
        }
        if date(claims, "exp")?.is_some_and(|end| now >= end.saturating_add(LEEWAY)) {
            return Err(InvalidClaims::Expired);
        }
        if date(claims, "nbf")?.is_some_and(|begin| now.saturating_add(LEEWAY) < begin) {
            return Err(InvalidClaims::NotYet);
        }
        Ok(())
    }

    /// Tells the application what the rule wants told of `token`, which was verified and says `claims`. A claim
    /// that is no text, number or truth is not told.
    pub fn tell(&self, headers: &mut HeaderMap, token: &str, claims: &Claims) {
        if let (Some(name), Some(payload)) = (&self.payload_header, token.split('.').nth(1)) {
            set(headers, name, payload);
        }
        for ClaimHeader { header, claim } in &self.claim_headers {
            let nested = || claims.find(&claim.as_str().split('.').collect::<Vec<_>>());
            match claims.find(&[claim]).or_else(nested) {
                Some(Value::String(text)) => set(headers, header, text),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => set(headers, header, &value.to_string()),
                Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => {}
            }
        }
    }
}

/// A value that no header can have is not told; a full map stays as it is.
fn set(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        let _full = headers.try_insert(name, value);
    }
}

/// Takes out of a request whatever only these rules may tell. For every request, token or not: else a client
/// says it himself.
pub fn remove_told(rules: &[TokenRule], headers: &mut HeaderMap) {
    for rule in rules {
        let claims = rule.claim_headers.iter().map(|one| &one.header);
        for name in claims.chain(&rule.payload_header) {
            headers.remove(name);
        }
    }
}

/// A token that a request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented<'a> {
    /// The rule that looks there.
    pub rule: &'a TokenRule,
    /// Where it is.
    pub place: &'a Place,
    /// The token, not verified.
    pub token: Cow<'a, str>,
}

/// The tokens of a request, in order of the rules. One place of several rules has one token for each: who
/// issued it, decides which rule is for it. The first that is verified names the bearer.
pub fn find_tokens<'a>(rules: &'a [TokenRule], head: &'a Parts) -> Result<Vec<Presented<'a>>, InvalidTokens> {
    let mut found: Vec<Presented<'a>> = Vec::new();
    let mut different = 0_usize;
    for rule in rules {
        for place in &rule.places {
            let Some(token) = place.token(head)? else { continue };
            if token.len() > LONGEST {
                return Err(InvalidTokens::TooLong);
            }
            if !found.iter().any(|other| other.token == token) {
                different = different.saturating_add(1);
            }
            if different > MOST {
                return Err(InvalidTokens::TooMany);
            }
            found.push(Presented { rule, place, token });
        }
    }
    Ok(found)
}

impl Place {
    /// The token there; an error if there are several, since nobody knows which one an application reads.
    fn token<'h>(&self, head: &'h Parts) -> Result<Option<Cow<'h, str>>, InvalidTokens> {
        match self {
            Self::Header { name, prefix } => {
                let text = |value: &'h HeaderValue| value.to_str().ok();
                let after = |value: &'h str| without_prefix(value, prefix).map(|token| token.trim().into());
                one(head.headers.get_all(name).iter().filter_map(text).filter_map(after))
            }
            Self::Query(name) => {
                let values = pairs(head.uri.query().unwrap_or_default(), '&').filter(|(n, _)| is(n, name));
                one(values.map(|(_, value)| match value.contains('%') {
                    true => String::from_utf8_lossy(&percent_decoded(value).collect::<Vec<_>>())
                        .into_owned()
                        .into(),
                    false => value.into(),
                }))
            }
            Self::Cookie(name) => {
                let lines = head.headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
                let cookies = lines.flat_map(|line| pairs(line, ';')).filter(|(n, _)| n.trim() == &**name);
                one(cookies.map(|(_, value)| value.trim().into()))
            }
        }
    }

    /// Takes the token out of a request.
    pub fn remove(&self, head: &mut Parts) {
        match self {
            Self::Header { name, .. } => drop(head.headers.remove(name)),
            Self::Query(name) => {
                let query = head.uri.query().unwrap_or_default();
                let kept: Vec<_> = query.split('&').filter(|one| !is(first(one), name)).collect();
                let target = match kept.join("&") {
                    query if query.is_empty() => head.uri.path().to_owned(),
                    query => format!("{}?{query}", head.uri.path()),
                };
                let mut parts = head.uri.clone().into_parts();
                parts.path_and_query = PathAndQuery::try_from(target).ok().or(parts.path_and_query);
                if let Ok(uri) = Uri::from_parts(parts) {
                    head.uri = uri;
                }
            }
            Self::Cookie(name) => {
                let lines = head.headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
                let cookies = lines.flat_map(|line| line.split(';')).map(str::trim);
                let kept: Vec<_> = cookies.filter(|one| first(one).trim() != &**name).collect();
                let kept = kept.join("; ");
                head.headers.remove(header::COOKIE);
                if !kept.is_empty() {
                    set(&mut head.headers, &header::COOKIE, &kept);
                }
            }
        }
    }
}

/// Schemes of `Authorization` are compared without case (RFC 9110, 11.1), so every prefix is.
fn without_prefix<'v>(value: &'v str, prefix: &str) -> Option<&'v str> {
    let (start, rest) = value.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn pairs(text: &str, between: char) -> impl Iterator<Item = (&str, &str)> {
    text.split(between).filter_map(|pair| pair.split_once('='))
}

fn first(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// Whether a parameter has this name, in whatever disguise.
fn is(written: &str, name: &str) -> bool {
    percent_decoded(written).eq(name.bytes())
}

fn one<T>(mut all: impl Iterator<Item = T>) -> Result<Option<T>, InvalidTokens> {
    let first = all.next();
    if all.next().is_some() { Err(InvalidTokens::Repeated) } else { Ok(first) }
}

/// A date of a token, which may have parts of a second; `None`: nothing is said.
fn date(claims: &Claims, name: &'static str) -> Result<Option<Duration>, InvalidClaims> {
    let Some(value) = claims.find(&[name]) else { return Ok(None) };
    let seconds = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.map(Some).ok_or(InvalidClaims::Date(name))
}

/// What a filter may not write, a rule may not either.
fn output(name: &str) -> Result<HeaderName, InvalidEdit> {
    HeaderEdit::parse(&[(name, "")], &[], &[])?;
    HeaderName::try_from(name).map_err(|_| InvalidEdit::Name(name.to_owned()))
}

/// Why a rule is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidTokenRule {
    /// Whose tokens?
    #[error("a rule names its issuer")]
    Issuer,
    /// A place has no name.
    #[error("a query parameter or cookie has no name")]
    Place,
    /// A name is none.
    #[error("{0:?} is not the name of a header")]
    Header(String),
    /// A header is to say no claim.
    #[error("the header {0} has no claim to say")]
    Claim(String),
    /// The header for the payload is not for rules to write.
    #[error(transparent)]
    PayloadHeader(InvalidEdit),
    /// A header for a claim is not for rules to write.
    #[error(transparent)]
    ClaimHeader(InvalidEdit),
}

/// Why the tokens of a request are not looked at. The request is answered with 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidTokens {
    /// One place has several.
    #[error("the request has several tokens in one place")]
    Repeated,
    /// One is longer than any.
    #[error("a token has at most {LONGEST} bytes")]
    TooLong,
    /// There are more than anybody needs.
    #[error("a request has at most {MOST} tokens")]
    TooMany,
}

/// Why a token whose signature is right does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidClaims {
    /// Another issuer.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// For others.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// Its time is over.
    #[error("Jwt is expired")]
    Expired,
    /// Its time has not come.
    #[error("Jwt not yet valid")]
    NotYet,
    /// A date is none.
    #[error("{0} in Jwt is not a date")]
    Date(&'static str),
}

#[cfg(test)]
mod tests;
