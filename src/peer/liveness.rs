//! Which nodes were heard of lately. Reactor 0 pings every node; whoever is silent for longer than the time-out is
//! taken for dead by all reactors, and the groups that it led elect another leader at once.
//!
//! A detector, not a truth: a paused or cut-off node looks dead, and comes back.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::ids::NodeId;

/// Shared by all threads of a node.
#[derive(Debug)]
pub struct Liveness {
    dead: watch::Sender<Arc<BTreeSet<NodeId>>>,
    _writing: Mutex<()>,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness { dead: watch::Sender::new(Arc::default()), _writing: Mutex::new(()) }
    }
}

impl Liveness {
    /// Whether the node was heard of lately, or nobody has looked yet.
    pub fn is_alive(&self, node: NodeId) -> bool {
        !self.dead.borrow().contains(&node)
    }

    /// Notes what the detector finds.
    pub fn note(&self, node: NodeId, alive: bool) {
        let _one = self._writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.dead.send_if_modified(|dead| {
            let mut changed = BTreeSet::clone(dead);
            let differs = if alive { changed.remove(&node) } else { changed.insert(node) };
            if differs {
                *dead = Arc::new(changed);
            }
            differs
        });
    }

    /// The dead, and a way to wait for the next change.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeSet<NodeId>>> {
        self.dead.subscribe()
    }
}
