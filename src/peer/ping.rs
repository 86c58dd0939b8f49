//! Pings every node each `PEER_PING_INTERVAL`, and lets the detector judge who is alive. On reactor 0.
//!
//! ```text
//! offset width
//!   0      1   1 ping, 2 pong
//!   1      8   the asker's monotonic clock in microseconds, as it was in the ping; little-endian
//!   9      8   of a pong: the answerer's wall clock in microseconds; absent before 0.2, whose nodes ignore it
//! ```
//! A node that pings us is alive whether or not it answers our pings; the answers only tell how far it is away.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::select;
use openraft::{AsyncRuntime, Instant as _};

use super::{
    Destination, Inner, Peers, clocks, datagram,
    liveness::{Detector, Liveness},
};
use crate::{
    env::{Env, net::Connection},
    ids::NodeId,
    limits,
};

const BYTES: usize = 9;

/// Of a pong that tells the time.
const TIMED_BYTES: usize = 17;

/// Until the connections are closed.
pub(super) async fn run<E: Env>(peers: Peers<E>) {
    let start = <E::Runtime as AsyncRuntime>::Instant::now();
    let (mut detector, mut clock) = (Detector::default(), OwnClock::default());
    loop {
        let ending = peers.inner.ending.notified();
        if peers.is_closed() {
            return;
        }
        let now_us = (<E::Runtime as AsyncRuntime>::Instant::now() - start).as_micros() as u64;
        let nodes: Vec<NodeId> = peers.book().snapshot().keys().copied().filter(|node| *node != peers.me()).collect();
        judge(&mut detector, peers.liveness(), &nodes, now_us);
        clock.look::<E>(peers.me(), peers.liveness());
        for node in nodes {
            let ping = encode(datagram::PING, E::monotonic_us(), None);
            peers.send_datagram(Destination { node, slot: 0 }, ping);
        }
        select(Box::pin(E::Runtime::sleep(limits::PEER_PING_INTERVAL)), ending).await;
    }
}

/// One look: what has beaten since the last one was heard now.
fn judge(detector: &mut Detector, liveness: &Liveness, nodes: &[NodeId], now_us: u64) {
    for gone in detector.set_members(nodes.iter().copied(), now_us) {
        // Whoever is no member is neither dead nor alive; that it was dead does not stay.
        liveness.note(gone, true);
        liveness.clocks().forget(gone);
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

/// Notes this node's wall clock, and says once when it begins or ends to differ from the others'.
#[derive(Debug, Default)]
struct OwnClock {
    differs: bool,
}

impl OwnClock {
    fn look<E: Env>(&mut self, me: NodeId, liveness: &Liveness) {
        let now_us = E::monotonic_us();
        liveness.clocks().note(me, now_us, E::wall_us());
        let found = liveness.clocks().difference(me, now_us);
        let differs = found.is_some_and(|found| found.differs);
        if std::mem::replace(&mut self.differs, differs) == differs {
            return;
        }
        let ahead_s = found.map_or(0.0, |found| found.ahead_us as f64 / 1e6);
        if differs {
            tracing::warn!(ahead_s, limit = ?clocks::DIFFERENCE_MAX,
                "this node's clock differs from the other nodes': it trims nothing by age; check time synchronisation");
        } else {
            tracing::info!(ahead_s, "this node's clock agrees with the other nodes' again");
        }
    }
}

fn encode(kind: u8, clock_us: u64, wall_us: Option<i64>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(TIMED_BYTES);
    bytes.put_u8(kind);
    bytes.put_u64_le(clock_us);
    if let Some(wall_us) = wall_us {
        bytes.put_i64_le(wall_us);
    }
    bytes.freeze()
}

/// The asker's clock, and the answerer's wall clock if it is told.
fn decode(bytes: &[u8]) -> Option<(u64, Option<i64>)> {
    let clock = bytes.get(1..BYTES)?.try_into().ok()?;
    let wall = bytes.get(BYTES..TIMED_BYTES).and_then(|wall| wall.try_into().ok());
    Some((u64::from_le_bytes(clock), wall.map(i64::from_le_bytes)))
}

/// Sends the ping back, to reactor 0 of who sent it.
pub(super) fn answer<E: Env>(inner: &Rc<Inner<E>>, from: NodeId, ping: &[u8]) {
    let Some((clock_us, _)) = decode(ping) else { return };
    if let Ok(super::dial::Look::Ready(connection, _)) = inner.look(Destination { node: from, slot: 0 }) {
        connection.send_datagram(encode(datagram::PONG, clock_us, Some(E::wall_us())));
    }
}

/// A ping of ours came back.
pub(super) fn note_answer<E: Env>(inner: &Rc<Inner<E>>, from: NodeId, pong: &[u8]) {
    let now_us = E::monotonic_us();
    let Some((clock_us, wall_us)) = decode(pong) else { return };
    // A clock that we never had is not ours: bytes of a peer are not believed.
    let Some(elapsed_us) = now_us.checked_sub(clock_us) else { return };
    inner.liveness.note_round_trip(from, elapsed_us);
    if let Some(wall_us) = wall_us.filter(|_| elapsed_us <= clocks::ROUND_TRIP_MAX.as_micros() as u64) {
        inner.liveness.clocks().note(from, now_us, wall_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{env::quic::tests::Lines, sim::TestEnv};

    /// A node whose clock is over a minute from most others' says so, once, and by how much.
    #[test]
    fn a_clock_that_differs_is_told() {
        TestEnv::reset(1);
        let (lines, _guard) = Lines::catch();
        let (mut clock, liveness) = (OwnClock::default(), Liveness::default());
        let mut look = |behind_us: i64| {
            for node in [2, 3] {
                liveness.clocks().note(NodeId(node), TestEnv::monotonic_us(), TestEnv::wall_us() - behind_us);
            }
            clock.look::<TestEnv>(NodeId(1), &liveness);
        };
        look(59_000_000);
        assert_eq!(lines.text(), "");
        look(90_000_000);
        look(90_000_000);
        let text = lines.text();
        assert_eq!(text.matches("clock differs from the other nodes'").count(), 1, "{text}");
        assert!(text.contains("WARN") && text.contains("ahead_s=90.0"), "{text}");
        look(0);
        look(-90_000_000);
        assert!(lines.text().contains("ahead_s=-90.0"), "{}", lines.text());
    }

    /// Pings and pongs of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = [
            encode(datagram::PING, 7, None),
            encode(datagram::PONG, u64::MAX, None),
            encode(datagram::PONG, 7, Some(i64::MIN)),
        ];
        crate::fuzz::Target::new("peer::ping::tests::fuzz", corpus, decode)
            .encode(|(clock_us, wall_us)| encode(datagram::PING, *clock_us, *wall_us).to_vec())
            .run();
    }
}
