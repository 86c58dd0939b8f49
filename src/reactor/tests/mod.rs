//! Nodes in one thread, on simulated disks and a simulated network: reactors, shards, Raft and peers are the real ones.

mod elections;
mod forward;
mod hung;
mod panics;
mod repair;

use std::{collections::BTreeSet, future::Future, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;

use crate::{
    catalog::{Replicas, TopicView},
    config::Config,
    env::{self, runtime::block_on},
    format::records::Records,
    frontend::refusal::refusal,
    ids::{NodeId, Offset, ReactorNumber, ShardUid, TopicId},
    limits::RECORD_BYTES_MAX,
    peer::{Peers, book::PeerNode},
    proto::ringlog::v1::{ConsumeResponse, ProduceRequest, Record},
    reactor::{
        Reactor, ReactorError,
        inbound::Inbound,
        node::{Advertised, Identity, Node},
        topics::PlacedTopic,
    },
    shard::{Consume, Consumed, Durability, Produce, ShardOptions, Start},
    sim::{SimDisk, TestEnv, net::SimNetwork},
};

type TestReactor = Reactor<TestEnv>;

/// The only shard of the only topic.
const UID: ShardUid = ShardUid(1);

/// Guards against a hang, on any machine.
const LONG: Duration = Duration::from_secs(60);

/// One node with one reactor.
struct World {
    id: NodeId,
    network: SimNetwork,
    disk: SimDisk,
    node: Arc<Node>,
    reactor: Rc<TestReactor>,
}

/// `count` nodes that know each other; the topic "t" has one shard with replicas on `holders`, not opened yet.
fn cluster(count: u64, holders: &[u64]) -> Vec<World> {
    TestEnv::reset(1);
    let network = SimNetwork::new();
    (1..=count).map(|id| World::start(&network, NodeId(id), SimDisk::new(), count, holders)).collect()
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

impl World {
    fn start(network: &SimNetwork, id: NodeId, disk: SimDisk, count: u64, holders: &[u64]) -> World {
        let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
        let config = Config { data: "/data".into(), ..Config::default() };
        let (peer_host, grpc, http) = (format!("n{id}"), format!("n{id}:7400"), format!("n{id}:7480"));
        let advertised = Advertised { peer_host, peer_port: 1, grpc, http };
        let node = Arc::new(Node::new(config, 1, (anywhere, anywhere), advertised));
        node.set_identity(Identity { cluster_id: "0".repeat(32), node: id, incarnation: id.0 });
        node.book.publish((1..=count).map(|id| PeerNode {
            node: NodeId(id),
            host: format!("n{id}"),
            port: 1,
            reactors: 1,
            grpc: format!("n{id}:7400"),
            http: format!("n{id}:7480"),
        }));
        let reactor = TestReactor::new(ReactorNumber(0), Arc::clone(&node), disk.clone());
        let net = network.endpoint(id, &format!("n{id}"), 1);
        let peers = Peers::new(
            id,
            ReactorNumber(0),
            net,
            Arc::clone(&node.book),
            Arc::clone(&node.liveness),
            reactor.budget().clone(),
        );
        reactor.set_peers(peers.clone());
        peers.serve(Inbound::new(Rc::clone(&reactor), refusal));
        let world = World { id, network: network.clone(), disk, node, reactor };
        world.place(holders, &[]);
        world
    }

    /// Publishes the topic with replicas on these nodes.
    fn place(&self, holders: &[u64], target: &[u64]) {
        self.publish(Replicas { nodes: nodes(holders), target: nodes(target), ..Default::default() });
    }

    /// Publishes the topic with these replicas.
    fn publish(&self, replicas: Replicas) {
        let view = TopicView {
            name: "t".into(),
            id: TopicId(0),
            shards: vec![UID],
            replication_factor: replicas.nodes.len() as u32,
            replicas: vec![replicas],
            retention_bytes_max: 0,
            retention_age_ms_max: 0,
            segment_bytes: 0,
            created_us: 0,
        };
        self.node.topics.publish([Arc::new(PlacedTopic::new(view.into(), 1, self.id))]);
    }

    /// Starts what answers the mailbox.
    fn serve_mailbox(&self) {
        env::spawn::<TestEnv>(Rc::clone(&self.reactor).serve_mailbox());
    }

    /// Opens the replica here, of a group that these nodes begin.
    async fn open(&self, founders: &[u64]) {
        self.try_open(founders).await.unwrap();
    }

    /// As `open`, for one that may not open.
    async fn try_open(&self, founders: &[u64]) -> Result<(), ReactorError> {
        let options = ShardOptions {
            dir: "/data/shards/1".into(),
            uid: UID,
            node: self.id,
            segment_bytes_max: crate::limits::SEGMENT_BYTES_MIN,
            slot: 0,
            founders: Some(nodes(founders).into_iter().collect::<BTreeSet<_>>()),
            owner: self.node.identity().unwrap().owner(),
            preferred: founders.first() == Some(&self.id.0),
            retention_bytes_max: 0,
            retention_age_ms_max: 0,
        };
        self.reactor.open(vec![options]).await.pop().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Whether this node leads the shard.
    fn leads(&self) -> bool {
        self.reactor.leads(UID)
    }

    /// All values that are committed by now, read through this node.
    async fn values(&self) -> Vec<String> {
        let mut values = Vec::new();
        let mut start = Start::Earliest;
        loop {
            let consume = Consume { linearizable: true, ..from(start) };
            let consumed = self.reactor.consume(UID, consume).await.unwrap();
            let records = decode(&consumed);
            if records.is_empty() {
                return values;
            }
            values.extend(records.iter().map(|record| String::from_utf8(record.value.to_vec()).unwrap()));
            start = Start::Offset(consumed.next_offset);
        }
    }
}

fn produce(value: &str) -> Produce {
    let record = Record { value: Bytes::copy_from_slice(value.as_bytes()), ..Record::default() };
    let request = ProduceRequest { records: vec![record], ..ProduceRequest::default() };
    let (_, records) = Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).unwrap();
    let durability = Durability::QuorumFlushed;
    Produce { records, durability, expected_offset: None, deadline_us: None, forwarded: false, single: false }
}

fn from(start: Start) -> Consume {
    Consume {
        start,
        records_max: u64::MAX,
        bytes_max: 1 << 20,
        wait: Duration::ZERO,
        min_offset: None,
        linearizable: false,
        deadline_us: None,
        if_small: false,
    }
}

fn at(offset: u64) -> Consume {
    from(Start::Offset(Offset(offset)))
}

fn decode(consumed: &Consumed) -> Vec<Record> {
    let records = ConsumeResponse::decode(&*consumed.chunks.concat()).unwrap().records;
    assert_eq!(records.len() as u64, consumed.count);
    records
}

/// Lets all other tasks run until they wait.
async fn settle() {
    for _ in 0..500 {
        crate::env::yield_now().await;
    }
}

/// Waits until it is so, however long that takes on this machine.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            env::sleep::<TestEnv>(Duration::from_millis(1)).await;
        }
    };
    within(what, waiting).await;
}

/// Fails instead of hanging.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    use openraft::AsyncRuntime;
    match <<TestEnv as env::Env>::Runtime as AsyncRuntime>::timeout(LONG, future).await {
        Ok(result) => result,
        Err(_) => panic!("not within {LONG:?}: {what}"),
    }
}
