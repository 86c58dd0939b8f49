//! Assembles a node and runs it. TO BE WRITTEN

use crate::config::Config;

/// Runs a node until SIGTERM or SIGINT, then shuts it down cleanly. Logs go to stderr.
///
/// # Errors
/// In one sentence: what happened, to what, and what to do.
pub fn run(config: Config) -> Result<(), String> {
    let _ = config;
    todo!()
}
