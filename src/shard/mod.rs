//! One shard on one node: its Raft group, the produce queue in front and the consumers behind. TO BE WRITTEN

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;

use crate::{
    env::Env,
    format::records::Records,
    ids::{NodeId, Offset, ShardUid, Term},
    log::{LogError, TailBudget},
};

/// Where and how a shard is kept.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Its identity.
    pub uid: ShardUid,
    /// This node.
    pub node: NodeId,
    /// Largest segment file.
    pub segment_bytes_max: u64,
    /// Retention, 0: none.
    pub retention_bytes_max: u64,
    /// Retention, 0: none.
    pub retention_age_ms_max: u64,
}

/// What an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Flushed on a majority of replicas: the default.
    QuorumFlushed,
    /// In the leader's memory only.
    LeaderMemory,
}

/// One produce request.
#[derive(Clone, Debug)]
pub struct Produce {
    /// Its records.
    pub records: Records,
    /// Wanted durability.
    pub durability: Durability,
    /// Conditional append.
    pub expected_offset: Option<Offset>,
    /// On `Env::monotonic_us`: refused before it is proposed if this has passed, or will have before an append can end.
    pub deadline_us: Option<u64>,
}

/// Its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Number of records.
    pub count: u32,
    /// Leader's clock, µs.
    pub timestamp_us: i64,
    /// What the ack means.
    pub durability: Durability,
}

/// Where a consume starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this record.
    Offset(Offset),
    /// At the first record with a timestamp not before this, µs.
    Timestamp(i64),
    /// At the log start.
    Earliest,
    /// At the high watermark.
    Latest,
}

/// One consume request.
#[derive(Clone, Copy, Debug)]
pub struct Consume {
    /// Where.
    pub start: Start,
    /// At most this many records.
    pub records_max: u64,
    /// At most this many bytes of records (at least one record is returned).
    pub bytes_max: usize,
    /// Wait that long for a first record.
    pub wait: Duration,
}

/// Its answer.
#[derive(Clone, Debug)]
pub struct Consumed {
    /// Encoded `records` fields (`repeated Record records = 1`), to be sent as they are.
    pub chunks: Vec<Bytes>,
    /// Number of records in them.
    pub count: u64,
    /// Where to go on.
    pub next_offset: Offset,
    /// First offset kept.
    pub log_start: Offset,
    /// First offset not committed.
    pub high_watermark: Offset,
}

/// State of a shard, for reports.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// Leader, if known.
    pub leader: Option<NodeId>,
    /// Present term.
    pub term: Term,
    /// First offset kept.
    pub log_start: Offset,
    /// First offset not committed.
    pub high_watermark: Offset,
    /// Next offset to be given.
    pub log_end: Offset,
    /// Bytes of segment files.
    pub size_bytes: u64,
    /// Number of segments.
    pub segments: u32,
    /// Why it does not serve.
    pub fault: Option<String>,
}

/// Why a shard refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShardError {
    /// Retry: the queue is full. Nothing was written.
    #[error("shard queue is full ({what}); retry after a moment")]
    Busy {
        /// Which bound was met.
        what: &'static str,
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
    /// Disk full: nothing was written, reads go on.
    #[error("{0}")]
    Full(LogError),
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

/// A shard. Clones are handles to the same one; all stay on its reactor.
pub struct Shard<E: Env> {
    _todo: std::rc::Rc<std::marker::PhantomData<E>>,
}

impl<E: Env> Clone for Shard<E> {
    fn clone(&self) -> Self {
        Shard { _todo: self._todo.clone() }
    }
}

impl<E: Env> Shard<E> {
    /// Opens or makes the shard and waits until it serves (with one voter: until it leads).
    pub async fn open(disk: E::Disk, tail: TailBudget, options: ShardOptions) -> Result<Shard<E>, ShardError> {
        let _ = (disk, tail, options);
        todo!()
    }

    /// Queues the request at once (calls made one after the other get ascending offsets); the future resolves with the ack.
    /// Dropping the future does not take the request back.
    pub fn produce(&self, produce: Produce) -> impl Future<Output = Result<Produced, ShardError>> + use<E> + 'static {
        let _ = produce;
        async { todo!() }
    }

    /// Committed records from a start on; waits for a first one as long as asked.
    pub fn consume(&self, consume: Consume) -> impl Future<Output = Result<Consumed, ShardError>> + use<E> + 'static {
        let _ = consume;
        async { todo!() }
    }

    /// Moves the log start up to `before`, committed through the log; answers with the present log start.
    pub async fn trim(&self, before: Offset) -> Result<Offset, ShardError> {
        let _ = before;
        todo!()
    }

    /// A snapshot of its numbers.
    pub fn status(&self) -> ShardStatus {
        todo!()
    }

    /// Refuses new requests, finishes those in flight, closes the log cleanly.
    pub async fn close(&self) -> Result<(), ShardError> {
        todo!()
    }
}
