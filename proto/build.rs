//! Compiles `proto/*.proto` with a compiler written in Rust, so that no `protoc` is needed.

use std::path::PathBuf;

const UPSTREAM: [&str; 9] = [
    "workload.proto",
    "authorization.proto",
    "zds.proto",
    "citadel.proto",
    "discovery.proto",
    "rls.proto",
    "envoy_core.proto",
    "envoy_type.proto",
    "rpc_status.proto",
];

/// Asking an authorizer, in the words of `envoy_*.proto` and `rpc_status.proto`.
const ASKING: [&str; 1] = ["ext_authz.proto"];

/// Our own, which speaks of policies in the words of `authorization.proto`.
const OWN: [&str; 1] = ["waypoint.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("proto");
    for name in UPSTREAM.iter().chain(&ASKING).chain(&OWN) {
        println!("cargo:rerun-if-changed={}", root.join(name).display());
    }
    // First, since nothing of the packages that it mentions is made here; next, they are.
    let descriptors = protox::compile(OWN.map(|name| root.join(name)), [&root])?;
    tonic_prost_build::configure()
        .extern_path(".istio.security", "crate::security")
        .extern_path(".istio.workload", "crate::workload")
        .compile_fds(descriptors)?;
    let descriptors = protox::compile(ASKING.map(|name| root.join(name)), [&root])?;
    tonic_prost_build::configure()
        .extern_path(".envoy.config.core.v3", "crate::envoy_core")
        .extern_path(".envoy.type.v3", "crate::envoy_type")
        .extern_path(".google.rpc", "crate::rpc_status")
        .compile_fds(descriptors)?;
    let descriptors = protox::compile(UPSTREAM.map(|name| root.join(name)), [&root])?;
    // Resources are received by the hundred thousand and most of their bytes fields are addresses:
    // `Bytes` shares the message's buffer where `Vec` would allocate one each.
    // Sorted maps make equal resources equal bytes: versions are hashes of them.
    tonic_prost_build::configure()
        .btree_map(".istio.workload")
        .bytes(".istio.workload")
        .bytes(".istio.security")
        .bytes(".google.protobuf.Any")
        .compile_fds(descriptors)?;
    Ok(())
}
