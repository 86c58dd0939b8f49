//! Log starts: what is below one is gone, and has to be what somebody trimmed or what was old enough.
//!
//! Judged are the log starts that reads and statuses name; a history without them, of before these fields, is judged as
//! it was. That a replica's log start is lower than it was is legal: one that was restarted hears of a trim again. Where records
//! go by size only some at the log's end are known to stay, and only once nobody sends any more: final reads are judged by them.
//! Log starts of replicas that have applied the same are not compared here: one that was restarted begins where its files do,
//! though it has not applied the trim again yet (`scenario::judge` compares those of a cluster that has come to rest).

use std::collections::BTreeMap;

use super::{
    Add, Shard,
    contents::Contents,
    findings::Anomaly,
    history::{Event, Line, Retention},
};

/// A log start that somebody was told.
struct Told {
    line: Line,
    /// By when.
    end_us: u64,
    log_start: u64,
    /// Below that anything may be gone for its size.
    sized: u64,
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
    for Told { line, end_us, log_start, sized } in told {
        let due = trimmed(end_us).max(sized);
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
    let any = if by_size().next().is_some() { u64::MAX } else { 0 };
    let (mut told, mut trims) = (Vec::new(), Vec::new());
    for (line, event) in &shard.events {
        let (_, end_us) = event.span_us();
        let (log_start, sized) = match event {
            Event::Read(read) => (read.log_start, any),
            Event::Status(status) => (status.log_start, any),
            Event::FinalRead(read) => {
                let below = kept.map(|kept| read.end_offset.saturating_sub(kept));
                (below.map(|_| read.from_offset), below.unwrap_or_default())
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
