//! What one answer shows by itself: its records in order and without a step left out, all of them committed, as far as was
//! asked for. And replicas' chain hashes, which only have to be alike.

use std::collections::HashMap;

use super::{
    Add, Shard,
    findings::Anomaly,
    history::{Chain, Event, Line, Read, Status},
};

/// Looks at each answer.
pub(super) fn check(shard: &Shard<'_>, add: &mut Add<'_>) {
    let mut chains = HashMap::new();
    for (line, event) in &shard.events {
        match event {
            Event::Read(read) => check_read(*line, read, add),
            Event::Status(status) => check_chain(*line, status, &mut chains, add),
            // Final reads have no steps of their own (`clock`).
            Event::Produce(_) | Event::FinalRead(_) | Event::Trim(_) | Event::Retention(_) => {}
        }
    }
}

fn check_read(line: Line, read: &Read, add: &mut Add<'_>) {
    if let Some(anomaly) = wrong_step(line, read) {
        add(anomaly);
    }
    let high_watermark = read.high_watermark;
    if let Some((offset, _)) = read.records.iter().find(|(offset, _)| *offset >= high_watermark) {
        add(Anomaly::UncommittedRead { read: line, offset: *offset, high_watermark });
    }
    if let Some(min_offset) = read.min_offset.filter(|min_offset| high_watermark < *min_offset) {
        add(Anomaly::ReadYourWrites { read: line, min_offset, high_watermark });
    }
}

/// The first record that is not behind the one before it; else the first step that is not the next offset, with the one from
/// the request to the first record and the one from the last record to `next_offset`.
fn wrong_step(line: Line, read: &Read) -> Option<Anomaly> {
    let back = read.records.windows(2).find(|pair| pair[1].0 <= pair[0].0);
    if let Some(&[(previous, _), (offset, _)]) = back {
        return Some(Anomaly::OutOfOrderPoll { read: line, offset, previous });
    }
    let offsets = read.records.iter().map(|(offset, _)| *offset);
    let expected = read.from_offset.into_iter().chain(offsets.clone().map(|offset| offset + 1));
    // What nobody asked for by its offset begins where it begins.
    let skipped = usize::from(read.from_offset.is_none());
    let steps = expected.zip(offsets.chain([read.next_offset]).skip(skipped));
    let (expected, offset) = steps.into_iter().find(|(expected, offset)| expected != offset)?;
    Some(Anomaly::SkippedPoll { read: line, expected, offset })
}

fn check_chain(line: Line, status: &Status, chains: &mut HashMap<u64, (Line, Chain)>, add: &mut Add<'_>) {
    let applied_end = status.applied_end;
    let (first, first_chain) = *chains.entry(applied_end).or_insert((line, status.chain));
    if first_chain != status.chain {
        add(Anomaly::Divergence { first, first_chain, second: line, second_chain: status.chain, applied_end });
    }
}
