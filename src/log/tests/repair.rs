//! Damaged logs are mended from others' copies, from what they have and no more, or say what is lost.

use std::cell::Cell;

use super::support::*;
use crate::{
    env::runtime::block_on,
    format::{
        entry::{EntryKind, StoredEntry},
        segment::SegmentHeader,
    },
    ids::{Index, LogId, NodeId, ShardUid, Term},
    limits::BLOCK_BYTES,
    log::{
        HardState, Log, LogError, LogOptions, TailBudget,
        repair::{Mended, RepairError, Sent, cut, mend, salvage, survey},
    },
    sim::{SimDisk, random},
};

const PEER: NodeId = NodeId(2);
const OTHER: NodeId = NodeId(3);

/// A log of several segments, entries of one to three blocks, all acknowledged and committed, whose power has failed.
async fn crashed() -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).await;
    for number in 0..22 {
        append_one(&log, 1 + number % 3, 1_000 + 3_500 * (number as usize % 3)).await;
    }
    let committed = log.last();
    log.save_hard_state(HardState { vote: None, committed }).await.unwrap();
    power_fails(&disk, 7).await
}

pub(super) fn stores(disk: &SimDisk) -> Vec<String> {
    names(disk).into_iter().filter(|name| name.ends_with(".store")).collect()
}

/// Mends `disk` from `sources`, the disks of nodes 2, 3, ...
pub(super) async fn repair(disk: &SimDisk, sources: &[&SimDisk]) -> Result<Mended, RepairError> {
    repair_open(disk, sources, None).await
}

/// The same of a log that was open until now, with that last durable entry.
async fn repair_open(disk: &SimDisk, sources: &[&SimDisk], flushed: Option<LogId>) -> Result<Mended, RepairError> {
    repair_from(disk, sources, flushed, Index(0)).await
}

/// The same from nodes that know what is below `committed_end` to be committed.
pub(super) async fn repair_from(
    disk: &SimDisk,
    sources: &[&SimDisk],
    flushed: Option<LogId>,
    committed_end: Index,
) -> Result<Mended, RepairError> {
    let options = options(64 << 10);
    let survey = survey(disk, &options, flushed).await?;
    let nodes: Vec<_> = (2..).map(NodeId).take(sources.len()).collect();
    let fetch = async |node: NodeId, from, end| {
        let source = sources[node.0 as usize - 2];
        // Small pieces: several are needed.
        let entries = salvage(source, &options, from, end, 9_000).await.map_err(|error| error.to_string())?;
        Ok(Sent { entries, committed_end })
    };
    let mut mended = Mended::default();
    mend(disk, &options, &survey, &nodes, fetch, &mut mended).await.map(|()| mended)
}

pub(super) async fn entries(disk: &SimDisk) -> Result<Vec<StoredEntry>, LogError> {
    let (log, _) = open_with(disk, 64 << 10, 0).await?;
    let entries = read_all(&log, 1 << 20).await?;
    log.close().await?;
    Ok(entries)
}

/// What replicas have in common.
pub(super) fn same(found: &[StoredEntry], expected: &[StoredEntry]) {
    let shared = |entry: &StoredEntry| (entry.header.id, entry.header.chain, entry.payload());
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().map(shared).eq(expected.iter().map(shared)));
}

/// One bit in every block of every segment, at several places of it: whatever it hits, the log is the same afterwards.
#[test]
fn every_block() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        let (mut mended, mut blocks) = (0, 0);
        for name in stores(&good) {
            let content = good.content(path(&name));
            for position in (0..content.len()).step_by(BLOCK_BYTES) {
                for at in [2, 40, 90, 700] {
                    let disk = copy(&good);
                    disk.flip_bit(path(&name), (position + at) as u64, 3);
                    blocks += 1;
                    let report = repair(&disk, &[&good]).await.unwrap();
                    mended += u32::from(report.entries > 0);
                    assert!(
                        survey(&disk, &options(64 << 10), None).await.unwrap().is_whole(),
                        "{name} {position} {at}"
                    );
                    same(&entries(&disk).await.unwrap(), &expected);
                }
            }
        }
        assert!(stores(&good).len() > 2 && mended > 60 && blocks > mended, "{mended} of {blocks}");
    });
}

/// The same after a clean shutdown, where nothing but reads would find it.
#[test]
fn every_block_of_a_closed_log() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&good).await.unwrap();
        for name in stores(&good) {
            let content = good.content(path(&name));
            for position in (0..content.len()).step_by(BLOCK_BYTES) {
                let disk = copy(&good);
                disk.flip_bit(path(&name), (position + 90) as u64, 3);
                repair(&disk, &[&good]).await.unwrap();
                same(&entries(&disk).await.unwrap(), &expected);
            }
        }
    });
}

/// Whole files: gone, emptied, one in another's place, and two neighbours without their headers.
#[test]
fn files() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        let stores = stores(&good);
        for (number, name) in stores.iter().enumerate() {
            for damage in 0..4 {
                let disk = copy(&good);
                match damage {
                    0 => disk.delete(path(name)),
                    1 => disk.set_content(path(name), vec![0; 3 * BLOCK_BYTES]),
                    2 => disk.set_content(path(name), disk.content(path(&stores[(number + 1) % stores.len()]))),
                    _ => {
                        disk.flip_bit(path(name), 30, 0);
                        disk.flip_bit(path(&stores[(number + 1) % stores.len()]), 30, 0);
                    }
                }
                repair(&disk, &[&good]).await.unwrap_or_else(|error| panic!("{name}, damage {damage}: {error}"));
                same(&entries(&disk).await.unwrap(), &expected);
            }
        }
    });
}

/// Another shard's segment header that was written over one's own is damage, whether or not entries are left; another shard's
/// file is nobody's to mend or to remove.
#[test]
fn header_of_another_shard() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        let others = of_another_shard(1, 1_000).await.content(path(&stores(&good)[0]));
        for name in stores(&good) {
            for entries_left in [true, false] {
                let disk = copy(&good);
                let mut content = disk.content(path(&name));
                content[..BLOCK_BYTES].copy_from_slice(&others[..BLOCK_BYTES]);
                if !entries_left {
                    content[BLOCK_BYTES..].fill(0);
                }
                disk.set_content(path(&name), content);
                let error = entries(&copy(&disk)).await.unwrap_err();
                assert!(matches!(&error, LogError::Corrupt { what, .. } if what.contains("of shard 43")), "{error}");
                repair(&disk, &[&good]).await.unwrap();
                same(&entries(&disk).await.unwrap(), &expected);
            }
            let disk = copy(&good);
            disk.set_content(path(&name), others.clone());
            let error = entries(&copy(&disk)).await.unwrap_err();
            assert!(matches!(&error, LogError::Foreign { what, .. } if what.contains("shard 43")), "{error}");
            let error = repair(&disk, &[&good]).await.unwrap_err();
            assert!(matches!(&error, RepairError::Hopeless(LogError::Foreign { .. })), "{error}");
            assert_eq!(disk.content(path(&name)), others);
        }
    });
}

/// Three replicas, each with other damage: each is mended from the others, that do not open either. An entry that nobody has
/// any more stays lost, and all three say so.
#[test]
fn from_damaged_ones() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        let disks = [copy(&good), copy(&good), copy(&good)];
        let store = path(&stores(&good)[0]);
        for (number, disk) in disks.iter().enumerate() {
            disk.flip_bit(&store, (BLOCK_BYTES * (1 + number) + 5) as u64, 1);
        }
        for turn in 0..3 {
            let others = [&disks[(turn + 1) % 3], &disks[(turn + 2) % 3]];
            repair(&disks[turn], &others).await.unwrap();
            same(&entries(&copy(&disks[turn])).await.unwrap(), &expected);
        }
        let disks = [copy(&good), copy(&good), copy(&good)];
        disks.iter().for_each(|disk| disk.flip_bit(&store, BLOCK_BYTES as u64 + 200, 1));
        for turn in 0..3 {
            let others = [&disks[(turn + 1) % 3], &disks[(turn + 2) % 3]];
            let error = repair(&disks[turn], &others).await.unwrap_err();
            let words =
                "is damaged at byte 4096: entries 0 to 1 (exclusive), offsets 0 to 1 (exclusive), cannot be read";
            assert!(error.to_string().contains(words), "{error}");
            assert!(matches!(entries(&copy(&disks[turn])).await, Err(LogError::Corrupt { .. })));
        }
    });
}

/// What another history has for the gap is not taken, wherever it differs; the next replica is asked.
#[test]
fn another_history() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        let forged = SimDisk::new();
        let log = open(&forged).await;
        append_one(&log, 1, 1_000).await;
        for number in 1..22 {
            append_one(&log, 1 + number % 3, 1_001 + 3_500 * (number as usize % 3)).await;
        }
        log.close().await.unwrap();
        let disk = copy(&good);
        disk.flip_bit(path(&stores(&good)[0]), 5 * BLOCK_BYTES as u64 + 5, 1);
        let before = disk.content(path(&stores(&good)[0]));
        let error = repair(&disk, &[&forged]).await.unwrap_err();
        assert!(
            matches!(&error, RepairError::Unfilled { reasons, .. } if reasons.contains("node 2: it has another history")),
            "{error}"
        );
        assert_eq!(disk.content(path(&stores(&good)[0])), before, "nothing was changed");
        let mended = repair(&disk, &[&forged, &good]).await.unwrap();
        assert_eq!(mended.from, [OTHER].into());
        same(&entries(&disk).await.unwrap(), &expected);
    });
}

/// A torn write at the end is cut also when something else is mended, and never asked for.
#[test]
fn torn_tail_stays_torn() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..4 {
            append_one(&log, 1, 5_000).await;
        }
        let good = power_fails(&disk, 1).await;
        let name = path(&stores(&good)[0]);
        let damaged = copy(&good);
        damaged.flip_bit(&name, BLOCK_BYTES as u64 + 9, 0);
        damaged.flip_bit(&name, 7 * BLOCK_BYTES as u64 + 900, 0);
        let report = repair(&damaged, &[&good]).await.unwrap();
        assert_eq!((report.entries, report.segments), (1, 1));
        assert_eq!(entries(&damaged).await.unwrap().len(), 3);
    });
}

/// Damage to the end of a log looks like a torn write; of a log that was open until then it is known to be none, and nothing
/// that was acknowledged is forgotten: what cannot be had from others yet is waited for.
#[test]
fn damaged_tail_of_an_open_log() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..4 {
            append_one(&log, 1, 5_000).await;
        }
        let flushed = log.flushed();
        let good = power_fails(&disk, 1).await;
        let expected = entries(&copy(&good)).await.unwrap();
        let name = path(&stores(&good)[0]);
        // All from one of the entries on, in their payloads or headers. What tells that they were durable without knowing it: the
        // header of a later one, and for the first one the segment's name.
        for (last, at) in (1..=4).flat_map(|last| [(last, 900), (last, 5)]) {
            let damaged = copy(&good);
            (last..=4).for_each(|entry| damaged.flip_bit(&name, (2 * entry - 1) * BLOCK_BYTES as u64 + at, 0));
            let looks_torn = if at == 900 { last == 4 } else { last > 1 };
            assert!(survey(&damaged, &options(64 << 10), None).await.unwrap().is_whole() == looks_torn);
            let error = repair_open(&damaged, &[], flushed).await.unwrap_err();
            assert!(matches!(&error, RepairError::Unfilled { .. }), "{error}");
            repair_open(&damaged, &[&good], flushed).await.unwrap();
            same(&entries(&damaged).await.unwrap(), &expected);
        }
    });
}

/// An entry that was mended says that all before it were durable, and those that were written together with it do not: what it
/// says is believed at each damaged place before it, and the log is mended once more.
#[test]
fn mended_beside_ones_that_say_less() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 1_000).await;
        let together = (0..5).map(|ahead| batch(&log, ahead, 1, 1_000)).collect();
        append(&log, together).await.unwrap().unwrap();
        let flushed = log.flushed();
        let good = power_fails(&disk, 1).await;
        let expected = entries(&copy(&good)).await.unwrap();
        assert_eq!(expected.iter().map(|entry| entry.header.durable_end).collect::<Vec<_>>(), [0, 1, 1, 1, 1, 1]);
        let name = path(&stores(&good)[0]);
        let damage = |disk: &SimDisk, index: u64| disk.flip_bit(&name, (1 + index) * BLOCK_BYTES as u64 + 9, 0);
        damage(&good, 4);
        let whole = power_fails(&disk, 1).await;
        repair_open(&good, &[&whole], flushed).await.unwrap();
        for indexes in [&[3][..], &[1, 3]] {
            let damaged = copy(&good);
            indexes.iter().for_each(|index| damage(&damaged, *index));
            assert!(matches!(entries(&copy(&damaged)).await, Err(LogError::Corrupt { .. })));
            assert_eq!(repair(&damaged, &[&whole]).await.unwrap().entries, indexes.len() as u64);
            same(&entries(&damaged).await.unwrap(), &expected);
        }
    });
}

/// Whatever happens to blocks of a log, and to what was mended of it, and again: a log that is said to be mended opens, with
/// all that is known to have been durable.
#[test]
fn blocks_anywhere() {
    block_on(async {
        let mut rebuilt = 0;
        for seed in 0..300 {
            let dice = &Cell::new(seed);
            let (good, foreign) = (SimDisk::new(), of_another_shard(12, 4_500).await);
            let log = open(&good).await;
            let mut count = 0;
            let sizes = if seed % 2 == 0 { [900, 4_500, 9_000] } else { [900; 3] };
            while count < 24 {
                let together = 1 + below(dice, 8);
                let new = (0..together).map(|ahead| batch(&log, ahead, 1, sizes[below(dice, 3) as usize])).collect();
                append(&log, new).await.unwrap().unwrap();
                count += together;
            }
            let flushed = log.flushed();
            let committed = Some(LogId { term: Term(1), index: Index(below(dice, count / 2)) });
            log.save_hard_state(HardState { vote: None, committed }).await.unwrap();
            let good = match below(dice, 4) {
                0 => {
                    log.close().await.unwrap();
                    copy(&good)
                }
                _ => power_fails(&good, 7).await,
            };
            let expected = entries(&copy(&good)).await.unwrap();
            let disk = copy(&good);
            for round in 0..4 {
                for _ in 0..1 + below(dice, 4) {
                    damage(&disk, &foreign, dice);
                }
                let what = format!("seed {seed}, round {round}");
                // It was open, or not.
                let known = flushed.filter(|_| below(dice, 2) == 0);
                let mended = repair_from(&disk, &[&good], known, Index(count)).await;
                rebuilt += mended.unwrap_or_else(|error| panic!("{what}: {error}")).segments;
                let found = entries(&disk.crash(0)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(found.len() as u64 > known.max(committed).unwrap().index.0, "{what}: {} entries", found.len());
                same(&found, &expected[..found.len()]);
            }
        }
        assert!(rebuilt > 600, "{rebuilt}");
    });
}

/// Damage to a log whose end was never committed, where others have another one by now: what they know to be committed takes its
/// place, or the log is whole as it was.
#[test]
fn another_end() {
    block_on(async {
        let mut ends = [0; 2];
        for seed in 0..300 {
            let dice = &Cell::new(seed);
            let disk = SimDisk::new();
            let log = open(&disk).await;
            let sizes = [900, 4_500, 9_000];
            let more = async |log: &TestLog, term, count| {
                for _ in 0..count {
                    append_of(log, term, sizes[below(dice, 3) as usize]).await;
                }
            };
            let shared = 1 + below(dice, 16);
            more(&log, 1, shared).await;
            let committed = (below(dice, 3) > 0).then(|| LogId { term: Term(1), index: Index(below(dice, shared)) });
            log.save_hard_state(HardState { vote: None, committed }).await.unwrap();
            let other = power_fails(&disk, 7).await;
            let (disk, theirs) = (copy(&other), open(&other).await);
            let own = 1 + below(dice, 12);
            more(&theirs, 3, own + below(dice, 3)).await;
            let committed_end = theirs.last().unwrap().index.next();
            let log = open(&disk).await;
            more(&log, 2, own).await;
            let flushed = log.flushed();
            let (disk, good) = (power_fails(&disk, 7).await, power_fails(&other, 7).await);
            let expected = [entries(&copy(&disk)).await.unwrap(), entries(&copy(&good)).await.unwrap()];
            for round in 0..3 {
                for _ in 0..1 + below(dice, 3) {
                    damage(&disk, &disk, dice);
                }
                let what = format!("seed {seed}, round {round}");
                let known = flushed.filter(|_| below(dice, 2) == 0);
                let early = repair_from(&copy(&disk), &[&good], known, Index(shared + own - 1)).await;
                // A segment may have been mended before one that could not be: then it is looked at once more.
                let mut tries = 0;
                while let Err(error) = repair_from(&disk, &[&good], known, committed_end).await {
                    tries += 1;
                    assert!(tries < 4 && matches!(error, RepairError::Unfilled { .. }), "{what}: {error}");
                }
                let found = entries(&copy(&disk)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                let replaced = found.last().is_some_and(|last| last.header.id.term == Term(3));
                ends[usize::from(replaced)] += 1;
                if replaced {
                    let is_early = known.is_some() && !matches!(early, Err(RepairError::Unfilled { .. }));
                    assert!(!is_early, "{what}: too early");
                }
                assert!(found.len() as u64 <= shared + own, "{what}: {} entries", found.len());
                let least = known.max(committed).map_or(0, |last| last.index.0 + 1);
                assert!(found.len() as u64 >= least, "{what}: {} entries", found.len());
                same(&found, &expected[usize::from(replaced)][..found.len()]);
                if replaced {
                    break;
                }
            }
        }
        assert!(ends[0] > 100 && ends[1] > 50, "{ends:?}");
    });
}

/// Appends a record in a batch of a term, and waits until it is durable.
async fn append_of(log: &TestLog, term: u64, bytes: usize) {
    let next = log.last().map_or(0, |last| last.index.0 + 1);
    let new = entry(EntryKind::Batch, next, term, log.log_end(), 1, bytes);
    append(log, vec![new]).await.unwrap().unwrap();
}

/// The log of shard 43, with so many entries.
async fn of_another_shard(count: u32, bytes: usize) -> SimDisk {
    let disk = SimDisk::new();
    let options = LogOptions { shard: ShardUid(43), ..options(64 << 10) };
    let log: TestLog = Log::open(disk.clone(), TailBudget::new(0), options).await.unwrap().0;
    for _ in 0..count {
        append_one(&log, 1, bytes).await;
    }
    power_fails(&disk, 1).await
}

/// A number below `end`.
fn below(dice: &Cell<u64>, end: u64) -> u64 {
    random(dice) % end
}

/// One block is hit by a bit, by zeros, or by what belongs to another place in this log or another's.
fn damage(disk: &SimDisk, foreign: &SimDisk, dice: &Cell<u64>) {
    let pick = |disk: &SimDisk| {
        let stores = stores(disk);
        let name = path(&stores[below(dice, stores.len() as u64) as usize]);
        let content = disk.content(&name);
        let at = below(dice, content.len().div_ceil(BLOCK_BYTES) as u64) as usize * BLOCK_BYTES;
        (name, content, at)
    };
    let (name, mut content, at) = pick(disk);
    let end = content.len().min(at + BLOCK_BYTES);
    let from_at = below(dice, content.len().div_ceil(BLOCK_BYTES) as u64) as usize * BLOCK_BYTES;
    let from = match below(dice, 4) {
        0 => return disk.flip_bit(&name, at as u64 + below(dice, (end - at) as u64), 3),
        1 => vec![0; BLOCK_BYTES],
        // Written there instead of where it belongs.
        2 => {
            let from_bytes = BLOCK_BYTES.min(content.len() - from_at);
            let block = content[from_at..][..from_bytes].to_vec();
            content[from_at..][..from_bytes].fill(0);
            block
        }
        _ => {
            let (_, content, at) = pick(foreign);
            content[at..].to_vec()
        }
    };
    let bytes = from.len().min(end - at);
    content[at..at + bytes].copy_from_slice(&from[..bytes]);
    disk.set_content(&name, content);
}

/// Power fails at every step of mending: the log is as damaged as before, or whole, and is mended in the end.
#[test]
fn crash_while_mending() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        let damaged = copy(&good);
        for name in stores(&good) {
            damaged.flip_bit(path(&name), 3 * BLOCK_BYTES as u64 + 9, 0);
        }
        damaged.flip_bit(path(&stores(&good)[1]), 17, 0);
        let (mut turns, mut states, sources) = (0, [0; 2], [&good]);
        loop {
            let disk = damaged.crash(0).with_latency(turns);
            let done = Cell::new(false);
            tokio::select! {
                biased;
                mended = repair(&disk, &sources) => { mended.unwrap(); done.set(true); }
                () = async { for _ in 0..turns { crate::env::yield_now().await; } } => {}
            }
            for seed in 0..3 {
                let disk = disk.crash(seed);
                match entries(&copy(&disk)).await {
                    Ok(found) => {
                        same(&found, &expected);
                        states[1] += 1;
                    }
                    Err(LogError::Corrupt { .. }) => states[0] += 1,
                    Err(error) => panic!("{error}"),
                }
                repair(&disk, &[&good]).await.unwrap();
                same(&entries(&disk).await.unwrap(), &expected);
            }
            if done.get() {
                break;
            }
            turns += 1;
        }
        assert!(turns > 20 && states[0] > 0 && states[1] > 0, "{turns} {states:?}");
    });
}

/// Power fails at every step of replacing an end that was never committed, of several segments: it is replaced in the end, as far
/// as it went, and none of it is forgotten on the way.
#[test]
fn crash_while_replacing() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        let more = async |log: &TestLog, term, count| {
            for _ in 0..count {
                append_of(log, term, 9_000).await;
            }
        };
        more(&log, 1, 3).await;
        let other = power_fails(&disk, 7).await;
        let (damaged, theirs) = (copy(&other), open(&other).await);
        more(&theirs, 3, 14).await;
        let log = open(&damaged).await;
        more(&log, 2, 14).await;
        let (damaged, good) = (power_fails(&damaged, 7).await, power_fails(&other, 7).await);
        assert!(stores(&damaged).len() > 3);
        let expected = entries(&copy(&good)).await.unwrap();
        damaged.flip_bit(path(&stores(&damaged)[1]), 4 * BLOCK_BYTES as u64 + 9, 0);
        let sequence = |disk: &SimDisk| SegmentHeader::parse(&disk.content(path(&stores(disk)[0]))).unwrap().sequence;
        let (mut turns, mut on_the_way, sources) = (0, 0, [&good]);
        loop {
            let disk = damaged.crash(0).with_latency(turns);
            let done = Cell::new(false);
            tokio::select! {
                biased;
                mended = repair_from(&disk, &sources, None, Index(17)) => { mended.unwrap(); done.set(true); }
                () = async { for _ in 0..turns { crate::env::yield_now().await; } } => {}
            }
            for seed in 0..3 {
                let disk = disk.crash(seed);
                // The new segment is there, and so are those whose place it takes.
                let is_new = sequence(&disk) > sequence(&damaged);
                on_the_way += u32::from(is_new && stores(&disk).len() > 1);
                repair_from(&disk, &[&good], None, Index(17)).await.unwrap();
                same(&entries(&disk).await.unwrap(), &expected);
            }
            if done.get() {
                break;
            }
            turns += 1;
        }
        assert!(turns > 20 && on_the_way > 0, "{turns} {on_the_way}");
    });
}

/// Purged entries are not needed: damage among them is mended without anybody, and the log begins where it did.
#[test]
fn damage_below_the_log_start() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        for _ in 0..5 {
            append_one(&log, 1, 5_000).await;
        }
        let third = log.read(Index(2), Index(3), 0).await.unwrap().remove(0);
        log.purge(crate::log::LogPoint { next: Index(3), ..log.end() }).await.unwrap();
        let crashed = power_fails(&disk, 1).await;
        let name = path(&stores(&crashed)[0]);
        for at in [4 * BLOCK_BYTES, BLOCK_BYTES, 0] {
            let damaged = copy(&crashed);
            damaged.flip_bit(&name, at as u64 + 20, 0);
            assert!(matches!(open_with(&damaged, 64 << 10, 0).await.map(|_| ()), Err(LogError::Corrupt { .. })));
            repair(&damaged, &[]).await.unwrap();
            assert!(survey(&damaged, &options(64 << 10), None).await.unwrap().is_whole());
            let (log, _) = open_with(&damaged, 64 << 10, 0).await.unwrap();
            assert_eq!((log.first_index(), log.purged()), (Index(3), Some(third.header.id)));
            assert_eq!(read_all(&log, 1 << 20).await.unwrap().len(), 2);
        }
    });
}

/// The only segment of a log of which nothing is known to be committed, with nothing left in it: what it held cannot be told,
/// so that only what others know to be committed is put in its place.
#[test]
fn nothing_left() {
    block_on(async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append_one(&log, 1, 5_000).await;
        let good = power_fails(&disk, 1).await;
        let name = path(&stores(&good)[0]);
        for kept in [0, BLOCK_BYTES] {
            let empty = copy(&good);
            empty.set_content(&name, [&good.content(&name)[..kept], &vec![0; 6 * BLOCK_BYTES]].concat());
            let error = repair(&empty, &[&good]).await.unwrap_err();
            assert!(error.to_string().contains("it does not know them to be committed"), "{error}");
            let mended = copy(&empty);
            assert_eq!(repair_from(&mended, &[&good], None, Index(1)).await.unwrap().entries, 1);
            same(&entries(&mended).await.unwrap(), &entries(&copy(&good)).await.unwrap());
            assert!(matches!(entries(&copy(&empty)).await, Err(LogError::Corrupt { .. })));
            let found = survey(&empty, &options(64 << 10), None).await.unwrap();
            assert!(cut(&empty, &options(64 << 10), &found).await.unwrap().is_some());
            assert_eq!(entries(&empty).await.unwrap().len(), 0);
        }
    });
}

/// Without a whole hard state nothing is mended; without its end, only what is known of it.
#[test]
fn hopeless() {
    block_on(async {
        let good = crashed().await;
        let lost = copy(&good);
        lost.flip_bit(path("hard_state"), 10, 0);
        lost.flip_bit(path("hard_state"), 4_106, 0);
        let error = repair(&lost, &[&good]).await.unwrap_err();
        assert!(
            matches!(&error, RepairError::Hopeless(_)) && error.to_string().contains("the vote in it is lost"),
            "{error}"
        );
        // What was committed comes back, by its log id; and is not taken from where another entry has its place.
        let expected = entries(&copy(&good)).await.unwrap();
        let name = stores(&good).pop().unwrap();
        let cut = copy(&good);
        cut.set_content(path(&name), good.content(path(&name))[..BLOCK_BYTES].to_vec());
        repair(&copy(&cut), &[&good]).await.unwrap();
        let mended = repair(&cut, &[&good]).await.unwrap();
        assert_eq!(mended.from, [PEER].into());
        same(&entries(&cut).await.unwrap(), &expected);
    });
}

/// One copy: what is in front of the damage stays, everything else is kept aside, and the log goes on.
#[test]
fn cut_off() {
    block_on(async {
        let good = crashed().await;
        let expected = entries(&copy(&good)).await.unwrap();
        for (number, name) in stores(&good).into_iter().enumerate() {
            for position in [0, 2 * BLOCK_BYTES] {
                let disk = copy(&good);
                disk.flip_bit(path(&name), position as u64 + 20, 0);
                let found = survey(&disk, &options(64 << 10), None).await.unwrap();
                let Some(first) = found.gaps().next().map(|gap| gap.before) else {
                    assert!(position == 0, "only its header can be spared");
                    continue;
                };
                let done = cut(&disk, &options(64 << 10), &found).await.unwrap().unwrap();
                assert_eq!((done.end, done.kept.is_empty()), (first.offset, false));
                assert!(done.kept.iter().all(|kept| disk.paths().contains(kept)), "{:?}", done.kept);
                let (log, _) = open_with(&disk, 64 << 10, 0).await.unwrap();
                assert_eq!(log.end(), first);
                same(&read_all(&log, 1 << 20).await.unwrap(), &expected[..first.next.0 as usize]);
                append_one(&log, 1, 100).await;
                assert!(number == 0 || first.next > Index(0));
                assert!(
                    log.hard_state().committed.is_none_or(|id: LogId| id < LogId { term: Term(1), index: first.next })
                );
            }
        }
    });
}
