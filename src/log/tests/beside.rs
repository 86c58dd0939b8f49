//! What goes on at the same time: a purge beside the saving of checkpoints.

use std::io;

use futures_util::future::join;

use super::support::*;
use crate::{
    env::runtime::block_on,
    ids::Index,
    log::LogPoint,
    sim::{Fault, Operation, SimDisk},
};

/// Entries of the logs here: seven in each segment.
const ENTRIES: u64 = 30;

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
