//! What a command did, or why it did nothing. Every replica computes the same.

use std::sync::Arc;

use super::{NodeView, TopicNameError, TopicView};
use crate::{
    ids::{NodeId, ShardUid},
    limits::{
        CLUSTER_NODES_MAX, JOIN_TOKENS_MAX, NODE_SHARDS_MAX, REPLICATION_FACTOR_MAX, SEGMENT_BYTES_LIMIT,
        SEGMENT_BYTES_MIN, TOPIC_SHARDS_MAX,
    },
};

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogAnswer {
    /// The cluster has this id: the command's, or the one it had before.
    Cluster {
        /// The id that counts.
        cluster_id: Arc<str>,
    },
    /// The new topic.
    Created(Arc<TopicView>),
    /// The topic that is no more: its shards' data can go.
    Deleted(Arc<TopicView>),
    /// The node as it is now: it has joined (or had joined before), or was changed.
    Node(Arc<NodeView>),
    /// Nodes can join with the token.
    TokenAdded,
    /// The topic as it is now, with the new places of one of its shards.
    Moved(Arc<TopicView>),
}

/// Why a command did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The name is taken.
    #[error("topic \"{}\" exists already", .0.name)]
    AlreadyExists(Arc<TopicView>),
    /// No topic of that name.
    #[error("there is no topic \"{0}\"")]
    NotFound(String),
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] TopicNameError),
    /// No shards, or too many in one topic.
    #[error("a topic has 1 to {TOPIC_SHARDS_MAX} shards, not {0}")]
    ShardCount(u32),
    /// The segment size is out of bounds.
    #[error("segment_bytes is 0 (the node's setting) or from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_LIMIT}, not {0}")]
    SegmentBytes(u64),
    /// Too many replicas.
    #[error("a shard has 1 to {REPLICATION_FACTOR_MAX} replicas, not {0}")]
    ReplicationFactor(u32),
    /// Nodes would have too many shards.
    #[error(
        "{wanted} more shards have no room beside the {present} that there are, as a node holds at most {NODE_SHARDS_MAX} replicas: delete topics, use fewer shards, or add nodes"
    )]
    TooManyShards {
        /// Of the new topic.
        wanted: u32,
        /// Of all topics now.
        present: usize,
    },
    /// Nothing can be done before `InitCluster`.
    #[error("the cluster has not begun yet: its first node is still starting")]
    NoCluster,
    /// Not a cluster's id.
    #[error("a cluster's id is 32 hexadecimal digits, not \"{0}\"")]
    ClusterId(String),
    /// A node's description cannot be right.
    #[error("the node is not described properly: {what}")]
    NodeInvalid {
        /// What is wrong.
        what: &'static str,
    },
    /// Never was a member.
    #[error("node {0} is not a member of this cluster")]
    NodeUnknown(NodeId),
    /// Was a member.
    #[error(
        "node {0} was removed from this cluster for good: give it an empty data directory and let it join as a new node"
    )]
    NodeRemoved(NodeId),
    /// The id that a certificate claims belongs to another one.
    #[error(
        "node id {0} was given to another node, or to this one before its data directory was made anew; ids are never reused: use a certificate with another id"
    )]
    NodeIdTaken(NodeId),
    /// The data directory is another node's.
    #[error(
        "this data directory is known as node {0}: it was copied; a node must begin with an empty data directory of its own"
    )]
    IncarnationTaken(NodeId),
    /// Not the node that joined under that id.
    #[error("node {0} joined with another data directory than this one: start it with that one, or join as a new node")]
    WrongIncarnation(NodeId),
    /// The cluster is full.
    #[error("a cluster has at most {CLUSTER_NODES_MAX} nodes, removed ones included")]
    TooManyNodes,
    /// Neither a certificate nor a token.
    #[error("a node joins with a token, or with a certificate that names its id; this one showed neither")]
    TokenMissing,
    /// Nobody made it, or it has expired.
    #[error("the join token is unknown or has expired: make another one with `ringlog cluster token`")]
    TokenUnknown,
    /// As many nodes have joined with it as may.
    #[error("the join token is used up: make another one with `ringlog cluster token`")]
    TokenUsedUp,
    /// Too many of them.
    #[error("{JOIN_TOKENS_MAX} join tokens can be used at the same time: wait until one expires")]
    TooManyTokens,
    /// It could never be used.
    #[error("the join token is of no use: {what}")]
    TokenInvalid {
        /// What is wrong.
        what: &'static str,
    },
    /// Nobody would be left to take its replicas.
    #[error("node {0} is the last active one: add another node first")]
    LastActive(NodeId),
    /// A topic would have fewer replicas than it wants.
    #[error(
        "without node {node} the cluster has too few nodes for the replicas of topic {topic:?}: want {wanted}, have {left}; add a node first, or drain it all the same with --force"
    )]
    TooFewNodes {
        /// Which is to be drained.
        node: NodeId,
        /// One such topic.
        topic: Arc<str>,
        /// Its replication factor.
        wanted: u32,
        /// Active nodes without this one.
        left: usize,
    },
    /// It cannot go yet.
    #[error("node {node} still holds {replicas} replicas: drain it and wait until they have moved")]
    HoldsReplicas {
        /// Which.
        node: NodeId,
        /// Moving ones included.
        replicas: usize,
    },
    /// It takes no replicas and does not lead.
    #[error("node {0} is not active: it is being drained, or was removed")]
    NodeNotActive(NodeId),
    /// It has all that it can have.
    #[error("node {0} has {NODE_SHARDS_MAX} replicas, the most that a node can have")]
    NodeFull(NodeId),
    /// Never was, or its topic was deleted.
    #[error("there is no shard {0}; its topic may have been deleted")]
    ShardUnknown(ShardUid),
    /// Not a set of nodes for replicas.
    #[error("the replicas of shard {shard} cannot be there: {what}")]
    Target {
        /// Which.
        shard: ShardUid,
        /// What is wrong.
        what: &'static str,
    },
    /// Another move has replaced the one that ended.
    #[error("shard {0} is not moving to those nodes any more")]
    MoveReplaced(ShardUid),
    /// It cannot lead what it has not.
    #[error("node {node} holds no replica of shard {shard}")]
    NoReplica {
        /// Which.
        shard: ShardUid,
        /// Who.
        node: NodeId,
    },
    /// Not a command of this catalog: a newer version wrote it.
    #[error("the catalog does not know this command; a newer version of ringlog may have written it")]
    UnknownCommand,
}
