//! So many may do something at a time. The others wait, and get a slot in the order of asking.
//!
//! A slot that is given back while somebody waits is handed on: nobody who asks in between gets it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
};

use super::waiters::{Ticket, Waiters};

/// The slots; clones are the same.
#[derive(Clone)]
pub struct Slots(Rc<Shared>);

struct Shared {
    /// Slots that nobody has, and that were not handed to one who has not looked yet. While there are any, nobody waits.
    free: Cell<usize>,
    waiters: RefCell<Waiters>,
}

/// A slot, or the wait for one. Dropped, it leaves, and hands on what it had been given.
#[derive(Default)]
pub struct Claim(State);

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Waits(Rc<Shared>, Ticket),
    Has(Rc<Shared>),
}

impl Slots {
    /// So many, all free.
    pub fn new(count: usize) -> Slots {
        Slots(Rc::new(Shared { free: Cell::new(count), waiters: RefCell::default() }))
    }

    /// Ready when `claim` has a slot. Pending, it waits, and `context` is woken when it has been handed one.
    ///
    /// # Panics
    /// When `claim` has or awaits a slot of others: whom those wake would wait here.
    pub fn poll_take(&self, claim: &mut Claim, context: &mut Context<'_>) -> Poll<()> {
        let shared = &self.0;
        if let State::Waits(own, _) | State::Has(own) = &claim.0 {
            assert!(Rc::ptr_eq(own, shared), "the claim is to other slots");
        }
        let mut waiters = shared.waiters.borrow_mut();
        match claim.0 {
            State::Has(_) => {}
            State::Idle if !shared.take_free() => {
                let ticket = waiters.push(context.waker().clone());
                claim.0 = State::Waits(Rc::clone(shared), ticket);
                return Poll::Pending;
            }
            State::Waits(_, ticket) if !waiters.take_granted(ticket) => {
                let former = waiters.renew(ticket, context.waker());
                drop(waiters);
                drop(former);
                return Poll::Pending;
            }
            State::Idle | State::Waits(..) => claim.0 = State::Has(Rc::clone(shared)),
        }
        Poll::Ready(())
    }

    /// Waits for a slot. Cancelled, it leaves.
    pub async fn take(&self) -> Claim {
        let mut claim = Claim::default();
        poll_fn(|context| self.poll_take(&mut claim, context)).await;
        claim
    }

    /// How many are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.free.get()
    }
}

impl Claim {
    /// Whether it has a slot, and knows.
    #[cfg(test)]
    pub(crate) fn has_slot(&self) -> bool {
        matches!(self.0, State::Has(_))
    }
}

impl Shared {
    fn take_free(&self) -> bool {
        let Some(left) = self.free.get().checked_sub(1) else { return false };
        self.free.set(left);
        true
    }

    /// Hands a slot to the next who waits, or frees it.
    fn hand_on(&self) {
        let waker = self.waiters.borrow_mut().grant_first();
        match waker {
            Some(waker) => waker.wake(),
            None => self.free.set(self.free.get() + 1),
        }
    }

    /// One who waits does so no more.
    fn leave(&self, ticket: Ticket) {
        let (waker, is_granted) = {
            let mut waiters = self.waiters.borrow_mut();
            (waiters.remove(ticket), waiters.take_granted(ticket))
        };
        drop(waker);
        if is_granted {
            self.hand_on();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        match &self.0 {
            State::Idle => {}
            State::Waits(shared, ticket) => shared.leave(*ticket),
            State::Has(shared) => shared.hand_on(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::{super::tests::counter, *};

    fn take(slots: &Slots, claim: &mut Claim, waker: &Waker) -> bool {
        slots.poll_take(claim, &mut Context::from_waker(waker)).is_ready()
    }

    /// So many at a time, in the order of asking; nobody overtakes a waiter that was handed a slot.
    #[test]
    fn in_order() {
        let wakers = [(); 5].map(|()| counter());
        let woken = || wakers.each_ref().map(|(count, _)| count.times());
        let slots = Slots::new(2);
        let mut claims = [(); 5].map(|()| Claim::default());
        let taken: Vec<_> =
            claims.iter_mut().zip(&wakers).map(|(claim, (_, waker))| take(&slots, claim, waker)).collect();
        assert_eq!(taken, [true, true, false, false, false]);
        let [a, b, c, d, e] = &mut claims;
        assert!(take(&slots, a, &wakers[0].1), "it has one already");
        *a = Claim::default();
        assert_eq!(woken(), [0, 0, 1, 0, 0]);
        assert!(!take(&slots, a, &wakers[0].1) && !take(&slots, d, &wakers[3].1), "it is handed to c");
        assert!(take(&slots, c, &wakers[2].1));
        *b = Claim::default();
        *c = Claim::default();
        assert_eq!(woken(), [0, 0, 1, 1, 1]);
        assert!(take(&slots, e, &wakers[4].1) && take(&slots, d, &wakers[3].1) && !take(&slots, a, &wakers[0].1));
        *e = Claim::default();
        assert!(take(&slots, a, &wakers[0].1));
        assert_eq!(slots.free(), 0);
        drop(claims);
        assert_eq!(slots.free(), 2);
    }

    /// Who leaves while it waits is not handed a slot, and one that it was handed goes to the next.
    #[test]
    fn leaving() {
        let ((_, waker), (last, last_waker)) = (counter(), counter());
        let slots = Slots::new(1);
        let [mut a, mut b, mut c, mut d] = [(); 4].map(|()| Claim::default());
        assert!(take(&slots, &mut a, &waker));
        assert!(!take(&slots, &mut b, &waker) && !take(&slots, &mut c, &waker) && !take(&slots, &mut d, &last_waker));
        drop(b);
        drop(a);
        assert_eq!(last.times(), 0);
        drop(c);
        assert_eq!(last.times(), 1);
        assert!(take(&slots, &mut d, &last_waker));
        drop(d);
        assert_eq!(slots.free(), 1);
    }
}
