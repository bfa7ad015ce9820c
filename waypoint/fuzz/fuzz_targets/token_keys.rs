//! Sets of keys, of whoever serves some: what is understood can be asked.
#![no_main]

use ambit_waypoint::caller::jwt::KeySet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &str| {
    if let Ok(keys) = KeySet::parse(json) {
        let _ = keys.verify("eyJhbGciOiJSUzI1NiJ9.e30.AAAA");
    }
});
