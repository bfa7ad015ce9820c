//! Heads of requests: the one reading of a head is read the same once more, and frames nothing by itself.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use ambit_waypoint::hygiene::receive;
use http::{HeaderName, HeaderValue, Request, header};
use libfuzzer_sys::fuzz_target;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A line each: method, target, then `name: value`.
fn head(text: &[u8]) -> Option<http::request::Parts> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let (method, target) = (lines.next()?, lines.next()?);
    let mut request = Request::builder().method(method).uri(target).body(()).ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..)?.trim_ascii();
        let name = HeaderName::from_bytes(name).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request.into_parts().0)
}

fuzz_target!(|text: &[u8]| {
    let Some(mut parts) = head(text) else { return };
    let Ok(received) = receive(&mut parts, CLIENT, None, || 1) else { return };
    let hops = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
    assert!(hops.iter().all(|name| !parts.headers.contains_key(name)), "{parts:?}");
    assert!(parts.uri.authority().is_some(), "{parts:?}");
    let before = parts.uri.clone();
    let again = receive(&mut parts, CLIENT, None, || 2).expect("what was made here");
    assert_eq!(before, parts.uri);
    // What was ambiguous may have gone with the segment that `..` took back, and never comes.
    assert!(received.path_is_ambiguous || !again.path_is_ambiguous, "{:?}", parts.uri);
});
