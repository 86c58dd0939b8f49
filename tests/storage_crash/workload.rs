//! What is done to a log on the recording device, and what that promises at each operation of the device.

use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc};

use ringlog::{
    config::DurableForm,
    env::{
        buffer::Buffer,
        disk::{DiskOptions, RealDisk},
        real::RealEnv,
    },
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryKind, NewEntry, StoredEntry},
        state_files::{HardState, Vote},
    },
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term},
    log::{Log, LogOptions, TailBudget},
};

use crate::device::Recorder;

/// A log on a real disk.
pub type RealLog = Log<RealEnv>;

/// Something that was promised or begun when the device had done so many operations.
#[derive(Clone, Debug)]
pub struct Event {
    /// Operations before it.
    pub at: usize,
    /// It.
    pub what: What,
}

/// See `Event`.
#[derive(Clone, Debug)]
pub enum What {
    /// An entry was handed over.
    Sent(LogId),
    /// It is durable, and all before it.
    Acked(LogId),
    /// Entries from here on may go.
    Cutting(u64),
    /// They are gone.
    Cut(u64),
    /// Entries below may go.
    Purging(u64),
    /// They are gone.
    Purged(u64),
    /// The hard state may become that of this term.
    Voting(u64),
    /// It is.
    Voted(u64),
    /// A checkpoint at this index is there.
    Checkpointed(u64),
}

/// An entry's payload follows from its place, and nothing else has it.
pub fn payload(id: LogId) -> Vec<u8> {
    let (index, term) = (id.index.0, id.term.0);
    let bytes = index * 7_919 % 9_000 + if index.is_multiple_of(17) { 60_000 } else { 0 };
    (0..bytes).map(|at| (index * 31 + term * 7 + at * 3 + (at >> 8)) as u8).collect()
}

/// Opens the log below `root`.
pub async fn open(root: &Path, form: DurableForm) -> Result<RealLog, String> {
    let options = DiskOptions { durable_form: form, ..DiskOptions::default() };
    let (disk, _) = RealDisk::open(&root.join("data"), options).map_err(|error| error.to_string())?;
    let options = LogOptions { dir: "shard".into(), shard: ShardUid(42), segment_bytes_max: 1 << 20, owner: 0 };
    let opened = Log::open(disk, TailBudget::new(1 << 16), options).await;
    opened.map(|(log, _)| log).map_err(|error| error.to_string())
}

/// All entries of a log.
pub async fn read_all(log: &RealLog) -> Result<Vec<StoredEntry>, String> {
    let end = log.last().map_or(log.first_index(), |last| last.index.next());
    let (mut at, mut entries) = (log.first_index(), Vec::new());
    while at < end {
        let piece = log.read(at, end, 1 << 20).await.map_err(|error| error.to_string())?;
        at = Index(at.0 + piece.len() as u64);
        entries.extend(piece);
    }
    Ok(entries)
}

/// The state that a vote in `term` makes.
pub fn hard_state(term: u64) -> HardState {
    HardState { vote: Some(Vote { term: Term(term), node: NodeId(term % 3 + 1), committed: false }), committed: None }
}

/// A log in use, and the list of what was promised.
pub struct Workload {
    log: RealLog,
    recorder: Recorder,
    events: Rc<RefCell<Vec<Event>>>,
    rng: fastrand::Rng,
    term: u64,
    /// Appended and not answered.
    waiting: Rc<RefCell<BTreeMap<u64, LogId>>>,
}

impl Workload {
    /// On the device's file system.
    pub async fn begin(root: &Path, recorder: &Recorder, form: DurableForm, seed: u64) -> Workload {
        let log = open(root, form).await.unwrap();
        let rng = fastrand::Rng::with_seed(seed);
        Workload { log, recorder: recorder.clone(), events: Rc::default(), rng, term: 1, waiting: Rc::default() }
    }

    /// Does this many things, and gives what they promised.
    pub async fn run(mut self, steps: usize) -> Vec<Event> {
        for _ in 0..steps {
            match self.rng.u32(..100) {
                0..3 => self.truncate().await,
                3..6 => self.purge().await,
                6..12 => self.vote().await,
                12..15 => self.checkpoint().await,
                _ => self.append().await,
            }
        }
        self.quiet().await;
        self.log.close().await.unwrap();
        self.events.take()
    }

    fn note(&self, what: What) {
        self.events.borrow_mut().push(Event { at: self.recorder.len(), what });
    }

    fn next(&self) -> u64 {
        self.log.last().map_or(self.log.first_index(), |last| last.index.next()).0
    }

    async fn append(&mut self) {
        let count = 1 + self.rng.u64(..3);
        let (mut offset, mut entries) = (self.log.log_end(), Vec::new());
        for number in 0..count {
            let id = LogId { term: Term(self.term), index: Index(self.next() + number) };
            self.note(What::Sent(id));
            entries.push(entry(id, offset));
            offset = offset.plus(1);
        }
        let last = LogId { term: Term(self.term), index: Index(self.next() + count - 1) };
        self.waiting.borrow_mut().insert(last.index.0, last);
        let (events, recorder, waiting) = (self.events.clone(), self.recorder.clone(), self.waiting.clone());
        let done = Box::new(move |result: Result<(), _>| {
            result.unwrap();
            waiting.borrow_mut().remove(&last.index.0);
            events.borrow_mut().push(Event { at: recorder.len(), what: What::Acked(last) });
        });
        self.log.append(entries, done).unwrap();
        // Sometimes alone, sometimes in groups.
        if self.rng.bool() {
            self.quiet().await;
        }
        while self.waiting.borrow().len() > 8 {
            tokio::task::yield_now().await;
        }
    }

    async fn quiet(&self) {
        while !self.waiting.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    async fn truncate(&mut self) {
        self.quiet().await;
        let cut = self.next().saturating_sub(self.rng.u64(..6)).max(self.log.first_index().0);
        self.note(What::Cutting(cut));
        self.log.truncate_after(cut.checked_sub(1).map(Index)).await.unwrap();
        self.note(What::Cut(cut));
        self.term += 1;
    }

    async fn purge(&mut self) {
        self.quiet().await;
        let (first, next) = (self.log.first_index().0, self.next());
        let to = first + (next - first) / 2;
        if to == first {
            return;
        }
        let entries = read_all(&self.log).await.unwrap();
        let before = &entries[(to - 1 - first) as usize].header;
        self.note(What::Purging(to));
        let point = ringlog::log::LogPoint {
            next: Index(to),
            term: before.id.term,
            offset: before.end_offset(),
            chain: before.chain,
            timestamp_max_us: before.timestamp_max_us,
        };
        self.log.purge(point).await.unwrap();
        self.note(What::Purged(to));
    }

    async fn vote(&mut self) {
        self.term += 1;
        self.note(What::Voting(self.term));
        self.log.save_hard_state(hard_state(self.term)).await.unwrap();
        self.note(What::Voted(self.term));
    }

    async fn checkpoint(&mut self) {
        self.quiet().await;
        if let Some(last) = self.log.last() {
            self.log.save_checkpoint(last.index, payload(last).into()).await.unwrap();
            self.note(What::Checkpointed(last.index.0));
        }
    }
}

/// A batch of one record.
pub fn entry(id: LogId, offset: Offset) -> NewEntry {
    let mut buffer = Buffer::zeroed(ENTRY_HEADER_BYTES);
    buffer.extend(&payload(id));
    NewEntry {
        id,
        kind: EntryKind::Batch,
        record_count: 1,
        base_offset: offset,
        timestamp_us: 1_000_000 + id.index.0 as i64,
        record_timestamp_max_us: 1_000 * id.index.0 as i64,
        buffer,
        leader: None,
        charge: None,
    }
}
