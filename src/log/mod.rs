//! One shard's log on disk: append, read, truncate, roll, retain, recover.
//!
//! A directory holds `hard_state`, segments (`<base offset>.store` and `.index`), checkpoints
//! (`<index>.checkpoint`), and segments made ahead (`<number>.spare`). A segment that shares its base
//! offset with the one before (which then has no records) is called `<base offset>-<sequence>.store`.
//!
//! ```text
//! append ─ assign (index, offset, chain, segment, position) ─► tail ─► readers
//!             └► queue ─► one write in flight ─► durable ─► done, in order
//! ```
//!
//! Promises:
//! - `log start <= flushed end <= log end`, in indexes and in offsets; none of them but the log end
//!   after `truncate_after` ever goes back. (Asserted wherever one of them changes.)
//! - What `done` was told to be durable survives a crash, or its loss is reported; nothing that was not
//!   appended is ever read. (Damage to what was written last looks like a torn write if the power goes within 100 ms.)
//! - After a failed write or sync nothing is written any more (fail-stop); reads go on.
//! - A full disk is not a failure: appends that were admitted by `has_room` have their place already or wait for it.
//!
//! Not done here: deciding what to truncate or purge (`raft`, `shard`).
//!
//! Files: `writer`, `prepare` (segments made ahead), `seal`, `read`, `tail`, `turns` (of consumers), `change` (truncate, purge),
//! `recovery`, `scan`, `state` (hard state, checkpoints), `unreadable` (lost places), `verify`, `repair`, `watched` (hung operations).

mod change;
mod hard_state;
mod prepare;
mod read;
mod recovery;
pub mod repair;
mod scan;
mod seal;
mod segment;
mod state;
mod tail;
#[cfg(test)]
mod tests;
mod turns;
pub(crate) mod unreadable;
pub mod verify;
mod watched;
mod writer;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    task::Waker,
};

use bytes::Bytes;

pub use crate::format::{
    segment::LogPoint,
    state_files::{HardState, Vote},
};
pub use tail::TailBudget;
pub use watched::{Stalled, Watched};

use crate::{
    budget::{Budget, Charge},
    env::{
        Env,
        channel::{Mutex, Notify},
    },
    format::{
        entry::{EntryHeader, NewEntry, StoredEntry},
        state_files::HardStateSlot,
    },
    ids::{Index, LogId, Offset, ShardUid},
    limits::BLOCK_BYTES,
};
use prepare::Supply;
use segment::{Phase, Segment};
use tail::Tail;
use watched::WatchedFile;

/// Where and how a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Directory of this shard; made if missing.
    pub dir: PathBuf,
    /// Whose log it is; entries of another never parse.
    pub shard: ShardUid,
    /// Largest segment file; a multiple of `BLOCK_BYTES`, from `SEGMENT_BYTES_MIN` to `SEGMENT_BYTES_LIMIT`.
    pub segment_bytes_max: u64,
    /// Whose data directory it is in (`format::state_files::owner_tag`): one that was made elsewhere is `Foreign`. 0: not
    /// checked.
    pub owner: u64,
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
    /// The history here is another one than the leader's: an entry of the leader's does not continue it with the leader's
    /// chain hash. Never written; this replica has stopped.
    #[error(
        "{dir} holds another history than the leader's: entry {id} would get chain {found:x}, the leader has {expected:x}; \
         this replica has stopped; move it to another node, and keep its directory for a report"
    )]
    Diverged {
        /// The log's directory.
        dir: PathBuf,
        /// The leader's entry.
        id: LogId,
        /// Chain hash there at the leader.
        expected: u64,
        /// Chain hash there here.
        found: u64,
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

/// Called once, when all entries of an append and everything before them is durable, or with the error that stopped
/// the log.
pub type OnDurable = Box<dyn FnOnce(Result<(), LogError>)>;

/// A shard's log. Clones are handles to the same one; all of them stay on one reactor.
pub struct Log<E: Env> {
    inner: Rc<Inner<E>>,
}

impl<E: Env> Clone for Log<E> {
    fn clone(&self) -> Self {
        Log { inner: self.inner.clone() }
    }
}

type FileOf<E> = WatchedFile<E>;
type SegmentOf<E> = Rc<Segment<FileOf<E>>>;

/// What the handles share. No borrow of it is held across an await or while a callback runs.
struct Inner<E: Env> {
    disk: Watched<E>,
    options: LogOptions,
    tail: Tail,
    state: RefCell<State<E>>,
    flight: RefCell<Option<writer::Flight<E>>>,
    /// Somebody is in `drive` further up the stack.
    driving: Cell<bool>,
    /// A task is about to call `drive`.
    driven_soon: Cell<bool>,
    /// A task is about to say what is durable.
    marking: Cell<bool>,
    /// Of the writer task; known once it ran.
    waker: RefCell<Option<Waker>>,
    /// Checkpoints are written one after the other.
    saving: Mutex<()>,
    /// Something landed, failed, was prepared or sealed.
    changed: Notify,
    /// Background tasks under way.
    background: Cell<usize>,
    /// Segments with an index in memory or a file open for reading, least recently used first.
    hot: RefCell<VecDeque<SegmentOf<E>>>,
    streams: read::Streams,
}

struct State<E: Env> {
    /// After the last purged entry.
    start: LogPoint,
    /// After the last entry.
    end: LogPoint,
    /// Last durable entry and what follows it.
    flushed: LogPoint,
    segments: VecDeque<SegmentOf<E>>,
    /// Of the next segment.
    sequence_next: u64,
    /// The largest timestamp of an entry so far, as far as it is known.
    timestamp_us: i64,
    queue: VecDeque<writer::Job<E>>,
    /// Bytes appended (headers and padding included) and not durable. When the log has stopped they are still in memory, and
    /// so here, as `Use::Stopped`.
    unflushed: Charge,
    /// As on the disk.
    hard: HardStateSlot,
    hard_file: FileOf<E>,
    checkpoints: BTreeSet<Index>,
    supply: Supply<FileOf<E>>,
    fault: Option<LogError>,
    /// `truncate_after` or a purge of everything is under way: nothing may be appended.
    exclusive: bool,
    closed: bool,
    /// A close is about to come.
    closing: bool,
    /// Base offset of the segment that was begun last, also if it is gone: its file may be there still.
    last_base: Option<Offset>,
}

impl<E: Env> Log<E> {
    /// Opens the log in `options.dir`, making a new one if there is none, and recovers it: sync first, then
    /// scan what was not closed cleanly. `tail` is the reactor's budget of recent entries in memory.
    ///
    /// # Errors
    /// `Corrupt`, `Foreign`, `Io`, `Full`.
    ///
    /// # Panics
    /// When the options are outside of their documented bounds.
    pub async fn open(disk: E::Disk, tail: TailBudget, options: LogOptions) -> Result<(Log<E>, Recovered), LogError> {
        let disk = Watched::new(disk);
        disk.look_while(Log::open_on(disk.clone(), tail, options)).await
    }

    /// As `open`, on a disk that the caller looks at until it returns.
    ///
    /// # Errors
    /// As `open`.
    ///
    /// # Panics
    /// As `open`.
    pub async fn open_on(
        disk: Watched<E>,
        tail: TailBudget,
        options: LogOptions,
    ) -> Result<(Log<E>, Recovered), LogError> {
        let block = BLOCK_BYTES as u64;
        assert!(options.segment_bytes_max.is_multiple_of(block), "segments are whole blocks");
        assert!(options.segment_bytes_max >= 4 * block, "a segment holds more than its header and footer");
        assert!(options.segment_bytes_max <= crate::limits::SEGMENT_BYTES_LIMIT, "positions fit into an index");
        let (inner, recovered) = recovery::open(disk, tail, options).await?;
        writer::start(&inner);
        inner.mark_when_idle();
        Ok((Log { inner }, recovered))
    }

    /// Adds entries at the end. They can be read at once; `done` is called when they are durable. Appends made while a
    /// write is in flight go together in the next one. If the next segment is not made yet (a full disk delays that)
    /// the entries wait for it; that is not an error.
    ///
    /// # Errors
    /// `Stopped`: nothing was added, `done` is not called. `Diverged`: the log has stopped, `done` is not called.
    ///
    /// # Panics
    /// When the first entry's index is not the one after the last.
    pub fn append(&self, entries: Vec<NewEntry>, done: OnDurable) -> Result<(), LogError> {
        self.queue(entries, done)?;
        self.inner.drive();
        Ok(())
    }

    /// As `append`, but what else can run now does so first: for a leader, whose followers are to hear of the entries
    /// before it pays for its own write (30 µs of submitting, which they would wait for, and their way is the longer one).
    ///
    /// # Errors
    /// As `append`.
    ///
    /// # Panics
    /// As `append`.
    pub fn append_behind(&self, entries: Vec<NewEntry>, done: OnDurable) -> Result<(), LogError> {
        self.queue(entries, done)?;
        self.inner.drive_soon();
        Ok(())
    }

    fn queue(&self, entries: Vec<NewEntry>, done: OnDurable) -> Result<(), LogError> {
        self.inner.check_alive()?;
        for entry in entries {
            self.inner.assign(entry).map_err(|error| self.inner.stop_with(error))?;
        }
        self.inner.state.borrow_mut().queue.push_back(writer::Job::Done(done));
        Ok(())
    }

    /// Whether entries of `bytes` in all (headers and padding included) can be appended beyond those appended already.
    /// After `Ok`, appends up to that much do not fail for want of space, and a reserve for Raft's own small entries
    /// (blank, membership) is left beside: Raft cannot survive a failed append, so it is asked here, before Raft gets a
    /// proposal.
    ///
    /// While the next segment is being made the answer is `Ok` on credit: then the entries wait for it. `Full` is
    /// answered once the device has said so, and until it has room for another segment.
    ///
    /// # Errors
    /// `Full` until space returns (each call looks again, without blocking), `Stopped`.
    pub fn has_room(&self, bytes: usize) -> Result<(), LogError> {
        self.inner.check_alive()?;
        self.inner.has_room(bytes as u64)
    }

    /// As `has_room`, for a command: it may have what is left to Raft's own entries, and the disk's reserve (`env::reserve`) until
    /// that is spent, since a command may be what frees space.
    ///
    /// # Errors
    /// As `has_room`.
    pub fn has_room_for_command(&self, bytes: usize) -> Result<(), LogError> {
        self.inner.check_alive()?;
        self.inner.has_room_for_command(bytes as u64)
    }

    /// Entries `from .. end`, as many as fit into `bytes_max` of payload, but at least one. Checksums are verified.
    /// Recent ones come from memory (clones of refcounts); others from the disk, without blocking the reactor.
    ///
    /// # Errors
    /// `NotFound` when `from` is not in the log (an `end` beyond it is cut), `Corrupt`, `Io`.
    pub async fn read(&self, from: Index, end: Index, bytes_max: usize) -> Result<Vec<StoredEntry>, LogError> {
        self.inner.read(from, end, bytes_max).await
    }

    /// The log id at `index` (in memory for recent ones, else read from the entry's header); also of the last purged
    /// entry.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub async fn log_id(&self, index: Index) -> Result<LogId, LogError> {
        self.inner.log_id(index).await
    }

    /// Index of the batch that holds `offset`; `None` below the first kept or at or above the log end.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn find_offset(&self, offset: Offset) -> Result<Option<Index>, LogError> {
        self.inner.find_offset(offset).await
    }

    /// Index of the first batch that holds a record with a timestamp not before `timestamp_us`. After a purge it may be
    /// the first entry kept, although its own timestamps are older, when a purged record's was not.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn find_timestamp(&self, timestamp_us: i64) -> Result<Option<Index>, LogError> {
        self.inner.find_timestamp(timestamp_us).await
    }

    /// First index that is kept, or would be given next if there is none.
    pub fn first_index(&self) -> Index {
        self.inner.state.borrow().start.next
    }

    /// Offset of the first record that is kept, or that would come next if there is none.
    pub fn first_offset(&self) -> Offset {
        self.inner.state.borrow().start.offset
    }

    /// Last entry, durable or not; the purged one if there are no entries.
    pub fn last(&self) -> Option<LogId> {
        self.inner.state.borrow().end.last()
    }

    /// Last purged entry.
    pub fn purged(&self) -> Option<LogId> {
        self.inner.state.borrow().start.last()
    }

    /// Last durable entry.
    pub fn flushed(&self) -> Option<LogId> {
        self.inner.state.borrow().flushed.last()
    }

    /// Next offset to be given, counting entries that are not durable yet.
    pub fn log_end(&self) -> Offset {
        self.inner.state.borrow().end.offset
    }

    /// Where the log stands after its last entry.
    pub fn end(&self) -> LogPoint {
        self.inner.state.borrow().end
    }

    /// No entry of this replica's own will have an earlier timestamp than this, µs: that of the last entry, or what
    /// `raise_timestamp` was told.
    pub fn timestamp_us(&self) -> i64 {
        self.inner.state.borrow().timestamp_us
    }

    /// Entries that were purged, or never were here, had timestamps up to this one.
    pub fn raise_timestamp(&self, timestamp_us: i64) {
        let state = &mut *self.inner.state.borrow_mut();
        state.timestamp_us = state.timestamp_us.max(timestamp_us);
    }

    /// Chain hash at the last entry.
    pub fn chain(&self) -> u64 {
        self.inner.state.borrow().end.chain
    }

    /// Bytes appended (headers and padding included) and not yet durable.
    pub fn unflushed_bytes(&self) -> usize {
        self.inner.state.borrow().unflushed.bytes()
    }

    /// The reactor's memory for what is on its way, in which entries are until they are durable.
    pub fn memory(&self) -> &Budget {
        self.inner.tail.memory()
    }

    /// Whether `index` is the first entry of its segment: then the state before it deserves a checkpoint.
    pub fn is_segment_first(&self, index: Index) -> bool {
        let state = self.inner.state.borrow();
        let found = state.segments.binary_search_by(|segment| segment.base.next.cmp(&index));
        found.is_ok_and(|number| state.segments[number].entries() > 0)
    }

    /// All segments with entries, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.inner.state.borrow().segments.iter().filter_map(|segment| segment.info()).collect()
    }

    /// Removes all entries after `last` (all of them for `None`), durably, after the writes in flight.
    ///
    /// # Errors
    /// `Stopped`, `Corrupt`, `Io`. Then the log has stopped if it had begun to change.
    ///
    /// # Panics
    /// When entries are appended meanwhile, or `last` is below the first entry kept by more than one.
    pub async fn truncate_after(&self, last: Option<Index>) -> Result<(), LogError> {
        self.inner.truncate_after(last).await
    }

    /// Removes the entries before the point `to` logically, durably, and deletes segments that have none left. When `to` is
    /// beyond the log's end, the log goes on there, with that offset, chain hash and largest timestamp (a replica that
    /// begins from a snapshot); else only its index matters.
    ///
    /// # Errors
    /// `Stopped`; `Corrupt`, `Io`: the entry before `to` cannot be read, and nothing was changed.
    pub async fn purge(&self, to: LogPoint) -> Result<(), LogError> {
        self.inner.purge(to).await
    }

    /// Writes the hard state; durable when it returns, and ordered after the appends before it.
    ///
    /// # Errors
    /// `Stopped`.
    pub async fn save_hard_state(&self, state: HardState) -> Result<(), LogError> {
        self.inner.save(state::Change::Raft(state)).await
    }

    /// The hard state as last saved.
    pub fn hard_state(&self) -> HardState {
        self.inner.state.borrow().hard.state
    }

    /// Keeps a checkpoint of the group's small state at `index`, durably. Older ones that are of no more use (not at the
    /// log start, not at the start of a segment, not one of the newest two) are removed.
    ///
    /// # Errors
    /// `Full`: not kept, the log goes on. `Stopped`.
    pub async fn save_checkpoint(&self, index: Index, state: Bytes) -> Result<(), LogError> {
        self.inner.save_checkpoint(index, state).await
    }

    /// The newest whole checkpoint at or below `index`, with its index. Damaged ones in front of it are removed: they are not
    /// needed.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn load_checkpoint(&self, index: Index) -> Result<Option<(Index, Bytes)>, LogError> {
        self.inner.load_checkpoint(index).await
    }

    /// Removes a checkpoint that is of no use, for the reason `what`, and not needed.
    pub async fn give_up_checkpoint(&self, index: Index, what: &str) {
        self.inner.give_up_checkpoint(index, what).await;
    }

    /// Where the checkpoint at `index` is, or would be.
    pub fn checkpoint_path(&self, index: Index) -> PathBuf {
        self.inner.checkpoint_path(index)
    }

    /// Indexes of the checkpoints kept, ascending.
    pub fn checkpoints(&self) -> Vec<Index> {
        self.inner.state.borrow().checkpoints.iter().copied().collect()
    }

    /// The error that stopped this log, if one did.
    pub fn fault(&self) -> Option<LogError> {
        self.inner.state.borrow().fault.clone()
    }

    /// Suspends until an error stops this log; for ever if none does and it is dropped or closed before.
    pub fn stopped(&self) -> impl Future<Output = LogError> + use<E> {
        let inner = self.inner.clone();
        async move { inner.until(|| inner.state.borrow().fault.clone()).await }
    }

    /// Fail-stop for damage that a read has found: nothing is written from now on, as after a failed write; reads go on.
    pub fn condemn(&self, damage: LogError) {
        let fault = self.inner.stop_with(damage);
        tracing::error!(%fault, "a replica is damaged: it takes no more records");
    }
}

impl<E: Env> State<E> {
    /// The log has failed or was closed: nothing is written any more.
    fn is_over(&self) -> bool {
        self.fault.is_some() || self.closed
    }

    /// The same, or it is about to be closed.
    fn is_ending(&self) -> bool {
        self.is_over() || self.closing
    }

    /// `log start <= flushed end <= log end`, in indexes and in offsets; asked where one of them changes.
    fn check_order(&self) {
        let order = |point: &LogPoint| (point.next, point.offset);
        let places = [&self.start, &self.flushed, &self.end].map(order);
        let grows = |pair: &[(Index, Offset)]| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(places.windows(2).all(grows), "log start <= flushed end <= log end: {places:?}");
    }
}

impl<E: Env> Inner<E> {
    /// `Stopped` once the log has failed or was closed.
    fn check_alive(&self) -> Result<(), LogError> {
        let state = self.state.borrow();
        match &state.fault {
            Some(fault) => Err(fault.clone()),
            None if state.closed => Err(LogError::Stopped {
                file: self.options.dir.clone(),
                action: "used",
                cause: "the log is closed".into(),
            }),
            None => Ok(()),
        }
    }

    /// The segment that holds `index`.
    fn segment_of(&self, index: Index) -> Option<SegmentOf<E>> {
        let state = self.state.borrow();
        let after = state.segments.partition_point(|segment| segment.base.next <= index);
        let segment = state.segments.get(after.checked_sub(1)?)?;
        segment.contains(index).then(|| segment.clone())
    }

    /// Suspends until something has changed; to be used as: look, and if it is not there yet, wait.
    async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    /// As `until`, or until the log fails.
    ///
    /// # Errors
    /// The log's fault, and what `look` finds.
    async fn until_or_fault(&self, look: impl Fn() -> Option<Result<(), LogError>>) -> Result<(), LogError> {
        self.until(|| {
            let fault = self.state.borrow().fault.clone();
            fault.map(Err).or_else(&look)
        })
        .await
    }

    /// Runs a future that `close` waits for.
    fn background(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        struct Running<E: Env>(Rc<Inner<E>>);
        impl<E: Env> Drop for Running<E> {
            fn drop(&mut self) {
                self.0.background.set(self.0.background.get() - 1);
                self.0.changed.notify_all();
            }
        }
        self.background.set(self.background.get() + 1);
        let running = Running(self.clone());
        crate::env::spawn::<E>(async move {
            let _running = running;
            work.await;
        });
    }
}

/// Where the log stands after an entry.
fn point_after(header: &EntryHeader) -> LogPoint {
    LogPoint {
        next: header.id.index.next(),
        term: header.id.term,
        offset: header.end_offset(),
        chain: header.chain,
        timestamp_max_us: header.timestamp_max_us,
    }
}

/// An error on a path where nothing was written: trying again later is safe.
pub(crate) fn io_error(file: &Path, action: &'static str, error: &io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            LogError::Full { dir: file.parent().unwrap_or(file).into() }
        }
        _ => LogError::Io { file: file.into(), action, cause: error.to_string() },
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
