//! What a reactor does about a disk that has become slow: the shards that it leads go to replicas on faster ones
//! (`raft::flush_times` says which, and when). They come back by the ordinary balance of leaders (`duties`). A replica whose
//! device does not answer any more is stopped, so that it is seen, and others elect if it led (`log::watched`). The catalog has
//! a look of its own (`watch`).

use std::{collections::BTreeSet, rc::Rc};

use futures_util::{StreamExt, stream};

use super::duties::{LEAVE_AT_ONCE, TRANSFER_MAX};
use crate::{
    env::{self, Env},
    ids::{NodeId, ShardUid},
    limits::FLUSH_LOOK,
    log::Stalled,
    reactor::{Reactor, node::Phase},
    shard::Shard,
};

/// Looks at the flushes of all shards of `reactor`, until the node drains.
pub async fn watch_flushes<E: Env>(reactor: Rc<Reactor<E>>) {
    // Named in the log already.
    let mut stalled = BTreeSet::new();
    while reactor.node().phase() < Phase::Leaving {
        env::sleep::<E>(FLUSH_LOOK).await;
        stalled = look_at_storage(&reactor, &stalled);
        let look = |(uid, shard): (ShardUid, Shard<E>)| shard.look_at_flushes().map(|to| (uid, shard, to));
        let moves: Vec<_> = reactor.open_shards().into_iter().filter_map(look).collect();
        if !moves.is_empty() {
            tracing::warn!(shards = moves.len(), "appends take long on this disk: other nodes are to lead");
            // Each is named once in a pause: the next looks find others.
            env::spawn::<E>(move_away(moves));
        }
    }
}

/// Stops the replicas whose device does not answer any more. Those with an operation that takes long: each is named once.
fn look_at_storage<E: Env>(reactor: &Reactor<E>, named: &BTreeSet<ShardUid>) -> BTreeSet<ShardUid> {
    let look = |(uid, shard): (ShardUid, Shard<E>)| {
        let stalled = shard.look_at_storage()?;
        if !named.contains(&uid) {
            name_stalled(uid, &stalled);
        }
        Some(uid)
    };
    reactor.open_shards().into_iter().filter_map(look).collect()
}

/// Names an operation that takes long in the log.
pub(super) fn name_stalled(uid: ShardUid, stalled: &Stalled) {
    tracing::warn!(shard_uid = uid.0, %stalled, "an operation of storage takes long");
}

async fn move_away<E: Env>(moves: Vec<(ShardUid, Shard<E>, NodeId)>) {
    let transfers = stream::iter(moves).map(|(uid, shard, to)| async move {
        if let Err(error) = shard.transfer(Some(to), TRANSFER_MAX).await {
            tracing::warn!(shard_uid = uid.0, %error, "a shard stays on a slow disk for now");
        }
    });
    transfers.buffer_unordered(LEAVE_AT_ONCE).collect::<()>().await;
}
