//! What applies to a service at its waypoint: understood whole, or refused.
#![no_main]

use ambit_wire::codec::{Interner, decode_service_config, encode_service_config};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut names = Interner::default();
    if let Ok(config) = decode_service_config(Bytes::copy_from_slice(body), &mut names) {
        let again = decode_service_config(encode_service_config(&config), &mut names);
        let again = again.expect("what was encoded here");
        assert_eq!((again.key(), again.parts()), (config.key(), config.parts()));
        assert_eq!(again.broken(), config.broken());
    }
});
