//! The queue in front of a shard, and how an entry is gathered from it. Pure: no clock, no I/O.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
};

use super::{Produce, Produced, ShardError, due_us, estimate::AppendEstimate};
use crate::{
    budget::{Budget, Charge, Class, NoRoom, Use},
    env::channel::{self, OneshotReceiver, OneshotSender},
    ids::Offset,
    limits::{ENTRY_BYTES_MAX, ENTRY_BYTES_TARGET, PRODUCE_QUEUE_BYTES_MAX, PRODUCE_QUEUE_REQUESTS_MAX},
};

/// Room made at once for the requests of an entry; more grow as they come.
const GATHER_RESERVE_MAX: usize = 256;

/// Whose memory a request gets that was in an entry and goes again: clients may have filled theirs, but it was admitted.
const AGAIN: Class = Class::Replication;

/// Where a request's answer comes.
pub type Answer = OneshotReceiver<Result<Produced, ShardError>>;

/// Where it goes.
type Reply = OneshotSender<Result<Produced, ShardError>>;

/// A request, and where its answer is owed. It goes through many hands, and so is a pointer.
pub struct Owed(Box<Request>);

/// What an `Owed` points to.
pub struct Request {
    /// What is asked for.
    pub produce: Produce,
    /// When it came, on the monotonic clock.
    pub queued_us: u64,
    /// How often it was proposed in vain, because its batch became void.
    pub(super) attempts: u32,
    /// `None` once it is answered (`LeaderMemory` is, before its entry lands).
    pub(super) reply: Option<Reply>,
    charge: Charge,
}

impl Deref for Owed {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.0
    }
}

impl DerefMut for Owed {
    fn deref_mut(&mut self) -> &mut Request {
        &mut self.0
    }
}

impl Owed {
    /// A request that came at `now_us` on the monotonic clock, and its answer. It is charged for what will become of it, its
    /// entry too, so that it never has to wait for memory once it is admitted.
    ///
    /// # Errors
    /// `NoMemory`, and the request.
    pub fn new(produce: Produce, now_us: u64, memory: &Budget) -> Result<(Owed, Answer), Box<(ShardError, Produce)>> {
        match memory.take(Use::Queued, Class::Client, memory_of(&produce)) {
            Ok(charge) => {
                let (reply, answer) = channel::oneshot();
                let request = Request { produce, queued_us: now_us, attempts: 0, reply: Some(reply), charge };
                Ok((Owed(Box::new(request)), answer))
            }
            Err(NoRoom { .. }) => Err(Box::new((ShardError::NoMemory, produce))),
        }
    }

    /// Answers it, if it is not answered yet. Nobody may be listening any more.
    pub fn answer(mut self, answer: Result<Produced, ShardError>) {
        if let Some(reply) = self.reply.take() {
            drop(reply.send(answer));
        }
    }

    /// What was asked for. Whoever waits for the answer sees that none comes.
    pub(super) fn into_produce(self) -> Produce {
        self.0.produce
    }
}

impl std::fmt::Debug for Owed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owed").field("produce", &self.produce).finish_non_exhaustive()
    }
}

/// Memory of a request that waits: its message, and its part of an entry.
fn memory_of(produce: &Produce) -> usize {
    produce.records.message().len() + produce.records.encoded_bytes_max()
}

impl Request {
    /// Bound of its bytes in an entry.
    fn bytes(&self) -> usize {
        self.produce.records.encoded_bytes_max()
    }

    /// Its part of an entry is charged with that entry from now on.
    pub(super) fn in_entry(&mut self) {
        self.charge.set(self.produce.records.message().len());
    }

    /// By when it is answered if it still waits; never, if it has no deadline or is answered already.
    fn due_us(&self) -> u64 {
        match self.produce.deadline_us {
            Some(deadline_us) if self.reply.is_some() => due_us(deadline_us, self.queued_us),
            Some(_) | None => u64::MAX,
        }
    }

    /// Whether its client is gone. (One that is answered already has to be written all the same.)
    pub fn is_forsaken(&self) -> bool {
        self.reply.as_ref().is_some_and(Reply::is_closed)
    }
}

/// A request with its place.
pub(super) struct Placed {
    pub(super) waiting: Owed,
    /// Offset of its first record; for a refused one the offset that it would have had.
    pub(super) base_offset: Offset,
    /// Its expected offset is another: it has no records in the entry, and is answered when what was before it is
    /// durable.
    pub(super) refused: bool,
}

impl Placed {
    /// The offset that it expects has a record when what is before it has landed, whoever leads by then.
    pub(super) fn is_past(&self) -> bool {
        self.waiting.produce.expected_offset.is_some_and(|expected| expected < self.base_offset)
    }
}

/// What was taken out of the queue.
#[derive(Default)]
pub(super) struct Gathered {
    /// In the order in which they came.
    pub(super) requests: Vec<Placed>,
    /// Bound of the entry's payload.
    pub(super) bytes: usize,
    /// Records in it; 0: all of `requests` are refused.
    pub(super) records: u32,
    /// Their deadlines cannot be met.
    pub(super) expired: Vec<Owed>,
}

/// Requests that wait, in order. Those whose clients are gone make room for others, and are never proposed: else clients that
/// come and go could fill it, and streams, which wait for room of their own, would be refused here.
///
/// Invariants: `bytes` is the sum of the requests' bytes; both bounds hold after `push`; no request is due before `due_us`.
pub(super) struct Queue {
    waiting: VecDeque<Owed>,
    bytes: usize,
    due_us: u64,
    /// Requests that came since it was last looked for forsaken ones, those included that found no room.
    unseen: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { waiting: VecDeque::new(), bytes: 0, due_us: u64::MAX, unseen: 0 }
    }
}

impl Queue {
    /// Whether a request of `bytes` may come in.
    ///
    /// # Errors
    /// `Busy`, naming the bound.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), ShardError> {
        let is_full = self.waiting.len() >= PRODUCE_QUEUE_REQUESTS_MAX || self.bytes + bytes > PRODUCE_QUEUE_BYTES_MAX;
        if is_full {
            self.leave_forsaken();
        }
        if self.waiting.len() >= PRODUCE_QUEUE_REQUESTS_MAX {
            return Err(ShardError::Busy { what: "too many requests wait" });
        }
        if self.bytes + bytes > PRODUCE_QUEUE_BYTES_MAX {
            return Err(ShardError::Busy { what: "too many bytes wait" });
        }
        Ok(())
    }

    /// Those whose clients are gone make room.
    pub(super) fn leave_forsaken(&mut self) {
        // It is gone through once for so many that came, so that a refusal stays cheap.
        if self.unseen < self.waiting.len() / 16 {
            self.unseen += 1;
            return;
        }
        self.waiting.retain(|waiting| !waiting.is_forsaken());
        self.bytes = self.waiting.iter().map(|waiting| waiting.bytes()).sum();
        self.unseen = 0;
    }

    /// Adds an admitted request at the end.
    pub(super) fn push(&mut self, waiting: Owed) {
        self.unseen += 1;
        self.bytes += waiting.bytes();
        self.due_us = self.due_us.min(waiting.due_us());
        self.waiting.push_back(waiting);
    }

    /// Puts requests back in front of all others, in their order. They had been admitted before, so the bounds may be passed
    /// by what was in flight, which has bounds of its own. What was in an entry has no memory for another one yet: the former
    /// may not be flushed.
    pub(super) fn put_back(&mut self, requests: Vec<Owed>) {
        for waiting in requests.into_iter().rev() {
            self.bytes += waiting.bytes();
            self.due_us = self.due_us.min(waiting.due_us());
            self.waiting.push_front(waiting);
        }
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> VecDeque<Owed> {
        (self.bytes, self.due_us) = (0, u64::MAX);
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the first that waits has memory for its part of an entry, or could have it now.
    pub(super) fn has_memory(&self) -> bool {
        self.waiting.front().is_none_or(|waiting| waiting.charge.can_be(AGAIN, memory_of(&waiting.produce)))
    }

    /// When the first that waits is due, or earlier.
    pub(super) fn due_us(&self) -> Option<u64> {
        Some(self.due_us).filter(|due_us| *due_us < u64::MAX)
    }

    /// Takes out what is due.
    pub(super) fn take_due(&mut self, now_us: u64) -> Vec<Owed> {
        let mut due = Vec::new();
        if now_us < self.due_us {
            return due;
        }
        self.due_us = u64::MAX;
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { break };
            if waiting.due_us() <= now_us {
                self.bytes -= waiting.bytes();
                due.push(waiting);
            } else {
                self.due_us = self.due_us.min(waiting.due_us());
                self.waiting.push_back(waiting);
            }
        }
        due
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes requests for one entry whose first record would get `next`: as many as fit into `ENTRY_BYTES_TARGET`, but at
    /// least one, if there is one, and as there is memory for those that were in an entry before. (Refused ones count too: they
    /// are kept as long as the entry.)
    pub(super) fn gather(&mut self, next: Offset, now_us: u64, estimate: &AppendEstimate) -> Gathered {
        let mut gathered = Gathered::default();
        gathered.requests.reserve(self.waiting.len().min(GATHER_RESERVE_MAX));
        let mut next = next;
        let mut taken_bytes = 0;
        while let Some(waiting) = self.waiting.front_mut() {
            let bytes = waiting.bytes();
            if waiting.is_forsaken() {
                self.waiting.pop_front();
                self.bytes -= bytes;
                continue;
            }
            let (expected, count) = (waiting.produce.expected_offset, waiting.produce.records.count());
            let expired = waiting.reply.is_some() && !estimate.can_meet(waiting.produce.deadline_us, now_us);
            if !expired && !gathered.requests.is_empty() && taken_bytes + bytes > ENTRY_BYTES_TARGET {
                break;
            }
            let memory = memory_of(&waiting.produce);
            if !expired && waiting.charge.resize(AGAIN, memory).is_err() {
                if !gathered.requests.is_empty() {
                    break;
                }
                // Nothing waits for memory when the log has stopped.
                waiting.charge.set(memory);
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            self.bytes -= bytes;
            if expired {
                gathered.expired.push(waiting);
                continue;
            }
            taken_bytes += bytes;
            let refused = expected.is_some_and(|expected| expected != next);
            gathered.requests.push(Placed { waiting, base_offset: next, refused });
            if !refused {
                gathered.bytes += bytes;
                gathered.records += count;
                next = next.plus(u64::from(count));
            }
        }
        if self.waiting.is_empty() {
            self.due_us = u64::MAX;
        }
        assert!(gathered.bytes <= ENTRY_BYTES_MAX, "one request always fits into an entry");
        gathered
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        format::records::Records,
        limits::{MESSAGE_BYTES_MAX, RECORD_BYTES_MAX},
        shard::Durability,
    };

    /// A request of `count` records of `bytes` each.
    fn request(count: usize, bytes: usize) -> Produce {
        let mut record = vec![0x12];
        prost::encoding::encode_varint(bytes as u64, &mut record);
        record.resize(record.len() + bytes, b'v');
        let mut message = vec![];
        for _ in 0..count {
            message.push(0x1a);
            prost::encoding::encode_varint(record.len() as u64, &mut message);
            message.extend(&record);
        }
        let (_, records) = Records::parse(Bytes::from(message), RECORD_BYTES_MAX).unwrap();
        let durability = Durability::QuorumFlushed;
        Produce { records, durability, expected_offset: None, deadline_us: None, forwarded: false, single: false }
    }

    fn push(queue: &mut Queue, produce: Produce) -> Answer {
        let (owed, answer) = Owed::new(produce, 0, &Budget::default()).unwrap();
        queue.push(owed);
        answer
    }

    /// Its client waits for it to the end.
    fn keep(answer: Answer) {
        std::mem::forget(answer);
    }

    /// Requests whose clients are gone are not proposed, take no room in an entry, and give theirs in the queue to others.
    #[test]
    fn forsaken() {
        let mut queue = Queue::default();
        let mut answers: Vec<_> = (0..4).map(|_| push(&mut queue, request(1, ENTRY_BYTES_TARGET / 3))).collect();
        answers.drain(1..3);
        let gathered = queue.gather(Offset(7), 0, &AppendEstimate::default());
        assert_eq!((places(&gathered), gathered.records), (vec![(7, false), (8, false)], 2));
        assert_eq!((queue.is_empty(), queue.bytes()), (true, 0));
        // One that is answered from memory has nobody who waits, and is written.
        let (mut owed, _answer) = Owed::new(request(1, 1), 0, &Budget::default()).unwrap();
        owed.reply = None;
        queue.push(owed);
        assert_eq!(queue.gather(Offset(9), 0, &AppendEstimate::default()).records, 1);

        let small = request(1, 1);
        for number in 0..PRODUCE_QUEUE_REQUESTS_MAX {
            queue.admit(1).unwrap();
            let answer = push(&mut queue, small.clone());
            if number % 2 == 0 {
                keep(answer);
            }
        }
        assert!(queue.admit(1).is_ok());
        assert_eq!(queue.waiting.len(), PRODUCE_QUEUE_REQUESTS_MAX / 2);
        assert_eq!(queue.bytes(), queue.waiting.iter().map(|waiting| waiting.bytes()).sum::<usize>());
    }

    /// A request is charged for its message and its part of an entry, until it is in one; and for both again when it goes into
    /// another one, for which there must be memory. Where there is none for a new one it is given back.
    #[test]
    fn charged() {
        let memory = Budget::default();
        let produce = request(1, 100_000);
        let (message, whole) = (produce.records.message().len(), memory_of(&produce));
        assert!(whole > 2 * 100_000);
        let mut queue = Queue::default();
        let (owed, _answer) = Owed::new(produce.clone(), 0, &memory).unwrap();
        queue.push(owed);
        assert_eq!(memory.used_for(Use::Queued), whole);
        let mut waiting = queue.drain().pop_front().unwrap();
        waiting.in_entry();
        assert_eq!(memory.used_for(Use::Queued), message);
        queue.put_back(vec![waiting]);
        assert_eq!(memory.used_for(Use::Queued), message, "its entry is not flushed yet");
        let others = memory.force(Use::Frames, memory.limit(AGAIN) - whole + 1);
        assert!(!queue.has_memory());
        drop(others);
        assert!(queue.has_memory());
        let (owed, _other_answer) = Owed::new(produce.clone(), 0, &memory).unwrap();
        queue.push(owed);
        let mut gathered = queue.gather(Offset(0), 0, &AppendEstimate::default()).requests;
        assert_eq!((gathered.len(), memory.used_for(Use::Queued)), (2, 2 * whole));
        gathered.iter_mut().for_each(|placed| placed.waiting.in_entry());
        queue.put_back(gathered.into_iter().map(|placed| placed.waiting).collect());
        let others = memory.force(Use::Frames, memory.limit(AGAIN) - message - whole);
        let gathered = queue.gather(Offset(0), 0, &AppendEstimate::default());
        assert_eq!(gathered.requests.len(), 1, "there is memory for one");
        drop((others, gathered));
        let rest = memory.take(Use::Queued, Class::Client, memory.limit(Class::Client) - message - whole + 1).unwrap();
        let refused = Owed::new(produce.clone(), 0, &memory).map(drop).unwrap_err();
        assert!(matches!(refused.0, ShardError::NoMemory));
        drop(rest);
        assert!(Owed::new(produce, 0, &memory).is_ok());
        drop(queue);
        assert_eq!(memory.used(), 0);
    }

    fn places(gathered: &Gathered) -> Vec<(u64, bool)> {
        gathered.requests.iter().map(|placed| (placed.base_offset.0, placed.refused)).collect()
    }

    /// What has gathered goes as one entry, with dense offsets, in order.
    #[test]
    fn gathers_in_order() {
        let mut queue = Queue::default();
        for count in [1, 3, 2] {
            keep(push(&mut queue, request(count, 10)));
        }
        let gathered = queue.gather(Offset(100), 0, &AppendEstimate::default());
        assert_eq!(places(&gathered), [(100, false), (101, false), (104, false)]);
        assert_eq!(gathered.records, 6);
        assert!(queue.is_empty());
        assert_eq!(queue.bytes(), 0);
    }

    /// An entry ends at its target size; one larger request still goes, alone.
    #[test]
    fn entry_size() {
        let mut queue = Queue::default();
        let large = ENTRY_BYTES_TARGET / 2 - 100;
        for _ in 0..3 {
            keep(push(&mut queue, request(1, large)));
        }
        keep(push(&mut queue, request(3, ENTRY_BYTES_TARGET - 100)));
        keep(push(&mut queue, request(1, 1)));
        let mut sizes = vec![];
        while !queue.is_empty() {
            sizes.push(queue.gather(Offset(0), 0, &AppendEstimate::default()).requests.len());
        }
        assert_eq!(sizes, [2, 1, 1, 1]);
    }

    /// Expected offsets are looked at one by one, against what is before them in the queue; a refused one takes no place.
    #[test]
    fn expected_offsets() {
        let mut queue = Queue::default();
        for expected in [None, Some(10), Some(12), Some(14), Some(13)] {
            let produce = Produce { expected_offset: expected.map(Offset), ..request(2, 1) };
            keep(push(&mut queue, produce));
        }
        let gathered = queue.gather(Offset(10), 0, &AppendEstimate::default());
        assert_eq!(places(&gathered), [(10, false), (12, true), (12, false), (14, false), (16, true)]);
        assert_eq!(gathered.records, 6);
    }

    /// Requests whose deadline cannot be met are taken out, and leave no hole in the offsets.
    #[test]
    fn deadlines() {
        let mut queue = Queue::default();
        for deadline_us in [None, Some(1_050), Some(1_300), Some(900)] {
            keep(push(&mut queue, Produce { deadline_us, ..request(1, 1) }));
        }
        let mut estimate = AppendEstimate::default();
        estimate.sample(1_000, 100);
        let gathered = queue.gather(Offset(0), 1_000, &estimate);
        assert_eq!(places(&gathered), [(0, false), (1, false)]);
        assert_eq!(gathered.expired.len(), 2);
    }

    /// What is due is taken out, the rest stays in its order; what was answered from memory has no time any more.
    #[test]
    fn due() {
        let mut queue = Queue::default();
        assert_eq!(queue.due_us(), None);
        let deadlines = [Some(300_000), None, Some(100), Some(200_000), Some(50_000)];
        for (count, deadline_us) in deadlines.into_iter().enumerate() {
            keep(push(&mut queue, Produce { deadline_us, ..request(count + 1, 1) }));
        }
        queue.waiting[4].reply = None;
        assert_eq!((queue.due_us(), queue.take_due(89).len()), (Some(90), 0));
        assert_eq!(queue.take_due(90).len(), 1, "a tenth before the deadline");
        assert_eq!(queue.due_us(), Some(180_000), "but not more than 20 ms before it");
        assert_eq!(queue.take_due(180_000).len(), 1);
        let left: Vec<_> = queue.waiting.iter().map(|waiting| waiting.produce.records.count()).collect();
        assert_eq!((left, queue.due_us()), (vec![1, 2, 5], Some(280_000)));
        assert_eq!(queue.bytes(), queue.waiting.iter().map(|waiting| waiting.bytes()).sum::<usize>());
        assert_eq!(queue.gather(Offset(0), 0, &AppendEstimate::default()).requests.len(), 3);
        assert_eq!(queue.due_us(), None);
    }

    /// Both bounds refuse, by name, before anything is taken.
    #[test]
    fn bounds() {
        let mut queue = Queue::default();
        let bytes = request(3, RECORD_BYTES_MAX - 10).records.encoded_bytes_max();
        while queue.admit(bytes).is_ok() {
            keep(push(&mut queue, request(3, RECORD_BYTES_MAX - 10)));
        }
        assert!(queue.bytes() <= PRODUCE_QUEUE_BYTES_MAX);
        assert!(queue.bytes() + MESSAGE_BYTES_MAX > PRODUCE_QUEUE_BYTES_MAX);
        assert_eq!(
            queue.admit(bytes).unwrap_err().to_string(),
            "shard queue is full (too many bytes wait); retry after a moment"
        );

        let mut queue = Queue::default();
        let small = request(1, 1);
        for _ in 0..PRODUCE_QUEUE_REQUESTS_MAX {
            queue.admit(1).unwrap();
            keep(push(&mut queue, small.clone()));
        }
        assert!(queue.admit(1).unwrap_err().to_string().contains("too many requests wait"));
    }

    /// What is put back comes before what has arrived since, in its old order.
    #[test]
    fn put_back() {
        let mut queue = Queue::default();
        for count in [1, 2] {
            keep(push(&mut queue, request(count, 1)));
        }
        let gathered = queue.gather(Offset(0), 0, &AppendEstimate::default());
        keep(push(&mut queue, request(4, 1)));
        queue.put_back(gathered.requests.into_iter().map(|placed| placed.waiting).collect());
        let gathered = queue.gather(Offset(5), 0, &AppendEstimate::default());
        assert_eq!(places(&gathered), [(5, false), (6, false), (8, false)]);
    }
}
