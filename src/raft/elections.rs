//! Fast elections: openraft's own time-outs are long, so that idle groups cost little; a leader that is known to be gone is
//! replaced at once.
//!
//! A leader is gone when the liveness of nodes says that its node is dead, or when it has said so itself: a leader
//! that was restarted does not lead on in its old term, and one whose disk has failed has stopped, though their nodes
//! are alive. Then each voter drops the leader's lease and asks the others whether they would elect it (pre-vote, which
//! leaves all terms alone), again and again with jitter, until a leader is known.
//!
//! Safety is openraft's: nothing here grants a vote. What openraft cannot know is that this node has had a replica of the group
//! before: until this one has what that one had, or may have had (`left`), it takes no part in elections.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_util::future::{Either, select};
use openraft::{
    raft::TransferLeaderRequest,
    rt::{AsyncRuntime, Instant, WatchReceiver},
};

use super::{
    Inner, Machine,
    types::{self, Node, TypeConfig},
};
use crate::{
    env::{self, Env},
    format::{peer::Message, state_files::Vote},
    ids::NodeId,
    limits::BLOCK_BYTES,
    peer::frame::FrameKind,
};

/// How often a node that leads no more tells the others.
const ANNOUNCEMENTS: u32 = 3;

/// Why there is no leader.
enum Leaderless {
    /// Nobody is known: an election is under way, or nobody has begun one.
    Unknown,
    /// The one of this vote is gone.
    Gone(Vote),
}

impl<E: Env, M: Machine> Inner<E, M> {
    /// The vote that is durable here.
    pub(super) fn vote(&self) -> Vote {
        types::from_raft_vote(&self.server.borrow_watched().vote)
    }

    /// Whether this replica lacks entries that an earlier one on this node had, or may have had.
    pub(super) fn owes(&self) -> bool {
        self.owing.owes(self.log.flushed())
    }

    /// The leader of `vote` has said that it leads no more.
    pub(super) async fn give_up_on(&self, vote: Vote) {
        self.state.abdicated.set(Some(vote));
        self.drop_lease(vote).await;
        self.shared.turned.notify_all();
    }

    /// Frees this voter to elect another leader than that of `vote`, if it is still the one that it follows.
    async fn drop_lease(&self, vote: Vote) {
        // The only effect of a transfer to somebody else.
        let nobody = 0;
        let request = TransferLeaderRequest::<TypeConfig<E, M>>::new(types::to_raft_vote(vote), nobody, None);
        // A Raft that has ended holds no lease.
        drop(self.raft.handle_transfer_leader(request).await);
    }

    /// Whether this replica should see to it that there is a leader, and why.
    fn leaderless(&self) -> Option<Leaderless> {
        if self.is_over() || self.state.leading.get() || self.owes() {
            return None;
        }
        let server = self.server.borrow_watched();
        let votes = |ids: &types::StoredMembership| ids.voter_ids().any(|id| id == self.node.0);
        if !votes(&server.membership_config) && !votes(&server.committed_membership_config) {
            return None;
        }
        let vote = types::from_raft_vote(&server.vote);
        match server.current_leader.map(NodeId) {
            None => Some(Leaderless::Unknown),
            Some(leader) if leader == self.node => None,
            Some(leader) => {
                let gone =
                    !self.network.peers().liveness().is_alive(leader) || self.state.abdicated.get() == Some(vote);
                gone.then_some(Leaderless::Gone(vote))
            }
        }
    }

    /// Nothing will be elected here any more.
    fn is_over(&self) -> bool {
        self.state.closing.get() || self.state.ended.get() || self.log.fault().is_some()
    }
}

/// Elects whenever it has to; ends with the group.
pub(super) async fn watch_leader<E: Env, M: Machine>(inner: Rc<Inner<E, M>>) {
    let mut dead = inner.network.peers().liveness().watch();
    loop {
        let turned = inner.shared.turned.notified();
        if inner.is_over() {
            return;
        }
        dead.borrow_and_update();
        if let Some(why) = inner.leaderless() {
            campaign(&inner, why).await;
            continue;
        }
        match select(turned, pin!(dead.changed())).await {
            Either::Left(_) | Either::Right((Ok(()), _)) => {}
            // The detector has gone, and with it fast elections.
            Either::Right((Err(_), turned)) => turned.await,
        }
    }
}

/// Lets a replica take part in elections as soon as it owes nothing any more; ends then, or with the group.
pub(super) async fn watch_owed<E: Env, M: Machine>(inner: Rc<Inner<E, M>>) {
    loop {
        // Told when more is durable or owed, and when the group ends.
        let flushed = inner.shared.flushed.notified();
        if inner.is_over() {
            return;
        }
        if !inner.owes() {
            inner.raft.runtime_config().elect(true);
            inner.shared.turned.notify_all();
            return;
        }
        flushed.await;
    }
}

/// Asks for votes until there is a leader.
async fn campaign<E: Env, M: Machine>(inner: &Rc<Inner<E, M>>, mut why: Leaderless) {
    let retry = inner.timing.retry();
    let mut pause = match why {
        // The others see it within a moment, too; not all of them should begin.
        Leaderless::Gone(_) => super::random_below::<E>(retry / 2),
        // Whoever was voted for is about to show.
        Leaderless::Unknown => retry * 2 + super::random_below::<E>(retry),
    };
    let mut round = 0;
    loop {
        if let Leaderless::Gone(vote) = why {
            inner.drop_lease(vote).await;
        }
        if !wait_leaderless(inner, pause).await {
            return;
        }
        if let Some(Leaderless::Gone(vote)) = inner.leaderless() {
            inner.drop_lease(vote).await;
        }
        if inner.raft.trigger().elect(true).await.is_err() {
            return;
        }
        // Votes may take long on slow disks: too much haste would never end.
        round += 1;
        let longest = retry * (1 << u32::min(round / 2, 3));
        pause = retry + super::random_below::<E>(longest);
        match inner.leaderless() {
            Some(now) => why = now,
            None => return,
        }
    }
}

/// Waits that long; false as soon as there is nothing to elect.
async fn wait_leaderless<E: Env, M: Machine>(inner: &Inner<E, M>, pause: Duration) -> bool {
    let end = <E::Runtime as AsyncRuntime>::Instant::now() + pause;
    loop {
        let turned = inner.shared.turned.notified();
        if inner.leaderless().is_none() {
            return false;
        }
        let now = <E::Runtime as AsyncRuntime>::Instant::now();
        if now >= end {
            return true;
        }
        drop(E::Runtime::timeout(end - now, turned).await);
    }
}

/// Tells the other voters that this node does not lead by `vote` any more, though it is alive.
pub(super) async fn abdicate<E: Env, M: Machine>(inner: Rc<Inner<E, M>>, vote: Vote) {
    let voters: Vec<NodeId> = inner.server.borrow_watched().membership_config.voter_ids().map(NodeId).collect();
    for voter in voters.into_iter().filter(|voter| *voter != inner.node) {
        let (line, within) = (inner.network.line(voter), inner.timing.election_min());
        let pause = inner.timing.retry();
        env::spawn::<E>(async move {
            for _ in 0..ANNOUNCEMENTS {
                let message = Message::Transfer { vote, to: None, last: None };
                if line.ask(FrameKind::Raft, message, Vec::new(), within).await.is_ok() {
                    return;
                }
                env::sleep::<E>(pause).await;
            }
        });
    }
}

/// Begins a new group with `founders`, unless another of them has: they take turns, who is to lead begins.
pub(super) async fn found<E: Env, M: Machine>(inner: Rc<Inner<E, M>>, founders: BTreeSet<NodeId>, preferred: bool) {
    let place = founders.iter().position(|node| *node == inner.node).expect("the caller is one of them");
    let turn = if preferred { 0 } else { 1 + place as u32 };
    let members: BTreeMap<u64, Node> = founders.iter().map(|node| (node.0, Node::default())).collect();
    env::sleep::<E>(inner.timing.retry() * 3 * turn).await;
    loop {
        if inner.is_over() {
            return;
        }
        if inner.log.last().is_some() || inner.log.hard_state().vote.is_some() {
            return;
        }
        if let Err(error) = inner.log.has_room(2 * BLOCK_BYTES) {
            tracing::warn!(group = %inner.network.group(), %error, "a new group cannot begin here yet");
            env::sleep::<E>(inner.timing.heartbeat()).await;
            continue;
        }
        if let Err(error) = inner.raft.initialize(members).await {
            // Another founder was faster, or Raft has ended, which its watcher tells.
            tracing::debug!(group = %inner.network.group(), %error, "did not begin the group");
            return;
        }
        break;
    }
    // The others may not have opened their replicas when it asked for the first votes; it is its turn until they may begin.
    let pause = inner.timing.retry() / 4;
    for _ in 0..8 {
        env::sleep::<E>(pause).await;
        if inner.leaderless().is_none() || inner.raft.trigger().elect(true).await.is_err() {
            return;
        }
    }
}
