//! `Log.Produce` and `Log.ProduceStream`: the hot path. The request is checked in place, without
//! decoding it into objects, and the acknowledgement is a few bytes.

use std::collections::VecDeque;
use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use prost::Message;
use prost::encoding::encode_varint;
use prost::encoding::encoded_len_varint;

use crate::env::Env;
use crate::env::channel::Notified;
use crate::format::grpc;
use crate::format::records::Records;
use crate::frontend::CallError;
use crate::frontend::ProduceAck;
use crate::frontend::ProduceCall;
use crate::frontend::admission::Admission;
use crate::frontend::grpc::answers::Answers;
use crate::frontend::grpc::answers::Held;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::received;
use crate::frontend::grpc::stream::Stop;
use crate::limits;
use crate::proto::ringlog::v1;
use crate::shard::Durability;

/// Acknowledgements waiting to be sent; above it no more requests are read. Those in flight are taken all the same, since they
/// have room that others wait for.
const ACK_BYTES_MAX: usize = 64 << 10;

/// Requests in flight for which a stream keeps memory while it has none: enough for one after the other. There are thousands of
/// streams, and each has had a burst.
const IN_FLIGHT_IDLE: usize = 4;

/// `Log.Produce`.
pub(super) async fn unary<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let message = call.only().await?;
    let produce = parse(message, call)?;
    call.definite = false;
    let produced = call.frontend.produce(produce);
    let ack = call.wait(produced).await?;
    let mut out = BytesMut::with_capacity(ack_len(&ack));
    encode_ack(&ack, &mut out);
    call.reply(Body::from(out.freeze())).await
}

fn parse<E: Env>(message: Bytes, call: &Call<E>) -> Result<ProduceCall, CallError> {
    let (head, records) = Records::parse(message, call.frontend.limits().record_bytes_max)?;
    Ok(ProduceCall { head, records, deadline_us: call.deadline_us })
}

/// `Log.ProduceStream`.
pub(super) async fn stream<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    call.responses.open()?;
    let frontend = call.frontend.clone();
    let mut shutdown = Box::pin(frontend.shutting_down());
    let mut pipeline = Pipeline::new();
    let mut admission = Admission::new(frontend);
    poll_fn(|cx| {
        if !pipeline.ended && shutdown.as_mut().poll(cx).is_ready() {
            pipeline.end(Some(CallError::stopping(false)));
        }
        let polled = pipeline.poll(call, &mut |waiting, cx| admission.poll(waiting, cx), cx);
        if pipeline.waiting.is_none() {
            // One that has ended has nothing to pass on: others do not wait behind it.
            admission.leave();
        }
        polled
    })
    .await
}

/// The requests of one stream between their arrival and their acknowledgement.
///
/// Futures are polled in order and only the first: acknowledgements leave in that order anyway.
struct Pipeline<F> {
    /// Read and not passed on, because there is no room for it; nothing is read behind it.
    waiting: Option<ProduceCall>,
    waiting_bytes: usize,
    /// Its memory.
    waiting_held: Option<received::Held>,
    /// Waits until something of the connection's was passed on.
    passed_on: Option<Notified>,
    /// With the bytes of each request.
    in_flight: VecDeque<(usize, F)>,
    in_flight_bytes: usize,
    /// Encoded and not passed on: several of them leave in one DATA frame.
    acks: BytesMut,
    /// Their memory.
    held: Option<Held>,
    /// Waits until some that were passed on have gone out.
    freed: Option<Notified>,
    sending: Body,
    /// No more requests are read.
    ended: bool,
    /// What the stream ends with, after the acknowledgements of what is in flight.
    failure: Option<CallError>,
    /// It is a request in flight that failed. Those behind it are not acknowledged any more, but waited for as long as
    /// all of them fail definitely: then the client may send them again in their order.
    broken: bool,
}

impl<F: Future<Output = Result<ProduceAck, CallError>> + Unpin> Pipeline<F> {
    fn new() -> Pipeline<F> {
        Pipeline {
            waiting: None,
            waiting_bytes: 0,
            waiting_held: None,
            passed_on: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            acks: BytesMut::new(),
            held: None,
            freed: None,
            sending: Body::default(),
            ended: false,
            failure: None,
            broken: false,
        }
    }

    /// Reads no more. What was not read, or not passed on, is not written.
    fn end(&mut self, failure: Option<CallError>) {
        self.ended = true;
        (self.waiting, self.waiting_held) = (None, None);
        self.failure = failure.map(|error| CallError { behind_definite: true, ..error });
    }

    /// The first request in flight has failed.
    fn fail(&mut self, error: CallError) {
        self.end(Some(error));
        self.broken = true;
    }

    /// Of what is behind the failed request something may be, or is, written.
    fn give_up(&mut self) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        if let Some(failure) = &mut self.failure {
            failure.behind_definite = false;
        }
    }

    /// Each stage makes room for the one before it, so all of them are gone through until none has moved anything: then
    /// the first whose own room is not used up has registered with what it waits for. In detail, who wakes a pipeline that
    /// is Pending:
    ///
    /// - a request is not passed on: who has room, or the search for its topic (`Admission`);
    /// - requests are not read (limits of what is in flight): the first in flight, which is always polled;
    /// - requests are not read (`ACK_BYTES_MAX`): h2, when the client's windows let acknowledgements go;
    /// - requests are not read (`poll_crowded`): `Answers`, when the client takes something;
    /// - requests are not read (`poll_full`): `Received`, when another stream's request is passed on;
    /// - nothing is in flight and nothing to be sent: the client's next message, or the end of its stream.
    fn poll<E: Env>(
        &mut self,
        call: &mut Call<E>,
        pass: &mut impl FnMut(&mut Option<ProduceCall>, &mut Context<'_>) -> Poll<F>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stop>> {
        loop {
            let read = self.read(call, pass, cx)?;
            let acknowledged = self.acknowledge(call.responses.answers(), cx);
            let sent = self.send(call, cx)?;
            if self.ended && self.in_flight.is_empty() && self.is_all_sent() {
                return Poll::Ready(self.failure.take().map_or(Ok(()), |error| Err(Stop::Error(error))));
            }
            if !(read || acknowledged || sent) {
                return call.poll_stop(cx).map(Err);
            }
        }
    }

    fn is_all_sent(&self) -> bool {
        self.acks.is_empty() && !self.sending.has_remaining()
    }

    /// Reads requests and passes them on, up to the limits. True if there was one.
    fn read<E: Env>(
        &mut self,
        call: &mut Call<E>,
        pass: &mut impl FnMut(&mut Option<ProduceCall>, &mut Context<'_>) -> Poll<F>,
        cx: &mut Context<'_>,
    ) -> Result<bool, Stop> {
        let mut read = false;
        while !self.ended
            && self.in_flight.len() < limits::STREAM_PRODUCES_IN_FLIGHT_MAX
            && self.in_flight_bytes < limits::STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX
        {
            if self.waiting.is_none() {
                if self.acks.len() >= ACK_BYTES_MAX
                    || call.responses.answers().poll_crowded(&mut self.freed, cx).is_pending()
                    || call.requests.received().poll_full(&mut self.passed_on, cx).is_pending()
                {
                    break;
                }
                match call.requests.poll_next(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(None)) => self.end(None),
                    Poll::Ready(Ok(Some(message))) => {
                        self.waiting_bytes = message.len();
                        match parse(message, call) {
                            Ok(produce) => self.waiting = Some(produce),
                            Err(error) => self.end(Some(error)),
                        }
                    }
                    Poll::Ready(Err(Stop::Error(error))) => self.end(Some(error)),
                    Poll::Ready(Err(Stop::Gone)) => return Err(Stop::Gone),
                }
                read = true;
            }
            if self.waiting.is_some() {
                let Poll::Ready(ack) = pass(&mut self.waiting, cx) else {
                    if self.waiting_held.is_none() {
                        match call.requests.waiting(self.waiting_bytes) {
                            Ok(held) => self.waiting_held = Some(held),
                            Err(error) => self.end(Some(error)),
                        }
                    }
                    break;
                };
                self.waiting_held = None;
                call.definite = false;
                self.in_flight.push_back((self.waiting_bytes, ack));
                self.in_flight_bytes += self.waiting_bytes;
                read = true;
            }
        }
        Ok(read)
    }

    /// Takes what has been answered, in order. True if there was something.
    fn acknowledge(&mut self, answers: &Answers, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Some((bytes, first)) = self.in_flight.front_mut() {
            let Poll::Ready(result) = Pin::new(first).poll(cx) else { break };
            any = true;
            self.in_flight_bytes -= *bytes;
            self.in_flight.pop_front();
            match result {
                Ok(ack) if !self.broken => encode_ack(&ack, &mut self.acks),
                Ok(_) => self.give_up(),
                Err(error) if !self.broken => self.fail(error),
                Err(error) if error.definite => {}
                Err(_) => self.give_up(),
            }
        }
        if any {
            self.held.get_or_insert_with(|| answers.hold(0)).set(self.acks.len());
        }
        if self.in_flight.is_empty() {
            self.in_flight.shrink_to(IN_FLIGHT_IDLE);
        }
        any
    }

    /// Sends acknowledgements, as far as the client takes them. True if that has made room for others.
    fn send<E: Env>(&mut self, call: &mut Call<E>, cx: &mut Context<'_>) -> Result<bool, Stop> {
        let mut any = false;
        while !self.is_all_sent() {
            if !self.sending.has_remaining() {
                let acks = Body::from(self.acks.split().freeze());
                self.sending = match self.held.take() {
                    Some(held) => acks.with(held),
                    None => acks,
                };
                any = true;
            }
            match call.responses.poll_send(cx, &mut self.sending) {
                Poll::Ready(result) => result?,
                Poll::Pending => break,
            }
        }
        Ok(any)
    }
}

fn durability(durability: Durability) -> v1::Durability {
    match durability {
        Durability::QuorumFlushed => v1::Durability::QuorumFlushed,
        Durability::LeaderMemory => v1::Durability::LeaderMemory,
    }
}

/// Fields of `ProduceResponse` (and `ProduceStreamResponse`, which is the same on the wire) that are varints, by tag.
fn varints(ack: &ProduceAck) -> [(u8, u64); 5] {
    [
        (1, u64::from(ack.shard)),
        (2, ack.produced.base_offset.0),
        (3, u64::from(ack.produced.count)),
        // int64 is encoded as its two's complement.
        (4, ack.produced.timestamp_us as u64),
        (5, durability(ack.produced.durability) as u64),
    ]
}

/// Bytes of its message, without the prefix.
fn message_len(ack: &ProduceAck) -> usize {
    let numbers = varints(ack).into_iter().filter(|(_, value)| *value != 0);
    let delimited = |bytes: usize| 1 + encoded_len_varint(bytes as u64) + bytes;
    numbers.map(|(_, value)| 1 + encoded_len_varint(value)).sum::<usize>()
        + delimited(ack.topic.len())
        + ack.leader.as_ref().map_or(0, |leader| delimited(leader.encoded_len()))
}

fn ack_len(ack: &ProduceAck) -> usize {
    grpc::PREFIX_BYTES + message_len(ack)
}

/// Appends the framed response.
fn encode_ack(ack: &ProduceAck, out: &mut BytesMut) {
    out.reserve(ack_len(ack));
    out.put_slice(&grpc::prefix(message_len(ack)));
    for (tag, value) in varints(ack) {
        if value != 0 {
            out.put_u8(tag << 3);
            encode_varint(value, out);
        }
    }
    // Field 6, length-delimited.
    out.put_u8(6 << 3 | 2);
    encode_varint(ack.topic.len() as u64, out);
    out.put_slice(ack.topic.as_bytes());
    if let Some(leader) = &ack.leader {
        // Field 13, length-delimited.
        out.put_u8(13 << 3 | 2);
        leader.encode_length_delimited(out).expect("there is room");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::runtime::block_on;
    use crate::frontend::grpc::tests::answers;
    use crate::ids::Offset;
    use crate::shard::Produced;

    /// What has been answered is taken, and gives its room and its memory back, however many acknowledgements the client leaves
    /// unread.
    #[test]
    fn unread_acks_hold_nothing_in_flight() {
        let durability = Durability::QuorumFlushed;
        let produced = Produced { base_offset: Offset(7), count: 1, timestamp_us: 1, durability, leader: None };
        let ack = ProduceAck { topic: "t".repeat(249).as_str().into(), shard: 0, produced, leader: None };
        block_on(async {
            let mut pipeline = Pipeline::new();
            for _ in 0..limits::STREAM_PRODUCES_IN_FLIGHT_MAX {
                pipeline.in_flight.push_back((10, std::future::ready(Ok(ack.clone()))));
                pipeline.in_flight_bytes += 10;
            }
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(pipeline.acknowledge(&answers(), &mut cx));
            assert_eq!((pipeline.in_flight.len(), pipeline.in_flight_bytes), (0, 0));
            assert!(pipeline.in_flight.capacity() <= 2 * IN_FLIGHT_IDLE);
            assert!(pipeline.acks.len() > ACK_BYTES_MAX);
        });
    }

    proptest! {
        /// The hand-written encoding is what prost reads, and what prost would have written.
        #[test]
        fn acks_are_produce_responses(
            shard: u32, base_offset: u64, count: u32, timestamp_us: i64, memory: bool, topic in "[a-z]{1,249}",
            leader in prop::option::of((any::<u64>(), "[a-z.]{0,60}:[0-9]{1,5}")),
        ) {
            let durability = if memory { Durability::LeaderMemory } else { Durability::QuorumFlushed };
            let produced =
                Produced { base_offset: Offset(base_offset), count, timestamp_us, durability, leader: None };
            let leader = leader.map(|(node_id, address)| v1::LeaderHint { node_id, address });
            let ack = ProduceAck { topic: topic.as_str().into(), shard, produced, leader: leader.clone().map(Box::new) };
            let mut out = BytesMut::new();
            encode_ack(&ack, &mut out);
            let expected = v1::ProduceStreamResponse {
                shard,
                base_offset,
                count,
                timestamp_us,
                durability: super::durability(durability) as i32,
                topic,
                leader,
            };
            prop_assert_eq!(out.len(), ack_len(&ack));
            prop_assert_eq!(&out[..grpc::PREFIX_BYTES], &grpc::prefix(expected.encoded_len()));
            prop_assert_eq!(&out[grpc::PREFIX_BYTES..], &expected.encode_to_vec());
        }
    }
}
