//! Packets between node agent and tunnel, in both directions.
#![no_main]

use ambit_wire::zds::frame::{Ack, Hello, LIMIT, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    if let Ok(request) = Request::decode(packet)
        && let Ok(again) = request.encode()
    {
        assert!(again.len() <= LIMIT);
        assert_eq!(Request::decode(&again).expect("what was encoded here"), request);
    }
    let _ = Hello::decode(packet);
    if let Ok(ack) = Ack::decode(packet) {
        let again = ack.encode().expect("an answer always fits");
        assert!(again.len() <= LIMIT);
        let Ack(outcome) = Ack::decode(&again).expect("what was encoded here");
        assert_eq!(outcome.is_ok(), ack.0.is_ok());
    }
});
