//! openraft's state machine over a [`Machine`]: applies committed entries, keeps checkpoints, builds snapshots.
//!
//! The state lives in memory. A checkpoint of it is kept when the first entry of a segment is applied (the state before
//! that entry), in the background, and one at close; so a replay after a crash covers about one segment. A checkpoint
//! is never written for an entry that is not durable here: openraft would take the log for the one that has a hole.
//!
//! A snapshot is the checkpoint at the boundary up to which the log is about to be purged, and openraft purges
//! exactly to it. Without a boundary a snapshot is refused, because openraft would purge up to the last applied entry.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::{
    RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use prost::Message;

use super::{
    Applied, Machine,
    flush_times::FlushTimes,
    majority::Majority,
    store::{condemned, to_io},
    types::{self, Entry, Payload, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    env::{self, Env, channel::Notify},
    format::{
        entry::{EntryHeader, EntryKind, StoredEntry},
        state_files::Vote,
    },
    ids::{Index, LogId, NodeId, Offset, Term},
    limits::CHECKPOINTS_PENDING_MAX,
    log::{Log, LogError, LogPoint},
    proto::ringlog::state::v1,
};

/// What a group, its store and its state machine share; one thread, so cells do.
pub struct Shared<M> {
    machine: RefCell<M>,
    position: RefCell<Position>,
    /// As openraft last said; runs ahead of what is on disk.
    pub committed: Cell<Option<LogId>>,
    /// Who has acknowledged what.
    pub majority: Rc<Majority>,
    /// The snapshot that followers get: the checkpoint at the purge boundary, or a newer one; never replaced by an older one.
    snapshot: RefCell<Option<Checkpoint>>,
    /// What the next snapshot is to be: the checkpoint up to which the log will be purged.
    boundary: RefCell<Option<Checkpoint>>,
    /// Wakes who waits for applied entries, a purge, leadership or the end.
    pub changed: Notify,
    /// Wakes who waits for leadership, members or the end only.
    pub turned: Notify,
    /// The vote that is being saved, or was last: openraft does nothing, and says nothing, while it waits for the disk.
    pub vote_seen: Cell<Option<Vote>>,
    /// Wakes who tells the handles of it.
    pub vote_noticed: Notify,
    /// Proposals that openraft owes an answer.
    pub unanswered: Rc<Unanswered>,
    /// This node alone is a majority; else an entry is on its way to the others first, then to the own disk.
    pub only_voter: Cell<bool>,
    /// Wakes who purges: a command was applied, the state was replaced, or a checkpoint is kept up to which the log can go.
    pub purgeable: Notify,
    /// Wakes who waits for durable entries.
    pub flushed: Notify,
    /// When that was last, on the monotonic clock.
    pub flushed_us: Cell<u64>,
    /// How long appends take, here and elsewhere.
    pub flush_times: Rc<FlushTimes>,
    /// Bytes handed to Raft that are not in the log yet.
    pub handed_bytes: Rc<Cell<usize>>,
    /// openraft dropped the state machine: nothing will be applied any more.
    pub machine_gone: Cell<bool>,
    /// The machine is at work: if it stays so when the machine is gone, it has panicked.
    pub applying: Cell<bool>,
    /// Checkpoints to be written, oldest first.
    pending: RefCell<VecDeque<Checkpoint>>,
    /// Whether a task writes them.
    pub saving: Cell<bool>,
    /// A snapshot that a leader has sent, and that is kept as a checkpoint before openraft has it.
    pub received: Cell<Option<LogId>>,
    /// Snapshots that a leader has sent, and that the state was replaced by.
    pub installed: Cell<u64>,
}

/// How far the machine is.
#[derive(Clone, Debug, Default)]
struct Position {
    applied: Option<LogId>,
    membership: StoredMembership,
    next_offset: Offset,
    chain: u64,
    timestamp_max_us: i64,
    /// Largest timestamp of an entry, if it is known.
    timestamp_us: Option<i64>,
}

/// A checkpoint, and the entry that it follows.
#[derive(Clone, Debug)]
struct Checkpoint {
    position: Position,
    bytes: Bytes,
}

impl<M: Machine> Shared<M> {
    /// A machine that has applied nothing.
    pub fn new(machine: M) -> Rc<Shared<M>> {
        Rc::new(Shared {
            machine: RefCell::new(machine),
            position: RefCell::default(),
            committed: Cell::new(None),
            majority: Rc::default(),
            snapshot: RefCell::new(None),
            boundary: RefCell::new(None),
            changed: Notify::new(),
            turned: Notify::new(),
            vote_seen: Cell::new(None),
            vote_noticed: Notify::new(),
            unanswered: Rc::default(),
            only_voter: Cell::new(false),
            purgeable: Notify::new(),
            flushed: Notify::new(),
            flushed_us: Cell::new(0),
            flush_times: Rc::default(),
            handed_bytes: Rc::default(),
            machine_gone: Cell::new(false),
            applying: Cell::new(false),
            pending: RefCell::default(),
            saving: Cell::new(false),
            received: Cell::new(None),
            installed: Cell::new(0),
        })
    }

    /// Looks at the machine.
    pub fn with_machine<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        look(&self.machine.borrow())
    }

    /// Last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.position.borrow().applied
    }

    /// Chain hash at the last applied entry.
    pub fn chain(&self) -> u64 {
        self.position.borrow().chain
    }

    /// First offset not applied.
    pub fn next_offset(&self) -> Offset {
        self.position.borrow().next_offset
    }

    /// Where the log goes on after `id`, if the machine or the snapshot is exactly there.
    pub fn point_after(&self, id: LogId) -> Option<LogPoint> {
        let place = |position: &Position| position.point().filter(|_| position.applied == Some(id));
        let snapshot = self.snapshot.borrow();
        place(&self.position.borrow()).or_else(|| snapshot.as_ref().and_then(|snapshot| place(&snapshot.position)))
    }

    /// Replaces the state by the newest whole checkpoint in `log`, and takes the one at the purged entry for the snapshot, or any
    /// newer one: what is damaged and not needed is given up.
    ///
    /// # Errors
    /// `Corrupt` when a checkpoint is needed, and none is whole; `Foreign` when one is not of this machine, or of another log;
    /// `Io`.
    pub async fn restore<E: Env>(&self, log: &Log<E>) -> Result<(), LogError> {
        let purged = log.purged();
        let Some(last) = log.last() else { return Ok(()) };
        let newest = load(log, last.index).await?;
        if let Some(checkpoint) = &newest {
            self.install(log, checkpoint).map_err(|what| not_usable(log, last.index, what))?;
        }
        let Some(purged) = purged else { return Ok(()) };
        if newest.as_ref().is_none_or(|checkpoint| checkpoint.position.applied < Some(purged)) {
            let what = format!("the log begins after entry {purged}, but no checkpoint of the state there is kept");
            return Err(LogError::Corrupt { file: log.checkpoint_path(purged.index), position: 0, what });
        }
        let at_purged =
            if log.checkpoints().contains(&purged.index) { load(log, purged.index).await } else { Ok(None) };
        *self.snapshot.borrow_mut() = match at_purged {
            Ok(Some(checkpoint)) if checkpoint.position.applied == Some(purged) => Some(checkpoint),
            // The newest one serves as well: it is at or after the log's start.
            Ok(_) => newest,
            Err(error @ (LogError::Corrupt { .. } | LogError::Foreign { .. })) => {
                log.give_up_checkpoint(purged.index, &error.to_string()).await;
                newest
            }
            Err(error) => {
                tracing::warn!(%error, "the checkpoint at the log's start is not used");
                newest
            }
        };
        Ok(())
    }

    /// Makes the next snapshot the newest checkpoint at or below `index`, and returns its index; `None` when the log
    /// keeps none that is whole, or is purged up to there already. Loaded now, since a snapshot that cannot be built ends the
    /// group.
    ///
    /// # Errors
    /// `Foreign`, `Io`.
    pub async fn set_boundary<E: Env>(&self, log: &Log<E>, index: Index) -> Result<Option<Index>, LogError> {
        let checkpoint = match load(log, index).await {
            Ok(Some(checkpoint)) => checkpoint,
            Ok(None) => return Ok(None),
            Err(error @ LogError::Corrupt { .. }) => {
                tracing::warn!(%error, "nothing is purged before a newer checkpoint is kept");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if log.purged() >= checkpoint.position.applied {
            return Ok(None);
        }
        let boundary = checkpoint.position.applied.map(|id| id.index);
        *self.boundary.borrow_mut() = Some(checkpoint);
        Ok(boundary)
    }

    /// The present state as a checkpoint; `None` when nothing was applied yet.
    fn checkpoint(&self) -> Option<Checkpoint> {
        let position = self.position.borrow().clone();
        position.applied?;
        let bytes = position.encode(self.machine.borrow().checkpoint());
        Some(Checkpoint { position, bytes })
    }

    /// The present state as a checkpoint, and the entry that it follows.
    pub fn present(&self) -> Option<(Index, Bytes)> {
        self.checkpoint()?.numbered()
    }

    /// The checkpoint that followers get, and the entry that it follows.
    pub fn snapshot(&self) -> Option<(Index, Bytes)> {
        self.snapshot.borrow().as_ref()?.numbered()
    }

    fn install<E: Env>(&self, log: &Log<E>, checkpoint: &Checkpoint) -> Result<(), String> {
        let decoded = v1::Checkpoint::decode(checkpoint.bytes.clone()).map_err(|error| error.to_string())?;
        self.machine.borrow_mut().restore(&decoded.machine)?;
        *self.position.borrow_mut() = checkpoint.position.clone();
        if let Some(timestamp_us) = checkpoint.position.timestamp_us {
            log.raise_timestamp(timestamp_us);
        }
        self.purgeable.notify_all();
        Ok(())
    }

    /// Applies one entry; the answer is `None` for entries that are not the machine's.
    fn apply(&self, entry: Entry) -> Option<Applied<M::Answer>> {
        let id = types::from_raft(&entry.log_id);
        let mut position = self.position.borrow_mut();
        assert!(position.applied < Some(id), "entries are applied in order: {id} after {:?}", position.applied);
        position.applied = Some(id);
        let stored = match entry.payload {
            Payload::Sealed { stored, membership } => {
                let committed = self.committed.get();
                assert!(committed >= Some(id), "only what is committed is applied: {id}, committed is {committed:?}");
                assert!(stored.header.id == id, "the log returned {} for {id}", stored.header.id);
                if let Some(membership) = membership {
                    position.membership = StoredMembership::new(Some(entry.log_id), *membership);
                }
                stored
            }
            // Only openraft's conformance suite applies what is not in a log.
            Payload::Membership(membership) => {
                position.membership = StoredMembership::new(Some(entry.log_id), membership);
                return None;
            }
            Payload::Blank | Payload::Open(_) | Payload::Received { .. } => return None,
        };
        position.note(&stored.header);
        drop(position);
        self.apply_stored(&stored)
    }

    fn apply_stored(&self, stored: &StoredEntry) -> Option<Applied<M::Answer>> {
        match stored.header.kind {
            EntryKind::Batch | EntryKind::Command | EntryKind::Void => {
                let answer = self.machine.borrow_mut().apply(stored);
                if stored.header.kind == EntryKind::Command {
                    self.purgeable.notify_all();
                }
                Some(Applied { header: stored.header, answer })
            }
            EntryKind::Blank | EntryKind::Membership => None,
        }
    }

    /// Keeps a checkpoint of the present state, durably, if its entry is durable here and none is kept there yet.
    ///
    /// # Errors
    /// Of the log.
    pub async fn save_now<E: Env>(&self, log: &Log<E>) -> Result<(), LogError> {
        let Some(checkpoint) = self.checkpoint() else { return Ok(()) };
        let Some(id) = checkpoint.position.applied else { return Ok(()) };
        if !is_flushed(log, id) || log.checkpoints().contains(&id.index) {
            return Ok(());
        }
        log.save_checkpoint(id.index, checkpoint.bytes).await
    }
}

impl Position {
    fn note(&mut self, header: &EntryHeader) {
        assert!(header.base_offset == self.next_offset, "offsets are dense: {header:?} at {}", self.next_offset);
        self.next_offset = header.end_offset();
        self.chain = header.chain;
        self.timestamp_max_us = header.timestamp_max_us;
        self.timestamp_us = self.timestamp_us.max(Some(header.timestamp_us));
    }

    /// Where the log goes on; `None` before the first entry.
    fn point(&self) -> Option<LogPoint> {
        self.applied.map(|id| LogPoint {
            next: id.index.next(),
            term: id.term,
            offset: self.next_offset,
            chain: self.chain,
            timestamp_max_us: self.timestamp_max_us,
        })
    }

    fn encode(&self, machine: Bytes) -> Bytes {
        let id = |id: LogId| v1::LogId { term: id.term.0, index: id.index.0 };
        let checkpoint = v1::Checkpoint {
            last_applied: self.applied.map(id),
            membership_log_id: self.membership.log_id().as_ref().map(|raft| id(types::from_raft(raft))),
            membership: Some(types::encode_membership(self.membership.membership())),
            machine,
            next_offset: self.next_offset.0,
            chain: self.chain,
            timestamp_max_us: self.timestamp_max_us,
            timestamp_us: self.timestamp_us,
        };
        checkpoint.encode_to_vec().into()
    }
}

impl Checkpoint {
    /// The entry that it follows, and its content.
    fn numbered(&self) -> Option<(Index, Bytes)> {
        Some((self.position.applied?.index, self.bytes.clone()))
    }

    fn decode(bytes: Bytes) -> Result<Checkpoint, String> {
        let decoded = v1::Checkpoint::decode(bytes.clone()).map_err(|error| error.to_string())?;
        let id = |id: v1::LogId| LogId { term: Term(id.term), index: Index(id.index) };
        let applied = decoded.last_applied.map(id).ok_or("a checkpoint names its entry")?;
        let membership = types::decode_membership(&decoded.membership.unwrap_or_default())?;
        let membership_id = decoded.membership_log_id.map(|raft| types::to_raft(id(raft)));
        let position = Position {
            applied: Some(applied),
            membership: StoredMembership::new(membership_id, membership),
            next_offset: Offset(decoded.next_offset),
            chain: decoded.chain,
            timestamp_max_us: decoded.timestamp_max_us,
            timestamp_us: decoded.timestamp_us,
        };
        Ok(Checkpoint { position, bytes })
    }

    fn to_snapshot(&self) -> Snapshot {
        Snapshot {
            meta: SnapshotMeta {
                last_log_id: self.position.applied.map(types::to_raft),
                last_membership: self.position.membership.clone(),
            },
            snapshot: self.bytes.clone(),
        }
    }
}

/// The newest whole checkpoint at or below `index`, checked against the log where the log still holds its entry. One of another history
/// than the log's, beyond what is known to be committed, is a leader's snapshot that was kept, and before which the log had not been cut
/// yet: it is given up, and the leader sends it again.
async fn load<E: Env>(log: &Log<E>, index: Index) -> Result<Option<Checkpoint>, LogError> {
    loop {
        let Some((kept, bytes)) = log.load_checkpoint(index).await? else { return Ok(None) };
        let bad = |what: String| not_usable(log, kept, what);
        let checkpoint = Checkpoint::decode(bytes).map_err(bad)?;
        let applied = checkpoint.position.applied.ok_or_else(|| bad("it names no entry".into()))?;
        if applied.index != kept {
            return Err(bad(format!("it is the state at {applied}")));
        }
        if kept < log.first_index() {
            return Ok(Some(checkpoint));
        }
        let entries = log.read(kept, kept.next(), 0).await.inspect_err(|error| drop(condemned(log, error.clone())))?;
        let header = entries.first().map(|entry| entry.header).ok_or_else(|| bad("its entry is gone".into()))?;
        if header.id == applied && header.chain == checkpoint.position.chain {
            return Ok(Some(checkpoint));
        }
        let what = format!("the log holds {} with another history there", header.id);
        if log.hard_state().committed.is_some_and(|committed| committed.index >= kept) {
            return Err(bad(what));
        }
        log.give_up_checkpoint(kept, &what).await;
    }
}

/// A checkpoint that is whole, and of no use here.
fn not_usable<E: Env>(log: &Log<E>, index: Index, what: String) -> LogError {
    LogError::Foreign { file: log.checkpoint_path(index), what }
}

/// Where a log goes on after a checkpoint.
///
/// # Errors
/// In words, when it is none.
pub fn place_of(checkpoint: &Bytes) -> Result<LogPoint, String> {
    Ok(Checkpoint::decode(checkpoint.clone())?.position.point().ok_or("a checkpoint names its entry")?)
}

fn is_flushed<E: Env>(log: &Log<E>, id: LogId) -> bool {
    let reaches = |end: Option<LogId>| end.is_some_and(|end| end.index >= id.index);
    reaches(log.flushed()) || reaches(log.purged())
}

/// The checkpoint that a snapshot's data is, and its entry.
fn checkpoint_of(meta: &SnapshotMeta, data: Bytes) -> Result<(Checkpoint, LogId), String> {
    let checkpoint = Checkpoint::decode(data)?;
    let id = checkpoint.position.applied.ok_or("a checkpoint names its entry")?;
    if meta.last_log_id.as_ref().map(types::from_raft) != Some(id) {
        return Err(format!("the snapshot is the state at {id}, not at {:?}", meta.last_log_id));
    }
    Ok((checkpoint, id))
}

/// Whether a snapshot from a peer is one; the machine's part is not looked at.
///
/// # Errors
/// In words, when it is none: installing it would end this replica.
pub fn check_snapshot(meta: &SnapshotMeta, data: &Bytes) -> Result<(), String> {
    checkpoint_of(meta, data.clone()).map(drop)
}

/// Proposals that have no answer yet.
#[derive(Default)]
pub struct Unanswered {
    /// How many.
    pub count: Cell<u64>,
    /// Told when there is none any more.
    pub none: Notify,
}

/// What openraft owns and calls.
pub struct StateMachine<E: Env, M: Machine> {
    log: Log<E>,
    shared: Rc<Shared<M>>,
    me: NodeId,
}

impl<E: Env, M: Machine> StateMachine<E, M> {
    /// The state machine of `shared` on the node `me`, whose checkpoints are kept in `log`.
    pub fn new(log: Log<E>, shared: Rc<Shared<M>>, me: NodeId) -> StateMachine<E, M> {
        StateMachine { log, shared, me }
    }

    /// # Panics
    /// When this node leads, and what it is about to acknowledge is not on a majority's disks.
    fn check_majority(&self, id: LogId) {
        let position = self.shared.position.borrow();
        let Some(voters) = position.membership.membership().get_joint_config().last() else { return };
        let flushed = self.log.flushed();
        let has = self.shared.majority.has(self.me, id, flushed, voters);
        assert!(has, "what is acknowledged is on a majority's disks: {id} of {voters:?}, here {flushed:?}");
    }

    /// Has the state before the first entry of a segment written, by a task: `apply` does not wait for a disk.
    fn keep_checkpoint(&self) {
        let Some(checkpoint) = self.shared.checkpoint() else { return };
        let kept = checkpoint.position.applied.is_some_and(|id| self.log.checkpoints().contains(&id.index));
        if kept {
            return;
        }
        let mut pending = self.shared.pending.borrow_mut();
        if pending.len() == CHECKPOINTS_PENDING_MAX {
            // A replay gets longer by a segment, and retention coarser: both harmless.
            pending.pop_front();
        }
        pending.push_back(checkpoint);
        drop(pending);
        if !self.shared.saving.replace(true) {
            env::spawn::<E>(save_pending(self.log.clone(), self.shared.clone()));
        }
    }
}

/// Writes the checkpoints that are to be written, each when its entry is durable here.
async fn save_pending<E: Env, M: Machine>(log: Log<E>, shared: Rc<Shared<M>>) {
    loop {
        let next = shared.pending.borrow_mut().pop_front();
        let Some(checkpoint) = next else { break };
        let id = checkpoint.position.applied.expect("only the state after an entry is kept");
        if !wait_flushed(&log, &shared, id).await {
            break;
        }
        match log.save_checkpoint(id.index, checkpoint.bytes).await {
            Ok(()) => shared.purgeable.notify_all(),
            Err(error) => {
                tracing::warn!(index = id.index.0, %error, "a checkpoint could not be kept; a replay would be longer");
            }
        }
    }
    shared.saving.set(false);
    shared.changed.notify_all();
}

/// Waits until `id` is durable here: a leader may commit what its own disk does not have yet. False when the group ends
/// before.
async fn wait_flushed<E: Env, M: Machine>(log: &Log<E>, shared: &Shared<M>, id: LogId) -> bool {
    loop {
        let notified = shared.flushed.notified();
        if log.fault().is_some() || shared.machine_gone.get() {
            return false;
        }
        if is_flushed(log, id) {
            return true;
        }
        notified.await;
    }
}

impl<E: Env, M: Machine> Drop for StateMachine<E, M> {
    fn drop(&mut self) {
        self.shared.machine_gone.set(true);
        self.shared.flushed.notify_all();
        self.shared.changed.notify_all();
    }
}

impl<E: Env, M: Machine> RaftStateMachine<TypeConfig<E, M>> for StateMachine<E, M> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder<M>;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let position = self.shared.position.borrow();
        Ok((position.applied.map(types::to_raft), position.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig<E, M>>, io::Error>> + Unpin,
    {
        let term = self.shared.applied().map(|applied| applied.term);
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if self.log.is_segment_first(Index(entry.log_id.index)) {
                self.keep_checkpoint();
            }
            self.shared.applying.set(true);
            let id = types::from_raft(&entry.log_id);
            let applied = self.shared.apply(entry);
            if responder.is_some() {
                self.check_majority(id);
            }
            self.shared.applying.set(false);
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        self.shared.changed.notify_all();
        if self.shared.applied().map(|applied| applied.term) != term {
            // The leader of this term takes proposals from now on.
            self.shared.turned.notify_all();
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Self::SnapshotBuilder> {
        let boundary = self.shared.boundary.take();
        // Never at the last applied entry unless openraft insists: it would purge the log up to there.
        if boundary.is_none() && !force {
            return None;
        }
        Some(SnapshotBuilder { shared: self.shared.clone(), checkpoint: boundary.or_else(|| self.shared.checkpoint()) })
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        SnapshotBuilder { shared: self.shared.clone(), checkpoint: self.shared.boundary.take() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let (checkpoint, id) = checkpoint_of(meta, snapshot).map_err(io::Error::other)?;
        // Before the log goes on after it: a start in between finds the old state, which is whole.
        let is_kept = self.shared.received.take() == Some(id) && self.log.checkpoints().contains(&id.index);
        if !is_kept {
            self.log.save_checkpoint(id.index, checkpoint.bytes.clone()).await.map_err(to_io)?;
        }
        let place = checkpoint.position.point().ok_or_else(|| io::Error::other("a checkpoint names its entry"))?;
        if self.log.end().next < place.next {
            // What a shorter log holds may be of another history: it goes before the state says that all up to there is committed,
            // or readers would be given it. (openraft purges it only when the state is installed.)
            self.log.purge(place).await.map_err(to_io)?;
            self.shared.flushed.notify_all();
        }
        self.shared.install(&self.log, &checkpoint).map_err(io::Error::other)?;
        *self.shared.snapshot.borrow_mut() = Some(checkpoint);
        self.shared.installed.set(self.shared.installed.get() + 1);
        self.shared.changed.notify_all();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.shared.snapshot.borrow().as_ref().map(Checkpoint::to_snapshot))
    }
}

/// Hands out the snapshot that was prepared.
pub struct SnapshotBuilder<M> {
    shared: Rc<Shared<M>>,
    checkpoint: Option<Checkpoint>,
}

impl<E: Env, M: Machine> RaftSnapshotBuilder<TypeConfig<E, M>> for SnapshotBuilder<M> {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let Some(checkpoint) = self.checkpoint.take() else {
            // Of a machine that has applied nothing. Not ours to meet: `restore` refuses a log that lacks its checkpoint.
            return Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: Bytes::new() });
        };
        let snapshot = checkpoint.to_snapshot();
        let present = &mut *self.shared.snapshot.borrow_mut();
        // A leader's newer one may have come since this was prepared, and the log begins behind that.
        if present.as_ref().is_none_or(|present| present.position.applied < checkpoint.position.applied) {
            *present = Some(checkpoint);
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checkpoints of any bytes, from a disk or a leader (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let nodes = [1, 2].map(|id| (id, types::Node { peer_address: format!("h:{id}") }));
        let membership =
            types::Membership::new(vec![[1, 2].into(), [1].into()], std::collections::BTreeMap::from(nodes));
        let id = LogId { term: Term(3), index: Index(9) };
        let position = Position {
            applied: Some(id),
            membership: StoredMembership::new(Some(types::to_raft(id)), membership.unwrap()),
            next_offset: Offset(7),
            chain: 5,
            timestamp_max_us: -1,
            timestamp_us: Some(-2),
        };
        let bare = Position { membership: StoredMembership::default(), timestamp_us: None, ..position.clone() };
        let corpus = [position.encode(Bytes::from_static(b"machine")), bare.encode(Bytes::new())];
        crate::fuzz::Target::new("raft::machine::tests::fuzz", corpus, |bytes| {
            let checkpoint = Checkpoint::decode(Bytes::copy_from_slice(bytes)).ok()?;
            let meta = checkpoint.to_snapshot().meta;
            assert_eq!(check_snapshot(&meta, &checkpoint.bytes), Ok(()));
            let machine = v1::Checkpoint::decode(checkpoint.bytes).unwrap().machine;
            Some(checkpoint.position.encode(machine))
        })
        .encode(|bytes| bytes.to_vec())
        .run();
    }
}
