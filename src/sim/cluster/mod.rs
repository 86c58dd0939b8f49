//! A whole cluster in a simulated world: nodes that are founded, join, crash, stop and come back, each on its own disk, with
//! one network between them. Everything from `server::assemble` down is what ships.
//!
//! Who calls this is no node: an operator, a power supply, a switch.

mod handed;
mod process;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

pub(super) use self::handed::Reads;
use self::process::{Birth, secret_of};
pub use self::process::{DATA, Process};
use super::{SimDisk, SimEnv, SimNetwork, World};
use crate::{
    env::{self, Env, channel::OneshotReceiver},
    ids::{NodeId, ShardUid},
    proto::ringlog::state::v1::{JoinReply, JoinRequest, control_reply, control_request},
    reactor::{
        control::remembered::{self, MEMBERS_FILE},
        mailbox::{AdminAnswer, AdminCall},
        node::Identity,
    },
    server::boot::FOUNDER,
};

/// All nodes are of this cluster.
const CLUSTER_ID: &str = "51b0c0ffee51b0c0ffee51b0c0ffee51";

/// How often the harness looks whether something has come about.
const LOOK: Duration = Duration::from_millis(10);

/// A node, running or not.
struct Machine {
    disk: SimDisk,
    identity: Identity,
    process: Option<Rc<Process>>,
    /// Why its last process did not start, until another one is to.
    failure: Option<String>,
}

/// A cluster. Clones are handles to the same one.
#[derive(Clone)]
pub struct Cluster {
    inner: Rc<Inner>,
}

struct Inner {
    network: SimNetwork,
    reactors: usize,
    memory_bytes: usize,
    machines: RefCell<BTreeMap<NodeId, Machine>>,
    /// Makes a new machine's disk.
    make_disk: Box<dyn Fn() -> SimDisk>,
    processes: Cell<u64>,
}

impl Cluster {
    /// A cluster without nodes. `reactors`: of each node, with `memory_bytes` each for what is on its way. `make_disk`: for each
    /// new node.
    pub fn new(
        network: SimNetwork,
        reactors: usize,
        memory_bytes: usize,
        make_disk: impl Fn() -> SimDisk + 'static,
    ) -> Cluster {
        let (machines, processes, make_disk) = (RefCell::default(), Cell::new(0), Box::new(make_disk));
        Cluster { inner: Rc::new(Inner { network, reactors, memory_bytes, machines, make_disk, processes }) }
    }

    /// The network between the nodes.
    pub fn network(&self) -> &SimNetwork {
        &self.inner.network
    }

    /// Starts the first node, and waits until it serves.
    pub async fn found(&self) {
        let identity = Identity { cluster_id: CLUSTER_ID.to_owned(), node: FOUNDER, incarnation: incarnation() };
        self.add(identity);
        self.start(FOUNDER);
        self.until_serving(FOUNDER).await;
    }

    /// Has one more node join, through one that serves, as a new machine does that is told of all of them.
    ///
    /// # Errors
    /// In words: the cluster did not let it in within two minutes.
    pub async fn join(&self) -> Result<NodeId, String> {
        let incarnation = incarnation();
        let mut last = "no node serves".to_owned();
        let end_us = World::current().now_us() + JOIN_ALL_MAX.as_micros() as u64;
        while World::current().now_us() < end_us {
            for through in self.serving() {
                let asked = self.ask_to_join(through, incarnation);
                match <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(JOIN_MAX, asked).await {
                    Ok(Ok(reply)) => return Ok(self.let_in(incarnation, reply)),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = "nobody answered".to_owned(),
                }
            }
            env::sleep::<SimEnv>(JOIN_INTERVAL).await;
        }
        Err(last)
    }

    fn let_in(&self, incarnation: u64, reply: JoinReply) -> NodeId {
        let node = NodeId(reply.node_id);
        let disk = self.add(Identity { cluster_id: reply.cluster_id, node, incarnation });
        let members = remembered::encode(crate::ids::Index(0), reply.nodes);
        disk.set_content(members_path(), members.into_bytes());
        World::current().note(&format!("node {node} joins"));
        self.start(node);
        node
    }

    async fn ask_to_join(&self, through: NodeId, incarnation: u64) -> Result<JoinReply, String> {
        let process = self.process(through).ok_or("the node is down")?;
        let node = process::entry(incarnation, self.inner.reactors);
        let asked = World::current().spawn_on(through, async move {
            let token = process.frontend(0).admin(AdminCall::CreateJoinToken { valid_s: 0, uses: 1 }).await;
            let token = match token {
                Ok(AdminAnswer::JoinToken { token, .. }) => token,
                Ok(other) => return Err(format!("another answer: {other:?}")),
                Err(error) => return Err(error.message),
            };
            let control = process.reactors[0].control().cloned().ok_or("the node is still starting")?;
            let token_secret = secret_of(&token).ok_or("the token cannot be read")?.into();
            let join = JoinRequest { token_secret, node: Some(node), csr: "csr".to_owned() };
            match control.answer(None, control_request::Request::Join(join)).await.reply {
                Some(control_reply::Reply::Join(reply)) => Ok(reply),
                Some(control_reply::Reply::Refused(refused)) => Err(refused.message),
                other => Err(format!("another answer: {other:?}")),
            }
        });
        asked.await.map_err(|error| error.to_string())?
    }

    fn add(&self, identity: Identity) -> SimDisk {
        let disk = (self.inner.make_disk)();
        let node = identity.node;
        let machine = Machine { disk: disk.clone(), identity, process: None, failure: None };
        let before = self.inner.machines.borrow_mut().insert(node, machine);
        assert!(before.is_none(), "a node's id is never given twice");
        disk
    }

    /// Starts a node's process on its disk. No-op while it runs, and after it has not started, until `crash` or `kill`.
    pub fn start(&self, node: NodeId) {
        if self.has_begun(node) {
            return;
        }
        let (disk, identity) = match self.inner.machines.borrow().get(&node) {
            Some(machine) => (machine.disk.clone(), machine.identity.clone()),
            None => return,
        };
        let remembered = disk.paths().contains(&members_path()).then(|| disk.content(members_path()));
        let members = remembered.and_then(|content| remembered::decode(&content)).map_or(Vec::new(), |file| file.nodes);
        let Inner { reactors, memory_bytes, .. } = *self.inner;
        let birth = Birth { identity, reactors, memory_bytes, members };
        let number = self.inner.processes.get() + 1;
        self.inner.processes.set(number);
        World::current().note(&format!("node {node} starts"));
        // What it spawns is the node's.
        let started = World::current().on(node, || Process::start(number, birth, &disk, &self.inner.network));
        let (process, failure) = started;
        self.with_machine(node, |machine| machine.process = Some(process));
        drop(World::current().spawn(self.clone().end_failed(node, number, failure)));
    }

    /// Ends a process that does not start, as a real one ends: nothing of it answers any more.
    async fn end_failed(self, node: NodeId, number: u64, failure: OneshotReceiver<String>) {
        let Ok(failure) = failure.await else { return };
        if self.process(node).is_none_or(|process| process.number != number) {
            return;
        }
        self.inner.network.crash(node);
        let process = self.with_machine(node, |machine| {
            machine.failure = Some(failure);
            machine.process.take()
        });
        World::current().kill(node);
        drop(process);
    }

    /// Whether a process runs, or did not start, since the node was down last.
    fn has_begun(&self, node: NodeId) -> bool {
        self.process(node).is_some() || self.failure(node).is_some()
    }

    /// Ends a node without a word, as a power failure does: of what was not synced, `seed` says what is left. No-op while it
    /// is down.
    pub fn crash(&self, node: NodeId, seed: u64) {
        if !self.has_begun(node) {
            return;
        }
        self.inner.network.crash(node);
        let process = self.with_machine(node, |machine| {
            machine.failure = None;
            let left = machine.disk.crash(seed);
            std::mem::replace(&mut machine.disk, left).power_off();
            machine.process.take()
        });
        World::current().kill(node);
        drop(process);
    }

    /// Puts another disk into a node's machine. No-op while it runs.
    pub fn put_disk(&self, node: NodeId, disk: SimDisk) {
        self.with_machine(node, |machine| {
            if machine.process.is_none() {
                std::mem::replace(&mut machine.disk, disk).power_off();
            }
        });
    }

    /// Ends a node's process, as SIGKILL does: what it has written is in the page cache, and stays.
    pub fn kill(&self, node: NodeId) {
        if !self.has_begun(node) {
            return;
        }
        self.inner.network.crash(node);
        let process = self.with_machine(node, |machine| {
            machine.failure = None;
            machine.disk.reopened();
            machine.process.take()
        });
        World::current().kill(node);
        drop(process);
    }

    /// Ends a node as SIGTERM does, within the grace; resolves when it is down.
    pub async fn stop(&self, node: NodeId) {
        let Some(process) = self.process(node) else { return self.kill(node) };
        World::current().note(&format!("node {node} is told to stop"));
        let stopping = World::current().spawn_on(node, process.stop());
        // Whoever is not done in time is killed, as by an init system.
        let limited = <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(STOP_MAX, stopping);
        let _ended_in_time = limited.await.is_ok();
        self.kill(node);
    }

    /// Takes a node's machine away, with all that was on its disk. Its id never comes back.
    pub fn scrap(&self, node: NodeId) {
        self.kill(node);
        self.inner.machines.borrow_mut().remove(&node);
        World::current().note(&format!("node {node} is scrapped"));
    }

    /// All nodes whose disks exist.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.inner.machines.borrow().keys().copied().collect()
    }

    /// Those that serve.
    pub fn serving(&self) -> Vec<NodeId> {
        let machines = self.inner.machines.borrow();
        let serves = |machine: &&Machine| machine.process.as_ref().is_some_and(|process| process.serves());
        machines.iter().filter(|(_, machine)| serves(machine)).map(|(node, _)| *node).collect()
    }

    /// Why a node did not start, as an operator sees it; `None` once it was crashed or killed.
    pub fn failure(&self, node: NodeId) -> Option<String> {
        self.inner.machines.borrow().get(&node)?.failure.clone()
    }

    /// A node's process, unless it is down.
    pub fn process(&self, node: NodeId) -> Option<Rc<Process>> {
        self.inner.machines.borrow().get(&node)?.process.clone()
    }

    /// A node's disk.
    pub fn disk(&self, node: NodeId) -> Option<SimDisk> {
        self.inner.machines.borrow().get(&node).map(|machine| machine.disk.clone())
    }

    /// Who leads a shard, as the nodes that run say themselves. Of two that say so the one with the higher term does.
    pub fn leader(&self, uid: ShardUid) -> Option<NodeId> {
        let world = World::current();
        let led = self.nodes().into_iter().filter_map(|node| {
            let process = self.process(node)?;
            let term = world.on(node, || match uid {
                ShardUid::CATALOG => process
                    .control()
                    .filter(|control| control.group().leads())
                    .map(|control| control.group().leader().1),
                uid => process.shard(uid).filter(crate::shard::Shard::leads).map(|shard| shard.leader().1),
            })?;
            Some((term, node))
        });
        led.max().map(|(_, node)| node)
    }

    /// Waits until a node serves, has failed to start, or is down.
    pub async fn until_serving(&self, node: NodeId) {
        while self.process(node).is_some_and(|process| !process.serves()) {
            env::sleep::<SimEnv>(LOOK).await;
        }
    }

    fn with_machine<T>(&self, node: NodeId, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(self.inner.machines.borrow_mut().get_mut(&node).expect("the caller has looked"))
    }
}

/// How long a new node goes round all that serve before it gives up (it ends the round), how long it waits for one of them, and
/// between rounds.
const JOIN_ALL_MAX: Duration = Duration::from_secs(120);
const JOIN_MAX: Duration = Duration::from_secs(15);
const JOIN_INTERVAL: Duration = Duration::from_secs(1);

fn members_path() -> PathBuf {
    Path::new(DATA).join(MEMBERS_FILE)
}

/// The longest that a node may take to stop.
const STOP_MAX: Duration = Duration::from_secs(30);

fn incarnation() -> u64 {
    World::current().random_u64().max(1)
}

#[cfg(test)]
mod tests;
