//! Frames between nodes: a kind, a small envelope (FlatBuffers or protobuf), and parts that pass as the bytes they are.
//!
//! ```text
//! offset width
//!   0      1   kind
//!   1      1   zero
//!   2      2   number of parts, n
//!   4      4   bytes of the envelope
//!   8     4n   bytes of each part
//!              envelope, then the parts
//! ```
//! Integers are little-endian. Integrity is the connection's business (AEAD); what comes is still checked, each length
//! before anything is allocated for it, and bytes that are not a frame end the stream as `Lost`.
//!
//! Sending copies nothing but the header. Receiving copies each byte once: from the network's piece to its place.
//!
//! A frame waits while the reactor's budget has no room for it. What has come of entries and snapshots meanwhile is bounded
//! (`backlog`): a stream that finds no room there either is ended, and its leader comes again. So streams that wait never fill
//! the connection, on which votes and heartbeats come, and the memory behind its windows is bounded.

mod assemble;
mod backlog;

use std::{future::pending, pin::pin, rc::Rc, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::{Either, select};

use self::{
    assemble::{Assembler, FrameFault},
    backlog::Held,
};
use crate::{
    budget::{Budget, Charge},
    env::{
        Env,
        buffer::Buffer,
        net::{Connection, Net, Priority, ReceiveStream, SendStream},
    },
    ids::NodeId,
    limits,
    peer::{PeerError, liveness::Pulse, peer_error},
};

/// What a frame is. The numbers are on the wire between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Raft: opens a stream of append requests for one group, and each request on it.
    Append = 1,
    /// Raft: answer to `Append`.
    Appended = 2,
    /// Raft: vote, pre-vote, leadership transfer, read index, entries for a damaged replica, and their answers; the envelope
    /// says which.
    Raft = 3,
    /// Raft: a whole snapshot, as part 0.
    Snapshot = 4,
    /// Forwarded produce stream: each frame is a request of one shard, in order; and each ack.
    Produce = 5,
    /// Forwarded consume, and its answer.
    Consume = 6,
    /// A control request between nodes (catalog commands, status, join), protobuf in the envelope; and its answer.
    Control = 7,
    /// The request was not done; the envelope is a protobuf `ringlog.state.v1.PeerRefusal`.
    Refused = 8,
}

/// A frame to be sent.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Small.
    pub envelope: Bytes,
    /// Each passes as it is; at most `FRAME_PARTS_MAX`.
    pub parts: Vec<Bytes>,
}

impl FrameKind {
    fn from_number(number: u8) -> Option<FrameKind> {
        use FrameKind::{Append, Appended, Consume, Control, Produce, Raft, Refused, Snapshot};
        let kinds = [Append, Appended, Raft, Snapshot, Produce, Consume, Control, Refused];
        kinds.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Bytes before the lengths of the parts.
const HEADER_BYTES: usize = 8;

/// Most parts of one frame.
pub const FRAME_PARTS_MAX: usize = 4_096;

/// Largest envelope.
pub const ENVELOPE_BYTES_MAX: usize = 4 << 20;

/// Most bytes of all parts of one frame: an entry of the largest size fits.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(FRAME_PARTS_MAX <= u16::MAX as usize);
const _: () = assert!(limits::ENTRY_BYTES_MAX < FRAME_BYTES_MAX && ENVELOPE_BYTES_MAX < limits::MEMORY_CONSENSUS_BYTES);
const _: () =
    assert!(FRAME_BYTES_MAX + ENVELOPE_BYTES_MAX < limits::MEMORY_RESERVE_BYTES - limits::MEMORY_CONSENSUS_BYTES);

impl Frame {
    /// Header, envelope and parts as they go out.
    fn into_pieces(self) -> Result<Vec<Bytes>, String> {
        let bytes = self.parts.iter().map(Bytes::len).sum::<usize>();
        if self.parts.len() > FRAME_PARTS_MAX || bytes > FRAME_BYTES_MAX || self.envelope.len() > ENVELOPE_BYTES_MAX {
            let (parts, envelope) = (self.parts.len(), self.envelope.len());
            return Err(format!("a frame of {parts} parts, {bytes} bytes and an envelope of {envelope} is too large"));
        }
        let mut header = BytesMut::with_capacity(HEADER_BYTES + 4 * self.parts.len());
        header.put_u8(self.kind as u8);
        header.put_u8(0);
        header.put_u16_le(self.parts.len() as u16);
        header.put_u32_le(self.envelope.len() as u32);
        for part in &self.parts {
            header.put_u32_le(part.len() as u32);
        }
        let pieces = [header.freeze(), self.envelope].into_iter().chain(self.parts);
        Ok(pieces.filter(|piece| !piece.is_empty()).collect())
    }
}

/// A frame that was received: its parts are in aligned buffers of their own, so that an entry can go to the disk as it came.
#[derive(Debug)]
pub struct Received {
    /// What it is.
    pub kind: FrameKind,
    /// Small.
    pub envelope: Bytes,
    /// Aligned.
    pub parts: Vec<Buffer>,
    /// Memory of all that.
    pub charge: Charge,
}

/// Both halves of a stream.
pub struct FrameStream<E: Env> {
    /// To the peer.
    pub sender: FrameSender<E>,
    /// From the peer.
    pub receiver: FrameReceiver<E>,
}

/// What the streams of one reactor have in common, or of one connection.
#[derive(Clone)]
pub(super) struct Shared {
    /// Who is there.
    pub(super) peer: NodeId,
    /// Beats with every frame.
    pub(super) pulse: Arc<Pulse>,
    /// Memory of the reactor.
    pub(super) budget: Budget,
}

impl<E: Env> FrameStream<E> {
    /// Frames on a stream. `permit` is dropped with the later half.
    pub(super) fn new(
        (send, receive): (SendHalf<E>, ReceiveHalf<E>),
        shared: &Shared,
        permit: Option<Rc<Permit>>,
    ) -> FrameStream<E> {
        let sender = FrameSender { stream: send, peer: shared.peer, _permit: permit.clone() };
        // Who has opened a stream asks; the other one answers.
        let assembler = Assembler::new(shared.budget.clone(), permit.is_some());
        let (peer, pulse) = (shared.peer, Arc::clone(&shared.pulse));
        let receiver = FrameReceiver {
            stream: receive,
            peer,
            pulse,
            assembler,
            held: Held::new(shared.budget.clone()),
            piece: Bytes::new(),
            fault: None,
            is_turned_away: false,
            _permit: permit,
        };
        FrameStream { sender, receiver }
    }
}

type SendHalf<E> = <<<E as Env>::Net as Net>::Connection as Connection>::Send;
type ReceiveHalf<E> = <<<E as Env>::Net as Net>::Connection as Connection>::Receive;

/// A place among the streams that a peer may have open; given back when dropped.
pub(super) struct Permit {
    pub(super) give_back: Box<dyn Fn()>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.give_back)();
    }
}

/// The sending half.
pub struct FrameSender<E: Env> {
    stream: SendHalf<E>,
    peer: NodeId,
    _permit: Option<Rc<Permit>>,
}

impl<E: Env> FrameSender<E> {
    /// To whom.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// How urgent this stream's frames are, from now on.
    pub fn set_priority(&self, priority: Priority) {
        self.stream.set_priority(priority);
    }

    /// Sends a frame; waits for the peer's window. Cancelled, the stream cannot be used any more.
    ///
    /// # Errors
    /// `Lost`; `Unreachable` for a frame above the bounds of this file: nothing was sent, and the stream goes on.
    pub async fn send(&mut self, frame: Frame) -> Result<(), PeerError> {
        let node = self.peer;
        let pieces = frame.into_pieces().map_err(|cause| PeerError::Unreachable { node, cause })?;
        self.stream.send(pieces).await.map_err(|error| peer_error(node, &error, true))
    }

    /// No more frames will come.
    pub fn finish(&mut self) {
        self.stream.finish();
    }
}

/// The receiving half.
pub struct FrameReceiver<E: Env> {
    stream: ReceiveHalf<E>,
    peer: NodeId,
    pulse: Arc<Pulse>,
    assembler: Assembler,
    /// Came before `piece`, while there was no room.
    held: Held,
    /// Came, and belongs to later frames.
    piece: Bytes,
    /// What has come was not a frame, or found no room: nothing more can be made of this stream.
    fault: Option<String>,
    is_turned_away: bool,
    _permit: Option<Rc<Permit>>,
}

impl<E: Env> FrameReceiver<E> {
    /// From whom.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The next frame; `None` when the peer has finished. Waits until there is memory for a frame that has begun (`gather`).
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// `Lost`, also for bytes that are not a frame, and for a stream that is turned away.
    pub async fn receive(&mut self) -> Result<Option<Received>, PeerError> {
        let node = self.peer;
        loop {
            if let Some(cause) = self.fault.clone() {
                return Err(PeerError::Lost { node, cause });
            }
            match self.push() {
                Ok(Some(frame)) => {
                    self.pulse.beat();
                    return Ok(Some(frame));
                }
                Ok(None) => {}
                Err(FrameFault::NoRoom) => {
                    // Nothing was given back since the look.
                    let freed = self.assembler.budget().freed();
                    if !self.assembler.is_replication() {
                        // Answers, votes and what clients wait for are not turned away. Who has sent it has it in its budget.
                        freed.await;
                    } else if let Either::Right((error, _)) = select(freed, pin!(self.gather())).await {
                        return Err(error);
                    }
                    continue;
                }
                Err(fault) => {
                    tracing::warn!(%node, %fault, "a stream of a peer does not hold frames");
                    self.fault = Some(fault.to_string());
                    continue;
                }
            }
            match self.stream.receive().await.map_err(|error| peer_error(node, &error, true))? {
                Some(piece) => self.piece = piece,
                None if self.assembler.is_between_frames() => return Ok(None),
                None => self.fault = Some("the stream was ended within a frame".to_owned()),
            }
        }
    }

    /// For whoever does not take the next frame yet, beside what it waits for: reads a little of what comes meanwhile, so that
    /// it is counted, and turns the stream away when there is no room for it. Comes to an end only then, and when the stream is
    /// lost. Dropping the future loses nothing.
    pub async fn gather(&mut self) -> PeerError {
        let node = self.peer;
        loop {
            if let Some(cause) = self.fault.clone() {
                return PeerError::Lost { node, cause };
            }
            if !self.piece.is_empty() {
                if self.held.add(&self.piece).is_err() {
                    self.turn_away();
                    continue;
                }
                // It may have been a part of something larger, such as all that came in one read of the socket.
                self.piece = Bytes::new();
            }
            if self.held.is_full() {
                return pending().await;
            }
            match self.stream.receive().await {
                Ok(Some(piece)) => self.piece = piece,
                // What has come is still to be taken.
                Ok(None) => return pending().await,
                Err(error) => return peer_error(node, &error, true),
            }
        }
    }

    /// Whether the stream was ended here because too much waits for room. The peer should try again after a pause.
    pub fn is_turned_away(&self) -> bool {
        self.is_turned_away
    }

    fn turn_away(&mut self) {
        self.is_turned_away = true;
        self.fault = Some("too much of what peers have sent waits for memory".to_owned());
        (self.held, self.piece) = (Held::new(self.assembler.budget().clone()), Bytes::new());
    }

    /// A frame of what has come.
    fn push(&mut self) -> Result<Option<Received>, FrameFault> {
        if self.held.is_empty() {
            return self.assembler.push(&mut self.piece);
        }
        assert!(self.piece.is_empty(), "what comes while something is held is held, too");
        let mut rest = self.held.bytes();
        let before = rest.len();
        let pushed = self.assembler.push(&mut rest);
        let taken = before - rest.len();
        self.held.take(taken);
        pushed
    }
}

#[cfg(test)]
pub(crate) mod tests;
