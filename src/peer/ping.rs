//! Pings every node each `PEER_PING_INTERVAL`, and lets the detector judge who is alive. On reactor 0.
//!
//! ```text
//! offset width
//!   0      1   1 ping, 2 pong
//!   1      8   the asker's clock in microseconds, as it was in the ping; little-endian
//! ```
//! A node that pings us is alive whether or not it answers our pings; the answers only tell how far it is away.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::select;
use openraft::{AsyncRuntime, Instant as _};

use super::{
    Destination, Inner, Peers, datagram,
    liveness::{Detector, Liveness},
};
use crate::{
    env::{Env, net::Connection},
    ids::NodeId,
    limits,
};

const BYTES: usize = 9;

/// Until the connections are closed.
pub(super) async fn run<E: Env>(peers: Peers<E>) {
    let start = <E::Runtime as AsyncRuntime>::Instant::now();
    let mut detector = Detector::default();
    loop {
        let ending = peers.inner.ending.notified();
        if peers.is_closed() {
            return;
        }
        let now_us = (<E::Runtime as AsyncRuntime>::Instant::now() - start).as_micros() as u64;
        let nodes: Vec<NodeId> = peers.book().snapshot().keys().copied().filter(|node| *node != peers.me()).collect();
        judge(&mut detector, peers.liveness(), &nodes, now_us);
        for node in nodes {
            peers.send_datagram(Destination { node, slot: 0 }, encode(datagram::PING, E::monotonic_us()));
        }
        select(Box::pin(E::Runtime::sleep(limits::PEER_PING_INTERVAL)), ending).await;
    }
}

/// One look: what has beaten since the last one was heard now.
fn judge(detector: &mut Detector, liveness: &Liveness, nodes: &[NodeId], now_us: u64) {
    for gone in detector.set_members(nodes.iter().copied(), now_us) {
        // Whoever is no member is neither dead nor alive; that it was dead does not stay.
        liveness.note(gone, true);
    }
    for node in nodes {
        if liveness.pulse(*node).take() {
            detector.note_heard(*node, now_us);
        }
    }
    let found = detector.look(now_us);
    for node in found.died {
        tracing::warn!(%node, silent = ?limits::PEER_SILENT_MAX, "node is taken for dead: nothing was heard of it");
        liveness.note(node, false);
    }
    for node in found.revived {
        tracing::info!(%node, "node is alive again");
        liveness.note(node, true);
    }
}

fn encode(kind: u8, clock_us: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(BYTES);
    bytes.put_u8(kind);
    bytes.put_u64_le(clock_us);
    bytes.freeze()
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let clock = bytes.get(1..BYTES)?.try_into().ok()?;
    Some(u64::from_le_bytes(clock))
}

/// Sends the ping back, to reactor 0 of who sent it.
pub(super) fn answer<E: Env>(inner: &Rc<Inner<E>>, from: NodeId, ping: &[u8]) {
    let Some(clock_us) = decode(ping) else { return };
    if let Ok(super::dial::Look::Ready(connection, _)) = inner.look(Destination { node: from, slot: 0 }) {
        connection.send_datagram(encode(datagram::PONG, clock_us));
    }
}

/// A ping of ours came back.
pub(super) fn note_answer<E: Env>(inner: &Rc<Inner<E>>, from: NodeId, pong: &[u8]) {
    let now_us = E::monotonic_us();
    // A clock that we never had is not ours: bytes of a peer are not believed.
    if let Some(elapsed_us) = decode(pong).and_then(|clock_us| now_us.checked_sub(clock_us)) {
        inner.liveness.note_round_trip(from, elapsed_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pings and pongs of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = [encode(datagram::PING, 7), encode(datagram::PONG, u64::MAX)];
        crate::fuzz::Target::new("peer::ping::tests::fuzz", corpus, decode)
            .encode(|clock_us| encode(datagram::PING, *clock_us).to_vec())
            .run();
    }
}
