//! Disks without room: for a while, or until what is let go makes room.
//!
//! The second kind is full until the end of the load. Then everything else is whole, no records come any more, and it is still
//! full: the node votes when a leader dies, and when all that was committed is let go its replicas come to have what the others
//! have. Nobody gives it space but the trims.

use std::{rc::Rc, time::Duration};

use super::{Run, judge::within_time, plan::Who, steps::sleep_ms};
use crate::{
    env::{self, Disk},
    ids::{NodeId, ShardUid},
    limits::STUCK_BYTES_MAX,
    shard::Shard,
    sim::{SimEnv, World, client::Target},
};

/// How long nodes have to serve again before a full disk is judged.
const SERVING_MAX: Duration = Duration::from_secs(60);

/// How long the others have to elect a leader with the vote of a node whose disk is full.
const ELECTED_MAX: Duration = Duration::from_secs(20);

/// How long a trim has to be done, and to free the disk. The leader waits for a follower before it deletes what that lacks.
const FREED_MAX: Duration = Duration::from_secs(120);

/// Segments of each replica, at least, of which all but the last are let go: more than a disk needs to take entries again.
const SEGMENTS_MIN: u32 = 4;

/// Most that waits for space in a replica, and that it is lent for one leader.
const STUCK_BYTES: u64 = STUCK_BYTES_MAX as u64;

/// What their files and checkpoints take beside the entries.
const OVERHEAD_BYTES: u64 = 1 << 20;

const LOOK: Duration = Duration::from_millis(100);

impl Run {
    /// A step: a disk has no more room, for a while, or (`for_ms` 0) until the end.
    pub(super) async fn fill(self: &Rc<Self>, who: Who, for_ms: u64) {
        let Some(node) = self.find(who).filter(|node| self.full.get() != Some(*node)) else { return };
        self.note_paths("full disk", node);
        let Some(disk) = self.cluster.disk(node) else { return };
        self.filled.set(true);
        if disk.capacity().is_none() {
            // The reserve may be given away since it was full before: nobody else has taken that space.
            let reserve = disk.reserve().filter(|reserve| !disk.paths().contains(&reserve.path));
            disk.set_capacity(Some(disk.used_bytes() + reserve.map_or(0, |reserve| reserve.bytes)));
        }
        if for_ms == 0 {
            return self.full.set(Some(node));
        }
        sleep_ms(for_ms).await;
        // After a crash it is another one, and as full.
        let Some(disk) = self.cluster.disk(node).filter(|_| self.full.get() != Some(node)) else { return };
        disk.set_capacity(None);
        if self.cluster.failure(node).is_some() {
            self.restart(node);
        }
    }

    /// Judges a node whose disk is full since a step, when nothing else is broken any more, and gives it space.
    pub(super) async fn end_full(self: &Rc<Self>) {
        let Some(node) = self.full.get().filter(|node| self.cluster.nodes().contains(node)) else { return };
        self.clients.stop().await;
        for other in self.cluster.nodes() {
            if self.may_stop(other) {
                self.restart(other);
            }
            self.cluster.start(other);
        }
        let all = self.cluster.nodes();
        let serve = || all.iter().all(|node| self.cluster.process(*node).is_some_and(|process| process.serves()));
        let whole =
            || all.iter().all(|node| self.cluster.process(*node).is_some_and(|node| node.node.fault_count() == 0));
        let settled =
            || serve() && whole() && self.clients.targets().iter().all(|target| self.is_led_beside(node, target));
        if within_time(SERVING_MAX, until(settled)).await {
            let voted = self.vote_beside_full(node).await;
            self.trim_full(node, voted).await;
        } else {
            World::current().note(&format!("node {node} is not judged with its full disk"));
        }
        if let Some(disk) = self.cluster.disk(node) {
            disk.set_capacity(None);
        }
    }

    /// Whether a shard has a leader and, if this node has a replica, one of several segments there.
    fn is_led_beside(&self, node: NodeId, target: &Target) -> bool {
        self.cluster.leader(target.uid).is_some()
            && self.statuses(target).get(&node).is_none_or(|status| status.segments >= SEGMENTS_MIN)
    }

    /// The leader of a shard dies: another one is elected with the vote of the node whose disk is full. In which shard, if any fits.
    async fn vote_beside_full(&self, node: NodeId) -> Option<ShardUid> {
        for target in self.clients.targets() {
            let Some(leader) = self.cluster.leader(target.uid).filter(|leader| *leader != node) else { continue };
            let Some(members) = self.standing(leader, target.uid).map(|standing| standing.members) else { continue };
            let is_of_three = members.voters.len() == 3 && members.voters.contains(&node) && !members.changing;
            if !is_of_three || !members.voters.iter().all(|voter| self.standing(*voter, target.uid).is_some()) {
                continue;
            }
            // What waits at the full one is written before its vote, and what it lacks before a new leader's first entry.
            let lacks_little =
                |other: &NodeId| self.lacks_bytes(node, *other, &target).is_some_and(|bytes| bytes <= STUCK_BYTES);
            if !members.voters.iter().all(lacks_little) || self.left_bytes(node) < 2 * STUCK_BYTES + OVERHEAD_BYTES {
                self.coverage.borrow_mut().hit("full disk", "far behind");
                continue;
            }
            self.coverage.borrow_mut().hit("full disk", "vote");
            self.cluster.kill(leader);
            if !within_time(ELECTED_MAX, until(|| self.cluster.leader(target.uid).is_some())).await {
                let (uid, state) = (target.uid, self.describe());
                self.problem(format!(
                    "shard {uid} has no leader {ELECTED_MAX:?} after the last one died, beside the full disk of node \
                     {node}: {state}"
                ));
            }
            self.cluster.start(leader);
            let back = || self.cluster.process(leader).is_some_and(|process| process.serves());
            let all_led =
                || back() && self.clients.targets().iter().all(|target| self.cluster.leader(target.uid).is_some());
            within_time(SERVING_MAX, until(all_led)).await;
            return Some(target.uid);
        }
        None
    }

    /// Asks a node's replica; `None` if there is none.
    fn ask<R>(&self, node: NodeId, target: &Target, what: impl FnOnce(&Shard<SimEnv>) -> R) -> Option<R> {
        let shard = self.cluster.process(node)?.shard(target.uid)?;
        Some(World::current().on(node, || what(&shard)))
    }

    /// What a replica lacks at most of another one.
    fn lacks_bytes(&self, node: NodeId, other: NodeId, target: &Target) -> Option<u64> {
        let last = self.ask(node, target, Shard::last)?;
        self.ask(other, target, |shard| shard.bytes_behind(last))
    }

    /// Whether the leader keeps what follows on a replica's last entry, though it is trimmed, since it is in the last segment. A replica
    /// that was lent all that a full disk lends for one leader waits for space then, and does not hear of the trim; where the leader
    /// has nothing of that any more, a snapshot frees it.
    fn waits_for_entries(&self, node: NodeId, target: &Target) -> bool {
        let waits = || {
            let leader = self.cluster.leader(target.uid)?;
            let last = self.ask(node, target, Shard::last)??;
            Some(self.ask(leader, target, Shard::first_index)? <= last.index.next())
        };
        waits().unwrap_or(false)
    }

    /// What a full disk has left for what frees space, its reserve with it.
    fn left_bytes(&self, node: NodeId) -> u64 {
        let Some(disk) = self.cluster.disk(node) else { return 0 };
        let reserve = disk.reserve().filter(|reserve| disk.paths().contains(&reserve.path));
        let free = disk.capacity().map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes()));
        free.saturating_add(reserve.map_or(0, |reserve| reserve.bytes))
    }

    /// All that is committed is let go: that frees the disk, and its replicas come to be like the others. That of `voted` had all when
    /// its leader was elected.
    async fn trim_full(self: &Rc<Self>, node: NodeId, voted: Option<ShardUid>) {
        let on_it = |target: &Target| self.statuses(target).contains_key(&node);
        let targets: Vec<Target> = self.clients.targets().into_iter().filter(on_it).collect();
        for target in &targets {
            let trimmed = async {
                while !self.trim_shard(target, 4).await {
                    env::sleep::<SimEnv>(LOOK).await;
                }
            };
            if !within_time(FREED_MAX, trimmed).await {
                let (uid, state) = (target.uid, self.describe());
                return self
                    .problem(format!("shard {uid} cannot be trimmed beside the full disk of node {node}: {state}"));
            }
        }
        for target in &targets {
            self.coverage.borrow_mut().hit("full disk", "trim");
            if within_time(FREED_MAX, until(|| self.agrees(target))).await {
                continue;
            }
            if voted != Some(target.uid) && self.waits_for_entries(node, target) {
                self.coverage.borrow_mut().hit("full disk", "lent too little");
            } else {
                let (uid, state) = (target.uid, self.describe());
                self.problem(format!(
                    "the replica of shard {uid} on node {node}, whose disk is full, is not like the others \
                     {FREED_MAX:?} after all was let go: {state}"
                ));
            }
        }
    }
}

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        env::sleep::<SimEnv>(LOOK).await;
    }
}
