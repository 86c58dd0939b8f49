//! Retention and trim down to the files.

use super::*;
use crate::{
    env::{Disk, reserve},
    limits::BLOCK_BYTES,
    shard::retention::Retention,
};

/// Fills about this many segments.
async fn fill(shard: &TestShard, segments: u64) {
    let until = shard.inner.group.log().segments().len() as u64 + segments;
    while (shard.inner.group.log().segments().len() as u64) < until {
        shard.produce(large(BLOCK_BYTES * 4)).await.unwrap();
    }
    settle().await;
}

/// What is kept reads well, from the log start on, and nothing below is served.
async fn check(shard: &TestShard) {
    let status = shard.status();
    let kept = contents(shard).await;
    assert!(kept.keys().copied().eq(status.log_start.0..status.high_watermark.0));
    if status.log_start > Offset(0) {
        let below = shard.consume(at(status.log_start.0 - 1)).await;
        assert!(matches!(below, Err(ShardError::OutOfRange { .. })));
    }
}

/// By size: whole segments go, the oldest first, until the rest fits; the log goes on, also after a restart.
#[test]
fn by_size() {
    with_shard(|shard, disk| async move {
        fill(&shard, 4).await;
        let before = shard.status();
        let bytes_max = before.size_bytes / 2;
        shard.inner.retain(Retention { bytes_max, age_ms_max: 0 }).await.unwrap();
        let after = shard.status();
        assert!(after.log_start > Offset(0) && after.size_bytes <= bytes_max, "{after:?}");
        assert!(after.segments < before.segments);
        check(&shard).await;
        shard.inner.retain(Retention { bytes_max, age_ms_max: 0 }).await.unwrap();
        assert_eq!(shard.status().log_start, after.log_start, "nothing more to do");

        shard.close().await.unwrap();
        let shard = open(&disk).await;
        assert_eq!(shard.status().log_start, after.log_start);
        check(&shard).await;
    });
}

/// A replica that goes on from a checkpoint has not applied yet the trim for which its log was purged up to there: it begins where
/// its log does, whatever a read asks for.
#[test]
fn purged_before_the_trim_is_applied() {
    with_shard(|shard, _disk| async move {
        fill(&shard, 4).await;
        let group = &shard.inner.group;
        let last = group.log().segments()[1].last.index;
        group.purge_to(last).await.unwrap();
        let held = group.log().first_offset();
        assert_eq!((group.with_machine(ShardMachine::log_start), held > Offset(0)), (Offset(0), true));
        assert_eq!(shard.status().log_start, held);
        check(&shard).await;
        let all = Consume { start: Start::Timestamp(0), ..at(0) };
        let read = shard.consume(all).await.unwrap();
        assert_eq!((read.next_offset.0 - read.count, read.log_start), (held.0, held));
    });
}

/// A consumer that goes on where it was remembered gets what comes there, also when the entry at its place, a trim, is purged.
#[test]
fn remembered_place_is_purged() {
    with_shard(|shard, _disk| async move {
        fill(&shard, 2).await;
        let log = shard.inner.group.log().clone();
        shard.produce(large(400_000)).await.unwrap();
        let end = shard.high_watermark();
        contents(&shard).await;
        let place = shard.inner.group.applied_end();
        shard.trim(end).await.unwrap();
        let last = log.segments().last().unwrap().first;
        shard.produce(large(900_000)).await.unwrap();
        settle().await;
        assert_ne!(log.segments().last().unwrap().first, last, "it begins a segment");
        shard.inner.purge().await.unwrap();
        assert!(log.first_index() > place);
        let consumed = shard.consume(at(end.0)).await.unwrap();
        assert_eq!((consumed.start_offset(), consumed.count), (end, 1));
    });
}

/// A trim that was committed is not refused because the replica closes before its segments are deleted.
#[test]
fn trim_beside_a_close() {
    with_shard(|shard, disk| async move {
        fill(&shard, 4).await;
        let before = shard.high_watermark();
        let (trimmed, closed) = futures_util::future::join(shard.trim(before), shard.close()).await;
        closed.unwrap();
        let shard = open(&disk).await;
        assert_eq!(shard.status().log_start, before, "it is proposed before the replica closes");
        assert!(matches!(trimmed, Ok(log_start) if log_start == before), "{trimmed:?}");
    });
}

/// By age: records go when the newest of their segment is too old, in the last segment too.
#[test]
fn by_age() {
    with_shard(|shard, _disk| async move {
        let retention = Retention { bytes_max: 0, age_ms_max: 60_000 };
        fill(&shard, 2).await;
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(shard.status().log_start, Offset(0));
        TestEnv::advance_us(61_000_000);
        shard.inner.retain(retention).await.unwrap();
        let status = shard.status();
        assert_eq!(status.log_start, status.high_watermark);
        assert_eq!(status.segments, 1, "the last one is still written");
        shard.produce(value("young")).await.unwrap();
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(contents(&shard).await.len(), 1);
    });
}

/// The task does it by itself when a segment has filled up.
#[test]
fn task() {
    TestEnv::reset(1);
    let disk = SimDisk::new();
    block_on(async {
        let shard = open_with(&disk, ShardOptions { retention_bytes_max: 1 << 20, ..options() }).await;
        let mut written = 0;
        while shard.status().log_start == Offset(0) {
            shard.produce(large(BLOCK_BYTES * 4)).await.unwrap();
            settle().await;
            written += 1;
            assert!(written < 1000, "16 MiB are written, and nothing has gone");
        }
        check(&shard).await;
        shard.close().await.unwrap();
    });
}

/// Writes records of that size until the disk is full: they are refused, or one waits for space.
async fn fill_disk(shard: &TestShard, bytes: usize) {
    for _ in 0..1_000 {
        let mut producing = Box::pin(shard.produce(large(bytes)));
        let mut answer = None;
        for _ in 0..20 {
            if answer.is_none() {
                answer = settled(&mut producing).await;
            }
        }
        match answer {
            Some(Ok(_)) => {}
            Some(Err(error)) => return assert!(matches!(error, ShardError::Full(_)), "{error:?}"),
            None => return,
        }
    }
    panic!("the disk never filled up");
}

/// Records are taken again before long.
async fn takes_records(shard: &TestShard) {
    for _ in 0..1_000 {
        match shard.produce(large(10_000)).await {
            Ok(_) => return,
            Err(error) => assert!(matches!(error, ShardError::Full(_) | ShardError::NotLeader { .. }), "{error:?}"),
        }
        crate::env::sleep::<TestEnv>(Duration::from_millis(1)).await;
        settle().await;
    }
    panic!("there is space, and records are refused");
}

/// A disk that is full to the last byte takes the trim that frees it, many times, from what records cannot use.
#[test]
fn trims_on_a_full_disk() {
    for kept in [0, 1 << 20] {
        with_shard(|shard, disk| async move {
            if kept > 0 {
                disk.keep_reserve(kept);
                reserve::keep(&disk).await.unwrap();
            }
            fill(&shard, 3).await;
            disk.set_capacity(Some(disk.used_bytes()));
            for bytes in [100_000, 10] {
                fill_disk(&shard, bytes).await;
            }
            let before = disk.used_bytes();
            let end = shard.status().high_watermark;
            for offset in 1..10 {
                shard.trim(Offset(offset)).await.unwrap();
            }
            shard.trim(end).await.unwrap();
            assert!(disk.used_bytes() + SEGMENT_BYTES_MIN <= before, "{} of {before} bytes", disk.used_bytes());
            takes_records(&shard).await;
            assert_eq!(shard.status().fault, None);
            check(&shard).await;
        });
    }
}

/// Retention frees a full disk, too: it draws on the reserve as a trim does, and records are taken again.
#[test]
fn retains_on_a_full_disk() {
    with_shard(|shard, disk| async move {
        disk.keep_reserve(1 << 20);
        reserve::keep(&disk).await.unwrap();
        fill(&shard, 4).await;
        disk.set_capacity(Some(disk.used_bytes()));
        for bytes in [100_000, 10] {
            fill_disk(&shard, bytes).await;
        }
        let (before, used) = (shard.status(), disk.used_bytes());
        let bytes_max = before.size_bytes / 2;
        shard.inner.retain(Retention { bytes_max, age_ms_max: 0 }).await.unwrap();
        let after = shard.status();
        assert!(after.log_start > before.log_start && after.size_bytes <= bytes_max, "{after:?}");
        assert!(disk.used_bytes() + SEGMENT_BYTES_MIN <= used, "{} of {used} bytes", disk.used_bytes());
        takes_records(&shard).await;
        assert_eq!(shard.status().fault, None);
        check(&shard).await;
    });
}

/// A start on a full disk: the only replica leads, with what was kept, takes the trim, and records again; the reserve is laid by
/// again. What was given back is not taken by records.
#[test]
fn starts_and_trims_on_a_full_disk() {
    with_shard(|shard, disk| async move {
        disk.keep_reserve(1 << 20);
        reserve::keep(&disk).await.unwrap();
        fill(&shard, 4).await;
        shard.close().await.unwrap();
        disk.set_capacity(Some(disk.used_bytes()));
        let shard = open(&disk).await;
        for _ in 0..1_000 {
            if shard.leads() {
                break;
            }
            crate::env::sleep::<TestEnv>(Duration::from_millis(1)).await;
        }
        assert!(shard.leads(), "{:?}", shard.status());
        fill_disk(&shard, 100_000).await;
        shard.trim(shard.status().high_watermark).await.unwrap();
        takes_records(&shard).await;
        reserve::keep(&disk).await.unwrap();
        assert!(disk.paths().contains(&disk.reserve().unwrap().path));
    });
}

/// An explicit trim moves the log start to the record, and deletes what is wholly below.
#[test]
fn trim_deletes_segments() {
    with_shard(|shard, _disk| async move {
        fill(&shard, 3).await;
        let before = shard.status();
        let middle = Offset(before.high_watermark.0 / 2 + 1);
        assert_eq!(shard.trim(middle).await.unwrap(), middle);
        let after = shard.status();
        assert_eq!(after.log_start, middle);
        assert!(after.segments < before.segments);
        check(&shard).await;
        // Timestamps are found among what is left.
        let first = shard.consume(from(Start::Timestamp(0))).await.unwrap();
        assert_eq!(decode(&first)[0].offset, middle.0);
    });
}

/// A year in µs.
const YEAR_US: i64 = 365 * 86_400_000_000;

fn by_age_of(age_ms_max: u64) -> Retention {
    Retention { bytes_max: 0, age_ms_max }
}

/// A wall clock that is a year ahead trims nothing that this process has seen written, and one that is a year behind keeps
/// nothing: of these records it knows the age without any date.
#[test]
fn wild_clock() {
    with_shard(|shard, _disk| async move {
        let retention = by_age_of(60_000);
        fill(&shard, 2).await;
        shard.inner.retain(retention).await.unwrap();
        for jump_us in [YEAR_US, -2 * YEAR_US] {
            TestEnv::jump_wall_us(jump_us);
            TestEnv::advance_us(12_000_000);
            shard.inner.retain(retention).await.unwrap();
            assert_eq!(shard.status().log_start, Offset(0), "the clock moved by {jump_us} us");
        }
        TestEnv::advance_us(61_000_000);
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(shard.status().log_start, shard.status().high_watermark);
    });
}

/// A node whose clock is not where most others' are trims nothing by age, until it is: not even what it has seen written.
#[test]
fn odd_clock() {
    with_shard(|shard, _disk| async move {
        let retention = by_age_of(60_000);
        let tell = |ahead_us: i64| {
            for (node, ahead_us) in [(1, 0), (2, ahead_us), (3, ahead_us)] {
                let wall_us = TestEnv::wall_us() + ahead_us;
                shard.inner.peers.liveness().clocks().note(NodeId(node), TestEnv::monotonic_us(), wall_us);
            }
        };
        shard.produce(value("old")).await.unwrap();
        shard.inner.retain(retention).await.unwrap();
        TestEnv::advance_us(61_000_000);
        for ahead_us in [YEAR_US, -YEAR_US, 61_000_000] {
            tell(ahead_us);
            shard.inner.retain(retention).await.unwrap();
            assert_eq!(shard.status().log_start, Offset(0), "the others are {ahead_us} us ahead");
        }
        tell(59_000_000);
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(shard.status().log_start, Offset(1));
    });
}

/// What was written while the clock was a year ahead goes in its time all the same; so does a record that its producer has
/// given a time far away.
#[test]
fn from_the_future() {
    with_shard(|shard, _disk| async move {
        let retention = by_age_of(60_000);
        TestEnv::jump_wall_us(YEAR_US);
        shard.produce(value("by a wild clock")).await.unwrap();
        TestEnv::jump_wall_us(-YEAR_US);
        let timestamp_us = i64::MAX;
        let record = Record { value: Bytes::from_static(b"by its producer"), timestamp_us, ..Record::default() };
        shard.produce(Produce { records: encode(vec![record]), ..value("") }).await.unwrap();
        shard.inner.retain(retention).await.unwrap();
        TestEnv::advance_us(59_000_000);
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(shard.status().log_start, Offset(0));
        TestEnv::advance_us(2_000_000);
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(shard.status().log_start, Offset(2));
    });
}

/// What is written while its leader's clock is wrong, by a year in either direction, goes in its time also after a restart, which
/// leaves nothing but timestamps to tell its age: not before, and not later.
#[test]
fn a_wrong_clock_and_a_restart() {
    const MINUTE_US: u64 = 60_000_000;
    let tell = |shard: &TestShard, others_us: i64| {
        let (now_us, wall_us) = (TestEnv::monotonic_us(), TestEnv::wall_us());
        for (node, ahead_us) in [(1, 0), (2, others_us), (3, others_us)] {
            shard.inner.peers.liveness().clocks().note(NodeId(node), now_us, wall_us + ahead_us);
        }
    };
    for wrong_us in [YEAR_US, -YEAR_US] {
        with_shard(|shard, disk| async move {
            tell(&shard, 0);
            TestEnv::jump_wall_us(wrong_us);
            // No ping has told of the jump yet.
            fill(&shard, 2).await;
            tell(&shard, -wrong_us);
            fill(&shard, 2).await;
            shard.close().await.unwrap();
            TestEnv::jump_wall_us(-wrong_us);
            TestEnv::advance_us(60 * MINUTE_US);

            let shard = open(&disk).await;
            for minute in 60..=185 {
                tell(&shard, 0);
                shard.inner.retain(by_age_of((180 * MINUTE_US + MINUTE_US / 2) / 1_000)).await.unwrap();
                let gone = shard.status().log_start > Offset(0);
                assert_eq!(gone, minute > 180, "{minute} minutes old; the clock was {wrong_us} us ahead");
                TestEnv::advance_us(MINUTE_US);
            }
            check(&shard).await;
        });
    }
}

/// Timestamps of a shard do not go back when the clock does: not those of its acks, its records or its entries, and not after
/// a restart, also when all of it is purged.
#[test]
fn timestamps_never_go_back() {
    with_shard(|shard, disk| async move {
        let first = shard.produce(value("ahead")).await.unwrap().timestamp_us;
        TestEnv::jump_wall_us(-YEAR_US);
        let second = shard.produce(value("behind")).await.unwrap().timestamp_us;
        assert!(second >= first, "{first} then {second}");
        shard.trim(Offset(1)).await.unwrap();
        let records = read_all(&shard, Start::Earliest, u64::MAX, 1 << 20).await;
        assert!(records[0].timestamp_us >= first);
        let log = shard.inner.group.log();
        let entries = log.read(log.first_index(), crate::ids::Index(u64::MAX), usize::MAX).await.unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.header.timestamp_us));
        shard.close().await.unwrap();

        let shard = open(&disk).await;
        let third = shard.produce(value("after a restart")).await.unwrap().timestamp_us;
        assert!(third >= second, "{second} then {third}");
        fill(&shard, 2).await;
        shard.trim(shard.high_watermark()).await.unwrap();
        shard.close().await.unwrap();
        let shard = open(&disk).await;
        assert!(shard.produce(value("once more")).await.unwrap().timestamp_us >= third);
    });
}

/// A node that was off for a month does not trim by its clock at once: records of before the restart go by it when the clock
/// has stood where it is for as long as `peer::clocks` asks.
#[test]
fn after_a_month() {
    const DAY_US: u64 = 86_400_000_000;
    with_shard(|shard, disk| async move {
        let retention = by_age_of(7 * DAY_US / 1_000);
        fill(&shard, 2).await;
        shard.close().await.unwrap();
        TestEnv::advance_us(30 * DAY_US);
        let shard = open(&disk).await;
        let tick =
            || shard.inner.peers.liveness().clocks().note(NodeId(1), TestEnv::monotonic_us(), TestEnv::wall_us());
        for _ in 0..6 {
            shard.inner.retain(retention).await.unwrap();
            assert_eq!(shard.status().log_start, Offset(0));
            tick();
            TestEnv::advance_us(10 * 60 * 1_000_000 - 1_000);
        }
        TestEnv::advance_us(1_000_000);
        tick();
        shard.produce(value("young")).await.unwrap();
        shard.inner.retain(retention).await.unwrap();
        assert!(shard.status().log_start > Offset(0));
        assert!(contents(&shard).await.values().any(|value| value == "young"));
    });
}
