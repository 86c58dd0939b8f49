//! Proposals on their way: handed to openraft in the order of the calls, and what its answers mean.
//!
//! A leader that no majority has answered lately (a fresh one, or one whose lease has lapsed) would refuse; its proposals wait
//! here, in order, while it asks for answers. If none come for a whole lease, they are refused, and nothing was written.
//! What has a place in the log already when the majority is lost waits for `RAFT_QUORUM_WAIT`: the others may have another
//! leader, and nobody can tell here whether the entry will be committed.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use openraft::{
    errors::{ClientWriteError, ForwardToLeader},
    raft::ClientWriteResult,
    rt::{AsyncRuntime, Instant, WatchReceiver},
};

use super::{
    Applied, Group, GroupError, Inner, Machine, Proposal, ProposalKind, refused,
    types::{Handed, Reply, TypeConfig},
    unusable,
    watch::data_changed,
};
use crate::{
    env::{self, Env, channel},
    format::entry::ENTRY_HEADER_BYTES,
    ids::{LogId, NodeId},
    limits::{RAFT_QUEUE_MAX, RAFT_QUORUM_WAIT},
};

/// What openraft answers a proposal.
type Answer<E, M> = ClientWriteResult<TypeConfig<E, M>>;

/// A point in time of the runtime.
type Now<E> = <<E as Env>::Runtime as AsyncRuntime>::Instant;

/// A proposal that waits for its leader to be one.
pub struct Waiting<E: Env, M: Machine> {
    handed: Handed,
    reply: Reply<Answer<E, M>>,
}

/// How often a leader without a majority's answer asks for one.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl<E: Env, M: Machine> Group<E, M> {
    /// Proposes at once (calls made one after the other keep their order); resolves when it is committed and applied here.
    /// Dropping the future does not take it back.
    pub fn propose(
        &self,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Applied<M::Answer>, GroupError>> + 'static {
        let handed = self.accept(proposal);
        let proposed = Now::<E>::now();
        let group = self.clone();
        async move {
            let (receiver, placed) = handed?;
            let answer = match select(receiver, pin!(group.quorum_lost(proposed))).await {
                Either::Left((answer, _)) => answer,
                Either::Right(((), _)) => return Err(GroupError::Deposed { leader: None }),
            };
            match answer {
                Ok(Ok(response)) => match response.data {
                    Some(applied) => Ok(applied),
                    None => Err(group.stopped_late("the machine gave no answer")),
                },
                // Looked up in openraft's source: each of these comes before the entry gets a place in the log.
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                    Err(GroupError::NotLeader { leader: forward.leader_id.map(NodeId) })
                }
                Ok(Err(ClientWriteError::LogEntryDiscarded(forward))) => {
                    Err(group.fate(placed.get(), forward.leader_id.map(NodeId)).await)
                }
                Ok(Err(error)) => Err(group.stopped_late(&error.to_string())),
                // openraft drops what it owes when it ends.
                Err(channel::Closed) => Err(group.stopped_late("the group was closed")),
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "an answer to come and a place to come")]
    fn accept(
        &self,
        proposal: Proposal,
    ) -> Result<(channel::OneshotReceiver<Answer<E, M>>, Rc<Cell<Option<LogId>>>), GroupError> {
        let Inner { log, shared, state, .. } = &*self.inner;
        if let Some(cause) = self.fault() {
            return Err(GroupError::Stopped { cause, maybe_written: false });
        }
        if state.closing.get() {
            return Err(unusable("the group is closing".into()));
        }
        assert!(proposal.buffer.len() >= ENTRY_HEADER_BYTES, "a proposal has room for its header");
        let bytes = shared.handed_bytes.get() + proposal.buffer.padded_len();
        match proposal.kind {
            ProposalKind::Batch => log.has_room(bytes),
            ProposalKind::Command => log.has_room_for_command(bytes),
        }
        .map_err(refused)?;
        if state.transferring.get() {
            return Err(GroupError::NotLeader { leader: None });
        }
        if !state.leading.get() {
            return Err(GroupError::NotLeader { leader: self.leader().0 });
        }
        self.inner.network.peers().pace().note_fresh(proposal.buffer.len(), E::monotonic_us());
        let handed = Handed::new(proposal, &shared.handed_bytes, log.memory());
        let placed = handed.placed();
        let (sender, receiver) = channel::oneshot();
        let reply = Reply::new(sender, &shared.unanswered);
        let waits = self.inner.gate.running.get() || !self.inner.is_confirmed(self.inner.timing.lease() / 4);
        if !waits {
            self.hand_to_raft(handed, reply)?;
            return Ok((receiver, placed));
        }
        let mut queue = self.inner.gate.queue.borrow_mut();
        if queue.len() >= RAFT_QUEUE_MAX {
            return Err(GroupError::NotLeader { leader: None });
        }
        queue.push_back(Waiting { handed, reply });
        if !self.inner.gate.running.replace(true) {
            env::spawn::<E>(open_gate(self.clone()));
        }
        Ok((receiver, placed))
    }

    /// Resolves when no majority has answered this leader for `RAFT_QUORUM_WAIT`, or it leads no longer; not before that time
    /// has passed since `proposed`, which may be long before this is polled.
    async fn quorum_lost(&self, proposed: Now<E>) {
        let mut until = proposed + RAFT_QUORUM_WAIT;
        loop {
            E::Runtime::sleep_until(until).await;
            let left = match self.inner.unconfirmed_for() {
                Some(unconfirmed) if unconfirmed < RAFT_QUORUM_WAIT => RAFT_QUORUM_WAIT - unconfirmed,
                Some(_) => return,
                None => RAFT_QUORUM_WAIT,
            };
            until = Now::<E>::now() + left;
        }
    }

    fn hand_to_raft(&self, handed: Handed, reply: Reply<Answer<E, M>>) -> Result<(), GroupError> {
        // Its first poll hands the proposal over. One that suspends has not: its queue is full, or openraft is ending.
        match self.inner.raft.client_write_ff(handed, Some(reply)).now_or_never() {
            Some(Ok(())) => Ok(()),
            Some(Err(fatal)) => Err(self.stopped(&fatal.to_string())),
            None => Err(GroupError::NotLeader { leader: None }),
        }
    }

    /// What has become of an entry that another leader's log has replaced here: if something else was committed in its
    /// place, it will never appear.
    pub(super) async fn fate(&self, placed: Option<LogId>, leader: Option<NodeId>) -> GroupError {
        // It never had a place in this log, where the others would have read it.
        let Some(id) = placed else { return GroupError::NotLeader { leader } };
        let applied = E::Runtime::timeout(self.inner.timing.lease(), self.wait_applied(id.index)).await;
        let leader = self.leader().0.or(leader);
        if !matches!(applied, Ok(true)) {
            return GroupError::Deposed { leader };
        }
        match self.inner.log.log_id(id.index).await {
            Ok(committed) if committed.term != id.term => GroupError::NotLeader { leader },
            Ok(_) | Err(_) => GroupError::Deposed { leader },
        }
    }
}

/// Where proposals wait.
pub struct Gate<E: Env, M: Machine> {
    queue: RefCell<VecDeque<Waiting<E, M>>>,
    /// `open_gate` is at work: whoever comes now waits behind the others.
    running: Cell<bool>,
}

impl<E: Env, M: Machine> Default for Gate<E, M> {
    fn default() -> Self {
        Gate { queue: RefCell::default(), running: Cell::new(false) }
    }
}

impl<E: Env, M: Machine> Inner<E, M> {
    /// How long ago a majority has answered this leader (for ever, if it leads no longer); `None` when it needs no others.
    fn unconfirmed_for(&self) -> Option<Duration> {
        if self.shared.only_voter.get() {
            return None;
        }
        if !self.state.leading.get() {
            return Some(Duration::MAX);
        }
        let acked = self.data.borrow_watched().last_quorum_acked.map(|acked| acked.into_inner())?;
        Some(<E::Runtime as AsyncRuntime>::Instant::now().saturating_duration_since(acked))
    }

    /// Whether a majority has answered this leader so lately that openraft takes proposals, for at least `spare` longer.
    pub(super) fn is_confirmed(&self, spare: Duration) -> bool {
        if self.shared.only_voter.get() {
            return true;
        }
        let acked = self.data.borrow_watched().last_quorum_acked.map(|acked| acked.into_inner());
        acked.is_some_and(|acked| <E::Runtime as AsyncRuntime>::Instant::now() + spare < acked + self.timing.lease())
    }
}

/// Waits until a majority has answered, then hands over what waits, in order.
async fn open_gate<E: Env, M: Machine>(group: Group<E, M>) {
    let inner = group.inner.clone();
    let mut data = inner.data.clone();
    let deadline = <E::Runtime as AsyncRuntime>::Instant::now() + inner.timing.lease();
    let refusal = loop {
        let turned = inner.shared.turned.notified();
        data.borrow_and_update();
        if !inner.state.leading.get() || inner.state.transferring.get() || group.unable().is_err() {
            break Some(inner.state.leader.get().0);
        }
        if inner.is_confirmed(inner.timing.lease() / 4) {
            break None;
        }
        if <E::Runtime as AsyncRuntime>::Instant::now() >= deadline {
            break Some(None);
        }
        if inner.raft.trigger().heartbeat().await.is_err() {
            break Some(None);
        }
        let acked = pin!(data_changed::<E, M>(&mut data));
        drop(E::Runtime::timeout(ASK_AGAIN, select(acked, turned)).await);
    };
    // Who comes meanwhile comes behind: the gate runs until its queue is empty.
    loop {
        let next = inner.gate.queue.borrow_mut().pop_front();
        let Some(Waiting { handed, reply }) = next else { break };
        match refusal {
            // Suspends while openraft's queue is full. If openraft has ended, who proposed hears that from the reply, dropped.
            None => drop(inner.raft.client_write_ff(handed, Some(reply)).await),
            Some(leader) => {
                let leader = leader.filter(|leader| *leader != inner.node).map(|node| node.0);
                let forward = ForwardToLeader { leader_id: leader, ..ForwardToLeader::empty() };
                reply.send(Err(ClientWriteError::ForwardToLeader(forward)));
            }
        }
    }
    inner.gate.running.set(false);
}
