//! Moves of shards' replicas from nodes to nodes, as commands: begun, replaced by another one, ended.
//!
//! The shard's leader does what a move says, and ends it. While it goes on, no node that may be needed is let go: not the
//! nodes that had the replicas, not the ones that are to have them, and not those of an earlier target, which may be
//! the whole membership of the group by the time that another one is chosen.

use std::{collections::BTreeSet, sync::Arc};

use super::{Catalog, CatalogAnswer, CatalogError, FinishMove, MoveShard, PreferLeader, Replicas, TopicView};
use crate::{
    ids::{NodeId, ShardNumber, ShardUid},
    limits::NODE_SHARDS_MAX,
};

/// A shard's replicas, and whose shard it is.
struct Place {
    topic: Arc<TopicView>,
    number: ShardNumber,
    replicas: Replicas,
}

fn ids(nodes: &[u64]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn same_set(a: &[NodeId], b: &[NodeId]) -> bool {
    a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
}

fn to_front(nodes: &mut [NodeId], node: NodeId) {
    if let Some(place) = nodes.iter().position(|other| *other == node) {
        nodes[..=place].rotate_right(1);
    }
}

impl Catalog {
    /// The shard of that uid: its topic and its number there.
    pub fn shard(&self, uid: ShardUid) -> Option<(Arc<TopicView>, ShardNumber)> {
        let (first, name) = self.topics_by_uid.range(..=uid).next_back()?;
        let topic = self.topics.get(name).expect("a topic is in both tables");
        let number = uid.0 - first.0;
        (number < topic.shards.len() as u64).then(|| (topic.clone(), ShardNumber(number as u32)))
    }

    fn place(&self, uid: u64) -> Result<Place, CatalogError> {
        let (topic, number) = self.shard(ShardUid(uid)).ok_or(CatalogError::ShardUnknown(ShardUid(uid)))?;
        let replicas = topic.replicas[number.0 as usize].clone();
        Ok(Place { topic, number, replicas })
    }

    fn put(&mut self, place: Place) -> CatalogAnswer {
        let Place { topic, number, replicas } = place;
        if topic.replicas[number.0 as usize] == replicas {
            return CatalogAnswer::Moved(topic);
        }
        let mut changed = TopicView::clone(&topic);
        changed.replicas[number.0 as usize] = replicas;
        let changed = Arc::new(changed);
        self.insert_topic(changed.clone());
        CatalogAnswer::Moved(changed)
    }

    fn with_target(&self, command: &MoveShard) -> Result<Place, CatalogError> {
        let mut place = self.place(command.shard_uid)?;
        let target = ids(&command.target_node_ids);
        let wrong = |what| Err(CatalogError::Target { shard: ShardUid(command.shard_uid), what });
        if target.is_empty() {
            return wrong("no node is named");
        }
        if target.len() > place.topic.replication_factor as usize {
            return wrong("its topic wants fewer replicas");
        }
        if target.iter().collect::<BTreeSet<_>>().len() != target.len() {
            return wrong("a node is named twice");
        }
        for node in &target {
            if !self.nodes.contains_key(node) {
                return Err(CatalogError::NodeUnknown(*node));
            }
            if !self.is_active(*node) {
                return Err(CatalogError::NodeNotActive(*node));
            }
            if !place.replicas.has(*node) && self.replicas_on(*node) >= NODE_SHARDS_MAX {
                return Err(CatalogError::NodeFull(*node));
            }
        }
        let replicas = &mut place.replicas;
        if !replicas.is_moving() && same_set(&replicas.nodes, &target) {
            replicas.nodes = target;
            return Ok(place);
        }
        let mut former: BTreeSet<NodeId> = replicas.former.drain(..).chain(replicas.target.drain(..)).collect();
        former.retain(|node| !replicas.nodes.contains(node) && !target.contains(node));
        replicas.former = former.into_iter().collect();
        replicas.target = target;
        Ok(place)
    }

    pub(super) fn check_move(&self, command: &MoveShard) -> Result<(), CatalogError> {
        self.with_target(command).map(drop)
    }

    pub(super) fn move_shard(&mut self, command: &MoveShard) -> Result<CatalogAnswer, CatalogError> {
        let place = self.with_target(command)?;
        Ok(self.put(place))
    }

    fn moved(&self, command: &FinishMove) -> Result<Place, CatalogError> {
        let mut place = self.place(command.shard_uid)?;
        // With nothing to end: the same command again, whose answer was lost.
        if !same_set(place.replicas.goal(), &ids(&command.node_ids)) {
            return Err(CatalogError::MoveReplaced(ShardUid(command.shard_uid)));
        }
        if place.replicas.is_moving() {
            let nodes = std::mem::take(&mut place.replicas.target);
            place.replicas = Replicas { nodes, moved: true, ..Replicas::default() };
        }
        Ok(place)
    }

    pub(super) fn check_finish(&self, command: &FinishMove) -> Result<(), CatalogError> {
        self.moved(command).map(drop)
    }

    pub(super) fn finish_move(&mut self, command: &FinishMove) -> Result<CatalogAnswer, CatalogError> {
        let place = self.moved(command)?;
        Ok(self.put(place))
    }

    fn led_by(&self, command: &PreferLeader) -> Result<Place, CatalogError> {
        let mut place = self.place(command.shard_uid)?;
        let node = NodeId(command.node_id);
        // While it moves, who is to lead then counts; and until then, if that one is there already.
        if !place.replicas.goal().contains(&node) {
            return Err(CatalogError::NoReplica { shard: ShardUid(command.shard_uid), node });
        }
        if !self.is_active(node) {
            return Err(CatalogError::NodeNotActive(node));
        }
        to_front(&mut place.replicas.nodes, node);
        to_front(&mut place.replicas.target, node);
        Ok(place)
    }

    pub(super) fn check_prefer(&self, command: &PreferLeader) -> Result<(), CatalogError> {
        self.led_by(command).map(drop)
    }

    pub(super) fn prefer_leader(&mut self, command: &PreferLeader) -> Result<CatalogAnswer, CatalogError> {
        let place = self.led_by(command)?;
        Ok(self.put(place))
    }
}
