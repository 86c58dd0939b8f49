//! Log starts: what is below one is gone, and has to be what somebody trimmed or what was old enough.
//!
//! Judged are the log starts that reads and statuses name; a history without them, of before these fields, is judged as
//! it was. That a replica's log start is lower than it was is legal: one that was restarted hears of a trim again.
//!
//! Where records go by size, what is gone must have enough behind it. How much there was when a log start was told nobody knows,
//! but not more than all batches that had been sent by then, without those whose place is known to be below it: a log start that
//! this is too little for is an anomaly, and any other is taken for legal.
//!
//! Log starts of replicas that have applied the same are not compared here: one that was restarted begins where its files do,
//! though it has not applied the trim again yet (`scenario::judge` compares those of a cluster that has come to rest).

use std::collections::BTreeMap;

use super::{
    Add, Shard,
    contents::Contents,
    findings::Anomaly,
    history::{Event, Line, Outcome, Retention},
};

/// A log start that somebody was told.
struct Told {
    line: Line,
    /// By when.
    end_us: u64,
    log_start: u64,
    sized: Sized,
}

/// What may be gone for its size.
#[derive(Clone, Copy)]
enum Sized {
    /// Anything below this.
    Below(u64),
    /// What has batches of more than so many bytes behind it.
    Before(u64),
}

/// Looks at each log start.
pub(super) fn check(shard: &Shard<'_>, contents: &Contents, add: &mut Add<'_>) {
    let retentions: Vec<_> = shard.events.iter().filter_map(|(_, event)| retention(event)).collect();
    let (told, mut trims) = gather(shard, &retentions);
    trims.sort_unstable();
    let mut due = 0;
    for (_, before_offset) in &mut trims {
        due = due.max(*before_offset);
        *before_offset = due;
    }
    let trimmed = |us: u64| {
        let at = trims.partition_point(|(begin_us, _)| *begin_us <= us);
        trims[..at].last().map_or(0, |(_, before_offset)| *before_offset)
    };
    // The shortest age by when it counts from; nothing is due by age before.
    let aged = |us: u64| {
        let counting = retentions.iter().filter(|retention| retention.begin_us <= us);
        counting.filter_map(|retention| retention.age_us).min()
    };
    let mut youngest = Youngest { contents, known: BTreeMap::new() };
    let sizes = told.iter().any(|told| matches!(told.sized, Sized::Before(_))).then(|| Sizes::of(shard, contents));
    for Told { line, end_us, log_start, sized } in told {
        let trimmed = trimmed(end_us);
        if log_start <= trimmed {
            continue;
        }
        let sized = match (sized, &sizes) {
            (Sized::Below(offset), _) => offset,
            (Sized::Before(bytes), Some(sizes)) => sizes.start_before(bytes, end_us),
            (Sized::Before(_), None) => unreachable!("they are gathered for it"),
        };
        let due = trimmed.max(sized);
        if log_start <= due {
            continue;
        }
        let Some(age_us) = aged(end_us) else {
            add(Anomaly::LostPrefix { line, log_start, due });
            continue;
        };
        // Of records that nobody has sent or placed nothing is known; a log start behind them is found elsewhere.
        if let Some((begin_us, base)) = youngest.between(due, log_start)
            && begin_us.saturating_add(age_us) > end_us
        {
            add(Anomaly::LostPrefix { line, log_start, due: base.max(due) });
        }
    }
}

fn retention(event: &Event) -> Option<&Retention> {
    match event {
        Event::Retention(retention) => Some(retention),
        Event::Produce(_) | Event::Read(_) | Event::FinalRead(_) | Event::Status(_) | Event::Trim(_) => None,
    }
}

/// Log starts, and trims with the time they were sent.
fn gather(shard: &Shard<'_>, retentions: &[&Retention]) -> (Vec<Told>, Vec<(u64, u64)>) {
    let by_size = || retentions.iter().filter(|retention| retention.by_size);
    // Without retention by size a final read is judged by the status that goes with it.
    let kept = by_size().map(|retention| retention.records_kept).min().flatten();
    let bytes_kept = by_size().map(|retention| retention.bytes_kept).min().flatten();
    let sized = match (by_size().next(), bytes_kept) {
        (None, _) => Sized::Below(0),
        (Some(_), None) => Sized::Below(u64::MAX),
        (Some(_), Some(bytes)) => Sized::Before(bytes),
    };
    let (mut told, mut trims) = (Vec::new(), Vec::new());
    for (line, event) in &shard.events {
        let (_, end_us) = event.span_us();
        let (log_start, sized) = match event {
            Event::Read(read) => (read.log_start, sized),
            Event::Status(status) => (status.log_start, sized),
            Event::FinalRead(read) => {
                let below = kept.map(|kept| read.end_offset.saturating_sub(kept));
                (below.map(|_| read.from_offset), Sized::Below(below.unwrap_or_default()))
            }
            Event::Trim(trim) => {
                trims.push((trim.begin_us, trim.before_offset));
                continue;
            }
            Event::Produce(_) | Event::Retention(_) => continue,
        };
        told.extend(log_start.map(|log_start| Told { line: *line, end_us, log_start, sized }));
    }
    (told, trims)
}

/// How much was sent, and where it is.
struct Sizes {
    /// Batches whose place nobody knows: when each was sent, and bytes of it and of all before.
    anywhere: Vec<(u64, u64)>,
    /// The others, those with the highest offsets first: at which offset they are over, when each was sent, bytes.
    placed: Vec<(u64, u64, u64)>,
}

impl Sizes {
    fn of(shard: &Shard<'_>, contents: &Contents) -> Sizes {
        let mut ends: BTreeMap<Line, u64> = contents.batches().iter().map(|batch| (batch.line, batch.end)).collect();
        // What was acknowledged from a leader's memory is there or nowhere.
        ends.extend(shard.produces().filter_map(|(line, produce)| match produce.outcome {
            Outcome::Acked(ack) => Some((line, ack.base_offset.saturating_add(ack.count))),
            Outcome::Failed | Outcome::Indefinite => None,
        }));
        // When each was sent that has a place, and the lowest end of it and of all that were sent later.
        let placed = shard.produces().filter_map(|(line, produce)| Some((produce.begin_us, *ends.get(&line)?)));
        let mut sent: Vec<(u64, u64)> = placed.collect();
        sent.sort_unstable();
        let mut lowest = u64::MAX;
        for (_, end) in sent.iter_mut().rev() {
            lowest = lowest.min(*end);
            *end = lowest;
        }
        let mut sizes = Sizes { anywhere: Vec::new(), placed: Vec::new() };
        for (line, produce) in shard.produces() {
            let bytes = produce.log_bytes.unwrap_or(u64::MAX);
            // What failed may have an entry without records, which is in front of all that was sent afterwards.
            let in_front_of = || {
                let later = sent.partition_point(|(begin_us, _)| *begin_us <= produce.end_us);
                sent.get(later).filter(|_| produce.outcome == Outcome::Failed).map(|(_, end)| *end)
            };
            match ends.get(&line).copied().or_else(in_front_of) {
                Some(end) => sizes.placed.push((end, produce.begin_us, bytes)),
                None => sizes.anywhere.push((produce.begin_us, bytes)),
            }
        }
        sizes.anywhere.sort_unstable();
        let mut sum = 0_u64;
        for (_, bytes) in &mut sizes.anywhere {
            sum = sum.saturating_add(*bytes);
            *bytes = sum;
        }
        sizes.placed.sort_unstable_by_key(|(end, ..)| std::cmp::Reverse(*end));
        sizes
    }

    /// The highest offset at and above which there may have been batches of more than so many bytes by then.
    fn start_before(&self, bytes: u64, us: u64) -> u64 {
        let sent = self.anywhere.partition_point(|(begin_us, _)| *begin_us <= us);
        let mut sum = self.anywhere[..sent].last().map_or(0, |(_, sum)| *sum);
        if sum > bytes {
            return u64::MAX;
        }
        for (end, _, its) in self.placed.iter().filter(|(_, begin_us, _)| *begin_us <= us) {
            sum = sum.saturating_add(*its);
            if sum > bytes {
                return end.saturating_sub(1);
            }
        }
        0
    }
}

/// The batch of a range that was sent last: when, and where it begins. There are as many ranges as log starts.
struct Youngest<'a> {
    contents: &'a Contents,
    known: BTreeMap<(u64, u64), Option<(u64, u64)>>,
}

impl Youngest<'_> {
    fn between(&mut self, start: u64, end: u64) -> Option<(u64, u64)> {
        let contents = self.contents;
        *self.known.entry((start, end)).or_insert_with(|| {
            let batches = contents.batches().iter().take_while(|batch| batch.base < end);
            batches.filter(|batch| batch.end > start).map(|batch| (batch.begin_us, batch.base)).max()
        })
    }
}
