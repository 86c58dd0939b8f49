//! Large legal histories, made by a log that keeps every promise, and what a single change makes of them.

use std::{cell::Cell, collections::VecDeque};

use super::*;
use crate::sim::{checker::Finding, random};

const SHARDS: usize = 3;
const NODES: usize = 3;

/// A shard that keeps every promise.
#[derive(Default)]
struct Model {
    log: Vec<Fingerprint>,
    /// Ends of its entries.
    ends: Vec<usize>,
    /// How many of the entries each replica knows to be committed.
    known: [usize; NODES],
    /// Sent, and not written yet.
    queue: VecDeque<Produce>,
    /// Given up by their clients, and still on their way.
    late: Vec<Produce>,
}

/// Clients, a clock, and shards.
struct World {
    seed: Cell<u64>,
    now_us: u64,
    sent: u64,
    models: [Model; SHARDS],
    events: Vec<Event>,
}

impl World {
    fn new(seed: u64) -> World {
        World { seed: Cell::new(seed), now_us: 1, sent: 0, models: Default::default(), events: Vec::new() }
    }

    fn below(&self, end: u64) -> u64 {
        random(&self.seed) % end
    }

    /// Lets clients do things until there are so many events, then reads all replicas.
    fn run(mut self, events: usize) -> Vec<Event> {
        while self.events.len() < events {
            let shard = self.below(SHARDS as u64) as usize;
            self.now_us += self.below(3);
            match self.below(10) {
                0..=3 => self.send(shard),
                4..=6 => self.commit(shard),
                7..=8 => self.read(shard),
                _ => self.status(shard),
            }
        }
        for shard in 0..SHARDS {
            while !self.models[shard].queue.is_empty() {
                self.commit(shard);
            }
            let given_up = std::mem::take(&mut self.models[shard].late);
            self.events.extend(given_up.into_iter().map(Event::Produce));
        }
        self.now_us += 1_000;
        for shard in 0..SHARDS {
            (1..=NODES as u64).for_each(|node| self.read_all(shard, node));
        }
        self.events
    }

    fn send(&mut self, shard: usize) {
        let (client, count) = (self.below(4), 1 + self.below(4));
        let records =
            (self.sent..self.sent + count).map(|n| Fingerprint::of(format!("record {n}").as_bytes())).collect();
        self.sent += count;
        let mut produce = produce((self.now_us, self.now_us), &[], Outcome::Indefinite);
        (produce.client, produce.shard, produce.records) = (format!("w{client}"), shard as u32, records);
        produce.stream = (client != 0).then_some(StreamPlace { id: client, sequence: self.sent });
        match self.below(20) {
            0 => {
                produce.outcome = Outcome::Failed;
                self.events.push(Event::Produce(produce));
            }
            1 => self.models[shard].late.push(produce),
            // Written, and its client never hears of it.
            2 => self.models[shard].queue.push_back(produce),
            _ => {
                let ack = Ack { base_offset: 0, count, durability: Durability::QuorumFlushed, timestamp_us: None };
                produce.outcome = Outcome::Acked(ack);
                self.models[shard].queue.push_back(produce);
            }
        }
    }

    fn commit(&mut self, shard: usize) {
        let is_late = self.below(20) == 0;
        let answer_us = self.now_us + self.below(20);
        let model = &mut self.models[shard];
        let next = if is_late { model.late.pop() } else { model.queue.pop_front() };
        let Some(mut produce) = next else { return };
        produce.end_us = answer_us;
        if let Outcome::Acked(ack) = &mut produce.outcome {
            ack.base_offset = model.log.len() as u64;
        }
        model.log.extend(&produce.records);
        model.ends.push(model.log.len());
        self.events.push(Event::Produce(produce));
    }

    fn read(&mut self, shard: usize) {
        let (node, client, kind) = (self.below(NODES as u64) as usize, self.below(3), self.below(4));
        let (news, back, limit) = (self.below(4), self.below(12), self.below(9));
        let begin_us = self.now_us;
        self.now_us += 1 + self.below(3);
        let model = &mut self.models[shard];
        let entries = model.ends.len();
        let known = &mut model.known[node];
        *known = if kind < 2 { entries } else { entries.min(*known + news as usize) };
        let end = known.checked_sub(1).map_or(0, |last| model.ends[last]);
        let from = end.saturating_sub(back as usize);
        let taken = from..end.min(from + limit as usize);
        let records: Vec<_> = taken.map(|offset| (offset as u64, model.log[offset])).collect();
        self.events.push(Event::Read(Read {
            client: format!("r{client}"),
            shard: shard as u32,
            node: Some(node as u64 + 1),
            next_offset: (from + records.len()) as u64,
            records,
            high_watermark: end as u64,
            min_offset: (kind == 1).then_some(end as u64),
            linearizable: kind == 0,
            log_start: Some(0),
            ..reading((begin_us, self.now_us), from as u64, &[])
        }));
    }

    fn status(&mut self, shard: usize) {
        let node = self.below(NODES as u64) as usize;
        let applied_end = self.models[shard].known[node] as u64;
        let Event::Status(status) = status(node as u64 + 1, applied_end, applied_end.wrapping_mul(0x9e37_79b9)) else {
            unreachable!("that is what it makes")
        };
        let (begin_us, end_us) = (self.now_us, self.now_us);
        self.events.push(Event::Status(Status { shard: shard as u32, begin_us, end_us, log_start: Some(0), ..status }));
    }

    fn read_all(&mut self, shard: usize, node: u64) {
        let span = (self.now_us, self.now_us + 5);
        self.now_us += 10;
        let log = &self.models[shard].log;
        let records = (0..).zip(log.iter().copied()).collect();
        let end_offset = log.len() as u64;
        let read = FinalRead { shard: shard as u32, records, end_offset, ..final_reading(span, node, &[]) };
        self.events.push(Event::FinalRead(read));
    }
}

/// The last read that fits, to be changed.
fn last_read(events: &mut [Event], fits: impl Fn(&Read) -> bool) -> &mut Read {
    let reads =
        events.iter_mut().rev().filter_map(|event| if let Event::Read(read) = event { Some(read) } else { None });
    reads.into_iter().find(|read| fits(read)).unwrap()
}

/// The last batch that fits, to be changed.
fn last_batch(events: &mut [Event], fits: impl Fn(&Produce) -> bool) -> &mut Produce {
    let batches = events
        .iter_mut()
        .rev()
        .filter_map(|event| if let Event::Produce(produce) = event { Some(produce) } else { None });
    batches.into_iter().find(|produce| fits(produce)).unwrap()
}

/// The final read of the last node of the last shard.
fn last_final(events: &mut [Event]) -> &mut FinalRead {
    let Some(Event::FinalRead(read)) = events.last_mut() else { panic!("it ends with final reads") };
    read
}

fn ack(produce: &Produce) -> Option<Ack> {
    if let Outcome::Acked(ack) = produce.outcome { Some(ack) } else { None }
}

/// The last acknowledged batch of the last shard, and a final read that ends before it.
fn lose_last_batch(events: &mut [Event]) -> &mut Produce {
    let shard = last_final(events).shard;
    let highest = events.iter().filter_map(|event| match event {
        Event::Produce(produce) if produce.shard == shard => ack(produce).map(|ack| ack.base_offset),
        _ => None,
    });
    let base = highest.max().unwrap();
    let read = last_final(events);
    read.end_offset = base;
    read.records.truncate(base as usize);
    last_batch(events, |produce| produce.shard == shard && ack(produce).is_some_and(|ack| ack.base_offset == base))
}

/// Has the server write something twice at the end of the last shard.
fn append_to_final(events: &mut [Event], record: impl Fn(&FinalRead) -> Fingerprint) {
    let read = last_final(events);
    let record = record(read);
    read.records.push((read.end_offset, record));
    read.end_offset += 1;
}

/// Two acks of a stream, for each other's batch.
fn swap_acks(events: &mut [Event]) {
    let later = last_batch(events, |produce| produce.stream.is_some() && ack(produce).is_some()).clone();
    let is_earlier = |produce: &Produce| {
        let same = (&produce.client, produce.shard) == (&later.client, later.shard) && ack(produce).is_some();
        same && produce.stream.unwrap().sequence < later.stream.unwrap().sequence
    };
    let earlier = last_batch(events, is_earlier);
    let outcome = std::mem::replace(&mut earlier.outcome, later.outcome);
    last_batch(events, |produce| *produce == later).outcome = outcome;
}

/// A change to a history.
type Change = fn(&mut Vec<Event>);

/// What is found after each change, among other things.
const CHANGES: &[(&str, Change)] = &[
    ("lost_write", |events| {
        lose_last_batch(events);
    }),
    // The final reads of the other nodes have shown it.
    ("vanished_read", |events| lose_last_batch(events).outcome = Outcome::Indefinite),
    ("inconsistent_offset", |events| {
        let read = last_final(events);
        read.records[7].1 = read.records[8].1;
    }),
    ("duplicate", |events| append_to_final(events, |read| read.records[0].1)),
    ("aborted_read", |events| {
        let records: Vec<_> = last_final(events).records.iter().map(|(_, record)| *record).collect();
        let is_there =
            |produce: &Produce| produce.outcome == Outcome::Indefinite && records.contains(&produce.records[0]);
        last_batch(events, is_there).outcome = Outcome::Failed;
    }),
    ("lost_prefix", |events| {
        let last = events.iter_mut().rev().find_map(|event| match event {
            Event::Status(status) => Some(status),
            _ => None,
        });
        last.expect("there are some").log_start = Some(1);
    }),
    ("unsent_record", |events| append_to_final(events, |_| Fingerprint::of(b"nobody's"))),
    ("gap", |events| {
        if let Outcome::Acked(ack) = &mut last_batch(events, |produce| ack(produce).is_some()).outcome {
            ack.base_offset += 1_000_000;
        }
    }),
    ("torn_batch", |events| {
        if let Outcome::Acked(ack) = &mut last_batch(events, |produce| ack(produce).is_some()).outcome {
            ack.count += 1;
        }
    }),
    ("out_of_order_poll", |events| last_read(events, |read| read.records.len() > 1).records.swap(0, 1)),
    ("skipped_poll", |events| {
        last_read(events, |read| read.records.len() > 2).records.remove(1);
    }),
    ("non_monotone_send", |events| swap_acks(events)),
    ("stale_tail", |events| {
        let read = last_read(events, |read| read.linearizable);
        (read.from_offset, read.records, read.next_offset, read.high_watermark) = (Some(0), vec![], 0, 0);
    }),
    ("future_tail", |events| last_read(events, |_| true).high_watermark += 1_000_000),
    ("future_record", |events| {
        let read = last_read(events, |read| !read.records.is_empty());
        (read.begin_us, read.end_us) = (0, 0);
    }),
    ("went_back", |events| {
        let read = last_read(events, |read| !read.linearizable && read.min_offset.is_none());
        (read.from_offset, read.records, read.next_offset, read.high_watermark) = (Some(0), vec![], 0, 0);
    }),
    ("uncommitted_read", |events| {
        let read = last_read(events, |read| !read.records.is_empty());
        read.high_watermark = read.records[0].0;
    }),
    ("divergence", |events| {
        let twice = events.iter().rev().find_map(|event| match event {
            Event::Status(status) => Some(status.clone()),
            _ => None,
        });
        let twice = twice.unwrap();
        events.insert(0, Event::Status(Status { chain: Chain(!twice.chain.0), ..twice }));
    }),
    ("read_your_writes", |events| {
        let read = last_read(events, |read| read.min_offset.is_some());
        read.min_offset = Some(read.high_watermark + 1);
    }),
];

/// Whatever clients do, in whatever order the lines are: a log that keeps its promises is not accused.
#[test]
fn legal_histories_pass() {
    for seed in 0..200 {
        let mut events = World::new(seed).run(1_000);
        let report = judge(events.clone());
        assert!(report.is_clean(), "seed {seed}: {:?}", report.findings);
        assert_eq!(report.shards, SHARDS);
        let order = Cell::new(seed);
        for last in (1..events.len()).rev() {
            events.swap(last, random(&order) as usize % (last + 1));
        }
        let report = judge(events);
        assert!(report.is_clean(), "seed {seed}, out of order: {:?}", report.findings);
    }
}

/// Each single change of a legal history that breaks a promise is found, under its name.
#[test]
fn changed_histories_are_caught() {
    for seed in 0..15 {
        for (kind, change) in CHANGES {
            let mut events = World::new(seed).run(600);
            change(&mut events);
            let report = judge(events);
            assert!(report.counts.contains_key(kind), "seed {seed}, {kind}: {:?}", report.findings);
        }
    }
}

/// A run of hours is judged like a small one: 200,000 legal events, and among them topics with one change each. These are
/// caught, and nothing else is accused.
#[test]
fn large_histories() {
    let mut events = World::new(1).run(200_000);
    for (kind, change) in CHANGES {
        let mut changed = World::new(2).run(5_000);
        change(&mut changed);
        changed.iter_mut().for_each(|event| *topic(event) = (*kind).to_owned());
        events.extend(changed);
    }
    let report = judge(events);
    assert!(report.events >= 290_000 && report.acked_records > 100_000, "{report:?}");
    for (kind, _) in CHANGES {
        let is_found = |finding: &Finding| finding.topic == *kind && finding.anomaly.kind() == *kind;
        assert!(report.findings.iter().any(is_found), "{kind}: {:?}", report.counts);
    }
    let accused = report.findings.iter().find(|finding| finding.topic == "t");
    assert_eq!(accused, None);
}

fn topic(event: &mut Event) -> &mut String {
    match event {
        Event::Produce(produce) => &mut produce.topic,
        Event::Read(read) => &mut read.topic,
        Event::FinalRead(read) => &mut read.topic,
        Event::Status(status) => &mut status.topic,
        Event::Trim(trim) => &mut trim.topic,
        Event::Retention(retention) => &mut retention.topic,
    }
}

/// A cause that shows everywhere is counted, and shown often enough.
#[test]
fn findings_are_bounded() {
    let mut events = World::new(1).run(20_000);
    for event in &mut events {
        if let Event::Read(read) = event {
            read.min_offset = Some(1 << 40);
        }
    }
    let report = judge(events);
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&"read_your_writes"]);
    assert!(report.counts["read_your_writes"] > 3_000);
    assert_eq!(report.findings.len(), crate::sim::checker::findings::FINDINGS_PER_KIND_MAX);
}
