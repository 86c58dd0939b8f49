//! `Log.Consume` and `Log.ConsumeStream`: stored records are sent as they are, beside a few
//! small fields.

use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use prost::Message;

use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::ConsumeCall;
use crate::frontend::TopicRead;
use crate::frontend::grpc::answers::Answers;
use crate::frontend::grpc::answers::Held;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::stream::Responses;
use crate::frontend::grpc::stream::Stop;
use crate::frontend::remote::checked_consume;
use crate::ids::Offset;
use crate::limits;
use crate::proto::ringlog::v1;
use crate::proto::ringlog::v1::consume_request;
use crate::proto::ringlog::v1::consume_stream_request;
use crate::shard::Consume;
use crate::shard::Consumed;
use crate::shard::Start;

/// `Log.Consume`.
pub(super) async fn unary<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let request: v1::ConsumeRequest = call::decode(call.only().await?)?;
    let start = match request.start {
        Some(consume_request::Start::Offset(offset)) => Start::Offset(Offset(offset)),
        Some(consume_request::Start::TimestampUs(timestamp_us)) => Start::Timestamp(timestamp_us),
        Some(consume_request::Start::Position(position)) => at_position(position)?,
        None => Start::Earliest,
    };
    let consume = ConsumeCall {
        topic: request.topic,
        shard: request.shard,
        consume: Consume {
            start,
            records_max: u64::from(request.max_records),
            bytes_max: request.max_bytes as usize,
            wait: Duration::from_millis(u64::from(request.wait_ms)),
            min_offset: request.min_offset.map(Offset),
            linearizable: request.linearizable,
            deadline_us: call.deadline_us,
            if_small: false,
        },
    };
    let (consumed, held) = consume_held(call, consume).await?;
    call.reply(body(consumed).with(held)).await
}

/// An answer, and the memory for it. Room is taken for what is there to be read; while a call waits, for its shard or for records, it
/// has none, and gets at most a few small ones.
async fn consume_held<E: Env>(call: &mut Call<E>, mut consume: ConsumeCall) -> Result<(Consumed, Held), Stop> {
    checked_consume(consume.consume, call.frontend.limits())?;
    let topic = TopicRead::default();
    let until_us =
        E::monotonic_us().saturating_add(u64::try_from(consume.consume.wait.as_micros()).unwrap_or(u64::MAX));
    let frontend = call.frontend.clone();
    call.wait(Box::pin(frontend.know_topic(&consume.topic))).await?;
    let (mut waits, mut has_waited) = (consume.wants_view(), false);
    loop {
        if waits {
            let view = Box::pin(frontend.consume_of(consume.view(), &topic));
            consume.has_seen(&call.wait(view).await?);
            (waits, has_waited) = (false, true);
        }
        let room = call.room(consume.wanted_bytes()).await?;
        // Boxed: a call that waits for room must not have the place of an answer's future.
        let consumed = Box::pin(frontend.consume_of(consume.at_once(room.bytes(), has_waited), &topic));
        let consumed = match call.wait(async { Ok(consumed.await) }).await? {
            // An error of the shard may be over in a moment, which is waited for without room; a deadline (`?`) is not.
            Err(_) if !has_waited => {
                waits = true;
                continue;
            }
            result => result?,
        };
        let left = Duration::from_micros(until_us.saturating_sub(E::monotonic_us()));
        if consumed.count > 0 || left.is_zero() {
            let held = room.fit(consumed.bytes())?;
            return Ok((consumed, held));
        }
        drop(room);
        consume.go_on(&consumed);
        let consumed = Box::pin(frontend.consume_of(consume.when_there(left), &topic));
        let consumed = call.wait(consumed).await?;
        has_waited = false;
        if !consumed.leaves_some()
            && let Ok(held) = call.responses.answers().unforeseen(consumed.bytes())
        {
            return Ok((consumed, held));
        }
    }
}

fn at_position(position: i32) -> Result<Start, CallError> {
    match v1::Position::try_from(position) {
        Ok(v1::Position::Unspecified | v1::Position::Earliest) => Ok(Start::Earliest),
        Ok(v1::Position::Latest) => Ok(Start::Latest),
        Err(_) => {
            let message = format!("position {position} is unknown; use POSITION_EARLIEST or POSITION_LATEST");
            Err(CallError::invalid("UNKNOWN_POSITION", message))
        }
    }
}

/// The response: `ConsumeResponse` and `ConsumeStreamResponse` are the same on the wire.
fn body(consumed: Consumed) -> Body {
    let head = v1::ConsumeResponse {
        records: Vec::new(),
        next_offset: consumed.next_offset.0,
        log_start: consumed.log_start.0,
        high_watermark: consumed.high_watermark.0,
    };
    Body::message(&head.encode_to_vec(), consumed.chunks)
}

/// `Log.ConsumeStream`.
pub(super) async fn stream<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let request: v1::ConsumeStreamRequest = call::decode(call.only().await?)?;
    let start = match request.start {
        Some(consume_stream_request::Start::Offset(offset)) => Start::Offset(Offset(offset)),
        Some(consume_stream_request::Start::TimestampUs(timestamp_us)) => Start::Timestamp(timestamp_us),
        Some(consume_stream_request::Start::Position(position)) => at_position(position)?,
        None => Start::Earliest,
    };
    call.responses.open()?;
    let frontend = call.frontend.clone();
    call.wait(Box::pin(frontend.know_topic(&request.topic))).await?;
    let mut shutdown = Box::pin(frontend.shutting_down());
    let consume = ConsumeCall {
        topic: request.topic,
        shard: request.shard,
        consume: Consume {
            start,
            records_max: if request.max_records == 0 { u64::MAX } else { request.max_records },
            bytes_max: request.max_bytes as usize,
            wait: limits::CONSUME_WAIT_MAX,
            min_offset: request.min_offset.map(Offset),
            linearizable: request.linearizable,
            deadline_us: call.deadline_us,
            if_small: false,
        },
    };
    let topic = TopicRead::default();
    let mut follow = Follow::new(consume, |consume| frontend.consume_of(consume, &topic));
    poll_fn(|cx| {
        if !follow.is_ending() && shutdown.as_mut().poll(cx).is_ready() {
            follow.end(Err(CallError::stopping(false)));
        }
        match follow.poll(&mut call.responses, cx) {
            Poll::Pending => call.poll_stop(cx).map(Err),
            ready => ready,
        }
    })
    .await
}

/// One response on its way to the client for which memory is held, and, once the client has taken half of it, the next one on its way from the
/// shard: not more, however slow the client is, and none at all while the client's windows are closed. While there are
/// no records, the shard wakes us; nothing is polled.
struct Follow<F, S> {
    consume: ConsumeCall,
    start: S,
    /// There was no record beyond the last answer, or the shard has to be waited for: the next answer may be long in coming, and no
    /// room is kept for it.
    caught_up: bool,
    /// The shard was waited for after the last answer: an error is no reason to do so again.
    has_waited: bool,
    /// Waits until there is memory for an answer.
    waits: Option<Pin<Box<dyn Future<Output = Held>>>>,
    /// What the shard was asked for, and the memory for it; none where the stream has caught up and waits.
    next: Option<(Pin<Box<F>>, Option<Held>)>,
    fetched: Option<Body>,
    sending: Body,
    /// Of what is being sent: with fewer left, the client reads.
    half: usize,
    /// What the stream ends with, after what is being sent.
    end: Option<Result<(), CallError>>,
}

impl<F, S> Follow<F, S>
where
    F: Future<Output = Result<Consumed, CallError>>,
    S: Fn(ConsumeCall) -> F,
{
    fn new(consume: ConsumeCall, start: S) -> Follow<F, S> {
        Follow {
            caught_up: consume.wants_view(),
            has_waited: consume.wants_view(),
            consume,
            start,
            waits: None,
            next: None,
            fetched: None,
            sending: Body::default(),
            half: 0,
            end: None,
        }
    }

    fn is_ending(&self) -> bool {
        self.end.is_some()
    }

    fn end(&mut self, result: Result<(), CallError>) {
        (self.next, self.waits) = (None, None);
        self.end = Some(result);
    }

    /// Who wakes it: h2, while something is to be sent or nothing could be; else whoever gives memory back, or the shard,
    /// which was asked.
    fn poll(&mut self, responses: &mut Responses, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        loop {
            let sent = responses.poll_send(cx, &mut self.sending)?.is_ready();
            if sent {
                if let Some(fetched) = self.fetched.take() {
                    self.sending = fetched;
                    self.half = self.sending.remaining() / 2;
                    continue;
                }
                if let Some(end) = self.end.take() {
                    return Poll::Ready(end.map_err(Stop::Error));
                }
            }
            if self.fetched.is_some() || self.is_ending() {
                return Poll::Pending;
            }
            if self.next.is_none() {
                let is_read = self.sending.remaining() <= self.half;
                if !is_read || (sent && responses.poll_writable(cx)?.is_pending()) {
                    return Poll::Pending;
                }
                if !self.poll_ask(responses.answers(), cx) {
                    return Poll::Pending;
                }
            }
            if !self.poll_next(responses.answers(), cx) {
                return Poll::Pending;
            }
        }
    }

    /// Asks the shard for as much as there is memory for. False while there is none.
    fn poll_ask(&mut self, answers: &Answers, cx: &mut Context<'_>) -> bool {
        let (mut consume, mut held) = (self.consume.when_there(self.consume.consume.wait), None);
        if !self.caught_up {
            let wanted = self.consume.wanted_bytes();
            let taken = if self.waits.is_none() { answers.take(wanted) } else { None };
            let room = match taken {
                Some(room) => room,
                None => {
                    let waits = self.waits.get_or_insert_with(|| Box::pin(answers.clone().room(wanted)));
                    let Poll::Ready(room) = waits.as_mut().poll(cx) else { return false };
                    self.waits = None;
                    room
                }
            };
            consume = self.consume.at_once(room.bytes(), self.has_waited);
            held = Some(room);
        }
        self.next = Some((Box::pin((self.start)(consume)), held));
        true
    }

    /// Takes the shard's answer. False if there is none yet.
    fn poll_next(&mut self, answers: &Answers, cx: &mut Context<'_>) -> bool {
        let Some((next, _)) = &mut self.next else { return false };
        let Poll::Ready(result) = next.as_mut().poll(cx) else { return false };
        let held = self.next.take().and_then(|(_, held)| held);
        let had_room = held.is_some();
        let consumed = match result {
            Ok(consumed) => consumed,
            Err(_) if had_room && !self.has_waited => {
                (self.caught_up, self.has_waited) = (true, true);
                return true;
            }
            Err(error) => {
                self.end(Err(error));
                return true;
            }
        };
        let held = match held {
            Some(room) => room.fit(consumed.bytes()),
            None => answers.unforeseen(consumed.bytes()),
        };
        let Ok(held) = held else {
            // It is read again from where it begins, once there is room. There may be as much at once as there was.
            if had_room {
                self.waits = Some(Box::pin(answers.clone().room_later(self.consume.wanted_bytes())));
            }
            self.consume.has_seen(&consumed);
            self.has_waited = had_room;
            (self.consume.consume.start, self.caught_up) = (Start::Offset(consumed.start_offset()), false);
            return true;
        };
        self.consume.has_seen(&consumed);
        self.consume.go_on(&consumed);
        let wanted = &mut self.consume.consume;
        if consumed.count > 0 {
            // It was for the first answer, and an empty one is not sent; the later ones follow it.
            wanted.min_offset = None;
        }
        wanted.records_max = wanted.records_max.saturating_sub(consumed.count);
        self.caught_up = consumed.next_offset >= consumed.high_watermark;
        if wanted.records_max == 0 {
            self.end(Ok(()));
        }
        if consumed.count > 0 {
            self.has_waited = false;
            self.fetched = Some(body(consumed).with(held));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cell::RefCell;
    use std::pin::pin;
    use std::rc::Rc;

    use bytes::Bytes;

    use super::*;
    use crate::env::real::RealEnv;
    use crate::frontend::grpc::tests::answer;
    use crate::frontend::grpc::tests::answer_within;
    use crate::ids::NodeId;

    fn from_the_start(records_max: u64) -> ConsumeCall {
        let consume = Consume {
            start: Start::Earliest,
            records_max,
            bytes_max: 0,
            wait: Duration::ZERO,
            min_offset: None,
            linearizable: false,
            deadline_us: None,
            if_small: false,
        };
        ConsumeCall { topic: String::new(), shard: 0, consume }
    }

    /// A client that does not read costs the response that waits for it and the next one, whatever
    /// there is to read; when it reads on, it gets everything in order.
    #[test]
    fn a_slow_consumer_is_waited_for() {
        const RECORDS: u64 = 64;
        // Far larger than the windows of the client.
        let chunk = Bytes::from(
            v1::ConsumeResponse {
                records: vec![v1::Record { value: vec![1; 500_000].into(), ..Default::default() }],
                ..Default::default()
            }
            .encode_to_vec(),
        );
        let asked = Rc::new(Cell::new(0));
        let server = async |mut responses: Responses| {
            let start = |_: ConsumeCall| {
                asked.set(asked.get() + 1);
                let consumed = Consumed {
                    chunks: vec![chunk.clone()],
                    count: 1,
                    next_offset: Offset(asked.get()),
                    log_start: Offset(0),
                    high_watermark: Offset(RECORDS),
                    node: NodeId(1),
                };
                async { Ok(consumed) }
            };
            let mut follow = Follow::new(from_the_start(RECORDS), start);
            poll_fn(|cx| follow.poll(&mut responses, cx)).await.unwrap();
            responses.finish(Ok(()));
        };
        let client = async |mut body: h2::RecvStream| {
            let first = body.data().await.unwrap().unwrap();
            // The server has had every chance to go too far.
            for _ in 0..1_000 {
                crate::env::yield_now().await;
            }
            assert!(asked.get() <= 5, "asked for {} responses of 500 kB while the client did not read", asked.get());
            let mut received = first.len();
            body.flow_control().release_capacity(first.len()).unwrap();
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                received += data.len();
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            assert_eq!(asked.get(), RECORDS);
            // Besides the chunk: prefix, and the three numbers.
            assert!(received > chunk.len() * RECORDS as usize);
            assert!(received < (chunk.len() + 20) * RECORDS as usize);
        };
        answer(server, client);
    }

    /// A record that is far larger than what the client asks for at a time, while there is room for that and not for the record, is
    /// read again when something has gone out, or some times a second: not without end at once.
    #[test]
    fn a_record_without_room() {
        let asked = Cell::new(0);
        let server = async |mut responses: Responses| {
            let others = responses.answers().beside::<RealEnv>();
            let full = others.hold(limits::ANSWER_BYTES_LIMIT - 100_000);
            let start = |_: ConsumeCall| {
                asked.set(asked.get() + 1);
                assert!(asked.get() < 100, "read again and again");
                let consumed = Consumed {
                    chunks: vec![vec![0; 500_000].into()],
                    count: 1,
                    next_offset: Offset(1),
                    log_start: Offset(0),
                    high_watermark: Offset(1),
                    node: NodeId(1),
                };
                async { Ok(consumed) }
            };
            let mut call = from_the_start(1);
            call.consume.bytes_max = 1;
            let mut follow = Follow::new(call, start);
            let mut following = pin!(poll_fn(|cx| follow.poll(&mut responses, cx)));
            tokio::select! {
                biased;
                _ = &mut following => panic!("there is no room"),
                () = crate::env::sleep::<RealEnv>(Duration::from_millis(250)) => {}
            }
            assert!((1..=4).contains(&asked.get()), "read {} times", asked.get());
            drop(full);
            following.await.unwrap();
            responses.finish(Ok(()));
        };
        let client = async |mut body: h2::RecvStream| {
            let mut received = 0;
            while let Some(data) = body.data().await {
                received += data.as_ref().unwrap().len();
                body.flow_control().release_capacity(data.unwrap().len()).unwrap();
            }
            assert!(received > 500_000);
        };
        answer(server, client);
    }

    /// Nothing is asked of a shard for a stream on which nothing can be sent.
    #[test]
    fn a_closed_window() {
        let asked = Cell::new(0);
        let server = async |mut responses: Responses| {
            assert!(responses.open().is_ok());
            let mut follow = Follow::new(from_the_start(1), |_: ConsumeCall| {
                asked.set(asked.get() + 1);
                std::future::pending()
            });
            poll_fn(|cx| match follow.poll(&mut responses, cx) {
                // The client goes while it is waited for.
                Poll::Ready(result) => {
                    assert!(matches!(result, Err(Stop::Gone)));
                    Poll::Ready(())
                }
                Poll::Pending => responses.poll_gone(cx),
            })
            .await;
        };
        let client = async |body: h2::RecvStream| {
            for _ in 0..1_000 {
                crate::env::yield_now().await;
            }
            assert_eq!(asked.get(), 0);
            drop(body);
        };
        answer_within(0, server, client);
    }

    /// A stream that waits, for what it has to see or for somebody who serves its shard, holds no room meanwhile.
    #[test]
    fn a_stream_that_waits() {
        for wants_view in [true, false] {
            let asked = Cell::new(0);
            let server = async |mut responses: Responses| {
                let answers = responses.answers().clone();
                let start = |call: ConsumeCall| {
                    asked.set(asked.get() + 1);
                    let at_once = !call.consume.if_small;
                    assert_eq!(answers.held() > 0, at_once, "room is held for what is read at once, and only for that");
                    let consumed = Consumed {
                        chunks: if at_once { vec![vec![7; 3_000].into()] } else { vec![] },
                        count: at_once.into(),
                        next_offset: Offset(at_once.into()),
                        log_start: Offset(0),
                        high_watermark: Offset(1),
                        node: NodeId(1),
                    };
                    let is_served = asked.get() != 1 || wants_view;
                    async move {
                        let unserved = CallError::new(crate::frontend::Code::Unavailable, "NO_LEADER", "");
                        if is_served { Ok(consumed) } else { Err(unserved) }
                    }
                };
                let mut call = from_the_start(1);
                call.consume.linearizable = wants_view;
                let mut follow = Follow::new(call, start);
                poll_fn(|cx| follow.poll(&mut responses, cx)).await.unwrap();
                responses.finish(Ok(()));
            };
            let client = async |mut body: h2::RecvStream| {
                let mut received = 0;
                while let Some(data) = body.data().await {
                    received += data.unwrap().len();
                }
                assert!(received > 3_000);
                assert_eq!(asked.get(), if wants_view { 2 } else { 3 }, "it waits, and then reads");
            };
            answer(server, client);
        }
    }

    /// What the first answer has to see holds until one is sent: one without a record is not.
    #[test]
    fn what_is_to_be_seen() {
        let asked = RefCell::new(Vec::new());
        let server = async |mut responses: Responses| {
            let start = |call: ConsumeCall| {
                asked.borrow_mut().push(call.consume.min_offset);
                let is_read = !call.consume.if_small;
                let consumed = Consumed {
                    chunks: if is_read { vec![vec![7; 3_000].into()] } else { vec![] },
                    count: is_read.into(),
                    next_offset: Offset(is_read.into()),
                    log_start: Offset(0),
                    high_watermark: Offset(9),
                    node: NodeId(1),
                };
                async move { Ok(consumed) }
            };
            let mut call = from_the_start(1);
            call.consume.min_offset = Some(Offset(9));
            let mut follow = Follow::new(call, start);
            poll_fn(|cx| follow.poll(&mut responses, cx)).await.unwrap();
            responses.finish(Ok(()));
        };
        let client = async |mut body: h2::RecvStream| while body.data().await.is_some() {};
        answer(server, client);
        assert_eq!(*asked.borrow(), [Some(Offset(9)); 2]);
    }

    /// What goes on failing ends a stream: it is not asked for again and again.
    #[test]
    fn a_stream_that_cannot_be_read() {
        let asked = Cell::new(0);
        let server = async |mut responses: Responses| {
            let start = |call: ConsumeCall| {
                asked.set(asked.get() + 1);
                assert!(asked.get() < 100, "read again and again");
                let consumed = Consumed {
                    chunks: vec![],
                    count: 0,
                    next_offset: Offset(0),
                    log_start: Offset(0),
                    high_watermark: Offset(1),
                    node: NodeId(1),
                };
                let damaged = CallError::new(crate::frontend::Code::DataLoss, "CORRUPT", "");
                async move { if call.consume.if_small { Ok(consumed) } else { Err(damaged) } }
            };
            let mut follow = Follow::new(from_the_start(1), start);
            let ended = poll_fn(|cx| follow.poll(&mut responses, cx)).await;
            assert!(matches!(ended, Err(Stop::Error(error)) if error.reason == "CORRUPT"));
            responses.finish(Ok(()));
        };
        let client = async |mut body: h2::RecvStream| assert!(body.data().await.is_none());
        answer(server, client);
        assert_eq!(asked.get(), 3);
    }

    /// Stored chunks and the other fields, put one after the other, are one `ConsumeResponse`.
    #[test]
    fn a_response_is_put_together() {
        let record = |offset| v1::Record { value: vec![7; 3_000].into(), offset, ..Default::default() };
        let chunk = |offset| {
            let records = v1::ConsumeResponse { records: vec![record(offset)], ..Default::default() };
            Bytes::from(records.encode_to_vec())
        };
        for count in [1, 5] {
            let consumed = Consumed {
                chunks: (0..count).map(chunk).collect(),
                count,
                next_offset: Offset(count),
                log_start: Offset(0),
                high_watermark: Offset(99),
                node: NodeId(1),
            };
            let mut body = body(consumed);
            let mut bytes = body.copy_to_bytes(body.remaining());
            let prefix = bytes.split_to(crate::format::grpc::PREFIX_BYTES);
            assert_eq!(prefix[..], crate::format::grpc::prefix(bytes.len()));
            let response = v1::ConsumeStreamResponse::decode(bytes).unwrap();
            assert_eq!(response.records, (0..count).map(record).collect::<Vec<_>>());
            assert_eq!((response.next_offset, response.log_start, response.high_watermark), (count, 0, 99));
        }
    }

    /// Named positions; unknown ones are refused.
    #[test]
    fn positions() {
        assert_eq!(at_position(0).unwrap(), Start::Earliest);
        assert_eq!(at_position(2).unwrap(), Start::Latest);
        assert_eq!(at_position(3).unwrap_err().code, crate::frontend::Code::InvalidArgument);
    }
}
