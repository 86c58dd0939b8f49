//! Admit, propose, ack in order.
//!
//! A request that finds nothing in flight is proposed at once, within the `produce` call. While an entry is in
//! flight arrivals gather, and go as the next entry when it lands: no linger, no timer. Only when
//! `PROPOSE_BYTES_EAGER` wait does another entry go beside those in flight, at most `ENTRIES_IN_FLIGHT_MAX`.
//!
//! A batch is encoded for the offset that it will have if everything before it lands where predicted. If that turns out
//! wrong the entry is void, and everything behind it too; nothing more is proposed until all in flight
//! have landed, then the void ones go again, in their order.
//!
//! A conditional request is refused when all before it is committed: with the entry in flight, or, where nothing is, at once if
//! records are committed at its offset, else when a majority has confirmed that this replica leads.
//!
//! A majority may be faster than the disk here: nothing is admitted, and what waits is not proposed, while too much is not
//! flushed on this node (`UNFLUSHED_BYTES_MAX`). Nor do void ones go again before there is memory for another entry.
//!
//! A replica that does not lead (any more) proposes nothing. When the last entry in flight has landed, all requests that
//! wait are handed back, in their order, none of them written: to `Shard::set_elsewhere`, or as `NotLeader` to their
//! callers. Until then new ones queue behind them. So of two requests the later one is never proposed here after the
//! earlier one was handed back, unless it came after that; nor is anything handed back that is before something which may be
//! written.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use futures_util::{TryFutureExt, future::select};

use super::{
    Durability, Inner, Life, Produced, ShardError,
    estimate::AppendEstimate,
    machine::ShardAnswer,
    metrics::Stations,
    queue::{Gathered, Owed, Placed, Queue},
};
use crate::{
    env::{Env, buffer::Buffer},
    format::entry::{ENTRY_HEADER_BYTES, EntryHeader},
    ids::{Offset, SegmentSequence},
    limits::{ENTRIES_IN_FLIGHT_MAX, PROPOSE_BYTES_EAGER},
    log::LogError,
    raft::{Applied, GroupError, Proposal, ProposalKind},
};

/// A request whose batch became void that often is refused: its place keeps moving, and the queue behind it waits.
const ATTEMPTS_MAX: u32 = 8;

/// `None`: there is no entry, and all before it is committed.
type Landed = Result<Option<Applied<ShardAnswer>>, GroupError>;

type Landing = Pin<Box<dyn Future<Output = Landed>>>;

/// An entry between proposal and ack; or none, and requests that are refused when all before them is known to be committed.
struct InFlight {
    requests: Vec<Placed>,
    base_offset: Offset,
    timestamp_us: i64,
    queued_us: u64,
    proposed_us: u64,
    /// `None` while the pump awaits it.
    landing: Option<Landing>,
    /// There is no entry: this replica makes sure that it leads, to refuse the requests.
    confirms: bool,
}

/// The produce side of a shard.
///
/// Invariants: `in_flight` is in the order of the log, at most `ENTRIES_IN_FLIGHT_MAX`; `void` is empty
/// unless `stalled`; while something is in flight and not `stalled`, `next` is where the last one will end; what `confirms` is in
/// flight alone.
pub(super) struct State {
    queue: Queue,
    in_flight: VecDeque<InFlight>,
    /// Offset for which the next batch will be encoded.
    next: Offset,
    /// An entry did not land where it was predicted: nothing is proposed until all in flight have landed.
    stalled: bool,
    /// Refused requests were added to an entry in flight: no more are until it, or one before it, has landed. So
    /// what is kept in memory beside the queue is bounded.
    refused_held: bool,
    /// Requests to be proposed again after that.
    void: Vec<Owed>,
    /// Raft refuses entries, for this reason: all that wait are handed back after that.
    lost: Option<ShardError>,
    estimate: AppendEstimate,
    /// Timestamp of the last batch that was proposed: that of the next is not before it.
    timestamp_us: i64,
    /// Segment of the last entry that landed.
    segment: SegmentSequence,
}

impl State {
    /// A shard whose log ends at `log_end`.
    pub(super) fn new(log_end: Offset) -> State {
        State {
            queue: Queue::default(),
            in_flight: VecDeque::new(),
            next: log_end,
            stalled: false,
            refused_held: false,
            void: Vec::new(),
            lost: None,
            estimate: AppendEstimate::default(),
            timestamp_us: i64::MIN,
            segment: SegmentSequence::default(),
        }
    }

    /// Nothing waits, nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty() && self.void.is_empty()
    }

    /// Bytes that wait to be proposed.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Of what waits, what nobody waits for goes.
    pub(super) fn leave_forsaken(&mut self) {
        self.queue.leave_forsaken();
    }

    /// When the first of those that wait is due, or earlier.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.queue.due_us()
    }

    /// Takes out what waits and is due.
    pub(super) fn take_due(&mut self, now_us: u64) -> Vec<Owed> {
        self.queue.take_due(now_us)
    }

    /// Whether an entry is to be proposed now. None goes behind a confirmation: that may fail while the entry is written, and the
    /// requests before it would go again behind it.
    fn is_due(&self) -> bool {
        let confirms = self.in_flight.front().is_some_and(|entry| entry.confirms);
        let room = self.in_flight.len() < ENTRIES_IN_FLIGHT_MAX && !self.refused_held && !confirms;
        let eager = room && self.queue.bytes() >= PROPOSE_BYTES_EAGER;
        !self.queue.is_empty() && !self.stalled && (self.in_flight.is_empty() || eager)
    }

    /// Takes what goes into the next entry. Requests of which all are refused wait for the last entry in flight, if they are refused for
    /// good when that has landed; else for nothing to be in flight, and are returned then.
    fn gather(&mut self, now_us: u64) -> (Gathered, Vec<Placed>) {
        let mut gathered = self.queue.gather(self.next, now_us, &self.estimate);
        let mut refused = vec![];
        if gathered.records == 0 {
            let requests = std::mem::take(&mut gathered.requests);
            match self.in_flight.back_mut() {
                Some(entry) if requests.iter().all(Placed::is_past) => {
                    self.refused_held = !requests.is_empty();
                    entry.requests.extend(requests);
                }
                // Another leader may have come to what they expect, and what is in flight here may land all the same.
                Some(_) => {
                    self.refused_held = true;
                    self.queue.put_back(requests.into_iter().map(|placed| placed.waiting).collect());
                }
                None => refused = requests,
            }
        }
        (gathered, refused)
    }
}

/// Awaits the entries in flight, in order, until the shard is closed.
pub(super) async fn pump<E: Env>(inner: Rc<Inner<E>>) {
    loop {
        let work = inner.work.notified();
        let landing = inner.state.borrow_mut().in_flight.front_mut().and_then(|entry| entry.landing.take());
        match landing {
            Some(landing) => {
                let result = landing.await;
                inner.landed(result);
            }
            None if inner.life.get() == Life::Closed => return,
            None if inner.held.replace(false) => {
                inner.room().await;
                inner.propose_due();
            }
            None => work.await,
        }
    }
}

impl<E: Env> Inner<E> {
    /// Queues what is asked for, and takes it; proposes it if nothing is in flight. An error leaves it where it is.
    pub(super) fn admit(self: &Rc<Self>, asked: &mut Option<Owed>, now_us: u64) -> Result<(), ShardError> {
        self.check_life()?;
        #[cfg(test)]
        super::machine::planted::admission();
        let owed = asked.as_ref().expect("something is asked for");
        let mut state = self.state.borrow_mut();
        if !self.group.leads() && state.is_idle() {
            drop(state);
            return Err(self.not_leading());
        }
        if let Err(busy) = state.queue.admit(owed.produce.records.encoded_bytes_max()) {
            self.metrics.refused_busy.increment(1);
            return Err(busy);
        }
        if !self.group.has_flush_room() {
            self.metrics.refused_unflushed.increment(1);
            let (node, unflushed_bytes) = (self.options.node, self.group.unflushed_bytes());
            return Err(ShardError::DiskBehind { node, unflushed_bytes });
        }
        if !state.estimate.can_meet(owed.produce.deadline_us, now_us) {
            self.metrics.refused_deadline.increment(1);
            return Err(ShardError::Deadline);
        }
        state.queue.push(asked.take().expect("as above"));
        drop(state);
        self.propose_due();
        // What was not proposed waits.
        self.expire_later();
        Ok(())
    }

    /// Whether enough is flushed here for another entry, and there is memory for it.
    fn has_room(&self, state: &State) -> bool {
        self.group.has_flush_room() && state.queue.has_memory()
    }

    /// Waits until there is room for another entry, or something else to do: an entry is in flight, this replica leads no more,
    /// the log has stopped.
    async fn room(&self) {
        loop {
            let (freed, work) = (self.group.log().memory().freed(), self.work.notified());
            let changed = pin!(self.group.wait_changed());
            let stuck = |state: &State| state.in_flight.is_empty() && !self.has_room(state);
            if !stuck(&self.state.borrow()) || !self.group.leads() || self.group.log().fault().is_some() {
                return;
            }
            // Woken when something was flushed or given back, when the log or the group has stopped, when an entry was proposed, and
            // when another leads.
            select(select(freed, work), changed).await;
        }
    }

    /// Why nothing is proposed by a replica that serves and does not lead.
    fn not_leading(&self) -> ShardError {
        let leader = self.group.leader().0.filter(|leader| *leader != self.options.node);
        match self.group.log().has_room(0) {
            // Else the only voter, which cannot lead before there is space, would not say why.
            Err(error @ LogError::Full { .. }) if leader.is_none() => ShardError::Full(error),
            Ok(()) | Err(_) => ShardError::NotLeader { leader },
        }
    }

    /// Proposes what is due.
    fn propose_due(&self) {
        loop {
            let mut state = self.state.borrow_mut();
            if !state.is_due() {
                return;
            }
            if !self.group.leads() {
                let landed = state.in_flight.is_empty();
                drop(state);
                // What is in flight may still tell the requests behind it that they are refused for it.
                if landed {
                    self.hand_back(&self.not_leading());
                }
                return;
            }
            if !self.has_room(&state) && self.group.log().fault().is_none() {
                // What is in flight may land and come here again before there is room.
                if state.in_flight.is_empty() {
                    self.held.set(true);
                    self.work.notify_one();
                }
                return;
            }
            let now_us = E::monotonic_us();
            if state.in_flight.is_empty() {
                // Another leader may have written meanwhile: the log knows.
                state.next = self.group.log().log_end();
            }
            let base_offset = state.next;
            let (gathered, refused) = state.gather(now_us);
            drop(state);
            self.refuse_alone(refused, base_offset, now_us);
            for waiting in gathered.expired {
                self.metrics.refused_deadline.increment(1);
                waiting.answer(Err(ShardError::Deadline));
            }
            if gathered.records > 0 {
                self.propose(gathered.requests, gathered.bytes, gathered.records, base_offset, now_us);
            }
        }
    }

    /// Encodes and proposes one entry.
    fn propose(&self, mut requests: Vec<Placed>, bytes: usize, records: u32, base_offset: Offset, now_us: u64) {
        let timestamp_us = self.next_timestamp_us();
        let mut record_timestamp_max_us = i64::MIN;
        let mut buffer = Buffer::with_capacity(ENTRY_HEADER_BYTES + bytes);
        buffer.grow_to(ENTRY_HEADER_BYTES);
        for placed in requests.iter().filter(|placed| !placed.refused) {
            let records = &placed.waiting.produce.records;
            records.encode_into(&mut buffer, placed.base_offset, timestamp_us);
            record_timestamp_max_us = record_timestamp_max_us.max(records.timestamp_max_with(timestamp_us));
        }
        assert!(buffer.len() <= ENTRY_HEADER_BYTES + bytes, "the announced bounds hold");
        let proposal = Proposal {
            kind: ProposalKind::Batch,
            record_count: records,
            base_offset,
            timestamp_us,
            record_timestamp_max_us,
            buffer,
        };
        // The entry is charged by the group, for the same memory.
        requests.iter_mut().filter(|placed| !placed.refused).for_each(|placed| placed.waiting.in_entry());
        let mut landing: Landing = Box::pin(self.group.propose(proposal).map_ok(Some));
        ack_from_memory(&mut requests, &mut landing, timestamp_us);

        let queued_us = requests.iter().map(|placed| placed.waiting.queued_us).min().unwrap_or(now_us);
        let mut state = self.state.borrow_mut();
        state.next = base_offset.plus(u64::from(records));
        let proposed_us = E::monotonic_us();
        let landing = Some(landing);
        let entry = InFlight { requests, base_offset, timestamp_us, queued_us, proposed_us, landing, confirms: false };
        state.in_flight.push_back(entry);
        assert!(state.in_flight.len() <= ENTRIES_IN_FLIGHT_MAX, "entries in flight are bounded");
        drop(state);
        self.work.notify_one();
    }

    /// The leader's clock (`Group::stamp_us`), but not before what this shard's batches and entries have had already: its time
    /// does not go back when a clock does, or when another node leads.
    fn next_timestamp_us(&self) -> i64 {
        let state = &mut *self.state.borrow_mut();
        state.timestamp_us = self.group.stamp_us().max(state.timestamp_us).max(self.group.log().timestamp_us());
        state.timestamp_us
    }

    /// The first entry in flight has landed, or never will.
    fn landed(self: &Rc<Self>, result: Landed) {
        let applied_us = E::monotonic_us();
        let mut state = self.state.borrow_mut();
        let Some(entry) = state.in_flight.pop_front() else { return };
        state.refused_held = false;
        let mut overtaken = vec![];
        let rolled = match &result {
            Ok(Some(applied)) if applied.answer == ShardAnswer::Appended => {
                assert_eq!(applied.header.base_offset, entry.base_offset, "a batch lands where it was encoded for");
                state.estimate.sample(applied_us, applied_us.saturating_sub(entry.proposed_us));
                // Another leader's records were in front of an entry that is void, and as many as it has.
                overtaken = std::mem::take(&mut state.void);
                let before = std::mem::replace(&mut state.segment, applied.header.segment);
                before != applied.header.segment
            }
            Ok(None) => false,
            Ok(Some(_)) | Err(_) => {
                state.stalled = true;
                false
            }
        };
        drop(state);
        overtaken.into_iter().for_each(refuse_before_unknown);
        // The disk first: answers are only handed out here, their tasks run later.
        let answers = match result {
            Ok(Some(applied)) if applied.answer == ShardAnswer::Appended => Ok(Some(applied.header)),
            Ok(None) => Ok(None),
            Ok(Some(_)) => Err(None),
            Err(error) => Err(Some(error)),
        };
        if answers.is_ok() {
            self.propose_due();
        }
        match answers {
            Ok(Some(header)) => self.ack(entry, &header, applied_us),
            Ok(None) => self.refuse(entry.requests),
            Err(error) => self.not_appended(entry.requests, error),
        }
        self.restart_when_landed();
        if rolled {
            self.rolled.notify_one();
        }
        self.idle.notify_all();
    }

    /// Answers the requests of a committed entry.
    fn ack(&self, mut entry: InFlight, header: &EntryHeader, applied_us: u64) {
        for Placed { waiting, base_offset, refused } in std::mem::take(&mut entry.requests) {
            if refused {
                self.refuse([Placed { waiting, base_offset, refused }]);
                continue;
            }
            let produced = Produced {
                base_offset,
                count: waiting.produce.records.count(),
                timestamp_us: entry.timestamp_us,
                durability: Durability::QuorumFlushed,
                leader: None,
            };
            waiting.answer(Ok(produced));
        }
        let replied_us = E::monotonic_us();
        let InFlight { queued_us, proposed_us, .. } = entry;
        // A later entry's flush may have ended meanwhile, but not after this one was applied.
        let durable_us = self.group.flushed_us().clamp(proposed_us, applied_us.max(proposed_us));
        let stations = Stations { queued_us, proposed_us, durable_us, applied_us, replied_us };
        self.metrics.entry(stations, header.record_count, header.payload_bytes as usize);
    }

    /// Answers the requests of an entry that is void (`None`) or failed, or keeps them for another try.
    fn not_appended(&self, requests: Vec<Placed>, error: Option<GroupError>) {
        let lost = match &error {
            Some(GroupError::NotLeader { .. } | GroupError::Deposed { .. }) => Some(self.not_leading()),
            Some(GroupError::Stopped { cause, .. }) => Some(self.stopped(cause, false)),
            Some(GroupError::Damaged(error)) => Some(self.stopped(&error.to_string(), false)),
            // Said of a group that is opened only.
            Some(GroupError::Starved { cause }) => Some(self.stopped(cause, false)),
            Some(GroupError::Full(_)) | None => None,
        };
        if lost.is_some() {
            self.state.borrow_mut().lost = lost;
        }
        let is_unknown =
            matches!(error, Some(GroupError::Deposed { .. } | GroupError::Stopped { maybe_written: true, .. }));
        if is_unknown {
            // Nothing of these was written, but what is behind them may be.
            let before = std::mem::take(&mut self.state.borrow_mut().void);
            before.into_iter().for_each(refuse_before_unknown);
        }
        for Placed { mut waiting, refused, .. } in requests {
            match &error {
                // It has nothing in the entry.
                _ if is_unknown && refused => refuse_before_unknown(waiting),
                Some(GroupError::Stopped { cause, maybe_written: true }) => {
                    waiting.answer(Err(self.stopped(cause, true)));
                }
                Some(GroupError::Deposed { leader }) => waiting.answer(Err(ShardError::Deposed { leader: *leader })),
                Some(GroupError::Full(error)) if !refused => {
                    self.metrics.refused_full.increment(1);
                    waiting.answer(Err(ShardError::Full(error.clone())));
                }
                // Nothing of it was written: it is handed back with all that wait.
                Some(
                    GroupError::NotLeader { .. }
                    | GroupError::Damaged(_)
                    | GroupError::Starved { .. }
                    | GroupError::Stopped { .. },
                ) => {
                    self.state.borrow_mut().void.push(waiting);
                }
                // What it was refused for, or predicted from, has not come about: it is looked at again.
                None | Some(GroupError::Full(_)) => {
                    waiting.attempts += 1;
                    if waiting.attempts < ATTEMPTS_MAX {
                        self.state.borrow_mut().void.push(waiting);
                    } else {
                        waiting.answer(Err(ShardError::Busy { what: "the end of the log keeps moving" }));
                    }
                }
            }
        }
        if error.is_none() {
            self.metrics.voids.increment(1);
        }
    }

    /// Hands all that waits back, in its order: nothing of it was written, and nothing will be by this replica.
    fn hand_back(&self, error: &ShardError) {
        let waiting = self.state.borrow_mut().queue.drain();
        if waiting.is_empty() {
            return;
        }
        // Before anybody is told: whoever forwards to this replica looks at it before the next request.
        self.losses.set(self.losses.get() + 1);
        let elsewhere = self.elsewhere.borrow().clone();
        let mut owed = Vec::with_capacity(waiting.len());
        for request in waiting.into_iter().filter(|waiting| waiting.reply.is_some()) {
            if request.produce.forwarded || elsewhere.is_none() {
                request.answer(Err(error.clone()));
            } else {
                owed.push(request);
            }
        }
        if let Some(elsewhere) = elsewhere.filter(|_| !owed.is_empty()) {
            elsewhere(owed, error.clone());
        }
    }

    /// A panic has stopped the replica: what was proposed may appear, what waits is handed back.
    pub(super) fn note_panic(&self) {
        // Else a borrow is left over, and the requests are answered when their replies are dropped.
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let in_flight = std::mem::take(&mut state.in_flight);
        let void = std::mem::take(&mut state.void);
        drop(state);
        // Something behind them is in flight, or was when the panic came: they wait for nothing else.
        void.into_iter().for_each(refuse_before_unknown);
        for Placed { waiting, .. } in in_flight.into_iter().flat_map(|entry| entry.requests) {
            waiting.answer(Err(self.stopped_by_panic(true)));
        }
        self.hand_back(&self.stopped_by_panic(false));
        self.idle.notify_all();
        self.rolled.notify_all();
    }

    fn stopped(&self, cause: &str, maybe_written: bool) -> ShardError {
        if self.life.get() == Life::Serving || self.group.fault().is_some() {
            ShardError::Failed { cause: cause.to_owned(), maybe_written }
        } else {
            ShardError::Closing { maybe_written }
        }
    }

    /// When nothing is in flight any more, void batches go again, or all that wait is handed back.
    fn restart_when_landed(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let mut lost = None;
        if state.stalled && state.in_flight.is_empty() {
            state.stalled = false;
            lost = std::mem::take(&mut state.lost);
            let void = std::mem::take(&mut state.void);
            state.queue.put_back(void);
        }
        assert!(state.stalled || state.void.is_empty(), "void batches wait only while stalled");
        drop(state);
        if let Some(error) = lost {
            self.hand_back(&error);
        }
        self.propose_due();
        self.expire_later();
    }

    /// Refuses requests for their offsets with nothing in flight. At once when that is true for good: records are committed where
    /// they were to go. Else when this leader knows that the log ends at `end`: it may have entries that another one replaces,
    /// or be replaced itself, and not know it; then they are handed back, with all that wait behind them.
    fn refuse_alone(&self, requests: Vec<Placed>, end: Offset, now_us: u64) {
        let is_past = |placed: &Placed| placed.waiting.produce.expected_offset.is_some_and(|expected| expected < end);
        let is_certain = requests.iter().all(is_past) && self.group.high_watermark() == end;
        if requests.is_empty() || is_certain {
            return self.refuse(requests);
        }
        let landing: Landing = Box::pin(self.group.confirm_end(end).map_ok(|()| None));
        // Nothing of it is acknowledged: the timestamp is never asked for.
        let (timestamp_us, queued_us, proposed_us, landing) = (0, now_us, now_us, Some(landing));
        let waiting =
            InFlight { requests, base_offset: end, timestamp_us, queued_us, proposed_us, landing, confirms: true };
        self.state.borrow_mut().in_flight.push_back(waiting);
        self.work.notify_one();
    }

    /// Answers requests whose expected offset is another, as everything before them is durable.
    fn refuse(&self, requests: impl IntoIterator<Item = Placed>) {
        for Placed { waiting, base_offset, .. } in requests {
            let Some(expected) = waiting.produce.expected_offset else { continue };
            self.metrics.refused_offset.increment(1);
            waiting.answer(Err(ShardError::OffsetMismatch { expected, actual: base_offset }));
        }
    }
}

/// Answers a request of which nothing was written, but that is before something which is, or may be: it must not go again behind that, nor
/// be handed back, which would say that all behind it was not written either.
fn refuse_before_unknown(waiting: Owed) {
    waiting.answer(Err(ShardError::Busy { what: "the end of the log is not known" }));
}

/// Acknowledges what asks for no more than the leader's memory, unless the proposal is refused at once
/// (disk full, not the leader), which its first poll tells.
fn ack_from_memory(requests: &mut [Placed], landing: &mut Landing, timestamp_us: i64) {
    let from_memory =
        |placed: &Placed| placed.waiting.produce.durability == Durability::LeaderMemory && !placed.refused;
    if !requests.iter().any(from_memory) {
        return;
    }
    // Nobody has to be woken: the pump polls it again, with its own waker.
    if let Poll::Ready(result) = landing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        let refused = result.is_err();
        *landing = Box::pin(std::future::ready(result));
        if refused {
            return;
        }
    }
    for placed in requests.iter_mut().filter(|placed| from_memory(placed)) {
        let Some(reply) = placed.waiting.reply.take() else { continue };
        let produced = Produced {
            base_offset: placed.base_offset,
            count: placed.waiting.produce.records.count(),
            timestamp_us,
            durability: Durability::LeaderMemory,
            leader: None,
        };
        // Nobody may be listening any more.
        drop(reply.send(Ok(produced)));
    }
}

#[cfg(test)]
impl State {
    /// Base offsets of the entries in flight.
    pub(super) fn in_flight_bases(&self) -> Vec<u64> {
        self.in_flight.iter().map(|entry| entry.base_offset.0).collect()
    }

    /// Has the next batch encoded for another offset than it will have.
    pub(super) fn mispredict(&mut self, next: Offset) {
        self.next = next;
    }
}
