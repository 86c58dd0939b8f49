//! Judges what clients saw: whether acks, reads and replicas of a run keep the promises, whatever happened in between.
//!
//! A general checker of histories searches for an order of all operations that explains them, which takes exponential time.
//! Here none is searched for: an ack carries the offset of its record, so that the order of a shard is in the history
//! itself, and it only has to be compared with what was read, and with the clock. That takes a few passes over the events,
//! hash maps, and sorts by time and by offset: memory is linear, and time is but for the sorts.
//!
//! ```text
//! history   the events: batches sent, answers read, final reads, statuses of replicas
//! json      the same as JSON lines, which programs in any language can write
//! contents  which record is where: lost order, duplicates, records of nobody, torn batches, gaps
//! answers   each read for itself: order, steps, high watermark
//! places    conditional appends, and reads from a time on
//! starts    log starts: nothing is gone that was not to go
//! clock     what was over before something else began: stale and future tails, streams, final reads
//! findings  each anomaly, the promise that it breaks, and its sentence
//! ```
//!
//! What is legal, though it looks odd: an indefinite batch that appears much later, once, or never; a read without
//! `min_offset` and `linearizable` that is behind; an ack of leader's memory that is gone; gaps in what is known, as long
//! as batches of unknown fate can fill them. What is not in the history is not judged: records of other writers look like
//! records of nobody.

#![allow(
    clippy::disallowed_types,
    reason = "a place is looked up in these maps; nothing goes through them in their order"
)]

mod answers;
mod clock;
mod contents;
pub mod findings;
pub mod history;
pub mod json;
mod places;
mod starts;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use contents::Contents;
pub use findings::{Anomaly, Finding, Report};
pub use history::History;
use history::{Ack, Durability, Event, Line, Outcome, Produce};

/// Judges a history. Never fails: what is impossible is found, not refused.
#[must_use]
pub fn check(history: &History) -> Report {
    let mut report = Report { events: history.len(), ..Report::default() };
    let mut numbers = HashMap::new();
    let mut shards: Vec<Shard<'_>> = Vec::new();
    for (line, event) in history.iter() {
        let (topic, shard) = event.shard();
        let at = *numbers.entry((topic, shard)).or_insert_with(|| {
            shards.push(Shard { topic, shard, events: Vec::new() });
            shards.len() - 1
        });
        shards[at].events.push((line, event));
    }
    report.shards = shards.len();
    for shard in &shards {
        report.acked_records +=
            shard.produces().filter_map(|(_, produce)| durable(produce)).map(|ack| ack.count).sum::<u64>();
        let mut add = |anomaly| report.add((shard.topic, shard.shard), anomaly);
        let contents = Contents::gather(shard, &mut add);
        contents.check_batches(shard, &mut add);
        answers::check(shard, &mut add);
        clock::check(shard, &contents, &mut add);
        starts::check(shard, &contents, &mut add);
        places::check(shard, &contents, &mut add);
    }
    report
}

/// Where findings go.
type Add<'a> = dyn FnMut(Anomaly) + 'a;

/// The events of one shard, in the order of the history.
struct Shard<'a> {
    topic: &'a str,
    shard: u32,
    events: Vec<(Line, &'a Event)>,
}

impl<'a> Shard<'a> {
    fn produces(&self) -> impl Iterator<Item = (Line, &'a Produce)> {
        self.events.iter().filter_map(|(line, event)| match event {
            Event::Produce(produce) => Some((*line, produce)),
            Event::Read(_) | Event::FinalRead(_) | Event::Status(_) | Event::Trim(_) | Event::Retention(_) => None,
        })
    }
}

/// The ack of a batch, if it was acknowledged and this cannot be taken back.
fn durable(produce: &Produce) -> Option<&Ack> {
    match &produce.outcome {
        Outcome::Acked(ack) if ack.durability == Durability::QuorumFlushed => Some(ack),
        Outcome::Acked(_) | Outcome::Failed | Outcome::Indefinite => None,
    }
}
