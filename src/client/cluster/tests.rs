//! The handle against scripted servers: discovery, the watch, turns, and what is tried again.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::{collections::BTreeSet, sync::atomic::AtomicUsize};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{scripted::Servers, *};
use crate::ids::NodeId;

/// Long enough for any machine: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test hangs") });
}

async fn until(cluster: &Cluster, is_so: impl Fn(&Topology) -> bool) {
    let mut watched = cluster.watch();
    watched.wait_for(|topology| is_so(topology)).await.unwrap();
}

/// One address is enough to know all servers; a dead one among the given ones does not matter, and none is one sentence.
#[test]
fn discovers() {
    block_on(async {
        let servers = Servers::start(3, 2).await;
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let cluster = Cluster::connect(&[dead.clone(), servers.address(2)]).await.unwrap();
        let topology = cluster.topology();
        let nodes: Vec<u64> = topology.servers.iter().map(|server| server.node.0).collect();
        assert_eq!((nodes, topology.shards("t")), (vec![1, 2, 3], Some(2)));
        assert_eq!(topology.leader_address("t", 1).as_deref(), Some(servers.address(1).as_str()));
        assert_eq!(cluster.shards("t").await.unwrap(), 2);
        let error = Cluster::connect(&[dead.clone(), dead]).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot reach a Ringlog server at 127.0.0.1:"), "{error}");
        assert!(Cluster::connect::<&str>(&[]).await.unwrap_err().is_definite());
    });
}

/// Changes are seen as they happen, also after the watched server is gone, and where servers cannot be watched.
#[test]
fn watches() {
    block_on(async {
        let mut servers = Servers::start(3, 1).await;
        let addresses = [servers.address(1), servers.address(2), servers.address(3)];
        let cluster = Cluster::connect(&addresses).await.unwrap();
        servers.change(|world| world.leader = (2, 2));
        until(&cluster, |topology| topology.leader_address("t", 0).as_deref() == Some(&addresses[1])).await;
        for (gone, leader, term) in [(2, 3, 3), (1, 3, 4)] {
            servers.kill(gone);
            servers.change(|world| world.leader = (leader, term));
            until(&cluster, |topology| topology.route("t", 0).unwrap().term == term).await;
        }
        // The last server does not serve watches any more.
        servers.change(|world| world.can_watch = false);
        let polling = ClusterOptions { poll_interval: Duration::from_millis(10), ..ClusterOptions::default() };
        let polling = Cluster::connect_with(&addresses[2..], polling).await.unwrap();
        servers.change(|world| world.leader = (3, 5));
        until(&polling, |topology| topology.route("t", 0).unwrap().term == 5).await;
    });
}

/// A server that sees no majority is cut off: who is alive is not learned from it.
#[test]
fn does_not_believe_the_cut_off() {
    block_on(async {
        let servers = Servers::start(3, 1).await;
        let cluster = Cluster::connect(&[servers.address(1)]).await.unwrap();
        servers.change(|world| {
            world.servers.get_mut(&2).unwrap().alive = false;
            world.servers.get_mut(&3).unwrap().alive = false;
            world.leader = (1, 9);
        });
        cluster.refresh();
        // The scripted servers share one view, so none is believed until they see each other again.
        let seen = tokio::time::timeout(
            Duration::from_millis(300),
            until(&cluster, |topology| topology.route("t", 0).unwrap().term == 9),
        );
        assert!(seen.await.is_err(), "it believed a server that sees one node of three");
        servers.change(|world| world.servers.get_mut(&2).unwrap().alive = true);
        until(&cluster, |topology| topology.route("t", 0).unwrap().term == 9).await;
        assert!(!cluster.topology().server(NodeId(3)).unwrap().alive);
    });
}

/// Calls without an owner are spread over the servers that are alive and not draining.
#[test]
fn balances() {
    block_on(async {
        let servers = Servers::start(4, 1).await;
        servers.change(|world| world.servers.get_mut(&4).unwrap().draining = true);
        let cluster = Cluster::connect(&[servers.address(1)]).await.unwrap();
        let mut used = BTreeSet::new();
        for _ in 0..8 {
            used.insert(cluster.any().await.unwrap().address().to_owned());
        }
        assert_eq!(used, (1..=3).map(|node| servers.address(node)).collect());
    });
}

/// What changes something is tried again only when it is certain that nothing has happened; what only reads, always; and
/// what another try cannot help, never.
#[test]
fn tries_again() {
    block_on(async {
        let servers = Servers::start(2, 1).await;
        let cluster = Cluster::connect(&[servers.address(1)]).await.unwrap();
        let lost = |definite| ClientError::Lost { address: "a".into(), cause: "c".into(), definite };
        let wrong = || ClientError::Protocol { address: "a".into(), what: "w".into() };
        let tries = AtomicUsize::new(0);
        let third_time = |error: ClientError| {
            let number = tries.fetch_add(1, Ordering::Relaxed);
            async move { if number < 2 { Err(error) } else { Ok(number) } }
        };
        assert_eq!(cluster.write(|_| third_time(lost(true))).await.unwrap(), 2);
        tries.store(0, Ordering::Relaxed);
        assert_eq!(cluster.read(|_| third_time(lost(false))).await.unwrap(), 2);
        tries.store(0, Ordering::Relaxed);
        assert!(!cluster.write(|_| third_time(lost(false))).await.unwrap_err().is_definite());
        assert_eq!(tries.swap(0, Ordering::Relaxed), 1);
        assert!(cluster.read(|_| third_time(wrong())).await.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    });
}

/// A server that accepts connections and says nothing is given up, and its calls with it.
#[test]
fn silent_servers_are_given_up() {
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Arc<str> = listener.local_addr().unwrap().to_string().into();
        let keepalive = Duration::from_millis(50);
        let pool = Pool::new(PATIENCE, PATIENCE, keepalive);
        let client = pool.get(&address).await.unwrap();
        assert!(pool.is_connected(&address));
        let error = client.list_topics().await.unwrap_err();
        assert!(matches!(error, ClientError::Lost { definite: false, .. }), "{error}");
        assert!(!client.is_usable() && !pool.is_connected(&address));
    });
}

/// An address that takes no connection and refuses none, while these are held.
async fn deaf() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    // Nobody accepts them: when their queue is full, the next one hears nothing.
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    (listener, waiting)
}

/// Servers that do not answer at all do not each take the time of a call: it is over when it is, and the error names one.
#[test]
fn calls_end_in_time() {
    block_on(async {
        let mut servers = Servers::start(1, 1).await;
        let addresses = [servers.address(1)];
        let timeout = Duration::from_secs(2);
        let options = ClusterOptions { timeout, connect_timeout: PATIENCE, ..ClusterOptions::default() };
        let cluster = Cluster::connect_with(&addresses, options).await.unwrap();
        let mut deaf_ones = Vec::new();
        for _ in 0..9 {
            deaf_ones.push(deaf().await);
        }
        servers.change(|world| {
            let template = world.servers[&1].clone();
            for (node_id, (listener, _)) in (2..).zip(&deaf_ones) {
                let grpc_address = listener.local_addr().unwrap().to_string();
                world.servers.insert(node_id, v1::Server { node_id, grpc_address, ..template.clone() });
            }
        });
        until(&cluster, |topology| topology.servers.len() == 10).await;
        servers.kill(1);
        let begun = Instant::now();
        let error = cluster.list_topics().await.unwrap_err();
        assert!(begun.elapsed() < 2 * timeout, "{:?}", begun.elapsed());
        assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    });
}

/// After a failure a server is left alone for a while; those who ask meanwhile are told at once.
#[test]
fn backs_off() {
    block_on(async {
        let address: Arc<str> =
            TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string().into();
        let pool = Pool::new(PATIENCE, PATIENCE, PATIENCE);
        assert!(pool.may_work(&address));
        for _ in 0..4 {
            while !pool.may_work(&address) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            pool.get(&address).await.unwrap_err();
            assert!(!pool.may_work(&address));
            let listener = TcpListener::bind(&*address).await.unwrap();
            pool.get(&address).await.unwrap_err();
            drop(listener);
        }
    });
}
