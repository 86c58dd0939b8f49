//! Who belongs to a group: as known here, and changed step by step.
//!
//! A change is a loop that compares what is wanted with what is in force, and does the next step: finish a change under
//! way, add a learner, wait until it has caught up, change the voters by a joint configuration. So it can be broken off
//! anywhere, and called again by any later leader.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use futures_util::future::select;
use openraft::{
    ChangeMembers, Precondition,
    errors::{ClientWriteError, RaftError},
    rt::{AsyncRuntime, WatchReceiver},
};

use super::{
    Group, GroupError, Inner, Machine, Members, Progress,
    types::{self, Node, StoredMembership, TypeConfig},
    watch::data_changed,
};
use crate::{
    env::Env,
    ids::{LogId, NodeId, is_most},
};

/// Who is this close behind has caught up, whatever time it takes.
const CLOSE_ENTRIES: u64 = 64;

/// Pause before a step is tried again that another change kept from being done.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What one step of a change wants.
type Change = ChangeMembers<u64, Node>;

pub(super) fn members_of(effective: &StoredMembership, committed: &StoredMembership) -> Members {
    let voters: BTreeSet<NodeId> = effective.voter_ids().map(NodeId).collect();
    let learners = effective.membership().learner_ids().map(NodeId).collect();
    let configurations = effective.membership().get_joint_config();
    let is_joint = configurations.len() > 1;
    let half = |voters: &BTreeSet<u64>| voters.iter().copied().map(NodeId).collect();
    let halves = if is_joint { configurations.iter().map(half).collect() } else { Vec::new() };
    Members { voters, learners, changing: is_joint || effective.log_id() != committed.log_id(), halves }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Who belongs to it, as known here.
    pub fn members(&self) -> Members {
        let server = self.inner.server.borrow_watched();
        members_of(&server.membership_config, &server.committed_membership_config)
    }

    /// How far each follower is; empty unless this node leads.
    pub fn progress(&self) -> Vec<Progress> {
        let data = self.inner.data.borrow_watched();
        let followers = data.replication.iter().flatten().filter(|(node, _)| **node != self.inner.node.0);
        followers
            .map(|(node, matched)| Progress { node: NodeId(*node), matched: matched.as_ref().map(types::from_raft) })
            .collect()
    }

    /// Makes `voters` the voters: adds those that are missing as learners, waits until they have caught up, then changes by
    /// a joint configuration. Who is no voter any more is no member any more; learners stay. Safe to call again after any
    /// failure, by any later leader. Only the leader can. Waits as long as it takes: for a learner that cannot be reached,
    /// and for new voters of whom most take no entries, for ever; dropping the future leaves what is under way to go on.
    ///
    /// # Errors
    /// `NotLeader`; `Stopped`. What is under way goes on.
    ///
    /// # Panics
    /// When `voters` is empty.
    pub async fn change_members(&self, voters: BTreeSet<NodeId>) -> Result<(), GroupError> {
        assert!(!voters.is_empty(), "a group has at least one voter");
        loop {
            self.finish_change().await?;
            let members = self.members();
            if members.voters == voters {
                return Ok(());
            }
            let missing = voters.iter().find(|node| !members.voters.contains(node) && !members.learners.contains(node));
            if let Some(missing) = missing {
                self.add_learner(*missing).await?;
                continue;
            }
            for learner in voters.difference(&members.voters) {
                self.wait_caught_up(*learner).await?;
            }
            self.wait_taken(&voters).await?;
            self.change(ChangeMembers::ReplaceAllVoters(voters.iter().map(|node| node.0).collect())).await?;
        }
    }

    /// Ends a change that is under way, also one that was broken off at a joint configuration, which stays in force until
    /// somebody does this. Only the leader can.
    ///
    /// # Errors
    /// As `change_members`.
    pub async fn finish_change(&self) -> Result<(), GroupError> {
        while self.members().changing {
            // Ends a joint configuration at its new half; harmless otherwise.
            self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await?;
        }
        Ok(())
    }

    /// Adds a member without a vote, if it is none yet. Only the leader can.
    ///
    /// # Errors
    /// As `change_members`.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), GroupError> {
        loop {
            let members = self.members();
            if members.voters.contains(&node) || members.learners.contains(&node) {
                return Ok(());
            }
            self.change(ChangeMembers::AddNodes(BTreeMap::from([(node.0, Node::default())]))).await?;
        }
    }

    /// Takes those of `nodes` out that are members without a vote. Only the leader can.
    ///
    /// # Errors
    /// As `change_members`.
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), GroupError> {
        loop {
            let gone: BTreeSet<u64> = self.members().learners.intersection(&nodes).map(|node| node.0).collect();
            if gone.is_empty() {
                return Ok(());
            }
            self.change(ChangeMembers::RemoveNodes(gone)).await?;
        }
    }

    /// One change of the members that are known here; returns when it is committed and known here, or could not be made now.
    /// The caller has looked at them without a suspension between.
    ///
    /// A leader that a committed change has removed leads on for a moment, until another is elected: it changes nothing.
    /// (openraft would let it, and panics when its debug assertions are on.)
    async fn change(&self, change: Change) -> Result<(), GroupError> {
        self.check_may_write()?;
        let raft = &self.inner.raft;
        let turned = self.inner.shared.turned.notified();
        // Not of others, that were made meanwhile.
        let last_membership_log_id = *self.inner.server.borrow_watched().membership_config.log_id();
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id };
        match raft.change_membership_if(change, false, [unchanged]).await {
            Ok(_) => {
                self.wait_settled().await;
                Ok(())
            }
            Err(RaftError::APIError(error)) => self.not_changed(error, turned).await,
            Err(RaftError::Fatal(fatal)) => Err(self.stopped_late(&fatal.to_string())),
        }
    }

    /// Whether this leader may write an entry of its own now.
    fn check_may_write(&self) -> Result<(), GroupError> {
        let Inner { log, state, .. } = &*self.inner;
        self.check_leads()?;
        if state.transferring.get() {
            return Err(GroupError::NotLeader { leader: self.leader().0 });
        }
        let members = self.members();
        if !members.changing && !members.voters.contains(&self.inner.node) {
            return Err(GroupError::NotLeader { leader: None });
        }
        log.has_room_for_command(crate::limits::BLOCK_BYTES).map_err(super::refused)
    }

    fn check_leads(&self) -> Result<(), GroupError> {
        self.unable().map_err(|cause| GroupError::Stopped { cause, maybe_written: false })?;
        match self.inner.state.leading.get() {
            true => Ok(()),
            false => Err(GroupError::NotLeader { leader: self.leader().0 }),
        }
    }

    async fn not_changed(
        &self,
        error: ClientWriteError<TypeConfig<E, M>>,
        turned: crate::env::channel::Notified,
    ) -> Result<(), GroupError> {
        match error {
            ClientWriteError::ForwardToLeader(forward) if forward.leader_id != Some(self.inner.node.0) => {
                if self.inner.state.leading.get() && forward.leader_id.is_none() {
                    // No majority has answered lately.
                    drop(E::Runtime::timeout(TRY_AGAIN, turned).await);
                    return Ok(());
                }
                Err(GroupError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            ClientWriteError::LogEntryDiscarded(forward) => {
                Err(GroupError::Deposed { leader: forward.leader_id.map(NodeId) })
            }
            ClientWriteError::ForwardToLeader(_)
            | ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_) => {
                // Another change is under way, or has been made: the caller looks again.
                drop(E::Runtime::timeout(TRY_AGAIN, turned).await);
                Ok(())
            }
        }
    }

    /// Suspends until what openraft has committed is known here, too; its watchers hear of it a little later.
    async fn wait_settled(&self) {
        let mut server = self.inner.server.clone();
        for _ in 0..8 {
            server.borrow_and_update();
            if !self.members().changing || E::Runtime::timeout(TRY_AGAIN, server.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Suspends until the learner has nearly all that this leader has, and may vote.
    async fn wait_caught_up(&self, learner: NodeId) -> Result<(), GroupError> {
        let mut data = self.inner.data.clone();
        let mut catching_up = CatchingUp::default();
        let round_us = self.inner.timing.election_min().as_micros() as u64;
        loop {
            let turned = self.inner.shared.turned.notified();
            self.check_leads()?;
            data.borrow_and_update();
            let matched = self.progress().into_iter().find(|follower| follower.node == learner);
            let matched = matched.and_then(|follower| follower.matched);
            if catching_up.has_caught_up(matched, self.log().last(), E::monotonic_us(), round_us) {
                return Ok(());
            }
            select(pin!(data_changed::<E, M>(&mut data)), turned).await;
        }
    }

    /// Suspends until most of `voters` have acknowledged an entry since the call. A replica may be lost, closed or damaged
    /// while its node is alive, and how far it was is known still; a joint configuration in whose new half nothing can be
    /// committed is never ended, and nothing else is committed either.
    async fn wait_taken(&self, voters: &BTreeSet<NodeId>) -> Result<(), GroupError> {
        let (known, last) = (self.matched(), self.log().last());
        let mut data = self.inner.data.clone();
        let mut has_asked = false;
        loop {
            let turned = self.inner.shared.turned.notified();
            self.check_leads()?;
            data.borrow_and_update();
            let now = self.matched();
            // This leader takes entries: one that cannot write leads no more.
            let is_most_of =
                |such: &dyn Fn(&NodeId) -> bool| is_most(voters, |node| *node == self.inner.node || such(node));
            if is_most_of(&|node| now.get(node) > known.get(node)) {
                return Ok(());
            }
            if !has_asked && is_most_of(&|node| now.get(node).copied() >= last) {
                // They have nothing to acknowledge. (Not otherwise: a call that is made again and again, because they take
                // nothing, would write an entry each time.)
                has_asked = true;
                self.write_blank().await?;
                continue;
            }
            select(pin!(data_changed::<E, M>(&mut data)), turned).await;
        }
    }

    /// Last entry of each follower that has acknowledged any.
    fn matched(&self) -> BTreeMap<NodeId, LogId> {
        self.progress().into_iter().filter_map(|follower| Some((follower.node, follower.matched?))).collect()
    }

    /// Writes an entry that says nothing, and waits until it is committed.
    async fn write_blank(&self) -> Result<(), GroupError> {
        loop {
            self.check_may_write()?;
            let turned = self.inner.shared.turned.notified();
            match self.inner.raft.write_blank().await {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(error)) => self.not_changed(error, turned).await?,
                Err(RaftError::Fatal(fatal)) => return Err(self.stopped_late(&fatal.to_string())),
            }
        }
    }
}

/// Whether a follower that has all up to `matched` has caught up with a log that ends with `last`.
pub(super) fn is_close(matched: Option<LogId>, last: Option<LogId>) -> bool {
    let next = |id: Option<LogId>| id.map_or(0, |id| id.index.0 + 1);
    matched.is_some() && next(matched) + CLOSE_ENTRIES >= next(last)
}

/// A learner on its way to be a voter. It catches up in rounds (Raft dissertation 4.2.1): one ends when the learner has what the
/// leader's log held when the round began. What was written meanwhile is for the next.
#[derive(Default)]
struct CatchingUp {
    /// The end of the leader's log when the learner had answered for the first time. All that a replica owes before it votes
    /// (`left`) is before that: an entry that was committed when it heard of this leader, or one of an earlier term, which any
    /// entry of this leader makes good.
    owed: Option<LogId>,
    /// Where the round under way ends, and when it began.
    round: Option<(Option<LogId>, u64)>,
}

impl CatchingUp {
    /// Whether a learner that has all up to `matched` at `now_us` owes nothing of a log that ends with `last` (a voter that may not
    /// vote would be missing when another one is lost), and lacks little: a few entries, or what it fetches in one round of less
    /// than `round_us`. Under load it may always lack more than a few.
    fn has_caught_up(&mut self, matched: Option<LogId>, last: Option<LogId>, now_us: u64, round_us: u64) -> bool {
        if matched.is_some() && self.owed.is_none() {
            self.owed = last;
        }
        let (end, began_us) = *self.round.get_or_insert((last, now_us));
        let ends = matched.is_some() && matched >= end;
        if ends {
            self.round = Some((last, now_us));
        }
        let is_quick = ends && now_us.saturating_sub(began_us) < round_us;
        matched >= self.owed && (is_quick || is_close(matched, last))
    }
}

#[cfg(test)]
mod tests {
    use openraft::Membership;

    use super::*;
    use crate::ids::{Index, Term};

    fn entry(term: u64, index: u64) -> Option<LogId> {
        Some(LogId { term: Term(term), index: Index(index) })
    }

    /// During a change both the old and the new voters have to agree.
    #[test]
    fn majorities_of_a_change() {
        let members = |configurations: Vec<BTreeSet<u64>>| {
            let nodes: BTreeMap<u64, Node> = (1..=4).map(|node| (node, Node::default())).collect();
            let membership =
                StoredMembership::new(None, Membership::new(configurations, nodes).expect("all are nodes"));
            members_of(&membership, &membership)
        };
        let with = |members: &Members, alive: &[u64]| members.has_majority(|node| alive.contains(&node.0));
        let joint = members(vec![[1, 2, 3].into(), [1, 3].into()]);
        assert_eq!(joint.voters, [1, 2, 3].map(NodeId).into());
        assert!(!with(&joint, &[2, 3]), "of the new ones only one");
        assert!(with(&joint, &[1, 3]) && with(&joint, &[1, 2, 3]));
        assert!(!with(&members(vec![[1, 2, 3].into(), [4].into()]), &[1, 2, 3]));
        let plain = members(vec![[1, 2, 3].into()]);
        assert!(plain.halves.is_empty() && with(&plain, &[2, 3]) && !with(&plain, &[3, 4]));
    }

    /// However few entries it lacks: it votes only with what was committed when it came.
    #[test]
    fn a_learner_that_may_not_vote_stays_one() {
        let mut learner = CatchingUp::default();
        let mut has_caught_up = |matched, last| learner.has_caught_up(matched, last, 0, 0);
        assert!(!has_caught_up(None, entry(3, 9)));
        assert!(!has_caught_up(entry(2, 0), entry(3, 10)), "close, but it may owe all up to 10");
        assert!(!has_caught_up(entry(3, 9), entry(3, 11)));
        assert!(has_caught_up(entry(3, 10), entry(3, 12)), "what came later it does not owe");
        assert!(has_caught_up(entry(3, 12), entry(3, 12 + CLOSE_ENTRIES)));
        assert!(!has_caught_up(entry(3, 12), entry(3, 13 + CLOSE_ENTRIES)), "too far behind");
    }

    /// Under a load that always leaves it hundreds of entries behind, it has caught up when a round is quick.
    #[test]
    fn a_learner_under_load_becomes_a_voter() {
        let (mut learner, round_us) = (CatchingUp::default(), 1_000_000);
        let mut looks =
            |matched, last, now_us| learner.has_caught_up(entry(3, matched), entry(3, last), now_us, round_us);
        assert!(!looks(0, 90_000, 0));
        assert!(!looks(89_999, 95_000, 5_000_000));
        assert!(!looks(90_000, 95_001, 5_000_001), "its round took too long: the next one ends at 95,001");
        assert!(!looks(95_000, 95_501, 6_000_000));
        assert!(!looks(95_001, 95_501, 6_000_001), "a round of a second");
        assert!(!looks(95_500, 96_000, 6_400_000));
        assert!(looks(95_600, 96_000, 6_500_000), "a round of half a second");
    }
}
