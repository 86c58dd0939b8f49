//! openraft's log storage over our `log`: the Raft log is the record log.
//!
//! Promises: `append` returns at once, its entries can be read at once, and openraft hears of them as flushed only
//! when they and all before them are durable; a vote is durable when `save_vote` returns; what is called committed
//! never runs ahead of what is durable here; what is committed is never truncated (checked: the replica stops instead). The
//! committed id costs no write of its own: it goes with the next vote,
//! and at close (after a crash openraft learns it again by leading, or from the leader).

use std::{
    cell::Cell,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds, RangeInclusive},
    rc::Rc,
    sync::Arc,
    vec,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use openraft::{
    RaftLogReader,
    errors::LeaderChanged,
    storage::{IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogStorage},
};

use super::{
    Machine,
    machine::Shared,
    types::{self, Entry, LeaderId, RaftLogId, RaftVote, TypeConfig},
};
use crate::{
    env::Env,
    format::entry::{ENTRY_HEADER_BYTES, EntryKind, NewEntry, StoredEntry},
    ids::{Index, LogId},
    limits::READ_BYTES,
    log::{HardState, Log, LogError, LogPoint},
    peer::liveness::Liveness,
};

/// The store; openraft owns one, and makes readers from it.
pub struct Store<E: Env, M: Machine> {
    log: Log<E>,
    shared: Rc<Shared<M>>,
    reader: Reader<E, M>,
    liveness: Arc<Liveness>,
}

/// Reads entries and the vote.
pub struct Reader<E: Env, M: Machine> {
    log: Log<E>,
    /// openraft looks through all entries above the checkpoint while it starts, many at once, and only at what
    /// they are: then batches come without their payload, so that memory stays bounded.
    headers_only: Rc<Cell<bool>>,
    machine: std::marker::PhantomData<fn() -> M>,
}

impl<E: Env, M: Machine> Clone for Reader<E, M> {
    fn clone(&self) -> Self {
        Reader { log: self.log.clone(), headers_only: self.headers_only.clone(), machine: std::marker::PhantomData }
    }
}

impl<E: Env, M: Machine> Store<E, M> {
    /// A store over `log`; batches are read without payload until `headers_only` becomes false. `liveness` knows the time.
    pub fn new(
        log: Log<E>,
        shared: Rc<Shared<M>>,
        headers_only: Rc<Cell<bool>>,
        liveness: Arc<Liveness>,
    ) -> Store<E, M> {
        shared.committed.set(log.hard_state().committed);
        let reader = Reader { log: log.clone(), headers_only, machine: std::marker::PhantomData };
        Store { log, shared, reader, liveness }
    }

    /// Where the log goes on after `id`.
    async fn point_after(&self, id: LogId) -> Result<LogPoint, io::Error> {
        let in_log = id.index >= self.log.first_index() && self.log.last().is_some_and(|last| id.index <= last.index);
        if in_log {
            let read = self.log.read(id.index, id.index.next(), 0).await;
            let entries = read.map_err(|error| condemned(&self.log, error))?;
            let entry = entries.first().ok_or_else(|| io::Error::other(format!("entry {id} cannot be read")))?;
            // openraft names an entry by term and index; another one at this place would be a wrong log.
            if entry.header.id == id {
                return Ok(LogPoint { next: id.index.next(), ..self.log.end() });
            }
            return Err(io::Error::other(format!("the log holds {} where {id} is to be purged", entry.header.id)));
        }
        // Guessed offsets or hashes would show as divergence, much later.
        let point = self.shared.point_after(id);
        point
            .ok_or_else(|| io::Error::other(format!("the log cannot begin after entry {id}: its snapshot is not here")))
    }
}

/// The hard state as it is to be written now: never ahead of what is durable here.
pub(super) fn hard_state<E: Env>(log: &Log<E>, committed: Option<LogId>) -> HardState {
    HardState { vote: log.hard_state().vote, committed: clamp(committed, log.flushed()) }
}

/// The smaller one: a durable log end below the committed entry is committed too, being before it.
fn clamp(committed: Option<LogId>, flushed: Option<LogId>) -> Option<LogId> {
    match (committed, flushed) {
        (Some(committed), Some(flushed)) if committed.index > flushed.index => Some(flushed),
        (Some(committed), Some(_)) => Some(committed),
        _ => None,
    }
}

/// As `to_io`, of a failed read, or of a change that reads. openraft ends with it; that it was damage is kept in the log.
pub(super) fn condemned<E: Env>(log: &Log<E>, error: LogError) -> io::Error {
    if matches!(error, LogError::Corrupt { .. }) && log.fault().is_none() {
        log.condemn(error.clone());
    }
    to_io(error)
}

/// A log's error as openraft wants it; the words are kept.
pub(super) fn to_io(error: LogError) -> io::Error {
    io::Error::other(error)
}

impl<E: Env, M: Machine> RaftLogStorage<TypeConfig<E, M>> for Store<E, M> {
    type LogReader = Reader<E, M>;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<E, M>>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(types::to_raft),
            last_log_id: self.log.last().map(types::to_raft),
        })
    }

    async fn get_log_reader(&mut self) -> Reader<E, M> {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let vote = types::from_raft_vote(vote);
        self.shared.majority.note_vote(vote);
        self.shared.vote_seen.set(Some(vote));
        self.shared.vote_noticed.notify_all();
        let state = HardState { vote: Some(vote), ..hard_state(&self.log, self.shared.committed.get()) };
        self.log.save_hard_state(state).await.map_err(to_io)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.shared.committed.set(committed.as_ref().map(types::from_raft));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(clamp(self.shared.committed.get(), self.log.flushed()).map(types::to_raft))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<E, M>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry>,
    {
        let stamp_us = self.liveness.clocks().stamp_us(E::monotonic_us(), E::wall_us());
        let entries: Vec<NewEntry> = entries.into_iter().map(|entry| types::to_log(entry, stamp_us)).collect();
        let shared = self.shared.clone();
        let begun_us = E::monotonic_us();
        let done = Box::new(move |result: Result<(), LogError>| {
            let now_us = E::monotonic_us();
            shared.flushed_us.set(now_us);
            shared.flush_times.ended(begun_us, now_us);
            callback.io_completed(result.map_err(to_io));
            shared.flushed.notify_all();
        });
        let own = entries.iter().all(|entry| entry.leader.is_none());
        self.shared.flush_times.begun(begun_us);
        let appended = if own && !self.shared.only_voter.get() {
            self.log.append_behind(entries, done)
        } else {
            self.log.append(entries, done)
        };
        appended.map_err(to_io)
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        let last = last.map(|id| Index(id.index));
        let Some(present) = self.log.last() else { return Ok(()) };
        if last.is_some_and(|last| last >= present.index) {
            return Ok(());
        }
        let kept = last.map_or(Index(0), Index::next);
        let committed = self.shared.committed.get().max(self.shared.applied());
        if let Some(committed) = committed.filter(|committed| committed.index >= kept) {
            let what =
                format!("entries from {kept} on were to be truncated, but those up to {committed} are committed");
            tracing::error!(what, "a promise would be broken: the replica stops");
            return Err(io::Error::other(what));
        }
        self.log.truncate_after(last).await.map_err(|error| condemned(&self.log, error))
    }

    async fn purge(&mut self, id: RaftLogId) -> Result<(), io::Error> {
        let id = types::from_raft(&id);
        if self.log.purged().is_some_and(|purged| purged >= id) {
            return Ok(());
        }
        let to = self.point_after(id).await?;
        self.log.purge(to).await.map_err(|error| condemned(&self.log, error))?;
        self.shared.changed.notify_all();
        // A log that begins after a snapshot is durable up to there.
        self.shared.flushed.notify_all();
        Ok(())
    }
}

impl<E: Env, M: Machine> Reader<E, M> {
    /// `start .. end` as far as the log holds it.
    fn within(&self, start: Index, end: Index) -> (Index, Index) {
        let first = self.log.first_index();
        let after = self.log.last().map_or(Index(0), |last| last.index.next());
        (start.max(first), end.min(after.max(first)))
    }

    /// The first entries of `start .. end`, about 1 MiB of them, at least one.
    async fn piece(&self, start: Index, end: Index) -> Result<Vec<Entry>, io::Error> {
        let stored = self.log.read(start, end, READ_BYTES).await.map_err(|error| condemned(&self.log, error))?;
        // An empty answer to a question that is not empty would make callers loop for ever.
        if stored.is_empty() {
            return Err(io::Error::other(format!("the log returned nothing for entries {start} to {end}")));
        }
        let lean = self.headers_only.get();
        let entries = stored.into_iter().map(|entry| if lean { without_payload(entry) } else { entry });
        entries.map(|entry| types::from_log(entry).map_err(io::Error::other)).collect()
    }

    /// Adds to `keys` the last entry of each term from that of `first` on, up to `last`, which lies in the log like it.
    async fn term_ends(&self, mut first: LogId, last: LogId, keys: &mut Vec<LogId>) -> Result<(), LogError> {
        while first.term != last.term {
            // Terms only grow: `low` is of the first one, `high` is not.
            let (mut low, mut high) = (first, last);
            while high.index.0 - low.index.0 > 1 {
                let middle = self.log.log_id(Index(low.index.0.midpoint(high.index.0))).await?;
                if middle.term == first.term { low = middle } else { high = middle }
            }
            push_key(keys, low);
            first = high;
        }
        push_key(keys, last);
        Ok(())
    }

    fn vote(&self) -> Option<RaftVote> {
        self.log.hard_state().vote.map(types::to_raft_vote)
    }
}

/// Keeps one entry per term, the last.
fn push_key(keys: &mut Vec<LogId>, id: LogId) {
    match keys.last_mut() {
        Some(key) if key.term == id.term => *key = id,
        _ => keys.push(id),
    }
}

/// Drops a batch's payload, and with it the memory of what was read.
fn without_payload(mut entry: StoredEntry) -> StoredEntry {
    if matches!(entry.header.kind, EntryKind::Batch | EntryKind::Void) {
        entry.bytes = Bytes::copy_from_slice(&entry.bytes[..ENTRY_HEADER_BYTES]);
    }
    entry
}

/// A range as openraft writes it.
fn bounds(range: &impl RangeBounds<u64>) -> (Index, Index) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (Index(start), Index(end))
}

/// Reads a range piece by piece, so that a long replay holds one piece in memory.
struct Pieces<E: Env, M: Machine> {
    reader: Reader<E, M>,
    ready: vec::IntoIter<Entry>,
    next: Index,
    end: Index,
}

impl<E: Env, M: Machine> Pieces<E, M> {
    fn new(reader: Reader<E, M>, range: &impl RangeBounds<u64>) -> Pieces<E, M> {
        let (start, end) = bounds(range);
        let (next, end) = reader.within(start, end);
        Pieces { reader, ready: Vec::new().into_iter(), next, end }
    }

    /// The next entry without reading, if it was read already.
    fn take_ready(&mut self) -> Option<Entry> {
        self.ready.next()
    }

    fn is_done(&self) -> bool {
        self.next >= self.end
    }

    async fn fill(&mut self) -> Result<(), io::Error> {
        let piece = self.reader.piece(self.next, self.end).await?;
        self.next = Index(self.next.0 + piece.len() as u64);
        self.ready = piece.into_iter();
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<Entry, io::Error>> {
        if let Some(entry) = self.take_ready() {
            return Some(Ok(entry));
        }
        if self.is_done() {
            return None;
        }
        if let Err(error) = self.fill().await {
            self.end = self.next;
            return Some(Err(error));
        }
        self.take_ready().map(Ok)
    }
}

impl<E: Env, M: Machine> RaftLogReader<TypeConfig<E, M>> for Reader<E, M> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut pieces = Pieces::new(self.clone(), &range);
        let mut entries = Vec::new();
        while !pieces.is_done() {
            pieces.fill().await?;
            entries.extend(pieces.ready.by_ref());
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.vote())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = self.within(Index(start), Index(end));
        if start >= end {
            return Ok(Vec::new());
        }
        self.piece(start, end).await
    }

    // The default would read an entry, payload and all, for every step of its search; the ends of segments are known.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<RaftLogId>) -> Result<Vec<RaftLogId>, io::Error> {
        let (mut first, last) = (types::from_raft(range.start()), types::from_raft(range.end()));
        let mut keys = Vec::new();
        for segment in self.log.segments() {
            if segment.last.index <= first.index || segment.last.index >= last.index {
                continue;
            }
            self.term_ends(first, segment.last, &mut keys).await.map_err(|error| condemned(&self.log, error))?;
            first = segment.last;
        }
        self.term_ends(first, last, &mut keys).await.map_err(|error| condemned(&self.log, error))?;
        Ok(keys.into_iter().map(types::to_raft).collect())
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>>
    where
        RB: RangeBounds<u64> + Clone + Debug,
    {
        stream::unfold(Pieces::new(self.clone(), &range), |mut pieces| async move {
            let item = pieces.next().await?;
            Some((item, pieces))
        })
    }

    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderId,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig<E, M>>>
    where
        RB: RangeBounds<u64> + Clone + Debug,
    {
        let pieces = Some(Pieces::new(self.clone(), &range));
        stream::unfold(pieces, move |pieces| leader_bounded_next(leader, pieces))
    }
}

/// An item, and what the stream goes on with.
type Step<E, M> = (LeaderBoundedStreamResult<TypeConfig<E, M>>, Option<Pieces<E, M>>);

/// The next item of a stream that ends with the leadership of `leader`: a piece counts only if the vote is the
/// same before and after it was read, since another leader may have replaced entries meanwhile.
async fn leader_bounded_next<E: Env, M: Machine>(leader: LeaderId, pieces: Option<Pieces<E, M>>) -> Option<Step<E, M>> {
    let mut pieces = pieces?;
    let changed = |vote: Option<RaftVote>| {
        let error = LeaderBoundedStreamError::LeaderChanged(LeaderChanged::new(leader, vote));
        Some((Err(error), None))
    };
    let leads = |vote: &Option<RaftVote>| vote.as_ref().is_some_and(|vote| vote.committed && vote.leader_id == leader);
    let vote = pieces.reader.vote();
    if !leads(&vote) {
        return changed(vote);
    }
    let item = pieces.next().await?;
    let vote = pieces.reader.vote();
    if !leads(&vote) {
        return changed(vote);
    }
    Some((item.map_err(LeaderBoundedStreamError::IoError), Some(pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Term;

    /// What is called committed is durable here.
    #[test]
    fn committed_is_durable() {
        let at = |index| Some(LogId { term: Term(2), index: Index(index) });
        assert_eq!(clamp(at(5), at(3)), at(3));
        assert_eq!(clamp(at(3), at(5)), at(3));
        assert_eq!((clamp(at(3), None), clamp(None, at(5))), (None, None));
    }
}
