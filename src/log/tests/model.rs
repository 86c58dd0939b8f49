//! The log against a `Vec`: any history of appends, truncations, purges, clean reopens, crashes (in the middle of
//! anything, recovery included) and full disks leaves what the `Vec` says.
//!
//! To replay a failure: proptest prints the history; put it into a test of its own.

use std::cell::Cell;

use proptest::prelude::*;

use super::support::*;
use crate::{
    env::{channel::OneshotReceiver, runtime::block_on},
    format::entry::{EntryHeader, EntryKind},
    ids::{Index, LogId, NodeId, Offset, Term},
    log::{HardState, LogError, LogPoint, Vote, verify::verify_dir},
    sim::{SimDisk, TestEnv, random},
};

#[derive(Clone, Debug)]
enum Step {
    /// Entries in one append; `wait`: until they are durable.
    Append {
        entries: Vec<(u32, usize)>,
        wait: bool,
    },
    /// A batch for an offset that is not the log's end.
    Misplaced,
    /// A new leader.
    Term,
    /// Removes this many entries at the end; `cut`: the power goes after so many turns.
    Truncate {
        entries: u64,
        cut: Option<u8>,
    },
    /// Removes about this many percent at the start.
    Purge {
        percent: u64,
        cut: Option<u8>,
    },
    /// Goes on further ahead, as after a snapshot.
    Skip {
        entries: u64,
    },
    SaveHardState,
    Checkpoint,
    Reopen,
    Crash {
        seed: u64,
        turns: u8,
        again: Option<u8>,
    },
    /// From now on the disk has only that much room, until the next `Roomy`.
    Full {
        bytes: u64,
    },
    Roomy,
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop_oneof![4 => 0..3_000usize, 2 => 3_000..20_000usize, 1 => 50_000..90_000usize];
    let entries = prop::collection::vec((0..4u32, sizes), 1..4);
    let cut = || prop::option::weighted(0.3, 0..40u8);
    prop_oneof![
        20 => (entries, any::<bool>()).prop_map(|(entries, wait)| Step::Append { entries, wait }),
        1 => Just(Step::Misplaced),
        2 => Just(Step::Term),
        3 => (0..12u64, cut()).prop_map(|(entries, cut)| Step::Truncate { entries, cut }),
        2 => (0..=100u64, cut()).prop_map(|(percent, cut)| Step::Purge { percent, cut }),
        1 => (1..50u64).prop_map(|entries| Step::Skip { entries }),
        2 => Just(Step::SaveHardState),
        1 => Just(Step::Checkpoint),
        2 => Just(Step::Reopen),
        5 => (any::<u64>(), 0..30u8, cut()).prop_map(|(seed, turns, again)| Step::Crash { seed, turns, again }),
        1 => (0..200_000u64).prop_map(|bytes| Step::Full { bytes }),
        2 => Just(Step::Roomy),
    ]
}

/// What the log should hold.
struct Model {
    disk: SimDisk,
    log: TestLog,
    dice: Cell<u64>,
    start: Index,
    start_offset: Offset,
    /// From `start` on.
    entries: Vec<EntryHeader>,
    /// All below are durable.
    acked: Index,
    waiting: Vec<(Index, OneshotReceiver<Result<(), LogError>>)>,
    term: u64,
    hard: HardState,
    /// What the start and the end may be after a crash in the middle of a change.
    start_lag: Option<(Index, Offset, Vec<EntryHeader>)>,
    end_min: Index,
}

impl Model {
    async fn new(seed: u64) -> Model {
        TestEnv::reset(seed);
        let disk = SimDisk::new().with_latency(seed);
        let log = open(&disk).await;
        Model {
            disk,
            log,
            dice: Cell::new(seed),
            start: Index(0),
            start_offset: Offset(0),
            entries: Vec::new(),
            acked: Index(0),
            waiting: Vec::new(),
            term: 1,
            hard: HardState::default(),
            start_lag: None,
            end_min: Index(0),
        }
    }

    fn end(&self) -> Index {
        Index(self.start.0 + self.entries.len() as u64)
    }

    fn note_acks(&mut self) {
        let mut acked = self.acked;
        self.waiting.retain_mut(|(end, receiver)| match receiver.try_recv() {
            Ok(Some(result)) => {
                result.unwrap();
                acked = acked.max(*end);
                false
            }
            Ok(None) => true,
            Err(_) => panic!("every append is answered while the log lives"),
        });
        self.acked = acked;
    }

    async fn append(&mut self, new: Vec<(EntryKind, Offset, u32, usize)>, wait: bool) {
        let mut next = self.end().0;
        let mut list = Vec::new();
        for (kind, base, count, bytes) in new {
            list.push(entry(kind, next, self.term, base, count, bytes));
            next += 1;
        }
        let room: usize = list.iter().map(|entry| entry.buffer.padded_len()).sum();
        TestEnv::advance_us(10_000);
        if self.log.has_room(room).is_err() {
            return;
        }
        let mut receiver = append(&self.log, list);
        let entries = self.log.read(self.end(), Index(next), usize::MAX).await.unwrap();
        self.entries.extend(entries.iter().map(|entry| entry.header));
        assert_eq!(self.end(), Index(next), "appended entries can be read at once");
        // Without room the wait would be for ever.
        if wait && self.log.has_room(0).is_ok() {
            self.disk.set_capacity(None);
            (&mut receiver).await.unwrap().unwrap();
            self.acked = Index(next);
            self.waiting.clear();
        } else {
            self.waiting.push((Index(next), receiver));
        }
    }

    /// Appends are not made while the log is cut: waits for those in flight.
    async fn quiet(&mut self) {
        self.disk.set_capacity(None);
        for (end, receiver) in self.waiting.drain(..) {
            receiver.await.unwrap().unwrap();
            self.acked = end;
        }
    }

    async fn truncate(&mut self, count: u64, cut: Option<u8>) {
        self.quiet().await;
        let end = Index(self.end().0 - count.min(self.entries.len() as u64));
        // Committed entries are never truncated.
        let end = end.max(self.hard.committed.map_or(Index(0), |committed| committed.index.next()));
        let last = end.0.checked_sub(1).map(Index);
        self.end_min = end;
        let done = turns(cut, self.log.truncate_after(last)).await;
        match done {
            Some(result) => {
                result.unwrap();
                self.entries.truncate((end.0 - self.start.0) as usize);
                self.acked = end;
            }
            None => {
                self.acked = self.acked.min(end);
                self.crash(0, None).await;
            }
        }
    }

    async fn purge(&mut self, percent: u64, cut: Option<u8>) {
        self.quiet().await;
        let count = self.entries.len() as u64 * percent / 100;
        let Some(last) = count.checked_sub(1).map(|number| self.entries[number as usize]) else { return };
        let before = (self.start, self.start_offset, self.entries.clone());
        let done = turns(cut, self.log.purge(crate::log::point_after(&last))).await;
        self.start = last.id.index.next();
        self.start_offset = last.end_offset();
        self.entries.drain(..count as usize);
        match done {
            Some(result) => result.unwrap(),
            None => {
                self.start_lag = Some(before);
                self.crash(0, None).await;
            }
        }
    }

    async fn skip(&mut self, count: u64) {
        self.quiet().await;
        let id = LogId { term: Term(self.term), index: Index(self.end().0 + count) };
        let offset = self.log.log_end().plus(count);
        let to = LogPoint { next: id.index.next(), term: id.term, offset, chain: 77, timestamp_max_us: 99 };
        self.log.purge(to).await.unwrap();
        assert_eq!(self.log.end(), to);
        self.start = id.index.next();
        self.start_offset = offset;
        self.entries.clear();
        self.acked = self.start;
        assert_eq!((self.log.last(), self.log.purged(), self.log.chain()), (Some(id), Some(id), 77));
    }

    async fn save_hard_state(&mut self) {
        let committed = self.log.flushed().filter(|id| id.index >= self.start);
        let committed = committed.or(self.hard.committed);
        let vote = Some(Vote { term: Term(self.term), node: NodeId(3), committed: self.term.is_multiple_of(2) });
        self.hard = HardState { vote, committed };
        self.disk.set_capacity(None);
        self.log.save_hard_state(self.hard).await.unwrap();
        self.acked = self.acked.max(committed.map_or(Index(0), |id| id.index.next())).min(self.end());
    }

    async fn crash(&mut self, seed: u64, again: Option<u8>) {
        self.note_acks();
        self.disk.set_capacity(None);
        let mut disk = self.disk.crash(seed ^ random(&self.dice)).with_latency(random(&self.dice));
        self.disk.power_off();
        self.waiting.clear();
        if again.is_some() {
            // The power goes once more while the log is opened.
            let opened = turns(again, open_with(&disk, 64 << 10, 20_000)).await;
            if let Some(result) = opened {
                result.unwrap();
            }
            let next = disk.crash(random(&self.dice)).with_latency(random(&self.dice));
            disk.power_off();
            disk = next;
        }
        let report = verify_dir(&disk, DIR.as_ref()).await;
        if disk.paths().iter().any(|path| path.ends_with("hard_state")) {
            assert_eq!(report.unwrap().problems, []);
        }
        self.disk = disk;
        self.log = open_with(&self.disk, 64 << 10, 20_000).await.unwrap().0;
        self.reconcile();
    }

    /// After a crash the log may hold less than was appended, not less than was acknowledged.
    fn reconcile(&mut self) {
        if let Some((start, offset, entries)) = self.start_lag.take()
            && self.log.first_index() == start
        {
            (self.start, self.start_offset, self.entries) = (start, offset, entries);
        }
        assert_eq!(self.log.first_index(), self.start);
        let end = self.log.last().map_or(Index(0), |last| last.index.next());
        assert!(self.acked.max(self.start) <= end, "acknowledged up to {}, found up to {end}", self.acked);
        assert!(end <= self.end(), "appended up to {}, found up to {end}", self.end());
        self.entries.truncate((end.0 - self.start.0) as usize);
        self.acked = end;
    }

    async fn check(&mut self) {
        self.note_acks();
        let found = read_all(&self.log, 30_000).await.unwrap();
        assert_eq!(found.len(), self.entries.len());
        for (found, expected) in found.iter().zip(&self.entries) {
            let EntryHeader { segment, durable_end, .. } = found.header;
            assert_eq!(found.header, EntryHeader { segment, durable_end, ..*expected });
            let bytes = expected.payload_bytes as usize;
            assert_eq!(found.payload(), payload(expected.id.index.0, expected.id.term.0, bytes));
        }
        assert_eq!(self.log.hard_state(), self.hard);
        let last = self.entries.last();
        assert_eq!(self.log.log_end(), last.map_or(self.start_offset, EntryHeader::end_offset));
        if let Some(pick) = self.entries.get(random(&self.dice) as usize % self.entries.len().max(1)) {
            let found = self.log.find_offset(pick.base_offset).await.unwrap();
            let first = self.entries.iter().find(|entry| entry.end_offset() > pick.base_offset);
            assert_eq!(found, first.map(|entry| entry.id.index));
        }
        let infos = self.log.segments();
        assert!(infos.windows(2).all(|pair| pair[0].last.index.next() == pair[1].first.index));
        assert!(infos.windows(2).all(|pair| pair[0].end_offset == pair[1].base_offset));
        assert!(self.log.flushed() <= self.log.last());
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Append { entries, wait } => {
                let mut base = self.log.log_end();
                let mut new = Vec::new();
                for (count, bytes) in entries {
                    let kind = if *count == 0 { EntryKind::Blank } else { EntryKind::Batch };
                    new.push((kind, base, *count, *bytes));
                    base = base.plus(u64::from(*count));
                }
                self.append(new, *wait).await;
            }
            Step::Misplaced => {
                let base = self.log.log_end().plus(5);
                self.append(vec![(EntryKind::Batch, base, 2, 100)], true).await;
            }
            Step::Term => self.term += 1,
            Step::Truncate { entries, cut } => self.truncate(*entries, *cut).await,
            Step::Purge { percent, cut } => self.purge(*percent, *cut).await,
            Step::Skip { entries } => self.skip(*entries).await,
            Step::SaveHardState => self.save_hard_state().await,
            Step::Checkpoint => {
                if let Some(last) = self.log.flushed() {
                    let saved = self.log.save_checkpoint(last.index, b"state"[..].into()).await;
                    assert!(matches!(saved, Ok(()) | Err(LogError::Full { .. })), "{saved:?}");
                }
            }
            Step::Reopen => {
                self.quiet().await;
                self.log.close().await.unwrap();
                let (log, recovered) = open_with(&self.disk, 64 << 10, 20_000).await.unwrap();
                assert!(recovered.clean && recovered.entries_scanned == 0, "{recovered:?}");
                self.log = log;
            }
            Step::Crash { seed, turns, again } => {
                yields(*turns).await;
                self.crash(*seed, *again).await;
            }
            Step::Full { bytes } => self.disk.set_capacity(Some(self.disk.used_bytes() + bytes)),
            Step::Roomy => self.disk.set_capacity(None),
        }
    }
}

async fn yields(turns: u8) {
    for _ in 0..turns {
        crate::env::yield_now().await;
    }
}

/// Polls for so many turns and then gives up; without a bound to the end.
async fn turns<T>(turns: Option<u8>, work: impl Future<Output = T>) -> Option<T> {
    match turns {
        None => Some(work.await),
        Some(turns) => tokio::select! {
            biased;
            done = work => Some(done),
            () = yields(turns) => None,
        },
    }
}

/// More of them: `PROPTEST_CASES=10000 cargo test --lib log_is_a_vec`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 500,
        failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history.
    #[test]
    fn log_is_a_vec(seed in any::<u64>(), steps in prop::collection::vec(step(), 1..40)) {
        block_on(async {
            let mut model = Model::new(seed).await;
            for step in &steps {
                model.step(step).await;
                model.check().await;
            }
            model.crash(seed, None).await;
            model.check().await;
        });
    }
}

/// What a crash leaves of an index that was written before is no damage: of a clean close, after which more was appended, and
/// of a segment that was cut and written again. (Inputs that `log_is_a_vec` has found, about one in 400.)
#[test]
fn an_index_of_before() {
    let append = |entries: &[(u32, usize)], wait| Step::Append { entries: entries.to_vec(), wait };
    let reopened = [
        Step::Term,
        append(&[(0, 0), (0, 8_065), (0, 8_065)], false),
        Step::Reopen,
        append(&[(0, 3_969), (0, 0)], false),
        Step::SaveHardState,
        append(&[(0, 0)], true),
        append(&[(0, 0), (0, 3_969), (0, 0)], false),
    ];
    for seed in (0..40).chain([12_936_897_742_221_003_218]) {
        block_on(async {
            let mut model = Model::new(seed).await;
            for step in &reopened {
                model.step(step).await;
                model.check().await;
            }
            model.crash(seed, None).await;
            model.check().await;
        });
    }
}
