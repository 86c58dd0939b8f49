//! Reading entries back: from memory, else from the segment in pieces of up to `READ_BYTES` that begin
//! and end at entries, because the index knows where; each entry is a slice of its piece.
//!
//! The index is a hint and the entry's header is the truth: every entry is checked (header and payload
//! checksum, shard, segment, index, chain within the piece). What does not fit is read once more, past the
//! page cache and with a rebuilt index, before it is called corrupt.

use std::{cell::RefCell, io, rc::Rc};

use bytes::Bytes;

use super::{
    Inner, LogError, SegmentOf, io_error, point_after,
    scan::{Found, Scan, UNREADABLE, continues},
    segment::{CachedIndex, Slots, View},
    unreadable,
};
use crate::{
    env::{Disk, Env, File, OpenMode},
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryHeader, StoredEntry},
        segment::SLOT_BYTES,
    },
    ids::{Index, LogId, Offset},
    limits::{BLOCK_BYTES, INDEX_BYTES_MAX, READ_BYTES},
};

/// Segments of a log that have an index in memory or a file open for reading, at most.
const HOT_SEGMENTS_MAX: usize = 8;

/// How far the device is asked to fetch ahead of a sequential reader.
const READ_AHEAD_BYTES: u64 = 4 << 20;

/// Sequential readers that are told apart.
const STREAMS_MAX: usize = 4;

/// Where recent reads ended: one that begins there is sequential.
#[derive(Default)]
pub(super) struct Streams {
    recent: RefCell<[Stream; STREAMS_MAX]>,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    segment: u64,
    position: u64,
    hinted_to: u64,
    /// Larger is younger.
    age: u64,
}

impl Streams {
    /// Notes a read of `start .. end`; the range that is worth fetching ahead, if the read is sequential.
    fn note(&self, segment: u64, start: u64, end: u64, data_end: u64) -> Option<(u64, u64)> {
        let mut recent = self.recent.borrow_mut();
        let youngest = recent.iter().map(|stream| stream.age).max().unwrap_or(0);
        let same = |stream: &&mut Stream| stream.segment == segment && stream.position == start;
        if let Some(stream) = recent.iter_mut().find(same) {
            let from = stream.hinted_to.max(end);
            let to = (end + READ_AHEAD_BYTES).min(data_end);
            *stream = Stream { segment, position: end, hinted_to: from.max(to), age: youngest + 1 };
            return (from < to).then(|| (from, to - from));
        }
        let oldest = recent.iter_mut().min_by_key(|stream| stream.age).expect("there are some");
        *oldest = Stream { segment, position: end, hinted_to: end, age: youngest + 1 };
        // Who begins at the first entry usually goes on.
        let to = (end + READ_AHEAD_BYTES).min(data_end);
        if start == BLOCK_BYTES as u64 && end < to {
            oldest.hinted_to = to;
            return Some((end, to - end));
        }
        None
    }
}

impl<E: Env> Inner<E> {
    /// See `Log::read`.
    pub(super) async fn read(&self, from: Index, end: Index, bytes_max: usize) -> Result<Vec<StoredEntry>, LogError> {
        self.check_bounds(from)?;
        let mut entries = Vec::new();
        let (mut at, mut left) = (from, bytes_max);
        loop {
            let end = end.min(self.state.borrow().end.next);
            if at >= end {
                return Ok(entries);
            }
            let found = match self.tail.get(at) {
                Some(entry) => vec![entry],
                None if entries.is_empty() => self.read_piece(at, end, left).await?,
                None if left > 0 => match self.read_piece(at, end, left).await {
                    Ok(piece) => piece,
                    // Who goes on from there hears of it.
                    Err(_) => return Ok(entries),
                },
                None => return Ok(entries),
            };
            for entry in found {
                let bytes = entry.header.payload_bytes as usize;
                if !entries.is_empty() && bytes > left {
                    return Ok(entries);
                }
                left = left.saturating_sub(bytes);
                at = at.next();
                entries.push(entry);
            }
        }
    }

    /// See `Log::log_id`.
    pub(super) async fn log_id(&self, index: Index) -> Result<LogId, LogError> {
        let known = {
            let state = self.state.borrow();
            let points = [state.end.last(), state.flushed.last(), state.start.last()];
            points.into_iter().flatten().find(|id| id.index == index)
        };
        match known {
            Some(id) => Ok(id),
            None => Ok(self.header(index).await?.id),
        }
    }

    /// The header of one entry.
    pub(super) async fn header(&self, index: Index) -> Result<EntryHeader, LogError> {
        self.check_bounds(index)?;
        if let Some(entry) = self.tail.get(index) {
            return Ok(entry.header);
        }
        if let Some(segment) = self.segment_of(index)
            && let Ok(view) = self.index_of(&segment).await
            && let Some(slot) = view.get((index.0 - segment.base.next.0) as usize)
            && let Ok(file) = self.reader(&segment).await
            && let Ok(bytes) = file.read_at(u64::from(slot.position), ENTRY_HEADER_BYTES).await
            && let Ok(header) = EntryHeader::parse(&bytes)
            && (header.id.index, header.shard, header.segment) == (index, self.options.shard, segment.sequence)
        {
            return Ok(header);
        }
        // The whole entry, with all retries and words for what is wrong.
        let entries = self.read_piece(index, index.next(), 0).await?;
        Ok(entries.first().expect("a piece has an entry or is an error").header)
    }

    fn check_bounds(&self, index: Index) -> Result<(), LogError> {
        let state = self.state.borrow();
        let (first, end) = (state.start.next, state.end.next);
        if first <= index && index < end { Ok(()) } else { Err(LogError::NotFound { index, first, end }) }
    }

    /// Entries from the disk: at least the one at `from`, up to `end`, about `bytes_max` of them, in one read.
    async fn read_piece(&self, from: Index, end: Index, bytes_max: usize) -> Result<Vec<StoredEntry>, LogError> {
        let mut again = false;
        loop {
            self.check_bounds(from)?;
            let segment = self.segment_of(from).expect("what is within bounds is in a segment");
            match self.try_piece(&segment, from, end, bytes_max, again).await {
                Ok(entries) => return Ok(entries),
                // Purged or truncated meanwhile: the bounds tell.
                Err(_) if segment.removed.get() => {}
                Err(error) if again => {
                    // Or cut off meanwhile.
                    self.check_bounds(from)?;
                    return Err(error);
                }
                Err(_) => {
                    again = true;
                    if let Err(error) = self.distrust(&segment).await {
                        // Damage anywhere in the segment; the index at hand had been checked against the footer.
                        tracing::debug!(%error, "an index cannot be rebuilt");
                    }
                }
            }
        }
    }

    async fn try_piece(
        &self,
        segment: &SegmentOf<E>,
        from: Index,
        end: Index,
        bytes_max: usize,
        direct: bool,
    ) -> Result<Vec<StoredEntry>, LogError> {
        let view = self.index_of(segment).await?;
        let (data_end, last) = {
            let now = segment.now.borrow();
            // What is not durable yet is not on the disk yet.
            (now.data_end, end.min(now.end.next).min(self.state.borrow().flushed.next))
        };
        let first = (from.0 - segment.base.next.0) as usize;
        let position = |number: usize| view.get(number).map_or(data_end, |slot| u64::from(slot.position));
        let start = position(first);
        let bytes_max = (bytes_max.min(READ_BYTES) as u64).next_multiple_of(BLOCK_BYTES as u64);
        let mut count = 1;
        while from.0 + (count as u64) < last.0 && position(first + count + 1).saturating_sub(start) <= bytes_max {
            count += 1;
        }
        let stop = position(first + count);
        let file = if direct { self.past_cache(segment).await? } else { self.reader(segment).await? };
        if let Some((ahead, bytes)) = self.streams.note(segment.sequence.0, start, stop, data_end) {
            file.will_need(ahead, bytes);
        }
        let path = segment.path();
        let corrupt = |position, what: String| LogError::Corrupt { file: path.clone(), position, what };
        let length = stop.checked_sub(start).filter(|length| *length > 0);
        let length = length.ok_or_else(|| corrupt(start, "the index is not in order".into()))?;
        let chunk = unreadable::read_at(&file, start, length as usize).await;
        let chunk = chunk.map_err(|error| io_error(&path, "read", &error))?;
        let mut entries: Vec<StoredEntry> = Vec::with_capacity(count);
        for number in first..first + count {
            let at = position(number);
            let inside = (at.saturating_sub(start) as usize).min(chunk.len());
            let parsed = StoredEntry::parse(&chunk.slice(inside..)).map_err(|error| error.to_string());
            let placed = parsed.and_then(|entry| {
                self.check_place(segment, &entry, number, entries.last())?;
                Ok(entry)
            });
            match placed {
                Ok(entry) => entries.push(entry),
                // What is whole in front of the damage is served; who goes on from there hears of it.
                Err(_) if direct && !entries.is_empty() => break,
                Err(what) => return Err(corrupt(at, what)),
            }
        }
        Ok(entries)
    }

    /// Whether the entry is the one that was looked for.
    fn check_place(
        &self,
        segment: &SegmentOf<E>,
        entry: &StoredEntry,
        number: usize,
        before: Option<&StoredEntry>,
    ) -> Result<(), String> {
        let header = &entry.header;
        let mut point = before.map_or(segment.base, |before| point_after(&before.header));
        if before.is_none() && number > 0 {
            // Nothing is known of the entry before, so the chain cannot be checked here.
            point = crate::format::segment::LogPoint { next: Index(segment.base.next.0 + number as u64), ..point };
            let same = header.id.index == point.next
                && header.shard == self.options.shard
                && header.segment == segment.sequence
                && header.base_offset >= point.offset;
            return if same { Ok(()) } else { Err(format!("another entry ({}) is in its place", header.id)) };
        }
        continues(header, self.options.shard, segment.sequence, &point)
    }

    /// The file of a segment, open for reading.
    async fn reader(&self, segment: &SegmentOf<E>) -> Result<super::FileOf<E>, LogError> {
        let open = segment.now.borrow().reader.clone();
        if let Some(file) = open {
            return Ok(file);
        }
        let file = self.open_by_name(segment, OpenMode::Read).await?;
        // Removed while it was opened: what is kept open keeps its space.
        if !segment.removed.get() {
            segment.now.borrow_mut().reader = Some(file.clone());
            self.touch(segment);
        }
        Ok(file)
    }

    /// A handle that reads what is on the device.
    async fn past_cache(&self, segment: &SegmentOf<E>) -> Result<super::FileOf<E>, LogError> {
        let open = segment.now.borrow().appender.clone();
        match open {
            Some(file) => Ok(file),
            None => self.open_by_name(segment, OpenMode::Append).await,
        }
    }

    /// Opens a segment's file, which may get its lasting name meanwhile.
    async fn open_by_name(&self, segment: &SegmentOf<E>, mode: OpenMode) -> Result<super::FileOf<E>, LogError> {
        let mut path = segment.path();
        loop {
            match self.disk.open(&path, mode).await {
                Ok(file) => return Ok(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && !segment.removed.get() => {
                    if path == segment.path() && segment.named.get() {
                        return Err(io_error(&path, "opened", &error));
                    }
                    // Being renamed: the new name is known in a moment.
                    if path == segment.path() {
                        let named = || (path != segment.path() || self.background.get() == 0).then_some(());
                        self.until(named).await;
                        if path == segment.path() {
                            return Err(io_error(&path, "opened", &error));
                        }
                    }
                    path = segment.path();
                }
                Err(error) => return Err(io_error(&path, "opened", &error)),
            }
        }
    }

    /// The segment's index, checked; from memory, its file, or built anew from the entries.
    pub(super) async fn index_of(&self, segment: &SegmentOf<E>) -> Result<View, LogError> {
        if let Some(view) = segment.view() {
            return Ok(view);
        }
        let (entries, crc) = (segment.entries(), segment.now.borrow().index_crc);
        let fits =
            |content: &Bytes| content.len() as u64 == entries * SLOT_BYTES as u64 && crc32c::crc32c(content) == crc;
        let read = self.disk.read_file(&segment.index_path()).await.ok().filter(fits);
        let content = match read {
            Some(content) => content,
            None => match self.rebuild_index(segment).await {
                Ok(content) => content,
                // Of a segment that was cut meanwhile.
                Err(error) => return segment.view().ok_or(error),
            },
        };
        let index = CachedIndex::new(content);
        if !segment.removed.get() {
            self.keep_index(segment, &index);
            self.touch(segment);
        }
        Ok(View::Cached(index))
    }

    /// Keeps an index in memory, if the reactor has room for it; else it is read again when it is asked for again.
    fn keep_index(&self, segment: &SegmentOf<E>, index: &CachedIndex) {
        if CachedIndex::cached_bytes() > INDEX_BYTES_MAX {
            self.hot.borrow().iter().for_each(Self::forget_index);
        }
        let now = &mut *segment.now.borrow_mut();
        if matches!(now.slots, Slots::Cached(_)) && CachedIndex::cached_bytes() <= INDEX_BYTES_MAX {
            now.slots = Slots::Cached(Some(index.clone()));
        }
    }

    fn forget_index(segment: &SegmentOf<E>) {
        let now = &mut *segment.now.borrow_mut();
        if matches!(now.slots, Slots::Cached(_)) {
            now.slots = Slots::Cached(None);
        }
    }

    /// Builds the index of a sealed segment from its entries, and writes its file.
    pub(super) async fn rebuild_index(&self, segment: &SegmentOf<E>) -> Result<Bytes, LogError> {
        let path = segment.path();
        let file = self.reader(segment).await?;
        let (data_end, end) = (segment.now.borrow().data_end, segment.end());
        let mut scan = Scan::new(&file, data_end, self.options.shard, segment.sequence, segment.base);
        let mut content = Vec::with_capacity(segment.entries() as usize * SLOT_BYTES);
        while scan.point.next < end.next {
            let position = scan.position;
            let offset = scan.point.offset.0 - segment.base.offset.0;
            let slot = crate::format::segment::Slot { offset: offset as u32, position: position as u32 };
            match scan.next().await.map_err(|error| io_error(&path, "read", &error))? {
                Found::Entry(_) => content.extend_from_slice(&slot.encode()),
                Found::Bad(what) => return Err(LogError::Corrupt { file: path, position, what }),
                Found::Unreadable => {
                    return Err(LogError::Corrupt { file: path, position, what: UNREADABLE.to_owned() });
                }
                Found::Footer | Found::End => {
                    let what = format!("entry {} is missing", scan.point.next);
                    return Err(LogError::Corrupt { file: path, position, what });
                }
            }
        }
        let content = Bytes::from(content);
        if crc32c::crc32c(&content) != segment.now.borrow().index_crc {
            let what = "its entries are not those that its footer speaks of".into();
            return Err(LogError::Corrupt { file: path, position: data_end, what });
        }
        // It is a cache: if it cannot be written it is built again next time.
        drop(self.disk.write_file(&segment.index_path(), content.clone()).await);
        Ok(content)
    }

    /// Something read did not fit: forgets what may be stale.
    async fn distrust(&self, segment: &SegmentOf<E>) -> Result<(), LogError> {
        let cached = {
            let now = &mut *segment.now.borrow_mut();
            now.reader = None;
            matches!(now.slots, Slots::Cached(_))
        };
        if cached && !segment.removed.get() {
            let rebuilt = CachedIndex::new(self.rebuild_index(segment).await?);
            Self::forget_index(segment);
            self.keep_index(segment, &rebuilt);
        }
        Ok(())
    }

    /// Notes that a segment has a file open or an index in memory, and closes those of the one that was not used for longest.
    fn touch(&self, segment: &SegmentOf<E>) {
        let mut hot = self.hot.borrow_mut();
        hot.retain(|other| !Rc::ptr_eq(other, segment));
        hot.push_back(segment.clone());
        if hot.len() > HOT_SEGMENTS_MAX
            && let Some(cold) = hot.pop_front()
        {
            cold.now.borrow_mut().reader = None;
            Self::forget_index(&cold);
        }
    }

    /// See `Log::find_offset`.
    pub(super) async fn find_offset(&self, offset: Offset) -> Result<Option<Index>, LogError> {
        while let Some(segment) = self.segment_at(offset) {
            let view = match self.index_of(&segment).await {
                // Purged or truncated meanwhile: what is left is looked at anew.
                Err(_) if segment.removed.get() => continue,
                view => view?,
            };
            let relative =
                u32::try_from(offset.0 - segment.base.offset.0).expect("segments span fewer than 2^32 records");
            let number = view.last_at_or_below(relative).expect("the first slot is at the base offset");
            return Ok(Some(Index(segment.base.next.0 + number as u64)));
        }
        Ok(None)
    }

    /// The segment with the record at `offset`, if the log has that.
    fn segment_at(&self, offset: Offset) -> Option<SegmentOf<E>> {
        let state = self.state.borrow();
        if offset < state.start.offset || offset >= state.end.offset {
            return None;
        }
        // The last segment that begins at or below it and has records from there on.
        let after = state.segments.partition_point(|segment| segment.base.offset <= offset);
        let segment = after.checked_sub(1).and_then(|number| state.segments.get(number));
        Some(segment.cloned().expect("what is kept is in a segment"))
    }

    /// See `Log::find_timestamp`.
    pub(super) async fn find_timestamp(&self, timestamp_us: i64) -> Result<Option<Index>, LogError> {
        while let Some((low, high)) = self.entries_around(timestamp_us) {
            match self.halve(low, high, timestamp_us).await {
                // Purged or truncated meanwhile: what is left is looked at anew.
                Err(LogError::NotFound { .. }) => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    /// The entries, of one segment, among which the first with that running maximum is.
    fn entries_around(&self, timestamp_us: i64) -> Option<(Index, Index)> {
        let state = self.state.borrow();
        if state.end.timestamp_max_us < timestamp_us || state.end.next <= state.start.next {
            return None;
        }
        let after = state.segments.partition_point(|segment| segment.end().timestamp_max_us < timestamp_us);
        let segment = state.segments.get(after)?;
        Some((segment.base.next.max(state.start.next), segment.end().next))
    }

    /// The running maximum in the headers never falls, so it can be halved.
    async fn halve(&self, mut low: Index, mut high: Index, timestamp_us: i64) -> Result<Index, LogError> {
        while low < high {
            let middle = Index(low.0 + (high.0 - low.0) / 2);
            if self.header(middle).await?.timestamp_max_us < timestamp_us {
                low = middle.next();
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
