//! What nodes make of their disks when they start, and what the harness makes of nodes.

use super::*;
use crate::{
    reactor::control::made::REPLICAS_FILE,
    sim::{DiskTimes, NetTimes, SimRuntime},
};

/// Longer than a node takes to be told all there is to know.
const SOON: Duration = Duration::from_secs(5);

/// So many nodes that serve.
async fn cluster_of(nodes: usize, seed: u64) -> Cluster {
    let network = SimNetwork::timed(&World::current(), seed, NetTimes::default());
    let make_disk = move || SimDisk::new().timed(&World::current(), seed, DiskTimes::default());
    let cluster = Cluster::new(network, 1, 32 << 20, make_disk);
    cluster.found().await;
    for _ in 1..nodes {
        let node = cluster.join().await.unwrap();
        cluster.until_serving(node).await;
    }
    cluster
}

/// A node that does not start is gone: nobody hears of it until it is started anew.
#[test]
fn a_failed_start() {
    let runtime = SimRuntime::seeded(1);
    runtime.block_on(async {
        let cluster = cluster_of(3, 1).await;
        let (node, made) = (NodeId(3), Path::new(DATA).join(REPLICAS_FILE));
        cluster.kill(node);
        // It is read after the catalog was opened.
        cluster.disk(node).unwrap().set_content(&made, b"all of them".to_vec());
        cluster.start(node);
        cluster.until_serving(node).await;
        let failure = cluster.failure(node).unwrap();
        assert!(failure.contains("is damaged") && cluster.process(node).is_none(), "{failure}");
        cluster.start(node);
        assert!(cluster.process(node).is_none(), "it is not started again by whoever only brings back what is down");
        env::sleep::<SimEnv>(SOON).await;
        for other in [NodeId(1), NodeId(2)] {
            assert!(!cluster.process(other).unwrap().node.liveness.is_alive(node));
        }
        cluster.kill(node);
        cluster.disk(node).unwrap().set_content(&made, Vec::new());
        cluster.start(node);
        cluster.until_serving(node).await;
        assert_eq!((cluster.failure(node), cluster.serving().len()), (None, 3));
    });
    assert_eq!(runtime.world().panics(), []);
}
