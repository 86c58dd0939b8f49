//! Pure bytes: how entries, records, file headers and gRPC messages look. No input or output here.

pub mod entry;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod grpc;
pub mod peer;
pub mod records;
pub mod segment;
pub mod state_files;
pub mod wire;
