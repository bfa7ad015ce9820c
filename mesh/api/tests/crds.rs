//! What is installed is what is read.

use std::path::Path;

use serde_json::Value;

#[test]
fn the_definitions_that_are_installed_are_those_of_the_code() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../install/crds");
    let mut kept: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    let mut made = Vec::new();
    for definition in ambit_api::crds::all() {
        let text = std::fs::read_to_string(directory.join(&definition.file)).unwrap_or_default();
        // The order of keys follows from which crates are built together: values are compared, not texts.
        let installed: Value = serde_yaml_ng::from_str(&text).unwrap();
        let same = installed == definition.object;
        assert!(same, "install/crds/{} is old; run `cargo run -p ambit-api --example crds`", definition.file);
        made.push(definition.file);
    }
    kept.sort();
    made.sort();
    assert_eq!(kept, made, "a file in install/crds belongs to no kind");
}
