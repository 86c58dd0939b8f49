//! `ringlog verify`: every checksum and chain of a data directory, offline.

use std::path::PathBuf;

use super::{Failure, OutputForm};

/// `ringlog verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// A node's data directory, or the directory of one shard
    dir: PathBuf,
    /// Form of the report
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputForm,
}

/// Runs the command.
pub(super) fn verify(args: VerifyArgs) -> Result<(), Failure> {
    let _ = args;
    Err(Failure::Said)
}
