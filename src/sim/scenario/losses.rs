//! Steps after which something never comes back: a machine that burns, a replica's directory that is gone.
//!
//! One at a time, at a moment that a cluster must survive it, and until everything is on as many disks again as it is to
//! be nothing else is lost:
//!
//! - Each group that loses a voter has three at least, and no change of its members is under way: a joint configuration of which a
//!   majority can only be had with the lost one stays for ever. Nor is one about to begin that leaves two (a drain).
//! - Where one disk of the run is damaged (`damage`), or a vote is forgotten, all others have everything at that moment.
//! - A drain of one node of three leaves the catalog with one voter: none begins beside the damaged disk of another node, nor
//!   while something is lost.

use std::{cell::Cell, collections::BTreeSet, path::Path, rc::Rc, time::Duration};

use super::{Run, WATCH_INTERVAL, damage::LOOK_MS, plan::Who, steps::sleep_ms};
use crate::{
    env,
    ids::{NodeId, ShardUid},
    raft::Members,
    reactor::{
        control::{
            made::{self, REPLICAS_FILE},
            shard_dir,
        },
        mailbox::AdminCall,
    },
    sim::{SimDisk, SimEnv, World, cluster::DATA},
};

/// How long a step waits for a moment in which something may be lost.
const MOMENT_MAX_MS: u64 = 5_000;

/// Tries to remove a node that is no more, one a second.
const REMOVE_TRIES: usize = 60;

/// How long a step waits until everything is again on as many disks as it is to be.
const GOOD_MAX: Duration = Duration::from_secs(60);

/// Rounds in which an operator has a lost replica made anew, and looks in each.
const ANEW_ROUNDS: usize = 4;
const ANEW_LOOKS: usize = 30;

/// How long a node that serves may leave a lost replica unnamed.
const NAMED_MAX_MS: u64 = 3_000;

impl Run {
    /// One machine burns; it is removed, and another one comes.
    pub(super) async fn replace(self: &Rc<Self>, who: Who) {
        if self.losing.replace(true) {
            return;
        }
        let beside_damage = |node| self.victim.get().is_some_and(|victim| victim != node);
        let node = match self.find(who) {
            Some(node) if self.until_can_lose(node, beside_damage(node)).await => node,
            Some(_) | None => return self.losing.set(false),
        };
        self.note_paths("replacement", node);
        self.cluster.scrap(node);
        self.join().await;
        let mut is_removed = false;
        for _ in 0..REMOVE_TRIES {
            is_removed = self.admin(AdminCall::RemoveNode { node, dead: true }).await;
            if is_removed {
                break;
            }
            sleep_ms(1_000).await;
        }
        if !is_removed {
            return self.problem(format!("node {node}, which is no more, could not be removed"));
        }
        self.drained.borrow_mut().remove(&node);
        if self.until_good().await && self.victim.get() == Some(node) {
            // With its disk all damage is gone.
            self.victim.set(None);
            self.vote_struck.set(false);
        }
    }

    /// While a node is down, a replica's directory goes from its disk. The node starts, says so, and an operator has the replica
    /// made anew.
    pub(super) async fn lose_directory(self: &Rc<Self>, shard: u64, replica: u64, down_ms: u64, seed: u64) {
        if self.losing.replace(true) {
            return;
        }
        let target = self.target(shard);
        let Some(node) = self.member(target.uid, replica) else { return self.losing.set(false) };
        // What brings it back is a drain.
        if !self.leaves_voters(node) || !self.until_can_lose(node, true).await {
            return self.losing.set(false);
        }
        self.note_paths("lost directory", node);
        self.cluster.crash(node, seed);
        let Some(disk) = self.cluster.disk(node) else { return };
        disk.delete_dir(shard_dir(DATA.as_ref(), target.uid));
        self.lost.borrow_mut().insert((node, target.uid));
        let away = Rc::clone(self).watch_moves(node, target.uid);
        // What was made a moment ago may not be listed yet.
        away.set(!lists(&disk, target.uid));
        sleep_ms(down_ms).await;
        self.cluster.start(node);
        self.until_named(node, target.uid, &away).await;
        drop(away);
        self.make_anew(node, target.uid).await;
        self.until_good().await;
    }

    /// One of a group's members, by number.
    pub(super) fn member(&self, uid: ShardUid, number: u64) -> Option<NodeId> {
        let members = self.standing(self.cluster.leader(uid)?, uid)?.members;
        let nodes: Vec<NodeId> = members.voters.into_iter().collect();
        nodes.get(number as usize % nodes.len().max(1)).copied()
    }

    /// Whether a drain may begin.
    pub(super) fn can_drain(&self, node: NodeId) -> bool {
        !self.losing.get() && self.leaves_voters(node)
    }

    /// Whether no damaged disk of another node would be the only one with the catalog when this node is drained.
    fn leaves_voters(&self, node: NodeId) -> bool {
        self.victim.get().is_none_or(|victim| victim == node) || self.active_beside(node) >= 3
    }

    fn active_beside(&self, node: NodeId) -> usize {
        let drained = self.drained.borrow();
        self.cluster.nodes().iter().filter(|other| **other != node && !drained.contains(other)).count()
    }

    /// Whether a disk may begin to be damaged: no group would have only that copy of anything.
    pub(super) fn can_damage(&self, node: NodeId) -> bool {
        if self.losing.get() && self.victim.get().is_none() {
            // What was lost may have been the other copy.
            return false;
        }
        let drained = self.drained.borrow();
        let all = self.cluster.nodes();
        let active = all.iter().filter(|other| !drained.contains(other)).count();
        let catalog =
            self.cluster.leader(ShardUid::CATALOG).and_then(|leader| self.standing(leader, ShardUid::CATALOG));
        let is_sole = |members: &Members| members.voters.len() < 3 && members.voters.contains(&node);
        let is_one_of_many = catalog.is_none_or(|led| !is_sole(&led.members));
        self.replication_factor >= 2 && all.contains(&node) && active >= 3 && is_one_of_many
    }

    /// Waits for a moment in which a node may be lost; with `needs_all` one in which all others have everything.
    async fn until_can_lose(&self, node: NodeId, needs_all: bool) -> bool {
        for _ in 0..MOMENT_MAX_MS / LOOK_MS {
            if self.can_lose(node) && (!needs_all || self.others_have_all(node)) {
                return true;
            }
            sleep_ms(LOOK_MS).await;
        }
        World::current().note(&format!("node {node} cannot be lost: nothing happens to it"));
        false
    }

    /// Whether what was acknowledged, and the groups themselves, outlive this node.
    fn can_lose(&self, node: NodeId) -> bool {
        let drained = self.drained.borrow();
        self.groups().into_iter().all(|uid| {
            let Some(led) = self.cluster.leader(uid).and_then(|leader| self.standing(leader, uid)) else {
                return false;
            };
            let members = led.members;
            // All nodes follow the catalog.
            let follows = uid != ShardUid::CATALOG && !members.learners.is_empty();
            let is_settled = !members.changing && !follows;
            let goes = |other: &NodeId| drained.contains(other);
            if !members.voters.contains(&node) {
                return is_settled;
            }
            is_settled && members.voters.len() >= 3 && !members.voters.iter().any(goes)
        })
    }

    /// Waits until nothing is lost any more; from then on something may be lost again.
    async fn until_good(&self) -> bool {
        let rounds = GOOD_MAX.as_millis() / WATCH_INTERVAL.as_millis();
        for _ in 0..rounds {
            if self.is_good() {
                self.losing.set(false);
                return true;
            }
            env::sleep::<SimEnv>(WATCH_INTERVAL).await;
        }
        World::current().note("what was lost is not made good");
        false
    }

    /// Whether each group's members are all there, and no change of them is under way.
    fn is_good(&self) -> bool {
        self.groups().into_iter().all(|uid| {
            let Some(led) = self.cluster.leader(uid).and_then(|leader| self.standing(leader, uid)) else {
                return false;
            };
            let mut all = led.members.voters.iter().chain(&led.members.learners);
            !led.members.changing && all.all(|node| self.standing(*node, uid).is_some())
        })
    }

    /// Notes from now on whether any node knows that no replica of this shard is to be on that one: then a new one may come there.
    fn watch_moves(self: Rc<Self>, node: NodeId, uid: ShardUid) -> Rc<Cell<bool>> {
        let away: Rc<Cell<bool>> = Rc::default();
        let told = Rc::downgrade(&away);
        env::spawn::<SimEnv>(async move {
            while let Some(away) = told.upgrade().filter(|away| !away.get()) {
                let places = self.cluster.nodes().into_iter().filter_map(|other| self.places(other, uid));
                away.set(places.into_iter().any(|places| !places.contains(&node)));
                drop(away);
                sleep_ms(1).await;
            }
        });
        away
    }

    /// A node that serves says which replica it has lost, as long as one is to be there, and makes none by itself: one that does not
    /// know how it has voted is made only where the group has done without it.
    async fn until_named(&self, node: NodeId, uid: ShardUid, away: &Cell<bool>) {
        self.cluster.until_serving(node).await;
        let Some(process) = self.cluster.process(node).filter(|process| process.serves()) else { return };
        let mut waited_ms = 0;
        while waited_ms < NAMED_MAX_MS {
            let is_named = process.node.faults().contains_key(&uid);
            if is_named || away.get() || !self.is_placed(node, uid).unwrap_or(true) {
                return;
            }
            if process.shard(uid).is_some() {
                return self
                    .problem(format!("node {node} has made its replica of shard {uid} anew, whose directory is gone"));
            }
            sleep_ms(LOOK_MS).await;
            waited_ms += if World::current().is_paused(node) { 0 } else { LOOK_MS };
            if self.cluster.process(node).is_none_or(|other| other.number != process.number) {
                return;
            }
        }
        self.problem(format!("node {node} does not name its replica of shard {uid}, whose directory is gone"));
    }

    /// What an operator does about a replica that will not open again: the node is drained, so that it is moved away, and taken
    /// back, so that a new one comes. False: it does not come about.
    pub(super) async fn make_anew(&self, node: NodeId, uid: ShardUid) -> bool {
        for _ in 0..ANEW_ROUNDS {
            if self.is_open(node, uid) {
                return true;
            }
            self.drain_node(node).await;
            for _ in 0..ANEW_LOOKS {
                sleep_ms(1_000).await;
                match self.is_placed(node, uid) {
                    Some(false) => break,
                    Some(true) if !self.is_draining(node).await => self.drain_node(node).await,
                    Some(true) | None => {}
                }
            }
            for _ in 0..ANEW_LOOKS {
                if self.undrain_node(node).await {
                    break;
                }
                sleep_ms(1_000).await;
            }
            for _ in 0..ANEW_LOOKS {
                // There, or on another node now.
                if self.is_open(node, uid) || self.is_settled_without(node, uid) {
                    return true;
                }
                sleep_ms(1_000).await;
            }
        }
        World::current().note(&format!("node {node} gets no replica of shard {uid}"));
        false
    }

    async fn is_draining(&self, node: NodeId) -> bool {
        self.draining().await.is_some_and(|draining| draining.contains(&node))
    }

    fn is_open(&self, node: NodeId, uid: ShardUid) -> bool {
        self.cluster.process(node).is_some_and(|process| process.shard(uid).is_some())
    }

    /// Whether this node knows that a replica of it is to be here, or was and is not removed yet.
    pub(super) fn is_placed(&self, node: NodeId, uid: ShardUid) -> Option<bool> {
        let process = self.cluster.process(node).filter(|process| process.serves())?;
        if process.node.faults().contains_key(&uid) {
            return Some(true);
        }
        Some(self.places(node, uid)?.contains(&node))
    }

    /// Where one node takes a shard's replicas to be, or to go, or to come from.
    fn places(&self, node: NodeId, uid: ShardUid) -> Option<BTreeSet<NodeId>> {
        let target = self.clients.targets().into_iter().find(|target| target.uid == uid)?;
        let placed = self.cluster.process(node)?.node.topics.snapshot().get(&*target.topic).cloned()?;
        let replicas = placed.view.replicas.get(target.shard as usize)?;
        Some(replicas.nodes.iter().chain(&replicas.target).chain(&replicas.former).copied().collect())
    }

    /// Whether there are as many replicas elsewhere as there are to be.
    fn is_settled_without(&self, node: NodeId, uid: ShardUid) -> bool {
        let wanted = (self.replication_factor as usize).min(self.active_beside(NodeId(0)));
        let holders = self.places(node, uid).unwrap_or_default();
        !holders.contains(&node) && holders.len() >= wanted
    }
}

/// Whether a node's list of replicas has this one.
fn lists(disk: &SimDisk, uid: ShardUid) -> bool {
    let path = Path::new(DATA).join(REPLICAS_FILE);
    disk.paths().contains(&path) && made::decode(&disk.content(path)).is_ok_and(|uids| uids.contains(&uid))
}
