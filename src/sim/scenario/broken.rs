//! Steps that stop a replica or a node until somebody starts it anew: a disk that is broken for a while, a bug that panics.

use std::{rc::Rc, time::Duration};

use openraft::AsyncRuntime;

use super::{Run, plan::Who, steps::sleep_ms};
use crate::{
    env::Env,
    ids::{NodeId, ShardUid},
    reactor::control::shard_dir,
    shard::Shard,
    sim::{
        DiskFault, Operation, SimEnv, World,
        cluster::{DATA, Process},
        disk::{PlantedPanic, panic_of},
        executor::TaskPanic,
    },
};

/// How long a panic is waited for; then it does not come.
const PANIC_MAX_MS: u64 = 5_000;

/// How long a replica that has panicked may be called one that serves.
const NAMED_MAX_MS: u64 = 1_000;

/// Longer than a node takes to notice that its catalog has stopped: it looks four times a second.
const CATALOG_NOTED_MS: u64 = 300;

/// How long an operator waits for a start to end.
const START_MAX: Duration = Duration::from_secs(10);

const LOOK_MS: u64 = 10;

impl Run {
    /// Operations of one kind fail until the disk is mended; then an operator starts what has stopped. In every other step the
    /// power fails meanwhile, so that the node starts on the broken disk; not where no segment can be read, which is damage to any
    /// number of disks (`damage`).
    pub(super) async fn break_disk(self: &Rc<Self>, who: Who, fault: DiskFault, file: &'static str, for_ms: u64) {
        let Some(node) = self.find(who) else { return };
        self.note_paths(&format!("persistent {}", fault.name()), node);
        let Some(disk) = self.cluster.disk(node) else { return };
        disk.break_for(fault, file.to_owned(), for_ms * 1_000);
        let is_damage = fault == DiskFault::ErrorRead && file == ".store";
        let is_started = for_ms.is_multiple_of(2) && !is_damage;
        let before_ms = if is_started { for_ms / 4 } else { for_ms };
        sleep_ms(before_ms).await;
        if is_started && self.may_crash(node).await {
            self.coverage.borrow_mut().hit("persistent EIO", "start");
            self.cluster.crash(node, World::current().random_u64());
            self.cluster.start(node);
        }
        sleep_ms(for_ms - before_ms).await;
        self.until_started(node).await;
        sleep_ms(CATALOG_NOTED_MS).await;
        self.restart(node);
    }

    /// A bug in what asks for a replica's next such operation: it is contained, the replica stops, and the node says so.
    pub(super) async fn panic(self: &Rc<Self>, shard: u64, replica: u64, operation: Operation, down_ms: u64) {
        let uid = self.target(shard).uid;
        let Some(node) = self.member(uid, replica) else { return };
        let (Some(disk), Some(process)) = (self.cluster.disk(node), self.cluster.process(node)) else { return };
        let mut path_contains = shard_dir(DATA.as_ref(), uid).to_string_lossy().into_owned();
        path_contains.push('/');
        self.note_paths("planted panic", node);
        let number = disk.plant_panic(PlantedPanic { operation, path_contains });
        let mut waited_ms = 0;
        let mut struck = process.shard(uid);
        while disk.awaits_panic(number) {
            // It may move away, and be made anew, before it comes to such an operation.
            struck = process.shard(uid).or(struck);
            sleep_ms(LOOK_MS).await;
            waited_ms += LOOK_MS;
            if waited_ms > PANIC_MAX_MS {
                return disk.forget_panic(number);
            }
        }
        // Not another step's, of the same replica.
        let begins = format!("{}:", panic_of(number));
        let is_ours = |panic: &TaskPanic| panic.node == Some(node) && panic.text.starts_with(&begins);
        if !World::current().panics().iter().any(is_ours) {
            // It was killed, and its disk with it.
            return;
        }
        self.coverage.borrow_mut().hit("panic", "replica");
        self.until_told(node, &process, uid, struck).await;
        sleep_ms(down_ms).await;
        self.until_started(node).await;
        self.restart(node);
    }

    /// The node names the replica that has panicked, unless its process ends, or the replica is not to be there any more.
    /// `struck`: the one that was open when the panic came, if any.
    async fn until_told(&self, node: NodeId, process: &Process, uid: ShardUid, struck: Option<Shard<SimEnv>>) {
        let mut waited_ms = 0;
        while waited_ms < NAMED_MAX_MS {
            let lives = self.cluster.process(node).is_some_and(|now| now.number == process.number && now.serves());
            // What is removed has no faults, and the panic may have come while it closed. Until its directory is gone the node
            // says that it is to be there; and then it may say so of another one.
            let has_panicked = struck.as_ref().is_some_and(Shard::has_panicked);
            let is_removed = has_panicked && !process.has_stopped_replica(uid);
            let is_named = process.node.faults().contains_key(&uid);
            if !lives || is_named || is_removed || self.is_placed(node, uid) == Some(false) {
                return;
            }
            sleep_ms(LOOK_MS).await;
            waited_ms += if World::current().is_paused(node) { 0 } else { LOOK_MS };
        }
        self.problem(format!("node {node} does not name its replica of shard {uid}, which has panicked"));
    }

    /// Waits until a start under way has ended, well or not, but not for ever: it may wait for other nodes. A start that meets
    /// the fault may end some time after the fault.
    async fn until_started(&self, node: NodeId) {
        let started = self.cluster.until_serving(node);
        <SimEnv as Env>::Runtime::timeout(START_MAX, started).await.ok();
    }

    /// Starts a node anew that did not start, or on which something has stopped.
    pub(super) fn restart(&self, node: NodeId) {
        let has_faults = self.cluster.process(node).is_some_and(|process| process.node.fault_count() > 0);
        if !has_faults && self.cluster.failure(node).is_none() {
            return;
        }
        if self.victim.get() == Some(node) {
            // Its disk may have less than it said.
            self.cluster.kill(node);
        } else {
            // The whole machine: what a failed sync has left in the page cache looks durable and is not.
            self.cluster.crash(node, World::current().random_u64());
        }
        self.cluster.start(node);
    }
}
