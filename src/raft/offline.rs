//! A group's state without a group: what a machine makes of a log that nobody has open.
//!
//! For offline commands. It elects nobody and writes nothing. It cannot know whether the last entries are committed (what is
//! known of that goes to the disk with the next vote, not with each entry), and takes all that are there.

use prost::Message;

use super::Machine;
use crate::{format::entry::EntryKind, ids::Index, log::verify::Content, proto::ringlog::state::v1};

/// Restores `machine` from a log's newest checkpoint and applies the entries after it.
///
/// # Errors
/// In words, when the checkpoint is not one of this machine, or entries are missing between it and the log.
pub fn replay<M: Machine>(machine: &mut M, content: &Content) -> Result<(), String> {
    let mut next = Index(0);
    if let Some((index, bytes)) = &content.checkpoint {
        let bad = |what: String| format!("the checkpoint at entry {index} is not usable: {what}");
        let checkpoint = v1::Checkpoint::decode(bytes.clone()).map_err(|error| bad(error.to_string()))?;
        machine.restore(&checkpoint.machine).map_err(bad)?;
        if checkpoint.last_applied.map(|id| Index(id.index)) != Some(*index) {
            return Err(bad("it is the state at another entry".to_owned()));
        }
        next = index.next();
    }
    if next < content.first {
        return Err(format!("the log begins at entry {}, but no checkpoint of the state there is kept", content.first));
    }
    for entry in &content.entries {
        let id = entry.header.id;
        if id.index != next {
            return Err(format!("entry {next} is missing: the next one is {id}"));
        }
        match entry.header.kind {
            EntryKind::Batch | EntryKind::Command | EntryKind::Void => drop(machine.apply(entry)),
            EntryKind::Blank | EntryKind::Membership => {}
        }
        next = id.index.next();
    }
    if content.is_cut { Err(format!("its log is too long to be read at once from entry {next} on")) } else { Ok(()) }
}
