//! Answers what waits in a shard's queue past its time: entries in flight may wait for a majority, and nothing looks at the
//! queue meanwhile. So the caller hears that nothing was written, and not only that time is up.
//!
//! A task looks when the first of them is due, and ends when none has a deadline. What is gathered in time leaves it a look in
//! vain: one in as long as requests may take.

use std::{
    cell::Cell,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};

use futures_util::future::select;

use super::{Inner, ShardError};
use crate::env::{self, Env, channel::Notify};

/// How long before its deadline a request that still waits is answered, at most.
const MARGIN_US: u64 = 20_000;

/// The queue is not gone through more often, whatever deadlines there are.
const PAUSE_US: u64 = 5_000;

/// A look at least so often: the task of a shard that is closed ends with it.
const LOOK_US: u64 = 60_000_000;

/// By when a request is answered that came at `queued_us` and has this deadline, if it still waits.
pub fn due_us(deadline_us: u64, queued_us: u64) -> u64 {
    let margin_us = (deadline_us.saturating_sub(queued_us) / 10).min(MARGIN_US);
    deadline_us - margin_us.min(deadline_us)
}

/// When the queue is looked at next.
#[derive(Default)]
pub(super) struct Expiry {
    /// `None`: there is no task.
    next_us: Cell<Option<u64>>,
    looked_us: Cell<u64>,
    /// It is to be looked at earlier.
    earlier: Notify,
}

impl<E: Env> Inner<E> {
    /// Sees to it that what waits is answered when it is due.
    pub(super) fn expire_later(self: &Rc<Self>) {
        let Some(due_us) = self.state.borrow().due_us() else { return };
        let due_us = due_us.max(self.expiry.looked_us.get().saturating_add(PAUSE_US));
        match self.expiry.next_us.get() {
            Some(next_us) if next_us <= due_us => {}
            Some(_) => {
                self.expiry.next_us.set(Some(due_us));
                self.expiry.earlier.notify_one();
            }
            None => {
                self.expiry.next_us.set(Some(due_us));
                env::spawn::<E>(expire(Rc::downgrade(self)));
            }
        }
    }
}

async fn expire<E: Env>(shard: Weak<Inner<E>>) {
    while let Some(inner) = shard.upgrade() {
        let expiry = &inner.expiry;
        let now_us = E::monotonic_us();
        if expiry.next_us.get().is_some_and(|next_us| next_us <= now_us) {
            expiry.looked_us.set(now_us);
            let expired = inner.state.borrow_mut().take_due(now_us);
            for waiting in expired {
                inner.metrics.refused_deadline.increment(1);
                waiting.answer(Err(ShardError::Deadline));
            }
            inner.idle.notify_all();
            let due_us = inner.state.borrow().due_us();
            expiry.next_us.set(due_us.map(|due_us| due_us.max(now_us + PAUSE_US)));
        }
        let Some(next_us) = expiry.next_us.get() else { return };
        let (earlier, left_us) = (expiry.earlier.notified(), next_us.saturating_sub(now_us).min(LOOK_US));
        drop(inner);
        select(pin!(env::sleep::<E>(Duration::from_micros(left_us))), earlier).await;
    }
}
