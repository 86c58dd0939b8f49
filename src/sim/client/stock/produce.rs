//! Calls that produce, and what became of each message.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::{Reason, SendStream, client::SendRequest};
use prost::Message;

use super::{
    CallState, Session,
    call::{self, Answers, End},
    habit::Method,
};
use crate::{
    client::Status,
    env::{self, channel::Notify},
    frontend::Code,
    proto::ringlog::v1::{ProduceRequest, ProduceResponse, ProduceStreamRequest, ProduceStreamResponse, Record},
    sim::{
        SimEnv, World,
        checker::history::{Ack, Durability, Event, Fingerprint, Outcome, Produce, StreamPlace},
        client::Target,
        random,
    },
};

/// Most calls of their own that take the place of one stream.
pub(super) const UNARY_MAX: u64 = 12;

/// Messages of a call (or one of several) that have no answer yet.
pub(super) struct Sent<'a> {
    pub(super) session: &'a Session,
    state: &'a CallState,
    name: &'a str,
    target: Target,
    is_stream: bool,
    /// In order: when it was sent, its number, its record.
    unanswered: RefCell<VecDeque<(u64, u64, Fingerprint)>>,
    answered: Notify,
}

impl<'a> Sent<'a> {
    pub(super) fn new(session: &'a Session, state: &'a CallState, name: &'a str, dice: &Cell<u64>) -> Sent<'a> {
        Sent {
            session,
            state,
            name,
            target: session.clients.target(dice),
            is_stream: state.method == Method::ProduceStream,
            unanswered: RefCell::default(),
            answered: Notify::new(),
        }
    }

    /// A record that no other is like, and that it is sent now.
    fn record(&self, number: u64, dice: &Cell<u64>) -> Record {
        let mut value = format!("{}.{number}", self.name).into_bytes();
        value.resize(value.len() + (random(dice) % self.session.habit.padding_max) as usize, b' ');
        let fingerprint = Fingerprint::of(&value);
        self.unanswered.borrow_mut().push_back((World::current().now_us(), number, fingerprint));
        Record { value: value.into(), ..Record::default() }
    }

    /// The same as a message of a stream.
    pub(super) fn request(&self, number: u64, dice: &Cell<u64>) -> ProduceStreamRequest {
        ProduceStreamRequest {
            topic: self.target.topic.to_string(),
            shard: Some(self.target.shard),
            records: vec![self.record(number, dice)],
            ..ProduceStreamRequest::default()
        }
    }

    pub(super) fn acknowledged(&self, (topic, shard): (&str, u32), base_offset: u64, count: u32, timestamp_us: i64) {
        if (topic, shard) != (&*self.target.topic, self.target.shard) || count != 1 {
            self.session.problem(&format!("{}: one record is acknowledged as {count} in {topic}/{shard}", self.name));
        }
        let (durability, timestamp_us) = (Durability::QuorumFlushed, Some(timestamp_us));
        let ack = Ack { base_offset, count: u64::from(count), durability, timestamp_us };
        if !self.note_first(Outcome::Acked(ack)) {
            self.session.problem(&format!("{}: an acknowledgement for nothing", self.name));
        }
        self.state.answered.set(self.state.answered.get() + 1);
        self.answered.notify_all();
    }

    /// Writes down what became of the first message without an answer; false: there is none.
    fn note_first(&self, outcome: Outcome) -> bool {
        let first = self.unanswered.borrow_mut().pop_front();
        let Some((begin_us, sequence, record)) = first else { return false };
        self.session.clients.count(&outcome);
        self.session.clients.note(Event::Produce(Produce {
            client: self.name.to_owned(),
            begin_us,
            end_us: World::current().now_us(),
            topic: self.target.topic.to_string(),
            shard: self.target.shard,
            records: vec![record],
            expected_offset: None,
            log_bytes: None,
            stream: self.is_stream.then_some(StreamPlace { id: 0, sequence }),
            outcome,
        }));
        true
    }

    pub(super) fn ended(&self, end: End) {
        let owed = self.unanswered.borrow().len();
        let (first, behind) = match end {
            End::Ok if owed > 0 => {
                self.session.problem(&format!("{}: OK, and {owed} messages have no answer", self.name));
                (Outcome::Indefinite, Outcome::Indefinite)
            }
            End::Ok | End::Lost => (Outcome::Indefinite, Outcome::Indefinite),
            End::Status(status) => {
                self.meet(&status);
                let fate = |definite: bool| if definite { Outcome::Failed } else { Outcome::Indefinite };
                (fate(status.definite), fate(status.behind_definite))
            }
        };
        self.note_first(first);
        while self.note_first(behind) {}
    }

    fn meet(&self, status: &Status) {
        let owed = self.state.owed() > 0;
        match status.code {
            Code::DeadlineExceeded if owed => self.session.met("deadline", "produce in flight"),
            Code::DeadlineExceeded => self.session.met("deadline", self.state.method.name()),
            _ if status.reason == "SHUTTING_DOWN" => self.session.met("stopping node", self.state.method.name()),
            _ => {}
        }
    }
}

/// How a stream of messages goes.
struct Course {
    messages: u64,
    timeout_ms: Option<u64>,
    /// No more is said before the acknowledgements are there.
    closes_first: bool,
    /// Cancelled after so many messages.
    cancel_at: Option<u64>,
    /// Between two messages of a stream that does not hurry.
    pause_us: Option<u64>,
}

impl Course {
    fn draw(session: &Session, dice: &Cell<u64>) -> Course {
        let messages = session.habit.messages;
        let one_in = |count: u64| random(dice).is_multiple_of(count);
        let cancels = one_in(6) || session.habit.floods();
        let cancel_at = match session.habit.floods() || one_in(2) {
            true => messages,
            false => random(dice) % (messages + 1),
        };
        Course {
            messages,
            timeout_ms: one_in(6).then(|| 1 + random(dice) % 2_000),
            closes_first: one_in(2),
            cancel_at: cancels.then_some(cancel_at),
            pause_us: (one_in(4) && messages < 500).then(|| random(dice) % 5_000),
        }
    }
}

/// `ProduceStream`.
pub(super) async fn stream(
    session: &Rc<Session>,
    mut requests: SendRequest<Bytes>,
    state: &CallState,
    name: &str,
    dice: &Cell<u64>,
) {
    let course = Course::draw(session, dice);
    let Some((mut answers, stream)) = call::open(session, &mut requests, state.method, course.timeout_ms).await else {
        return;
    };
    drop(requests);
    let sent = Sent::new(session, state, name, dice);
    let mut send = pin!(send_all(&sent, stream, &course, dice));
    let mut is_sent = false;
    let mut receive = pin!(receive_acks(&sent, &mut answers));
    let end = std::future::poll_fn(|cx| {
        if let Poll::Ready(end) = receive.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        is_sent = is_sent || send.as_mut().poll(cx).is_ready();
        Poll::Pending
    })
    .await;
    sent.ended(end);
}

async fn receive_acks(sent: &Sent<'_>, answers: &mut Answers) -> End {
    loop {
        let message = match answers.next().await {
            Ok(message) => message,
            Err(end) => return end,
        };
        match ProduceStreamResponse::decode(message) {
            Ok(ack) => sent.acknowledged((&ack.topic, ack.shard), ack.base_offset, ack.count, ack.timestamp_us),
            Err(error) => sent.session.problem(&format!("{}: no acknowledgement: {error}", sent.name)),
        }
    }
}

async fn send_all(sent: &Sent<'_>, mut stream: SendStream<Bytes>, course: &Course, dice: &Cell<u64>) {
    let (session, state) = (sent.session, sent.state);
    for number in 0..course.messages {
        if session.clients.stopped.get() {
            break;
        }
        if course.cancel_at == Some(number) {
            return cancel(sent, &mut stream, dice).await;
        }
        if !call::send(&mut stream, &sent.request(number, dice), false).await {
            return;
        }
        state.sent.set(state.sent.get() + 1);
        if let Some(pause_us) = course.pause_us {
            env::sleep::<SimEnv>(Duration::from_micros(pause_us)).await;
        }
    }
    if course.cancel_at.is_some() {
        return cancel(sent, &mut stream, dice).await;
    }
    while !course.closes_first && state.owed() > 0 {
        // `ended` hears nothing of it when the call fails: then this is dropped.
        let answered = sent.answered.notified();
        answered.await;
    }
    if stream.send_data(Bytes::new(), true).is_ok() {
        state.half_closed.set(true);
        if state.owed() > 0 {
            session.met("half-close", "acks owed");
        }
    }
}

async fn cancel(sent: &Sent<'_>, stream: &mut SendStream<Bytes>, dice: &Cell<u64>) {
    env::sleep::<SimEnv>(Duration::from_micros(random(dice) % 5_000)).await;
    if sent.state.owed() > 0 {
        sent.session.met("cancel", "produce in flight");
    }
    stream.send_reset(Reason::CANCEL);
}

/// Some calls of `Produce`, one after the other.
pub(super) async fn unary(
    session: &Rc<Session>,
    mut requests: SendRequest<Bytes>,
    state: &CallState,
    name: &str,
    dice: &Cell<u64>,
) {
    let sent = Sent::new(session, state, name, dice);
    for number in 0..session.habit.messages.min(UNARY_MAX) {
        if session.clients.stopped.get() {
            return;
        }
        let timeout_ms = random(dice).is_multiple_of(4).then(|| 1 + random(dice) % 1_000);
        let cancels = random(dice).is_multiple_of(6).then(|| Duration::from_micros(random(dice) % 20_000));
        let Some((mut answers, mut stream)) = call::open(session, &mut requests, state.method, timeout_ms).await else {
            return;
        };
        let request = ProduceRequest {
            topic: sent.target.topic.to_string(),
            shard: Some(sent.target.shard),
            records: vec![sent.record(number, dice)],
            ..ProduceRequest::default()
        };
        if call::send(&mut stream, &request, true).await {
            state.sent.set(state.sent.get() + 1);
        }
        let answer = pin!(answer(&sent, &mut answers));
        let end = match cancels {
            Some(after) => match select(answer, pin!(env::sleep::<SimEnv>(after))).await {
                Either::Left((end, _)) => end,
                Either::Right(_) => {
                    session.met("cancel", "produce");
                    stream.send_reset(Reason::CANCEL);
                    End::Lost
                }
            },
            None => answer.await,
        };
        sent.ended(end);
        // Of a call that has failed nothing is owed.
        state.answered.set(state.sent.get());
    }
}

async fn answer(sent: &Sent<'_>, answers: &mut Answers) -> End {
    match answers.next().await {
        Ok(message) => match ProduceResponse::decode(message) {
            Ok(ack) => sent.acknowledged((&ack.topic, ack.shard), ack.base_offset, ack.count, ack.timestamp_us),
            Err(error) => sent.session.problem(&format!("{}: no acknowledgement: {error}", sent.name)),
        },
        Err(end) => return end,
    }
    match answers.next().await {
        Ok(_) => {
            sent.session.problem(&format!("{}: two answers to one request", sent.name));
            End::Lost
        }
        Err(end) => end,
    }
}
