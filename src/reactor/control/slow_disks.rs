//! What a reactor does about a disk that has become slow: the shards that it leads go to replicas on faster ones
//! (`raft::flush_times` says which, and when). They come back by the ordinary balance of leaders (`duties`).

use std::rc::Rc;

use futures_util::{StreamExt, stream};

use super::duties::{LEAVE_AT_ONCE, TRANSFER_MAX};
use crate::{
    env::{self, Env},
    ids::{NodeId, ShardUid},
    limits::FLUSH_LOOK,
    reactor::{Reactor, node::Phase},
    shard::Shard,
};

/// Looks at the flushes of all shards of `reactor`, until the node drains.
pub async fn watch_flushes<E: Env>(reactor: Rc<Reactor<E>>) {
    while reactor.node().phase() < Phase::Leaving {
        env::sleep::<E>(FLUSH_LOOK).await;
        let look = |(uid, shard): (ShardUid, Shard<E>)| shard.look_at_flushes().map(|to| (uid, shard, to));
        let moves: Vec<_> = reactor.open_shards().into_iter().filter_map(look).collect();
        if !moves.is_empty() {
            tracing::warn!(shards = moves.len(), "appends take long on this disk: other nodes are to lead");
            // Each is named once in a pause: the next looks find others.
            env::spawn::<E>(move_away(moves));
        }
    }
}

async fn move_away<E: Env>(moves: Vec<(ShardUid, Shard<E>, NodeId)>) {
    let transfers = stream::iter(moves).map(|(uid, shard, to)| async move {
        if let Err(error) = shard.transfer(Some(to), TRANSFER_MAX).await {
            tracing::warn!(shard_uid = uid.0, %error, "a shard stays on a slow disk for now");
        }
    });
    transfers.buffer_unordered(LEAVE_AT_ONCE).collect::<()>().await;
}
