//! Who the nodes of the cluster are, and where their peers reach them: published by reactor 0 from the catalog and from
//! gossip, read by all reactors.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    env::net::Endpoint,
    ids::{NodeId, ReactorNumber},
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

/// The table; shared by all threads of a node.
#[derive(Debug, Default)]
pub struct AddressBook {
    nodes: Mutex<Arc<BTreeMap<NodeId, Arc<PeerNode>>>>,
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

    /// Replaces the table.
    pub fn publish(&self, nodes: impl IntoIterator<Item = PeerNode>) {
        let table = nodes.into_iter().map(|node| (node.node, Arc::new(node))).collect();
        *self.nodes.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}
