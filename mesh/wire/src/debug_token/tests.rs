//! Tokens of authorities in memory: which are believed, and why the others are not.

use super::*;
use crate::{
    cert::{
        authority::{Authority, Serial, Validity},
        crl::Edition,
        request::Request,
    },
    tls::{Compliance, Profile, Versions, revoked::Revocation},
};

const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn now() -> SystemTime {
    UNIX_EPOCH + 56 * YEAR
}

fn waypoint() -> Identity {
    Identity::new("cluster.local", "shop", "gate")
}

fn signer() -> Identity {
    identity(&TrustDomain::default())
}

fn for_gate() -> Audience {
    "shop/gate".parse().unwrap()
}

fn validity(life: Duration) -> Validity {
    Validity { not_before: now() - MINUTE, not_after: now() + life }
}

fn authority() -> Authority {
    Authority::self_signed(&TrustDomain::default(), validity(YEAR), Serial::new(1)).unwrap()
}

/// What an authority answers for an identity, and the key.
fn issued(authority: &Authority, identity: &Identity, life: Duration) -> (PrivateKey, Vec<String>) {
    let Request { key, csr } = Request::new(identity).unwrap();
    let chain = authority.sign(&csr, identity, validity(life), Serial::new(7)).unwrap();
    (key, chain)
}

/// What the waypoint has, with these lists.
fn own(authority: &Authority, revocation: Revocation) -> Certificate {
    let profile = Profile::new(Compliance::None, Versions::Tls13, revocation).unwrap();
    let Request { key, csr } = Request::new(&waypoint()).unwrap();
    let chain = authority.sign(&csr, &waypoint(), validity(YEAR), Serial::new(8)).unwrap();
    Certificate::from_response(&profile, Some(&waypoint()), &chain, &key).unwrap()
}

fn token(authority: &Authority, audience: &Audience, at: SystemTime, life: Duration) -> String {
    let (key, chain) = issued(authority, &signer(), life);
    sign(&key, &chain, audience, at, life).unwrap()
}

/// Whether the waypoint of this authority believes it now.
fn judged(authority: &Authority, token: &str) -> Result<(), InvalidToken> {
    verify(token.as_bytes(), &own(authority, Revocation::NotConfigured), &waypoint(), now())
}

#[test]
fn a_token_of_the_mesh_is_believed_by_whom_it_is_for() {
    let root = authority();
    for audience in ["shop/gate", "shop"] {
        assert_eq!(judged(&root, &token(&root, &audience.parse().unwrap(), now(), MINUTE)), Ok(()));
    }
    for audience in ["shop/other", "bank/gate", "bank", "shop-2"] {
        let token = token(&root, &audience.parse().unwrap(), now(), MINUTE);
        assert_eq!(judged(&root, &token), Err(InvalidToken::Audience), "{audience}");
    }
    let below = root.intermediate("below", validity(YEAR), Serial::new(2)).unwrap();
    assert_eq!(judged(&root, &token(&below, &for_gate(), now(), MINUTE)), Ok(()));
}

#[test]
fn a_token_holds_for_its_time_alone() {
    let root = authority();
    let own = own(&root, Revocation::NotConfigured);
    let token_at = |at, life| token(&root, &for_gate(), at, life);
    let at = |token: &str, now| verify(token.as_bytes(), &own, &waypoint(), now);
    let usual = token_at(now(), 10 * MINUTE);
    assert_eq!(at(&usual, now() + 9 * MINUTE), Ok(()));
    assert_eq!(at(&usual, now() + 10 * MINUTE), Err(InvalidToken::Expired), "with its certificate");
    assert_eq!(at(&usual, now() + 10 * YEAR), Err(InvalidToken::Expired));
    assert_eq!(at(&token_at(now(), 61 * MINUTE), now()), Err(InvalidToken::Life));
    assert_eq!(at(&token_at(now() + 2 * MINUTE, MINUTE), now()), Err(InvalidToken::NotYet));
    // Its certificate ends before it: what it says itself is not enough.
    let (key, chain) = issued(&root, &signer(), MINUTE);
    let long = sign(&key, &chain, &for_gate(), now(), 30 * MINUTE).unwrap();
    assert_eq!(at(&long, now() + 2 * MINUTE), Err(InvalidToken::Chain(Rejected::Expired)));
}

#[test]
fn nobody_else_can_sign_one() {
    let root = authority();
    let stranger = authority();
    let of_stranger = token(&stranger, &for_gate(), now(), MINUTE);
    assert!(matches!(judged(&root, &of_stranger), Err(InvalidToken::Chain(_))));
    for other in [waypoint(), Identity::new("cluster.local", "istio-system", "ztunnel")] {
        let (key, chain) = issued(&root, &other, MINUTE);
        let token = sign(&key, &chain, &for_gate(), now(), MINUTE).unwrap();
        assert_eq!(judged(&root, &token), Err(InvalidToken::Signer), "{other}");
    }
    // The certificate is for everybody to see; its key is not.
    let (_, chain) = issued(&root, &signer(), MINUTE);
    let token = sign(&PrivateKey::generate().unwrap(), &chain, &for_gate(), now(), MINUTE).unwrap();
    assert_eq!(judged(&root, &token), Err(InvalidToken::Signature));
}

#[test]
fn a_signer_that_was_revoked_is_not_believed() {
    let root = authority();
    let token = token(&root, &for_gate(), now(), MINUTE);
    let edition = Edition { number: 1, this_update: now() - MINUTE, next_update: now() + YEAR };
    let lists = root.revocation_list(&[Serial::new(7)], edition).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lists).unwrap();
    let own = own(&root, Revocation::load(file.path()).unwrap());
    let judged = verify(token.as_bytes(), &own, &waypoint(), now());
    assert_eq!(judged, Err(InvalidToken::Chain(Rejected::Revoked)));
}

/// The token with another header or other claims, and the old signature.
fn with(token: &str, place: usize, change: impl FnOnce(&mut Map<String, Value>)) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let mut part = decoded(&parts[place]).unwrap();
    change(&mut part);
    parts[place] = URL_SAFE_NO_PAD.encode(Value::from(part).to_string());
    parts.join(".")
}

#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    let root = authority();
    let good = token(&root, &for_gate(), now(), MINUTE);
    let header =
        |name: &str, value: Value| with(&good, 0, |header| drop(header.insert(name.to_owned(), value)));
    for (name, value) in [
        ("alg", "none".into()),
        ("alg", "HS256".into()),
        ("alg", "es256".into()),
        ("typ", "JWT".into()),
        ("crit", json!(["x"])),
        ("x5c", json!("one")),
        ("x5c", json!([17])),
        ("x5c", json!(vec!["AA=="; CERTIFICATES + 1])),
    ] {
        let changed = header(name, value.clone());
        assert_eq!(judged(&root, &changed), Err(InvalidToken::Form), "{name}: {value}");
    }
    for chain in [json!([]), json!(["AA=="])] {
        assert_eq!(judged(&root, &header("x5c", chain)), Err(InvalidToken::Signer));
    }
    let claims =
        |name: &str, value: Value| with(&good, 1, |claims| drop(claims.insert(name.to_owned(), value)));
    let longer = claims("exp", json!(now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 61));
    for changed in [claims("aud", "shop".into()), claims("more", true.into()), longer] {
        assert_eq!(judged(&root, &changed), Err(InvalidToken::Signature));
    }
    for (name, value) in
        [("exp", json!(-1)), ("iat", json!("now")), ("aud", json!(["shop"])), ("aud", json!("a/b/c"))]
    {
        assert_eq!(judged(&root, &claims(name, value)), Err(InvalidToken::Form), "{name}");
    }
}

#[test]
fn what_is_no_token_is_refused_whatever_it_is() {
    let root = authority();
    let own = own(&root, Revocation::NotConfigured);
    let good = token(&root, &for_gate(), now(), MINUTE);
    assert!(good.len() < LONGEST);
    for cut in 0..good.len() {
        let cut = &good.as_bytes()[..cut];
        assert!(verify(cut, &own, &waypoint(), now()).is_err());
    }
    let long = format!("{good}{}", "A".repeat(LONGEST));
    for bad in [&b""[..], b".", b"..", b"a.b.c", &[0xff; 9], long.as_bytes()] {
        assert_eq!(verify(bad, &own, &waypoint(), now()), Err(InvalidToken::Form));
    }
}

#[test]
fn waypoints_are_named_in_one_way() {
    for text in ["shop", "shop/gate"] {
        assert_eq!(text.parse::<Audience>().unwrap().to_string(), text);
    }
    for text in ["", "/", "shop/", "/gate", "a/b/c"] {
        assert!(text.parse::<Audience>().is_err(), "{text}");
    }
    assert!(is_reserved(&signer()) && !is_reserved(&waypoint()));
}
