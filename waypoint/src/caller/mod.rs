//! Who asks: beside the client's certificate, what a token says that its issuer signed (RequestAuthentication).
//!
//! | a request has | becomes |
//! |---|---|
//! | no token | it goes on, without principal |
//! | a token that verifies and holds | it goes on with its claims, of which the application is told what the rule says |
//! | only tokens that do not | 401 |

pub mod debug;
pub mod fetch;
pub mod jwt;
pub mod keys;

use std::time::{SystemTime, UNIX_EPOCH};

use ambit_model::{
    authn::{self, AfterUse, Presented, TokenRule},
    claims::Claims,
};
use http::request::Parts;

use self::{jwt::InvalidToken, keys::KeyStore};
use crate::refusal::Refusal;

/// What a request's token says. The head is told of it, as the rules want.
pub async fn identify(
    rules: &[TokenRule],
    keys: &KeyStore,
    head: &mut Parts,
) -> Result<Option<Claims>, Refusal> {
    if rules.is_empty() {
        return Ok(None);
    }
    let believed = {
        let presented = authn::find_tokens(rules, head);
        let presented = presented.map_err(|error| Refusal::Unauthenticated(error.to_string()))?;
        let believed = believe(&presented, keys).await?;
        believed.map(|(one, claims)| (one.rule.clone(), one.place.clone(), one.token.to_string(), claims))
    };
    // Whatever only we may say, nobody else has said.
    authn::remove_told(rules, &mut head.headers);
    Ok(believed.map(|(rule, place, token, claims)| {
        rule.tell(&mut head.headers, &token, &claims);
        match rule.token {
            AfterUse::Removed => place.remove(head),
            AfterUse::Forwarded => {}
        }
        claims
    }))
}

/// The first token that verifies and holds. None was shown: nobody claims to be anybody.
async fn believe<'p, 'a>(
    presented: &'p [Presented<'a>],
    keys: &KeyStore,
) -> Result<Option<(&'p Presented<'a>, Claims)>, Refusal> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut last = None;
    for one in presented {
        let known = match keys.get(one.rule).await {
            Ok(known) => known,
            Err(error) => {
                last = Some(error.to_string());
                continue;
            }
        };
        let claims = match known.verify(&one.token) {
            Ok(claims) => claims,
            Err(error) => {
                if error == InvalidToken::UnknownKey {
                    keys.is_missing_a_key(one.rule);
                }
                last = Some(error.to_string());
                continue;
            }
        };
        match one.rule.judge(&claims, now) {
            Ok(()) => return Ok(Some((one, claims))),
            Err(error) => last = Some(error.to_string()),
        }
    }
    last.map_or(Ok(None), |why| Err(Refusal::Unauthenticated(why)))
}
