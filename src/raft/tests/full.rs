//! A follower whose disk is full: what it needs of the others, and they of it.

use super::{
    cluster::*,
    replication::{fill, one_down},
    *,
};
use crate::{
    env::{reserve, runtime::block_on},
    limits::{DISK_RESERVE_BYTES, STUCK_BYTES_MAX},
};

/// Three replicas; the leader, the one whose disk is full, with entries that wait for space, and the other one.
async fn one_full(seed: u64, kept: u64, records: usize) -> (Cluster, u64, u64, u64) {
    let cluster = Cluster::founded(seed, &[1, 2, 3]).await;
    let leader = cluster.leader().await;
    let [full, other] = cluster.followers(leader)[..] else { panic!("there are two") };
    cluster.produce(&[leader], 1, 10).await;
    cluster.agree(&[1, 2, 3]).await;
    let disk = cluster.disk(full);
    if kept > 0 {
        disk.keep_reserve(kept);
        reserve::keep(disk).await.unwrap();
    }
    disk.set_capacity(Some(disk.used_bytes()));
    for _ in 0..records {
        cluster.produce(&[leader], 1, 400_000).await;
    }
    until("a full disk", || cluster.group(full).log().is_stuck().then_some(())).await;
    (cluster, leader, full, other)
}

/// It votes when the leader dies, and so a leader is found that goes on when there is space for records.
#[test]
fn votes() {
    block_on(async {
        let (mut cluster, leader, full, other) = one_full(31, DISK_RESERVE_BYTES, 10).await;
        cluster.crash(leader);
        cluster.note(leader, false);
        cluster.leader_of(&[full, other]).await;
        cluster.disk(full).set_capacity(None);
        cluster.produce(&[full, other], 1, 10).await;
        cluster.agree(&[full, other]).await;
        cluster.end().await;
    });
}

/// One that Raft waits for in vain can be closed.
#[test]
fn closes() {
    block_on(async {
        let (mut cluster, leader, full, _) = one_full(32, 0, 10).await;
        cluster.crash(leader);
        cluster.note(leader, false);
        let group = cluster.group(full).clone();
        guard("a vote that waits", group.log().held_up()).await;
        let closed = guard("close", group.close()).await;
        assert!(matches!(closed, Err(GroupError::Stopped { .. })), "{closed:?}");
        cluster.end().await;
    });
}

/// A snapshot that finds no space is refused: the leader sends it again, and the follower has not stopped.
#[test]
fn refuses_a_snapshot() {
    block_on(async {
        let (mut cluster, leader, down) = one_down(33).await;
        fill(&cluster, leader, 3).await;
        let group = cluster.group(leader).clone();
        let boundary = group.log().checkpoints()[1];
        guard("a purge", group.purge_to(boundary)).await.unwrap();
        cluster.network.isolate(NodeId(down));
        cluster.start(down, None).await;
        let disk = cluster.disk(down).clone();
        disk.set_capacity(Some(disk.used_bytes()));
        cluster.network.heal();
        cluster.network.expire();
        let behind = cluster.group(down).clone();
        for _ in 0..200 {
            cluster.produce(&[leader], 1, 10).await;
            env::sleep::<TestEnv>(Duration::from_millis(10)).await;
            assert_eq!(behind.fault(), None);
        }
        assert_eq!(behind.snapshots_installed(), 0);
        disk.set_capacity(None);
        cluster.agree(&[1, 2, 3]).await;
        assert_eq!((behind.snapshots_installed(), behind.log().first_index()), (1, boundary.next()));
        cluster.end().await;
    });
}

/// It takes no more than a part of what its reserve is for: so its Raft never waits for more. A snapshot frees the disk, what
/// waits for space is in it.
#[test]
fn begins_anew() {
    block_on(async {
        let (cluster, leader, full, _) = one_full(34, DISK_RESERVE_BYTES, 40).await;
        let (group, behind) = (cluster.group(leader).clone(), cluster.group(full).clone());
        let waiting = behind.unflushed_bytes();
        assert!(waiting < STUCK_BYTES_MAX + (2 << 20), "{waiting} bytes wait");
        let boundary = *group.log().checkpoints().last().unwrap();
        let purged = async {
            // A follower that is being sent what is to go puts it off.
            while group.log().purged().is_none_or(|purged| purged.index < boundary) {
                group.purge_to(boundary).await.unwrap();
            }
        };
        guard("a purge", purged).await;
        guard("a snapshot", async {
            while behind.snapshots_installed() == 0 {
                env::sleep::<TestEnv>(Duration::from_millis(5)).await;
            }
        })
        .await;
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        assert!(!behind.log().is_stuck());
        cluster.end().await;
    });
}
