//! "Something changed, look again": wakes one or all who wait, and loses no wake-up.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use super::waiters::{Ticket, Waiters};

#[derive(Default)]
struct Shared {
    waiters: RefCell<Waiters>,
    /// `notify_one` found nobody: the next who waits need not.
    permit: Cell<bool>,
    /// Number of `notify_all` calls.
    rounds: Cell<u64>,
}

impl Shared {
    fn notify_one(&self) {
        let waker = self.waiters.borrow_mut().grant_first();
        match waker {
            Some(waker) => waker.wake(),
            None => self.permit.set(true),
        }
    }
}

/// Wakes tasks; clones are handles to the same.
#[derive(Clone, Default)]
pub struct Notify {
    shared: Rc<Shared>,
}

impl Notify {
    /// Nobody waits, nothing has happened.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes the one who waits longest; if nobody does, the next who comes does not wait (one, however often this
    /// was called meanwhile).
    pub fn notify_one(&self) {
        self.shared.notify_one();
    }

    /// Wakes all whose `notified()` was called before.
    pub fn notify_all(&self) {
        self.shared.rounds.set(self.shared.rounds.get() + 1);
        let woken = self.shared.waiters.borrow_mut().take_all();
        woken.for_each(Waker::wake);
    }

    /// Suspends until notified; a `notify_all` counts from this call on, even before the first poll. So: call this,
    /// look at the condition, await.
    pub fn notified(&self) -> Notified {
        Notified { rounds: self.shared.rounds.get(), shared: self.shared.clone(), ticket: None, done: false }
    }

    /// Ready when a condition, of whose changes this tells, holds no more. Pending, it is woken to look again; `waits` is its
    /// place meanwhile, belongs to nobody else, and is empty when this is Ready.
    pub fn poll_while(
        &self,
        waits: &mut Option<Notified>,
        holds: impl Fn() -> bool,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        while holds() {
            let notified = waits.get_or_insert_with(|| self.notified());
            ready!(Pin::new(notified).poll(context));
            *waits = None;
        }
        // The condition ended before this one was woken: a later wake-up is for another, and one that it got is handed on.
        *waits = None;
        Poll::Ready(())
    }
}

/// Future of `Notify::notified`; keeps no borrow. Dropped, it hands on a `notify_one` that it did not use.
pub struct Notified {
    shared: Rc<Shared>,
    rounds: u64,
    ticket: Option<Ticket>,
    done: bool,
}

impl Future for Notified {
    type Output = ();

    // Woken by `notify_all`, and by `notify_one` in its turn.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(());
        }
        if this.shared.rounds.get() != this.rounds {
            // Hands a `notify_one` on that came first.
            this.leave();
            this.done = true;
            return Poll::Ready(());
        }
        let mut waiters = this.shared.waiters.borrow_mut();
        let granted = match this.ticket {
            Some(ticket) => waiters.take_granted(ticket),
            None => this.shared.permit.take(),
        };
        if granted {
            this.done = true;
            this.ticket = None;
            return Poll::Ready(());
        }
        let renewed = this.ticket.and_then(|ticket| waiters.renew(ticket, context.waker()));
        if renewed.is_none() {
            this.ticket = Some(waiters.push(context.waker().clone()));
        }
        drop(waiters);
        drop(renewed);
        Poll::Pending
    }
}

impl Notified {
    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (waker, granted) = {
            let mut waiters = self.shared.waiters.borrow_mut();
            (waiters.remove(ticket), waiters.take_granted(ticket))
        };
        drop(waker);
        if granted {
            self.shared.notify_one();
        }
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{counter, poll},
        *,
    };

    /// One at a time, in order; a wake-up without a waiter is kept, once.
    #[test]
    fn one_by_one() {
        let ((first, first_waker), (second, second_waker)) = (counter(), counter());
        let notify = Notify::new();
        let (mut one, mut two) = (notify.notified(), notify.notified());
        assert!(poll(&mut two, &second_waker).is_pending());
        assert!(poll(&mut one, &first_waker).is_pending());
        notify.notify_one();
        assert_eq!((first.times(), second.times()), (0, 1), "the first to wait wakes first");
        assert!(poll(&mut two, &second_waker).is_ready());
        notify.notify_one();
        assert!(poll(&mut one, &first_waker).is_ready());
        notify.notify_one();
        notify.notify_one();
        assert!(poll(&mut notify.notified(), &first_waker).is_ready());
        assert!(poll(&mut notify.notified(), &first_waker).is_pending());
    }

    /// Who is dropped after it was chosen hands the wake-up on.
    #[test]
    fn dropped_after_grant() {
        let ((_, first_waker), (second, second_waker)) = (counter(), counter());
        let notify = Notify::new();
        let (mut one, mut two) = (notify.notified(), notify.notified());
        assert!(poll(&mut one, &first_waker).is_pending());
        assert!(poll(&mut two, &second_waker).is_pending());
        notify.notify_one();
        drop(one);
        assert_eq!(second.times(), 1);
        assert!(poll(&mut two, &second_waker).is_ready());
    }

    /// Who goes on without having been woken, as the condition holds no more, waits no longer: the next wake-up is another's.
    #[test]
    fn goes_on_unwoken() {
        let (first, second) = (counter(), counter());
        let notify = Notify::new();
        let (mut one, mut two) = (None, None);
        let poll_while = |waits: &mut Option<Notified>, holds, (_, waker): &(_, Waker)| {
            notify.poll_while(waits, || holds, &mut Context::from_waker(waker)).is_ready()
        };
        assert!(!poll_while(&mut one, true, &first) && !poll_while(&mut two, true, &second));
        assert!(poll_while(&mut one, false, &first));
        notify.notify_one();
        assert_eq!((first.0.times(), second.0.times()), (0, 1));
        assert!(!poll_while(&mut one, true, &first) && poll_while(&mut two, false, &second));
    }

    /// `notify_all` reaches those who asked before it, polled or not, and nobody after it.
    #[test]
    fn all() {
        let (count, waker) = counter();
        let notify = Notify::new();
        let (mut polled, mut fresh) = (notify.notified(), notify.notified());
        assert!(poll(&mut polled, &waker).is_pending());
        notify.notify_all();
        assert_eq!(count.times(), 1);
        assert!(poll(&mut polled, &waker).is_ready());
        assert!(poll(&mut fresh, &waker).is_ready());
        assert!(poll(&mut notify.notified(), &waker).is_pending());
    }
}
