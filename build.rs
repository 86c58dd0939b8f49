//! Compiles `proto/` to Rust with protox, so that no `protoc` is needed, and keeps the
//! descriptor set for gRPC reflection.

#![allow(clippy::disallowed_methods, reason = "a build script has no shard and no simulator")]

use std::{env, fs, path::PathBuf};

const FILES: &[&str] = &[
    "ringlog/v1/log.proto",
    "ringlog/v1/admin.proto",
    "ringlog/state/v1/state.proto",
    "google/rpc/status.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["proto"])?;
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    prost_build::Config::new()
        .btree_map(["."])
        .bytes(["."])
        .include_file("protos.rs")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}
