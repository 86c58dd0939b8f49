//! Puts a node's parts together for an `Env`: what a reactor consists of, how the node recovers, and how it ends. The same
//! for the real world (`life`, which adds threads, sockets and signals) and for a simulated one.

use std::{rc::Rc, sync::Arc, time::Duration};

use crate::{
    env::{self, Env, reserve},
    frontend::refusal,
    ids::{NodeId, ReactorNumber},
    peer::{Peers, book::to_peer_node},
    proto::ringlog::state::v1::ClusterNode,
    reactor::{
        Reactor,
        control::{Control, duties, join::Trust, slow_disks},
        gossip,
        inbound::Inbound,
        node::Node,
    },
    server::boot::boot,
};

/// A reactor of node `me` with its disk and its connections to other nodes, which it answers from now on. It takes no
/// requests from its mailbox yet.
pub fn reactor<E: Env>(
    me: NodeId,
    number: ReactorNumber,
    node: &Arc<Node>,
    disk: E::Disk,
    net: E::Net,
) -> Rc<Reactor<E>> {
    let reactor = Reactor::<E>::new(number, Arc::clone(node), disk);
    let peers =
        Peers::new(me, number, net, Arc::clone(&node.book), Arc::clone(&node.liveness), reactor.budget().clone());
    peers.serve(Inbound::new(Rc::clone(&reactor), refusal::refusal));
    reactor.set_peers(peers);
    reactor
}

/// Recovers the node, on reactor 0: the others are looked for, then the catalog and all replicas are opened (`boot`).
/// `members`: who belonged to the cluster as far as this node remembers.
///
/// # Errors
/// In one sentence: what is wrong, and what to do.
pub async fn recover<E: Env>(
    reactor: &Rc<Reactor<E>>,
    members: &[ClusterNode],
    trust: Trust,
) -> Result<Control<E>, String> {
    let node = reactor.node();
    let own = node.own_entry();
    let others = members.iter().filter(|member| member.node_id != own.node_id);
    node.book.publish(others.chain([&own]).map(to_peer_node).collect::<Vec<_>>());
    reactor.peers().watch_liveness();
    keep_reserve(reactor).await;
    let gossip = gossip::start(reactor);
    reactor.hooks().set_datagrams(move |from, datagram| gossip.feed(from, &datagram));
    boot(Rc::clone(reactor), trust).await
}

/// How often it is looked whether the disk's reserve is there.
const RESERVE_INTERVAL: Duration = Duration::from_secs(10);

/// Lays the disk's reserve by, now and again whenever it was used and there is space, until the node's connections close.
async fn keep_reserve<E: Env>(reactor: &Rc<Reactor<E>>) {
    if let Err(error) = reserve::keep(reactor.disk()).await {
        tracing::warn!(%error, "no space can be kept for what frees space on a full disk");
    }
    let reactor = Rc::clone(reactor);
    env::spawn::<E>(async move {
        while !reactor.peers().is_closed() {
            env::sleep::<E>(RESERVE_INTERVAL).await;
            // Told at the start; and while the disk is full everybody says so.
            drop(reserve::keep(reactor.disk()).await);
        }
    });
}

/// From now on a reactor of a node that serves looks after the shards that it leads, until the node leaves.
pub fn look_after<E: Env>(reactor: &Rc<Reactor<E>>) {
    env::spawn::<E>(duties::look_after(Rc::clone(reactor)));
    env::spawn::<E>(slow_disks::watch_flushes(Rc::clone(reactor)));
}

/// Hands the leaderships of a reactor to other nodes; on reactor 0 that of the catalog, too.
pub async fn hand_over<E: Env>(reactor: &Rc<Reactor<E>>, control: Option<&Control<E>>) {
    if let Some(control) = control {
        control.leave().await;
    }
    duties::leave(reactor).await;
}

/// Closes the shards of this reactor; on reactor 0 then the catalog; its connections last.
///
/// # Errors
/// In one sentence; the next start recovers.
pub async fn close<E: Env>(reactor: &Rc<Reactor<E>>, control: Option<Control<E>>) -> Result<(), String> {
    if let Some(control) = &control {
        control.stop();
    }
    reactor.close().await;
    if let Some(gossip) = reactor.gossip() {
        gossip.leave();
    }
    let closed = match control {
        Some(control) => control.close().await.map_err(|error| format!("the catalog did not close cleanly: {error}")),
        None => Ok(()),
    };
    reactor.peers().close().await;
    closed
}
