//! Consumers: they read on from where they are, sometimes from somewhere else, sometimes asking that all be there that was
//! acknowledged before.

use std::{cell::Cell, rc::Rc, time::Duration};

use prost::Message;

use super::{Called, Clients, PATIENCE, Target, call, patience};
use crate::{
    env::Env,
    frontend::ConsumeCall,
    ids::Offset,
    proto::ringlog::v1::ConsumeResponse,
    shard::{Consume, Consumed, Start},
    sim::{
        SimEnv, World,
        checker::history::{self, Event, Fingerprint, Read},
        random,
    },
};

/// Most bytes of one answer: several answers to a segment.
const BYTES_MAX: usize = 64 << 10;

/// Reads until the clients are stopped.
pub(super) async fn run(clients: &Rc<Clients>, number: u64, dice: &Cell<u64>) {
    let mut target = clients.target(dice);
    let mut next = Start::Earliest;
    // The timestamp of a record of the shard.
    let mut seen_us = None;
    while !clients.stopped.get() {
        clients.pause(dice).await;
        if random(dice).is_multiple_of(16) {
            target = clients.target(dice);
            (next, seen_us) = (Start::Earliest, None);
        }
        next = jump(next, seen_us, dice);
        let Some(connection) = clients.connect(dice) else { continue };
        let linearizable = random(dice).is_multiple_of(4);
        let wait_ms = if random(dice).is_multiple_of(4) { random(dice) % 500 } else { 0 };
        let min_offset = match next {
            Start::Offset(offset) if random(dice).is_multiple_of(4) => Some(offset),
            _ => None,
        };
        let patience_us = 100_000 + random(dice) % 5_000_000;
        let consume = Consume {
            start: next,
            records_max: 0,
            bytes_max: BYTES_MAX,
            wait: Duration::from_millis(wait_ms),
            min_offset,
            linearizable,
            deadline_us: None,
            if_small: false,
        };
        let frontend = connection.process.frontend(connection.turn);
        let (topic, shard) = (target.topic.to_string(), target.shard);
        let work = async move {
            let consume = Consume { deadline_us: Some(SimEnv::monotonic_us() + patience_us), ..consume };
            let answer = frontend.consume(ConsumeCall { topic, shard, consume }).await;
            (World::current().now_us(), answer)
        };
        let begin_us = World::current().now_us();
        let opened_us = connection.opened_us(&target);
        let patience = patience(dice);
        match call(&connection, patience, work).await {
            Called::Answered((end_us, Ok(consumed))) => {
                // A replica that was opened anew, also within one process, has to hear again of what is committed.
                let opened_us = opened_us.filter(|opened_us| connection.opened_us(&target) == Some(*opened_us));
                let client = format!("c{number}-{}-{}", connection.process.number, opened_us.unwrap_or_default());
                let mut read = read(&client, (begin_us, end_us), &target, &consume, &consumed);
                // Of a replica elsewhere nothing is known.
                read.node = read.node.filter(|node| *node == connection.node.0 && opened_us.is_some());
                if let Start::Latest | Start::Timestamp(_) = next {
                    let name = if next == Start::Latest { "latest" } else { "a time" };
                    clients.met.borrow_mut().hit("start", name);
                }
                seen_us = answer(&consumed).records.last().map(|record| record.timestamp_us).or(seen_us);
                next = Start::Offset(consumed.next_offset);
                clients.reads.set(clients.reads.get() + 1);
                clients.note(Event::Read(read));
            }
            Called::Answered((_, Err(error))) => {
                if error.reason == "OFFSET_OUT_OF_RANGE" {
                    next = Start::Earliest;
                }
            }
            Called::Late if patience < PATIENCE => clients.met.borrow_mut().hit("client gone", "consume"),
            Called::Lost | Called::Late => {}
        }
    }
}

/// Now and then from somewhere else: what comes next, or what is not older than some time at which something was, or that will
/// come soon.
fn jump(next: Start, seen_us: Option<i64>, dice: &Cell<u64>) -> Start {
    match (random(dice) % 16, seen_us) {
        (0, _) => Start::Latest,
        (1 | 2, Some(seen_us)) => {
            let shift_us = [-1_000_000, -1, 0, 0, 1, 200_000][(random(dice) % 6) as usize];
            Start::Timestamp(seen_us + shift_us)
        }
        _ => next,
    }
}

fn read(client: &str, span_us: (u64, u64), target: &Target, consume: &Consume, consumed: &Consumed) -> Read {
    let (from_offset, start) = match consume.start {
        Start::Offset(offset) => (Some(offset.0), None),
        Start::Timestamp(asked_us) => (None, Some(history::Start::TimestampUs(asked_us))),
        Start::Latest => (None, Some(history::Start::Latest)),
        Start::Earliest => (None, None),
    };
    Read {
        client: client.to_owned(),
        begin_us: span_us.0,
        end_us: span_us.1,
        topic: target.topic.to_string(),
        shard: target.shard,
        node: Some(consumed.node.0),
        from_offset,
        start,
        records: records(consumed),
        next_offset: consumed.next_offset.0,
        high_watermark: consumed.high_watermark.0,
        min_offset: consume.min_offset.map(|offset: Offset| offset.0),
        linearizable: consume.linearizable,
        log_start: Some(consumed.log_start.0),
    }
}

/// Offset and fingerprint of each record of an answer.
pub(in crate::sim) fn records(consumed: &Consumed) -> Vec<(u64, Fingerprint)> {
    answer(consumed).records.iter().map(|record| (record.offset, Fingerprint::of(&record.value))).collect()
}

/// What a client makes of an answer.
///
/// # Panics
/// When the answer is no `ConsumeResponse`, or has another number of records than it says: no client could read it.
fn answer(consumed: &Consumed) -> ConsumeResponse {
    let response = ConsumeResponse::decode(&*consumed.chunks.concat()).expect("an answer can be decoded");
    assert_eq!(response.records.len() as u64, consumed.count, "an answer has as many records as it says");
    response
}
