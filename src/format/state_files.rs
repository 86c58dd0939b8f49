//! What a shard keeps beside its segments: the two slots of `hard_state`, and checkpoint files.
//!
//! ```text
//! hard_state: two blocks of 4,096, written one by one      checkpoint file
//! offset width                                             offset width
//!   0      4   magic "RLH1"                                  0      4   magic "RLC1"
//!   4      4   flags: 1 has vote, 2 vote is committed,       4      4   zero
//!              4 has committed, 16 has flushed               8      8   shard uid
//!   8      8   shard uid                                    16      8   index
//!  16      8   sequence: the larger one counts              24      8   content bytes
//!  24      8   vote: term                                   32      4   CRC-32C of the content
//!  32      8   vote: node                                   36     88   zero
//!  40      8   committed: term                             124      4   CRC-32C of bytes 0..124
//!  48      8   committed: index                            128          content
//!  56     40   log start: a `LogPoint`, as in segments
//!  96      8   owner: `owner_tag`, or 0
//! 104      8   flushed: term
//! 112      8   flushed: index
//! 120      4   zero
//! 124      4   CRC-32C of bytes 0..124
//! 128          zeros
//! ```
//! Integers are little-endian. Each write of the hard state fills both slots, one after the other: what was acknowledged is in
//! both, and damage to one of them loses nothing. A write that only says more to be flushed fills one: the other has the same
//! vote. (What wrote slots before there was `flushed` does not look at it, and writes none.)

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::segment::{BlockError, LogPoint, check_block, number, point, put, put_crc, put_point, take};
use crate::{
    env::buffer::Buffer,
    ids::{Index, LogId, NodeId, ShardUid, Term},
    limits::BLOCK_BYTES,
};

/// First bytes of a hard state slot; the last of them is the version.
pub const HARD_STATE_MAGIC: [u8; 4] = *b"RLH1";

/// First bytes of a checkpoint file.
pub const CHECKPOINT_MAGIC: [u8; 4] = *b"RLC1";

/// Bytes in front of a checkpoint's content.
pub const CHECKPOINT_HEADER_BYTES: usize = 128;

/// Raft's vote as it is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Term voted in.
    pub term: Term,
    /// Node voted for.
    pub node: NodeId,
    /// Whether a quorum granted it (openraft's "committed" vote: that node is the leader).
    pub committed: bool,
}

/// Raft's state beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest vote.
    pub vote: Option<Vote>,
    /// A committed log id; may lag, never runs ahead of what is durable here.
    pub committed: Option<LogId>,
}

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardStateSlot {
    /// Whose it is.
    pub shard: ShardUid,
    /// The slot with the larger one counts.
    pub sequence: u64,
    /// Raft's.
    pub state: HardState,
    /// Where the log begins: after the last purged entry; `LogPoint::default()` when none was purged.
    pub start: LogPoint,
    /// The data directory that it was made in (`owner_tag`); 0: none.
    pub owner: u64,
    /// An entry that was durable here when this was written, with all before it: one that is missing up to there was no torn
    /// write. May lag.
    pub flushed: Option<LogId>,
}

/// Tells one node's files from those of another node or cluster, and from its own of an earlier life: XXH3-64 of the cluster
/// id's 32 characters, the node id and the incarnation (little-endian). Never 0, which means that nobody is known.
pub fn owner_tag(cluster_id: &str, node: NodeId, incarnation: u64) -> u64 {
    let content = [cluster_id.as_bytes(), &node.0.to_le_bytes(), &incarnation.to_le_bytes()].concat();
    XxHash3_64::oneshot(&content).max(1)
}

const HAS_VOTE: u32 = 1;
const VOTE_IS_COMMITTED: u32 = 2;
const HAS_COMMITTED: u32 = 4;
const HAS_FLUSHED: u32 = 16;

impl HardStateSlot {
    /// The block.
    pub fn encode(&self) -> Bytes {
        let mut block = Buffer::zeroed(BLOCK_BYTES);
        let out = block.bytes_mut();
        let mut flags = 0;
        if let Some(vote) = self.state.vote {
            flags |= HAS_VOTE | if vote.committed { VOTE_IS_COMMITTED } else { 0 };
            put(out, 24, vote.term.0.to_le_bytes());
            put(out, 32, vote.node.0.to_le_bytes());
        }
        if let Some(committed) = self.state.committed {
            flags |= HAS_COMMITTED;
            put(out, 40, committed.term.0.to_le_bytes());
            put(out, 48, committed.index.0.to_le_bytes());
        }
        if let Some(flushed) = self.flushed {
            flags |= HAS_FLUSHED;
            put(out, 104, flushed.term.0.to_le_bytes());
            put(out, 112, flushed.index.0.to_le_bytes());
        }
        put(out, 0, HARD_STATE_MAGIC);
        put(out, 4, flags.to_le_bytes());
        put(out, 8, self.shard.0.to_le_bytes());
        put(out, 16, self.sequence.to_le_bytes());
        put_point(out, 56, &self.start);
        put(out, 96, self.owner.to_le_bytes());
        put_crc(out);
        block.freeze_padded()
    }

    /// The last entry that was durable for certain.
    pub fn durable(&self) -> Option<LogId> {
        self.state.committed.max(self.flushed)
    }

    /// The whole file with this in both slots, as the two writes after `sequence` would leave it.
    pub fn encode_both(&self) -> Bytes {
        let slot = |ahead| HardStateSlot { sequence: self.sequence + ahead, ..*self }.encode();
        let mut slots = [slot(1), slot(2)];
        if self.sequence.is_multiple_of(2) {
            slots.reverse();
        }
        slots.concat().into()
    }

    /// Reads it.
    ///
    /// # Errors
    /// `BlockError`.
    pub fn parse(block: &[u8]) -> Result<HardStateSlot, BlockError> {
        check_block(block, HARD_STATE_MAGIC)?;
        let flags = u32::from_le_bytes(take(block, 4));
        let vote = (flags & HAS_VOTE != 0).then(|| Vote {
            term: Term(number(block, 24)),
            node: NodeId(number(block, 32)),
            committed: flags & VOTE_IS_COMMITTED != 0,
        });
        let committed = (flags & HAS_COMMITTED != 0)
            .then(|| LogId { term: Term(number(block, 40)), index: Index(number(block, 48)) });
        let flushed = (flags & HAS_FLUSHED != 0)
            .then(|| LogId { term: Term(number(block, 104)), index: Index(number(block, 112)) });
        Ok(HardStateSlot {
            shard: ShardUid(number(block, 8)),
            sequence: number(block, 16),
            state: HardState { vote, committed },
            start: point(block, 56),
            owner: number(block, 96),
            flushed,
        })
    }
}

/// A checkpoint file's bytes.
pub fn encode_checkpoint(shard: ShardUid, index: Index, content: &[u8]) -> Bytes {
    let mut out = vec![0; CHECKPOINT_HEADER_BYTES];
    put(&mut out, 0, CHECKPOINT_MAGIC);
    put(&mut out, 8, shard.0.to_le_bytes());
    put(&mut out, 16, index.0.to_le_bytes());
    put(&mut out, 24, (content.len() as u64).to_le_bytes());
    put(&mut out, 32, crc32c::crc32c(content).to_le_bytes());
    put_crc(&mut out);
    out.extend_from_slice(content);
    out.into()
}

/// A checkpoint file's owner, index and content; shares the memory.
///
/// # Errors
/// `BlockError`.
pub fn parse_checkpoint(file: &Bytes) -> Result<(ShardUid, Index, Bytes), BlockError> {
    check_block(file, CHECKPOINT_MAGIC)?;
    let content = file.slice(CHECKPOINT_HEADER_BYTES..);
    if content.len() as u64 != number(file, 24) {
        return Err(BlockError::Short);
    }
    if crc32c::crc32c(&content) != u32::from_le_bytes(take(file, 32)) {
        return Err(BlockError::Crc);
    }
    Ok((ShardUid(number(file, 8)), Index(number(file, 16)), content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Offset;

    fn slot() -> HardStateSlot {
        HardStateSlot {
            shard: ShardUid(0x0102_0304_0506_0708),
            sequence: 9,
            state: HardState {
                vote: Some(Vote { term: Term(4), node: NodeId(3), committed: true }),
                committed: Some(LogId { term: Term(2), index: Index(17) }),
            },
            start: LogPoint {
                next: Index(7),
                term: Term(2),
                offset: Offset(900),
                chain: 0xfeed_f00d,
                timestamp_max_us: -3,
            },
            owner: 0x1122_3344_5566_7788,
            flushed: None,
        }
    }

    fn flushed_slot() -> HardStateSlot {
        HardStateSlot { flushed: Some(LogId { term: Term(5), index: Index(0x1122) }), ..slot() }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// These bytes are on disks: a change of them is a change of the format and needs another magic.
    #[test]
    fn fixed_bytes() {
        assert_eq!(hex(&slot().encode()[..128]), SLOT_HEX);
        // Only where something is flushed are there more: the flag, the entry, and the sum.
        let flushed = hex(&flushed_slot().encode()[..124]);
        let expected = SLOT_HEX[..248].replacen("524c483107", "524c483117", 1);
        let expected = format!("{}{}{}", &expected[..208], "05000000000000002211000000000000", &expected[240..]);
        assert_eq!(flushed, expected);
        assert_eq!(hex(&encode_checkpoint(ShardUid(1), Index(2), b"state")), CHECKPOINT_HEX);
    }
    const SLOT_HEX: &str = concat!(
        "524c483107000000080706050403020109000000000000000400000000000000",
        "0300000000000000020000000000000011000000000000000700000000000000",
        "020000000000000084030000000000000df0edfe00000000fdffffffffffffff",
        "887766554433221100000000000000000000000000000000000000006ce5b74f",
    );
    const CHECKPOINT_HEX: &str = concat!(
        "524c433100000000010000000000000002000000000000000500000000000000",
        "df68db6600000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "00000000000000000000000000000000000000000000000000000000ba991aa6",
        "7374617465",
    );

    /// What was encoded parses to the same, with and without the optional parts.
    #[test]
    fn round_trip() {
        let empty = HardStateSlot { state: HardState::default(), start: LogPoint::default(), ..slot() };
        for slot in [slot(), empty, flushed_slot()] {
            assert_eq!(HardStateSlot::parse(&slot.encode()), Ok(slot));
        }
        let file = encode_checkpoint(ShardUid(1), Index(2), b"state");
        assert_eq!(parse_checkpoint(&file), Ok((ShardUid(1), Index(2), Bytes::from_static(b"state"))));
    }

    /// On disks, too: who calculates it otherwise finds all directories foreign.
    #[test]
    fn owner_tags() {
        let cluster = "00112233445566778899aabbccddeeff";
        let tag = owner_tag(cluster, NodeId(3), 4);
        assert_eq!(tag, 7_707_652_414_606_804_830);
        let others = [("10112233445566778899aabbccddeeff", 3, 4), (cluster, 4, 4), (cluster, 3, 5)];
        for (cluster, node, incarnation) in others {
            assert_ne!(owner_tag(cluster, NodeId(node), incarnation), tag);
        }
    }

    /// Cut short, or with any bit flipped: refused.
    #[test]
    fn damage_is_refused() {
        let file = encode_checkpoint(ShardUid(1), Index(2), b"state");
        let block = slot().encode();
        for length in 0..file.len() {
            assert!(parse_checkpoint(&file.slice(..length)).is_err(), "{length}");
        }
        let flip = |bytes: &Bytes, bit: usize| {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            Bytes::from(bad)
        };
        for bit in 0..file.len() * 8 {
            assert!(parse_checkpoint(&flip(&file, bit)).is_err(), "bit {bit}");
        }
        for bit in 0..128 * 8 {
            assert!(HardStateSlot::parse(&flip(&block, bit)).is_err(), "bit {bit}");
        }
    }
}
