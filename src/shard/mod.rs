//! One shard on one node: its Raft group, the produce queue in front and the consumers behind.
//!
//! Promises: offsets are dense and in the order of the `produce` calls; an ack is given when what it
//! says is true; every refusal says whether the record may still appear; consumers see only what is
//! committed. At all times, with `log_start` from the machine, `high_watermark` from Raft and
//! `log_end` from the log:
//!
//! ```text
//! log_start <= high_watermark <= log_end
//! ```
//!
//! - `queue`: requests that wait, and how an entry is gathered from them (pure)
//! - `estimate`: how long an append takes just now, for deadlines (pure)
//! - `produce`: admit, propose, ack in order
//! - `consume`: catch up, then follow
//! - `retention`: which prefix may go, and the task that lets it go
//! - `machine`: the replicated state, the log start
//!
//! Not here: which shard a request goes to (`frontend`), and what becomes of it in the log (`raft`).

mod consume;
mod estimate;
mod machine;
mod metrics;
mod produce;
mod queue;
mod retention;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    env::{Env, channel::Notify},
    format::records::Records,
    ids::{NodeId, Offset, ShardUid, Term},
    log::{LogError, Recovered, TailBudget},
    peer::Peers,
    raft::{Group, GroupError, GroupOptions},
};

use self::{consume::Cursors, machine::ShardMachine, metrics::Metrics};

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
    /// Decides the reactor of each node where its replica is.
    pub slot: u64,
    /// See `raft::GroupOptions`.
    pub founders: Option<BTreeSet<NodeId>>,
    /// Whose data directory it is in, as in `log::LogOptions`; 0: not checked.
    pub owner: u64,
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
    /// The leader changed while the record was on its way: it may still appear.
    #[error("the shard's leader changed before the record was committed: it may still appear")]
    Deposed {
        /// Who leads, if known.
        leader: Option<NodeId>,
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

impl From<GroupError> for ShardError {
    fn from(error: GroupError) -> ShardError {
        match error {
            GroupError::NotLeader { leader } => ShardError::NotLeader { leader },
            GroupError::Deposed { leader } => ShardError::Deposed { leader },
            GroupError::Full(error) => ShardError::Full(error),
            GroupError::Stopped { cause, maybe_written } => ShardError::Failed { cause, maybe_written },
        }
    }
}

impl From<LogError> for ShardError {
    /// A failed read: nothing was to be written.
    fn from(error: LogError) -> ShardError {
        ShardError::Failed { cause: error.to_string(), maybe_written: false }
    }
}

/// A shard. Clones are handles to the same one; all stay on its reactor.
pub struct Shard<E: Env> {
    inner: Rc<Inner<E>>,
}

impl<E: Env> Clone for Shard<E> {
    fn clone(&self) -> Self {
        Shard { inner: self.inner.clone() }
    }
}

/// What the handles share.
struct Inner<E: Env> {
    group: Group<E, ShardMachine>,
    options: ShardOptions,
    recovered: Recovered,
    metrics: Metrics,
    state: RefCell<produce::State>,
    cursors: RefCell<Cursors>,
    life: Cell<Life>,
    /// Trims and purges under way; `close` waits for them.
    operations: Cell<u32>,
    /// An entry was proposed, or the shard has closed: the pump looks.
    work: Notify,
    /// An entry has landed or an operation has ended: `close` looks.
    idle: Notify,
    /// A segment has filled up, or the shard closes: retention looks.
    rolled: Notify,
}

/// Where a shard is in its life; it only goes down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Serving,
    /// Finishes what it has.
    Closing,
    Closed,
}

impl<E: Env> Shard<E> {
    /// Opens or makes the shard and waits until it serves (with one voter: until it leads).
    ///
    /// # Errors
    /// `Failed` with the log's own words when the directory is damaged, foreign or cannot be read; `Full`.
    pub async fn open(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: ShardOptions,
    ) -> Result<Shard<E>, ShardError> {
        let group_options = GroupOptions {
            dir: options.dir.clone(),
            shard: options.uid,
            node: options.node,
            segment_bytes_max: retention::segment_bytes(options.segment_bytes_max, options.retention_bytes_max),
            slot: options.slot,
            founders: options.founders.clone(),
            owner: options.owner,
        };
        let (group, recovered) = Group::open(disk, tail, peers, group_options, ShardMachine::default()).await?;
        let state = produce::State::new(group.log().log_end());
        let inner = Rc::new(Inner {
            group,
            options,
            recovered,
            metrics: Metrics::new(),
            state: RefCell::new(state),
            cursors: RefCell::default(),
            life: Cell::new(Life::Serving),
            operations: Cell::new(0),
            work: Notify::new(),
            idle: Notify::new(),
            rolled: Notify::new(),
        });
        inner.check_offsets();
        crate::env::spawn::<E>(produce::pump(inner.clone()));
        if inner.retention().is_some() {
            crate::env::spawn::<E>(retention::run(inner.clone()));
        }
        Ok(Shard { inner })
    }

    /// What recovery found when the shard was opened.
    pub fn recovered(&self) -> &Recovered {
        &self.inner.recovered
    }

    /// Queues the request at once (calls made one after the other get ascending offsets); the future resolves with the ack.
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// Those of `ShardError` but `OutOfRange`; each says whether the records may still appear.
    pub fn produce(&self, produce: Produce) -> impl Future<Output = Result<Produced, ShardError>> + use<E> + 'static {
        let answer = self.inner.admit(produce);
        async move {
            // A reply that is dropped unanswered means that the reactor's tasks are gone.
            let gone = || ShardError::Closing { maybe_written: true };
            answer?.await.unwrap_or_else(|_| Err(gone()))
        }
    }

    /// Committed records from a start on; waits for a first one as long as asked. Without one `next_offset` is the start, which
    /// for `Timestamp` is the high watermark when all committed records are older. `bytes_max` is cut to a little less
    /// than 4 MiB, which stock gRPC clients accept. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// `OutOfRange`, also when a trim overtakes a consumer that waits; `Failed` when the shard has stopped or what it would
    /// return is damaged; `Closing`.
    pub fn consume(&self, consume: Consume) -> impl Future<Output = Result<Consumed, ShardError>> + use<E> + 'static {
        consume::consume(self.inner.clone(), consume)
    }

    /// Moves the log start up to `before`, committed through the log; answers with the present log start. Consumers see it at once;
    /// segments that are wholly below are deleted before this returns. An offset at or below the log start changes nothing.
    /// Dropping the future does not take it back.
    ///
    /// # Errors
    /// `OutOfRange` above the high watermark, and those of a proposal.
    pub async fn trim(&self, before: Offset) -> Result<Offset, ShardError> {
        let log_start = self.inner.log_start();
        let high_watermark = self.inner.group.high_watermark();
        if before > high_watermark {
            return Err(ShardError::OutOfRange { offset: before, log_start, high_watermark });
        }
        if before <= log_start {
            return Ok(log_start);
        }
        let log_start = self.inner.trim(before).await?;
        self.inner.purge().await?;
        Ok(log_start)
    }

    /// A snapshot of its numbers.
    pub fn status(&self) -> ShardStatus {
        self.inner.check_offsets();
        let (leader, term) = self.inner.group.leader();
        let segments = self.inner.group.log().segments();
        ShardStatus {
            leader,
            term,
            log_start: self.inner.log_start(),
            high_watermark: self.inner.group.high_watermark(),
            log_end: self.inner.group.log().log_end(),
            size_bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments: u32::try_from(segments.len()).unwrap_or(u32::MAX),
            fault: self.inner.group.fault(),
        }
    }

    /// Refuses new requests, finishes those in flight, closes the log cleanly. A second call waits for the first.
    ///
    /// # Errors
    /// `Failed` when the log could not be closed cleanly: it will be recovered when it is opened again.
    pub async fn close(&self) -> Result<(), ShardError> {
        let inner = &self.inner;
        let first = inner.life.get() == Life::Serving;
        if first {
            inner.life.set(Life::Closing);
            inner.rolled.notify_all();
        }
        loop {
            let changed = inner.idle.notified();
            let done = if first { inner.is_idle() } else { inner.life.get() == Life::Closed };
            if done {
                break;
            }
            changed.await;
        }
        if !first {
            return Ok(());
        }
        let closed = inner.group.close().await;
        inner.life.set(Life::Closed);
        inner.work.notify_one();
        inner.idle.notify_all();
        Ok(closed?)
    }
}

impl<E: Env> Inner<E> {
    /// First offset kept.
    fn log_start(&self) -> Offset {
        self.group.with_machine(ShardMachine::log_start)
    }

    /// The inequalities of a shard.
    fn check_offsets(&self) {
        let high_watermark = self.group.high_watermark();
        assert!(self.log_start() <= high_watermark, "log_start <= high_watermark");
        assert!(high_watermark <= self.group.log().log_end(), "high_watermark <= log_end");
    }

    /// Why nothing more is served, if so.
    fn check_life(&self) -> Result<(), ShardError> {
        if self.life.get() != Life::Serving {
            return Err(ShardError::Closing { maybe_written: false });
        }
        match self.group.fault() {
            Some(cause) => Err(ShardError::Failed { cause, maybe_written: false }),
            None => Ok(()),
        }
    }

    /// Nothing waits, nothing is in flight.
    fn is_idle(&self) -> bool {
        self.operations.get() == 0 && self.state.borrow().is_idle()
    }
}

/// Something that `close` waits for.
struct Operation<E: Env>(Rc<Inner<E>>);

impl<E: Env> Operation<E> {
    fn begin(inner: &Rc<Inner<E>>) -> Operation<E> {
        inner.operations.set(inner.operations.get() + 1);
        Operation(inner.clone())
    }
}

impl<E: Env> Drop for Operation<E> {
    fn drop(&mut self) {
        self.0.operations.set(self.0.operations.get() - 1);
        self.0.idle.notify_all();
    }
}
