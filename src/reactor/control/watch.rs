//! Whether this node's replica of the catalog still works, looked at again and again beside whatever waits for it.
//!
//! In a task that waits for nothing of the catalog's: with one voter nothing else ends a wait for a device that does not answer, and
//! whoever waits sees nothing meanwhile. So from its opening on; when it closes, `Group::close` looks itself.

use super::{Control, slow_disks::name_stalled};
use crate::{
    env::{self, Env},
    ids::ShardUid,
    limits::FLUSH_LOOK,
};

impl<E: Env> Control<E> {
    /// Looks until the node closes, or the catalog has stopped: an operation of its storage that takes long is named, in the log and in
    /// the status, and stops it in the end (`Log::look_at_storage`); that it has stopped, for whatever cause, is named.
    pub(super) async fn watch_catalog(self) {
        let node = self.inner.reactor.node();
        let mut named = false;
        loop {
            env::sleep::<E>(FLUSH_LOOK).await;
            if self.inner.closing.get() {
                return;
            }
            let catalog = &self.inner.catalog;
            // A panic in it stops the catalog, as it does in a shard: that is named below.
            let stalled = catalog.domain().catch(|| catalog.log().look_at_storage()).unwrap_or_default();
            if let Some(stalled) = stalled.as_ref().filter(|_| !named) {
                name_stalled(ShardUid::CATALOG, stalled);
            }
            named = stalled.is_some();
            node.note_catalog_stalled(stalled.map(|stalled| stalled.to_string()));
            if let Some(cause) = self.fault() {
                return self.note_stopped(&cause);
            }
        }
    }

    /// Says that this node hears of no changes of topics and nodes any more. Replicas go on as they are; only a start mends a
    /// catalog.
    fn note_stopped(&self, cause: &str) {
        let cause = format!(
            "the catalog has stopped on this node: {cause}; restart the node, which gets what is damaged from the others"
        );
        self.inner.reactor.node().note_fault(ShardUid::CATALOG, &cause);
    }
}
