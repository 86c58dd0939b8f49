//! One segment in memory: where it begins and ends, its open files, its index.
//!
//! Invariants: `base.next <= end.next`; `BLOCK_BYTES <= data_end`, both multiples of `BLOCK_BYTES`;
//! `data_end + BLOCK_BYTES <= capacity` while it is open (room for the footer); the live index has
//! `end.next - base.next` slots, strictly ascending in position.

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

use crate::{
    format::segment::{LogPoint, SLOT_BYTES, SegmentFooter, SegmentHeader, Slot},
    ids::{Index, LogId, Offset, Position, SegmentSequence, ShardUid, Term},
    limits::BLOCK_BYTES,
};

use super::SegmentInfo;

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Entries are added to it.
    Open,
    /// No more entries; its footer is not written yet.
    Full,
    /// Its footer is on the disk.
    Sealed,
}

/// A segment.
pub(super) struct Segment<F> {
    pub sequence: SegmentSequence,
    pub base: LogPoint,
    /// Its files were removed: what is read from them now means nothing.
    pub removed: Cell<bool>,
    /// It has its lasting name: `<base offset>.store`.
    pub named: Cell<bool>,
    /// Another one has, or had, the name that its base offset gives.
    pub shares_base: Cell<bool>,
    pub path: RefCell<PathBuf>,
    pub now: RefCell<Now<F>>,
}

/// What changes of a segment.
pub(super) struct Now<F> {
    pub end: LogPoint,
    pub first_term: Term,
    pub last_timestamp_us: i64,
    /// Where the next entry goes.
    pub data_end: u64,
    /// Where the data ended when the file was opened or cut: what is behind it there is to be cut before it is
    /// made longer again.
    pub disk_end: u64,
    /// Bytes of the file that may be used.
    pub capacity: u64,
    /// The size that it was made for.
    pub intended_bytes: u64,
    pub phase: Phase,
    /// Its header block is on the disk.
    pub on_disk: bool,
    /// There is no footer of it on the disk: close has to write one.
    pub footer_gone: bool,
    /// The supply was asked for its file.
    pub requested: bool,
    /// It holds entries of Raft's own, or commands: they get space that records do not.
    pub urgent: bool,
    /// For appending; there is none until the file is made (or made long enough) ahead.
    pub appender: Option<F>,
    /// For reading, through the page cache.
    pub reader: Option<F>,
    pub slots: Slots,
    pub index_crc: u32,
}

/// The index, where it is now.
pub(super) enum Slots {
    /// Growing.
    Live(Rc<RefCell<Vec<Slot>>>),
    /// In its file, perhaps in memory, too.
    Cached(Option<CachedIndex>),
}

/// A look at an index that stays valid whatever happens to the segment.
#[derive(Clone)]
pub(super) enum View {
    /// Growing.
    Live(Rc<RefCell<Vec<Slot>>>),
    /// Checked.
    Cached(CachedIndex),
}

/// An index file's content in memory, read and not mapped: a page of a map that the device cannot read, or that lies behind
/// the end of a file that was cut, ends the process (SIGBUS), and one that was evicted blocks the reactor. Counts among its
/// reactor's (`cached_bytes`) until the last clone is dropped.
#[derive(Clone)]
pub(super) struct CachedIndex(Rc<Counted>);

struct Counted(Bytes);

thread_local! {
    static CACHED_BYTES: Cell<usize> = const { Cell::new(0) };
}

impl CachedIndex {
    pub fn new(content: Bytes) -> CachedIndex {
        CACHED_BYTES.set(CACHED_BYTES.get() + content.len());
        CachedIndex(Rc::new(Counted(content)))
    }

    /// Bytes of all that the reactor of this thread has in memory.
    pub fn cached_bytes() -> usize {
        CACHED_BYTES.get()
    }
}

impl Deref for CachedIndex {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Not while its thread ends.
        let _ = CACHED_BYTES.try_with(|bytes| bytes.set(bytes.get() - self.0.len()));
    }
}

impl<F: Clone> Segment<F> {
    /// A segment without entries that begins at `base`.
    pub fn new(sequence: SegmentSequence, base: LogPoint, path: PathBuf, bytes: u64) -> Segment<F> {
        let now = Now {
            end: base,
            first_term: Term(0),
            last_timestamp_us: 0,
            data_end: BLOCK_BYTES as u64,
            disk_end: BLOCK_BYTES as u64,
            capacity: bytes,
            intended_bytes: bytes,
            phase: Phase::Open,
            on_disk: false,
            footer_gone: true,
            requested: false,
            urgent: false,
            appender: None,
            reader: None,
            slots: Slots::Live(Rc::default()),
            index_crc: 0,
        };
        Segment {
            sequence,
            base,
            removed: Cell::new(false),
            named: Cell::new(false),
            shares_base: Cell::new(false),
            path: RefCell::new(path),
            now: RefCell::new(now),
        }
    }

    /// Where the log stands after its last entry.
    pub fn end(&self) -> LogPoint {
        self.now.borrow().end
    }

    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.end().next.0 - self.base.next.0
    }

    /// Whether it holds this entry.
    pub fn contains(&self, index: Index) -> bool {
        self.base.next <= index && index < self.end().next
    }

    /// Its store file.
    pub fn path(&self) -> PathBuf {
        self.path.borrow().clone()
    }

    /// Its index file.
    pub fn index_path(&self) -> PathBuf {
        self.path.borrow().with_extension("index")
    }

    /// Whether an entry of `bytes` at this offset still goes into it.
    pub fn has_room(&self, bytes: u64, offset: Offset) -> bool {
        let now = self.now.borrow();
        now.phase == Phase::Open
            && now.data_end + bytes + BLOCK_BYTES as u64 <= now.capacity
            && offset.0 - self.base.offset.0 <= u64::from(u32::MAX)
    }

    /// Its first block.
    pub fn header(&self, shard: ShardUid, created_us: i64) -> SegmentHeader {
        let intended_bytes = self.now.borrow().intended_bytes;
        SegmentHeader { shard, sequence: self.sequence, base: self.base, intended_bytes, created_us }
    }

    /// The footer for what it holds now.
    pub fn footer(&self, shard: ShardUid, index_crc: u32) -> SegmentFooter {
        let now = self.now.borrow();
        SegmentFooter {
            index_crc,
            shard,
            sequence: self.sequence,
            end: now.end,
            last_timestamp_us: now.last_timestamp_us,
            entries: now.end.next.0 - self.base.next.0,
            position: Position(now.data_end),
            first_term: now.first_term,
        }
    }

    /// For reports; `None` without entries.
    pub fn info(&self) -> Option<SegmentInfo> {
        let now = self.now.borrow();
        Some(SegmentInfo {
            first: LogId { term: now.first_term, index: self.base.next },
            last: now.end.last().filter(|last| last.index >= self.base.next)?,
            base_offset: self.base.offset,
            end_offset: now.end.offset,
            bytes: if now.phase == Phase::Sealed { now.data_end + BLOCK_BYTES as u64 } else { now.capacity },
            last_timestamp_us: now.last_timestamp_us,
            sealed: now.phase != Phase::Open,
        })
    }

    /// The index as it can be seen without waiting.
    pub fn view(&self) -> Option<View> {
        match &self.now.borrow().slots {
            Slots::Live(slots) => Some(View::Live(slots.clone())),
            Slots::Cached(map) => map.clone().map(View::Cached),
        }
    }
}

impl View {
    /// Number of slots.
    pub fn len(&self) -> usize {
        match self {
            View::Live(slots) => slots.borrow().len(),
            View::Cached(map) => map.len() / SLOT_BYTES,
        }
    }

    /// Slot `number`, if there is one.
    pub fn get(&self, number: usize) -> Option<Slot> {
        match self {
            View::Live(slots) => slots.borrow().get(number).copied(),
            View::Cached(map) => (number < map.len() / SLOT_BYTES).then(|| Slot::parse(map, number)),
        }
    }

    /// Number of the last slot at or below `offset` (relative to the segment's base offset): entries without
    /// records have the offset of the batch that follows, so the last of equals is the batch.
    pub fn last_at_or_below(&self, offset: u32) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle) {
                Some(slot) if slot.offset <= offset => low = middle + 1,
                _ => high = middle,
            }
        }
        low.checked_sub(1)
    }

    /// The content of the index file.
    pub fn encode(&self) -> Bytes {
        match self {
            View::Live(slots) => slots.borrow().iter().flat_map(|slot| slot.encode()).collect(),
            View::Cached(map) => Bytes::copy_from_slice(map),
        }
    }
}

/// The slots of an index file's content.
pub(super) fn parse_slots(content: &[u8]) -> Vec<Slot> {
    (0..content.len() / SLOT_BYTES).map(|number| Slot::parse(content, number)).collect()
}

/// The lasting name of a segment that begins at `offset`. Segments without records share their base offset with
/// the next one; those after the first carry their sequence too.
pub(super) fn store_path(dir: &Path, offset: Offset, taken: bool, sequence: SegmentSequence) -> PathBuf {
    if taken {
        dir.join(format!("{:020}-{}.store", offset.0, sequence.0))
    } else {
        dir.join(format!("{:020}.store", offset.0))
    }
}
