//! One shard's log on disk: append, read, truncate, roll, retain, recover. TO BE WRITTEN

use std::{path::PathBuf, rc::Rc};

use bytes::Bytes;

use crate::{
    env::Env,
    format::entry::{NewEntry, StoredEntry},
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term},
};

/// Where and how a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Directory of this shard; made if missing.
    pub dir: PathBuf,
    /// Whose log it is; entries of another never parse.
    pub shard: ShardUid,
    /// Largest segment file; a multiple of `BLOCK_BYTES`, from `SEGMENT_BYTES_MIN` to `SEGMENT_BYTES_LIMIT`.
    pub segment_bytes_max: u64,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The log was closed cleanly: nothing was scanned but the last segment's end.
    pub clean: bool,
    /// Entries read back by the scan.
    pub entries_scanned: u64,
    /// Bytes of a torn tail that were cut: writes that were never acknowledged.
    pub torn_bytes: u64,
    /// Index files built anew.
    pub indexes_rebuilt: u32,
}

/// Raft's vote as it is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Term voted in.
    pub term: Term,
    /// Node voted for.
    pub node: NodeId,
    /// Whether a quorum granted it (openraft's "committed" vote: that node is the leader).
    pub committed: bool,
}

/// Raft's state beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest vote.
    pub vote: Option<Vote>,
    /// A committed log id; may lag, never runs ahead of what is durable here.
    pub committed: Option<LogId>,
}

/// A segment, for retention and for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// First entry.
    pub first: LogId,
    /// Last entry.
    pub last: LogId,
    /// Next offset to be given at its start.
    pub base_offset: Offset,
    /// Next offset to be given at its end.
    pub end_offset: Offset,
    /// Size of its store file.
    pub bytes: u64,
    /// Leader's clock at its last entry, µs.
    pub last_timestamp_us: i64,
    /// No more entries will be added to it.
    pub sealed: bool,
}

/// Why the log refuses. After `Stopped` or `Corrupt` this replica must not be trusted any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Below the first entry kept or above the last one.
    #[error("entry {index} is not in the log (it holds {first} to {end}, exclusive)")]
    NotFound {
        /// Asked for.
        index: Index,
        /// First kept.
        first: Index,
        /// After the last.
        end: Index,
    },
    /// The disk is full; nothing was written, the log goes on when space returns.
    #[error("no space left on the device of {dir}: free some, or lower the retention of topics")]
    Full {
        /// The log's directory.
        dir: PathBuf,
    },
    /// Damage in what was durable. Never cut, never served.
    #[error("{file} is damaged at byte {position}: {what}")]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// Where in it.
        position: u64,
        /// What was found.
        what: String,
    },
    /// A write or sync failed before; this replica has stopped serving its shard (fail-stop).
    #[error(
        "{file} could not be {action}: {cause}; this replica has stopped, restart the node when the device is well"
    )]
    Stopped {
        /// Which file.
        file: PathBuf,
        /// "written", "synced", ...
        action: &'static str,
        /// The operating system's words.
        cause: String,
    },
    /// The directory belongs to something else or is of another version.
    #[error("{file} is not usable: {what}")]
    Foreign {
        /// Which file.
        file: PathBuf,
        /// What was found, and what to do.
        what: String,
    },
    /// Could not be opened or read now.
    #[error("{file} could not be {action}: {cause}")]
    Io {
        /// Which file.
        file: PathBuf,
        /// "opened", "read", ...
        action: &'static str,
        /// The operating system's words.
        cause: String,
    },
}

/// Called once, when all entries of an append and everything before them is durable, or with the error that stopped the log.
pub type OnDurable = Box<dyn FnOnce(Result<(), LogError>)>;

/// A shard's log. Clones are handles to the same one; all of them stay on one reactor.
pub struct Log<E: Env> {
    inner: Rc<std::marker::PhantomData<E>>,
}

impl<E: Env> Clone for Log<E> {
    fn clone(&self) -> Self {
        Log { inner: self.inner.clone() }
    }
}

impl<E: Env> Log<E> {
    /// Opens the log in `options.dir`, making a new one if there is none, and recovers it: sync first, then
    /// scan what was not closed cleanly. `tail` is the reactor's budget of recent entries in memory.
    ///
    /// # Errors
    /// `Corrupt`, `Foreign`, `Io`, `Full`.
    pub async fn open(disk: E::Disk, tail: TailBudget, options: LogOptions) -> Result<(Log<E>, Recovered), LogError> {
        let _ = (disk, tail, options);
        todo!()
    }

    /// Adds entries at the end. They can be read at once; `done` is called when they are durable. Appends made while a write is in flight
    /// go together in the next one.
    ///
    /// # Errors
    /// `Full` if there is no room (nothing was added, `done` is not called), `Stopped`.
    ///
    /// # Panics
    /// When the first entry's index is not the one after the last.
    pub fn append(&self, entries: Vec<NewEntry>, done: OnDurable) -> Result<(), LogError> {
        let _ = (entries, done);
        todo!()
    }

    /// Whether entries of `bytes` in all (headers and padding included) can be appended beyond those appended already.
    /// After `Ok`, appends up to that much do not fail with `Full`, and a reserve for Raft's own small entries (blank,
    /// membership) is left beside: Raft cannot survive a failed append, so it is asked here, before Raft gets a proposal.
    ///
    /// # Errors
    /// `Full` until space returns (each call looks again, without blocking), `Stopped`.
    pub fn has_room(&self, bytes: usize) -> Result<(), LogError> {
        let _ = bytes;
        todo!()
    }

    /// Entries `from .. end`, as many as fit into `bytes_max` of payload, but at least one. Checksums are verified.
    /// Recent ones come from memory (clones of refcounts); others from the disk, without blocking the reactor.
    pub async fn read(&self, from: Index, end: Index, bytes_max: usize) -> Result<Vec<StoredEntry>, LogError> {
        let _ = (from, end, bytes_max);
        todo!()
    }

    /// The log id at `index` (in memory for recent ones, else read from the entry's header).
    pub async fn log_id(&self, index: Index) -> Result<LogId, LogError> {
        let _ = index;
        todo!()
    }

    /// Index of the batch that holds `offset`; `None` below the first kept or at or above the log end.
    pub async fn find_offset(&self, offset: Offset) -> Result<Option<Index>, LogError> {
        let _ = offset;
        todo!()
    }

    /// Index of the first batch that holds a record with a timestamp not before `timestamp_us`.
    pub async fn find_timestamp(&self, timestamp_us: i64) -> Result<Option<Index>, LogError> {
        let _ = timestamp_us;
        todo!()
    }

    /// First index that is kept, or would be given next if there is none.
    pub fn first_index(&self) -> Index {
        todo!()
    }

    /// Last entry, durable or not; the purged one if there are no entries.
    pub fn last(&self) -> Option<LogId> {
        todo!()
    }

    /// Last purged entry.
    pub fn purged(&self) -> Option<LogId> {
        todo!()
    }

    /// Last durable entry.
    pub fn flushed(&self) -> Option<LogId> {
        todo!()
    }

    /// Next offset to be given, counting entries that are not durable yet.
    pub fn log_end(&self) -> Offset {
        todo!()
    }

    /// Chain hash at the last entry.
    pub fn chain(&self) -> u64 {
        todo!()
    }

    /// Bytes appended and not yet durable.
    pub fn unflushed_bytes(&self) -> usize {
        todo!()
    }

    /// Whether `index` is the first entry of its segment: then the state before it deserves a checkpoint.
    pub fn is_segment_first(&self, index: Index) -> bool {
        let _ = index;
        todo!()
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        todo!()
    }

    /// Removes all entries after `last` (all of them for `None`), durably, after the writes in flight.
    pub async fn truncate_after(&self, last: Option<Index>) -> Result<(), LogError> {
        let _ = last;
        todo!()
    }

    /// Removes entries up to and including `id` logically, durably, and deletes segments that have none left. When `id` is beyond the
    /// last entry the log goes on after it, at offset `log_end` (a replica that begins from a snapshot).
    pub async fn purge(&self, id: LogId, log_end: Offset, chain: u64) -> Result<(), LogError> {
        let _ = (id, log_end, chain);
        todo!()
    }

    /// Writes the hard state; durable when it returns, and ordered after the appends before it.
    pub async fn save_hard_state(&self, state: HardState) -> Result<(), LogError> {
        let _ = state;
        todo!()
    }

    /// The hard state as last saved.
    pub fn hard_state(&self) -> HardState {
        todo!()
    }

    /// Keeps a checkpoint of the group's small state at `index`, durably.
    pub async fn save_checkpoint(&self, index: Index, state: Bytes) -> Result<(), LogError> {
        let _ = (index, state);
        todo!()
    }

    /// The newest checkpoint at or below `index`, with its index.
    pub async fn load_checkpoint(&self, index: Index) -> Result<Option<(Index, Bytes)>, LogError> {
        let _ = index;
        todo!()
    }

    /// Indexes of the checkpoints kept, ascending.
    pub fn checkpoints(&self) -> Vec<Index> {
        todo!()
    }

    /// The error that stopped this log, if one did.
    pub fn fault(&self) -> Option<LogError> {
        todo!()
    }

    /// Clean shutdown: waits for writes in flight, cuts the files to their true sizes, writes indexes, syncs. The log is unusable afterwards.
    pub async fn close(&self) -> Result<(), LogError> {
        todo!()
    }
}

/// A reactor's budget of recent entries in memory (`TAIL_BYTES_MAX`), shared by its logs; the oldest are forgotten first.
#[derive(Clone, Debug, Default)]
pub struct TailBudget {}

impl TailBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> TailBudget {
        let _ = bytes;
        TailBudget {}
    }
}
