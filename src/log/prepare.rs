//! Segments made ahead of need: written with zeros, synced and named, so that an append to them is one
//! write and one flush, and so that a roll is a change of pointers.
//!
//! A file made ahead is called `<number>.spare` and is durable under that name. When the log rolls into
//! it, its header goes with the first entries in one write; after that it is renamed in the background.
//! Recovery takes a spare with a fitting header for the segment that it is.
//!
//! A full disk stops the supply, not the log: it tries again, and meanwhile `has_room` answers from
//! what is there. Of that, `RESERVE_BYTES` are left to Raft's own entries and to commands, which get the disk's reserve
//! (`env::reserve`), too, when they wait for a file: one of them may be the trim that frees space. So does a vote, which is
//! written behind the entries before it. A process without descriptors makes the supply wait, and what needs a new file with it.

use std::{
    cell::OnceCell,
    collections::VecDeque,
    io,
    path::PathBuf,
    rc::{Rc, Weak},
    time::Duration,
};

use bytes::Bytes;

use super::{FileOf, Inner, LogError, Phase, Segment, SegmentOf, State, is_full, writer::has_changes};
use crate::{
    env::{Disk, Env, File, OpenMode, buffer::Buffer, is_transient, lacks_descriptors, lasting, reserve},
    ids::{SegmentSequence, Term},
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN, STUCK_BYTES_MAX},
};

/// Left to Raft's own entries and to commands when the disk is full.
const RESERVE_BYTES: u64 = 64 << 10;

/// The next segment is made once this much of the present one was used by this process, so that an idle shard has one file,
/// however often it is restarted; and the rate at which it fills is known then.
const PREPARE_AFTER_BYTES: u64 = 64 << 10;

/// For whom space is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Leaves the disk's reserve alone.
    Records,
    /// May have all there is.
    Urgent,
}

/// Zeros of one write, and between two syncs, while there is no hurry: bounds what an append's own write and flush may have
/// to wait for. After each write there is a pause: a longer one while enough is made (16 MB/s).
const AHEAD: Step = Step { chunk_bytes: 256 << 10, sync_every_bytes: 1 << 20, pause: Duration::from_millis(16) };

/// The same while the open segment comes nearer.
const EASY: Step = Step { pause: Duration::from_millis(1), ..AHEAD };

/// The same when the open segment fills faster than the next one is made.
const HURRIED: Step = Step { chunk_bytes: 1 << 20, sync_every_bytes: 16 << 20, pause: Duration::ZERO };

/// How zeros are written.
struct Step {
    chunk_bytes: u64,
    sync_every_bytes: u64,
    pause: Duration,
}

/// How often a full disk is looked at while entries wait for it, and what found no descriptor is tried again (tests do not wait that long).
pub(super) const RETRY: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_millis(200) };

/// A segment that fills in less than this is followed by one four times its size ...
const FILL_FAST_US: u64 = 10_000_000;

/// ... and one that takes longer than this by one of a quarter.
const FILL_SLOW_US: u64 = 600_000_000;

/// Files ahead of need, and who waits for them.
pub(super) struct Supply<F> {
    ready: Option<Spare<F>>,
    /// A segment's file that retention gave back: used instead of writing zeros, if its size suits.
    recycled: Option<(PathBuf, u64)>,
    /// Segments with entries and without a file, in order.
    waiting: VecDeque<Rc<Segment<F>>>,
    running: bool,
    /// Makes the file of the first that waits.
    giving: bool,
    /// Records got no space at the last attempt.
    full: bool,
    /// At the last attempt the process lacked descriptors or memory.
    starved: bool,
    /// At that attempt there was nothing left even for what may have the disk's reserve, and it waits.
    reserve_spent: bool,
    /// Bytes of entries of earlier terms (`lend`) since there was space for records, and in which term.
    lent: (Term, usize),
    /// When the last attempt failed.
    failed_us: u64,
    /// Number of the next spare.
    next_number: u64,
    /// When this process began to write to the open segment, and where.
    begun_us: u64,
    begun_at: u64,
}

/// A file of zeros (or of stale entries) that has all its blocks.
struct Spare<F> {
    file: F,
    path: PathBuf,
    bytes: u64,
}

impl<F> Supply<F> {
    /// Nothing is there yet; the open segment, if there is one, has data up to `begun_at`.
    pub fn new(now_us: u64, begun_at: u64) -> Supply<F> {
        Supply {
            ready: None,
            recycled: None,
            waiting: VecDeque::new(),
            running: false,
            giving: false,
            full: false,
            starved: false,
            reserve_spent: false,
            lent: (Term(0), 0),
            failed_us: 0,
            next_number: 0,
            begun_us: now_us,
            begun_at,
        }
    }

    /// Entries wait for space that is not there.
    pub fn is_stuck(&self) -> bool {
        self.full && !self.waiting.is_empty()
    }

    /// Entries wait for a file that the process lacks descriptors or memory for.
    pub fn is_starved(&self) -> bool {
        self.starved && !self.waiting.is_empty()
    }

    /// Whether an entry of a term before that of the leader may have the disk's reserve: it comes before the leader's first one, and a
    /// leader sends no more until it is flushed. Not more of them for one leader than a vote may have in front of it; with the next
    /// leader it begins anew, as long as the reserve lasts.
    pub fn lend(&mut self, leading: Term, bytes: usize) -> bool {
        let lent = if self.lent.0 == leading { self.lent.1 } else { 0 };
        self.lent = (leading, if self.full { lent + bytes } else { lent });
        self.lent.1 <= STUCK_BYTES_MAX
    }

    /// There was space for what was tried last. What had to have the reserve was tried as records before: those got none.
    fn note_space(&mut self, claim: Claim) {
        self.full = claim == Claim::Urgent;
        self.reserve_spent = false;
        if claim == Claim::Records {
            self.lent.1 = 0;
        }
    }

    /// Entries that may have the reserve are among what waits.
    fn is_urgent(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.now.borrow().urgent)
    }

    /// Its task is at a file for entries that wait.
    pub fn is_giving(&self) -> bool {
        self.giving
    }

    /// The entries that wait are not to be written any more.
    pub fn forget_waiting(&mut self) {
        assert!(!self.giving || self.waiting.is_empty(), "no file is made for them just now");
        self.waiting.clear();
    }

    /// Its task is at work.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Takes all files ahead of need away, for removal.
    pub fn clear(&mut self) -> Vec<PathBuf> {
        let ready = self.ready.take().map(|spare| spare.path);
        let recycled = self.recycled.take().map(|(path, _)| path);
        ready.into_iter().chain(recycled).collect()
    }
}

impl<E: Env> Inner<E> {
    /// Ends the open segment and begins the next, for an entry of `bytes`.
    pub(super) fn roll(self: &Rc<Self>, state: &mut State<E>, bytes: u64) -> SegmentOf<E> {
        let need = bytes + 2 * BLOCK_BYTES as u64;
        let planned = self.planned_bytes(state).max(need);
        if let Some(open) = state.segments.back() {
            let now = &mut *open.now.borrow_mut();
            assert!(open.base.next < now.end.next, "a segment without entries is never left behind");
            if now.phase == Phase::Open {
                now.phase = Phase::Full;
                if now.end.next == state.flushed.next {
                    self.seal_later(open);
                }
            }
        }
        let sequence = SegmentSequence(state.sequence_next);
        state.sequence_next += 1;
        let spare = match state.supply.ready.take() {
            Some(spare) if spare.bytes >= need => Some(spare),
            small => {
                // Too small for this entry; it serves the next segment.
                state.supply.ready = small;
                None
            }
        };
        let (path, capacity) = match &spare {
            Some(spare) => (spare.path.clone(), spare.bytes),
            None => (PathBuf::new(), planned),
        };
        let segment = Rc::new(Segment::new(sequence, state.end, path, capacity));
        segment.now.borrow_mut().appender = spare.map(|spare| spare.file);
        let base = Some(segment.base.offset);
        // One that is gone from the log may still have its file.
        let is_there = state.segments.iter().any(|other| Some(other.base.offset) == base);
        segment.shares_base.set(is_there || state.last_base == base);
        state.last_base = base;
        state.segments.push_back(segment.clone());
        state.supply.begun_us = E::monotonic_us();
        state.supply.begun_at = BLOCK_BYTES as u64;
        segment
    }

    /// Size of the segment after the open one: grows and shrinks with the shard's own rate.
    fn planned_bytes(&self, state: &State<E>) -> u64 {
        let max = self.options.segment_bytes_max;
        let min = SEGMENT_BYTES_MIN.min(max);
        let Some(open) = state.segments.back() else { return min };
        let now = open.now.borrow();
        let elapsed_us = E::monotonic_us().saturating_sub(state.supply.begun_us);
        let written = now.data_end.saturating_sub(state.supply.begun_at);
        // What an earlier process has written says nothing of the rate, and one entry little: a thousand idle shards would
        // grow fourfold with each restart.
        if written < PREPARE_AFTER_BYTES.min(now.capacity / 4) {
            return now.intended_bytes.clamp(min, max).next_multiple_of(BLOCK_BYTES as u64);
        }
        let fill_us = elapsed_us.saturating_mul(now.capacity) / written;
        let bytes = match fill_us {
            ..FILL_FAST_US => now.intended_bytes.saturating_mul(4),
            FILL_SLOW_US.. => now.intended_bytes / 4,
            _ => now.intended_bytes,
        };
        bytes.clamp(min, max).next_multiple_of(BLOCK_BYTES as u64)
    }

    /// Sees to it that `segment` gets its file, and the next one its own in time.
    pub(super) fn supply_for(self: &Rc<Self>, state: &mut State<E>, segment: &SegmentOf<E>) {
        {
            let now = &mut *segment.now.borrow_mut();
            if now.appender.is_none() && !std::mem::replace(&mut now.requested, true) {
                state.supply.waiting.push_back(segment.clone());
            }
        }
        if !state.supply.waiting.is_empty() || (!state.supply.full && self.wants_ahead(state)) {
            self.start_supply(state);
        }
    }

    /// Whether a spare is to be made: not before the open segment is in use, so that idle shards cost one file each; and
    /// always while the disk is full, since making one tells when space has returned.
    fn wants_ahead(&self, state: &State<E>) -> bool {
        let (used, room) = state.segments.back().map_or((0, 0), |segment| {
            let (data_end, capacity) = (segment.now.borrow().data_end, segment.now.borrow().capacity);
            (data_end.saturating_sub(state.supply.begun_at), capacity.saturating_sub(state.supply.begun_at))
        });
        let in_use = used > 0 && used >= PREPARE_AFTER_BYTES.min(room / 4);
        state.supply.ready.is_none() && (in_use || state.supply.full)
    }

    /// Answers `has_room_for_command`.
    pub(super) fn has_room_for_command(self: &Rc<Self>, bytes: u64) -> Result<(), LogError> {
        // On credit: what waits for a file gets one from the reserve.
        let credit = self.disk.reserve().is_some() && !self.state.borrow().supply.reserve_spent;
        if credit { Ok(()) } else { self.has_room_for(bytes) }
    }

    /// Answers `has_room`.
    pub(super) fn has_room(self: &Rc<Self>, bytes: u64) -> Result<(), LogError> {
        self.has_room_for(bytes + RESERVE_BYTES)
    }

    fn has_room_for(self: &Rc<Self>, bytes: u64) -> Result<(), LogError> {
        let state = &mut *self.state.borrow_mut();
        if !state.supply.full {
            return Ok(());
        }
        let block = BLOCK_BYTES as u64;
        let open = state.segments.back().map_or(0, |segment| {
            let now = segment.now.borrow();
            let usable = now.phase == Phase::Open && now.appender.is_some();
            if usable { now.capacity.saturating_sub(now.data_end + block) } else { 0 }
        });
        let spare = state.supply.ready.as_ref().map_or(0, |spare| spare.bytes.saturating_sub(2 * block));
        // Entries are not split: all of it fits before the roll, or all of it behind.
        if bytes <= open.max(spare) {
            return Ok(());
        }
        if E::monotonic_us().saturating_sub(state.supply.failed_us) >= RETRY.as_micros() as u64 {
            self.start_supply(state);
        }
        Err(LogError::Full { dir: self.options.dir.clone() })
    }

    /// Offers a removed segment's file (already under a spare's name) for reuse; `false` if there is no use for it.
    pub(super) fn wants_recycled(&self, bytes: u64) -> Option<PathBuf> {
        let state = &mut *self.state.borrow_mut();
        let planned = self.planned_bytes(state);
        let suits = bytes >= planned / 2 && bytes <= planned.saturating_mul(2);
        if !suits || state.supply.recycled.is_some() || state.closed {
            return None;
        }
        Some(self.spare_path(state))
    }

    /// The file is there under its spare name, durably.
    pub(super) fn recycle(&self, path: PathBuf, bytes: u64) {
        self.state.borrow_mut().supply.recycled = Some((path, bytes));
    }

    fn spare_path(&self, state: &mut State<E>) -> PathBuf {
        state.supply.next_number += 1;
        self.options.dir.join(format!("{:020}.spare", state.supply.next_number))
    }

    /// Starts the supply's task unless it runs.
    fn start_supply(self: &Rc<Self>, state: &mut State<E>) {
        if !std::mem::replace(&mut state.supply.running, true) {
            let weak = Rc::downgrade(self);
            crate::env::spawn::<E>(run(weak));
        }
    }

    /// Does what is most urgent, and says as what it got its space; `None` when there is nothing to do.
    async fn supply_one(self: &Rc<Self>) -> Option<io::Result<Claim>> {
        let (segment, ahead, planned) = {
            let state = self.state.borrow();
            if state.is_over() {
                return None;
            }
            let (segment, ahead) = (state.supply.waiting.front().cloned(), self.wants_ahead(&state));
            if segment.is_none() && !ahead && !state.supply.full {
                return None;
            }
            (segment, ahead, self.planned_bytes(&state))
        };
        Some(match segment {
            Some(segment) => {
                self.state.borrow_mut().supply.giving = true;
                let given = self.give(&segment).await;
                self.state.borrow_mut().supply.giving = false;
                given
            }
            None if ahead => self.make_ahead(planned).await.map(|()| Claim::Records),
            // There is a spare, too small for what was refused: whether there is space again is asked only.
            None => self.check_free(planned, Claim::Records).await.map(|()| Claim::Records),
        })
    }

    /// Gives a segment with entries its file: as large as intended, else as large as it must be; then also from the reserve,
    /// when something waits that may have it.
    async fn give(self: &Rc<Self>, segment: &SegmentOf<E>) -> io::Result<Claim> {
        let full = match self.give_file(segment, Claim::Records).await {
            Err(error) if is_full(&error) => error,
            given => return given,
        };
        // Those in front of an urgent one are written before it.
        let urgent = {
            let state = self.state.borrow();
            has_changes(&state) || state.supply.is_urgent()
        };
        if !urgent || self.disk.reserve().is_none() {
            least_capacity(segment, SEGMENT_BYTES_MIN, full)?;
            return self.give_file(segment, Claim::Records).await;
        }
        // Without any to spare it is tried as it is.
        drop(least_capacity(segment, 0, full));
        match self.give_file(segment, Claim::Urgent).await {
            Err(error) if is_full(&error) && reserve::release(&self.disk).await => {
                self.give_file(segment, Claim::Urgent).await
            }
            given => given,
        }
    }

    async fn give_file(self: &Rc<Self>, segment: &SegmentOf<E>, claim: Claim) -> io::Result<Claim> {
        if segment.now.borrow().on_disk {
            self.extend(segment, claim).await?;
        } else {
            self.make_for(segment, claim).await?;
        }
        Ok(claim)
    }

    /// Gives a segment without a file its file.
    async fn make_for(self: &Rc<Self>, segment: &SegmentOf<E>, claim: Claim) -> io::Result<()> {
        let bytes = segment.now.borrow().capacity;
        let ready = {
            let supply = &mut self.state.borrow_mut().supply;
            supply.ready.take_if(|spare| spare.bytes >= bytes)
        };
        let spare = match ready {
            Some(spare) => spare,
            None => self.make(bytes, bytes, claim).await?,
        };
        *segment.path.borrow_mut() = spare.path;
        segment.now.borrow_mut().appender = Some(spare.file);
        self.state.borrow_mut().supply.waiting.pop_front();
        self.drive();
        Ok(())
    }

    async fn make_ahead(self: &Rc<Self>, bytes: u64) -> io::Result<()> {
        let made = match self.make(bytes, bytes / 2, Claim::Records).await {
            // Less than planned is better than none.
            Err(error) if is_full(&error) && bytes > SEGMENT_BYTES_MIN => {
                self.make(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MIN, Claim::Records).await
            }
            made => made,
        }?;
        self.state.borrow_mut().supply.ready = Some(made);
        Ok(())
    }

    /// Makes a file of `bytes`, or takes the recycled one if it has `least`.
    async fn make(self: &Rc<Self>, bytes: u64, least: u64, claim: Claim) -> io::Result<Spare<FileOf<E>>> {
        let (recycled, path) = {
            let state = &mut *self.state.borrow_mut();
            let recycled = state.supply.recycled.take_if(|(_, recycled)| *recycled >= least);
            (recycled, self.spare_path(state))
        };
        if let Some((path, bytes)) = recycled {
            let file = match self.disk.open(&path, OpenMode::Append).await {
                Ok(file) => file,
                Err(error) => {
                    self.recycle(path, bytes);
                    return Err(error);
                }
            };
            return Ok(Spare { file, path, bytes });
        }
        self.check_free(bytes, claim).await?;
        let temporary = path.with_extension("tmp");
        let file = self.disk.open(&temporary, OpenMode::Create).await?;
        if let Err(error) = self.fill(&file, 0, bytes).await {
            drop(file);
            // The error that counts is the first one; what cannot be removed is removed at the next start.
            drop(self.disk.remove(&temporary).await);
            return Err(error);
        }
        if let Err(error) = self.disk.rename(&temporary, &path).await {
            drop(self.disk.remove(&temporary).await);
            return Err(error);
        }
        if let Err(error) = self.disk.sync_dir(&self.options.dir).await {
            if !lacks_descriptors(&error) {
                return Err(lasting(error));
            }
            // It is tried again, with another name.
            drop(self.disk.remove(&path).await);
            return Err(error);
        }
        Ok(Spare { file, path, bytes })
    }

    /// Makes a segment that was closed or cut long enough again: what is behind its data (a footer, a torn write) is
    /// cut off durably before zeros are written there.
    async fn extend(self: &Rc<Self>, segment: &SegmentOf<E>, claim: Claim) -> io::Result<()> {
        let (data_end, capacity) = {
            let now = segment.now.borrow();
            (now.disk_end, now.capacity)
        };
        let file = self.disk.open(&segment.path(), OpenMode::Append).await?;
        let present = file.bytes().await?;
        self.check_free(capacity.saturating_sub(present), claim).await?;
        segment.now.borrow_mut().footer_gone = true;
        // Unlike a file that is made, and dropped when it cannot be, this one has entries: nothing is tried again behind them.
        if present != data_end {
            file.truncate(data_end).await.map_err(lasting)?;
            file.sync().await.map_err(lasting)?;
        }
        self.fill(&file, data_end, capacity).await.map_err(lasting)?;
        segment.now.borrow_mut().appender = Some(file);
        self.state.borrow_mut().supply.waiting.pop_front();
        self.drive();
        Ok(())
    }

    /// Refuses early what would only fill the disk to the brim, or take what is kept for others.
    async fn check_free(&self, bytes: u64, claim: Claim) -> io::Result<()> {
        let bytes = match claim {
            Claim::Records => bytes + self.disk.reserve().map_or(0, |reserve| reserve.bytes),
            Claim::Urgent => bytes,
        };
        match self.disk.free_bytes(&self.options.dir).await {
            Ok(free) if free < bytes => Err(io::ErrorKind::StorageFull.into()),
            // Not known: the writes will tell.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Writes zeros from `start` to `end`, durably, at a pace that leaves the device to appends.
    async fn fill(&self, file: &FileOf<E>, start: u64, end: u64) -> io::Result<()> {
        let (mut at, mut unsynced) = (start, 0);
        while at < end {
            if self.state.borrow().is_over() {
                // Nobody needs it any more; `run` knows.
                return Err(io::ErrorKind::Interrupted.into());
            }
            let step = self.step(at - start, end - start);
            let bytes = (end - at).min(step.chunk_bytes);
            file.write_at(at, vec![zeros(bytes as usize)]).await?;
            at += bytes;
            unsynced += bytes;
            if at == end {
                break;
            }
            if unsynced >= step.sync_every_bytes {
                file.sync().await?;
                unsynced = 0;
            }
            if !step.pause.is_zero() {
                crate::env::sleep::<E>(step.pause).await;
            }
        }
        file.sync().await
    }

    /// How to go on when `made` of `bytes` are made: so that all is ready when the open segment is between a third and a
    /// half full.
    fn step(&self, made: u64, bytes: u64) -> Step {
        let state = self.state.borrow();
        if !state.supply.waiting.is_empty() {
            return HURRIED;
        }
        let Some(open) = state.segments.back() else { return EASY };
        let now = open.now.borrow();
        // Of what was in use when the making began nothing can be made up for.
        let used = now.data_end.saturating_sub(PREPARE_AFTER_BYTES);
        let need = u128::from(used) * u128::from(bytes);
        let have = u128::from(made) * u128::from(now.capacity);
        if have < 2 * need {
            HURRIED
        } else if have > 3 * need {
            AHEAD
        } else {
            EASY
        }
    }
}

/// Lowers the capacity of a segment whose file is not made yet to what its entries need, and a little, but not below `floor`.
///
/// # Errors
/// The one that is given, when it is not larger than that.
fn least_capacity<F>(segment: &Segment<F>, floor: u64, error: io::Error) -> io::Result<()> {
    let now = &mut *segment.now.borrow_mut();
    let least = (now.data_end + BLOCK_BYTES as u64 + RESERVE_BYTES).max(floor);
    if least >= now.capacity {
        return Err(error);
    }
    now.capacity = least;
    Ok(())
}

/// The supply's task: works until there is nothing to do.
async fn run<E: Env>(weak: Weak<Inner<E>>) {
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let outcome = inner.supply_one().await;
        // What ends because the log closes, or has failed, is no failure.
        let outcome = outcome.filter(|outcome| outcome.is_ok() || !inner.state.borrow().is_over());
        let retry = {
            let supply = &mut inner.state.borrow_mut().supply;
            supply.starved = matches!(&outcome, Some(Err(error)) if !is_full(error) && is_transient(error));
            match &outcome {
                Some(Ok(claim)) => {
                    supply.note_space(*claim);
                    false
                }
                Some(Err(error)) if is_full(error) => {
                    supply.full = true;
                    supply.reserve_spent = supply.is_urgent();
                    supply.failed_us = E::monotonic_us();
                    supply.running = !supply.waiting.is_empty();
                    supply.running
                }
                // Of the process or the machine, whose clients have it: nothing was done that could be half done.
                Some(Err(_)) if supply.starved => true,
                Some(Err(_)) | None => {
                    supply.running = false;
                    false
                }
            }
        };
        inner.changed.notify_all();
        match outcome {
            Some(Ok(_)) => {}
            Some(Err(error)) if is_full(&error) || is_transient(&error) => {
                if !retry {
                    return;
                }
                drop(inner);
                crate::env::sleep::<E>(RETRY).await;
            }
            Some(Err(error)) => {
                inner.stop(&inner.options.dir, "prepared for more entries", &error);
                return;
            }
            None => return,
        }
    }
}

/// Zeros, shared by all logs of the thread.
fn zeros(bytes: usize) -> Bytes {
    thread_local! {
        static ZEROS: OnceCell<Bytes> = const { OnceCell::new() };
    }
    ZEROS
        .with(|zeros| zeros.get_or_init(|| Buffer::zeroed(HURRIED.chunk_bytes as usize).freeze_padded()).slice(..bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of earlier terms count as lent as long as records get no space, also between those that get it from the reserve: else
    /// one replica takes the whole reserve, and the trim that would free space finds none. Each leader begins with some.
    #[test]
    fn what_is_lent_is_counted() {
        let mut supply = Supply::<()>::new(0, 0);
        assert!(supply.lend(Term(2), STUCK_BYTES_MAX + 1), "there is space");
        supply.note_space(Claim::Urgent);
        assert!(supply.lend(Term(2), STUCK_BYTES_MAX - 1));
        supply.note_space(Claim::Urgent);
        assert!(supply.lend(Term(2), 1) && !supply.lend(Term(2), 1));
        assert!(supply.lend(Term(3), STUCK_BYTES_MAX) && !supply.lend(Term(3), 1));
        supply.note_space(Claim::Records);
        assert!(supply.lend(Term(3), STUCK_BYTES_MAX + 1));
    }
}
