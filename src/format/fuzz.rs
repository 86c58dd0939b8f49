//! Mutated bytes for every decoder of this floor (`crate::fuzz`).

use std::io::Write;

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use super::{
    entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind, StoredEntry},
    grpc::{self, Encoding},
    peer::{self, Envelope},
    records::{Records, record_ranges, record_timestamp, slice_records},
    segment::{LogPoint, SLOT_BYTES, SegmentFooter, SegmentHeader, Slot},
    state_files::{HardState, HardStateSlot, Vote, encode_checkpoint, parse_checkpoint},
    wire::{DEPTH_MAX, Wire},
};
use crate::{
    env::buffer::Buffer,
    fuzz::{Target, seal_block},
    ids::{Index, LogId, NodeId, Offset, Position, SegmentSequence, ShardUid, Term},
    limits::RECORD_BYTES_MAX,
    proto::ringlog::v1::{ConsumeResponse, Header, ProduceRequest, Record},
};

fn point() -> LogPoint {
    LogPoint { next: Index(7), term: Term(2), offset: Offset(900), chain: 0xfeed_f00d, timestamp_max_us: -3 }
}

fn headers() -> [EntryHeader; 3] {
    [(EntryKind::Batch, 2, stored_payload()), (EntryKind::Blank, 0, vec![]), (EntryKind::Command, 0, vec![7; 40])].map(
        |(kind, record_count, payload)| {
            let mut header = EntryHeader {
                kind,
                payload_bytes: payload.len() as u32,
                record_count,
                shard: ShardUid(5),
                segment: SegmentSequence(9),
                id: LogId { term: Term(5), index: Index(77) },
                base_offset: Offset(1000),
                timestamp_us: 1_700_000_000_000_000,
                timestamp_max_us: -4,
                durable_end: 76,
                chain: 0,
                payload_crc: crc32c::crc32c(&payload),
            };
            header.chain = header.chain_after(0xfeed);
            header
        },
    )
}

#[test]
fn entry_header() {
    let decode = |bytes: &[u8]| EntryHeader::parse(bytes).ok();
    let corpus = headers().map(|header| header.encode());
    Target::new("format::fuzz::entry_header", corpus, decode)
        .encode(|header| header.encode().to_vec())
        .sealed_by(seal_block)
        .run();
}

/// Both checksums: of the payload, and then of the header that holds it.
pub(crate) fn seal_entry(bytes: &mut Vec<u8>) {
    if bytes.len() >= ENTRY_HEADER_BYTES {
        let announced = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let end = ENTRY_HEADER_BYTES + announced.min(bytes.len() - ENTRY_HEADER_BYTES);
        let crc = crc32c::crc32c(&bytes[ENTRY_HEADER_BYTES..end]);
        bytes[88..92].copy_from_slice(&crc.to_le_bytes());
    }
    seal_block(bytes);
}

#[test]
fn stored_entry() {
    let corpus = [(headers()[0], stored_payload()), (headers()[2], vec![7; 40])]
        .map(|(header, payload)| [&header.encode()[..], &payload].concat());
    let decode = |bytes: &[u8]| {
        let entry = StoredEntry::parse(&Bytes::copy_from_slice(bytes)).ok()?;
        assert!(entry.bytes.len() <= bytes.len() && entry.header.bytes() == entry.bytes.len());
        Some((entry.header, entry.payload()))
    };
    Target::new("format::fuzz::stored_entry", corpus, decode)
        .encode(|(header, payload)| [&header.encode()[..], payload].concat())
        .sealed_by(seal_entry)
        .run();
}

#[test]
fn segment_header() {
    let header = SegmentHeader {
        shard: ShardUid(1),
        sequence: SegmentSequence(9),
        base: point(),
        intended_bytes: 1 << 20,
        created_us: 1_700_000_000_000_000,
    };
    Target::new("format::fuzz::segment_header", [header.encode()], |bytes| SegmentHeader::parse(bytes).ok())
        .encode(|header| header.encode().to_vec())
        .sealed_by(seal_block)
        .run();
}

#[test]
fn segment_footer() {
    let footer = SegmentFooter {
        index_crc: 0xabcd_ef01,
        shard: ShardUid(1),
        sequence: SegmentSequence(9),
        end: point(),
        last_timestamp_us: 1_700_000_000_000_000,
        entries: 5,
        position: Position(40960),
        first_term: Term(1),
    };
    Target::new("format::fuzz::segment_footer", [footer.encode()], |bytes| SegmentFooter::parse(bytes).ok())
        .encode(|footer| footer.encode().to_vec())
        .sealed_by(seal_block)
        .run();
}

#[test]
fn index_slots() {
    let slots = [Slot { offset: 0, position: 4096 }, Slot { offset: 5, position: 8192 }];
    let decode = |content: &[u8]| {
        let whole = content.len().is_multiple_of(SLOT_BYTES);
        whole.then(|| (0..content.len() / SLOT_BYTES).map(|number| Slot::parse(content, number)).collect())
    };
    Target::new("format::fuzz::index_slots", [slots.map(Slot::encode).concat()], decode)
        .encode(|slots: &Vec<Slot>| slots.iter().flat_map(|slot| slot.encode()).collect())
        .run();
}

#[test]
fn hard_state() {
    let whole = HardStateSlot {
        shard: ShardUid(1),
        sequence: 9,
        state: HardState {
            vote: Some(Vote { term: Term(4), node: NodeId(3), committed: true }),
            committed: Some(LogId { term: Term(2), index: Index(17) }),
        },
        start: point(),
        owner: 0x1122_3344_5566_7788,
        flushed: Some(LogId { term: Term(2), index: Index(18) }),
    };
    let empty = HardStateSlot { state: HardState::default(), start: LogPoint::default(), flushed: None, ..whole };
    let corpus = [whole, empty].map(|slot| slot.encode());
    Target::new("format::fuzz::hard_state", corpus, |bytes| HardStateSlot::parse(bytes).ok())
        .encode(|slot| slot.encode().to_vec())
        .sealed_by(seal_block)
        .run();
}

fn seal_checkpoint(bytes: &mut Vec<u8>) {
    if bytes.len() >= 128 {
        let crc = crc32c::crc32c(&bytes[128..]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    }
    seal_block(bytes);
}

#[test]
fn checkpoint_file() {
    let corpus = [&b"state"[..], &[3; 700], b""].map(|content| encode_checkpoint(ShardUid(1), Index(2), content));
    let decode = |bytes: &[u8]| parse_checkpoint(&Bytes::copy_from_slice(bytes)).ok();
    Target::new("format::fuzz::checkpoint_file", corpus, decode)
        .encode(|(shard, index, content)| encode_checkpoint(*shard, *index, content).to_vec())
        .sealed_by(seal_checkpoint)
        .run();
}

fn requests() -> Vec<Vec<u8>> {
    let record = |key: &'static [u8], value: &'static [u8], timestamp_us| Record {
        key: key.into(),
        value: value.into(),
        timestamp_us,
        headers: vec![Header { name: "name".into(), value: value.into() }],
        offset: timestamp_us as u64,
    };
    let plain = Record { value: b"plain"[..].into(), ..Record::default() };
    let records = vec![record(b"k", b"value", 0), plain.clone(), record(b"", b"", 7), record(b"key", b"v", i64::MAX)];
    let whole =
        ProduceRequest { topic: "t".into(), shard: Some(3), durability: 1, expected_offset: Some(300), records };
    // Unknown fields: a group in the request, a number in the record.
    let unknown = [0x7b, 0x08, 0x01, 0x7c, 0x1a, 9, 0x20, 7, 0x28, 99, 0x48, 5, 0x12, 1, b'v'].to_vec();
    let plain = ProduceRequest { records: vec![plain.clone(), plain], ..ProduceRequest::default() };
    vec![whole.encode_to_vec(), plain.encode_to_vec(), unknown]
}

/// What a request's records are as this floor stores them.
fn stored(records: &Records) -> Vec<u8> {
    let mut buffer = Buffer::default();
    records.encode_into(&mut buffer, Offset(300), 1_000);
    assert!(buffer.len() <= records.encoded_bytes_max());
    buffer.bytes().to_vec()
}

fn stored_payload() -> Vec<u8> {
    let (_, records) = Records::parse(requests().swap_remove(1).into(), RECORD_BYTES_MAX).unwrap();
    stored(&records)
}

/// A request is accepted if and only if prost accepts it and none of its times is before 1970; what is stored of it is what a consumer should read, can be cut at
/// its records, and is the same when the stored records are sent again.
#[test]
fn produce_request() {
    let decode = |bytes: &[u8]| {
        let accepted = Records::parse(Bytes::copy_from_slice(bytes), RECORD_BYTES_MAX);
        let legal = |request: &ProduceRequest| {
            !request.records.is_empty() && request.records.iter().all(|record| record.timestamp_us >= 0)
        };
        let sent = ProduceRequest::decode(bytes).ok().filter(legal);
        assert_eq!(accepted.is_ok(), sent.is_some(), "prost says otherwise");
        let ((head, records), sent) = (accepted.ok()?, sent?);
        assert_eq!((&head.topic, head.shard, head.durability), (&sent.topic, sent.shard, sent.durability));
        let payload = stored(&records);
        let read = ConsumeResponse::decode(&payload[..]).expect("stored records can be read").records;
        for (number, (read, sent)) in read.iter().zip(&sent.records).enumerate() {
            let timestamp_us = if sent.timestamp_us == 0 { 1_000 } else { sent.timestamp_us };
            let meant = Record { offset: 300 + number as u64, timestamp_us, ..sent.clone() };
            assert_eq!(*read, meant);
        }
        let ranges: Vec<_> = record_ranges(&payload).collect();
        assert_eq!((ranges.len(), read.len()), (sent.records.len(), sent.records.len()));
        assert!(ranges.iter().all(|range| record_timestamp(&payload[range.clone()]).is_some()));
        Some((head, payload))
    };
    let encode = |(head, payload): &(super::records::ProduceHead, Vec<u8>)| {
        let records = ConsumeResponse::decode(&payload[..]).unwrap().records;
        let (topic, shard, expected_offset) = (head.topic.clone(), head.shard, head.expected_offset);
        let again = ProduceRequest { topic, shard, durability: head.durability, expected_offset, records };
        let mut bytes = again.encode_to_vec();
        // prost leaves unknown fields out: records with some are compared without them.
        if stored(&Records::parse(bytes.clone().into(), RECORD_BYTES_MAX).unwrap().1) != *payload {
            bytes = [request_without_records(&again), payload_as_request(payload)].concat();
        }
        bytes
    };
    Target::new("format::fuzz::produce_request", requests(), decode).encode(encode).run();
}

fn request_without_records(request: &ProduceRequest) -> Vec<u8> {
    ProduceRequest { records: Vec::new(), ..request.clone() }.encode_to_vec()
}

/// Stored records have field 1, those of a request field 3; all else is the same.
fn payload_as_request(payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    record_ranges(payload).for_each(|range| bytes[range.start] = 0x1a);
    bytes
}

/// Cutting bytes that are no payload ends early, and stays inside of them.
#[test]
fn payload_slices() {
    let decode = |payload: &[u8]| {
        let mut end = 0;
        for range in record_ranges(payload) {
            assert!(range.start == end && range.end > range.start && range.end <= payload.len());
            end = range.end;
            record_timestamp(&payload[range]);
        }
        for (skip, count, bytes_max) in [(0, u64::MAX, usize::MAX), (1, 1, 0), (2, 5, 20), (u64::MAX, 1, 1)] {
            let slice = slice_records(payload, skip, count, bytes_max);
            assert!(slice.range.end <= payload.len() && slice.count <= count);
            assert!(slice.count <= 1 || slice.range.len() <= bytes_max);
        }
        record_timestamp(payload);
        (end == payload.len()).then_some(())
    };
    Target::new("format::fuzz::payload_slices", [stored_payload()], decode).run();
}

/// A walk over any message ends, and agrees with prost about a message of no known fields.
#[test]
fn wire_walk() {
    let decode = |bytes: &[u8]| {
        let mut wire = Wire::new(bytes);
        let mut walked = Ok(());
        while walked.is_ok() && !wire.at_end() {
            walked = wire.key().and_then(|key| wire.skip(key, DEPTH_MAX));
            assert!(wire.position() <= bytes.len());
        }
        assert_eq!(walked.is_ok(), <() as prost::Message>::decode(bytes).is_ok(), "prost says otherwise");
        walked.ok()
    };
    Target::new(
        "format::fuzz::wire_walk",
        [requests(), vec![[vec![0x7b; 50], vec![0x7c; 50]].concat()]].concat(),
        decode,
    )
    .run();
}

/// Most bytes of a message below.
const MESSAGE_MAX: usize = 1 << 9;

fn assembled(pieces: impl Iterator<Item = Bytes>) -> Option<Vec<grpc::Message>> {
    let (mut assembler, mut messages) = (grpc::Assembler::new(MESSAGE_MAX), Vec::new());
    for piece in pieces {
        assembler.push(piece);
        while let Some(message) = assembler.next_message().ok()? {
            assert!(message.bytes.len() <= MESSAGE_MAX);
            messages.push(message);
        }
        assert!(assembler.held_bytes() <= MESSAGE_MAX);
    }
    assembler.finish().is_ok().then_some(messages)
}

/// However the stream comes in pieces, it holds the same messages.
#[test]
fn grpc_stream() {
    let message = |bytes: &[u8]| [&grpc::prefix(bytes.len())[..], bytes].concat();
    let corpus = [[message(b"one"), message(b""), message(&[7; 300])].concat(), message(&[1; MESSAGE_MAX])];
    let decode = |bytes: &[u8]| {
        let whole = assembled(std::iter::once(Bytes::copy_from_slice(bytes)));
        for size in [1, 3, 64] {
            let pieces = bytes.chunks(size).map(Bytes::copy_from_slice);
            assert_eq!(assembled(pieces), whole, "in pieces of {size}");
        }
        whole
    };
    let encode = |messages: &Vec<grpc::Message>| {
        let mut out = BytesMut::new();
        for message in messages {
            let [_, length @ ..] = grpc::prefix(message.bytes.len());
            out.extend_from_slice(&[u8::from(message.compressed)]);
            out.extend_from_slice(&length);
            out.extend_from_slice(&message.bytes);
        }
        out.to_vec()
    };
    Target::new("format::fuzz::grpc_stream", corpus, decode).encode(encode).run();
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Inflating stops at the limit, in bytes of message and in bytes of memory.
#[test]
fn grpc_inflate() {
    let corpus = [gzip(b"some text, some text"), gzip(&[0; MESSAGE_MAX]), [gzip(b"two"), gzip(b"members")].concat()];
    let decode = |bytes: &[u8]| {
        let message = grpc::Message { compressed: true, bytes: Bytes::copy_from_slice(bytes) };
        let inflated = message.decode(Encoding::Gzip, MESSAGE_MAX).ok()?;
        assert!(inflated.len() <= MESSAGE_MAX);
        Some(inflated)
    };
    Target::new("format::fuzz::grpc_inflate", corpus, decode).encode(|plain| gzip(plain)).memory(256 << 10).run();
}

#[test]
fn peer_envelope() {
    let corpus = peer::tests::encoded().map(|(_, bytes)| bytes.to_vec());
    let decode = |bytes: &[u8]| {
        let group = Envelope::group_of(bytes);
        let envelope = Envelope::decode(bytes).ok()?;
        assert_eq!(group, Some(envelope.group));
        Some(envelope)
    };
    Target::new("format::fuzz::peer_envelope", corpus, decode).encode(|envelope| envelope.encode().to_vec()).run();
}
