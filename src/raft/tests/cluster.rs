//! Several nodes on one thread, each with its disk, its connections and one replica of the group.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use super::*;
use crate::{
    budget::Budget,
    env::net::Priority,
    format::peer::{Envelope, Message},
    ids::ReactorNumber,
    limits::MEMORY_BYTES_DEFAULT,
    log::repair::{Mended, RepairError},
    peer::{
        Destination, Handler,
        book::{AddressBook, PeerNode},
        frame::{Frame, FrameKind, FrameStream, Received},
        liveness::Liveness,
    },
    raft::repair::Repair,
    sim::net::SimNetwork,
};

/// Shorter than the default's, and long against what a busy machine does to a thread.
pub(super) const TIMING: Timing = Timing { heartbeat_ms: 150, election_ms_min: 1_000, election_ms_max: 1_500 };

/// No test waits this long for anything that happens.
const HANG: Duration = Duration::from_secs(60);

pub(super) struct Cluster {
    pub(super) network: SimNetwork,
    book: Arc<AddressBook>,
    nodes: BTreeMap<u64, TestNode>,
    pub(super) timing: Timing,
    /// Of each node that starts, for what is on its way.
    pub(super) memory_bytes: usize,
    seed: u64,
}

pub(super) struct TestNode {
    pub(super) disk: SimDisk,
    pub(super) peers: Peers<TestEnv>,
    pub(super) group: TestGroup,
    live: bool,
}

/// Hands streams to the node's replica, once it is there.
#[derive(Default)]
struct Router {
    group: RefCell<Option<TestGroup>>,
}

impl Handler<TestEnv> for Router {
    fn stream(&self, from: NodeId, first: Received, stream: FrameStream<TestEnv>) {
        let group = self.group.borrow().clone();
        if let Some(group) = group
            && group_of(&first) == Some(ShardUid(7))
        {
            group.serve(from, first, stream);
        }
    }

    fn datagram(&self, _from: NodeId, _datagram: Bytes) {}
}

/// Waits until `look` finds something.
pub(super) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            env::sleep::<TestEnv>(Duration::from_millis(2)).await;
        }
    };
    guard(what, waiting).await
}

/// Panics instead of hanging.
pub(super) async fn guard<T>(what: &str, future: impl Future<Output = T>) -> T {
    <TestEnv as Env>::Runtime::timeout(HANG, future).await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

pub(super) fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

impl Cluster {
    /// No nodes.
    pub(super) fn new(seed: u64) -> Cluster {
        TestEnv::reset(seed + 1);
        let book = Arc::new(AddressBook::default());
        book.publish((1..=9).map(|id| PeerNode {
            node: NodeId(id),
            host: format!("n{id}"),
            port: 7_000,
            reactors: 1,
            grpc: String::new(),
            http: String::new(),
        }));
        let memory_bytes = MEMORY_BYTES_DEFAULT;
        Cluster { network: SimNetwork::new(), book, nodes: BTreeMap::new(), timing: TIMING, memory_bytes, seed }
    }

    /// These nodes, with a group of them that has a leader.
    pub(super) async fn founded(seed: u64, nodes: &[u64]) -> Cluster {
        let mut cluster = Cluster::new(seed);
        for node in nodes {
            cluster.start(*node, Some(ids(nodes))).await;
        }
        cluster.leader().await;
        cluster
    }

    /// Starts a node on its disk, or on a new one.
    pub(super) async fn start(&mut self, id: u64, founders: Option<BTreeSet<NodeId>>) {
        let disk = self.nodes.remove(&id).map_or_else(SimDisk::new, |node| node.disk);
        let net = self.network.endpoint(NodeId(id), &format!("n{id}"), 7_000);
        let tail = TailBudget::beside(Budget::new(self.memory_bytes), 1 << 20);
        let (book, liveness) = (self.book.clone(), Arc::new(Liveness::default()));
        let peers = Peers::new(NodeId(id), ReactorNumber(0), net, book, liveness, tail.memory().clone());
        let router = Rc::new(Router::default());
        peers.serve(router.clone());
        let options = GroupOptions { node: NodeId(id), founders, preferred: self.nodes.is_empty(), ..options() };
        let opening = Group::open_with(disk.clone(), tail, peers.clone(), options, self.timing, Tally::default());
        let (group, _) = guard("open", opening).await.unwrap();
        *router.group.borrow_mut() = Some(group.clone());
        self.nodes.insert(id, TestNode { disk, peers, group, live: true });
        for node in self.nodes.values() {
            node.peers.liveness().note(NodeId(id), true);
        }
    }

    /// Waits until a node can be asked again after a crash.
    pub(super) async fn reconnect(&self, from: u64, to: u64) {
        let frame = || {
            let envelope = Envelope { group: ShardUid(7), message: Message::ReadIndex }.encode();
            Frame { kind: FrameKind::Raft, envelope, parts: vec![] }
        };
        let to = Destination { node: NodeId(to), slot: 0 };
        let wait = Duration::from_secs(1);
        guard("a connection", async {
            while self.peers(from).call(to, frame(), Priority::Urgent, wait).await.is_err() {
                env::sleep::<TestEnv>(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Ends a node without a word: what was not synced may be lost.
    pub(super) fn crash(&mut self, id: u64) {
        self.seed += 1;
        self.network.crash(NodeId(id));
        let node = self.nodes.get_mut(&id).unwrap();
        let disk = node.disk.crash(self.seed);
        node.disk.power_off();
        node.disk = disk;
        node.live = false;
    }

    /// What a crashed node had on its disk is gone.
    pub(super) fn lose_disk(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().disk = SimDisk::new();
    }

    /// Mends what is damaged on a crashed node's disk from these others, without opening it.
    pub(super) async fn mend(&self, id: u64, others: &[NodeId]) -> Result<Mended, RepairError> {
        let (mut repair, peers) = self.repair(id);
        let mended = guard("a repair", repair.attempt(others)).await;
        peers.close().await;
        mended
    }

    /// What mends a crashed node's disk, and its connections, which are to be closed.
    pub(super) fn repair(&self, id: u64) -> (Repair<TestEnv>, Peers<TestEnv>) {
        let net = self.network.endpoint(NodeId(id), &format!("n{id}"), 7_000);
        let (book, liveness) = (self.book.clone(), Arc::new(Liveness::default()));
        let budget = TailBudget::new(1 << 20).memory().clone();
        let peers: Peers<TestEnv> = Peers::new(NodeId(id), ReactorNumber(0), net, book, liveness, budget);
        let options = GroupOptions { node: NodeId(id), ..options() };
        (Repair::new(self.disk(id).clone(), peers.clone(), &options, None), peers)
    }

    /// All other nodes take this one for dead, or alive.
    pub(super) fn note(&self, id: u64, alive: bool) {
        for (other, node) in &self.nodes {
            if *other != id {
                node.peers.liveness().note(NodeId(id), alive);
            }
        }
    }

    /// One node takes another for dead, or alive.
    pub(super) fn note_at(&self, at: u64, id: u64, alive: bool) {
        self.nodes[&at].peers.liveness().note(NodeId(id), alive);
    }

    /// Replaces the last entry on the disk of a node that does not run: another payload under the same term and index.
    pub(super) async fn forge_last_entry(&self, id: u64) {
        let GroupOptions { dir, shard, segment_bytes_max, .. } = options();
        let log_options = LogOptions { dir, shard, segment_bytes_max, owner: 0 };
        let opening = Log::<TestEnv>::open(self.disk(id).clone(), TailBudget::new(1 << 20), log_options);
        let (log, _) = opening.await.unwrap();
        let last = log.last().unwrap().index;
        let true_one = log.read(last, last.next(), 0).await.unwrap().remove(0).header;
        assert_eq!(true_one.kind, EntryKind::Batch);
        log.truncate_after(Some(Index(last.0 - 1))).await.unwrap();
        let mut buffer = Buffer::zeroed(ENTRY_HEADER_BYTES);
        buffer.extend(b"forged");
        let forged = crate::format::entry::NewEntry {
            id: true_one.id,
            kind: true_one.kind,
            record_count: true_one.record_count,
            base_offset: true_one.base_offset,
            timestamp_us: true_one.timestamp_us,
            record_timestamp_max_us: true_one.timestamp_max_us,
            buffer,
            leader: None,
            charge: None,
        };
        let (sender, done) = channel::oneshot();
        log.append(vec![forged], Box::new(move |result| drop(sender.send(result)))).unwrap();
        done.await.unwrap().unwrap();
        log.close().await.unwrap();
    }

    pub(super) fn group(&self, id: u64) -> &TestGroup {
        &self.nodes[&id].group
    }

    pub(super) fn peers(&self, id: u64) -> &Peers<TestEnv> {
        &self.nodes[&id].peers
    }

    pub(super) fn disk(&self, id: u64) -> &SimDisk {
        &self.nodes[&id].disk
    }

    /// The node that leads.
    pub(super) async fn leader(&self) -> u64 {
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        self.leader_of(&all).await
    }

    /// The one of these that leads.
    pub(super) async fn leader_of(&self, among: &[u64]) -> u64 {
        until("a leader", || among.iter().copied().find(|id| self.nodes[id].group.leads())).await
    }

    /// Those of these nodes that do not lead.
    pub(super) fn followers(&self, leader: u64) -> Vec<u64> {
        self.nodes.keys().copied().filter(|id| *id != leader).collect()
    }

    /// Waits until these have applied the same, and compares everything.
    pub(super) async fn agree(&self, among: &[u64]) {
        let leader = self.leader_of(among).await;
        let end = self.group(leader).applied_end();
        for id in among {
            let group = self.group(*id);
            until("a replica that has it all", || (group.applied_end() >= end).then_some(())).await;
        }
        let first = self.group(among[0]);
        for id in among {
            let group = self.group(*id);
            assert_eq!(group.fault(), None);
            assert_eq!((group.applied_end(), group.applied_chain()), (first.applied_end(), first.applied_chain()));
            assert_eq!((state(group), group.high_watermark()), (state(first), first.high_watermark()));
        }
    }

    /// Every acknowledged entry is in the replica's log, as it was acknowledged.
    pub(super) async fn holds(&self, id: u64, acknowledged: &[EntryHeader]) {
        let log = self.group(id).log();
        for ack in acknowledged.iter().filter(|ack| ack.id.index >= log.first_index()) {
            let entries = log.read(ack.id.index, ack.id.index.next(), 0).await.unwrap();
            let found = entries[0].header;
            assert_eq!((found.id, found.chain, found.kind), (ack.id, ack.chain, ack.kind), "node {id}");
        }
    }

    /// Produces through whoever leads among these, until it is acknowledged; it may be in the log more than once when the
    /// leader changed meanwhile.
    pub(super) async fn produce(&self, among: &[u64], count: u32, bytes: usize) -> EntryHeader {
        let producing = async {
            loop {
                let leader = self.leader_of(among).await;
                match produce(self.group(leader), count, bytes).await {
                    Ok(applied) if applied.header.kind == EntryKind::Batch => return applied.header,
                    Ok(_) | Err(GroupError::NotLeader { .. } | GroupError::Deposed { .. } | GroupError::Full(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
                env::sleep::<TestEnv>(Duration::from_millis(1)).await;
            }
        };
        guard("an acknowledgement", producing).await
    }

    pub(super) async fn end(self) {
        for node in self.nodes.values().filter(|node| node.live) {
            if node.group.fault().is_none() {
                guard("close", node.group.close()).await.unwrap();
            }
            node.peers.close().await;
        }
    }
}
