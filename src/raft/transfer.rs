//! Giving leadership away: somebody who can take over is found, is let catch up, gets all that there is, and is asked to
//! campaign.
//!
//! openraft's own transfer is not used on the leader's side: it stops proposals and heartbeats for good, also when nobody
//! takes over. Here only the target is told (TimeoutNow, Raft dissertation 3.10), by a message of ours: the leader's core
//! knows of no transfer, leads on with all its heartbeats and reads, and is deposed by the election that it asked for, or
//! not at all. So nothing has to be taken back when a transfer fails.
//!
//! Proposals are refused (`NotLeader`, nothing was written) only while the target gets the last entries and campaigns, for
//! `Timing::hold` at most; while it catches up they go on. A target that campaigns later than that may still win.

use std::{pin::pin, time::Duration};

use futures_util::future::select;
use openraft::rt::{AsyncRuntime, Instant, WatchReceiver};

use super::{Group, Inner, Machine, members::is_close, watch::data_changed};
use crate::{env::Env, format::peer::Message, ids::NodeId, peer::frame::FrameKind};

/// Why a leader leads on although another one was to. Definite: the leadership has not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Refuse: nobody could take over. Nobody was asked, nothing was changed.
    #[error("{cause}; nothing was changed")]
    NoSuccessor {
        /// In words.
        cause: String,
    },
    /// Retry: who was asked has not taken over in time. No record was lost or refused for good.
    #[error("node {to} was to take over and did not ({cause}); node {leader} leads on")]
    NotTakenOver {
        /// Who was asked.
        to: NodeId,
        /// In words.
        cause: String,
        /// This node.
        leader: NodeId,
    },
}

/// Ends the refusal of proposals when a transfer is over, also when its future is dropped.
struct Transferring<E: Env, M: Machine>(Group<E, M>);

impl<E: Env, M: Machine> Transferring<E, M> {
    /// `None` while another transfer refuses them: two at once would undo each other's refusal.
    fn begin(group: &Group<E, M>) -> Option<Self> {
        let Inner { state, shared, .. } = &*group.inner;
        if state.transferring.replace(true) {
            return None;
        }
        shared.turned.notify_all();
        Some(Transferring(group.clone()))
    }
}

impl<E: Env, M: Machine> Drop for Transferring<E, M> {
    fn drop(&mut self) {
        let Inner { state, shared, .. } = &*self.0.inner;
        state.transferring.set(false);
        shared.turned.notify_all();
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Has `to`, or another voter that can (the most advanced is asked first, each once), lead instead of this node;
    /// returns when this node does not lead any more, at once if it does not, or is `to` itself. A target that is far
    /// behind is waited for, as long as `within` allows.
    ///
    /// # Errors
    /// `NoSuccessor`, at once unless somebody could have caught up; `NotTakenOver`.
    pub async fn transfer(&self, to: Option<NodeId>, within: Duration) -> Result<(), TransferError> {
        if !self.inner.state.leading.get() || to == Some(self.inner.node) {
            return Ok(());
        }
        let deadline = <E::Runtime as AsyncRuntime>::Instant::now() + within;
        let mut refused = None;
        for candidate in self.candidates(to)? {
            match self.hand_to(candidate, deadline).await {
                Ok(()) => return Ok(()),
                Err(_) if !self.inner.state.leading.get() => return Ok(()),
                Err(error) => {
                    tracing::debug!(group = %self.inner.network.group(), %candidate, %error, "leads on");
                    refused = refused.or(Some(error));
                }
            }
        }
        Err(refused.expect("there is a candidate, which has refused"))
    }

    /// Voters that could lead, the most advanced first; at least one.
    fn candidates(&self, to: Option<NodeId>) -> Result<Vec<NodeId>, TransferError> {
        let voters = self.members().voters;
        if let Some(to) = to {
            self.able(to)?;
            return Ok(vec![to]);
        }
        if voters.iter().all(|voter| *voter == self.inner.node) {
            return Err(no_successor("no other replica has a vote in this group".to_owned()));
        }
        let mut progress = self.progress();
        progress.retain(|follower| self.able(follower.node).is_ok());
        progress.sort_by_key(|follower| std::cmp::Reverse(follower.matched));
        if progress.is_empty() {
            return Err(no_successor("no other node with a vote in this group is alive".to_owned()));
        }
        Ok(progress.into_iter().map(|follower| follower.node).collect())
    }

    /// Whether a node may be asked to lead.
    fn able(&self, node: NodeId) -> Result<(), TransferError> {
        if !self.members().voters.contains(&node) {
            return Err(no_successor(format!("node {node} has no vote in this group")));
        }
        if !self.inner.network.peers().liveness().is_alive(node) {
            return Err(no_successor(format!("node {node} is not alive: nothing was heard of it lately")));
        }
        Ok(())
    }

    async fn hand_to(&self, to: NodeId, deadline: <E::Runtime as AsyncRuntime>::Instant) -> Result<(), TransferError> {
        self.wait_close(to, deadline).await?;
        let not_taken =
            |cause: &str| TransferError::NotTakenOver { to, cause: cause.to_owned(), leader: self.inner.node };
        let Some(_transferring) = Transferring::begin(self) else {
            let left = deadline.saturating_duration_since(<E::Runtime as AsyncRuntime>::Instant::now());
            let deposed = E::Runtime::timeout(left, self.wait_deposed()).await;
            return deposed.map_err(|_| not_taken("another transfer is under way"));
        };
        let hold = self.inner.timing.hold();
        let held_until = <E::Runtime as AsyncRuntime>::Instant::now() + hold;
        if E::Runtime::timeout(hold, self.wait_complete(to)).await.is_err() {
            return Err(not_taken("it did not get the last entries in time"));
        }
        let left = held_until.saturating_duration_since(<E::Runtime as AsyncRuntime>::Instant::now());
        let message = Message::Transfer { vote: self.inner.vote(), to: Some(to), last: self.log().last() };
        let line = self.inner.network.line(to);
        let asked = line.ask(FrameKind::Raft, message, Vec::new(), left).await;
        asked.map_err(|error| not_taken(&error.to_string()))?;
        let left = held_until.saturating_duration_since(<E::Runtime as AsyncRuntime>::Instant::now());
        let deposed = E::Runtime::timeout(left, self.wait_deposed()).await;
        deposed.map_err(|_| not_taken("it was not elected in time"))
    }

    /// Suspends until a follower has nearly all that there is; records are taken meanwhile.
    async fn wait_close(
        &self,
        to: NodeId,
        deadline: <E::Runtime as AsyncRuntime>::Instant,
    ) -> Result<(), TransferError> {
        let mut data = self.inner.data.clone();
        loop {
            data.borrow_and_update();
            self.able(to)?;
            let progress = self.progress().into_iter().find(|follower| follower.node == to);
            let matched = progress.and_then(|progress| progress.matched);
            if is_close(matched, self.log().last()) || !self.inner.state.leading.get() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(<E::Runtime as AsyncRuntime>::Instant::now());
            if left.is_zero() {
                return Err(no_successor(format!("node {to} lacks entries, and did not catch up in time")));
            }
            // Liveness is looked at, too, when nothing changes.
            drop(E::Runtime::timeout(left.min(self.inner.timing.hold()), data_changed::<E, M>(&mut data)).await);
        }
    }

    /// Suspends until no proposal is unanswered and a follower has all that there is on stable storage, or this node does
    /// not lead.
    pub(super) async fn wait_complete(&self, to: NodeId) {
        let Inner { shared, state, data, .. } = &*self.inner;
        let mut data = data.clone();
        loop {
            let (turned, landed) = (shared.turned.notified(), shared.unanswered.none.notified());
            data.borrow_and_update();
            let is_owed = shared.unanswered.count.get() > 0;
            let progress = self.progress().into_iter().find(|follower| follower.node == to);
            let is_complete = progress.is_some_and(|progress| progress.matched == self.log().last());
            if (!is_owed && is_complete) || !state.leading.get() {
                return;
            }
            // The last answer, the follower's progress, or the loss of the leadership goes on from here.
            if is_owed {
                select(turned, landed).await;
            } else {
                select(turned, pin!(data_changed::<E, M>(&mut data))).await;
            }
        }
    }

    async fn wait_deposed(&self) {
        let Inner { shared, state, .. } = &*self.inner;
        loop {
            let turned = shared.turned.notified();
            if !state.leading.get() || self.unable().is_err() {
                return;
            }
            turned.await;
        }
    }
}

fn no_successor(cause: String) -> TransferError {
    TransferError::NoSuccessor { cause }
}
