//! A waker that remembers instead of waking while its own task is running.
//!
//! h2 wakes the connection's task whenever a call queues a frame, and calls wake it when they
//! become ready; both happen while that very task runs. It learns here that it has to go round once
//! more, instead of being scheduled again for nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::task::Wake;
use std::task::Waker;

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const RUNNING_AND_WOKEN: u8 = 2;

/// Wakes `task`, but not while it runs.
#[derive(Debug)]
pub(super) struct Turn {
    task: Waker,
    state: AtomicU8,
}

impl Turn {
    /// For the task of that waker, which is idle.
    pub(super) fn new(task: Waker) -> Arc<Turn> {
        Arc::new(Turn { task, state: AtomicU8::new(IDLE) })
    }

    /// Whether it is for the task of that waker.
    pub(super) fn is_for(&self, task: &Waker) -> bool {
        self.task.will_wake(task)
    }

    /// The task runs: wakes are remembered from here on.
    pub(super) fn begin(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Whether there was a wake since `begin` or the last call; forgets it.
    pub(super) fn take_woken(&self) -> bool {
        self.state.swap(RUNNING, Ordering::AcqRel) == RUNNING_AND_WOKEN
    }

    /// The task stops running. A wake that it has not taken reaches it now.
    pub(super) fn end(&self) {
        if self.state.swap(IDLE, Ordering::AcqRel) == RUNNING_AND_WOKEN {
            self.task.wake_by_ref();
        }
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken = |state| (state != IDLE).then_some(RUNNING_AND_WOKEN);
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, woken).is_err() {
            self.task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Idle: woken at once. Running: remembered, taken once, or passed on at the end.
    #[test]
    fn no_wake_is_lost() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let turn = Turn::new(Waker::from(count.clone()));
        let waker = Waker::from(turn.clone());
        let woken = || count.0.load(Ordering::SeqCst);

        waker.wake_by_ref();
        assert_eq!(woken(), 1);

        turn.begin();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
        assert!(turn.take_woken());
        assert!(!turn.take_woken());
        turn.end();
        assert_eq!(woken(), 1);

        turn.begin();
        waker.wake_by_ref();
        turn.end();
        assert_eq!(woken(), 2);
        waker.wake_by_ref();
        assert_eq!(woken(), 3);
    }
}
