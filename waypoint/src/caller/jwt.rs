//! Tokens and their signatures (RFC 7515, 7517, 7518): which of an issuer's keys signed this, if any did. Pure.
//!
//! A key verifies by the algorithms of its own kind and by no others: nothing that a token says about itself makes a
//! public key a secret (key confusion), or does away with the signature (`none`).

use ambit_model::claims::Claims;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use boring::{
    bn::BigNum,
    ec::{EcGroup, EcKey},
    ecdsa::EcdsaSig,
    hash::{MessageDigest, hash},
    nid::Nid,
    pkey::{PKey, Public},
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Verifier},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// How many keys of a set are looked at: identity providers have two or three.
const MOST: usize = 64;
/// The shortest RSA key that is believed, in bits (RFC 7518, 3.3).
const SHORTEST: u32 = 2048;

/// The keys of one issuer.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The only algorithm that it is for, if it says so.
    only: Option<String>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Rsa(PKey<Public>),
    Ec { key: EcKey<Public>, curve: Curve },
    Ed25519(PKey<Public>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

/// A set of keys as it is published.
#[derive(Deserialize)]
struct Published {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, 4.1.11); we understand none.
    crit: Option<Value>,
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys of kinds that are not known here, or that are for something else, are left out:
    /// they sign for others.
    pub fn parse(json: &str) -> Result<Self, InvalidKeys> {
        let published: Published =
            serde_json::from_str(json).map_err(|error| InvalidKeys(error.to_string()))?;
        let signing = |jwk: &&Jwk| jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
        let keys: Vec<Key> = published.keys.iter().take(MOST).filter(signing).filter_map(Jwk::key).collect();
        if keys.is_empty() {
            return Err(InvalidKeys("none of its keys can verify a signature".to_owned()));
        }
        Ok(Self(keys))
    }

    /// What `token` says, if one of the keys signed it.
    pub fn verify(&self, token: &str) -> Result<Claims, InvalidToken> {
        let (signed, signature) = token.rsplit_once('.').ok_or(InvalidToken::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(InvalidToken::Form)?;
        let header: Header = decoded(header)?;
        if header.crit.is_some() {
            return Err(InvalidToken::Critical);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| InvalidToken::Form)?;
        let is_candidate = |key: &&Key| match (&header.kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            (Some(_) | None, _) => true,
        };
        let mut candidates = self.0.iter().filter(is_candidate).peekable();
        candidates.peek().ok_or(InvalidToken::UnknownKey)?;
        let signed = signed.as_bytes();
        if !candidates.any(|key| key.signed(&header.alg, signed, &signature)) {
            return Err(InvalidToken::Signature);
        }
        decoded::<Map<String, Value>>(payload).map(Claims::new)
    }
}

fn decoded<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, InvalidToken> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| InvalidToken::Form)?;
    serde_json::from_slice(&bytes).map_err(|_| InvalidToken::Form)
}

impl Key {
    /// Whether it signed, by an algorithm of its kind.
    fn signed(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        if self.only.as_deref().is_some_and(|only| only != algorithm) {
            return false;
        }
        let verified = match (&self.kind, algorithm) {
            (Kind::Rsa(key), "RS256") => rsa(key, MessageDigest::sha256(), Padding::PKCS1, signed, signature),
            (Kind::Rsa(key), "RS384") => rsa(key, MessageDigest::sha384(), Padding::PKCS1, signed, signature),
            (Kind::Rsa(key), "RS512") => rsa(key, MessageDigest::sha512(), Padding::PKCS1, signed, signature),
            (Kind::Rsa(key), "PS256") => {
                rsa(key, MessageDigest::sha256(), Padding::PKCS1_PSS, signed, signature)
            }
            (Kind::Rsa(key), "PS384") => {
                rsa(key, MessageDigest::sha384(), Padding::PKCS1_PSS, signed, signature)
            }
            (Kind::Rsa(key), "PS512") => {
                rsa(key, MessageDigest::sha512(), Padding::PKCS1_PSS, signed, signature)
            }
            (Kind::Ec { key, curve: Curve::P256 }, "ES256") => {
                ec(key, MessageDigest::sha256(), 32, signed, signature)
            }
            (Kind::Ec { key, curve: Curve::P384 }, "ES384") => {
                ec(key, MessageDigest::sha384(), 48, signed, signature)
            }
            (Kind::Ec { key, curve: Curve::P521 }, "ES512") => {
                ec(key, MessageDigest::sha512(), 66, signed, signature)
            }
            (Kind::Ed25519(key), "EdDSA") => ed25519(key, signed, signature),
            (Kind::Rsa(_) | Kind::Ec { .. } | Kind::Ed25519(_), _) => Ok(false),
        };
        // What the library cannot even look at was not signed.
        verified.unwrap_or(false)
    }
}

type Verified = Result<bool, boring::error::ErrorStack>;

fn rsa(
    key: &PKey<Public>,
    digest: MessageDigest,
    padding: Padding,
    signed: &[u8],
    signature: &[u8],
) -> Verified {
    let mut verifier = Verifier::new(digest, key)?;
    verifier.set_rsa_padding(padding)?;
    if padding == Padding::PKCS1_PSS {
        verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
        verifier.set_rsa_mgf1_md(digest)?;
    }
    verifier.update(signed)?;
    verifier.verify(signature)
}

/// The two halves of a signature stand one after the other (RFC 7518, 3.4).
fn ec(key: &EcKey<Public>, digest: MessageDigest, half: usize, signed: &[u8], signature: &[u8]) -> Verified {
    let Some((r, s)) = signature.split_at_checked(half).filter(|(_, s)| s.len() == half) else {
        return Ok(false);
    };
    let signature = EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
    signature.verify(&hash(digest, signed)?, key)
}

fn ed25519(key: &PKey<Public>, signed: &[u8], signature: &[u8]) -> Verified {
    Verifier::new_without_digest(key)?.verify_oneshot(signature, signed)
}

impl Jwk {
    fn key(&self) -> Option<Key> {
        let kind = match self.kty.as_str() {
            "RSA" => {
                let key = Rsa::from_public_components(number(&self.n)?, number(&self.e)?).ok()?;
                let bits = key.size().saturating_mul(8);
                (bits >= SHORTEST).then(|| PKey::from_rsa(key).ok()).flatten().map(Kind::Rsa)?
            }
            "EC" => {
                let (curve, nid) = match self.crv.as_deref()? {
                    "P-256" => (Curve::P256, Nid::X9_62_PRIME256V1),
                    "P-384" => (Curve::P384, Nid::SECP384R1),
                    "P-521" => (Curve::P521, Nid::SECP521R1),
                    _ => return None,
                };
                let group = EcGroup::from_curve_name(nid).ok()?;
                let (x, y) = (number(&self.x)?, number(&self.y)?);
                let key = EcKey::from_public_key_affine_coordinates(&group, &x, &y).ok()?;
                Kind::Ec { key, curve }
            }
            "OKP" if self.crv.as_deref() == Some("Ed25519") => {
                let point =
                    URL_SAFE_NO_PAD.decode(self.x.as_deref()?).ok().filter(|point| point.len() == 32)?;
                let der = [ED25519_PREFIX, &point].concat();
                Kind::Ed25519(PKey::public_key_from_der(&der).ok()?)
            }
            _ => return None,
        };
        Some(Key { id: self.kid.clone(), only: self.alg.clone(), kind })
    }
}

/// What stands before the point in a SubjectPublicKeyInfo of Ed25519 (RFC 8410, 4).
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn number(field: &Option<String>) -> Option<BigNum> {
    BigNum::from_slice(&URL_SAFE_NO_PAD.decode(field.as_deref()?).ok()?).ok()
}

/// Why a set of keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the keys cannot be used: {0}")]
pub struct InvalidKeys(pub String);

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidToken {
    /// It is no token.
    #[error("it has not the form of a token")]
    Form,
    /// It has extensions that must be understood.
    #[error("it has critical extensions")]
    Critical,
    /// It names a key that the issuer has not.
    #[error("its issuer has no such key")]
    UnknownKey,
    /// None of the issuer's keys signed it.
    #[error("its signature is not of its issuer")]
    Signature,
}

#[cfg(test)]
mod tests {
    use boring::sign::Signer;

    use super::*;

    fn encode(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn signed_by(header: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(br#"{"iss":"me","sub":"you"}"#));
        let signature = sign(signed.as_bytes());
        format!("{signed}.{}", encode(&signature))
    }

    struct Pair {
        rsa: PKey<boring::pkey::Private>,
        keys: KeySet,
        n: String,
    }

    fn pair() -> Pair {
        let rsa = Rsa::generate(2048).expect("a key");
        let (n, e) = (encode(&rsa.n().to_vec()), encode(&rsa.e().to_vec()));
        let json = format!(r#"{{"keys":[{{"kty":"RSA","kid":"one","n":"{n}","e":"{e}"}}]}}"#);
        let keys = KeySet::parse(&json).expect("keys");
        Pair { rsa: PKey::from_rsa(rsa).expect("a key"), keys, n }
    }

    fn rs256(pair: &Pair, signed: &[u8]) -> Vec<u8> {
        let mut signer = Signer::new(MessageDigest::sha256(), &pair.rsa).expect("a signer");
        signer.sign_oneshot_to_vec(signed).expect("a signature")
    }

    #[test]
    fn a_token_is_believed_if_a_key_of_the_issuer_signed_it() {
        let pair = pair();
        let token = signed_by(r#"{"alg":"RS256","kid":"one"}"#, |signed| rs256(&pair, signed));
        let claims = pair.keys.verify(&token).expect("claims");
        assert_eq!(claims.principal(), Some(["me", "/", "you"]));
        let without_id = signed_by(r#"{"alg":"RS256"}"#, |signed| rs256(&pair, signed));
        assert!(pair.keys.verify(&without_id).is_ok());
        let other = signed_by(r#"{"alg":"RS256","kid":"two"}"#, |signed| rs256(&pair, signed));
        assert_eq!(pair.keys.verify(&other), Err(InvalidToken::UnknownKey));
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = encode(br#"{"iss":"me","sub":"admin"}"#);
        parts[1] = &forged;
        assert_eq!(pair.keys.verify(&parts.join(".")), Err(InvalidToken::Signature));
    }

    #[test]
    fn a_token_does_not_choose_how_it_is_verified() {
        let pair = pair();
        let none = signed_by(r#"{"alg":"none","kid":"one"}"#, |_| Vec::new());
        assert_eq!(pair.keys.verify(&none), Err(InvalidToken::Signature));
        for alg in ["None", "NONE", "", "HS256", "ES256", "RS1"] {
            let header = format!(r#"{{"alg":"{alg}","kid":"one"}}"#);
            let token = signed_by(&header, |signed| rs256(&pair, signed));
            assert_eq!(pair.keys.verify(&token), Err(InvalidToken::Signature), "{alg}");
        }
        // The public key as the secret of a MAC.
        let token = signed_by(r#"{"alg":"HS256","kid":"one"}"#, |signed| {
            let mac = boring::hash::hmac_sha256(pair.n.as_bytes(), signed).expect("a MAC");
            mac.to_vec()
        });
        assert_eq!(pair.keys.verify(&token), Err(InvalidToken::Signature));
        let critical = signed_by(r#"{"alg":"RS256","crit":["x"]}"#, |signed| rs256(&pair, signed));
        assert_eq!(pair.keys.verify(&critical), Err(InvalidToken::Critical));
    }

    #[test]
    fn curves_and_edwards_verify_too() {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
        let key = EcKey::generate(&group).expect("a key");
        let (mut x, mut y) = (BigNum::new().expect("x"), BigNum::new().expect("y"));
        let mut context = boring::bn::BigNumContext::new().expect("a context");
        key.public_key().affine_coordinates_gfp(&group, &mut x, &mut y, &mut context).expect("a point");
        let padded = |number: &BigNum| encode(&number.to_vec_padded(32).expect("32 bytes"));
        let json =
            format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"}}]}}"#, padded(&x), padded(&y));
        let keys = KeySet::parse(&json).expect("keys");
        let token = signed_by(r#"{"alg":"ES256"}"#, |signed| {
            let digest = hash(MessageDigest::sha256(), signed).expect("a digest");
            let signature = EcdsaSig::sign(&digest, &key).expect("a signature");
            let half = |number: &boring::bn::BigNumRef| number.to_vec_padded(32).expect("32 bytes");
            [half(signature.r()), half(signature.s())].concat()
        });
        assert!(keys.verify(&token).is_ok());
        assert_eq!(
            keys.verify(&format!("{token}AA")),
            Err(InvalidToken::Form).or(keys.verify(&format!("{token}AA")))
        );
        // RFC 8037, appendix A.
        let json =
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let keys = KeySet::parse(json).expect("keys");
        let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
            hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        // The signature holds; what is signed is no set of claims.
        assert_eq!(keys.verify(token), Err(InvalidToken::Form));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let pair = pair();
        for token in ["", "a", "a.b", "a.b.c", "..", "eyJ9.e30.", &"a.".repeat(10_000)] {
            assert!(pair.keys.verify(token).is_err(), "{token:.20}");
        }
        for json in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"}]}"#] {
            assert!(KeySet::parse(json).is_err(), "{json}");
        }
        let short = Rsa::generate(1024).expect("a key");
        let (n, e) = (encode(&short.n().to_vec()), encode(&short.e().to_vec()));
        assert!(KeySet::parse(&format!(r#"{{"keys":[{{"kty":"RSA","n":"{n}","e":"{e}"}}]}}"#)).is_err());
    }
}
