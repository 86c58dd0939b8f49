//! An operator beside the steps: a node that a step has stopped comes back when somebody starts it, and another step may wait for
//! what only that node can do, such as to be one of two voters.

use std::{pin::pin, time::Duration};

use futures_util::future::{Either, select};

use super::Run;
use crate::{
    env,
    ids::{NodeId, ShardUid},
    sim::{SimEnv, executor::JoinHandle},
};

/// How often an operator looks: less often than a disk that is broken for a while breaks a node again.
const OPERATOR_INTERVAL: Duration = Duration::from_secs(5);

impl Run {
    /// Waits until all steps are done; while they go on after the load, an operator is there.
    pub(super) async fn until_done(&self, steps: Vec<JoinHandle<()>>) {
        let done = async {
            for step in steps {
                if step.await.is_err() {
                    self.problem("a step has panicked".to_owned());
                }
            }
        };
        match select(pin!(done), pin!(self.operate())).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }

    /// Starts nodes anew, again and again. Never ends.
    async fn operate(&self) {
        loop {
            env::sleep::<SimEnv>(OPERATOR_INTERVAL).await;
            for node in self.cluster.nodes() {
                if self.needs_operator(node) {
                    self.restart(node);
                }
            }
        }
    }

    /// Whether something on this node has a reason to have stopped, beside damage: an error of its disk, or a bug, has struck this
    /// process, or what it has of the one before it.
    pub(super) fn may_stop(&self, node: NodeId) -> bool {
        self.cluster.disk(node).is_some_and(|disk| disk.was_struck())
    }

    /// Whether this node's process may be unable to start: also where there is no space.
    pub(super) fn may_not_start(&self, node: NodeId) -> bool {
        self.may_stop(node) || self.cluster.disk(node).is_some_and(|disk| disk.was_full())
    }

    /// Whether a step may have stopped something on this node, and only a start mends it, such as a damaged catalog: neither another
    /// damaged replica, which mends itself, nor one that is lost.
    fn needs_operator(&self, node: NodeId) -> bool {
        if self.cluster.failure(node).is_some() {
            return self.may_not_start(node);
        }
        let Some(process) = self.cluster.process(node).filter(|process| process.serves()) else { return false };
        let is_victim = self.victim.get() == Some(node);
        let faults = process.node.faults();
        if is_victim && faults.contains_key(&ShardUid::CATALOG) {
            return true;
        }
        if !self.may_stop(node) {
            return false;
        }
        let lost = self.lost.borrow();
        let stays = |uid: &ShardUid| !lost.contains(&(node, *uid)) && !is_victim;
        faults.keys().any(stays)
    }
}
