//! Reads a segment's entries one after the other and checks all there is to check: header, payload,
//! shard, segment sequence, index, term, offset, timestamps, chain. Recovery, index rebuilding and
//! `verify` look at segments through it. Changes nothing.

use std::io;

use bytes::Bytes;

use super::{point_after, unreadable};
use crate::{
    env::File,
    format::{
        entry::{EntryError, EntryHeader, StoredEntry},
        segment::{LogPoint, SegmentFooter},
    },
    ids::{Index, SegmentSequence, ShardUid},
    limits::{BLOCK_BYTES, READ_BYTES},
};

/// What is at the scan's position.
pub(super) enum Found {
    /// The next entry, whole and right. The scan has moved behind it.
    Entry(StoredEntry),
    /// The footer of this segment, which fits what was scanned.
    Footer,
    /// The file ends here.
    End,
    /// Something that the device cannot read: whether it is an entry is not known.
    Unreadable,
    /// Anything else; in words.
    Bad(String),
}

/// Why what is `Found::Unreadable` is no entry.
pub(super) const UNREADABLE: &str = "the device cannot read what is there";

/// A scan of one file.
pub(super) struct Scan<'a, F> {
    file: &'a F,
    file_bytes: u64,
    shard: ShardUid,
    sequence: SegmentSequence,
    chunk: Bytes,
    chunk_at: u64,
    /// Where the next entry should start.
    pub position: u64,
    /// What it should build on.
    pub point: LogPoint,
}

impl<'a, F: File> Scan<'a, F> {
    /// A scan of a file of `file_bytes` from its first entry on.
    pub fn new(file: &'a F, file_bytes: u64, shard: ShardUid, sequence: SegmentSequence, base: LogPoint) -> Self {
        let position = BLOCK_BYTES as u64;
        Scan { file, file_bytes, shard, sequence, chunk: Bytes::new(), chunk_at: 0, position, point: base }
    }

    /// Looks at the next entry.
    pub async fn next(&mut self) -> io::Result<Found> {
        if self.position >= self.file_bytes {
            return Ok(Found::End);
        }
        let block = self.bytes(BLOCK_BYTES).await?;
        let header = match EntryHeader::parse(&block) {
            Ok(header) => header,
            Err(_) if unreadable::is_filler(&block) => return Ok(Found::Unreadable),
            Err(error) => return Ok(self.not_an_entry(&block, error)),
        };
        let bytes = self.bytes(header.padded_bytes()).await?;
        let entry = match StoredEntry::parse(&bytes) {
            Ok(entry) => entry,
            Err(_) if bytes.chunks(BLOCK_BYTES).any(unreadable::is_filler) => return Ok(Found::Unreadable),
            Err(error) => return Ok(Found::Bad(error.to_string())),
        };
        if let Err(what) = continues(&entry.header, self.shard, self.sequence, &self.point) {
            return Ok(Found::Bad(what));
        }
        self.position += header.padded_bytes() as u64;
        self.point = point_after(&header);
        Ok(Found::Entry(entry))
    }

    fn not_an_entry(&self, block: &[u8], error: EntryError) -> Found {
        match SegmentFooter::parse(block) {
            Ok(footer)
                if footer.shard == self.shard
                    && footer.sequence == self.sequence
                    && footer.position.0 == self.position
                    && footer.end == self.point =>
            {
                Found::Footer
            }
            _ => Found::Bad(error.to_string()),
        }
    }

    /// Up to `bytes` at the position; fewer only at the end of the file.
    pub(super) async fn bytes(&mut self, bytes: usize) -> io::Result<Bytes> {
        let wanted = (bytes as u64).min(self.file_bytes - self.position) as usize;
        let inside = self.position.checked_sub(self.chunk_at).unwrap_or(u64::MAX);
        if inside.saturating_add(wanted as u64) > self.chunk.len() as u64 {
            let piece = (self.file_bytes - self.position).min(wanted.max(READ_BYTES) as u64);
            self.chunk = unreadable::read_at(self.file, self.position, piece as usize).await?;
            self.chunk_at = self.position;
        }
        let start = (self.position - self.chunk_at) as usize;
        Ok(self.chunk.slice(start.min(self.chunk.len())..(start + wanted).min(self.chunk.len())))
    }

    /// Looks through the rest of the file, block by block, for an entry of this segment that proves entries below
    /// it durable which are missing here: then what is missing was not a torn write.
    pub async fn look_beyond(&self) -> io::Result<Beyond> {
        let mut beyond = Beyond { proof: None, zero: true };
        let mut at = self.position;
        while at < self.file_bytes {
            let piece = (self.file_bytes - at).min(READ_BYTES as u64) as usize;
            let chunk = unreadable::read_at(self.file, at, piece).await?;
            if chunk.is_empty() {
                break;
            }
            for (number, block) in chunk.chunks(BLOCK_BYTES).enumerate() {
                if is_zero(block) {
                    continue;
                }
                beyond.zero = false;
                let Ok(header) = EntryHeader::parse(block) else { continue };
                let ours = header.shard == self.shard && header.segment == self.sequence;
                if ours && header.id.index >= self.point.next && header.durable_end > self.point.next.0 {
                    beyond.proof = Some((at + (number * BLOCK_BYTES) as u64, header.id.index));
                    return Ok(beyond);
                }
            }
            at += chunk.len() as u64;
        }
        Ok(beyond)
    }
}

/// What lies behind the last good entry.
pub(super) struct Beyond {
    /// Position and index of an entry that was written when the missing one was durable.
    pub proof: Option<(u64, Index)>,
    /// Nothing but zeros.
    pub zero: bool,
}

fn is_zero(block: &[u8]) -> bool {
    // The compiler turns the fold over fixed pieces into wide instructions.
    let (words, rest) = block.as_chunks::<64>();
    words.iter().all(|word| word.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Whether `header` is the entry that follows `point` in this segment.
pub(super) fn continues(
    header: &EntryHeader,
    shard: ShardUid,
    sequence: SegmentSequence,
    point: &LogPoint,
) -> Result<(), String> {
    let wrong = |what: &str, found: u64, expected: u64| Err(format!("{what} is {found}, expected {expected}"));
    if header.shard != shard {
        return wrong("the entry's shard", header.shard.0, shard.0);
    }
    if header.segment != sequence {
        return wrong("the entry's segment sequence", header.segment.0, sequence.0);
    }
    if header.id.index != point.next {
        return wrong("the entry's index", header.id.index.0, point.next.0);
    }
    if header.base_offset != point.offset {
        return wrong("the entry's base offset", header.base_offset.0, point.offset.0);
    }
    if header.id.term < point.term || header.timestamp_max_us < point.timestamp_max_us {
        return Err("the entry's term or timestamp is below that of the entry before".into());
    }
    if header.chain != header.chain_after(point.chain) {
        return Err("the entry does not continue the chain of the entries before".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::entry::EntryKind,
        ids::{LogId, Offset, Term},
    };

    /// An entry continues a log if all of it does: its place, its term, its time, and the chain of all before it.
    #[test]
    fn what_continues() {
        let point = LogPoint { next: Index(7), term: Term(2), offset: Offset(90), chain: 0xfeed, timestamp_max_us: 5 };
        let (shard, segment) = (ShardUid(1), SegmentSequence(3));
        let mut entry = EntryHeader {
            kind: EntryKind::Batch,
            payload_bytes: 0,
            record_count: 1,
            shard,
            segment,
            id: LogId { term: Term(2), index: Index(7) },
            base_offset: Offset(90),
            timestamp_us: 5,
            timestamp_max_us: 5,
            durable_end: 7,
            chain: 0,
            payload_crc: 0,
        };
        entry.chain = entry.chain_after(point.chain);
        let fits = |entry: EntryHeader| continues(&entry, shard, segment, &point).is_ok();
        let chained = |entry: EntryHeader| EntryHeader { chain: entry.chain_after(point.chain), ..entry };
        assert!(fits(entry));
        assert!(!fits(EntryHeader { chain: entry.chain ^ 1, ..entry }), "of another history");
        assert!(!fits(chained(EntryHeader { shard: ShardUid(2), ..entry })));
        assert!(!fits(chained(EntryHeader { segment: SegmentSequence(2), ..entry })), "of a file's former life");
        assert!(!fits(chained(EntryHeader { id: LogId { term: Term(2), index: Index(8) }, ..entry })));
        assert!(!fits(chained(EntryHeader { id: LogId { term: Term(1), index: Index(7) }, ..entry })));
        assert!(!fits(chained(EntryHeader { base_offset: Offset(91), ..entry })));
        assert!(!fits(chained(EntryHeader { timestamp_max_us: 4, ..entry })));
    }
}
