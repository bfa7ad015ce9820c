//! Workloads and services from a control plane: what is taken survives being sent on.
#![no_main]

use ambit_model::{
    name::Node,
    snapshot::{Snapshot, Update},
};
use ambit_wire::codec::{Interner, decode_address, encode_service, encode_workload};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut names = Interner::default();
    let Ok(update) = decode_address(Bytes::copy_from_slice(body), &mut names) else { return };
    let again = match &update {
        Update::Workload(workload) => encode_workload(workload),
        Update::Service(service) => encode_service(service),
        Update::Policy(_) | Update::Config(_) => panic!("no address: {update:?}"),
    };
    let decoded = decode_address(again, &mut names).expect("what was encoded here");
    match (&update, &decoded) {
        (Update::Workload(one), Update::Workload(other)) => assert_eq!(one, other),
        (Update::Service(one), Update::Service(other)) => assert_eq!(one, other),
        _ => panic!("{update:?} became {decoded:?}"),
    }
    // Whatever it says, a snapshot can hold it, and hold it twice.
    let snapshot = Snapshot::empty(Some(Node::from("node"))).apply(&[], [update]);
    let _ = snapshot.apply(&[], [decoded]);
});
