//! Which nodes were heard of lately. Reactor 0 pings every node; whoever is silent for longer than the time-out is
//! taken for dead by all reactors, and the groups that it led elect another leader at once.
//!
//! A detector, not a truth: a paused or cut-off node looks dead, and comes back.
//!
//! - `Liveness`: what is known, shared by all threads of a node
//! - `Pulse`: beats when anything comes from one node, on whatever reactor
//! - `Detector`: pure; decides from the beats and the time who is dead. `peer::ping` runs it

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::clocks::Clocks;
use crate::{ids::NodeId, limits};

/// Shared by all threads of a node.
#[derive(Debug)]
pub struct Liveness {
    dead: watch::Sender<Arc<BTreeSet<NodeId>>>,
    /// As many as nodes were ever heard of; their numbers come from proven certificates or from the catalog.
    pulses: Mutex<BTreeMap<NodeId, Arc<Pulse>>>,
    clocks: Clocks,
}

/// What has come from one node.
#[derive(Debug, Default)]
pub struct Pulse {
    beaten: AtomicBool,
    changes: AtomicU64,
    round_trip_us: AtomicU64,
}

impl Pulse {
    /// Something has come. Costs a look at memory that is rarely written.
    pub fn beat(&self) {
        if !self.beaten.load(Relaxed) {
            self.beaten.store(true, Relaxed);
        }
    }

    /// Whether anything has come since the last call of this.
    pub(super) fn take(&self) -> bool {
        self.beaten.swap(false, Relaxed)
    }

    /// How often the node has died or come back.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness { dead: watch::Sender::new(Arc::default()), pulses: Mutex::default(), clocks: Clocks::default() }
    }
}

impl Liveness {
    /// Whether the node was heard of lately, or nobody has looked yet.
    pub fn is_alive(&self, node: NodeId) -> bool {
        !self.dead.borrow().contains(&node)
    }

    /// Notes what the detector finds.
    pub fn note(&self, node: NodeId, alive: bool) {
        let pulse = self.pulse(node);
        self.dead.send_if_modified(|dead| {
            if dead.contains(&node) != alive {
                return false;
            }
            let mut changed = BTreeSet::clone(dead);
            if alive {
                changed.remove(&node);
            } else {
                changed.insert(node);
            }
            *dead = Arc::new(changed);
            // Within the table's own lock: whoever sees the change in the table sees it counted.
            pulse.changes.fetch_add(1, Relaxed);
            true
        });
    }

    /// The dead, and a way to wait for the next change.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeSet<NodeId>>> {
        self.dead.subscribe()
    }

    /// The node's pulse: for whoever receives from it.
    pub fn pulse(&self, node: NodeId) -> Arc<Pulse> {
        let mut pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pulses.entry(node).or_default())
    }

    /// How the nodes' wall clocks stand.
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// How long the last ping of the node took to come back; `None` before the first.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        let us = self.pulse(node).round_trip_us.load(Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    pub(super) fn note_round_trip(&self, node: NodeId, us: u64) {
        self.pulse(node).round_trip_us.store(us.max(1), Relaxed);
    }
}

/// Decides who is dead. Times are microseconds of any clock that does not go back.
///
/// A member is dead when nothing was heard of it for `PEER_SILENT_MAX`, counted from the latest of: it was heard, it
/// became a member, our own stall ended. It is alive again with the next that is heard of it.
#[derive(Debug, Default)]
pub struct Detector {
    members: BTreeMap<NodeId, Member>,
    /// Of the last call of `look`.
    looked_us: Option<u64>,
    /// End of our own last stall: silence before it was ours.
    grace_us: u64,
}

#[derive(Debug)]
struct Member {
    heard_us: u64,
    is_dead: bool,
}

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Taken for dead from now on.
    pub died: Vec<NodeId>,
    /// Alive from now on.
    pub revived: Vec<NodeId>,
}

impl Detector {
    /// From now on these are the members; who is new has the whole time to be heard. Returns who is one no longer.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = NodeId>, now_us: u64) -> Vec<NodeId> {
        let mut before = std::mem::take(&mut self.members);
        for node in members {
            let member = before.remove(&node).unwrap_or(Member { heard_us: now_us, is_dead: false });
            self.members.insert(node, member);
        }
        before.into_keys().collect()
    }

    /// Something came from `node`.
    pub fn note_heard(&mut self, node: NodeId, now_us: u64) {
        if let Some(member) = self.members.get_mut(&node) {
            member.heard_us = member.heard_us.max(now_us);
        }
    }

    /// Who has died and who is back since the last look. To be called each `PEER_PING_INTERVAL`; when it was not for
    /// longer than `PEER_OWN_STALL_MAX` beyond that, nobody is declared dead for a whole `PEER_SILENT_MAX` from now.
    pub fn look(&mut self, now_us: u64) -> Found {
        let late_us = (limits::PEER_PING_INTERVAL + limits::PEER_OWN_STALL_MAX).as_micros() as u64;
        if self.looked_us.is_some_and(|last| now_us.saturating_sub(last) > late_us) {
            self.grace_us = now_us;
        }
        let last = self.looked_us.replace(now_us);
        let mut found = Found::default();
        for (node, member) in &mut self.members {
            let silent_us = now_us.saturating_sub(member.heard_us.max(self.grace_us));
            if member.is_dead {
                // Heard after the look that found it dead, or after any later one.
                if last.is_some_and(|last| member.heard_us > last) {
                    member.is_dead = false;
                    found.revived.push(*node);
                }
            } else if silent_us >= limits::PEER_SILENT_MAX.as_micros() as u64 {
                member.is_dead = true;
                found.died.push(*node);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn died(nodes: &[NodeId]) -> Found {
        Found { died: nodes.to_vec(), revived: Vec::new() }
    }

    fn revived(nodes: &[NodeId]) -> Found {
        Found { died: Vec::new(), revived: nodes.to_vec() }
    }

    fn ms(ms: u64) -> u64 {
        ms * 1_000
    }

    /// Looks each 100 ms over that time, hearing those, and expects that nothing changes.
    fn quiet(detector: &mut Detector, from_ms: u64, to_ms: u64, heard: &[NodeId]) {
        for at in (from_ms..=to_ms).step_by(100) {
            heard.iter().for_each(|node| detector.note_heard(*node, ms(at)));
            assert_eq!(detector.look(ms(at)), Found::default(), "at {at} ms");
        }
    }

    /// Silent for 600 ms is dead, once; heard again is alive, once.
    #[test]
    fn silence_and_return() {
        let mut detector = Detector::default();
        detector.set_members([A, B], 0);
        quiet(&mut detector, 100, 1_000, &[A, B]);
        quiet(&mut detector, 1_100, 1_500, &[A]);
        detector.note_heard(A, ms(1_600));
        assert_eq!(detector.look(ms(1_600)), died(&[B]));
        quiet(&mut detector, 1_700, 2_500, &[A]);
        detector.note_heard(A, ms(2_600));
        detector.note_heard(B, ms(2_600));
        assert_eq!(detector.look(ms(2_600)), revived(&[B]));
        quiet(&mut detector, 2_700, 3_100, &[A]);
    }

    /// Who was never heard of is dead 600 ms after it became a member, not before; who is none is not looked at.
    #[test]
    fn never_heard() {
        let mut detector = Detector::default();
        detector.set_members([A], 0);
        quiet(&mut detector, 100, 500, &[A]);
        assert_eq!(detector.set_members([A, B], ms(550)), []);
        quiet(&mut detector, 600, 1_100, &[A]);
        detector.note_heard(A, ms(1_200));
        assert_eq!(detector.look(ms(1_200)), died(&[B]));
        assert_eq!(detector.set_members([A], ms(1_250)), [B], "whoever leaves is named");
        detector.note_heard(B, ms(1_260));
        quiet(&mut detector, 1_300, 1_800, &[A]);
    }

    /// After a stall of our own nobody dies at once, and nobody is revived by it; who stays silent dies a whole time later.
    #[test]
    fn own_stall() {
        let mut detector = Detector::default();
        detector.set_members([A, B], 0);
        quiet(&mut detector, 100, 500, &[A]);
        detector.note_heard(A, ms(600));
        assert_eq!(detector.look(ms(600)), died(&[B]));
        // Stopped for five seconds, then back in step.
        quiet(&mut detector, 5_600, 6_100, &[]);
        assert_eq!(detector.look(ms(6_200)), died(&[A]));
        // Late by less than the allowance: no grace.
        let mut detector = Detector::default();
        detector.set_members([A], 0);
        quiet(&mut detector, 100, 300, &[]);
        assert_eq!(detector.look(ms(690)), died(&[A]));
    }

    /// The table tells those who wait of each change, once, and counts the changes of a node.
    #[test]
    fn table() {
        let liveness = Liveness::default();
        let mut watch = liveness.watch();
        assert!(liveness.is_alive(A));
        liveness.note(A, true);
        assert!(!watch.has_changed().unwrap(), "it was alive already");
        liveness.note(A, false);
        liveness.note(A, false);
        assert!(watch.has_changed().unwrap());
        assert!(watch.borrow_and_update().contains(&A) && !liveness.is_alive(A) && liveness.is_alive(B));
        liveness.note(A, true);
        assert_eq!((liveness.pulse(A).changes(), liveness.pulse(B).changes()), (2, 0));
        let pulse = liveness.pulse(B);
        assert!(!pulse.take());
        liveness.pulse(B).beat();
        assert!(pulse.take() && !pulse.take());
        assert_eq!(liveness.round_trip(A), None);
        liveness.note_round_trip(A, 250);
        assert_eq!(liveness.round_trip(A), Some(Duration::from_micros(250)));
    }
}
