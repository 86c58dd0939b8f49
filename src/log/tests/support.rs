//! What the log's tests share: a log on a simulated disk, entries, and a look at all of it.

use std::{cell::RefCell, path::PathBuf, rc::Rc};

use crate::{
    env::{
        buffer::Buffer,
        channel::{OneshotReceiver, oneshot},
    },
    format::entry::{ENTRY_HEADER_BYTES, EntryKind, NewEntry, StoredEntry},
    ids::{Index, LogId, Offset, ShardUid, Term},
    log::{Log, LogError, LogOptions, Recovered, TailBudget},
    sim::{SimDisk, TestEnv},
};

pub const SHARD: ShardUid = ShardUid(42);
pub const DIR: &str = "/data/shards/42";

pub type TestLog = Log<TestEnv>;

pub fn options(segment_bytes_max: u64) -> LogOptions {
    LogOptions { dir: DIR.into(), shard: SHARD, segment_bytes_max, owner: 0 }
}

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(DIR).join(name)
}

/// Names in the log's directory.
pub fn names(disk: &SimDisk) -> Vec<String> {
    let paths = disk.paths();
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

pub async fn open_with(disk: &SimDisk, segment_bytes_max: u64, tail: usize) -> Result<(TestLog, Recovered), LogError> {
    Log::open(disk.clone(), TailBudget::new(tail), options(segment_bytes_max)).await
}

/// Opens with segments of at most 64 KiB and a tail of a few entries, so that reads go to the disk.
pub async fn open(disk: &SimDisk) -> TestLog {
    open_with(disk, 64 << 10, 20_000).await.unwrap().0
}

/// A batch of `count` records for the log's end, with a payload of this size that nothing else has.
pub fn batch(log: &TestLog, ahead: u64, count: u32, bytes: usize) -> NewEntry {
    let next = log.last().map_or(0, |last| last.index.0 + 1) + ahead;
    entry(EntryKind::Batch, next, 1, log.log_end().plus(ahead * u64::from(count)), count, bytes)
}

pub fn entry(kind: EntryKind, index: u64, term: u64, base: Offset, count: u32, bytes: usize) -> NewEntry {
    let mut buffer = Buffer::zeroed(ENTRY_HEADER_BYTES);
    buffer.extend(&payload(index, term, bytes));
    NewEntry {
        id: LogId { term: Term(term), index: Index(index) },
        kind,
        record_count: count,
        base_offset: base,
        timestamp_us: 1_000_000 + index as i64,
        record_timestamp_max_us: if count > 0 { 1_000 * index as i64 } else { i64::MIN },
        buffer,
        leader: None,
        charge: None,
    }
}

pub fn payload(index: u64, term: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (index * 31 + term * 7 + at * 3 + (at >> 8)) as u8).collect()
}

/// Appends, and tells when it is durable.
pub fn append(log: &TestLog, entries: Vec<NewEntry>) -> OneshotReceiver<Result<(), LogError>> {
    let (sender, receiver) = oneshot();
    log.append(entries, Box::new(move |result| drop(sender.send(result)))).unwrap();
    receiver
}

/// Appends one batch and waits until it is durable.
pub async fn append_one(log: &TestLog, count: u32, bytes: usize) {
    append(log, vec![batch(log, 0, count, bytes)]).await.unwrap().unwrap();
}

/// All entries, read in pieces of `bytes_max`.
pub async fn read_all(log: &TestLog, bytes_max: usize) -> Result<Vec<StoredEntry>, LogError> {
    let mut entries: Vec<StoredEntry> = Vec::new();
    let mut at = log.first_index();
    let end = log.last().map_or(Index(0), |last| last.index.next());
    while at < end {
        let piece = log.read(at, end, bytes_max).await?;
        assert!(!piece.is_empty());
        at = Index(at.0 + piece.len() as u64);
        entries.extend(piece);
    }
    Ok(entries)
}

/// Order in which things happened.
pub type Events = Rc<RefCell<Vec<&'static str>>>;

pub fn event(events: &Events, name: &'static str) -> crate::log::OnDurable {
    let events = events.clone();
    Box::new(move |_| events.borrow_mut().push(name))
}

/// Lets other tasks run until nothing more happens.
pub async fn settle() {
    for _ in 0..200 {
        crate::env::yield_now().await;
    }
}

/// What the power leaves when it fails once all that was begun is done; nothing can be done with the disk itself any more.
pub async fn power_fails(disk: &SimDisk, seed: u64) -> SimDisk {
    settle().await;
    let left = disk.crash(seed);
    disk.power_off();
    left
}

/// A copy to damage, of a disk on which nothing is under way.
pub fn copy(disk: &SimDisk) -> SimDisk {
    disk.crash(0)
}
