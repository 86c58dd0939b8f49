//! A replica that begins behind the log's start: checkpoint first, then the leader's own bytes.

use futures_util::stream;
use openraft::{
    RaftLogReader, RaftSnapshotBuilder,
    storage::{IOFlushed, RaftLogStorage, RaftStateMachine},
};

use super::{super::types, conformance::Config, *};
use crate::env::runtime::block_on;

/// Reads all entries that the group's log holds, as replication does.
async fn entries_of(group: &TestGroup) -> Vec<types::Entry> {
    let mut store =
        Store::<TestEnv, Tally>::new(group.log().clone(), Shared::new(Tally::default()), Rc::default(), Arc::default());
    store.get_log_reader().await.try_get_log_entries(..).await.unwrap()
}

/// A snapshot that was prepared before a leader's newer one came, and is built after that, does not take its place: the log begins
/// behind the newer one.
#[test]
fn late_snapshot() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        lifecycle::fill_segments(&group).await;
        let log = group.log().clone();
        let [older, newer] = log.checkpoints()[..2] else { panic!("there are three") };
        let shared = Shared::new(Tally::default());
        let mut machine = StateMachine::new(log.clone(), shared.clone(), NodeId(1));
        assert_eq!(shared.set_boundary(&log, newer).await.unwrap(), Some(newer));
        let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
        let snapshot = RaftSnapshotBuilder::<Config>::build_snapshot(&mut builder).await.unwrap();

        let shared = Shared::new(Tally::default());
        let mut machine = StateMachine::new(log.clone(), shared.clone(), NodeId(1));
        assert_eq!(shared.set_boundary(&log, older).await.unwrap(), Some(older));
        let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        RaftSnapshotBuilder::<Config>::build_snapshot(&mut builder).await.unwrap();
        let kept = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(kept.meta, snapshot.meta);
        group.close().await.unwrap();
    });
}

/// The follower's log goes on after the checkpoint with the same ids, offsets and hashes, and its state ends up the same.
#[test]
fn begins_from_a_snapshot() {
    let (disk, follower_disk) = (SimDisk::new(), SimDisk::new());
    block_on(async {
        let (leader, _) = open(&disk).await;
        while leader.log().checkpoints().len() < 2 {
            produce(&leader, 5, 60_000).await.unwrap();
        }
        drop(leader.propose(batch(Offset(0), 1, 10)));
        leader.propose(command(9)).await.unwrap();
        let boundary = leader.log().checkpoints()[0];
        leader.purge_to(boundary).await.unwrap();

        let GroupOptions { shard, segment_bytes_max, .. } = options();
        let log_options = LogOptions { dir: "/shards/follower".into(), shard, segment_bytes_max, owner: 0 };
        let log = Log::<TestEnv>::open(follower_disk.clone(), TailBudget::new(4096), log_options).await.unwrap().0;
        let shared = Shared::new(Tally::default());
        let mut store = Store::new(log.clone(), shared.clone(), Rc::default(), Arc::default());
        let mut machine = StateMachine::new(log.clone(), shared.clone(), NodeId(1));

        let mut leader_machine = StateMachine::new(leader.log().clone(), leader.inner.shared.clone(), NodeId(1));
        let snapshot = leader_machine.get_current_snapshot().await.unwrap().unwrap();
        // Its end would look like the end of the group.
        std::mem::forget(leader_machine);
        let last = snapshot.meta.last_log_id.unwrap();
        assert_eq!(last.index, boundary.0);
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        store.purge(last).await.unwrap();
        assert_eq!(log.first_index(), boundary.next());

        let (sender, flushed) = channel::oneshot();
        store.append(entries_of(&leader).await, IOFlushed::<Config>::signal(sender)).await.unwrap();
        flushed.await.unwrap().unwrap();
        assert_eq!((log.last(), log.chain(), log.log_end()), {
            let log = leader.log();
            (log.last(), log.chain(), log.log_end())
        });
        store.save_committed(log.last().map(types::to_raft)).await.unwrap();
        let committed = entries_of(&leader).await.into_iter().map(|entry| Ok((entry, None)));
        machine.apply(stream::iter(committed)).await.unwrap();
        assert_eq!(shared.with_machine(|machine| machine.state), state(&leader));
        assert_eq!(shared.applied().map(|id| id.index.next()), Some(leader.applied_end()));
        log.close().await.unwrap();
        leader.close().await.unwrap();
    });
}

/// A snapshot that is not what its meta data says, or no checkpoint at all, is refused and changes nothing.
#[test]
fn refuses_bad_snapshots() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        produce(&group, 3, 10).await.unwrap();
        let before = state(&group);
        let shared = Shared::new(Tally { state: before, ..Tally::default() });
        let mut machine = StateMachine::<TestEnv, Tally>::new(group.log().clone(), shared.clone(), NodeId(1));
        let meta = types::SnapshotMeta::default();
        for bad in [&b""[..], b"\x0a", b"\xff\xff\xff"] {
            assert!(machine.install_snapshot(&meta, Bytes::from_static(bad)).await.is_err());
        }
        assert_eq!(shared.with_machine(|machine| machine.state), before);
        group.close().await.unwrap();
    });
}
