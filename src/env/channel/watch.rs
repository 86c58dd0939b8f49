//! The latest value, seen by many: receivers wake in the order in which they began to wait.

use std::{
    cell::{Cell, Ref, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::{
    Closed,
    waiters::{Ticket, Waiters},
};

struct Shared<T> {
    value: RefCell<T>,
    version: Cell<u64>,
    senders: Cell<usize>,
    receivers: Cell<usize>,
    waiters: RefCell<Waiters>,
}

impl<T> Shared<T> {
    fn wake_all(&self) {
        let woken = self.waiters.borrow_mut().take_all();
        woken.for_each(Waker::wake);
    }
}

/// Sets the value.
pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

/// Sees the value, and waits for a change of it.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
    seen: u64,
}

/// A new channel; its receiver has seen `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let shared = Rc::new(Shared {
        value: RefCell::new(value),
        version: Cell::new(0),
        senders: Cell::new(1),
        receivers: Cell::new(1),
        waiters: RefCell::default(),
    });
    (Sender { shared: shared.clone() }, Receiver { shared, seen: 0 })
}

impl<T> Sender<T> {
    /// Replaces the value and wakes who waits.
    ///
    /// # Errors
    /// Gives it back when there is no receiver.
    ///
    /// # Panics
    /// While somebody holds a borrow of the value.
    pub fn send(&self, value: T) -> Result<(), T> {
        if self.shared.receivers.get() == 0 {
            return Err(value);
        }
        let old = self.shared.value.replace(value);
        self.changed();
        drop(old);
        Ok(())
    }

    /// Changes the value in place, and wakes who waits if `modify` says that it did; returns what it said.
    ///
    /// # Panics
    /// While somebody holds a borrow of the value.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = modify(&mut self.shared.value.borrow_mut());
        if modified {
            self.changed();
        }
        modified
    }

    /// The value; not to be held across an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// A receiver that has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        self.shared.receivers.set(self.shared.receivers.get() + 1);
        Receiver { seen: self.shared.version.get(), shared: self.shared.clone() }
    }

    fn changed(&self) {
        self.shared.version.set(self.shared.version.get() + 1);
        self.shared.wake_all();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.set(self.shared.senders.get() + 1);
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.senders.set(self.shared.senders.get() - 1);
        if self.shared.senders.get() == 0 {
            self.shared.wake_all();
        }
    }
}

impl<T> Receiver<T> {
    /// Suspends until there is a value that this receiver has not seen, and marks it as seen.
    /// `Closed` when there is none and no sender.
    pub fn changed(&mut self) -> Changed<'_, T> {
        Changed { receiver: self, ticket: None }
    }

    /// The value; not to be held across an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// The value, marked as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.version.get();
        self.shared.value.borrow()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.set(self.shared.receivers.get() + 1);
        Receiver { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.set(self.shared.receivers.get() - 1);
    }
}

/// Future of `Receiver::changed`.
pub struct Changed<'a, T> {
    receiver: &'a mut Receiver<T>,
    ticket: Option<Ticket>,
}

impl<T> Changed<'_, T> {
    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let waker = self.receiver.shared.waiters.borrow_mut().remove(ticket);
        drop(waker);
    }
}

impl<T> Future for Changed<'_, T> {
    type Output = Result<(), Closed>;

    // Woken by the next change, and when the last sender goes.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let version = self.receiver.shared.version.get();
        if self.receiver.seen != version {
            self.receiver.seen = version;
            self.leave();
            return Poll::Ready(Ok(()));
        }
        if self.receiver.shared.senders.get() == 0 {
            self.leave();
            return Poll::Ready(Err(Closed));
        }
        let this = &mut *self;
        let mut waiters = this.receiver.shared.waiters.borrow_mut();
        let renewed = this.ticket.and_then(|ticket| waiters.renew(ticket, context.waker()));
        if renewed.is_none() {
            this.ticket = Some(waiters.push(context.waker().clone()));
        }
        drop(waiters);
        drop(renewed);
        Poll::Pending
    }
}

impl<T> Drop for Changed<'_, T> {
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

    /// A change is seen once; values in between are skipped.
    #[test]
    fn latest_value_once() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel(0);
        assert!(poll(&mut receiver.changed(), &waker).is_pending());
        assert_eq!(count.times(), 0);
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(poll(&mut receiver.changed(), &waker), Poll::Ready(Ok(())));
        assert_eq!(*receiver.borrow(), 2);
        assert!(poll(&mut receiver.changed(), &waker).is_pending());
    }

    /// A waiting receiver is woken, and one that stopped waiting is not.
    #[test]
    fn wakes_those_who_wait() {
        let ((first, first_waker), (second, second_waker)) = (counter(), counter());
        let (sender, mut one) = channel(0);
        let mut two = sender.subscribe();
        let mut one_changed = one.changed();
        let mut two_changed = two.changed();
        assert!(poll(&mut one_changed, &first_waker).is_pending());
        assert!(poll(&mut two_changed, &second_waker).is_pending());
        drop(one_changed);
        assert!(sender.send_if_modified(|value| {
            *value = 3;
            true
        }));
        assert_eq!((first.times(), second.times()), (0, 1));
        assert_eq!(poll(&mut two_changed, &second_waker), Poll::Ready(Ok(())));
        assert!(!sender.send_if_modified(|_| false));
        drop(two_changed);
        assert!(poll(&mut two.changed(), &second_waker).is_pending());
    }

    /// The last sender's leaving ends the wait; without receivers a value comes back.
    #[test]
    fn dropped_sides() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel(0);
        let other = sender.clone();
        let mut changed = receiver.changed();
        assert!(poll(&mut changed, &waker).is_pending());
        drop(sender);
        assert_eq!(count.times(), 0);
        drop(other);
        assert_eq!(count.times(), 1);
        assert_eq!(poll(&mut changed, &waker), Poll::Ready(Err(Closed)));

        let (sender, receiver) = channel(0);
        drop(receiver);
        assert_eq!(sender.send(1), Err(1));
        assert_eq!(*sender.borrow(), 0);
    }
}
