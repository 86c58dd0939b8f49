//! A log entry as it is on disk and on the wire between replicas: a fixed header, then the payload.
//!
//! ```text
//! offset width
//!   0      4   magic "RLE1" (the 1 is the version)
//!   4      1   kind (EntryKind)
//!   5      3   zero
//!   8      4   payload bytes
//!  12      4   record count (0 unless kind is Batch)
//!  16      8   shard uid
//!  24      8   segment sequence                                    (differs between replicas)
//!  32      8   index
//!  40      8   term
//!  48      8   base offset: of the first record; for others the next offset to be given
//!  56      8   timestamp, µs: the leader's clock
//!  64      8   largest record timestamp in the log up to and including this entry, µs
//!  72      8   durable end: every entry below this index was on stable storage of this replica when this one
//!              was written                                         (differs between replicas)
//!  80      8   chain: XXH3-64, seeded with the previous entry's chain, of kind, payload bytes, record
//!              count, shard uid, index, term, base offset, both timestamps and payload crc
//!  88      4   CRC-32C of the payload
//!  92     32   zero
//! 124      4   CRC-32C of bytes 0..124
//! 128          payload, then zeros up to a multiple of 4,096
//! ```
//! Integers are little-endian. An entry starts on a multiple of 4,096.

use bytes::Bytes;

use crate::{
    env::buffer::Buffer,
    ids::{LogId, Offset, SegmentSequence, ShardUid},
};

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 128;

/// What an entry is. The numbers are on disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A new leader's first entry; no payload.
    Blank = 1,
    /// `ringlog.state.v1.Membership`.
    Membership = 2,
    /// Records: `repeated Record records = 1`, ready to be served.
    Batch = 3,
    /// A command to the state machine.
    Command = 4,
    /// A batch that was encoded for another base offset than its place in the log gave it (the
    /// leader had changed in between): it takes an index, but no offsets, and is never served.
    Void = 5,
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// Records in it; they take offsets `base_offset .. base_offset + record_count`.
    pub record_count: u32,
    /// Whose log it is.
    pub shard: ShardUid,
    /// Incarnation of the segment file that it was written to.
    pub segment: SegmentSequence,
    /// Term and index.
    pub id: LogId,
    /// Offset of the first record; for entries without records the next offset to be given.
    pub base_offset: Offset,
    /// Leader's clock, µs since the epoch.
    pub timestamp_us: i64,
    /// Largest record timestamp so far in the log, µs.
    pub timestamp_max_us: i64,
    /// Entries below this index were durable here when this one was written.
    pub durable_end: u64,
    /// Chain hash up to and including this entry.
    pub chain: u64,
    /// Checksum of the payload.
    pub payload_crc: u32,
}

impl EntryHeader {
    /// The next offset to be given after this entry.
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.record_count))
    }
}

/// An entry on its way into the log. `buffer` holds `ENTRY_HEADER_BYTES` of room for the header,
/// then the payload; the log fills the header in and freezes it, without a copy.
#[derive(Debug)]
pub struct NewEntry {
    /// Term and index.
    pub id: LogId,
    /// What it is; `Batch` becomes `Void` if `base_offset` is not the log's end.
    pub kind: EntryKind,
    /// Records in the payload.
    pub record_count: u32,
    /// Base offset for which the payload was encoded; ignored unless `kind` is `Batch`.
    pub base_offset: Offset,
    /// Leader's clock, µs since the epoch.
    pub timestamp_us: i64,
    /// Largest timestamp of its records, µs; `i64::MIN` without records.
    pub record_timestamp_max_us: i64,
    /// Header room and payload.
    pub buffer: Buffer,
}

/// An entry read back from the log: a parsed, verified header and a refcounted slice of its bytes.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// Verified.
    pub header: EntryHeader,
    /// Header and payload, without padding.
    pub bytes: Bytes,
}

impl StoredEntry {
    /// The payload; shares the memory.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(ENTRY_HEADER_BYTES..)
    }
}
