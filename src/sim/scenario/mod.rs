//! One run: a cluster is made, clients use it, things go wrong as planned; then everything is lifted, the cluster has to be
//! live again, and what the clients saw is judged.
//!
//! - `plan`, `shape`: what is to happen, from the seed; `expected`: what many runs must have hit
//! - `front`: what stock gRPC clients do, and what happens to them
//! - `mixed`: faults of all families
//! - `steps`, `damage`, `losses`, `broken`, `full`, `trims`, `transfers`, `changes`: do it; `operator`: starts what they have
//!   stopped
//! - `judge`: live again, replicas alike, the history checked
//!
//! Besides the checker's anomalies these are problems: a panic in any task (the product's assertions are on), two leaders
//! in one term, a cluster that is not live again, and what stock gRPC clients find (`client`).

mod broken;
mod changes;
mod damage;
mod expected;
mod front;
mod full;
mod judge;
mod losses;
mod mixed;
mod operator;
pub mod plan;
mod shape;
#[cfg(test)]
mod slow_leader;
mod steps;
mod transfers;
mod trims;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

pub use self::expected::expected;
use self::{plan::Plan, transfers::Disturbances};
use super::{
    DiskTimes, NetTimes, SimDisk, SimEnv, SimNetwork, SimRuntime, World,
    checker::{History, history::Event, history::Retention},
    client::{Clients, Target},
    cluster::{Cluster, Process, Reads},
    coverage::Coverage,
    disk::PLANTED_PANIC,
    executor::panic_text,
    net::Path,
};
use crate::{
    env::{self, Env},
    ids::{NodeId, ShardUid, Term},
    limits,
    proto::ringlog::v1::{self, CreateTopicRequest},
    shard::Shard,
};

/// The longest that a run may last, in virtual time: whatever happens, it has come to an end by then.
const RUN_MAX: Duration = Duration::from_secs(1_800);

/// What entries without records take in a log at most, with the ends of segments into which the next entry did not fit: a block
/// for each election, change of members and trim, and so on.
const OTHER_ENTRIES_BYTES: u64 = 768 << 10;

/// How often leaders are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// What a run has come to.
#[derive(Debug)]
pub struct Outcome {
    /// What was run.
    pub plan: Plan,
    /// What is wrong; nothing: every promise was kept.
    pub problems: Vec<String>,
    /// Of everything that happened: equal for two runs of one plan.
    pub trace_hash: u64,
    /// Virtual time.
    pub virtual_us: u64,
    /// Batches acknowledged, refused for certain, of unknown fate; answers to readers.
    pub counts: [u64; 4],
    /// What has met what.
    pub coverage: Coverage,
    /// What the clients saw.
    pub history: History,
    /// The last lines of the trace, if they were asked for.
    pub recorded: String,
}

/// Everything that a run's tasks share.
struct Run {
    cluster: Cluster,
    clients: Rc<Clients>,
    coverage: Rc<RefCell<Coverage>>,
    problems: RefCell<Vec<String>>,
    /// A machine or a replica's directory is gone, and what was on it is not on as many others yet as it is to be.
    losing: Cell<bool>,
    /// Replicas whose directories were lost.
    lost: RefCell<BTreeSet<(NodeId, ShardUid)>>,
    /// Nodes that were told to take nothing any more, and not that they may again.
    drained: RefCell<BTreeSet<NodeId>>,
    /// A disk was full.
    filled: Cell<bool>,
    /// The node whose disk is full until what is let go frees it.
    full: Cell<Option<NodeId>>,
    /// Up to where each shard was let go for certain.
    trimmed: RefCell<BTreeMap<ShardUid, u64>>,
    /// Something was let go: what a damaged replica lacks may be nowhere any more.
    purged: Cell<bool>,
    /// The node whose disk loses or changes what it had.
    victim: Cell<Option<NodeId>>,
    /// One of the copies of its votes was damaged.
    vote_struck: Cell<bool>,
    /// Who led each shard in each term.
    leaders: RefCell<BTreeMap<(ShardUid, u64), NodeId>>,
    /// What replicas and nodes have said last that they have got from others.
    got: RefCell<BTreeMap<(NodeId, ShardUid), Got>>,
    /// How many damaged replicas each process has mended.
    mended: RefCell<BTreeMap<u64, usize>>,
    disturbances: Disturbances,
    replication_factor: u32,
}

/// What a replica has got as a whole.
#[derive(Clone, Copy)]
struct Got {
    process: u64,
    snapshots: u64,
}

/// Runs a plan. `lines` of the trace are kept for a report.
pub fn run(plan: Plan, lines: usize) -> Outcome {
    let runtime = SimRuntime::seeded(plan.seed);
    let world = runtime.world().clone();
    world.record(lines);
    let coverage: Rc<RefCell<Coverage>> = Rc::default();
    let limited = <SimRuntime as openraft::AsyncRuntime>::timeout;
    let told = Rc::clone(&coverage);
    let lived = || runtime.block_on(async { limited(RUN_MAX, live(&plan, told)).await });
    let ran = catch_unwind(AssertUnwindSafe(|| metrics::with_local_recorder(&Reads, lived)));
    let (mut problems, history, counts) = match ran {
        Ok(Ok(ended)) => ended,
        Ok(Err(_)) => (vec![format!("it was not over after {RUN_MAX:?}")], History::default(), [0; 4]),
        Err(cause) => (vec![format!("the harness panicked: {}", panic_text(&*cause))], History::default(), [0; 4]),
    };
    for panic in world.panics() {
        if panic.contained && panic.text.starts_with(PLANTED_PANIC) {
            continue;
        }
        let node = panic.node.map_or_else(|| "no node".to_owned(), |node| format!("node {node}"));
        problems.push(format!("a task of {node} panicked after {} us: {}", panic.time_us, panic.text));
    }
    let coverage = coverage.take();
    let (trace_hash, virtual_us, recorded) = (world.trace_hash(), world.now_us(), world.recorded());
    Outcome { plan, problems, trace_hash, virtual_us, counts, coverage, history, recorded }
}

/// Problems, the history, and counts as in `Outcome`.
type Lived = (Vec<String>, History, [u64; 4]);

async fn live(plan: &Plan, coverage: Rc<RefCell<Coverage>>) -> Lived {
    match begin(plan).await {
        Ok((cluster, targets)) => live_on(plan, coverage, cluster, targets).await,
        Err(error) => (vec![error], History::default(), [0; 4]),
    }
}

/// From then on that there is a cluster.
async fn live_on(plan: &Plan, coverage: Rc<RefCell<Coverage>>, cluster: Cluster, targets: Vec<Target>) -> Lived {
    cluster.network().set_paths(plan.path);
    let clients = Clients::start(&cluster, targets, plan.load, plan.seed);
    note_retention(&clients, plan);
    let run = Rc::new(Run {
        cluster,
        clients,
        coverage,
        problems: RefCell::default(),
        losing: Cell::new(false),
        lost: RefCell::default(),
        drained: RefCell::default(),
        filled: Cell::new(false),
        full: Cell::new(None),
        trimmed: RefCell::default(),
        purged: Cell::new(plan.retention_age_ms > 0 || plan.retention_bytes > 0),
        victim: Cell::new(None),
        vote_struck: Cell::new(false),
        leaders: RefCell::default(),
        got: RefCell::default(),
        mended: RefCell::default(),
        disturbances: if plan.path == Path::default() { Disturbances::default() } else { Disturbances::for_ever() },
        replication_factor: plan.replication_factor,
    });
    env::spawn::<SimEnv>(watch_leaders(Rc::downgrade(&run)));
    let steps = steps::begin(&run, &plan.steps);
    env::sleep::<SimEnv>(Duration::from_millis(plan.load_ms)).await;
    run.until_done(steps).await;
    run.judge().await;
    run.note_fired();
    let counts = run.clients.counts();
    let (problems, met) = run.clients.take_findings();
    run.problems.borrow_mut().extend(problems);
    run.coverage.borrow_mut().merge(&met);
    (run.problems.take(), run.clients.take_history(), counts)
}

/// A cluster with one topic, in which every shard has a leader.
async fn begin(plan: &Plan) -> Result<(Cluster, Vec<Target>), String> {
    let network = SimNetwork::timed(&World::current(), plan.seed, NetTimes::default());
    let disk_seed = Cell::new(plan.seed ^ 0xd15c);
    // What a real node keeps is in proportion to what it lets wait for space, which is not made smaller here.
    let reserve = plan.stays_full().then_some(limits::DISK_RESERVE_BYTES);
    let make_disk = move || {
        let disk = SimDisk::new().timed(&World::current(), super::random(&disk_seed), DiskTimes::default());
        reserve.into_iter().for_each(|bytes| disk.keep_reserve(bytes));
        disk
    };
    let cluster = Cluster::new(network, plan.reactors, plan.memory_bytes, make_disk);
    cluster.found().await;
    for _ in 1..plan.nodes {
        let node = cluster.join().await?;
        cluster.until_serving(node).await;
    }
    for node in cluster.nodes() {
        if let Some(failure) = cluster.failure(node) {
            return Err(format!("node {node} did not start: {failure}"));
        }
    }
    let targets = make_topic(&cluster, &"t".repeat(plan.topic_bytes), plan).await?;
    Ok((cluster, targets))
}

/// What may go by age, for the checker.
fn note_retention(clients: &Clients, plan: &Plan) {
    let now_us = World::current().now_us();
    if plan.retention_age_ms == 0 && plan.retention_bytes == 0 {
        return;
    }
    // A clock that runs faster by a fifth, the most that a plan asks for, takes records for that much older.
    let age_us = (plan.retention_age_ms > 0).then_some(plan.retention_age_ms * 1_000 / 5 * 4);
    // Segments are as small as may be there, and one is let go when all are more than the limit: a segment's worth stays at least,
    // or, when the limit is less than two of them, perhaps one entry without records. What comes last is a probe.
    let records_kept = (plan.retention_bytes >= 2 * limits::SEGMENT_BYTES_MIN).then_some(1);
    // The segment that goes and the one that is written, which may be empty, are a part of what is more than the limit.
    let bytes_kept = plan.retention_bytes.saturating_sub(2 * limits::SEGMENT_BYTES_MIN + OTHER_ENTRIES_BYTES);
    for target in clients.targets() {
        let (topic, shard) = (target.topic.to_string(), target.shard);
        clients.note(Event::Retention(Retention {
            begin_us: now_us,
            end_us: now_us,
            topic,
            shard,
            age_us,
            by_size: plan.retention_bytes > 0,
            bytes_kept: (bytes_kept > 0).then_some(bytes_kept),
            records_kept,
        }));
    }
}

async fn make_topic(cluster: &Cluster, name: &str, plan: &Plan) -> Result<Vec<Target>, String> {
    let (node, process) = any_process(cluster).ok_or("no node serves")?;
    let asked = name.to_owned();
    let (shards, replication_factor) = (plan.shards, plan.replication_factor);
    let retention = v1::Retention { bytes_max: plan.retention_bytes, age_ms_max: plan.retention_age_ms };
    let made = World::current().spawn_on(node, async move {
        let config = Some(v1::TopicConfig { retention: Some(retention), segment_bytes: 0 });
        let request = CreateTopicRequest { name: asked, shards, config, replication_factor };
        process.frontend(0).create_topic(request).await
    });
    made.await.map_err(|error| error.to_string())?.map_err(|error| error.message)?;
    // It is there for the one that made it, and soon for the others.
    let placed =
        cluster.serving().into_iter().find_map(|node| cluster.process(node)?.node.topics.snapshot().get(name).cloned());
    let placed = placed.ok_or("the topic is not there")?;
    let topic: Rc<str> = name.into();
    let target =
        |(shard, uid): (crate::ids::ShardNumber, ShardUid)| Target { topic: topic.clone(), shard: shard.0, uid };
    let targets: Vec<Target> = placed.view.numbered_shards().map(target).collect();
    for target in &targets {
        while cluster.leader(target.uid).is_none() {
            env::sleep::<SimEnv>(WATCH_INTERVAL).await;
        }
    }
    Ok(targets)
}

/// A node that serves, by the dice.
fn any_process(cluster: &Cluster) -> Option<(NodeId, Rc<Process>)> {
    let serving = cluster.serving();
    let node = *serving.get(SimEnv::random_u64() as usize % serving.len().max(1))?;
    Some((node, cluster.process(node)?))
}

/// Two leaders of one shard in one term: promise broken, whatever clients see.
async fn watch_leaders(run: std::rc::Weak<Run>) {
    while let Some(run) = run.upgrade() {
        run.look_at_leaders();
        run.look_at_memory();
        run.look_at_transfers();
        drop(run);
        env::sleep::<SimEnv>(WATCH_INTERVAL).await;
    }
}

impl Run {
    fn problem(&self, text: String) {
        World::current().note(&text);
        self.problems.borrow_mut().push(text);
    }

    fn target(&self, number: u64) -> Target {
        let targets = self.clients.targets();
        targets[(number % targets.len() as u64) as usize].clone()
    }

    /// All Raft groups that hold what must not be lost.
    fn groups(&self) -> Vec<ShardUid> {
        let mut groups = vec![ShardUid::CATALOG];
        groups.extend(self.clients.targets().iter().map(|target| target.uid));
        groups
    }

    /// What the network and the disks have done, to what.
    fn note_fired(&self) {
        let mut coverage = self.coverage.borrow_mut();
        for ((fault, met), times) in self.cluster.network().fired() {
            coverage.add(fault, met, times);
        }
        for disk in self.cluster.nodes().into_iter().filter_map(|node| self.cluster.disk(node)) {
            for ((fault, met), times) in disk.fired() {
                coverage.add(fault, met, times);
            }
        }
    }

    fn any_process(&self) -> Option<(NodeId, Rc<Process>)> {
        any_process(&self.cluster)
    }

    /// No node's memory is used beyond its limits: a peak is kept, so nothing is missed between two looks.
    fn look_at_memory(&self) {
        for node in self.cluster.nodes() {
            if let Some(exceeded) = self.cluster.process(node).and_then(|process| process.memory_exceeded()) {
                self.problem(format!("node {node}: {exceeded}"));
            }
        }
    }

    /// What replicas have got from others as a whole: snapshots, and what mends damage.
    fn look_at_transfers(&self) {
        let targets = self.clients.targets();
        for node in self.cluster.nodes() {
            let Some(process) = self.cluster.process(node) else { continue };
            let mended = process.node.reactors.iter().map(|reactor| reactor.mended.load(Relaxed)).sum();
            if self.mended.borrow_mut().insert(process.number, mended).unwrap_or(0) < mended {
                self.coverage.borrow_mut().hit("repair", "damaged replica");
            }
            for target in &targets {
                let key = (node, target.uid);
                let Some(shard) = process.shard(target.uid) else {
                    // One that comes there when none was to be there is a new one.
                    if process.serves() && !process.node.faults().contains_key(&target.uid) {
                        self.got.borrow_mut().remove(&key);
                    }
                    continue;
                };
                let snapshots = shard.snapshots_installed();
                let before = self.got.borrow_mut().insert(key, Got { process: process.number, snapshots });
                let known =
                    before.filter(|before| before.process == process.number).map_or(0, |before| before.snapshots);
                if known < snapshots {
                    let met = if before.is_none() { "new replica" } else { "follower" };
                    self.coverage.borrow_mut().hit("snapshot installed", met);
                }
            }
        }
    }

    fn look_at_leaders(&self) {
        for node in self.cluster.nodes() {
            let Some(process) = self.cluster.process(node) else { continue };
            for uid in self.groups() {
                let Some(term) = World::current().on(node, || led_term(&process, uid)) else { continue };
                let first = *self.leaders.borrow_mut().entry((uid, term.0)).or_insert(node);
                if first != node {
                    self.problem(format!("nodes {first} and {node} both led shard {uid} in term {term}"));
                }
            }
        }
    }
}

/// In which term a process leads a group, if it does.
fn led_term(process: &Process, uid: ShardUid) -> Option<Term> {
    match uid {
        ShardUid::CATALOG => {
            let control = process.control()?;
            control.group().leads().then(|| control.group().leader().1)
        }
        uid => process.shard(uid).filter(Shard::leads).map(|shard| shard.leader().1),
    }
}

#[cfg(test)]
mod tests;
