//! Elections that do not wait for Raft's own timers.
//!
//! Raft's timers are slow here (heartbeats each second), so that hundreds of idle groups cost little. What makes fail-over
//! quick is the detector that all groups of a node share (`peer::liveness`): when it takes a group's leader for dead, the group's
//! voters give up the leader's lease and hold a pre-vote at once, a little apart from one another, and again until one of them
//! leads.
//!
//! Giving up the lease is safe, as no read here relies on it (ReadIndex); and a voter gives it up only when it does not hear from
//! the leader itself, so that one node with a bad connection does not unseat a leader that the others hear.

use std::{rc::Rc, time::Duration};

use openraft::{raft::TransferLeaderRequest, rt::WatchReceiver};

use super::{Group, Machine, types};
use crate::{
    env::{self, Env},
    ids::NodeId,
};

/// Voters try at different moments, so that one of them wins at the first try.
const STAGGER_MAX_US: u64 = 80_000;

/// Pause until the next try, beside the stagger: a round of votes and two flushes fit in.
const ROUND: Duration = Duration::from_millis(120);

impl<E: Env, M: Machine> Group<E, M> {
    /// Holds elections when the detector takes the leader for dead, until the group closes. Keeps ticks on while there are several
    /// voters.
    pub(super) fn watch_leader(&self) {
        let group = Rc::downgrade(&self.inner);
        let mut dead = self.inner.peers.liveness().watch();
        let mut server = self.inner.raft.server_metrics();
        env::spawn::<E>(async move {
            loop {
                let Some(inner) = group.upgrade() else { return };
                let group = Group { inner };
                if group.inner.state.closing.get() || group.inner.state.ended.get() {
                    return;
                }
                group.keep_ticking();
                if group.needs_first_leader() {
                    group.hold_first_election().await;
                    drop(group);
                    env::sleep::<E>(ROUND).await;
                    continue;
                }
                let lost = group.lost_leader();
                if let Some(leader) = lost {
                    group.hold_election(leader).await;
                    drop(group);
                    env::sleep::<E>(ROUND).await;
                    continue;
                }
                drop(group);
                let (died, changed) = (Box::pin(dead.changed()), Box::pin(server.changed()));
                match futures_util::future::select(died, changed).await {
                    futures_util::future::Either::Left((Ok(()), _))
                    | futures_util::future::Either::Right((Ok(()), _)) => {}
                    // openraft or the node has ended.
                    futures_util::future::Either::Left((Err(_), _))
                    | futures_util::future::Either::Right((Err(_), _)) => return,
                }
            }
        });
    }

    /// A single voter has nobody to hear a heartbeat, nobody to wait for: a timer would only cost.
    pub(super) fn keep_ticking(&self) {
        let wanted = self.members().voters.iter().any(|voter| *voter != self.inner.place.node)
            || !self.members().learners.is_empty();
        if self.inner.state.ticking.replace(wanted) != wanted {
            self.inner.raft.runtime_config().tick(wanted);
        }
    }

    /// The leader, if it is another node that is taken for dead and this one may vote. Between two leaders: the one of the last
    /// term, as the vote names it.
    fn lost_leader(&self) -> Option<NodeId> {
        if !self.members().voters.contains(&self.inner.place.node) || self.inner.state.leading.get() {
            return None;
        }
        let metrics = self.inner.raft.server_metrics();
        let named = NodeId(metrics.borrow_watched().vote.leader_id.voted_for);
        let leader = self.leader().0.unwrap_or(named);
        let is_dead = leader != self.inner.place.node && !self.inner.peers.liveness().is_alive(leader);
        is_dead.then_some(leader)
    }

    /// A new group with several founders: its first leader is not waited for.
    fn needs_first_leader(&self) -> bool {
        let metrics = self.inner.raft.server_metrics();
        let now = metrics.borrow_watched();
        let is_new = now.vote.leader_id.term == 0 && now.current_leader.is_none();
        let voters = now.membership_config.membership().voter_ids().collect::<Vec<_>>();
        is_new && voters.len() > 1 && voters.contains(&self.inner.place.node.0)
    }

    /// One try; who is to lead tries first.
    async fn hold_first_election(&self) {
        if !self.inner.place.preferred {
            let later = STAGGER_MAX_US + E::random_u64() % (4 * STAGGER_MAX_US);
            env::sleep::<E>(Duration::from_micros(later)).await;
        }
        if self.needs_first_leader()
            && let Err(error) = self.inner.raft.trigger().elect(true).await
        {
            tracing::debug!(%error, "no election");
        }
    }

    /// One try.
    async fn hold_election(&self, leader: NodeId) {
        env::sleep::<E>(Duration::from_micros(E::random_u64() % STAGGER_MAX_US)).await;
        if self.lost_leader() != Some(leader) {
            return;
        }
        self.give_up_lease(leader).await;
        if let Err(error) = self.inner.raft.trigger().elect(true).await {
            tracing::debug!(%error, "no election");
        }
    }

    /// Voids the lease of a leader that this node does not hear: openraft does so on word of a transfer, whoever it is to.
    pub(super) async fn give_up_lease(&self, leader: NodeId) {
        let vote = self.inner.raft.server_metrics().borrow_watched().vote;
        let last = self.inner.log.last().map(types::to_raft);
        // To the dead one itself: nobody here takes over by this alone.
        let word = TransferLeaderRequest::new(vote, leader.0, last);
        if let Err(error) = self.inner.raft.handle_transfer_leader(word).await {
            tracing::debug!(%error, "the lease of a lost leader was not given up");
        }
    }

    /// Before another node's vote is answered: its candidate may be ahead of our own detector's watch.
    pub(super) async fn give_up_lease_of_the_dead(&self) {
        if let Some(leader) = self.lost_leader() {
            self.give_up_lease(leader).await;
        }
    }
}
