//! One run: a cluster is made, clients use it, things go wrong as planned; then everything is lifted, the cluster has to be
//! live again, and what the clients saw is judged.
//!
//! - `plan`: what is to happen, from the seed
//! - `front`: what stock gRPC clients do, and what happens to them
//! - `steps`, `damage`: do it
//! - `judge`: live again, replicas alike, the history checked
//!
//! Besides the checker's anomalies these are problems: a panic in any task (the product's assertions are on), two leaders
//! in one term, a cluster that is not live again, and what stock gRPC clients find (`client`).

mod damage;
mod front;
mod judge;
pub mod plan;
#[cfg(test)]
mod slow_leader;
mod steps;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

use self::plan::Plan;
use super::{
    DiskTimes, NetTimes, SimDisk, SimEnv, SimNetwork, SimRuntime, World,
    checker::{History, history::Event, history::Retention},
    client::{Clients, Target},
    cluster::{Cluster, Process},
    coverage::Coverage,
    disk::PLANTED_PANIC,
    executor::panic_text,
};
use crate::{
    env::{self, Env},
    ids::{NodeId, ShardUid},
    proto::ringlog::v1::{self, CreateTopicRequest},
};

/// The longest that a run may last, in virtual time: whatever happens, it has come to an end by then.
const RUN_MAX: Duration = Duration::from_secs(1_800);

/// How often leaders are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// What a set of runs of one scenario, or of all in turn, must have hit, or it has proven too little: faults, and what
/// they met.
pub fn expected(only: Option<plan::Scenario>) -> &'static [(&'static str, &'static str)] {
    if only == Some(plan::Scenario::Front) { front::EXPECTED } else { EXPECTED }
}

const EXPECTED: &[(&str, &str)] = &[
    ("EIO on append", "catalog leader"),
    ("EIO on append", "follower"),
    ("EIO on append", "leader"),
    ("EIO on append", "store append"),
    ("EIO on read", "consume read"),
    ("EIO on read", "follower"),
    ("EIO on read", "leader"),
    ("EIO on sync", "follower"),
    ("EIO on sync", "leader"),
    ("EIO on write", "catalog leader"),
    ("EIO on write", "follower"),
    ("EIO on write", "leader"),
    ("bit flip", "catalog leader"),
    ("bit flip", "consume read"),
    ("bit flip", "file at rest"),
    ("bit flip", "follower"),
    ("bit flip", "leader"),
    ("bit flip", "leader of several segments"),
    ("bit flip", "node that leads nothing"),
    ("bit flip", "recovery read"),
    ("bridge", "catalog leader"),
    ("bridge", "follower"),
    ("bridge", "leader"),
    ("clock drift", "catalog leader"),
    ("clock drift", "follower"),
    ("clock drift", "leader"),
    ("clock drift", "leader of several segments"),
    ("clock jump", "catalog leader"),
    ("clock jump", "follower"),
    ("clock jump", "leader"),
    ("crash", "catalog leader"),
    ("crash", "connection"),
    ("crash", "follower"),
    ("crash", "leader"),
    ("crash", "leader with records in flight"),
    ("crash", "leader of several segments"),
    ("crash of all", "catalog leader"),
    ("crash of all", "follower"),
    ("crash of all", "leader"),
    ("crash of all", "leader of several segments"),
    ("drain", "catalog leader"),
    ("drain", "follower"),
    ("drain", "leader"),
    ("drain", "leader of several segments"),
    ("duplicate", "datagram"),
    ("expiry", "connection"),
    ("flapping", "catalog leader"),
    ("flapping", "datagram"),
    ("flapping", "dial"),
    ("flapping", "follower"),
    ("flapping", "leader"),
    ("flapping", "stream"),
    ("full disk", "catalog leader"),
    ("full disk", "follower"),
    ("full disk", "leader"),
    ("full disk", "leader of several segments"),
    ("isolation", "catalog leader"),
    ("isolation", "follower"),
    ("isolation", "leader"),
    ("isolation", "leader with records in flight"),
    ("join", "running cluster"),
    ("kill", "follower"),
    ("kill", "leader"),
    ("kill", "leader with records in flight"),
    ("loss", "datagram"),
    ("loss", "dial"),
    ("loss", "stream"),
    ("lying sync", "catalog leader"),
    ("lying sync", "follower"),
    ("lying sync", "leader"),
    ("lying sync", "leader of several segments"),
    ("lying sync", "segment preparation"),
    ("lying sync", "store append"),
    ("misdirected write", "catalog leader"),
    ("misdirected write", "consume read"),
    ("misdirected write", "file at rest"),
    ("misdirected write", "follower"),
    ("misdirected write", "leader"),
    ("misdirected write", "node that is down"),
    ("misdirected write", "node that leads nothing"),
    ("misdirected write", "recovery read"),
    ("misordered completion", "consume read"),
    ("misordered completion", "recovery read"),
    ("misordered completion", "store append"),
    ("old image put back", "catalog leader"),
    ("old image put back", "follower"),
    ("old image put back", "leader"),
    ("old image put back", "node that leads nothing"),
    ("one-way cut", "datagram"),
    ("one-way cut", "dial"),
    ("one-way cut", "stream"),
    ("one-way cut (in)", "catalog leader"),
    ("one-way cut (in)", "follower"),
    ("one-way cut (in)", "leader"),
    ("one-way cut (out)", "leader"),
    ("pause", "catalog leader"),
    ("pause", "datagram"),
    ("pause", "dial"),
    ("pause", "follower"),
    ("pause", "leader"),
    ("pause", "leader with records in flight"),
    ("pause", "leader of several segments"),
    ("pause", "stream"),
    ("replacement", "catalog leader"),
    ("replacement", "follower"),
    ("slow device", "catalog leader"),
    ("slow device", "consume read"),
    ("slow device", "follower"),
    ("slow device", "leader"),
    ("slow device", "leader of several segments"),
    ("slow device", "store append"),
    ("slow flushes", "catalog leader"),
    ("slow flushes", "follower"),
    ("slow flushes", "leader"),
    ("stale block", "catalog leader"),
    ("stale block", "consume read"),
    ("stale block", "file at rest"),
    ("stale block", "follower"),
    ("stale block", "leader"),
    ("stale block", "leader of several segments"),
    ("stale block", "node that leads nothing"),
    ("stale block", "recovery read"),
    ("stall", "consume read"),
    ("stall", "store append"),
    ("stop", "follower"),
    ("stop", "leader"),
    ("topic made and deleted", "running cluster"),
    ("torn by a crash", "store append"),
    ("transfer", "catalog leader"),
    ("transfer", "follower"),
    ("transfer", "leader"),
    ("transfer", "leader of several segments"),
    ("transfer to a cut-off node", "leader"),
    ("transfer to a paused node", "leader"),
    ("trim", "running cluster"),
    ("zeroed block", "consume read"),
    ("zeroed block", "file at rest"),
    ("zeroed block", "follower"),
    ("zeroed block", "leader"),
    ("zeroed block", "node that leads nothing"),
    ("zeroed block", "recovery read"),
];

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
    /// A machine was destroyed.
    replaced: Cell<bool>,
    /// A node was drained.
    drained: Cell<bool>,
    /// The node whose disk loses or changes what it had.
    victim: Cell<Option<NodeId>>,
    /// One of the copies of its votes was damaged.
    vote_struck: Cell<bool>,
    /// Who led each shard in each term.
    leaders: RefCell<BTreeMap<(ShardUid, u64), NodeId>>,
}

/// Runs a plan. `lines` of the trace are kept for a report.
pub fn run(plan: Plan, lines: usize) -> Outcome {
    let runtime = SimRuntime::seeded(plan.seed);
    let world = runtime.world().clone();
    world.record(lines);
    let coverage: Rc<RefCell<Coverage>> = Rc::default();
    let limited = <SimRuntime as openraft::AsyncRuntime>::timeout;
    let told = Rc::clone(&coverage);
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { limited(RUN_MAX, live(&plan, told)).await })));
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

async fn live(plan: &Plan, coverage: Rc<RefCell<Coverage>>) -> (Vec<String>, History, [u64; 4]) {
    let (cluster, targets) = match begin(plan).await {
        Ok(begun) => begun,
        Err(error) => return (vec![error], History::default(), [0; 4]),
    };
    cluster.network().set_paths(plan.path);
    let clients = Clients::start(&cluster, targets, plan.load, plan.seed);
    note_retention(&clients, plan);
    let run = Rc::new(Run {
        cluster,
        clients,
        coverage,
        problems: RefCell::default(),
        replaced: Cell::new(false),
        drained: Cell::new(false),
        victim: Cell::new(None),
        vote_struck: Cell::new(false),
        leaders: RefCell::default(),
    });
    env::spawn::<SimEnv>(watch_leaders(Rc::downgrade(&run)));
    let steps = steps::begin(&run, &plan.steps);
    env::sleep::<SimEnv>(Duration::from_millis(plan.load_ms)).await;
    for step in steps {
        if step.await.is_err() {
            run.problem("a step has panicked".to_owned());
        }
    }
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
    let make_disk = move || SimDisk::new().timed(&World::current(), super::random(&disk_seed), DiskTimes::default());
    let cluster = Cluster::new(network, plan.reactors, make_disk);
    cluster.found().await;
    for _ in 1..plan.nodes {
        let node = cluster.join().await?;
        cluster.until_serving(node).await;
    }
    for node in cluster.nodes() {
        let failure = cluster.process(node).and_then(|process| process.failure());
        if let Some(failure) = failure {
            return Err(format!("node {node} did not start: {failure}"));
        }
    }
    let targets = make_topic(&cluster, &"t".repeat(plan.topic_bytes), plan).await?;
    Ok((cluster, targets))
}

/// What may go by age, for the checker.
fn note_retention(clients: &Clients, plan: &Plan) {
    let now_us = World::current().now_us();
    if plan.retention_age_ms == 0 {
        return;
    }
    // A clock that runs faster by a fifth, the most that a plan asks for, takes records for that much older.
    let age_us = Some(plan.retention_age_ms * 1_000 / 5 * 4);
    for target in clients.targets() {
        let (topic, shard) = (target.topic.to_string(), target.shard);
        clients.note(Event::Retention(Retention {
            begin_us: now_us,
            end_us: now_us,
            topic,
            shard,
            age_us,
            by_size: false,
        }));
    }
}

async fn make_topic(cluster: &Cluster, name: &str, plan: &Plan) -> Result<Vec<Target>, String> {
    let (node, process) = any_process(cluster).ok_or("no node serves")?;
    let asked = name.to_owned();
    let (shards, age_ms_max) = (plan.shards, plan.retention_age_ms);
    let made = World::current().spawn_on(node, async move {
        let retention = Some(v1::Retention { bytes_max: 0, age_ms_max });
        let config = Some(v1::TopicConfig { retention, segment_bytes: 0 });
        let request = CreateTopicRequest { name: asked, shards, config, ..CreateTopicRequest::default() };
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

    fn look_at_leaders(&self) {
        for node in self.cluster.nodes() {
            let Some(process) = self.cluster.process(node) else { continue };
            for target in self.clients.targets() {
                let Some(shard) = process.shard(target.uid) else { continue };
                if !World::current().on(node, || shard.leads()) {
                    continue;
                }
                let term = shard.leader().1.0;
                let first = *self.leaders.borrow_mut().entry((target.uid, term)).or_insert(node);
                if first != node {
                    let uid = target.uid;
                    self.problem(format!("nodes {first} and {node} both led shard {uid} in term {term}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
