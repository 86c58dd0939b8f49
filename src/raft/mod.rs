//! openraft for an `Env`: one `Group` is one Raft group whose log store is our `log`. TO BE WRITTEN

use std::path::PathBuf;

use bytes::Bytes;

use crate::{
    env::{Env, buffer::Buffer},
    format::entry::{EntryHeader, StoredEntry},
    ids::{Index, NodeId, Offset, ShardUid, Term},
    log::{Log, LogError, Recovered, TailBudget},
};

/// The deterministic state that a group's entries build.
pub trait Machine: 'static {
    /// What applying an entry tells its proposer.
    type Answer: 'static;

    /// Applies one committed entry of kind `Batch`, `Command` or `Void` (each replica computes the same).
    fn apply(&mut self, entry: &StoredEntry) -> Self::Answer;

    /// The whole state, small.
    fn checkpoint(&self) -> Bytes;

    /// Replaces the state by a checkpoint's.
    ///
    /// # Errors
    /// In words, when the bytes are not a checkpoint of this machine.
    fn restore(&mut self, state: &[u8]) -> Result<(), String>;
}

/// Where and how a group is kept.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Its identity.
    pub shard: ShardUid,
    /// This node.
    pub node: NodeId,
    /// Largest segment file.
    pub segment_bytes_max: u64,
}

/// What a proposal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposalKind {
    /// Records.
    Batch,
    /// A command to the machine.
    Command,
}

/// An entry to be.
#[derive(Debug)]
pub struct Proposal {
    /// What it is.
    pub kind: ProposalKind,
    /// Records in it.
    pub record_count: u32,
    /// Base offset for which a batch was encoded; it becomes `Void` if its place gives it another.
    pub base_offset: Offset,
    /// Leader's clock, µs.
    pub timestamp_us: i64,
    /// Largest record timestamp; `i64::MIN` without records.
    pub record_timestamp_max_us: i64,
    /// `ENTRY_HEADER_BYTES` of room, then the payload.
    pub buffer: Buffer,
}

/// A committed and applied proposal.
#[derive(Debug)]
pub struct Applied<A> {
    /// Its header in the log.
    pub header: EntryHeader,
    /// The machine's answer.
    pub answer: A,
}

/// Why a group refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// Retry elsewhere; nothing was written.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// The disk is full: nothing was written; the group goes on when space returns.
    #[error("{0}")]
    Full(LogError),
    /// This replica has stopped.
    #[error("{cause}")]
    Stopped {
        /// What happened.
        cause: String,
        /// The proposal had been handed to Raft: it may or may not be in the log.
        maybe_written: bool,
    },
}

/// One Raft group on this node. Clones are handles; all stay on one reactor.
pub struct Group<E: Env, M: Machine> {
    _todo: std::rc::Rc<(std::marker::PhantomData<E>, M)>,
}

impl<E: Env, M: Machine> Clone for Group<E, M> {
    fn clone(&self) -> Self {
        Group { _todo: self._todo.clone() }
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Recovers the log, restores the machine from its newest checkpoint, replays what follows, starts Raft (a new group initialises
    /// itself with this node as its only voter) and waits until it leads and has applied everything committed.
    pub async fn open(
        disk: E::Disk,
        tail: TailBudget,
        options: GroupOptions,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        let _ = (disk, tail, options, machine);
        todo!()
    }

    /// Proposes at once (calls made one after the other keep their order); resolves when it is committed and applied here.
    /// Dropping the future does not take it back.
    pub fn propose(
        &self,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Applied<M::Answer>, GroupError>> + 'static {
        let _ = proposal;
        async { todo!() }
    }

    /// The group's log.
    pub fn log(&self) -> &Log<E> {
        todo!()
    }

    /// Looks at the machine; must not be held across an await.
    pub fn with_machine<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        let _ = look;
        todo!()
    }

    /// First index not applied yet; all below are committed.
    pub fn applied_end(&self) -> Index {
        todo!()
    }

    /// First offset not committed (and applied) yet.
    pub fn high_watermark(&self) -> Offset {
        todo!()
    }

    /// Suspends until `high_watermark` is above `offset`, or the group stops or closes (then it resolves too: look at `fault`).
    pub fn wait_above(&self, offset: Offset) -> impl Future<Output = ()> + 'static {
        let _ = offset;
        async { todo!() }
    }

    /// Leader and term as known here.
    pub fn leader(&self) -> (Option<NodeId>, Term) {
        todo!()
    }

    /// Retention: lets the log forget whole segments up to the largest checkpoint at or below `index`.
    pub async fn purge_to(&self, index: Index) -> Result<(), GroupError> {
        let _ = index;
        todo!()
    }

    /// The error that stopped this replica, if one did.
    pub fn fault(&self) -> Option<String> {
        todo!()
    }

    /// Stops Raft, keeps a checkpoint at the last applied entry, closes the log cleanly.
    pub async fn close(&self) -> Result<(), GroupError> {
        todo!()
    }
}
