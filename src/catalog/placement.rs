//! Where replicas go: those of new topics, those that are missing, those of nodes that are being drained.
//!
//! Pure, and the same on every replica: ties are broken by numbers, never by the order of a hash map. Liveness comes in
//! as an argument, and only keeps the catalog from choosing a node that does not answer: what is on such a node stays
//! there until somebody says that it is to go.

use std::collections::{BTreeMap, BTreeSet};

use super::{Catalog, Command, MoveShard, Replicas, topics::PlacedShard};
use crate::{
    ids::{NodeId, ShardUid, is_most},
    limits::{MOVES_PER_NODE_MAX, NODE_SHARDS_MAX, PLAN_MOVES_MAX},
};

/// Numbers of one reactor of a node, or of the whole node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub replicas: usize,
    /// Replicas that are to lead.
    pub leaders: usize,
}

/// What one active node has, or will have when all moves have ended.
#[derive(Clone, Debug)]
pub(super) struct NodeLoad {
    pub all: Count,
    pub reactors: Vec<Count>,
    /// Replicas on it now, those included that will go, and those that will come.
    pub held: usize,
}

impl NodeLoad {
    /// Numbers of the reactor that owns shards of that slot.
    pub fn reactor(&self, slot: u64) -> Count {
        self.reactors[(slot % self.reactors.len() as u64) as usize]
    }

    fn counts(&mut self, slot: u64) -> [&mut Count; 2] {
        let reactor = (slot % self.reactors.len() as u64) as usize;
        [&mut self.all, &mut self.reactors[reactor]]
    }

    /// The smaller, the better for another replica.
    fn replica_key(&self, slot: u64) -> (usize, usize) {
        (self.all.replicas, self.reactor(slot).replicas)
    }

    /// The smaller, the better for another leader.
    fn leader_key(&self, slot: u64) -> (usize, usize) {
        (self.all.leaders, self.reactor(slot).leaders)
    }
}

/// What all active nodes have; others are left out.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub nodes: BTreeMap<NodeId, NodeLoad>,
}

impl Load {
    /// As things will be when all moves have ended.
    pub fn of(catalog: &Catalog) -> Load {
        let empty = |reactors: u32| NodeLoad {
            all: Count::default(),
            reactors: vec![Count::default(); reactors as usize],
            held: 0,
        };
        let nodes = catalog.active_nodes().map(|node| (node.id, empty(node.reactors))).collect();
        let mut load = Load { nodes };
        for shard in catalog.topics.values().flat_map(|topic| topic.placed_shards()) {
            load.add(shard.slot, shard.replicas.goal());
            for holder in shard.replicas.holders().collect::<BTreeSet<_>>() {
                load.hold(holder);
            }
        }
        load
    }

    /// A shard of that slot is on these nodes, the first one leads.
    pub fn add(&mut self, slot: u64, nodes: &[NodeId]) {
        for (place, node) in nodes.iter().enumerate() {
            let Some(load) = self.nodes.get_mut(node) else { continue };
            for count in load.counts(slot) {
                count.replicas += 1;
                count.leaders += usize::from(place == 0);
            }
        }
    }

    /// It is not there any more.
    pub fn remove(&mut self, slot: u64, nodes: &[NodeId]) {
        for (place, node) in nodes.iter().enumerate() {
            let Some(load) = self.nodes.get_mut(node) else { continue };
            for count in load.counts(slot) {
                count.replicas -= 1;
                count.leaders -= usize::from(place == 0);
            }
        }
    }

    /// The node holds another replica from now on.
    pub fn hold(&mut self, node: NodeId) {
        if let Some(load) = self.nodes.get_mut(&node) {
            load.held += 1;
        }
    }

    /// The `count` nodes with the fewest replicas for a shard of that slot, fewest first, of those that `may` take it.
    fn emptiest(&self, slot: u64, count: usize, may: impl Fn(NodeId, &NodeLoad) -> bool) -> Vec<NodeId> {
        let mut candidates: Vec<_> = self.nodes.iter().filter(|(node, load)| may(**node, load)).collect();
        candidates.sort_by_key(|(node, load)| (load.replica_key(slot), load.leader_key(slot), **node));
        candidates.into_iter().take(count).map(|(node, _)| *node).collect()
    }

    /// Moves the node with the fewest leaders to the front.
    fn lead_evenly(&self, slot: u64, nodes: &mut [NodeId]) {
        let key = |node: &NodeId| self.nodes.get(node).map_or((usize::MAX, 0), |load| load.leader_key(slot));
        let best = (0..nodes.len()).min_by_key(|place| (key(&nodes[*place]), *place));
        if let Some(best) = best {
            nodes[..=best].rotate_right(1);
        }
    }

    /// Places a new shard; `None` if fewer than `count` nodes can take it.
    pub fn place(&mut self, slot: u64, count: usize) -> Option<Vec<NodeId>> {
        let mut nodes = self.emptiest(slot, count, |_, load| load.held < NODE_SHARDS_MAX);
        if nodes.len() < count {
            return None;
        }
        self.lead_evenly(slot, &mut nodes);
        self.add(slot, &nodes);
        nodes.iter().for_each(|node| self.hold(*node));
        Some(nodes)
    }
}

/// Moves on their way, by the nodes that they keep busy.
#[derive(Debug, Default)]
struct Traffic {
    incoming: BTreeMap<NodeId, usize>,
    outgoing: BTreeMap<NodeId, usize>,
}

/// Nodes that get a replica that they had not.
fn receivers<'a>(nodes: &'a [NodeId], target: &'a [NodeId]) -> impl Iterator<Item = NodeId> + 'a {
    target.iter().filter(|node| !nodes.contains(node)).copied()
}

impl Traffic {
    fn of(catalog: &Catalog, dead: &BTreeSet<NodeId>) -> Traffic {
        let mut traffic = Traffic::default();
        for replicas in catalog.topics.values().flat_map(|topic| &topic.replicas) {
            // A move that waits for a dead node keeps nobody busy.
            if replicas.is_moving() && !receivers(&replicas.nodes, &replicas.target).any(|node| dead.contains(&node)) {
                traffic.add(&replicas.nodes, &replicas.target);
            }
        }
        traffic
    }

    fn add(&mut self, nodes: &[NodeId], target: &[NodeId]) {
        for node in receivers(nodes, target) {
            *self.incoming.entry(node).or_default() += 1;
            *self.outgoing.entry(nodes[0]).or_default() += 1;
        }
    }

    /// Whether another move from the leader of `nodes` to `target` can begin.
    fn has_room(&self, nodes: &[NodeId], target: &[NodeId]) -> bool {
        let busy = |table: &BTreeMap<NodeId, usize>, node| table.get(&node).is_some_and(|n| *n >= MOVES_PER_NODE_MAX);
        receivers(nodes, target).all(|node| !busy(&self.incoming, node) && !busy(&self.outgoing, nodes[0]))
    }
}

impl Catalog {
    /// What the catalog's leader is to propose next, in this order; empty when there is nothing to do, or when as much
    /// is under way as may be. `dead`: nodes that have not been heard of lately, which get no replicas.
    ///
    /// Shards with too few replicas get more, up to the replication factor or the number of active nodes; replicas on
    /// nodes that are being drained go to active ones. A replica on a dead node stays, and no replica goes while most of
    /// those that would be left are on dead nodes. A move that waits for a node that is not active any more gets another
    /// target; one that only lets replicas go is taken back when all of them may stay again. Every command passes `check`, applied in order.
    pub fn plan(&self, dead: &BTreeSet<NodeId>) -> Vec<Command> {
        #[cfg(test)]
        super::planted::panic_in(super::planted::Place::Plan, self.topics.keys().map(|name| &**name));
        let mut load = Load::of(self);
        let mut traffic = Traffic::of(self, dead);
        let mut commands = Vec::new();
        for shard in self.topics.values().flat_map(|topic| topic.placed_shards()) {
            if commands.len() == PLAN_MOVES_MAX {
                break;
            }
            let Some(target) = self.wanted(&shard, &load, dead) else { continue };
            let replicas = shard.replicas;
            if !traffic.has_room(&replicas.nodes, &target) {
                continue;
            }
            traffic.add(&replicas.nodes, &target);
            load.remove(shard.slot, replicas.goal());
            load.add(shard.slot, &target);
            target.iter().filter(|node| !replicas.has(**node)).for_each(|node| load.hold(*node));
            commands.push(move_to(shard.uid, &target));
        }
        commands
    }

    /// Where the shard should move, if it should.
    fn wanted(&self, shard: &PlacedShard<'_>, load: &Load, dead: &BTreeSet<NodeId>) -> Option<Vec<NodeId>> {
        let present = shard.replicas.goal();
        let kept: Vec<NodeId> = present.iter().copied().filter(|node| self.is_active(*node)).collect();
        let wanted = shard.replication_factor.min(load.nodes.len());
        let is_whole = kept.len() == present.len();
        if let Some(back) = self.taken_back(shard.replicas, wanted) {
            return Some(back);
        }
        // One thing at a time: a move that can end is let end.
        if is_whole && (kept.len() >= wanted || shard.replicas.is_moving()) {
            return None;
        }
        let may = |node: NodeId, load: &NodeLoad| {
            let fits = load.held < NODE_SHARDS_MAX || shard.replicas.has(node);
            !kept.contains(&node) && !dead.contains(&node) && fits
        };
        let added = load.emptiest(shard.slot, wanted.saturating_sub(kept.len()), may);
        // Nothing is gained, or something is lost: a replica that is to go stays until there is a place for it.
        if added.is_empty() && is_whole || kept.len() + added.len() < wanted.min(present.len()) {
            return None;
        }
        let mut target = kept;
        target.extend(added);
        // Those that are left could write nothing: the replica that is to go stays until one of them is back.
        if !is_most(&target, |node| !dead.contains(node)) {
            return None;
        }
        self.lead(shard, load, &mut target);
        Some(target)
    }

    /// Where a move goes back to that only lets replicas go, of which now all may stay: the drain that it was for was taken back.
    /// Ended, it would leave fewer replicas, and all of the shard would be copied anew.
    fn taken_back(&self, replicas: &Replicas, wanted: usize) -> Option<Vec<NodeId>> {
        let Replicas { nodes, target, .. } = replicas;
        let only_lets_go = target.len() < nodes.len() && target.iter().all(|node| nodes.contains(node));
        let may_stay = nodes.len() <= wanted && nodes.iter().all(|node| self.is_active(*node));
        (replicas.is_moving() && only_lets_go && may_stay).then(|| nodes.clone())
    }

    /// Puts the one to lead in front: the present one, unless another one has so much less to do that both will be
    /// better off.
    fn lead(&self, shard: &PlacedShard<'_>, load: &Load, target: &mut [NodeId]) {
        let present = shard.replicas.goal()[0];
        let mut without = load.clone_for(target, present);
        without.remove(shard.slot, &[present]);
        let before = target.to_vec();
        without.lead_evenly(shard.slot, target);
        let leaders = |node: NodeId| without.nodes.get(&node).map(|load| load.all.leaders);
        // On a tie a leader that works stays where it is.
        if before[0] == present && leaders(present) <= leaders(target[0]) {
            target.copy_from_slice(&before);
        }
    }
}

impl Load {
    /// The part of it that is about these nodes.
    fn clone_for(&self, nodes: &[NodeId], other: NodeId) -> Load {
        let part = nodes.iter().chain([&other]).filter_map(|node| Some((*node, self.nodes.get(node)?.clone())));
        Load { nodes: part.collect() }
    }
}

/// The command that moves a shard there.
pub(super) fn move_to(shard: ShardUid, target: &[NodeId]) -> Command {
    Command::MoveShard(MoveShard { shard_uid: shard.0, target_node_ids: target.iter().map(|node| node.0).collect() })
}

/// Whether all of a shard's replicas are on active nodes and stay there.
pub(super) fn is_settled(catalog: &Catalog, replicas: &Replicas) -> bool {
    !replicas.is_moving() && replicas.nodes.iter().all(|node| catalog.is_active(*node))
}
