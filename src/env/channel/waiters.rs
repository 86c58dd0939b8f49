//! Who waits for what, first come first served: the queue behind `watch`, `Notify`, `Mutex` and `Slots`, and for whoever else
//! hands things out in turn. Thousands may wait, and leave in any order: to find one takes logarithmic time, and to take it out
//! constant time on average.
//!
//! A waiter has a ticket. It is in the queue, or has been granted what it waits for and not looked yet,
//! or it is unknown (never queued, or woken for nothing in particular by `take_all`).

use std::{collections::VecDeque, task::Waker};

/// A waiter's name; never reused within its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The queue. Wakers are handed out rather than woken or dropped here, so that the caller can do both
/// after it gave up its borrow.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    ticket_next: u64,
    /// Ascending tickets; without a waker, who has left. The first one has not, and at most half of them have.
    queue: VecDeque<(Ticket, Option<Waker>)>,
    /// How many in the queue have left.
    gone: usize,
    /// Granted, and not taken yet: as long as the number of woken tasks that have not run.
    granted: Vec<Ticket>,
}

impl Waiters {
    /// Adds a waiter at the end.
    pub(crate) fn push(&mut self, waker: Waker) -> Ticket {
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        self.queue.push_back((ticket, Some(waker)));
        ticket
    }

    /// Whether it is still queued; if so its waker becomes `waker`, and the old one is returned.
    pub(crate) fn renew(&mut self, ticket: Ticket, waker: &Waker) -> Option<Option<Waker>> {
        let at = self.find(ticket)?;
        let present = self.queue[at].1.as_mut()?;
        if present.will_wake(waker) {
            return Some(None);
        }
        Some(Some(std::mem::replace(present, waker.clone())))
    }

    /// The one who waits longest.
    pub(crate) fn first(&self) -> Option<(Ticket, &Waker)> {
        let (ticket, waker) = self.queue.front()?;
        waker.as_ref().map(|waker| (*ticket, waker))
    }

    /// Takes that one out of the queue.
    pub(crate) fn take_first(&mut self) -> Option<(Ticket, Waker)> {
        let (ticket, waker) = self.queue.pop_front()?;
        self.forget_gone();
        waker.map(|waker| (ticket, waker))
    }

    /// Grants the first waiter what it waits for.
    pub(super) fn grant_first(&mut self) -> Option<Waker> {
        let (ticket, waker) = self.take_first()?;
        self.granted.push(ticket);
        Some(waker)
    }

    /// Whether it was granted; forgets that it was.
    pub(super) fn take_granted(&mut self, ticket: Ticket) -> bool {
        let Some(at) = self.granted.iter().position(|granted| *granted == ticket) else { return false };
        self.granted.swap_remove(at);
        true
    }

    /// Takes a waiter out of the queue.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<Waker> {
        let at = self.find(ticket)?;
        let waker = self.queue[at].1.take()?;
        self.gone += 1;
        self.forget_gone();
        Some(waker)
    }

    /// Takes all out of the queue, in order, granting nothing.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.gone = 0;
        std::mem::take(&mut self.queue).into_iter().filter_map(|(_, waker)| waker)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.len() - self.gone
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.queue.binary_search_by_key(&ticket, |(queued, _)| *queued).ok()
    }

    /// To move all behind each one that leaves took most of a node's time when thousands left.
    fn forget_gone(&mut self) {
        while self.queue.front().is_some_and(|(_, waker)| waker.is_none()) {
            self.queue.pop_front();
            self.gone -= 1;
        }
        if self.gone > self.queue.len() / 2 {
            self.queue.retain(|(_, waker)| waker.is_some());
            self.gone = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever leaves, from anywhere and in any order, the others are found and come in order; those who left do not pile up.
    #[test]
    fn leaving() {
        const MANY: usize = 1_000;
        let mut waiters = Waiters::default();
        let tickets: Vec<_> = (0..MANY).map(|_| waiters.push(Waker::noop().clone())).collect();
        // 389 and the number of them have no divisor in common: each one comes once.
        let leaves = (0..MANY).map(|n| n * 389 % MANY);
        for (left, at) in leaves.take(MANY - 7).enumerate() {
            assert!(waiters.remove(tickets[at]).is_some() && waiters.remove(tickets[at]).is_none());
            assert!(waiters.renew(tickets[at], Waker::noop()).is_none());
            assert_eq!(waiters.len(), MANY - left - 1);
            assert!(waiters.queue.len() <= 2 * waiters.len());
            assert!(waiters.first().is_some());
        }
        let mut stayed: Vec<_> = (MANY - 7..MANY).map(|n| tickets[n * 389 % MANY]).collect();
        stayed.sort();
        assert!(stayed.iter().all(|ticket| waiters.renew(*ticket, Waker::noop()).is_some()));
        let first = waiters.take_first().map(|(ticket, _)| ticket);
        assert!(first == Some(stayed[0]) && waiters.grant_first().is_some() && waiters.take_granted(stayed[1]));
        assert_eq!(waiters.take_all().count(), 5);
        assert!(waiters.len() == 0 && waiters.first().is_none());
    }
}
