//! Which record is at which offset, by everything that anybody saw, and where each of them came from.
//!
//! Acks, reads and final reads all say what is where; they must agree. A record that is known to be somewhere must have
//! been sent, not too often, and with its whole batch.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    Add, Shard, durable,
    findings::Anomaly,
    history::{Event, Fingerprint, Line, Outcome, Produce},
};

/// How often a record was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// The first batch in the file with it.
    line: Line,
    /// How many of its batches may be in the log.
    possible: u64,
    /// How many failed for certain.
    failed: u64,
    /// The batch with it that may be in the log and was sent first, and when.
    earliest: Option<(u64, Line)>,
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
struct Found {
    offset: u64,
    line: Line,
    /// How many offsets it is at.
    offsets: u64,
}

/// A batch whose place is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) line: Line,
    pub(super) base: u64,
    /// Exclusive.
    pub(super) end: u64,
    pub(super) begin_us: u64,
    /// By an ack that cannot be taken back, not only by what was read.
    pub(super) acked: bool,
}

/// The shard's records.
#[derive(Debug, Default)]
pub(super) struct Contents {
    sent: HashMap<Fingerprint, Sent>,
    log: HashMap<u64, (Fingerprint, Line)>,
    found: HashMap<Fingerprint, Found>,
    /// All offsets of `log`, in order.
    offsets: Vec<u64>,
    /// Batches whose place is known, by it.
    batches: Vec<Placed>,
    /// Batches that were placed by reads, and the offset at which they are torn.
    torn: Vec<(Placed, Line, u64)>,
    /// The highest offset, if there is one below it that cannot have a record.
    above_gap: Option<u64>,
}

impl Contents {
    /// Collects what is where, and reports what does not fit.
    pub(super) fn gather(shard: &Shard<'_>, add: &mut Add<'_>) -> Contents {
        let mut contents = Contents::default();
        let mut possible = 0;
        for (line, produce) in shard.produces() {
            contents.send(line, produce);
            possible += if produce.outcome == Outcome::Failed { 0 } else { produce.records.len() as u64 };
        }
        for (line, event) in &shard.events {
            match event {
                Event::Produce(produce) => {
                    let Some(ack) = durable(produce) else { continue };
                    // A count that is not the batch's is a finding of its own.
                    let records = produce.records.iter().take(usize::try_from(ack.count).unwrap_or(usize::MAX));
                    contents.observe(*line, None, (ack.base_offset..).zip(records.copied()), add);
                }
                Event::Read(read) => contents.observe(*line, Some(read.end_us), read.records.iter().copied(), add),
                Event::FinalRead(read) => contents.observe(*line, Some(read.end_us), read.records.iter().copied(), add),
                Event::Status(_) | Event::Trim(_) | Event::Retention(_) => {}
            }
        }
        contents.offsets = contents.log.keys().copied().collect();
        contents.offsets.sort_unstable();
        contents.find_gap(possible, add);
        contents.place(shard);
        contents
    }

    fn send(&mut self, line: Line, produce: &Produce) {
        let is_possible = produce.outcome != Outcome::Failed;
        for record in &produce.records {
            let sent = self.sent.entry(*record).or_insert(Sent { line, possible: 0, failed: 0, earliest: None });
            if is_possible {
                sent.possible += 1;
                let this = (produce.begin_us, line);
                sent.earliest = Some(sent.earliest.map_or(this, |earliest| earliest.min(this)));
            } else {
                sent.failed += 1;
            }
        }
    }

    /// Takes what one event says is where; `read_us` is when a read had it.
    fn observe(
        &mut self,
        line: Line,
        read_us: Option<u64>,
        records: impl Iterator<Item = (u64, Fingerprint)>,
        add: &mut Add<'_>,
    ) {
        let mut is_inconsistent = false;
        for (offset, record) in records {
            let is_known = match self.log.entry(offset) {
                Entry::Vacant(entry) => {
                    entry.insert((record, line));
                    self.find(line, offset, record, add);
                    false
                }
                Entry::Occupied(entry) if entry.get().0 == record => true,
                Entry::Occupied(entry) => {
                    let first = entry.get().1;
                    if !is_inconsistent {
                        add(Anomaly::InconsistentOffset { offset, first, second: line });
                    }
                    // The first one of an event tells; all that follow are often shifted alike.
                    is_inconsistent = true;
                    false
                }
            };
            if let Some(read_us) = read_us {
                self.check_source((line, read_us), offset, record, is_known, add);
            }
        }
    }

    /// Notes that a record is at one more offset.
    fn find(&mut self, line: Line, offset: u64, record: Fingerprint, add: &mut Add<'_>) {
        let found = self.found.entry(record).or_insert(Found { offset, line, offsets: 0 });
        found.offsets += 1;
        let sent = self.sent.get(&record).map_or(0, |sent| sent.possible);
        // What nobody sent, or what failed, is a finding of its own.
        if found.offsets > sent && found.offsets > 1 && sent > 0 {
            let (first, first_offset) = (found.line, found.offset);
            add(Anomaly::Duplicate { first, first_offset, second: line, second_offset: offset, sent });
        }
    }

    /// Whether a record that was read can be there. A known one was looked at when it was first seen, but for the time.
    fn check_source(
        &self,
        (read, read_us): (Line, u64),
        offset: u64,
        record: Fingerprint,
        is_known: bool,
        add: &mut Add<'_>,
    ) {
        match self.sent.get(&record) {
            None if is_known => {}
            None => add(Anomaly::UnsentRecord { read, offset }),
            Some(Sent { earliest: Some((begin_us, sent)), .. }) => {
                if *begin_us > read_us {
                    add(Anomaly::FutureRecord { read, offset, sent: *sent });
                }
            }
            Some(Sent { earliest: None, .. }) if is_known => {}
            Some(Sent { earliest: None, line, .. }) => add(Anomaly::AbortedRead { failed: *line, read, offset }),
        }
    }

    /// Whether some offset below the highest cannot have a record: only so many were sent.
    fn find_gap(&mut self, possible: u64, add: &mut Add<'_>) {
        let Some(last) = self.offsets.last().copied().filter(|last| *last >= possible) else { return };
        let missing = (0..).zip(&self.offsets).find(|(expected, offset)| expected != *offset);
        let Some((missing, _)) = missing else { return };
        let line = self.log[&last].1;
        self.above_gap = Some(last);
        add(Anomaly::Gap { line, missing });
    }

    /// Finds the places of batches, by their acks or by a record that only they have.
    fn place(&mut self, shard: &Shard<'_>) {
        for (line, produce) in shard.produces() {
            let count = produce.records.len() as u64;
            let begin_us = produce.begin_us;
            if let Some(ack) = durable(produce) {
                let base = ack.base_offset;
                self.batches.push(Placed { line, base, end: base + ack.count, begin_us, acked: true });
                continue;
            }
            let own = (0..).zip(&produce.records).find_map(|(place, record)| Some((place, self.only_place(*record)?)));
            let Some((place, found)) = own else { continue };
            let base = found.offset.saturating_sub(place);
            let placed = Placed { line, base, end: base + count, begin_us, acked: false };
            self.batches.push(placed);
            if found.offset < place {
                self.torn.push((placed, found.line, found.offset));
            } else if let Some((shown, offset)) = self.tear(base, produce) {
                self.torn.push((placed, shown, offset));
            }
        }
        self.batches.sort_by_key(|batch| (batch.base, batch.line));
    }

    /// Where a record is that was sent in one batch only, once.
    fn only_place(&self, record: Fingerprint) -> Option<Found> {
        let is_only = self.sent.get(&record).is_some_and(|sent| sent.possible + sent.failed == 1);
        self.found.get(&record).copied().filter(|_| is_only)
    }

    /// The first offset at which a batch that begins at `base` has no record of its own, and the event that shows it.
    fn tear(&self, base: u64, produce: &Produce) -> Option<(Line, u64)> {
        (base..).zip(&produce.records).find_map(|(offset, record)| match self.log.get(&offset) {
            Some((there, _)) if there == record => None,
            Some((_, line)) => Some((*line, offset)),
            None => self.only_place(*record).map(|elsewhere| (elsewhere.line, offset)),
        })
    }

    /// Reports batches that are not whole: in themselves, or across a high watermark or a replica's end.
    pub(super) fn check_batches(&self, shard: &Shard<'_>, add: &mut Add<'_>) {
        let torn = |batch: &Placed, shown: Line, offset: u64| Anomaly::TornBatch {
            sent: batch.line,
            base_offset: batch.base,
            count: batch.end - batch.base,
            shown,
            offset,
        };
        for (batch, shown, offset) in &self.torn {
            add(torn(batch, *shown, *offset));
        }
        for (line, event) in &shard.events {
            let end = match event {
                Event::Produce(produce) => {
                    let count = produce.records.len() as u64;
                    if let Some(ack) = durable(produce).filter(|ack| ack.count != count) {
                        let (sent, base_offset) = (*line, ack.base_offset);
                        let offset = base_offset + count.min(ack.count);
                        add(Anomaly::TornBatch { sent, base_offset, count, shown: *line, offset });
                    }
                    continue;
                }
                Event::Read(read) => read.high_watermark,
                Event::FinalRead(read) => read.end_offset,
                Event::Status(_) | Event::Trim(_) | Event::Retention(_) => continue,
            };
            let cut = self.batch_before(end).filter(|batch| batch.end > end);
            // An acknowledged batch whose end a final read lacks is lost (`clock`), which is worse.
            let is_lost = |batch: &Placed| batch.acked && matches!(event, Event::FinalRead(_));
            if let Some(batch) = cut.filter(|batch| !is_lost(batch)) {
                add(torn(batch, *line, end));
            }
        }
    }

    /// The last batch that begins below an offset.
    fn batch_before(&self, offset: u64) -> Option<&Placed> {
        let at = self.batches.partition_point(|batch| batch.base < offset);
        self.batches[..at].last()
    }

    /// Batches whose place is known, by it.
    pub(super) fn batches(&self) -> &[Placed] {
        &self.batches
    }

    /// An acknowledged batch with an offset of a range, if there is one.
    pub(super) fn acked_within(&self, start: u64, end: u64) -> Option<&Placed> {
        let at = self.batches.partition_point(|batch| batch.end <= start);
        self.batches[at..].iter().take_while(|batch| batch.base < end).find(|batch| batch.acked)
    }

    /// The first offset of a range with a record that was seen, and who saw it.
    pub(super) fn seen_within(&self, start: u64, end: u64) -> Option<(u64, Line)> {
        let at = self.offsets.partition_point(|offset| *offset < start);
        let offset = *self.offsets.get(at).filter(|offset| **offset < end)?;
        Some((offset, self.log[&offset].1))
    }

    /// Whether an end of the log is as high as a gap that was found explains.
    pub(super) fn is_gap(&self, end: u64) -> bool {
        self.above_gap.is_some_and(|last| end <= last + 1)
    }
}
