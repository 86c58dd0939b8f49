//! What a replica that was removed from a node leaves behind there, for the day on which one of the same group is made there
//! again.
//!
//! Its vote and its last entry. Raft counts on both: a voter that has forgotten its vote can give it twice, and one that has
//! forgotten entries that it acknowledged can elect a leader without them (Ongaro's dissertation, 2014, 3.8 and 4). A new replica
//! replays the group's history from the start, and comes by memberships of old in which it votes; it may be the only one who
//! does. So it begins with the vote of before, and neither votes nor campaigns until its log has come as far again as it was:
//! from then on it is what any replica is that was away for a while.
//!
//! `<data>/shards/<uid>.left` is one slot of a hard state, in which `committed` is the last entry.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    env::Disk,
    format::state_files::{HardState, HardStateSlot, Vote},
    ids::{LogId, NodeId, ShardUid},
    log::{LogError, LogOptions, LogPoint, io_error, repair},
};

/// What it was when it was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The highest that it gave.
    pub vote: Option<Vote>,
    /// The last entry that it had.
    pub last: Option<LogId>,
}

/// Where that is kept for the group in `dir`.
pub fn left_path(dir: &Path) -> PathBuf {
    dir.with_extension("left")
}

/// Whose such a file is, by its name.
pub fn left_uid(name: &Path) -> Option<ShardUid> {
    ShardUid::of_name(name.to_str()?.strip_suffix(".left")?)
}

/// What a replica leaves that is not open, from its files. Nobody may have it open for writing.
///
/// # Errors
/// When its files do not say it: in words.
pub async fn left_in<D: Disk>(disk: &D, options: &LogOptions) -> Result<Left, String> {
    let survey = repair::survey(disk, options, None).await.map_err(|error| error.to_string())?;
    Ok(Left { vote: survey.vote(), last: survey.last() })
}

/// Writes it down, durably, before the replica is removed. What an earlier one left stays, where that is more.
///
/// # Errors
/// `Corrupt`, `Io`.
pub async fn leave<D: Disk>(disk: &D, options: &LogOptions, left: Left) -> Result<(), LogError> {
    let before = read(disk, options).await?.unwrap_or_default();
    let rank = |vote: Option<Vote>| vote.map(|vote| (vote.term, vote.committed));
    let vote = if rank(before.vote) > rank(left.vote) { before.vote } else { left.vote };
    let state = HardState { vote, committed: left.last.max(before.last) };
    let path = left_path(&options.dir);
    let written = disk.write_file(&path, slot(options, state).encode()).await;
    written.map_err(|error| io_error(&path, "written", &error))
}

/// Before a group is opened: gives a new replica the vote of the one before it. Returns the entry that it has to have before it
/// votes; `None`: there was none here.
///
/// # Errors
/// `Corrupt` when what was left cannot be read any more; `Io`.
pub(super) async fn take_up<D: Disk>(disk: &D, options: &LogOptions, node: NodeId) -> Result<Option<LogId>, LogError> {
    let Some(left) = read(disk, options).await? else { return Ok(None) };
    let path = options.dir.join("hard_state");
    if is_new(disk, &path).await? {
        disk.create_dir_all(&options.dir).await.map_err(|error| io_error(&options.dir, "made", &error))?;
        // It leads nothing any more.
        let vote = left.vote.map(|vote| Vote { committed: vote.committed && vote.node != node, ..vote });
        let state = HardState { vote, committed: None };
        let both = slot(options, state).encode_both();
        disk.write_file(&path, both).await.map_err(|error| io_error(&path, "written", &error))?;
    }
    Ok(left.last)
}

/// A replica without a hard state, and so without anything.
async fn is_new<D: Disk>(disk: &D, hard_state: &Path) -> Result<bool, LogError> {
    match disk.read_file(hard_state).await {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(io_error(hard_state, "read", &error)),
    }
}

/// What an earlier replica left. What one in another data directory left is nothing.
async fn read<D: Disk>(disk: &D, options: &LogOptions) -> Result<Option<Left>, LogError> {
    let path = left_path(&options.dir);
    let content = match disk.read_file(&path).await {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, "read", &error)),
    };
    match HardStateSlot::parse(&content) {
        Ok(slot) if slot.shard == options.shard => {
            let ours = options.owner == 0 || slot.owner == options.owner;
            Ok(ours.then_some(Left { vote: slot.state.vote, last: slot.state.committed }))
        }
        Ok(slot) => Err(corrupt(path, format!("it is of shard {}, not of shard {}", slot.shard, options.shard))),
        Err(error) => Err(corrupt(path, error.to_string())),
    }
}

fn slot(options: &LogOptions, state: HardState) -> HardStateSlot {
    let (shard, owner) = (options.shard, options.owner);
    HardStateSlot { shard, sequence: 0, state, start: LogPoint::default(), owner }
}

fn corrupt(file: PathBuf, what: String) -> LogError {
    let what = format!("{what}; how the replica that was here before voted is lost: move this one to another node");
    LogError::Corrupt { file, position: 0, what }
}
