//! The headers of a CONNECT, each as one line of the input.
#![no_main]

use ambit_model::address::Target;
use ambit_wire::hbone::headers::{
    BAGGAGE, Baggage, TRACEPARENT, Traceparent, X_FORWARDED_NETWORK, forwarded_host, forwarded_network,
    parse_authority,
};
use http::{HeaderMap, HeaderValue, header::FORWARDED};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|lines: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        if let Ok(text) = std::str::from_utf8(line)
            && let Ok(target) = parse_authority(text)
        {
            let port = match &target {
                Target::Ip(address) => address.port(),
                Target::Host(_, port) => *port,
            };
            assert_ne!(port, 0);
            assert_eq!(parse_authority(&target.to_string()), Ok(target));
        }
        if let Ok(value) = HeaderValue::from_bytes(line) {
            for name in [BAGGAGE, TRACEPARENT, X_FORWARDED_NETWORK, FORWARDED] {
                headers.append(name, value.clone());
            }
        }
    }
    let baggage = Baggage::read(&headers);
    if let Some(header) = baggage.header() {
        let again = HeaderMap::from_iter([(BAGGAGE, header)]);
        assert_eq!(Baggage::read(&again).header(), baggage.header());
    }
    if let Some(trace) = Traceparent::read(&headers)
        && let Some(header) = trace.header()
    {
        assert!(header.to_str().is_ok_and(|text| Traceparent::parse(text).is_some()));
    }
    let _ = forwarded_host(&headers);
    let _ = forwarded_network(&headers);
});
