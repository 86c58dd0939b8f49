//! Why a shard refuses: by what the caller can do about it.

use std::time::Duration;

use crate::{
    ids::{NodeId, Offset},
    log::LogError,
    proto::ringlog::state::v1::PeerRefusal,
    raft::{GroupError, TransferError},
};

/// Why a shard refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShardError {
    /// Retry: the queue is full. Nothing was written.
    #[error("shard queue is full ({what}); retry after a moment")]
    Busy {
        /// Which bound was met.
        what: &'static str,
    },
    /// Retry: the reactor's memory for requests is used up. Nothing was written.
    #[error("this node has no memory for more requests (memory_bytes); retry after a moment")]
    NoMemory,
    /// Retry: the leader's disk does not keep up. Nothing was written.
    #[error(
        "the disk of node {node} does not keep up: {unflushed_bytes} bytes of this shard are not flushed there; retry \
         after a moment"
    )]
    DiskBehind {
        /// Whose disk.
        node: NodeId,
        /// Bytes of the shard that wait for it.
        unflushed_bytes: usize,
    },
    /// Retry elsewhere: not the leader. Nothing was written.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// Refused before it was proposed. Nothing was written.
    #[error("the deadline would pass before the batch could be durable; nothing was written")]
    Deadline,
    /// Conditional append found another offset. Nothing was written.
    #[error("expected offset {expected}, but the batch would get {actual}; nothing was written")]
    OffsetMismatch {
        /// In the request.
        expected: Offset,
        /// Next offset of the shard.
        actual: Offset,
    },
    /// Offset outside of what is kept and committed.
    #[error("offset {offset} is out of range: the shard holds {log_start} to {high_watermark}, exclusive")]
    OutOfRange {
        /// Asked for.
        offset: Offset,
        /// First kept.
        log_start: Offset,
        /// First not committed.
        high_watermark: Offset,
    },
    /// Another replica was to lead, and does not.
    #[error(transparent)]
    NotTransferred(#[from] TransferError),
    /// The leader changed while the record was on its way: it may still appear.
    #[error("the shard's leader changed, or lost its majority, before the record was committed: it may still appear")]
    Deposed {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// No leader of the shard was found in time. Nothing was written.
    #[error("no leader of the shard was found within {} ms; nothing was written", waited.as_millis())]
    NoLeader {
        /// How long it was looked for.
        waited: Duration,
        /// Until the caller's deadline; else until the server's own bound.
        deadline: bool,
    },
    /// The node that led the shard is gone, or was cut off, and had the request: its records may still appear, its trim be done.
    #[error(
        "the node that led the shard was lost while the request was on its way to it: it may still be carried out ({cause})"
    )]
    Lost {
        /// What happened.
        cause: String,
    },
    /// Retry: this replica does not have yet what the consumer has to see.
    #[error(
        "records below offset {min_offset} are wanted, but only those below {high_watermark} are committed here by now"
    )]
    Behind {
        /// In the request.
        min_offset: Offset,
        /// First not committed here.
        high_watermark: Offset,
    },
    /// Another node's answer.
    #[error("{}", .0.message)]
    Elsewhere(Box<PeerRefusal>),
    /// Disk full: nothing was written, reads go on.
    #[error("{0}")]
    Full(LogError),
    /// Retry: this replica was not opened, as there was no descriptor or no memory. Nothing was written.
    #[error("{cause}; it is opened when there are descriptors and memory again")]
    Starved {
        /// What could not be done.
        cause: String,
    },
    /// Stop: a read found committed records damaged. They are not served, what is whole is, and this replica takes no
    /// more. Nothing was written.
    #[error("{cause}")]
    Damaged {
        /// Where, and what was found.
        cause: String,
    },
    /// Stop: this replica cannot be trusted. `maybe_written`: the record may still appear.
    #[error("{cause}")]
    Failed {
        /// What happened.
        cause: String,
        /// The batch had been proposed: it may or may not be in the log.
        maybe_written: bool,
    },
    /// The shard is closing (node shutdown, topic deleted).
    #[error("the shard is closing")]
    Closing {
        /// The batch had been proposed: it may or may not be in the log.
        maybe_written: bool,
    },
}

impl ShardError {
    /// Whether what was asked for may have been done, or may still be. Whoever asks on after such an answer is not certain of anything
    /// any more, whatever the next answer is.
    pub fn maybe_written(&self) -> bool {
        match self {
            ShardError::Deposed { leader: _ } | ShardError::Lost { cause: _ } => true,
            ShardError::Failed { cause: _, maybe_written } | ShardError::Closing { maybe_written } => *maybe_written,
            ShardError::Elsewhere(refusal) => !refusal.definite,
            ShardError::Busy { what: _ }
            | ShardError::NoMemory
            | ShardError::DiskBehind { node: _, unflushed_bytes: _ }
            | ShardError::NotLeader { leader: _ }
            | ShardError::Deadline
            | ShardError::OffsetMismatch { expected: _, actual: _ }
            | ShardError::OutOfRange { offset: _, log_start: _, high_watermark: _ }
            | ShardError::NotTransferred(_)
            | ShardError::NoLeader { waited: _, deadline: _ }
            | ShardError::Behind { min_offset: _, high_watermark: _ }
            | ShardError::Full(_)
            | ShardError::Starved { cause: _ }
            | ShardError::Damaged { cause: _ } => false,
        }
    }
}

impl From<GroupError> for ShardError {
    fn from(error: GroupError) -> ShardError {
        match error {
            GroupError::NotLeader { leader } => ShardError::NotLeader { leader },
            GroupError::Deposed { leader } => ShardError::Deposed { leader },
            GroupError::Full(error) => ShardError::Full(error),
            GroupError::Damaged(error) => ShardError::Damaged { cause: error.to_string() },
            GroupError::Starved { cause } => ShardError::Starved { cause },
            GroupError::Stopped { cause, maybe_written } => ShardError::Failed { cause, maybe_written },
        }
    }
}

impl From<LogError> for ShardError {
    /// A failed read: nothing was to be written.
    fn from(error: LogError) -> ShardError {
        let cause = error.to_string();
        match error {
            LogError::Corrupt { .. } | LogError::Diverged { .. } => ShardError::Damaged { cause },
            LogError::NotFound { .. }
            | LogError::Full { .. }
            | LogError::Stopped { .. }
            | LogError::Foreign { .. }
            | LogError::Io { .. } => ShardError::Failed { cause, maybe_written: false },
        }
    }
}
