//! What all threads of one node share: mailboxes, the published topics, the node's phase, which
//! shards do not serve. All of it is messages and small flags; no log is touched through it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::watch;

use crate::{
    budget::Usage,
    config::Config,
    format::state_files::owner_tag,
    ids::{NodeId, ReactorNumber, ShardUid},
    peer::{book::AddressBook, liveness::Liveness},
    proto::ringlog::state::v1::{ClusterNode, NodeState},
    reactor::{
        ReactorError, forward::leaders::Leaders, gossip::table::GossipTable, listen::Connections, mailbox::Mailbox,
        mailbox::Request, phase::Phases, topics::Topics,
    },
};

pub use crate::reactor::phase::Phase;

/// Who this node is: `<data>/identity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// 32 hexadecimal digits.
    pub cluster_id: String,
    /// Its number in the cluster.
    pub node: NodeId,
    /// Random, made with the data directory.
    pub incarnation: u64,
}

/// Where this node is reached, as others are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// Host name or address for peers.
    pub peer_host: String,
    /// UDP port of reactor 0.
    pub peer_port: u16,
    /// gRPC, `host:port`.
    pub grpc: String,
    /// HTTP, `host:port`.
    pub http: String,
}

impl Identity {
    /// What this node's shards carry in their files, so that another node's are not taken for them.
    pub fn owner(&self) -> u64 {
        owner_tag(&self.cluster_id, self.node, self.incarnation)
    }
}

/// One reactor as the others see it.
#[derive(Debug, Default)]
pub struct ReactorView {
    /// How to ask it.
    pub mailbox: Mailbox,
    /// Its client connections.
    pub connections: Arc<Connections>,
    /// What its memory is used for.
    pub memory: Arc<Usage>,
    /// Shards that it holds, serving or not.
    pub shards: AtomicUsize,
    /// Replicas that it opens now, and does not count as its shards yet.
    expected: AtomicUsize,
    /// Those of them that are open and have no leader that is heard and hears most voters, at the last look.
    pub unled: Mutex<BTreeSet<ShardUid>>,
    /// How often a damaged replica, or the catalog, was mended from other nodes' copies.
    pub mended: AtomicUsize,
}

/// Shared by all threads of a node.
#[derive(Debug)]
pub struct Node {
    /// As checked at the start.
    pub config: Config,
    /// gRPC and HTTP listeners as bound.
    pub addresses: (SocketAddr, SocketAddr),
    /// All reactors by number.
    pub reactors: Vec<ReactorView>,
    /// The published topics.
    pub topics: Arc<Topics>,
    /// Who the other nodes are.
    pub book: Arc<AddressBook>,
    /// Which of them were heard of lately.
    pub liveness: Arc<Liveness>,
    /// Where others reach it.
    pub advertised: Advertised,
    /// Who leads the shards, as far as this node has heard.
    pub leaders: Arc<Leaders>,
    /// What they say of themselves and of each other.
    pub gossip: Arc<GossipTable>,
    identity: OnceLock<Identity>,
    phases: Phases,
    /// More replicas are expected.
    grows: watch::Sender<()>,
    faults: Mutex<BTreeMap<ShardUid, String>>,
    fault_count: AtomicUsize,
    catalog_stalled: Mutex<Option<String>>,
}

impl Node {
    /// A node that is starting.
    pub fn new(config: Config, reactors: usize, addresses: (SocketAddr, SocketAddr), advertised: Advertised) -> Node {
        assert!(reactors > 0, "a node has at least one reactor");
        Node {
            config,
            addresses,
            reactors: (0..reactors).map(|_| ReactorView::default()).collect(),
            topics: Arc::default(),
            book: Arc::default(),
            liveness: Arc::default(),
            advertised,
            leaders: Arc::default(),
            gossip: Arc::default(),
            identity: OnceLock::new(),
            phases: Phases::default(),
            grows: watch::Sender::default(),
            faults: Mutex::default(),
            fault_count: AtomicUsize::new(0),
            catalog_stalled: Mutex::default(),
        }
    }

    /// Sends `request` to a reactor.
    ///
    /// # Errors
    /// As `Mailbox::send`.
    pub fn send(&self, to: ReactorNumber, request: Request) -> Result<(), ReactorError> {
        self.reactors[to.0 as usize].mailbox.send(request)
    }

    /// Sets the identity, once.
    pub fn set_identity(&self, identity: Identity) {
        let known = self.identity.get_or_init(|| identity.clone());
        assert_eq!(*known, identity, "a node does not become another one");
    }

    /// The identity; `None` while the node has not read it yet.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// This node as the catalog keeps it.
    ///
    /// # Panics
    /// Before the node knows who it is.
    pub fn own_entry(&self) -> ClusterNode {
        let identity = self.identity().expect("the identity is read first");
        let Advertised { peer_host, peer_port, grpc, http } = self.advertised.clone();
        ClusterNode {
            node_id: identity.node.0,
            state: NodeState::Active as i32,
            peer_host,
            peer_port: u32::from(peer_port),
            reactors: u32::try_from(self.reactors.len()).expect("at most REACTORS_MAX"),
            grpc_address: grpc,
            http_address: http,
            incarnation: identity.incarnation,
        }
    }

    /// Whether a node says that it is about to leave: it is not to be given anything to lead.
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.gossip.is_leaving(node)
    }

    /// What the node does now.
    pub fn phase(&self) -> Phase {
        self.phases.now()
    }

    /// Moves on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        self.phases.enter(phase);
    }

    /// Resolves when `phase`, or one after it, is reached.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        self.phases.reached(phase)
    }

    /// Notes that a shard does not serve any more, and logs it the first time.
    pub fn note_fault(&self, uid: ShardUid, cause: &str) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.insert(uid, cause.to_owned()).is_none() {
            tracing::error!(shard_uid = uid.0, cause, "shard does not serve");
        }
        self.fault_count.store(faults.len(), Relaxed);
    }

    /// Forgets the fault of a shard that was removed.
    pub fn forget_fault(&self, uid: ShardUid) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.remove(&uid);
        self.fault_count.store(faults.len(), Relaxed);
    }

    /// Shards that do not serve, with the reason.
    pub fn faults(&self) -> BTreeMap<ShardUid, String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many shards do not serve.
    pub fn fault_count(&self) -> usize {
        self.fault_count.load(Relaxed)
    }

    /// Notes which operation of the catalog's storage takes long, if one does.
    pub fn note_catalog_stalled(&self, stalled: Option<String>) {
        *self.catalog_stalled.lock().unwrap_or_else(PoisonError::into_inner) = stalled;
    }

    /// The operation of the catalog's storage that the device has not answered for long, with file and time, at the last look.
    pub fn catalog_stalled(&self) -> Option<String> {
        self.catalog_stalled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many shards there are, serving or not.
    pub fn shard_count(&self) -> usize {
        self.reactors.iter().map(|reactor| reactor.shards.load(Relaxed)).sum()
    }

    /// Replicas that descriptors are kept for: those that are here, and those that are about to be.
    pub fn replica_count(&self) -> usize {
        let expected: usize = self.reactors.iter().map(|reactor| reactor.expected.load(Relaxed)).sum();
        self.shard_count() + expected
    }

    /// A reactor opens so many replicas, and counts them as its shards when this is dropped.
    pub fn expect_replicas(self: &Arc<Self>, reactor: ReactorNumber, count: usize) -> Expected {
        self.reactors[reactor.0 as usize].expected.fetch_add(count, Relaxed);
        self.grows.send_replace(());
        Expected { node: Arc::clone(self), reactor, count }
    }

    /// Tells when more replicas are expected.
    pub fn grows(&self) -> watch::Receiver<()> {
        self.grows.subscribe()
    }

    /// Serving, and not all of its shards at fault, or without a majority.
    pub fn is_serving(&self) -> bool {
        let shards = self.shard_count();
        // Without the catalog replicas serve as they are.
        let faults = self.faults();
        // One at fault leads and follows nobody, and is one all the same.
        let unled = |reactor: &ReactorView| {
            let unled = reactor.unled.lock().unwrap_or_else(PoisonError::into_inner);
            unled.iter().filter(|uid| !faults.contains_key(uid)).count()
        };
        let unled: usize = self.reactors.iter().map(unled).sum();
        let faults = faults.keys().filter(|uid| **uid != ShardUid::CATALOG).count();
        self.phase() == Phase::Serving && (shards == 0 || faults + unled < shards)
    }
}

/// See `Node::expect_replicas`.
pub struct Expected {
    node: Arc<Node>,
    reactor: ReactorNumber,
    count: usize,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.node.reactors[self.reactor.0 as usize].expected.fetch_sub(self.count, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
        let advertised = Advertised {
            peer_host: "127.0.0.1".into(),
            peer_port: 7500,
            grpc: anywhere.to_string(),
            http: anywhere.to_string(),
        };
        Node::new(Config::default(), 2, (anywhere, anywhere), advertised)
    }

    /// Phases only move forward, and whoever waits for one is woken by a later one, too.
    #[test]
    fn phases() {
        let node = node();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let waiting = node.reached(Phase::Draining);
        node.enter(Phase::Serving);
        node.enter(Phase::Closing);
        node.enter(Phase::Serving);
        assert_eq!(node.phase(), Phase::Closing);
        runtime.block_on(waiting);
    }

    /// Descriptors are kept for replicas that are being opened, too, from the beginning, and whoever has them is told.
    #[test]
    fn replicas_to_come() {
        let node = Arc::new(node());
        let grows = node.grows();
        node.reactors[0].shards.store(1, Relaxed);
        let expected = node.expect_replicas(ReactorNumber(1), 3);
        assert!(grows.has_changed().unwrap());
        assert_eq!((node.shard_count(), node.replica_count()), (1, 4));
        node.reactors[1].shards.store(3, Relaxed);
        drop(expected);
        assert_eq!((node.shard_count(), node.replica_count()), (4, 4));
    }

    /// A node serves while one shard does.
    #[test]
    fn serving() {
        let node = node();
        assert!(!node.is_serving(), "still starting");
        node.enter(Phase::Serving);
        assert!(node.is_serving(), "no topics is no fault");
        node.reactors[0].shards.store(1, Relaxed);
        node.reactors[1].shards.store(1, Relaxed);
        node.note_fault(ShardUid(7), "x");
        assert!(node.is_serving());
        node.note_fault(ShardUid(8), "y");
        assert!(!node.is_serving());
        node.forget_fault(ShardUid(8));
        node.note_fault(ShardUid::CATALOG, "z");
        assert!(node.is_serving() && node.fault_count() == 2, "told, and no shard's");
        let set_unled =
            |uid: Option<u64>| *node.reactors[1].unled.lock().unwrap() = uid.map(ShardUid).into_iter().collect();
        set_unled(Some(8));
        assert!(!node.is_serving(), "no majority");
        set_unled(Some(7));
        assert!(node.is_serving(), "a replica at fault follows nobody: it is one shard, and the other one serves");
        set_unled(None);
        assert!(node.is_serving());
    }
}
