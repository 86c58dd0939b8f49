//! Clients that mean no good: HTTP/2 frames by hand over a simulated connection, which no library would send. The same attacks as
//! in `tests/interop/hostile.py`, with clusters, faults and the judge around them.
//!
//! Whatever they do, these are problems:
//! - a record that is read for a client whose windows were never open, whatever memory is charged for that (`cluster::handed`);
//! - a node that panics, that uses more memory than its bounds, or does not give all of it back when they are gone (`scenario`);
//! - a flood that is not noticed by a node to which nothing happens;
//! - a request of legal frames, however odd, that such a node does not answer;
//! - a client on another connection to the same reactor that does not go on, as long as nothing else happens (`stock::beside`).
//!
//! What they produced may be written: it is in the history as of unknown fate.

mod attack;
mod frame;
mod raw;

use std::{cell::Cell, rc::Rc, time::Duration};

use prost::Message;

use self::{attack::Attack, raw::Raw};
use super::{Clients, Connection, Target, stock};
use crate::{
    proto::ringlog::v1::{ProduceRequest, ProduceResponse, Record},
    sim::{
        World,
        checker::history::{Ack, Durability, Event, Fingerprint, Outcome, Produce},
        random,
        socket::{self, Wire},
    },
};

/// Until a node to which nothing happens has answered anything.
pub(super) const PROMPT: Duration = Duration::from_secs(10);

/// Attacks, one after the other, until the clients are stopped.
pub(super) async fn run(clients: &Rc<Clients>, number: u64, dice: &Cell<u64>) {
    let mut sessions = 0;
    while !clients.stopped.get() {
        clients.pause(dice).await;
        let Some(door) = clients.connect(dice) else { continue };
        sessions += 1;
        let is_over = Rc::new(Cell::new(false));
        let good = stock::beside(clients, format!("b{number}-{sessions}"), &door, Rc::clone(&is_over), random(dice));
        let good = World::current().spawn(good);
        Session::run(clients, format!("h{number}-{sessions}"), &door, dice).await;
        is_over.set(true);
        let _ended = good.await;
    }
}

/// One connection.
struct Session<'a> {
    clients: &'a Rc<Clients>,
    name: String,
    target: Target,
    dice: &'a Cell<u64>,
    raw: Raw,
    /// When each record was sent, that nobody knows the fate of.
    sent: Vec<(u64, Fingerprint)>,
}

impl<'a> Session<'a> {
    async fn run(clients: &'a Rc<Clients>, name: String, door: &Connection, dice: &'a Cell<u64>) {
        let wire = Wire {
            delay_us: [20, 500][(random(dice) % 2) as usize],
            jitter_us: 50,
            buffer_bytes: [1 << 10, 64 << 10][(random(dice) % 2) as usize],
        };
        let (near, far) = socket::pair(wire, random(dice));
        let handed = door.process.accept(door.turn, far);
        let breaker = near.breaker();
        let attack = Attack::draw(dice);
        let raw = Raw::new(near, attack.reads(dice));
        let target = clients.target(dice);
        let mut session = Session { clients, name, target, dice, raw, sent: Vec::new() };
        session.met(attack.name());
        session.act(attack).await;
        if attack == Attack::ClosedWindows {
            clients.judge_closed(&session.name, handed.get());
        }
        match random(dice) % 3 {
            0 => breaker.reset(),
            1 => {
                session.raw.finish().await;
                session.hold_ms(1_000).await;
            }
            // Dropped with what it has not read.
            _ => {}
        }
        for (begin_us, record) in std::mem::take(&mut session.sent) {
            session.note(begin_us, record, Outcome::Indefinite);
        }
    }

    /// A request to write one record that no other is like. It is noted when the connection has ended, unless it is taken
    /// out before that.
    fn request(&mut self) -> ProduceRequest {
        let value = format!("{}.{}", self.name, self.sent.len()).into_bytes();
        self.sent.push((World::current().now_us(), Fingerprint::of(&value)));
        let record = Record { value: value.into(), ..Record::default() };
        let (topic, shard) = (self.target.topic.to_string(), Some(self.target.shard));
        ProduceRequest { topic, shard, records: vec![record], ..ProduceRequest::default() }
    }

    /// The answer to the last request is there, in this message.
    fn acknowledged(&mut self, message: bytes::Bytes) {
        let Some((begin_us, record)) = self.sent.pop() else { return };
        match ProduceResponse::decode(message) {
            Ok(ProduceResponse { base_offset, count, timestamp_us, .. }) => {
                let durability = Durability::QuorumFlushed;
                let ack = Ack { base_offset, count: u64::from(count), durability, timestamp_us: Some(timestamp_us) };
                self.note(begin_us, record, Outcome::Acked(ack));
            }
            Err(error) => self.problem(&format!("no acknowledgement: {error}")),
        }
    }

    fn note(&self, begin_us: u64, record: Fingerprint, outcome: Outcome) {
        self.clients.count(&outcome);
        self.clients.note(Event::Produce(Produce {
            client: self.name.clone(),
            begin_us,
            end_us: World::current().now_us(),
            topic: self.target.topic.to_string(),
            shard: self.target.shard,
            records: vec![record],
            expected_offset: None,
            log_bytes: None,
            stream: None,
            outcome,
        }));
    }

    async fn hold_ms(&mut self, most: u64) {
        let ms = 1 + random(self.dice) % most;
        self.raw.hold(Duration::from_millis(ms), None).await;
    }

    fn met(&self, what: &str) {
        self.clients.met.borrow_mut().hit("hostile client", what);
    }

    /// Only where no fault explains it.
    fn problem(&self, text: &str) {
        if !self.clients.load.undisturbed {
            return;
        }
        let text = format!("connection {}: {text}", self.name);
        World::current().note(&text);
        self.clients.problems.borrow_mut().push(text);
    }
}
