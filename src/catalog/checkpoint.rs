//! The catalog as bytes, for checkpoints. What comes back from a disk or a peer is checked against every invariant.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Catalog, NodeState, NodeView, Replicas, TopicView,
    tokens::{Token, secret_hash},
    topics::{shown, validate_topic_name},
};
use crate::{
    ids::{NodeId, ShardUid, TopicId},
    limits::{CLUSTER_NODES_MAX, JOIN_TOKENS_MAX, REPLICATION_FACTOR_MAX},
    proto::ringlog::state::v1 as state,
};

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

impl Catalog {
    pub(super) fn to_state(&self) -> state::Catalog {
        let replicas = |replicas: &Replicas| state::ShardReplicas {
            node_ids: numbers(&replicas.nodes),
            target_node_ids: numbers(&replicas.target),
            former_node_ids: numbers(&replicas.former),
            moved: replicas.moved,
        };
        let topic = |topic: &Arc<TopicView>| state::Topic {
            name: topic.name.to_string(),
            topic_id: topic.id.0,
            shard_uids: topic.shards.iter().map(|uid| uid.0).collect(),
            retention_bytes_max: topic.retention_bytes_max,
            retention_age_ms_max: topic.retention_age_ms_max,
            segment_bytes: topic.segment_bytes,
            created_us: topic.created_us,
            replication_factor: topic.replication_factor,
            replicas: topic.replicas.iter().map(replicas).collect(),
        };
        let tokens = self.tokens.iter().map(|(hash, token)| state::JoinToken {
            secret_hash: hash.to_vec().into(),
            expires_us: token.expires_us,
            uses_left: token.uses_left,
        });
        state::Catalog {
            cluster_id: self.cluster_id.as_deref().unwrap_or_default().to_owned(),
            topic_id_next: self.topic_id_next,
            shard_uid_next: self.shard_uid_next,
            topics: self.topics.values().map(topic).collect(),
            node_id_next: self.node_id_next,
            nodes: self.nodes.values().map(|node| node.to_entry()).collect(),
            join_tokens: tokens.collect(),
        }
    }

    pub(super) fn from_state(state: state::Catalog) -> Result<Catalog, String> {
        let mut catalog = Catalog {
            cluster_id: (!state.cluster_id.is_empty()).then(|| state.cluster_id.into()),
            topic_id_next: state.topic_id_next,
            shard_uid_next: state.shard_uid_next,
            ..Catalog::new()
        };
        if state.shard_uid_next == ShardUid::CATALOG.0 {
            return Err("the catalog's checkpoint would give a shard the catalog's own number".to_owned());
        }
        catalog.restore_nodes(&state.nodes, state.node_id_next)?;
        for token in &state.join_tokens {
            let hash = secret_hash(&token.secret_hash).ok_or("the catalog's checkpoint has a malformed join token")?;
            let token = Token { expires_us: token.expires_us, uses_left: token.uses_left };
            if catalog.tokens.insert(hash, token).is_some() || catalog.tokens.len() > JOIN_TOKENS_MAX {
                return Err("the catalog's checkpoint has a join token twice, or too many".to_owned());
            }
        }
        for topic in state.topics {
            let name = shown(&topic.name);
            catalog
                .restore_topic(topic)
                .map_err(|what| format!("topic \"{name}\" of the catalog's checkpoint {what}"))?;
        }
        Ok(catalog)
    }

    fn restore_nodes(&mut self, nodes: &[state::ClusterNode], next: u64) -> Result<(), String> {
        let mut incarnations = BTreeSet::new();
        for node in nodes {
            let explain = |what| format!("node {} of the catalog's checkpoint is not one: {what}", node.node_id);
            let state = NodeState::from_number(node.state).ok_or_else(|| explain("its state is unknown"))?;
            let view = NodeView::new(NodeId(node.node_id), state, node).map_err(explain)?;
            if node.node_id >= next {
                return Err(explain("its id was never handed out"));
            }
            if !incarnations.insert(view.incarnation) || self.nodes.insert(view.id, Arc::new(view)).is_some() {
                return Err(explain("it is there twice"));
            }
        }
        if self.nodes.len() > CLUSTER_NODES_MAX {
            return Err("the catalog's checkpoint has too many nodes".to_owned());
        }
        if self.cluster_id.is_some() != (self.active_nodes().next().is_some()) {
            return Err("the catalog's checkpoint has a cluster without nodes, or nodes without a cluster".to_owned());
        }
        self.node_id_next = next.max(1);
        Ok(())
    }

    fn restore_topic(&mut self, topic: state::Topic) -> Result<(), &'static str> {
        validate_topic_name(&topic.name).map_err(|_| "has an impossible name")?;
        let first = *topic.shard_uids.first().ok_or("has no shards")?;
        let consecutive = topic.shard_uids.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
        let uids_valid = consecutive
            && first != ShardUid::CATALOG.0
            && topic.shard_uids.iter().all(|uid| *uid < self.shard_uid_next);
        if !uids_valid || topic.topic_id >= self.topic_id_next {
            return Err("has impossible ids");
        }
        let last = ShardUid(first + (topic.shard_uids.len() as u64 - 1));
        let taken = topic.shard_uids.iter().any(|uid| self.shard(ShardUid(*uid)).is_some())
            || self.topics_by_uid.range(ShardUid(first)..=last).next().is_some()
            || self.topics.values().any(|other| other.id.0 == topic.topic_id);
        if taken || self.topics.contains_key(topic.name.as_str()) {
            return Err("has the name or ids of another one");
        }
        if topic.replication_factor == 0 || topic.replication_factor > REPLICATION_FACTOR_MAX {
            return Err("has an impossible replication factor");
        }
        if topic.replicas.len() != topic.shard_uids.len() {
            return Err("has replicas of other shards than its own");
        }
        let replicas = topic.replicas.iter().map(|replicas| self.restore_replicas(replicas, topic.replication_factor));
        let view = TopicView {
            name: topic.name.as_str().into(),
            id: TopicId(topic.topic_id),
            replication_factor: topic.replication_factor,
            replicas: replicas.collect::<Result<_, _>>()?,
            shards: topic.shard_uids.into_iter().map(ShardUid).collect(),
            retention_bytes_max: topic.retention_bytes_max,
            retention_age_ms_max: topic.retention_age_ms_max,
            segment_bytes: topic.segment_bytes,
            created_us: topic.created_us,
        };
        self.insert_topic(Arc::new(view));
        Ok(())
    }

    fn restore_replicas(&self, replicas: &state::ShardReplicas, most: u32) -> Result<Replicas, &'static str> {
        let list = |nodes: &[u64]| {
            let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
            let distinct = nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len();
            let known = nodes.iter().all(|node| self.nodes.get(node).is_some_and(|n| n.state != NodeState::Removed));
            if distinct && known { Ok(nodes) } else { Err("has replicas on nodes that cannot have them") }
        };
        let nodes = list(&replicas.node_ids)?;
        let (target, former) = (list(&replicas.target_node_ids)?, list(&replicas.former_node_ids)?);
        if nodes.is_empty() || nodes.len().max(target.len()) > most as usize {
            return Err("has a shard with no replicas, or with too many");
        }
        let elsewhere = former.iter().all(|node| !nodes.contains(node) && !target.contains(node));
        if !elsewhere || (target.is_empty() && !former.is_empty()) {
            return Err("has a shard that moves and does not");
        }
        Ok(Replicas { nodes, target, former, moved: replicas.moved })
    }
}
