//! Whole responses of a control plane, through subscription, codec and snapshot, as the tunnel takes them.
#![no_main]

use ambit_wire::{
    codec::{ADDRESS, AUTHORIZATION},
    discovery::Mesh,
    xds::{Mode, replay},
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

/// What parts one response from the next: rare in protobuf, easily found by a fuzzer.
const BETWEEN: &[u8] = b"\xff\xfe";

fuzz_target!(|stream: &[u8]| {
    let mut responses = Vec::new();
    let mut rest = stream;
    while let Some(at) = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN) {
        responses.push(Bytes::copy_from_slice(&rest[..at]));
        rest = &rest[at + BETWEEN.len()..];
    }
    responses.push(Bytes::copy_from_slice(rest));
    for mode in [Mode::Wildcard, Mode::OnDemand] {
        let (mesh, mut discovery) = Mesh::new(None);
        let types = [(ADDRESS, mode), (AUTHORIZATION, Mode::Wildcard)];
        let answers = replay(types, responses.iter().cloned(), &mut discovery);
        assert!(answers.len() <= responses.len());
        drop(mesh.current());
    }
});
