//! The log forgets its beginning: what a snapshot covers, and nobody needs.
//!
//! openraft makes a purge as soon as it has the snapshot. A leader that is sending a follower some of what is to go puts it
//! off until that follower has answered, or has lost its stream (`RAFT_APPEND_WAIT`). When it is deposed before that, openraft
//! forgets that there is something to do, and takes no order to purge to where it believes to be already.

use openraft::rt::AsyncRuntime;

use super::{Group, GroupError, Inner, Machine, refused, unusable};
use crate::{
    env::{Env, channel::Notify},
    ids::Index,
    limits::PURGE_WAIT,
};

impl<E: Env, M: Machine> Group<E, M> {
    /// Told when more of the log may go than before: a command was applied, the state was replaced by a snapshot, or a
    /// checkpoint is kept at the end of a segment.
    pub fn purgeable(&self) -> Notify {
        self.inner.shared.purgeable.clone()
    }

    /// Retention: lets the log forget everything up to the largest checkpoint at or below `index`. Returns when it has, but
    /// waits no longer than `PURGE_WAIT`: what a leader has put off goes later, or with the next call; so does what a call that
    /// is cancelled has begun.
    ///
    /// # Errors
    /// `Stopped`, when the group does so before that.
    pub async fn purge_to(&self, index: Index) -> Result<(), GroupError> {
        E::Runtime::timeout(PURGE_WAIT, self.purge_now(index)).await.unwrap_or(Ok(()))
    }

    /// As `purge_to`, however long it takes.
    async fn purge_now(&self, index: Index) -> Result<(), GroupError> {
        let Inner { raft, log, shared, purging, .. } = &*self.inner;
        let _one = purging.lock().await;
        let Some(boundary) = shared.set_boundary(log, index).await.map_err(refused)? else { return Ok(()) };
        raft.trigger().snapshot().await.map_err(|error| self.stopped(&error.to_string()))?;
        self.wait_purged(boundary).await
    }

    /// Tells openraft to purge to the boundary until it has.
    async fn wait_purged(&self, boundary: Index) -> Result<(), GroupError> {
        let Inner { raft, log, shared, state, .. } = &*self.inner;
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
            // Also when openraft has a newer snapshot than ours and would not purge to it by itself. When it has ours, it goes no
            // further than that, and takes an order for more where it ignores one for what it has put off.
            let is_newest = shared.snapshot().is_some_and(|(newest, _)| newest == boundary);
            let upto = if is_newest { boundary.next() } else { boundary };
            raft.trigger().purge_log(upto.0).await.map_err(|error| self.stopped(&error.to_string()))?;
            changed.await;
        }
    }
}
