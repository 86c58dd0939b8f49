//! What gossip has found out, for all threads of a node: for `GetServers`, health and status. Never for deciding
//! anything that must be right: it may be late, and two nodes may see different things.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::state::NodeState;
use crate::ids::NodeId;

/// Whether a node is there, as the nodes together see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    /// It answers, to this node or to others.
    Alive,
    /// It has not answered lately, and may still object.
    Suspect,
    /// It has not answered for long, or has left.
    Down,
}

/// A node as gossip sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipView {
    /// Which.
    pub node: NodeId,
    /// Whether it is there.
    pub alive: Alive,
    /// What it last said of itself; `None` if that has not come yet.
    pub state: Option<Arc<NodeState>>,
}

/// The table: members of the cluster of which anything was heard, this node included. Shared by all threads.
#[derive(Debug)]
pub struct GossipTable {
    views: watch::Sender<Arc<BTreeMap<NodeId, GossipView>>>,
}

impl Default for GossipTable {
    fn default() -> GossipTable {
        GossipTable { views: watch::Sender::new(Arc::default()) }
    }
}

impl GossipTable {
    /// A node; `None` if nothing was heard of it, or it is no member.
    pub fn get(&self, node: NodeId) -> Option<GossipView> {
        self.views.borrow().get(&node).cloned()
    }

    /// All of them.
    pub fn snapshot(&self) -> Arc<BTreeMap<NodeId, GossipView>> {
        Arc::clone(&self.views.borrow())
    }

    /// The table, and a way to wait for its next change.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, GossipView>>> {
        self.views.subscribe()
    }

    pub(super) fn publish(&self, views: BTreeMap<NodeId, GossipView>) {
        self.views.send_if_modified(|before| {
            let is_new = **before != views;
            if is_new {
                *before = Arc::new(views);
            }
            is_new
        });
    }
}
