//! How far a node is, for all its threads, and who waits for that.
//!
//! Not a `watch` of tokio: that wakes its waiters in random order, and the calls of one connection, which all wait for the
//! node to drain, run in the order in which they were woken. Here it is the order in which they began to wait.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// What a node is doing. It only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// A node's phase. When it is dropped, every phase is reached.
#[derive(Debug)]
pub(super) struct Phases(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    now: Phase,
    key_next: u64,
    /// One for each call that waits; woken and removed by every change.
    waiters: BTreeMap<u64, Waker>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing in here panics half-way.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Phases {
    fn default() -> Phases {
        let state = State { now: Phase::Starting, key_next: 0, waiters: BTreeMap::new() };
        Phases(Arc::new(Mutex::new(state)))
    }
}

impl Phases {
    pub(super) fn now(&self) -> Phase {
        lock(&self.0).now
    }

    /// Moves on to `phase`; never back.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = lock(&self.0);
        if phase <= state.now {
            return;
        }
        state.now = phase;
        let waiters = mem::take(&mut state.waiters);
        drop(state);
        waiters.into_values().for_each(Waker::wake);
    }

    /// Resolves when `phase`, or one after it, is reached.
    pub(super) fn reached(&self, phase: Phase) -> Reached {
        Reached { phases: Arc::clone(&self.0), phase, key: None }
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.enter(Phase::Closing);
    }
}

/// See `Phases::reached`.
pub(super) struct Reached {
    phases: Arc<Mutex<State>>,
    phase: Phase,
    /// Under which it waits.
    key: Option<u64>,
}

impl Future for Reached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let phases = Arc::clone(&self.phases);
        let mut state = lock(&phases);
        if state.now >= self.phase {
            return Poll::Ready(());
        }
        let key = *self.key.get_or_insert_with(|| {
            state.key_next += 1;
            state.key_next
        });
        state.waiters.insert(key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = lock(&self.phases).waiters.remove(&key);
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

    /// Whoever waits when the node is gone waits no more.
    #[test]
    fn the_end_is_every_phase() {
        let phases = Phases::default();
        let mut reached = phases.reached(Phase::Closing);
        drop(phases);
        assert!(Pin::new(&mut reached).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
