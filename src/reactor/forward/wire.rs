//! Forwarded requests and their answers as frames. Records pass as the bytes that the client sent, or that the log
//! holds: nothing is encoded again. Whoever receives them checks them as if a client had sent them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::{
    format::records::Records,
    ids::{NodeId, Offset, ShardUid},
    limits::RECORD_BYTES_MAX,
    peer::frame::{Frame, FrameKind, Received},
    proto::ringlog::state::v1::{
        self as state, ControlReply, ControlRequest, ForwardConsume, ForwardConsumeReply, ForwardProduce,
        ForwardProduceReply, ForwardedAck, ForwardedProduce, ForwardedProduced, PeerRefusal, control_reply,
        control_request, forward_consume, forwarded_ack,
    },
    proto::ringlog::v1 as proto,
    shard::{Consume, Consumed, Durability, Produce, Produced, Start},
};

/// Chunks below this size are copied together: each part of a frame costs at least a block of memory where it arrives.
const CHUNK_BYTES_MIN: usize = 16 << 10;

/// What a peer has sent is not what it should be.
pub(in crate::reactor) type Malformed = String;

/// A frame without parts.
pub(in crate::reactor) fn frame(kind: FrameKind, envelope: &impl Message) -> Frame {
    Frame { kind, envelope: envelope.encode_to_vec().into(), parts: Vec::new() }
}

/// The frame that says why a request was not done.
pub(in crate::reactor) fn refusal_frame(refusal: &PeerRefusal) -> Frame {
    frame(FrameKind::Refused, refusal)
}

/// A control request.
pub(in crate::reactor) fn control_frame(request: control_request::Request) -> Frame {
    frame(FrameKind::Control, &ControlRequest { request: Some(request) })
}

/// The answer to a control request; a refusal comes as such.
pub(in crate::reactor) fn control_reply(received: &Received) -> Result<control_reply::Reply, PeerRefusal> {
    let reply = match received.kind {
        FrameKind::Control => ControlReply::decode(&*received.envelope).ok().and_then(|reply| reply.reply),
        FrameKind::Refused => Some(control_reply::Reply::Refused(refusal(received))),
        FrameKind::Append
        | FrameKind::Appended
        | FrameKind::Raft
        | FrameKind::Snapshot
        | FrameKind::Produce
        | FrameKind::Consume => None,
    };
    match reply {
        Some(control_reply::Reply::Refused(refusal)) => Err(refusal),
        Some(reply) => Ok(reply),
        None => Err(unreadable("its answer to a control request")),
    }
}

/// What a frame of kind `Refused` says.
pub(in crate::reactor) fn refusal(received: &Received) -> PeerRefusal {
    PeerRefusal::decode(&*received.envelope).unwrap_or_else(|_| unreadable("why it refuses"))
}

/// A peer of another version, or a broken one: what it did is not known.
pub(super) fn unreadable(what: &str) -> PeerRefusal {
    PeerRefusal {
        code: 13,
        reason: "PEER_UNREADABLE".to_owned(),
        message: format!("another node did not say readably {what}; do all nodes run the same version?"),
        ..PeerRefusal::default()
    }
}

fn durability_number(durability: Durability) -> i32 {
    match durability {
        Durability::QuorumFlushed => proto::Durability::QuorumFlushed as i32,
        Durability::LeaderMemory => proto::Durability::LeaderMemory as i32,
    }
}

fn durability(number: i32) -> Result<Durability, Malformed> {
    match proto::Durability::try_from(number) {
        Ok(proto::Durability::QuorumFlushed) => Ok(Durability::QuorumFlushed),
        Ok(proto::Durability::LeaderMemory) => Ok(Durability::LeaderMemory),
        Ok(proto::Durability::Unspecified) | Err(_) => Err(format!("durability {number} is unknown")),
    }
}

/// Requests for one shard, at `now_us` on the monotonic clock.
pub(super) fn produce_frame<'a>(uid: ShardUid, requests: impl Iterator<Item = &'a Produce>, now_us: u64) -> Frame {
    let mut parts = Vec::new();
    let requests = requests.map(|produce| {
        parts.push(produce.records.message().clone());
        ForwardedProduce {
            durability: durability_number(produce.durability),
            expected_offset: produce.expected_offset.map(|offset| offset.0),
            left_us: produce.deadline_us.map(|deadline_us| deadline_us.saturating_sub(now_us)),
            count: produce.records.count(),
        }
    });
    let envelope = ForwardProduce { shard_uid: uid.0, requests: requests.collect() };
    Frame { parts, ..frame(FrameKind::Produce, &envelope) }
}

/// The shard and the requests of a frame, checked.
///
/// # Errors
/// In words.
pub(in crate::reactor) fn produces(received: Received, now_us: u64) -> Result<(ShardUid, Vec<Produce>), Malformed> {
    let envelope = ForwardProduce::decode(received.envelope).map_err(|error| error.to_string())?;
    if envelope.requests.len() != received.parts.len() {
        return Err(format!("{} requests came with {} parts", envelope.requests.len(), received.parts.len()));
    }
    let produce = |(request, part): (ForwardedProduce, crate::env::buffer::Buffer)| {
        let (_, records) = Records::parse(part.freeze(), RECORD_BYTES_MAX).map_err(|error| error.to_string())?;
        if records.count() != request.count {
            return Err(format!("{} records came instead of {}", records.count(), request.count));
        }
        Ok(Produce {
            records,
            durability: durability(request.durability)?,
            expected_offset: request.expected_offset.map(Offset),
            deadline_us: request.left_us.map(|left_us| now_us.saturating_add(left_us)),
            forwarded: true,
            single: false,
        })
    };
    let produces = envelope.requests.into_iter().zip(received.parts).map(produce).collect::<Result<_, _>>()?;
    Ok((ShardUid(envelope.shard_uid), produces))
}

/// One answer to a forwarded produce.
pub(in crate::reactor) type Ack = Result<Produced, PeerRefusal>;

/// Answers, in the order of the requests.
pub(in crate::reactor) fn acks_frame(acks: Vec<Ack>) -> Frame {
    let ack = |ack| match ack {
        Ok(Produced { base_offset, count, timestamp_us, durability, leader: _ }) => {
            let durability = durability_number(durability);
            forwarded_ack::Ack::Produced(ForwardedProduced {
                base_offset: base_offset.0,
                count,
                timestamp_us,
                durability,
            })
        }
        Err(refusal) => forwarded_ack::Ack::Refused(refusal),
    };
    let acks = acks.into_iter().map(|each| ForwardedAck { ack: Some(ack(each)) }).collect();
    frame(FrameKind::Produce, &ForwardProduceReply { acks })
}

/// The answers in a frame of kind `Produce`; `leader` has sent it.
///
/// # Errors
/// In words.
pub(super) fn acks(received: Received, leader: NodeId) -> Result<Vec<Ack>, Malformed> {
    let reply = ForwardProduceReply::decode(received.envelope).map_err(|error| error.to_string())?;
    let ack = |ack: ForwardedAck| match ack.ack {
        Some(forwarded_ack::Ack::Produced(produced)) => {
            let ForwardedProduced { base_offset, count, timestamp_us, durability: number } = produced;
            let (base_offset, durability) = (Offset(base_offset), durability(number)?);
            Ok(Ok(Produced { base_offset, count, timestamp_us, durability, leader: Some(leader) }))
        }
        Some(forwarded_ack::Ack::Refused(refusal)) => Ok(Err(refusal)),
        None => Err("an answer says nothing".to_owned()),
    };
    reply.acks.into_iter().map(ack).collect()
}

/// A consume of one shard, at `now_us` on the monotonic clock.
pub(super) fn consume_frame(uid: ShardUid, consume: &Consume, now_us: u64) -> Frame {
    use forward_consume::Start as Wire;
    let start = match consume.start {
        Start::Offset(offset) => Wire::Offset(offset.0),
        Start::Timestamp(timestamp_us) => Wire::TimestampUs(timestamp_us),
        Start::Earliest => Wire::Earliest(true),
        Start::Latest => Wire::Latest(true),
    };
    let envelope = ForwardConsume {
        shard_uid: uid.0,
        start: Some(start),
        records_max: consume.records_max,
        bytes_max: consume.bytes_max as u64,
        wait_us: u64::try_from(consume.wait.as_micros()).unwrap_or(u64::MAX),
        min_offset: consume.min_offset.map(|offset| offset.0),
        linearizable: consume.linearizable,
        left_us: consume.deadline_us.map(|deadline_us| deadline_us.saturating_sub(now_us)),
        if_small: consume.if_small,
    };
    frame(FrameKind::Consume, &envelope)
}

/// The shard and the consume of a frame.
///
/// # Errors
/// In words.
pub(in crate::reactor) fn consume(received: &Received, now_us: u64) -> Result<(ShardUid, Consume), Malformed> {
    use forward_consume::Start as Wire;
    let envelope = ForwardConsume::decode(&*received.envelope).map_err(|error| error.to_string())?;
    let start = match envelope.start {
        Some(Wire::Offset(offset)) => Start::Offset(Offset(offset)),
        Some(Wire::TimestampUs(timestamp_us)) => Start::Timestamp(timestamp_us),
        Some(Wire::Earliest(_)) => Start::Earliest,
        Some(Wire::Latest(_)) => Start::Latest,
        None => return Err("a consume has no start".to_owned()),
    };
    let consume = Consume {
        start,
        records_max: envelope.records_max,
        bytes_max: usize::try_from(envelope.bytes_max).unwrap_or(usize::MAX),
        wait: Duration::from_micros(envelope.wait_us).min(crate::limits::CONSUME_WAIT_MAX),
        min_offset: envelope.min_offset.map(Offset),
        linearizable: envelope.linearizable,
        deadline_us: envelope.left_us.map(|left_us| now_us.saturating_add(left_us)),
        if_small: envelope.if_small,
    };
    Ok((ShardUid(envelope.shard_uid), consume))
}

/// The answer to a forwarded consume.
pub(in crate::reactor) fn consumed_frame(consumed: Consumed) -> Frame {
    let envelope = ForwardConsumeReply {
        count: consumed.count,
        next_offset: consumed.next_offset.0,
        log_start: consumed.log_start.0,
        high_watermark: consumed.high_watermark.0,
    };
    Frame { parts: joined(consumed.chunks), ..frame(FrameKind::Consume, &envelope) }
}

/// The same bytes in fewer chunks: runs of small ones are copied together, so that there are never more of them than a
/// frame may have.
fn joined(chunks: Vec<Bytes>) -> Vec<Bytes> {
    let mut joined = Vec::new();
    let mut small = BytesMut::new();
    for chunk in chunks {
        if chunk.len() < CHUNK_BYTES_MIN {
            small.extend_from_slice(&chunk);
            continue;
        }
        if !small.is_empty() {
            joined.push(small.split().freeze());
        }
        joined.push(chunk);
    }
    if !small.is_empty() {
        joined.push(small.freeze());
    }
    joined
}

/// The answer of that node to a forwarded consume.
///
/// # Errors
/// The refusal.
pub(super) fn consumed(received: Received, node: NodeId) -> Result<Consumed, PeerRefusal> {
    match received.kind {
        FrameKind::Consume => {}
        FrameKind::Refused => return Err(refusal(&received)),
        FrameKind::Append
        | FrameKind::Appended
        | FrameKind::Raft
        | FrameKind::Snapshot
        | FrameKind::Produce
        | FrameKind::Control => return Err(unreadable("what was consumed")),
    }
    let reply = state::ForwardConsumeReply::decode(received.envelope).map_err(|_| unreadable("what was consumed"))?;
    Ok(Consumed {
        chunks: received.parts.into_iter().map(crate::env::buffer::Buffer::freeze).collect(),
        count: reply.count,
        next_offset: Offset(reply.next_offset),
        log_start: Offset(reply.log_start),
        high_watermark: Offset(reply.high_watermark),
        node,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{env::buffer::Buffer, fuzz::Target};

    /// The frame as the other side gets it.
    fn carried(frame: Frame) -> Received {
        let part = |bytes: &Bytes| {
            let mut buffer = Buffer::with_capacity(bytes.len());
            buffer.extend(bytes);
            buffer
        };
        let parts = frame.parts.iter().map(part).collect();
        let charge = crate::budget::Budget::default().none(crate::budget::Use::Frames);
        Received { kind: frame.kind, envelope: frame.envelope, parts, charge }
    }

    fn produce(values: &[&'static str], deadline_us: Option<u64>) -> Produce {
        let record = |value: &&'static str| proto::Record { value: value.as_bytes().into(), ..Default::default() };
        let request = proto::ProduceRequest {
            topic: "t".into(),
            records: values.iter().map(record).collect(),
            ..Default::default()
        };
        let (_, records) = Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).unwrap();
        Produce {
            records,
            durability: Durability::LeaderMemory,
            expected_offset: Some(Offset(7)),
            deadline_us,
            forwarded: false,
            single: false,
        }
    }

    /// Records arrive as the bytes that they were, with what is left of their deadline on the other clock.
    #[test]
    fn produce_round_trip() {
        let requests = [produce(&["a", "b"], Some(1_500)), produce(&["c"], None)];
        let frame = produce_frame(ShardUid(9), requests.iter(), 1_000);
        assert_eq!(frame.parts[0].as_ptr(), requests[0].records.message().as_ptr(), "not copied here");
        let (uid, received) = produces(carried(frame), 70_000).unwrap();
        assert_eq!((uid, received.len()), (ShardUid(9), 2));
        for (received, sent) in received.iter().zip(&requests) {
            assert_eq!(received.records.message(), sent.records.message());
            assert_eq!((received.durability, received.expected_offset), (Durability::LeaderMemory, Some(Offset(7))));
            assert!(received.forwarded);
        }
        assert_eq!((received[0].deadline_us, received[1].deadline_us), (Some(70_500), None));
        let (uid, none) = produces(carried(produce_frame(ShardUid(9), [].iter(), 0)), 0).unwrap();
        assert_eq!((uid, none.len()), (ShardUid(9), 0));
    }

    /// Whatever does not fit together is refused in words: counts, parts, records.
    #[test]
    fn malformed_produces() {
        let good = || produce_frame(ShardUid(9), [produce(&["a"], None)].iter(), 0);
        let missing = Frame { parts: vec![], ..good() };
        let garbage = Frame { parts: vec![Bytes::from_static(&[0x1a, 0xff])], ..good() };
        let other = Frame { parts: vec![produce(&["a", "b"], None).records.message().clone()], ..good() };
        let no_envelope = Frame { envelope: Bytes::from_static(&[0xff]), ..good() };
        for frame in [missing, garbage, other, no_envelope] {
            assert!(!produces(carried(frame), 0).unwrap_err().is_empty());
        }
    }

    /// Acknowledgements and refusals keep their order; an acknowledgement names who gave it.
    #[test]
    fn acks_round_trip() {
        let produced = Produced {
            base_offset: Offset(5),
            count: 2,
            timestamp_us: -3,
            durability: Durability::QuorumFlushed,
            leader: None,
        };
        let refused = PeerRefusal { code: 14, reason: "NOT_LEADER".into(), definite: true, ..Default::default() };
        let received = acks(carried(acks_frame(vec![Ok(produced), Err(refused.clone())])), NodeId(4)).unwrap();
        assert_eq!(received, [Ok(Produced { leader: Some(NodeId(4)), ..produced }), Err(refused)]);
        let silent = frame(FrameKind::Produce, &ForwardProduceReply { acks: vec![ForwardedAck { ack: None }] });
        assert!(acks(carried(silent), NodeId(4)).is_err());
    }

    /// Every start, and the rest of a consume.
    #[test]
    fn consume_round_trip() {
        for start in [Start::Offset(Offset(0)), Start::Timestamp(-1), Start::Earliest, Start::Latest] {
            let sent = Consume {
                start,
                records_max: u64::MAX,
                bytes_max: 1 << 20,
                wait: Duration::from_millis(1_500),
                min_offset: Some(Offset(3)),
                linearizable: true,
                deadline_us: Some(900),
                if_small: start == Start::Latest,
            };
            let (uid, received) = consume(&carried(consume_frame(ShardUid(2), &sent, 400)), 10_000).unwrap();
            assert_eq!(uid, ShardUid(2));
            assert_eq!(received, Consume { deadline_us: Some(10_500), ..sent });
        }
        let empty = frame(FrameKind::Consume, &ForwardConsume::default());
        assert!(consume(&carried(empty), 0).is_err());
    }

    /// Small chunks arrive joined, large ones as they are; the bytes are the same.
    #[test]
    fn consumed_round_trip() {
        let large = Bytes::from(vec![7; CHUNK_BYTES_MIN]);
        let chunks = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c"), large.clone(), Bytes::from_static(b"d")];
        let sent = Consumed {
            chunks: chunks.clone(),
            count: 4,
            next_offset: Offset(14),
            log_start: Offset(1),
            high_watermark: Offset(20),
            node: NodeId(1),
        };
        let frame = consumed_frame(sent);
        assert_eq!(frame.parts.iter().map(Bytes::len).collect::<Vec<_>>(), [3, CHUNK_BYTES_MIN, 1]);
        assert_eq!(frame.parts[1].as_ptr(), large.as_ptr(), "not copied here");
        let received = consumed(carried(frame), NodeId(1)).unwrap();
        assert_eq!(received.chunks.concat(), chunks.concat());
        assert_eq!((received.count, received.next_offset, received.high_watermark), (4, Offset(14), Offset(20)));
        let refused = PeerRefusal { code: 11, reason: "OFFSET_OUT_OF_RANGE".into(), ..Default::default() };
        assert_eq!(consumed(carried(refusal_frame(&refused)), NodeId(1)).unwrap_err(), refused);
    }

    /// A reply to a control request, a refusal in either form, and nonsense.
    #[test]
    fn control() {
        let reply = |reply| carried(frame(FrameKind::Control, &ControlReply { reply }));
        let done = control_reply::Reply::Done(state::Done {});
        assert_eq!(control_reply(&reply(Some(done.clone()))), Ok(done));
        let refused = PeerRefusal { code: 5, reason: "SHARD_NOT_FOUND".into(), ..Default::default() };
        assert_eq!(control_reply(&reply(Some(control_reply::Reply::Refused(refused.clone())))), Err(refused.clone()));
        assert_eq!(control_reply(&carried(refusal_frame(&refused))), Err(refused));
        let unreadable = control_reply(&reply(None)).unwrap_err();
        assert_eq!((unreadable.reason.as_str(), unreadable.definite), ("PEER_UNREADABLE", false));
    }

    fn received(bytes: &[u8]) -> Option<Received> {
        crate::peer::frame::tests::received(bytes)
    }

    fn sent(frame: Frame) -> Vec<u8> {
        crate::peer::frame::tests::sent(frame)
    }

    /// Forwarded requests in frames of any bytes (`crate::fuzz`): what is accepted can be sent on.
    #[test]
    fn fuzz_requests() {
        let requests = [produce(&["a", "b"], Some(1_500)), produce(&["c"], None)];
        let corpus = [sent(produce_frame(ShardUid(9), requests.iter(), 1_000))];
        Target::new("reactor::forward::wire::tests::fuzz_requests", corpus, |bytes| {
            let (uid, produces) = produces(received(bytes)?, 1_000).ok()?;
            let again = produce_frame(uid, produces.iter(), 1_000);
            let facts =
                |produce: &Produce| (produce.records.message().clone(), produce.deadline_us, produce.expected_offset);
            Some((uid, produces.iter().map(facts).collect::<Vec<_>>(), sent(again)))
        })
        .encode(|(_, _, again)| again.clone())
        .memory(FRAME_MEMORY)
        .run();
        let consumes = [Start::Earliest, Start::Latest, Start::Offset(Offset(3)), Start::Timestamp(-1)].map(|start| {
            let consume = Consume {
                start,
                records_max: 5,
                bytes_max: 6,
                wait: Duration::from_secs(1),
                min_offset: Some(Offset(2)),
                linearizable: true,
                deadline_us: Some(1_500),
                if_small: true,
            };
            sent(consume_frame(ShardUid(1), &consume, 1_000))
        });
        Target::new("reactor::forward::wire::tests::fuzz_requests", consumes, |bytes| {
            let (uid, consume) = consume(&received(bytes)?, 1_000).ok()?;
            assert!(consume.wait <= crate::limits::CONSUME_WAIT_MAX);
            Some(sent(consume_frame(uid, &consume, 1_000)))
        })
        .encode(Vec::clone)
        .memory(FRAME_MEMORY)
        .run();
    }

    /// The assembler of frames makes room for an announced envelope and an announced part at once.
    const FRAME_MEMORY: u64 =
        (crate::peer::frame::ENVELOPE_BYTES_MAX + crate::peer::frame::FRAME_BYTES_MAX + (64 << 10)) as u64;

    /// Answers in frames of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz_answers() {
        let produced = Produced {
            base_offset: Offset(7),
            count: 2,
            timestamp_us: -1,
            durability: Durability::QuorumFlushed,
            leader: None,
        };
        let corpus = [sent(acks_frame(vec![Ok(produced), Err(unreadable("x"))]))];
        Target::new("reactor::forward::wire::tests::fuzz_answers", corpus, |bytes| {
            Some(sent(acks_frame(acks(received(bytes)?, NodeId(1)).ok()?)))
        })
        .encode(Vec::clone)
        .memory(FRAME_MEMORY)
        .run();
        let corpus = [vec![Bytes::from_static(b"some records")], vec![]].map(|chunks| {
            let (next_offset, log_start, high_watermark) = (Offset(3), Offset(1), Offset(4));
            let node = NodeId(1);
            sent(consumed_frame(Consumed { count: 2, chunks, next_offset, log_start, high_watermark, node }))
        });
        Target::new("reactor::forward::wire::tests::fuzz_answers", corpus, |bytes| {
            let received = received(bytes)?;
            let bytes_max = received.parts.iter().map(Buffer::len).sum::<usize>();
            let consumed = consumed(received, NodeId(1)).ok()?;
            assert!(consumed.chunks.iter().map(Bytes::len).sum::<usize>() <= bytes_max);
            Some(sent(consumed_frame(consumed)))
        })
        .encode(Vec::clone)
        .memory(FRAME_MEMORY)
        .run();
        let reply = ControlReply { reply: Some(control_reply::Reply::Refused(unreadable("x"))) };
        let corpus = [sent(frame(FrameKind::Control, &reply)), sent(refusal_frame(&unreadable("why")))];
        Target::new("reactor::forward::wire::tests::fuzz_answers", corpus, |bytes| {
            let received = received(bytes)?;
            let answer = control_reply(&received);
            answer
                .as_ref()
                .is_err_and(|refusal| refusal.reason != "PEER_UNREADABLE" || received.envelope.len() > 1)
                .then_some(())
        })
        .memory(FRAME_MEMORY)
        .run();
    }
}
