//! openraft for an `Env`: one [`Group`] is one Raft group whose log store is our `log`.
//!
//! Promises: proposals get their place in the log in the order of the calls; one that is answered is durable on a majority
//! and applied here; an error says whether it may still appear. A full disk refuses proposals before Raft hears
//! of them (Raft does not survive a failed append). A failed write or sync ends this group on this node, and nothing else.
//!
//! With one voter, what is durable in the log is committed: opening elects this node at once, and returns when all
//! of it is applied. There are no ticks and no heartbeats then. With several, opening waits for nobody.
//!
//! - `types`, `store`, `machine`: openraft over our log
//! - `network`, `pipeline`, `thrift`, `serve`: between replicas, both sides
//! - `proposals`, `linearize`, `members`, `transfer`, `purge`: what can be asked of a group
//! - `watch`, `elections`, `timing`: what it does by itself
//! - `majority`: watches over what is acknowledged; `flush_times`: whose disk is slow
//! - `open`: a replica's way into service; `repair`: what a damaged one does before

mod elections;
mod flush_times;
pub mod left;
mod linearize;
mod machine;
mod majority;
mod members;
mod network;
pub mod offline;
mod open;
mod pipeline;
mod proposals;
mod purge;
pub mod repair;
mod serve;
mod store;
#[cfg(test)]
mod tests;
mod thrift;
mod timing;
mod transfer;
mod types;
mod watch;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::Future,
    path::PathBuf,
    pin::pin,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use openraft::{
    Raft,
    metrics::{RaftDataMetrics, RaftServerMetrics},
    type_config::alias,
};

use self::{
    left::{Left, Owing},
    machine::{Shared, StateMachine},
    network::Network,
    proposals::Gate,
    timing::{random_below, with_jitter},
    types::TypeConfig,
};
pub use self::{serve::group_of, timing::Timing, transfer::TransferError};
use crate::{
    budget::{Class, Use},
    env::{Env, buffer::Buffer, channel, domain::Domain},
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryHeader, StoredEntry},
        state_files::Vote,
    },
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term, is_most},
    limits::{UNFLUSHED_BYTES_MAX, UNFLUSHED_PART},
    log::{Log, LogError, Watched},
};

/// The deterministic state that a group's entries build.
pub trait Machine: 'static {
    /// What applying an entry tells its proposer.
    type Answer: 'static;

    /// Applies one committed entry of kind `Batch`, `Command` or `Void` (each replica computes the same). What a batch does
    /// to the state depends on its header alone: while openraft starts, batches come without their payload.
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
    /// Decides the reactor on each node where its replica is (`peer::Destination`).
    pub slot: u64,
    /// A new group begins with these voters; each of them may be the one that initialises it, with the same result.
    /// `None`, or a list without this node: a new replica waits until the group's leader adds it.
    pub founders: Option<BTreeSet<NodeId>>,
    /// Whose data directory it is in, as in `LogOptions`; 0: not checked.
    pub owner: u64,
    /// This replica is to lead: when a new group begins, it begins it.
    pub preferred: bool,
}

/// Who belongs to a group, as this replica knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that vote; during a change those of both the old and the new configuration.
    pub voters: BTreeSet<NodeId>,
    /// Those that follow without a vote.
    pub learners: BTreeSet<NodeId>,
    /// A change is under way (joint configuration), or not committed yet.
    pub changing: bool,
    /// The voters of the old and of the new configuration while both are in force; empty while there is one.
    pub halves: Vec<BTreeSet<NodeId>>,
}

impl Members {
    /// Whether no other node votes, as far as is known: then all that is in the log here is committed.
    pub fn is_alone(&self, me: NodeId) -> bool {
        self.voters.iter().all(|voter| *voter == me)
    }

    /// Whether such nodes can commit: most of the voters, and during a change most of the old ones and most of the new ones (Ongaro
    /// and Ousterhout, 2014, 6). Most of all of them may be most of neither.
    pub fn has_majority(&self, is_such: impl Fn(NodeId) -> bool) -> bool {
        let most = |voters: &BTreeSet<NodeId>| is_most(voters, |voter| is_such(*voter));
        if self.halves.is_empty() { most(&self.voters) } else { self.halves.iter().all(most) }
    }
}

/// How far a follower is, as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which.
    pub node: NodeId,
    /// Last entry that it has on stable storage, if any.
    pub matched: Option<LogId>,
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
    /// `Group::stamp_us`.
    pub timestamp_us: i64,
    /// Largest record timestamp; `i64::MIN` without records.
    pub record_timestamp_max_us: i64,
    /// `ENTRY_HEADER_BYTES` of room, then the payload.
    pub buffer: Buffer,
}

impl Proposal {
    /// A command to the machine. (Its place in the offsets is the one before it, whatever it was proposed for.)
    pub fn command(command: &[u8], timestamp_us: i64) -> Proposal {
        let mut buffer = Buffer::with_capacity(ENTRY_HEADER_BYTES + command.len());
        buffer.grow_to(ENTRY_HEADER_BYTES);
        buffer.extend(command);
        Proposal {
            kind: ProposalKind::Command,
            record_count: 0,
            base_offset: Offset(0),
            timestamp_us,
            record_timestamp_max_us: i64::MIN,
            buffer,
        }
    }
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
    /// This node led the group when it took the proposal, and another one does now, or no majority answers: the entry may have
    /// been replaced, or it may still be committed.
    #[error("the leader of the group changed, or lost its majority, before the proposal was committed")]
    Deposed {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// The disk is full: nothing was written; the group goes on when space returns.
    #[error("{0}")]
    Full(LogError),
    /// What was durable here is damaged: the group is not opened (`repair`).
    #[error("{0}")]
    Damaged(LogError),
    /// There was no descriptor or no memory to open the group with: nothing of it was written that counts, and it may be opened
    /// again.
    #[error("{cause}")]
    Starved {
        /// What could not be done.
        cause: String,
    },
    /// This replica has stopped.
    #[error("{cause}")]
    Stopped {
        /// What happened.
        cause: String,
        /// The proposal had been handed to Raft: it may or may not be in the log.
        maybe_written: bool,
    },
}

/// One Raft group on this node. Clones are handles; all stay on one reactor. To be ended by `close`: openraft's tasks
/// do not end with the last handle.
pub struct Group<E: Env, M: Machine> {
    inner: Rc<Inner<E, M>>,
}

struct Inner<E: Env, M: Machine> {
    raft: Raft<TypeConfig<E, M>, StateMachine<E, M>>,
    log: Log<E>,
    node: NodeId,
    network: Network<E>,
    /// What it must have before it votes.
    owing: Owing<Watched<E>>,
    timing: Timing,
    shared: Rc<Shared<M>>,
    state: State,
    /// What a panic in its tasks ends.
    domain: Domain,
    /// As openraft last said.
    server: ServerMetrics<E, M>,
    data: DataMetrics<E, M>,
    gate: Gate<E, M>,
    questions: linearize::Questions,
    /// Of the flushes of all voters, while this node leads.
    judge: RefCell<flush_times::Judge>,
    /// Purges are made one after the other: openraft builds one snapshot at a time.
    purging: channel::Mutex<()>,
}

/// What the watching task tells the handles.
#[derive(Default)]
struct State {
    leader: Cell<(Option<NodeId>, Term)>,
    leading: Cell<bool>,
    /// Proposals are refused, because another node is to lead.
    transferring: Cell<bool>,
    /// The leader of this vote has said that it leads no more.
    abdicated: Cell<Option<Vote>>,
    closing: Cell<bool>,
    /// openraft has ended.
    ended: Cell<bool>,
    fault: RefCell<Option<String>>,
}

impl<E: Env, M: Machine> Clone for Group<E, M> {
    fn clone(&self) -> Self {
        Group { inner: self.inner.clone() }
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Bytes of entries that were proposed here or came from a leader, and are not flushed here.
    pub fn unflushed_bytes(&self) -> usize {
        self.inner.log.unflushed_bytes() + self.inner.shared.handed_bytes.get()
    }

    /// Whether more entries should come: the disk keeps up with those of this group, and with those of its reactor.
    pub fn has_flush_room(&self) -> bool {
        let memory = self.inner.log.memory();
        let of_reactor = memory.used_for(Use::Unflushed) < memory.limit(Class::Client) / UNFLUSHED_PART;
        of_reactor && self.unflushed_bytes() < UNFLUSHED_BYTES_MAX
    }

    /// What a panic in this replica's tasks ends; calls that change its state go through it.
    pub fn domain(&self) -> &Domain {
        &self.inner.domain
    }

    /// The group's log.
    pub fn log(&self) -> &Log<E> {
        &self.inner.log
    }

    /// What an entry is stamped with now, µs: this node's wall clock, or most nodes' where it differs from theirs (`peer::clocks`).
    pub fn stamp_us(&self) -> i64 {
        self.inner.network.peers().liveness().clocks().stamp_us(E::monotonic_us(), E::wall_us())
    }

    /// Looks at the machine; must not be held across an await.
    pub fn with_machine<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        self.inner.shared.with_machine(look)
    }

    /// First index not applied yet; all below are committed.
    pub fn applied_end(&self) -> Index {
        self.inner.shared.applied().map_or(Index(0), |applied| applied.index.next())
    }

    /// First offset not committed (and applied) yet.
    pub fn high_watermark(&self) -> Offset {
        self.inner.shared.next_offset()
    }

    /// Suspends until `high_watermark` is above `offset`, or the group stops or closes (then it resolves too: look at `fault`).
    pub fn wait_above(&self, offset: Offset) -> impl Future<Output = ()> + 'static {
        let group = self.clone();
        async move {
            loop {
                let changed = group.inner.shared.changed.notified();
                let state = &group.inner.state;
                if group.high_watermark() > offset || state.closing.get() || group.fault().is_some() {
                    return;
                }
                changed.await;
            }
        }
    }

    /// Suspends until the entry at `index` is applied here; false when the group stops or closes before.
    pub async fn wait_applied(&self, index: Index) -> bool {
        loop {
            let changed = self.inner.shared.changed.notified();
            if self.applied_end() > index {
                return true;
            }
            if self.inner.state.closing.get() || self.fault().is_some() {
                return false;
            }
            changed.await;
        }
    }

    /// When the last append became durable here, on `Env::monotonic_us`; 0: none yet.
    pub fn flushed_us(&self) -> u64 {
        self.inner.shared.flushed_us.get()
    }

    /// Leader and term as known here.
    pub fn leader(&self) -> (Option<NodeId>, Term) {
        self.inner.state.leader.get()
    }

    /// Whether this node leads and has applied the entry with which its term begins: it takes proposals. A leader that is
    /// cut off from the others does not know yet that it is none any more; its proposals wait, and are refused.
    pub fn leads(&self) -> bool {
        let Inner { shared, state, .. } = &*self.inner;
        let begun = shared.applied().is_some_and(|applied| applied.term == self.leader().1);
        begun && state.leading.get() && !state.transferring.get()
    }

    /// Suspends until leader, term, membership or `leads` may have changed since this was called, or the group ends.
    pub fn wait_changed(&self) -> impl Future<Output = ()> + 'static {
        self.inner.shared.turned.notified()
    }

    /// Chain hash at the last applied entry: equal on replicas that have applied the same.
    pub fn applied_chain(&self) -> u64 {
        self.inner.shared.chain()
    }

    /// How often its state was replaced by a snapshot that a leader has sent, since it was opened.
    pub fn snapshots_installed(&self) -> u64 {
        self.inner.shared.installed.get()
    }

    /// The error that stopped this replica, if one did.
    pub fn fault(&self) -> Option<String> {
        let Inner { log, shared, state, domain, .. } = &*self.inner;
        if let Some(panic) = domain.panic() {
            return Some(bug(&panic));
        }
        if let Some(error) = log.fault() {
            return Some(error.to_string());
        }
        if let Some(fault) = &*state.fault.borrow() {
            return Some(fault.clone());
        }
        let gone = shared.machine_gone.get() && (shared.applying.get() || !state.closing.get());
        gone.then(|| "the state machine ended early; restart the node, and report its log".to_string())
    }

    /// What a read has found damaged here, if that is what has stopped this replica.
    pub fn damage(&self) -> Option<LogError> {
        self.inner.log.fault().filter(|fault| matches!(fault, LogError::Corrupt { .. }))
    }

    /// What it leaves when it is removed. To be asked when it is closed.
    pub fn left(&self) -> Left {
        let Inner { log, owing, .. } = &*self.inner;
        owing.left(log.hard_state().vote, log.last())
    }

    /// As `close`, for a replica that has stopped: its files are left as they are, and nobody writes to them any more when
    /// this returns.
    pub async fn abandon(&self) {
        // What it ended with is known.
        drop(self.close().await);
        let log = self.log();
        log.look_while(log.abandon()).await;
    }

    /// Stops Raft, keeps a checkpoint at the last applied entry, closes the log cleanly. A second call returns at once.
    ///
    /// # Errors
    /// `Stopped`, when this replica had stopped, or its last writes fail, or the device does not answer them for `STORAGE_HUNG`;
    /// nothing acknowledged is lost by it.
    pub async fn close(&self) -> Result<(), GroupError> {
        self.log().look_while(self.close_looked_at()).await
    }

    async fn close_looked_at(&self) -> Result<(), GroupError> {
        let Inner { log, shared, state, domain, .. } = &*self.inner;
        if state.closing.replace(true) {
            return Ok(());
        }
        if let Some(panic) = domain.panic() {
            // Its tasks are gone, and its files are as a crash leaves them.
            return Err(unusable(bug(&panic)));
        }
        shared.changed.notify_all();
        shared.turned.notify_all();
        log.announce_close();
        self.shut_down().await?;
        let gone = async {
            loop {
                // The state machine finishes what it was told before it goes, and so does the task that writes checkpoints.
                let changed = shared.changed.notified();
                if shared.machine_gone.get() && state.ended.get() && !shared.saving.get() {
                    break;
                }
                changed.await;
            }
        };
        self.unless_held_up(gone).await;
        if let Some(cause) = self.fault() {
            return Err(GroupError::Stopped { cause, maybe_written: false });
        }
        // Both only shorten the next start: a full disk is no reason not to close.
        if let Err(error) = shared.save_now(log).await {
            tracing::warn!(%error, "no checkpoint could be kept at close; the next start replays more");
        }
        // It would wait behind entries that wait for space; the next start learns the committed index without it.
        if log.has_room(0).is_ok() {
            let saved = log.save_hard_state(store::hard_state(log, shared.committed.get()));
            self.unless_held_up(saved).await.map_err(refused)?;
        }
        log.close().await.map_err(refused)
    }

    /// Ends openraft.
    async fn shut_down(&self) -> Result<(), GroupError> {
        let ended = self.unless_held_up(self.inner.raft.shutdown()).await;
        ended.map_err(|error| self.stopped(&error.to_string()))
    }

    /// A step of a close. When it waits for the log, and that for space, descriptors or memory that may never come, the log is given up.
    async fn unless_held_up<T>(&self, step: impl Future<Output = T>) -> T {
        let log = &self.inner.log;
        match select(pin!(step), pin!(log.held_up())).await {
            Either::Left((done, _)) => done,
            Either::Right(((), step)) => {
                log.abandon().await;
                step.await
            }
        }
    }

    /// Refused before Raft had it.
    fn stopped(&self, cause: &str) -> GroupError {
        GroupError::Stopped { cause: self.fault().unwrap_or_else(|| cause.to_string()), maybe_written: false }
    }

    /// Lost after Raft had it.
    fn stopped_late(&self, cause: &str) -> GroupError {
        GroupError::Stopped { cause: self.fault().unwrap_or_else(|| cause.to_string()), maybe_written: true }
    }
}

type ServerMetrics<E, M> = alias::WatchReceiverOf<TypeConfig<E, M>, RaftServerMetrics<TypeConfig<E, M>>>;
type DataMetrics<E, M> = alias::WatchReceiverOf<TypeConfig<E, M>, RaftDataMetrics<TypeConfig<E, M>>>;

/// The log's refusal as the group's: nothing was written.
fn refused(error: LogError) -> GroupError {
    match error {
        LogError::Full { .. } => GroupError::Full(error),
        error => unusable(error.to_string()),
    }
}

/// As `refused`, while the group is opened.
fn damaged(error: LogError) -> GroupError {
    match error {
        LogError::Corrupt { .. } => GroupError::Damaged(error),
        error => refused(error),
    }
}

/// Why a replica does not serve that a panic has stopped.
fn bug(panic: &str) -> String {
    format!(
        "this replica has stopped because of a bug: {panic}; it is opened again when the node restarts; please report this"
    )
}

/// Nothing was written, and nothing will be.
fn unusable(cause: String) -> GroupError {
    GroupError::Stopped { cause, maybe_written: false }
}
