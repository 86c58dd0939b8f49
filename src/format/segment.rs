//! A segment's first and last block, and the slots of its index.
//!
//! ```text
//! header, block 0 of a .store file         footer, the block after the last entry
//! offset width                             offset width
//!   0      4   magic "RLS1"                  0      4   magic "RLF1"
//!   4      4   zero                          4      4   CRC-32C of the index file's content
//!   8      8   shard uid                     8      8   shard uid
//!  16      8   segment sequence             16      8   segment sequence
//!  24      8   base index                   24      8   next index (after the last entry)
//!  32      8   term before (0 at index 0)   32      8   term of the last entry
//!  40      8   base offset                  40      8   end offset
//!  48      8   chain before                 48      8   chain of the last entry
//!  56      8   timestamp max before, µs     56      8   timestamp max of the last entry, µs
//!  64      8   intended file bytes          64      8   leader's clock at the last entry, µs
//!  72      8   created, µs                  72      8   entries
//!  80     44   zero                         80      8   own position in the file
//! 124      4   CRC-32C of bytes 0..124      88      8   term of the first entry
//! 128          zeros                        96     28   zero
//!                                          124      4   CRC-32C of bytes 0..124
//!                                          128          zeros
//!
//! .index file: one slot per entry, so slot number = index − base index
//!   0      4   offset − base offset of the segment, at the entry
//!   4      4   position of the entry in the .store file
//! ```
//! Integers are little-endian. There is one slot for each entry, not for each batch, because Raft
//! asks by index; a search by offset takes the last slot at or below it.

use bytes::Bytes;

use crate::{
    env::buffer::Buffer,
    ids::{Index, LogId, Offset, Position, SegmentSequence, ShardUid, Term},
    limits::BLOCK_BYTES,
};

/// First bytes of a segment; the last of them is the version.
pub const SEGMENT_MAGIC: [u8; 4] = *b"RLS1";

/// First bytes of a footer.
pub const FOOTER_MAGIC: [u8; 4] = *b"RLF1";

/// Bytes of a slot of an index.
pub const SLOT_BYTES: usize = 8;

/// A log between two entries: all that the next entry builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPoint {
    /// Index of the next entry.
    pub next: Index,
    /// Term of the entry before it; 0 if there is none.
    pub term: Term,
    /// Next offset to be given.
    pub offset: Offset,
    /// Chain hash of the entry before.
    pub chain: u64,
    /// Largest record timestamp before, µs.
    pub timestamp_max_us: i64,
}

impl Default for LogPoint {
    /// Before the first entry of a log.
    fn default() -> LogPoint {
        LogPoint { next: Index(0), term: Term(0), offset: Offset(0), chain: 0, timestamp_max_us: i64::MIN }
    }
}

impl LogPoint {
    /// The entry before this point.
    pub fn last(&self) -> Option<LogId> {
        self.next.0.checked_sub(1).map(|index| LogId { term: self.term, index: Index(index) })
    }
}

/// Why a block is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Cut off.
    #[error("it is cut off")]
    Short,
    /// Does not begin like one.
    #[error("it does not begin with the right magic")]
    Magic,
    /// Begins like one of another version.
    #[error("it is of format version {0:?}, this program knows version '1'")]
    Version(char),
    /// Bytes changed.
    #[error("its checksum does not match")]
    Crc,
}

/// A segment's first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log it is.
    pub shard: ShardUid,
    /// This incarnation of the file.
    pub sequence: SegmentSequence,
    /// Where the log stood when it was begun.
    pub base: LogPoint,
    /// Size that the file was made for.
    pub intended_bytes: u64,
    /// When, µs since the epoch.
    pub created_us: i64,
}

/// The block after a sealed segment's last entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFooter {
    /// Checksum of the index file's content.
    pub index_crc: u32,
    /// Whose log it is.
    pub shard: ShardUid,
    /// Incarnation of the file.
    pub sequence: SegmentSequence,
    /// Where the log stood after the last entry.
    pub end: LogPoint,
    /// Leader's clock at the last entry, µs.
    pub last_timestamp_us: i64,
    /// Number of entries.
    pub entries: u64,
    /// Where this block is.
    pub position: Position,
    /// Term of the first entry.
    pub first_term: Term,
}

/// One entry's place: a hint, the entry's header is the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Offset at the entry, from the segment's base offset.
    pub offset: u32,
    /// Where its header starts in the file.
    pub position: u32,
}

impl SegmentHeader {
    /// The block.
    pub fn encode(&self) -> Bytes {
        let mut block = Buffer::zeroed(BLOCK_BYTES);
        let out = block.bytes_mut();
        put(out, 0, SEGMENT_MAGIC);
        put(out, 8, self.shard.0.to_le_bytes());
        put(out, 16, self.sequence.0.to_le_bytes());
        put_point(out, 24, &self.base);
        put(out, 64, self.intended_bytes.to_le_bytes());
        put(out, 72, self.created_us.to_le_bytes());
        put_crc(out);
        block.freeze_padded()
    }

    /// Reads it.
    ///
    /// # Errors
    /// `BlockError`.
    pub fn parse(block: &[u8]) -> Result<SegmentHeader, BlockError> {
        check_block(block, SEGMENT_MAGIC)?;
        Ok(SegmentHeader {
            shard: ShardUid(number(block, 8)),
            sequence: SegmentSequence(number(block, 16)),
            base: point(block, 24),
            intended_bytes: number(block, 64),
            created_us: i64::from_le_bytes(take(block, 72)),
        })
    }
}

impl SegmentFooter {
    /// The block.
    pub fn encode(&self) -> Bytes {
        let mut block = Buffer::zeroed(BLOCK_BYTES);
        let out = block.bytes_mut();
        put(out, 0, FOOTER_MAGIC);
        put(out, 4, self.index_crc.to_le_bytes());
        put(out, 8, self.shard.0.to_le_bytes());
        put(out, 16, self.sequence.0.to_le_bytes());
        put_point(out, 24, &self.end);
        put(out, 64, self.last_timestamp_us.to_le_bytes());
        put(out, 72, self.entries.to_le_bytes());
        put(out, 80, self.position.0.to_le_bytes());
        put(out, 88, self.first_term.0.to_le_bytes());
        put_crc(out);
        block.freeze_padded()
    }

    /// Reads it.
    ///
    /// # Errors
    /// `BlockError`.
    pub fn parse(block: &[u8]) -> Result<SegmentFooter, BlockError> {
        check_block(block, FOOTER_MAGIC)?;
        Ok(SegmentFooter {
            index_crc: u32::from_le_bytes(take(block, 4)),
            shard: ShardUid(number(block, 8)),
            sequence: SegmentSequence(number(block, 16)),
            end: point(block, 24),
            last_timestamp_us: i64::from_le_bytes(take(block, 64)),
            entries: number(block, 72),
            position: Position(number(block, 80)),
            first_term: Term(number(block, 88)),
        })
    }
}

impl Slot {
    /// The slot as it is in the file.
    #[must_use]
    pub fn encode(self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        put(&mut out, 0, self.offset.to_le_bytes());
        put(&mut out, 4, self.position.to_le_bytes());
        out
    }

    /// Slot `number` of an index file's content.
    ///
    /// # Panics
    /// When the content is shorter.
    #[must_use]
    pub fn parse(content: &[u8], number: usize) -> Slot {
        let at = number * SLOT_BYTES;
        Slot { offset: u32::from_le_bytes(take(content, at)), position: u32::from_le_bytes(take(content, at + 4)) }
    }
}

const CRC_AT: usize = 124;

pub(super) fn put<const N: usize>(out: &mut [u8], at: usize, field: [u8; N]) {
    out[at..at + N].copy_from_slice(&field);
}

/// # Panics
/// When the bytes end before the field.
pub(super) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().expect("the length was checked")
}

pub(super) fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// A point's five fields, 40 bytes.
pub(super) fn put_point(out: &mut [u8], at: usize, point: &LogPoint) {
    put(out, at, point.next.0.to_le_bytes());
    put(out, at + 8, point.term.0.to_le_bytes());
    put(out, at + 16, point.offset.0.to_le_bytes());
    put(out, at + 24, point.chain.to_le_bytes());
    put(out, at + 32, point.timestamp_max_us.to_le_bytes());
}

pub(super) fn point(bytes: &[u8], at: usize) -> LogPoint {
    LogPoint {
        next: Index(number(bytes, at)),
        term: Term(number(bytes, at + 8)),
        offset: Offset(number(bytes, at + 16)),
        chain: number(bytes, at + 24),
        timestamp_max_us: i64::from_le_bytes(take(bytes, at + 32)),
    }
}

pub(super) fn put_crc(block: &mut [u8]) {
    let crc = crc32c::crc32c(&block[..CRC_AT]);
    put(block, CRC_AT, crc.to_le_bytes());
}

/// Magic, version, checksum of a block's first 128 bytes.
pub(super) fn check_block(block: &[u8], magic: [u8; 4]) -> Result<(), BlockError> {
    if block.len() < CRC_AT + 4 {
        return Err(BlockError::Short);
    }
    if block[..3] != magic[..3] {
        return Err(BlockError::Magic);
    }
    let crc_matches = u32::from_le_bytes(take(block, CRC_AT)) == crc32c::crc32c(&block[..CRC_AT]);
    if block[3] != magic[3] {
        // Only a block that is whole is of another version; a damaged one is damaged.
        return Err(if crc_matches { BlockError::Version(char::from(block[3])) } else { BlockError::Crc });
    }
    if crc_matches { Ok(()) } else { Err(BlockError::Crc) }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> LogPoint {
        LogPoint { next: Index(7), term: Term(2), offset: Offset(900), chain: 0xfeed_f00d, timestamp_max_us: -3 }
    }

    fn header() -> SegmentHeader {
        SegmentHeader {
            shard: ShardUid(0x0102_0304_0506_0708),
            sequence: SegmentSequence(9),
            base: sample(),
            intended_bytes: 1 << 20,
            created_us: 1_700_000_000_000_000,
        }
    }

    fn footer() -> SegmentFooter {
        SegmentFooter {
            index_crc: 0xabcd_ef01,
            shard: ShardUid(0x0102_0304_0506_0708),
            sequence: SegmentSequence(9),
            end: sample(),
            last_timestamp_us: 1_700_000_000_000_000,
            entries: 5,
            position: Position(40960),
            first_term: Term(1),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// These bytes are on disks: a change of them is a change of the format and needs another magic.
    #[test]
    fn fixed_bytes() {
        let block = header().encode();
        assert_eq!(hex(&block[..128]), HEADER_HEX);
        assert_eq!(block.len(), BLOCK_BYTES);
        assert!(block[128..].iter().all(|byte| *byte == 0));
        assert_eq!(hex(&footer().encode()[..128]), FOOTER_HEX);
        assert_eq!(hex(&Slot { offset: 1, position: 0x2000 }.encode()), "0100000000200000");
    }
    const HEADER_HEX: &str = concat!(
        "524c533100000000080706050403020109000000000000000700000000000000",
        "020000000000000084030000000000000df0edfe00000000fdffffffffffffff",
        "000010000000000000401e18240a060000000000000000000000000000000000",
        "000000000000000000000000000000000000000000000000000000006bb646dd",
    );
    const FOOTER_HEX: &str = concat!(
        "524c463101efcdab080706050403020109000000000000000700000000000000",
        "020000000000000084030000000000000df0edfe00000000fdffffffffffffff",
        "00401e18240a0600050000000000000000a00000000000000100000000000000",
        "0000000000000000000000000000000000000000000000000000000098b11fe1",
    );

    /// What was encoded parses to the same.
    #[test]
    fn round_trip() {
        assert_eq!(SegmentHeader::parse(&header().encode()), Ok(header()));
        assert_eq!(SegmentFooter::parse(&footer().encode()), Ok(footer()));
        let slot = Slot { offset: 5, position: 8192 };
        assert_eq!(Slot::parse(&[Slot { offset: 0, position: 4096 }.encode(), slot.encode()].concat(), 1), slot);
    }

    /// Cut short, or with any bit flipped: refused.
    #[test]
    fn damage_is_refused() {
        for good in [header().encode(), footer().encode()] {
            let parses = |bytes: &[u8]| SegmentHeader::parse(bytes).is_ok() || SegmentFooter::parse(bytes).is_ok();
            assert!(parses(&good));
            for length in 0..128 {
                assert!(!parses(&good[..length]), "{length}");
            }
            for bit in 0..128 * 8 {
                let mut bad = good.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(!parses(&bad), "bit {bit}");
            }
        }
    }

    /// A whole block of another version says so.
    #[test]
    fn other_version_is_named() {
        let mut block = header().encode().to_vec();
        block[3] = b'2';
        assert_eq!(SegmentHeader::parse(&block), Err(BlockError::Crc));
        put_crc(&mut block);
        assert_eq!(SegmentHeader::parse(&block), Err(BlockError::Version('2')));
    }
}
