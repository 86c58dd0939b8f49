//! openraft for an `Env`: one [`Group`] is one Raft group whose log store is our `log`.
//!
//! Promises: proposals get their place in the log in the order of the calls; one that is answered is durable on a majority
//! and applied here; an error says whether it may still appear. A full disk refuses proposals before Raft hears
//! of them (Raft does not survive a failed append). A failed write or sync ends this group on this node, and nothing else.
//!
//! With one voter, what is durable in the log is committed: opening elects this node at once, and returns when all
//! of it is applied. There are no ticks and no heartbeats then. With several, opening does not wait for a leader.
//!
//! - `elections`: a dead leader is replaced quickly, though heartbeats are slow
//! - `members`: who belongs to it, who leads next, linearizable reads
//! - `network`, `serve`: what replicas say to each other; `types`: openraft's types and ours
//! - `store`, `machine`: openraft's log and state machine over ours

mod elections;
mod machine;
mod members;
mod network;
pub mod offline;
mod serve;
mod store;
#[cfg(test)]
mod tests;
mod types;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use openraft::{
    Config, Raft, RaftMetrics, ServerState, SnapshotPolicy,
    errors::{ClientWriteError, Fatal, ForwardToLeader},
    metrics::RaftServerMetrics,
    raft::ClientWriteResult,
    rt::{AsyncRuntime, WatchReceiver},
    type_config::alias,
};

pub use self::serve::group_of;
use self::{
    machine::{Shared, StateMachine},
    network::Network,
    store::Store,
    types::{Handed, Node, Reply, TypeConfig},
};
use crate::{
    env::{self, Env, buffer::Buffer, channel},
    format::entry::{EntryHeader, StoredEntry},
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term},
    limits::{BLOCK_BYTES, RAFT_QUEUE_MAX},
    log::{Log, LogError, LogOptions, Recovered, TailBudget},
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
    /// This replica is to lead: when a new group begins, it tries first.
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
    /// This node led the group when it took the proposal, and another one does now: the entry may have been replaced, or it may
    /// still be committed.
    #[error("the leader of the group changed before the proposal was committed")]
    Deposed {
        /// Who leads, if known.
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

/// Pause between two looks whether a group that is being opened waits for space.
const FULL_LOOK: Duration = Duration::from_millis(50);

/// One Raft group on this node. Clones are handles; all stay on one reactor. To be ended by `close`: openraft's tasks
/// do not end with the last handle.
pub struct Group<E: Env, M: Machine> {
    inner: Rc<Inner<E, M>>,
}

struct Inner<E: Env, M: Machine> {
    place: Place,
    peers: Peers<E>,
    raft: Raft<TypeConfig<E, M>, StateMachine<E, M>>,
    log: Log<E>,
    shared: Rc<Shared<M>>,
    state: Rc<State>,
    /// Purges are made one after the other: openraft builds one snapshot at a time.
    purging: channel::Mutex<()>,
}

/// Which replica this is, of which group.
#[derive(Clone, Copy, Debug)]
struct Place {
    node: NodeId,
    group: ShardUid,
    slot: u64,
    /// It is to lead.
    preferred: bool,
}

/// What the watching task tells the handles.
struct State {
    leader: Cell<(Option<NodeId>, Term)>,
    leading: Cell<bool>,
    closing: Cell<bool>,
    /// openraft has ended.
    ended: Cell<bool>,
    fault: RefCell<Option<String>>,
    /// Proposals that openraft has and has not answered.
    proposed: Rc<Cell<usize>>,
    /// Transfers of leadership under way: no proposals are taken.
    handing_over: Cell<usize>,
    /// openraft's timers run.
    ticking: Cell<bool>,
}

impl Default for State {
    fn default() -> State {
        State {
            leader: Cell::default(),
            leading: Cell::default(),
            closing: Cell::default(),
            ended: Cell::default(),
            fault: RefCell::default(),
            proposed: Rc::default(),
            handing_over: Cell::default(),
            // As openraft starts.
            ticking: Cell::new(true),
        }
    }
}

impl<E: Env, M: Machine> Clone for Group<E, M> {
    fn clone(&self) -> Self {
        Group { inner: self.inner.clone() }
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Recovers the log, restores the machine from its newest checkpoint, replays what follows, starts Raft (a new group
    /// initialises itself with this node as its only voter) and, as the only voter, waits until it leads and has applied
    /// everything committed.
    ///
    /// # Errors
    /// `Full` when there is no room for a new group; `Stopped` for everything else.
    pub async fn open(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        let GroupOptions { dir, shard, node, segment_bytes_max, slot, founders, owner, preferred } = options;
        let (log, recovered) =
            Log::open(disk, tail, LogOptions { dir, shard, segment_bytes_max, owner }).await.map_err(refused)?;
        let shared = Shared::new(machine);
        shared.restore(&log).await.map_err(unusable)?;
        let place = Place { node, group: shard, slot, preferred };
        let group = Group { inner: Rc::new(Inner::build(log, shared, place, peers).await?) };
        if let Err(error) = group.start(founders).await {
            // Else openraft's tasks would go on without a handle.
            group.inner.state.closing.set(true);
            // First the log: openraft does not end while an entry of its own waits for space, and the log would write it
            // when space returns, beside whoever opens it next.
            group.inner.log.abandon().await;
            // What it ended with is told by `error`.
            drop(group.inner.raft.shutdown().await);
            return Err(error);
        }
        Ok((group, recovered))
    }

    async fn start(&self, founders: Option<BTreeSet<NodeId>>) -> Result<(), GroupError> {
        let (raft, node) = (&self.inner.raft, self.inner.place.node);
        raft.run();
        env::spawn::<E>(watch_raft(
            raft.server_metrics(),
            raft.metrics(),
            self.inner.log.clone(),
            self.inner.shared.clone(),
            self.inner.state.clone(),
        ));
        let log = &self.inner.log;
        let is_new = log.last().is_none() && log.hard_state().vote.is_none();
        if is_new && let Some(founders) = founders.filter(|founders| founders.contains(&node)) {
            // Its first membership, and the entry with which its leader begins.
            log.has_room(2 * BLOCK_BYTES).map_err(refused)?;
            let voters: BTreeMap<_, _> = founders.into_iter().map(|founder| (founder.0, Node::default())).collect();
            let mut initialized = pin!(raft.initialize(voters));
            loop {
                match E::Runtime::timeout(FULL_LOOK, initialized.as_mut()).await {
                    Ok(result) => break result.map_err(|error| self.stopped(&error.to_string()))?,
                    Err(_) => log.has_room(0).map_err(refused)?,
                }
            }
        }
        let only_voter = raft
            .with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([node.0]))
            .await
            .map_err(|error| self.stopped(&error.to_string()))?;
        if !only_voter {
            self.watch_leader();
            return Ok(());
        }
        self.keep_ticking();
        self.watch_leader();
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

    /// Proposes at once (calls made one after the other keep their order); resolves when it is committed and applied here.
    /// Dropping the future does not take it back.
    pub fn propose(
        &self,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Applied<M::Answer>, GroupError>> + 'static {
        let handed = self.hand_to_raft(proposal);
        let group = self.clone();
        async move {
            match handed?.await {
                Ok(Ok(response)) => match response.data {
                    Some(applied) => Ok(applied),
                    None => Err(group.stopped_late("the machine gave no answer")),
                },
                // Before it was appended: openraft says so, and `write_entries` does so.
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
                // Replaced here by another leader's entries; a third node may still have it.
                Ok(Err(ClientWriteError::LogEntryDiscarded(forward))) => {
                    Err(GroupError::Deposed { leader: forward.leader_id.map(NodeId) })
                }
                Ok(Err(error)) => Err(group.stopped_late(&error.to_string())),
                // openraft drops what it owes when it ends.
                Err(channel::Closed) => Err(group.stopped_late("the group was closed")),
            }
        }
    }

    fn hand_to_raft(&self, proposal: Proposal) -> Result<Answer<E, M>, GroupError> {
        let Inner { raft, log, shared, state, .. } = &*self.inner;
        if let Some(cause) = self.fault() {
            return Err(GroupError::Stopped { cause, maybe_written: false });
        }
        if state.closing.get() {
            return Err(unusable("the group is closing".into()));
        }
        if state.handing_over.get() > 0 {
            return Err(GroupError::NotLeader { leader: None });
        }
        assert!(
            proposal.buffer.len() >= crate::format::entry::ENTRY_HEADER_BYTES,
            "a proposal has room for its header"
        );
        log.has_room(shared.handed_bytes.get() + proposal.buffer.padded_len()).map_err(refused)?;
        let proposal = Handed::new(proposal, &shared.handed_bytes);
        let (sender, receiver) = channel::oneshot();
        // Its first poll hands the proposal over; it would suspend only if Raft's queue were full, or Raft gone.
        let reply = Reply::new(sender, &state.proposed);
        let handed = raft.client_write_ff(proposal, Some(reply)).now_or_never();
        match handed {
            Some(Ok(())) => Ok(receiver),
            Some(Err(fatal)) => Err(self.stopped(&fatal.to_string())),
            None => Err(self.stopped("Raft does not take proposals: it has ended, or its queue is full")),
        }
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

    /// Suspends until an entry at or above `index` is applied here, or the group stops or closes.
    pub fn wait_applied(&self, index: Index) -> impl Future<Output = ()> + 'static {
        let group = self.clone();
        async move {
            loop {
                let changed = group.inner.shared.changed.notified();
                if group.applied_end() > index || group.inner.state.closing.get() || group.fault().is_some() {
                    return;
                }
                changed.await;
            }
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

    /// Whether this node leads and has applied the entry with which its term begins: it takes proposals.
    pub fn leads(&self) -> bool {
        let (_, term) = self.leader();
        self.inner.state.leading.get() && self.inner.shared.applied().is_some_and(|applied| applied.term == term)
    }

    /// Suspends until leader, term, membership, what is applied or `leads` may have changed since this was called, or the group
    /// stops or closes.
    pub fn wait_changed(&self) -> impl Future<Output = ()> + 'static {
        let changed = self.inner.shared.changed.notified();
        async move { changed.await }
    }

    /// Retention: lets the log forget everything up to the largest checkpoint at or below `index`; returns when it has.
    ///
    /// # Errors
    /// `Stopped`, when the group does so before that.
    pub async fn purge_to(&self, index: Index) -> Result<(), GroupError> {
        let Inner { raft, log, shared, state, purging, .. } = &*self.inner;
        let _one = purging.lock().await;
        let Some(boundary) = shared.set_boundary(log, index).await.map_err(unusable)? else { return Ok(()) };
        raft.trigger().snapshot().await.map_err(|error| self.stopped(&error.to_string()))?;
        loop {
            let changed = shared.changed.notified();
            if let Some(cause) = self.fault() {
                return Err(GroupError::Stopped { cause, maybe_written: true });
            }
            if log.purged().is_some_and(|purged| purged.index >= boundary) {
                return Ok(());
            }
            if state.closing.get() {
                return Err(unusable("the group is closing".into()));
            }
            // Also when openraft has a newer snapshot than ours and would not purge to it by itself.
            raft.trigger().purge_log(boundary.0).await.map_err(|error| self.stopped(&error.to_string()))?;
            changed.await;
        }
    }

    /// The error that stopped this replica, if one did.
    pub fn fault(&self) -> Option<String> {
        let Inner { log, shared, state, .. } = &*self.inner;
        if let Some(error) = log.fault() {
            return Some(error.to_string());
        }
        if let Some(fault) = &*state.fault.borrow() {
            return Some(fault.clone());
        }
        let gone = shared.machine_gone.get() && (shared.applying.get() || !state.closing.get());
        gone.then(|| "the state machine ended early; restart the node, and report its log".to_string())
    }

    /// Stops Raft, keeps a checkpoint at the last applied entry, closes the log cleanly. A second call returns at once.
    ///
    /// # Errors
    /// `Stopped`, when this replica had stopped, or its last writes fail; nothing acknowledged is lost by it.
    pub async fn close(&self) -> Result<(), GroupError> {
        let Inner { raft, log, shared, state, .. } = &*self.inner;
        if state.closing.replace(true) {
            return Ok(());
        }
        shared.changed.notify_all();
        raft.shutdown().await.map_err(|error| self.stopped(&error.to_string()))?;
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

    /// Refused before Raft had it.
    fn stopped(&self, cause: &str) -> GroupError {
        GroupError::Stopped { cause: self.fault().unwrap_or_else(|| cause.to_string()), maybe_written: false }
    }

    /// Lost after Raft had it.
    fn stopped_late(&self, cause: &str) -> GroupError {
        GroupError::Stopped { cause: self.fault().unwrap_or_else(|| cause.to_string()), maybe_written: true }
    }
}

/// What openraft answers a proposal.
type Answer<E, M> = channel::OneshotReceiver<ClientWriteResult<TypeConfig<E, M>>>;

impl<E: Env, M: Machine> Inner<E, M> {
    async fn build(
        log: Log<E>,
        shared: Rc<Shared<M>>,
        place: Place,
        peers: Peers<E>,
    ) -> Result<Inner<E, M>, GroupError> {
        let headers_only = Rc::new(Cell::new(true));
        let store = Store::new(log.clone(), shared.clone(), headers_only.clone());
        let machine = StateMachine::new(log.clone(), shared.clone());
        let config = config().map_err(unusable)?;
        let network = Network::new(peers.clone(), place.group, place.slot);
        let raft = Raft::build(place.node.0, config, network, store, machine)
            .await
            .map_err(|error| log.fault().map_or_else(|| unusable(error.to_string()), refused))?;
        headers_only.set(false);
        let purging = channel::Mutex::new(());
        Ok(Inner { place, peers, raft, log, shared, state: Rc::default(), purging })
    }
}

type ServerMetrics<E, M> = alias::WatchReceiverOf<TypeConfig<E, M>, RaftServerMetrics<TypeConfig<E, M>>>;
type Metrics<E, M> = alias::WatchReceiverOf<TypeConfig<E, M>, RaftMetrics<TypeConfig<E, M>>>;

/// The log's refusal as the group's: nothing was written.
fn refused(error: LogError) -> GroupError {
    match error {
        LogError::Full { .. } => GroupError::Full(error),
        error => unusable(error.to_string()),
    }
}

/// Nothing was written, and nothing will be.
fn unusable(cause: String) -> GroupError {
    GroupError::Stopped { cause, maybe_written: false }
}

fn not_leader<E: Env, M: Machine>(forward: &ForwardToLeader<TypeConfig<E, M>>) -> GroupError {
    GroupError::NotLeader { leader: forward.leader_id.map(NodeId) }
}

/// As measured (MEASURED.md); each of these was a trap or a cost.
fn config() -> Result<Arc<Config>, String> {
    let config = Config {
        cluster_name: "ringlog".into(),
        // Slow, so that an idle group costs little; a dead leader is noticed by the detector that all groups share
        // (`elections`). These are for a leader whose node lives, but which has stopped itself.
        heartbeat_interval: 1_000,
        election_timeout_min: 2_500,
        election_timeout_max: 3_000,
        max_payload_entries: 4_096,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        api_channel_size: Some(RAFT_QUEUE_MAX as u64),
        backoff: "5ms 10ms 20ms ...200ms".into(),
        // On (the default) it loses acknowledged writes: a restarted leader leads on in its old term, and gives log ids
        // that its followers have already to other data.
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| error.to_string())
}

/// Tells the handles what openraft becomes; ends with it.
async fn watch_raft<E: Env, M: Machine>(
    mut server: ServerMetrics<E, M>,
    metrics: Metrics<E, M>,
    log: Log<E>,
    shared: Rc<Shared<M>>,
    state: Rc<State>,
) {
    loop {
        {
            let now = server.borrow_and_update();
            state.leader.set((now.current_leader.map(NodeId), Term(now.vote.leader_id.term)));
            state.leading.set(now.state == ServerState::Leader);
        }
        shared.changed.notify_all();
        if server.changed().await.is_err() {
            break;
        }
    }
    state.leading.set(false);
    if !state.closing.get() && log.fault().is_none() {
        // A panic leaves no error behind.
        let cause = match &metrics.borrow_watched().running_state {
            Err(Fatal::Stopped) | Ok(()) => "Raft ended; restart the node, and report its log".to_string(),
            Err(fatal) => fatal.to_string(),
        };
        tracing::error!(%cause, "a replica has stopped");
        *state.fault.borrow_mut() = Some(cause);
    }
    state.ended.set(true);
    shared.changed.notify_all();
    shared.flushed.notify_all();
}
