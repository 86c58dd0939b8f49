//! Channels between the tasks of one thread: `Rc` and cells instead of locks and atomics.
//!
//! Raft's turn costs about half with these of what it costs with a runtime's own channels,
//! and they allocate as they fill, which matters with a thousand idle groups.
//!
//! Promises, in all of them: waiters wake in the order in which they began to wait; a waiter that is
//! dropped leaves nothing behind, and hands on what it had been given; no user code (a message's
//! `Drop`, a waker) runs while a channel's state is borrowed, so it may use the same channel.
//!
//! Not done here: nothing is `Send`, and there is no fairness budget: a task that always finds
//! a message ready never suspends.

mod mpsc;
mod mutex;
mod notify;
mod oneshot;
mod slots;
mod waiters;
mod watch;

pub use mpsc::{Receiver, Recv, Send, Sender, TryRecvError, TrySendError, WeakSender, channel as mpsc};
pub use mutex::{Guard, Lock, Mutex};
pub use notify::{Notified, Notify};
pub use oneshot::{Receiver as OneshotReceiver, Sender as OneshotSender, channel as oneshot};
pub use slots::{Claim, Slots};
pub(crate) use waiters::{Ticket, Waiters};
pub use watch::{Changed, Receiver as WatchReceiver, Sender as WatchSender, channel as watch};

/// The other side of a channel is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side of the channel is gone")]
pub struct Closed;

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        future::Future,
        pin::pin,
        rc::Rc,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
    };

    /// A waker that counts.
    #[derive(Default)]
    pub(super) struct Count(AtomicUsize);

    impl Count {
        pub(super) fn times(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    /// Polls once.
    pub(super) fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
        pin!(future).poll(&mut Context::from_waker(waker))
    }

    /// Runs something when it is dropped.
    pub(super) struct OnDrop(pub(super) Option<Box<dyn FnOnce()>>);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            if let Some(run) = self.0.take() {
                run();
            }
        }
    }

    /// A message that uses its own channel while it is dropped finds the channel usable.
    #[test]
    fn a_message_dropped_by_its_channel_may_use_it() {
        let (sender, receiver) = super::mpsc::<OnDrop>(4);
        let seen = Rc::new(RefCell::new(None));
        let (inner, outcome) = (sender.clone(), seen.clone());
        let message = OnDrop(Some(Box::new(move || {
            *outcome.borrow_mut() = Some(inner.try_send(OnDrop(None)).is_err());
        })));
        assert!(sender.try_send(message).is_ok());
        drop(receiver);
        assert_eq!(*seen.borrow(), Some(true), "the channel was closed already, and could be asked");
    }
}
