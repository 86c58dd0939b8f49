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
use twox_hash::XxHash3_64;

use crate::{
    budget::Charge,
    env::buffer::Buffer,
    ids::{Index, LogId, Offset, SegmentSequence, ShardUid, Term},
    limits::{BLOCK_BYTES, ENTRY_BYTES_MAX},
};

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 128;

/// First bytes of an entry; the last of them is the version.
pub const ENTRY_MAGIC: [u8; 4] = *b"RLE1";

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

impl EntryKind {
    /// The kind of this number, if there is one.
    pub fn from_number(number: u8) -> Option<EntryKind> {
        match number {
            1 => Some(EntryKind::Blank),
            2 => Some(EntryKind::Membership),
            3 => Some(EntryKind::Batch),
            4 => Some(EntryKind::Command),
            5 => Some(EntryKind::Void),
            _ => None,
        }
    }
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Fewer bytes than it says it has, or than a header takes.
    #[error("the entry is cut off")]
    Short,
    /// Does not begin like an entry: never written, or something else.
    #[error("no entry begins here")]
    Magic,
    /// Bytes of the header changed.
    #[error("the header's checksum does not match")]
    HeaderCrc,
    /// The checksum matches, but the fields contradict each other.
    #[error("the header is not valid: {0}")]
    Invalid(&'static str),
    /// Bytes of the payload changed, or are those of an earlier write.
    #[error("the payload's checksum does not match")]
    PayloadCrc,
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

    /// Bytes of header and payload.
    pub fn bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.payload_bytes as usize
    }

    /// Bytes that the entry takes in a segment: header, payload and padding.
    pub fn padded_bytes(&self) -> usize {
        self.bytes().next_multiple_of(BLOCK_BYTES)
    }

    /// The header as it is on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_HEADER_BYTES] {
        let mut out = [0; ENTRY_HEADER_BYTES];
        out[0..4].copy_from_slice(&ENTRY_MAGIC);
        out[4] = self.kind as u8;
        put(&mut out, 8, self.payload_bytes.to_le_bytes());
        put(&mut out, 12, self.record_count.to_le_bytes());
        put(&mut out, 16, self.shard.0.to_le_bytes());
        put(&mut out, 24, self.segment.0.to_le_bytes());
        put(&mut out, 32, self.id.index.0.to_le_bytes());
        put(&mut out, 40, self.id.term.0.to_le_bytes());
        put(&mut out, 48, self.base_offset.0.to_le_bytes());
        put(&mut out, 56, self.timestamp_us.to_le_bytes());
        put(&mut out, 64, self.timestamp_max_us.to_le_bytes());
        put(&mut out, 72, self.durable_end.to_le_bytes());
        put(&mut out, 80, self.chain.to_le_bytes());
        put(&mut out, 88, self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        put(&mut out, CRC_AT, crc.to_le_bytes());
        out
    }

    /// Reads a header; looks at nothing behind it.
    ///
    /// # Errors
    /// `Short`, `Magic`, `HeaderCrc`, `Invalid`.
    pub fn parse(bytes: &[u8]) -> Result<EntryHeader, EntryError> {
        let bytes: &[u8; ENTRY_HEADER_BYTES] = bytes.first_chunk().ok_or(EntryError::Short)?;
        if bytes[0..4] != ENTRY_MAGIC {
            return Err(EntryError::Magic);
        }
        if u32::from_le_bytes(take(bytes, CRC_AT)) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return Err(EntryError::HeaderCrc);
        }
        let kind = EntryKind::from_number(bytes[4]).ok_or(EntryError::Invalid("unknown kind"))?;
        let header = EntryHeader {
            kind,
            payload_bytes: u32::from_le_bytes(take(bytes, 8)),
            record_count: u32::from_le_bytes(take(bytes, 12)),
            shard: ShardUid(u64::from_le_bytes(take(bytes, 16))),
            segment: SegmentSequence(u64::from_le_bytes(take(bytes, 24))),
            id: LogId {
                index: Index(u64::from_le_bytes(take(bytes, 32))),
                term: Term(u64::from_le_bytes(take(bytes, 40))),
            },
            base_offset: Offset(u64::from_le_bytes(take(bytes, 48))),
            timestamp_us: i64::from_le_bytes(take(bytes, 56)),
            timestamp_max_us: i64::from_le_bytes(take(bytes, 64)),
            durable_end: u64::from_le_bytes(take(bytes, 72)),
            chain: u64::from_le_bytes(take(bytes, 80)),
            payload_crc: u32::from_le_bytes(take(bytes, 88)),
        };
        if header.payload_bytes as usize > ENTRY_BYTES_MAX {
            return Err(EntryError::Invalid("payload too long"));
        }
        if (kind == EntryKind::Batch) != (header.record_count > 0) {
            return Err(EntryError::Invalid("record count"));
        }
        if header.base_offset.0.checked_add(u64::from(header.record_count)).is_none() {
            return Err(EntryError::Invalid("base offset"));
        }
        if header.id.index.0 == u64::MAX || header.durable_end > header.id.index.0 {
            return Err(EntryError::Invalid("index"));
        }
        Ok(header)
    }

    /// The chain hash that this entry gets behind one with the chain hash `previous` (0 at the
    /// start of a log). Covers what is the same on all replicas, so that equal chains mean equal logs.
    #[must_use]
    pub fn chain_after(&self, previous: u64) -> u64 {
        let mut content = [0; 61];
        content[0] = self.kind as u8;
        put(&mut content, 1, self.payload_bytes.to_le_bytes());
        put(&mut content, 5, self.record_count.to_le_bytes());
        put(&mut content, 9, self.shard.0.to_le_bytes());
        put(&mut content, 17, self.id.index.0.to_le_bytes());
        put(&mut content, 25, self.id.term.0.to_le_bytes());
        put(&mut content, 33, self.base_offset.0.to_le_bytes());
        put(&mut content, 41, self.timestamp_us.to_le_bytes());
        put(&mut content, 49, self.timestamp_max_us.to_le_bytes());
        put(&mut content, 57, self.payload_crc.to_le_bytes());
        XxHash3_64::oneshot_with_seed(previous, &content)
    }
}

const CRC_AT: usize = ENTRY_HEADER_BYTES - 4;

fn put<const N: usize>(out: &mut [u8], at: usize, field: [u8; N]) {
    out[at..at + N].copy_from_slice(&field);
}

fn take<const N: usize>(bytes: &[u8; ENTRY_HEADER_BYTES], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().expect("fields end inside the header")
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
    /// The header that the leader gave it, when it comes from one: what replicas share must come out the same here. The
    /// caller has checked the payload against it.
    pub leader: Option<EntryHeader>,
    /// What it was charged on its way here; `None`: nothing.
    pub charge: Option<Charge>,
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
    /// Reads the entry at the start of `bytes`, header and payload checked. What follows it in `bytes` is
    /// ignored; the memory is shared.
    ///
    /// # Errors
    /// `EntryError`; `Short` when the payload goes on behind the end of `bytes`.
    pub fn parse(bytes: &Bytes) -> Result<StoredEntry, EntryError> {
        let header = EntryHeader::parse(bytes)?;
        if bytes.len() < header.bytes() {
            return Err(EntryError::Short);
        }
        let bytes = bytes.slice(..header.bytes());
        if crc32c::crc32c(&bytes[ENTRY_HEADER_BYTES..]) != header.payload_crc {
            return Err(EntryError::PayloadCrc);
        }
        Ok(StoredEntry { header, bytes })
    }

    /// The payload; shares the memory.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(ENTRY_HEADER_BYTES..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(payload: &[u8]) -> EntryHeader {
        let mut header = EntryHeader {
            kind: EntryKind::Batch,
            payload_bytes: payload.len() as u32,
            record_count: 3,
            shard: ShardUid(0x0102_0304_0506_0708),
            segment: SegmentSequence(9),
            id: LogId { term: Term(5), index: Index(77) },
            base_offset: Offset(1000),
            timestamp_us: 1_700_000_000_000_000,
            timestamp_max_us: -4,
            durable_end: 76,
            chain: 0,
            payload_crc: crc32c::crc32c(payload),
        };
        header.chain = header.chain_after(0xfeed);
        header
    }

    fn entry(payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(payload).encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// These bytes are on disks: a change of them is a change of the format and needs another magic.
    #[test]
    fn fixed_bytes() {
        let encoded = header(b"payload").encode();
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, FIXED);
        assert_eq!(EntryHeader::parse(&encoded), Ok(header(b"payload")));
    }

    const FIXED: &str = concat!(
        "524c453103000000070000000300000008070605040302010900000000000000",
        "4d000000000000000500000000000000e80300000000000000401e18240a0600",
        "fcffffffffffffff4c0000000000000054b7f9b0d47072b47069e3f400000000",
        "00000000000000000000000000000000000000000000000000000000a2f39d18",
    );

    /// What was encoded parses to the same entry, whatever follows it.
    #[test]
    fn round_trip() {
        for length in [0, 1, 4000, 10_000] {
            let payload = vec![7; length];
            let mut bytes = entry(&payload);
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            assert_eq!(bytes.len(), header(&payload).padded_bytes());
            let stored = StoredEntry::parse(&bytes.into()).unwrap();
            assert_eq!(stored.header, header(&payload));
            assert_eq!(stored.payload(), payload);
        }
    }

    /// Cut at every length: never an entry, never a panic.
    #[test]
    fn every_prefix_is_refused() {
        let bytes = Bytes::from(entry(&[3; 300]));
        for length in 0..bytes.len() {
            assert_eq!(StoredEntry::parse(&bytes.slice(..length)).unwrap_err(), EntryError::Short, "{length}");
        }
    }

    /// One flipped bit anywhere in header or payload is found.
    #[test]
    fn every_bit_flip_is_refused() {
        let good = entry(&[3; 300]);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(StoredEntry::parse(&bytes.into()).is_err(), "bit {bit}");
        }
    }

    /// A valid checksum does not make contradictory fields valid.
    #[test]
    fn contradictions_are_refused() {
        let good = header(b"x");
        for bad in [
            EntryHeader { payload_bytes: ENTRY_BYTES_MAX as u32 + 1, ..good },
            EntryHeader { record_count: 0, ..good },
            EntryHeader { kind: EntryKind::Blank, ..good },
            EntryHeader { base_offset: Offset(u64::MAX), ..good },
            EntryHeader { durable_end: 78, ..good },
        ] {
            assert!(matches!(EntryHeader::parse(&bad.encode()), Err(EntryError::Invalid(_))), "{bad:?}");
        }
    }

    /// The chain covers the previous entry and what replicas share, but not what differs between them.
    #[test]
    fn chain_covers_what_replicas_share() {
        let good = header(b"payload");
        let chain = good.chain_after(1);
        assert_eq!(chain, EntryHeader { segment: SegmentSequence(1), durable_end: 0, ..good }.chain_after(1));
        for other in [
            EntryHeader { kind: EntryKind::Void, ..good },
            EntryHeader { record_count: 4, ..good },
            EntryHeader { payload_crc: 4, ..good },
            EntryHeader { timestamp_us: 4, ..good },
            EntryHeader { timestamp_max_us: 4, ..good },
            EntryHeader { base_offset: Offset(4), ..good },
        ] {
            assert_ne!(chain, other.chain_after(1));
        }
        assert_ne!(chain, good.chain_after(2));
    }
}
