//! What is asked of a shard, and what it answers.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    format::records::Records,
    ids::{Index, NodeId, Offset, Term},
    raft::{Members, Progress},
};

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
    /// It came from another node. When this replica cannot propose it, that node is told, and sends it again in order.
    pub forwarded: bool,
    /// A client's single call, which did not have to find room first as those of streams have (`frontend::room`).
    pub single: bool,
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
    /// Who leads the shard, if it is another node, to which the request was forwarded.
    pub leader: Option<NodeId>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consume {
    /// Where.
    pub start: Start,
    /// At most this many records.
    pub records_max: u64,
    /// At most this many bytes of records (at least one record is returned).
    pub bytes_max: usize,
    /// Wait that long for a first record.
    pub wait: Duration,
    /// Answer only when all records below this offset are committed here.
    pub min_offset: Option<Offset>,
    /// Answer only when everything is here that was committed anywhere before the call.
    pub linearizable: bool,
    /// On `Env::monotonic_us`: how long to wait for the two above; `LEADER_WAIT` without one.
    pub deadline_us: Option<u64>,
    /// Return records only if they are in memory, and whole batches of them fit into `bytes_max`: for who waits, and has no room
    /// for more. The answer says that there are others (`Consumed::leaves_some`).
    pub if_small: bool,
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
    /// The node whose replica answered.
    pub node: NodeId,
}

impl Consumed {
    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// Whether it has no record although there are some.
    pub fn leaves_some(&self) -> bool {
        self.count == 0 && self.next_offset < self.high_watermark
    }

    /// The first record's offset, or where it would be.
    pub fn start_offset(&self) -> Offset {
        Offset(self.next_offset.0 - self.count)
    }
}

/// State of a shard, for reports.
#[derive(Clone, Debug, Default)]
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
    /// An operation of its storage that takes long.
    pub stalled: Option<String>,
    /// First index not applied yet.
    pub applied_end: Index,
    /// Chain hash at the last applied entry: equal on replicas that have applied the same.
    pub chain: u64,
    /// Who belongs to the group.
    pub members: Members,
    /// How far the followers are; empty unless this replica leads.
    pub progress: Vec<Progress>,
    /// It leads, and does not hear most of its voters: nothing is committed. The reactor fills this in.
    pub no_majority: bool,
}
