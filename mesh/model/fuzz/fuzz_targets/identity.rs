//! SPIFFE identities: what is read is printed as it was, and nothing that differs is taken for it.
#![no_main]

use ambit_model::identity::{Identity, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(identity) = text.parse::<Identity>() else { return };
    assert_eq!(identity.to_string(), text);
    let printed = identity.principal().to_string();
    assert_eq!(format!("spiffe://{printed}"), text);
    assert!(!identity.trust_domain.as_str().is_empty());
    assert_eq!(TrustDomain::from(identity.trust_domain.as_str()), identity.trust_domain);
    // Exactly five segments: none of the parts can hold another's.
    let parts =
        [identity.namespace.as_str(), identity.service_account.as_str(), identity.trust_domain.as_str()];
    assert!(parts.iter().all(|part| !part.is_empty() && !part.contains('/')), "{text:?}");
});
