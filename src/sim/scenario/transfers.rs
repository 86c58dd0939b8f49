//! Transfers of leadership, also to a replica that cannot take over, and whether the shard goes on meanwhile.
//!
//! Whatever a transfer comes to, its shard takes records again soon: a leader that leads on holds them back for a moment only. That
//! is asked of a shard that nothing else is wrong with, of each transfer in a run, from its beginning until it is over.

use std::{cell::Cell, rc::Rc, time::Duration};

use super::{
    Run,
    plan::{Action, Who},
    steps::sleep_ms,
};
use crate::{
    ids::{NodeId, Term},
    limits::LEADER_WAIT,
    reactor::mailbox::AdminCall,
    shard::Shard,
    sim::{SimEnv, World, client::Target},
};

/// How long a shard may take no record because of a transfer: it holds them back for half a second (`raft::timing`).
const SILENT_MAX: Duration = Duration::from_secs(3);

/// Between two records of the producer beside a transfer.
const PAUSE_MS: u64 = 100;

/// Until what a step has struck is as before.
const AFTERWARDS_US: u64 = 15_000_000;

/// Steps that may take a shard's leader, or its majority, away.
#[derive(Default)]
pub(super) struct Disturbances {
    begun: Cell<u64>,
    in_force: Cell<u64>,
    /// Until what those have left behind that are done.
    until_us: Cell<u64>,
}

impl Disturbances {
    /// Of a run in which nobody knows how long anything takes.
    pub(super) fn for_ever() -> Disturbances {
        Disturbances { until_us: Cell::new(u64::MAX), ..Disturbances::default() }
    }

    /// Until when it goes on after it is done, if it is one.
    pub(super) fn begin(&self, action: &Action) -> Option<u64> {
        let after_us = after_us(action)?;
        self.begun.set(self.begun.get() + 1);
        self.in_force.set(self.in_force.get() + 1);
        Some(World::current().now_us().saturating_add(after_us))
    }

    /// Of what `begin` has said.
    pub(super) fn end(&self, begun: Option<u64>) {
        let Some(until_us) = begun else { return };
        self.in_force.set(self.in_force.get() - 1);
        let until_us = until_us.max(World::current().now_us().saturating_add(AFTERWARDS_US));
        self.until_us.set(self.until_us.get().max(until_us));
    }
}

/// How long an action goes on after its beginning, if it does not say so itself by being done. `None`: it takes nobody away.
fn after_us(action: &Action) -> Option<u64> {
    match action {
        Action::Transfer { .. } | Action::Topic { .. } | Action::Trim { .. } => None,
        Action::Slow { for_ms, .. } | Action::SlowFlush { for_ms, .. } => Some(for_ms * 1_000 + AFTERWARDS_US),
        Action::Fail { .. }
        | Action::Full { .. }
        | Action::Rot { .. }
        | Action::Bend { .. }
        | Action::Lie { .. }
        | Action::Restore { .. }
        | Action::LoseDirectory { .. }
        | Action::Break { .. }
        | Action::Panic { .. }
        | Action::Drift { .. }
        | Action::Jump { .. } => Some(u64::MAX),
        Action::Crash { .. }
        | Action::Kill { .. }
        | Action::CrashAll { .. }
        | Action::Stop { .. }
        | Action::Isolate { .. }
        | Action::CutOneWay { .. }
        | Action::CutPair { .. }
        | Action::Flap { .. }
        | Action::DropConnections
        | Action::Pause { .. }
        | Action::FailTransfer { .. }
        | Action::InChange { .. }
        | Action::Drain { .. }
        | Action::Join
        | Action::Replace { .. }
        | Action::Rebalance => Some(0),
    }
}

/// A shard that is well, and its leader, from which somebody else is to take over.
struct Watch {
    run: Rc<Run>,
    target: Target,
    leader: NodeId,
    term: Term,
    /// Of its process.
    process: u64,
    disturbances: u64,
    is_over: Cell<bool>,
}

impl Run {
    pub(super) async fn transfer(self: &Rc<Self>, shard: u64, to: Option<Who>) {
        let target = self.target(shard);
        let to = to.and_then(|who| self.find(who));
        if let Some(leader) = self.cluster.leader(target.uid) {
            self.note_paths("transfer", leader);
        }
        let watch = self.watch(&target, 0);
        self.hand_over(&target, to, watch).await;
    }

    pub(super) async fn fail_transfer(self: &Rc<Self>, number: u64, cut: bool, for_ms: u64) {
        let target = self.target(number);
        let Some(leader) = self.cluster.leader(target.uid) else { return };
        let Some(shard) = self.cluster.process(leader).and_then(|process| process.shard(target.uid)) else { return };
        let voters = shard.members().voters;
        let Some(to) = voters.iter().copied().find(|node| *node != leader) else { return };
        self.note_paths(if cut { "transfer to a cut-off node" } else { "transfer to a paused node" }, leader);
        // Of two voters the other one is needed.
        let watch = self.watch(&target, 1).filter(|_| voters.len() > 2);
        let network = self.cluster.network();
        if cut {
            network.cut_both(leader, to);
        } else {
            World::current().pause(to);
            network.pause(to);
        }
        let run = Rc::clone(self);
        let asked = World::current().spawn(async move {
            if for_ms.is_multiple_of(2) {
                return run.hand_over_at(leader, &shard, to, watch).await;
            }
            // It may be asked through the one that stands still.
            run.hand_over(&target, Some(to), watch).await;
        });
        sleep_ms(for_ms).await;
        if cut {
            network.mend(leader, to);
            network.mend(to, leader);
        } else {
            network.resume(to);
            World::current().resume(to);
        }
        let _answered = asked.await.is_ok();
    }

    async fn hand_over(self: &Rc<Self>, target: &Target, to: Option<NodeId>, watch: Option<Rc<Watch>>) {
        let (topic, shard) = (target.topic.to_string(), target.shard);
        let asked = self.admin(AdminCall::TransferLeader { topic, shard, to });
        watched(watch, async move {
            let _done = asked.await;
        })
        .await;
    }

    /// The same by the leader's own replica: whoever asks the replicas one after the other may come to the one that cannot take
    /// over first, and it is known to be away before the leader is asked.
    async fn hand_over_at(&self, leader: NodeId, shard: &Shard<SimEnv>, to: NodeId, watch: Option<Rc<Watch>>) {
        let shard = shard.clone();
        let asked = World::current().spawn_on(leader, async move {
            let moved = shard.transfer(Some(to), LEADER_WAIT).await;
            World::current().note(&format!("the transfer to node {to}: {moved:?}"));
        });
        watched(watch, async move { self.survived(asked.await) }).await;
    }

    /// Watches a shard that nothing is wrong with; so many steps in force are the transfer's own.
    fn watch(self: &Rc<Self>, target: &Target, own: u64) -> Option<Rc<Watch>> {
        let Disturbances { begun, in_force, until_us } = &self.disturbances;
        if in_force.get() != own || until_us.get() > World::current().now_us() {
            return None;
        }
        let leader = self.cluster.leader(target.uid)?;
        let process = self.cluster.process(leader)?;
        let members = process.shard(target.uid)?.members();
        let is_well = |node: &NodeId| {
            let process = self.cluster.process(*node).filter(|process| process.serves());
            process.is_some_and(|process| process.shard(target.uid).is_some() && process.node.faults().is_empty())
        };
        if members.changing || !members.voters.iter().all(is_well) {
            return None;
        }
        Some(Rc::new(Watch {
            run: Rc::clone(self),
            target: target.clone(),
            leader,
            term: process.shard(target.uid)?.leader().1,
            process: process.number,
            disturbances: begun.get(),
            is_over: Cell::new(false),
        }))
    }
}

/// A transfer, and the producer beside it.
async fn watched(watch: Option<Rc<Watch>>, transfer: impl Future<Output = ()>) {
    let going_on = watch.clone().map(|watch| World::current().spawn(watch.go_on()));
    transfer.await;
    World::current().note("the transfer is over");
    if let (Some(watch), Some(going_on)) = (watch, going_on) {
        watch.is_over.set(true);
        let _ended = going_on.await;
    }
}

impl Watch {
    /// One record after the other, until one was taken that was sent when the transfer was over.
    async fn go_on(self: Rc<Self>) {
        loop {
            let is_last = self.is_over.get();
            let is_served = self.run.clients.reach(self.leader, &self.target, SILENT_MAX).await;
            if !self.leads_on() {
                return;
            }
            if !is_served {
                let Watch { target, leader, .. } = &*self;
                let uid = target.uid;
                return self.run.problem(format!(
                    "shard {uid} has taken no record for {SILENT_MAX:?} of a transfer, though node {leader} leads on"
                ));
            }
            if is_last {
                return self.run.coverage.borrow_mut().hit("transfer", "leader that leads on");
            }
            sleep_ms(PAUSE_MS).await;
        }
    }

    /// Whether the same one leads, also if it takes no records, and nothing has happened beside the transfer.
    fn leads_on(&self) -> bool {
        let Watch { run, target, leader, term, process, disturbances, .. } = self;
        let now = run.cluster.process(*leader).filter(|now| now.number == *process);
        let shard = now.and_then(|now| now.shard(target.uid));
        run.disturbances.begun.get() == *disturbances
            && run.cluster.leader(target.uid).is_none_or(|other| other == *leader)
            && shard.is_some_and(|shard| shard.leader() == (Some(*leader), *term) && !shard.members().changing)
    }
}
