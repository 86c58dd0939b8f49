//! What the catalog's leader does beside answering: it keeps the catalog's own group in shape (every member follows it,
//! an odd number of them votes), and proposes which replicas move where.
//!
//! All of it again and again, from what is there now: whoever leads next goes on where this one stopped. It waits for the catalog,
//! and so for its device: what has to be seen meanwhile is looked at elsewhere (`watch`).

use std::{collections::BTreeSet, time::Duration};

use super::{
    Control,
    duties::{TRANSFER_MAX, soon},
};
use crate::{
    catalog::Catalog,
    env::{self, Env},
    ids::{NodeId, is_most},
};

/// How often the leader looks.
const LEAD_INTERVAL: Duration = crate::limits::FLUSH_LOOK;

/// For so long others are tried first after a node could not be made a voter.
const LATE_FOR: Duration = Duration::from_secs(10);

impl<E: Env> Control<E> {
    /// Does the leader's work while this node leads the catalog.
    pub(super) async fn lead_for_ever(self) {
        loop {
            env::sleep::<E>(LEAD_INTERVAL).await;
            // `watch` says that it has stopped, and why.
            if self.inner.closing.get() || self.fault().is_some() {
                return;
            }
            // Whoever leads next computes the same: a panic stops this replica of the catalog, not one node after the other. The
            // next look sees that.
            drop(self.inner.catalog.domain().contain(self.lead()).await);
        }
    }

    /// One look.
    async fn lead(&self) {
        self.leave_slow_disk().await;
        if self.inner.catalog.leads() {
            self.tend_members().await;
            self.move_replicas().await;
        }
    }

    /// Gives the leadership away if this node's disk is slow beside the others'. Called in any case: while another node leads, what was
    /// seen of an earlier leadership is forgotten.
    async fn leave_slow_disk(&self) {
        if let Some(to) = self.inner.catalog.look_at_flushes() {
            tracing::warn!(to = to.0, "appends of the catalog take long on this disk: another node is to lead");
            if let Err(error) = self.inner.catalog.transfer(Some(to), TRANSFER_MAX).await {
                tracing::warn!(%error, "the catalog stays on a slow disk for now");
            }
        }
    }

    /// Has every member of the cluster follow the catalog, and the right ones vote.
    async fn tend_members(&self) {
        let group = &self.inner.catalog;
        // Such as one that took too long, or that a leader before began.
        if let Err(error) = soon::<E, _>(group.finish_change()).await {
            tracing::warn!(error, "a change of the catalog's members could not be ended; it is tried again");
            return;
        }
        let (present, dead) = (group.members(), self.dead());
        let late = self.late();
        let (members, wanted) =
            group.with_machine(|catalog| (catalog.members(), catalog.wanted_voters(&present.voters, &dead, &late)));
        // A leader that was removed leads on until another is elected.
        if members.is_empty() || !present.voters.contains(&self.inner.me) {
            return;
        }
        for node in members.iter().filter(|node| !present.voters.contains(node) && !present.learners.contains(node)) {
            if let Err(error) = soon::<E, _>(group.add_learner(*node)).await {
                tracing::warn!(node = node.0, error, "a node could not be added to the catalog; it is tried again");
                return;
            }
            tracing::info!(node = node.0, "node follows the catalog");
        }
        // Voters of whom most are dead could not even end the change.
        if wanted != present.voters
            && is_most(&wanted, |node| !dead.contains(node))
            && let Err(error) = soon::<E, _>(group.change_members(wanted.clone())).await
        {
            tracing::warn!(?wanted, error, "the catalog's voters could not be changed; it is tried again");
            let again_us = E::monotonic_us() + LATE_FOR.as_micros() as u64;
            self.inner.late.borrow_mut().extend(wanted.difference(&present.voters).map(|node| (*node, again_us)));
            return;
        }
        let gone: BTreeSet<NodeId> =
            present.learners.iter().chain(&present.voters).filter(|node| !members.contains(node)).copied().collect();
        if !gone.is_empty()
            && wanted == present.voters
            && let Err(error) = soon::<E, _>(group.remove_learners(gone)).await
        {
            tracing::warn!(error, "removed nodes could not be taken out of the catalog's group; it is tried again");
        }
    }

    /// Proposes the next moves of replicas.
    async fn move_replicas(&self) {
        let dead = self.dead();
        for command in self.inner.catalog.with_machine(|catalog: &Catalog| catalog.plan(&dead)) {
            if let Err(error) = self.propose_if_leader(command).await {
                tracing::debug!(%error, "a move of replicas was not begun");
                return;
            }
        }
    }

    /// Members that could not be made voters lately: others are tried first. One may answer, and not follow the catalog, for as long as its
    /// own one is damaged.
    fn late(&self) -> BTreeSet<NodeId> {
        let mut late = self.inner.late.borrow_mut();
        late.retain(|_, again_us| E::monotonic_us() < *again_us);
        late.keys().copied().collect()
    }

    /// Members that were not heard of lately.
    pub(super) fn dead(&self) -> BTreeSet<NodeId> {
        let liveness = &self.inner.reactor.node().liveness;
        let members = self.inner.catalog.with_machine(Catalog::members);
        members.into_iter().filter(|node| *node != self.inner.me && !liveness.is_alive(*node)).collect()
    }
}
