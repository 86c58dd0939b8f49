//! What a group keeps over closes, crashes and purges.

use std::io;

use super::{cluster::guard, *};
use crate::{
    env::{Disk, runtime::block_on},
    sim::{Fault, Operation},
};

/// Proposals get their places in the order of the calls; all is there after a clean close, and nothing is replayed.
#[test]
fn close_and_reopen() {
    let disk = SimDisk::new();
    let (before, seen) = block_on(async {
        let (group, _) = open(&disk).await;
        assert_eq!(group.leader().0, Some(NodeId(3)));
        let mut answers = Vec::new();
        for number in 0..50 {
            answers.push(group.propose(batch(Offset(3 * number), 3, 100)));
        }
        let command = group.propose(command(5));
        for (number, answer) in answers.into_iter().enumerate() {
            let header = answer.await.unwrap().header;
            assert_eq!((header.kind, header.base_offset), (EntryKind::Batch, Offset(3 * number as u64)));
        }
        assert_eq!(command.await.unwrap().answer, state(&group));
        assert_eq!(group.high_watermark(), Offset(150));
        let seen = (state(&group), headers(&group).await);
        group.close().await.unwrap();
        assert!(matches!(group.propose(batch(Offset(150), 1, 1)).await, Err(GroupError::Stopped { .. })));
        (group.applied_end(), seen)
    });
    block_on(async {
        let (group, recovered) = open(&disk).await;
        assert!(recovered.clean);
        assert_eq!(state(&group), seen.0);
        assert_eq!(state(&group), TallyState { records: 150, commands: 5, voids: 0, ..seen.0 });
        assert_eq!(group.with_machine(|machine| machine.applied.get()), 0, "the checkpoint had it all");
        assert_eq!(headers(&group).await[..seen.1.len()], seen.1);
        assert_eq!(group.high_watermark(), Offset(150));
        assert!(group.applied_end() > before, "the new term began with an entry");
        assert_eq!(produce(&group, 2, 10).await.unwrap().header.base_offset, Offset(150));
        group.close().await.unwrap();
    });
}

/// A close does not wait for descriptors: the checkpoint that they lack for would only shorten the next start.
#[test]
fn closes_without_descriptors() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        produce(&group, 3, 100).await.unwrap();
        disk.lack_descriptors("/shards/");
        let closed = guard("close", group.close()).await;
        assert!(matches!(closed, Err(GroupError::Stopped { .. })), "its last step needs one: {closed:?}");
        disk.heal();
        drop(group);
        let (group, recovered) = open(&disk).await;
        assert!(recovered.clean, "its last segment has its footer");
        assert_eq!(group.high_watermark(), Offset(3));
        group.close().await.unwrap();
    });
}

/// Nor does it wait for entries whose segment gets no file; what was acknowledged is there afterwards.
#[test]
fn closes_without_a_file() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        produce(&group, 3, 100).await.unwrap();
        disk.lack_descriptors("/shards/");
        let entries = SEGMENT_BYTES_MIN / 400_000 + 1;
        let offered: Vec<_> = (0..entries).map(|n| group.propose(batch(Offset(3 + n), 1, 400_000))).collect();
        let starves = async {
            while !group.log().is_starved() {
                env::sleep::<TestEnv>(Duration::from_millis(1)).await;
            }
        };
        guard("an entry without a file", starves).await;
        let closed = guard("close", group.close()).await;
        assert!(matches!(closed, Err(GroupError::Stopped { .. })), "{closed:?}");
        guard("its end", group.abandon()).await;
        drop((offered, group));
        disk.heal();
        let (group, _) = open(&disk).await;
        assert!(group.high_watermark() >= Offset(3));
        group.close().await.unwrap();
    });
}

/// A leader's snapshot that was kept, and then the power failed before the log was cut for it, does not keep a replica closed.
#[test]
fn a_snapshot_of_another_history() {
    block_on(async {
        let theirs = SimDisk::new();
        let (group, _) = open(&theirs).await;
        for _ in 0..5 {
            produce(&group, 1, 200).await.unwrap();
        }
        group.close().await.unwrap();
        let checkpoint = theirs.paths().into_iter().rfind(|path| path.extension().is_some_and(|it| it == "checkpoint"));
        let checkpoint = checkpoint.expect("a close keeps one");

        let disk = SimDisk::new();
        let (group, _) = open(&disk).await;
        for _ in 0..6 {
            produce(&group, 1, 100).await.unwrap();
        }
        let disk = disk.crash(1);
        disk.write_file(&checkpoint, theirs.content(&checkpoint).into()).await.unwrap();
        let (group, _) = open(&disk).await;
        assert_eq!(group.high_watermark(), Offset(6));
        assert!(!disk.paths().contains(&checkpoint), "it is of no use");
        group.close().await.unwrap();
    });
}

/// Nor does the opening of an only replica: a new one is refused as one that may be made later, and one with records is opened, to be
/// read.
#[test]
fn opens_without_a_file() {
    block_on(async {
        let disk = SimDisk::new();
        disk.lack_descriptors(".tmp");
        let opened = guard("a new group", try_open(&disk)).await;
        assert!(matches!(opened, Err(GroupError::Starved { .. })), "{:?}", opened.err());
        disk.heal();
        let (group, _) = open(&disk).await;
        produce(&group, 3, 100).await.unwrap();
        group.close().await.unwrap();
        drop(group);
        // The log looks at its last segment some times; what opens it after that is to extend it.
        let (operation, path_contains) = (Operation::Open, ".store".to_owned());
        let out_of_memory = |skip| Fault {
            operation,
            path_contains: path_contains.clone(),
            skip,
            times: u64::MAX,
            error: io::ErrorKind::OutOfMemory,
        };
        let mut skip = 0;
        let group = loop {
            disk.plant(out_of_memory(skip));
            match guard("a group with records", try_open(&disk)).await {
                Ok((group, _)) => break group,
                Err(error) => assert!(matches!(error, GroupError::Starved { .. }), "{error:?}"),
            }
            disk.heal();
            skip += 1;
        };
        assert!(group.log().is_starved());
        assert_eq!(group.high_watermark(), Offset(3));
        disk.heal();
        produce(&group, 1, 100).await.unwrap();
        group.close().await.unwrap();
    });
}

/// Whatever the crash does to what was in flight, everything acknowledged is there afterwards, at its place.
#[test]
fn crash_keeps_what_was_acknowledged() {
    for seed in 0..16 {
        println!("seed {seed}: cargo test crash_keeps_what_was_acknowledged");
        let mut disk = SimDisk::new().with_latency(seed);
        let mut acknowledged: Vec<EntryHeader> = Vec::new();
        let mut term = Term(0);
        for life in 0..3 {
            let (next, acks) = block_on(async {
                let (group, _) = open(&disk).await;
                assert!(group.leader().1 > term, "a leader never goes on in its old term after a restart");
                term = group.leader().1;
                check(&group, &acknowledged).await;
                let mut acks = Vec::new();
                let waiting: Vec<_> = (0..10)
                    .map(|number| group.propose(batch(Offset(group.log().log_end().0 + 2 * number), 2, 30_000)))
                    .collect();
                for answer in waiting.into_iter().take((seed as usize + life) % 10) {
                    acks.push(answer.await.unwrap().header);
                }
                // The others are on their way.
                let next = disk.crash(seed * 3 + life as u64).with_latency(seed + 1);
                disk.power_off();
                (next, acks)
            });
            acknowledged.extend(acks);
            disk = next;
        }
        block_on(async {
            let (group, _) = open(&disk).await;
            check(&group, &acknowledged).await;
            group.close().await.unwrap();
        });
    }
}

/// Every acknowledged entry is in the log and the machine is the log's.
async fn check(group: &TestGroup, acknowledged: &[EntryHeader]) {
    let headers = headers(group).await;
    let first = group.log().first_index();
    for header in acknowledged {
        // The durable watermark and the file differ after a recovery that wrote the segment anew; the chain does not.
        let found = headers[(header.id.index.0 - first.0) as usize];
        assert_eq!((found.id, found.chain, found.base_offset), (header.id, header.chain, header.base_offset));
    }
    let records: u64 = headers.iter().map(|header| u64::from(header.record_count)).sum();
    assert_eq!(state(group).records, records);
    assert_eq!(group.high_watermark(), group.log().log_end());
}

/// A batch encoded for a place that another one took becomes void: it takes an index, and no offset.
#[test]
fn void_batches() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        let first = group.propose(batch(Offset(0), 4, 10));
        let second = group.propose(batch(Offset(0), 4, 10));
        assert_eq!(first.await.unwrap().header.kind, EntryKind::Batch);
        let void = second.await.unwrap();
        assert_eq!((void.header.kind, void.header.base_offset), (EntryKind::Void, Offset(4)));
        assert_eq!((void.answer.records, void.answer.voids), (4, 1));
        assert_eq!(group.high_watermark(), Offset(4));
        assert_eq!(produce(&group, 1, 10).await.unwrap().header.base_offset, Offset(4));
        group.close().await.unwrap();
    });
}

/// A proposal whose future is dropped is made all the same, and keeps its place.
#[test]
fn dropped_futures() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        drop(group.propose(batch(Offset(0), 2, 10)));
        let after = group.propose(batch(Offset(2), 1, 10)).await.unwrap();
        assert_eq!((after.header.kind, after.header.base_offset), (EntryKind::Batch, Offset(2)));
        group.close().await.unwrap();
    });
}

/// Who waits for records above an offset is woken by them, and by the close.
#[test]
fn waits() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        let (above, never) = (group.wait_above(Offset(0)), group.wait_above(Offset(100)));
        let (woken, mut first) = channel::oneshot();
        let (ended, mut second) = channel::oneshot();
        env::spawn::<TestEnv>(async move {
            above.await;
            woken.send(()).unwrap();
            never.await;
            ended.send(()).unwrap();
        });
        assert_eq!(first.try_recv(), Ok(None));
        produce(&group, 1, 10).await.unwrap();
        first.await.unwrap();
        assert_eq!(second.try_recv(), Ok(None));
        group.close().await.unwrap();
        second.await.unwrap();
    });
}

/// Fills segments until there are checkpoints at the ends of at least two.
pub(super) async fn fill_segments(group: &TestGroup) {
    while group.log().checkpoints().len() < 3 {
        produce(group, 5, 60_000).await.unwrap();
    }
}

/// A replay after a crash begins at the newest checkpoint, not at the beginning.
#[test]
fn replay_is_short() {
    let disk = SimDisk::new();
    let (crashed, before, entries) = block_on(async {
        let (group, _) = open(&disk).await;
        fill_segments(&group).await;
        (disk.crash(1), state(&group), group.applied_end().0)
    });
    block_on(async {
        let (group, recovered) = open(&crashed).await;
        assert!(!recovered.clean);
        assert_eq!(state(&group), before);
        let replayed = group.with_machine(|machine| machine.applied.get());
        assert!(replayed < entries / 2, "{replayed} of {entries} entries were applied again");
        group.close().await.unwrap();
    });
}

/// A purge goes exactly to a checkpoint; what is left, the state and the order survive a close and a crash.
#[test]
fn purge_and_reopen() {
    let disk = SimDisk::new();
    let (mut disk, expected, purged) = block_on(async {
        let (group, _) = open(&disk).await;
        group.purge_to(Index(u64::MAX)).await.unwrap();
        assert_eq!(group.log().first_index(), Index(0), "there is no checkpoint to purge to");
        fill_segments(&group).await;
        let boundary = group.log().checkpoints()[1];
        let applied = group.applied_end();
        group.purge_to(boundary.next()).await.unwrap();
        assert_eq!(group.log().purged().map(|id| id.index), Some(boundary));
        assert_eq!(group.log().first_index(), boundary.next());
        assert_eq!(group.applied_end(), applied, "a purge changes no state");
        group.purge_to(boundary).await.unwrap();
        produce(&group, 1, 10).await.unwrap();
        let expected = state(&group);
        group.close().await.unwrap();
        (disk, expected, boundary)
    });
    for crash in [false, true] {
        disk = block_on(async {
            let (group, _) = open(&disk).await;
            assert_eq!(state(&group), expected);
            assert_eq!(group.log().purged().map(|id| id.index), Some(purged));
            assert_eq!(headers(&group).await[0].id.index, purged.next());
            if crash {
                group.close().await.unwrap();
                return disk.clone();
            }
            disk.crash(5)
        });
    }
    // Purges go on after a restart, which knows only the checkpoint at the log's start.
    block_on(async {
        let (group, _) = open(&disk).await;
        let newest = *group.log().checkpoints().last().unwrap();
        group.purge_to(newest).await.unwrap();
        assert_eq!(group.log().purged().map(|id| id.index), Some(newest));
        assert_eq!(state(&group), expected);
        group.close().await.unwrap();
    });
}

/// A proposal alone costs one durable write and nothing else: the committed id is written with something else.
#[test]
fn one_write_per_proposal() {
    let disk = SimDisk::new();
    block_on(async {
        let (group, _) = open(&disk).await;
        produce(&group, 1, 10).await.unwrap();
        let counts = || [Operation::AppendDurable, Operation::Write, Operation::Sync].map(|kind| disk.count(kind));
        let before = counts();
        // Less than the 64 KiB after which the log makes its next segment, which is another file's writes.
        for _ in 0..10 {
            produce(&group, 1, 10).await.unwrap();
        }
        let after = counts();
        assert_eq!(after[0] - before[0], 10);
        assert_eq!(after[1..], before[1..]);
        group.close().await.unwrap();
    });
}
