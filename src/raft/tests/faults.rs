//! What a group says, and leaves alone, when its disk fails or is full.

use std::io;

use openraft::storage::RaftLogStorage;

use super::{cluster::*, *};
use crate::{
    budget::Use,
    env::runtime::block_on,
    limits::UNFLUSHED_BYTES_MAX,
    log::repair::{Mended, RepairError, salvage_purged_checkpoint},
    raft::repair::Repair,
    sim::{DiskFault, Fault, Operation, PlantedFault},
};

fn broken(operation: Operation) -> Fault {
    Fault { operation, path_contains: "/shards/7".into(), skip: 0, times: 1, error: io::ErrorKind::Other }
}

/// A failed write stops the group: what was proposed may be there, what comes later is not; nobody waits for ever,
/// and the group beside it goes on.
#[test]
fn failed_write_stops_the_group() {
    let (disk, other_disk) = (SimDisk::new(), SimDisk::new());
    block_on(async {
        let (group, _) = open(&disk).await;
        let (other, _) = open(&other_disk).await;
        produce(&group, 1, 10).await.unwrap();
        disk.plant(broken(Operation::AppendDurable));
        let (first, second) = (group.propose(batch(Offset(1), 1, 10)), group.propose(batch(Offset(2), 1, 10)));
        let waiting = group.wait_above(Offset(1));
        for answer in [first.await, second.await] {
            let Err(GroupError::Stopped { cause, maybe_written: true }) = answer else { panic!("{answer:?}") };
            assert!(cause.contains("/shards/7"), "{cause}");
        }
        waiting.await;
        assert!(group.fault().is_some());
        let later = group.propose(batch(Offset(1), 1, 10)).await;
        assert!(matches!(later, Err(GroupError::Stopped { maybe_written: false, .. })), "{later:?}");
        assert!(group.purge_to(Index(1)).await.is_ok(), "nothing to purge is no fault");
        assert!(matches!(group.close().await, Err(GroupError::Stopped { .. })));
        assert_eq!(produce(&other, 1, 10).await.unwrap().header.base_offset, Offset(0));
        other.close().await.unwrap();
    });
    // The device is well again: what was acknowledged is there.
    block_on(async {
        let (group, _) = open(&disk).await;
        assert!(state(&group).records >= 1);
        produce(&group, 1, 10).await.unwrap();
        group.close().await.unwrap();
    });
}

/// A machine that panics ends its group, with a word about it, and not the process.
#[test]
fn panic_in_the_machine() {
    struct Fragile;
    impl Machine for Fragile {
        type Answer = ();
        fn apply(&mut self, _: &StoredEntry) {
            panic!("on purpose");
        }
        fn checkpoint(&self) -> Bytes {
            Bytes::new()
        }
        fn restore(&mut self, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }
    let disk = SimDisk::new();
    block_on(async {
        let opened =
            Group::<TestEnv, _>::open(disk.clone(), TailBudget::new(4096), Peers::alone(NodeId(3)), options(), Fragile)
                .await;
        let (group, _) = opened.unwrap();
        let answer = group.propose(command(1)).await;
        assert!(matches!(answer, Err(GroupError::Stopped { maybe_written: true, .. })), "{answer:?}");
        assert!(group.fault().is_some());
        group.wait_above(Offset(0)).await;
        assert!(group.close().await.is_err());
    });
}

/// A full disk refuses proposals, nothing else: Raft goes on, reads go on, and so do proposals when space returns.
#[test]
fn full_disk() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        produce(&group, 1, 10).await.unwrap();
        disk.set_capacity(Some(disk.used_bytes()));
        let mut accepted = 1;
        let refusal = loop {
            match produce(&group, 1, 50_000).await {
                Ok(_) => accepted += 1,
                Err(error) => break error,
            }
            assert!(accepted < 1_000, "the disk is full, and still takes batches");
        };
        assert!(matches!(refusal, GroupError::Full(_)), "{refusal:?}");
        assert_eq!(group.fault(), None);
        assert_eq!(state(&group).records, accepted);
        assert_eq!(headers(&group).await.len() as u64, group.applied_end().0);
        // Many at once: each is told before Raft has it.
        let end = group.log().log_end();
        let many: Vec<_> = (0..20).map(|_| group.propose(batch(end, 1, 50_000))).collect();
        for answer in many {
            assert!(matches!(answer.await, Err(GroupError::Full(_))));
        }
        disk.set_capacity(None);
        while produce(&group, 1, 50_000).await.is_err() {
            assert_eq!(group.fault(), None);
            crate::env::yield_now().await;
        }
        assert_eq!(state(&group).records, accepted + 1);
        group.close().await.unwrap();
    });
}

fn checkpoint(index: Index) -> String {
    format!("/shards/7/{:020}.checkpoint", index.0)
}

/// A damaged checkpoint that is not needed, since there is another one or the log is whole, harms nothing: not at the log's
/// start, not the newest, not both. It is removed, or made anew by the replay.
#[test]
fn damaged_checkpoint() {
    let disk = SimDisk::new();
    let (expected, kept) = block_on(async {
        let (group, _) = open(&disk).await;
        lifecycle::fill_segments(&group).await;
        group.close().await.unwrap();
        (state(&group), group.log().checkpoints())
    });
    let purged = block_on(async {
        let disk = disk.crash(0);
        let (group, _) = open(&disk).await;
        group.purge_to(kept[0]).await.unwrap();
        group.close().await.unwrap();
        disk
    });
    let (first, last) = (kept[0], *kept.last().unwrap());
    for (disk, damaged) in
        [(&disk, vec![last]), (&disk, kept.clone()), (&purged, vec![first]), (&purged, vec![first, last])]
    {
        let disk = disk.crash(0);
        for index in &damaged {
            disk.flip_bit(checkpoint(*index), 40, 3);
        }
        block_on(async {
            let (group, _) = open(&disk).await;
            assert_eq!(state(&group), expected, "{damaged:?} of {kept:?}");
            group.close().await.unwrap();
            let report = crate::log::verify::verify_dir(&disk, "/shards/7".as_ref()).await.unwrap();
            assert!(report.problems.is_empty(), "{:?}", report.problems);
        });
    }
}

/// When all of them are, a log that begins after a purge needs one: it comes from another replica, if it fits.
#[test]
fn needed_checkpoint() {
    block_on(async {
        let mut cluster = Cluster::founded(8, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        while cluster.group(leader).log().checkpoints().len() < 3 {
            cluster.produce(&[leader], 5, 60_000).await;
        }
        cluster.agree(&[1, 2, 3]).await;
        let victim = cluster.followers(leader)[0];
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != victim).map(NodeId).collect();
        let log = cluster.group(victim).log();
        until("it keeps some", || (log.checkpoints().len() >= 2).then_some(())).await;
        let boundary = log.checkpoints()[0];
        guard("a purge", cluster.group(victim).purge_to(boundary)).await.unwrap();
        let kept = log.checkpoints();
        cluster.crash(victim);
        for index in &kept {
            cluster.disk(victim).flip_bit(checkpoint(*index), 40, 3);
        }
        let error = try_open(cluster.disk(victim)).await.map(|_| ()).unwrap_err();
        assert!(matches!(&error, GroupError::Damaged(_)), "{error:?}");
        let error = cluster.mend(victim, &[]).await.unwrap_err();
        assert!(matches!(&error, RepairError::Stateless { .. }), "{error}");
        let mended = cluster.mend(victim, &others).await.unwrap();
        assert_eq!((mended.segments, mended.checkpoints), (0, 1));
        cluster.start(victim, None).await;
        cluster.agree(&[1, 2, 3]).await;

        // While it is down the others forget all up to a state that it has not seen: it goes on there.
        let end = cluster.group(victim).log().last().unwrap().index;
        cluster.crash(victim);
        cluster.note(victim, false);
        let others: Vec<_> = others.iter().map(|node| node.0).collect();
        for other in &others {
            let log = cluster.group(*other).log();
            while log.checkpoints().iter().filter(|index| **index > end).count() < 2 {
                cluster.produce(&others, 5, 60_000).await;
            }
            let newest = *log.checkpoints().last().unwrap();
            guard("a purge", cluster.group(*other).purge_to(newest)).await.unwrap();
        }
        // Also those that were removed, and that the crash has brought back.
        for path in cluster.disk(victim).paths() {
            if path.extension().is_some_and(|extension| extension == "checkpoint") {
                cluster.disk(victim).set_content(&path, vec![0; 200]);
            }
        }
        let others: Vec<_> = others.into_iter().map(NodeId).collect();
        let mended = cluster.mend(victim, &others).await.unwrap();
        assert_eq!((mended.segments, mended.checkpoints), (0, 1));
        cluster.start(victim, None).await;
        assert!(cluster.group(victim).log().first_index() > end, "it begins behind what it had");
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// A replica that lacks what the others have purged begins where they do, with what it has behind that, also when it lacks the last
/// that they have purged, and the first that they have not; or anew, when it has nothing there. What they have not purged is not given up.
#[test]
fn purged_elsewhere() {
    for (is_beyond, lacks, seed) in [(false, 0, 3), (false, 1, 5), (false, 2, 6), (true, 0, 4)] {
        block_on(async {
            let mut cluster = Cluster::founded(seed, &[1, 2, 3]).await;
            let leader = cluster.leader().await;
            let victim = cluster.followers(leader)[0];
            let others: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != victim).collect();
            let nodes: Vec<_> = others.iter().copied().map(NodeId).collect();
            while cluster.group(victim).log().checkpoints().len() < 3 {
                cluster.produce(&[leader], 5, 60_000).await;
            }
            cluster.agree(&[1, 2, 3]).await;
            let end = cluster.group(victim).log().end().next;
            cluster.crash(victim);
            cluster.note(victim, false);
            let is_store = |path: &&std::path::PathBuf| path.extension().is_some_and(|extension| extension == "store");
            let paths = cluster.disk(victim).paths();
            let first = paths.iter().filter(is_store).min().unwrap();
            cluster.disk(victim).flip_bit(first, 3 * BLOCK_BYTES as u64 + 90, 3);
            let group = |id: u64| cluster.group(id).clone();
            while is_beyond && group(leader).log().checkpoints().last().is_none_or(|newest| *newest < end) {
                cluster.produce(&others, 5, 60_000).await;
            }
            let kept = group(leader).log().checkpoints();
            let boundary = if is_beyond { *kept.last().unwrap() } else { kept[0] };
            assert_eq!(boundary >= end, is_beyond);
            guard("a purge", group(leader).purge_to(boundary)).await.unwrap();
            let other = *others.iter().find(|id| **id != leader).unwrap();
            if !is_beyond {
                // It has what is missing: nothing is given up.
                let mended = cluster.mend(victim, &nodes).await.unwrap();
                assert_eq!((mended.checkpoints, mended.entries), (0, 1));
                cluster.disk(victim).flip_bit(first, 3 * BLOCK_BYTES as u64 + 90, 3);
            }
            guard("a purge", group(other).purge_to(boundary)).await.unwrap();
            for lacked in boundary.0..boundary.0 + lacks {
                damage_entry(cluster.disk(victim), Index(lacked));
            }
            let mended = cluster.mend(victim, &nodes).await.unwrap();
            assert_eq!((mended.checkpoints, mended.entries), (1, lacks.saturating_sub(1)));
            cluster.start(victim, None).await;
            let log = cluster.group(victim).log().clone();
            assert_eq!(
                (log.first_index(), log.end().next.max(end)),
                (boundary.next(), log.end().next.max(boundary.next()))
            );
            cluster.agree(&[1, 2, 3]).await;
            cluster.end().await;
        });
    }
}

/// What changes while a replica waits for the others is found, for better or worse: an entry more goes bad; the device cannot
/// read anything for a while, or the hard state, which then is not lost.
#[test]
fn changes_while_it_waits() {
    block_on(async {
        let mut cluster = Cluster::founded(9, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        for _ in 0..12 {
            cluster.produce(&[leader], 1, 10).await;
        }
        cluster.agree(&[1, 2, 3]).await;
        let victim = cluster.followers(leader)[0];
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != victim).map(NodeId).collect();
        let log = cluster.group(victim).log().clone();
        until("all is durable", || (log.flushed() == log.last()).then_some(())).await;
        cluster.crash(victim);
        let disk = cluster.disk(victim).clone();
        let unreadable = |path: &str| PlantedFault {
            fault: DiskFault::ErrorRead,
            path_contains: path.into(),
            chance_ppm: 1_000_000,
            times: u64::MAX,
        };

        let (mut repair, peers) = cluster.repair(victim);
        disk.plant_fault(unreadable(".store"));
        let error = repair.attempt(&[]).await.unwrap_err();
        assert!(matches!(&error, RepairError::Unfilled { .. }), "{error}");
        disk.heal();
        assert_eq!(mended_in_time(&mut repair, &[]).await, Mended::default());
        disk.plant_fault(unreadable("hard_state"));
        let error = repair.attempt(&others).await.unwrap_err();
        assert!(matches!(&error, RepairError::Disk(LogError::Corrupt { .. })), "{error}");
        disk.heal();
        assert_eq!(mended_in_time(&mut repair, &[]).await, Mended::default());

        damage_entry(&disk, Index(4));
        let error = repair.attempt(&[]).await.unwrap_err();
        assert!(matches!(&error, RepairError::Unfilled { .. }), "{error}");
        damage_entry(&disk, Index(7));
        assert_eq!(mended_in_time(&mut repair, &others).await.segments, 1);
        peers.close().await;
        cluster.start(victim, None).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// What a replica lacks in one piece, and the others have purged up to the middle of that: it begins there, and gets the rest.
#[test]
fn purged_within_a_gap() {
    block_on(async {
        let mut cluster = Cluster::founded(7, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let victim = cluster.followers(leader)[0];
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != victim).collect();
        let nodes: Vec<_> = others.iter().copied().map(NodeId).collect();
        for _ in 0..2 {
            for _ in 0..8 {
                cluster.produce(&[leader], 1, 10).await;
            }
            cluster.agree(&[1, 2, 3]).await;
            for id in [1, 2, 3] {
                let (log, shared) = (cluster.group(id).log(), &cluster.group(id).inner.shared);
                until("a flush", || (log.flushed() == log.last()).then_some(())).await;
                // In the middle of a segment, as at a close.
                shared.save_now(log).await.unwrap();
            }
        }
        let boundary = cluster.group(leader).log().checkpoints()[0];
        cluster.crash(victim);
        cluster.note(victim, false);
        for lacked in boundary.0 - 2..=boundary.0 + 2 {
            damage_entry(cluster.disk(victim), Index(lacked));
        }
        for id in &others {
            guard("a purge", cluster.group(*id).purge_to(boundary)).await.unwrap();
        }
        let mended = cluster.mend(victim, &nodes).await.unwrap();
        assert_eq!((mended.checkpoints, mended.entries), (1, 2));
        cluster.start(victim, None).await;
        assert_eq!(cluster.group(victim).log().first_index(), boundary.next());
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// Tries again as long as that may help.
async fn mended_in_time(repair: &mut Repair<TestEnv>, others: &[NodeId]) -> Mended {
    let trying = async {
        loop {
            match repair.attempt(others).await {
                Ok(mended) => return mended,
                Err(RepairError::Hopeless(error)) => panic!("{error}"),
                Err(_) => env::sleep::<TestEnv>(Duration::from_millis(20)).await,
            }
            // By the clock of the test, too: what was found is kept for a time.
            TestEnv::advance_us(20_000);
        }
    };
    guard("a repair", trying).await
}

/// The checkpoint at the log start of the only one who has purged is damaged: it gives another one, what it has in memory or the
/// next in its files; also when it is not open.
#[test]
fn purged_with_a_damaged_checkpoint() {
    for (in_memory, seed) in [(true, 8), (false, 9)] {
        block_on(async {
            let mut cluster = Cluster::founded(seed, &[1, 2]).await;
            let peer = cluster.leader().await;
            let victim = cluster.followers(peer)[0];
            while cluster.group(victim).log().checkpoints().len() < 3 {
                cluster.produce(&[peer], 5, 60_000).await;
            }
            cluster.agree(&[1, 2]).await;
            cluster.crash(victim);
            cluster.note(victim, false);
            damage_entry(cluster.disk(victim), Index(2));
            let kept = cluster.group(peer).log().checkpoints();
            guard("a purge", cluster.group(peer).purge_to(kept[0])).await.unwrap();
            if in_memory {
                cluster.disk(peer).flip_bit(checkpoint(kept[0]), 40, 3);
            } else {
                cluster.crash(peer);
                cluster.disk(peer).flip_bit(checkpoint(kept[0]), 40, 3);
                let log_options = super::super::repair::log_options(&options());
                let given = salvage_purged_checkpoint(cluster.disk(peer), &log_options, Index(2)).await.unwrap();
                assert_eq!(given.map(|(index, _)| index), Some(kept[1]));
                cluster.start(peer, None).await;
            }
            let mended = cluster.mend(victim, &[NodeId(peer)]).await.unwrap();
            assert_eq!((mended.checkpoints, mended.entries), (1, 0));
            cluster.start(victim, None).await;
            let begin = if in_memory { kept[0] } else { kept[1] };
            assert_eq!(cluster.group(victim).log().first_index(), begin.next());
            cluster.agree(&[1, 2]).await;
            cluster.end().await;
        });
    }
}

/// Damage that a truncation finds in the last entry that it keeps is known as damage, which others can mend.
#[test]
fn damage_found_by_a_truncation() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        for _ in 0..8 {
            produce(&group, 1, 60_000).await.unwrap();
        }
        group.close().await.unwrap();
        let GroupOptions { dir, shard, segment_bytes_max, .. } = options();
        let log_options = LogOptions { dir, shard, segment_bytes_max, owner: 0 };
        let opening = Log::<TestEnv>::open(disk.clone(), TailBudget::new(4096), log_options);
        let (log, _) = opening.await.unwrap();
        let shared = Shared::new(Tally::default());
        let mut store = Store::<TestEnv, Tally>::new(log.clone(), shared.clone(), Rc::default(), Arc::default());
        shared.committed.set(None);
        let last = log.log_id(Index(5)).await.unwrap();
        damage_entry(&disk, last.index);
        assert!(store.truncate_after(Some(super::super::types::to_raft(last))).await.is_err());
        assert!(matches!(log.fault(), Some(LogError::Corrupt { .. })), "{:?}", log.fault());
    });
}

/// Flips a bit of an entry's header, wherever it is.
fn damage_entry(disk: &SimDisk, index: Index) {
    let is_store = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "store");
    for path in disk.paths().into_iter().filter(is_store) {
        let content = disk.content(&path);
        let mut blocks = content.chunks_exact(BLOCK_BYTES).map(EntryHeader::parse);
        if let Some(at) = blocks.position(|header| header.is_ok_and(|header| header.id.index == index)) {
            return disk.flip_bit(&path, (at * BLOCK_BYTES) as u64 + 90, 3);
        }
    }
    panic!("entry {index} is not there");
}

/// A start on a full disk: what was committed can be read, proposals are refused as `Full`, nobody waits for ever, closing
/// included; the group leads when space returns.
#[test]
fn start_on_a_full_disk() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        for _ in 0..5 {
            produce(&group, 2, 10).await.unwrap();
        }
        group.close().await.unwrap();
    });
    disk.set_capacity(Some(disk.used_bytes()));
    block_on(async {
        let (group, _) = open(&disk).await;
        assert_eq!((state(&group).records, group.high_watermark(), group.fault()), (10, Offset(10), None));
        assert_eq!(headers(&group).await.iter().map(|header| header.record_count).sum::<u32>(), 10);
        assert!(matches!(produce(&group, 1, 10).await, Err(GroupError::Full(_))));
        // What it waits for is in no file, so that the next start loses nothing by an error here.
        drop(group.close().await);
    });
    block_on(async {
        let (group, _) = open(&disk).await;
        disk.set_capacity(None);
        while let Err(error) = produce(&group, 1, 10).await {
            assert!(matches!(error, GroupError::Full(_) | GroupError::NotLeader { .. }), "{error:?}");
            crate::env::yield_now().await;
        }
        assert_eq!((state(&group).records, group.high_watermark()), (11, Offset(11)));
        group.close().await.unwrap();
    });
}

/// A new group on a disk that is truly full is refused, and nothing of it writes on: a reopen when space is back is the only
/// writer, and begins the group.
#[test]
fn new_group_on_a_full_disk() {
    for free in [0, 8 << 10, 64 << 10, 600 << 10, (1 << 20) - 1] {
        let disk = SimDisk::new();
        disk.set_capacity(Some(disk.used_bytes() + free));
        block_on(async {
            for _ in 0..2 {
                let refused = try_open(&disk).await.err();
                assert!(matches!(refused, Some(GroupError::Full(_))), "{refused:?}, with {free} bytes free");
            }
            let writes = disk.count(Operation::AppendDurable);
            disk.set_capacity(None);
            // More than the log's supply would wait between two looks.
            env::sleep::<TestEnv>(Duration::from_millis(20)).await;
            assert_eq!(disk.count(Operation::AppendDurable), writes, "nobody writes");
            let (group, _) = open(&disk).await;
            produce(&group, 1, 10).await.unwrap();
            let (entries, written) = (group.applied_end().0, disk.count(Operation::AppendDurable) - writes);
            assert!(
                entries >= 3 && written <= entries + 7,
                "{written} writes for {entries} entries, up to three hard states of two slots, and what is flushed"
            );
            group.close().await.unwrap();
        });
    }
}

/// What is committed is never truncated, whoever asks.
#[test]
fn committed_entries_are_not_truncated() {
    use openraft::storage::RaftLogStorage;

    block_on(async {
        let disk = SimDisk::new();
        let (group, _) = open(&disk).await;
        for _ in 0..3 {
            produce(&group, 1, 100).await.unwrap();
        }
        let Inner { log, shared, .. } = &*group.inner;
        let mut store =
            Store::<TestEnv, Tally>::new(log.clone(), shared.clone(), Rc::new(Cell::new(false)), Arc::default());
        let last = log.last().unwrap();
        shared.committed.set(Some(last));
        let below = LogId { index: Index(last.index.0 - 1), ..last };
        let error = store.truncate_after(Some(types::to_raft(below))).await.unwrap_err();
        assert!(error.to_string().contains("are committed"), "{error}");
        assert_eq!(log.last(), Some(last));
        store.truncate_after(Some(types::to_raft(last))).await.unwrap();
        group.close().await.unwrap();
    });
}

/// What a disk that flushes nothing lets gather is counted, from the proposal to the flush, and bounded by who asks whether
/// there is room.
#[test]
fn unflushed_bytes() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        let memory = group.log().memory().clone();
        disk.hold();
        let (first, mut waiting) = (group.log().log_end(), Vec::new());
        while group.has_flush_room() {
            waiting.push(group.propose(batch(first.plus(waiting.len() as u64), 1, 1 << 20)));
            assert_eq!(memory.used_for(Use::Unflushed), group.unflushed_bytes());
            crate::env::yield_now().await;
        }
        assert_eq!(waiting.len(), UNFLUSHED_BYTES_MAX / (1 << 20), "the padding of each is more than a header");
        assert!(group.unflushed_bytes() < UNFLUSHED_BYTES_MAX + (1 << 20));
        disk.release();
        for answer in waiting {
            answer.await.unwrap();
        }
        assert_eq!((group.unflushed_bytes(), memory.used()), (0, 0));
        assert!(memory.peak() <= UNFLUSHED_BYTES_MAX + (2 << 20));
        group.close().await.unwrap();
    });
}
