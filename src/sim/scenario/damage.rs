//! Steps that take away or change what a disk had: rot at rest, writes that go wrong, syncs that lie, an old image put back.
//!
//! No design outlives all of it, so it is kept within what this one must survive: one disk of a run is struck, and what it
//! loses without a trace (the end of its log, which looks like a torn write or was never there) is at that moment on all
//! other replicas, too. Blocks that cannot be read are lost only where the others are a majority without it. Everything else it
//! finds out itself.

use std::{cell::Cell, ffi::OsStr, path::Path, time::Duration};

use super::{
    Run,
    plan::{Action, Who},
    steps::sleep_ms,
};
use crate::{
    env,
    ids::{LogId, NodeId, ShardUid, Term},
    raft::Members,
    sim::{DiskFault, PlantedFault, SimEnv, World, random},
};

/// How long a step waits for all replicas to have everything before it is given up, and how often it looks.
const WHOLE_MAX_MS: u64 = 20_000;
pub(super) const LOOK_MS: u64 = 5;

impl Run {
    pub(super) async fn damage(&self, action: Action) {
        match action {
            Action::Rot { who, fault, blocks, down_ms, seed } => self.rot(who, fault, blocks, down_ms, seed).await,
            Action::Bend { who, fault, file, times } => {
                let Some(node) = self.victim(fault.name(), who) else { return };
                let Some(disk) = self.cluster.disk(node) else { return };
                // A vote has two copies: whoever loses both is lost.
                if file == "hard_state" && self.vote_struck.replace(true) {
                    return;
                }
                let times = if file == "hard_state" { 1 } else { times };
                disk.plant_fault(PlantedFault { fault, path_contains: file.to_owned(), chance_ppm: 300_000, times });
            }
            Action::Lie { who, for_ms, down_ms, seed } => self.lie(who, for_ms, down_ms, seed).await,
            Action::Restore { who, age_ms, down_ms, seed } => self.restore(who, age_ms, down_ms, seed).await,
            _ => unreachable!("the other steps are in steps.rs"),
        }
    }

    async fn rot(&self, who: Who, fault: DiskFault, blocks: u64, down_ms: Option<u64>, seed: u64) {
        let Some(node) = self.victim(fault.name(), who) else { return };
        if !self.until_whole(node).await {
            return;
        }
        if fault == DiskFault::LostBlock && !self.has_other_majority(node) {
            World::current().note(&format!("node {node} is one of two voters: none of its blocks is lost"));
            return;
        }
        if down_ms.is_some() {
            self.cluster.crash(node, seed);
        }
        let Some(disk) = self.cluster.disk(node) else { return };
        let dice = Cell::new(seed);
        // Of votes one copy is damaged, as it is written (`Bend`).
        let has = |path: &Path, extension: &str| path.extension().and_then(OsStr::to_str) == Some(extension);
        let is_checkpoint = |path: &Path| has(path, "checkpoint");
        let is_log = |path: &Path| has(path, "store") || has(path, "index") || is_checkpoint(path);
        // Of the blocks of a log hardly any is one of a checkpoint.
        let of_checkpoints = Cell::new(seed ^ 0x6368_6563_6b73);
        for _ in 0..blocks {
            let only_checkpoints = random(&of_checkpoints).is_multiple_of(4);
            let chosen = |path: &Path| if only_checkpoints { is_checkpoint(path) } else { is_log(path) };
            if let Some(damage) = disk.damage_at_rest(fault, chosen, &dice) {
                self.coverage.borrow_mut().hit(fault.name(), "file at rest");
                if is_checkpoint(&damage.path) {
                    self.coverage.borrow_mut().hit("damage", "checkpoint");
                }
            }
        }
        if let Some(ms) = down_ms {
            sleep_ms(ms).await;
            self.cluster.start(node);
        }
    }

    async fn lie(&self, who: Who, for_ms: u64, down_ms: u64, seed: u64) {
        let Some(node) = self.victim(DiskFault::LyingSync.name(), who) else { return };
        let Some(disk) = self.cluster.disk(node) else { return };
        // Not of votes: whoever forgets one can give it twice, and nobody notices.
        let path_contains = ".store".to_owned();
        disk.plant_fault(PlantedFault {
            fault: DiskFault::LyingSync,
            path_contains,
            chance_ppm: 1_000_000,
            times: u64::MAX,
        });
        sleep_ms(for_ms).await;
        if self.until_whole(node).await {
            self.cluster.crash(node, seed);
        }
        disk.heal();
        sleep_ms(down_ms).await;
        self.cluster.start(node);
    }

    /// What an operator does who takes a machine's disk from a snapshot, or boots a clone of it in its place.
    async fn restore(&self, who: Who, age_ms: u64, down_ms: u64, seed: u64) {
        let Some(node) = self.victim("old image", who) else { return };
        let Some(image) = self.cluster.disk(node).map(|disk| disk.crash(seed)) else { return };
        sleep_ms(age_ms).await;
        // The machine may have burned meanwhile.
        if !self.until_whole(node).await || self.cluster.disk(node).is_none() {
            return;
        }
        self.note_paths("old image put back", node);
        self.cluster.kill(node);
        self.cluster.put_disk(node, image);
        sleep_ms(down_ms).await;
        self.cluster.start(node);
    }

    /// The one node of this run whose disk does such things; `who`, if this is the first time.
    fn victim(&self, fault: &str, who: Who) -> Option<NodeId> {
        let node = self.victim.get().or_else(|| self.find(who)).filter(|node| self.can_damage(*node))?;
        self.victim.set(Some(node));
        self.note_paths(fault, node);
        Some(node)
    }

    /// Whether each group that this node votes in has a majority without it. A replica of whose log the device cannot read the end
    /// waits until the others have committed as much as may have been there; one other cannot.
    fn has_other_majority(&self, node: NodeId) -> bool {
        self.groups().into_iter().all(|uid| {
            let led = self.cluster.leader(uid).and_then(|leader| self.standing(leader, uid));
            led.is_some_and(|led| !led.members.voters.contains(&node) || led.members.voters.len() >= 3)
        })
    }

    /// Waits until a node may lose its power: at once, unless its disk may have less than it said.
    pub(super) async fn may_crash(&self, node: NodeId) -> bool {
        self.victim.get() != Some(node) || self.until_whole(node).await
    }

    /// Waits until what a node has is on all other replicas, and nobody has voted for what this one would forget; false if
    /// that does not come.
    async fn until_whole(&self, node: NodeId) -> bool {
        for _ in 0..WHOLE_MAX_MS / LOOK_MS {
            if self.is_whole_without(node) {
                return true;
            }
            env::sleep::<SimEnv>(Duration::from_millis(LOOK_MS)).await;
        }
        World::current().note(&format!("node {node} has more than the others: nothing happens to it"));
        false
    }

    fn is_whole_without(&self, node: NodeId) -> bool {
        self.all_have(node, |own, _| own)
    }

    /// As `until_whole` asks it; of a node that does not say itself what it has, it is enough that all others have what was
    /// committed, which the leader has.
    pub(super) fn others_have_all(&self, node: NodeId) -> bool {
        self.all_have(node, |own, led| own.or(Some(led)))
    }

    /// Whether all other members of a node's groups have what `needed` says of what it has itself, and what the leader has.
    fn all_have(
        &self,
        node: NodeId,
        needed: impl Fn(Option<Option<LogId>>, Option<LogId>) -> Option<Option<LogId>>,
    ) -> bool {
        self.groups().into_iter().all(|uid| {
            let Some(leader) = self.cluster.leader(uid) else { return false };
            let Some(led) = self.standing(leader, uid) else { return false };
            if led.members.changing {
                return false;
            }
            let mut nodes = led.members.voters.iter().chain(&led.members.learners);
            if !nodes.clone().any(|member| *member == node) {
                return true;
            }
            let own = self.standing(node, uid).map(|own| own.flushed);
            let Some(needed) = needed(own, led.flushed) else { return false };
            let has_it = |other: &NodeId| {
                self.standing(*other, uid).is_some_and(|other| other.flushed >= needed && other.term == led.term)
            };
            nodes.all(|other| *other == node && own.is_none() || has_it(other))
        })
    }

    pub(super) fn standing(&self, node: NodeId, uid: ShardUid) -> Option<Standing> {
        let process = self.cluster.process(node)?;
        World::current().on(node, || {
            let (flushed, (_, term), members) = match uid {
                ShardUid::CATALOG => {
                    let control = process.control()?;
                    let group = control.group();
                    (group.log().flushed(), group.leader(), group.members())
                }
                uid => {
                    let shard = process.shard(uid)?;
                    (shard.flushed(), shard.leader(), shard.members())
                }
            };
            Some(Standing { flushed, term, members })
        })
    }
}

/// How far a replica is.
pub(super) struct Standing {
    flushed: Option<LogId>,
    term: Term,
    pub(super) members: Members,
}
