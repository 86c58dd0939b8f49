//! What a client has said about where: an append at an expected offset, and a read from a time on. (Reads from the latest
//! record on are compared with what was told before: `clock`.)
//!
//! Timestamps are those that acks name: of the other batches none is known, and whatever they are is legal.

use super::{
    Add, Shard,
    contents::Contents,
    durable,
    findings::Anomaly,
    history::{Event, Line, Outcome, Read, Start},
};

/// Looks at each conditional append, and at each read from a time on.
pub(super) fn check(shard: &Shard<'_>, contents: &Contents, add: &mut Add<'_>) {
    check_conditions(shard, contents, add);
    let timed = gather(shard, add);
    for (line, event) in &shard.events {
        if let Event::Read(read) = event
            && let Some(Start::TimestampUs(asked_us)) = read.start
        {
            check_start((*line, read), asked_us, &timed, add);
        }
    }
}

/// By what its ack says, whatever it is worth, or else by where it was seen.
fn check_conditions(shard: &Shard<'_>, contents: &Contents, add: &mut Add<'_>) {
    let conditional: Vec<_> =
        shard.produces().filter_map(|(line, produce)| Some((line, produce, produce.expected_offset?))).collect();
    for (sent, produce, expected_offset) in &conditional {
        if let Outcome::Acked(ack) = &produce.outcome
            && ack.base_offset != *expected_offset
        {
            let (sent, expected_offset, base_offset) = (*sent, *expected_offset, ack.base_offset);
            add(Anomaly::MisplacedBatch { sent, expected_offset, base_offset });
        }
    }
    for batch in contents.batches().iter().filter(|batch| !batch.acked) {
        // They are in the order of their lines.
        let Ok(at) = conditional.binary_search_by_key(&batch.line, |(line, ..)| *line) else { continue };
        let (sent, produce, expected_offset) = conditional[at];
        // An ack has been looked at above.
        if batch.base != expected_offset && !matches!(produce.outcome, Outcome::Acked(_)) {
            add(Anomaly::MisplacedBatch { sent, expected_offset, base_offset: batch.base });
        }
    }
}

/// A batch whose timestamp is known.
#[derive(Clone, Copy, Debug)]
struct Timed {
    line: Line,
    base: u64,
    /// Exclusive.
    end: u64,
    timestamp_us: i64,
}

/// All of them by place; reports those whose time goes back.
fn gather(shard: &Shard<'_>, add: &mut Add<'_>) -> Vec<Timed> {
    let timed = |(line, produce)| {
        let ack = durable(produce)?;
        let (base, end) = (ack.base_offset, ack.base_offset + ack.count);
        Some(Timed { line, base, end, timestamp_us: ack.timestamp_us? })
    };
    let mut timed: Vec<Timed> = shard.produces().filter_map(timed).collect();
    timed.sort_by_key(|batch| (batch.base, batch.line));
    for pair in timed.windows(2) {
        let [first, second] = pair else { continue };
        if second.timestamp_us < first.timestamp_us {
            let (first_us, second_us) = (first.timestamp_us, second.timestamp_us);
            add(Anomaly::TimeWentBack { first: first.line, first_us, second: second.line, second_us });
        }
    }
    timed
}

/// The last batch before the place where the answer begins is older than what was asked for, as all before it are; and the one
/// that the answer begins with is not.
fn check_start((line, read): (Line, &Read), asked_us: i64, timed: &[Timed], add: &mut Add<'_>) {
    let offset = read.begins_at();
    let mut wrong = |batch: &Timed| {
        let (batch, timestamp_us) = (batch.line, batch.timestamp_us);
        add(Anomaly::WrongStart { read: line, offset, batch, timestamp_us, asked_us });
    };
    let at = timed.partition_point(|batch| batch.base < offset);
    let log_start = read.log_start.unwrap_or_default();
    let before = timed[..at].last().filter(|batch| batch.end > log_start && offset > log_start);
    if let Some(batch) = before.filter(|batch| batch.timestamp_us >= asked_us) {
        wrong(batch);
    }
    let has = |batch: &&Timed| batch.base <= offset && offset < batch.end;
    let first = timed[..at].last().filter(has).or_else(|| timed.get(at).filter(has));
    if let Some(batch) = first.filter(|batch| !read.records.is_empty() && batch.timestamp_us < asked_us) {
        wrong(batch);
    }
}
