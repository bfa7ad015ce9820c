//! Policies from a control plane: one that cannot be understood denies, and none is narrowed.
#![no_main]

use ambit_model::authz::Content;
use ambit_wire::codec::{Interner, decode_authorization, encode_policy};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut names = Interner::default();
    match decode_authorization("ns/policy", Bytes::copy_from_slice(body), &mut names) {
        Ok(policy) => {
            assert!(matches!(policy.content, Content::Rules { .. }), "{policy:?}");
            let again = decode_authorization(&policy.key.to_string(), encode_policy(&policy), &mut names);
            assert_eq!(again.expect("what was encoded here"), policy);
        }
        Err((_, denial)) => {
            let denial = denial.expect("its name can be read, so it is enforced");
            assert!(matches!(denial.content, Content::Undecodable { .. }), "{denial:?}");
        }
    }
});
