//! How far a node is, for all its threads, and who waits for that.
//!
//! Not a `watch` of tokio: that wakes its waiters in random order, and the calls of one connection, which all wait for the
//! node to drain, run in the order in which they were woken. Here it is the order in which they began to wait.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// What a node is doing. It only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Recovering; the front doors are shut.
    Starting,
    /// Serving.
    Serving,
    /// Leaders move to other nodes; everything is still served.
    Leaving,
    /// No new connections; those that there are finish what they have.
    Draining,
    /// Shards close.
    Closing,
}

impl Phase {
    /// By number.
    const ALL: [Phase; 5] = [Phase::Starting, Phase::Serving, Phase::Leaving, Phase::Draining, Phase::Closing];
}

/// A node's phase. When it is dropped, every phase is reached.
#[derive(Debug, Default)]
pub(super) struct Phases(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// A `Phase`; changed while `waiters` is locked. Calls that wait look at it whenever they run, on all reactors.
    now: AtomicU8,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    key_next: u64,
    /// One for each call that waits; woken and removed by every change.
    wakers: BTreeMap<u64, Waker>,
}

impl Shared {
    fn now(&self) -> u8 {
        self.now.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // Nothing in here panics half-way.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phases {
    pub(super) fn now(&self) -> Phase {
        Phase::ALL[usize::from(self.0.now())]
    }

    /// Moves on to `phase`; never back.
    pub(super) fn enter(&self, phase: Phase) {
        let mut waiters = self.0.lock();
        if phase as u8 <= self.0.now() {
            return;
        }
        self.0.now.store(phase as u8, Ordering::Release);
        let woken = mem::take(&mut waiters.wakers);
        drop(waiters);
        woken.into_values().for_each(Waker::wake);
    }

    /// Resolves when `phase`, or one after it, is reached.
    pub(super) fn reached(&self, phase: Phase) -> Reached {
        Reached { shared: Arc::clone(&self.0), phase, key: None, registered: None }
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.enter(Phase::Closing);
    }
}

/// See `Phases::reached`.
pub(super) struct Reached {
    shared: Arc<Shared>,
    phase: Phase,
    /// Under which it waits.
    key: Option<u64>,
    /// In which phase it has registered, and whom.
    registered: Option<(u8, Waker)>,
}

impl Future for Reached {
    type Output = ();

    // Woken by `enter`. Without a change since it has registered, no lock is taken.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Reached { shared, phase, key, registered } = self.get_mut();
        let now = shared.now();
        if now >= *phase as u8 {
            return Poll::Ready(());
        }
        if registered.as_ref().is_some_and(|(seen, waker)| *seen == now && waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let mut waiters = shared.lock();
        let now = shared.now();
        if now >= *phase as u8 {
            return Poll::Ready(());
        }
        let key = *key.get_or_insert_with(|| {
            waiters.key_next += 1;
            waiters.key_next
        });
        waiters.wakers.insert(key, cx.waker().clone());
        *registered = Some((now, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.shared.lock().wakers.remove(&key);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Noted(u64, Arc<Mutex<Vec<u64>>>);

    impl Wake for Noted {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    /// Waiters are woken in the order in which they began to wait, those that are gone not at all.
    #[test]
    fn wakes_in_order() {
        let (phases, woken) = (Phases::default(), Arc::default());
        let mut waiting: Vec<_> = (0..20).map(|_| phases.reached(Phase::Draining)).collect();
        let poll = |(number, reached): (usize, &mut Reached)| {
            let waker = Waker::from(Arc::new(Noted(number as u64, Arc::clone(&woken))));
            Pin::new(reached).poll(&mut Context::from_waker(&waker))
        };
        assert!(waiting.iter_mut().enumerate().all(|reached| poll(reached).is_pending()));
        waiting.remove(7);
        phases.enter(Phase::Serving);
        phases.enter(Phase::Draining);
        let expected: Vec<u64> = (0..20).filter(|number| *number != 7).collect();
        assert_eq!(*woken.lock().unwrap(), expected);
        assert!(waiting.iter_mut().enumerate().all(|reached| poll(reached).is_ready()));
    }

    /// A waiter that is polled again registers once for each phase and waker, and the last waker is the one that is woken.
    #[test]
    fn registers_again_when_needed() {
        let (phases, woken) = (Phases::default(), Arc::default());
        let mut reached = phases.reached(Phase::Draining);
        let mut poll = |number| {
            let waker = Waker::from(Arc::new(Noted(number, Arc::clone(&woken))));
            let mut context = Context::from_waker(&waker);
            (0..2).map(|_| Pin::new(&mut reached).poll(&mut context).is_ready()).collect::<Vec<_>>()
        };
        assert_eq!([poll(1), poll(2)], [[false, false], [false, false]]);
        phases.enter(Phase::Serving);
        assert_eq!(poll(3), [false, false]);
        phases.enter(Phase::Leaving);
        assert_eq!(poll(4), [false, false]);
        phases.enter(Phase::Closing);
        assert_eq!(poll(5), [true, true]);
        assert_eq!(*woken.lock().unwrap(), [2, 3, 4]);
        drop(reached);
        assert!(phases.0.lock().wakers.is_empty());
    }

    /// Whoever waits when the node is gone waits no more.
    #[test]
    fn the_end_is_every_phase() {
        let phases = Phases::default();
        let mut reached = phases.reached(Phase::Closing);
        drop(phases);
        assert!(Pin::new(&mut reached).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
