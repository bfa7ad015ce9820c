//! Tokens, of whoever likes to send some: none is believed that the issuer has not signed.
#![no_main]

use std::sync::LazyLock;

use ambit_waypoint::caller::jwt::KeySet;
use libfuzzer_sys::fuzz_target;

/// Of one key of each kind, whose private halves nobody has kept.
static KEYS: LazyLock<KeySet> =
    LazyLock::new(|| KeySet::parse(include_str!("../keys.json")).expect("a set of keys"));

fuzz_target!(|token: &str| {
    assert!(KEYS.verify(token).is_err(), "{token} is believed");
});
