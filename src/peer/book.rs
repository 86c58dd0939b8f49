//! Who the nodes of the cluster are, and where their peers reach them: published by reactor 0 from the catalog and from
//! gossip, read by all reactors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    env::net::Endpoint,
    ids::{NodeId, ReactorNumber},
    proto::ringlog::state::v1::ClusterNode,
};

/// A node as its peers reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Which.
    pub node: NodeId,
    /// Host name or address.
    pub host: String,
    /// UDP port of its reactor 0; reactor n has port + n.
    pub port: u16,
    /// Its reactors, at least 1.
    pub reactors: u32,
    /// Its gRPC address as clients are told, `host:port`.
    pub grpc: String,
    /// Its HTTP address, `host:port`.
    pub http: String,
}

impl PeerNode {
    /// The reactor of that slot.
    pub fn reactor(&self, slot: u64) -> ReactorNumber {
        ReactorNumber((slot % u64::from(self.reactors.max(1))) as u32)
    }

    /// Where that reactor is.
    pub fn endpoint(&self, reactor: ReactorNumber) -> Endpoint {
        Endpoint { node: self.node, host: self.host.clone(), port: self.port.wrapping_add(reactor.0 as u16) }
    }
}

/// A member as the catalog's entries and a join's answer have it.
pub fn to_peer_node(entry: &ClusterNode) -> PeerNode {
    PeerNode {
        node: NodeId(entry.node_id),
        host: entry.peer_host.clone(),
        port: u16::try_from(entry.peer_port).unwrap_or(0),
        reactors: entry.reactors,
        grpc: entry.grpc_address.clone(),
        http: entry.http_address.clone(),
    }
}

/// The table; shared by all threads of a node.
#[derive(Debug, Default)]
pub struct AddressBook {
    nodes: Mutex<Arc<BTreeMap<NodeId, Arc<PeerNode>>>>,
    removed: Mutex<Arc<BTreeSet<NodeId>>>,
}

impl AddressBook {
    /// The node, if it is a member.
    pub fn get(&self, node: NodeId) -> Option<Arc<PeerNode>> {
        self.snapshot().get(&node).cloned()
    }

    /// All of them.
    pub fn snapshot(&self) -> Arc<BTreeMap<NodeId, Arc<PeerNode>>> {
        // The table is replaced as a whole: a poisoned one is still whole.
        Arc::clone(&self.nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the node was taken out of the cluster for good: whatever it says is refused.
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    /// Replaces the list of nodes that were taken out of the cluster.
    pub fn publish_removed(&self, nodes: BTreeSet<NodeId>) {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(nodes);
    }

    /// Replaces the table.
    pub fn publish(&self, nodes: impl IntoIterator<Item = PeerNode>) {
        let table = nodes.into_iter().map(|node| (node.node, Arc::new(node))).collect();
        *self.nodes.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}
