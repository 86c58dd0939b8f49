//! Producers: bursts of numbered batches, pipelined on one connection, each with what became of it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use prost::Message;

use super::{Clients, Connection, Target, call};
use crate::{
    env::Env,
    format::records::Records,
    frontend::{CallError, ProduceAck, ProduceCall},
    limits::RECORD_BYTES_MAX,
    proto::ringlog::v1::{self as proto, ProduceRequest, Record},
    sim::{
        SimEnv, World,
        checker::history::{Ack, Durability, Event, Fingerprint, Outcome, Produce, StreamPlace},
        random,
    },
};

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
    while !clients.stopped.get() {
        clients.pause(dice).await;
        let Some(connection) = clients.connect(dice) else { continue };
        let target = clients.target(dice);
        let count = 1 + random(dice) % clients.load.burst_max;
        let batches: Vec<Batch> = (0..count)
            .map(|_| {
                sequence += 1;
                batch(clients, &target, &format!("{client}-{sequence}"), dice)
            })
            .collect();
        stream += 1;
        burst(clients, &client, stream, &connection, &target, batches).await;
    }
}

/// Has a shard take one more batch; whether it was acknowledged.
pub(super) async fn probe(clients: &Rc<Clients>, target: &Target) -> bool {
    let number = clients.probes.get() + 1;
    clients.probes.set(number);
    let dice = Cell::new(World::current().random_u64());
    let Some(connection) = clients.connect(&dice) else { return false };
    let one = Batch { patience_us: None, ..batch(clients, target, &format!("probe-{number}"), &dice) };
    burst(clients, "probe", number, &connection, target, vec![one]).await == 1
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
    let fingerprints = values.iter().map(|value| Fingerprint::of(value)).collect();
    let records = values.into_iter().map(|value| Record { value, ..Record::default() }).collect();
    // Few are content with less than the default.
    let durability =
        if random(dice).is_multiple_of(16) { proto::Durability::LeaderMemory } else { proto::Durability::Unspecified };
    let request = ProduceRequest {
        records,
        topic: target.topic.to_string(),
        shard: Some(target.shard),
        durability: durability.into(),
        ..ProduceRequest::default()
    };
    let (head, records) =
        Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).expect("the request was just encoded");
    let patience_us = random(dice).is_multiple_of(4).then(|| 1_000 + random(dice) % 2_000_000);
    Batch { records: fingerprints, call: ProduceCall { head, records, deadline_us: None }, patience_us }
}

/// Sends all batches one after the other without waiting, as a pipelined stream does, and notes what became of each. How many
/// were acknowledged.
async fn burst(
    clients: &Rc<Clients>,
    client: &str,
    stream: u64,
    connection: &Connection,
    target: &Target,
    batches: Vec<Batch>,
) -> u64 {
    let (world, frontend) = (World::current(), connection.process.frontend(connection.turn));
    let begin_us = world.now_us();
    let (fingerprints, calls): (Vec<_>, Vec<_>) =
        batches.into_iter().map(|batch| (batch.records, (batch.call, batch.patience_us))).unzip();
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
    call(connection, work).await;
    let end_us = world.now_us();
    let answers = answers.take();
    let mut acknowledged = 0;
    for (at, records) in fingerprints.into_iter().enumerate() {
        let (end_us, outcome) = match answers.get(at) {
            Some((at_us, Ok(ack))) => (*at_us, acked(ack)),
            Some((at_us, Err(error))) => (*at_us, if error.definite { Outcome::Failed } else { Outcome::Indefinite }),
            None => (end_us, Outcome::Indefinite),
        };
        clients.count(&outcome);
        acknowledged += u64::from(matches!(outcome, Outcome::Acked(_)));
        clients.note(Event::Produce(Produce {
            client: client.to_owned(),
            begin_us,
            end_us,
            topic: target.topic.to_string(),
            shard: target.shard,
            records,
            stream: Some(StreamPlace { id: stream, sequence: at as u64 }),
            outcome,
        }));
    }
    acknowledged
}

fn acked(ack: &ProduceAck) -> Outcome {
    let durability = match ack.produced.durability {
        crate::shard::Durability::QuorumFlushed => Durability::QuorumFlushed,
        crate::shard::Durability::LeaderMemory => Durability::LeaderMemory,
    };
    Outcome::Acked(Ack { base_offset: ack.produced.base_offset.0, count: u64::from(ack.produced.count), durability })
}

impl Clients {
    pub(super) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Acked(_) => &self.acked,
            Outcome::Failed => &self.failed,
            Outcome::Indefinite => &self.indefinite,
        };
        counter.set(counter.get() + 1);
    }
}
