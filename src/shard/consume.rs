//! Catch up, then follow: committed records from a start on, sliced out of the log's own bytes.
//!
//! One consume reads the log once and returns what that gave: less than it may return when more follows, never
//! nothing when there is something. At the high watermark it sleeps until Raft commits more; it never polls.

use std::{ops::ControlFlow, rc::Rc, time::Duration};

use bytes::Bytes;
use openraft::AsyncRuntime;

use super::{Consume, Consumed, Inner, ShardError, Start};
use crate::{
    env::{self, Env},
    format::{
        entry::{EntryKind, StoredEntry},
        records::{record_ranges, record_timestamp, slice_records},
    },
    ids::{Index, Offset},
    limits::{LEADER_WAIT, MESSAGE_BYTES_MAX, READ_BYTES},
    log::LogError,
};

/// Most bytes of records in one answer, whatever is asked for: with the other fields of a response it stays below the 4 MiB that
/// stock gRPC clients accept. (A single larger record cannot be: records are at most a quarter of it.)
pub(super) const BYTES_MAX: usize = MESSAGE_BYTES_MAX - 4096;

/// Consumers of one shard whose place is remembered.
const CURSORS_MAX: usize = 16;

/// Where the last consumers stopped, so that one that goes on does not search for its place again.
///
/// A remembered index is that of the entry which holds the offset, or of one before it from which only entries without
/// records are between. It stays true: committed entries do not move. Where it is purged, what is left begins behind it, and so
/// does the read.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    places: [Option<(Offset, Index)>; CURSORS_MAX],
    oldest: usize,
}

impl Cursors {
    /// Takes the place of `offset` out.
    fn take(&mut self, offset: Offset) -> Option<Index> {
        let place = self.places.iter_mut().find(|place| place.is_some_and(|(at, _)| at == offset))?;
        place.take().map(|(_, index)| index)
    }

    /// Remembers a place, instead of the oldest one if there is no room.
    fn put(&mut self, offset: Offset, index: Index) {
        let same = |place: &Option<(Offset, Index)>| place.is_some_and(|(at, _)| at == offset);
        let slot = self.places.iter().position(same).or_else(|| self.places.iter().position(Option::is_none));
        let slot = slot.unwrap_or_else(|| {
            self.oldest = (self.oldest + 1) % CURSORS_MAX;
            self.oldest
        });
        self.places[slot] = Some((offset, index));
    }
}

/// What entries give to a consumer at `next`.
#[derive(Debug)]
struct Taking {
    next: Offset,
    records_left: u64,
    bytes_left: usize,
    chunks: Vec<Bytes>,
    count: u64,
    /// As in `Consume`.
    if_small: bool,
}

impl Taking {
    fn new(next: Offset, records_max: u64, bytes_max: usize) -> Taking {
        Taking { next, records_left: records_max, bytes_left: bytes_max, chunks: vec![], count: 0, if_small: false }
    }

    /// Takes what it may of one more entry: `Break` when it can take no more. Bytes are shared, not copied.
    ///
    /// # Errors
    /// The offset that should have come next, when the entry begins after it.
    fn take(&mut self, entry: &StoredEntry) -> Result<ControlFlow<()>, Offset> {
        let header = &entry.header;
        if header.kind != EntryKind::Batch || header.end_offset() <= self.next {
            return Ok(ControlFlow::Continue(()));
        }
        if self.next < header.base_offset {
            return Err(self.next);
        }
        let skip = self.next.0 - header.base_offset.0;
        let payload = entry.payload();
        let whole = skip == 0 && u64::from(header.record_count) <= self.records_left;
        if whole && payload.len() <= self.bytes_left {
            self.add(payload, u64::from(header.record_count));
            return Ok(ControlFlow::Continue(()));
        }
        let is_cut_later = self.count > 0 && payload.len() > self.bytes_left && self.records_left > 0;
        if is_cut_later || self.if_small {
            // Cutting it would make the next consume read it again.
            return Ok(ControlFlow::Break(()));
        }
        let slice = slice_records(&payload, skip, self.records_left, self.bytes_left);
        // A small part must not keep the whole in memory.
        let is_small = slice.range.len() < payload.len() / 2;
        let part = payload.slice(slice.range);
        self.add(if is_small { Bytes::copy_from_slice(&part) } else { part }, slice.count);
        Ok(if self.next == header.end_offset() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }

    fn add(&mut self, chunk: Bytes, count: u64) {
        self.bytes_left = self.bytes_left.saturating_sub(chunk.len());
        self.records_left -= count;
        self.count += count;
        self.next = self.next.plus(count);
        if count > 0 {
            self.chunks.push(chunk);
        }
    }
}

/// First record of a batch at or above `from` with a timestamp not before `timestamp_us`.
fn first_not_before(entry: &StoredEntry, from: Offset, timestamp_us: i64) -> Option<Offset> {
    if entry.header.kind != EntryKind::Batch {
        return None;
    }
    let payload = entry.payload();
    let base = entry.header.base_offset;
    let numbered = (0..).map(|number| base.plus(number)).zip(record_ranges(&payload));
    numbered
        .filter(|(offset, _)| *offset >= from)
        .find(|(_, range)| record_timestamp(&payload[range.clone()]).is_some_and(|time| time >= timestamp_us))
        .map(|(offset, _)| offset)
}

/// Where an answer is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With the record at this offset, also if it is still to come.
    At(Offset),
    /// With a record that is not there yet: there is none below `end`, and the one that comes there may be another. `walked`: the
    /// log's index did not know, and all entries before this one were looked at.
    NotBelow { end: Offset, walked: Option<Index> },
}

/// See `Shard::consume`.
pub(super) async fn consume<E: Env>(inner: Rc<Inner<E>>, consume: Consume) -> Result<Consumed, ShardError> {
    let wait_us = u64::try_from(consume.wait.as_micros()).unwrap_or(u64::MAX);
    let deadline_us = E::monotonic_us().saturating_add(wait_us);
    inner.check_readable()?;
    inner.wait_for_view(&consume).await?;
    let mut place = inner.resolve(consume.start, None).await?;
    loop {
        inner.check_readable()?;
        let start = match place {
            Place::At(start) => start,
            Place::NotBelow { end, walked } if end < inner.group.high_watermark().max(inner.log_start()) => {
                // What has come since may be older than what is asked for.
                place = inner.resolve(consume.start, walked).await?;
                continue;
            }
            Place::NotBelow { end, .. } => end,
        };
        inner.check_range(start)?;
        if start < inner.group.high_watermark() && consume.records_max > 0 {
            let mut taking = Taking::new(start, consume.records_max, consume.bytes_max.min(BYTES_MAX));
            taking.if_small = consume.if_small;
            inner.read(&mut taking).await?;
            if taking.count > 0 || consume.if_small {
                return Ok(inner.consumed(taking));
            }
            // Purged while it was read: the range tells.
            continue;
        }
        let left_us = deadline_us.saturating_sub(E::monotonic_us());
        if left_us == 0 || consume.records_max == 0 {
            return Ok(inner.consumed(Taking::new(start, 0, 0)));
        }
        // Nothing more is committed by a replica that has stopped.
        inner.check_life()?;
        let grown = inner.group.wait_above(start);
        if <E::Runtime as AsyncRuntime>::timeout(Duration::from_micros(left_us), grown).await.is_err() {
            inner.check_readable()?;
            inner.check_range(start)?;
            return Ok(inner.consumed(Taking::new(start, 0, 0)));
        }
    }
}

impl<E: Env> Inner<E> {
    /// Waits until this replica shows what the consumer has to see at least.
    ///
    /// # Errors
    /// `Behind` or `NotLeader` when it does not in time; those of a stopped shard.
    async fn wait_for_view(&self, consume: &Consume) -> Result<(), ShardError> {
        if consume.min_offset.is_none() && !consume.linearizable {
            return Ok(());
        }
        let deadline_us = consume.deadline_us.unwrap_or_else(|| E::monotonic_us() + LEADER_WAIT.as_micros() as u64);
        let left = || Duration::from_micros(deadline_us.saturating_sub(E::monotonic_us()));
        if consume.linearizable {
            self.group.linearize(left()).await?;
        }
        let min_offset = consume.min_offset.unwrap_or_default();
        loop {
            let high_watermark = self.group.high_watermark();
            if high_watermark >= min_offset {
                return Ok(());
            }
            self.check_life()?;
            let left = left();
            if left.is_zero() {
                return Err(ShardError::Behind { min_offset, high_watermark });
            }
            let grown = self.group.wait_above(Offset(min_offset.0 - 1));
            drop(<E::Runtime as AsyncRuntime>::timeout(left, grown).await);
        }
    }

    /// Damage in what is committed: it is not served, and this replica takes no more records. Other failures of a read
    /// may pass.
    fn read_failed(&self, error: LogError) -> ShardError {
        if let LogError::Corrupt { .. } = error
            && !self.is_damaged()
        {
            self.group.log().condemn(error.clone());
            let group = self.group.clone();
            // If there is another replica it leads better than one that cannot write.
            env::spawn::<E>(async move { drop(group.transfer(None, LEADER_WAIT).await) });
        }
        error.into()
    }

    fn consumed(&self, taking: Taking) -> Consumed {
        self.check_offsets();
        let bytes = taking.chunks.iter().map(Bytes::len).sum();
        self.metrics.consumed(taking.count, bytes);
        Consumed {
            chunks: taking.chunks,
            count: taking.count,
            next_offset: taking.next,
            log_start: self.log_start(),
            high_watermark: self.group.high_watermark(),
            node: self.options.node,
        }
    }

    fn check_range(&self, offset: Offset) -> Result<(), ShardError> {
        let log_start = self.log_start();
        let high_watermark = self.group.high_watermark();
        if offset < log_start || offset > high_watermark {
            return Err(ShardError::OutOfRange { offset, log_start, high_watermark });
        }
        Ok(())
    }

    /// What a start means now. `walked`: as in `Place`, of a look before.
    async fn resolve(&self, start: Start, walked: Option<Index>) -> Result<Place, ShardError> {
        match start {
            Start::Offset(offset) => Ok(Place::At(offset)),
            Start::Earliest => Ok(Place::At(self.log_start())),
            Start::Latest => Ok(Place::At(self.group.high_watermark())),
            Start::Timestamp(timestamp_us) => self.resolve_timestamp(timestamp_us, walked).await,
        }
    }

    /// The first committed record with a timestamp not before this one; without one, not below the high watermark.
    ///
    /// The log's index knows the largest timestamp up to each entry, records below the log start included: where
    /// those were newer than what follows, the batches are walked until one holds such a record. A consumer that waits for one
    /// goes on where it was.
    async fn resolve_timestamp(&self, timestamp_us: i64, walked: Option<Index>) -> Result<Place, ShardError> {
        let end = self.group.applied_end();
        let high_watermark = self.group.high_watermark();
        let index = match walked {
            Some(index) => Some(index),
            None => self.find_timestamp(timestamp_us, end).await?,
        };
        let Some(mut index) = index else { return Ok(Place::NotBelow { end: high_watermark, walked: None }) };
        while index < end {
            let entries = match self.group.log().read_in_turn(index, end, READ_BYTES).await {
                Ok(entries) => entries,
                // Purged meanwhile: what is left begins at the log start.
                Err(LogError::NotFound { first, .. }) if first > index => {
                    index = first;
                    continue;
                }
                Err(error) => return Err(self.read_failed(error)),
            };
            for entry in &entries {
                if let Some(offset) = first_not_before(entry, self.log_start(), timestamp_us) {
                    self.cursors.borrow_mut().put(offset, entry.header.id.index);
                    return Ok(Place::At(offset));
                }
            }
            index = next_index(&entries, index)?;
            // Those in memory are there at once, and may be many.
            env::yield_now().await;
        }
        Ok(Place::NotBelow { end: high_watermark, walked: Some(index.min(end)) })
    }

    /// The first entry that may hold such a record at or above the log start, as the index knows; not below `end` if all are trimmed.
    async fn find_timestamp(&self, timestamp_us: i64, end: Index) -> Result<Option<Index>, ShardError> {
        let found = self.group.log().find_timestamp(timestamp_us).await.map_err(|error| self.read_failed(error))?;
        let Some(found) = found else { return Ok(None) };
        loop {
            let log_start = self.log_start();
            let kept = self.group.log().find_offset(log_start).await.map_err(|error| self.read_failed(error))?;
            match kept {
                Some(kept) => return Ok(Some(found.max(kept))),
                None if log_start == self.log_start() => return Ok(Some(found.max(end))),
                // Purged meanwhile, and there may be records behind that.
                None => {}
            }
        }
    }

    /// Reads from `taking.next` on until something is taken or the committed end is reached. Nothing taken: the
    /// place was purged meanwhile, or what is there is not small.
    async fn read(&self, taking: &mut Taking) -> Result<(), ShardError> {
        let end = self.group.applied_end();
        let start = taking.next;
        let remembered = self.cursors.borrow_mut().take(start);
        let mut index = match remembered {
            Some(index) => index,
            None => match self.group.log().find_offset(start).await.map_err(|error| self.read_failed(error))? {
                Some(index) => index,
                None => return self.lost(start),
            },
        };
        while taking.count == 0 && index < end {
            if taking.if_small && !self.group.log().is_recent(index) {
                return Ok(());
            }
            let entries = match self.group.log().read_in_turn(index, end, taking.bytes_left).await {
                Ok(entries) => entries,
                // What is left begins with the record, or with entries without any before it.
                Err(LogError::NotFound { first, .. }) if first > index => {
                    self.check_range(start)?;
                    index = first;
                    continue;
                }
                Err(LogError::NotFound { .. }) => return self.lost(start),
                Err(error) => return Err(self.read_failed(error)),
            };
            index = next_index(&entries, index)?;
            for entry in &entries {
                let taken = taking.take(entry).map_err(|missing| not_in_log(missing, entry.header.id.index))?;
                if taken.is_break() {
                    if taking.count == 0 {
                        return Ok(());
                    }
                    index = entry.header.id.index;
                    break;
                }
            }
        }
        assert!(taking.next <= self.group.high_watermark(), "only what is committed is returned");
        if taking.count == 0 {
            return self.lost(start);
        }
        self.cursors.borrow_mut().put(taking.next, index);
        Ok(())
    }

    /// The place of an offset below the high watermark was not found: fine if it was trimmed meanwhile.
    fn lost(&self, offset: Offset) -> Result<(), ShardError> {
        self.check_range(offset)?;
        Err(not_in_log(offset, self.group.log().first_index()))
    }
}

fn next_index(entries: &[StoredEntry], asked: Index) -> Result<Index, ShardError> {
    match entries.last() {
        Some(last) => Ok(last.header.id.index.next()),
        None => Err(ShardError::Failed {
            cause: format!("the log returned nothing for its entry {asked}"),
            maybe_written: false,
        }),
    }
}

/// A committed record that is not where it must be: damage, or a bug.
fn not_in_log(offset: Offset, index: Index) -> ShardError {
    ShardError::Failed {
        cause: format!("record {offset} is committed but not in the log at entry {index}; run `ringlog verify`"),
        maybe_written: false,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        env::buffer::Buffer,
        format::records::Records,
        limits::RECORD_BYTES_MAX,
        proto::ringlog::v1::{ConsumeResponse, ProduceRequest, Record},
        shard::machine::tests::entry,
    };

    /// A batch with a record of 10 bytes for each timestamp.
    fn batch(base_offset: u64, timestamps_us: &[i64]) -> StoredEntry {
        let record = |timestamp_us: &i64| Record {
            value: b"0123456789".as_slice().into(),
            timestamp_us: *timestamp_us,
            ..Record::default()
        };
        let request =
            ProduceRequest { records: timestamps_us.iter().map(record).collect(), ..ProduceRequest::default() };
        let (_, records) = Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).unwrap();
        let mut buffer = Buffer::default();
        records.encode_into(&mut buffer, Offset(base_offset), 7);
        entry(EntryKind::Batch, base_offset, records.count(), buffer.bytes())
    }

    /// Offsets that a consumer gets from these entries, chunk by chunk.
    fn offsets(entries: &[StoredEntry], next: u64, records_max: u64, bytes_max: usize) -> Vec<Vec<u64>> {
        let mut taking = Taking::new(Offset(next), records_max, bytes_max);
        for entry in entries {
            if taking.take(entry).unwrap().is_break() {
                break;
            }
        }
        let decode = |chunk: &Bytes| ConsumeResponse::decode(chunk.clone()).unwrap().records;
        let chunks: Vec<Vec<u64>> =
            taking.chunks.iter().map(|chunk| decode(chunk).iter().map(|record| record.offset).collect()).collect();
        let all: Vec<u64> = chunks.iter().flatten().copied().collect();
        assert_eq!(all, (next..taking.next.0).collect::<Vec<_>>(), "dense, and next_offset follows");
        assert_eq!(taking.count, all.len() as u64);
        assert!(taking.count <= records_max);
        chunks
    }

    /// Whole batches are taken as they are, entries without records are passed over, and the first batch is cut where
    /// the consumer starts.
    #[test]
    fn takes_what_follows() {
        let entries = [
            batch(0, &[1; 3]),
            entry(EntryKind::Blank, 3, 0, b""),
            entry(EntryKind::Void, 3, 5, b"never served"),
            batch(3, &[1; 2]),
            entry(EntryKind::Command, 5, 0, b"trim"),
        ];
        assert_eq!(offsets(&entries, 0, 100, 10_000), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(offsets(&entries, 2, 100, 10_000), [vec![2], vec![3, 4]]);
        assert_eq!(offsets(&entries, 3, 100, 10_000), [vec![3, 4]]);
        assert_eq!(offsets(&entries, 1, 3, 10_000), [vec![1, 2], vec![3]]);
        assert_eq!(offsets(&entries, 0, 3, 10_000), [vec![0, 1, 2]]);
    }

    /// The byte limit holds, but for a first record that is larger; a batch is not cut for the rest of the room.
    #[test]
    fn byte_limit() {
        let entries = [batch(0, &[1; 3]), batch(3, &[1; 3])];
        let record_bytes = entries[0].payload().len() / 3;
        assert_eq!(offsets(&entries, 0, 100, 0), [vec![0]]);
        assert_eq!(offsets(&entries, 1, 100, record_bytes * 2), [vec![1, 2]]);
        assert_eq!(offsets(&entries, 0, 100, record_bytes * 4), [vec![0, 1, 2]]);
        assert_eq!(offsets(&entries, 0, 100, record_bytes * 6), [vec![0, 1, 2], vec![3, 4, 5]]);
    }

    /// A gap in the offsets is damage, and is said.
    #[test]
    fn gap() {
        assert_eq!(Taking::new(Offset(2), 10, 1000).take(&batch(3, &[1])), Err(Offset(2)));
    }

    /// A start by timestamp is the first such record in log order, whatever the order of timestamps.
    #[test]
    fn timestamps() {
        let entry = batch(10, &[5, 9, 3, 0, 9]);
        let find = |from, timestamp_us| first_not_before(&entry, Offset(from), timestamp_us).map(|offset| offset.0);
        assert_eq!(find(0, i64::MIN), Some(10));
        assert_eq!(find(0, 6), Some(11));
        assert_eq!(find(12, 4), Some(13), "no timestamp: the leader's, 7");
        assert_eq!(find(13, 8), Some(14));
        assert_eq!(find(0, 10), None);
        assert_eq!(first_not_before(&void(), Offset(0), 0), None);
    }

    fn void() -> StoredEntry {
        entry(EntryKind::Void, 0, 1, b"")
    }

    /// Each place is given once, the newest are kept, and there are never more than fit.
    #[test]
    fn cursors() {
        let mut cursors = Cursors::default();
        assert_eq!(cursors.take(Offset(1)), None);
        for n in 0..CURSORS_MAX as u64 + 3 {
            cursors.put(Offset(n), Index(n + 100));
        }
        cursors.put(Offset(18), Index(500));
        assert_eq!(cursors.take(Offset(18)), Some(Index(500)));
        assert_eq!(cursors.take(Offset(18)), None);
        let kept = (0..18).filter(|n| cursors.take(Offset(*n)).is_some()).count();
        assert_eq!(kept, CURSORS_MAX - 1);
        assert!(cursors.places.iter().all(Option::is_none));
    }
}
