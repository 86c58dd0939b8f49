//! Giving leadership away: proposals in flight land, then the most advanced live voter is asked to take over.
//!
//! openraft's own transfer is not used on the leader's side: it stops proposals and heartbeats for good, also when nobody
//! takes over. Here the leader leads on until it is deposed by the election that it asked for.

use std::time::Duration;

use openraft::rt::{AsyncRuntime, Instant};

use super::{Group, GroupError, Inner, Machine};
use crate::{
    env::{self, Env},
    format::peer::Message,
    ids::NodeId,
    peer::frame::FrameKind,
};

/// Ends the refusal of proposals when a transfer is over, also when its future is dropped.
struct Transferring<E: Env, M: Machine>(Group<E, M>);

impl<E: Env, M: Machine> Drop for Transferring<E, M> {
    fn drop(&mut self) {
        let Inner { state, shared, .. } = &*self.0.inner;
        state.transferring.set(false);
        shared.turned.notify_all();
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Has `to`, or the most advanced other voter that is alive, lead instead of this node; returns when this node does not lead
    /// any more, at once if it does not, or is `to` itself. Proposals in flight land first; proposals made meanwhile are `NotLeader`.
    ///
    /// # Errors
    /// `NotLeader` with no leader known when nobody could take over within `within`: this node leads on.
    pub async fn transfer(&self, to: Option<NodeId>, within: Duration) -> Result<(), GroupError> {
        if !self.inner.state.leading.get() || to == Some(self.inner.node) {
            return Ok(());
        }
        if self.inner.state.transferring.replace(true) {
            // Two at once would undo each other's refusal.
            return match E::Runtime::timeout(within, self.wait_deposed()).await {
                Ok(()) => Ok(()),
                Err(_) => Err(GroupError::NotLeader { leader: None }),
            };
        }
        let _transferring = Transferring(self.clone());
        self.inner.shared.turned.notify_all();
        match E::Runtime::timeout(within, self.hand_over(to, within)).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) if !self.inner.state.leading.get() => Ok(()),
            Ok(false) | Err(_) => Err(GroupError::NotLeader { leader: None }),
        }
    }

    async fn hand_over(&self, to: Option<NodeId>, within: Duration) -> bool {
        self.wait_landed().await;
        let deadline = <E::Runtime as AsyncRuntime>::Instant::now() + within;
        loop {
            for candidate in self.candidates(to) {
                let now = <E::Runtime as AsyncRuntime>::Instant::now();
                let left = deadline.saturating_duration_since(now);
                let message =
                    Message::Transfer { vote: self.inner.vote(), to: Some(candidate), last: self.log().last() };
                let line = self.inner.network.line(candidate);
                let taken = line.ask(FrameKind::Raft, message, Vec::new(), left).await;
                if let Err(error) = &taken {
                    tracing::debug!(group = %self.inner.network.group(), %candidate, %error, "does not take over");
                    continue;
                }
                // It campaigns; if it cannot win in this time, somebody else is asked.
                let deposed = E::Runtime::timeout(self.inner.timing.heartbeat(), self.wait_deposed()).await;
                if deposed.is_ok() {
                    return true;
                }
            }
            if !self.inner.state.leading.get() {
                return true;
            }
            env::sleep::<E>(super::with_jitter::<E>(Duration::from_millis(20))).await;
        }
    }

    /// Voters that could lead, the most advanced first.
    fn candidates(&self, to: Option<NodeId>) -> Vec<NodeId> {
        if let Some(to) = to {
            return vec![to];
        }
        let liveness = self.inner.network.peers().liveness();
        let voters = self.members().voters;
        let mut progress = self.progress();
        progress.retain(|follower| voters.contains(&follower.node) && liveness.is_alive(follower.node));
        progress.sort_by_key(|follower| std::cmp::Reverse(follower.matched));
        progress.into_iter().map(|follower| follower.node).collect()
    }

    /// Suspends until no proposal is unanswered, or this node does not lead.
    async fn wait_landed(&self) {
        let Inner { shared, state, .. } = &*self.inner;
        loop {
            let landed = shared.unanswered.none.notified();
            if shared.unanswered.count.get() == 0 || !state.leading.get() {
                return;
            }
            landed.await;
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
