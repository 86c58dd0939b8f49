//! Damaged files: whatever is torn, flipped, cut or missing, the log either comes back to what was acknowledged or
//! says what is damaged and where. It never serves a byte that was not appended.

use std::time::Duration;

use futures_util::FutureExt;

use super::support::*;
use crate::{
    env::{Disk, File, OpenMode, runtime::block_on},
    format::{entry::ENTRY_HEADER_BYTES, segment::SegmentHeader, state_files::HardStateSlot},
    ids::{Index, LogId, NodeId, ShardUid, Term},
    limits::BLOCK_BYTES,
    log::{
        HardState, LogError, Vote,
        repair::{cut, survey},
        verify::verify_dir,
    },
    sim::{Operation, SimDisk, TestEnv, disk::SECTOR_BYTES},
};

const STORE: &str = "00000000000000000000.store";
const INDEX: &str = "00000000000000000000.index";

/// A log of `count` entries of about 5,000 bytes, each acknowledged, on a disk whose power has failed.
async fn crashed(count: u64) -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).await;
    for _ in 0..count {
        append_one(&log, 1, 5_000).await;
    }
    power_fails(&disk, 7).await
}

/// Number of entries found, all of them right; or the position of the damage.
async fn outcome(disk: &SimDisk) -> Result<u64, (String, u64)> {
    let report = verify_dir(disk, DIR.as_ref()).await.unwrap();
    let reread = |log: TestLog| async move {
        let entries = read_all(&log, 1 << 20).await?;
        for (index, entry) in entries.iter().enumerate() {
            assert_eq!(entry.header.id.index, Index(index as u64));
            assert_eq!(entry.payload(), payload(index as u64, 1, 5_000), "wrong bytes were served");
        }
        Ok(entries.len() as u64)
    };
    let result = match open_with(disk, 64 << 10, 0).await {
        Ok((log, _)) => reread(log).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(entries) => {
            assert_eq!(report.entries, entries, "the offline check counts the same");
            Ok(entries)
        }
        Err(LogError::Corrupt { file, position, .. }) => {
            assert!(!report.problems.is_empty(), "the offline check finds it, too");
            Err((file.file_name().unwrap().to_string_lossy().into(), position))
        }
        Err(error) => panic!("{error}"),
    }
}

fn entry_at(number: u64) -> u64 {
    BLOCK_BYTES as u64 + number * 2 * BLOCK_BYTES as u64
}

/// The file cut at every sector and at odd places: entries that end before the cut are there, nothing else.
#[test]
fn every_prefix() {
    block_on(async {
        let good = crashed(3).await;
        let content = good.content(path(STORE));
        for length in (BLOCK_BYTES..entry_at(3) as usize + 1).step_by(SECTOR_BYTES / 2 + 1) {
            let disk = copy(&good);
            disk.set_content(path(STORE), content[..length].to_vec());
            let padding = 2 * BLOCK_BYTES - ENTRY_HEADER_BYTES - 5_000;
            let whole = ((length - BLOCK_BYTES + padding) / (2 * BLOCK_BYTES)) as u64;
            if whole == 0 {
                // Its first entry was durable when it got its name.
                assert_eq!(outcome(&disk).await, Err((STORE.into(), BLOCK_BYTES as u64)), "{length}");
            } else {
                assert_eq!(outcome(&disk).await, Ok(whole), "{length}");
            }
        }
    });
}

/// Every bit of the headers of a middle and of the last entry, and a sample of their payloads: the middle one is
/// corruption, because the one behind it says that it was durable; the last one may be a torn write.
#[test]
fn every_bit_flip() {
    block_on(async {
        let good = crashed(3).await;
        let header = 0..ENTRY_HEADER_BYTES as u64 * 8;
        let sampled = (0..5_000 * 8).step_by(997).map(|bit| ENTRY_HEADER_BYTES as u64 * 8 + bit);
        for bit in header.chain(sampled) {
            for (number, expected) in [(1, Err((STORE.into(), entry_at(1)))), (2, Ok(2))] {
                let disk = copy(&good);
                disk.flip_bit(path(STORE), entry_at(number) + bit / 8, (bit % 8) as u32);
                assert_eq!(outcome(&disk).await, expected, "entry {number}, bit {bit}");
            }
        }
    });
}

/// A block that the device cannot read is damage of what is there, also at the end of the log: no torn write. Of the hard state
/// there is another copy.
#[test]
fn unreadable_blocks() {
    block_on(async {
        let good = crashed(3).await;
        for number in 0..3 {
            for block in [0, BLOCK_BYTES as u64] {
                let disk = copy(&good);
                disk.lose_block(path(STORE), entry_at(number) + block);
                assert_eq!(outcome(&disk).await, Err((STORE.into(), entry_at(number))), "entry {number}");
            }
        }
        let disk = copy(&good);
        let log = open_with(&disk, 64 << 10, 0).await.unwrap().0;
        let vote = Some(Vote { term: Term(7), node: NodeId(2), committed: false });
        log.save_hard_state(HardState { vote, committed: None }).await.unwrap();
        for slot in 0..2 {
            let disk = copy(&disk);
            disk.lose_block(path("hard_state"), slot * BLOCK_BYTES as u64);
            assert_eq!(open(&disk).await.hard_state().vote, vote);
        }
        disk.lose_block(path(STORE), entry_at(1));
        assert_eq!(log.read(Index(0), Index(1), 1).await.unwrap().len(), 1);
        assert!(matches!(log.read(Index(1), Index(2), 1).await, Err(LogError::Corrupt { .. })), "an open log");
    });
}

async fn until_marked(log: &TestLog) {
    for _ in 0..2_000 {
        if log.inner.state.borrow().hard.flushed == log.flushed() {
            return;
        }
        crate::env::sleep::<TestEnv>(Duration::from_millis(5)).await;
    }
    panic!("the last write is never said to be durable");
}

/// The last write before an idle time is said to be durable, once: damage to it is no torn write then. What is cut afterwards is
/// not missed.
#[test]
fn damaged_after_an_idle_time() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..3 {
            append_one(&log, 1, 5_000).await;
        }
        let before = copy(&disk);
        until_marked(&log).await;
        let writes = disk.count(Operation::AppendDurable);
        crate::env::sleep::<TestEnv>(Duration::from_millis(350)).await;
        assert_eq!(disk.count(Operation::AppendDurable), writes, "it is said once");
        let after = copy(&disk);
        for (disk, expected) in [(&before, Ok(2)), (&after, Err((STORE.to_owned(), entry_at(2))))] {
            let flipped = copy(disk);
            flipped.flip_bit(path(STORE), entry_at(2) + 300, 2);
            assert_eq!(outcome(&flipped).await, expected, "one bit");
            let zeroed = copy(disk);
            let mut content = zeroed.content(path(STORE));
            content[entry_at(2) as usize..].fill(0);
            zeroed.set_content(path(STORE), content);
            assert_eq!(outcome(&zeroed).await, expected, "all of it");
            assert_eq!(outcome(&copy(disk)).await, Ok(3));
        }
        let given_up = copy(&after);
        given_up.flip_bit(path(STORE), entry_at(2) + 300, 2);
        let survey = survey(&given_up, &options(64 << 10), None).await.unwrap();
        cut(&given_up, &options(64 << 10), &survey).await.unwrap().unwrap();
        assert_eq!(outcome(&given_up).await, Ok(2));

        log.truncate_after(Some(Index(0))).await.unwrap();
        assert_eq!(outcome(&copy(&disk)).await, Ok(1));
        until_marked(&log).await;
        let flipped = copy(&disk);
        flipped.flip_bit(path(STORE), entry_at(0) + 300, 2);
        assert_eq!(outcome(&flipped).await, Err((STORE.to_owned(), entry_at(0))), "without another entry");
        append_one(&log, 1, 5_000).await;
        until_marked(&log).await;
        assert_eq!(outcome(&power_fails(&disk, 1).await).await, Ok(2));
    });
}

/// So is it while entries behind it wait for space: a full disk may stay full for days. It is said once, and again when they are
/// written.
#[test]
fn damaged_while_entries_wait_for_space() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..4 {
            append_one(&log, 1, 5_000).await;
        }
        until_marked(&log).await;
        // What comes next needs space in the file that is cut here.
        log.truncate_after(Some(Index(2))).await.unwrap();
        disk.set_capacity(Some(disk.used_bytes()));
        let mut waiting = Box::pin(append(&log, vec![batch(&log, 0, 1, 5_000)]));
        settle().await;
        assert!(waiting.as_mut().now_or_never().is_none(), "there is no space");
        until_marked(&log).await;
        assert_eq!(log.flushed().unwrap().index, Index(2));
        let writes = disk.count(Operation::AppendDurable);
        crate::env::sleep::<TestEnv>(Duration::from_millis(350)).await;
        assert_eq!(disk.count(Operation::AppendDurable), writes, "it is said once");
        let with_space = || {
            let left = copy(&disk);
            left.set_capacity(None);
            left
        };
        assert_eq!(outcome(&with_space()).await, Ok(3));
        let flipped = with_space();
        flipped.flip_bit(path(STORE), entry_at(2) + 300, 2);
        assert_eq!(outcome(&flipped).await, Err((STORE.to_owned(), entry_at(2))));

        disk.set_capacity(None);
        waiting.await.unwrap().unwrap();
        until_marked(&log).await;
        assert_eq!(log.flushed(), log.last());
        assert_eq!(outcome(&power_fails(&disk, 1).await).await, Ok(4));
    });
}

/// A clean end says it for good: its footer is cut off when the log goes on, and if that is all and the power goes, damage to
/// the last entry is no torn write.
#[test]
fn damaged_after_a_clean_end() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..3 {
            append_one(&log, 1, 5_000).await;
        }
        log.close().await.unwrap();
        let content = disk.content(path(STORE));
        disk.set_content(path(STORE), content[..content.len() - BLOCK_BYTES].to_vec());
        assert_eq!(outcome(&copy(&disk)).await, Ok(3), "without the footer");
        disk.flip_bit(path(STORE), entry_at(2) + 300, 2);
        assert_eq!(outcome(&disk).await, Err((STORE.to_owned(), entry_at(2))));
    });
}

/// What recovery has found behind the last mark is said to be durable, too.
#[test]
fn marked_after_recovery() {
    block_on(async {
        let disk = crashed(3).await;
        let log = open(&disk).await;
        until_marked(&log).await;
        let after = power_fails(&disk, 1).await;
        after.flip_bit(path(STORE), entry_at(2) + 300, 2);
        assert_eq!(outcome(&after).await, Err((STORE.to_owned(), entry_at(2))));
    });
}

/// A committed entry is never taken for a torn write.
#[test]
fn damaged_committed_tail_is_corruption() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..3 {
            append_one(&log, 1, 5_000).await;
        }
        let committed = Some(LogId { term: Term(1), index: Index(2) });
        log.save_hard_state(HardState { vote: None, committed }).await.unwrap();
        let after = power_fails(&disk, 1).await;
        assert_eq!(outcome(&copy(&after)).await, Ok(3));
        after.flip_bit(path(STORE), entry_at(2) + 200, 0);
        let damaged = after.content(path(STORE));
        assert_eq!(outcome(&after).await, Err((STORE.into(), entry_at(2))));
        assert!(after.content(path(STORE)) == damaged, "what may yet be of use is left as it is");
        // Not even when nothing of it is left.
        let content = after.content(path(STORE));
        after.set_content(path(STORE), content[..entry_at(2) as usize].to_vec());
        assert_eq!(outcome(&after).await, Err((STORE.into(), entry_at(2))));
    });
}

/// Any subset of the last write's sectors (it has two entries): at least what was acknowledged, at most what was
/// written, and the log goes on from there.
#[test]
fn every_tear_of_the_last_write() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 5_000).await;
        settle().await;
        disk.hold();
        let batches = vec![batch(&log, 0, 1, 5_000), batch(&log, 1, 1, 5_000)];
        let pending = append(&log, batches);
        settle().await;
        let whole = disk.content(path(STORE));
        let mut before = whole.clone();
        let (start, sectors) = (entry_at(1) as usize, 4 * BLOCK_BYTES / SECTOR_BYTES);
        before[start..start + sectors * SECTOR_BYTES].fill(0);
        let mut seen = [0; 4];
        for seed in 0..400u64 {
            let torn = copy(&disk);
            let mut content = before.clone();
            for sector in 0..sectors {
                // The first seeds leave out exactly one sector, the others keep any subset.
                let kept = if (seed as usize) < sectors {
                    sector != seed as usize
                } else {
                    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (sector % 64)) & 1 == 1
                };
                let at = start + sector * SECTOR_BYTES;
                if kept {
                    content[at..at + SECTOR_BYTES].copy_from_slice(&whole[at..at + SECTOR_BYTES]);
                }
            }
            torn.set_content(path(STORE), content);
            let found = outcome(&torn).await.unwrap();
            seen[found as usize] += 1;
            let (log, _) = open_with(&torn, 64 << 10, 0).await.unwrap();
            append_one(&log, 1, 5_000).await;
            assert_eq!(read_all(&log, 1 << 20).await.unwrap().len() as u64, found + 1);
        }
        assert!(seen[1] > 0 && seen[2] > 0 && seen[3] > 0, "{seen:?}");
        drop(pending);
    });
}

/// A torn write in front of a whole one of the same write is cut with it; in front of a later write it is corruption.
#[test]
fn durable_end_tells_torn_from_corrupt() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 5_000).await;
        disk.hold();
        let first = append(&log, vec![batch(&log, 0, 1, 5_000)]);
        // These two were assigned while the first was in flight, and are written when it is durable.
        let second = append(&log, vec![batch(&log, 0, 1, 5_000)]);
        let third = append(&log, vec![batch(&log, 0, 1, 5_000)]);
        settle().await;
        disk.release();
        for done in [first, second, third] {
            done.await.unwrap().unwrap();
        }
        settle().await;
        for (number, expected) in [(1, Err((STORE.to_string(), entry_at(1)))), (2, Ok(2)), (3, Ok(3))] {
            let damaged = disk.crash(1);
            damaged.flip_bit(path(STORE), entry_at(number) + 300, 3);
            assert_eq!(outcome(&damaged).await, expected, "entry {number}");
        }
    });
}

/// Damage in a sealed segment is found when it is read, and by the offline check, with its place; the rest is served.
#[test]
fn damage_in_a_sealed_segment() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..30 {
            append_one(&log, 1, 5_000).await;
        }
        log.close().await.unwrap();
        disk.flip_bit(path(STORE), entry_at(2) + 1_000, 5);
        let (log, recovered) = open_with(&disk, 64 << 10, 0).await.unwrap();
        assert!(recovered.clean, "sealed segments are not scanned");
        let error = log.read(Index(2), Index(3), 1).await.unwrap_err();
        assert!(matches!(error, LogError::Corrupt { position, .. } if position == entry_at(2)), "{error}");
        assert_eq!(log.read(Index(1), Index(2), 1).await.unwrap()[0].payload(), payload(1, 1, 5_000));
        let report = verify_dir(&disk, DIR.as_ref()).await.unwrap();
        assert_eq!(report.problems.len(), 1);
        assert_eq!((&report.problems[0].file, report.problems[0].position.0), (&path(STORE), entry_at(2)));
    });
}

/// An index that is missing, short, long or garbled is rebuilt, of sealed segments and of the last one.
#[test]
fn index_is_a_cache() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..20 {
            append_one(&log, 1, 5_000).await;
        }
        log.close().await.unwrap();
        let indexes: Vec<_> = names(&disk).into_iter().filter(|name| name.ends_with(".index")).collect();
        assert!(indexes.len() > 2);
        for name in indexes {
            let good = disk.content(path(&name));
            for damage in 0..4 {
                let disk = copy(&disk);
                match damage {
                    0 => disk.delete(path(&name)),
                    1 => disk.set_content(path(&name), good[..good.len() - 3].to_vec()),
                    2 => disk.set_content(path(&name), [&good[..], &good[..8]].concat()),
                    _ => disk.flip_bit(path(&name), good.len() as u64 / 2, 4),
                }
                let (log, _) = open_with(&disk, 64 << 10, 0).await.unwrap();
                let entries = read_all(&log, 1 << 20).await.unwrap();
                assert_eq!(entries.len(), 20);
                for entry in &entries {
                    let found = log.find_offset(entry.header.base_offset).await.unwrap();
                    assert_eq!(found, Some(entry.header.id.index));
                }
                log.close().await.unwrap();
                assert_eq!(disk.content(path(&name)), good, "{name}, damage {damage}");
            }
        }
    });
}

/// A segment between two others that is cut, gone, or not the one that belongs there is corruption.
#[test]
fn gaps_are_corruption() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..30 {
            append_one(&log, 1, 5_000).await;
        }
        log.close().await.unwrap();
        let stores: Vec<_> = names(&disk).into_iter().filter(|name| name.ends_with(".store")).collect();
        let middle = path(&stores[1]);
        let good = disk.content(&middle);
        for damage in 0..4 {
            let disk = copy(&disk);
            match damage {
                0 => disk.delete(&middle),
                1 => disk.set_content(&middle, good[..good.len() - 3 * BLOCK_BYTES].to_vec()),
                2 => disk.flip_bit(&middle, 40, 0),
                _ => disk.set_content(&middle, disk.content(path(&stores[0]))),
            }
            let error = open_with(&disk, 64 << 10, 0).await.map(|_| ()).unwrap_err();
            assert!(matches!(error, LogError::Corrupt { .. }), "damage {damage}: {error}");
            assert!(!verify_dir(&disk, DIR.as_ref()).await.unwrap().problems.is_empty(), "damage {damage}");
        }
        // The first one gone is a gap as well: nothing says that it was purged.
        disk.delete(path(STORE));
        assert!(matches!(open_with(&disk, 64 << 10, 0).await.map(|_| ()), Err(LogError::Corrupt { .. })));
    });
}

/// Whichever copy of the hard state is damaged, the vote that was acknowledged last counts, and none before it.
#[test]
fn every_copy_of_the_vote() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for term in 1..6 {
            let vote = Some(Vote { term: Term(term), node: NodeId(1 + term % 2), committed: false });
            log.save_hard_state(HardState { vote, committed: None }).await.unwrap();
            for slot in 0..2 {
                let damaged = disk.crash(2 * term + slot);
                damaged.flip_bit(path("hard_state"), slot * BLOCK_BYTES as u64 + 10, 0);
                assert_eq!(open(&damaged).await.hard_state().vote, vote, "slot {slot} is damaged");
                // A write of another shard's that went astray.
                let damaged = disk.crash(2 * term + slot);
                let mut content = damaged.content(path("hard_state"));
                let at = slot as usize * BLOCK_BYTES;
                let astray = HardStateSlot::parse(&content[at..at + BLOCK_BYTES]).unwrap();
                let astray = HardStateSlot { shard: ShardUid(astray.shard.0 + 1), sequence: 1_000, ..astray };
                content[at..at + BLOCK_BYTES].copy_from_slice(&astray.encode());
                damaged.set_content(path("hard_state"), content);
                assert_eq!(open(&damaged).await.hard_state().vote, vote, "slot {slot} is another shard's");
            }
        }
    });
}

/// One bad slot of the hard state is a torn write; two, or none at all beside segments, lose a vote.
#[test]
fn hard_state_slots() {
    block_on(async {
        let disk = crashed(2).await;
        let report = async |disk: &SimDisk| verify_dir(disk, DIR.as_ref()).await.unwrap();
        assert_eq!((report(&disk).await.problems, report(&disk).await.notes), (vec![], vec![]));
        let lost = copy(&disk);
        lost.delete(path("hard_state"));
        assert!(matches!(open_with(&lost, 64 << 10, 0).await.map(|_| ()), Err(LogError::Corrupt { .. })));
        let [missing] = &report(&lost).await.problems[..] else { panic!("one problem: the file itself") };
        assert_eq!((&missing.file, &*missing.what), (&path("hard_state"), "it is missing; the vote in it is lost"));

        // What a torn write leaves is not called damage, but is not kept quiet about.
        disk.flip_bit(path("hard_state"), 4096, 0);
        assert_eq!(outcome(&copy(&disk)).await, Ok(2));
        let one = report(&disk).await;
        assert_eq!((one.problems.len(), one.notes.len(), one.notes[0].position.0), (0, 1, 4096));
        assert!(one.notes[0].what.contains("the other slot counts"), "{}", one.notes[0].what);

        // The entries are still those of this shard, and are checked.
        disk.flip_bit(path("hard_state"), 10, 0);
        assert_eq!(outcome(&copy(&disk)).await, Err(("hard_state".into(), 0)));
        let none = report(&disk).await;
        assert_eq!((none.shard, none.entries, none.problems.len()), (SHARD, 2, 1));
        let words = "neither of its two slots is whole (at byte 0: its checksum does not match; at byte 4096: ";
        assert!(none.problems[0].what.starts_with(words), "{}", none.problems[0].what);
        disk.flip_bit(path(STORE), entry_at(0) + 300, 0);
        assert!(report(&disk).await.problems.iter().any(|problem| problem.file == path(STORE)));
    });
}

/// Another shard's directory, or another version's, is refused with words on what to do.
#[test]
fn foreign_directories() {
    block_on(async {
        let disk = crashed(2).await;
        let other = crate::log::LogOptions { shard: crate::ids::ShardUid(7), ..options(64 << 10) };
        let opened = TestLog::open(disk.clone(), crate::log::TailBudget::new(0), other).await;
        let error = opened.map(|_| ()).unwrap_err();
        assert!(matches!(&error, LogError::Foreign { what, .. } if what.contains("shard 42")), "{error}");
        for name in ["hard_state", STORE] {
            let disk = copy(&disk);
            let mut content = disk.content(path(name));
            for block in content.chunks_mut(4096).take(2) {
                block[3] = b'9';
                let crc = crc32c::crc32c(&block[..124]).to_le_bytes();
                block[124..128].copy_from_slice(&crc);
            }
            disk.set_content(path(name), content);
            let error = open_with(&disk, 64 << 10, 0).await.map(|_| ()).unwrap_err();
            assert!(matches!(&error, LogError::Foreign { what, .. } if what.contains("'9'")), "{error}");
        }
    });
}

/// A directory that another node made, or this one for another cluster, is refused; who does not ask gets it.
#[test]
fn foreign_owners() {
    block_on(async {
        let disk = SimDisk::new();
        let tail = || crate::log::TailBudget::new(0);
        let owned = |owner| crate::log::LogOptions { owner, ..options(64 << 10) };
        let (log, _) = TestLog::open(disk.clone(), tail(), owned(5)).await.unwrap();
        append_one(&log, 1, 10).await;
        // Each write of the hard state keeps it.
        let vote = Some(crate::log::Vote { term: Term(1), node: crate::ids::NodeId(1), committed: true });
        for _ in 0..2 {
            log.save_hard_state(HardState { vote, committed: None }).await.unwrap();
        }
        log.close().await.unwrap();
        for owner in [5, 0] {
            let (log, _) = TestLog::open(copy(&disk), tail(), owned(owner)).await.unwrap();
            assert_eq!(log.last().unwrap().index, Index(0));
        }
        let error = TestLog::open(disk, tail(), owned(6)).await.map(|_| ()).unwrap_err();
        let words = "another node or in another cluster";
        assert!(matches!(&error, LogError::Foreign { what, .. } if what.contains(words)), "{error}");
    });
}

/// The bytes that a recycled file had before never come back: not while it is filled, not after a crash.
#[test]
fn recycled_segment() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, _) = open_with(&disk, 64 << 10, 0).await.unwrap();
        let (mut next, mut recycled) = (0, false);
        for round in 0..6 {
            for _ in 0..20 {
                append_one(&log, 1, 5_000).await;
                next += 1;
                settle().await;
                recycled |= names(&disk)
                    .iter()
                    .any(|name| name.ends_with(".store") && stale_blocks(&disk.content(path(name)), SHARD));
                let crashed = disk.crash(round * 100 + next);
                let (log, _) = open_with(&crashed, 64 << 10, 0).await.unwrap();
                assert_eq!(log.last().unwrap().index, Index(next - 1));
                let entries = read_all(&log, 1 << 20).await.unwrap();
                assert!(entries.iter().all(|entry| entry.payload() == payload(entry.header.id.index.0, 1, 5_000)));
            }
            settle().await;
            log.purge(log.end()).await.unwrap();
        }
        assert!(recycled, "the test has seen a recycled file in use: {:?}", names(&disk));
    });
}

/// A log of which all is purged, with a recycled file beside it, opens as an empty one: nothing is made of what that file was.
#[test]
fn recycled_alone() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, _) = open_with(&disk, 64 << 10, 0).await.unwrap();
        let mut seen = false;
        for round in 0..6 {
            for _ in 0..20 {
                append_one(&log, 1, 5_000).await;
            }
            settle().await;
            log.purge(log.end()).await.unwrap();
            let crashed = disk.crash(round);
            let is_recycled =
                |name: &String| name.ends_with(".spare") && SegmentHeader::parse(&crashed.content(path(name))).is_ok();
            seen |= names(&crashed).iter().any(is_recycled);
            let (reopened, recovered) = open_with(&crashed, 64 << 10, 0).await.unwrap();
            assert_eq!((reopened.last(), recovered.indexes_rebuilt), (log.last(), 0));
            assert!(!names(&crashed).iter().any(|name| name.ends_with(".index")), "{:?}", names(&crashed));
        }
        assert!(seen, "the test has seen a recycled file");
    });
}

/// An index of the right size with a wrong place in it, of a segment that goes on, is built anew.
#[test]
fn index_with_a_wrong_place() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..3 {
            append_one(&log, 1, 5_000).await;
        }
        log.close().await.unwrap();
        disk.flip_bit(path(INDEX), 8 + 5, 4);
        let (log, recovered) = open_with(&disk, 64 << 10, 0).await.unwrap();
        assert_eq!((recovered.clean, recovered.indexes_rebuilt), (true, 1));
        let entries = read_all(&log, 1).await.unwrap();
        assert!(entries.iter().all(|entry| entry.payload() == payload(entry.header.id.index.0, 1, 5_000)));
    });
}

/// Whether a store holds entries of an earlier life.
fn stale_blocks(content: &[u8], shard: crate::ids::ShardUid) -> bool {
    let header = crate::format::segment::SegmentHeader::parse(content).unwrap();
    content.chunks(BLOCK_BYTES).skip(1).any(|block| {
        crate::format::entry::EntryHeader::parse(block)
            .is_ok_and(|entry| entry.shard == shard && entry.segment < header.sequence)
    })
}

/// A crash in the middle of a clean shutdown, at every turn of it, is recovered.
#[test]
fn crash_while_closing() {
    block_on(async {
        for turns in 0..40 {
            let disk = SimDisk::new().with_latency(turns);
            let log = open(&disk).await;
            for _ in 0..12 {
                append_one(&log, 1, 5_000).await;
            }
            tokio::select! {
                biased;
                closed = log.close() => closed.unwrap(),
                () = async { for _ in 0..turns { crate::env::yield_now().await; } } => {}
            }
            for seed in 0..10 {
                assert_eq!(outcome(&disk.crash(seed)).await, Ok(12), "turns {turns}, seed {seed}");
            }
        }
    });
}

/// What was written to the index file is what `format/segment` draws: offset and position, one slot per entry.
#[test]
fn index_file() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 3, 10).await;
        append_one(&log, 2, 5_000).await;
        append_one(&log, 1, 10).await;
        log.close().await.unwrap();
        let expected = [0u32, 4096, 3, 8192, 5, 16384];
        let bytes: Vec<u8> = expected.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(disk.content(path(INDEX)), bytes);
        let file = disk.open(&path(STORE), OpenMode::Read).await.unwrap();
        assert_eq!(&file.read_at(4096, 4).await.unwrap()[..], b"RLE1");
    });
}
