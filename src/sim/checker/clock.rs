//! What has to hold because one event was over before another began: what was acknowledged or shown is there for those who
//! have to see it, batches sent later are behind it, and nothing is there that had not been sent.
//!
//! Only events that do not overlap are compared: an answer that is under way may or may not know of another one.

use std::collections::BTreeMap;

use super::{
    Add, Shard,
    contents::Contents,
    durable,
    findings::Anomaly,
    history::{Event, FinalRead, Line, Outcome, Read, Start},
};

/// An end of the log that somebody was told of.
#[derive(Clone, Copy, Debug)]
struct Told {
    end_us: u64,
    /// The log's end, in records.
    end: u64,
    line: Line,
}

/// What was told, by time: after `sort`, each has the highest end of all that were told no later.
#[derive(Debug, Default)]
struct Tail(Vec<Told>);

impl Tail {
    fn sort(&mut self) {
        self.0.sort_by_key(|told| (told.end_us, told.end, told.line));
        let mut highest: Option<Told> = None;
        for told in &mut self.0 {
            let before = highest.filter(|before| before.end >= told.end);
            let now = before.map_or(*told, |before| Told { end_us: told.end_us, ..before });
            *told = now;
            highest = Some(now);
        }
    }

    /// The highest end told before a time.
    fn before(&self, begin_us: u64) -> Option<Told> {
        let at = self.0.partition_point(|told| told.end_us < begin_us);
        self.0[..at].last().copied()
    }

    fn add(&mut self, line: Line, end_us: u64, end: u64) {
        self.0.push(Told { end_us, end, line });
    }
}

/// Records sent, by time: after each point, how many in all.
#[derive(Debug, Default)]
struct SentBy(Vec<(u64, u64)>);

impl SentBy {
    fn gather(shard: &Shard<'_>) -> SentBy {
        let possible = shard.produces().filter(|(_, produce)| produce.outcome != Outcome::Failed);
        let mut points: Vec<_> =
            possible.map(|(_, produce)| (produce.begin_us, produce.records.len() as u64)).collect();
        points.sort_unstable();
        let mut total = 0;
        for (_, count) in &mut points {
            total += *count;
            *count = total;
        }
        SentBy(points)
    }

    /// How many records had been sent at a time.
    fn at(&self, us: u64) -> u64 {
        let at = self.0.partition_point(|(begin_us, _)| *begin_us <= us);
        self.0[..at].last().map_or(0, |(_, total)| *total)
    }
}

/// Compares what was told with when it was.
pub(super) fn check(shard: &Shard<'_>, contents: &Contents, add: &mut Add<'_>) {
    let (acked, shown) = gather_tails(shard, contents, add);
    for batch in contents.batches() {
        let before = higher(acked.before(batch.begin_us), shown.before(batch.begin_us));
        if let Some(before) = before.filter(|before| batch.base < before.end) {
            let (line, offset) = (batch.line, batch.base);
            add(Anomaly::StaleTail { line, offset, before: before.line, end: before.end });
        }
    }
    for (line, event) in &shard.events {
        match event {
            Event::Read(read) => check_read(*line, read, (&acked, &shown), add),
            Event::FinalRead(read) => check_final(*line, read, contents, (&acked, &shown), add),
            Event::Produce(_) | Event::Status(_) | Event::Trim(_) | Event::Retention(_) => {}
        }
    }
    check_streams(shard, add);
    check_clients(shard, add);
}

/// What a read has to know of what was told before.
fn check_read(line: Line, read: &Read, (acked, shown): (&Tail, &Tail), add: &mut Add<'_>) {
    let begins_at = read.begins_at();
    let is_latest = read.start == Some(Start::Latest);
    if let Some(end) = read.min_offset.filter(|min_offset| is_latest && begins_at < *min_offset) {
        add(Anomaly::StaleStart { read: line, offset: begins_at, before: line, end });
    }
    if !read.linearizable {
        return;
    }
    let Some(before) = higher(acked.before(read.begin_us), shown.before(read.begin_us)) else { return };
    let offset = read.high_watermark;
    if offset < before.end {
        add(Anomaly::StaleTail { line, offset, before: before.line, end: before.end });
    } else if is_latest && begins_at < before.end {
        add(Anomaly::StaleStart { read: line, offset: begins_at, before: before.line, end: before.end });
    }
}

fn higher(a: Option<Told>, b: Option<Told>) -> Option<Told> {
    [a, b].into_iter().flatten().max_by_key(|told| told.end)
}

/// The ends that acks and that reads tell of. Those that cannot be are reported, and compared with nothing else.
fn gather_tails(shard: &Shard<'_>, contents: &Contents, add: &mut Add<'_>) -> (Tail, Tail) {
    let sent_by = SentBy::gather(shard);
    let (mut acked, mut shown) = (Tail::default(), Tail::default());
    for (line, event) in &shard.events {
        let (tail, end) = match event {
            Event::Produce(produce) => match durable(produce) {
                Some(ack) => (&mut acked, ack.base_offset + ack.count),
                None => continue,
            },
            Event::Read(read) => (&mut shown, read.high_watermark),
            Event::FinalRead(read) => (&mut shown, read.end_offset),
            Event::Status(_) | Event::Trim(_) | Event::Retention(_) => continue,
        };
        let (_, end_us) = event.span_us();
        let sent = sent_by.at(end_us);
        if end <= sent {
            tail.add(*line, end_us, end);
        } else if !contents.is_gap(end) {
            add(Anomaly::FutureTail { line: *line, end, sent });
        }
    }
    acked.sort();
    shown.sort();
    (acked, shown)
}

/// Whether a replica has everything that was there when its final read began.
fn check_final(line: Line, read: &FinalRead, contents: &Contents, (acked, shown): (&Tail, &Tail), add: &mut Add<'_>) {
    let node = read.node;
    let mut expected = read.from_offset;
    for (offset, _) in &read.records {
        let offset = *offset;
        if offset < expected {
            let previous = expected.saturating_sub(1);
            add(Anomaly::OutOfOrderPoll { read: line, offset, previous });
            return;
        }
        if offset >= read.end_offset {
            add(Anomaly::UncommittedRead { read: line, offset, high_watermark: read.end_offset });
            return;
        }
        if offset > expected {
            add(missing(line, node, (expected, offset), contents));
        }
        expected = offset + 1;
    }
    if expected < read.end_offset {
        add(missing(line, node, (expected, read.end_offset), contents));
    }
    let end = read.end_offset;
    let lost = acked.before(read.begin_us).filter(|told| told.end > end);
    let vanished = shown.before(read.begin_us).filter(|told| told.end > end);
    if let Some(told) = lost {
        let batch = contents.acked_within(told.end - 1, told.end);
        let offset = batch.map_or(end, |batch| batch.base.max(end));
        add(Anomaly::LostWrite { acked: told.line, offset, read: line, node });
    } else if let Some(told) = vanished {
        add(Anomaly::VanishedRead { shown: told.line, offset: end, read: line, node });
    }
}

/// What it means that a final read has nothing at offsets below its end.
fn missing(read: Line, node: u64, (start, end): (u64, u64), contents: &Contents) -> Anomaly {
    if let Some(batch) = contents.acked_within(start, end) {
        return Anomaly::LostWrite { acked: batch.line, offset: batch.base.max(start), read, node };
    }
    match contents.seen_within(start, end) {
        Some((offset, shown)) => Anomaly::VanishedRead { shown, offset, read, node },
        None => Anomaly::Gap { line: read, missing: start },
    }
}

/// An acknowledged batch of a pipelined stream.
#[derive(Clone, Copy, Debug)]
struct InStream {
    sequence: u64,
    line: Line,
    base: u64,
    /// Exclusive.
    end: u64,
}

/// Acks of one stream go up with the sequence of its batches.
fn check_streams(shard: &Shard<'_>, add: &mut Add<'_>) {
    // By client and stream.
    let mut streams: BTreeMap<(&str, u64), Vec<InStream>> = BTreeMap::new();
    let mut names = Vec::new();
    for (line, produce) in shard.produces() {
        let (Some(place), Some(ack)) = (produce.stream, durable(produce)) else { continue };
        let name = (produce.client.as_str(), place.id);
        let stream = streams.entry(name).or_default();
        if stream.is_empty() {
            names.push(name);
        }
        let (base, end) = (ack.base_offset, ack.base_offset + ack.count);
        stream.push(InStream { sequence: place.sequence, line, base, end });
    }
    for name in names {
        let mut stream = streams.remove(&name).unwrap_or_default();
        stream.sort_by_key(|batch| (batch.sequence, batch.line));
        for pair in stream.windows(2) {
            let [first, second] = pair else { continue };
            if second.sequence > first.sequence && second.base < first.end {
                let (first_end, second_offset) = (first.end, second.base);
                add(Anomaly::NonMonotoneSend { first: first.line, first_end, second: second.line, second_offset });
            }
        }
    }
}

/// High watermarks that one client gets from one node's replica do not go back, nor does what is latest there.
fn check_clients(shard: &Shard<'_>, add: &mut Add<'_>) {
    let reads = || {
        shard.events.iter().filter_map(|(line, event)| match event {
            Event::Read(read) => Some((*line, read, (read.client.as_str(), read.node?))),
            Event::Produce(_) | Event::FinalRead(_) | Event::Status(_) | Event::Trim(_) | Event::Retention(_) => None,
        })
    };
    let mut tails: BTreeMap<(&str, u64), Tail> = BTreeMap::new();
    for (line, read, place) in reads() {
        tails.entry(place).or_default().add(line, read.end_us, read.high_watermark);
    }
    tails.values_mut().for_each(Tail::sort);
    for (line, read, place) in reads() {
        let Read { begin_us, high_watermark, .. } = *read;
        let before = tails.get(&place).and_then(|tail| tail.before(begin_us));
        if let Some(before) = before.filter(|before| high_watermark < before.end) {
            let (before, high_watermark_before) = (before.line, before.end);
            add(Anomaly::WentBack { read: line, high_watermark, before, high_watermark_before });
        } else if let Some(before) =
            before.filter(|told| read.start == Some(Start::Latest) && read.begins_at() < told.end)
        {
            let (before, end) = (before.line, before.end);
            add(Anomaly::StaleStart { read: line, offset: read.begins_at(), before, end });
        }
    }
}
