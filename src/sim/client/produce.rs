//! Producers: bursts of numbered batches, pipelined on one connection, each with what became of it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message;

use super::{Called, Clients, Connection, PATIENCE, Target, call, patience};
use crate::{
    env::{self, Env},
    format::{entry::ENTRY_HEADER_BYTES, records::Records},
    frontend::{CallError, Code, ProduceAck, ProduceCall},
    ids::NodeId,
    limits::{BLOCK_BYTES, RECORD_BYTES_MAX},
    proto::ringlog::v1::{self as proto, ProduceRequest, Record},
    sim::{
        SimEnv, World,
        checker::history::{Ack, Durability, Event, Fingerprint, Outcome, Produce, StreamPlace},
        random,
    },
};

/// Between two tries of `reach`.
const REACH_PAUSE: Duration = Duration::from_millis(50);

/// A batch on its way.
struct Batch {
    records: Vec<Fingerprint>,
    call: ProduceCall,
    /// Time that the client gives the server, in µs; none: no deadline.
    patience_us: Option<u64>,
}

/// An answer, and when it was in.
type Answers = Rc<RefCell<Vec<(u64, Result<ProduceAck, CallError>)>>>;

/// Produces until the clients are stopped.
pub(super) async fn run(clients: &Rc<Clients>, number: u64, dice: &Cell<u64>) {
    let client = format!("p{number}");
    let mut sequence = 0;
    let mut stream = 0;
    // Where this client believes the end of each shard to be.
    let mut ends = BTreeMap::new();
    while !clients.stopped.get() {
        clients.pause(dice).await;
        let Some(connection) = clients.connect(dice) else { continue };
        let target = clients.target(dice);
        let count = 1 + random(dice) % clients.load.burst_max;
        let mut batches: Vec<Batch> = (0..count)
            .map(|_| {
                sequence += 1;
                batch(clients, &target, &format!("{client}-{sequence}"), dice)
            })
            .collect();
        stream += 1;
        if let Some(end) = ends.get(&target.uid).filter(|_| random(dice).is_multiple_of(3)) {
            expect(&mut batches, *end, dice);
        }
        let burst = burst(clients, &client, stream, &connection, &target, batches, patience(dice)).await;
        ends.extend(burst.end.map(|end| (target.uid, end)));
    }
}

/// Has a shard take one more batch; whether it was acknowledged.
pub(super) async fn probe(clients: &Rc<Clients>, target: &Target) -> bool {
    let number = clients.probes.get() + 1;
    clients.probes.set(number);
    let dice = Cell::new(World::current().random_u64());
    let Some(connection) = clients.connect(&dice) else { return false };
    let one = Batch { patience_us: None, ..batch(clients, target, &format!("probe-{number}"), &dice) };
    burst(clients, "probe", number, &connection, target, vec![one], PATIENCE).await.acknowledged == 1
}

/// Asks a node, again and again, to have its shard take a small record within so long; whether it has, or has no room for it.
pub(super) async fn reach(clients: &Rc<Clients>, node: NodeId, target: &Target, within: Duration) -> bool {
    let world = World::current();
    let until_us = world.now_us() + within.as_micros() as u64;
    loop {
        let left_us = until_us.saturating_sub(world.now_us());
        let Some(process) = clients.cluster.process(node).filter(|_| left_us > 0) else { return false };
        let number = clients.probes.get() + 1;
        clients.probes.set(number);
        let value = format!("probe-{number} ");
        let one = batch_of(target, vec![value.into()], proto::Durability::Unspecified);
        let (connection, patience) = (Connection { node, process, turn: number }, Duration::from_micros(left_us));
        let burst = burst(clients, "probe", number, &connection, target, vec![one], patience).await;
        if burst.acknowledged == 1 || burst.no_room {
            return true;
        }
        env::sleep::<SimEnv>(REACH_PAUSE).await;
    }
}

fn batch(clients: &Clients, target: &Target, name: &str, dice: &Cell<u64>) -> Batch {
    let count = 1 + random(dice) % clients.load.batch_max;
    let values: Vec<Bytes> = (0..count)
        .map(|number| {
            let mut value = format!("{name}-{number} ").into_bytes();
            value.resize(value.len() + (random(dice) % clients.load.value_bytes_max) as usize, b'x');
            value.into()
        })
        .collect();
    // Few are content with less than the default.
    let durability =
        if random(dice).is_multiple_of(16) { proto::Durability::LeaderMemory } else { proto::Durability::Unspecified };
    let patience_us = random(dice).is_multiple_of(4).then(|| 1_000 + random(dice) % 2_000_000);
    Batch { patience_us, ..batch_of(target, values, durability) }
}

fn batch_of(target: &Target, values: Vec<Bytes>, durability: proto::Durability) -> Batch {
    let fingerprints = values.iter().map(|value| Fingerprint::of(value)).collect();
    let records = values.into_iter().map(|value| Record { value, ..Record::default() }).collect();
    let request = ProduceRequest {
        records,
        topic: target.topic.to_string(),
        shard: Some(target.shard),
        durability: durability.into(),
        ..ProduceRequest::default()
    };
    let (head, records) =
        Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).expect("the request was just encoded");
    Batch { records: fingerprints, call: ProduceCall { head, records, deadline_us: None }, patience_us: None }
}

/// Makes most of them conditional: on where each one comes to be if nobody else writes, or on what cannot be any more.
fn expect(batches: &mut [Batch], end: u64, dice: &Cell<u64>) {
    let mut next = end;
    for batch in batches {
        let count = batch.records.len() as u64;
        let expected = match random(dice) % 6 {
            0 => None,
            1 => Some(next.saturating_sub(1 + random(dice) % 3)),
            _ => Some(next),
        };
        batch.call.head.expected_offset = expected;
        next += if expected.is_none_or(|expected| expected == next) { count } else { 0 };
    }
}

/// What a burst has come to.
struct Burst {
    /// Batches that were acknowledged.
    acknowledged: u64,
    /// Where the last of them ends.
    end: Option<u64>,
    /// There was no memory or no space for one of them.
    no_room: bool,
}

/// Sends all batches one after the other without waiting, as a pipelined stream does, and notes what became of each.
async fn burst(
    clients: &Rc<Clients>,
    client: &str,
    stream: u64,
    connection: &Connection,
    target: &Target,
    batches: Vec<Batch>,
    patience: Duration,
) -> Burst {
    let (world, frontend) = (World::current(), connection.process.frontend(connection.turn));
    let begin_us = world.now_us();
    let (sent, calls): (Vec<_>, Vec<_>) = batches
        .into_iter()
        .map(|batch| {
            let of_it = (batch.call.head.expected_offset, log_bytes(&batch.call));
            ((batch.records, of_it), (batch.call, batch.patience_us))
        })
        .unzip();
    let answers: Answers = Rc::default();
    let told = Rc::clone(&answers);
    let work = async move {
        let now_us = SimEnv::monotonic_us();
        let deadline = |patience_us: Option<u64>| patience_us.map(|patience_us| now_us + patience_us);
        let calls: Vec<_> = calls
            .into_iter()
            .map(|(call, patience)| frontend.produce(ProduceCall { deadline_us: deadline(patience), ..call }))
            .collect();
        for call in calls {
            let answer = call.await;
            told.borrow_mut().push((World::current().now_us(), answer));
        }
    };
    // What was answered before the process died, or the client lost its patience, was answered.
    if matches!(call(connection, patience, work).await, Called::Late) && patience < PATIENCE {
        clients.met.borrow_mut().hit("client gone", "produce");
    }
    let end_us = world.now_us();
    let answers = answers.take();
    let mut burst = Burst { acknowledged: 0, end: None, no_room: false };
    for (at, (records, (expected_offset, log_bytes))) in sent.into_iter().enumerate() {
        let (end_us, outcome) = match answers.get(at) {
            Some((at_us, Ok(ack))) => (*at_us, acked(ack)),
            Some((at_us, Err(error))) => {
                clients.judge_condition(client, expected_offset, error);
                burst.no_room |= matches!(error.reason, "MEMORY_BUSY" | "DISK_FULL");
                match error.reason {
                    "MEMORY_BUSY" => clients.met.borrow_mut().hit("no memory", "produce"),
                    "DISK_FULL" => clients.met.borrow_mut().hit("full disk", "produce refused"),
                    _ => {}
                }
                (*at_us, if error.definite { Outcome::Failed } else { Outcome::Indefinite })
            }
            None => (end_us, Outcome::Indefinite),
        };
        clients.count(&outcome);
        if let Outcome::Acked(ack) = &outcome {
            burst.acknowledged += 1;
            burst.end = Some(ack.base_offset + ack.count);
            if expected_offset.is_some() {
                clients.met.borrow_mut().hit("conditional append", "acknowledged");
            }
        }
        clients.note(Event::Produce(Produce {
            client: client.to_owned(),
            begin_us,
            end_us,
            topic: target.topic.to_string(),
            shard: target.shard,
            records,
            expected_offset,
            log_bytes: Some(log_bytes),
            stream: Some(StreamPlace { id: stream, sequence: at as u64 }),
            outcome,
        }));
    }
    burst
}

/// The most that it takes in a log: an entry of its own. With others in one entry it takes less.
fn log_bytes(call: &ProduceCall) -> u64 {
    (ENTRY_HEADER_BYTES + call.records.encoded_bytes_max()).next_multiple_of(BLOCK_BYTES) as u64
}

fn acked(ack: &ProduceAck) -> Outcome {
    let durability = match ack.produced.durability {
        crate::shard::Durability::QuorumFlushed => Durability::QuorumFlushed,
        crate::shard::Durability::LeaderMemory => Durability::LeaderMemory,
    };
    let crate::shard::Produced { base_offset, count, timestamp_us, .. } = ack.produced;
    let (count, timestamp_us) = (u64::from(count), Some(timestamp_us));
    Outcome::Acked(Ack { base_offset: base_offset.0, count, durability, timestamp_us })
}

impl Clients {
    /// A condition that does not hold is refused for certain, and nothing else is refused for one.
    fn judge_condition(&self, client: &str, expected_offset: Option<u64>, error: &CallError) {
        if error.reason != "OFFSET_MISMATCH" {
            return;
        }
        self.met.borrow_mut().hit("conditional append", "refused");
        if expected_offset.is_none() || !error.definite || error.code != Code::FailedPrecondition {
            let text = format!("client {client} expects offset {expected_offset:?} and is told {error:?}");
            World::current().note(&text);
            self.problems.borrow_mut().push(text);
        }
    }

    pub(super) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Acked(_) => &self.acked,
            Outcome::Failed => &self.failed,
            Outcome::Indefinite => &self.indefinite,
        };
        counter.set(counter.get() + 1);
    }
}
