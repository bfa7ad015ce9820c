//! Debug tokens: a request that carries one is explained by its waypoint. Signing and verifying, side by side.
//!
//! A token is a JWT (RFC 7519), signed with ES256 by a certificate of the mesh's own authority that lives as long as the
//! token, and whose chain it carries (`x5c`, RFC 7515, 4.1.6). So whoever verifies peers can verify tokens, with the same
//! roots and the same revocation lists, and no secret is distributed. That certificate has one fixed [`identity`], which
//! the authority gives to nobody else.
//!
//! | a token is believed if | else |
//! |---|---|
//! | it has the form, and its type is `ambit-debug+jwt` | [`InvalidToken::Form`] |
//! | its certificate has the identity, and leads to our roots, unrevoked | [`InvalidToken::Signer`], [`InvalidToken::Chain`] |
//! | that certificate's key signed it | [`InvalidToken::Signature`] |
//! | it is for an hour at most, and for now | [`InvalidToken::Life`], [`InvalidToken::NotYet`], [`InvalidToken::Expired`] |
//! | it is for this waypoint | [`InvalidToken::Audience`] |

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_model::{
    identity::{Identity, TrustDomain},
    name::{Namespace, ServiceAccount},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use boring::{
    bn::{BigNum, BigNumRef},
    ec::EcKey,
    ecdsa::EcdsaSig,
    error::ErrorStack,
    hash::{MessageDigest, hash},
    nid::Nid,
    pkey::Public,
    x509::X509,
};
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};
use serde_json::{Map, Value, json};

use crate::{
    cert::{Certificate, request::PrivateKey},
    tls::{rejected::Rejected, verify::peer_identity},
};

/// The longest life of a token: long enough to look for something, too short to be kept.
pub const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// What tells these tokens from all others (RFC 8725, 3.11).
const TYPE: &str = "ambit-debug+jwt";
const ALGORITHM: &str = "ES256";
/// The longest token that is looked at, in bytes: a chain of five RSA certificates, encoded twice, is shorter.
pub const LONGEST: usize = 16 * 1024;
/// The longest chain that is looked at.
const CERTIFICATES: usize = 8;
/// Each half of a signature on P-256, in bytes (RFC 7518, 3.4).
const HALF: usize = 32;
/// How far clocks may be apart, as with other tokens.
const LEEWAY: Duration = Duration::from_secs(60);

/// Neither a namespace nor an account that an API server admits: no pod can have it, whoever signs for pods.
const RESERVED: &str = "ambit_debug";

/// Whose certificate signs debug tokens.
pub fn identity(trust_domain: &TrustDomain) -> Identity {
    Identity::new(trust_domain.clone(), RESERVED, RESERVED)
}

/// Whether nobody who asks gets this identity.
pub fn is_reserved(identity: &Identity) -> bool {
    identity.namespace.as_str() == RESERVED
}

/// Which waypoints explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// All of a namespace.
    Namespace(Namespace),
    /// One.
    Waypoint {
        /// Its namespace.
        namespace: Namespace,
        /// Its Gateway's name, which is that of its account.
        name: ServiceAccount,
    },
}

impl Audience {
    /// Whether it has `waypoint` in it.
    pub fn includes(&self, waypoint: &Identity) -> bool {
        match self {
            Self::Namespace(namespace) => waypoint.namespace == *namespace,
            Self::Waypoint { namespace, name } => {
                waypoint.namespace == *namespace && waypoint.service_account == *name
            }
        }
    }
}

/// `NAMESPACE`, or `NAMESPACE/NAME`.
impl FromStr for Audience {
    type Err = InvalidAudience;

    fn from_str(text: &str) -> Result<Self, InvalidAudience> {
        let is_name = |name: &str| !name.is_empty() && !name.contains('/');
        match text.split_once('/') {
            None if is_name(text) => Ok(Self::Namespace(text.into())),
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self::Waypoint { namespace: namespace.into(), name: name.into() })
            }
            None | Some(_) => Err(InvalidAudience(text.to_owned())),
        }
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(namespace) => f.write_str(namespace.as_str()),
            Self::Waypoint { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

/// A text that names no waypoints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no waypoints; write NAMESPACE or NAMESPACE/NAME")]
pub struct InvalidAudience(String);

/// Why no token was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The chain is none.
    #[error("the signer's chain cannot be read")]
    Chain,
    /// The clock is before 1970.
    #[error("the clock is before 1970")]
    Clock,
    /// The key does not sign.
    #[error("the token cannot be signed: {0}")]
    Key(#[from] ErrorStack),
}

/// Signs a token for `audience`, from `now` for `life`, with a key and what an issuer answered for it: leaf,
/// intermediates, roots.
pub fn sign(
    key: &PrivateKey,
    issued: &[String],
    audience: &Audience,
    now: SystemTime,
    life: Duration,
) -> Result<String, SignError> {
    // Who verifies has the roots.
    let (_roots, shown) = issued.split_last().ok_or(SignError::Chain)?;
    let mut chain = Vec::new();
    for pem in shown {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            chain.push(STANDARD.encode(certificate.map_err(|_| SignError::Chain)?));
        }
    }
    let now = now.duration_since(UNIX_EPOCH).map_err(|_| SignError::Clock)?;
    let header = json!({ "alg": ALGORITHM, "typ": TYPE, "x5c": chain });
    let until = now.saturating_add(life).as_secs();
    let claims = json!({ "aud": audience.to_string(), "iat": now.as_secs(), "exp": until });
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let digest = hash(MessageDigest::sha256(), signed.as_bytes())?;
    let signature = EcdsaSig::sign(&digest, &*key.pkey().ec_key()?)?;
    let half = |number: &BigNumRef| number.to_vec_padded(HALF);
    let signature = [half(signature.r())?, half(signature.s())?].concat();
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is no debug token.
    #[error("it has not the form of a debug token")]
    Form,
    /// Its certificate is somebody else's.
    #[error("its certificate is not one for debug tokens")]
    Signer,
    /// Its certificate is not one of the mesh.
    #[error("its certificate is not one of the mesh: {0}")]
    Chain(Rejected),
    /// Its certificate's key did not sign it.
    #[error("its signature does not hold")]
    Signature,
    /// It is for longer than it may be.
    #[error("it is for longer than an hour")]
    Life,
    /// It is not in force yet.
    #[error("it is not in force yet; are the clocks right?")]
    NotYet,
    /// It is over.
    #[error("it has expired")]
    Expired,
    /// It is for others.
    #[error("it is for another waypoint")]
    Audience,
}

impl InvalidToken {
    /// For metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Signer => "signer",
            Self::Chain(_) => "chain",
            Self::Signature => "signature",
            Self::Life => "life",
            Self::NotYet => "not_yet",
            Self::Expired => "expired",
            Self::Audience => "audience",
        }
    }

    /// Whether the mesh signed it all the same: its bearer was given it, and may know what is wrong with it.
    pub fn is_of_mesh(&self) -> bool {
        match self {
            Self::Form | Self::Signer | Self::Chain(_) | Self::Signature => false,
            Self::Life | Self::NotYet | Self::Expired | Self::Audience => true,
        }
    }
}

/// Whether `token` lets its bearer see what `waypoint`, which trusts as `own` does, knows of a request.
pub fn verify(
    token: &[u8],
    own: &Certificate,
    waypoint: &Identity,
    now: SystemTime,
) -> Result<(), InvalidToken> {
    let Token { chain, signed, signature, audience, issued, expires } = Token::parse(token)?;
    if peer_identity(&chain) != Some(identity(&waypoint.trust_domain)) {
        return Err(InvalidToken::Signer);
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // A certificate ends with its token. Of one that is over we want to know whether it was ours: nothing else comes
    // of that than a better word for the refusal below.
    let at = UnixTime::since_unix_epoch(now.min(expires));
    own.vouches_for(&chain, at).map_err(InvalidToken::Chain)?;
    let key = chain.first().and_then(key_of).ok_or(InvalidToken::Signature)?;
    if !holds(&key, signed, &signature).unwrap_or(false) {
        return Err(InvalidToken::Signature);
    }
    if expires.saturating_sub(issued) > LONGEST_LIFE {
        return Err(InvalidToken::Life);
    }
    if issued > now.saturating_add(LEEWAY) {
        return Err(InvalidToken::NotYet);
    }
    if expires <= now {
        return Err(InvalidToken::Expired);
    }
    if audience.includes(waypoint) { Ok(()) } else { Err(InvalidToken::Audience) }
}

/// What a token says, none of which is believed yet.
struct Token<'t> {
    chain: Vec<CertificateDer<'static>>,
    signed: &'t [u8],
    signature: Vec<u8>,
    audience: Audience,
    issued: Duration,
    expires: Duration,
}

impl<'t> Token<'t> {
    fn parse(token: &'t [u8]) -> Result<Self, InvalidToken> {
        let text = std::str::from_utf8(token).ok().filter(|text| text.len() <= LONGEST);
        text.and_then(Self::read).ok_or(InvalidToken::Form)
    }

    fn read(token: &'t str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = decoded(header)?;
        let is = |name: &str, wanted: &str| header.get(name).and_then(Value::as_str) == Some(wanted);
        // Extensions that must be understood (RFC 7515, 4.1.11) are not.
        if !is("alg", ALGORITHM) || !is("typ", TYPE) || header.contains_key("crit") {
            return None;
        }
        let chain = header.get("x5c")?.as_array().filter(|chain| chain.len() <= CERTIFICATES)?;
        let certificate = |one: &Value| STANDARD.decode(one.as_str()?).ok().map(CertificateDer::from);
        let chain = chain.iter().map(certificate).collect::<Option<Vec<_>>>()?;
        let claims = decoded(claims)?;
        let time = |name: &str| claims.get(name)?.as_u64().map(Duration::from_secs);
        Some(Self {
            chain,
            signed: signed.as_bytes(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
            audience: claims.get("aud")?.as_str()?.parse().ok()?,
            issued: time("iat")?,
            expires: time("exp")?,
        })
    }
}

fn decoded(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// The key of a certificate, if it is on P-256.
fn key_of(certificate: &CertificateDer<'_>) -> Option<EcKey<Public>> {
    let key = X509::from_der(certificate).ok()?.public_key().ok()?.ec_key().ok()?;
    (key.group().curve_name() == Some(Nid::X9_62_PRIME256V1)).then_some(key)
}

fn holds(key: &EcKey<Public>, signed: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
    let Some((r, s)) = signature.split_at_checked(HALF).filter(|(_, s)| s.len() == HALF) else {
        return Ok(false);
    };
    let signature = EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
    signature.verify(&hash(MessageDigest::sha256(), signed)?, key)
}

#[cfg(test)]
mod tests;
