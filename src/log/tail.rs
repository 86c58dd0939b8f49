//! Recent entries in memory: what followers, `apply` and consumers at the end of the log read.
//!
//! One budget of bytes is shared by the logs of a reactor; the oldest entries across them are forgotten first (about: in
//! the order in which they became durable). An entry that is not durable yet could not be read back: it is never forgotten,
//! and is not in this budget but in that of what is on its way (`budget`, `Use::Unflushed`).

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use crate::{
    budget::Budget,
    env::{channel::Slots, domain},
    format::entry::StoredEntry,
    ids::Index,
    limits::{BLOCK_BYTES, TAIL_BYTES_MAX},
};

/// A reactor's budget of recent entries in memory (`TAIL_BYTES_MAX`), shared by its logs; the oldest are forgotten
/// first. Clones are handles to the same one.
#[derive(Clone)]
pub struct TailBudget {
    shared: Rc<Shared>,
}

struct Shared {
    bytes_max: usize,
    /// Of the durable entries in memory. Never above `bytes_max` when a call returns.
    bytes: Cell<usize>,
    /// One token per durable entry, oldest first. A token whose entry is gone already is skipped: each is looked at once.
    order: RefCell<VecDeque<(Weak<RefCell<Recent>>, Index)>>,
    /// Tokens of entries that are gone are swept out when there are more than this: twice as many as were left last time.
    tokens_max: Cell<usize>,
    /// Tokens looked at so far.
    steps: Cell<u64>,
    memory: Budget,
    reads: Slots,
}

/// One log's recent entries, without gaps.
pub(super) struct Tail {
    budget: TailBudget,
    recent: Rc<RefCell<Recent>>,
}

struct Recent {
    /// Index of the front entry, or of the next one to come.
    first: Index,
    entries: VecDeque<StoredEntry>,
    flushed_end: Index,
}

/// Bookkeeping of one entry beside its bytes, about.
const OVERHEAD_BYTES: usize = 256;

/// Fewer tokens than this are never swept.
const TOKENS_MIN: usize = 1 << 16;

impl Default for TailBudget {
    fn default() -> TailBudget {
        TailBudget::new(TAIL_BYTES_MAX)
    }
}

impl std::fmt::Debug for TailBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TailBudget({} of {} bytes)", self.bytes(), self.shared.bytes_max)
    }
}

impl TailBudget {
    /// A budget of `bytes` beside the default one of what is on its way.
    pub fn new(bytes: usize) -> TailBudget {
        TailBudget::beside(Budget::default(), bytes)
    }

    /// A budget of `bytes` beside that of what is on its way.
    pub fn beside(memory: Budget, bytes: usize) -> TailBudget {
        let (order, steps) = (RefCell::default(), Cell::new(0));
        let (tokens_max, reads) = (Cell::new(TOKENS_MIN), Slots::new(1));
        let bytes_now = Cell::new(0);
        let shared = Shared { bytes_max: bytes, bytes: bytes_now, order, tokens_max, steps, memory, reads };
        TailBudget { shared: Rc::new(shared) }
    }

    /// The reactor's memory for what is on its way: entries that are not flushed.
    pub fn memory(&self) -> &Budget {
        &self.shared.memory
    }

    /// Bytes in use now.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.get()
    }

    fn charge(&self, bytes: usize) {
        self.set(self.shared.bytes.get() + bytes);
    }

    fn refund(&self, bytes: usize) {
        let left = self.shared.bytes.get().checked_sub(bytes);
        self.set(left.expect("only what was charged is refunded"));
    }

    fn set(&self, bytes: usize) {
        self.shared.bytes.set(bytes);
        self.shared.memory.note_tail(bytes);
    }

    /// Forgets oldest entries until the budget is met.
    fn shrink(&self) {
        let Shared { bytes_max, bytes, order, tokens_max, steps, .. } = &*self.shared;
        let mut order = order.borrow_mut();
        while bytes.get() > *bytes_max {
            let (log, index) = order.pop_front().expect("each entry that counts has its token");
            steps.set(steps.get() + 1);
            let Some(recent) = log.upgrade() else { continue };
            let mut recent = recent.borrow_mut();
            // What has come in the place of an entry that was cut off gets its own token when it is durable.
            if recent.first <= index && recent.is_durable(recent.first) {
                self.refund(recent.pop_front());
            }
        }
        if order.len() > tokens_max.get() {
            steps.set(steps.get() + order.len() as u64);
            order.retain(|(log, index)| log.upgrade().is_some_and(|recent| recent.borrow().first <= *index));
            tokens_max.set(TOKENS_MIN.max(2 * order.len()));
        }
    }
}

impl Recent {
    /// Whether the entry of that index, which is here, could be read back.
    fn is_durable(&self, index: Index) -> bool {
        !self.entries.is_empty() && index < self.flushed_end
    }

    /// Forgets the oldest; returns what it cost.
    fn pop_front(&mut self) -> usize {
        let entry = self.entries.pop_front();
        self.first = self.first.next();
        entry.as_ref().map_or(0, cost)
    }
}

fn cost(entry: &StoredEntry) -> usize {
    entry.bytes.len().next_multiple_of(BLOCK_BYTES) + OVERHEAD_BYTES
}

impl Tail {
    /// No entries yet; the first to come has index `next`.
    pub fn new(budget: TailBudget, next: Index) -> Tail {
        let recent = Recent { first: next, entries: VecDeque::new(), flushed_end: next };
        Tail { budget, recent: Rc::new(RefCell::new(recent)) }
    }

    /// The reactor's memory for what is on its way.
    pub fn memory(&self) -> &Budget {
        self.budget.memory()
    }

    /// Whose turn it is in the reactor to read for a consumer what is not here (`turns`).
    pub fn reads(&self) -> &Slots {
        &self.budget.shared.reads
    }

    /// Adds the next entry, which is not durable.
    pub fn push(&self, entry: StoredEntry) {
        let index = entry.header.id.index;
        let mut recent = self.recent.borrow_mut();
        assert_eq!(index.0, recent.first.0 + recent.entries.len() as u64, "the tail has no gaps");
        recent.entries.push_back(entry);
    }

    /// Entries below `end` are durable: they count, and may be forgotten from now on.
    pub fn flushed(&self, end: Index) {
        {
            let mut recent = self.recent.borrow_mut();
            let place = |index: Index| (index.0.saturating_sub(recent.first.0) as usize).min(recent.entries.len());
            let (from, to) = (place(recent.flushed_end), place(end));
            let mut order = self.budget.shared.order.borrow_mut();
            let mut bytes = 0;
            for entry in recent.entries.range(from..to.max(from)) {
                bytes += cost(entry);
                order.push_back((Rc::downgrade(&self.recent), entry.header.id.index));
            }
            self.budget.charge(bytes);
            recent.flushed_end = end;
        }
        // It is about the other logs of the reactor, too.
        domain::core(|| self.budget.shrink());
    }

    /// The entry at `index`, if it is here.
    pub fn get(&self, index: Index) -> Option<StoredEntry> {
        let recent = self.recent.borrow();
        let number = index.0.checked_sub(recent.first.0)?;
        recent.entries.get(number as usize).cloned()
    }

    /// Removes entries from `end` on.
    pub fn truncate(&self, end: Index) {
        let mut recent = self.recent.borrow_mut();
        let keep = end.0.saturating_sub(recent.first.0) as usize;
        while recent.entries.len() > keep {
            let cut = recent.entries.pop_back().expect("there are more than are kept");
            if cut.header.id.index < recent.flushed_end {
                self.budget.refund(cost(&cut));
            }
        }
        if recent.entries.is_empty() {
            recent.first = end;
        }
        recent.flushed_end = recent.flushed_end.min(end);
    }

    /// Removes entries below `start`; when that is all, the next to come is `start`.
    pub fn purge(&self, start: Index) {
        let mut recent = self.recent.borrow_mut();
        while recent.first < start && !recent.entries.is_empty() {
            let counts = recent.is_durable(recent.first);
            let cost = recent.pop_front();
            if counts {
                self.budget.refund(cost);
            }
        }
        if recent.entries.is_empty() {
            recent.first = recent.first.max(start);
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let recent = self.recent.borrow();
        let durable = recent.entries.iter().filter(|entry| entry.header.id.index < recent.flushed_end);
        self.budget.refund(durable.map(cost).sum());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        format::entry::{EntryHeader, EntryKind},
        ids::{LogId, Offset, SegmentSequence, ShardUid, Term},
    };

    const ENTRY_BYTES: usize = BLOCK_BYTES + OVERHEAD_BYTES;

    fn entry(index: u64) -> StoredEntry {
        let header = EntryHeader {
            kind: EntryKind::Blank,
            payload_bytes: 0,
            record_count: 0,
            shard: ShardUid(1),
            segment: SegmentSequence(0),
            id: LogId { term: Term(1), index: Index(index) },
            base_offset: Offset(0),
            timestamp_us: 0,
            timestamp_max_us: 0,
            durable_end: 0,
            chain: 0,
            payload_crc: 0,
        };
        StoredEntry { header, bytes: Bytes::from_static(&[0; 100]) }
    }

    fn held(tail: &Tail, indexes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        indexes.into_iter().filter(|index| tail.get(Index(*index)).is_some()).collect()
    }

    /// A log that is not flushed for long costs the others nothing: each push looks at about one token, however many
    /// entries wait for the device.
    #[test]
    fn steps_per_push() {
        const ENTRIES: u64 = 5_000;
        let budget = TailBudget::new(4 * ENTRY_BYTES);
        let [slow, fast] = [0, 1].map(|_| Tail::new(budget.clone(), Index(0)));
        for index in 0..ENTRIES {
            slow.push(entry(index));
            fast.push(entry(index));
            fast.flushed(Index(index + 1));
        }
        assert_eq!(budget.bytes(), 4 * ENTRY_BYTES, "what is not durable is not in this budget");
        assert_eq!(held(&slow, 0..ENTRIES).len() as u64, ENTRIES, "and is never forgotten");
        slow.flushed(Index(ENTRIES));
        assert_eq!((budget.bytes(), held(&slow, 0..ENTRIES)), (4 * ENTRY_BYTES, (ENTRIES - 4..ENTRIES).collect()));
        assert_eq!(held(&fast, 0..ENTRIES), [] as [u64; 0]);
        let steps = budget.shared.steps.get();
        assert!(steps <= 2 * ENTRIES, "{steps} steps for {} entries", 2 * ENTRIES);
    }

    /// The same when tokens outnumber any bound that is not in proportion to them.
    #[test]
    fn steps_per_sweep() {
        const ENTRIES: u64 = 4 * TOKENS_MIN as u64;
        let budget = TailBudget::new(usize::MAX);
        let tail = Tail::new(budget.clone(), Index(0));
        for index in 0..ENTRIES {
            tail.push(entry(index));
            tail.flushed(Index(index + 1));
        }
        let steps = budget.shared.steps.get();
        assert!(steps <= 4 * ENTRIES, "{steps} steps for {ENTRIES} entries");
    }

    /// Entries that take the place of others are kept until they are durable, whatever tokens the others have left behind.
    #[test]
    fn replaced_entries() {
        let budget = TailBudget::new(3 * ENTRY_BYTES);
        let [tail, other] = [0, 1].map(|_| Tail::new(budget.clone(), Index(0)));
        (0..3).for_each(|index| tail.push(entry(index)));
        tail.flushed(Index(3));
        tail.truncate(Index(0));
        assert_eq!(budget.bytes(), 0);
        (0..3).for_each(|index| tail.push(entry(index)));
        (0..5).for_each(|index| other.push(entry(index)));
        other.flushed(Index(5));
        assert_eq!((held(&tail, 0..3), held(&other, 0..5)), (vec![0, 1, 2], vec![2, 3, 4]));
        tail.flushed(Index(1));
        assert_eq!((held(&tail, 0..3), held(&other, 0..5)), (vec![0, 1, 2], vec![3, 4]));
        tail.flushed(Index(3));
        assert_eq!((held(&tail, 0..3), held(&other, 0..5)), (vec![0, 1, 2], vec![]));
        tail.purge(Index(9));
        drop(other);
        assert_eq!(budget.bytes(), 0);
        tail.push(entry(9));
        drop(tail);
        assert_eq!(budget.bytes(), 0, "what was not durable was never in it");
    }
}
