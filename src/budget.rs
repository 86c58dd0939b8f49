//! One reactor's memory for what is on its way, in bytes: requests, entries that are not flushed, frames of peers.
//!
//! Whoever keeps bytes takes a `Charge` for them first, before there is room for them, and drops it with them. What clients
//! cause is refused first, then what peers pass on for theirs, then entries and snapshots of peers; votes, heartbeats and
//! control calls have the last part for themselves (`Class`):
//!
//! ```text
//! 0                              clients   passed on   replication    consensus = bytes_max
//! ├─ what clients have sent, and ─┤            │            │               │
//! │  what became of it            │            │            │               │
//! ├─ frames that peers pass on for clients ────┤            │               │
//! ├─ entries and snapshots of peers ────────────────────────┤               │
//! ├─ votes, heartbeats, control calls, answers ─────────────────────────────┤
//! ```
//!
//! Nothing that waits for room here holds what would make room: a client's request is refused instead of waiting, and is
//! charged at once for all that will become of it; a frame waits before any of its content has a place, and its bytes become
//! those of its entries without another question. What a client has sent here and another node has to answer keeps its room
//! until it is answered there: so what peers pass on has room that clients do not fill, or nodes full of such requests would
//! wait for each other for ever. `Budget::force` is for what cannot be refused any more, and is small
//! (padding, Raft's own entries).
//!
//! Not here: recent entries that could be read back from the disk (`log::TailBudget`, which has a limit of its own), answers
//! that wait for clients (`frontend::grpc::answers`, the same: who does not read must not keep others from writing), what
//! other threads have put into the mailbox (`reactor::mailbox`, the same), and the entries of peers that have come and wait for
//! room here (`Backlog`, the same).

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use crate::{
    env::channel::{Notified, Notify},
    limits::{
        MEMORY_BYTES_DEFAULT, MEMORY_CONSENSUS_BYTES, MEMORY_PASSED_ON_BYTES, MEMORY_RESERVE_BYTES,
        PEER_BACKLOG_BYTES_MAX,
    },
};

/// What bytes are kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Messages of clients that have come in part, or are not parsed.
    Received,
    /// Produce requests that are not answered, and room for their entries until they are proposed.
    Queued,
    /// Entries that are not flushed here: proposed, received from a leader, or waiting for the device.
    Unflushed,
    /// Frames of peers, from the announcement of their length until they are dealt with.
    Frames,
    /// Entries that a log which has stopped did not flush, and still gives to readers.
    Stopped,
}

impl Use {
    /// All of them, in the order of `Budget::by_use`.
    pub const ALL: [Use; 5] = [Use::Received, Use::Queued, Use::Unflushed, Use::Frames, Use::Stopped];

    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Use::Received => "received",
            Use::Queued => "queued",
            Use::Unflushed => "unflushed",
            Use::Frames => "frames",
            Use::Stopped => "stopped",
        }
    }
}

/// On whose behalf: how much of the budget it may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A client's call, also one that another node has passed on, once it is read: not the last `MEMORY_RESERVE_BYTES`.
    Client,
    /// A client's call as another node passes it on, until it is read: of that, `MEMORY_PASSED_ON_BYTES` all the same.
    PassedOn,
    /// Entries and snapshots of a leader: not the last `MEMORY_CONSENSUS_BYTES`.
    Replication,
    /// Votes, heartbeats, control calls and answers: all of it.
    Consensus,
}

/// There is no room. Nothing was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for {wanted} more bytes of memory")]
pub struct NoRoom {
    /// What was asked for.
    pub wanted: usize,
}

/// What a reactor's memory is used for, as every thread may read it. Only its budget writes, with plain loads and stores.
///
/// Invariant: `used` is the sum of `by_use`.
#[derive(Debug, Default)]
pub struct Usage {
    bytes_max: AtomicUsize,
    used: AtomicUsize,
    by_use: [AtomicUsize; Use::ALL.len()],
    peak: AtomicUsize,
    /// Recent entries, which are not in `used`: see `log::TailBudget`.
    tail: AtomicUsize,
    /// Answers that wait for clients, the same: see `frontend::grpc::answers`.
    answers: AtomicUsize,
    /// What all `Backlog`s stand for, the same; and the most that it was.
    backlog: AtomicUsize,
    backlog_peak: AtomicUsize,
}

impl Usage {
    /// Bytes in use for that.
    pub fn used_for(&self, usage: Use) -> usize {
        self.by_use[usage as usize].load(Relaxed)
    }

    /// All bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// The most bytes that were in use at any time.
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// Recent entries in memory, beside all that.
    pub fn tail(&self) -> usize {
        self.tail.load(Relaxed)
    }

    /// Answers that wait for clients, beside all that.
    pub fn answers(&self) -> usize {
        self.answers.load(Relaxed)
    }

    /// What has come from peers and waits for room, beside all that.
    pub fn backlog(&self) -> usize {
        self.backlog.load(Relaxed)
    }

    /// The most that it was at any time.
    pub fn backlog_peak(&self) -> usize {
        self.backlog_peak.load(Relaxed)
    }

    /// All there are; 0 before the budget is made.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max.load(Relaxed)
    }
}

/// A reactor's budget. Clones are handles to the same one.
#[derive(Clone)]
pub struct Budget {
    shared: Rc<Shared>,
}

struct Shared {
    bytes_max: usize,
    usage: Arc<Usage>,
    /// How many wait in `freed`.
    waiting: Cell<usize>,
    freed: Notify,
}

/// What one stream of a peer holds of entries that wait for room, beside the budget; given back when it is dropped.
pub struct Backlog {
    shared: Rc<Shared>,
    bytes: usize,
}

/// Bytes that are kept; given back when it is dropped.
pub struct Charge {
    shared: Rc<Shared>,
    usage: Use,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::new(MEMORY_BYTES_DEFAULT)
    }
}

impl Budget {
    /// A budget of `bytes`, all of them free. With less than `MEMORY_BYTES_MIN`, which no node is configured with, the reserves
    /// are parts of it, and what is larger than a simulated cluster's requests and frames has no room.
    pub fn new(bytes: usize) -> Budget {
        Budget::published(bytes, Arc::default())
    }

    /// As `new`; other threads see in `usage` what it is used for.
    pub fn published(bytes: usize, usage: Arc<Usage>) -> Budget {
        usage.bytes_max.store(bytes, Relaxed);
        Budget { shared: Rc::new(Shared { bytes_max: bytes, usage, waiting: Cell::new(0), freed: Notify::new() }) }
    }

    /// Takes `bytes` if there is room for that class.
    ///
    /// # Errors
    /// `NoRoom`.
    pub fn take(&self, usage: Use, class: Class, bytes: usize) -> Result<Charge, NoRoom> {
        let mut charge = self.none(usage);
        charge.grow(class, bytes)?;
        Ok(charge)
    }

    /// Takes `bytes` whether there is room or not: for what cannot be refused any more.
    pub fn force(&self, usage: Use, bytes: usize) -> Charge {
        let mut charge = self.none(usage);
        charge.add(bytes);
        charge
    }

    /// A charge of nothing, to grow.
    pub fn none(&self, usage: Use) -> Charge {
        Charge { shared: Rc::clone(&self.shared), usage, bytes: 0 }
    }

    /// A backlog of nothing, to grow.
    pub fn backlog(&self) -> Backlog {
        Backlog { shared: Rc::clone(&self.shared), bytes: 0 }
    }

    /// Most that all backlogs may stand for together.
    pub fn backlog_max(&self) -> usize {
        self.shared.backlog_max()
    }

    /// What they stand for.
    pub fn backlog_bytes(&self) -> usize {
        self.shared.usage.backlog()
    }

    /// Resolves when something was given back after this call, or `wake` was called. So: call this, ask for room, await.
    pub fn freed(&self) -> Freed {
        self.shared.waiting.set(self.shared.waiting.get() + 1);
        Freed { notified: self.shared.freed.notified(), shared: Rc::clone(&self.shared) }
    }

    /// Has those who wait look again: something else than room has changed.
    pub fn wake(&self) {
        self.shared.freed.notify_all();
    }

    /// Has other threads see how much recent entries take.
    pub fn note_tail(&self, bytes: usize) {
        self.shared.usage.tail.store(bytes, Relaxed);
    }

    /// Has other threads see how much answers take that wait for clients.
    pub fn note_answers(&self, bytes: usize) {
        self.shared.usage.answers.store(bytes, Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.shared.usage.used()
    }

    /// Bytes in use for that.
    pub fn used_for(&self, usage: Use) -> usize {
        self.shared.usage.used_for(usage)
    }

    /// The most bytes that were in use at any time.
    pub fn peak(&self) -> usize {
        self.shared.usage.peak()
    }

    /// All there are.
    pub fn bytes_max(&self) -> usize {
        self.shared.bytes_max
    }

    /// Most bytes that may be in use after a charge of that class.
    pub fn limit(&self, class: Class) -> usize {
        self.shared.limit(class)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {} bytes)", self.used(), self.bytes_max())
    }
}

impl Shared {
    fn limit(&self, class: Class) -> usize {
        match class {
            Class::Client => self.bytes_max - MEMORY_RESERVE_BYTES.min(self.bytes_max / 2),
            Class::PassedOn => self.limit(Class::Client) + MEMORY_PASSED_ON_BYTES.min(self.bytes_max / 4),
            Class::Replication => self.bytes_max - MEMORY_CONSENSUS_BYTES.min(self.bytes_max / 8),
            Class::Consensus => self.bytes_max,
        }
    }

    /// Of a budget that is smaller than any node's, a part.
    fn backlog_max(&self) -> usize {
        PEER_BACKLOG_BYTES_MAX.min(self.bytes_max / 5)
    }

    /// Whether `more` bytes may be charged to that class. None always may.
    fn has_room(&self, class: Class, more: usize) -> bool {
        more == 0 || self.usage.used().saturating_add(more) <= self.limit(class)
    }
}

impl Backlog {
    /// What it stands for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it stand for `bytes`, if all backlogs come to at most `all_max` then. Less is always possible.
    ///
    /// # Errors
    /// `NoRoom`: it is as it was.
    pub fn resize(&mut self, bytes: usize, all_max: usize) -> Result<(), NoRoom> {
        let Usage { backlog, backlog_peak, .. } = &*self.shared.usage;
        let others = backlog.load(Relaxed).checked_sub(self.bytes).expect("the sum is not less than its parts");
        let all = others.saturating_add(bytes);
        if bytes > self.bytes && all > all_max.min(self.shared.backlog_max()) {
            return Err(NoRoom { wanted: bytes - self.bytes });
        }
        self.bytes = bytes;
        backlog.store(all, Relaxed);
        backlog_peak.fetch_max(all, Relaxed);
        Ok(())
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.resize(0, 0).expect("less is always possible");
    }
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backlog({} bytes)", self.bytes)
    }
}

impl Charge {
    /// What it stands for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it `bytes` more, if there is room for that class.
    ///
    /// # Errors
    /// `NoRoom`: it is as it was.
    pub fn grow(&mut self, class: Class, bytes: usize) -> Result<(), NoRoom> {
        if !self.shared.has_room(class, bytes) {
            return Err(NoRoom { wanted: bytes });
        }
        self.add(bytes);
        Ok(())
    }

    /// Whether `resize` would do that now.
    pub fn can_be(&self, class: Class, bytes: usize) -> bool {
        self.shared.has_room(class, bytes.saturating_sub(self.bytes))
    }

    /// Makes it stand for `bytes`: gives back, or takes more as `grow` does.
    ///
    /// # Errors
    /// `NoRoom`: it is as it was.
    pub fn resize(&mut self, class: Class, bytes: usize) -> Result<(), NoRoom> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(class, more),
            None => {
                self.give_back(self.bytes - bytes);
                Ok(())
            }
        }
    }

    /// Gives `bytes` of it back.
    ///
    /// # Panics
    /// When it has not as many.
    pub fn give_back(&mut self, bytes: usize) {
        self.remove(bytes);
        if bytes > 0 && self.shared.waiting.get() > 0 {
            self.shared.freed.notify_all();
        }
    }

    /// Makes it stand for `bytes`, whether there is room or not: for what cannot be refused any more.
    pub fn set(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.add(more),
            None => self.give_back(self.bytes - bytes),
        }
    }

    /// Takes `bytes` out of it, as a charge of their own.
    ///
    /// # Panics
    /// When it has not as many.
    #[must_use = "dropped, its bytes are free"]
    pub fn split(&mut self, bytes: usize) -> Charge {
        self.bytes = self.bytes.checked_sub(bytes).expect("a part is not larger than the whole");
        Charge { shared: Rc::clone(&self.shared), usage: self.usage, bytes }
    }

    /// Adds another charge of the same budget to this one: its bytes are of this one's use from now on.
    pub fn absorb(&mut self, mut other: Charge) {
        assert!(Rc::ptr_eq(&self.shared, &other.shared), "bytes stay in their budget");
        let bytes = other.bytes;
        other.remove(bytes);
        self.add(bytes);
    }

    fn add(&mut self, bytes: usize) {
        let Usage { used, by_use, peak, .. } = &*self.shared.usage;
        self.bytes += bytes;
        let sum = used.load(Relaxed) + bytes;
        used.store(sum, Relaxed);
        let of_use = &by_use[self.usage as usize];
        of_use.store(of_use.load(Relaxed) + bytes, Relaxed);
        if sum > peak.load(Relaxed) {
            peak.store(sum, Relaxed);
        }
    }

    fn remove(&mut self, bytes: usize) {
        let Usage { used, by_use, .. } = &*self.shared.usage;
        self.bytes = self.bytes.checked_sub(bytes).expect("no more is given back than was taken");
        let sum = used.load(Relaxed).checked_sub(bytes);
        used.store(sum.expect("the sum is not less than its parts"), Relaxed);
        let of_use = &by_use[self.usage as usize];
        let sum = of_use.load(Relaxed).checked_sub(bytes);
        of_use.store(sum.expect("the sum of a use is not less than its parts"), Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({} bytes, {})", self.bytes, self.usage.name())
    }
}

/// Future of `Budget::freed`.
pub struct Freed {
    notified: Notified,
    shared: Rc<Shared>,
}

impl Future for Freed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Woken by `give_back` and `wake`.
        Pin::new(&mut self.notified).poll(context)
    }
}

impl Drop for Freed {
    fn drop(&mut self) {
        self.shared.waiting.set(self.shared.waiting.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::limits::MEMORY_BYTES_MIN;

    fn budget() -> Budget {
        Budget::new(MEMORY_BYTES_MIN)
    }

    /// Clients are refused first, then replication, then nothing is left; what is dropped is free again.
    #[test]
    fn classes() {
        let budget = budget();
        let (client, replication) = (budget.limit(Class::Client), budget.limit(Class::Replication));
        let first = budget.take(Use::Queued, Class::Client, client).unwrap();
        assert_eq!(budget.take(Use::Queued, Class::Client, 1).unwrap_err(), NoRoom { wanted: 1 });
        let passed_on = budget.take(Use::Frames, Class::PassedOn, MEMORY_PASSED_ON_BYTES).unwrap();
        assert!(budget.take(Use::Frames, Class::PassedOn, 1).is_err());
        drop(passed_on);
        let second = budget.take(Use::Frames, Class::Replication, replication - client).unwrap();
        assert!(budget.take(Use::Frames, Class::Replication, 1).is_err());
        let third = budget.take(Use::Frames, Class::Consensus, MEMORY_CONSENSUS_BYTES).unwrap();
        assert!(budget.take(Use::Frames, Class::Consensus, 1).is_err());
        assert!(budget.take(Use::Frames, Class::Client, 0).is_ok(), "nothing has room everywhere");
        assert_eq!((budget.used(), budget.used_for(Use::Queued)), (MEMORY_BYTES_MIN, client));
        drop((first, second));
        assert_eq!((budget.used(), budget.used_for(Use::Frames)), (MEMORY_CONSENSUS_BYTES, MEMORY_CONSENSUS_BYTES));
        drop(third);
        assert_eq!((budget.used(), budget.peak()), (0, MEMORY_BYTES_MIN));
    }

    /// A refused charge changes nothing, whatever its size.
    #[test]
    fn refused() {
        let budget = budget();
        let mut charge = budget.take(Use::Received, Class::Client, 10).unwrap();
        assert!(charge.resize(Class::Client, usize::MAX).is_err());
        assert!(charge.grow(Class::Consensus, MEMORY_BYTES_MIN).is_err());
        assert_eq!((charge.bytes(), budget.used()), (10, 10));
        charge.resize(Class::Client, 4).unwrap();
        assert_eq!((charge.bytes(), budget.used_for(Use::Received)), (4, 4));
    }

    /// Who waits is woken by each byte that is given back, and by `wake`; and not by a charge that only changes its use.
    #[test]
    fn woken() {
        let budget = budget();
        let mut charge = budget.force(Use::Frames, 100);
        let mut unflushed = budget.none(Use::Unflushed);
        let mut freed = budget.freed();
        unflushed.absorb(charge.split(60));
        assert!((&mut freed).now_or_never().is_none());
        assert_eq!((budget.used_for(Use::Frames), budget.used_for(Use::Unflushed)), (40, 60));
        charge.give_back(1);
        assert!((&mut freed).now_or_never().is_some());
        let mut again = budget.freed();
        budget.wake();
        assert!((&mut again).now_or_never().is_some());
        drop((freed, again, charge, unflushed));
        assert_eq!((budget.used(), budget.shared.waiting.get()), (0, 0));
    }

    /// What waits for room is not in the budget, has a limit of its own for all together, and is given back.
    #[test]
    fn backlogs() {
        let budget = budget();
        let max = budget.backlog_max();
        assert_eq!(max, PEER_BACKLOG_BYTES_MAX);
        let (mut one, mut other) = (budget.backlog(), budget.backlog());
        one.resize(max / 2, max).unwrap();
        assert!(other.resize(max / 2 + 1, usize::MAX).is_err());
        assert!(other.resize(1, max / 2).is_err(), "the limit is for all");
        other.resize(max / 2, max).unwrap();
        one.resize(1, 0).unwrap();
        let usage = &budget.shared.usage;
        assert_eq!((usage.backlog(), usage.backlog_peak(), budget.used()), (max / 2 + 1, max, 0));
        drop((one, other));
        assert_eq!((usage.backlog(), Budget::new(100).backlog_max()), (0, 20));
    }

    /// Bytes of another budget do not come in.
    #[test]
    #[should_panic(expected = "bytes stay in their budget")]
    fn of_another() {
        budget().none(Use::Frames).absorb(budget().force(Use::Frames, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize, usize),
        Drop(usize),
        Split(usize, usize),
        Absorb(usize, usize),
        Resize(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (bytes, number) = (0..MEMORY_BYTES_MIN / 3, 0..8usize);
        prop_oneof![
            (0..Use::ALL.len(), bytes.clone()).prop_map(|(usage, bytes)| Step::Take(usage, bytes)),
            number.clone().prop_map(Step::Drop),
            (number.clone(), bytes.clone()).prop_map(|(number, bytes)| Step::Split(number, bytes)),
            (number.clone(), number.clone()).prop_map(|(to, from)| Step::Absorb(to, from)),
            (number, bytes).prop_map(|(number, bytes)| Step::Resize(number, bytes)),
        ]
    }

    proptest! {
        /// Whatever is done: the sums are those of the charges that there are, and never above the class's limit.
        #[test]
        fn sums(steps in proptest::collection::vec(step(), 0..60)) {
            let budget = budget();
            let mut charges: Vec<Charge> = vec![];
            for step in steps {
                let count = charges.len();
                match step {
                    Step::Take(usage, bytes) => charges.extend(budget.take(Use::ALL[usage], Class::Client, bytes)),
                    Step::Drop(number) if number < count => drop(charges.swap_remove(number)),
                    Step::Split(number, bytes) if number < count => {
                        let bytes = bytes.min(charges[number].bytes);
                        let part = charges[number].split(bytes);
                        charges.push(part);
                    }
                    Step::Absorb(to, from) if to < count && from < count && to != from => {
                        let other = charges.remove(from);
                        let to = if to > from { to - 1 } else { to };
                        charges[to].absorb(other);
                    }
                    Step::Resize(number, bytes) if number < count => drop(charges[number].resize(Class::Client, bytes)),
                    Step::Drop(_) | Step::Split(..) | Step::Absorb(..) | Step::Resize(..) => {}
                }
                prop_assert_eq!(budget.used(), charges.iter().map(Charge::bytes).sum::<usize>());
                for usage in Use::ALL {
                    let of_use = charges.iter().filter(|charge| charge.usage == usage).map(Charge::bytes).sum::<usize>();
                    prop_assert_eq!(budget.used_for(usage), of_use);
                }
                prop_assert!(budget.peak() <= budget.limit(Class::Client));
            }
        }
    }
}
