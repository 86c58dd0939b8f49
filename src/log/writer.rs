//! The append path: entries get their place at once and reach the device in one write at a time.
//!
//! `append` starts the write itself, by polling it with the writer task's waker, so that an idle log
//! costs no task switch between the call and the device; the task is woken by the completion, runs the
//! callbacks and starts the next write, with all that gathered meanwhile.
//!
//! Invariant, on which recovery relies: when a write is started, all entries below its first one are
//! durable. Each entry of it says so (`durable_end`).

use std::{
    future::{Future, poll_fn},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{Inner, LogError, OnDurable, Phase, SegmentOf, State, point_after, state::Change};
use crate::{
    budget::Use,
    env::{Env, File, buffer::Buffer, channel::OneshotSender},
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind, NewEntry, StoredEntry},
        segment::{LogPoint, Slot},
        state_files::HardStateSlot,
    },
    ids::SegmentSequence,
    limits::BLOCK_BYTES,
};

/// Bytes of one write, more or less: what is gathered beyond it goes with the next.
const WRITE_BYTES_MAX: usize = 8 << 20;

/// Buffers of one write: below the kernel's limit of 1,024 (IOV_MAX).
const WRITE_BUFFERS_MAX: usize = 1_000;

/// What waits for the device, in order.
pub(super) enum Job<E: Env> {
    /// An entry with its place.
    Entry(Placed<E>),
    /// All before this is durable.
    Done(OnDurable),
    /// Write the hard state.
    HardState(Change, OneshotSender<Result<(), LogError>>),
}

/// An entry with its place.
pub(super) struct Placed<E: Env> {
    segment: SegmentOf<E>,
    position: u64,
    header: EntryHeader,
    /// Header, payload and padding.
    bytes: Bytes,
}

/// The write in flight.
pub(super) struct Flight<E: Env> {
    write: Pin<Box<dyn Future<Output = io::Result<()>>>>,
    landing: Landing<E>,
}

enum Landing<E: Env> {
    Entries { segment: SegmentOf<E>, end: LogPoint, bytes: usize, done: Vec<OnDurable> },
    HardState { slot: HardStateSlot, saved: OneshotSender<Result<(), LogError>> },
}

/// Starts the writer task; it ends with the last handle to the log.
pub(super) fn start<E: Env>(inner: &Rc<Inner<E>>) {
    let weak: Weak<Inner<E>> = Rc::downgrade(inner);
    crate::env::spawn::<E>(poll_fn(move |context| {
        let Some(inner) = weak.upgrade() else { return Poll::Ready(()) };
        let known = inner.waker.borrow().as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if !known {
            *inner.waker.borrow_mut() = Some(context.waker().clone());
        }
        inner.drive_with(context);
        // Woken by the write in flight, and by the end of the log's last handle. Who queues something drives it at once, with this waker.
        Poll::Pending
    }));
}

impl<E: Env> Drop for Inner<E> {
    fn drop(&mut self) {
        // Lets the writer task see that nobody is left.
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl<E: Env> Inner<E> {
    /// Gives the entry its place and queues it.
    ///
    /// # Errors
    /// `Diverged`, and nothing was changed.
    pub(super) fn assign(self: &Rc<Self>, new: NewEntry) -> Result<(), LogError> {
        let state = &mut *self.state.borrow_mut();
        let mut header = self.header_for(state, &new)?;
        let NewEntry { mut buffer, charge, .. } = new;
        let bytes = header.padded_bytes();
        assert_eq!(bytes, buffer.padded_len(), "a buffer is its content and the rest of the last block");
        let segment = self.segment_for(state, bytes as u64);
        header.segment = segment.sequence;
        buffer.bytes_mut()[..ENTRY_HEADER_BYTES].copy_from_slice(&header.encode());
        let padded = buffer.freeze_padded();
        let position = place(&segment, &header);
        if let Some(vote) = state.hard.state.vote
            && vote.term > header.id.term
            && state.supply.lend(vote.term, bytes)
        {
            segment.now.borrow_mut().urgent = true;
        }
        state.end = point_after(&header);
        // Whoever could be refused has asked for room before.
        let mut charge = charge.unwrap_or_else(|| self.tail.memory().none(Use::Unflushed));
        charge.set(bytes);
        state.unflushed.absorb(charge);
        state.timestamp_us = state.timestamp_us.max(header.timestamp_us);
        self.tail.push(StoredEntry { header, bytes: padded.slice(..header.bytes()) });
        state.queue.push_back(Job::Entry(Placed { segment, position, header, bytes: padded }));
        Ok(())
    }

    /// The header of the next entry, but for its segment.
    fn header_for(&self, state: &State<E>, new: &NewEntry) -> Result<EntryHeader, LogError> {
        let &NewEntry { id, kind, mut record_count, base_offset, timestamp_us, record_timestamp_max_us, .. } = new;
        assert!(!state.exclusive, "nothing is appended while the log is cut");
        assert_eq!(id.index, state.end.next, "entries are appended in order");
        assert!(id.term >= state.end.term, "terms do not go back");
        assert!(new.buffer.len() >= ENTRY_HEADER_BYTES, "the buffer has room for the header");
        assert_eq!((kind == EntryKind::Batch), record_count > 0, "batches and only they have records");
        let mut kind = kind;
        let mut timestamp_max_us = state.end.timestamp_max_us.max(record_timestamp_max_us);
        if kind == EntryKind::Batch && base_offset != state.end.offset {
            kind = EntryKind::Void;
            record_count = 0;
            timestamp_max_us = state.end.timestamp_max_us;
        }
        // A log's own time does not go back, whatever the clock does; a leader has seen to that for what comes from it.
        let timestamp_us = if new.leader.is_none() { timestamp_us.max(state.timestamp_us) } else { timestamp_us };
        let payload = &new.buffer.bytes()[ENTRY_HEADER_BYTES..];
        let mut header = EntryHeader {
            kind,
            payload_bytes: u32::try_from(payload.len()).expect("entries are bounded far below 4 GiB"),
            record_count,
            shard: self.options.shard,
            segment: SegmentSequence(0),
            id,
            base_offset: state.end.offset,
            timestamp_us,
            timestamp_max_us,
            durable_end: state.flushed.next.0,
            chain: 0,
            payload_crc: new.leader.map_or_else(|| crc32c::crc32c(payload), |leader| leader.payload_crc),
        };
        header.chain = header.chain_after(state.end.chain);
        match new.leader {
            Some(leader) if leader.chain != header.chain => Err(LogError::Diverged {
                dir: self.options.dir.clone(),
                id,
                expected: leader.chain,
                found: header.chain,
            }),
            Some(_) | None => Ok(header),
        }
    }

    /// The segment into which an entry of this many bytes goes; rolls when the present one has no room.
    fn segment_for(self: &Rc<Self>, state: &mut State<E>, bytes: u64) -> SegmentOf<E> {
        let open = state.segments.back().filter(|segment| segment.has_room(bytes, state.end.offset)).cloned();
        let segment = open.unwrap_or_else(|| self.roll(state, bytes));
        self.supply_for(state, &segment);
        segment
    }

    /// Starts or continues what there is to write, on behalf of whoever has queued something.
    pub(super) fn drive(self: &Rc<Self>) {
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            self.drive_with(&mut Context::from_waker(&waker));
        }
    }

    /// As `drive`, when what is ready to run now has run.
    pub(super) fn drive_soon(self: &Rc<Self>) {
        // What is in flight drives when it lands.
        if self.flight.borrow().is_some() || self.driven_soon.replace(true) {
            return;
        }
        let weak = Rc::downgrade(self);
        crate::env::spawn::<E>(async move {
            crate::env::yield_now().await;
            if let Some(inner) = weak.upgrade() {
                inner.driven_soon.set(false);
                inner.drive();
            }
        });
    }

    fn drive_with(self: &Rc<Self>, context: &mut Context<'_>) {
        if self.driving.replace(true) {
            return;
        }
        loop {
            let flight = self.flight.borrow_mut().take();
            let Some(mut flight) = flight.or_else(|| self.take_off()) else { break };
            match flight.write.as_mut().poll(context) {
                Poll::Pending => {
                    *self.flight.borrow_mut() = Some(flight);
                    break;
                }
                Poll::Ready(result) => self.land(flight.landing, result),
            }
        }
        self.driving.set(false);
    }

    /// The next write, if there is something to write and somewhere to write it.
    fn take_off(&self) -> Option<Flight<E>> {
        loop {
            let mut state = self.state.borrow_mut();
            if state.fault.is_some() {
                return None;
            }
            match state.queue.front()? {
                Job::Entry(placed) => {
                    // Not made yet: the supply drives again when it is.
                    placed.segment.now.borrow().appender.as_ref()?;
                    return Some(self.entries_flight(&mut state));
                }
                Job::Done(_) => {
                    if let Some(Job::Done(done)) = state.queue.pop_front() {
                        drop(state);
                        done(Ok(()));
                    }
                }
                Job::HardState(..) => {
                    if let Some(Job::HardState(change, saved)) = state.queue.pop_front() {
                        return Some(hard_state_flight(&state, change, saved));
                    }
                }
            }
        }
    }

    /// Takes from the queue what goes into one write: neighbours in one segment.
    fn entries_flight(&self, state: &mut State<E>) -> Flight<E> {
        let (mut buffers, mut done) = (Vec::new(), Vec::new());
        let (mut start, mut bytes, mut end) = (0, 0, state.flushed);
        let mut target: Option<SegmentOf<E>> = None;
        let durable_end = state.flushed.next.0;
        while buffers.len() < WRITE_BUFFERS_MAX && bytes < WRITE_BYTES_MAX {
            match state.queue.front() {
                Some(Job::Entry(placed)) => {
                    if target.as_ref().is_some_and(|segment| !Rc::ptr_eq(segment, &placed.segment)) {
                        break;
                    }
                }
                Some(Job::Done(_)) => {}
                Some(Job::HardState(..)) | None => break,
            }
            match state.queue.pop_front() {
                Some(Job::Entry(placed)) => {
                    assert_eq!(placed.header.id.index, end.next, "entries are written in order");
                    if target.is_none() {
                        start = placed.position;
                        if !placed.segment.now.borrow().on_disk {
                            assert_eq!(start, BLOCK_BYTES as u64, "the header goes with the first entry");
                            start = 0;
                            buffers.push(placed.segment.header(self.options.shard, E::wall_us()).encode());
                        }
                        target = Some(placed.segment);
                    }
                    end = point_after(&placed.header);
                    bytes += placed.bytes.len();
                    push_entry(&mut buffers, placed.header, placed.bytes, durable_end);
                }
                Some(Job::Done(waiting)) => done.push(waiting),
                Some(Job::HardState(..)) | None => unreachable!("looked at above"),
            }
        }
        // What was queued right behind the last entry is done with it, too.
        while let Some(Job::Done(_)) = state.queue.front() {
            if let Some(Job::Done(waiting)) = state.queue.pop_front() {
                done.push(waiting);
            }
        }
        let segment = target.expect("the first job is an entry");
        let file = segment.now.borrow().appender.clone().expect("looked at by the caller");
        let write = Box::pin(async move { file.append_durable(start, buffers).await });
        Flight { write, landing: Landing::Entries { segment, end, bytes, done } }
    }

    /// What a finished write means.
    fn land(self: &Rc<Self>, landing: Landing<E>, result: io::Result<()>) {
        match landing {
            Landing::Entries { segment, done, .. } if result.is_err() => {
                let error = result.expect_err("it is one");
                let fault = self.stop(&segment.path(), "written", &error);
                done.into_iter().for_each(|done| done(Err(fault.clone())));
            }
            Landing::Entries { segment, end, bytes, done } => {
                {
                    let state = &mut *self.state.borrow_mut();
                    assert!(state.flushed.next < end.next, "each write makes more durable");
                    state.flushed = end;
                    state.unflushed.give_back(bytes);
                    state.check_order();
                }
                self.tail.flushed(end.next);
                let begun = !std::mem::replace(&mut segment.now.borrow_mut().on_disk, true);
                done.into_iter().for_each(|done| done(Ok(())));
                self.mark_when_idle();
                let full = segment.now.borrow().phase == Phase::Full && segment.end().next == end.next;
                if begun {
                    self.name_later(&segment);
                }
                if full {
                    self.seal_later(&segment);
                }
            }
            Landing::HardState { slot, saved } => {
                let outcome = match result {
                    Ok(()) => {
                        self.state.borrow_mut().hard = slot;
                        Ok(())
                    }
                    Err(error) => Err(self.stop(&self.options.dir.join("hard_state"), "written", &error)),
                };
                // Whoever asked may have gone away; the state is saved all the same.
                drop(saved.send(outcome));
            }
        }
        if self.state.borrow().queue.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Fail-stop: nothing is written from now on, and all who wait hear of it. Returns the error that stays.
    pub(super) fn stop(&self, file: &Path, action: &'static str, error: &io::Error) -> LogError {
        self.stop_with(LogError::Stopped { file: PathBuf::from(file), action, cause: error.to_string() })
    }

    /// As `stop`, for an error of another kind.
    pub(super) fn stop_with(&self, error: LogError) -> LogError {
        let (fault, queue) = {
            let state = &mut *self.state.borrow_mut();
            let fault = state.fault.get_or_insert(error).clone();
            // They will never be flushed: nobody is to wait for that.
            let mut kept = self.tail.memory().none(Use::Stopped);
            kept.absorb(std::mem::replace(&mut state.unflushed, self.tail.memory().none(Use::Stopped)));
            state.unflushed = kept;
            (fault, std::mem::take(&mut state.queue))
        };
        for job in queue {
            match job {
                Job::Entry(_) => {}
                Job::Done(done) => done(Err(fault.clone())),
                Job::HardState(_, saved) => drop(saved.send(Err(fault.clone()))),
            }
        }
        self.changed.notify_all();
        // What waits for this log to be flushed waits in vain.
        self.tail.memory().wake();
        fault
    }

    /// What is next in the queue is an entry that waits for space, and the disk has none: nothing is written before it has.
    pub(super) fn is_stuck(&self) -> bool {
        self.state.borrow().supply.is_stuck() && self.waits_for_file()
    }

    /// What is next in the queue is an entry whose segment has no file yet, and nothing is in flight: nothing is written before
    /// it has one.
    pub(super) fn waits_for_file(&self) -> bool {
        let waits = |job: &Job<E>| matches!(job, Job::Entry(placed) if placed.segment.now.borrow().appender.is_none());
        self.flight.borrow().is_none() && self.state.borrow().queue.front().is_some_and(waits)
    }

    /// Suspends until all that was queued is durable, or waits for space with nobody about to look for some.
    ///
    /// # Errors
    /// The log's fault.
    pub(super) async fn drained_or_stuck(&self) -> Result<(), LogError> {
        self.until_or_fault(|| {
            let is_stuck = self.is_stuck() && !self.state.borrow().supply.is_giving();
            (is_stuck || self.is_idle()).then_some(Ok(()))
        })
        .await
    }

    /// Takes all entries out of the queue, with nothing in flight; they are in the log still. Returns who waits for them.
    pub(super) fn drop_queued(&self) -> Vec<OnDurable> {
        let state = &mut *self.state.borrow_mut();
        let (mut done, mut dropped) = (Vec::new(), 0);
        for job in std::mem::take(&mut state.queue) {
            match job {
                Job::Entry(placed) => dropped += placed.bytes.len(),
                Job::Done(waiting) => done.push(waiting),
                Job::HardState(..) => state.queue.push_back(job),
            }
        }
        state.unflushed.give_back(dropped);
        state.supply.forget_waiting();
        done
    }

    /// Nothing queued, nothing in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.flight.borrow().is_none() && self.state.borrow().queue.is_empty()
    }

    /// Suspends until all that was queued is durable.
    ///
    /// # Errors
    /// The log's fault.
    pub(super) async fn drained(&self) -> Result<(), LogError> {
        self.until_or_fault(|| self.is_idle().then_some(Ok(()))).await
    }
}

/// Whether the queue holds changes of the hard state.
pub(super) fn has_changes<E: Env>(state: &State<E>) -> bool {
    state.queue.iter().any(|job| matches!(job, Job::HardState(..)))
}

/// Reserves the entry's place in its segment; returns its position.
fn place<F: Clone>(segment: &super::Segment<F>, header: &EntryHeader) -> u64 {
    let now = &mut *segment.now.borrow_mut();
    let position = now.data_end;
    assert!(position + (header.padded_bytes() + BLOCK_BYTES) as u64 <= now.capacity, "room for the footer is left");
    let slot = Slot {
        offset: u32::try_from(header.base_offset.0 - segment.base.offset.0).expect("looked at before the roll"),
        position: u32::try_from(position).expect("segments are below 4 GiB"),
    };
    match &now.slots {
        super::segment::Slots::Live(slots) => slots.borrow_mut().push(slot),
        super::segment::Slots::Cached(_) => unreachable!("an open segment's index is live"),
    }
    if now.end.next == segment.base.next {
        now.first_term = header.id.term;
    }
    now.data_end += header.padded_bytes() as u64;
    now.end = point_after(header);
    now.last_timestamp_us = header.timestamp_us;
    now.urgent |= !matches!(header.kind, EntryKind::Batch | EntryKind::Void);
    position
}

/// Adds an entry's bytes to a write. If it was assigned while an earlier write was in flight, more is durable now than its
/// header says: the first block is copied with a header that says so.
fn push_entry(buffers: &mut Vec<Bytes>, header: EntryHeader, bytes: Bytes, durable_end: u64) {
    if header.durable_end == durable_end {
        buffers.push(bytes);
        return;
    }
    let mut first = Buffer::zeroed(BLOCK_BYTES);
    first.bytes_mut().copy_from_slice(&bytes[..BLOCK_BYTES]);
    first.bytes_mut()[..ENTRY_HEADER_BYTES].copy_from_slice(&EntryHeader { durable_end, ..header }.encode());
    buffers.push(first.freeze_padded());
    if bytes.len() > BLOCK_BYTES {
        buffers.push(bytes.slice(BLOCK_BYTES..));
    }
}

/// Writes of both slots, the one that does not hold the present hard state first: a crash in between leaves the old state or
/// the new one, and what was acknowledged is in both, so that damage to one of them loses no vote. What is flushed goes into
/// that one alone.
fn hard_state_flight<E: Env>(
    state: &State<E>,
    change: Change,
    saved: OneshotSender<Result<(), LogError>>,
) -> Flight<E> {
    let mut slot = HardStateSlot { sequence: state.hard.sequence + 2, ..state.hard };
    let mut slots = 2;
    match change {
        Change::Raft(raft) => slot.state = raft,
        Change::Start(start) => slot.start = start,
        Change::Flushed => {
            // The other slot says the same but for this.
            (slot.sequence, slots) = (state.hard.sequence + 1, 1);
            slot.flushed = state.flushed.last();
        }
        Change::Unflushed => slot.flushed = None,
    }
    let ahead = slot.state.committed.is_some_and(|committed| committed.index >= state.flushed.next);
    assert!(!ahead, "what is called committed is durable here");
    let file = state.hard_file.clone();
    let both = [HardStateSlot { sequence: slot.sequence.wrapping_sub(1), ..slot }, slot];
    let write = Box::pin(async move {
        for slot in &both[2 - slots..] {
            let position = slot.sequence % 2 * BLOCK_BYTES as u64;
            file.append_durable(position, vec![slot.encode()]).await?;
        }
        Ok(())
    });
    Flight { write, landing: Landing::HardState { slot, saved } }
}
