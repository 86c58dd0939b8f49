//! Recent entries in memory: what followers, `apply` and consumers at the end of the log read.
//!
//! One budget of bytes is shared by the logs of a reactor; the oldest entries across them are
//! forgotten first (about: in the order in which they were added). An entry that is not durable yet
//! is never forgotten, because it could not be read back, so the budget may be exceeded by what is in flight.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use crate::{
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
    bytes: Cell<usize>,
    /// One token per entry, oldest first. A token whose entry is gone already is skipped.
    order: RefCell<VecDeque<(Weak<RefCell<Recent>>, Index)>>,
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

/// Tokens of logs that are gone are swept out when there are more than this.
const TOKENS_MAX: usize = 1 << 16;

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
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> TailBudget {
        let shared = Shared { bytes_max: bytes, bytes: Cell::new(0), order: RefCell::default() };
        TailBudget { shared: Rc::new(shared) }
    }

    /// Bytes in use now.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.get()
    }

    fn charge(&self, bytes: usize) {
        self.shared.bytes.set(self.shared.bytes.get() + bytes);
    }

    fn refund(&self, bytes: usize) {
        let left = self.shared.bytes.get().checked_sub(bytes);
        self.shared.bytes.set(left.expect("only what was charged is refunded"));
    }

    /// Forgets oldest entries until the budget is met or all that is left is not durable.
    fn shrink(&self) {
        let mut order = self.shared.order.borrow_mut();
        for _ in 0..order.len() {
            if self.shared.bytes.get() <= self.shared.bytes_max {
                break;
            }
            let Some((log, index)) = order.pop_front() else { break };
            let Some(recent) = log.upgrade() else { continue };
            let mut recent = recent.borrow_mut();
            if recent.entries.is_empty() || recent.first > index {
                continue;
            }
            if recent.first >= recent.flushed_end {
                drop(recent);
                order.push_back((log, index));
                continue;
            }
            self.refund(recent.pop_front());
        }
        if order.len() > TOKENS_MAX {
            order.retain(|(log, index)| log.upgrade().is_some_and(|recent| recent.borrow().first <= *index));
        }
    }
}

impl Recent {
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

    /// Adds the next entry.
    pub fn push(&self, entry: StoredEntry) {
        let index = entry.header.id.index;
        {
            let mut recent = self.recent.borrow_mut();
            assert_eq!(index.0, recent.first.0 + recent.entries.len() as u64, "the tail has no gaps");
            self.budget.charge(cost(&entry));
            recent.entries.push_back(entry);
        }
        self.budget.shared.order.borrow_mut().push_back((Rc::downgrade(&self.recent), index));
        self.budget.shrink();
    }

    /// Entries below `end` are durable and may be forgotten from now on.
    pub fn flushed(&self, end: Index) {
        self.recent.borrow_mut().flushed_end = end;
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
            self.budget.refund(cost(&cut));
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
            let refund = recent.pop_front();
            self.budget.refund(refund);
        }
        if recent.entries.is_empty() {
            recent.first = recent.first.max(start);
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let recent = self.recent.borrow();
        self.budget.refund(recent.entries.iter().map(cost).sum());
    }
}
