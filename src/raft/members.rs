//! Who belongs to a group, how far each member is, who leads next, and up to where a read must wait to be linearizable.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers,
    errors::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError},
    raft::ReadPolicy,
    rt::{AsyncRuntime, WatchReceiver},
};

use super::{
    Group, GroupError, Machine, Members, Progress, not_leader,
    types::{self, Node},
};
use crate::{
    env::{self, Env, net::Priority},
    format::peer::{Envelope, Message},
    ids::{Index, LogId, NodeId},
    peer::{
        Destination,
        frame::{Frame, FrameKind},
    },
};

/// How long one question to a leader may take before it is asked again, maybe of another.
const ASK_MAX: Duration = Duration::from_millis(500);

/// Pause between two looks for a leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How far a learner may be behind when it is made a voter, in entries: it has those within a heartbeat.
const CAUGHT_UP_ENTRIES: u64 = 256;

/// How often a learner that catches up is looked at.
const CATCH_UP_LOOK: Duration = Duration::from_millis(50);

impl<E: Env, M: Machine> Group<E, M> {
    /// Who belongs to it, as known here.
    pub fn members(&self) -> Members {
        let metrics = self.inner.raft.server_metrics();
        let now = metrics.borrow_watched();
        let (effective, committed) = (&now.membership_config, &now.committed_membership_config);
        let membership = effective.membership();
        let ids = |ids: &mut dyn Iterator<Item = u64>| ids.map(NodeId).collect::<BTreeSet<_>>();
        Members {
            voters: ids(&mut membership.voter_ids()),
            learners: ids(&mut membership.learner_ids()),
            changing: membership.get_joint_config().len() > 1 || effective.log_id() != committed.log_id(),
        }
    }

    /// How far each follower is; empty unless this node leads.
    pub fn progress(&self) -> Vec<Progress> {
        let me = self.inner.place.node.0;
        let metrics = self.inner.raft.data_metrics();
        let now = metrics.borrow_watched();
        let followers = now.replication.iter().flatten().filter(|(node, _)| **node != me);
        let progress = followers
            .map(|(node, matched)| Progress { node: NodeId(*node), matched: matched.as_ref().map(types::from_raft) });
        progress.collect()
    }

    /// Chain hash at the last applied entry: equal on replicas that have applied the same.
    pub fn applied_chain(&self) -> u64 {
        self.inner.shared.chain()
    }

    /// ReadIndex (Raft dissertation 6.4): when it returns, everything that was committed anywhere before the call is applied
    /// here. Asks the leader, wherever it is; waits through an election as long as `within`.
    ///
    /// # Errors
    /// `NotLeader` when no leader confirmed itself in time; `Stopped`.
    pub async fn linearize(&self, within: Duration) -> Result<(), GroupError> {
        let started_us = E::monotonic_us();
        let left = || within.saturating_sub(Duration::from_micros(E::monotonic_us().saturating_sub(started_us)));
        loop {
            if let Some(cause) = self.fault() {
                return Err(GroupError::Stopped { cause, maybe_written: false });
            }
            let leader = self.leader().0;
            let read_index = match leader {
                Some(leader) if leader == self.inner.place.node => self.read_index().await,
                Some(leader) => self.ask_read_index(leader, left().min(ASK_MAX)).await,
                None => None,
            };
            if let Some(read_index) = read_index {
                let applied = self.wait_applied(read_index.index);
                return match E::Runtime::timeout(left(), applied).await {
                    Ok(()) if self.applied_end() > read_index.index => Ok(()),
                    Ok(()) | Err(_) => Err(GroupError::NotLeader { leader }),
                };
            }
            if left().is_zero() || self.inner.state.closing.get() {
                return Err(GroupError::NotLeader { leader });
            }
            env::sleep::<E>(LOOK_INTERVAL).await;
        }
    }

    /// How far a linearizable read has to wait, if this node leads and a majority says so now.
    pub(super) async fn read_index(&self) -> Option<LogId> {
        match self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Some(types::from_raft(linearizer.read_log_id().log_id())),
            Err(RaftError::APIError(
                LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
            )) => None,
            Err(error) => {
                tracing::debug!(%error, "no read index");
                None
            }
        }
    }

    async fn ask_read_index(&self, leader: NodeId, within: Duration) -> Option<LogId> {
        let request = Envelope { group: self.inner.place.group, message: Message::ReadIndex };
        let frame = Frame { kind: FrameKind::Raft, envelope: request.encode(), parts: Vec::new() };
        let to = Destination { node: leader, slot: self.inner.place.slot };
        let answer = self.inner.peers.call(to, frame, Priority::Urgent, within).await.ok()?;
        match Envelope::decode(&answer.envelope).ok()?.message {
            Message::ReadIndexAnswer { log_id } => Some(log_id),
            _ => None,
        }
    }

    /// Has `to`, or the most advanced other voter that is alive, lead instead of this node; returns when this node does not lead
    /// any more, at once if it does not. Proposals in flight land first; proposals made meanwhile are `NotLeader`.
    ///
    /// # Errors
    /// `NotLeader` with no leader known when nobody could take over within `within`: this node leads on.
    pub async fn transfer(&self, to: Option<NodeId>, within: Duration) -> Result<(), GroupError> {
        let started_us = E::monotonic_us();
        let left = || within.saturating_sub(Duration::from_micros(E::monotonic_us().saturating_sub(started_us)));
        if !self.inner.state.leading.get() {
            return Ok(());
        }
        let nobody = GroupError::NotLeader { leader: None };
        let Some(to) = to.or_else(|| self.heir()) else { return Err(nobody) };
        let _handing_over = HandingOver::begin(&self.inner.state);
        // What is in flight lands first, so that nobody has to wonder what became of it.
        while self.inner.state.proposed.get() > 0 && !left().is_zero() {
            let changed = self.inner.shared.changed.notified();
            if self.inner.state.proposed.get() == 0 {
                break;
            }
            drop(E::Runtime::timeout(left().min(ASK_MAX), changed).await);
        }
        loop {
            let changed = self.inner.shared.changed.notified();
            if !self.inner.state.leading.get() {
                return Ok(());
            }
            if left().is_zero() {
                return Err(nobody);
            }
            let triggered = self.inner.raft.trigger().transfer_leader(to.0).await;
            triggered.map_err(|error| self.stopped(&error.to_string()))?;
            drop(E::Runtime::timeout(left().min(ASK_MAX), changed).await);
        }
    }

    /// The most advanced other voter that is alive.
    fn heir(&self) -> Option<NodeId> {
        let (voters, liveness) = (self.members().voters, self.inner.peers.liveness().clone());
        let candidates = self.progress().into_iter();
        let alive = candidates.filter(|one| voters.contains(&one.node) && liveness.is_alive(one.node));
        alive.max_by_key(|one| one.matched).map(|one| one.node)
    }

    /// Makes `voters` the members that vote: adds those that are missing as learners, waits until they have caught up, then changes
    /// by a joint configuration. Learners that were there stay. Safe to call again after any failure, by any later
    /// leader. Only the leader can.
    ///
    /// # Errors
    /// `NotLeader`; `Stopped`. What is under way goes on.
    pub async fn change_members(&self, voters: BTreeSet<NodeId>) -> Result<(), GroupError> {
        assert!(!voters.is_empty(), "a group has a voter");
        let present = self.members();
        let missing = voters.iter().filter(|node| !present.voters.contains(node));
        for node in missing.clone().filter(|node| !present.learners.contains(node)) {
            self.add_learner(*node).await?;
        }
        for node in missing {
            self.caught_up(*node).await?;
        }
        let change = ChangeMembers::ReplaceAllVoters(voters.iter().map(|node| node.0).collect());
        self.change(change).await
    }

    /// Waits until a learner has nearly everything: as a voter it must not keep commits waiting.
    async fn caught_up(&self, node: NodeId) -> Result<(), GroupError> {
        loop {
            if !self.inner.state.leading.get() {
                return Err(GroupError::NotLeader { leader: self.leader().0 });
            }
            if let Some(cause) = self.fault() {
                return Err(GroupError::Stopped { cause, maybe_written: false });
            }
            let end = self.inner.log.last().map_or(Index(0), |last| last.index.next());
            let matched = self.progress().into_iter().find(|one| one.node == node).and_then(|one| one.matched);
            if matched.is_some_and(|matched| matched.index.0 + CAUGHT_UP_ENTRIES >= end.0) {
                return Ok(());
            }
            env::sleep::<E>(CATCH_UP_LOOK).await;
        }
    }

    /// Adds a member without a vote, if it is none yet. Only the leader can.
    ///
    /// # Errors
    /// As `change_members`.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), GroupError> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node.0, Node::default())]))).await
    }

    /// Takes members out that do not vote (any more). Only the leader can.
    ///
    /// # Errors
    /// As `change_members`.
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), GroupError> {
        self.change(ChangeMembers::RemoveNodes(nodes.into_iter().map(|node| node.0).collect())).await
    }

    async fn change(&self, change: ChangeMembers<u64, Node>) -> Result<(), GroupError> {
        match self.inner.raft.change_membership(change, false).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward))) => {
                Err(GroupError::Deposed { leader: forward.leader_id.map(NodeId) })
            }
            // Another change is under way, or what is asked for is not to be had yet: the caller looks again.
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::LearnerNotFound(_)
                | ChangeMembershipError::EmptyMembership(_),
            ))) => Err(GroupError::NotLeader { leader: Some(self.inner.place.node) }),
            Err(error) => Err(self.stopped(&error.to_string())),
        }
    }
}

/// While it lives, proposals are refused.
struct HandingOver<'s>(&'s super::State);

impl<'s> HandingOver<'s> {
    fn begin(state: &'s super::State) -> HandingOver<'s> {
        state.handing_over.set(state.handing_over.get() + 1);
        HandingOver(state)
    }
}

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        self.0.handing_over.set(self.0.handing_over.get() - 1);
    }
}
