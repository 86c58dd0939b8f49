//! What a replica that was removed from a node leaves behind there, for the day on which one of the same group is made there
//! again; and what a replica that is made where others may have been before owes.
//!
//! Its vote and its last entry. Raft counts on both: a voter that has forgotten its vote can give it twice, and one that has
//! forgotten entries that it acknowledged can elect a leader without them (Ongaro's dissertation, 2014, 3.8 and 4). A new replica
//! replays the group's history from the start, and comes by memberships of old in which it votes; it may be the only one who
//! does. So it begins with the vote of before, and neither votes nor campaigns until its log has come as far again as it was:
//! from then on it is what any replica is that was away for a while.
//!
//! Where that is not known (the one before was lost, or its hard state was damaged), or nothing is known of one before, a
//! replica that does not found its group owes the first committed entry that it hears of: neither votes nor campaigns until it
//! has that. The leader that adds it to the group has committed the membership without it before (a change of members begins
//! when the one before is committed), so that no membership of old is in force in it any more. That this was heard is durable
//! before anything of that leader is taken.
//!
//! `<data>/shards/<uid>.left` is a slot of a hard state, twice, in which `committed` is the last entry, or the entry that was
//! heard of; `sequence` is 1 as long as none was, else 0. (What wrote it before there was this distinction wrote 0, and does not
//! look at it; and what wrote it only once reads the first.) Damage to one of the two changes nothing, and is mended when the
//! group is opened: a replica that has long had what it owed would take no part in elections, and where it is the only voter,
//! or one of two, nobody would ever lead.

use std::{
    cell::Cell,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::{
    env::{Disk, reserve},
    format::state_files::{HardState, HardStateSlot, Vote},
    ids::{LogId, NodeId, ShardUid},
    limits::BLOCK_BYTES,
    log::{
        LogError, LogOptions, LogPoint, io_error,
        repair::{self, RepairError},
        unreadable,
    },
};

/// What it was when it was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The highest that it gave.
    pub vote: Option<Vote>,
    /// The last entry that it had, or owed.
    pub last: Option<LogId>,
    /// What it had is not all known: who comes after it owes the first committed entry that it hears of.
    pub unheard: bool,
}

/// Of a replica whose files do not say how it voted.
pub const UNKNOWN: Left = Left { vote: None, last: None, unheard: true };

/// What a replica must have before it takes part in elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// It has it.
    Nothing,
    /// This entry, durably.
    Until(LogId),
    /// The first committed entry that it hears of, and this one, if there is one.
    Unheard(Option<LogId>),
}

impl Left {
    /// What the same replica leaves of which that was known before.
    pub fn and(self, before: Left) -> Left {
        let rank = |vote: Option<Vote>| vote.map(|vote| (vote.term, vote.committed));
        let vote = if rank(before.vote) > rank(self.vote) { before.vote } else { self.vote };
        Left { vote, last: self.last.max(before.last), unheard: self.unheard || before.unheard }
    }

    /// What a replica with that behind it owes.
    fn owed(self) -> Owed {
        match self {
            Left { unheard: true, last, .. } => Owed::Unheard(last),
            Left { last: Some(last), .. } => Owed::Until(last),
            Left { last: None, .. } => Owed::Nothing,
        }
    }
}

/// What one replica owes, and where that is kept.
pub(super) struct Owing<D: Disk> {
    disk: D,
    options: LogOptions,
    owed: Cell<Owed>,
}

impl<D: Disk> Owing<D> {
    /// Before a group is opened: gives a new replica the vote of the one before it, and notes what it owes. `founds`: it may be
    /// the one that begins the group.
    ///
    /// # Errors
    /// `Io`.
    pub async fn take_up(disk: D, options: LogOptions, node: NodeId, founds: bool) -> Result<Owing<D>, LogError> {
        let owed = take_up(&disk, &options, node, founds).await?;
        Ok(Owing { disk, options, owed: Cell::new(owed) })
    }

    /// Whether something is owed by a log that is durable up to `flushed`.
    pub fn owes(&self, flushed: Option<LogId>) -> bool {
        if let Owed::Until(last) = self.owed.get()
            && flushed >= Some(last)
        {
            self.owed.set(Owed::Nothing);
        }
        self.owed.get() != Owed::Nothing
    }

    /// Whether it is to note what it hears of.
    pub fn is_unheard(&self) -> bool {
        matches!(self.owed.get(), Owed::Unheard(_))
    }

    /// A leader has said that this entry is committed. Durable when it returns, if it matters.
    ///
    /// # Errors
    /// `Io`, `Full`: nothing of that leader may be taken.
    pub async fn hear(&self, committed: LogId) -> Result<(), LogError> {
        let Owed::Unheard(last) = self.owed.get() else { return Ok(()) };
        let before = read(&self.disk, &self.options).await?.map(|kept| kept.left).unwrap_or_default();
        let last = Some(committed).max(last);
        write(&self.disk, &self.options, Left { last, unheard: false, ..before }).await?;
        // Another leader's stream may have been faster: what it said will do.
        if let (Owed::Unheard(_), Some(last)) = (self.owed.get(), last) {
            self.owed.set(Owed::Until(last));
        }
        Ok(())
    }

    /// What it leaves with this vote and this end.
    pub fn left(&self, vote: Option<Vote>, last: Option<LogId>) -> Left {
        match self.owed.get() {
            Owed::Nothing => Left { vote, last, unheard: false },
            Owed::Until(owed) => Left { vote, last: last.max(Some(owed)), unheard: false },
            Owed::Unheard(owed) => Left { vote, last: last.max(owed), unheard: true },
        }
    }
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
/// `Hopeless`: its files do not say it, and never will. `Disk`: they cannot be read now; with `Corrupt` perhaps never.
pub async fn left_in<D: Disk>(disk: &D, options: &LogOptions) -> Result<Left, RepairError> {
    let survey = repair::survey(disk, options, None).await?;
    Ok(Left { vote: survey.vote(), last: survey.last(), unheard: false })
}

/// Writes it down, durably, before the replica is removed. What an earlier one left, or what this one owes, stays where that is
/// more.
///
/// # Errors
/// `Io`, `Full`.
pub async fn leave<D: Disk>(disk: &D, options: &LogOptions, left: Left) -> Result<(), LogError> {
    let before = read(disk, options).await?.map(|kept| kept.left).unwrap_or_default();
    let (path, content) = file(options, left.and(before));
    // What is removed then frees more.
    reserve::write_file(disk, &path, content).await.map_err(|error| io_error(&path, "written", &error))
}

async fn take_up<D: Disk>(disk: &D, options: &LogOptions, node: NodeId, founds: bool) -> Result<Owed, LogError> {
    let kept = read(disk, options).await?;
    let before = kept.map(|kept| kept.left);
    if !is_new(disk, options).await? {
        if let Some(Kept { left, is_to_be_mended: true }) = kept
            && let Err(error) = write(disk, options, left).await
        {
            // As much is known as before.
            tracing::warn!(%error, "the damaged copy of what a replica owes stays");
        }
        return Ok(before.map_or(Owed::Nothing, Left::owed));
    }
    if before.is_none() && founds {
        return Ok(Owed::Nothing);
    }
    let mut left = before.unwrap_or(UNKNOWN);
    // One that had no entry may have been on its way to some, as this one is.
    left.unheard |= left.last.is_none();
    if before != Some(left) {
        let dir = options.dir.parent().unwrap_or(&options.dir);
        disk.create_dir_all(dir).await.map_err(|error| io_error(dir, "made", &error))?;
        write(disk, options, left).await?;
    }
    if left.vote.is_some() {
        disk.create_dir_all(&options.dir).await.map_err(|error| io_error(&options.dir, "made", &error))?;
        // It leads nothing any more.
        let vote = left.vote.map(|vote| Vote { committed: vote.committed && vote.node != node, ..vote });
        let state = HardState { vote, committed: None };
        let path = options.dir.join("hard_state");
        let both = slot(options, state, 0).encode_both();
        disk.write_file(&path, both).await.map_err(|error| io_error(&path, "written", &error))?;
    }
    Ok(left.owed())
}

/// A replica without a hard state and without segments, and so without anything. (With segments it has lost its vote, and does
/// not open.)
async fn is_new<D: Disk>(disk: &D, options: &LogOptions) -> Result<bool, LogError> {
    let is_kept = |name: &Path| name == "hard_state" || name.extension().is_some_and(|end| end == "store");
    match disk.list(&options.dir).await {
        Ok(names) => Ok(!names.iter().any(|entry| is_kept(&entry.name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(io_error(&options.dir, "listed", &error)),
    }
}

/// What a file says.
#[derive(Clone, Copy)]
struct Kept {
    left: Left,
    /// One of the two copies is damaged or missing, and the other one says it.
    is_to_be_mended: bool,
}

/// What an earlier replica left. What one in another data directory left is nothing. A file that does not say it any more is
/// that of a replica of which nothing is known.
async fn read<D: Disk>(disk: &D, options: &LogOptions) -> Result<Option<Kept>, LogError> {
    let path = left_path(&options.dir);
    let content = match unreadable::read_file(disk, &path).await {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, "read", &error)),
    };
    let slots: Vec<_> = content.chunks(BLOCK_BYTES).map(HardStateSlot::parse).collect();
    let of_shard: Vec<_> = slots.iter().flatten().filter(|slot| slot.shard == options.shard).collect();
    let Some(slot) = of_shard.first() else {
        let what = match slots.first() {
            Some(Ok(slot)) => format!("it is of shard {}", slot.shard),
            Some(Err(error)) => error.to_string(),
            None => "it is empty".to_owned(),
        };
        let shard_uid = options.shard.0;
        tracing::warn!(path = %path.display(), shard_uid, what, "how the replica that was here before voted is lost");
        return Ok(Some(Kept { left: UNKNOWN, is_to_be_mended: false }));
    };
    let is_ours = options.owner == 0 || slot.owner == options.owner;
    let HardState { vote, committed: last } = slot.state;
    let left = Left { vote, last, unheard: slot.sequence == 1 };
    Ok(is_ours.then_some(Kept { left, is_to_be_mended: of_shard.len() != 2 }))
}

async fn write<D: Disk>(disk: &D, options: &LogOptions, left: Left) -> Result<(), LogError> {
    let (path, content) = file(options, left);
    disk.write_file(&path, content).await.map_err(|error| io_error(&path, "written", &error))
}

/// The file and its content.
fn file(options: &LogOptions, left: Left) -> (PathBuf, Bytes) {
    let state = HardState { vote: left.vote, committed: left.last };
    let slot = slot(options, state, u64::from(left.unheard)).encode();
    (left_path(&options.dir), [slot.clone(), slot].concat().into())
}

fn slot(options: &LogOptions, state: HardState, sequence: u64) -> HardStateSlot {
    let (shard, owner) = (options.shard, options.owner);
    HardStateSlot { shard, sequence, state, start: LogPoint::default(), owner, flushed: None }
}
