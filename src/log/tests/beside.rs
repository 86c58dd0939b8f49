//! What goes on at the same time: reads beside truncations and purges, a purge beside the saving of checkpoints.

use std::{cell::Cell, io};

use futures_util::future::{join, join_all};

use super::support::*;
use crate::{
    env::runtime::block_on,
    ids::{Index, Offset},
    log::{LogError, LogPoint},
    sim::{Fault, Operation, SimDisk},
};

/// Entries of the logs here: seven in each segment, in the order of their timestamps, with one record each.
const ENTRIES: u64 = 30;

/// A log that was closed.
async fn closed_log() -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).await;
    for _ in 0..ENTRIES {
        append_one(&log, 1, 6_000).await;
    }
    assert_eq!(log.segments().len() as u64, ENTRIES.div_ceil(7));
    log.close().await.unwrap();
    disk
}

/// Opens such a log on a disk that takes turns, with nothing of it in memory.
async fn slow_log(made: &SimDisk, seed: u64) -> (SimDisk, TestLog) {
    let disk = copy(made).with_latency(seed);
    let log = open_with(&disk, 64 << 10, 0).await.unwrap().0;
    (disk, log)
}

async fn turns(count: u64) {
    for _ in 0..count {
        crate::env::yield_now().await;
    }
}

/// Looks for an entry until `done`: one below `end` is always found, others are found or are not in the log.
async fn look(log: &TestLog, index: Index, end: Index, done: &Cell<bool>) {
    let is_kept = index < end;
    while !done.get() {
        match log.read(index, Index(ENTRIES), 20_000).await {
            Ok(entries) => assert_eq!(entries[0].header.id.index, index),
            Err(LogError::NotFound { .. }) if !is_kept => {}
            Err(error) => panic!("entry {index}, {end} of {ENTRIES} stay: {error}"),
        }
        match log.find_timestamp(index.0 as i64 * 1_000).await {
            Ok(found) => assert!(!is_kept || found == Some(index), "{found:?} instead of {index}"),
            Err(error) => panic!("time of entry {index}, {end} of {ENTRIES} stay: {error}"),
        }
        match log.find_offset(Offset(index.0)).await {
            Ok(found) => assert!(!is_kept || found == Some(index), "{found:?} instead of {index}"),
            Err(error) => panic!("offset of entry {index}, {end} of {ENTRIES} stay: {error}"),
        }
        crate::env::yield_now().await;
    }
}

/// Who reads while the end is cut off finds what stays as it is. Of what goes they find nothing or all: that it is not there any
/// more is no damage, also when a read has failed before.
#[test]
fn reads_beside_a_truncation() {
    block_on(async {
        let made = closed_log().await;
        for seed in 0..200 {
            let end = Index(1 + seed % (ENTRIES - 1));
            let (disk, log) = slow_log(&made, seed).await;
            if seed % 2 == 0 {
                let path_contains = ".store".to_owned();
                let error = io::ErrorKind::Other;
                disk.plant(Fault { operation: Operation::Read, path_contains, skip: seed, times: 1, error });
            }
            let done = Cell::new(false);
            let truncation = async {
                // Reads are under way.
                turns(seed % 50).await;
                log.truncate_after(Some(Index(end.0 - 1))).await.unwrap();
                done.set(true);
            };
            join(truncation, join_all((0..ENTRIES).map(|index| look(&log, Index(index), end, &done)))).await;
            assert!(log.fault().is_none(), "{:?}", log.fault());
            disk.heal();
            assert_eq!(log.end().next, end);
            append_one(&log, 1, 100).await;
            assert_eq!(read_all(&log, 1).await.unwrap().len() as u64, end.0 + 1);
            let (log, _) = open_with(&power_fails(&disk, seed).await, 64 << 10, 0).await.unwrap();
            assert_eq!(read_all(&log, 1).await.unwrap().len() as u64, end.0 + 1);
        }
    });
}

/// A segment that is removed while its file is being opened is not kept open, nor its index in memory: its space is free.
#[test]
fn opened_beside_a_purge() {
    block_on(async {
        let made = closed_log().await;
        for seed in 0..400 {
            let (_disk, log) = slow_log(&made, seed).await;
            let read = async {
                turns(seed % 20).await;
                match log.read(Index(0), Index(1), 1).await {
                    Ok(_) | Err(LogError::NotFound { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
                if let Err(error) = log.find_offset(Offset(7)).await {
                    panic!("seed {seed}: {error}");
                }
            };
            let (purged, ()) = join(log.purge(LogPoint { next: Index(14), ..log.end() }), read).await;
            purged.unwrap();
            let held = log.inner.hot.borrow().iter().filter(|segment| segment.removed.get()).count();
            assert_eq!(held, 0, "seed {seed}");
        }
    });
}

/// The checkpoints whose files are there are those that the log speaks of: at the ends of `segments`, and the newest two.
fn assert_checkpoints(disk: &SimDisk, log: &TestLog, segments: usize) {
    let files: Vec<String> = names(disk).into_iter().filter(|name| name.ends_with(".checkpoint")).collect();
    let known: Vec<String> = log.checkpoints().iter().map(|index| format!("{:020}.checkpoint", index.0)).collect();
    assert_eq!(files, known);
    assert_eq!(files.len(), segments + 2);
}

/// A log with checkpoints at the ends of its first eight segments, and two more; where it is purged to leave two of the former;
/// and its last entry.
async fn with_checkpoints(disk: &SimDisk) -> (TestLog, LogPoint, Index) {
    let log = open(disk).await;
    for index in 0..2 * ENTRIES {
        append_one(&log, 1, 6_000).await;
        log.save_checkpoint(Index(index), "state".into()).await.unwrap();
    }
    assert_checkpoints(disk, &log, 8);
    let to = LogPoint { next: Index(50), ..log.end() };
    (log, to, Index(2 * ENTRIES - 1))
}

/// A purge and the saving of a checkpoint may clean up at the same time: none of them fails for what the other has removed.
#[test]
fn checkpoints_beside_a_purge() {
    block_on(async {
        let made = SimDisk::new();
        let (log, to, last) = with_checkpoints(&made).await;
        log.close().await.unwrap();
        for seed in 0..240 {
            let (disk, log) = slow_log(&made, seed).await;
            let save = async {
                turns(seed % 80).await;
                log.save_checkpoint(last, "state".into()).await
            };
            let (purged, saved) = join(log.purge(to), save).await;
            purged.and(saved).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(log.fault().is_none(), "{:?}", log.fault());
            assert_checkpoints(&disk, &log, 2);
        }
    });
}

/// A checkpoint of no more use that cannot be removed is no reason to stop. It goes with another one, after the next start.
#[test]
fn checkpoints_that_stay() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, to, last) = with_checkpoints(&disk).await;
        let (path_contains, error) = (".checkpoint".to_owned(), io::ErrorKind::Other);
        disk.plant(Fault { operation: Operation::Remove, path_contains, skip: 0, times: u64::MAX, error });
        log.purge(to).await.unwrap();
        log.save_checkpoint(last, "state".into()).await.unwrap();
        assert!(log.fault().is_none());
        disk.heal();
        log.close().await.unwrap();
        let log = open(&disk).await;
        log.save_checkpoint(last, "state".into()).await.unwrap();
        assert_checkpoints(&disk, &log, 2);
    });
}
