//! Topics and their shards: how they look, what they may be called, how they are made and deleted.

use std::{collections::BTreeSet, sync::Arc};

use super::{Catalog, CatalogAnswer, CatalogError, CreateTopic, DeleteTopic, balance::place_new, placement::Load};
use crate::{
    ids::{NodeId, ReactorNumber, ShardNumber, ShardUid, TopicId},
    limits::{
        REPLICATION_FACTOR_DEFAULT, REPLICATION_FACTOR_MAX, SEGMENT_BYTES_LIMIT, SEGMENT_BYTES_MIN,
        TOPIC_NAME_BYTES_MAX, TOPIC_SHARDS_MAX,
    },
};

/// A topic as it is; immutable, shared by all who look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its name.
    pub name: Arc<str>,
    /// Its identity for good.
    pub id: TopicId,
    /// Its shards' identities, consecutive; the place in here is the shard's number.
    pub shards: Vec<ShardUid>,
    /// Wanted number of replicas; there are fewer while the cluster is smaller.
    pub replication_factor: u32,
    /// Where each shard's replicas are; as long as `shards`.
    pub replicas: Vec<Replicas>,
    /// Bytes of segment files kept in each shard; 0: no limit.
    pub retention_bytes_max: u64,
    /// Age of the newest record of a segment, ms; 0: no limit.
    pub retention_age_ms_max: u64,
    /// Largest segment file; 0: the node's setting.
    pub segment_bytes: u64,
    /// When it was created, µs since the epoch.
    pub created_us: i64,
}

impl TopicView {
    /// The shard of that number.
    pub fn shard(&self, number: ShardNumber) -> Option<ShardUid> {
        self.shards.get(number.0 as usize).copied()
    }

    /// The shard of a key's hash (XXH3-64): the hash modulo the number of shards. Documented in the API: clients may
    /// compute it themselves.
    pub fn shard_of_key(&self, key_hash: u64) -> ShardNumber {
        // The machine never makes a topic without shards.
        ShardNumber((key_hash % self.shards.len() as u64) as u32)
    }

    /// Its shards with their numbers, in order.
    pub fn numbered_shards(&self) -> impl Iterator<Item = (ShardNumber, ShardUid)> + '_ {
        (0..).map(ShardNumber).zip(self.shards.iter().copied())
    }

    /// Its shards as the placement sees them.
    pub(super) fn placed_shards(&self) -> impl Iterator<Item = PlacedShard<'_>> {
        self.numbered_shards().zip(&self.replicas).map(|((number, uid), replicas)| PlacedShard {
            uid,
            slot: slot_of(self.id, number),
            replication_factor: self.replication_factor as usize,
            replicas,
        })
    }
}

/// One shard, with what decides where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedShard<'a> {
    pub uid: ShardUid,
    pub slot: u64,
    /// Wanted.
    pub replication_factor: usize,
    pub replicas: &'a Replicas,
}

/// Where the replicas of a shard are.
///
/// Invariants: `nodes` is never empty; no list has a node twice; all are members of the cluster; `former` is empty
/// unless the shard moves, and has no node that is in `nodes` or `target`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Nodes that hold one; the first is to lead. Never empty.
    pub nodes: Vec<NodeId>,
    /// Where they are moving to, the first to lead; empty: they stay.
    pub target: Vec<NodeId>,
    /// Targets that were given up for the present one. The group may have got as far as there, or part of the way, so they
    /// keep what they have until the move ends.
    pub former: Vec<NodeId>,
    /// A move has ended since the shard was made.
    pub moved: bool,
}

impl Replicas {
    /// Replicas on these nodes that stay there.
    pub fn on(nodes: Vec<NodeId>) -> Replicas {
        Replicas { nodes, ..Replicas::default() }
    }

    /// Whether the node holds one now, is to hold one, or may hold one for the sake of an earlier target. A node for
    /// which this is false removes what it has.
    pub fn has(&self, node: NodeId) -> bool {
        self.holders().any(|holder| holder == node)
    }

    /// All nodes for which `has` is true, each once unless it both holds one and is to hold one.
    pub fn holders(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().chain(&self.target).chain(&self.former).copied()
    }

    /// Whether they are on their way to other nodes.
    pub fn is_moving(&self) -> bool {
        !self.target.is_empty()
    }

    /// Where they are, or will be when the present move ends; the first is to lead.
    pub fn goal(&self) -> &[NodeId] {
        if self.is_moving() { &self.target } else { &self.nodes }
    }

    /// With which membership node `me` may begin the shard's group: the one that it was made with. `None` if it must wait
    /// to be added: it was not there then, or a move has ended, and so the group exists.
    pub fn founders(&self, me: NodeId) -> Option<BTreeSet<NodeId>> {
        (!self.moved && self.nodes.contains(&me)).then(|| self.nodes.iter().copied().collect())
    }
}

/// The reactor that owns a shard, of `reactors`: neighbours go to different ones, so that a topic with
/// one shard per reactor has exactly one on each, and topics with a single shard spread by their ids.
///
/// # Panics
/// When there are no reactors.
pub fn reactor_of(topic: TopicId, shard: ShardNumber, reactors: u32) -> ReactorNumber {
    assert!(reactors > 0, "a node has a reactor");
    ReactorNumber((slot_of(topic, shard) % u64::from(reactors)) as u32)
}

/// What decides a shard's reactor on every node, however many reactors it has.
pub fn slot_of(topic: TopicId, shard: ShardNumber) -> u64 {
    topic.0.wrapping_add(u64::from(shard.0))
}

/// A topic's name that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic name \"{shown}\" {what}; use 1 to {TOPIC_NAME_BYTES_MAX} letters, digits, '.', '_' or '-', but not \".\" or \"..\""
)]
pub struct TopicNameError {
    /// The name, escaped and cut for people.
    pub shown: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Checks a topic's name: 1 to `TOPIC_NAME_BYTES_MAX` of letters, digits, '.', '_' and '-'; not "." or "..".
///
/// # Errors
/// With a text that shows the name and says what is allowed.
pub fn validate_topic_name(name: &str) -> Result<(), TopicNameError> {
    let what = if name.is_empty() {
        "is empty"
    } else if name.len() > TOPIC_NAME_BYTES_MAX {
        "is too long"
    } else if name == "." || name == ".." {
        "means a directory"
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        "has other characters"
    } else {
        return Ok(());
    };
    Err(TopicNameError { shown: shown(name), what })
}

/// A name from outside, safe to print and of bounded length.
pub(super) fn shown(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 40;
    let mut shown: String = name.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_default).collect();
    if name.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

impl Catalog {
    /// What `apply` would answer to this command now if it is refused: lets a caller refuse without
    /// writing an entry.
    ///
    /// # Errors
    /// Those of the command.
    pub fn check_create(&self, create: &CreateTopic) -> Result<(), CatalogError> {
        self.place_topic(create).map(drop)
    }

    /// Checks the command and finds the places of its shards' replicas.
    fn place_topic(&self, create: &CreateTopic) -> Result<Vec<Replicas>, CatalogError> {
        validate_topic_name(&create.name)?;
        if let Some(topic) = self.topics.get(create.name.as_str()) {
            return Err(CatalogError::AlreadyExists(topic.clone()));
        }
        if create.shards == 0 || create.shards > TOPIC_SHARDS_MAX {
            return Err(CatalogError::ShardCount(create.shards));
        }
        if create.segment_bytes != 0 && !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_LIMIT).contains(&create.segment_bytes) {
            return Err(CatalogError::SegmentBytes(create.segment_bytes));
        }
        if create.replication_factor > REPLICATION_FACTOR_MAX {
            return Err(CatalogError::ReplicationFactor(create.replication_factor));
        }
        let active = self.active_nodes().count();
        if active == 0 {
            return Err(CatalogError::NoCluster);
        }
        let count = active.min(replication_factor(create) as usize);
        let topic = TopicId(self.topic_id_next);
        let slots = (0..create.shards)
            .map(|number| (ShardUid(self.shard_uid_next + u64::from(number)), slot_of(topic, ShardNumber(number))));
        let placed = place_new(Load::of(self), slots, count);
        let full = CatalogError::TooManyShards { wanted: create.shards, present: self.shards };
        Ok(placed.ok_or(full)?.into_iter().map(Replicas::on).collect())
    }

    pub(super) fn create_topic(&mut self, create: CreateTopic) -> Result<CatalogAnswer, CatalogError> {
        let replicas = self.place_topic(&create)?;
        let topic = Arc::new(TopicView {
            replication_factor: replication_factor(&create),
            name: create.name.into(),
            id: TopicId(self.topic_id_next),
            shards: (0..u64::from(create.shards)).map(|n| ShardUid(self.shard_uid_next + n)).collect(),
            replicas,
            retention_bytes_max: create.retention_bytes_max,
            retention_age_ms_max: create.retention_age_ms_max,
            segment_bytes: create.segment_bytes,
            created_us: create.created_us,
        });
        self.topic_id_next += 1;
        self.shard_uid_next += u64::from(create.shards);
        self.insert_topic(topic.clone());
        Ok(CatalogAnswer::Created(topic))
    }

    pub(super) fn check_delete(&self, delete: &DeleteTopic) -> Result<(), CatalogError> {
        let known = self.topics.contains_key(delete.name.as_str());
        if known { Ok(()) } else { Err(CatalogError::NotFound(shown(&delete.name))) }
    }

    pub(super) fn delete_topic(&mut self, delete: &DeleteTopic) -> Result<CatalogAnswer, CatalogError> {
        let Some(topic) = self.topics.remove(delete.name.as_str()) else {
            return Err(CatalogError::NotFound(shown(&delete.name)));
        };
        self.shards -= topic.shards.len();
        let first = self.topics_by_uid.remove(&topic.shards[0]);
        assert!(first.is_some(), "every topic is found by its first shard");
        Ok(CatalogAnswer::Deleted(topic))
    }

    /// Adds a topic, or replaces it by itself as it is now.
    pub(super) fn insert_topic(&mut self, topic: Arc<TopicView>) {
        let shards = topic.shards.len();
        self.topics_by_uid.insert(topic.shards[0], topic.name.clone());
        match self.topics.insert(topic.name.clone(), topic) {
            Some(before) => assert_eq!(before.shards.len(), shards, "a topic keeps its shards"),
            None => self.shards += shards,
        }
    }
}

fn replication_factor(create: &CreateTopic) -> u32 {
    if create.replication_factor == 0 { REPLICATION_FACTOR_DEFAULT } else { create.replication_factor }
}
