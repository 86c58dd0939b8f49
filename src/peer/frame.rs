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
//! Integers are little-endian. Integrity is the connection's business (AEAD).

use bytes::Bytes;

use crate::{
    env::{
        Env,
        buffer::Buffer,
        net::{Connection, Net},
    },
    ids::NodeId,
    peer::PeerError,
};

/// What a frame is. The numbers are on the wire between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Raft: opens a stream of append requests for one group, and each request on it.
    Append = 1,
    /// Raft: answer to `Append`.
    Appended = 2,
    /// Raft: vote, pre-vote, leadership transfer, read index, and their answers; the envelope says which.
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

/// Most parts of one frame.
pub const FRAME_PARTS_MAX: usize = 4_096;

/// Largest envelope.
pub const ENVELOPE_BYTES_MAX: usize = 4 << 20;

/// Most bytes of all parts of one frame: an entry of the largest size fits.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// A frame that was received: its parts are in aligned buffers of their own, so that an entry can go to the disk as it came.
#[derive(Debug)]
pub struct Received {
    /// What it is.
    pub kind: FrameKind,
    /// Small.
    pub envelope: Bytes,
    /// Aligned.
    pub parts: Vec<Buffer>,
}

/// Both halves of a stream.
pub struct FrameStream<E: Env> {
    /// To the peer.
    pub sender: FrameSender<E>,
    /// From the peer.
    pub receiver: FrameReceiver<E>,
}

/// The sending half.
pub struct FrameSender<E: Env> {
    _stream: <<E::Net as Net>::Connection as Connection>::Send,
    peer: NodeId,
}

impl<E: Env> FrameSender<E> {
    /// To whom.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Sends a frame; waits for the peer's window. Cancelled, the stream cannot be used any more.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn send(&mut self, frame: Frame) -> Result<(), PeerError> {
        let _ = frame;
        todo!()
    }

    /// No more frames will come.
    pub fn finish(&mut self) {
        todo!()
    }
}

/// The receiving half.
pub struct FrameReceiver<E: Env> {
    _stream: <<E::Net as Net>::Connection as Connection>::Receive,
    peer: NodeId,
}

impl<E: Env> FrameReceiver<E> {
    /// From whom.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The next frame; `None` when the peer has finished. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `Lost`, also for bytes that are not a frame.
    pub async fn receive(&mut self) -> Result<Option<Received>, PeerError> {
        todo!()
    }
}
