//! `ConsumeStream` follows a shard for a while; when the clients are stopped, until all that is committed has come. `Consume` often has
//! less time than an answer takes.

use std::{cell::Cell, pin::pin, rc::Rc};

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::client::SendRequest;
use prost::Message;

use super::{
    CallState, LOOK, Session,
    call::{self, Answers, End},
    produce::UNARY_MAX,
};
use crate::{
    env,
    frontend::Code,
    proto::ringlog::v1::{
        ConsumeRequest, ConsumeResponse, ConsumeStreamRequest, Position, consume_request, consume_stream_request::Start,
    },
    sim::{
        SimEnv, World,
        checker::history::{self, Event, Fingerprint, Read},
        client::Target,
        random,
    },
};

/// Follows a shard, from its start or its end.
pub(super) async fn stream(
    session: &Rc<Session>,
    mut requests: SendRequest<Bytes>,
    state: &CallState,
    name: &str,
    dice: &Cell<u64>,
) {
    let target = session.clients.target(dice);
    let position = if random(dice).is_multiple_of(4) { Position::Latest } else { Position::Earliest };
    let request = ConsumeStreamRequest {
        topic: target.topic.to_string(),
        shard: target.shard,
        start: Some(Start::Position(position.into())),
        max_bytes: [100, 2_000, 0][(random(dice) % 3) as usize],
        max_records: [0, 0, 50][(random(dice) % 3) as usize],
        ..ConsumeStreamRequest::default()
    };
    let timeout_ms = random(dice).is_multiple_of(6).then(|| 1 + random(dice) % 3_000);
    let follows_ms = 1 + random(dice) % 4_000;
    let Some((mut answers, mut stream)) = call::open(session, &mut requests, state.method, timeout_ms).await else {
        return;
    };
    drop(requests);
    if !call::send(&mut stream, &request, true).await {
        return;
    }
    state.half_closed.set(true);
    let is_latest = position == Position::Latest;
    let followed = Followed { session, state, name, target, is_latest, next: Cell::new(None) };
    let read = pin!(followed.read(&mut answers));
    match select(read, pin!(followed.until_enough(follows_ms))).await {
        Either::Left((End::Status(status), _)) if status.code == Code::DeadlineExceeded => {
            session.met("deadline", "consume stream");
        }
        Either::Left((End::Status(status), _)) if status.reason == "SHUTTING_DOWN" => {
            session.met("stopping node", "consume stream");
        }
        Either::Left(_) => {}
        // What is dropped now cancels the call.
        Either::Right(_) => session.met("cancel", "consume stream"),
    }
}

/// Some calls of `Consume`, one after the other.
pub(super) async fn unary(
    session: &Rc<Session>,
    mut requests: SendRequest<Bytes>,
    state: &CallState,
    name: &str,
    dice: &Cell<u64>,
) {
    let target = session.clients.target(dice);
    for _ in 0..session.habit.messages.min(UNARY_MAX) {
        if session.clients.stopped.get() {
            return;
        }
        let is_latest = random(dice).is_multiple_of(4);
        let position = if is_latest { Position::Latest } else { Position::Earliest };
        let timeout_ms =
            [1 + random(dice) % 3, 1 + random(dice) % 20, 1 + random(dice) % 1_000][(random(dice) % 3) as usize];
        let Some((mut answers, mut stream)) = call::open(session, &mut requests, state.method, Some(timeout_ms)).await
        else {
            return;
        };
        let request = ConsumeRequest {
            topic: target.topic.to_string(),
            shard: target.shard,
            start: Some(consume_request::Start::Position(position.into())),
            max_bytes: [100, 0][(random(dice) % 2) as usize],
            wait_ms: [0, 0, 500][(random(dice) % 3) as usize],
            ..ConsumeRequest::default()
        };
        let begin_us = World::current().now_us();
        if !call::send(&mut stream, &request, true).await {
            continue;
        }
        match answers.next().await {
            Ok(message) => match ConsumeResponse::decode(message) {
                Ok(response) => {
                    let next = Cell::new(None);
                    let read = Followed { session, state, name, target: target.clone(), is_latest, next };
                    read.note(begin_us, response);
                    drop(answers.next().await);
                }
                Err(error) => session.problem(&format!("{name}: no answer to a consumer: {error}")),
            },
            Err(End::Status(status)) if status.code == Code::DeadlineExceeded => {
                session.met("deadline", state.method.name());
            }
            Err(_) => {}
        }
    }
}

struct Followed<'a> {
    session: &'a Session,
    state: &'a CallState,
    name: &'a str,
    target: Target,
    /// It began at the latest record.
    is_latest: bool,
    /// Where the last answer ended.
    next: Cell<Option<u64>>,
}

impl Followed<'_> {
    async fn read(&self, answers: &mut Answers) -> End {
        let mut begin_us = World::current().now_us();
        loop {
            let message = match answers.next().await {
                Ok(message) => message,
                Err(end) => return end,
            };
            match ConsumeResponse::decode(message) {
                Ok(response) => self.note(begin_us, response),
                Err(error) => self.session.problem(&format!("{}: no answer to a consumer: {error}", self.name)),
            }
            begin_us = World::current().now_us();
        }
    }

    fn note(&self, begin_us: u64, response: ConsumeResponse) {
        let clients = &self.session.clients;
        let records = response.records.iter().map(|record| (record.offset, Fingerprint::of(&record.value))).collect();
        clients.reads.set(clients.reads.get() + 1);
        let from_offset = self.next.replace(Some(response.next_offset));
        clients.note(Event::Read(Read {
            client: self.name.to_owned(),
            begin_us,
            end_us: World::current().now_us(),
            topic: self.target.topic.to_string(),
            shard: self.target.shard,
            node: None,
            from_offset,
            start: (self.is_latest && from_offset.is_none()).then_some(history::Start::Latest),
            records,
            next_offset: response.next_offset,
            high_watermark: response.high_watermark,
            min_offset: None,
            linearizable: false,
            log_start: Some(response.log_start),
        }));
        self.state.answered.set(response.next_offset as usize);
    }

    /// A while; then, once the clients are stopped, until this one has all that was committed at that time.
    async fn until_enough(&self, follows_ms: u64) {
        let end_us = World::current().now_us() + follows_ms * 1_000;
        while !self.session.clients.stopped.get() {
            if World::current().now_us() >= end_us {
                return;
            }
            env::sleep::<SimEnv>(LOOK).await;
        }
        let (start, end) = loop {
            let cluster = &self.session.clients.cluster;
            let leader = cluster.leader(self.target.uid).and_then(|node| cluster.process(node)?.shard(self.target.uid));
            match leader {
                Some(shard) => break (shard.status().log_start.0, shard.high_watermark().0),
                None => env::sleep::<SimEnv>(LOOK).await,
            }
        };
        self.state.sent.set(end as usize);
        // One that began at the end may have had nothing to read; one that began at the start has what is kept to read.
        let unanswered = if self.is_latest { end } else { start };
        while self.next.get().unwrap_or(unanswered) < end {
            env::sleep::<SimEnv>(LOOK).await;
        }
    }
}
