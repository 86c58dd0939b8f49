//! Carries out the steps of a plan, each in a task of its own at its time, and undoes what it has done. What a fault meets
//! (`Coverage`) is looked up the moment before.

use std::{rc::Rc, time::Duration};

use super::{
    Run,
    plan::{Action, Step, Who},
};
use crate::{
    env,
    ids::{NodeId, ShardUid},
    proto::ringlog::v1::CreateTopicRequest,
    reactor::mailbox::AdminCall,
    shard::Shard,
    sim::{
        PlantedFault, SimEnv, World,
        executor::{JoinError, JoinHandle},
    },
};

/// Starts all steps; each handle resolves when its step is done and undone.
pub(super) fn begin(run: &Rc<Run>, steps: &[Step]) -> Vec<JoinHandle<()>> {
    let begin = |step: &Step| {
        let (run, Step { at_ms, action }) = (Rc::clone(run), step.clone());
        World::current().spawn(async move {
            sleep_ms(at_ms).await;
            let disturbs = run.disturbances.begin(&action);
            run.act(action).await;
            run.disturbances.end(disturbs);
        })
    };
    steps.iter().map(begin).collect()
}

pub(super) async fn sleep_ms(ms: u64) {
    env::sleep::<SimEnv>(Duration::from_millis(ms)).await;
}

impl Run {
    async fn act(self: &Rc<Self>, action: Action) {
        World::current().note(&format!("{action:?}"));
        match action {
            Action::Crash { who, down_ms, seed } => self.crash(who, down_ms, seed).await,
            Action::Kill { who, down_ms } => self.kill(who, down_ms).await,
            Action::CrashAll { down_ms, seed } => self.crash_all(down_ms, seed).await,
            Action::Stop { who, down_ms } => self.stop(who, down_ms).await,
            Action::Isolate { who, for_ms } => self.isolate(who, for_ms).await,
            Action::CutOneWay { who, out, for_ms } => self.cut_one_way(who, out, for_ms).await,
            Action::CutPair { first, second, for_ms } => self.cut_pair(first, second, for_ms).await,
            Action::Flap { who, times, period_ms } => self.flap(who, times, period_ms).await,
            Action::DropConnections => {
                self.coverage.borrow_mut().hit("lost connections", "all");
                self.cluster.network().drop_connections();
            }
            Action::Pause { who, for_ms } => self.pause(who, for_ms).await,
            Action::Drift { who, ppm } => {
                let Some(node) = self.meet("clock drift", who) else { return };
                World::current().set_drift(node, ppm);
            }
            Action::Jump { who, us } => {
                let Some(node) = self.meet("clock jump", who) else { return };
                World::current().jump_wall(node, us);
            }
            Action::Fail { who, fault, chance_ppm, times } => {
                let Some(node) = self.meet(fault.name(), who) else { return };
                let Some(disk) = self.cluster.disk(node) else { return };
                disk.plant_fault(PlantedFault { fault, path_contains: String::new(), chance_ppm, times });
            }
            Action::Slow { who, factor, for_ms } => {
                let Some(disk) = self.meet("slow device", who).and_then(|node| self.cluster.disk(node)) else { return };
                disk.set_slow(factor, for_ms * 1_000);
            }
            Action::SlowFlush { who, flush_ms, names_ms, for_ms } => {
                let Some(node) = self.meet("slow flushes", who) else { return };
                if names_ms > 0 {
                    self.note_paths("slow names", node);
                }
                let Some(disk) = self.cluster.disk(node) else { return };
                disk.delay_names(flush_ms * 1_000, names_ms * 1_000, for_ms * 1_000);
            }
            Action::Full { who, for_ms } => self.fill(who, for_ms).await,
            Action::Rot { .. } | Action::Bend { .. } | Action::Lie { .. } | Action::Restore { .. } => {
                self.damage(action).await;
            }
            Action::LoseDirectory { shard, replica, down_ms, seed } => {
                self.lose_directory(shard, replica, down_ms, seed).await;
            }
            Action::Break { who, fault, file, for_ms } => self.break_disk(who, fault, file, for_ms).await,
            Action::Panic { shard, replica, operation, down_ms } => {
                self.panic(shard, replica, operation, down_ms).await;
            }
            Action::Transfer { shard, to } => self.transfer(shard, to).await,
            Action::FailTransfer { shard, cut, for_ms } => self.fail_transfer(shard, cut, for_ms).await,
            Action::InChange { shard, fault, for_ms, seed } => self.in_change(shard, fault, for_ms, seed).await,
            Action::Drain { who, undo_after_ms } => self.drain(who, undo_after_ms).await,
            Action::Join => self.join().await,
            Action::Replace { who } => self.replace(who).await,
            Action::Rebalance => {
                self.admin(AdminCall::Rebalance { dry_run: false }).await;
            }
            Action::Topic { life_ms } => self.brief_topic(life_ms).await,
            Action::Trim { shard } => self.trim(shard).await,
        }
    }

    async fn crash(self: &Rc<Self>, who: Who, down_ms: u64, seed: u64) {
        self.aim(who).await;
        let Some(node) = self.find(who) else { return };
        if !self.may_crash(node).await {
            return;
        }
        self.note_paths("crash", node);
        self.cluster.crash(node, seed);
        self.back_after(node, down_ms).await;
    }

    async fn kill(self: &Rc<Self>, who: Who, down_ms: u64) {
        self.aim(who).await;
        let Some(node) = self.meet("kill", who) else { return };
        self.cluster.kill(node);
        self.back_after(node, down_ms).await;
    }

    async fn stop(self: &Rc<Self>, who: Who, down_ms: u64) {
        let Some(node) = self.meet("stop", who) else { return };
        self.cluster.stop(node).await;
        self.back_after(node, down_ms).await;
    }

    async fn pause(self: &Rc<Self>, who: Who, for_ms: u64) {
        self.aim(who).await;
        let Some(node) = self.meet("pause", who) else { return };
        World::current().pause(node);
        self.cluster.network().pause(node);
        sleep_ms(for_ms).await;
        self.cluster.network().resume(node);
        World::current().resume(node);
    }

    pub(super) async fn back_after(&self, node: NodeId, down_ms: u64) {
        sleep_ms(down_ms).await;
        self.cluster.start(node);
    }

    async fn crash_all(self: &Rc<Self>, down_ms: u64, seed: u64) {
        if let Some(victim) = self.victim.get()
            && !self.may_crash(victim).await
        {
            return;
        }
        let nodes = self.cluster.nodes();
        for node in &nodes {
            self.note_paths("crash of all", *node);
            self.cluster.crash(*node, seed ^ node.0);
        }
        sleep_ms(down_ms).await;
        for node in nodes {
            // They do not come up at the same moment.
            sleep_ms(World::current().random_u64() % 300).await;
            self.cluster.start(node);
        }
    }

    async fn isolate(self: &Rc<Self>, who: Who, for_ms: u64) {
        self.aim(who).await;
        let Some(node) = self.meet("isolation", who) else { return };
        let pairs = self.pairs_of(node, true, true);
        self.cut_for(&pairs, for_ms).await;
    }

    async fn cut_one_way(self: &Rc<Self>, who: Who, out: bool, for_ms: u64) {
        let fault = if out { "one-way cut (out)" } else { "one-way cut (in)" };
        let Some(node) = self.meet(fault, who) else { return };
        let pairs = self.pairs_of(node, out, !out);
        self.cut_for(&pairs, for_ms).await;
    }

    async fn cut_pair(self: &Rc<Self>, first: Who, second: Who, for_ms: u64) {
        let (Some(first), Some(second)) = (self.meet("bridge", first), self.find(second)) else { return };
        if first != second {
            self.cut_for(&[(first, second), (second, first)], for_ms).await;
        }
    }

    async fn flap(self: &Rc<Self>, who: Who, times: u32, period_ms: u64) {
        let Some(node) = self.meet("flapping", who) else { return };
        let pairs = self.pairs_of(node, true, true);
        self.cluster.network().flap(pairs, period_ms * 1_000, period_ms * 1_000, times).await;
    }

    pub(super) async fn cut_for(&self, pairs: &[(NodeId, NodeId)], for_ms: u64) {
        let network = self.cluster.network();
        pairs.iter().for_each(|(from, to)| network.cut(*from, *to));
        sleep_ms(for_ms).await;
        pairs.iter().for_each(|(from, to)| network.mend(*from, *to));
    }

    /// The ways of what a node sends (`out`), and of what it is sent (`into`).
    pub(super) fn pairs_of(&self, node: NodeId, out: bool, into: bool) -> Vec<(NodeId, NodeId)> {
        let others = self.cluster.nodes().into_iter().filter(|other| *other != node);
        let ways = others.flat_map(|other| [((node, other), out), ((other, node), into)]);
        ways.filter(|(_, cut)| *cut).map(|(way, _)| way).collect()
    }

    // What operators do. Refusals are no failures: the cluster may be in the middle of anything.

    async fn drain(self: &Rc<Self>, who: Who, undo_after_ms: Option<u64>) {
        let Some(node) = self.find(who).filter(|node| self.can_drain(*node)) else { return };
        self.note_paths("drain", node);
        self.drain_node(node).await;
        if let Some(ms) = undo_after_ms {
            sleep_ms(ms).await;
            self.undrain_node(node).await;
        }
    }

    pub(super) async fn drain_node(&self, node: NodeId) {
        self.drained.borrow_mut().insert(node);
        self.admin(AdminCall::DrainNode { node, undo: false, force: true }).await;
    }

    /// Whether it is known to be taken back.
    pub(super) async fn undrain_node(&self, node: NodeId) -> bool {
        let done = self.admin(AdminCall::DrainNode { node, undo: true, force: false }).await;
        if done {
            self.drained.borrow_mut().remove(&node);
        }
        done
    }

    pub(super) async fn join(&self) {
        self.coverage.borrow_mut().hit("join", "running cluster");
        if let Err(error) = self.cluster.join().await {
            World::current().note(&format!("nobody could join: {error}"));
        }
    }

    async fn brief_topic(self: &Rc<Self>, life_ms: u64) {
        let name = format!("brief-{}", World::current().random_u64() % 1_000);
        let Some((node, process)) = self.any_process() else { return };
        self.coverage.borrow_mut().hit("topic made and deleted", "running cluster");
        let made = World::current().spawn_on(node, async move {
            let frontend = process.frontend(0);
            let request = CreateTopicRequest { name: name.clone(), shards: 2, ..CreateTopicRequest::default() };
            drop(frontend.create_topic(request).await);
            sleep_ms(life_ms).await;
            drop(frontend.delete_topic(&name).await);
        });
        self.survived(made.await);
    }

    /// A node may be killed while it does what it is told.
    pub(super) fn survived(&self, told: Result<(), JoinError>) {
        if told == Err(JoinError::Panic) {
            self.problem("a node panicked while it did what it was told".to_owned());
        }
    }

    /// Asks any node that serves; whether it was done.
    pub(super) async fn admin(&self, call: AdminCall) -> bool {
        let Some((node, process)) = self.any_process() else { return false };
        let text = format!("{call:?}");
        let asked = World::current().spawn_on(node, async move { process.frontend(0).admin(call).await });
        let result = asked.await;
        World::current().note(&format!("{text}: {result:?}"));
        matches!(result, Ok(Ok(_)))
    }

    /// Waits for a moment when the leader that a step is about has records in flight, for every other leader: by chance alone a
    /// fault would hardly ever come in the fraction of a millisecond that they are.
    async fn aim(&self, who: Who) {
        let Who::Leader(number) = who else { return };
        let target = self.target(number);
        for _ in 0..AIMS * (number / 8 % 2) {
            let leader = self.cluster.leader(target.uid).and_then(|node| Some((node, self.cluster.process(node)?)));
            let shard = leader.and_then(|(node, process)| Some((node, process.shard(target.uid)?)));
            let in_flight = |(node, shard): (NodeId, Shard<SimEnv>)| {
                let status = World::current().on(node, || shard.status());
                status.high_watermark < status.log_end
            };
            if shard.is_some_and(in_flight) {
                return;
            }
            env::sleep::<SimEnv>(AIM_INTERVAL).await;
        }
    }

    /// The node that a step is about, and what the fault meets there.
    fn meet(&self, fault: &str, who: Who) -> Option<NodeId> {
        let node = self.find(who)?;
        self.note_paths(fault, node);
        Some(node)
    }

    pub(super) fn find(&self, who: Who) -> Option<NodeId> {
        let nodes: Vec<NodeId> = self.cluster.nodes().into_iter().collect();
        let any = |number: u64| nodes.get((number % nodes.len().max(1) as u64) as usize).copied();
        match who {
            Who::Any(number) => any(number),
            Who::Leader(number) => self.cluster.leader(self.target(number).uid).or_else(|| any(number)),
            Who::Follower(number) => {
                let uid = self.target(number).uid;
                let leader = self.cluster.leader(uid);
                let holds = |node: NodeId| self.cluster.process(node).is_some_and(|node| node.shard(uid).is_some());
                let others: Vec<NodeId> = nodes.iter().copied().filter(|node| Some(*node) != leader).collect();
                let followers: Vec<NodeId> = others.iter().copied().filter(|node| holds(*node)).collect();
                // The lower digits have chosen the shard.
                let chosen = followers.get(number as usize / 8 % followers.len().max(1));
                chosen.or(others.first()).copied()
            }
            Who::CatalogLeader => self.cluster.leader(ShardUid::CATALOG).or_else(|| any(0)),
        }
    }

    /// Notes what a fault meets on a node.
    pub(super) fn note_paths(&self, fault: &str, node: NodeId) {
        let hit = |path: &str| self.coverage.borrow_mut().hit(fault, path);
        let Some(process) = self.cluster.process(node) else { return hit("node that is down") };
        if !process.serves() {
            hit("node that recovers");
        }
        if self.cluster.leader(ShardUid::CATALOG) == Some(node) {
            hit("catalog leader");
        }
        let mut leads = false;
        for target in self.clients.targets() {
            let Some(shard) = process.shard(target.uid) else { continue };
            if !World::current().on(node, || shard.leads()) {
                hit("follower");
                continue;
            }
            leads = true;
            for path in leader_paths(&shard) {
                hit(path);
            }
        }
        if !leads && process.serves() {
            hit("node that leads nothing");
        }
    }
}

/// How often a step looks whether records are in flight before it comes anyway, and when.
const AIMS: u64 = 1_000;
const AIM_INTERVAL: Duration = Duration::from_micros(50);

/// What a leader is in the middle of.
fn leader_paths(shard: &Shard<SimEnv>) -> Vec<&'static str> {
    let status = shard.status();
    let mut paths = vec!["leader"];
    if status.high_watermark < status.log_end {
        paths.push("leader with records in flight");
    }
    if status.members.changing || !status.members.learners.is_empty() {
        paths.push("change of members");
    }
    let end = status.applied_end.0;
    let is_behind = |matched: Option<crate::ids::LogId>| matched.map_or(0, |id| id.index.0 + 1) + 16 < end;
    if status.progress.iter().any(|progress| is_behind(progress.matched)) {
        paths.push("leader with a follower behind");
    }
    if status.segments > 1 {
        paths.push("leader of several segments");
    }
    paths
}
