//! Who waits for what, first come first served: the queue behind `watch`, `Notify` and `Mutex`.
//!
//! A waiter has a key. It is in the queue, or has been granted what it waits for and not looked yet,
//! or it is unknown (never queued, or woken for nothing in particular by `take_all`).

use std::{collections::VecDeque, task::Waker};

/// A waiter's name; never reused within its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

/// The queue. Wakers are handed out rather than woken or dropped here, so that the caller can do both
/// after it gave up its borrow.
#[derive(Default)]
pub(super) struct Waiters {
    key_next: u64,
    /// Ascending keys.
    queue: VecDeque<(Key, Waker)>,
    /// Granted, and not taken yet: as long as the number of woken tasks that have not run.
    granted: Vec<Key>,
}

impl Waiters {
    /// Adds a waiter at the end.
    pub(super) fn push(&mut self, waker: Waker) -> Key {
        let key = Key(self.key_next);
        self.key_next += 1;
        self.queue.push_back((key, waker));
        key
    }

    /// Whether it is still queued; if so its waker becomes `waker`, and the old one is returned.
    pub(super) fn renew(&mut self, key: Key, waker: &Waker) -> Option<Option<Waker>> {
        let at = self.find(key)?;
        let present = &mut self.queue[at].1;
        if present.will_wake(waker) {
            return Some(None);
        }
        Some(Some(std::mem::replace(present, waker.clone())))
    }

    /// Grants the first waiter what it waits for.
    pub(super) fn grant_first(&mut self) -> Option<Waker> {
        let (key, waker) = self.queue.pop_front()?;
        self.granted.push(key);
        Some(waker)
    }

    /// Whether it was granted; forgets that it was.
    pub(super) fn take_granted(&mut self, key: Key) -> bool {
        let Some(at) = self.granted.iter().position(|granted| *granted == key) else { return false };
        self.granted.swap_remove(at);
        true
    }

    /// Takes a waiter out of the queue.
    pub(super) fn remove(&mut self, key: Key) -> Option<Waker> {
        let at = self.find(key)?;
        self.queue.remove(at).map(|(_, waker)| waker)
    }

    /// Takes all out of the queue, in order, granting nothing.
    pub(super) fn take_all(&mut self) -> VecDeque<(Key, Waker)> {
        std::mem::take(&mut self.queue)
    }

    fn find(&self, key: Key) -> Option<usize> {
        self.queue.binary_search_by_key(&key, |(queued, _)| *queued).ok()
    }
}
