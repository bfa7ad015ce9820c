//! Compiles `proto/*.proto` with a compiler written in Rust, so that no `protoc` is needed.

use std::path::PathBuf;

const FILES: [&str; 6] = [
    "workload.proto",
    "authorization.proto",
    "zds.proto",
    "citadel.proto",
    "discovery.proto",
    "waypoint.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("proto");
    let files: Vec<PathBuf> = FILES.iter().map(|name| root.join(name)).collect();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&root])?;
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
