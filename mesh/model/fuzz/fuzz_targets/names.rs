//! Keys of services and policies: reading is the inverse of printing.
#![no_main]

use ambit_model::name::{PolicyKey, ServiceKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(key) = ServiceKey::parse(text) {
        assert_eq!(key.to_string(), text);
        assert_eq!(ServiceKey::parse(&key.to_string()), Some(key));
    }
    if let Some(key) = PolicyKey::parse(text) {
        assert_eq!(key.to_string(), text);
        assert_eq!(PolicyKey::parse(&key.to_string()), Some(key));
    }
});
