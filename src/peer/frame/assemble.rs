//! Frames out of pieces as the network gives them, however they are cut. Pure: it touches no network.

use std::ops::Deref;

use bytes::{Buf, Bytes};

use super::{ENVELOPE_BYTES_MAX, FRAME_BYTES_MAX, FRAME_PARTS_MAX, FrameKind, HEADER_BYTES, Received};
use crate::{
    budget::{Budget, Charge, Class, Use},
    env::buffer::Buffer,
    limits::BLOCK_BYTES,
};

/// Bookkeeping of one part beside its bytes: its length as it came and as a number, and its buffer's place.
const PART_OVERHEAD_BYTES: usize = 64;

/// Bytes as they come, whoever has them.
pub(super) trait Piece: Buf + Deref<Target = [u8]> {}

impl<P: Buf + Deref<Target = [u8]>> Piece for P {}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameFault {
    #[error("{0} is no kind of frame that this version knows")]
    Kind(u8),
    #[error("the header's second byte is {0}, which this version does not know")]
    Reserved(u8),
    #[error("a frame of {0} parts is too large, the limit is {FRAME_PARTS_MAX}")]
    Parts(usize),
    #[error("an envelope of {0} bytes is too large, the limit is {ENVELOPE_BYTES_MAX}")]
    Envelope(usize),
    #[error("the parts of a frame have {0} bytes, the limit is {FRAME_BYTES_MAX}")]
    Bytes(u64),
    #[error("a frame of {0} bytes of memory can never have room here")]
    Memory(usize),
    /// Not for good: the same piece goes on when memory was given back.
    #[error("there is no memory for the frame now")]
    NoRoom,
}

/// The frame in the making.
///
/// Invariants: `parts.len() <= lengths.len() <= count <= FRAME_PARTS_MAX`; all parts but the last are complete;
/// `envelope.len() <= envelope_bytes <= ENVELOPE_BYTES_MAX`; the lengths sum up to at most `FRAME_BYTES_MAX`; in stage
/// `Content` all that they announce is charged.
pub(super) struct Assembler {
    stage: Stage,
    /// Header and lengths as they come.
    head: Vec<u8>,
    kind: FrameKind,
    envelope_bytes: usize,
    envelope: Vec<u8>,
    /// Parts of the frame.
    count: usize,
    lengths: Vec<usize>,
    parts: Vec<Buffer>,
    /// Of this frame.
    charge: Charge,
    budget: Budget,
    /// The frames are requests of a peer, no answers.
    asks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Lengths,
    Content,
}

impl Assembler {
    /// Between frames. `asks`: they are requests of a peer, no answers.
    pub(super) fn new(budget: Budget, asks: bool) -> Assembler {
        Assembler {
            stage: Stage::Header,
            head: Vec::new(),
            kind: FrameKind::Append,
            envelope_bytes: 0,
            envelope: Vec::new(),
            count: 0,
            lengths: Vec::new(),
            parts: Vec::new(),
            charge: budget.none(Use::Frames),
            budget,
            asks,
        }
    }

    /// Where its memory comes from.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether the last frame is complete and nothing of the next has come.
    pub(super) fn is_between_frames(&self) -> bool {
        self.stage == Stage::Header && self.head.is_empty()
    }

    /// Takes what it needs from the front of `piece`; a frame when one is complete, `None` when `piece` is used up.
    ///
    /// # Errors
    /// `NoRoom`: to be called again, with what is left of the piece, when memory was given back. After all others nothing
    /// more can be made of the stream.
    pub(super) fn push(&mut self, piece: &mut impl Piece) -> Result<Option<Received>, FrameFault> {
        if self.stage == Stage::Header && self.fill_head(HEADER_BYTES, piece) {
            self.read_header()?;
        }
        if self.stage == Stage::Lengths && self.fill_head(HEADER_BYTES + 4 * self.count, piece) {
            self.read_lengths()?;
        }
        if self.stage == Stage::Content && self.fill_envelope(piece) && self.fill_parts(piece) {
            return Ok(Some(self.complete()));
        }
        Ok(None)
    }

    fn fill_head(&mut self, bytes: usize, piece: &mut impl Piece) -> bool {
        let taken = piece.len().min(bytes - self.head.len());
        self.head.extend_from_slice(&piece[..taken]);
        piece.advance(taken);
        self.head.len() == bytes
    }

    fn read_header(&mut self) -> Result<(), FrameFault> {
        let [kind, reserved, count_low, count_high, a, b, c, d] =
            self.head[..].try_into().expect("the header is complete");
        self.kind = FrameKind::from_number(kind).ok_or(FrameFault::Kind(kind))?;
        if reserved != 0 {
            return Err(FrameFault::Reserved(reserved));
        }
        let count = usize::from(u16::from_le_bytes([count_low, count_high]));
        if count > FRAME_PARTS_MAX {
            return Err(FrameFault::Parts(count));
        }
        let envelope_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        if envelope_bytes > ENVELOPE_BYTES_MAX {
            return Err(FrameFault::Envelope(envelope_bytes));
        }
        self.envelope_bytes = envelope_bytes;
        self.count = count;
        self.stage = Stage::Lengths;
        Ok(())
    }

    fn read_lengths(&mut self) -> Result<(), FrameFault> {
        let lengths = self.head[HEADER_BYTES..].chunks_exact(4);
        self.lengths = lengths.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
        let bytes = self.lengths.iter().map(|length| *length as u64).sum::<u64>();
        if bytes > FRAME_BYTES_MAX as u64 {
            return Err(FrameFault::Bytes(bytes));
        }
        let padded = self.lengths.iter().map(|length| length.next_multiple_of(BLOCK_BYTES)).sum::<usize>();
        self.charge_for(self.envelope_bytes + padded + self.count * PART_OVERHEAD_BYTES)?;
        // As much as has been promised, checked and charged; parts get their buffers one by one, as they come.
        self.envelope = Vec::with_capacity(self.envelope_bytes);
        self.parts = Vec::with_capacity(self.lengths.len());
        self.stage = Stage::Content;
        Ok(())
    }

    /// Takes all that the frame will need, before there is a place for any of it. What a peer asks for on behalf of a client
    /// must not take what replication needs, nor replication what votes do; and it must not wait for clients of this node, which
    /// may wait for that peer. Answers free what was charged for the question: they never wait behind questions.
    fn charge_for(&mut self, bytes: usize) -> Result<(), FrameFault> {
        let class = self.class();
        if bytes > self.budget.limit(class) {
            return Err(FrameFault::Memory(bytes));
        }
        self.charge.grow(class, bytes).map_err(|_| FrameFault::NoRoom)
    }

    fn class(&self) -> Class {
        match self.kind {
            FrameKind::Produce if !self.asks => Class::Consensus,
            FrameKind::Produce | FrameKind::Consume => Class::PassedOn,
            FrameKind::Append | FrameKind::Snapshot => Class::Replication,
            FrameKind::Appended | FrameKind::Raft | FrameKind::Control | FrameKind::Refused => Class::Consensus,
        }
    }

    /// Whether the frame that has begun holds entries, or a snapshot, that its leader sends again if it is not taken.
    pub(super) fn is_replication(&self) -> bool {
        self.asks && self.class() == Class::Replication
    }

    fn fill_envelope(&mut self, piece: &mut impl Piece) -> bool {
        let taken = piece.len().min(self.envelope_bytes - self.envelope.len());
        self.envelope.extend_from_slice(&piece[..taken]);
        piece.advance(taken);
        self.envelope.len() == self.envelope_bytes
    }

    fn fill_parts(&mut self, piece: &mut impl Piece) -> bool {
        loop {
            let begun = self.parts.len();
            if let Some(part) = self.parts.last_mut() {
                let length = self.lengths[begun - 1];
                let taken = piece.len().min(length - part.len());
                part.extend(&piece[..taken]);
                piece.advance(taken);
                if part.len() < length {
                    return false;
                }
            }
            let Some(next) = self.lengths.get(begun) else { return true };
            self.parts.push(Buffer::with_capacity(*next));
        }
    }

    fn complete(&mut self) -> Received {
        assert_eq!(self.parts.len(), self.lengths.len(), "each part has come");
        let received = Received {
            kind: self.kind,
            envelope: Bytes::from(std::mem::take(&mut self.envelope)),
            parts: std::mem::take(&mut self.parts),
            charge: std::mem::replace(&mut self.charge, self.budget.none(Use::Frames)),
        };
        self.head.clear();
        self.lengths.clear();
        self.stage = Stage::Header;
        received
    }
}
