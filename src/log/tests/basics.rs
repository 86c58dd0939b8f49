//! What a log does when nothing goes wrong.

use super::support::*;
use crate::{
    env::runtime::block_on,
    format::entry::EntryKind,
    ids::{Index, LogId, NodeId, Offset, Term},
    log::{HardState, LogError, Vote, verify::verify_dir},
    sim::{Operation, SimDisk},
};

/// What is appended is read back, from memory and from the disk, before and after a clean reopen, in many segments.
#[test]
fn append_read_reopen() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        let mut next_offset = 0;
        for index in 0..100u64 {
            let count = 1 + (index % 3) as u32;
            append_one(&log, count, (index as usize * 137) % 9_000).await;
            next_offset += u64::from(count);
        }
        assert_eq!(log.log_end(), Offset(next_offset));
        assert_eq!(log.flushed(), log.last());
        assert!(log.segments().len() > 3);
        let before = read_all(&log, 10_000).await.unwrap();
        assert_eq!(before.len(), 100);
        let chain = log.chain();
        log.close().await.unwrap();
        let report = verify_dir(&disk, DIR.as_ref()).await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!((report.entries, report.records, report.clean), (100, next_offset, true));
        let (log, recovered) = open_with(&disk, 64 << 10, 0).await.unwrap();
        assert!(recovered.clean);
        assert_eq!((recovered.entries_scanned, recovered.indexes_rebuilt), (0, 0));
        assert_eq!((log.log_end(), log.chain()), (Offset(next_offset), chain));
        let after = read_all(&log, 1 << 20).await.unwrap();
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before.header.chain, after.header.chain);
            assert_eq!(before.payload(), payload(index as u64, 1, (index * 137) % 9_000));
            assert_eq!(after.payload(), before.payload());
        }
        append_one(&log, 1, 10).await;
        assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 101);
    });
}

/// A clean shutdown leaves exact sizes: data and footer, 8 bytes per entry, nothing made ahead.
#[test]
fn close_leaves_exact_sizes() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..3 {
            append_one(&log, 1, 5_000).await;
        }
        log.close().await.unwrap();
        assert_eq!(names(&disk), ["00000000000000000000.index", "00000000000000000000.store", "hard_state"]);
        assert_eq!(disk.content(path("00000000000000000000.store")).len(), 4096 + 3 * 8192 + 4096);
        assert_eq!(disk.content(path("00000000000000000000.index")).len(), 24);
        assert!(matches!(log.append(Vec::new(), Box::new(|_| ())), Err(LogError::Stopped { .. })));
    });
}

/// Appends made while a write is in flight go together in one write; callbacks come in order.
#[test]
fn group_commit() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 10).await;
        let before = disk.count(Operation::AppendDurable);
        disk.hold();
        let events = Events::default();
        log.append(vec![batch(&log, 0, 1, 10)], event(&events, "a")).unwrap();
        log.append(vec![batch(&log, 0, 1, 5_000)], event(&events, "b")).unwrap();
        log.append(vec![batch(&log, 0, 1, 10), batch(&log, 1, 1, 10)], event(&events, "c")).unwrap();
        settle().await;
        assert_eq!(disk.count(Operation::AppendDurable), before + 1);
        assert!(events.borrow().is_empty());
        assert_eq!(log.flushed().unwrap().index, Index(0));
        assert_eq!(log.read(Index(0), Index(9), usize::MAX).await.unwrap().len(), 5);
        disk.release();
        settle().await;
        assert_eq!(disk.count(Operation::AppendDurable), before + 2);
        assert_eq!(*events.borrow(), ["a", "b", "c"]);
        assert_eq!(log.flushed().unwrap().index, Index(4));
        assert_eq!(log.unflushed_bytes(), 0);
    });
}

/// A batch that was encoded for another offset takes an index and no offsets.
#[test]
fn misplaced_batch_is_void() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append(&log, vec![entry(EntryKind::Batch, 0, 1, Offset(5), 3, 10)]).await.unwrap().unwrap();
        append(&log, vec![entry(EntryKind::Blank, 1, 1, Offset(0), 0, 0)]).await.unwrap().unwrap();
        append_one(&log, 2, 10).await;
        let entries = read_all(&log, 1 << 20).await.unwrap();
        let kinds: Vec<_> = entries.iter().map(|entry| (entry.header.kind, entry.header.base_offset)).collect();
        assert_eq!(kinds, [(EntryKind::Void, Offset(0)), (EntryKind::Blank, Offset(0)), (EntryKind::Batch, Offset(0))]);
        assert_eq!(log.find_offset(Offset(0)).await.unwrap(), Some(Index(2)));
        assert_eq!(log.find_offset(Offset(1)).await.unwrap(), Some(Index(2)));
        assert_eq!(log.find_offset(Offset(2)).await.unwrap(), None);
    });
}

/// Every offset and timestamp is found, over segments, also after a reopen.
#[test]
fn find_offset_and_timestamp() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for index in 0..60u64 {
            if index % 7 == 0 {
                let blank = entry(EntryKind::Blank, index, 1, Offset(0), 0, 0);
                append(&log, vec![blank]).await.unwrap().unwrap();
            } else {
                append_one(&log, 3, 3_000).await;
            }
        }
        for reopened in [false, true] {
            let log = if reopened {
                log.close().await.unwrap();
                open_with(&disk, 64 << 10, 0).await.unwrap().0
            } else {
                log.clone()
            };
            for entry in read_all(&log, 1 << 20).await.unwrap() {
                let header = entry.header;
                for offset in header.base_offset.0..header.end_offset().0 {
                    assert_eq!(log.find_offset(Offset(offset)).await.unwrap(), Some(header.id.index));
                }
                if header.kind == EntryKind::Batch {
                    let at = header.id.index.0 as i64 * 1_000;
                    assert_eq!(log.find_timestamp(at).await.unwrap(), Some(header.id.index), "{at}");
                }
                assert_eq!(log.log_id(header.id.index).await.unwrap(), header.id);
            }
            assert_eq!(log.find_offset(log.log_end()).await.unwrap(), None);
            assert_eq!(log.find_timestamp(i64::MIN).await.unwrap(), Some(Index(0)));
            assert_eq!(log.find_timestamp(60_000).await.unwrap(), None);
        }
    });
}

/// The hard state survives, is ordered behind appends, and the newer slot counts.
#[test]
fn hard_state() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        assert_eq!(log.hard_state(), HardState::default());
        append_one(&log, 1, 10).await;
        for term in 1..5 {
            let vote = Some(Vote { term: Term(term), node: NodeId(1), committed: term % 2 == 0 });
            let committed = Some(LogId { term: Term(1), index: Index(0) });
            log.save_hard_state(HardState { vote, committed }).await.unwrap();
            let crashed = disk.crash(term);
            assert_eq!(open(&crashed).await.hard_state(), HardState { vote, committed });
        }
    });
}

/// A larger entry than a segment gets a segment of its own.
#[test]
fn huge_entries() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 10).await;
        append_one(&log, 1, 300_000).await;
        append_one(&log, 1, 10).await;
        assert_eq!(log.segments().len(), 3);
        log.close().await.unwrap();
        let log = open(&disk).await;
        let entries = read_all(&log, 1).await.unwrap();
        assert_eq!(entries[1].payload(), payload(1, 1, 300_000));
    });
}

/// Checkpoints are kept where they can be needed, and a damaged one is removed while the log has what follows an older one.
#[test]
fn checkpoints() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for index in 0..40 {
            append_one(&log, 1, 6_000).await;
            log.save_checkpoint(Index(index), format!("state {index}").into()).await.unwrap();
        }
        let firsts: Vec<u64> = log.segments().iter().skip(1).map(|segment| segment.first.index.0 - 1).collect();
        let expected: Vec<Index> = firsts.iter().copied().filter(|at| *at < 38).chain([38, 39]).map(Index).collect();
        assert_eq!(log.checkpoints(), expected);
        let (index, state) = log.load_checkpoint(Index(38)).await.unwrap().unwrap();
        assert_eq!((index, &state[..]), (Index(38), &b"state 38"[..]));
        disk.flip_bit(path(&format!("{:020}.checkpoint", 38)), 130, 1);
        let (index, _) = log.load_checkpoint(Index(38)).await.unwrap().unwrap();
        assert_eq!(index.0, *firsts.last().unwrap());
        let expected: Vec<Index> = expected.into_iter().filter(|at| *at != Index(38)).collect();
        log.close().await.unwrap();
        assert_eq!(open(&disk).await.checkpoints(), expected);
    });
}
