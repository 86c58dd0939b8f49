//! The nodes of the cluster: how they join, change, are drained and go.
//!
//! Ids are handed out in order and never reused: a removed node stays here for good. A node is known by its id and its
//! incarnation, a random number that was made with its data directory.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    AddNode, Catalog, CatalogAnswer, CatalogError, InitCluster, SetNodeState, TopicView, UpdateNode, topics::shown,
};
use crate::{
    ids::NodeId,
    limits::{CATALOG_VOTERS_MAX, CLUSTER_NODES_MAX, NODE_ADDRESS_BYTES_MAX, NODE_ID_MAX, REACTORS_MAX},
    proto::ringlog::state::v1 as state,
};

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    /// Takes replicas and leaders.
    Active,
    /// Its replicas and leaders move to other nodes.
    Draining,
    /// Gone for good.
    Removed,
}

impl From<NodeState> for state::NodeState {
    fn from(node: NodeState) -> state::NodeState {
        match node {
            NodeState::Active => state::NodeState::Active,
            NodeState::Draining => state::NodeState::Draining,
            NodeState::Removed => state::NodeState::Removed,
        }
    }
}

impl NodeState {
    /// From the number that is stored, if it is one.
    pub fn from_number(state: i32) -> Option<NodeState> {
        match state::NodeState::try_from(state) {
            Ok(state::NodeState::Active) => Some(NodeState::Active),
            Ok(state::NodeState::Draining) => Some(NodeState::Draining),
            Ok(state::NodeState::Removed) => Some(NodeState::Removed),
            Ok(state::NodeState::Unspecified) | Err(_) => None,
        }
    }
}

/// A node as it is; immutable, shared by all who look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its identity for good.
    pub id: NodeId,
    /// What it is to the cluster.
    pub state: NodeState,
    /// Host name or address for its peers.
    pub peer_host: String,
    /// UDP port of its reactor 0; reactor n has port + n. 0: not known yet.
    pub peer_port: u16,
    /// Its reactors, at least 1.
    pub reactors: u32,
    /// Its gRPC address as clients are told, `host:port`; may be empty.
    pub grpc: String,
    /// Its HTTP address, the same.
    pub http: String,
    /// Made with its data directory; no other node has it.
    pub incarnation: u64,
}

impl NodeView {
    /// From a message, with another identity and state.
    ///
    /// # Errors
    /// What cannot be right in it.
    pub(super) fn new(id: NodeId, state: NodeState, node: &state::ClusterNode) -> Result<NodeView, &'static str> {
        if id.0 == 0 {
            return Err("0 is no node's id");
        }
        if node.incarnation == 0 {
            return Err("it has no incarnation");
        }
        if node.reactors == 0 || node.reactors as usize > REACTORS_MAX {
            return Err("its number of reactors is out of range");
        }
        let port_max = u32::from(u16::MAX);
        if node.peer_port > port_max || node.peer_port + (node.reactors - 1) > port_max {
            return Err("its peer ports, one for each reactor, go beyond 65535");
        }
        if node.peer_host.is_empty() {
            return Err("it has no host for its peers");
        }
        if ![&node.peer_host, &node.grpc_address, &node.http_address].into_iter().all(|text| is_printable(text)) {
            return Err("an address of it is too long, or is not one");
        }
        Ok(NodeView {
            id,
            state,
            peer_host: node.peer_host.clone(),
            peer_port: node.peer_port as u16,
            reactors: node.reactors,
            grpc: node.grpc_address.clone(),
            http: node.http_address.clone(),
            incarnation: node.incarnation,
        })
    }

    /// As it is stored and sent.
    pub fn to_entry(&self) -> state::ClusterNode {
        state::ClusterNode {
            node_id: self.id.0,
            state: state::NodeState::from(self.state).into(),
            peer_host: self.peer_host.clone(),
            peer_port: self.peer_port.into(),
            reactors: self.reactors,
            grpc_address: self.grpc.clone(),
            http_address: self.http.clone(),
            incarnation: self.incarnation,
        }
    }
}

/// Printed in messages and sent to clients: no spaces, no control characters, bounded.
fn is_printable(address: &str) -> bool {
    address.len() <= NODE_ADDRESS_BYTES_MAX && address.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What `AddNode` comes to.
enum Joining {
    /// As it is from now on.
    New(NodeView),
    /// It asked before; as it is from now on.
    Again(NodeView),
}

impl Catalog {
    /// All nodes by id, removed ones too.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeView>> {
        self.nodes.values()
    }

    /// The node of that id, if it was ever a member.
    pub fn node(&self, id: NodeId) -> Option<&Arc<NodeView>> {
        self.nodes.get(&id)
    }

    /// Nodes that take replicas, by id.
    pub fn active_nodes(&self) -> impl Iterator<Item = &Arc<NodeView>> {
        self.nodes.values().filter(|node| node.state == NodeState::Active)
    }

    pub(super) fn is_active(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.state == NodeState::Active)
    }

    /// All nodes that were not removed: each of them has a replica of the catalog.
    pub fn members(&self) -> BTreeSet<NodeId> {
        let present = self.nodes.values().filter(|node| node.state != NodeState::Removed);
        present.map(|node| node.id).collect()
    }

    /// The nodes that are to vote in the catalog's group, where `present` do now: the largest odd number of active ones up to
    /// `CATALOG_VOTERS_MAX`, as an even one would bear no more losses. Who votes already comes first, then the lowest ids, so that a
    /// node that joins replaces nobody. One of the `dead` would only make the quorum harder to reach: it is let in when it is heard of.
    /// The `late`, who have not caught up when they were to vote, come after the others.
    /// As long as too few are alive all stay as they are, but for nodes that were removed. Empty while there is no node.
    pub fn wanted_voters(
        &self,
        present: &BTreeSet<NodeId>,
        dead: &BTreeSet<NodeId>,
        late: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let odd = |count: usize| if count.is_multiple_of(2) { count.saturating_sub(1) } else { count };
        let active: Vec<NodeId> = self.active_nodes().map(|node| node.id).collect();
        let count = odd(active.len().min(CATALOG_VOTERS_MAX));
        let mut able: Vec<NodeId> =
            active.into_iter().filter(|node| present.contains(node) || !dead.contains(node)).collect();
        able.sort_by_key(|node| (!present.contains(node), dead.contains(node), late.contains(node), *node));
        if able.len() >= count {
            return able.into_iter().take(count).collect();
        }
        let members = self.members();
        if present.iter().all(|node| members.contains(node)) {
            return present.clone();
        }
        let fewer = odd(able.len());
        able.into_iter().take(fewer).collect()
    }

    /// Replicas that the node holds or is to hold, those included that a move will take from it when it ends.
    pub fn replicas_on(&self, node: NodeId) -> usize {
        self.topics.values().flat_map(|topic| &topic.replicas).filter(|replicas| replicas.has(node)).count()
    }

    /// Refuses when a topic would have fewer replicas than it wants, and than it has, if this node took none any more.
    fn check_replicas_without(&self, node: NodeId) -> Result<(), CatalogError> {
        let left = self.active_nodes().filter(|active| active.id != node).count();
        let loses = |topic: &&Arc<TopicView>| {
            let wanted = topic.replication_factor as usize;
            topic.replicas.iter().any(|replicas| replicas.has(node) && left < wanted.min(replicas.nodes.len()))
        };
        match self.topics.values().find(loses) {
            Some(topic) => Err(CatalogError::TooFewNodes {
                node,
                topic: Arc::clone(&topic.name),
                wanted: topic.replication_factor,
                left,
            }),
            None => Ok(()),
        }
    }

    /// The first node of a new cluster; `None` if the cluster has its id already.
    fn first_node(&self, init: &InitCluster) -> Result<Option<NodeView>, CatalogError> {
        if self.cluster_id.is_some() {
            return Ok(None);
        }
        let is_id = init.cluster_id.len() == 32
            && init.cluster_id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !is_id {
            return Err(CatalogError::ClusterId(shown(&init.cluster_id)));
        }
        let node = init.node.as_ref().ok_or(CatalogError::NodeInvalid { what: "it is missing" })?;
        let node = NodeView::new(NodeId(self.node_id_next), NodeState::Active, node);
        node.map(Some).map_err(|what| CatalogError::NodeInvalid { what })
    }

    pub(super) fn check_init(&self, init: &InitCluster) -> Result<(), CatalogError> {
        self.first_node(init).map(drop)
    }

    pub(super) fn init_cluster(&mut self, init: InitCluster) -> Result<CatalogAnswer, CatalogError> {
        if let Some(node) = self.first_node(&init)? {
            self.cluster_id = Some(init.cluster_id.into());
            self.insert_node(node);
        }
        let cluster_id = self.cluster_id.clone().expect("it has had one, or has it since");
        Ok(CatalogAnswer::Cluster { cluster_id })
    }

    fn joining(&self, add: &AddNode) -> Result<Joining, CatalogError> {
        let node = add.node.as_ref().ok_or(CatalogError::NodeInvalid { what: "it is missing" })?;
        if node.node_id > NODE_ID_MAX {
            return Err(CatalogError::NodeInvalid { what: "the id in its certificate is too large" });
        }
        let known = self.nodes.values().find(|known| known.incarnation == node.incarnation);
        let id = NodeId(match (node.node_id, known) {
            (0, Some(known)) => known.id.0,
            (0, None) => self.node_id_next,
            (claimed, _) => claimed,
        });
        let view = NodeView::new(id, NodeState::Active, node).map_err(|what| CatalogError::NodeInvalid { what })?;
        if !add.token_secret_hash.is_empty() {
            self.check_token(&add.token_secret_hash, add.now_us)?;
        } else if node.node_id == 0 {
            return Err(CatalogError::TokenMissing);
        }
        match (self.nodes.get(&id), known) {
            (Some(there), _) if there.state == NodeState::Removed => Err(CatalogError::NodeRemoved(id)),
            (Some(there), _) if there.incarnation != view.incarnation => Err(CatalogError::NodeIdTaken(id)),
            (Some(there), _) => Ok(Joining::Again(NodeView { state: there.state, ..view })),
            (None, Some(known)) => Err(CatalogError::IncarnationTaken(known.id)),
            (None, None) => {
                if self.nodes.len() >= CLUSTER_NODES_MAX {
                    return Err(CatalogError::TooManyNodes);
                }
                if !add.token_secret_hash.is_empty() {
                    self.check_token_uses(&add.token_secret_hash)?;
                }
                Ok(Joining::New(view))
            }
        }
    }

    pub(super) fn check_add(&self, add: &AddNode) -> Result<(), CatalogError> {
        self.joining(add).map(drop)
    }

    pub(super) fn add_node(&mut self, add: &AddNode) -> Result<CatalogAnswer, CatalogError> {
        let node = match self.joining(add)? {
            Joining::New(node) => {
                self.use_token(&add.token_secret_hash);
                node
            }
            Joining::Again(node) => node,
        };
        self.forget_expired_tokens(add.now_us);
        Ok(CatalogAnswer::Node(self.insert_node(node)))
    }

    fn updated(&self, update: &UpdateNode) -> Result<NodeView, CatalogError> {
        let node = update.node.as_ref().ok_or(CatalogError::NodeInvalid { what: "it is missing" })?;
        let known = self.present_node(NodeId(node.node_id))?;
        if known.incarnation != node.incarnation {
            return Err(CatalogError::WrongIncarnation(known.id));
        }
        NodeView::new(known.id, known.state, node).map_err(|what| CatalogError::NodeInvalid { what })
    }

    pub(super) fn check_update(&self, update: &UpdateNode) -> Result<(), CatalogError> {
        self.updated(update).map(drop)
    }

    pub(super) fn update_node(&mut self, update: &UpdateNode) -> Result<CatalogAnswer, CatalogError> {
        let node = self.updated(update)?;
        Ok(CatalogAnswer::Node(self.insert_node(node)))
    }

    fn with_state(&self, set: &SetNodeState) -> Result<NodeView, CatalogError> {
        let id = NodeId(set.node_id);
        let state = NodeState::from_number(set.state).ok_or(CatalogError::UnknownCommand)?;
        let node = self.nodes.get(&id).ok_or(CatalogError::NodeUnknown(id))?;
        let changed = NodeView { state, ..NodeView::clone(node) };
        if node.state == state {
            return Ok(changed);
        }
        if node.state == NodeState::Removed {
            return Err(CatalogError::NodeRemoved(id));
        }
        if node.state == NodeState::Active && self.active_nodes().count() == 1 {
            return Err(CatalogError::LastActive(id));
        }
        if state == NodeState::Draining && set.keep_replicas {
            self.check_replicas_without(id)?;
        }
        if state == NodeState::Removed {
            let replicas = self.replicas_on(id);
            if replicas > 0 {
                return Err(CatalogError::HoldsReplicas { node: id, replicas });
            }
        }
        Ok(changed)
    }

    pub(super) fn check_set_state(&self, set: &SetNodeState) -> Result<(), CatalogError> {
        self.with_state(set).map(drop)
    }

    pub(super) fn set_node_state(&mut self, set: &SetNodeState) -> Result<CatalogAnswer, CatalogError> {
        let node = self.with_state(set)?;
        Ok(CatalogAnswer::Node(self.insert_node(node)))
    }

    /// A member that was not removed.
    fn present_node(&self, id: NodeId) -> Result<&Arc<NodeView>, CatalogError> {
        match self.nodes.get(&id) {
            Some(node) if node.state == NodeState::Removed => Err(CatalogError::NodeRemoved(id)),
            Some(node) => Ok(node),
            None => Err(CatalogError::NodeUnknown(id)),
        }
    }

    /// Adds a node or replaces it by itself as it is now; one that does not change keeps its view.
    pub(super) fn insert_node(&mut self, node: NodeView) -> Arc<NodeView> {
        self.node_id_next = self.node_id_next.max(node.id.0 + 1);
        if let Some(same) = self.nodes.get(&node.id).filter(|same| ***same == node) {
            return same.clone();
        }
        let node = Arc::new(node);
        self.nodes.insert(node.id, node.clone());
        node
    }
}
