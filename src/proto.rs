//! Generated protobuf types of `proto/`, and their descriptors.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/protos.rs"));

/// Serialized `FileDescriptorSet` of everything in `proto/`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
