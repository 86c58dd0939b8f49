//! A lock that may be held across an await, handed on in the order of asking.

use std::{
    cell::{Cell, RefCell, RefMut},
    future::Future,
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll},
};

use super::waiters::{Ticket, Waiters};

/// The lock.
#[derive(Default)]
pub struct Mutex<T> {
    value: RefCell<T>,
    /// Held, or handed to a waiter that has not run yet.
    locked: Cell<bool>,
    waiters: RefCell<Waiters>,
}

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub fn new(value: T) -> Mutex<T> {
        Mutex { value: RefCell::new(value), locked: Cell::new(false), waiters: RefCell::default() }
    }

    /// Suspends until the lock is ours.
    pub fn lock(&self) -> Lock<'_, T> {
        Lock { mutex: self, ticket: None }
    }

    fn guard(&self) -> Guard<'_, T> {
        debug_assert!(self.locked.get());
        Guard { value: Some(self.value.borrow_mut()), mutex: self }
    }

    /// Hands the lock to the next who waits, or frees it.
    fn hand_on(&self) {
        let waker = self.waiters.borrow_mut().grant_first();
        match waker {
            Some(waker) => waker.wake(),
            None => self.locked.set(false),
        }
    }
}

/// Future of `Mutex::lock`.
pub struct Lock<'a, T> {
    mutex: &'a Mutex<T>,
    ticket: Option<Ticket>,
}

impl<'a, T> Future for Lock<'a, T> {
    type Output = Guard<'a, T>;

    // Woken when the lock is handed to it (`hand_on`).
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mutex = this.mutex;
        let mut waiters = mutex.waiters.borrow_mut();
        let ours = match this.ticket {
            Some(ticket) => waiters.take_granted(ticket),
            None => !mutex.locked.replace(true),
        };
        if ours {
            this.ticket = None;
            drop(waiters);
            return Poll::Ready(mutex.guard());
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

impl<T> Drop for Lock<'_, T> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (waker, granted) = {
            let mut waiters = self.mutex.waiters.borrow_mut();
            (waiters.remove(ticket), waiters.take_granted(ticket))
        };
        drop(waker);
        if granted {
            self.mutex.hand_on();
        }
    }
}

/// The lock is held while this lives.
pub struct Guard<'a, T> {
    value: Option<RefMut<'a, T>>,
    mutex: &'a Mutex<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("only drop takes it")
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("only drop takes it")
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.mutex.hand_on();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{counter, poll},
        *,
    };

    /// One holder at a time, in the order of asking; nobody overtakes a waiter that was chosen.
    #[test]
    fn in_order() {
        let ((first, first_waker), (second, second_waker)) = (counter(), counter());
        let mutex = Mutex::new(0);
        let Poll::Ready(mut guard) = poll(&mut mutex.lock(), &first_waker) else { panic!("the lock is free") };
        *guard = 1;
        let (mut one, mut two) = (mutex.lock(), mutex.lock());
        assert!(poll(&mut one, &first_waker).is_pending());
        assert!(poll(&mut two, &second_waker).is_pending());
        drop(guard);
        assert_eq!((first.times(), second.times()), (1, 0));
        assert!(poll(&mut mutex.lock(), &second_waker).is_pending(), "the lock is promised already");
        let Poll::Ready(guard) = poll(&mut one, &first_waker) else { panic!("it was promised to this one") };
        assert_eq!(*guard, 1);
        drop(guard);
        assert_eq!(second.times(), 1);
        assert!(poll(&mut two, &second_waker).is_ready());
        assert!(poll(&mut mutex.lock(), &first_waker).is_ready(), "free again");
    }

    /// A waiter that is dropped after it was chosen hands the lock on.
    #[test]
    fn dropped_after_grant() {
        let ((_, first_waker), (second, second_waker)) = (counter(), counter());
        let mutex = Mutex::new(());
        let Poll::Ready(guard) = poll(&mut mutex.lock(), &first_waker) else { panic!("the lock is free") };
        let (mut one, mut two) = (mutex.lock(), mutex.lock());
        assert!(poll(&mut one, &first_waker).is_pending());
        assert!(poll(&mut two, &second_waker).is_pending());
        drop(guard);
        drop(one);
        assert_eq!(second.times(), 1);
        assert!(poll(&mut two, &second_waker).is_ready());
    }
}
