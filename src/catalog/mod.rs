//! The catalog: which nodes the cluster has, which topics there are, and where their shards' replicas are.
//!
//! A pure state machine, replicated as group 0: the same commands in the same order give the same
//! answers and the same state on every replica. It does no I/O, has no clock and no randomness:
//! whatever is not the same everywhere (a time, a cluster id, who is alive) comes in with the command or the question.
//!
//! Node ids, topic ids and shard uids are handed out in order and never reused, not even after a removal, so
//! that a directory or an entry of a deleted shard is never taken for another's, nor a new node for an old one.
//!
//! The limits that commands are checked against here are part of the replicated state: changing
//! `TOPIC_SHARDS_MAX`, `NODE_SHARDS_MAX` or how `placement` chooses changes what a replay of an old log answers.
//!
//! - `answer`: what commands come to
//! - `nodes`, `tokens`: membership; `topics`; `moves`: replicas on their way
//! - `placement`: where replicas go, and what the leader is to propose for it; `balance`: evening out
//! - `checkpoint`: the state as bytes

mod answer;
mod balance;
mod checkpoint;
mod moves;
mod nodes;
mod placement;
mod tokens;
mod topics;

#[cfg(test)]
pub(crate) mod planted;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;

pub use self::{
    answer::{CatalogAnswer, CatalogError},
    nodes::{NodeState, NodeView},
    tokens::TOKEN_USES_UNLIMITED,
    topics::{Replicas, TopicNameError, TopicView, reactor_of, slot_of, validate_topic_name},
};
use crate::{
    format::entry::{EntryKind, StoredEntry},
    ids::{NodeId, ShardUid},
    proto::ringlog::state::v1 as state,
    raft::Machine,
};

pub use state::{
    AddJoinToken, AddNode, CatalogCommand, CreateTopic, DeleteTopic, FinishMove, InitCluster, MoveShard, PreferLeader,
    SetNodeState, UpdateNode, catalog_command::Command,
};

/// Nodes, topics and places of a cluster.
///
/// Invariants: every shard uid is above 0 and below `shard_uid_next`; every topic id is below `topic_id_next`, every node
/// id is above 0 and below `node_id_next`; no two nodes have the same incarnation; there is an active node once there is
/// a cluster id; every topic has a shard, its uids are consecutive, and each shard's `Replicas` hold what they promise;
/// `shards` is the sum of all topics' shards; `topics_by_uid` has each topic's name by its first shard's uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    cluster_id: Option<Arc<str>>,
    topic_id_next: u64,
    /// At least 1, as 0 is the catalog itself.
    shard_uid_next: u64,
    /// At least 1, as 0 means none.
    node_id_next: u64,
    topics: BTreeMap<Arc<str>, Arc<TopicView>>,
    nodes: BTreeMap<NodeId, Arc<NodeView>>,
    tokens: tokens::Tokens,
    shards: usize,
    topics_by_uid: BTreeMap<ShardUid, Arc<str>>,
}

impl Default for Catalog {
    fn default() -> Catalog {
        Catalog::new()
    }
}

impl Catalog {
    /// An empty catalog.
    pub fn new() -> Catalog {
        Catalog {
            cluster_id: None,
            topic_id_next: 0,
            shard_uid_next: ShardUid::CATALOG.0 + 1,
            node_id_next: 1,
            topics: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            shards: 0,
            topics_by_uid: BTreeMap::new(),
        }
    }

    /// The cluster's identity, once it has one.
    pub fn cluster_id(&self) -> Option<Arc<str>> {
        self.cluster_id.clone()
    }

    /// The topic of that name.
    pub fn topic(&self, name: &str) -> Option<Arc<TopicView>> {
        self.topics.get(name).cloned()
    }

    /// All topics, sorted by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<TopicView>> {
        self.topics.values()
    }

    /// Shards of all topics.
    pub fn shard_count(&self) -> usize {
        self.shards
    }

    /// First shard uid that was never handed out.
    pub fn shard_uid_end(&self) -> ShardUid {
        ShardUid(self.shard_uid_next)
    }

    /// Whether `apply` would carry out this command now: lets a caller refuse it without writing an entry.
    ///
    /// # Errors
    /// What `apply` would answer.
    pub fn check(&self, command: &Command) -> Result<(), CatalogError> {
        self.check_begun(command)?;
        match command {
            Command::InitCluster(init) => self.check_init(init),
            Command::CreateTopic(create) => self.check_create(create),
            Command::DeleteTopic(delete) => self.check_delete(delete),
            Command::AddNode(add) => self.check_add(add),
            Command::UpdateNode(update) => self.check_update(update),
            Command::SetNodeState(set) => self.check_set_state(set),
            Command::AddJoinToken(add) => self.check_add_token(add),
            Command::MoveShard(command) => self.check_move(command),
            Command::FinishMove(command) => self.check_finish(command),
            Command::PreferLeader(command) => self.check_prefer(command),
        }
    }

    /// Runs one command. A refused one changes nothing.
    fn run(&mut self, command: Command) -> Result<CatalogAnswer, CatalogError> {
        self.check_begun(&command)?;
        match command {
            Command::InitCluster(init) => self.init_cluster(init),
            Command::CreateTopic(create) => self.create_topic(create),
            Command::DeleteTopic(delete) => self.delete_topic(&delete),
            Command::AddNode(add) => self.add_node(&add),
            Command::UpdateNode(update) => self.update_node(&update),
            Command::SetNodeState(set) => self.set_node_state(&set),
            Command::AddJoinToken(add) => self.add_token(&add),
            Command::MoveShard(command) => self.move_shard(&command),
            Command::FinishMove(command) => self.finish_move(&command),
            Command::PreferLeader(command) => self.prefer_leader(&command),
        }
    }

    /// Before a cluster has its id and its first node, there is nothing to change.
    fn check_begun(&self, command: &Command) -> Result<(), CatalogError> {
        let can_run = self.cluster_id.is_some() || matches!(command, Command::InitCluster(_));
        if can_run { Ok(()) } else { Err(CatalogError::NoCluster) }
    }
}

impl Machine for Catalog {
    type Answer = Result<CatalogAnswer, CatalogError>;

    fn apply(&mut self, entry: &StoredEntry) -> Self::Answer {
        if entry.header.kind != EntryKind::Command {
            return Err(CatalogError::UnknownCommand);
        }
        let answer = match CatalogCommand::decode(entry.payload()) {
            Ok(CatalogCommand { command: Some(command) }) => self.run(command),
            Ok(CatalogCommand { command: None }) | Err(_) => Err(CatalogError::UnknownCommand),
        };
        #[cfg(test)]
        planted::panic_in(planted::Place::Apply, self.topics.keys().map(|name| &**name));
        answer
    }

    fn checkpoint(&self) -> Bytes {
        self.to_state().encode_to_vec().into()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let state = state::Catalog::decode(state)
            .map_err(|error| format!("this is not a checkpoint of the catalog: {error}"))?;
        *self = Catalog::from_state(state)?;
        Ok(())
    }
}
