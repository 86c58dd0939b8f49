//! Tests of the records' two ways: against prost on any bytes, and by fixed bytes.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    limits::RECORD_BYTES_MAX,
    proto::ringlog::v1::{ConsumeResponse, Header, ProduceRequest, Record},
};

fn parse(message: &[u8]) -> Result<(ProduceHead, Records), RecordsError> {
    Records::parse(Bytes::copy_from_slice(message), RECORD_BYTES_MAX)
}

fn encode(records: &Records, base_offset: u64, timestamp_us: i64) -> Vec<u8> {
    let mut buffer = Buffer::default();
    records.encode_into(&mut buffer, Offset(base_offset), timestamp_us);
    buffer.bytes().to_vec()
}

fn request(records: Vec<Record>) -> ProduceRequest {
    ProduceRequest { topic: "t".into(), records, ..ProduceRequest::default() }
}

fn record(value: &'static [u8]) -> Record {
    Record { value: Bytes::from_static(value), ..Record::default() }
}

/// What a consumer should get for what a producer sent.
fn stored(records: &[Record], base_offset: u64, timestamp_us: i64) -> Vec<Record> {
    let mut records = records.to_vec();
    for (number, record) in records.iter_mut().enumerate() {
        record.offset = base_offset + number as u64;
        if record.timestamp_us == 0 {
            record.timestamp_us = timestamp_us;
        }
    }
    records
}

/// The stored form of two records, byte by byte: offsets and a missing timestamp are added, a given
/// offset is dropped, an unknown field (9) is kept.
#[test]
fn fixed_bytes() {
    let message = [
        0x0a, 1, b't', // topic
        0x1a, 5, 0x0a, 1, b'k', 0x12, 0, // record: key "k", value ""
        0x1a, 9, 0x20, 7, 0x28, 99, 0x48, 5, 0x12, 1,
        b'v', // record: timestamp 7, offset 99, field 9 = 5, value "v"
    ];
    let (head, records) = parse(&message).unwrap();
    assert_eq!((head.topic.as_str(), head.shard, records.count()), ("t", None, 2));
    assert_eq!(head.key_hash, Some(XxHash3_64::oneshot(b"k")));
    assert_eq!(
        encode(&records, 300, 1000),
        [
            0x0a, 11, 0x0a, 1, b'k', 0x12, 0, 0x20, 0xe8, 0x07, 0x28, 0xac, 0x02, //
            0x0a, 10, 0x20, 7, 0x48, 5, 0x12, 1, b'v', 0x28, 0xad, 0x02,
        ]
    );
    assert_eq!(records.timestamp_max_us(), 7);
    assert_eq!(records.timestamp_max_with(1000), 1000);
    assert_eq!(records.timestamp_max_with(3), 7);
}

/// The hash that places keyed records is a promise: clients may compute it themselves.
#[test]
fn key_hash_is_fixed() {
    let keyed = |key: &'static [u8]| Record { key: Bytes::from_static(key), ..Record::default() };
    let (head, _) = parse(&request(vec![record(b"x"), keyed(b"user-1"), keyed(b"user-2")]).encode_to_vec()).unwrap();
    assert_eq!(head.key_hash, Some(XxHash3_64::oneshot(b"user-1")));
    assert_eq!(head.key_hash, Some(0x7c76_15c1_1438_e5c9));
    let (head, _) = parse(&request(vec![record(b"x")]).encode_to_vec()).unwrap();
    assert_eq!(head.key_hash, None);
}

/// A record from before 1970 is refused, wherever it stands; the last value of the field counts.
#[test]
fn negative_timestamps() {
    let at = |timestamp_us| Record { timestamp_us, ..record(b"v") };
    for (timestamps, refused) in [(vec![-1], 0), (vec![0, 7, i64::MIN], 2), (vec![i64::MAX, -5, -6], 1)] {
        let timestamp_us = timestamps[refused];
        let message = request(timestamps.into_iter().map(at).collect()).encode_to_vec();
        assert_eq!(parse(&message).unwrap_err(), RecordsError::TimestampNegative { number: refused, timestamp_us });
    }
    let mut twice = vec![0x1a, 13, 0x20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x20, 5];
    assert_eq!(parse(&twice).unwrap().1.timestamp_max_us(), 5);
    twice[1] = 11;
    twice.truncate(13);
    assert_eq!(parse(&twice).unwrap_err(), RecordsError::TimestampNegative { number: 0, timestamp_us: -1 });
}

/// As everywhere in proto3 the last value of a field counts, also when that is "no timestamp".
#[test]
fn last_value_counts() {
    let message = [
        0x0a, 1, b'a', 0x0a, 1, b'b', 0x10, 1, 0x10, 2, 0x20, 1, 0x20, 2, 0x28, 0, 0x28, 4, //
        0x1a, 6, 0x20, 5, 0x20, 0, 0x12, 0, // timestamp 5, then 0
        0x1a, 4, 0x20, 0, 0x20, 5, // timestamp 0, then 5
    ];
    let (head, records) = parse(&message).unwrap();
    assert_eq!(
        head,
        ProduceHead { topic: "b".into(), shard: Some(2), durability: 2, expected_offset: Some(4), key_hash: None }
    );
    let decoded = ConsumeResponse::decode(&*encode(&records, 0, 9)).unwrap();
    assert_eq!(decoded.records.iter().map(|record| record.timestamp_us).collect::<Vec<_>>(), [9, 5]);
}

/// Each limit refuses with its own error, and what is just inside of it passes.
#[test]
fn limits() {
    let message = Bytes::from(request(vec![record(b""), record(b"12345678")]).encode_to_vec());
    assert!(Records::parse(message.clone(), 10).is_ok());
    assert_eq!(Records::parse(message, 9).unwrap_err(), RecordsError::RecordTooLong { number: 1, bytes: 10, max: 9 });
    assert_eq!(parse(&request(vec![]).encode_to_vec()).unwrap_err(), RecordsError::Empty);
    assert_eq!(parse(b"").unwrap_err(), RecordsError::Empty);
    let many = [0x1a, 0].repeat(BATCH_RECORDS_MAX);
    assert_eq!(parse(&many).unwrap().1.count() as usize, BATCH_RECORDS_MAX);
    let more = [0x1a, 0].repeat(BATCH_RECORDS_MAX + 1);
    assert_eq!(parse(&more).unwrap_err(), RecordsError::TooMany { max: BATCH_RECORDS_MAX });
}

/// What is wrong is said, with its place in the request.
#[test]
fn malformed() {
    let cases: [(&[u8], &str); 8] = [
        (&[0x1a, 5, 0x0a], "a length reaches beyond its message at byte 1"),
        (&[0x1a, 2, 0x0a, 5, 1, 2, 3, 4, 5], "a length reaches beyond its message at byte 3"),
        (&[0x18, 5], "a field has the wrong wire type at byte 1"),
        (&[0x0a, 1, 0xff], "a string is not UTF-8 at byte 1"),
        (&[0x1a, 5, 0x1a, 3, 0x0a, 1, 0xff], "a string is not UTF-8 at byte 5"),
        (&[0x1a, 0, 0x07], "a wire type does not exist at byte 2"),
        (&[0x02, 0], "a field has number 0 at byte 0"),
        (&[0x1a, 1, 0x80], "an integer is cut off at byte 2"),
    ];
    for (message, text) in cases {
        let error = parse(message).unwrap_err().to_string();
        assert_eq!(error, format!("the request is not a valid ringlog.v1.ProduceRequest: {text}"));
        assert!(ProduceRequest::decode(message).is_err());
    }
}

/// The bound that sizes buffers holds in the worst case, and one request always fits into an entry.
#[test]
fn encoded_bound() {
    for bytes in [0usize, 1, 100, 104, 105, 106, 127, 128, 16_360, 16_383, 16_384, 100_000] {
        let (_, records) =
            parse(&request(vec![Record { value: vec![1; bytes].into(), ..Record::default() }]).encode_to_vec())
                .unwrap();
        assert!(encode(&records, u64::MAX - 1, -1).len() <= records.encoded_bytes_max());
    }
    let many = [0x1a, 0].repeat(BATCH_RECORDS_MAX);
    assert!(parse(&many).unwrap().1.encoded_bytes_max() <= crate::limits::ENTRY_BYTES_MAX);
}

/// Every cut of a payload by skip, count and bytes returns whole records, in order, at least one.
#[test]
fn slices() {
    let records: Vec<Record> =
        (0..20).map(|n| Record { value: vec![b'v'; n * 13].into(), ..Record::default() }).collect();
    let (_, parsed) = parse(&request(records.clone()).encode_to_vec()).unwrap();
    let payload = encode(&parsed, 100, 5);
    let expected = stored(&records, 100, 5);
    let ranges: Vec<_> = record_ranges(&payload).collect();
    assert_eq!(ranges.len(), 20);
    assert_eq!(ranges[19].end, payload.len());
    for skip in 0..=20u64 {
        for records_max in [0, 1, 3, 1000] {
            for bytes_max in [0, 1, 50, 300, 1_000_000] {
                let slice = slice_records(&payload, skip, records_max, bytes_max);
                let decoded = ConsumeResponse::decode(&payload[slice.range.clone()]).unwrap().records;
                let first = skip as usize;
                assert_eq!(decoded, expected[first..first + slice.count as usize]);
                assert!(slice.count <= records_max);
                assert!(slice.count <= 1 || slice.range.len() <= bytes_max);
                if skip < 20 && records_max > 0 {
                    assert!(slice.count >= 1);
                    let next = first + slice.count as usize;
                    let could_grow =
                        next < 20 && slice.count < records_max && ranges[next].end - slice.range.start <= bytes_max;
                    assert!(!could_grow, "a slice takes what it may");
                }
            }
        }
    }
    assert!(ranges.iter().all(|range| record_timestamp(&payload[range.clone()]) == Some(5)));
    assert_eq!(record_ranges(&payload[..payload.len() - 1]).count(), 19);
}

fn any_record() -> impl Strategy<Value = Record> {
    let header = (".{0,5}", prop::collection::vec(any::<u8>(), 0..5))
        .prop_map(|(name, value)| Header { name, value: value.into() });
    let bytes = || prop_oneof![prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 100..200)];
    let timestamp = prop_oneof![8 => Just(0), 8 => 0..=i64::MAX, 8 => 0..3i64, 1 => any::<i64>()];
    let offset = prop_oneof![3 => Just(0), 1 => any::<u64>()];
    (bytes(), bytes(), prop::collection::vec(header, 0..3), timestamp, offset).prop_map(
        |(key, value, headers, timestamp_us, offset)| Record {
            key: key.into(),
            value: value.into(),
            headers,
            timestamp_us,
            offset,
        },
    )
}

fn any_request() -> impl Strategy<Value = ProduceRequest> {
    (
        ".{0,8}",
        prop::option::of(any::<u32>()),
        prop::collection::vec(any_record(), 0..8),
        any::<i32>(),
        prop::option::of(any::<u64>()),
    )
        .prop_map(|(topic, shard, records, durability, expected_offset)| ProduceRequest {
            topic,
            shard,
            records,
            durability,
            expected_offset,
        })
}

/// A change to a message's bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Cut(prop::sample::Index),
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Append(Vec<u8>),
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    // Pieces that mean something on the wire: fields repeated, unknown, grouped, of the wrong type.
    let piece = prop::sample::select(vec![
        vec![0x0a, 0x01, b'x'],
        vec![0x10, 0x07],
        vec![0x1a, 0x02, 0x20, 0x03],
        vec![0x1a, 0x04, 0x28, 0x09, 0x20, 0x00],
        vec![0x20, 0x80, 0x01],
        vec![0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        vec![0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        vec![0x4b, 0x48, 0x05, 0x4c],
        vec![0x4b, 0x4b, 0x4c],
        vec![0x4d, 1, 2, 3, 4],
        vec![0x49, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![0x9a, 0x80, 0x00, 0x00],
        vec![0xf8, 0xff, 0xff, 0xff, 0x0f, 0x01],
        vec![0xf8, 0xff, 0xff, 0xff, 0x1f, 0x01],
        vec![0x1d, 1, 2, 3, 4],
        vec![0x4f],
        vec![0x00, 0x00],
    ]);
    let piece2 = piece.clone();
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Mutation::Cut),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<prop::sample::Index>(), piece).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        piece2.prop_map(Mutation::Append),
    ]
}

fn mutate(message: &mut Vec<u8>, mutation: &Mutation) {
    if message.is_empty() {
        return;
    }
    match mutation {
        Mutation::Cut(at) => message.truncate(at.index(message.len())),
        Mutation::Set(at, byte) => {
            let at = at.index(message.len());
            message[at] = *byte;
        }
        Mutation::Flip(at, bit) => {
            let at = at.index(message.len());
            message[at] ^= 1 << bit;
        }
        Mutation::Insert(at, piece) => {
            let at = at.index(message.len());
            message.splice(at..at, piece.iter().copied());
        }
        Mutation::Append(piece) => message.extend(piece),
    }
}

/// Ours and prost's view of the same bytes agree: accepted alike, and the records come out as they
/// went in, with offset and timestamp filled in.
fn agree_with_prost(message: &[u8]) -> Result<(), TestCaseError> {
    let theirs = ProduceRequest::decode(message);
    let ours = parse(message);
    match (&ours, theirs) {
        (Err(RecordsError::Malformed { .. }), Err(_)) => {}
        (Err(RecordsError::Empty), Ok(request)) => prop_assert!(request.records.is_empty()),
        (Err(RecordsError::TimestampNegative { number, timestamp_us }), Ok(request)) => {
            // The first one; prost has read what comes behind it, too.
            let first = request.records.iter().position(|record| record.timestamp_us < 0);
            prop_assert_eq!((Some(*number), request.records[*number].timestamp_us), (first, *timestamp_us));
        }
        // What is wrong behind it is not looked at.
        (Err(RecordsError::TimestampNegative { .. }), Err(_)) => {}
        (Ok((head, records)), Ok(request)) => {
            prop_assert_eq!(&head.topic, &request.topic);
            prop_assert_eq!(head.shard, request.shard);
            prop_assert_eq!(head.durability, request.durability);
            prop_assert_eq!(head.expected_offset, request.expected_offset);
            let key = request.records.iter().map(|record| &record.key).find(|key| !key.is_empty());
            prop_assert_eq!(head.key_hash, key.map(|key| XxHash3_64::oneshot(key)));
            prop_assert_eq!(records.count() as usize, request.records.len());

            let payload = encode(records, 77, 1_234_567);
            let expected = stored(&request.records, 77, 1_234_567);
            let timestamp_max = expected.iter().map(|record| record.timestamp_us).max();
            prop_assert_eq!(Some(records.timestamp_max_with(1_234_567)), timestamp_max);
            for (range, record) in record_ranges(&payload).zip(&expected) {
                prop_assert_eq!(record_timestamp(&payload[range]), Some(record.timestamp_us));
            }
            prop_assert_eq!(record_ranges(&payload).count(), expected.len());
            prop_assert!(payload.len() <= records.encoded_bytes_max());
            prop_assert_eq!(ConsumeResponse::decode(&*payload).unwrap().records, expected);
        }
        (ours, theirs) => prop_assert!(false, "we: {:?}, prost: {:?}", ours, theirs),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Valid requests.
    #[test]
    fn valid_requests(request in any_request()) {
        agree_with_prost(&request.encode_to_vec())?;
    }

    /// Requests with damaged, repeated, unknown and hostile parts.
    #[test]
    fn mutated_requests(request in any_request(), mutations in prop::collection::vec(any_mutation(), 1..6)) {
        let mut message = request.encode_to_vec();
        for mutation in &mutations {
            mutate(&mut message, mutation);
        }
        agree_with_prost(&message)?;
    }

    /// Bytes without any sense.
    #[test]
    fn garbage(message in prop::collection::vec(any::<u8>(), 0..40)) {
        agree_with_prost(&message)?;
    }
}

/// Every cut of a request is treated as prost treats it.
#[test]
fn every_cut() {
    let message = request(vec![record(b"hello"), Record { timestamp_us: 5, ..record(b"world") }]).encode_to_vec();
    for end in 0..=message.len() {
        agree_with_prost(&message[..end]).unwrap();
    }
}
