//! A Raft group of three nodes in virtual time: what is acknowledged outlives a leader, and the seed decides everything.

mod transfer;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{net::SimNetwork, *};
use crate::{
    env,
    format::entry::{EntryKind, StoredEntry},
    ids::{NodeId, ReactorNumber, ShardUid},
    limits::SEGMENT_BYTES_MIN,
    log::TailBudget,
    peer::{
        Handler, Peers,
        book::{AddressBook, PeerNode},
        frame::{FrameStream, Received},
        liveness::Liveness,
    },
    raft::{Group, GroupError, GroupOptions, Machine, Proposal, TransferError, group_of},
};

const SHARD: ShardUid = ShardUid(7);
const PROPOSALS: u64 = 1_000;

/// Waits longer than any election takes.
const HANG: Duration = Duration::from_secs(120);

/// Remembers every command, in order.
#[derive(Default)]
struct Numbers(Vec<u64>);

impl Machine for Numbers {
    type Answer = usize;

    fn apply(&mut self, entry: &StoredEntry) -> usize {
        assert_eq!(entry.header.kind, EntryKind::Command);
        self.0.push(entry.payload().as_ref().get_u64_le());
        self.0.len()
    }

    fn checkpoint(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        for number in &self.0 {
            bytes.put_u64_le(*number);
        }
        bytes.freeze()
    }

    fn restore(&mut self, mut state: &[u8]) -> Result<(), String> {
        self.0.clear();
        while state.has_remaining() {
            self.0.push(state.try_get_u64_le().map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

type SimGroup = Group<SimEnv, Numbers>;

/// Hands streams to the node's replica, once it is there.
#[derive(Default)]
struct Router {
    group: RefCell<Option<SimGroup>>,
}

impl Handler<SimEnv> for Router {
    fn stream(&self, from: NodeId, first: Received, stream: FrameStream<SimEnv>) {
        let group = self.group.borrow().clone();
        if let Some(group) = group
            && group_of(&first) == Some(SHARD)
        {
            group.serve(from, first, stream);
        }
    }

    fn datagram(&self, _from: NodeId, _datagram: Bytes) {}
}

/// Three nodes, each with its disk and one replica.
struct Trio {
    network: SimNetwork,
    book: Arc<AddressBook>,
    disks: RefCell<BTreeMap<NodeId, SimDisk>>,
    /// Those that run.
    groups: RefCell<BTreeMap<NodeId, SimGroup>>,
}

impl Trio {
    fn nodes() -> BTreeSet<NodeId> {
        [1, 2, 3].map(NodeId).into()
    }

    async fn founded(seed: u64) -> Rc<Trio> {
        let book = Arc::new(AddressBook::default());
        book.publish(Trio::nodes().into_iter().map(|node| PeerNode {
            node,
            host: format!("n{node}"),
            port: 7_000,
            reactors: 1,
            grpc: String::new(),
            http: String::new(),
        }));
        let disks = Trio::nodes().into_iter().map(|node| (node, SimDisk::new().with_latency(seed ^ node.0)));
        let disks = RefCell::new(disks.collect());
        let trio = Rc::new(Trio { network: SimNetwork::seeded(seed), book, disks, groups: RefCell::default() });
        for node in Trio::nodes() {
            trio.open(node, Some(Trio::nodes())).await;
        }
        trio
    }

    /// Starts a node on its disk, as its own process would.
    async fn open(&self, node: NodeId, founders: Option<BTreeSet<NodeId>>) {
        let net = self.network.endpoint(node, &format!("n{node}"), 7_000);
        let (book, disk) = (Arc::clone(&self.book), self.disks.borrow()[&node].clone());
        let opening = World::current().spawn_on(node, async move {
            let (tail, liveness) = (TailBudget::new(1 << 20), Arc::new(Liveness::default()));
            let peers = Peers::new(node, ReactorNumber(0), net, book, liveness, tail.memory().clone());
            let router = Rc::new(Router::default());
            peers.serve(router.clone());
            peers.watch_liveness();
            let options = GroupOptions {
                dir: "/shards/7".into(),
                shard: SHARD,
                node,
                segment_bytes_max: SEGMENT_BYTES_MIN,
                slot: 0,
                founders,
                owner: 0,
                preferred: node == NodeId(1),
            };
            let opened = Group::open(disk, tail, peers, options, Numbers::default()).await;
            let (group, _) = opened.unwrap();
            *router.group.borrow_mut() = Some(group.clone());
            group
        });
        let group = opening.await.unwrap();
        self.groups.borrow_mut().insert(node, group);
    }

    /// Ends a node without a word: what was not synced may be lost.
    fn crash(&self, node: NodeId, seed: u64) {
        self.network.crash(node);
        let disk = self.disks.borrow()[&node].crash(seed).with_latency(seed);
        self.disks.borrow_mut().insert(node, disk).unwrap().power_off();
        let group = self.groups.borrow_mut().remove(&node);
        World::current().kill(node);
        drop(group);
    }

    fn leader(&self) -> Option<NodeId> {
        self.leader_beside(None)
    }

    /// Who leads, but for this one: a paused leader does not know better.
    fn leader_beside(&self, old: Option<NodeId>) -> Option<NodeId> {
        let (world, groups) = (World::current(), self.groups.borrow());
        let mut others = groups.iter().filter(|(node, _)| Some(**node) != old);
        others.find(|(node, group)| world.on(**node, || group.leads())).map(|(node, _)| *node)
    }

    /// Proposes through whoever leads, until it is acknowledged; it may be there more than once.
    async fn propose(&self, number: u64) {
        loop {
            let group = self.leader().map(|node| (node, self.groups.borrow()[&node].clone()));
            if let Some((node, group)) = group {
                let proposing = World::current().spawn_on(node, async move {
                    let mut command = vec![0; 100];
                    command[..8].copy_from_slice(&number.to_le_bytes());
                    group.propose(Proposal::command(&command, SimEnv::wall_us())).await
                });
                match proposing.await {
                    Ok(Ok(_)) => return,
                    Ok(Err(GroupError::NotLeader { .. } | GroupError::Deposed { .. })) | Err(_) => {}
                    Ok(Err(error)) => panic!("{error:?}"),
                }
            }
            env::sleep::<SimEnv>(Duration::from_millis(1)).await;
        }
    }

    /// What all three have applied, when it is the same.
    fn agreed(&self) -> Option<Vec<u64>> {
        let groups = self.groups.borrow();
        let mut applied = groups.values().map(|group| group.with_machine(|machine| machine.0.clone()));
        let first = applied.next()?;
        (groups.len() == 3 && applied.all(|other| other == first)).then_some(first)
    }
}

/// Panics instead of going on for ever, in virtual time.
async fn guard<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limited = <SimRuntime as openraft::AsyncRuntime>::timeout(HANG, future);
    limited.await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

/// Waits until `look` finds something.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    guard(what, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            env::sleep::<SimEnv>(Duration::from_millis(1)).await;
        }
    })
    .await
}

/// What a run has come to: two of one seed are equal.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    trace_hash: u64,
    virtual_us: u64,
    numbers: Vec<u64>,
}

/// Eight clients produce; in the middle the leader dies, and is back later.
async fn leader_dies(seed: u64) -> Vec<u64> {
    let trio = Trio::founded(seed).await;
    let acknowledged = Rc::new(Cell::new(0));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (trio, acknowledged) = (Rc::clone(&trio), Rc::clone(&acknowledged));
            World::current().spawn(async move {
                for number in (client..PROPOSALS).step_by(8) {
                    guard("an acknowledgement", trio.propose(number)).await;
                    acknowledged.set(acknowledged.get() + 1);
                }
            })
        })
        .collect();
    until("half of the acknowledgements", || (acknowledged.get() >= PROPOSALS / 2).then_some(())).await;
    let leader = until("a leader", || trio.leader()).await;
    trio.crash(leader, seed);
    env::sleep::<SimEnv>(Duration::from_secs(3)).await;
    trio.open(leader, None).await;
    for client in clients {
        client.await.unwrap();
    }
    until("three replicas that agree", || trio.agreed()).await
}

/// The seeds of `default`, or the one that SIM_SEED names: to look at a failure again.
fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    match std::env::var("SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => default,
    }
}

fn run(seed: u64) -> Run {
    let runtime = SimRuntime::seeded(seed);
    let world = runtime.world();
    world.record(200);
    let numbers = runtime.block_on(leader_dies(seed));
    assert_eq!(world.panics(), []);
    Run { trace_hash: world.trace_hash(), virtual_us: world.now_us(), numbers }
}

/// A thousand proposals, and a leader that dies among them and is opened again from what its disk has kept: whatever was
/// acknowledged is on all three. The same seed again: the same history, to the last poll.
#[test]
fn leader_dies_in_virtual_time() {
    for seed in seeds(0..3) {
        let first = run(seed);
        println!("seed {seed}: trace {:016x}, {} virtual us", first.trace_hash, first.virtual_us);
        let numbers: BTreeSet<u64> = first.numbers.iter().copied().collect();
        assert_eq!(numbers, (0..PROPOSALS).collect());
        assert_eq!(first, run(seed));
    }
}

/// Ten minutes of a group that has little to do, in which four leaders are stopped for a while and replaced, as clocks drift.
/// Says how much faster than real time that went (213 times here, without optimization); a test does not judge speed.
#[test]
#[allow(clippy::disallowed_methods, reason = "compares virtual with real time")]
fn leaders_are_stopped() {
    for seed in seeds(0..1) {
        let (start, runtime) = (std::time::Instant::now(), SimRuntime::seeded(seed));
        let world = runtime.world();
        runtime.block_on(async {
            let trio = Trio::founded(seed).await;
            for (node, ppm) in [(NodeId(1), 200), (NodeId(2), -200)] {
                world.set_drift(node, ppm);
            }
            for round in 0..4 {
                let leader = until("a leader", || trio.leader()).await;
                world.pause(leader);
                env::sleep::<SimEnv>(Duration::from_secs(30)).await;
                until("another leader", || trio.leader_beside(Some(leader))).await;
                world.resume(leader);
                guard("an acknowledgement", trio.propose(round)).await;
                env::sleep::<SimEnv>(Duration::from_secs(120)).await;
                until("three replicas that agree", || trio.agreed()).await;
            }
        });
        assert_eq!(world.panics(), []);
        let (virtual_s, real) = (world.now_us() / 1_000_000, start.elapsed());
        let ratio = virtual_s as f64 / real.as_secs_f64();
        println!("seed {seed}: {virtual_s} virtual seconds in {real:?}: {ratio:.0} virtual seconds per second");
        assert!(virtual_s >= 600);
    }
}
