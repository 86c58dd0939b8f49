//! The end of a run: everything that was broken is repaired, and from then on nothing is excused. Each node has to serve,
//! each shard to take records, each replica to have all of them, alike on all nodes; and the history has to be one that
//! the promises allow.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use super::Run;
use crate::{
    env::{self, Env},
    ids::{Index, NodeId, Offset, ShardUid},
    proto::ringlog::state::v1::NodeState,
    reactor::mailbox::{AdminAnswer, AdminCall},
    shard::{Consume, ShardStatus, Start},
    sim::{
        SimEnv, World, checker,
        checker::history::{Chain, Event, FinalRead, Status},
        client::{Target, records_of},
        cluster::Process,
        net::Path,
    },
};

/// How long a cluster has to be live again once everything is lifted.
const LIVE_MAX: Duration = Duration::from_secs(240);

/// How long a damaged replica has to be mended where what it lacks may be nowhere any more.
const MEND_MAX: Duration = Duration::from_secs(60);

/// Until whatever a fault has begun has shown itself.
const SETTLE: Duration = Duration::from_secs(3);

/// Longer than a replica that has found the disk full waits before it is opened again.
const SPACE_SEEN: Duration = Duration::from_secs(7);

/// How often it is looked whether a stopped catalog is named.
const TOLD_LOOKS: usize = 100;

const LOOK: Duration = Duration::from_millis(100);

/// How often the catalog gets an entry while a node does not serve: one that cannot read the end of its catalog waits until the
/// others have committed more, and at the end of a run nobody else commits anything there.
const ENTRY_LOOKS: usize = 50;

impl Run {
    /// Lifts all faults and judges.
    pub(super) async fn judge(self: &Rc<Self>) {
        self.lift().await;
        let live = within(self.live_again()).await;
        self.clients.stop().await;
        if !live {
            self.problem(format!("not live again {LIVE_MAX:?} after the last fault: {}", self.describe()));
            return;
        }
        for target in self.clients.targets() {
            if !within(self.read_all(&target)).await {
                let state = self.describe();
                self.problem(format!("replicas do not come to agree within {LIVE_MAX:?}: {state}"));
                return;
            }
        }
        if !within(self.catalogs_agree()).await {
            let (ends, state) = (self.catalog_ends(), self.describe());
            self.problem(format!("catalogs do not come to agree within {LIVE_MAX:?}: {ends:?} | {state}"));
            return;
        }
        // What a damaged disk has kept may be needed by others, or by itself.
        if self.victim.get().is_none() {
            if !within(self.trim_all()).await {
                let state = self.describe();
                self.problem(format!("not everything can be let go within {LIVE_MAX:?}: {state}"));
                return;
            }
            if !within(self.deleted()).await {
                self.problem(format!("segments below the log start are there {LIVE_MAX:?} after the last call"));
            }
        }
        self.look_at_stopped();
        if !within(self.quiet()).await {
            let used: Vec<_> =
                self.cluster.nodes().into_iter().filter_map(|node| Some((node, self.used(node)?))).collect();
            self.problem(format!("memory is in use {LIVE_MAX:?} after the last call: {used:?}"));
        }
        let history = self.clients.take_history();
        for finding in checker::check(&history).findings {
            self.problem(finding.to_string());
        }
        self.clients.put_history(history);
    }

    /// Nothing is broken any more: the network is whole, what was paused goes on, what is down comes back. A replica that has
    /// stopped for good reason (fail-stop) is started anew, as an operator would.
    ///
    /// Of disks only what is still to come is taken away: planted faults that have met nothing yet. What has come stays as it is and
    /// is judged: wrong bytes, blocks that cannot be read, what a lying sync has lost. `Action::Break` is over by itself, as all steps
    /// are done. A fault that came now would stop or damage a replica when no operator is there and nothing is written any more
    /// that could mend it; what it shows it shows in the seeds in which it comes earlier.
    async fn lift(self: &Rc<Self>) {
        self.cluster.network().heal();
        self.cluster.network().set_paths(Path::default());
        for node in self.cluster.nodes() {
            World::current().resume(node);
            self.cluster.network().resume(node);
            if let Some(disk) = self.cluster.disk(node) {
                disk.heal();
                disk.set_slow(1, 0);
                if self.full.get() != Some(node) {
                    disk.set_capacity(None);
                }
            }
            World::current().set_drift(node, 0);
        }
        self.end_full().await;
        if self.filled.get() {
            env::sleep::<SimEnv>(SPACE_SEEN).await;
        }
        self.look_at_stopped();
        self.restart_stopped();
        // What a disk did just before it was healed shows when the next record comes.
        env::sleep::<SimEnv>(SETTLE).await;
        self.until_catalogs_told().await;
        self.restart_stopped();
        self.undrain().await;
        self.make_all_anew().await;
        self.undrain().await;
    }

    /// Before anything is started anew: a process that no step has stopped or damaged anything in has stopped nothing itself, also
    /// where the disk was full. Topics of steps do not count: what no step is careful of may be lost.
    fn look_at_stopped(&self) {
        let is_struck = |node: &NodeId| {
            let has_lost = self.lost.borrow().iter().any(|(loser, _)| loser == node);
            has_lost || self.may_stop(*node) || self.victim.get() == Some(*node)
        };
        let groups = self.groups();
        for node in self.cluster.nodes().into_iter().filter(|node| !is_struck(node)) {
            if let Some(failure) = self.cluster.failure(node).filter(|_| !self.may_not_start(node)) {
                self.problem(format!("node {node} has not started, and no step explains it: {failure}"));
            }
            let faults = self.cluster.process(node).map(|process| process.node.faults()).unwrap_or_default();
            for (uid, cause) in faults.iter().filter(|(uid, _)| groups.contains(uid)) {
                self.problem(format!("shard {uid} has stopped on node {node}, and no step explains it: {cause}"));
            }
        }
    }

    fn restart_stopped(&self) {
        for node in self.cluster.nodes() {
            // The one whose disk was damaged, and nothing else, mends itself.
            if self.victim.get() != Some(node) || self.may_stop(node) {
                self.restart(node);
            }
            self.cluster.start(node);
        }
        self.restart_without_catalog();
    }

    /// A node whose catalog has stopped says so.
    async fn until_catalogs_told(&self) {
        let untold = |node: &NodeId| {
            let process = self.cluster.process(*node)?;
            let cause = process.control()?.fault()?;
            (!process.node.faults().contains_key(&ShardUid::CATALOG)).then_some(cause)
        };
        for _ in 0..TOLD_LOOKS {
            if self.cluster.nodes().iter().all(|node| untold(node).is_none()) {
                return;
            }
            env::sleep::<SimEnv>(LOOK).await;
        }
        for (node, cause) in self.cluster.nodes().iter().filter_map(|node| Some((node, untold(node)?))) {
            self.problem(format!("node {node} does not say that its catalog has stopped: {cause}"));
        }
    }

    /// Starts nodes anew that say that their catalog has stopped: only that mends it.
    fn restart_without_catalog(&self) {
        for node in self.cluster.nodes() {
            let process = self.cluster.process(node);
            if process.is_some_and(|process| process.node.faults().contains_key(&ShardUid::CATALOG)) {
                self.restart(node);
            }
        }
    }

    /// What an operator does about replicas that do not come back by themselves: whose directory was lost, or which lack what
    /// others have let go.
    async fn make_all_anew(&self) {
        let lost = self.lost.borrow().clone();
        for (node, uid) in lost {
            if self.cluster.nodes().contains(&node) {
                self.make_anew(node, uid).await;
            }
        }
        let Some(victim) = self.victim.get().filter(|_| self.purged.get()) else { return };
        let faults = || self.cluster.process(victim).map(|process| process.node.faults()).unwrap_or_default();
        for _ in 0..MEND_MAX.as_secs() {
            if faults().is_empty() {
                return;
            }
            env::sleep::<SimEnv>(Duration::from_secs(1)).await;
        }
        for uid in faults().into_keys().filter(|uid| *uid != ShardUid::CATALOG) {
            World::current().note(&format!("shard {uid} of node {victim} is not mended"));
            self.coverage.borrow_mut().hit("repair", "impossible after a purge");
            self.make_anew(victim, uid).await;
        }
    }

    /// Takes back what was drained, until the cluster agrees.
    async fn undrain(&self) {
        for _ in 0..60 {
            let Some(draining) = self.draining().await else {
                env::sleep::<SimEnv>(Duration::from_secs(1)).await;
                continue;
            };
            if draining.is_empty() {
                return;
            }
            for node in draining {
                self.admin(AdminCall::DrainNode { node, undo: true, force: false }).await;
            }
        }
    }

    pub(super) async fn draining(&self) -> Option<Vec<NodeId>> {
        let (node, process) = self.any_process()?;
        let asked = World::current().spawn_on(node, async move { process.frontend(0).admin(AdminCall::Members).await });
        let Ok(Ok(AdminAnswer::Members(members))) = asked.await else { return None };
        let draining = members.nodes.iter().filter(|entry| entry.state() == NodeState::Draining);
        // One that is no more is being removed.
        let here = self.cluster.nodes();
        Some(draining.map(|entry| NodeId(entry.node_id)).filter(|node| here.contains(node)).collect())
    }

    /// All nodes serve, and every shard takes a record.
    async fn live_again(self: &Rc<Self>) {
        for node in self.cluster.nodes() {
            let mut looks = 0;
            while !self.cluster.process(node).is_some_and(|process| process.serves()) {
                looks += 1;
                if looks % ENTRY_LOOKS == 0 {
                    self.admin(AdminCall::CreateJoinToken { valid_s: 60, uses: 1 }).await;
                }
                env::sleep::<SimEnv>(LOOK).await;
            }
        }
        for target in self.clients.targets() {
            while !self.clients.probe(&target).await {
                env::sleep::<SimEnv>(LOOK).await;
            }
        }
    }

    /// All catalogs, but for those that have stopped, come to have applied the same entries.
    async fn catalogs_agree(&self) {
        for looks in 1.. {
            let ends = self.catalog_ends();
            let is_one = |end: &Option<Index>| end.is_some() && *end == ends[0].1;
            if self.catalogs_differ() || ends.iter().all(|(_, end)| is_one(end)) {
                return;
            }
            self.restart_without_catalog();
            if looks % ENTRY_LOOKS == 0 {
                self.admin(AdminCall::CreateJoinToken { valid_s: 60, uses: 1 }).await;
            }
            env::sleep::<SimEnv>(LOOK).await;
        }
    }

    /// How many entries each node's catalog has applied; `None` before there is one. Without those that have stopped.
    fn catalog_ends(&self) -> Vec<(NodeId, Option<Index>)> {
        let end = |node: NodeId| match self.cluster.process(node).and_then(|process| process.control()) {
            Some(control) if control.fault().is_some() => None,
            Some(control) => Some((node, Some(control.group().applied_end()))),
            None => Some((node, None)),
        };
        self.cluster.nodes().into_iter().filter_map(end).collect()
    }

    /// Catalogs that have applied equally many entries have applied the same ones, but for a catalog that has stopped.
    fn catalogs_differ(&self) -> bool {
        let mut chains = BTreeMap::new();
        for node in self.cluster.nodes() {
            let Some(control) = self.cluster.process(node).and_then(|process| process.control()) else { continue };
            if control.fault().is_some() {
                continue;
            }
            let (end, chain) = (control.group().applied_end(), control.group().applied_chain());
            let (first, its) = *chains.entry(end).or_insert((node, chain));
            if its != chain {
                self.problem(format!("the catalogs of nodes {first} and {node} differ before entry {end}"));
                return true;
            }
        }
        false
    }

    /// Nobody asks any more: each node has given back all memory for what was on its way, at some moment between two heartbeats,
    /// and has ended all connections of clients.
    async fn quiet(&self) {
        for node in self.cluster.nodes() {
            while self.used(node).is_some() {
                env::sleep::<SimEnv>(LOOK).await;
            }
        }
    }

    /// What was trimmed is deleted on all nodes.
    async fn deleted(&self) {
        let is_left = |node: NodeId, target: &Target| {
            let shard = self.cluster.process(node).and_then(|process| process.shard(target.uid));
            shard.is_some_and(|shard| World::current().on(node, || shard.has_purgeable()))
        };
        for target in self.clients.targets() {
            while self.cluster.nodes().into_iter().any(|node| is_left(node, &target)) {
                env::sleep::<SimEnv>(LOOK).await;
            }
        }
    }

    fn used(&self, node: NodeId) -> Option<Vec<(&'static str, usize)>> {
        let used = self.cluster.process(node)?.memory_used();
        (!used.is_empty()).then_some(used)
    }

    /// All replicas of a shard have applied the same, and no move is under way.
    pub(super) fn agrees(&self, target: &Target) -> bool {
        let Some(holders) = self.holders(target) else { return false };
        let statuses = self.statuses(target);
        let ends: Vec<_> = holders.iter().map(|node| statuses.get(node).map(|status| status.applied_end)).collect();
        let moved = statuses.keys().all(|node| holders.contains(node));
        moved && ends.iter().all(|end| end.is_some() && *end == ends[0])
    }

    /// The nodes that are to have a replica, as all nodes see it; `None` while they do not see the same, or replicas move.
    fn holders(&self, target: &Target) -> Option<Vec<NodeId>> {
        let mut all = self.cluster.nodes().into_iter().map(|node| {
            let process = self.cluster.process(node)?;
            let placed = process.node.topics.snapshot().get(&*target.topic).cloned()?;
            let replicas = placed.view.replicas.get(target.shard as usize)?;
            (replicas.target.is_empty() && replicas.former.is_empty()).then(|| replicas.nodes.clone())
        });
        let first = all.next()??;
        all.all(|other| other.as_ref() == Some(&first)).then_some(first)
    }

    pub(super) fn statuses(&self, target: &Target) -> BTreeMap<NodeId, ShardStatus> {
        let status = |node: NodeId| {
            let shard = self.cluster.process(node)?.shard(target.uid)?;
            Some((node, World::current().on(node, || shard.status())))
        };
        self.cluster.nodes().into_iter().filter_map(status).collect()
    }

    /// Notes what replicas that agree are at one moment. They begin with the same record: their machines have applied the same, and
    /// no log lacks what its machine keeps. That is judged here, not by the checker: while a replica that was restarted applies
    /// again what it had, it has let go what the others at that entry had not.
    pub(super) fn note_statuses(
        &self,
        target: &Target,
        now_us: u64,
        statuses: impl IntoIterator<Item = (NodeId, ShardStatus)>,
    ) {
        let mut starts = BTreeMap::new();
        for (node, status) in statuses {
            starts.entry(status.log_start).or_insert(node);
            self.note_status(target, node, now_us, &status);
        }
        if starts.len() > 1 {
            self.problem(format!(
                "replicas of shard {} that agree begin with different records: {starts:?}",
                target.uid
            ));
        }
    }

    fn note_status(&self, target: &Target, node: NodeId, now_us: u64, status: &ShardStatus) {
        let status = Status {
            node: node.0,
            begin_us: now_us,
            end_us: now_us,
            topic: target.topic.to_string(),
            shard: target.shard,
            applied_end: status.applied_end.0,
            chain: Chain(status.chain),
            log_start: Some(status.log_start.0),
        };
        self.judge_trim(target, &status);
        self.clients.note(Event::Status(status));
    }

    /// Waits until a shard's replicas agree, and notes what each has, and its chain hash.
    async fn read_all(self: &Rc<Self>, target: &Target) {
        loop {
            while !self.agrees(target) {
                // Damage of a catalog may show when somebody who was away asks for what it lacks.
                self.restart_without_catalog();
                env::sleep::<SimEnv>(LOOK).await;
            }
            // At one moment: the catalog may begin to move a replica in the next one.
            let reading: Vec<_> = self
                .statuses(target)
                .into_iter()
                .filter_map(|(node, status)| {
                    let process = self.cluster.process(node)?;
                    let end = status.high_watermark;
                    let work = read_replica(process, target.clone(), end);
                    Some((node, status, World::current().spawn_on(node, work)))
                })
                .collect();
            let (now_us, mut moved) = (World::current().now_us(), false);
            let (mut statuses, mut reads) = (Vec::new(), Vec::new());
            for (node, status, read) in reading {
                statuses.push((node, status));
                match read.await {
                    Ok(Ok(read)) => reads.push(Event::FinalRead(read)),
                    Ok(Err(error)) => {
                        World::current().note(&format!("the replica of node {node} cannot be read: {error}"));
                        moved = true;
                    }
                    Err(_) => moved = true,
                }
            }
            if !moved {
                self.note_statuses(target, now_us, statuses);
                return reads.into_iter().for_each(|read| self.clients.note(read));
            }
            env::sleep::<SimEnv>(LOOK).await;
        }
    }

    /// Where everything stands, for a report.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        for node in self.cluster.nodes() {
            let state = match (self.cluster.failure(node), self.cluster.process(node)) {
                (Some(failure), _) => format!("failed ({failure})"),
                (None, None) => "down".to_owned(),
                (None, Some(process)) => format!("{:?}, faults {:?}", process.node.phase(), process.node.faults()),
            };
            parts.push(format!("node {node}: {state}, memory {:?}", self.used(node).unwrap_or_default()));
        }
        for target in self.clients.targets() {
            let leader = self.cluster.leader(target.uid);
            let placed = self.holders(&target);
            let ends: Vec<_> = self
                .statuses(&target)
                .into_iter()
                .map(|(node, status)| {
                    let members = status.members.voters.iter().map(|node| node.0).collect::<Vec<_>>();
                    format!("{node}: applied {} log {} voters {members:?}", status.applied_end, status.log_end)
                })
                .collect();
            parts.push(format!("shard {}: leader {leader:?}, placed {placed:?}, {}", target.uid, ends.join("; ")));
        }
        parts.join(" | ")
    }
}

/// Whether it comes about in time.
async fn within(future: impl Future<Output = ()>) -> bool {
    within_time(LIVE_MAX, future).await
}

pub(super) async fn within_time(time: Duration, future: impl Future<Output = ()>) -> bool {
    <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(time, future).await.is_ok()
}

/// All that one replica has, read from itself.
async fn read_replica(process: Rc<Process>, target: Target, end: Offset) -> Result<FinalRead, String> {
    let begin_us = World::current().now_us();
    let shard = process.shard(target.uid).ok_or("it is not open")?;
    let from_offset = shard.status().log_start;
    let (mut next, mut records) = (from_offset, Vec::new());
    while next < end {
        let consume = Consume {
            start: Start::Offset(next),
            records_max: u64::MAX,
            bytes_max: 1 << 20,
            wait: Duration::ZERO,
            min_offset: Some(end),
            linearizable: false,
            deadline_us: Some(SimEnv::monotonic_us() + 60_000_000),
            if_small: false,
        };
        let consumed = shard.consume(consume).await.map_err(|error| error.to_string())?;
        if consumed.count == 0 {
            return Err(format!("nothing at offset {next}, below the high watermark {end}"));
        }
        records.extend(records_of(&consumed));
        next = consumed.next_offset;
    }
    Ok(FinalRead {
        node: process.me().0,
        begin_us,
        end_us: World::current().now_us(),
        topic: target.topic.to_string(),
        shard: target.shard,
        from_offset: from_offset.0,
        records,
        end_offset: next.0,
    })
}
