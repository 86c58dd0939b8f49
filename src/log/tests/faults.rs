//! A disk that refuses: errors stop the log for good, a full disk only makes it wait.

use std::io;

use bytes::Bytes;
use futures_util::FutureExt;

use super::support::*;
use crate::{
    budget::Use,
    env::{Disk, File, OpenMode, runtime::block_on},
    format::{
        entry::{EntryHeader, EntryKind, NewEntry},
        segment::LogPoint,
        state_files::HardStateSlot,
    },
    ids::{Index, NodeId, Offset, Term},
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN, STORAGE_HUNG, STORAGE_SLOW},
    log::{HardState, LogError, Vote, prepare::RETRY},
    sim::{DiskFault, Fault, Operation, PlantedFault, SimDisk, TestEnv},
};

fn fault(operation: Operation, path_contains: &str, error: io::ErrorKind) -> Fault {
    Fault { operation, path_contains: path_contains.into(), skip: 0, times: 1, error }
}

/// One failed append stops the log: those in flight and those behind it get the error, later ones are refused, nothing is
/// retried, what was durable is still read.
#[test]
fn failed_append_stops_the_log() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 5_000).await;
        settle().await;
        disk.hold();
        disk.plant(fault(Operation::AppendDurable, "", io::ErrorKind::Other));
        let first = append(&log, vec![batch(&log, 0, 1, 10)]);
        let second = append(&log, vec![batch(&log, 0, 1, 10)]);
        settle().await;
        let writes = disk.count(Operation::AppendDurable);
        disk.release();
        assert!(matches!(first.await.unwrap(), Err(LogError::Stopped { action: "written", .. })));
        assert!(matches!(second.await.unwrap(), Err(LogError::Stopped { .. })));
        assert!(matches!(log.append(vec![batch(&log, 0, 1, 10)], Box::new(|_| ())), Err(LogError::Stopped { .. })));
        assert!(log.save_hard_state(HardState::default()).await.is_err());
        assert!(log.truncate_after(None).await.is_err());
        assert!(log.has_room(1).is_err());
        assert!(log.close().await.is_err());
        assert!(log.fault().is_some());
        settle().await;
        assert_eq!(disk.count(Operation::AppendDurable), writes, "nothing is written after a failure");
        assert_eq!(log.flushed().unwrap().index, Index(0));
        assert_eq!(log.read(Index(0), Index(1), 1).await.unwrap()[0].payload(), payload(0, 1, 5_000));
        // What failed may or may not be there after a restart; what was acknowledged is.
        let (log, _) = open_with(&disk.crash(1), 64 << 10, 0).await.unwrap();
        assert!(log.last().unwrap().index >= Index(0));
    });
}

/// A device that does not answer is named after a while, and stops the log after a longer one: all who wait hear of it, those
/// for the operation itself too, and nothing is written when the device is back.
#[test]
fn hung_append_stops_the_log() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 5_000).await;
        settle().await;
        disk.hold();
        let first = append(&log, vec![batch(&log, 0, 1, 10)]);
        let second = append(&log, vec![batch(&log, 0, 1, 10)]);
        settle().await;
        assert_eq!(log.look_at_storage(), None, "that is not long");
        TestEnv::advance_us(STORAGE_SLOW.as_micros() as u64);
        let stalled = log.look_at_storage().unwrap();
        assert_eq!(stalled.action, "written");
        assert!(stalled.path.components().count() > 1 && stalled.age >= STORAGE_SLOW, "{stalled}");
        assert_eq!(log.stalled().unwrap().path, stalled.path);
        assert!(log.fault().is_none(), "it goes on when the device does");
        let writes = disk.count(Operation::AppendDurable);
        TestEnv::advance_us(STORAGE_HUNG.as_micros() as u64);
        log.look_at_storage().unwrap();
        let fault = log.fault().unwrap().to_string();
        for waiting in [first, second] {
            assert!(matches!(waiting.await.unwrap(), Err(LogError::Stopped { action: "written", .. })));
        }
        assert!(
            fault.contains(&*stalled.path.to_string_lossy()) && fault.contains("has not answered for 65 s"),
            "{fault}"
        );
        assert_eq!(log.look_at_storage(), None, "nobody waits any more");
        disk.release();
        settle().await;
        assert_eq!(disk.count(Operation::AppendDurable), writes, "nothing is written after that");
        assert!(log.close().await.is_err());
    });
}

/// A failed sync while a segment is sealed or made ahead stops the log as well, and is not tried again.
#[test]
fn failed_sync_stops_the_log() {
    block_on(async {
        for (operation, path) in [
            (Operation::Sync, ".tmp"),
            (Operation::Sync, ""),
            (Operation::Write, ""),
            (Operation::Truncate, ""),
            (Operation::AppendDurable, "hard_state"),
            (Operation::SyncDir, "/"),
            (Operation::Rename, ".spare"),
        ] {
            let disk = SimDisk::new();
            let log = open(&disk).await;
            append_one(&log, 1, 10).await;
            settle().await;
            disk.plant(fault(operation, path, io::ErrorKind::Other));
            for _ in 0..30 {
                if log.fault().is_some() {
                    break;
                }
                drop(log.append(vec![batch(&log, 0, 1, 5_000)], Box::new(|_| ())));
                drop(log.save_hard_state(HardState::default()).await);
                settle().await;
            }
            assert!(matches!(log.fault(), Some(LogError::Stopped { .. })), "{operation:?} {path}");
            let (log, _) = open_with(&disk.crash(1), 64 << 10, 0).await.unwrap();
            read_all(&log, 1 << 20).await.unwrap();
        }
    });
}

/// A read error is an error of that read.
#[test]
fn failed_read() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, _) = open_with(&disk, 64 << 10, 0).await.unwrap();
        append_one(&log, 1, 10).await;
        append_one(&log, 1, 10).await;
        settle().await;
        disk.plant(Fault { times: u64::MAX, ..fault(Operation::Read, "", io::ErrorKind::Other) });
        assert!(matches!(log.read(Index(0), Index(1), 1).await, Err(LogError::Io { .. })));
        disk.heal();
        assert_eq!(log.read(Index(0), Index(1), 1).await.unwrap().len(), 1);
        append_one(&log, 1, 10).await;
    });
}

/// A disk that fills up: `has_room` says so in time, everything admitted becomes durable, Raft's own entries still fit,
/// reads go on, and it recovers when space returns.
#[test]
fn full_disk() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, _) = open_with(&disk, 1 << 20, 0).await.unwrap();
        append_one(&log, 1, 10).await;
        settle().await;
        disk.set_capacity(Some(disk.used_bytes() + (1 << 20) + 5_000));
        let mut admitted = 1;
        let refused = loop {
            let entry = batch(&log, 0, 1, 50_000);
            match log.has_room(entry.buffer.padded_len()) {
                Ok(()) => append(&log, vec![entry]).await.unwrap().unwrap(),
                Err(error) => break error,
            }
            admitted += 1;
            settle().await;
            assert!(admitted < 1_000);
        };
        assert!(matches!(refused, LogError::Full { .. }), "{refused}");
        assert!(admitted > 20, "{admitted}");
        for _ in 0..4 {
            let blank = entry(EntryKind::Blank, admitted, 1, Offset(0), 0, 0);
            append(&log, vec![blank]).await.unwrap().unwrap();
            admitted += 1;
        }
        assert!(log.has_room(50_000).is_err());
        assert_eq!(read_all(&log, 1 << 20).await.unwrap().len() as u64, admitted);
        assert!(log.fault().is_none());
        disk.set_capacity(None);
        TestEnv::advance_us(1_000_000);
        drop(log.has_room(50_000));
        settle().await;
        assert!(log.has_room(50_000).is_ok());
        for _ in 0..50 {
            append_one(&log, 1, 50_000).await;
        }
    });
}

/// A restart by itself makes nothing larger: neither a log with little in it nor one with much, cleanly or not, whether an
/// entry comes at once (a new leader's) or not; and a log that fills fast gets larger segments all the same.
#[test]
fn restarts_grow_nothing() {
    for (entries, is_clean) in [(1, true), (1, false), (40, true), (40, false), (245, true), (245, false)] {
        block_on(async {
            let mut disk = SimDisk::new();
            let (mut log, _) = open_with(&disk, 64 << 20, 0).await.unwrap();
            for _ in 0..entries {
                // A rate that suits the smallest size.
                TestEnv::advance_us(1_000_000);
                append_one(&log, 1, 10).await;
                settle().await;
            }
            let mut most = disk.used_bytes();
            for restart in 0..4 {
                if is_clean {
                    log.close().await.unwrap();
                } else {
                    log.abandon().await;
                    disk = disk.crash(restart);
                }
                log = open_with(&disk, 64 << 20, 0).await.unwrap().0;
                append_one(&log, 1, 10).await;
                settle().await;
                let (used, files) = (disk.used_bytes(), names(&disk));
                // An open segment that is nearly full is followed by another one of its size.
                let ends = (entries + restart) * 4096 > 700 << 10;
                let allowed = if ends { 2 * SEGMENT_BYTES_MIN } else { 0 };
                assert!(used <= most + allowed + 20_000, "{entries}: {used} bytes after {most}, {files:?}");
                most = most.max(used);
            }
            for _ in 0..60 {
                append_one(&log, 1, 60_000).await;
            }
            settle().await;
            assert!(log.segments().iter().any(|segment| segment.bytes > 2 << 20), "{:?}", log.segments());
        });
    }
}

/// Entries that were admitted on credit wait for space and are written when it returns; close does not wait for ever.
#[test]
fn admitted_entries_wait_for_space() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        disk.set_capacity(Some(disk.used_bytes() + 10_000));
        let waiting = append(&log, vec![batch(&log, 0, 1, 10)]);
        for _ in 0..20 {
            settle().await;
            crate::env::yield_now().await;
        }
        assert!(matches!(log.has_room(1), Err(LogError::Full { .. })));
        assert!(log.fault().is_none());
        assert_eq!(log.read(Index(0), Index(1), 1).await.unwrap().len(), 1);
        assert!(matches!(log.close().await, Err(LogError::Full { .. })));
        disk.set_capacity(None);
        waiting.await.unwrap().unwrap();
        log.close().await.unwrap();
        assert_eq!(read_all(&open(&disk).await, 1).await.unwrap().len(), 1);
    });
}

/// Callbacks may use the log: append from within a callback, look at it, drop it.
#[test]
fn callbacks_may_append() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        let events = Events::default();
        let (inner, seen) = (log.clone(), events.clone());
        let done = Box::new(move |result: Result<(), LogError>| {
            result.unwrap();
            assert_eq!(inner.flushed(), inner.last());
            seen.borrow_mut().push("outer");
            inner.append(vec![batch(&inner, 0, 1, 10)], event(&seen, "inner")).unwrap();
        });
        log.append(vec![batch(&log, 0, 1, 10)], done).unwrap();
        settle().await;
        assert_eq!(*events.borrow(), ["outer", "inner"]);
    });
}

/// The tail's budget is shared and kept, except for what is not durable yet; a dropped log gives its part back.
#[test]
fn tail_budget() {
    block_on(async {
        let disk = SimDisk::new();
        let budget = crate::log::TailBudget::new(50_000);
        let first = TestLog::open(disk.clone(), budget.clone(), options(64 << 10)).await.unwrap().0;
        let elsewhere = crate::log::LogOptions { dir: "/data/shards/43".into(), ..options(64 << 10) };
        let second = TestLog::open(disk.clone(), budget.clone(), elsewhere).await.unwrap().0;
        for _ in 0..20 {
            append_one(&first, 1, 5_000).await;
            append_one(&second, 1, 5_000).await;
            assert!(budget.bytes() <= 50_000);
        }
        disk.hold();
        let pending: Vec<_> = (0..20).map(|_| append(&first, vec![batch(&first, 0, 1, 5_000)])).collect();
        let unflushed = || budget.memory().used_for(Use::Unflushed);
        assert!(budget.bytes() <= 50_000);
        assert_eq!(unflushed(), 20 * 8_192, "what is in flight is never forgotten, and counts elsewhere");
        assert_eq!(first.unflushed_bytes(), unflushed());
        assert_eq!(first.read(Index(20), Index(40), usize::MAX).await.unwrap().len(), 20);
        disk.release();
        for done in pending {
            done.await.unwrap().unwrap();
        }
        append_one(&second, 1, 10).await;
        assert!(budget.bytes() <= 50_000, "{}", budget.bytes());
        assert_eq!((unflushed(), first.unflushed_bytes()), (0, 0));
        assert_eq!(read_all(&first, 1 << 20).await.unwrap().len(), 40);
        settle().await;
        drop((first, second));
        settle().await;
        assert_eq!(budget.bytes(), 0);
    });
}

/// A log that is given up drops what waits, tells so, lets what is in flight land, and writes nothing more: whoever opens the
/// directory next is the only writer.
#[test]
fn abandoned() {
    let disk = SimDisk::new();
    block_on(async {
        let log = open(&disk).await;
        append(&log, vec![batch(&log, 0, 1, 10)]).await.unwrap().unwrap();
        disk.hold();
        let flying = append(&log, vec![batch(&log, 0, 1, 10)]);
        let waiting = append(&log, vec![batch(&log, 0, 1, 10)]);
        let saving = log.save_hard_state(HardState::default());
        let (writes, releasing) = (disk.count(Operation::AppendDurable), disk.clone());
        let release = async move {
            crate::env::sleep::<TestEnv>(std::time::Duration::from_millis(5)).await;
            releasing.release();
        };
        let (saved, (), ()) = futures_util::future::join3(saving, log.abandon(), release).await;
        assert!(matches!(saved, Err(LogError::Stopped { .. })), "{saved:?}");
        assert!(flying.await.unwrap().is_ok(), "it was with the device");
        assert!(matches!(waiting.await.unwrap(), Err(LogError::Stopped { .. })));
        assert!(matches!(log.stopped().await, LogError::Stopped { .. }));
        assert_eq!(disk.count(Operation::AppendDurable), writes);
        let (again, _) = open_with(&disk, 64 << 10, 20_000).await.unwrap();
        assert_eq!(again.last().unwrap().index, Index(1));
        append(&again, vec![batch(&again, 0, 1, 10)]).await.unwrap().unwrap();
        again.close().await.unwrap();
    });
}

/// An entry that does not continue the leader's chain is not written: the log has stopped, and says which entry it was.
#[test]
fn diverged() {
    let (disk, leader_disk) = (SimDisk::new(), SimDisk::new());
    block_on(async {
        let (log, leader) = (open(&disk).await, open(&leader_disk).await);
        for log in [&log, &leader] {
            append(log, vec![batch(log, 0, 2, 10)]).await.unwrap().unwrap();
        }
        append(&leader, vec![batch(&leader, 0, 2, 30)]).await.unwrap().unwrap();
        let theirs = leader.read(Index(1), Index(2), 0).await.unwrap().remove(0);
        let entry = |header: EntryHeader| NewEntry {
            leader: Some(header),
            record_timestamp_max_us: header.timestamp_max_us,
            ..batch(&log, 0, 2, 30)
        };
        let writes = disk.count(Operation::AppendDurable);
        let wrong = EntryHeader { chain: theirs.header.chain ^ 1, ..theirs.header };
        let refused = log.append(vec![entry(wrong)], Box::new(|_| panic!("nothing was added")));
        assert!(matches!(refused, Err(LogError::Diverged { id, .. }) if id == theirs.header.id), "{refused:?}");
        assert!(matches!(log.fault(), Some(LogError::Diverged { .. })));
        assert_eq!(disk.count(Operation::AppendDurable), writes);
        let again = open(&disk).await;
        append(&again, vec![entry(theirs.header)]).await.unwrap().unwrap();
        assert_eq!((again.chain(), again.last()), (leader.chain(), leader.last()));
    });
}

/// What a log that has stopped did not flush keeps its memory, as readers get it; but nobody waits for its flush any more. With
/// the log it is given back.
#[test]
fn unflushed_when_stopped() {
    block_on(async {
        let disk = SimDisk::new();
        let budget = crate::log::TailBudget::new(50_000);
        let log = TestLog::open(disk.clone(), budget.clone(), options(64 << 10)).await.unwrap().0;
        let memory = budget.memory();
        append_one(&log, 1, 10).await;
        disk.hold();
        let pending: Vec<_> = (0..3).map(|_| append(&log, vec![batch(&log, 0, 1, 5_000)])).collect();
        assert_eq!((memory.used_for(Use::Unflushed), memory.used_for(Use::Stopped)), (3 * 8_192, 0));
        log.condemn(LogError::Corrupt { file: "store".into(), position: 0, what: "test".into() });
        assert_eq!((memory.used_for(Use::Unflushed), memory.used_for(Use::Stopped)), (0, 3 * 8_192));
        disk.release();
        settle().await;
        assert!(memory.used_for(Use::Stopped) < 3 * 8_192, "the write that was under way has landed");
        drop((log, pending));
        settle().await;
        assert_eq!(memory.used(), 0);
    });
}

/// A process without descriptors makes a log wait that needs a new file, and nothing more: it goes on when there are some
/// again, and nothing is lost.
#[test]
fn no_descriptors_for_a_while() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        let planted = |times| PlantedFault {
            fault: DiskFault::NoDescriptor,
            path_contains: ".tmp".to_owned(),
            chance_ppm: 1_000_000,
            times,
        };
        for round in 0..6 {
            disk.plant_fault(planted(3));
            // Each fills more than a half of a segment.
            let (first, second) = (batch(&log, 0, 1, 40_000), batch(&log, 1, 1, 40_000));
            let appended = append(&log, vec![first, second]);
            appended.await.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        disk.heal();
        assert!(log.fault().is_none());
        assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 12);
        log.close().await.unwrap();
        let (log, _) = open_with(&disk.crash(1), 64 << 10, 0).await.unwrap();
        assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 12);
    });
}

/// Nor does a log stop that cannot make its next file for want of memory, wherever that shows: what was begun is dropped, and made
/// anew. A directory whose sync fails is not synced again.
#[test]
fn no_memory_for_a_while() {
    block_on(async {
        for operation in [Operation::Open, Operation::Write, Operation::Rename] {
            let disk = SimDisk::new();
            let log = open(&disk).await;
            for _ in 0..6 {
                disk.plant(Fault { times: 3, ..fault(operation, ".tmp", io::ErrorKind::OutOfMemory) });
                let (first, second) = (batch(&log, 0, 1, 40_000), batch(&log, 1, 1, 40_000));
                append(&log, vec![first, second]).await.unwrap().unwrap();
                settle().await;
            }
            disk.heal();
            assert!(log.fault().is_none(), "{operation:?}");
            log.close().await.unwrap();
            assert!(!names(&disk).iter().any(|name| name.ends_with(".tmp")), "{operation:?}: {:?}", names(&disk));
            let (log, _) = open_with(&disk.crash(1), 64 << 10, 0).await.unwrap();
            assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 12);
        }
        let disk = SimDisk::new();
        let log = open(&disk).await;
        disk.plant(fault(Operation::SyncDir, "shards/42", io::ErrorKind::OutOfMemory));
        while log.fault().is_none() {
            drop(log.append(vec![batch(&log, 0, 1, 40_000)], Box::new(|_| ())));
            settle().await;
        }
    });
}

/// A log with an entry of 40,000 bytes, and the segment ready that the next one of that size begins.
async fn before_a_roll(disk: &SimDisk) -> TestLog {
    let log = open(disk).await;
    append_one(&log, 1, 40_000).await;
    while !names(disk).iter().any(|name| name.ends_with(".spare")) {
        settle().await;
    }
    settle().await;
    log
}

/// Nor does a log stop that finds no descriptor to sync its directory with, when a segment has got its lasting name: nothing was
/// synced, and it goes on when there is one.
#[test]
fn no_descriptor_for_a_name() {
    block_on(async {
        let disk = SimDisk::new();
        let log = before_a_roll(&disk).await;
        disk.lack_descriptors(DIR);
        let before = disk.count(Operation::SyncDir);
        let appended = append(&log, vec![batch(&log, 0, 1, 40_000)]);
        while disk.count(Operation::SyncDir) < before + 3 && log.fault().is_none() {
            crate::env::sleep::<TestEnv>(std::time::Duration::from_millis(1)).await;
        }
        assert!(log.fault().is_none(), "{:?}", log.fault());
        disk.heal();
        appended.await.unwrap().unwrap();
        for _ in 0..4 {
            append_one(&log, 1, 40_000).await;
        }
        log.close().await.unwrap();
        let (log, _) = open_with(&disk.crash(1), 64 << 10, 0).await.unwrap();
        assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 6);
    });
}

/// A vote whose save the power has interrupted is in one copy, or in none that is durable, when it is found. Once a log has opened with it,
/// it bears the loss of either copy, and of what the process before had not flushed.
#[test]
fn an_interrupted_vote() {
    let voted =
        |term| HardState { vote: Some(Vote { term: Term(term), node: NodeId(2), committed: false }), committed: None };
    let interrupted = async |entries: u32| {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..entries {
            append_one(&log, 1, 10).await;
        }
        log.save_hard_state(voted(7)).await.unwrap();
        let left = power_fails(&disk, 1).await;
        let file = left.open(&path("hard_state"), OpenMode::Append).await.unwrap();
        let newest = || {
            let content = left.content(path("hard_state"));
            let slots = content.chunks(BLOCK_BYTES).map(|block| HardStateSlot::parse(block).unwrap());
            slots.max_by_key(|slot| slot.sequence).unwrap()
        };
        // Of the two copies of the next one the first is written.
        let slot = HardStateSlot { sequence: newest().sequence + 1, state: voted(8), ..newest() };
        file.append_durable(slot.sequence % 2 * BLOCK_BYTES as u64, vec![slot.encode()]).await.unwrap();
        assert_eq!(open(&left).await.hard_state(), voted(8));
        for slot in 0..2 {
            let damaged = left.crash(slot);
            damaged.flip_bit(path("hard_state"), slot * BLOCK_BYTES as u64 + 10, 0);
            assert_eq!(open(&damaged).await.hard_state(), voted(8), "slot {slot} is damaged");
        }

        // The process ends between its writes and their flush.
        let newest = newest();
        for sequence in [newest.sequence + 1, newest.sequence + 2] {
            let slot = HardStateSlot { sequence, state: voted(9), ..newest };
            file.write_at(sequence % 2 * BLOCK_BYTES as u64, vec![slot.encode()]).await.unwrap();
        }
        assert_eq!(open(&left).await.hard_state(), voted(9));
        for seed in 0..16 {
            assert_eq!(open(&left.crash(seed)).await.hard_state(), voted(9), "seed {seed}");
        }
    };
    block_on(async {
        for entries in 0..2 {
            interrupted(entries).await;
        }
    });
}

/// A log does not begin behind the base of a segment whose lasting name is not durable: after a power failure that segment would pass
/// for a recycled file, and the entries that stay would go with it.
#[test]
fn no_purge_before_the_name() {
    block_on(async {
        let disk = SimDisk::new();
        let log = before_a_roll(&disk).await;
        disk.lack_descriptors(DIR);
        // Into the second segment, whose new name cannot be synced; the log is to begin in it before it is written.
        disk.hold_at(".spare");
        let appended = append(&log, vec![batch(&log, 0, 1, 40_000)]);
        let last = append(&log, vec![batch(&log, 0, 1, 10)]);
        let to = LogPoint { next: Index(2), ..log.end() };
        // The first one is sealed meanwhile.
        settle().await;
        let mut purged = Box::pin(log.purge(to));
        assert!(purged.as_mut().now_or_never().is_none());
        disk.release();
        appended.await.unwrap().unwrap();
        last.await.unwrap().unwrap();
        tokio::select! {
            biased;
            purged = &mut purged => panic!("it waits for the name: {purged:?}"),
            () = crate::env::sleep::<TestEnv>(4 * RETRY) => {}
        }
        for seed in 0..16 {
            let (log, _) = open_with(&disk.crash(seed), 64 << 10, 0).await.unwrap();
            assert_eq!(log.last().map(|last| last.index), Some(Index(2)), "seed {seed}");
            assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 3);
        }
        disk.heal();
        purged.await.unwrap();
        assert_eq!(log.first_index(), Index(2));
    });
}

/// No segment gets a name that an earlier one of the same base offset had: its file may still be there, about to be removed.
#[test]
fn no_name_twice() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        let blank = |index| entry(EntryKind::Blank, index, 1, Offset(0), 0, 40_000);
        append(&log, vec![blank(0)]).await.unwrap().unwrap();
        settle().await;
        let first = names(&disk).into_iter().find(|name| name.ends_with(".store")).unwrap();
        log.purge(log.end()).await.unwrap();
        append(&log, vec![blank(1)]).await.unwrap().unwrap();
        settle().await;
        let second = names(&disk).into_iter().find(|name| name.ends_with(".store")).unwrap();
        assert_ne!(first, second);
        drop(log);
        let log = open(&power_fails(&disk, 1).await).await;
        assert_eq!((log.first_index(), log.last().map(|last| last.index)), (Index(1), Some(Index(1))));
    });
}

/// What waits for a descriptor waits no longer when the log is to close, and is no reason to stop the log.
#[test]
fn no_descriptor_at_the_end() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 10).await;
        disk.lack_descriptors(DIR);
        let mut saving = Box::pin(log.save_checkpoint(Index(0), Bytes::from_static(b"state")));
        tokio::select! {
            biased;
            saved = &mut saving => panic!("it waits: {saved:?}"),
            () = crate::env::sleep::<TestEnv>(4 * RETRY) => {}
        }
        log.announce_close();
        let saved = saving.await;
        assert!(matches!(saved, Err(LogError::Io { .. })), "{saved:?}");
        assert!(log.fault().is_none());
        disk.heal();
        log.close().await.unwrap();
    });
}

/// A log that writes zeros ahead, of a segment for which that takes long.
async fn makes_a_file(disk: &SimDisk) -> TestLog {
    let (log, _) = open_with(disk, 64 << 20, 0).await.unwrap();
    let begun = || names(disk).iter().any(|name| name.ends_with(".tmp"));
    // Segments grow while they fill fast.
    while !begun() || disk.count(Operation::Write) < 8 {
        append_one(&log, 1, 200_000).await;
        settle().await;
    }
    log
}

/// A log that closes while zeros are written ahead does not wait for all of them, and is closed cleanly.
#[test]
fn close_ends_the_making_of_a_file() {
    block_on(async {
        let disk = SimDisk::new();
        let log = makes_a_file(&disk).await;
        let before = disk.count(Operation::Write);
        log.close().await.unwrap();
        let during = disk.count(Operation::Write) - before;
        // One that was under way, and an index.
        assert!(during <= 3, "{during} writes while it closed");
        assert!(
            !names(&disk).iter().any(|name| name.ends_with(".tmp") || name.ends_with(".spare")),
            "{:?}",
            names(&disk)
        );
        let (log, recovered) = open_with(&disk, 64 << 20, 0).await.unwrap();
        assert!(log.fault().is_none(), "{recovered:?}");
    });
}

/// A log that is given up does not wait for all of them, either; the fault stays the one for which it is given up.
#[test]
fn abandon_ends_the_making_of_a_file() {
    block_on(async {
        let disk = SimDisk::new();
        let log = makes_a_file(&disk).await;
        let before = disk.count(Operation::Write);
        log.condemn(LogError::Corrupt { file: "store".into(), position: 0, what: "test".into() });
        log.abandon().await;
        let during = disk.count(Operation::Write) - before;
        assert!(during <= 2, "{during} writes while it was given up");
        assert!(matches!(log.fault(), Some(LogError::Corrupt { .. })), "{:?}", log.fault());
        let writes = disk.count(Operation::Write);
        settle().await;
        assert_eq!(disk.count(Operation::Write), writes, "nothing is written any more");
        let (log, _) = open_with(&disk, 64 << 20, 0).await.unwrap();
        append_one(&log, 1, 200_000).await;
    });
}

/// Commands get the reserve of a full disk. When it is spent they are refused, like records, and do not wait without a bound; and
/// they are taken again when there is space.
#[test]
fn commands_when_the_reserve_is_spent() {
    block_on(async {
        let disk = SimDisk::new();
        disk.keep_reserve(1 << 20);
        let log = open(&disk).await;
        disk.set_capacity(Some(disk.used_bytes()));
        assert!(log.has_room_for_command(100).is_ok(), "on credit");
        let command = entry(EntryKind::Blank, 0, 1, Offset(0), 0, 0);
        let waiting = append(&log, vec![command]);
        settle().await;
        assert!(matches!(log.has_room_for_command(100), Err(LogError::Full { .. })));
        assert!(log.fault().is_none());
        disk.set_capacity(None);
        waiting.await.unwrap().unwrap();
        settle().await;
        assert!(log.has_room_for_command(100).is_ok());
    });
}
