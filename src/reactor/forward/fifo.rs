//! The requests of one shard on their way to its leader, in order. Pure: no clock, no connection.
//!
//! ```text
//! push ─► waiting ─► sent ─► answered
//!            ▲         ├──► refused: all that were sent wait again, in front, in their order
//!            └─────────┘    lost: all that were sent are out, nobody knows what became of them
//! ```
//! Answers come in the order of sending. A leader that refuses a request for want of leadership refuses everything behind
//! it in the same session, so one such answer speaks for all that were sent.
//!
//! What waits and nobody waits for any more is not sent, and makes room for others: so it is in a shard's own queue, too.

use std::collections::VecDeque;

use crate::limits::{
    PRODUCE_QUEUE_BYTES_MAX, PRODUCE_QUEUE_REQUESTS_MAX, STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX,
    STREAM_PRODUCES_IN_FLIGHT_MAX,
};

/// A request with what has to be known of it.
#[derive(Debug)]
pub(super) struct Item<T> {
    pub(super) request: T,
    /// Bytes that it holds.
    pub(super) bytes: usize,
    /// When it came, on the monotonic clock.
    pub(super) since_us: u64,
    /// Until when it waits, on the monotonic clock; `None`: as long as the server is patient.
    pub(super) until_us: Option<u64>,
}

/// See the module's description.
///
/// Invariants: `bytes` is the sum of all items' bytes, `sent_bytes` of those in `sent`; everything in `sent` is older than
/// everything in `waiting`.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    sent: VecDeque<Item<T>>,
    waiting: VecDeque<Item<T>>,
    bytes: usize,
    sent_bytes: usize,
    /// Requests that came since it was last looked for forsaken ones, those included that found no room.
    unseen: usize,
}

impl<T> Default for Fifo<T> {
    fn default() -> Fifo<T> {
        Fifo { sent: VecDeque::new(), waiting: VecDeque::new(), bytes: 0, sent_bytes: 0, unseen: 0 }
    }
}

impl<T> Fifo<T> {
    /// Whether a request of `bytes` may come in: the bounds are those of a shard's own queue. When one is met, those that
    /// wait and are `forsaken` leave.
    ///
    /// # Errors
    /// Which bound is met, in words.
    pub(super) fn admit(&mut self, bytes: usize, forsaken: impl Fn(&T) -> bool) -> Result<(), &'static str> {
        if self.check_room(bytes).is_err() {
            self.leave_forsaken(forsaken);
        }
        self.check_room(bytes)
    }

    /// Those that wait and are `forsaken` leave.
    pub(super) fn leave_forsaken(&mut self, forsaken: impl Fn(&T) -> bool) {
        // It is gone through once for so many that came, so that a refusal stays cheap.
        if self.unseen < self.waiting.len() / 16 {
            self.unseen += 1;
            return;
        }
        self.waiting.retain(|item| !forsaken(&item.request));
        self.bytes = self.sent_bytes + self.waiting.iter().map(|item| item.bytes).sum::<usize>();
        self.unseen = 0;
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn check_room(&self, bytes: usize) -> Result<(), &'static str> {
        if self.len() >= PRODUCE_QUEUE_REQUESTS_MAX {
            return Err("too many requests wait for the shard's leader");
        }
        if self.bytes + bytes > PRODUCE_QUEUE_BYTES_MAX {
            return Err("too many bytes wait for the shard's leader");
        }
        Ok(())
    }

    /// Adds a request behind all others.
    pub(super) fn push(&mut self, item: Item<T>) {
        self.unseen += 1;
        self.bytes += item.bytes;
        self.waiting.push_back(item);
    }

    /// Puts requests in front of all that wait, in their order. They were taken out before, so the bounds hold.
    pub(super) fn put_back(&mut self, items: impl IntoIterator<Item = Item<T>, IntoIter: DoubleEndedIterator>) {
        for item in items.into_iter().rev() {
            self.bytes += item.bytes;
            self.waiting.push_front(item);
        }
    }

    /// Neither sent nor waiting.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.waiting.is_empty()
    }

    /// Something was sent and is not answered.
    pub(super) fn has_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// All of them.
    pub(super) fn len(&self) -> usize {
        self.sent.len() + self.waiting.len()
    }

    /// Moves what goes into the next frame from `waiting` to `sent`: up to `requests_max` of them and about `bytes_max`
    /// bytes, but at least one, if the window has room. Returns them, in order. Those that are `forsaken` leave.
    pub(super) fn send(
        &mut self,
        requests_max: usize,
        bytes_max: usize,
        forsaken: impl Fn(&T) -> bool,
    ) -> impl Iterator<Item = &Item<T>> {
        let before = self.sent.len();
        let mut bytes = 0;
        while self.sent.len() - before < requests_max
            && self.sent.len() < STREAM_PRODUCES_IN_FLIGHT_MAX
            && self.sent_bytes < STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX
            && let Some(next) = self.waiting.front()
        {
            if forsaken(&next.request) {
                self.bytes -= next.bytes;
                self.waiting.pop_front();
                continue;
            }
            if bytes > 0 && bytes + next.bytes > bytes_max {
                break;
            }
            let Some(item) = self.waiting.pop_front() else { break };
            bytes += item.bytes;
            self.sent_bytes += item.bytes;
            self.sent.push_back(item);
        }
        self.sent.iter().skip(before)
    }

    /// The oldest sent one has its answer; `None` if nothing was asked.
    pub(super) fn answered(&mut self) -> Option<Item<T>> {
        let item = self.sent.pop_front()?;
        self.sent_bytes -= item.bytes;
        self.bytes -= item.bytes;
        Some(item)
    }

    /// The oldest sent one, and so all of them, were refused or never left: they wait again.
    pub(super) fn refused(&mut self) {
        while let Some(item) = self.sent.pop_back() {
            self.sent_bytes -= item.bytes;
            self.waiting.push_front(item);
        }
        assert_eq!(self.sent_bytes, 0, "the sum of nothing");
    }

    /// Nobody will answer what was sent: takes it out.
    pub(super) fn lost(&mut self) -> VecDeque<Item<T>> {
        self.bytes -= self.sent_bytes;
        self.sent_bytes = 0;
        std::mem::take(&mut self.sent)
    }

    /// Takes out what waits.
    pub(super) fn drain(&mut self) -> VecDeque<Item<T>> {
        let waiting = std::mem::take(&mut self.waiting);
        self.bytes = self.sent_bytes;
        waiting
    }

    /// When the oldest came that waits.
    pub(super) fn oldest_us(&self) -> Option<u64> {
        self.waiting.iter().map(|item| item.since_us).min()
    }

    /// Takes out what has waited until its time: its own, or `patience_us` from when it came, or from `searching_us` if that
    /// was later: how long a leader is being looked for; `None`: there is one.
    pub(super) fn expired(&mut self, now_us: u64, searching_us: Option<u64>, patience_us: u64) -> Vec<Item<T>> {
        let is_due = |item: &Item<T>| due_us(item, searching_us, patience_us).is_some_and(|due_us| due_us <= now_us);
        if !self.waiting.iter().any(is_due) {
            return Vec::new();
        }
        let (expired, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(is_due);
        self.waiting = waiting.into();
        self.bytes -= expired.iter().map(|item| item.bytes).sum::<usize>();
        expired
    }

    /// When the next one is due, as for `expired`.
    pub(super) fn expiry_us(&self, searching_us: Option<u64>, patience_us: u64) -> Option<u64> {
        self.waiting.iter().filter_map(|item| due_us(item, searching_us, patience_us)).min()
    }
}

fn due_us<T>(item: &Item<T>, searching_us: Option<u64>, patience_us: u64) -> Option<u64> {
    let patience = searching_us.map(|searching_us| item.since_us.max(searching_us).saturating_add(patience_us));
    [item.until_us, patience].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(request: u32, bytes: usize) -> Item<u32> {
        Item { request, bytes, since_us: 0, until_us: None }
    }

    /// Everybody waits for the answer.
    fn nobody(_: &u32) -> bool {
        false
    }

    fn numbers<'a>(items: impl IntoIterator<Item = &'a Item<u32>>) -> Vec<u32> {
        items.into_iter().map(|item| item.request).collect()
    }

    fn waiting(fifo: &Fifo<u32>) -> Vec<u32> {
        numbers(&fifo.waiting)
    }

    fn with(count: u32, bytes: usize) -> Fifo<u32> {
        let mut fifo = Fifo::default();
        (0..count).for_each(|number| fifo.push(item(number, bytes)));
        fifo
    }

    /// A conversation through a change of leaders: three are sent, one is acknowledged, then the leader refuses; what it has
    /// not acknowledged goes again, in front of what came meanwhile.
    #[test]
    fn refused_ones_go_first() {
        let mut fifo = with(3, 10);
        assert_eq!(numbers(fifo.send(10, 1_000, nobody)), [0, 1, 2]);
        fifo.push(item(3, 10));
        assert_eq!(fifo.answered().map(|item| item.request), Some(0));
        fifo.refused();
        assert_eq!(waiting(&fifo), [1, 2, 3]);
        assert_eq!(numbers(fifo.send(10, 1_000, nobody)), [1, 2, 3]);
        assert!(fifo.send(10, 1_000, nobody).next().is_none(), "all are sent");
    }

    /// When the connection is lost nobody knows of what was sent, and what was not sent goes elsewhere.
    #[test]
    fn lost_ones_are_out() {
        let mut fifo = with(4, 10);
        assert_eq!(numbers(fifo.send(2, 1_000, nobody)), [0, 1]);
        assert_eq!(numbers(&fifo.lost()), [0, 1]);
        assert!(fifo.sent.is_empty());
        assert_eq!((waiting(&fifo), fifo.bytes), (vec![2, 3], 20));
        assert!(fifo.answered().is_none(), "an answer to nothing");
    }

    /// What does not fit the local shard goes back to where it was.
    #[test]
    fn drained_and_put_back() {
        let mut fifo = with(3, 10);
        let mut drained = fifo.drain();
        assert!(fifo.is_empty());
        fifo.push(item(9, 10));
        drained.pop_front();
        fifo.put_back(drained);
        assert_eq!((waiting(&fifo), fifo.bytes), (vec![1, 2, 9], 30));
    }

    /// Frames have a size, one large request still goes, and the window of what is not answered has one, too.
    #[test]
    fn frames_and_window() {
        let mut fifo = with(3, 400);
        assert_eq!(numbers(fifo.send(10, 1_000, nobody)), [0, 1]);
        assert_eq!(numbers(fifo.send(10, 1, nobody)), [2]);
        let mut fifo = with(STREAM_PRODUCES_IN_FLIGHT_MAX as u32 + 1, 1);
        assert_eq!(fifo.send(usize::MAX, usize::MAX, nobody).count(), STREAM_PRODUCES_IN_FLIGHT_MAX);
        assert_eq!(fifo.send(usize::MAX, usize::MAX, nobody).count(), 0);
        fifo.answered();
        assert_eq!(fifo.send(usize::MAX, usize::MAX, nobody).count(), 1);
        let mut fifo = with(3, STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX);
        assert_eq!(fifo.send(9, usize::MAX, nobody).count(), 1);
    }

    /// The bounds are a shard's own, and count what is sent, too.
    #[test]
    fn bounds() {
        let mut fifo = with(PRODUCE_QUEUE_REQUESTS_MAX as u32, 1);
        assert_eq!(fifo.send(5, 5, nobody).count(), 5);
        assert!(fifo.admit(1, nobody).unwrap_err().contains("requests"));
        let mut fifo = with(1, PRODUCE_QUEUE_BYTES_MAX - 1);
        assert_eq!(fifo.send(1, 1, nobody).count(), 1);
        assert_eq!(fifo.admit(1, nobody), Ok(()));
        assert!(fifo.admit(2, nobody).unwrap_err().contains("bytes"));
    }

    /// What nobody waits for is passed over, and leaves when there is no room for another.
    #[test]
    fn forsaken() {
        let even = |request: &u32| request.is_multiple_of(2);
        let mut fifo = with(6, 10);
        assert_eq!(numbers(fifo.send(2, 1_000, even)), [1, 3]);
        assert_eq!((waiting(&fifo), fifo.bytes), (vec![4, 5], 40));
        fifo.refused();
        assert_eq!(numbers(fifo.send(9, 1_000, even)), [1, 3, 5], "it waits again");
        assert_eq!((fifo.bytes, fifo.sent_bytes), (30, 30));
        assert_eq!(numbers(fifo.send(9, 1_000, even)), [] as [u32; 0]);

        let mut fifo = with(PRODUCE_QUEUE_REQUESTS_MAX as u32, 1);
        assert_eq!(fifo.send(4, 4, nobody).count(), 4);
        assert_eq!(fifo.admit(1, even), Ok(()));
        assert_eq!((fifo.len(), fifo.bytes), (PRODUCE_QUEUE_REQUESTS_MAX / 2 + 2, fifo.len()), "two of those are sent");
        let mut fifo = with(2, PRODUCE_QUEUE_BYTES_MAX / 2);
        assert_eq!(fifo.admit(1, even), Ok(()));
        assert_eq!(waiting(&fifo), [1]);
    }

    /// A request waits until its own time, or until a leader has been looked for in vain for long enough.
    #[test]
    fn expiry() {
        let mut fifo = Fifo::default();
        fifo.push(Item { until_us: Some(50), ..item(0, 1) });
        fifo.push(Item { since_us: 10, ..item(1, 1) });
        fifo.push(Item { since_us: 90, ..item(2, 1) });
        assert_eq!(fifo.expiry_us(None, 100), Some(50));
        assert!(fifo.expired(49, Some(0), 100).is_empty());
        assert_eq!(numbers(&fifo.expired(50, Some(0), 100)), [0]);
        assert_eq!((fifo.expiry_us(None, 100), fifo.expiry_us(Some(30), 100)), (None, Some(130)));
        assert_eq!(numbers(&fifo.expired(130, Some(30), 100)), [1]);
        assert_eq!(numbers(&fifo.expired(1_000, None, 100)), [] as [u32; 0], "there is a leader: it will be sent");
        assert_eq!(fifo.bytes, 1);
        fifo.push(Item { until_us: Some(500), ..item(3, 1) });
        assert_eq!((fifo.expiry_us(Some(300), 100), fifo.oldest_us()), (Some(400), Some(0)));
        assert_eq!(numbers(&fifo.expired(400, Some(300), 100)), [2, 3], "its own time would be later");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        Send(usize),
        Answer,
        Refuse,
        Lose,
        Local(usize),
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever happens, a log that takes what is sent at the moment of its answer gets each request once at most, in
        /// order, and all but the lost ones in the end.
        #[test]
        fn order_through_anything(steps in prop::collection::vec(
            prop_oneof![
                3 => Just(Step::Push),
                2 => (1..4usize).prop_map(Step::Send),
                3 => Just(Step::Answer),
                1 => Just(Step::Refuse),
                1 => Just(Step::Lose),
                1 => (0..4usize).prop_map(Step::Local),
            ], 0..200)) {
            let mut fifo = Fifo::default();
            let (mut next, mut log, mut lost) = (0, Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Push => {
                        fifo.push(item(next, 1));
                        next += 1;
                    }
                    Step::Send(count) => drop(fifo.send(count, 100, nobody).count()),
                    Step::Answer => log.extend(fifo.answered().map(|item| item.request)),
                    Step::Refuse => fifo.refused(),
                    Step::Lose => lost.extend(numbers(&fifo.lost())),
                    Step::Local(taken) if fifo.sent.is_empty() => {
                        let mut drained = fifo.drain();
                        let rest = drained.split_off(taken.min(drained.len()));
                        log.extend(numbers(&drained));
                        fifo.put_back(rest);
                    }
                    Step::Local(_) => {}
                }
                prop_assert_eq!(fifo.bytes, fifo.len());
                prop_assert_eq!(fifo.sent_bytes, fifo.sent.len());
            }
            log.extend(numbers(&fifo.sent));
            log.extend(numbers(&fifo.waiting));
            prop_assert!(log.is_sorted());
            log.extend(lost);
            log.sort_unstable();
            prop_assert_eq!(log, (0..next).collect::<Vec<_>>());
        }
    }
}
