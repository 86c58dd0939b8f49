//! Several replicas: the same log everywhere, whatever happens to one of them.

use super::{cluster::*, *};
use crate::env::runtime::block_on;

/// What is acknowledged is everywhere in a moment: the same entries, offsets and hashes.
#[test]
fn three_replicas() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let group = cluster.group(leader);
        let mut acknowledged = Vec::new();
        for round in 0..20 {
            let end = group.log().log_end().0;
            let waiting: Vec<_> =
                (0..8).map(|n| group.propose(batch(Offset(end + 3 * n), 3, 500 * round + 1))).collect();
            for answer in waiting {
                acknowledged.push(guard("an ack", answer).await.unwrap().header);
            }
        }
        assert!(acknowledged.iter().enumerate().all(|(n, header)| header.base_offset == Offset(3 * n as u64)));
        assert_eq!(guard("a command", group.propose(command(9))).await.unwrap().answer.commands, 9);
        cluster.agree(&[1, 2, 3]).await;
        for node in [1, 2, 3] {
            cluster.holds(node, &acknowledged).await;
            assert_eq!(cluster.group(node).leader().0, Some(NodeId(leader)));
            assert_eq!(cluster.group(node).members().voters, ids(&[1, 2, 3]));
        }
        let progress = group.progress();
        assert_eq!(progress.len(), 2);
        cluster.end().await;
    });
}

/// A leader that crashes is replaced as soon as it is taken for dead; what was acknowledged is there, and it comes back
/// as a follower that has the same.
#[test]
fn leader_crashes() {
    for seed in 0..4 {
        block_on(async {
            let mut cluster = Cluster::founded(seed, &[1, 2, 3]).await;
            let leader = cluster.leader().await;
            let others = cluster.followers(leader);
            let mut acknowledged = Vec::new();
            for _ in 0..10 {
                acknowledged.push(cluster.produce(&[leader], 2, 3_000).await);
            }
            let group = cluster.group(leader).clone();
            let end = group.log().log_end();
            let in_flight: Vec<_> = (0..4).map(|n| group.propose(batch(Offset(end.0 + n), 1, 10))).collect();
            tokio::task::yield_now().await;
            cluster.crash(leader);
            cluster.note(leader, false);
            let next = cluster.leader_of(&others).await;
            acknowledged.push(cluster.produce(&others, 1, 10).await);
            drop(in_flight);
            assert!(cluster.group(next).leader().1 > acknowledged[0].id.term);
            cluster.start(leader, None).await;
            cluster.agree(&[1, 2, 3]).await;
            for node in [1, 2, 3] {
                cluster.holds(node, &acknowledged).await;
            }
            cluster.end().await;
        });
    }
}
