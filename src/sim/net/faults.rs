//! What a test does to the wires, and how often each of it was met.

use std::collections::BTreeMap;

use super::{SimNetwork, Wires};
use crate::ids::NodeId;

/// Why something did not come as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetFault {
    /// Lost on a path with losses: a datagram for good, bytes of a stream until they were sent again.
    Loss,
    /// A datagram came twice.
    Duplicate,
    /// A datagram or the begin of a stream was overtaken.
    Reorder,
    /// On a path that has its own delay (`set_path`).
    Delay,
    /// Across a `cut`.
    Cut,
    /// Across a `partition`, or from or to an `isolate`d node.
    Partition,
    /// Across a `bridge`.
    Bridge,
    /// Across a `flap`.
    Flap,
    /// From or to a node that is `pause`d.
    Pause,
    /// A connection to a node that has crashed.
    Crash,
    /// A connection over which nothing was heard for the idle time.
    Expiry,
}

impl NetFault {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            NetFault::Loss => "loss",
            NetFault::Duplicate => "duplicate",
            NetFault::Reorder => "reorder",
            NetFault::Delay => "delay",
            NetFault::Cut => "one-way cut",
            NetFault::Partition => "partition",
            NetFault::Bridge => "bridge",
            NetFault::Flap => "flapping",
            NetFault::Pause => "pause",
            NetFault::Crash => "crash",
            NetFault::Expiry => "expiry",
        }
    }
}

/// What met a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// Bytes of a stream.
    Stream,
    /// A datagram.
    Datagram,
    /// A handshake.
    Dial,
    /// A connection as a whole.
    Connection,
}

impl Traffic {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Traffic::Stream => "stream",
            Traffic::Datagram => "datagram",
            Traffic::Dial => "dial",
            Traffic::Connection => "connection",
        }
    }
}

impl SimNetwork {
    /// How often each fault was met, and by what, by their names.
    pub fn fired(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let fired = self.wires.fired.borrow();
        fired.iter().map(|((fault, traffic), count)| ((fault.name(), traffic.name()), *count)).collect()
    }

    /// From now on nothing that `from` sends comes to `to`, until `mend` or `heal`.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.cut_by(NetFault::Cut, &[(from, to)]);
    }

    /// `cut` in both directions.
    pub fn cut_both(&self, a: NodeId, b: NodeId) {
        self.cut_by(NetFault::Cut, &[(a, b), (b, a)]);
    }

    /// Cuts `node` off from all that have an endpoint now.
    pub fn isolate(&self, node: NodeId) {
        let others = self.wires.nodes().into_iter().filter(|other| *other != node);
        let pairs: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
        self.cut_by(NetFault::Partition, &pairs);
    }

    /// Cuts each group off from the other ones. Who is in no group, or in several, is not cut off from anybody.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        self.cut_by(NetFault::Partition, &between(groups));
    }

    /// Cuts `left` off from `right`; `middle` still reaches both.
    pub fn bridge(&self, left: &[NodeId], middle: NodeId, right: &[NodeId]) {
        let but_middle = |group: &[NodeId]| group.iter().copied().filter(|node| *node != middle).collect::<Vec<_>>();
        self.cut_by(NetFault::Bridge, &between(&[&but_middle(left), &but_middle(right)]));
    }

    /// Cuts these pairs (from, to) and mends them again, so many times, at this pace; ends mended. To be spawned by the
    /// caller as a task of no node; dropped, it leaves them as they are then.
    ///
    /// # Panics
    /// Unless the network is `timed`.
    pub async fn flap(&self, pairs: Vec<(NodeId, NodeId)>, down_us: u64, up_us: u64, times: u32) {
        for _ in 0..times {
            self.cut_by(NetFault::Flap, &pairs);
            self.pass(down_us).await;
            for (from, to) in &pairs {
                self.mend(*from, *to);
            }
            self.pass(up_us).await;
        }
    }

    async fn pass(&self, us: u64) {
        let now_us = self.wires.timing.now_us().expect("only a timed network flaps");
        self.wires.timing.until_us(now_us.saturating_add(us)).await;
    }

    /// `World::pause`, for the network: nothing that this node sends comes anywhere, nothing comes to it, and its
    /// connections expire.
    pub fn pause(&self, node: NodeId) {
        let others = self.wires.nodes().into_iter().filter(|other| *other != node);
        self.wires.paused.borrow_mut().insert(node);
        let pairs: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
        self.wires.fall_silent(&pairs);
        self.wake();
    }

    /// Ends `pause`.
    pub fn resume(&self, node: NodeId) {
        if self.wires.paused.borrow_mut().remove(&node) {
            let others = self.wires.nodes().into_iter().filter(|other| *other != node);
            let pairs: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
            self.wires.speak_again(&pairs);
            self.wake();
        }
    }

    /// Ends a cut from `from` to `to`, whatever made it. Connections that have not expired go on, and what waited on
    /// them arrives.
    pub fn mend(&self, from: NodeId, to: NodeId) {
        if self.wires.cuts.borrow_mut().remove(&(from, to)).is_some() {
            self.wires.speak_again(&[(from, to)]);
            self.wake();
        }
    }

    /// Ends all cuts, as `mend` does.
    pub fn heal(&self) {
        let pairs: Vec<_> = std::mem::take(&mut *self.wires.cuts.borrow_mut()).into_keys().collect();
        self.wires.speak_again(&pairs);
        self.wake();
    }

    fn cut_by(&self, fault: NetFault, pairs: &[(NodeId, NodeId)]) {
        let mut new = Vec::new();
        for pair in pairs {
            let before = self.wires.cuts.borrow_mut().insert(*pair, fault);
            if before.is_none() {
                new.push(*pair);
            }
        }
        self.wires.fall_silent(&new);
        self.wake();
    }
}

/// All pairs of nodes of different groups, in both directions.
fn between(groups: &[&[NodeId]]) -> Vec<(NodeId, NodeId)> {
    let mut pairs = Vec::new();
    let in_several = |node: &NodeId| groups.iter().filter(|group| group.contains(node)).count() > 1;
    for (number, group) in groups.iter().enumerate() {
        for other in groups.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, other)| other) {
            for from in group.iter().filter(|node| !in_several(node)) {
                let apart = other.iter().filter(|node| !in_several(node));
                pairs.extend(apart.map(|to| (*from, *to)));
            }
        }
    }
    pairs
}

impl Wires {
    /// Why nothing comes from `from` to `to`.
    pub(super) fn cut_by(&self, from: NodeId, to: NodeId) -> Option<NetFault> {
        let paused = self.paused.borrow();
        if paused.contains(&from) || paused.contains(&to) {
            return Some(NetFault::Pause);
        }
        self.cuts.borrow().get(&(from, to)).copied()
    }

    pub(super) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut_by(from, to).is_some()
    }

    pub(super) fn count(&self, fault: NetFault, traffic: Traffic) {
        *self.fired.borrow_mut().entry((fault, traffic)).or_default() += 1;
    }
}
