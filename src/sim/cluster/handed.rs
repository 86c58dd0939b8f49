//! How many bytes of records shards have read for a client's connection: counted where shards count what consumers get, whatever
//! the node's own accounts of its memory say.
//!
//! The task of a connection asks the shards of its reactor itself. What is read for it by another reactor or node is not counted.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// What shards count consumers' bytes as.
const READ_FOR_CONSUMERS: &str = "ringlog_consume_bytes_total";

thread_local! {
    /// The count of the connection whose task is polled.
    static POLLED: RefCell<Option<Rc<Cell<u64>>>> = const { RefCell::new(None) };
}

/// To be the recorder of metrics of the thread on which a world runs; has nothing of its own.
pub(in crate::sim) struct Reads;

/// The counter that shards have.
struct OfShards;

impl CounterFn for OfShards {
    fn increment(&self, bytes: u64) {
        POLLED.with_borrow(|polled| {
            if let Some(count) = polled {
                count.set(count.get() + bytes);
            }
        });
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Reads {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == READ_FOR_CONSUMERS { Counter::from_arc(Arc::new(OfShards)) } else { Counter::noop() }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A connection's task, with what is read while it is polled added to `count`.
pub(super) async fn counted(count: Rc<Cell<u64>>, connection: impl Future<Output = ()>) {
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        let before = POLLED.replace(Some(Rc::clone(&count)));
        let _restored = Restored(before);
        connection.as_mut().poll(cx)
    })
    .await;
}

/// Puts back what was polled before, also when the task panics.
struct Restored(Option<Rc<Cell<u64>>>);

impl Drop for Restored {
    fn drop(&mut self) {
        POLLED.replace(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// What shards read while the task of a connection is polled counts for it, and nothing else does.
    #[test]
    fn counts() {
        metrics::with_local_recorder(&Reads, || {
            let (bytes, others) = (metrics::counter!(READ_FOR_CONSUMERS), metrics::counter!("ringlog_others_total"));
            let count: Rc<Cell<u64>> = Rc::default();
            bytes.increment(1);
            let connection = async {
                bytes.increment(20);
                others.increment(300);
            };
            counted(Rc::clone(&count), connection).now_or_never().unwrap();
            bytes.increment(4_000);
            assert_eq!(count.get(), 20);
        });
    }
}
