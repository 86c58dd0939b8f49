//! Consumers read from the disk one after the other.
//!
//! What is in the page cache is copied and checked without a pause, a third of a millisecond for a mebibyte, and a reactor may
//! have thousands of consumers. So each read has a task of its own, and these take turns: between two of them all that is ready
//! runs `CONSUMER_READ_PAUSES` times, since what a producer waits for is done by several tasks, each woken by the one before it. (A
//! consumer's own task may wait for other things when its turn comes, and keep the next one waiting.)
//!
//! A read that has to wait for the device lets the next one begin.

use std::{
    future::{Future, poll_fn},
    pin::pin,
};

use futures_util::future::{Either, select};

use super::{Log, LogError};
use crate::{
    env::{
        self, Env,
        channel::{self, OneshotSender, Slots},
    },
    format::entry::StoredEntry,
    ids::Index,
    limits::CONSUMER_READ_PAUSES,
};

impl<E: Env> Log<E> {
    /// Whether this entry is in memory.
    pub fn is_recent(&self, index: Index) -> bool {
        self.inner.tail.get(index).is_some()
    }

    /// As `read`, for a consumer: if the first entry is not in memory, it waits until others of the reactor have read.
    /// Cancelled, it reads no more.
    ///
    /// # Errors
    /// As `read`; `Stopped` when a panic has ended it.
    pub async fn read_in_turn(&self, from: Index, end: Index, bytes_max: usize) -> Result<Vec<StoredEntry>, LogError> {
        if self.is_recent(from) {
            return self.read(from, end, bytes_max).await;
        }
        let (reply, answer) = channel::oneshot();
        let (log, turns) = (self.clone(), self.inner.tail.reads().clone());
        let read = async move { log.read(from, end, bytes_max).await };
        env::spawn::<E>(in_turn(read, turns, reply));
        answer.await.unwrap_or_else(|_| {
            let (file, cause) = (self.inner.options.dir.clone(), "a panic ended the read".to_owned());
            Err(LogError::Stopped { file, action: "read", cause })
        })
    }
}

/// Sends what `read` returns, unless nobody waits for it any more.
async fn in_turn<T>(read: impl Future<Output = T>, turns: Slots, mut reply: OneshotSender<T>) {
    let mut turn = None;
    let read = async {
        turn = Some(turns.take().await);
        let mut read = pin!(read);
        // Woken by what the read waits for.
        poll_fn(|cx| {
            let polled = read.as_mut().poll(cx);
            if polled.is_pending() {
                turn = None;
            }
            polled
        })
        .await
    };
    let Either::Right((result, _)) = select(pin!(reply.closed()), pin!(read)).await else { return };
    drop(reply.send(result));
    if turn.is_some() {
        env::yield_times(CONSUMER_READ_PAUSES).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::env::runtime::block_on;

    /// One reads after the other, and others run in between; whoever waits for the device is overtaken, and whoever is gone is
    /// left out.
    #[test]
    fn reads_take_turns() {
        block_on(async {
            let (turns, order) = (Slots::new(1), Rc::new(RefCell::new(Vec::new())));
            let (device, ready) = channel::oneshot();
            let note = |what: &'static str| {
                let order = order.clone();
                move || order.borrow_mut().push(what)
            };
            let (slow, first, gone, second) = (note("device"), note("first"), note("gone"), note("second"));
            let read_slow = async move {
                ready.await.unwrap();
                slow();
            };
            let (reply, device_answer) = channel::oneshot();
            let ((to_first, first_answer), (to_gone, gone_answer), (to_second, second_answer)) =
                (channel::oneshot(), channel::oneshot(), channel::oneshot());
            drop(gone_answer);
            let reads = async {
                tokio::join!(
                    in_turn(read_slow, turns.clone(), reply),
                    in_turn(async move { first() }, turns.clone(), to_first),
                    in_turn(async move { gone() }, turns.clone(), to_gone),
                    in_turn(async move { second() }, turns.clone(), to_second),
                )
            };
            let others = async {
                while order.borrow().is_empty() {
                    env::yield_now().await;
                }
                for _ in 0..CONSUMER_READ_PAUSES {
                    assert_eq!(*order.borrow(), ["first"]);
                    env::yield_now().await;
                }
                second_answer.await.unwrap();
                device.send(()).unwrap();
                device_answer.await.unwrap();
            };
            tokio::join!(reads, others);
            first_answer.await.unwrap();
            assert_eq!(*order.borrow(), ["first", "second", "device"]);
        });
    }
}
