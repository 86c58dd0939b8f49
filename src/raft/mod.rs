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
//! - `repair`: what a damaged replica does before its group is opened

mod elections;
mod flush_times;
pub mod left;
mod linearize;
mod machine;
mod majority;
mod members;
mod network;
pub mod offline;
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
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use openraft::{
    Raft,
    metrics::{RaftDataMetrics, RaftServerMetrics},
    rt::AsyncRuntime,
    type_config::alias,
};

use self::{
    left::{Left, Owing},
    machine::{Shared, StateMachine},
    network::Network,
    proposals::Gate,
    store::Store,
    timing::{config, random_below, with_jitter},
    types::{Node, TypeConfig},
};
pub use self::{serve::group_of, timing::Timing, transfer::TransferError};
use crate::{
    budget::{Class, Use},
    env::{self, Env, buffer::Buffer, channel, domain::Domain},
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryHeader, StoredEntry},
        state_files::Vote,
    },
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term, is_most},
    limits::{BLOCK_BYTES, UNFLUSHED_BYTES_MAX, UNFLUSHED_PART},
    log::{Log, LogError, Recovered, TailBudget},
    peer::Peers,
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
    /// Leader's clock, µs.
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
    /// This replica has stopped.
    #[error("{cause}")]
    Stopped {
        /// What happened.
        cause: String,
        /// The proposal had been handed to Raft: it may or may not be in the log.
        maybe_written: bool,
    },
}

/// Pause between two looks whether a group that is being opened waits for space.
const FULL_LOOK: Duration = Duration::from_millis(50);

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
    owing: Owing<E::Disk>,
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
    /// Recovers the log, restores the machine from its newest checkpoint, replays what follows, starts Raft. A new group
    /// begins with its founders, if this node is one of them. As the only voter, this node waits until it leads and has
    /// applied everything committed; else nobody is waited for.
    ///
    /// # Errors
    /// `Full` when there is no room for a new group of one; `Damaged`; `Stopped` for everything else.
    pub async fn open(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        Group::open_with(disk, tail, peers, options, Timing::default(), machine).await
    }

    /// As `open`, with other times than the default's: the same for all replicas.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_with(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        timing: Timing,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        let domain = Domain::new(format!("the replica of shard {} on node {}", options.shard, options.node));
        let opening = Group::open_in(domain.clone(), disk, tail, peers, options, timing, machine);
        let opened = domain.contain(opening).await;
        let (group, recovered) = opened.unwrap_or_else(|panic| Err(unusable(bug(&panic))))?;
        let inner = Rc::downgrade(&group.inner);
        domain.on_panic(move |_| inner.upgrade().iter().for_each(watch::note_panic));
        Ok((group, recovered))
    }

    async fn open_in(
        domain: Domain,
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        timing: Timing,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        let log_options = repair::log_options(&options);
        let GroupOptions { shard, node, slot, founders, preferred, .. } = options;
        let founders = founders.filter(|founders| founders.contains(&node));
        let owing = Owing::take_up(disk.clone(), log_options.clone(), node, founders.is_some()).await;
        let owing = owing.map_err(damaged)?;
        let (log, recovered) = Log::open(disk, tail, log_options).await.map_err(damaged)?;
        let shared = Shared::new(machine);
        shared.restore(&log).await.map_err(|error| damaged(log.fault().unwrap_or(error)))?;
        let network = Network::new(peers, shard, slot).noting(shared.majority.clone(), shared.flush_times.clone());
        let group = Group { inner: Rc::new(Inner::build(domain, log, shared, network, owing, node, timing).await?) };
        if let Err(error) = group.start(founders, preferred).await {
            // Else openraft's tasks would go on without a handle.
            group.inner.state.closing.set(true);
            group.inner.shared.turned.notify_all();
            // First the log: openraft does not end while an entry of its own waits for space, and the log would write it
            // when space returns, beside whoever opens it next.
            group.inner.log.abandon().await;
            // What it ended with is told by `error`.
            drop(group.inner.raft.shutdown().await);
            return Err(group.damage().map_or(error, GroupError::Damaged));
        }
        Ok((group, recovered))
    }

    async fn start(&self, founders: Option<BTreeSet<NodeId>>, preferred: bool) -> Result<(), GroupError> {
        let Inner { raft, log, .. } = &*self.inner;
        raft.runtime_config().elect(!self.inner.owes());
        raft.run();
        env::spawn::<E>(watch::watch_raft(self.inner.clone()));
        env::spawn::<E>(elections::watch_leader(self.inner.clone()));
        if self.inner.owes() {
            env::spawn::<E>(elections::watch_owed(self.inner.clone()));
        }
        let is_new = log.last().is_none() && log.hard_state().vote.is_none();
        let founders = founders.filter(|_| is_new && !self.inner.owes());
        if let Some(founders) = founders.as_ref().filter(|founders| founders.len() > 1) {
            env::spawn::<E>(elections::found(self.inner.clone(), founders.clone(), preferred));
            return Ok(());
        }
        if founders.is_some() {
            // Its first membership, and the entry with which its leader begins.
            log.has_room(2 * BLOCK_BYTES).map_err(refused)?;
        }
        // openraft does nothing else while it waits for a write of its own.
        let mut begun = pin!(self.begin(founders.is_some()));
        loop {
            match E::Runtime::timeout(FULL_LOOK, begun.as_mut()).await {
                Ok(result) => return result,
                Err(_) if founders.is_some() => log.has_room(0).map_err(refused)?,
                Err(_) => {}
            }
        }
    }

    async fn begin(&self, is_new: bool) -> Result<(), GroupError> {
        let Inner { raft, log, node, .. } = &*self.inner;
        let node = *node;
        if is_new {
            let voters = BTreeMap::from([(node.0, Node::default())]);
            raft.initialize(voters).await.map_err(|error| self.stopped(&error.to_string()))?;
        }
        if self.inner.owes() {
            // Its log may know it as the only voter, which it was once.
            return Ok(());
        }
        let only_voter = raft
            .with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([node.0]))
            .await
            .map_err(|error| self.stopped(&error.to_string()))?;
        if !only_voter {
            if let Some(vote) = log.hard_state().vote.filter(|vote| vote.committed && vote.node == node) {
                // It led, and does not lead on; the others would wait for it, since it is alive.
                env::spawn::<E>(elections::abdicate(self.inner.clone(), vote));
            }
            return Ok(());
        }
        raft.trigger().elect(false).await.map_err(|error| self.stopped(&error.to_string()))?;
        self.wait_until_caught_up(is_new).await
    }

    /// Waits until this node leads and has applied the entry with which its term begins, and so all before it.
    ///
    /// On a full disk that entry waits for space. A new group is refused then; another one is opened as it is: what
    /// was committed when it was closed can be read, proposals are refused as `Full`, and it leads when space returns.
    async fn wait_until_caught_up(&self, is_new: bool) -> Result<(), GroupError> {
        loop {
            let changed = self.inner.shared.changed.notified();
            if let Some(cause) = self.fault() {
                return Err(GroupError::Stopped { cause, maybe_written: false });
            }
            let (_, term) = self.leader();
            let applied = self.inner.shared.applied().is_some_and(|applied| applied.term == term);
            if self.inner.state.leading.get() && applied {
                return Ok(());
            }
            if let Err(error) = self.inner.log.has_room(0) {
                if is_new {
                    return Err(refused(error));
                }
                tracing::warn!(%error, "opened for reading only, until space returns");
                return Ok(());
            }
            drop(E::Runtime::timeout(FULL_LOOK, changed).await);
        }
    }

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
        self.inner.log.abandon().await;
    }

    /// Stops Raft, keeps a checkpoint at the last applied entry, closes the log cleanly. A second call returns at once.
    ///
    /// # Errors
    /// `Stopped`, when this replica had stopped, or its last writes fail; nothing acknowledged is lost by it.
    pub async fn close(&self) -> Result<(), GroupError> {
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
        self.shut_down().await?;
        loop {
            // The state machine finishes what it was told before it goes, and so does the task that writes checkpoints.
            let changed = shared.changed.notified();
            if shared.machine_gone.get() && state.ended.get() && !shared.saving.get() {
                break;
            }
            changed.await;
        }
        if let Some(cause) = self.fault() {
            return Err(GroupError::Stopped { cause, maybe_written: false });
        }
        // Both only shorten the next start: a full disk is no reason not to close.
        if let Err(error) = shared.save_now(log).await {
            tracing::warn!(%error, "no checkpoint could be kept at close; the next start replays more");
        }
        // It would wait behind entries that wait for space; the next start learns the committed index without it.
        if log.has_room(0).is_ok() {
            log.save_hard_state(store::hard_state(log, shared.committed.get())).await.map_err(refused)?;
        }
        log.close().await.map_err(refused)
    }

    /// Ends openraft.
    async fn shut_down(&self) -> Result<(), GroupError> {
        let Inner { raft, log, .. } = &*self.inner;
        let ended = match select(pin!(raft.shutdown()), pin!(log.held_up())).await {
            Either::Left((ended, _)) => ended,
            Either::Right(((), ending)) => {
                // It waits for the log, and that for space that may never come.
                log.abandon().await;
                ending.await
            }
        };
        ended.map_err(|error| self.stopped(&error.to_string()))
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

impl<E: Env, M: Machine> Inner<E, M> {
    async fn build(
        domain: Domain,
        log: Log<E>,
        shared: Rc<Shared<M>>,
        network: Network<E>,
        owing: Owing<E::Disk>,
        node: NodeId,
        timing: Timing,
    ) -> Result<Inner<E, M>, GroupError> {
        let headers_only = Rc::new(Cell::new(true));
        let store = Store::new(log.clone(), shared.clone(), headers_only.clone());
        let machine = StateMachine::new(log.clone(), shared.clone(), node);
        let config = config(timing).map_err(unusable)?;
        let raft = Raft::build(node.0, config, network.clone(), store, machine)
            .await
            .map_err(|error| log.fault().map_or_else(|| unusable(error.to_string()), damaged))?;
        headers_only.set(false);
        let (server, data) = (raft.server_metrics(), raft.data_metrics());
        let (state, gate, purging) = (State::default(), Gate::default(), channel::Mutex::new(()));
        let (questions, judge) = Default::default();
        Ok(Inner {
            raft,
            log,
            node,
            network,
            owing,
            timing,
            shared,
            state,
            domain,
            server,
            data,
            gate,
            questions,
            judge,
            purging,
        })
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
