//! A mesh out of a file (`LOCAL_XDS`): whatever is read, a snapshot can hold.
#![no_main]

use ambit_model::snapshot::Snapshot;
use ambit_ztunnel::local;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(updates) = local::parse(text) {
        let _ = Snapshot::empty(None).apply(&[], updates);
    }
});
