//! Faults of a leader while its shard's members change: by chance hardly any comes within the milliseconds that this takes, so a
//! change is begun, and waited for.

use std::{rc::Rc, time::Duration};

use super::{
    Run,
    plan::{InChange, Who},
};
use crate::{
    env,
    ids::{NodeId, ShardUid},
    sim::{SimEnv, World},
};

/// How often it is looked whether the members change, and for how long.
const LOOK: Duration = Duration::from_micros(200);
const LOOKS: usize = 20_000;

impl Run {
    /// Has a follower's replica go elsewhere, or away, by a drain, and strikes the leader while it goes; then takes the follower
    /// back.
    pub(super) async fn in_change(self: &Rc<Self>, shard: u64, fault: InChange, for_ms: u64, seed: u64) {
        let uid = self.target(shard).uid;
        let follower = self.find(Who::Follower(shard)).filter(|node| self.can_drain(*node));
        let Some(follower) = follower.filter(|node| self.cluster.leader(uid) != Some(*node)) else { return };
        self.note_paths("drain", follower);
        let run = Rc::clone(self);
        let drained = World::current().spawn(async move { run.drain_node(follower).await });
        if let Some(leader) = self.until_changing(uid).await {
            self.strike(shard, leader, fault, for_ms, seed).await;
        }
        let _drained = drained.await;
        self.undrain_node(follower).await;
    }

    async fn strike(self: &Rc<Self>, shard: u64, leader: NodeId, fault: InChange, for_ms: u64, seed: u64) {
        match fault {
            InChange::Crash if self.may_crash(leader).await => {
                self.note_paths("crash", leader);
                self.cluster.crash(leader, seed);
                self.back_after(leader, for_ms).await;
            }
            // It may have more than the others.
            InChange::Crash => {}
            InChange::Isolate => {
                self.note_paths("isolation", leader);
                let pairs = self.pairs_of(leader, true, true);
                self.cut_for(&pairs, for_ms).await;
            }
            InChange::Transfer => self.transfer(shard, None).await,
        }
    }

    /// Waits until a shard's members change; who leads it then. `None`: they do not.
    async fn until_changing(&self, uid: ShardUid) -> Option<NodeId> {
        for _ in 0..LOOKS {
            if let Some(leader) = self.cluster.leader(uid)
                && let Some(standing) = self.standing(leader, uid)
                && (standing.members.changing || !standing.members.learners.is_empty())
            {
                return Some(leader);
            }
            env::sleep::<SimEnv>(LOOK).await;
        }
        None
    }
}
